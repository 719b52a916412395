/* SPDX-License-Identifier: MIT
 *
 * File to file, on four file systems: the same bytes as copy by every route, whatever the sizes, offsets and holes;
 * extents shared where the file system shares them, and said to be; every refusal taken up at its byte.
 */
#include "../check.h"
#include "file_system.h"
#include "file_systems.h"
#include "sys.h"
#include "world.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char *file_system(const char *type)
{
    const char *reason, *directory = file_system_directory(type, &reason);
    if (directory == NULL)
        SKIP(reason);
    return directory;
}

static int new_file(const char *directory)
{
    int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    return fd;
}

/* ---- Any sizes, offsets and holes ----------------------------------------------------------------------------- */

#define LARGEST (2u << 20)

static uint64_t random_state;

static uint64_t draw(uint64_t below)
{
    /* splitmix64 */
    uint64_t z = random_state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (z ^ z >> 31) % below;
}

/* Often at a boundary of blocks, or next to one. */
static uint64_t draw_place(uint64_t below)
{
    uint64_t place = draw(below);
    switch (draw(4)) {
    case 0:
        return place;
    case 1:
        return place / 65536 * 65536;
    default:
        return place / 4096 * 4096;
    }
}

/* A file of some runs of data with holes between, and the same in memory. */
static int draw_file(const char *directory, unsigned char *model, size_t *ret_size)
{
    int fd = new_file(directory);
    size_t size = (size_t)draw_place(LARGEST);
    memset(model, 0, LARGEST);
    CHECK_EQ(ftruncate(fd, (off_t)size), 0);
    for (uint64_t runs = draw(6); runs > 0 && size > 0; runs--) {
        size_t from = (size_t)draw_place(size), length = (size_t)draw_place(size - from) + 1;
        if (length > size - from)
            length = size - from;
        pattern_fill(model + from, draw(1 << 20), length);
        CHECK_EQ(pwrite(fd, model + from, length, (off_t)from), length);
    }
    *ret_size = size;
    return fd;
}

enum way { BLOCKING, STEPPED, ON_EPOLL, ON_IO_URING };

static int move(const struct sluice_transfer_options *options, enum way way, struct sluice_receipt *ret_receipt,
                struct sluice_error *ret_error)
{
    if (way == BLOCKING)
        return sluice_transfer_run(options, ret_receipt, ret_error);
    if (way != STEPPED)
        return transfer_on_loop(way == ON_EPOLL ? SLUICE_LOOP_EPOLL : SLUICE_LOOP_IO_URING, options, ret_receipt,
                                ret_error);
    struct sluice_transfer *transfer;
    struct sluice_waits waits;
    int result = sluice_transfer_new(options, &transfer, ret_error);
    if (result < 0)
        return result;
    do
        result = sluice_transfer_step(transfer, &waits);
    while (result > 0);
    *ret_receipt = *sluice_transfer_receipt(transfer, 0);
    *ret_error = *sluice_transfer_error(transfer);
    sluice_transfer_free(transfer);
    return result;
}

