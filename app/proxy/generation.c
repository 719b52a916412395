/* SPDX-License-Identifier: MIT */
#include "proxy/generation.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "proxy/sockets.h"
#include "service/admin.h"
#include "service/manager.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define CACHE_LINE 64u

static unsigned last_serial;

/* Shared by all who add up: while a count moves from one place to another (odd), or has moved meanwhile, a sum counts
 * twice or not at all. */
struct generation_header {
    _Atomic uint32_t moving;
    _Atomic uint32_t inherited; /* by a later generation: not to be counted here */
};

/* ---- Shared memory --------------------------------------------------------------------------------------------- */

/* Give out the next piece of memory, or, without memory, only count. */
static void *take(char *memory, size_t *used, size_t size)
{
    size_t at = *used;
    *used = (at + size + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    return memory != NULL ? memory + at : NULL;
}

static size_t lay_out(struct generation *generation, char *memory)
{
    size_t used = 0;
    unsigned workers = generation->config.workers;
    generation->header = take(memory, &used, sizeof *generation->header);
    for (unsigned i = 0; i < generation->config.service_count; i++) {
        struct service_shared *shared = &generation->services[i];
        unsigned servers = generation->config.services[i].server_count;
        shared->state = take(memory, &used, sizeof *shared->state);
        shared->servers = take(memory, &used, servers * sizeof *shared->servers);
        shared->claims = take(memory, &used, (size_t)servers * workers * sizeof *shared->claims);
        shared->own_state = take(memory, &used, workers * sizeof *shared->own_state);
        shared->own_servers = take(memory, &used, (size_t)servers * workers * sizeof *shared->own_servers);
        shared->totals = take(memory, &used, workers * sizeof *shared->totals);
        shared->before = take(memory, &used, sizeof *shared->before);
    }
    return used;
}

static int share_memory(struct generation *generation, struct failure *failure)
{
    generation->size = lay_out(generation, NULL);
    generation->memory = mmap(NULL, generation->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (generation->memory == MAP_FAILED) {
        generation->memory = NULL;
        return failure_set(failure, -errno, "memory that the workers share: %s", text_errno_meaning(errno));
    }
    lay_out(generation, generation->memory);
    for (unsigned i = 0; i < generation->config.service_count; i++) {
        generation->services[i].freed_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (generation->services[i].freed_fd < 0)
            return failure_set(failure, -errno, "an eventfd for the workers: %s", text_errno_meaning(errno));
    }
    return 0;
}

/* ---- Servers --------------------------------------------------------------------------------------------------- */

static const struct server_state *find_server(const struct generation *generation, const char *service,
                                              const char *server)
{
    for (unsigned i = 0; i < generation->config.service_count; i++) {
        const struct proxy_service *at = &generation->config.services[i];
        for (unsigned j = 0; strcmp(at->name, service) == 0 && j < at->server_count; j++)
            if (strcmp(at->servers[j].name, server) == 0)
                return &generation->services[i].servers[j];
    }
    return NULL;
}

/* A server that was down is not tried by clients only because another line of the file has changed, and what is counted
 * of it goes on from where it was. */
static void inherit_servers(struct generation *generation, const struct generation *previous)
{
    for (unsigned i = 0; i < generation->config.service_count; i++) {
        const struct proxy_service *service = &generation->config.services[i];
        for (unsigned j = 0; j < service->server_count; j++) {
            struct server_state *state = &generation->services[i].servers[j];
            const struct server_state *before = find_server(previous, service->name, service->servers[j].name);
            if (before == NULL)
                continue;
            if (service->check != PROXY_CHECK_NONE) {
                state->down = before->down;
                state->known = before->known;
            }
            state->checks = before->checks;
            state->checks_failed = before->checks_failed;
            state->changes = before->changes;
            state->total = before->total;
            state->failures = before->failures;
        }
    }
}

/* ---- Listening ------------------------------------------------------------------------------------------------- */

/* Where the given listening socket of a generation comes from. */
static const struct proxy_listen *listen_at(const struct generation *generation, unsigned index,
                                            const struct proxy_service **ret_service)
{
    for (unsigned i = 0; i < generation->config.service_count; i++) {
        const struct proxy_service *service = &generation->config.services[i];
        if (index < service->listen_count) {
            *ret_service = service;
            return &service->listens[index];
        }
        index -= service->listen_count;
    }
    return NULL;
}

/* A socket of previous on the same address, or -1. */
static int find_listener(const struct generation *previous, const struct proxy_listen *wanted)
{
    for (unsigned i = 0; previous != NULL && i < previous->listener_count; i++) {
        const struct proxy_service *other = NULL;
        const struct proxy_listen *listen = listen_at(previous, i, &other);
        if (strcmp(listen->text, wanted->text) == 0 && listen->address.length == wanted->address.length &&
            memcmp(&listen->address.any, &wanted->address.any, wanted->address.length) == 0)
            return previous->listeners[i];
    }
    return -1;
}

/* What accepted sockets inherit. After a reload it may be something else, on the same socket: to bind another one is
 * not possible while this one listens. */
static void set_up_listener(const struct proxy_service *service, const struct proxy_listen *listen, int fd)
{
    char host[ADDRESS_CONGESTION_MAX];
    const char *congestion = service->congestion != NULL ? service->congestion : address_host_congestion(host);
    socket_set_up(service, listen->address.any.sa_family, congestion, fd);
}

static int start_listening(struct generation *generation, const struct generation *previous, struct failure *failure)
{
    for (unsigned i = 0; i < generation->listener_count; i++) {
        const struct proxy_service *service = NULL;
        const struct proxy_listen *wanted = listen_at(generation, i, &service);
        struct listen_options options = {.congestion = service->congestion};
        generation->listeners[i] = find_listener(previous, wanted);
        if (generation->listeners[i] >= 0)
            continue; /* it is set up when this generation has come into force: generation_stop_listening */
        int r = manager_listen(&wanted->address, &options, &generation->listeners[i], failure);
        if (r < 0)
            return r;
        set_up_listener(service, wanted, generation->listeners[i]);
    }
    return 0;
}

static const char *admin_wanted(const struct generation *generation, unsigned which)
{
    return which == GENERATION_METRICS ? generation->config.metrics : generation->config.admin;
}

static int listen_for_admin(struct generation *generation, const struct generation *previous, struct failure *failure)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < GENERATION_ADMIN; i++) {
        const char *wanted = admin_wanted(generation, i);
        const char *before = previous != NULL ? admin_wanted(previous, i) : NULL;
        if (wanted != NULL && before != NULL && strcmp(before, wanted) == 0)
            generation->admin[i] = previous->admin[i];
        else if (wanted != NULL)
            r = admin_listen(wanted, i == GENERATION_METRICS || generation->config.admin_anywhere,
                             &generation->admin[i], failure);
    }
    return r;
}

