/* SPDX-License-Identifier: MIT
 *
 * A route to start from: it compiles, is in no registry, and carries a file to a socket as sendfile does. To make one
 * of your own: copy this file, name it after its mechanism, give it a number in sluice.h (append), a line in
 * registry.c, its rule in core/receipt.c, its place in core/plan.c, and its pairs in tests/unit/routes.
 */
#include "skeleton.h"
#include "../core/transfer.h"
#include <errno.h>

/* Asked once per segment, and by `sluice_plan_make`. Look only at the pair: what this machine's kernel supports is
 * found out by trying, and what it refuses comes back through refusals. Never: cannot work, however often it is tried.
 * Not now: works, but something else is cheaper, or a passing cause is against it. */
static enum sluice_verdict assess(const struct pair *pair, const char **ret_reason)
{
    *ret_reason = NULL;
    if (pair->segment == SLUICE_SEGMENT_FILE && pair->sink == SLUICE_END_TCP && !pair->snapshot && !pair->transform)
        return SLUICE_YES;
    *ret_reason = "the skeleton carries files to TCP sockets";
    return SLUICE_NEVER;
}

/* Say what is to be done next. No system call here, and no thought of who carries the op out: inline on epoll, as a
 * submission on a ring, or not at all in the simulated loop. Pipes come from core/pipes.h, buffers from core/pool.h.
 * Ask for lane->limit bytes at most: that is what is in memory and what the turn allows. */
static int step(struct lane *lane, uint32_t index, uint64_t at, struct op *ops, int room)
{
    const struct sluice_segment *segment = lane_segment(lane, index);
    (void)room; /* >= 1; fill more only if each op may assume that the one before moved all it was asked to */
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

/* Zero, short and failed are three different things. EAGAIN does not come here: the core waits for the end that the op
 * blocks on, and asks step() again. After lane_delivered the lane may be in the next segment already, or at its end. */
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

/* "Not by this route": the next one of the plan goes on at the same byte. Everything else fails the transfer. */
static const int refusals[] = {EINVAL, ENOSYS, EOPNOTSUPP, 0};

const struct route route_skeleton = {
    .id = SLUICE_ROUTE_SENDFILE,
    .name = "skeleton",
    .assess = assess,
    .step = step,
    .complete = complete,
    .refusals = refusals,
    .refusal_reason = "say here what these errnos most likely mean, in words that help the reader of a receipt",
};
