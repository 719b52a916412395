/* SPDX-License-Identifier: MIT
 *
 * The body of a request that needs none: it is read and thrown away, so that the next request can be found behind it
 * (RFC 9112, 6 and 7). Without I/O; as strict as the parser of heads, since what two servers frame differently is how
 * requests are smuggled.
 */
#ifndef SLUICE_APP_HTTP_BODY_H
#define SLUICE_APP_HTTP_BODY_H

#include "request.h"

/* More than this is not worth reading: a new connection is cheaper. With the framing of a chunked body. */
#define HTTP_BODY_MAX (64u << 10)

struct http_body {
    uint64_t left; /* of the content, or of the chunk */
    uint32_t room; /* bytes that may still come, framing included */
    uint8_t state;
};

#define HTTP_BODY_MORE 0
#define HTTP_BODY_DONE 1

/* Of a request that has one. Returns HTTP_BODY_MORE, or -413: it says that it is too large. */
int http_body_begin(struct http_body *body, const struct http_request *request);

/* Take what has come. Returns HTTP_BODY_MORE (all of it was taken); HTTP_BODY_DONE, *ret_used bytes of it belonged to
 * the body; or minus the status with which to refuse it: -400 malformed, -413 too large. After a refusal, nothing may
 * be given to it. */
int http_body_take(struct http_body *body, const char *data, size_t length, size_t *ret_used);

#endif
