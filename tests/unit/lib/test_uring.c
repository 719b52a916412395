/* SPDX-License-Identifier: MIT
 *
 * What is particular to the loop on io_uring. A hook before io_uring_enter looks at what is handed over, and changes it
 * into what another kernel would have made of it. That it behaves as the loop on epoll does is test_loop.c's and
 * test_routes.c's to say.
 */
#include "../check.h"
#include "checked.h"
#include "loop.h"
#include "memlock.h"
#include "sys.h"
#include "uring_files.h"
#include "world.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct sluice_loop *loop;
static const struct sluice_loop_options on_ring = {.size = sizeof on_ring, .kind = SLUICE_LOOP_IO_URING};

/* ---- Looking into the ring ------------------------------------------------------------------------------------ */

static struct sys real;
static int ring_fd = -1;
static struct io_uring_sqe *entries;
static unsigned *sq_tail, seen;
static struct io_uring_params made;
static void (*hook)(struct io_uring_sqe *entry);
static unsigned handed_over[256], linked, fixed_sends, numbered;

static int watch_setup(unsigned size, void *parameters)
{
    int fd = real.io_uring_setup(size, parameters);
    made = *(struct io_uring_params *)parameters;
    seen = 0;
    ring_fd = fd;
    return fd;
}

static void *watch_mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    void *memory = real.mmap(address, size, protection, flags, fd, offset);
    if (fd >= 0 && fd == ring_fd && offset == IORING_OFF_SQES)
        entries = memory;
    else if (fd >= 0 && fd == ring_fd && offset == IORING_OFF_SQ_RING)
        sq_tail = (unsigned *)(void *)((char *)memory + made.sq_off.tail);
    return memory;
}

static int watch_enter(int ring, unsigned submit, unsigned complete, unsigned flags, const void *argument, size_t size)
{
    for (; seen != *sq_tail; seen++) {
        struct io_uring_sqe *entry = &entries[seen & (made.sq_entries - 1)];
        handed_over[entry->opcode]++;
        linked += (entry->flags & IOSQE_IO_LINK) != 0;
        numbered += (entry->flags & IOSQE_FIXED_FILE) != 0;
        fixed_sends += entry->opcode == IORING_OP_SEND_ZC && entry->ioprio & IORING_RECVSEND_FIXED_BUF;
        if (hook != NULL)
            hook(entry);
    }
    return real.io_uring_enter(ring, submit, complete, flags, argument, size);
}

/* Of memory: how often some was registered, how often it was let go, and whether that is refused. */
static unsigned registered, let_go;
static int refuse_memory;

/* Of descriptors: how many have a number, and which of the calls are refused. */
static unsigned with_number, places;
static bool refuse_table, refuse_file, refuse_return, gave_up;

static bool refused(unsigned operation, const void *argument)
{
    if (operation == IORING_REGISTER_FILES2) {
        places = ((const struct io_uring_rsrc_register *)argument)->nr;
        return refuse_table;
    }
    if (operation == IORING_UNREGISTER_FILES)
        gave_up = true;
    if (operation != IORING_REGISTER_FILES_UPDATE)
        return false;
    bool back = *(const int *)(uintptr_t)((const struct io_uring_rsrc_update *)argument)->data == -1;
    if (back ? refuse_return : refuse_file)
        return true;
    with_number += back ? -1u : 1;
    return false;
}

static int watch_register(int ring, unsigned operation, const void *argument, unsigned count)
{
    if (operation == IORING_REGISTER_BUFFERS_UPDATE) {
        const struct io_uring_rsrc_update2 *update = argument;
        const struct iovec *memory = (const struct iovec *)(uintptr_t)update->data;
        if (refuse_memory != 0 && memory->iov_base != NULL) {
            errno = refuse_memory;
            return -1;
        }
        *(memory->iov_base != NULL ? &registered : &let_go) += 1;
    }
    if (refused(operation, argument)) {
        errno = ENOMEM;
        return -1;
    }
    return real.io_uring_register(ring, operation, argument, count);
}

static void look(void (*change)(struct io_uring_sqe *entry))
{
    hook = change;
    memset(handed_over, 0, sizeof handed_over);
    linked = 0;
    if (real.mmap == NULL)
        real = sys;
    sys.io_uring_setup = watch_setup;
    sys.mmap = watch_mmap;
    sys.io_uring_enter = watch_enter;
    sys.io_uring_register = watch_register;
    registered = let_go = fixed_sends = numbered = with_number = 0;
    gave_up = false;
}

static void look_away(void)
{
    sys = real;
    ring_fd = -1;
}

static void begin(void (*change)(struct io_uring_sqe *entry))
{
    look(change);
    CHECK_EQ(sluice_loop_new(&on_ring, &loop), 0);
}

static void end(void)
{
    sluice_loop_free(loop);
    look_away();
}

/* ---- One transfer --------------------------------------------------------------------------------------------- */

static struct {
    bool done;
    int result;
    struct sluice_receipt receipt;
    struct sluice_error error;
} outcome;

static void transfer_done(void *context, struct sluice_transfer *transfer, int result)
{
    (void)context;
    outcome.done = true;
    outcome.result = result;
    outcome.receipt = *sluice_transfer_receipt(transfer, 0);
    outcome.error = *sluice_transfer_error(transfer);
    sluice_loop_stop(loop);
}

static uint64_t start_at; /* in file sinks */

static struct sluice_transfer *start(struct sluice_segment *segments, size_t count, struct sluice_end *sink,
                                     enum sluice_route route)
{
    struct sluice_transfer *transfer = NULL;
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = segments,
                                              .segment_count = count,
                                              .sinks = &sink,
                                              .sink_count = 1,
                                              .sink_offset = start_at,
                                              .route = route};
    memset(&outcome, 0, sizeof outcome);
    const struct sluice_receipt *receipt;
    int result = sluice_loop_transfer(loop, &options, transfer_done, NULL, &transfer, &receipt, &outcome.error);
    if (result != 0) {
        outcome.receipt = *receipt;
        outcome.done = true;
        outcome.result = result < 0 ? result : 0;
    }
    return transfer;
}

static void finish(void)
{
    if (!outcome.done)
        CHECK_EQ(sluice_loop_run(loop), 0);
    CHECK(outcome.done);
}

static void stop(void *context)
{
    (void)context;
    sluice_loop_stop(loop);
}

static void run_for(unsigned time)
{
    struct sluice_timer timer = {0};
    sluice_timer_start(loop, &timer, time, stop, NULL);
    CHECK_EQ(sluice_loop_run(loop), 0);
    sluice_timer_stop(loop, &timer);
}

/* ---- What the ring may do ------------------------------------------------------------------------------------- */

static ssize_t how_it_ended;
static unsigned ended;

static void take(void *context, const char *data, ssize_t length)
{
    (void)data;
    if (length > 0) {
        *(size_t *)context += (size_t)length;
        return;
    }
    how_it_ended = length;
    ended++;
    sluice_loop_stop(loop);
}

static uint8_t forged;

