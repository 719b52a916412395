/* SPDX-License-Identifier: MIT */
#include "trace/findings.h"
#include "check.h"
#include <linux/magic.h>

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define PID 1234

enum { ISO = 1, COPY, TCP, OTHER_TCP, LO, PLAIN_TCP, PIPE, TERMINAL, XFS_ONE, XFS_OTHER, LIBRARY, SILENT_TCP };

static struct account *account;
static struct finding findings[FINDINGS_MAX];
static size_t count;

static void enter_end(uint32_t id, enum trace_end_kind kind, uint32_t file_system, uint32_t egress, uint64_t features)
{
    struct account_end end = {.key = {.kind = (uint8_t)kind, .family = kind == TRACE_END_TCP ? 2 : 0},
                              .value = {.id = id,
                                        .file_system = file_system,
                                        .egress = egress,
                                        .egress_known = egress != 0,
                                        .egress_features = features}};
    CHECK_EQ(account_enter_end(account, &end), 0);
}

static void begin_at(enum account_tier tier, const char *comm)
{
    account_free(account);
    account = NULL;
    CHECK_EQ(account_new(tier, &account), 0);
    CHECK_EQ(account_enter_process(account, PID, 1, comm), 0);
    enter_end(ISO, TRACE_END_FILE, EXT4_SUPER_MAGIC, 0, 0);
    enter_end(COPY, TRACE_END_FILE, EXT4_SUPER_MAGIC, 0, 0);
    enter_end(XFS_ONE, TRACE_END_FILE, 0x58465342, 0, 0);
    enter_end(XFS_OTHER, TRACE_END_FILE, 0x58465342, 0, 0);
    enter_end(LIBRARY, TRACE_END_FILE, EXT4_SUPER_MAGIC, 0, 0);
    enter_end(TCP, TRACE_END_TCP, 0, 2, 9);
    enter_end(OTHER_TCP, TRACE_END_TCP, 0, 2, 9);
    enter_end(LO, TRACE_END_TCP, 0, 1, 9);
    enter_end(PLAIN_TCP, TRACE_END_TCP, 0, 3, 8);
    enter_end(SILENT_TCP, TRACE_END_TCP, 0, 0, 0);
    enter_end(PIPE, TRACE_END_PIPE, 0, 0, 0);
    enter_end(TERMINAL, TRACE_END_CHAR, 0, 0, 0);
}

static void begin(const char *comm)
{
    begin_at(ACCOUNT_TIER_TRACEPOINTS, comm);
}

static void enter_value(enum trace_mechanism first, enum trace_mechanism mechanism, uint32_t source, uint32_t sink,
                        struct trace_flow_value value)
{
    struct trace_flow_key key = {.pid = PID,
                                 .thread = PID,
                                 .source = source,
                                 .sink = sink,
                                 .first = (uint8_t)first,
                                 .mechanism = (uint8_t)mechanism};
    CHECK_EQ(account_enter_flow(account, &key, &value), 0);
}

/* Moved through memory: both legs. */
static void through_memory(enum trace_mechanism first, enum trace_mechanism second, uint32_t source, uint32_t sink,
                           uint64_t bytes)
{
    struct trace_flow_value value = {.bytes = bytes, .forwarded = bytes, .calls = bytes / 65536};
    if (first == TRACE_RECV)
        value.delivered = bytes;
    enter_value(TRACE_NONE, first, source, 0, value);
    value.forwarded = value.delivered = 0;
    enter_value(first, second, source, sink, value);
}

static void directly(enum trace_mechanism mechanism, uint32_t source, uint32_t sink, uint64_t bytes)
{
    struct trace_flow_value value = {.bytes = bytes, .calls = bytes / 65536};
    enter_value(TRACE_NONE, mechanism, source, sink, value);
}

static void enter_samples(uint64_t all, uint64_t kernel, uint64_t user, uint64_t transforming)
{
    struct account_process increment = {.pid = PID,
                                        .samples = all,
                                        .samples_copying_kernel = kernel,
                                        .samples_copying_user = user,
                                        .samples_transforming = transforming};
    CHECK_EQ(account_enter_process_figures(account, &increment), 0);
}

