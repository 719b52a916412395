/* SPDX-License-Identifier: MIT
 *
 * One connection: its requests one after the other, each with its response. Between the files named here only.
 *
 *   READING     waits for a request (or, before the first one, for a PROXY header). Holds no memory but this struct,
 *               unless a part of a head has come
 *   SKIPPING    reads the body of a request and throws it away, before the request is answered
 *   LOOKING_UP  a helper is opening the file or reading the directory
 *   SENDING     the response is under way
 *   LINGERING   the last response is sent and the sending side closed; what still comes is thrown away until the client
 *               closes, too, as a close(2) with bytes unread would send a reset, and that destroys what the client has
 *               not read yet
 *   CLOSED      within connection_close
 *
 *   READING -> LOOKING_UP, SENDING         respond()
 *   READING -> SKIPPING                    begin_unusual()
 *   SKIPPING -> READING, SENDING           skip_body()
 *   LOOKING_UP -> READING, SENDING         on_found(), on_listed()
 *   SENDING -> READING                     on_sent()
 *   any -> LINGERING                       linger()
 *   any -> CLOSED                          connection_close()
 *
 * The receiver is paused in LOOKING_UP and SENDING, and while a client is invited to send a body: a client cannot make
 * us store more than it may have in one buffer.
 */
#ifndef SLUICE_APP_HTTP_CONNECTION_H
#define SLUICE_APP_HTTP_CONNECTION_H

#include "allowance.h"
#include "base/list.h"
#include "files.h"
#include "response.h"
#include "secure.h"
#include "server.h"
#include "service/accepting.h"
#include "site.h"
#include <limits.h>
#include <netinet/in.h>

enum connection_state { READING, SKIPPING, LOOKING_UP, SENDING, LINGERING, CLOSED };

struct exchange;

struct connection {
    struct http_server *server;
    struct sluice_end *end;
    struct exchange *exchange; /* in SKIPPING, LOOKING_UP and SENDING */
    char *stash;               /* what came and is not consumed: an incomplete head, or requests that have to wait */
    uint32_t stash_start, stash_length, stash_room;
    uint32_t held; /* at the start of the stash, the head of the request that is being answered; 0: not needed */
    uint8_t state;
    bool heading;      /* a part of a head has come: its time is running */
    bool unintroduced; /* a PROXY header must come first */
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } peer;
    struct list all; /* in http_server.connections */
    struct sluice_timer timer;
    uint64_t requests;
    struct secure *secure;          /* NULL: no TLS */
    struct sluice_receipt *receipt; /* the sum of its responses; NULL: not asked for */
    struct allowance *allowance;    /* NULL: nothing is limited */
};

/* Where connections come from. */
struct http_listening {
    struct http_server *server;
    struct accepting_socket socket;
    struct tls_context *tls; /* NULL: without */
};

struct http_server {
    const struct http_server_options *options;
    struct sluice_loop *loop;
    struct http_totals *totals;
    struct files *files;
    struct http_listening listening[HTTP_LISTENERS_MAX];
    unsigned listening_count;
    struct accepting accepting;
    struct secure_log secure_log;
    struct list connections; /* in no particular order */
    unsigned count;
    unsigned listings; /* helpers reading directories */
    bool route_refused;
    bool closing;           /* every response says that it is its connection's last */
    bool draining;          /* and connections that were not told so are closed, too */
    bool drained;           /* options->drained was called, or must not be */
    struct exchange *spare; /* exchanges for reuse */
    unsigned spare_count;
    struct allowances allowances;
    bool introduction_refused; /* said once */
    size_t text_bytes;         /* of responses of our own under way */
    uint64_t turn;             /* of the loop, when the clock was read */
    struct response_clock clock;
    time_t log_second;
    char log_time[32];
    struct sluice_timer drain_timer, parts_timer;
    bool counts_parts;                       /* of responses under way, when parts_timer is up */
    struct sluice_transfer_options transfer; /* what is the same for all */
    size_t head_room;                        /* of exchanges */
    uint64_t turn_us;                        /* when this turn read its first request, if responses are timed; else 0 */
    uint64_t responses_timed;                /* of those in totals */
    char path[PATH_MAX];                     /* of the request being looked at */
};

/* A connection of an accepted socket, which it takes in every case. tls: NULL, or what its TLS is to be. */
void connection_open(struct http_server *server, int fd, const struct sockaddr *address, unsigned address_length,
                     struct tls_context *tls);

/* For secure.c: TLS is set up, the time for the first head begins. */
void connection_opened(struct connection *connection);

/* Close at once, whatever it is doing, and free it. */
void connection_close(struct connection *connection);

/* The same where nothing is left to be answered, which TLS says, too: without its word (close_notify) the end would be
 * taken for a cut. */
void connection_close_idle(struct connection *connection);

/* Nothing asked and nothing under way. */
bool connection_is_idle(const struct connection *connection);

/* The server drains: close if idle, else after the response. */
void connection_drain(struct connection *connection);

/* The request whose head was kept, or false. */
bool connection_held_request(struct connection *connection, struct http_request *ret_request);

/* Back to READING with what has come meanwhile. */
void connection_go_on(struct connection *connection);

/* The sending side is closed, what still comes is thrown away. */
void connection_linger(struct connection *connection);

/* From now on; what is due then depends on the state. */
void connection_set_time(struct connection *connection, unsigned ms);

/* In server.c: a response is under way, of which operators want to know before it is over. */
void http_server_count_parts(struct http_server *server);

/* In exchange.c: in SENDING, put into the totals what has been sent by now. */
void exchange_count_part(struct exchange *exchange);

/* In exchange.c. */
void exchange_free_spare(struct http_server *server);

/* In server.c: the clock, read once per turn of the loop. */
void http_server_tick(struct http_server *server);

/* In server.c: a connection is gone. */
void http_server_lost(struct http_server *server);

#endif
