/* SPDX-License-Identifier: MIT
 *
 * The ladder of sluice doctor: every line of it against a plan and a receipt that are made here anew, from other ends.
 */
#include "../check.h"
#include "doctor/report.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define SIZE ((256u << 10) + 123) /* as the ladder moves */

static _Alignas(4096) char memory[SIZE], sunk[SIZE]; /* as O_DIRECT wants it */

struct near_far {
    struct sluice_end *end;
    int far;
    pthread_t thread;
    bool source;
};

static void *serve(void *context)
{
    char room[65536];
    struct near_far *ends = context;
    size_t left = SIZE;
    while (left > 0) {
        ssize_t size = ends->source ? write(ends->far, memory, left) : read(ends->far, room, sizeof room);
        if (size <= 0)
            break;
        left -= (size_t)size < left ? (size_t)size : left;
    }
    return NULL;
}

static void inet(int type, int fds[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, type, 0);
    fds[0] = socket(AF_INET, type, 0);
    CHECK_EQ(bind(listener, (struct sockaddr *)&address, size), 0);
    if (type == SOCK_STREAM)
        CHECK_EQ(listen(listener, 1), 0);
    CHECK_EQ(getsockname(listener, (struct sockaddr *)&address, &size), 0);
    CHECK_EQ(connect(fds[0], (struct sockaddr *)&address, size), 0);
    fds[1] = type == SOCK_STREAM ? accept(listener, NULL, NULL) : dup(listener);
    close(listener);
}

static struct near_far make(const struct place *place, bool source)
{
    struct near_far made = {.far = -1, .source = source};
    int fds[2] = {-1, -1};
    switch (place->kind) {
    case SLUICE_END_MEMORY:
        if (!source)
            CHECK_EQ(sluice_end_open_memory(sunk, sizeof sunk, &made.end), 0);
        return made;
    case SLUICE_END_FILE:
        fds[0] = open(place->directory, O_TMPFILE | O_RDWR, 0600);
        CHECK(fds[0] >= 0);
        if (source)
            CHECK_EQ(write(fds[0], memory, SIZE), SIZE);
        break;
    case SLUICE_END_PIPE:
        CHECK_EQ(pipe(fds), 0);
        if (!source) {
            int reader = fds[0];
            fds[0] = fds[1];
            fds[1] = reader;
        }
        break;
    case SLUICE_END_UNIX_STREAM:
        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
        break;
    case SLUICE_END_TCP:
        inet(SOCK_STREAM, fds);
        break;
    case SLUICE_END_DATAGRAM:
        inet(SOCK_DGRAM, fds);
        break;
    default:
        CHECK_FAIL("a place of kind %d", place->kind);
    }
    CHECK_EQ(sluice_end_open(fds[0], SLUICE_END_OWN_FD, &made.end), 0);
    made.far = fds[1];
    return made;
}

static void released(void *context, const void *data, size_t length)
{
    (void)context, (void)data, (void)length;
}

static struct sluice_segment segment_of(const struct place *place, const struct near_far *ends, uint64_t length)
{
    struct sluice_segment segment = {.kind = place->kind == SLUICE_END_MEMORY ? SLUICE_SEGMENT_MEMORY
                                             : place->kind == SLUICE_END_FILE ? SLUICE_SEGMENT_FILE
                                                                              : SLUICE_SEGMENT_STREAM,
                                     .end = ends->end,
                                     .length = length};
    if (segment.kind == SLUICE_SEGMENT_MEMORY) {
        segment.data = memory;
        segment.release = released;
    }
    if (place->given) {
        struct sluice_memory *given;
        CHECK_EQ(sluice_memory_new(length, &given), 0);
        segment.data = memset(sluice_memory_data(given), 1, length);
        segment.release = sluice_memory_release;
        segment.release_context = given;
    }
    return segment;
}

struct on_ring {
    struct sluice_loop *loop;
    int result;
    bool done, running;
    struct sluice_receipt *receipt;
};

