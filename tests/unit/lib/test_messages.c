/* SPDX-License-Identifier: MIT
 *
 * The gather call: small messages, few system calls, every byte once and in order, and datagrams that stay apart.
 */
#include "../check.h"
#include "simulated.h"
#include "sys.h"
#include "world.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

static unsigned char pattern[4 << 20];

__attribute__((constructor)) static void fill(void)
{
    pattern_fill(pattern, 0, sizeof pattern);
}

static uint64_t draw(uint64_t *seed)
{
    uint64_t z = *seed += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static uint64_t fresh_seed(void)
{
    uint64_t seed = 0;
    CHECK_EQ(getrandom(&seed, sizeof seed, 0), sizeof seed);
    printf("# seed %llu\n", (unsigned long long)seed);
    return seed;
}

static unsigned released;
static uint64_t released_bytes;

static void on_release(void *context, const void *data, size_t length)
{
    CHECK(context == &released);
    CHECK(data >= (const void *)pattern && data < (const void *)(pattern + sizeof pattern));
    released++;
    released_bytes += length;
}

static struct sluice_gather *gather_of(struct sluice_end *sink, size_t bytes, unsigned messages)
{
    struct sluice_gather *gather;
    struct sluice_gather_options options = {.size = sizeof options, .sink = sink, .bytes = bytes, .messages = messages};
    released = 0;
    released_bytes = 0;
    CHECK_EQ(sluice_gather_new(&options, &gather), 0);
    return gather;
}

static struct sluice_receipt receipt_of(const struct sluice_gather *gather)
{
    struct sluice_receipt receipt;
    sluice_gather_receipt(gather, &receipt);
    CHECK_EQ(receipt.bytes, receipt.copied + receipt.by_reference + receipt.unknown);
    return receipt;
}

TEST("sixty small messages leave by one system call, and the receipt counts both copies")
{
    int fds[2];
    char got[6001];
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    struct sluice_gather *gather = gather_of(sink, 0, 0);
    for (int i = 0; i < 60; i++)
        CHECK_EQ(sluice_gather_add(gather, pattern + 100 * i, 100, NULL, NULL), 0);
    CHECK_EQ(sluice_gather_pending(gather), 6000);
    CHECK_EQ(receipt_of(gather).system_calls, 0);
    CHECK_EQ(sluice_gather_flush(gather, NULL), SLUICE_STEP_DONE);
    CHECK_EQ(sluice_gather_pending(gather), 0);
    struct sluice_receipt receipt = receipt_of(gather);
    CHECK_EQ(receipt.system_calls, 1);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY].calls, 1);
    CHECK_EQ(receipt.bytes, 6000);
    CHECK_EQ(receipt.copied, 6000);
    CHECK_EQ(receipt.copy_bytes, 12000);
    CHECK(sluice_receipt_is_final(&receipt));
    CHECK_EQ(recv(fds[1], got, sizeof got, 0), 6000);
    CHECK(memcmp(got, pattern, 6000) == 0);
    sluice_gather_free(gather);
    sluice_end_close(sink);
    close(fds[1]);
}

TEST("messages with a release are referred to when large: sixteen by one call, copied once")
{
    int fds[2];
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    struct sluice_gather *gather = gather_of(sink, 1 << 20, 0);
    for (int i = 0; i < 16; i++)
        CHECK_EQ(sluice_gather_add(gather, pattern + 1500 * i, 1500, on_release, &released), 0);
    CHECK_EQ(released, 0);
    CHECK_EQ(sluice_gather_add(gather, pattern + 24000, 10, on_release, &released), 0);
    CHECK_EQ(released, 1); /* copied */
    CHECK_EQ(sluice_gather_flush(gather, NULL), SLUICE_STEP_DONE);
    struct sluice_receipt receipt = receipt_of(gather);
    CHECK_EQ(released, 17);
    CHECK_EQ(released_bytes, 24010);
    CHECK_EQ(receipt.system_calls, 2);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY].calls, 2);
    CHECK_EQ(receipt.copy_bytes, 24010 + 10);
    sluice_gather_free(gather);
    sluice_end_close(sink);
    close(fds[1]);
}

