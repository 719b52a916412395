/* SPDX-License-Identifier: MIT */
#include "fuzz.h"
#include "request.c"

static int parse_exactly(const uint8_t *data, size_t size, const struct http_limits *by)
{
    struct http_request request;
    char *copy = exact_copy(data, size);
    int status = http_request_parse(copy, size, by, &request);
    free(copy);
    return status;
}

static void require_inside(struct slice slice, const char *data, size_t length)
{
    if (slice.data == NULL) {
        REQUIRE(slice.length == 0);
        return;
    }
    REQUIRE(slice.data >= data && slice.length <= length && slice.data - data <= (ptrdiff_t)(length - slice.length));
    for (size_t i = 0; i < slice.length; i++)
        REQUIRE((uint8_t)slice.data[i] >= 0x20 || slice.data[i] == '\t');
}

static void require_sound(const struct http_request *request, const char *data, size_t length)
{
    const struct slice slices[] = {
        request->method_text,
        request->target,
        request->path,
        request->query,
        request->host,
        request->range,
        request->if_range,
        request->if_match,
        request->if_none_match,
        request->if_modified_since,
        request->if_unmodified_since,
        request->referer,
        request->user_agent,
        request->accept,
        request->accept_encoding,
        request->forwarded_for,
    };
    for (size_t i = 0; i < sizeof slices / sizeof slices[0]; i++)
        require_inside(slices[i], data, length);
    REQUIRE(request->method_text.length > 0 && request->target.length > 0);
    REQUIRE(request->minor <= 1);
    REQUIRE(request->minor == 0 || request->host.length > 0);
    if (request->method < HTTP_OPTIONS) /* of which "*" has none */
        REQUIRE(request->path.length > 0);
    if (request->path.data != NULL) {
        REQUIRE(request->path.data[0] == '/');
        REQUIRE(memchr(request->path.data, '?', request->path.length) == NULL);
        REQUIRE(memchr(request->path.data, '#', request->path.length) == NULL);
        REQUIRE(memchr(request->path.data, ' ', request->path.length) == NULL);
    }
    if (request->host.data != NULL)
        REQUIRE(memchr(request->host.data, '/', request->host.length) == NULL &&
                memchr(request->host.data, '@', request->host.length) == NULL);

    /* An accepted head has line ends in pairs only, ends in an empty line, and has no other but before the request. */
    REQUIRE(length >= 4 && memcmp(data + length - 4, "\r\n\r\n", 4) == 0);
    for (size_t i = 0; i < length; i++) {
        REQUIRE(data[i] != '\0');
        if (data[i] == '\n')
            REQUIRE(i > 0 && data[i - 1] == '\r');
        if (data[i] == '\r')
            REQUIRE(i + 1 < length && data[i + 1] == '\n');
    }
    const char *line = request->method_text.data;
    const char *empty_line = memmem(line, (size_t)(data + length - line), "\r\n\r\n", 4);
    REQUIRE(empty_line == data + length - 4);
}

/* The answer to a prefix is that to the whole, or incomplete as long as the answer may still change. */
static void require_one_answer(const uint8_t *data, size_t size, const struct http_limits *by)
{
    int whole = parse_exactly(data, size, by);
    size_t decided = whole > 0 ? (size_t)whole : size;
    bool refused = false;
    size_t step = 1 + size / 256;
    for (size_t length = 0; length < size; length += step) {
        int status = parse_exactly(data, length, by);
        if (whole > 0)
            REQUIRE(status == (length < decided ? HTTP_INCOMPLETE : whole));
        else if (refused)
            REQUIRE(status == whole);
        else
            REQUIRE(status == HTTP_INCOMPLETE || status == whole);
        refused = status < 0;
        REQUIRE(length < by->head || status != HTTP_INCOMPLETE);
    }
    if (whole > 0 && decided > 0)
        REQUIRE(parse_exactly(data, decided - 1, by) == HTTP_INCOMPLETE && parse_exactly(data, decided, by) == whole);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct http_limits wide = {.line = 8192, .head = 16384}, narrow = {.line = 24, .head = 80};

    struct http_request request;
    char *copy = exact_copy(data, size);
    int status = http_request_parse(copy, size, &wide, &request);
    REQUIRE(status == HTTP_INCOMPLETE || status == -400 || status == -414 || status == -431 || status == -501 ||
            status == -505 || (status > 0 && (size_t)status <= size));
    if (status > 0) {
        require_sound(&request, copy, (size_t)status);
    } else if (status < 0) {
        require_inside(request.method_text, copy, size);
        require_inside(request.target, copy, size);
    }
    free(copy);

    require_one_answer(data, size, &wide);
    require_one_answer(data, size, &narrow);
    return 0;
}
