/* SPDX-License-Identifier: MIT
 *
 * msg_zerocopy: memory is lent to a TCP or UDP socket, which sends from it and gives it back with a notification in the
 * socket's error queue (Documentation/networking/msg_zerocopy.rst). Its writes are the ordinary ones with MSG_ZEROCOPY
 * set; what lending means is in core/loans.c.
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
    else if (pair->lending == SLUICE_NEVER)
        *ret_reason = pair->lending_reason;
    if (*ret_reason != NULL)
        return SLUICE_NEVER;
    *ret_reason = pair->lending_reason;
    return pair->lending;
}

/* KERNEL-FACTS 2 and 15. Where nothing was copied, UDP by bare calls began to gain between 1 and 2 KiB, with warm pages
 * and notifications read in batches; with the account that is kept of loans, 4 KiB cost 1.22 of copying, 8 KiB .92 and
 * 64 KiB .5. */
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

/* EFAULT: memory that the kernel can copy from but not pin (device memory, some mappings). EMSGSIZE: a datagram that
 * touches more pages than a packet can refer to. If it is really the memory's fault, copy meets it again. */
static const int refusals[] = {EOPNOTSUPP, EFAULT, EMSGSIZE, EINVAL, 0};

const struct route route_msg_zerocopy = {
    .id = SLUICE_ROUTE_MSG_ZEROCOPY,
    .name = "msg_zerocopy",
    .assess = assess,
    .pays_from = pays_from,
    .expose = expose,
    .step = step,
    .complete = complete,
    .lends = LOANS_OF_SOCKET,
    .carries_memory = true,
    .refusals = refusals,
    .refusal_reason = "this memory or this socket cannot be lent",
};
