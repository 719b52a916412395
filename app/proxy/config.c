/* SPDX-License-Identifier: MIT
 *
 * One table of options is the command line and the file, in which a key is an option's name. A service is made of its
 * options in the same way whichever they came from; only the words that say where a mistake is differ (struct
 * config_origin).
 */
#include "proxy/config.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "service/config_file.h"
#include "service/json.h"
#include "service/loop.h"
#include "service/options.h"
#include "service/preflight.h"
#include "service/supervisor.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROGRAM "sluice proxy"
#define SERVICE_NAME_MAX 48
#define TIMEOUT_MAX (24u * 3600 * 1000)
#define KEEPALIVE_MAX 32767000u /* ms; TCP_KEEPIDLE takes 15 bits of seconds */

struct service_options {
    struct option_list listen, to;
    const char *congestion, *check_path, *check_host, *mirror;
    uint64_t max_connections, max_queue, retries, keepalive, hello_max, rise, fall;
    uint64_t connect_timeout, queue_timeout, idle_timeout, half_close_timeout, hello_timeout;
    uint64_t check_interval, check_timeout;
    unsigned balance, route, check, send_proxy, mirror_direction;
    bool accept_proxy;
};

struct proxy_options {
    const char *config, *metrics, *admin, *log;
    const char *user, *group;
    uint64_t workers, max_total, drain_timeout, retire_timeout;
    unsigned loop;
    bool check_config, sqpoll, receipts, confine, verbose, admin_anywhere;
    struct service_options service; /* last: an option from here on is a service's, one before it the process's */
};

#define PROCESS(name) offsetof(struct proxy_options, name)
#define SERVICE(name) offsetof(struct proxy_options, service.name)

/* In the order of their enumerations. */
static const char *const balances[] = {"round-robin", "least-connections", "source", "consistent", NULL};
static const char *const checks[] = {"none", "tcp", "http", NULL};
static const char *const header_versions[] = {"none", "v1", "v2", NULL};
static const char *const directions[] = {"requests", "responses", "both",
                                         NULL}; /* + 1: the bits of enum proxy_mirror */
static const char *const routes[] = {"auto", "copy", "splice", NULL};

