/* SPDX-License-Identifier: MIT
 *
 * sluice serve: the supervisor binds the address and opens the logs; each worker confines itself and runs an HTTP
 * server on a loop of its own, all accepting from the one socket.
 */
#include "base/cleanup.h"
#include "base/text.h"
#include "commands.h"
#include "http/allowance.h"
#include "http/server.h"
#include "serve_sites.h"
#include "serve_tls.h"
#include "service/address.h"
#include "service/admin.h"
#include "service/clients.h"
#include "service/config_file.h"
#include "service/confine.h"
#include "service/crossovers.h"
#include "service/descriptors.h"
#include "service/identity.h"
#include "service/log.h"
#include "service/loop.h"
#include "service/manager.h"
#include "service/options.h"
#include "service/prefix.h"
#include "service/rotated_log.h"
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

#define PROGRAM "sluice serve"

struct serve_options {
    const char *config, *listen, *congestion, *route, *access_log, *admin, *user, *group;
    uint64_t workers, max_connections, connections_per_address, rate_per_address;
    uint64_t header_timeout, idle_timeout, send_timeout, drain_timeout, retire_timeout;
    struct option_list trust_forwarded;
    unsigned loop, access_log_format, unknown_host;
    bool check_config, accept_proxy, snapshot, sqpoll, receipts, confine, verbose, admin_anywhere;
    struct serve_tls_options tls;
    struct site_options site; /* last: an option from here on may stand in sections */
};

#define MEMBER(name) offsetof(struct serve_options, name)
#define SITE(name) offsetof(struct serve_options, site.name)
#define TIMEOUT_MAX (24u * 3600 * 1000)
#define RATE_MIN 1024
#define TICKETS_MAX (7 * (uint64_t)TIMEOUT_MAX) /* RFC 8446, 4.6.1 */
#define GENERATIONS_MAX 8 /* at a time, so many workers: more reloads wait for old workers to drain */

