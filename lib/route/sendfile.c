/* SPDX-License-Identifier: MIT
 *
 * sendfile: the kernel puts references to page-cache pages into the socket. No copy where the egress device gathers;
 * into a file it copies once.
 */
#include "../core/transfer.h"
#include "routes.h"
#include <errno.h>

static enum sluice_verdict assess(const struct pair *pair, const char **ret_reason)
{
    *ret_reason = NULL;
    if (pair->segment != SLUICE_SEGMENT_FILE)
        *ret_reason = "the source must be a file (sendfile(2): its input must be mmap-able)";
    else if (pair->transform)
        *ret_reason = "a transform needs the bytes in memory";
    else if (pair->sink == SLUICE_END_MEMORY)
        *ret_reason = "the sink is memory";
    else if (pair->sink == SLUICE_END_DATAGRAM)
        *ret_reason = "a datagram socket takes memory segments only";
    else if (pair->append_sink)
        *ret_reason = "the sink is open with O_APPEND (EINVAL, splice(2))";
    else if (pair->snapshot)
        *ret_reason = "the file may change in place (--snapshot)";
    else if (pair->sink == SLUICE_END_FILE || pair->sink == SLUICE_END_BLOCK)
        *ret_reason = "sendfile writes a file at its position only; splice and copy write at an offset";
    if (*ret_reason != NULL)
        return SLUICE_NEVER;
    if (pair->segment == SLUICE_SEGMENT_FILE && pair->file_size == 0) {
        *ret_reason = "the file is empty, or a virtual one that only reading tells the end of";
        return SLUICE_NOT_NOW;
    }
    if (pair->direct_source) {
        *ret_reason = "O_DIRECT: the kernel would read into fresh pages";
        return SLUICE_NOT_NOW;
    }
    return SLUICE_YES;
}

static int step(struct lane *lane, uint32_t index, uint64_t at, struct op *ops, int room)
{
    (void)room;
    const struct sluice_segment *segment = lane_segment(lane, index);
    ops[0] = (struct op){
        .kind = OP_SENDFILE,
        .in = segment->end->fd,
        .out = lane->sink->fd,
        .in_offset = (off_t)(segment->offset + at),
        .out_offset = OP_NO_OFFSET,
        .length = lane->limit,
        .sink = lane->sink,
    };
    return 1;
}

static int complete(struct lane *lane, const struct op *op, ssize_t result)
{
    (void)op;
    if (result < 0)
        return (int)result;
    if (result == 0)
        return ROUTE_SOURCE_ENDED;
    lane_delivered(lane, SLUICE_ROUTE_SENDFILE, (uint64_t)result);
    return 0;
}

static const int refusals[] = {EINVAL, ENOSYS, EOPNOTSUPP, EOVERFLOW, 0};

const struct route route_sendfile = {
    .id = SLUICE_ROUTE_SENDFILE,
    .name = "sendfile",
    .assess = assess,
    .step = step,
    .complete = complete,
    .refusals = refusals,
    .refusal_reason = "this file or this socket does not support sendfile",
};
