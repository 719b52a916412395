/* SPDX-License-Identifier: MIT
 *
 * Conditional and range requests (RFC 9110, 13 and 14): what to answer about a file that exists.
 */
#ifndef SLUICE_APP_HTTP_CONDITIONS_H
#define SLUICE_APP_HTTP_CONDITIONS_H

#include "request.h"
#include <time.h>

struct representation {
    uint64_t size;
    time_t modified;
    struct slice etag; /* with its quotes, without W/ */
    bool weak;
};

/* For GET and HEAD. Returns the status: 200 (*ret_first and *ret_length are the whole file); 206 (the part asked for);
 * 304, 412, 416 (both 0). */
unsigned conditions_evaluate(const struct http_request *request, const struct representation *representation,
                             time_t now, uint64_t *ret_first, uint64_t *ret_length);

#endif
