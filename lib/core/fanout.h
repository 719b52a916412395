/* SPDX-License-Identifier: MIT
 *
 * One stream into several sinks. fanout.c opens with the rules.
 */
#ifndef SLUICE_CORE_FANOUT_H
#define SLUICE_CORE_FANOUT_H

#include "transfer.h"

/* A ring of bytes, by their position in the segment. */
struct ring {
    char *data; /* NULL: not yet needed */
    size_t size;
    uint64_t base; /* the position that lies at data[0] */
    uint64_t end;  /* of the last byte in it, + 1; where it begins, its reader knows */
};

struct fanout_lane {
    struct ring ring; /* what was read out of the lane's pipe and not yet written */
    bool pipe_full;
    bool dropped;
    bool told;           /* the caller has been told of its end, and may have closed it */
    uint64_t slow_since; /* milliseconds; 0: it is not in the way of the others. Of those that are behind the first when
                            that has everything: since they moved last */
    uint64_t sent_then;  /* by that lane, at slow_since */
    struct sluice_error error; /* why it was dropped */
};

struct fanout {
    enum sluice_fanout_policy policy;
    size_t window;    /* read at once, at most */
    size_t tolerance; /* a sink that is so far behind is in the way */
    size_t ring_size; /* so far behind one can be: FIRST drops it when more is to be read, not before */
    uint32_t live;    /* lanes that were not dropped */
    uint32_t segment; /* the stream that is shared now; UINT32_MAX: none yet */
    bool by_pipe;     /* the window is `pipe`; else it is `memory` */
    int refused;      /* why it is not the pipe any more: positive errno */
    bool busy;        /* somebody takes from the source at this moment */
    int ended;        /* 1: the source has no more; a negative errno: it failed */
    const char *ended_by;
    struct pipe pipe;
    uint64_t head, tail; /* the pipe holds these; tail: all that was taken from the source */
    struct ring memory;
    void *discarded; /* a buffer for bytes that only a dropped sink still had to get */
    void *received;  /* NULL, or a buffer: the loop had received the stream's first bytes already */
    uint64_t progress;
    struct sluice_error *errors;
    sluice_sink_ended_fn *sink_ended;
    void *sink_context;
    bool telling; /* within sink_ended */
    unsigned patience;
    uint64_t deadline;         /* milliseconds: then a sink will have been slow for too long; 0: none waits for one */
    uint64_t (*clock)(void);   /* milliseconds, from 1 on; a test's */
    struct sluice_timer timer; /* the loop's */
    struct sluice_loop *loop;
    struct fanout_lane lanes[];
};

/* From fanout_step: the shared source has ended before its declared length. */
#define FANOUT_SHORT (-0x10000)

int fanout_begin(struct sluice_transfer *transfer, const struct sluice_transfer_options *options);
void fanout_settle(struct sluice_transfer *transfer);

/* The lane has ended with this error; the others go on. */
void fanout_forget(struct lane *lane, const struct sluice_error *error);

/* The lane's sink is who failed: for sink_errors. */
void fanout_blame(const struct lane *lane, const struct sluice_error *error);

/* A lane of SLUICE_FANOUT_FIRST that must not do the first any harm? Before lane_begin as well. */
bool fanout_is_shadow(const struct lane *lane);
/* So much more than others such a lane may move in a turn, so that the first need not wait for its next one. */
uint64_t fanout_more_turn(const struct lane *lane);

/* Nothing moves any more. Sinks that are full and keep others waiting have a while to catch up; then they are given up,
 * unless the policy is to wait for them. Returns 1 if one was: then others may go on; 0; or a negative errno. */
int fanout_press(struct sluice_transfer *transfer);

/* Has a sink ended that the caller is still to be told of? And tell it. but_lent: not yet of one that memory is lent
 * to. */
bool fanout_has_news(const struct sluice_transfer *transfer);
void fanout_tell(struct sluice_transfer *transfer, bool but_lent);

/* The lane's sink can take bytes of the shared stream, and none lie in memory for it: what is to be done next? Returns
 * ops; 0 when the lane waits; or a negative errno after the transfer failed, or FANOUT_SHORT. */
int fanout_step(struct lane *lane, struct op *ops);
/* The lane's sink is full (LANE_TAKES): may it take from the window all the same, so that the others can go on? */
int fanout_take(struct lane *lane, struct op *ops);
/* One of these ops ended. As lane_complete. */
int fanout_complete(struct lane *lane, const struct op *op, ssize_t result);
/* Is it one of them, rather than the route's? */
bool fanout_owns(const struct lane *lane, const struct op *op);
/* An op of the lane's has to wait. */
void fanout_would_block(struct lane *lane, const struct op *op);

/* Bytes at this position that lie in memory for the lane. */
ssize_t fanout_expose(struct lane *lane, uint64_t at, struct iovec *ret_piece);

/* For the routes that deliver: the pipe that holds the lane's next bytes, and how many; and that some left it. */
int fanout_outlet(const struct lane *lane, size_t *ret_length);
void fanout_left(struct lane *lane, const struct op *op, size_t bytes);
/* Copy reads them into the lane's ring, or right into a sink in memory. As route->step. */
int fanout_read_outlet(struct lane *lane, struct op *ops);
/* Returns true if the bytes have reached the sink with that. */
bool fanout_was_read(struct lane *lane, const struct op *op, size_t bytes);

/* What the lane has of the shared stream was read once for all. */
bool fanout_is_shared_read(const struct lane *lane);

/* Milliseconds from now to the deadline; -1: there is none. */
int fanout_timeout(const struct fanout *fanout);

/* A lane moved: which others may go on? */
void fanout_wake(struct sluice_transfer *transfer);

#endif
