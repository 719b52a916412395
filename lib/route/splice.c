/* SPDX-License-Identifier: MIT
 *
 * splice: pages move by reference through a pipe. Where neither end is a pipe, one from the pool stands between; it is
 * filled and emptied by turns, so an EAGAIN of a fill is always the source's and one of a drain always the sink's.
 */
#include "../core/transfer.h"
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
    if (pair->segment == SLUICE_SEGMENT_MEMORY)
        *ret_reason = "the source is memory";
    else if (pair->transform)
        *ret_reason = "a transform needs the bytes in memory";
    else if (pair->fan_out)
        *ret_reason = "a pipe's bytes go to one sink";
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
    if (pair->segment == SLUICE_SEGMENT_FILE && pair->file_size == 0) {
        *ret_reason = "the file is empty, or a virtual one that only reading tells the end of";
        return SLUICE_NOT_NOW;
    }
    if (pair->direct_source) {
        *ret_reason = "O_DIRECT: the kernel would read into fresh pages";
        return SLUICE_NOT_NOW;
    }
    if (pair->past_cache) {
        *ret_reason = "into a file it copies through the page cache";
        return SLUICE_NOT_NOW;
    }
    return SLUICE_YES;
}

/* A pipe of our own between the ends is filled and emptied by a call each, as copying reads and writes, and its pages
 * have to be kept account of. TCP to TCP over loopback, ns of CPU per KiB by splice and by copy: 8 to 16 KiB 745 and
 * 726, 16 to 32 KiB 378 and 405, 32 to 64 KiB 183 and 265 (measured by crossover.c itself; 64 samples each). With a
 * pipe as an end one call does it. From file to file a MiB at a time makes large folios in the page cache, which
 * reading into a buffer of 256 KiB does not: on ext4, us by splice and by copy, 64 KiB 59 and 36, 256 KiB 62 and 107, 1
 * MiB 240 and 320, 8 MiB 1260 and 1870. */
static uint64_t pays_from(const struct pair *pair)
{
    bool pipe = pair->source == SLUICE_END_PIPE || pair->sink == SLUICE_END_PIPE;
    if (pair->source == SLUICE_END_FILE && pair->sink == SLUICE_END_FILE)
        return 128u << 10;
    return pair->segment == SLUICE_SEGMENT_STREAM && !pipe ? 16u << 10 : 0;
}

static int flags(const struct lane *lane, const struct sluice_segment *segment, uint64_t after)
{
    /* Not on the last chunk: the sink would hold it back for 200 ms (KERNEL-FACTS 17.30). Nor for a stream, which may
     * fall silent. */
    bool more = segment->kind == SLUICE_SEGMENT_FILE && segment->length != SLUICE_UNTIL_END && after < lane->ends_at;
    return SPLICE_F_MOVE | SPLICE_F_NONBLOCK | (more ? SPLICE_F_MORE : 0);
}

static struct op splice_op(const struct lane *lane, enum op_kind kind, int in, int out)
{
    return (struct op){
        .kind = kind, .in = in, .out = out, .in_offset = OP_NO_OFFSET, .out_offset = OP_NO_OFFSET, .sink = lane->sink};
}

static int step(struct lane *lane, uint32_t index, uint64_t at, struct op *ops, int room)
{
    (void)room;
    const struct sluice_segment *segment = lane_segment(lane, index);
    struct sluice_end *source = segment->end;
    bool file = segment->kind == SLUICE_SEGMENT_FILE;
    if (lane->in_pipe > 0) {
        ops[0] = splice_op(lane, OP_DRAIN, lane->pipe.read, lane->sink->fd);
        ops[0].out_offset = lane_out_offset(lane);
        ops[0].length = lane->in_pipe;
        ops[0].flags = flags(lane, segment, at + lane->in_pipe);
        return 1;
    }
    if (source->kind == SLUICE_END_PIPE || lane->sink->kind == SLUICE_END_PIPE) {
        ops[0] = splice_op(lane, OP_PASS, source->fd, lane->sink->fd);
        ops[0].out_offset = lane_out_offset(lane);
        ops[0].length = lane->limit;
        ops[0].flags = flags(lane, segment, at + lane->limit);
    } else {
        if (lane->pipe.read < 0) {
            bool forced = lane->transfer->forced == SLUICE_ROUTE_SPLICE;
            int result = pipe_get(&lane->pipe, forced, &lane->receipt.system_calls);
            if (result < 0)
                return result;
        }
        ops[0] = splice_op(lane, OP_FILL, source->fd, lane->pipe.write);
        ops[0].length = lane->limit < lane->pipe.capacity ? lane->limit : lane->pipe.capacity;
        ops[0].flags = flags(lane, segment, lane->ends_at);
    }
    if (file)
        ops[0].in_offset = (off_t)(segment->offset + at);
    return 1;
}

static int complete(struct lane *lane, const struct op *op, ssize_t result)
{
    if (result < 0)
        return (int)result;
    if (result == 0)
        return op->kind == OP_DRAIN ? -EIO : ROUTE_SOURCE_ENDED;
    if (op->kind == OP_FILL) {
        lane->in_pipe += (size_t)result;
        return 0;
    }
    if (op->kind == OP_DRAIN)
        lane->in_pipe -= (size_t)result;
    lane_delivered(lane, SLUICE_ROUTE_SPLICE, (uint64_t)result);
    return 0;
}

/* A stream's bytes stay in the pipe for the next route; a file's are read again. */
static void leave(struct lane *lane)
{
    bool stream = lane->segment < lane->transfer->segment_count &&
                  lane_segment(lane, lane->segment)->kind == SLUICE_SEGMENT_STREAM;
    if (lane->in_pipe > 0 && stream)
        return;
    pipe_put(&lane->pipe, lane->in_pipe);
    lane->in_pipe = 0;
}

/* Out of descriptors or pipe memory is a refusal as well: copying needs neither. */
static const int refusals[] = {EINVAL, ENOSYS, EOPNOTSUPP, EBADF, EMFILE, ENFILE, ENOMEM, 0};

static const char *explain(int error)
{
    return error == ENOMEM ? PIPES_USED_UP : NULL;
}

const struct route route_splice = {
    .id = SLUICE_ROUTE_SPLICE,
    .name = "splice",
    .assess = assess,
    .pays_from = pays_from,
    .step = step,
    .complete = complete,
    .leave = leave,
    .refusals = refusals,
    .explain = explain,
    .refusal_reason = "these ends do not splice, or no pipe is to be had",
};
