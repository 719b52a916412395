/* SPDX-License-Identifier: MIT
 *
 * A page of metrics for Prometheus over HTTP/1.x, and nothing else: one request a connection, answered and closed. It
 * runs on a worker's loop beside what the worker is there for; any worker may accept from the one listening socket.
 *
 *     GET /metrics   what options.write says
 *     GET /          one line that points there
 *
 * HEAD, too. Limits: 32 connections a worker (further ones wait), 4 KiB of head, and a time for each of: the request,
 * and the response as long as the client takes nothing of it.
 */
#ifndef SLUICE_SERVICE_METRICS_H
#define SLUICE_SERVICE_METRICS_H

#include <sluice/sluice.h>
#include <stdio.h>

struct metrics;

struct metrics_options {
    struct sluice_loop *loop;
    int listener; /* a listening, non-blocking socket, which stays the caller's */
    /* Write the page, in Prometheus's text format 0.0.4. Called within the loop, for every request: it delays what else
     * the loop has to do. */
    void (*write)(void *context, FILE *out);
    void *context;
    unsigned timeout; /* ms; 0: 5 s */
};

/* Copies the options. Returns 0 or a negative errno. */
int metrics_start(const struct metrics_options *options, struct metrics **ret_metrics);

/* Closes its connections, answered or not, and stops accepting. NULL is fine. */
void metrics_stop(struct metrics *metrics);

#endif
