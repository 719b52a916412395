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
    _Atomic uint32_t down;        /* by health checks */
    _Atomic uint32_t connections; /* of all workers, being made ones included */
    /* for health.c and the metrics: */
    _Atomic uint64_t checks, checks_failed, changes; /* of up and down */
    _Atomic uint64_t total, failures, refused;       /* connections made, failed to connect, turned away (limits) */
};

/* Of one service, shared likewise. */
struct service_state {
    _Atomic uint32_t connections; /* clients, waiting ones included */
    _Atomic uint32_t waiting;     /* in queues, of all workers */
};

struct balancer;

struct balancer_options {
    const struct proxy_service *service;
    struct service_state *service_state;
    struct server_state *servers; /* service->server_count of them */
    struct server_state *own;     /* this worker's share of connections, so that it can be taken back after a crash */
    int freed_fd;                 /* eventfd of the service, shared by all workers: a place became free somewhere */
    struct sluice_loop *loop;
};
int balancer_new(const struct balancer_options *options, struct balancer **ret_balancer);
void balancer_free(struct balancer *balancer);

/* What is asked for. Of a connection, kept through its attempts. */
struct choice {
    const struct sockaddr *client;
    const char *sni;  /* lower case; NULL: none */
    const char *alpn; /* the client's list as in the ClientHello: length byte, name, ...; NULL: none */
    size_t alpn_length;
    uint64_t tried[PROXY_SERVERS_MAX / 64]; /* servers that were tried and failed */
};

/* Take a place at a server for this choice. Returns its index; -EAGAIN: those that are up have no place free (queue);
 * -EHOSTUNREACH: none is up that was not tried; -ENOENT: no server takes this name. */
int balancer_take(struct balancer *balancer, const struct choice *choice);

/* The place is free again. */
void balancer_give_back(struct balancer *balancer, unsigned server);

/* A connection that waits for a place: FIFO within a worker. ready is called from the loop when it should try
 * balancer_take again (and queue again, at the front, if that gives -EAGAIN). */
struct waiter {
    struct list link;
    void (*ready)(void *context);
    void *context;
};
/* Returns 0, or -EUSERS when max_queue waits already. */
int balancer_wait(struct balancer *balancer, struct waiter *waiter, bool first);
/* No harm when it does not wait. */
void balancer_stop_waiting(struct balancer *balancer, struct waiter *waiter);

#endif
