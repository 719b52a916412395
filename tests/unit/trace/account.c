/* SPDX-License-Identifier: MIT */
#include "trace/account.h"
#include "check.h"
#include <errno.h>
#include <linux/magic.h>

#define MIB (UINT64_C(1) << 20)
#define NGINX 1234

enum { ISO = 1, TCP, PIPE, PIPE2, COPY, OTHER_TCP, LO, PLAIN_TCP, STRANGE, SILENT_TCP, UDP };

/* ---- Allocations that fail on demand (the linker's --wrap) ---- */

void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *pointer, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *pointer, size_t size);

static unsigned allocations_left; /* 0: no limit */

static bool allocation_fails(void)
{
    return allocations_left > 0 && --allocations_left == 0;
}

void *__wrap_calloc(size_t count, size_t size)
{
    return allocation_fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *pointer, size_t size)
{
    return allocation_fails() ? NULL : __real_realloc(pointer, size);
}

/* ---- Inventing ---- */

static struct account *account; /* of the test that runs; a failed one leaves its own to the next */

static void enter_end(uint32_t id, enum trace_end_kind kind, uint32_t file_system, uint32_t egress, uint64_t features)
{
    struct account_end end = {.key = {.kind = (uint8_t)kind, .family = kind >= TRACE_END_TCP ? 2 : 0},
                              .value = {.id = id,
                                        .file_system = file_system,
                                        .egress = egress,
                                        .egress_known = egress != 0,
                                        .egress_features = features}};
    CHECK_EQ(account_enter_end(account, &end), 0);
}

static void begin(enum account_tier tier)
{
    allocations_left = 0;
    account_free(account);
    account = NULL;
    CHECK_EQ(account_new(tier, &account), 0);
    if (tier == ACCOUNT_TIER_FUNCTIONS)
        account_watch(account, UINT32_MAX);
    enter_end(ISO, TRACE_END_FILE, EXT4_SUPER_MAGIC, 0, 0);
    enter_end(COPY, TRACE_END_FILE, EXT4_SUPER_MAGIC, 0, 0);
    enter_end(STRANGE, TRACE_END_FILE, 0x65735546 /* FUSE */, 0, 0);
    enter_end(TCP, TRACE_END_TCP, 0, 2, 1 | 1 << 3);
    enter_end(OTHER_TCP, TRACE_END_TCP, 0, 2, 1 | 1 << 3);
    enter_end(PLAIN_TCP, TRACE_END_TCP, 0, 3, 0);
    enter_end(LO, TRACE_END_TCP, 0, 1, 1 | 1 << 3);
    enter_end(SILENT_TCP, TRACE_END_TCP, 0, 0, 0);
    enter_end(UDP, TRACE_END_UDP, 0, 2, 1 | 1 << 3);
    enter_end(PIPE, TRACE_END_PIPE, 0, 0, 0);
    enter_end(PIPE2, TRACE_END_PIPE, 0, 0, 0);
}

static struct trace_flow_key flow_key(enum trace_mechanism first, enum trace_mechanism mechanism, uint32_t source,
                                      uint32_t sink)
{
    return (struct trace_flow_key){.pid = NGINX,
                                   .thread = NGINX,
                                   .source = source,
                                   .sink = sink,
                                   .first = (uint8_t)first,
                                   .mechanism = (uint8_t)mechanism};
}

static void enter_key(const struct trace_flow_key *key, uint64_t bytes, uint64_t forwarded)
{
    struct trace_flow_value value = {
        .bytes = bytes, .forwarded = forwarded, .calls = bytes / 65536, .transitions = bytes / 65536};
    CHECK_EQ(account_enter_flow(account, key, &value), 0);
}

static void enter(enum trace_mechanism first, enum trace_mechanism mechanism, uint32_t source, uint32_t sink,
                  uint64_t bytes, uint64_t forwarded)
{
    struct trace_flow_key key = flow_key(first, mechanism, source, sink);
    enter_key(&key, bytes, forwarded);
}

static void enter_copy(enum trace_mechanism first, enum trace_mechanism mechanism, uint32_t source, uint32_t sink,
                       enum trace_function function, uint64_t bytes)
{
    struct trace_copy_key key = {.flow = flow_key(first, mechanism, source, sink), .function = function};
    struct trace_copy_value value = {.calls = 1, .bytes = bytes};
    CHECK_EQ(account_enter_copy(account, &key, &value), 0);
}

static const struct account_row *row_of(enum trace_mechanism first, enum trace_mechanism mechanism, uint32_t source,
                                        uint32_t sink)
{
    size_t count;
    const struct account_row *rows = account_rows(account, false, &count);
    for (size_t i = 0; i < count; i++)
        if (rows[i].key.first == first && rows[i].key.mechanism == mechanism && rows[i].key.source == source &&
            rows[i].key.sink == sink)
            return &rows[i];
    CHECK_FAIL("no row %u + %u, %u -> %u", first, mechanism, source, sink);
}

static size_t row_count(bool per_thread)
{
    size_t count;
    account_rows(account, per_thread, &count);
    return count;
}

/* ---- Adding up ---- */

TEST("a new account is empty, and one that was never made can be freed")
{
    size_t count = 7;
    account_free(NULL);
    begin(ACCOUNT_TIER_TRACEPOINTS);
    CHECK_EQ(row_count(false), 0);
    account_processes(account, &count);
    CHECK_EQ(count, 0);
    account_callers(account, &count);
    CHECK_EQ(count, 0);
    account_unattributed(account, &count);
    CHECK_EQ(count, 0);
    CHECK(account_process(account, NGINX) == NULL);
    CHECK_EQ(account_lost(account)->flows, 0);
}

TEST("increments of a flow add up to one row")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    enter(TRACE_NONE, TRACE_SENDFILE, ISO, TCP, MIB, 0);
    enter(TRACE_NONE, TRACE_SENDFILE, ISO, TCP, 2 * MIB, 0);
    CHECK_EQ(row_count(false), 1);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SENDFILE, ISO, TCP)->value.bytes, 3 * MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SENDFILE, ISO, TCP)->value.calls, 48);
}

TEST("figures entered after rows were read are in the rows read next")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    enter(TRACE_NONE, TRACE_SENDFILE, ISO, TCP, MIB, 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SENDFILE, ISO, TCP)->value.bytes, MIB);
    enter(TRACE_NONE, TRACE_SENDFILE, ISO, TCP, MIB, 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SENDFILE, ISO, TCP)->value.bytes, 2 * MIB);
}