static void stop_if_final(struct on_ring *run)
{
    if (run->running && run->done && (run->result < 0 || sluice_receipt_is_final(run->receipt)))
        sluice_loop_stop(run->loop);
}

static void on_done(void *context, struct sluice_transfer *transfer, int result)
{
    struct on_ring *run = context;
    run->done = true;
    run->result = result;
    *run->receipt = *sluice_transfer_receipt(transfer, 0);
    stop_if_final(run);
}

static void on_settled(void *context, unsigned sink, const struct sluice_receipt *difference)
{
    struct on_ring *run = context;
    CHECK_EQ(sink, 0);
    sluice_receipt_add(run->receipt, difference);
    stop_if_final(run);
}

static int run_on_ring(struct sluice_transfer_options *options, struct sluice_receipt *ret_receipt,
                       struct sluice_plan *ret_plan)
{
    const struct sluice_loop_options kind = {.size = sizeof kind, .kind = SLUICE_LOOP_IO_URING};
    struct on_ring run = {.receipt = ret_receipt};
    CHECK_EQ(sluice_loop_new(&kind, &run.loop), 0);
    CHECK_EQ(sluice_loop_plan(run.loop, options, 0, 0, ret_plan), 0);
    options->settled = on_settled;
    options->settled_context = &run;
    fcntl(sluice_end_fd(options->sinks[0]), F_SETFL, O_NONBLOCK);
    const struct sluice_receipt *receipt;
    int result = sluice_loop_transfer(run.loop, options, on_done, &run, NULL, &receipt, NULL);
    if (result != 0) {
        *ret_receipt = *receipt;
        run.done = true;
        run.result = result < 0 ? result : 0;
    }
    run.running = true;
    if (!run.done || (run.result == 0 && !sluice_receipt_is_final(ret_receipt)))
        CHECK_EQ(sluice_loop_run(run.loop), 0);
    sluice_loop_forget(run.loop, options->sinks[0]);
    sluice_loop_free(run.loop);
    return run.result;
}

static int move(const struct ladder_pair *pair, enum sluice_route route, struct sluice_receipt *ret_receipt,
                struct sluice_plan *ret_plan)
{
    struct near_far from = make(&pair->source, true), to[LADDER_SINKS_MAX];
    struct sluice_end *sinks[LADDER_SINKS_MAX];
    struct sluice_segment segment = segment_of(&pair->source, &from, pair->length);
    struct sluice_receipt receipts[LADDER_SINKS_MAX];
    int result;
    for (unsigned i = 0; i < pair->sinks; i++) {
        to[i] = make(&pair->sink, false);
        sinks[i] = to[i].end;
    }
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = &segment,
                                              .segment_count = 1,
                                              .sinks = sinks,
                                              .sink_count = pair->sinks,
                                              .route = route};
    bool drains = to[0].far >= 0 && pair->sink.kind != SLUICE_END_DATAGRAM;
    if (from.far >= 0)
        CHECK_EQ(pthread_create(&from.thread, NULL, serve, &from), 0);
    for (unsigned i = 0; i < pair->sinks && drains; i++)
        CHECK_EQ(pthread_create(&to[i].thread, NULL, serve, &to[i]), 0);
    if (pair->ring) {
        result = run_on_ring(&options, ret_receipt, ret_plan);
    } else {
        CHECK_EQ(sluice_loop_plan(NULL, &options, 0, 0, ret_plan), 0);
        result = sluice_transfer_run(&options, receipts, NULL);
        *ret_receipt = receipts[0];
        for (unsigned i = 1; i < pair->sinks; i++)
            sluice_receipt_add(ret_receipt, &receipts[i]);
    }
    sluice_end_close(from.end);
    if (from.far >= 0)
        pthread_join(from.thread, NULL);
    close(from.far);
    for (unsigned i = 0; i < pair->sinks; i++) {
        sluice_end_close(to[i].end);
        if (drains)
            pthread_join(to[i].thread, NULL);
        close(to[i].far);
    }
    return result;
}

