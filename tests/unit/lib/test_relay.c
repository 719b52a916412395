/* SPDX-License-Identifier: MIT
 *
 * What a relay between connections stands on: connecting, borrowed memory, streams that fall quiet, and resets. On
 * epoll and, as test-lib-relay io_uring, on io_uring: the same tests.
 */
#include "../check.h"
#include "checked.h"
#include "simulated.h"
#include "sys.h"
#include "world.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static struct sluice_loop *loop;
static struct sluice_loop_options loop_options = {.size = sizeof loop_options, .kind = SLUICE_LOOP_EPOLL};

static void begin(void)
{
    CHECK_EQ(sluice_loop_new(&loop_options, &loop), 0);
}

static void end(void)
{
    sluice_loop_free(loop);
    loop = NULL;
}

/* Tests that wait for something stop the loop themselves, and fail if this ran out. */
static struct sluice_timer limit;
static bool ran_out;

static void out_of_time(void *context)
{
    (void)context;
    ran_out = true;
    sluice_loop_stop(loop);
}

static void run_for(unsigned time)
{
    ran_out = false;
    sluice_timer_start(loop, &limit, time, out_of_time, NULL);
    CHECK_EQ(sluice_loop_run(loop), 0);
    sluice_timer_stop(loop, &limit);
}

static void nap(void *context)
{
    (void)context;
    usleep(3000);
}

static void stop(void *context)
{
    (void)context;
    sluice_loop_stop(loop);
}

/* As long as it takes the loop to notice what has happened. */
static void run_briefly(void)
{
    CHECK_EQ(sluice_loop_offload(loop, nap, stop, NULL), 0);
    CHECK_EQ(sluice_loop_run(loop), 0);
}

static void run_until_stopped(void)
{
    run_for(10000);
    CHECK(!ran_out);
}

static void reset(int fd)
{
    struct linger linger = {.l_onoff = 1};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(fd);
}

/* ---- Connecting ----------------------------------------------------------------------------------------------- */

struct call {
    struct sluice_connect *connect;
    int result, calls;
};

static void connected(void *context, int result)
{
    struct call *call = context;
    call->result = result;
    call->calls++;
    sluice_loop_stop(loop);
}

static int stream_socket(int family)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    CHECK(fd >= 0);
    return fd;
}

static int listen_somewhere(struct sockaddr_in *address, int backlog)
{
    socklen_t size = sizeof *address;
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = stream_socket(AF_INET);
    CHECK_EQ(bind(fd, (struct sockaddr *)address, size), 0);
    CHECK_EQ(listen(fd, backlog), 0);
    CHECK_EQ(getsockname(fd, (struct sockaddr *)address, &size), 0);
    return fd;
}

static int begin_connect(struct call *call, int fd, const struct sockaddr_in *address)
{
    *call = (struct call){.result = 1};
    return sluice_loop_connect(loop, fd, (const struct sockaddr *)address, sizeof *address, connected, call,
                               &call->connect);
}

/* A peer that takes until the loop has slept to answer: a socket of this machine is connected within the first call,
 * and the second one is made to say that it is still connecting. */
static int slow_fd;

static int connect_slowly(int fd, const struct sockaddr *address, socklen_t size)
{
    if (fd != slow_fd) {
        slow_fd = fd;
        return connect(fd, address, size);
    }
    errno = EALREADY;
    return -1;
}

static void peers_are_slow(bool slow)
{
    slow_fd = -1;
    sys.connect = slow ? connect_slowly : connect;
}

/* Make the fd an end, and see that it carries bytes both ways on the loop that connected it. */
static ssize_t heard;

static void hear(void *context, const char *data, ssize_t length)
{
    (void)context, (void)data;
    heard = length;
    sluice_loop_stop(loop);
}

static void use_connection(int fd, int peer)
{
    struct sluice_end *connection = end_of(fd);
    CHECK_EQ(sluice_loop_receive(loop, connection, 0, hear, NULL), 0);
    CHECK_EQ(send(peer, "hello", 5, 0), 5);
    run_until_stopped();
    CHECK_EQ(heard, 5);
    struct sluice_segment segment = memory_segment("answer", 6);
    struct sluice_transfer_options options = one_to_one(&segment, &connection, SLUICE_ROUTE_AUTO);
    CHECK_EQ(sluice_loop_transfer(loop, &options, NULL, NULL, NULL, NULL, NULL), 1);
    char answer[8];
    CHECK_EQ(recv(peer, answer, sizeof answer, 0), 6);
    sluice_loop_forget(loop, connection);
    sluice_end_close(connection);
}

TEST("a socket is connected at once or later, is told of once, and is an end of the same loop then")
{
    for (int slow = 0; slow < 2; slow++) {
        struct sockaddr_in address;
        struct call call;
        int listener = listen_somewhere(&address, 4), fd = stream_socket(AF_INET);
        begin();
        peers_are_slow(slow);
        int result = begin_connect(&call, fd, &address);
        peers_are_slow(false);
        CHECK_EQ(result, slow ? 0 : 1);
        if (slow) {
            CHECK_EQ(call.calls, 0); /* not from within the function */
            run_until_stopped();
            CHECK_EQ(call.result, 0);
        }
        int peer = accept(listener, NULL, NULL);
        use_connection(fd, peer);
        CHECK_EQ(call.calls, slow);
        close(peer);
        close(listener);
        end();
    }
}

