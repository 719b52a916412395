/* SPDX-License-Identifier: MIT
 *
 * The loop on epoll. Every end is registered once, edge-triggered, for everything, and never changed again: a request
 * costs no epoll_ctl. What an edge said is remembered in the end's state until the call that meets EAGAIN or a short
 * count uses it up.
 */
#include "../core/sys.h"
#include "loop.h"
#include <errno.h>
#include <unistd.h>

#define EVENTS_PER_TURN 256

struct epoll_loop {
    struct sluice_loop common;
    int epoll;
    char scratch[RECEIVE_MAX];
    struct epoll_event events[EVENTS_PER_TURN];
};

static int watch_fd(struct sluice_loop *loop, int fd, uint32_t events, struct source *source)
{
    struct epoll_event event = {.events = events, .data.ptr = source};
    return sys.epoll_ctl(((struct epoll_loop *)loop)->epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static void unwatch_fd(struct sluice_loop *loop, int fd)
{
    struct epoll_event event = {0};
    sys.epoll_ctl(((struct epoll_loop *)loop)->epoll, EPOLL_CTL_DEL, fd, &event);
}

/* ---- Ends --------------------------------------------------------------------------------------------------- */

/* To be told to the receiver: the socket will not say it again. */
static int take_error(struct sluice_end *end)
{
    int error = loop_socket_error(end);
    if (end_is_socket(end))
        end->socket.broke = (int16_t)error;
    return error;
}

/* One call of the receiver. A short count empties a socket, so the next EAGAIN need not be met, except when the peer
 * has closed: its end of data lies behind what was read. */
static void receive_some(struct loop_end *state)
{
    char *scratch = ((struct epoll_loop *)state->loop)->scratch;
    struct sluice_end *end = state->end;
    ssize_t size;
    if (state->receive == NULL || state->receive_ended || state->paused || !state->readable)
        return;
    do {
        if (end_is_socket(end))
            size = sys.recv(end->fd, scratch, state->receive_max, MSG_DONTWAIT);
        else
            size = sys.read(end->fd, scratch, state->receive_max);
    } while (size < 0 && errno == EINTR);
    if (size < 0 && errno == EAGAIN) {
        state->readable = false;
        return;
    }
    if (size < 0) {
        loop_end_receiving(state, loop_how_it_ended(end, -errno));
        return;
    }
    if (size == 0) {
        loop_end_receiving(state, 0);
        return;
    }
    if ((size_t)size < state->receive_max && !state->hangup)
        state->readable = false;
    else
        loop_mark_ready(state);
    state->receive(state->receive_context, scratch, size);
}

/* EPOLLERR may be the error queue of a healthy socket: memory has come back. A connection that broke has EPOLLHUP too
 * (tcp_poll). While a transfer waits for room in the socket the queue is left alone: it is read once for many calls.
 * Returns the events that are left to be handled. */
static uint32_t take_returns(struct loop_end *state, uint32_t events)
{
    uint64_t calls = 0;
    struct sluice_end *end = state->end;
    bool later = state->writer != NULL && !(events & EPOLLHUP) && !end_collects_now(end);
    if (!later && end_loans(end) > 0)
        end_collect(end, &calls); /* the end may be gone after it */
    return events & EPOLLHUP ? events : events & ~(uint32_t)EPOLLERR;
}

static void end_event(struct loop_end *state, uint32_t events)
{
    struct sluice_loop *loop = state->loop;
    if (events & EPOLLERR && end_has_lent(state->end)) {
        events = take_returns(state, events);
        if (state->source.dead)
            return;
    }
    if (events & (EPOLLERR | EPOLLHUP))
        state->broken = state->hangup = true;
    if (events & EPOLLRDHUP)
        state->hangup = true;
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP))
        state->readable = true;
    if (state->reader != NULL && state->readable)
        loop_queue_transfer(loop, state->reader);
    if (state->writer != NULL && events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
        loop_queue_transfer(loop, state->writer);
    if (state->receive == NULL || state->receive_ended || !state->readable)
        return;
    if (!state->paused)
        receive_some(state);
    else if (state->broken && events & EPOLLERR && state->writer == NULL && !loop_waits_to_read(state))
        loop_end_receiving(state, take_error(state->end));
}

static int meet(struct loop_end *state)
{
    return watch_fd(state->loop, state->end->fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, &state->source);
}

static void part(struct loop_end *state)
{
    unwatch_fd(state->loop, state->end->fd);
}

static int receive(struct loop_end *state)
{
    if (state->readable)
        loop_mark_ready(state);
    return 0;
}

/* Registering reports what is true already; of an end that was known, the edge is still to come. */
static int await(struct loop_end *state, enum sluice_wait_kind kind, bool fresh)
{
    if (kind == SLUICE_WAIT_READABLE && !fresh)
        state->readable = false;
    return 0;
}

static void withdraw(struct sluice_loop *loop, struct sluice_transfer *transfer)
{
    (void)loop, (void)transfer; /* edges are reported whether anybody waits or not */
}

/* ---- Listeners, connecting sockets and watches ------------------------------------------------------------------ */

static int listen_on(struct sluice_listener *listener)
{
    /* Exclusive: of several workers that listen on one socket, a connection wakes one. Level-triggered, so that what is
     * left in the queue is not forgotten. The kernel takes a wake-up as passed on only if it ends this loop's sleep,
     * and then the listener is what the loop looks at first: before anything can pause it. */
    return watch_fd(listener->loop, listener->fd, EPOLLIN | EPOLLEXCLUSIVE, &listener->source);
}

static void unlisten(struct sluice_listener *listener, bool for_good)
{
    (void)for_good;
    if (!listener->paused)
        unwatch_fd(listener->loop, listener->fd);
}

static int await_connect(struct sluice_connect *connect)
{
    return watch_fd(connect->loop, connect->fd, EPOLLOUT | EPOLLET, &connect->source);
}

/* Also when it has ended: the caller registers the socket anew, as an end. */
static void forget_connect(struct sluice_connect *connect)
{
    unwatch_fd(connect->loop, connect->fd);
}

static int watch(struct sluice_watch *watch)
{
    return watch_fd(watch->loop, watch->fd, EPOLLIN | EPOLLET, &watch->source);
}

static void unwatch(struct sluice_watch *watch)
{
    unwatch_fd(watch->loop, watch->fd);
}

/* ---- The loop ----------------------------------------------------------------------------------------------- */

static int open_loop(struct sluice_loop *loop, const struct sluice_loop_options *options)
{
    struct epoll_loop *mine = (struct epoll_loop *)loop;
    (void)options;
    mine->epoll = sys.epoll_create1(EPOLL_CLOEXEC);
    return mine->epoll < 0 ? -errno : 0;
}

static void close_loop(struct sluice_loop *loop)
{
    int epoll = ((struct epoll_loop *)loop)->epoll;
    if (epoll >= 0)
        sys.close(epoll);
}

static int turn(struct sluice_loop *loop, int timeout)
{
    struct epoll_loop *mine = (struct epoll_loop *)loop;
    int count = sys.epoll_wait(mine->epoll, mine->events, EVENTS_PER_TURN, timeout);
    if (count < 0 && errno != EINTR)
        return -errno;
    loop_begin_turn(loop);
    for (int i = 0; i < count; i++) {
        struct source *source = mine->events[i].data.ptr;
        if (source->dead)
            continue;
        switch (source->kind) {
        case SOURCE_END:
            end_event((struct loop_end *)source, mine->events[i].events);
            break;
        case SOURCE_LISTENER:
            loop_accept_some((struct sluice_listener *)source);
            break;
        case SOURCE_CONNECT:
            forget_connect((struct sluice_connect *)source);
            loop_connect_ended((struct sluice_connect *)source, 0);
            break;
        case SOURCE_WATCH: {
            struct sluice_watch *watch = (struct sluice_watch *)source;
            watch->ready(watch->context);
            break;
        }
        }
    }
    return 0;
}

const struct loop_kind loop_epoll = {
    .loop_size = sizeof(struct epoll_loop),
    .end_size = sizeof(struct loop_end),
    .listener_size = sizeof(struct sluice_listener),
    .open = open_loop,
    .close = close_loop,
    .turn = turn,
    .meet = meet,
    .part = part,
    .receive = receive,
    .receive_some = receive_some,
    .await = await,
    .withdraw = withdraw,
    .listen = listen_on,
    .unlisten = unlisten,
    .await_connect = await_connect,
    .forget_connect = forget_connect,
    .watch = watch,
    .unwatch = unwatch,
};
