/* SPDX-License-Identifier: MIT
 *
 * What a server has done, counted in memory that outlives it (service/tally.h): one writer, read by all.
 */
#ifndef SLUICE_APP_HTTP_TOTALS_H
#define SLUICE_APP_HTTP_TOTALS_H

#include "service/counts.h"
#include "service/tally.h"
#include <sluice/sluice.h>
#include <stdint.h>
#include <stdio.h>

/* A counter that is one number has a line in `counters` (totals.c), by which it is added up and shown everywhere. */
struct http_totals {
    struct sluice_receipt receipt; /* of all responses, heads included */
    uint64_t connections;          /* accepted */
    uint64_t open;                 /* of these, not yet closed */
    uint64_t requests;             /* whole heads */
    uint64_t responses[6];         /* by hundreds of the status; [0]: none could be sent */
    uint64_t refused;              /* heads that were malformed, too large, or of another version */
    uint64_t truncated;            /* responses ended short, as the file had shrunk */
    uint64_t timeouts;             /* connections closed in mid-request or mid-response */
    uint64_t accept_failures;
    uint64_t over_limit;     /* connections refused because their address had as many as it may */
    uint64_t unintroduced;   /* connections closed because they did not begin with a PROXY header */
    uint64_t tls_handshakes; /* completed */
    uint64_t tls_resumed;    /* of these, with a ticket */
    uint64_t tls_failures;   /* handshakes that failed, and connections that TLS ended */
    struct fallbacks fallbacks;
    struct durations durations; /* of responses; counted only when somebody can look (http_server_options.timed) */
};

/* Of a response under way: adds to the totals what its receipt has more than counted has, which becomes the receipt.
 * That it is one transfer, and its changes of route, count when it is over. */
void http_totals_count_part(struct http_totals *totals, const struct sluice_receipt *receipt,
                            struct sluice_receipt *counted);

/* Of one that is over. counted: NULL if no part of it was. */
void http_totals_count_rest(struct http_totals *totals, const struct sluice_receipt *receipt,
                            const struct sluice_receipt *counted);

void http_totals_add(void *sum, const void *part);

/* As Prometheus reads it. */
void http_totals_write_metrics(FILE *out, const struct http_totals *totals, const struct tally_state *state);

/* As an object of JSON; the live page knows its members (service/live.js). */
void http_totals_write_json(FILE *out, const struct http_totals *totals);

#endif
