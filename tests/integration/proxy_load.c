/* SPDX-License-Identifier: MIT
 *
 * Both ends of connections through a proxy, in one process: it listens, as the servers do, and connects, as the clients
 * do, so that it knows what was sent when it looks at what arrives.
 *
 *     proxy_load --directory DIR [--connections N] [--concurrent N] [--most BYTES] [--seed N] [--no-resets]
 *                [--resets-end]
 *
 * It prints "listening" and its three addresses (IPv4, IPv6, a Unix socket in DIR), reads one line with the addresses
 * of the proxy, makes the connections, to each address in turn, and prints what it did. Half of them are made after
 * another line has come: between the halves the proxy can be looked at. Exit status 1, and why on standard error, at
 * the first thing that is wrong.
 *
 * Every byte of a direction follows from the seed that the direction begins with, so that each is compared as it
 * arrives. What each side does is drawn from random numbers: how much it sends, in what pieces and with what pauses,
 * how much it reads at once, its buffers, whether it sends all before or after the other side's end, or resets
 * somewhere. What must hold then:
 *
 *   - what arrives is what was sent, from the first byte on, without a gap;
 *   - an end of file comes after everything, and only if the sender has ended that direction;
 *   - without a reset by either side no connection sees an error;
 *   - after a reset by one side the other one sees a reset, and no end of file where the first had not ended (except
 *     next to a Unix socket, which has no resets, or with --resets-end: for proxies that make one of the other);
 *   - all ends within PATIENCE_MS of the last sign of life.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define POOL (4u << 20)      /* of random bytes, from which all that is sent is cut */
#define CHUNK_MAX (2u << 20) /* at once */
#define ADDRESSES_MAX 3      /* of the proxy, and ours */
#define PATIENCE_MS 15000
#define SMALL_SEGMENT 1400 /* TCP_MAXSEG */

/* A direction's first bytes. */
struct header {
    uint64_t magic;
    uint64_t number; /* of the pair, from clients */
    uint64_t seed;
    uint64_t length; /* of the direction, this included */
};
#define MAGIC 0x5175696365206974u

struct side {
    int fd; /* -1: not there, or closed */
    struct pair *pair;
    struct side *other; /* NULL for servers that have not read the client's header */
    bool is_client, is_unix;

    struct header own, peer;
    uint64_t sent, received;
    bool send_ended, end_seen; /* FIN sent; end of file seen */
    bool did_reset, saw_error;

    /* How it behaves. */
    bool patient;      /* after its header it sends nothing before the other side's end */
    uint64_t reset_at; /* once it has moved that many bytes; UINT64_MAX: never */
    uint64_t write_most, read_most;
    unsigned pauses;            /* of 256 pieces so many are followed by a pause */
    uint64_t write_at, read_at; /* ms: not before */
    uint64_t last_event;        /* ms */
};

struct pair {
    struct side client, *server;
    uint64_t number;
    bool in_use;
};

static struct {
    unsigned connections, concurrent;
    uint64_t most, seed;
    bool resets, resets_end;
    const char *directory;
} options = {.connections = 1000, .concurrent = 128, .most = 2u << 20, .resets = true};

static struct {
    uint64_t pairs, bytes, resets, unseen, client_ended_first, server_ended_first, small_buffers;
} counts;

static unsigned char *pool;
static struct pair *pairs;
static struct side **servers; /* accepted and open */
static size_t server_count, server_capacity;
static int listeners[ADDRESSES_MAX];
static const int families[ADDRESSES_MAX] = {AF_INET, AF_INET6, AF_UNIX};
static struct target {
    struct sockaddr_storage address;
    socklen_t length;
} targets[ADDRESSES_MAX];
static unsigned target_count;
static uint64_t now;

/* ---- Small things ---------------------------------------------------------------------------------------------- */

static uint64_t random_state;

static uint64_t random_next(void)
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u; /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint64_t random_below(uint64_t bound)
{
    return random_next() % bound;
}

/* 1 to most; each power of two is as likely as the next. */
static uint64_t random_size(uint64_t most)
{
    unsigned bits = 64 - (unsigned)__builtin_clzll(most);
    uint64_t size = random_below(UINT64_C(1) << (1 + random_below(bits)));
    return size < 1 ? 1 : size < most ? size : most;
}

