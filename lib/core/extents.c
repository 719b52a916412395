/* SPDX-License-Identifier: MIT */
#include "extents.h"
#include "file_system.h"
#include "sys.h"
#include <errno.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <unistd.h>

#define EXTENTS_AT_ONCE 64u /* 3.5 KiB of stack */

static off_t seek(int fd, off_t offset, int whence, uint64_t *calls)
{
    ++*calls;
    off_t result = sys.lseek(fd, offset, whence);
    return result < 0 ? -errno : result;
}

bool extents_at(struct sluice_end *end, uint64_t offset, uint64_t *calls, uint64_t *ret_to)
{
    bool ours = end->flags & SLUICE_END_OWN_FD;
    off_t before = ours ? 0 : seek(end->fd, 0, SEEK_CUR, calls);
    off_t data = before < 0 ? before : seek(end->fd, (off_t)offset, SEEK_DATA, calls);
    off_t hole = data == (off_t)offset ? seek(end->fd, (off_t)offset, SEEK_HOLE, calls) : 0;
    if (!ours && before >= 0)
        seek(end->fd, before, SEEK_SET, calls);
    *ret_to = UINT64_MAX;
    if (data == -ENXIO) /* none up to the end */
        return false;
    if (data < 0 || hole < 0) /* reading will tell what is wrong, if anything is */
        return true;
    *ret_to = data > (off_t)offset ? (uint64_t)data : (uint64_t)hole;
    return data == (off_t)offset;
}

/* The part of an extent inside [from, to), entered; returns where it ends. */
static uint64_t enter_extent(const struct fiemap_extent *extent, uint64_t from, uint64_t to, struct extents *extents)
{
    uint64_t begin = extent->fe_logical > from ? extent->fe_logical : from;
    uint64_t end = extent->fe_logical + extent->fe_length;
    if (end > to)
        end = to;
    if (begin >= end)
        return from;
    uint64_t length = end - begin;
    if (extent->fe_flags & FIEMAP_EXTENT_SHARED)
        extents->shared += length;
    else if (extent->fe_flags & FIEMAP_EXTENT_DATA_INLINE)
        extents->inside += length;
    else
        extents->own += length;
    return end;
}

int extents_map(struct sluice_end *end, uint64_t offset, uint64_t length, uint64_t *calls, struct extents *ret)
{
    _Alignas(struct fiemap) char space[sizeof(struct fiemap) + EXTENTS_AT_ONCE * sizeof(struct fiemap_extent)];
    struct fiemap *map = (struct fiemap *)(void *)space;
    struct extents found = {0};
    const uint64_t to = offset + length;
    for (uint64_t from = offset; from < to;) {
        *map = (struct fiemap){.fm_start = from, .fm_length = to - from, .fm_extent_count = EXTENTS_AT_ONCE};
        ++*calls;
        if (sys.ioctl(end->fd, FS_IOC_FIEMAP, map) < 0)
            return -errno;
        uint64_t before = from;
        bool last = map->fm_mapped_extents < EXTENTS_AT_ONCE;
        for (uint32_t i = 0; i < map->fm_mapped_extents; i++) {
            from = enter_extent(&map->fm_extents[i], from, to, &found);
            last |= (map->fm_extents[i].fe_flags & FIEMAP_EXTENT_LAST) != 0;
        }
        if (last || from == before)
            break;
    }
    found.none = length - found.shared - found.inside - found.own;
    *ret = found;
    return 0;
}

bool extents_are_the_truth(struct sluice_end *end, uint64_t *calls)
{
    switch (file_system_of(end, calls)) {
    case EXT4_SUPER_MAGIC: /* ext2 and ext3 share it */
    case XFS_SUPER_MAGIC:
    case BTRFS_SUPER_MAGIC:
        return true;
    }
    return false;
}

bool extents_are_pages(struct sluice_end *end, uint64_t *calls)
{
    return file_system_of(end, calls) == TMPFS_MAGIC;
}
