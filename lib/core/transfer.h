/* SPDX-License-Identifier: MIT
 *
 * The inside of a transfer, for routes and loops. transfer.c opens with the rules.
 */
#ifndef SLUICE_CORE_TRANSFER_H
#define SLUICE_CORE_TRANSFER_H

#include "crossover.h"
#include "end.h"
#include "op.h"
#include "pipes.h"
#include "pool.h"
#include "route.h"

/* Bytes of a source, read into memory and not yet written: [begin, end) are positions in the segment. */
struct stage {
    char *data; /* BUFFER_SIZE bytes; NULL until needed */
    uint32_t segment;
    uint64_t begin, end;
    size_t lead;       /* bytes in data before them, which O_DIRECT read for the sake of whole blocks */
    uint8_t route;     /* enum sluice_route, that read them; tcp_receive: they lie in the lane's window instead */
    bool source_ended; /* nothing will follow what is staged */
};

/* From LANE_WAITS_OPS on a step does not touch the lane. */
enum lane_wait {
    LANE_RUNS,
    LANE_TAKES, /* its sink is full, but the others of a fan-out may wait for it to take its share of the stream */
    LANE_WAITS_SOURCE,
    LANE_WAITS_SINK,
    LANE_WAITS_PAGES,
    LANE_WAITS_OTHERS,
    LANE_WAITS_OPS,
    LANE_DONE
};

/* One sink's way through the source. */
struct lane {
    struct sluice_transfer *transfer;
    struct sluice_end *sink; /* NULL once the caller was told that it needs nothing more */
    enum lane_wait wait;
    uint32_t segment; /* the next byte to deliver: position `at` of this segment */
    uint64_t at;
    uint64_t ends_at; /* of the segment: its length, or less once the source turned out shorter */
    uint64_t moved_in_turn;
    uint64_t more_turn;        /* than others have: fanout_more_turn */
    size_t limit;              /* how much of a file the next op may ask for: what is in memory, what the turn allows */
    uint64_t sink_offset;      /* the next byte's place in a file sink */
    const struct route *route; /* of the current segment; NULL: to be chosen */
    uint32_t tried;            /* bit per route that was left, for this segment */
    uint32_t aside;            /* of tried, those to be asked again from aside_until on; 0: none */
    bool shrinking;            /* a fault showed that the segment's file is: ask its size before every op */
    uint8_t pieces_max;        /* of the next write, after one of several faulted; 0: as many as there are */
    bool started;
    bool cork;         /* hold partial segments back while this transfer runs */
    bool paced;        /* much goes into a socket that paces: by short turns */
    bool singly;       /* datagrams leave one by one */
    bool plans_memory; /* memory segments may be lent */
    bool sampled;      /* what the last segment costs is being measured */
    bool known_data;   /* the current segment's file has data up to known_to, or a hole */
    bool positioned;   /* sink_offset began as its file position, to which it is given back */
    bool fills_holes;  /* the sink makes none */
    bool alone;        /* of the sinks of a fan-out the only one left: it goes on as that of a transfer with one does */
    uint64_t known_to;
    uint64_t wait_offset, wait_length; /* LANE_WAITS_PAGES */
    uint64_t aside_until;              /* position in the segment */
    const char *aside_reason;          /* that the receipt has been told last */

    struct stage stage; /* not of a stream that several sinks share: fanout.h */
    struct pipe pipe;   /* read -1: none */
    size_t in_pipe;     /* bytes of the source in it, next to deliver after what is staged */
    const char *window; /* a mapping of [window_offset, + window_size) of the current segment's file; or of a socket */
    size_t window_size;
    uint64_t window_offset;
    struct received received; /* from a socket, into the window */
    bool ask;                 /* with recv what the matter is: nothing could be mapped */

    uint64_t unproven_from, unproven; /* bytes in the sink since the route began, of which only its extents will tell
                                         whether they were copied */

    struct iovec iov[OP_IOV_MAX];
    uint8_t iov_route[OP_IOV_MAX];
    struct crossover_sample sample;
    void *under_way; /* the carrier's, while the lane waits for ops */
    struct sluice_receipt receipt;
};

#define INLINE_SEGMENTS 4

