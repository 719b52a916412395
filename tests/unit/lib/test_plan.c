/* SPDX-License-Identifier: MIT
 *
 * Plans: which route for which ends and why not the others; refusals remembered; and that a forced route is what
 * carries the bytes, by the system calls made.
 */
#include "../check.h"
#include "sys.h"
#include "world.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- The seam counts what moves bytes ------------------------------------------------------------------------------
 */

static struct seen {
    uint64_t read, sendfile, filled, drained; /* bytes; filled: splice out of what is no pipe; drained: out of a pipe */
    uint64_t written, mapped;                 /* written from user memory; of these, out of a mapping of a file */
    uint64_t ranges;                          /* by copy_file_range */
    unsigned sendfile_calls, splice_calls, calls;
} seen;

static struct {
    const char *from, *to;
} mappings[64];
static unsigned mapping_count;
static int sendfile_error;

static ssize_t seen_read(int fd, void *buffer, size_t size)
{
    ssize_t result = read(fd, buffer, size);
    seen.calls++;
    seen.read += result > 0 ? (uint64_t)result : 0;
    return result;
}

static ssize_t seen_pread(int fd, void *buffer, size_t size, off_t offset)
{
    ssize_t result = pread(fd, buffer, size, offset);
    seen.calls++;
    seen.read += result > 0 ? (uint64_t)result : 0;
    return result;
}

static ssize_t seen_recv(int fd, void *buffer, size_t size, int flags)
{
    int domain = 0;
    socklen_t length = sizeof domain;
    ssize_t result = recv(fd, buffer, size, flags);
    int error = errno;
    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length);
    if (domain != AF_NETLINK) {
        seen.calls++;
        seen.read += result > 0 ? (uint64_t)result : 0;
    }
    errno = error;
    return result;
}

static void *seen_mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    char *result = mmap(address, size, protection, flags, fd, offset);
    if (fd >= 0 && result != MAP_FAILED && mapping_count < 64) {
        mappings[mapping_count].from = result;
        mappings[mapping_count++].to = result + size;
    }
    return result;
}

static int seen_munmap(void *address, size_t size)
{
    for (unsigned i = 0; i < mapping_count; i++)
        if (mappings[i].from == address)
            mappings[i] = mappings[--mapping_count];
    return munmap(address, size);
}

static ssize_t seen_written(ssize_t result, const struct iovec *iov, size_t count)
{
    size_t left = result > 0 ? (size_t)result : 0;
    seen.calls++;
    seen.written += left;
    for (size_t i = 0; i < count && left > 0; i++) {
        size_t part = iov[i].iov_len < left ? iov[i].iov_len : left;
        for (unsigned m = 0; m < mapping_count; m++)
            if ((const char *)iov[i].iov_base >= mappings[m].from && (const char *)iov[i].iov_base < mappings[m].to)
                seen.mapped += part;
        left -= part;
    }
    return result;
}

static ssize_t seen_send(int fd, const void *buffer, size_t size, int flags)
{
    struct iovec iov = {.iov_base = (void *)buffer, .iov_len = size};
    int domain = 0;
    socklen_t length = sizeof domain;
    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length);
    if (domain == AF_NETLINK)
        return send(fd, buffer, size, flags);
    return seen_written(send(fd, buffer, size, flags), &iov, 1);
}

static ssize_t seen_sendmsg(int fd, const struct msghdr *message, int flags)
{
    return seen_written(sendmsg(fd, message, flags), message->msg_iov, message->msg_iovlen);
}

static ssize_t seen_writev(int fd, const struct iovec *iov, int count)
{
    return seen_written(writev(fd, iov, count), iov, (size_t)count);
}

static ssize_t seen_pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    return seen_written(pwritev(fd, iov, count, offset), iov, (size_t)count);
}

static ssize_t seen_sendfile(int out, int in, off_t *offset, size_t size)
{
    seen.calls++;
    seen.sendfile_calls++;
    errno = sendfile_error;
    ssize_t result = sendfile_error != 0 ? -1 : sendfile(out, in, offset, size);
    seen.sendfile += result > 0 ? (uint64_t)result : 0;
    return result;
}

