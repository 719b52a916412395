/* SPDX-License-Identifier: MIT
 *
 * sluice serve: the supervisor binds the address and opens the logs; each worker confines itself and runs an HTTP
 * server on a loop of its own, all accepting from the one socket.
 */
#include "base/cleanup.h"
#include "base/text.h"
#include "commands.h"
#include "http/server.h"
#include "http/site.h"
#include "service/address.h"
#include "service/admin.h"
#include "service/confine.h"
#include "service/crossovers.h"
#include "service/descriptors.h"
#include "service/log.h"
#include "service/loop.h"
#include "service/options.h"
#include "service/routes.h"
#include "service/status.h"
#include "service/supervisor.h"
#include "service/tally.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct serve_options {
    const char *listen, *congestion, *index, *route, *loop, *access_log, *admin;
    uint64_t workers, max_connections;
    uint64_t header_timeout, idle_timeout, send_timeout, drain_timeout;
    bool listing, precompressed, snapshot, sqpoll, receipts, confine, verbose, admin_anywhere;
};

#define MEMBER(name) offsetof(struct serve_options, name)
#define TIMEOUT_MAX (24u * 3600 * 1000)

static const struct option_spec option_table[] = {
    {.type = OPTION_HEADING, .help = "Listening"},
    {"listen", 'l', "ADDR:PORT", "where to accept connections; port 0 lets the kernel choose", OPTION_ADDRESS,
     MEMBER(listen), .default_text = "127.0.0.1:8080"},
    {"workers", 'w', "N", "worker processes; default: one for each CPU that sluice may use", OPTION_UNSIGNED,
     MEMBER(workers), .min = 1, .max = 1024},
    {"max-connections", 0, "N",
     "connections at a time, shared among the workers; further ones wait. Default: what the limit of open files "
     "permits",
     OPTION_UNSIGNED, MEMBER(max_connections), .min = 1, .max = INT_MAX},
    {"congestion", 0, "NAME", "TCP congestion control of the connections (cubic, bbr, ...); default: the host's",
     OPTION_TEXT, MEMBER(congestion), .default_text = NULL},

    {.type = OPTION_HEADING, .help = "Files"},
    {"index", 0, "NAME", "the file that stands for its directory", OPTION_TEXT, MEMBER(index),
     .default_text = "index.html"},
    {"listing", 0, NULL, "list directories that have no index; --no-listing answers 403 there", OPTION_FLAG,
     MEMBER(listing), .default_text = "yes"},
    {"precompressed", 0, NULL, "send NAME.br, NAME.zst or NAME.gz instead of NAME to clients that accept it",
     OPTION_FLAG, MEMBER(precompressed), .default_text = NULL},
    {"snapshot", 0, NULL, "copy files while sending them, for files that are changed in place", OPTION_FLAG,
     MEMBER(snapshot), .default_text = NULL},
    {"route", 0, "NAME", "force a mechanism for the bodies: copy, mmap, sendfile, splice or direct", OPTION_TEXT,
     MEMBER(route), .default_text = "auto"},

    {.type = OPTION_HEADING, .help = "Loop"},
    {"loop", 0, "KIND", "what carries everything: epoll or io_uring; auto: whichever is cheaper here", OPTION_TEXT,
     MEMBER(loop), .default_text = "auto"},
    {"sqpoll", 0, NULL,
     "with --loop io_uring: the kernel looks for work by itself, which keeps a CPU busy for each worker", OPTION_FLAG,
     MEMBER(sqpoll), .default_text = NULL},

    {.type = OPTION_HEADING, .help = "Timeouts"},
    {"header-timeout", 0, "TIME", "for a request's head, from its first byte (for the first one, from connecting)",
     OPTION_DURATION, MEMBER(header_timeout), .default_text = "10s", .min = 1, .max = TIMEOUT_MAX},
    {"idle-timeout", 0, "TIME", "between requests", OPTION_DURATION, MEMBER(idle_timeout), .default_text = "60s",
     .min = 1, .max = TIMEOUT_MAX},
    {"send-timeout", 0, "TIME", "for a client that takes nothing of a response", OPTION_DURATION, MEMBER(send_timeout),
     .default_text = "60s", .min = 1, .max = TIMEOUT_MAX},
    {"drain-timeout", 0, "TIME", "for responses under way when sluice is told to end", OPTION_DURATION,
     MEMBER(drain_timeout), .default_text = "30s", .min = 1, .max = TIMEOUT_MAX},

    {.type = OPTION_HEADING, .help = "Reporting"},
    {"access-log", 0, "PATH", "log requests in the combined format; - for standard output. Default: no log",
     OPTION_TEXT, MEMBER(access_log), .default_text = NULL},
    {"admin", 0, "ADDR:PORT",
     "answer there with metrics for Prometheus (/metrics), the same and more as JSON (/status.json), and a live page "
     "(/). Default: nowhere",
     OPTION_ADDRESS, MEMBER(admin), .default_text = NULL},
    {"admin-anywhere", 0, NULL, "let --admin be an address that is neither this host's own nor private", OPTION_FLAG,
     MEMBER(admin_anywhere), .default_text = NULL},
    {"receipts", 0, NULL,
     "print to standard error, for every connection and for all at the end, how the bytes went and which were copied",
     OPTION_FLAG, MEMBER(receipts), .default_text = NULL},
    {"verbose", 'v', NULL, "say how the workers are confined, and whether io_uring is to be had", OPTION_FLAG,
     MEMBER(verbose), .default_text = NULL},

    {.type = OPTION_HEADING, .help = "Security"},
    {"confine", 0, NULL, "take from the workers all rights they do not need; --no-confine for debugging", OPTION_FLAG,
     MEMBER(confine), .default_text = "yes"},
    {.type = OPTION_END},
};