struct sluice_transfer {
    uint32_t segment_count, lane_count;
    struct sluice_segment *segments; /* inline_segments, or allocated */
    struct lane *lanes;              /* inline_lane, or allocated */
    uint32_t *releases_due;          /* lanes that still need a memory segment; NULL with one lane */
    struct loan_account *account;    /* of memory that was lent; NULL: none ever was */
    enum sluice_route forced;
    unsigned flags;
    bool blocking; /* sluice_transfer_run: never yields */
    bool failed;
    const struct sluice_transform *transform;
    struct transform_state *transform_state;
    uint64_t turn_size;
    uint64_t quiet_below, silent_at; /* silent_at: position in the last segment, whose stream had nothing more then */
    uint64_t loop_now, loop_turn;    /* 0 outside a loop */
    struct fanout *fanout;           /* NULL with one lane */
    struct sluice_error error;
    uint16_t datagram_size; /* 0: a segment is one */
    sluice_settled_fn *settled;
    void *settled_context;
    const enum sluice_route *order; /* tests: the routes to try, in this order; ends with AUTO */
    struct op_carrier *carrier;     /* NULL: ops are carried out at once, by op_execute. With one lane only: those of
                                       several share what they deliver, and wait for each other */

    /* the loop's */
    struct sluice_loop *loop;                                       /* NULL: there is none */
    int (*watch)(struct sluice_loop *loop, struct sluice_end *end); /* a sink lent to must be watched */
    void *loop_context;
    sluice_transfer_done_fn *done;
    void *done_context;
    struct sluice_transfer *next, **previous; /* in the loop's list of transfers to be stepped */
    bool queued, waits_pages, waited;
    bool kept;             /* of memory that was borrowed, what was left has been copied */
    uint64_t round;        /* of the loop's queue in which it was queued */
    uint64_t ahead_to;     /* how far a file that was not in memory has been asked for; 0: it was */
    struct behind *behind; /* pages of a file that are to be dropped again (loop/pages.c); NULL: none */
    struct sluice_segment inline_segments[INLINE_SEGMENTS];
    struct lane inline_lane; /* last: clearing stops before it */
};

/* ---- For routes --------------------------------------------------------------------------------------------- */

static inline const struct sluice_segment *lane_segment(const struct lane *lane, uint32_t segment)
{
    return &lane->transfer->segments[segment];
}

/* Is this segment a stream that is read once for several sinks? */
static inline bool lane_shares(const struct lane *lane, const struct sluice_segment *segment)
{
    return lane->transfer->fanout != NULL && segment->kind == SLUICE_SEGMENT_STREAM && !lane->alone;
}

/* Bytes of the segment from position `at` on, at most limit. */
static inline size_t lane_left(const struct lane *lane, uint32_t segment, uint64_t at, size_t limit)
{
    uint64_t left = (segment == lane->segment ? lane->ends_at : lane_segment(lane, segment)->length) - at;
    return left < limit ? (size_t)left : limit;
}

/* Where in a file sink the next byte goes; OP_NO_OFFSET for others and for appending. */
static inline off_t lane_out_offset(const struct lane *lane)
{
    return end_is_file(lane->sink) && lane->sink_offset != SLUICE_APPEND ? (off_t)lane->sink_offset : OP_NO_OFFSET;
}

/* The sink's descriptor for what goes through memory. A second one has a file position of its own, so that it is none
 * for what is written at the position. */
static inline int lane_sink_fd(struct lane *lane)
{
    struct sluice_end *sink = lane->sink;
    if (sink->direct && (sink->append || lane_out_offset(lane) != OP_NO_OFFSET))
        return end_plain_fd(sink, &lane->receipt.system_calls);
    return sink->fd;
}

/* Where the byte at this position of the segment lies, if it is staged. */
static inline char *lane_staged(const struct lane *lane, uint64_t at)
{
    char *first = lane->stage.route == SLUICE_ROUTE_TCP_RECEIVE ? (char *)lane->window : lane->stage.data;
    return first + lane->stage.lead + (at - lane->stage.begin);
}

/* See that the lane's stage has memory; so many bytes of its segment are left. Returns 0 or -ENOMEM. */
int lane_take_buffer(struct lane *lane, uint64_t left);

/* The sink accepted this many more bytes, carried by this route. Moves the lane on. */
void lane_delivered(struct lane *lane, enum sluice_route route, uint64_t bytes);

/* The same for an op from file to file that may have shared extents. Nobody says so; the file is asked when the route
 * leaves (lane_prove), and until then the bytes are unknown on the receipt. */
void lane_delivered_unproven(struct lane *lane, enum sluice_route route, const struct op *op, uint64_t bytes);
void lane_prove(struct lane *lane, enum sluice_route route);

