/* SPDX-License-Identifier: MIT
 *
 * SLUICE_FANOUT_FIRST on this kernel: a first sink that counts, and a shadow that may be lost for it. (test_tee.c has
 * it on a kernel that lies.)
 */
#include "../check.h"
#include "checked.h"
#include "fanout.h"
#include "pipes.h"
#include "world.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LARGE ((8u << 20) + 4321) /* more than window and socket buffers hold */

enum drive { RUN, STEP, EPOLL, RING, DRIVES };
enum place { TCP, UNIX, PIPE, PLACES };

/* ---- One source, the first sink, a shadow ------------------------------------------------------------------- */

struct end_told {
    int code;
    const char *reason;
    uint64_t delivered;
    struct sluice_receipt receipt;
};

struct scene {
    int feed;     /* the other side of the source */
    int peers[2]; /* of the sinks */
    struct sluice_end *source, *sinks[2];
    struct sluice_segment segments[2];
    struct sluice_error errors[2];
    struct sluice_transfer_options options;
    struct sluice_loop *loop;
    struct sluice_transfer *transfer;
    unsigned told;  /* how many ends */
    int told_of[3]; /* which, in order */
    struct end_told ends[2];
    bool cancels;
    bool keeps; /* the ends stay as they are */
    bool finished;
    int result;
};

static void pair_of(enum place place, int fds[2])
{
    int pipe[2];
    switch (place) {
    case TCP:
        tcp_pair(fds);
        break;
    case UNIX:
        unix_pair(fds);
        break;
    default:
        pipe_pair(pipe);
        fds[0] = pipe[1];
        fds[1] = pipe[0];
    }
}

/* Its end is the caller's again: closed there and then. */
static void sink_ended(void *context, unsigned sink, const struct sluice_error *error,
                       const struct sluice_receipt *receipt)
{
    struct scene *scene = context;
    CHECK(scene->told < 2 && scene->sinks[sink] != NULL && !scene->finished);
    scene->told_of[scene->told++] = (int)sink;
    scene->ends[sink] = (struct end_told){
        .code = error->code, .reason = error->reason, .delivered = error->delivered, .receipt = *receipt};
    CHECK_EQ(error->code, scene->errors[sink].code);
    if (scene->keeps)
        return;
    if (scene->loop != NULL)
        sluice_loop_forget(scene->loop, scene->sinks[sink]);
    sluice_end_close(scene->sinks[sink]);
    scene->sinks[sink] = NULL;
    if (scene->cancels)
        sluice_loop_transfer_cancel(scene->loop, scene->transfer);
}

static void open_scene(struct scene *scene, enum place from, enum place first, enum place shadow)
{
    int fds[2];
    memset(scene, 0, sizeof *scene);
    pair_of(from, fds);
    scene->feed = fds[0];
    scene->source = end_of(fds[1]);
    scene->segments[0] = memory_segment("", 0);
    scene->segments[1] = stream_segment(scene->source, SLUICE_UNTIL_END);
    for (int i = 0; i < 2; i++) {
        pair_of(i == 0 ? first : shadow, fds);
        scene->sinks[i] = end_of(fds[0]);
        scene->peers[i] = fds[1];
    }
    scene->options = (struct sluice_transfer_options){.size = sizeof scene->options,
                                                      .segments = scene->segments,
                                                      .segment_count = 2,
                                                      .sinks = scene->sinks,
                                                      .sink_count = 2,
                                                      .policy = SLUICE_FANOUT_FIRST,
                                                      .sink_errors = scene->errors,
                                                      .sink_ended = sink_ended,
                                                      .sink_context = scene};
}

static void close_scene(struct scene *scene)
{
    for (int i = 0; i < 2; i++) {
        sluice_end_close(scene->sinks[i]);
        if (scene->peers[i] >= 0)
            close(scene->peers[i]);
    }
    sluice_end_close(scene->source);
    if (scene->feed >= 0)
        close(scene->feed);
}

/* Step until the end, or until it waits and nothing comes for a while. */
static int step_on(struct scene *scene, struct sluice_transfer *transfer, int still_ms)
{
    struct sluice_waits waits;
    for (;;) {
        int result = sluice_transfer_step(transfer, &waits);
        if (result <= 0)
            return result;
        if (result != SLUICE_STEP_WAIT)
            continue;
        CHECK(waits.timeout == -1 ||
              (scene->told > 0 && scene->told_of[scene->told - 1] == 0)); /* nobody has a while */
        struct pollfd fds[SLUICE_WAITS_MAX];
        for (unsigned i = 0; i < waits.count; i++)
            fds[i] = (struct pollfd){.fd = waits.wait[i].fd,
                                     .events = waits.wait[i].kind == SLUICE_WAIT_READABLE ? POLLIN : POLLOUT};
        if (poll(fds, waits.count, waits.timeout >= 0 ? waits.timeout : still_ms) == 0 && waits.timeout < 0)
            return result;
    }
}

static void done(void *context, struct sluice_transfer *transfer, int result)
{
    struct scene *scene = context;
    (void)transfer;
    CHECK(!scene->finished);
    scene->finished = true;
    scene->result = result;
    sluice_loop_stop(scene->loop);
}

