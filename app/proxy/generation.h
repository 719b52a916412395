/* SPDX-License-Identifier: MIT
 *
 * A configuration at work: its listening sockets, and the memory in which its workers agree. Made by the supervisor
 * before it forks them, once at the start and once for every reload; a generation's workers use its own only, until the
 * last of them has drained.
 */
#ifndef SLUICE_PROXY_GENERATION_H
#define SLUICE_PROXY_GENERATION_H

#include "proxy/balance.h"
#include "proxy/config.h"
#include "proxy/totals.h"
#include "service/identity.h"
#include "service/rotated_log.h"

struct service_shared {
    struct service_state *state;
    struct server_state *servers;     /* service->server_count of them */
    _Atomic uint64_t *claims;         /* service->server_count for each worker */
    struct service_state *own_state;  /* one for each worker: its share */
    struct server_state *own_servers; /* service->server_count for each worker */
    struct proxy_totals *totals;      /* one for each worker */
    struct proxy_totals *before;      /* of workers that are gone, those of earlier generations included */
    int freed_fd;
};

/* Where operators look. */
enum generation_admin { GENERATION_METRICS, GENERATION_STATUS, GENERATION_ADMIN };

struct generation {
    struct proxy_config config;
    struct generation_header *header; /* shared */
    struct service_shared *services;
    int *listeners; /* of all services one after the other; -1: closed */
    unsigned listener_count;
    struct identity identity;    /* of its workers */
    int admin[GENERATION_ADMIN]; /* listening sockets of enum generation_admin; -1: none */
    struct rotated_log log;      /* open as long as this generation is in force, and in its workers */
    unsigned serial;
    void *memory; /* what the shared parts lie in */
    size_t size;
    struct generation *older; /* that may still have workers, the newest first */
};

/* Takes config, also on failure. Sockets that previous (NULL: none) listens on, on the same addresses, go on to be
 * used; servers that it knows keep their health. Returns 0 or a negative errno. */
int generation_new(struct proxy_config *config, const struct generation *previous, struct generation **ret_generation,
                   struct failure *failure);

/* For the supervisor. End the listening sockets that next (NULL: none) does not use, whoever else has them open, and
 * remove the files of Unix sockets. Those that it uses get what its services say of them. */
void generation_stop_listening(struct generation *generation, const struct generation *next);

/* For workers: the same sockets are only closed, so that they are not kept for nothing. */
void generation_close_listeners(struct generation *generation, const struct generation *next);

/* For the supervisor. With the listening sockets, as above. */
void generation_free(struct generation *generation, const struct generation *next);

/* What worker index of this generation takes part in a service by. */
void generation_balancer_options(const struct generation *generation, unsigned service, unsigned index,
                                 struct balancer_options *ret_options);

/* The number of the service of this name, or -1. */
int generation_find_service(const struct generation *generation, const char *name);

/* What all workers, of this and of older generations, have counted so far for this service. Any process of them. */
void generation_sum(const struct generation *generation, unsigned service, struct proxy_totals *ret_sum);

/* For the supervisor. Worker index has ended: its places are free again, its connections closed. */
void generation_worker_ended(struct generation *generation, unsigned index, bool crashed);

/* For the supervisor. The last worker of an older generation has ended: the current one goes on counting from where it
 * was. generation_free is left to do. */
void generation_inherit(struct generation *generation, struct generation *gone);

#endif