static void forge(struct io_uring_sqe *entry)
{
    static const char path[] = "/etc/passwd";
    if (entry->opcode != IORING_OP_RECV)
        return;
    uint64_t about = entry->user_data;
    memset(entry, 0, sizeof *entry);
    entry->opcode = forged;
    entry->fd = AT_FDCWD;
    entry->addr = (uintptr_t)path;
    entry->user_data = about;
}

TEST("the ring refuses what the loop has no use for: opening, connecting, unlinking, changing its own files")
{
    static const uint8_t forbidden[] = {IORING_OP_OPENAT,   IORING_OP_OPENAT2,      IORING_OP_CONNECT,
                                        IORING_OP_UNLINKAT, IORING_OP_FILES_UPDATE, IORING_OP_URING_CMD,
                                        IORING_OP_SOCKET,   IORING_OP_EPOLL_CTL,    IORING_OP_MSG_RING};
    for (size_t i = 0; i < sizeof forbidden; i++) {
        size_t size = 0;
        int fds[2];
        forged = forbidden[i];
        unix_pair(fds);
        begin(forge);
        struct sluice_end *receiver = end_of(fds[1]);
        CHECK_EQ(sluice_loop_receive(loop, receiver, 0, take, &size), 0);
        CHECK_EQ(sluice_loop_run(loop), 0);
        CHECK_EQ(how_it_ended, -EACCES);
        sluice_loop_forget(loop, receiver);
        sluice_end_close(receiver);
        end();
        close(fds[0]);
    }
}

static void not_bounded(struct io_uring_sqe *entry)
{
    if (entry->opcode == IORING_OP_RECV && entry->file_index != 0)
        entry->ioprio = 0x8000; /* a flag that there is not: EINVAL, as the bound is to Linux before 6.17 */
}

TEST("where the kernel does not bound a multishot receive, receives are asked for one at a time")
{
    enum { BOTH = 2 }; /* handed over together */
    size_t size[BOTH] = {0};
    struct sluice_end *receivers[BOTH];
    struct feeder *feeders[BOTH];
    begin(not_bounded);
    ended = 0;
    for (int i = 0; i < BOTH; i++) {
        int fds[2];
        unix_pair(fds);
        receivers[i] = end_of(fds[1]);
        CHECK_EQ(sluice_loop_receive(loop, receivers[i], 0, take, &size[i]), 0);
        feeders[i] = feeder_start(fds[0], 0, 500000);
    }
    while (ended < BOTH) { /* maybe both in one turn */
        how_it_ended = -1;
        CHECK_EQ(sluice_loop_run(loop), 0);
        CHECK_EQ(how_it_ended, 0);
    }
    CHECK(handed_over[IORING_OP_RECV] >= BOTH * 500000 / 16384);
    for (int i = 0; i < BOTH; i++) {
        CHECK_EQ(size[i], 500000);
        feeder_finish(feeders[i]);
        sluice_loop_forget(loop, receivers[i]);
        sluice_end_close(receivers[i]);
    }
    end();
}

static bool was_bounded; /* the last receive */

static void look_for_bound(struct io_uring_sqe *entry)
{
    if (entry->opcode == IORING_OP_RECV)
        was_bounded = entry->file_index != 0;
}

/* Until so many have been handed over, if ever. */
static void run_until_handed_over(uint8_t opcode, unsigned count)
{
    for (int wait = 0; wait < 500 && handed_over[opcode] < count; wait++)
        run_for(20);
}

TEST("a connection that has long been silent is polled, which costs less memory, and is heard at once when it speaks")
{
    size_t size[2] = {0, 0};
    int speaking[2], leaving[2];
    unix_pair(speaking);
    tcp_pair(leaving);
    begin(look_for_bound);
    struct sluice_end *speaker = end_of(speaking[1]), *leaver = end_of(leaving[1]);
    CHECK_EQ(sluice_loop_receive(loop, speaker, 0, take, &size[0]), 0);
    CHECK_EQ(sluice_loop_receive(loop, leaver, 0, take, &size[1]), 0);
    run_for(130);
    unsigned receives = handed_over[IORING_OP_RECV], polls = handed_over[IORING_OP_POLL_ADD];
    run_until_handed_over(IORING_OP_POLL_ADD, polls + 2);
    CHECK_EQ(handed_over[IORING_OP_ASYNC_CANCEL], 2);
    CHECK_EQ(handed_over[IORING_OP_POLL_ADD], polls + 2);
    CHECK_EQ(handed_over[IORING_OP_RECV], receives);
    for (unsigned i = 1; i <= 3; i++) {
        CHECK_EQ(write(speaking[0], "x", 1), 1);
        for (int wait = 0; wait < 500 && size[0] < i; wait++)
            run_for(20);
        CHECK_EQ(size[0], i);
        run_for(20);
        CHECK_EQ(handed_over[IORING_OP_RECV], receives + 1 + (was_bounded ? 0 : i));
    }
    CHECK_EQ(handed_over[IORING_OP_POLL_ADD], polls + 2);
    how_it_ended = -1;
    close(leaving[0]);
    CHECK_EQ(sluice_loop_run(loop), 0);
    CHECK_EQ(how_it_ended, 0);
    sluice_loop_forget(loop, speaker);
    sluice_loop_forget(loop, leaver);
    sluice_end_close(speaker);
    sluice_end_close(leaver);
    close(speaking[0]);
    end();
}

static struct sluice_end *paused;

static void take_and_pause(void *context, const char *data, ssize_t length)
{
    (void)data;
    if (length > 0)
        *(size_t *)context += (size_t)length;
    sluice_loop_receive_pause(loop, paused);
}

