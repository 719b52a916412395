/* SPDX-License-Identifier: MIT
 *
 * The load client: one thread, closed loop, N keep-alive connections. It polls with a zero timeout and never sleeps,
 * because waking a halted virtual core costs the server more than the response (--block for a receiver that sleeps),
 * and discards bodies with MSG_TRUNC, because the receiver's copy is not the server's (--read for one that copies).
 * With TLS neither is its decrypting (client_tls.h).
 *
 * It also takes the measurements of the server (--cpu-of): only the client knows when the measured window begins
 * and ends, and a window framed from another process would be off by that process's wake-up.
 */
#include "account.h"
#include "client_tls.h"
#include <arpa/inet.h>
#include <ctype.h>
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
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    PATHS_MAX = 64,
    EVENTS_MAX = 512,
    HEAD_MAX = 16384,
    HEAD_READ = 4096,      /* first read of a response: the head, and a small body with it */
    BODY_READ = 256 << 10, /* buffer of a client that really reads */
    DISCARD_TURN = 4 << 20,
    PER_SOURCE = 8000, /* connections per 127.0.0.x source address: far from exhausting the ephemeral ports */
    PACE_TURNS = 4,    /* reads per second of a rate-limited connection */
};

#define SILENCE 8 /* s */
#define STALL (20 * SECOND)

enum group { GROUP_MAIN, GROUP_BACKGROUND, GROUP_IDLE, GROUPS };

struct path {
    const char *text;
    char *request;
    size_t request_size;
    unsigned weight;
};

struct path_list {
    struct path path[PATHS_MAX];
    unsigned count, weights;
};

struct conn {
    int fd;
    enum group group;
    unsigned index; /* within its group */
    unsigned path;
    struct tls_stream *tls; /* NULL: none */
    bool shaking;           /* its handshake is under way; the request follows */
    bool in_body, verify, closing;
    bool ended; /* the response has come, the end of the connection has not */
    uint32_t partial_used;
    char *partial; /* bytes of a response head that came in pieces */
    uint64_t remaining;
    uint64_t sent_at;
    uint64_t hash;
    uint64_t credit; /* bytes a rate-limited connection may read now */
};

struct hash_seen {
    unsigned path;
    uint64_t hash, count;
};

static struct {
    struct sockaddr_in target;
    char host[64];
    unsigned connections, background, idle;
    struct path_list paths[GROUPS];
    double seconds, warmup;
    uint64_t requests, rate;
    bool read_body, block, verify, until_background, tls, resume, close;
    const char *congestion;
} o = {.connections = 1, .seconds = 1, .warmup = 0.2};

static struct {
    int epoll;
    bool measuring, background_finished;
    struct conn *conns;
    unsigned conn_count;
    unsigned idle_answered, verified;
    uint64_t bytes[GROUPS], responses[GROUPS], bodies_bytes;
    uint64_t errors, bad_status, reconnects, last_progress;
    char first_error[256];
    char *head; /* of the first response */
    struct histogram latency;
    struct hash_seen hashes[256];
    unsigned hash_count;
    uint64_t random;
    char buffer[BODY_READ];
} g = {.random = 88172645463325252u};

/* Errors are counted and the first is kept: one failed connection in ten thousand must not lose the run. */
static void note_error(const char *what, const char *why)
{
    if (g.errors++ == 0)
        snprintf(g.first_error, sizeof(g.first_error), "%s: %.200s", what, why);
}

/* --- hash ------------------------------------------------------------------------------------- */

/* FNV-1a, 64 bits: detects lost, repeated and exchanged bytes, which is what moving bytes can get wrong. */
static uint64_t hash_add(uint64_t hash, const void *data, size_t n)
{
    const unsigned char *p = data;
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ p[i]) * UINT64_C(1099511628211);
    return hash;
}
#define HASH_START UINT64_C(14695981039346656037)

