/* SPDX-License-Identifier: MIT
 *
 * vmsplice: pages of memory go into a pipe by reference, and from there by splice. Nothing ever tells when the kernel
 * has done with them (KERNEL-FACTS 4), so only memory that nobody will use again is given: struct sluice_memory, which
 * is unmapped after it was sent; its pages live as long as somebody refers to them.
 */
#include "../core/transfer.h"
#include "routes.h"
#include <errno.h>
#include <fcntl.h>

static enum sluice_verdict assess(const struct pair *pair, const char **ret_reason)
{
    *ret_reason = NULL;
    if (pair->segment != SLUICE_SEGMENT_MEMORY)
        *ret_reason = "the source must be memory";
    else if (pair->transform)
        *ret_reason = "a transform needs the bytes in memory";
    else if (!pair->is_given)
        *ret_reason = "only memory that is given away (sluice_memory_new): nothing tells when its pages are free again";
    else if (pair->sink == SLUICE_END_MEMORY)
        *ret_reason = "the sink is memory";
    else if (pair->sink == SLUICE_END_DATAGRAM)
        *ret_reason = "datagrams would lose their boundaries";
    else if (pair->sink == SLUICE_END_FILE || pair->sink == SLUICE_END_BLOCK)
        *ret_reason = "into a file the kernel copies, and a write is cheaper";
    if (*ret_reason != NULL)
        return SLUICE_NEVER;
    if (pair->sink == SLUICE_END_OTHER)
        *ret_reason = "this kind of descriptor may not splice";
    else if (pair->given == GIVEN_COPIED)
        *ret_reason = "this kernel's vmsplice copies";
    else if (pair->given == GIVEN_UNKNOWN)
        *ret_reason = "vmsplice could not be tried out here";
    return *ret_reason == NULL ? SLUICE_YES : SLUICE_NOT_NOW;
}

/* The memory is fresh in any case, and unmapped in any case; what is left is a send (.16 s/GiB) against this (.05),
 * which needs a system call more (KERNEL-FACTS 1). */
static uint64_t pays_from(const struct pair *pair)
{
    return pair->sink == SLUICE_END_PIPE ? 16u << 10 : 64u << 10;
}

static int step(struct lane *lane, uint32_t index, uint64_t at, struct op *ops, int room)
{
    const struct sluice_segment *segment = lane_segment(lane, index);
    bool into_pipe = lane->sink->kind == SLUICE_END_PIPE;
    (void)room;
    ops[0] = (struct op){
        .in = -1, .out = lane->sink->fd, .in_offset = OP_NO_OFFSET, .out_offset = OP_NO_OFFSET, .sink = lane->sink};
    if (lane->in_pipe > 0) {
        bool more =
            at + lane->in_pipe < lane->ends_at; /* not on the last: it would be held back (KERNEL-FACTS 17.30) */
        ops[0].kind = OP_DRAIN;
        ops[0].in = lane->pipe.read;
        ops[0].length = lane->in_pipe;
        ops[0].flags = SPLICE_F_MOVE | SPLICE_F_NONBLOCK | (more ? SPLICE_F_MORE : 0);
        return 1;
    }
    size_t length = lane->limit;
    if (!into_pipe) {
        if (lane->pipe.read < 0) {
            bool forced = lane->transfer->forced == SLUICE_ROUTE_VMSPLICE;
            int result = pipe_get(&lane->pipe, forced, &lane->receipt.system_calls);
            if (result < 0)
                return result;
        }
        length = length < lane->pipe.capacity ? length : lane->pipe.capacity;
        ops[0].out = lane->pipe.write;
    }
    lane->receipt.pages = smaller_pages(lane->receipt.pages, sluice_memory_pages(segment->release_context));
    lane->iov[0] = (struct iovec){.iov_base = (char *)segment->data + at, .iov_len = length};
    ops[0].kind = OP_GIVE;
    ops[0].iov = lane->iov;
    ops[0].iov_count = 1;
    ops[0].length = length;
    ops[0].flags = SPLICE_F_NONBLOCK;
    return 1;
}

static int complete(struct lane *lane, const struct op *op, ssize_t result)
{
    if (result < 0)
        return (int)result;
    if (result == 0)
        return -EIO;
    if (op->kind == OP_GIVE && op->out == lane->pipe.write) {
        lane->in_pipe += (size_t)result;
        return 0;
    }
    if (op->kind == OP_DRAIN)
        lane->in_pipe -= (size_t)result;
    lane_delivered(lane, SLUICE_ROUTE_VMSPLICE, (uint64_t)result);
    return 0;
}

/* What is still in the pipe is sent again from the memory. */
static void leave(struct lane *lane)
{
    pipe_put(&lane->pipe, lane->in_pipe);
    lane->in_pipe = 0;
}

/* Out of descriptors or pipe memory is a refusal as well: copying needs neither. EFAULT: pages that cannot be referred
 * to. */
static const int refusals[] = {EINVAL, ENOSYS, EOPNOTSUPP, EPERM, EBADF, EFAULT, EMFILE, ENFILE, ENOMEM, 0};

const struct route route_vmsplice = {
    .id = SLUICE_ROUTE_VMSPLICE,
    .name = "vmsplice",
    .assess = assess,
    .pays_from = pays_from,
    .step = step,
    .complete = complete,
    .leave = leave,
    .carries_memory = true,
    .refusals = refusals,
    .refusal_reason = "this sink does not splice, or no pipe is to be had",
};