TEST("of a client that sends without end the loop keeps no more than two buffers while its receiver is paused")
{
    static char bytes[200000];
    size_t size = 0;
    int fds[2], left = 0, room = 4 << 20;
    tcp_pair(fds);
    setsockopt(fds[1], SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    begin(NULL);
    paused = end_of(fds[1]);
    CHECK_EQ(write(fds[0], bytes, sizeof bytes), sizeof bytes);
    usleep(20000);
    CHECK_EQ(sluice_loop_receive(loop, paused, 0, take_and_pause, &size), 0);
    run_for(130);
    CHECK_EQ(size, 16384);
    CHECK_EQ(ioctl(fds[1], FIONREAD, &left), 0);
    CHECK(left >= (int)sizeof bytes - 3 * 16384);
    sluice_loop_forget(loop, paused);
    sluice_end_close(paused);
    close(fds[0]);
    end();
}

/* ---- Ops ------------------------------------------------------------------------------------------------------ */

TEST("a file is copied into a socket by linked pairs of a read and a send")
{
    enum { SIZE = 1 << 20 };
    int fds[2];
    size_t size;
    unix_pair(fds);
    begin(NULL);
    struct collector *collector = collector_start(fds[1], false);
    struct sluice_end *file = end_of(pattern_file("/var/tmp", SIZE)), *sink = end_of(fds[0]);
    struct sluice_segment segment = file_segment(file, 0, SIZE);
    start(&segment, 1, sink, SLUICE_ROUTE_COPY);
    finish();
    CHECK_EQ(outcome.result, 0);
    CHECK_EQ(outcome.receipt.copied, SIZE);
    CHECK(handed_over[IORING_OP_READ] >= SIZE / (256 << 10));
    CHECK(linked >= SIZE / (256 << 10));
    sluice_loop_forget(loop, sink);
    sluice_end_close(sink);
    sluice_end_close(file);
    end();
    unsigned char *data = collector_finish(collector, &size);
    CHECK_EQ(size, SIZE);
    for (size_t i = 0; i < size; i++)
        CHECK(data[i] == pattern_byte(i));
    free(data);
    close(fds[1]);
}

static uint64_t seed;

static uint32_t draw(void)
{
    uint64_t z = seed += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (uint32_t)(z >> 32);
}

/* Can a NOP be told how to end (IORING_NOP_INJECT_RESULT, Linux 6.10)? Older kernels take no flags. */
static bool injects;

static void look_at_kernel(void)
{
    struct utsname kernel;
    unsigned major = 0, minor = 0;
    CHECK_EQ(uname(&kernel), 0);
    CHECK_EQ(sscanf(kernel.release, "%u.%u", &major, &minor), 2);
    injects = major > 6 || (major == 6 && minor >= 10);
}

/* Short counts, and requests that end as if a signal had interrupted them. What is linked stays as it is: a kernel that
 * reads less breaks the chain, which a shorter length would not. */
static void lie(struct io_uring_sqe *entry)
{
    static bool chained;
    bool in_chain = chained || (entry->flags & IOSQE_IO_LINK) != 0;
    chained = (entry->flags & IOSQE_IO_LINK) != 0;
    bool moves = entry->opcode == IORING_OP_SEND || entry->opcode == IORING_OP_READ ||
                 (entry->opcode == IORING_OP_RECV && !(entry->flags & IOSQE_BUFFER_SELECT));
    if (in_chain || !moves)
        return;
    uint32_t dice = draw() % 8;
    if (dice < 4 && entry->len > 1) {
        entry->len = 1 + draw() % entry->len;
    } else if (dice == 4 && injects) {
        uint64_t about = entry->user_data;
        memset(entry, 0, sizeof *entry);
        entry->opcode = IORING_OP_NOP;
        entry->rw_flags = 1; /* IORING_NOP_INJECT_RESULT, Linux 6.10 */
        entry->len = (uint32_t)-EINTR;
        entry->user_data = about;
    }
}

static void one_lie(void)
{
    unsigned char head[2000];
    int in[2] = {-1, -1}, out[2];
    size_t size = 1 + draw() % 600000, offset = draw() % 5000;
    bool stream = draw() % 2, many = draw() % 2, to_file = draw() % 4 == 0;
    enum sluice_route routes[] = {SLUICE_ROUTE_AUTO, SLUICE_ROUTE_COPY, SLUICE_ROUTE_COPY, SLUICE_ROUTE_MMAP};
    enum sluice_route route = routes[draw() % 4];
    struct feeder *feeder = NULL;
    struct collector *collector = NULL;
    struct sluice_end *source;
    if (stream) {
        offset = 0;
        (draw() % 2 ? unix_pair : tcp_pair)(in);
        feeder = feeder_start(in[0], 0, size);
        source = end_of(in[1]);
        if (route == SLUICE_ROUTE_MMAP)
            route = SLUICE_ROUTE_COPY;
    } else {
        source = end_of(pattern_file(NULL, offset + size));
    }
    pattern_fill(head, 0, sizeof head);
    struct sluice_segment body = stream ? stream_segment(source, size) : file_segment(source, offset, size);
    struct sluice_segment segments[] = {memory_segment(head, sizeof head), body, memory_segment(head, 100)};
    if (to_file) {
        out[0] = pattern_file(NULL, 0);
        out[1] = dup(out[0]);
    } else {
        unix_pair(out);
        collector = collector_start(out[1], draw() % 2);
    }
    struct sluice_end *sink = end_of(out[0]);
    start(many ? segments : &segments[1], many ? 3 : 1, sink, route);
    finish();
    char text[300] = "";
    if (outcome.result < 0)
        sluice_error_format(&outcome.error, text, sizeof text);
    sluice_loop_forget(loop, source);
    sluice_loop_forget(loop, sink);
    sluice_end_close(source);
    sluice_end_close(sink);
    if (feeder != NULL)
        feeder_finish(feeder);
    size_t arrived = 0, whole = size + (many ? sizeof head + 100 : 0);
    unsigned char *data;
    if (to_file) {
        arrived = (size_t)lseek(out[1], 0, SEEK_END);
        data = malloc(arrived + 1);
        CHECK_EQ(pread(out[1], data, arrived, 0), arrived);
    } else {
        data = collector_finish(collector, &arrived);
    }
    close(out[1]);
    CHECK_STR(text, "");
    CHECK_EQ(arrived, whole);
    CHECK_EQ(outcome.receipt.sent, whole);
    size_t first = many ? sizeof head : 0;
    for (size_t i = 0; i < whole; i++) {
        uint64_t expected = i < first ? i : i < first + size ? offset + i - first : i - first - size;
        if (data[i] != pattern_byte(expected))
            CHECK_FAIL("byte %zu of %zu is wrong", i, whole);
    }
    free(data);
}

TEST("whatever a ring moves less than it was asked to, the bytes are exact, for transfers drawn by lot")
{
    const char *given = getenv("SEED");
    seed = given != NULL ? strtoull(given, NULL, 0) : (uint64_t)getpid() << 20 ^ (uint64_t)clock();
    printf("# SEED=%#llx\n", (unsigned long long)seed);
    look_at_kernel();
    begin(lie);
    for (int i = 0; i < 60; i++)
        one_lie();
    end();
}

/* ---- Cancelling ----------------------------------------------------------------------------------------------- */

TEST("when cancelling returns, the kernel no longer reads the memory of a send that was waiting in the ring")
{
    enum { SIZE = 8 << 20 };
    unsigned char *memory = malloc(SIZE);
    int fds[2];
    size_t size;
    pattern_fill(memory, 0, SIZE);
    unix_pair(fds);
    begin(NULL);
    struct sluice_end *sink = end_of(fds[0]);
    struct sluice_segment segment = memory_segment(memory, SIZE);
    struct sluice_transfer *transfer = start(&segment, 1, sink, SLUICE_ROUTE_AUTO);
    CHECK(!outcome.done);
    run_for(1);
    CHECK(handed_over[IORING_OP_SEND] > 0);
    sluice_loop_transfer_cancel(loop, transfer);
    CHECK_EQ(outcome.result, -ECANCELED);
    CHECK_EQ(outcome.error.code, -ECANCELED);
    memset(memory, 0xee, SIZE);
    struct collector *collector = collector_start(fds[1], false); /* now there is room */
    run_for(1);
    sluice_loop_forget(loop, sink);
    sluice_end_close(sink);
    end();
    unsigned char *data = collector_finish(collector, &size);
    CHECK_EQ(size, outcome.receipt.sent);
    CHECK(size > 0 && size < SIZE);
    for (size_t i = 0; i < size; i++)
        CHECK(data[i] == pattern_byte(i));
    free(data);
    free(memory);
    close(fds[1]);
}

TEST("the peer of an end that was forgotten and closed while receiving is told at once")
{
    char byte;
    size_t size = 0;
    int fds[2];
    tcp_pair(fds);
    begin(NULL);
    struct sluice_end *receiver = end_of(fds[1]);
    CHECK_EQ(sluice_loop_receive(loop, receiver, 0, take, &size), 0);
    run_for(1);
    sluice_loop_forget(loop, receiver);
    sluice_end_close(receiver);
    alarm(5); /* a request that still holds the socket would keep it open */
    fcntl(fds[0], F_SETFL, 0);
    CHECK_EQ(recv(fds[0], &byte, 1, 0), 0);
    alarm(60);
    close(fds[0]);
    end();
}

/* ---- Numbers for descriptors ---------------------------------------------------------------------------------- */

#define NEEDS_NUMBERS()                                                                                                \
    do {                                                                                                               \
        if (sluice_loop_probe(NULL, NULL) < 0)                                                                         \
            SKIP("this kernel lets go of registered files late; Linux 6.17");                                          \
    } while (0)

/* A connection of the loop's, and its peer. Every byte is a request: so a receive is told to end after one. */
struct talk {
    struct sluice_end *end;
    int peer;
    size_t heard;
};

static void talk_start(struct talk *talk)
{
    int fds[2];
    tcp_pair(fds);
    *talk = (struct talk){.end = end_of(fds[1]), .peer = fds[0]};
    CHECK_EQ(sluice_loop_receive(loop, talk->end, 1, take, &talk->heard), 0);
}

static void talk_on(struct talk *talk, unsigned bytes)
{
    static const char text[100];
    size_t expected = talk->heard + bytes;
    CHECK_EQ(write(talk->peer, text, bytes), (ssize_t)bytes);
    for (int wait = 0; wait < 500 && talk->heard < expected; wait++)
        run_for(10);
    CHECK_EQ(talk->heard, expected);
}

/* Forgotten and closed: the peer is told at once, whatever else the ring has to do. */
static void talk_end(struct talk *talk, int told)
{
    char byte;
    struct pollfd at_once = {.fd = talk->peer, .events = POLLIN};
    sluice_loop_forget(loop, talk->end);
    sluice_end_close(talk->end);
    CHECK_EQ(poll(&at_once, 1, 5000), 1);
    CHECK_EQ(recv(talk->peer, &byte, 1, 0) < 0 ? errno : 0, told);
    close(talk->peer);
}

TEST("a connection that the ring has been asked about often has a number, one that is young has none")
{
    struct talk often, young;
    NEEDS_NUMBERS();
    begin(NULL);
    talk_start(&often);
    talk_start(&young);
    talk_on(&young, 10);
    CHECK_EQ(with_number, 0);
    talk_on(&often, 100);
    CHECK_EQ(with_number, 1);
    CHECK(numbered >= 100 - uring_files_after - 1);
    talk_on(&young, 10);
    CHECK_EQ(with_number, 1);
    talk_end(&often, 0);
    talk_end(&young, 0);
    CHECK_EQ(with_number, 0);
    end();
}

TEST("closing an end whose descriptor has a number ends or resets its connection at once, while others' requests wait")
{
    static const struct linger reset = {.l_onoff = 1};
    struct talk talks[4];
    NEEDS_NUMBERS();
    begin(NULL);
    for (int i = 0; i < 4; i++) {
        talk_start(&talks[i]);
        talk_on(&talks[i], 100);
    }
    CHECK_EQ(with_number, 4);
    talk_end(&talks[1], 0);
    setsockopt(sluice_end_fd(talks[2].end), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    talk_end(&talks[2], ECONNRESET);
    CHECK_EQ(with_number, 2);
    talk_on(&talks[0], 100);
    talk_on(&talks[3], 100);
    talk_end(&talks[0], 0);
    talk_end(&talks[3], 0);
    end();
}

TEST("the port of a listener whose descriptor has a number is free when it is freed and closed")
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    struct sluice_listener *listener = NULL;
    struct talk waiting;
    const unsigned after = uring_files_after;
    NEEDS_NUMBERS();
    uring_files_after = 0;
    begin(NULL);
    talk_start(&waiting);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), again = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_EQ(bind(fd, (struct sockaddr *)&address, size), 0);
    CHECK_EQ(getsockname(fd, (struct sockaddr *)&address, &size), 0);
    CHECK_EQ(listen(fd, 8), 0);
    CHECK_EQ(sluice_loop_listen(loop, fd, NULL, NULL, &listener), 0);
    run_for(1);
    CHECK_EQ(with_number, 2);
    sluice_listener_free(listener);
    close(fd);
    CHECK_EQ(bind(again, (struct sockaddr *)&address, size), 0);
    close(again);
    talk_end(&waiting, 0);
    end();
    uring_files_after = after;
}

