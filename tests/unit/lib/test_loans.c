/* SPDX-License-Identifier: MIT
 *
 * Memory lent to real sockets: it arrives as by copy, comes back exactly once, and the receipt becomes final. What a
 * kernel does only sometimes is played in test_lending.c.
 */
#include "../check.h"
#include "end.h"
#include "given.h"
#include "memlock.h"
#include "sys.h"
#include "world.h"
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define BODY (3u << 20 | 4321)

static unsigned char body[BODY];
static unsigned released;

static void count_release(void *context, const void *data, size_t length)
{
    (void)context;
    released++;
    memset((void *)(uintptr_t)data, 0xee, length); /* whoever still reads it shows */
}

static struct sluice_segment lendable(unsigned char *data, size_t size)
{
    struct sluice_segment segment = memory_segment(data, size);
    segment.release = count_release;
    return segment;
}

static void check_pattern(const unsigned char *data, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (data[i] != pattern_byte(i))
            CHECK_FAIL("byte %zu is wrong", i);
}

TEST("lent memory arrives, is released once, and the blocking call waits for it")
{
    int fds[2];
    size_t size;
    struct sluice_receipt receipt;
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    struct collector *collector = collector_start(fds[1], false);
    pattern_fill(body, 0, BODY);
    released = 0;
    struct sluice_segment segment = lendable(body, BODY);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_MSG_ZEROCOPY);
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    CHECK_EQ(released, 1);
    CHECK(sluice_receipt_is_final(&receipt));
    CHECK_EQ(receipt.bytes, BODY);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_MSG_ZEROCOPY].bytes, BODY);
    CHECK_EQ(receipt.copied, BODY); /* the peer is on this machine */
    CHECK_EQ(receipt.copy_bytes, BODY);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_MSG_ZEROCOPY].evidence, SLUICE_EVIDENCE_MEASURED);
    sluice_end_close(sink);
    unsigned char *data = collector_finish(collector, &size);
    CHECK_EQ(size, BODY);
    check_pattern(data, size);
    free(data);
    close(fds[1]);
}

static struct sluice_receipt total;

static void on_settled(void *context, unsigned sink, const struct sluice_receipt *difference)
{
    (void)context, (void)sink;
    sluice_receipt_add(&total, difference);
}

/* A connection whose peer reads nothing yet: more is sent than its window holds, so that loans are outstanding. */
static struct sluice_end *stuck_pair(int *ret_peer)
{
    int fds[2], room = 8 << 20;
    tcp_pair(fds);
    CHECK_EQ(setsockopt(fds[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room), 0);
    *ret_peer = fds[1];
    return end_of(fds[0]);
}

static void lend_by_steps(struct sluice_end *sink, size_t size)
{
    struct sluice_segment segment = lendable(body, size);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_MSG_ZEROCOPY);
    struct sluice_transfer *transfer;
    struct sluice_waits waits;
    options.settled = on_settled;
    memset(&total, 0, sizeof total);
    CHECK_EQ(sluice_transfer_new(&options, &transfer, NULL), 0);
    int result;
    while ((result = sluice_transfer_step(transfer, &waits)) == SLUICE_STEP_YIELD)
        ;
    CHECK_EQ(result, SLUICE_STEP_DONE);
    total = *sluice_transfer_receipt(transfer, 0);
    sluice_transfer_free(transfer);
}

static size_t read_all(int fd)
{
    static unsigned char data[65536];
    size_t size = 0;
    ssize_t got;
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    while (poll(&wait, 1, 2000) > 0 && (got = read(fd, data, sizeof data)) > 0) {
        for (ssize_t i = 0; i < got; i++)
            if (data[i] != pattern_byte(size + (size_t)i))
                CHECK_FAIL("byte %zu is wrong", size + (size_t)i);
        size += (size_t)got;
    }
    return size;
}

