/* SPDX-License-Identifier: MIT
 *
 * Every system call of the library fails in every way that its man page names. Each scenario is run once to see which
 * call sites it reaches and how often; then once per site, fault, and place of the fault (the first calls, one in the
 * middle, the last; once or for ever). A site that is reached only after another fault is failed on top of that fault.
 * Either every sink gets exactly the bytes, or the error says how many it got; and nothing is left behind.
 *
 * All of a run happens on one thread: the world (who feeds the source, who reads the sinks) moves on whenever the
 * library waits, so the Nth call of a site is the same call in every run. The thread is a fresh one, so nothing is
 * pooled or cached from the run before.
 */
#include "../../../lib/core/given.h"
#include "../../../lib/core/pool.h"
#include "../check.h"
#include "crossover.h"
#include "faults.h"
#include "loop.h"
#include "memlock.h"
#include "routes.h"
#include "uring_files.h"
#include "world.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/lsan_interface.h>
#endif

#define SINKS_MAX 3
#define SEGMENTS_MAX 6
#define BODY_MAX (300u << 10)
#define SMALL 9000u  /* leaves by one write of its mapping */
#define LARGE 90000u /* leaves by sendfile, with a cork if something follows */
#define CORKED BODY_MAX
#define EVERY_CALL 6 /* of a site's calls, so many are failed each; after that the one in the middle and the last */
#define PAIRS 6000
#define SERVER_TURNS 5000 /* then nothing more will happen: helpers had time to start, too */
#define SERVER_MS 600

enum way { RUN, STEP, LOOP, RING };
enum place { NOWHERE, A_FILE, OWN_FILE, APPENDED, A_BLOCK_DEVICE, A_PIPE, A_TCP, A_UDP, A_UNIX, MEMORY };

struct outcome;

struct scenario {
    const char *name;
    enum way way;
    enum sluice_loop_kind loop; /* that is played on */
    enum place from, to[SINKS_MAX];
    size_t size;
    enum sluice_route route;
    bool bare;      /* no head and tail */
    bool exact;     /* the length is declared */
    bool cold;      /* pages come from disk */
    bool many;      /* more segments than fit inline */
    bool transform; /* every byte inverted */
    bool slow;      /* little room at the sinks */
    bool sparse;    /* holes, to be kept; in a file that has bytes there */
    bool known;     /* the source's end is made without asking */
    bool tls;       /* by the kernel, on every TCP socket */
    bool given;     /* memory of the library's instead of a source */
    unsigned datagram_size;
    bool lent;     /* memory instead of a source */
    bool borrowed; /* the same, gone when the library has been called */
    bool dead;     /* the last sink is, from the start */
    bool received; /* on a loop: the source is received from before, and may have given some bytes already */
    bool dropped;  /* the source's pages are, behind the transfer */
    enum sluice_fanout_policy policy;
    bool refused;                                                           /* the route cannot serve the pair */
    void (*play)(const struct scenario *scenario, struct outcome *outcome); /* not a single transfer */
};

struct outcome {
    int result;
    bool has_error; /* the transfer itself failed, not what was done around it */
    struct sluice_error error;
    unsigned receipts_known;
    struct sluice_receipt receipts[SINKS_MAX];
    struct sluice_error sink_errors[SINKS_MAX];
    bool spoilt; /* a later transfer did not get its own bytes */
    bool began;  /* the library took the memory segments over */
    bool received;
    struct sluice_end **sinks;
    struct sluice_loop *loop;
    unsigned segment_count, released[SEGMENTS_MAX];
    unsigned char *expected;
    size_t expected_size;
    unsigned char *arrived[SINKS_MAX];
    size_t arrived_size[SINKS_MAX];
};

/* ---- The world ---------------------------------------------------------------------------------------------- */

static unsigned char pattern[BODY_MAX];

static struct {
    int feed; /* -1: all was fed, and it is closed */
    size_t fed, feed_size;
    int drain[SINKS_MAX]; /* -1: none */
    int sent[SINKS_MAX];  /* the socket that is drained, held open; -1: none */
    size_t per_move;
    unsigned char *data[SINKS_MAX];
    size_t size[SINKS_MAX];
    void (*extra)(void);
    bool datagrams;
} world;

static void close_without_trace(int fd)
{
    /* No TIME_WAIT: thousands of runs would use up the ports. */
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(fd);
}

/* Returns whether more may come; *moved becomes true if something came. */
static bool drain(int i, size_t most, bool *moved)
{
    if (world.size[i] + most > BODY_MAX + 4096)
        most = BODY_MAX + 4096 - world.size[i];
    ssize_t size = read(world.drain[i], world.data[i] + world.size[i], most);
    if (size > 0) {
        world.size[i] += (size_t)size;
        *moved = true;
    }
    return size > 0 || (size < 0 && (errno == EAGAIN || errno == EINTR));
}

static bool feed(void)
{
    size_t part = world.feed_size - world.fed < 16384 ? world.feed_size - world.fed : 16384;
    ssize_t size = part > 0 ? send(world.feed, pattern + world.fed, part, MSG_NOSIGNAL | MSG_DONTWAIT) : 0;
    if (size < 0 && errno == ENOTSOCK)
        size = write(world.feed, pattern + world.fed, part);
    if (size > 0)
        world.fed += (size_t)size;
    if (world.fed < world.feed_size)
        return size > 0;
    close(world.feed);
    world.feed = -1;
    return true;
}

static bool move_world(void)
{
    bool moved = false;
    if (world.extra != NULL)
        world.extra();
    if (world.feed >= 0)
        moved |= feed();
    for (int i = 0; i < SINKS_MAX; i++)
        if (world.drain[i] >= 0)
            drain(i, world.per_move, &moved);
    return moved;
}

static void world_begin(size_t per_move)
{
    memset(&world, 0, sizeof world);
    world.feed = -1;
    world.per_move = per_move;
    for (int i = 0; i < SINKS_MAX; i++)
        world.drain[i] = world.sent[i] = -1;
}

/* After the library has closed its sides: take what is still on its way. TCP sinks are held open until then: what a
 * socket has accepted arrives, unless it is closed while all TCP memory of the machine is in use (tests beside this one
 * hold 10,000 connections). Then the kernel resets it and drops what it had not sent (tcp_close, TCPAbortOnMemory). */
static void world_end(struct outcome *outcome)
{
    bool moved;
    if (world.feed >= 0)
        close_without_trace(world.feed);
    for (int i = 0; i < SINKS_MAX; i++) {
        if (world.drain[i] >= 0) {
            if (world.sent[i] >= 0)
                shutdown(world.sent[i], SHUT_WR);
            struct pollfd wait = {.fd = world.drain[i], .events = POLLIN};
            int patience = world.datagrams ? 0 : 10000; /* datagrams have no end to wait for */
            while (poll(&wait, 1, patience) > 0 && drain(i, 65536, &moved))
                ;
            close_without_trace(world.drain[i]);
            if (world.sent[i] >= 0)
                close(world.sent[i]);
        }
        outcome->arrived[i] = world.data[i];
        outcome->arrived_size[i] = world.size[i];
    }
}

