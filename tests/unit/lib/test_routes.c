/* SPDX-License-Identifier: MIT
 *
 * Every route, from every kind of source into every kind of sink it says it can serve, delivers the bytes of `copy`: by
 * the blocking call, and as test-lib-routes epoll or io_uring on that loop.
 */
#include "../check.h"
#include "world.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum source_kind { FROM_FILE, FROM_PIPE, FROM_TCP, FROM_UNIX, SOURCES };
enum sink_kind { TO_TCP, TO_UNIX, TO_PIPE, TO_FILE, TO_MEMORY, SINKS };

static const char *const source_names[] = {"file", "pipe", "tcp", "unix"};
static const char *const sink_names[] = {"tcp", "unix", "pipe", "file", "memory"};

#define SIZE (3u << 20 | 4321)

struct run {
    struct sluice_receipt receipt;
    struct sluice_error error;
    int result;
    unsigned char *data;
    size_t size;
};

static unsigned char memory_sink[SIZE + 100];

static struct sluice_segment open_source(enum source_kind kind, size_t size, bool exact, struct feeder **ret_feeder)
{
    int fds[2];
    uint64_t length = exact ? size : SLUICE_UNTIL_END;
    *ret_feeder = NULL;
    switch (kind) {
    case FROM_FILE:
        return file_segment(end_of(pattern_file(NULL, size)), 0, length);
    case FROM_PIPE:
        pipe_pair(fds);
        *ret_feeder = feeder_start(fds[1], 0, size);
        return stream_segment(end_of(fds[0]), length);
    case FROM_TCP:
        tcp_pair(fds);
        *ret_feeder = feeder_start(fds[0], 0, size);
        return stream_segment(end_of(fds[1]), length);
    default:
        unix_pair(fds);
        *ret_feeder = feeder_start(fds[0], 0, size);
        return stream_segment(end_of(fds[1]), length);
    }
}

static struct sluice_loop *loop; /* NULL: the blocking call */

static void done(void *context, struct sluice_transfer *transfer, int result)
{
    struct run *run = context;
    run->result = result;
    run->receipt = *sluice_transfer_receipt(transfer, 0);
    run->error = *sluice_transfer_error(transfer);
    sluice_loop_stop(loop);
}

static void carry(const struct sluice_transfer_options *options, struct run *run)
{
    if (loop == NULL) {
        run->result = sluice_transfer_run(options, &run->receipt, &run->error);
        return;
    }
    const struct sluice_receipt *receipt;
    run->result = sluice_loop_transfer(loop, options, done, run, NULL, &receipt, &run->error);
    if (run->result == 0)
        CHECK_EQ(sluice_loop_run(loop), 0);
    else
        run->receipt = *receipt;
    if (run->result > 0)
        run->result = 0;
    for (size_t i = 0; i < options->segment_count; i++)
        if (options->segments[i].end != NULL)
            sluice_loop_forget(loop, options->segments[i].end);
    sluice_loop_forget(loop, options->sinks[0]);
}

/* Head in memory, body by the route, tail in memory. */
static struct run run(enum source_kind from, enum sink_kind to, enum sluice_route route, size_t size, bool exact,
                      bool slow)
{
    struct run run = {0};
    struct feeder *feeder;
    struct collector *collector = NULL;
    int fds[2] = {-1, -1};
    struct sluice_end *sink = NULL;
    struct sluice_segment segments[] = {memory_segment("HEAD", 4), open_source(from, size, exact, &feeder),
                                        memory_segment("TAIL!", 5)};
    switch (to) {
    case TO_TCP:
        tcp_pair(fds);
        break;
    case TO_UNIX:
        unix_pair(fds);
        break;
    case TO_PIPE: {
        int pipe[2];
        pipe_pair(pipe);
        fds[0] = pipe[1];
        fds[1] = pipe[0];
        break;
    }
    case TO_FILE:
        fds[0] = pattern_file(NULL, 0);
        fds[1] = dup(fds[0]);
        break;
    default:
        sluice_end_open_memory(memory_sink, sizeof memory_sink, &sink);
        break;
    }
    if (sink == NULL)
        sink = end_of(fds[0]);
    if (to != TO_FILE && to != TO_MEMORY)
        collector = collector_start(fds[1], slow);
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = segments,
                                              .segment_count = 3,
                                              .sinks = &sink,
                                              .sink_count = 1,
                                              .route = route};
    carry(&options, &run);
    if (feeder != NULL && run.result < 0)
        shutdown(sluice_end_fd(segments[1].end), SHUT_RDWR);
    sluice_end_close(segments[1].end);
    sluice_end_close(sink);
    if (feeder != NULL)
        feeder_finish(feeder);
    if (collector != NULL) {
        run.data = collector_finish(collector, &run.size);
        close(fds[1]);
    } else {
        run.data = malloc(sizeof memory_sink);
        run.size = run.receipt.bytes;
        if (to == TO_FILE) {
            run.size = (size_t)lseek(fds[1], 0, SEEK_END);
            CHECK(pread(fds[1], run.data, run.size, 0) == (ssize_t)run.size);
            close(fds[1]);
        } else {
            memcpy(run.data, memory_sink, run.size);
        }
    }
    return run;
}

