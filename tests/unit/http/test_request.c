/* SPDX-License-Identifier: MIT */
#include "check.h"
#include "request.h"

static const struct http_limits limits = {.line = 8192, .head = 16384};
static struct http_request request;

/* Parses from memory of exactly this size, so that the address sanitizer sees a read beyond it. The last copy lives on
 * until the next, as the request points into it. */
static int parse_bytes(const char *text, size_t length, const struct http_limits *by)
{
    static char *copy;
    free(copy);
    copy = malloc(length > 0 ? length : 1);
    memcpy(copy, text, length);
    return http_request_parse(copy, length, by, &request);
}

static int parse(const char *text)
{
    return parse_bytes(text, strlen(text), &limits);
}

static bool equals(struct slice slice, const char *text)
{
    if (text == NULL)
        return slice.data == NULL;
    return slice.data != NULL && slice.length == strlen(text) && memcmp(slice.data, text, slice.length) == 0;
}

/* A request of these fields behind a good line and Host. */
static int parse_with(const char *fields)
{
    char text[2048];
    snprintf(text, sizeof text, "GET / HTTP/1.1\r\nHost: a\r\n%s\r\n", fields);
    return parse(text);
}

static int parse_host(const char *host)
{
    char text[512];
    snprintf(text, sizeof text, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host);
    return parse(text);
}

static int parse_target(const char *method, const char *target)
{
    char text[1024];
    snprintf(text, sizeof text, "%s %s HTTP/1.1\r\nHost: field\r\n\r\n", method, target);
    return parse(text);
}

TEST("a plain request is read into its parts")
{
    const char *text = "GET /a/b%20c?d=e HTTP/1.1\r\nHost: example.org:8080\r\nUser-Agent: wget\r\n\r\nrest";
    CHECK_EQ(parse(text), strlen(text) - 4);
    CHECK_EQ(request.method, HTTP_GET);
    CHECK(equals(request.method_text, "GET"));
    CHECK(equals(request.target, "/a/b%20c?d=e"));
    CHECK(equals(request.path, "/a/b%20c"));
    CHECK(equals(request.query, "d=e"));
    CHECK(equals(request.host, "example.org:8080"));
    CHECK(equals(request.user_agent, "wget"));
    CHECK_EQ(request.minor, 1);
    CHECK(request.keep_alive);
    CHECK(!request.has_body);
    CHECK(!request.expects_continue);
    CHECK(request.range.data == NULL);
}

TEST("every field we use is found whatever the case of its name, without the blanks around its value")
{
    CHECK(parse_with("RANGE:bytes=0-1\r\nif-range: \"a\"\r\nIf-Match:\t\"b\"\t\r\niF-nONE-mATCH: \"c\", \"d\" \r\n"
                     "If-Modified-Since:  e\r\nIf-Unmodified-Since: f\t \r\nReferer: g\r\nUser-Agent: h i\r\n"
                     "Accept-Encoding: j\r\nACCEPT: k\r\nx-forwarded-for: l, m\r\n") > 0);
    CHECK(equals(request.host, "a"));
    CHECK(equals(request.range, "bytes=0-1"));
    CHECK(equals(request.if_range, "\"a\""));
    CHECK(equals(request.if_match, "\"b\""));
    CHECK(equals(request.if_none_match, "\"c\", \"d\""));
    CHECK(equals(request.if_modified_since, "e"));
    CHECK(equals(request.if_unmodified_since, "f"));
    CHECK(equals(request.referer, "g"));
    CHECK(equals(request.user_agent, "h i"));
    CHECK(equals(request.accept_encoding, "j"));
    CHECK(equals(request.accept, "k"));
    CHECK(equals(request.forwarded_for, "l, m"));
}

TEST("a field of a similar name is not taken for one of ours")
{
    CHECK(parse_with("Hosts: b c\r\nHos: d\r\nRangE2: x\r\nXange: y\r\nContent-Lengtx: z\r\nHost_: /\r\n") > 0);
    CHECK(equals(request.host, "a"));
    CHECK(request.range.data == NULL);
}

TEST("a field may be present and empty")
{
    CHECK(parse_with("Referer:\r\nUser-Agent: \t \r\n") > 0);
    CHECK(equals(request.referer, ""));
    CHECK(equals(request.user_agent, ""));
    CHECK(request.range.data == NULL);
}

