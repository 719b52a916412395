/* SPDX-License-Identifier: MIT
 *
 * Files that a loop reads from the disk and drops from the page cache behind the transfer (SLUICE_END_DROP_BEHIND), on
 * epoll and on io_uring.
 */
#include "../check.h"
#include "checked.h"
#include "sys.h"
#include "world.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/vfs.h>
#include <unistd.h>

#define MIB (1u << 20)
#define SIZE (8 * MIB)

static struct sluice_loop *loop;
static struct sluice_loop_options loop_options = {.size = sizeof loop_options, .kind = SLUICE_LOOP_EPOLL};

static void evict(int fd)
{
    CHECK_EQ(fsync(fd), 0);
    CHECK_EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
}

/* Bytes of a file of ours that are in memory, in whole pages. */
static size_t resident(int fd, size_t from, size_t size)
{
    static unsigned char there[SIZE / 4096];
    size_t count = 0;
    void *mapping = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, (off_t)from);
    CHECK(mapping != MAP_FAILED);
    CHECK_EQ(mincore(mapping, size, there), 0);
    munmap(mapping, size);
    for (size_t i = 0; i < size / 4096; i++)
        count += there[i] & 1;
    return count * 4096;
}

/* A file on a disk, none of it in memory; the test is left out where memory is the disk. */
static int cold_file(void)
{
    int fd = pattern_file("/var/tmp", SIZE);
    struct statfs status;
    if (fstatfs(fd, &status) == 0 && status.f_type == TMPFS_MAGIC) {
        close(fd);
        return -1;
    }
    evict(fd);
    CHECK_EQ(resident(fd, 0, SIZE), 0);
    return fd;
}
#define COLD_FILE(fd)                                                                                                  \
    int fd = cold_file();                                                                                              \
    if (fd < 0)                                                                                                        \
    SKIP("tmpfs cannot evict pages; put /var/tmp on a disk file system")

struct download {
    struct sluice_end *source, *sink;
    struct sluice_transfer *transfer;
    struct sluice_receipt receipt;
    int result;
    bool closes, stops;
};
static int downloads;

static void close_ends(struct download *download)
{
    sluice_loop_forget(loop, download->sink);
    sluice_end_close(download->sink);
    if (download->source != NULL)
        sluice_end_close(download->source);
    download->source = download->sink = NULL;
}

static void downloaded(void *context, struct sluice_transfer *transfer, int result)
{
    struct download *download = context;
    download->result = result;
    download->receipt = *sluice_transfer_receipt(transfer, 0);
    download->transfer = NULL;
    if (download->closes)
        close_ends(download);
    if (--downloads == 0 || download->stops)
        sluice_loop_stop(loop);
}

static void start(struct download *download, struct sluice_end *source, int socket, uint64_t offset, uint64_t length)
{
    struct sluice_segment segment = file_segment(source, offset, length);
    download->sink = end_of(socket);
    struct sluice_transfer_options options = one_to_one(&segment, &download->sink, SLUICE_ROUTE_AUTO);
    options.flags = SLUICE_TRANSFER_NEVER_BLOCK;
    downloads++;
    CHECK_EQ(sluice_loop_transfer(loop, &options, downloaded, download, &download->transfer, NULL, NULL), 0);
}

static struct sluice_end *dropping_end(int fd)
{
    struct sluice_end *end;
    CHECK_EQ(sluice_end_open(dup(fd), SLUICE_END_OWN_FD | SLUICE_END_DROP_BEHIND, &end), 0);
    return end;
}

static void out_of_time(void *context)
{
    *(bool *)context = true;
    sluice_loop_stop(loop);
}

static void run(void)
{
    struct sluice_timer limit = {0};
    bool late = false;
    sluice_timer_start(loop, &limit, 20000, out_of_time, &late);
    CHECK_EQ(sluice_loop_run(loop), 0);
    sluice_timer_stop(loop, &limit);
    CHECK(!late);
}

/* What may stay, of what a receiver on this machine had not read when it was to go. */
#define STRAGGLERS (SIZE / 16)

/* The kernel may take some when memory is short. */
static bool stays(uint64_t bytes, uint64_t expected)
{
    return bytes + STRAGGLERS >= expected;
}

/* What a receiver on this machine has read is freed by the CPU that sent it, together with what that receives next
 * (skb_attempt_defer_free, Linux 5.19): have every CPU receive something. */
static void receive_everywhere(void)
{
    struct sockaddr_in self = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof self;
    cpu_set_t ours, one;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(bind(fd, (struct sockaddr *)&self, size), 0);
    CHECK_EQ(getsockname(fd, (struct sockaddr *)&self, &size), 0);
    CHECK_EQ(sched_getaffinity(0, sizeof ours, &ours), 0);
    for (unsigned cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &ours))
            continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        CHECK_EQ(sched_setaffinity(0, sizeof one, &one), 0);
        CHECK_EQ(sendto(fd, "", 1, 0, (struct sockaddr *)&self, size), 1);
    }
    CHECK_EQ(sched_setaffinity(0, sizeof ours, &ours), 0);
    close(fd);
}