static void find(void)
{
    count = findings_find(account, findings);
    CHECK(count <= FINDINGS_MAX);
    for (size_t i = 0; i < count; i++)
        CHECK(i == 0 || findings[i - 1].bytes >= findings[i].bytes);
}

static const struct finding *only(void)
{
    find();
    CHECK_EQ(count, 1);
    CHECK_EQ(findings[0].pid, PID);
    return &findings[0];
}

static bool says(const char *text, const char *part)
{
    return strstr(text, part) != NULL;
}

#define CHECK_SAYS(text, part)                                                                                         \
    do {                                                                                                               \
        if (!says(text, part))                                                                                         \
            CHECK_FAIL("%s:%d: \"%.300s\" does not say \"%s\"", __FILE__, __LINE__, text, part);                       \
    } while (0)

static const struct finding *one_that_says(const char *part)
{
    find();
    for (size_t i = 0; i < count; i++)
        if (says(findings[i].what, part))
            return &findings[i];
    CHECK_FAIL("nothing says \"%s\"", part);
}

TEST("an idle account has no findings, nor has one that moved next to nothing")
{
    begin("nginx");
    find();
    CHECK_EQ(count, 0);
    through_memory(TRACE_READ, TRACE_SEND, ISO, TCP, MIB - 65536);
    find();
    CHECK_EQ(count, 0);
}

TEST("nginx that reads and sends is told of sendfile, with the copies and how they are known")
{
    begin("nginx");
    through_memory(TRACE_READ, TRACE_SEND, ISO, TCP, 3 * GIB);
    enter_samples(1000, 400, 10, 0);
    const struct finding *finding = one_that_says("file -> tcp");
    CHECK_STR(finding->what, "nginx (1234) moved 3 GiB file -> tcp by read + send, 2.0 copies per byte (by "
                             "definition); copying is 41 % of its CPU (sampled, 1000 samples).");
    CHECK_SAYS(finding->advice, "sendfile on;");
}

TEST("what to do depends on the program")
{
    static const char *const programs[][2] = {{"apache2", "EnableSendfile"},
                                              {"lighttpd", "server.network-backend"},
                                              {"python3", "socket.sendfile"},
                                              {"node", "Node"},
                                              {"homegrown", "sendfile(2)"}};
    for (size_t i = 0; i < sizeof programs / sizeof programs[0]; i++) {
        begin(programs[i][0]);
        through_memory(TRACE_READ, TRACE_SEND, ISO, TCP, GIB);
        CHECK_SAYS(only()->advice, programs[i][1]);
    }
}

TEST("a thousand files sent by one process are one finding")
{
    begin("nginx");
    for (uint32_t i = 0; i < 1000; i++) {
        enter_end(100 + i, TRACE_END_FILE, EXT4_SUPER_MAGIC, 0, 0);
        through_memory(TRACE_READ, TRACE_SEND, 100 + i, TCP, MIB);
    }
    CHECK_EQ(only()->bytes, 1000 * MIB);
    CHECK_SAYS(only()->what, "1000 MiB");
}

TEST("sendfile without copies is told that nothing is to be gained, and gets no advice")
{
    begin("nginx");
    directly(TRACE_SENDFILE, ISO, TCP, 8 * GIB);
    CHECK_STR(only()->what,
              "nginx (1234) moved 8 GiB file -> tcp by sendfile, 0.0 copies per byte (probed): nothing to gain.");
    CHECK_STR(only()->advice, "");
}

TEST("a share of the CPU is claimed only of enough samples")
{
    begin("nginx");
    through_memory(TRACE_READ, TRACE_SEND, ISO, TCP, GIB);
    enter_samples(99, 90, 0, 9);
    CHECK(!says(only()->what, "CPU"));
    enter_samples(1, 0, 0, 1);
    find();
    CHECK_EQ(count, 3); /* the pair, the transforming and the ceiling */
    CHECK_SAYS(one_that_says("file -> tcp")->what, "90 % of its CPU");
}

