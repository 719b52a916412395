/* SPDX-License-Identifier: MIT
 *
 * The floor: what serving one HTTP response costs when nothing but the system calls is left. One thread, one
 * edge-triggered epoll, no parsing beyond finding the empty line, one fixed response whose head was recorded from
 * the server under test, so both send exactly the same bytes. A server can come close to this, not below it,
 * unless it finds a cheaper mechanism, which then becomes another mode here.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum mode {
    MODE_MEMORY,        /* head and body in one buffer, one send */
    MODE_SENDFILE,      /* send(head, MSG_MORE), then sendfile */
    MODE_SENDFILE_CORK, /* the same between TCP_CORK on and off: only full segments leave before the end */
};

enum { REQUEST_MAX = 2048, EVENTS_MAX = 512 };

struct conn {
    int fd;
    bool queued;         /* on the ready list, because its turn ended before the socket was full */
    unsigned owed;       /* complete requests not yet answered, including the one being answered */
    uint64_t sent;       /* bytes of the current response that left, head included */
    struct conn *next;   /* ready list */
    size_t request_used; /* bytes of an incomplete request */
    char request[REQUEST_MAX];
};

static struct {
    enum mode mode;
    const char *memory; /* head, and in memory mode the body behind it */
    size_t head_size;
    int file;
    uint64_t body_size;
    size_t chunk;  /* most bytes per call */
    uint64_t turn; /* most bytes per connection before others, and the socket, get a turn */
    int epoll;
    struct conn *ready_first, *ready_last;
} g = {.chunk = 0x7ffff000, .turn = UINT64_MAX};

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "bench-floor: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void set_option(int fd, int level, int name, int value, const char *what)
{
    if (setsockopt(fd, level, name, &value, sizeof(value)) < 0)
        die(what);
}

static void conn_close(struct conn *c)
{
    close(c->fd);
    free(c);
}

static void ready_push(struct conn *c)
{
    c->queued = true;
    c->next = NULL;
    if (g.ready_last)
        g.ready_last->next = c;
    else
        g.ready_first = c;
    g.ready_last = c;
}

/* One call's worth. Returns what send and sendfile return. */
static ssize_t send_some(const struct conn *c)
{
    const uint64_t total = g.head_size + g.body_size;

    if (g.mode == MODE_MEMORY || c->sent < g.head_size) {
        const uint64_t limit = g.mode == MODE_MEMORY ? total : g.head_size;
        const bool more = limit < total;
        size_t n = (size_t)(limit - c->sent);
        if (n > g.chunk)
            n = g.chunk;
        return send(c->fd, g.memory + c->sent, n, MSG_NOSIGNAL | MSG_DONTWAIT | (more ? MSG_MORE : 0));
    }
    off_t offset = (off_t)(c->sent - g.head_size);
    uint64_t n = total - c->sent;
    if (n > g.chunk)
        n = g.chunk;
    return sendfile(c->fd, g.file, &offset, (size_t)n);
}

/* Answers what is owed until the socket is full or the turn ends. Returns false when the connection is dead. */
static bool respond(struct conn *c)
{
    const uint64_t total = g.head_size + g.body_size;
    uint64_t left = g.turn;

    while (c->owed > 0) {
        if (c->sent == 0 && g.mode == MODE_SENDFILE_CORK)
            set_option(c->fd, IPPROTO_TCP, TCP_CORK, 1, "TCP_CORK");
        while (c->sent < total) {
            const ssize_t n = send_some(c);
            if (n < 0 && errno == EAGAIN)
                return true;
            if (n <= 0)
                return false;
            c->sent += (uint64_t)n;
            if ((uint64_t)n >= left && c->sent < total) {
                ready_push(c);
                return true;
            }
            left -= (uint64_t)n < left ? (uint64_t)n : left;
        }
        if (g.mode == MODE_SENDFILE_CORK)
            set_option(c->fd, IPPROTO_TCP, TCP_CORK, 0, "TCP_CORK");
        c->sent = 0;
        c->owed--;
    }
    return true;
}

