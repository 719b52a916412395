/* SPDX-License-Identifier: MIT
 *
 * sluice serve: the supervisor binds the addresses, opens the logs and reads the certificates; workers serve.
 */
#include "base/cleanup.h"
#include "base/text.h"
#include "commands.h"
#include "http/totals.h"
#include "serve/worker.h"
#include "service/crossovers.h"
#include "service/log.h"
#include "service/loop.h"
#include "service/manager.h"

#include <limits.h>
#include <stdio.h>

#define GENERATIONS_MAX 8 /* at a time, so many workers: more reloads wait for old workers to drain */

/* Workers that were forked before do not count. Once made they stay: two generations count together. */
static int make_tables(struct serve *serve, const struct serve_generation *generation, struct failure *failure)
{
    if (!serve_generation_counts_addresses(generation) || serve->clients.count > 0)
        return 0;
    int r = clients_create(tally_slots(&serve->tally), generation->connections_each, &serve->clients);
    return r < 0 ? failure_set(failure, r, "memory to count the connections of addresses: %s", text_errno_meaning(r))
                 : 0;
}

static void on_ready(void *context)
{
    const struct serve *serve = context;
    const struct serve_generation *generation = serve->current;
    char about[PATH_MAX + 2 * ADDRESS_TEXT_MAX + 64], url[ADDRESS_TEXT_MAX + 16];
    const struct serve_listener *admin = &generation->listeners[SERVE_LISTENER_ADMIN];
    serve_generation_describe(generation, about, sizeof about);
    printf("sluice: serving %s (%u worker%s)\n", about, generation->workers, generation->workers == 1 ? "" : "s");
    if (admin->fd >= 0) {
        address_format_url("http", &admin->address, url, sizeof url);
        printf("sluice: live page, status and metrics at %s\n", url);
    }
    fflush(stdout);
}

/* What holds for all generations: the current one says so, also when it is the former one again. */
static void put_in_force(struct serve *serve)
{
    unsigned lifetime = serve_tls_ticket_lifetime(&serve->current->config.options.tls);
    if (serve->tickets != NULL && lifetime > 0)
        tls_tickets_change(serve->tickets, lifetime);
    serve->supervisor.identity = &serve->current->identity;
    serve->supervisor.drain_ms = serve->current->config.options.drain_timeout;
    serve->supervisor.retire_ms = serve->current->config.options.retire_timeout;
}

static int on_reload(void *context, unsigned *workers)
{
    struct serve *serve = context;
    struct serve_config config;
    struct serve_generation *next = NULL;
    struct failure failure = {0};
    int r = serve_config_again(serve->argc, serve->argv, &config, &failure);
    if (r == 0)
        r = serve_generation_prepare(&config, serve->current, &serve->tickets, &next, &failure);
    if (r == 0)
        r = serve_generation_open(next, serve->current, &failure);
    if (r == 0)
        r = make_tables(serve, next, &failure);
    if (r < 0) {
        serve_generation_free(next);
        log_say(serve->error_log, SERVE_PROGRAM ": not reloaded, all goes on as before: %s",
                text_behind(failure.text, SERVE_PROGRAM ": "));
        rotated_log_reopen(&serve->current->access_log, serve->error_log, SERVE_PROGRAM);
        return r;
    }
    *workers = next->workers;
    serve->fallback = serve->current;
    serve->current = next;
    put_in_force(serve);
    return 0;
}

static void on_reloaded(void *context, bool done)
{
    struct serve *serve = context;
    struct serve_generation *next = serve->current, *before = serve->fallback;
    serve->fallback = NULL;
    if (!done) {
        serve->current = before;
        put_in_force(serve);
        rotated_log_reopen(&serve->current->access_log, serve->error_log, SERVE_PROGRAM);
    } else {
        serve_generation_take_over(next, before);
    }
    serve_generation_end_listening(done ? before : next, next);
    serve_generation_free(done ? before : next);
    if (done)
        on_ready(serve);
}

static int on_replacement(void *context, unsigned which, unsigned *ret_number)
{
    const struct serve *serve = context;
    return which == 0 ? rotated_log_replacement(&serve->current->access_log, ret_number) : -1;
}

static void on_stopping(void *context)
{
    const struct serve *serve = context;
    serve_generation_stop_serving(serve->current);
    if (serve->fallback != NULL)
        serve_generation_stop_serving(serve->fallback);
}

static void on_worker_ended(void *context, unsigned slot, bool crashed)
{
    struct serve *serve = context;
    struct http_totals *totals = tally_counters(&serve->tally, slot);
    totals->open = 0; /* the kernel has closed them */
    if (serve->clients.count > 0)
        clients_forget(&serve->clients, slot);
    tally_end(&serve->tally, slot, crashed);
}