TEST("reading rows twice hands nothing over twice")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    enter(TRACE_NONE, TRACE_READ, ISO, 0, MIB, MIB);
    enter(TRACE_READ, TRACE_SEND, ISO, TCP, MIB, 0);
    CHECK_EQ(row_of(TRACE_READ, TRACE_SEND, ISO, TCP)->copy_bytes, 2 * MIB);
    enter_end(TCP, TRACE_END_TCP, 0, 2, 9); /* makes it work them out again */
    CHECK_EQ(row_of(TRACE_READ, TRACE_SEND, ISO, TCP)->copy_bytes, 2 * MIB);
}

TEST("rows come by falling bytes, and those that moved nothing are left out")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    enter(TRACE_NONE, TRACE_SENDFILE, ISO, TCP, MIB, 0);
    enter(TRACE_NONE, TRACE_SENDFILE, ISO, OTHER_TCP, 3 * MIB, 0);
    enter(TRACE_NONE, TRACE_SENDFILE, COPY, TCP, 2 * MIB, 0);
    struct trace_flow_key key = flow_key(TRACE_NONE, TRACE_RECV, TCP, 0);
    struct trace_flow_value value = {.fruitless = 12, .transitions = 12};
    CHECK_EQ(account_enter_flow(account, &key, &value), 0);
    size_t count;
    const struct account_row *rows = account_rows(account, false, &count);
    CHECK_EQ(count, 3);
    CHECK_EQ(rows[0].value.bytes, 3 * MIB);
    CHECK_EQ(rows[1].value.bytes, 2 * MIB);
    CHECK_EQ(rows[2].value.bytes, MIB);
}

TEST("threads are rows of their own, or summed under thread 0")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    struct trace_flow_key key = flow_key(TRACE_NONE, TRACE_SENDFILE, ISO, TCP);
    for (uint32_t i = 0; i < 4; i++) {
        key.thread = NGINX + i;
        enter_key(&key, MIB, 0);
    }
    CHECK_EQ(row_count(true), 4);
    CHECK_EQ(row_count(false), 1);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SENDFILE, ISO, TCP)->value.bytes, 4 * MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SENDFILE, ISO, TCP)->key.thread, 0);
}

TEST("requests by io_uring and by calls of their own are different rows")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    struct trace_flow_key key = flow_key(TRACE_NONE, TRACE_SEND, 0, TCP);
    enter_key(&key, MIB, 0);
    key.way = TRACE_BY_RING;
    enter_key(&key, MIB, 0);
    CHECK_EQ(row_count(false), 2);
}

TEST("operations of a ring are counted, those that moved nothing too; calls are not")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    struct trace_flow_key key = {.pid = NGINX, .sink = TCP, .mechanism = TRACE_SEND};
    struct trace_flow_value value = {.calls = 5, .fruitless = 2, .bytes = 100};
    CHECK_EQ(account_enter_flow(account, &key, &value), 0);
    CHECK_EQ(account_ring_operations(account), 0);
    key.way = TRACE_BY_RING;
    CHECK_EQ(account_enter_flow(account, &key, &value), 0);
    CHECK_EQ(account_enter_flow(account, &key, &value), 0);
    CHECK_EQ(account_ring_operations(account), 14);
}

TEST("bytes by registered memory: of what was read and written so, both; of what was read so and sent, one")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    struct trace_flow_key read = flow_key(TRACE_NONE, TRACE_READ, ISO, 0);
    struct trace_flow_key write = flow_key(TRACE_READ, TRACE_WRITE, ISO, COPY);
    struct trace_flow_key send = flow_key(TRACE_READ, TRACE_SEND, ISO, TCP);
    struct trace_flow_value value = {.bytes = 3 * MIB, .registered = 3 * MIB, .forwarded = 3 * MIB, .calls = 3};
    CHECK_EQ(account_enter_flow(account, &read, &value), 0);
    value = (struct trace_flow_value){.bytes = 2 * MIB, .registered = 2 * MIB, .calls = 2};
    CHECK_EQ(account_enter_flow(account, &write, &value), 0);
    value = (struct trace_flow_value){.bytes = MIB, .calls = 1};
    CHECK_EQ(account_enter_flow(account, &send, &value), 0);
    CHECK_EQ(row_of(TRACE_READ, TRACE_WRITE, ISO, COPY)->value.registered, 4 * MIB);
    CHECK_EQ(row_of(TRACE_READ, TRACE_SEND, ISO, TCP)->value.registered, MIB);
    CHECK_EQ(row_count(false), 2);
}

TEST("what is in the unused member of a key makes no second row")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    struct trace_flow_key key = flow_key(TRACE_NONE, TRACE_SEND, 0, TCP);
    enter_key(&key, MIB, 0);
    key.unused = 0xa5;
    enter_key(&key, MIB, 0);
    CHECK_EQ(row_count(true), 1);
}

/* ---- Copies of a byte ---- */

TEST("a byte that crosses twice is counted twice: read and sent, two copies")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    enter(TRACE_NONE, TRACE_READ, ISO, 0, MIB, MIB);
    enter(TRACE_READ, TRACE_SEND, ISO, TCP, MIB, 0);
    const struct account_row *row = row_of(TRACE_READ, TRACE_SEND, ISO, TCP);
    CHECK_EQ(row_count(false), 1);
    CHECK_EQ(row->value.bytes, MIB);
    CHECK_EQ(row->copy_bytes, 2 * MIB);
    CHECK_EQ(row->unknown_bytes, 0);
    CHECK_EQ(row->evidence, ACCOUNT_BY_DEFINITION);
    CHECK_STR(row->copier, "tcp_sendmsg_locked");
}

TEST("a byte that is read once and sent twice was copied three times for two bytes moved")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    enter(TRACE_NONE, TRACE_READ, ISO, 0, MIB, 2 * MIB);
    enter(TRACE_READ, TRACE_SEND, ISO, TCP, MIB, 0);
    enter(TRACE_READ, TRACE_SEND, ISO, OTHER_TCP, MIB, 0);
    CHECK_EQ(row_count(false), 2);
    const struct account_row *one = row_of(TRACE_READ, TRACE_SEND, ISO, TCP);
    const struct account_row *other = row_of(TRACE_READ, TRACE_SEND, ISO, OTHER_TCP);
    CHECK_EQ(one->value.bytes + other->value.bytes, 2 * MIB);
    CHECK_EQ(one->copy_bytes + other->copy_bytes, 3 * MIB);
    CHECK_EQ(one->copy_bytes, other->copy_bytes);
}

