/* SPDX-License-Identifier: MIT
 *
 * The loop on epoll. Every end is registered once, edge-triggered, for everything, and never changed again: a request
 * costs no epoll_ctl. What an edge said is remembered in the end's state until the call that meets EAGAIN or a short
 * count uses it up.
 *
 * Callbacks may do anything to any object of the loop, closing included. So nothing is freed while events of the same
 * turn may still point to it: forgotten objects go to a graveyard that is cleared at the end of the turn.
 */
#include "../core/receipt.h"
#include "../core/sys.h"
#include "../core/transfer.h"
#include "helpers.h"
#include "timers.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/* A turn for a file that comes from disk: what is sent of it costs several times what a hot one does, and others wait.
 */
#define COLD_TURN (256u << 10)
/* So many queued transfers are stepped before epoll is asked again. */
#define STEPS_PER_TURN 64
/* So many ready transfers each have a whole turn. Of more, each has a shorter one: else a small request behind
 * thousands of downloads that begin together waited until each had sent its first MiB. Not of fewer: turns of 128 KiB
 * make bodies of 1 MiB a quarter dearer. Not below SHORTEST_TURN, where bytes become dear. */
#define WHOLE_TURNS 512
#define SHORTEST_TURN (64u << 10)
#define EVENTS_PER_TURN 256
#define RECEIVE_MAX (16u << 10)
#define ACCEPTS_PER_TURN 32
#define DEFAULT_HELPERS 2
#define RESUME_RETRY_MS 100
#define IDLE_TRANSFERS 64 /* kept for reuse; more are freed */

/* Whatever epoll can report on begins with this. */
struct source {
    void (*event)(struct source *source, uint32_t events);
    struct source *next_dead;
    bool dead;
};

struct loop_end {
    struct source source;
    struct sluice_loop *loop;
    struct sluice_end *end;
    sluice_receive_fn *receive;
    void *receive_context;
    uint32_t receive_max;
    bool readable; /* data or the end of it may be there */
    bool hangup;   /* the peer has closed its sending side, or the connection broke */
    bool broken;
    bool paused, receive_ended;
    bool ready; /* in loop->ready */
    struct loop_end *next_ready, **previous_ready;
    struct sluice_transfer *reader, *writer; /* waiting for this end */
};

struct sluice_listener {
    struct source source;
    struct sluice_loop *loop;
    int fd;
    bool paused;
    struct sluice_timer retry; /* of a resume that failed */
    sluice_accept_fn *accept;
    void *context;
};

struct sluice_watch {
    struct source source;
    struct sluice_loop *loop;
    int fd;
    void (*ready)(void *context);
    void *context;
};

struct sluice_loop {
    int epoll, wake;
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
    struct loop_end *ready;                        /* receivers with data left over from their last call */
    struct sluice_transfer *queued, **queued_last; /* transfers to be stepped, the oldest first */
    size_t queued_count;
    size_t heavy, heavy_before; /* steps of at least SHORTEST_TURN: in this turn, in the one before */
    uint64_t round;             /* counts how often the queue was gone through */
    struct sluice_transfer *idle;
    unsigned idle_count;
    void (*each_turn)(void *context);
    void *each_turn_context;
    sigset_t mask_before;
    char scratch[RECEIVE_MAX];
    struct epoll_event events[EVENTS_PER_TURN];
};

/* ---- Life and death ----------------------------------------------------------------------------------------- */

static void bury(struct sluice_loop *loop, struct source *source)
{
    if (source->dead)
        return;
    source->dead = true;
    source->next_dead = loop->dead;
    loop->dead = source;
}

static void clear_graveyard(struct sluice_loop *loop)
{
    while (loop->dead != NULL) {
        struct source *source = loop->dead;
        loop->dead = source->next_dead;
        free(source);
    }
}

