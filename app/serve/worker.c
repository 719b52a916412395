/* SPDX-License-Identifier: MIT */
#include "serve/worker.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "http/server.h"
#include "service/admin.h"
#include "service/confine.h"
#include "service/log.h"
#include "service/status.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

struct serving {
    struct serve *serve;
    struct worker *worker;
    struct sluice_loop *loop;
    struct http_server *server;
    struct admin *admin; /* or NULL */
    bool server_drained, admin_drained;
    struct sluice_timer flush_timer;
    bool flush_due;        /* the timer runs */
    uint64_t flushed_tick; /* of the loop's clock */
};

/* Lines that wait go to the file when they are so many bytes, */
#define FLUSH_FROM 16384
/* or when the clock has ticked since others did: under load turns follow each other within microseconds, and a write
 * for each is a system call for few lines. When nothing more happens: after this many ms. */
#define FLUSH_AFTER 1

static void end(struct serving *serving, bool gently)
{
    if (serving->admin != NULL)
        admin_drain(serving->admin);
    if (gently)
        http_server_retire(serving->server);
    else
        http_server_drain(serving->server);
}

static void on_control(void *context)
{
    struct serving *serving = context;
    enum worker_order order;
    unsigned number = 0;
    int fd = -1;
    while ((order = worker_hear(serving->worker, &fd, &number)) != WORKER_NO_ORDER) {
        if (order == WORKER_REPLACE)
            rotated_log_take(&serving->serve->current->access_log, fd, number);
        else
            end(serving, order == WORKER_RETIRE);
    }
}

static void check_drained(struct serving *serving)
{
    if (serving->server_drained && (serving->admin == NULL || serving->admin_drained))
        sluice_loop_stop(serving->loop);
}

static void on_drained(void *context)
{
    struct serving *serving = context;
    serving->server_drained = true;
    check_drained(serving);
}

static void on_admin_drained(void *context)
{
    struct serving *serving = context;
    serving->admin_drained = true;
    check_drained(serving);
}

static void flush_logs(struct serve *serve)
{
    if (serve->current->access_log.log != NULL)
        log_flush(serve->current->access_log.log);
    log_flush(serve->error_log);
}

static void on_flush_due(void *context)
{
    struct serving *serving = context;
    serving->flush_due = false;
    flush_logs(serving->serve);
}

static void flush_logs_in_time(struct serving *serving)
{
    const struct log *log = serving->serve->current->access_log.log;
    uint64_t now = sluice_loop_now(serving->loop);
    size_t waiting = log != NULL ? log_waiting(log) : 0;
    if (waiting == 0 || waiting >= FLUSH_FROM || now != serving->flushed_tick) {
        flush_logs(serving->serve);
        if (waiting > 0)
            serving->flushed_tick = now;
    } else if (!serving->flush_due) {
        sluice_timer_start(serving->loop, &serving->flush_timer, FLUSH_AFTER, on_flush_due, serving);
        serving->flush_due = true;
    }
}

static void on_turn(void *context)
{
    struct serving *serving = context;
    http_server_turn(serving->server);
    flush_logs_in_time(serving);
}

static int confine(struct serve *serve, const struct worker *worker)
{
    const struct http_sites *sites = &serve->current->config.sites;
    bool first = worker->index == 0 && worker->generation == 0, follow = false;
    CLEANUP_FREE int *directories = calloc(sites->count, sizeof *directories);
    if (directories == NULL)
        return -ENOMEM;
    for (unsigned i = 0; i < sites->count; i++) {
        directories[i] = sites->items[i].root;
        follow |= sites->items[i].symlinks == BENEATH_SYMLINKS_FOLLOW;
    }
    const struct confine_options options = {
        .groups = CONFINE_ACCEPT | CONFINE_THREADS | CONFINE_WATCH_FILES,
        .read_directories = directories,
        .read_directory_count = sites->count,
        .read_anywhere = follow ? "with symlinks follow, links lead anywhere" : NULL,
    };
    enum confine_saying saying = !first                                   ? CONFINE_SAY_NOTHING
                                 : serve->current->config.options.verbose ? CONFINE_SAY_ALL
                                                                          : CONFINE_SAY_LACKS;
    return confine_worker_saying(&options, SERVE_PROGRAM, saying, serve->error_log);
}

static int fail(struct serve *serve, const char *what, int code)
{
    log_say(serve->error_log, SERVE_PROGRAM ": worker: %s: %s (%s)", what, text_errno_meaning(code),
            text_errno_name(code));
    return EXIT_CODE_FAILED;
}

/* ---- What operators ask for -------------------------------------------------------------------------------------- */

static void write_metrics(void *context, FILE *out)
{
    const struct serving *serving = context;
    const struct serve *serve = serving->serve;
    struct http_totals sum;
    struct tally_state state;
    tally_sum(&serve->tally, &sum, &state);
    http_totals_write_metrics(out, &sum, &state);
}

static void write_totals(void *context, FILE *out, const struct tally_worker *worker)
{
    const struct serve *serve = context;
    struct http_totals sum;
    struct tally_state state;
    if (worker == NULL)
        tally_sum(&serve->tally, &sum, &state);
    http_totals_write_json(out, worker == NULL ? &sum : tally_counters(&serve->tally, worker->slot));
}

static void write_hosts(void *context, FILE *out, const char *separator)
{
    const struct serve *serve = context;
    serve_config_write_hosts(out, separator, &serve->current->config);
}