static ssize_t seen_splice(int in, off_t *in_offset, int out, off_t *out_offset, size_t size, unsigned flags)
{
    ssize_t result = splice(in, in_offset, out, out_offset, size, flags);
    seen.calls++;
    int error = errno;
    seen.splice_calls++;
    bool from_pipe = fcntl(in, F_GETPIPE_SZ) >= 0;
    if (result > 0 && !from_pipe)
        seen.filled += (uint64_t)result;
    if (result > 0 && from_pipe) /* also what goes from pipe to pipe */
        seen.drained += (uint64_t)result;
    errno = error;
    return result;
}

static ssize_t seen_copy_file_range(int in, off_t *in_offset, int out, off_t *out_offset, size_t size, unsigned flags)
{
    ssize_t result = copy_file_range(in, in_offset, out, out_offset, size, flags);
    seen.calls++;
    seen.ranges += result > 0 ? (uint64_t)result : 0;
    return result;
}

static struct sys before;

static void watch_calls(void)
{
    before = sys;
    seen = (struct seen){0};
    sys.read = seen_read;
    sys.pread = seen_pread;
    sys.recv = seen_recv;
    sys.mmap = seen_mmap;
    sys.munmap = seen_munmap;
    sys.send = seen_send;
    sys.sendmsg = seen_sendmsg;
    sys.writev = seen_writev;
    sys.pwritev = seen_pwritev;
    sys.sendfile = seen_sendfile;
    sys.splice = seen_splice;
    sys.copy_file_range = seen_copy_file_range;
}

static void stop_watching(void)
{
    sys = before;
    sendfile_error = 0;
}

/* ---- Ends
 * ------------------------------------------------------------------------------------------------------------ */

enum place { FILE_, SMALL_FILE, PIPE, TCP, UNIX, MEMORY, DATAGRAM, APPEND_FILE, PLACES };
static const char *const place_names[] = {"file", "small file", "pipe",     "tcp",
                                          "unix", "memory",     "datagram", "O_APPEND"};

#define SIZE (3u << 20)

static char memory[SIZE + 1];

static int descriptors(enum place place, bool writes, int *ret_peer)
{
    int fds[2] = {-1, -1};
    *ret_peer = -1;
    switch (place) {
    case FILE_:
        return pattern_file(NULL, writes ? 0 : SIZE);
    case SMALL_FILE:
        return pattern_file(NULL, 5000);
    case APPEND_FILE:
        fds[0] = pattern_file(NULL, 0);
        fcntl(fds[0], F_SETFL, O_APPEND);
        return fds[0];
    case PIPE:
        pipe_pair(fds);
        *ret_peer = fds[writes ? 0 : 1];
        return fds[writes ? 1 : 0];
    case TCP:
        tcp_pair(fds);
        break;
    case DATAGRAM:
        if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, fds) < 0)
            abort();
        break;
    default:
        unix_pair(fds);
    }
    *ret_peer = fds[writes ? 1 : 0];
    return fds[writes ? 0 : 1];
}

static struct sluice_end *sink_of(enum place place, int *ret_peer)
{
    struct sluice_end *end;
    *ret_peer = -1;
    if (place != MEMORY)
        return end_of(descriptors(place, true, ret_peer));
    CHECK_EQ(sluice_end_open_memory(memory, sizeof memory, &end), 0);
    return end;
}

static struct sluice_segment source_of(enum place place, int *ret_peer)
{
    static const char bytes[1000];
    *ret_peer = -1;
    if (place == MEMORY)
        return memory_segment(bytes, sizeof bytes);
    struct sluice_end *end = end_of(descriptors(place, false, ret_peer));
    return place == FILE_ || place == SMALL_FILE ? file_segment(end, 0, SLUICE_UNTIL_END) : stream_segment(end, SIZE);
}

/* ---- Verdicts
 * -------------------------------------------------------------------------------------------------------- */

