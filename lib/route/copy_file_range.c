/* SPDX-License-Identifier: MIT
 *
 * copy_file_range: one call from file to file. What it does is the file system's choice: share extents (XFS, btrfs),
 * let a server copy (NFS, SMB), or copy once through the page cache (ext4, tmpfs). It does not say which; see
 * lane_prove. Where it copies, it does so by splicing 64 KiB at a time (splice_copy_file_range), and what became of the
 * bytes has to be asked: from 4 KiB to 128 MiB on ext4 it was never the cheapest (bench/README.md).
 */
#include "../core/file_system.h"
#include "../core/transfer.h"
#include "routes.h"
#include <errno.h>

/* The most that one call moves (MAX_RW_COUNT), rounded down to what any block size divides. */
#define LARGEST ((size_t)2147483648u - (64u << 10))

static enum sluice_verdict assess(const struct pair *pair, const char **ret_reason)
{
    *ret_reason = NULL;
    if (pair->segment != SLUICE_SEGMENT_FILE || pair->source != SLUICE_END_FILE || pair->sink != SLUICE_END_FILE)
        *ret_reason = "both ends must be regular files (EINVAL, copy_file_range(2))";
    else if (pair->transform)
        *ret_reason = "a transform needs the bytes in memory";
    else if (pair->append_sink)
        *ret_reason = "the sink is open with O_APPEND (EBADF, copy_file_range(2))";
    if (*ret_reason != NULL)
        return SLUICE_NEVER;
    if (pair->file_size == 0) {
        *ret_reason = "the file is empty, or a virtual one that only reading tells the end of";
        return SLUICE_NOT_NOW;
    }
    if (pair->past_cache) {
        *ret_reason = "where it copies, it copies through the page cache";
        return SLUICE_NOT_NOW;
    }
    if (file_system_only_copies(pair->sink_system, pair->without_reflink)) {
        *ret_reason = "this file system would copy by small pieces, and share nothing";
        return SLUICE_NOT_NOW;
    }
    return SLUICE_YES;
}

static int step(struct lane *lane, uint32_t index, uint64_t at, struct op *ops, int room)
{
    (void)room;
    const struct sluice_segment *segment = lane_segment(lane, index);
    ops[0] = (struct op){
        .kind = OP_COPY_RANGE,
        .in = segment->end->fd,
        .out = lane->sink->fd,
        .in_offset = (off_t)(segment->offset + at),
        .out_offset = lane_out_offset(lane),
        .length = lane->limit,
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
    lane_delivered_unproven(lane, SLUICE_ROUTE_COPY_FILE_RANGE, op, (uint64_t)result);
    return 0;
}

static void leave(struct lane *lane)
{
    lane_prove(lane, SLUICE_ROUTE_COPY_FILE_RANGE);
}

static const char *explain(int error)
{
    switch (error) {
    case EXDEV:
        return "the files are on different file systems";
    case EOPNOTSUPP:
    case ENOSYS:
        return "this file system, or this kernel, has no copy_file_range";
    case EINVAL:
        return "the ranges overlap, or the file system does not take these";
    case ETXTBSY:
        return "one of the files is a swap file";
    case EOVERFLOW:
        return "the range lies beyond what the file system can address";
    }
    return NULL;
}

/* ENOENT and EPERM come from CIFS (KERNEL-FACTS 17.39), and EPERM from sandboxes. */
static const int refusals[] = {EXDEV, EOPNOTSUPP, ENOSYS, EINVAL, EBADF,     ETXTBSY,
                               EPERM, EACCES,     ENOENT, EAGAIN, EOVERFLOW, 0};

const struct route route_copy_file_range = {
    .id = SLUICE_ROUTE_COPY_FILE_RANGE,
    .name = "copy_file_range",
    .assess = assess,
    .step = step,
    .complete = complete,
    .leave = leave,
    .largest_step = LARGEST,
    .refusals = refusals,
    .refusal_reason = "the file system refuses copy_file_range between these files",
    .explain = explain,
};