static void hash_record(unsigned path, uint64_t hash)
{
    for (unsigned i = 0; i < g.hash_count; i++) {
        if (g.hashes[i].path == path && g.hashes[i].hash == hash) {
            g.hashes[i].count++;
            return;
        }
    }
    if (g.hash_count < sizeof(g.hashes) / sizeof(g.hashes[0]))
        g.hashes[g.hash_count++] = (struct hash_seen){path, hash, 1};
}

static int hash_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        die("%s: %s", path, strerror(errno));
    uint64_t hash = HASH_START;
    size_t n;
    while ((n = fread(g.buffer, 1, sizeof(g.buffer), f)) > 0)
        hash = hash_add(hash, g.buffer, n);
    if (ferror(f))
        die("%s: read failed", path);
    fclose(f);
    printf("%016llx\n", (unsigned long long)hash);
    return 0;
}

/* --- connections -------------------------------------------------------------------------------------------- */

static unsigned choose_path(const struct conn *c)
{
    const struct path_list *l = &o.paths[c->group];
    if (c->group != GROUP_MAIN || l->count == 1)
        return c->index % l->count;
    g.random ^= g.random << 13;
    g.random ^= g.random >> 7;
    g.random ^= g.random << 17;
    unsigned pick = (unsigned)(g.random % l->weights), i = 0;
    while (pick >= l->path[i].weight)
        pick -= l->path[i++].weight;
    return i;
}

static bool is_paced(const struct conn *c)
{
    return c->group == GROUP_MAIN && o.rate > 0;
}

/* The first one after the handshake, when that is done; its time is counted from the handshake's beginning. */
static void send_request(struct conn *c)
{
    c->sent_at = now();
    if (c->shaking)
        return;
    c->path = choose_path(c);
    const struct path *p = &o.paths[c->group].path[c->path];
    c->in_body = false;
    if (c->tls != NULL) {
        if (!tls_send(c->tls, p->request, p->request_size))
            note_error("send", tls_error());
    } else if (send(c->fd, p->request, p->request_size, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)p->request_size) {
        note_error("send", strerror(errno));
    }
}

static void shake(struct conn *c)
{
    const int result = tls_shake(c->tls);
    const uint64_t began = c->sent_at;
    if (result < 0)
        die("handshake: %s", tls_error());
    if (result == 0)
        return;
    c->shaking = false;
    send_request(c);
    c->sent_at = began;
}

static ssize_t receive_some(struct conn *c, void *buffer, size_t size, bool keep)
{
    if (c->tls != NULL)
        return tls_receive(c->tls, buffer, size, keep);
    return recv(c->fd, buffer, size, MSG_DONTWAIT | (keep ? 0 : MSG_TRUNC));
}

static void conn_open(struct conn *c)
{
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        die("socket: %s (each connection needs a descriptor: ulimit -n)", strerror(errno));
    if (o.congestion &&
        setsockopt(c->fd, IPPROTO_TCP, TCP_CONGESTION, o.congestion, (socklen_t)strlen(o.congestion)) < 0)
        die("congestion control %s: %s", o.congestion, strerror(errno));
    const int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (is_paced(c)) {
        /* A slow reader's window is small; autotuning would let ten thousand of them fill the kernel's TCP memory. */
        const int window = 64 << 10;
        setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &window, sizeof(window));
    }
    if (g.conn_count > 2000) {
        /* Reset at close: ten thousand connections in TIME_WAIT would slow the next round's port search. */
        const struct linger reset = {.l_onoff = 1};
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    }
    const unsigned n = (unsigned)(c - g.conns);
    if (n >= PER_SOURCE && (ntohl(o.target.sin_addr.s_addr) >> 24) == 127) {
        struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000001u + n / PER_SOURCE)};
        setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
        if (bind(c->fd, (struct sockaddr *)&from, sizeof(from)) < 0)
            die("bind to a further loopback address: %s", strerror(errno));
    }
    if (connect(c->fd, (struct sockaddr *)&o.target, sizeof(o.target)) < 0)
        die("connect: %s", strerror(errno));
    if (fcntl(c->fd, F_SETFL, O_NONBLOCK) < 0)
        die("O_NONBLOCK: %s", strerror(errno));
    if (!is_paced(c)) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(g.epoll, EPOLL_CTL_ADD, c->fd, &event) < 0)
            die("epoll_ctl: %s", strerror(errno));
    }
    c->in_body = c->closing = c->ended = false;
    c->partial_used = 0;
    c->remaining = 0;
    if (o.tls) {
        c->tls = tls_open(c->fd);
        c->shaking = true;
        c->sent_at = now();
        shake(c);
    }
}