static void open_loop(struct scene *scene, enum drive how)
{
    struct sluice_loop_options options = {.size = sizeof options,
                                          .kind = how == RING ? SLUICE_LOOP_IO_URING : SLUICE_LOOP_EPOLL};
    if (sluice_loop_new(&options, &scene->loop) < 0) { /* no ring to be had: test_loop.c says so */
        options.kind = SLUICE_LOOP_EPOLL;
        CHECK_EQ(sluice_loop_new(&options, &scene->loop), 0);
    }
}

static void start_on_loop(struct scene *scene)
{
    int result = sluice_loop_transfer(scene->loop, &scene->options, done, scene, &scene->transfer, NULL, NULL);
    if (result != 0) {
        scene->finished = true;
        scene->result = result < 0 ? result : 0;
    }
}

static void close_loop(struct scene *scene)
{
    sluice_loop_forget(scene->loop, scene->source);
    for (int i = 0; i < 2; i++)
        if (scene->sinks[i] != NULL)
            sluice_loop_forget(scene->loop, scene->sinks[i]);
    sluice_loop_free(scene->loop);
    scene->loop = NULL;
}

static int carry_out(struct scene *scene, enum drive how)
{
    struct sluice_transfer *transfer;
    int result;
    switch (how) {
    case RUN:
        return sluice_transfer_run(&scene->options, NULL, NULL);
    case STEP:
        CHECK_EQ(sluice_transfer_new(&scene->options, &transfer, NULL), 0);
        result = step_on(scene, transfer, 10000);
        sluice_transfer_free(transfer);
        return result;
    default:
        open_loop(scene, how);
        start_on_loop(scene);
        if (!scene->finished)
            CHECK_EQ(sluice_loop_run(scene->loop), 0);
        close_loop(scene);
        return scene->result;
    }
}

static void finish(struct collector *collector, size_t from, size_t size)
{
    size_t got;
    unsigned char *data = collector_finish(collector, &got);
    CHECK_EQ(got, size);
    if (pattern_wrong(data, from, got) < got)
        CHECK_FAIL("byte %zu is wrong", pattern_wrong(data, from, got));
    free(data);
}