/* Run until so much of the file is in memory, and hardly more. */
struct wish {
    struct sluice_timer timer;
    int fd;
    size_t bytes, last;
    unsigned tries;
};

static void look(void *context)
{
    struct wish *wish = context;
    receive_everywhere();
    wish->last = resident(wish->fd, 0, SIZE);
    if (wish->last <= wish->bytes + STRAGGLERS || wish->tries++ == 150)
        sluice_loop_stop(loop);
    else
        sluice_timer_start(loop, &wish->timer, 100, look, wish);
}

static void run_until_dropped(int fd, size_t bytes)
{
    struct wish wish = {.fd = fd, .bytes = bytes};
    look(&wish);
    CHECK_EQ(sluice_loop_run(loop), 0);
    CHECK(stays(wish.last, bytes));
    CHECK(wish.last <= bytes + STRAGGLERS);
}

static void check_bytes(struct collector *collector, uint64_t from, size_t expected)
{
    size_t size;
    unsigned char *data = collector_finish(collector, &size);
    CHECK_EQ(size, expected);
    CHECK_EQ(pattern_wrong(data, from, size), size);
    free(data);
}

static void begin(void)
{
    downloads = 0;
    CHECK_EQ(sluice_loop_new(&loop_options, &loop), 0);
}

static void end(void)
{
    sluice_loop_free(loop);
    loop = NULL;
}

/* One download of a range of the file, which is closed as soon as it is done. */
static void download(struct download *one, int fd, uint64_t offset, uint64_t length)
{
    int pair[2];
    one->closes = true;
    tcp_pair(pair);
    struct collector *collector = collector_start(pair[1], false);
    one->source = dropping_end(fd);
    start(one, one->source, pair[0], offset, length);
    run();
    CHECK_EQ(one->result, 0);
    CHECK_EQ(one->receipt.bytes, length);
    check_bytes(collector, offset, length);
    close(pair[1]);
}

TEST("a file that was not in memory is not there after the transfer either, though its end is closed at once")
{
    struct download one = {.closes = true};
    COLD_FILE(fd);
    begin();
    download(&one, fd, 0, SIZE);
    CHECK(one.receipt.dropped <= SIZE && stays(one.receipt.dropped, SIZE));
    run_until_dropped(fd, 0);
    close(fd);
    end();
}

TEST("without the flag it stays in memory, and nothing is said to be dropped")
{
    struct download one = {.closes = false};
    int pair[2];
    COLD_FILE(fd);
    begin();
    tcp_pair(pair);
    struct collector *collector = collector_start(pair[1], false);
    struct sluice_end *source = end_of(dup(fd));
    start(&one, source, pair[0], 0, SIZE);
    run();
    CHECK_EQ(one.receipt.dropped, 0);
    close_ends(&one);
    check_bytes(collector, 0, SIZE);
    CHECK(stays(resident(fd, 0, SIZE), SIZE));
    sluice_end_close(source);
    close(pair[1]);
    close(fd);
    end();
}

TEST("what was in memory before stays there, and only that")
{
    static char bytes[3 * MIB];
    struct download one = {.closes = true};
    COLD_FILE(fd);
    begin();
    /* Without reading ahead, beyond what is asked for. */
    CHECK_EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM), 0);
    CHECK_EQ(pread(fd, bytes, sizeof bytes, 3 * MIB), sizeof bytes);
    size_t before = resident(fd, 0, SIZE);
    CHECK_EQ(resident(fd, 3 * MIB, 3 * MIB), before);
    download(&one, fd, 0, SIZE);
    CHECK(one.receipt.dropped <= SIZE - before && stays(one.receipt.dropped, SIZE - before));
    run_until_dropped(fd, before);
    CHECK(stays(resident(fd, 3 * MIB, 3 * MIB), before));
    close(fd);
    end();
}

TEST("a range that does not begin with a page is dropped but for the pages at its ends")
{
    struct download one = {.closes = true};
    COLD_FILE(fd);
    begin();
    download(&one, fd, MIB + 100, 5 * MIB);
    CHECK(one.receipt.dropped <= 5 * MIB && stays(one.receipt.dropped, 5 * MIB));
    run_until_dropped(fd, 0);
    close(fd);
    end();
}

