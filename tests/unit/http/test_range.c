/* SPDX-License-Identifier: MIT */
#include "check.h"
#include "range.h"

#define UNTOUCHED 4711

static struct http_ranges ranges;

static enum http_range_result parse(const char *text, uint64_t size)
{
    ranges.count = UNTOUCHED;
    size_t length = strlen(text);
    char *copy = malloc(length + 1); /* exact, for the address sanitizer */
    copy = realloc(copy, length > 0 ? length : 1);
    memcpy(copy, text, length);
    enum http_range_result result = http_range_parse((struct slice){copy, length}, size, &ranges);
    free(copy);
    return result;
}

TEST("one range is served, clamped to the file")
{
    static const struct {
        const char *text;
        uint64_t size, first, last;
    } cases[] = {
        {"bytes=0-", 10, 0, 9},
        {"bytes=0-0", 10, 0, 0},
        {"bytes=5-9", 10, 5, 9},
        {"bytes=5-", 10, 5, 9},
        {"bytes=5-10", 10, 5, 9},
        {"bytes=9-9", 10, 9, 9},
        {"bytes=9-1000", 10, 9, 9},
        {"bytes=-5", 10, 5, 9},
        {"bytes=-10", 10, 0, 9},
        {"bytes=-11", 10, 0, 9},
        {"BYTES=1-2", 10, 1, 2},
        {"bytes=00001-0002", 10, 1, 2},
        {"bytes= 1-2", 10, 1, 2},
        {"bytes=1-2 ", 10, 1, 2},
        {"bytes=,1-2", 10, 1, 2},
        {"bytes=1-2,", 10, 1, 2},
        {"bytes=\t,, 1-2 ,\t,", 10, 1, 2},
        {"bytes=0-18446744073709551615", 10, 0, 9},
        {"bytes=0-18446744073709551616", 10, 0, 9},
        {"bytes=0-99999999999999999999999999999999", 10, 0, 9},
        {"bytes=-18446744073709551616", 10, 0, 9},
        {"bytes=-18446744073709551610", 10, 0, 9},
        {"bytes=18446744073709551614-", UINT64_MAX, UINT64_MAX - 1, UINT64_MAX - 1},
        {"bytes=0-", UINT64_MAX, 0, UINT64_MAX - 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        enum http_range_result result = parse(cases[i].text, cases[i].size);
        if (result != HTTP_RANGE_PART || ranges.count != 1 || ranges.list[0].first != cases[i].first ||
            ranges.list[0].last != cases[i].last)
            CHECK_FAIL("\"%s\" gives %d, %llu-%llu", cases[i].text, (int)result,
                       (unsigned long long)ranges.list[0].first, (unsigned long long)ranges.list[0].last);
    }
}

TEST("a range without a byte of the file cannot be satisfied and leaves the results alone")
{
    static const struct {
        const char *text;
        uint64_t size;
    } cases[] = {
        {"bytes=10-", 10},
        {"bytes=18446744073709551620-", 10},
        {"bytes=10-20", 10},
        {"bytes=-0", 10},
        {"bytes=0-", 0},
        {"bytes=0-0", 0},
        {"bytes=-5", 0},
        {"bytes=-000", 10},
        {"bytes=99999999999999999999-", 10},
        {"bytes=18446744073709551615-", UINT64_MAX},
        {"bytes=99999999999999999999-99999999999999999999", 10},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (parse(cases[i].text, cases[i].size) != HTTP_RANGE_UNSATISFIABLE)
            CHECK_FAIL("\"%s\" is not unsatisfiable", cases[i].text);
        CHECK_EQ(ranges.count, UNTOUCHED);
    }
}

TEST("what is malformed or of another unit means the whole file, also as one of several")
{
    static const char *const texts[] = {
        "",
        "bytes",
        "bytes=",
        "bytes= ",
        "bytes=-",
        "bytes=,",
        "bytes=--5",
        "bytes=5",
        "bytes=5-4",
        "bytes=a-",
        "bytes=0-a",
        "bytes=0-5x",
        "bytes=x0-5",
        "bytes=+1-2",
        "bytes=1 -2",
        "bytes=1- 2",
        "bytes = 1-2",
        "bytes:1-2",
        "byte=1-2",
        "lines=1-2",
        "bytes=0-1, x",
        "bytes=x, 0-1",
        "bytes=0-1,5-4",
        "bytes=20-,-",
        "bytes=0x1-2",
        "bytes=1-2-3",
        "bytes=1-2;3-4",
        "bytes=0-1 3-4",
        "bytes=-5-6",
        "bytes=- 5",
        "=1-2",
        "bytes==1-2",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        if (parse(texts[i], 10) != HTTP_RANGE_WHOLE)
            CHECK_FAIL("\"%s\" is not the whole file", texts[i]);
        CHECK_EQ(ranges.count, UNTOUCHED);
    }
}

TEST("an absent range means the whole file")
{
    CHECK_EQ(http_range_parse((struct slice){NULL, 0}, 10, &ranges), HTTP_RANGE_WHOLE);
}

/* "0-1 5-6" */
static const char *text_of(const char *list, uint64_t size)
{
    static char text[32 * HTTP_RANGES_MAX];
    enum http_range_result result = parse(list, size);
    if (result != HTTP_RANGE_PART)
        return result == HTTP_RANGE_WHOLE ? "whole" : "unsatisfiable";
    size_t length = 0;
    for (unsigned i = 0; i < ranges.count; i++)
        length += (size_t)snprintf(text + length, sizeof text - length, "%s%llu-%llu", i > 0 ? " " : "",
                                   (unsigned long long)ranges.list[i].first, (unsigned long long)ranges.list[i].last);
    return text;
}

TEST("several ranges come in the order in which they were asked for, and those outside of the file are left out")
{
    CHECK_STR(text_of("bytes=0-1,5-6", 10), "0-1 5-6");
    CHECK_STR(text_of("bytes=5-6 , 0-1", 10), "5-6 0-1");
    CHECK_STR(text_of("bytes=-1,0-0,3-4", 10), "9-9 0-0 3-4");
    CHECK_STR(text_of("bytes=20-30,0-1,10-,-0,8-", 10), "0-1 8-9");
    CHECK_STR(text_of("bytes=20-30,0-1", 10), "0-1");
    CHECK_STR(text_of("bytes=20-30,10-,-0", 10), "unsatisfiable");
    CHECK_STR(text_of("bytes=0-1,5-6", 0), "unsatisfiable");
    CHECK_STR(text_of("bytes=,,0-1,,5-6,", 10), "0-1 5-6");
}

TEST("ranges that overlap or touch are merged, where the first of them stood")
{
    CHECK_STR(text_of("bytes=0-4,5-9", 10), "0-9");
    CHECK_STR(text_of("bytes=5-9,0-4", 10), "0-9");
    CHECK_STR(text_of("bytes=0-0,2-2", 10), "0-0 2-2");
    CHECK_STR(text_of("bytes=0-0,2-2,1-1", 10), "0-2");
    CHECK_STR(text_of("bytes=0-0,2-2,4-4,6-6,1-5", 10), "0-6");
    CHECK_STR(text_of("bytes=6-6,9-9,0-0,5-7", 10), "5-7 9-9 0-0");
    CHECK_STR(text_of("bytes=9-9,0-0,2-2,3-8", 10), "2-9 0-0");
    CHECK_STR(text_of("bytes=0-,0-,-1,5-5", 10), "0-9");
    CHECK_STR(text_of("bytes=-1,-1", 10), "9-9");
    CHECK_STR(text_of("bytes=18446744073709551610-,0-0", UINT64_MAX), "18446744073709551610-18446744073709551614 0-0");
}

TEST("a list of more ranges than are served means the whole file, one of just as many does not")
{
    char list[16 * HTTP_RANGES_MAX] = "bytes=";
    for (unsigned i = 0; i < HTTP_RANGES_MAX; i++)
        sprintf(list + strlen(list), "%u-%u,", 2 * i, 2 * i);
    CHECK_EQ(parse(list, 1000), HTTP_RANGE_PART);
    CHECK_EQ(ranges.count, HTTP_RANGES_MAX);
    strcat(list, "5000-");
    CHECK_EQ(parse(list, 1000), HTTP_RANGE_WHOLE);
}

CHECK_MAIN()