TEST("what was read and not sent on stays a row of the read's own")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    enter(TRACE_NONE, TRACE_READ, ISO, 0, 4 * MIB, MIB);
    enter(TRACE_READ, TRACE_SEND, ISO, TCP, MIB, 0);
    const struct account_row *rest = row_of(TRACE_NONE, TRACE_READ, ISO, 0);
    CHECK_EQ(rest->value.bytes, 3 * MIB);
    CHECK_EQ(rest->copy_bytes, 3 * MIB);
    CHECK_EQ(rest->value.forwarded, 0);
    CHECK_EQ(row_of(TRACE_READ, TRACE_SEND, ISO, TCP)->copy_bytes, 2 * MIB);
}

TEST("a read's copies go to the pairs that took its bytes, in proportion")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    enter(TRACE_NONE, TRACE_READ, ISO, 0, 4 * MIB, 4 * MIB);
    enter(TRACE_READ, TRACE_SEND, ISO, TCP, 3 * MIB, 0);
    enter(TRACE_READ, TRACE_WRITE, ISO, COPY, MIB, 0);
    CHECK_EQ(row_of(TRACE_READ, TRACE_SEND, ISO, TCP)->copy_bytes, 6 * MIB);
    CHECK_EQ(row_of(TRACE_READ, TRACE_WRITE, ISO, COPY)->copy_bytes, 2 * MIB);
}

TEST("spliced into a pipe and out of it is one pair, its bytes counted once and copied never")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    enter(TRACE_NONE, TRACE_SPLICE, ISO, PIPE, MIB, MIB);
    enter(TRACE_SPLICE, TRACE_SPLICE, ISO, TCP, MIB, 0);
    const struct account_row *row = row_of(TRACE_SPLICE, TRACE_SPLICE, ISO, TCP);
    CHECK_EQ(row_count(false), 1);
    CHECK_EQ(row->value.bytes, MIB);
    CHECK_EQ(row->copy_bytes, 0);
    CHECK_EQ(row->evidence, ACCOUNT_BY_DEFINITION); /* of the pipe; the device was asked */
}

TEST("a splice, a tee and two splices out of the pipes are two pairs, and no leg is lost")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    enter(TRACE_NONE, TRACE_SPLICE, TCP, PIPE, MIB, 2 * MIB);
    enter(TRACE_SPLICE, TRACE_TEE, TCP, PIPE2, MIB, MIB);
    enter(TRACE_TEE, TRACE_SPLICE, TCP, COPY, MIB, 0);
    enter(TRACE_SPLICE, TRACE_SPLICE, TCP, OTHER_TCP, MIB, 0);
    CHECK_EQ(row_count(false), 2);
    const struct account_row *file = row_of(TRACE_TEE, TRACE_SPLICE, TCP, COPY);
    const struct account_row *tcp = row_of(TRACE_SPLICE, TRACE_SPLICE, TCP, OTHER_TCP);
    CHECK_EQ(file->copy_bytes, MIB);
    CHECK_EQ(tcp->copy_bytes, 0);
    CHECK_EQ(file->value.calls + tcp->value.calls, 4 * 16);
}

TEST("a read through a pipe and a send: the copies of all three legs")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    /* Entered backwards: the kernel's table has no order. */
    enter(TRACE_READ, TRACE_SEND, ISO, TCP, MIB, 0);
    enter(TRACE_SPLICE, TRACE_READ, ISO, 0, MIB, MIB);
    enter(TRACE_NONE, TRACE_SPLICE, ISO, PIPE, MIB, MIB);
    CHECK_EQ(row_count(false), 1);
    CHECK_EQ(row_of(TRACE_READ, TRACE_SEND, ISO, TCP)->copy_bytes, 2 * MIB);
    CHECK_EQ(row_of(TRACE_READ, TRACE_SEND, ISO, TCP)->value.calls, 3 * 16);
}

TEST("spliced through two pipes: the middle leg hands on what it was handed, and no more")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    enter(TRACE_NONE, TRACE_SPLICE, ISO, PIPE, MIB, MIB);
    enter(TRACE_SPLICE, TRACE_SPLICE, ISO, PIPE2, MIB, MIB / 2);
    enter(TRACE_SPLICE, TRACE_SPLICE, ISO, TCP, MIB / 2, 0);
    const struct account_row *rest = row_of(TRACE_SPLICE, TRACE_SPLICE, ISO, PIPE2);
    const struct account_row *sent = row_of(TRACE_SPLICE, TRACE_SPLICE, ISO, TCP);
    CHECK_EQ(row_count(false), 2);
    CHECK_EQ(rest->value.bytes, MIB / 2);
    CHECK_EQ(rest->value.calls + sent->value.calls, 16 + 16 + 8);
    CHECK(rest->value.calls > 0 && sent->value.calls > 8);
}

TEST("what a socket put into a pipe is read from the pipe: one copy, though the row names the socket")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    enter(TRACE_NONE, TRACE_SPLICE, TCP, PIPE, MIB, MIB);
    enter(TRACE_SPLICE, TRACE_READ, TCP, 0, MIB, 0);
    CHECK_EQ(row_of(TRACE_SPLICE, TRACE_READ, TCP, 0)->copy_bytes, MIB);
    CHECK_EQ(row_of(TRACE_SPLICE, TRACE_READ, TCP, 0)->evidence, ACCOUNT_BY_DEFINITION);
}

TEST("memory lent to a pipe and spliced into a socket is a pair of memory and socket")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    enter(TRACE_NONE, TRACE_VMSPLICE, 0, PIPE, MIB, MIB);
    enter(TRACE_VMSPLICE, TRACE_SPLICE, 0, TCP, MIB, 0);
    CHECK_EQ(row_count(false), 1);
    CHECK_EQ(row_of(TRACE_VMSPLICE, TRACE_SPLICE, 0, TCP)->copy_bytes, 0);
}

TEST("one thread reads and another sends: the pair belongs to the sender, the copies of both are in it")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    struct trace_flow_key read = flow_key(TRACE_NONE, TRACE_READ, ISO, 0);
    struct trace_flow_key send = flow_key(TRACE_READ, TRACE_SEND, ISO, TCP);
    send.thread = NGINX + 1;
    enter_key(&read, MIB, MIB);
    enter_key(&send, MIB, 0);
    size_t count;
    const struct account_row *rows = account_rows(account, true, &count);
    CHECK_EQ(count, 1);
    CHECK_EQ(rows[0].key.thread, NGINX + 1);
    CHECK_EQ(rows[0].copy_bytes, 2 * MIB);
}