TEST("a connection that is refused says so, at once or later")
{
    for (int slow = 0; slow < 2; slow++) {
        struct sockaddr_in address;
        struct call call;
        int listener = listen_somewhere(&address, 4), fd = stream_socket(AF_INET);
        close(listener);
        begin();
        peers_are_slow(slow);
        int result = begin_connect(&call, fd, &address);
        peers_are_slow(false);
        CHECK_EQ(result, slow ? 0 : -ECONNREFUSED);
        if (slow)
            run_until_stopped();
        CHECK_EQ(call.calls, slow);
        CHECK_EQ(call.result, slow ? -ECONNREFUSED : 1);
        close(fd);
        end();
    }
}

/* Fills the queue of a listener that takes one connection, so that the next one's packets are dropped. */
static int fill_queue(const struct sockaddr_in *address)
{
    int fd = stream_socket(AF_INET);
    connect(fd, (const struct sockaddr *)address, sizeof *address);
    return fd;
}

TEST("a peer that answers late is waited for: one that takes the connection, and one that refuses it")
{
    struct sockaddr_in full, closing;
    struct call late, refused;
    int listener = listen_somewhere(&full, 0), other = listen_somewhere(&closing, 0);
    int first = fill_queue(&full), second = fill_queue(&closing);
    int fd = stream_socket(AF_INET), refused_fd = stream_socket(AF_INET);
    begin();
    CHECK_EQ(begin_connect(&late, fd, &full), 0);
    CHECK_EQ(begin_connect(&refused, refused_fd, &closing), 0);
    run_briefly();
    CHECK_EQ(late.calls + refused.calls, 0);
    close(accept(listener, NULL, NULL)); /* now there is room, for the packet that is sent again after a second */
    close(other);
    while (late.calls + refused.calls < 2)
        run_until_stopped();
    CHECK_EQ(late.result, 0);
    CHECK_EQ(refused.result, -ECONNREFUSED);
    CHECK_EQ(late.calls, 1);
    CHECK_EQ(refused.calls, 1);
    int peer = accept(listener, NULL, NULL);
    use_connection(fd, peer);
    const int fds[] = {peer, listener, first, second, refused_fd};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        close(fds[i]);
    end();
}

TEST("a connection that was given up is not told of, and its socket can be closed")
{
    struct sockaddr_in full, quick;
    struct call silent, ready;
    int before = open_descriptors();
    int listener = listen_somewhere(&full, 0), other = listen_somewhere(&quick, 4), first = fill_queue(&full);
    int fd = stream_socket(AF_INET), ready_fd = stream_socket(AF_INET);
    begin();
    CHECK_EQ(begin_connect(&silent, fd, &full), 0);
    peers_are_slow(true);
    CHECK_EQ(begin_connect(&ready, ready_fd, &quick), 0); /* what the loop will report is there already */
    peers_are_slow(false);
    sluice_connect_cancel(silent.connect);
    sluice_connect_cancel(ready.connect);
    sluice_connect_cancel(NULL);
    close(fd);
    run_briefly();
    CHECK_EQ(silent.calls + ready.calls, 0);
    close(ready_fd);
    CHECK_EQ(begin_connect(&silent, fd = stream_socket(AF_INET), &full), 0); /* and one that is left to the very end */
    sluice_connect_cancel(silent.connect);
    end();
    close(fd);
    close(first);
    close(listener);
    close(other);
    CHECK_EQ(open_descriptors(), before);
}

TEST("a Unix socket is connected at once, or its listener's queue is full, or nobody listens")
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct call call = {.result = 1};
    int listener = stream_socket(AF_UNIX), fds[3];
    socklen_t size = sizeof address;
    CHECK_EQ(bind(listener, (struct sockaddr *)&address, sizeof address.sun_family), 0); /* a name of the kernel's */
    CHECK_EQ(getsockname(listener, (struct sockaddr *)&address, &size), 0);
    begin();
    fds[0] = stream_socket(AF_UNIX);
    CHECK_EQ(sluice_loop_connect(loop, fds[0], (struct sockaddr *)&address, size, connected, &call, &call.connect),
             -ECONNREFUSED);
    CHECK_EQ(listen(listener, 0), 0);
    fds[1] = stream_socket(AF_UNIX);
    CHECK_EQ(sluice_loop_connect(loop, fds[1], (struct sockaddr *)&address, size, connected, &call, &call.connect), 1);
    fds[2] = stream_socket(AF_UNIX);
    CHECK_EQ(sluice_loop_connect(loop, fds[2], (struct sockaddr *)&address, size, connected, &call, &call.connect),
             -EAGAIN);
    int peer = accept(listener, NULL, NULL);
    use_connection(fds[1], peer);
    CHECK_EQ(call.calls, 0);
    close(peer);
    close(fds[0]);
    close(fds[2]);
    close(listener);
    end();
}

/* ---- Borrowed memory ------------------------------------------------------------------------------------------ */

struct job {
    struct sluice_transfer *transfer;
    int result, ended;
    struct sluice_receipt receipt;
    struct sluice_error error;
};

static void job_done(void *context, struct sluice_transfer *transfer, int result)
{
    struct job *job = context;
    job->transfer = NULL;
    job->result = result;
    job->ended++;
    job->receipt = *sluice_transfer_receipt(transfer, 0);
    job->error = *sluice_transfer_error(transfer);
    sluice_loop_stop(loop);
}

static void job_start(struct job *job, const struct sluice_transfer_options *options)
{
    const struct sluice_receipt *receipt;
    *job = (struct job){.result = 1};
    int result = sluice_loop_transfer(loop, options, job_done, job, &job->transfer, &receipt, &job->error);
    if (result == 0)
        return;
    job->transfer = NULL;
    job->result = result < 0 ? result : 0;
    job->ended = 1;
    job->receipt = *receipt;
}

