/* SPDX-License-Identifier: MIT */
#include "multipart.h"

#include <errno.h>
#include <stdio.h>
#include <sys/random.h>

int multipart_begin(const struct http_ranges *ranges, struct slice type, uint64_t size, struct multipart *ret)
{
    uint8_t bytes[MULTIPART_BOUNDARY_LENGTH / 2];
    ssize_t got;
    do
        got = getrandom(bytes, sizeof bytes, 0);
    while (got < 0 && errno == EINTR);
    if (got != (ssize_t)sizeof bytes)
        return got < 0 ? -errno : -EIO;
    for (size_t i = 0; i < sizeof bytes; i++)
        snprintf(ret->boundary + 2 * i, 3, "%02x", bytes[i]);
    ret->ranges = ranges;
    ret->type = type;
    ret->size = size;
    return 0;
}

size_t multipart_text(const struct multipart *multipart, unsigned number, char buffer[static MULTIPART_TEXT_MAX])
{
    const char *line_end = number > 0 ? "\r\n" : ""; /* that behind a part belongs to the boundary */
    int length;
    if (number == multipart->ranges->count) {
        length = snprintf(buffer, MULTIPART_TEXT_MAX, "%s--%s--\r\n", line_end, multipart->boundary);
    } else {
        const struct http_range *range = &multipart->ranges->list[number];
        length = snprintf(buffer, MULTIPART_TEXT_MAX, "%s--%s\r\n%.*sContent-Range: bytes %llu-%llu/%llu\r\n\r\n",
                          line_end, multipart->boundary, (int)multipart->type.length, multipart->type.data,
                          (unsigned long long)range->first, (unsigned long long)range->last,
                          (unsigned long long)multipart->size);
    }
    return (size_t)length < MULTIPART_TEXT_MAX ? (size_t)length : MULTIPART_TEXT_MAX - 1;
}

uint64_t multipart_length(const struct multipart *multipart)
{
    char text[MULTIPART_TEXT_MAX];
    uint64_t length = 0;
    for (unsigned i = 0; i <= multipart->ranges->count; i++) {
        length += multipart_text(multipart, i, text);
        if (i < multipart->ranges->count)
            length += http_range_length(&multipart->ranges->list[i]);
    }
    return length;
}