TEST("threads that each read and send keep their own copies")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    for (uint32_t i = 0; i < 2; i++) {
        struct trace_flow_key read = flow_key(TRACE_NONE, TRACE_READ, ISO, 0);
        struct trace_flow_key send = flow_key(TRACE_READ, TRACE_SEND, ISO, TCP);
        read.thread = send.thread = NGINX + i;
        enter_key(&read, i == 0 ? MIB : 2 * MIB, i == 0 ? 4 * MIB : 2 * MIB);
        enter_key(&send, i == 0 ? 4 * MIB : 2 * MIB, 0);
    }
    size_t count;
    const struct account_row *rows = account_rows(account, true, &count);
    CHECK_EQ(count, 2);
    CHECK_EQ(rows[0].copy_bytes, 5 * MIB); /* read once, sent four times */
    CHECK_EQ(rows[1].copy_bytes, 4 * MIB);
    CHECK_EQ(row_of(TRACE_READ, TRACE_SEND, ISO, TCP)->copy_bytes, 9 * MIB);
}

TEST("another process's send takes nothing from a read")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    struct trace_flow_key send = flow_key(TRACE_READ, TRACE_SEND, ISO, TCP);
    send.pid = send.thread = NGINX + 1;
    enter(TRACE_NONE, TRACE_READ, ISO, 0, MIB, MIB);
    enter_key(&send, MIB, 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_READ, ISO, 0)->copy_bytes, MIB);
    CHECK_EQ(row_of(TRACE_READ, TRACE_SEND, ISO, TCP)->copy_bytes, MIB);
}

TEST("forwarded bytes that nobody was seen to take stay where they are")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    enter(TRACE_NONE, TRACE_READ, ISO, 0, MIB, MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_READ, ISO, 0)->value.bytes, MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_READ, ISO, 0)->copy_bytes, MIB);
}

TEST("calls, transitions and copies in all rows are those that were entered, whatever the proportions")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    uint64_t calls = 0, copies = 0;
    for (uint32_t thread = 0; thread < 3; thread++) {
        struct trace_flow_key read = flow_key(TRACE_NONE, TRACE_READ, ISO, 0);
        read.thread = NGINX + thread;
        struct trace_flow_value value = {
            .bytes = 1000003 + thread, .forwarded = 333667 * thread, .calls = 101, .transitions = 103};
        CHECK_EQ(account_enter_flow(account, &read, &value), 0);
        calls += value.calls;
        copies += value.bytes;
        static const uint32_t sinks[] = {TCP, LO};
        for (size_t i = 0; i < 2; i++) {
            uint32_t sink = sinks[i];
            struct trace_flow_key send = flow_key(TRACE_READ, TRACE_SEND, ISO, sink);
            send.thread = NGINX + thread;
            value = (struct trace_flow_value){.bytes = 99991 * (sink + thread), .calls = 7, .transitions = 11};
            CHECK_EQ(account_enter_flow(account, &send, &value), 0);
            calls += value.calls;
            copies += value.bytes;
        }
    }
    for (int per_thread = 0; per_thread <= 1; per_thread++) {
        uint64_t seen_calls = 0, seen_copies = 0, transitions = 0;
        size_t count;
        const struct account_row *rows = account_rows(account, per_thread, &count);
        for (size_t i = 0; i < count; i++) {
            seen_calls += rows[i].value.calls;
            seen_copies += rows[i].copy_bytes;
            transitions += rows[i].value.transitions;
        }
        CHECK_EQ(seen_calls, calls);
        CHECK_EQ(seen_copies, copies);
        CHECK_EQ(transitions, 3 * 103 + 6 * 11);
    }
}

TEST("figures beyond 32 bits are shared out without overflow")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    uint64_t much = UINT64_C(1) << 50;
    enter(TRACE_NONE, TRACE_READ, ISO, 0, much, much);
    enter(TRACE_READ, TRACE_SEND, ISO, TCP, much, 0);
    CHECK_EQ(row_of(TRACE_READ, TRACE_SEND, ISO, TCP)->copy_bytes, 2 * much);
}

/* ---- Evidence ---- */

TEST("evidence is the weakest of the legs: a source of unknown splicing makes the pair unknown")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    enter(TRACE_NONE, TRACE_SPLICE, STRANGE, PIPE, MIB, MIB);
    enter(TRACE_SPLICE, TRACE_SPLICE, STRANGE, TCP, MIB, 0);
    const struct account_row *row = row_of(TRACE_SPLICE, TRACE_SPLICE, STRANGE, TCP);
    CHECK_EQ(row->evidence, ACCOUNT_UNKNOWN);
    CHECK_EQ(row->unknown_bytes, MIB);
    CHECK_EQ(row->copy_bytes, 0);
}

TEST("bytes of which half came by an unknown way are half unknown")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    struct trace_flow_key key = flow_key(TRACE_NONE, TRACE_RECV, TCP, 0);
    struct trace_flow_value value = {.bytes = 2 * MIB, .delivered = MIB, .forwarded = 2 * MIB, .calls = 4};
    CHECK_EQ(account_enter_flow(account, &key, &value), 0);
    enter(TRACE_RECV, TRACE_SEND, TCP, OTHER_TCP, 2 * MIB, 0);
    const struct account_row *row = row_of(TRACE_RECV, TRACE_SEND, TCP, OTHER_TCP);
    CHECK_EQ(row->unknown_bytes, MIB);
    CHECK_EQ(row->copy_bytes, 3 * MIB);
    CHECK_EQ(row->evidence, ACCOUNT_UNKNOWN);
}

TEST("an end that was never entered makes copies unknown, and is no crash")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    enter(TRACE_NONE, TRACE_READ, TRACE_END_LOST, 0, MIB, 0);
    CHECK(account_end(account, TRACE_END_LOST) == NULL);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_READ, TRACE_END_LOST, 0)->evidence, ACCOUNT_UNKNOWN);
}

TEST("an end entered later than its flows counts for them")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    enter(TRACE_NONE, TRACE_READ, 99, 0, MIB, 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_READ, 99, 0)->evidence, ACCOUNT_UNKNOWN);
    enter_end(99, TRACE_END_FILE, EXT4_SUPER_MAGIC, 0, 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_READ, 99, 0)->evidence, ACCOUNT_BY_DEFINITION);
}

TEST("end 0 is memory")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    CHECK_EQ(account_end(account, 0)->key.kind, TRACE_END_MEMORY);
    CHECK_STR(account_end(account, 0)->name, "memory");
}

/* ---- Receiving ---- */

static void receive(uint32_t source, uint64_t bytes, uint64_t delivered)
{
    struct trace_flow_key key = flow_key(TRACE_NONE, TRACE_RECV, source, 0);
    struct trace_flow_value value = {.bytes = bytes, .delivered = delivered, .calls = 16};
    CHECK_EQ(account_enter_flow(account, &key, &value), 0);
}