enum { UNKNOWN_HOST_SERVE, UNKNOWN_HOST_REFUSE };
static const char *const unknown_hosts[] = {"serve", "refuse", NULL};

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

    {.type = OPTION_HEADING, .help = "HTTPS"},
    {"tls", 0, NULL, "speak TLS at the address of --listen", OPTION_FLAG, MEMBER(tls.on), .default_text = NULL},
    {"listen-tls", 0, "ADDR:PORT", "a second address, with TLS, beside --listen without", OPTION_ADDRESS,
     MEMBER(tls.listen), .default_text = NULL},
    {"certificate", 0, "FILE[,KEYFILE]",
     "a certificate with those that lead to its root, and its key, if that is not in the same file, both PEM; once for "
     "each. A client gets the one whose names fit, or the first",
     OPTION_LIST, SITE(certificates), .default_text = NULL},
    {"tls-dev", 0, NULL,
     "for trying out: make a certificate for this host, and a local authority that signs it; with --tls unless there "
     "is --listen-tls",
     OPTION_FLAG, MEMBER(tls.development), .default_text = NULL},
    {"redirect-to-https", 0, NULL, "answer what comes to --listen by a redirect to --listen-tls", OPTION_FLAG,
     MEMBER(tls.redirect), .default_text = NULL},
    {"tls-min", 0, "VERSION", "the oldest version of TLS: 1.2 or 1.3", OPTION_CHOICE, MEMBER(tls.min),
     .default_text = "1.2", .choices = serve_tls_versions},
    {"tls-ciphers", 0, "LIST", "cipher suites, parted by colons. Default: Mozilla's intermediate profile", OPTION_TEXT,
     MEMBER(tls.ciphers), .default_text = NULL},
    {"tls-groups", 0, "LIST", "groups for the key exchange, parted by colons. Default: X25519:P-256:P-384", OPTION_TEXT,
     MEMBER(tls.groups), .default_text = NULL},
    {"tls-tickets", 0, "TIME", "how long a session can be resumed, and a ticket key is used; 0: never", OPTION_DURATION,
     MEMBER(tls.tickets), .default_text = "12h", .min = 0, .max = TICKETS_MAX},
    {"kernel-tls", 0, NULL, "let the kernel encrypt what is sent, where it can; --no-kernel-tls: never", OPTION_FLAG,
     MEMBER(tls.kernel), .default_text = "yes"},

    {.type = OPTION_HEADING, .help = "Files"},
    {"root", 'r', "DIR", "the directory to serve, as if DIR stood by itself; default: the current one", OPTION_TEXT,
     SITE(root), .default_text = NULL},
    {"index", 0, "NAME", "the file that stands for its directory", OPTION_TEXT, SITE(index),
     .default_text = "index.html"},
    {"listing", 0, NULL, "list directories that have no index; --no-listing answers 403 there", OPTION_FLAG,
     SITE(listing), .default_text = "yes"},
    {"symlinks", 0, "WHICH",
     "which symbolic links are followed: those that stay beneath the directory; all, wherever they lead; none",
     OPTION_CHOICE, SITE(symlinks), .default_text = "inside", .choices = symlink_policies},
    {"precompressed", 0, NULL, "send NAME.br, NAME.zst or NAME.gz instead of NAME to clients that accept it",
     OPTION_FLAG, SITE(precompressed), .default_text = NULL},
    {"snapshot", 0, NULL, "copy files while sending them, for files that are changed in place", OPTION_FLAG,
     MEMBER(snapshot), .default_text = NULL},
    {"route", 0, "NAME", "force a mechanism for the bodies: copy, mmap, sendfile, splice or direct", OPTION_TEXT,
     MEMBER(route), .default_text = "auto"},
    {"cold-policy", 0, "POLICY",
     "what is read from the disk: keep it in memory, or drop it behind the sending: of large files (drop-behind), or "
     "only of those larger than an eighth of the memory (auto)",
     OPTION_CHOICE, SITE(cold_policy), .default_text = "auto", .choices = cold_policies},
    {"cold-size", 0, "SIZE",
     "which files are dropped: of so many bytes. Default: 16M with drop-behind, else an eighth of the memory",
     OPTION_SIZE, SITE(cold_size), .min = 1},

    {.type = OPTION_HEADING, .help = "Responses"},
    {"cache", 0, "PATTERN=VALUE",
     "say \"Cache-Control: VALUE\" of files whose name fits, or whose path does if PATTERN has a slash: \"*.js=public, "
     "max-age=3600\"; may be given several times, the first that fits counts",
     OPTION_LIST, SITE(cache), .default_text = NULL},
    {"header", 0, "NAME: VALUE", "add a field to every response; may be given several times", OPTION_LIST, SITE(header),
     .default_text = NULL},

    {.type = OPTION_HEADING, .help = "Limits"},
    {"rate", 0, "SIZE", "bytes per second of each connection. Default: not limited", OPTION_SIZE, SITE(rate),
     .min = RATE_MIN},
    {"rate-per-address", 0, "SIZE",
     "bytes per second of all connections of a client's address together. Default: not limited", OPTION_SIZE,
     MEMBER(rate_per_address), .min = RATE_MIN},
    {"connections-per-address", 0, "N",
     "connections of a client's address at a time; further ones are answered with 429. Default: not limited",
     OPTION_UNSIGNED, MEMBER(connections_per_address), .min = 1, .max = INT_MAX},

    {.type = OPTION_HEADING, .help = "Proxies in front"},
    {"accept-proxy", 0, NULL,
     "connections begin with a PROXY header, version 1 or 2, that says who the client is; those without one are closed",
     OPTION_FLAG, MEMBER(accept_proxy), .default_text = NULL},
    {"trust-forwarded", 0, "ADDR/PREFIX",
     "for the log, believe X-Forwarded-For of clients in this network; may be given several times", OPTION_LIST,
     MEMBER(trust_forwarded), .default_text = NULL},

    {.type = OPTION_HEADING, .help = "Sites"},
    {"unknown-host", 0, "HOW",
     "requests for a host that no site is named for: served by the directory for all, else the first site, or refused",
     OPTION_CHOICE, MEMBER(unknown_host), .default_text = "serve", .choices = unknown_hosts},

    {.type = OPTION_HEADING, .help = "Loop"},
    {"loop", 0, "KIND", "what carries everything; auto: whichever is cheaper here", OPTION_CHOICE, MEMBER(loop),
     .default_text = "auto", .choices = loop_kinds},
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
    {"retire-timeout", 0, "TIME", "for connections that the old workers have after a reload; 0: as long as they last",
     OPTION_DURATION, MEMBER(retire_timeout), .default_text = "0", .min = 0, .max = 7 * (uint64_t)TIMEOUT_MAX},

    {.type = OPTION_HEADING, .help = "Configuration"},
    {"config", 'c', "FILE", "read what is not given here from FILE, where the same names are keys", OPTION_TEXT,
     MEMBER(config), .default_text = NULL},
    {"check-config", 0, NULL, "read the configuration, say whether it is right, and end", OPTION_FLAG,
     MEMBER(check_config), .default_text = NULL},

    {.type = OPTION_HEADING, .help = "Reporting"},
    {"access-log", 0, "PATH", "log requests; - for standard output. Default: no log", OPTION_TEXT, MEMBER(access_log),
     .default_text = NULL},
    {"access-log-format", 0, "FORMAT",
     "how a request is logged: in the combined format, or as an object of JSON a line", OPTION_CHOICE,
     MEMBER(access_log_format), .default_text = "combined", .choices = log_formats},
    {"admin", 0, "ADDR:PORT",
     "answer there with metrics for Prometheus (/metrics), the same and more as JSON (/status.json), and a live page "
     "(/). Default: nowhere",
     OPTION_ADDRESS, MEMBER(admin), .default_text = NULL},
    {"admin-anywhere", 0, NULL, "let --admin be any address, and be asked for by any name", OPTION_FLAG,
     MEMBER(admin_anywhere), .default_text = NULL},
    {"receipts", 0, NULL,
     "print to standard error, for every connection and for all at the end, how the bytes went and which were copied",
     OPTION_FLAG, MEMBER(receipts), .default_text = NULL},
    {"verbose", 'v', NULL, "say how the workers are confined, and whether io_uring is to be had", OPTION_FLAG,
     MEMBER(verbose), .default_text = NULL},

    {.type = OPTION_HEADING, .help = "Security"},
    {"user", 0, "NAME", "whom the workers become, with all of that user's groups, when sluice is started as root",
     OPTION_TEXT, MEMBER(user), .default_text = NULL},
    {"group", 0, "NAME", "their group, instead of the one that --user has", OPTION_TEXT, MEMBER(group),
     .default_text = NULL},
    {"confine", 0, NULL, "take from the workers all rights they do not need; --no-confine for debugging", OPTION_FLAG,
     MEMBER(confine), .default_text = "yes"},
    {.type = OPTION_END},
};
#define OPTION_COUNT (sizeof option_table / sizeof option_table[0])