TEST("a plan names every route once, in the order of its verdicts, with a reason for all but a plain yes")
{
    for (int from = 0; from <= DATAGRAM; from++) {
        for (int to = 0; to < PLACES; to++) {
            int a, b;
            struct sluice_plan plan;
            struct sluice_segment segment = source_of((enum place)from, &a);
            struct sluice_end *sink = sink_of((enum place)to, &b);
            CHECK_EQ(sluice_plan_make(&segment, sink, &plan), 0);
            unsigned named = 0;
            if (plan.count != SLUICE_ROUTE_COUNT - 1)
                CHECK_FAIL("%s to %s: %u entries", place_names[from], place_names[to], plan.count);
            for (unsigned i = 0; i < plan.count; i++) {
                named |= 1u << plan.entries[i].route;
                if (i > 0 && plan.entries[i].verdict > plan.entries[i - 1].verdict)
                    CHECK_FAIL("%s to %s: %s comes too late", place_names[from], place_names[to],
                               sluice_route_name(plan.entries[i].route));
                if ((plan.entries[i].verdict == SLUICE_YES) != (plan.entries[i].reason == NULL))
                    CHECK_FAIL("%s to %s: %s: reason and verdict do not fit", place_names[from], place_names[to],
                               sluice_route_name(plan.entries[i].route));
            }
            CHECK_EQ(named, (1u << SLUICE_ROUTE_COUNT) - 2);
            sluice_end_close(segment.end);
            sluice_end_close(sink);
            close(a);
            close(b);
        }
    }
}

static const struct {
    enum place from, to;
    enum sluice_route first;
    const char *verdicts; /* of the routes in columns: y yes, l not now, n never */
} expected[] = {
    {FILE_, TCP, SLUICE_ROUTE_SENDFILE, "ylyy"},   {FILE_, UNIX, SLUICE_ROUTE_SENDFILE, "ylyy"},
    {FILE_, PIPE, SLUICE_ROUTE_SENDFILE, "ylyy"},  {FILE_, FILE_, SLUICE_ROUTE_REFLINK, "ylny"},
    {FILE_, MEMORY, SLUICE_ROUTE_COPY, "ynnn"},    {FILE_, APPEND_FILE, SLUICE_ROUTE_COPY, "ylnn"},
    {SMALL_FILE, TCP, SLUICE_ROUTE_MMAP, "yyyy"},  {SMALL_FILE, PIPE, SLUICE_ROUTE_SENDFILE, "ylyy"},
    {TCP, TCP, SLUICE_ROUTE_SPLICE, "ynny"},       {TCP, FILE_, SLUICE_ROUTE_SPLICE, "ynny"},
    {TCP, PIPE, SLUICE_ROUTE_SPLICE, "ynny"},      {TCP, MEMORY, SLUICE_ROUTE_COPY, "ynnn"},
    {TCP, APPEND_FILE, SLUICE_ROUTE_COPY, "ynnn"}, {PIPE, TCP, SLUICE_ROUTE_SPLICE, "ynny"},
    {PIPE, FILE_, SLUICE_ROUTE_SPLICE, "ynny"},    {UNIX, UNIX, SLUICE_ROUTE_SPLICE, "ynny"},
    {DATAGRAM, TCP, SLUICE_ROUTE_COPY, "ynnn"},    {MEMORY, TCP, SLUICE_ROUTE_COPY, "ynnn"},
    {FILE_, DATAGRAM, SLUICE_ROUTE_AUTO, "nnnn"},
};
static const enum sluice_route columns[] = {SLUICE_ROUTE_COPY, SLUICE_ROUTE_MMAP, SLUICE_ROUTE_SENDFILE,
                                            SLUICE_ROUTE_SPLICE};

/* Routes for few pairs: the others are never. These files are in memory, where copy_file_range only copies. */
static const struct {
    enum place from, to;
    enum sluice_route route;
    enum sluice_verdict verdict;
} served_by_few[] = {
    {FILE_, FILE_, SLUICE_ROUTE_COPY_FILE_RANGE, SLUICE_NOT_NOW},
    {SMALL_FILE, FILE_, SLUICE_ROUTE_COPY_FILE_RANGE, SLUICE_NOT_NOW},
    {FILE_, SMALL_FILE, SLUICE_ROUTE_COPY_FILE_RANGE, SLUICE_NOT_NOW},
    {SMALL_FILE, SMALL_FILE, SLUICE_ROUTE_COPY_FILE_RANGE, SLUICE_NOT_NOW},
    {FILE_, FILE_, SLUICE_ROUTE_REFLINK, SLUICE_YES},
    {SMALL_FILE, FILE_, SLUICE_ROUTE_REFLINK, SLUICE_YES},
    {FILE_, SMALL_FILE, SLUICE_ROUTE_REFLINK, SLUICE_YES},
    {SMALL_FILE, SMALL_FILE, SLUICE_ROUTE_REFLINK, SLUICE_YES},
};