static const struct option_spec option_table[] = {
    {.type = OPTION_HEADING, .help = "Service"},
    {"listen", 'l', "ADDR:PORT", "where to accept connections, or unix:/path; may be given several times", OPTION_LIST,
     SERVICE(listen), .default_text = NULL},
    {"to", 't', "ADDR:PORT[,...]",
     "a server, or unix:/path; once for each. What may follow, parted by commas: weight=N (default 1; 0: no new "
     "connections), backup (used when no other is up), max=N (connections at a time), sni=NAME and alpn=NAME (takes "
     "only TLS clients that ask for this name or protocol; may be repeated)",
     OPTION_LIST, SERVICE(to), .default_text = NULL},
    {"balance", 0, "HOW",
     "which server gets a connection: the next one, the one with the fewest, or one that belongs to the client's "
     "address; consistent: only a lost server's clients get another",
     OPTION_CHOICE, SERVICE(balance), .default_text = "round-robin", .choices = balances},
    {"retries", 0, "N", "further servers to try when one cannot be reached", OPTION_UNSIGNED, SERVICE(retries),
     .default_text = "2", .min = 0, .max = PROXY_SERVERS_MAX},
    {"max-connections", 0, "N",
     "clients of the service at a time; further ones wait as long as --queue-timeout says. Default: no limit of its "
     "own",
     OPTION_UNSIGNED, SERVICE(max_connections), .min = 1, .max = INT_MAX},
    {"max-queue", 0, "N", "clients that may wait for a place at a server; further ones are refused. Default: no limit",
     OPTION_UNSIGNED, SERVICE(max_queue), .min = 1, .max = INT_MAX},
    {"route", 0, "NAME", "how bytes are moved; auto: copied when they come in small messages, spliced in bulk",
     OPTION_CHOICE, SERVICE(route), .default_text = "auto", .choices = routes},
    {"congestion", 0, "NAME", "TCP congestion control on both sides (cubic, bbr, ...); default: the host's",
     OPTION_TEXT, SERVICE(congestion), .default_text = NULL},

    {.type = OPTION_HEADING, .help = "Timeouts"},
    {"connect-timeout", 0, "TIME", "for each attempt to connect to a server", OPTION_DURATION, SERVICE(connect_timeout),
     .default_text = "5s", .min = 1, .max = TIMEOUT_MAX},
    {"queue-timeout", 0, "TIME", "for a client that waits for its turn", OPTION_DURATION, SERVICE(queue_timeout),
     .default_text = "30s", .min = 1, .max = TIMEOUT_MAX},
    {"idle-timeout", 0, "TIME", "for a connection on which nothing moves in either direction; 0: none", OPTION_DURATION,
     SERVICE(idle_timeout), .default_text = "10min", .min = 0, .max = 7 * (uint64_t)TIMEOUT_MAX},
    {"half-close-timeout", 0, "TIME",
     "for a connection of which one direction has ended and in the other nothing moves; 0: as for idle ones",
     OPTION_DURATION, SERVICE(half_close_timeout), .default_text = "1min", .min = 0, .max = TIMEOUT_MAX},
    {"hello-timeout", 0, "TIME", "for a client's PROXY header and TLS ClientHello, where they are read",
     OPTION_DURATION, SERVICE(hello_timeout), .default_text = "5s", .min = 1, .max = TIMEOUT_MAX},
    {"keepalive", 0, "TIME", "of silence before the kernel asks whether a peer still lives, on both sides; 0: never",
     OPTION_DURATION, SERVICE(keepalive), .default_text = "1min", .min = 0, .max = KEEPALIVE_MAX},

    {.type = OPTION_HEADING, .help = "Health checks"},
    {"check", 0, "HOW", "whether a server is up: not asked; it accepts a connection; it answers GET with 2xx or 3xx",
     OPTION_CHOICE, SERVICE(check), .default_text = "none", .choices = checks},
    {"check-path", 0, "PATH", "what a check by HTTP asks for", OPTION_TEXT, SERVICE(check_path), .default_text = "/"},
    {"check-host", 0, "NAME", "the Host of a check by HTTP; default: the server's address as written", OPTION_TEXT,
     SERVICE(check_host), .default_text = NULL},
    {"check-interval", 0, "TIME", "between checks of one server", OPTION_DURATION, SERVICE(check_interval),
     .default_text = "2s", .min = 10, .max = TIMEOUT_MAX},
    {"check-timeout", 0, "TIME", "for a check", OPTION_DURATION, SERVICE(check_timeout), .default_text = "2s", .min = 1,
     .max = TIMEOUT_MAX},
    {"rise", 0, "N", "checks in a row that must succeed before a server that was down is up", OPTION_UNSIGNED,
     SERVICE(rise), .default_text = "2", .min = 1, .max = 1000},
    {"fall", 0, "N", "checks in a row that must fail before a server is down", OPTION_UNSIGNED, SERVICE(fall),
     .default_text = "3", .min = 1, .max = 1000},

    {.type = OPTION_HEADING, .help = "PROXY protocol and TLS"},
    {"accept-proxy", 0, NULL,
     "clients begin with a PROXY header, version 1 or 2, that says who they are; those without one are refused",
     OPTION_FLAG, SERVICE(accept_proxy), .default_text = NULL},
    {"send-proxy", 0, "VERSION", "begin connections to servers with a PROXY header", OPTION_CHOICE, SERVICE(send_proxy),
     .default_text = "none", .choices = header_versions},
    {"hello-max", 0, "SIZE", "the longest TLS ClientHello or PROXY header that is read", OPTION_SIZE,
     SERVICE(hello_max), .default_text = "16K", .min = 512, .max = 1 << 20},

    {.type = OPTION_HEADING, .help = "Mirror"},
    {"mirror", 0, "ADDR:PORT",
     "send what flows also to this server, or unix:/path, which cannot slow the connection down", OPTION_TEXT,
     SERVICE(mirror), .default_text = NULL},
    {"mirror-direction", 0, "WHICH",
     "what is mirrored: what clients send, what servers send, or each on a connection "
     "of its own",
     OPTION_CHOICE, SERVICE(mirror_direction), .default_text = "requests", .choices = directions},

    {.type = OPTION_HEADING, .help = "Process"},
    {"config", 'c', "FILE", "read the services, and what else is not given here, from FILE; SIGHUP reads it again",
     OPTION_TEXT, PROCESS(config), .default_text = NULL},
    {"check-config", 0, NULL, "read the configuration, say whether it is right, and end", OPTION_FLAG,
     PROCESS(check_config), .default_text = NULL},
    {"workers", 'w', "N", "worker processes; default: one for each CPU that sluice may use", OPTION_UNSIGNED,
     PROCESS(workers), .min = 1, .max = 1024},
    {"max-total", 0, "N",
     "clients at a time of all services together; further ones wait to be accepted. Default: what the limit of "
     "open files permits",
     OPTION_UNSIGNED, PROCESS(max_total), .min = 1, .max = INT_MAX},
    {"drain-timeout", 0, "TIME", "for connections that there are when sluice is told to end", OPTION_DURATION,
     PROCESS(drain_timeout), .default_text = "30s", .min = 1, .max = TIMEOUT_MAX},
    {"retire-timeout", 0, "TIME", "for connections that the old workers have after a reload; 0: as long as they last",
     OPTION_DURATION, PROCESS(retire_timeout), .default_text = "0", .min = 0, .max = 7 * (uint64_t)TIMEOUT_MAX},
    {"loop", 0, "KIND", "what carries everything; auto: whichever is cheaper here", OPTION_CHOICE, PROCESS(loop),
     .default_text = "auto", .choices = loop_kinds},
    {"sqpoll", 0, NULL,
     "with --loop io_uring: the kernel looks for work by itself, which keeps a CPU busy for each worker", OPTION_FLAG,
     PROCESS(sqpoll), .default_text = NULL},

    {.type = OPTION_HEADING, .help = "Reporting"},
    {"metrics", 0, "ADDR:PORT", "answer GET /metrics there with the counters, for Prometheus. Default: nowhere",
     OPTION_ADDRESS, PROCESS(metrics), .default_text = NULL},
    {"admin", 0, "ADDR:PORT",
     "the same, and the counters and more as JSON (/status.json), and a live page (/). Default: nowhere",
     OPTION_ADDRESS, PROCESS(admin), .default_text = NULL},
    {"admin-anywhere", 0, NULL, "let --admin be any address, and be asked for by any name", OPTION_FLAG,
     PROCESS(admin_anywhere), .default_text = NULL},
    {"log", 0, "PATH", "write a line for every connection at its end; - for standard output. Default: no log",
     OPTION_TEXT, PROCESS(log), .default_text = NULL},
    {"receipts", 0, NULL,
     "print to standard error, for every connection and for all at the end, how the bytes went and which were copied",
     OPTION_FLAG, PROCESS(receipts), .default_text = NULL},
    {"verbose", 'v', NULL, "say how the workers are confined, and whether io_uring is to be had", OPTION_FLAG,
     PROCESS(verbose), .default_text = NULL},

    {.type = OPTION_HEADING, .help = "Security"},
    {"user", 0, "NAME", "whom the workers become, with all of that user's groups, when sluice is started as root",
     OPTION_TEXT, PROCESS(user), .default_text = NULL},
    {"group", 0, "NAME", "their group, instead of the one that --user has", OPTION_TEXT, PROCESS(group),
     .default_text = NULL},
    {"confine", 0, NULL, "take from the workers all rights they do not need; --no-confine for debugging", OPTION_FLAG,
     PROCESS(confine), .default_text = "yes"},
    {.type = OPTION_END},
};
#define OPTION_COUNT (sizeof option_table / sizeof option_table[0])

