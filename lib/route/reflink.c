/* SPDX-License-Identifier: MIT
 *
 * reflink: both files refer to the same extents until one of them is written to (FICLONERANGE). One call for the whole
 * file, whose cost does not depend on its length: XFS, btrfs, and some others.
 */
#include "../core/transfer.h"
#include "routes.h"
#include <errno.h>
#include <stdint.h>

static enum sluice_verdict assess(const struct pair *pair, const char **ret_reason)
{
    *ret_reason = NULL;
    if (pair->segment != SLUICE_SEGMENT_FILE || pair->source != SLUICE_END_FILE || pair->sink != SLUICE_END_FILE)
        *ret_reason = "extents are shared between two regular files";
    else if (pair->transform)
        *ret_reason = "a transform needs the bytes in memory";
    else if (pair->append_sink)
        *ret_reason = "the sink is open with O_APPEND (EBADF, ioctl_ficlonerange(2))";
    if (*ret_reason != NULL)
        return SLUICE_NEVER;
    if (pair->file_size == 0) {
        *ret_reason = "the file is empty, or a virtual one that only reading tells the end of";
        return SLUICE_NOT_NOW;
    }
    return SLUICE_YES;
}

static int step(struct lane *lane, uint32_t index, uint64_t at, struct op *ops, int room)
{
    (void)room;
    const struct sluice_segment *segment = lane_segment(lane, index);
    off_t out_offset = lane_out_offset(lane);
    if (out_offset == OP_NO_OFFSET)
        return -ESPIPE;
    ops[0] = (struct op){
        .kind = OP_CLONE,
        .in = segment->end->fd,
        .out = lane->sink->fd,
        .in_offset = (off_t)(segment->offset + at),
        .out_offset = out_offset,
        .length = segment->end->file.size > 0 ? lane->limit : 0,
        .sink = lane->sink,
    };
    return 1;
}

static int complete(struct lane *lane, const struct op *op, ssize_t result)
{
    if (result < 0)
        return (int)result;
    if (result == 0)
        return ROUTE_SOURCE_ENDED;
    lane_delivered_unproven(lane, SLUICE_ROUTE_REFLINK, op, (uint64_t)result);
    return 0;
}

static void leave(struct lane *lane)
{
    lane_prove(lane, SLUICE_ROUTE_REFLINK);
}

static const char *explain(int error)
{
    switch (error) {
    case EXDEV:
        return "the files are on different file systems";
    case EOPNOTSUPP:
    case ENOTTY:
    case ENOSYS:
        return "this file system shares no extents";
    case EINVAL:
        return "the range is not made of whole blocks, or a file's attributes forbid it (btrfs: one is nodatacow)";
    case ESPIPE:
        return "extents are shared at an offset, not at the file position";
    case ETXTBSY:
        return "one of the files is a swap file";
    }
    return NULL;
}

/* EAGAIN: ZFS, when the source was written to a moment ago (KERNEL-FACTS 17.40). */
static const int refusals[] = {EOPNOTSUPP, ENOTTY, ENOSYS, EXDEV,  EINVAL, ESPIPE, ETXTBSY,
                               EBADF,      EPERM,  EACCES, ENOENT, EAGAIN, 0};

const struct route route_reflink = {
    .id = SLUICE_ROUTE_REFLINK,
    .name = "reflink",
    .assess = assess,
    .step = step,
    .complete = complete,
    .leave = leave,
    .largest_step = INT64_MAX,
    .moves_extents = true,
    .needs_no_pages = true,
    .refusals = refusals,
    .refusal_reason = "the file system refuses to share extents of these files",
    .explain = explain,
};
