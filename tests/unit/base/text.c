/* SPDX-License-Identifier: MIT */
#include "base/text.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check.h"
#include <errno.h>
#include <fcntl.h>

static const char *size_text(uint64_t bytes)
{
    static char text[TEXT_SIZE_MAX];
    return text_format_size(bytes, text, sizeof text);
}

static const char *duration_text(uint64_t milliseconds)
{
    static char text[TEXT_SIZE_MAX];
    return text_format_duration(milliseconds, text, sizeof text);
}

TEST("sizes are shown in the largest unit, with a decimal only where it says something")
{
    CHECK_STR(size_text(0), "0 B");
    CHECK_STR(size_text(1023), "1023 B");
    CHECK_STR(size_text(1024), "1 KiB");
    CHECK_STR(size_text(1536 << 10), "1.5 MiB");
    CHECK_STR(size_text(UINT64_C(2) << 30), "2 GiB");
    CHECK_STR(size_text(UINT64_MAX), "16 EiB");
}

TEST("a size just below a unit is rounded into it, never shown as 1024 of the lower one")
{
    CHECK_STR(size_text((1 << 20) - 1), "1 MiB");
    CHECK_STR(size_text((1 << 20) - (1 << 10)), "1023 KiB");
}

TEST("durations are shown as people say them")
{
    CHECK_STR(duration_text(0), "0 ms");
    CHECK_STR(duration_text(999), "999 ms");
    CHECK_STR(duration_text(1500), "1.5 s");
    CHECK_STR(duration_text(30000), "30 s");
    CHECK_STR(duration_text(120000), "2 min");
    CHECK_STR(duration_text(90000), "1 min 30 s");
    CHECK_STR(duration_text(3900000), "1 h 5 min");
    CHECK_STR(duration_text(7200000), "2 h");
}

TEST("a text that does not fit is cut and terminated")
{
    char text[4] = "zzz";
    text_format_size(1536, text, sizeof text);
    CHECK_STR(text, "1.5");
}

