/* SPDX-License-Identifier: MIT
 *
 * Direct: the same bytes as through the page cache, also for who looks at them through the page cache; whole blocks
 * past it, the rest by copy; and never an EINVAL for a length or place that O_DIRECT does not take.
 */
#include "../check.h"
#include "file_systems.h"
#include "sys.h"
#include "world.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define RECORD (1u << 20)
#define BLOCK 4096u

static const char *file_system(const char *type)
{
    const char *reason, *directory = file_system_directory(type, &reason);
    if (directory == NULL)
        SKIP(reason);
    return directory;
}

static struct sluice_end *end_with(int fd, unsigned flags)
{
    struct sluice_end *end;
    CHECK_EQ(sluice_end_open(fd, SLUICE_END_OWN_FD | flags, &end), 0);
    return end;
}

static int new_file(const char *directory, int flags)
{
    int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC | flags, 0600);
    CHECK(fd >= 0);
    return fd;
}

/* The same file, through the page cache. */
static int again(int fd)
{
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int other = open(path, O_RDWR | O_CLOEXEC);
    CHECK(other >= 0);
    return other;
}

static struct sluice_transfer_options options_for(struct sluice_segment *segment, struct sluice_end **sink,
                                                  uint64_t offset, enum sluice_route route)
{
    return (struct sluice_transfer_options){.size = sizeof(struct sluice_transfer_options),
                                            .segments = segment,
                                            .segment_count = 1,
                                            .sinks = sink,
                                            .sink_count = 1,
                                            .sink_offset = offset,
                                            .route = route};
}

enum way { BLOCKING, ON_EPOLL, ON_IO_URING, WAYS };

static struct sluice_receipt move(struct sluice_segment segment, struct sluice_end *sink, uint64_t offset,
                                  enum sluice_route route, enum way way)
{
    struct sluice_transfer_options options = options_for(&segment, &sink, offset, route);
    struct sluice_receipt receipt;
    struct sluice_error error;
    char text[300];
    int result = way == BLOCKING ? sluice_transfer_run(&options, &receipt, &error)
                                 : transfer_on_loop(way == ON_EPOLL ? SLUICE_LOOP_EPOLL : SLUICE_LOOP_IO_URING,
                                                    &options, &receipt, &error);
    if (result < 0) { /* else there is none */
        sluice_error_format(&error, text, sizeof text);
        CHECK_FAIL("%s", text);
    }
    return receipt;
}

static struct sluice_receipt run(struct sluice_segment segment, struct sluice_end *sink, uint64_t offset,
                                 enum sluice_route route)
{
    return move(segment, sink, offset, route, BLOCKING);
}

static unsigned char *record(void)
{
    static unsigned char *memory;
    if (memory == NULL)
        memory = aligned_alloc(BLOCK, 2 * RECORD);
    pattern_fill(memory, 0, 2 * RECORD);
    return memory;
}

static void check_pattern(int fd, uint64_t at, uint64_t from, size_t size)
{
    static unsigned char got[2 * RECORD];
    CHECK_EQ(pread(fd, got, size, (off_t)at), size);
    CHECK_EQ(pattern_wrong(got, from, size), size);
}

/* ---- Logs ----------------------------------------------------------------------------------------------------- */

