/* SPDX-License-Identifier: MIT
 *
 * Buffers are cut, eight each, from slabs of 2 MiB. Where many bytes are to go through one, the slab lies on a page of
 * 2 MiB, of whichever kind can be had: one set aside by the administrator (MAP_HUGETLB), a transparent one
 * (MADV_HUGEPAGE), or else plain pages. Where few are, on plain pages that nobody asked to be larger: the kernel clears
 * 2 MiB before the first byte of a large one can be used, which costs more than copying a small file.
 *
 * Invariants
 *   1. A buffer belongs to whoever took it until it is given back, on whatever thread.
 *   2. No more than SLABS_KEPT slabs of each kind lie idle, and no more than LARGE_SLABS of the large kind are there:
 * the memory of a large page is taken as a whole, also where a slow peer leaves most of its buffer unused.
 *   3. What `pages` says was seen: mincore(2) finds the last page of 2 MiB in memory when only the first byte was
 *      touched, so that one page holds both. A kernel that has no large page to give, or a setting that forbids them,
 *      says nothing else.
 *   4. A child has none of its parent's buffers. Of pages that were set aside not even the mapping: one that both had
 *      would need a further page as soon as one of them wrote, and where none is free the child is ended by SIGBUS.
 */
#include "pool.h"
#include "../base/list.h"
#include "sys.h"
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PAGE 4096u
#define BUFFERS_IN_SLAB (PAGE_LARGE / BUFFER_SIZE)
#define SLABS_KEPT 2
#define LARGE_SLABS 8
/* So much is worth a large page: clearing it costs about as much as copying 1 MiB. */
#define LARGE_FROM (4u << 20)
#define CHAINS 64

_Static_assert(BUFFERS_IN_SLAB == 8, "the set of free buffers is 8 bits");

struct region_life {
    _Atomic unsigned keepers;
    _Atomic bool over;
};

