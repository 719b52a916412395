/* SPDX-License-Identifier: MIT
 *
 * A transfer carries an ordered list of segments into each of its sinks. Every sink has a lane of its own: a position
 * in the source, a route for the current segment, and a receipt.
 *
 * Invariants
 *   1. lane->segment, lane->at name the next byte the sink is to get; they move only in lane_delivered(), by what the
 *      kernel said it took. Whatever else happens (short counts, refusals, EAGAIN), the lane goes on from there.
 *   2. Bytes taken from a stream and not yet delivered are in lane->stage, and after those in lane->pipe; nowhere else.
 *      They are delivered before anything more is read, whichever route comes next. (One stream into several sinks:
 *      see fanout.c.)
 *   3. A file is read by position, so what was staged from it can be dropped and read again.
 *   4. A segment's memory is released when every lane has passed it and no loan covers it (loans.c).
 *   5. A lane waits (lane->wait) only after the end itself said EAGAIN, so edge-triggered waiting loses nothing.
 *
 *   state               set by                                  left by
 *   LANE_RUNS           lane_begin, wake                        a wait, or the end
 *   LANE_TAKES          would_block, fanout_wake                fanout_take: nothing to take, or no room
 *   LANE_WAITS_SOURCE   would_block                             wake, at the next step; fanout_wake: others have read
 *   LANE_WAITS_SINK     would_block, fanout_take                wake
 *   LANE_WAITS_PAGES    admit_file                              wake
 *   LANE_WAITS_OTHERS   fanout_step                             wake: another lane moved
 *   LANE_WAITS_OPS      run_lane (a ring has its ops)           the carrier
 *   LANE_DONE           lane_finish, lane_drop                  never
 */
#include "transfer.h"
#include "extents.h"
#include "fanout.h"
#include "file_system.h"
#include "plan.h"
#include "receipt.h"
#include "sys.h"
#include "transform.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* From here on partial segments are held back (TCP_CORK): full segments make a 1 MiB body 15 to 20 % cheaper, and cost
 * two more system calls, which a 100 KiB one does not earn back (KERNEL-FACTS 16). Not where bbr paces without an fq
 * queue: corked, its timer fires for every packet, and 100 MiB cost .37 to .49 s/GiB instead of .11 (bench/README.md).
 */
#define CORK_FROM (256u << 10)

/* Asked for by one op of a file. 1 MiB is as cheap per byte as more (KERNEL-FACTS 1), and other connections get their
 * turn. Less only in a shorter turn, and never so little that calls become dear. */
#define FILE_STEP (1u << 20)
#define FILE_STEP_MIN (64u << 10)

/* What one write gathers at most: beyond it the socket's buffer is full anyway. */
#define GATHER_MAX (1u << 20)

#define DEFAULT_TURN (1u << 20)

/* A turn into a socket that paces: just under four of the largest packets (64 KiB less headers). What is written beyond
 * what may leave at once waits for the pacing timer, which fires for every packet of it; what leaves at once does not,
 * and lets bbr see how fast the path really is. bench/README.md has the figures: 1 MiB turns cost three times this, and
 * 256 KiB, whose rest is a fifth, small packet, a third more. */
#define PACED_TURN (254u << 10)

static uint64_t turn_of(const struct lane *lane)
{
    uint64_t turn = lane->transfer->turn_size + lane->more_turn;
    return lane->paced && turn > PACED_TURN ? PACED_TURN : turn;
}

static size_t step_size(const struct lane *lane, const struct route *route)
{
    size_t most = route->largest_step != 0 ? route->largest_step : FILE_STEP;
    uint64_t turn = turn_of(lane);
    if (lane->transfer->blocking || turn >= most || route->moves_extents)
        return most;
    if (turn <= FILE_STEP_MIN)
        return FILE_STEP_MIN;
    if (route->largest_step == 0)
        return (size_t)turn;
    return (size_t)turn / FILE_STEP_MIN * FILE_STEP_MIN; /* extents are shared by whole blocks */
}

bool errno_in_list(const int *errnos, int error)
{
    for (; errnos != NULL && *errnos != 0; errnos++)
        if (*errnos == error)
            return true;
    return false;
}

int transfer_fail(struct lane *lane, int code, const char *operation, const char *reason, const char *remedy)
{
    struct sluice_transfer *transfer = lane->transfer;
    transfer->failed = true;
    transfer->error = (struct sluice_error){
        .code = code,
        .route = lane->route != NULL ? lane->route->id : SLUICE_ROUTE_AUTO,
        .operation = operation,
        .reason = reason,
        .remedy = remedy,
        .delivered = lane->receipt.sent,
    };
    return code;
}

/* ---- Segments ----------------------------------------------------------------------------------------------- */

static void release(struct sluice_segment *segment)
{
    sluice_release_fn *callback = segment->release;
    segment->release = NULL;
    if (callback != NULL)
        callback(segment->release_context, segment->data, segment->length);
}

/* Nothing of the transfer needs a memory segment any more. */
static inline void release_segment(struct sluice_transfer *transfer, uint32_t index)
{
    if (transfer->account == NULL)
        release(&transfer->segments[index]);
    else
        account_release(transfer->account, transfer->segments, index);
}

/* ---- Borrowed memory ---------------------------------------------------------------------------------------- */

static bool is_borrowed(const struct sluice_segment *segment)
{
    return segment->kind == SLUICE_SEGMENT_MEMORY && segment->flags & SLUICE_SEGMENT_BORROWED;
}

bool transfer_borrows(const struct sluice_transfer *transfer)
{
    for (uint32_t i = 0; i < transfer->segment_count && !transfer->kept; i++)
        if (is_borrowed(&transfer->segments[i]))
            return true;
    return false;
}

static void free_copy(void *copy, const void *data, size_t length)
{
    (void)data, (void)length;
    free(copy);
}

/* Up to where every lane that is not done has passed the segment. */
static uint64_t passed_by_all(const struct sluice_transfer *transfer, uint32_t index)
{
    uint64_t passed = transfer->segments[index].length;
    for (uint32_t i = 0; i < transfer->lane_count; i++) {
        const struct lane *lane = &transfer->lanes[i];
        uint64_t at = lane->segment < index ? 0 : lane->segment == index ? lane->at : passed;
        if (lane->wait != LANE_DONE && at < passed)
            passed = at;
    }
    return passed;
}

/* What is left of the segment becomes the whole of it. */
static int keep_rest(struct sluice_transfer *transfer, uint32_t index)
{
    struct sluice_segment *segment = &transfer->segments[index];
    uint64_t passed = passed_by_all(transfer, index);
    size_t left = (size_t)(segment->length - passed);
    if (left == 0)
        return 0;
    char *copy = sys.allocate(1, left);
    if (copy == NULL)
        return transfer_fail(&transfer->lanes[0], -ENOMEM, "copy", "no memory to keep what was borrowed", NULL);
    memcpy(copy, (const char *)segment->data + passed, left);
    transfer->lanes[0].receipt.copy_bytes += left;
    segment->data = copy;
    segment->length = left;
    segment->release = free_copy;
    segment->release_context = copy;
    for (uint32_t i = 0; i < transfer->lane_count; i++) {
        struct lane *lane = &transfer->lanes[i];
        if (lane->segment == index && lane->wait != LANE_DONE) {
            lane->at -= passed;
            lane->ends_at = left;
        }
    }
    return 0;
}

/* The first step ends, and the transfer goes on: after it the memory is the caller's. Returns 0, or -ENOMEM after the
 * transfer failed. */
static int keep_borrowed(struct sluice_transfer *transfer)
{
    int result = 0;
    if (transfer->kept || transfer->blocking)
        return 0;
    for (uint32_t i = 0; i < transfer->segment_count && result == 0; i++)
        if (is_borrowed(&transfer->segments[i]))
            result = keep_rest(transfer, i);
    transfer->kept = true;
    return result;
}

/* ---- From segment to segment -------------------------------------------------------------------------------- */

static void leave_route(struct lane *lane)
{
    if (lane->route != NULL && lane->route->leave != NULL)
        lane->route->leave(lane);
    lane->route = NULL;
}

static void enter_segment(struct lane *lane, uint32_t segment)
{
    struct sluice_transfer *transfer = lane->transfer;
    lane->segment = segment;
    lane->at = 0;
    lane->tried = lane->aside = 0;
    lane->shrinking = false;
    lane->known_to = 0;
    lane->ends_at = segment < transfer->segment_count ? transfer->segments[segment].length : 0;
}

static void next_segment(struct lane *lane)
{
    struct sluice_transfer *transfer = lane->transfer;
    uint32_t left = lane->segment;
    const struct sluice_segment *segment = &transfer->segments[left];
    if (segment->memory != NULL)
        lane->receipt.pages = smaller_pages(lane->receipt.pages, sluice_memory_pages(segment->memory));
    leave_route(lane);
    enter_segment(lane, left + 1);
    if (transfer->releases_due == NULL || --transfer->releases_due[left] == 0)
        release_segment(transfer, left);
}

static inline void move_on(struct lane *lane, uint64_t bytes)
{
    lane->at += bytes;
    lane->moved_in_turn += bytes;
    if (lane->sink_offset != SLUICE_APPEND)
        lane->sink_offset += bytes;
    if (lane->at == lane->ends_at)
        next_segment(lane);
}

int lane_take_buffer(struct lane *lane, uint64_t left)
{
    struct stage *stage = &lane->stage;
    if (stage->data != NULL)
        return 0;
    stage->data = buffer_get(left);
    if (stage->data == NULL)
        return -ENOMEM;
    lane->receipt.pages = smaller_pages(lane->receipt.pages, buffer_pages(stage->data));
    return 0;
}

static void stage_free(struct stage *stage)
{
    if (stage->data != NULL)
        buffer_put(stage->data);
    stage->data = NULL;
}

static inline void deliver(struct lane *lane, enum sluice_route route, uint64_t bytes)
{
    const struct sluice_segment *segment = lane_segment(lane, lane->segment);
    receipt_enter(&lane->receipt, route, segment->kind == SLUICE_SEGMENT_MEMORY ? NULL : segment->end, lane->sink,
                  lane_shares(lane, segment) && fanout_is_shared_read(lane), bytes);
    move_on(lane, bytes);
}

