/* SPDX-License-Identifier: MIT
 *
 * Input: the value of an Accept field.
 */
#include "accept.c"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *value = exact_copy(data, size);
    struct slice rest = {value, size}, name;
    unsigned quality, best = 0;
    while (accept_next(&rest, &name, &quality)) {
        REQUIRE(quality <= ACCEPT_QUALITY_MAX);
        REQUIRE(name.length > 0 && name.data >= value && name.data + name.length <= value + size);
        REQUIRE(rest.data > name.data && rest.data + rest.length == value + size);
        REQUIRE(name.data[0] != ' ' && name.data[name.length - 1] != ' ');
        if (quality > best)
            best = quality;
    }
    REQUIRE(accept_media_type((struct slice){value, size}, "text/html") <= best);
    free(value);
    return 0;
}
