/* SPDX-License-Identifier: MIT
 *
 * One stream into several sinks. What was taken from the source and not yet by every lane lies in the window: a pipe,
 * if any of the sinks takes pages by reference (route tee), else a ring in memory.
 *
 *   positions in the stream     0 <= a lane's `at` <= what it has taken <= tail
 *   by pipe      the pipe holds [head, tail). A lane holds [at, taken) in its own ring and, after that, its own pipe.
 *   in memory    the ring holds all that a lane has not taken of [0, memory.end). The pipe holds [head, tail), with
 *                head == memory.end: nothing, unless the window was a pipe before.
 *
 * Invariants
 *   1. tee(2) copies references from the head of a pipe, so a lane takes from the pipe only when it has taken all
 *      before head. It may get less than asked for, and takes the rest when head has come there.
 *   2. head moves on only over what every live lane has taken, or is taking by this very op: the last lane at the head
 *      gets the bytes by splice instead of tee. Directly into its sink if that takes them, else into its own pipe.
 *   3. The pipe is filled only when it is empty, so an EAGAIN of that is the source's; a lane tees only into a pipe
 * that is empty or whose sink is full, so one of that means that the lane's pipe is full.
 *   4. No lane is further behind tail than `ring_size`. What that costs in memory: the pipe of the window, and for each
 *      lane a pipe and (when needed) a ring. A pipe counts pages, not bytes: of a stream that comes in small pieces it
 *      holds less.
 *   5. What was taken is delivered even if the source then fails: everyone gets there before the transfer ends. (FIRST:
 *      the first does.)
 *   6. A lane that still has memory segments to deliver before the stream takes its share like the others.
 *   7. FIRST: the first lane alone takes from the source, whatever the others hold, and is ahead of them or abreast
 *      when it does. Nothing that happens to another's sink, pipe or memory ends more than that lane.
 *
 * A lane whose sink refuses splice (O_APPEND, a terminal, memory) has route copy, takes by tee like the others, and
 * reads its own pipe. Only if the source refuses splice, or no pipe can be had, or tee fails, all change to memory
 * together. A lane that is left alone goes on as that of a transfer with one sink does, when it has what was taken.
 */
#include "fanout.h"
#include "../base/clock.h"
#include "receipt.h"
#include "sys.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Filled anew when this part of the window is free: less would be many calls for few bytes, with one slow sink. */
#define FILL_PART 4

static struct fanout *fanout_of(const struct lane *lane)
{
    return lane->transfer->fanout;
}