void lane_delivered(struct lane *lane, enum sluice_route route, uint64_t bytes)
{
    deliver(lane, route, bytes);
}

void lane_delivered_unproven(struct lane *lane, enum sluice_route route, const struct op *op, uint64_t bytes)
{
    bool appended = op->out_offset == OP_NO_OFFSET;
    if (!appended && lane->unproven_from + lane->unproven != (uint64_t)op->out_offset)
        lane_prove(lane, route); /* a hole lies between */
    if (lane->unproven == 0)
        lane->unproven_from = appended ? SLUICE_APPEND : (uint64_t)op->out_offset;
    lane->unproven += bytes;
    lane_delivered(lane, route, bytes);
}

void lane_prove(struct lane *lane, enum sluice_route route)
{
    uint64_t from = lane->unproven_from;
    if (lane->unproven == 0)
        return;
    if (from == SLUICE_APPEND) { /* they lie before the file's position */
        lane->receipt.system_calls++;
        off_t end = sys.lseek(lane->sink->fd, 0, SEEK_CUR);
        from = end < 0 || (uint64_t)end < lane->unproven ? SLUICE_APPEND : (uint64_t)end - lane->unproven;
    }
    if (from != SLUICE_APPEND)
        receipt_prove(&lane->receipt, route, lane->sink, from, lane->unproven);
    lane->unproven = 0;
}

/* ---- Choosing a route --------------------------------------------------------------------------------------- */

static struct pair pair_of(const struct lane *lane, uint32_t segment)
{
    const struct sluice_transfer *transfer = lane->transfer;
    struct pair pair = plan_pair(&transfer->segments[segment], lane->sink, transfer->blocking);
    pair.fan_out = transfer->lane_count > 1 && pair.segment == SLUICE_SEGMENT_STREAM && !lane->alone;
    pair.transform = transfer->transform != NULL;
    pair.ring = transfer->flags & TRANSFER_ON_RING;
    return pair;
}

static const struct route *choose_in_order(const enum sluice_route *order, unsigned without)
{
    for (; *order != SLUICE_ROUTE_AUTO; order++)
        if (!(without & (1u << *order)))
            return route_registry[*order];
    return NULL;
}

/* The forced route, and while it is set aside copy. */
static const struct route *choose_forced(const struct lane *lane, unsigned tried)
{
    unsigned forced = 1u << lane->transfer->forced;
    if (tried & forced)
        return lane->aside & forced ? route_registry[SLUICE_ROUTE_COPY] : NULL;
    return route_registry[lane->transfer->forced];
}

static const struct route *choose_for_end(struct lane *lane, uint32_t segment, unsigned tried)
{
    const struct sluice_transfer *transfer = lane->transfer;
    const struct sluice_segment *source = &transfer->segments[segment];
    const struct sluice_end *sink = lane->sink;
    if (transfer->order != NULL)
        return choose_in_order(transfer->order, tried);
    if (transfer->forced != SLUICE_ROUTE_AUTO)
        return choose_forced(lane, tried);
    for (int i = 0; i < END_REFUSALS; i++)
        if (sink->refusals[i].peer == source->end->serial)
            tried |= sink->refusals[i].routes;
    /* What else struct pair says of a file does not change while its end is open. */
    bool usual = source->kind == SLUICE_SEGMENT_FILE && tried == 0 && transfer->transform == NULL && !sink->append &&
                 !sink->past_cache;
    if (usual && source->end->file.planned[sink->kind] != SLUICE_ROUTE_AUTO)
        return route_registry[source->end->file.planned[sink->kind]];
    struct pair pair = pair_of(lane, segment);
    if (end_is_file(sink))
        tried |= plan_between_files(&pair, source, lane->sink, &lane->receipt.system_calls);
    const struct route *route = plan_choose(&pair, tried);
    if (usual && route != NULL && !end_is_file(sink))
        source->end->file.planned[sink->kind] = (uint8_t)route->id;
    return route;
}

/* Of memory, direct carries what goes into files; everything else is copy's. */
static const struct route *choose_into_file(const struct lane *lane, unsigned tried)
{
    const struct sluice_transfer *transfer = lane->transfer;
    bool forced = transfer->forced == SLUICE_ROUTE_DIRECT;
    if (transfer->transform != NULL || transfer->order != NULL || !(forced || lane->sink->past_cache) ||
        (transfer->forced != SLUICE_ROUTE_AUTO && !forced))
        return route_registry[SLUICE_ROUTE_COPY];
    if (tried & (1u << SLUICE_ROUTE_DIRECT))
        return forced ? NULL : route_registry[SLUICE_ROUTE_COPY];
    return route_registry[SLUICE_ROUTE_DIRECT];
}

/* So long, in ms, a choice for memory holds: pauses of a route end by the clock. */
#define MEMORY_PLAN_MS 100

/* As plan_choose, whose questions cost a quarter of sending a small datagram: asked anew when a crossover moved, when
 * the sink's lending changed (loans.c clears it), and after a while. Crossovers lie at powers of two, so that sizes
 * with one highest bit are treated alike. */
static const struct route *choose_as_before(const struct lane *lane, uint32_t index)
{
    const struct sluice_transfer *transfer = lane->transfer;
    const struct sluice_segment *segment = &transfer->segments[index];
    struct memory_plan *plan = &lane->sink->memory_plan;
    struct memory_plan now = {
        .until = transfer->loop_now + MEMORY_PLAN_MS,
        .epoch = crossover_epoch(),
        .size = (uint8_t)(63 - __builtin_clzll(segment->length | 1)),
        .traits = (uint8_t)((segment->release != NULL) | segment_is_given(segment) << 1 |
                            ((transfer->flags & TRANSFER_ON_RING) != 0) << 2),
    };
    if (transfer->loop_now < plan->until && plan->until <= now.until && plan->epoch == now.epoch &&
        plan->size == now.size && plan->traits == now.traits)
        return route_registry[plan->route];
    struct pair pair = pair_of(lane, index);
    const struct route *route = plan_choose(&pair, 0);
    now.route = route != NULL ? (uint8_t)route->id : SLUICE_ROUTE_AUTO; /* whose place in the registry is NULL */
    if (transfer->loop_now != 0)
        *plan = now;
    return route;
}

/* Memory goes to a pipe or socket by copy unless a route that lends it or gives it away is asked for, or pays. */
static const struct route *choose_carrier_of_memory(const struct lane *lane, uint32_t segment, unsigned tried)
{
    const struct sluice_transfer *transfer = lane->transfer;
    const struct route *copy = route_registry[SLUICE_ROUTE_COPY], *forced = route_registry[transfer->forced];
    if (forced == NULL && transfer->order == NULL && tried == 0)
        return choose_as_before(lane, segment);
    struct pair pair = pair_of(lane, segment);
    const char *reason;
    if (transfer->order != NULL) {
        for (const enum sluice_route *order = transfer->order; *order != SLUICE_ROUTE_AUTO; order++)
            if (!(tried & (1u << *order)) && route_registry[*order]->assess(&pair, &reason) != SLUICE_NEVER)
                return route_registry[*order];
        return tried & (1u << SLUICE_ROUTE_COPY) ? NULL : copy;
    }
    if (forced == NULL)
        return plan_choose(&pair, tried);
    return forced->assess(&pair, &reason) == SLUICE_NEVER ? copy : choose_forced(lane, tried);
}

static inline const struct route *choose_for_memory(const struct lane *lane, uint32_t segment, unsigned tried)
{
    if (end_is_file(lane->sink))
        return choose_into_file(lane, tried);
    return lane->plans_memory ? choose_carrier_of_memory(lane, segment, tried) : route_registry[SLUICE_ROUTE_COPY];
}

static inline const struct route *choose(struct lane *lane, uint32_t segment, unsigned tried)
{
    if (lane_segment(lane, segment)->kind == SLUICE_SEGMENT_MEMORY)
        return choose_for_memory(lane, segment, tried);
    return choose_for_end(lane, segment, tried);
}

/* The lane is about to take this route for its segment. Of the last segment, if its size is known and decides about the
 * route, the cost may be measured, or the other way tried. */
static void weigh(struct lane *lane)
{
    const struct sluice_transfer *transfer = lane->transfer;
    const struct sluice_segment *segment = lane_segment(lane, lane->segment);
    if (end_sends_tls(lane->sink))
        return; /* encrypting is most of it, and would be taken for what TCP costs */
    if (segment->length == SLUICE_UNTIL_END || lane->segment + 1 != transfer->segment_count || lane->tried != 0 ||
        lane->at != 0 || transfer->forced != SLUICE_ROUTE_AUTO || transfer->order != NULL || transfer->lane_count > 1 ||
        !crossover_is_due())
        return;
    struct pair pair = pair_of(lane, lane->segment);
    if (segment->kind == SLUICE_SEGMENT_FILE)
        plan_between_files(&pair, segment, lane->sink, &lane->receipt.system_calls);
    const struct route *question = plan_question(&pair, lane->route);
    if (question == NULL)
        return;
    bool copies = lane->route != question;
    lane->sampled = crossover_weigh(question, &pair, &copies, &lane->sample);
    if (lane->sampled && !copies)
        lane->sample.extra = end_later_ns(lane->sink, question);
    lane->route = copies ? route_registry[SLUICE_ROUTE_COPY] : question;
}

/* Could a memory segment go by another route than copy? So that others do not pay for the question. */
static bool plans_memory(const struct sluice_transfer *transfer)
{
    const struct route *forced = route_registry[transfer->forced];
    if (transfer->transform != NULL)
        return false;
    if (transfer->order != NULL)
        return true;
    if (forced != NULL)
        return forced->carries_memory;
    for (uint32_t i = 0; i < transfer->segment_count; i++) {
        const struct sluice_segment *segment = &transfer->segments[i];
        if (segment->length >= CROSSOVER_FLOOR && segment->kind == SLUICE_SEGMENT_MEMORY && segment->release != NULL)
            return true;
    }
    return false;
}