static void job_finish(struct job *job)
{
    while (job->ended == 0)
        run_until_stopped();
}

static struct sluice_segment borrowed_segment(const void *data, size_t size)
{
    struct sluice_segment segment = memory_segment(data, size);
    segment.flags = SLUICE_SEGMENT_BORROWED;
    return segment;
}

static unsigned char bytes[4 << 20];

static void count_release(void *context, const void *data, size_t length)
{
    (void)data, (void)length;
    ++*(int *)context;
}

TEST("borrowed memory that leaves at once is not copied")
{
    struct job job;
    int fds[2];
    char arrived[2000];
    begin();
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    pattern_fill(bytes, 0, 1000);
    struct sluice_segment segment = borrowed_segment(bytes, 1000);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_AUTO);
    job_start(&job, &options);
    CHECK_EQ(job.result, 0);
    CHECK_EQ(job.receipt.copied, 1000);
    CHECK_EQ(job.receipt.copy_bytes, 1000);
    CHECK_EQ(job.receipt.system_calls, 1);
    CHECK_EQ(recv(fds[1], arrived, sizeof arrived, 0), 1000);
    sluice_loop_forget(loop, sink);
    sluice_end_close(sink);
    close(fds[1]);
    end();
}

TEST("of borrowed memory what has not left when the function returns is copied, counted, and sent from there")
{
    for (int kind = 0; kind < 3; kind++) {
        struct job job;
        int fds[2];
        size_t size;
        begin();
        if (kind == 2) {
            int pipe[2];
            pipe_pair(pipe);
            fds[0] = pipe[1];
            fds[1] = pipe[0];
        } else {
            (kind == 0 ? tcp_pair : unix_pair)(fds);
        }
        struct sluice_end *sink = end_of(fds[0]);
        pattern_fill(bytes, 0, sizeof bytes);
        struct sluice_segment segment = borrowed_segment(bytes, sizeof bytes);
        struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_AUTO);
        job_start(&job, &options);
        CHECK_EQ(job.ended, 0);
        uint64_t sent = sluice_transfer_receipt(job.transfer, 0)->sent;
        memset(bytes, 0xff, sizeof bytes);
        CHECK(sent > 0 && sent < sizeof bytes);
        struct collector *collector = collector_start(fds[1], false);
        job_finish(&job);
        CHECK_EQ(job.result, 0);
        CHECK_EQ(job.receipt.bytes, sizeof bytes);
        CHECK_EQ(job.receipt.copy_bytes, 2 * sizeof bytes - sent);
        sluice_loop_forget(loop, sink);
        sluice_end_close(sink);
        unsigned char *data = collector_finish(collector, &size);
        CHECK_EQ(size, sizeof bytes);
        CHECK_EQ(pattern_wrong(data, 0, size), size);
        free(data);
        close(fds[1]);
        end();
    }
}

static uint64_t seed;

static uint32_t draw(uint32_t below)
{
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(seed >> 33) % below;
}

static void draw_seed(void)
{
    const char *given = getenv("SEED");
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    seed = given != NULL ? strtoull(given, NULL, 10) : (uint64_t)now.tv_sec * 1000000007u + (uint64_t)now.tv_nsec;
    printf("# SEED=%llu\n", (unsigned long long)seed);
}

/* Step by step, with poll, until it is done. */
static int step_through(const struct sluice_transfer_options *options, void (*after_first)(void))
{
    struct sluice_transfer *transfer;
    struct sluice_waits waits;
    int result = sluice_transfer_new(options, &transfer, NULL);
    while (result >= 0 && (result = sluice_transfer_step(transfer, &waits)) > 0) {
        if (after_first != NULL)
            after_first();
        if (result == SLUICE_STEP_YIELD)
            continue;
        struct pollfd fds[SLUICE_WAITS_MAX];
        for (unsigned i = 0; i < waits.count; i++) {
            bool readable = waits.wait[i].kind == SLUICE_WAIT_READABLE;
            fds[i] = (struct pollfd){.fd = waits.wait[i].fd, .events = readable ? POLLIN : POLLOUT};
        }
        poll(fds, waits.count, waits.timeout);
    }
    sluice_transfer_free(transfer);
    return result;
}

#define PIECES 5
static size_t piece_at[PIECES + 1];
static bool piece_borrowed[PIECES];

static void overwrite_borrowed(void)
{
    for (int i = 0; i < PIECES; i++)
        if (piece_borrowed[i])
            memset(bytes + piece_at[i], 0xee, piece_at[i + 1] - piece_at[i]);
}