TEST("an end that is closed with loans outstanding lives on until they are back, and its peer gets everything")
{
    int peer, before = open_descriptors();
    struct sluice_end *sink = stuck_pair(&peer);
    pattern_fill(body, 0, BODY);
    released = 0;
    lend_by_steps(sink, BODY);
    CHECK(total.loans > 0);
    sluice_end_close(sink);
    CHECK(sluice_end_collect(NULL) > 0);
    CHECK_EQ(released, 0);
    CHECK(open_descriptors() > before + 1); /* the socket is still there */
    CHECK_EQ(read_all(peer), BODY);         /* to the end of the stream: it was shut down */
    for (int i = 0; i < 2000 && sluice_end_collect(NULL) != 0; i++)
        usleep(1000);
    CHECK_EQ(sluice_end_collect(NULL), 0);
    CHECK_EQ(released, 1);
    CHECK(sluice_receipt_is_final(&total));
    CHECK_EQ(total.copied, BODY);
    CHECK_EQ(total.unknown, 0);
    close(peer);
    CHECK_EQ(open_descriptors(), before);
}

TEST("a peer that resets the connection gives the memory back at once")
{
    int peer;
    struct linger linger = {.l_onoff = 1};
    struct sluice_end *sink = stuck_pair(&peer);
    pattern_fill(body, 0, BODY);
    released = 0;
    lend_by_steps(sink, BODY);
    CHECK(total.loans > 0);
    setsockopt(peer, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(peer);
    for (int i = 0; i < 2000 && sluice_end_collect(sink) != 0; i++)
        usleep(1000);
    CHECK_EQ(released, 1);
    CHECK(sluice_receipt_is_final(&total));
    sluice_end_close(sink);
}

/* ---- On the loop ---------------------------------------------------------------------------------------------- */

static struct sluice_loop *loop;
static ssize_t received;
static bool done;

static void on_received(void *context, const char *data, ssize_t length)
{
    (void)context, (void)data;
    received = length;
    sluice_loop_stop(loop);
}

static void on_done(void *context, struct sluice_transfer *transfer, int result)
{
    (void)context;
    done = result == 0;
    total = *sluice_transfer_receipt(transfer, 0);
}

static void stop(void *context)
{
    (void)context;
    sluice_loop_stop(loop);
}

static void turn_for(unsigned milliseconds)
{
    static struct sluice_timer timer;
    sluice_timer_start(loop, &timer, milliseconds, stop, NULL);
    CHECK_EQ(sluice_loop_run(loop), 0);
    sluice_timer_stop(loop, &timer);
}

static void lend_on_loop(struct sluice_end *sink, size_t size)
{
    struct sluice_segment segment = lendable(body, size);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_MSG_ZEROCOPY);
    options.settled = on_settled;
    options.turn = 64 << 20;
    const struct sluice_receipt *receipt;
    memset(&total, 0, sizeof total);
    int result = sluice_loop_transfer(loop, &options, on_done, NULL, NULL, &receipt, NULL);
    CHECK(result >= 0);
    done = result == 1;
    if (done)
        total = *receipt;
}

/* Reads BODY bytes, with pauses: notifications come one by one. */
static void *drain_slowly(void *peer)
{
    static unsigned char data[65536];
    for (size_t size = 0; size < BODY;) {
        ssize_t got = read(*(int *)peer, data, sizeof data);
        if (got > 0)
            size += (size_t)got;
        else
            usleep(500);
    }
    return NULL;
}

TEST("notifications do not look like a broken connection: a paused receiver is told nothing, and receives afterwards")
{
    int peer;
    CHECK_EQ(sluice_loop_new(NULL, &loop), 0);
    struct sluice_end *sink = stuck_pair(&peer);
    pattern_fill(body, 0, BODY);
    released = 0;
    received = 99;
    CHECK_EQ(sluice_loop_receive(loop, sink, 0, on_received, NULL), 0);
    sluice_loop_receive_pause(loop, sink);
    lend_on_loop(sink, BODY);
    pthread_t reader;
    CHECK_EQ(pthread_create(&reader, NULL, drain_slowly, &peer), 0);
    turn_for(300);
    pthread_join(reader, NULL);
    CHECK_EQ(received, 99);
    CHECK(done);
    CHECK_EQ(released, 1);
    CHECK(sluice_receipt_is_final(&total));
    CHECK_EQ(total.copied, BODY);
    CHECK_EQ(write(peer, "hello", 5), 5);
    sluice_loop_receive_resume(loop, sink);
    turn_for(300);
    CHECK_EQ(received, 5);
    sluice_loop_forget(loop, sink);
    sluice_end_close(sink);
    sluice_loop_free(loop);
    close(peer);
}