static const char *const examples[] = {
    "sluice proxy --listen :5432 --to 10.0.0.1:5432 --to 10.0.0.2:5432,backup --check tcp",
    "a database, and another that takes over when it is down",
    "sluice proxy --listen :443 --to 10.0.0.1:443,sni=example.org,sni=*.example.org --to 10.0.0.2:443",
    "TLS passed through: these names to one server, all others to the second",
    "sluice proxy --config /etc/sluice/proxy.conf --check-config",
    "is the file right?",
    NULL,
};

static struct command_spec command_spec(const char **given)
{
    return (struct command_spec){
        .program = PROGRAM,
        .summary = "Pass TCP connections and Unix stream sockets on to servers, without copying what flows in bulk "
                   "through user space. One service on the command line, or any number in a file (--config), where "
                   "the same names are keys; see sluice-proxy(1).",
        .version = sluice_version(),
        .options = option_table,
        .examples = examples,
        .footer = "SIGHUP reads the file again: new workers take new connections, the old ones end with theirs. "
                  "SIGTERM or SIGINT ends it after the connections that there are; SIGUSR1 prints the totals so far.",
        .given = given,
    };
}

/* One more zeroed element at the end of an array; NULL: out of memory. */
static void *append(void *array_member, unsigned *count, size_t size)
{
    void *array;
    memcpy(&array, array_member, sizeof array);
    array = reallocarray(array, *count + 1, size);
    if (array == NULL)
        return NULL;
    memcpy(array_member, &array, sizeof array);
    return memset((char *)array + (*count)++ * size, 0, size);
}

void proxy_config_free(struct proxy_config *config)
{
    for (unsigned i = 0; i < config->service_count; i++) {
        free(config->services[i].listens);
        free(config->services[i].servers);
    }
    free(config->services);
    config_forget(&config->storage);
    *config = (struct proxy_config){0};
}

/* ---- Addresses and servers ------------------------------------------------------------------------------------- */

/* An address that one can connect to. */
static int parse_destination(const char *text, struct address *ret_address, struct failure *failure)
{
    struct address address;
    int result = address_parse(text, &address, failure);
    if (result < 0)
        return result;
    if (address.any.sa_family != AF_UNIX && (address_is_any(&address) || address_port(&address) == 0))
        return failure_set(failure, -EINVAL,
                           "\"%.100s\" is nowhere to connect to; write HOST:PORT, such as 10.0.0.1:5432", text);
    *ret_address = address;
    return 0;
}

