/* SPDX-License-Identifier: MIT
 *
 * Input: eight bytes of file size in the machine's order, then the value.
 */
#include "copied.h"
#include "fuzz.h"
#include "range.c"
#include <errno.h>

/* The list that text reads as, or false: it is malformed or too long. By rules of its own, one element after the other,
 * each byte that is wanted marked in a small map. */
#define MAP_MAX 512
static bool marked(struct slice value, uint64_t size, uint8_t *map)
{
    unsigned elements = 0;
    char *text = copied(value.data, value.length), *rest = text + strlen("bytes=");
    bool good = strlen(text) == value.length && strncasecmp(text, "bytes=", 6) == 0;
    for (char *element = good ? strsep(&rest, ",") : NULL; element != NULL && good; element = strsep(&rest, ",")) {
        element += strspn(element, " \t");
        size_t length = strlen(element);
        while (length > 0 && strchr(" \t", element[length - 1]) != NULL)
            element[--length] = '\0';
        if (length == 0)
            continue;
        size_t digits = strspn(element, "0123456789"), more = 0;
        if (element[digits] == '-')
            more = strspn(element + digits + 1, "0123456789");
        good = element[digits] == '-' && element[digits + 1 + more] == '\0' && digits + more > 0 &&
               ++elements <= HTTP_RANGES_MAX;
        errno = 0; /* beyond 64 bits: ULLONG_MAX */
        unsigned long long first = strtoull(element, NULL, 10), last = strtoull(element + digits + 1, NULL, 10);
        if (digits == 0) {
            first = strtoull(element + 1, NULL, 10) < size ? size - strtoull(element + 1, NULL, 10) : 0;
            last = size - 1;
        } else if (more == 0) {
            last = UINT64_MAX;
        }
        if (digits > 0 && more > 0 && last < first)
            good = false;
        for (uint64_t i = first; good && i < size && i <= last; i++)
            map[i] = 1;
    }
    free(text);
    return good && elements > 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t file_size;
    struct http_ranges ranges = {.count = 4711};
    if (size < sizeof file_size)
        return 0;
    memcpy(&file_size, data, sizeof file_size);
    char *value = exact_copy(data + sizeof file_size, size - sizeof file_size);
    struct slice slice = {value, size - sizeof file_size};

    enum http_range_result result = http_range_parse(slice, file_size, &ranges);
    if (result == HTTP_RANGE_PART) {
        REQUIRE(ranges.count >= 1 && ranges.count <= HTTP_RANGES_MAX);
        /* In bounds, apart from one another by a byte at least, so that no list brings more than the file has. */
        for (unsigned i = 0; i < ranges.count; i++) {
            REQUIRE(ranges.list[i].first <= ranges.list[i].last && ranges.list[i].last < file_size);
            for (unsigned j = 0; j < i; j++)
                REQUIRE(ranges.list[i].first > ranges.list[j].last + 1 ||
                        ranges.list[j].first > ranges.list[i].last + 1);
        }

        /* The list, written out plainly, means itself. */
        char plain[48 * HTTP_RANGES_MAX] = "bytes=";
        size_t length = strlen(plain);
        for (unsigned i = 0; i < ranges.count; i++)
            length +=
                (size_t)snprintf(plain + length, sizeof plain - length, "%llu-%llu,",
                                 (unsigned long long)ranges.list[i].first, (unsigned long long)ranges.list[i].last);
        struct http_ranges again;
        REQUIRE(http_range_parse((struct slice){plain, length}, file_size, &again) == HTTP_RANGE_PART);
        REQUIRE(again.count == ranges.count);
        REQUIRE(memcmp(again.list, ranges.list, ranges.count * sizeof ranges.list[0]) == 0);
    } else {
        REQUIRE(ranges.count == 4711);
    }

    /* Of a small file: just the bytes that were asked for. */
    uint8_t wanted[MAP_MAX] = {0}, got[MAP_MAX] = {0};
    uint64_t small = file_size % MAP_MAX;
    struct http_ranges few = {.count = 0};
    enum http_range_result of_small = http_range_parse(slice, small, &few);
    REQUIRE(marked(slice, small, wanted) == (of_small != HTTP_RANGE_WHOLE));
    for (unsigned i = 0; i < few.count; i++)
        memset(got + few.list[i].first, 1, http_range_length(&few.list[i]));
    if (of_small != HTTP_RANGE_WHOLE)
        REQUIRE(memcmp(wanted, got, sizeof got) == 0);
    if (of_small == HTTP_RANGE_UNSATISFIABLE)
        REQUIRE(memchr(wanted, 1, sizeof wanted) == NULL);

    /* What is malformed does not become so by the file's size, and nothing of an empty file can be served. */
    struct http_ranges none;
    REQUIRE(http_range_parse(slice, 0, &none) ==
            (result == HTTP_RANGE_WHOLE ? HTTP_RANGE_WHOLE : HTTP_RANGE_UNSATISFIABLE));
    free(value);
    return 0;
}