static const char *const examples[] = {
    "sluice serve ~/Videos",
    "to this computer only",
    "sluice serve . --listen :8080 --access-log -",
    "to everybody who can reach it, showing requests",
    "sluice serve . --receipts --route copy",
    "copying everything, to compare",
    NULL,
};

struct serve {
    struct serve_options options;
    enum sluice_route route;
    struct sluice_loop_options loop;
    struct http_sites sites;
    int listener, admin; /* admin: -1: none */
    char directory[PATH_MAX];
    struct address address;
    struct log *access_log, *error_log; /* standard error is error_log's and the receipts' */
    struct tally tally;                 /* of struct http_totals */
    unsigned workers, connections_each, open_files_each;
};

/* ---- Worker ---------------------------------------------------------------------------------------------------- */

struct serving {
    struct serve *serve;
    struct worker *worker;
    struct sluice_loop *loop;
    struct http_server *server;
    struct admin *admin;
};

static void on_stop(void *context)
{
    struct serving *serving = context;
    /* The supervisor and the other workers have the socket open, too: as long as it listens, the kernel would take
     * connections that nobody accepts. All workers are told to stop at the same time. */
    shutdown(serving->serve->listener, SHUT_RDWR);
    admin_stop(serving->admin);
    serving->admin = NULL;
    http_server_drain(serving->server);
}

static void on_drained(void *context)
{
    struct serving *serving = context;
    sluice_loop_stop(serving->loop);
}

static void flush_logs(struct serve *serve)
{
    if (serve->access_log != NULL)
        log_flush(serve->access_log);
    log_flush(serve->error_log);
}

static void on_turn(void *context)
{
    struct serving *serving = context;
    struct serve *serve = serving->serve;
    http_server_turn(serving->server);
    flush_logs(serve);
}

static int confine(struct serve *serve, unsigned index)
{
    CLEANUP_FREE int *directories = calloc(serve->sites.count, sizeof *directories);
    if (directories == NULL)
        return -ENOMEM;
    for (unsigned i = 0; i < serve->sites.count; i++)
        directories[i] = serve->sites.items[i].root;
    const struct confine_options options = {
        .groups = CONFINE_ACCEPT | CONFINE_THREADS | CONFINE_WATCH_FILES,
        .read_directories = directories,
        .read_directory_count = serve->sites.count,
    };
    return confine_worker_saying(&options, "sluice serve", serve->options.verbose && index == 0, serve->error_log);
}

static int fail(struct serve *serve, const char *what, int code)
{
    log_say(serve->error_log, "sluice serve: worker: %s: %s (%s)", what, text_errno_meaning(code),
            text_errno_name(code));
    return EXIT_CODE_FAILED;
}

