/* SPDX-License-Identifier: MIT
 *
 * The page needs nothing but itself: its style and its script are within it, permitted by their hashes, and nothing
 * else is. Sorting is by links; the script only adds to it.
 */
#include "base/text.h"
#include "listing.h"
#include "listing_assets.h"
#include "path.h"
#include "service/json.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LINK_MAX (3 * 256)
#define QUERY_MAX 32
#define REPLACEMENT "\xef\xbf\xbd"

/* ---- HTML -------------------------------------------------------------------------------------------------------- */

static void write_escaped(FILE *page, const char *text, size_t size)
{
    const char *end = text + size;
    while (text < end) {
        size_t length = text_utf8_length(text, (size_t)(end - text));
        unsigned char byte = (unsigned char)*text;
        /* HTML has no way to write a control byte, nor one that is not UTF-8: show that there is one. */
        if (length == 0 || byte < 0x20 || byte == 0x7f)
            fputs(REPLACEMENT, page);
        else if (byte == '&')
            fputs("&amp;", page);
        else if (byte == '<')
            fputs("&lt;", page);
        else if (byte == '>')
            fputs("&gt;", page);
        else if (byte == '"')
            fputs("&quot;", page);
        else if (byte == '\'')
            fputs("&#39;", page);
        else
            fwrite(text, 1, length, page);
        text += length > 0 ? length : 1;
    }
}

static const char *const order_names[] = {"name", "size", "time"};

/* What links to other directories end in, so that they are sorted like this one; empty for the default. */
static const char *query_of(enum listing_order sort, bool descending, char buffer[static QUERY_MAX])
{
    snprintf(buffer, QUERY_MAX, "?sort=%s&amp;order=%s", order_names[sort], descending ? "desc" : "asc");
    return buffer;
}

static const char *query_kept(const struct listing_view *view, char buffer[static QUERY_MAX])
{
    if (view->sort == LISTING_BY_NAME && !view->descending)
        return "";
    return query_of(view->sort, view->descending, buffer);
}

/* "1,234,567" */
static const char *group_digits(uint64_t number, char buffer[static TEXT_SIZE_MAX])
{
    size_t at = TEXT_SIZE_MAX - 1, digits = 0;
    buffer[at] = '\0';
    do {
        if (digits > 0 && digits % 3 == 0)
            buffer[--at] = ',';
        buffer[--at] = (char)('0' + number % 10);
        digits++;
    } while ((number /= 10) > 0);
    return buffer + at;
}

/* "/", or the names from the root down, each but the last a link. */
static void write_path(FILE *page, const char *path, const struct listing_view *view)
{
    char query[QUERY_MAX];
    size_t depth = 0;
    for (const char *at = path; *at != '\0'; at++)
        depth += *at == '/';
    if (strcmp(path, ".") == 0) {
        fputs("<b aria-current=\"page\">/</b>", page);
        return;
    }
    fputs("<a href=\"", page);
    for (size_t i = 0; i < depth; i++)
        fputs("../", page);
    fprintf(page, "%s\" aria-label=\"Top\">/</a>", query_kept(view, query));
    for (const char *name = path; depth > 0; depth--) {
        size_t length = strcspn(name, "/");
        if (depth > 1) {
            fputs("<a href=\"", page);
            for (size_t i = 1; i < depth; i++)
                fputs("../", page);
            fprintf(page, "%s\"><bdi>", query_kept(view, query));
        } else {
            fputs("<b aria-current=\"page\"><bdi>", page);
        }
        write_escaped(page, name, length);
        fputs(depth > 1 ? "</bdi></a><i>/</i>" : "</bdi></b><i>/</i>", page);
        name += length + 1;
    }
}

static void write_heading(FILE *page, enum listing_order sort, const char *title, const struct listing_view *view)
{
    char query[QUERY_MAX];
    bool current = view->sort == sort;
    /* The largest and the newest are what people look for. */
    bool descending = current ? !view->descending : sort != LISTING_BY_NAME;
    fprintf(page, "<th scope=\"col\"%s><a href=\"./%s\">%s</a></th>",
            !current           ? ""
            : view->descending ? " aria-sort=\"descending\""
                               : " aria-sort=\"ascending\"",
            query_of(sort, descending, query), title);
}

#define TIME_MAX 48

/* In UTC: "2026-11-21T17:39:50Z". False: there is no such date. */
static bool format_time(time_t time, const char *format, char buffer[static TIME_MAX])
{
    struct tm parts;
    return gmtime_r(&time, &parts) != NULL && strftime(buffer, TIME_MAX, format, &parts) > 0;
}
#define TIME_EXACT "%Y-%m-%dT%H:%M:%SZ"

static void write_time(FILE *page, time_t time)
{
    char exact[TIME_MAX], plain[TIME_MAX];
    if (format_time(time, TIME_EXACT, exact) && format_time(time, "%Y-%m-%d %H:%M", plain))
        fprintf(page, "<time datetime=\"%s\">%s</time>", exact, plain);
}

static void write_entry(FILE *page, const struct listing_entry *entry, const char *query)
{
    char link[LINK_MAX], size[TEXT_SIZE_MAX], digits[TEXT_SIZE_MAX];
    http_path_encode(entry->name, link, sizeof link);
    /* "./", as a name like "a:b" would be taken for a scheme. http_path_encode encodes colons; this does not rely on
     * it. */
    fprintf(page, "<tr%s><td><a href=\"./%s%s%s\"><bdi>", entry->directory ? " class=\"d\"" : "", link,
            entry->directory ? "/" : "", entry->directory ? query : "");
    write_escaped(page, entry->name, strlen(entry->name));
    if (entry->directory)
        fputs("/</bdi></a></td><td></td><td>", page);
    else
        fprintf(page, "</bdi></a></td><td><data value=\"%llu\" title=\"%s bytes\">%s</data></td><td>",
                (unsigned long long)entry->size, group_digits(entry->size, digits),
                text_format_size(entry->size, size, sizeof size));
    write_time(page, entry->modified);
    fputs("</td></tr>\n", page);
}