static void check_random_copy(const char *type, const char *directory, uint64_t seed)
{
    static unsigned char from_model[LARGEST], to_model[2 * LARGEST], got[2 * LARGEST];
    static const enum sluice_route routes[] = {SLUICE_ROUTE_AUTO,   SLUICE_ROUTE_AUTO, SLUICE_ROUTE_COPY_FILE_RANGE,
                                               SLUICE_ROUTE_SPLICE, SLUICE_ROUTE_MMAP, SLUICE_ROUTE_COPY};
    char what[100], text[300];
    size_t from_size, to_size;
    random_state = seed;
    int from = draw_file(directory, from_model, &from_size);
    memset(to_model, 0, sizeof to_model);
    int to = draw_file(directory, to_model, &to_size);
    bool whole = draw(3) == 0;
    uint64_t offset = whole ? 0 : draw_place(from_size + 1), sink_offset = whole ? 0 : draw_place(to_size + 1);
    uint64_t length = whole ? from_size : draw_place(from_size - offset + 1);
    bool until_end = draw(3) == 0;
    if (until_end)
        length = from_size - offset;
    enum sluice_route route = routes[draw(sizeof routes / sizeof *routes)];
    static const enum way ways[] = {BLOCKING, BLOCKING, STEPPED, BLOCKING, STEPPED, ON_EPOLL, STEPPED, ON_IO_URING};
    enum way way = ways[draw(sizeof ways / sizeof *ways)]; /* a loop takes its time to make */
    if (whole && draw(2)) {
        CHECK_EQ(ftruncate(to, 0), 0);
        memset(to_model, 0, to_size);
        to_size = 0;
    }
    memcpy(to_model + sink_offset, from_model + offset, length);
    if (sink_offset + length > to_size && length > 0)
        to_size = sink_offset + length;
    snprintf(what, sizeof what, "%s, seed %llu: %llu bytes by %s", type, (unsigned long long)seed,
             (unsigned long long)length, sluice_route_name(route));

    struct sluice_end *source, *sink = end_of(dup(to));
    bool owned = draw(2);
    CHECK_EQ(sluice_end_open(from, owned ? SLUICE_END_OWN_FD : 0, &source), 0);
    CHECK_EQ(lseek(from, 17, SEEK_SET), 17);
    struct sluice_segment segment = file_segment(source, offset, until_end ? SLUICE_UNTIL_END : length);
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = &segment,
                                              .segment_count = 1,
                                              .sinks = &sink,
                                              .sink_count = 1,
                                              .sink_offset = sink_offset,
                                              .route = route,
                                              .flags = draw(2) ? SLUICE_TRANSFER_SPARSE : 0,
                                              .turn = draw(2) ? 1 + draw(300000) : 0};
    struct sluice_receipt receipt;
    struct sluice_error error;
    int result = move(&options, way, &receipt, &error);
    if (result < 0) {
        sluice_error_format(&error, text, sizeof text);
        CHECK_FAIL("%s: %s", what, text);
    }
    if (receipt.bytes != length || receipt.sent != length ||
        receipt.by_reference + receipt.copied + receipt.unknown != length || receipt.holes > receipt.by_reference)
        CHECK_FAIL("%s: the receipt says %llu: %llu by reference, of these %llu holes, %llu copied, %llu unknown", what,
                   (unsigned long long)receipt.bytes, (unsigned long long)receipt.by_reference,
                   (unsigned long long)receipt.holes, (unsigned long long)receipt.copied,
                   (unsigned long long)receipt.unknown);
    if (receipt.unknown != 0)
        CHECK_FAIL("%s: of %llu bytes nobody knows what happened to them", what, (unsigned long long)receipt.unknown);
    struct stat status;
    CHECK_EQ(fstat(to, &status), 0);
    if ((size_t)status.st_size != to_size)
        CHECK_FAIL("%s: the sink has %lld bytes, not %zu", what, (long long)status.st_size, to_size);
    CHECK_EQ(pread(to, got, to_size, 0), to_size);
    if (memcmp(got, to_model, to_size) != 0) {
        size_t at = 0;
        while (got[at] == to_model[at])
            at++;
        CHECK_FAIL("%s (from %llu to %llu): byte %zu of the sink is wrong", what, (unsigned long long)offset,
                   (unsigned long long)sink_offset, at);
    }
    sluice_end_close(source);
    if (!owned) {
        if (lseek(from, 0, SEEK_CUR) != 17)
            CHECK_FAIL("%s: the position of the caller's descriptor was moved", what);
        close(from);
    }
    sluice_end_close(sink);
    close(to);
}

static void any_sizes_on(const char *type)
{
    const char *directory = file_system(type);
    uint64_t first = (uint64_t)time(NULL) * 1000;
    printf("# seeds from %llu on\n", (unsigned long long)first);
    for (uint64_t seed = first; seed < first + 150; seed++)
        check_random_copy(type, directory, seed);
}

/* ---- Extents -------------------------------------------------------------------------------------------------- */

#define SIZE (4u << 20 | 4321)

