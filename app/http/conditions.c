/* SPDX-License-Identifier: MIT */
#include "conditions.h"
#include "date.h"

#include <string.h>

static bool present(struct slice value)
{
    return value.data != NULL;
}

/* An entity tag at *at, W/ included; steps over it. False when there is none. */
static bool take_etag(const char **at, const char *end, struct slice *ret_tag, bool *ret_weak)
{
    bool weak = end - *at >= 2 && (*at)[0] == 'W' && (*at)[1] == '/';
    const char *quote = *at + (weak ? 2 : 0);
    if (quote == end || *quote != '"')
        return false;
    const char *close = memchr(quote + 1, '"', (size_t)(end - quote - 1));
    if (close == NULL)
        return false;
    *ret_tag = (struct slice){quote, (size_t)(close + 1 - quote)};
    *ret_weak = weak;
    *at = close + 1;
    return true;
}

static bool equal(struct slice a, struct slice b)
{
    return a.length == b.length && memcmp(a.data, b.data, a.length) == 0;
}

/* "*" or a list of entity tags. A list that breaks off as malformed matches with what came before. */
static bool matches(struct slice list, const struct representation *representation, bool strong)
{
    const char *at = list.data, *end = at + list.length;
    if (list.length == 1 && *at == '*')
        return true;
    for (;;) {
        while (at < end && (*at == ' ' || *at == '\t' || *at == ','))
            at++;
        struct slice tag;
        bool weak;
        if (at == end || !take_etag(&at, end, &tag, &weak))
            return false;
        if (equal(tag, representation->etag) && !(strong && (weak || representation->weak)))
            return true;
    }
}

/* Is the file later than the date? A field that is no date is as absent (RFC 9110, 13.1.3): ret_valid. */
static bool modified_after(struct slice value, const struct representation *representation, time_t now, bool *ret_valid)
{
    time_t date;
    *ret_valid = http_date_parse(value, now, &date) == 0;
    return *ret_valid && representation->modified > date;
}

/* May the part be sent, or did the file change since the client got the rest? */
static bool range_applies(const struct http_request *request, const struct representation *representation, time_t now)
{
    struct slice value = request->if_range, tag;
    if (!present(value))
        return true;
    const char *at = value.data, *end = at + value.length;
    bool weak;
    if (take_etag(&at, end, &tag, &weak))
        return at == end && !weak && !representation->weak && equal(tag, representation->etag);
    time_t date;
    /* By date only an exact match counts, and only for a date that is a strong validator: at least one second before
     * now, as the file could have changed again within its own second (8.8.2.2). */
    return http_date_parse(value, now, &date) == 0 && date == representation->modified && now > date;
}

unsigned conditions_evaluate(const struct http_request *request, const struct representation *representation,
                             time_t now, struct http_ranges *ret_ranges)
{
    bool valid;

    /* In the order of RFC 9110, 13.2.2. */
    if (present(request->if_match)) {
        if (!matches(request->if_match, representation, true))
            return 412;
    } else if (present(request->if_unmodified_since)) {
        if (modified_after(request->if_unmodified_since, representation, now, &valid) && valid)
            return 412;
    }
    if (present(request->if_none_match)) {
        if (matches(request->if_none_match, representation, false))
            return 304;
    } else if (present(request->if_modified_since)) {
        if (!modified_after(request->if_modified_since, representation, now, &valid) && valid)
            return 304;
    }

    /* Range means nothing but in a GET (14.2). */
    if (present(request->range) && request->method == HTTP_GET && range_applies(request, representation, now)) {
        switch (http_range_parse(request->range, representation->size, ret_ranges)) {
        case HTTP_RANGE_PART:
            return 206;
        case HTTP_RANGE_UNSATISFIABLE:
            return 416;
        case HTTP_RANGE_WHOLE:
            break;
        }
    }
    return 200;
}
