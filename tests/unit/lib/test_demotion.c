/* SPDX-License-Identifier: MIT
 *
 * The transfer on a kernel that lies: every route is refused at every byte, and the next one goes on there.
 */
#include "../check.h"
#include "simulated.h"
#include "world.h"
#include <errno.h>

#define SIZE 70000
#define HEAD "HTTP/1.1 200 OK\r\n\r\n"
#define HEAD_SIZE (sizeof HEAD - 1)

/* Under a sanitizer every 13th offset; else each one. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define STRIDE 13
#else
#define STRIDE 1
#endif

static unsigned char body[SIZE + 4096], whole[HEAD_SIZE + SIZE + 4096];

static void make_bytes(void)
{
    pattern_fill(body, 0, SIZE);
    memcpy(whole, HEAD, HEAD_SIZE);
    memcpy(whole + HEAD_SIZE, body, SIZE);
}

struct outcome {
    int result;
    bool wrong;
    size_t got;
    struct sluice_receipt receipt;
};

/* Two routes write at an offset, which only a file has. (Direct does as well, but leaves parts of blocks to others: it
 * has a test of its own.) */
static bool carries_memory_only(enum sluice_route route)
{
    return route == SLUICE_ROUTE_VMSPLICE || route == SLUICE_ROUTE_MSG_ZEROCOPY || route == SLUICE_ROUTE_URING_SEND_ZC;
}

static bool is_between_files(enum sluice_route route)
{
    return route == SLUICE_ROUTE_COPY_FILE_RANGE || route == SLUICE_ROUTE_REFLINK;
}

static struct outcome simulate(struct simulation *simulation, bool stream, bool head, uint64_t length,
                               const enum sluice_route *order)
{
    struct outcome outcome;
    struct sluice_transfer transfer = {0};
    bool into_file = simulation->into_file || is_between_files(order[0]) || is_between_files(order[1]);
    enum sluice_end_kind to = into_file ? SLUICE_END_FILE : SLUICE_END_TCP;
    simulation_begin(simulation);
    struct sluice_end *source = simulated_end(simulation, stream ? SIMULATED_STREAM : SIMULATED_FILE,
                                              stream ? SLUICE_END_TCP : SLUICE_END_FILE, body, SIZE);
    struct sluice_end *sink =
        simulated_end(simulation, SIMULATED_SINK, to, head ? whole : body, SIZE + (head ? HEAD_SIZE : 0));
    struct sluice_segment segments[] = {
        memory_segment(HEAD, head ? HEAD_SIZE : 0),
        stream ? stream_segment(source, length) : file_segment(source, 0, length),
    };
    struct sluice_transfer_options options = {
        .size = sizeof options, .segments = segments, .segment_count = 2, .sinks = &sink, .sink_count = 1};
    outcome.result = transfer_begin(&transfer, &options, NULL);
    if (outcome.result == 0) {
        transfer.order = order;
        outcome.result = simulation_run(simulation, &transfer);
        outcome.receipt = transfer.lanes[0].receipt;
        transfer_end(&transfer);
    }
    outcome.got = simulation->objects[1].at;
    outcome.wrong = simulation->objects[1].wrong;
    sluice_end_close(source);
    sluice_end_close(sink);
    simulation_end();
    return outcome;
}

