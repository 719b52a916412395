/* SPDX-License-Identifier: MIT
 *
 * A directory as a page of HTML.
 */
#ifndef SLUICE_APP_HTTP_LISTING_H
#define SLUICE_APP_HTTP_LISTING_H

#include "beneath.h"
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

/* Read a directory: regular files and directories that could be served, hidden names left out, directories first, then
 * by name. At most LISTING_ENTRIES_MAX; *ret_complete says whether that was all. path as http_path_decode makes it. Any
 * thread; takes as long as the disk. Returns 0; -ENOENT, -ENOTDIR, -EACCES, -EMFILE, -ENOMEM, ... */
int listing_read(const struct beneath *beneath, const char *path, struct listing_entry **ret_entries, size_t *ret_count,
                 bool *ret_complete);
void listing_free(struct listing_entry *entries, size_t count);

/* The page. Names are escaped as text and encoded as links, whatever bytes they hold. Returns 0 or -ENOMEM. */
int listing_render(const char *path, const struct listing_entry *entries, size_t count, bool complete, char **ret_text,
                   size_t *ret_length);

#endif