static int out_of_memory(struct failure *failure)
{
    failure_set(failure, -ENOMEM, "out of memory");
    return -ENOMEM;
}

static int add_listen(struct proxy_config *config, struct proxy_service *service, const char *text,
                      struct failure *failure)
{
    struct proxy_listen listen;
    int result = address_parse(text, &listen.address, failure);
    if (result < 0)
        return result;
    listen.text = config_keep(&config->storage, text, strlen(text));
    struct proxy_listen *added = append(&service->listens, &service->listen_count, sizeof *added);
    if (added == NULL || listen.text == NULL)
        return out_of_memory(failure);
    *added = listen;
    return 0;
}

static int parse_count(const char *key, const char *value, uint64_t min, uint64_t max, uint64_t *ret_count,
                       struct failure *failure)
{
    uint64_t count;
    if (text_parse_unsigned(value, &count) < 0 || count < min || count > max)
        return failure_set(failure, -EINVAL, "%s takes a number from %llu to %llu, not \"%.60s\"", key,
                           (unsigned long long)min, (unsigned long long)max, value);
    *ret_count = count;
    return 0;
}

/* A host name as in SNI, or "*.name"; in lower case into name. Not an address, which SNI never has (RFC 6066, 3). */
static bool is_host_name(const char *text, char *name)
{
    size_t length = strlen(text), from = strncmp(text, "*.", 2) == 0 ? 2 : 0;
    if (length > from && text[length - 1] == '.')
        length--;
    if (length == from || length > 253 || text[from] == '.')
        return false;
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)text[i];
        if (i >= from && (byte >= 128 || (!isalnum(byte) && strchr("-_.", byte) == NULL)))
            return false;
        name[i] = (char)tolower(byte);
    }
    name[length] = '\0';
    const char *last = strrchr(name, '.');
    last = last != NULL ? last + 1 : name;
    return strstr(name, "..") == NULL && last[strspn(last, "0123456789")] != '\0';
}

static int add_name(struct proxy_config *config, const char *key, const char *value, char **names, unsigned *count,
                    struct failure *failure)
{
    char name[256];
    bool sni = key[0] == 's';
    if (sni && !is_host_name(value, name))
        return failure_set(failure, -EINVAL,
                           "sni takes a host name in ASCII, or *.NAME for all beneath it, not \"%.60s\"", value);
    if (!sni && (*value == '\0' || strlen(value) > 255))
        return failure_set(failure, -EINVAL, "alpn takes a protocol of 1 to 255 bytes, such as h2, not \"%.60s\"",
                           value);
    if (*count == PROXY_NAMES_MAX)
        return failure_set(failure, -EINVAL, "a server has at most %u names by %s%s", PROXY_NAMES_MAX, key,
                           sni ? "; use *.NAME, or another service" : "");
    if (!sni)
        snprintf(name, sizeof name, "%s", value);
    names[*count] = config_keep(&config->storage, name, strlen(name));
    if (names[*count] == NULL)
        return out_of_memory(failure);
    (*count)++;
    return 0;
}

/* "weight=2" of a server. */
static int set_attribute(struct proxy_config *config, struct proxy_server *server, char *attribute,
                         struct failure *failure)
{
    static const char *const known[] = {"weight", "backup", "max", "sni", "alpn", NULL};
    char *value = strchr(attribute, '=');
    if (value != NULL)
        *value++ = '\0';
    if (strcmp(attribute, "backup") == 0) {
        if (value != NULL)
            return failure_set(failure, -EINVAL, "backup takes no value, not even \"%.60s\"", value);
        server->backup = true;
        return 0;
    }
    const char *nearest = options_nearest(attribute, known);
    if (nearest == NULL || strcmp(attribute, nearest) != 0)
        return failure_set(failure, -EINVAL, "\"%.60s\" is nothing that a server has; %s%s%s", attribute,
                           nearest != NULL ? "did you mean " : "it has weight=N, backup, max=N, sni=NAME, alpn=NAME",
                           nearest != NULL ? nearest : "", nearest != NULL ? "?" : "");
    if (value == NULL)
        return failure_set(failure, -EINVAL, "%s needs a value: %s=%s", attribute, attribute,
                           *attribute == 's' || *attribute == 'a' ? "NAME" : "N");
    if (strcmp(attribute, "sni") == 0)
        return add_name(config, attribute, value, server->sni, &server->sni_count, failure);
    if (strcmp(attribute, "alpn") == 0)
        return add_name(config, attribute, value, server->alpn, &server->alpn_count, failure);
    if (strcmp(attribute, "max") == 0)
        return parse_count(attribute, value, 1, INT_MAX, &server->max_connections, failure);
    uint64_t weight = server->weight;
    int result = parse_count(attribute, value, 0, 256, &weight, failure);
    if (result == 0)
        server->weight = (unsigned)weight;
    return result;
}

