/* SPDX-License-Identifier: MIT */
#include "trace/mechanism.h"
#include "check.h"
#include <linux/magic.h>

#define XFS 0x58465342
#define BTRFS 0x9123683e
#define FUSE 0x65735546
#define AF_INET6_NUMBER 10

#define SCATTER_GATHER (1u << 0)
#define CHECKSUM_IPV4 (1u << 1)
#define CHECKSUM_ALL (1u << 3)
#define CHECKSUM_IPV6 (1u << 4)

static struct account_end end_of(enum trace_end_kind kind, uint32_t file_system)
{
    return (struct account_end){.key = {.kind = (uint8_t)kind}, .value = {.file_system = file_system}};
}

static struct account_end tcp(uint8_t family, uint32_t egress, uint64_t features)
{
    return (struct account_end){.key = {.kind = TRACE_END_TCP, .family = family},
                                .value = {.egress = egress, .egress_known = egress != 0, .egress_features = features}};
}

static void check_cost(struct mechanism_cost cost, enum account_evidence evidence, unsigned copies)
{
    CHECK_EQ(cost.evidence, evidence);
    CHECK_EQ(cost.copies, copies);
    CHECK(cost.reason != NULL && cost.reason[0] != '\0');
}

static const enum trace_end_kind all_kinds[] = {
    TRACE_END_NONE, TRACE_END_MEMORY, TRACE_END_FILE,   TRACE_END_FILE_DIRECT, TRACE_END_PIPE, TRACE_END_TCP,
    TRACE_END_UDP,  TRACE_END_UNIX,   TRACE_END_SOCKET, TRACE_END_BLOCK,       TRACE_END_CHAR, TRACE_END_KERNEL};

TEST("every mechanism between every two kinds of ends has a cost with a reason, and unknown claims no copies")
{
    for (int mechanism = TRACE_NONE; mechanism <= TRACE_MECHANISM_COUNT; mechanism++)
        for (size_t i = 0; i < sizeof all_kinds / sizeof all_kinds[0]; i++)
            for (size_t j = 0; j < sizeof all_kinds / sizeof all_kinds[0]; j++) {
                struct account_end from = end_of(all_kinds[i], 0), to = end_of(all_kinds[j], 0);
                struct mechanism_cost cost =
                    mechanism_cost((enum trace_mechanism)mechanism, i == 1 ? NULL : &from, j == 1 ? NULL : &to);
                CHECK(cost.reason != NULL && cost.reason[0] != '\0');
                CHECK(cost.evidence != ACCOUNT_UNKNOWN || (cost.copies == 0 && cost.copier == NULL));
                CHECK(cost.copies == 0 || cost.evidence >= ACCOUNT_BY_DEFINITION);
                mechanism_watchers((enum trace_mechanism)mechanism, i == 1 ? NULL : &from, j == 1 ? NULL : &to);
            }
}

TEST("every mechanism, function and kind of end has a name of its own")
{
    for (int i = 0; i < TRACE_MECHANISM_COUNT; i++) {
        CHECK(mechanism_name((enum trace_mechanism)i)[0] != '\0');
        CHECK(i == TRACE_NONE || mechanism_calls((enum trace_mechanism)i)[0] != '\0');
        for (int j = 0; j < i; j++)
            CHECK(strcmp(mechanism_name((enum trace_mechanism)i), mechanism_name((enum trace_mechanism)j)) != 0);
    }
    for (int i = 0; i < TRACE_FUNCTION_COUNT; i++)
        CHECK(strcmp(mechanism_function_name((enum trace_function)i), "?") != 0);
    for (int i = 0; i < TRACE_END_KIND_COUNT; i++)
        for (int j = 0; j < i; j++)
            CHECK(strcmp(mechanism_end_kind_name((enum trace_end_kind)i),
                         mechanism_end_kind_name((enum trace_end_kind)j)) != 0);
}

TEST("numbers beyond the tables have a name, too")
{
    CHECK_STR(mechanism_name((enum trace_mechanism)200), "?");
    CHECK_STR(mechanism_calls((enum trace_mechanism)200), "");
    CHECK_STR(mechanism_function_name((enum trace_function)200), "?");
    CHECK_STR(mechanism_end_kind_name((enum trace_end_kind)200), "unknown");
}

