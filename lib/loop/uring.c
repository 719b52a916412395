/* SPDX-License-Identifier: MIT
 *
 * The loop on io_uring, for Linux 6.1 and newer. Bytes from sockets arrive by multishot receives into provided buffers,
 * connections by multishot accepts where the listener allows it; descriptors that are no sockets are polled by the
 * ring. An op of a transfer that cannot block is carried out at once, as on epoll, so that a small response is on its
 * way when sluice_loop_transfer returns. One that would wait, for its socket or for a disk, is handed to the ring with
 * its linked successors.
 * sendfile and splice are never handed over: the first has no opcode, and the second is given to a worker thread of the
 * kernel every time, which costs two switches and saves none; for them the ring waits until the descriptor is ready.
 *
 * What the kernel may still report on is not freed: every request raises holds of what its user data points to, and its
 * last report lowers it. Where a function must not return before the kernel has let go of something (forgetting an end,
 * cancelling a transfer), it cancels and waits (settle); reports on other things that come meanwhile are stashed, and
 * handled in their order in the next turn.
 *
 * The rings are used without liburing: it is a few dozen lines, every system call goes through the seam (core/sys.h),
 * and there is one library less to have. What is newer than the kernel headers of Debian 12 is written out here.
 */
#include "../base/list.h"
#include "../core/sys.h"
#include "loop.h"
#include "uring_files.h"
#include "uring_memory.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/sock_diag.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

/* Small: the kernel charges them against the user's limit on locked memory, of which some systems leave 64 KiB. Reports
 * that find no room wait in the kernel. */
#define SUBMISSIONS 256
#define COMPLETIONS 1024
#define REPORTS_PER_TURN 1024
/* Provided for receives. They are given back as soon as the receiver was called, so few are in use at a time. */
#define BUFFERS 64
#define BUFFER_GROUP 0
#define RECEIVES_IN_PIECE (BUFFER_SIZE / RECEIVE_MAX)
#define RECEIVE_PIECES (BUFFERS / RECEIVES_IN_PIECE)
#define SQPOLL_IDLE_MS 50 /* so long the kernel's thread looks for submissions after the last one, and burns a core */
#define IDLE_FLIGHTS 64   /* kept for reuse; more are freed */
/* A receive that waits takes 1.8 KB of the kernel's memory more than waiting by epoll, a poll about as much as that
 * (bench/README.md): one that has waited for so long is changed into a poll. */
#define REST_AFTER_MS 2000
#define PROBE_TRIES 100    /* while the kernel has no memory, or a signal comes */
#define RESTS_PER_SLOT 256 /* of the timers: half a millisecond of work at most */

/* What a report is about: the low bits of its user data. The rest points to a struct source. */
enum about {
    ABOUT_NOTHING, /* the user data is 0 */
    ABOUT_RECEIVE,
    ABOUT_READABLE,
    ABOUT_WRITABLE,
    ABOUT_BROKEN,
    ABOUT_ACCEPT,
    ABOUT_CALLERS, /* of a listener: somebody waits, or waited while it was paused */
    ABOUT_CONNECT,
    ABOUT_WATCH,
    ABOUT_OP, /* and three more, for the second to the fourth op of a flight */
    ABOUT_LOAN = ABOUT_OP + OPS_MAX,
    ABOUT_MASK = 15
};
_Static_assert(ABOUT_LOAN<ABOUT_MASK &&_Alignof(max_align_t)> ABOUT_MASK, "user data has room");

/* What came for a receiver that had been paused. */
struct held {
    struct held *next;
    size_t at, length;
    char data[];
};

struct uring_end {
    struct loop_end common;
    bool receiving, cancelling;   /* a multishot receive is under way; it has been cancelled */
    bool asked_read, asked_write; /* a poll is under way */
    bool asked_broken;            /* while paused and not receiving, or while memory is lent to it */
    bool over;                    /* nothing more will come, and the receiver must still be told how it ended */
    bool resting;                 /* silent for long: to be polled instead of received from */
    bool reading;                 /* a flight out of it, of a stream */
    ssize_t how;
    struct uring_file file;
    unsigned writing;  /* flights into it */
    uint32_t heard_at; /* ms of the loop's clock */
    struct list heard; /* in ring->heard, whose last it becomes when much time has passed since heard_at */
    struct held *held, **held_last;
};

struct uring_listener {
    struct sluice_listener common;
    bool accepting, asked;
    struct uring_file file;
    int *held; /* accepted while it was paused */
    unsigned held_count, held_size;
};

/* Ops of one lane that are under way. */
struct flight {
    struct source source;
    struct uring_loop *ring;
    struct lane *lane;
    struct flight *next_idle;
    struct uring_end *from; /* of a stream; NULL: of none, or unknown to the loop */
    struct uring_end *sink; /* NULL: unknown to the loop */
    struct notice *notice;  /* of a send that lends, until its first report */
    int count;
    unsigned fixed; /* bit per op that reads or writes registered memory */
    ssize_t results[OPS_MAX];
    struct op ops[OPS_MAX];
    struct msghdr message;
};

/* A send that lends memory. It has two reports, also when it fails: what was sent, and that the memory is back. */
struct notice {
    struct source source;
    struct flight *flight; /* NULL after the first report */
    struct sluice_end *end;
    uint32_t number; /* of the loan, after the first report */
    bool quiet;      /* its socket was seen to hold nothing of what it sent */
    struct notice *next, **previous;
};

struct uring_loop {
    struct sluice_loop common;
    struct op_carrier carrier;
    int fd, enter_fd;
    unsigned enter_flags;
    bool polled;  /* SQPOLL */
    bool bounded; /* a multishot receive can be told to end after so many bytes */
    int error;    /* negative: the ring is of no more use */

    void *rings;
    size_t rings_size;
    struct io_uring_sqe *entries;
    unsigned *sq_head, *sq_tail, *sq_flags, sq_mask, sq_size;
    unsigned tail; /* of the submissions, ours */
    unsigned *cq_head, *cq_tail, cq_mask;
    struct io_uring_cqe *reports;

    struct io_uring_buf_ring *provided;
    char *buffers[RECEIVE_PIECES];

    struct uring_memory memory; /* that is registered */
    struct uring_files files;
    struct io_uring_cqe *stash;
    size_t stash_at, stash_count, stash_size;
    struct flight *idle;
    unsigned idle_count;
    struct notice *notices;
    struct list heard; /* sockets received from, the longest silent first */
    struct {           /* what a receiver is about to be given, as it is given a part of it */
        const struct uring_end *to;
        const char *data;
        size_t length;
    } rest;
    struct sluice_timer rest_timer;
    char scratch[RECEIVE_MAX]; /* for what is no socket */
};

static struct uring_loop *ring_of(struct sluice_loop *loop)
{
    return (struct uring_loop *)loop;
}

static struct uring_end *end_state(struct loop_end *state)
{
    return (struct uring_end *)state;
}

/* ---- The rings ---------------------------------------------------------------------------------------------- */