/* "2 directories, 1 file, 1.5 KiB" */
static void write_summary(FILE *page, const struct listing_entry *entries, size_t count, bool complete)
{
    char size[TEXT_SIZE_MAX];
    size_t directories = 0;
    uint64_t bytes = 0;
    for (size_t i = 0; i < count; i++) {
        directories += entries[i].directory;
        bytes += entries[i].directory ? 0 : entries[i].size;
    }
    if (count == 0)
        fputs("This directory is empty.", page);
    else
        fprintf(page, "%zu director%s, %zu file%s, %s", directories, directories == 1 ? "y" : "ies",
                count - directories, count - directories == 1 ? "" : "s", text_format_size(bytes, size, sizeof size));
    if (!complete)
        fprintf(page, ". There are more: only the first %d entries that were found are shown", LISTING_ENTRIES_MAX);
}

static void write_html(FILE *page, const char *path, const struct listing_entry *entries, size_t count, bool complete,
                       const struct listing_view *view)
{
    char buffer[QUERY_MAX];
    const char *query = query_kept(view, buffer);
    bool root = strcmp(path, ".") == 0;

    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
          "<link rel=\"icon\" href=\"data:,\">\n<title>/",
          page);
    write_escaped(page, path, root ? 0 : strlen(path));
    fputs("</title>\n<style>", page);
    fwrite(listing_style, 1, sizeof listing_style, page);
    fputs("</style>\n</head>\n<body>\n<header>\n<h1>", page);
    write_path(page, path, view);
    fputs("</h1>\n<div class=\"about\"><p id=\"about\" role=\"status\">", page);
    write_summary(page, entries, count, complete);
    fputs("</p><input id=\"filter\" type=\"search\" placeholder=\"Filter by name\" aria-label=\"Filter by name\" "
          "hidden></div>\n</header>\n<main>\n<table>\n<thead><tr>",
          page);
    write_heading(page, LISTING_BY_NAME, "Name", view);
    write_heading(page, LISTING_BY_SIZE, "Size", view);
    write_heading(page, LISTING_BY_TIME, "Modified<span id=\"zone\"> (UTC)</span>", view);
    fputs("</tr></thead>\n<tbody>\n", page);
    if (!root)
        fprintf(page, "<tr class=\"up\"><td><a href=\"../%s\">../</a></td><td></td><td></td></tr>\n", query);
    for (size_t i = 0; i < count; i++)
        write_entry(page, &entries[i], query);
    fputs("</tbody>\n</table>\n</main>\n<script>", page);
    fwrite(listing_script, 1, sizeof listing_script, page);
    fputs("</script>\n</body>\n</html>\n", page);
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

static void write_json(FILE *page, const char *path, const struct listing_entry *entries, size_t count, bool complete)
{
    char *absolute = NULL;
    if (asprintf(&absolute, "/%s", strcmp(path, ".") == 0 ? "" : path) < 0)
        absolute = NULL;
    fputs("{\"path\": ", page);
    json_write_string(page, absolute);
    free(absolute);
    fprintf(page, ", \"complete\": %s, \"entries\": [", complete ? "true" : "false");
    for (size_t i = 0; i < count; i++) {
        const struct listing_entry *entry = &entries[i];
        char link[LINK_MAX], modified[TIME_MAX];
        http_path_encode(entry->name, link, sizeof link);
        fputs(i == 0 ? "\n{\"name\": " : ",\n{\"name\": ", page);
        json_write_string(page, entry->name);
        fprintf(page, ", \"href\": \"./%s%s\", \"type\": \"%s\", ", link, entry->directory ? "/" : "",
                entry->directory ? "directory" : "file");
        if (!entry->directory)
            fprintf(page, "\"size\": %llu, ", (unsigned long long)entry->size);
        fputs("\"modified\": ", page);
        json_write_string(page, format_time(entry->modified, TIME_EXACT, modified) ? modified : NULL);
        fputc('}', page);
    }
    fputs("\n]}\n", page);
}

/* ---- Either ------------------------------------------------------------------------------------------------------ */

int listing_render(const char *path, const struct listing_entry *entries, size_t count, bool complete,
                   const struct listing_view *view, char **ret_text, size_t *ret_length)
{
    char *text = NULL;
    size_t length = 0;
    FILE *page = open_memstream(&text, &length);
    if (page == NULL)
        return -ENOMEM;
    if (view->json)
        write_json(page, path, entries, count, complete);
    else
        write_html(page, path, entries, count, complete, view);
    bool failed = ferror(page) != 0;
    if (fclose(page) != 0 || failed) {
        free(text);
        return -ENOMEM;
    }
    *ret_text = text;
    *ret_length = length;
    return 0;
}

const char *listing_type(const struct listing_view *view)
{
    return view->json ? "application/json" : "text/html; charset=utf-8";
}

const char *listing_fields(const struct listing_view *view)
{
    /* data: for the icon, which keeps browsers from asking for one. */
    static const char html[] =
        "Vary: Accept\r\nContent-Security-Policy: default-src 'none'; style-src '" LISTING_STYLE_SHA256
        "'; script-src '" LISTING_SCRIPT_SHA256
        "'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n";
    static const char json[] = "Vary: Accept\r\nContent-Security-Policy: default-src 'none'\r\n";
    return view->json ? json : html;
}