TEST("reading and writing through the page cache is a copy each, on any file system")
{
    static const uint32_t systems[] = {EXT4_SUPER_MAGIC, TMPFS_MAGIC, XFS, BTRFS, FUSE, 0};
    for (size_t i = 0; i < sizeof systems / sizeof systems[0]; i++) {
        struct account_end file = end_of(TRACE_END_FILE, systems[i]);
        check_cost(mechanism_cost(TRACE_READ, &file, NULL), ACCOUNT_BY_DEFINITION, 1);
        check_cost(mechanism_cost(TRACE_WRITE, NULL, &file), ACCOUNT_BY_DEFINITION, 1);
    }
}

TEST("the function that copies is that of the file system")
{
    struct account_end ext4 = end_of(TRACE_END_FILE, EXT4_SUPER_MAGIC), tmpfs = end_of(TRACE_END_FILE, TMPFS_MAGIC);
    struct account_end xfs = end_of(TRACE_END_FILE, XFS), btrfs = end_of(TRACE_END_FILE, BTRFS);
    CHECK_STR(mechanism_cost(TRACE_READ, &ext4, NULL).copier, "filemap_read");
    CHECK_STR(mechanism_cost(TRACE_READ, &tmpfs, NULL).copier, "shmem_file_read_iter");
    CHECK_STR(mechanism_cost(TRACE_WRITE, NULL, &ext4).copier, "generic_perform_write");
    CHECK_STR(mechanism_cost(TRACE_WRITE, NULL, &xfs).copier, "iomap_file_buffered_write");
    CHECK_STR(mechanism_cost(TRACE_WRITE, NULL, &btrfs).copier, "btrfs_buffered_write");
}

TEST("O_DIRECT copies nothing on ext4 and XFS; where it may fall back it is unknown")
{
    struct account_end ext4 = end_of(TRACE_END_FILE_DIRECT, EXT4_SUPER_MAGIC);
    struct account_end btrfs = end_of(TRACE_END_FILE_DIRECT, BTRFS), tmpfs = end_of(TRACE_END_FILE_DIRECT, TMPFS_MAGIC);
    check_cost(mechanism_cost(TRACE_READ, &ext4, NULL), ACCOUNT_BY_DEFINITION, 0);
    check_cost(mechanism_cost(TRACE_WRITE, NULL, &ext4), ACCOUNT_BY_DEFINITION, 0);
    check_cost(mechanism_cost(TRACE_READ, &btrfs, NULL), ACCOUNT_UNKNOWN, 0);
    check_cost(mechanism_cost(TRACE_WRITE, NULL, &tmpfs), ACCOUNT_UNKNOWN, 0);
}

TEST("what a pipe or the kernel's own files say is copied once; what was read of who knows what is unknown")
{
    struct account_end pipe = end_of(TRACE_END_PIPE, 0), kernel = end_of(TRACE_END_KERNEL, 0);
    struct account_end terminal = end_of(TRACE_END_CHAR, 0), none = end_of(TRACE_END_NONE, 0);
    check_cost(mechanism_cost(TRACE_READ, &pipe, NULL), ACCOUNT_BY_DEFINITION, 1);
    check_cost(mechanism_cost(TRACE_WRITE, NULL, &pipe), ACCOUNT_BY_DEFINITION, 1);
    check_cost(mechanism_cost(TRACE_READ, &kernel, NULL), ACCOUNT_BY_DEFINITION, 1);
    check_cost(mechanism_cost(TRACE_READ, &terminal, NULL), ACCOUNT_UNKNOWN, 0);
    check_cost(mechanism_cost(TRACE_WRITE, NULL, &terminal), ACCOUNT_UNKNOWN, 0);
    check_cost(mechanism_cost(TRACE_READ, &none, NULL), ACCOUNT_UNKNOWN, 0);
}

TEST("the null device copies nothing, and the zero device clears; other character devices are unknown")
{
    struct account_end null = end_of(TRACE_END_CHAR, TMPFS_MAGIC), zero = null, other = null;
    null.value.character = 1 << 20 | 3;
    zero.value.character = 1 << 20 | 5;
    other.value.character = 1 << 20 | 8; /* random */
    check_cost(mechanism_cost(TRACE_WRITE, NULL, &null), ACCOUNT_BY_DEFINITION, 0);
    check_cost(mechanism_cost(TRACE_WRITE, NULL, &zero), ACCOUNT_BY_DEFINITION, 0);
    check_cost(mechanism_cost(TRACE_READ, &zero, NULL), ACCOUNT_BY_DEFINITION, 0);
    check_cost(mechanism_cost(TRACE_READ, &other, NULL), ACCOUNT_UNKNOWN, 0);
    check_cost(mechanism_cost(TRACE_WRITE, NULL, &other), ACCOUNT_UNKNOWN, 0);
}

