/* SPDX-License-Identifier: MIT */
#include "check.h"
#include "http/multipart.h"
#include "http/response.h"

#include <sluice/sluice.h>

static struct response_clock server_clock;
static char fields_text[RESPONSE_FIELDS_MAX + 128], head[RESPONSE_HEAD_MAX + 128];
static struct response_fields fields;
static const char *header, *cache; /* what the operator adds */
static bool revalidated;

static struct response_about subject = {.size = 6, .type = "text/plain", .modified = 784111777, .etag = "\"e\""};

static const char *head_of(unsigned status, enum response_connection connection, uint64_t first, uint64_t length)
{
    response_clock_set(&server_clock, 784111777);
    struct response_about about = subject;
    about.header = header;
    about.header_length = header == NULL ? 0 : strlen(header);
    about.cache = cache;
    response_fields_make(&about, fields_text, &fields);
    CHECK(fields.length <= response_fields_room(&about));
    head[response_file_head(head, &server_clock, status, revalidated, connection, &fields, 6, first, length)] = '\0';
    return head;
}

#define START "Server: sluice/%s\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
#define TYPE "Content-Type: text/plain\r\nX-Content-Type-Options: nosniff\r\n"
#define TAG "ETag: \"e\"\r\nAccept-Ranges: bytes\r\n"
#define VALIDATORS "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n" TAG "\r\n"

static const char *expected(const char *format)
{
    static char text[1024];
    /* The version of the library is the only conversion. */
    const char *at = strstr(format, "%s");
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - format), format, sluice_version(), at + 2);
    return text;
}

TEST("a 200 says everything about the file, and nothing about the connection unless told")
{
    CHECK_STR(head_of(200, RESPONSE_SILENT, 0, 6),
              expected("HTTP/1.1 200 OK\r\n" START "Content-Length: 6\r\n" TYPE VALIDATORS));
    CHECK_STR(head_of(200, RESPONSE_CLOSE, 0, 6),
              expected("HTTP/1.1 200 OK\r\n" START "Connection: close\r\nContent-Length: 6\r\n" TYPE VALIDATORS));
    CHECK_STR(head_of(200, RESPONSE_KEEP_ALIVE, 0, 6),
              expected("HTTP/1.1 200 OK\r\n" START "Connection: keep-alive\r\nContent-Length: 6\r\n" TYPE VALIDATORS));
}

TEST("a 206 has the length of the part and its place in the whole")
{
    CHECK_STR(head_of(206, RESPONSE_SILENT, 1, 3),
              expected("HTTP/1.1 206 Partial Content\r\n" START
                       "Content-Range: bytes 1-3/6\r\nContent-Length: 3\r\n" TYPE VALIDATORS));
}

TEST("a 206 to If-Range does not repeat the date, in one part or several")
{
    revalidated = true;
    CHECK_STR(head_of(206, RESPONSE_SILENT, 1, 3),
              expected("HTTP/1.1 206 Partial Content\r\n" START
                       "Content-Range: bytes 1-3/6\r\nContent-Length: 3\r\n" TYPE TAG "\r\n"));
    CHECK_STR(head_of(200, RESPONSE_SILENT, 0, 6), /* the validator was another one */
              expected("HTTP/1.1 200 OK\r\n" START "Content-Length: 6\r\n" TYPE VALIDATORS));
    revalidated = false;
    head[response_multipart_head(head, &server_clock, true, RESPONSE_SILENT, &fields, "B", 321)] = '\0';
    CHECK_STR(head, expected("HTTP/1.1 206 Partial Content\r\n" START "Content-Length: 321\r\n"
                             "Content-Type: multipart/byteranges; boundary=B\r\n"
                             "X-Content-Type-Options: nosniff\r\n" TAG "\r\n"));
}

TEST("a 304 has its entity tag, and neither date nor length")
{
    CHECK_STR(head_of(304, RESPONSE_SILENT, 0, 0), expected("HTTP/1.1 304 Not Modified\r\n" START TAG "\r\n"));
}

