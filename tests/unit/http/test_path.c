/* SPDX-License-Identifier: MIT */
#include "check.h"
#include "path.h"

static char result[256];

/* In and out of memory of exactly the sizes given, for the address sanitizer. */
static int decode_bytes(const char *text, size_t length, size_t size)
{
    char *copy = malloc(length > 0 ? length : 1), *buffer = malloc(size > 0 ? size : 1);
    copy[0] = '/'; /* not to be seen if the path is empty */
    memcpy(copy, text, length);
    int status = http_path_decode((struct slice){copy, length}, buffer, size);
    if (status >= 0)
        memcpy(result, buffer, (size_t)status + 1);
    free(copy);
    free(buffer);
    return status;
}

static int decode(const char *text)
{
    return decode_bytes(text, strlen(text), sizeof result);
}

TEST("a path is decoded once and brought to its plain form")
{
    static const struct {
        const char *text, *want;
    } cases[] = {
        {"/", "."},
        {"//", "."},
        {"/a", "a"},
        {"/a/", "a/"},
        {"/a/b.txt", "a/b.txt"},
        {"//a///b//", "a/b/"},
        {"/a%20b", "a b"},
        {"/%41%4a%4A", "AJJ"},
        {"/a%2520b", "a%20b"},
        {"/%25", "%"},
        {"/%5C..%5c", "\\..\\"},
        {"/a\\b", "a\\b"},
        {"/%C3%A9\xc3\xa9", "\xc3\xa9\xc3\xa9"},
        {"/a%0ab%01", "a\nb\x01"},
        {"/a+b&c=d;e", "a+b&c=d;e"},
        {"/a%3Fb%23c", "a?b#c"},
        {"/a..", "a.."},
        {"/a.b/c..d", "a.b/c..d"},
        {"/.", "."},
        {"/./", "."},
        {"/./a/./b/.", "a/b/"},
        {"/a/..", "."},
        {"/a/../", "."},
        {"/a/../b", "b"},
        {"/a/b/..", "a/"},
        {"/a/b/../", "a/"},
        {"/a/b/../../c", "c"},
        {"/a/b//..//c", "a/c"},
        {"/aa/bb/../cc/./../dd", "aa/dd"},
        {"/a/%2e%2E/b", "b"},
        {"/%2e/a/.%2e/b", "b"},
        {"/.well-known", ".well-known"},
        {"/.well-known/acme", ".well-known/acme"},
        {"/%2ewell-known/", ".well-known/"},
        {"/a/../.well-known/b", ".well-known/b"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int length = decode(cases[i].text);
        if (length < 0)
            CHECK_FAIL("\"%s\" gives %d", cases[i].text, length);
        CHECK_STR(result, cases[i].want);
        CHECK_EQ(length, strlen(cases[i].want));
    }
}

TEST("malformed escapes, an encoded NUL or slash and climbing above the root are refused")
{
    static const char *const texts[] = {
        "",        "a",      "a/b",         "/%",    "/%4",      "/%4/",       "/%zz",    "/%4g",
        "/%g4",    "/a%",    "/%%41",       "/%00",  "/a%00b",   "/%2f",       "/%2F",    "/a%2fb",
        "/..%2f",  "/..",    "/../",        "/../a", "/a/../..", "/a/../../b", "/%2e%2e", "/.%2e/a",
        "/./../a", "//../a", "/a//../..//", "/%2 0", "/%-1",     "/%+1",       "/% 1",    "*",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (decode(texts[i]) != -400)
            CHECK_FAIL("\"%s\" gives %d", texts[i], decode(texts[i]));
    CHECK_EQ(decode_bytes("/a\0b", 4, sizeof result), -400);
    CHECK_EQ(decode_bytes("/a%4", 4, sizeof result), -400);
}

TEST("a component that begins with a dot is not found, but .well-known at the root is")
{
    static const char *const texts[] = {
        "/.git",       "/.git/config",    "/a/.b",       "/...",           "/..a",
        "/%2egit",     "/.well-known/.a", "/.htaccess/", "/a/.well-known", "/.well-knowns",
        "/.well-know", "/.Well-Known",    "/.git/../a",  "/a/.../b",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (decode(texts[i]) != -404)
            CHECK_FAIL("\"%s\" gives %d", texts[i], decode(texts[i]));
}

TEST("a result that does not fit is too long, at every size")
{
    static const char text[] = "/abc/d%20f/";
    const size_t needed = sizeof "abc/d f/";
    for (size_t size = 0; size < needed; size++)
        CHECK_EQ(decode_bytes(text, sizeof text - 1, size), -414);
    CHECK_EQ(decode_bytes(text, sizeof text - 1, needed), needed - 1);
    CHECK_STR(result, "abc/d f/");
    CHECK_EQ(decode_bytes("/", 1, 1), -414);
    CHECK_EQ(decode_bytes("/", 1, 2), 1);
}

TEST("a name is encoded but for what is unreserved")
{
    char buffer[64];
    CHECK_EQ(http_path_encode("aZ09-._~", buffer, sizeof buffer), 8);
    CHECK_STR(buffer, "aZ09-._~");
    CHECK_EQ(http_path_encode("a b/c%?\xc3\xa9\"<\n", buffer, sizeof buffer), 30);
    CHECK_STR(buffer, "a%20b%2Fc%25%3F%C3%A9%22%3C%0A");
    CHECK_EQ(http_path_encode("", buffer, sizeof buffer), 0);
    CHECK_STR(buffer, "");
}

TEST("an encoded name is cut between its escapes where the buffer ends, and its whole length told")
{
    static const char *const want[] = {NULL, "", "a", "a", "a", "a%20", "a%20b"};
    for (size_t size = 0; size < sizeof want / sizeof want[0]; size++) {
        char *buffer = malloc(size > 0 ? size : 1);
        buffer[0] = '#';
        CHECK_EQ(http_path_encode("a b", buffer, size), 5);
        if (size > 0)
            CHECK_STR(buffer, want[size]);
        else
            CHECK_EQ(buffer[0], '#');
        free(buffer);
    }
    char buffer[4];
    CHECK_EQ(http_path_encode("a bc", buffer, sizeof buffer), 6);
    CHECK_STR(buffer, "a");
}

TEST("every name decodes to itself after encoding")
{
    for (int byte = 1; byte < 256; byte++) {
        if (byte == '/')
            continue;
        char name[] = "x?y", text[16] = "/";
        name[1] = (char)byte;
        http_path_encode(name, text + 1, sizeof text - 1);
        CHECK_EQ(decode(text), 3);
        CHECK_STR(result, name);
    }
}

CHECK_MAIN()
