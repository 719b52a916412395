/* SPDX-License-Identifier: MIT
 *
 * One table of options is the command line and the file, in which a key is an option's name. A service is made of its
 * options in the same way whichever they came from; only the words that say where a mistake is differ (struct origin).
 *
 * libinih knows lines, comments and sections, but says neither where it is nor that a section begins. So we hand it the
 * lines, one at a time, and look at them as they go by.
 */
#include "proxy/config.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "service/options.h"
#include "service/supervisor.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <ini.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROGRAM "sluice proxy"
#define GLOBAL "global"
#define SERVICE_NAME_MAX 48 /* inih cuts longer ones without a word */
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
    const char *config, *metrics, *log;
    uint64_t workers, max_total, drain_timeout, retire_timeout;
    unsigned loop;
    bool check_config, sqpoll, receipts, confine, verbose;
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
static const char *const loops[] = {"auto", "epoll", "io_uring", NULL};

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
     .default_text = "auto", .choices = loops},
    {"sqpoll", 0, NULL,
     "with --loop io_uring: the kernel looks for work by itself, which keeps a CPU busy for each worker", OPTION_FLAG,
     PROCESS(sqpoll), .default_text = NULL},

    {.type = OPTION_HEADING, .help = "Reporting"},
    {"metrics", 0, "ADDR:PORT", "answer GET /metrics there with the counters, for Prometheus. Default: nowhere",
     OPTION_ADDRESS, PROCESS(metrics), .default_text = NULL},
    {"log", 0, "PATH", "write a line for every connection at its end; - for standard output. Default: no log",
     OPTION_TEXT, PROCESS(log), .default_text = NULL},
    {"receipts", 0, NULL,
     "print to standard error, for every connection and for all at the end, how the bytes went and which were copied",
     OPTION_FLAG, PROCESS(receipts), .default_text = NULL},
    {"verbose", 'v', NULL, "say how the workers are confined, and whether io_uring is to be had", OPTION_FLAG,
     PROCESS(verbose), .default_text = NULL},

    {.type = OPTION_HEADING, .help = "Security"},
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

static bool is_service_option(const struct option_spec *option)
{
    return option->offset >= offsetof(struct proxy_options, service);
}

static size_t option_index(const char *name)
{
    size_t i = 0;
    while (i < OPTION_COUNT - 1 && (option_table[i].name == NULL || strcmp(option_table[i].name, name) != 0))
        i++;
    return i; /* of OPTION_END when there is none */
}

/* ---- Storage --------------------------------------------------------------------------------------------------- */

struct storage {
    struct storage *next;
    char text[];
};

/* A copy of text that lives as long as the configuration; NULL: out of memory. */
static char *keep(struct proxy_config *config, const char *text, size_t length)
{
    struct storage *storage = malloc(sizeof *storage + length + 1);
    if (storage == NULL)
        return NULL;
    storage->next = config->storage;
    config->storage = storage;
    memcpy(storage->text, text, length);
    storage->text[length] = '\0';
    return storage->text;
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
    for (struct storage *storage = config->storage, *next; storage != NULL; storage = next) {
        next = storage->next;
        free(storage);
    }
    *config = (struct proxy_config){0};
}

/* ---- Where a mistake is ---------------------------------------------------------------------------------------- */

struct origin {
    const char *path;   /* of the file; NULL: the command line */
    unsigned line;      /* of the section */
    unsigned *lines;    /* of each option; 0: it does not stand in the section */
    const char **given; /* on the command line: each option's value */
};

static bool stands_there(const struct origin *origin, const char *key)
{
    size_t i = option_index(key);
    return origin->path != NULL ? origin->lines[i] != 0 : origin->given[i] != NULL;
}

/* "proxy.conf:12: check-path: ..." or "sluice proxy: --check-path: ..." */
__attribute__((format(printf, 5, 6))) static int wrong(const struct origin *origin, const char *key, int code,
                                                       struct failure *failure, const char *format, ...)
{
    char text[sizeof failure->text - 64];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (origin->path == NULL)
        return failure_set(failure, code, PROGRAM ": --%s: %s", key, text);
    unsigned line = origin->lines[option_index(key)];
    return failure_set(failure, code, "%s:%u: %s: %s", origin->path, line != 0 ? line : origin->line, key, text);
}

/* ---- Addresses and servers ------------------------------------------------------------------------------------- */

static bool is_any(const struct address *address)
{
    return address->any.sa_family == AF_INET6  ? IN6_IS_ADDR_UNSPECIFIED(&address->v6.sin6_addr)
           : address->any.sa_family == AF_INET ? address->v4.sin_addr.s_addr == htonl(INADDR_ANY)
                                               : false;
}