/* ADDR:PORT[,attribute]..., or ",attribute..." that goes on with the server before. */
static int add_server(struct proxy_config *config, struct proxy_service *service, const char *text,
                      struct failure *failure)
{
    CLEANUP_FREE char *copy = strdup(text);
    if (copy == NULL)
        return out_of_memory(failure);
    char *rest = copy, *name = strsep(&rest, ",");
    name[strcspn(name, " \t")] = '\0'; /* "a:1 , weight=2" */
    struct proxy_server *server;
    if (name[0] == '\0') {
        if (service->server_count == 0 || rest == NULL)
            return failure_set(failure, -EINVAL, "no server; write ADDR:PORT or unix:/path");
        server = &service->servers[service->server_count - 1];
    } else {
        struct address address;
        int result = parse_destination(name, &address, failure);
        if (result < 0)
            return result;
        for (unsigned i = 0; i < service->server_count; i++)
            if (strcmp(service->servers[i].name, name) == 0)
                return failure_set(failure, -EINVAL, "the service has %.100s already; give it a weight instead", name);
        if (service->server_count == PROXY_SERVERS_MAX)
            return failure_set(failure, -EINVAL, "a service has at most %u servers; make another service",
                               PROXY_SERVERS_MAX);
        char *kept = config_keep(&config->storage, name, strlen(name));
        server = append(&service->servers, &service->server_count, sizeof *server);
        if (server == NULL || kept == NULL)
            return out_of_memory(failure);
        *server = (struct proxy_server){.name = kept, .address = address, .weight = 1};
    }
    for (char *attribute; (attribute = strsep(&rest, ",")) != NULL;) {
        attribute += strspn(attribute, " \t");
        attribute[strcspn(attribute, " \t")] = '\0';
        int result = set_attribute(config, server, attribute, failure);
        if (result < 0)
            return result;
    }
    return 0;
}

/* ---- A service ------------------------------------------------------------------------------------------------- */

static bool is_printable(const char *text)
{
    while (*text > ' ' && *text < 127)
        text++;
    return *text == '\0';
}

static int check_listens(const struct proxy_config *config, const struct proxy_service *service,
                         const struct config_origin *origin, struct failure *failure)
{
    for (unsigned i = 0; i < service->listen_count; i++) {
        const struct proxy_listen *listen = &service->listens[i];
        for (const struct proxy_service *other = config->services; other <= service; other++)
            for (unsigned k = 0; k < (other == service ? i : other->listen_count); k++)
                if (address_clashes(&listen->address, &other->listens[k].address))
                    return config_wrong(origin, "listen", -EINVAL, failure, "%.100s is taken by service %s already",
                                        listen->text, other->name);
        for (unsigned k = 0; k < service->server_count; k++) {
            const struct address *server = &service->servers[k].address;
            if (address_is_same(&listen->address, server) ||
                (address_is_any(&listen->address) && address_is_loopback(server) &&
                 address_port(server) == address_port(&listen->address)))
                return config_wrong(origin, "to", -EINVAL, failure,
                                    "%.100s is where this service listens: it would connect to "
                                    "itself",
                                    service->servers[k].name);
        }
    }
    return 0;
}

static int check_servers(struct proxy_service *service, const struct config_origin *origin, struct failure *failure)
{
    bool some = false;
    for (unsigned i = 0; i < service->server_count; i++) {
        some |= service->servers[i].weight > 0;
        service->routes_by_name |= service->servers[i].sni_count + service->servers[i].alpn_count > 0;
    }
    if (!some)
        return config_wrong(origin, "to", -EINVAL, failure,
                            "every server has weight=0, and none would get a connection");
    return 0;
}

