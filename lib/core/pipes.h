/* SPDX-License-Identifier: MIT
 *
 * Pipes that transfers borrow for a moment. A pool for each thread, so no locks; what is in it is closed when the
 * thread ends.
 */
#ifndef SLUICE_CORE_PIPES_H
#define SLUICE_CORE_PIPES_H

#include <stddef.h>
#include <stdint.h>

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

/* Close what this thread's pool holds (a thread's end does it too). Tests count descriptors after it. */
void pipes_drain(void);

#endif