/* A descriptor for the library to read from, pattern bytes behind it. */
static int make_source(enum place place, size_t size)
{
    int fds[2];
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    switch (place) {
    case A_PIPE:
        pipe_pair(fds);
        world.feed = fds[1];
        break;
    case A_UNIX:
        unix_pair(fds);
        world.feed = fds[1];
        break;
    case A_TCP:
        tcp_pair(fds);
        setsockopt(fds[0], SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
        world.feed = fds[1];
        break;
    default:
        return pattern_file(NULL, size);
    }
    world.feed_size = size;
    return fds[0];
}

static int make_sink(enum place place, int i, bool slow)
{
    int fds[2];
    int small = 8192;
    world.data[i] = malloc(BODY_MAX + 4096);
    switch (place) {
    case A_PIPE:
        pipe_pair(fds);
        if (slow)
            fcntl(fds[1], F_SETPIPE_SZ, 4096);
        world.drain[i] = fds[0];
        return fds[1];
    case A_UNIX:
        unix_pair(fds);
        if (slow)
            setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
        world.drain[i] = fds[1];
        return fds[0];
    case A_TCP:
        tcp_pair(fds);
        world.drain[i] = fds[1];
        world.sent[i] = dup(fds[0]);
        return fds[0];
    case A_UDP:
        udp_pair(fds);
        world.drain[i] = fds[1];
        world.datagrams = true;
        return fds[0];
    default:
        return pattern_file(NULL, 0);
    }
}

/* ---- One transfer ------------------------------------------------------------------------------------------- */

static int invert(void *context, const void *input, size_t input_size, size_t *ret_used, void *output,
                  size_t output_size, size_t *ret_made, bool last)
{
    (void)context;
    size_t size = input_size < output_size ? input_size : output_size;
    for (size_t i = 0; i < size; i++)
        ((unsigned char *)output)[i] = ((const unsigned char *)input)[i] ^ 0xff;
    *ret_used = *ret_made = size;
    return last && size == input_size;
}

static const struct sluice_transform inverted = {.size = sizeof inverted, .name = "invert", .apply = invert};

static void count_release(void *context, const void *data, size_t length)
{
    (void)data, (void)length;
    ++*(unsigned *)context;
}

static void expect(struct outcome *outcome, const void *data, size_t size)
{
    memcpy(outcome->expected + outcome->expected_size, data, size);
    outcome->expected_size += size;
}

static void add_memory(struct outcome *outcome, struct sluice_segment *segments, const char *text)
{
    struct sluice_segment segment = memory_segment(text, strlen(text));
    segment.release = count_release;
    segment.release_context = &outcome->released[outcome->segment_count];
    segments[outcome->segment_count++] = segment;
    expect(outcome, text, strlen(text));
}

/* The body as memory, which may be lent. */
static void add_lent(struct outcome *outcome, struct sluice_segment *segments, size_t size)
{
    struct sluice_segment segment = memory_segment(pattern, size);
    segment.release = count_release;
    segment.release_context = &outcome->released[outcome->segment_count];
    segments[outcome->segment_count++] = segment;
}

static unsigned char borrowed[BODY_MAX];

/* The body as memory that is there until the library returns. */
static void add_borrowed(struct outcome *outcome, struct sluice_segment *segments, size_t size)
{
    memcpy(borrowed, pattern, size);
    struct sluice_segment segment = memory_segment(borrowed, size);
    segment.flags = SLUICE_SEGMENT_BORROWED;
    segments[outcome->segment_count++] = segment;
}

static void take_borrowed_back(void)
{
    memset(borrowed, 0xdd, sizeof borrowed);
}

static bool add_given(struct outcome *outcome, struct sluice_segment *segments, size_t size)
{
    struct sluice_memory *memory;
    int result = sluice_memory_new(size, &memory);
    if (result < 0) {
        if (outcome->result == 0)
            outcome->result = result;
        return false;
    }
    memcpy(sluice_memory_data(memory), pattern, size);
    struct sluice_segment segment = memory_segment(sluice_memory_data(memory), size);
    segment.release = sluice_memory_release;
    segment.release_context = memory;
    segment.memory = memory;
    segments[outcome->segment_count++] = segment;
    return true;
}

/* The rest of a receipt that was provisional. */
static void settle(void *context, unsigned sink, const struct sluice_receipt *difference)
{
    struct outcome *outcome = context;
    sluice_receipt_add(&outcome->receipts[sink], difference);
}

static void failed(struct outcome *outcome, int result)
{
    if (outcome->result == 0)
        outcome->result = result;
}

static void run_it(const struct sluice_transfer_options *options, struct outcome *outcome)
{
    outcome->began = true;
    outcome->receipts_known = (unsigned)options->sink_count;
    memset(outcome->receipts, 0xaa, sizeof outcome->receipts); /* to be filled, whatever happens */
    outcome->result = sluice_transfer_run(options, outcome->receipts, &outcome->error);
    outcome->has_error = true;
}

static void wait_for(const struct sluice_waits *waits)
{
    struct pollfd fds[SLUICE_WAITS_MAX];
    nfds_t count = 0;
    for (unsigned i = 0; i < waits->count; i++) {
        const struct sluice_wait *wait = &waits->wait[i];
        if (wait->kind == SLUICE_WAIT_PAGES) {
            sluice_wait_pages(wait);
            return;
        }
        fds[count++] = (struct pollfd){.fd = wait->fd, .events = wait->kind == SLUICE_WAIT_READABLE ? POLLIN : POLLOUT};
    }
    while (poll(fds, count, move_world() ? 0 : 5) == 0)
        ;
}

static void step_it(const struct sluice_transfer_options *options, struct outcome *outcome)
{
    struct sluice_transfer *transfer;
    struct sluice_waits waits;
    outcome->has_error = true;
    outcome->result = sluice_transfer_new(options, &transfer, &outcome->error);
    if (outcome->result < 0)
        return;
    outcome->began = true;
    while ((outcome->result = sluice_transfer_step(transfer, &waits)) > 0) {
        take_borrowed_back();
        if (outcome->result == SLUICE_STEP_WAIT)
            wait_for(&waits);
    }
    outcome->error = *sluice_transfer_error(transfer);
    outcome->receipts_known = (unsigned)options->sink_count;
    for (unsigned i = 0; i < outcome->receipts_known; i++)
        outcome->receipts[i] = *sluice_transfer_receipt(transfer, i);
    sluice_transfer_free(transfer);
}

struct on_loop {
    struct sluice_loop *loop;
    enum sluice_loop_kind kind;
    struct outcome *outcome;
    unsigned sinks;
    bool done;
};

static void transfer_done(void *context, struct sluice_transfer *transfer, int result)
{
    struct on_loop *on_loop = context;
    struct outcome *outcome = on_loop->outcome;
    outcome->result = result;
    outcome->has_error = true;
    outcome->error = *sluice_transfer_error(transfer);
    outcome->receipts_known = on_loop->sinks;
    for (unsigned i = 0; i < on_loop->sinks; i++)
        outcome->receipts[i] = *sluice_transfer_receipt(transfer, i);
    on_loop->done = true;
    sluice_loop_stop(on_loop->loop);
}

static void transfer_on(struct on_loop *on_loop, const struct sluice_transfer_options *options,
                        struct sluice_transfer **ret_transfer)
{
    struct outcome *outcome = on_loop->outcome;
    outcome->began = true;
    memset(outcome->receipts, 0xaa, sizeof outcome->receipts);
    on_loop->sinks = (unsigned)options->sink_count;
    const struct sluice_receipt *receipt;
    int result =
        sluice_loop_transfer(on_loop->loop, options, transfer_done, on_loop, ret_transfer, &receipt, &outcome->error);
    take_borrowed_back();
    if (result == 0)
        return;
    outcome->receipts[0] = *receipt;
    on_loop->done = true;
    outcome->has_error = true;
    outcome->receipts_known = 1;
    outcome->result = result < 0 ? result : 0;
}

/* Its end is the caller's again, and closed. */
static void sink_ended(void *context, unsigned sink, const struct sluice_error *error,
                       const struct sluice_receipt *receipt)
{
    struct outcome *outcome = context;
    outcome->spoilt |= outcome->sinks[sink] == NULL || error->code != outcome->sink_errors[sink].code ||
                       (error->code != 0 && error->delivered != receipt->sent);
    if (outcome->loop != NULL)
        sluice_loop_forget(outcome->loop, outcome->sinks[sink]);
    sluice_end_close(outcome->sinks[sink]);
    outcome->sinks[sink] = NULL;
}

static void on_early(void *context, const char *data, ssize_t length)
{
    (void)data;
    struct outcome *outcome = context;
    failed(outcome, length < 0 ? (int)length : -EBADMSG); /* it is paused */
}

static struct {
    struct sluice_loop *loop;
    int event;
    unsigned turns;
} early;

static void early_turn(void *context)
{
    (void)context;
    eventfd_write(early.event, 1);
    if (++early.turns == 3)
        sluice_loop_stop(early.loop);
}

static void on_early_event(void *context)
{
    (void)context;
}

/* For a few turns, in which bytes may come that nobody wants yet. */
static int receive_early(struct sluice_loop *loop, const struct sluice_transfer_options *options,
                         struct outcome *outcome)
{
    struct sluice_end *source = options->segments[1].end;
    struct sluice_watch *watch;
    int result = sluice_loop_receive(loop, source, 0, on_early, outcome);
    if (result < 0)
        return result;
    early.loop = loop;
    early.turns = 0;
    early.event = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
    sluice_loop_receive_pause(loop, source);
    sluice_loop_each_turn(loop, early_turn, NULL);
    result = sluice_loop_watch(loop, early.event, on_early_event, NULL, &watch);
    if (result == 0) {
        result = sluice_loop_run(loop);
        sluice_watch_free(watch);
    }
    sluice_loop_each_turn(loop, NULL, NULL);
    close(early.event);
    return result < 0 ? result : outcome->result;
}

static void loop_on(const struct sluice_transfer_options *options, struct outcome *outcome, enum sluice_loop_kind kind)
{
    struct on_loop on_loop = {.outcome = outcome, .kind = kind};
    struct sluice_transfer *transfer = NULL;
    struct sluice_loop_options loop_options = {.size = sizeof loop_options, .helpers = 1, .kind = on_loop.kind};
    int result = sluice_loop_new(&loop_options, &on_loop.loop);
    if (result < 0) {
        failed(outcome, result);
        return;
    }
    outcome->loop = on_loop.loop;
    if (outcome->received)
        result = receive_early(on_loop.loop, options, outcome);
    if (result == 0)
        transfer_on(&on_loop, options, &transfer);
    failed(outcome, result);
    if (result == 0 && !on_loop.done) {
        result = sluice_loop_run(on_loop.loop);
        if (result < 0 && !on_loop.done)
            sluice_loop_transfer_cancel(on_loop.loop, transfer);
    }
    for (size_t i = 0; i < options->segment_count; i++)
        if (options->segments[i].kind != SLUICE_SEGMENT_MEMORY)
            sluice_loop_forget(on_loop.loop, options->segments[i].end);
    for (size_t i = 0; i < options->sink_count; i++)
        if (options->sinks[i] != NULL)
            sluice_loop_forget(on_loop.loop, options->sinks[i]);
    sluice_loop_free(on_loop.loop);
}

static void loop_it(const struct sluice_transfer_options *options, struct outcome *outcome)
{
    loop_on(options, outcome, SLUICE_LOOP_EPOLL);
}

static void ring_it(const struct sluice_transfer_options *options, struct outcome *outcome)
{
    loop_on(options, outcome, SLUICE_LOOP_IO_URING);
}

/* An end that owns the descriptor; NULL on failure, with the descriptor closed. */
static struct sluice_end *open_end(int fd, unsigned flags, struct outcome *outcome)
{
    struct sluice_end *end = NULL;
    int result = sluice_end_open(fd, flags, &end);
    if (result < 0) {
        failed(outcome, result);
        close_without_trace(fd);
        return NULL;
    }
    return end;
}

static struct sluice_end *known_end(int fd, uint64_t size, struct outcome *outcome)
{
    struct sluice_end *end = NULL;
    int result = sluice_end_open_file(fd, size, SLUICE_END_OWN_FD, &end);
    if (result < 0) {
        failed(outcome, result);
        close_without_trace(fd);
        return NULL;
    }
    return end;
}

/* Whatever happened, the next transfer of this thread, with its pools and what it remembers, gets its own bytes. */
static void transfer_once_more(struct outcome *outcome)
{
    enum { ONCE_MORE = 5000 };
    unsigned char arrived[ONCE_MORE + 1];
    int from[2], to[2];
    fault_block_device = -1;
    fault_quiet(true);
    unix_pair(from);
    unix_pair(to);
    outcome->spoilt |= write(from[1], pattern, ONCE_MORE) != ONCE_MORE;
    close(from[1]);
    struct sluice_end *source = end_of(from[0]), *sink = end_of(to[0]);
    struct sluice_segment segment = stream_segment(source, SLUICE_UNTIL_END);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_SPLICE);
    outcome->spoilt |= sluice_transfer_run(&options, NULL, NULL) != 0;
    sluice_end_close(source);
    sluice_end_close(sink);
    outcome->spoilt |= read(to[1], arrived, sizeof arrived) != ONCE_MORE || memcmp(arrived, pattern, ONCE_MORE) != 0;
    close(to[1]);
    fault_quiet(false);
}