TEST("the ceiling says how much faster at best, or that there is nothing to gain")
{
    begin("nginx");
    through_memory(TRACE_READ, TRACE_SEND, ISO, TCP, GIB);
    enter_samples(1000, 400, 100, 0);
    const struct finding *finding = one_that_says("nginx (1234): copying is 50 % of its CPU");
    CHECK_SAYS(finding->what, "40 % in the kernel and 10 % in user space");
    CHECK_SAYS(finding->advice, "2.0 times");
    begin("nginx");
    through_memory(TRACE_READ, TRACE_SEND, ISO, TCP, GIB);
    enter_samples(1000, 20, 10, 0);
    CHECK_SAYS(one_that_says("nginx (1234): copying is 3 %")->advice, "look elsewhere");
}

TEST("much encrypting is told of TLS in the kernel, a little is not")
{
    begin("nginx");
    through_memory(TRACE_READ, TRACE_SEND, ISO, TCP, GIB);
    enter_samples(1000, 100, 0, 99);
    find();
    for (size_t i = 0; i < count; i++)
        CHECK(!says(findings[i].advice, "KTLS"));
    enter_samples(0, 0, 0, 1);
    CHECK_SAYS(one_that_says("has to touch")->advice, "KTLS");
}

TEST("MSG_ZEROCOPY to a local peer is told that the route is loopback")
{
    begin("sender");
    struct trace_flow_value value = {.bytes = GIB, .calls = 1000, .notified = 1000, .notified_copied = 1000};
    enter_value(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, LO, value);
    CHECK_SAYS(only()->what, "MSG_ZEROCOPY for 1 GiB, 100 % copied (measured): the route is loopback");
}

TEST("MSG_ZEROCOPY copied elsewhere says what share of the notifications said so")
{
    begin("sender");
    struct trace_flow_value value = {.bytes = GIB, .calls = 1000, .notified = 1000, .notified_copied = 750};
    enter_value(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, TCP, value);
    CHECK_SAYS(only()->what, "75 % of 1000 notifications say copied");
    CHECK_SAYS(only()->advice, "veth");
}

TEST("MSG_ZEROCOPY that works is healthy, one whose notifications nobody read is unknown")
{
    begin("sender");
    struct trace_flow_value value = {.bytes = GIB, .calls = 1000, .notified = 1000};
    enter_value(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, TCP, value);
    CHECK_SAYS(only()->what, "memory -> tcp by MSG_ZEROCOPY, 0.0 copies per byte (probed): nothing to gain");
    begin("sender");
    value.notified = 600;
    enter_value(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, TCP, value);
    CHECK_SAYS(only()->what, "600 of 1000 calls");
    CHECK_SAYS(only()->advice, "MSG_ERRQUEUE");
}

TEST("sendfile through a device without scatter-gather is told which device, and how to turn it on")
{
    begin("nginx");
    directly(TRACE_SENDFILE, ISO, PLAIN_TCP, GIB);
    CHECK_SAYS(only()->what, "1.0 copies per byte (probed): device 3 (ip link) has no scatter-gather");
    CHECK_SAYS(only()->advice, "ethtool -K DEVICE sg on");
    enter_end(PLAIN_TCP, TRACE_END_TCP, 0, 3, 1);
    CHECK_SAYS(only()->what, "has no checksum offload");
    CHECK_SAYS(only()->advice, "tx on");
}

TEST("HAProxy that receives and sends is told that splicing is off or never chosen")
{
    begin("haproxy");
    through_memory(TRACE_RECV, TRACE_SEND, TCP, OTHER_TCP, 8 * GIB);
    CHECK_SAYS(only()->what, "haproxy (1234) moved 8 GiB tcp -> tcp by recv + send, 2.0 copies per byte");
    CHECK_SAYS(only()->what, "splicing is off, or never chosen");
    CHECK_SAYS(only()->advice, "splice-response");
}

TEST("a proxy that splices is healthy")
{
    begin("haproxy");
    struct trace_flow_value value = {.bytes = GIB, .forwarded = GIB, .calls = 1000};
    enter_value(TRACE_NONE, TRACE_SPLICE, TCP, PIPE, value);
    value.forwarded = 0;
    enter_value(TRACE_SPLICE, TRACE_SPLICE, TCP, OTHER_TCP, value);
    CHECK_SAYS(only()->what, "tcp -> tcp by splice, 0.0 copies per byte");
    CHECK_SAYS(only()->what, "nothing to gain");
}

