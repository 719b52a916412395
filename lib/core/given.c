/* SPDX-License-Identifier: MIT */
#include "given.h"
#include "sys.h"
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PAGE 4096u

struct sluice_memory {
    void *data;
    size_t size;
};

static void *map(size_t size)
{
    void *data = sys.mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return data == MAP_FAILED ? NULL : data;
}

int sluice_memory_new(size_t size, struct sluice_memory **ret_memory)
{
    if (size == 0 || size > SIZE_MAX - PAGE)
        return -EINVAL;
    struct sluice_memory *memory = sys.allocate(1, sizeof *memory);
    if (memory == NULL)
        return -ENOMEM;
    memory->size = (size + PAGE - 1) / PAGE * PAGE;
    memory->data = map(memory->size);
    if (memory->data == NULL) {
        free(memory);
        return -ENOMEM;
    }
    *ret_memory = memory;
    return 0;
}

void *sluice_memory_data(struct sluice_memory *memory)
{
    return memory->data;
}

void sluice_memory_release(void *context, const void *data, size_t length)
{
    struct sluice_memory *memory = context;
    (void)data, (void)length;
    if (memory == NULL)
        return;
    sys.munmap(memory->data, memory->size);
    free(memory);
}

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
    char *page = map(PAGE);
    if (page != NULL && sys.pipe2(fds, O_CLOEXEC | O_NONBLOCK) == 0) {
        fate = (int)try_page(fds, page);
        sys.close(fds[0]);
        sys.close(fds[1]);
    }
    if (page != NULL)
        sys.munmap(page, PAGE);
    if (fate != (int)GIVEN_UNKNOWN) /* else it is asked again: descriptors or memory may have been short */
        atomic_store_explicit(&known, fate, memory_order_relaxed);
    return (enum given_fate)fate;
}