TEST("a 416 tells the size, a 412 does not")
{
    CHECK_STR(head_of(416, RESPONSE_SILENT, 0, 0),
              expected("HTTP/1.1 416 Range Not Satisfiable\r\n" START
                       "Content-Range: bytes */6\r\nContent-Length: 0\r\n" VALIDATORS));
    CHECK_STR(head_of(412, RESPONSE_SILENT, 0, 0),
              expected("HTTP/1.1 412 Precondition Failed\r\n" START "Content-Length: 0\r\n" VALIDATORS));
}

TEST("what the operator adds is said of the file, and of errors all but Cache-Control")
{
#define ADDED TAG "A: b\r\nC: d\r\n"
#define DATED "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n" ADDED
    header = "A: b\r\nC: d\r\n";
    cache = "no-cache";
    CHECK_STR(
        head_of(200, RESPONSE_SILENT, 0, 6),
        expected("HTTP/1.1 200 OK\r\n" START "Content-Length: 6\r\n" TYPE DATED "Cache-Control: no-cache\r\n\r\n"));
    CHECK_STR(head_of(304, RESPONSE_SILENT, 0, 0),
              expected("HTTP/1.1 304 Not Modified\r\n" START ADDED "Cache-Control: no-cache\r\n\r\n"));
    CHECK_STR(head_of(412, RESPONSE_SILENT, 0, 0),
              expected("HTTP/1.1 412 Precondition Failed\r\n" START "Content-Length: 0\r\n" DATED "\r\n"));
    header = NULL;
    CHECK_STR(head_of(206, RESPONSE_SILENT, 1, 3),
              expected("HTTP/1.1 206 Partial Content\r\n" START
                       "Content-Range: bytes 1-3/6\r\nContent-Length: 3\r\n" TYPE
                       "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\nETag: \"e\"\r\nAccept-Ranges: bytes\r\n"
                       "Cache-Control: no-cache\r\n\r\n"));
    cache = NULL;
}

TEST("the longest head fits")
{
    const struct response_about about = {
        .size = UINT64_MAX,
        .type = "application/vnd.openxmlformats-officedocument.presentationml.presentation; charset=utf-8",
        .modified = 253402300799,
        .etag = "W/\"ffffffffffffffff-ffffffffffffffff-ffffffffffffffff\"",
        .coding = "zstd",
        .varies = true,
    };
    response_fields_make(&about, fields_text, &fields);
    CHECK(fields.length <= RESPONSE_FIELDS_MAX);
    response_clock_set(&server_clock, 1);
    CHECK(response_file_head(head, &server_clock, 206, false, RESPONSE_KEEP_ALIVE, &fields, UINT64_MAX, UINT64_MAX - 1,
                             1) <= RESPONSE_HEAD_MAX);
    char boundary[MULTIPART_BOUNDARY_LENGTH + 1] = {0};
    memset(boundary, 'b', MULTIPART_BOUNDARY_LENGTH);
    CHECK(response_multipart_head(head, &server_clock, false, RESPONSE_KEEP_ALIVE, &fields, boundary, UINT64_MAX) <=
          RESPONSE_HEAD_MAX);
}

TEST("of a file in a content coding, what has a body tells the coding, and everything that it varies")
{
    subject.coding = "br";
    subject.varies = true;
    static const unsigned statuses[] = {200, 206, 304, 412, 416};
    for (size_t i = 0; i < sizeof statuses / sizeof statuses[0]; i++) {
        head_of(statuses[i], RESPONSE_SILENT, 0, 1);
        CHECK_EQ(strstr(head, "\r\nContent-Encoding: br\r\n") != NULL, statuses[i] < 300);
        CHECK(strstr(head, "\r\nVary: Accept-Encoding\r\n") != NULL);
    }
    subject.coding = NULL;
    subject.varies = false;
}

