/* SPDX-License-Identifier: MIT
 *
 * What every loop shares (loop.c), and what each does in its own way (struct loop_kind): a table chosen once, in
 * sluice_loop_new. Nothing that a small response needs goes through it, except once per turn.
 *
 * Callbacks may do anything to any object of the loop, closing included. So nothing is freed while events of the same
 * turn may still point to it: forgotten objects go to a graveyard that is cleared at the end of the turn.
 */
#ifndef SLUICE_LOOP_LOOP_H
#define SLUICE_LOOP_LOOP_H

#include "../core/transfer.h"
#include "helpers.h"
#include "timers.h"
#include <signal.h>

#define RECEIVE_MAX (16u << 10)

/* Whatever the kernel can report on begins with this, in memory of its own from sys.allocate. */
struct source {
    enum { SOURCE_END, SOURCE_LISTENER, SOURCE_CONNECT, SOURCE_WATCH } kind;
    struct source *next_dead;
    unsigned holds; /* reports still to come, on a loop that is told when there will be no more */
    bool dead;
};

/* What a loop keeps with an end. */
struct loop_end {
    struct source source;
    struct sluice_loop *loop;
    struct sluice_end *end;
    sluice_receive_fn *receive;
    void *receive_context;
    uint32_t receive_max;
    bool readable; /* there may be something to receive, or the end of it */
    bool hangup;   /* the peer has closed its sending side, or the connection broke */
    bool broken;
    bool paused, receive_ended;
    bool ready; /* in loop->ready */
    struct loop_end *next_ready, **previous_ready;
    struct sluice_transfer *reader, *writer;               /* have waited for this end */
    struct loop_end *next_lingering, **previous_lingering; /* forgotten, but memory is still lent to it; NULL: not so */
};

struct sluice_listener {
    struct source source;
    struct sluice_loop *loop;
    int fd;
    bool paused, ended;
    bool ahead;                /* the kernel may accept before anybody has looked */
    struct sluice_timer retry; /* of a resume that failed */
    sluice_accept_fn *accept;
    void *context;
};

struct sluice_connect {
    struct source source;
    struct sluice_loop *loop;
    int fd;
    sluice_connect_fn *connected;
    void *context;
};

struct sluice_watch {
    struct source source;
    struct sluice_loop *loop;
    int fd;
    void (*ready)(void *context);
    void *context;
};

struct loop_kind {
    /* Of its struct sluice_loop, loop_end and sluice_listener, which begin with those of this header. */
    size_t loop_size, end_size, listener_size;

    /* Could a loop with these options be had here? Returns 0 or a negative errno, and why. NULL: always. */
    int (*probe)(const struct sluice_loop_options *options, struct sluice_error *ret_error);
    int (*open)(struct sluice_loop *loop, const struct sluice_loop_options *options);
    void (*close)(struct sluice_loop *loop); /* also after open failed */

    /* NULL, or: the loop is about to end, and memory is still lent by it to ends that were forgotten. What is not back
     * when this returns never will be. */
    void (*linger)(struct sluice_loop *loop);

    /* Sleep until something happens, at most timeout milliseconds (-1: without end), begin a turn (loop_begin_turn) and
     * handle what happened. Returns 0 or a negative errno. */
    int (*turn)(struct sluice_loop *loop, int timeout);

    /* An end becomes known. Returns 0 or a negative errno: then its state is freed. */
    int (*meet)(struct loop_end *state);
    /* The end is forgotten, and has no memory on loan any more. It may be closed on return; its state goes to the
     * graveyard after it. */
    void (*part)(struct loop_end *state);
    /* state->receive is to be called from now on: it was set, or resumed. */
    int (*receive)(struct loop_end *state);
    /* One call of the receiver; state was marked ready. */
    void (*receive_some)(struct loop_end *state);
    /* NULL, or: a transfer is about to read from the end, whose receiver is paused. Stop receiving for good; what was
     * received and not yet given to the receiver is the beginning of what the transfer reads: at most size bytes of it
     * go into data. Returns how many, or a negative errno. */
    ssize_t (*hand_back)(struct loop_end *state, char *data, size_t size);
    /* Queue state->reader or state->writer when the end can be read or written. fresh: the end has just become known.
     * Returns 0 or a negative errno. */
    int (*await)(struct loop_end *state, enum sluice_wait_kind kind, bool fresh);
    /* A transfer that waited ends: what the kernel has of it is taken back before this returns. */
    void (*withdraw)(struct sluice_loop *loop, struct sluice_transfer *transfer);

