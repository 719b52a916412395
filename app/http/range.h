/* SPDX-License-Identifier: MIT
 *
 * Range (RFC 9110, 14.2): one range of bytes. Several ranges are not served yet; the whole file is, as the RFC allows.
 */
#ifndef SLUICE_APP_HTTP_RANGE_H
#define SLUICE_APP_HTTP_RANGE_H

#include "request.h"

enum http_range_result {
    HTTP_RANGE_WHOLE,         /* absent, malformed, another unit, or several: answer 200 with everything */
    HTTP_RANGE_PART,          /* answer 206 with what *ret_first and *ret_last (inclusive) say */
    HTTP_RANGE_UNSATISFIABLE, /* answer 416 */
};

enum http_range_result http_range_parse(struct slice value, uint64_t size, uint64_t *ret_first, uint64_t *ret_last);

#endif