static struct sluice_receipt copy_file(int from, int to, enum sluice_route route, unsigned flags)
{
    struct sluice_end *source = end_of(dup(from)), *sink = end_of(dup(to));
    struct sluice_segment segment = file_segment(source, 0, SLUICE_UNTIL_END);
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = &segment,
                                              .segment_count = 1,
                                              .sinks = &sink,
                                              .sink_count = 1,
                                              .route = route,
                                              .flags = flags};
    struct sluice_receipt receipt;
    struct sluice_error error;
    char text[300];
    int result = sluice_transfer_run(&options, &receipt, &error);
    sluice_error_format(&error, text, sizeof text);
    sluice_end_close(source);
    sluice_end_close(sink);
    if (result < 0)
        CHECK_FAIL("%s: %s", sluice_route_name(route), text);
    return receipt;
}

static void check_same(int a, int b)
{
    static unsigned char one[65536], other[65536];
    for (off_t at = 0;; at += (off_t)sizeof one) {
        ssize_t size = pread(a, one, sizeof one, at);
        CHECK_EQ(pread(b, other, sizeof other, at), size);
        CHECK(memcmp(one, other, (size_t)size) == 0);
        if (size == 0)
            return;
    }
}

/* Asked here, beside the library. */
static uint64_t shared_bytes(int fd)
{
    enum { EXTENTS = 200 };
    _Alignas(struct fiemap) char space[sizeof(struct fiemap) + EXTENTS * sizeof(struct fiemap_extent)];
    struct fiemap *map = (struct fiemap *)(void *)space;
    *map = (struct fiemap){.fm_length = FIEMAP_MAX_OFFSET, .fm_flags = FIEMAP_FLAG_SYNC, .fm_extent_count = EXTENTS};
    uint64_t shared = 0;
    if (ioctl(fd, FS_IOC_FIEMAP, map) < 0)
        return 0;
    for (unsigned i = 0; i < map->fm_mapped_extents; i++)
        if (map->fm_extents[i].fe_flags & FIEMAP_EXTENT_SHARED)
            shared += map->fm_extents[i].fe_length;
    return shared;
}

static void shares_on(const char *type)
{
    const char *directory = file_system(type);
    static const enum sluice_route routes[] = {SLUICE_ROUTE_REFLINK, SLUICE_ROUTE_COPY_FILE_RANGE, SLUICE_ROUTE_AUTO};
    for (int i = 0; i < 3; i++) {
        int from = pattern_file(directory, SIZE), to = new_file(directory);
        struct sluice_receipt receipt = copy_file(from, to, routes[i], 0);
        enum sluice_route by = routes[i] == SLUICE_ROUTE_AUTO ? SLUICE_ROUTE_REFLINK : routes[i];
        check_same(from, to);
        CHECK_EQ(receipt.by_reference, SIZE);
        CHECK_EQ(receipt.copy_bytes + receipt.unknown + receipt.aliased, 0);
        CHECK_EQ(receipt.routes[by].bytes, SIZE);
        CHECK_EQ(receipt.routes[by].calls, 1);
        CHECK_EQ(receipt.routes[by].evidence, SLUICE_EVIDENCE_MEASURED);
        CHECK(shared_bytes(to) >= SIZE);
        close(from);
        close(to);
    }
}

static void copies_on(const char *type, enum sluice_evidence evidence)
{
    const char *directory = file_system(type);
    int from = pattern_file(directory, SIZE), to = new_file(directory);
    struct sluice_receipt receipt = copy_file(from, to, SLUICE_ROUTE_COPY_FILE_RANGE, 0);
    check_same(from, to);
    CHECK_EQ(receipt.copied, SIZE);
    CHECK_EQ(receipt.copy_bytes, SIZE);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY_FILE_RANGE].bytes, SIZE);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY_FILE_RANGE].calls, 1);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY_FILE_RANGE].evidence, evidence);
    CHECK_EQ(shared_bytes(to), 0);
    close(from);
    close(to);
}

