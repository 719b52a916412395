/* SPDX-License-Identifier: MIT
 *
 * Input: the value of Accept-Encoding.
 */
#include "accept.c"
#include "coding.c"
#include "fuzz.h"

/* A set of codings, as bits. */
static unsigned accepted(const char *value, size_t length, enum http_coding order[static HTTP_CODINGS],
                         unsigned *ret_count)
{
    unsigned set = 0;
    *ret_count = http_codings_accepted((struct slice){value, length}, order);
    REQUIRE(*ret_count < HTTP_CODINGS);
    for (unsigned i = 0; i < *ret_count; i++) {
        REQUIRE(order[i] > HTTP_IDENTITY && order[i] < HTTP_CODINGS);
        REQUIRE(!(set & 1u << order[i]));
        set |= 1u << order[i];
    }
    return set;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum http_coding order[HTTP_CODINGS], other[HTTP_CODINGS];
    unsigned count, count_of_other;
    char *value = exact_copy(data, size);
    unsigned set = accepted(value, size, order, &count);

    /* Nobody gets a coding without having named it, or everything. */
    for (enum http_coding coding = HTTP_BR; coding < HTTP_CODINGS; coding++) {
        bool named = memchr(value, '*', size) != NULL;
        for (size_t i = 0; i + strlen(http_coding_name(coding)) <= size; i++)
            named |= strncasecmp(value + i, http_coding_name(coding), strlen(http_coding_name(coding))) == 0;
        REQUIRE(named || !(set & 1u << coding));
    }

    /* What is refused at the end is not given, what is asked for there is, unless that is within quotes. */
    char *longer = malloc(size + 64);
    REQUIRE(longer != NULL);
    memcpy(longer, value, size);
    memcpy(longer + size, ",br;q=0,zstd;q=0.0,gzip;q=0", 27);
    bool quoted = memchr(value, '"', size) != NULL;
    REQUIRE(quoted || accepted(longer, size + 27, other, &count_of_other) == 0);
    memcpy(longer + size, ",zstd;q=1,identity;q=0", 22);
    REQUIRE(quoted || accepted(longer, size + 22, other, &count_of_other) & 1u << HTTP_ZSTD);

    /* The order written out means itself. */
    char plain[64];
    size_t length = 0;
    for (unsigned i = 0; i < count; i++)
        length += (size_t)sprintf(plain + length, "%s;q=0.%u,", http_coding_name(order[i]), 9 - i);
    REQUIRE(accepted(plain, length, other, &count_of_other) == set && count_of_other == count);
    REQUIRE(memcmp(order, other, count * sizeof order[0]) == 0);
    free(longer);
    free(value);
    return 0;
}
