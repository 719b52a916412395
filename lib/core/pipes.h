/* SPDX-License-Identifier: MIT
 *
 * Pipes that transfers borrow for a moment. A pool for each thread, so no locks; what is in it is closed when the
 * thread ends.
 */
#ifndef SLUICE_CORE_PIPES_H
#define SLUICE_CORE_PIPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pipe {
    int read, write;
    size_t capacity;
    bool starved; /* of two pages, as the user's pipes may hold no more (pipe(7)): it is not kept */
};

/* Why pipe_get says ENOMEM. */
#define PIPES_USED_UP "the user's pipes may hold no more (fs.pipe-user-pages-soft)"

/* An empty pipe, of a MiB where that is to be had (the most an unprivileged one may have). any: also one of two pages,
 * for which every byte takes four calls per 8 KiB, where copying takes three per 256. Returns 0 or a negative errno:
 * EMFILE, ENFILE, ENOMEM (PIPES_USED_UP). calls grows by the system calls made. */
int pipe_get(struct pipe *ret_pipe, bool any, uint64_t *calls);

/* Give a pipe back. One that still holds bytes is closed: they would turn up in somebody else's stream. */
void pipe_put(struct pipe *pipe, size_t residue);

/* Close what this thread's pool holds (a thread's end does it too). Tests count descriptors after it. */
void pipes_drain(void);

#endif