TEST("other proxies are told of splice")
{
    begin("socat");
    through_memory(TRACE_RECV, TRACE_SEND, TCP, OTHER_TCP, GIB);
    CHECK_SAYS(only()->advice, "splice(2)");
}

TEST("copying a file by read and write is told of reflinks and copy_file_range")
{
    begin("cp");
    through_memory(TRACE_READ, TRACE_WRITE, ISO, COPY, GIB);
    CHECK_SAYS(only()->what, "file -> file by read + write, 2.0 copies per byte (by definition)");
    CHECK_SAYS(only()->advice, "--reflink");
    begin("homegrown");
    through_memory(TRACE_READ, TRACE_WRITE, ISO, COPY, GIB);
    CHECK_SAYS(only()->advice, "copy_file_range(2)");
}

TEST("copies that the kernel makes between files are no fault of the program")
{
    begin("cp");
    directly(TRACE_COPY_FILE_RANGE, ISO, COPY, GIB);
    CHECK_SAYS(only()->what, "file -> file by copy_file_range, 1.0 copies per byte");
    CHECK_SAYS(only()->advice, "XFS, btrfs");
}

TEST("a pipe whose bytes go through the program is told of splice")
{
    begin("pv");
    through_memory(TRACE_READ, TRACE_WRITE, PIPE, ISO, GIB);
    CHECK_SAYS(only()->advice, "splice(2)");
    begin("pv");
    through_memory(TRACE_READ, TRACE_WRITE, ISO, PIPE, GIB);
    CHECK_SAYS(only()->advice, "splice(2)");
}

TEST("storing what a socket brings is told which of its copies can go")
{
    begin("curl");
    through_memory(TRACE_RECV, TRACE_WRITE, TCP, ISO, GIB);
    CHECK_SAYS(only()->what, "tcp -> file by recv + write, 2.0 copies per byte");
    CHECK_SAYS(only()->advice, "the one into the page cache stays");
}

TEST("pages copied on write after a fork are a finding; those of a program's start are not")
{
    begin("redis-server");
    struct trace_flow_value value = {.bytes = 200 * MIB, .calls = 51200};
    enter_value(TRACE_NONE, TRACE_COPY_ON_WRITE, 0, 0, value);
    CHECK_SAYS(only()->what, "200 MiB copied on write, unless nobody shared them any more (unknown)");
    CHECK_SAYS(only()->advice, "fork");
    begin("ls");
    value = (struct trace_flow_value){.bytes = 2 * MIB, .delivered = 2 * MIB, .calls = 512};
    enter_value(TRACE_NONE, TRACE_COPY_ON_WRITE, LIBRARY, 0, value);
    find();
    CHECK_EQ(count, 0);
}

TEST("many small calls are told that the transitions cost more than the copies, besides what else is to be said")
{
    begin("chatty");
    struct trace_flow_value value = {.bytes = 100 * MIB, .calls = 100 * 1024};
    enter_value(TRACE_NONE, TRACE_READ, ISO, 0, value);
    const struct finding *finding = one_that_says("transitions cost more");
    CHECK_SAYS(finding->what, "in 102400 calls of 1 KiB");
    CHECK_SAYS(finding->advice, "Larger buffers");
    begin("chatty");
    value.calls = 100; /* large ones */
    enter_value(TRACE_NONE, TRACE_READ, ISO, 0, value);
    find();
    for (size_t i = 0; i < count; i++)
        CHECK(!says(findings[i].what, "transitions"));
}

TEST("unknown copies are told why, and what would make them known")
{
    begin("cp");
    directly(TRACE_COPY_FILE_RANGE, XFS_ONE, XFS_OTHER, GIB);
    CHECK_SAYS(only()->what, "copies unknown: the file system may share extents");
    CHECK_SAYS(only()->advice, "Tier (a)");
    begin_at(ACCOUNT_TIER_PROC, "cp");
    directly(TRACE_READ, TRACE_END_LOST, 0, GIB);
    CHECK_SAYS(only()->advice, "CAP_BPF and CAP_PERFMON");
    begin_at(ACCOUNT_TIER_FUNCTIONS, "nginx");
    directly(TRACE_SENDFILE, ISO, SILENT_TCP, GIB);
    CHECK_SAYS(only()->what, "copies unknown: the device that the packets leave by is not known");
}