static unsigned load(const unsigned *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

/* The ring is of no more use, and is not entered any more. What it was asked for and has not done must not be done
 * later, into memory that is somebody else's by then: it is cancelled, and waited for. */
static void break_ring(struct uring_loop *ring, int error)
{
    struct io_uring_sync_cancel_reg all = {.fd = -1, .flags = IORING_ASYNC_CANCEL_ANY, .timeout = {.tv_sec = 1}};
    if (ring->error == 0)
        sys.io_uring_register(ring->fd, IORING_REGISTER_SYNC_CANCEL, &all, 1);
    ring->error = error;
}

static bool passes(int error)
{
    return error == EINTR || error == EAGAIN || error == EBUSY || error == ETIME || error == ENOMEM;
}

/* Hand over what was submitted and, with wait, sleep until there is a report, at most timeout ms (-1: without end).
 * Returns 0 or a negative errno: those that pass included. */
static int enter(struct uring_loop *ring, bool wait, int timeout)
{
    struct __kernel_timespec time;
    struct io_uring_getevents_arg argument = {0};
    const void *given = NULL;
    size_t size = 0;
    unsigned flags = ring->enter_flags | IORING_ENTER_GETEVENTS;
    if (ring->error != 0)
        return ring->error;
    /* Both in one order for all: the kernel's thread sees the tail before the flag is looked at here. */
    __atomic_store_n(ring->sq_tail, ring->tail, __ATOMIC_SEQ_CST);
    unsigned submit = ring->tail - load(ring->sq_head);
    if (ring->polled) {
        if (__atomic_load_n(ring->sq_flags, __ATOMIC_SEQ_CST) & IORING_SQ_NEED_WAKEUP)
            flags |= IORING_ENTER_SQ_WAKEUP;
        else if (!wait)
            return 0;
    }
    if (wait && timeout > 0) {
        time = (struct __kernel_timespec){.tv_sec = timeout / 1000, .tv_nsec = timeout % 1000 * 1000000L};
        argument.ts = (uintptr_t)&time;
        given = &argument;
        size = sizeof argument;
        flags |= IORING_ENTER_EXT_ARG;
    }
    int result = sys.io_uring_enter(ring->enter_fd, submit, wait ? 1 : 0, flags, given, size);
    if (result >= 0)
        return 0;
    int error = errno;
    if (!passes(error))
        break_ring(ring, -error);
    return -error;
}

/* Tests lessen it. */
size_t uring_stash_size = COMPLETIONS;

static int enlarge_stash(struct uring_loop *ring, size_t size)
{
    struct io_uring_cqe *larger = sys.allocate(size, sizeof *larger);
    if (larger == NULL)
        return -ENOMEM;
    if (ring->stash_count > 0)
        memcpy(larger, ring->stash, ring->stash_count * sizeof *larger);
    free(ring->stash);
    ring->stash = larger;
    ring->stash_size = size;
    return 0;
}

/* A report that cannot be kept breaks the ring: so there is room from the start for as many as the kernel has room for,
 * and a process that is out of memory goes on. */
static void stash(struct uring_loop *ring, const struct io_uring_cqe *report)
{
    if (ring->stash_count == ring->stash_size && ring->stash_at > 0) {
        ring->stash_count -= ring->stash_at;
        memmove(ring->stash, ring->stash + ring->stash_at, ring->stash_count * sizeof *ring->stash);
        ring->stash_at = 0;
    }
    if (ring->stash_count == ring->stash_size && enlarge_stash(ring, ring->stash_size * 2 + 16) < 0)
        break_ring(ring, -ENOMEM);
    else
        ring->stash[ring->stash_count++] = *report;
}

static bool take_report(struct uring_loop *ring, struct io_uring_cqe *ret_report)
{
    unsigned head = *ring->cq_head;
    if (head == load(ring->cq_tail))
        return false;
    *ret_report = ring->reports[head & ring->cq_mask];
    __atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
    return true;
}

/* Room for count entries that are to be handed over together. */
static bool make_room(struct uring_loop *ring, unsigned count)
{
    struct io_uring_cqe report;
    while (ring->error == 0 && ring->tail - load(ring->sq_head) + count > ring->sq_size) {
        int result = enter(ring, false, 0);
        if (result == -EBUSY) /* the kernel holds reports back until some are taken */
            while (take_report(ring, &report))
                stash(ring, &report);
    }
    return ring->error == 0;
}

/* A cleared entry for a request about source; NULL when the ring is broken. */
static struct io_uring_sqe *request(struct uring_loop *ring, enum about about, struct source *source)
{
    if (!make_room(ring, 1))
        return NULL;
    struct io_uring_sqe *entry = &ring->entries[ring->tail++ & ring->sq_mask];
    memset(entry, 0, sizeof *entry);
    entry->user_data = (uintptr_t)source | about;
    source->holds++;
    return entry;
}

static struct source *source_of(const struct io_uring_cqe *report)
{
    return (struct source *)(uintptr_t)(report->user_data & ~(uint64_t)ABOUT_MASK);
}

/* Not waited for: what was cancelled says so in its own last report. */
static void cancel(struct uring_loop *ring, enum about about, const struct source *source)
{
    if (!make_room(ring, 1))
        return;
    struct io_uring_sqe *entry = &ring->entries[ring->tail++ & ring->sq_mask];
    memset(entry, 0, sizeof *entry);
    entry->opcode = IORING_OP_ASYNC_CANCEL;
    entry->fd = -1;
    entry->addr = (uintptr_t)source | about;
    entry->flags = IOSQE_CQE_SKIP_SUCCESS;
}

static char *provided_buffer(const struct uring_loop *ring, unsigned id)
{
    return ring->buffers[id / RECEIVES_IN_PIECE] + (size_t)(id % RECEIVES_IN_PIECE) * RECEIVE_MAX;
}

static void give_buffer(struct uring_loop *ring, unsigned id)
{
    struct io_uring_buf_ring *provided = ring->provided;
    struct io_uring_buf *place = &provided->bufs[provided->tail & (BUFFERS - 1)];
    place->addr = (uintptr_t)provided_buffer(ring, id);
    place->len = RECEIVE_MAX;
    place->bid = (uint16_t)id;
    __atomic_store_n(&provided->tail, (uint16_t)(provided->tail + 1), __ATOMIC_RELEASE);
}

static void op_ended(struct flight *flight, const struct io_uring_cqe *report)
{
    flight->results[(report->user_data & ABOUT_MASK) - ABOUT_OP] = report->res;
}

static void drop_notice(struct notice *notice)
{
    *notice->previous = notice->next;
    if (notice->next != NULL)
        notice->next->previous = notice->previous;
    free(notice);
}

/* A report on a send that lends. The end, and with it its state here, may be gone after the second. */
static void lent(struct notice *notice, const struct io_uring_cqe *report)
{
    struct sluice_end *end = notice->end;
    struct flight *flight = notice->flight;
    uint32_t number = notice->number;
    if (report->flags & IORING_CQE_F_NOTIF) {
        drop_notice(notice);
        end_returned(end, LOANS_OF_RING, number, number,
                     (unsigned)report->res & IORING_NOTIF_USAGE_ZC_COPIED ? LOAN_COPIED : LOAN_NOT_COPIED);
        return;
    }
    /* Pages that are lent are charged to the user's limit on locked memory. */
    flight->results[0] = report->res == -ENOMEM ? -ENOBUFS : report->res;
    flight->notice = NULL;
    notice->flight = NULL;
    if (report->flags & IORING_CQE_F_MORE)
        notice->number = lane_lend(flight->lane, &flight->ops[0], report->res);
    else
        drop_notice(notice);
}

/* A report on something that is given up: nobody is told. */
static void keep_waiting(struct uring_listener *listener, int fd);

/* What it brought is kept all the same: connections. */
static void discard(struct uring_loop *ring, const struct io_uring_cqe *report)
{
    struct source *source = source_of(report);
    if (!(report->flags & IORING_CQE_F_MORE))
        source->holds--;
    if (report->flags & IORING_CQE_F_BUFFER)
        give_buffer(ring, report->flags >> IORING_CQE_BUFFER_SHIFT);
    unsigned about = report->user_data & ABOUT_MASK;
    if (about == ABOUT_ACCEPT && report->res >= 0)
        keep_waiting((struct uring_listener *)source, report->res);
    if (about == ABOUT_LOAN)
        lent((struct notice *)source, report);
    else if (about >= ABOUT_OP)
        op_ended((struct flight *)source, report);
}

/* Wait until there is nothing more to come about source; of a send that lends (first: flight->notice), until its first
 * report has come. What comes is discarded. */
static void settle(struct uring_loop *ring, struct source *source, struct notice *const *first)
{
    struct io_uring_cqe report;
    for (size_t i = ring->stash_at; i < ring->stash_count; i++) {
        if (source_of(&ring->stash[i]) != source)
            continue;
        discard(ring, &ring->stash[i]);
        ring->stash[i] = (struct io_uring_cqe){.user_data = ABOUT_NOTHING};
    }
    for (bool asked = false; (first != NULL ? *first != NULL : source->holds > 0) && ring->error == 0; asked = true) {
        enter(ring, asked, -1);
        while (take_report(ring, &report)) {
            if (source_of(&report) == source)
                discard(ring, &report);
            else if (report.user_data != ABOUT_NOTHING)
                stash(ring, &report);
        }
    }
    if (first == NULL)
        source->holds = 0;
}

/* To be called before the descriptor may be closed. */
static void let_go_of_file(struct uring_loop *ring, struct uring_file *file)
{
    if (uring_files_let_go(&ring->files, file) == 0)
        return;
    /* No reason is known why the kernel should refuse. But then the connection would stay open after it was closed, for
     * as long as the loop lives: so none has a number any more. */
    make_room(ring, ring->sq_size); /* what is still to be issued may name one */
    int result = uring_files_give_up(&ring->files);
    if (result < 0)
        break_ring(ring, result);
}

/* ---- Ends --------------------------------------------------------------------------------------------------- */

/* file: NULL where there will not be many requests. POLLERR and POLLHUP are reported whatever events are asked for. */
static bool poll_for(struct uring_loop *ring, struct uring_file *file, int fd, uint32_t events, enum about about,
                     struct source *source)
{
    struct io_uring_sqe *entry = request(ring, about, source);
    if (entry == NULL)
        return false;
    entry->opcode = IORING_OP_POLL_ADD;
    if (file != NULL)
        uring_files_name(&ring->files, file, fd, entry);
    else
        entry->fd = fd;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    events = events << 16 | events >> 16;
#endif
    entry->poll32_events = events;
    return true;
}

static void put_quiet_to_rest(void *context);

static void note_heard(struct uring_end *state)
{
    struct uring_loop *ring = ring_of(state->common.loop);
    uint32_t now = (uint32_t)ring->common.now;
    if (!list_empty(&state->heard) && now - state->heard_at < REST_AFTER_MS / 2)
        return;
    list_remove(&state->heard);
    if (list_empty(&ring->heard))
        sluice_timer_start(&ring->common, &ring->rest_timer, REST_AFTER_MS, put_quiet_to_rest, ring);
    state->heard_at = now;
    list_add_last(&ring->heard, &state->heard);
}

/* Report it when the end can be read. Returns 0 or a negative errno. */
static int ask_readable(struct uring_end *state)
{
    struct uring_loop *ring = ring_of(state->common.loop);
    if (!state->asked_read &&
        !poll_for(ring, &state->file, state->common.end->fd, POLLIN | POLLRDHUP, ABOUT_READABLE, &state->common.source))
        return ring->error;
    state->asked_read = true;
    return 0;
}

/* A multishot receive goes on while buffers last, whatever the receiver thinks of it: from a client that sends without
 * end the loop would have to keep a MiB for each connection that is paused. So it is told to end after as much as one
 * call of the receiver takes (the field that is file_index for others, Linux 6.17), and to bring no more than that at a
 * time (len, likewise); where that is not known, receives are asked for one at a time. */
static void fill_receive(const struct uring_loop *ring, uint32_t most, struct io_uring_sqe *entry)
{
    entry->opcode = IORING_OP_RECV;
    entry->flags = IOSQE_BUFFER_SELECT;
    entry->len = most;
    if (ring->bounded) {
        entry->ioprio = IORING_RECV_MULTISHOT;
        entry->file_index = most;
    }
    entry->buf_group = BUFFER_GROUP;
}

static int start_receiving(struct uring_end *state)
{
    struct uring_loop *ring = ring_of(state->common.loop);
    struct sluice_end *end = state->common.end;
    if (!end_is_socket(end))
        return ask_readable(state);
    struct io_uring_sqe *entry = request(ring, ABOUT_RECEIVE, &state->common.source);
    if (entry == NULL)
        return ring->error;
    fill_receive(ring, state->common.receive_max, entry);
    uring_files_name(&ring->files, &state->file, end->fd, entry);
    state->receiving = true;
    state->cancelling = state->resting = false;
    note_heard(state);
    return 0;
}

static void stop_receiving(struct uring_end *state)
{
    if (state->receiving && !state->cancelling) {
        state->cancelling = true;
        cancel(ring_of(state->common.loop), ABOUT_RECEIVE, &state->common.source);
    }
}

static void put_quiet_to_rest(void *context)
{
    struct uring_loop *ring = context;
    uint32_t now = (uint32_t)ring->common.now;
    for (int i = 0; i < RESTS_PER_SLOT && !list_empty(&ring->heard); i++) {
        struct uring_end *state = LIST_OBJECT(ring->heard.next, struct uring_end, heard);
        uint32_t silent = now - state->heard_at;
        if (silent < REST_AFTER_MS) {
            sluice_timer_start(&ring->common, &ring->rest_timer, REST_AFTER_MS - silent, put_quiet_to_rest, ring);
            return;
        }
        list_remove(&state->heard);
        state->resting = state->receiving && !state->cancelling;
        if (state->resting)
            stop_receiving(state); /* its last report begins the poll */
        if (state->asked_broken && !state->common.paused && !end_has_lent(state->common.end))
            cancel(ring, ABOUT_BROKEN, &state->common.source);
    }
    if (!list_empty(&ring->heard))
        sluice_timer_start(&ring->common, &ring->rest_timer, 1, put_quiet_to_rest, ring);
}

static void drop_held(struct uring_end *state)
{
    while (state->held != NULL) {
        struct held *held = state->held;
        state->held = held->next;
        free(held);
    }
    state->held_last = &state->held;
}

/* Report every edge of POLLERR: a connection that broke, or an error queue that says that memory is back. */
static void ask_broken(struct uring_end *state)
{
    struct loop_end *common = &state->common;
    struct uring_loop *ring = ring_of(common->loop);
    if (state->asked_broken)
        return;
    struct io_uring_sqe *entry = request(ring, ABOUT_BROKEN, &common->source);
    if (entry == NULL)
        return;
    entry->opcode = IORING_OP_POLL_ADD;
    uring_files_name(&ring->files, &state->file, common->end->fd, entry);
    entry->len = IORING_POLL_ADD_MULTI;
    state->asked_broken = true;
}

static int meet(struct loop_end *common)
{
    end_state(common)->held_last = &end_state(common)->held;
    list_init(&end_state(common)->heard);
    return common->end->kind == SLUICE_END_MEMORY || end_is_file(common->end) ? -EPERM : 0;
}

static void part(struct loop_end *common)
{
    struct uring_end *state = end_state(common);
    struct uring_loop *ring = ring_of(common->loop);
    list_remove(&state->heard);
    stop_receiving(state);
    if (state->asked_read)
        cancel(ring, ABOUT_READABLE, &common->source);
    if (state->asked_write)
        cancel(ring, ABOUT_WRITABLE, &common->source);
    if (state->asked_broken)
        cancel(ring, ABOUT_BROKEN, &common->source);
    settle(ring, &common->source, NULL);
    let_go_of_file(ring, &state->file);
    drop_held(state);
}

static int receive(struct loop_end *common)
{
    struct uring_end *state = end_state(common);
    if (state->held != NULL || state->over || common->readable)
        loop_mark_ready(common);
    else if (!state->receiving)
        return start_receiving(state);
    return 0;
}

/* May the receiver be called? */
static bool listens(const struct loop_end *common)
{
    return common->receive != NULL && !common->paused && !common->receive_ended && !common->source.dead;
}

/* Returns 0 or a negative errno. */
static int hold(struct uring_end *state, const char *data, size_t length)
{
    struct held *held = sys.allocate(1, sizeof *held + length);
    if (held == NULL)
        return -ENOMEM;
    held->length = length;
    memcpy(held->data, data, length);
    *state->held_last = held;
    state->held_last = &held->next;
    return 0;
}

/* Call the receiver with as much as it takes; it may make a transfer go on with the rest (hand_back). Returns how much
 * was taken. */
static size_t deliver(struct loop_end *common, const char *data, size_t length)
{
    struct uring_loop *ring = ring_of(common->loop);
    ring->rest.to = end_state(common);
    ring->rest.data = data;
    ring->rest.length = length;
    while (ring->rest.length > 0 && listens(common)) {
        const char *first = ring->rest.data;
        size_t piece = ring->rest.length < common->receive_max ? ring->rest.length : common->receive_max;
        ring->rest.data += piece;
        ring->rest.length -= piece;
        common->receive(common->receive_context, first, (ssize_t)piece);
    }
    ring->rest.to = NULL;
    return length - ring->rest.length;
}

static bool written_to(const struct uring_end *state)
{
    return state->common.writer != NULL || state->writing > 0;
}

/* It ended. A paused receiver is told of a broken connection all the same, unless a transfer finds out. */
static void ended(struct uring_end *state, ssize_t how)
{
    struct loop_end *common = &state->common;
    if (common->receive == NULL || common->receive_ended || common->source.dead)
        return;
    how = loop_how_it_ended(common->end, how);
    if (how < 0 && end_is_socket(common->end))
        common->end->socket.broke = (int16_t)how; /* it will not say it again */
    bool broke = how < 0 && common->paused && !written_to(state);
    if (broke || (!common->paused && state->held == NULL)) {
        drop_held(state);
        loop_end_receiving(common, how);
        return;
    }
    state->over = true;
    state->how = how;
    if (!common->paused)
        loop_mark_ready(common);
}

static void give_held(struct uring_end *state)
{
    struct loop_end *common = &state->common;
    while (state->held != NULL && listens(common)) {
        struct held *held = state->held;
        size_t piece = held->length - held->at;
        if (piece > common->receive_max)
            piece = common->receive_max;
        const char *data = held->data + held->at;
        held->at += piece;
        bool last = held->at == held->length;
        if (last) {
            state->held = held->next;
            if (held->next == NULL)
                state->held_last = &state->held;
        }
        common->receive(common->receive_context, data, (ssize_t)piece);
        if (last)
            free(held);
    }
}

/* As the loop on epoll does it, for what is no socket. */
static void read_some(struct uring_end *state)
{
    struct loop_end *common = &state->common;
    char *scratch = ring_of(common->loop)->scratch;
    ssize_t size;
    do
        size = sys.read(common->end->fd, scratch, common->receive_max);
    while (size < 0 && errno == EINTR);
    if (size < 0 && errno == EAGAIN) {
        common->readable = false;
        int result = start_receiving(state);
        if (result < 0)
            loop_end_receiving(common, result);
        return;
    }
    if (size <= 0) {
        loop_end_receiving(common, size < 0 ? -errno : 0);
        return;
    }
    loop_mark_ready(common);
    common->receive(common->receive_context, scratch, size);
}

static void receive_some(struct loop_end *common)
{
    struct uring_end *state = end_state(common);
    if (!listens(common))
        return;
    if (common->readable && !end_is_socket(common->end)) {
        read_some(state);
        return;
    }
    give_held(state);
    if (!listens(common) || state->held != NULL)
        return;
    int result = state->over ? (int)state->how : 0;
    if (!state->over && !state->receiving)
        result = start_receiving(state);
    if (state->over || result < 0)
        loop_end_receiving(common, result);
}

static void received(struct uring_end *state, const struct io_uring_cqe *report)
{
    struct loop_end *common = &state->common;
    struct uring_loop *ring = ring_of(common->loop);
    if (!(report->flags & IORING_CQE_F_MORE))
        state->receiving = state->cancelling = false;
    if (report->res > 0) {
        state->resting = false;
        if (state->receiving)
            note_heard(state);
        unsigned id = report->flags >> IORING_CQE_BUFFER_SHIFT;
        const char *data = provided_buffer(ring, id);
        size_t length = (size_t)report->res;
        size_t given = state->held == NULL ? deliver(common, data, length) : 0;
        if (given < length && !common->source.dead && common->receive != NULL && !common->receive_ended) {
            int result = hold(state, data + given, length - given);
            if (result < 0)
                ended(state, result);
            if (common->paused)
                stop_receiving(state); /* what comes now may stay in the kernel */
        }
        give_buffer(ring, id);
    } else if (report->res == 0) {
        ended(state, 0);
    } else if (report->res != -ENOBUFS && report->res != -ECANCELED) {
        ended(state, report->res);
    }
    if (state->receiving || common->source.dead || state->over || common->receive == NULL || common->receive_ended)
        return;
    if (!common->paused) {
        int result = state->resting ? ask_readable(state) : start_receiving(state);
        if (result < 0)
            ended(state, result);
    } else {
        ask_broken(state);
    }
}

/* POLLERR without POLLHUP is the error queue of a healthy socket that was lent memory (tcp_poll). */
static void broke(struct uring_end *state, const struct io_uring_cqe *report)
{
    struct loop_end *common = &state->common;
    unsigned events = report->res > 0 ? (unsigned)report->res : 0;
    uint64_t calls = 0;
    if (!(report->flags & IORING_CQE_F_MORE))
        state->asked_broken = false;
    if (events & POLLERR && end_has_lent(common->end)) {
        if (!(events & POLLHUP))
            events = 0;
        end_collect(common->end, &calls); /* the end may be gone after it */
        if (common->source.dead)
            return;
        if (end_loans(common->end) > 0)
            ask_broken(state);
    }
    /* A transfer that reads or writes is told by its own call. */
    bool others = written_to(state) || loop_waits_to_read(common) || state->reading;
    if (events & POLLERR && common->paused && common->receive != NULL && !others)
        ended(state, loop_socket_error(common->end));
    if (report->res == -ECANCELED && common->paused && common->receive != NULL && !common->receive_ended)
        ask_broken(state); /* it was given up while the receiver was not paused */
}

/* A report on a receive that is being stopped: what it brought is kept. */
static int keep(struct uring_end *state, const struct io_uring_cqe *report)
{
    struct uring_loop *ring = ring_of(state->common.loop);
    int result = 0;
    if (!(report->flags & IORING_CQE_F_MORE)) {
        state->receiving = state->cancelling = false;
        state->common.source.holds--;
    }
    if (report->flags & IORING_CQE_F_BUFFER) {
        unsigned id = report->flags >> IORING_CQE_BUFFER_SHIFT;
        if (report->res > 0)
            result = hold(state, provided_buffer(ring, id), (size_t)report->res);
        give_buffer(ring, id);
    }
    if (report->res < 0 && report->res != -ENOBUFS && report->res != -ECANCELED)
        result = report->res;
    return result;
}

static bool is_receive(const struct uring_end *state, const struct io_uring_cqe *report)
{
    return source_of(report) == &state->common.source && (report->user_data & ABOUT_MASK) == ABOUT_RECEIVE;
}

static ssize_t hand_back(struct loop_end *common, char *data, size_t size)
{
    struct uring_end *state = end_state(common);
    struct uring_loop *ring = ring_of(common->loop);
    struct io_uring_cqe report;
    int result = 0;
    if (ring->rest.to == state && ring->rest.length > 0) { /* this is the receiver's callback */
        result = hold(state, ring->rest.data, ring->rest.length);
        ring->rest.length = 0;
    }
    for (size_t i = ring->stash_at; i < ring->stash_count; i++) {
        if (!is_receive(state, &ring->stash[i]))
            continue;
        int kept = keep(state, &ring->stash[i]);
        result = kept < 0 ? kept : result;
        ring->stash[i] = (struct io_uring_cqe){.user_data = ABOUT_NOTHING};
    }
    stop_receiving(state);
    for (bool asked = false; state->receiving && ring->error == 0; asked = true) {
        enter(ring, asked, -1);
        while (take_report(ring, &report)) {
            if (is_receive(state, &report)) {
                int kept = keep(state, &report);
                result = kept < 0 ? kept : result;
            } else if (report.user_data != ABOUT_NOTHING) {
                stash(ring, &report);
            }
        }
    }
    if (common->receive != NULL && !common->receive_ended)
        ask_broken(state); /* while the transfer waits for its sink, nobody else looks at this end */
    if (state->over && state->how < 0)
        result = (int)state->how;
    if (result == 0 && size == 0 && state->held != NULL)
        result = -EBUSY;
    if (result < 0)
        return result;
    size_t taken = 0;
    while (state->held != NULL && taken < size) {
        struct held *held = state->held;
        size_t piece = held->length - held->at < size - taken ? held->length - held->at : size - taken;
        memcpy(data + taken, held->data + held->at, piece);
        held->at += piece;
        taken += piece;
        if (held->at < held->length)
            break;
        state->held = held->next;
        if (held->next == NULL)
            state->held_last = &state->held;
        free(held);
    }
    return (ssize_t)taken;
}

static void polled(struct uring_end *state, enum about about, const struct io_uring_cqe *report)
{
    struct loop_end *common = &state->common;
    switch (about) {
    case ABOUT_WRITABLE:
        state->asked_write = false;
        /* As long as there is something in it, an error queue makes every poll return at once. */
        if (report->res > 0 && report->res & POLLERR && end_has_lent(common->end))
            end_collect(common->end, &(uint64_t){0});
        if (common->writer != NULL)
            loop_queue_transfer(common->loop, common->writer);
        break;
    case ABOUT_READABLE:
        state->asked_read = false;
        if (common->reader != NULL)
            loop_queue_transfer(common->loop, common->reader);
        if (common->receive != NULL && !end_is_socket(common->end)) {
            common->readable = true;
            if (listens(common))
                loop_mark_ready(common);
        }
        if (state->resting && !state->receiving && listens(common)) {
            int result = start_receiving(state);
            if (result < 0)
                ended(state, result);
        }
        break;
    default:
        broke(state, report);
        break;
    }
}

static int await(struct loop_end *common, enum sluice_wait_kind kind, bool fresh)
{
    struct uring_end *state = end_state(common);
    struct uring_loop *ring = ring_of(common->loop);
    (void)fresh;
    if (kind == SLUICE_WAIT_READABLE)
        return ask_readable(state);
    if (!state->asked_write && !poll_for(ring, &state->file, common->end->fd, POLLOUT, ABOUT_WRITABLE, &common->source))
        return ring->error;
    state->asked_write = true;
    return 0;
}

/* ---- Ops ---------------------------------------------------------------------------------------------------- */

static struct flight *take_flight(struct uring_loop *ring)
{
    struct flight *flight = ring->idle;
    if (flight == NULL)
        return sys.allocate(1, sizeof *flight);
    ring->idle = flight->next_idle;
    ring->idle_count--;
    return flight;
}

static void put_flight(struct uring_loop *ring, struct flight *flight)
{
    if (ring->idle_count >= IDLE_FLIGHTS) {
        free(flight);
        return;
    }
    flight->next_idle = ring->idle;
    ring->idle = flight;
    ring->idle_count++;
}

/* Would it make the loop wait for a disk? */
static bool may_block(const struct lane *lane, const struct op *op)
{
    if (op->kind == OP_READ)
        return op->in_offset != OP_NO_OFFSET &&
               (!(lane->transfer->flags & SLUICE_TRANSFER_NEVER_BLOCK) ||
                (lane->route != NULL && lane->route->needs_no_pages)); /* it was not asked whether they are in memory */
    return op->kind == OP_WRITE && end_is_file(op->sink);
}

/* Can the ring wait for what the op said EAGAIN about, and go on by itself? */
static bool can_wait(const struct op *op)
{
    if (op->kind == OP_READ)
        return op->flags & MSG_DONTWAIT;
    return op->kind == OP_WRITE && end_is_socket(op->sink) && op->datagram == 0;
}

static bool has_opcode(const struct op *op)
{
    if (op->kind == OP_READ)
        return true;
    return op->kind == OP_WRITE && (end_is_socket(op->sink) || end_is_file(op->sink)) && op->datagram == 0;
}

/* The entry reads or writes one piece of memory: by its number, if it has one. */
static void use_place(struct flight *flight, int index, struct io_uring_sqe *entry, uint8_t opcode, const char *data,
                      size_t length)
{
    int place = uring_memory_number(&flight->ring->memory, flight->lane, data, length, flight->ring->common.now);
    if (place < 0)
        return;
    entry->opcode = opcode;
    entry->addr = (uintptr_t)data;
    entry->len = (unsigned)length;
    entry->buf_index = (uint16_t)place;
    flight->fixed |= 1u << index;
}

/* The entry is about an end, if the loop knows it. Not by number in a chain: when the kernel looks a later one up, the
 * numbers may have been given up (let_go_of_file). */
static void name_end(struct flight *flight, struct uring_end *end, int fd, struct io_uring_sqe *entry)
{
    if (end != NULL && flight->count == 1)
        uring_files_name(&flight->ring->files, &end->file, fd, entry);
    else
        entry->fd = fd;
}

static void fill_entry(struct flight *flight, int index, struct io_uring_sqe *entry)
{
    const struct op *op = &flight->ops[index];
    bool last = index == flight->count - 1;
    if (!last)
        entry->flags |= IOSQE_IO_LINK;
    if (op->kind == OP_READ) {
        entry->opcode = op->flags & MSG_DONTWAIT ? IORING_OP_RECV : IORING_OP_READ;
        name_end(flight, flight->from, op->in, entry);
        entry->off = entry->opcode == IORING_OP_RECV ? 0 : (uint64_t)op->in_offset; /* none: -1, the position */
        entry->addr = (uintptr_t)op->buffer;
        entry->len = (unsigned)op->length;
        if (entry->opcode == IORING_OP_READ)
            use_place(flight, index, entry, IORING_OP_READ_FIXED, op->buffer, op->length);
        return;
    }
    name_end(flight, flight->sink, op->out, entry);
    if (!end_is_socket(op->sink)) {
        entry->opcode = IORING_OP_WRITEV;
        entry->off = (uint64_t)op->out_offset;
        entry->addr = (uintptr_t)op->iov;
        entry->len = (unsigned)op->iov_count;
        if (op->iov_count == 1)
            use_place(flight, index, entry, IORING_OP_WRITE_FIXED, op->iov[0].iov_base, op->iov[0].iov_len);
        return;
    }
    /* A send that is short does not end a chain without MSG_WAITALL (KERNEL-FACTS 17.13). */
    entry->msg_flags = (unsigned)op->flags | MSG_NOSIGNAL | (last ? 0 : MSG_WAITALL);
    if (op->iov_count == 1) {
        entry->opcode = IORING_OP_SEND;
        entry->addr = (uintptr_t)op->iov[0].iov_base;
        entry->len = (unsigned)op->iov[0].iov_len;
    } else {
        flight->message = (struct msghdr){.msg_iov = op->iov, .msg_iovlen = (size_t)op->iov_count};
        entry->opcode = IORING_OP_SENDMSG;
        entry->addr = (uintptr_t)&flight->message;
        entry->len = 1;
    }
}

static bool lends_by_ring(const struct lane *lane, const struct op *op)
{
    return op->kind == OP_WRITE && op->flags & MSG_ZEROCOPY &&
           route_registry[lane->iov_route[0]]->lends == LOANS_OF_RING;
}

/* The entry that fill_entry made of a write, as one that lends; its reports are the notice's. */
static void lend_by(struct notice *notice, struct io_uring_sqe *entry)
{
    const struct op *op = &notice->flight->ops[0];
    bool plain = entry->opcode == IORING_OP_SEND;
    entry->opcode = plain ? IORING_OP_SEND_ZC : IORING_OP_SENDMSG_ZC;
    entry->ioprio = IORING_SEND_ZC_REPORT_USAGE;
    if (plain)
        use_place(notice->flight, 0, entry, IORING_OP_SEND_ZC, op->iov[0].iov_base, op->iov[0].iov_len);
    if (notice->flight->fixed != 0)
        entry->ioprio |= IORING_RECVSEND_FIXED_BUF;
    entry->msg_flags &= ~(unsigned)MSG_ZEROCOPY;
    notice->flight->notice = notice;
}

static struct notice *new_notice(struct uring_loop *ring, struct flight *flight)
{
    struct notice *notice = sys.allocate(1, sizeof *notice);
    if (notice == NULL)
        return NULL;
    notice->flight = flight;
    notice->end = flight->lane->sink;
    notice->next = ring->notices;
    notice->previous = &ring->notices;
    if (notice->next != NULL)
        notice->next->previous = &notice->next;
    ring->notices = notice;
    return notice;
}

/* Hand over the first op, and those linked to it that have an opcode. Returns whether that was possible. */
static bool launch(struct uring_loop *ring, struct lane *lane, const struct op *ops, int count)
{
    int linked = 1;
    bool lends = lends_by_ring(lane, &ops[0]);
    while (linked < count && !lends && has_opcode(&ops[linked]))
        linked++;
    struct flight *flight = take_flight(ring);
    if (flight == NULL)
        return false;
    if (!make_room(ring, (unsigned)linked)) {
        put_flight(ring, flight);
        return false;
    }
    memset(&flight->source, 0, sizeof flight->source);
    flight->ring = ring;
    flight->lane = lane;
    flight->notice = NULL;
    flight->fixed = 0;
    flight->count = linked;
    memcpy(flight->ops, ops, (size_t)linked * sizeof *ops);
    struct notice *notice = lends ? new_notice(ring, flight) : NULL;
    if (lends && notice == NULL) {
        put_flight(ring, flight);
        return false;
    }
    flight->sink = end_state(lane->sink->loop);
    if (flight->sink != NULL)
        flight->sink->writing++;
    flight->from =
        can_wait(&ops[0]) && ops[0].kind == OP_READ ? end_state(lane_segment(lane, lane->segment)->end->loop) : NULL;
    if (flight->from != NULL)
        flight->from->reading = true;
    if (lends) {
        struct io_uring_sqe *entry = request(ring, ABOUT_LOAN, &notice->source);
        fill_entry(flight, 0, entry);
        lend_by(notice, entry);
    }
    for (int i = 0; i < linked && !lends; i++)
        fill_entry(flight, i, request(ring, (enum about)(ABOUT_OP + i), &flight->source));
    lane->under_way = flight;
    lane->transfer->waited = true;
    return true;
}

static bool carry(struct op_carrier *carrier, struct lane *lane, const struct op *ops, int count, ssize_t *ret_result)
{
    struct uring_loop *ring = (struct uring_loop *)((char *)carrier - offsetof(struct uring_loop, carrier));
    if (lends_by_ring(lane, &ops[0])) {
        *ret_result = -ENOBUFS; /* no memory to keep account of it */
        return !launch(ring, lane, ops, 1);
    }
    if (may_block(lane, &ops[0]) && !transfer_borrows(lane->transfer) && launch(ring, lane, ops, count))
        return false;
    *ret_result = op_execute(&ops[0], &lane->receipt.system_calls);
    if (*ret_result > 0 && ops[0].kind == OP_WRITE && ops[0].flags & MSG_ZEROCOPY && lane->sink->loop != NULL)
        ask_broken(end_state(lane->sink->loop)); /* the error queue will say when the memory is back */
    if (*ret_result != -EAGAIN || !can_wait(&ops[0]) || transfer_borrows(lane->transfer) ||
        (ops[0].kind == OP_READ && lane_is_quiet(lane)) || !launch(ring, lane, ops, 1))
        return true;
    if (ops[0].kind == OP_READ)
        lane_note_silence(lane);
    lane->receipt.waits++;
    return false;
}

/* All of a flight has ended: tell its lane. */
static void land(struct flight *flight)
{
    struct lane *lane = flight->lane;
    struct uring_loop *ring = flight->ring;
    lane->wait = LANE_RUNS;
    for (int i = 0, go_on = 1; i < flight->count && go_on > 0; i++) {
        if (flight->results[i] == -EINTR) /* nothing was done: lane_next will ask for it again */
            break;
        if (flight->fixed & 1u << i && flight->results[i] > 0)
            receipt_enter_registered(&lane->receipt, (uint64_t)flight->results[i]);
        go_on = lane_complete(lane, &flight->ops[i], flight->results[i]);
    }
    if (flight->sink != NULL)
        flight->sink->writing--;
    if (flight->from != NULL)
        flight->from->reading = false;
    put_flight(ring, flight);
}

/* What the flights of a transfer that ends have moved until now is entered in its receipt; its error stays. */
static void withdraw(struct sluice_loop *loop, struct sluice_transfer *transfer)
{
    struct uring_loop *ring = ring_of(loop);
    struct sluice_error error = transfer->error;
    for (uint32_t i = 0; i < transfer->lane_count; i++) {
        struct lane *lane = &transfer->lanes[i];
        if (lane->wait != LANE_WAITS_OPS)
            continue;
        struct flight *flight = lane->under_way;
        for (int k = 0; k < flight->count; k++) {
            if (flight->notice == NULL)
                cancel(ring, (enum about)(ABOUT_OP + k), &flight->source);
            else
                cancel(ring, ABOUT_LOAN, &flight->notice->source);
            flight->results[k] = -EINTR;
        }
        settle(ring, flight->notice != NULL ? &flight->notice->source : &flight->source,
               flight->notice != NULL ? &flight->notice : NULL);
        if (flight->notice !=
            NULL) { /* the ring is of no more use: there will be no report, and it may have been sent */
            flight->notice->number = lane_lend(lane, &flight->ops[0], 0);
            flight->notice->flight = NULL;
            flight->notice = NULL;
        }
        for (int k = 0; k < flight->count; k++)
            if (flight->results[k] <= 0)
                flight->results[k] = -EINTR;
        land(flight);
    }
    transfer->error = error;
}

/* ---- Listeners, connecting sockets and watches ------------------------------------------------------------------ */

static int listen_on(struct sluice_listener *common)
{
    struct uring_listener *listener = (struct uring_listener *)common;
    struct uring_loop *ring = ring_of(common->loop);
    struct io_uring_sqe *entry;
    if (listener->held_count > 0) { /* not from in here: a callback does not come from the function that resumes */
        if (listener->asked)
            return 0;
        entry = request(ring, ABOUT_CALLERS, &common->source);
        if (entry == NULL)
            return ring->error;
        entry->opcode = IORING_OP_NOP;
        listener->asked = true;
        return 0;
    }
    if (listener->accepting || listener->asked)
        return 0;
    /* An accept has the wake-ups of all who come to itself, however busy the loop is; those that it was given and has
     * not seen when it is cancelled are lost to all other loops. A poll takes none away, and each of these loops looks.
     */
    if (!common->ahead) {
        listener->asked = poll_for(ring, &listener->file, common->fd, POLLIN, ABOUT_CALLERS, &common->source);
        return listener->asked ? 0 : ring->error;
    }
    entry = request(ring, ABOUT_ACCEPT, &common->source);
    if (entry == NULL)
        return ring->error;
    entry->opcode = IORING_OP_ACCEPT;
    uring_files_name(&ring->files, &listener->file, common->fd, entry);
    entry->ioprio = IORING_ACCEPT_MULTISHOT;
    entry->accept_flags = SOCK_CLOEXEC | SOCK_NONBLOCK;
    listener->accepting = true;
    return 0;
}

static void show_in(struct sluice_listener *common, int fd)
{
    struct sockaddr_storage address = {.ss_family = AF_UNSPEC};
    socklen_t size = sizeof address;
    if (sys.getpeername(fd, (struct sockaddr *)&address, &size) < 0)
        size = sizeof address.ss_family; /* it was reset; receiving will say so */
    common->accept(common->context, fd, (struct sockaddr *)&address, size);
}

/* The one that has waited longest. */
static void show_in_held(struct uring_listener *listener)
{
    int fd = listener->held[0];
    listener->held_count--;
    memmove(listener->held, listener->held + 1, listener->held_count * sizeof *listener->held);
    show_in(&listener->common, fd);
}

static void unlisten(struct sluice_listener *common, bool for_good)
{
    struct uring_listener *listener = (struct uring_listener *)common;
    struct uring_loop *ring = ring_of(common->loop);
    if (listener->accepting)
        cancel(ring, ABOUT_ACCEPT, &common->source);
    if (listener->asked)
        cancel(ring, ABOUT_CALLERS, &common->source);
    if (!for_good)
        return;
    settle(ring, &common->source, NULL);
    let_go_of_file(ring, &listener->file);
    /* Their clients believe themselves connected; to close them would be to reset them. */
    while (listener->held_count > 0)
        show_in_held(listener);
    free(listener->held);
    listener->held = NULL;
    listener->held_size = 0;
}

static void keep_waiting(struct uring_listener *listener, int fd)
{
    if (listener->held_count == listener->held_size) {
        unsigned size = listener->held_size == 0 ? 8 : 2 * listener->held_size;
        int *larger = sys.allocate(size, sizeof *larger);
        if (larger == NULL) {
            sys.close(fd);
            return;
        }
        if (listener->held_count > 0)
            memcpy(larger, listener->held, listener->held_count * sizeof *larger);
        free(listener->held);
        listener->held = larger;
        listener->held_size = size;
    }
    listener->held[listener->held_count++] = fd;
}

static void accepted(struct uring_listener *listener, const struct io_uring_cqe *report)
{
    struct sluice_listener *common = &listener->common;
    if (!(report->flags & IORING_CQE_F_MORE))
        listener->accepting = false;
    if (report->res >= 0 && common->paused)
        keep_waiting(listener, report->res);
    else if (report->res >= 0)
        show_in(common, report->res);
    else if (report->res != -ECANCELED)
        loop_accept_failed(common, -report->res);
    if (common->source.dead || common->paused || listener->accepting || listener->asked)
        return;
    /* Without descriptors an accept fails at once, whether somebody waits or not: wait for somebody. */
    if (report->res < 0 && report->res != -ECANCELED)
        listener->asked =
            poll_for(ring_of(common->loop), &listener->file, common->fd, POLLIN, ABOUT_CALLERS, &common->source);
    else
        listen_on(common);
}

static void callers(struct uring_listener *listener)
{
    struct sluice_listener *common = &listener->common;
    listener->asked = false;
    while (listener->held_count > 0 && !common->paused && !common->source.dead)
        show_in_held(listener);
    if (!common->ahead)
        loop_accept_some(common);
    if (!common->paused && !common->source.dead)
        listen_on(common);
}

/* Not by IORING_OP_CONNECT, which the ring is told not to take: where a worker may connect to is for seccomp and
 * Landlock to say. */
static int await_connect(struct sluice_connect *connect)
{
    struct uring_loop *ring = ring_of(connect->loop);
    return poll_for(ring, NULL, connect->fd, POLLOUT, ABOUT_CONNECT, &connect->source) ? 0 : ring->error;
}

/* The poll keeps the socket open until the kernel has let go of it, in the next turn. */
static void forget_connect(struct sluice_connect *connect)
{
    cancel(ring_of(connect->loop), ABOUT_CONNECT, &connect->source);
}

static int watch(struct sluice_watch *watch)
{
    struct io_uring_sqe *entry = request(ring_of(watch->loop), ABOUT_WATCH, &watch->source);
    if (entry == NULL)
        return ring_of(watch->loop)->error;
    entry->opcode = IORING_OP_POLL_ADD;
    entry->fd = watch->fd;
    entry->poll32_events = POLLIN;
    entry->len = IORING_POLL_ADD_MULTI;
    return 0;
}

static void unwatch(struct sluice_watch *watch)
{
    if (watch->source.holds > 0)
        cancel(ring_of(watch->loop), ABOUT_WATCH, &watch->source);
}

static void watched(struct sluice_watch *watched, const struct io_uring_cqe *report)
{
    if (!(report->flags & IORING_CQE_F_MORE))
        watch(watched);
    watched->ready(watched->context);
}

/* ---- The loop ----------------------------------------------------------------------------------------------- */

static void handle(struct uring_loop *ring, const struct io_uring_cqe *report)
{
    struct source *source = source_of(report);
    enum about about = (enum about)(report->user_data & ABOUT_MASK);
    if (about == ABOUT_NOTHING)
        return;
    if (source->dead) {
        discard(ring, report);
        return;
    }
    if (!(report->flags & IORING_CQE_F_MORE))
        source->holds--;
    switch (about) {
    case ABOUT_NOTHING:
    case ABOUT_MASK:
        break;
    case ABOUT_RECEIVE:
        received((struct uring_end *)source, report);
        break;
    case ABOUT_READABLE:
    case ABOUT_WRITABLE:
    case ABOUT_BROKEN:
        polled((struct uring_end *)source, about, report);
        break;
    case ABOUT_ACCEPT:
        accepted((struct uring_listener *)source, report);
        break;
    case ABOUT_CALLERS:
        callers((struct uring_listener *)source);
        break;
    case ABOUT_CONNECT:
        loop_connect_ended((struct sluice_connect *)source, report->res < 0 ? report->res : 0);
        break;
    case ABOUT_WATCH:
        watched((struct sluice_watch *)source, report);
        break;
    case ABOUT_LOAN: {
        struct flight *flight = ((struct notice *)source)->flight;
        lent((struct notice *)source, report);
        if (flight == NULL)
            break;
        struct sluice_transfer *transfer = flight->lane->transfer;
        land(flight);
        loop_queue_transfer(&ring->common, transfer);
        break;
    }
    case ABOUT_OP:
    default: {
        struct flight *flight = (struct flight *)source;
        op_ended(flight, report);
        if (source->holds > 0)
            break;
        struct sluice_transfer *transfer = flight->lane->transfer;
        land(flight);
        loop_queue_transfer(&ring->common, transfer);
        break;
    }
    }
}

static int turn(struct sluice_loop *loop, int timeout)
{
    struct uring_loop *ring = ring_of(loop);
    struct io_uring_cqe report;
    bool ready = ring->stash_count > 0 || *ring->cq_head != load(ring->cq_tail);
    uring_memory_let_go(&ring->memory);
    int result = enter(ring, timeout != 0 && !ready, timeout);
    if (result < 0 && !passes(-result))
        return result;
    loop_begin_turn(loop);
    for (int i = 0; i < REPORTS_PER_TURN; i++) {
        if (ring->stash_at < ring->stash_count)
            report = ring->stash[ring->stash_at++];
        else if (!take_report(ring, &report))
            break;
        if (ring->stash_at == ring->stash_count)
            ring->stash_at = ring->stash_count = 0;
        handle(ring, &report);
    }
    return ring->error;
}

/* So long the end of a loop waits for peers to take what was lent; then connections are reset, which makes the kernel
 * let go of what it has not sent. */
unsigned uring_linger_ms = 5000;
#define LINGER_STEP_MS 10

/* A ring that broke reports nothing. Its sockets tell all the same when the kernel has let go of what they sent: every
 * packet counts against the socket until it was freed, queued or on its way in a device. To a peer on this machine a
 * packet stops counting a moment before its pages are copied, so a socket must be found empty twice. */
static bool holds_nothing(const struct sluice_end *end)
{
    uint32_t memory[SK_MEMINFO_VARS] = {0};
    socklen_t size = sizeof memory;
    return sys.getsockopt(end->fd, SOL_SOCKET, SO_MEMINFO, memory, &size) == 0 && memory[SK_MEMINFO_WMEM_ALLOC] == 0 &&
           memory[SK_MEMINFO_WMEM_QUEUED] == 0;
}

static void look_at_sockets(struct uring_loop *ring)
{
    for (struct notice *notice = ring->notices, *next; notice != NULL; notice = next) {
        struct sluice_end *end = notice->end;
        uint32_t number = notice->number;
        bool was_quiet = notice->quiet;
        next = notice->next;
        notice->quiet = holds_nothing(end);
        if (!was_quiet || !notice->quiet)
            continue;
        drop_notice(notice);
        end_returned(end, LOANS_OF_RING, number, number, LOAN_UNTOLD); /* the end may be gone after its last one */
    }
    sys.poll(NULL, 0, LINGER_STEP_MS);
}

static void reset_connections(struct uring_loop *ring)
{
    uint64_t calls = 0;
    for (const struct notice *notice = ring->notices; notice != NULL; notice = notice->next)
        if (notice->end->kind == SLUICE_END_TCP)
            end_reset(notice->end, &calls);
}

static void wait_for_notices(struct uring_loop *ring, unsigned patience)
{
    struct io_uring_cqe report;
    for (unsigned waited = 0; ring->notices != NULL && waited < patience;) {
        if (ring->error != 0) {
            look_at_sockets(ring);
            waited += LINGER_STEP_MS;
        } else if (enter(ring, true, 100) == -ETIME) {
            waited += 100;
        }
        while (ring->error == 0 && take_report(ring, &report)) {
            if ((report.user_data & ABOUT_MASK) == ABOUT_LOAN)
                discard(ring, &report);
            else if (report.user_data != ABOUT_NOTHING)
                stash(ring, &report);
        }
        loans_call_back();
    }
}

static void linger(struct sluice_loop *loop)
{
    struct uring_loop *ring = ring_of(loop);
    wait_for_notices(ring, uring_linger_ms);
    reset_connections(ring);
    wait_for_notices(ring, uring_linger_ms / 5);
}

static const char *const old_kernel = "io_uring of this kernel lacks what the loop needs (Linux 6.1)";
static const char *const use_epoll = "Use the loop on epoll (--loop epoll).";

static const char not_cheaper[] = "before Linux 6.17 nobody has measured that it is cheaper";

/* What io_uring_setup says when there is no ring to be had. */
static int refused(int code, const struct sluice_loop_options *options, struct sluice_error *ret_error)
{
    const char *reason = NULL, *remedy = use_epoll;
    char state = '0';
    int fd;
    switch (code) {
    case -ENOSYS:
        reason = "the kernel has no io_uring (CONFIG_IO_URING), or a sandbox hides it";
        break;
    case -EPERM:
        fd = sys.open("/proc/sys/kernel/io_uring_disabled", O_RDONLY | O_CLOEXEC, 0);
        if (fd >= 0) {
            if (sys.read(fd, &state, 1) != 1)
                state = '0';
            sys.close(fd);
        }
        reason = state == '0'   ? "a system-call filter forbids it, as containers' do by default"
                 : state == '1' ? "kernel.io_uring_disabled is 1: for the group of kernel.io_uring_group only"
                                : "kernel.io_uring_disabled is 2: switched off";
        if (state != '0')
            remedy = "Set kernel.io_uring_disabled to 0 (sysctl), or use the loop on epoll (--loop epoll).";
        break;
    case -EINVAL:
        reason =
            options->flags & SLUICE_LOOP_SQPOLL ? "this kernel does not poll for submissions as asked" : old_kernel;
        break;
    case -ENOMEM:
        reason = "the rings need 40 KiB of locked memory for each loop, and the user's limit leaves less";
        remedy =
            "Raise the limit on locked memory (ulimit -l, LimitMEMLOCK=), or use the loop on epoll (--loop epoll).";
        break;
    }
    if (ret_error != NULL)
        *ret_error =
            (struct sluice_error){.code = code, .operation = "io_uring_setup", .reason = reason, .remedy = remedy};
    return code;
}

static int map_rings(struct uring_loop *ring, const struct io_uring_params *given)
{
    size_t sq = given->sq_off.array + given->sq_entries * sizeof(unsigned);
    size_t cq = given->cq_off.cqes + given->cq_entries * sizeof(struct io_uring_cqe);
    size_t size = sq > cq ? sq : cq; /* IORING_FEAT_SINGLE_MMAP: one mapping holds both */
    void *rings = sys.mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQ_RING);
    if (rings == MAP_FAILED)
        return -errno;
    ring->rings = rings;
    ring->rings_size = size;
    ring->sq_size = given->sq_entries;
    void *entries = sys.mmap(NULL, given->sq_entries * sizeof *ring->entries, PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQES);
    if (entries == MAP_FAILED)
        return -errno;
    ring->entries = entries;
    char *base = rings;
    ring->sq_head = (unsigned *)(void *)(base + given->sq_off.head);
    ring->sq_tail = (unsigned *)(void *)(base + given->sq_off.tail);
    ring->sq_flags = (unsigned *)(void *)(base + given->sq_off.flags);
    ring->sq_mask = *(unsigned *)(void *)(base + given->sq_off.ring_mask);
    ring->tail = *ring->sq_tail;
    unsigned *order = (unsigned *)(void *)(base + given->sq_off.array);
    for (unsigned i = 0; i < given->sq_entries; i++)
        order[i] = i;
    ring->cq_head = (unsigned *)(void *)(base + given->cq_off.head);
    ring->cq_tail = (unsigned *)(void *)(base + given->cq_off.tail);
    ring->cq_mask = *(unsigned *)(void *)(base + given->cq_off.ring_mask);
    ring->reports = (struct io_uring_cqe *)(void *)(base + given->cq_off.cqes);
    return 0;
}