static void conn_restart(struct conn *c)
{
    tls_close(c->tls);
    c->tls = NULL;
    close(c->fd);
    g.reconnects++;
    if (g.errors > 1000)
        die("too many errors, the first was %s", g.first_error);
    conn_open(c);
    send_request(c);
}

/* --- responses ---------------------------------------------------------------------------------------------- */

static const char *header_value(const char *head, const char *name)
{
    const size_t n = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n")) {
        if (strncasecmp(line + 2, name, n) == 0 && line[2 + n] == ':') {
            line += 3 + n;
            while (*line == ' ')
                line++;
            return line;
        }
    }
    return NULL;
}

/* A complete, NUL-terminated head. Returns false when the response cannot be followed. */
static bool response_begin(struct conn *c, const char *head)
{
    const char *length = header_value(head, "Content-Length");
    if (strncmp(head, "HTTP/1.", 7) != 0 || strlen(head) < 12 || !length || !isdigit((unsigned char)*length)) {
        note_error("response head without status or Content-Length", head);
        return false;
    }
    if (strncmp(head + 9, "200", 3) != 0 && strncmp(head + 9, "206", 3) != 0) {
        if (g.bad_status++ == 0)
            note_error("status", head);
    }
    const char *connection = header_value(head, "Connection");
    c->closing = connection && strncasecmp(connection, "close", 5) == 0;
    c->remaining = strtoull(length, NULL, 10);
    c->in_body = true;
    c->hash = HASH_START;
    if (!g.head)
        g.head = strdup(head);
    return true;
}

static void response_end(struct conn *c)
{
    const uint64_t t = now();
    g.responses[c->group]++;
    g.last_progress = t;
    if (c->group == GROUP_MAIN && g.measuring)
        histogram_add(&g.latency, t - c->sent_at);
    if (c->verify) {
        hash_record(c->path, c->hash);
        c->verify = false;
        g.verified++;
    }
    if (c->group == GROUP_BACKGROUND)
        g.background_finished = true;
    c->in_body = false;
    if (c->group == GROUP_IDLE)
        g.idle_answered++;
    else if (c->closing && o.close)
        c->ended = true;
    else if (c->closing)
        conn_restart(c);
    else
        send_request(c);
}

/* Returns false when the connection is over. *ret_read is what came, 0 when nothing is there. */
static bool receive_head(struct conn *c, uint64_t *ret_read)
{
    char *in = g.buffer;
    const ssize_t n = receive_some(c, in + c->partial_used, HEAD_READ, true);
    if (n <= 0) {
        *ret_read = 0;
        return n < 0 && (errno == EAGAIN || errno == EINTR);
    }
    *ret_read = (uint64_t)n;
    if (c->partial_used > 0)
        memcpy(in, c->partial, c->partial_used);
    const size_t used = c->partial_used + (size_t)n;

    char *end = memmem(in, used, "\r\n\r\n", 4);
    if (!end) {
        if (used > HEAD_MAX)
            return false;
        char *partial = realloc(c->partial, used);
        if (!partial)
            die("out of memory");
        memcpy(partial, in, used);
        c->partial = partial;
        c->partial_used = (uint32_t)used;
        return true;
    }
    end += 4;
    const uint64_t body = used - (size_t)(end - in);
    char first[HEAD_MAX + HEAD_READ + 1];
    memcpy(first, in, (size_t)(end - in));
    first[end - in] = '\0';
    c->partial_used = 0;
    if (!response_begin(c, first))
        return false;
    if (body > c->remaining) {
        note_error("more bytes than Content-Length", first);
        return false;
    }
    if (c->verify)
        c->hash = hash_add(c->hash, end, body);
    c->remaining -= body;
    g.bodies_bytes += body;
    if (c->remaining == 0)
        response_end(c);
    return true;
}