/* Direct is for every pair with a file that is no stream's: not now, as none of these asks for it. */
static enum sluice_verdict verdict_of_direct(enum place from, enum place to)
{
    bool from_file = from == FILE_ || from == SMALL_FILE;
    bool into_file = to == FILE_ || to == SMALL_FILE || to == APPEND_FILE;
    bool never = (!from_file && from != MEMORY) || (!from_file && !into_file) || to == DATAGRAM;
    return never ? SLUICE_NEVER : SLUICE_NOT_NOW;
}

static bool is_for_few(enum sluice_route route)
{
    for (size_t i = 0; i < sizeof served_by_few / sizeof *served_by_few; i++)
        if (served_by_few[i].route == route)
            return true;
    return false;
}

static enum sluice_verdict verdict_for_few(enum place from, enum place to, enum sluice_route route)
{
    for (size_t i = 0; i < sizeof served_by_few / sizeof *served_by_few; i++)
        if (served_by_few[i].from == from && served_by_few[i].to == to && served_by_few[i].route == route)
            return served_by_few[i].verdict;
    return SLUICE_NEVER;
}

TEST("each pair of ends has the verdicts that the routes' man pages give it")
{
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        int a, b;
        struct sluice_plan plan;
        struct sluice_segment segment = source_of(expected[i].from, &a);
        struct sluice_end *sink = sink_of(expected[i].to, &b);
        char got[SLUICE_ROUTE_COUNT + 1] = "";
        CHECK_EQ(sluice_plan_make(&segment, sink, &plan), 0);
        for (unsigned k = 0; k < plan.count; k++)
            for (size_t c = 0; c < sizeof columns / sizeof *columns; c++)
                if (plan.entries[k].route == columns[c])
                    got[c] = "nly"[plan.entries[k].verdict];
        if (strcmp(got, expected[i].verdicts) != 0)
            CHECK_FAIL("%s to %s: %s, not %s", place_names[expected[i].from], place_names[expected[i].to], got,
                       expected[i].verdicts);
        if (expected[i].first != SLUICE_ROUTE_AUTO)
            CHECK_EQ(plan.entries[0].route, expected[i].first);
        sluice_end_close(segment.end);
        sluice_end_close(sink);
        close(a);
        close(b);
    }
}

TEST("routes that serve few pairs say never of all others")
{
    for (int from = 0; from <= DATAGRAM; from++) {
        for (int to = 0; to < PLACES; to++) {
            int a, b;
            struct sluice_plan plan;
            struct sluice_segment segment = source_of((enum place)from, &a);
            struct sluice_end *sink = sink_of((enum place)to, &b);
            CHECK_EQ(sluice_plan_make(&segment, sink, &plan), 0);
            for (unsigned i = 0; i < plan.count; i++) {
                enum sluice_route route = plan.entries[i].route;
                if (route == SLUICE_ROUTE_DIRECT)
                    CHECK_EQ(plan.entries[i].verdict, verdict_of_direct((enum place)from, (enum place)to));
                if (is_for_few(route) &&
                    plan.entries[i].verdict != verdict_for_few((enum place)from, (enum place)to, route))
                    CHECK_FAIL("%s to %s by %s: %d", place_names[from], place_names[to], sluice_route_name(route),
                               plan.entries[i].verdict);
            }
            sluice_end_close(segment.end);
            sluice_end_close(sink);
            close(a);
            close(b);
        }
    }
}