/* Unasked, splice carries what is not small; a file system's first refusal is remembered of all its files. */
static void refuses_once_on(const char *type)
{
    const char *directory = file_system(type);
    file_systems_forget();
    for (int i = 0; i < 2; i++) {
        int from = pattern_file(directory, SIZE), to = new_file(directory);
        struct sluice_receipt receipt = copy_file(from, to, SLUICE_ROUTE_AUTO, 0);
        check_same(from, to);
        CHECK_EQ(receipt.copied, SIZE);
        CHECK_EQ(receipt.routes[SLUICE_ROUTE_SPLICE].bytes, SIZE);
        CHECK_EQ(receipt.fallback_count, i == 0 ? 1 : 0);
        if (i == 0) {
            CHECK_EQ(receipt.fallbacks[0].from, SLUICE_ROUTE_REFLINK);
            CHECK_EQ(receipt.fallbacks[0].to, SLUICE_ROUTE_SPLICE);
            CHECK_EQ(receipt.fallbacks[0].error, EOPNOTSUPP);
            CHECK_STR(receipt.fallbacks[0].reason, "this file system shares no extents");
        }
        close(from);
        close(to);
    }
}

TEST("copy_file_range in short turns of any size asks for whole blocks, so that all of the file is shared")
{
    int from = pattern_file(file_system("xfs"), SIZE), to = new_file(file_system("xfs"));
    struct sluice_end *source = end_of(from), *sink = end_of(to);
    struct sluice_segment segment = file_segment(source, 0, SIZE);
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = &segment,
                                              .segment_count = 1,
                                              .sinks = &sink,
                                              .sink_count = 1,
                                              .route = SLUICE_ROUTE_COPY_FILE_RANGE,
                                              .turn = 100001};
    struct sluice_receipt receipt;
    struct sluice_error error;
    CHECK_EQ(move(&options, STEPPED, &receipt, &error), 0);
    check_same(from, to);
    CHECK_EQ(receipt.by_reference, SIZE);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY_FILE_RANGE].calls, (SIZE + 65535) / 65536);
    sluice_end_close(source);
    sluice_end_close(sink);
}

TEST("on XFS one call shares every extent of a file, and the receipt says so by the kernel's word")
{
    shares_on("xfs");
}

TEST("on btrfs one call shares every extent of a file, and the receipt says so by the kernel's word")
{
    shares_on("btrfs");
}

TEST("on ext4 reflink is refused, once, and copy_file_range copies once, measured by extents that are not shared")
{
    copies_on("ext4", SLUICE_EVIDENCE_MEASURED);
    refuses_once_on("ext4");
}

TEST("on tmpfs reflink is refused, once, and copy_file_range copies once, by definition: memory has no extents")
{
    copies_on("tmpfs", SLUICE_EVIDENCE_BY_DEFINITION);
    refuses_once_on("tmpfs");
}

TEST("of a file with more extents than the kernel is asked for at a time, all count, and so do its holes")
{
    enum { PIECES = 200, PIECE = 4096 };
    const char *directory = file_system("xfs");
    unsigned char piece[PIECE];
    int from = new_file(directory), to = new_file(directory);
    for (int i = 0; i < PIECES; i++) {
        pattern_fill(piece, (uint64_t)i * 2 * PIECE, PIECE);
        CHECK_EQ(pwrite(from, piece, PIECE, (off_t)i * 2 * PIECE), PIECE);
    }
    CHECK_EQ(ftruncate(from, PIECES * 2 * PIECE), 0);
    struct sluice_end *source = end_of(from), *sink = end_of(to);
    struct sluice_segment segment = file_segment(source, 0, PIECES * 2 * PIECE);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_REFLINK);
    struct sluice_receipt receipt;
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    CHECK_EQ(receipt.by_reference, PIECES * 2 * PIECE);
    CHECK_EQ(receipt.holes, PIECES * PIECE);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_REFLINK].evidence, SLUICE_EVIDENCE_MEASURED);
    sluice_end_close(source);
    sluice_end_close(sink);
}

static int as_overlayfs(int fd, struct statfs *status)
{
    int result = fstatfs(fd, status);
    status->f_type = 0x794c7630; /* its extents are those of a layer, and of a file system that nobody knows */
    return result;
}

