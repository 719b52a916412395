/* SPDX-License-Identifier: MIT */
#include "range.h"
#include <string.h>
#include <strings.h>

static bool is_blank(char byte)
{
    return byte == ' ' || byte == '\t';
}

/* Steps over digits. Their value, or UINT64_MAX if it is larger: no file reaches there, so that is as good. */
static uint64_t take_number(const char **at, const char *end)
{
    uint64_t number = 0;
    for (; *at < end && **at >= '0' && **at <= '9'; ++*at) {
        if (__builtin_mul_overflow(number, 10, &number) ||
            __builtin_add_overflow(number, (uint64_t)(**at - '0'), &number)) {
            while (*at < end && **at >= '0' && **at <= '9')
                ++*at;
            return UINT64_MAX;
        }
    }
    return number;
}

enum http_range_result http_range_parse(struct slice value, uint64_t size, uint64_t *ret_first, uint64_t *ret_last)
{
    static const char unit[] = "bytes=";
    const size_t unit_length = sizeof unit - 1;
    if (value.data == NULL || value.length < unit_length || strncasecmp(value.data, unit, unit_length) != 0)
        return HTTP_RANGE_WHOLE;

    /* The one element of the list that is not empty: RFC 9110, 5.6.1.2 has us pass over empty ones. */
    struct slice range = {NULL, 0};
    const char *end = value.data + value.length;
    for (const char *at = value.data + unit_length; at < end;) {
        const char *comma = memchr(at, ',', (size_t)(end - at));
        const char *next = comma != NULL ? comma : end, *last = next;
        while (at < last && is_blank(*at))
            at++;
        while (last > at && is_blank(last[-1]))
            last--;
        if (at < last) {
            if (range.data != NULL)
                return HTTP_RANGE_WHOLE;
            range = (struct slice){at, (size_t)(last - at)};
        }
        at = next + 1;
    }
    if (range.data == NULL)
        return HTTP_RANGE_WHOLE;

    const char *at = range.data;
    end = at + range.length;
    if (*at == '-') {
        const char *digits = ++at;
        uint64_t count = take_number(&at, end);
        if (at == digits || at != end)
            return HTTP_RANGE_WHOLE;
        if (count == 0 || size == 0)
            return HTTP_RANGE_UNSATISFIABLE;
        *ret_first = count < size ? size - count : 0;
        *ret_last = size - 1;
        return HTTP_RANGE_PART;
    }

    uint64_t first = take_number(&at, end), last = UINT64_MAX;
    if (at == end || *at++ != '-')
        return HTTP_RANGE_WHOLE;
    if (at < end) {
        last = take_number(&at, end); /* without a digit it stays where it is, short of the end */
        if (at != end || last < first)
            return HTTP_RANGE_WHOLE;
    }
    if (first >= size)
        return HTTP_RANGE_UNSATISFIABLE;
    *ret_first = first;
    *ret_last = last < size ? last : size - 1;
    return HTTP_RANGE_PART;
}
