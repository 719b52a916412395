/* SPDX-License-Identifier: MIT */
#include "serve/config.h"
#include "base/cleanup.h"
#include "service/address.h"
#include "service/log.h"
#include "service/loop.h"
#include "service/preflight.h"
#include "service/routes.h"
#include "service/status.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MEMBER(name) offsetof(struct serve_options, name)
#define SITE(name) offsetof(struct serve_options, site.name)
#define TIMEOUT_MAX (24u * 3600 * 1000)
#define RATE_MIN 1024
#define TICKETS_MAX (7 * (uint64_t)TIMEOUT_MAX) /* RFC 8446, 4.6.1 */

enum { UNKNOWN_HOST_SERVE, UNKNOWN_HOST_REFUSE };
static const char *const unknown_hosts[] = {"serve", "refuse", NULL};

static const char *const *route_names(void)
{
    static const char *names[ROUTES_NAMES];
    routes_add_names(SLUICE_END_FILE, SLUICE_END_TCP, 1, names);
    return names;
}

const struct option_spec serve_option_table[] = {
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
     MEMBER(route), .default_text = "auto", .known = route_names},
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
#define OPTION_COUNT (sizeof serve_option_table / sizeof serve_option_table[0])

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
        .program = SERVE_PROGRAM,
        .positionals = "[DIR]",
        .positional_max = 1,
        .summary = "Serve the files beneath DIR (default: the current directory) over HTTP/1.1, without copying them "
                   "through user space. Files and directories whose names begin with a dot are hidden. What is not "
                   "given on the command line may stand in a file (--config), where the same names are keys; see "
                   "sluice-serve(1).",
        .version = sluice_version(),
        .options = serve_option_table,
        .examples = examples,
        .footer = "SIGHUP reads the file again and opens the logs anew: new workers take new connections, the old ones "
                  "end with theirs. SIGTERM or SIGINT ends it after the responses under way; SIGUSR1 prints the totals "
                  "so far.",
        .given = given,
    };
}

/* ---- What options and sections say together ---------------------------------------------------------------------- */

static int begin_config(struct serve_config *config, struct failure *failure)
{
    *config = (struct serve_config){.given = calloc(OPTION_COUNT, sizeof *config->given),
                                    .lines = calloc(OPTION_COUNT, sizeof *config->lines)};
    config->command = command_for(config->given);
    return config->given != NULL && config->lines != NULL
               ? 0
               : failure_set(failure, -ENOMEM, SERVE_PROGRAM ": out of memory");
}

void serve_config_write_hosts(FILE *out, const char *separator, const struct serve_config *config)
{
    const struct http_sites *sites = &config->sites;
    for (unsigned i = 0; i < sites->names.count; i++) {
        const struct host_name *name = &sites->names.items[i];
        struct site_options options = config->sections[name->site];
        options.root = sites->items[name->site].directory;
        fprintf(out, "%s\"host %s\": {", separator, name->text);
        status_write_options(out, serve_option_table, offsetof(struct serve_options, site), &options);
        fputc('}', out);
        separator = ", ";
    }
}

void serve_config_free(struct serve_config *config)
{
    http_sites_free(&config->sites);
    for (unsigned i = 0; i < config->section_count; i++) {
        option_list_free(&config->sections[i].cache);
        option_list_free(&config->sections[i].header);
        option_list_free(&config->sections[i].certificates);
    }
    free(config->sections);
    free(config->trusted);
    option_list_free(&config->certificates);
    options_free_lists(&config->command, &config->options);
    config_forget(&config->storage);
    free(config->given);
    free(config->lines);
    *config = (struct serve_config){0};
}

/* Of what stands before the first section. */
static struct config_origin origin_of(const struct serve_config *config)
{
    return (struct config_origin){
        .command = &config->command, .path = config->path, .lines = config->lines, .storage = config->storage};
}

int serve_config_wrong(const struct serve_config *config, const char *key, const char *value, int code,
                       const struct failure *why, struct failure *failure)
{
    const struct config_origin origin = origin_of(config);
    return config_wrong_value(&origin, key, value, code, failure, "%.600s", why->text);
}

