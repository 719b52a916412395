/* SPDX-License-Identifier: MIT
 *
 * copy: read into memory, write from there. It serves every pair of ends, so it is the last resort, the control of
 * every benchmark, and the oracle: every other route must deliver these bytes. Memory segments, which need no reading,
 * are its too: one send or write.
 */
#include "../core/fanout.h"
#include "routes.h"
#include <errno.h>
#include <sys/socket.h>

static enum sluice_verdict assess(const struct pair *pair, const char **ret_reason)
{
    *ret_reason = NULL;
    if (pair->sink == SLUICE_END_DATAGRAM && pair->segment != SLUICE_SEGMENT_MEMORY) {
        *ret_reason = "a datagram socket takes memory segments only: their lengths are the datagrams'";
        return SLUICE_NEVER;
    }
    return SLUICE_YES;
}

/* Bytes that splice had taken from the stream when it gave way: they come before what the source delivers. */
static struct op read_pipe(struct lane *lane)
{
    return (struct op){.in = lane->pipe.read, .in_offset = OP_NO_OFFSET, .length = lane->in_pipe};
}

static struct op read_source(struct lane *lane, const struct sluice_segment *segment, uint64_t position)
{
    bool file = segment->kind == SLUICE_SEGMENT_FILE;
    return (struct op){
        .in = end_plain_fd(segment->end, &lane->receipt.system_calls),
        .in_offset = file ? (off_t)(segment->offset + position) : OP_NO_OFFSET,
        .length = lane->limit,
        .flags = end_is_socket(segment->end) ? MSG_DONTWAIT : 0,
    };
}

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* A sink in memory is read into directly. Not when it is full: the source's end must still be found. */
static bool reads_into_sink(const struct lane *lane)
{
    return lane->sink->kind == SLUICE_END_MEMORY && lane->sink->memory.used < lane->sink->memory.size &&
           lane->transfer->transform == NULL;
}

static int step(struct lane *lane, uint32_t index, uint64_t at, struct op *ops, int room)
{
    (void)room;
    const struct sluice_segment *segment = lane_segment(lane, index);
    struct stage *stage = &lane->stage;
    if (lane_shares(lane, segment))
        return fanout_read_outlet(lane, ops);
    if (lane->in_pipe > 0 && segment->kind == SLUICE_SEGMENT_FILE)
        pipe_put(&lane->pipe, lane->in_pipe), lane->in_pipe = 0;
    ops[0] = lane->in_pipe > 0 ? read_pipe(lane) : read_source(lane, segment, at);
    ops[0].kind = OP_READ;
    ops[0].out = -1;
    ops[0].out_offset = OP_NO_OFFSET;
    ops[0].sink = lane->sink;
    if (reads_into_sink(lane)) {
        ops[0].buffer = lane->sink->memory.data + lane->sink->memory.used;
        ops[0].length = min_size(ops[0].length, lane->sink->memory.size - lane->sink->memory.used);
        return 1;
    }
    if (lane_take_buffer(lane, lane_left(lane, index, at, SIZE_MAX)) < 0)
        return -ENOMEM;
    stage->segment = index;
    stage->begin = stage->end = at;
    stage->lead = 0;
    stage->route = SLUICE_ROUTE_COPY;
    stage->source_ended = false;
    ops[0].buffer = stage->data;
    ops[0].length = min_size(ops[0].length, BUFFER_SIZE);
    return 1;
}

static int complete(struct lane *lane, const struct op *op, ssize_t result)
{
    if (result < 0)
        return (int)result;
    if (result == 0)
        return ROUTE_SOURCE_ENDED;
    if (lane_shares(lane, lane_segment(lane, lane->segment))) {
        if (fanout_was_read(lane, op, (size_t)result))
            lane_delivered(lane, SLUICE_ROUTE_COPY, (uint64_t)result);
        return 0;
    }
    if (op->in == lane->pipe.read && lane->in_pipe > 0) {
        lane->in_pipe -= (size_t)result;
        if (lane->in_pipe == 0)
            pipe_put(&lane->pipe, 0);
    }
    if (op->buffer == lane->stage.data) {
        lane->stage.end += (uint64_t)result;
    } else {
        lane->sink->memory.used += (size_t)result;
        lane_delivered(lane, SLUICE_ROUTE_COPY, (uint64_t)result);
    }
    return 0;
}

static void leave(struct lane *lane)
{
    /* What is staged for this lane alone goes back to the pool once it is empty; what is not is still to be sent. */
    struct stage *stage = &lane->stage;
    bool done = stage->segment != lane->segment || stage->end <= lane->at || lane->at == lane->ends_at;
    if (stage->data != NULL && done) {
        buffer_put(stage->data);
        *stage = (struct stage){.data = NULL};
    }
}

/* A sandbox may forbid read and allow the rest. */
static const int refusals[] = {ENOSYS, 0};

const struct route route_copy = {
    .id = SLUICE_ROUTE_COPY,
    .name = "copy",
    .assess = assess,
    .step = step,
    .complete = complete,
    .leave = leave,
    .refusals = refusals,
    .refusal_reason = "reading into memory is not permitted",
};