static const char *const examples[] = {
    "sluice serve ~/Videos",
    "to this computer only",
    "sluice serve . --listen :8080 --access-log -",
    "to everybody who can reach it, showing requests",
    "sluice serve . --tls-dev",
    "with TLS, to try it out",
    "sluice serve . --receipts --route copy",
    "copying everything, to compare",
    "sluice serve --config /etc/sluice/serve.conf --check-config",
    "is the file right?",
    NULL,
};

static struct command_spec command_for(const char **given)
{
    return (struct command_spec){
        .program = PROGRAM,
        .positionals = "[DIR]",
        .positional_max = 1,
        .summary = "Serve the files beneath DIR (default: the current directory) over HTTP/1.1, without copying them "
                   "through user space. Files and directories whose names begin with a dot are hidden. What is not "
                   "given on the command line may stand in a file (--config), where the same names are keys; see "
                   "sluice-serve(1).",
        .version = sluice_version(),
        .options = option_table,
        .examples = examples,
        .footer = "SIGHUP reads the file again and opens the logs anew: new workers take new connections, the old ones "
                  "end with theirs. SIGTERM or SIGINT ends it after the responses under way; SIGUSR1 prints the totals "
                  "so far.",
        .given = given,
    };
}

/* What sluice serve was told, by the command line and by a file. */
struct serve_config {
    struct serve_options options;
    enum sluice_route route;
    struct http_sites sites;
    struct option_list certificates; /* of all sites; the strings are the options' */
    struct address_prefix *trusted;  /* as many as options.trust_forwarded has */
    struct config_storage *storage;  /* what strings of the file lie in */
    bool says_where;                 /* listen was given */
};

/* ---- Configuration --------------------------------------------------------------------------------------------- */

static void config_free(struct serve_config *config)
{
    const struct command_spec command = command_for(NULL);
    http_sites_free(&config->sites);
    free(config->trusted);
    option_list_free(&config->certificates);
    options_free_lists(&command, &config->options);
    config_forget(&config->storage);
    *config = (struct serve_config){0};
}

static int read_trusted(struct serve_config *config, const struct config_origin *origin, struct failure *failure)
{
    const struct option_list *list = &config->options.trust_forwarded;
    struct failure why;
    if (list->count == 0)
        return 0;
    config->trusted = calloc(list->count, sizeof *config->trusted);
    if (config->trusted == NULL)
        return failure_set(failure, -ENOMEM, PROGRAM ": out of memory");
    for (unsigned i = 0; i < list->count; i++)
        if (address_prefix_parse(list->items[i], &config->trusted[i], &why) < 0)
            return config_wrong(origin, "trust-forwarded", -EINVAL, failure, "%.600s", why.text);
    return 0;
}

static int begin_site(void *context, const char *name, struct failure *why)
{
    struct serve_config *config = context;
    return serve_sites_name(&config->sites, name, why);
}

/* From number first on. Names in certificates tell whom they are for, not where they are written. */
static int add_certificates(struct serve_config *config, const struct option_list *list, unsigned first,
                            struct failure *failure)
{
    struct option_list *all = &config->certificates;
    if (first >= list->count)
        return 0;
    unsigned count = list->count - first;
    const char **larger = realloc(all->items, (all->count + count) * sizeof *larger);
    if (larger == NULL)
        return failure_set(failure, -ENOMEM, PROGRAM ": out of memory");
    memcpy(larger + all->count, list->items + first, count * sizeof *larger);
    *all = (struct option_list){larger, all->count + count};
    return 0;
}

/* The first one is for clients that name no host: it is one of those for all sites, if there are any. */
static int add_certificates_for_all(struct serve_config *config, struct failure *failure)
{
    return config->certificates.count > 0 ? 0
                                          : add_certificates(config, &config->options.site.certificates, 0, failure);
}

static int finish_site(void *context, void *options, const struct config_origin *origin, struct failure *failure)
{
    struct serve_config *config = context;
    const struct serve_options *section = options;
    int result = add_certificates_for_all(config, failure);
    if (result == 0) /* a section's list begins with those for all */
        result =
            add_certificates(config, &section->site.certificates, config->options.site.certificates.count, failure);
    if (result < 0)
        return result;
    return serve_sites_add(&config->sites, &section->site, &config->options.site, origin, failure);
}

/* The site that has no names. */
static int add_site_for_all(struct serve_config *config, const struct config_origin *origin, struct failure *failure)
{
    const struct serve_options *options = &config->options;
    struct http_sites *sites = &config->sites;
    sites->refuse_unknown = options->unknown_host == UNKNOWN_HOST_REFUSE;
    if (sites->refuse_unknown && sites->count == 0)
        return config_wrong(origin, "unknown-host", -EINVAL, failure,
                            "to refuse them takes sites that have names: sections [host NAME...] of the file that "
                            "--config names");
    if (sites->count > 0 && (sites->refuse_unknown || options->site.root == NULL))
        return 0;
    sites->fallback = sites->count;
    return serve_sites_add(sites, &options->site, &options->site, origin, failure);
}