TEST("the loop collects for an end that was forgotten and closed, and lets it go then")
{
    int peer, before = open_descriptors();
    CHECK_EQ(sluice_loop_new(NULL, &loop), 0);
    struct sluice_end *sink = stuck_pair(&peer);
    pattern_fill(body, 0, BODY);
    released = 0;
    lend_on_loop(sink, BODY);
    CHECK(done && total.loans > 0);
    sluice_loop_forget(loop, sink);
    sluice_end_close(sink);
    turn_for(200);
    CHECK_EQ(released, 0);
    CHECK_EQ(read_all(peer), BODY);
    turn_for(300);
    CHECK_EQ(released, 1);
    CHECK(sluice_receipt_is_final(&total));
    sluice_loop_free(loop);
    close(peer);
    CHECK_EQ(open_descriptors(), before);
}

TEST("a loop that ends before the memory is back leaves it to the thread")
{
    int peer;
    CHECK_EQ(sluice_loop_new(NULL, &loop), 0);
    struct sluice_end *sink = stuck_pair(&peer);
    pattern_fill(body, 0, BODY);
    released = 0;
    lend_on_loop(sink, BODY);
    sluice_loop_forget(loop, sink);
    sluice_end_close(sink);
    sluice_loop_free(loop);
    CHECK(sluice_end_collect(NULL) > 0);
    CHECK_EQ(read_all(peer), BODY);
    for (int i = 0; i < 2000 && sluice_end_collect(NULL) != 0; i++)
        usleep(1000);
    CHECK_EQ(released, 1);
    close(peer);
}

/* ---- Who is lent, and when -------------------------------------------------------------------------------------- */

static enum sluice_verdict verdict(const struct sluice_segment *segment, struct sluice_end *sink,
                                   enum sluice_route route)
{
    struct sluice_plan plan;
    CHECK_EQ(sluice_plan_make(segment, sink, &plan), 0);
    for (unsigned i = 0; i < plan.count; i++)
        if (plan.entries[i].route == route)
            return plan.entries[i].verdict;
    return SLUICE_NEVER;
}

TEST("memory is lent only with a release callback, by an end that owns its descriptor, and not to a local peer unasked")
{
    int fds[2];
    struct sluice_end *borrowed;
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    struct sluice_segment plain = memory_segment(body, BODY), mine = lendable(body, BODY);
    CHECK_EQ(verdict(&plain, sink, SLUICE_ROUTE_MSG_ZEROCOPY), SLUICE_NEVER);
    CHECK_EQ(verdict(&mine, sink, SLUICE_ROUTE_MSG_ZEROCOPY), SLUICE_NOT_NOW);
    CHECK_EQ(sluice_end_open(fds[1], 0, &borrowed), 0);
    CHECK_EQ(verdict(&mine, borrowed, SLUICE_ROUTE_MSG_ZEROCOPY), SLUICE_NEVER);
    struct sluice_transfer_options options = one_to_one(&plain, &sink, SLUICE_ROUTE_MSG_ZEROCOPY);
    struct sluice_error error;
    CHECK_EQ(sluice_transfer_run(&options, NULL, &error), -EOPNOTSUPP);
    CHECK(strstr(error.reason, "release callback") != NULL);
    sluice_end_close(sink);
    sluice_end_close(borrowed);
    close(fds[1]);
}