/* From step() or complete(), which return what this returns: the rest of the segment is nothing for this route. The
 * next one takes it; where this one is forced, copy. */
int lane_leave_rest(struct lane *lane, const char *reason);

/* ---- For loops ---------------------------------------------------------------------------------------------- */

/* Whoever carries ops out in another way than op_execute. */
struct op_carrier {
    /* Carry out the first of these ops, whose successors lane_next linked to it. Returns true with its result, as
     * op_execute; or false: it is under way, alone or with its successors, and the lane waits for it. Then the carrier
     * reports every result to lane_complete, in order, until that does not return 1; sets lane->wait to LANE_RUNS; and
     * steps the transfer. */
    bool (*carry)(struct op_carrier *carrier, struct lane *lane, const struct op *ops, int count, ssize_t *ret_result);
};

/* Fill ops with what is to be done next for one lane. Returns their number; 0: lane->wait says why there is none; or
 * a negative errno after the transfer failed. */
int lane_next(struct lane *lane, struct op *ops);

/* An op ended with this result; EAGAIN included. Returns 1 if the linked op after it may be carried out, 0 if lane_next
 * has to be asked again, or a negative errno after the transfer failed. */
int lane_complete(struct lane *lane, const struct op *op, ssize_t result);

/* The transfer failed, with this negative errno, by what one lane did. If only the first of its sinks counts, and this
 * is another, that lane alone ends. Returns 0 then, else code. For whoever carries out the ops of several lanes. */
int lane_failed(struct lane *lane, int code);

/* From sluice_transfer_run, in options.flags: blocks, and waits for its loans. */
#define TRANSFER_BLOCKING (1u << 31)
/* From a loop that is a ring. */
#define TRANSFER_ON_RING (1u << 30)

/* Prepare memory that was zeroed when it was new; after transfer_end it may be prepared again. Takes options as
 * sluice_transfer_new. */
int transfer_begin(struct sluice_transfer *transfer, const struct sluice_transfer_options *options,
                   struct sluice_error *ret_error);
/* A transfer that the caller has handed over could not begin: its memory segments are released all the same, and its
 * receipts (NULL: none) say that nothing was sent. */
void transfer_refuse(const struct sluice_transfer_options *options, struct sluice_receipt *ret_receipts,
                     size_t receipts);
/* Give back what it holds and release its memory segments; its ends are not touched again. Receipt and error stay. */
void transfer_settle(struct sluice_transfer *transfer);
/* Settle, and free everything but the struct itself. */
void transfer_end(struct sluice_transfer *transfer);

/* Is this the first step of a transfer with memory that is the caller's again after it? Until what is left of it has
 * been copied, no op may be under way. */
bool transfer_borrows(const struct sluice_transfer *transfer);

/* The lane's stream has nothing now, and all that it brought was delivered, as more is not taken before: is that a
 * reason to end (quiet_below)? If it is not, note that it has nothing. */
bool lane_is_quiet(const struct lane *lane);
void lane_note_silence(struct lane *lane);

/* How much a helper reads at once of a file that is not in memory. */
#define PAGES_WINDOW (2u << 20)

/* A step with op_execute as the loop: SLUICE_STEP_* or a negative errno. */
int transfer_step(struct sluice_transfer *transfer, struct sluice_waits *ret_waits);

/* Bytes of the stream that is this segment, which the loop has received already: they are a segment of their own,
 * before it. data is the pool's, and given back when the transfer is settled. Of a transfer with several sinks, once,
 * before its first step. Returns 0 or -ENOMEM. */
int transfer_put_before(struct sluice_transfer *transfer, uint32_t segment, void *data, size_t size);

/* For fanout.c: what would carry this segment to the lane's sink; the lane goes on by copy; by whatever carries the
 * rest to one sink; the lane ends with an error of its own (negative: that was the last one, and the transfer failed);
 * it gives back what it holds; and whether an errno is in a list of refusals. */
enum sluice_route lane_would_choose(struct lane *lane, uint32_t segment);
void lane_demote_to_copy(struct lane *lane, int error, const char *reason);
void lane_go_alone(struct lane *lane, const char *reason);
void lane_settle(struct lane *lane);
int lane_drop(struct lane *lane, int code, const char *operation, const char *reason, const char *remedy);
bool errno_in_list(const int *errnos, int error);

/* The remedy and reason go into the transfer's error; returns code. */
int transfer_fail(struct lane *lane, int code, const char *operation, const char *reason, const char *remedy);

#endif
