/* SPDX-License-Identifier: MIT
 *
 * sluice trace --check: each of libsluice's routes moves bytes between each pair of ends that it serves, traced, and
 * its receipt is held against what the kernel was seen to do.
 */
#ifndef SLUICE_APP_TRACE_CHECK_H
#define SLUICE_APP_TRACE_CHECK_H

#include "account.h"
#include <sluice/sluice.h>
#include <stdio.h>

struct check_options {
    bool functions;    /* tier (a) or nothing; otherwise the best there is */
    bool trust_tier_b; /* stay at tier (b) even where (a) could be had */
    FILE *stream;      /* a line for each pair, and a closing one; NULL: silent */
    /* ADDRESS:PORT (IPv4) of a service that takes connections and throws away what comes, with which TCP sinks are
     * connected then: what the device on the way there does is checked, too. NULL: our own end of loopback. */
    const char *peer;
};

struct check_result {
    enum account_tier tier;
    unsigned agreed, disagreed;
    unsigned unserved; /* pairs that a route does not serve */
};

/* "10.0.0.7:9": 0, or -EINVAL. */
struct sockaddr_in;
int check_parse_peer(const char *text, struct sockaddr_in *ret_address);

struct check;

/* Ready the kernel for counting. Returns 0, or a negative errno; the reason has been printed. options: borrowed until
 * check_close(). */
int check_open(const struct check_options *options, struct check **ret_check);

/* Check all routes (SLUICE_ROUTE_AUTO), or one. directory: where the files are made; NULL: $TMPDIR or /tmp. Boundary
 * bytes and calls must agree exactly; copies and unknown bytes exactly at tier (b), within 1 % at tier (a). Returns 0
 * (see disagreed), or a negative errno when it could not be done; the reason has been printed. */
int check_run(struct check *check, enum sluice_route route, const char *directory, struct check_result *ret_result);

void check_close(struct check *check);

#endif
