/* SPDX-License-Identifier: MIT
 *
 * Lending on a kernel that lies: sends are carried out as ordinary ones, and notifications come when and as a seed
 * says: late, joined, out of order, numbered across 2^32, copied or not, with ENOBUFS in between.
 */
#include "../check.h"
#include "end.h"
#include "loans.h"
#include "sys.h"
#include "world.h"
#include <errno.h>
#include <linux/errqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#define CALLS_MAX 4096
#define SEGMENTS_MAX 40
#define BYTES_MAX (1u << 20)

static struct sys real;

/* One call that the kernel would have kept memory of. */
struct kept {
    const unsigned char *data[16];
    size_t size[16];
    int pieces;
    bool told; /* its notification was read */
};

static struct {
    uint64_t seed;
    uint32_t base;   /* the number of the first call */
    bool was_on;     /* SO_ZEROCOPY was set before */
    unsigned refuse; /* of 256 calls, so many meet ENOBUFS */
    unsigned copy;   /* of 256 notifications, so many say "copied" */
    bool hold;       /* no notification yet */
    struct kept calls[CALLS_MAX];
    uint32_t count;
    unsigned refused, joined, behind; /* what happened, so that a test knows that it did */
} kernel;

static uint32_t draw(void)
{
    uint64_t z = kernel.seed += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (uint32_t)(z >> 32);
}

static ssize_t keep(ssize_t sent, const struct iovec *iov, int count)
{
    struct kept *call = &kernel.calls[kernel.count];
    if (sent <= 0)
        return sent;
    if (kernel.count == CALLS_MAX || count > 16)
        abort();
    *call = (struct kept){.pieces = count};
    for (int i = 0; i < count; i++) {
        call->data[i] = iov[i].iov_base;
        call->size[i] = iov[i].iov_len;
    }
    kernel.count++;
    return sent;
}

static bool refuses(int flags)
{
    if (!(flags & MSG_ZEROCOPY) || (draw() & 255) >= kernel.refuse)
        return false;
    kernel.refused++;
    errno = ENOBUFS;
    return true;
}

static ssize_t lying_send(int fd, const void *buffer, size_t size, int flags)
{
    if (refuses(flags))
        return -1;
    struct iovec iov = {.iov_base = (void *)(uintptr_t)buffer, .iov_len = size};
    ssize_t sent = real.send(fd, buffer, size, flags & ~MSG_ZEROCOPY);
    return flags & MSG_ZEROCOPY ? keep(sent, &iov, 1) : sent;
}

static ssize_t lying_sendmsg(int fd, const struct msghdr *message, int flags)
{
    if (refuses(flags))
        return -1;
    ssize_t sent = real.sendmsg(fd, message, flags & ~MSG_ZEROCOPY);
    return flags & MSG_ZEROCOPY ? keep(sent, message->msg_iov, (int)message->msg_iovlen) : sent;
}

static int lying_getsockopt(int fd, int level, int name, void *value, socklen_t *size)
{
    int result = real.getsockopt(fd, level, name, value, size);
    if (level == SOL_SOCKET && name == SO_ZEROCOPY)
        *(int *)value = kernel.was_on;
    return result;
}

/* A range of calls that are not told yet, beginning anywhere. */
static bool next_range(uint32_t *ret_first, uint32_t *ret_last)
{
    uint32_t untold = 0, first = 0;
    for (uint32_t i = 0; i < kernel.count; i++)
        untold += !kernel.calls[i].told;
    if (untold == 0 || kernel.hold)
        return false;
    uint32_t skip = draw() % 3 == 0 ? draw() % untold : 0;
    if (kernel.was_on && kernel.count == 1)
        skip = 0;
    kernel.behind += skip > 0;
    for (uint32_t i = 0; i < kernel.count; i++)
        if (!kernel.calls[i].told && skip-- == 0) {
            first = i;
            break;
        }
    uint32_t last = first;
    for (uint32_t more = draw() % 8; more > 0 && last + 1 < kernel.count && !kernel.calls[last + 1].told; more--)
        last++;
    kernel.joined += last > first;
    *ret_first = first;
    *ret_last = last;
    return true;
}