TEST("on a file system whose extents tell nothing, what copy_file_range did is unknown")
{
    const char *directory = file_system("ext4");
    const struct sys before = sys;
    int from = pattern_file(directory, SIZE), to = new_file(directory);
    struct sluice_end *source = end_of(from), *sink = end_of(to);
    struct sluice_segment segment = file_segment(source, 0, SIZE);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_COPY_FILE_RANGE);
    struct sluice_receipt receipt;
    sys.fstatfs = as_overlayfs;
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    sys = before;
    CHECK_EQ(receipt.unknown, SIZE);
    CHECK_EQ(receipt.holes, 0);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY_FILE_RANGE].evidence, SLUICE_EVIDENCE_UNKNOWN);
    sluice_end_close(source);
    sluice_end_close(sink);
}

TEST("a small file that btrfs keeps inside its metadata counts as copied, though reflink accepts it")
{
    const char *directory = file_system("btrfs");
    int from = pattern_file(directory, 1000), to = new_file(directory);
    CHECK_EQ(fsync(from), 0); /* into the tree */
    struct sluice_receipt receipt = copy_file(from, to, SLUICE_ROUTE_REFLINK, 0);
    check_same(from, to);
    CHECK_EQ(receipt.copied, 1000);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_REFLINK].evidence, SLUICE_EVIDENCE_MEASURED);
    close(from);
    close(to);
}

TEST("a range that ends in mid-block is shared but for that block, which copy_file_range copies")
{
    const char *directory = file_system("xfs");
    int from = pattern_file(directory, SIZE), to = pattern_file(directory, SIZE);
    struct sluice_end *source = end_of(from), *sink = end_of(to);
    struct sluice_segment segment = file_segment(source, 0, 1000000);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_AUTO);
    struct sluice_receipt receipt;
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    CHECK_EQ(receipt.by_reference, 1000000 / 4096 * 4096);
    CHECK_EQ(receipt.copied, 1000000 % 4096);
    CHECK_EQ(receipt.fallback_count, 1);
    CHECK_EQ(receipt.fallbacks[0].at, 0);
    CHECK_EQ(receipt.fallbacks[0].error, EINVAL);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY_FILE_RANGE].evidence, SLUICE_EVIDENCE_MEASURED);
    sluice_end_close(source);
    sluice_end_close(sink);
}

TEST("reflink forced between two file systems fails with the reason and nothing moved; chosen, it gives way to copy")
{
    struct sluice_error error;
    struct sluice_receipt receipt;
    int from = pattern_file(file_system("xfs"), SIZE), to = new_file(file_system("btrfs"));
    struct sluice_end *source = end_of(from), *sink = end_of(to);
    struct sluice_segment segment = file_segment(source, 0, SLUICE_UNTIL_END);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_REFLINK);
    CHECK_EQ(sluice_transfer_run(&options, &receipt, &error), -EOPNOTSUPP);
    CHECK_STR(error.reason, "the files are on different file systems");
    CHECK_STR(error.operation, "ioctl(FICLONERANGE)");
    CHECK(error.remedy != NULL);
    CHECK_EQ(error.delivered, 0);
    options.route = SLUICE_ROUTE_AUTO;
    CHECK_EQ(sluice_transfer_run(&options, &receipt, &error), 0);
    check_same(from, to);
    CHECK_EQ(receipt.fallback_count, 2);
    CHECK_EQ(receipt.fallbacks[0].error, EXDEV);
    CHECK_EQ(receipt.fallbacks[1].from, SLUICE_ROUTE_COPY_FILE_RANGE);
    CHECK_EQ(receipt.fallbacks[1].error, EXDEV);
    CHECK_EQ(receipt.fallbacks[1].to, SLUICE_ROUTE_SPLICE);
    CHECK_EQ(receipt.copied, SIZE);
    sluice_end_close(source);
    sluice_end_close(sink);
}

