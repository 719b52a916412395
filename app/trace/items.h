/* SPDX-License-Identifier: MIT
 *
 * Items that begin with their key: an array, and a hash of its indices. Keys are compared as bytes.
 */
#ifndef SLUICE_APP_TRACE_ITEMS_H
#define SLUICE_APP_TRACE_ITEMS_H

#include <stddef.h>
#include <stdint.h>

struct items {
    size_t item_size, key_size; /* set by the owner; keys: a multiple of four bytes */
    char *all;                  /* of the array, in the order of their coming */
    size_t count, capacity;
    uint32_t *slots; /* index + 1; 0: free. At least twice as many as items: a power of two */
    size_t slot_count;
};

#define ITEMS_MIN 16

void *items_at(const struct items *items, size_t index);
void *items_find(const struct items *items, const void *key);
/* The item with this key, made of zeros if there was none; NULL: no memory. May move the others. */
void *items_enter(struct items *items, const void *key);
void items_free(struct items *items);

/* For an owner who takes items out of the array itself. The slot that holds the key, or the free one where it would go;
 * and, after the array was changed, all slots anew. */
size_t items_slot(const struct items *items, const void *key);
void items_rehash(struct items *items);

#endif