TEST("the query is what follows the first question mark, and may be empty or absent")
{
    CHECK(parse_target("GET", "/a?b?c/d") > 0);
    CHECK(equals(request.path, "/a"));
    CHECK(equals(request.query, "b?c/d"));
    CHECK(parse_target("GET", "/a?") > 0);
    CHECK(equals(request.query, ""));
    CHECK(parse_target("GET", "/a") > 0);
    CHECK(equals(request.query, NULL));
}

TEST("the method is told by its exact letters")
{
    static const struct {
        const char *text;
        enum http_method method;
    } cases[] = {{"GET", HTTP_GET},   {"HEAD", HTTP_HEAD},       {"get", HTTP_OTHER},    {"Head", HTTP_OTHER},
                 {"G", HTTP_OTHER},   {"GETS", HTTP_OTHER},      {"POST", HTTP_OTHER},   {"M-SEARCH", HTTP_OTHER},
                 {"!#$", HTTP_OTHER}, {"OPTIONS", HTTP_OPTIONS}, {"options", HTTP_OTHER}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        CHECK(parse_target(cases[i].text, "/") > 0);
        CHECK_EQ(request.method, cases[i].method);
        CHECK(equals(request.method_text, cases[i].text));
    }
}

TEST("a method of 32 bytes is passed on and one of 33 is not implemented, before its end is seen")
{
    CHECK(parse_target("ABCDEFGHIJKLMNOPQRSTUVWXYZ012345", "/") > 0);
    CHECK_EQ(parse_target("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456", "/"), -501);
    CHECK_EQ(parse("ABCDEFGHIJKLMNOPQRSTUVWXYZ012345"), HTTP_INCOMPLETE);
    CHECK_EQ(parse("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456"), -501);
}

TEST("a malformed request line is refused")
{
    static const char *const lines[] = {
        " / HTTP/1.1",
        " GET / HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET /",
        "GET",
        "GET / ",
        "GET /a b HTTP/1.1",
        "GET /\tHTTP/1.1",
        "GE(T / HTTP/1.1",
        "GET: / HTTP/1.1",
        "\x16\x03\x01",
        "GET / http/1.1",
        "GET / HTTP/1",
        "GET / HTTP/1.",
        "GET / HTTP/1.10",
        "GET / HTTP/11.1",
        "GET / HTTP/a.1",
        "GET / HTTP/1.x",
        "GET / HTTP-1.1",
        "GET / XTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET /\x7f HTTP/1.1",
        "GET /\x01 HTTP/1.1",
        "GET /a\rb HTTP/1.1",
        "G\xc3\x89T / HTTP/1.1",
    };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        char text[256];
        snprintf(text, sizeof text, "%s\r\nHost: a\r\n\r\n", lines[i]);
        if (parse(text) != -400)
            CHECK_FAIL("\"%s\" gives %d", lines[i], parse(text));
    }
}

TEST("NUL is refused wherever it stands")
{
    static const char head[] = "GET /abc HTTP/1.1\r\nHost: name\r\nX-Y: some value here\r\n\r\n";
    for (size_t i = 0; i < sizeof head - 1; i++) {
        char text[sizeof head];
        memcpy(text, head, sizeof head);
        text[i] = '\0';
        CHECK_EQ(parse_bytes(text, sizeof head - 1, &limits), -400);
    }
}

TEST("what browsers leave raw in a target is let through")
{
    CHECK(parse_target("GET", "/a|b{c}^`\"<>\\[]\xc3\xa9?x=[1]|{}") > 0);
    CHECK(equals(request.path, "/a|b{c}^`\"<>\\[]\xc3\xa9"));
}