TEST("copy_file_range appends at the position of a file, moves it on, and proves what it wrote there")
{
    int from = pattern_file(file_system("xfs"), SIZE), to = new_file(file_system("xfs"));
    CHECK_EQ(write(to, "before", 6), 6);
    struct sluice_end *source = end_of(dup(from)), *sink = end_of(dup(to));
    struct sluice_segment segment = file_segment(source, 0, SIZE);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_AUTO);
    options.sink_offset = SLUICE_APPEND;
    struct sluice_receipt receipt;
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY_FILE_RANGE].bytes, SIZE);
    CHECK_EQ(receipt.copied, SIZE);
    CHECK_EQ(receipt.fallbacks[0].error, ESPIPE);
    CHECK_EQ(lseek(to, 0, SEEK_CUR), SIZE + 6);
    static unsigned char got[SIZE + 6];
    CHECK_EQ(pread(to, got, sizeof got, 0), sizeof got);
    CHECK_EQ(pattern_wrong(got + 6, 0, SIZE), SIZE);
    sluice_end_close(source);
    sluice_end_close(sink);
    close(from);
    close(to);
}

TEST(
    "ends of files that are known already are made without asking, and every route goes between them as between others")
{
    static const enum sluice_route routes[] = {SLUICE_ROUTE_AUTO, SLUICE_ROUTE_COPY_FILE_RANGE, SLUICE_ROUTE_SPLICE,
                                               SLUICE_ROUTE_MMAP, SLUICE_ROUTE_COPY};
    struct sluice_end *source, *sink;
    CHECK_EQ(sluice_end_open_file(999999, 1, 0, &source), 0); /* no such descriptor, which asking would tell */
    CHECK_EQ(sluice_end_kind(source), SLUICE_END_FILE);
    CHECK_EQ(sluice_end_fd(source), 999999);
    sluice_end_close(source);
    int from = pattern_file(file_system("ext4"), SIZE);
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        int to = new_file(file_system("ext4"));
        CHECK_EQ(sluice_end_open_file(from, SIZE, 0, &source), 0);
        CHECK_EQ(sluice_end_open_file(to, 0, SLUICE_END_OWN_FD, &sink), 0);
        struct sluice_segment segment = file_segment(source, 0, SIZE);
        struct sluice_transfer_options options = one_to_one(&segment, &sink, routes[i]);
        struct sluice_receipt receipt;
        CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
        CHECK_EQ(receipt.bytes, SIZE);
        check_same(from, to);
        sluice_end_close(source);
        sluice_end_close(sink);
        CHECK(fcntl(to, F_GETFD) < 0);
    }
    close(from);
}

/* ---- Holes ---------------------------------------------------------------------------------------------------- */

#define HOLLOW (64u << 20)

static int hollow_file(const char *directory)
{
    static unsigned char bytes[65536];
    int fd = new_file(directory);
    pattern_fill(bytes, 0, sizeof bytes);
    CHECK_EQ(ftruncate(fd, HOLLOW), 0);
    CHECK_EQ(pwrite(fd, bytes, sizeof bytes, 16 << 20), sizeof bytes);
    CHECK_EQ(pwrite(fd, bytes, sizeof bytes, 32 << 20), sizeof bytes);
    return fd;
}

/* Not st_blocks: XFS allocates more than there is beyond the end of a file that grows. */
static uint64_t data_in(int fd)
{
    uint64_t data = 0;
    for (off_t from = 0, to = 0; (from = lseek(fd, to, SEEK_DATA)) >= 0; data += (uint64_t)(to - from))
        to = lseek(fd, from, SEEK_HOLE);
    return data;
}

