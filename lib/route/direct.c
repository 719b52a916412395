/* SPDX-License-Identifier: MIT
 *
 * direct: files are read and written past the page cache (O_DIRECT), into and out of aligned memory. For what will not
 * be read again soon: logs, and large cold files. The kernel takes whole blocks only. Reading finds its own: it begins
 * at the block before the first byte. Writing stops before the last block if that is not whole, and leaves it to copy,
 * by the file's other descriptor; the kernel keeps the two views of a file coherent (generic_file_direct_write: what is
 * dirty is written out before, what is cached is dropped after).
 *
 * A lane has one op under way: between two of them the device is idle. Who wants it busy gives parts of a file to
 * several transfers.
 */
#include "../core/transfer.h"
#include "routes.h"
#include <errno.h>
#include <stdint.h>

static enum sluice_verdict assess(const struct pair *pair, const char **ret_reason)
{
    bool from_file = pair->segment == SLUICE_SEGMENT_FILE;
    bool into_file = pair->sink == SLUICE_END_FILE || pair->sink == SLUICE_END_BLOCK;
    *ret_reason = NULL;
    if (pair->segment == SLUICE_SEGMENT_STREAM)
        *ret_reason = "what a stream delivers is not made of whole blocks";
    else if (!from_file && !into_file)
        *ret_reason = "neither end is a file";
    else if (pair->transform)
        *ret_reason = "what a transform makes is not made of whole blocks";
    else if (pair->sink == SLUICE_END_DATAGRAM)
        *ret_reason = "a datagram socket takes memory segments only";
    if (*ret_reason != NULL)
        return SLUICE_NEVER;
    if (!pair->past_cache) {
        *ret_reason = "the page cache is cheaper, unless an end is to be used without it (SLUICE_END_DIRECT, O_DIRECT)";
        return SLUICE_NOT_NOW;
    }
    if (from_file && pair->file_size == 0) {
        *ret_reason = "the file is empty, or a virtual one that only reading tells the end of";
        return SLUICE_NOT_NOW;
    }
    return SLUICE_YES;
}

static const char *const part_of_block = "the rest of this piece is not made of whole blocks (O_DIRECT)";

/* Can the next byte be written to the file? Where the kernel appends, it knows. */
static bool begins_block(const struct lane *lane)
{
    off_t offset = lane_out_offset(lane);
    return offset == OP_NO_OFFSET || (uint64_t)offset % lane->sink->file.direct_place == 0;
}

/* A write of what lies at data, as far as it is whole blocks. */
static int write_blocks(struct lane *lane, int fd, char *data, size_t length, struct op *ops)
{
    struct sluice_end *sink = lane->sink;
    length -= length % sink->file.direct_place;
    if (length == 0 || (uintptr_t)data % sink->file.direct_memory != 0)
        return lane_leave_rest(lane, part_of_block);
    lane->iov[0] = (struct iovec){.iov_base = data, .iov_len = length};
    lane->iov_route[0] = SLUICE_ROUTE_DIRECT;
    ops[0] = (struct op){
        .kind = OP_WRITE,
        .in = -1,
        .out = fd,
        .in_offset = OP_NO_OFFSET,
        .out_offset = lane_out_offset(lane),
        .length = length,
        .iov = lane->iov,
        .iov_count = 1,
        .sink = sink,
    };
    return 1;
}

static int read_blocks(struct lane *lane, const struct sluice_segment *segment, uint64_t at, struct op *ops)
{
    struct stage *stage = &lane->stage;
    int fd = end_direct_fd(segment->end, &lane->receipt.system_calls);
    if (fd < 0)
        return fd;
    size_t block = segment->end->file.direct_place;
    uint64_t position = segment->offset + at;
    size_t lead = (size_t)(position % block);
    size_t length = lead + lane->limit < BUFFER_SIZE ? lead + lane->limit : BUFFER_SIZE;
    if (end_is_file(lane->sink)) { /* no more than can be written again */
        if (block < lane->sink->file.direct_place)
            block = lane->sink->file.direct_place;
        length -= length % block;
        if (lead != 0 || length == 0)
            return lane_leave_rest(lane, part_of_block);
    }
    if (lane_take_buffer(lane, lane_left(lane, lane->segment, at, SIZE_MAX)) < 0)
        return -ENOMEM;
    stage->segment = lane->segment;
    stage->begin = stage->end = at;
    stage->lead = lead;
    stage->route = SLUICE_ROUTE_DIRECT;
    stage->source_ended = false;
    ops[0] = (struct op){
        .kind = OP_READ,
        .in = fd,
        .out = -1,
        .in_offset = (off_t)(position - lead),
        .out_offset = OP_NO_OFFSET,
        .length = (length + block - 1) / block * block, /* the file's last block may be part of one */
        .buffer = stage->data,
        .sink = lane->sink,
    };
    return 1;
}