TEST("borrowed and other memory in any order arrives unharmed at any number of sinks, on a loop and step by step")
{
    draw_seed();
    for (int round = 0; round < 40; round++) {
        struct sluice_segment segments[PIECES];
        struct sluice_end *sinks[3];
        struct collector *collectors[3];
        int peers[3], released = 0, lent = 0, small = 4096, large = 200000;
        size_t sink_count = 1 + draw(3);
        for (int i = 0; i < PIECES; i++) {
            size_t length = draw(4) == 0 ? 0 : draw(2) == 0 ? draw(2000) : draw(700000);
            piece_at[i + 1] = piece_at[i] + length;
            piece_borrowed[i] = draw(3) != 0;
            segments[i] = memory_segment(bytes + piece_at[i], length);
            if (piece_borrowed[i]) {
                segments[i].flags = SLUICE_SEGMENT_BORROWED;
            } else if (draw(2) == 0) {
                segments[i].release = count_release;
                segments[i].release_context = &released;
                lent++;
            }
        }
        size_t total = piece_at[PIECES];
        pattern_fill(bytes, 0, total);
        begin();
        for (size_t i = 0; i < sink_count; i++) {
            int fds[2];
            bool tcp = draw(2) == 0; /* which waits for delayed acknowledgements where its buffer is small */
            (tcp ? tcp_pair : unix_pair)(fds);
            setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, tcp ? &large : &small, sizeof small);
            sinks[i] = end_of(fds[0]);
            peers[i] = fds[1];
        }
        struct sluice_transfer_options options = {.size = sizeof options,
                                                  .segments = segments,
                                                  .segment_count = PIECES,
                                                  .sinks = sinks,
                                                  .sink_count = sink_count,
                                                  .turn = 1 + draw(300000)};
        struct job job = {.result = 1};
        bool on_loop = draw(2) == 0;
        if (on_loop) {
            job_start(&job, &options);
            overwrite_borrowed();
        }
        for (size_t i = 0; i < sink_count; i++)
            collectors[i] = collector_start(peers[i], total < 500000 && draw(4) == 0);
        if (on_loop)
            job_finish(&job);
        else
            job.result = step_through(&options, overwrite_borrowed);
        CHECK_EQ(job.result, 0);
        for (size_t i = 0; i < sink_count; i++) {
            size_t size;
            sluice_loop_forget(loop, sinks[i]);
            sluice_end_close(sinks[i]);
            unsigned char *data = collector_finish(collectors[i], &size);
            CHECK_EQ(size, total);
            CHECK_EQ(pattern_wrong(data, 0, size), size);
            free(data);
            close(peers[i]);
        }
        end();
        CHECK_EQ(released, lent);
    }
}

TEST("borrowed memory is never lent, and a callback for its release is refused")
{
    enum { BORROWED = 64 << 10, LENT = 256 << 10 };
    struct sluice_error error;
    struct job job;
    int fds[2], released = 0;
    size_t size;
    begin();
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    pattern_fill(bytes, 0, BORROWED + LENT);
    struct sluice_segment segments[] = {borrowed_segment(bytes, BORROWED), memory_segment(bytes + BORROWED, LENT)};
    segments[1].release = count_release;
    segments[1].release_context = &released;
    struct sluice_transfer_options options = one_to_one(segments, &sink, SLUICE_ROUTE_MSG_ZEROCOPY);
    options.segment_count = 2;
    struct collector *collector = collector_start(fds[1], false);
    job_start(&job, &options);
    job_finish(&job);
    CHECK_EQ(job.result, 0);
    while (released == 0)
        run_briefly();
    CHECK_EQ(job.receipt.routes[SLUICE_ROUTE_COPY].bytes, BORROWED);
    CHECK_EQ(job.receipt.routes[SLUICE_ROUTE_MSG_ZEROCOPY].bytes, LENT);
    segments[1].flags = SLUICE_SEGMENT_BORROWED;
    CHECK_EQ(sluice_loop_transfer(loop, &options, job_done, &job, NULL, NULL, &error), -EINVAL);
    CHECK(strstr(error.reason, "release") != NULL);
    sluice_loop_forget(loop, sink);
    sluice_end_close(sink);
    free(collector_finish(collector, &size));
    CHECK_EQ(size, BORROWED + LENT);
    end();
    CHECK_EQ(released, 2);
    close(fds[1]);
}

TEST("borrowed memory goes into a file")
{
    struct job job;
    static unsigned char written[1 << 20];
    begin();
    int fd = pattern_file(NULL, 0);
    struct sluice_end *sink = end_of(fd);
    pattern_fill(bytes, 0, sizeof written);
    struct sluice_segment segment = borrowed_segment(bytes, sizeof written);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_AUTO);
    options.turn = 100000; /* not all in one step */
    job_start(&job, &options);
    memset(bytes, 0xff, sizeof written);
    job_finish(&job);
    CHECK_EQ(job.result, 0);
    CHECK_EQ(pread(fd, written, sizeof written, 0), sizeof written);
    CHECK_EQ(pattern_wrong(written, 0, sizeof written), sizeof written);
    sluice_loop_forget(loop, sink);
    sluice_end_close(sink);
    end();
}

/* ---- Streams that fall quiet ---------------------------------------------------------------------------------- */

static const enum sluice_route ways[] = {SLUICE_ROUTE_AUTO, SLUICE_ROUTE_COPY};
#define WAYS (sizeof ways / sizeof *ways)

/* What stands between two connections, each with the peer that is the test's. */
struct between {
    struct sluice_end *source, *sink;
    int feed, drain;
    size_t heard; /* by the receiver */
    ssize_t told; /* to it at last; 1: nothing yet */
    bool wrong;
};

static void listen_between(void *context, const char *data, ssize_t length)
{
    struct between *between = context;
    if (length > 0) {
        between->wrong |= pattern_wrong((const unsigned char *)data, between->heard, (size_t)length) != (size_t)length;
        between->heard += (size_t)length;
    } else {
        between->told = length;
    }
    sluice_loop_stop(loop);
}

static void open_between(struct between *between, void (*source_pair)(int[2]), void (*sink_pair)(int[2]))
{
    int from[2], to[2];
    source_pair(from);
    sink_pair(to);
    *between = (struct between){.feed = from[0], .drain = to[1], .told = 1};
    between->source = end_of(from[1]);
    between->sink = end_of(to[0]);
    CHECK_EQ(sluice_loop_receive(loop, between->source, 8192, listen_between, between), 0);
    sluice_loop_receive_pause(loop, between->source);
}

