/* SPDX-License-Identifier: MIT */
#include "service/shared.h"
#include "base/checked.h"
#include <errno.h>
#include <sys/mman.h>

/* Two lines of 64 bytes: x86 fetches lines in neighbouring pairs, and other CPUs have lines of 128. */
#define SLOT_ALIGNMENT 128

int shared_create(unsigned count, size_t size, struct shared *ret_shared)
{
    size_t stride, mapped;
    if (count == 0 || size == 0 || !checked_round_up(size, SLOT_ALIGNMENT, &stride) ||
        !checked_mul(stride, count, &mapped))
        return -EINVAL;
    void *memory = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -errno;
    *ret_shared = (struct shared){.memory = memory, .mapped = mapped, .stride = stride, .count = count};
    return 0;
}

void *shared_slot(const struct shared *shared, unsigned index)
{
    return (char *)shared->memory + index * shared->stride;
}

void shared_destroy(struct shared *shared)
{
    if (shared->memory != NULL)
        munmap(shared->memory, shared->mapped);
    *shared = (struct shared){0};
}