static void reset_peer(struct scene *scene, int sink)
{
    const struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    setsockopt(scene->peers[sink], SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(scene->peers[sink]);
    scene->peers[sink] = -1;
}

/* Else the kernel's grow to what the test sends. */
static void small_buffers(struct scene *scene, int sink)
{
    const int size = 1 << 16;
    setsockopt(sluice_end_fd(scene->sinks[sink]), SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    setsockopt(scene->peers[sink], SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
}

/* ---- Slow ones ---------------------------------------------------------------------------------------------- */

TEST(
    "a shadow that never reads is reset, its first bytes right, and the first goes on as if it were alone: from and to "
    "every kind, by tee and by copy, on every loop")
{
    for (int how = 0; how < DRIVES; how++)
        for (int turn = 0; turn < 2 * 2 * PLACES; turn++) {
            struct scene scene;
            const bool by_copy = turn % 2;
            open_scene(&scene, turn / 2 % 2 ? TCP : UNIX, (enum place)(turn / 4), TCP);
            scene.options.route = by_copy ? SLUICE_ROUTE_COPY : SLUICE_ROUTE_AUTO;
            small_buffers(&scene, 1);
            struct collector *collector = collector_start(scene.peers[0], false);
            struct feeder *feeder = feeder_start(scene.feed, 0, LARGE);
            scene.feed = -1;
            int result = carry_out(&scene, (enum drive)how);
            if (result != 0 || scene.told != 2)
                CHECK_FAIL("way %d, turn %d: result %d, %u told", how, turn, result, scene.told);
            CHECK_EQ(scene.ends[0].code, 0);
            CHECK_EQ(scene.ends[1].code, -ENOBUFS);
            CHECK_STR(scene.ends[1].reason, "the sink fell too far behind the first");
            CHECK_EQ(scene.ends[1].delivered, scene.ends[1].receipt.sent);
            CHECK(scene.ends[1].receipt.sent < LARGE);
            const struct sluice_receipt *receipt = &scene.ends[0].receipt;
            CHECK_EQ(receipt->sent, LARGE);
            CHECK_EQ(receipt->routes[SLUICE_ROUTE_SPLICE].bytes > 0, !by_copy);
            CHECK_EQ(receipt->routes[SLUICE_ROUTE_TEE].bytes > 0, !by_copy);
            CHECK_EQ(receipt->routes[SLUICE_ROUTE_COPY].bytes, by_copy ? LARGE : 0);
            CHECK_EQ(receipt->fallback_count, by_copy ? 0 : 1);
            CHECK_EQ(read_prefix(scene.peers[1]), -1);
            finish(collector, 0, LARGE);
            feeder_finish(feeder);
            close_scene(&scene);
        }
}

TEST("a slow first costs nobody a byte, and a fast shadow does not run away from it")
{
    for (int how = 0; how < DRIVES; how++)
        for (int by_copy = 0; by_copy < 2; by_copy++) {
            struct scene scene;
            const size_t size = 300000;
            open_scene(&scene, how % 2 ? TCP : UNIX, how / 2 ? UNIX : TCP, TCP); /* whose socket holds it all */
            small_buffers(&scene, 0);
            scene.options.route = by_copy ? SLUICE_ROUTE_COPY : SLUICE_ROUTE_AUTO;
            scene.options.window = 20000;
            struct collector *slow = collector_start(scene.peers[0], true),
                             *fast = collector_start(scene.peers[1], false);
            struct feeder *feeder = feeder_start(scene.feed, 0, size);
            scene.feed = -1;
            CHECK_EQ(carry_out(&scene, (enum drive)how), 0);
            CHECK_EQ(scene.told, 2);
            for (int i = 0; i < 2; i++) {
                CHECK_EQ(scene.ends[i].code, 0);
                CHECK_EQ(scene.ends[i].receipt.sent, size);
            }
            finish(slow, 0, size);
            finish(fast, 0, size);
            feeder_finish(feeder);
            close_scene(&scene);
        }
}

static void feed_pattern(struct scene *scene, size_t from, size_t size)
{
    static unsigned char bytes[1 << 16];
    CHECK(size <= sizeof bytes);
    pattern_fill(bytes, from, size);
    CHECK_EQ(write(scene->feed, bytes, size), size);
}

/* As much as the socket takes, for the test to read again. */
static size_t fill_up(struct scene *scene, int sink)
{
    static const char zeros[4096];
    size_t size = 0;
    for (ssize_t sent; (sent = send(sluice_end_fd(scene->sinks[sink]), zeros, sizeof zeros, MSG_DONTWAIT)) > 0;)
        size += (size_t)sent;
    return size;
}

static void read_away(int fd, size_t size)
{
    static char bytes[65536];
    while (size > 0) {
        struct pollfd readable = {.fd = fd, .events = POLLIN};
        CHECK(poll(&readable, 1, 5000) == 1);
        ssize_t got = read(fd, bytes, size < sizeof bytes ? size : sizeof bytes);
        CHECK(got > 0);
        size -= (size_t)got;
    }
}

TEST("while the first takes nothing the source is left alone, and the shadow gets no more than the first could")
{
    for (int by_copy = 0; by_copy < 2; by_copy++) {
        struct scene scene;
        struct sluice_transfer *transfer;
        char got[4096];
        open_scene(&scene, UNIX, UNIX, UNIX);
        scene.options.route = by_copy ? SLUICE_ROUTE_COPY : SLUICE_ROUTE_AUTO;
        scene.options.window = 1000;
        size_t filled = fill_up(&scene, 0);
        feed_pattern(&scene, 0, 600);
        CHECK_EQ(sluice_transfer_new(&scene.options, &transfer, NULL), 0);
        CHECK_EQ(step_on(&scene, transfer, 10), SLUICE_STEP_WAIT);
        CHECK_EQ(recv(scene.peers[1], got, sizeof got, MSG_DONTWAIT), 600);
        feed_pattern(&scene, 600, 3496);
        CHECK_EQ(step_on(&scene, transfer, 10), SLUICE_STEP_WAIT);
        CHECK_EQ(recv(scene.peers[1], got, sizeof got, MSG_DONTWAIT), -1);
        read_away(scene.peers[0], filled);
        CHECK_EQ(step_on(&scene, transfer, 10), SLUICE_STEP_WAIT);
        CHECK_EQ(recv(scene.peers[0], got, sizeof got, MSG_DONTWAIT), 4096);
        CHECK_EQ(pattern_wrong((unsigned char *)got, 0, 4096), 4096);
        CHECK_EQ(recv(scene.peers[1], got, sizeof got, MSG_DONTWAIT), 3496);
        CHECK_EQ(scene.told, 0);
        sluice_transfer_free(transfer);
        close_scene(&scene);
    }
}

/* In bytes of their own: more pieces than a pipe can hold. */
static void fall_behind(struct scene *scene, struct sluice_transfer *transfer, size_t from, size_t to)
{
    struct sluice_waits waits;
    char got[8];
    for (size_t i = from; i < to; i++) {
        feed_pattern(scene, i, 1);
        CHECK_EQ(sluice_transfer_step(transfer, &waits), SLUICE_STEP_WAIT);
        CHECK_EQ(recv(scene->peers[0], got, sizeof got, MSG_DONTWAIT), 1);
        CHECK(got[0] == (char)pattern_byte(i));
    }
}

TEST(
    "a shadow may be behind by a byte less than the window, in however small pieces, and is lost when it is the window "
    "behind, or more at once")
{
    uint64_t calls[4];
    for (int way = 0; way < 4; way++) {
        struct scene scene;
        struct sluice_transfer *transfer;
        struct sluice_waits waits;
        char got[1024];
        const size_t window = 600, more = way / 2 ? window : 1;
        open_scene(&scene, UNIX, UNIX, UNIX);
        scene.options.route = way % 2 ? SLUICE_ROUTE_COPY : SLUICE_ROUTE_AUTO;
        scene.options.window = window;
        fill_up(&scene, 1);
        CHECK_EQ(sluice_transfer_new(&scene.options, &transfer, NULL), 0);
        fall_behind(&scene, transfer, 0, window - 1);
        CHECK_EQ(scene.told, 0);
        feed_pattern(&scene, window - 1, more);
        CHECK_EQ(sluice_transfer_step(transfer, &waits), SLUICE_STEP_WAIT);
        CHECK_EQ(recv(scene.peers[0], got, sizeof got, MSG_DONTWAIT), more);
        CHECK_EQ(scene.told, 1); /* the first wants more, whether there is some or not */
        CHECK_EQ(scene.ends[1].code, -ENOBUFS);
        const enum sluice_route route = way % 2 ? SLUICE_ROUTE_COPY : SLUICE_ROUTE_TEE;
        const struct sluice_route_count *count = &sluice_transfer_receipt(transfer, 0)->routes[route];
        CHECK_EQ(count->bytes, window - 1 + more); /* read while the shadow was there */
        calls[way] = count->calls;
        if (way / 2)
            CHECK_EQ(calls[way], calls[way - 2]); /* in one piece, as a byte is */
        fall_behind(&scene, transfer, window - 1 + more, window + 9);
        sluice_transfer_free(transfer);
        close_scene(&scene);
    }
}

/* Everything that is there now. */
static size_t read_now(int fd)
{
    static char bytes[65536];
    size_t size = 0;
    for (ssize_t got; (got = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT)) > 0;)
        size += (size_t)got;
    return size;
}

TEST("a shadow that catches up does not take the first's turn")
{
    const size_t piece = 1 << 16;
    struct scene scene;
    struct sluice_transfer *transfer;
    struct sluice_waits waits;
    open_scene(&scene, UNIX, UNIX, UNIX);
    scene.options.turn = piece;
    CHECK_EQ(sluice_transfer_new(&scene.options, &transfer, NULL), 0);
    size_t fed = 0, shadow = 0;
    for (int round = 0; round < 30; round++) {
        feed_pattern(&scene, fed, piece);
        fed += piece;
        CHECK(sluice_transfer_step(transfer, &waits) > 0);
        CHECK_EQ(sluice_transfer_receipt(transfer, 0)->sent, fed);
        CHECK_EQ(read_now(scene.peers[0]), piece);
        if (round > 9) /* until then it does not read: more lies in the library than a turn moves */
            shadow += read_now(scene.peers[1]);
    }
    CHECK(sluice_transfer_step(transfer, &waits) > 0);
    CHECK_EQ(shadow + read_now(scene.peers[1]), fed);
    CHECK_EQ(scene.told, 0);
    sluice_transfer_free(transfer);
    close_scene(&scene);
}

struct steady {
    int fd;
    size_t got;
};

/* More slowly in all than the patience, but never so long nothing. */
static void *read_steadily(void *argument)
{
    struct steady *steady = argument;
    static char bytes[20000];
    for (;;) {
        struct pollfd readable = {.fd = steady->fd, .events = POLLIN};
        poll(&readable, 1, -1);
        ssize_t got = read(steady->fd, bytes, sizeof bytes);
        if (got <= 0)
            return NULL;
        steady->got += (size_t)got;
        usleep(15000);
    }
}

TEST("the first is told to have everything while a shadow is behind; that may finish, as long as it gets somewhere")
{
    for (int how = STEP; how < DRIVES; how++)
        for (int reads = 0; reads < (how == EPOLL ? 2 : 1); reads++) {
            struct scene scene;
            const size_t size = reads ? 700000 : 60000;
            open_scene(&scene, UNIX, TCP, UNIX);
            small_buffers(&scene, 1);
            scene.options.patience = reads ? 400 : 100;
            struct steady steady = {.fd = scene.peers[1]};
            size_t filled = fill_up(&scene, 1);
            struct feeder *feeder = feeder_start(scene.feed, 0, size);
            scene.feed = -1;
            struct collector *collector = collector_start(scene.peers[0], false);
            pthread_t thread;
            if (reads)
                CHECK_EQ(pthread_create(&thread, NULL, read_steadily, &steady), 0);
            CHECK_EQ(carry_out(&scene, (enum drive)how), 0);
            CHECK_EQ(scene.told, 2);
            CHECK_EQ(scene.told_of[0], 0);
            CHECK_EQ(scene.ends[0].code, 0);
            CHECK_EQ(scene.ends[1].code, reads ? 0 : -ENOBUFS);
            finish(collector, 0, size);
            feeder_finish(feeder);
            if (reads) {
                pthread_join(thread, NULL);
                CHECK_EQ(steady.got, filled + size);
            } else {
                CHECK_STR(scene.ends[1].reason, "the sink took nothing more after the first had everything");
            }
            close_scene(&scene);
        }
}

/* ---- Ones that fail ----------------------------------------------------------------------------------------- */

TEST("a shadow that resets while the first is blocked is lost alone, its unsent bytes with it")
{
    for (int by_copy = 0; by_copy < 2; by_copy++) {
        struct scene scene;
        struct sluice_transfer *transfer;
        open_scene(&scene, UNIX, UNIX, TCP);
        scene.options.route = by_copy ? SLUICE_ROUTE_COPY : SLUICE_ROUTE_AUTO;
        small_buffers(&scene, 1);
        size_t filled = fill_up(&scene, 0);
        while (fill_up(&scene, 1) > 0) /* it takes a little more when its peer's kernel has answered */
            usleep(5000);
        feed_pattern(&scene, 0, 50000);
        CHECK_EQ(sluice_transfer_new(&scene.options, &transfer, NULL), 0);
        CHECK_EQ(step_on(&scene, transfer, 10), SLUICE_STEP_WAIT);
        reset_peer(&scene, 1);
        CHECK_EQ(step_on(&scene, transfer, 10), SLUICE_STEP_WAIT);
        CHECK_EQ(scene.told, 1);
        CHECK(scene.ends[1].code == -ECONNRESET || scene.ends[1].code == -EPIPE);
        close(scene.feed);
        scene.feed = -1;
        read_away(scene.peers[0], filled);
        struct collector *collector = collector_start(scene.peers[0], false);
        CHECK_EQ(step_on(&scene, transfer, 5000), 0);
        sluice_transfer_free(transfer);
        finish(collector, 0, 50000);
        close_scene(&scene);
    }
}

TEST("a shadow that resets while the source is silent is noticed with the next byte, which the first gets")
{
    for (int how = EPOLL; how <= RING; how++)
        for (int by_copy = 0; by_copy < 2; by_copy++) {
            struct scene scene;
            open_scene(&scene, TCP, TCP, TCP);
            scene.options.route = by_copy ? SLUICE_ROUTE_COPY : SLUICE_ROUTE_AUTO;
            struct collector *collector = collector_start(scene.peers[0], false);
            feed_pattern(&scene, 0, 1000);
            open_loop(&scene, (enum drive)how);
            start_on_loop(&scene);
            CHECK(!scene.finished);
            reset_peer(&scene, 1);
            feed_pattern(&scene, 1000, 1000);
            close(scene.feed);
            scene.feed = -1;
            CHECK_EQ(sluice_loop_run(scene.loop), 0);
            close_loop(&scene);
            CHECK_EQ(scene.result, 0);
            CHECK_EQ(scene.told, 2);
            CHECK(scene.ends[1].code == -ECONNRESET || scene.ends[1].code == -EPIPE);
            finish(collector, 0, 2000);
            close_scene(&scene);
        }
}

TEST("a first that fails ends the transfer at once, whatever the shadow still has to get")
{
    for (int how = 0; how < DRIVES; how++) {
        struct scene scene;
        open_scene(&scene, UNIX, TCP, UNIX);
        fill_up(&scene, 1);
        feed_pattern(&scene, 0, 50000);
        reset_peer(&scene, 0);
        int result = carry_out(&scene, (enum drive)how);
        CHECK(result == -ECONNRESET || result == -EPIPE);
        CHECK_EQ(scene.told, 0);
        close_scene(&scene);
    }
}

TEST("a source that breaks ends the transfer when the first has what was read of it, though the shadow has not")
{
    for (int by_copy = 0; by_copy < 2; by_copy++) {
        struct scene scene;
        struct sluice_transfer *transfer;
        struct sluice_waits waits;
        const struct linger at_once = {.l_onoff = 1, .l_linger = 0};
        char got[8192];
        open_scene(&scene, TCP, UNIX, UNIX);
        scene.options.route = by_copy ? SLUICE_ROUTE_COPY : SLUICE_ROUTE_AUTO;
        fill_up(&scene, 1);
        feed_pattern(&scene, 0, 5000);
        CHECK_EQ(sluice_transfer_new(&scene.options, &transfer, NULL), 0);
        CHECK_EQ(step_on(&scene, transfer, 10), SLUICE_STEP_WAIT);
        CHECK_EQ(recv(scene.peers[0], got, sizeof got, MSG_DONTWAIT), 5000);
        setsockopt(scene.feed, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
        close(scene.feed);
        scene.feed = -1;
        CHECK_EQ(sluice_transfer_step(transfer, &waits), -ECONNRESET);
        CHECK_EQ(sluice_transfer_error(transfer)->side, SLUICE_SIDE_SOURCE);
        CHECK_EQ(scene.told, 0);
        sluice_transfer_free(transfer);
        close_scene(&scene);
    }
}

/* ---- One that is not there yet ------------------------------------------------------------------------------ */

/* A shadow whose connecting is under way: the listener's queue is full, and its kernel does not answer until that is
 * seen to. Returns the listener. */
static int connecting_shadow(struct scene *scene)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, 0) == 0);
    CHECK_EQ(getsockname(listener, (struct sockaddr *)&address, &size), 0);
    int before = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(connect(before, (struct sockaddr *)&address, size), 0);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    CHECK(connect(fd, (struct sockaddr *)&address, size) < 0 && errno == EINPROGRESS);
    sluice_end_close(scene->sinks[1]);
    close(scene->peers[1]);
    close(before);
    scene->sinks[1] = end_of(fd);
    scene->peers[1] = -1;
    return listener;
}

