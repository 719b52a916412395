/* SPDX-License-Identifier: MIT
 *
 * sluice proxy: the supervisor reads the configuration, binds addresses and opens logs; each worker confines itself and
 * relays connections on a loop of its own. A reload makes a new generation of both (generation.h).
 */
#include "base/cleanup.h"
#include "base/text.h"
#include "commands.h"
#include "proxy/config.h"
#include "proxy/generation.h"
#include "proxy/worker.h"
#include "service/confine.h"
#include "service/descriptors.h"
#include "service/log.h"
#include "service/loop.h"
#include "service/manager.h"
#include "service/options.h"
#include "service/rotated_log.h"
#include "service/supervisor.h"
#include "service/tally.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define GENERATIONS_MAX 8 /* at a time, so many workers: more reloads wait for old workers to drain */

struct proxy {
    int argc;
    char **argv;
    struct generation *current;  /* its older ones after it */
    struct generation *fallback; /* during a reload: what was current before */
    struct tally tally;          /* of struct proxy_slot */
    struct supervisor_options supervisor;
    struct sluice_loop_options loop;
    struct log *error_log; /* standard error is error_log's and the receipts' */
};

/* ---- Worker ---------------------------------------------------------------------------------------------------- */

struct proxying {
    struct proxy *proxy;
    struct worker *control;
    struct sluice_loop *loop;
    struct proxy_worker *worker;
};

static void on_control(void *context)
{
    struct proxying *proxying = context;
    enum worker_order order;
    unsigned number = 0;
    int fd = -1;
    while ((order = worker_hear(proxying->control, &fd, &number)) != WORKER_NO_ORDER) {
        if (order == WORKER_REPLACE)
            rotated_log_take(&proxying->proxy->current->log, fd, number);
        else
            proxy_worker_drain(proxying->worker);
    }
}

static void on_drained(void *context)
{
    struct proxying *proxying = context;
    sluice_loop_stop(proxying->loop);
}

static void on_turn(void *context)
{
    struct proxy *proxy = context;
    if (proxy->current->log.log != NULL)
        log_flush(proxy->current->log.log);
    log_flush(proxy->error_log);
}

static int confine(struct proxy *proxy, unsigned index)
{
    const struct proxy_config *config = &proxy->current->config;
    struct confine_options options = {.groups = CONFINE_ACCEPT | CONFINE_CONNECT | CONFINE_THREADS};
    /* Accepted sockets inherit what their listener was given; those that a worker makes have to be told. */
    for (unsigned i = 0; i < config->service_count; i++)
        if (config->services[i].congestion != NULL)
            options.keep_net_admin = true;
    enum confine_saying saying = index != 0        ? CONFINE_SAY_NOTHING
                                 : config->verbose ? CONFINE_SAY_ALL
                                                   : CONFINE_SAY_LACKS;
    return confine_worker_saying(&options, "sluice proxy", saying, proxy->error_log);
}

static int fail(struct proxy *proxy, const char *what, int code)
{
    log_say(proxy->error_log, "sluice proxy: worker: %s: %s (%s)", what, text_errno_meaning(code),
            text_errno_name(code));
    return EXIT_CODE_FAILED;
}

/* Two sockets for each connection; pipes are shared by those that stream just now, and without one, bytes are copied.
 */
static unsigned connections_each(const struct proxy_config *config)
{
    uint64_t descriptors = descriptors_raise_limit();
    uint64_t others = 64 + (descriptors < 32 * 512 ? descriptors / 32 : 512);
    uint64_t most = descriptors > others + 2 ? (descriptors - others) / 2 : 1;
    uint64_t each = (config->max_connections + config->workers - 1) / config->workers;
    return (unsigned)(config->max_connections > 0 && each < most ? each : most);
}