static void hand_over(struct lane *lane, const struct route *to, int error, const char *reason)
{
    struct sluice_fallback fallback = {
        .from = lane->route->id, .to = to->id, .error = error, .at = lane->receipt.sent, .reason = reason};
    lane->tried |= 1u << lane->route->id;
    leave_route(lane);
    lane->route = to;
    receipt_enter_fallback(&lane->receipt, &fallback);
}

/* A shortage of descriptors, pipes or memory is no trait of the pair. */
static bool passes(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOMEM;
}

/* The route turned out not to serve this pair: the next one goes on at this very byte. error: positive errno. */
static int demote(struct lane *lane, int error, const char *operation, const char *reason)
{
    struct sluice_transfer *transfer = lane->transfer;
    const struct route *from = lane->route;
    const struct sluice_segment *segment = &transfer->segments[lane->segment];
    const struct route *to = choose(lane, lane->segment, lane->tried | 1u << from->id);
    if (to == NULL && transfer->forced != SLUICE_ROUTE_AUTO && from->id == transfer->forced)
        return transfer_fail(lane, -EOPNOTSUPP, operation, reason,
                             "Leave the choice of route to sluice (--route auto).");
    if (to == NULL)
        return transfer_fail(lane, -error, operation, reason, NULL);
    hand_over(lane, to, error, reason);
    if (segment->kind != SLUICE_SEGMENT_MEMORY && transfer->order == NULL && !passes(error))
        end_remember_refusal(lane->sink, segment->end, from->id);
    if (segment->kind == SLUICE_SEGMENT_FILE && end_is_file(lane->sink) && transfer->order == NULL)
        file_systems_remember_refusal(segment->end, lane->sink, from->id, error, &lane->receipt.system_calls);
    return 0;
}

int lane_leave_rest(struct lane *lane, const char *reason)
{
    const struct route *to = choose(lane, lane->segment, lane->tried | 1u << lane->route->id);
    hand_over(lane, to != NULL ? to : route_registry[SLUICE_ROUTE_COPY], 0, reason);
    return 0;
}

enum sluice_route lane_would_choose(struct lane *lane, uint32_t segment)
{
    const struct route *route = choose(lane, segment, 0);
    return route != NULL ? route->id : SLUICE_ROUTE_AUTO;
}

void lane_demote_to_copy(struct lane *lane, int error, const char *reason)
{
    struct sluice_fallback fallback = {
        .from = lane->route->id, .to = SLUICE_ROUTE_COPY, .error = error, .at = lane->receipt.sent, .reason = reason};
    lane->tried |= 1u << lane->route->id;
    leave_route(lane);
    lane->route = route_registry[SLUICE_ROUTE_COPY];
    receipt_enter_fallback(&lane->receipt, &fallback);
}

void lane_go_alone(struct lane *lane, const char *reason)
{
    const struct route *from = lane->route;
    leave_route(lane);
    lane->alone = true;
    lane->route = choose(lane, lane->segment, lane->tried);
    if (lane->route == NULL)
        lane->route = route_registry[SLUICE_ROUTE_COPY];
    struct sluice_fallback fallback = {
        .from = from->id, .to = lane->route->id, .at = lane->receipt.sent, .reason = reason};
    if (from != lane->route)
        receipt_enter_fallback(&lane->receipt, &fallback);
}

int lane_drop(struct lane *lane, int code, const char *operation, const char *reason, const char *remedy)
{
    struct sluice_transfer *transfer = lane->transfer;
    struct sluice_error error = {.code = code,
                                 .side = SLUICE_SIDE_SINK,
                                 .route = lane->route != NULL ? lane->route->id : SLUICE_ROUTE_AUTO,
                                 .operation = operation,
                                 .reason = reason,
                                 .remedy = remedy,
                                 .delivered = lane->receipt.sent};
    if (transfer->fanout->live == 1)
        return transfer_fail(lane, code, operation, reason, remedy);
    if (lane->sink->kind == SLUICE_END_TCP) /* its peer must not take the end of the connection for the stream's */
        end_reset(lane->sink, &lane->receipt.system_calls);
    lane_settle(lane);
    for (uint32_t i = lane->segment; i < transfer->segment_count; i++)
        if (--transfer->releases_due[i] == 0)
            release_segment(transfer, i);
    fanout_forget(lane, &error);
    lane->wait = LANE_DONE;
    return 0;
}

static int sink_failed(struct lane *lane, int code, const char *operation, const char *remedy)
{
    enum sluice_fanout_policy policy = lane->transfer->fanout->policy;
    if (policy == SLUICE_FANOUT_BLOCK || policy == SLUICE_FANOUT_FIRST) /* lane_failed tells who of these it is */
        return transfer_fail(lane, code, operation, NULL, remedy);
    return lane_drop(lane, code, operation, NULL, remedy);
}

/* Not by this route now: the next one carries so many bytes, then it is asked again. error: positive errno, or 0. */
static int set_aside(struct lane *lane, uint64_t bytes, int error, const char *reason)
{
    const struct route *from = lane->route;
    lane->aside |= 1u << from->id;
    lane->tried |= lane->aside;
    lane->aside_until = lane->at + bytes;
    const struct route *to = choose(lane, lane->segment, lane->tried);
    if (to == NULL)
        return transfer_fail(lane, error != 0 ? -error : -EOPNOTSUPP, from->name, reason, NULL);
    leave_route(lane);
    lane->route = to;
    if (reason == lane->aside_reason)
        return 0; /* as before: a receipt has room for few */
    lane->aside_reason = reason;
    struct sluice_fallback fallback = {
        .from = from->id, .to = to->id, .error = error, .at = lane->receipt.sent, .reason = reason};
    receipt_enter_fallback(&lane->receipt, &fallback);
    return 0;
}

static void end_aside(struct lane *lane)
{
    leave_route(lane);
    lane->tried &= ~lane->aside;
    lane->aside = 0;
}

/* A route or an op of it failed with this negative errno. */
static int refused_or_failed(struct lane *lane, int code, const char *operation)
{
    if (lane->route != NULL && errno_in_list(lane->route->refusals, -code)) {
        const char *reason = lane->route->explain != NULL ? lane->route->explain(-code) : NULL;
        return demote(lane, -code, operation, reason != NULL ? reason : lane->route->refusal_reason);
    }
    const char *remedy = NULL;
    if (code == -EMFILE || code == -ENFILE)
        remedy = "Raise the limit on open descriptors (ulimit -n).";
    else if (code == -ENOSPC)
        remedy = "Make room at the sink.";
    if (lane->transfer->fanout != NULL)
        return sink_failed(lane, code, operation, remedy);
    return transfer_fail(lane, code, operation, NULL, remedy);
}

/* ---- The end of a source ------------------------------------------------------------------------------------ */

/* The current segment has no more bytes. Returns 0 or a negative errno. */
static int source_ended(struct lane *lane)
{
    const struct sluice_segment *segment = lane_segment(lane, lane->segment);
    if (segment->length == SLUICE_UNTIL_END) {
        lane->ends_at = lane->at;
        next_segment(lane);
        return 0;
    }
    lane->receipt.short_sources++;
    return transfer_fail(lane, -ENODATA, "source", "it ended before its declared length",
                         "Take a snapshot (--snapshot) of files that change while they are read.");
}

/* The current segment's stream said that it ended; what was taken from it before is still to be delivered. */
static void stream_ended(struct lane *lane)
{
    struct sluice_transfer *transfer = lane->transfer;
    struct sluice_segment *segment = &transfer->segments[lane->segment];
    struct stage *stage = &lane->stage;
    uint64_t end = lane->at;
    if (stage->segment == lane->segment && stage->end > end)
        end = stage->end;
    end += lane->in_pipe;
    if (lane_shares(lane, segment))
        end = transfer->fanout->tail;
    if (segment->length != SLUICE_UNTIL_END) {
        stage->segment = lane->segment;
        stage->begin = stage->end = end;
        stage->source_ended = true;
        return;
    }
    segment->length = end; /* known now; every lane ends there */
    for (uint32_t i = 0; i < transfer->lane_count; i++)
        if (transfer->lanes[i].segment == lane->segment)
            transfer->lanes[i].ends_at = end;
}

/* The stream's end is one of which a receiver has been told that it is none. */
static int source_broke(struct lane *lane, const char *operation)
{
    int code = end_broke(lane_segment(lane, lane->segment)->end);
    transfer_fail(lane, code, operation, NULL, NULL);
    lane->transfer->error.side = SLUICE_SIDE_SOURCE;
    return code;
}

bool lane_is_quiet(const struct lane *lane)
{
    const struct sluice_transfer *transfer = lane->transfer;
    return transfer->quiet_below != 0 && lane->segment + 1 == transfer->segment_count &&
           lane->at - transfer->silent_at < transfer->quiet_below;
}

void lane_note_silence(struct lane *lane)
{
    if (lane->segment + 1 == lane->transfer->segment_count)
        lane->transfer->silent_at = lane->at;
}

/* The file has this size now, and the lane is there. */
static int file_ended(struct lane *lane, uint64_t size)
{
    if (size < lane_segment(lane, lane->segment)->end->file.size)
        lane->receipt.shrunk++;
    return source_ended(lane);
}

/* Virtual files (/proc) say that they are empty, and only reading tells. */
static bool reads_as_empty(int fd, uint64_t *calls)
{
    char byte;
    ssize_t result;
    do {
        ++*calls;
        result = sys.pread(fd, &byte, 1, 0);
    } while (result < 0 && errno == EINTR);
    return result == 0;
}

/* A file route read nothing: the file has become shorter, or cannot be read this way (EIO of a mapping; sysfs says more
 * than it holds). */
static int file_gave_nothing(struct lane *lane, const char *operation)
{
    const struct sluice_segment *segment = lane_segment(lane, lane->segment);
    uint64_t size = 0;
    int result = end_size_now(segment->end, 0, &lane->receipt.system_calls, &size);
    if (result < 0)
        return transfer_fail(lane, result, "fstat", NULL, NULL);
    bool other_way = lane->route != NULL && lane->route->id != SLUICE_ROUTE_COPY;
    if (other_way &&
        (segment->offset + lane->at < size || (size == 0 && lane->at == 0 && segment->offset == 0 &&
                                               !reads_as_empty(segment->end->fd, &lane->receipt.system_calls))))
        return demote(lane, 0, operation, "the file can be read but gives nothing this way");
    return file_ended(lane, size);
}