static struct collector *let_in(struct scene *scene, int listener)
{
    struct pollfd called = {.fd = listener, .events = POLLIN};
    CHECK_EQ(poll(&called, 1, 5000), 1);
    scene->peers[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    close(listener);
    return collector_start(scene->peers[1], false);
}

TEST("a shadow that is still connecting holds what comes, memory before the stream included, and gets it all")
{
    static unsigned char head[1000];
    struct scene scenes[3];
    struct sluice_transfer *transfers[2];
    struct collector *first[3];
    int listeners[3];
    const size_t size = 50000;
    pattern_fill(head, 0, sizeof head);
    for (int i = 0; i < 3; i++) {
        struct scene *scene = &scenes[i];
        open_scene(scene, UNIX, UNIX, UNIX);
        listeners[i] = connecting_shadow(scene);
        scene->segments[0] = memory_segment(head, sizeof head);
        scene->options.route = i == 1 ? SLUICE_ROUTE_COPY : SLUICE_ROUTE_AUTO;
        scene->options.patience = 10000;
        first[i] = collector_start(scene->peers[0], false);
        if (i == 2) {
            open_loop(scene, EPOLL);
            feed_pattern(scene, sizeof head, size);
            shutdown(scene->feed, SHUT_WR);
            start_on_loop(scene);
        } else {
            CHECK_EQ(sluice_transfer_new(&scene->options, &transfers[i], NULL), 0);
            for (size_t at = 0; at < size; at += 1000) {
                feed_pattern(scene, sizeof head + at, 1000);
                CHECK_EQ(step_on(scene, transfers[i], 0), SLUICE_STEP_WAIT);
            }
            CHECK_EQ(scene->told, 0);
            shutdown(scene->feed, SHUT_WR);
            struct sluice_waits waits;
            CHECK_EQ(sluice_transfer_step(transfers[i], &waits), SLUICE_STEP_WAIT);
        }
        CHECK_EQ(scene->told, 1);
        CHECK_EQ(scene->told_of[0], 0);
        CHECK_EQ(scene->ends[0].code, 0);
        finish(first[i], 0, sizeof head + size); /* it was closed when it had everything */
    }
    struct collector *shadows[3];
    for (int i = 0; i < 3; i++)
        close(accept(listeners[i], NULL, NULL)); /* within a second: then they call again */
    for (int i = 0; i < 3; i++)
        shadows[i] = let_in(&scenes[i], listeners[i]);
    for (int i = 0; i < 3; i++) {
        struct scene *scene = &scenes[i];
        if (i == 2) {
            CHECK_EQ(sluice_loop_run(scene->loop), 0);
            close_loop(scene);
            CHECK_EQ(scene->result, 0);
        } else {
            CHECK_EQ(step_on(scene, transfers[i], 5000), 0);
            sluice_transfer_free(transfers[i]);
        }
        CHECK_EQ(scene->told, 2);
        CHECK_EQ(scene->ends[1].code, 0);
        finish(shadows[i], 0, sizeof head + size);
        close_scene(scene);
    }
}

TEST("a shadow that is still connecting when the window is full, or is refused, is dropped, and the first gets it all")
{
    for (int how = 0; how < DRIVES; how++)
        for (int refused = 0; refused < 2; refused++) {
            struct scene scene;
            open_scene(&scene, TCP, TCP, UNIX);
            int listener = connecting_shadow(&scene);
            if (refused) { /* by a kernel that nobody listens to */
                struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
                socklen_t length = sizeof address;
                int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0),
                    held = socket(AF_INET, SOCK_STREAM, 0);
                CHECK_EQ(bind(held, (struct sockaddr *)&address, length), 0);
                CHECK_EQ(getsockname(held, (struct sockaddr *)&address, &length), 0);
                (void)connect(fd, (struct sockaddr *)&address, length);
                close(held);
                sluice_end_close(scene.sinks[1]);
                scene.sinks[1] = end_of(fd);
            }
            const size_t size = 3u << 20;
            struct collector *collector = collector_start(scene.peers[0], false);
            struct feeder *feeder = feeder_start(scene.feed, 0, size);
            scene.feed = -1;
            CHECK_EQ(carry_out(&scene, (enum drive)how), 0);
            CHECK_EQ(scene.told, 2);
            CHECK_EQ(scene.ends[1].receipt.sent, 0);
            if (refused)
                CHECK(scene.ends[1].code == -ECONNREFUSED || scene.ends[1].code == -EPIPE);
            else
                CHECK_EQ(scene.ends[1].code, -ENOBUFS);
            finish(collector, 0, size);
            feeder_finish(feeder);
            close(listener);
            close_scene(&scene);
        }
}

