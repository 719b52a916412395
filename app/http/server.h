/* SPDX-License-Identifier: MIT
 *
 * An HTTP/1.1 server for the files of one or several sites, on one loop.
 */
#ifndef SLUICE_APP_HTTP_SERVER_H
#define SLUICE_APP_HTTP_SERVER_H

#include "totals.h"
#include <sluice/sluice.h>
#include <stdbool.h>
#include <stdint.h>

struct address_prefix;
struct clients;
struct http_sites;
struct log;
struct tls_context;

#define HTTP_LISTENERS_MAX 16

struct http_server_options {
    struct sluice_loop *loop;
    const struct http_sites *sites;                      /* at least one */
    bool snapshot;                                       /* files may change in place: copy them */
    bool walk;                                           /* do without openat2 */
    enum sluice_route route;                             /* for bodies */
    unsigned header_timeout, idle_timeout, send_timeout; /* ms */
    unsigned max_connections;                            /* beyond it the next ones wait to be accepted */
    const struct clients *clients;                       /* to count addresses; NULL: neither of the next two is set */
    unsigned connections_per_address;                    /* 0: no limit */
    uint64_t rate_per_address;                           /* bytes per second; 0: no limit */
    bool accept_proxy;                                   /* connections begin with a PROXY header */
    const struct address_prefix *trusted;                /* whose X-Forwarded-For is believed, for the log */
    unsigned trusted_count;
    unsigned open_files; /* kept open though nobody is using them */
    unsigned https_port; /* requests that come without TLS are sent there, except those of ACME; 0: they are answered */
    struct log *access_log;  /* or NULL */
    struct log *receipt_log; /* a line for each connection; or NULL */
    struct log *error_log;
    struct http_totals *totals;     /* nobody else writes there */
    bool timed;                     /* how long responses take is counted, too */
    void (*drained)(void *context); /* after http_server_retire or drain: the last connection is gone */
    void *context;
};

struct http_server;

/* Returns 0 or a negative errno. options and what they point to must outlive the server. */
int http_server_new(const struct http_server_options *options, struct http_server **ret_server);

/* Accept from a listening socket, which stays the caller's; with TLS if there is a context for it, which must outlive
 * the server. At most HTTP_LISTENERS_MAX times. Returns 0 or a negative errno. */
int http_server_listen(struct http_server *server, int fd, struct tls_context *tls);

/* At the end of each turn of the loop: count the time of what was answered in it. */
void http_server_turn(struct http_server *server);

/* Accept no more. Connections go on until they have been idle for too long, or have had one more response, which tells
 * the client that it is the last: no request is lost, whenever it comes. Then call drained. */
void http_server_retire(struct http_server *server);

/* Accept no more, close what is idle, answer what was asked, then call drained. Also after http_server_retire. */
void http_server_drain(struct http_server *server);

/* Close everything. drained need not have been called. Free the loop before or after: helpers may still be at work for
 * the server only if drained was not called, so that the loop must have run until then, or the process must end. */
void http_server_free(struct http_server *server);

#endif
