/* SPDX-License-Identifier: MIT
 *
 * The load of proxies: client and origin in one thread on one core, so that the proxy has the other core for itself. In
 * a closed loop each connection sends a request of some size to the proxy, the origin answers with a response of some
 * size: bulk, small exchanges and connections are sizes and counts of these. As client.c, and for its reasons, it
 * spins, discards what comes with MSG_TRUNC, and takes the measurements of the proxy (--cpu-of).
 *
 * The origin's listening socket is inherited (--origin), because the proxy must be told its port before a load begins,
 * and lives through many.
 */
#include "account.h"
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
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    EVENTS_MAX = 512,
    READ_SIZE = 256 << 10, /* buffer of ends that really read */
    DISCARD_TURN = 4 << 20,
    SEND_SIZE = 256 << 10,     /* most bytes per call */
    SEND_TURN = 1 << 20,       /* most bytes per connection before others get a turn */
    PERIOD = 1048573,          /* of the payload: prime, so that no misplaced block looks right */
    NUMBER = sizeof(uint32_t), /* a request begins with its connection's number */
    PHASE = 7919,              /* by which the payloads of two connections differ */
    SILENCE = 8,               /* s */
};
#define STALL (20 * SECOND)

/* One end of the proxy: the client's, or the origin's of the same. */
struct end {
    int fd;
    bool origin, idle, queued, done, closing;
    uint32_t number;
    uint64_t out, in;        /* bytes of the current message still to be sent, and to come */
    uint64_t sent, received; /* of the current message */
    uint64_t started;
    char first[NUMBER]; /* of a request */
    struct end *next;   /* in the list of those that go on without an event, or of those that are free */
};

static struct {
    struct sockaddr_in target;
    int origin;
    unsigned connections, idle;
    uint64_t request, response, count;
    double seconds, warmup;
    bool read, block, verify, close, sendfile, apart;
    const char *congestion;
} o = {.origin = -1, .connections = 1, .request = 1024, .response = 1024, .seconds = 1, .warmup = 0.2};

static struct {
    int epoll, file;
    bool measuring, client, server; /* which parts this process plays */
    struct end *clients, *ready_first, *ready_last, *free;
    unsigned idle_answered;
    uint64_t exchanges, bytes, checked, errors, last_progress;
    uint64_t random;
    char first_error[256];
    struct histogram latency;
    char *payload; /* PERIOD bytes, and their beginning again: SEND_SIZE bytes from every place on */
    char buffer[READ_SIZE];
} g = {.random = 88172645463325252u};

static void note_error(const char *what, const char *why)
{
    if (g.errors++ == 0)
        snprintf(g.first_error, sizeof(g.first_error), "%s: %.200s", what, why);
    if (g.errors > 1000)
        die("too many errors, the first was %s", g.first_error);
}

/* --- payload ------------------------------------------------------------------------------------------------ */

static uint64_t next_random(void)
{
    g.random ^= g.random << 13;
    g.random ^= g.random >> 7;
    g.random ^= g.random << 17;
    return g.random;
}

static void payload_make(void)
{
    const size_t size = PERIOD + READ_SIZE;
    g.file = memfd_create("payload", MFD_CLOEXEC);
    if (g.file < 0 || ftruncate(g.file, (off_t)size) < 0)
        die("memfd: %s", strerror(errno));
    g.payload = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, g.file, 0);
    if (g.payload == MAP_FAILED)
        die("mmap: %s", strerror(errno));
    for (size_t i = 0; i < PERIOD; i++)
        g.payload[i] = (char)next_random();
    memcpy(g.payload + PERIOD, g.payload, READ_SIZE);
}

/* Where the payload of a message's byte lies. Requests and responses differ, as the connections do. */
static size_t payload_at(const struct end *e, bool request, uint64_t offset)
{
    return (size_t)((offset + (uint64_t)e->number * PHASE + (request ? PERIOD / 2 : 0)) % PERIOD);
}