/* ---- No pipes ----------------------------------------------------------------------------------------------- */

/* Until the limit is met. Returns how many. */
static int take_descriptors(int held[], int most)
{
    int count = 0;
    for (int fd; count < most && (fd = dup(STDIN_FILENO)) >= 0;)
        held[count++] = fd;
    CHECK(count < most);
    return count;
}

static void both_by_copy(bool no_descriptors, int error, const char *reason)
{
    struct scene scene;
    struct rlimit before, few = {.rlim_cur = 64};
    int held[64], count = 0;
    pipes_drain();
    open_scene(&scene, TCP, UNIX, TCP);
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    few.rlim_max = before.rlim_max;
    if (no_descriptors) {
        CHECK_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
        count = take_descriptors(held, 64);
    }
    struct collector *collectors[2] = {collector_start(scene.peers[0], false), collector_start(scene.peers[1], false)};
    struct feeder *feeder = feeder_start(scene.feed, 0, LARGE);
    scene.feed = -1;
    int result = carry_out(&scene, STEP);
    CHECK_EQ(result, 0);
    finish(collectors[0], 0, LARGE);
    feeder_finish(feeder);
    const struct sluice_receipt *receipt = &scene.ends[0].receipt;
    CHECK_EQ(receipt->routes[SLUICE_ROUTE_TEE].bytes, 0);
    CHECK(receipt->routes[SLUICE_ROUTE_COPY].bytes > 0);
    CHECK_EQ(receipt->fallbacks[0].from, SLUICE_ROUTE_TEE);
    CHECK_EQ(receipt->fallbacks[0].to, SLUICE_ROUTE_COPY);
    CHECK_EQ(receipt->fallbacks[0].error, error);
    CHECK(strstr(receipt->fallbacks[0].reason, reason) != NULL);
    size_t got; /* its reader is a thread of this machine's: it may have been too slow */
    unsigned char *data = collector_finish(collectors[1], &got);
    CHECK(got == LARGE || scene.ends[1].code == -ENOBUFS);
    CHECK_EQ(pattern_wrong(data, 0, got), got);
    free(data);
    while (count > 0)
        close(held[--count]);
    setrlimit(RLIMIT_NOFILE, &before);
    close_scene(&scene);
}