TEST(
    "a route that some plan has for two kinds of ends passes the check of these kinds, and others fail with the reason")
{
    for (int from = 0; from <= DATAGRAM; from++) {
        for (int to = 0; to < PLACES; to++) {
            int a, b;
            struct sluice_plan plan;
            struct sluice_segment segment = source_of((enum place)from, &a);
            struct sluice_end *sink = sink_of((enum place)to, &b);
            enum sluice_end_kind source = segment.end != NULL ? sluice_end_kind(segment.end) : SLUICE_END_MEMORY;
            CHECK_EQ(sluice_plan_make(&segment, sink, &plan), 0);
            for (unsigned i = 0; i < plan.count; i++) {
                const char *reason = "unchanged";
                int result = sluice_route_check(plan.entries[i].route, source, 0, sluice_end_kind(sink), 1, &reason);
                CHECK(result == 0 || result == -EOPNOTSUPP);
                if (plan.entries[i].verdict != SLUICE_NEVER && result != 0)
                    CHECK_FAIL("%s to %s: %s: %s", place_names[from], place_names[to],
                               sluice_route_name(plan.entries[i].route), reason);
                if (result == 0)
                    CHECK_STR(reason, "unchanged");
                else if (to != APPEND_FILE && from != MEMORY && plan.entries[i].reason != reason)
                    CHECK_FAIL("%s to %s: %s: %s, but %s", place_names[from], place_names[to],
                               sluice_route_name(plan.entries[i].route), reason, plan.entries[i].reason);
            }
            sluice_end_close(segment.end);
            sluice_end_close(sink);
            close(a);
            close(b);
        }
    }
    const enum sluice_end_kind file = SLUICE_END_FILE, tcp = SLUICE_END_TCP, memory_kind = SLUICE_END_MEMORY;
    CHECK_EQ(sluice_route_check(SLUICE_ROUTE_REFLINK, file, 0, tcp, 1, NULL), -EOPNOTSUPP);
    CHECK_EQ(sluice_route_check(SLUICE_ROUTE_REFLINK, file, 0, file, 1, NULL), 0);
    CHECK_EQ(sluice_route_check(SLUICE_ROUTE_AUTO, file, 0, tcp, 1, NULL), 0);
    CHECK_EQ(sluice_route_check(SLUICE_ROUTE_COUNT, file, 0, tcp, 1, NULL), -EINVAL);
    CHECK_EQ(sluice_route_check(SLUICE_ROUTE_TEE, tcp, 0, tcp, 1, NULL), -EOPNOTSUPP);
    CHECK_EQ(sluice_route_check(SLUICE_ROUTE_TEE, tcp, 0, tcp, 2, NULL), 0);
    CHECK_EQ(sluice_route_check(SLUICE_ROUTE_TEE, file, 0, tcp, 2, NULL), -EOPNOTSUPP);
    CHECK_EQ(sluice_route_check(SLUICE_ROUTE_SPLICE, tcp, 0, tcp, 2, NULL), -EOPNOTSUPP);
    CHECK_EQ(sluice_route_check(SLUICE_ROUTE_VMSPLICE, memory_kind, 0, tcp, 1, NULL), 0);
    CHECK_EQ(sluice_route_check(SLUICE_ROUTE_MSG_ZEROCOPY, memory_kind, 0, tcp, 1, NULL), 0);
    CHECK_EQ(sluice_route_check(SLUICE_ROUTE_URING_SEND_ZC, memory_kind, 0, SLUICE_END_DATAGRAM, 1, NULL), 0);
    CHECK_EQ(sluice_route_check(SLUICE_ROUTE_SENDFILE, file, SLUICE_END_SNAPSHOT, tcp, 1, NULL), -EOPNOTSUPP);
    CHECK_EQ(sluice_route_check(SLUICE_ROUTE_COPY, file, SLUICE_END_SNAPSHOT, tcp, 1, NULL), 0);
}

static enum sluice_verdict verdict_in(const struct sluice_plan *plan, enum sluice_route route)
{
    for (unsigned i = 0; i < plan->count; i++)
        if (plan->entries[i].route == route)
            return plan->entries[i].verdict;
    CHECK_FAIL("%s is not in the plan", sluice_route_name(route));
}