static void check(struct end *e, const char *data, size_t n)
{
    const bool request = e->origin;
    size_t skip = 0;
    if (request && e->received < NUMBER) {
        skip = NUMBER - e->received < n ? NUMBER - (size_t)e->received : n;
        memcpy(e->first + e->received, data, skip);
        if (e->received + skip == NUMBER)
            memcpy(&e->number, e->first, NUMBER);
    }
    if (memcmp(data + skip, g.payload + payload_at(e, request, e->received + skip), n - skip) != 0)
        note_error(request ? "a request came with wrong bytes" : "a response came with wrong bytes", "data differ");
    g.checked += n;
}

/* --- ends --------------------------------------------------------------------------------------------------- */

static void set_option(int fd, int level, int name, int value)
{
    if (setsockopt(fd, level, name, &value, sizeof(value)) < 0)
        die("socket option: %s", strerror(errno));
}

static void watch(struct end *e)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = e};
    if (epoll_ctl(g.epoll, EPOLL_CTL_ADD, e->fd, &event) < 0)
        die("epoll_ctl: %s", strerror(errno));
}

static void ready_push(struct end *e)
{
    if (e->queued)
        return;
    e->queued = true;
    e->next = NULL;
    if (g.ready_last)
        g.ready_last->next = e;
    else
        g.ready_first = e;
    g.ready_last = e;
}

static void begin(struct end *e)
{
    e->out = e->origin ? 0 : o.request;
    e->in = e->origin ? o.request : o.response;
    e->sent = e->received = 0;
    if (!e->origin && !o.close)
        e->started = now();
}

