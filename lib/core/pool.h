/* SPDX-License-Identifier: MIT
 *
 * The library's memory: staging buffers that transfers borrow for a moment, and struct sluice_memory. One pool for all
 * threads. pool.c opens with the rules.
 */
#ifndef SLUICE_CORE_POOL_H
#define SLUICE_CORE_POOL_H

#include <sluice/sluice.h>

/* Says whether a mapping is still there to whoever has handed it to the kernel (a ring that has registered it) and has
 * to take it back; lives until the last of them has let go. */
struct region_life;

struct region {
    char *data;
    size_t size;
    void *mapping; /* with what lies before and after data */
    size_t mapped;
    enum sluice_pages pages;
    struct region_life *life;
};

/* Map at least size bytes of zeros; PAGE_LARGE and more are aligned to that. large: on pages of that size where they
 * are to be had, each of which is touched; else on plain ones, which are not. Returns 0 or -ENOMEM. */
int region_map(struct region *region, size_t size, bool large);
void region_unmap(struct region *region);

#define PAGE_LARGE (2u << 20)

/* One more who looks at it; NULL without memory. */
struct region_life *region_life_keep(struct region *region);
void region_life_drop(struct region_life *life);
bool region_life_is_over(const struct region_life *life);

/* 256 KiB: copying by larger pieces falls out of the second-level cache (KERNEL-FACTS 1: 256K .215 s/GiB, 1M .236). */
#define BUFFER_SIZE (256u << 10)

/* A buffer of BUFFER_SIZE bytes, aligned to its size, through which so many bytes are expected to go; NULL without
 * memory. */
void *buffer_get(uint64_t expected);
void buffer_put(void *buffer);

enum sluice_pages buffer_pages(const void *buffer);
/* The region that a buffer is part of; NULL: it is not worth handing to a ring. */
struct region *buffer_region(const void *buffer);

/* The mapping behind memory of a caller's. */
struct region *memory_region(struct sluice_memory *memory);

/* Give everything that is not in use back to the kernel. */
void buffers_drain(void);

/* Of the memory that some bytes went through, and of the memory of some others: the smaller pages. */
static inline enum sluice_pages smaller_pages(enum sluice_pages a, enum sluice_pages b)
{
    if (a == SLUICE_PAGES_NONE || b == SLUICE_PAGES_NONE)
        return a > b ? a : b;
    return a < b ? a : b;
}

#endif