TEST("sending copies once, to protocols that are known")
{
    static const enum trace_end_kind kinds[] = {TRACE_END_TCP, TRACE_END_UDP, TRACE_END_UNIX};
    for (size_t i = 0; i < 3; i++) {
        struct account_end sink = end_of(kinds[i], 0);
        check_cost(mechanism_cost(TRACE_SEND, NULL, &sink), ACCOUNT_BY_DEFINITION, 1);
    }
    struct account_end sink = end_of(TRACE_END_SOCKET, 0);
    check_cost(mechanism_cost(TRACE_SEND, NULL, &sink), ACCOUNT_UNKNOWN, 0);
}

TEST("a device gathers pages only with scatter-gather and the checksum of the socket's family")
{
    struct account_end sink = tcp(2, 2, SCATTER_GATHER | CHECKSUM_ALL);
    CHECK_EQ(mechanism_egress(&sink), MECHANISM_EGRESS_CAPABLE);
    sink = tcp(2, 2, SCATTER_GATHER | CHECKSUM_IPV4);
    CHECK_EQ(mechanism_egress(&sink), MECHANISM_EGRESS_CAPABLE);
    sink = tcp(AF_INET6_NUMBER, 2, SCATTER_GATHER | CHECKSUM_IPV6);
    CHECK_EQ(mechanism_egress(&sink), MECHANISM_EGRESS_CAPABLE);
    sink = tcp(AF_INET6_NUMBER, 2, SCATTER_GATHER | CHECKSUM_IPV4);
    CHECK_EQ(mechanism_egress(&sink), MECHANISM_EGRESS_NO_CHECKSUM);
    sink = tcp(2, 2, SCATTER_GATHER | CHECKSUM_IPV6);
    CHECK_EQ(mechanism_egress(&sink), MECHANISM_EGRESS_NO_CHECKSUM);
    sink = tcp(2, 2, CHECKSUM_ALL);
    CHECK_EQ(mechanism_egress(&sink), MECHANISM_EGRESS_NO_SCATTER_GATHER);
    sink = tcp(2, 1, 0);
    CHECK_EQ(mechanism_egress(&sink), MECHANISM_EGRESS_LOOPBACK);
    sink = tcp(2, 0, 0);
    CHECK_EQ(mechanism_egress(&sink), MECHANISM_EGRESS_UNKNOWN);
    CHECK_EQ(mechanism_egress(NULL), MECHANISM_EGRESS_UNKNOWN);
}

TEST("sendfile and splice to TCP: none where the device gathers, one where it does not, unknown where nobody asked")
{
    struct account_end file = end_of(TRACE_END_FILE, EXT4_SUPER_MAGIC), pipe = end_of(TRACE_END_PIPE, 0);
    struct account_end capable = tcp(2, 2, SCATTER_GATHER | CHECKSUM_ALL), plain = tcp(2, 2, CHECKSUM_ALL);
    struct account_end no_checksum = tcp(2, 2, SCATTER_GATHER), silent = tcp(2, 0, 0);
    check_cost(mechanism_cost(TRACE_SENDFILE, &file, &capable), ACCOUNT_PROBED, 0);
    check_cost(mechanism_cost(TRACE_SENDFILE, &file, &plain), ACCOUNT_PROBED, 1);
    check_cost(mechanism_cost(TRACE_SENDFILE, &file, &no_checksum), ACCOUNT_PROBED, 1);
    check_cost(mechanism_cost(TRACE_SENDFILE, &file, &silent), ACCOUNT_UNKNOWN, 0);
    check_cost(mechanism_cost(TRACE_SPLICE, &pipe, &capable), ACCOUNT_PROBED, 0);
    check_cost(mechanism_cost(TRACE_SPLICE, &pipe, &plain), ACCOUNT_PROBED, 1);
}