/* The first and the last lie beyond what the sink has, in part. */
static const struct {
    off_t from;
    size_t size;
} holes[] = {{8192, 4096}, {40960, 20480}, {81920, LARGE - 81920}};

static void play_transfer(const struct scenario *scenario, struct outcome *outcome)
{
    struct sluice_segment segments[SEGMENTS_MAX];
    struct sluice_end *sinks[SINKS_MAX] = {NULL};
    int keep[SINKS_MAX] = {-1, -1, -1};
    unsigned sink_count = 0;
    bool file = scenario->from == A_FILE || scenario->from == OWN_FILE || scenario->from == A_BLOCK_DEVICE;

    world_begin(scenario->slow ? 3001 : 65536);
    fault_tls = scenario->tls ? FAULT_TLS_WITHOUT_COUNTERS : 0;
    if (scenario->tls)
        sluice_tls_probe(NULL);
    fault_tls = scenario->tls ? FAULT_TLS : 0;
    bool from_memory = scenario->lent || scenario->given || scenario->borrowed;
    int source_fd = make_source(from_memory ? A_FILE : scenario->from, scenario->size);
    if (scenario->from == A_BLOCK_DEVICE)
        fault_block_device = source_fd;
    fault_cold_pages = scenario->cold ? 3 : 0;
    unsigned flags = scenario->from == A_FILE ? 0 : SLUICE_END_OWN_FD;
    struct sluice_end *source =
        scenario->known ? known_end(source_fd, scenario->size, outcome) : open_end(source_fd, flags, outcome);

    if (!scenario->bare)
        add_memory(outcome, segments, "HEAD");
    uint64_t length = scenario->exact ? scenario->size : SLUICE_UNTIL_END;
    if (scenario->lent)
        add_lent(outcome, segments, scenario->size);
    else if (scenario->borrowed)
        add_borrowed(outcome, segments, scenario->size);
    else if (scenario->given && !add_given(outcome, segments, scenario->size))
        segments[outcome->segment_count++] = memory_segment(pattern, scenario->size);
    else if (!scenario->given)
        segments[outcome->segment_count++] = file ? file_segment(source, 0, length) : stream_segment(source, length);
    expect(outcome, pattern, scenario->size);
    for (size_t i = 0; scenario->sparse && i < sizeof holes / sizeof *holes; i++) {
        fallocate(source_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, holes[i].from, (off_t)holes[i].size);
        memset(outcome->expected + holes[i].from, 0, holes[i].size);
    }
    if (!scenario->bare)
        add_memory(outcome, segments, "TAIL!");
    for (int i = 0; scenario->many && i < 3; i++)
        add_memory(outcome, segments, "and more");
    if (scenario->transform)
        for (size_t i = 0; i < outcome->expected_size; i++)
            outcome->expected[i] ^= 0xff;

    for (; sink_count < SINKS_MAX && scenario->to[sink_count] != NOWHERE; sink_count++) {
        unsigned i = sink_count;
        int fd = make_sink(scenario->to[i], (int)i, scenario->slow);
        if (scenario->to[i] == MEMORY) {
            close(fd);
            int result = sluice_end_open_memory(world.data[i], BODY_MAX + 4096, &sinks[i]);
            if (result < 0)
                failed(outcome, result);
            continue;
        }
        if (world.drain[i] < 0)
            keep[i] = dup(fd);
        if (scenario->sparse && pwrite(fd, pattern + 1000, LARGE / 2, 0) != LARGE / 2)
            abort();
        sinks[i] = open_end(fd, SLUICE_END_OWN_FD, outcome);
        if (sinks[i] != NULL && scenario->route == SLUICE_ROUTE_DIRECT) /* room ahead is a help, not a need */
            sluice_end_allocate(sinks[i], 0, scenario->size);
    }
    struct sluice_transfer_options options = {
        .size = sizeof options,
        .segments = segments,
        .segment_count = outcome->segment_count,
        .sinks = sinks,
        .sink_count = sink_count,
        .sink_offset = scenario->to[0] == APPENDED ? SLUICE_APPEND : 0,
        .route = scenario->route,
        .flags = (scenario->cold ? SLUICE_TRANSFER_NEVER_BLOCK : 0u) | (scenario->sparse ? SLUICE_TRANSFER_SPARSE : 0u),
        .transform = scenario->transform ? &inverted : NULL,
        .turn = 30000,
        .policy = scenario->policy,
        .window = scenario->policy == SLUICE_FANOUT_BLOCK ? 0 : 16384,
        .buffer = LARGE,
        .patience = 1,
        .sink_errors = outcome->sink_errors,
        .datagram_size = scenario->datagram_size,
        .settled = settle,
        .settled_context = outcome,
        .sink_ended = scenario->policy == SLUICE_FANOUT_FIRST ? sink_ended : NULL,
        .sink_context = outcome,
    };
    outcome->received = scenario->received;
    outcome->sinks = sinks;
    if (scenario->dead) {
        close_without_trace(world.drain[sink_count - 1]);
        close(world.sent[sink_count - 1]);
        world.drain[sink_count - 1] = -1;
    }
    if (outcome->result == 0) {
        static void (*const ways[])(const struct sluice_transfer_options *, struct outcome *) = {run_it, step_it,
                                                                                                 loop_it, ring_it};
        ways[scenario->way](&options, outcome);
    }
    if (source != NULL && scenario->from == A_FILE)
        close(source_fd);
    sluice_end_close(source);
    for (unsigned i = 0; i < sink_count; i++) {
        sluice_end_close(sinks[i]);
        if (keep[i] >= 0) {
            world.size[i] = (size_t)lseek(keep[i], 0, SEEK_END);
            if (scenario->sparse && world.size[i] > outcome->receipts[i].sent)
                world.size[i] = outcome->receipts[i].sent; /* then come the bytes it had */
            if (pread(keep[i], world.data[i], world.size[i], 0) != (ssize_t)world.size[i])
                world.size[i] = 0;
            close(keep[i]);
        } else if (scenario->to[i] == MEMORY) {
            world.size[i] = outcome->receipts[i].sent;
        }
    }
    for (unsigned i = 0; i < outcome->segment_count && !outcome->began; i++)
        if (segments[i].release == sluice_memory_release)
            sluice_memory_release(segments[i].release_context, NULL, 0); /* still ours */
    int left = 0;
    for (int i = 0; i < 1000 && (left = sluice_end_collect(NULL)) != 0; i++)
        if (!move_world())
            usleep(1000);
    outcome->spoilt |= left != 0; /* memory never came back */
    fault_tls = 0;
    world_end(outcome);
    transfer_once_more(outcome);
}

/* ---- A small server: every service of the loop at once --------------------------------------------------------- */

static const char request[] = "a file, please";

static struct server {
    struct on_loop on;
    const struct scenario *scenario;
    struct sluice_listener *listener;
    struct sluice_watch *watch;
    struct sluice_timer timer;
    struct sluice_end *connection, *file;
    struct sluice_transfer *transfer;
    size_t received;
    bool watched, worked, work_done;
    int event;
    unsigned turns, drops;
    uint64_t began;
} server;

static void server_stop(int result)
{
    failed(server.on.outcome, result);
    sluice_loop_stop(server.on.loop);
}

static void on_event(void *context)
{
    (void)context;
    server.watched = true;
}

static void on_timer(void *context)
{
    (void)context;
}

static void on_helper(void *context)
{
    (void)context;
    server.worked = true;
}

static void after_helper(void *context)
{
    (void)context;
    server.work_done = server.worked;
}

static void each_turn(void *context)
{
    (void)context;
    bool dropped = !server.scenario->dropped || server.on.loop->behind == NULL || fault_drops > server.drops;
    if (server.on.done && server.watched && server.work_done && dropped)
        sluice_loop_stop(server.on.loop);
    else if (++server.turns > SERVER_TURNS || sluice_loop_now(server.on.loop) - server.began > SERVER_MS)
        server_stop(-ETIMEDOUT);
}

static void on_data(void *context, const char *data, ssize_t length)
{
    (void)context, (void)data;
    if (length <= 0) {
        server_stop(length < 0 ? (int)length : -EPIPE);
        return;
    }
    server.received += (size_t)length;
    if (server.received < sizeof request)
        return;
    sluice_loop_receive_pause(server.on.loop, server.connection);
    struct sluice_segment segment = file_segment(server.file, 0, server.scenario->size);
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = &segment,
                                              .segment_count = 1,
                                              .sinks = &server.connection,
                                              .sink_count = 1,
                                              .flags = SLUICE_TRANSFER_NEVER_BLOCK};
    transfer_on(&server.on, &options, &server.transfer);
    if (server.on.done && server.on.outcome->result < 0)
        sluice_loop_stop(server.on.loop);
}

static void on_connection(void *context, int fd, const struct sockaddr *address, unsigned address_length)
{
    (void)context, (void)address, (void)address_length;
    if (fd < 0) {
        server_stop(fd);
        return;
    }
    server.connection = open_end(fd, SLUICE_END_OWN_FD, server.on.outcome);
    int result = server.connection == NULL ? server.on.outcome->result
                                           : sluice_loop_receive(server.on.loop, server.connection, 0, on_data, NULL);
    if (result < 0)
        server_stop(result);
}

static int begin_service(int listener)
{
    struct sluice_loop *loop = server.on.loop;
    int result = sluice_loop_watch(loop, server.event, on_event, NULL, &server.watch);
    if (result == 0)
        result = sluice_loop_offload(loop, on_helper, after_helper, NULL);
    if (result == 0)
        result = sluice_loop_listen(loop, listener, on_connection, NULL, &server.listener);
    if (result == 0) {
        sluice_listener_pause(server.listener);
        sluice_listener_resume(server.listener);
    }
    return result;
}

