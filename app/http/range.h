/* SPDX-License-Identifier: MIT
 *
 * Range (RFC 9110, 14.2): the parts of a file that are asked for.
 */
#ifndef SLUICE_APP_HTTP_RANGE_H
#define SLUICE_APP_HTTP_RANGE_H

#include "request.h"

/* A longer list is answered with the whole file: each part is a seek, a head of its own and some memory. */
#define HTTP_RANGES_MAX 64

struct http_range {
    uint64_t first, last; /* inclusive */
};

static inline uint64_t http_range_length(const struct http_range *range)
{
    return range->last - range->first + 1;
}

/* No two of them overlap or touch. In the order in which they were asked for; what was merged stands where the first of
 * it was. */
struct http_ranges {
    unsigned count;
    struct http_range list[HTTP_RANGES_MAX];
};

enum http_range_result {
    HTTP_RANGE_WHOLE,         /* absent, malformed, another unit, or too many: answer 200 with everything */
    HTTP_RANGE_PART,          /* answer 206 with what *ret_ranges says */
    HTTP_RANGE_UNSATISFIABLE, /* answer 416 */
};

/* *ret_ranges is set only with HTTP_RANGE_PART. What of a list lies outside of the file is left out. */
enum http_range_result http_range_parse(struct slice value, uint64_t size, struct http_ranges *ret_ranges);

#endif