/* What options say together. */
static int check_config(struct serve_config *config, const struct config_origin *origin, struct failure *failure)
{
    const struct serve_options *options = &config->options;
    struct failure why;
    config->says_where = config_has(origin, "listen");
    int route = routes_parse(options->route, &why);
    if (route < 0 || routes_check((enum sluice_route)route, SLUICE_END_FILE,
                                  options->snapshot ? SLUICE_END_SNAPSHOT : 0, SLUICE_END_TCP, 1, &why) < 0)
        return config_wrong(origin, "route", -EINVAL, failure, "%.600s", why.text);
    config->route = (enum sluice_route)route;
    if (options->sqpoll && options->loop != SLUICE_LOOP_IO_URING)
        return config_wrong(origin, "sqpoll", -EINVAL, failure, "this needs loop io_uring, not %s",
                            loop_kinds[options->loop]);
    const char *wrong;
    int result = add_certificates_for_all(config, failure);
    if (result < 0)
        return result;
    if (serve_tls_check(&options->tls, &config->certificates, &wrong, &why) < 0)
        return config_wrong(origin, wrong, -EINVAL, failure, "%.600s", why.text);
    result = read_trusted(config, origin, failure);
    return result < 0 ? result : add_site_for_all(config, origin, failure);
}

/* options: as they were parsed, given and positionals, too. */
static int finish_config(struct serve_config *config, const struct command_spec *command,
                         const struct positionals *positionals, struct failure *failure)
{
    struct serve_options *options = &config->options;
    struct config_origin origin = {.command = command};
    unsigned lines[OPTION_COUNT];
    if (positionals->count > 0) {
        if (options->site.root != NULL)
            return failure_set(failure, -EINVAL, PROGRAM ": two directories, %.200s and --root %.200s: give one",
                               positionals->items[0], options->site.root);
        options->site.root = positionals->items[0];
    }
    if (options->config != NULL) {
        const char *root = options->site.root;
        const struct config_reader reader = {
            .path = options->config,
            .command = command,
            .size = sizeof *options,
            .section_offset = offsetof(struct serve_options, site),
            .storage = &config->storage,
            .context = config,
            .section = "site",
            .grammar = "KEY = VALUE, [host NAME...], or a comment that begins with #",
            .begin = begin_site,
            .finish = finish_site,
        };
        int result = config_file_read(&reader, options, lines, &origin, failure);
        if (result < 0)
            return result;
        if (root != NULL)
            options->site.root = root;
    } else if (options->site.root == NULL) {
        options->site.root = ".";
    }
    return check_config(config, &origin, failure);
}

/* The same arguments may be parsed again: options_parse changes their order. */
static char **copy_arguments(int argc, char **argv, struct failure *failure)
{
    char **copy = calloc((size_t)argc + 1, sizeof *copy);
    if (copy == NULL)
        failure_set(failure, -ENOMEM, PROGRAM ": out of memory");
    else if (argc > 0)
        memcpy(copy, argv, (size_t)argc * sizeof *copy);
    return copy;
}

/* The same again from the same arguments, for a reload. Returns 0 or a negative errno. */
static int config_again(int argc, char **argv, struct serve_config *ret_config, struct failure *failure)
{
    const char *given[OPTION_COUNT];
    const struct command_spec command = command_for(given);
    struct serve_config config = {0};
    struct positionals positionals;
    CLEANUP_FREE char **copy = copy_arguments(argc, argv, failure);
    if (copy == NULL)
        return -ENOMEM;
    int result = options_parse(&command, argc, copy, &config.options, &positionals, failure);
    if (result == 0)
        result = finish_config(&config, &command, &positionals, failure);
    if (result < 0)
        config_free(&config);
    else
        *ret_config = config;
    return result;
}

/* ---- A configuration at work ------------------------------------------------------------------------------------ */

/* Made by the supervisor, once at the start and once for every reload. Workers use the one that they were forked with
 * until the last of their connections has ended. */
struct generation {
    struct serve_config config;
    struct sluice_loop_options loop;
    int listener, tls_listener, admin; /* the last two: -1: none */
    struct address address, tls_address;
    /* They are other descriptors of the same sockets. */
    bool has_previous_listener, has_previous_tls_listener, has_previous_admin;
    struct tls_context *tls; /* NULL: none */
    struct rotated_log access_log;
    struct identity identity; /* of the workers */
    unsigned workers, connections_each, open_files_each;
};

/* How many connections and open files a worker may have. */
static void share_descriptors(struct generation *generation)
{
    const struct serve_options *options = &generation->config.options;
    /* An eighth for files nobody is using. Of what is left a quarter for files in use, for pipes, and for the loop. */
    uint64_t descriptors = descriptors_raise_limit();
    uint64_t files = descriptors / 8 < 8192 ? descriptors / 8 : 8192;
    uint64_t connections = (descriptors - files) / 4 * 3;
    if (options->max_connections > 0) {
        uint64_t each = (options->max_connections + generation->workers - 1) / generation->workers;
        if (each < connections)
            connections = each;
    }
    generation->open_files_each = files < 1 ? 1 : (unsigned)files;
    generation->connections_each = connections < 1 ? 1 : (unsigned)connections;
}

