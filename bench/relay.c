/* SPDX-License-Identifier: MIT
 *
 * The floor of a TCP proxy: what forwarding costs when nothing but the system calls is left. One thread, one
 * edge-triggered epoll, one upstream, both directions, no timeouts, no limits, no log. Two ways: splice through a pipe
 * of 1 MiB, which a direction holds only while bytes are in it, or recv and send through one buffer. A proxy can come
 * close to this, not below it, unless it finds a cheaper mechanism, which then becomes another mode here.
 */
#include "account.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    EVENTS_MAX = 512,
    PIPE_SIZE = 1 << 20,
    PIPES_KEPT = 1024,
    BUFFER_SIZE = 256 << 10,
    TURN = 4 << 20, /* most bytes per direction before others get a turn */
};

struct conn;

struct side {
    int fd;
    struct conn *conn;
};

/* One direction. What has been taken and could not be sent yet is in the pipe, or in `kept`. */
struct flow {
    struct side *from, *to;
    bool ended;
    int pipe[2];
    char *kept;
    size_t held, kept_at;
};

struct conn {
    struct side sides[2];
    struct flow flows[2]; /* flows[i] is from sides[i] */
    bool queued, dead;
    struct conn *next; /* in the list of those that go on without an event, or of the dead */
};

static struct {
    bool copy;
    struct sockaddr_in to;
    const char *congestion;
    int epoll;
    int pipes[PIPES_KEPT][2];
    unsigned pipe_count;
    struct conn *ready_first, *ready_last, *dead;
    char buffer[BUFFER_SIZE];
} g;

static void set_option(int fd, int level, int name, int value)
{
    if (setsockopt(fd, level, name, &value, sizeof(value)) < 0)
        die("socket option: %s", strerror(errno));
}

static void set_congestion(int fd)
{
    if (g.congestion && setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, g.congestion, (socklen_t)strlen(g.congestion)) < 0)
        die("congestion control %s: %s", g.congestion, strerror(errno));
}

/* --- pipes -------------------------------------------------------------------------------------------------- */

/* The one that was used last is the one whose ring is in the cache. */
static void pipe_take(int ret_pipe[2])
{
    if (g.pipe_count > 0) {
        g.pipe_count--;
        ret_pipe[0] = g.pipes[g.pipe_count][0];
        ret_pipe[1] = g.pipes[g.pipe_count][1];
        return;
    }
    if (pipe2(ret_pipe, O_NONBLOCK | O_CLOEXEC) < 0)
        die("pipe: %s", strerror(errno));
    fcntl(ret_pipe[1], F_SETPIPE_SZ, PIPE_SIZE); /* refused: then it is a smaller one */
}

/* An empty pipe comes back, one with residue is closed. */
static void pipe_give(struct flow *f)
{
    if (f->held == 0 && g.pipe_count < PIPES_KEPT) {
        g.pipes[g.pipe_count][0] = f->pipe[0];
        g.pipes[g.pipe_count][1] = f->pipe[1];
        g.pipe_count++;
    } else {
        close(f->pipe[0]);
        close(f->pipe[1]);
    }
    f->pipe[0] = f->pipe[1] = -1;
}

/* --- connections -------------------------------------------------------------------------------------------- */

static void ready_push(struct conn *c)
{
    if (c->queued)
        return;
    c->queued = true;
    c->next = NULL;
    if (g.ready_last)
        g.ready_last->next = c;
    else
        g.ready_first = c;
    g.ready_last = c;
}

static void conn_bury(struct conn *c)
{
    c->next = g.dead;
    g.dead = c;
}

/* Freed when neither an event of this turn nor the ready list can refer to it any more. */
static void conn_close(struct conn *c)
{
    for (unsigned i = 0; i < 2; i++) {
        close(c->sides[i].fd);
        if (c->flows[i].pipe[0] >= 0)
            pipe_give(&c->flows[i]);
        free(c->flows[i].kept);
    }
    c->dead = true;
    if (!c->queued)
        conn_bury(c);
}

static bool is_full(ssize_t n)
{
    return n < 0 && errno == EAGAIN;
}