TEST("a receiver's copies are measured: what the kernel delivered")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    receive(TCP, MIB, MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_RECV, TCP, 0)->copy_bytes, MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_RECV, TCP, 0)->evidence, ACCOUNT_MEASURED);
    CHECK_STR(row_of(TRACE_NONE, TRACE_RECV, TCP, 0)->copier, "skb_copy_datagram_iter");
}

TEST("received bytes of which no delivery was seen are unknown, not free (TLS in the kernel)")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    receive(TCP, MIB, 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_RECV, TCP, 0)->unknown_bytes, MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_RECV, TCP, 0)->evidence, ACCOUNT_UNKNOWN);
}

TEST("the one call that was under way when its thread was first seen leaves no unknown bytes")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    receive(TCP, 16 * MIB, 15 * MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_RECV, TCP, 0)->copy_bytes, 16 * MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_RECV, TCP, 0)->evidence, ACCOUNT_BY_DEFINITION);
    begin(ACCOUNT_TIER_TRACEPOINTS);
    receive(TCP, 16 * MIB, 14 * MIB); /* more than that is something else */
    CHECK_EQ(row_of(TRACE_NONE, TRACE_RECV, TCP, 0)->unknown_bytes, 2 * MIB);
}

TEST("discarded bytes are copied never")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    enter(TRACE_NONE, TRACE_RECV_DISCARD, TCP, 0, MIB, 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_RECV_DISCARD, TCP, 0)->copy_bytes, 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_RECV_DISCARD, TCP, 0)->unknown_bytes, 0);
}

/* ---- MSG_ZEROCOPY ---- */

static void lend(uint32_t sink, uint32_t thread, uint64_t calls, uint64_t notified, uint64_t copied)
{
    struct trace_flow_key key = flow_key(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, sink);
    key.thread = thread;
    struct trace_flow_value value = {
        .bytes = calls * 65536, .calls = calls, .notified = notified, .notified_copied = copied};
    CHECK_EQ(account_enter_flow(account, &key, &value), 0);
}

TEST("lent bytes whose notifications say copied were copied: measured")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    lend(TCP, NGINX, 16, 16, 16);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, TCP)->copy_bytes, MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, TCP)->evidence, ACCOUNT_MEASURED);
}

TEST("lent bytes not said to be copied went by reference only where the device is known to gather pages")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    lend(TCP, NGINX, 16, 16, 4);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, TCP)->copy_bytes, MIB / 4);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, TCP)->evidence, ACCOUNT_PROBED);
    lend(PLAIN_TCP, NGINX, 16, 16, 4); /* KERNEL-FACTS 0.4: says "not copied", copies every byte */
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, PLAIN_TCP)->copy_bytes, MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, PLAIN_TCP)->evidence, ACCOUNT_PROBED);
    lend(SILENT_TCP, NGINX, 16, 16, 4);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, SILENT_TCP)->copy_bytes, MIB / 4);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, SILENT_TCP)->unknown_bytes, MIB * 3 / 4);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, SILENT_TCP)->evidence, ACCOUNT_UNKNOWN);
}

TEST("lent bytes whose notifications are outstanding are unknown")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    lend(TCP, NGINX, 16, 12, 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, TCP)->unknown_bytes, MIB / 4);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, TCP)->evidence, ACCOUNT_UNKNOWN);
}

TEST("bytes lent to a peer by loopback are copied, notified or not")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    lend(LO, NGINX, 16, 0, 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, LO)->copy_bytes, MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, LO)->unknown_bytes, 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, LO)->evidence, ACCOUNT_BY_DEFINITION);
}

TEST("notifications that another thread read count for the sender")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    lend(TCP, NGINX, 16, 0, 0);
    lend(TCP, NGINX + 1, 0, 16, 16);
    CHECK_EQ(row_count(false), 1);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, TCP)->copy_bytes, MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, TCP)->evidence, ACCOUNT_MEASURED);
}

TEST("more notifications than calls make no more copies than bytes")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    lend(TCP, NGINX, 16, 400, 300);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, TCP)->copy_bytes, MIB * 3 / 4);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SEND_ZEROCOPY, 0, TCP)->unknown_bytes, 0);
}

TEST("of what TLS in the kernel decrypts, what no tracepoint saw delivered was not copied")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    struct account_end tls = {.key = {.kind = TRACE_END_TCP, .family = 2, .tls = TRACE_TLS_RECEIVE},
                              .value = {.id = TCP}};
    CHECK_EQ(account_enter_end(account, &tls), 0);
    receive(TCP, MIB, MIB / 4);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_RECV, TCP, 0)->copy_bytes, MIB / 4);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_RECV, TCP, 0)->unknown_bytes, 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_RECV, TCP, 0)->evidence, ACCOUNT_BY_DEFINITION);
}

TEST("small files that btrfs is asked to clone may be copied all the same, larger ones are not")
{
    enum { BTRFS = COPY };
    struct trace_flow_key key = flow_key(TRACE_NONE, TRACE_CLONE, ISO, BTRFS);
    struct trace_flow_value small = {.bytes = 100 * 1000, .calls = 100}, large = {.bytes = 100 * MIB, .calls = 100};
    begin(ACCOUNT_TIER_FUNCTIONS);
    enter_end(BTRFS, TRACE_END_FILE, BTRFS_SUPER_MAGIC, 0, 0);
    CHECK_EQ(account_enter_flow(account, &key, &small), 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_CLONE, ISO, BTRFS)->unknown_bytes, small.bytes);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_CLONE, ISO, BTRFS)->evidence, ACCOUNT_UNKNOWN);
    CHECK_EQ(account_enter_flow(account, &key, &large), 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_CLONE, ISO, BTRFS)->unknown_bytes, 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_CLONE, ISO, BTRFS)->evidence, ACCOUNT_BY_DEFINITION);
}

/* ---- Tier (a) ---- */

TEST("nested functions are not counted twice: copies are what was entered, without the definition on top")
{
    begin(ACCOUNT_TIER_FUNCTIONS);
    enter(TRACE_NONE, TRACE_READ, ISO, 0, MIB, 0);
    enter_copy(TRACE_NONE, TRACE_READ, ISO, 0, TRACE_FN_FILEMAP_READ, MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_READ, ISO, 0)->copy_bytes, MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_READ, ISO, 0)->evidence, ACCOUNT_MEASURED);
    CHECK_STR(row_of(TRACE_NONE, TRACE_READ, ISO, 0)->copier, "filemap_read");
}

TEST("deliveries that a function and a tracepoint both report are counted once")
{
    begin(ACCOUNT_TIER_FUNCTIONS);
    receive(TCP, MIB, MIB);
    enter_copy(TRACE_NONE, TRACE_RECV, TCP, 0, TRACE_FN_DATAGRAM_READ, MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_RECV, TCP, 0)->copy_bytes, MIB);
}

