/* SPDX-License-Identifier: MIT
 *
 * Conditional and range requests (RFC 9110, 13 and 14): what to answer about a file that exists.
 */
#ifndef SLUICE_APP_HTTP_CONDITIONS_H
#define SLUICE_APP_HTTP_CONDITIONS_H

#include "range.h"
#include <time.h>

struct representation {
    uint64_t size;
    time_t modified;
    struct slice etag; /* with its quotes, without W/ */
    bool weak;
};

/* For GET and HEAD. Returns the status: 200 (the whole file), 206 (*ret_ranges), 304, 412 or 416. */
unsigned conditions_evaluate(const struct http_request *request, const struct representation *representation,
                             time_t now, struct http_ranges *ret_ranges);

#endif