static int check_options(const struct service_options *options, const struct config_origin *origin,
                         struct failure *failure)
{
    static const char *const of_http[] = {"check-path", "check-host"};
    struct failure why;
    for (unsigned i = 0; i < 2; i++)
        if (options->check != PROXY_CHECK_HTTP && config_has(origin, of_http[i]))
            return config_wrong(origin, of_http[i], -EINVAL, failure,
                                "this is for checks by HTTP, but check is %s; choose http", checks[options->check]);
    if (options->check_path[0] != '/' || !is_printable(options->check_path))
        return config_wrong(
            origin, "check-path", -EINVAL, failure,
            "\"%.100s\" is no path of a URL; write one that begins with / and has no spaces, such as /health",
            options->check_path);
    if (options->check_host != NULL && (options->check_host[0] == '\0' || !is_printable(options->check_host)))
        return config_wrong(origin, "check-host", -EINVAL, failure,
                            "\"%.100s\" is no host name; write one, such as example.org", options->check_host);
    if (options->mirror == NULL && config_has(origin, "mirror-direction"))
        return config_wrong(origin, "mirror-direction", -EINVAL, failure,
                            "there is no mirror to send it to; write mirror, too");
    if (options->keepalive != 0 && options->keepalive < 1000)
        return config_wrong(origin, "keepalive", -EINVAL, failure,
                            "the kernel counts in seconds: 1s or more, or 0 for never");
    if (options->congestion != NULL) {
        int result = address_congestion_check(options->congestion, &why);
        if (result < 0)
            return config_wrong(origin, "congestion", result, failure, "%.500s", why.text);
    }
    return 0;
}

/* The last of the configuration's services has its listens and servers; the rest is in options. */
static int finish_service(struct proxy_config *config, const struct service_options *options,
                          const struct config_origin *origin, struct failure *failure)
{
    struct proxy_service *service = &config->services[config->service_count - 1];
    struct failure why;
    if (service->listen_count == 0)
        return config_wrong(origin, "listen", -EINVAL, failure,
                            "service %s has none; say where to accept connections: %s", service->name,
                            origin->path != NULL ? "listen = ADDR:PORT" : "--listen ADDR:PORT");
    if (service->server_count == 0)
        return config_wrong(origin, "to", -EINVAL, failure, "service %s has none; name a server: %s", service->name,
                            origin->path != NULL ? "to = ADDR:PORT" : "--to ADDR:PORT");
    int result = check_servers(service, origin, failure);
    if (result == 0)
        result = check_listens(config, service, origin, failure);
    if (result == 0)
        result = check_options(options, origin, failure);
    if (result < 0)
        return result;

    service->balance = (enum proxy_balance)options->balance;
    service->route = (enum sluice_route)sluice_route_by_name(routes[options->route]);
    service->congestion = options->congestion;
    service->max_connections = options->max_connections;
    service->max_queue = options->max_queue;
    service->connect_timeout = (unsigned)options->connect_timeout;
    service->queue_timeout = (unsigned)options->queue_timeout;
    service->idle_timeout = (unsigned)options->idle_timeout;
    service->half_close_timeout = (unsigned)options->half_close_timeout;
    service->hello_timeout = (unsigned)options->hello_timeout;
    service->retries = (unsigned)options->retries;
    service->keepalive = (unsigned)(options->keepalive / 1000);
    service->hello_max = options->hello_max;
    service->check = (enum proxy_check)options->check;
    service->check_path = options->check_path;
    service->check_host = options->check_host;
    service->check_interval = (unsigned)options->check_interval;
    service->check_timeout = (unsigned)options->check_timeout;
    service->rise = (unsigned)options->rise;
    service->fall = (unsigned)options->fall;
    service->accept_proxy = options->accept_proxy;
    service->send_proxy = (enum proxy_header_version)options->send_proxy;
    service->mirror_what = options->mirror_direction + 1;
    if (options->mirror == NULL)
        return 0;
    service->mirrors = true;
    result = parse_destination(options->mirror, &service->mirror.address, &why);
    if (result < 0)
        return config_wrong(origin, "mirror", result, failure, "%.500s", why.text);
    service->mirror.text = config_keep(&config->storage, options->mirror, strlen(options->mirror));
    return service->mirror.text != NULL ? 0 : out_of_memory(failure);
}

static int begin_service(struct proxy_config *config, const char *name, struct failure *failure)
{
    char *kept = config_keep(&config->storage, name, strlen(name));
    struct proxy_service *service = append(&config->services, &config->service_count, sizeof *service);
    if (service == NULL || kept == NULL)
        return out_of_memory(failure);
    service->name = kept;
    return 0;
}

/* ---- The command line ------------------------------------------------------------------------------------------ */

static int check_process(const struct proxy_options *options, const struct config_origin *origin,
                         struct failure *failure)
{
    const struct preflight named = {.admin = options->admin,
                                    .admin_anywhere = options->admin_anywhere,
                                    .user = options->user,
                                    .group = options->group,
                                    .log_option = "log",
                                    .log = options->log};
    return preflight(&named, origin, failure);
}