/* Straight into the sink's memory, as far as whole blocks have room there. */
static int read_into_sink(struct lane *lane, const struct sluice_segment *segment, uint64_t at, struct op *ops)
{
    struct sluice_end *sink = lane->sink;
    int fd = end_direct_fd(segment->end, &lane->receipt.system_calls);
    if (fd < 0)
        return fd;
    const struct file_facts *file = &segment->end->file;
    char *to = sink->memory.data + sink->memory.used;
    size_t room = sink->memory.size - sink->memory.used, length = lane->limit < room ? lane->limit : room;
    length -= length % file->direct_place;
    if (length == 0 || (uintptr_t)to % file->direct_memory != 0 || (segment->offset + at) % file->direct_place != 0)
        return lane_leave_rest(lane, part_of_block);
    ops[0] = (struct op){
        .kind = OP_READ,
        .in = fd,
        .out = -1,
        .in_offset = (off_t)(segment->offset + at),
        .out_offset = OP_NO_OFFSET,
        .length = length,
        .buffer = to,
        .sink = sink,
    };
    return 1;
}

static int step(struct lane *lane, uint32_t index, uint64_t at, struct op *ops, int room)
{
    (void)room;
    const struct sluice_segment *segment = lane_segment(lane, index);
    const struct stage *stage = &lane->stage;
    if (end_is_file(lane->sink)) {
        int fd = end_direct_fd(lane->sink, &lane->receipt.system_calls);
        if (fd < 0)
            return fd;
        if (lane_out_offset(lane) == OP_NO_OFFSET && !lane->sink->append && fd != lane->sink->fd)
            return -ESPIPE;
        if (!begins_block(lane))
            return lane_leave_rest(lane, part_of_block);
        if (segment->kind == SLUICE_SEGMENT_MEMORY)
            return write_blocks(lane, fd, (char *)segment->data + at, lane->limit, ops);
        if (stage->segment == index && at >= stage->begin && at < stage->end)
            return write_blocks(lane, fd, lane_staged(lane, at), (size_t)(stage->end - at), ops);
    }
    if (lane->sink->kind == SLUICE_END_MEMORY)
        return read_into_sink(lane, segment, at, ops);
    return read_blocks(lane, segment, at, ops);
}

static int complete(struct lane *lane, const struct op *op, ssize_t result)
{
    (void)op;
    struct stage *stage = &lane->stage;
    if (result < 0)
        return (int)result;
    if (lane->sink->kind == SLUICE_END_MEMORY) {
        if (result == 0)
            return ROUTE_SOURCE_ENDED;
        lane->sink->memory.used += (size_t)result;
        lane_delivered(lane, SLUICE_ROUTE_DIRECT, (uint64_t)result);
        return 0;
    }
    if (result == 0)
        return ROUTE_SOURCE_ENDED;
    if ((size_t)result <= stage->lead) /* not even to the first byte: asking again might bring the same */
        return lane_leave_rest(lane, "a read of whole blocks ended in the first one");
    uint64_t got = (uint64_t)result - stage->lead, left = lane->ends_at - stage->begin;
    stage->end = stage->begin + (got < left ? got : left);
    return 0;
}

/* What was read and not written is read again, by whichever route comes next: then its receipt is true of all of it. */
static void leave(struct lane *lane)
{
    struct stage *stage = &lane->stage;
    if (stage->data != NULL && stage->route == SLUICE_ROUTE_DIRECT) {
        buffer_put(stage->data);
        *stage = (struct stage){.data = NULL};
    }
}

static const char *explain(int error)
{
    switch (error) {
    case EINVAL:
        return "this file has no O_DIRECT, or asks for other alignment than it tells";
    case EOPNOTSUPP:
        return "this file has no O_DIRECT";
    case ESPIPE:
        return "the sink's file position could not be asked for";
    }
    return NULL;
}

static const int refusals[] = {EINVAL, EOPNOTSUPP, ENOSYS, EACCES, EPERM,  ENOENT, EROFS,
                               ENXIO,  ELOOP,      EMFILE, ENFILE, ENOMEM, ESPIPE, 0};

const struct route route_direct = {
    .id = SLUICE_ROUTE_DIRECT,
    .name = "direct",
    .assess = assess,
    .step = step,
    .complete = complete,
    .leave = leave,
    .largest_step = 1u << 30,
    .writes_files = true,
    .needs_no_pages = true,
    .refusals = refusals,
    .refusal_reason = "the file cannot be opened once more with O_DIRECT",
    .explain = explain,
};