static void appends(int file_flags, unsigned end_flags, uint64_t offset)
{
    int fd = new_file(file_system("ext4"), file_flags), seen = again(fd);
    struct sluice_end *log = end_with(fd, end_flags);
    unsigned char *memory = record();
    CHECK_EQ(sluice_end_allocate(log, 0, 8 * RECORD), 0);
    for (unsigned i = 0; i < 4; i++) {
        struct sluice_receipt receipt =
            run(memory_segment(memory, RECORD), log, offset != SLUICE_APPEND ? i * RECORD : offset, SLUICE_ROUTE_AUTO);
        CHECK_EQ(receipt.routes[SLUICE_ROUTE_DIRECT].bytes, RECORD);
        CHECK_EQ(receipt.routes[SLUICE_ROUTE_DIRECT].calls, 1);
        CHECK_EQ(receipt.routes[SLUICE_ROUTE_DIRECT].evidence, SLUICE_EVIDENCE_PROBED);
        CHECK_EQ(receipt.by_reference, RECORD);
        CHECK_EQ(receipt.fallback_count, 0);
        check_pattern(seen, i * RECORD, 0, RECORD);
    }
    /* Then one that ends in mid-block, and one after it that begins there. */
    struct sluice_receipt receipt = run(memory_segment(memory, RECORD + 1000), log,
                                        offset != SLUICE_APPEND ? 4 * RECORD : offset, SLUICE_ROUTE_AUTO);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_DIRECT].bytes, RECORD + 512); /* the device's blocks have 512 bytes */
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY].bytes, 488);
    CHECK_EQ(receipt.copy_bytes, 488);
    CHECK_EQ(receipt.fallback_count, 1);
    CHECK_EQ(receipt.fallbacks[0].at, RECORD + 512);
    CHECK_EQ(receipt.fallbacks[0].error, 0);
    receipt = run(memory_segment(memory, RECORD), log, offset != SLUICE_APPEND ? 5 * RECORD + 1000 : offset,
                  SLUICE_ROUTE_AUTO);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY].bytes, RECORD);
    check_pattern(seen, 4 * RECORD, 0, RECORD + 1000);
    check_pattern(seen, 5 * RECORD + 1000, 0, RECORD);
    struct stat status;
    CHECK_EQ(fstat(seen, &status), 0);
    CHECK_EQ(status.st_size, 6 * RECORD + 1000);
    if (offset == SLUICE_APPEND && !(file_flags & O_APPEND))
        CHECK_EQ(lseek(fd, 0, SEEK_CUR), 6 * RECORD + 1000);
    sluice_end_close(log);
    close(seen);
}

TEST("records of whole blocks go into a log by one direct write each; parts of blocks go by copy, whatever comes after")
{
    static const struct {
        int file_flags;
        unsigned end_flags;
    } kinds[] = {{0, SLUICE_END_DIRECT}, {O_DIRECT, 0}, {O_DSYNC, SLUICE_END_DIRECT}};
    for (int i = 0; i < 3; i++)
        for (int at_position = 0; at_position < 2; at_position++)
            appends(kinds[i].file_flags, kinds[i].end_flags, at_position ? SLUICE_APPEND : 0);
}

TEST("records go to the end of a log that is open with O_APPEND")
{
    int fd = new_file(file_system("xfs"), O_APPEND), seen = again(fd);
    struct sluice_end *log = end_with(fd, SLUICE_END_DIRECT);
    unsigned char *memory = record();
    for (unsigned i = 0; i < 3; i++) {
        struct sluice_receipt receipt = run(memory_segment(memory, RECORD), log, SLUICE_APPEND, SLUICE_ROUTE_AUTO);
        CHECK_EQ(receipt.routes[SLUICE_ROUTE_DIRECT].bytes, RECORD);
        check_pattern(seen, i * RECORD, 0, RECORD);
    }
    run(memory_segment(memory, 777), log, SLUICE_APPEND, SLUICE_ROUTE_AUTO);
    struct sluice_receipt receipt = run(memory_segment(memory, RECORD), log, SLUICE_APPEND, SLUICE_ROUTE_AUTO);
    check_pattern(seen, 3 * RECORD, 0, 777);
    check_pattern(seen, 3 * RECORD + 777, 0, RECORD);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY].bytes,
             RECORD); /* the kernel refused it: the log's end is in mid-block */
    CHECK_EQ(receipt.fallbacks[0].error, EINVAL);
    sluice_end_close(log);
    close(seen);
}

static int opened_flags;

static int noting_open(const char *path, int flags, mode_t mode)
{
    opened_flags = flags;
    return open(path, flags, mode);
}

TEST("the second descriptor keeps the first one's promise of durability")
{
    struct sys before = sys;
    struct sluice_end *log = end_with(new_file(file_system("ext4"), O_DSYNC), SLUICE_END_DIRECT);
    sys.open = noting_open;
    run(memory_segment(record(), RECORD), log, 0, SLUICE_ROUTE_AUTO);
    sys = before;
    CHECK_EQ(opened_flags & (O_DIRECT | O_DSYNC | O_ACCMODE | O_CLOEXEC), O_DIRECT | O_DSYNC | O_RDWR | O_CLOEXEC);
    sluice_end_close(log);
}