/* ---- What may be read of a file now ------------------------------------------------------------------------- */

enum admission { ADMITTED, NOT_IN_MEMORY, FILE_ENDED, IN_HOLE };

/* Does the lane make holes in its sink where the source has some? */
static bool keeps_holes(const struct lane *lane)
{
    return lane->transfer->flags & SLUICE_TRANSFER_SPARSE && lane->transfer->transform == NULL &&
           lane->sink->kind == SLUICE_END_FILE && !lane->sink->append && lane->sink_offset != SLUICE_APPEND &&
           !lane->fills_holes;
}

/* Is there data at this position of the current segment's file? Asked once for each extent. */
static bool has_data(struct lane *lane, struct sluice_end *source, uint64_t position)
{
    if (position >= lane->known_to)
        lane->known_data = extents_at(source, position, &lane->receipt.system_calls, &lane->known_to);
    return lane->known_data;
}

/* Sets lane->limit for an op on a file segment: no more than the turn allows and, where the caller must not block, than
 * is in memory. Before the op that reaches the segment's last byte the size is asked again: pages of a file truncated
 * in place while they are in flight arrive as zeros (KERNEL-FACTS 14), so the end must be seen to be still there. A
 * file of size 0 is empty, or a virtual one (/proc) whose end only reading finds. Returns enum admission or a negative
 * errno; IN_HOLE only for the current segment. */
static int admit_file(struct lane *lane, uint32_t index, uint64_t at, const struct route *route)
{
    struct sluice_transfer *transfer = lane->transfer;
    const struct sluice_segment *segment = &transfer->segments[index];
    uint64_t *calls = &lane->receipt.system_calls;
    size_t most = step_size(lane, route);
    bool hole = false;
    if (transfer->flags & SLUICE_TRANSFER_SPARSE && index == lane->segment && !route->moves_extents &&
        segment->end->kind == SLUICE_END_FILE && segment->end->file.size > 0 && keeps_holes(lane)) {
        uint64_t position = segment->offset + at;
        hole = !has_data(lane, segment->end, position);
        if (hole || lane->known_to - position < most)
            most = lane->known_to - position;
    }
    size_t left = lane_left(lane, index, at, most);
    bool last = segment->length == SLUICE_UNTIL_END ? segment->offset + at + left > segment->end->file.size
                                                    : at + left >= segment->length;

    lane->limit = left;
    if (at == 0 && segment->flags & SLUICE_SEGMENT_SIZE_KNOWN)
        last = false;
    if (last || lane->shrinking) {
        uint64_t size;
        int result = end_size_now(segment->end, transfer->loop_turn, calls, &size);
        /* What this turn has seen may be outdated by a little: too old to call a declared length wrong. */
        if (result == 0 && size <= segment->offset + at && segment->length != SLUICE_UNTIL_END &&
            transfer->loop_turn != 0)
            result = end_size_now(segment->end, 0, calls, &size);
        if (result < 0)
            return result;
        if (size == 0 && segment->end->file.size == 0)
            return ADMITTED;
        if (size <= segment->offset + at)
            return FILE_ENDED;
        if (size - segment->offset - at < left)
            lane->limit = (size_t)(size - segment->offset - at);
    }
    if (hole)
        return IN_HOLE;
    if (transfer->flags & SLUICE_TRANSFER_NEVER_BLOCK && !route->needs_no_pages) {
        uint64_t offset = segment->offset + at;
        uint64_t size = segment->end->file.size;
        uint64_t want = offset < size && size - offset < lane->limit ? size - offset : lane->limit;
        bool warm =
            at > 0 && transfer->ahead_to == 0; /* looking everywhere would take 7 % of a large hot file's time */
        uint64_t resident = end_resident(segment->end, offset, want, warm, transfer->loop_now, calls);
        if (resident == 0 && want > 0) {
            uint64_t rest = lane_left(lane, index, at, PAGES_WINDOW - offset % RESIDENCY_STEP);
            lane->wait_offset = offset;
            lane->wait_length = rest;
            return NOT_IN_MEMORY;
        }
        if (resident < lane->limit && resident > 0)
            lane->limit = (size_t)resident;
    }
    return ADMITTED;
}

/* ---- Gathering: what lies in memory leaves in one write ----------------------------------------------------- */

/* As expose, for what is no memory segment. */
static ssize_t expose_of_end(struct lane *lane, uint32_t index, uint64_t at, struct iovec *piece,
                             enum sluice_route *ret_route)
{
    const struct stage *stage = &lane->stage;
    *ret_route = SLUICE_ROUTE_COPY;
    if (lane_shares(lane, lane_segment(lane, index)))
        return index == lane->segment ? fanout_expose(lane, at, piece) : 0;
    if (stage->segment == index && at >= stage->begin && at < stage->end) {
        *ret_route = (enum sluice_route)stage->route;
        *piece = (struct iovec){.iov_base = lane_staged(lane, at), .iov_len = stage->end - at};
        return (ssize_t)piece->iov_len;
    }
    const struct route *route = index == lane->segment ? lane->route : choose(lane, index, 0);
    if (route == NULL || route->expose == NULL || lane->in_pipe > 0)
        return 0;
    if (lane->transfer->flags & SLUICE_TRANSFER_SPARSE && index != lane->segment)
        return 0; /* it may begin with a hole */
    int admission = admit_file(lane, index, at, route);
    if (admission != ADMITTED)
        return admission < 0 ? admission : 0;
    *ret_route = route->id;
    ssize_t length = route->expose(lane, index, at, piece);
    if (length > 0 && (size_t)length > lane->limit) {
        piece->iov_len = lane->limit;
        return (ssize_t)lane->limit;
    }
    return length;
}

/* Bytes at (index, at) that lie in memory. Returns how many, 0 for none at hand, or a negative errno. */
static inline ssize_t expose(struct lane *lane, uint32_t index, uint64_t at, struct iovec *piece,
                             enum sluice_route *ret_route)
{
    const struct sluice_segment *segment = lane_segment(lane, index);
    if (segment->kind != SLUICE_SEGMENT_MEMORY)
        return expose_of_end(lane, index, at, piece, ret_route);
    *ret_route = SLUICE_ROUTE_COPY;
    if (lane->plans_memory) {
        const struct route *route = index == lane->segment ? lane->route : choose(lane, index, 0);
        if (route == NULL)
            return 0;
        *ret_route = route->id;
        if (route->id != SLUICE_ROUTE_COPY)
            return route->expose != NULL ? route->expose(lane, index, at, piece) : 0;
    }
    *piece = (struct iovec){.iov_base = (char *)segment->data + at, .iov_len = segment->length - at};
    return (ssize_t)piece->iov_len;
}

static inline bool lends(enum sluice_route route)
{
    return route_registry[route]->lends != LOANS_NONE;
}

struct gathered {
    int count;
    size_t bytes;
    uint32_t segment; /* where it ends */
    uint64_t at;
};

/* The most that one call with UDP_SEGMENT takes: as many datagrams (UDP_MAX_SEGMENTS; more since Linux 6.10), and all
 * of them together as large as one could be over IPv4. */
#define DATAGRAMS_MAX 64u
#define DATAGRAM_BYTES_MAX 65507u

/* How much of the piece one call may send. */
static size_t cut_datagrams(const struct lane *lane, const struct route *route, struct iovec *piece)
{
    bool one = lane->singly || route->lends == LOANS_OF_RING; /* whose requests bring no such message */
    size_t size = lane->transfer->datagram_size, count = one ? 1 : DATAGRAM_BYTES_MAX / size;
    size_t most = (count < DATAGRAMS_MAX ? count : DATAGRAMS_MAX) * size;
    if (piece->iov_len > most)
        piece->iov_len = most;
    return piece->iov_len;
}

static int gather(struct lane *lane, struct gathered *ret)
{
    struct sluice_transfer *transfer = lane->transfer;
    struct gathered got = {.segment = lane->segment, .at = lane->at};
    int most = lane->pieces_max != 0 ? lane->pieces_max : OP_IOV_MAX;
    lane->pieces_max = 0;
    while (got.segment < transfer->segment_count && got.count < most && got.bytes < GATHER_MAX) {
        uint64_t ends_at = got.segment == lane->segment ? lane->ends_at : transfer->segments[got.segment].length;
        if (got.at == ends_at) { /* an empty segment */
            got.segment++;
            got.at = 0;
            continue;
        }
        enum sluice_route route;
        ssize_t length = expose(lane, got.segment, got.at, &lane->iov[got.count], &route);
        if (length < 0 && got.count == 0)
            return (int)length;
        if (length <= 0)
            break;
        if (lane->plans_memory && got.count > 0 &&
            route_registry[route]->lends != route_registry[lane->iov_route[0]]->lends)
            break; /* what is lent leaves in calls of its own */
        if (lane->sink->kind == SLUICE_END_DATAGRAM && transfer->datagram_size != 0)
            length = (ssize_t)cut_datagrams(lane, route_registry[route], &lane->iov[got.count]);
        lane->iov_route[got.count++] = (uint8_t)route;
        got.bytes += (size_t)length;
        got.at += (uint64_t)length;
        if (lane->sink->kind == SLUICE_END_DATAGRAM) {
            if (transfer->datagram_size != 0 && !lane->singly)
                break; /* one call, cut by the kernel */
            if (lane->plans_memory && lends(route))
                break; /* a loan is a call, and a notification, of one datagram */
            if (transfer->datagram_size != 0 && got.at < ends_at)
                continue; /* the next one of this segment */
        }
        if (got.at == ends_at) {
            got.segment++;
            got.at = 0;
        } else {
            break;
        }
    }
    *ret = got;
    return 0;
}