static uint64_t read_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static int watch_fd(struct sluice_loop *loop, int fd, uint32_t events, struct source *source)
{
    struct epoll_event event = {.events = events, .data.ptr = source};
    return sys.epoll_ctl(loop->epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static void unwatch_fd(struct sluice_loop *loop, int fd)
{
    struct epoll_event event = {0};
    sys.epoll_ctl(loop->epoll, EPOLL_CTL_DEL, fd, &event);
}

/* ---- Ends --------------------------------------------------------------------------------------------------- */

static void mark_ready(struct loop_end *state)
{
    struct sluice_loop *loop = state->loop;
    if (state->ready)
        return;
    state->ready = true;
    state->next_ready = loop->ready;
    state->previous_ready = &loop->ready;
    if (state->next_ready != NULL)
        state->next_ready->previous_ready = &state->next_ready;
    loop->ready = state;
}

static void unmark_ready(struct loop_end *state)
{
    if (!state->ready)
        return;
    state->ready = false;
    *state->previous_ready = state->next_ready;
    if (state->next_ready != NULL)
        state->next_ready->previous_ready = state->previous_ready;
}

static void queue_transfer(struct sluice_loop *loop, struct sluice_transfer *transfer)
{
    if (transfer->queued)
        return;
    transfer->queued = true;
    transfer->round = loop->round;
    transfer->next = NULL;
    transfer->previous = loop->queued_last;
    *loop->queued_last = transfer;
    loop->queued_last = &transfer->next;
    loop->queued_count++;
}

static void unqueue_transfer(struct sluice_loop *loop, struct sluice_transfer *transfer)
{
    if (!transfer->queued)
        return;
    transfer->queued = false;
    *transfer->previous = transfer->next;
    if (transfer->next != NULL)
        transfer->next->previous = transfer->previous;
    else
        loop->queued_last = transfer->previous;
    loop->queued_count--;
}

static void end_receiving(struct loop_end *state, ssize_t how)
{
    state->receive_ended = true;
    unmark_ready(state);
    state->receive(state->receive_context, NULL, how);
}

static int socket_error(const struct sluice_end *end)
{
    int error = 0;
    socklen_t size = sizeof error;
    if (end_is_socket(end) && sys.getsockopt(end->fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error != 0)
        return -error;
    return -ECONNRESET;
}

/* One call of the receiver. A short count empties a socket, so the next EAGAIN need not be met, except when the peer
 * has closed: its end of data lies behind what was read. */
static void receive_some(struct loop_end *state)
{
    struct sluice_loop *loop = state->loop;
    struct sluice_end *end = state->end;
    ssize_t size;
    if (state->receive == NULL || state->receive_ended || state->paused || !state->readable)
        return;
    do {
        if (end_is_socket(end))
            size = sys.recv(end->fd, loop->scratch, state->receive_max, MSG_DONTWAIT);
        else
            size = sys.read(end->fd, loop->scratch, state->receive_max);
    } while (size < 0 && errno == EINTR);
    if (size < 0 && errno == EAGAIN) {
        state->readable = false;
        return;
    }
    if (size < 0) {
        end_receiving(state, -errno);
        return;
    }
    if (size == 0) {
        end_receiving(state, 0);
        return;
    }
    if ((size_t)size < state->receive_max && !state->hangup)
        state->readable = false;
    else
        mark_ready(state);
    state->receive(state->receive_context, loop->scratch, size);
}

static void end_event(struct source *source, uint32_t events)
{
    struct loop_end *state = (struct loop_end *)source;
    struct sluice_loop *loop = state->loop;
    if (events & (EPOLLERR | EPOLLHUP))
        state->broken = state->hangup = true;
    if (events & EPOLLRDHUP)
        state->hangup = true;
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP))
        state->readable = true;
    if (state->reader != NULL && state->readable)
        queue_transfer(loop, state->reader);
    if (state->writer != NULL && events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
        queue_transfer(loop, state->writer);
    if (state->receive == NULL || state->receive_ended || !state->readable)
        return;
    if (!state->paused)
        receive_some(state);
    else if (state->broken && events & EPOLLERR && state->writer == NULL)
        end_receiving(state, socket_error(state->end));
}

static int know_end(struct sluice_loop *loop, struct sluice_end *end)
{
    if (end->loop != NULL)
        return end->loop->loop == loop ? 0 : -EBUSY;
    struct loop_end *state = sys.allocate(1, sizeof *state);
    if (state == NULL)
        return -ENOMEM;
    state->source.event = end_event;
    state->loop = loop;
    state->end = end;
    int result = watch_fd(loop, end->fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, &state->source);
    if (result < 0) {
        free(state);
        return result;
    }
    end->loop = state;
    return 0;
}

void sluice_loop_forget(struct sluice_loop *loop, struct sluice_end *end)
{
    struct loop_end *state = end->loop;
    if (state == NULL)
        return;
    unmark_ready(state);
    unwatch_fd(loop, end->fd);
    end->loop = NULL;
    state->receive = NULL;
    bury(loop, &state->source);
}

int sluice_loop_receive(struct sluice_loop *loop, struct sluice_end *end, size_t max, sluice_receive_fn *receive,
                        void *context)
{
    int result = know_end(loop, end);
    if (result < 0)
        return result;
    struct loop_end *state = end->loop;
    state->receive = receive;
    state->receive_context = context;
    state->receive_max = max == 0 || max > RECEIVE_MAX ? RECEIVE_MAX : (uint32_t)max;
    state->receive_ended = false;
    sluice_loop_receive_resume(loop, end);
    return 0;
}

void sluice_loop_receive_pause(struct sluice_loop *loop, struct sluice_end *end)
{
    (void)loop;
    if (end->loop == NULL)
        return;
    end->loop->paused = true;
    unmark_ready(end->loop);
}

void sluice_loop_receive_resume(struct sluice_loop *loop, struct sluice_end *end)
{
    (void)loop;
    struct loop_end *state = end->loop;
    if (state == NULL)
        return;
    state->paused = false;
    if (state->readable && !state->receive_ended)
        mark_ready(state);
}

static void receive_ready(struct sluice_loop *loop)
{
    struct loop_end *list = loop->ready; /* what becomes ready meanwhile has its turn next time */
    loop->ready = NULL;
    if (list != NULL)
        list->previous_ready = &list;
    while (list != NULL) {
        struct loop_end *state = list;
        unmark_ready(state);
        receive_some(state);
    }
}

/* ---- Transfers ---------------------------------------------------------------------------------------------- */

/* A helper reads a window of a file. If the transfer is cancelled meanwhile, it may read by a descriptor that has been
 * closed, or opened anew for something else: that costs a read for nothing, and touches no memory of ours. */
struct pages_job {
    struct helper_job job;
    struct sluice_loop *loop;
    struct sluice_transfer *transfer; /* NULL: cancelled meanwhile */
    struct sluice_wait wait;
};

static void read_pages(void *context)
{
    struct pages_job *job = context;
    sluice_wait_pages(&job->wait); /* an error shows when the transfer reads for itself */
}

static void read_ahead(struct sluice_loop *loop, struct sluice_transfer *transfer);

static void pages_read(void *context)
{
    struct pages_job *job = context;
    struct sluice_transfer *transfer = job->transfer;
    if (transfer != NULL) {
        transfer->loop_context = NULL;
        end_note_resident(job->wait.end, job->wait.offset, job->wait.length, job->loop->now);
        if (transfer->waits_pages)
            queue_transfer(job->loop, transfer);
        else
            read_ahead(job->loop, transfer);
    }
    free(job);
}

static int want_pages(struct sluice_loop *loop, struct sluice_transfer *transfer, const struct sluice_wait *wait)
{
    if (transfer->loop_context != NULL)
        return 0; /* one read at a time */
    struct pages_job *job = sys.allocate(1, sizeof *job);
    if (job == NULL)
        return -ENOMEM;
    *job = (struct pages_job){.job = {.work = read_pages, .done = pages_read, .context = job},
                              .loop = loop,
                              .transfer = transfer,
                              .wait = *wait};
    transfer->loop_context = job;
    transfer->ahead_to = wait->offset + wait->length;
    helpers_submit(loop->helpers, &job->job);
    return 0;
}

/* While one window of a cold file is sent, the next one is read: else disk and network would take turns. */
static void read_ahead(struct sluice_loop *loop, struct sluice_transfer *transfer)
{
    const struct lane *lane = &transfer->lanes[0];
    if (transfer->ahead_to == 0 || transfer->loop_context != NULL || lane->segment >= transfer->segment_count)
        return;
    const struct sluice_segment *segment = lane_segment(lane, lane->segment);
    if (segment->kind != SLUICE_SEGMENT_FILE)
        return;
    uint64_t position = segment->offset + lane->at;
    uint64_t size = segment->end->file.size;
    uint64_t end = segment->length == SLUICE_UNTIL_END ? size : segment->offset + segment->length;
    if (transfer->ahead_to >= end || transfer->ahead_to >= position + PAGES_WINDOW)
        return;
    uint64_t length = end - transfer->ahead_to < PAGES_WINDOW ? end - transfer->ahead_to : PAGES_WINDOW;
    struct sluice_wait wait = {.kind = SLUICE_WAIT_PAGES,
                               .fd = segment->end->fd,
                               .end = segment->end,
                               .offset = transfer->ahead_to,
                               .length = length};
    want_pages(loop, transfer, &wait); /* without memory for it the transfer will wait for its pages instead */
}

static void stop_waiting(struct sluice_transfer *transfer)
{
    for (uint32_t i = 0; i < transfer->lane_count; i++) {
        struct loop_end *state = transfer->lanes[i].sink->loop;
        if (state != NULL && state->writer == transfer)
            state->writer = NULL;
    }
    for (uint32_t i = 0; i < transfer->segment_count; i++) {
        struct sluice_end *source = transfer->segments[i].end;
        if (transfer->segments[i].kind == SLUICE_SEGMENT_STREAM && source->loop != NULL &&
            source->loop->reader == transfer)
            source->loop->reader = NULL;
    }
}

/* Returns 0 or a negative errno: then the transfer cannot go on. */
static int start_waiting(struct sluice_loop *loop, struct sluice_transfer *transfer, const struct sluice_waits *waits)
{
    transfer->waited = true;
    for (unsigned i = 0; i < waits->count; i++) {
        const struct sluice_wait *wait = &waits->wait[i];
        if (wait->kind == SLUICE_WAIT_PAGES) {
            transfer->waits_pages = true;
            int result = want_pages(loop, transfer, wait);
            if (result < 0)
                return result;
            continue;
        }
        bool known = wait->end->loop != NULL;
        int result = know_end(loop, wait->end);
        if (result < 0)
            return result;
        struct loop_end *state = wait->end->loop;
        if (wait->kind == SLUICE_WAIT_READABLE) {
            state->reader = transfer;
            if (known)
                state->readable = false;
        } else {
            state->writer = transfer;
        }
    }
    return 0;
}

static struct sluice_transfer *take_transfer(struct sluice_loop *loop)
{
    struct sluice_transfer *transfer = loop->idle;
    if (transfer == NULL)
        return sys.allocate(1, sizeof *transfer);
    loop->idle = transfer->next;
    loop->idle_count--;
    return transfer;
}

static void put_transfer(struct sluice_loop *loop, struct sluice_transfer *transfer)
{
    if (loop->idle_count >= IDLE_TRANSFERS) {
        free(transfer);
        return;
    }
    transfer->next = loop->idle;
    loop->idle = transfer;
    loop->idle_count++;
}

static void detach(struct sluice_loop *loop, struct sluice_transfer *transfer)
{
    if (transfer->waited)
        stop_waiting(transfer);
    unqueue_transfer(loop, transfer);
    if (transfer->loop_context != NULL) {
        ((struct pages_job *)transfer->loop_context)->transfer = NULL;
        transfer->loop_context = NULL;
    }
}

/* The turn that a transfer may take, given how many others want one. */
static uint64_t turn_among_others(const struct sluice_loop *loop, uint64_t turn)
{
    size_t others = loop->queued_count;
    if (others < loop->heavy)
        others = loop->heavy;
    if (others < loop->heavy_before)
        others = loop->heavy_before;
    if (others <= WHOLE_TURNS || turn <= SHORTEST_TURN)
        return turn;
    uint64_t share = turn / others * WHOLE_TURNS;
    return share > SHORTEST_TURN ? share : SHORTEST_TURN;
}

/* SLUICE_STEP_DONE; 1 when it goes on later; or a negative errno. */
static int step_on_loop(struct sluice_loop *loop, struct sluice_transfer *transfer)
{
    struct sluice_waits waits;
    transfer->loop_now = loop->now;
    transfer->loop_turn = loop->turn;
    transfer->waits_pages = false;
    if (transfer->ahead_to != 0 && transfer->turn_size > COLD_TURN)
        transfer->turn_size = COLD_TURN;
    uint64_t turn = transfer->turn_size;
    transfer->turn_size = turn_among_others(loop, turn);
    int result = transfer_step(transfer, &waits);
    transfer->turn_size = turn;
    if (transfer->lanes[0].moved_in_turn >= SHORTEST_TURN)
        loop->heavy++;
    if (result > 0)
        read_ahead(loop, transfer);
    if (result == SLUICE_STEP_YIELD) {
        queue_transfer(loop, transfer);
        return 1;
    }
    if (result == SLUICE_STEP_WAIT) {
        result = start_waiting(loop, transfer, &waits);
        return result < 0 ? transfer_fail(&transfer->lanes[0], result, "wait", NULL, NULL) : 1;
    }
    return result;
}

static void complete_transfer(struct sluice_loop *loop, struct sluice_transfer *transfer, int result)
{
    detach(loop, transfer);
    transfer_settle(transfer); /* done may close the ends */
    transfer->done(transfer->done_context, transfer, result);
    transfer_end(transfer);
    put_transfer(loop, transfer);
}

int sluice_loop_transfer(struct sluice_loop *loop, const struct sluice_transfer_options *options,
                         sluice_transfer_done_fn *done, void *context, struct sluice_transfer **ret_transfer,
                         struct sluice_receipt *ret_receipt, struct sluice_error *ret_error)
{
    struct sluice_transfer *transfer = take_transfer(loop);
    if (transfer == NULL) {
        transfer_refuse(options, ret_receipt, 1);
        if (ret_error != NULL)
            *ret_error = (struct sluice_error){.code = -ENOMEM, .operation = "plan"};
        return -ENOMEM;
    }
    int result = transfer_begin(transfer, options, ret_error);
    if (result < 0) {
        transfer_refuse(options, ret_receipt, 1);
        put_transfer(loop, transfer);
        return result;
    }
    transfer->done = done;
    transfer->done_context = context;
    result = step_on_loop(loop, transfer);
    if (result == 1) {
        if (ret_transfer != NULL)
            *ret_transfer = transfer;
        return 0;
    }
    if (ret_receipt != NULL)
        receipt_copy(ret_receipt, &transfer->lanes[0].receipt);
    if (result < 0 && ret_error != NULL)
        *ret_error = transfer->error;
    detach(loop, transfer);
    transfer_end(transfer);
    put_transfer(loop, transfer);
    return result < 0 ? result : 1;
}

void sluice_loop_transfer_cancel(struct sluice_loop *loop, struct sluice_transfer *transfer)
{
    transfer_fail(&transfer->lanes[0], -ECANCELED, "transfer", "it was cancelled", NULL);
    complete_transfer(loop, transfer, -ECANCELED);
}

static void step_queued(struct sluice_loop *loop)
{
    uint64_t round = loop->round++; /* what is queued meanwhile has its turn next time */
    for (unsigned steps = 0; loop->queued != NULL && loop->queued->round <= round && steps < STEPS_PER_TURN; steps++) {
        struct sluice_transfer *transfer = loop->queued;
        unqueue_transfer(loop, transfer);
        int result = step_on_loop(loop, transfer);
        if (result != 1)
            complete_transfer(loop, transfer, result);
    }
}

/* ---- Listeners ---------------------------------------------------------------------------------------------- */

/* Out of descriptors: the waiting connection would wake the loop for ever. Accept it with the reserve and close it. */
static void turn_away(struct sluice_listener *listener)
{
    struct sluice_loop *loop = listener->loop;
    if (loop->reserve >= 0) {
        sys.close(loop->reserve);
        int fd = sys.accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0)
            sys.close(fd);
    }
    loop->reserve = sys.eventfd(0, EFD_CLOEXEC);
}

static void listener_event(struct source *source, uint32_t events)
{
    struct sluice_listener *listener = (struct sluice_listener *)source;
    (void)events;
    for (int i = 0; i < ACCEPTS_PER_TURN && !source->dead && !listener->paused; i++) {
        struct sockaddr_storage address;
        socklen_t size = sizeof address;
        int fd = sys.accept4(listener->fd, (struct sockaddr *)&address, &size, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            listener->accept(listener->context, fd, (struct sockaddr *)&address, size);
            continue;
        }
        int error = errno;
        switch (error) {
        case EAGAIN:
            return;
        case EINTR:
        case ECONNABORTED: /* gone again before it was accepted; accept(2) names the rest as its network errors */
        case EPROTO:
        case ENETDOWN:
        case ENOPROTOOPT:
        case EHOSTDOWN:
        case ENONET:
        case EHOSTUNREACH:
        case EOPNOTSUPP:
        case ENETUNREACH:
            continue;
        case EMFILE:
        case ENFILE:
            turn_away(listener);
            break;
        }
        listener->accept(listener->context, -error, NULL, 0);
        return;
    }
}

static int listener_watch(struct sluice_listener *listener)
{
    /* Exclusive: of several workers that listen on one socket, a connection wakes one. Level-triggered, so that what is
     * left in the queue is not forgotten. */
    return watch_fd(listener->loop, listener->fd, EPOLLIN | EPOLLEXCLUSIVE, &listener->source);
}

int sluice_loop_listen(struct sluice_loop *loop, int fd, sluice_accept_fn *accept, void *context,
                       struct sluice_listener **ret_listener)
{
    struct sluice_listener *listener = sys.allocate(1, sizeof *listener);
    if (listener == NULL)
        return -ENOMEM;
    *listener = (struct sluice_listener){
        .source.event = listener_event, .loop = loop, .fd = fd, .accept = accept, .context = context};
    int result = listener_watch(listener);
    if (result < 0) {
        free(listener);
        return result;
    }
    *ret_listener = listener;
    return 0;
}

void sluice_listener_pause(struct sluice_listener *listener)
{
    timers_stop(&listener->retry);
    if (!listener->paused)
        unwatch_fd(listener->loop, listener->fd);
    listener->paused = true;
}

static void resume_again(void *context)
{
    sluice_listener_resume(context);
}

void sluice_listener_resume(struct sluice_listener *listener)
{
    if (!listener->paused)
        return;
    /* It fails for want of memory or of the user's epoll watches, which pass; a listener must not stay deaf after it.
     */
    if (listener_watch(listener) < 0)
        sluice_timer_start(listener->loop, &listener->retry, RESUME_RETRY_MS, resume_again, listener);
    else
        listener->paused = false;
}

void sluice_listener_free(struct sluice_listener *listener)
{
    if (listener == NULL)
        return;
    sluice_listener_pause(listener);
    bury(listener->loop, &listener->source);
}

/* ---- Watches, timers, helpers ------------------------------------------------------------------------------- */

static void watch_event(struct source *source, uint32_t events)
{
    struct sluice_watch *watch = (struct sluice_watch *)source;
    (void)events;
    watch->ready(watch->context);
}

int sluice_loop_watch(struct sluice_loop *loop, int fd, void (*ready)(void *context), void *context,
                      struct sluice_watch **ret_watch)
{
    struct sluice_watch *watch = sys.allocate(1, sizeof *watch);
    if (watch == NULL)
        return -ENOMEM;
    *watch =
        (struct sluice_watch){.source.event = watch_event, .loop = loop, .fd = fd, .ready = ready, .context = context};
    int result = watch_fd(loop, fd, EPOLLIN | EPOLLET, &watch->source);
    if (result < 0) {
        free(watch);
        return result;
    }
    *ret_watch = watch;
    return 0;
}

void sluice_watch_free(struct sluice_watch *watch)
{
    if (watch == NULL || watch->source.dead)
        return;
    unwatch_fd(watch->loop, watch->fd);
    bury(watch->loop, &watch->source);
}

void sluice_timer_start(struct sluice_loop *loop, struct sluice_timer *timer, unsigned milliseconds,
                        void (*expired)(void *context), void *context)
{
    timer->expired = expired;
    timer->context = context;
    if (!loop->running)
        loop->now = read_clock();
    timers_start(&loop->timers, timer, loop->now, milliseconds);
}

void sluice_timer_stop(struct sluice_loop *loop, struct sluice_timer *timer)
{
    (void)loop;
    timers_stop(timer);
}

struct offloaded {
    struct helper_job job;
    void (*work)(void *context);
    void (*done)(void *context);
    void *context;
};

static void offloaded_work(void *context)
{
    struct offloaded *offloaded = context;
    offloaded->work(offloaded->context);
}

static void offloaded_done(void *context)
{
    struct offloaded *offloaded = context;
    void (*done)(void *) = offloaded->done;
    void *done_context = offloaded->context;
    free(offloaded);
    done(done_context);
}

int sluice_loop_offload(struct sluice_loop *loop, void (*work)(void *context), void (*done)(void *context),
                        void *context)
{
    struct offloaded *offloaded = sys.allocate(1, sizeof *offloaded);
    if (offloaded == NULL)
        return -ENOMEM;
    *offloaded = (struct offloaded){.job = {.work = offloaded_work, .done = offloaded_done, .context = offloaded},
                                    .work = work,
                                    .done = done,
                                    .context = context};
    helpers_submit(loop->helpers, &offloaded->job);
    return 0;
}

static void helpers_ended(void *context)
{
    struct sluice_loop *loop = context;
    uint64_t count;
    ssize_t ignored = sys.read(loop->wake, &count, sizeof count);
    (void)ignored;
    struct helper_job *job = helpers_collect(loop->helpers);
    while (job != NULL) {
        struct helper_job *next = job->next;
        job->done(job->context);
        job = next;
    }
}

/* The wheel's clock is the coarse one, which lags by up to a tick (10 ms at 100 Hz). */
#define CLOCK_LAG_MS 10

static void alarm_rang(void *context)
{
    struct sluice_loop *loop = context;
    loop->alarm_slot = UINT64_MAX; /* not read: setting it anew clears it, and edges need no reading */
}

/* See to it that the loop wakes for its next timer. Returns the timeout for epoll_wait: -1 when the alarm will do it.
 */
static int set_alarm(struct sluice_loop *loop)
{
    if (loop->timers.soonest >= loop->alarm_slot)
        return -1;
    uint64_t at = loop->timers.soonest * TIMER_SLOT_MS + CLOCK_LAG_MS;
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)(at / 1000), .tv_nsec = (long)(at % 1000) * 1000000}};
    if (sys.timerfd_settime(loop->alarm, TFD_TIMER_ABSTIME, &when, NULL) < 0)
        return timers_next(&loop->timers, loop->now);
    loop->alarm_slot = loop->timers.soonest;
    return -1;
}