static void close_between(struct between *between)
{
    sluice_loop_forget(loop, between->source);
    sluice_loop_forget(loop, between->sink);
    sluice_end_close(between->source);
    sluice_end_close(between->sink);
    if (between->feed >= 0)
        close(between->feed);
    close(between->drain);
}

static void feed(const struct between *between, size_t from, size_t size)
{
    pattern_fill(bytes, from, size);
    CHECK_EQ(send(between->feed, bytes, size, 0), size);
}

/* What has arrived at the other side: so many bytes of the pattern from there on, and no more. */
static void check_arrived(const struct between *between, size_t from, size_t size)
{
    static unsigned char arrived[1 << 20];
    size_t at = 0;
    while (at < size) {
        struct pollfd readable = {.fd = between->drain, .events = POLLIN};
        CHECK_EQ(poll(&readable, 1, 5000), 1);
        ssize_t got = recv(between->drain, arrived + at, sizeof arrived - at, MSG_DONTWAIT);
        CHECK(got > 0);
        at += (size_t)got;
    }
    CHECK_EQ(at, size);
    CHECK_EQ(pattern_wrong(arrived, from, size), size);
    CHECK_EQ(recv(between->drain, arrived, 1, MSG_DONTWAIT), -1);
}

static struct sluice_transfer_options quiet_options(struct between *between, struct sluice_segment *segment,
                                                    enum sluice_route route, uint64_t below)
{
    *segment = stream_segment(between->source, SLUICE_UNTIL_END);
    struct sluice_transfer_options options = one_to_one(segment, &between->sink, route);
    options.quiet_below = below;
    return options;
}

static void (*const stream_pairs[])(int[2]) = {tcp_pair, unix_pair};

TEST("a transfer ends when its stream has nothing and brought little since it last had nothing, and not before")
{
    for (unsigned kind = 0; kind < 2 * WAYS; kind++) {
        struct between between;
        struct sluice_segment segment;
        struct job job;
        begin();
        open_between(&between, stream_pairs[kind % 2], tcp_pair);
        struct sluice_transfer_options options = quiet_options(&between, &segment, ways[kind / 2], 100);
        job_start(&job, &options); /* nothing is there */
        CHECK_EQ(job.ended, 1);
        CHECK_EQ(job.result, 0);
        CHECK_EQ(job.receipt.bytes, 0);
        feed(&between, 0, 99); /* a little */
        job_start(&job, &options);
        CHECK_EQ(job.ended, 1);
        CHECK_EQ(job.receipt.bytes, 99);
        check_arrived(&between, 0, 99);
        feed(&between, 99, 100); /* enough, then again, then not */
        job_start(&job, &options);
        CHECK_EQ(job.ended, 0);
        check_arrived(&between, 99, 100);
        feed(&between, 199, 1000);
        run_briefly();
        CHECK_EQ(job.ended, 0);
        check_arrived(&between, 199, 1000);
        feed(&between, 1199, 99);
        job_finish(&job);
        CHECK_EQ(job.result, 0);
        CHECK_EQ(job.receipt.bytes, 1199);
        check_arrived(&between, 1199, 99);
        feed(&between, 1298, 5000); /* the rest is the receiver's; a paused one has not looked */
        run_briefly();
        CHECK_EQ(between.heard, 0);
        between.heard = 1298;
        sluice_loop_receive_resume(loop, between.source);
        while (between.heard < 6298)
            run_until_stopped();
        CHECK(!between.wrong);
        CHECK_EQ(between.heard, 6298);
        CHECK_EQ(between.told, 1);
        close_between(&between);
        end();
    }
}