TEST("sendfile to a peer by loopback is not a copy, but lending memory to it is")
{
    struct account_end file = end_of(TRACE_END_FILE, EXT4_SUPER_MAGIC), lo = tcp(2, 1, SCATTER_GATHER | CHECKSUM_ALL);
    check_cost(mechanism_cost(TRACE_SENDFILE, &file, &lo), ACCOUNT_PROBED, 0);
    check_cost(mechanism_cost(TRACE_SEND_ZEROCOPY, NULL, &lo), ACCOUNT_BY_DEFINITION, 1);
}

TEST("sources whose pages cannot be referred to for sure make sendfile unknown")
{
    struct account_end lo = tcp(2, 1, SCATTER_GATHER | CHECKSUM_ALL), pipe = end_of(TRACE_END_PIPE, 0);
    struct account_end direct = end_of(TRACE_END_FILE_DIRECT, EXT4_SUPER_MAGIC), fuse = end_of(TRACE_END_FILE, FUSE);
    struct account_end terminal = end_of(TRACE_END_CHAR, 0), kernel = end_of(TRACE_END_KERNEL, 0);
    struct account_end block = end_of(TRACE_END_BLOCK, TMPFS_MAGIC);
    check_cost(mechanism_cost(TRACE_SENDFILE, &direct, &lo), ACCOUNT_UNKNOWN, 0);
    check_cost(mechanism_cost(TRACE_SENDFILE, &fuse, &lo), ACCOUNT_UNKNOWN, 0);
    check_cost(mechanism_cost(TRACE_SPLICE, &fuse, &pipe), ACCOUNT_UNKNOWN, 0);
    check_cost(mechanism_cost(TRACE_SPLICE, &terminal, &pipe), ACCOUNT_UNKNOWN, 0);
    check_cost(mechanism_cost(TRACE_SENDFILE, &kernel, &lo), ACCOUNT_UNKNOWN, 0);
    check_cost(mechanism_cost(TRACE_SENDFILE, &block, &lo), ACCOUNT_PROBED, 0);
}

TEST("into a file everything is copied once, whatever it comes from")
{
    struct account_end file = end_of(TRACE_END_FILE, EXT4_SUPER_MAGIC), fuse = end_of(TRACE_END_FILE, FUSE);
    struct account_end pipe = end_of(TRACE_END_PIPE, 0);
    check_cost(mechanism_cost(TRACE_SPLICE, &pipe, &file), ACCOUNT_BY_DEFINITION, 1);
    check_cost(mechanism_cost(TRACE_SENDFILE, &file, &file), ACCOUNT_BY_DEFINITION, 1);
    check_cost(mechanism_cost(TRACE_SENDFILE, &fuse, &file), ACCOUNT_BY_DEFINITION, 1);
}

TEST("references into pipes are free; into Unix sockets nobody knows")
{
    struct account_end file = end_of(TRACE_END_FILE, EXT4_SUPER_MAGIC), pipe = end_of(TRACE_END_PIPE, 0);
    struct account_end local = end_of(TRACE_END_UNIX, 0);
    check_cost(mechanism_cost(TRACE_SPLICE, &file, &pipe), ACCOUNT_BY_DEFINITION, 0);
    check_cost(mechanism_cost(TRACE_TEE, &pipe, &pipe), ACCOUNT_BY_DEFINITION, 0);
    check_cost(mechanism_cost(TRACE_VMSPLICE, NULL, &pipe), ACCOUNT_BY_DEFINITION, 0);
    check_cost(mechanism_cost(TRACE_SENDFILE, &file, &local), ACCOUNT_UNKNOWN, 0);
}

TEST("copy_file_range copies where no extents are shared, and is unknown where they may be")
{
    struct account_end ext4 = end_of(TRACE_END_FILE, EXT4_SUPER_MAGIC), xfs = end_of(TRACE_END_FILE, XFS);
    check_cost(mechanism_cost(TRACE_COPY_FILE_RANGE, &ext4, &ext4), ACCOUNT_BY_DEFINITION, 1);
    check_cost(mechanism_cost(TRACE_COPY_FILE_RANGE, &xfs, &xfs), ACCOUNT_UNKNOWN, 0);
    check_cost(mechanism_cost(TRACE_COPY_FILE_RANGE, &xfs, &ext4), ACCOUNT_UNKNOWN, 0);
    check_cost(mechanism_cost(TRACE_CLONE, &xfs, &xfs), ACCOUNT_BY_DEFINITION, 0);
}