/* Takes what has come, at most one turn's worth. Returns as receive_head does. */
static bool receive_body(struct conn *c, uint64_t limit, uint64_t *ret_read)
{
    const bool keep = o.read_body || c->verify;
    uint64_t want = keep ? BODY_READ : DISCARD_TURN;
    if (want > limit)
        want = limit;
    if (want > c->remaining)
        want = c->remaining;
    const ssize_t n = receive_some(c, g.buffer, (size_t)want, keep);
    if (n <= 0) {
        *ret_read = 0;
        return n < 0 && (errno == EAGAIN || errno == EINTR);
    }
    *ret_read = (uint64_t)n;
    if (c->verify)
        c->hash = hash_add(c->hash, g.buffer, (size_t)n);
    c->remaining -= (uint64_t)n;
    g.bodies_bytes += (uint64_t)n;
    if (c->remaining == 0)
        response_end(c);
    return true;
}

/* Whoever closes first keeps the connection in TIME_WAIT: the server, or else the client runs out of ports. */
static void await_close(struct conn *c)
{
    const ssize_t n = recv(c->fd, g.buffer, sizeof(g.buffer), MSG_DONTWAIT | MSG_TRUNC);
    if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR)))
        return;
    conn_restart(c);
}

static void receive(struct conn *c, uint64_t limit)
{
    uint64_t n = 0;
    if (c->shaking) {
        shake(c);
        return;
    }
    if (c->ended) {
        await_close(c);
        return;
    }
    const bool was_head = !c->in_body;
    bool alive = c->in_body ? receive_body(c, limit, &n) : receive_head(c, &n);
    g.bytes[c->group] += n;
    /* The rest of a response whose head came just now is usually there too; with TLS it may be here already. */
    for (bool look = was_head; alive && c->in_body && limit > n; look = false) {
        uint64_t more = 0;
        if (!look && (c->tls == NULL || !tls_has_more(c->tls)))
            break;
        alive = receive_body(c, limit - n, &more);
        g.bytes[c->group] += more;
        n += more;
    }
    if (n > 0)
        c->credit -= n < c->credit ? n : c->credit;
    if (!alive) {
        note_error("connection ended inside a response", n == 0 ? "closed or reset" : "malformed");
        if (c->group == GROUP_IDLE)
            die("an idle connection was closed");
        conn_restart(c);
    }
}

/* --- the run ------------------------------------------------------------------------------------------------ */

static void poll_once(void)
{
    struct epoll_event events[EVENTS_MAX];
    const int n = epoll_wait(g.epoll, events, EVENTS_MAX, o.block ? 50 : 0);
    for (int i = 0; i < n; i++)
        receive(events[i].data.ptr, UINT64_MAX);
}

/* Rate-limited connections are read in a fixed order, each PACE_TURNS times a second, so that at any instant most
 * of their receive windows are full: that is what a slow reader looks like to a server. */
static void pace(uint64_t started)
{
    static uint64_t done; /* turns given so far */
    const uint64_t due = (uint64_t)((double)(now() - started) / (double)SECOND * PACE_TURNS * (double)o.connections);
    const uint64_t quantum = o.rate / PACE_TURNS;
    for (unsigned burst = 0; done < due && burst < 256; done++, burst++) {
        struct conn *c = &g.conns[done % o.connections];
        c->credit += quantum;
        if (c->credit > 2 * quantum)
            c->credit = 2 * quantum;
        for (uint64_t before = 0; c->credit > 0 && c->credit != before;) {
            before = c->credit;
            receive(c, c->credit);
        }
    }
}