static void write_metrics(void *context, FILE *out)
{
    const struct serve *serve = context;
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

static void describe(const struct serve *serve, char *buffer, size_t size)
{
    char url[ADDRESS_TEXT_MAX + 16];
    address_format_url(&serve->address, url, sizeof url);
    snprintf(buffer, size, "%s at %s", serve->directory, url);
}

static void write_status(void *context, FILE *out)
{
    struct serve *serve = context;
    char about[PATH_MAX + ADDRESS_TEXT_MAX + 32];
    struct serve_options in_force = serve->options; /* with what was left to sluice */
    in_force.workers = serve->workers;
    in_force.max_connections = (uint64_t)serve->workers * serve->connections_each;
    describe(serve, about, sizeof about);
    const struct status status = {
        .program = "sluice serve",
        .about = about,
        .options = option_table,
        .values = &in_force,
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
        .listener = serving->serve->admin,
        .write_metrics = write_metrics,
        .write_status = write_status,
        .context = serving->serve,
    };
    return options.listener < 0 ? 0 : admin_start(&options, &serving->admin);
}

static int worker_main(void *context, struct worker *worker)
{
    struct serve *serve = context;
    const struct serve_options *given = &serve->options;
    struct serving serving = {.serve = serve, .worker = worker};
    struct sluice_watch *stop_watch = NULL;

    /* The loop first: seccomp does not let a worker make rings. */
    int r = sluice_loop_new(&serve->loop, &serving.loop);
    if (r < 0)
        return fail(serve, "making the loop", r);
    if (given->confine && confine(serve, worker->index) < 0)
        return WORKER_EXIT_GIVE_UP;
    struct http_server_options options = {
        .loop = serving.loop,
        .sites = &serve->sites,
        .snapshot = given->snapshot,
        .walk = getenv("SLUICE_NO_OPENAT2") != NULL, /* for tests */
        .route = serve->route,
        .header_timeout = (unsigned)given->header_timeout,
        .idle_timeout = (unsigned)given->idle_timeout,
        .send_timeout = (unsigned)given->send_timeout,
        .max_connections = serve->connections_each,
        .open_files = serve->open_files_each,
        .access_log = serve->access_log,
        .receipt_log = given->receipts ? serve->error_log : NULL,
        .error_log = serve->error_log,
        .totals = tally_begin(&serve->tally, worker),
        .timed = serve->admin >= 0,
        .drained = on_drained,
        .context = &serving,
    };
    r = http_server_new(&options, &serving.server);
    if (r == 0)
        r = sluice_loop_watch(serving.loop, worker->stop_fd, on_stop, &serving, &stop_watch);
    if (r == 0)
        r = http_server_listen(serving.server, serve->listener);
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
    admin_stop(serving.admin);
    http_server_free(serving.server);
    sluice_watch_free(stop_watch);
    sluice_loop_free(serving.loop);
    flush_logs(serve);
    return EXIT_CODE_DONE;
}

/* ---- Supervisor ------------------------------------------------------------------------------------------------ */

static void on_ready(void *context)
{
    struct serve *serve = context;
    char about[PATH_MAX + ADDRESS_TEXT_MAX + 32], url[ADDRESS_TEXT_MAX + 16];
    struct address admin;
    describe(serve, about, sizeof about);
    printf("sluice: serving %s (%u worker%s)\n", about, serve->workers, serve->workers == 1 ? "" : "s");
    if (serve->admin >= 0 && address_of_socket(serve->admin, &admin) == 0) {
        address_format_url(&admin, url, sizeof url);
        printf("sluice: live page, status and metrics at %s\n", url);
    }
    fflush(stdout);
}

static void on_worker_ended(void *context, unsigned slot, bool crashed)
{
    struct serve *serve = context;
    struct http_totals *totals = tally_counters(&serve->tally, slot);
    totals->open = 0; /* the kernel has closed them */
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
            "sluice serve: totals: %llu connections (%llu open), %llu requests, responses: %llu 2xx, %llu 3xx, "
            "%llu 4xx, %llu 5xx, %llu unsent; %llu cut short, %llu timeouts, %llu accept failures",
            (unsigned long long)sum.connections, (unsigned long long)sum.open, (unsigned long long)sum.requests,
            (unsigned long long)sum.responses[2], (unsigned long long)sum.responses[3],
            (unsigned long long)sum.responses[4], (unsigned long long)sum.responses[5],
            (unsigned long long)sum.responses[0], (unsigned long long)sum.truncated, (unsigned long long)sum.timeouts,
            (unsigned long long)sum.accept_failures);
    sluice_receipt_format(&sum.receipt, receipt, sizeof receipt);
    log_say(serve->error_log, "sluice serve: receipt: %s", receipt);
}

static void on_say(void *context, const char *line)
{
    struct serve *serve = context;
    log_say(serve->error_log, "%s", line);
}

/* ---- Starting -------------------------------------------------------------------------------------------------- */

/* How many connections and open files a worker may have. */
static void share_descriptors(struct serve *serve)
{
    /* An eighth for files nobody is using. Of what is left a quarter for files in use, for pipes, and for the loop. */
    uint64_t descriptors = descriptors_raise_limit();
    uint64_t files = descriptors / 8 < 8192 ? descriptors / 8 : 8192;
    uint64_t connections = (descriptors - files) / 4 * 3;
    if (serve->options.max_connections > 0) {
        uint64_t each = (serve->options.max_connections + serve->workers - 1) / serve->workers;
        if (each < connections)
            connections = each;
    }
    serve->open_files_each = files < 1 ? 1 : (unsigned)files;
    serve->connections_each = connections < 1 ? 1 : (unsigned)connections;
}

static int open_root(struct serve *serve, const char *path)
{
    const struct http_site site = {
        .root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC),
        .index = serve->options.index,
        .listing = serve->options.listing,
        .precompressed = serve->options.precompressed,
    };
    if (site.root >= 0 && faccessat(site.root, ".", X_OK, 0) == 0 && realpath(path, serve->directory) != NULL)
        return http_sites_add(&serve->sites, &site);
    fprintf(stderr, "sluice serve: cannot serve %s: %s (%s)\n", path, text_errno_meaning(errno),
            text_errno_name(errno));
    return -errno;
}

