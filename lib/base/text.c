/* SPDX-License-Identifier: MIT */
#include "base/text.h"
#include "base/checked.h"
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

char *text_format_size(uint64_t bytes, char *buffer, size_t size)
{
    static const char units[][4] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned unit = 0;
    uint64_t whole = bytes, tenths = 0;
    while (whole >= 1024) {
        unit++;
        whole >>= 10;
    }
    if (unit > 0) {
        /* Rounded to a tenth, half up; what rounds to 1024.0 is 1 of the next unit. */
        uint64_t one = UINT64_C(1) << (10 * unit);
        tenths = ((bytes & (one - 1)) / (one >> 10) * 10 + 512) >> 10;
        if (tenths == 10) {
            tenths = 0;
            whole++;
        }
        if (whole == 1024) {
            whole = 1;
            unit++;
        }
    }
    if (tenths > 0)
        snprintf(buffer, size, "%" PRIu64 ".%" PRIu64 " %s", whole, tenths, units[unit]);
    else
        snprintf(buffer, size, "%" PRIu64 " %s", whole, units[unit]);
    return buffer;
}

char *text_format_duration(uint64_t milliseconds, char *buffer, size_t size)
{
    uint64_t seconds = milliseconds / 1000, minutes = seconds / 60, hours = minutes / 60;
    if (milliseconds < 1000)
        snprintf(buffer, size, "%" PRIu64 " ms", milliseconds);
    else if (seconds < 60 && milliseconds % 1000 >= 100)
        snprintf(buffer, size, "%" PRIu64 ".%" PRIu64 " s", seconds, milliseconds % 1000 / 100);
    else if (seconds < 60)
        snprintf(buffer, size, "%" PRIu64 " s", seconds);
    else if (minutes < 60 && seconds % 60 != 0)
        snprintf(buffer, size, "%" PRIu64 " min %" PRIu64 " s", minutes, seconds % 60);
    else if (minutes < 60)
        snprintf(buffer, size, "%" PRIu64 " min", minutes);
    else if (minutes % 60 != 0)
        snprintf(buffer, size, "%" PRIu64 " h %" PRIu64 " min", hours, minutes % 60);
    else
        snprintf(buffer, size, "%" PRIu64 " h", hours);
    return buffer;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Read digits from *text on, and move it behind them. */
static int read_digits(const char **text, uint64_t *ret_value)
{
    const char *at = *text;
    uint64_t value = 0;
    if (!is_digit(*at))
        return -EINVAL;
    for (; is_digit(*at); at++)
        if (!checked_mul_u64(value, 10, &value) || !checked_add_u64(value, (uint64_t)(*at - '0'), &value))
            return -ERANGE;
    *text = at;
    *ret_value = value;
    return 0;
}

int text_parse_unsigned(const char *text, uint64_t *ret_value)
{
    uint64_t value;
    int result = read_digits(&text, &value);
    if (result < 0)
        return result;
    if (*text != '\0')
        return -EINVAL;
    *ret_value = value;
    return 0;
}

struct unit {
    const char *name;
    uint64_t factor;
};

/* "1.5K": digits, perhaps a fraction of at most nine digits, and the name of a unit. The result is rounded down. */
static int parse_with_unit(const char *text, const struct unit *units, size_t unit_count, uint64_t *ret_value)
{
    uint64_t whole, fraction = 0, divisor = 1;
    int result = read_digits(&text, &whole);
    if (result < 0)
        return result;
    if (*text == '.') {
        text++;
        if (!is_digit(*text))
            return -EINVAL;
        for (; is_digit(*text); text++) {
            if (divisor == 1000000000)
                return -EINVAL;
            fraction = fraction * 10 + (uint64_t)(*text - '0');
            divisor *= 10;
        }
    }
    for (size_t i = 0; i < unit_count; i++) {
        if (strcasecmp(text, units[i].name) != 0)
            continue;
        uint64_t factor = units[i].factor, value;
        /* Half a byte and half a millisecond cannot be had. */
        if (divisor > 1 && factor == 1)
            return -EINVAL;
        /* In two parts, so that fraction * factor cannot overflow: fraction < 10^9 and factor % divisor < 10^9. */
        uint64_t extra = factor / divisor * fraction + factor % divisor * fraction / divisor;
        if (!checked_mul_u64(whole, factor, &value) || !checked_add_u64(value, extra, &value))
            return -ERANGE;
        *ret_value = value;
        return 0;
    }
    return -EINVAL;
}

int text_parse_size(const char *text, uint64_t *ret_bytes)
{
    static const struct unit units[] = {
        {"", 1},
        {"B", 1},
        {"K", UINT64_C(1) << 10},
        {"KiB", UINT64_C(1) << 10},
        {"M", UINT64_C(1) << 20},
        {"MiB", UINT64_C(1) << 20},
        {"G", UINT64_C(1) << 30},
        {"GiB", UINT64_C(1) << 30},
        {"T", UINT64_C(1) << 40},
        {"TiB", UINT64_C(1) << 40},
    };
    return parse_with_unit(text, units, sizeof units / sizeof units[0], ret_bytes);
}

int text_parse_duration(const char *text, uint64_t *ret_milliseconds)
{
    static const struct unit units[] = {
        {"", 1000}, {"ms", 1}, {"s", 1000}, {"m", 60000}, {"min", 60000}, {"h", 3600000}, {"d", 86400000},
    };
    return parse_with_unit(text, units, sizeof units / sizeof units[0], ret_milliseconds);
}

static int absolute_code(int code)
{
    return code < 0 && code != INT32_MIN ? -code : code;
}

const char *text_errno_name(int code)
{
    const char *name = strerrorname_np(absolute_code(code));
    return name != NULL ? name : "E?";
}

const char *text_errno_meaning(int code)
{
    /* The untranslated text: messages do not change with the locale, and the result is static. */
    const char *meaning = strerrordesc_np(absolute_code(code));
    return meaning != NULL ? meaning : "Unknown error";
}

/* The Unicode Standard, table 3-7: what is not well-formed shows in the first two bytes, or in one that does not
 * continue. */
size_t text_utf8_length(const char *text, size_t length)
{
    const unsigned char *bytes = (const unsigned char *)text;
    if (length == 0)
        return 0;
    unsigned char first = bytes[0], low = 0x80, high = 0xbf;
    size_t count = first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
    if (first == 0xe0)
        low = 0xa0;
    else if (first == 0xed)
        high = 0x9f;
    else if (first == 0xf0)
        low = 0x90;
    else if (first == 0xf4)
        high = 0x8f;
    if (count > length || (count > 1 && (bytes[1] < low || bytes[1] > high)))
        return 0;
    for (size_t i = 2; i < count; i++)
        if ((bytes[i] & 0xc0) != 0x80)
            return 0;
    return count;
}

#define DISTANCE_MAX 63

/* Optimal string alignment, row by row: three rows are enough to see a swap of neighbours. */
unsigned text_distance(const char *a, const char *b, unsigned limit)
{
    size_t a_length = strlen(a), b_length = strlen(b);
    if (a_length > DISTANCE_MAX || b_length > DISTANCE_MAX)
        return limit;
    unsigned rows[3][DISTANCE_MAX + 1];
    unsigned *before = rows[0], *above = rows[1], *row = rows[2];
    for (unsigned j = 0; j <= b_length; j++)
        above[j] = j;
    memset(before, 0, sizeof rows[0]);
    for (unsigned i = 1; i <= a_length; i++) {
        row[0] = i;
        for (unsigned j = 1; j <= b_length; j++) {
            unsigned best = above[j - 1] + (a[i - 1] != b[j - 1]);
            if (above[j] + 1 < best)
                best = above[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            row[j] = best;
        }
        unsigned *oldest = before;
        before = above;
        above = row;
        row = oldest;
    }
    return above[b_length] < limit ? above[b_length] : limit;
}

const char *text_behind(const char *text, const char *prefix)
{
    size_t length = strlen(prefix);
    return strncmp(text, prefix, length) == 0 ? text + length : text;
}

bool text_colour_wanted(void)
{
    const char *refused = getenv("NO_COLOR"), *terminal = getenv("TERM");
    return (refused == NULL || refused[0] == '\0') && (terminal == NULL || strcmp(terminal, "dumb") != 0);
}
