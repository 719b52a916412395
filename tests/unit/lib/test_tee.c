/* SPDX-License-Identifier: MIT
 *
 * One stream into several sinks by tee: on a kernel that lies, and on this one.
 */
#include "../check.h"
#include "checked.h"
#include "fanout.h"
#include "simulated.h"
#include "world.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SIZE 12000
#define HEAD "HEAD"
#define HEAD_SIZE 4
#define SINKS_MAX 3

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define STRIDE 13
#else
#define STRIDE 1
#endif

static unsigned char body[SIZE], whole[HEAD_SIZE + SIZE];

static void make_bytes(void)
{
    pattern_fill(body, 0, SIZE);
    memcpy(whole, HEAD, HEAD_SIZE);
    memcpy(whole + HEAD_SIZE, body, SIZE);
}

/* ---- Simulated ---------------------------------------------------------------------------------------------- */

struct sinks {
    unsigned count;
    bool head;
    uint64_t length;
    enum sluice_fanout_policy policy;
    size_t window, buffer;
    unsigned by_copy; /* bit per sink that cannot splice */
    size_t stops_at;  /* the last sink: see struct simulated_object */
    int stop_error;
    bool first_stops; /* the first instead */
    bool forced;
};

struct outcome {
    int result;
    size_t got[SINKS_MAX];
    bool wrong;
    struct sluice_receipt receipts[SINKS_MAX];
    struct sluice_error errors[SINKS_MAX];
};

static uint64_t simulated_clock(void)
{
    static uint64_t now;
    return now += SLUICE_FANOUT_PATIENCE / 10;
}

static struct outcome simulate(struct simulation *simulation, const struct sinks *how)
{
    struct outcome outcome = {0};
    struct sluice_transfer transfer = {0};
    struct sluice_end *sinks[SINKS_MAX];
    const size_t before = how->head ? HEAD_SIZE : 0;
    simulation_begin(simulation);
    struct sluice_end *source = simulated_end(simulation, SIMULATED_STREAM, SLUICE_END_TCP, body, SIZE);
    for (unsigned i = 0; i < how->count; i++) {
        sinks[i] =
            simulated_end(simulation, SIMULATED_SINK, SLUICE_END_UNIX_STREAM, how->head ? whole : body, before + SIZE);
        sinks[i]->append = how->by_copy >> i & 1;
    }
    const unsigned stops = how->first_stops ? 1 : how->count;
    simulation->objects[stops].stops_at = how->stops_at;
    simulation->objects[stops].stop_error = how->stop_error;
    struct sluice_segment segments[] = {memory_segment(HEAD, before), stream_segment(source, how->length)};
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = segments,
                                              .segment_count = 2,
                                              .sinks = sinks,
                                              .sink_count = how->count,
                                              .policy = how->policy,
                                              .window = how->window,
                                              .buffer = how->buffer,
                                              .route = how->forced ? SLUICE_ROUTE_TEE : SLUICE_ROUTE_AUTO,
                                              .sink_errors = outcome.errors};
    outcome.result = transfer_begin(&transfer, &options, NULL);
    if (outcome.result == 0) {
        transfer.fanout->clock = simulated_clock;
        outcome.result = simulation_run(simulation, &transfer);
        for (unsigned i = 0; i < how->count; i++)
            outcome.receipts[i] = transfer.lanes[i].receipt;
        transfer_end(&transfer);
    }
    for (unsigned i = 0; i < how->count; i++) {
        outcome.got[i] = simulation->objects[1 + i].at;
        outcome.wrong |= simulation->objects[1 + i].wrong;
        sluice_end_close(sinks[i]);
    }
    sluice_end_close(source);
    simulation_end();
    return outcome;
}

