/* SPDX-License-Identifier: MIT
 *
 * Arrays of things that lie at an address, in the order of their addresses: which one is an address in?
 */
#ifndef SLUICE_APP_TRACE_SORTED_H
#define SLUICE_APP_TRACE_SORTED_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* How many of them lie at or below the address: the last of these is the one. Each begins with its own address. */
static inline size_t sorted_up_to(const void *array, size_t count, size_t size, uint64_t address)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        uint64_t own;
        memcpy(&own, (const char *)array + middle * size, sizeof own);
        if (own <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

#endif
