/* SPDX-License-Identifier: MIT
 *
 * sluice's own loop with real sockets, on epoll and, as test-lib-loop io_uring, on io_uring (numbered: with numbers
 * instead of descriptors): the same tests. Timers by a clock of the test's.
 */
#include "../check.h"
#include "checked.h"
#include "sys.h"
#include "timers.h"
#include "world.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/vfs.h>
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

static uint64_t milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void stop(void *context)
{
    (void)context;
    sluice_loop_stop(loop);
}

/* Run for a while; tests that wait for something stop the loop themselves, and fail if this ran out. */
static struct sluice_timer limit;
static bool ran_out;

static void out_of_time(void *context)
{
    (void)context;
    ran_out = true;
    sluice_loop_stop(loop);
}

static void run_until_stopped(void)
{
    ran_out = false;
    sluice_timer_start(loop, &limit, 10000, out_of_time, NULL);
    CHECK_EQ(sluice_loop_run(loop), 0);
    sluice_timer_stop(loop, &limit);
    CHECK(!ran_out);
}

static void run_for(unsigned time)
{
    sluice_timer_start(loop, &limit, time, stop, NULL);
    CHECK_EQ(sluice_loop_run(loop), 0);
    sluice_timer_stop(loop, &limit);
}

static void reset(int fd)
{
    struct linger linger = {.l_onoff = 1};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(fd);
}

/* ---- Receiving ------------------------------------------------------------------------------------------------ */

struct inbox {
    struct sluice_end *end;
    size_t size, calls;
    size_t largest;
    ssize_t last; /* 0 or a negative errno once it ended; 1 before */
    bool wrong, pause_each, close_at_once;
    size_t stop_at;
};

static void received(void *context, const char *data, ssize_t length)
{
    struct inbox *inbox = context;
    inbox->calls++;
    if (length <= 0) {
        inbox->last = length;
        sluice_loop_stop(loop);
        return;
    }
    for (ssize_t i = 0; i < length; i++)
        inbox->wrong |= (unsigned char)data[i] != pattern_byte(inbox->size + (size_t)i);
    inbox->size += (size_t)length;
    if ((size_t)length > inbox->largest)
        inbox->largest = (size_t)length;
    if (inbox->size >= inbox->stop_at && inbox->stop_at > 0)
        sluice_loop_stop(loop);
    if (inbox->pause_each)
        sluice_loop_receive_pause(loop, inbox->end);
    if (inbox->close_at_once) {
        sluice_loop_forget(loop, inbox->end);
        sluice_end_close(inbox->end);
        inbox->end = NULL;
        sluice_loop_stop(loop);
    }
}

static void send_pattern(int fd, size_t size)
{
    static unsigned char bytes[1 << 20];
    pattern_fill(bytes, 0, size);
    CHECK_EQ(write(fd, bytes, size), size);
}

static void open_inbox(struct inbox *inbox, int fd, size_t max)
{
    inbox->last = 1;
    inbox->end = end_of(fd);
    CHECK_EQ(sluice_loop_receive(loop, inbox->end, max, received, inbox), 0);
}

static void close_inbox(struct inbox *inbox)
{
    sluice_loop_forget(loop, inbox->end);
    sluice_end_close(inbox->end);
}

TEST("what arrives is given in pieces of at most the size asked for, and then its end")
{
    for (int kind = 0; kind < 3; kind++) {
        struct inbox inbox = {0};
        int fds[2];
        begin();
        if (kind == 2) {
            int pipe[2];
            pipe_pair(pipe);
            fds[0] = pipe[1];
            fds[1] = pipe[0];
        } else {
            (kind == 0 ? tcp_pair : unix_pair)(fds);
        }
        open_inbox(&inbox, fds[1], 1000);
        send_pattern(fds[0], 34567);
        close(fds[0]); /* the end of data is there together with the data */
        run_until_stopped();
        CHECK_EQ(inbox.last, 0);
        CHECK_EQ(inbox.size, 34567);
        CHECK_EQ(inbox.largest, 1000);
        CHECK(!inbox.wrong);
        size_t calls = inbox.calls;
        run_for(130);
        CHECK_EQ(inbox.calls, calls); /* the end is said once */
        close_inbox(&inbox);
        end();
    }
}

TEST("pieces that come one after the other are all received")
{
    struct inbox inbox = {0};
    int fds[2];
    begin();
    tcp_pair(fds);
    open_inbox(&inbox, fds[1], 0);
    struct feeder *feeder = feeder_start(fds[0], 0, 3 << 20);
    run_until_stopped();
    feeder_finish(feeder);
    CHECK_EQ(inbox.last, 0);
    CHECK_EQ(inbox.size, 3 << 20);
    CHECK(inbox.largest <= 16 << 10);
    CHECK(!inbox.wrong);
    close_inbox(&inbox);
    end();
}

TEST("a paused receiver gets nothing until it is resumed, and then everything")
{
    struct inbox inbox = {.pause_each = true};
    int fds[2];
    begin();
    tcp_pair(fds);
    open_inbox(&inbox, fds[1], 100);
    send_pattern(fds[0], 1000);
    close(fds[0]);
    for (size_t i = 1; i <= 10; i++) {
        run_for(i < 3 ? 130 : 1);
        CHECK_EQ(inbox.calls, i);
        CHECK_EQ(inbox.size, 100 * i);
        sluice_loop_receive_resume(loop, inbox.end);
    }
    run_until_stopped();
    CHECK_EQ(inbox.last, 0);
    CHECK(!inbox.wrong);
    close_inbox(&inbox);
    end();
}

static struct sluice_end *handed;
static bool carried;

static void take_head(void *context, const char *data, ssize_t length)
{
    size_t *size = context;
    CHECK(length > 0);
    for (ssize_t i = 0; i < length; i++)
        CHECK((unsigned char)data[i] == pattern_byte(*size + (size_t)i));
    *size += (size_t)length;
    sluice_loop_receive_pause(loop, handed);
    sluice_loop_stop(loop);
}

static void carried_on(void *context, struct sluice_transfer *transfer, int result)
{
    (void)transfer;
    *(int *)context = result;
    carried = true;
    sluice_loop_stop(loop);
}