TEST("a batch leaves by itself when it has so many messages, or so many bytes")
{
    int fds[2];
    unix_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    struct sluice_gather *gather = gather_of(sink, 1000, 8);
    for (int i = 0; i < 7; i++)
        CHECK_EQ(sluice_gather_add(gather, pattern, 10, NULL, NULL), 0);
    CHECK_EQ(sluice_gather_pending(gather), 70);
    CHECK_EQ(sluice_gather_add(gather, pattern, 10, NULL, NULL), 0);
    CHECK_EQ(sluice_gather_pending(gather), 0);
    CHECK_EQ(sluice_gather_add(gather, pattern, 999, NULL, NULL), 0);
    CHECK_EQ(sluice_gather_pending(gather), 999);
    CHECK_EQ(sluice_gather_add(gather, pattern, 2, NULL, NULL), 0); /* does not fit behind it: that leaves first */
    CHECK_EQ(sluice_gather_pending(gather), 2);
    CHECK_EQ(sluice_gather_add(gather, pattern, 998, NULL, NULL), 0);
    CHECK_EQ(sluice_gather_pending(gather), 0);
    CHECK_EQ(sluice_gather_add(gather, pattern, 0, NULL, NULL), 0); /* nothing */
    CHECK_EQ(receipt_of(gather).bytes, 80 + 999 + 1000);
    CHECK_EQ(sluice_gather_add(gather, pattern, 1001, NULL, NULL), -EMSGSIZE);
    CHECK_EQ(sluice_gather_add(gather, pattern, 1001, on_release, &released), 0);
    CHECK_EQ(released, 1);
    sluice_gather_free(gather);
    sluice_end_close(sink);
    close(fds[1]);
}

static void check_datagrams(int family, int fds[2], unsigned count)
{
    unsigned char got[4096];
    size_t lengths[64];
    uint64_t at = 0, seed = fresh_seed();
    struct sluice_end *sink = end_of(fds[0]);
    struct sluice_gather *gather = gather_of(sink, 0, 64);
    for (unsigned i = 0; i < count; i++) {
        lengths[i] = 1 + draw(&seed) % 1400;
        bool lends = draw(&seed) % 2 == 0;
        CHECK_EQ(sluice_gather_add(gather, pattern + at, lengths[i], lends ? on_release : NULL, &released), 0);
        at += lengths[i];
    }
    CHECK_EQ(sluice_gather_flush(gather, NULL), SLUICE_STEP_DONE);
    struct sluice_receipt receipt = receipt_of(gather);
    CHECK_EQ(receipt.bytes, at);
    if (receipt.system_calls != (count + OP_IOV_MAX - 1) / OP_IOV_MAX)
        CHECK_FAIL("family %d: %llu calls for %u datagrams", family, (unsigned long long)receipt.system_calls, count);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY].calls, receipt.system_calls);
    at = 0;
    for (unsigned i = 0; i < count; i++) {
        ssize_t size = recv(fds[1], got, sizeof got, 0);
        CHECK_EQ(size, lengths[i]);
        CHECK(memcmp(got, pattern + at, lengths[i]) == 0);
        at += lengths[i];
    }
    sluice_gather_free(gather);
    sluice_end_close(sink);
    close(fds[1]);
}

TEST("datagrams stay apart, and sixteen leave by one system call")
{
    int fds[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, fds), 0);
    check_datagrams(AF_UNIX, fds, 8); /* its queue holds ten */
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    fds[0] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    fds[1] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(bind(fds[1], (struct sockaddr *)&address, size), 0);
    CHECK_EQ(getsockname(fds[1], (struct sockaddr *)&address, &size), 0);
    CHECK_EQ(connect(fds[0], (struct sockaddr *)&address, size), 0);
    check_datagrams(AF_INET, fds, 40);
}