static bool uses(const struct generation *generation, int fd)
{
    for (unsigned i = 0; generation != NULL && i < generation->listener_count; i++)
        if (generation->listeners[i] == fd)
            return true;
    for (unsigned i = 0; generation != NULL && i < GENERATION_ADMIN; i++)
        if (generation->admin[i] == fd)
            return true;
    return false;
}

/* ---- Life ------------------------------------------------------------------------------------------------------ */

int generation_new(struct proxy_config *config, const struct generation *previous, struct generation **ret_generation,
                   struct failure *failure)
{
    struct generation *generation = calloc(1, sizeof *generation);
    if (generation == NULL) {
        proxy_config_free(config);
        return failure_set(failure, -ENOMEM, "no memory");
    }
    generation->config = *config;
    for (unsigned i = 0; i < GENERATION_ADMIN; i++)
        generation->admin[i] = -1;
    generation->serial = ++last_serial;
    generation->services = calloc(config->service_count, sizeof *generation->services);
    for (unsigned i = 0; i < config->service_count; i++)
        generation->listener_count += config->services[i].listen_count;
    generation->listeners = reallocarray(NULL, generation->listener_count, sizeof *generation->listeners);
    int r = 0;
    if (generation->services == NULL || generation->listeners == NULL)
        r = failure_set(failure, -ENOMEM, "no memory");
    for (unsigned i = 0; r == 0 && i < config->service_count; i++)
        generation->services[i].freed_fd = -1;
    for (unsigned i = 0; r == 0 && i < generation->listener_count; i++)
        generation->listeners[i] = -1;
    if (r == 0)
        r = identity_find(generation->config.user, generation->config.group, &generation->identity, NULL, failure);
    if (r == 0)
        r = share_memory(generation, failure);
    if (r == 0)
        r = start_listening(generation, previous, failure);
    if (r == 0)
        r = listen_for_admin(generation, previous, failure);
    if (r == 0)
        r = rotated_log_open(generation->config.log, LOG_COMBINED, previous != NULL ? &previous->log : NULL,
                             &generation->log, failure);
    if (r < 0) {
        generation_free(generation, previous);
        return r;
    }
    if (previous != NULL)
        inherit_servers(generation, previous);
    *ret_generation = generation;
    return 0;
}

/* Not only closed: workers that drain have it open, too, and those that were forked while it was. */
static void end_listener(int fd, const struct address *address)
{
    if (fd < 0)
        return;
    manager_shut_down(fd);
    close_fd(fd);
    if (address != NULL)
        address_remove_stale(address);
}

