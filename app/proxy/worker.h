/* SPDX-License-Identifier: MIT
 *
 * What one worker proxies: all services of a generation, on one loop.
 */
#ifndef SLUICE_PROXY_WORKER_H
#define SLUICE_PROXY_WORKER_H

#include "proxy/generation.h"
#include "proxy/totals.h"

struct log;
struct proxy_worker;

/* Who has a slot of the supervisor's: what a worker has in the process's tally (service/tally.h). */
struct proxy_slot {
    bool taken;
    unsigned serial, index; /* its generation, and its number there */
};

struct proxy_worker_options {
    struct sluice_loop *loop;
    const struct generation *generation;
    unsigned index;           /* of the worker in its generation; number 0 makes the health checks */
    unsigned max_connections; /* beyond it the next ones wait to be accepted */
    const struct tally *tally;
    unsigned reloads;        /* that were done */
    struct log *log;         /* a line for each connection; or NULL */
    struct log *receipt_log; /* or NULL */
    struct log *error_log;
    void (*drained)(void *context); /* after proxy_worker_drain: the last connection is gone */
    void *context;
};

/* Returns 0 or a negative errno. options and what they point to must outlive the worker. */
int proxy_worker_new(const struct proxy_worker_options *options, struct proxy_worker **ret_worker);

/* Accept from the listening sockets, and check servers. Once. Returns 0 or a negative errno. */
int proxy_worker_start(struct proxy_worker *worker);

/* Accept no more; connections go on until their ends close them; then call drained. */
void proxy_worker_drain(struct proxy_worker *worker);

/* Close everything. */
void proxy_worker_free(struct proxy_worker *worker);

#endif