static int check_pacing(const struct generation *generation, struct failure *failure)
{
    const struct http_sites *sites = &generation->config.sites;
    bool wanted = generation->config.options.rate_per_address > 0;
    for (unsigned i = 0; i < sites->count; i++)
        wanted |= sites->items[i].rate > 0;
    int r = wanted ? allowance_probe() : 0;
    return r < 0
               ? failure_set(failure, r,
                             "rate, rate-per-address: this kernel does not pace sockets (SO_MAX_PACING_RATE: %s, %s); "
                             "leave them out, or use one that does",
                             text_errno_meaning(r), text_errno_name(r))
               : 0;
}

/* said: somebody did say where. If not, whoever passed a socket has. */
static int listen_anew(const char *where, bool said, const char *congestion, int *ret_listener,
                       struct address *ret_address, struct failure *failure)
{
    const struct listen_options options = {.congestion = congestion};
    struct address address;
    int fd = said ? -1 : manager_socket(NULL);
    int r = fd < 0 ? address_parse(where, &address, failure) : 0;
    if (fd < 0 && r == 0)
        r = manager_listen(&address, &options, &fd, failure);
    else if (congestion != NULL && r == 0)
        r = address_set_congestion(fd, congestion, failure);
    *ret_listener = fd;
    if (r < 0)
        return r;
    /* Accepted sockets inherit it. The library says itself where more follows. */
    int on = 1;
    if (setsockopt(*ret_listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0)
        return failure_set(failure, -errno, "TCP_NODELAY: %s", text_errno_meaning(errno));
    r = address_of_socket(*ret_listener, ret_address);
    return r < 0 ? failure_set(failure, r, "getsockname: %s", text_errno_meaning(r)) : 0;
}

static bool same_text(const char *one, const char *other)
{
    return one == NULL || other == NULL ? one == other : strcmp(one, other) == 0;
}

/* One more descriptor of a socket. */
static int share_socket(int fd, int *ret_fd, struct failure *failure)
{
    *ret_fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return *ret_fd >= 0 ? 0
                        : failure_set(failure, -errno, "one more descriptor of a listening socket: %s",
                                      text_errno_meaning(errno));
}

static int start_listening(struct generation *generation, const struct generation *previous, struct failure *failure)
{
    const struct serve_options *options = &generation->config.options;
    if (previous == NULL || !same_text(previous->config.options.listen, options->listen))
        return listen_anew(options->listen, generation->config.says_where, options->congestion, &generation->listener,
                           &generation->address, failure);
    generation->has_previous_listener = true;
    generation->address = previous->address;
    return share_socket(previous->listener, &generation->listener, failure);
}

static int start_tls_listener(struct generation *generation, const struct generation *previous, struct failure *failure)
{
    const struct serve_options *options = &generation->config.options;
    if (options->tls.listen == NULL)
        return 0;
    if (previous == NULL || !same_text(previous->config.options.tls.listen, options->tls.listen))
        return listen_anew(options->tls.listen, true, options->congestion, &generation->tls_listener,
                           &generation->tls_address, failure);
    generation->has_previous_tls_listener = true;
    generation->tls_address = previous->tls_address;
    return share_socket(previous->tls_listener, &generation->tls_listener, failure);
}

static void say_of_tls(void *context, const char *line)
{
    (void)context;
    fprintf(stderr, PROGRAM ": %s\n", line);
}

static int start_admin_listener(struct generation *generation, const struct generation *previous,
                                struct failure *failure)
{
    const struct serve_options *options = &generation->config.options;
    if (options->admin == NULL)
        return 0;
    if (previous == NULL || !same_text(previous->config.options.admin, options->admin))
        return admin_listen("admin", options->admin, options->admin_anywhere, &generation->admin, failure);
    generation->has_previous_admin = true;
    return share_socket(previous->admin, &generation->admin, failure);
}

/* Frees what was not handed over; NULL is fine. Sockets that nobody else uses end to listen only when the last process
 * closes them. */
static void generation_free(struct generation *generation)
{
    if (generation == NULL)
        return;
    rotated_log_close(&generation->access_log);
    identity_free(&generation->identity);
    close_fd(generation->listener);
    close_fd(generation->tls_listener);
    tls_context_free(generation->tls);
    close_fd(generation->admin);
    config_free(&generation->config);
    free(generation);
}

/* Takes config, also on failure. What can be checked without changing anything outside; previous is NULL at the start.
 * tickets: made when they are first wanted. Returns 0 or a negative errno. */
static int generation_prepare(struct serve_config *config, const struct generation *previous,
                              struct tls_tickets **tickets, struct generation **ret_generation, struct failure *failure)
{
    struct generation *generation = calloc(1, sizeof *generation);
    if (generation == NULL) {
        config_free(config);
        return failure_set(failure, -ENOMEM, "out of memory");
    }
    *generation = (struct generation){.config = *config, .listener = -1, .tls_listener = -1, .admin = -1};
    const struct serve_options *options = &generation->config.options;
    int r = 0;
    if (previous != NULL && options->loop == previous->config.options.loop &&
        options->sqpoll == previous->config.options.sqpoll)
        generation->loop = previous->loop;
    else
        r = loop_choose(options->loop, options->sqpoll, &generation->loop, failure);
    if (r == 0 && options->congestion != NULL)
        r = address_congestion_check(options->congestion, failure);
    if (r == 0)
        r = check_pacing(generation, failure);
    if (r == 0)
        r = identity_find(options->user, options->group, &generation->identity, failure);
    if (r == 0 && serve_tls_is_wanted(&options->tls))
        r = serve_tls_load(&options->tls, &generation->config.certificates, tickets, options->verbose, say_of_tls, NULL,
                           &generation->tls, failure);
    if (r < 0) {
        generation_free(generation);
        return r;
    }
    generation->workers = options->workers > 0 ? (unsigned)options->workers : supervisor_cpu_count();
    share_descriptors(generation);
    *ret_generation = generation;
    return 0;
}

/* The rest: sockets and logs. Returns 0 or a negative errno. */
static int generation_open(struct generation *generation, const struct generation *previous, struct failure *failure)
{
    const struct serve_options *options = &generation->config.options;
    /* A socket that was passed for TLS is known by its address; the other one takes the first that is left. */
    int r = start_tls_listener(generation, previous, failure);
    if (r == 0)
        r = start_listening(generation, previous, failure);
    if (r == 0)
        r = start_admin_listener(generation, previous, failure);
    if (r < 0)
        return r;
    return rotated_log_open(options->access_log, (enum log_format)options->access_log_format,
                            previous != NULL ? &previous->access_log : NULL, &generation->access_log, failure);
}

/* ---- Process --------------------------------------------------------------------------------------------------- */

struct serve {
    int argc;
    char **argv;
    struct generation *current;
    struct generation *fallback; /* during a reload: what was current before */
    struct supervisor_options supervisor;
    struct log *error_log;       /* standard error; the receipts' too */
    struct tally tally;          /* of struct http_totals */
    struct tls_tickets *tickets; /* of all generations; NULL: nobody has wanted them */
    struct shared clients;       /* connections by address; made when some limit is set */
    unsigned reloads;            /* that were done */
};

static bool counts_addresses(const struct generation *generation)
{
    const struct serve_options *options = &generation->config.options;
    return options->connections_per_address > 0 || options->rate_per_address > 0;
}

/* Workers that were forked before do not count. Once made they stay: two generations count together. */
static int make_tables(struct serve *serve, const struct generation *generation, struct failure *failure)
{
    if (!counts_addresses(generation) || serve->clients.count > 0)
        return 0;
    int r = clients_create(tally_slots(&serve->tally), generation->connections_each, &serve->clients);
    return r < 0 ? failure_set(failure, r, "memory to count the connections of addresses: %s", text_errno_meaning(r))
                 : 0;
}

/* ---- Worker ---------------------------------------------------------------------------------------------------- */

struct serving {
    struct serve *serve;
    struct worker *worker;
    struct sluice_loop *loop;
    struct http_server *server;
    struct admin *admin; /* or NULL */
    bool server_drained, admin_drained;
};

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

static void on_turn(void *context)
{
    struct serving *serving = context;
    http_server_turn(serving->server);
    flush_logs(serving->serve);
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
    return confine_worker_saying(&options, PROGRAM, saying, serve->error_log);
}

static int fail(struct serve *serve, const char *what, int code)
{
    log_say(serve->error_log, PROGRAM ": worker: %s: %s (%s)", what, text_errno_meaning(code), text_errno_name(code));
    return EXIT_CODE_FAILED;
}

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

static void describe(const struct generation *generation, char *buffer, size_t size)
{
    char urls[2 * ADDRESS_TEXT_MAX + 40], tls_url[ADDRESS_TEXT_MAX + 16];
    const struct http_sites *sites = &generation->config.sites;
    bool replaced = serve_tls_replaces_http(&generation->config.options.tls);
    address_format_url(replaced ? "https" : "http", &generation->address, urls, sizeof urls);
    if (generation->tls_listener >= 0) {
        size_t length = strlen(urls);
        address_format_url("https", &generation->tls_address, tls_url, sizeof tls_url);
        snprintf(urls + length, sizeof urls - length, " and %s", tls_url);
    }
    if (sites->count == 1)
        snprintf(buffer, size, "%s at %s", sites->items[0].directory, urls);
    else
        snprintf(buffer, size, "%u sites at %s", sites->count, urls);
}

static void write_hosts(void *context, FILE *out, const char *separator)
{
    const struct serve *serve = context;
    http_sites_write_json(out, separator, &serve->current->config.sites);
}

static void write_status(void *context, FILE *out)
{
    const struct serving *serving = context;
    struct serve *serve = serving->serve;
    char about[PATH_MAX + 2 * ADDRESS_TEXT_MAX + 64];
    const struct generation *generation = serve->current;
    struct serve_options in_force = generation->config.options; /* with what was left to sluice */
    in_force.workers = generation->workers;
    in_force.max_connections = (uint64_t)generation->workers * generation->connections_each;
    describe(generation, about, sizeof about);
    const struct status status = {
        .program = PROGRAM,
        .about = about,
        .options = option_table,
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
        .listener = serving->serve->current->admin,
        .write_metrics = write_metrics,
        .write_status = write_status,
        .any_host = serving->serve->current->config.options.admin_anywhere,
        .drained = on_admin_drained,
        .context = serving,
    };
    return options.listener < 0 ? 0 : admin_start(&options, &serving->admin);
}

/* The supervisor, who looked before, may everything. */
static bool may_enter(struct serve *serve)
{
    const struct http_sites *sites = &serve->current->config.sites;
    for (unsigned i = 0; i < sites->count; i++) {
        if (faccessat(sites->items[i].root, ".", X_OK, AT_EACCESS) == 0)
            continue;
        log_say(serve->error_log, PROGRAM ": user %s may not enter %s: %s (%s)", serve->current->config.options.user,
                sites->items[i].directory, text_errno_meaning(errno), text_errno_name(errno));
        return false;
    }
    return true;
}

static int worker_main(void *context, struct worker *worker)
{
    struct serve *serve = context;
    const struct generation *generation = serve->current;
    const struct serve_options *given = &generation->config.options;
    struct serving serving = {.serve = serve, .worker = worker};
    struct sluice_watch *watch = NULL;

    serve->reloads = worker->reloads;
    generation_free(serve->fallback); /* its descriptors would be kept for nothing */
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
        .clients = counts_addresses(generation) ? &clients : NULL,
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
        .https_port = given->tls.redirect ? address_port(&generation->tls_address) : 0,
        .access_log = generation->access_log.log,
        .receipt_log = given->receipts ? serve->error_log : NULL,
        .error_log = serve->error_log,
        .totals = tally_begin(&serve->tally, worker),
        .timed = generation->admin >= 0,
        .drained = on_drained,
        .context = &serving,
    };
    r = http_server_new(&options, &serving.server);
    if (r == 0)
        r = sluice_loop_watch(serving.loop, worker->control_fd, on_control, &serving, &watch);
    if (r == 0)
        r = http_server_listen(serving.server, generation->listener,
                               serve_tls_replaces_http(&given->tls) ? generation->tls : NULL);
    if (r == 0 && generation->tls_listener >= 0)
        r = http_server_listen(serving.server, generation->tls_listener, generation->tls);
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
    sluice_watch_free(watch);
    sluice_loop_free(serving.loop);
    flush_logs(serve);
    return EXIT_CODE_DONE;
}

