/* SPDX-License-Identifier: MIT
 *
 * Which server gets a connection; how many each may have; who waits when all are full. One balancer per service and
 * worker; what the workers must agree on lies in memory that they share (struct server_state).
 */
#ifndef SLUICE_PROXY_BALANCE_H
#define SLUICE_PROXY_BALANCE_H

#include "base/list.h"
#include "proxy/config.h"
#include <stdatomic.h>
#include <sys/socket.h>

/* Of one server, shared by all workers of a generation (service/shared.h); zeroed memory is a server that is up. */
struct server_state {
    _Atomic uint32_t down, known; /* by health checks; known: a check has decided it (a reload may hand both on) */
    _Atomic uint32_t connections; /* of all workers, being made ones included */
    _Atomic uint32_t claimed;     /* workers in which somebody waits for a place at this server */
    /* for health.c and the metrics: */
    _Atomic uint64_t checks, checks_failed, changes; /* of up and down */
    _Atomic uint64_t total, failures;                /* connections made, failed to connect */
};

/* Of one service, shared likewise. */
struct service_state {
    _Atomic uint32_t connections; /* clients, waiting ones included */
    _Atomic uint32_t waiting;     /* in queues, of all workers */
    _Atomic uint64_t tickets;     /* given out so far: who began to wait first has the lower one */
};

struct balancer;

struct balancer_options {
    const struct proxy_service *service;
    struct service_state *service_state;
    struct server_state *servers; /* service->server_count of them */
    /* This worker's share of what it counts there (connections of servers, waiting of the service), so that it can be
     * taken back after a crash. Zeroed before the worker's first use. */
    struct service_state *own_service;
    struct server_state *own;
    /* For each worker, server_count numbers: the ticket of the first in its queue for a place at that server, 0: none.
     * Shared by all, zeroed before the first use. */
    _Atomic uint64_t *claims;
    unsigned worker, worker_count;
    int freed_fd; /* eventfd of the service, non-blocking, shared by all workers, never read: written when what waiters
                     wait for may be there (a place became free somewhere, a server went up or down) */
    struct sluice_loop *loop;
};

/* Returns 0, -ENOMEM, or what eventfd(2) and sluice_loop_watch say. What options points to must outlive the balancer.
 */
int balancer_new(const struct balancer_options *options, struct balancer **ret_balancer);

/* Nobody may wait any more. Not from within ready. */
void balancer_free(struct balancer *balancer);

/* For the supervisor: the worker of these options has ended without giving back its places (loop is not used). What it
 * had taken and claimed is free again, those who wait elsewhere are woken, and its share is zero for its successor. */
void balancer_take_back(const struct balancer_options *options);

/* What is asked for. Of a connection, kept through its attempts. */
struct choice {
    const struct sockaddr *client; /* NULL: unknown */
    const char *sni;               /* without a final dot; NULL or "": none */
    const char *alpn;              /* the client's list as in the ClientHello: length byte, name, ...; NULL: none */
    size_t alpn_length;
    uint64_t tried[PROXY_SERVERS_MAX / 64]; /* servers that were tried and failed */
};

/* Take a place at a server for this choice. Returns its index; -EAGAIN: those that are up have no place free, or others
 * wait for it (balancer_wait); -EHOSTUNREACH: none is up that was not tried; -ENOENT: no server takes this name. */
int balancer_take(struct balancer *balancer, const struct choice *choice);

/* The place is free again. Calls nobody back before it returns. */
void balancer_give_back(struct balancer *balancer, unsigned server);

/* A connection that waits for a place. Zeroed before its first use; the members after context are the balancer's. One
 * that waits a second time (its server was tried and failed) has kept its turn. */
struct waiter {
    /* From the loop, when it no longer waits. server >= 0: it has a place there, as from balancer_take. -EHOSTUNREACH:
     * none is up any more. May do anything but free the balancer. */
    void (*ready)(void *context, int server);
    void *context;
    struct list link;
    struct queue *queue;
    uint64_t ticket, hash;
};

/* Wait, first come, first served among all workers' waiters for the same server, after balancer_take gave -EAGAIN.
 * choice is not needed after the call. Returns 0; -EUSERS when max_queue wait already; -ENOMEM. */
int balancer_wait(struct balancer *balancer, struct waiter *waiter, const struct choice *choice);

/* No harm when it does not wait. */
void balancer_stop_waiting(struct balancer *balancer, struct waiter *waiter);

#endif