static void keeps_holes_on(const char *type)
{
    const char *directory = file_system(type);
    static const enum sluice_route routes[] = {SLUICE_ROUTE_AUTO, SLUICE_ROUTE_COPY_FILE_RANGE, SLUICE_ROUTE_SPLICE,
                                               SLUICE_ROUTE_MMAP, SLUICE_ROUTE_COPY};
    int from = hollow_file(directory);
    for (int old = 0; old < 2; old++) {
        for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
            struct stat status;
            int to = old ? pattern_file(directory, 40 << 20) : new_file(directory);
            struct sluice_receipt receipt = copy_file(from, to, routes[i], SLUICE_TRANSFER_SPARSE);
            check_same(from, to);
            CHECK_EQ(fstat(to, &status), 0);
            CHECK_EQ(status.st_size, HOLLOW);
            if (data_in(to) > 4 * 65536)
                CHECK_FAIL("%s: %s left %llu KiB of data", type, sluice_route_name(routes[i]),
                           (unsigned long long)data_in(to) >> 10);
            CHECK_EQ(receipt.holes, HOLLOW - 2 * 65536);
            CHECK_EQ(receipt.unknown, 0);
            close(to);
        }
    }
    close(from);
}

/* ---- Refusals ------------------------------------------------------------------------------------------------- */

static uint64_t refused_at;
static int refused_with; /* 0: gives nothing */

static ssize_t refusing_copy_file_range(int in, off_t *in_offset, int out, off_t *out_offset, size_t size,
                                        unsigned flags)
{
    static char buffer[SIZE];
    uint64_t left = refused_at - (uint64_t)*in_offset;
    (void)flags;
    if (left > 0) { /* copied, wherever this is */
        ssize_t got = pread(in, buffer, size < left ? size : left, *in_offset);
        if (got > 0 && pwrite(out, buffer, (size_t)got, *out_offset) != got)
            return -1;
        *in_offset += got;
        *out_offset += got;
        return got;
    }
    errno = refused_with;
    return refused_with == 0 ? 0 : -1;
}

static int unaligned_clone_range(int in, off_t in_offset, int out, off_t out_offset, size_t size)
{
    (void)in, (void)in_offset, (void)out, (void)out_offset, (void)size;
    errno = EINVAL;
    return -1;
}

static int refusing_clone_range(int in, off_t in_offset, int out, off_t out_offset, size_t size)
{
    (void)in, (void)in_offset, (void)out, (void)out_offset, (void)size;
    errno = refused_with;
    return -1;
}

TEST("whatever refuses copy_file_range, at any byte, the next route goes on there and the receipt says why")
{
    static const int errors[] = {EXDEV, EOPNOTSUPP, EINVAL, ETXTBSY, EBADF, ENOENT, EPERM, EACCES, ENOSYS, EAGAIN, 0};
    static const uint64_t places[] = {0, 1, 4095, 4096, 1 << 20, SIZE - 1};
    struct sys before = sys;
    int from = pattern_file(file_system("xfs"), SIZE);
    for (size_t e = 0; e < sizeof errors / sizeof *errors; e++) {
        for (size_t p = 0; p < sizeof places / sizeof *places; p++) {
            int to = new_file(file_system("xfs"));
            refused_with = errors[e];
            refused_at = places[p];
            sys.copy_file_range = refusing_copy_file_range;
            sys.clone_range = unaligned_clone_range;
            file_systems_forget();
            struct sluice_receipt receipt = copy_file(from, to, SLUICE_ROUTE_AUTO, 0);
            sys = before;
            check_same(from, to);
            const struct sluice_fallback *fallback = &receipt.fallbacks[receipt.fallback_count - 1];
            CHECK_EQ(receipt.fallback_count, 2);
            CHECK_EQ(fallback->from, SLUICE_ROUTE_COPY_FILE_RANGE);
            CHECK_EQ(fallback->error, errors[e]);
            CHECK_EQ(fallback->at, places[p]);
            CHECK(fallback->reason != NULL);
            CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY_FILE_RANGE].bytes, places[p]);
            CHECK_EQ(receipt.copied, SIZE);
            close(to);
        }
    }
    close(from);
}