static void client_open(struct end *e)
{
    e->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (e->fd < 0)
        die("socket: %s", strerror(errno));
    if (o.congestion &&
        setsockopt(e->fd, IPPROTO_TCP, TCP_CONGESTION, o.congestion, (socklen_t)strlen(o.congestion)) < 0)
        die("congestion control %s: %s", o.congestion, strerror(errno));
    set_option(e->fd, IPPROTO_TCP, TCP_NODELAY, 1);
    if (o.idle > 0) {
        /* Reset at close: ten thousand connections in TIME_WAIT would slow the next round's port search. */
        const struct linger reset = {.l_onoff = 1};
        setsockopt(e->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    }
    e->started = now();
    if (connect(e->fd, (struct sockaddr *)&o.target, sizeof(o.target)) < 0 && errno != EINPROGRESS)
        die("connect: %s", strerror(errno));
    e->closing = false;
    begin(e);
    watch(e);
}

static void origin_accept(void)
{
    for (;;) {
        const int fd = accept4(o.origin, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            if (errno != EAGAIN)
                die("accept: %s", strerror(errno));
            return;
        }
        struct end *e = g.free;
        if (e)
            g.free = e->next;
        else if (!(e = malloc(sizeof(*e))))
            die("out of memory");
        *e = (struct end){.fd = fd, .origin = true};
        set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
        begin(e);
        watch(e);
    }
}

/* The client opens its next connection at once. Nothing else refers to an end whose turn this is. */
static void end_close(struct end *e)
{
    close(e->fd);
    if (!e->origin) {
        if (e->idle)
            die("an idle connection was closed");
        client_open(e);
        return;
    }
    e->next = g.free;
    g.free = e;
}

static void exchange_done(struct end *e)
{
    const uint64_t t = now();
    g.last_progress = t;
    g.exchanges++;
    if (g.measuring)
        histogram_add(&g.latency, t - e->started);
    if (e->idle) {
        g.idle_answered++;
        e->done = true;
    }
}

static ssize_t send_some(const struct end *e)
{
    const bool request = !e->origin;
    if (request && o.verify && e->sent < NUMBER)
        return send(e->fd, (const char *)&e->number + e->sent, NUMBER - (size_t)e->sent,
                    MSG_NOSIGNAL | (e->out > NUMBER - e->sent ? MSG_MORE : 0));
    size_t n = e->out < SEND_SIZE ? (size_t)e->out : SEND_SIZE;
    if (o.verify)
        n = 1 + (size_t)(next_random() % n); /* in pieces of all sizes */
    const size_t at = payload_at(e, request, e->sent);
    if (!o.sendfile)
        return send(e->fd, g.payload + at, n, MSG_NOSIGNAL);
    off_t offset = (off_t)at;
    return sendfile(e->fd, g.file, &offset, n);
}

enum next { GO_ON, WAIT, OVER };

static enum next send_turn(struct end *e)
{
    for (uint64_t turn = 0; e->out > 0;) {
        const ssize_t n = send_some(e);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return WAIT;
        if (n <= 0) {
            note_error("send", strerror(errno));
            return OVER;
        }
        e->sent += (uint64_t)n;
        e->out -= (uint64_t)n;
        turn += (uint64_t)n;
        if (turn >= SEND_TURN && e->out > 0) {
            ready_push(e);
            return WAIT;
        }
    }
    if (!e->origin)
        return WAIT;
    if (o.close)
        return OVER;
    begin(e);
    return WAIT; /* the next request has its own event */
}

/* Takes one call's worth of the message that is due, or finds the end. */
static enum next receive_some(struct end *e)
{
    const bool keep = o.read || o.verify;
    size_t want = keep ? READ_SIZE : DISCARD_TURN;
    if (want > e->in)
        want = e->in > 0 ? (size_t)e->in : 1;
    const ssize_t n = recv(e->fd, g.buffer, want, keep || want == 1 ? 0 : MSG_TRUNC);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return WAIT;
    if (n <= 0) {
        /* The proxy's readiness was found out by connections that ask nothing. */
        const bool expected = e->origin ? e->received == 0 : e->closing && n == 0;
        if (!expected)
            note_error(e->origin ? "the origin's connection ended inside an exchange"
                                 : "the client's connection ended inside an exchange",
                       n == 0 ? "closed" : strerror(errno));
        else if (!e->origin)
            exchange_done(e);
        return OVER;
    }
    if (e->in == 0) {
        note_error("more bytes came than were sent", e->origin ? "at the origin" : "at the client");
        return OVER;
    }
    if (o.verify)
        check(e, g.buffer, (size_t)n);
    e->received += (uint64_t)n;
    e->in -= (uint64_t)n;
    g.bytes += (uint64_t)n;
    if (e->in > 0)
        return (size_t)n < want ? WAIT : GO_ON;
    if (e->origin) {
        e->out = o.response;
        e->sent = 0;
        return GO_ON;
    }
    if (o.close) {
        e->closing = true; /* the end of the stream may have come with the last bytes */
        return GO_ON;
    }
    exchange_done(e);
    if (e->done)
        return WAIT;
    begin(e);
    return GO_ON;
}

static void turn(struct end *e)
{
    enum next next = GO_ON;
    for (uint64_t before = g.bytes; next == GO_ON;) {
        next = e->out > 0 ? send_turn(e) : receive_some(e);
        if (next == GO_ON && g.bytes - before >= DISCARD_TURN) {
            ready_push(e);
            return;
        }
    }
    if (next == OVER)
        end_close(e);
}

static void poll_once(bool block)
{
    struct epoll_event events[EVENTS_MAX];
    struct end *ready = g.ready_first;
    const int n = epoll_wait(g.epoll, events, EVENTS_MAX, block && !ready ? 50 : 0);

    g.ready_first = g.ready_last = NULL;
    for (int i = 0; i < n; i++) {
        struct end *e = events[i].data.ptr;
        if (!e)
            origin_accept();
        else if (!e->queued)
            turn(e);
    }
    while (ready) {
        struct end *e = ready;
        ready = e->next;
        e->queued = false;
        turn(e);
    }
}

/* --- the run ------------------------------------------------------------------------------------------------ */

static void stalled(const char *what)
{
    if (now() - g.last_progress > STALL)
        die("%s for %d seconds%s%s", what, (int)(STALL / SECOND), g.errors ? "; the first error was " : "",
            g.first_error);
}

/* An idle connection is one that has been used: each asks once, and keeps silent from then on. */
static void open_idle(void)
{
    g.last_progress = now();
    for (unsigned i = 0; i < o.idle; i++) {
        client_open(&g.clients[o.connections + i]);
        /* So few at a time that no queue of new connections overflows. */
        while (i + 1 - g.idle_answered >= 64) {
            poll_once(o.block);
            stalled("no idle connection was answered");
        }
    }
    while (g.idle_answered < o.idle) {
        poll_once(o.block);
        stalled("no idle connection was answered");
    }
    /* What a proxy gives back of a connection only after a while of silence counts as given back. */
    if (o.idle > 0)
        sleep(SILENCE);
}

static void run(struct sample *first, struct sample *last)
{
    g.exchanges = 0;
    for (unsigned i = 0; i < o.connections; i++)
        client_open(&g.clients[i]);

    const uint64_t started = g.last_progress = now();
    const uint64_t warmup = (uint64_t)(o.warmup * (double)SECOND), window = (uint64_t)(o.seconds * (double)SECOND);
    uint64_t from = 0, seen = 0;
    for (;;) {
        poll_once(o.block);
        const uint64_t t = now();
        if (g.bytes != seen) {
            seen = g.bytes;
            g.last_progress = t;
        } else {
            stalled("nothing came");
        }
        if (g.measuring) {
            if (o.count > 0 ? g.exchanges >= o.count : t - from >= window)
                break;
        } else if (o.count > 0 || t - started >= warmup) {
            /* Who counts exchanges measures from the start. */
            if (o.count == 0)
                g.exchanges = 0;
            g.bytes = seen = 0;
            sample_take(first);
            g.measuring = true;
            from = now();
        }
    }
    sample_take(last);
}

static void results(const struct sample *first, const struct sample *last, const struct memory *before,
                    const struct memory *idle, const struct memory *after)
{
    printf("{\n");
    print_window(first, last);
    print_latency(&g.latency);
    print_memory("memory_before", before);
    print_memory("memory_idle", idle);
    print_memory("memory_after", after);
    printf(" \"requests\": %llu,\n \"bytes\": %llu,\n \"checked\": %llu,\n \"errors\": %llu,\n \"first_error\": ",
           (unsigned long long)g.exchanges, (unsigned long long)g.bytes, (unsigned long long)g.checked,
           (unsigned long long)g.errors);
    print_string(g.first_error);
    printf("\n}\n");
}

/* The origin in a process of its own, which ends with this one. */
static void origin_apart(void)
{
    const pid_t parent = getpid(), pid = fork();
    if (pid < 0)
        die("fork: %s", strerror(errno));
    g.client = pid > 0;
    g.server = pid == 0;
    if (g.server && (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent))
        _exit(1);
}

/* --- command line ------------------------------------------------------------------------------------------- */

static const char usage[] =
    "usage: bench-exchange --target ADDRESS:PORT --origin FD [options]\n"
    "  --origin FD        the origin's listening socket, which whoever starts this has made\n"
    "  --request BYTES    of each request (1024); --response BYTES of each response (1024)\n"
    "  --connections N    in a closed loop (1)\n"
    "  --close            the origin closes after each response, and the client connects anew\n"
    "  --seconds S        measured window (1); --warmup S before it (0.2)\n"
    "  --count N          measure N exchanges from the start instead of a time\n"
    "  --sendfile         both ends send pages of a file (default: send from memory)\n"
    "  --read             both ends copy what comes (default: MSG_TRUNC discards it)\n"
    "  --block            sleep while nothing comes (default: spin)\n"
    "  --verify           both ends compare every byte, and send in pieces of random sizes\n"
    "  --idle N           N more connections that ask once and keep silent\n"
    "  --apart            the origin in a process of its own, with descriptors of its own; implies --block\n"
    "  --congestion NAME  TCP congestion control of the client's sockets\n"
    "  --core N           run on this core only\n"
    "  --cpu-of PID       measure this process (repeatable)\n"
    "Prints one JSON object.\n";

static uint64_t parse_bytes(const char *text)
{
    char *end;
    const unsigned long long n = strtoull(text, &end, 10);
    if (*end || end == text || n < NUMBER)
        die("messages have %d bytes or more, not %s", NUMBER, text);
    return n;
}

int main(int argc, char **argv)
{
    enum {
        TARGET = 256,
        ORIGIN,
        REQUEST,
        RESPONSE,
        CONNECTIONS,
        CLOSE,
        SECONDS,
        WARMUP,
        COUNT,
        SENDFILE,
        READ,
        BLOCK,
        VERIFY,
        IDLE,
        APART,
        CONGESTION,
        CORE,
        CPU_OF
    };
    static const struct option options[] = {
        {"target", required_argument, NULL, TARGET},
        {"origin", required_argument, NULL, ORIGIN},
        {"request", required_argument, NULL, REQUEST},
        {"response", required_argument, NULL, RESPONSE},
        {"connections", required_argument, NULL, CONNECTIONS},
        {"close", no_argument, NULL, CLOSE},
        {"seconds", required_argument, NULL, SECONDS},
        {"warmup", required_argument, NULL, WARMUP},
        {"count", required_argument, NULL, COUNT},
        {"sendfile", no_argument, NULL, SENDFILE},
        {"read", no_argument, NULL, READ},
        {"block", no_argument, NULL, BLOCK},
        {"verify", no_argument, NULL, VERIFY},
        {"idle", required_argument, NULL, IDLE},
        {"apart", no_argument, NULL, APART},
        {"congestion", required_argument, NULL, CONGESTION},
        {"core", required_argument, NULL, CORE},
        {"cpu-of", required_argument, NULL, CPU_OF},
        {0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case TARGET:
            o.target = parse_address(optarg);
            break;
        case ORIGIN:
            o.origin = (int)parse_count(optarg);
            break;
        case REQUEST:
            o.request = parse_bytes(optarg);
            break;
        case RESPONSE:
            o.response = parse_bytes(optarg);
            break;
        case CONNECTIONS:
            o.connections = parse_count(optarg);
            break;
        case CLOSE:
            o.close = true;
            break;
        case SECONDS:
            o.seconds = atof(optarg);
            break;
        case WARMUP:
            o.warmup = atof(optarg);
            break;
        case COUNT:
            o.count = parse_count(optarg);
            break;
        case SENDFILE:
            o.sendfile = true;
            break;
        case READ:
            o.read = true;
            break;
        case BLOCK:
            o.block = true;
            break;
        case VERIFY:
            o.verify = true;
            break;
        case IDLE:
            o.idle = parse_count(optarg);
            break;
        case APART:
            o.apart = o.block = true;
            break;
        case CONGESTION:
            o.congestion = optarg;
            break;
        case CORE:
            pin_to_core(parse_count(optarg));
            break;
        case CPU_OF:
            account_watch(atoi(optarg));
            break;
        default:
            fputs(usage, stderr);
            return 2;
        }
    }
    if (optind != argc || !o.target.sin_port || o.origin < 0 || o.connections == 0 || (o.close && o.idle > 0)) {
        fputs(usage, stderr);
        return 2;
    }
    const uint64_t connections = (uint64_t)o.connections + o.idle;
    allow_descriptors((o.apart ? 1 : 2) * connections + 16);
    signal(SIGPIPE, SIG_IGN);
    payload_make();
    g.client = g.server = true;
    if (fcntl(o.origin, F_SETFL, O_NONBLOCK) < 0)
        die("--origin %d: %s", o.origin, strerror(errno));
    if (o.apart)
        origin_apart();
    g.epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    if (g.epoll < 0 || (g.server && epoll_ctl(g.epoll, EPOLL_CTL_ADD, o.origin, &event) < 0))
        die("epoll: %s", strerror(errno));
    while (!g.client)
        poll_once(true);

    g.clients = calloc(connections, sizeof(*g.clients));
    if (!g.clients)
        die("out of memory");
    for (unsigned i = 0; i < connections; i++) {
        g.clients[i].number = i;
        g.clients[i].idle = i >= o.connections;
    }
    static struct sample first, last;
    const struct memory before = memory_take();
    open_idle();
    const struct memory idle = memory_take();
    run(&first, &last);
    const struct memory after = memory_take();
    results(&first, &last, &before, &idle, &after);
    return 0;
}
