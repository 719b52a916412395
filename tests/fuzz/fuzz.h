/* SPDX-License-Identifier: MIT
 *
 * What the fuzzers share. Each includes the parser's .c file, states its invariants, and is built twice: against
 * libFuzzer (meson option fuzz), and against replay.c, which runs the stored inputs in every build.
 */
#ifndef SLUICE_TESTS_FUZZ_H
#define SLUICE_TESTS_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);                                  \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* A copy of exactly this size, so that the address sanitizer sees a read beyond it. The caller frees it. */
static inline char *exact_copy(const void *data, size_t size)
{
    char *copy = malloc(size > 0 ? size : 1);
    REQUIRE(copy != NULL);
    if (size > 0)
        memcpy(copy, data, size);
    return copy;
}

#endif
