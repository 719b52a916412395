/* SPDX-License-Identifier: MIT
 *
 * Input: eight bytes of file size in the machine's order, then the value.
 */
#include "fuzz.h"
#include "range.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t file_size, first = 1, last = 0;
    if (size < sizeof file_size)
        return 0;
    memcpy(&file_size, data, sizeof file_size);
    char *value = exact_copy(data + sizeof file_size, size - sizeof file_size);
    struct slice slice = {value, size - sizeof file_size};

    enum http_range_result result = http_range_parse(slice, file_size, &first, &last);
    if (result == HTTP_RANGE_PART) {
        REQUIRE(first <= last && last < file_size);

        /* The range, written out plainly, means itself. */
        char plain[64];
        int length =
            snprintf(plain, sizeof plain, "bytes=%llu-%llu", (unsigned long long)first, (unsigned long long)last);
        uint64_t again_first, again_last;
        REQUIRE(http_range_parse((struct slice){plain, (size_t)length}, file_size, &again_first, &again_last) ==
                HTTP_RANGE_PART);
        REQUIRE(again_first == first && again_last == last);
    } else {
        REQUIRE(first == 1 && last == 0);
    }

    /* What is malformed does not become so by the file's size, and nothing of an empty file can be served. */
    enum http_range_result of_empty = http_range_parse(slice, 0, &first, &last);
    REQUIRE(of_empty == (result == HTTP_RANGE_WHOLE ? HTTP_RANGE_WHOLE : HTTP_RANGE_UNSATISFIABLE));
    free(value);
    return 0;
}