static void refuse_at_every_byte(bool stream, enum sluice_route from, enum sluice_route to, bool at_drain)
{
    const enum sluice_route order[] = {from, to, SLUICE_ROUTE_AUTO};
    /* The last bytes are no whole page, and are not mapped. */
    uint64_t end = from == SLUICE_ROUTE_TCP_RECEIVE && at_drain ? SIZE / SIMULATED_PAGE * SIMULATED_PAGE : SIZE;
    for (uint64_t at = 0; at < end; at += STRIDE) {
        bool head = at % 2;
        size_t before = head ? HEAD_SIZE : 0;
        struct simulation simulation = {.refusal = {.route = from, .at = before + at, .at_drain = at_drain}};
        struct outcome got = simulate(&simulation, stream, head, at % 3 ? SIZE : SLUICE_UNTIL_END, order);
        if (got.result != 0 || got.wrong || got.got != before + SIZE)
            CHECK_FAIL("%s to %s at byte %llu%s: result %d, %zu bytes%s", sluice_route_name(from),
                       sluice_route_name(to), (unsigned long long)at, at_drain ? " while draining" : "", got.result,
                       got.got, got.wrong ? ", wrong ones" : "");
        const struct sluice_fallback *fallback = &got.receipt.fallbacks[0];
        if (got.receipt.fallback_count != 1 || fallback->from != from || fallback->to != to ||
            fallback->at != before + at || fallback->reason == NULL)
            CHECK_FAIL("%s to %s at byte %llu: the receipt tells it wrong (%llu fallbacks, at %llu)",
                       sluice_route_name(from), sluice_route_name(to), (unsigned long long)at,
                       (unsigned long long)got.receipt.fallback_count, (unsigned long long)fallback->at);
        uint64_t by_first = got.receipt.routes[from].bytes - (from == SLUICE_ROUTE_COPY ? before : 0);
        if (by_first != at && to != SLUICE_ROUTE_COPY && from != SLUICE_ROUTE_COPY)
            CHECK_FAIL("%s carried %llu bytes, not %llu", sluice_route_name(from), (unsigned long long)by_first,
                       (unsigned long long)at);
    }
}

static void refuse_on_every_route_after(enum sluice_route from, bool at_drain)
{
    make_bytes();
    for (int to = SLUICE_ROUTE_COPY; to < SLUICE_ROUTE_COUNT; to++)
        if (to != (int)from && to != SLUICE_ROUTE_TEE && /* test_tee.c */
            to != SLUICE_ROUTE_TCP_RECEIVE &&            /* no files */
            !carries_memory_only((enum sluice_route)to) && !(to == SLUICE_ROUTE_DIRECT && is_between_files(from)) &&
            !(from == SLUICE_ROUTE_DIRECT && is_between_files((enum sluice_route)to)))
            refuse_at_every_byte(false, from, (enum sluice_route)to, at_drain);
}

TEST("copy gives way to every other route at every byte of 70 KB")
{
    refuse_on_every_route_after(SLUICE_ROUTE_COPY, false);
}

TEST("mmap gives way to every other route at every byte of 70 KB")
{
    refuse_on_every_route_after(SLUICE_ROUTE_MMAP, false);
}

TEST("sendfile gives way to every other route at every byte of 70 KB")
{
    refuse_on_every_route_after(SLUICE_ROUTE_SENDFILE, false);
}

TEST("splice gives way to every other route at every byte of 70 KB, refused while filling its pipe")
{
    refuse_on_every_route_after(SLUICE_ROUTE_SPLICE, false);
}

TEST("splice gives way to every other route at every byte of 70 KB, refused with bytes in its pipe")
{
    refuse_on_every_route_after(SLUICE_ROUTE_SPLICE, true);
}

TEST("copy_file_range gives way to every other route at every byte of 70 KB")
{
    refuse_on_every_route_after(SLUICE_ROUTE_COPY_FILE_RANGE, false);
}

TEST("reflink gives way to every other route at every byte of 70 KB")
{
    refuse_on_every_route_after(SLUICE_ROUTE_REFLINK, false);
}

TEST("direct gives way to every other route at every byte of 70 KB")
{
    refuse_on_every_route_after(SLUICE_ROUTE_DIRECT, false);
}