static int read_trusted(struct serve_config *config, const struct config_origin *origin, struct failure *failure)
{
    const struct option_list *list = &config->options.trust_forwarded;
    struct failure why;
    if (list->count == 0)
        return 0;
    config->trusted = calloc(list->count, sizeof *config->trusted);
    if (config->trusted == NULL)
        return failure_set(failure, -ENOMEM, SERVE_PROGRAM ": out of memory");
    for (unsigned i = 0; i < list->count; i++)
        if (address_prefix_parse(list->items[i], &config->trusted[i], &why) < 0)
            return config_wrong_value(origin, "trust-forwarded", list->items[i], -EINVAL, failure, "%.600s", why.text);
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
        return failure_set(failure, -ENOMEM, SERVE_PROGRAM ": out of memory");
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
    struct serve_options *section = options;
    int result = add_certificates_for_all(config, failure);
    if (result == 0) /* a section's list begins with those for all */
        result =
            add_certificates(config, &section->site.certificates, config->options.site.certificates.count, failure);
    if (result < 0)
        return result;
    result = serve_sites_add(&config->sites, &section->site, &config->options.site, origin, failure);
    if (result < 0)
        return result;
    struct site_options *larger = realloc(config->sections, config->sites.count * sizeof *larger);
    if (larger == NULL)
        return failure_set(failure, -ENOMEM, SERVE_PROGRAM ": out of memory");
    config->sections = larger;
    larger[config->section_count++] = section->site;
    section->site.cache = section->site.header = section->site.certificates = (struct option_list){0}; /* kept */
    return 0;
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

/* Where to listen: names are looked up, and no socket may keep another one from its address. */
static int check_places(const struct serve_config *config, const struct config_origin *origin, struct failure *failure)
{
    const struct {
        const char *option, *where;
        bool said; /* else it may be a socket that is passed */
    } places[] = {{"listen", config->options.listen, config->says_where},
                  {"listen-tls", config->options.tls.listen, true},
                  {"admin", config->options.admin, true}};
    enum { PLACES = sizeof places / sizeof places[0] };
    struct address addresses[PLACES];
    struct failure why;
    for (size_t i = 0; i < PLACES; i++) {
        if (places[i].where == NULL)
            continue;
        int result = address_parse(places[i].where, &addresses[i], &why);
        if (result < 0)
            return config_wrong(origin, places[i].option, result, failure, "%.600s", why.text);
        for (size_t j = 0; j < i; j++)
            if (places[j].where != NULL && places[j].said && address_clashes(&addresses[i], &addresses[j]))
                return config_wrong(origin, places[i].option, -EINVAL, failure, "%.200s is taken by %s %.200s",
                                    places[i].where, places[j].option, places[j].where);
    }
    return 0;
}

/* What the process's options name: is it there? */
static int check_process(const struct serve_config *config, const struct config_origin *origin, struct failure *failure)
{
    const struct serve_options *options = &config->options;
    const struct preflight named = {.admin = options->admin,
                                    .admin_anywhere = options->admin_anywhere,
                                    .user = options->user,
                                    .group = options->group,
                                    .log_option = "access-log",
                                    .log = options->access_log};
    struct failure why;
    int result = check_places(config, origin, failure);
    if (result == 0 && options->congestion != NULL &&
        (result = address_congestion_check(options->congestion, &why)) < 0)
        config_wrong(origin, "congestion", result, failure, "%.600s", why.text);
    return result == 0 ? preflight(&named, origin, failure) : result;
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
    if (result == 0)
        result = add_site_for_all(config, origin, failure);
    return result < 0 ? result : check_process(config, origin, failure);
}

/* options: as they were parsed, given and positionals, too. */
static int finish_config(struct serve_config *config, const struct positionals *positionals, struct failure *failure)
{
    struct serve_options *options = &config->options;
    if (positionals->count > 0) {
        if (options->site.root != NULL)
            return failure_set(failure, -EINVAL, SERVE_PROGRAM ": two directories, %.200s and --root %.200s: give one",
                               positionals->items[0], options->site.root);
        options->site.root = positionals->items[0];
    }
    config->path = options->config; /* options become what is in the file, before it has been read */
    if (config->path != NULL) {
        const char *root = options->site.root;
        const struct config_reader reader = {
            .path = config->path,
            .command = &config->command,
            .size = sizeof *options,
            .section_offset = offsetof(struct serve_options, site),
            .storage = &config->storage,
            .context = config,
            .section = "site",
            .grammar = "KEY = VALUE, [host NAME...], or a comment that begins with #",
            .begin = begin_site,
            .finish = finish_site,
        };
        int result = config_file_read(&reader, options, config->lines, NULL, failure);
        if (result < 0)
            return result;
        if (root != NULL)
            options->site.root = root;
    } else if (options->site.root == NULL) {
        options->site.root = ".";
    }
    const struct config_origin origin = origin_of(config);
    return check_config(config, &origin, failure);
}

/* The same arguments may be parsed again: options_parse changes their order. */
static char **copy_arguments(int argc, char **argv, struct failure *failure)
{
    char **copy = calloc((size_t)argc + 1, sizeof *copy);
    if (copy == NULL)
        failure_set(failure, -ENOMEM, SERVE_PROGRAM ": out of memory");
    else if (argc > 0)
        memcpy(copy, argv, (size_t)argc * sizeof *copy);
    return copy;
}

int serve_config_from_arguments(int argc, char **argv, struct serve_config *ret_config)
{
    struct serve_config config;
    struct positionals positionals;
    struct failure failure;
    CLEANUP_FREE char **copy = copy_arguments(argc, argv, &failure);
    if (copy == NULL || begin_config(&config, &failure) < 0) {
        fprintf(stderr, "%s\n", failure.text);
        if (copy != NULL)
            serve_config_free(&config);
        return EXIT_CODE_FAILED;
    }
    int code = options_parse_or_exit_code(&config.command, argc, copy, &config.options, &positionals);
    if (code >= 0) {
        serve_config_free(&config);
        return code;
    }
    int result = finish_config(&config, &positionals, &failure);
    if (result < 0) {
        fprintf(stderr, "%s\n", failure.text);
        if (config.path == NULL)
            options_print_hint(&config.command, stderr);
        serve_config_free(&config);
        return result == -EINVAL ? EXIT_CODE_USAGE : EXIT_CODE_FAILED;
    }
    *ret_config = config;
    return -1;
}

int serve_config_again(int argc, char **argv, struct serve_config *ret_config, struct failure *failure)
{
    struct serve_config config;
    struct positionals positionals;
    CLEANUP_FREE char **copy = copy_arguments(argc, argv, failure);
    if (copy == NULL)
        return -ENOMEM;
    int result = begin_config(&config, failure);
    if (result == 0)
        result = options_parse(&config.command, argc, copy, &config.options, &positionals, failure);
    if (result == 0)
        result = finish_config(&config, &positionals, failure);
    if (result < 0)
        serve_config_free(&config);
    else
        *ret_config = config;
    return result;
}