TEST("where a table or a number is refused all goes on by descriptors")
{
    for (int i = 0; i < 2; i++) {
        struct talk talk;
        *(i == 0 ? &refuse_table : &refuse_file) = true;
        begin(NULL);
        talk_start(&talk);
        talk_on(&talk, 100);
        CHECK_EQ(with_number, 0);
        CHECK_EQ(numbered, 0);
        talk_end(&talk, 0);
        end();
        refuse_table = refuse_file = false;
    }
}

TEST("were the kernel to keep a number, all are given up, so that closing ends a connection at once all the same")
{
    struct talk leaving, staying;
    NEEDS_NUMBERS();
    refuse_return = true;
    begin(NULL);
    talk_start(&leaving);
    talk_start(&staying);
    talk_on(&leaving, 100);
    talk_on(&staying, 100);
    CHECK_EQ(with_number, 2);
    talk_end(&leaving, 0);
    CHECK(gave_up);
    numbered = 0;
    talk_on(&staying, 100);
    CHECK_EQ(numbered, 0);
    talk_end(&staying, 0);
    end();
    refuse_return = false;
}

static int two_descriptors(int resource, struct rlimit *limit)
{
    (void)resource;
    *limit = (struct rlimit){.rlim_cur = 2, .rlim_max = 2};
    return 0;
}

TEST("the table is as large as the process may have descriptors, and who finds it full waits for a number")
{
    struct talk talks[3];
    NEEDS_NUMBERS();
    look(NULL);
    sys.getrlimit = two_descriptors;
    CHECK_EQ(sluice_loop_new(&on_ring, &loop), 0);
    CHECK_EQ(places, 2);
    for (int i = 0; i < 3; i++) {
        talk_start(&talks[i]);
        talk_on(&talks[i], 100);
    }
    CHECK_EQ(with_number, 2);
    talk_end(&talks[0], 0);
    CHECK_EQ(with_number, 1);
    talk_on(&talks[2], 2);
    CHECK_EQ(with_number, 2);
    numbered = 0;
    talk_on(&talks[1], 2);
    talk_on(&talks[2], 2);
    CHECK_EQ(numbered, 4);
    talk_end(&talks[1], 0);
    talk_end(&talks[2], 0);
    end();
}

