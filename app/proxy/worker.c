/* SPDX-License-Identifier: MIT */
#include "proxy/worker.h"
#include "proxy/mirror.h"
#include "proxy/session.h"
#include "service/admin.h"
#include "service/log.h"
#include "service/prometheus.h"
#include "service/status.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* How often those who wait for a place of the service look whether another worker's clients have left. */
#define HELD_LOOK_MS 125

static void on_accepted(void *context, int fd, const struct sockaddr *address, unsigned address_length)
{
    struct listener_at_work *listener = context;
    struct service_at_work *service = listener->service;
    struct proxy_worker *worker = service->worker;
    if (fd == -EINVAL) /* no longer a listening socket: another worker has begun to drain */
        return;
    if (fd < 0) {
        service->totals->accept_failures++;
        return;
    }
    session_open(service, fd, address, address_length);
    accepting_count(&worker->accepting, worker->count);
}

/* ---- The service's limit --------------------------------------------------------------------------------------- */

static bool let_in(struct service_at_work *service)
{
    while (!list_empty(&service->held))
        if (!session_let_in(session_held(service->held.next)))
            return false;
    return true;
}

static void look_at_held(void *context)
{
    struct proxy_worker *worker = context;
    bool all = true;
    for (unsigned i = 0; i < worker->options->generation->config.service_count; i++)
        all = let_in(&worker->services[i]) && all;
    if (!all)
        proxy_worker_holds(worker);
}

void proxy_worker_holds(struct proxy_worker *worker)
{
    sluice_timer_start(worker->loop, &worker->held_timer, HELD_LOOK_MS, look_at_held, worker);
}

/* ---- The end of connections ------------------------------------------------------------------------------------ */

static void check_drained(struct proxy_worker *worker)
{
    if (!worker->draining || worker->accepting.listening || worker->count > 0 || worker->admin_open > 0 ||
        worker->drained)
        return;
    worker->drained = true;
    if (worker->options->drained != NULL)
        worker->options->drained(worker->options->context);
}

void proxy_worker_lost(struct proxy_worker *worker, struct service_at_work *service)
{
    if (!list_empty(&service->held)) /* not from here: the one that is gone may be being handled */
        sluice_timer_start(worker->loop, &worker->held_timer, 1, look_at_held, worker);
    accepting_count(&worker->accepting, worker->count);
    check_drained(worker);
}

void proxy_worker_drain(struct proxy_worker *worker)
{
    if (worker->draining)
        return;
    worker->draining = true; /* on_accepted may still be called */
    accepting_stop(&worker->accepting);
    for (unsigned i = 0; i < worker->options->generation->config.service_count; i++) {
        health_stop(worker->services[i].health);
        worker->services[i].health = NULL;
    }
    for (unsigned i = 0; i < GENERATION_ADMIN; i++)
        if (worker->admin[i] != NULL)
            admin_drain(worker->admin[i]);
    check_drained(worker);
}

/* ---- Life ------------------------------------------------------------------------------------------------------ */

static void say(void *context, const char *line)
{
    struct proxy_worker *worker = context;
    log_say(worker->options->error_log, "sluice proxy: %s", line);
}

static int start_service(struct proxy_worker *worker, unsigned index)
{
    const struct generation *generation = worker->options->generation;
    struct service_at_work *service = &worker->services[index];
    service->worker = worker;
    service->service = &generation->config.services[index];
    service->shared = &generation->services[index];
    service->totals = &service->shared->totals[worker->options->index];
    list_init(&service->held);
    relay_prepare(service);
    generation_balancer_options(generation, index, worker->options->index, &service->balancing);
    service->balancing.loop = worker->loop;
    return balancer_new(&service->balancing, &service->balancer);
}

int proxy_worker_new(const struct proxy_worker_options *options, struct proxy_worker **ret_worker)
{
    const struct generation *generation = options->generation;
    struct proxy_worker *worker = calloc(1, sizeof *worker);
    if (worker == NULL)
        return -ENOMEM;
    worker->options = options;
    worker->loop = options->loop;
    list_init(&worker->sessions);
    list_init(&worker->mirrors);
    worker->services = calloc(generation->config.service_count, sizeof *worker->services);
    worker->listeners = calloc(generation->listener_count, sizeof *worker->listeners);
    accepting_init(&worker->accepting, worker->options->max_connections);
    int r = worker->services == NULL || worker->listeners == NULL ? -ENOMEM : 0;
    for (unsigned i = 0; r == 0 && i < generation->config.service_count; i++)
        r = start_service(worker, i);
    if (r < 0) {
        proxy_worker_free(worker);
        return r;
    }
    *ret_worker = worker;
    return 0;
}

static int start_checks(struct service_at_work *service)
{
    struct proxy_worker *worker = service->worker;
    struct health_options options = {
        .service = service->service,
        .servers = service->shared->servers,
        .freed_fd = service->shared->freed_fd,
        .loop = worker->loop,
        .say = say,
        .context = worker,
    };
    return health_start(&options, &service->health);
}

/* ---- For operators --------------------------------------------------------------------------------------------- */

/* What is told of every service. */
struct all_totals {
    unsigned count;
    struct proxy_totals *totals;
    struct proxy_totals_of *of;
};