TEST("a transfer from a paused receiver's end begins with the first byte that the receiver has not seen")
{
    for (int route = 0; route < 2; route++) {
        enum { SIZE = 300000 };
        int in[2], out[2], result = 1;
        size_t head = 0, rest;
        begin();
        tcp_pair(in);
        tcp_pair(out);
        handed = end_of(in[1]);
        struct sluice_end *sink = end_of(out[0]);
        struct feeder *feeder = feeder_start(in[0], 0, SIZE);
        usleep(20000); /* more is there than the receiver takes */
        CHECK_EQ(sluice_loop_receive(loop, handed, 1000, take_head, &head), 0);
        run_until_stopped();
        CHECK_EQ(head, 1000);
        struct collector *collector = collector_start(out[1], false);
        struct sluice_segment segment = stream_segment(handed, SLUICE_UNTIL_END);
        struct sluice_transfer_options options =
            one_to_one(&segment, &sink, route == 0 ? SLUICE_ROUTE_AUTO : SLUICE_ROUTE_COPY);
        carried = false;
        if (sluice_loop_transfer(loop, &options, carried_on, &result, NULL, NULL, NULL) == 0)
            run_until_stopped();
        else
            result = 0;
        CHECK_EQ(result, 0);
        feeder_finish(feeder);
        sluice_loop_forget(loop, handed);
        sluice_loop_forget(loop, sink);
        sluice_end_close(handed);
        sluice_end_close(sink);
        unsigned char *data = collector_finish(collector, &rest);
        CHECK_EQ(rest, SIZE - 1000);
        CHECK_EQ(pattern_wrong(data, 1000, rest), rest);
        free(data);
        close(out[1]);
        end();
    }
}

TEST("a paused receiver learns of a reset at once")
{
    struct inbox inbox = {0};
    int fds[2];
    begin();
    tcp_pair(fds);
    open_inbox(&inbox, fds[1], 0);
    sluice_loop_receive_pause(loop, inbox.end);
    send_pattern(fds[0], 10);
    run_for(1);
    CHECK_EQ(inbox.calls, 0);
    reset(fds[0]);
    run_until_stopped();
    CHECK_EQ(inbox.last, -ECONNRESET);
    CHECK_EQ(inbox.size, 0);
    close_inbox(&inbox);
    end();
}

TEST("an orderly end does not reach a paused receiver before it is resumed")
{
    struct inbox inbox = {0};
    int fds[2];
    begin();
    tcp_pair(fds);
    open_inbox(&inbox, fds[1], 0);
    sluice_loop_receive_pause(loop, inbox.end);
    close(fds[0]);
    run_for(1);
    CHECK_EQ(inbox.calls, 0);
    sluice_loop_receive_resume(loop, inbox.end);
    run_until_stopped();
    CHECK_EQ(inbox.last, 0);
    close_inbox(&inbox);
    end();
}

TEST("a receiver may forget and close its end, also when more is waiting")
{
    struct inbox inbox = {.close_at_once = true};
    int fds[2], before = open_descriptors();
    begin();
    tcp_pair(fds);
    open_inbox(&inbox, fds[1], 100);
    send_pattern(fds[0], 1000);
    run_until_stopped();
    CHECK_EQ(inbox.calls, 1);
    close(fds[0]);
    run_for(1);
    CHECK_EQ(inbox.calls, 1);
    end();
    CHECK_EQ(open_descriptors(), before);
}

/* Two ends with events of the same turn: whichever is called first closes the other. */
static struct sluice_end *rivals[2];
static int rival_calls;

static void close_rival(void *context, const char *data, ssize_t length)
{
    struct sluice_end **other = context;
    (void)data, (void)length;
    rival_calls++;
    sluice_loop_forget(loop, *other);
    sluice_end_close(*other);
    *other = NULL;
}

TEST("an end closed by another's callback is not called, though its event is of the same turn")
{
    int a[2], b[2];
    begin();
    rival_calls = 0;
    unix_pair(a);
    unix_pair(b);
    rivals[0] = end_of(a[1]);
    rivals[1] = end_of(b[1]);
    CHECK_EQ(sluice_loop_receive(loop, rivals[0], 0, close_rival, &rivals[1]), 0);
    CHECK_EQ(sluice_loop_receive(loop, rivals[1], 0, close_rival, &rivals[0]), 0);
    send_pattern(a[0], 10);
    send_pattern(b[0], 10);
    run_for(1);
    CHECK_EQ(rival_calls, 1);
    for (int i = 0; i < 2; i++) {
        if (rivals[i] != NULL)
            sluice_loop_forget(loop, rivals[i]);
        sluice_end_close(rivals[i]);
    }
    close(a[0]);
    close(b[0]);
    end();
}

/* ---- Transfers ------------------------------------------------------------------------------------------------ */

struct job {
    struct sluice_transfer *transfer;
    struct sluice_end *source, *sink;
    int result, ended; /* ended: 1 for the first that did, 2 for the second, ... */
    int peer;
    struct collector *collector;
    struct sluice_receipt receipt;
    struct job *cancels; /* from its done callback */
    bool closes;
};

static atomic_int jobs_ended;
static int jobs_left;

static void job_done(void *context, struct sluice_transfer *transfer, int result)
{
    struct job *job = context;
    job->result = result;
    job->ended = ++jobs_ended;
    job->receipt = *sluice_transfer_receipt(transfer, 0);
    job->transfer = NULL;
    if (job->closes) {
        sluice_loop_forget(loop, job->sink);
        sluice_end_close(job->sink);
        sluice_end_close(job->source);
        job->sink = job->source = NULL;
    }
    if (job->cancels != NULL && job->cancels->transfer != NULL)
        sluice_loop_transfer_cancel(loop, job->cancels->transfer);
    if (--jobs_left == 0)
        sluice_loop_stop(loop);
}