TEST("into a file, direct writes whole blocks, and copy the rest from whichever byte on it is refused")
{
    static const enum sluice_route order[] = {SLUICE_ROUTE_DIRECT, SLUICE_ROUTE_COPY, SLUICE_ROUTE_AUTO};
    make_bytes();
    for (uint64_t at = 0; at <= SIZE; at += STRIDE) {
        struct simulation simulation = {.refusal = {.route = SLUICE_ROUTE_DIRECT, .at = at}, .into_file = true};
        struct outcome got = simulate(&simulation, false, false, at % 3 ? SIZE : SLUICE_UNTIL_END, order);
        uint64_t direct = at / 4096 * 4096;
        if (got.result != 0 || got.wrong || got.got != SIZE || got.receipt.fallback_count != 1 ||
            got.receipt.fallbacks[0].at != direct || got.receipt.routes[SLUICE_ROUTE_DIRECT].bytes != direct)
            CHECK_FAIL("at byte %llu: result %d, %zu bytes%s, %llu of them by direct, %llu fallbacks",
                       (unsigned long long)at, got.result, got.got, got.wrong ? ", wrong ones" : "",
                       (unsigned long long)got.receipt.routes[SLUICE_ROUTE_DIRECT].bytes,
                       (unsigned long long)got.receipt.fallback_count);
    }
}

TEST("of a stream, what splice had taken out is delivered by copy, and the other way round, at every byte")
{
    make_bytes();
    refuse_at_every_byte(true, SLUICE_ROUTE_SPLICE, SLUICE_ROUTE_COPY, false);
    refuse_at_every_byte(true, SLUICE_ROUTE_SPLICE, SLUICE_ROUTE_COPY, true);
    refuse_at_every_byte(true, SLUICE_ROUTE_COPY, SLUICE_ROUTE_SPLICE, false);
}

TEST("of a stream, what was mapped is delivered by copy when tcp_receive gives way, at every byte")
{
    make_bytes();
    refuse_at_every_byte(true, SLUICE_ROUTE_TCP_RECEIVE, SLUICE_ROUTE_COPY, false);
    refuse_at_every_byte(true, SLUICE_ROUTE_TCP_RECEIVE, SLUICE_ROUTE_COPY, true);
}

TEST("short counts and EAGAIN in any order lose and double nothing on any route")
{
    make_bytes();
    for (uint64_t seed = 0; seed < 20000; seed += STRIDE) {
        bool stream = seed % 2;
        enum sluice_route route = (enum sluice_route)(1 + seed / 2 % SLUICE_ROUTE_SPLICE);
        if (stream && route != SLUICE_ROUTE_COPY)
            route = seed % 4 == 1 ? SLUICE_ROUTE_SPLICE : SLUICE_ROUTE_TCP_RECEIVE;
        const enum sluice_route order[] = {route, SLUICE_ROUTE_COPY, SLUICE_ROUTE_AUTO};
        struct simulation simulation = {.seed = seed, .lies = (unsigned)(8 + seed % 100)};
        struct outcome got = simulate(&simulation, stream, true, seed % 3 ? SIZE : SLUICE_UNTIL_END, order);
        if (got.result != 0 || got.wrong || got.got != HEAD_SIZE + SIZE)
            CHECK_FAIL("seed %llu, %s: result %d, %zu bytes%s", (unsigned long long)seed, sluice_route_name(route),
                       got.result, got.got, got.wrong ? ", wrong ones" : "");
    }
}

TEST("the last route of the plan, refused, ends the transfer with the count that was delivered")
{
    make_bytes();
    const enum sluice_route order[] = {SLUICE_ROUTE_SENDFILE, SLUICE_ROUTE_AUTO};
    struct simulation simulation = {.refusal = {.route = SLUICE_ROUTE_SENDFILE, .at = 12345}};
    struct outcome got = simulate(&simulation, false, false, SIZE, order);
    CHECK_EQ(got.result, -EINVAL);
    CHECK_EQ(got.got, 12345);
    CHECK_EQ(got.receipt.sent, 12345);
}

TEST("a source that ends early delivers what there was and says so")
{
    make_bytes();
    const enum sluice_route order[] = {SLUICE_ROUTE_COPY, SLUICE_ROUTE_AUTO};
    struct simulation simulation = {0};
    struct outcome got = simulate(&simulation, true, false, SIZE + 1, order);
    CHECK_EQ(got.result, -ENODATA);
    CHECK_EQ(got.got, SIZE);
    CHECK_EQ(got.receipt.short_sources, 1);
}

CHECK_MAIN()
