/* SPDX-License-Identifier: MIT */
#include "accept.h"
#include "field.h"

#include <string.h>
#include <strings.h>

/* The first of two bytes that stands outside quotes; or end. */
static const char *find(const char *at, const char *end, char one, char other)
{
    bool quoted = false;
    for (; at < end; at++) {
        if (quoted && *at == '\\' && at + 1 < end)
            at++;
        else if (*at == '"')
            quoted = !quoted;
        else if (!quoted && (*at == one || *at == other))
            break;
    }
    return at;
}

/* qvalue: "0", "0.5", "1.000". */
static unsigned parse_quality(struct slice text)
{
    if (text.length == 0 || text.length > 5 || (text.data[0] != '0' && text.data[0] != '1') ||
        (text.length > 1 && text.data[1] != '.'))
        return 0;
    unsigned quality = text.data[0] == '1' ? ACCEPT_QUALITY_MAX : 0, unit = ACCEPT_QUALITY_MAX / 10;
    for (size_t i = 2; i < text.length; i++, unit /= 10) {
        if (text.data[i] < '0' || text.data[i] > '9')
            return 0;
        quality += unit * (unsigned)(text.data[i] - '0');
    }
    return quality <= ACCEPT_QUALITY_MAX ? quality : 0;
}

bool accept_next(struct slice *rest, struct slice *ret_name, unsigned *ret_quality)
{
    while (rest->data != NULL && rest->length > 0) {
        const char *end = rest->data + rest->length, *comma = find(rest->data, end, ',', ',');
        const char *semicolon = find(rest->data, comma, ';', ';');
        struct slice name = field_trim(rest->data, semicolon);
        unsigned quality = ACCEPT_QUALITY_MAX;
        while (semicolon < comma) {
            const char *next = find(semicolon + 1, comma, ';', ';');
            struct slice parameter = field_trim(semicolon + 1, next);
            if (parameter.length >= 2 && (parameter.data[0] | 0x20) == 'q' && parameter.data[1] == '=')
                quality = parse_quality((struct slice){parameter.data + 2, parameter.length - 2});
            semicolon = next;
        }
        const char *after = comma < end ? comma + 1 : end;
        *rest = (struct slice){after, (size_t)(end - after)};
        if (name.length == 0)
            continue;
        *ret_name = name;
        *ret_quality = quality;
        return true;
    }
    return false;
}

/* How specifically a media range speaks of a type: 0 not at all, 1 for all types, 2 for all of its kind, 3 for it. */
static unsigned specificity(struct slice range, const char *type)
{
    size_t kind = strcspn(type, "/") + 1;
    if (range.length == 3 && memcmp(range.data, "*/*", 3) == 0)
        return 1;
    if (range.length == kind + 1 && range.data[kind] == '*' && strncasecmp(range.data, type, kind) == 0)
        return 2;
    return range.length == strlen(type) && strncasecmp(range.data, type, range.length) == 0 ? 3 : 0;
}

unsigned accept_media_type(struct slice field, const char *type)
{
    if (field.data == NULL)
        return ACCEPT_QUALITY_MAX;
    unsigned best = 0, result = 0, quality;
    struct slice range;
    while (accept_next(&field, &range, &quality)) {
        unsigned found = specificity(range, type);
        if (found > best) {
            best = found;
            result = quality;
        }
    }
    return result;
}
