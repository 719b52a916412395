/* SPDX-License-Identifier: MIT
 *
 * Pools of what transfers borrow for a moment: staging buffers and pipes. One pool per thread, so no locks; what is in
 * it is given back to the kernel when the thread ends.
 */
#ifndef SLUICE_CORE_BUFFERS_H
#define SLUICE_CORE_BUFFERS_H

#include <stddef.h>
#include <stdint.h>

/* 256 KiB: copying by larger pieces falls out of the second-level cache (KERNEL-FACTS 1: 256K .215 s/GiB, 1M .236). */
#define BUFFER_SIZE (256u << 10)

/* A buffer of BUFFER_SIZE bytes, aligned to a page; NULL without memory. */
void *buffer_get(void);
void buffer_put(void *buffer);

struct pipe {
    int read, write;
    size_t capacity; /* as F_GETPIPE_SZ says: past pipe-user-pages-soft a new pipe has 8 KiB, without an error */
};

/* 1 MiB, the most an unprivileged pipe may have, and the cheapest per byte (KERNEL-FACTS 3). */
#define PIPE_CAPACITY (1u << 20)

/* An empty pipe. Returns 0 or a negative errno (EMFILE, ENFILE). calls grows by the system calls made. */
int pipe_get(struct pipe *ret_pipe, uint64_t *calls);

/* Give a pipe back. One that still holds bytes is closed: they would turn up in somebody else's stream. */
void pipe_put(struct pipe *pipe, size_t residue);

/* Free what this thread's pools hold (a thread's end does it too). Tests count descriptors after it. */
void pools_drain(void);
void pools_drain_pipes(void);

#endif