/* Without privileges, and with limits squeezed: in a process of its own. */
static int in_child(int (*life)(void))
{
    int status = -1;
    pid_t child = fork();
    if (child == 0)
        _exit(life());
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

static rlim_t lockable;
static size_t lendable_bytes = BODY;

static int lend_with_little_memlock(void)
{
    int fds[2];
    size_t size;
    struct rlimit limit = {lockable, lockable};
    tcp_pair(fds);
    memlock_forget();
    if (setrlimit(RLIMIT_MEMLOCK, &limit) < 0 || (geteuid() == 0 && setresuid(65534, 65534, 65534) < 0))
        return 1;
    struct sluice_end *sink = end_of(fds[0]);
    struct collector *collector = collector_start(fds[1], false);
    struct sluice_segment segment = lendable(body, lendable_bytes);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_MSG_ZEROCOPY);
    struct sluice_receipt receipt;
    released = 0;
    pattern_fill(body, 0, BODY);
    int result = sluice_transfer_run(&options, &receipt, NULL);
    sluice_end_close(sink);
    free(collector_finish(collector, &size));
    if (result != 0 || size != lendable_bytes || released != 1 || !sluice_receipt_is_final(&receipt))
        return 2;
    if (lockable >= 8 << 20)
        return receipt.routes[SLUICE_ROUTE_MSG_ZEROCOPY].bytes == BODY ? 0 : 4;
    char figures[120];
    snprintf(figures, sizeof figures, "lends %s of locked memory, and the user may have %u KiB in all",
             lendable_bytes == BODY ? "1 MiB takes 1032 KiB" : "98 KiB takes 104 KiB", (unsigned)(lockable >> 10));
    const struct sluice_fallback *first = &receipt.fallbacks[0];
    if (receipt.fallback_count == 0 || first->error != 0 || receipt.copied != lendable_bytes)
        return 3;
    return strstr(first->reason, figures) != NULL && strstr(first->reason, "ulimit -l 16384") != NULL ? 0 : 5;
}

TEST("with too little lockable memory everything goes by copy, and the receipt says how much it takes and what helps")
{
    static const rlim_t limits[] = {0, 64 << 10, 1 << 20, 8 << 20};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        lockable = limits[i];
        CHECK_EQ(in_child(lend_with_little_memlock), 0);
    }
    lockable = 64 << 10;
    lendable_bytes = 100000;
    CHECK_EQ(in_child(lend_with_little_memlock), 0);
    lendable_bytes = BODY;
}

/* Returns 0 if the plan for the sink says what it should. */
static int plan_with_little_memlock(void)
{
    int fds[2];
    struct rlimit limit = {lockable, lockable};
    struct sluice_plan plan;
    memlock_forget();
    if (setrlimit(RLIMIT_MEMLOCK, &limit) < 0 || (geteuid() == 0 && setresuid(65534, 65534, 65534) < 0))
        return 1;
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    sink->socket.egress_asked = true; /* as if by a device that could */
    sink->socket.egress = (struct sluice_egress){
        .ifindex = 7, .name = "eth7", .known = true, .scatter_gather = true, .checksum = true, .segmentation = true};
    struct sluice_segment segment = lendable(body, BODY);
    if (sluice_plan_make(&segment, sink, &plan) < 0)
        return 2;
    for (unsigned i = 0; i < plan.count; i++) {
        const struct sluice_plan_entry *entry = &plan.entries[i];
        if (entry->route != SLUICE_ROUTE_MSG_ZEROCOPY)
            continue;
        if (lockable >= 8 << 20)
            return entry->verdict == SLUICE_YES ? 0 : 3;
        return entry->verdict == SLUICE_NOT_NOW && strstr(entry->reason, "RLIMIT_MEMLOCK") != NULL ? 0 : 4;
    }
    return 5;
}

TEST("a plan does not count on lending where the limit on locked memory is below one call's, and says so")
{
    static const rlim_t limits[] = {0, 1 << 20, 8 << 20};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        lockable = limits[i];
        CHECK_EQ(in_child(plan_with_little_memlock), 0);
    }
}