/* ---- Supervisor ------------------------------------------------------------------------------------------------ */

static void on_ready(void *context)
{
    const struct serve *serve = context;
    const struct generation *generation = serve->current;
    char about[PATH_MAX + 2 * ADDRESS_TEXT_MAX + 64], url[ADDRESS_TEXT_MAX + 16];
    struct address admin;
    describe(generation, about, sizeof about);
    printf("sluice: serving %s (%u worker%s)\n", about, generation->workers, generation->workers == 1 ? "" : "s");
    if (generation->admin >= 0 && address_of_socket(generation->admin, &admin) == 0) {
        address_format_url("http", &admin, url, sizeof url);
        printf("sluice: live page, status and metrics at %s\n", url);
    }
    fflush(stdout);
}

/* What the supervisor has to know of the configuration in force. */
static void tell_supervisor(struct serve *serve)
{
    serve->supervisor.identity = &serve->current->identity;
    serve->supervisor.drain_ms = serve->current->config.options.drain_timeout;
    serve->supervisor.retire_ms = serve->current->config.options.retire_timeout;
}

/* The configuration stays, but its log may have been renamed. */
static void reopen_log(struct serve *serve)
{
    struct failure failure;
    if (rotated_log_reopen(&serve->current->access_log, &failure) < 0)
        log_say(serve->error_log, PROGRAM ": %s; going on in the old file", failure.text);
}