/* ---- Lending -------------------------------------------------------------------------------------------------- */

#define LENT (3u << 20 | 4321)

static unsigned char lent_memory[LENT];
static unsigned released, settlements;
static struct sluice_receipt settled_by;

static void count_release(void *context, const void *data, size_t length)
{
    (void)context;
    released++;
    memset((void *)(uintptr_t)data, 0xee, length); /* whoever still reads it shows */
}

static void settled(void *context, unsigned sink, const struct sluice_receipt *difference)
{
    (void)context, (void)sink;
    settlements++;
    settled_by = *difference;
}

static struct sluice_transfer *lend(struct sluice_end *sink, enum sluice_route route)
{
    struct sluice_segment segments[] = {memory_segment("HEAD", 4), memory_segment(lent_memory, LENT)};
    struct sluice_transfer *transfer = NULL;
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = segments,
                                              .segment_count = 2,
                                              .sinks = &sink,
                                              .sink_count = 1,
                                              .route = route,
                                              .settled = settled};
    segments[1].release = count_release;
    pattern_fill(lent_memory, 0, LENT);
    released = settlements = 0;
    memset(&outcome, 0, sizeof outcome);
    const struct sluice_receipt *receipt;
    int result = sluice_loop_transfer(loop, &options, transfer_done, NULL, &transfer, &receipt, &outcome.error);
    if (result != 0) {
        outcome.receipt = *receipt;
        outcome.done = true;
        outcome.result = result < 0 ? result : 0;
    }
    return transfer;
}

static void check_lent(const unsigned char *data, size_t size)
{
    CHECK(size <= LENT + 4);
    CHECK(size < 4 || memcmp(data, "HEAD", 4) == 0);
    for (size_t i = 4; i < size; i++)
        if (data[i] != pattern_byte(i - 4))
            CHECK_FAIL("byte %zu is wrong", i);
}

static void check_return(void)
{
    for (int i = 0; i < 200 && (released == 0 || (settlements == 0 && !sluice_receipt_is_final(&outcome.receipt))); i++)
        run_for(10);
    CHECK_EQ(released, 1);
    struct sluice_receipt sum = outcome.receipt;
    if (settlements > 0)
        sluice_receipt_add(&sum, &settled_by);
    CHECK(sluice_receipt_is_final(&sum));
    CHECK_EQ(sum.loans, 0);
    CHECK_EQ(sum.bytes, LENT + 4);
    CHECK_EQ(sum.released, LENT + 4);
    CHECK_EQ(sum.copied, LENT + 4); /* the peer is on this machine, and the kernel says so */
    CHECK_EQ(sum.unknown, 0);
}

TEST("memory lent by the ring, or by the socket on a ring, arrives, is given back once, and the receipt becomes final")
{
    static const enum sluice_route routes[] = {SLUICE_ROUTE_URING_SEND_ZC, SLUICE_ROUTE_MSG_ZEROCOPY};
    for (int i = 0; i < 2; i++) {
        int fds[2];
        size_t size;
        tcp_pair(fds);
        begin(NULL);
        struct sluice_end *sink = end_of(fds[0]);
        struct collector *collector = collector_start(fds[1], i == 0);
        lend(sink, routes[i]);
        finish();
        CHECK_EQ(outcome.result, 0);
        CHECK_EQ(outcome.receipt.routes[routes[i]].bytes, LENT);
        if (i == 0)
            CHECK(handed_over[IORING_OP_SEND_ZC] + handed_over[IORING_OP_SENDMSG_ZC] >= 4);
        check_return();
        sluice_loop_forget(loop, sink);
        sluice_end_close(sink);
        end();
        unsigned char *data = collector_finish(collector, &size);
        CHECK_EQ(size, LENT + 4);
        check_lent(data, size);
        free(data);
        close(fds[1]);
    }
}

TEST("an end may be forgotten and closed while its memory is lent by the ring: the memory comes back all the same")
{
    int fds[2], before = open_descriptors();
    size_t size;
    tcp_pair(fds);
    begin(NULL);
    struct sluice_end *sink = end_of(fds[0]);
    struct collector *collector = collector_start(fds[1], true);
    lend(sink, SLUICE_ROUTE_URING_SEND_ZC);
    finish();
    CHECK_EQ(outcome.result, 0);
    sluice_loop_forget(loop, sink);
    sluice_end_close(sink);
    check_return();
    end();
    unsigned char *data = collector_finish(collector, &size);
    CHECK_EQ(size, LENT + 4);
    check_lent(data, size);
    free(data);
    close(fds[1]);
    CHECK(open_descriptors() <= before + 2);
}

TEST("a loop that ends waits for what its ring has lent")
{
    int fds[2];
    size_t size;
    tcp_pair(fds);
    begin(NULL);
    struct sluice_end *sink = end_of(fds[0]);
    struct collector *collector = collector_start(fds[1], true);
    lend(sink, SLUICE_ROUTE_URING_SEND_ZC);
    finish();
    sluice_loop_forget(loop, sink);
    sluice_end_close(sink);
    end();
    CHECK_EQ(released, 1);
    unsigned char *data = collector_finish(collector, &size);
    CHECK_EQ(size, LENT + 4);
    check_lent(data, size);
    free(data);
    close(fds[1]);
}

static int broken_enter(int ring, unsigned submit, unsigned complete, unsigned flags, const void *argument, size_t size)
{
    (void)ring, (void)submit, (void)complete, (void)flags, (void)argument, (void)size;
    errno = EBADR;
    return -1;
}

TEST("what a ring had lent when it broke for good comes back when its sockets hold nothing any more, uncertain how it "
     "went")
{
    for (int slow = 0; slow < 2; slow++) {
        int fds[2], before = open_descriptors();
        size_t size;
        struct collector *collector = NULL;
        tcp_pair(fds);
        begin(NULL);
        uring_linger_ms = slow ? 300 : 20000;
        struct sluice_end *sink = end_of(fds[0]);
        struct sluice_transfer *transfer = lend(sink, SLUICE_ROUTE_URING_SEND_ZC);
        run_for(1);
        sys.io_uring_enter = broken_enter;
        CHECK_EQ(sluice_loop_run(loop), -EBADR);
        CHECK_EQ(released, 0);
        if (!outcome.done)
            sluice_loop_transfer_cancel(loop, transfer);
        CHECK(outcome.done);
        CHECK_EQ(released, 0); /* the peer has not taken all of it */
        CHECK(outcome.receipt.loans > 0);
        uint64_t sent = outcome.receipt.sent;
        sluice_loop_forget(loop, sink);
        sluice_end_close(sink);
        if (!slow)
            collector = collector_start(fds[1], true);
        end(); /* slow: nobody reads, so that the connection must be reset */
        CHECK_EQ(released, 1);
        CHECK_EQ(settlements, 1);
        struct sluice_receipt sum = outcome.receipt;
        sluice_receipt_add(&sum, &settled_by);
        CHECK(sluice_receipt_is_final(&sum));
        CHECK_EQ(sum.bytes, sum.by_reference + sum.copied + sum.unknown);
        if (collector != NULL) {
            unsigned char *data = collector_finish(collector, &size);
            check_lent(data, size);
            CHECK(size >= sent);
            free(data);
        } else {
            static char bytes[65536];
            while (recv(fds[1], bytes, sizeof bytes, 0) > 0)
                ;
            CHECK(errno == ECONNRESET);
        }
        close(fds[1]);
        uring_linger_ms = 5000;
        CHECK(open_descriptors() <= before + 2);
    }
}