static void job_start(struct job *job, struct sluice_segment segment, int sink, unsigned flags, uint64_t turn)
{
    job->source = segment.end;
    if (job->sink == NULL)
        job->sink = end_of(sink);
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = &segment,
                                              .segment_count = 1,
                                              .sinks = &job->sink,
                                              .sink_count = 1,
                                              .flags = flags,
                                              .turn = turn};
    const struct sluice_receipt *receipt;
    int result = sluice_loop_transfer(loop, &options, job_done, job, &job->transfer, &receipt, NULL);
    if (result != 0) {
        job->receipt = *receipt;
        job->result = result < 0 ? result : 0;
        job->ended = ++jobs_ended;
    } else {
        jobs_left++;
    }
}

static void job_close(struct job *job)
{
    if (job->sink != NULL)
        sluice_loop_forget(loop, job->sink);
    if (job->source != NULL)
        sluice_loop_forget(loop, job->source);
    sluice_end_close(job->sink);
    sluice_end_close(job->source);
}

TEST("a small transfer that comes later overtakes a large one on the same loop")
{
    struct job large = {0}, small = {0};
    int a[2], b[2];
    begin();
    jobs_ended = jobs_left = 0;
    tcp_pair(a);
    tcp_pair(b);
    int file = memfd_create("large", MFD_CLOEXEC);
    CHECK_EQ(ftruncate(file, 100 << 20), 0);
    struct collector *la = collector_start(a[1], false), *lb = collector_start(b[1], false);
    job_start(&large, file_segment(end_of(file), 0, 100 << 20), a[0], 0, 0);
    job_start(&small, file_segment(end_of(pattern_file(NULL, 3 << 20)), 0, 3 << 20), b[0], 0, 64 << 10);
    CHECK_EQ(large.ended, 0);
    run_until_stopped();
    CHECK_EQ(small.ended, 1);
    CHECK_EQ(large.ended, 2);
    CHECK_EQ(small.result, 0);
    CHECK_EQ(large.result, 0);
    CHECK_EQ(large.receipt.bytes, 100 << 20);
    job_close(&large);
    job_close(&small);
    size_t size;
    free(collector_finish(la, &size));
    CHECK_EQ(size, 100 << 20);
    free(collector_finish(lb, &size));
    CHECK_EQ(size, 3 << 20);
    close(a[1]);
    close(b[1]);
    end();
}

/* Transfers that never wait: into /dev/null. */
#define CROWD_MAX 1500
#define CROWD_BODY (4u << 20)

static struct {
    struct job jobs[CROWD_MAX];
    struct sluice_end *file;
    unsigned count, turns;
    uint64_t sent, most, longest; /* sent by all; at most by all in a turn of the loop; at most by one */
    uint64_t first_most, first_least;
    uint64_t before[CROWD_MAX];
} crowd;

static void crowd_turn(void *context)
{
    uint64_t all = 0;
    (void)context;
    for (unsigned i = 0; i < crowd.count; i++) {
        const struct job *job = &crowd.jobs[i];
        uint64_t sent = job->transfer != NULL ? sluice_transfer_receipt(job->transfer, 0)->sent : CROWD_BODY;
        if (sent - crowd.before[i] > crowd.longest)
            crowd.longest = sent - crowd.before[i];
        crowd.before[i] = sent;
        all += sent;
    }
    if (all - crowd.sent > crowd.most)
        crowd.most = all - crowd.sent;
    crowd.sent = all;
    crowd.turns++;
}

/* A turn ends after the step that fills it. What interrupts a splice makes it give less than it could, and the step
 * after it goes beyond the turn: a stop and its end (seen on epoll), a tracer, a ring that was closed and gives its
 * thread work to do. */
#define CROWD_SLACK (1u << 20)

/* Start count transfers before the loop has a turn, as requests that arrive together do, and run them to their ends. */
static void crowd_run(unsigned count)
{
    begin();
    memset(&crowd, 0, sizeof crowd);
    crowd.count = count;
    crowd.first_least = UINT64_MAX;
    jobs_ended = jobs_left = 0;
    int file = memfd_create("crowd", MFD_CLOEXEC);
    CHECK_EQ(ftruncate(file, CROWD_BODY), 0);
    crowd.file = end_of(file);
    for (unsigned i = 0; i < count; i++) {
        job_start(&crowd.jobs[i], file_segment(crowd.file, 0, CROWD_BODY), open("/dev/null", O_WRONLY | O_CLOEXEC), 0,
                  0);
        CHECK_EQ(crowd.jobs[i].ended, 0);
        crowd.before[i] = sluice_transfer_receipt(crowd.jobs[i].transfer, 0)->sent;
        crowd.sent += crowd.before[i];
        if (crowd.before[i] > crowd.first_most)
            crowd.first_most = crowd.before[i];
        if (crowd.before[i] < crowd.first_least)
            crowd.first_least = crowd.before[i];
    }
    sluice_loop_each_turn(loop, crowd_turn, NULL);
    run_until_stopped();
    for (unsigned i = 0; i < count; i++) {
        CHECK_EQ(crowd.jobs[i].result, 0);
        CHECK_EQ(crowd.jobs[i].receipt.bytes, CROWD_BODY);
        crowd.jobs[i].source = NULL;
        job_close(&crowd.jobs[i]);
    }
    sluice_end_close(crowd.file);
    end();
}

TEST("hundreds of transfers that are ready together each have a whole turn of 1 MiB")
{
    crowd_run(320);
    CHECK(crowd.first_least >= 1 << 20 && crowd.first_least <= (1 << 20) + CROWD_SLACK);
    CHECK(crowd.longest >= 1 << 20 && crowd.longest <= (1 << 20) + CROWD_SLACK);
    CHECK(crowd.most >= 64 << 20 && crowd.most <= (64 << 20) + CROWD_SLACK);
    CHECK(crowd.turns <= 4 * (320 / 64));
}