static bool is_loopback(const struct address *address)
{
    return address->any.sa_family == AF_INET6  ? IN6_IS_ADDR_LOOPBACK(&address->v6.sin6_addr)
           : address->any.sa_family == AF_INET ? ntohl(address->v4.sin_addr.s_addr) >> 24 == IN_LOOPBACKNET
                                               : false;
}

static unsigned port_of(const struct address *address)
{
    return address->any.sa_family == AF_INET6  ? ntohs(address->v6.sin6_port)
           : address->any.sa_family == AF_INET ? ntohs(address->v4.sin_port)
                                               : 0;
}

static bool same_address(const struct address *one, const struct address *other)
{
    return one->length == other->length && memcmp(&one->any, &other->any, one->length) == 0;
}

/* An address that one can connect to. */
static int parse_destination(const char *text, struct address *ret_address, struct failure *failure)
{
    struct address address;
    int result = address_parse(text, &address, failure);
    if (result < 0)
        return result;
    if (address.any.sa_family != AF_UNIX && (is_any(&address) || port_of(&address) == 0))
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
    listen.text = keep(config, text, strlen(text));
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

/* A host name as in SNI, or "*.name"; in lower case into name. */
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
    return true;
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
    names[*count] = keep(config, name, strlen(name));
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
        char *kept = keep(config, name, strlen(name));
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
                         const struct origin *origin, struct failure *failure)
{
    for (unsigned i = 0; i < service->listen_count; i++) {
        const struct proxy_listen *listen = &service->listens[i];
        if (listen->address.any.sa_family != AF_UNIX && port_of(&listen->address) == 0)
            continue; /* another port each time */
        for (const struct proxy_service *other = config->services; other <= service; other++)
            for (unsigned k = 0; k < (other == service ? i : other->listen_count); k++)
                if (same_address(&listen->address, &other->listens[k].address))
                    return wrong(origin, "listen", -EINVAL, failure, "%.100s is taken by service %s already",
                                 listen->text, other->name);
        for (unsigned k = 0; k < service->server_count; k++) {
            const struct address *server = &service->servers[k].address;
            if (same_address(&listen->address, server) ||
                (is_any(&listen->address) && is_loopback(server) && port_of(server) == port_of(&listen->address)))
                return wrong(origin, "to", -EINVAL, failure,
                             "%.100s is where this service listens: it would connect to "
                             "itself",
                             service->servers[k].name);
        }
    }
    return 0;
}

static int check_servers(struct proxy_service *service, const struct origin *origin, struct failure *failure)
{
    bool some = false;
    for (unsigned i = 0; i < service->server_count; i++) {
        some |= service->servers[i].weight > 0;
        service->routes_by_name |= service->servers[i].sni_count + service->servers[i].alpn_count > 0;
    }
    if (!some)
        return wrong(origin, "to", -EINVAL, failure, "every server has weight=0, and none would get a connection");
    return 0;
}

static int check_options(const struct service_options *options, const struct origin *origin, struct failure *failure)
{
    static const char *const of_http[] = {"check-path", "check-host"};
    struct failure why;
    for (unsigned i = 0; i < 2; i++)
        if (options->check != PROXY_CHECK_HTTP && stands_there(origin, of_http[i]))
            return wrong(origin, of_http[i], -EINVAL, failure,
                         "this is for checks by HTTP, but check is %s; choose http", checks[options->check]);
    if (options->check_path[0] != '/' || !is_printable(options->check_path))
        return wrong(origin, "check-path", -EINVAL, failure,
                     "\"%.100s\" is no path of a URL; write one that begins with / and has no spaces, such as /health",
                     options->check_path);
    if (options->check_host != NULL && (options->check_host[0] == '\0' || !is_printable(options->check_host)))
        return wrong(origin, "check-host", -EINVAL, failure,
                     "\"%.100s\" is no host name; write one, such as example.org", options->check_host);
    if (options->mirror == NULL && stands_there(origin, "mirror-direction"))
        return wrong(origin, "mirror-direction", -EINVAL, failure,
                     "there is no mirror to send it to; write mirror, too");
    if (options->keepalive != 0 && options->keepalive < 1000)
        return wrong(origin, "keepalive", -EINVAL, failure, "the kernel counts in seconds: 1s or more, or 0 for never");
    if (options->congestion != NULL) {
        int result = address_congestion_check(options->congestion, &why);
        if (result < 0)
            return wrong(origin, "congestion", result, failure, "%.500s", why.text);
    }
    return 0;
}