static int worker_main(void *context, struct worker *worker)
{
    struct proxy *proxy = context;
    const struct proxy_config *config = &proxy->current->config;
    struct proxying proxying = {.proxy = proxy, .control = worker};
    struct sluice_watch *watch = NULL;

    struct proxy_slot *slot = tally_begin(&proxy->tally, worker);
    *slot = (struct proxy_slot){.taken = true, .serial = proxy->current->serial, .index = worker->index};
    for (struct generation *older = proxy->current->older; older != NULL; older = older->older) {
        generation_close_listeners(older, proxy->current);
        rotated_log_close(&older->log);
    }
    /* The loop first: seccomp does not let a worker make rings. */
    int r = sluice_loop_new(&proxy->loop, &proxying.loop);
    if (r < 0)
        return fail(proxy, "making the loop", r);
    if (config->confine && confine(proxy, worker->index) < 0)
        return WORKER_EXIT_GIVE_UP;
    struct proxy_worker_options options = {
        .loop = proxying.loop,
        .generation = proxy->current,
        .index = worker->index,
        .max_connections = connections_each(config),
        .tally = &proxy->tally,
        .reloads = worker->reloads,
        .log = proxy->current->log.log,
        .receipt_log = config->receipts ? proxy->error_log : NULL,
        .error_log = proxy->error_log,
        .drained = on_drained,
        .context = &proxying,
    };
    r = proxy_worker_new(&options, &proxying.worker);
    if (r == 0)
        r = sluice_loop_watch(proxying.loop, worker->control_fd, on_control, &proxying, &watch);
    if (r == 0)
        r = proxy_worker_start(proxying.worker);
    if (r == 0) {
        sluice_loop_each_turn(proxying.loop, on_turn, proxy);
        worker_ready(worker);
        r = sluice_loop_run(proxying.loop);
    }
    if (r < 0)
        return fail(proxy, "proxying", r); /* the process ends: nothing is taken apart */
    proxy_worker_free(proxying.worker);
    sluice_watch_free(watch);
    sluice_loop_free(proxying.loop);
    on_turn(proxy);
    return EXIT_CODE_DONE;
}

/* ---- Supervisor ------------------------------------------------------------------------------------------------ */

static void print_listeners(const struct proxy *proxy)
{
    const struct proxy_config *config = &proxy->current->config;
    unsigned listener = 0;
    for (unsigned i = 0; i < config->service_count; i++) {
        const struct proxy_service *service = &config->services[i];
        for (unsigned j = 0; j < service->listen_count; j++) {
            struct address address;
            char text[ADDRESS_TEXT_MAX];
            if (address_of_socket(proxy->current->listeners[listener++], &address) < 0)
                continue;
            address_format(&address.any, address.length, text, sizeof text);
            printf("sluice: proxying %s to %s%s (%u worker%s)\n", text, service->servers[0].name,
                   service->server_count > 1 ? ", ..." : "", config->workers, config->workers == 1 ? "" : "s");
        }
    }
    static const char *const lines[GENERATION_ADMIN][2] = {
        [GENERATION_METRICS] = {"metrics at", "metrics"},
        [GENERATION_STATUS] = {"live page, status and metrics at", ""},
    };
    for (unsigned i = 0; i < GENERATION_ADMIN; i++) {
        struct address address;
        char url[ADDRESS_TEXT_MAX + 16];
        if (proxy->current->admin[i] < 0 || address_of_socket(proxy->current->admin[i], &address) < 0)
            continue;
        address_format_url("http", &address, url, sizeof url);
        printf("sluice: %s %s%s\n", lines[i][0], url, lines[i][1]);
    }
    fflush(stdout);
}

static void on_ready(void *context)
{
    print_listeners(context);
}

static bool has_workers(const struct proxy *proxy, const struct generation *generation)
{
    for (unsigned i = 0; i < tally_slots(&proxy->tally); i++) {
        const struct proxy_slot *slot = tally_counters(&proxy->tally, i);
        if (slot->taken && slot->serial == generation->serial)
            return true;
    }
    return false;
}

