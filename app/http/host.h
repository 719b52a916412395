/* SPDX-License-Identifier: MIT
 *
 * Which site a request is for: a table of host names, found by the Host of a request. A pure parser, without I/O.
 */
#ifndef SLUICE_APP_HTTP_HOST_H
#define SLUICE_APP_HTTP_HOST_H

#include "request.h"

#define HOST_NAME_MAX_LENGTH 253 /* of a name in the DNS, without the dot at its end (RFC 1035, 2.3.4) */

struct host_names {
    struct host_name {
        char *text; /* lower case; perhaps with "*." before it */
        unsigned site;
    } * items; /* sorted by text */
    unsigned count;
};

/* Add a name: "www.example.org"; "*.example.org", all names that end so, of whatever depth, but not example.org itself;
 * "192.0.2.1" or "[2001:db8::1]". In any case, without a port, perhaps with a dot at its end.
 * Returns 0; -EINVAL, and what is wrong in *ret_why (static text); -EEXIST: the name is there already; -ENOMEM. */
int host_names_add(struct host_names *names, const char *text, unsigned site, const char **ret_why);

/* The site of a host as http_request has it, maybe with a port. The whole name counts more than a wildcard, and a
 * longer wildcard more than a shorter one. -1: it is nobody's, or absent. */
int host_names_find(const struct host_names *names, struct slice host);

void host_names_free(struct host_names *names);

#endif
