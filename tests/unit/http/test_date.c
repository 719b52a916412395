/* SPDX-License-Identifier: MIT */
#include "check.h"
#include "date.h"
#include <errno.h>

#define RFC_EXAMPLE 784111777 /* Sun, 06 Nov 1994 08:49:37 GMT */
#define NOW 1763688000        /* 21 November 2025 01:20:00 */

static const char *format(time_t when)
{
    static char text[HTTP_DATE_LENGTH + 2];
    text[HTTP_DATE_LENGTH] = '#';
    http_date_format(when, text);
    if (text[HTTP_DATE_LENGTH] != '#')
        return "wrote too much";
    text[HTTP_DATE_LENGTH] = '\0';
    return text;
}

static int parse_at(const char *text, time_t now, time_t *ret_when)
{
    size_t length = strlen(text);
    char *copy = malloc(length > 0 ? length : 1); /* exact, for the address sanitizer */
    memcpy(copy, text, length);
    int status = http_date_parse((struct slice){copy, length}, now, ret_when);
    free(copy);
    return status;
}

/* A time that no test means, where there is none. */
static time_t parse(const char *text)
{
    time_t when;
    return parse_at(text, NOW, &when) == 0 ? when : -1;
}

TEST("the example of the RFC is written and read in all three forms")
{
    CHECK_STR(format(RFC_EXAMPLE), "Sun, 06 Nov 1994 08:49:37 GMT");
    CHECK_EQ(parse("Sun, 06 Nov 1994 08:49:37 GMT"), RFC_EXAMPLE);
    CHECK_EQ(parse("Sunday, 06-Nov-94 08:49:37 GMT"), RFC_EXAMPLE);
    CHECK_EQ(parse("Sun Nov  6 08:49:37 1994"), RFC_EXAMPLE);
    CHECK_EQ(parse("Wed Nov 16 08:49:37 1994"), RFC_EXAMPLE + 10 * 86400);
}

TEST("dates are written as the C library writes them, at the ends of days, months, years and eras")
{
    for (int year = 0; year <= 9999; year += year % 100 == 0 || year % 100 == 99 ? 1 : 7) {
        for (int month = 0; month < 12; month++) {
            struct tm first_day = {.tm_year = year - 1900, .tm_mon = month, .tm_mday = 1};
            time_t start = timegm(&first_day);
            for (time_t when = start > -62167219200 ? start - 1 : start; when <= start; when++) {
                char want[64];
                struct tm parts;
                gmtime_r(&when, &parts);
                strftime(want, sizeof want, "%a, %d %b ", &parts);
                snprintf(want + 12, sizeof want - 12, "%04d ", parts.tm_year + 1900);
                strftime(want + 17, sizeof want - 17, "%H:%M:%S GMT", &parts);
                CHECK_STR(format(when), want);
                time_t back;
                CHECK_EQ(parse_at(want, NOW, &back), 0);
                CHECK_EQ(back, when);
            }
        }
    }
}

TEST("times outside the years 0 to 9999 are written as the nearest within")
{
    CHECK_STR(format(INT64_MIN), "Sat, 01 Jan 0000 00:00:00 GMT");
    CHECK_STR(format(-62167219201), "Sat, 01 Jan 0000 00:00:00 GMT");
    CHECK_STR(format(INT64_MAX), "Fri, 31 Dec 9999 23:59:59 GMT");
    CHECK_STR(format(253402300800), "Fri, 31 Dec 9999 23:59:59 GMT");
    CHECK_STR(format(-1), "Wed, 31 Dec 1969 23:59:59 GMT");
}