static void free_older(struct proxy *proxy)
{
    struct generation **place = &proxy->current->older;
    while (*place != NULL) {
        struct generation *older = *place;
        if (has_workers(proxy, older) || older == proxy->fallback) {
            place = &older->older;
            continue;
        }
        *place = older->older;
        generation_inherit(proxy->current, older);
        generation_free(older, proxy->current);
    }
}

static void on_worker_ended(void *context, unsigned slot_number, bool crashed)
{
    struct proxy *proxy = context;
    struct proxy_slot slot = *(const struct proxy_slot *)tally_counters(&proxy->tally, slot_number);
    tally_end(&proxy->tally, slot_number, crashed);
    if (!slot.taken)
        return; /* it had not come far */
    for (struct generation *generation = proxy->current; generation != NULL; generation = generation->older)
        if (generation->serial == slot.serial)
            generation_worker_ended(generation, slot.index, crashed);
    if (proxy->fallback == NULL)
        free_older(proxy);
}

/* What the supervisor has to know of the configuration in force. */
static void tell_supervisor(struct proxy *proxy)
{
    proxy->supervisor.identity = &proxy->current->identity;
    proxy->supervisor.drain_ms = proxy->current->config.drain_timeout;
    proxy->supervisor.retire_ms = proxy->current->config.retire_timeout;
}

static int on_reload(void *context, unsigned *workers)
{
    struct proxy *proxy = context;
    struct proxy_config config;
    struct generation *next;
    struct failure failure = {0};
    int r = proxy_config_again(proxy->argc, proxy->argv, &config, &failure);
    if (r == 0)
        r = generation_new(&config, proxy->current, &next, &failure);
    if (r < 0) {
        log_say(proxy->error_log, "sluice proxy: not reloaded, all goes on as before: %s",
                text_behind(failure.text, "sluice proxy: "));
        rotated_log_reopen(&proxy->current->log, proxy->error_log, "sluice proxy");
        return r;
    }
    *workers = next->config.workers;
    next->older = proxy->fallback = proxy->current;
    proxy->current = next;
    tell_supervisor(proxy);
    return 0;
}

static void on_reloaded(void *context, bool done)
{
    struct proxy *proxy = context;
    struct generation *before = proxy->fallback;
    proxy->fallback = NULL;
    if (done) {
        generation_stop_listening(before, proxy->current);
        rotated_log_close(&before->log);
        print_listeners(proxy);
    } else {
        struct generation *failed = proxy->current;
        proxy->current = before;
        failed->older = before->older; /* its last workers may still be ending */
        before->older = failed;
        tell_supervisor(proxy);
        generation_stop_listening(failed, before);
        rotated_log_close(&failed->log);
        rotated_log_reopen(&proxy->current->log, proxy->error_log, "sluice proxy");
    }
    free_older(proxy);
}

static int on_replacement(void *context, unsigned which, unsigned *ret_number)
{
    const struct proxy *proxy = context;
    return which == 0 ? rotated_log_replacement(&proxy->current->log, ret_number) : -1;
}

static void on_stopping(void *context)
{
    struct proxy *proxy = context;
    /* Workers have the sockets open, too: as long as one listens, the kernel would take connections for nobody. Those
     * of older generations have been ended, but for the one that is in force as long as a reload is under way. */
    for (const struct generation *each = proxy->current; each != NULL; each = each->older)
        for (unsigned i = 0; i < each->listener_count; i++)
            if (each->listeners[i] >= 0)
                manager_shut_down(each->listeners[i]);
}