static int lend_with_little_optmem(void)
{
    int peer, room = 8 << 20, fds[2];
    struct ifreq request = {.ifr_name = "lo"};
    if (unshare(CLONE_NEWNET) < 0)
        return 77;
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (ioctl(control, SIOCGIFFLAGS, &request) < 0)
        return 1;
    request.ifr_flags |= IFF_UP;
    if (ioctl(control, SIOCSIFFLAGS, &request) < 0)
        return 1;
    close(control);
    int limit = open("/proc/sys/net/core/optmem_max", O_WRONLY | O_CLOEXEC);
    if (limit < 0 || write(limit, "3000", 4) != 4)
        return 77; /* not of a namespace before Linux 6.8, and then the machine's is left alone */
    close(limit);
    tcp_pair(fds);
    setsockopt(fds[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    peer = fds[1];
    struct sluice_end *sink = end_of(fds[0]);
    pattern_fill(body, 0, BODY);
    released = 0;
    struct sluice_segment segments[48];
    for (size_t i = 0; i < 48; i++) { /* each a call of its own: what may not be lent stands between */
        segments[i] = i % 2 == 0 ? lendable(body + i * 60000, 60000) : memory_segment(body + i * 60000, 60000);
        segments[i].release = i % 2 == 0 ? count_release : NULL;
    }
    struct sluice_transfer_options options = one_to_one(segments, &sink, SLUICE_ROUTE_MSG_ZEROCOPY);
    options.segment_count = 48;
    struct collector *collector = collector_start(peer, true);
    struct sluice_receipt receipt;
    size_t size;
    int result = sluice_transfer_run(&options, &receipt, NULL);
    sluice_end_close(sink);
    unsigned char *data = collector_finish(collector, &size);
    bool right = size == 48 * 60000;
    for (size_t i = 0; i < size && right; i++)
        right = data[i] == pattern_byte(i);
    free(data);
    if (result != 0 || !right || released != 24 || !sluice_receipt_is_final(&receipt))
        return 2;
    if (receipt.routes[SLUICE_ROUTE_MSG_ZEROCOPY].bytes == 0)
        return 3; /* lending went on when memory had come back */
    return receipt.fallback_count > 0 && receipt.fallbacks[0].error == ENOBUFS ? 0 : 4;
}

TEST("where the kernel has room for few loans, the rest is copied, and every byte arrives")
{
    int result = in_child(lend_with_little_optmem);
    if (result == 77)
        SKIP("needs a network namespace of its own with net.core.optmem_max in it; Linux 6.8, run as root");
    CHECK_EQ(result, 0);
}

/* ---- Datagrams -------------------------------------------------------------------------------------------------- */

/* Reads what has come; the sizes must be size, the last may be less. Returns how many datagrams. */
static unsigned read_datagrams(int fd, size_t size, size_t total_size)
{
    unsigned char data[65536];
    unsigned count = 0;
    size_t at = 0;
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    while (at < total_size && poll(&wait, 1, 1000) > 0) {
        ssize_t got = read(fd, data, sizeof data);
        if (got != (ssize_t)(total_size - at < size ? total_size - at : size))
            CHECK_FAIL("datagram %u has %zd bytes", count, got);
        for (ssize_t i = 0; i < got; i++)
            if (data[i] != pattern_byte(at + (size_t)i))
                CHECK_FAIL("byte %zu is wrong", at + (size_t)i);
        at += (size_t)got;
        count++;
    }
    return count;
}

TEST("a memory segment leaves as datagrams of the asked size, lent or copied, on UDP and on Unix sockets")
{
    for (int kind = 0; kind < 3; kind++) {
        int fds[2];
        struct sluice_receipt receipt;
        if (kind == 2)
            CHECK_EQ(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, fds), 0);
        else
            udp_pair(fds);
        size_t size = kind == 2 ? 5000 : 150001;
        struct sluice_end *sink = end_of(fds[0]);
        pattern_fill(body, 0, size);
        released = 0;
        struct sluice_segment segment = lendable(body, size);
        struct sluice_transfer_options options =
            one_to_one(&segment, &sink, kind == 1 ? SLUICE_ROUTE_MSG_ZEROCOPY : SLUICE_ROUTE_AUTO);
        options.datagram_size = 1400;
        CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
        CHECK_EQ(read_datagrams(fds[1], 1400, size), (size + 1399) / 1400);
        CHECK_EQ(released, 1);
        CHECK(sluice_receipt_is_final(&receipt));
        uint64_t calls = receipt.routes[SLUICE_ROUTE_COPY].calls + receipt.routes[SLUICE_ROUTE_MSG_ZEROCOPY].calls;
        CHECK_EQ(calls, kind == 2 ? 1 : 3); /* sendmmsg; 46 datagrams a call */
        if (kind == 1)
            CHECK_EQ(receipt.routes[SLUICE_ROUTE_MSG_ZEROCOPY].bytes, size);
        sluice_end_close(sink);
        close(fds[1]);
    }
}

static unsigned readings;

static ssize_t count_readings(int fd, struct msghdr *message, int flags)
{
    readings += (flags & MSG_ERRQUEUE) != 0;
    return recvmsg(fd, message, flags);
}

static void count_only(void *context, const void *data, size_t length)
{
    (void)context, (void)data, (void)length;
    released++;
}

TEST("on a loop many small loans come back by few readings of the queue, and none is left out")
{
    enum { COUNT = 200, SIZE = 4096 };
    int fds[2];
    struct sys before = sys;
    udp_pair(fds);
    CHECK_EQ(sluice_loop_new(NULL, &loop), 0);
    struct sluice_end *sink = end_of(fds[0]);
    struct sluice_segment segment = memory_segment(body, SIZE);
    segment.release = count_only;
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_MSG_ZEROCOPY);
    released = readings = 0;
    sys.recvmsg = count_readings;
    for (int i = 0; i < COUNT; i++) /* what the full buffer of the receiver drops comes back, too */
        CHECK_EQ(sluice_loop_transfer(loop, &options, on_done, NULL, NULL, NULL, NULL), 1);
    turn_for(20);
    sys = before;
    CHECK_EQ(released, COUNT);
    if (readings > COUNT / 10)
        CHECK_FAIL("%u readings for %d loans", readings, COUNT);
    sluice_loop_forget(loop, sink);
    sluice_end_close(sink);
    sluice_loop_free(loop);
    close(fds[1]);
}

