/* SPDX-License-Identifier: MIT
 *
 * A directory as a page of HTML, or as JSON.
 */
#ifndef SLUICE_APP_HTTP_LISTING_H
#define SLUICE_APP_HTTP_LISTING_H

#include "beneath.h"
#include "request.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define LISTING_ENTRIES_MAX 10000

struct listing_entry {
    char *name;
    bool directory;
    uint64_t size;
    time_t modified;
};

enum listing_order { LISTING_BY_NAME, LISTING_BY_SIZE, LISTING_BY_TIME };

/* What is asked for. */
struct listing_view {
    enum listing_order sort; /* directories come first in each */
    bool descending;
    bool json;
};

/* By the query (sort=name|size|time, order=asc|desc; what is not understood is passed over) and the Accept field: JSON
 * if it is preferred to HTML. Both may be absent. */
void listing_choose(struct slice query, struct slice accept, struct listing_view *ret_view);

/* Read a directory: regular files and directories that could be served, hidden names left out, in no order. At most
 * LISTING_ENTRIES_MAX; *ret_complete says whether that was all. path as http_path_decode makes it. Any thread; takes as
 * long as the disk. Returns 0; -ENOENT, -ENOTDIR, -EACCES, -EMFILE, -ENOMEM, ... */
int listing_read(const struct beneath *beneath, const char *path, struct listing_entry **ret_entries, size_t *ret_count,
                 bool *ret_complete);
void listing_sort(struct listing_entry *entries, size_t count, const struct listing_view *view);
void listing_free(struct listing_entry *entries, size_t count);

/* The text. Names are escaped as text and encoded as links, whatever bytes they hold. Returns 0 or -ENOMEM. */
int listing_render(const char *path, const struct listing_entry *entries, size_t count, bool complete,
                   const struct listing_view *view, char **ret_text, size_t *ret_length);

/* Its type, and the response's further fields. Static. */
const char *listing_type(const struct listing_view *view);
const char *listing_fields(const struct listing_view *view);

#endif