static void on_report(void *context)
{
    struct proxy *proxy = context;
    const struct proxy_config *config = &proxy->current->config;
    for (unsigned i = 0; i < config->service_count; i++) {
        struct proxy_totals sum;
        char receipt[512];
        generation_sum(proxy->current, i, &sum);
        uint64_t failed = 0;
        for (unsigned j = 0; j < PROXY_END_COUNT; j++)
            failed += j == PROXY_END_DONE ? 0 : sum.ended[j];
        log_say(proxy->error_log,
                "sluice proxy: %s: totals: %llu connections (%llu open), %llu ended otherwise than by both sides "
                "closing, %llu retries, %llu accept failures",
                config->services[i].name, (unsigned long long)sum.connections, (unsigned long long)sum.open,
                (unsigned long long)failed, (unsigned long long)sum.retries, (unsigned long long)sum.accept_failures);
        for (unsigned j = 0; j < 2; j++) {
            sluice_receipt_format(&sum.receipts[j], receipt, sizeof receipt);
            log_say(proxy->error_log, "sluice proxy: %s: receipt %s: %s", config->services[i].name,
                    j == 0 ? "up" : "down", receipt);
        }
    }
}

static void on_say(void *context, const char *line)
{
    struct proxy *proxy = context;
    log_say(proxy->error_log, "sluice proxy: %s", line);
}

/* What slots hold is about their workers alone. */
static void add_nothing(void *sum, const void *part)
{
    (void)sum, (void)part;
}

/* ---- Starting -------------------------------------------------------------------------------------------------- */

static int run(struct proxy *proxy)
{
    struct failure failure = {0};
    descriptors_raise_limit();
    int r = log_open_fd(STDERR_FILENO, 0, &proxy->error_log, &failure);
    if (r == 0) {
        r = tally_create(&proxy->tally, GENERATIONS_MAX * proxy->current->config.workers, sizeof(struct proxy_slot),
                         add_nothing);
        if (r < 0)
            failure_set(&failure, r, "memory for the workers' slots: %s", text_errno_meaning(r));
    }
    if (r < 0) {
        fprintf(stderr, "sluice proxy: %s\n", failure.text);
        return EXIT_CODE_FAILED;
    }
    proxy->supervisor = (struct supervisor_options){
        .name = "sluice proxy",
        .workers = proxy->current->config.workers,
        .slots = tally_slots(&proxy->tally),
        .context = proxy,
        .worker_main = worker_main,
        .ready = on_ready,
        .reload = on_reload,
        .reloaded = on_reloaded,
        .replacement = on_replacement,
        .stopping = on_stopping,
        .report = on_report,
        .worker_ended = on_worker_ended,
        .say = on_say,
    };
    tell_supervisor(proxy);
    int code = supervisor_run(&proxy->supervisor);
    if (proxy->current->config.receipts)
        on_report(proxy);
    return code;
}

int proxy_main(int argc, char **argv)
{
    struct proxy proxy = {.argc = argc, .argv = argv};
    struct proxy_config config;
    struct failure failure = {0};
    int code = proxy_config_from_arguments(argc, argv, &config);
    if (code >= 0)
        return code;
    if (loop_choose(config.loop, config.sqpoll, &proxy.loop, &failure) < 0) {
        fprintf(stderr, "sluice proxy: --loop: %s\n", failure.text);
        proxy_config_free(&config);
        return EXIT_CODE_FAILED;
    }
    if (config.verbose)
        loop_say("sluice proxy", &proxy.loop);
    if (manager_take_sockets(&failure) < 0) {
        fprintf(stderr, "sluice proxy: %s\n", failure.text);
        proxy_config_free(&config);
        return EXIT_CODE_FAILED;
    }
    if (generation_new(&config, NULL, &proxy.current, &failure) < 0) {
        fprintf(stderr, "sluice proxy: %s\n", failure.text);
        return EXIT_CODE_FAILED;
    }
    manager_close_rest("sluice proxy");
    code = run(&proxy);
    log_close(proxy.error_log);
    tally_destroy(&proxy.tally);
    while (proxy.current != NULL) {
        struct generation *older = proxy.current->older;
        generation_free(proxy.current, NULL);
        proxy.current = older;
    }
    return code;
}