TEST("the function that copied most is named")
{
    begin(ACCOUNT_TIER_FUNCTIONS);
    enter(TRACE_NONE, TRACE_SEND, 0, TCP, MIB, 0);
    enter_copy(TRACE_NONE, TRACE_SEND, 0, TCP, TRACE_FN_TCP_SENDMSG, MIB);
    enter_copy(TRACE_NONE, TRACE_SEND, 0, TCP, TRACE_FN_SKB_COPY_AND_CSUM, 2 * MIB);
    CHECK_STR(row_of(TRACE_NONE, TRACE_SEND, 0, TCP)->copier, "skb_copy_and_csum_bits");
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SEND, 0, TCP)->copy_bytes, 3 * MIB);
}

TEST("no copies entered are no copies, where the functions that would copy are watched")
{
    begin(ACCOUNT_TIER_FUNCTIONS);
    enter(TRACE_NONE, TRACE_COPY_FILE_RANGE, ISO, COPY, MIB, 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_COPY_FILE_RANGE, ISO, COPY)->copy_bytes, 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_COPY_FILE_RANGE, ISO, COPY)->evidence, ACCOUNT_MEASURED);
}

TEST("without the function that would copy hooked, no copies seen are what the definition says, or unknown")
{
    begin(ACCOUNT_TIER_FUNCTIONS);
    account_watch(account, ~(1u << TRACE_FN_GENERIC_PERFORM_WRITE | 1u << TRACE_FN_COPY_ON_WRITE));
    enter(TRACE_NONE, TRACE_READ, ISO, 0, MIB, MIB);
    enter_copy(TRACE_NONE, TRACE_READ, ISO, 0, TRACE_FN_FILEMAP_READ, MIB);
    enter(TRACE_READ, TRACE_WRITE, ISO, COPY, MIB, 0);
    CHECK_EQ(row_of(TRACE_READ, TRACE_WRITE, ISO, COPY)->copy_bytes, 2 * MIB);
    CHECK_EQ(row_of(TRACE_READ, TRACE_WRITE, ISO, COPY)->evidence, ACCOUNT_BY_DEFINITION);
    enter_end(STRANGE, TRACE_END_FILE, 0x9123683e /* btrfs */, 0, 0);
    enter(TRACE_NONE, TRACE_COPY_FILE_RANGE, STRANGE, STRANGE, MIB, 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_COPY_FILE_RANGE, STRANGE, STRANGE)->evidence, ACCOUNT_MEASURED);
    account_watch(account, ~(1u << TRACE_FN_BTRFS_WRITE | 1u << TRACE_FN_COPY_ON_WRITE));
    CHECK_EQ(row_of(TRACE_NONE, TRACE_COPY_FILE_RANGE, STRANGE, STRANGE)->unknown_bytes, MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_COPY_FILE_RANGE, STRANGE, STRANGE)->evidence, ACCOUNT_UNKNOWN);
    CHECK_EQ(row_of(TRACE_READ, TRACE_WRITE, ISO, COPY)->evidence, ACCOUNT_MEASURED); /* that nothing was copied */
    enter(TRACE_NONE, TRACE_COPY_ON_WRITE, 0, 0, MIB, 0);
    enter_copy(TRACE_NONE, TRACE_COPY_ON_WRITE, 0, 0, TRACE_FN_COPY_ON_WRITE, MIB / 4); /* by the half that is hooked */
    CHECK_EQ(row_of(TRACE_NONE, TRACE_COPY_ON_WRITE, 0, 0)->copy_bytes, MIB / 4);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_COPY_ON_WRITE, 0, 0)->unknown_bytes, MIB / 4 * 3);
}

TEST("copies of calls that moved nothing are in no row, and listed")
{
    begin(ACCOUNT_TIER_FUNCTIONS);
    struct trace_flow_key key = flow_key(TRACE_NONE, TRACE_WRITE, 0, COPY);
    struct trace_flow_value failed = {.fruitless = 1};
    CHECK_EQ(account_enter_flow(account, &key, &failed), 0);
    enter_copy(TRACE_NONE, TRACE_WRITE, 0, COPY, TRACE_FN_GENERIC_PERFORM_WRITE, 4096);
    enter_copy(TRACE_NONE, TRACE_NONE, 0, 0, TRACE_FN_FILEMAP_READ, 256); /* exec */
    enter(TRACE_NONE, TRACE_READ, ISO, 0, MIB, 0);
    enter_copy(TRACE_NONE, TRACE_READ, ISO, 0, TRACE_FN_FILEMAP_READ, MIB);
    size_t count;
    const struct account_unattributed *copies = account_unattributed(account, &count);
    CHECK_EQ(count, 2);
    CHECK(copies[0].in_calls && copies[1].in_calls);
    CHECK_EQ(copies[0].function, TRACE_FN_FILEMAP_READ);
    CHECK_EQ(copies[0].value.bytes, 256);
    CHECK_EQ(copies[1].function, TRACE_FN_GENERIC_PERFORM_WRITE);
    CHECK_EQ(copies[1].value.bytes, 4096);
    CHECK_EQ(row_count(false), 1);
}

TEST("where copies can happen unwatched, later and elsewhere, the definition stands")
{
    begin(ACCOUNT_TIER_FUNCTIONS);
    enter(TRACE_NONE, TRACE_SENDFILE, ISO, PLAIN_TCP, MIB, 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SENDFILE, ISO, PLAIN_TCP)->copy_bytes, MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SENDFILE, ISO, PLAIN_TCP)->evidence, ACCOUNT_PROBED);
    enter(TRACE_NONE, TRACE_SENDFILE, ISO, SILENT_TCP, MIB, 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SENDFILE, ISO, SILENT_TCP)->unknown_bytes, MIB);
    enter(TRACE_NONE, TRACE_READ, STRANGE, 0, MIB, 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_READ, STRANGE, 0)->copy_bytes, MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_READ, STRANGE, 0)->evidence, ACCOUNT_BY_DEFINITION);
}

TEST("copies seen of an unknown way are the least there is")
{
    begin(ACCOUNT_TIER_FUNCTIONS);
    enter(TRACE_NONE, TRACE_SENDFILE, ISO, SILENT_TCP, 4 * MIB, 0);
    enter_copy(TRACE_NONE, TRACE_SENDFILE, ISO, SILENT_TCP, TRACE_FN_SKB_COPY_AND_CSUM, MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SENDFILE, ISO, SILENT_TCP)->copy_bytes, MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SENDFILE, ISO, SILENT_TCP)->unknown_bytes, 3 * MIB);
}