static void play_server(const struct scenario *scenario, struct outcome *outcome)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    server = (struct server){.on.outcome = outcome, .scenario = scenario, .event = eventfd(1, EFD_NONBLOCK)};
    world_begin(65536);
    fault_cold_pages = 2;
    world.data[0] = malloc(BODY_MAX + 4096);
    expect(outcome, pattern, scenario->size);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    bind(listener, (struct sockaddr *)&address, size);
    listen(listener, 4);
    getsockname(listener, (struct sockaddr *)&address, &size);
    int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(client, (struct sockaddr *)&address, size) < 0 ||
        send(client, request, sizeof request, 0) != (ssize_t)sizeof request)
        failed(outcome, -errno);
    fcntl(client, F_SETFL, O_NONBLOCK);
    world.drain[0] = client;

    unsigned flags = SLUICE_END_OWN_FD | (scenario->dropped ? SLUICE_END_DROP_BEHIND : 0u);
    server.file = open_end(pattern_file(NULL, scenario->size), flags, outcome);
    server.drops = fault_drops;
    struct sluice_loop_options on = {.size = sizeof on, .kind = scenario->loop};
    int result = outcome->result == 0 ? sluice_loop_new(&on, &server.on.loop) : outcome->result;
    failed(outcome, result);
    if (result == 0) {
        struct sluice_loop *loop = server.on.loop;
        server.began = sluice_loop_now(loop);
        sluice_timer_start(loop, &server.timer, 60000, on_timer, NULL);
        sluice_loop_each_turn(loop, each_turn, NULL);
        result = begin_service(listener);
        if (result == 0)
            result = sluice_loop_run(loop);
        failed(outcome, result);
        if (server.transfer != NULL && !server.on.done)
            sluice_loop_transfer_cancel(loop, server.transfer);
        sluice_timer_stop(loop, &server.timer);
        sluice_watch_free(server.watch);
        sluice_listener_free(server.listener);
        if (server.connection != NULL)
            sluice_loop_forget(loop, server.connection);
        sluice_loop_free(loop);
    }
    sluice_end_close(server.connection);
    sluice_end_close(server.file);
    close(server.event);
    close(listener);
    world_end(outcome);
}

/* ---- Receivers ---------------------------------------------------------------------------------------------- */

static struct {
    struct sluice_loop *loop;
    bool ended;
    ssize_t how;
} receiver;

static void take(void *context, const char *data, ssize_t length)
{
    (void)context;
    if (length > 0) {
        memcpy(world.data[0] + world.size[0], data, (size_t)length);
        world.size[0] += (size_t)length;
        return;
    }
    receiver.ended = true;
    receiver.how = length;
    sluice_loop_stop(receiver.loop);
}

static void reset_peer(void)
{
    if (world.feed >= 0)
        close_without_trace(world.feed);
    world.feed = -1;
    world.extra = NULL;
}

static void receive(const struct scenario *scenario, struct outcome *outcome, bool paused)
{
    world_begin(65536);
    world.extra = paused ? reset_peer : NULL;
    memset(&receiver, 0, sizeof receiver);
    world.data[0] = malloc(BODY_MAX + 4096);
    struct sluice_end *end = open_end(make_source(scenario->from, scenario->size), SLUICE_END_OWN_FD, outcome);
    struct sluice_loop_options on = {.size = sizeof on, .kind = scenario->loop};
    int result = end != NULL ? sluice_loop_new(&on, &receiver.loop) : outcome->result;
    failed(outcome, result);
    if (result == 0) {
        result = sluice_loop_receive(receiver.loop, end, 0, take, NULL);
        if (result == 0 && paused)
            sluice_loop_receive_pause(receiver.loop, end);
        if (result == 0)
            result = sluice_loop_run(receiver.loop);
        failed(outcome, result);
        sluice_loop_forget(receiver.loop, end);
        sluice_loop_free(receiver.loop);
    }
    sluice_end_close(end);
}

/* Bytes that come while it is paused are kept; then the connection breaks. */
static int breaking;
static unsigned moves;

static void send_then_reset(void)
{
    ++moves;
    if (moves == 1)
        send(breaking, pattern, 100, MSG_NOSIGNAL);
    if (moves == 10)
        close_without_trace(breaking);
}

static void play_late_reset(const struct scenario *scenario, struct outcome *outcome)
{
    struct sluice_loop_options on = {.size = sizeof on, .kind = scenario->loop};
    world_begin(65536);
    memset(&receiver, 0, sizeof receiver);
    world.data[0] = malloc(BODY_MAX + 4096);
    struct sluice_end *end = open_end(make_source(A_TCP, 0), SLUICE_END_OWN_FD, outcome);
    breaking = world.feed;
    world.feed = -1;
    world.extra = send_then_reset;
    moves = 0;
    int result = end != NULL ? sluice_loop_new(&on, &receiver.loop) : outcome->result;
    failed(outcome, result);
    if (result == 0) {
        result = sluice_loop_receive(receiver.loop, end, 0, take, NULL);
        sluice_loop_receive_pause(receiver.loop, end);
        if (result == 0)
            result = sluice_loop_run(receiver.loop);
        failed(outcome, result);
        sluice_loop_forget(receiver.loop, end);
        sluice_loop_free(receiver.loop);
    }
    sluice_end_close(end);
    world.extra = NULL;
    if (moves < 10)
        close_without_trace(breaking);
    world_end(outcome);
}

/* ---- A listener that is paused, and freed, while connections wait ----------------------------------------------- */

#define CALLERS 3
#define DOOR_TURNS 12

static struct {
    struct sluice_loop *loop;
    struct sluice_listener *listener;
    struct sluice_watch *watch;
    int event, socket;
    struct sockaddr_in address;
    int callers[2 * CALLERS];
    unsigned called, turns, came;
    struct outcome *outcome;
} door;

static void call(void)
{
    for (int i = 0; i < CALLERS; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(fd, (struct sockaddr *)&door.address, sizeof door.address) < 0)
            failed(door.outcome, -errno);
        door.callers[door.called++] = fd;
    }
}

static void on_caller(void *context, int fd, const struct sockaddr *address, unsigned address_length)
{
    (void)context, (void)address, (void)address_length;
    if (fd < 0) {
        failed(door.outcome, fd);
        return;
    }
    close(fd);
    if (++door.came == 1) {
        sluice_listener_pause(door.listener);
    } else {
        sluice_listener_free(door.listener); /* others wait, accepted by the kernel already */
        door.listener = NULL;
    }
}

static void door_turn(void *context)
{
    (void)context;
    if (++door.turns == DOOR_TURNS)
        sluice_loop_stop(door.loop);
    eventfd_write(door.event, 1);
    if (door.turns == 4 && door.listener != NULL)
        sluice_listener_resume(door.listener);
    if (door.turns == 7)
        call();
    if (door.turns == 8 && door.listener == NULL)
        failed(door.outcome, sluice_loop_listen(door.loop, door.socket, on_caller, NULL, &door.listener));
}

static void play_door(const struct scenario *scenario, struct outcome *outcome)
{
    struct sluice_loop_options on = {.size = sizeof on, .kind = scenario->loop};
    socklen_t size = sizeof door.address;
    world_begin(65536);
    memset(&door, 0, sizeof door);
    door.address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    door.outcome = outcome;
    door.event = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
    door.socket = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    bind(door.socket, (struct sockaddr *)&door.address, size);
    listen(door.socket, 2 * CALLERS);
    getsockname(door.socket, (struct sockaddr *)&door.address, &size);
    call();
    int result = sluice_loop_probe(&on, NULL);
    if (result == 0)
        result = sluice_loop_new(&on, &door.loop);
    failed(outcome, result);
    if (result == 0) {
        sluice_loop_each_turn(door.loop, door_turn, NULL);
        result = sluice_loop_watch(door.loop, door.event, on_event, NULL, &door.watch);
        if (result == 0)
            result = sluice_loop_listen(door.loop, door.socket, on_caller, NULL, &door.listener);
        if (result == 0) {
            sluice_listener_ahead(door.listener, true); /* the second one accepts nobody ahead */
            result = sluice_loop_run(door.loop);
        }
        failed(outcome, result);
        sluice_listener_free(door.listener);
        sluice_watch_free(door.watch);
        sluice_loop_free(door.loop);
    }
    while (door.called > 0)
        close_without_trace(door.callers[--door.called]);
    close(door.event);
    close(door.socket);
    world_end(outcome);
}

/* ---- Connecting --------------------------------------------------------------------------------------------- */

static struct {
    struct sluice_loop *loop;
    int calls, result;
} connecting;

static void on_connected(void *context, int result)
{
    (void)context;
    connecting.calls++;
    connecting.result = result;
    sluice_loop_stop(connecting.loop);
}

/* A peer that answers late; one that refuses, if the scenario says that it is dead; and one that is given up. */
static void play_connect(const struct scenario *scenario, struct outcome *outcome)
{
    struct sluice_loop_options on = {.size = sizeof on, .kind = scenario->loop};
    struct sluice_connect *connect = NULL, *given_up = NULL;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    world_begin(65536);
    memset(&connecting, 0, sizeof connecting);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bind(listener, (struct sockaddr *)&address, size);
    if (!scenario->dead)
        listen(listener, 4);
    getsockname(listener, (struct sockaddr *)&address, &size);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int other = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int result = sluice_loop_new(&on, &connecting.loop);
    if (result == 0) {
        int begun = sluice_loop_connect(connecting.loop, other, (struct sockaddr *)&address, size, on_connected, NULL,
                                        &given_up);
        if (begun == 0)
            sluice_connect_cancel(given_up);
        result =
            sluice_loop_connect(connecting.loop, fd, (struct sockaddr *)&address, size, on_connected, NULL, &connect);
        if (result == 0)
            result = sluice_loop_run(connecting.loop);
        else if (result > 0)
            connecting.calls++;
        outcome->spoilt = result >= 0 && connecting.calls != 1;
        if (result < 0 && connecting.calls == 0)
            sluice_connect_cancel(connect);
        sluice_loop_free(connecting.loop);
    }
    failed(outcome, result < 0 ? result : connecting.result);
    if (scenario->dead && outcome->result == -ECONNREFUSED)
        outcome->result = 0;
    close_without_trace(other);
    close_without_trace(fd);
    close(listener);
    world_end(outcome);
}