TEST("of a crowd of transfers that are ready together each has a shorter turn, and the loop is never long away")
{
    struct rlimit had;
    getrlimit(RLIMIT_NOFILE, &had);
    struct rlimit more = {.rlim_cur = CROWD_MAX + 100, .rlim_max = had.rlim_max};
    if (had.rlim_cur < more.rlim_cur && setrlimit(RLIMIT_NOFILE, &more) < 0)
        SKIP("needs 1600 descriptors (ulimit -n)");
    crowd_run(CROWD_MAX);
    setrlimit(RLIMIT_NOFILE, &had);
    CHECK(crowd.first_most >= 1 << 20 && crowd.first_most <= (1 << 20) + CROWD_SLACK);
    CHECK(crowd.first_least < 400 << 10); /* 1499 wait before it, and share 512 MiB */
    CHECK(crowd.longest <= (1 << 20) + CROWD_SLACK);
    /* Between two looks at epoll 64 steps are made, of at most 1 MiB. */
    CHECK(crowd.most <= (64 << 20) + CROWD_SLACK);
    CHECK(crowd.turns >= CROWD_MAX * 3 / 64);
}

TEST("forty transfers of files and streams at once all deliver their bytes")
{
    enum { COUNT = 40, SIZE = 700001 };
    static struct job jobs[COUNT];
    struct feeder *feeders[COUNT] = {0};
    begin();
    memset(jobs, 0, sizeof jobs);
    jobs_ended = jobs_left = 0;
    for (int i = 0; i < COUNT; i++) {
        int in[2], out[2];
        struct sluice_segment segment;
        tcp_pair(out);
        if (i % 2 == 0) {
            segment = file_segment(end_of(pattern_file(NULL, SIZE)), 0, SLUICE_UNTIL_END);
        } else {
            if (i % 4 == 1) {
                tcp_pair(in);
                feeders[i] = feeder_start(in[0], 0, SIZE);
                segment = stream_segment(end_of(in[1]), SLUICE_UNTIL_END);
            } else { /* splice without a pipe between: either side may be the one that blocks */
                pipe_pair(in);
                feeders[i] = feeder_start(in[1], 0, SIZE);
                segment = stream_segment(end_of(in[0]), SIZE);
            }
        }
        jobs[i].peer = out[1];
        jobs[i].collector = collector_start(out[1], false);
        job_start(&jobs[i], segment, out[0], 0, 10000);
    }
    run_until_stopped();
    for (int i = 0; i < COUNT; i++) {
        size_t size;
        job_close(&jobs[i]);
        if (feeders[i] != NULL)
            feeder_finish(feeders[i]);
        unsigned char *data = collector_finish(jobs[i].collector, &size);
        close(jobs[i].peer);
        CHECK_EQ(jobs[i].result, 0);
        CHECK_EQ(size, SIZE);
        size_t wrong = pattern_wrong(data, 0, size);
        if (wrong < size)
            CHECK_FAIL("transfer %d: byte %zu is wrong", i, wrong);
        free(data);
    }
    end();
}

/* Data that comes between splice's EAGAIN and the question which side was not ready. */
static int late_pipe = -1;

static ssize_t splice_then_feed(int in, off_t *in_offset, int out, off_t *out_offset, size_t size, unsigned flags)
{
    ssize_t result = splice(in, in_offset, out, out_offset, size, flags);
    int error = errno;
    if (result < 0 && late_pipe >= 0) {
        if (write(late_pipe, "late", 4) != 4)
            abort();
        close(late_pipe);
        late_pipe = -1;
    }
    errno = error;
    return result;
}

static void ignore(void *context, const char *data, ssize_t length)
{
    (void)context, (void)data, (void)length;
}

TEST("bytes that arrive just after splice found none do not wait for an edge that has passed")
{
    struct job job = {0};
    int in[2], out[2];
    char got[10];
    begin();
    jobs_ended = jobs_left = 0;
    pipe_pair(in);
    tcp_pair(out);
    job.sink = end_of(out[0]);
    CHECK_EQ(sluice_loop_receive(loop, job.sink, 0, ignore, NULL), 0);
    run_for(1); /* the sink is known to the loop, and has said that it is writable */
    late_pipe = in[1];
    sys.splice = splice_then_feed;
    job_start(&job, stream_segment(end_of(in[0]), SLUICE_UNTIL_END), out[0], 0, 0);
    if (job.ended == 0) {
        sluice_timer_start(loop, &limit, 2000, out_of_time, NULL);
        ran_out = false;
        sluice_loop_run(loop);
        sluice_timer_stop(loop, &limit);
    }
    sys.splice = splice;
    CHECK(!ran_out);
    CHECK_EQ(job.result, 0);
    CHECK_EQ(recv(out[1], got, sizeof got, 0), 4);
    job_close(&job);
    close(out[1]);
    end();
}

static void stuck_job(struct job *job, int ret_peer[1])
{
    int fds[2];
    tcp_pair(fds);
    *ret_peer = fds[1];
    job_start(job, file_segment(end_of(pattern_file(NULL, 16 << 20)), 0, 16 << 20), fds[0], 0, 0);
    CHECK_EQ(job->ended, 0);
}

TEST("a transfer can be cancelled while it waits, and says so once")
{
    struct job job = {0};
    int peer;
    begin();
    jobs_ended = jobs_left = 0;
    stuck_job(&job, &peer);
    run_for(1);
    sluice_loop_transfer_cancel(loop, job.transfer);
    CHECK_EQ(job.ended, 1);
    CHECK_EQ(job.result, -ECANCELED);
    CHECK(job.receipt.bytes > 0);
    run_for(1);
    CHECK_EQ(jobs_ended, 1);
    job_close(&job);
    close(peer);
    end();
}

