/* SPDX-License-Identifier: MIT
 *
 * What the operator adds to responses: Cache-Control by pattern, and fields of any other name. Pure: no I/O.
 */
#ifndef SLUICE_APP_HTTP_EXTRAS_H
#define SLUICE_APP_HTTP_EXTRAS_H

#include <stddef.h>

#define EXTRAS_HEADER_MAX 4096 /* bytes of all fields together: clients take heads of 8 KiB, some no longer ones */
#define EXTRAS_CACHE_MAX 512   /* of a value */

struct http_extras {
    struct cache_rule {
        char *pattern;
        const char *value; /* behind the pattern, in its memory */
    } * cache;
    unsigned cache_count;
    char *header; /* fields as they are sent, each with its CRLF; NULL: none */
    size_t header_length;
};

/* "PATTERN=VALUE". In a pattern, * stands for any bytes, slashes too, and ? for one byte; one that has a slash is for
 * the whole path ("/assets/" and a star), one without is for the file's name ("*.js").
 * Returns 0; -EINVAL with what is wrong in *ret_why (static text); -ENOMEM. */
int http_extras_add_cache(struct http_extras *extras, const char *text, const char **ret_why);

/* "Name: value". Not those that sluice makes itself, which would be there twice or lie about what follows.
 * Returns as above. */
int http_extras_add_header(struct http_extras *extras, const char *text, const char **ret_why);

/* What Cache-Control says of the file at this path (as http_path_decode makes it): the first rule that fits. NULL:
 * none does. */
const char *http_extras_cache(const struct http_extras *extras, const char *path);

void http_extras_free(struct http_extras *extras);

#endif