/* Returns false at the end of the connection. */
static bool receive(struct conn *c)
{
    for (;;) {
        const ssize_t n = recv(c->fd, c->request + c->request_used, REQUEST_MAX - c->request_used, MSG_DONTWAIT);
        if (n < 0)
            return errno == EAGAIN;
        if (n == 0)
            return false;
        c->request_used += (size_t)n;

        size_t start = 0;
        const char *end;
        while ((end = memmem(c->request + start, c->request_used - start, "\r\n\r\n", 4))) {
            start = (size_t)(end - c->request) + 4;
            c->owed++;
        }
        memmove(c->request, c->request + start, c->request_used - start);
        c->request_used -= start;
        if (c->request_used == REQUEST_MAX)
            return false;
        /* A short read emptied the socket: edge-triggered epoll reports what comes later. */
        if ((size_t)n < REQUEST_MAX - c->request_used)
            return true;
    }
}

static void accept_all(int listener)
{
    for (;;) {
        const int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            if (errno != EAGAIN)
                die("accept");
            return;
        }
        struct conn *c = calloc(1, sizeof(*c));
        if (!c)
            die("connection");
        c->fd = fd;
        set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY");
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
        if (epoll_ctl(g.epoll, EPOLL_CTL_ADD, fd, &event) < 0)
            die("epoll_ctl");
    }
}

static void serve(int listener)
{
    struct epoll_event events[EVENTS_MAX];

    for (;;) {
        const int n = epoll_wait(g.epoll, events, EVENTS_MAX, g.ready_first ? 0 : -1);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");

        struct conn *ready = g.ready_first;
        g.ready_first = g.ready_last = NULL;

        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (!c) {
                accept_all(listener);
                continue;
            }
            const bool alive = !(events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) || receive(c);
            /* A queued connection goes on, or is found dead, when its turn comes below. */
            if (c->queued)
                continue;
            if (!alive || !respond(c))
                conn_close(c);
        }
        while (ready) {
            struct conn *c = ready;
            ready = c->next;
            c->queued = false;
            if (!respond(c))
                conn_close(c);
        }
    }
}

static char *read_head(const char *path, size_t *ret_size)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        die(path);
    char *text = malloc(65536);
    if (!text)
        die("head");
    *ret_size = fread(text, 1, 65536, f);
    fclose(f);
    if (*ret_size < 4 || memcmp(text + *ret_size - 4, "\r\n\r\n", 4) != 0) {
        fprintf(stderr, "bench-floor: %s: a response head ends with an empty line\n", path);
        exit(1);
    }
    return text;
}

static void load_response(const char *head_path, const char *file_path)
{
    struct stat st;
    g.file = open(file_path, O_RDONLY | O_CLOEXEC);
    if (g.file < 0 || fstat(g.file, &st) < 0)
        die(file_path);
    g.body_size = (uint64_t)st.st_size;

    char *text;
    if (head_path) {
        text = read_head(head_path, &g.head_size);
    } else {
        const int n =
            asprintf(&text, "HTTP/1.1 200 OK\r\nContent-Length: %llu\r\n\r\n", (unsigned long long)g.body_size);
        if (n < 0)
            die("head");
        g.head_size = (size_t)n;
    }
    if (g.mode == MODE_MEMORY) {
        text = realloc(text, g.head_size + g.body_size);
        if (!text)
            die("body");
        for (uint64_t at = 0; at < g.body_size;) {
            const ssize_t n = pread(g.file, text + g.head_size + at, g.body_size - at, (off_t)at);
            if (n <= 0)
                die("read body");
            at += (uint64_t)n;
        }
    }
    g.memory = text;
}