static uint64_t milliseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

__attribute__((noreturn, format(printf, 2, 3))) static void wrong(const struct side *side, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fprintf(stderr, "seed %llu: ", (unsigned long long)options.seed);
    vfprintf(stderr, format, list);
    va_end(list);
    if (side != NULL) {
        const struct side *both[] = {side, side->other};
        for (unsigned i = 0; i < 2 && both[i] != NULL; i++)
            fprintf(stderr,
                    "\n  %s%s of connection %llu: sent %llu of %llu%s%s, received %llu%s%s%s%s, resets at %lld, last "
                    "event %llu ms ago",
                    both[i]->is_unix ? "unix " : "", both[i]->is_client ? "client" : "server",
                    side->pair != NULL ? (unsigned long long)side->pair->number : UINT64_MAX,
                    (unsigned long long)both[i]->sent, (unsigned long long)both[i]->own.length,
                    both[i]->send_ended ? " and ended" : "", both[i]->patient ? " (patient)" : "",
                    (unsigned long long)both[i]->received, both[i]->end_seen ? " and the end" : "",
                    both[i]->saw_error ? " and an error" : "", both[i]->did_reset ? ", did reset" : "",
                    both[i]->fd < 0 ? ", closed" : "",
                    both[i]->reset_at == UINT64_MAX ? -1 : (long long)both[i]->reset_at,
                    (unsigned long long)(now - both[i]->last_event));
    }
    fputc('\n', stderr);
    exit(1);
}

static void set(int fd, int level, int name, int value)
{
    if (setsockopt(fd, level, name, &value, sizeof value) < 0)
        wrong(NULL, "setsockopt: %s", strerror(errno));
}

/* ---- Addresses ------------------------------------------------------------------------------------------------- */

static struct target parse(const char *text)
{
    struct target target = {0};
    char host[128];
    unsigned port;
    if (strncmp(text, "unix:", 5) == 0) {
        struct sockaddr_un *name = (struct sockaddr_un *)&target.address;
        name->sun_family = AF_UNIX;
        snprintf(name->sun_path, sizeof name->sun_path, "%s", text + 5);
        target.length = sizeof *name;
    } else if (sscanf(text, "[%100[^]]]:%u", host, &port) == 2) {
        struct sockaddr_in6 *name = (struct sockaddr_in6 *)&target.address;
        name->sin6_family = AF_INET6;
        name->sin6_port = htons((uint16_t)port);
        if (inet_pton(AF_INET6, host, &name->sin6_addr) != 1)
            wrong(NULL, "no address: %s", text);
        target.length = sizeof *name;
    } else if (sscanf(text, "%100[^:]:%u", host, &port) == 2) {
        struct sockaddr_in *name = (struct sockaddr_in *)&target.address;
        name->sin_family = AF_INET;
        name->sin_port = htons((uint16_t)port);
        if (inet_pton(AF_INET, host, &name->sin_addr) != 1)
            wrong(NULL, "no address: %s", text);
        target.length = sizeof *name;
    } else {
        wrong(NULL, "no address: %s", text);
    }
    return target;
}

