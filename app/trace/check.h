/* SPDX-License-Identifier: MIT
 *
 * sluice trace --check: each of libsluice's routes moves bytes between each pair of ends that it serves, traced, and
 * its receipt is held against what the kernel was seen to do.
 */
#ifndef SLUICE_APP_TRACE_CHECK_H
#define SLUICE_APP_TRACE_CHECK_H

#include "account.h"
#include <stdio.h>

struct check_options {
    bool functions;        /* tier (a) or nothing; otherwise the best there is */
    bool trust_tier_b;     /* stay at tier (b) even where (a) could be had */
    const char *directory; /* where the files are made; NULL: $TMPDIR or /tmp */
    FILE *stream;          /* a line for each pair, and a closing one; NULL: silent */
};

struct check_result {
    enum account_tier tier;
    unsigned agreed, disagreed;
    unsigned unserved; /* pairs that a route does not serve */
};

/* Boundary bytes and calls must agree exactly; copies and unknown bytes exactly at tier (b), within 1 % at tier (a).
 * Returns 0 (see disagreed), or a negative errno when it could not be done; the reason has been printed. */
int check_receipts(const struct check_options *options, struct check_result *ret_result);

#endif