TEST("memory at an odd address is copied into the file instead, and the receipt says why")
{
    int fd = new_file(file_system("ext4"), 0), seen = again(fd);
    struct sluice_end *log = end_with(fd, SLUICE_END_DIRECT);
    struct sluice_receipt receipt = run(memory_segment(record() + 1, RECORD), log, 0, SLUICE_ROUTE_AUTO);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY].bytes, RECORD);
    CHECK_EQ(receipt.fallback_count, 1);
    CHECK(strstr(receipt.fallbacks[0].reason, "O_DIRECT") != NULL);
    check_pattern(seen, 0, 1, RECORD);
    sluice_end_close(log);
    close(seen);
}

TEST("room can be allocated ahead of a file's end without making it longer, and a full disk is told at once")
{
    int fd = new_file(file_system("ext4"), 0), pipe[2];
    struct sluice_end *end = end_with(fd, 0), *other;
    struct stat status;
    CHECK_EQ(sluice_end_allocate(end, 0, 4 * RECORD), 0);
    CHECK_EQ(fstat(fd, &status), 0);
    CHECK_EQ(status.st_size, 0);
    CHECK(status.st_blocks >= 4 * RECORD / 512);
    CHECK_EQ(sluice_end_allocate(end, 0, UINT64_C(1) << 34), -ENOSPC);
    CHECK_EQ(sluice_end_allocate(end, UINT64_MAX, 1), -EINVAL);
    CHECK_EQ(sluice_end_allocate(end, 0, 0), -EINVAL);
    sluice_end_close(end);
    pipe_pair(pipe);
    other = end_with(pipe[1], 0);
    CHECK_EQ(sluice_end_allocate(other, 0, RECORD), -EINVAL);
    sluice_end_close(other);
    close(pipe[0]);
}

/* ---- Cold reads ----------------------------------------------------------------------------------------------- */

/* By mincore: a read that must not wait starts reading ahead. */
static unsigned cached_pages(int fd, size_t size)
{
    static unsigned char cached[2 * RECORD / BLOCK];
    unsigned count = 0;
    void *mapping = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(mapping != MAP_FAILED);
    CHECK_EQ(mincore(mapping, size, cached), 0);
    munmap(mapping, size);
    for (size_t i = 0; i < size / BLOCK; i++)
        count += cached[i] & 1;
    return count;
}

TEST("a cold file read by direct does not come into the page cache, and arrives in the caller's memory uncopied")
{
    int fd = pattern_file(file_system("ext4"), 2 * RECORD);
    CHECK_EQ(fdatasync(fd), 0);
    CHECK_EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    CHECK_EQ(cached_pages(fd, 2 * RECORD), 0);
    unsigned char *memory = aligned_alloc(BLOCK, 2 * RECORD);
    struct sluice_end *source = end_with(dup(fd), SLUICE_END_DIRECT), *sink;
    CHECK_EQ(sluice_end_open_memory(memory, 2 * RECORD, &sink), 0);
    struct sluice_receipt receipt = run(file_segment(source, 0, 2 * RECORD), sink, 0, SLUICE_ROUTE_AUTO);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_DIRECT].bytes, 2 * RECORD);
    CHECK_EQ(receipt.by_reference, 2 * RECORD);
    CHECK_EQ(receipt.copy_bytes, 0);
    CHECK_EQ(cached_pages(fd, 2 * RECORD), 0);
    CHECK_EQ(pattern_wrong(memory, 0, 2 * RECORD), 2 * RECORD);
    sluice_end_close(source);
    sluice_end_close(sink);
    free(memory);
    close(fd);
}

static void check_range(uint64_t from, uint64_t size, enum way way)
{
    int fds[2];
    size_t arrived;
    int fd = pattern_file(file_system("ext4"), 2 * RECORD + 123);
    unix_pair(fds);
    struct collector *collector = collector_start(fds[1], false);
    struct sluice_end *source = end_with(fd, SLUICE_END_DIRECT), *sink = end_with(fds[0], 0);
    struct sluice_receipt receipt = move(file_segment(source, from, size), sink, 0, SLUICE_ROUTE_AUTO, way);
    if (size == SLUICE_UNTIL_END)
        size = 2 * RECORD + 123 - from;
    sluice_end_close(sink);
    sluice_end_close(source);
    unsigned char *data = collector_finish(collector, &arrived);
    CHECK_EQ(arrived, size);
    CHECK_EQ(pattern_wrong(data, from, size), size);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_DIRECT].bytes, size);
    CHECK_EQ(receipt.copy_bytes, size);
    free(data);
    close(fds[1]);
}