static struct fanout_lane *own(const struct lane *lane)
{
    return &fanout_of(lane)->lanes[lane - lane->transfer->lanes];
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* ---- Rings -------------------------------------------------------------------------------------------------- */

static int ring_need(struct ring *ring, size_t size)
{
    if (ring->data != NULL)
        return 0;
    void *data = sys.mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        return -ENOMEM;
    ring->data = data;
    ring->size = size;
    return 0;
}

static void ring_free(struct ring *ring)
{
    if (ring->data != NULL)
        sys.munmap(ring->data, ring->size);
    *ring = (struct ring){.data = NULL};
}

/* It holds nothing: begin at its first byte, which is warm in the cache. */
static void ring_restart(struct ring *ring, uint64_t position)
{
    ring->base = ring->end = position;
}

static char *ring_place(const struct ring *ring, uint64_t position, size_t *ret_neighbours)
{
    size_t index = (size_t)((position - ring->base) % ring->size);
    *ret_neighbours = ring->size - index;
    return ring->data + index;
}

static uint64_t ring_holds(const struct ring *ring, uint64_t from)
{
    return ring->end > from ? ring->end - from : 0;
}

/* ---- Where everybody is ------------------------------------------------------------------------------------- */

static uint64_t position_of(const struct lane *lane)
{
    const struct fanout *fanout = fanout_of(lane);
    if (lane->segment == fanout->segment)
        return lane->at;
    return lane->segment < fanout->segment ? 0 : fanout->tail;
}

/* Is the lane at the shared stream, or has it only memory to deliver before that, without its pipe (vmsplice)? */
static bool may_hold(const struct lane *lane)
{
    const struct fanout *fanout = fanout_of(lane);
    if (lane->segment >= fanout->segment)
        return lane->segment == fanout->segment;
    if (fanout->segment == UINT32_MAX || lane->transfer->forced == SLUICE_ROUTE_VMSPLICE)
        return false;
    for (uint32_t i = lane->segment; i < fanout->segment; i++)
        if (lane_segment(lane, i)->kind != SLUICE_SEGMENT_MEMORY || segment_is_given(lane_segment(lane, i)))
            return false;
    return true;
}

static uint64_t taken_by(const struct lane *lane)
{
    uint64_t at = position_of(lane);
    return may_hold(lane) ? at + ring_holds(&own(lane)->ring, at) + lane->in_pipe : at;
}

/* The least that a live lane has taken; but for this one (NULL: all). */
static uint64_t least_taken(const struct sluice_transfer *transfer, const struct lane *without)
{
    uint64_t taken = transfer->fanout->tail;
    for (uint32_t i = 0; i < transfer->lane_count; i++) {
        const struct lane *lane = &transfer->lanes[i];
        if (lane != without && !transfer->fanout->lanes[i].dropped)
            taken = least(taken, taken_by(lane));
    }
    return taken;
}

static uint64_t behind(const struct lane *lane)
{
    uint64_t at = position_of(lane), tail = fanout_of(lane)->tail;
    return tail > at ? tail - at : 0;
}

/* How much may be taken from the source before some lane is too far behind. */
static uint64_t find_room(const struct sluice_transfer *transfer)
{
    struct fanout *fanout = transfer->fanout;
    uint64_t most = 0;
    for (uint32_t i = 0; i < transfer->lane_count; i++) {
        uint64_t its = fanout->lanes[i].dropped ? 0 : behind(&transfer->lanes[i]);
        if (its > most)
            most = its;
        if (its <= fanout->tolerance / 2)
            fanout->lanes[i].slow_since = 0; /* it has caught up */
    }
    uint64_t left = fanout->tolerance > most ? fanout->tolerance - most : 0;
    if (fanout->policy == SLUICE_FANOUT_FIRST)
        return left > 0 ? fanout->window : 0;
    if (fanout->policy == SLUICE_FANOUT_BLOCK && most > 0 && left < fanout->window / FILL_PART)
        return 0;
    return left;
}

bool fanout_is_shared_read(const struct lane *lane)
{
    const struct fanout *fanout = fanout_of(lane);
    return !fanout->by_pipe && ring_holds(&own(lane)->ring, lane->at) == 0 && lane->in_pipe == 0;
}

/* ---- Beginning and end -------------------------------------------------------------------------------------- */

/* Never 0: a sink that is slow since then is not slow. */
static uint64_t milliseconds(void)
{
    return clock_coarse_ms() + 1;
}

int fanout_begin(struct sluice_transfer *transfer, const struct sluice_transfer_options *options)
{
    struct fanout *fanout = sys.allocate(1, sizeof *fanout + transfer->lane_count * sizeof fanout->lanes[0]);
    if (fanout == NULL)
        return -ENOMEM;
    fanout->policy = options->policy;
    fanout->window =
        options->window != 0 && options->window < SLUICE_FANOUT_WINDOW ? options->window : SLUICE_FANOUT_WINDOW;
    fanout->tolerance = fanout->window;
    if (fanout->policy == SLUICE_FANOUT_COPY)
        fanout->tolerance += options->buffer != 0 ? options->buffer : SLUICE_FANOUT_BUFFER;
    fanout->ring_size = fanout->tolerance + (fanout->policy == SLUICE_FANOUT_FIRST ? fanout->window : 0);
    fanout->live = transfer->lane_count;
    fanout->segment = UINT32_MAX;
    fanout->pipe = (struct pipe){.read = -1, .write = -1};
    fanout->patience = options->patience != 0 ? options->patience : SLUICE_FANOUT_PATIENCE;
    fanout->clock = milliseconds;
    fanout->sink_ended = options->sink_ended;
    fanout->sink_context = options->sink_context;
    fanout->errors = options->sink_errors;
    if (fanout->errors != NULL)
        memset(fanout->errors, 0, transfer->lane_count * sizeof *fanout->errors);
    transfer->fanout = fanout;
    return 0;
}

static void close_window(struct fanout *fanout)
{
    pipe_put(&fanout->pipe, (size_t)(fanout->tail - fanout->head));
    ring_free(&fanout->memory);
    buffer_put(fanout->discarded);
    fanout->discarded = NULL;
}

void fanout_settle(struct sluice_transfer *transfer)
{
    struct fanout *fanout = transfer->fanout;
    close_window(fanout);
    fanout->head = fanout->tail;
    if (fanout->received != NULL)
        buffer_put(fanout->received);
    fanout->received = NULL;
    for (uint32_t i = 0; i < transfer->lane_count; i++)
        ring_free(&fanout->lanes[i].ring);
}

bool fanout_is_shadow(const struct lane *lane)
{
    return fanout_of(lane)->policy == SLUICE_FANOUT_FIRST && lane != lane->transfer->lanes;
}

uint64_t fanout_more_turn(const struct lane *lane)
{
    return fanout_is_shadow(lane) ? fanout_of(lane)->ring_size : 0;
}

void fanout_forget(struct lane *lane, const struct sluice_error *error)
{
    struct fanout *fanout = fanout_of(lane);
    ring_free(&own(lane)->ring);
    own(lane)->dropped = true;
    own(lane)->error = *error;
    fanout->live--;
    fanout->progress++;
    fanout_blame(lane, error);
}

void fanout_blame(const struct lane *lane, const struct sluice_error *error)
{
    struct fanout *fanout = fanout_of(lane);
    if (fanout->errors != NULL)
        fanout->errors[lane - lane->transfer->lanes] = *error;
}

static bool is_news(const struct sluice_transfer *transfer, uint32_t index)
{
    return transfer->lanes[index].wait == LANE_DONE && !transfer->fanout->lanes[index].told;
}

bool fanout_has_news(const struct sluice_transfer *transfer)
{
    for (uint32_t i = 0; i < transfer->lane_count && transfer->fanout->sink_ended != NULL; i++)
        if (is_news(transfer, i))
            return true;
    return false;
}

void fanout_tell(struct sluice_transfer *transfer, bool but_lent)
{
    struct fanout *fanout = transfer->fanout;
    for (uint32_t i = 0; i < transfer->lane_count && fanout->sink_ended != NULL; i++) {
        struct lane *lane = &transfer->lanes[i];
        if (!is_news(transfer, i) || (but_lent && lane->receipt.loans > 0))
            continue;
        lane_settle(lane);
        lane->sink = NULL; /* it may be closed */
        fanout->lanes[i].told = true;
        fanout->telling = true;
        fanout->sink_ended(fanout->sink_context, i, &fanout->lanes[i].error, &lane->receipt);
        fanout->telling = false;
    }
}

/* A lane has come to a stream that is not the one in the window. Returns false if others still need that. */
static bool enter(struct lane *lane)
{
    struct sluice_transfer *transfer = lane->transfer;
    struct fanout *fanout = transfer->fanout;
    if (fanout->segment == lane->segment)
        return true;
    for (uint32_t i = 0; i < transfer->lane_count; i++)
        if (fanout->segment != UINT32_MAX && !fanout->lanes[i].dropped && transfer->lanes[i].segment <= fanout->segment)
            return false;
    close_window(fanout);
    fanout->segment = lane->segment;
    fanout->head = fanout->tail = 0;
    fanout->ended = fanout->refused = 0;
    fanout->by_pipe = false;
    ring_restart(&fanout->memory, 0);
    for (uint32_t i = 0; i < transfer->lane_count; i++) {
        ring_restart(&fanout->lanes[i].ring, 0);
        fanout->by_pipe |=
            !fanout->lanes[i].dropped && lane_would_choose(&transfer->lanes[i], lane->segment) == SLUICE_ROUTE_TEE;
    }
    return true;
}

/* ---- Sinks that are too slow -------------------------------------------------------------------------------- */

static bool may_take(const struct lane *lane);

/* A lane can have nothing more, because of this one? */
static bool in_the_way(const struct lane *lane, const struct lane *other)
{
    const struct fanout *fanout = fanout_of(lane);
    return behind(other) >= fanout->tolerance ||
           (lane->segment != fanout->segment && other->segment <= fanout->segment) ||
           (fanout->by_pipe && fanout->head < fanout->tail && taken_by(other) == fanout->head);
}

/* Returns 1 if it was dropped, 0 if it still has time, or a negative errno. */
static int press_sink(struct lane *lane, const char *reason, const char *remedy)
{
    struct fanout *fanout = fanout_of(lane);
    struct fanout_lane *its = own(lane);
    uint64_t now = fanout->clock();
    if (its->slow_since == 0)
        its->slow_since = now;
    uint64_t deadline = its->slow_since + fanout->patience;
    if (now < deadline) {
        if (fanout->deadline == 0 || deadline < fanout->deadline)
            fanout->deadline = deadline;
        return 0;
    }
    int result = lane_drop(lane, -ENOBUFS, "fanout", reason, remedy);
    return result < 0 ? result : 1;
}

static int press_for(const struct lane *lane)
{
    struct sluice_transfer *transfer = lane->transfer;
    int dropped = 0;
    for (uint32_t i = 0; i < transfer->lane_count; i++) {
        struct lane *other = &transfer->lanes[i];
        if (other == lane || other->wait != LANE_WAITS_SINK || may_take(other) || !in_the_way(lane, other))
            continue;
        int result = press_sink(other, "the sink fell too far behind the others",
                                "Give it more room (--policy copy --buffer SIZE), or let the others wait for it "
                                "(--policy block).");
        if (result < 0)
            return result;
        dropped |= result;
    }
    return dropped;
}

static bool is_over(const struct lane *lane)
{
    return lane->wait == LANE_DONE;
}

/* Whatever they wait for. */
static int clear_the_way(struct sluice_transfer *transfer)
{
    int dropped = 0;
    for (uint32_t i = 1; i < transfer->lane_count; i++) {
        struct lane *other = &transfer->lanes[i];
        if (is_over(other) || !in_the_way(transfer->lanes, other))
            continue;
        int result = lane_drop(other, -ENOBUFS, "fanout", "the sink fell too far behind the first",
                               "Let it be further behind (--window SIZE), or let the first wait for it "
                               "(--policy block).");
        if (result < 0)
            return result;
        dropped = 1;
    }
    return dropped;
}

/* The first has everything. The others may go on as long as they get somewhere. */
static int press_stragglers(struct sluice_transfer *transfer)
{
    int dropped = 0;
    for (uint32_t i = 1; i < transfer->lane_count; i++) {
        struct lane *lane = &transfer->lanes[i];
        struct fanout_lane *its = own(lane);
        if (is_over(lane))
            continue;
        if (lane->receipt.sent != its->sent_then)
            its->slow_since = 0;
        its->sent_then = lane->receipt.sent;
        int result = press_sink(lane, "the sink took nothing more after the first had everything",
                                "Give it more time (--patience TIME).");
        if (result < 0)
            return result;
        dropped |= result;
    }
    return dropped;
}

int fanout_press(struct sluice_transfer *transfer)
{
    struct fanout *fanout = transfer->fanout;
    int dropped = 0;
    if (fanout->policy == SLUICE_FANOUT_BLOCK)
        return 0;
    if (fanout->policy == SLUICE_FANOUT_FIRST) {
        if (is_over(transfer->lanes))
            return press_stragglers(transfer);
        return transfer->lanes[0].wait == LANE_WAITS_OTHERS ? clear_the_way(transfer) : 0;
    }
    for (uint32_t i = 0; i < transfer->lane_count; i++) {
        if (transfer->lanes[i].wait != LANE_WAITS_OTHERS)
            continue;
        int result = press_for(&transfer->lanes[i]);
        if (result < 0)
            return result;
        dropped |= result;
    }
    return dropped;
}

int fanout_timeout(const struct fanout *fanout)
{
    if (fanout->deadline == 0)
        return -1;
    uint64_t now = fanout->clock();
    return fanout->deadline > now ? (int)(fanout->deadline - now) : 0;
}

static int wait_for_others(struct lane *lane)
{
    lane->wait = LANE_WAITS_OTHERS;
    return 0;
}

/* ---- Changing from a pipe to memory ------------------------------------------------------------------------- */

static const char *tee_reason(int error)
{
    if (error == ENOMEM)
        return PIPES_USED_UP;
    return route_registry[SLUICE_ROUTE_TEE]->refusal_reason;
}

/* Taking by reference failed with this negative errno: all lanes go on from memory, each at its own byte. */
static int to_memory(struct lane *lane, int code, const char *operation)
{
    struct sluice_transfer *transfer = lane->transfer;
    struct fanout *fanout = transfer->fanout;
    if (transfer->forced == SLUICE_ROUTE_TEE)
        return transfer_fail(lane, -EOPNOTSUPP, operation, tee_reason(-code),
                             "Leave the choice of route to sluice (--route auto).");
    fanout->by_pipe = false;
    fanout->refused = -code;
    ring_restart(&fanout->memory, fanout->head);
    fanout->progress++;
    for (uint32_t i = 0; i < transfer->lane_count; i++) {
        struct lane *other = &transfer->lanes[i];
        if (fanout->lanes[i].dropped || other->segment != fanout->segment || other->route == NULL ||
            other->route->id != SLUICE_ROUTE_TEE)
            continue;
        lane_demote_to_copy(other, -code, tee_reason(-code));
    }
    return 0;
}

static int could_not_take(struct lane *lane, int code, const char *operation)
{
    struct fanout *fanout = fanout_of(lane);
    if (fanout->by_pipe && errno_in_list(route_registry[SLUICE_ROUTE_TEE]->refusals, -code))
        return to_memory(lane, code, operation);
    return transfer_fail(lane, code, operation, NULL, NULL);
}

/* ---- Taking ------------------------------------------------------------------------------------------------- */

static struct op pipe_op(const struct lane *lane, enum op_kind kind, int in, int out, uint64_t length)
{
    return (struct op){.kind = kind,
                       .in = in,
                       .out = out,
                       .in_offset = OP_NO_OFFSET,
                       .out_offset = OP_NO_OFFSET,
                       .length = (size_t)length,
                       .flags = SPLICE_F_MOVE | SPLICE_F_NONBLOCK,
                       .sink = lane->sink};
}

static int get_pipe(struct lane *lane, struct pipe *ret_pipe)
{
    return pipe_get(ret_pipe, lane->transfer->forced == SLUICE_ROUTE_TEE, &lane->receipt.system_calls);
}

/* Up to where the lane would have to take bytes for itself alone, as every other has them: then they leave the pipe. */
static uint64_t alone_until(const struct lane *lane)
{
    return least_taken(lane->transfer, lane);
}

/* From the pipe of the window into the lane's own. */
static int take(struct lane *lane, struct op *ops)
{
    struct fanout *fanout = fanout_of(lane);
    if (lane->pipe.read < 0) {
        int result = get_pipe(lane, &lane->pipe);
        if (result < 0)
            return could_not_take(lane, result, "pipe2");
        own(lane)->pipe_full = false;
    }
    uint64_t alone = alone_until(lane);
    bool last = alone > fanout->head;
    ops[0] = pipe_op(lane, last ? OP_TAKE : OP_TEE, fanout->pipe.read, lane->pipe.write,
                     (last ? alone : fanout->tail) - fanout->head);
    return 1;
}

/* A pipe that is full may be read into the lane's ring, unless the others are to wait. The ring has room for all that a
 * lane may be behind. */
static bool may_copy_aside(const struct lane *lane)
{
    return fanout_of(lane)->policy != SLUICE_FANOUT_BLOCK && lane->sink->kind != SLUICE_END_MEMORY;
}

static bool may_take(const struct lane *lane)
{
    const struct fanout *fanout = fanout_of(lane);
    if (!fanout->by_pipe || !may_hold(lane) || fanout->head == fanout->tail || taken_by(lane) != fanout->head)
        return false;
    return !own(lane)->pipe_full || lane->in_pipe == 0 || may_copy_aside(lane);
}

static int read_into_ring(struct lane *lane, int from, size_t most, struct op *ops)
{
    struct fanout *fanout = fanout_of(lane);
    struct ring *ring = &own(lane)->ring;
    size_t size = fanout->policy == SLUICE_FANOUT_BLOCK ? BUFFER_SIZE : fanout->ring_size, neighbours;
    uint64_t at = position_of(lane);
    int result = ring_need(ring, size);
    if (result < 0)
        return transfer_fail(lane, result, "mmap", "no memory for a sink's bytes", NULL);
    uint64_t held = ring_holds(ring, at);
    if (held == 0)
        ring_restart(ring, at);
    ops[0] = pipe_op(lane, OP_READ, from, -1, 0);
    ops[0].buffer = ring_place(ring, ring->end, &neighbours);
    ops[0].length = (size_t)least(least(neighbours, ring->size - held), least(most, BUFFER_SIZE));
    ops[0].flags = 0;
    return 1;
}

int fanout_take(struct lane *lane, struct op *ops)
{
    if (fanout_of(lane) == NULL || !may_take(lane)) {
        lane->wait = LANE_WAITS_SINK;
        return 0;
    }
    if (own(lane)->pipe_full && lane->in_pipe > 0)
        return read_into_ring(lane, lane->pipe.read, lane->in_pipe, ops);
    return take(lane, ops);
}

/* Some bytes in the pipe nobody needs any more: the sink that did was dropped. */
static int discard(struct lane *lane, uint64_t until, struct op *ops)
{
    struct fanout *fanout = fanout_of(lane);
    if (until == fanout->tail) {
        pipe_put(&fanout->pipe, (size_t)(fanout->tail - fanout->head));
        fanout->head = fanout->tail;
        return 0;
    }
    if (fanout->discarded == NULL && (fanout->discarded = buffer_get(0)) == NULL)
        return transfer_fail(lane, -ENOMEM, "mmap", NULL, NULL);
    ops[0] = pipe_op(lane, OP_READ, fanout->pipe.read, -1, least(until - fanout->head, BUFFER_SIZE));
    ops[0].buffer = fanout->discarded;
    ops[0].flags = 0;
    fanout->busy = true;
    return 1;
}

/* ---- Filling the window ------------------------------------------------------------------------------------- */

static uint64_t left_of_source(const struct lane *lane)
{
    return lane->ends_at - fanout_of(lane)->tail;
}

static int fill_pipe(struct lane *lane, uint64_t most, struct op *ops)
{
    struct fanout *fanout = fanout_of(lane);
    if (fanout->pipe.read < 0) {
        int result = get_pipe(lane, &fanout->pipe);
        if (result < 0)
            return could_not_take(lane, result, "pipe2");
    }
    ops[0] = pipe_op(lane, OP_FILL, lane_segment(lane, lane->segment)->end->fd, fanout->pipe.write,
                     least(most, fanout->pipe.capacity));
    fanout->busy = true;
    return 1;
}

/* There is no memory for it. The first of its kind can do without, if it is alone. */
static int without_window(struct lane *lane, int code)
{
    static const char reason[] = "no memory for the window";
    struct sluice_transfer *transfer = lane->transfer;
    struct fanout *fanout = transfer->fanout;
    if (fanout->policy != SLUICE_FANOUT_FIRST || fanout->live == 1 || fanout->head < fanout->tail)
        return transfer_fail(lane, code, "mmap", reason, NULL);
    for (uint32_t i = 1; i < transfer->lane_count; i++)
        if (!is_over(&transfer->lanes[i]))
            lane_drop(&transfer->lanes[i], code, "mmap", reason, NULL);
    return 0;
}

static int fill_memory(struct lane *lane, uint64_t most, struct op *ops)
{
    struct fanout *fanout = fanout_of(lane);
    const struct sluice_end *source = lane_segment(lane, lane->segment)->end;
    size_t neighbours;
    bool from_pipe = fanout->head < fanout->tail;
    int result = ring_need(&fanout->memory, fanout->ring_size);
    if (result < 0)
        return without_window(lane, result);
    uint64_t keep = least_taken(lane->transfer, NULL);
    if (keep >= fanout->memory.end)
        ring_restart(&fanout->memory, fanout->memory.end);
    uint64_t space = fanout->ring_size - ring_holds(&fanout->memory, keep);
    ops[0] = pipe_op(lane, OP_READ, from_pipe ? fanout->pipe.read : source->fd, -1, 0);
    ops[0].buffer = ring_place(&fanout->memory, fanout->memory.end, &neighbours);
    ops[0].length =
        (size_t)least(least(neighbours, BUFFER_SIZE), least(space, from_pipe ? fanout->tail - fanout->head : most));
    ops[0].flags = !from_pipe && end_is_socket(source) ? MSG_DONTWAIT : 0;
    fanout->busy = true;
    return ops[0].length > 0 ? 1 : wait_for_others(lane);
}

/* The others are gone, and the lane has delivered all that was taken. */
static int go_alone(struct lane *lane)
{
    struct fanout *fanout = fanout_of(lane);
    close_window(fanout);
    ring_free(&own(lane)->ring);
    fanout->segment = UINT32_MAX;
    fanout->by_pipe = false;
    lane_go_alone(lane, "the other sinks are gone");
    return 0;
}

/* All that was taken is with the lanes. */
static int fill(struct lane *lane, struct op *ops)
{
    struct fanout *fanout = fanout_of(lane);
    if (fanout_is_shadow(lane))
        return wait_for_others(lane);
    if (fanout->ended != 0) {
        if (find_room(lane->transfer) < fanout->tolerance) /* somebody has not got it all yet */
            return wait_for_others(lane);
        if (fanout->ended > 0)
            return FANOUT_SHORT;
        transfer_fail(lane, fanout->ended, fanout->ended_by, NULL, NULL);
        lane->transfer->error.side = SLUICE_SIDE_SOURCE;
        return fanout->ended;
    }
    if (fanout->live == 1 && lane->transfer->forced != SLUICE_ROUTE_TEE && !fanout->busy)
        return go_alone(lane);
    uint64_t most = least(find_room(lane->transfer), left_of_source(lane));
    if (fanout->busy || most == 0)
        return wait_for_others(lane);
    return fanout->by_pipe ? fill_pipe(lane, most, ops) : fill_memory(lane, most, ops);
}

/* ---- Steps -------------------------------------------------------------------------------------------------- */

static int step_by_pipe(struct lane *lane, struct op *ops)
{
    struct fanout *fanout = fanout_of(lane);
    uint64_t needed_from = least_taken(lane->transfer, NULL);
    if (fanout->head < needed_from && !fanout->busy) {
        int count = discard(lane, needed_from, ops);
        if (count != 0)
            return count;
    }
    if (lane->in_pipe > 0)
        return lane->route->step(lane, lane->segment, lane->at, ops, 1);
    if (fanout->head == fanout->tail)
        return fill(lane, ops);
    if (taken_by(lane) > fanout->head)
        return wait_for_others(lane);
    if (alone_until(lane) > fanout->head) /* the last at the head: no need for a pipe of its own */
        return lane->route->step(lane, lane->segment, lane->at, ops, 1);
    return take(lane, ops);
}

static int step_in_memory(struct lane *lane, struct op *ops)
{
    struct fanout *fanout = fanout_of(lane);
    if (lane->route->id == SLUICE_ROUTE_TEE)
        lane_demote_to_copy(lane, fanout->refused, tee_reason(fanout->refused));
    if (lane->in_pipe > 0)
        return lane->route->step(lane, lane->segment, lane->at, ops, 1);
    if (fanout->head < fanout->tail)
        return fanout->busy ? wait_for_others(lane) : fill_memory(lane, 0, ops);
    return fill(lane, ops);
}

int fanout_step(struct lane *lane, struct op *ops)
{
    if (!enter(lane))
        return wait_for_others(lane);
    return fanout_of(lane)->by_pipe ? step_by_pipe(lane, ops) : step_in_memory(lane, ops);
}

bool fanout_owns(const struct lane *lane, const struct op *op)
{
    const struct fanout *fanout = fanout_of(lane);
    if (fanout == NULL || !may_hold(lane))
        return false;
    switch (op->kind) {
    case OP_FILL:
    case OP_TEE:
    case OP_TAKE:
        return true;
    case OP_READ: {
        const char *to = op->buffer, *memory = fanout->memory.data;
        return to == fanout->discarded || (memory != NULL && to >= memory && to < memory + fanout->memory.size) ||
               (op->in == lane->pipe.read && lane->wait == LANE_TAKES);
    }
    default:
        return false;
    }
}

/* The source has told its end, or an error. */
static int source_said(struct lane *lane, int code, const char *operation)
{
    struct fanout *fanout = fanout_of(lane);
    if (code == 0)
        code = end_broke(lane_segment(lane, lane->segment)->end);
    if (code == 0 && lane_segment(lane, lane->segment)->length == SLUICE_UNTIL_END)
        return ROUTE_SOURCE_ENDED;
    fanout->ended = code < 0 ? code : 1;
    fanout->ended_by = operation;
    return 0;
}

int fanout_complete(struct lane *lane, const struct op *op, ssize_t result)
{
    struct fanout *fanout = fanout_of(lane);
    bool from_source = op->in != fanout->pipe.read && op->in != lane->pipe.read;
    size_t bytes = result > 0 ? (size_t)result : 0;
    if (op->kind == OP_FILL || op->kind == OP_READ)
        fanout->busy = false;
    fanout->progress++;
    if (result == -EAGAIN && lane->in_pipe > 0 && (op->kind == OP_TEE || op->kind == OP_TAKE)) {
        own(lane)->pipe_full = true;
        return 0;
    }
    if (result <= 0) {
        if (op->kind == OP_FILL && result < 0 &&
            errno_in_list(route_registry[SLUICE_ROUTE_TEE]->refusals, (int)-result))
            return could_not_take(lane, (int)result, op_name(op));
        if (from_source)
            return source_said(lane, (int)result, op_name(op));
        return could_not_take(lane, result < 0 ? (int)result : -EIO, op_name(op));
    }
    switch (op->kind) {
    case OP_FILL:
        fanout->tail += bytes;
        break;
    case OP_TAKE:
        fanout->head += bytes;
        lane->in_pipe += bytes;
        break;
    case OP_TEE:
        lane->in_pipe += bytes;
        break;
    default: /* read: out of the lane's pipe, the window's, or the source */
        if (op->in == lane->pipe.read) {
            fanout_was_read(lane, op, bytes);
            break;
        }
        if (op->buffer != fanout->discarded)
            fanout->memory.end += bytes;
        receipt_enter_shared_read(&lane->receipt, bytes);
        if (from_source)
            fanout->tail += bytes;
        fanout->head += bytes;
        if (!fanout->by_pipe && fanout->head == fanout->tail)
            pipe_put(&fanout->pipe, 0);
    }
    return 0;
}

void fanout_would_block(struct lane *lane, const struct op *op)
{
    if (fanout_owns(lane, op))
        fanout_of(lane)->busy = false;
}

/* The source had nothing for this lane, and then something for another, which read it for all. It may have been the
 * last: the source will not become readable again. */
static bool others_have_read(const struct lane *lane)
{
    const struct fanout *fanout = fanout_of(lane);
    return fanout != NULL && lane->segment == fanout->segment && (taken_by(lane) < fanout->tail || fanout->ended != 0);
}

void fanout_wake(struct sluice_transfer *transfer)
{
    for (uint32_t i = 0; i < transfer->lane_count; i++) {
        struct lane *lane = &transfer->lanes[i];
        if (lane->wait == LANE_WAITS_OTHERS || (lane->wait == LANE_WAITS_SOURCE && others_have_read(lane)))
            lane->wait = LANE_RUNS;
        else if (lane->wait == LANE_WAITS_SINK && transfer->fanout != NULL && may_take(lane))
            lane->wait = LANE_TAKES;
    }
}

/* ---- Delivering --------------------------------------------------------------------------------------------- */

ssize_t fanout_expose(struct lane *lane, uint64_t at, struct iovec *ret_piece)
{
    const struct fanout *fanout = fanout_of(lane);
    const struct ring *ring = &own(lane)->ring;
    size_t neighbours;
    if (fanout->segment != lane->segment)
        return 0;
    uint64_t held = ring_holds(ring, at);
    if (held == 0) {
        if (fanout->by_pipe || lane->in_pipe > 0)
            return 0;
        ring = &fanout->memory;
        held = ring_holds(ring, at);
        if (held == 0)
            return 0;
    }
    ret_piece->iov_base = ring_place(ring, at, &neighbours);
    ret_piece->iov_len = (size_t)least(neighbours, held);
    return (ssize_t)ret_piece->iov_len;
}

int fanout_outlet(const struct lane *lane, size_t *ret_length)
{
    const struct fanout *fanout = fanout_of(lane);
    if (lane->in_pipe > 0) {
        *ret_length = lane->in_pipe;
        return lane->pipe.read;
    }
    *ret_length = (size_t)(alone_until(lane) - fanout->head);
    return fanout->pipe.read;
}

void fanout_left(struct lane *lane, const struct op *op, size_t bytes)
{
    struct fanout *fanout = fanout_of(lane);
    fanout->progress++;
    if (op->in == fanout->pipe.read) {
        fanout->head += bytes;
        return;
    }
    lane->in_pipe -= bytes;
    own(lane)->pipe_full = false;
}

int fanout_read_outlet(struct lane *lane, struct op *ops)
{
    size_t length;
    int from = fanout_outlet(lane, &length);
    struct sluice_end *sink = lane->sink;
    if (sink->kind != SLUICE_END_MEMORY || sink->memory.used == sink->memory.size)
        return read_into_ring(lane, from, length, ops);
    ops[0] = pipe_op(lane, OP_READ, from, -1, least(length, sink->memory.size - sink->memory.used));
    ops[0].buffer = sink->memory.data + sink->memory.used;
    ops[0].flags = 0;
    return 1;
}

bool fanout_was_read(struct lane *lane, const struct op *op, size_t bytes)
{
    struct ring *ring = &own(lane)->ring;
    const char *to = op->buffer;
    fanout_left(lane, op, bytes);
    if (ring->data != NULL && to >= ring->data && to < ring->data + ring->size) {
        ring->end += bytes;
        return false;
    }
    lane->sink->memory.used += bytes;
    return true;
}