static int start_listening(struct serve *serve, struct failure *failure)
{
    struct address address;
    struct listen_options listen_options = {.congestion = serve->options.congestion};
    int r = address_parse(serve->options.listen, &address, failure);
    if (r < 0)
        return r;
    r = address_listen(&address, &listen_options, &serve->listener, failure);
    if (r < 0)
        return r;
    /* Accepted sockets inherit it. The library says itself where more follows. */
    int on = 1;
    if (setsockopt(serve->listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0)
        return failure_set(failure, -errno, "TCP_NODELAY: %s", text_errno_meaning(errno));
    r = address_of_socket(serve->listener, &serve->address);
    return r < 0 ? failure_set(failure, r, "getsockname: %s", text_errno_meaning(r)) : 0;
}

static int run(struct serve *serve, const char *path)
{
    struct failure failure = {0};
    const struct serve_options *options = &serve->options;
    int route = routes_parse("sluice serve", options->route);
    if (route < 0 || !routes_check("sluice serve", (enum sluice_route)route, SLUICE_END_FILE,
                                   options->snapshot ? SLUICE_END_SNAPSHOT : 0, SLUICE_END_TCP, 1))
        return EXIT_CODE_USAGE;
    if (options->index[0] == '\0' || options->index[0] == '.' || strchr(options->index, '/') != NULL ||
        strlen(options->index) > NAME_MAX) {
        fprintf(stderr, "sluice serve: --index takes a file name that is not hidden, not \"%s\"\n", options->index);
        return EXIT_CODE_USAGE;
    }
    int chosen = loop_choose("sluice serve", options->loop, options->sqpoll, options->verbose, &serve->loop);
    if (chosen != EXIT_CODE_DONE)
        return chosen;
    serve->route = (enum sluice_route)route;
    serve->workers = options->workers > 0 ? (unsigned)options->workers : supervisor_cpu_count();
    if (open_root(serve, path) < 0)
        return EXIT_CODE_FAILED;
    share_descriptors(serve);

    int r = start_listening(serve, &failure);
    if (r == 0 && options->admin != NULL)
        r = admin_listen("admin", options->admin, options->admin_anywhere, &serve->admin, &failure);
    if (r == 0)
        r = log_open_fd(STDERR_FILENO, 0, &serve->error_log, &failure);
    if (r == 0 && options->access_log != NULL)
        r = log_open(options->access_log, 0, &serve->access_log, &failure);
    if (r == 0) {
        r = tally_create(&serve->tally, serve->workers, sizeof(struct http_totals), http_totals_add);
        if (r < 0)
            failure_set(&failure, r, "memory for the workers' counters: %s", text_errno_meaning(r));
    }
    if (r < 0) {
        fprintf(stderr, "sluice serve: %s\n", failure.text);
        return EXIT_CODE_FAILED;
    }

    struct supervisor_options supervisor = {
        .name = "sluice serve",
        .workers = serve->workers,
        .drain_ms = options->drain_timeout,
        .context = serve,
        .worker_main = worker_main,
        .ready = on_ready,
        .report = on_report,
        .worker_ended = on_worker_ended,
        .say = on_say,
    };
    /* The supervisor is not confined: the workers learn into memory that they share with it. */
    crossovers_begin("sluice serve", true, options->verbose ? on_say : NULL, serve);
    int code = supervisor_run(&supervisor);
    crossovers_end("sluice serve", options->verbose ? on_say : NULL, serve);
    if (options->receipts)
        on_report(serve);
    return code;
}

int serve_main(int argc, char **argv)
{
    const struct command_spec command = {
        .program = "sluice serve",
        .positionals = "[DIR]",
        .positional_max = 1,
        .summary = "Serve the files beneath DIR (default: the current directory) over HTTP/1.1, without copying them "
                   "through user space. Files and directories whose names begin with a dot are hidden.",
        .version = sluice_version(),
        .options = option_table,
        .examples = examples,
        .footer = "SIGTERM or SIGINT ends it after the responses under way; SIGUSR1 prints the totals so far.",
    };
    struct serve serve = {.listener = -1, .admin = -1};
    struct positionals positionals;
    int code = options_parse_or_exit_code(&command, argc, argv, &serve.options, &positionals);
    if (code >= 0)
        return code;
    code = run(&serve, positionals.count > 0 ? positionals.items[0] : ".");
    log_close(serve.access_log);
    log_close(serve.error_log);
    tally_destroy(&serve.tally);
    close_fd(serve.admin);
    close_fd(serve.listener);
    http_sites_free(&serve.sites);
    return code;
}