static void all_got_everything(const struct outcome *got, const struct sinks *how, const char *what, uint64_t at)
{
    for (unsigned i = 0; i < how->count; i++) {
        const struct sluice_receipt *receipt = &got->receipts[i];
        size_t size = SIZE + (how->head ? HEAD_SIZE : 0);
        if (got->result != 0 || got->wrong || got->got[i] != size)
            CHECK_FAIL("%s at %llu, sink %u of %u: result %d, %zu bytes%s", what, (unsigned long long)at, i, how->count,
                       got->result, got->got[i], got->wrong ? ", wrong ones" : "");
        if (receipt->bytes != size || receipt->by_reference + receipt->copied + receipt->unknown != size ||
            receipt->routes[SLUICE_ROUTE_TEE].bytes + receipt->routes[SLUICE_ROUTE_COPY].bytes != size)
            CHECK_FAIL("%s at %llu, sink %u of %u: its receipt does not add up", what, (unsigned long long)at, i,
                       how->count);
    }
}

TEST("refused while filling, taking or delivering any byte, every sink goes on by copy at its own byte")
{
    static const char *const places[] = {"filling", "taking", "delivering"};
    make_bytes();
    for (unsigned count = 2; count <= SINKS_MAX; count++)
        for (int place = 0; place < 3; place++)
            for (uint64_t at = 0; at < SIZE; at += STRIDE) {
                struct sinks how = {.count = count,
                                    .head = at % 2,
                                    .length = at % 3 ? SIZE : SLUICE_UNTIL_END,
                                    .window = at % 5 ? 0 : 5000};
                struct simulation simulation = {.pipe_size = 4000,
                                                .refusal = {.route = SLUICE_ROUTE_TEE,
                                                            .at = at,
                                                            .at_tee = place == 1,
                                                            .at_drain = place == 2,
                                                            .sink = place == 2 ? 1001 + (int)(at % count) : 0}};
                if (place == 2 && how.head)
                    simulation.refusal.at += HEAD_SIZE;
                struct outcome got = simulate(&simulation, &how);
                all_got_everything(&got, &how, places[place], at);
                unsigned fallbacks = 0;
                for (unsigned i = 0; i < count; i++) {
                    const struct sluice_receipt *receipt = &got.receipts[i];
                    if (receipt->fallback_count > 1 ||
                        (receipt->fallback_count == 1 &&
                         (receipt->fallbacks[0].from != SLUICE_ROUTE_TEE ||
                          receipt->fallbacks[0].to != SLUICE_ROUTE_COPY || receipt->fallbacks[0].error != EINVAL)))
                        CHECK_FAIL("%s at %llu: sink %u tells it wrong", places[place], (unsigned long long)at, i);
                    fallbacks += (unsigned)receipt->fallback_count;
                }
                if (fallbacks != (place == 2 ? 1 : count))
                    CHECK_FAIL("%s at %llu: %u of %u sinks changed route", places[place], (unsigned long long)at,
                               fallbacks, count);
            }
}

TEST("short counts, EAGAIN on either side and pipes of any size lose and double nothing")
{
    static const size_t pipe_sizes[] = {0, 1, 100, 4096, 5000, 9000};
    make_bytes();
    for (uint64_t seed = 0; seed < 12000; seed += STRIDE) {
        struct sinks how = {.count = 2 + seed % 2,
                            .head = seed / 4 % 2 && seed / 2 % 2,
                            .length = seed % 3 ? SIZE : SLUICE_UNTIL_END,
                            .policy = seed / 4 % 2 ? SLUICE_FANOUT_BLOCK : SLUICE_FANOUT_COPY,
                            .window = seed % 5 ? 1 + seed % 10007 : 0,
                            .buffer = 1 << 20, /* more than the stream: nobody is too slow */
                            .by_copy = (unsigned)(seed / 8 % 8)};
        struct simulation simulation = {
            .seed = seed, .lies = (unsigned)(8 + seed % 100), .pipe_size = pipe_sizes[seed % 6]};
        if (simulation.pipe_size == 1 && seed % 7)
            continue; /* a byte at a time takes long */
        struct outcome got = simulate(&simulation, &how);
        all_got_everything(&got, &how, "seed", seed);
    }
}