static void drop_listeners(struct generation *generation, const struct generation *next, bool for_all)
{
    const struct proxy_service *service = NULL;
    for (unsigned i = 0; generation->listeners != NULL && i < generation->listener_count; i++) {
        int fd = generation->listeners[i];
        generation->listeners[i] = -1;
        if (uses(next, fd))
            continue;
        if (for_all)
            end_listener(fd, &listen_at(generation, i, &service)->address);
        else
            close_fd(fd);
    }
    for (unsigned i = 0; i < GENERATION_ADMIN; i++) {
        int fd = generation->admin[i];
        generation->admin[i] = -1;
        if (uses(next, fd))
            continue;
        if (for_all)
            end_listener(fd, NULL);
        else
            close_fd(fd);
    }
}

void generation_stop_listening(struct generation *generation, const struct generation *next)
{
    const struct proxy_service *service = NULL;
    drop_listeners(generation, next, true);
    for (unsigned i = 0; next != NULL && i < next->listener_count; i++) {
        const struct proxy_listen *listen = listen_at(next, i, &service);
        set_up_listener(service, listen, next->listeners[i]);
    }
}

void generation_close_listeners(struct generation *generation, const struct generation *next)
{
    drop_listeners(generation, next, false);
}

void generation_free(struct generation *generation, const struct generation *next)
{
    if (generation == NULL)
        return;
    generation_stop_listening(generation, next);
    rotated_log_close(&generation->log);
    identity_free(&generation->identity);
    for (unsigned i = 0; generation->services != NULL && i < generation->config.service_count; i++)
        close_fd(generation->services[i].freed_fd);
    if (generation->memory != NULL)
        munmap(generation->memory, generation->size);
    free(generation->services);
    free(generation->listeners);
    proxy_config_free(&generation->config);
    free(generation);
}

void generation_balancer_options(const struct generation *generation, unsigned service, unsigned index,
                                 struct balancer_options *ret_options)
{
    const struct service_shared *shared = &generation->services[service];
    unsigned servers = generation->config.services[service].server_count;
    *ret_options = (struct balancer_options){
        .service = &generation->config.services[service],
        .service_state = shared->state,
        .servers = shared->servers,
        .own_service = &shared->own_state[index],
        .own = &shared->own_servers[(size_t)servers * index],
        .claims = shared->claims,
        .worker = index,
        .worker_count = generation->config.workers,
        .freed_fd = shared->freed_fd,
    };
}

/* ---- Counting -------------------------------------------------------------------------------------------------- */

int generation_find_service(const struct generation *generation, const char *name)
{
    for (unsigned i = 0; i < generation->config.service_count; i++)
        if (strcmp(generation->config.services[i].name, name) == 0)
            return (int)i;
    return -1;
}

static void add_up(const struct generation *generation, unsigned service, struct proxy_totals *sum)
{
    const struct service_shared *shared = &generation->services[service];
    proxy_totals_add(sum, shared->before);
    for (unsigned i = 0; i < generation->config.workers; i++)
        proxy_totals_add(sum, &shared->totals[i]);
}

void generation_sum(const struct generation *generation, unsigned service, struct proxy_totals *ret_sum)
{
    const char *name = generation->config.services[service].name;
    uint32_t before;
    do {
        while ((before = atomic_load(&generation->header->moving)) % 2 != 0)
            sched_yield();
        memset(ret_sum, 0, sizeof *ret_sum);
        add_up(generation, service, ret_sum);
        for (const struct generation *older = generation->older; older != NULL; older = older->older) {
            int index = generation_find_service(older, name);
            if (index >= 0 && atomic_load(&older->header->inherited) == 0)
                add_up(older, (unsigned)index, ret_sum);
        }
    } while (atomic_load(&generation->header->moving) != before);
}

void generation_worker_ended(struct generation *generation, unsigned index, bool crashed)
{
    atomic_fetch_add(&generation->header->moving, 1);
    for (unsigned i = 0; i < generation->config.service_count; i++) {
        struct balancer_options options;
        struct service_shared *shared = &generation->services[i];
        generation_balancer_options(generation, i, index, &options);
        uint32_t places = atomic_exchange_explicit(&options.own_service->connections, 0, memory_order_relaxed);
        atomic_fetch_sub_explicit(&shared->state->connections, places, memory_order_relaxed);
        balancer_take_back(&options);
        proxy_totals_fold(shared->before, &shared->totals[index], crashed ? PROXY_END_ERROR : PROXY_END_DRAINED);
    }
    atomic_fetch_add(&generation->header->moving, 1);
}

void generation_inherit(struct generation *generation, struct generation *gone)
{
    atomic_fetch_add(&generation->header->moving, 1);
    for (unsigned i = 0; i < gone->config.service_count; i++) {
        int index = generation_find_service(generation, gone->config.services[i].name);
        if (index >= 0)
            add_up(gone, i, generation->services[index].before);
    }
    atomic_store(&gone->header->inherited, 1);
    atomic_fetch_add(&generation->header->moving, 1);
}