static void open_all(void)
{
    g.conn_count = o.connections + o.background + o.idle;
    g.conns = calloc(g.conn_count, sizeof(*g.conns));
    if (!g.conns)
        die("out of memory");
    for (unsigned i = 0; i < g.conn_count; i++) {
        struct conn *c = &g.conns[i];
        c->group = i < o.connections ? GROUP_MAIN : i < o.connections + o.background ? GROUP_BACKGROUND : GROUP_IDLE;
        c->index = i - (c->group == GROUP_MAIN         ? 0
                        : c->group == GROUP_BACKGROUND ? o.connections
                                                       : o.connections + o.background);
        c->verify = o.verify && c->group == GROUP_MAIN;
    }
    /* An idle connection is one that has been used: each asks once, and keeps silent from then on. */
    for (unsigned i = o.connections + o.background; i < g.conn_count; i++) {
        conn_open(&g.conns[i]);
        send_request(&g.conns[i]);
        if (i % 64 == 0)
            poll_once();
    }
    const uint64_t started = now();
    while (g.idle_answered < o.idle) {
        poll_once();
        if (now() - started > STALL)
            die("only %u of %u idle connections were answered", g.idle_answered, o.idle);
    }
    /* What a server gives back of a connection only after a while of silence counts as given back. */
    if (o.idle > 0)
        sleep(SILENCE);
}

static void run(struct sample *first, struct sample *last)
{
    for (unsigned i = 0; i < o.connections + o.background; i++)
        conn_open(&g.conns[i]);
    for (unsigned i = 0; i < o.connections; i++)
        send_request(&g.conns[i]);

    uint64_t started = g.last_progress = now(), measured_from = 0, seen = 0;
    const uint64_t warmup = (uint64_t)(o.warmup * (double)SECOND), window = (uint64_t)(o.seconds * (double)SECOND);
    for (;;) {
        if (!o.block || o.rate == 0)
            poll_once();
        if (o.rate > 0)
            pace(started);

        const uint64_t t = now(), total = g.bytes[GROUP_MAIN] + g.bytes[GROUP_BACKGROUND];
        if (total != seen) {
            seen = total;
            g.last_progress = t;
        } else if (t - g.last_progress > STALL) {
            die("nothing came for %d seconds", (int)(STALL / SECOND));
        }
        if (!g.measuring) {
            /* A client that verifies or counts requests measures from the start. */
            if (t - started < warmup && o.requests == 0 && !o.verify)
                continue;
            for (unsigned i = o.connections; i < o.connections + o.background; i++)
                send_request(&g.conns[i]);
            memset(g.bytes, 0, sizeof(g.bytes));
            memset(g.responses, 0, sizeof(g.responses));
            g.bodies_bytes = 0;
            g.background_finished = false;
            seen = 0;
            sample_take(first);
            g.measuring = true;
            measured_from = now();
            continue;
        }
        if (o.verify         ? g.verified == o.connections
            : o.requests > 0 ? g.responses[GROUP_MAIN] >= o.requests
                             : t - measured_from >= window)
            break;
        if (o.until_background && g.background_finished)
            break;
    }
    sample_take(last);
}

static void print_results(const struct sample *first, const struct sample *last, const struct memory *before,
                          const struct memory *idle, const struct memory *after)
{
    printf("{\n");
    print_window(first, last);
    print_latency(&g.latency);
    printf(" \"requests\": %llu,\n \"bytes\": %llu,\n", (unsigned long long)g.responses[GROUP_MAIN],
           (unsigned long long)g.bytes[GROUP_MAIN]);
    printf(" \"background_requests\": %llu,\n \"background_bytes\": %llu,\n",
           (unsigned long long)g.responses[GROUP_BACKGROUND], (unsigned long long)g.bytes[GROUP_BACKGROUND]);
    print_memory("memory_before", before);
    print_memory("memory_idle", idle);
    print_memory("memory_after", after);
    printf(" \"hashes\": [");
    for (unsigned i = 0; i < g.hash_count; i++) {
        printf("%s{\"path\": ", i ? ", " : "");
        print_string(o.paths[GROUP_MAIN].path[g.hashes[i].path].text);
        printf(", \"hash\": \"%016llx\", \"count\": %llu}", (unsigned long long)g.hashes[i].hash,
               (unsigned long long)g.hashes[i].count);
    }
    printf("],\n \"handshakes\": %llu,\n \"resumed\": %llu,\n", (unsigned long long)tls_handshakes(),
           (unsigned long long)tls_resumed());
    printf(" \"errors\": %llu,\n \"reconnects\": %llu,\n \"first_error\": ", (unsigned long long)g.errors,
           (unsigned long long)g.reconnects);
    print_string(g.first_error);
    printf(",\n \"head\": ");
    print_string(g.head);
    printf("\n}\n");
}

