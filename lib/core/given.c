/* SPDX-License-Identifier: MIT */
#include "given.h"
#include "sys.h"
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/mman.h>

#define PAGE 4096u

/* Write, mutate, read back. */
static enum given_fate try_page(int fds[2], char *page)
{
    struct iovec iov = {.iov_base = page, .iov_len = PAGE};
    char seen = 0;
    page[0] = 'a';
    if (sys.vmsplice(fds[1], &iov, 1, SPLICE_F_NONBLOCK) != PAGE)
        return GIVEN_UNKNOWN;
    page[0] = 'b';
    if (sys.read(fds[0], &seen, 1) != 1)
        return GIVEN_UNKNOWN;
    return seen == 'b' ? GIVEN_REFERRED_TO : GIVEN_COPIED;
}

static _Atomic int known = -1;

void given_forget(void)
{
    atomic_store_explicit(&known, -1, memory_order_relaxed);
}

enum given_fate given_fate(void)
{
    int fds[2];
    int fate = atomic_load_explicit(&known, memory_order_relaxed);
    if (fate >= 0)
        return (enum given_fate)fate;
    fate = (int)GIVEN_UNKNOWN;
    char *page = sys.mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page != MAP_FAILED && sys.pipe2(fds, O_CLOEXEC | O_NONBLOCK) == 0) {
        fate = (int)try_page(fds, page);
        sys.close(fds[0]);
        sys.close(fds[1]);
    }
    if (page != MAP_FAILED)
        sys.munmap(page, PAGE);
    if (fate != (int)GIVEN_UNKNOWN) /* else it is asked again: descriptors or memory may have been short */
        atomic_store_explicit(&known, fate, memory_order_relaxed);
    return (enum given_fate)fate;
}
