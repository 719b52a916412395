/* SPDX-License-Identifier: MIT
 *
 * A supervisor and its single-threaded workers.
 *
 * The supervisor forks the workers, replaces one that dies, and ends them on request. It serves nobody itself, so that
 * what crashes a worker does not reach it. Signals to the supervisor:
 *
 *   SIGTERM, SIGINT   drain: workers are told to stop and have drain_ms to finish; a second one kills them at once
 *   SIGUSR1           options.report() runs, in the supervisor
 *   SIGHUP            reserved for reloading; ignored for now
 *
 * A worker that dies is replaced after a pause of restart_ms, doubled with every further death up to 5 s, and back at
 * restart_ms once a worker has lived for 10 s. A worker that died before it said it was ready could not start: after
 * SUPERVISOR_START_ATTEMPTS such deaths in a row the supervisor gives up. One that ends with WORKER_EXIT_GIVE_UP says
 * that trying again is useless. Workers cannot outlive their supervisor (PR_SET_PDEATHSIG), even when that is killed by
 * SIGKILL.
 */
#ifndef SLUICE_SERVICE_SUPERVISOR_H
#define SLUICE_SERVICE_SUPERVISOR_H

#include <stdbool.h>
#include <stdint.h>

#define SUPERVISOR_START_ATTEMPTS 5
#define WORKER_EXIT_GIVE_UP 3

/* What a worker gets. */
struct worker {
    unsigned index;      /* 0 .. workers-1; a replacement has its predecessor's */
    unsigned generation; /* how many workers of this index were there before */
    int stop_fd;  /* non-blocking signalfd; becomes readable when the worker shall drain and return. The worker's */
    int ready_fd; /* worker_ready's */
};

/* Tell the supervisor that this worker serves. Once, before its loop runs (and before or after confinement: one write
 * and one close). */
void worker_ready(struct worker *worker);

struct supervisor_options {
    const char *name;    /* begins messages: "sluice serve" */
    unsigned workers;    /* at least 1 */
    uint64_t drain_ms;   /* 0: no limit */
    uint64_t restart_ms; /* 0: 100 */
    void *context;       /* passed to all of these: */

    /* The worker's life, in a process of its own; its result is its exit code (0: drained as asked). SIGTERM, SIGINT,
     * SIGHUP and SIGUSR1 are blocked there, SIGPIPE is ignored. stdio is flushed before the fork, and at the end. */
    int (*worker_main)(void *context, struct worker *worker);

    /* All workers have said they are ready, for the first time: print "listening at". May be NULL. */
    void (*ready)(void *context);

    /* SIGUSR1 came. May be NULL. */
    void (*report)(void *context);

    /* A worker has ended, for whatever reason (crashed or at the end of draining): fold its slot's counters into the
     * totals before a successor begins to write there. May be NULL. */
    void (*worker_ended)(void *context, unsigned index, bool crashed);

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
