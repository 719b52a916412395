/* SPDX-License-Identifier: MIT
 *
 * Memory that a ring knows by number: the kernel need not look up, pin and count its pages for every request. The
 * pool's large slabs and struct sluice_memory are registered when the ring is first given some of theirs. What is
 * registered stays pinned, and counted against the user's limit on locked memory, until it is unmapped; then the ring
 * has to let go of it before it sleeps again (whoever unmaps it may be on another thread).
 */
#ifndef SLUICE_LOOP_URING_MEMORY_H
#define SLUICE_LOOP_URING_MEMORY_H

#include "../core/transfer.h"

#define PLACES 64

/* A region that is registered with the ring; NULL: none. It is told from another at the same address by its life. */
struct place {
    struct region_life *life;
    const char *data;
};

/* Zeroed, for a ring that has not come so far. */
struct uring_memory {
    int ring;       /* its descriptor */
    bool registers; /* there is a table */
    struct place places[PLACES];
    unsigned place_count; /* of the first so many, some are in use */
    uint64_t refused_until;
};

/* An empty table, to be filled while the loop runs. Without it memory is handed over by address. */
void uring_memory_prepare(struct uring_memory *memory, int ring);

/* The number of the memory that this piece of what the lane moves lies in; negative: none. now: ms of the loop. */
int uring_memory_number(struct uring_memory *memory, const struct lane *lane, const char *data, size_t length,
                        uint64_t now);

/* Let go of what is unmapped. */
void uring_memory_let_go(struct uring_memory *memory);

/* Before the ring is closed, which lets go of all. */
void uring_memory_free(struct uring_memory *memory);

#endif
