/* SPDX-License-Identifier: MIT */
#include "extras.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Of a response sluice makes these itself, or they belong to the connection. */
static const char *const own[] = {"Accept-Ranges",
                                  "Connection",
                                  "Content-Encoding",
                                  "Content-Length",
                                  "Content-Range",
                                  "Content-Type",
                                  "Date",
                                  "ETag",
                                  "Keep-Alive",
                                  "Last-Modified",
                                  "Location",
                                  "Proxy-Connection",
                                  "Server",
                                  "Status",
                                  "TE",
                                  "Trailer",
                                  "Transfer-Encoding",
                                  "Upgrade",
                                  "X-Content-Type-Options"};

/* Visible ASCII, and blanks between it: what RFC 9110, 5.5 lets a sender make. */
static const char *find_fault(const char *value)
{
    size_t length = strlen(value);
    if (length == 0)
        return "the value is missing";
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)value[i] < ' ' || (unsigned char)value[i] > '~')
            return "a value is one line of printable ASCII";
    return NULL;
}

/* Without the blanks before the text; those behind it are cut off. */
static char *trim(char *text)
{
    text += strspn(text, " \t");
    size_t length = strlen(text);
    while (length > 0 && (text[length - 1] == ' ' || text[length - 1] == '\t'))
        text[--length] = '\0';
    return text;
}

int http_extras_add_cache(struct http_extras *extras, const char *text, const char **ret_why)
{
    char *pattern = strdup(text), *equals = pattern == NULL ? NULL : strchr(pattern, '=');
    if (pattern == NULL)
        return -ENOMEM;
    const char *fault = NULL, *value = NULL;
    if (equals == NULL) {
        fault = "it is PATTERN=VALUE, such as *.js=public, max-age=3600";
    } else {
        *equals = '\0';
        char *trimmed = trim(pattern);
        memmove(pattern, trimmed, strlen(trimmed) + 1);
        value = trim(equals + 1);
        fault = *pattern == '\0'                   ? "the pattern is missing"
                : strlen(value) > EXTRAS_CACHE_MAX ? "the value has more than 512 bytes"
                : strchr(pattern, '/') != NULL && pattern[0] != '/' && pattern[0] != '*'
                    ? "a pattern with a slash is for the whole path, and begins with a slash or a *"
                    : find_fault(value);
    }
    struct cache_rule *rules =
        fault != NULL ? NULL : reallocarray(extras->cache, (size_t)extras->cache_count + 1, sizeof *rules);
    if (rules == NULL) {
        free(pattern);
        if (fault == NULL)
            return -ENOMEM;
        *ret_why = fault;
        return -EINVAL;
    }
    rules[extras->cache_count++] = (struct cache_rule){pattern, value};
    extras->cache = rules;
    return 0;
}

int http_extras_add_header(struct http_extras *extras, const char *text, const char **ret_why)
{
    static const char token[] = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    size_t name = strspn(text, token);
    *ret_why = NULL;
    if (name == 0 || text[name] != ':')
        *ret_why = "it is Name: value, such as X-Frame-Options: DENY";
    else if (name == strlen("Cache-Control") && strncasecmp(text, "Cache-Control", name) == 0)
        *ret_why = "what caches may do is said by cache: *=VALUE";
    for (size_t i = 0; *ret_why == NULL && i < sizeof own / sizeof own[0]; i++)
        if (strlen(own[i]) == name && strncasecmp(text, own[i], name) == 0)
            *ret_why = "sluice makes this field itself";
    if (*ret_why != NULL)
        return -EINVAL;

    char *copy = strdup(text + name + 1);
    if (copy == NULL)
        return -ENOMEM;
    const char *value = trim(copy);
    size_t length = strlen(value), added = name + 2 + length + 2;
    *ret_why = find_fault(value);
    if (*ret_why == NULL && extras->header_length + added > EXTRAS_HEADER_MAX)
        *ret_why = "all fields together have more than 4096 bytes";
    char *header = *ret_why != NULL ? NULL : realloc(extras->header, extras->header_length + added + 1);
    if (header != NULL) {
        char *at = header + extras->header_length;
        memcpy(at, text, name);
        memcpy(at + name, ": ", 2);
        memcpy(at + name + 2, value, length);
        memcpy(at + name + 2 + length, "\r\n", 3);
        extras->header = header;
        extras->header_length += added;
    }
    free(copy);
    return header != NULL ? 0 : *ret_why != NULL ? -EINVAL : -ENOMEM;
}

/* Behind a star, what follows is tried at every place: going back to the last star is enough, as whatever an earlier
 * one could take, the last one can, too. */
static bool fits(const char *pattern, const char *text)
{
    const char *star = NULL, *again = NULL;
    while (*text != '\0') {
        if (*pattern == '*') {
            star = ++pattern;
            again = text;
        } else if (*pattern == *text || *pattern == '?') {
            pattern++;
            text++;
        } else if (star != NULL) {
            pattern = star;
            text = ++again;
        } else {
            return false;
        }
    }
    while (*pattern == '*')
        pattern++;
    return *pattern == '\0';
}

const char *http_extras_cache(const struct http_extras *extras, const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash == NULL ? path : slash + 1;
    for (unsigned i = 0; i < extras->cache_count; i++) {
        const struct cache_rule *rule = &extras->cache[i];
        /* Paths are kept without the slash that they begin with. */
        bool whole = strchr(rule->pattern, '/') != NULL;
        if (fits(rule->pattern + (whole && rule->pattern[0] == '/'), whole ? path : name))
            return rule->value;
    }
    return NULL;
}

void http_extras_free(struct http_extras *extras)
{
    for (unsigned i = 0; i < extras->cache_count; i++)
        free(extras->cache[i].pattern);
    free(extras->cache);
    free(extras->header);
    *extras = (struct http_extras){0};
}