/* The last of the configuration's services has its listens and servers; the rest is in options. */
static int finish_service(struct proxy_config *config, const struct service_options *options,
                          const struct origin *origin, struct failure *failure)
{
    struct proxy_service *service = &config->services[config->service_count - 1];
    struct failure why;
    if (service->listen_count == 0)
        return wrong(origin, "listen", -EINVAL, failure, "service %s has none; say where to accept connections: %s",
                     service->name, origin->path != NULL ? "listen = ADDR:PORT" : "--listen ADDR:PORT");
    if (service->server_count == 0)
        return wrong(origin, "to", -EINVAL, failure, "service %s has none; name a server: %s", service->name,
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
        return wrong(origin, "mirror", result, failure, "%.500s", why.text);
    service->mirror.text = keep(config, options->mirror, strlen(options->mirror));
    return service->mirror.text != NULL ? 0 : out_of_memory(failure);
}

static int begin_service(struct proxy_config *config, const char *name, struct failure *failure)
{
    char *kept = keep(config, name, strlen(name));
    struct proxy_service *service = append(&config->services, &config->service_count, sizeof *service);
    if (service == NULL || kept == NULL)
        return out_of_memory(failure);
    service->name = kept;
    return 0;
}

/* ---- The command line ------------------------------------------------------------------------------------------ */

/* The command line's one service. */
static int take_service(struct proxy_config *config, const struct service_options *options, const char **given,
                        struct failure *failure)
{
    const struct origin origin = {.given = given};
    struct failure why;
    int result = begin_service(config, "proxy", failure);
    struct proxy_service *service = config->services;
    for (unsigned i = 0; result == 0 && i < options->listen.count; i++)
        if ((result = add_listen(config, service, options->listen.items[i], &why)) < 0)
            wrong(&origin, "listen", result, failure, "%.500s", why.text);
    for (unsigned i = 0; result == 0 && i < options->to.count; i++)
        if ((result = add_server(config, service, options->to.items[i], &why)) < 0)
            wrong(&origin, "to", result, failure, "%.500s", why.text);
    return result < 0 ? result : finish_service(config, options, &origin, failure);
}

/* ---- The file -------------------------------------------------------------------------------------------------- */

struct reading {
    const char *path;
    struct proxy_config *config;
    struct proxy_options *defaults; /* the process's options, and those that services begin with */
    struct proxy_options options;   /* of the service that is read */
    struct failure *failure;
    unsigned failed_line; /* 0: none has */
    int result;

    FILE *stream;
    char *line;
    size_t room;
    unsigned number; /* of the line that is read */
    unsigned header; /* of the last "[NAME]", while none of its keys was seen; 0: some was */
    char section[SERVICE_NAME_MAX + 1];
    struct origin origin;                /* of the service that is read */
    unsigned lines[OPTION_COUNT];        /* of its keys */
    unsigned global_lines[OPTION_COUNT]; /* of the process's keys */
};

__attribute__((format(printf, 4, 5))) static int fail(struct reading *reading, unsigned line, int code,
                                                      const char *format, ...)
{
    char text[sizeof reading->failure->text - 64];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    reading->failed_line = line;
    return reading->result = failure_set(reading->failure, code, "%s:%u: %s", reading->path, line, text);
}

/* fgets for inih. */
static char *next_line(char *buffer, int size, void *context)
{
    struct reading *reading = context;
    if (reading->result < 0)
        return NULL;
    ssize_t length = getline(&reading->line, &reading->room, reading->stream);
    if (length < 0) {
        if (ferror(reading->stream))
            reading->result = failure_set(reading->failure, -errno, PROGRAM ": cannot read %.300s: %s (%s)",
                                          reading->path, text_errno_meaning(errno), text_errno_name(errno));
        return NULL;
    }
    reading->number++;
    if (strlen(reading->line) != (size_t)length) {
        fail(reading, reading->number, -EINVAL, "this is no text: it has a NUL byte");
        return NULL;
    }
    if (length >= size) {
        fail(reading, reading->number, -EINVAL,
             "the line is longer than %d bytes; go on with a server's attributes in the next line, indented and "
             "beginning with a comma",
             size - 1);
        return NULL;
    }
    /* An indented "[" goes on with the value before: an IPv6 address. */
    if (reading->line[0] == '[' && strncmp(reading->line, "[" GLOBAL "]", strlen("[" GLOBAL "]")) != 0) {
        if (reading->header != 0) {
            fail(reading, reading->header, -EINVAL, "this section is empty; it needs listen and to");
            return NULL;
        }
        reading->header = reading->number;
    }
    memcpy(buffer, reading->line, (size_t)length + 1);
    return buffer;
}

static int finish_section(struct reading *reading)
{
    if (reading->section[0] == '\0')
        return 0;
    int result = finish_service(reading->config, &reading->options.service, &reading->origin, reading->failure);
    if (result < 0) {
        reading->result = result;
        reading->failed_line = reading->origin.line;
    }
    return result;
}

static int begin_section(struct reading *reading, const char *name)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    if (finish_section(reading) < 0)
        return reading->result;
    unsigned line = reading->header != 0 ? reading->header : reading->number;
    if (strlen(name) > SERVICE_NAME_MAX)
        return fail(reading, line, -EINVAL, "the service's name is too long; it may have %u bytes", SERVICE_NAME_MAX);
    if (name[strspn(name, allowed)] != '\0')
        return fail(reading, line, -EINVAL, "[%s]: a service's name has letters, digits and - _ . only", name);
    for (unsigned i = 0; i < reading->config->service_count; i++)
        if (strcmp(reading->config->services[i].name, name) == 0)
            return fail(reading, line, -EINVAL, "there is a service [%s] already; choose another name", name);
    if (begin_service(reading->config, name, reading->failure) < 0)
        return reading->result = -ENOMEM;
    snprintf(reading->section, sizeof reading->section, "%s", name);
    memset(reading->lines, 0, sizeof reading->lines);
    reading->options = *reading->defaults;
    reading->origin = (struct origin){.path = reading->path, .line = line, .lines = reading->lines};
    reading->header = 0;
    return 0;
}