/* The newest opcode that the loop's kernel must have: multishot receives came a release before it, and nothing else
 * tells that they are there. */
#define NEWEST_OPCODE IORING_OP_SENDMSG_ZC

static int check_opcodes(struct uring_loop *ring)
{
    _Alignas(struct io_uring_probe) char
        answer[sizeof(struct io_uring_probe) + (NEWEST_OPCODE + 1) * sizeof(struct io_uring_probe_op)] = {0};
    const struct io_uring_probe *probe = (const struct io_uring_probe *)(const void *)answer;
    if (sys.io_uring_register(ring->fd, IORING_REGISTER_PROBE, answer, NEWEST_OPCODE + 1) < 0)
        return -errno;
    if (probe->last_op < NEWEST_OPCODE || !(probe->ops[NEWEST_OPCODE].flags & IO_URING_OP_SUPPORTED))
        return -EINVAL;
    return 0;
}

#define PROVIDED_SIZE (BUFFERS * sizeof(struct io_uring_buf))

static int provide_buffers(struct uring_loop *ring)
{
    void *list = sys.mmap(NULL, PROVIDED_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (list == MAP_FAILED)
        return -ENOMEM;
    ring->provided = list;
    for (unsigned i = 0; i < RECEIVE_PIECES; i++) {
        ring->buffers[i] = buffer_get(0);
        if (ring->buffers[i] == NULL)
            return -ENOMEM;
    }
    struct io_uring_buf_reg group = {
        .ring_addr = (uintptr_t)ring->provided, .ring_entries = BUFFERS, .bgid = BUFFER_GROUP};
    if (sys.io_uring_register(ring->fd, IORING_REGISTER_PBUF_RING, &group, 1) < 0)
        return -errno;
    for (unsigned i = 0; i < BUFFERS; i++)
        give_buffer(ring, i);
    return 0;
}

/* The ring's own descriptor need not be looked up for every call, in a process that has several threads. Not fatal: a
 * thread may have 16 such. */
static void enter_by_number(struct uring_loop *ring)
{
    struct io_uring_rsrc_update update = {.offset = UINT32_MAX, .data = (unsigned)ring->fd};
    ring->enter_fd = ring->fd;
    if (sys.io_uring_register(ring->fd, IORING_REGISTER_RING_FDS, &update, 1) != 1)
        return;
    ring->enter_fd = (int)update.offset;
    ring->enter_flags = IORING_ENTER_REGISTERED_RING;
}

static void enter_by_descriptor(struct uring_loop *ring)
{
    struct io_uring_rsrc_update update = {.offset = (uint32_t)ring->enter_fd};
    if (ring->enter_flags & IORING_ENTER_REGISTERED_RING)
        sys.io_uring_register(ring->fd, IORING_UNREGISTER_RING_FDS, &update, 1);
    ring->enter_flags = 0;
}

/* seccomp does not see what a ring does, so the ring itself is told what the loop will ever ask of it. A worker that
 * was taken over cannot open files or connect by it, whatever Landlock's domain was when the ring was made. */
static int restrict_ring(struct uring_loop *ring)
{
    static const uint8_t opcodes[] = {
        IORING_OP_NOP,        IORING_OP_POLL_ADD,   IORING_OP_ASYNC_CANCEL, IORING_OP_ACCEPT, IORING_OP_RECV,
        IORING_OP_READ,       IORING_OP_SEND,       IORING_OP_SENDMSG,      IORING_OP_WRITEV, IORING_OP_SEND_ZC,
        IORING_OP_SENDMSG_ZC, IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED};
    static const uint8_t operations[] = {IORING_REGISTER_BUFFERS_UPDATE, IORING_REGISTER_FILES_UPDATE,
                                         IORING_UNREGISTER_FILES, IORING_UNREGISTER_RING_FDS,
                                         IORING_REGISTER_SYNC_CANCEL};
    struct io_uring_restriction rules[sizeof opcodes + 1 + sizeof operations];
    memset(rules, 0, sizeof rules);
    for (size_t i = 0; i < sizeof opcodes; i++) {
        rules[i].opcode = IORING_RESTRICTION_SQE_OP;
        rules[i].sqe_op = opcodes[i];
    }
    rules[sizeof opcodes].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
    rules[sizeof opcodes].sqe_flags = IOSQE_FIXED_FILE | IOSQE_IO_LINK | IOSQE_BUFFER_SELECT | IOSQE_CQE_SKIP_SUCCESS;
    for (size_t i = 0; i < sizeof operations; i++) {
        struct io_uring_restriction *rule = &rules[sizeof opcodes + 1 + i];
        rule->opcode = IORING_RESTRICTION_REGISTER_OP;
        rule->register_op = operations[i];
    }
    if (sys.io_uring_register(ring->fd, IORING_REGISTER_RESTRICTIONS, rules, sizeof rules / sizeof *rules) < 0)
        return -errno;
    return sys.io_uring_register(ring->fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0 ? -errno : 0;
}

/* Can a multishot receive be told to end after so many bytes? A kernel that cannot refuses the request (EINVAL) before
 * it looks at the descriptor. Returns 1, 0 or a negative errno. */
static int bounds_receives(struct uring_loop *ring)
{
    struct io_uring_cqe report;
    struct io_uring_sqe *entry = &ring->entries[ring->tail++ & ring->sq_mask];
    memset(entry, 0, sizeof *entry); /* its user data too: ABOUT_NOTHING */
    ring->bounded = true;            /* to be asked for so */
    fill_receive(ring, RECEIVE_MAX, entry);
    entry->fd = -1;
    for (int tries = 0; !take_report(ring, &report); tries++) {
        int result = enter(ring, true, -1);
        if (result < 0 && (ring->error != 0 || tries == PROBE_TRIES))
            return result;
    }
    return report.res == -EBADF;
}

static int set_up(struct uring_loop *ring, const struct sluice_loop_options *options, struct sluice_error *ret_error)
{
    struct io_uring_params parameters = {.cq_entries = COMPLETIONS};
    parameters.flags =
        IORING_SETUP_CQSIZE | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER;
    ring->fd = -1;
    ring->polled = options->flags & SLUICE_LOOP_SQPOLL;
    if (ring->polled) {
        parameters.flags |= IORING_SETUP_SQPOLL;
        parameters.sq_thread_idle = SQPOLL_IDLE_MS;
    } else {
        parameters.flags |= IORING_SETUP_DEFER_TASKRUN;
    }
    ring->fd = sys.io_uring_setup(SUBMISSIONS, &parameters);
    int result = ring->fd < 0 ? -errno : 0;
    if (result == 0)
        result = map_rings(ring, &parameters);
    if (result == 0)
        result = check_opcodes(ring);
    if (result == 0)
        result = provide_buffers(ring);
    if (result == 0) {
        uring_memory_prepare(&ring->memory, ring->fd);
        uring_files_prepare(&ring->files, ring->fd);
        enter_by_number(ring);
        result = restrict_ring(ring);
    }
    if (result < 0)
        return refused(result, options, ret_error);
    result = bounds_receives(ring);
    if (result < 0)
        return refused(result, options, ret_error);
    ring->bounded = result;
    /* Before Linux 6.13 a file whose number was taken back stayed open until every earlier request about any number had
     * ended (liburing issue 1192), and a second longer. The bound is the newer, and can be told. */
    if (!ring->bounded)
        result = uring_files_give_up(&ring->files);
    if (result < 0)
        return refused(result, options, ret_error);
    if (ring->bounded || options->kind != SLUICE_LOOP_AUTO)
        return 0;
    if (ret_error != NULL)
        *ret_error = (struct sluice_error){.code = -EOPNOTSUPP, .operation = "io_uring_enter", .reason = not_cheaper};
    return -EOPNOTSUPP;
}

static void take_down(struct uring_loop *ring)
{
    enter_by_descriptor(ring);
    uring_memory_free(&ring->memory);
    if (ring->fd >= 0)
        sys.close(ring->fd);
    if (ring->entries != NULL)
        sys.munmap(ring->entries, ring->sq_size * sizeof *ring->entries);
    if (ring->rings != NULL)
        sys.munmap(ring->rings, ring->rings_size);
    if (ring->provided != NULL)
        sys.munmap(ring->provided, PROVIDED_SIZE);
    for (unsigned i = 0; i < RECEIVE_PIECES; i++)
        buffer_put(ring->buffers[i]);
}

static int probe(const struct sluice_loop_options *options, struct sluice_error *ret_error)
{
    struct uring_loop *ring = sys.allocate(1, sizeof *ring);
    if (ring == NULL) {
        if (ret_error != NULL)
            *ret_error = (struct sluice_error){.code = -ENOMEM, .operation = "loop"};
        return -ENOMEM;
    }
    int result = set_up(ring, options, ret_error);
    take_down(ring);
    free(ring);
    return result;
}

static int open_loop(struct sluice_loop *loop, const struct sluice_loop_options *options)
{
    struct uring_loop *ring = ring_of(loop);
    int result = set_up(ring, options, NULL);
    if (result < 0)
        return result;
    result = uring_stash_size > 0 ? enlarge_stash(ring, uring_stash_size) : 0;
    if (result < 0)
        return result;
    list_init(&ring->heard);
    ring->carrier.carry = carry;
    loop->carrier = &ring->carrier;
    return 0;
}

static void close_loop(struct sluice_loop *loop)
{
    struct uring_loop *ring = ring_of(loop);
    take_down(ring);
    free(ring->stash);
    while (ring->notices != NULL)
        drop_notice(ring->notices);
    while (ring->idle != NULL) {
        struct flight *flight = ring->idle;
        ring->idle = flight->next_idle;
        free(flight);
    }
}

const struct loop_kind loop_uring = {
    .loop_size = sizeof(struct uring_loop),
    .end_size = sizeof(struct uring_end),
    .listener_size = sizeof(struct uring_listener),
    .probe = probe,
    .open = open_loop,
    .close = close_loop,
    .linger = linger,
    .turn = turn,
    .meet = meet,
    .part = part,
    .receive = receive,
    .receive_some = receive_some,
    .hand_back = hand_back,
    .await = await,
    .withdraw = withdraw,
    .listen = listen_on,
    .unlisten = unlisten,
    .await_connect = await_connect,
    .forget_connect = forget_connect,
    .watch = watch,
    .unwatch = unwatch,
};