static void on_report(void *context)
{
    struct serve *serve = context;
    struct http_totals sum;
    struct tally_state state;
    tally_sum(&serve->tally, &sum, &state);
    char receipt[512];
    log_say(serve->error_log,
            SERVE_PROGRAM
            ": totals: %llu connections (%llu open), %llu requests, responses: %llu 2xx, %llu 3xx, "
            "%llu 4xx, %llu 5xx, %llu unsent; %llu cut short, %llu timeouts, %llu accept failures, %llu over "
            "the limit of their address, %llu without a PROXY header",
            (unsigned long long)sum.connections, (unsigned long long)sum.open, (unsigned long long)sum.requests,
            (unsigned long long)sum.responses[2], (unsigned long long)sum.responses[3],
            (unsigned long long)sum.responses[4], (unsigned long long)sum.responses[5],
            (unsigned long long)sum.responses[0], (unsigned long long)sum.truncated, (unsigned long long)sum.timeouts,
            (unsigned long long)sum.accept_failures, (unsigned long long)sum.over_limit,
            (unsigned long long)sum.unintroduced);
    if (serve->current->tls != NULL)
        log_say(serve->error_log, SERVE_PROGRAM ": TLS: %llu handshakes, %llu of them resumed; %llu failed",
                (unsigned long long)sum.tls_handshakes, (unsigned long long)sum.tls_resumed,
                (unsigned long long)sum.tls_failures);
    sluice_receipt_format(&sum.receipt, receipt, sizeof receipt);
    log_say(serve->error_log, SERVE_PROGRAM ": receipt: %s", receipt);
}

/* Of the supervisor's own. */
static void on_say(void *context, const char *line)
{
    struct serve *serve = context;
    log_say(serve->error_log, SERVE_PROGRAM ": %s", line);
}

static void on_say_whole(void *context, const char *line)
{
    struct serve *serve = context;
    log_say(serve->error_log, "%s", line);
}

/* ---- Starting ---------------------------------------------------------------------------------------------------- */

static int run(struct serve *serve)
{
    struct failure failure = {0};
    const struct serve_options *options = &serve->current->config.options;
    const bool verbose = options->verbose;
    int r = manager_take_sockets(&failure);
    if (r >= 0)
        r = serve_generation_open(serve->current, NULL, &failure);
    if (r == 0)
        r = log_open_fd(STDERR_FILENO, 0, &serve->error_log, &failure);
    if (r == 0) {
        r = tally_create(&serve->tally, GENERATIONS_MAX * serve->current->workers, sizeof(struct http_totals),
                         http_totals_add);
        if (r < 0)
            failure_set(&failure, r, "memory for the workers' counters: %s", text_errno_meaning(r));
    }
    if (r == 0)
        r = make_tables(serve, serve->current, &failure);
    if (r < 0) {
        fprintf(stderr, SERVE_PROGRAM ": %s\n", failure.text);
        return EXIT_CODE_FAILED;
    }
    if (verbose)
        loop_say(SERVE_PROGRAM, &serve->current->loop);

    manager_close_rest(SERVE_PROGRAM);
    serve->supervisor = (struct supervisor_options){
        .name = SERVE_PROGRAM,
        .workers = serve->current->workers,
        .slots = tally_slots(&serve->tally),
        .context = serve,
        .worker_main = serve_worker_main,
        .ready = on_ready,
        .reload = on_reload,
        .reloaded = on_reloaded,
        .replacement = on_replacement,
        .stopping = on_stopping,
        .report = on_report,
        .worker_ended = on_worker_ended,
        .say = on_say,
    };
    put_in_force(serve);
    /* The supervisor is not confined: the workers learn into memory that they share with it. */
    crossovers_begin(SERVE_PROGRAM, true, verbose ? on_say_whole : NULL, serve);
    int code = supervisor_run(&serve->supervisor);
    crossovers_end(SERVE_PROGRAM, verbose ? on_say_whole : NULL, serve);
    if (serve->current->config.options.receipts)
        on_report(serve);
    return code;
}

/* Returns -1 to go on, or the exit code: help, version, wrong usage, --check-config, all printed. */
static int generation_from_arguments(int argc, char **argv, struct tls_tickets **tickets,
                                     struct serve_generation **ret_generation)
{
    struct serve_config config;
    struct failure failure;
    int code = serve_config_from_arguments(argc, argv, &config);
    if (code >= 0)
        return code;
    const char *path = config.path;
    bool only_checked = config.options.check_config;
    if (serve_generation_prepare(&config, NULL, tickets, ret_generation, &failure) < 0) {
        fprintf(stderr, "%s\n", failure.text);
        return EXIT_CODE_FAILED;
    }
    if (!only_checked)
        return -1;
    unsigned sites = (*ret_generation)->config.sites.count;
    printf("configuration%s%s is fine: %u site%s\n", path != NULL ? " " : "", path != NULL ? path : "", sites,
           sites == 1 ? "" : "s");
    serve_generation_free(*ret_generation);
    return fflush(stdout) == 0 ? EXIT_CODE_DONE : EXIT_CODE_FAILED;
}

int serve_main(int argc, char **argv)
{
    struct serve serve = {.argc = argc, .argv = argv};
    int code = generation_from_arguments(argc, argv, &serve.tickets, &serve.current);
    if (code < 0) {
        code = run(&serve);
        log_close(serve.error_log);
        tally_destroy(&serve.tally);
        shared_destroy(&serve.clients);
        serve_generation_free(serve.current);
    }
    tls_tickets_free(serve.tickets);
    return code;
}