TEST("copies that are known only in part are told as the least there are")
{
    begin("nginx");
    struct trace_flow_value value = {.bytes = GIB, .forwarded = GIB, .calls = 100};
    enter_value(TRACE_NONE, TRACE_RECV, TCP, 0, value); /* decrypted by the kernel: no delivery was seen */
    value.forwarded = 0;
    enter_value(TRACE_RECV, TRACE_WRITE, TCP, ISO, value);
    CHECK_SAYS(only()->what, "at least 1.0 copies per byte (the rest is unknown)");
}

TEST("reading a file into memory and no further is no finding, nor is it called healthy")
{
    begin("wc");
    directly(TRACE_READ, ISO, 0, GIB);
    find();
    CHECK_EQ(count, 0);
}

TEST("what goes to a terminal is not worth a finding")
{
    begin("cat");
    directly(TRACE_WRITE, 0, TERMINAL, GIB);
    find();
    CHECK_EQ(count, 0);
}

TEST("a process without a name is told by its number")
{
    begin("");
    through_memory(TRACE_READ, TRACE_SEND, ISO, TCP, GIB);
    CHECK_SAYS(only()->what, "process 1234 moved");
}

TEST("of many findings the largest are kept, the largest first")
{
    begin("nginx");
    for (uint32_t i = 0; i < 100; i++) {
        struct trace_flow_key key = {.pid = 2000 + i, .source = ISO, .sink = TCP, .mechanism = TRACE_SENDFILE};
        struct trace_flow_value value = {.bytes = (1 + (i * 37) % 100) * MIB, .calls = 1};
        CHECK_EQ(account_enter_flow(account, &key, &value), 0);
    }
    find();
    CHECK_EQ(count, FINDINGS_MAX);
    CHECK_EQ(findings[0].bytes, 100 * MIB);
    CHECK_EQ(findings[FINDINGS_MAX - 1].bytes, (100 - FINDINGS_MAX + 1) * MIB);
}

TEST("more classes than there is room for lose only small ones")
{
    begin("nginx");
    for (uint32_t i = 0; i < 3000; i++) {
        struct trace_flow_key key = {.pid = 2000 + i, .source = ISO, .sink = TCP, .mechanism = TRACE_SENDFILE};
        struct trace_flow_value value = {.bytes = (i + 1) * MIB, .calls = 1};
        CHECK_EQ(account_enter_flow(account, &key, &value), 0);
    }
    find();
    CHECK_EQ(count, FINDINGS_MAX);
    CHECK_EQ(findings[0].bytes, 3000 * MIB);
    CHECK_EQ(findings[FINDINGS_MAX - 1].bytes, (3000 - FINDINGS_MAX + 1) * MIB);
}

TEST("no text is cut off, with the longest of names")
{
    static const enum trace_mechanism seconds[] = {TRACE_SEND, TRACE_WRITE, TRACE_SEND_ZEROCOPY};
    static const uint32_t sinks[] = {TCP, COPY, LO, PLAIN_TCP, PIPE, SILENT_TCP};
    begin("a-name-of-15-ch");
    enter_samples(UINT64_MAX / 1000, UINT64_MAX / 2000, UINT64_MAX / 4000, UINT64_MAX / 4000);
    for (size_t i = 0; i < sizeof sinks / sizeof sinks[0]; i++)
        for (size_t j = 0; j < sizeof seconds / sizeof seconds[0]; j++) {
            struct trace_flow_value value = {.bytes = GIB - 1 - i, .calls = 1000000000, .notified = 999999999};
            enter_value(TRACE_READ, seconds[j], ISO, sinks[i], value);
            enter_value(TRACE_NONE, TRACE_SENDFILE, ISO, sinks[i], value);
        }
    find();
    CHECK(count > 10);
    for (size_t i = 0; i < count; i++) {
        CHECK(strlen(findings[i].what) < sizeof findings[i].what - 1);
        CHECK(strlen(findings[i].advice) < sizeof findings[i].advice - 1);
        CHECK_EQ(findings[i].what[strlen(findings[i].what) - 1], '.');
    }
    account_free(account);
    account = NULL;
}

CHECK_MAIN()
