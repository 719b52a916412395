/* SPDX-License-Identifier: MIT
 *
 * Decoded once and never again, and judged after decoding: "%2e%2e" is ".." here as it would be to the kernel. What is
 * in the buffer is at any time a run of whole components, each with its slash, none of them "." or ".." or hidden; so
 * nothing that was not judged can be returned.
 */
#include "path.h"
#include <string.h>

static int hex_value(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    char lower = (char)(digit | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

/* Decodes one component from *at up to a slash or end, into at most room bytes. Returns its length or minus a status.
 */
static inline int decode_component(const char **at, const char *end, char *to, size_t room)
{
    size_t length = 0;
    for (; *at < end && **at != '/'; ++*at) {
        char byte = **at;
        if (byte == '%') {
            int high = end - *at > 2 ? hex_value((*at)[1]) : -1, low = high >= 0 ? hex_value((*at)[2]) : -1;
            if (low < 0)
                return -400;
            byte = (char)(uint8_t)(high << 4 | low);
            if (byte == '/')
                return -400;
            *at += 2;
        }
        if (byte == '\0')
            return -400;
        if (length == room)
            return -414;
        to[length++] = byte;
    }
    return (int)length;
}

static bool reads(const char *component, size_t length, const char *text)
{
    return length == strlen(text) && memcmp(component, text, length) == 0;
}

int http_path_decode(struct slice path, char *buffer, size_t size)
{
    const char *at = path.data, *end = at + path.length;
    size_t length = 0;
    if (path.length == 0 || *at != '/')
        return -400;
    if (size < sizeof "." || path.length > INT32_MAX)
        return -414;

    while (at < end) {
        while (at < end && *at == '/')
            at++;
        if (at == end)
            break;
        char *component = buffer + length;
        int decoded = decode_component(&at, end, component, size - 1 - length);
        if (decoded < 0)
            return decoded;
        size_t count = (size_t)decoded;
        if (component[0] == '.') {
            if (count == 1)
                continue;
            if (reads(component, count, "..")) {
                if (length == 0)
                    return -400;
                /* Over the last component's slash, then back to the one before. */
                do
                    length--;
                while (length > 0 && buffer[length - 1] != '/');
                continue;
            }
            if (length != 0 || !reads(component, count, ".well-known"))
                return -404;
        }
        length += count;
        if (at < end) {
            if (length == size - 1)
                return -414;
            buffer[length++] = '/';
        }
    }

    if (length == 0)
        buffer[length++] = '.';
    buffer[length] = '\0';
    return (int)length;
}

size_t http_path_encode(const char *name, char *buffer, size_t size)
{
    static const char digits[] = "0123456789ABCDEF";
    size_t length = 0, written = 0;
    for (; *name != '\0'; name++) {
        uint8_t byte = (uint8_t)*name, lower = byte | 0x20;
        bool unreserved = (byte >= '0' && byte <= '9') || (lower >= 'a' && lower <= 'z') || byte == '-' ||
                          byte == '.' || byte == '_' || byte == '~';
        size_t count = unreserved ? 1 : 3;
        length += count;
        if (length >= size)
            continue; /* length only grows: nothing is written after the first that did not fit */
        if (unreserved) {
            buffer[written] = (char)byte;
        } else {
            buffer[written] = '%';
            buffer[written + 1] = digits[byte >> 4];
            buffer[written + 2] = digits[byte & 15];
        }
        written = length;
    }
    if (size > 0)
        buffer[written] = '\0';
    return length;
}
