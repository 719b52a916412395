/* SPDX-License-Identifier: MIT
 *
 * strndup for fuzzers: AddressSanitizer with strict_string_checks, as tools/check has it, complains of strndup where
 * the bytes that are copied do not end with a NUL.
 */
#ifndef SLUICE_TESTS_FUZZ_COPIED_H
#define SLUICE_TESTS_FUZZ_COPIED_H

#include <stdlib.h>
#include <string.h>

static inline char *copied(const void *text, size_t length)
{
    char *copy = malloc(length + 1);
    if (copy == NULL)
        abort();
    memcpy(copy, text, length);
    copy[length] = '\0';
    return copy;
}

#endif
