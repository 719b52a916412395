/* SPDX-License-Identifier: MIT
 *
 * Packets: head, body and tail leave in as few segments as the data needs, and the last one does not wait. Counted by
 * the kernel (TCP_INFO, tcpi_data_segs_out). On loopback one carries tcpi_snd_mss bytes, about 32 KiB.
 */
#include "../check.h"
#include "sys.h"
#include "world.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int fds[2];
static struct sluice_end *sink;

static void connect_pair(void)
{
    tcp_pair(fds);
    sink = end_of(fds[0]);
}

static void disconnect(void)
{
    sluice_end_close(sink);
    close(fds[1]);
}

static unsigned segments_out(void)
{
    struct tcp_info info = {0};
    socklen_t size = sizeof info;
    CHECK_EQ(getsockopt(fds[0], IPPROTO_TCP, TCP_INFO, &info, &size), 0);
    return info.tcpi_data_segs_out;
}

static uint64_t microseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static struct sluice_receipt send_all(struct sluice_segment *segments, size_t count, enum sluice_route route,
                                      unsigned flags)
{
    struct sluice_receipt receipt;
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = segments,
                                              .segment_count = count,
                                              .sinks = &sink,
                                              .sink_count = 1,
                                              .route = route,
                                              .flags = flags};
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    return receipt;
}

/* Takes size bytes from the peer; returns how many microseconds that took. */
static uint64_t take(size_t size)
{
    static char bytes[1 << 20];
    uint64_t started = microseconds();
    while (size > 0) {
        struct pollfd wait = {.fd = fds[1], .events = POLLIN};
        CHECK(poll(&wait, 1, 2000) == 1);
        ssize_t got = recv(fds[1], bytes, size < sizeof bytes ? size : sizeof bytes, 0);
        CHECK(got > 0);
        size -= (size_t)got;
    }
    return microseconds() - started;
}

static const char head[200] = "HTTP/1.1 200 OK";

TEST("a head and a body of 1 KB leave in one packet, on every route")
{
    for (int route = 0; route < SLUICE_ROUTE_COUNT; route++) {
        if (!goes_to_tcp((enum sluice_route)route))
            continue;
        connect_pair();
        struct sluice_segment segments[] = {memory_segment(head, sizeof head),
                                            file_segment(end_of(pattern_file(NULL, 1024)), 0, 1024)};
        send_all(segments, 2, (enum sluice_route)route, 0);
        CHECK(take(sizeof head + 1024) < 100000);
        if (segments_out() != 1)
            CHECK_FAIL("%s: %u packets", sluice_route_name((enum sluice_route)route), segments_out());
        sluice_end_close(segments[1].end);
        disconnect();
    }
}

TEST("a head and a small file without a declared length leave in one packet")
{
    connect_pair();
    struct sluice_segment segments[] = {memory_segment(head, sizeof head),
                                        file_segment(end_of(pattern_file(NULL, 1024)), 0, SLUICE_UNTIL_END)};
    send_all(segments, 2, SLUICE_ROUTE_AUTO, 0);
    take(sizeof head + 1024);
    CHECK_EQ(segments_out(), 1);
    sluice_end_close(segments[1].end);
    disconnect();
}

TEST("head, 20 KB by sendfile, and tail leave in one packet, and without delay")
{
    for (int route = 0; route < SLUICE_ROUTE_COUNT; route++) {
        if (!goes_to_tcp((enum sluice_route)route))
            continue;
        connect_pair();
        struct sluice_segment segments[] = {memory_segment(head, sizeof head),
                                            file_segment(end_of(pattern_file(NULL, 1 << 20)), 4000, 20000),
                                            memory_segment("TAIL", 4)};
        struct sluice_receipt receipt = send_all(segments, 3, (enum sluice_route)route, 0);
        if (route == SLUICE_ROUTE_AUTO)
            CHECK_EQ(receipt.routes[SLUICE_ROUTE_SENDFILE].bytes, 20000);
        CHECK(take(sizeof head + 20004) < 100000);
        if (segments_out() != 1)
            CHECK_FAIL("%s: %u packets", sluice_route_name((enum sluice_route)route), segments_out());
        sluice_end_close(segments[1].end);
        disconnect();
    }
}

TEST("head, 40 KB by sendfile, and tail take as many packets as their bytes alone need")
{
    connect_pair();
    struct tcp_info info = {0};
    socklen_t size = sizeof info;
    CHECK_EQ(getsockopt(fds[0], IPPROTO_TCP, TCP_INFO, &info, &size), 0);
    unsigned needed = (unsigned)((sizeof head + 40004 + info.tcpi_snd_mss - 1) / info.tcpi_snd_mss);
    struct sluice_segment segments[] = {memory_segment(head, sizeof head),
                                        file_segment(end_of(pattern_file(NULL, 1 << 20)), 0, 40000),
                                        memory_segment("TAIL", 4)};
    send_all(segments, 3, SLUICE_ROUTE_AUTO, 0);
    CHECK(take(sizeof head + 40004) < 100000);
    CHECK_EQ(segments_out(), needed);
    sluice_end_close(segments[1].end);
    disconnect();
}

static int corks, uncorks;

static int counting_setsockopt(int fd, int level, int name, const void *value, socklen_t size)
{
    if (level == IPPROTO_TCP && name == TCP_CORK)
        ++*(*(const int *)value ? &corks : &uncorks);
    return setsockopt(fd, level, name, value, size);
}