TEST("measured legs make a measured pair")
{
    begin(ACCOUNT_TIER_FUNCTIONS);
    enter(TRACE_NONE, TRACE_READ, ISO, 0, MIB, MIB);
    enter_copy(TRACE_NONE, TRACE_READ, ISO, 0, TRACE_FN_FILEMAP_READ, MIB);
    enter(TRACE_READ, TRACE_SEND, ISO, TCP, MIB, 0);
    enter_copy(TRACE_READ, TRACE_SEND, ISO, TCP, TRACE_FN_TCP_SENDMSG, MIB);
    CHECK_EQ(row_of(TRACE_READ, TRACE_SEND, ISO, TCP)->copy_bytes, 2 * MIB);
    CHECK_EQ(row_of(TRACE_READ, TRACE_SEND, ISO, TCP)->evidence, ACCOUNT_MEASURED);
}

TEST("copies outside any flow are unattributed, by function, and in no row")
{
    begin(ACCOUNT_TIER_FUNCTIONS);
    struct trace_copy_key key = {.function = TRACE_FN_SKB_COPY_UBUFS};
    struct trace_copy_value value = {.calls = 2, .bytes = MIB};
    CHECK_EQ(account_enter_copy(account, &key, &value), 0);
    CHECK_EQ(account_enter_copy(account, &key, &value), 0);
    key.function = TRACE_FUNCTION_COUNT; /* of a newer kernel side: not ours to name */
    CHECK_EQ(account_enter_copy(account, &key, &value), 0);
    size_t count;
    const struct account_unattributed *copies = account_unattributed(account, &count);
    CHECK_EQ(count, 1);
    CHECK_EQ(copies[0].value.bytes, 2 * MIB);
    CHECK_EQ(copies[0].value.calls, 4);
    CHECK_EQ(row_count(false), 0);
}

/* ---- Copy on write ---- */

TEST("of pages written to, those of files surely were copied; others are unknown without the kernel's function")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    struct trace_flow_key key = flow_key(TRACE_NONE, TRACE_COPY_ON_WRITE, 0, 0);
    struct trace_flow_value value = {.bytes = 4 * MIB, .delivered = MIB, .calls = 1024};
    CHECK_EQ(account_enter_flow(account, &key, &value), 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_COPY_ON_WRITE, 0, 0)->copy_bytes, MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_COPY_ON_WRITE, 0, 0)->unknown_bytes, 3 * MIB);
    begin(ACCOUNT_TIER_FUNCTIONS);
    CHECK_EQ(account_enter_flow(account, &key, &value), 0);
    enter_copy(TRACE_NONE, TRACE_COPY_ON_WRITE, 0, 0, TRACE_FN_COPY_ON_WRITE, 3 * MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_COPY_ON_WRITE, 0, 0)->copy_bytes, 3 * MIB);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_COPY_ON_WRITE, 0, 0)->unknown_bytes, 0);
}

/* ---- Processes and callers ---- */

TEST("a process keeps its figures over exec, and what is not known does not overwrite what is")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    struct account_process increment = {.pid = NGINX, .samples = 3, .cpu_ns = 5, .system_calls = 7};
    CHECK_EQ(account_enter_process(account, NGINX, 1, "sh"), 0);
    CHECK_EQ(account_enter_process_figures(account, &increment), 0);
    CHECK_EQ(account_enter_process(account, NGINX, 0, "a name of over 15 characters"), 0);
    CHECK_EQ(account_enter_process_figures(account, &increment), 0);
    CHECK_EQ(account_enter_process(account, NGINX, 0, NULL), 0);
    const struct account_process *process = account_process(account, NGINX);
    CHECK_STR(process->comm, "a name of over ");
    CHECK_EQ(process->parent, 1);
    CHECK_EQ(process->samples, 6);
    CHECK_EQ(process->cpu_ns, 10);
    CHECK_EQ(process->system_calls, 14);
    CHECK(!process->exited);
}

TEST("a process that ended stays in the account")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    enter(TRACE_NONE, TRACE_SENDFILE, ISO, TCP, MIB, 0);
    account_enter_exit(account, NGINX);
    account_enter_exit(account, 4242); /* never seen */
    CHECK(account_process(account, NGINX)->exited);
    CHECK_EQ(row_count(false), 1);
    CHECK(account_process(account, 4242) == NULL);
}

TEST("callers add up, and come with the most samples first")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    struct account_caller caller = {.pid = NGINX, .copier = "memcpy", .caller = "ngx_one (nginx)", .samples = 5};
    CHECK_EQ(account_enter_caller(account, &caller), 0);
    memset(caller.caller, 'x', sizeof caller.caller); /* what follows the end of a name does not count */
    strcpy(caller.caller, "ngx_two (nginx)");
    caller.samples = 4;
    CHECK_EQ(account_enter_caller(account, &caller), 0);
    memset(caller.caller, 'y', sizeof caller.caller);
    strcpy(caller.caller, "ngx_two (nginx)");
    CHECK_EQ(account_enter_caller(account, &caller), 0);
    size_t count;
    const struct account_caller *callers = account_callers(account, &count);
    CHECK_EQ(count, 2);
    CHECK_STR(callers[0].caller, "ngx_two (nginx)");
    CHECK_EQ(callers[0].samples, 8);
    CHECK_EQ(callers[1].samples, 5);
}

TEST("callers beyond the limit are counted together")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    struct account_caller caller = {.pid = NGINX, .copier = "memcpy", .samples = 1};
    for (unsigned i = 0; i < 2 * ACCOUNT_CALLERS_MAX; i++) {
        snprintf(caller.caller, sizeof caller.caller, "f%u", i);
        CHECK_EQ(account_enter_caller(account, &caller), 0);
    }
    size_t count;
    const struct account_caller *callers = account_callers(account, &count);
    uint64_t samples = 0;
    for (size_t i = 0; i < count; i++)
        samples += callers[i].samples;
    CHECK_EQ(count, ACCOUNT_CALLERS_MAX);
    CHECK_EQ(samples, 2 * ACCOUNT_CALLERS_MAX);
    CHECK_STR(callers[0].caller, "others");
}

/* ---- Bounds ---- */

static void enter_short_lived(uint32_t pid, const char *comm)
{
    CHECK_EQ(account_enter_process(account, pid, 1, comm), 0);
    struct trace_flow_key key = flow_key(TRACE_NONE, TRACE_SENDFILE, ISO, TCP);
    key.pid = key.thread = pid;
    enter_key(&key, 65536, 0);
    struct account_process increment = {.pid = pid, .samples = 1};
    CHECK_EQ(account_enter_process_figures(account, &increment), 0);
}

