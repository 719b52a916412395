/* SPDX-License-Identifier: MIT */
#include "check.h"
#include "range.h"

#define UNTOUCHED 4711

static uint64_t first, last;

static enum http_range_result parse(const char *text, uint64_t size)
{
    first = last = UNTOUCHED;
    size_t length = strlen(text);
    char *copy = malloc(length + 1); /* exact, for the address sanitizer */
    copy = realloc(copy, length > 0 ? length : 1);
    memcpy(copy, text, length);
    enum http_range_result result = http_range_parse((struct slice){copy, length}, size, &first, &last);
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
        if (result != HTTP_RANGE_PART || first != cases[i].first || last != cases[i].last)
            CHECK_FAIL("\"%s\" gives %d, %llu-%llu", cases[i].text, (int)result, (unsigned long long)first,
                       (unsigned long long)last);
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
        CHECK_EQ(first, UNTOUCHED);
        CHECK_EQ(last, UNTOUCHED);
    }
}

TEST("what is malformed, of another unit or more than one range means the whole file")
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
        "bytes=0-1,3-4",
        "bytes=-1,-1",
        "bytes=0-1, x",
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
        CHECK_EQ(first, UNTOUCHED);
        CHECK_EQ(last, UNTOUCHED);
    }
}

TEST("an absent range means the whole file")
{
    CHECK_EQ(http_range_parse((struct slice){NULL, 0}, 10, &first, &last), HTTP_RANGE_WHOLE);
}

CHECK_MAIN()