/* Bytes are at hand after this place: the packet may wait for them. Not so for a stream, which may stay silent. */
static bool more_follows(const struct lane *lane, uint32_t index, uint64_t at)
{
    const struct sluice_transfer *transfer = lane->transfer;
    if (transfer->flags & SLUICE_TRANSFER_MORE)
        return true;
    for (; index < transfer->segment_count; index++, at = 0) {
        const struct sluice_segment *segment = &transfer->segments[index];
        if (segment->kind == SLUICE_SEGMENT_STREAM)
            return false;
        if (segment->length > at && segment->length != SLUICE_UNTIL_END)
            return true;
    }
    return false;
}

static void fill_write(struct lane *lane, const struct gathered *got, struct op *ret_op)
{
    bool socket = lane->sink->kind == SLUICE_END_TCP || lane->sink->kind == SLUICE_END_UNIX_STREAM;
    /* TCP_CORK fills packets; TLS records, which end with every call, are filled by MSG_MORE. */
    bool more = socket && (!lane->cork || end_sends_tls(lane->sink)) && more_follows(lane, got->segment, got->at);
    bool lent = lane->plans_memory && lends((enum sluice_route)lane->iov_route[0]);
    *ret_op = (struct op){
        .kind = got->count > 1 && lane->sink->kind == SLUICE_END_DATAGRAM ? OP_DATAGRAMS : OP_WRITE,
        .in = -1,
        .out = lane_sink_fd(lane),
        .in_offset = OP_NO_OFFSET,
        .out_offset = lane_out_offset(lane),
        .length = got->bytes,
        .iov = lane->iov,
        .iov_count = got->count,
        .flags = (more ? MSG_MORE : 0) | (lent ? MSG_ZEROCOPY : 0),
        .datagram = !lane->singly && lane->transfer->datagram_size < got->bytes ? lane->transfer->datagram_size : 0,
        .sink = lane->sink,
    };
}

/* See that the kernel's keeping of what was gathered can be remembered. Returns 1, 0 when it is to go by another route,
 * or a negative errno. */
static int prepare_loan(struct lane *lane, const struct gathered *got)
{
    const char *reason;
    const struct route *route = route_registry[lane->iov_route[0]];
    if (route->lends == LOANS_NONE)
        return 1;
    int result = lane_prepare_loan(lane, route, got->bytes, &reason);
    if (result == 0)
        return 1;
    if (lane->sink->socket.lending != NULL && lane->sink->socket.lending->never != NULL)
        return demote(lane, -result, "setsockopt(SO_ZEROCOPY)", reason);
    return set_aside(lane, got->bytes, result == -ENOBUFS ? 0 : -result, reason);
}

static void written(struct lane *lane, const struct op *op, size_t bytes)
{
    uint32_t counted = 0; /* one call, however many pieces of a route it moved */
    for (int i = 0; i < op->iov_count && bytes > 0; i++) {
        size_t part = op->iov[i].iov_len < bytes ? op->iov[i].iov_len : bytes;
        enum sluice_route route = (enum sluice_route)lane->iov_route[i];
        while (lane->segment < lane->transfer->segment_count && lane->at == lane->ends_at)
            next_segment(lane); /* the empty segments that gather() passed over */
        deliver(lane, route, part);
        lane->receipt.routes[route].calls += (counted >> route & 1) == 0;
        counted |= 1u << route;
        bytes -= part;
    }
}

/* ---- Corking ------------------------------------------------------------------------------------------------ */

/* Partial segments are held back while a transfer runs if it is large, or if something follows a body that sendfile or
 * splice carries: those push out their last bytes, and the tail would leave in a packet of its own. What is large and
 * paced is not corked, but leaves by short turns. */
static void plan_packets(struct lane *lane)
{
    const struct sluice_transfer *transfer = lane->transfer;
    uint64_t total = 0;
    uint32_t last_file = UINT32_MAX; /* that something follows */
    bool follows = transfer->flags & SLUICE_TRANSFER_MORE;
    if (lane->sink->kind != SLUICE_END_TCP)
        return;
    for (uint32_t i = transfer->segment_count; i-- > 0;) {
        const struct sluice_segment *segment = &transfer->segments[i];
        uint64_t length = segment->length;
        if (segment->kind == SLUICE_SEGMENT_STREAM)
            return; /* it may fall silent, and what it brought must not wait */
        if (length == 0)
            continue;
        if (segment->kind == SLUICE_SEGMENT_FILE) {
            uint64_t size = segment->end->file.size;
            if (length == SLUICE_UNTIL_END)
                length = size > segment->offset ? size - segment->offset : 0;
            if (follows)
                last_file = i;
        }
        follows = true;
        total += length;
    }
    if (total >= CORK_FROM) {
        lane->paced = end_paces(lane->sink, &lane->receipt.system_calls);
        lane->cork = !lane->paced;
    } else if (last_file != UINT32_MAX) {
        const struct route *route = choose(lane, last_file, 0);
        lane->cork = route != NULL && route->expose == NULL;
    }
}

static struct op cork_op(struct lane *lane, bool on)
{
    return (struct op){.kind = OP_CORK,
                       .in = -1,
                       .out = lane->sink->fd,
                       .in_offset = OP_NO_OFFSET,
                       .out_offset = OP_NO_OFFSET,
                       .length = on,
                       .sink = lane->sink};
}

/* ---- Lanes -------------------------------------------------------------------------------------------------- */

int lane_finish(struct lane *lane, struct op *ops)
{
    if (lane->sink->kind == SLUICE_END_TCP && lane->sink->socket.corked &&
        !(lane->transfer->flags & SLUICE_TRANSFER_MORE)) {
        ops[0] = cork_op(lane, false);
        return 1;
    }
    lane->wait = LANE_DONE;
    return 0;
}

static struct op hole_op(struct lane *lane)
{
    return (struct op){.kind = OP_HOLE,
                       .in = -1,
                       .out = lane->sink->fd,
                       .in_offset = OP_NO_OFFSET,
                       .out_offset = lane_out_offset(lane),
                       .length = lane->limit,
                       .sink = lane->sink};
}

static int hole_made(struct lane *lane, ssize_t result)
{
    if (result < 0) { /* written as zeros, then; if that fails, it says why */
        lane->fills_holes = true;
        return 0;
    }
    receipt_enter_hole(&lane->receipt, (uint64_t)result);
    move_on(lane, (uint64_t)result);
    return 1;
}

/* The current segment has nothing in memory: ask its route. Returns ops, 0 when the lane waits or has moved on, or a
 * negative errno. */
static int step_segment(struct lane *lane, struct op *ops, int room)
{
    const struct sluice_segment *segment = lane_segment(lane, lane->segment);
    if (lane_shares(lane, segment)) {
        int steps = fanout_step(lane, ops);
        return steps == FANOUT_SHORT ? source_ended(lane) : steps;
    }
    if (lane->stage.segment == lane->segment && lane->stage.source_ended && lane->in_pipe == 0)
        return source_ended(lane);
    if (segment->kind == SLUICE_SEGMENT_FILE) {
        int admission = admit_file(lane, lane->segment, lane->at, lane->route);
        if (admission < 0)
            return transfer_fail(lane, admission, "fstat", NULL, NULL);
        if (admission == FILE_ENDED)
            return file_ended(lane, segment->end->file.checked_size);
        if (admission == IN_HOLE) {
            ops[0] = hole_op(lane);
            return 1;
        }
        if (admission == NOT_IN_MEMORY) {
            lane->wait = LANE_WAITS_PAGES;
            lane->receipt.waits++;
            return 0;
        }
    } else {
        lane->limit = lane_left(lane, lane->segment, lane->at, step_size(lane, lane->route));
    }
    int count = lane->route->step(lane, lane->segment, lane->at, ops, room);
    return count >= 0 ? count : refused_or_failed(lane, count, lane->route->name);
}

/* The body right after what was gathered may be linked to it, so that a response costs one transition of a loop that
 * submits: only sendfile-like routes, which need no preparation. */
static int link_body(struct lane *lane, const struct gathered *got, struct op *ops, int room)
{
    const struct sluice_transfer *transfer = lane->transfer;
    if (room < 1 || got->segment == lane->segment || got->segment >= transfer->segment_count || got->at != 0)
        return 0;
    const struct sluice_segment *segment = &transfer->segments[got->segment];
    if (segment->kind != SLUICE_SEGMENT_FILE || lane->stage.end > lane->stage.begin)
        return 0;
    const struct route *route = choose(lane, got->segment, 0);
    if (route == NULL || route->id != SLUICE_ROUTE_SENDFILE || admit_file(lane, got->segment, 0, route) != ADMITTED)
        return 0;
    int count = route->step(lane, got->segment, 0, ops, room);
    return count > 0 ? count : 0;
}

/* What is read of a file into a stage may leave as soon as it is read, without asking here again. Not so with what is
 * read for several sinks, for a transform, or into memory; nor where whole blocks are read of which a part leaves, or
 * where the route writes by itself. */
static int link_write(struct lane *lane, const struct op *read, struct op *ops, int room)
{
    const struct sluice_transfer *transfer = lane->transfer;
    if (transfer->carrier == NULL || room < 1 || read->kind != OP_READ || read->in_offset == OP_NO_OFFSET ||
        read->buffer != lane->stage.data || lane->stage.lead != 0 || read->length > lane->ends_at - lane->at ||
        (end_is_file(lane->sink) && lane->route->writes_files))
        return 0;
    struct gathered got = {.count = 1, .bytes = read->length, .segment = lane->segment, .at = lane->at + read->length};
    lane->iov[0] = (struct iovec){.iov_base = read->buffer, .iov_len = read->length};
    lane->iov_route[0] = (uint8_t)lane->route->id;
    fill_write(lane, &got, ops);
    return 1;
}