static int on_reload(void *context, unsigned *workers)
{
    struct serve *serve = context;
    struct serve_config config;
    struct generation *next = NULL;
    struct failure failure = {0};
    int r = config_again(serve->argc, serve->argv, &config, &failure);
    if (r == 0)
        r = generation_prepare(&config, serve->current, &serve->tickets, &next, &failure);
    if (r == 0)
        r = generation_open(next, serve->current, &failure);
    if (r == 0)
        r = make_tables(serve, next, &failure);
    if (r < 0) {
        generation_free(next);
        log_say(serve->error_log, PROGRAM ": not reloaded, all goes on as before: %s", failure.text);
        reopen_log(serve);
        return r;
    }
    *workers = next->workers;
    serve->fallback = serve->current;
    serve->current = next;
    tell_supervisor(serve);
    return 0;
}

/* Of the sockets that the other generation does not use; workers that drain, or were forked for nothing, have them
 * open, too. Of two generations the later one knows what it took over. */
static void end_listening(const struct generation *generation, const struct generation *later)
{
    if (!later->has_previous_listener)
        manager_shut_down(generation->listener);
    if (generation->tls_listener >= 0 && !later->has_previous_tls_listener)
        manager_shut_down(generation->tls_listener);
    if (generation->admin >= 0 && !later->has_previous_admin)
        manager_shut_down(generation->admin);
}