TEST("a sink that breaks at any byte takes nothing from the others, unless the policy is to wait for all")
{
    make_bytes();
    for (uint64_t at = 1; at < SIZE; at += 7 * STRIDE)
        for (unsigned count = 2; count <= SINKS_MAX; count++) {
            struct sinks how = {.count = count,
                                .length = at % 3 ? SIZE : SLUICE_UNTIL_END,
                                .policy = (enum sluice_fanout_policy)(at % 3),
                                .by_copy = (unsigned)(at / 3 % 8),
                                .stops_at = at,
                                .stop_error = EPIPE};
            struct simulation simulation = {.seed = at, .lies = 30, .pipe_size = 2000};
            struct outcome got = simulate(&simulation, &how);
            CHECK(!got.wrong);
            CHECK_EQ(got.got[count - 1], at);
            CHECK_EQ(got.receipts[count - 1].sent, at);
            if (how.policy == SLUICE_FANOUT_BLOCK) {
                CHECK_EQ(got.result, -EPIPE);
                continue;
            }
            CHECK_EQ(got.result, 0);
            CHECK_EQ(got.errors[count - 1].code, -EPIPE);
            CHECK_EQ(got.errors[count - 1].delivered, at);
            CHECK(got.errors[count - 1].operation != NULL);
            for (unsigned i = 0; i + 1 < count; i++) {
                CHECK_EQ(got.got[i], SIZE);
                CHECK_EQ(got.errors[i].code, 0);
            }
        }
}

TEST("a sink that takes no more is given up some time after it is the window behind, or window and buffer; the others "
     "go on")
{
    make_bytes();
    for (uint64_t at = 1; at < SIZE; at += 11 * STRIDE)
        for (unsigned count = 2; count <= SINKS_MAX; count++) {
            bool copy = at % 2;
            size_t tolerance = copy ? 1000 + 3000 : 1000;
            struct sinks how = {.count = count,
                                .length = SIZE,
                                .policy = copy ? SLUICE_FANOUT_COPY : SLUICE_FANOUT_DROP,
                                .window = 1000,
                                .buffer = 3000,
                                .by_copy = (unsigned)(at / 3 % 8),
                                .stops_at = at,
                                .stop_error = EAGAIN};
            struct simulation simulation = {.pipe_size = at % 3 ? 0 : 700};
            if (SIZE - at <= tolerance)
                break; /* it is never in the way */
            struct outcome got = simulate(&simulation, &how);
            CHECK(!got.wrong);
            CHECK_EQ(got.result, 0);
            CHECK_EQ(got.got[count - 1], at);
            CHECK_EQ(got.errors[count - 1].code, -ENOBUFS);
            for (unsigned i = 0; i + 1 < count; i++)
                CHECK_EQ(got.got[i], SIZE);
        }
}

TEST("every sink gone, the transfer fails with the last one's error")
{
    make_bytes();
    struct sinks how = {.count = 2, .length = SIZE, .policy = SLUICE_FANOUT_DROP, .stops_at = 100, .stop_error = EPIPE};
    struct simulation simulation = {.refusal = {.route = SLUICE_ROUTE_TEE, .at = 50, .at_drain = true, .sink = 1001}};
    how.forced = true;
    struct outcome got = simulate(&simulation, &how);
    CHECK_EQ(got.result, -EOPNOTSUPP);
    CHECK_EQ(got.got[0], 50);
}

static struct sinks first_of(uint64_t seed, unsigned count)
{
    return (struct sinks){.count = count,
                          .head = seed / 2 % 2,
                          .length = seed % 3 ? SIZE : SLUICE_UNTIL_END,
                          .policy = SLUICE_FANOUT_FIRST,
                          .window = 1 + seed * 7 % 10007,
                          .by_copy = (unsigned)(seed / 4 % 8)};
}