TEST("the plan of a transfer knows its other sinks and its transform")
{
    int a, b, c;
    struct sluice_plan plan;
    struct sluice_segment segment = source_of(TCP, &a);
    struct sluice_end *sinks[] = {sink_of(TCP, &b), sink_of(PIPE, &c)};
    struct sluice_transform transform = {.size = sizeof transform, .name = "none"};
    struct sluice_transfer_options options = {
        .size = sizeof options, .segments = &segment, .segment_count = 1, .sinks = sinks, .sink_count = 1};
    CHECK_EQ(sluice_loop_plan(NULL, &options, 0, 0, &plan), 0);
    CHECK_EQ(verdict_in(&plan, SLUICE_ROUTE_SPLICE), SLUICE_YES);
    CHECK_EQ(verdict_in(&plan, SLUICE_ROUTE_TEE), SLUICE_NEVER);
    options.transform = &transform;
    CHECK_EQ(sluice_loop_plan(NULL, &options, 0, 0, &plan), 0);
    CHECK_EQ(verdict_in(&plan, SLUICE_ROUTE_SPLICE), SLUICE_NEVER);
    options.transform = NULL;
    options.sink_count = 2;
    for (size_t i = 0; i < 2; i++) {
        CHECK_EQ(sluice_loop_plan(NULL, &options, 0, i, &plan), 0);
        CHECK_EQ(plan.entries[0].route, SLUICE_ROUTE_TEE);
        CHECK_EQ(verdict_in(&plan, SLUICE_ROUTE_SPLICE), SLUICE_NEVER);
    }
    CHECK_EQ(sluice_loop_plan(NULL, &options, 0, 2, &plan), -EINVAL);
    CHECK_EQ(sluice_loop_plan(NULL, &options, 1, 0, &plan), -EINVAL);
    sluice_end_close(segment.end);
    sluice_end_close(sinks[0]);
    sluice_end_close(sinks[1]);
    close(a);
    close(b);
    close(c);
}

TEST("a snapshot, and O_DIRECT, change the plan")
{
    struct sluice_end *end, *sink;
    struct sluice_plan plan;
    int peer, fd = pattern_file(NULL, SIZE);
    CHECK_EQ(sluice_end_open(fd, SLUICE_END_SNAPSHOT, &end), 0);
    sink = sink_of(TCP, &peer);
    struct sluice_segment segment = file_segment(end, 0, SIZE);
    CHECK_EQ(sluice_plan_make(&segment, sink, &plan), 0);
    CHECK_EQ(plan.entries[0].route, SLUICE_ROUTE_COPY);
    for (unsigned i = 1; i < plan.count; i++) /* direct reads into memory of its own, too */
        CHECK_EQ(plan.entries[i].verdict, plan.entries[i].route == SLUICE_ROUTE_DIRECT ? SLUICE_NOT_NOW : SLUICE_NEVER);
    sluice_end_close(end);
    close(fd);
    char path[] = "/var/tmp/sluice-direct-XXXXXX";
    close(mkstemp(path));
    fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    unlink(path);
    if (fd >= 0) { /* not every file system has it */
        CHECK_EQ(ftruncate(fd, SIZE), 0);
        segment.end = end = end_of(fd);
        CHECK_EQ(sluice_plan_make(&segment, sink, &plan), 0);
        CHECK_EQ(plan.entries[0].route, SLUICE_ROUTE_DIRECT);
        CHECK_EQ(plan.entries[1].route, SLUICE_ROUTE_COPY);
        sluice_end_close(end);
    }
    segment.end = NULL;
    CHECK_EQ(sluice_plan_make(&segment, sink, &plan), -EINVAL);
    sluice_end_close(sink);
    close(peer);
}

/* ---- Forced routes
 * ---------------------------------------------------------------------------------------------------- */

TEST("a forced route that can never serve fails before any byte, with its reason and a remedy")
{
    for (int from = 0; from < MEMORY; from++) {
        for (int to = 0; to < PLACES; to++) {
            int a, b;
            struct sluice_plan plan;
            struct sluice_segment segment = source_of((enum place)from, &a);
            struct sluice_end *sink = sink_of((enum place)to, &b);
            CHECK_EQ(sluice_plan_make(&segment, sink, &plan), 0);
            for (unsigned i = 0; i < plan.count; i++) {
                struct sluice_error error = {0};
                struct sluice_segment segments[] = {memory_segment("HEAD", 4), segment};
                struct sluice_transfer_options options = {.size = sizeof options,
                                                          .segments = segments,
                                                          .segment_count = 2,
                                                          .sinks = &sink,
                                                          .sink_count = 1,
                                                          .route = plan.entries[i].route};
                if (plan.entries[i].verdict != SLUICE_NEVER)
                    continue;
                watch_calls();
                int result = sluice_transfer_run(&options, NULL, &error);
                stop_watching();
                if (result != -EOPNOTSUPP || seen.calls != 0)
                    CHECK_FAIL("%s to %s by %s: %d after %u calls", place_names[from], place_names[to],
                               sluice_route_name(plan.entries[i].route), result, seen.calls);
                CHECK_STR(error.reason, plan.entries[i].reason);
                CHECK(error.remedy != NULL);
                CHECK_EQ(error.route, plan.entries[i].route);
                CHECK_EQ(error.delivered, 0);
            }
            sluice_end_close(segment.end);
            sluice_end_close(sink);
            close(a);
            close(b);
        }
    }
}

