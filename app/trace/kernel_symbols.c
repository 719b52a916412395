/* SPDX-License-Identifier: MIT */
#include "kernel_symbols.h"
#include "base/cleanup.h"
#include "grow.h"
#include "sorted.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct kernel_symbol {
    uint64_t address; /* first: sorted_up_to() */
    uint32_t name;    /* offset in names */
    bool judged;
    const struct frame_pattern *pattern; /* once judged */
};

struct kernel_symbols {
    struct kernel_symbol *symbols; /* by address */
    size_t count, room;
    char *names;
};

static int compare_kernel_symbols(const void *a, const void *b)
{
    const struct kernel_symbol *one = a, *other = b;
    if (one->address != other->address)
        return one->address < other->address ? -1 : 1;
    return one->name < other->name ? -1 : one->name > other->name;
}

static int read_whole(const char *path, char **ret_text, size_t *ret_size)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    CLEANUP_FREE char *text = NULL;
    size_t size = 0, room = 0;
    for (;;) {
        if (size + 1 >= room) {
            size_t wanted = room == 0 ? 65536 : room * 2;
            char *grown = realloc(text, wanted);
            if (grown == NULL)
                return -ENOMEM;
            text = grown;
            room = wanted;
        }
        ssize_t got = read(fd, text + size, room - 1 - size);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        size += (size_t)got;
    }
    text[size] = '\0';
    *ret_text = TAKE_POINTER(text);
    *ret_size = size;
    return 0;
}

/* Lines "ffffffff81b6a2b0 T _copy_to_iter\t[module]". The text itself becomes the store of names: each moves down to
 * where the last one ended. All addresses are zero where kernel.kptr_restrict hides them. */
static int read_kernel_symbols(struct kernel_symbols *kernel, const char *path)
{
    size_t size = 0;
    int r = read_whole(path, &kernel->names, &size);
    if (r == -ENOMEM)
        return r;
    if (r < 0)
        return 0; /* no /proc/kallsyms: not known */
    char *line = kernel->names, *store = kernel->names, *all = kernel->names + size;
    while (line < all) {
        char *end = memchr(line, '\n', (size_t)(all - line)); /* strchr under a sanitizer looks at all the rest */
        if (end == NULL)
            end = all;
        char *next = end + 1;
        *end = '\0';
        char *after;
        uint64_t address = strtoull(line, &after, 16);
        char type = after[0] == ' ' ? after[1] : '\0';
        if (address != 0 && strchr("tTwW", type) != NULL && type != '\0' && after[2] == ' ') {
            char *name = after + 3;
            name[strcspn(name, "\t ")] = '\0';
            r = grow((void **)&kernel->symbols, &kernel->room, kernel->count, sizeof kernel->symbols[0]);
            if (r < 0)
                return r;
            kernel->symbols[kernel->count++] =
                (struct kernel_symbol){.address = address, .name = (uint32_t)(store - kernel->names)};
            size_t name_size = strlen(name) + 1;
            memmove(store, name, name_size);
            store += name_size;
        }
        line = next;
    }
    if (kernel->count > 0)
        qsort(kernel->symbols, kernel->count, sizeof kernel->symbols[0], compare_kernel_symbols);
    char *fitting = realloc(kernel->names, (size_t)(store - kernel->names) + 1);
    if (fitting != NULL)
        kernel->names = fitting;
    return 0;
}

/* Of several names for one address, one that the table knows. */
const struct frame_pattern *kernel_symbols_find(struct kernel_symbols *kernel, uint64_t address, const char **ret_name)
{
    size_t up_to = sorted_up_to(kernel->symbols, kernel->count, sizeof kernel->symbols[0], address);
    for (size_t i = up_to; i > 0 && kernel->symbols[i - 1].address == kernel->symbols[up_to - 1].address; i--) {
        struct kernel_symbol *symbol = &kernel->symbols[i - 1];
        if (!symbol->judged) {
            symbol->pattern = frames_kernel(kernel->names + symbol->name);
            symbol->judged = true;
        }
        if (symbol->pattern != NULL) {
            *ret_name = kernel->names + symbol->name;
            return symbol->pattern;
        }
    }
    return NULL;
}

bool kernel_symbols_known(const struct kernel_symbols *kernel)
{
    return kernel->count > 0;
}

int kernel_symbols_new(const char *path, struct kernel_symbols **ret_symbols)
{
    struct kernel_symbols *kernel = calloc(1, sizeof *kernel);
    if (kernel == NULL)
        return -ENOMEM;
    int r = read_kernel_symbols(kernel, path);
    if (r < 0) {
        kernel_symbols_free(kernel);
        return r;
    }
    *ret_symbols = kernel;
    return 0;
}

void kernel_symbols_free(struct kernel_symbols *kernel)
{
    if (kernel == NULL)
        return;
    free(kernel->symbols);
    free(kernel->names);
    free(kernel);
}