/* Returns false when the connection is dead, as forward_copy does. */
static bool forward_splice(struct flow *f)
{
    for (size_t turn = 0;;) {
        if (f->held == 0) {
            if (turn >= TURN) {
                ready_push(f->from->conn);
                break;
            }
            if (f->pipe[0] < 0)
                pipe_take(f->pipe);
            const ssize_t n = splice(f->from->fd, NULL, f->pipe[1], NULL, PIPE_SIZE, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
            if (is_full(n))
                break;
            if (n < 0)
                return false;
            if (n == 0) {
                f->ended = true;
                shutdown(f->to->fd, SHUT_WR);
                break;
            }
            f->held = (size_t)n;
            turn += (size_t)n;
        }
        const ssize_t n = splice(f->pipe[0], NULL, f->to->fd, NULL, f->held, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
        if (is_full(n))
            return true;
        if (n <= 0)
            return false;
        f->held -= (size_t)n;
    }
    pipe_give(f);
    return true;
}

static bool forward_copy(struct flow *f, bool hung_up)
{
    for (size_t turn = 0;;) {
        while (f->held > 0) {
            const ssize_t n = send(f->to->fd, f->kept + f->kept_at, f->held, MSG_NOSIGNAL);
            if (is_full(n))
                return true;
            if (n < 0)
                return false;
            f->kept_at += (size_t)n;
            f->held -= (size_t)n;
        }
        if (turn >= TURN) {
            ready_push(f->from->conn);
            return true;
        }
        const ssize_t n = recv(f->from->fd, g.buffer, BUFFER_SIZE, 0);
        if (is_full(n))
            return true;
        if (n < 0)
            return false;
        if (n == 0) {
            f->ended = true;
            shutdown(f->to->fd, SHUT_WR);
            return true;
        }
        turn += (size_t)n;
        const ssize_t sent = send(f->to->fd, g.buffer, (size_t)n, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN)
            return false;
        if (sent < n) {
            if (!f->kept && !(f->kept = malloc(BUFFER_SIZE)))
                die("out of memory");
            f->kept_at = 0;
            f->held = (size_t)(n - (sent < 0 ? 0 : sent));
            memcpy(f->kept, g.buffer + n - f->held, f->held);
        } else if (n < BUFFER_SIZE && !hung_up) {
            return true; /* a short read emptied the socket: edge-triggered epoll reports what comes later */
        }
    }
}

static void forward(struct conn *c, struct flow *f, bool hung_up)
{
    if (c->dead || f->ended)
        return;
    if (!(g.copy ? forward_copy(f, hung_up) : forward_splice(f)) || (c->flows[0].ended && c->flows[1].ended))
        conn_close(c);
}

static void handle(struct side *side, uint32_t events)
{
    struct conn *c = side->conn;
    const unsigned i = side == &c->sides[1];

    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        forward(c, &c->flows[i], events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR));
    if ((events & EPOLLOUT) && c->flows[!i].held > 0)
        forward(c, &c->flows[!i], true);
}

static void watch(struct side *side)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = side};
    if (epoll_ctl(g.epoll, EPOLL_CTL_ADD, side->fd, &event) < 0)
        die("epoll_ctl: %s", strerror(errno));
}

/* Bytes of the client that come before the upstream is connected find it not ready to send, as a full socket. */
static void accept_all(int listener)
{
    for (;;) {
        const int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (client < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            if (errno != EAGAIN)
                die("accept: %s", strerror(errno));
            return;
        }
        const int server = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        struct conn *c = calloc(1, sizeof(*c));
        if (!c || server < 0)
            die("connection: %s", strerror(errno));
        set_congestion(server);
        set_option(client, IPPROTO_TCP, TCP_NODELAY, 1);
        set_option(server, IPPROTO_TCP, TCP_NODELAY, 1);
        if (connect(server, (struct sockaddr *)&g.to, sizeof(g.to)) < 0 && errno != EINPROGRESS)
            die("connect: %s", strerror(errno));
        c->sides[0] = (struct side){client, c};
        c->sides[1] = (struct side){server, c};
        for (unsigned i = 0; i < 2; i++)
            c->flows[i] = (struct flow){.from = &c->sides[i], .to = &c->sides[!i], .pipe = {-1, -1}};
        watch(&c->sides[0]);
        watch(&c->sides[1]);
    }
}

static void relay(int listener)
{
    struct epoll_event events[EVENTS_MAX];

    for (;;) {
        struct conn *ready = g.ready_first;
        const int n = epoll_wait(g.epoll, events, EVENTS_MAX, ready ? 0 : -1);
        if (n < 0 && errno != EINTR)
            die("epoll_wait: %s", strerror(errno));
        g.ready_first = g.ready_last = NULL;
        for (int i = 0; i < n; i++) {
            if (!events[i].data.ptr)
                accept_all(listener);
            else
                handle(events[i].data.ptr, events[i].events);
        }
        while (ready) {
            struct conn *c = ready;
            ready = c->next;
            c->queued = false;
            if (c->dead)
                conn_bury(c);
            forward(c, &c->flows[0], true);
            forward(c, &c->flows[1], true);
        }
        while (g.dead) {
            struct conn *c = g.dead;
            g.dead = c->next;
            free(c);
        }
    }
}

/* --- command line ------------------------------------------------------------------------------------------- */

static int listen_on(struct sockaddr_in where)
{
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket: %s", strerror(errno));
    set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    set_congestion(fd); /* Linux: accepted sockets inherit it */
    socklen_t size = sizeof(where);
    if (bind(fd, (struct sockaddr *)&where, size) < 0 || listen(fd, 4096) < 0 ||
        getsockname(fd, (struct sockaddr *)&where, &size) < 0)
        die("listen: %s", strerror(errno));
    printf("bench-relay: http://127.0.0.1:%d/\n", ntohs(where.sin_port));
    fflush(stdout);
    return fd;
}

static const char usage[] =
    "usage: bench-relay --to ADDRESS:PORT [--mode splice|copy] [--listen ADDRESS:PORT] [--congestion NAME]\n";

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"to", required_argument, NULL, 't'},
        {"mode", required_argument, NULL, 'm'},
        {"listen", required_argument, NULL, 'l'},
        {"congestion", required_argument, NULL, 'c'},
        {0},
    };
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 't':
            g.to = parse_address(optarg);
            break;
        case 'm':
            g.copy = strcmp(optarg, "copy") == 0;
            if (!g.copy && strcmp(optarg, "splice") != 0) {
                fputs(usage, stderr);
                return 2;
            }
            break;
        case 'l':
            where = parse_address(optarg);
            break;
        case 'c':
            g.congestion = optarg;
            break;
        default:
            fputs(usage, stderr);
            return 2;
        }
    }
    if (!g.to.sin_port || optind != argc) {
        fputs(usage, stderr);
        return 2;
    }
    allow_descriptors(64);
    signal(SIGPIPE, SIG_IGN);
    const int listener = listen_on(where);
    g.epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    if (g.epoll < 0 || epoll_ctl(g.epoll, EPOLL_CTL_ADD, listener, &event) < 0)
        die("epoll: %s", strerror(errno));
    relay(listener);
}