TEST("cancelling does not wait for lent memory, which is released when it is back")
{
    int fds[2];
    size_t size;
    tcp_pair(fds);
    begin(NULL);
    struct sluice_end *sink = end_of(fds[0]);
    struct sluice_transfer *transfer = lend(sink, SLUICE_ROUTE_URING_SEND_ZC);
    run_for(1);
    if (!outcome.done)
        sluice_loop_transfer_cancel(loop, transfer);
    CHECK(outcome.done);
    uint64_t sent = outcome.receipt.sent;
    struct collector *collector = collector_start(fds[1], false);
    for (int i = 0; i < 200 && released == 0; i++)
        run_for(10);
    CHECK_EQ(released, 1);
    sluice_loop_forget(loop, sink);
    sluice_end_close(sink);
    end();
    unsigned char *data = collector_finish(collector, &size);
    CHECK_EQ(size, sent);
    check_lent(data, size);
    free(data);
    close(fds[1]);
}

TEST("uring_send_zc refuses a Unix socket, and every loop that is no ring, with a reason")
{
    int fds[2];
    unix_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    begin(NULL);
    lend(sink, SLUICE_ROUTE_URING_SEND_ZC);
    CHECK_EQ(outcome.result, -EOPNOTSUPP);
    CHECK(outcome.error.reason != NULL && strstr(outcome.error.reason, "TCP and UDP") != NULL);
    CHECK_EQ(released, 1);
    end();
    sluice_end_close(sink);
    close(fds[1]);
    tcp_pair(fds);
    sink = end_of(fds[0]);
    struct sluice_loop_options on_epoll = {.size = sizeof on_epoll, .kind = SLUICE_LOOP_EPOLL};
    CHECK_EQ(sluice_loop_new(&on_epoll, &loop), 0);
    lend(sink, SLUICE_ROUTE_URING_SEND_ZC);
    CHECK_EQ(outcome.result, -EOPNOTSUPP);
    CHECK(outcome.error.reason != NULL && strstr(outcome.error.reason, "io_uring") != NULL);
    CHECK_EQ(released, 1);
    sluice_loop_free(loop);
    sluice_end_close(sink);
    close(fds[1]);
}

static void no_usage_report(struct io_uring_sqe *entry)
{
    if (entry->opcode == IORING_OP_SEND_ZC || entry->opcode == IORING_OP_SENDMSG_ZC)
        entry->ioprio = 0x8000; /* EINVAL, as the report's flag is to a kernel that has none */
}

TEST("where the kernel does not report on usage, forcing uring_send_zc is refused, and the memory is released")
{
    int fds[2];
    size_t size;
    tcp_pair(fds);
    begin(no_usage_report);
    struct sluice_end *sink = end_of(fds[0]);
    struct collector *collector = collector_start(fds[1], false);
    lend(sink, SLUICE_ROUTE_URING_SEND_ZC);
    finish();
    CHECK_EQ(outcome.result, -EOPNOTSUPP);
    CHECK(outcome.error.reason != NULL && strstr(outcome.error.reason, "usage") != NULL);
    CHECK_EQ(released, 1);
    sluice_loop_forget(loop, sink);
    sluice_end_close(sink);
    end();
    unsigned char *data = collector_finish(collector, &size);
    check_lent(data, size);
    free(data);
    close(fds[1]);
}

/* ---- Registered memory ---------------------------------------------------------------------------------------- */

#define LARGE (9u << 20 | 4096)

static void check_file(int fd, size_t size)
{
    unsigned char *data = malloc(size + 1);
    CHECK_EQ(pread(fd, data, size + 1, 0), size);
    for (size_t i = 0; i < size; i++)
        if (data[i] != pattern_byte(i))
            CHECK_FAIL("byte %zu of %zu is wrong", i, size);
    free(data);
}

TEST("a large file is read into memory that is registered once, and written from there")
{
    static const int errors[] = {0, ENOMEM};
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        begin(NULL);
        refuse_memory = errors[i];
        int to = pattern_file("/var/tmp", 0);
        struct sluice_end *file = end_of(pattern_file("/var/tmp", LARGE)), *sink = end_of(dup(to));
        struct sluice_segment segment = file_segment(file, 0, LARGE);
        start(&segment, 1, sink, SLUICE_ROUTE_COPY);
        finish();
        CHECK_EQ(outcome.result, 0);
        CHECK_EQ(outcome.receipt.copied, LARGE);
        CHECK_EQ(outcome.receipt.registered, errors[i] == 0 ? 2 * LARGE : 0);
        CHECK_EQ(registered, errors[i] == 0);
        CHECK((handed_over[IORING_OP_READ_FIXED] >= LARGE / (256 << 10)) == (errors[i] == 0));
        CHECK((handed_over[IORING_OP_WRITE_FIXED] >= LARGE / (256 << 10)) == (errors[i] == 0));
        CHECK((handed_over[IORING_OP_READ] > 0) == (errors[i] != 0));
        check_file(to, LARGE);
        close(to);
        sluice_end_close(sink);
        sluice_end_close(file);
        refuse_memory = 0;
        end();
    }
}

static void not_my_memory(void *context, const void *data, size_t length)
{
    (void)data, (void)length;
    ++*(unsigned *)context;
}

static struct sluice_segment kept_segment(struct sluice_memory *memory, size_t at, size_t length, unsigned *released_by)
{
    struct sluice_segment segment = memory_segment((char *)sluice_memory_data(memory) + at, length);
    segment.memory = memory;
    segment.release = not_my_memory;
    segment.release_context = released_by;
    return segment;
}