int lane_next(struct lane *lane, struct op *ops)
{
    struct sluice_transfer *transfer = lane->transfer;
    int count = 0;
    if (transfer->failed)
        return transfer->error.code;
    if (!lane->started) {
        lane->started = true;
        lane->plans_memory = plans_memory(transfer);
        if (transfer->datagram_size != 0 && lane->sink->kind == SLUICE_END_DATAGRAM)
            lane->singly = !end_segments(lane->sink, &lane->receipt.system_calls);
        plan_packets(lane);
        if (lane->cork && !lane->sink->socket.corked)
            ops[count++] = cork_op(lane, true);
    }
    while (lane->wait == LANE_RUNS) {
        if (transfer->transform != NULL) {
            int more = transform_next(lane, ops + count);
            return more < 0 ? more : count + more;
        }
        while (lane->segment < transfer->segment_count && lane->at == lane->ends_at)
            next_segment(lane);
        if (lane->segment == transfer->segment_count)
            return count > 0 ? count : lane_finish(lane, ops);
        if (lane->aside != 0 && lane->at >= lane->aside_until)
            end_aside(lane);
        if (lane->route == NULL) {
            lane->route = choose(lane, lane->segment, lane->tried);
            if (lane->route == NULL)
                return transfer_fail(lane, -EOPNOTSUPP, "plan", "no route carries this pair of ends", NULL);
            const struct sluice_segment *segment = lane_segment(lane, lane->segment);
            if (segment->length >= CROSSOVER_FLOOR && (segment->kind != SLUICE_SEGMENT_FILE || end_is_file(lane->sink)))
                weigh(lane);
        }
        struct gathered got = {0};
        int result = end_is_file(lane->sink) && lane->route->writes_files ? 0 : gather(lane, &got);
        if (result < 0) {
            result = refused_or_failed(lane, result, lane->route->name);
            if (result < 0)
                return result;
            continue;
        }
        if (got.count > 0 && lane->plans_memory) {
            result = prepare_loan(lane, &got);
            if (result < 0)
                return result;
            if (result == 0)
                continue;
        }
        if (got.count > 0) {
            fill_write(lane, &got, &ops[count++]);
            return count + link_body(lane, &got, ops + count, OPS_MAX - count);
        }
        result = step_segment(lane, ops + count, OPS_MAX - count);
        if (result < 0)
            return result;
        if (result > 0)
            return count + result + link_write(lane, &ops[count], ops + count + result, OPS_MAX - count - result);
    }
    if (lane->wait == LANE_TAKES && count == 0)
        return fanout_take(lane, ops);
    return count;
}

ssize_t lane_pull(struct lane *lane, size_t read_most, struct iovec *ret_piece, struct op *ops, int *ret_ops)
{
    struct sluice_transfer *transfer = lane->transfer;
    *ret_ops = 0;
    while (lane->segment < transfer->segment_count && lane->at == lane->ends_at)
        next_segment(lane);
    if (lane->segment == transfer->segment_count)
        return 0;
    lane->route = route_registry[SLUICE_ROUTE_COPY];
    enum sluice_route route;
    ssize_t length = expose(lane, lane->segment, lane->at, ret_piece, &route);
    if (length != 0 || read_most == 0)
        return length;
    int count = step_segment(lane, ops, 1);
    if (count > 0) {
        *ret_ops = count;
        if (ops[0].length > read_most)
            ops[0].length = read_most;
    }
    return count < 0 ? count : 0;
}

void lane_consumed(struct lane *lane, uint64_t bytes)
{
    lane->at += bytes;
    if (lane->stage.segment == lane->segment && lane->at == lane->stage.end)
        stage_free(&lane->stage);
    if (lane->at == lane->ends_at)
        next_segment(lane);
}

/* 1, 0, or a negative errno. */
static int pollable_now(int fd, short events, uint64_t *calls)
{
    struct pollfd poll = {.fd = fd, .events = events};
    int result;
    do {
        ++*calls;
        result = sys.poll(&poll, 1, 0);
    } while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : result;
}

static int would_block(struct lane *lane, const struct op *op)
{
    enum op_blocker blocker = op_blocker(op);
    struct sluice_transfer *transfer = lane->transfer;
    if (transfer->fanout != NULL)
        fanout_would_block(lane, op);
    /* splice does not say which side was not ready (KERNEL-FACTS 17.27). When both are by now, an edge to wait for has
     * passed: come again, after others had their turn. */
    if (blocker == OP_BLOCKS_ON_EITHER) {
        uint64_t *calls = &lane->receipt.system_calls;
        int source = pollable_now(op->in, POLLIN, calls);
        int sink = source > 0 ? pollable_now(op->out, POLLOUT, calls) : 0;
        if (source < 0 || sink < 0)
            return transfer_fail(lane, source < 0 ? source : sink, "poll", NULL, NULL);
        blocker = source > 0 ? OP_BLOCKS_ON_SINK : OP_BLOCKS_ON_SOURCE;
        if (sink > 0) {
            lane->receipt.waits++;
            lane->moved_in_turn = transfer->turn_size;
            return 0;
        }
    }
    if (blocker == OP_BLOCKS_ON_SOURCE && lane_is_quiet(lane)) {
        stream_ended(lane);
        return 0;
    }
    lane->receipt.waits++;
    if (blocker == OP_BLOCKS_ON_SOURCE) {
        lane_note_silence(lane);
        lane->wait = LANE_WAITS_SOURCE;
        /* A stream may be silent for long, and a user has few large pipes (64 of 1 MiB, pipe(7)): others may need it.
         */
        if (transfer->fanout == NULL && lane->in_pipe == 0)
            pipe_put(&lane->pipe, 0);
    } else {
        lane->wait = transfer->fanout != NULL ? LANE_TAKES : LANE_WAITS_SINK;
    }
    return 0;
}

/* A write out of a mapping meets a page that is no longer in the file: EFAULT, where user code would get SIGBUS. The
 * kernel drops the whole packet it was filling, so bytes before that page may still be to be sent. */
static int mapping_fault(struct lane *lane, const struct op *op)
{
    for (int i = 0; i < op->iov_count; i++) {
        if (lane->iov_route[i] != SLUICE_ROUTE_MMAP)
            continue;
        if (i > 0) { /* what comes before it first, alone: then it is clear what the fault is about */
            lane->pieces_max = (uint8_t)i;
            return 0;
        }
        if (lane->shrinking)
            return file_gave_nothing(lane, "write"); /* not for its size, then */
        lane->shrinking = true;
        lane_segment(lane, lane->segment)->end->file.checked_turn = 0;
        return 0;
    }
    return transfer_fail(lane, -EFAULT, "write", "a memory segment is not readable", NULL);
}

static int lending_failed(struct lane *lane, const struct op *op, int code)
{
    lane_lending_failed(lane, -code);
    int outcome = lane->route->complete(lane, op, code);
    if (outcome == ROUTE_NOT_NOW)
        return set_aside(lane, op->length, -code, lending_pressed(op->length));
    return refused_or_failed(lane, code, op_name(op));
}

/* Larger than the path takes (EINVAL, EMSGSIZE), or a device without checksum offload (EIO, udp(7)). */
static bool refuses_segments(ssize_t result)
{
    return result == -EINVAL || result == -EMSGSIZE || result == -EIO || result == -EOPNOTSUPP;
}

static int send_singly(struct lane *lane, const struct op *op, int code)
{
    enum sluice_route route = (enum sluice_route)lane->iov_route[0];
    struct sluice_fallback fallback = {.from = route,
                                       .to = route,
                                       .error = -code,
                                       .at = lane->receipt.sent,
                                       .reason = "datagrams are sent one by one: UDP_SEGMENT was refused"};
    if (op->flags & MSG_ZEROCOPY)
        lane_lending_failed(lane, -code);
    lane->singly = true;
    receipt_enter_fallback(&lane->receipt, &fallback);
    return 0;
}

static int write_failed(struct lane *lane, const struct op *op, int code)
{
    if (lane->transfer->transform != NULL)
        return transfer_fail(lane, code, op_name(op), NULL, NULL);
    if (op->datagram != 0 && refuses_segments(code))
        return send_singly(lane, op, code);
    if (op->flags & MSG_ZEROCOPY)
        return lending_failed(lane, op, code);
    return code == -EFAULT ? mapping_fault(lane, op) : refused_or_failed(lane, code, op_name(op));
}

static int write_completed(struct lane *lane, const struct op *op, ssize_t result)
{
    if (result < 0)
        return write_failed(lane, op, (int)result);
    if (lane->transfer->transform != NULL)
        return transform_written(lane, result);
    if (op->flags & MSG_ZEROCOPY && result > 0 && route_registry[lane->iov_route[0]]->lends == LOANS_OF_SOCKET)
        lane_lend(lane, op, result);
    written(lane, op, (size_t)result);
    return (size_t)result == op->length;
}

static int complete_op(struct lane *lane, const struct op *op, ssize_t result)
{
    if (result == -EAGAIN && op_blocker(op) != OP_BLOCKS_ON_NEITHER)
        return would_block(lane, op);
    if (op->kind == OP_CORK) {
        if (result < 0) /* without it more packets leave, no byte is wrong */
            lane->cork = false;
        lane->sink->socket.corked = result == 0 && op->length != 0;
        return 1;
    }
    if (op->kind == OP_HOLE)
        return hole_made(lane, result);
    if (op->kind == OP_WRITE || op->kind == OP_DATAGRAMS)
        return write_completed(lane, op, result);
    if (lane->route == NULL) /* a linked body's first op: its segment has just become the current one */
        lane->route = choose(lane, lane->segment, lane->tried);
    if (lane->route == NULL)
        return transfer_fail(lane, -EOPNOTSUPP, "plan", "no route carries this pair of ends", NULL);
    enum sluice_route route = lane->route->id;
    bool shared = lane->transfer->fanout != NULL && fanout_owns(lane, op);
    int outcome = shared ? fanout_complete(lane, op, result) : lane->route->complete(lane, op, result);
    if (result > 0)
        receipt_count(&lane->receipt, route)->calls++;
    if (outcome == ROUTE_SOURCE_ENDED) {
        const struct sluice_segment *segment = lane_segment(lane, lane->segment);
        if (segment->kind == SLUICE_SEGMENT_FILE)
            return file_gave_nothing(lane, op_name(op));
        if (end_broke(segment->end) < 0)
            return source_broke(lane, op_name(op));
        stream_ended(lane);
        return 0;
    }
    if (outcome == ROUTE_NOT_NOW)
        return set_aside(lane, op->length, result < 0 ? (int)-result : 0, lane->route->refusal_reason);
    if (outcome < 0)
        return shared ? outcome : refused_or_failed(lane, outcome, op_name(op));
    return result >= 0 && (size_t)result == op->length;
}