    int (*listen)(struct sluice_listener *listener);
    void (*unlisten)(struct sluice_listener *listener, bool for_good); /* for good: also when paused already */

    /* Call loop_connect_ended when fd, which is connecting, can be written or is broken; once. */
    int (*await_connect)(struct sluice_connect *connect);
    void (*forget_connect)(struct sluice_connect *connect);

    /* Report edges of readability of fd. */
    int (*watch)(struct sluice_watch *watch);
    void (*unwatch)(struct sluice_watch *watch);
};

extern const struct loop_kind loop_epoll, loop_uring;
extern size_t uring_stash_size;  /* reports that a ring has room to put aside; tests lessen it */
extern unsigned uring_linger_ms; /* that a loop which ends waits for memory that is lent; tests shorten it */

struct sluice_loop {
    const struct loop_kind *kind;
    struct op_carrier *carrier; /* of all transfers; NULL: none */
    int wake;                   /* an eventfd of the helpers' */
    int alarm; /* a timerfd: a timeout of epoll_wait would start and stop a kernel timer in every turn, for 1 us */
    uint64_t alarm_slot; /* of the timer wheel, for which it is set; UINT64_MAX: it is not */
    int reserve;         /* given up for a moment to accept and close a connection when descriptors run out */
    volatile sig_atomic_t stop;
    uint64_t now, turn;
    bool running; /* so that now is kept up to date */
    struct timers timers;
    struct helpers *helpers;
    struct sluice_watch *helper_watch, *alarm_watch;
    struct source *dead;
    struct loop_end *ready; /* receivers with data left over from their last call */
    struct loop_end *lingering;
    struct behind *behind;                         /* pages to be dropped: pages.c */
    struct sluice_transfer *queued, **queued_last; /* transfers to be stepped, the oldest first */
    size_t queued_count;
    size_t heavy, heavy_before; /* steps of at least SHORTEST_TURN: in this turn, in the one before */
    uint64_t round;             /* counts how often the queue was gone through */
    struct sluice_transfer *idle;
    unsigned idle_count;
    void (*each_turn)(void *context);
    void *each_turn_context;
    sigset_t mask_before;
};

/* The kernel has been asked what happened: look at the clock. */
void loop_begin_turn(struct sluice_loop *loop);

void loop_bury(struct sluice_loop *loop, struct source *source);

/* There is, or is not, something to give to the end's receiver when this turn's events are handled. */
void loop_mark_ready(struct loop_end *state);
void loop_unmark_ready(struct loop_end *state);
/* The receiver's last call: 0 or a negative errno. */
void loop_end_receiving(struct loop_end *state, ssize_t how);
/* How, if receiving ended with this: kernel TLS says EIO for the end of the stream, too. */
ssize_t loop_how_it_ended(const struct sluice_end *end, ssize_t how);

/* Does a transfer wait for something to read from the end? It may have done so before, and wait for its sink now. */
static inline bool loop_waits_to_read(const struct loop_end *state)
{
    const struct sluice_transfer *reader = state->reader;
    for (uint32_t i = 0; reader != NULL && i < reader->lane_count; i++)
        if (reader->lanes[i].wait == LANE_WAITS_SOURCE)
            return true;
    return false;
}

/* Step it when this turn's events are handled. */
void loop_queue_transfer(struct sluice_loop *loop, struct sluice_transfer *transfer);

/* What a connection broke of: a negative errno, which the socket tells once. */
int loop_socket_error(const struct sluice_end *end);

/* The connecting socket is connected or has failed, and is not watched any more. error: a negative errno when it could
 * not be watched; else 0. */
void loop_connect_ended(struct sluice_connect *connect, int error);

/* Somebody may wait: accept all who do, unless they are very many. */
void loop_accept_some(struct sluice_listener *listener);

/* Accepting failed with this errno. Returns true when the next connection may be asked for at once. */
bool loop_accept_failed(struct sluice_listener *listener, int error);

#endif
