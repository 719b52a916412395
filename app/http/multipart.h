/* SPDX-License-Identifier: MIT
 *
 * The body of a 206 with several ranges (multipart/byteranges, RFC 9110, 14.6): all of it but the file's bytes.
 */
#ifndef SLUICE_APP_HTTP_MULTIPART_H
#define SLUICE_APP_HTTP_MULTIPART_H

#include "range.h"

#define MULTIPART_BOUNDARY_LENGTH 24

/* What stands before each part, and at the end. */
struct multipart {
    char boundary[MULTIPART_BOUNDARY_LENGTH + 1];
    const struct http_ranges *ranges;
    struct slice type; /* "Content-Type: text/plain\r\n" of the whole file; may be empty */
    uint64_t size;     /* of the file */
};

/* With a boundary that nobody can know before the response is made, so that no file can have it in its bytes. Returns
 * 0, or a negative errno of getrandom(2). */
int multipart_begin(const struct http_ranges *ranges, struct slice type, uint64_t size, struct multipart *ret);

/* Of the whole body, the file's bytes included. */
uint64_t multipart_length(const struct multipart *multipart);

/* What comes before the part of this number, or after all of them (number == ranges->count). Returns its length. */
#define MULTIPART_TEXT_MAX 320
size_t multipart_text(const struct multipart *multipart, unsigned number, char buffer[static MULTIPART_TEXT_MAX]);

#endif