TEST("a transfer of several memory segments into a datagram socket sends each as one datagram, too")
{
    int fds[2];
    char got[100];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, fds), 0);
    struct sluice_end *sink = end_of(fds[0]);
    struct sluice_segment segments[] = {memory_segment("one", 3), memory_segment("", 0), memory_segment("two!", 4)};
    struct sluice_receipt receipt;
    struct sluice_transfer_options options = {
        .size = sizeof options, .segments = segments, .segment_count = 3, .sinks = &sink, .sink_count = 1};
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    CHECK_EQ(receipt.system_calls, 1);
    CHECK_EQ(recv(fds[1], got, sizeof got, 0), 3);
    CHECK_EQ(recv(fds[1], got, sizeof got, 0), 4);
    sluice_end_close(sink);
    close(fds[1]);
}

/* A slow reader: some bytes now and then. */
static size_t read_some(int fd, unsigned char *got, size_t at, size_t most)
{
    ssize_t size = recv(fd, got + at, most, MSG_DONTWAIT);
    return size > 0 ? (size_t)size : 0;
}

TEST("into a slow reader every byte arrives once and in order, and each release is called once")
{
    static unsigned char got[sizeof pattern];
    uint64_t seed = fresh_seed();
    for (int round = 0; round < 30; round++) {
        int fds[2], small = 4096;
        bool local = draw(&seed) % 2 == 0;
        if (local)
            unix_pair(fds);
        else
            tcp_pair(fds);
        setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
        struct sluice_end *sink = end_of(fds[0]);
        struct sluice_gather *gather = gather_of(sink, 2000 + draw(&seed) % 60000, 2 + (unsigned)(draw(&seed) % 100));
        size_t at = 0, arrived = 0, refused = 0, copied = 0;
        unsigned lent = 0;
        while (at < 600000) {
            size_t length = draw(&seed) % 2 == 0 ? draw(&seed) % 100 : draw(&seed) % 3000;
            bool lends = length > 2000 || draw(&seed) % 3 == 0;
            int result = sluice_gather_add(gather, pattern + at, length, lends ? on_release : NULL, &released);
            if (result == -EAGAIN) {
                struct sluice_waits waits;
                refused++;
                arrived += read_some(fds[1], got, arrived, 1 + draw(&seed) % 20000);
                CHECK(sluice_gather_flush(gather, &waits) >= 0);
                continue;
            }
            CHECK_EQ(result, 0);
            lent += lends;
            copied += !lends || length <= 1024 ? length : 0;
            at += length;
            CHECK(released <= lent);
        }
        struct sluice_waits waits;
        while (sluice_gather_flush(gather, &waits) == SLUICE_STEP_WAIT) {
            CHECK_EQ(waits.count, 1);
            CHECK_EQ(waits.wait[0].kind, SLUICE_WAIT_WRITABLE);
            int queued = 0;
            if (local && ioctl(fds[1], FIONREAD, &queued) == 0) /* of a connection some may be on its way */
                CHECK_EQ(sluice_gather_pending(gather), at - arrived - (size_t)queued);
            CHECK(sluice_gather_pending(gather) > 0);
            arrived += read_some(fds[1], got, arrived, 1 + draw(&seed) % 20000);
        }
        while (arrived < at)
            arrived += read_some(fds[1], got, arrived, at - arrived);
        CHECK(memcmp(got, pattern, at) == 0);
        CHECK_EQ(released, lent);
        CHECK(refused > 0);
        struct sluice_receipt receipt = receipt_of(gather);
        CHECK_EQ(receipt.bytes, at);
        CHECK_EQ(receipt.copy_bytes, at + copied);
        CHECK(sluice_receipt_is_final(&receipt));
        sluice_gather_free(gather);
        sluice_end_close(sink);
        close(fds[1]);
    }
}

