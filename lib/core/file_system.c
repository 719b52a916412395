/* SPDX-License-Identifier: MIT */
#include "file_system.h"
#include "../base/clock.h"
#include "sys.h"
#include <errno.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define SLOTS 8u
/* A device number may be another file system's by then. */
#define KNOWN_MS 60000

struct known {
    uint64_t device;
    uint64_t expires; /* ms; 0: free */
    uint32_t type;
};

struct refused {
    uint64_t source, sink; /* devices */
    uint64_t expires;
    uint32_t routes;
};

static _Thread_local struct known known[SLOTS];
static _Thread_local struct refused refused[SLOTS];
static _Thread_local unsigned next_known, next_refused;

static bool knows_device(struct sluice_end *end, uint64_t *calls)
{
    struct stat status;
    if (end->kind != SLUICE_END_FILE)
        return false;
    if (end->file.device_known)
        return true;
    ++*calls;
    if (sys.fstat(end->fd, &status) < 0)
        return false;
    end->file.device = status.st_dev;
    end->file.device_known = true;
    return true;
}

uint32_t file_system_of(struct sluice_end *end, uint64_t *calls)
{
    struct statfs status;
    if (!knows_device(end, calls))
        return 0;
    uint64_t now = clock_coarse_ms();
    for (unsigned i = 0; i < SLOTS; i++)
        if (known[i].device == end->file.device && known[i].expires > now)
            return known[i].type;
    ++*calls;
    if (sys.fstatfs(end->fd, &status) < 0)
        return 0;
    known[next_known++ % SLOTS] =
        (struct known){.device = end->file.device, .expires = now + KNOWN_MS, .type = (uint32_t)status.f_type};
    return (uint32_t)status.f_type;
}

const char *file_system_name(uint32_t type, char *buffer)
{
    switch (type) {
    case 0:
        return "?";
    case EXT4_SUPER_MAGIC: /* ext2 and ext3 share it */
        return "ext4";
    case XFS_SUPER_MAGIC:
        return "xfs";
    case BTRFS_SUPER_MAGIC:
        return "btrfs";
    case TMPFS_MAGIC:
        return "tmpfs";
    case F2FS_SUPER_MAGIC:
        return "f2fs";
    case NFS_SUPER_MAGIC:
        return "nfs";
    }
    snprintf(buffer, 9, "%x", (unsigned)type);
    return buffer;
}

bool file_system_only_copies(uint32_t type, bool without_reflink)
{
    switch (type) {
    case EXT4_SUPER_MAGIC:
    case TMPFS_MAGIC:
    case F2FS_SUPER_MAGIC:
        return true;
    case XFS_SUPER_MAGIC: /* made or mounted without */
    case BTRFS_SUPER_MAGIC:
        return without_reflink;
    }
    return false;
}

static struct refused *find_refused(uint64_t source, uint64_t sink)
{
    uint64_t now = clock_coarse_ms();
    for (unsigned i = 0; i < SLOTS; i++)
        if (refused[i].source == source && refused[i].sink == sink && refused[i].expires > now)
            return &refused[i];
    return NULL;
}

void file_systems_remember_refusal(struct sluice_end *source, struct sluice_end *sink, enum sluice_route route,
                                   int error, uint64_t *calls)
{
    bool of_all = error == EXDEV || error == EOPNOTSUPP || error == ENOTTY || error == ENOSYS;
    if (!of_all || !knows_device(source, calls) || !knows_device(sink, calls))
        return;
    struct refused *slot = find_refused(source->file.device, sink->file.device);
    if (slot == NULL) {
        slot = &refused[next_refused++ % SLOTS];
        *slot = (struct refused){
            .source = source->file.device, .sink = sink->file.device, .expires = clock_coarse_ms() + KNOWN_MS};
    }
    slot->routes |= 1u << route;
}

void file_systems_forget(void)
{
    memset(known, 0, sizeof known);
    memset(refused, 0, sizeof refused);
}

uint32_t file_systems_refused(struct sluice_end *source, struct sluice_end *sink, uint64_t *calls)
{
    if (!knows_device(source, calls) || !knows_device(sink, calls))
        return 0;
    const struct refused *slot = find_refused(source->file.device, sink->file.device);
    return slot != NULL ? slot->routes : 0;
}