static void play_receiver(const struct scenario *scenario, struct outcome *outcome)
{
    expect(outcome, pattern, scenario->size);
    receive(scenario, outcome, false);
    if (receiver.ended)
        failed(outcome, (int)receiver.how);
    world_end(outcome);
}

static void play_reset(const struct scenario *scenario, struct outcome *outcome)
{
    receive(scenario, outcome, true);
    if (outcome->result == 0 && (!receiver.ended || receiver.how >= 0))
        failed(outcome, -ETIMEDOUT);
    world_end(outcome);
}

/* ---- Gathering ---------------------------------------------------------------------------------------------- */

/* Messages, copied and lent by turns, until all were taken and have left, or one failed. */
static void gather_into(struct sluice_end *sink, struct outcome *outcome)
{
    struct sluice_gather_options options = {
        .size = sizeof options, .sink = sink, .bytes = 6000, .messages = 20, .copy_below = 300};
    struct sluice_gather *gather;
    unsigned lent = 0, released = 0;
    int result = sluice_gather_new(&options, &gather);
    if (result < 0) {
        failed(outcome, result);
        return;
    }
    expect(outcome, pattern, LARGE);
    for (size_t at = 0, length; at < LARGE && result == 0; at += length) {
        length = 37 * (at % 23 + 1);
        length = length < LARGE - at ? length : LARGE - at;
        bool lends = at % 3 == 0;
        while ((result = sluice_gather_add(gather, pattern + at, length, lends ? count_release : NULL, &released)) ==
               -EAGAIN) {
            result = sluice_gather_flush(gather, NULL);
            if (result < 0)
                break;
        }
        lent += result == 0 && lends;
    }
    if (result == 0)
        result = sluice_gather_flush(gather, NULL);
    failed(outcome, result);
    outcome->spoilt = result == 0 && (sluice_gather_pending(gather) != 0 || released != lent);
    sluice_gather_receipt(gather, &outcome->receipts[0]);
    outcome->receipts_known = 1;
    sluice_gather_free(gather);
    outcome->spoilt |= released < lent || released > lent + 1; /* one that was taken, and then failed with its batch */
}

static void play_gather(const struct scenario *scenario, struct outcome *outcome)
{
    world_begin(3001);
    struct sluice_end *sink = open_end(make_sink(scenario->to[0], 0, true), SLUICE_END_OWN_FD, outcome);
    if (sink != NULL)
        gather_into(sink, outcome);
    sluice_end_close(sink);
    world_end(outcome);
}

static void play_datagrams(const struct scenario *scenario, struct outcome *outcome)
{
    int fds[2];
    (void)scenario;
    world_begin(3001);
    world.data[0] = malloc(BODY_MAX + 4096);
    if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) < 0)
        abort();
    world.drain[0] = fds[1];
    struct sluice_end *sink = open_end(fds[0], SLUICE_END_OWN_FD, outcome);
    if (sink != NULL)
        gather_into(sink, outcome);
    sluice_end_close(sink);
    bool moved = true;
    while (moved) { /* a datagram socket has no end to wait for */
        moved = false;
        drain(0, 65536, &moved);
    }
    close(fds[1]);
    world.drain[0] = -1;
    world_end(outcome);
}

/* ---- What was learned is kept ------------------------------------------------------------------------------- */

static int remove_entry(const char *path, const struct stat *status, int type, struct FTW *where)
{
    (void)status, (void)type, (void)where;
    return remove(path);
}