TEST("any range of a file goes to a socket by direct, with one copy, on every loop")
{
    for (int way = 0; way < WAYS; way++) {
        check_range(1234567, SLUICE_UNTIL_END, (enum way)way);
        check_range(7, 994, (enum way)way);
        check_range(4096, 4096, (enum way)way);
        check_range(0, RECORD + 1, (enum way)way);
    }
}

/* ---- Refusals ------------------------------------------------------------------------------------------------- */

static int refused_open;

static int refusing_open(const char *path, int flags, mode_t mode)
{
    (void)path, (void)flags, (void)mode;
    errno = refused_open;
    return -1;
}

TEST("where the file cannot be opened a second time, copy goes on and says so; forced, direct fails with the reason")
{
    static const int errors[] = {ENOENT, EINVAL, EACCES, EMFILE};
    struct sys before = sys;
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        int fd = new_file(file_system("ext4"), 0), seen = again(fd);
        refused_open = errors[i];
        sys.open = refusing_open;
        struct sluice_end *end = end_with(fd, SLUICE_END_DIRECT);
        struct sluice_receipt receipt = run(memory_segment(record(), RECORD), end, 0, SLUICE_ROUTE_AUTO);
        CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY].bytes, RECORD);
        CHECK_EQ(receipt.fallbacks[0].error, errors[i]);
        struct sluice_segment segment = memory_segment(record(), RECORD);
        struct sluice_transfer_options options = options_for(&segment, &end, 0, SLUICE_ROUTE_DIRECT);
        struct sluice_error error;
        CHECK_EQ(sluice_transfer_run(&options, &receipt, &error), -EOPNOTSUPP);
        CHECK(error.reason != NULL && error.remedy != NULL);
        sys = before;
        check_pattern(seen, 0, 0, RECORD);
        sluice_end_close(end);
        close(seen);
    }
}

static ssize_t refusing_pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    if (fcntl(fd, F_GETFL) & O_DIRECT) {
        errno = EINVAL;
        return -1;
    }
    return pwritev(fd, iov, count, offset);
}

TEST("what was read by direct and may not be written so is read again by copy, and counts as copied")
{
    struct sys before = sys;
    int fd = new_file(file_system("ext4"), 0), seen = again(fd);
    struct sluice_end *source = end_with(pattern_file(file_system("ext4"), RECORD), 0);
    struct sluice_end *sink = end_with(fd, SLUICE_END_DIRECT);
    sys.pwritev = refusing_pwritev;
    struct sluice_receipt receipt = run(file_segment(source, 0, RECORD), sink, 0, SLUICE_ROUTE_AUTO);
    sys = before;
    check_pattern(seen, 0, 0, RECORD);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_DIRECT].bytes, 0);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY].bytes, RECORD);
    CHECK_EQ(receipt.copy_bytes, 2 * RECORD);
    sluice_end_close(source);
    sluice_end_close(sink);
    close(seen);
}

TEST("a descriptor with O_DIRECT takes and gives any length at any place")
{
    const char *directory = file_system("ext4");
    int from = pattern_file(directory, 300001), to = new_file(directory, O_DIRECT), seen = again(to);
    struct sluice_end *source = end_with(from, 0), *sink = end_with(to, 0);
    static const enum sluice_route routes[] = {SLUICE_ROUTE_AUTO, SLUICE_ROUTE_COPY, SLUICE_ROUTE_DIRECT};
    for (int i = 0; i < 3; i++) {
        run(file_segment(source, 17, 200001), sink, 4099, routes[i]);
        check_pattern(seen, 4099, 17, 200001);
        CHECK_EQ(ftruncate(to, 0), 0);
    }
    sluice_end_close(source);
    source = end_with(new_file(directory, O_DIRECT), 0);
    int fill = again(sluice_end_fd(source));
    CHECK_EQ(write(fill, record(), 300001), 300001);
    close(fill);
    for (int i = 0; i < 3; i++) { /* its size was seen when it was empty: until its end */
        run(file_segment(source, 17, SLUICE_UNTIL_END), sink, 99, routes[i]);
        check_pattern(seen, 99, 17, 300001 - 17);
        CHECK_EQ(ftruncate(to, 0), 0);
    }
    sluice_end_close(source);
    sluice_end_close(sink);
    close(seen);
}