TEST("a done callback may cancel other transfers, those to be stepped in the same turn included")
{
    for (int order = 0; order < 2; order++) {
        struct job a = {0}, b = {0}, after = {0};
        int fa[2], fb[2], fc[2], fd;
        begin();
        jobs_ended = jobs_left = 0;
        struct job *first = order == 0 ? &a : &b, *second = order == 0 ? &b : &a;
        first->cancels = second;
        second->cancels = first;
        tcp_pair(fa);
        tcp_pair(fb);
        tcp_pair(fc);
        /* Both have used their turn up, so both are queued; the first to be stepped ends at once. */
        struct collector *ca = collector_start(fa[1], false), *cb = collector_start(fb[1], false);
        fd = pattern_file(NULL, 30000);
        job_start(first, file_segment(end_of(fd), 0, 30000), fa[0], 0, 20000);
        job_start(second, file_segment(end_of(dup(fd)), 0, 30000), fb[0], 0, 20000);
        CHECK_EQ(jobs_left, 2);
        run_until_stopped();
        CHECK_EQ(jobs_ended, 2);
        CHECK((first->result == 0 && second->result == -ECANCELED) || (second->result == 0));
        /* The loop goes on: what is queued after that is stepped. */
        struct collector *cc = collector_start(fc[1], false);
        job_start(&after, file_segment(end_of(pattern_file(NULL, 2 << 20)), 0, 2 << 20), fc[0], 0, 5000);
        run_until_stopped();
        CHECK_EQ(after.result, 0);
        CHECK_EQ(after.receipt.bytes, 2 << 20);
        job_close(&a);
        job_close(&b);
        job_close(&after);
        size_t size;
        free(collector_finish(ca, &size));
        free(collector_finish(cb, &size));
        free(collector_finish(cc, &size));
        CHECK_EQ(size, 2 << 20);
        close(fa[1]);
        close(fb[1]);
        close(fc[1]);
        end();
    }
}

TEST("a done callback may close the ends")
{
    struct job job = {.closes = true};
    int fds[2], before = open_descriptors();
    begin();
    jobs_ended = jobs_left = 0;
    tcp_pair(fds);
    struct collector *collector = collector_start(fds[1], false);
    job_start(&job, file_segment(end_of(pattern_file(NULL, 8 << 20)), 0, 8 << 20), fds[0], 0, 0);
    if (job.ended == 0)
        run_until_stopped();
    CHECK_EQ(job.result, 0);
    job_close(&job);
    size_t size;
    free(collector_finish(collector, &size));
    CHECK_EQ(size, 8 << 20);
    close(fds[1]);
    end();
    CHECK_EQ(open_descriptors(), before);
}

TEST("a transfer to a peer that resets the connection ends with the error")
{
    struct job job = {0};
    int peer;
    begin();
    jobs_ended = jobs_left = 0;
    stuck_job(&job, &peer);
    reset(peer);
    run_until_stopped();
    CHECK(job.result == -ECONNRESET || job.result == -EPIPE);
    job_close(&job);
    end();
}

/* ---- Timers --------------------------------------------------------------------------------------------------- */

struct alarm {
    struct sluice_timer timer;
    struct sluice_timer *stops;
    int order;
    int *counter;
};

static void alarm_expired(void *context)
{
    struct alarm *alarm = context;
    alarm->order = ++*alarm->counter;
    if (alarm->stops != NULL)
        timers_stop(alarm->stops);
}

static void set(struct timers *timers, struct alarm *alarm, uint64_t now, unsigned after)
{
    alarm->timer.expired = alarm_expired;
    alarm->timer.context = alarm;
    timers_start(timers, &alarm->timer, now, after);
}

TEST("timers expire in the order of their deadlines, never early, and at most two slots late")
{
    struct timers timers;
    int counter = 0;
    struct alarm alarms[60] = {0};
    timers_begin(&timers, 1000);
    for (unsigned i = 0; i < 60; i++) {
        alarms[i].counter = &counter;
        set(&timers, &alarms[i], 1000, 500 + (i * 37 % 60) * 400);
    }
    for (uint64_t now = 1000; now < 30000; now += 50) {
        int next = timers_next(&timers, now);
        timers_expire(&timers, now);
        for (unsigned i = 0; i < 60; i++) {
            uint64_t deadline = 1000 + 500 + (i * 37 % 60) * 400;
            if (alarms[i].order != 0 && now < deadline)
                CHECK_FAIL("timer %u expired at %llu, before %llu", i, (unsigned long long)now,
                           (unsigned long long)deadline);
            if (alarms[i].order == 0 && now > deadline + 2 * TIMER_SLOT_MS)
                CHECK_FAIL("timer %u did not expire by %llu", i, (unsigned long long)now);
        }
        CHECK((next == -1) == (counter == 60 && next == -1));
    }
    CHECK_EQ(counter, 60);
    for (unsigned i = 0; i < 60; i++)
        for (unsigned k = 0; k < 60; k++)
            CHECK(i == k ||
                  (alarms[i].timer.deadline < alarms[k].timer.deadline) == (alarms[i].order < alarms[k].order));
    CHECK_EQ(timers_next(&timers, 30000), -1);
}

TEST("a timer restarted later expires at the later time, one restarted earlier at the earlier")
{
    struct timers timers;
    int counter = 0;
    struct alarm later = {.counter = &counter}, earlier = {.counter = &counter};
    timers_begin(&timers, 0);
    set(&timers, &later, 0, 1000);
    set(&timers, &earlier, 0, 20000);
    for (uint64_t now = 100; now <= 5000; now += 100) {
        set(&timers, &later, now, 1000); /* as a connection does with every request */
        timers_expire(&timers, now);
        CHECK_EQ(counter, 0);
    }
    set(&timers, &earlier, 5000, 200);
    timers_expire(&timers, 5400);
    CHECK_EQ(earlier.order, 1);
    CHECK_EQ(later.order, 0);
    timers_expire(&timers, 6300);
    CHECK_EQ(later.order, 2);
}

TEST("timers of ten minutes expire after ten minutes")
{
    struct timers timers;
    int counter = 0;
    struct alarm alarm = {.counter = &counter}, whole_turn = {.counter = &counter};
    timers_begin(&timers, 77);
    set(&timers, &alarm, 77, 600000);
    set(&timers, &whole_turn, 77, TIMER_SLOTS * TIMER_SLOT_MS);
    for (uint64_t now = 77;;) {
        int next = timers_next(&timers, now);
        if (next < 0)
            break;
        CHECK(next <= (TIMER_SLOTS + 1) * TIMER_SLOT_MS);
        now += (uint64_t)next;
        timers_expire(&timers, now);
        CHECK(alarm.order == 0 || (now >= 600077 && now <= 600077 + 2 * TIMER_SLOT_MS));
        CHECK(whole_turn.order == 0 || now >= 64077);
    }
    CHECK_EQ(whole_turn.order, 1);
    CHECK_EQ(alarm.order, 2);
}