/* One sink, some bytes. Returns the receipt. */
static struct sluice_receipt relay_some(struct scene *scene)
{
    struct sluice_segment stream = stream_segment(scene->source, 50000);
    struct sluice_transfer_options options = one_to_one(&stream, &scene->sinks[0], SLUICE_ROUTE_AUTO);
    struct sluice_receipt receipt;
    static unsigned char got[50000];
    feed_pattern(scene, 0, sizeof got);
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    CHECK_EQ(recv(scene->peers[0], got, sizeof got, MSG_WAITALL), sizeof got);
    CHECK_EQ(pattern_wrong(got, 0, sizeof got), sizeof got);
    return receipt;
}

TEST("a pair that copied for want of a pipe splices again when there is one")
{
    struct scene scene;
    struct rlimit before, few = {.rlim_cur = 64};
    int held[64];
    pipes_drain();
    open_scene(&scene, UNIX, UNIX, UNIX);
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    few.rlim_max = before.rlim_max;
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    int count = take_descriptors(held, 64);
    struct sluice_receipt receipt = relay_some(&scene);
    while (count > 0)
        close(held[--count]);
    setrlimit(RLIMIT_NOFILE, &before);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY].bytes, 50000);
    CHECK_EQ(receipt.fallbacks[0].error, EMFILE);
    receipt = relay_some(&scene);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_SPLICE].bytes, 50000);
    close_scene(&scene);
}