static void on_reloaded(void *context, bool done)
{
    struct serve *serve = context;
    struct generation *next = serve->current, *before = serve->fallback;
    serve->fallback = NULL;
    if (!done) {
        serve->current = before;
        tell_supervisor(serve);
        reopen_log(serve);
    }
    end_listening(done ? before : next, next);
    generation_free(done ? before : next);
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
    const struct generation *generations[] = {serve->current, serve->fallback};
    /* As long as it listens, the kernel would take connections that nobody accepts. */
    for (size_t i = 0; i < 2 && generations[i] != NULL; i++) {
        manager_shut_down(generations[i]->listener);
        if (generations[i]->tls_listener >= 0)
            manager_shut_down(generations[i]->tls_listener);
    }
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
            PROGRAM ": totals: %llu connections (%llu open), %llu requests, responses: %llu 2xx, %llu 3xx, "
                    "%llu 4xx, %llu 5xx, %llu unsent; %llu cut short, %llu timeouts, %llu accept failures, %llu over "
                    "the limit of their address, %llu without a PROXY header",
            (unsigned long long)sum.connections, (unsigned long long)sum.open, (unsigned long long)sum.requests,
            (unsigned long long)sum.responses[2], (unsigned long long)sum.responses[3],
            (unsigned long long)sum.responses[4], (unsigned long long)sum.responses[5],
            (unsigned long long)sum.responses[0], (unsigned long long)sum.truncated, (unsigned long long)sum.timeouts,
            (unsigned long long)sum.accept_failures, (unsigned long long)sum.over_limit,
            (unsigned long long)sum.unintroduced);
    if (serve->current->tls != NULL)
        log_say(serve->error_log, PROGRAM ": TLS: %llu handshakes, %llu of them resumed; %llu failed",
                (unsigned long long)sum.tls_handshakes, (unsigned long long)sum.tls_resumed,
                (unsigned long long)sum.tls_failures);
    sluice_receipt_format(&sum.receipt, receipt, sizeof receipt);
    log_say(serve->error_log, PROGRAM ": receipt: %s", receipt);
}

/* Of the supervisor's own. */
static void on_say(void *context, const char *line)
{
    struct serve *serve = context;
    log_say(serve->error_log, PROGRAM ": %s", line);
}

static void on_say_whole(void *context, const char *line)
{
    struct serve *serve = context;
    log_say(serve->error_log, "%s", line);
}

/* ---- Starting -------------------------------------------------------------------------------------------------- */

static int run(struct serve *serve)
{
    struct failure failure = {0};
    const struct serve_options *options = &serve->current->config.options;
    const bool verbose = options->verbose;
    int r = manager_take_sockets(&failure);
    if (r >= 0)
        r = generation_open(serve->current, NULL, &failure);
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
        fprintf(stderr, PROGRAM ": %s\n", failure.text);
        return EXIT_CODE_FAILED;
    }
    if (verbose)
        loop_say(PROGRAM, &serve->current->loop);

    manager_close_rest(PROGRAM);
    serve->supervisor = (struct supervisor_options){
        .name = PROGRAM,
        .workers = serve->current->workers,
        .slots = tally_slots(&serve->tally),
        .context = serve,
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
    tell_supervisor(serve);
    /* The supervisor is not confined: the workers learn into memory that they share with it. */
    crossovers_begin(PROGRAM, true, verbose ? on_say_whole : NULL, serve);
    int code = supervisor_run(&serve->supervisor);
    crossovers_end(PROGRAM, verbose ? on_say_whole : NULL, serve);
    if (serve->current->config.options.receipts)
        on_report(serve);
    return code;
}

/* Returns -1 to go on, or the exit code: help, version, wrong usage, --check-config, all printed. */
static int generation_from_arguments(int argc, char **argv, struct tls_tickets **tickets,
                                     struct generation **ret_generation)
{
    const char *given[OPTION_COUNT];
    const struct command_spec command = command_for(given);
    struct serve_config config = {0};
    struct positionals positionals;
    struct failure failure;
    CLEANUP_FREE char **copy = copy_arguments(argc, argv, &failure);
    if (copy == NULL) {
        fprintf(stderr, "%s\n", failure.text);
        return EXIT_CODE_FAILED;
    }
    int code = options_parse_or_exit_code(&command, argc, copy, &config.options, &positionals);
    if (code >= 0) {
        config_free(&config);
        return code;
    }
    const char *path = config.options.config;
    bool only_checked = config.options.check_config;
    int result = finish_config(&config, &command, &positionals, &failure);
    if (result < 0) {
        fprintf(stderr, "%s\n", failure.text);
        if (path == NULL)
            options_print_hint(&command, stderr);
        config_free(&config);
        return result == -EINVAL ? EXIT_CODE_USAGE : EXIT_CODE_FAILED;
    }
    if (generation_prepare(&config, NULL, tickets, ret_generation, &failure) < 0) {
        fprintf(stderr, PROGRAM ": %s\n", failure.text);
        return EXIT_CODE_FAILED;
    }
    if (!only_checked)
        return -1;
    unsigned sites = (*ret_generation)->config.sites.count;
    printf("configuration%s%s is fine: %u site%s\n", path != NULL ? " " : "", path != NULL ? path : "", sites,
           sites == 1 ? "" : "s");
    generation_free(*ret_generation);
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
        generation_free(serve.current);
    }
    tls_tickets_free(serve.tickets);
    return code;
}