TEST("after a long sleep every timer that is due expires, and the rest later")
{
    struct timers timers;
    int counter = 0;
    struct alarm a = {.counter = &counter}, b = {.counter = &counter};
    timers_begin(&timers, 0);
    set(&timers, &a, 0, 1000);
    set(&timers, &b, 0, 2000000);
    timers_expire(&timers, 1000000);
    CHECK_EQ(a.order, 1);
    CHECK_EQ(b.order, 0);
    for (uint64_t now = 1000000; timers_next(&timers, now) >= 0; now += 500) {
        CHECK(now < 2001000);
        timers_expire(&timers, now);
        CHECK(b.order == 0 || now >= 2000000);
    }
    CHECK_EQ(b.order, 2);
}

TEST("a callback may stop a timer of the same slot, and a stopped timer does not expire")
{
    struct timers timers;
    int counter = 0;
    struct alarm a = {.counter = &counter}, b = {.counter = &counter}, c = {.counter = &counter};
    timers_begin(&timers, 0);
    set(&timers, &a, 0, 1000);
    set(&timers, &b, 0, 1000);
    set(&timers, &c, 0, 1000);
    a.stops = &b.timer;
    b.stops = &a.timer;
    timers_stop(&c.timer);
    timers_expire(&timers, 2000);
    CHECK_EQ(counter, 1);
    CHECK_EQ(c.order, 0);
    timers_stop(&c.timer); /* twice does no harm */
}

struct watched {
    struct sluice_watch *watch;
    int fd, calls;
};

static void watched_quietly(void *context)
{
    ((struct watched *)context)->calls++;
}

static uint64_t expired_at;

static void note_time(void *context)
{
    (void)context;
    expired_at = milliseconds();
    sluice_loop_stop(loop);
}

TEST("a timer runs its whole time, also when the loop was made long before it runs")
{
    struct sluice_timer timer = {0};
    struct watched busy = {.fd = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC), .calls = -100};
    begin();
    CHECK_EQ(sluice_loop_watch(loop, busy.fd, watched_quietly, &busy, &busy.watch), 0); /* a turn at once */
    usleep(400000);
    uint64_t started = milliseconds();
    sluice_timer_start(loop, &timer, 250, note_time, NULL);
    CHECK_EQ(sluice_loop_run(loop), 0);
    CHECK(expired_at + 10 >= started + 250); /* 10: the coarse clock's tick */
    CHECK(expired_at <= started + 1500);
    sluice_watch_free(busy.watch);
    close(busy.fd);
    end();
}

/* ---- Offloading, watching ---------------------------------------------------------------------------------------- */

struct piece {
    pthread_t worked_on;
    int count;
};
static int work_done;

static void work(void *context)
{
    struct piece *piece = context;
    piece->worked_on = pthread_self();
    usleep(20000);
    piece->count++;
}

static void after_work(void *context)
{
    const struct piece *piece = context;
    if (pthread_equal(piece->worked_on, pthread_self()) || piece->count == 0)
        work_done = -1000;
    if (++work_done == 5)
        sluice_loop_stop(loop);
}

TEST("offloaded work runs on another thread, and what follows it on the loop's")
{
    struct piece pieces[5] = {0};
    begin();
    work_done = 0;
    for (int i = 0; i < 5; i++)
        CHECK_EQ(sluice_loop_offload(loop, work, after_work, &pieces[i]), 0);
    run_until_stopped();
    CHECK_EQ(work_done, 5);
    for (int i = 0; i < 5; i++)
        CHECK_EQ(pieces[i].count, 1);
    end();
}

static void watched_ready(void *context)
{
    struct watched *watched = context;
    uint64_t count;
    watched->calls += read(watched->fd, &count, sizeof count) == sizeof count;
    if (watched->calls == 2) {
        sluice_watch_free(watched->watch);
        watched->watch = NULL;
    }
    sluice_loop_stop(loop);
}

static int turns;

static void count_turn(void *context)
{
    (void)context;
    turns++;
}

TEST("a watch calls for every event until it is freed, in its own callback too; each turn is told of")
{
    struct watched watched = {.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
    begin();
    turns = 0;
    CHECK_EQ(sluice_loop_watch(loop, watched.fd, watched_ready, &watched, &watched.watch), 0);
    sluice_loop_each_turn(loop, count_turn, NULL);
    for (int i = 1; i <= 2; i++) {
        eventfd_write(watched.fd, 1);
        run_until_stopped();
        CHECK_EQ(watched.calls, i);
        CHECK_EQ(turns, i);
    }
    eventfd_write(watched.fd, 1);
    run_for(1);
    CHECK_EQ(watched.calls, 2);
    close(watched.fd);
    end();
}

/* ---- Listening ------------------------------------------------------------------------------------------------ */

struct door {
    struct sluice_listener *listener;
    int listening, accepted, last_error;
    bool pause_each, close_each, ahead;
    int fds[64];
    struct sockaddr_in address;
};

static void accepted(void *context, int fd, const struct sockaddr *address, unsigned length)
{
    struct door *door = context;
    if (fd < 0) {
        door->last_error = fd;
        sluice_loop_stop(loop);
        return;
    }
    if (address->sa_family != AF_INET || length < sizeof(struct sockaddr_in) || !(fcntl(fd, F_GETFL) & O_NONBLOCK) ||
        !(fcntl(fd, F_GETFD) & FD_CLOEXEC))
        door->last_error = -1000;
    if (door->close_each)
        close(fd);
    else
        door->fds[door->accepted] = fd;
    door->accepted++;
    if (door->pause_each)
        sluice_listener_pause(door->listener);
}

static void open_door(struct door *door)
{
    socklen_t size = sizeof door->address;
    door->address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    door->listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    CHECK(bind(door->listening, (struct sockaddr *)&door->address, size) == 0 && listen(door->listening, 64) == 0);
    CHECK_EQ(getsockname(door->listening, (struct sockaddr *)&door->address, &size), 0);
    CHECK_EQ(sluice_loop_listen(loop, door->listening, accepted, door, &door->listener), 0);
    sluice_listener_ahead(door->listener, door->ahead);
}

static int knock(const struct door *door)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    CHECK_EQ(connect(fd, (const struct sockaddr *)&door->address, sizeof door->address), 0);
    return fd;
}