static void first_got_everything(const struct outcome *got, const struct sinks *how, uint64_t seed)
{
    size_t size = SIZE + (how->head ? HEAD_SIZE : 0);
    if (got->result != 0 || got->wrong || got->got[0] != size || got->errors[0].code != 0 ||
        got->receipts[0].bytes != size)
        CHECK_FAIL("seed %llu: result %d, the first got %zu of %zu bytes%s", (unsigned long long)seed, got->result,
                   got->got[0], size, got->wrong ? ", somebody wrong ones" : "");
    for (unsigned i = 1; i < how->count; i++)
        if ((got->errors[i].code == 0) != (got->got[i] == size) || got->receipts[i].sent != got->got[i] ||
            got->errors[i].delivered != (got->errors[i].code != 0 ? got->got[i] : 0))
            CHECK_FAIL("seed %llu: sink %u got %zu bytes, but %d was said", (unsigned long long)seed, i, got->got[i],
                       got->errors[i].code);
}

TEST("of a first and others the first gets every byte in any weather, another all of them or, if given up, the first "
     "ones")
{
    static const size_t pipe_sizes[] = {0, 1, 100, 4096, 5000, 9000};
    unsigned given_up = 0, complete = 0;
    make_bytes();
    for (uint64_t seed = 0; seed < 6000; seed += STRIDE) {
        struct sinks how = first_of(seed, 2 + seed % 2);
        struct simulation simulation = {
            .seed = seed, .lies = (unsigned)(8 + seed % 100), .pipe_size = pipe_sizes[seed / 12 % 6]};
        if (simulation.pipe_size == 1 && seed % 7)
            continue; /* a byte at a time takes long */
        struct outcome got = simulate(&simulation, &how);
        first_got_everything(&got, &how, seed);
        for (unsigned i = 1; i < how.count; i++)
            *(got.errors[i].code != 0 ? &given_up : &complete) += 1;
    }
    CHECK(given_up > 50 && complete > 50);
}

TEST("of a first and others one that breaks or is refused at any byte is dropped there, and the first gets everything")
{
    make_bytes();
    for (uint64_t at = 1; at < SIZE; at += 7 * STRIDE) {
        struct sinks how = first_of(at, 2 + at % 2);
        how.window = 0;
        how.stops_at = at;
        how.stop_error = EPIPE;
        /* A pipe that holds bytes says EAGAIN to no reader, and who waits for one holds the first up. */
        struct simulation simulation = {.seed = at, .lies = how.by_copy != 0 ? 0 : 30, .pipe_size = 2000};
        struct outcome got = simulate(&simulation, &how);
        first_got_everything(&got, &how, at);
        CHECK_EQ(got.errors[how.count - 1].code, -EPIPE);
        CHECK_EQ(got.got[how.count - 1], at);
    }
    for (uint64_t at = 0; at < SIZE; at += 7 * STRIDE) { /* taking for it, or its tee alone */
        struct sinks how = first_of(at, 2);
        how.by_copy = 0;
        how.window = 0;
        how.forced = true;
        how.head = false;
        struct simulation simulation = {
            .pipe_size = 4000, .refusal = {.route = SLUICE_ROUTE_TEE, .at = at, .at_drain = true, .sink = 1002}};
        struct outcome got = simulate(&simulation, &how);
        first_got_everything(&got, &how, at);
        CHECK_EQ(got.errors[1].code, -EOPNOTSUPP);
    }
}

