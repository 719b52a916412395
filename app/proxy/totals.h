/* SPDX-License-Identifier: MIT
 *
 * What one worker has proxied for one service, counted in memory that outlives it (service/shared.h): one writer, read
 * by all. And the text that Prometheus reads.
 */
#ifndef SLUICE_PROXY_TOTALS_H
#define SLUICE_PROXY_TOTALS_H

#include "proxy/balance.h"
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

/* Of connecting: 14 bounds from .0005 to 10 s, and what took longer. */
#define PROXY_LATENCY_BUCKETS 15

struct proxy_totals {
    struct sluice_receipt receipts[PROXY_DIRECTIONS];
    uint64_t connections; /* accepted */
    uint64_t open;        /* of these, not yet closed */
    uint64_t ended[PROXY_END_COUNT];
    uint64_t retries; /* further servers tried after one failed */
    uint64_t accept_failures;
    uint64_t connect_latency[PROXY_LATENCY_BUCKETS]; /* each connection is counted in one bucket only */
    uint64_t connect_latency_us;                     /* their sum */
    uint64_t mirrors, mirrors_lost;                  /* shadow connections opened; of these, reset for a loss */
    uint64_t mirrored_bytes;
    /* The receipts' changes of route, by [from][to]; a receipt keeps its first few, the others are in fallbacks_other.
     */
    uint64_t fallbacks[SLUICE_ROUTE_COUNT][SLUICE_ROUTE_COUNT], fallbacks_other;
};

/* What a transfer did in this direction. */
void proxy_totals_moved(struct proxy_totals *totals, enum proxy_direction direction,
                        const struct sluice_receipt *receipt);

/* A connection to a server was made after so many microseconds. */
void proxy_totals_connected(struct proxy_totals *totals, uint64_t microseconds);

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

#endif