static int hide_loopback(int fd, unsigned long request, void *argument)
{
    int result = ioctl(fd, request, argument);
    if (request == SIOCGIFFLAGS && result == 0)
        ((struct ifreq *)argument)->ifr_flags &= (short)~IFF_LOOPBACK;
    return result;
}

/* Also counts what was to be lent and went by copy. */
static uint64_t lent_of(struct sluice_end *sink, unsigned count, uint64_t *ret_set_aside)
{
    uint64_t lent = 0;
    struct sluice_segment segment = memory_segment(body, 32768);
    segment.release = count_only;
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_AUTO);
    for (unsigned i = 0; i < count; i++) {
        const struct sluice_receipt *receipt;
        if (sluice_loop_transfer(loop, &options, on_done, NULL, NULL, &receipt, NULL) != 1)
            return 0;
        lent += receipt->routes[SLUICE_ROUTE_MSG_ZEROCOPY].bytes;
        *ret_set_aside += receipt->fallback_count;
    }
    return lent;
}

static uint64_t lent_before, lent_after, set_aside;

static void *lend_until_copied(void *context)
{
    int fds[2];
    (void)context;
    udp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    if (sluice_loop_new(NULL, &loop) < 0)
        return NULL;
    lent_before = lent_of(sink, 8, &set_aside);
    turn_for(5); /* the notifications are read, and say that all was copied */
    lent_after = lent_of(sink, 8, &set_aside);
    turn_for(5);
    sluice_loop_forget(loop, sink);
    sluice_end_close(sink);
    sluice_loop_free(loop);
    close(fds[1]);
    return context;
}

TEST("a choice that is remembered ends at once when the kernel says that it copies what is lent")
{
    struct sys before = sys;
    pthread_t thread; /* of its own: egress devices are cached per thread */
    int said;
    void *ended;
    sys.ioctl = hide_loopback;
    CHECK_EQ(pthread_create(&thread, NULL, lend_until_copied, &said), 0);
    pthread_join(thread, &ended);
    sys = before;
    CHECK(ended == &said);
    CHECK(lent_before >= 6 * 32768); /* a sample may have gone by copy */
    CHECK_EQ(lent_after, 0);
    CHECK_EQ(set_aside, 0);
}