/* ---- The loop ----------------------------------------------------------------------------------------------- */

int sluice_loop_new(const struct sluice_loop_options *options, struct sluice_loop **ret_loop)
{
    unsigned helpers = options != NULL && options->helpers != 0 ? options->helpers : DEFAULT_HELPERS;
    int nice = options != NULL ? options->helper_nice : 0;
    struct sluice_loop *loop = sys.allocate(1, sizeof *loop);
    if (loop == NULL)
        return -ENOMEM;
    loop->now = read_clock();
    loop->turn = 1;
    loop->queued_last = &loop->queued;
    loop->epoll = loop->wake = loop->alarm = loop->reserve = -1;
    loop->alarm_slot = UINT64_MAX;
    timers_begin(&loop->timers, loop->now);
    int result = 0;
    loop->epoll = sys.epoll_create1(EPOLL_CLOEXEC);
    if (loop->epoll < 0)
        result = -errno;
    if (result == 0) {
        loop->wake = sys.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        result = loop->wake < 0 ? -errno : 0;
    }
    if (result == 0) {
        loop->reserve = sys.eventfd(0, EFD_CLOEXEC);
        result = loop->reserve < 0 ? -errno : 0;
    }
    if (result == 0)
        result = helpers_new(helpers, nice, loop->wake, &loop->helpers);
    if (result == 0)
        result = sluice_loop_watch(loop, loop->wake, helpers_ended, loop, &loop->helper_watch);
    if (result == 0) {
        loop->alarm = sys.timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
        result = loop->alarm < 0 ? -errno : 0;
    }
    if (result == 0)
        result = sluice_loop_watch(loop, loop->alarm, alarm_rang, loop, &loop->alarm_watch);
    /* For good, not around every step: see core/sigpipe.h. */
    sigset_t sigpipe;
    sigemptyset(&sigpipe);
    sigaddset(&sigpipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &sigpipe, &loop->mask_before);
    if (result < 0) {
        sluice_loop_free(loop);
        return result;
    }
    *ret_loop = loop;
    return 0;
}

