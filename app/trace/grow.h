/* SPDX-License-Identifier: MIT
 *
 * Arrays that grow.
 */
#ifndef SLUICE_APP_TRACE_GROW_H
#define SLUICE_APP_TRACE_GROW_H

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

/* Make room for one more element than count. 0 or -ENOMEM. */
static inline int grow(void **array, size_t *room, size_t count, size_t size)
{
    if (count < *room)
        return 0;
    size_t wanted = *room == 0 ? 16 : *room * 2;
    void *grown = reallocarray(*array, wanted, size);
    if (grown == NULL)
        return -ENOMEM;
    *array = grown;
    *room = wanted;
    return 0;
}

#endif