TEST("several parts: a head without a range, a head for each part with the file's type, and a length that is right")
{
    static char text[4096];
    struct http_ranges ranges = {.count = 2, .list = {{1, 2}, {4, 4}}};
    struct multipart multipart, other;
    head_of(200, RESPONSE_SILENT, 0, 6);
    struct slice type = {fields.text + fields.type, fields.after_type - fields.type};
    CHECK_EQ(multipart_begin(&ranges, type, 6, &multipart), 0);
    CHECK_EQ(multipart_begin(&ranges, type, 6, &other), 0);
    CHECK_EQ(strlen(multipart.boundary), MULTIPART_BOUNDARY_LENGTH);
    CHECK(strcmp(multipart.boundary, other.boundary) != 0);
    memset(multipart.boundary, 'b', MULTIPART_BOUNDARY_LENGTH);

    size_t length = response_multipart_head(text, &server_clock, false, RESPONSE_CLOSE, &fields, "B", 321);
    text[length] = '\0';
    CHECK_STR(text, expected("HTTP/1.1 206 Partial Content\r\n" START "Connection: close\r\nContent-Length: 321\r\n"
                             "Content-Type: multipart/byteranges; boundary=B\r\n"
                             "X-Content-Type-Options: nosniff\r\n" VALIDATORS));

    length = 0;
    for (unsigned i = 0; i <= 2; i++) {
        length += multipart_text(&multipart, i, text + length);
        length += (size_t)sprintf(text + length, "%s", i == 0 ? "xx" : i == 1 ? "y" : "");
    }
    CHECK_EQ(multipart_length(&multipart), length);
    CHECK_STR(text, "--bbbbbbbbbbbbbbbbbbbbbbbb\r\nContent-Type: text/plain\r\n"
                    "Content-Range: bytes 1-2/6\r\n\r\nxx\r\n"
                    "--bbbbbbbbbbbbbbbbbbbbbbbb\r\nContent-Type: text/plain\r\n"
                    "Content-Range: bytes 4-4/6\r\n\r\ny\r\n"
                    "--bbbbbbbbbbbbbbbbbbbbbbbb--\r\n");
}

TEST("the longest text of a part fits")
{
    char text[MULTIPART_TEXT_MAX];
    struct http_ranges ranges = {.count = 1, .list = {{UINT64_MAX - 2, UINT64_MAX - 1}}};
    struct multipart multipart;
    char type[128] = "Content-Type: application/vnd.openxmlformats-officedocument.presentationml.presentation; "
                     "charset=utf-8\r\n";
    CHECK_EQ(multipart_begin(&ranges, (struct slice){type, strlen(type)}, UINT64_MAX, &multipart), 0);
    size_t length = multipart_text(&multipart, 0, text);
    CHECK(length > 4 && memcmp(text + length - 4, "\r\n\r\n", 4) == 0);
}

TEST("the date follows the clock")
{
    struct response_clock moving = {0};
    response_clock_set(&moving, 784111777);
    CHECK(memmem(moving.text, moving.length, "08:49:37", 8) != NULL);
    response_clock_set(&moving, 784111778);
    CHECK(memmem(moving.text, moving.length, "08:49:38", 8) != NULL);
    CHECK(moving.length <= sizeof moving.text);
}

TEST("a HEAD gets the length of the body and no body")
{
    char *text;
    size_t length, body;
    response_clock_set(&server_clock, 784111777);
    struct response_text response = {
        .status = 404, .head_only = true, .fields = "W: v\r\n", .header = "X: y\r\n", .header_length = 6};
    CHECK_EQ(response_text_make(&server_clock, &response, &text, &length, &body), 0);
    CHECK(memmem(text, length, "Content-Length: 14\r\n", 20) != NULL);
    CHECK(memmem(text, length, "\r\nW: v\r\nX: y\r\n\r\n", 16) == text + length - 16);
    CHECK_EQ(body, 0);
    free(text);
    response.head_only = false;
    CHECK_EQ(response_text_make(&server_clock, &response, &text, &length, &body), 0);
    CHECK(memmem(text, length, "\r\n\r\n404 Not Found\n", 18) == text + length - 18);
    CHECK_EQ(body, 14);
    free(text);
}

CHECK_MAIN()
