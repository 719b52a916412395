/* SPDX-License-Identifier: MIT
 *
 * What sluice serve was told, by the command line and by a file, in which the same options stand.
 */
#ifndef SLUICE_APP_SERVE_CONFIG_H
#define SLUICE_APP_SERVE_CONFIG_H

#include "serve/sites.h"
#include "serve/tls.h"
#include "service/config_file.h"
#include "service/options.h"
#include "service/prefix.h"
#include <sluice/sluice.h>

#define SERVE_PROGRAM "sluice serve"

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

extern const struct option_spec serve_option_table[];

struct serve_config {
    struct serve_options options;
    enum sluice_route route;
    struct http_sites sites;
    struct site_options *sections; /* of the sites that have names, which are the first ones */
    unsigned section_count;
    struct option_list certificates; /* of all sites; the strings are the options' */
    struct address_prefix *trusted;  /* as many as options.trust_forwarded has */
    struct config_storage *storage;  /* what strings of the file lie in */
    bool says_where;                 /* listen was given */

    /* Where all of it stood. */
    const char *path; /* of the file; NULL: none */
    struct command_spec command;
    const char **given;
    unsigned *lines;
};

/* Returns -1 and sets *ret_config, or an exit code: help, version and wrong usage have been printed. */
int serve_config_from_arguments(int argc, char **argv, struct serve_config *ret_config);

/* The same again from the same arguments, for a reload. Returns 0 or a negative errno. */
int serve_config_again(int argc, char **argv, struct serve_config *ret_config, struct failure *failure);

/* Says where an option stands that turned out to be wrong, as config_wrong does. value: which of several, or NULL; why:
 * in words. Returns code. */
int serve_config_wrong(const struct serve_config *config, const char *key, const char *value, int code,
                       const struct failure *why, struct failure *failure);

/* What is in force for each host that has a name, as members of an object of JSON, separator before the first. */
void serve_config_write_hosts(FILE *out, const char *separator, const struct serve_config *config);

void serve_config_free(struct serve_config *config);

#endif
