/* SPDX-License-Identifier: MIT */
#include "body.h"
#include "check.h"

static size_t used;

/* Of a chunked body when length is UINT64_MAX, in pieces of so many bytes. */
static int take(uint64_t length, const char *data, size_t size, size_t piece)
{
    struct http_request request = {.has_body = true, .chunked = length == UINT64_MAX};
    if (!request.chunked)
        request.content_length = length;
    struct http_body body;
    int r = http_body_begin(&body, &request);
    used = 0;
    if (size == 0 && r == HTTP_BODY_MORE)
        return http_body_take(&body, data, 0, &used);
    for (size_t at = 0; at < size && r == HTTP_BODY_MORE; at += piece) {
        size_t now = size - at < piece ? size - at : piece, taken;
        char *exact = malloc(now); /* for the address sanitizer */
        memcpy(exact, data + at, now);
        r = http_body_take(&body, exact, now, &taken);
        free(exact);
        used = r == HTTP_BODY_DONE ? at + taken : used;
    }
    return r;
}

static int chunked(const char *text)
{
    int whole = take(UINT64_MAX, text, strlen(text), strlen(text)), by_bytes = take(UINT64_MAX, text, strlen(text), 1);
    CHECK_EQ(whole, by_bytes);
    return whole;
}

TEST("a body by length ends after so many bytes, and what follows is left alone")
{
    CHECK_EQ(take(5, "hello, world", 12, 12), HTTP_BODY_DONE);
    CHECK_EQ(used, 5);
    CHECK_EQ(take(5, "hello, world", 12, 1), HTTP_BODY_DONE);
    CHECK_EQ(used, 5);
    CHECK_EQ(take(5, "hell", 4, 3), HTTP_BODY_MORE);
    CHECK_EQ(take(5, "", 0, 1), HTTP_BODY_MORE);
}

TEST("a length beyond the limit is refused before a byte of it has come, one at the limit is not")
{
    CHECK_EQ(take(HTTP_BODY_MAX, "", 0, 1), HTTP_BODY_MORE);
    CHECK_EQ(take(HTTP_BODY_MAX + 1, "", 0, 1), -413);
    CHECK_EQ(take(UINT64_MAX - 1, "", 0, 1), -413);
    char *large = calloc(1, HTTP_BODY_MAX + 1);
    CHECK_EQ(take(HTTP_BODY_MAX, large, HTTP_BODY_MAX + 1, 1000), HTTP_BODY_DONE);
    CHECK_EQ(used, HTTP_BODY_MAX);
    free(large);
}

TEST("a chunked body ends behind its trailer, and what follows is left alone")
{
    static const char *const bodies[] = {
        "0\r\n\r\n",
        "000\r\n\r\n",
        "5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n1\r\n,\r\n00\r\n\r\n",
        "9\r\n\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n", /* what looks like the end is data */
        "5;x\r\nhello\r\n0;y=z\r\n\r\n",
        "5 ;\tx = \"a;b\"\r\nhello\r\n0\r\n\r\n",
        "0\r\nExpires: never\r\n\r\n",
        "0\r\nA:\r\nB: \t\xff x \r\n\r\n",
    };
    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0]; i++) {
        char text[128];
        snprintf(text, sizeof text, "%sGET / HTTP/1.1\r\n", bodies[i]);
        if (chunked(text) != HTTP_BODY_DONE || used != strlen(bodies[i]))
            CHECK_FAIL("\"%s\" gives %d, %zu bytes", bodies[i], chunked(text), used);
        for (size_t length = 0; length < strlen(bodies[i]); length++)
            CHECK_EQ(take(UINT64_MAX, text, length, 7), HTTP_BODY_MORE);
    }
}

TEST("chunks that two parsers could read differently are refused")
{
    static const char *const bodies[] = {
        "\r\n",
        "g\r\n",
        "-5\r\nhello\r\n",
        "+5\r\nhello\r\n",
        "0x5\r\nhello\r\n",
        " 5\r\nhello\r\n",
        "5 \r\nhello\r\n",
        "5 5\r\nhello\r\n",
        "5\nhello\r\n",
        "5\r\r\n",
        "5;a\nhello\r\n",
        "5;a\r\r\n",
        "5;a\x01\r\n",
        "5;a\x7f\r\n",
        "5\rhello",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r0\r\n",
        "5\r\nhello\r\n\r\n",
        "0\r\n\n",
        "0\r\n\rx",
        "0\r\n x: y\r\n\r\n",
        "0\r\nx : y\r\n\r\n",
        "0\r\nx\r\n\r\n",
        "0\r\n: y\r\n\r\n",
        "0\r\nx: y\n\r\n",
        "0\r\nx: y\rz\r\n\r\n",
        "0\r\nx: \x02\r\n\r\n",
        ";x\r\n",
    };
    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0]; i++)
        if (chunked(bodies[i]) != -400)
            CHECK_FAIL("\"%s\" gives %d", bodies[i], chunked(bodies[i]));
    CHECK_EQ(take(UINT64_MAX, "5;\0\r\n", 5, 5), -400);
}

TEST("a chunk larger than there is room for is refused by its size, whatever that overflows to")
{
    CHECK_EQ(chunked("10001"), -413);
    CHECK_EQ(chunked("ffff\r\n"), HTTP_BODY_MORE - 413); /* its own size line counts */
    CHECK_EQ(chunked("ff00\r\n"), HTTP_BODY_MORE);
    CHECK_EQ(chunked("10000000000000000\r\n"), -413);
    CHECK_EQ(chunked("ffffffffffffffffffffffff\r\n"), -413);
}

/* Repeat text until it is refused; returns the status. */
static int endless(const char *start, const char *text)
{
    struct http_request request = {.has_body = true, .chunked = true};
    struct http_body body;
    size_t taken, sent = strlen(start);
    int r = http_body_begin(&body, &request);
    if (r == HTTP_BODY_MORE)
        r = http_body_take(&body, start, strlen(start), &taken);
    while (r == HTTP_BODY_MORE && sent < 2 * HTTP_BODY_MAX) {
        r = http_body_take(&body, text, strlen(text), &taken);
        sent += strlen(text);
    }
    CHECK(sent > HTTP_BODY_MAX / 2);
    CHECK(sent < HTTP_BODY_MAX + 100);
    return r;
}

TEST("chunks, extensions, digits and trailers without end are refused at the limit")
{
    CHECK_EQ(endless("", "5\r\nhello\r\n"), -413);
    CHECK_EQ(endless("", "1;and an extension\r\nx\r\n"), -413);
    CHECK_EQ(endless("5;", "x"), -413);
    CHECK_EQ(endless("", "0"), -413);
    CHECK_EQ(endless("0\r\n", "Name: value\r\n"), -413);
    CHECK_EQ(endless("0\r\nName: ", "v"), -413);
}

CHECK_MAIN()
