/* SPDX-License-Identifier: MIT */
#include "listing.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "path.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

static int compare(const void *left, const void *right)
{
    const struct listing_entry *a = left, *b = right;
    if (a->directory != b->directory)
        return a->directory ? -1 : 1;
    int order = strcasecmp(a->name, b->name);
    return order != 0 ? order : strcmp(a->name, b->name);
}

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
    if (count > 1)
        qsort(entries, count, sizeof *entries, compare);
    *ret_entries = entries;
    *ret_count = count;
    *ret_complete = complete;
    return 0;
}

static void write_escaped(FILE *page, const char *text)
{
    for (; *text != '\0'; text++) {
        switch (*text) {
        case '&':
            fputs("&amp;", page);
            break;
        case '<':
            fputs("&lt;", page);
            break;
        case '>':
            fputs("&gt;", page);
            break;
        case '"':
            fputs("&quot;", page);
            break;
        case '\'':
            fputs("&#39;", page);
            break;
        default:
            /* HTML has no way to write a control byte: show that there is one. */
            if ((unsigned char)*text < 0x20 || *text == 0x7f)
                fputs("\xef\xbf\xbd", page);
            else
                fputc(*text, page);
        }
    }
}

static void write_entry(FILE *page, const struct listing_entry *entry)
{
    const char *slash = entry->directory ? "/" : "";
    char link[3 * 256], size[TEXT_SIZE_MAX], date[32] = "";
    struct tm parts;
    http_path_encode(entry->name, link, sizeof link);
    /* "./", as a name like "a:b" would be taken for a scheme. http_path_encode encodes colons; this does not rely on
     * it. */
    fprintf(page, "<tr><td><a href=\"./%s%s\">", link, slash);
    write_escaped(page, entry->name);
    if (gmtime_r(&entry->modified, &parts) != NULL)
        strftime(date, sizeof date, "%Y-%m-%d %H:%M", &parts);
    fprintf(page, "%s</a></td><td>%s</td><td>%s</td></tr>\n", slash,
            entry->directory ? "" : text_format_size(entry->size, size, sizeof size), date);
}

int listing_render(const char *path, const struct listing_entry *entries, size_t count, bool complete, char **ret_text,
                   size_t *ret_length)
{
    char *text = NULL;
    size_t length = 0;
    FILE *page = open_memstream(&text, &length);
    if (page == NULL)
        return -ENOMEM;
    bool root = strcmp(path, ".") == 0;

    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>/",
          page);
    write_escaped(page, root ? "" : path);
    fputs("</title>\n<style>\n:root { color-scheme: light dark; }\n"
          "body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }\n"
          "table { border-collapse: collapse; width: 100%; }\n"
          "td { padding: .15em .5em; }\ntd:first-child { overflow-wrap: anywhere; }\n"
          "td + td { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; opacity: .7; }\n"
          "a { text-decoration: none; }\na:hover { text-decoration: underline; }\n</style>\n</head>\n<body>\n<h1>/",
          page);
    write_escaped(page, root ? "" : path);
    fputs("</h1>\n<table>\n", page);
    if (!root)
        fputs("<tr><td><a href=\"../\">../</a></td><td></td><td></td></tr>\n", page);
    for (size_t i = 0; i < count; i++)
        write_entry(page, &entries[i]);
    fputs("</table>\n", page);
    if (!complete)
        fprintf(page, "<p>Only the first %d entries are shown.</p>\n", LISTING_ENTRIES_MAX);
    fputs("</body>\n</html>\n", page);

    bool failed = ferror(page) != 0;
    if (fclose(page) != 0 || failed) {
        free(text);
        return -ENOMEM;
    }
    *ret_text = text;
    *ret_length = length;
    return 0;
}