TEST("a peer that is gone ends it for good, and what was lent is released")
{
    int fds[2];
    unix_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    struct sluice_gather *gather = gather_of(sink, 0, 0);
    close(fds[1]);
    CHECK_EQ(sluice_gather_add(gather, pattern, 5000, on_release, &released), 0);
    CHECK_EQ(sluice_gather_flush(gather, NULL), -EPIPE);
    CHECK_EQ(released, 1);
    CHECK_EQ(sluice_gather_error(gather)->code, -EPIPE);
    CHECK_EQ(sluice_gather_add(gather, pattern, 5000, on_release, &released), -EPIPE);
    CHECK_EQ(sluice_gather_flush(gather, NULL), -EPIPE);
    CHECK_EQ(released, 1); /* the second was not taken */
    sluice_gather_free(gather);
    sluice_end_close(sink);
}

TEST("a datagram that is refused takes those behind it in its batch along, and the next ones are sent")
{
    int fds[2], small = 4096;
    char got[100];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, fds), 0);
    setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    struct sluice_end *sink = end_of(fds[0]);
    struct sluice_gather *gather = gather_of(sink, 1 << 20, 0);
    CHECK_EQ(sluice_gather_add(gather, "before", 6, NULL, NULL), 0);
    CHECK_EQ(sluice_gather_add(gather, pattern, 200000, on_release, &released), 0);
    CHECK_EQ(sluice_gather_add(gather, "behind", 6, NULL, NULL), 0);
    CHECK_EQ(sluice_gather_flush(gather, NULL), -EMSGSIZE);
    CHECK_EQ(released, 1);
    CHECK_EQ(sluice_gather_pending(gather), 0);
    CHECK_EQ(sluice_gather_add(gather, "next", 4, NULL, NULL), 0);
    CHECK_EQ(sluice_gather_flush(gather, NULL), SLUICE_STEP_DONE);
    CHECK_EQ(receipt_of(gather).bytes, 10);
    CHECK_EQ(recv(fds[1], got, sizeof got, 0), 6);
    CHECK_EQ(recv(fds[1], got, sizeof got, 0), 4);
    CHECK_EQ(recv(fds[1], got, sizeof got, MSG_DONTWAIT), -1);
    sluice_gather_free(gather);
    sluice_end_close(sink);
    close(fds[1]);
}

TEST("what was not flushed is not sent, but released")
{
    int fds[2];
    char got[100];
    unix_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    struct sluice_gather *gather = gather_of(sink, 0, 0);
    CHECK_EQ(sluice_gather_add(gather, pattern, 5000, on_release, &released), 0);
    sluice_gather_free(gather);
    CHECK_EQ(released, 1);
    CHECK_EQ(recv(fds[1], got, sizeof got, MSG_DONTWAIT), -1);
    sluice_gather_free(NULL);
    sluice_end_close(sink);
    close(fds[1]);
}

TEST("wrong options are refused")
{
    struct sluice_gather *gather;
    int fds[2];
    unix_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    struct sluice_gather_options options = {.size = sizeof options, .sink = NULL};
    CHECK_EQ(sluice_gather_new(&options, &gather), -EINVAL);
    options.sink = sink;
    options.size = 8;
    CHECK_EQ(sluice_gather_new(&options, &gather), -EINVAL);
    options.size = sizeof options;
    options.messages = SLUICE_GATHER_MESSAGES_MAX + 1;
    CHECK_EQ(sluice_gather_new(&options, &gather), -EINVAL);
    sluice_end_close(sink);
    close(fds[1]);
}

