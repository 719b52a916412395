/* SPDX-License-Identifier: MIT
 *
 * One session: a client's connection and the one to a server that it is passed on to. Between worker.c, session.c,
 * relay.c and mirror.c only.
 *
 *   GREETING    the client's first bytes are awaited: a PROXY header, a ClientHello
 *   QUEUED      the service, or all servers that are up, have as many connections as they may
 *   CONNECTING  to the server that was chosen; when that fails, to another one
 *   RELAYING    both directions flow, or what is left of them
 *   CLOSED      within session_close
 *
 * What only the states before RELAYING need (struct approach) is freed then: an idle session holds this struct, two
 * ends, and nothing else.
 */
#ifndef SLUICE_PROXY_SESSION_H
#define SLUICE_PROXY_SESSION_H

#include "base/list.h"
#include "proxy/balance.h"
#include "proxy/health.h"
#include "proxy/relay.h"
#include "proxy/worker.h"
#include "service/accepting.h"
#include <netinet/in.h>
#include <time.h>

enum session_state { GREETING, QUEUED, CONNECTING, RELAYING, CLOSED };

struct approach;

struct service_at_work {
    struct proxy_worker *worker;
    const struct proxy_service *service;
    const struct service_shared *shared;
    struct proxy_totals *totals;
    struct balancer_options balancing;
    struct balancer *balancer;
    struct health *health;
    struct list held; /* connections that wait for the service's own limit, the first to be let in first */
    struct sluice_transfer_options message, stream; /* what is the same for all */
};

struct listener_at_work {
    struct service_at_work *service;
    struct accepting_socket socket;
};

struct proxy_worker {
    const struct proxy_worker_options *options;
    struct sluice_loop *loop;
    struct service_at_work *services;
    struct listener_at_work *listeners;
    unsigned listener_count;
    struct list sessions; /* in no particular order */
    struct list mirrors;  /* of connections, and those that outlive theirs */
    unsigned count;
    struct accepting accepting;
    bool draining, drained;
    struct sluice_timer held_timer;
    struct admin *admin[GENERATION_ADMIN]; /* or NULL */
    unsigned admin_open;                   /* of these, not drained */
    time_t log_second;
    char log_time[32];
};

struct session {
    struct service_at_work *service;
    struct sluice_end *client, *server; /* server: from RELAYING on */
    struct approach *approach;          /* before RELAYING */
    struct relay up, down;
    struct sluice_timer timer;
    struct list all; /* in proxy_worker.sessions */
    uint64_t began;  /* ms */
    uint64_t heard;  /* ms: when something was moved last, as far as the timer has looked */
    uint8_t state;
    bool has_place;       /* one of the service's */
    int16_t server_index; /* whose place it has; -1: none */
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } peer;
    struct session_account *account; /* for its line in the log, or its receipt; NULL: not asked for */
};

struct session_account {
    struct sluice_receipt receipts[PROXY_DIRECTIONS];
    const char *why; /* its PROXY header or ClientHello was refused; static; NULL: it was not */
};

/* A connection of an accepted socket, which it takes in every case. */
void session_open(struct service_at_work *service, int fd, const struct sockaddr *address, unsigned address_length);

/* Close at once, whatever it is doing, and free it. reset: both peers get a reset. */
void session_close(struct session *session, enum proxy_end why, bool reset);

/* For relay.c: a relay has passed on the end of its source, or its sink takes no more. False: the session was closed
 * and freed: nothing may touch it any more. */
bool session_half_closed(struct session *session, struct relay *relay);
bool session_sink_failed(struct session *session, struct relay *relay);

/* The source or the sink of a relay failed, and there is nothing to wait for: closes the connection. */
void session_source_failed(struct session *session, struct relay *relay);
void session_sink_lost(struct session *session, struct relay *relay);

/* What a relay has moved; and what it was given by the loop, which has copied that out of the socket: the receipt of
 * the transfer that sends it knows of the second copy only. */
void session_count(struct session *session, const struct relay *relay, const struct sluice_receipt *receipt);
void session_count_received(struct session *session, const struct relay *relay, size_t bytes);

/* For worker.c: the service may have a place for this one, which is held. False: it has none. */
bool session_let_in(struct session *session);

/* The connection that is in service_at_work.held by this link. */
struct session *session_held(struct list *link);

/* In worker.c: a connection is gone; one is held. */
void proxy_worker_lost(struct proxy_worker *worker, struct service_at_work *service);
void proxy_worker_holds(struct proxy_worker *worker);

/* Of a relay: the other direction's, its direction, its ends. */
static inline struct relay *relay_opposite(const struct relay *relay)
{
    return relay->upward ? &relay->session->down : &relay->session->up;
}

static inline enum proxy_direction relay_direction(const struct relay *relay)
{
    return relay->upward ? PROXY_TO_SERVER : PROXY_TO_CLIENT;
}

static inline struct sluice_end *relay_source(const struct relay *relay)
{
    return relay->upward ? relay->session->client : relay->session->server;
}

static inline struct sluice_end *relay_sink(const struct relay *relay)
{
    return relay->upward ? relay->session->server : relay->session->client;
}

#endif