TEST("a file that two transfers read from the disk at the same time stays")
{
    struct download one = {.stops = true}, two = {.closes = false};
    int a[2], b[2];
    COLD_FILE(fd);
    begin();
    tcp_pair(a);
    tcp_pair(b);
    /* The second one's peer reads nothing until the first has all. */
    struct sluice_end *source = dropping_end(fd);
    start(&one, source, a[0], 0, SIZE);
    start(&two, source, b[0], 0, SIZE);
    struct collector *first = collector_start(a[1], false);
    run();
    CHECK_EQ(one.result, 0);
    CHECK_EQ(one.receipt.dropped, 0);
    CHECK(stays(resident(fd, 0, SIZE), SIZE));
    struct collector *second = collector_start(b[1], false);
    run();
    CHECK_EQ(two.result, 0);
    close_ends(&one);
    close_ends(&two);
    check_bytes(first, 0, SIZE);
    check_bytes(second, 0, SIZE);
    sluice_end_close(source);
    close(a[1]);
    close(b[1]);
    close(fd);
    end();
}

static void cancel(void *context)
{
    struct download *download = context;
    sluice_loop_transfer_cancel(loop, download->transfer);
}

TEST("of a transfer that is cancelled, what was read for it is dropped, the window under way included")
{
    struct download one = {.closes = true};
    struct sluice_timer soon = {0};
    int pair[2];
    COLD_FILE(fd);
    begin();
    tcp_pair(pair); /* nobody reads: it stops when the socket is full */
    one.source = dropping_end(fd);
    start(&one, one.source, pair[0], 0, SIZE);
    sluice_timer_start(loop, &soon, 1, cancel, &one);
    run();
    CHECK_EQ(one.result, -ECANCELED);
    close(pair[1]); /* now nobody refers to the pages */
    run_until_dropped(fd, 0);
    close(fd);
    end();
}

TEST("pages that the peer has not taken when the transfer ends are dropped when it has")
{
    struct download one = {.closes = false};
    int pair[2];
    COLD_FILE(fd);
    begin();
    tcp_pair(pair);
    struct sluice_end *source = dropping_end(fd);
    start(&one, source, pair[0], 0, MIB); /* fits into the socket, which nobody reads */
    run();
    CHECK_EQ(one.result, 0);
    CHECK(one.receipt.dropped <= MIB && stays(one.receipt.dropped, MIB));
    CHECK(resident(fd, 0, SIZE) > 0);
    sluice_end_close(source);
    close_ends(&one);
    struct collector *collector = collector_start(pair[1], false);
    check_bytes(collector, 0, MIB);
    run_until_dropped(fd, 0);
    close(pair[1]);
    close(fd);
    end();
}

TEST("a loop that ends with pages to be dropped leaves no descriptor open")
{
    struct download one = {.closes = true};
    int pair[2];
    COLD_FILE(fd);
    int before = open_descriptors();
    begin();
    tcp_pair(pair);
    one.source = dropping_end(fd);
    start(&one, one.source, pair[0], 0, MIB);
    run();
    end();
    close(pair[1]);
    CHECK_EQ(open_descriptors(), before);
    close(fd);
}

static int no_more(int fd, int command, long argument)
{
    (void)fd, (void)argument;
    if (command == F_DUPFD_CLOEXEC) {
        errno = EMFILE;
        return -1;
    }
    return fcntl(fd, command, argument);
}

TEST("without a descriptor to drop pages by, the transfer goes on and they stay")
{
    struct download one = {.closes = true};
    struct sys before = sys;
    COLD_FILE(fd);
    begin();
    sys.fcntl = no_more;
    download(&one, fd, 0, SIZE);
    sys.fcntl = before.fcntl; /* alone: a helper may be reading another */
    CHECK_EQ(one.receipt.dropped, 0);
    CHECK(stays(resident(fd, 0, SIZE), SIZE));
    close(fd);
    end();
}

/* A look has the page read that it does not find, and where the disk is fast it finds it then. */
static ssize_t fast_disk(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    ssize_t result;
    while ((result = preadv2(fd, iov, count, offset, flags)) < 0 && errno == EAGAIN)
        usleep(100);
    return result;
}

TEST("from a disk so fast that looks find the pages that they bring, helpers read, and all is dropped")
{
    struct download one = {.closes = true};
    struct sys before = sys;
    struct rusage start, end_of_it;
    COLD_FILE(fd);
    begin();
    sys.preadv2 = fast_disk;
    CHECK_EQ(getrusage(RUSAGE_THREAD, &start), 0);
    download(&one, fd, 0, SIZE);
    CHECK_EQ(getrusage(RUSAGE_THREAD, &end_of_it), 0);
    sys.preadv2 = before.preadv2;
    CHECK((end_of_it.ru_inblock - start.ru_inblock) * 512 < SIZE / 16); /* by the loop's thread */
    CHECK_EQ(one.receipt.dropped, SIZE);
    run_until_dropped(fd, 0);
    close(fd);
    end();
}

int main(int argc, char **argv)
{
    return run_all_on_named_loop(&loop_options, argc, argv);
}