void sluice_loop_free(struct sluice_loop *loop)
{
    if (loop == NULL)
        return;
    helpers_free(loop->helpers);
    sluice_watch_free(loop->helper_watch);
    sluice_watch_free(loop->alarm_watch);
    clear_graveyard(loop);
    while (loop->idle != NULL) {
        struct sluice_transfer *transfer = loop->idle;
        loop->idle = transfer->next;
        free(transfer);
    }
    const int fds[] = {loop->epoll, loop->wake, loop->alarm, loop->reserve};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            sys.close(fds[i]);
    if (sigismember(&loop->mask_before, SIGPIPE) == 0) {
        sigset_t sigpipe;
        struct timespec at_once = {0};
        sigemptyset(&sigpipe);
        sigaddset(&sigpipe, SIGPIPE);
        while (sigtimedwait(&sigpipe, NULL, &at_once) > 0)
            ;
        pthread_sigmask(SIG_UNBLOCK, &sigpipe, NULL);
    }
    pools_drain();
    free(loop);
}

void sluice_loop_stop(struct sluice_loop *loop)
{
    loop->stop = 1;
}

uint64_t sluice_loop_now(const struct sluice_loop *loop)
{
    return loop->now;
}

uint64_t sluice_loop_turn(const struct sluice_loop *loop)
{
    return loop->turn;
}

void sluice_loop_each_turn(struct sluice_loop *loop, void (*run)(void *context), void *context)
{
    loop->each_turn = run;
    loop->each_turn_context = context;
}

int sluice_loop_run(struct sluice_loop *loop)
{
    loop->running = true;
    while (!loop->stop) {
        int timeout = loop->ready != NULL || loop->queued != NULL ? 0 : set_alarm(loop);
        int count = sys.epoll_wait(loop->epoll, loop->events, EVENTS_PER_TURN, timeout);
        if (count < 0 && errno != EINTR) {
            loop->running = false;
            return -errno;
        }
        loop->now = read_clock();
        loop->turn++;
        loop->heavy_before = loop->heavy;
        loop->heavy = 0;
        for (int i = 0; i < count; i++) {
            struct source *source = loop->events[i].data.ptr;
            if (!source->dead)
                source->event(source, loop->events[i].events);
        }
        receive_ready(loop);
        step_queued(loop);
        timers_expire(&loop->timers, loop->now);
        if (loop->each_turn != NULL)
            loop->each_turn(loop->each_turn_context);
        clear_graveyard(loop);
    }
    loop->stop = 0;
    loop->running = false;
    return 0;
}