/* What direct leaves to copy. */
static uint64_t part_of_block(enum sluice_route route)
{
    return route == SLUICE_ROUTE_DIRECT ? SIZE % 4096 : 0;
}

static struct ladder climb(int source, int sink)
{
    static const char *const directories[] = {"/dev/shm", "/tmp"};
    struct ladder_options options = {.directories = directories, .directory_count = 2, .source = source, .sink = sink};
    struct ladder ladder;
    struct failure failure = {.text = ""};
    signal(SIGPIPE, SIG_IGN);
    if (ladder_climb(&options, &ladder, &failure) < 0)
        CHECK_FAIL("%.400s", failure.text);
    return ladder;
}

/* How much arrives in whole pages, that can be mapped, is a matter of timing. */
static bool splits_by_chance(enum sluice_route route)
{
    return (int)route == sluice_route_by_name("tcp_receive");
}

TEST("every line of the ladder is what a plan and a receipt made anew say")
{
    struct ladder ladder = climb(-1, -1);
    unsigned lines = 0, moved = 0;
    unsigned plain = 0, given = 0, several = 0, on_ring = 0;
    for (size_t p = 0; p < ladder.count; p++) {
        bool is_given = ladder.pairs[p].source.given, has_more = ladder.pairs[p].sinks > 1, ring = ladder.pairs[p].ring;
        CHECK(is_given + has_more + ring <= 1);
        plain += !is_given && !has_more && !ring;
        given += is_given;
        several += has_more;
        on_ring += ring;
    }
    CHECK_EQ(plain, 2 * 6 + 4 * 6 + 1); /* two directories */
    CHECK_EQ(given, 3);                 /* pipe, TCP, Unix */
    CHECK_EQ(several, 3 * 5);           /* streams into two files, pipes, TCP, Unix */
    CHECK_EQ(on_ring, ladder.no_ring[0] == '\0' ? 2 : 0);
    for (size_t p = 0; p < ladder.count; p++) {
        const struct ladder_pair *pair = &ladder.pairs[p];
        char name[200];
        ladder_pair_name(pair, name, sizeof name);
        CHECK_EQ(pair->count, SLUICE_ROUTE_COUNT - 1);
        unsigned chosen = 0;
        for (unsigned r = 0; r < pair->count; r++) {
            const struct rung *rung = &pair->rungs[r];
            const char *route = sluice_route_name(rung->plan.route);
            struct sluice_plan plan;
            struct sluice_receipt receipt;
            lines++;
            chosen += rung->chosen;
            int result = move(pair, rung->plan.route, &receipt, &plan);
            if (plan.entries[r].route != rung->plan.route || plan.entries[r].verdict != rung->plan.verdict ||
                plan.entries[r].reason != rung->plan.reason || plan.entries[r].from != rung->plan.from)
                CHECK_FAIL("%s, %s: the plan says otherwise", name, route);
            if (rung->tried != (rung->plan.verdict != SLUICE_NEVER))
                CHECK_FAIL("%s, %s: tried %d", name, route, rung->tried);
            if (!rung->tried) {
                if (result != -EOPNOTSUPP || rung->plan.reason == NULL)
                    CHECK_FAIL("%s, %s: never, but %d", name, route, result);
                continue;
            }
            if (result != rung->result)
                CHECK_FAIL("%s, %s: %d, not %d", name, route, result, rung->result);
            if (result < 0)
                continue;
            moved++;
            CHECK_EQ(rung->receipt.bytes, pair->length * pair->sinks);
            if (splits_by_chance(rung->plan.route))
                continue;
            if (strcmp(report_fate(&rung->receipt), report_fate(&receipt)) != 0 ||
                receipt.routes[rung->plan.route].evidence != rung->receipt.routes[rung->plan.route].evidence ||
                receipt.routes[rung->plan.route].bytes + part_of_block(rung->plan.route) < receipt.bytes)
                CHECK_FAIL("%s, %s: %s here, %s there", name, route, report_fate(&receipt),
                           report_fate(&rung->receipt));
        }
        struct sluice_plan plan;
        struct sluice_receipt receipt;
        CHECK_EQ(move(pair, SLUICE_ROUTE_AUTO, &receipt, &plan), 0);
        for (unsigned r = 0; r < pair->count; r++)
            if (pair->rungs[r].chosen && receipt.routes[pair->rungs[r].plan.route].bytes != receipt.bytes)
                CHECK_FAIL("%s: auto does not take %s", name, sluice_route_name(pair->rungs[r].plan.route));
        CHECK_EQ(chosen, 1);
    }
    printf("# %u lines, %u with a transfer\n", lines, moved);
    CHECK(moved > 2 * ladder.count); /* pairs */
    ladder_free(&ladder);
}