static void start_listening(void)
{
    char path[200];
    snprintf(path, sizeof path, "unix:%s/load", options.directory);
    const char *texts[ADDRESSES_MAX] = {"127.0.0.1:0", "[::1]:0", path};
    unsigned ports[ADDRESSES_MAX] = {0};
    for (unsigned i = 0; i < ADDRESSES_MAX; i++) {
        struct target target = parse(texts[i]);
        listeners[i] = socket(target.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (listeners[i] >= 0 && families[i] == AF_INET6)
            set(listeners[i], IPPROTO_TCP, TCP_MAXSEG, SMALL_SEGMENT);
        if (listeners[i] < 0 || bind(listeners[i], (struct sockaddr *)&target.address, target.length) < 0 ||
            listen(listeners[i], 4096) < 0)
            wrong(NULL, "listening on %s: %s", texts[i], strerror(errno));
        socklen_t length = sizeof target.address;
        getsockname(listeners[i], (struct sockaddr *)&target.address, &length);
        ports[i] = ntohs(((struct sockaddr_in *)&target.address)->sin_port); /* of IPv6 at the same place */
    }
    printf("listening 127.0.0.1:%u [::1]:%u %s\n", ports[0], ports[1], path);
    fflush(stdout);
}

/* ---- A side ---------------------------------------------------------------------------------------------------- */

/* Segments of the loopback device do not fit in a small buffer: the sender would wait for its timer before each. So
 * clients that have one ask for small segments when they connect, and all servers with an IPv6 address do. */
static void small_buffers(int fd, bool is_client, int family)
{
    if (family != AF_UNIX && (is_client || family == AF_INET6) && random_below(4) == 0) {
        set(fd, SOL_SOCKET, SO_RCVBUF, (int)(4 * SMALL_SEGMENT + random_below(30000)));
        if (is_client)
            set(fd, IPPROTO_TCP, TCP_MAXSEG, SMALL_SEGMENT);
        counts.small_buffers++;
    }
    if (random_below(4) == 0)
        set(fd, SOL_SOCKET, SO_SNDBUF, (int)(4096 + random_below(30000)));
}

/* What it will do. */
static void draw(struct side *side)
{
    side->own = (struct header){
        .magic = MAGIC,
        .number = side->is_client ? side->pair->number : 0,
        .seed = random_next(),
        .length = sizeof side->own + (random_below(16) == 0 ? 0 : random_size(options.most)),
    };
    side->pauses = random_below(2) == 0 ? 0 : (unsigned)random_below(64);
    /* Small pieces, yet not so many that it takes for ever. */
    side->write_most = random_below(3) == 0 ? 1 + side->own.length / (1 + random_below(100)) : random_size(CHUNK_MAX);
    if (side->write_most < side->own.length / 200)
        side->write_most = side->own.length / 200;
    side->read_most = random_below(2) == 0 ? CHUNK_MAX : 1 + options.most / (1 + random_below(200));
    side->reset_at = UINT64_MAX;
    if (options.resets && random_below(10) == 0)
        side->reset_at = random_below(2) == 0 ? random_below(side->own.length * 2) : random_size(2 * options.most);
}

static void close_side(struct side *side)
{
    if (side->fd >= 0)
        close(side->fd);
    side->fd = -1;
}

static void reset(struct side *side)
{
    if (!side->is_unix) {
        struct linger linger = {.l_onoff = 1};
        setsockopt(side->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    }
    side->did_reset = true;
    counts.resets++;
    close_side(side);
}

static bool next_to_unix(const struct side *side)
{
    return side->is_unix || (side->other != NULL && side->other->is_unix);
}

static void on_error(struct side *side)
{
    side->saw_error = true;
    /* Servers reset after they have read the client's header, thus are known then; a server that is not known may have
     * lost its client before the header came. */
    if (side->other != NULL ? !side->other->did_reset : side->is_client || !options.resets)
        wrong(side, "an error and nobody has reset: %s", strerror(errno));
    close_side(side);
}

static void check_end(struct side *side)
{
    const struct side *other = side->other;
    side->end_seen = true;
    bool whole = side->received >= sizeof side->peer && side->received == side->peer.length;
    if (whole && other != NULL && other->send_ended) {
        if (!side->send_ended)
            ++*(side->is_client ? &counts.server_ended_first : &counts.client_ended_first);
        return;
    }
    /* Nobody has ended this direction. A server that has not read a header does not know whose connection this was. */
    bool may = options.resets && (options.resets_end || next_to_unix(side));
    if (other == NULL ? !options.resets : !(other->did_reset && may))
        wrong(side, whole ? "an end of file that was not sent" : "an end of file before all has come");
}

static void check_header(struct side *side)
{
    if (memcmp(&side->peer, &side->other->own, sizeof side->peer) != 0)
        wrong(side, "a header that was not sent");
}

/* A server has read whose connection it has. */
static void introduce(struct side *server)
{
    struct pair *pair = server->peer.number < options.connections ? &pairs[server->peer.number] : NULL;
    /* A client that has reset may be finished with. */
    if (pair == NULL || pair->server != NULL || !(pair->in_use || pair->client.did_reset))
        wrong(NULL, "a header of no connection: %llu", (unsigned long long)server->peer.number);
    server->pair = pair;
    server->other = &pair->client;
    pair->server = server;
    pair->client.other = server;
    server->patient = (pair->number & 3) == 1;
    if (pair->client.received >= sizeof pair->client.peer)
        check_header(&pair->client);
}

static void check_bytes(struct side *side, const unsigned char *data, size_t length)
{
    while (length > 0 && side->received < sizeof side->peer) {
        ((unsigned char *)&side->peer)[side->received++] = *data++;
        length--;
        if (side->received < sizeof side->peer)
            continue;
        if (side->peer.magic != MAGIC)
            wrong(side, "a header with wrong bytes");
        if (!side->is_client)
            introduce(side);
        if (side->other != NULL)
            check_header(side);
    }
    if (length == 0)
        return;
    if (memcmp(data, pool + (side->peer.seed + side->received) % POOL, length) != 0) {
        size_t at = 0;
        while (data[at] == pool[(side->peer.seed + side->received + at) % POOL])
            at++;
        wrong(side, "a wrong byte at %llu", (unsigned long long)side->received + at);
    }
    side->received += length;
    if (side->other != NULL && side->received > side->other->sent)
        wrong(side, "more has come than was sent");
}

/* A piece was moved: wait a little now and then. */
static uint64_t pause_after(const struct side *side)
{
    return random_below(256) < side->pauses ? now + 1 + random_below(12) : 0;
}

static bool may_read(const struct side *side)
{
    return !side->end_seen && side->read_at <= now;
}

static bool may_write(const struct side *side)
{
    if (side->send_ended || side->write_at > now)
        return false;
    return !side->patient || side->end_seen || side->sent < sizeof side->own;
}

static void read_some(struct side *side)
{
    static unsigned char buffer[CHUNK_MAX];
    ssize_t n = recv(side->fd, buffer, 1 + random_below(side->read_most), MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    side->last_event = now;
    if (n < 0) {
        on_error(side);
        return;
    }
    side->read_at = pause_after(side);
    if (n == 0) {
        check_end(side);
        return;
    }
    check_bytes(side, buffer, (size_t)n);
    counts.bytes += (uint64_t)n;
}

static void write_some(struct side *side)
{
    const unsigned char *data = pool + (side->own.seed + side->sent) % POOL;
    uint64_t left = side->own.length - side->sent, length = 1 + random_below(side->write_most);
    if (side->sent < sizeof side->own) {
        data = (unsigned char *)&side->own + side->sent;
        left = sizeof side->own - side->sent;
    }
    ssize_t n = left == 0 ? 0 : send(side->fd, data, length < left ? length : left, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    side->last_event = now;
    if (n < 0) {
        on_error(side);
        return;
    }
    side->sent += (uint64_t)n;
    side->write_at = pause_after(side);
    if (side->sent < side->own.length || side->write_at != 0)
        return;
    if (shutdown(side->fd, SHUT_WR) < 0) {
        on_error(side);
        return;
    }
    side->send_ended = true;
}

static void act(struct side *side, short events)
{
    /* Clients may reset at once; servers when they are known. */
    if ((side->is_client || side->other != NULL) && side->sent + side->received >= side->reset_at) {
        reset(side);
        return;
    }
    if (may_read(side) && (events & (POLLIN | POLLHUP | POLLERR)) != 0)
        read_some(side);
    if (side->fd >= 0 && may_write(side) && (events & (POLLOUT | POLLHUP | POLLERR)) != 0)
        write_some(side);
    if (side->fd >= 0 && side->send_ended && side->end_seen)
        close_side(side);
}

/* ---- Pairs ----------------------------------------------------------------------------------------------------- */

static void start_pair(uint64_t number)
{
    struct pair *pair = &pairs[number];
    const struct target *target = &targets[number % target_count];
    pair->number = number;
    pair->in_use = true;
    struct side *side = &pair->client;
    *side = (struct side){.pair = pair, .is_client = true, .is_unix = target->address.ss_family == AF_UNIX};
    side->patient = (number & 3) == 2;
    side->last_event = now;
    draw(side);
    side->fd = socket(target->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (side->fd < 0)
        wrong(side, "socket: %s", strerror(errno));
    small_buffers(side->fd, true, target->address.ss_family);
    if (connect(side->fd, (const struct sockaddr *)&target->address, target->length) < 0)
        wrong(side, "connecting to the proxy: %s", strerror(errno));
    if (!side->is_unix)
        set(side->fd, IPPROTO_TCP, TCP_NODELAY, (int)random_below(2));
}

static void accept_servers(int listener, int family)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0 && (errno == EAGAIN || errno == ECONNABORTED))
            return;
        if (fd < 0)
            wrong(NULL, "accept: %s", strerror(errno));
        if (server_count == server_capacity) {
            server_capacity = server_capacity * 2 + 64;
            servers = reallocarray(servers, server_capacity, sizeof(struct side *));
        }
        struct side *side = calloc(1, sizeof *side);
        if (servers == NULL || side == NULL)
            abort();
        *side = (struct side){.fd = fd, .is_unix = family == AF_UNIX, .last_event = now};
        draw(side);
        small_buffers(fd, false, family);
        servers[server_count++] = side;
    }
}

/* Both are closed: what is left to say about the pair. */
static void finish(struct pair *pair)
{
    const struct side *client = &pair->client, *server = pair->server;
    counts.pairs++;
    pair->in_use = false;
    if (server == NULL) {
        counts.unseen++;
        return;
    }
    if (client->did_reset || server->did_reset)
        return;
    if (client->received != server->own.length || server->received != client->own.length)
        wrong(client, "bytes are missing");
}

/* Connections first to end - 1. */
static void run(uint64_t started, uint64_t end)
{
    size_t active_count = 0, capacity = 2 * (size_t)options.concurrent + ADDRESSES_MAX;
    struct pair **active = calloc(options.concurrent, sizeof(struct pair *));
    struct pollfd *polled = NULL;
    struct side **sides = NULL;
    size_t polled_capacity = 0;
    uint64_t last_event = milliseconds();

    if (active == NULL)
        abort();
    while (started < end || active_count > 0 || server_count > 0) {
        now = milliseconds();
        while (active_count < options.concurrent && started < end) {
            active[active_count++] = &pairs[started];
            start_pair(started++);
        }
        size_t needed = active_count + server_count + ADDRESSES_MAX, count = 0;
        if (needed > polled_capacity) {
            polled_capacity = needed + capacity;
            polled = reallocarray(polled, polled_capacity, sizeof *polled);
            sides = reallocarray(sides, polled_capacity, sizeof(struct side *));
            if (polled == NULL || sides == NULL)
                abort();
        }
        for (unsigned i = 0; i < ADDRESSES_MAX; i++) {
            sides[count] = NULL;
            polled[count++] = (struct pollfd){.fd = listeners[i], .events = POLLIN};
        }
        bool paused = false;
        for (size_t i = 0; i < active_count + server_count; i++) {
            struct side *side = i < active_count ? &active[i]->client : servers[i - active_count];
            if (side->fd < 0)
                continue;
            short events = (short)((may_read(side) ? POLLIN : 0) | (may_write(side) ? POLLOUT : 0));
            paused = paused || side->read_at > now || side->write_at > now;
            sides[count] = side;
            /* Errors are reported unasked: not while it does nothing. */
            polled[count++] = (struct pollfd){.fd = events != 0 ? side->fd : -1, .events = events};
        }
        int ready = poll(polled, (nfds_t)count, paused ? 1 : 100);
        if (ready < 0 && errno != EINTR)
            wrong(NULL, "poll: %s", strerror(errno));
        now = milliseconds();
        if (ready > 0)
            last_event = now;
        for (size_t i = 0; i < count; i++) {
            if (sides[i] == NULL && polled[i].revents != 0)
                accept_servers(polled[i].fd, families[i]);
            else if (sides[i] != NULL && (polled[i].revents != 0 || sides[i]->reset_at != UINT64_MAX))
                act(sides[i], polled[i].revents);
        }
        for (size_t i = 0; i < active_count;) {
            struct pair *pair = active[i];
            /* A client may be done before the server has read the header: it waits for that. */
            if (pair->client.fd < 0 && (pair->server != NULL ? pair->server->fd < 0 : pair->client.did_reset)) {
                finish(pair);
                active[i] = active[--active_count];
            } else {
                i++;
            }
        }
        for (size_t i = 0; i < server_count;) {
            struct side *side = servers[i];
            if (side->fd < 0 && (side->pair == NULL || !side->pair->in_use)) {
                free(side);
                servers[i] = servers[--server_count];
            } else {
                i++;
            }
        }
        if (now - last_event > PATIENCE_MS) {
            for (size_t i = 0; i < active_count; i++)
                wrong(&active[i]->client, "nothing happens any more; %zu pairs are left", active_count);
            for (size_t i = 0; i < server_count; i++)
                wrong(servers[i]->pair != NULL ? servers[i] : NULL,
                      "nothing happens any more; %zu servers' sides are left that no client belongs to", server_count);
        }
    }
    free(active);
    free(polled);
    free(sides);
}

static void report(uint64_t began)
{
    printf("pairs=%llu bytes=%llu resets=%llu unseen=%llu client_ended_first=%llu server_ended_first=%llu "
           "small_buffers=%llu ms=%llu seed=%llu\n",
           (unsigned long long)counts.pairs, (unsigned long long)counts.bytes, (unsigned long long)counts.resets,
           (unsigned long long)counts.unseen, (unsigned long long)counts.client_ended_first,
           (unsigned long long)counts.server_ended_first, (unsigned long long)counts.small_buffers,
           (unsigned long long)(milliseconds() - began), (unsigned long long)options.seed);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static const struct option table[] = {
        {"connections", required_argument, NULL, 'n'}, {"concurrent", required_argument, NULL, 'c'},
        {"most", required_argument, NULL, 'm'},        {"seed", required_argument, NULL, 's'},
        {"no-resets", no_argument, NULL, 'r'},         {"resets-end", no_argument, NULL, 'e'},
        {"directory", required_argument, NULL, 'd'},   {0},
    };
    options.seed = milliseconds();
    for (int option; (option = getopt_long(argc, argv, "", table, NULL)) != -1;) {
        switch (option) {
        case 'n':
            options.connections = (unsigned)atoi(optarg);
            break;
        case 'c':
            options.concurrent = (unsigned)atoi(optarg);
            break;
        case 'm':
            options.most = strtoull(optarg, NULL, 10);
            break;
        case 's':
            options.seed = strtoull(optarg, NULL, 10);
            break;
        case 'r':
            options.resets = false;
            break;
        case 'e':
            options.resets_end = true;
            break;
        case 'd':
            options.directory = optarg;
            break;
        default:
            return 2;
        }
    }
    if (options.directory == NULL || options.connections == 0 || options.concurrent == 0 || options.most == 0)
        return 2;
    random_state = options.seed;
    pool = malloc(POOL + CHUNK_MAX);
    pairs = calloc(options.connections, sizeof *pairs);
    if (pool == NULL || pairs == NULL)
        abort();
    for (size_t i = 0; i < POOL; i += 8)
        memcpy(pool + i, &(uint64_t){random_next()}, 8);
    memcpy(pool + POOL, pool, CHUNK_MAX);

    start_listening();
    char line[1024];
    if (fgets(line, sizeof line, stdin) == NULL)
        wrong(NULL, "no addresses on standard input");
    for (char *rest = line, *word; (word = strtok_r(rest, " \n", &rest)) != NULL && target_count < ADDRESSES_MAX;)
        targets[target_count++] = parse(word);
    if (target_count == 0)
        wrong(NULL, "no addresses on standard input");
    uint64_t began = milliseconds(), half = (options.connections + 1) / 2;
    run(0, half);
    report(began);
    if (half < options.connections && fgets(line, sizeof line, stdin) != NULL) {
        began = milliseconds();
        run(half, options.connections);
        report(began);
    }
    free(pool);
    free(pairs);
    free(servers);
    return 0;
}
