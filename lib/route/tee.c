/* SPDX-License-Identifier: MIT
 *
 * tee: one stream into several sinks by reference. core/fanout.c fills the pipe of the window from the source and gives
 * each lane references to the same pages in a pipe of its own, by tee(2); here they are spliced from there into the
 * sink.
 */
#include "../core/fanout.h"
#include "routes.h"
#include <errno.h>
#include <fcntl.h>

static bool splices(enum sluice_end_kind kind)
{
    return kind != SLUICE_END_MEMORY && kind != SLUICE_END_DATAGRAM && kind != SLUICE_END_OTHER;
}

static enum sluice_verdict assess(const struct pair *pair, const char **ret_reason)
{
    *ret_reason = NULL;
    if (pair->segment != SLUICE_SEGMENT_STREAM || !pair->fan_out)
        *ret_reason = "it is for one stream into several sinks";
    else if (pair->sink == SLUICE_END_MEMORY)
        *ret_reason = "the sink is memory";
    else if (pair->sink == SLUICE_END_DATAGRAM || pair->source == SLUICE_END_DATAGRAM)
        *ret_reason = "datagrams would lose their boundaries";
    else if (pair->append_sink)
        *ret_reason = "the sink is open with O_APPEND (EINVAL, splice(2))";
    else if (pair->snapshot)
        *ret_reason = "the file may change in place (--snapshot)";
    if (*ret_reason != NULL)
        return SLUICE_NEVER;
    if (!splices(pair->source) || !splices(pair->sink)) {
        *ret_reason = "this kind of descriptor may not splice";
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
    (void)index, (void)at, (void)room;
    ops[0] = (struct op){
        .kind = OP_DRAIN,
        .out = lane->sink->fd,
        .in_offset = OP_NO_OFFSET,
        .out_offset = lane_out_offset(lane),
        .flags = SPLICE_F_MOVE | SPLICE_F_NONBLOCK,
        .sink = lane->sink,
    };
    ops[0].in = fanout_outlet(lane, &ops[0].length);
    return 1;
}

static int complete(struct lane *lane, const struct op *op, ssize_t result)
{
    if (result <= 0)
        return result < 0 ? (int)result : -EIO;
    fanout_left(lane, op, (size_t)result);
    lane_delivered(lane, SLUICE_ROUTE_TEE, (uint64_t)result);
    return 0;
}

/* Bytes in the lane's pipe are still to be delivered, by whichever route comes next. */
static void leave(struct lane *lane)
{
    if (lane->in_pipe == 0)
        pipe_put(&lane->pipe, 0);
}

/* Of the source, of tee itself, or of the sink; the first two are every lane's. EFAULT: a page has as many references
 * as it can count. EAGAIN: a pipe that is empty takes nothing. */
static const int refusals[] = {EINVAL, ENOSYS, EOPNOTSUPP, EPERM, EBADF, EMFILE, ENFILE, ENOMEM, EFAULT, EAGAIN, 0};

const struct route route_tee = {
    .id = SLUICE_ROUTE_TEE,
    .name = "tee",
    .assess = assess,
    .step = step,
    .complete = complete,
    .leave = leave,
    .refusals = refusals,
    .refusal_reason = "these ends do not splice, or no pipe is to be had",
};