static int take_key(struct reading *reading, bool global, const char *key, const char *value)
{
    char where[sizeof reading->failure->text / 2];
    struct proxy_service *service = global ? NULL : &reading->config->services[reading->config->service_count - 1];
    size_t i = option_index(key);
    const struct option_spec *option = &option_table[i];
    unsigned *lines = global ? reading->global_lines : reading->lines;
    struct failure why;
    int result;

    if (strcmp(key, "config") == 0 || strcmp(key, "check-config") == 0)
        return fail(reading, reading->number, -EINVAL, "%s is for the command line", key);
    if (option->type == OPTION_LIST && global)
        return fail(reading, reading->number, -EINVAL, "%s belongs to a service; write it under [NAME]", key);
    if (option->type != OPTION_END && !global && !is_service_option(option))
        return fail(reading, reading->number, -EINVAL, "%s belongs to the process; write it before the first service",
                    key);
    if (option->type != OPTION_END && *value == '\0')
        return fail(reading, reading->number, -EINVAL, "%s needs a value: %s = %s", key, key,
                    option->argument != NULL ? option->argument : "yes");
    if (option->type != OPTION_LIST && lines[i] != 0)
        return fail(reading, reading->number, -EINVAL,
                    "%s was given before, in line %u (an indented line goes on with the key above it)", key, lines[i]);
    lines[i] = reading->number;
    if (option->type == OPTION_LIST) {
        result = strcmp(key, "to") == 0 ? add_server(reading->config, service, value, &why)
                                        : add_listen(reading->config, service, value, &why);
        return result < 0 ? fail(reading, reading->number, result, "%s: %.500s", key, why.text) : 0;
    }

    const char *kept = keep(reading->config, value, strlen(value));
    const struct command_spec command = command_spec(NULL);
    snprintf(where, sizeof where, "%s:%u", reading->path, reading->number);
    result = kept == NULL ? out_of_memory(reading->failure)
                          : options_set(&command, key, kept, global ? reading->defaults : &reading->options, where,
                                        reading->failure);
    if (result < 0) {
        reading->result = result == -ENOENT ? -EINVAL : result;
        reading->failed_line = reading->number;
    }
    return result;
}

/* inih's handler. */
static int on_key(void *context, const char *section, const char *key, const char *value)
{
    struct reading *reading = context;
    bool global = section[0] == '\0' || strcmp(section, GLOBAL) == 0;
    if (reading->result < 0)
        return 0;
    if (global && reading->section[0] != '\0') {
        fail(reading, reading->number, -EINVAL, "[" GLOBAL "] must stand before the services");
        return 0;
    }
    if (!global && (reading->header != 0 || strcmp(section, reading->section) != 0) &&
        begin_section(reading, section) < 0)
        return 0;
    return take_key(reading, global, key, value) == 0;
}