TEST("a stream's last bytes are delivered to a slow sink before a quiet transfer ends")
{
    for (unsigned way = 0; way < WAYS; way++) {
        enum { SIZE = 600000 };
        struct between between;
        struct sluice_segment segment;
        struct job job;
        int small = 4096;
        size_t size;
        begin();
        open_between(&between, tcp_pair, unix_pair);
        setsockopt(sluice_end_fd(between.sink), SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
        feed(&between, 0, SIZE);
        struct sluice_transfer_options options = quiet_options(&between, &segment, ways[way], SIZE + 1);
        job_start(&job, &options);
        run_briefly();
        CHECK_EQ(job.ended, 0);
        struct collector *collector = collector_start(between.drain, true);
        job_finish(&job);
        CHECK_EQ(job.result, 0);
        CHECK_EQ(job.receipt.bytes, SIZE);
        shutdown(sluice_end_fd(between.sink), SHUT_WR);
        unsigned char *data = collector_finish(collector, &size);
        CHECK_EQ(size, SIZE);
        CHECK_EQ(pattern_wrong(data, 0, size), size);
        free(data);
        close_between(&between);
        end();
    }
}

TEST("step by step a quiet transfer is done; with several sinks, a transform or another source it is refused")
{
    struct between between;
    struct sluice_segment segment;
    struct sluice_transfer *transfer;
    struct sluice_waits waits;
    struct sluice_error error;
    const struct sluice_transform none = {.size = sizeof none};
    begin();
    for (unsigned way = 0; way < WAYS; way++) {
        open_between(&between, tcp_pair, tcp_pair);
        struct sluice_transfer_options options = quiet_options(&between, &segment, ways[way], 100);
        CHECK_EQ(sluice_transfer_new(&options, &transfer, NULL), 0);
        feed(&between, 0, 100);
        CHECK_EQ(sluice_transfer_step(transfer, &waits), SLUICE_STEP_WAIT);
        feed(&between, 100, 20);
        CHECK_EQ(sluice_transfer_step(transfer, &waits), SLUICE_STEP_DONE);
        CHECK_EQ(sluice_transfer_receipt(transfer, 0)->bytes, 120);
        CHECK_EQ(sluice_transfer_receipt(transfer, 0)->waits, 1);
        check_arrived(&between, 0, 120);
        sluice_transfer_free(transfer);
        struct sluice_end *sinks[] = {between.sink, between.sink};
        struct sluice_transfer_options wrong[4] = {options, options, options, options};
        wrong[0].sinks = sinks;
        wrong[0].sink_count = 2;
        wrong[1].transform = &none;
        struct sluice_segment known = stream_segment(between.source, 5), memory = memory_segment("x", 1);
        wrong[2].segments = &known;
        wrong[3].segments = &memory;
        for (int i = 0; i < 4; i++) {
            CHECK_EQ(sluice_transfer_new(&wrong[i], &transfer, &error), -EINVAL);
            CHECK(strstr(error.reason, "quiet_below") != NULL);
        }
        close_between(&between);
    }
    end();
}

TEST("a receiver that is resumed after a transfer saw the end of its stream is told of the end, too")
{
    for (unsigned kind = 0; kind < 4 * WAYS; kind++) {
        struct between between;
        struct sluice_segment segment;
        struct job job;
        bool late = kind % 2;
        begin();
        open_between(&between, stream_pairs[kind / 2 % 2], tcp_pair);
        struct sluice_transfer_options options = quiet_options(&between, &segment, ways[kind / 4], late ? 1 : 1000);
        feed(&between, 0, 500);
        if (!late)
            shutdown(between.feed, SHUT_WR);
        job_start(&job, &options);
        CHECK_EQ(job.ended, !late);
        if (late) {
            run_briefly();
            shutdown(between.feed, SHUT_WR);
            job_finish(&job);
        }
        CHECK_EQ(job.result, 0);
        CHECK_EQ(job.receipt.bytes, 500);
        run_briefly();
        CHECK_EQ(between.told, 1);
        sluice_loop_receive_resume(loop, between.source);
        run_until_stopped();
        CHECK_EQ(between.told, 0);
        CHECK_EQ(between.heard, 0);
        check_arrived(&between, 0, 500);
        close_between(&between);
        end();
    }
}

TEST("streams that wait for their source share a pipe")
{
    enum { STREAMS = 20 };
    struct between between[STREAMS];
    struct job jobs[STREAMS];
    begin();
    int before = open_descriptors();
    for (int i = 0; i < STREAMS; i++) {
        struct sluice_segment segment;
        open_between(&between[i], tcp_pair, tcp_pair);
        struct sluice_transfer_options options = quiet_options(&between[i], &segment, SLUICE_ROUTE_SPLICE, 0);
        feed(&between[i], 0, 100);
        job_start(&jobs[i], &options);
        check_arrived(&between[i], 0, 100);
    }
    CHECK_EQ(open_descriptors() - before, 4 * STREAMS + 2);
    for (int i = 0; i < STREAMS; i++)
        feed(&between[i], 100, 1000);
    run_briefly();
    CHECK_EQ(open_descriptors() - before, 4 * STREAMS + 2);
    for (int i = 0; i < STREAMS; i++) {
        check_arrived(&between[i], 100, 1000);
        shutdown(between[i].feed, SHUT_WR);
    }
    for (int i = 0; i < STREAMS; i++) {
        job_finish(&jobs[i]);
        CHECK_EQ(jobs[i].result, 0);
        CHECK_EQ(jobs[i].receipt.bytes, 1100);
        close_between(&between[i]);
    }
    end();
}

/* A relay of one direction as a proxy has it: small messages by a receiver and borrowed memory, what fills a buffer by
 * a stream transfer, until that falls quiet. */
struct relay {
    struct sluice_end *source, *sink;
    enum sluice_route route;
    unsigned messages, streams;
    int result; /* 1: it goes on */
};

static void relay_end(struct relay *relay, int result)
{
    relay->result = result;
    sluice_loop_stop(loop);
}

static void relay_streamed(void *context, struct sluice_transfer *transfer, int result)
{
    struct relay *relay = context;
    (void)transfer;
    if (result < 0)
        relay_end(relay, result);
    else
        sluice_loop_receive_resume(loop, relay->source);
}

static void relay_stream(struct relay *relay)
{
    struct sluice_segment segment = stream_segment(relay->source, SLUICE_UNTIL_END);
    struct sluice_transfer_options options = one_to_one(&segment, &relay->sink, relay->route);
    options.quiet_below = 20000;
    relay->streams++;
    int result = sluice_loop_transfer(loop, &options, relay_streamed, relay, NULL, NULL, NULL);
    if (result != 0)
        relay_streamed(relay, NULL, result < 0 ? result : 0);
}

#define RELAY_MESSAGE 4096

static size_t relay_length;

static void relay_sent(void *context, struct sluice_transfer *transfer, int result)
{
    struct relay *relay = context;
    (void)transfer;
    if (result < 0)
        relay_end(relay, result);
    else
        relay_stream(relay);
}

static void relay_received(void *context, const char *data, ssize_t length)
{
    struct relay *relay = context;
    if (length <= 0) {
        relay_end(relay, (int)length);
        return;
    }
    relay->messages++;
    struct sluice_segment segment = borrowed_segment(data, (size_t)length);
    struct sluice_transfer_options options = one_to_one(&segment, &relay->sink, SLUICE_ROUTE_AUTO);
    int result = sluice_loop_transfer(loop, &options, relay_sent, relay, NULL, NULL, NULL);
    if (result < 0) {
        relay_end(relay, result);
    } else if (result == 0) {
        sluice_loop_receive_pause(loop, relay->source); /* relay_sent goes on */
    } else if ((size_t)length == relay_length) {
        sluice_loop_receive_pause(loop, relay->source);
        relay_stream(relay);
    }
}

/* Bursts and single messages, with pauses between, from a thread. */
struct source_of_bursts {
    int fd;
    size_t size;
    uint64_t seed;
};

static void *send_bursts(void *argument)
{
    const struct source_of_bursts *bursts = argument;
    static _Thread_local unsigned char part[200000];
    uint64_t random = bursts->seed;
    for (size_t at = 0; at < bursts->size;) {
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        size_t length = 1 + (random >> 33) % (random >> 60 < 8 ? 100 : random >> 60 < 11 ? 9000 : sizeof part);
        if (length > bursts->size - at)
            length = bursts->size - at;
        pattern_fill(part, at, length);
        for (size_t sent = 0; sent < length;) {
            struct pollfd writable = {.fd = bursts->fd, .events = POLLOUT};
            poll(&writable, 1, -1);
            ssize_t result = send(bursts->fd, part + sent, length - sent, MSG_NOSIGNAL);
            sent += result > 0 ? (size_t)result : 0;
        }
        at += length;
        if (random >> 20 & 1)
            usleep((useconds_t)(random >> 40) % 800);
    }
    shutdown(bursts->fd, SHUT_WR);
    return NULL;
}

TEST("a relay that changes between messages and streams loses no byte and sends none twice")
{
    unsigned messages = 0, streams = 0;
    draw_seed();
    for (unsigned kind = 0; kind < 4 * WAYS; kind++) {
        struct relay relay = {.route = ways[kind / 4], .result = 1};
        int in[2], out[2];
        size_t size;
        pthread_t thread;
        begin();
        relay_length = RELAY_MESSAGE;
        stream_pairs[kind % 2](in);
        stream_pairs[kind / 2 % 2](out);
        relay.source = end_of(in[1]);
        relay.sink = end_of(out[0]);
        struct source_of_bursts bursts = {.fd = in[0], .size = 4 << 20, .seed = seed + kind};
        CHECK_EQ(pthread_create(&thread, NULL, send_bursts, &bursts), 0);
        struct collector *collector = collector_start(out[1], false);
        CHECK_EQ(sluice_loop_receive(loop, relay.source, relay_length, relay_received, &relay), 0);
        run_until_stopped();
        CHECK_EQ(relay.result, 0);
        pthread_join(thread, NULL);
        sluice_loop_forget(loop, relay.source);
        sluice_loop_forget(loop, relay.sink);
        sluice_end_close(relay.source);
        sluice_end_close(relay.sink);
        unsigned char *data = collector_finish(collector, &size);
        CHECK_EQ(size, bursts.size);
        CHECK_EQ(pattern_wrong(data, 0, size), size);
        free(data);
        close(in[0]);
        close(out[1]);
        messages += relay.messages;
        streams += relay.streams;
        end();
    }
    printf("# %u messages, %u streams\n", messages, streams);
    CHECK(messages > 100 && streams > 50);
}

TEST("whenever a stream is found quiet, by whichever route, its bytes all arrive once and in order")
{
    static const enum sluice_route routes[] = {SLUICE_ROUTE_AUTO, SLUICE_ROUTE_AUTO, SLUICE_ROUTE_COPY,
                                               SLUICE_ROUTE_TCP_RECEIVE};
    static unsigned char data[200000];
    unsigned transfers = 0;
    draw_seed();
    pattern_fill(data, 0, sizeof data);
    for (int round = 0; round < 300; round++) {
        struct simulation simulation = {.seed = seed + (uint64_t)round, .lies = 10 + draw(80)};
        size_t size = 1 + draw(sizeof data);
        simulation.pipe_size = 4096u << draw(3);
        if (draw(2) == 0) /* then copy finds some bytes in the pipe */
            simulation.refusal =
                (struct simulated_refusal){.route = SLUICE_ROUTE_SPLICE, .at = draw((uint32_t)size), .at_drain = true};
        simulation_begin(&simulation);
        struct sluice_end *source = simulated_end(&simulation, SIMULATED_STREAM, SLUICE_END_TCP, data, size);
        struct sluice_end *sink = simulated_end(&simulation, SIMULATED_SINK, SLUICE_END_TCP, data, size);
        while (simulation.objects[1].at < size) { /* many end before the stream does */
            struct sluice_segment segment = stream_segment(source, SLUICE_UNTIL_END);
            struct sluice_transfer_options options =
                one_to_one(&segment, &sink, routes[draw(sizeof routes / sizeof *routes)]);
            options.quiet_below = 1 + draw(100000);
            struct sluice_transfer *transfer;
            CHECK_EQ(sluice_transfer_new(&options, &transfer, NULL), 0);
            int result = simulation_run(&simulation, transfer);
            size_t taken = simulation.objects[0].at, delivered = simulation.objects[1].at;
            sluice_transfer_free(transfer);
            if (result < 0 || taken != delivered || simulation.objects[1].wrong || ++transfers > 100000) {
                simulation_end();
                CHECK_FAIL("result %d, %zu bytes taken, %zu delivered", result, taken, delivered);
            }
        }
        sluice_end_close(source);
        sluice_end_close(sink);
        simulation_end();
    }
    printf("# %u transfers\n", transfers);
    CHECK(transfers > 400); /* of 300 streams */
}

/* ---- Resets --------------------------------------------------------------------------------------------------- */

TEST("a reset reaches a transfer that waits for its source, and its paused receiver is not called")
{
    for (unsigned kind = 0; kind < 2 * WAYS; kind++) {
        struct between between;
        struct sluice_segment segment;
        struct job job;
        begin();
        open_between(&between, tcp_pair, stream_pairs[kind % 2]);
        struct sluice_transfer_options options = quiet_options(&between, &segment, ways[kind / 2], 10);
        feed(&between, 0, 50);
        job_start(&job, &options);
        CHECK_EQ(job.ended, 0);
        run_briefly();
        reset(between.feed);
        between.feed = -1;
        job_finish(&job);
        CHECK_EQ(job.result, -ECONNRESET);
        CHECK_EQ(job.error.side, SLUICE_SIDE_SOURCE);
        CHECK_EQ(job.receipt.bytes, 50);
        CHECK_EQ(between.told, 1);
        close_between(&between);
        end();
    }
}

TEST("a reset of the source of a transfer that waits for its sink reaches the paused receiver, then the transfer")
{
    for (unsigned way = 0; way < WAYS; way++) {
        struct between between;
        struct sluice_segment segment;
        struct job job;
        size_t size;
        begin();
        open_between(&between, tcp_pair, unix_pair);
        struct sluice_transfer_options options = quiet_options(&between, &segment, ways[way], 0);
        job_start(&job, &options);
        for (int full = 0; full < 3;) { /* more than all buffers hold */
            full = send(between.feed, bytes, sizeof bytes, MSG_DONTWAIT) > 0 ? 0 : full + 1;
            run_briefly();
        }
        CHECK_EQ(job.ended, 0);
        CHECK_EQ(between.told, 1);
        reset(between.feed);
        between.feed = -1;
        run_until_stopped();
        CHECK_EQ(between.told, -ECONNRESET);
        CHECK_EQ(job.ended, 0);
        struct collector *collector = collector_start(between.drain, false);
        job_finish(&job);
        CHECK_EQ(job.result, -ECONNRESET);
        CHECK_EQ(job.error.side, SLUICE_SIDE_SOURCE);
        shutdown(sluice_end_fd(between.sink), SHUT_WR);
        free(collector_finish(collector, &size));
        close_between(&between);
        end();
    }
}

TEST("a paused receiver of a stream that fell quiet learns of a reset at once")
{
    for (unsigned way = 0; way < WAYS; way++) {
        struct between between;
        struct sluice_segment segment;
        struct job job;
        begin();
        open_between(&between, tcp_pair, tcp_pair);
        struct sluice_transfer_options options = quiet_options(&between, &segment, ways[way], 1000);
        feed(&between, 0, 500);
        job_start(&job, &options);
        CHECK_EQ(job.result, 0);
        run_briefly();
        reset(between.feed);
        between.feed = -1;
        run_until_stopped();
        CHECK_EQ(between.told, -ECONNRESET);
        close_between(&between);
        end();
    }
}

/* ---- A sink that is still connecting -------------------------------------------------------------------------- */

TEST("a socket that is still connecting is a sink that is full, also beside others; one that is refused fails")
{
    struct sockaddr_in full, closing;
    struct sluice_error errors[3];
    struct between between;
    struct job job;
    size_t size;
    int listener = listen_somewhere(&full, 0), other = listen_somewhere(&closing, 0);
    int first = fill_queue(&full), second = fill_queue(&closing);
    int fds[] = {stream_socket(AF_INET), stream_socket(AF_INET)};
    connect(fds[0], (struct sockaddr *)&full, sizeof full);
    CHECK_EQ(errno, EINPROGRESS);
    connect(fds[1], (struct sockaddr *)&closing, sizeof closing);
    CHECK_EQ(errno, EINPROGRESS);
    begin();
    open_between(&between, tcp_pair, tcp_pair);
    struct sluice_end *sinks[] = {between.sink, end_of(fds[0]), end_of(fds[1])};
    struct sluice_segment segment = stream_segment(between.source, SLUICE_UNTIL_END);
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = &segment,
                                              .segment_count = 1,
                                              .sinks = sinks,
                                              .sink_count = 3,
                                              .policy = SLUICE_FANOUT_DROP,
                                              .patience = 5000,
                                              .sink_errors = errors};
    job_start(&job, &options);
    feed(&between, 0, 100000);
    run_briefly();
    check_arrived(&between, 0, 100000); /* the live connection is not held up */
    close(accept(listener, NULL, NULL));
    close(other);
    feed(&between, 100000, 100000);
    shutdown(between.feed, SHUT_WR);
    job_finish(&job);
    CHECK_EQ(job.result, 0);
    CHECK_EQ(errors[0].code, 0);
    CHECK_EQ(errors[1].code, 0);
    CHECK_EQ(errors[2].code, -ECONNREFUSED);
    check_arrived(&between, 100000, 100000);
    int peer = accept(listener, NULL, NULL);
    struct collector *collector = collector_start(peer, false);
    for (int i = 1; i < 3; i++) {
        sluice_loop_forget(loop, sinks[i]);
        sluice_end_close(sinks[i]);
    }
    unsigned char *data = collector_finish(collector, &size);
    CHECK_EQ(size, 200000);
    CHECK_EQ(pattern_wrong(data, 0, size), size);
    free(data);
    close_between(&between);
    close(peer);
    close(listener);
    close(first);
    close(second);
    end();
}

int main(int argc, char **argv)
{
    return run_all_on_named_loop(&loop_options, argc, argv);
}