/* The command line's one service. */
static int take_service(struct proxy_config *config, const struct proxy_options *options, const char **given,
                        struct failure *failure)
{
    const struct command_spec command = command_spec(given);
    const struct config_origin origin = {.command = &command};
    struct failure why;
    int result = check_process(options, &origin, failure);
    if (result == 0)
        result = begin_service(config, "proxy", failure);
    struct proxy_service *service = config->services;
    const struct option_list *listen = &options->service.listen, *to = &options->service.to;
    for (unsigned i = 0; result == 0 && i < listen->count; i++)
        if ((result = add_listen(config, service, listen->items[i], &why)) < 0)
            config_wrong(&origin, "listen", result, failure, "%.500s", why.text);
    for (unsigned i = 0; result == 0 && i < to->count; i++)
        if ((result = add_server(config, service, to->items[i], &why)) < 0)
            config_wrong(&origin, "to", result, failure, "%.500s", why.text);
    return result < 0 ? result : finish_service(config, &options->service, &origin, failure);
}

/* ---- The file -------------------------------------------------------------------------------------------------- */

/* config_reader's three. */
static int begin_section(void *context, const char *name, struct failure *why)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    struct proxy_config *config = context;
    if (strlen(name) > SERVICE_NAME_MAX)
        return failure_set(why, -EINVAL, "the service's name is too long; it may have %u bytes", SERVICE_NAME_MAX);
    if (name[0] == '\0' || name[strspn(name, allowed)] != '\0')
        return failure_set(why, -EINVAL, "[%s]: a service's name has letters, digits and - _ . only", name);
    for (unsigned i = 0; i < config->service_count; i++)
        if (strcmp(config->services[i].name, name) == 0)
            return failure_set(why, -EINVAL, "there is a service [%s] already; choose another name", name);
    return begin_service(config, name, why);
}

static int take_address(void *context, bool in_section, const struct option_spec *option, const char *value,
                        struct failure *why)
{
    struct proxy_config *config = context;
    struct failure reason;
    if (option->type != OPTION_LIST)
        return 0;
    if (!in_section)
        return failure_set(why, -EINVAL, "%s belongs to a service; write it under [NAME]", option->name);
    struct proxy_service *service = &config->services[config->service_count - 1];
    int result = strcmp(option->name, "to") == 0 ? add_server(config, service, value, &reason)
                                                 : add_listen(config, service, value, &reason);
    return result < 0 ? failure_set(why, result, "%s: %.500s", option->name, reason.text) : 1;
}

static int finish_section(void *context, void *options, const struct config_origin *origin, struct failure *failure)
{
    const struct proxy_options *given = options;
    return finish_service(context, &given->service, origin, failure);
}

/* ---- Both ------------------------------------------------------------------------------------------------------ */

/* The command line's options of the process count more than the file's; those of a service have no place beside it. */
static int take_file(struct proxy_config *config, struct proxy_options *options, const char **given,
                     struct failure *failure)
{
    const struct command_spec command = command_spec(given);
    const struct config_reader reader = {
        .path = options->config,
        .command = &command,
        .size = sizeof *options,
        .section_offset = offsetof(struct proxy_options, service),
        .storage = &config->storage,
        .context = config,
        .section = "service",
        .grammar = "KEY = VALUE, [SERVICE], or a comment that begins with #",
        .section_needs = "listen and to",
        .long_line = "go on with a server's attributes in the next line, indented and beginning with a comma",
        .begin = begin_section,
        .take = take_address,
        .finish = finish_section,
    };
    unsigned lines[OPTION_COUNT];
    for (size_t i = 0; i < OPTION_COUNT - 1; i++)
        if (given[i] != NULL && option_table[i].offset >= reader.section_offset)
            return failure_set(failure, -EINVAL,
                               PROGRAM ": --%s is a service's, and with --config services are in the file: write "
                                       "%s there, or leave --config out",
                               option_table[i].name, option_table[i].name);
    struct config_origin origin;
    int result = config_file_read(&reader, options, lines, &origin, failure);
    if (result == 0)
        result = check_process(options, &origin, failure);
    if (result == 0 && config->service_count == 0)
        result = failure_set(
            failure, -EINVAL,
            "%s: there is no service; write [NAME], and below it listen = ADDR:PORT and to = ADDR:PORT", reader.path);
    return result;
}

/* options: as they were given. */
static int make_config(struct proxy_options *options, const char **given, struct proxy_config *ret_config,
                       struct failure *failure)
{
    struct proxy_config config = {.path = options->config};
    int result = options->config != NULL ? take_file(&config, options, given, failure)
                                         : take_service(&config, options, given, failure);
    if (result == 0 && options->sqpoll && options->loop != SLUICE_LOOP_IO_URING)
        result = failure_set(failure, -EINVAL, PROGRAM ": --sqpoll needs --loop io_uring");
    if (result < 0) {
        proxy_config_free(&config);
        return result;
    }
    config.workers = options->workers > 0 ? (unsigned)options->workers : supervisor_cpu_count();
    config.max_connections = options->max_total;
    config.drain_timeout = (unsigned)options->drain_timeout;
    config.retire_timeout = (unsigned)options->retire_timeout;
    config.loop = (enum sluice_loop_kind)options->loop;
    config.metrics = options->metrics;
    config.admin = options->admin;
    config.admin_anywhere = options->admin_anywhere;
    config.log = options->log;
    config.receipts = options->receipts;
    config.user = options->user;
    config.group = options->group;
    config.confine = options->confine;
    config.verbose = options->verbose;
    config.sqpoll = options->sqpoll;
    *ret_config = config;
    return 0;
}