/* A connection that holds little. */
static void narrow_pair(int fds[2])
{
    int small = 8192;
    tcp_pair(fds);
    setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    setsockopt(fds[1], SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
}

/* ---- On the loop --------------------------------------------------------------------------------------------------
 */

static struct {
    struct sluice_loop *loop;
    struct sluice_gather *gather;
    size_t at, total, arrived;
    unsigned char *got;
    unsigned flushed;
    int result;
} server;

static void add_more(void)
{
    while (server.at < server.total) {
        size_t length = 1 + server.at % 1999;
        length = length < server.total - server.at ? length : server.total - server.at;
        int result = sluice_gather_add(server.gather, pattern + server.at, length, on_release, &released);
        if (result == -EAGAIN)
            return;
        CHECK_EQ(result, 0);
        server.at += length;
    }
    struct sluice_waits waits;
    int result = sluice_gather_flush(server.gather, &waits);
    CHECK(result >= 0);
}

static void on_flushed(void *context, int result)
{
    CHECK(context == &server);
    server.flushed++;
    server.result = result;
    CHECK(result < 0 || sluice_gather_pending(server.gather) == 0); /* what was added meanwhile included */
    if (result == 0)
        add_more();
}

static void on_bytes(void *context, const char *data, ssize_t length)
{
    (void)context;
    if (length <= 0) {
        sluice_loop_stop(server.loop);
        return;
    }
    memcpy(server.got + server.arrived, data, (size_t)length);
    server.arrived += (size_t)length;
    if (server.arrived == server.total)
        sluice_loop_stop(server.loop);
}

TEST("on the loop what was flushed leaves by itself, and the next messages are asked for")
{
    int fds[2];
    memset(&server, 0, sizeof server);
    server.total = 200 << 10;
    server.got = malloc(server.total);
    narrow_pair(fds);
    CHECK_EQ(sluice_loop_new(NULL, &server.loop), 0);
    struct sluice_end *sink = end_of(fds[0]), *source = end_of(fds[1]);
    struct sluice_gather_options options = {
        .size = sizeof options, .sink = sink, .loop = server.loop, .flushed = on_flushed, .context = &server};
    released = 0;
    CHECK_EQ(sluice_gather_new(&options, &server.gather), 0);
    add_more();
    CHECK(server.at < server.total);
    CHECK_EQ(sluice_loop_receive(server.loop, source, 0, on_bytes, NULL), 0);
    CHECK_EQ(sluice_loop_run(server.loop), 0);
    CHECK_EQ(server.arrived, server.total);
    CHECK(memcmp(server.got, pattern, server.total) == 0);
    CHECK(server.flushed > 0);
    CHECK_EQ(receipt_of(server.gather).bytes, server.total);
    sluice_gather_free(server.gather);
    sluice_loop_forget(server.loop, sink);
    sluice_loop_forget(server.loop, source);
    sluice_loop_free(server.loop);
    sluice_end_close(sink);
    sluice_end_close(source);
    free(server.got);
}

TEST("freed while the loop still carries a batch, it releases what is left, and flushed is not called")
{
    int fds[2];
    memset(&server, 0, sizeof server);
    server.total = 200 << 10;
    narrow_pair(fds);
    CHECK_EQ(sluice_loop_new(NULL, &server.loop), 0);
    struct sluice_end *sink = end_of(fds[0]);
    struct sluice_gather_options options = {
        .size = sizeof options, .sink = sink, .loop = server.loop, .flushed = on_flushed, .context = &server};
    released_bytes = 0;
    CHECK_EQ(sluice_gather_new(&options, &server.gather), 0);
    add_more();
    CHECK(sluice_gather_pending(server.gather) > 0);
    sluice_gather_free(server.gather);
    CHECK_EQ(released_bytes, server.at);
    CHECK_EQ(server.flushed, 0);
    sluice_loop_forget(server.loop, sink);
    sluice_loop_free(server.loop);
    sluice_end_close(sink);
    close(fds[1]);
}

/* ---- Lent to the kernel ------------------------------------------------------------------------------------------ */

static struct sys real;

/* Loopback as if it were a network card, by which memory is lent. */
static int no_loopback(int fd, unsigned long request, void *argument)
{
    int result = real.ioctl(fd, request, argument);
    if (request == SIOCGIFFLAGS && result == 0)
        ((struct ifreq *)argument)->ifr_flags &= (short)~IFF_LOOPBACK;
    return result;
}

static struct {
    unsigned lent, released_early, released;
    uint64_t bytes, lent_bytes;
    struct sluice_receipt before, after;
    bool failed;
} lending;

static void send_lent(struct sluice_end *sink, int far, bool free_early)
{
    struct sluice_gather *gather;
    struct sluice_gather_options options = {.size = sizeof options, .sink = sink, .bytes = 8 << 20};
    char got[65536];
    size_t left = 8 * 100000 + 8 * 100;
    lending.failed |= sluice_gather_new(&options, &gather) < 0;
    for (int i = 0; i < 8; i++) {
        lending.failed |= sluice_gather_add(gather, pattern + i * 100100, 100000, on_release, &released) < 0;
        lending.failed |= sluice_gather_add(gather, pattern + i * 100100 + 100000, 100, NULL, NULL) < 0;
    }
    struct sluice_waits waits;
    size_t arrived = 0;
    while (sluice_gather_flush(gather, &waits) == SLUICE_STEP_WAIT && left > 0) {
        ssize_t size = recv(far, got, sizeof got, MSG_DONTWAIT);
        lending.failed |= size > 0 && memcmp(got, pattern + arrived, (size_t)size) != 0;
        arrived += size > 0 ? (size_t)size : 0;
        left -= size > 0 ? (size_t)size : 0;
    }
    sluice_gather_receipt(gather, &lending.before);
    lending.released_early = released;
    if (free_early)
        sluice_gather_free(gather);
    while (left > 0) {
        ssize_t size = recv(far, got, sizeof got, 0);
        if (size <= 0 && errno == EAGAIN)
            continue;
        lending.failed |= size <= 0 || memcmp(got, pattern + arrived, (size_t)size) != 0;
        arrived += (size_t)size;
        left -= (size_t)size;
    }
    for (int i = 0; i < 20000 && sluice_end_collect(sink) > 0; i++)
        usleep(100);
    lending.released = released;
    if (!free_early) {
        sluice_gather_receipt(gather, &lending.after);
        sluice_gather_free(gather);
    }
}

static void *lend_by_gathering(void *context)
{
    int fds[2];
    const bool *free_early = context;
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    send_lent(sink, fds[1], *free_early);
    sluice_end_close(sink);
    close(fds[1]);
    return NULL;
}

TEST("large messages may be lent to the kernel; they are released when they are back, and the receipt becomes final")
{
    real = sys;
    for (int round = 0; round < 2; round++) {
        bool free_early = round == 1;
        pthread_t thread; /* of its own: egress devices are cached per thread */
        memset(&lending, 0, sizeof lending);
        released = 0;
        sys.ioctl = no_loopback;
        CHECK_EQ(pthread_create(&thread, NULL, lend_by_gathering, &free_early), 0);
        pthread_join(thread, NULL);
        sys = real;
        CHECK(!lending.failed);
        CHECK(lending.before.routes[SLUICE_ROUTE_MSG_ZEROCOPY].bytes > 0);
        CHECK_EQ(lending.before.bytes, 800800);
        CHECK_EQ(lending.released, 8);
        if (free_early)
            continue;
        CHECK(sluice_receipt_is_final(&lending.after));
        CHECK_EQ(lending.after.bytes, 800800);
        CHECK_EQ(lending.after.copied + lending.after.by_reference + lending.after.unknown, 800800);
    }
}

static void *lend_datagrams(void *context)
{
    enum { COUNT = 3, LENGTH = 20000 }; /* fits into the receive buffer */
    static unsigned char got[LENGTH + 1];
    int fds[2];
    (void)context;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    fds[0] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    fds[1] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    lending.failed |= bind(fds[1], (struct sockaddr *)&address, size) < 0 ||
                      getsockname(fds[1], (struct sockaddr *)&address, &size) < 0 ||
                      connect(fds[0], (struct sockaddr *)&address, size) < 0;
    struct sluice_end *sink = end_of(fds[0]);
    struct sluice_gather *gather;
    struct sluice_gather_options options = {.size = sizeof options, .sink = sink, .bytes = 1 << 20};
    lending.failed |= sluice_gather_new(&options, &gather) < 0;
    for (unsigned i = 0; i < COUNT; i++)
        lending.failed |= sluice_gather_add(gather, pattern + i * LENGTH, LENGTH, on_release, &released) < 0;
    lending.failed |= sluice_gather_flush(gather, NULL) != SLUICE_STEP_DONE;
    sluice_gather_receipt(gather, &lending.before);
    for (unsigned i = 0; i < COUNT; i++)
        lending.failed |= recv(fds[1], got, sizeof got, 0) != LENGTH || memcmp(got, pattern + i * LENGTH, LENGTH) != 0;
    for (int i = 0; i < 20000 && sluice_end_collect(sink) > 0; i++)
        usleep(100);
    lending.released = released;
    sluice_gather_receipt(gather, &lending.after);
    sluice_gather_free(gather);
    sluice_end_close(sink);
    close(fds[1]);
    return NULL;
}

TEST("datagrams that are lent leave one by one, each with a notification of its own")
{
    pthread_t thread;
    memset(&lending, 0, sizeof lending);
    released = 0;
    real = sys;
    sys.ioctl = no_loopback;
    CHECK_EQ(pthread_create(&thread, NULL, lend_datagrams, NULL), 0);
    pthread_join(thread, NULL);
    sys = real;
    CHECK(!lending.failed);
    CHECK_EQ(lending.before.routes[SLUICE_ROUTE_MSG_ZEROCOPY].calls, 3);
    CHECK_EQ(lending.released, 3);
    CHECK(sluice_receipt_is_final(&lending.after));
    CHECK_EQ(lending.after.bytes, 60000);
}

/* ---- A kernel that lies ------------------------------------------------------------------------------------------ */

TEST("whatever the kernel takes at once, datagrams are whole and in order, without a kernel")
{
    enum { SEGMENTS = 50 };
    uint64_t seed = fresh_seed();
    for (int round = 0; round < 300; round++) {
        struct sluice_segment segments[SEGMENTS];
        struct simulation simulation = {.seed = draw(&seed), .lies = (unsigned)(draw(&seed) % 120)};
        size_t total = 0;
        unsigned count = 1 + (unsigned)(draw(&seed) % SEGMENTS), filled = 0;
        for (unsigned i = 0; i < count; i++) {
            size_t length = draw(&seed) % 5 == 0 ? 0 : draw(&seed) % 3000;
            segments[i] = memory_segment(pattern + total, length);
            filled += length > 0;
            total += length;
        }
        simulation_begin(&simulation);
        struct sluice_end *sink = simulated_end(&simulation, SIMULATED_SINK, SLUICE_END_DATAGRAM, pattern, total);
        struct sluice_transfer_options options = {
            .size = sizeof options, .segments = segments, .segment_count = count, .sinks = &sink, .sink_count = 1};
        struct sluice_transfer *transfer = calloc(1, sizeof *transfer);
        CHECK_EQ(transfer_begin(transfer, &options, NULL), 0);
        int result = simulation_run(&simulation, transfer);
        const struct simulated_object *object = &simulation.objects[0];
        uint64_t bytes = transfer->lanes[0].receipt.bytes, calls = transfer->lanes[0].receipt.routes[1].calls;
        bool whole = !object->wrong && object->at == total && object->pieces == filled;
        transfer_end(transfer);
        free(transfer);
        sluice_end_close(sink);
        simulation_end();
        if (result != 0 || !whole || bytes != total)
            CHECK_FAIL("round %d: %d, %u datagrams of %u, %zu bytes of %zu", round, result, object->pieces, filled,
                       object->at, total);
        if (simulation.lies == 0)
            CHECK_EQ(calls, (filled + OP_IOV_MAX - 1) / OP_IOV_MAX);
    }
}

CHECK_MAIN()