TEST("of a first and others one that takes no more is dropped when it is the window behind, or when it stands still "
     "after the end; the first goes on by splice")
{
    make_bytes();
    for (uint64_t at = 1; at < SIZE; at += 11 * STRIDE)
        for (unsigned count = 2; count <= SINKS_MAX; count++) {
            struct sinks how = first_of(at, count);
            how.window = 1000;
            how.head = false;
            how.by_copy = 0;
            how.stops_at = at;
            how.stop_error = EAGAIN;
            struct simulation simulation = {.pipe_size = at % 3 ? 0 : 700};
            struct outcome got = simulate(&simulation, &how);
            const struct sluice_error *error = &got.errors[count - 1];
            first_got_everything(&got, &how, at);
            CHECK_EQ(error->code, -ENOBUFS);
            CHECK_EQ(got.got[count - 1], at);
            if (SIZE - at > 2000)
                CHECK_STR(error->reason, "the sink fell too far behind the first");
            if (SIZE - at < 1000)
                CHECK_STR(error->reason, "the sink took nothing more after the first had everything");
            if (count > 2 || SIZE - at < 4000)
                continue;
            /* So little is known to be cheaper to copy. */
            enum sluice_route alone = how.length == SIZE ? SLUICE_ROUTE_COPY : SLUICE_ROUTE_SPLICE;
            CHECK(got.receipts[0].routes[alone].bytes > 0);
            CHECK_EQ(got.receipts[0].fallback_count, 1);
            CHECK_EQ(got.receipts[0].fallbacks[0].from, SLUICE_ROUTE_TEE);
            CHECK_EQ(got.receipts[0].fallbacks[0].to, alone);
        }
}

TEST("when the first breaks the transfer ends with its error, though others are behind")
{
    make_bytes();
    for (uint64_t at = 1; at < SIZE; at += 11 * STRIDE) {
        struct sinks how = first_of(at, 2 + at % 2);
        how.first_stops = true;
        how.stops_at = at;
        how.stop_error = ECONNRESET;
        struct simulation simulation = {.seed = at, .lies = 30, .pipe_size = 2000};
        struct outcome got = simulate(&simulation, &how);
        CHECK_EQ(got.result, -ECONNRESET);
        CHECK_EQ(got.got[0], at);
        CHECK(!got.wrong);
        for (unsigned i = 1; i < how.count; i++)
            CHECK(got.errors[i].code == 0 || got.errors[i].code == -ENOBUFS);
    }
}

/* ---- Real --------------------------------------------------------------------------------------------------- */

/* Steps until the end or until nothing more can be done for a while. */
static int step_until_stuck(struct sluice_transfer *transfer)
{
    struct sluice_waits waits;
    int result = SLUICE_STEP_YIELD;
    for (int still = 0; result > 0 && still < 30;) {
        result = sluice_transfer_step(transfer, &waits);
        if (result != SLUICE_STEP_WAIT)
            continue;
        struct pollfd fds[SLUICE_WAITS_MAX];
        for (unsigned i = 0; i < waits.count; i++)
            fds[i] = (struct pollfd){.fd = waits.wait[i].fd,
                                     .events = waits.wait[i].kind == SLUICE_WAIT_READABLE ? POLLIN : POLLOUT};
        still = poll(fds, waits.count, 10) == 0 ? still + 1 : 0;
    }
    return result;
}

static void finish(struct collector *collector, size_t size)
{
    size_t got;
    unsigned char *data = collector_finish(collector, &got);
    CHECK_EQ(got, size);
    for (size_t i = 0; i < got; i++)
        if (data[i] != pattern_byte(i))
            CHECK_FAIL("byte %zu is wrong", i);
    free(data);
}

#define LARGE ((8u << 20) + 4321)

TEST("by tee nothing is copied: TCP and pipes into TCP and pipes")
{
    for (int from_pipe = 0; from_pipe < 2; from_pipe++) {
        int in[2], out[3][2];
        struct collector *collectors[3];
        struct sluice_end *sinks[3];
        struct sluice_receipt receipts[3];
        (from_pipe ? pipe_pair : tcp_pair)(in);
        struct feeder *feeder = feeder_start(in[from_pipe], 0, LARGE);
        struct sluice_segment segment = stream_segment(end_of(in[1 - from_pipe]), SLUICE_UNTIL_END);
        for (int i = 0; i < 3; i++) {
            (i == 1 ? pipe_pair : tcp_pair)(out[i]);
            collectors[i] = collector_start(out[i][i != 1], false);
            sinks[i] = end_of(out[i][i == 1]);
        }
        struct sluice_transfer_options options = {
            .size = sizeof options, .segments = &segment, .segment_count = 1, .sinks = sinks, .sink_count = 3};
        CHECK_EQ(sluice_transfer_run(&options, receipts, NULL), 0);
        for (int i = 0; i < 3; i++) {
            CHECK_EQ(receipts[i].routes[SLUICE_ROUTE_TEE].bytes, LARGE);
            CHECK_EQ(receipts[i].by_reference, LARGE);
            CHECK_EQ(receipts[i].copy_bytes, 0);
            sluice_end_close(sinks[i]);
            finish(collectors[i], LARGE);
            close(out[i][i != 1]);
        }
        sluice_end_close(segment.end);
        feeder_finish(feeder);
    }
}

