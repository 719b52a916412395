/* SPDX-License-Identifier: MIT
 *
 * A worker's life: it confines itself and runs an HTTP server on a loop of its own. All workers accept from the same
 * sockets.
 */
#ifndef SLUICE_APP_SERVE_WORKER_H
#define SLUICE_APP_SERVE_WORKER_H

#include "serve/generation.h"
#include "service/clients.h"
#include "service/supervisor.h"
#include "service/tally.h"

/* What the supervisor has, and each worker a copy of. */
struct serve {
    int argc;
    char **argv;
    struct serve_generation *current;
    struct serve_generation *fallback; /* during a reload: what was current before */
    struct supervisor_options supervisor;
    struct log *error_log;       /* standard error; the receipts' too */
    struct tally tally;          /* of struct http_totals */
    struct tls_tickets *tickets; /* of all generations; NULL: nobody has wanted them */
    struct shared clients;       /* connections by address; made when some limit is set */
    unsigned reloads;            /* that were done */
};

/* supervisor_options.worker_main; context is the struct serve. */
int serve_worker_main(void *context, struct worker *worker);

#endif