static void write_text(FILE *out, const char *name, const char *text)
{
    fprintf(out, ", \"%s\": ", name);
    json_write_string(out, text);
}

static void write_service(FILE *out, const struct proxy_service *service)
{
    char *text = NULL, *title = NULL;
    size_t length;
    FILE *line = open_memstream(&text, &length);
    if (line == NULL || asprintf(&title, "service %s", service->name) < 0) {
        if (line != NULL)
            fclose(line);
        free(text);
        return;
    }
    for (unsigned i = 0; i < service->listen_count; i++)
        fprintf(line, "%s%s", i == 0 ? "" : ", ", service->listens[i].text);
    fputs(" to ", line);
    for (unsigned i = 0; i < service->server_count; i++)
        fprintf(line, "%s%s", i == 0 ? "" : ", ", service->servers[i].name);
    fprintf(line, "; balance %s", balances[service->balance]);
    fprintf(line, "; check %s", checks[service->check]);
    fprintf(line, "; route %s", sluice_route_name(service->route));
    if (service->accept_proxy)
        fputs("; accept-proxy", line);
    if (service->mirrors)
        fprintf(line, "; mirror %s", service->mirror.text);
    fputs(",", out);
    json_write_string(out, title);
    fputs(": ", out);
    json_write_string(out, fclose(line) == 0 ? text : NULL);
    free(text);
    free(title);
}

void proxy_config_write_json(FILE *out, const char *separator, const struct proxy_config *config)
{
    fprintf(out,
            "%s\"workers\": %u, \"max-total\": %" PRIu64 ", \"drain-timeout\": %u.%03u, \"retire-timeout\": %u.%03u",
            separator, config->workers, config->max_connections, config->drain_timeout / 1000,
            config->drain_timeout % 1000, config->retire_timeout / 1000, config->retire_timeout % 1000);
    write_text(out, "config", config->path);
    write_text(out, "loop", sluice_loop_kind_name(config->loop));
    write_text(out, "metrics", config->metrics);
    write_text(out, "admin", config->admin);
    write_text(out, "log", config->log);
    fprintf(out, ", \"receipts\": %s, \"confine\": %s", config->receipts ? "true" : "false",
            config->confine ? "true" : "false");
    for (unsigned i = 0; i < config->service_count; i++)
        write_service(out, &config->services[i]);
}

static void print_fine(const struct proxy_config *config)
{
    unsigned servers = 0;
    for (unsigned i = 0; i < config->service_count; i++)
        servers += config->services[i].server_count;
    printf("configuration%s%s is fine: %u service%s, %u server%s\n", config->path != NULL ? " " : "",
           config->path != NULL ? config->path : "", config->service_count, config->service_count == 1 ? "" : "s",
           servers, servers == 1 ? "" : "s");
}

int proxy_config_from_arguments(int argc, char **argv, struct proxy_config *ret_config)
{
    const char *given[OPTION_COUNT];
    const struct command_spec command = command_spec(given);
    struct proxy_options options = {0};
    struct positionals none;
    struct failure failure;
    int code = options_parse_or_exit_code(&command, argc, argv, &options, &none);
    if (code < 0) {
        bool from_file = options.config != NULL;
        int result = make_config(&options, given, ret_config, &failure);
        if (result < 0) {
            fprintf(stderr, "%s\n", failure.text);
            if (!from_file)
                options_print_hint(&command, stderr);
            code = result == -EINVAL ? EXIT_CODE_USAGE : EXIT_CODE_FAILED;
        } else if (options.check_config) {
            print_fine(ret_config);
            proxy_config_free(ret_config);
            code = fflush(stdout) == 0 ? EXIT_CODE_DONE : EXIT_CODE_FAILED;
        }
    }
    options_free_lists(&command, &options);
    return code;
}

int proxy_config_again(int argc, char **argv, struct proxy_config *ret_config, struct failure *failure)
{
    const char *given[OPTION_COUNT];
    const struct command_spec command = command_spec(given);
    struct proxy_options options = {0};
    struct positionals none;
    int result = options_parse(&command, argc, argv, &options, &none, failure);
    if (result == 0)
        result = make_config(&options, given, ret_config, failure);
    options_free_lists(&command, &options);
    return result;
}