TEST("without descriptors for pipes both go by copy, and the receipt says why")
{
    both_by_copy(true, EMFILE, "no pipe is to be had");
}

/* pipe(7): past pipe-user-pages-soft (16,384 pages) a user's new pipes have two pages. Root is exempt. */
TEST("for a user whose pages for pipes are used up all goes by copy, to one sink, too, and the receipt says why")
{
    if (geteuid() != 0)
        SKIP("takes root, to become another user with pipes of its own");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        struct rlimit files = {4096, 4096};
        int last[2] = {-1, -1};
        if (setrlimit(RLIMIT_NOFILE, &files) < 0 || setgid(65534) < 0 || setuid(65534) < 0)
            _exit(3);
        for (int i = 0; i < 1500; i++)
            if (pipe(last) < 0)
                _exit(4);
        if (fcntl(last[1], F_GETPIPE_SZ) > 8192)
            _exit(5);
        if (setjmp(check_escape) != 0) {
            printf("# %s\n", check_message);
            fflush(stdout);
            _exit(6);
        }
        both_by_copy(false, ENOMEM, "pipe-user-pages-soft");
        struct scene scene;
        open_scene(&scene, UNIX, UNIX, UNIX);
        struct sluice_receipt receipt = relay_some(&scene);
        CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY].bytes, 50000);
        CHECK_EQ(receipt.fallbacks[0].from, SLUICE_ROUTE_SPLICE);
        CHECK_EQ(receipt.fallbacks[0].error, ENOMEM);
        CHECK(strstr(receipt.fallbacks[0].reason, "pipe-user-pages-soft") != NULL);
        _exit(0);
    }
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), 0);
}

/* ---- On a loop ---------------------------------------------------------------------------------------------- */

struct receiver {
    struct scene *scene;
    unsigned char early[1 << 16];
    size_t received;
};

static void on_bytes(void *context, const char *data, ssize_t length)
{
    struct receiver *receiver = context;
    CHECK(length > 0);
    memcpy(receiver->early + receiver->received, data, (size_t)length);
    receiver->received += (size_t)length;
    sluice_loop_receive_pause(receiver->scene->loop, receiver->scene->source);
    sluice_loop_stop(receiver->scene->loop);
}

static void stop(void *context)
{
    sluice_loop_stop(context);
}