TEST("a hundred thousand short-lived processes of two names take bounded memory, and lose nothing")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    unsigned many = 100000;
    for (unsigned i = 0; i < many; i++) {
        account_enter_time(account, UINT64_C(10000000) * i, 0);
        enter_short_lived(10000 + i, i % 2 ? "cp" : "cat");
        account_enter_exit(account, 10000 + i);
    }
    size_t rows_count, process_count;
    const struct account_row *rows = account_rows(account, false, &rows_count);
    const struct account_process *processes = account_processes(account, &process_count);
    uint64_t bytes = 0, samples = 0;
    for (size_t i = 0; i < rows_count; i++) {
        bytes += rows[i].value.bytes;
        CHECK(account_process(account, rows[i].key.pid) != NULL);
    }
    for (size_t i = 0; i < process_count; i++)
        samples += processes[i].samples;
    CHECK_EQ(bytes, (uint64_t)many * 65536);
    CHECK_EQ(samples, many);
    CHECK(process_count <= ACCOUNT_PROCESSES_MAX + 2000);
    CHECK(rows_count <= ACCOUNT_PROCESSES_MAX + 2000);
    CHECK_EQ(account_lost(account)->flows, 0);
}

TEST("processes that live are never folded into others, nor those that ended just now")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    account_enter_time(account, 0, 0);
    static const uint32_t ended[] = {5, 6, 10002, 10003};
    for (uint32_t pid = 5; pid <= 7; pid++)
        enter_short_lived(pid, "cp");
    for (uint32_t i = 0; i < ACCOUNT_PROCESSES_MAX - 3; i++)
        enter_short_lived(10000 + i, "cat");
    for (size_t i = 0; i < sizeof ended / sizeof ended[0]; i++)
        account_enter_exit(account, ended[i]);
    account_enter_time(account, UINT64_C(10000000000), 0);
    account_enter_exit(account, 10004); /* a moment ago */
    enter_short_lived(8, "cp");         /* one too many */
    CHECK(account_process(account, 5) != NULL && account_process(account, 6) == NULL);
    CHECK(account_process(account, 10002) != NULL && account_process(account, 10003) == NULL);
    CHECK_EQ(account_process(account, 5)->samples, 2);
    CHECK(account_process(account, 7) != NULL && account_process(account, 8) != NULL);
    CHECK(account_process(account, 10000) != NULL && account_process(account, 10001) != NULL);
    CHECK(account_process(account, 10004) != NULL);
}

TEST("flows beyond the limit are counted as lost, those within still add up")
{
    begin(ACCOUNT_TIER_TRACEPOINTS);
    struct trace_flow_key key = flow_key(TRACE_NONE, TRACE_SENDFILE, ISO, TCP);
    for (uint32_t i = 0; i < ACCOUNT_FLOWS_MAX + 5; i++) {
        key.thread = i;
        enter_key(&key, 65536, 0);
    }
    struct trace_lost lost = {.events = 3, .flows = 1};
    account_enter_lost(account, &lost);
    CHECK_EQ(account_lost(account)->flows, 5 * 65536 + 1);
    CHECK_EQ(account_lost(account)->flow_calls, 5);
    CHECK_EQ(account_lost(account)->events, 3);
    key.thread = 4;
    enter_key(&key, 65536, 0);
    CHECK_EQ(row_of(TRACE_NONE, TRACE_SENDFILE, ISO, TCP)->value.bytes, (ACCOUNT_FLOWS_MAX + 1) * UINT64_C(65536));
}

TEST("without memory an entry fails with ENOMEM, and the account stays whole")
{
    for (unsigned fail = 1; fail < 60; fail++) {
        uint64_t entered = 0, copied = 0;
        begin(ACCOUNT_TIER_FUNCTIONS);
        allocations_left = fail;
        for (uint32_t i = 0; i < 100; i++) {
            struct trace_flow_key key = flow_key(TRACE_NONE, TRACE_SENDFILE, ISO, TCP);
            key.pid = key.thread = 100 + i;
            struct trace_flow_value value = {.bytes = 65536, .calls = 1};
            int error = account_enter_flow(account, &key, &value);
            CHECK(error == 0 || error == -ENOMEM);
            size_t count;
            account_rows(account, false, &count); /* there is room for what has been entered */
            if (error < 0)
                continue; /* copies of a flow that moved nothing would be in no row */
            entered += 65536;
            struct trace_copy_key copy = {.flow = key, .function = TRACE_FN_SKB_COPY_BITS};
            struct trace_copy_value copies = {.calls = 1, .bytes = 17};
            error = account_enter_copy(account, &copy, &copies);
            copied += error == 0 ? 17 : 0;
            struct account_caller caller = {.pid = 100 + i, .caller = "f", .samples = 1};
            error = account_enter_caller(account, &caller);
            CHECK(error == 0 || error == -ENOMEM);
            struct account_end end = {.key = {.kind = TRACE_END_PIPE}, .value = {.id = 1000 + i}};
            error = account_enter_end(account, &end);
            CHECK(error == 0 || error == -ENOMEM);
        }
        allocations_left = 0;
        size_t count;
        uint64_t bytes = 0, copy_bytes = 0;
        const struct account_row *rows = account_rows(account, true, &count);
        for (size_t i = 0; i < count; i++) {
            bytes += rows[i].value.bytes;
            copy_bytes += rows[i].copy_bytes;
        }
        CHECK_EQ(bytes, entered);
        CHECK_EQ(copy_bytes, copied);
        account_callers(account, &count);
    }
}

TEST("an account for which there is no memory is none")
{
    struct account *none = account;
    allocations_left = 1;
    CHECK_EQ(account_new(ACCOUNT_TIER_PROC, &none), -ENOMEM);
    CHECK(none == account);
}

TEST("time, tier and the names of evidence")
{
    begin(ACCOUNT_TIER_PROC);
    account_enter_time(account, 5, 1);
    account_enter_time(account, 9, 2);
    CHECK_EQ(account_elapsed_ns(account), 9);
    CHECK_EQ(account_counted_ns(account), 2);
    CHECK_EQ(account_tier(account), ACCOUNT_TIER_PROC);
    CHECK_STR(account_evidence_name(ACCOUNT_UNKNOWN), "unknown");
    CHECK_STR(account_evidence_name(ACCOUNT_BY_DEFINITION), "by definition");
    CHECK_STR(account_evidence_name(ACCOUNT_MEASURED), "measured");
    account_free(account);
    account = NULL;
}

CHECK_MAIN()