static void accept_all_who_come(bool ahead)
{
    struct door door = {.close_each = true, .pause_each = true, .ahead = ahead};
    int clients[10];
    begin();
    open_door(&door);
    for (int i = 0; i < 10; i++)
        clients[i] = knock(&door);
    run_for(1);
    CHECK_EQ(door.accepted, 1); /* paused by its callback */
    run_for(1);
    CHECK_EQ(door.accepted, 1);
    sluice_listener_resume(door.listener);
    run_for(1);
    CHECK_EQ(door.accepted, 2);
    door.pause_each = false;
    sluice_listener_resume(door.listener);
    run_for(1);
    CHECK_EQ(door.accepted, 10);
    CHECK_EQ(door.last_error, 0);
    sluice_listener_free(door.listener);
    close(door.listening);
    for (int i = 0; i < 10; i++)
        close(clients[i]);
    end();
}

TEST("a loop tells what carries it, also if that was left to sluice")
{
    struct sluice_loop_options any = {.size = sizeof any};
    enum sluice_loop_kind chosen = sluice_loop_probe(&any, NULL) == 0 ? SLUICE_LOOP_IO_URING : SLUICE_LOOP_EPOLL;
    begin();
    CHECK_EQ(sluice_loop_kind_of(loop), loop_options.kind);
    end();
    CHECK_EQ(sluice_loop_new(&any, &loop), 0);
    CHECK_EQ(sluice_loop_kind_of(loop), chosen);
    end();
}

TEST("a listener accepts all who come, and none while it is paused")
{
    accept_all_who_come(false);
    accept_all_who_come(true);
}

static void free_while_they_wait(bool ahead)
{
    struct door door = {.pause_each = true, .ahead = ahead};
    int clients[10], waiting = 0, fd;
    begin();
    open_door(&door);
    for (int i = 0; i < 10; i++)
        clients[i] = knock(&door);
    run_for(1);
    CHECK_EQ(door.accepted, 1);
    sluice_listener_free(door.listener);
    for (; (fd = accept(door.listening, NULL, NULL)) >= 0; waiting++)
        close(fd);
    CHECK_EQ(door.accepted + waiting, 10);
    close(door.listening);
    for (int i = 0; i < 10; i++)
        close(clients[i]);
    end();
}

TEST("no connection is lost when a listener is freed: accepted ahead, it is shown; else it waits for the next listener")
{
    free_while_they_wait(false);
    free_while_they_wait(true);
}

TEST("a listener that is freed takes those who wait, as nobody else may have been woken for them")
{
    struct door door = {.close_each = true};
    int clients[10];
    begin();
    open_door(&door);
    for (int i = 0; i < 10; i++)
        clients[i] = knock(&door);
    sluice_listener_free(door.listener);
    CHECK_EQ(door.accepted, 10);
    CHECK_EQ(door.last_error, 0);
    shutdown(door.listening, SHUT_RDWR); /* all sockets are to end: that is no failure */
    CHECK_EQ(sluice_loop_listen(loop, door.listening, accepted, &door, &door.listener), 0);
    sluice_listener_free(door.listener);
    CHECK_EQ(door.last_error, 0);
    close(door.listening);
    for (int i = 0; i < 10; i++)
        close(clients[i]);
    end();
}

/* Loops on threads of their own that accept from the same two sockets; each has room for one connection. All are busy
 * while the clients come. */
#define NEIGHBOURS 3

struct neighbour {
    const int *sockets;
    pthread_barrier_t *all_busy;
    atomic_int *taken;
    struct sluice_loop *loop;
    struct sluice_listener *listeners[2];
    struct sluice_timer timer;
    uint64_t give_up;
    int mine, client;
};

static void take_one(void *context, int fd, const struct sockaddr *address, unsigned length)
{
    struct neighbour *neighbour = context;
    (void)address, (void)length;
    neighbour->mine++;
    neighbour->client = fd;
    atomic_fetch_add(neighbour->taken, 1);
    for (int i = 0; i < 2; i++)
        sluice_listener_pause(neighbour->listeners[i]);
}

static void look_around(void *context)
{
    struct neighbour *neighbour = context;
    if (atomic_load(neighbour->taken) == NEIGHBOURS || milliseconds() > neighbour->give_up)
        sluice_loop_stop(neighbour->loop);
    else
        sluice_timer_start(neighbour->loop, &neighbour->timer, 125, look_around, neighbour);
}

static void be_busy(void *context)
{
    struct neighbour *neighbour = context;
    pthread_barrier_wait(neighbour->all_busy);
    pthread_barrier_wait(neighbour->all_busy); /* the clients have come */
    neighbour->give_up = milliseconds() + 10000;
    look_around(neighbour);
}

static void *live_next_door(void *context)
{
    struct neighbour *neighbour = context;
    CHECK_EQ(sluice_loop_new(&loop_options, &neighbour->loop), 0);
    for (int i = 0; i < 2; i++)
        CHECK_EQ(
            sluice_loop_listen(neighbour->loop, neighbour->sockets[i], take_one, neighbour, &neighbour->listeners[i]),
            0);
    sluice_timer_start(neighbour->loop, &neighbour->timer, 1, be_busy, neighbour);
    CHECK_EQ(sluice_loop_run(neighbour->loop), 0);
    for (int i = 0; i < 2; i++)
        sluice_listener_free(neighbour->listeners[i]);
    sluice_loop_free(neighbour->loop);
    return NULL;
}

