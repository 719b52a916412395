/* SPDX-License-Identifier: MIT
 *
 * Is the judge of our receipts awake? Built against a library whose receipts can be made to lie, one rule at a time
 * (RECEIPT_MUTANTS in lib/core/receipt.c).
 */
#include "check.h"
#include "lib/core/receipt.h"
#include "lib/core/sys.h"
#include "trace/check.h"
#include "unit/lib/file_systems.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum receipt_rule receipt_mutant;

static struct check_result check_in(const char *directory, enum receipt_rule mutant, enum sluice_route route)
{
    static const struct check_options options = {.stream = NULL};
    static struct check *check; /* for all tests: loading programs into a kernel takes longer than most of them */
    struct check_result result;
    int error = check == NULL ? check_open(&options, &check) : 0;
    if (error == -EPERM || error == -ENOSYS)
        SKIP("needs CAP_BPF and CAP_PERFMON, and a build with clang, bpftool and libbpf; run as root");
    CHECK_EQ(error, 0);
    receipt_mutant = mutant;
    error = check_run(check, route, directory, &result);
    receipt_mutant = RULE_NONE;
    CHECK_EQ(error, 0);
    return result;
}

TEST("receipts as they are agree with the trace")
{
    if (getenv("SLUICE_TEST_FILE_SYSTEMS") != NULL)
        return; /* in guests, sluice trace --check itself is asked: all routes take their time there */
    struct check_result result = check_in(NULL, RULE_NONE, SLUICE_ROUTE_AUTO);
    CHECK_EQ(result.disagreed, 0);
    CHECK(result.agreed > 40);
}

/* Of the route that has the rule; the others are left out, as they take their time. */
#define NOTICED(sentence, rule, route)                                                                                 \
    TEST(sentence)                                                                                                     \
    {                                                                                                                  \
        struct check_result result = check_in(NULL, rule, route);                                                      \
        CHECK(result.disagreed > 0);                                                                                   \
    }

NOTICED("a receipt that says read and write copy nothing is caught", RULE_COPY_TWICE, SLUICE_ROUTE_COPY)
NOTICED("a receipt that says memory is sent without a copy is caught", RULE_COPY_FROM_MEMORY, SLUICE_ROUTE_COPY)
NOTICED("a receipt that says reading into memory copies nothing is caught", RULE_COPY_INTO_MEMORY, SLUICE_ROUTE_COPY)
NOTICED("a receipt that says a stream is written to several sinks without copies is caught", RULE_COPY_FANNED_OUT,
        SLUICE_ROUTE_COPY)
NOTICED("a receipt that says a stream is read for several sinks without a copy is caught", RULE_COPY_SHARED_READ,
        SLUICE_ROUTE_COPY)
NOTICED("a receipt that says writing from a mapping copies nothing is caught", RULE_MMAP, SLUICE_ROUTE_MMAP)
NOTICED("a receipt that says splicing into a file copies nothing is caught", RULE_REFERENCE_INTO_FILE,
        SLUICE_ROUTE_SPLICE)
NOTICED("a receipt that says splicing into a pipe copies is caught", RULE_REFERENCE_INTO_PIPE, SLUICE_ROUTE_SPLICE)
NOTICED("a receipt that says pages were copied that were given away is caught", RULE_GIVEN, SLUICE_ROUTE_VMSPLICE)
NOTICED("a receipt that says lent memory was not copied, where it was, is caught", RULE_LENT_COPIED,
        SLUICE_ROUTE_MSG_ZEROCOPY)
NOTICED("a receipt that says sendfile to a device with scatter-gather copies is caught",
        RULE_REFERENCE_TO_SCATTER_GATHER, SLUICE_ROUTE_SENDFILE)
NOTICED("a receipt that says that writing from received pages copies nothing is caught", RULE_WRITTEN_FROM_RECEIVED,
        SLUICE_ROUTE_TCP_RECEIVE)
NOTICED("a receipt that says pages were copied that tee gave to several sinks is caught", RULE_TEE, SLUICE_ROUTE_TEE)

/* In the guests: this machine's own kernel may have no TLS, and no machine here has a device that does it. */
TEST("a receipt that says that kernel TLS copies what it encrypts out of pages is caught")
{
    const char *reason = NULL;
    if (sluice_tls_probe(&reason) < 0 && getenv("SLUICE_TEST_FILE_SYSTEMS") == NULL)
        return;
    if (reason != NULL)
        CHECK_FAIL("%s", reason);
    struct check_result result = check_in(NULL, RULE_TLS_REFERENCE, SLUICE_ROUTE_SENDFILE);
    CHECK(result.disagreed > 0);
}

static void require_ring(void)
{
    static const struct sluice_loop_options options = {.size = sizeof options, .kind = SLUICE_LOOP_IO_URING};
    struct sluice_error error;
    if (sluice_loop_probe(&options, &error) < 0)
        SKIP(error.reason != NULL ? error.reason : "no io_uring");
}

#define NOTICED_BY_RING(sentence, rule, route)                                                                         \
    TEST(sentence)                                                                                                     \
    {                                                                                                                  \
        require_ring();                                                                                                \
        struct check_result result = check_in(NULL, rule, route);                                                      \
        CHECK(result.disagreed > 0);                                                                                   \
    }