TEST("a large body leaves in full segments, and its last one at once")
{
    struct sys before = sys;
    corks = uncorks = 0;
    connect_pair();
    size_t size = (2u << 20) + 777;
    struct collector *collector = collector_start(fds[1], false);
    struct sluice_segment segments[] = {memory_segment(head, sizeof head),
                                        file_segment(end_of(pattern_file(NULL, size)), 0, size)};
    uint64_t started = microseconds();
    sys.setsockopt = counting_setsockopt;
    send_all(segments, 2, SLUICE_ROUTE_AUTO, 0);
    sys = before;
    CHECK_EQ(corks, 1);
    CHECK_EQ(uncorks, 1);
    struct tcp_info info = {0};
    socklen_t length = sizeof info;
    do { /* until all is acknowledged */
        usleep(500);
        CHECK_EQ(getsockopt(fds[0], IPPROTO_TCP, TCP_INFO, &info, &length), 0);
    } while (info.tcpi_unacked + info.tcpi_notsent_bytes > 0 && microseconds() - started < 1000000);
    CHECK(microseconds() - started < 150000);
    unsigned needed = (unsigned)((size + sizeof head) / info.tcpi_snd_mss + 1);
    /* Not exactly: a full socket buffer ends in a partial segment, and the reader's pace decides how often it is full.
     */
    if (info.tcpi_data_segs_out - info.tcpi_total_retrans > 2 * needed)
        CHECK_FAIL("%u packets where %u would do", info.tcpi_data_segs_out, needed);
    int corked = -1;
    length = sizeof corked;
    CHECK_EQ(getsockopt(fds[0], IPPROTO_TCP, TCP_CORK, &corked, &length), 0);
    CHECK_EQ(corked, 0);
    sluice_end_close(segments[1].end);
    sluice_end_close(sink);
    size_t arrived;
    free(collector_finish(collector, &arrived));
    CHECK_EQ(arrived, size + sizeof head);
    close(fds[1]);
}

/* How much of a 1 MiB file the first step sends into a socket with this congestion control, which may be missing (0).
 */
static uint64_t sent_by_first_step(const char *congestion)
{
    connect_pair();
    if (setsockopt(fds[0], IPPROTO_TCP, TCP_CONGESTION, congestion, (socklen_t)strlen(congestion)) < 0) {
        disconnect();
        return 0;
    }
    CHECK_EQ(setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &(int){1 << 20}, sizeof(int)), 0);
    struct sluice_end *file = end_of(pattern_file(NULL, 1 << 20));
    struct sluice_segment body = file_segment(file, 0, 1 << 20);
    struct sluice_transfer_options options = {
        .size = sizeof options, .segments = &body, .segment_count = 1, .sinks = &sink, .sink_count = 1};
    struct sluice_transfer *transfer;
    struct sluice_waits waits;
    CHECK_EQ(sluice_transfer_new(&options, &transfer, NULL), 0);
    CHECK(sluice_transfer_step(transfer, &waits) >= 0);
    uint64_t sent = sluice_transfer_receipt(transfer, 0)->sent;
    sluice_transfer_free(transfer);
    sluice_end_close(file);
    disconnect();
    return sent;
}

TEST("a large body leaves by short turns into a socket that paces, and by whole ones into others")
{
    uint64_t paced = sent_by_first_step("bbr"), unpaced = sent_by_first_step("cubic");
    if (paced == 0)
        SKIP("this kernel has no bbr; modprobe tcp_bbr would make it run");
    CHECK(paced > 200 << 10 && paced < 256 << 10);
    CHECK(unpaced > 256 << 10);
}

TEST("no route and no size leaves the last packet waiting")
{
    static const size_t sizes[] = {1, 1000, 70000, 300000};
    for (int route = 0; route < SLUICE_ROUTE_COUNT; route++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes && goes_to_tcp((enum sluice_route)route); i++)
            for (int tail = 0; tail < 2; tail++) {
                connect_pair();
                struct sluice_segment segments[] = {memory_segment(head, sizeof head),
                                                    file_segment(end_of(pattern_file(NULL, sizes[i])), 0, sizes[i]),
                                                    memory_segment("TAIL", 4)};
                send_all(segments, 2 + (size_t)tail, (enum sluice_route)route, 0);
                if (take(sizeof head + sizes[i] + (tail ? 4 : 0)) > 100000)
                    CHECK_FAIL("%s, %zu bytes: the end came late", sluice_route_name((enum sluice_route)route),
                               sizes[i]);
                sluice_end_close(segments[1].end);
                disconnect();
            }
}

TEST("with more to follow the last packet waits for the next transfer and leaves with it")
{
    for (int file = 0; file < 2; file++) {
        connect_pair();
        struct sluice_end *source = end_of(pattern_file(NULL, 1 << 20));
        struct sluice_segment first[] = {memory_segment(head, sizeof head), file_segment(source, 0, 5000)};
        struct sluice_segment second[] = {memory_segment("NEXT", 4), file_segment(source, 5000, 5000)};
        send_all(first, file ? 2 : 1, SLUICE_ROUTE_AUTO, SLUICE_TRANSFER_MORE);
        CHECK_EQ(segments_out(), 0);
        send_all(second, file ? 2 : 1, SLUICE_ROUTE_AUTO, 0);
        CHECK(take(sizeof head + 4 + (file ? 10000 : 0)) < 100000);
        CHECK_EQ(segments_out(), 1);
        sluice_end_close(source);
        disconnect();
    }
}

TEST("twenty small segments leave together")
{
    connect_pair();
    struct sluice_segment segments[20];
    for (int i = 0; i < 20; i++)
        segments[i] = memory_segment(i % 3 == 2 ? NULL : head, i % 3 == 2 ? 0 : 10); /* empty ones among them */
    send_all(segments, 20, SLUICE_ROUTE_AUTO, 0);
    CHECK(take(140) < 100000);
    CHECK_EQ(segments_out(), 1);
    disconnect();
}

int main(void)
{
    alarm(60);
    return check_run_all();
}