static ssize_t lying_recvmsg(int fd, struct msghdr *message, int flags)
{
    uint32_t first, last;
    if (!(flags & MSG_ERRQUEUE))
        return real.recvmsg(fd, message, flags);
    if (draw() % 4 == 0 || !next_range(&first, &last)) {
        errno = EAGAIN;
        return -1;
    }
    for (uint32_t i = first; i <= last; i++)
        kernel.calls[i].told = true;
    struct sock_extended_err error = {.ee_origin = SO_EE_ORIGIN_ZEROCOPY,
                                      .ee_info = kernel.base + first,
                                      .ee_data = kernel.base + last,
                                      .ee_code = (draw() & 255) < kernel.copy ? SO_EE_CODE_ZEROCOPY_COPIED : 0};
    struct cmsghdr *control = CMSG_FIRSTHDR(message);
    control->cmsg_level = SOL_IP;
    control->cmsg_type = IP_RECVERR;
    control->cmsg_len = CMSG_LEN(sizeof error);
    memcpy(CMSG_DATA(control), &error, sizeof error);
    message->msg_controllen = CMSG_SPACE(sizeof error);
    return 0;
}

/* Poll finds the error queue's descriptor ready, as the kernel would. */
static int lying_poll(struct pollfd *fds, nfds_t count, int timeout)
{
    int ready = real.poll(fds, count, count > 0 && fds[0].events == 0 ? 0 : timeout);
    if (ready == 0 && count > 0 && fds[0].events == 0) {
        fds[0].revents = POLLERR;
        return 1;
    }
    return ready;
}

static void begin(uint64_t seed)
{
    memset(&kernel, 0, sizeof kernel);
    kernel.seed = seed;
    real = sys;
    sys.send = lying_send;
    sys.sendmsg = lying_sendmsg;
    sys.recvmsg = lying_recvmsg;
    sys.getsockopt = lying_getsockopt;
    sys.poll = lying_poll;
}

static void end(void)
{
    sys = real;
}

/* ---- What must hold ------------------------------------------------------------------------------------------- */

static struct {
    unsigned char bytes[BYTES_MAX];
    struct sluice_segment segments[SEGMENTS_MAX];
    unsigned released[SEGMENTS_MAX];
    size_t count, size, lendable;
    bool too_early;
    struct sluice_receipt receipt;
    unsigned settled;
} job;

static void on_release(void *context, const void *data, size_t length)
{
    const unsigned char *from = data, *to = from + length;
    ++*(unsigned *)context;
    for (uint32_t i = 0; i < kernel.count; i++)
        for (int k = 0; k < kernel.calls[i].pieces && !kernel.calls[i].told; k++)
            job.too_early |= kernel.calls[i].data[k] < to && from < kernel.calls[i].data[k] + kernel.calls[i].size[k];
}

static void on_settled(void *context, unsigned sink, const struct sluice_receipt *difference)
{
    (void)context, (void)sink;
    job.settled++;
    sluice_receipt_add(&job.receipt, difference);
}

/* Random segments, most of which may be lent. */
static void make_job(void)
{
    memset(&job, 0, sizeof job);
    job.count = 1 + draw() % SEGMENTS_MAX;
    pattern_fill(job.bytes, 0, BYTES_MAX);
    for (size_t i = 0; i < job.count; i++) {
        size_t size = draw() % 5 == 0 ? 0 : draw() % 3 == 0 ? draw() % 300 : draw() % 20000;
        job.segments[i] = memory_segment(job.bytes + job.size, size);
        if (draw() % 2 != 0) { /* what may not be lent ends a call */
            job.segments[i].release = on_release;
            job.segments[i].release_context = &job.released[i];
            job.lendable += size;
        }
        job.size += size;
    }
}

static struct sluice_transfer_options options_of(struct sluice_end *const *sink)
{
    return (struct sluice_transfer_options){.size = sizeof(struct sluice_transfer_options),
                                            .segments = job.segments,
                                            .segment_count = job.count,
                                            .sinks = sink,
                                            .sink_count = 1,
                                            .route = SLUICE_ROUTE_MSG_ZEROCOPY,
                                            .settled = on_settled};
}

static const char *judge(const unsigned char *data, size_t size)
{
    const struct sluice_receipt *receipt = &job.receipt;
    if (size != job.size || (size > 0 && memcmp(data, job.bytes, size) != 0))
        return "wrong bytes arrived";
    for (size_t i = 0; i < job.count; i++)
        if (job.released[i] != (job.segments[i].release != NULL))
            return "a segment was not released exactly once";
    if (job.too_early)
        return "memory was released while it was lent";
    if (receipt->bytes != job.size || receipt->sent != job.size || !sluice_receipt_is_final(receipt))
        return "the receipt is not final";
    if (receipt->by_reference + receipt->copied + receipt->unknown != receipt->bytes || receipt->unknown != 0)
        return "the receipt does not add up";
    return NULL;
}