static bool prepare(const struct generation *generation, struct all_totals *ret)
{
    unsigned count = generation->config.service_count;
    *ret = (struct all_totals){count, calloc(count, sizeof *ret->totals), calloc(count, sizeof *ret->of)};
    for (unsigned i = 0; ret->totals != NULL && ret->of != NULL && i < count; i++)
        ret->of[i] = (struct proxy_totals_of){
            .service = &generation->config.services[i],
            .totals = &ret->totals[i],
            .state = generation->services[i].state,
            .servers = generation->services[i].servers,
        };
    return ret->totals != NULL && ret->of != NULL;
}

static void forget(struct all_totals *all)
{
    free(all->of);
    free(all->totals);
}

static void write_metrics(void *context, FILE *out)
{
    const struct proxy_worker *worker = context;
    const struct generation *generation = worker->options->generation;
    struct prometheus prometheus = {.out = out, .prefix = "sluice_proxy_"};
    struct tally_state state;
    struct all_totals all;
    if (prepare(generation, &all)) {
        for (unsigned i = 0; i < all.count; i++)
            generation_sum(generation, i, &all.totals[i]);
        proxy_totals_write(out, all.of, all.count);
    }
    forget(&all);
    tally_sum(worker->options->tally, NULL, &state);
    prometheus_process(&prometheus, &state);
}

/* One worker's, of whichever generation it is: by the names of the services that there are now. */
static void write_totals(void *context, FILE *out, const struct tally_worker *one)
{
    const struct proxy_worker *worker = context;
    const struct generation *generation = worker->options->generation, *its = generation;
    const struct proxy_slot *slot = one != NULL ? tally_counters(worker->options->tally, one->slot) : NULL;
    struct all_totals all;
    while (slot != NULL && its != NULL && its->serial != slot->serial)
        its = its->older;
    if (prepare(generation, &all))
        for (unsigned i = 0; i < all.count; i++) {
            int index =
                slot == NULL || its == NULL ? -1 : generation_find_service(its, generation->config.services[i].name);
            if (slot == NULL)
                generation_sum(generation, i, &all.totals[i]);
            else if (index >= 0)
                all.totals[i] = its->services[index].totals[slot->index];
        }
    proxy_totals_write_json(out, all.of, all.of != NULL && all.totals != NULL ? all.count : 0);
    forget(&all);
}

static void write_configuration(void *context, FILE *out, const char *separator)
{
    const struct proxy_worker *worker = context;
    struct proxy_config in_force = worker->options->generation->config; /* with what was left to sluice */
    in_force.loop = sluice_loop_kind_of(worker->loop);
    proxy_config_write_json(out, separator, &in_force);
}

static void write_status(void *context, FILE *out)
{
    const struct proxy_worker *worker = context;
    const struct proxy_config *config = &worker->options->generation->config;
    char about[64];
    snprintf(about, sizeof about, "%u service%s", config->service_count, config->service_count == 1 ? "" : "s");
    const struct status status = {
        .program = "sluice proxy",
        .about = about,
        .write_configuration = write_configuration,
        .reloads = worker->options->reloads,
        .tally = worker->options->tally,
        .write_totals = write_totals,
        .context = context,
    };
    status_write(out, &status);
}

static void on_admin_drained(void *context)
{
    struct proxy_worker *worker = context;
    worker->admin_open--;
    check_drained(worker);
}

static int start_admin(struct proxy_worker *worker)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < GENERATION_ADMIN; i++) {
        const struct admin_options options = {
            .loop = worker->loop,
            .listener = worker->options->generation->admin[i],
            .write_metrics = write_metrics,
            .write_status = i == GENERATION_STATUS ? write_status : NULL,
            .any_host = i == GENERATION_METRICS || worker->options->generation->config.admin_anywhere,
            .drained = on_admin_drained,
            .context = worker,
        };
        if (options.listener < 0)
            continue;
        r = admin_start(&options, &worker->admin[i]);
        worker->admin_open += r == 0;
    }
    return r;
}

/* ---- Start and end --------------------------------------------------------------------------------------------- */

int proxy_worker_start(struct proxy_worker *worker)
{
    const struct generation *generation = worker->options->generation;
    int r = 0;
    for (unsigned i = 0; r == 0 && i < generation->config.service_count; i++) {
        struct service_at_work *service = &worker->services[i];
        if (worker->options->index == 0 && service->service->check != PROXY_CHECK_NONE)
            r = start_checks(service);
        for (unsigned j = 0; r == 0 && j < service->service->listen_count; j++) {
            struct listener_at_work *listener = &worker->listeners[worker->listener_count];
            listener->service = service;
            r = accepting_add(&worker->accepting, worker->loop, generation->listeners[worker->listener_count],
                              on_accepted, listener, &listener->socket);
            worker->listener_count += r == 0;
        }
    }
    if (r == 0)
        r = start_admin(worker);
    return r;
}

void proxy_worker_free(struct proxy_worker *worker)
{
    if (worker == NULL)
        return;
    accepting_stop(&worker->accepting);
    worker->draining = false; /* no drained from here */
    LIST_FOR_EACH(link, &worker->sessions)
    {
        session_close(LIST_OBJECT(link, struct session, all), PROXY_END_ERROR, true);
    }
    LIST_FOR_EACH(link, &worker->mirrors)
    {
        mirror_free(mirror_of(link));
    }
    sluice_timer_stop(worker->loop, &worker->held_timer);
    for (unsigned i = 0; i < GENERATION_ADMIN; i++)
        admin_stop(worker->admin[i]);
    for (unsigned i = 0; worker->services != NULL && i < worker->options->generation->config.service_count; i++) {
        health_stop(worker->services[i].health);
        balancer_free(worker->services[i].balancer);
    }
    free(worker->services);
    free(worker->listeners);
    free(worker);
}