TEST("a two-digit year lies at most 50 years ahead, to the second")
{
    static const struct {
        const char *now, *text, *want;
    } cases[] = {
        {"Fri, 21 Nov 2025 01:20:00 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 GMT"},
        {"Fri, 21 Nov 2025 01:20:00 GMT", "Sunday, 06-Nov-25 08:49:37 GMT", "Thu, 06 Nov 2025 08:49:37 GMT"},
        {"Fri, 21 Nov 2025 01:20:00 GMT", "Sunday, 21-Nov-75 01:20:00 GMT", "Thu, 21 Nov 2075 01:20:00 GMT"},
        {"Fri, 21 Nov 2025 01:20:00 GMT", "Sunday, 21-Nov-75 01:20:01 GMT", "Fri, 21 Nov 1975 01:20:01 GMT"},
        {"Fri, 21 Nov 2025 01:20:00 GMT", "Sunday, 31-Dec-75 00:00:00 GMT", "Wed, 31 Dec 1975 00:00:00 GMT"},
        {"Fri, 21 Nov 2025 01:20:00 GMT", "Sunday, 01-Jan-76 00:00:00 GMT", "Thu, 01 Jan 1976 00:00:00 GMT"},
        {"Thu, 31 Dec 2099 00:00:00 GMT", "Sunday, 01-Jan-01 00:00:00 GMT", "Sat, 01 Jan 2101 00:00:00 GMT"},
        {"Wed, 06 Jan 1999 00:00:00 GMT", "Sunday, 01-Jan-49 00:00:00 GMT", "Fri, 01 Jan 2049 00:00:00 GMT"},
        {"Fri, 21 Nov 2025 01:20:00 GMT", "Sunday, 29-Feb-00 00:00:00 GMT", "Tue, 29 Feb 2000 00:00:00 GMT"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        time_t when;
        CHECK_EQ(parse_at(cases[i].text, parse(cases[i].now), &when), 0);
        CHECK_STR(format(when), cases[i].want);
    }
}

TEST("a two-digit year is resolved without overflow however odd the clock")
{
    time_t when;
    CHECK_EQ(parse_at("Sunday, 06-Nov-94 08:49:37 GMT", INT64_MAX, &when), 0);
    CHECK_STR(format(when), "Sun, 06 Nov 9994 08:49:37 GMT");
    CHECK_EQ(parse_at("Sunday, 06-Nov-94 08:49:37 GMT", INT64_MIN, &when), -EINVAL);
}

TEST("a leap second is the second after, and a 61st is none")
{
    CHECK_STR(format(parse("Sat, 31 Dec 2016 23:59:60 GMT")), "Sun, 01 Jan 2017 00:00:00 GMT");
    CHECK_EQ(parse("Sat, 31 Dec 2016 23:59:61 GMT"), -1);
}

TEST("the day of the week must be one but may be the wrong one")
{
    CHECK_EQ(parse("Mon, 06 Nov 1994 08:49:37 GMT"), RFC_EXAMPLE);
    CHECK_EQ(parse("Xon, 06 Nov 1994 08:49:37 GMT"), -1);
    CHECK_EQ(parse("Mondax, 06-Nov-94 08:49:37 GMT"), -1);
}

TEST("leap years are those of the Gregorian calendar")
{
    CHECK(parse("Thu, 29 Feb 2024 00:00:00 GMT") > 0);
    CHECK(parse("Tue, 29 Feb 2000 00:00:00 GMT") > 0);
    CHECK_EQ(parse("Thu, 29 Feb 2100 00:00:00 GMT"), -1);
    CHECK_EQ(parse("Wed, 29 Feb 2023 00:00:00 GMT"), -1);
    CHECK_EQ(parse("Wed, 30 Feb 2024 00:00:00 GMT"), -1);
}

TEST("a NUL after a good date does not end it")
{
    time_t when;
    CHECK_EQ(http_date_parse((struct slice){"Sun, 06 Nov 1994 08:49:37 GMT", HTTP_DATE_LENGTH + 1}, NOW, &when),
             -EINVAL);
}

TEST("anything else is refused and leaves the result alone")
{
    static const char *const texts[] = {
        "",
        "S",
        "Sun",
        "Sunday",
        "0",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 UTC",
        "Sun, 06 Nov 1994 08:49:37 gmt",
        "Sun, 06 Nov 1994 08:49:37 GMT ",
        " Sun, 06 Nov 1994 08:49:37 GMT",
        "sun, 06 Nov 1994 08:49:37 GMT",
        "Sun, 06 nov 1994 08:49:37 GMT",
        "Sun, 06 Nox 1994 08:49:37 GMT",
        "Sun, 6 Nov 1994 08:49:37 GMT",
        "Sun,  6 Nov 1994 08:49:37 GMT",
        "Sun, 00 Nov 1994 08:49:37 GMT",
        "Sun, 31 Nov 1994 08:49:37 GMT",
        "Sun, 32 Dec 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 24:00:00 GMT",
        "Sun, 06 Nov 1994 08:60:37 GMT",
        "Sun, 06 Nov 1994 08:49:61 GMT",
        "Sun, 06 Nov 1994 8:49:37 GMT",
        "Sun, 06 Nov -994 08:49:37 GMT",
        "Sun, 06 Nov 94 08:49:37 GMT",
        "Sunday, 06 Nov 1994 08:49:37 GMT",
        "Sun, 06-Nov-94 08:49:37 GMT",
        "Sunday, 06-Nov-1994 08:49:37 GMT",
        "Sunday, 31-Feb-94 08:49:37 GMT",
        "Sun Nov 6 08:49:37 1994",
        "Sun Nov 06 08:49:37 94",
        "Sun Nov    08:49:37 1994",
        "Sun Nov 6  08:49:37 1994",
        "Sun Nov  6 08:49:37 1994 GMT",
        "Sun, 06 Nov 1994 08:49:37 GMTX",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        time_t when = 4711;
        if (parse_at(texts[i], NOW, &when) != -EINVAL || when != 4711)
            CHECK_FAIL("\"%s\" is not refused", texts[i]);
    }
}

CHECK_MAIN()