TEST("a version is 1.0, 1.1 or later within 1, or is not supported")
{
    CHECK(parse("GET / HTTP/1.0\r\n\r\n") > 0);
    CHECK_EQ(request.minor, 0);
    CHECK(parse("GET / HTTP/1.1\r\nHost: a\r\n\r\n") > 0);
    CHECK_EQ(request.minor, 1);
    CHECK(parse("GET / HTTP/1.7\r\nHost: a\r\n\r\n") > 0);
    CHECK_EQ(request.minor, 1);
    CHECK_EQ(parse("GET / HTTP/0.9\r\n\r\n"), -505);
    CHECK_EQ(parse("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), -505);
    CHECK_EQ(parse("GET / HTTP/3.1\r\nHost: a\r\n\r\n"), -505);
    CHECK_EQ(parse("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), -505);
}

TEST("a bare carriage return or line feed is refused anywhere")
{
    static const char *const texts[] = {
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        "GET / HTTP/1.1\rHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\rX",
        "GET / HTTP/1.1\r\nHost: a\r\nX: some text\nof two lines\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX\n: y\r\n\r\n",
        "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\rGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (parse(texts[i]) != -400)
            CHECK_FAIL("text %zu gives %d", i, parse(texts[i]));
}

TEST("a folded line, a blank before the colon and a field without name or colon are refused")
{
    CHECK_EQ(parse_with("X: a\r\n b\r\n"), -400);
    CHECK_EQ(parse_with("X: a\r\n\tb\r\n"), -400);
    CHECK_EQ(parse("GET / HTTP/1.1\r\n Host: a\r\n\r\n"), -400);
    CHECK_EQ(parse_with("X : a\r\n"), -400);
    CHECK_EQ(parse_with("X\t: a\r\n"), -400);
    CHECK_EQ(parse_with(": a\r\n"), -400);
    CHECK_EQ(parse_with("no colon\r\n"), -400);
    CHECK_EQ(parse_with("nocolon\r\n"), -400);
}

TEST("a field name is a token, byte by byte")
{
    static const char token[] = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    for (int byte = 1; byte < 256; byte++) {
        char fields[] = "Xy?z: a\r\n";
        fields[2] = (char)byte;
        bool good = strchr(token, byte) != NULL || byte == ':'; /* a colon ends the name */
        if ((parse_with(fields) > 0) != good)
            CHECK_FAIL("byte 0x%02x gives %d", (unsigned)byte, parse_with(fields));
    }
}

TEST("of the control bytes only tab may stand in a value, at any place of a value of any length")
{
    static const char value[] = "abcdefghijklmnopqrstuvwxyz";
    for (size_t length = 1; length < sizeof value; length++)
        for (size_t place = 0; place < length; place++)
            for (int byte = 0; byte < 256; byte++) {
                char text[128];
                int whole =
                    snprintf(text, sizeof text, "GET / HTTP/1.1\r\nHost: a\r\nX: %.*s\r\n\r\n", (int)length, value);
                text[strlen("GET / HTTP/1.1\r\nHost: a\r\nX: ") + place] = (char)byte;
                bool good = (byte >= 0x20 && byte != 0x7f) || byte == '\t';
                int got = parse_bytes(text, (size_t)whole, &limits);
                if (got != (good ? whole : -400))
                    CHECK_FAIL("byte 0x%02x at %zu of %zu gives %d", (unsigned)byte, place, length, got);
            }
}

TEST("HTTP/1.1 needs one Host, HTTP/1.0 none, and two are never good")
{
    CHECK_EQ(parse("GET / HTTP/1.1\r\n\r\n"), -400);
    CHECK(parse("GET / HTTP/1.0\r\n\r\n") > 0);
    CHECK_EQ(parse("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), -400);
    CHECK_EQ(parse("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n"), -400);
    CHECK_EQ(parse("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n"), -400);
}

TEST("a Host is a name or address with a port or none")
{
    static const char *const good[] = {
        "a",     "a.b-c_d.example", "127.0.0.1",   "127.0.0.1:80", "a:",   "a:0",           "a:65535",
        "[::1]", "[::1]:8080",      "[fe80::a:B]", "[::f.f.f.f]",  "%41b", "a!$&'()*+,;=~", "A:00080",
        "a.  "};
    static const char *const bad[] = {"",        " ",
                                      "a b",     "a@b",
                                      "a/b",     "a:b",
                                      "a:65536", "a:99999999999999999999",
                                      ":80",     "[::1",
                                      "[::1]a",  "[::1)",
                                      "[]",      "[:]",
                                      "[g::]",   "[::1]:x",
                                      "::1",     "a:1:2",
                                      "%4",      "%zz",
                                      "a\\b",    "a?b",
                                      "a#b",     "\xc3\xa9",
                                      "[v1.a]",  "[0:0:0:0:0:0:0:0:0:0:0:0:0:0:0:0:0:0:0:0:0:0:0:0:0:0]",
                                      "a\tb",    "<a>",
                                      "%"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        if (parse_host(good[i]) <= 0)
            CHECK_FAIL("\"%s\" is refused", good[i]);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (parse_host(bad[i]) != -400)
            CHECK_FAIL("\"%s\" gives %d", bad[i], parse_host(bad[i]));
}

TEST("an absolute target gives its path and counts before the Host field")
{
    static const struct {
        const char *target, *path, *query, *host;
    } cases[] = {
        {"http://b.example/c/d?e", "/c/d", "e", "b.example"},
        {"HTTPS://b:443/", "/", NULL, "b:443"},
        {"http://b", "/", NULL, "b"},
        {"http://b?q=/", "/", "q=/", "b"},
        {"https://[::1]:8//x", "//x", NULL, "[::1]:8"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        CHECK(parse_target("GET", cases[i].target) > 0);
        CHECK(equals(request.target, cases[i].target));
        CHECK(equals(request.path, cases[i].path));
        CHECK(equals(request.query, cases[i].query));
        CHECK(equals(request.host, cases[i].host));
    }
    CHECK_EQ(parse("GET http://b/ HTTP/1.1\r\n\r\n"), -400);
}

TEST("other forms of target are refused for GET and HEAD")
{
    static const char *const targets[] = {"*",          "a",           "a:80",        "http:/a",     "http:///a",
                                          "http://",    "ftp://a/",    "http://u@a/", "http://a:x/", "?a",
                                          "https://?",  "http://a b/", "a/b",         "http//a",     "httpx://a/",
                                          "https:/a/b", "\\a"};
    for (size_t i = 0; i < sizeof targets / sizeof targets[0]; i++) {
        if (parse_target("GET", targets[i]) != -400)
            CHECK_FAIL("\"%s\" gives %d", targets[i], parse_target("GET", targets[i]));
        CHECK_EQ(parse_target("HEAD", targets[i]), -400);
    }
}

TEST("an asterisk is for OPTIONS and an authority for CONNECT, neither with a path")
{
    CHECK(parse_target("OPTIONS", "*") > 0);
    CHECK(equals(request.path, NULL));
    CHECK(parse_target("CONNECT", "b:443") > 0);
    CHECK(equals(request.path, NULL));
    CHECK(equals(request.host, "b:443"));
    CHECK_EQ(parse_target("CONNECT", "b/c"), -400);
    CHECK_EQ(parse_target("CONNECT", "b:x"), -400);
    CHECK_EQ(parse_target("OPTIONS", "b:443"), -400);
    CHECK_EQ(parse_target("OPTIONS", "*?"), -400);
    CHECK_EQ(parse_target("POST", "*"), -400);
}

TEST("the connection is kept as version and Connection say, and close is stronger")
{
    static const struct {
        const char *version, *fields;
        bool kept;
    } cases[] = {
        {"1.1", "", true},
        {"1.1", "Connection: close\r\n", false},
        {"1.1", "connection: CLOSE\r\n", false},
        {"1.1", "Connection: keep-alive\r\n", true},
        {"1.1", "Connection: TE , close\r\n", false},
        {"1.1", "Connection: ,,close,\r\n", false},
        {"1.1", "Connection: close\t , TE\r\n", false},
        {"1.1", "Connection: closed\r\n", true},
        {"1.1", "Connection: not close\r\n", true},
        {"1.1", "Connection:\r\n", true},
        {"1.1", "Connection: keep-alive\r\nConnection: close\r\n", false},
        {"1.1", "Connection: close\r\nConnection: keep-alive\r\n", false},
        {"1.0", "", false},
        {"1.0", "Connection: keep-alive\r\n", true},
        {"1.0", "Connection: Keep-Alive, foo\r\n", true},
        {"1.0", "Connection: keep-alive, close\r\n", false},
        {"1.2", "", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[256];
        snprintf(text, sizeof text, "GET / HTTP/%s\r\nHost: a\r\n%s\r\n", cases[i].version, cases[i].fields);
        CHECK(parse(text) > 0);
        if (request.keep_alive != cases[i].kept)
            CHECK_FAIL("HTTP/%s %s is wrong", cases[i].version, cases[i].fields);
    }
}

TEST("there is a body with a length above zero or chunks, and not otherwise")
{
    CHECK(parse_with("Content-Length: 0\r\n") > 0);
    CHECK(!request.has_body);
    CHECK(parse_with("Content-Length: 5\r\n") > 0);
    CHECK(request.has_body && !request.chunked);
    CHECK_EQ(request.content_length, 5);
    CHECK(parse_with("Content-Length: 18446744073709551615\r\n") > 0);
    CHECK(request.has_body);
    CHECK(parse_with("Transfer-Encoding: Chunked\r\n") > 0);
    CHECK(request.has_body && request.chunked);
    CHECK_EQ(request.content_length, 0);
}

TEST("framing that two parsers could read differently is refused")
{
    static const struct {
        const char *fields;
        int status;
    } cases[] = {
        {"Content-Length: 1\r\nContent-Length: 2\r\n", -400},
        {"Content-Length: 1\r\nContent-Length: 1\r\n", -400},
        {"Content-Length: 1, 1\r\n", -400},
        {"Content-Length: 1,2\r\n", -400},
        {"Content-Length:\r\n", -400},
        {"Content-Length: +1\r\n", -400},
        {"Content-Length: -1\r\n", -400},
        {"Content-Length: 0x1\r\n", -400},
        {"Content-Length: 1 1\r\n", -400},
        {"Content-Length: 1.0\r\n", -400},
        {"Content-Length: 18446744073709551616\r\n", -400},
        {"Content-Length: 99999999999999999999999\r\n", -400},
        {"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", -400},
        {"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", -400},
        {"Transfer-Encoding: gzip\r\nContent-Length: 5\r\n", -400},
        {"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", -400},
        {"Transfer-Encoding: gzip\r\n", -501},
        {"Transfer-Encoding: gzip, chunked\r\n", -501},
        {"Transfer-Encoding: xchunked\r\n", -501},
        {"Transfer-Encoding: chunked;a=b\r\n", -501},
        {"Transfer-Encoding: chunked,\r\n", -501},
        {"Transfer-Encoding: identity\r\n", -501},
        {"Transfer-Encoding: \"chunked\"\r\n", -501},
        {"Transfer-Encoding:\r\n", -501},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (parse_with(cases[i].fields) != cases[i].status)
            CHECK_FAIL("%s gives %d", cases[i].fields, parse_with(cases[i].fields));
    CHECK_EQ(parse("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), -400);
}

TEST("a second condition or range is refused, a second field for the log is not")
{
    static const char *const once[] = {"Range",         "If-Range",          "If-Match",
                                       "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"};
    for (size_t i = 0; i < sizeof once / sizeof once[0]; i++) {
        char fields[128];
        snprintf(fields, sizeof fields, "%s: a\r\n%s: a\r\n", once[i], once[i]);
        CHECK_EQ(parse_with(fields), -400);
        snprintf(fields, sizeof fields, "%s:\r\nX: y\r\n%s: a\r\n", once[i], once[i]);
        CHECK_EQ(parse_with(fields), -400);
    }
    CHECK(parse_with("Referer: a\r\nReferer: b\r\nUser-Agent: c\r\nUser-Agent: d\r\nAccept-Encoding: e\r\n"
                     "Accept-Encoding: f\r\nX-Forwarded-For: g\r\nX-Forwarded-For: h\r\n") > 0);
    CHECK(equals(request.referer, "a"));
    CHECK(equals(request.user_agent, "c"));
    CHECK(equals(request.accept_encoding, "e"));
    CHECK(equals(request.forwarded_for, "h"));
}

TEST("100-continue and other expectations are told apart, also in a list, and only of HTTP/1.1")
{
    CHECK(parse_with("Expect: 100-Continue\r\nContent-Length: 3\r\n") > 0);
    CHECK(request.expects_continue && !request.expects_other);
    CHECK(parse_with("Expect: 200-ok\r\n") > 0);
    CHECK(!request.expects_continue && request.expects_other);
    CHECK(parse_with("Expect: , 100-continue ,\r\nExpect: 100-continue;a=b\r\n") > 0);
    CHECK(request.expects_continue && request.expects_other);
    CHECK(parse_with("Expect:\r\n") > 0);
    CHECK(!request.expects_continue && !request.expects_other);
    CHECK(parse("GET / HTTP/1.0\r\nExpect: 100-continue, 200-ok\r\n\r\n") > 0);
    CHECK(!request.expects_continue && !request.expects_other);
}

TEST("two empty lines before the request are passed over and counted, a third is refused")
{
    CHECK_EQ(parse("\r\nGET / HTTP/1.0\r\n\r\n"), 20);
    CHECK(equals(request.method_text, "GET"));
    CHECK_EQ(parse("\r\n\r\nGET / HTTP/1.0\r\n\r\n"), 22);
    CHECK_EQ(parse("\r\n\r\n\r\nGET / HTTP/1.0\r\n\r\n"), -400);
    CHECK_EQ(parse("\r\n\r\n\r"), -400);
    CHECK_EQ(parse("\r\n\r\n"), HTTP_INCOMPLETE);
    CHECK_EQ(parse("\r"), HTTP_INCOMPLETE);
    CHECK_EQ(parse(""), HTTP_INCOMPLETE);
}

TEST("every prefix of a good head is incomplete, and what follows it does not matter")
{
    static const char text[] = "\r\nHEAD http://h/a?b HTTP/1.1\r\nHost: h\r\nX:\ta\tb \r\nContent-Length: 3\r\n\r\nabc";
    size_t whole = sizeof text - 1 - 3;
    for (size_t length = 0; length < whole; length++)
        CHECK_EQ(parse_bytes(text, length, &limits), HTTP_INCOMPLETE);
    for (size_t length = whole; length < sizeof text; length++)
        CHECK_EQ(parse_bytes(text, length, &limits), whole);
}

TEST("of two pipelined requests the first is read alone")
{
    CHECK_EQ(parse("GET /1 HTTP/1.0\r\n\r\nGET /2 HTTP/1.0\r\n\r\n"), 19);
    CHECK(equals(request.path, "/1"));
}

TEST("what is plainly wrong is refused before the head is whole")
{
    CHECK_EQ(parse("\x16"), -400);
    CHECK_EQ(parse("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n"), -400);
    CHECK_EQ(parse("GET / HTX"), -400);
    CHECK_EQ(parse("GET / HTTP/2"), HTTP_INCOMPLETE);
    CHECK_EQ(parse("GET / HTTP/2.0"), -505);
}

TEST("a request line at the limit is read and one beyond it is too long, whole or not")
{
    /* "GET " + 10 bytes + " HTTP/1.0" is 23. */
    const char *text = "GET /234567890 HTTP/1.0\r\n\r\n";
    CHECK_EQ(parse_bytes(text, 27, &(struct http_limits){23, 1000}), 27);
    CHECK_EQ(parse_bytes(text, 27, &(struct http_limits){22, 1000}), -414);
    CHECK_EQ(parse_bytes(text, 23, &(struct http_limits){22, 1000}), HTTP_INCOMPLETE);
    CHECK_EQ(parse_bytes(text, 24, &(struct http_limits){22, 1000}), -414);
    CHECK_EQ(parse_bytes(text, 24, &(struct http_limits){23, 1000}), HTTP_INCOMPLETE);
    CHECK_EQ(parse_bytes("\r\nGET /234567890 HTTP/1.0\r\n\r\n", 29, &(struct http_limits){23, 1000}), 29);
    CHECK_EQ(parse_bytes(text, 10, &(struct http_limits){8192, 10}), -414);
    CHECK_EQ(parse_bytes(text, 27, &(struct http_limits){SIZE_MAX, SIZE_MAX}), 27);
}

TEST("a head at the limit is read and one beyond it is too large, whole or not")
{
    const char *text = "GET / HTTP/1.0\r\nX: abcdefghij\r\n\r\n";
    int whole = (int)strlen(text);
    CHECK_EQ(whole, 33);
    CHECK_EQ(parse_bytes(text, 33, &(struct http_limits){1000, 33}), 33);
    CHECK_EQ(parse_bytes(text, 33, &(struct http_limits){1000, 32}), -431);
    CHECK_EQ(parse_bytes(text, 32, &(struct http_limits){1000, 32}), -431);
    CHECK_EQ(parse_bytes(text, 31, &(struct http_limits){1000, 32}), HTTP_INCOMPLETE);
    CHECK_EQ(parse_bytes("GET / HTTP/1.0\r\n\r\nmore than the limit", 37, &(struct http_limits){1000, 18}), 18);
    CHECK_EQ(parse_bytes("\r\n", 2, &(struct http_limits){1000, 1}), -431);
}

TEST("a refused request still names its method and target where they could be read")
{
    CHECK_EQ(parse("PUT /a HTTP/3.0\r\n\r\n"), -505);
    CHECK(equals(request.method_text, "PUT"));
    CHECK(equals(request.target, "/a"));
    CHECK_EQ(parse_with("bad field\r\n"), -400);
    CHECK(equals(request.target, "/"));
    CHECK_EQ(parse("GET /a#b HTTP/1.1\r\n\r\n"), -400);
    CHECK(equals(request.method_text, "GET"));
    CHECK(equals(request.target, NULL));
    CHECK_EQ(parse("GET  HTTP/1.1\r\n"), -400);
    CHECK(equals(request.target, NULL));
    CHECK_EQ(parse("<html>"), -400);
    CHECK(equals(request.method_text, NULL));
}

CHECK_MAIN()
