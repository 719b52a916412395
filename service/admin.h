/* SPDX-License-Identifier: MIT
 *
 * What operators and their programs look at, over HTTP/1.x on a listener of its own: one request a connection, answered
 * and closed. It runs on a worker's loop beside what the worker is there for; any worker may accept from the one
 * listening socket.
 *
 *     GET /metrics       for Prometheus
 *     GET /status.json   the same and more, see status.h
 *     GET /              a live page that draws what /status.json says, from live.html, live.css and live.js
 *
 * HEAD, too. Limits: 32 connections a worker (further ones wait), 4 KiB of head, and a time for each of: the request,
 * and the response as long as the client takes nothing of it. There is no password.
 */
#ifndef SLUICE_SERVICE_ADMIN_H
#define SLUICE_SERVICE_ADMIN_H

#include "base/failure.h"
#include "service/address.h"
#include <sluice/sluice.h>
#include <stdbool.h>
#include <stdio.h>

struct admin;

struct admin_options {
    struct sluice_loop *loop;
    int listener; /* a listening, non-blocking socket, which stays the caller's */
    /* Write a page: in Prometheus's text format 0.0.4 (prometheus.h), and in JSON (status.h; NULL: there are the
     * metrics only). Called within the loop, for every request: it delays what else the loop has to do. */
    void (*write_metrics)(void *context, FILE *out);
    void (*write_status)(void *context, FILE *out);
    void (*drained)(void *context); /* after admin_drain: the last connection is gone; may stop it; may be NULL */
    void *context;
    bool any_host;    /* answer to whatever name is in a request, also at a loopback address */
    unsigned timeout; /* ms; 0: 5 s */
};

/* Returns 0, or -EPERM where others than this host and private networks could reach it. */
int admin_check(const struct address *address, struct failure *failure);

/* A socket that listens at ADDR:PORT; checked so unless anywhere is set. Returns 0 or a negative errno with
 * failure->text. */
int admin_listen(const char *where, bool anywhere, int *ret_fd, struct failure *failure);

/* Copies the options. Returns 0 or a negative errno. */
int admin_start(const struct admin_options *options, struct admin **ret_admin);

/* Accept no more; those that are there have a second for what they asked. Then, or at once if there are none, drained
 * is called. */
void admin_drain(struct admin *admin);

/* Closes its connections, answered or not, and stops accepting. NULL is fine. */
void admin_stop(struct admin *admin);

#endif