TEST("a sink that cannot splice reads its own pipe, and the others go on by reference")
{
    int in[2], out[2], append = pattern_file(NULL, 0);
    char path[64];
    struct sluice_receipt receipts[3];
    unsigned char *memory = malloc(LARGE);
    snprintf(path, sizeof path, "/proc/self/fd/%d", append);
    tcp_pair(in);
    tcp_pair(out);
    struct feeder *feeder = feeder_start(in[0], 0, LARGE);
    struct collector *collector = collector_start(out[1], false);
    struct sluice_segment segment = stream_segment(end_of(in[1]), SLUICE_UNTIL_END);
    struct sluice_end *sinks[] = {end_of(open(path, O_WRONLY | O_APPEND)), end_of(out[0]), NULL};
    CHECK_EQ(sluice_end_open_memory(memory, LARGE, &sinks[2]), 0);
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = &segment,
                                              .segment_count = 1,
                                              .sinks = sinks,
                                              .sink_count = 3,
                                              .sink_offset = SLUICE_APPEND};
    CHECK_EQ(sluice_transfer_run(&options, receipts, NULL), 0);
    CHECK_EQ(receipts[0].routes[SLUICE_ROUTE_COPY].bytes, LARGE);
    CHECK_EQ(receipts[0].copy_bytes, 2ull * LARGE);
    CHECK_EQ(receipts[1].by_reference, LARGE);
    CHECK_EQ(receipts[2].routes[SLUICE_ROUTE_COPY].bytes, LARGE);
    CHECK_EQ(receipts[2].copy_bytes, LARGE);
    for (int i = 0; i < 3; i++)
        sluice_end_close(sinks[i]);
    finish(collector, LARGE);
    unsigned char *written = malloc(LARGE);
    CHECK_EQ(pread(append, written, LARGE, 0), LARGE);
    for (size_t i = 0; i < LARGE; i++)
        CHECK(written[i] == pattern_byte(i) && memory[i] == pattern_byte(i));
    free(written);
    free(memory);
    close(append);
    close(out[1]);
    sluice_end_close(segment.end);
    feeder_finish(feeder);
}