struct slab {
    struct region region;
    struct list link; /* in the list of slabs of its kind with a free buffer; else in none */
    struct slab *next_in_chain;
    uint8_t free; /* bit per buffer */
    bool large;   /* was asked for, whatever it got */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct slab *chains[CHAINS]; /* by address */
static struct slab *inherited;      /* in a process that was forked */
static struct list with_room[2];    /* [large] */
static unsigned idle_slabs[2], large_slabs;

/* ---- Mappings ----------------------------------------------------------------------------------------------- */

static size_t round_up(size_t size, size_t step)
{
    return (size + step - 1) / step * step;
}

static void *map(size_t size, int flags)
{
    void *mapping = sys.mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    return mapping == MAP_FAILED ? NULL : mapping;
}

/* Is the page there, without having been touched? */
static bool is_there(char *page)
{
    unsigned char answer = 0;
    return sys.mincore(page, PAGE, &answer) == 0 && (answer & 1) != 0;
}

/* Whole pages of 2 MiB, aligned to it. */
static bool all_large(char *data, size_t size)
{
    bool all = true;
    for (char *page = data; page < data + size / PAGE_LARGE * PAGE_LARGE; page += PAGE_LARGE) {
        *(volatile char *)page = 0;
        all = all && is_there(page + PAGE_LARGE - PAGE);
    }
    return all;
}

/* Pages that were set aside are promised when they are mapped, but for a limit of the control group's (hugetlb.max),
 * which is felt as SIGBUS when they are touched. So the kernel is made to find them at once, and asked whether it
 * did. Not if more than a quarter of what would be taken were of no use. */
static bool map_set_aside(struct region *region, size_t size)
{
    size_t whole = round_up(size, PAGE_LARGE);
    if (whole - size > whole / 4)
        return false;
    char *mapping = map(whole, MAP_HUGETLB | MAP_POPULATE | (21 << MAP_HUGE_SHIFT));
    if (mapping == NULL)
        return false;
    for (size_t at = 0; at < whole; at += PAGE_LARGE) {
        if (!is_there(mapping + at)) {
            sys.munmap(mapping, whole);
            return false;
        }
    }
    sys.madvise(mapping, whole, MADV_DONTFORK);
    *region = (struct region){
        .data = mapping, .size = whole, .mapping = mapping, .mapped = whole, .pages = SLUICE_PAGES_HUGE};
    return true;
}

int region_map(struct region *region, size_t size, bool large)
{
    size = round_up(size, PAGE);
    bool whole = size >= PAGE_LARGE;
    if (whole && large && map_set_aside(region, size))
        return 0;
    /* Address space is not memory: what is mapped for the sake of alignment is never touched. */
    size_t mapped = size + (whole ? PAGE_LARGE - PAGE : 0);
    char *mapping = mapped < size || size == 0 ? NULL : map(mapped, 0);
    if (mapping == NULL)
        return -ENOMEM;
    size_t lead = whole ? (PAGE_LARGE - (uintptr_t)mapping % PAGE_LARGE) % PAGE_LARGE : 0;
    *region = (struct region){
        .data = mapping + lead, .size = size, .mapping = mapping, .mapped = mapped, .pages = SLUICE_PAGES_PLAIN};
    if (!whole)
        return 0;
    bool advised = sys.madvise(region->data, size, large ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) == 0;
    if (large && advised && all_large(region->data, size))
        region->pages = SLUICE_PAGES_TRANSPARENT;
    return 0;
}

void region_unmap(struct region *region)
{
    if (region->mapping == NULL)
        return;
    if (region->life != NULL) {
        atomic_store_explicit(&region->life->over, true, memory_order_release);
        region_life_drop(region->life);
    }
    sys.munmap(region->mapping, region->mapped);
    *region = (struct region){.data = NULL};
}

struct region_life *region_life_keep(struct region *region)
{
    pthread_mutex_lock(&lock); /* of a slab, several threads may look at its region */
    if (region->life == NULL) {
        region->life = sys.allocate(1, sizeof *region->life);
        if (region->life != NULL)
            region->life->keepers = 1;
    }
    if (region->life != NULL)
        atomic_fetch_add_explicit(&region->life->keepers, 1, memory_order_relaxed);
    pthread_mutex_unlock(&lock);
    return region->life;
}

void region_life_drop(struct region_life *life)
{
    if (atomic_fetch_sub_explicit(&life->keepers, 1, memory_order_acq_rel) == 1)
        free(life);
}

bool region_life_is_over(const struct region_life *life)
{
    return atomic_load_explicit(&life->over, memory_order_acquire);
}

/* ---- Buffers ------------------------------------------------------------------------------------------------ */

static void before_fork(void)
{
    pthread_mutex_lock(&lock);
}

static void in_parent(void)
{
    pthread_mutex_unlock(&lock);
}

static void make_lists(void)
{
    list_init(&with_room[0]);
    list_init(&with_room[1]);
}

static void in_child(void)
{
    /* The parent's: its rings may be looked at yet, its buffers are never put back. Kept where leak checkers look. */
    for (size_t i = 0; i < CHAINS; i++)
        while (chains[i] != NULL) {
            struct slab *slab = chains[i];
            chains[i] = slab->next_in_chain;
            slab->next_in_chain = inherited;
            inherited = slab;
        }
    make_lists();
    idle_slabs[0] = idle_slabs[1] = large_slabs = 0;
    pthread_mutex_unlock(&lock);
}

static void prepare(void)
{
    make_lists();
    pthread_atfork(before_fork, in_parent, in_child);
}

static void enter(void)
{
    pthread_once(&once, prepare);
    pthread_mutex_lock(&lock);
}

static struct slab **chain_of(const void *data)
{
    return &chains[(uintptr_t)data / PAGE_LARGE % CHAINS];
}

/* A slab begins at a multiple of its size. */
static struct slab *slab_of(const void *buffer)
{
    const char *data = (const char *)buffer - (uintptr_t)buffer % PAGE_LARGE;
    struct slab *slab = *chain_of(data);
    while (slab != NULL && slab->region.data != data)
        slab = slab->next_in_chain;
    return slab;
}

static void remove_slab(struct slab *slab)
{
    struct slab **at = chain_of(slab->region.data);
    while (*at != slab)
        at = &(*at)->next_in_chain;
    *at = slab->next_in_chain;
    list_remove(&slab->link);
    large_slabs -= slab->large;
    region_unmap(&slab->region);
    free(slab);
}

static struct slab *add_slab(bool large)
{
    struct slab *slab = sys.allocate(1, sizeof *slab);
    if (slab == NULL)
        return NULL;
    if (region_map(&slab->region, PAGE_LARGE, large) < 0) {
        free(slab);
        return NULL;
    }
    slab->free = UINT8_MAX;
    slab->large = large;
    struct slab **chain = chain_of(slab->region.data);
    slab->next_in_chain = *chain;
    *chain = slab;
    large_slabs += large;
    idle_slabs[large]++;
    list_add_first(&with_room[large], &slab->link);
    return slab;
}

static struct slab *first_with_room(bool large)
{
    return list_empty(&with_room[large]) ? NULL : LIST_OBJECT(with_room[large].next, struct slab, link);
}

/* Mapping a slab and clearing its page is done under the lock: there are few, and whoever waits needs one too. */
static struct slab *choose_slab(bool large)
{
    struct slab *slab = first_with_room(large);
    if (slab == NULL && large && large_slabs < LARGE_SLABS)
        slab = add_slab(true);
    if (slab == NULL)
        slab = first_with_room(!large);
    return slab != NULL ? slab : add_slab(false);
}

void *buffer_get(uint64_t expected)
{
    void *buffer = NULL;
    enter();
    struct slab *slab = choose_slab(expected >= LARGE_FROM);
    if (slab != NULL) {
        unsigned place = (unsigned)__builtin_ctz(slab->free);
        buffer = slab->region.data + (size_t)place * BUFFER_SIZE;
        idle_slabs[slab->large] -= slab->free == UINT8_MAX;
        slab->free &= (uint8_t) ~(1u << place);
        if (slab->free == 0)
            list_remove(&slab->link);
    }
    pthread_mutex_unlock(&lock);
    return buffer;
}

void buffer_put(void *buffer)
{
    if (buffer == NULL)
        return;
    enter();
    struct slab *slab = slab_of(buffer);
    if (slab != NULL) { /* else it is the parent's, of a process that has forked */
        if (slab->free == 0)
            list_add_first(&with_room[slab->large], &slab->link);
        slab->free |= (uint8_t)(1u << (uintptr_t)buffer % PAGE_LARGE / BUFFER_SIZE);
        if (slab->free == UINT8_MAX && ++idle_slabs[slab->large] > SLABS_KEPT) {
            idle_slabs[slab->large]--;
            remove_slab(slab);
        }
    }
    pthread_mutex_unlock(&lock);
}

enum sluice_pages buffer_pages(const void *buffer)
{
    enter();
    const struct slab *slab = slab_of(buffer);
    enum sluice_pages pages = slab != NULL ? slab->region.pages : SLUICE_PAGES_PLAIN;
    pthread_mutex_unlock(&lock);
    return pages;
}

struct region *buffer_region(const void *buffer)
{
    enter();
    struct slab *slab = slab_of(buffer);
    pthread_mutex_unlock(&lock);
    return slab != NULL && slab->large ? &slab->region : NULL;
}

void buffers_drain(void)
{
    enter();
    for (int large = 0; large < 2; large++) {
        LIST_FOR_EACH(link, &with_room[large])
        {
            struct slab *slab = LIST_OBJECT(link, struct slab, link);
            if (slab->free == UINT8_MAX)
                remove_slab(slab);
        }
        idle_slabs[large] = 0;
    }
    pthread_mutex_unlock(&lock);
}

const char *sluice_pages_name(enum sluice_pages pages)
{
    switch (pages) {
    case SLUICE_PAGES_NONE:
        return "none";
    case SLUICE_PAGES_PLAIN:
        return "plain";
    case SLUICE_PAGES_TRANSPARENT:
        return "transparent";
    case SLUICE_PAGES_HUGE:
        return "huge";
    }
    return "?";
}

/* ---- Memory of the library's for its callers ------------------------------------------------------------------ */

struct sluice_memory {
    struct region region;
};

int sluice_memory_new(size_t size, struct sluice_memory **ret_memory)
{
    if (size == 0 || size > SIZE_MAX - PAGE_LARGE)
        return -EINVAL;
    struct sluice_memory *memory = sys.allocate(1, sizeof *memory);
    if (memory == NULL)
        return -ENOMEM;
    if (region_map(&memory->region, size, true) < 0) {
        free(memory);
        return -ENOMEM;
    }
    *ret_memory = memory;
    return 0;
}

void *sluice_memory_data(struct sluice_memory *memory)
{
    return memory->region.data;
}

enum sluice_pages sluice_memory_pages(const struct sluice_memory *memory)
{
    return memory->region.pages;
}

void sluice_memory_release(void *context, const void *data, size_t length)
{
    struct sluice_memory *memory = context;
    (void)data, (void)length;
    if (memory == NULL)
        return;
    region_unmap(&memory->region);
    free(memory);
}

struct region *memory_region(struct sluice_memory *memory)
{
    return &memory->region;
}