/* --- command line ------------------------------------------------------------------------------------------- */

static const char usage[] =
    "usage: bench-client --target ADDRESS:PORT --path PATH [--weight N] [--path PATH ...] [options]\n"
    "       bench-client --hash FILE\n"
    "  --connections N    keep-alive connections in a closed loop (1)\n"
    "  --seconds S        measured window (1); --warmup S before it (0.2)\n"
    "  --requests N       measure N responses from the start instead of a time\n"
    "  --rate BYTES       each connection reads at most so many bytes per second\n"
    "  --read             copy the bodies (default: MSG_TRUNC discards them)\n"
    "  --block            sleep while nothing comes (default: spin)\n"
    "  --verify           hash the first body of each connection, and end when all are hashed\n"
    "  --close            a connection for each request\n"
    "  --tls              TLS 1.3 with AES-128-GCM; --resume: sessions are resumed\n"
    "  --background N     N more connections, counted apart, that fetch --background-path (repeatable) in turn\n"
    "  --until-background end the window when the first background response is complete\n"
    "  --idle N           N more connections that ask once and keep silent\n"
    "  --congestion NAME  TCP congestion control of the client's sockets\n"
    "  --core N           run on this core only\n"
    "  --cpu-of PID       measure this process (repeatable)\n"
    "Prints one JSON object.\n";

static void add_path(enum group group, const char *text)
{
    struct path_list *l = &o.paths[group];
    if (l->count == PATHS_MAX || text[0] != '/')
        die("at most %d paths, each beginning with /", PATHS_MAX);
    l->path[l->count++] = (struct path){.text = text, .weight = 1};
}

static void prepare_requests(void)
{
    if (o.paths[GROUP_IDLE].count == 0)
        o.paths[GROUP_IDLE] = o.paths[GROUP_MAIN];
    for (unsigned group = 0; group < GROUPS; group++) {
        struct path_list *l = &o.paths[group];
        l->weights = 0;
        for (unsigned i = 0; i < l->count; i++) {
            struct path *p = &l->path[i];
            l->weights += p->weight;
            const int n = asprintf(
                &p->request, "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUser-Agent: bench-client\r\nAccept: */*\r\n%s\r\n",
                p->text, o.host, ntohs(o.target.sin_port), o.close ? "Connection: close\r\n" : "");
            if (n < 0)
                die("out of memory");
            p->request_size = (size_t)n;
        }
    }
}

static void parse_target(const char *text)
{
    o.target = parse_address(text);
    inet_ntop(AF_INET, &o.target.sin_addr, o.host, sizeof(o.host));
}

