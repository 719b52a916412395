/* SPDX-License-Identifier: MIT
 *
 * A supervisor and its single-threaded workers.
 *
 * The supervisor forks the workers, replaces one that dies, and ends them on request. It serves nobody itself, so that
 * what crashes a worker does not reach it. Signals to the supervisor:
 *
 *   SIGTERM, SIGINT   drain: workers are told to stop and have drain_ms to finish; a second one kills them at once
 *   SIGUSR1           options.report() runs, in the supervisor
 *   SIGHUP            reload: options.reload() runs, then a new generation of workers is forked. When all of them
 *                     have said that they are ready, the old ones are told to retire, and have retire_ms. As
 *                     long as that is not so the old ones serve, too; when the new ones cannot start, they go on.
 *                     However it ends, workers of before get the logs that were opened anew (options.replacement),
 *                     and it is over when they use them
 *
 * What workers are told comes by a socket of each (worker_hear): a confined worker can open no file, but it can be
 * given one. Signals to workers are blocked: whoever signals the whole process group or cgroup means the supervisor.
 *
 * A worker that dies is replaced after a pause of restart_ms, doubled with every further death up to 5 s, and back at
 * restart_ms once a worker has lived for 10 s. A worker that died before it said it was ready could not start: after
 * SUPERVISOR_START_ATTEMPTS such deaths in a row the supervisor gives up, or takes the reload back. One that ends with
 * WORKER_EXIT_GIVE_UP says that trying again is useless. An old worker that dies while it drains is not replaced.
 * Workers cannot outlive their supervisor (PR_SET_PDEATHSIG), even when that is killed by SIGKILL.
 *
 * A service manager is told how it stands: READY, RELOADING, STOPPING (manager.h).
 */
#ifndef SLUICE_SERVICE_SUPERVISOR_H
#define SLUICE_SERVICE_SUPERVISOR_H

#include "service/identity.h"
#include <stdbool.h>
#include <stdint.h>

#define SUPERVISOR_START_ATTEMPTS 5
#define WORKER_EXIT_GIVE_UP 3

/* What a worker gets. */
struct worker {
    unsigned index;      /* 0 .. workers-1 within its generation of workers; a replacement has its predecessor's */
    unsigned slot;       /* 0 .. slots-1: no other living worker has it; for memory that outlives the worker. A
                            replacement has its predecessor's; without reloads it is the index */
    unsigned generation; /* how many workers of this index were there before, since the last reload */
    unsigned reloads;    /* how many there were before its configuration was in place */
    int control_fd;      /* non-blocking; readable when worker_hear has something. The worker's */
    int report_fd;       /* worker_ready's and worker_hear's */
    bool replacing;      /* worker_hear's: what it gave is being put in place */
};

/* What the supervisor says to a worker. */
enum worker_order {
    WORKER_NO_ORDER, /* nothing more, for now */
    WORKER_RETIRE,   /* newer workers serve: accept nobody, end with the connections there are, and return */
    WORKER_STOP,     /* all is to end: drain, and return. May come after WORKER_RETIRE */
    WORKER_REPLACE,  /* a descriptor to be used instead of an earlier one */
};

/* The next order; call it until there is none, whenever control_fd was readable. With WORKER_REPLACE, *ret_fd is the
 * descriptor, now the caller's, and *ret_number what options.replacement called it; the next call tells the supervisor
 * that it is in use. */
enum worker_order worker_hear(struct worker *worker, int *ret_fd, unsigned *ret_number);

/* Tell the supervisor that this worker serves. Once, before its loop runs (and before or after confinement: one write).
 */
void worker_ready(struct worker *worker);

struct supervisor_options {
    const char *name;    /* begins messages: "sluice serve" */
    unsigned workers;    /* at least 1 */
    unsigned slots;      /* at least workers; 0: as many. A reload needs as many free ones as there are to be workers */
    uint64_t drain_ms;   /* for workers when all shall end; 0: no limit. This and the next may be changed by reload */
    uint64_t retire_ms;  /* for old workers after a reload; 0: no limit */
    uint64_t restart_ms; /* 0: 100 */
    uint64_t start_ms;   /* in which the workers of a reload must be ready; 0: a minute */
    const struct identity *identity; /* who workers become; NULL: nobody else. Changed as drain_ms */
    void *context;                   /* passed to all of these: */

    /* The worker's life, in a process of its own; its result is its exit code (0: drained as asked). SIGTERM, SIGINT,
     * SIGHUP and SIGUSR1 are blocked there, SIGPIPE is ignored. stdio is flushed before the fork, and at the end. */
    int (*worker_main)(void *context, struct worker *worker);

    /* All workers have said they are ready, for the first time: print "listening at". May be NULL. */
    void (*ready)(void *context);

    /* SIGUSR1 came. May be NULL. */
    void (*report)(void *context);

    /* SIGHUP came: read the configuration. Returns 0 when the new one is in place, so that workers forked from now on
     * have it; *workers may be changed. Negative: all stays as it was, and why has been said. Not called while another
     * reload is under way (it waits for its turn), nor before ready. NULL: SIGHUP is ignored. */
    int (*reload)(void *context, unsigned *workers);

    /* How the reload ended: the new workers serve and the old ones have been told to stop; or the new ones could not
     * start, which has been said, and the configuration before it must be put back in place: old workers that died
     * since are forked with it. May be NULL. */
    void (*reloaded)(void *context, bool done);

    /* SIGHUP has been dealt with, whether by a reload or not: what shall workers that were forked before, old ones
     * included, use instead of what they were forked with? Called with which = 0, 1, ... until it returns -1; the
     * descriptor stays the caller's. May be NULL. */
    int (*replacement)(void *context, unsigned which, unsigned *ret_number);

    /* All workers are about to be told to stop. Here, rather than in a worker, listening sockets are shut down that
     * workers share: a worker that stops does not know whether others go on. May be NULL. */
    void (*stopping)(void *context);

    /* A worker has ended, for whatever reason (crashed or at the end of draining): fold its slot's counters into the
     * totals before a successor begins to write there. May be NULL. */
    void (*worker_ended)(void *context, unsigned slot, bool crashed);

    /* One line for the operator, without newline. NULL: to stderr. */
    void (*say)(void *context, const char *line);
};

/* Runs until all workers have ended. Call it with one thread in the process. The signals above must not have handlers
 * that matter: their mask is restored at the end. Returns EXIT_CODE_DONE when it was asked to end and all workers
 * drained in time; EXIT_CODE_FAILED when it gave up, could not fork, or workers had to be killed. */
int supervisor_run(const struct supervisor_options *options);

/* CPUs this process may run on: the default number of workers. */
unsigned supervisor_cpu_count(void);

#endif