TEST("datagrams that the path cannot cut leave one by one, and the receipt says so")
{
    int fds[2];
    struct sluice_receipt receipt;
    udp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    int mark = 1;
    CHECK_EQ(setsockopt(fds[0], SOL_SOCKET, SO_NO_CHECK, &mark, sizeof mark), 0); /* then UDP_SEGMENT is EINVAL */
    pattern_fill(body, 0, 5000);
    struct sluice_segment segment = memory_segment(body, 5000);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_AUTO);
    options.datagram_size = 1000;
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    CHECK_EQ(read_datagrams(fds[1], 1000, 5000), 5);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY].calls, 1); /* by sendmmsg */
    CHECK_EQ(receipt.fallback_count, 1);
    CHECK_EQ(receipt.fallbacks[0].error, EINVAL);
    options.datagram_size = 65508;
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), -EINVAL);
    sluice_end_close(sink);
    close(fds[1]);
}

/* ---- Given away ---------------------------------------------------------------------------------------------------
 */

TEST("memory that is given away arrives by reference, and is unmapped though it has not been read")
{
    for (int to_pipe = 0; to_pipe < 2; to_pipe++) {
        int fds[2], before = open_descriptors();
        struct sluice_memory *memory;
        struct sluice_receipt receipt;
        size_t size = to_pipe ? 60000 : 300001;
        if (to_pipe) {
            int pipe[2];
            pipe_pair(pipe);
            fds[0] = pipe[1];
            fds[1] = pipe[0];
        } else {
            tcp_pair(fds);
        }
        struct sluice_end *sink = end_of(fds[0]);
        CHECK_EQ(sluice_memory_new(size, &memory), 0);
        unsigned char *data = sluice_memory_data(memory);
        pattern_fill(data, 0, size);
        struct sluice_segment segment = memory_segment(data, size);
        segment.release = sluice_memory_release;
        segment.release_context = memory;
        CHECK_EQ(verdict(&segment, sink, SLUICE_ROUTE_VMSPLICE), SLUICE_YES);
        struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_AUTO);
        CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
        unsigned char residence;
        CHECK(mincore(data, 4096, &residence) < 0 && errno == ENOMEM); /* unmapped */
        CHECK_EQ(receipt.routes[SLUICE_ROUTE_VMSPLICE].bytes, size);
        CHECK_EQ(receipt.by_reference, size);
        CHECK_EQ(receipt.aliased, 0);
        CHECK_EQ(receipt.routes[SLUICE_ROUTE_VMSPLICE].evidence, SLUICE_EVIDENCE_PROBED);
        sluice_end_close(sink);
        CHECK_EQ(read_all(fds[1]), size);
        close(fds[1]);
        CHECK(open_descriptors() - before <= 2); /* a pooled pipe */
    }
}

static ssize_t copying_vmsplice(int fd, const struct iovec *iov, size_t count, unsigned flags)
{
    (void)flags;
    return writev(fd, iov, (int)count);
}

TEST("a kernel whose vmsplice copies is found out, and not chosen; forced, its receipt says copied")
{
    int fds[2];
    struct sluice_memory *memory;
    struct sluice_receipt receipt;
    struct sys real = sys;
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    CHECK_EQ(sluice_memory_new(100000, &memory), 0);
    pattern_fill(sluice_memory_data(memory), 0, 100000);
    struct sluice_segment segment = memory_segment(sluice_memory_data(memory), 100000);
    segment.release = sluice_memory_release;
    segment.release_context = memory;
    sys.vmsplice = copying_vmsplice;
    given_forget();
    enum sluice_verdict now = verdict(&segment, sink, SLUICE_ROUTE_VMSPLICE);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_VMSPLICE);
    int result = sluice_transfer_run(&options, &receipt, NULL);
    sys = real;
    given_forget();
    CHECK_EQ(now, SLUICE_NOT_NOW);
    CHECK_EQ(result, 0);
    CHECK_EQ(receipt.copied, 100000);
    CHECK_EQ(receipt.copy_bytes, 100000);
    sluice_end_close(sink);
    CHECK_EQ(read_all(fds[1]), 100000);
    close(fds[1]);
}

CHECK_MAIN()