static void check_bytes(const struct run *run, size_t size, const char *what)
{
    if (run->result != 0) {
        char text[300];
        sluice_error_format(&run->error, text, sizeof text);
        CHECK_FAIL("%s: %s", what, text);
    }
    if (run->size != size + 9)
        CHECK_FAIL("%s: %zu bytes arrived, not %zu", what, run->size, size + 9);
    if (memcmp(run->data, "HEAD", 4) != 0 || memcmp(run->data + 4 + size, "TAIL!", 5) != 0)
        CHECK_FAIL("%s: head or tail is wrong", what);
    size_t wrong = pattern_wrong(run->data + 4, 0, size);
    if (wrong < size)
        CHECK_FAIL("%s: byte %zu is wrong", what, wrong);
    if (run->receipt.bytes != size + 9 || run->receipt.sent != size + 9)
        CHECK_FAIL("%s: the receipt says %llu bytes", what, (unsigned long long)run->receipt.bytes);
    if (run->receipt.by_reference + run->receipt.copied + run->receipt.unknown != run->receipt.bytes)
        CHECK_FAIL("%s: the receipt does not add up", what);
}

static void every_pair(size_t size, bool exact, bool slow)
{
    int before = open_descriptors();
    for (int from = 0; from < SOURCES; from++) {
        for (int to = 0; to < SINKS; to++) {
            for (int route = 0; route < SLUICE_ROUTE_COUNT; route++) {
                char what[100];
                snprintf(what, sizeof what, "%s to %s by %s", source_names[from], sink_names[to],
                         sluice_route_name((enum sluice_route)route));
                struct run got =
                    run((enum source_kind)from, (enum sink_kind)to, (enum sluice_route)route, size, exact, slow);
                if (got.result == -EOPNOTSUPP) {
                    free(got.data);
                    if (route == SLUICE_ROUTE_AUTO || route == SLUICE_ROUTE_COPY)
                        CHECK_FAIL("%s is refused", what);
                    if (got.error.reason == NULL || got.error.delivered != got.size || got.size > 4)
                        CHECK_FAIL("%s is refused without a reason, or after bytes of the body were moved", what);
                    continue;
                }
                check_bytes(&got, size, what);
                bool by_blocks = route == SLUICE_ROUTE_DIRECT &&
                                 (to == TO_FILE || to == TO_MEMORY); /* after the head none is whole */
                /* What arrives in no whole pages cannot be mapped (test_tcp_receive.c sends what can). */
                bool by_pages = route == SLUICE_ROUTE_TCP_RECEIVE;
                if (route != SLUICE_ROUTE_AUTO && size > 0 && got.receipt.routes[route].bytes < size && !by_blocks &&
                    !by_pages)
                    CHECK_FAIL("%s: only %llu bytes went by it", what,
                               (unsigned long long)got.receipt.routes[route].bytes);
                free(got.data);
            }
        }
    }
    /* The pools of this thread keep pipes: two descriptors each. */
    CHECK(open_descriptors() - before <= 2);
}

TEST("every route delivers the bytes of every pair of ends it serves, and says why it does not serve the others")
{
    every_pair(SIZE, false, false);
}

TEST("sources of exact length deliver the same")
{
    every_pair(300000, true, false);
}

TEST("empty sources end at once on every route")
{
    every_pair(0, false, false);
}

TEST("small bodies leave on every route")
{
    every_pair(1000, true, false);
}

TEST("a slow reader loses nothing")
{
    every_pair(400000, false, true);
}

TEST("a file goes to a TCP socket by sendfile when it is large, and by one write of its mapping when it is small")
{
    struct run large = run(FROM_FILE, TO_TCP, SLUICE_ROUTE_AUTO, 1 << 20, true, false);
    CHECK_EQ(large.receipt.routes[SLUICE_ROUTE_SENDFILE].bytes, 1 << 20);
    free(large.data);
    struct run small = run(FROM_FILE, TO_TCP, SLUICE_ROUTE_AUTO, 1000, true, false);
    CHECK_EQ(small.receipt.routes[SLUICE_ROUTE_MMAP].bytes, 1000);
    CHECK_EQ(small.receipt.copy_bytes, 1009);
    free(small.data);
}

TEST("a socket goes to a socket by splice")
{
    struct run got = run(FROM_TCP, TO_TCP, SLUICE_ROUTE_AUTO, 1 << 20, false, false);
    CHECK_EQ(got.receipt.routes[SLUICE_ROUTE_SPLICE].bytes, 1 << 20);
    CHECK_EQ(got.receipt.routes[SLUICE_ROUTE_SPLICE].evidence, SLUICE_EVIDENCE_PROBED);
    CHECK_EQ(got.receipt.by_reference, 1 << 20);
    free(got.data);
}

TEST("copying counts two copies per byte of a file, one per byte of memory")
{
    struct run got = run(FROM_FILE, TO_TCP, SLUICE_ROUTE_COPY, 100000, true, false);
    CHECK_EQ(got.receipt.copy_bytes, 200009);
    CHECK_EQ(got.receipt.copied, 100009);
    CHECK_EQ(got.receipt.routes[SLUICE_ROUTE_COPY].evidence, SLUICE_EVIDENCE_BY_DEFINITION);
    free(got.data);
}

TEST("pages of a file sent by reference are told to be aliased")
{
    struct run got = run(FROM_FILE, TO_TCP, SLUICE_ROUTE_SENDFILE, 100000, true, false);
    CHECK_EQ(got.receipt.aliased, 100000);
    CHECK_EQ(got.receipt.by_reference, 100000);
    free(got.data);
}

int main(int argc, char **argv)
{
    struct sluice_loop_options options = {.size = sizeof options};
    struct sluice_error error;
    if (argc > 1) {
        options.kind = (enum sluice_loop_kind)sluice_loop_kind_by_name(argv[1]);
        if (sluice_loop_probe(&options, &error) < 0) {
            char text[256];
            sluice_error_format(&error, text, sizeof text);
            printf("1..0 # SKIP %s; %s\n", text, error.remedy);
            return 0;
        }
        if (sluice_loop_new(&options, &loop) < 0)
            return 1;
    }
    int failed = check_run_all();
    sluice_loop_free(loop);
    return failed;
}