NOTICED_BY_RING("a receipt that says memory lent by a ring was not copied, where it was, is caught", RULE_LENT_COPIED,
                SLUICE_ROUTE_URING_SEND_ZC)
NOTICED_BY_RING("a receipt that says a ring sent nothing from memory that it has registered is caught", RULE_REGISTERED,
                SLUICE_ROUTE_URING_SEND_ZC)
NOTICED_BY_RING("a receipt that says a ring read and wrote by memory that it has not registered is caught",
                RULE_REGISTERED, SLUICE_ROUTE_COPY)

/* What files share depends on where they are. */
#define NOTICED_ON(type, sentence, rule, route)                                                                        \
    TEST(sentence)                                                                                                     \
    {                                                                                                                  \
        const char *reason, *directory = file_system_directory(type, &reason);                                         \
        if (directory == NULL)                                                                                         \
            SKIP(reason);                                                                                              \
        struct check_result result = check_in(directory, rule, route);                                                 \
        CHECK(result.disagreed > 0);                                                                                   \
    }

TEST("receipts of files on XFS, where extents are shared, agree with the trace")
{
    const char *reason, *directory = file_system_directory("xfs", &reason);
    if (directory == NULL)
        SKIP(reason);
    static const enum sluice_route routes[] = {SLUICE_ROUTE_REFLINK, SLUICE_ROUTE_COPY_FILE_RANGE,
                                               SLUICE_ROUTE_SENDFILE};
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++) {
        struct check_result result = check_in(directory, RULE_NONE, routes[i]);
        CHECK_EQ(result.disagreed, 0);
        CHECK(result.agreed > 0);
    }
}

NOTICED_ON("xfs", "a receipt that says shared extents were copied is caught", RULE_EXTENTS_SHARED, SLUICE_ROUTE_REFLINK)

TEST("a receipt of a small file on btrfs, whose clone is copied, agrees with the trace; one that denies it is caught")
{
    const char *reason, *directory = file_system_directory("btrfs", &reason);
    if (directory == NULL)
        SKIP(reason);
    struct check_result result = check_in(directory, RULE_NONE, SLUICE_ROUTE_REFLINK);
    CHECK_EQ(result.disagreed, 0);
    CHECK_EQ(result.agreed, 2);
    result = check_in(directory, RULE_EXTENTS_INSIDE, SLUICE_ROUTE_REFLINK);
    CHECK_EQ(result.disagreed, 1);
    CHECK_EQ(result.agreed, 1);
}

static void check_clones(const char *directory)
{
    struct check_result result = check_in(directory, RULE_NONE, SLUICE_ROUTE_REFLINK);
    struct check_result lying = check_in(directory, RULE_CLONED, SLUICE_ROUTE_REFLINK);
    CHECK_EQ(result.disagreed, 0);
    CHECK(result.agreed > 0);
    CHECK_EQ(lying.agreed, 0);
    CHECK(lying.disagreed > 0);
}

static int ioctl_without_extents(int fd, unsigned long request, void *argument)
{
    if (request == FS_IOC_FIEMAP) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return ioctl(fd, request, argument);
}

TEST(
    "a receipt of a clone where the file system shows nobody its extents agrees; one that says it was copied is caught")
{
    const char *reason, *directory = file_system_directory("xfs", &reason);
    if (directory == NULL)
        SKIP(reason);
    int (*own)(int, unsigned long, void *) = sys.ioctl;
    sys.ioctl = ioctl_without_extents;
    check_clones(directory);
    sys.ioctl = own;
}

static int clone_and_lose(int in, off_t in_offset, int out, off_t out_offset, size_t size)
{
    struct file_clone_range range = {
        .src_fd = in, .src_offset = (uint64_t)in_offset, .src_length = size, .dest_offset = (uint64_t)out_offset};
    if (ioctl(out, FICLONERANGE, &range) != 0)
        return -1;
    return fallocate(in, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 1 << 30);
}

TEST("a receipt of a clone whose source is gone before anybody looks at what they share agrees with the trace")
{
    const char *reason, *directory = file_system_directory("xfs", &reason);
    if (directory == NULL)
        SKIP(reason);
    int (*clone_range)(int, off_t, int, off_t, size_t) = sys.clone_range;
    sys.clone_range = clone_and_lose;
    check_clones(directory);
    sys.clone_range = clone_range;
}

NOTICED_ON("ext4", "a receipt that says copy_file_range copied nothing on ext4 is caught", RULE_EXTENTS_OWN,
           SLUICE_ROUTE_COPY_FILE_RANGE)
NOTICED_ON("ext4", "a receipt that says direct copies between memory and a file is caught", RULE_DIRECT,
           SLUICE_ROUTE_DIRECT)
NOTICED_ON("ext4", "a receipt that says direct sends without a copy is caught", RULE_DIRECT_AND_SENT,
           SLUICE_ROUTE_DIRECT)
NOTICED_ON("tmpfs", "a receipt that says copy_file_range copied nothing in memory is caught", RULE_RANGE_OF_PAGES,
           SLUICE_ROUTE_COPY_FILE_RANGE)

CHECK_MAIN()