TEST("records of a log are written past the page cache from memory that stays registered")
{
    enum { RECORD = 1 << 20, RECORDS = 6 };
    struct sluice_memory *memory;
    unsigned back = 0;
    begin(NULL);
    int log = pattern_file("/var/tmp", 0);
    if (fcntl(log, F_SETFL, O_DIRECT) < 0) {
        close(log);
        end();
        SKIP("/var/tmp has no O_DIRECT; it is to be had on ext4, XFS, btrfs");
    }
    fcntl(log, F_SETFL, 0);
    struct sluice_end *sink;
    CHECK_EQ(sluice_end_open(dup(log), SLUICE_END_OWN_FD | SLUICE_END_DIRECT, &sink), 0);
    CHECK_EQ(sluice_memory_new(2 * RECORD, &memory), 0);
    for (unsigned i = 0; i < RECORDS; i++) {
        size_t half = i % 2 * RECORD;
        struct sluice_segment segment = kept_segment(memory, half, RECORD, &back);
        pattern_fill((unsigned char *)sluice_memory_data(memory) + half, i * RECORD, RECORD);
        start_at = (uint64_t)i * RECORD;
        start(&segment, 1, sink, SLUICE_ROUTE_AUTO);
        finish();
        CHECK_EQ(outcome.result, 0);
        CHECK_EQ(outcome.receipt.routes[SLUICE_ROUTE_DIRECT].bytes, RECORD);
        CHECK_EQ(outcome.receipt.registered, RECORD);
        CHECK_EQ(outcome.receipt.pages, sluice_memory_pages(memory));
        CHECK_EQ(back, i + 1);
    }
    start_at = 0;
    CHECK_EQ(handed_over[IORING_OP_WRITE_FIXED], RECORDS);
    CHECK_EQ(registered, 1);
    CHECK_EQ(let_go, 0);
    sluice_memory_release(memory, NULL, 0);
    run_for(1);
    CHECK_EQ(let_go, 1);
    check_file(log, RECORDS * RECORD);
    close(log);
    sluice_end_close(sink);
    end();
}

TEST(
    "memory that is kept is lent by the ring again and again, registered once; what is given away is let go of at once")
{
    enum { SIZE = 2500000, TIMES = 3 };
    static const int errors[] = {0, ENOMEM};
    for (size_t e = 0; e < sizeof errors / sizeof *errors; e++) {
        struct sluice_memory *memory, *given;
        unsigned back = 0;
        int fds[2];
        size_t size;
        tcp_pair(fds);
        begin(NULL);
        refuse_memory = errors[e];
        struct sluice_end *sink = end_of(fds[0]);
        struct collector *collector = collector_start(fds[1], false);
        CHECK_EQ(sluice_memory_new(SIZE, &memory), 0);
        CHECK_EQ(sluice_memory_new(SIZE, &given), 0);
        for (unsigned i = 0; i < TIMES + 1; i++) {
            struct sluice_segment segment = kept_segment(i < TIMES ? memory : given, 0, SIZE, &back);
            if (i == TIMES) {
                segment.release = sluice_memory_release;
                segment.release_context = given;
            }
            pattern_fill(sluice_memory_data(i < TIMES ? memory : given), (size_t)i * SIZE, SIZE);
            start(&segment, 1, sink, SLUICE_ROUTE_URING_SEND_ZC);
            finish();
            CHECK_EQ(outcome.result, 0);
            CHECK_EQ(outcome.receipt.routes[SLUICE_ROUTE_URING_SEND_ZC].bytes, SIZE);
            CHECK_EQ(outcome.receipt.registered, errors[e] == 0 ? SIZE : 0);
            for (int wait = 0; wait < 500 && i < TIMES && back == i; wait++)
                run_for(2);
            CHECK(i == TIMES || back == i + 1);
        }
        CHECK_EQ(registered, errors[e] == 0 ? 2 : 0);
        CHECK((fixed_sends >= (TIMES + 1) * 3) == (errors[e] == 0));
        for (int wait = 0; wait < 500 && errors[e] == 0 && let_go == 0; wait++)
            run_for(2);
        CHECK_EQ(let_go, errors[e] == 0 ? 1 : 0);
        sluice_memory_release(memory, NULL, 0);
        sluice_loop_forget(loop, sink);
        sluice_end_close(sink);
        refuse_memory = 0;
        end();
        unsigned char *data = collector_finish(collector, &size);
        CHECK_EQ(size, (TIMES + 1) * SIZE);
        for (size_t i = 0; i < size; i++)
            if (data[i] != pattern_byte(i))
                CHECK_FAIL("byte %zu is wrong", i);
        free(data);
        close(fds[1]);
    }
}

TEST("of more memory than the ring has numbers for, what comes late is handed over by address")
{
    enum { MANY = 70, SIZE = 65536 };
    static struct sluice_memory *memories[MANY];
    unsigned back = 0;
    uint64_t sum = 0;
    begin(NULL);
    int to = pattern_file("/var/tmp", 0);
    struct sluice_end *sink = end_of(dup(to));
    for (unsigned i = 0; i < 2 * MANY; i++) {
        struct sluice_memory **memory = &memories[i % MANY];
        if (i == MANY) { /* every other is freed, and its number is free again */
            for (unsigned k = 0; k < MANY; k += 2) {
                sluice_memory_release(memories[k], NULL, 0);
                CHECK_EQ(sluice_memory_new(SIZE, &memories[k]), 0);
            }
        } else if (i < MANY) {
            CHECK_EQ(sluice_memory_new(SIZE, memory), 0);
        }
        pattern_fill(sluice_memory_data(*memory), (size_t)i * SIZE, SIZE);
        struct sluice_segment segment = kept_segment(*memory, 0, SIZE, &back);
        start_at = SLUICE_APPEND;
        start(&segment, 1, sink, SLUICE_ROUTE_AUTO);
        start_at = 0;
        finish();
        CHECK_EQ(outcome.result, 0);
        CHECK(outcome.receipt.registered == SIZE || outcome.receipt.registered == 0);
        sum += outcome.receipt.registered;
        if (i < MANY)
            CHECK_EQ(sum, (i < 64 ? i + 1 : 64) * (uint64_t)SIZE);
    }
    CHECK(sum > (64 + 64 - 3) * (uint64_t)SIZE && registered <= 64 + MANY / 2);
    CHECK(let_go >= MANY / 2 - 3);
    CHECK_EQ(back, 2 * MANY);
    check_file(to, 2 * MANY * SIZE);
    for (unsigned i = 0; i < MANY; i++)
        sluice_memory_release(memories[i], NULL, 0);
    close(to);
    sluice_end_close(sink);
    end();
}

/* ---- Where there is none -------------------------------------------------------------------------------------- */

static int refusal;

static int refuse(unsigned size, void *parameters)
{
    (void)size, (void)parameters;
    errno = refusal;
    return -1;
}

TEST("where io_uring cannot be had the error says why and what to do, and a loop on epoll does without")
{
    static const int refusals[] = {ENOSYS, EPERM, EINVAL, ENOMEM};
    struct sys before = sys;
    sys.io_uring_setup = refuse;
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        struct sluice_error error = {0};
        char text[300];
        refusal = refusals[i];
        CHECK_EQ(sluice_loop_new(&on_ring, &loop), -refusal);
        CHECK_EQ(sluice_loop_probe(&on_ring, &error), -refusal);
        CHECK_EQ(error.code, -refusal);
        CHECK(error.reason != NULL && error.remedy != NULL);
        sluice_error_format(&error, text, sizeof text);
        CHECK(strstr(text, "io_uring_setup") != NULL);
        CHECK_EQ(sluice_loop_new(NULL, &loop), 0);
        sluice_loop_free(loop);
    }
    sys = before;
}