TEST("a TCP sink that is too slow is reset, the first bytes of the stream right, and the others get everything")
{
    for (int policy = SLUICE_FANOUT_DROP; policy <= SLUICE_FANOUT_COPY; policy++)
        for (int turn = 0; turn < 4; turn++) {
            int in[2], slow[2], fast[2];
            const bool route = turn % 2;
            const int of_slow = turn / 2, of_fast = 1 - of_slow; /* whoever comes first in the list */
            struct sluice_error errors[2];
            struct sluice_receipt receipts[2];
            const size_t size = 24u << 20;
            tcp_pair(in);
            tcp_pair(slow);
            unix_pair(fast);
            struct feeder *feeder = feeder_start(in[0], 0, size);
            struct collector *collector = collector_start(fast[1], false);
            struct sluice_segment segment = stream_segment(end_of(in[1]), SLUICE_UNTIL_END);
            struct sluice_end *sinks[2];
            sinks[of_slow] = end_of(slow[0]);
            sinks[of_fast] = end_of(fast[0]);
            struct sluice_transfer_options options = {.size = sizeof options,
                                                      .segments = &segment,
                                                      .segment_count = 1,
                                                      .sinks = sinks,
                                                      .sink_count = 2,
                                                      .route = route ? SLUICE_ROUTE_COPY : SLUICE_ROUTE_AUTO,
                                                      .policy = (enum sluice_fanout_policy)policy,
                                                      .buffer = 4u << 20,
                                                      .patience = 100,
                                                      .sink_errors = errors};
            CHECK_EQ(sluice_transfer_run(&options, receipts, NULL), 0);
            CHECK_EQ(errors[of_slow].code, -ENOBUFS);
            CHECK(strstr(errors[of_slow].reason, "too far behind") != NULL);
            CHECK_EQ(errors[of_slow].delivered, receipts[of_slow].sent);
            CHECK(receipts[of_slow].sent < size);
            CHECK_EQ(errors[of_fast].code, 0);
            CHECK_EQ(receipts[of_fast].sent, size);
            sluice_end_close(sinks[0]);
            sluice_end_close(sinks[1]);
            CHECK_EQ(read_prefix(slow[1]), -1);
            finish(collector, size);
            close(slow[1]);
            close(fast[1]);
            sluice_end_close(segment.end);
            feeder_finish(feeder);
        }
}

TEST("with a buffer a sink that pauses loses nothing, holds nobody up, and gets by reference again afterwards")
{
    for (int route = 0; route < 2; route++) {
        int in[2], slow[2], fast[2];
        const size_t size = 8u << 20;
        struct sluice_transfer *transfer;
        struct sluice_error errors[2];
        tcp_pair(in);
        unix_pair(slow);
        tcp_pair(fast);
        struct collector *collector = collector_start(fast[1], false), *late;
        struct sluice_segment segment = stream_segment(end_of(in[1]), SLUICE_UNTIL_END);
        struct sluice_end *sinks[] = {end_of(slow[0]), end_of(fast[0])};
        struct sluice_transfer_options options = {.size = sizeof options,
                                                  .segments = &segment,
                                                  .segment_count = 1,
                                                  .sinks = sinks,
                                                  .sink_count = 2,
                                                  .route = route ? SLUICE_ROUTE_COPY : SLUICE_ROUTE_AUTO,
                                                  .policy = SLUICE_FANOUT_COPY,
                                                  .sink_errors = errors};
        CHECK_EQ(sluice_transfer_new(&options, &transfer, NULL), 0);
        struct feeder *feeder = feeder_start(in[0], 0, size);
        CHECK(step_until_stuck(transfer) >= 0);
        CHECK_EQ(sluice_transfer_receipt(transfer, 1)->sent, size);
        CHECK(sluice_transfer_receipt(transfer, 0)->sent < size);
        CHECK_EQ(errors[0].code, 0);
        late = collector_start(slow[1], false);
        struct sluice_waits waits;
        int result;
        while ((result = sluice_transfer_step(transfer, &waits)) > 0)
            usleep(100);
        CHECK_EQ(result, 0);
        struct sluice_receipt receipt = *sluice_transfer_receipt(transfer, 0);
        CHECK_EQ(receipt.sent, size);
        if (!route) {
            CHECK(receipt.routes[SLUICE_ROUTE_TEE].bytes > 0);
            CHECK(receipt.routes[SLUICE_ROUTE_COPY].bytes > 0);
            CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY].bytes + receipt.routes[SLUICE_ROUTE_TEE].bytes, size);
        }
        sluice_transfer_free(transfer);
        sluice_end_close(sinks[0]);
        sluice_end_close(sinks[1]);
        finish(collector, size);
        finish(late, size);
        feeder_finish(feeder);
        close(slow[1]);
        close(fast[1]);
        sluice_end_close(segment.end);
    }
}

static uint64_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