TEST("who comes to a loop that is full is taken by one that accepts from the same socket and has room")
{
    struct neighbour neighbours[NEIGHBOURS];
    pthread_t threads[NEIGHBOURS];
    pthread_barrier_t all_busy;
    struct door doors[2] = {0};
    int sockets[2], clients[NEIGHBOURS];
    atomic_int taken = 0;
    begin();
    for (int i = 0; i < 2; i++) {
        open_door(&doors[i]);
        sluice_listener_free(doors[i].listener);
        sockets[i] = doors[i].listening;
    }
    pthread_barrier_init(&all_busy, NULL, NEIGHBOURS + 1);
    for (int i = 0; i < NEIGHBOURS; i++) {
        neighbours[i] = (struct neighbour){.sockets = sockets, .all_busy = &all_busy, .taken = &taken, .client = -1};
        CHECK_EQ(pthread_create(&threads[i], NULL, live_next_door, &neighbours[i]), 0);
    }
    pthread_barrier_wait(&all_busy);
    for (int i = 0; i < NEIGHBOURS; i++)
        clients[i] = knock(&doors[i % 2]);
    pthread_barrier_wait(&all_busy);
    for (int i = 0; i < NEIGHBOURS; i++) {
        pthread_join(threads[i], NULL);
        CHECK_EQ(neighbours[i].mine, 1);
        close(neighbours[i].client);
        close(clients[i]);
    }
    pthread_barrier_destroy(&all_busy);
    for (int i = 0; i < 2; i++)
        close(sockets[i]);
    end();
}

TEST("without descriptors left a connection is turned away, said so, and accepting goes on afterwards")
{
    struct door door = {.close_each = true};
    struct rlimit before, low;
    int ballast[4096], count = 0, client;
    char byte;
    begin();
    open_door(&door);
    getrlimit(RLIMIT_NOFILE, &before);
    client = knock(&door);
    low = before;
    low.rlim_cur = 256;
    setrlimit(RLIMIT_NOFILE, &low);
    while ((ballast[count] = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0)
        count++;
    sluice_timer_start(loop, &limit, 3000, out_of_time, NULL);
    CHECK_EQ(sluice_loop_run(loop), 0);
    sluice_timer_stop(loop, &limit);
    int error = door.last_error;
    setrlimit(RLIMIT_NOFILE, &before);
    while (count > 0)
        close(ballast[--count]);
    CHECK_EQ(error, -EMFILE);
    CHECK_EQ(door.accepted, 0);
    CHECK_EQ(recv(client, &byte, 1, 0), 0); /* closed, not left waiting */
    close(client);
    client = knock(&door);
    run_for(1);
    CHECK_EQ(door.accepted, 1);
    close(client);
    sluice_listener_free(door.listener);
    close(door.listening);
    end();
}

/* ---- Files that are not in memory ---------------------------------------------------------------------------------
 */

static pthread_t thread_of_the_loop;
static atomic_bool loop_read;

/* The disk answers when another job has ended, so that the order of events is certain; or after 10 s. */
static ssize_t late_pread(int fd, void *buffer, size_t size, off_t offset)
{
    if (pthread_equal(pthread_self(), thread_of_the_loop))
        loop_read = true; /* it waited for the disk */
    for (int i = 0; i < 10000 && jobs_ended == 0 && !loop_read; i++)
        usleep(1000);
    return pread(fd, buffer, size, offset);
}

static ssize_t slow_pread(int fd, void *buffer, size_t size, off_t offset)
{
    usleep(30000);
    return pread(fd, buffer, size, offset);
}

static int no_readahead(int fd, off_t offset, size_t size)
{
    (void)fd, (void)offset, (void)size;
    return 0;
}

static void evict(int fd)
{
    CHECK_EQ(fsync(fd), 0);
    CHECK_EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
}

TEST("while a transfer waits for pages from disk, other traffic of the loop goes on")
{
    struct job cold = {0}, hot = {0};
    int a[2], b[2];
    int file = pattern_file("/var/tmp", 2 << 20);
    begin();
    jobs_ended = jobs_left = 0;
    evict(file);
    struct statfs status;
    if (fstatfs(file, &status) < 0 || status.f_type == TMPFS_MAGIC)
        SKIP("tmpfs cannot evict pages; put /var/tmp on a disk file system");
    tcp_pair(a);
    tcp_pair(b);
    struct collector *ca = collector_start(a[1], false), *cb = collector_start(b[1], false);
    struct sys before = sys;
    sys.pread = late_pread;
    sys.readahead = no_readahead;
    thread_of_the_loop = pthread_self();
    loop_read = false;
    job_start(&cold, file_segment(end_of(file), 0, 2 << 20), a[0], SLUICE_TRANSFER_NEVER_BLOCK, 0);
    CHECK_EQ(cold.ended, 0);
    job_start(&hot, file_segment(end_of(pattern_file(NULL, 3 << 20)), 0, 3 << 20), b[0], SLUICE_TRANSFER_NEVER_BLOCK,
              64 << 10);
    run_until_stopped();
    CHECK_EQ(hot.result, 0);
    CHECK_EQ(cold.result, 0);
    CHECK_EQ(hot.ended, 1);
    CHECK_EQ(cold.ended, 2);
    CHECK(!loop_read);
    CHECK(cold.receipt.waits > 0);
    job_close(&cold);
    job_close(&hot);
    size_t size;
    unsigned char *data = collector_finish(ca, &size);
    CHECK_EQ(size, 2 << 20);
    CHECK_EQ(pattern_wrong(data, 0, size), size);
    free(data);
    free(collector_finish(cb, &size));
    CHECK_EQ(size, 3 << 20);
    close(a[1]);
    close(b[1]);
    end();
    sys = before;
}

TEST("a transfer that waits for pages can be cancelled, and the helper's late answer does no harm")
{
    struct job cold = {0};
    int a[2];
    int file = pattern_file("/var/tmp", 1 << 20);
    begin();
    jobs_ended = jobs_left = 0;
    evict(file);
    tcp_pair(a);
    sys.pread = slow_pread;
    job_start(&cold, file_segment(end_of(file), 0, 1 << 20), a[0], SLUICE_TRANSFER_NEVER_BLOCK, 0);
    if (cold.ended == 0) {
        sluice_loop_transfer_cancel(loop, cold.transfer);
        CHECK_EQ(cold.result, -ECANCELED);
    }
    job_close(&cold);
    run_for(500);
    CHECK_EQ(jobs_ended, 1);
    close(a[1]);
    end();
    sys.pread = pread; /* no helper is left to use it */
}

int main(int argc, char **argv)
{
    return run_all_on_named_loop(&loop_options, argc, argv);
}