static int listen_on(const char *where, const char *congestion, int sndbuf, int notsent_lowat)
{
    char host[64];
    const char *colon = strrchr(where, ':');
    if (!colon || (size_t)(colon - where) >= sizeof(host)) {
        fprintf(stderr, "bench-floor: --listen wants ADDRESS:PORT, not %s\n", where);
        exit(2);
    }
    memcpy(host, where, (size_t)(colon - where));
    host[colon - where] = '\0';
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(colon + 1))};
    if (inet_pton(AF_INET, host, &addr.sin_addr) != 1) {
        fprintf(stderr, "bench-floor: not an IPv4 address: %s\n", host);
        exit(2);
    }

    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR");
    /* Linux: accepted sockets inherit these from the listener. */
    if (congestion && setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, congestion, (socklen_t)strlen(congestion)) < 0)
        die(congestion);
    if (sndbuf > 0)
        set_option(fd, SOL_SOCKET, SO_SNDBUF, sndbuf, "SO_SNDBUF");
    if (notsent_lowat > 0)
        set_option(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, notsent_lowat, "TCP_NOTSENT_LOWAT");
    socklen_t size = sizeof(addr);
    if (bind(fd, (struct sockaddr *)&addr, size) < 0 || listen(fd, 4096) < 0 ||
        getsockname(fd, (struct sockaddr *)&addr, &size) < 0)
        die(where);
    printf("bench-floor: http://%s:%d/\n", host, ntohs(addr.sin_port));
    fflush(stdout);
    return fd;
}

static const char usage[] =
    "usage: bench-floor --file FILE [--mode memory|sendfile|sendfile-cork] [--head FILE] [--listen ADDRESS:PORT]\n"
    "                   [--congestion NAME] [--chunk BYTES] [--turn BYTES] [--sndbuf BYTES] [--notsent-lowat BYTES]\n";

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"file", required_argument, NULL, 'f'},
        {"mode", required_argument, NULL, 'm'},
        {"head", required_argument, NULL, 'h'},
        {"listen", required_argument, NULL, 'l'},
        {"congestion", required_argument, NULL, 'c'},
        {"chunk", required_argument, NULL, 'k'},
        {"turn", required_argument, NULL, 't'},
        {"sndbuf", required_argument, NULL, 's'},
        {"notsent-lowat", required_argument, NULL, 'n'},
        {"help", no_argument, NULL, '?'},
        {0},
    };
    static const char *const mode_names[] = {"memory", "sendfile", "sendfile-cork"};
    const char *file = NULL, *head = NULL, *congestion = NULL, *where = "127.0.0.1:0";
    int sndbuf = 0, notsent_lowat = 0, o;

    while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (o) {
        case 'f':
            file = optarg;
            break;
        case 'm':
            for (g.mode = MODE_MEMORY; g.mode <= MODE_SENDFILE_CORK; g.mode++)
                if (strcmp(optarg, mode_names[g.mode]) == 0)
                    break;
            if (g.mode > MODE_SENDFILE_CORK) {
                fputs(usage, stderr);
                return 2;
            }
            break;
        case 'h':
            head = optarg;
            break;
        case 'l':
            where = optarg;
            break;
        case 'c':
            congestion = optarg;
            break;
        case 'k':
            g.chunk = strtoull(optarg, NULL, 10);
            break;
        case 't':
            g.turn = strtoull(optarg, NULL, 10);
            if (g.turn < g.chunk)
                g.chunk = g.turn;
            break;
        case 's':
            sndbuf = atoi(optarg);
            break;
        case 'n':
            notsent_lowat = atoi(optarg);
            break;
        default:
            fputs(usage, stderr);
            return 2;
        }
    }
    if (!file || optind != argc || g.chunk == 0) {
        fputs(usage, stderr);
        return 2;
    }

    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    signal(SIGPIPE, SIG_IGN);
    load_response(head, file);
    const int listener = listen_on(where, congestion, sndbuf, notsent_lowat);
    g.epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (g.epoll < 0 || epoll_ctl(g.epoll, EPOLL_CTL_ADD, listener, &event) < 0)
        die("epoll");
    serve(listener);
}
