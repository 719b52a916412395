/* SPDX-License-Identifier: MIT */
#include "range.h"
#include "field.h"
#include <string.h>
#include <strings.h>

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

/* One element of the list, which is not empty. */
static enum http_range_result parse_one(const char *at, const char *end, uint64_t size, struct http_range *ret_range)
{
    if (*at == '-') {
        const char *digits = ++at;
        uint64_t count = take_number(&at, end);
        if (at == digits || at != end)
            return HTTP_RANGE_WHOLE;
        if (count == 0 || size == 0)
            return HTTP_RANGE_UNSATISFIABLE;
        *ret_range = (struct http_range){count < size ? size - count : 0, size - 1};
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
    *ret_range = (struct http_range){first, last < size ? last : size - 1};
    return HTTP_RANGE_PART;
}

/* Merges it with all that it overlaps or touches. One pass will do: what touches neither it nor another one of the list
 * does not touch the two together. */
static void add(struct http_ranges *ranges, struct http_range range)
{
    unsigned kept = 0, place = UINT32_MAX;
    for (unsigned i = 0; i < ranges->count; i++) {
        struct http_range other = ranges->list[i];
        /* No range ends at UINT64_MAX: last is less than the file's size. */
        if (range.first > other.last + 1 || other.first > range.last + 1) {
            ranges->list[kept++] = other;
            continue;
        }
        if (place == UINT32_MAX)
            place = kept++;
        range.first = other.first < range.first ? other.first : range.first;
        range.last = other.last > range.last ? other.last : range.last;
    }
    if (place == UINT32_MAX)
        place = kept++;
    ranges->list[place] = range;
    ranges->count = kept;
}

enum http_range_result http_range_parse(struct slice value, uint64_t size, struct http_ranges *ret_ranges)
{
    static const char unit[] = "bytes=";
    const size_t unit_length = sizeof unit - 1;
    if (value.data == NULL || value.length < unit_length || strncasecmp(value.data, unit, unit_length) != 0)
        return HTTP_RANGE_WHOLE;

    struct http_ranges ranges;
    unsigned asked = 0;
    ranges.count = 0;
    const char *at = value.data + unit_length, *end = value.data + value.length;
    for (struct slice element; field_next_element(&at, end, &element);) {
        struct http_range range;
        enum http_range_result result = parse_one(element.data, element.data + element.length, size, &range);
        if (result == HTTP_RANGE_WHOLE || asked++ == HTTP_RANGES_MAX)
            return HTTP_RANGE_WHOLE;
        if (result == HTTP_RANGE_PART)
            add(&ranges, range);
    }
    if (asked == 0)
        return HTTP_RANGE_WHOLE;
    if (ranges.count == 0)
        return HTTP_RANGE_UNSATISFIABLE;
    ret_ranges->count = ranges.count;
    memcpy(ret_ranges->list, ranges.list, ranges.count * sizeof ranges.list[0]);
    return HTTP_RANGE_PART;
}
