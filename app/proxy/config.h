/* SPDX-License-Identifier: MIT
 *
 * What sluice proxy was told, by options or by a file that has the same names (proxy.c and config.c). Read before the
 * workers are forked, and anew for every generation of them (SIGHUP); not changed after.
 */
#ifndef SLUICE_PROXY_CONFIG_H
#define SLUICE_PROXY_CONFIG_H

#include "base/failure.h"
#include "service/address.h"
#include "service/config_file.h"
#include "service/proxy_header.h"
#include <sluice/sluice.h>
#include <stdbool.h>
#include <stdint.h>

#define PROXY_SERVERS_MAX 256
#define PROXY_NAMES_MAX 32

enum proxy_balance {
    PROXY_BALANCE_ROUND_ROBIN,
    PROXY_BALANCE_LEAST_CONNECTIONS,
    PROXY_BALANCE_SOURCE,     /* hash of the client's address, modulo the weights: all move when one server goes */
    PROXY_BALANCE_CONSISTENT, /* the same address, on a ring: only the lost server's clients move */
};

enum proxy_check {
    PROXY_CHECK_NONE,
    PROXY_CHECK_TCP,  /* a connection is accepted */
    PROXY_CHECK_HTTP, /* GET check_path answers 2xx or 3xx */
};

enum proxy_mirror {
    PROXY_MIRROR_REQUESTS = 1 << 0,  /* what clients send */
    PROXY_MIRROR_RESPONSES = 1 << 1, /* what servers send, to a connection of its own */
};

/* --to ADDR:PORT[,weight=N][,backup][,max=N][,sni=NAME]...[,alpn=NAME]... */
struct proxy_server {
    char *name; /* ADDR:PORT or unix:/path as written; in logs, metrics, and what a reload knows it by */
    struct address address;
    unsigned weight;                /* 0 to 256; 0: no new connections (draining); default 1 */
    bool backup;                    /* used when no other server is up */
    uint64_t max_connections;       /* 0: no limit; of all workers together */
    char *sni[PROXY_NAMES_MAX];     /* host names, lower case; "*.example.org" matches one label and more */
    char *alpn[PROXY_NAMES_MAX];    /* protocols: "h2" */
    unsigned sni_count, alpn_count; /* both 0: takes what no server with names takes */
};

struct proxy_service {
    char *name; /* the section's, or "proxy" on the command line */
    struct proxy_listen {
        char *text;
        struct address address;
    } * listens;
    unsigned listen_count;
    struct proxy_server *servers;
    unsigned server_count;
    bool routes_by_name; /* some server has sni or alpn: a ClientHello is waited for */

    enum proxy_balance balance;
    enum sluice_route route;             /* auto, copy or splice */
    const char *congestion;              /* NULL: the host's */
    uint64_t max_connections, max_queue; /* 0: no limit; of all workers together */
    unsigned connect_timeout, queue_timeout, idle_timeout, half_close_timeout,
        hello_timeout;  /* ms; idle 0: none; half-close 0: as idle */
    unsigned retries;   /* further servers tried */
    unsigned keepalive; /* seconds of silence before the kernel probes either peer; 0: off */
    uint64_t hello_max; /* bytes of a ClientHello, or of a PROXY header with its extensions */

    enum proxy_check check;
    const char *check_path, *check_host;
    unsigned check_interval, check_timeout; /* ms */
    unsigned rise, fall;                    /* so many in a row make it up, down */

    bool accept_proxy; /* clients begin with a PROXY header, v1 or v2; without it they are refused */
    enum proxy_header_version send_proxy;

    bool mirrors;
    struct proxy_listen mirror; /* where to */
    unsigned mirror_what;       /* of enum proxy_mirror */
};

struct proxy_config {
    struct proxy_service *services;
    unsigned service_count;
    /* What belongs to the process. */
    unsigned workers;
    uint64_t max_connections; /* of all services together; 0: what the limit of open files permits */
    unsigned drain_timeout;   /* ms, when sluice is told to end */
    unsigned retire_timeout;  /* ms, of old workers after a reload; 0: as long as their connections last */
    enum sluice_loop_kind loop;
    const char *metrics, *admin, *log;
    const char *user, *group; /* of the workers; or NULL */
    bool admin_anywhere, receipts, confine, verbose, sqpoll;
    const char *path;               /* of the file; NULL: command line alone */
    struct config_storage *storage; /* what the strings lie in */
};

/* argv without the program's name. Returns -1 to go on, or the exit code: help, version, wrong usage, --check-config,
 * all printed. */
int proxy_config_from_arguments(int argc, char **argv, struct proxy_config *ret_config);

/* The same again from the same arguments, for a reload: the file is read and names are resolved anew. Returns 0 or a
 * negative errno, with file, line and reason in failure. */
int proxy_config_again(int argc, char **argv, struct proxy_config *ret_config, struct failure *failure);

/* What is in force, as members of an object of JSON, separator before the first: options of the process by their names,
 * and a line for each service. */
void proxy_config_write_json(FILE *out, const char *separator, const struct proxy_config *config);

void proxy_config_free(struct proxy_config *config);

#endif
