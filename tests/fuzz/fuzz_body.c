/* SPDX-License-Identifier: MIT
 *
 * Input: two bytes that say how it is cut into packets and whether it is chunked, then what comes behind the head.
 */
#include "body.c"
#include "copied.h"
#include "fuzz.h"

struct outcome {
    int result;
    size_t used;
};

/* In pieces of up to so many bytes. */
static struct outcome take(const struct http_request *request, const uint8_t *data, size_t size, size_t piece)
{
    struct http_body body;
    struct outcome outcome = {.result = http_body_begin(&body, request)};
    size_t at = 0;
    do {
        size_t now = size - at < piece ? size - at : piece, used = SIZE_MAX;
        if (outcome.result != HTTP_BODY_MORE)
            break;
        char *copy = exact_copy(data + at, now);
        outcome.result = http_body_take(&body, copy, now, &used);
        free(copy);
        if (outcome.result == HTTP_BODY_DONE) {
            REQUIRE(used <= now);
            outcome.used = at + used;
        } else {
            REQUIRE(used == SIZE_MAX);
        }
        REQUIRE(body.room <= HTTP_BODY_MAX);
        at += now;
    } while (at < size);
    return outcome;
}

/* By a grammar read from the other end: where a chunked body at data ends, or 0. Lines are cut out first. */
static size_t end_of_chunked(const uint8_t *data, size_t size)
{
    size_t at = 0, left;
    for (;;) {
        const uint8_t *line_end = memmem(data + at, size - at, "\r\n", 2);
        if (line_end == NULL)
            return 0;
        size_t length = (size_t)(line_end - data) - at;
        char *line = copied(data + at, length);
        left = strtoull(line, NULL, 16);
        free(line);
        at += length + 2;
        if (left == 0)
            break;
        if (left + 2 > size - at || memcmp(data + at + left, "\r\n", 2) != 0)
            return 0;
        at += left + 2;
    }
    while (at + 2 <= size && memcmp(data + at, "\r\n", 2) != 0) {
        const uint8_t *line_end = memmem(data + at, size - at, "\r\n", 2);
        if (line_end == NULL)
            return 0;
        at = (size_t)(line_end - data) + 2;
    }
    return at + 2 <= size ? at + 2 : 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    size_t piece = 1 + data[0] % 16;
    struct http_request request = {.has_body = true, .chunked = data[1] % 4 != 0};
    if (!request.chunked)
        request.content_length = 1 + data[1];
    data += 2;
    size -= 2;

    struct outcome whole = take(&request, data, size, size + 1), cut = take(&request, data, size, piece),
                   by_bytes = take(&request, data, size, 1);
    REQUIRE(whole.result == HTTP_BODY_MORE || whole.result == HTTP_BODY_DONE || whole.result == -400 ||
            whole.result == -413);
    REQUIRE(cut.result == whole.result && cut.used == whole.used);
    REQUIRE(by_bytes.result == whole.result && by_bytes.used == whole.used);
    if (whole.result == HTTP_BODY_DONE) {
        /* Less of it is not enough, and what follows does not matter. */
        REQUIRE(take(&request, data, whole.used - 1, size).result == HTTP_BODY_MORE);
        REQUIRE(take(&request, data, whole.used, size).used == whole.used);
        REQUIRE(whole.used == (request.chunked ? end_of_chunked(data, size) : request.content_length));
    }

    /* Anything can be sent in chunks, and ends where it was made to end. */
    char made[8192];
    size_t length = 0, at = 0;
    while (at < size && length + 600 < sizeof made) {
        size_t now = 1 + data[at];
        now = now < size - at ? now : size - at;
        length += (size_t)sprintf(made + length, data[at] & 1 ? "%zx\r\n" : "%04zX;a=\"b\"\r\n", now);
        memcpy(made + length, data + at, now);
        length += now;
        length += (size_t)sprintf(made + length, "\r\n");
        at += now;
    }
    length += (size_t)sprintf(made + length, "0\r\nA: b\r\n\r\n");
    request = (struct http_request){.has_body = true, .chunked = true};
    struct outcome back = take(&request, (const uint8_t *)made, length, piece);
    REQUIRE(back.result == HTTP_BODY_DONE && back.used == length);
    return 0;
}