TEST("pages that are mapped cost nothing, those copied on write one copy, another process's memory one")
{
    struct account_end file = end_of(TRACE_END_FILE, EXT4_SUPER_MAGIC), socket = tcp(2, 2, 0);
    check_cost(mechanism_cost(TRACE_MAP_FAULT, &file, NULL), ACCOUNT_BY_DEFINITION, 0);
    check_cost(mechanism_cost(TRACE_COPY_ON_WRITE, &file, NULL), ACCOUNT_BY_DEFINITION, 1);
    check_cost(mechanism_cost(TRACE_PROCESS_COPY, NULL, NULL), ACCOUNT_BY_DEFINITION, 1);
    check_cost(mechanism_cost(TRACE_RECV_ZEROCOPY, &socket, NULL), ACCOUNT_MEASURED, 0);
    check_cost(mechanism_cost(TRACE_RECV_DISCARD, &socket, NULL), ACCOUNT_BY_DEFINITION, 0);
}

TEST("TLS in the kernel: what it decrypts is not copied but for what was seen; what it encrypts may be")
{
    struct account_end plain = tcp(2, 2, 9), both = plain, device = plain;
    both.key.tls = TRACE_TLS_SEND | TRACE_TLS_RECEIVE;
    device.key.tls = TRACE_TLS_SEND_DEVICE;
    struct account_end file = end_of(TRACE_END_FILE, EXT4_SUPER_MAGIC);
    CHECK_EQ(mechanism_cost(TRACE_RECV, &both, NULL).copies, 0);
    CHECK_EQ(mechanism_cost(TRACE_RECV, &both, NULL).evidence, ACCOUNT_BY_DEFINITION);
    CHECK_EQ(mechanism_cost(TRACE_RECV, &device, NULL).copies, 1); /* it sends by TLS only */
    CHECK_EQ(mechanism_cost(TRACE_SEND, NULL, &both).evidence, ACCOUNT_UNKNOWN);
    CHECK_EQ(mechanism_cost(TRACE_SENDFILE, &file, &both).evidence, ACCOUNT_PROBED);
    CHECK_EQ(mechanism_cost(TRACE_SENDFILE, &file, &both).copies, 0);
    CHECK_EQ(mechanism_cost(TRACE_SENDFILE, &file, &device).evidence, ACCOUNT_UNKNOWN);
    CHECK_EQ(mechanism_watchers(TRACE_SEND, NULL, &both), 1u << TRACE_FN_TLS_SENDMSG);
    CHECK_EQ(mechanism_watchers(TRACE_SEND, NULL, &device), 0);
}

TEST("tier (a) vouches for silence only where all copying functions are hooked")
{
    struct account_end file = end_of(TRACE_END_FILE, EXT4_SUPER_MAGIC), fuse = end_of(TRACE_END_FILE, FUSE);
    struct account_end pipe = end_of(TRACE_END_PIPE, 0), socket = tcp(2, 2, 9), other = end_of(TRACE_END_SOCKET, 0);
    struct account_end linear = tcp(2, 2, CHECKSUM_ALL);
    CHECK(0 != mechanism_watchers(TRACE_READ, &file, NULL));
    CHECK(0 != mechanism_watchers(TRACE_WRITE, NULL, &pipe));
    CHECK(0 != mechanism_watchers(TRACE_SEND, NULL, &socket));
    CHECK(0 != mechanism_watchers(TRACE_SPLICE, &pipe, &file));
    CHECK(0 != mechanism_watchers(TRACE_COPY_FILE_RANGE, &file, &file));
    CHECK(!mechanism_watchers(TRACE_READ, &fuse, NULL));
    CHECK(!mechanism_watchers(TRACE_WRITE, NULL, &fuse));
    CHECK(!mechanism_watchers(TRACE_SEND, NULL, &other));
    CHECK(!mechanism_watchers(TRACE_SENDFILE, &file, &socket)); /* a softirq may copy, later */
    CHECK(!mechanism_watchers(TRACE_SEND, NULL, &linear));
    CHECK(!mechanism_watchers(TRACE_SEND_ZEROCOPY, NULL, &socket));
    CHECK(!mechanism_watchers(TRACE_PROCESS_COPY, NULL, NULL));
}

CHECK_MAIN()