static void write_status(void *context, FILE *out)
{
    const struct serving *serving = context;
    struct serve *serve = serving->serve;
    char about[PATH_MAX + 2 * ADDRESS_TEXT_MAX + 64];
    const struct serve_generation *generation = serve->current;
    struct serve_options in_force = generation->config.options; /* with what was left to sluice */
    in_force.loop = sluice_loop_kind_of(serving->loop);
    in_force.workers = generation->workers;
    in_force.max_connections = (uint64_t)generation->workers * generation->connections_each;
    serve_generation_describe(generation, about, sizeof about);
    const struct status status = {
        .program = SERVE_PROGRAM,
        .about = about,
        .options = serve_option_table,
        .values = &in_force,
        .write_configuration = write_hosts,
        .reloads = serve->reloads,
        .tally = &serve->tally,
        .write_totals = write_totals,
        .context = serve,
    };
    status_write(out, &status);
}

static int start_admin(struct serving *serving)
{
    const struct admin_options options = {
        .loop = serving->loop,
        .listener = serving->serve->current->listeners[SERVE_LISTENER_ADMIN].fd,
        .write_metrics = write_metrics,
        .write_status = write_status,
        .any_host = serving->serve->current->config.options.admin_anywhere,
        .drained = on_admin_drained,
        .context = serving,
    };
    return options.listener < 0 ? 0 : admin_start(&options, &serving->admin);
}

/* ---- The worker's life ------------------------------------------------------------------------------------------- */

/* The supervisor, who looked before, may everything. */
static bool may_enter(struct serve *serve)
{
    const struct http_sites *sites = &serve->current->config.sites;
    for (unsigned i = 0; i < sites->count; i++) {
        if (faccessat(sites->items[i].root, ".", X_OK, AT_EACCESS) == 0)
            continue;
        log_say(serve->error_log, SERVE_PROGRAM ": user %s may not enter %s: %s (%s)",
                serve->current->config.options.user, sites->items[i].directory, text_errno_meaning(errno),
                text_errno_name(errno));
        return false;
    }
    return true;
}

int serve_worker_main(void *context, struct worker *worker)
{
    struct serve *serve = context;
    const struct serve_generation *generation = serve->current;
    const struct serve_options *given = &generation->config.options;
    const struct serve_listener *listeners = generation->listeners;
    struct serving serving = {.serve = serve, .worker = worker};
    struct sluice_watch *watch = NULL;

    serve->reloads = worker->reloads;
    serve_generation_free(serve->fallback); /* its descriptors would be kept for nothing */
    if (generation->identity.given && !may_enter(serve))
        return WORKER_EXIT_GIVE_UP;
    /* The loop first: seccomp does not let a worker make rings. */
    int r = sluice_loop_new(&generation->loop, &serving.loop);
    if (r < 0)
        return fail(serve, "making the loop", r);
    if (given->confine && confine(serve, worker) < 0)
        return WORKER_EXIT_GIVE_UP;
    const struct clients clients = {.tables = &serve->clients, .slot = worker->slot};
    struct http_server_options options = {
        .loop = serving.loop,
        .sites = &generation->config.sites,
        .clients = serve_generation_counts_addresses(generation) ? &clients : NULL,
        .connections_per_address = (unsigned)given->connections_per_address,
        .rate_per_address = given->rate_per_address,
        .accept_proxy = given->accept_proxy,
        .trusted = generation->config.trusted,
        .trusted_count = given->trust_forwarded.count,
        .snapshot = given->snapshot,
        .walk = getenv("SLUICE_NO_OPENAT2") != NULL, /* for tests */
        .route = generation->config.route,
        .header_timeout = (unsigned)given->header_timeout,
        .idle_timeout = (unsigned)given->idle_timeout,
        .send_timeout = (unsigned)given->send_timeout,
        .max_connections = generation->connections_each,
        .open_files = generation->open_files_each,
        .https_port = given->tls.redirect ? address_port(&listeners[SERVE_LISTENER_TLS].address) : 0,
        .access_log = generation->access_log.log,
        .receipt_log = given->receipts ? serve->error_log : NULL,
        .error_log = serve->error_log,
        .totals = tally_begin(&serve->tally, worker),
        .timed = listeners[SERVE_LISTENER_ADMIN].fd >= 0,
        .drained = on_drained,
        .context = &serving,
    };
    r = http_server_new(&options, &serving.server);
    if (r == 0)
        r = sluice_loop_watch(serving.loop, worker->control_fd, on_control, &serving, &watch);
    if (r == 0)
        r = http_server_listen(serving.server, listeners[SERVE_LISTENER_MAIN].fd,
                               serve_tls_replaces_http(&given->tls) ? generation->tls : NULL);
    if (r == 0 && listeners[SERVE_LISTENER_TLS].fd >= 0)
        r = http_server_listen(serving.server, listeners[SERVE_LISTENER_TLS].fd, generation->tls);
    if (r == 0)
        r = start_admin(&serving);
    if (r == 0) {
        sluice_loop_each_turn(serving.loop, on_turn, &serving);
        worker_ready(worker);
        r = sluice_loop_run(serving.loop);
    }
    if (r < 0)
        return fail(serve, "serving", r); /* the process ends: nothing is taken apart */
    on_turn(&serving);
    sluice_timer_stop(serving.loop, &serving.flush_timer);
    admin_stop(serving.admin);
    http_server_free(serving.server);
    sluice_watch_free(watch);
    sluice_loop_free(serving.loop);
    flush_logs(serve);
    return EXIT_CODE_DONE;
}
