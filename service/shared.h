/* SPDX-License-Identifier: MIT
 *
 * Memory that workers and their supervisor share: one slot per worker, made before the fork. A slot outlives the worker
 * that wrote it, crashed or not. One writer per slot; slots are cache lines apart, so that writers do not slow one
 * another down. Readers see counters in flight: use relaxed atomics (or 8-byte aligned stores) for what others read.
 */
#ifndef SLUICE_SERVICE_SHARED_H
#define SLUICE_SERVICE_SHARED_H

#include <stddef.h>

struct shared {
    void *memory;
    size_t mapped; /* bytes */
    size_t stride; /* bytes from slot to slot */
    unsigned count;
};

/* Zeroed memory for count slots of size bytes each. Returns 0, -EINVAL (none, or too many) or -ENOMEM. */
int shared_create(unsigned count, size_t size, struct shared *ret_shared);

/* Slot index (< count), aligned to a cache line. */
void *shared_slot(const struct shared *shared, unsigned index);

/* Unmap. Harmless on a zeroed struct, and twice. */
void shared_destroy(struct shared *shared);

#endif
