/* SPDX-License-Identifier: MIT
 *
 * uring_send_zc: memory is lent to a TCP or UDP socket by IORING_OP_SEND_ZC or SENDMSG_ZC, on a loop that is a ring.
 * The ring reports twice: what was sent, and later, with its usage report, that the memory is free again and whether it
 * was copied after all. Its writes are the ordinary ones with MSG_ZEROCOPY set; what lending means is in core/loans.c.
 */
#include "../core/transfer.h"
#include "routes.h"
#include <errno.h>

static enum sluice_verdict assess(const struct pair *pair, const char **ret_reason)
{
    *ret_reason = NULL;
    if (pair->segment != SLUICE_SEGMENT_MEMORY)
        *ret_reason = "the source must be memory";
    else if (pair->transform)
        *ret_reason = "what a transform makes lies in a buffer that is used again at once";
    else if (pair->sink != SLUICE_END_TCP && pair->sink != SLUICE_END_DATAGRAM)
        *ret_reason = "only TCP and UDP sockets take memory on loan";
    else if (!pair->released)
        *ret_reason = "the segment has no release callback: nobody would learn when its memory is free again";
    else if (!pair->ring)
        *ret_reason = "only a loop on io_uring carries it (--loop io_uring)";
    else if (pair->lending == SLUICE_NEVER)
        *ret_reason = pair->lending_reason;
    if (*ret_reason != NULL)
        return SLUICE_NEVER;
    *ret_reason = pair->lending_reason;
    return pair->lending;
}

/* As msg_zerocopy, whose crossover it shares: its own time cannot be measured, as it is not this thread's alone. Not
 * before msg_zerocopy: into a device that drops, on the same ring, datagrams of 16 KiB cost 1.2 of that and 64 KiB as
 * much, since each waits for a turn of the loop. */
static uint64_t pays_from(const struct pair *pair)
{
    return pair->sink == SLUICE_END_TCP ? 32u << 10 : 8u << 10;
}

static ssize_t expose(struct lane *lane, uint32_t index, uint64_t at, struct iovec *ret_piece)
{
    const struct sluice_segment *segment = lane_segment(lane, index);
    uint64_t left = segment->length - at;
    *ret_piece =
        (struct iovec){.iov_base = (char *)segment->data + at, .iov_len = left < LEND_STEP ? (size_t)left : LEND_STEP};
    return (ssize_t)ret_piece->iov_len;
}

/* Never asked: there is always something to expose. */
static int step(struct lane *lane, uint32_t index, uint64_t at, struct op *ops, int room)
{
    (void)lane, (void)index, (void)at, (void)ops, (void)room;
    return 0;
}

static int complete(struct lane *lane, const struct op *op, ssize_t result)
{
    (void)lane, (void)op;
    return result == -ENOBUFS ? ROUTE_NOT_NOW : (int)result;
}

static const int refusals[] = {EOPNOTSUPP, EFAULT, EMSGSIZE, EINVAL, ENOSYS, 0};

const struct route route_uring_send_zc = {
    .id = SLUICE_ROUTE_URING_SEND_ZC,
    .name = "uring_send_zc",
    .assess = assess,
    .pays_from = pays_from,
    .crossover_of = SLUICE_ROUTE_MSG_ZEROCOPY,
    .expose = expose,
    .step = step,
    .complete = complete,
    .lends = LOANS_OF_RING,
    .carries_memory = true,
    .refusals = refusals,
    .refusal_reason = "this memory or this socket cannot be lent, or the kernel's io_uring does not report on usage",
};
