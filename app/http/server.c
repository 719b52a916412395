/* SPDX-License-Identifier: MIT */
#include "server.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "connection.h"
#include "service/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define SHED 16            /* files and idle connections to close when descriptors run out */
#define SHED_LOOK_AT 512   /* connections to look at for that */
#define PARTS_INTERVAL 500 /* ms between looks at what responses under way have sent */
#define DRAIN_CHECK 125    /* ms between looks whether helpers are done */

void http_server_tick(struct http_server *server)
{
    uint64_t turn = sluice_loop_turn(server->loop);
    if (turn == server->turn)
        return;
    struct timespec now;
    server->turn = turn;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    response_clock_set(&server->clock, now.tv_sec);
    if (server->options->timed)
        server->turn_us = clock_us(CLOCK_MONOTONIC);
}

/* What was answered in the turn in which it was asked took no longer than that turn. So a response that leaves at once,
 * as nearly all small ones do, costs no look at a clock of its own: all of a turn are counted here, by what the other
 * counters say. */
void http_server_turn(struct http_server *server)
{
    uint64_t responses = 0;
    if (!server->options->timed)
        return;
    for (size_t i = 0; i < sizeof server->totals->responses / sizeof *server->totals->responses; i++)
        responses += server->totals->responses[i];
    uint64_t at_once = responses - server->responses_timed;
    if (at_once > 0)
        durations_enter(&server->totals->durations, clock_us(CLOCK_MONOTONIC) - server->turn_us, at_once);
    server->responses_timed = responses;
}

/* A download may take hours, and the live page looks once a second. */
static void count_parts(void *context)
{
    struct http_server *server = context;
    server->counts_parts = false;
    LIST_FOR_EACH(link, &server->connections)
    {
        const struct connection *connection = LIST_OBJECT(link, struct connection, all);
        if (connection->state != SENDING)
            continue;
        exchange_count_part(connection->exchange);
        server->counts_parts = true;
    }
    if (server->counts_parts)
        sluice_timer_start(server->loop, &server->parts_timer, PARTS_INTERVAL, count_parts, server);
}

void http_server_count_parts(struct http_server *server)
{
    if (!server->options->timed || server->counts_parts)
        return;
    server->counts_parts = true;
    sluice_timer_start(server->loop, &server->parts_timer, PARTS_INTERVAL, count_parts, server);
}

static void log_complaint(void *context, const char *text)
{
    const struct http_server *server = context;
    char line[320];
    int length = snprintf(line, sizeof line, "sluice serve: %s (said once).", text);
    log_line(server->options->error_log, line, (size_t)length);
}

int http_server_new(const struct http_server_options *options, struct http_server **ret_server)
{
    struct http_server *server = calloc(1, sizeof *server);
    if (server == NULL)
        return -ENOMEM;
    server->options = options;
    server->loop = options->loop;
    server->totals = options->totals;
    server->head_room = RESPONSE_HEAD_MAX + http_sites_extra_room(options->sites);
    list_init(&server->connections);
    server->turn = UINT64_MAX;
    server->transfer = (struct sluice_transfer_options){
        .size = sizeof server->transfer,
        .sink_count = 1,
        .flags = SLUICE_TRANSFER_NEVER_BLOCK,
    };
    const struct http_sites *sites = options->sites;
    struct files_root_options *roots = calloc(sites->count, sizeof *roots);
    if (roots == NULL) {
        free(server);
        return -ENOMEM;
    }
    for (unsigned i = 0; i < sites->count; i++)
        roots[i] = (struct files_root_options){
            .directory = sites->items[i].root,
            .symlinks = sites->items[i].symlinks,
            .precompressed = sites->items[i].precompressed,
            .drop_from = sites->items[i].drop_from,
            .extras = &sites->items[i].extras,
        };
    struct files_options files = {
        .loop = options->loop,
        .roots = roots,
        .root_count = sites->count,
        .end_flags = options->snapshot ? SLUICE_END_SNAPSHOT : 0,
        .capacity = options->open_files,
        .walk = options->walk,
        .complain = log_complaint,
        .complain_context = server,
    };
    int r = files_new(&files, &server->files);
    free(roots);
    if (r < 0) {
        free(server);
        return r;
    }
    allowances_init(server);
    accepting_init(&server->accepting, options->max_connections);
    *ret_server = server;
    return 0;
}

void http_server_free(struct http_server *server)
{
    if (server == NULL)
        return;
    server->drained = true; /* not told from here */
    accepting_stop(&server->accepting);
    LIST_FOR_EACH(link, &server->connections)
    {
        connection_close(LIST_OBJECT(link, struct connection, all));
    }
    sluice_timer_stop(server->loop, &server->drain_timer);
    sluice_timer_stop(server->loop, &server->parts_timer);
    allowances_stop(server);
    exchange_free_spare(server);
    files_free(server->files);
    free(server);
}

/* Out of descriptors: give some back, so that those who do ask something are served. */
static void shed(struct http_server *server)
{
    files_shed(server->files, SHED);
    unsigned closed = 0;
    for (unsigned i = 0; i < SHED_LOOK_AT && closed < SHED && !list_empty(&server->connections); i++) {
        struct list *link = server->connections.next;
        struct connection *connection = LIST_OBJECT(link, struct connection, all);
        list_remove(link);
        list_add_last(&server->connections, link); /* the next look begins with others */
        if (connection_is_idle(connection) && connection->requests > 0) {
            connection_close_idle(connection);
            closed++;
        }
    }
}

static void on_accepted(void *context, int fd, const struct sockaddr *address, unsigned address_length)
{
    const struct http_listening *listening = context;
    struct http_server *server = listening->server;
    if (fd == -EINVAL) /* no longer a listening socket: another worker has begun to drain */
        return;
    if (fd < 0) {
        server->totals->accept_failures++;
        if (fd == -EMFILE || fd == -ENFILE)
            shed(server);
        return;
    }
    connection_open(server, fd, address, address_length, listening->tls);
    accepting_count(&server->accepting, server->count);
}

int http_server_listen(struct http_server *server, int fd, struct tls_context *tls)
{
    if (server->listening_count == HTTP_LISTENERS_MAX)
        return -ENOSPC;
    struct http_listening *listening = &server->listening[server->listening_count];
    *listening = (struct http_listening){.server = server, .tls = tls};
    int r = accepting_add(&server->accepting, server->loop, fd, on_accepted, listening, &listening->socket);
    server->listening_count += r == 0;
    return r;
}

static void check_drained(void *context)
{
    struct http_server *server = context;
    if (!server->closing || server->accepting.listening || server->count > 0 || server->drained)
        return;
    /* Helpers may still be at work for connections that have gone; what they bring has to be taken in. */
    if (files_busy(server->files) || server->listings > 0) {
        sluice_timer_start(server->loop, &server->drain_timer, DRAIN_CHECK, check_drained, server);
        return;
    }
    server->drained = true;
    if (server->options->drained != NULL)
        server->options->drained(server->options->context);
}

void http_server_lost(struct http_server *server)
{
    accepting_count(&server->accepting, server->count);
    check_drained(server);
}

void http_server_retire(struct http_server *server)
{
    if (server->closing)
        return;
    server->closing = true;
    accepting_stop(&server->accepting);
    check_drained(server);
}

void http_server_drain(struct http_server *server)
{
    if (server->draining)
        return;
    http_server_retire(server);
    LIST_FOR_EACH(link, &server->connections)
    {
        connection_drain(LIST_OBJECT(link, struct connection, all));
    }
    server->draining = true;
    check_drained(server);
}