/* Leaves behind what a process that was killed while it wrote leaves behind. */
static void leave_stale_file(const char *directory)
{
    char path[600];
    DIR *list = opendir(directory);
    for (struct dirent *entry; list != NULL && (entry = readdir(list)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s.%ld", directory, entry->d_name, (long)getpid());
        int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (fd >= 0)
            close(fd);
        break;
    }
    if (list != NULL)
        closedir(list);
}

static void play_crossovers(const struct scenario *scenario, struct outcome *outcome)
{
    char home[] = "/tmp/sluice-crossovers-XXXXXX", directory[64];
    struct crossover_sample sample;
    struct pair pair = {.segment = SLUICE_SEGMENT_STREAM,
                        .source = SLUICE_END_UNIX_STREAM,
                        .sink = SLUICE_END_UNIX_STREAM,
                        .length = 16384};
    bool copies = false;
    (void)scenario;
    world_begin(65536);
    expect(outcome, pattern, 0);
    if (mkdtemp(home) == NULL)
        abort();
    snprintf(directory, sizeof directory, "%s/cache", home);
    setenv("XDG_CACHE_HOME", directory, 1);
    snprintf(directory, sizeof directory, "%s/cache/sluice", home);
    int result = sluice_crossovers_share();
    if (result == 0 && crossover_weigh(&route_splice, &pair, &copies, &sample))
        crossover_finish(&sample);
    if (result == 0)
        result = sluice_crossovers_save(NULL);
    leave_stale_file(directory);
    if (result > 0)
        result = sluice_crossovers_save(NULL);
    if (result > 0)
        result = sluice_crossovers_load(NULL, NULL);
    /* Without the CPU's name another file is looked for. */
    failed(outcome, result == -ENOENT ? 0 : result);
    crossover_forget();
    nftw(home, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    world_end(outcome);
}

/* Received pages. On loopback none can be mapped unless the sender sees to it; that the kernel maps nothing, or fails,
 * is what this is about. */
static void play_pages(const struct scenario *scenario, struct outcome *outcome)
{
    struct sluice_receiver *pages = NULL;
    expect(outcome, pattern, scenario->size);
    world_begin(65536);
    world.data[0] = malloc(BODY_MAX + 4096);
    struct sluice_end *end = open_end(make_source(A_TCP, scenario->size), SLUICE_END_OWN_FD, outcome);
    int result = end != NULL ? sluice_receiver_new(end, NULL, &pages) : outcome->result;
    while (result >= 0 && end != NULL) {
        struct sluice_piece piece;
        result = sluice_receiver_next(pages, &piece);
        if (result == 1) {
            memcpy(world.data[0] + world.size[0], piece.data, piece.length);
            world.size[0] += piece.length;
            piece.mapped |= world.size[0] == piece.length; /* as if: releasing what is mapped is a call */
            sluice_receiver_release(pages, &piece);
        } else if (result == -EAGAIN) {
            struct pollfd readable = {.fd = sluice_end_fd(end), .events = POLLIN};
            while (poll(&readable, 1, move_world() ? 0 : 5) == 0)
                ;
            result = 1;
        } else if (result == 0) {
            break;
        }
    }
    failed(outcome, result);
    sluice_receiver_free(pages);
    sluice_end_close(end);
    world_end(outcome);
}

static const struct scenario scenarios[] = {
    {.name = "run: small file to TCP", .from = A_FILE, .to = {A_TCP}, .size = SMALL, .exact = true},
    {.name = "run: large file to TCP, six segments", .from = OWN_FILE, .to = {A_TCP}, .size = LARGE, .many = true},
    {.name = "run: larger file alone to TCP", .from = OWN_FILE, .to = {A_TCP}, .size = CORKED, .bare = true},
    {.name = "run: file to TCP by mmap", .from = A_FILE, .to = {A_TCP}, .size = LARGE, .route = SLUICE_ROUTE_MMAP},
    {.name = "run: file to TCP by splice", .from = A_FILE, .to = {A_TCP}, .size = LARGE, .route = SLUICE_ROUTE_SPLICE},
    {.name = "run: file to TCP by copy", .from = A_FILE, .to = {A_TCP}, .size = LARGE, .route = SLUICE_ROUTE_COPY},
    {.name = "run: block device to Unix", .from = A_BLOCK_DEVICE, .to = {A_UNIX}, .size = LARGE, .slow = true},
    {.name = "run: file to pipe", .from = A_FILE, .to = {A_PIPE}, .size = LARGE, .slow = true},
    {.name = "run: file to file", .from = A_FILE, .to = {A_FILE}, .size = LARGE},
    {.name = "run: known file to file", .from = OWN_FILE, .to = {A_FILE}, .size = LARGE, .bare = true, .known = true},
    {.name = "run: file to file by reflink",
     .from = A_FILE,
     .to = {A_FILE},
     .size = LARGE,
     .bare = true,
     .route = SLUICE_ROUTE_REFLINK,
     .refused = true},
    {.name = "run: file to the position of a file by copy_file_range",
     .from = A_FILE,
     .to = {APPENDED},
     .size = LARGE,
     .route = SLUICE_ROUTE_COPY_FILE_RANGE},
    {.name = "run: sparse file over a file by copy",
     .from = A_FILE,
     .to = {A_FILE},
     .size = LARGE,
     .bare = true,
     .sparse = true,
     .route = SLUICE_ROUTE_COPY},
    {.name = "step: sparse file over a file",
     .way = STEP,
     .from = OWN_FILE,
     .to = {A_FILE},
     .size = LARGE,
     .bare = true,
     .sparse = true},
    {.name = "run: file to file by direct",
     .from = A_FILE,
     .to = {A_FILE},
     .size = LARGE,
     .bare = true,
     .route = SLUICE_ROUTE_DIRECT},
    {.name = "run: file to the position of a file by direct",
     .from = A_FILE,
     .to = {APPENDED},
     .size = LARGE,
     .bare = true,
     .route = SLUICE_ROUTE_DIRECT},
    {.name = "run: file to memory by direct",
     .from = A_FILE,
     .to = {MEMORY},
     .size = LARGE,
     .bare = true,
     .route = SLUICE_ROUTE_DIRECT},
    {.name = "step: file to Unix by direct",
     .way = STEP,
     .from = A_FILE,
     .to = {A_UNIX},
     .size = LARGE,
     .route = SLUICE_ROUTE_DIRECT},
    {.name = "run: empty file to TCP by sendfile", .from = A_FILE, .to = {A_TCP}, .route = SLUICE_ROUTE_SENDFILE},
    {.name = "run: file to the end of a file by copy",
     .from = A_FILE,
     .to = {APPENDED},
     .size = LARGE,
     .route = SLUICE_ROUTE_COPY},
    {.name = "run: file to memory", .from = A_FILE, .to = {MEMORY}, .size = LARGE},
    {.name = "run: TCP to TCP", .from = A_TCP, .to = {A_TCP}, .size = LARGE},
    {.name = "run: TCP to TCP by copy", .from = A_TCP, .to = {A_TCP}, .size = LARGE, .route = SLUICE_ROUTE_COPY},
    {.name = "run: TCP to file", .from = A_TCP, .to = {A_FILE}, .size = LARGE, .exact = true},
    {.name = "run: TCP to memory", .from = A_TCP, .to = {MEMORY}, .size = LARGE},
    {.name = "run: pipe to TCP", .from = A_PIPE, .to = {A_TCP}, .size = LARGE},
    {.name = "run: pipe to pipe by copy",
     .from = A_PIPE,
     .to = {A_PIPE},
     .size = LARGE,
     .slow = true,
     .route = SLUICE_ROUTE_COPY},
    {.name = "run: file to three", .from = A_FILE, .to = {A_TCP, A_UNIX, A_PIPE}, .size = LARGE, .slow = true},
    {.name = "run: stream to three", .from = A_UNIX, .to = {A_TCP, A_UNIX, A_FILE}, .size = LARGE, .slow = true},
    {.name = "run: TCP to three by tee", .from = A_TCP, .to = {A_TCP, A_PIPE, A_FILE}, .size = LARGE, .slow = true},
    {.name = "run: pipe to memory and two by tee", .from = A_PIPE, .to = {A_TCP, MEMORY, A_UNIX}, .size = LARGE},
    {.name = "run: TCP to three, the dead one dropped",
     .from = A_TCP,
     .to = {A_UNIX, A_FILE, A_TCP},
     .size = LARGE,
     .policy = SLUICE_FANOUT_DROP,
     .dead = true},
    {.name = "step: pipe to three with buffers",
     .way = STEP,
     .from = A_PIPE,
     .to = {A_TCP, A_UNIX, A_PIPE},
     .size = LARGE,
     .slow = true,
     .policy = SLUICE_FANOUT_COPY},
    {.name = "loop: Unix to two with buffers by copy",
     .way = LOOP,
     .from = A_UNIX,
     .to = {A_UNIX, A_PIPE},
     .size = LARGE,
     .slow = true,
     .route = SLUICE_ROUTE_COPY,
     .policy = SLUICE_FANOUT_COPY},
    {.name = "run: TCP to a first and a dead one",
     .from = A_TCP,
     .to = {A_UNIX, A_PIPE, A_TCP},
     .size = LARGE,
     .policy = SLUICE_FANOUT_FIRST,
     .dead = true},
    {.name = "step: pipe to a first and others",
     .way = STEP,
     .from = A_PIPE,
     .to = {A_TCP, A_UNIX, A_FILE},
     .size = LARGE,
     .slow = true,
     .policy = SLUICE_FANOUT_FIRST},
    {.name = "loop: Unix to a first and another by copy",
     .way = LOOP,
     .from = A_UNIX,
     .to = {A_TCP, A_UNIX},
     .size = LARGE,
     .slow = true,
     .route = SLUICE_ROUTE_COPY,
     .policy = SLUICE_FANOUT_FIRST},
    {.name = "loop: TCP received from before, to a first and another",
     .way = LOOP,
     .from = A_TCP,
     .to = {A_TCP, A_UNIX},
     .size = LARGE,
     .slow = true,
     .received = true,
     .policy = SLUICE_FANOUT_FIRST},
    {.name = "run: file transformed to Unix",
     .from = A_FILE,
     .to = {A_UNIX},
     .size = LARGE,
     .transform = true,
     .slow = true},
    {.name = "run: TLS by the kernel to such, spliced",
     .from = A_TCP,
     .to = {A_TCP},
     .size = LARGE,
     .route = SLUICE_ROUTE_SPLICE,
     .tls = true},
    {.name = "loop: file to TLS by the kernel", .way = LOOP, .from = A_FILE, .to = {A_TCP}, .size = LARGE, .tls = true},
    {.name = "run: stream transformed to TCP", .from = A_PIPE, .to = {A_TCP}, .size = LARGE, .transform = true},
    {.name = "run: file to memory by sendfile",
     .from = A_FILE,
     .to = {MEMORY},
     .size = SMALL,
     .many = true,
     .route = SLUICE_ROUTE_SENDFILE,
     .refused = true},
    {.name = "step: cold file to TCP", .way = STEP, .from = A_FILE, .to = {A_TCP}, .size = CORKED, .cold = true},
    {.name = "step: Unix to pipe", .way = STEP, .from = A_UNIX, .to = {A_PIPE}, .size = LARGE, .slow = true},
    {.name = "loop: small file to TCP", .way = LOOP, .from = OWN_FILE, .to = {A_TCP}, .size = SMALL, .exact = true},
    {.name = "loop: cold file to Unix",
     .way = LOOP,
     .from = OWN_FILE,
     .to = {A_UNIX},
     .size = LARGE,
     .cold = true,
     .slow = true},
    {.name = "loop: TCP to TCP", .way = LOOP, .from = A_TCP, .to = {A_TCP}, .size = LARGE},
    {.name = "loop: pipe to Unix", .way = LOOP, .from = A_PIPE, .to = {A_UNIX}, .size = LARGE, .slow = true},
    {.name = "loop: TCP to Unix by copy",
     .way = LOOP,
     .from = A_TCP,
     .to = {A_UNIX},
     .size = LARGE,
     .slow = true,
     .route = SLUICE_ROUTE_COPY},
    {.name = "loop: stream to three",
     .way = LOOP,
     .from = A_UNIX,
     .to = {A_TCP, A_UNIX, A_PIPE},
     .size = LARGE,
     .slow = true},
    {.name = "loop: file transformed to pipe",
     .way = LOOP,
     .from = OWN_FILE,
     .to = {A_PIPE},
     .size = LARGE,
     .transform = true,
     .cold = true,
     .slow = true},
    {.name = "step: borrowed memory to Unix",
     .way = STEP,
     .borrowed = true,
     .to = {A_UNIX, A_TCP},
     .size = 30000,
     .slow = true},
    {.name = "loop: borrowed memory to Unix",
     .way = LOOP,
     .borrowed = true,
     .to = {A_UNIX},
     .size = 30000,
     .slow = true},
    {.name = "ring: borrowed memory to Unix",
     .way = RING,
     .borrowed = true,
     .to = {A_UNIX},
     .size = 30000,
     .slow = true},
    {.name = "run: memory lent to TCP", .lent = true, .to = {A_TCP}, .size = LARGE, .route = SLUICE_ROUTE_MSG_ZEROCOPY},
    {.name = "step: memory lent to TCP",
     .way = STEP,
     .lent = true,
     .to = {A_TCP},
     .size = CORKED,
     .route = SLUICE_ROUTE_MSG_ZEROCOPY},
    {.name = "run: memory given to TCP", .given = true, .to = {A_TCP}, .size = LARGE, .route = SLUICE_ROUTE_VMSPLICE},
    {.name = "run: memory given to a pipe",
     .given = true,
     .to = {A_PIPE},
     .size = SMALL,
     .slow = true,
     .route = SLUICE_ROUTE_VMSPLICE},
    {.name = "run: memory as many datagrams", .lent = true, .to = {A_UDP}, .size = 50000, .datagram_size = 1400},
    {.name = "run: memory lent to UDP", .lent = true, .to = {A_UDP}, .size = 50000, .route = SLUICE_ROUTE_MSG_ZEROCOPY},
    {.name = "loop: memory lent to TCP, whose end is closed before it is back",
     .way = LOOP,
     .lent = true,
     .to = {A_TCP},
     .size = CORKED,
     .route = SLUICE_ROUTE_MSG_ZEROCOPY},
    {.name = "ring: memory lent to TCP",
     .way = RING,
     .lent = true,
     .to = {A_TCP},
     .size = CORKED,
     .route = SLUICE_ROUTE_MSG_ZEROCOPY},
    {.name = "ring: memory lent to TCP by the ring",
     .way = RING,
     .lent = true,
     .to = {A_TCP},
     .size = CORKED,
     .route = SLUICE_ROUTE_URING_SEND_ZC},
    {.name = "ring: memory lent to TCP that is registered",
     .way = RING,
     .given = true,
     .to = {A_TCP},
     .size = LARGE,
     .route = SLUICE_ROUTE_URING_SEND_ZC},
    {.name = "run: TCP to file by tcp_receive",
     .from = A_TCP,
     .to = {A_FILE},
     .size = LARGE,
     .route = SLUICE_ROUTE_TCP_RECEIVE},
    {.name = "pages of TCP", .size = LARGE, .play = play_pages},
    {.name = "server", .loop = SLUICE_LOOP_EPOLL, .size = LARGE, .play = play_server},
    {.name = "server of a file that is dropped behind",
     .loop = SLUICE_LOOP_EPOLL,
     .size = LARGE,
     .play = play_server,
     .dropped = true},
    {.name = "messages gathered into a Unix socket", .to = {A_UNIX}, .play = play_gather},
    {.name = "messages gathered into TCP", .to = {A_TCP}, .play = play_gather},
    {.name = "messages gathered into datagrams", .to = {A_UNIX}, .play = play_datagrams},
    {.name = "crossovers are kept", .play = play_crossovers},
    {.name = "receiver of TCP", .loop = SLUICE_LOOP_EPOLL, .from = A_TCP, .size = LARGE, .play = play_receiver},
    {.name = "receiver of a pipe", .loop = SLUICE_LOOP_EPOLL, .from = A_PIPE, .size = LARGE, .play = play_receiver},
    {.name = "paused receiver of a connection that breaks",
     .loop = SLUICE_LOOP_EPOLL,
     .from = A_TCP,
     .play = play_reset},
    {.name = "ring: small file to TCP", .way = RING, .from = OWN_FILE, .to = {A_TCP}, .size = SMALL, .exact = true},
    {.name = "ring: cold file to Unix",
     .way = RING,
     .from = OWN_FILE,
     .to = {A_UNIX},
     .size = LARGE,
     .cold = true,
     .slow = true},
    {.name = "ring: file to Unix by copy",
     .way = RING,
     .from = OWN_FILE,
     .to = {A_UNIX},
     .size = LARGE,
     .slow = true,
     .route = SLUICE_ROUTE_COPY},
    {.name = "ring: TCP to file by copy",
     .way = RING,
     .from = A_TCP,
     .to = {A_FILE},
     .size = LARGE,
     .route = SLUICE_ROUTE_COPY},
    {.name = "ring: TCP received from before, to a first and another",
     .way = RING,
     .from = A_TCP,
     .to = {A_TCP, A_TCP},
     .size = LARGE,
     .slow = true,
     .exact = true,
     .received = true,
     .policy = SLUICE_FANOUT_FIRST},
    {.name = "ring: pipe to Unix", .way = RING, .from = A_PIPE, .to = {A_UNIX}, .size = LARGE, .slow = true},
    {.name = "ring: stream to three",
     .way = RING,
     .from = A_UNIX,
     .to = {A_TCP, A_UNIX, A_PIPE},
     .size = LARGE,
     .slow = true},
    {.name = "ring: file transformed to Unix",
     .way = RING,
     .from = OWN_FILE,
     .to = {A_UNIX},
     .size = LARGE,
     .transform = true,
     .slow = true},
    {.name = "server on a ring", .loop = SLUICE_LOOP_IO_URING, .size = LARGE, .play = play_server},
    {.name = "receiver of TCP on a ring",
     .loop = SLUICE_LOOP_IO_URING,
     .from = A_TCP,
     .size = LARGE,
     .play = play_receiver},
    {.name = "receiver of a pipe on a ring",
     .loop = SLUICE_LOOP_IO_URING,
     .from = A_PIPE,
     .size = LARGE,
     .play = play_receiver},
    {.name = "paused receiver of a connection that breaks, on a ring",
     .loop = SLUICE_LOOP_IO_URING,
     .from = A_TCP,
     .play = play_reset},
    {.name = "paused receiver of bytes and a reset, on a ring", .loop = SLUICE_LOOP_IO_URING, .play = play_late_reset},
    {.name = "a peer that answers late", .loop = SLUICE_LOOP_EPOLL, .play = play_connect},
    {.name = "a peer that answers late, on a ring", .loop = SLUICE_LOOP_IO_URING, .play = play_connect},
    {.name = "a peer that refuses", .loop = SLUICE_LOOP_EPOLL, .play = play_connect, .dead = true},
    {.name = "callers of a paused listener", .loop = SLUICE_LOOP_EPOLL, .play = play_door},
    {.name = "callers of a paused listener on whichever loop is cheaper", .play = play_door},
    {.name = "callers of a paused listener on a ring", .loop = SLUICE_LOOP_IO_URING, .play = play_door},
};
#define SCENARIOS (sizeof scenarios / sizeof *scenarios)

/* ---- Judging a run ------------------------------------------------------------------------------------------ */

struct plan {
    size_t scenario;
    struct fault faults[FAULTS_AT_ONCE];
    size_t count;
};

static const struct fault_kind *kind_of(const struct fault *fault)
{
    return &fault->site->call->kinds[fault->kind];
}

/* Could these faults have led to this error? */
static bool accounts_for(const struct plan *plan, int code)
{
    const struct scenario *scenario = &scenarios[plan->scenario];
    if (scenario->refused && code == -EOPNOTSUPP)
        return true;
    if (scenario->dead && (code == -ECONNRESET || code == -EPIPE))
        return true; /* when all of them fail, the dead one may be the last */
    for (size_t i = 0; i < plan->count; i++) {
        const char *call = plan->faults[i].site->call->name;
        int error = kind_of(&plan->faults[i])->error;
        if (code == -error)
            return true;
        if (code == -EOPNOTSUPP && scenario->route != SLUICE_ROUTE_AUTO)
            return true; /* the forced route was refused */
        if (code == -ENOMEM && strcmp(call, "mmap") == 0)
            return true; /* a buffer is memory, whatever mmap calls its lack */
        if (code == -ETIMEDOUT && strcmp(call, "epoll_ctl") == 0 && plan->faults[i].times == UINT_MAX)
            return true; /* by this test: a listener that cannot be resumed tries again for ever */
        if (code == -ECANCELED && (strcmp(call, "epoll_wait") == 0 || strcmp(call, "io_uring_enter") == 0))
            return true; /* by this test, after the loop gave up */
    }
    return false;
}

/* What only looks something up for the receipt, or makes a transfer cheaper, must not make it fail; nor what rules out
 * one route, where another may be chosen. */
static bool harmless(const struct fault *fault, const struct scenario *scenario)
{
    const struct fault_site *site = fault->site;
    const struct fault_kind *kind = kind_of(fault);
    const char *call = site->call->name;
    bool to_buffer = strstr(site->file, "core/pool.c") != NULL || strcmp(site->function, "copy_piece") == 0 ||
                     strstr(site->file, "loop/uring.c") != NULL;
    if (strcmp(site->function, "allow") == 0 && strcmp(call, "setsockopt") == 0)
        return false; /* the forced route is refused */
    if (strcmp(site->function, "replace_file") == 0 || strcmp(site->function, "sluice_crossovers_share") == 0)
        return false; /* closing a file tells of a full disk; sharing is what was asked for */
    if (strcmp(site->function, "ask_connect") == 0)
        return kind->error == EINTR;
    if (strcmp(site->function, "ask_machine") == 0)
        return true;
    if (strstr(site->file, "loop/uring_files.c") != NULL)
        return strcmp(site->function, "uring_files_give_up") != 0;
    if (kind->harmless || strcmp(site->function, "end_paces") == 0 || strcmp(site->function, "allow") == 0 ||
        strcmp(site->function, "read_addresses") == 0)
        return true;
    if (scenario->route != SLUICE_ROUTE_AUTO)
        return false;
    if (strcmp(call, "sendfile") == 0)
        return kind->error == EINVAL || kind->error == ENOSYS || kind->error == EOVERFLOW;
    if (strcmp(call, "copy_file_range") == 0 || strcmp(call, "clone_range") == 0)
        return kind->error != EIO && kind->error != ENOSPC && kind->error != ENOMEM && kind->error != EFBIG;
    if (strcmp(call, "splice") == 0)
        return kind->error == EINVAL || kind->error == ENOMEM;
    return strcmp(call, "pipe2") == 0 || (strcmp(call, "mmap") == 0 && kind->error != ENFILE && !to_buffer);
}

static bool all_harmless(const struct plan *plan)
{
    for (size_t i = 0; i < plan->count; i++)
        if (!harmless(&plan->faults[i], &scenarios[plan->scenario]))
            return false;
    return true;
}

static const char *judge_bytes(const struct outcome *outcome, int sinks)
{
    for (int i = 0; i < sinks; i++) {
        size_t size = outcome->arrived_size[i];
        const struct sluice_error *lost = &outcome->sink_errors[i];
        if (size > outcome->expected_size || (size > 0 && memcmp(outcome->arrived[i], outcome->expected, size) != 0))
            return "wrong bytes arrived";
        if (outcome->result == 0 && lost->code == 0 && size != outcome->expected_size)
            return "bytes are missing, without an error";
        if (lost->code != 0 && (lost->operation == NULL || lost->delivered < size))
            return "a sink's own error does not say what failed, or how much was delivered";
        if (lost->code == 0 && i < (int)outcome->receipts_known && outcome->receipts[i].sent != size)
            return "what arrived is not what the receipt says was sent";
    }
    return NULL;
}

static const char *judge_receipts(const struct outcome *outcome)
{
    for (unsigned i = 0; i < outcome->receipts_known; i++) {
        const struct sluice_receipt *receipt = &outcome->receipts[i];
        if (receipt->by_reference + receipt->copied + receipt->unknown != receipt->bytes)
            return "the receipt does not add up";
        if (receipt->bytes != receipt->sent || receipt->released != receipt->sent)
            return "the receipt says that something is outstanding";
    }
    return NULL;
}

static const char *judge_error(const struct outcome *outcome, int sinks)
{
    char text[400];
    if (!outcome->has_error)
        return NULL;
    if (outcome->error.code != outcome->result)
        return "the error's code is not the result";
    if (outcome->result == 0)
        return NULL;
    if (outcome->error.operation == NULL)
        return "the error does not say what failed";
    bool right = false; /* it is about one of the sinks */
    for (int i = 0; i < sinks; i++)
        right |= outcome->error.delivered == outcome->arrived_size[i];
    if (!right)
        return "the error does not say how much was delivered";
    int length = sluice_error_format(&outcome->error, text, sizeof text);
    if (length <= 0 || strstr(text, strerrorname_np(-outcome->result)) == NULL)
        return "the error's message does not name its errno";
    return NULL;
}

static const char *judge(const struct plan *plan, const struct outcome *outcome)
{
    const struct scenario *scenario = &scenarios[plan->scenario];
    int sinks = scenario->to[0] == NOWHERE ? 1 : 0;
    while (sinks < SINKS_MAX && scenario->to[sinks] != NOWHERE)
        sinks++;
    if (outcome->result > 0)
        return "the result is positive";
    if (outcome->spoilt)
        return "the transfer after it did not get its own bytes";
    if (outcome->result == 0 && scenario->refused)
        return "it was not refused";
    if (outcome->result < 0 && all_harmless(plan) && !scenario->refused)
        return "it failed, though it need not";
    if (outcome->result < 0 && !accounts_for(plan, outcome->result))
        return "it failed with an error that nobody gave it";
    const char *fault = judge_bytes(outcome, sinks);
    if (fault == NULL)
        fault = judge_receipts(outcome);
    if (fault == NULL)
        fault = judge_error(outcome, sinks);
    for (unsigned i = 0; i < SEGMENTS_MAX && fault == NULL; i++) {
        bool memory = i < outcome->segment_count && outcome->began && !(scenario->bare || (i == 1 && !scenario->lent));
        if (outcome->released[i] != memory)
            fault = memory ? "memory was not released exactly once" : "memory was released that never was taken";
    }
    return fault;
}

/* ---- Runs --------------------------------------------------------------------------------------------------- */

#define PLANS_MAX 60000
static struct plan *plans; /* by number of run */
static int plan_count;
static unsigned long long injections;
static unsigned failures;

static const char *describe(const struct plan *plan, const char *complaint, const struct outcome *outcome)
{
    static char text[900];
    int at = snprintf(text, sizeof text, "%s", scenarios[plan->scenario].name);
    for (size_t i = 0; i < plan->count; i++)
        at += snprintf(text + at, sizeof text - (size_t)at, ", %s, call %u%s: %s",
                       fault_site_name(plan->faults[i].site), plan->faults[i].nth,
                       plan->faults[i].times == 1          ? ""
                       : plan->faults[i].times == UINT_MAX ? " and all after it"
                                                           : " and a few after it",
                       fault_kind_name(kind_of(&plan->faults[i])));
    if (complaint != NULL) {
        at += snprintf(text + at, sizeof text - (size_t)at, ": %s (result %d, %zu of %zu bytes, ", complaint,
                       outcome->result, outcome->arrived_size[0], outcome->expected_size);
        sluice_error_format(&outcome->error, text + at, sizeof text - (size_t)at);
    }
    return text;
}

/* A ring that failed for good is asked no more. Where its sockets do not tell either when the kernel has done with what
 * was lent by it, that is never given back, and its end keeps the descriptor. */
static bool keeps_loans(const struct plan *plan)
{
    for (size_t i = 0; i < plan->count; i++)
        if (plan->faults[i].times == UINT_MAX && strcmp(plan->faults[i].site->function, "holds_nothing") == 0)
            return true;
    return false;
}

static void allow_leaks(bool allowed)
{
#if defined(__SANITIZE_ADDRESS__)
    if (allowed)
        __lsan_disable();
    else
        __lsan_enable();
#else
    (void)allowed;
#endif
}

struct job {
    const struct scenario *scenario;
    struct outcome *outcome;
    bool keeps_loans;
};

static void *play(void *argument)
{
    const struct job *job = argument;
    if (job->keeps_loans)
        allow_leaks(true);
    if (job->scenario->play != NULL)
        job->scenario->play(job->scenario, job->outcome);
    else
        play_transfer(job->scenario, job->outcome);
    if (job->keeps_loans)
        allow_leaks(false);
    buffers_drain(); /* the pool is the process's */
    return NULL;
}

static void perform(const struct plan *plan)
{
    static unsigned char expected[BODY_MAX + 4096];
    struct outcome outcome = {.expected = expected};
    struct job job = {.scenario = &scenarios[plan->scenario], .outcome = &outcome, .keeps_loans = keeps_loans(plan)};
    pthread_t thread;
    if (plan_count == PLANS_MAX)
        CHECK_FAIL("more than %d runs", PLANS_MAX);
    plans[plan_count] = *plan;
    int before = open_descriptors();
    fault_block_device = -1;
    fault_huge_pages = plan->scenario % 2;
    given_forget();
    memlock_forget();
    fault_begin(plan_count++, plan->faults, plan->count, describe(plan, NULL, NULL));
    CHECK_EQ(pthread_create(&thread, NULL, play, &job), 0);
    pthread_join(thread, NULL);
    injections += fault_end();
    const char *complaint = judge(plan, &outcome);
    if (complaint == NULL)
        complaint = fault_violation();
    if (complaint == NULL && open_descriptors() != before)
        complaint = "descriptors leaked";
    for (int i = 0; i < SINKS_MAX; i++)
        free(outcome.arrived[i]);
    if (complaint != NULL && !job.keeps_loans && failures++ < 40)
        printf("# %s\n", describe(plan, complaint, &outcome));
}

static void inject(size_t scenario, const struct fault *first, struct fault_site *site, unsigned nth, bool for_ever)
{
    for (unsigned kind = 0; site->call->kinds[kind].error != 0 || site->call->kinds[kind].effect != FAULT_ERRNO;
         kind++) {
        struct plan plan = {.scenario = scenario};
        if (first != NULL)
            plan.faults[plan.count++] = *first;
        unsigned times = !for_ever ? 1 : site->call->kinds[kind].not_moving ? 3 : UINT_MAX;
        if (for_ever && site->call->kinds[kind].effect == FAULT_ONE_BYTE)
            continue; /* half a length each time says the same sooner */
        plan.faults[plan.count++] = (struct fault){.site = site, .nth = nth, .times = times, .kind = kind};
        perform(&plan);
    }
}

static void inject_everywhere(size_t scenario)
{
    size_t count = fault_site_count();
    unsigned calls[count];
    perform(&(struct plan){.scenario = scenario});
    for (size_t i = 0; i < count; i++)
        calls[i] = (unsigned)fault_site(i)->calls_in_run;
    for (size_t i = 0; i < count; i++) {
        for (unsigned nth = 1; nth <= calls[i]; nth++) {
            if (nth > EVERY_CALL && nth != calls[i] / 2 && nth != calls[i])
                continue;
            inject(scenario, NULL, fault_site(i), nth, false);
            if (nth == 1 || nth == calls[i] / 2)
                inject(scenario, NULL, fault_site(i), nth, true);
        }
    }
}

/* Sites that only the handling of another fault reaches. */
static void inject_behind_faults(void)
{
    for (size_t i = 0; i < fault_site_count(); i++) {
        struct fault_site *site = fault_site(i);
        if (site->calls == 0 || site->injected > 0)
            continue;
        const struct plan *plan = &plans[site->reached_by];
        if (plan->count == 0)
            continue;
        inject(plan->scenario, &plan->faults[0], site, 1, false);
        inject(plan->scenario, &plan->faults[0], site, 1, true);
    }
}

/* A second fault while the first is being dealt with: pairs of the faults above, the same in every run of this test. */
static void inject_pairs(void)
{
    int singles = plan_count;
    uint64_t random = 1;
    for (int i = 0; i < PAIRS; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        const struct plan *one = &plans[(random >> 33) % (uint64_t)singles];
        const struct plan *other = one + 1 + (random >> 20) % 300;
        if (other >= plans + singles || one->scenario != other->scenario || one->count != 1 || other->count != 1 ||
            one->faults[0].site == other->faults[0].site)
            continue;
        perform(&(struct plan){.scenario = one->scenario, .faults = {one->faults[0], other->faults[0]}, .count = 2});
    }
}

static bool has_ring(void)
{
    struct sluice_loop_options on = {.size = sizeof on, .kind = SLUICE_LOOP_IO_URING};
    int result = sluice_loop_probe(&on, NULL);
    buffers_drain();
    return result == 0;
}

/* Once, for whichever test comes first. */
static void inject_all(void)
{
    if (plans != NULL)
        return;
    pattern_fill(pattern, 0, sizeof pattern);
    plans = calloc(PLANS_MAX, sizeof *plans);
    fault_world = move_world;
    uring_linger_ms = 200;
    uring_stash_size = 0;
    uring_files_after = 1;
    fault_install();
    for (size_t i = 0; i < SCENARIOS; i++)
        if (has_ring() || (scenarios[i].way != RING && scenarios[i].loop != SLUICE_LOOP_IO_URING))
            inject_everywhere(i);
    inject_behind_faults();
    inject_pairs();
}

TEST("whatever system call fails, every sink gets the exact bytes, or the error says how many, and nothing leaks")
{
    inject_all();
    CHECK_EQ(failures, 0);
}

static bool is_missed(const struct fault_site *site, bool ring)
{
    return site->injected == 0 && (ring || strstr(site->file, "loop/uring") == NULL);
}

static bool any_missed(bool ring)
{
    for (size_t i = 0; i < fault_site_count(); i++)
        if (is_missed(fault_site(i), ring))
            return true;
    return false;
}

TEST("no call site of the library is left out")
{
    unsigned missed = 0, kinds = 0;
    inject_all();
    bool ring = has_ring();
    /* What helpers do when a transfer has ended may come too late for a scenario on a loaded machine. */
    for (int again = 0; again < 10 && any_missed(ring); again++)
        for (size_t i = 0; i < SCENARIOS; i++)
            if (scenarios[i].dropped)
                inject_everywhere(i);
    fault_quiet(true);
    printf("# %-52s %9s  %s\n", "site", "calls", "injected");
    for (size_t i = 0; i < fault_site_count(); i++) {
        const struct fault_site *site = fault_site(i);
        printf("# %-52s %9llu ", fault_site_name(site), (unsigned long long)site->calls);
        for (unsigned kind = 0; kind < 64 && site->kinds_injected >> kind != 0; kind++) {
            if (!(site->kinds_injected >> kind & 1))
                continue;
            printf(" %s", fault_kind_name(&site->call->kinds[kind]));
            kinds++;
        }
        printf("%s\n", site->injected == 0 ? " NOTHING" : "");
        missed += is_missed(site, ring);
    }
    printf("# %zu call sites, %u faults of them, %llu injections in %d runs\n", fault_site_count(), kinds, injections,
           plan_count);
    CHECK_EQ(missed, 0);
    if (!ring)
        SKIP("the sites of loop/uring*.c were left out: no io_uring here (sluice serve --loop io_uring says why)");
}

CHECK_MAIN()