/* An op failed with EIO or EINVAL. If it read from kernel TLS: that means the stream's end (0), or another error. */
static ssize_t result_of_tls(struct lane *lane, const struct op *op, ssize_t result, const char **ret_reason)
{
    if (lane->segment == lane->transfer->segment_count)
        return result;
    const struct sluice_segment *segment = lane_segment(lane, lane->segment);
    if (segment->kind != SLUICE_SEGMENT_STREAM || !end_receives_tls(segment->end) || op->in != segment->end->fd)
        return result;
    return tls_explain(segment->end, (int)result, &lane->receipt.system_calls, ret_reason);
}

int lane_complete(struct lane *lane, const struct op *op, ssize_t result)
{
    const char *reason = NULL;
    if (result == -EIO || result == -EINVAL)
        result = result_of_tls(lane, op, result, &reason);
    int outcome = complete_op(lane, op, result);
    if (outcome < 0 && result < 0 && result == lane->transfer->error.code) {
        lane->transfer->error.side = op_side(op);
        if (reason != NULL)
            lane->transfer->error.reason = reason;
    }
    return outcome;
}

/* ---- Beginning and end -------------------------------------------------------------------------------------- */

static int reject(struct sluice_error *ret_error, int code, enum sluice_route route, const char *reason,
                  const char *remedy)
{
    if (ret_error != NULL)
        *ret_error = (struct sluice_error){
            .code = code, .route = route, .operation = "plan", .reason = reason, .remedy = remedy};
    return code;
}

static const char *fault_in_segment(const struct sluice_segment *segment)
{
    switch (segment->kind) {
    case SLUICE_SEGMENT_MEMORY:
        if (segment->length == SLUICE_UNTIL_END || (segment->data == NULL && segment->length > 0))
            return "a memory segment needs data and its exact length";
        if (segment->release != NULL && segment->flags & SLUICE_SEGMENT_BORROWED)
            return "borrowed memory has no release callback";
        return NULL;
    case SLUICE_SEGMENT_FILE:
        if (segment->end == NULL || !end_is_file(segment->end))
            return "a file segment needs an end that is a file or block device";
        if (segment->offset > INT64_MAX ||
            (segment->length != SLUICE_UNTIL_END && segment->length > INT64_MAX - segment->offset))
            return "a file segment lies beyond what a file offset can say";
        return NULL;
    case SLUICE_SEGMENT_STREAM:
        if (segment->end == NULL || segment->end->kind == SLUICE_END_MEMORY)
            return "a stream segment needs an end that can be read";
        return NULL;
    }
    return "a segment of no known kind";
}

static const char *fault_in_quiet(const struct sluice_transfer_options *options)
{
    const struct sluice_segment *last =
        options->segment_count > 0 ? &options->segments[options->segment_count - 1] : NULL;
    if (options->sink_count > 1 || options->transform != NULL)
        return "options.quiet_below is for one sink, and no transform";
    if (last == NULL || last->kind != SLUICE_SEGMENT_STREAM || last->length != SLUICE_UNTIL_END)
        return "options.quiet_below is about a last segment that is a stream of SLUICE_UNTIL_END";
    return NULL;
}

static const char *fault_in_options(const struct sluice_transfer_options *options)
{
    if (options->size < sizeof *options)
        return "options.size is smaller than the struct";
    if (options->sink_count == 0 || options->sinks == NULL)
        return "a transfer needs a sink";
    if (options->sink_count > SLUICE_SINKS_MAX)
        return "more sinks than SLUICE_SINKS_MAX";
    if (options->segment_count > 0 && options->segments == NULL)
        return "segments are missing";
    if (options->transform != NULL && options->sink_count > 1)
        return "a transform has one sink";
    if ((unsigned)options->route >= SLUICE_ROUTE_COUNT)
        return "no such route";
    if (options->datagram_size > DATAGRAM_BYTES_MAX)
        return "options.datagram_size is larger than a datagram can be (65507)";
    if ((unsigned)options->policy > SLUICE_FANOUT_FIRST)
        return "no such policy";
    for (size_t i = 0; i < options->sink_count; i++)
        if (options->sinks[i] == NULL)
            return "a sink is missing";
    for (size_t i = 0; i < options->segment_count; i++) {
        const char *fault = fault_in_segment(&options->segments[i]);
        if (fault != NULL)
            return fault;
    }
    return options->quiet_below != 0 ? fault_in_quiet(options) : NULL;
}

/* A forced route must be able to carry every segment that is not memory; and without one, some route must. */
static int check_routes(const struct sluice_transfer *transfer, struct sluice_error *ret_error)
{
    const struct route *forced = route_registry[transfer->forced];
    const char *not_memory = "memory is sent by copy";
    bool serves = forced == NULL || transfer->forced == SLUICE_ROUTE_COPY || transfer->segment_count == 0;
    for (uint32_t i = 0; i < transfer->lane_count; i++) {
        if (forced == NULL && transfer->lanes[i].sink->kind != SLUICE_END_DATAGRAM)
            continue; /* copy serves every other sink */
        for (uint32_t s = 0; s < transfer->segment_count; s++) {
            const char *reason = NULL;
            struct pair pair = pair_of(&transfer->lanes[i], s);
            if (transfer->segments[s].kind == SLUICE_SEGMENT_MEMORY) { /* copy's, unless the route wants it */
                serves |= forced != NULL && forced->assess(&pair, &reason) != SLUICE_NEVER;
                if (forced != NULL && forced->carries_memory)
                    not_memory = reason;
                continue;
            }
            if (forced != NULL && forced->assess(&pair, &reason) == SLUICE_NEVER)
                return reject(ret_error, -EOPNOTSUPP, transfer->forced, reason,
                              "Leave the choice of route to sluice (--route auto).");
            if (forced == NULL && plan_choose(&pair, 0) == NULL)
                return reject(ret_error, -EOPNOTSUPP, SLUICE_ROUTE_AUTO, "no route carries this pair of ends", NULL);
            serves = true;
        }
    }
    if (!serves)
        return reject(ret_error, -EOPNOTSUPP, transfer->forced, not_memory, "Use --route copy or auto.");
    return 0;
}

/* The page cache is left out by way of a second descriptor, whose file position is another: where the sink's position
 * says where to write, it is asked for now, and set at the end. */
static void take_position(struct lane *lane)
{
    struct sluice_end *sink = lane->sink;
    if (lane->sink_offset != SLUICE_APPEND || sink->append ||
        !(sink->past_cache || lane->transfer->forced == SLUICE_ROUTE_DIRECT))
        return;
    lane->receipt.system_calls++;
    off_t position = sys.lseek(sink->fd, 0, SEEK_CUR);
    if (position < 0)
        return;
    lane->sink_offset = (uint64_t)position;
    lane->positioned = true;
}

static void give_position_back(struct lane *lane)
{
    if (lane->positioned) {
        lane->receipt.system_calls++;
        sys.lseek(lane->sink->fd, (off_t)lane->sink_offset, SEEK_SET);
    }
    lane->positioned = false;
}

static void lane_begin(struct lane *lane, struct sluice_transfer *transfer, struct sluice_end *sink, uint64_t offset)
{
    /* Not the iovecs: they are filled before use, and clearing them would cost more than the rest. */
    lane->transfer = transfer;
    lane->sink = sink;
    lane->wait = LANE_RUNS;
    lane->moved_in_turn = 0;
    lane->sink_offset = end_is_file(sink) ? offset : SLUICE_APPEND;
    lane->route = NULL;
    lane->started = lane->cork = lane->paced = lane->fills_holes = lane->positioned = lane->alone = false;
    lane->more_turn = transfer->fanout != NULL ? fanout_more_turn(lane) : 0;
    lane->sampled = false;
    lane->unproven = 0;
    lane->stage = (struct stage){.data = NULL};
    lane->pipe = (struct pipe){.read = -1, .write = -1};
    lane->in_pipe = 0;
    lane->pieces_max = 0;
    lane->plans_memory = lane->singly = false;
    lane->aside_reason = NULL;
    lane->window = NULL;
    lane->ask = false;
    receipt_clear(&lane->receipt);
    lane->receipt.transfers = 1;
    if (end_is_file(sink))
        take_position(lane);
    enter_segment(lane, 0);
}

static void free_arrays(struct sluice_transfer *transfer)
{
    if (transfer->segments != transfer->inline_segments)
        free(transfer->segments);
    if (transfer->lanes != &transfer->inline_lane)
        free(transfer->lanes);
    if (transfer->releases_due != NULL)
        free(transfer->releases_due);
    if (transfer->transform_state != NULL)
        transform_free(transfer);
    if (transfer->fanout != NULL)
        free(transfer->fanout);
}

static int allocate_arrays(struct sluice_transfer *transfer)
{
    if (transfer->segment_count > INLINE_SEGMENTS) {
        transfer->segments = sys.allocate(transfer->segment_count, sizeof *transfer->segments);
        if (transfer->segments == NULL)
            return -ENOMEM;
    }
    if (transfer->lane_count > 1) {
        transfer->lanes = sys.allocate(transfer->lane_count, sizeof *transfer->lanes);
        if (transfer->lanes == NULL)
            return -ENOMEM;
        if (transfer->segment_count > 0) {
            transfer->releases_due = sys.allocate(transfer->segment_count, sizeof *transfer->releases_due);
            if (transfer->releases_due == NULL)
                return -ENOMEM;
            for (uint32_t i = 0; i < transfer->segment_count; i++)
                transfer->releases_due[i] = transfer->lane_count;
        }
    }
    return transfer->transform != NULL ? transform_begin(transfer) : 0;
}