TEST("unsigned numbers are digits and nothing else")
{
    uint64_t value = 7;
    CHECK_EQ(text_parse_unsigned("0", &value), 0);
    CHECK_EQ(value, 0);
    CHECK_EQ(text_parse_unsigned("18446744073709551615", &value), 0);
    CHECK(value == UINT64_MAX);
    value = 7;
    CHECK_EQ(text_parse_unsigned("18446744073709551616", &value), -ERANGE);
    static const char *const wrong[] = {"", " 1", "1 ", "+1", "-1", "0x10", "1e3", "1K", "one"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        CHECK_EQ(text_parse_unsigned(wrong[i], &value), -EINVAL);
    CHECK_EQ(value, 7);
}

static const struct {
    const char *text;
    uint64_t want;
} good_sizes[] = {{"0", 0},
                  {"65536", 65536},
                  {"64K", 65536},
                  {"64k", 65536},
                  {"64KiB", 65536},
                  {"1.5M", 1572864},
                  {"2G", UINT64_C(2) << 30},
                  {"1T", UINT64_C(1) << 40},
                  {"0.001K", 1},
                  {"12B", 12},
                  {"16777215T", UINT64_C(16777215) << 40},
                  {"0.999999999T", 1099511626676}};

TEST("sizes are parsed in powers of 1024, with a fraction where a unit allows it")
{
    for (size_t i = 0; i < sizeof good_sizes / sizeof good_sizes[0]; i++) {
        uint64_t value;
        CHECK_EQ(text_parse_size(good_sizes[i].text, &value), 0);
        CHECK_EQ(value, good_sizes[i].want);
    }
}

TEST("a size that is ambiguous, fractional in bytes or too large is refused and nothing is set")
{
    uint64_t value = 7;
    static const char *const wrong[] = {"",    "K",   "1KB", "1.5",           "1.5B", "1.K",
                                        ".5K", "-1K", "1 K", "1.0000000001K", "1X"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        CHECK_EQ(text_parse_size(wrong[i], &value), -EINVAL);
    CHECK_EQ(text_parse_size("16777216T", &value), -ERANGE);
    CHECK_EQ(text_parse_size("18446744073709551616", &value), -ERANGE);
    CHECK_EQ(value, 7);
}

TEST("durations are parsed with their unit, and in seconds without")
{
    uint64_t value;
    CHECK_EQ(text_parse_duration("500ms", &value), 0);
    CHECK_EQ(value, 500);
    CHECK_EQ(text_parse_duration("30", &value), 0);
    CHECK_EQ(value, 30000);
    CHECK_EQ(text_parse_duration("1.5s", &value), 0);
    CHECK_EQ(value, 1500);
    CHECK_EQ(text_parse_duration("2m", &value), 0);
    CHECK_EQ(value, 120000);
    CHECK_EQ(text_parse_duration("1h", &value), 0);
    CHECK_EQ(value, 3600000);
    CHECK_EQ(text_parse_duration("1.5ms", &value), -EINVAL);
    CHECK_EQ(text_parse_duration("soon", &value), -EINVAL);
}

TEST("error names and meanings are found for codes of either sign")
{
    CHECK_STR(text_errno_name(ECONNRESET), "ECONNRESET");
    CHECK_STR(text_errno_name(-ECONNRESET), "ECONNRESET");
    CHECK_STR(text_errno_name(99999), "E?");
    CHECK_STR(text_errno_name(INT32_MIN), "E?");
    CHECK_STR(text_errno_meaning(-ENOENT), "No such file or directory");
    CHECK_STR(text_errno_meaning(99999), "Unknown error");
}

TEST("the distance of two words counts inserts, deletes, replacements and swaps, up to the limit")
{
    CHECK_EQ(text_distance("listen", "listen", 9), 0);
    CHECK_EQ(text_distance("lisen", "listen", 9), 1);
    CHECK_EQ(text_distance("litsen", "listen", 9), 1);
    CHECK_EQ(text_distance("listens", "listen", 9), 1);
    CHECK_EQ(text_distance("", "listen", 9), 6);
    CHECK_EQ(text_distance("", "listen", 3), 3);
    CHECK_EQ(text_distance("a-name-of-more-than-sixty-three-letters-is-not-compared-with-anything", "a", 5), 5);
}

TEST("UTF-8 is told from what is not")
{
    static const struct {
        const char *text;
        size_t length;
    } cases[] = {
        {"a", 1},
        {"\x7f", 1},
        {"\xc2\x80", 2},
        {"\xdf\xbf"
         "a",
         2},
        {"\xe0\xa0\x80", 3},
        {"\xed\x9f\xbf", 3},
        {"\xef\xbf\xbf", 3},
        {"\xf0\x90\x80\x80", 4},
        {"\xf4\x8f\xbf\xbf", 4},
        {"", 0},
        {"\x80", 0},
        {"\xc1\xbf", 0},
        {"\xc3", 0},
        {"\xc3"
         "a",
         0},
        {"\xe0\x9f\xbf", 0},
        {"\xe2\x82", 0},
        {"\xe2\x82"
         "a",
         0},
        {"\xed\xa0\x80", 0},
        {"\xf0\x8f\xbf\xbf", 0},
        {"\xf0\x9f\x98", 0},
        {"\xf4\x90\x80\x80", 0},
        {"\xf5\x80\x80\x80", 0},
        {"\xff", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK_EQ(text_utf8_length(cases[i].text, strlen(cases[i].text)), cases[i].length);
}

TEST("checked arithmetic refuses what would wrap, and leaves the result alone")
{
    size_t value = 7;
    CHECK(!checked_add(SIZE_MAX, 1, &value));
    CHECK(!checked_mul(SIZE_MAX / 2 + 1, 2, &value));
    CHECK(!checked_round_up(SIZE_MAX, 64, &value));
    CHECK_EQ(value, 7);
    CHECK(checked_round_up(65, 64, &value));
    CHECK_EQ(value, 128);
    CHECK(checked_round_up(64, 64, &value));
    CHECK_EQ(value, 64);
}

TEST("a descriptor is closed at the end of its scope, unless it was taken")
{
    int closed, kept;
    {
        CLEANUP_FD int first = open("/dev/null", O_RDONLY);
        CLEANUP_FD int second = open("/dev/null", O_RDONLY);
        closed = first;
        kept = TAKE_FD(second);
        CHECK_EQ(second, -1);
        errno = EXDEV;
    }
    CHECK_EQ(errno, EXDEV);
    CHECK_EQ(fcntl(closed, F_GETFD), -1);
    CHECK_EQ(fcntl(kept, F_GETFD), 0);
    close(kept);
}

CHECK_MAIN()