static int read_stream(struct reading *reading)
{
    int line = ini_parse_stream(next_line, reading, on_key, reading);
    /* inih goes on behind what it does not understand, so that another mistake may have been found since. */
    if (line > 0 && (reading->result == 0 || (unsigned)line < reading->failed_line))
        return fail(reading, (unsigned)line, -EINVAL,
                    "this is not understood; write KEY = VALUE, [SERVICE], or a comment that begins with #");
    if (reading->result < 0)
        return reading->result;
    if (line < 0)
        return out_of_memory(reading->failure);
    if (reading->header != 0)
        return fail(reading, reading->header, -EINVAL, "this section is empty; it needs listen and to");
    if (reading->section[0] == '\0')
        return failure_set(reading->failure, -EINVAL,
                           "%s: there is no service; write [NAME], and below it listen = ADDR:PORT and to = ADDR:PORT",
                           reading->path);
    return finish_section(reading);
}

static int read_file(const char *path, struct proxy_config *config, struct proxy_options *defaults,
                     struct failure *failure)
{
    struct reading reading = {.path = path, .config = config, .defaults = defaults, .failure = failure};
    reading.stream = fopen(path, "re");
    if (reading.stream == NULL)
        return failure_set(failure, -errno, PROGRAM ": cannot read %.300s: %s (%s)", path, text_errno_meaning(errno),
                           text_errno_name(errno));
    int result = read_stream(&reading);
    free(reading.line);
    fclose(reading.stream);
    return result;
}

/* ---- Both ------------------------------------------------------------------------------------------------------ */

/* The command line's options of the process count more than the file's; those of a service have no place beside it. */
static int take_file(struct proxy_config *config, struct proxy_options *options, const char **given,
                     struct failure *failure)
{
    const struct command_spec command = command_spec(NULL);
    for (size_t i = 0; i < OPTION_COUNT - 1; i++)
        if (given[i] != NULL && is_service_option(&option_table[i]))
            return failure_set(failure, -EINVAL,
                               PROGRAM ": --%s is a service's, and with --config services are in the file: write "
                                       "%s there, or leave --config out",
                               option_table[i].name, option_table[i].name);
    const char *path = options->config;
    struct positionals none;
    char *no_arguments[] = {NULL};
    int result = options_parse(&command, 0, no_arguments, options, &none, failure); /* the defaults again */
    if (result == 0)
        result = read_file(path, config, options, failure);
    for (size_t i = 0; result == 0 && i < OPTION_COUNT - 1; i++)
        if (given[i] != NULL)
            result = options_set(&command, option_table[i].name, given[i], options, PROGRAM, failure);
    return result;
}

/* options: as they were given. */
static int make_config(struct proxy_options *options, const char **given, struct proxy_config *ret_config,
                       struct failure *failure)
{
    struct proxy_config config = {0};
    int result = options->config != NULL ? take_file(&config, options, given, failure)
                                         : take_service(&config, &options->service, given, failure);
    if (result == 0 && options->sqpoll && strcmp(loops[options->loop], "io_uring") != 0)
        result = failure_set(failure, -EINVAL, PROGRAM ": --sqpoll needs --loop io_uring");
    if (result < 0) {
        proxy_config_free(&config);
        return result;
    }
    config.workers = options->workers > 0 ? (unsigned)options->workers : supervisor_cpu_count();
    config.max_connections = options->max_total;
    config.drain_timeout = (unsigned)options->drain_timeout;
    config.retire_timeout = (unsigned)options->retire_timeout;
    config.loop = loops[options->loop];
    config.metrics = options->metrics;
    config.log = options->log;
    config.receipts = options->receipts;
    config.confine = options->confine;
    config.verbose = options->verbose;
    config.sqpoll = options->sqpoll;
    config.path = options->config;
    *ret_config = config;
    return 0;
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

static void free_lists(struct proxy_options *options)
{
    option_list_free(&options->service.listen);
    option_list_free(&options->service.to);
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
        int result = make_config(&options, given, ret_config, &failure);
        if (result < 0) {
            fprintf(stderr, "%s\n", failure.text);
            if (given[option_index("config")] == NULL)
                options_print_hint(&command, stderr);
            code = result == -EINVAL ? EXIT_CODE_USAGE : EXIT_CODE_FAILED;
        } else if (options.check_config) {
            print_fine(ret_config);
            proxy_config_free(ret_config);
            code = fflush(stdout) == 0 ? EXIT_CODE_DONE : EXIT_CODE_FAILED;
        }
    }
    free_lists(&options);
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
    free_lists(&options);
    return result;
}
