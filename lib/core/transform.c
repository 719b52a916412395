/* SPDX-License-Identifier: MIT */
#include "transform.h"
#include "receipt.h"
#include "sys.h"
#include <errno.h>
#include <stdlib.h>

/* Of one buffer; what is made of one piece has to fit, or the rest of the piece would have to be kept beside it while a
 * slow sink takes its time. TLS makes 22 to 29 bytes more of every 16 KiB. */
#define INPUT_MOST (BUFFER_SIZE - BUFFER_SIZE / 16)

/* With less room than this behind what was made, that is written first. */
#define ROOM_LEAST (BUFFER_SIZE / 16)

struct transform_state {
    char *output;              /* BUFFER_SIZE; NULL while there is none */
    size_t begin, end;         /* what was made and is not written */
    struct sluice_end *source; /* of the last input: for the receipt; NULL for memory */
    bool finished;
};

int transform_begin(struct sluice_transfer *transfer)
{
    transfer->transform_state = sys.allocate(1, sizeof *transfer->transform_state);
    return transfer->transform_state != NULL ? 0 : -ENOMEM;
}

/* To whoever needs one next, while it is still in the cache. */
static void drop_output(struct transform_state *state)
{
    if (state->output != NULL)
        buffer_put(state->output);
    state->output = NULL;
    state->begin = state->end = 0;
}

void transform_free(struct sluice_transfer *transfer)
{
    struct transform_state *state = transfer->transform_state;
    if (state == NULL)
        return;
    drop_output(state);
    free(state);
    transfer->transform_state = NULL;
}

static int apply(struct lane *lane, const struct iovec *input, bool last)
{
    const struct sluice_transform *transform = lane->transfer->transform;
    struct transform_state *state = lane->transfer->transform_state;
    size_t used = 0, made = 0;
    size_t room = BUFFER_SIZE - state->end;
    if (state->output == NULL && (state->output = buffer_get(input->iov_len)) == NULL)
        return transfer_fail(lane, -ENOMEM, transform->name, "no memory for what the transform makes", NULL);
    int result = transform->apply(transform->context, input->iov_base, input->iov_len, &used,
                                  state->output + state->end, room, &made, last);
    if (result < 0)
        return transfer_fail(lane, result, transform->name, "the transform failed", NULL);
    if (used > input->iov_len || made > room || (result == 0 && used == 0 && made == 0))
        return transfer_fail(lane, -EPROTO, transform->name, "the transform made no progress or overran its buffers",
                             NULL);
    state->end += made;
    if (used > 0)
        lane_consumed(lane, used);
    if (last && result == 1)
        state->finished = true;
    return 0;
}

static int write_output(struct lane *lane, struct op *op)
{
    struct transform_state *state = lane->transfer->transform_state;
    lane->iov[0] = (struct iovec){.iov_base = state->output + state->begin, .iov_len = state->end - state->begin};
    *op = (struct op){
        .kind = OP_WRITE,
        .in = -1,
        .out = lane_sink_fd(lane),
        .in_offset = OP_NO_OFFSET,
        .out_offset = lane_out_offset(lane),
        .length = lane->iov[0].iov_len,
        .iov = lane->iov,
        .iov_count = 1,
        .sink = lane->sink,
    };
    return 1;
}

/* Input is turned into output until the output is full, or more input would have to be read, waited for, or might turn
 * out to be missing: what was made by then has to leave first. */
int transform_next(struct lane *lane, struct op *ops)
{
    struct sluice_transfer *transfer = lane->transfer;
    struct transform_state *state = transfer->transform_state;
    while (!state->finished && BUFFER_SIZE - state->end >= ROOM_LEAST) {
        struct iovec input = {.iov_base = NULL};
        bool made = state->end > state->begin;
        if (lane->segment < transfer->segment_count) {
            int count = 0;
            ssize_t length = lane_pull(lane, made ? 0 : INPUT_MOST, &input, ops, &count);
            if (length < 0)
                return (int)length;
            if (lane->wait != LANE_RUNS)
                drop_output(state); /* there is nothing in it */
            if (count > 0 || lane->wait != LANE_RUNS)
                return count;
            if (length == 0 && made && lane->segment < transfer->segment_count)
                break;
            if (length == 0)
                continue; /* that segment has ended */
            state->source = transfer->segments[lane->segment].end;
        }
        int result = apply(lane, &input, lane->segment == transfer->segment_count);
        if (result < 0)
            return result;
    }
    return state->end > state->begin ? write_output(lane, ops) : lane_finish(lane, ops);
}

int transform_written(struct lane *lane, ssize_t bytes)
{
    struct transform_state *state = lane->transfer->transform_state;
    uint64_t moved = (uint64_t)bytes, transformed = lane->receipt.transformed + moved;
    receipt_enter(&lane->receipt, SLUICE_ROUTE_COPY, state->source, lane->sink, false, moved);
    receipt_count(&lane->receipt, SLUICE_ROUTE_COPY)->calls++;
    lane->receipt.transformed = transformed; /* once, also where kernel TLS makes others of them again */
    lane->moved_in_turn += moved;
    if (lane->sink_offset != SLUICE_APPEND)
        lane->sink_offset += moved;
    state->begin += (size_t)bytes;
    if (state->begin < state->end)
        return 0;
    drop_output(state);
    return 1;
}
