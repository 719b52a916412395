/* SPDX-License-Identifier: MIT */
#include "check.h"
#include "http/conditions.h"

#define SLICE(text) ((struct slice){text, sizeof text - 1})
#define MODIFIED 784111777 /* Sun, 06 Nov 1994 08:49:37 GMT */
#define BEFORE SLICE("Sun, 06 Nov 1994 08:49:36 GMT")
#define EXACTLY SLICE("Sun, 06 Nov 1994 08:49:37 GMT")
#define AFTER SLICE("Sun, 06 Nov 1994 08:49:38 GMT")

static struct http_request request;
static struct representation file;
static struct http_ranges ranges;

static void begin(void)
{
    request = (struct http_request){.method = HTTP_GET, .minor = 1};
    file = (struct representation){.size = 1000, .modified = MODIFIED, .etag = SLICE("\"tag\"")};
}

static unsigned evaluate(void)
{
    return conditions_evaluate(&request, &file, MODIFIED + 100, &ranges);
}

TEST("without conditions the whole file is sent")
{
    begin();
    CHECK_EQ(evaluate(), 200);
}

TEST("If-None-Match compares weakly, in a list, and with a star")
{
    begin();
    request.if_none_match = SLICE("\"other\" ,W/\"tag\"");
    CHECK_EQ(evaluate(), 304);
    request.if_none_match = SLICE("*");
    CHECK_EQ(evaluate(), 304);
    request.if_none_match = SLICE("\"other\", \"tagg\"");
    CHECK_EQ(evaluate(), 200);
    file.weak = true;
    request.if_none_match = SLICE("\"tag\"");
    CHECK_EQ(evaluate(), 304);
}

TEST("If-None-Match takes precedence over If-Modified-Since")
{
    begin();
    request.if_none_match = SLICE("\"other\"");
    request.if_modified_since = EXACTLY;
    CHECK_EQ(evaluate(), 200);
}

TEST("If-Modified-Since gives 304 unless the file is later")
{
    begin();
    request.if_modified_since = EXACTLY;
    CHECK_EQ(evaluate(), 304);
    request.if_modified_since = AFTER;
    CHECK_EQ(evaluate(), 304);
    request.if_modified_since = BEFORE;
    CHECK_EQ(evaluate(), 200);
    request.if_modified_since = SLICE("yesterday");
    CHECK_EQ(evaluate(), 200);
}

TEST("If-Match compares strongly and takes precedence over If-Unmodified-Since")
{
    begin();
    request.if_match = SLICE("\"tag\"");
    request.if_unmodified_since = BEFORE;
    CHECK_EQ(evaluate(), 200);
    request.if_match = SLICE("W/\"tag\"");
    CHECK_EQ(evaluate(), 412);
    request.if_match = SLICE("*");
    CHECK_EQ(evaluate(), 200);
    request.if_match = SLICE("\"tag\"");
    file.weak = true;
    CHECK_EQ(evaluate(), 412);
}

TEST("If-Unmodified-Since gives 412 when the file is later; no date is no condition")
{
    begin();
    request.if_unmodified_since = BEFORE;
    CHECK_EQ(evaluate(), 412);
    request.if_unmodified_since = EXACTLY;
    CHECK_EQ(evaluate(), 200);
    request.if_unmodified_since = SLICE("never");
    CHECK_EQ(evaluate(), 200);
}

TEST("a failed If-Match outranks a matching If-None-Match")
{
    begin();
    request.if_match = SLICE("\"other\"");
    request.if_none_match = SLICE("\"tag\"");
    CHECK_EQ(evaluate(), 412);
}

TEST("a range gives its part, or 416 beyond the end, and only for GET")
{
    begin();
    request.range = SLICE("bytes=10-19");
    CHECK_EQ(evaluate(), 206);
    CHECK_EQ(ranges.count, 1);
    CHECK_EQ(ranges.list[0].first, 10);
    CHECK_EQ(http_range_length(&ranges.list[0]), 10);
    request.range = SLICE("bytes=10-19, 30-");
    CHECK_EQ(evaluate(), 206);
    CHECK_EQ(ranges.count, 2);
    CHECK_EQ(ranges.list[1].last, 999);
    request.range = SLICE("bytes=1000-");
    CHECK_EQ(evaluate(), 416);
    request.method = HTTP_HEAD;
    CHECK_EQ(evaluate(), 200);
}

TEST("If-Range lets the range through only for a strong match")
{
    begin();
    request.range = SLICE("bytes=10-19");
    request.if_range = SLICE("\"tag\"");
    CHECK_EQ(evaluate(), 206);
    request.if_range = SLICE("W/\"tag\"");
    CHECK_EQ(evaluate(), 200);
    request.if_range = SLICE("\"other\"");
    CHECK_EQ(evaluate(), 200);
    file.weak = true;
    request.if_range = SLICE("\"tag\"");
    CHECK_EQ(evaluate(), 200);
}

TEST("If-Range by date wants the very date, and one that is over")
{
    begin();
    request.range = SLICE("bytes=10-19");
    request.if_range = EXACTLY;
    CHECK_EQ(evaluate(), 206);
    CHECK_EQ(conditions_evaluate(&request, &file, MODIFIED, &ranges), 200);
    request.if_range = AFTER;
    CHECK_EQ(evaluate(), 200);
    request.if_range = SLICE("soon");
    CHECK_EQ(evaluate(), 200);
}

TEST("a 304 outranks a range")
{
    begin();
    request.range = SLICE("bytes=10-19");
    request.if_none_match = SLICE("\"tag\"");
    CHECK_EQ(evaluate(), 304);
}

CHECK_MAIN()
