/* SPDX-License-Identifier: MIT
 *
 * Ownership made visible: variables that close or free what they hold when they go out of scope, and TAKE for handing
 * it over. Descriptors start at -1, pointers at NULL.
 *
 *     CLEANUP_FD int fd = open(...);
 *     ...
 *     *ret_fd = TAKE_FD(fd);
 */
#ifndef SLUICE_BASE_CLEANUP_H
#define SLUICE_BASE_CLEANUP_H

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

/* Close what is open, and leave errno alone. EINTR is not retried: Linux has released the descriptor by then, and a
 * second close could hit somebody else's. Returns -1, for fd = close_fd(fd). */
static inline int close_fd(int fd)
{
    if (fd >= 0) {
        int saved = errno;
        close(fd);
        errno = saved;
    }
    return -1;
}

static inline void cleanup_fd(int *fd)
{
    *fd = close_fd(*fd);
}

static inline void cleanup_free(void *pointer)
{
    free(*(void **)pointer);
}

#define CLEANUP_FD __attribute__((cleanup(cleanup_fd)))
#define CLEANUP_FREE __attribute__((cleanup(cleanup_free)))

static inline int take_fd(int *fd)
{
    int taken = *fd;
    *fd = -1;
    return taken;
}

#define TAKE_FD(fd) take_fd(&(fd))
#define TAKE_POINTER(pointer)                                                                                          \
    (__extension__({                                                                                                   \
        __typeof__(pointer) taken_pointer = (pointer);                                                                 \
        (pointer) = NULL;                                                                                              \
        taken_pointer;                                                                                                 \
    }))

#endif