TEST("whatever refuses reflink, copy_file_range goes on, and forced, the transfer fails and says what was tried")
{
    static const int errors[] = {EOPNOTSUPP, ENOTTY, ENOSYS, EXDEV,  EINVAL, ETXTBSY,
                                 EBADF,      EPERM,  EACCES, ENOENT, EAGAIN};
    struct sys before = sys;
    int from = pattern_file(file_system("xfs"), SIZE);
    for (size_t e = 0; e < sizeof errors / sizeof *errors; e++) {
        int to = new_file(file_system("xfs"));
        refused_with = errors[e];
        sys.clone_range = refusing_clone_range;
        file_systems_forget();
        struct sluice_receipt receipt = copy_file(from, to, SLUICE_ROUTE_AUTO, 0);
        check_same(from, to);
        CHECK_EQ(receipt.fallbacks[0].error, errors[e]);
        CHECK_EQ(receipt.fallbacks[0].at, 0);
        CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY_FILE_RANGE].bytes, SIZE);
        struct sluice_end *source = end_of(dup(from)), *sink = end_of(to);
        struct sluice_segment segment = file_segment(source, 0, SIZE);
        struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_REFLINK);
        struct sluice_error error;
        CHECK_EQ(sluice_transfer_run(&options, NULL, &error), -EOPNOTSUPP);
        CHECK_STR(error.operation, "ioctl(FICLONERANGE)");
        CHECK(error.reason != NULL && error.remedy != NULL);
        sys = before;
        sluice_end_close(source);
        sluice_end_close(sink);
    }
    close(from);
}

TEST("a file of /proc goes whole into a file, and is not taken for empty by a forced copy_file_range")
{
    int from = open("/proc/version", O_RDONLY | O_CLOEXEC), to = pattern_file(NULL, 0);
    struct sluice_receipt receipt = copy_file(from, to, SLUICE_ROUTE_AUTO, SLUICE_TRANSFER_SPARSE);
    CHECK(receipt.bytes > 20);
    check_same(from, to);
    static const enum sluice_route routes[] = {SLUICE_ROUTE_COPY_FILE_RANGE, SLUICE_ROUTE_REFLINK};
    for (int i = 0; i < 2; i++) {
        struct sluice_end *source = end_of(dup(from)), *sink = end_of(pattern_file(NULL, 0));
        struct sluice_segment segment = file_segment(source, 0, SLUICE_UNTIL_END);
        struct sluice_transfer_options options = one_to_one(&segment, &sink, routes[i]);
        struct sys before = sys;
        if (i == 0) { /* as Linux 5.3 to 5.18 did */
            refused_with = 0;
            refused_at = 0;
            sys.copy_file_range = refusing_copy_file_range;
        }
        int result = sluice_transfer_run(&options, &receipt, NULL);
        sys = before;
        CHECK_EQ(result, -EOPNOTSUPP);
        sluice_end_close(source);
        sluice_end_close(sink);
    }
    close(from);
    close(to);
}

TEST("an empty file is copied by every route that its file system accepts")
{
    int from = new_file(file_system("xfs"));
    static const enum sluice_route routes[] = {SLUICE_ROUTE_AUTO, SLUICE_ROUTE_REFLINK, SLUICE_ROUTE_COPY_FILE_RANGE};
    for (int i = 0; i < 3; i++) {
        int to = new_file(file_system("xfs"));
        struct sluice_receipt receipt = copy_file(from, to, routes[i], SLUICE_TRANSFER_SPARSE);
        CHECK_EQ(receipt.bytes, 0);
        CHECK_EQ(receipt.fallback_count, 0);
        close(to);
    }
    close(from);
}

#define ON_FILE_SYSTEM(type, name)                                                                                     \
    TEST_NAMED(name ": any sizes, offsets and holes arrive as they were, by any route", type##_any_sizes)              \
    {                                                                                                                  \
        any_sizes_on(#type);                                                                                           \
    }                                                                                                                  \
    TEST_NAMED(name ": holes are kept on every route, in a new file and over an old one", type##_holes)                \
    {                                                                                                                  \
        keeps_holes_on(#type);                                                                                         \
    }

/* clang-format off: it takes what follows a macro for its body. */
ON_FILE_SYSTEM(ext4, "ext4")
ON_FILE_SYSTEM(tmpfs, "tmpfs")
ON_FILE_SYSTEM(xfs, "XFS")
ON_FILE_SYSTEM(btrfs, "btrfs")
/* clang-format on */

int main(void)
{
    alarm(100); /* a hang is a failure */
    return check_run_all();
}
