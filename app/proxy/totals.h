/* SPDX-License-Identifier: MIT
 *
 * What one worker has proxied for one service, counted in memory that outlives it (service/shared.h): one writer, read
 * by all. And the text that Prometheus and the live page read.
 */
#ifndef SLUICE_PROXY_TOTALS_H
#define SLUICE_PROXY_TOTALS_H

#include "proxy/balance.h"
#include "service/counts.h"
#include <sluice/sluice.h>
#include <stdint.h>
#include <stdio.h>

/* Why a connection ended. */
enum proxy_end {
    PROXY_END_DONE,         /* both sides have closed */
    PROXY_END_CLIENT_RESET, /* passed on to the server */
    PROXY_END_SERVER_RESET, /* passed on to the client */
    PROXY_END_IDLE_TIMEOUT,
    PROXY_END_HALF_CLOSE_TIMEOUT,
    PROXY_END_CONNECT_FAILED, /* at the last server that was tried */
    PROXY_END_NO_SERVER,      /* none was up, or none takes the name asked for */
    PROXY_END_QUEUE_TIMEOUT,
    PROXY_END_QUEUE_FULL,
    PROXY_END_HEADER_REFUSED, /* no PROXY header, or a wrong one */
    PROXY_END_HELLO_REFUSED,  /* no ClientHello, or a wrong one */
    PROXY_END_HELLO_TIMEOUT,  /* neither came in time */
    PROXY_END_CLIENT_LEFT,    /* before a server was connected */
    PROXY_END_DRAINED,        /* cut off when its worker's time to drain was over */
    PROXY_END_ERROR,          /* no memory, no descriptors, the worker crashed, ... */
    PROXY_END_COUNT
};

/* "done", "client_reset", ...: static. */
const char *proxy_end_name(enum proxy_end end);

enum proxy_direction { PROXY_TO_SERVER, PROXY_TO_CLIENT, PROXY_DIRECTIONS };

struct proxy_totals {
    struct sluice_receipt receipts[PROXY_DIRECTIONS];
    struct fallbacks fallbacks; /* the receipts' */
    uint64_t connections;       /* accepted */
    uint64_t open;              /* of these, not yet closed */
    uint64_t ended[PROXY_END_COUNT];
    uint64_t retries; /* further servers tried after one failed */
    uint64_t accept_failures;
    struct durations connecting;    /* to servers */
    uint64_t mirrors, mirrors_lost; /* shadow connections opened; of these, reset for a loss */
    uint64_t mirrored_bytes;
};

/* What a transfer did in this direction. */
void proxy_totals_moved(struct proxy_totals *totals, enum proxy_direction direction,
                        const struct sluice_receipt *receipt);

/* A connection that was open is closed. */
void proxy_totals_ended(struct proxy_totals *totals, enum proxy_end end);

void proxy_totals_add(struct proxy_totals *sum, const struct proxy_totals *part);

/* The same of a worker that is gone. What it had open ended with it, and for this reason; its totals are zero then, for
 * its successor. */
void proxy_totals_fold(struct proxy_totals *sum, struct proxy_totals *gone, enum proxy_end end);

/* A service for the text below. */
struct proxy_totals_of {
    const struct proxy_service *service;
    const struct proxy_totals *totals; /* of all workers there are and were */
    const struct service_state *state;
    const struct server_state *servers; /* service->server_count of them */
};

/* Everything as Prometheus reads it (its text format, version 0.0.4). The caller asks ferror. */
void proxy_totals_write(FILE *out, const struct proxy_totals_of *services, unsigned count);

/* An object of JSON: the sum of all services, and what there is of each. The live page knows its members
 * (service/live.js). */
void proxy_totals_write_json(FILE *out, const struct proxy_totals_of *services, unsigned count);

#endif