int main(int argc, char **argv)
{
    enum {
        TARGET = 256,
        PATH,
        WEIGHT,
        CONNECTIONS,
        SECONDS,
        WARMUP,
        REQUESTS,
        RATE,
        READ,
        BLOCK,
        VERIFY,
        BACKGROUND,
        BACKGROUND_PATH,
        UNTIL_BACKGROUND,
        IDLE,
        CONGESTION,
        CORE,
        CPU_OF,
        CLOSE,
        TLS,
        RESUME,
        HASH
    };
    static const struct option options[] = {
        {"target", required_argument, NULL, TARGET},
        {"path", required_argument, NULL, PATH},
        {"weight", required_argument, NULL, WEIGHT},
        {"connections", required_argument, NULL, CONNECTIONS},
        {"seconds", required_argument, NULL, SECONDS},
        {"warmup", required_argument, NULL, WARMUP},
        {"requests", required_argument, NULL, REQUESTS},
        {"rate", required_argument, NULL, RATE},
        {"read", no_argument, NULL, READ},
        {"block", no_argument, NULL, BLOCK},
        {"verify", no_argument, NULL, VERIFY},
        {"background", required_argument, NULL, BACKGROUND},
        {"background-path", required_argument, NULL, BACKGROUND_PATH},
        {"until-background", no_argument, NULL, UNTIL_BACKGROUND},
        {"idle", required_argument, NULL, IDLE},
        {"congestion", required_argument, NULL, CONGESTION},
        {"core", required_argument, NULL, CORE},
        {"cpu-of", required_argument, NULL, CPU_OF},
        {"close", no_argument, NULL, CLOSE},
        {"tls", no_argument, NULL, TLS},
        {"resume", no_argument, NULL, RESUME},
        {"hash", required_argument, NULL, HASH},
        {0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case TARGET:
            parse_target(optarg);
            break;
        case PATH:
            add_path(GROUP_MAIN, optarg);
            break;
        case WEIGHT:
            if (o.paths[GROUP_MAIN].count == 0 || parse_count(optarg) == 0)
                die("--weight is above 0 and follows a --path");
            o.paths[GROUP_MAIN].path[o.paths[GROUP_MAIN].count - 1].weight = parse_count(optarg);
            break;
        case CONNECTIONS:
            o.connections = parse_count(optarg);
            break;
        case SECONDS:
            o.seconds = atof(optarg);
            break;
        case WARMUP:
            o.warmup = atof(optarg);
            break;
        case REQUESTS:
            o.requests = parse_count(optarg);
            break;
        case RATE:
            o.rate = strtoull(optarg, NULL, 10);
            break;
        case READ:
            o.read_body = true;
            break;
        case BLOCK:
            o.block = true;
            break;
        case VERIFY:
            o.verify = true;
            break;
        case BACKGROUND:
            o.background = parse_count(optarg);
            break;
        case BACKGROUND_PATH:
            add_path(GROUP_BACKGROUND, optarg);
            break;
        case UNTIL_BACKGROUND:
            o.until_background = true;
            break;
        case IDLE:
            o.idle = parse_count(optarg);
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
        case CLOSE:
            o.close = true;
            break;
        case TLS:
            o.tls = true;
            break;
        case RESUME:
            o.resume = true;
            break;
        case HASH:
            return hash_file(optarg);
        default:
            fputs(usage, stderr);
            return 2;
        }
    }
    if (optind != argc || !o.target.sin_port || (o.resume && !o.tls) || (o.rate > 0 && o.tls) ||
        o.paths[GROUP_MAIN].count == 0 || o.connections == 0 ||
        (o.background > 0 && o.paths[GROUP_BACKGROUND].count == 0) || (o.rate > 0 && o.rate < PACE_TURNS)) {
        fputs(usage, stderr);
        return 2;
    }
    allow_descriptors(o.connections + o.background + o.idle + 16);
    signal(SIGPIPE, SIG_IGN);
    prepare_requests();
    if (o.tls)
        tls_prepare();
    if (o.resume)
        tls_resume(&o.target, o.paths[GROUP_MAIN].path[0].request, o.paths[GROUP_MAIN].path[0].request_size);
    g.epoll = epoll_create1(EPOLL_CLOEXEC);
    if (g.epoll < 0)
        die("epoll_create1: %s", strerror(errno));

    static struct sample first, last;
    const struct memory before = memory_take();
    open_all();
    const struct memory idle = memory_take();
    run(&first, &last);
    const struct memory after = memory_take();
    print_results(&first, &last, &before, &idle, &after);
    return 0;
}