/* ---- Any sizes and offsets ------------------------------------------------------------------------------------ */

#define LARGEST (3u << 19)

static uint64_t random_state;

static uint64_t draw(uint64_t below)
{
    /* splitmix64 */
    uint64_t z = random_state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (z ^ z >> 31) % below;
}

static uint64_t draw_place(uint64_t below)
{
    uint64_t place = draw(below);
    return draw(3) == 0 ? place : place / BLOCK * BLOCK;
}

/* A file with bytes, some of them seen through the page cache, some dirty there. */
static int draw_file(const char *directory, unsigned char *model, size_t *ret_size, bool *ret_open_direct)
{
    bool open_direct = draw(3) == 0;
    int fd = new_file(directory, open_direct ? O_DIRECT : 0), seen = again(fd);
    size_t size = (size_t)draw_place(LARGEST);
    pattern_fill(model, draw(1 << 20), size);
    memset(model + size, 0, LARGEST - size);
    CHECK_EQ(write(seen, model, size), size);
    if (draw(2))
        fdatasync(seen);
    close(seen);
    *ret_size = size;
    *ret_open_direct = open_direct;
    return fd;
}

static void check_random(const char *type, const char *directory, uint64_t seed)
{
    static _Alignas(4096) unsigned char from_model[LARGEST], to_model[2 * LARGEST], got[2 * LARGEST];
    char what[100];
    size_t from_size, to_size;
    bool from_direct, to_direct;
    random_state = seed;
    int from = draw_file(directory, from_model, &from_size, &from_direct);
    memset(to_model, 0, sizeof to_model);
    int to = draw_file(directory, to_model, &to_size, &to_direct), seen = again(to);
    uint64_t offset = draw_place(from_size + 1), at = draw_place(to_size + 1);
    uint64_t length = draw_place(from_size - offset + 1);
    bool memory = draw(3) == 0, forced = draw(2);
    memcpy(to_model + at, from_model + offset, length);
    if (length > 0 && at + length > to_size)
        to_size = at + length;
    snprintf(what, sizeof what, "%s, seed %llu", type, (unsigned long long)seed);
    struct sluice_end *source = end_with(from, draw(2) ? SLUICE_END_DIRECT : 0);
    struct sluice_end *sink = end_with(to, draw(2) ? SLUICE_END_DIRECT : 0);
    struct sluice_segment segment =
        memory ? memory_segment(from_model + offset, length) : file_segment(source, offset, length);
    struct sluice_receipt receipt =
        move(segment, sink, at, forced ? SLUICE_ROUTE_DIRECT : SLUICE_ROUTE_AUTO, (enum way)draw(WAYS));
    if (receipt.sent != length || receipt.by_reference + receipt.copied + receipt.unknown != length)
        CHECK_FAIL("%s: the receipt says %llu of %llu bytes", what, (unsigned long long)receipt.sent,
                   (unsigned long long)length);
    CHECK_EQ(pread(seen, got, sizeof got, 0), to_size);
    if (memcmp(got, to_model, to_size) != 0) {
        size_t byte = 0;
        while (got[byte] == to_model[byte])
            byte++;
        CHECK_FAIL("%s: byte %zu of the sink is wrong (%llu from %llu to %llu)", what, byte, (unsigned long long)length,
                   (unsigned long long)offset, (unsigned long long)at);
    }
    sluice_end_close(source);
    sluice_end_close(sink);
    close(seen);
}

static void any_sizes_on(const char *type)
{
    const char *directory = file_system(type);
    uint64_t first = (uint64_t)time(NULL) * 1000;
    printf("# seeds from %llu on\n", (unsigned long long)first);
    for (uint64_t seed = first; seed < first + 100; seed++)
        check_random(type, directory, seed);
}

TEST("ext4: any sizes and offsets arrive as they were, past the page cache and beside it")
{
    any_sizes_on("ext4");
}

TEST("XFS: any sizes and offsets arrive as they were, past the page cache and beside it")
{
    any_sizes_on("xfs");
}

TEST("btrfs: any sizes and offsets arrive as they were, past the page cache and beside it")
{
    any_sizes_on("btrfs");
}

TEST("tmpfs: any sizes and offsets arrive as they were, past the page cache and beside it")
{
    any_sizes_on("tmpfs");
}

int main(void)
{
    alarm(100); /* a hang is a failure */
    return check_run_all();
}
