/* SPDX-License-Identifier: MIT
 *
 * tcp_receive: what arrived at a TCP socket is mapped (TCP_ZEROCOPY_RECEIVE) and written from there. Only whole pages
 * that came aligned can be mapped; the kernel says how many bytes it mapped and how many must be copied before the next
 * that it could map. On local links it never won, even with every byte mapped (KERNEL-FACTS 6), so nobody chooses it
 * but who asks for it.
 */
#include "../core/sys.h"
#include "../core/transfer.h"
#include "routes.h"
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

static enum sluice_verdict assess(const struct pair *pair, const char **ret_reason)
{
    *ret_reason = NULL;
    if (pair->segment != SLUICE_SEGMENT_STREAM || pair->source != SLUICE_END_TCP)
        *ret_reason = "the source is not a TCP connection";
    else if (pair->transform)
        *ret_reason = "a transform has its own memory";
    else if (pair->tls_source)
        *ret_reason = "kernel TLS: what could be mapped is not decrypted yet";
    else if (pair->fan_out)
        *ret_reason = "a mapping's bytes go to one sink";
    else if (pair->sink == SLUICE_END_DATAGRAM)
        *ret_reason = "datagrams would lose their boundaries";
    if (*ret_reason != NULL)
        return SLUICE_NEVER;
    *ret_reason = "dearer than copying on local links, and it maps only whole pages that arrive aligned: --route "
                  "tcp_receive tries it";
    return SLUICE_NOT_NOW;
}

/* The buffer too: what must be copied goes there, and what is mapped when the route has to give way. */
static int prepare(struct lane *lane, int fd)
{
    if (lane_take_buffer(lane, lane_left(lane, lane->segment, lane->at, SIZE_MAX)) < 0)
        return -ENOMEM;
    if (lane->window != NULL)
        return 0;
    lane->receipt.system_calls++;
    void *window = sys.mmap(NULL, BUFFER_SIZE, PROT_READ, MAP_SHARED, fd, 0);
    if (window == MAP_FAILED)
        return -errno;
    lane->window = window;
    lane->window_size = BUFFER_SIZE;
    lane->received = (struct received){.address = (uintptr_t)window};
    return 0;
}

static int step(struct lane *lane, uint32_t index, uint64_t at, struct op *ops, int room)
{
    (void)room;
    int fd = lane_segment(lane, index)->end->fd;
    int result = prepare(lane, fd);
    if (result < 0)
        return result;
    size_t most = lane->limit < BUFFER_SIZE ? lane->limit : BUFFER_SIZE;
    lane->stage.segment = index;
    lane->stage.begin = lane->stage.end = at;
    lane->stage.lead = 0;
    lane->stage.route = SLUICE_ROUTE_COPY;
    lane->stage.source_ended = false;
    ops[0] = (struct op){
        .in = fd, .out = -1, .in_offset = OP_NO_OFFSET, .out_offset = OP_NO_OFFSET, .length = most, .sink = lane->sink};
    if (!lane->ask && lane->received.to_copy == 0) {
        ops[0].kind = OP_MAP_RECEIVED;
        ops[0].buffer = &lane->received;
        return 1;
    }
    ops[0].kind = OP_READ;
    ops[0].buffer = lane->stage.data;
    ops[0].flags = MSG_DONTWAIT;
    const struct sluice_end *sink = lane->sink;
    if (sink->kind == SLUICE_END_MEMORY && sink->memory.used < sink->memory.size) { /* right into it */
        ops[0].buffer = sink->memory.data + sink->memory.used;
        if (sink->memory.size - sink->memory.used < most)
            ops[0].length = sink->memory.size - sink->memory.used;
    }
    if (!lane->ask && lane->received.to_copy < ops[0].length)
        ops[0].length = lane->received.to_copy;
    lane->ask = false; /* after an EAGAIN something will have come: perhaps pages */
    return 1;
}

static int complete(struct lane *lane, const struct op *op, ssize_t result)
{
    struct stage *stage = &lane->stage;
    if (op->kind == OP_READ) {
        if (result <= 0)
            return result < 0 ? (int)result : ROUTE_SOURCE_ENDED;
        lane->received.to_copy -= (uint32_t)result < lane->received.to_copy ? (uint32_t)result : lane->received.to_copy;
        if (op->buffer == stage->data) {
            stage->end += (uint64_t)result;
        } else {
            lane->sink->memory.used += (size_t)result;
            lane_delivered(lane, SLUICE_ROUTE_COPY, (uint64_t)result);
        }
        return 0;
    }
    if (result < 0 && result != -EIO)
        return (int)result;
    if (result > 0) {
        stage->route = SLUICE_ROUTE_TCP_RECEIVE;
        stage->end += (uint64_t)result;
    } else if (lane->received.to_copy == 0) {
        /* Nothing; or urgent data is next, or the end (EIO), which only recv tells apart. */
        lane->ask = true;
    }
    return 0;
}

static void leave(struct lane *lane)
{
    struct stage *stage = &lane->stage;
    bool done = stage->segment != lane->segment || stage->end <= lane->at || lane->at == lane->ends_at;
    if (stage->route == SLUICE_ROUTE_TCP_RECEIVE && !done) { /* still to be delivered, by whichever route comes next */
        memcpy(stage->data, lane_staged(lane, lane->at), stage->end - lane->at);
        stage->begin = lane->at;
    }
    stage->route = SLUICE_ROUTE_COPY;
    if (stage->data != NULL && done) {
        buffer_put(stage->data);
        *stage = (struct stage){.data = NULL};
    }
    if (lane->window != NULL) {
        lane->receipt.system_calls++;
        sys.munmap((void *)lane->window, lane->window_size);
    }
    lane->window = NULL;
    lane->ask = false;
}

/* ENODEV, EACCES, EPERM: of mmap. */
static const int refusals[] = {EINVAL, ENOPROTOOPT, EOPNOTSUPP, ENOSYS, ENODEV, EACCES, EPERM, ENOMEM, ENOBUFS, 0};

const struct route route_tcp_receive = {
    .id = SLUICE_ROUTE_TCP_RECEIVE,
    .name = "tcp_receive",
    .assess = assess,
    .step = step,
    .complete = complete,
    .leave = leave,
    .refusals = refusals,
    .refusal_reason = "this socket's pages cannot be mapped (Linux 4.18, and no sandbox that forbids it)",
};