int transfer_put_before(struct sluice_transfer *transfer, uint32_t segment, void *data, size_t size)
{
    uint32_t count = transfer->segment_count, more = count + 1;
    struct sluice_segment *segments = sys.allocate(more, sizeof *segments);
    uint32_t *due = sys.allocate(more, sizeof *due);
    if (segments == NULL || due == NULL) {
        free(segments);
        free(due);
        return -ENOMEM;
    }
    memcpy(segments, transfer->segments, segment * sizeof *segments);
    memcpy(&segments[segment + 1], &transfer->segments[segment], (count - segment) * sizeof *segments);
    segments[segment] = (struct sluice_segment){.kind = SLUICE_SEGMENT_MEMORY, .data = data, .length = size};
    if (segments[segment + 1].length != SLUICE_UNTIL_END)
        segments[segment + 1].length -= size;
    for (uint32_t i = 0; i < more; i++)
        due[i] = transfer->lane_count;
    if (transfer->segments != transfer->inline_segments)
        free(transfer->segments);
    free(transfer->releases_due);
    transfer->segments = segments;
    transfer->releases_due = due;
    transfer->segment_count = more;
    transfer->fanout->received = data;
    receipt_enter_shared_read(&transfer->lanes[0].receipt, size);
    for (uint32_t i = 0; i < transfer->lane_count; i++)
        enter_segment(&transfer->lanes[i], 0);
    return 0;
}

int transfer_begin(struct sluice_transfer *transfer, const struct sluice_transfer_options *options,
                   struct sluice_error *ret_error)
{
    const char *fault = fault_in_options(options);
    if (fault != NULL)
        return reject(ret_error, -EINVAL, SLUICE_ROUTE_AUTO, fault, NULL);
    memset(transfer, 0, offsetof(struct sluice_transfer, inline_segments));
    transfer->segment_count = (uint32_t)options->segment_count;
    transfer->lane_count = (uint32_t)options->sink_count;
    transfer->segments = transfer->inline_segments;
    transfer->lanes = &transfer->inline_lane;
    transfer->forced = options->route;
    transfer->flags = options->flags;
    transfer->blocking = options->flags & TRANSFER_BLOCKING;
    transfer->transform = options->transform;
    transfer->datagram_size = (uint16_t)options->datagram_size;
    transfer->settled = options->settled;
    transfer->settled_context = options->settled_context;
    transfer->turn_size = options->turn != 0 ? options->turn : DEFAULT_TURN;
    transfer->quiet_below = options->quiet_below;
    int result = allocate_arrays(transfer);
    if (result == 0 && transfer->lane_count > 1)
        result = fanout_begin(transfer, options);
    if (result < 0) {
        free_arrays(transfer);
        return reject(ret_error, result, SLUICE_ROUTE_AUTO, "no memory for the transfer", NULL);
    }
    if (options->segment_count > 0)
        memcpy(transfer->segments, options->segments, options->segment_count * sizeof *transfer->segments);
    for (uint32_t i = 0; i < transfer->lane_count; i++)
        lane_begin(&transfer->lanes[i], transfer, options->sinks[i], options->sink_offset);
    result = check_routes(transfer, ret_error);
    if (result < 0)
        free_arrays(transfer);
    return result;
}

void lane_settle(struct lane *lane)
{
    leave_route(lane);
    give_position_back(lane);
    pipe_put(&lane->pipe, lane->in_pipe);
    lane->in_pipe = 0;
    stage_free(&lane->stage);
}

void transfer_settle(struct sluice_transfer *transfer)
{
    for (uint32_t i = 0; i < transfer->lane_count; i++)
        lane_settle(&transfer->lanes[i]);
    if (transfer->fanout != NULL)
        fanout_settle(transfer);
    /* What is back by now need not be waited for; and notifications that nobody has read, as the transfer was going on,
     * are not announced again. */
    for (uint32_t i = 0; i < transfer->lane_count && transfer->account != NULL; i++)
        if (transfer->lanes[i].sink != NULL && end_has_lent(transfer->lanes[i].sink))
            end_collect_left(transfer->lanes[i].sink, transfer->loop != NULL, &transfer->lanes[i].receipt.system_calls);
    for (uint32_t i = 0; i < transfer->segment_count; i++)
        release_segment(transfer, i);
    if (transfer->account != NULL) {
        account_settle(transfer->account);
        account_drop(transfer->account);
        transfer->account = NULL;
    }
}

void transfer_end(struct sluice_transfer *transfer)
{
    transfer_settle(transfer);
    free_arrays(transfer);
}

void transfer_refuse(const struct sluice_transfer_options *options, struct sluice_receipt *ret_receipts,
                     size_t receipts)
{
    if (ret_receipts != NULL && receipts > 0)
        memset(ret_receipts, 0, receipts * sizeof *ret_receipts);
    if (options->size < sizeof *options || options->segments == NULL)
        return;
    for (size_t i = 0; i < options->segment_count; i++) {
        struct sluice_segment segment = options->segments[i];
        release(&segment);
    }
}

/* ---- Stepping ----------------------------------------------------------------------------------------------- */

/* Returns whether the lane moved, or a negative errno. */
static int run_lane(struct lane *lane)
{
    struct sluice_transfer *transfer = lane->transfer;
    struct op ops[OPS_MAX];
    uint64_t before = lane->receipt.sent;
    uint64_t taken = transfer->fanout != NULL ? transfer->fanout->progress : 0;
    if (lane->sampled)
        crossover_resume(&lane->sample);
    while (transfer->blocking || lane->moved_in_turn < turn_of(lane)) {
        int count = lane_next(lane, ops);
        if (count < 0)
            return count;
        if (count == 0)
            break;
        for (int i = 0; i < count; i++) {
            ssize_t result;
            if (transfer->carrier == NULL) {
                result = op_execute(&ops[i], &lane->receipt.system_calls);
            } else if (!transfer->carrier->carry(transfer->carrier, lane, &ops[i], count - i, &result)) {
                lane->wait = LANE_WAITS_OPS;
                lane->sampled = false; /* what it costs is not this thread's time alone */
                return lane->receipt.sent != before;
            }
            int go_on = lane_complete(lane, &ops[i], result);
            if (go_on < 0)
                return go_on;
            if (go_on == 0)
                break;
        }
    }
    if (lane->sampled) {
        crossover_pause(&lane->sample);
        if (lane->wait == LANE_DONE && lane->tried == 0)
            crossover_finish(&lane->sample);
    }
    return lane->receipt.sent != before || (transfer->fanout != NULL && transfer->fanout->progress != taken);
}

static void add_wait(struct sluice_waits *waits, const struct lane *lane)
{
    struct sluice_wait wait = {0};
    const struct sluice_segment *segment =
        lane->segment < lane->transfer->segment_count ? lane_segment(lane, lane->segment) : NULL;
    switch (lane->wait) {
    case LANE_WAITS_SOURCE:
        wait = (struct sluice_wait){.kind = SLUICE_WAIT_READABLE, .end = segment->end};
        break;
    case LANE_WAITS_SINK:
        wait = (struct sluice_wait){.kind = SLUICE_WAIT_WRITABLE, .end = lane->sink};
        break;
    case LANE_WAITS_PAGES:
        wait = (struct sluice_wait){
            .kind = SLUICE_WAIT_PAGES, .end = segment->end, .offset = lane->wait_offset, .length = lane->wait_length};
        break;
    default:
        return;
    }
    wait.fd = wait.end->fd;
    for (unsigned i = 0; i < waits->count; i++)
        if (waits->wait[i].end == wait.end && waits->wait[i].kind == wait.kind)
            return;
    waits->wait[waits->count++] = wait;
}

int lane_failed(struct lane *lane, int code)
{
    struct sluice_transfer *transfer = lane->transfer;
    const struct sluice_error error = transfer->error;
    if (transfer->fanout == NULL || !transfer->failed)
        return code;
    if (!fanout_is_shadow(lane)) {
        if (error.side == SLUICE_SIDE_SINK)
            fanout_blame(lane, &error);
        return code;
    }
    transfer->failed = false;
    transfer->error = (struct sluice_error){.code = 0};
    return lane_drop(lane, error.code, error.operation, error.reason, error.remedy);
}

/* Every lane goes as far as it can. Returns whether one moved, or a negative errno. */
static int run_lanes(struct sluice_transfer *transfer, bool *ret_running, bool *ret_done)
{
    bool moved = false;
    *ret_running = false;
    *ret_done = true;
    for (uint32_t i = 0; i < transfer->lane_count; i++) {
        struct lane *lane = &transfer->lanes[i];
        if (lane->wait == LANE_RUNS || lane->wait == LANE_TAKES) {
            int result = run_lane(lane);
            if (result < 0) {
                result = lane_failed(lane, result);
                if (result < 0)
                    return result;
                result = 1; /* others need not wait for it any more */
            }
            moved |= result > 0;
        }
        *ret_done &= lane->wait == LANE_DONE;
        *ret_running |= lane->wait == LANE_RUNS || lane->wait == LANE_TAKES;
    }
    return moved;
}

/* What one lane did may let others go on; and when none moves, those that are in their way may have to go. moved: what
 * run_lanes returned. */
static int go_on_together(struct sluice_transfer *transfer, int moved, bool *running, bool *done)
{
    transfer->fanout->deadline = 0;
    while (moved >= 0 && !*done) {
        if (moved == 0 || *running) {
            moved = fanout_press(transfer);
            if (moved <= 0)
                return moved;
        }
        fanout_wake(transfer);
        moved = run_lanes(transfer, running, done);
    }
    return moved;
}

int transfer_step(struct sluice_transfer *transfer, struct sluice_waits *ret_waits)
{
    if (transfer->failed)
        return transfer->error.code;
    for (uint32_t i = 0; i < transfer->lane_count; i++) {
        struct lane *lane = &transfer->lanes[i];
        lane->moved_in_turn = 0;
        if (lane->wait < LANE_WAITS_OPS)
            lane->wait = LANE_RUNS;
    }
    bool running, done;
    int moved = run_lanes(transfer, &running, &done);
    if (transfer->fanout != NULL)
        moved = go_on_together(transfer, moved, &running, &done);
    if (moved < 0)
        return moved;
    if (done)
        return SLUICE_STEP_DONE;
    int kept = keep_borrowed(transfer);
    if (kept < 0)
        return kept;
    if (running)
        return SLUICE_STEP_YIELD;
    ret_waits->count = 0;
    ret_waits->timeout = transfer->fanout != NULL ? fanout_timeout(transfer->fanout) : -1;
    for (uint32_t i = 0; i < transfer->lane_count; i++)
        add_wait(ret_waits, &transfer->lanes[i]);
    return SLUICE_STEP_WAIT;
}