TEST("a kind of source or sink can be asked for alone")
{
    struct ladder ladder = climb(SLUICE_END_FILE, SLUICE_END_TCP);
    CHECK_EQ(ladder.count, 2);
    for (size_t i = 0; i < ladder.count; i++) {
        CHECK_EQ(ladder.pairs[i].source.kind, SLUICE_END_FILE);
        CHECK_EQ(ladder.pairs[i].sink.kind, SLUICE_END_TCP);
        CHECK_STR(ladder.pairs[i].sink.egress.name, "lo");
    }
    ladder_free(&ladder);
}

TEST("a receipt's fate in words")
{
    struct sluice_receipt receipt = {.bytes = 0};
    CHECK_STR(report_fate(&receipt), "-");
    receipt = (struct sluice_receipt){.bytes = 10, .by_reference = 10};
    CHECK_STR(report_fate(&receipt), "by reference");
    receipt = (struct sluice_receipt){.bytes = 10, .copied = 10, .copy_bytes = 10};
    CHECK_STR(report_fate(&receipt), "copied once");
    receipt.copy_bytes = 20;
    CHECK_STR(report_fate(&receipt), "copied twice");
    receipt.copy_bytes = 15;
    CHECK_STR(report_fate(&receipt), "once or twice");
    receipt.copy_bytes = 25;
    CHECK_STR(report_fate(&receipt), "copied more");
    receipt = (struct sluice_receipt){.bytes = 10, .copied = 4, .copy_bytes = 4, .by_reference = 6};
    CHECK_STR(report_fate(&receipt), "copied in part");
    receipt = (struct sluice_receipt){.bytes = 10, .unknown = 10};
    CHECK_STR(report_fate(&receipt), "unknown");
}

TEST("a directory where no file can be made is an error that names it")
{
    static const char *const directories[] = {"/proc"};
    struct ladder_options options = {.directories = directories, .directory_count = 1, .source = -1, .sink = -1};
    struct ladder ladder;
    struct failure failure = {.text = ""};
    CHECK(ladder_climb(&options, &ladder, &failure) < 0);
    CHECK(strstr(failure.text, "/proc") != NULL);
}

TEST("findings keep their order, and each its own texts")
{
    struct findings findings = {.check = "a check"};
    finding_why(findings_add(&findings, FINDING_NOTE, "%d", 1), "because of %d", 1);
    finding_remedy(findings_add(&findings, FINDING_PROBLEM, "%d", 2), "do %d", 2);
    CHECK_EQ(findings.count, 2);
    CHECK_STR(findings.items[0].what, "1");
    CHECK_STR(findings.items[0].why, "because of 1");
    CHECK_STR(findings.items[0].remedy, "");
    CHECK_STR(findings.items[1].remedy, "do 2");
    CHECK_STR(findings.items[1].check, "a check");
    findings_free(&findings);
}

CHECK_MAIN()