TEST("what a loop had received of the source already comes first, to both, also what nobody was given yet")
{
    for (int how = EPOLL; how <= RING; how++)
        for (int by_copy = 0; by_copy < 2; by_copy++) {
            struct scene scene;
            static struct receiver receiver;
            const size_t size = 40000;
            open_scene(&scene, TCP, TCP, UNIX);
            receiver = (struct receiver){.scene = &scene};
            open_loop(&scene, (enum drive)how);
            CHECK_EQ(sluice_loop_receive(scene.loop, scene.source, 1000, on_bytes, &receiver), 0);
            feed_pattern(&scene, 0, 20000);
            CHECK_EQ(sluice_loop_run(scene.loop), 0);
            CHECK(receiver.received > 0 && receiver.received < 20000);
            feed_pattern(&scene, 20000, 20000);
            struct sluice_timer timer = {0};
            sluice_timer_start(scene.loop, &timer, 1, stop, scene.loop);
            CHECK_EQ(sluice_loop_run(scene.loop), 0);
            close(scene.feed);
            scene.feed = -1;
            scene.options.route = by_copy ? SLUICE_ROUTE_COPY : SLUICE_ROUTE_AUTO;
            scene.segments[0] = memory_segment(receiver.early, receiver.received);
            if (by_copy)
                scene.segments[1].length = size - receiver.received;
            struct collector *first = collector_start(scene.peers[0], false),
                             *shadow = collector_start(scene.peers[1], true);
            start_on_loop(&scene);
            if (!scene.finished)
                CHECK_EQ(sluice_loop_run(scene.loop), 0);
            close_loop(&scene);
            CHECK_EQ(scene.result, 0);
            finish(first, 0, size);
            finish(shadow, 0, size);
            for (int i = 0; i < 2; i++)
                CHECK_EQ(scene.ends[i].receipt.sent, size);
            close_scene(&scene);
        }
}

TEST("cancelled from within sink_ended a transfer is done once, after that")
{
    for (int how = EPOLL; how <= RING; how++) {
        struct scene scene;
        open_scene(&scene, TCP, UNIX, TCP);
        scene.cancels = true;
        open_loop(&scene, (enum drive)how);
        start_on_loop(&scene);
        CHECK(!scene.finished);
        reset_peer(&scene, 1);
        feed_pattern(&scene, 0, 100);
        CHECK_EQ(sluice_loop_run(scene.loop), 0);
        CHECK(scene.finished);
        CHECK_EQ(scene.result, -ECANCELED);
        CHECK_EQ(scene.told, 1);
        close_loop(&scene);
        close_scene(&scene);
    }
}

TEST("an end that has ended and is kept tells the transfer nothing any more")
{
    for (int how = EPOLL; how <= RING; how++) {
        struct scene scene;
        struct sluice_timer timer = {0};
        const size_t size = 3u << 20;
        open_scene(&scene, UNIX, UNIX, UNIX);
        scene.keeps = true;
        size_t filled = fill_up(&scene, 1);
        struct collector *collector = collector_start(scene.peers[0], false);
        struct feeder *feeder = feeder_start(scene.feed, 0, size);
        scene.feed = -1;
        open_loop(&scene, (enum drive)how);
        start_on_loop(&scene);
        if (!scene.finished)
            CHECK_EQ(sluice_loop_run(scene.loop), 0);
        CHECK_EQ(scene.result, 0);
        CHECK_EQ(scene.ends[1].code, -ENOBUFS);
        read_away(scene.peers[1], filled); /* it can be written to again */
        sluice_timer_start(scene.loop, &timer, 1, stop, scene.loop);
        CHECK_EQ(sluice_loop_run(scene.loop), 0);
        shutdown(sluice_end_fd(scene.sinks[0]), SHUT_WR);
        finish(collector, 0, size);
        feeder_finish(feeder);
        close_loop(&scene);
        close_scene(&scene);
    }
}

static void read_it_all(void *context)
{
    struct scene *scene = context;
    static char bytes[65536];
    while (read(scene->peers[1], bytes, sizeof bytes) > 0)
        ;
}

TEST("a transfer that is done before a slow sink's patience is over leaves no timer behind")
{
    for (int how = EPOLL; how <= RING; how++) {
        struct scene scene;
        struct sluice_timer timer = {0};
        open_scene(&scene, UNIX, UNIX, UNIX);
        scene.options.policy = SLUICE_FANOUT_DROP;
        scene.options.window = 100;
        scene.options.patience = 300;
        fill_up(&scene, 1);
        feed_pattern(&scene, 0, 1000);
        close(scene.feed);
        scene.feed = -1;
        open_loop(&scene, (enum drive)how);
        start_on_loop(&scene);
        CHECK(!scene.finished);
        sluice_timer_start(scene.loop, &timer, 1, read_it_all, &scene);
        CHECK_EQ(sluice_loop_run(scene.loop), 0);
        CHECK_EQ(scene.result, 0);
        CHECK_EQ(scene.ends[1].code, 0);
        sluice_timer_start(scene.loop, &timer, 500, stop, scene.loop);
        CHECK_EQ(sluice_loop_run(scene.loop), 0);
        close_loop(&scene);
        close_scene(&scene);
    }
}

CHECK_MAIN()
