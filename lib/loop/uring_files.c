/* SPDX-License-Identifier: MIT */
#include "uring_files.h"
#include "../core/sys.h"
#include <errno.h>
#include <sys/resource.h>

/* Then it has cost as much to do without a number as it costs to have one: at worst twice as much is paid as by whoever
 * knew beforehand how many requests there will be. */
unsigned uring_files_after = 24;

void uring_files_prepare(struct uring_files *files, int ring)
{
    struct rlimit limit;
    struct io_uring_rsrc_register table = {.nr = FILES_MAX, .flags = IORING_RSRC_REGISTER_SPARSE};
    files->ring = ring;
    if (sys.getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return;
    if (limit.rlim_cur < FILES_MAX) /* of a larger one the kernel says EMFILE */
        table.nr = (unsigned)limit.rlim_cur;
    if (sys.io_uring_register(ring, IORING_REGISTER_FILES2, &table, sizeof table) >= 0)
        files->size = table.nr;
}

static int update(const struct uring_files *files, unsigned place, int fd)
{
    struct io_uring_rsrc_update update = {.offset = place, .data = (uintptr_t)&fd};
    return sys.io_uring_register(files->ring, IORING_REGISTER_FILES_UPDATE, &update, 1) < 0 ? -errno : 0;
}

static void get_number(struct uring_files *files, struct uring_file *file, int fd)
{
    unsigned place;
    if (files->vacant_count > 0)
        place = files->vacant[files->vacant_count - 1];
    else if (files->begun < files->size)
        place = files->begun;
    else
        return;
    file->refused = update(files, place, fd) < 0;
    if (file->refused)
        return;
    if (files->vacant_count > 0)
        files->vacant_count--;
    else
        files->begun++;
    file->number = place + 1;
}

void uring_files_name(struct uring_files *files, struct uring_file *file, int fd, struct io_uring_sqe *entry)
{
    entry->fd = fd;
    if (files->size == 0)
        return;
    if (file->number == 0 && file->requests++ >= uring_files_after && !file->refused)
        get_number(files, file, fd);
    if (file->number == 0)
        return;
    entry->fd = (int)(file->number - 1);
    entry->flags |= IOSQE_FIXED_FILE;
}

int uring_files_let_go(struct uring_files *files, struct uring_file *file)
{
    if (file->number == 0 || files->size == 0)
        return 0;
    int result = update(files, file->number - 1, -1);
    if (result < 0)
        return result;
    files->vacant[files->vacant_count++] = (uint16_t)(file->number - 1);
    *file = (struct uring_file){.number = 0};
    return 0;
}

int uring_files_give_up(struct uring_files *files)
{
    if (files->size == 0)
        return 0;
    if (sys.io_uring_register(files->ring, IORING_UNREGISTER_FILES, NULL, 0) < 0)
        return -errno;
    files->size = 0;
    return 0;
}