/* Whatever way in: run, or step and then free before, or after, everything is back. */
static const char *carry(unsigned way)
{
    int fds[2];
    size_t size;
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    struct collector *collector = collector_start(fds[1], false);
    make_job();
    struct sluice_transfer_options options = options_of(&sink);
    struct sluice_transfer *transfer;
    struct sluice_waits waits;
    int result;
    if (job.lendable == 0)
        options.route = SLUICE_ROUTE_AUTO;
    if (way == 0) {
        result = sluice_transfer_run(&options, &job.receipt, NULL);
    } else {
        result = sluice_transfer_new(&options, &transfer, NULL);
        while (result >= 0 && (result = sluice_transfer_step(transfer, &waits)) > 0) {
            struct pollfd wait = {.fd = fds[0], .events = POLLOUT};
            real.poll(&wait, 1, 1000);
        }
        if (way == 1)
            while (result == 0 && !sluice_receipt_is_final(sluice_transfer_receipt(transfer, 0)))
                sluice_end_collect(sink);
        job.receipt = *sluice_transfer_receipt(transfer, 0);
        sluice_transfer_free(transfer);
        while (way == 2 && sluice_end_collect(sink) > 0)
            ;
    }
    sluice_end_close(sink); /* with loans, if way is 3 */
    while (sluice_end_collect(NULL) > 0)
        ;
    unsigned char *data = collector_finish(collector, &size);
    const char *fault = result < 0 ? "it failed" : judge(data, size);
    free(data);
    close(fds[1]);
    return fault;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SEEDS 60
#else
#define SEEDS 400
#endif

TEST("notifications late, joined, out of order, across 2^32: every byte arrives, memory comes back once and not too "
     "early")
{
    unsigned joined = 0, behind = 0, refused = 0, settled = 0;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        begin(seed);
        kernel.base = seed % 3 == 0 ? 0 : seed % 3 == 1 ? UINT32_MAX - 5 : 12345;
        kernel.was_on = kernel.base != 0;
        kernel.refuse = seed % 5 == 0 ? 60 : 0;
        kernel.copy = (unsigned)(seed % 7 * 40);
        const char *fault = carry((unsigned)(seed % 4));
        joined += kernel.joined;
        behind += kernel.behind;
        refused += kernel.refused;
        settled += job.settled;
        end();
        if (fault != NULL)
            CHECK_FAIL("seed %llu: %s", (unsigned long long)seed, fault);
    }
    printf("# %u joined, %u out of order, %u refused, %u settled after the end\n", joined, behind, refused, settled);
    CHECK(joined > 0 && behind > 0 && refused > 0 && settled > 0);
}

TEST("what was copied and what was not is counted by bytes, whoever reads the notification")
{
    for (int copied = 0; copied < 2; copied++)
        for (unsigned way = 0; way < 4; way++) {
            begin(way + 100);
            kernel.copy = copied ? 256 : 0;
            CHECK(carry(way) == NULL);
            end();
            const struct sluice_route_count *count = &job.receipt.routes[SLUICE_ROUTE_MSG_ZEROCOPY];
            CHECK(count->bytes > 0);
            CHECK_EQ(count->evidence, SLUICE_EVIDENCE_MEASURED);
            CHECK_EQ(job.receipt.by_reference, copied ? 0 : count->bytes);
            CHECK_EQ(job.receipt.copied, copied ? job.receipt.bytes : job.receipt.bytes - count->bytes);
            CHECK_EQ(job.receipt.copy_bytes, job.receipt.copied);
        }
}

TEST("until the notification a receipt is provisional: the bytes are unknown, sent, and not released")
{
    int fds[2];
    begin(7);
    kernel.hold = true;
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    memset(&job, 0, sizeof job);
    job.count = 1;
    job.size = 50000;
    pattern_fill(job.bytes, 0, job.size);
    job.segments[0] = memory_segment(job.bytes, job.size);
    job.segments[0].release = on_release;
    job.segments[0].release_context = &job.released[0];
    struct sluice_transfer_options options = options_of(&sink);
    struct sluice_transfer *transfer;
    struct sluice_waits waits;
    CHECK_EQ(sluice_transfer_new(&options, &transfer, NULL), 0);
    CHECK_EQ(sluice_transfer_step(transfer, &waits), SLUICE_STEP_DONE);
    const struct sluice_receipt *receipt = sluice_transfer_receipt(transfer, 0);
    CHECK_EQ(receipt->loans, 1);
    CHECK_EQ(receipt->unknown, 50000);
    CHECK_EQ(receipt->sent, 50000);
    CHECK_EQ(receipt->released, 0);
    CHECK_EQ(receipt->routes[SLUICE_ROUTE_MSG_ZEROCOPY].evidence, SLUICE_EVIDENCE_NONE);
    CHECK(!sluice_receipt_is_final(receipt));
    CHECK_EQ(job.released[0], 0);
    CHECK_EQ(sluice_end_collect(sink), 1);
    kernel.hold = false;
    while (sluice_end_collect(sink) > 0)
        ;
    CHECK(sluice_receipt_is_final(receipt));
    CHECK_EQ(job.released[0], 1);
    CHECK_EQ(job.settled, 0); /* it was final before its end */
    sluice_transfer_free(transfer);
    sluice_end_close(sink);
    close(fds[1]);
    end();
}

