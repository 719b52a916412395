/* SPDX-License-Identifier: MIT */
#include "items.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static size_t hash_of(const void *key, size_t size)
{
    const char *bytes = key;
    uint64_t hash = size;
    for (size_t at = 0; at < size; at += sizeof(uint32_t)) {
        uint32_t word;
        memcpy(&word, bytes + at, sizeof word);
        hash = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 29;
    }
    return (size_t)hash;
}

void *items_at(const struct items *items, size_t index)
{
    return items->all + index * items->item_size;
}

size_t items_slot(const struct items *items, const void *key)
{
    size_t mask = items->slot_count - 1, slot = hash_of(key, items->key_size) & mask;
    while (items->slots[slot] != 0 && memcmp(items_at(items, items->slots[slot] - 1), key, items->key_size) != 0)
        slot = (slot + 1) & mask;
    return slot;
}

void *items_find(const struct items *items, const void *key)
{
    if (items->count == 0)
        return NULL;
    uint32_t index = items->slots[items_slot(items, key)];
    return index != 0 ? items_at(items, index - 1) : NULL;
}

void items_rehash(struct items *items)
{
    memset(items->slots, 0, items->slot_count * sizeof *items->slots);
    for (size_t i = 0; i < items->count; i++)
        items->slots[items_slot(items, items_at(items, i))] = (uint32_t)i + 1;
}

static int items_grow(struct items *items)
{
    size_t capacity = items->capacity == 0 ? ITEMS_MIN : items->capacity * 2;
    uint32_t *slots = calloc(capacity * 2, sizeof *slots);
    if (slots == NULL)
        return -ENOMEM;
    char *all = realloc(items->all, capacity * items->item_size);
    if (all == NULL) {
        free(slots);
        return -ENOMEM;
    }
    free(items->slots);
    items->all = all;
    items->capacity = capacity;
    items->slots = slots;
    items->slot_count = capacity * 2;
    items_rehash(items);
    return 0;
}

void *items_enter(struct items *items, const void *key)
{
    void *item = items_find(items, key);
    if (item != NULL)
        return item;
    if (items->count == items->capacity && items_grow(items) < 0)
        return NULL;
    item = items_at(items, items->count);
    memset(item, 0, items->item_size);
    memcpy(item, key, items->key_size);
    items->slots[items_slot(items, key)] = (uint32_t)++items->count;
    return item;
}

void items_free(struct items *items)
{
    free(items->all);
    free(items->slots);
}