/* ---- Refusals
 * ---------------------------------------------------------------------------------------------------------- */

static struct sluice_receipt send_file(struct sluice_end *source, struct sluice_end *sink)
{
    struct sluice_receipt receipt;
    struct sluice_segment segment = file_segment(source, 0, 10000);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_AUTO);
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    CHECK_EQ(receipt.bytes, 10000);
    return receipt;
}

TEST("what a pair of ends refused is not tried with it again; other pairs are not affected")
{
    int a, b, c;
    struct sluice_segment segment = source_of(FILE_, &a), other = source_of(FILE_, &a);
    struct sluice_end *first = sink_of(TCP, &b), *second = sink_of(TCP, &c);
    struct sluice_plan plan;
    watch_calls();
    sendfile_error = EINVAL;
    struct sluice_receipt receipt = send_file(segment.end, first);
    CHECK_EQ(seen.sendfile_calls, 1);
    CHECK_EQ(receipt.fallback_count, 1);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_SPLICE].bytes, 10000);
    receipt = send_file(segment.end, first);
    CHECK_EQ(seen.sendfile_calls, 1); /* remembered */
    CHECK_EQ(receipt.fallback_count, 0);
    sluice_plan_make(&segment, first, &plan);
    for (unsigned i = 0; i < plan.count; i++)
        if (plan.entries[i].route == SLUICE_ROUTE_SENDFILE) {
            CHECK_EQ(plan.entries[i].verdict, SLUICE_NOT_NOW);
            CHECK(plan.entries[i].reason != NULL);
        }
    sendfile_error = 0;
    receipt = send_file(segment.end, second); /* another sink */
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_SENDFILE].bytes, 10000);
    receipt = send_file(other.end, first); /* another source */
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_SENDFILE].bytes, 10000);
    receipt = send_file(segment.end, first);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_SPLICE].bytes, 10000);
    stop_watching();
    sluice_end_close(segment.end);
    sluice_end_close(other.end);
    sluice_end_close(first);
    sluice_end_close(second);
    close(b);
    close(c);
}

/* ---- Virtual files
 * ------------------------------------------------------------------------------------------------------ */

static bool arrives_whole(const char *path)
{
    int fds[2];
    size_t size = 0, room = 64 << 20, arrived;
    unsigned char *bytes = malloc(room);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    for (ssize_t got = 1; got > 0 && size < room; size += (size_t)got)
        got = read(fd, bytes + size, room - size);
    tcp_pair(fds);
    struct collector *collector = collector_start(fds[1], false);
    struct sluice_end *source = end_of(fd), *sink = end_of(fds[0]);
    struct sluice_segment segments[] = {memory_segment("HEAD", 4), file_segment(source, 0, SLUICE_UNTIL_END)};
    struct sluice_transfer_options options = {
        .size = sizeof options, .segments = segments, .segment_count = 2, .sinks = &sink, .sink_count = 1};
    struct sluice_receipt receipt;
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    sluice_end_close(sink);
    sluice_end_close(source);
    unsigned char *data = collector_finish(collector, &arrived);
    bool whole = arrived == size + 4 && memcmp(data + 4, bytes, strcmp(path, "/proc/cpuinfo") == 0 ? 20 : size) == 0;
    CHECK_EQ(receipt.fallback_count, 0);
    CHECK_EQ(receipt.shrunk, 0);
    free(data);
    free(bytes);
    close(fds[1]);
    return whole;
}

TEST("files of /proc, which say that they are empty, arrive whole")
{
    static const char *const paths[] = {"/proc/kallsyms", "/proc/self/mountinfo", "/proc/cpuinfo", "/proc/version"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        int tries = 0; /* programs that tests beside this one load come and go in kallsyms */
        while (!arrives_whole(paths[i]))
            if (++tries == 10)
                CHECK_FAIL("%s does not arrive as it is read", paths[i]);
    }
}