/* An automatic transfer, on a device that is not the loopback one. */
static void pretend_device(struct sluice_end *sink)
{
    sink->socket.egress =
        (struct sluice_egress){.ifindex = 7, .name = "eth7", .known = true, .scatter_gather = true, .checksum = true};
    sink->socket.egress_asked = true;
}

static struct sluice_receipt send_one(struct sluice_end *sink, size_t size)
{
    job.count = 1;
    job.size = size;
    job.segments[0] = memory_segment(job.bytes, size);
    job.segments[0].release = on_release;
    job.segments[0].release_context = &job.released[0];
    struct sluice_transfer_options options = options_of(&sink);
    struct sluice_receipt receipt;
    options.route = SLUICE_ROUTE_AUTO;
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    return receipt;
}

TEST("a socket whose loans were copied is not lent to again for a while")
{
    int fds[2];
    begin(11);
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    struct collector *collector = collector_start(fds[1], false);
    size_t size;
    memset(&job, 0, sizeof job);
    pretend_device(sink);
    struct sluice_receipt receipt = send_one(sink, 200000);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_MSG_ZEROCOPY].bytes, 200000);
    CHECK_EQ(receipt.by_reference, 200000);
    kernel.copy = 256;
    receipt = send_one(sink, 200000);
    CHECK_EQ(receipt.copied, 200000);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_MSG_ZEROCOPY].bytes, 200000);
    receipt = send_one(sink, 200000);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_MSG_ZEROCOPY].bytes, 0);
    sink->socket.lending->copied_until = 0; /* the time is over */
    kernel.copy = 0;
    receipt = send_one(sink, 200000);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_MSG_ZEROCOPY].bytes, 200000);
    sluice_end_close(sink);
    free(collector_finish(collector, &size));
    close(fds[1]);
    end();
}

TEST("COPIED=0 through a device without scatter-gather stays unknown")
{
    int fds[2];
    size_t size;
    begin(12);
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    struct collector *collector = collector_start(fds[1], false);
    memset(&job, 0, sizeof job);
    pretend_device(sink);
    sink->socket.egress.scatter_gather = false;
    CHECK_EQ(send_one(sink, 200000).routes[SLUICE_ROUTE_MSG_ZEROCOPY].bytes, 0); /* not chosen there */
    struct sluice_transfer_options options = options_of(&sink);
    struct sluice_receipt receipt;
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    CHECK_EQ(receipt.unknown, 200000);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_MSG_ZEROCOPY].evidence, SLUICE_EVIDENCE_UNKNOWN);
    CHECK(sluice_receipt_is_final(&receipt));
    sluice_end_close(sink);
    free(collector_finish(collector, &size));
    close(fds[1]);
    end();
}

TEST("ENOBUFS with nothing outstanding: the rest goes by copy, nothing waits for a notification that will not come")
{
    int fds[2];
    size_t size;
    begin(13);
    kernel.refuse = 256;
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    struct collector *collector = collector_start(fds[1], false);
    memset(&job, 0, sizeof job);
    job.count = 1;
    job.size = BYTES_MAX;
    job.segments[0] = memory_segment(job.bytes, BYTES_MAX);
    job.segments[0].release = on_release;
    job.segments[0].release_context = &job.released[0];
    struct sluice_transfer_options options = options_of(&sink);
    struct sluice_receipt receipt;
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY].bytes, BYTES_MAX);
    CHECK_EQ(receipt.fallbacks[0].from, SLUICE_ROUTE_MSG_ZEROCOPY);
    CHECK_EQ(receipt.fallbacks[0].error, ENOBUFS);
    CHECK_EQ(job.released[0], 1);
    CHECK_EQ(kernel.refused, 1); /* it is not asked at once again */
    sluice_end_close(sink);
    free(collector_finish(collector, &size));
    close(fds[1]);
    end();
}

CHECK_MAIN()
