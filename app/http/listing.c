/* SPDX-License-Identifier: MIT */
#include "listing.h"
#include "accept.h"
#include "base/cleanup.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- Order ------------------------------------------------------------------------------------------------------- */

/* By letters without regard to case, and by numbers as numbers: "episode 9" comes before "episode 10". */
static int compare_names(const char *a, const char *b)
{
    const char *left = a, *right = b;
    while (*left != '\0' && *right != '\0') {
        if (isdigit((unsigned char)*left) && isdigit((unsigned char)*right)) {
            left += strspn(left, "0");
            right += strspn(right, "0");
            size_t left_digits = strspn(left, "0123456789"), right_digits = strspn(right, "0123456789");
            if (left_digits != right_digits)
                return left_digits < right_digits ? -1 : 1;
            int order = memcmp(left, right, left_digits);
            if (order != 0)
                return order;
            left += left_digits;
            right += right_digits;
            continue;
        }
        int order = tolower((unsigned char)*left) - tolower((unsigned char)*right);
        if (order != 0)
            return order;
        left++;
        right++;
    }
    if (*left != *right)
        return *left == '\0' ? -1 : 1;
    return strcmp(a, b);
}

static int compare(const void *left, const void *right, void *context)
{
    const struct listing_entry *a = left, *b = right;
    const struct listing_view *view = context;
    if (a->directory != b->directory)
        return a->directory ? -1 : 1;
    int order = 0;
    if (view->sort == LISTING_BY_SIZE && !a->directory)
        order = a->size < b->size ? -1 : a->size > b->size;
    else if (view->sort == LISTING_BY_TIME)
        order = a->modified < b->modified ? -1 : a->modified > b->modified;
    bool equal = order == 0;
    if (equal)
        order = compare_names(a->name, b->name);
    /* Equals of another order are by name whatever its direction. */
    return view->descending && (!equal || view->sort == LISTING_BY_NAME) ? -order : order;
}

void listing_sort(struct listing_entry *entries, size_t count, const struct listing_view *view)
{
    if (count > 1)
        qsort_r(entries, count, sizeof *entries, compare, (void *)view);
}

static bool reads(struct slice slice, const char *text)
{
    return slice.length == strlen(text) && memcmp(slice.data, text, slice.length) == 0;
}

void listing_choose(struct slice query, struct slice accept, struct listing_view *ret_view)
{
    *ret_view = (struct listing_view){.sort = LISTING_BY_NAME};
    ret_view->json = accept_media_type(accept, "application/json") > accept_media_type(accept, "text/html");
    const char *at = query.data, *end = at != NULL ? at + query.length : NULL;
    while (at < end) {
        const char *next = memchr(at, '&', (size_t)(end - at));
        struct slice pair = {at, (size_t)((next != NULL ? next : end) - at)};
        if (reads(pair, "sort=name"))
            ret_view->sort = LISTING_BY_NAME;
        else if (reads(pair, "sort=size"))
            ret_view->sort = LISTING_BY_SIZE;
        else if (reads(pair, "sort=time"))
            ret_view->sort = LISTING_BY_TIME;
        else if (reads(pair, "order=asc"))
            ret_view->descending = false;
        else if (reads(pair, "order=desc"))
            ret_view->descending = true;
        at = next != NULL ? next + 1 : end;
    }
}

/* ---- Reading ----------------------------------------------------------------------------------------------------- */

void listing_free(struct listing_entry *entries, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(entries[i].name);
    free(entries);
}

/* What a request for the name would find: a symbolic link is followed only where serving would follow it. */
static int describe(const struct beneath *beneath, int directory, const char *path, const char *name,
                    struct stat *ret_status)
{
    if (fstatat(directory, name, ret_status, AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    if (!S_ISLNK(ret_status->st_mode))
        return 0;
    CLEANUP_FREE char *whole = NULL;
    if (asprintf(&whole, "%s%s%s", path, path[strlen(path) - 1] == '/' ? "" : "/", name) < 0) {
        whole = NULL;
        return -ENOMEM;
    }
    CLEANUP_FD int fd = beneath_open(beneath, whole, O_PATH, false, NULL);
    if (fd < 0)
        return fd;
    return fstat(fd, ret_status) < 0 ? -errno : 0;
}

int listing_read(const struct beneath *beneath, const char *path, struct listing_entry **ret_entries, size_t *ret_count,
                 bool *ret_complete)
{
    int fd = beneath_open(beneath, path, O_RDONLY | O_DIRECTORY | O_NONBLOCK, false, NULL);
    if (fd < 0)
        return fd;
    DIR *directory = fdopendir(fd);
    if (directory == NULL) {
        int r = -errno;
        close_fd(fd);
        return r;
    }

    struct listing_entry *entries = NULL;
    size_t count = 0, room = 0;
    bool complete = true;
    int result = 0;
    for (;;) {
        errno = 0;
        const struct dirent *item = readdir(directory);
        if (item == NULL) {
            result = -errno;
            break;
        }
        struct stat status;
        bool root = strcmp(path, ".") == 0;
        if (item->d_name[0] == '.' && !(root && strcmp(item->d_name, ".well-known") == 0))
            continue;
        if (describe(beneath, fd, path, item->d_name, &status) < 0)
            continue; /* gone already, or leads outside */
        if (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode))
            continue;
        if (count == LISTING_ENTRIES_MAX) {
            complete = false;
            break;
        }
        if (count == room) {
            room = room == 0 ? 64 : 2 * room;
            struct listing_entry *larger = reallocarray(entries, room, sizeof *entries);
            if (larger == NULL) {
                result = -ENOMEM;
                break;
            }
            entries = larger;
        }
        char *name = strdup(item->d_name);
        if (name == NULL) {
            result = -ENOMEM;
            break;
        }
        entries[count++] = (struct listing_entry){
            .name = name,
            .directory = S_ISDIR(status.st_mode),
            .size = (uint64_t)status.st_size,
            .modified = status.st_mtim.tv_sec,
        };
    }
    closedir(directory);
    if (result < 0) {
        listing_free(entries, count);
        return result;
    }
    *ret_entries = entries;
    *ret_count = count;
    *ret_complete = complete;
    return 0;
}