/* Into a random choice of sinks, with random windows and pipes. */
static void fan_out_at_random(uint64_t seed)
{
    uint64_t random = seed;
    int in[2], out[SINKS_MAX][2];
    struct collector *collectors[SINKS_MAX];
    struct sluice_end *sinks[SINKS_MAX];
    struct sluice_receipt receipts[SINKS_MAX];
    const unsigned count = 2 + (unsigned)(next_random(&random) % 2);
    const size_t size = 1 + next_random(&random) % (2u << 20);
    const bool from_pipe = next_random(&random) % 2;
    (from_pipe ? pipe_pair : next_random(&random) % 2 ? tcp_pair : unix_pair)(in);
    struct sluice_segment segment =
        stream_segment(end_of(in[1 - from_pipe]), next_random(&random) % 2 ? size : SLUICE_UNTIL_END);
    for (unsigned i = 0; i < count; i++) {
        unsigned kind = (unsigned)(next_random(&random) % 3);
        (kind == 0 ? tcp_pair : kind == 1 ? unix_pair : pipe_pair)(out[i]);
        if (kind == 2 && next_random(&random) % 2)
            fcntl(out[i][1], F_SETPIPE_SZ, 4096);
        sinks[i] = end_of(out[i][kind == 2]);
        collectors[i] = collector_start(out[i][kind != 2], false);
        out[i][0] = out[i][kind != 2];
    }
    struct sluice_transfer_options options = {
        .size = sizeof options,
        .segments = &segment,
        .segment_count = 1,
        .sinks = sinks,
        .sink_count = count,
        .policy = next_random(&random) % 2 ? SLUICE_FANOUT_COPY : SLUICE_FANOUT_BLOCK,
        .window = next_random(&random) % 3 ? 1 + next_random(&random) % 200000 : 0,
        .patience = 60000};
    struct feeder *feeder = feeder_start(in[from_pipe], 0, size);
    int result = sluice_transfer_run(&options, receipts, NULL);
    if (result != 0)
        CHECK_FAIL("seed %llu: result %d", (unsigned long long)seed, result);
    feeder_finish(feeder);
    for (unsigned i = 0; i < count; i++) {
        size_t got;
        sluice_end_close(sinks[i]);
        unsigned char *data = collector_finish(collectors[i], &got);
        if (got != size || receipts[i].bytes != size)
            CHECK_FAIL("seed %llu, sink %u: %zu of %zu bytes", (unsigned long long)seed, i, got, size);
        for (size_t k = 0; k < size; k++)
            if (data[k] != pattern_byte(k))
                CHECK_FAIL("seed %llu, sink %u: byte %zu is wrong", (unsigned long long)seed, i, k);
        free(data);
        close(out[i][0]);
    }
    sluice_end_close(segment.end);
}

TEST("any choice of sinks, windows and pipes gets the exact bytes")
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t seed = (uint64_t)now.tv_sec * 1000003 + (uint64_t)now.tv_nsec;
    printf("# seeds from %llu\n", (unsigned long long)seed);
    for (int i = 0; i < 30 / (STRIDE > 1 ? 3 : 1); i++)
        fan_out_at_random(seed + (uint64_t)i);
}

/* pipe(7): past pipe-user-pages-soft (16,384 pages) a user's new pipes have two pages. Root is exempt. */
TEST("a user who has no pipe memory left gets small pipes, and every sink the exact bytes")
{
    if (geteuid() != 0)
        SKIP("takes root, to become another user with pipes of its own");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        struct rlimit files = {4096, 4096};
        int last[2] = {-1, -1};
        if (setrlimit(RLIMIT_NOFILE, &files) < 0 || setgid(65534) < 0 || setuid(65534) < 0)
            _exit(3);
        for (int i = 0; i < 1500; i++)
            if (pipe(last) < 0)
                _exit(4);
        if (fcntl(last[1], F_GETPIPE_SZ) > 8192)
            _exit(5);
        for (uint64_t seed = 1; seed <= 6; seed++)
            fan_out_at_random(seed);
        _exit(0);
    }
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), 0);
}

CHECK_MAIN()
