/* SPDX-License-Identifier: MIT
 *
 * What one worker has proxied for one service, counted in memory that outlives it (service/shared.h): one writer, read
 * by all. And the text that Prometheus reads.
 */
#ifndef SLUICE_PROXY_TOTALS_H
#define SLUICE_PROXY_TOTALS_H

#include <sluice/sluice.h>
#include <stdint.h>

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
    PROXY_END_ERROR,          /* no memory, no descriptors, ... */
    PROXY_END_COUNT
};

/* "done", "client_reset", ...: static. */
const char *proxy_end_name(enum proxy_end end);

#define PROXY_LATENCY_BUCKETS 14 /* of connecting, .0005 to 10 s, and what took longer */

struct proxy_totals {
    struct sluice_receipt receipts[2]; /* from clients to servers, from servers to clients */
    uint64_t connections;              /* accepted */
    uint64_t open;                     /* of these, not yet closed */
    uint64_t ended[PROXY_END_COUNT];
    uint64_t retries; /* further servers tried after one failed */
    uint64_t accept_failures;
    uint64_t connect_latency[PROXY_LATENCY_BUCKETS]; /* connections that took no longer than the bucket's bound, each
                                                        counted in one bucket only */
    uint64_t connect_latency_us;                     /* their sum */
    uint64_t mirrors, mirrors_lost;                  /* shadow connections opened; of these, reset for a loss */
    uint64_t mirrored_bytes;
};

/* A connection to a server was made after so many microseconds. */
void proxy_totals_connected(struct proxy_totals *totals, uint64_t microseconds);

void proxy_totals_add(struct proxy_totals *sum, const struct proxy_totals *part);

#endif