/* ---- That X carried it
 * -------------------------------------------------------------------------------------------------- */

static uint64_t carried(enum sluice_route route, enum place from, enum place to)
{
    switch (route) {
    case SLUICE_ROUTE_DIRECT:
    case SLUICE_ROUTE_COPY: /* read, and, but into memory, written: the lesser of the two */
        return to != MEMORY && seen.written - seen.mapped < seen.read ? seen.written - seen.mapped : seen.read;
    case SLUICE_ROUTE_MMAP:
        return seen.mapped;
    case SLUICE_ROUTE_SENDFILE:
        return seen.sendfile;
    case SLUICE_ROUTE_COPY_FILE_RANGE:
        return seen.ranges;
    default: /* a source that is no pipe is spliced out of; without a pipe at either end, ours is as well */
        if (from == PIPE)
            return seen.drained;
        return to == PIPE || seen.filled < seen.drained ? seen.filled : seen.drained;
    }
}

TEST("a forced route carries at least 99 % of the bytes, by the system calls made, for every pair it serves")
{
    int served = 0;
    for (int from = 0; from < MEMORY; from++) {
        for (int to = 0; to <= MEMORY; to++) {
            for (int route = 1; route < SLUICE_ROUTE_COUNT; route++) {
                if (route == SLUICE_ROUTE_TCP_RECEIVE)
                    continue; /* what can be mapped is the sender's choice: test_tcp_receive.c */
                int a, b;
                size_t size = from == SMALL_FILE ? 5000 : SIZE, arrived;
                struct sluice_segment segment = source_of((enum place)from, &a);
                struct sluice_end *sink = sink_of((enum place)to, &b);
                struct sluice_transfer_options options = one_to_one(&segment, &sink, (enum sluice_route)route);
                struct sluice_transfer *transfer;
                if (sluice_transfer_new(&options, &transfer, NULL) == 0) {
                    sluice_transfer_free(transfer);
                    struct feeder *feeder = a >= 0 ? feeder_start(a, 0, size) : NULL;
                    struct collector *collector = b >= 0 ? collector_start(b, false) : NULL;
                    watch_calls();
                    struct sluice_error error;
                    char text[300];
                    int result = sluice_transfer_run(&options, NULL, &error);
                    stop_watching();
                    sluice_error_format(&error, text, sizeof text);
                    if (route == SLUICE_ROUTE_REFLINK) { /* tmpfs refuses it; test_extents is about it */
                        CHECK_EQ(result, -EOPNOTSUPP);
                        sluice_end_close(segment.end);
                        sluice_end_close(sink);
                        continue;
                    }
                    if (result < 0)
                        CHECK_FAIL("%s to %s: %s", place_names[from], place_names[to], text);
                    uint64_t bytes = carried((enum sluice_route)route, (enum place)from, (enum place)to);
                    uint64_t others =
                        seen.read + seen.sendfile + seen.mapped + seen.filled + seen.drained + seen.ranges - bytes;
                    if (route == SLUICE_ROUTE_SPLICE && seen.filled > 0 && seen.drained > 0)
                        others -= bytes;                                     /* into our pipe and out of it */
                    uint64_t rest = route == SLUICE_ROUTE_DIRECT ? 4096 : 0; /* of a block: read again, for copy */
                    if (bytes < size / 100 * 99 || others > size / 100 + rest)
                        CHECK_FAIL("%s to %s by %s: it carried %llu of %zu bytes", place_names[from], place_names[to],
                                   sluice_route_name((enum sluice_route)route), (unsigned long long)bytes, size);
                    served++;
                    if (feeder != NULL)
                        feeder_finish(feeder);
                    sluice_end_close(sink);
                    sink = NULL;
                    if (collector != NULL) {
                        free(collector_finish(collector, &arrived));
                        CHECK_EQ(arrived, size);
                    }
                } else {
                    close(a);
                }
                sluice_end_close(segment.end);
                sluice_end_close(sink);
                close(b);
            }
        }
    }
    CHECK(served >= 60);
}

int main(void)
{
    alarm(60);
    return check_run_all();
}