static bool lends_by_ring(void)
{
    int fds[2];
    size_t size;
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    struct collector *collector = collector_start(fds[1], false);
    lend(sink, SLUICE_ROUTE_URING_SEND_ZC);
    if (!outcome.done)
        finish();
    sluice_loop_forget(loop, sink);
    sluice_end_close(sink);
    free(collector_finish(collector, &size));
    close(fds[1]);
    return outcome.result == 0;
}

TEST("whoever names no loop gets a ring where receives by it are bounded, else epoll, and is told why")
{
    struct sluice_error error = {0};
    look(NULL);
    int bounded = sluice_loop_probe(NULL, &error);
    look_away();
    if (bounded < 0)
        SKIP("needs Linux 6.17, whose multishot receives can be bounded");
    CHECK_EQ(sluice_loop_new(NULL, &loop), 0);
    CHECK(lends_by_ring());
    sluice_loop_free(loop);

    look(not_bounded);
    CHECK_EQ(sluice_loop_probe(NULL, &error), -EOPNOTSUPP);
    CHECK(error.reason != NULL && strstr(error.reason, "6.17") != NULL);
    CHECK_EQ(sluice_loop_probe(&on_ring, NULL), 0);
    CHECK_EQ(sluice_loop_new(NULL, &loop), 0);
    CHECK(!lends_by_ring());
    sluice_loop_free(loop);
    look_away();
}

/* In a process of its own, as a user without privileges. Returns what sluice_loop_probe did there, 1 for "could not".
 */
static int probe_as_nobody(unsigned locked, int descriptors)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        struct rlimit lock = {locked, locked};
        if (descriptors >= 0) {
            struct rlimit files = {(rlim_t)descriptors, (rlim_t)descriptors};
            setrlimit(RLIMIT_NOFILE, &files);
        }
        if (setrlimit(RLIMIT_MEMLOCK, &lock) < 0 || setgroups(0, NULL) < 0 || setgid(65534) < 0 || setuid(65534) < 0)
            _exit(255);
        _exit(-sluice_loop_probe(&on_ring, NULL));
    }
    CHECK(child > 0);
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status));
    return WEXITSTATUS(status) == 255 ? 1 : -WEXITSTATUS(status);
}

TEST("a user without privileges has a ring with 8 MiB of lockable memory, and with none an error")
{
    if (geteuid() != 0)
        SKIP("needs root, to become nobody; run as root");
    int result = probe_as_nobody(0, -1);
    CHECK(result == -ENOMEM || result == 0); /* Linux 6.1 does not count rings */
    result = -ENOMEM; /* the kernel gives back what rings of this user's had only after a while */
    for (int i = 0; i < 100 && result == -ENOMEM; i++, usleep(20000))
        result = probe_as_nobody(40 << 10, -1); /* as the error says */
    CHECK_EQ(result, 0);
    CHECK_EQ(probe_as_nobody(8 << 20, -1), 0);
}

static rlim_t lockable;

/* As a user without privileges. Returns 0 if memory was lent as far as the limit allows. */
static int lend_as_nobody(void)
{
    int fds[2];
    struct rlimit limit = {lockable, lockable};
    uid_t user = 20000 + (uid_t)getpid() % 40000; /* what is locked counts for all of a user's processes */
    if (setrlimit(RLIMIT_MEMLOCK, &limit) < 0 || setgroups(0, NULL) < 0 || setresgid(user, user, user) < 0 ||
        setresuid(user, user, user) < 0)
        return 1;
    memlock_forget();
    if (sluice_loop_new(&on_ring, &loop) < 0)
        return 2;
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    struct collector *collector = collector_start(fds[1], false);
    struct sluice_memory *memory;
    unsigned back = 0;
    size_t size;
    if (sluice_memory_new(LENT, &memory) < 0)
        return 3;
    pattern_fill(sluice_memory_data(memory), 0, LENT);
    struct sluice_segment segment = memory_segment(sluice_memory_data(memory), LENT);
    segment.memory = memory;
    segment.release = not_my_memory;
    segment.release_context = &back;
    start(&segment, 1, sink, SLUICE_ROUTE_URING_SEND_ZC);
    finish();
    for (int i = 0; i < 500 && back == 0; i++)
        run_for(2);
    struct sluice_receipt receipt = outcome.receipt;
    bool lent = receipt.routes[SLUICE_ROUTE_URING_SEND_ZC].bytes == LENT;
    sluice_loop_forget(loop, sink);
    sluice_end_close(sink);
    sluice_memory_release(memory, NULL, 0);
    sluice_loop_free(loop);
    unsigned char *data = collector_finish(collector, &size);
    for (size_t i = 0; i < size; i++)
        if (data[i] != pattern_byte(i))
            return 4;
    free(data);
    if (outcome.result != 0 || back != 1 || size != LENT)
        return 5;
    if (lockable >= 8 << 20)
        return lent && receipt.registered == LENT ? 0 : 6;
    if (receipt.registered != 0 || receipt.fallback_count == 0)
        return 7;
    return strstr(receipt.fallbacks[0].reason, "may have 512 KiB in all") != NULL ? 0 : 8;
}

TEST("with little lockable memory a ring copies what it was to lend, and says how much it takes; with enough it lends")
{
    static const rlim_t limits[] = {512 << 10, 8 << 20};
    if (geteuid() != 0)
        SKIP("needs root, to become another user; run as root");
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        int status;
        lockable = limits[i];
        pid_t child = fork();
        if (child == 0)
            _exit(lend_as_nobody());
        CHECK(child > 0);
        CHECK_EQ(waitpid(child, &status, 0), child);
        CHECK(WIFEXITED(status));
        CHECK_EQ(WEXITSTATUS(status), 0);
    }
}

TEST("without a descriptor left there is no ring, and the error says so")
{
    if (geteuid() != 0)
        SKIP("needs root, to become nobody; run as root");
    CHECK_EQ(probe_as_nobody(8 << 20, 3), -EMFILE);
}

TEST("a thread of the kernel that polls for submissions carries transfers, too")
{
    enum { SIZE = 3 << 20 };
    struct sluice_loop_options polled = {
        .size = sizeof polled, .kind = SLUICE_LOOP_IO_URING, .flags = SLUICE_LOOP_SQPOLL};
    int fds[2];
    size_t size;
    unix_pair(fds);
    CHECK_EQ(sluice_loop_new(&polled, &loop), 0);
    struct collector *collector = collector_start(fds[1], true);
    struct sluice_end *file = end_of(pattern_file("/var/tmp", SIZE)), *sink = end_of(fds[0]);
    struct sluice_segment segment = file_segment(file, 0, SIZE);
    start(&segment, 1, sink, SLUICE_ROUTE_COPY);
    finish();
    CHECK_EQ(outcome.result, 0);
    sluice_loop_forget(loop, sink);
    sluice_end_close(sink);
    sluice_end_close(file);
    sluice_loop_free(loop);
    unsigned char *data = collector_finish(collector, &size);
    CHECK_EQ(size, SIZE);
    for (size_t i = 0; i < size; i++)
        CHECK(data[i] == pattern_byte(i));
    free(data);
    close(fds[1]);
}

int main(void)
{
    return run_all_on_loop(&on_ring);
}
