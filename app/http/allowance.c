/* SPDX-License-Identifier: MIT */
#include "allowance.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "connection.h"
#include "service/log.h"

#include <errno.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define SHARING_CHECK 250 /* ms between looks who has something to send */
#define NO_LIMIT UINT64_MAX

/* Kernels before 4.20 take 32 bits only, and those after it take them, too. */
static int set_pacing(int fd, uint64_t rate)
{
    uint32_t narrow = rate < UINT32_MAX ? (uint32_t)rate : UINT32_MAX;
    bool wide = rate > UINT32_MAX && rate != NO_LIMIT;
    return setsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, wide ? (void *)&rate : &narrow,
                      wide ? sizeof rate : sizeof narrow) < 0
               ? -errno
               : 0;
}

int allowance_probe(void)
{
    const uint32_t rate = 1000000;
    uint32_t got = 0;
    socklen_t size = sizeof got;
    CLEANUP_FD int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int r = fd < 0 ? -errno : set_pacing(fd, rate);
    if (r == 0 && getsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &got, &size) < 0)
        r = -errno;
    return r == 0 && got != rate ? -EOPNOTSUPP : r;
}

static void tell_kernel(struct connection *connection, uint64_t rate)
{
    struct allowance *allowance = connection->allowance;
    struct http_server *server = connection->server;
    if (rate == allowance->told)
        return;
    int r = set_pacing(sluice_end_fd(connection->end), rate);
    allowance->told = rate;
    if (r < 0 && !server->allowances.refusal_said) {
        server->allowances.refusal_said = true;
        log_say(server->options->error_log, "sluice serve: SO_MAX_PACING_RATE: %s (%s): rates are not kept (said once)",
                text_errno_meaning(r), text_errno_name(r));
    }
}

/* The site's rate is that of the response under way, or of the one before. */
static void apply(struct connection *connection)
{
    struct allowance *allowance = connection->allowance;
    tell_kernel(connection, allowance->share < allowance->rate ? allowance->share : allowance->rate);
}

/* ---- Shares of an address's rate ------------------------------------------------------------------------------- */

static void take_share(struct connection *connection)
{
    struct allowance *allowance = connection->allowance;
    const struct http_server_options *options = connection->server->options;
    unsigned sending = clients_count(options->clients, allowance->key).doing[CLIENT_SENDING];
    uint64_t share = options->rate_per_address / (sending > 0 ? sending : 1);
    allowance->share = share > 0 ? share : 1;
}

static bool has_nothing_to_send(const struct connection *connection)
{
    int queued;
    return connection->exchange == NULL && ioctl(sluice_end_fd(connection->end), SIOCOUTQ, &queued) == 0 && queued == 0;
}

static void stop_sharing(struct connection *connection)
{
    struct allowance *allowance = connection->allowance;
    list_remove(&allowance->sharing);
    clients_end(connection->server->options->clients, allowance->key, CLIENT_SENDING);
}

static void share_out(void *context)
{
    struct http_server *server = context;
    struct allowances *allowances = &server->allowances;
    LIST_FOR_EACH(link, &allowances->sharing)
    {
        struct connection *connection = LIST_OBJECT(link, struct allowance, sharing)->connection;
        if (has_nothing_to_send(connection)) {
            stop_sharing(connection);
        } else {
            take_share(connection);
            apply(connection);
        }
    }
    if (!list_empty(&allowances->sharing))
        sluice_timer_start(server->loop, &allowances->timer, SHARING_CHECK, share_out, server);
}

static void begin_sharing(struct connection *connection)
{
    struct http_server *server = connection->server;
    struct allowances *allowances = &server->allowances;
    if (list_empty(&allowances->sharing))
        sluice_timer_start(server->loop, &allowances->timer, SHARING_CHECK, share_out, server);
    list_add_last(&allowances->sharing, &connection->allowance->sharing);
    clients_begin(server->options->clients, connection->allowance->key, CLIENT_SENDING);
    take_share(connection);
}

/* ---- The life of a connection ---------------------------------------------------------------------------------- */

void allowances_init(struct http_server *server)
{
    const struct http_server_options *options = server->options;
    list_init(&server->allowances.sharing);
    server->allowances.wanted = options->clients != NULL;
    for (unsigned i = 0; i < options->sites->count; i++)
        server->allowances.wanted |= options->sites->items[i].rate > 0;
}

void allowances_stop(struct http_server *server)
{
    sluice_timer_stop(server->loop, &server->allowances.timer);
}

static enum allowance_verdict count_connection(struct connection *connection)
{
    struct http_server *server = connection->server;
    const struct http_server_options *options = server->options;
    struct allowance *allowance = connection->allowance;
    if (options->clients == NULL || !client_key_of(&connection->peer.any, &allowance->key))
        return ALLOWANCE_GRANTED;
    allowance->counted = clients_enter(options->clients, allowance->key);
    if (!allowance->counted && !server->allowances.table_full_said) {
        server->allowances.table_full_said = true;
        log_say(server->options->error_log,
                "sluice serve: clients of more than %u addresses are connected: connections of further ones are not "
                "limited (said once)",
                CLIENTS_MAX);
    }
    if (!allowance->counted || options->connections_per_address == 0)
        return ALLOWANCE_GRANTED;
    struct client_counts count = clients_count(options->clients, allowance->key);
    /* Other workers' numbers are read one after the other. */
    unsigned refused = count.doing[CLIENT_REFUSED];
    if (count.connections <= refused || count.connections - refused <= options->connections_per_address)
        return ALLOWANCE_GRANTED;
    allowance->refused = true;
    clients_begin(options->clients, allowance->key, CLIENT_REFUSED);
    return count.connections / 2 <= options->connections_per_address ? ALLOWANCE_REFUSED : ALLOWANCE_ABUSED;
}

enum allowance_verdict allowance_begin(struct connection *connection)
{
    struct http_server *server = connection->server;
    if (!server->allowances.wanted)
        return ALLOWANCE_GRANTED;
    struct allowance *allowance = calloc(1, sizeof *allowance);
    if (allowance == NULL)
        return ALLOWANCE_ABUSED; /* there is no memory to answer with, either */
    allowance->connection = connection;
    allowance->rate = allowance->share = allowance->told = NO_LIMIT;
    list_init(&allowance->sharing);
    connection->allowance = allowance;
    return count_connection(connection);
}

void allowance_respond(struct connection *connection, const struct http_site *site)
{
    struct allowance *allowance = connection->allowance;
    if (allowance->counted && connection->server->options->rate_per_address > 0 && list_empty(&allowance->sharing))
        begin_sharing(connection);
    allowance->rate = site != NULL && site->rate > 0 ? site->rate : NO_LIMIT;
    apply(connection);
}

void allowance_end(struct connection *connection)
{
    struct allowance *allowance = connection->allowance;
    if (allowance == NULL)
        return;
    if (!list_empty(&allowance->sharing))
        stop_sharing(connection);
    if (allowance->refused)
        clients_end(connection->server->options->clients, allowance->key, CLIENT_REFUSED);
    if (allowance->counted)
        clients_leave(connection->server->options->clients, allowance->key);
    free(allowance);
    connection->allowance = NULL;
}
