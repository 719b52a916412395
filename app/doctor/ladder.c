/* SPDX-License-Identifier: MIT */
#include "doctor/ladder.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "service/address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* More than a pipe or a socket's first buffer holds, and no round number; quick enough for hundreds of trials. */
#define TRIAL_BYTES ((256u << 10) + 123)
#define DATAGRAM_BYTES 16000u /* one datagram */
#define CONNECT_MS 3000
#define TRIAL_MS 5000

/* ---- Ends ----------------------------------------------------------------------------------------------------- */

void ladder_file_system(const char *directory, char *name, size_t size)
{
    struct stat status;
    char line[4096];
    snprintf(name, size, "?");
    FILE *mounts = stat(directory, &status) == 0 ? fopen("/proc/self/mountinfo", "re") : NULL;
    while (mounts != NULL && fgets(line, sizeof line, mounts) != NULL) {
        unsigned major_number, minor_number;
        char type[32];
        const char *rest = strstr(line, " - ");
        if (sscanf(line, "%*d %*d %u:%u", &major_number, &minor_number) == 2 && rest != NULL &&
            makedev(major_number, minor_number) == status.st_dev && sscanf(rest, " - %31s", type) == 1) {
            snprintf(name, size, "%s", type);
            break;
        }
    }
    if (mounts != NULL)
        fclose(mounts);
}

static int open_file(const char *directory)
{
    int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL))
        return fd >= 0 ? fd : -errno;
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/.sluice-doctor-XXXXXX", directory) >= (int)sizeof path)
        return -ENAMETOOLONG;
    fd = mkostemp(path, O_CLOEXEC);
    if (fd < 0)
        return -errno;
    unlink(path);
    return fd;
}

static int open_inet_pair(int type, int fds[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    CLEANUP_FD int server = socket(AF_INET, type | SOCK_CLOEXEC, 0);
    CLEANUP_FD int near = socket(AF_INET, type | SOCK_CLOEXEC, 0);
    /* The host's default may be bbr, which paces over loopback, too. Without cubic it is only slower. */
    if (type == SOCK_STREAM)
        (void)(setsockopt(server, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5) +
               setsockopt(near, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5));
    if (server < 0 || near < 0 || bind(server, (struct sockaddr *)&address, size) != 0 ||
        (type == SOCK_STREAM && listen(server, 1) != 0) ||
        getsockname(server, (struct sockaddr *)&address, &size) != 0 ||
        connect(near, (struct sockaddr *)&address, size) != 0)
        return -errno;
    fds[1] = type == SOCK_STREAM ? accept4(server, NULL, NULL, SOCK_CLOEXEC) : TAKE_FD(server);
    if (fds[1] < 0)
        return -errno;
    fds[0] = TAKE_FD(near);
    return 0;
}

static int connect_to(const char *peer)
{
    struct address address;
    int result = address_parse(peer, &address, NULL);
    if (result < 0)
        return result;
    CLEANUP_FD int fd = socket(address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    int error = connect(fd, &address.any, address.length) == 0 ? 0 : errno;
    if (error == EINPROGRESS) {
        struct pollfd wait = {.fd = fd, .events = POLLOUT};
        socklen_t size = sizeof error;
        if (poll(&wait, 1, CONNECT_MS) <= 0)
            error = ETIMEDOUT;
        else if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
            error = errno;
    }
    if (error == 0)
        return TAKE_FD(fd);
    return -error;
}

/* A source or sink under trial: an end, and who feeds or drains it. */
struct stand {
    struct sluice_end *end;
    int far; /* -1: nobody */
    size_t length;
    bool is_source, is_datagram;
    pthread_t thread;
    bool started;
};

static const _Alignas(4096) char filler[TRIAL_BYTES]; /* as O_DIRECT wants it */
static _Alignas(4096) char target[TRIAL_BYTES];

static void *feed(void *context)
{
    struct stand *stand = context;
    for (size_t left = stand->length; left > 0;) {
        ssize_t sent = write(stand->far, filler, left); /* SIGPIPE is ignored in this program */
        if (sent <= 0)
            break;
        left -= (size_t)sent;
    }
    return NULL;
}

static void *drain(void *context)
{
    struct stand *stand = context;
    static _Thread_local char piece[65536];
    for (size_t left = stand->length; left > 0;) {
        struct pollfd wait = {.fd = stand->far, .events = POLLIN};
        ssize_t got = poll(&wait, 1, 5000) > 0 ? read(stand->far, piece, sizeof piece) : 0;
        if (got <= 0)
            break;
        left -= (size_t)got < left ? (size_t)got : left;
    }
    return NULL;
}

static int open_stream(enum sluice_end_kind kind, bool source, int fds[2])
{
    switch (kind) {
    case SLUICE_END_PIPE:
        if (pipe2(fds, O_CLOEXEC) < 0)
            return -errno;
        if (!source) { /* [0] is ours */
            int reader = fds[0];
            fds[0] = fds[1];
            fds[1] = reader;
        }
        return 0;
    case SLUICE_END_UNIX_STREAM:
        return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0 ? -errno : 0;
    case SLUICE_END_TCP:
        return open_inet_pair(SOCK_STREAM, fds);
    case SLUICE_END_DATAGRAM:
        return open_inet_pair(SOCK_DGRAM, fds);
    default:
        return -EINVAL;
    }
}

static int fill_file(int fd)
{
    for (size_t at = 0; at < TRIAL_BYTES;) {
        ssize_t written = pwrite(fd, filler + at, TRIAL_BYTES - at, (off_t)at);
        if (written < 0)
            return -errno;
        at += (size_t)written;
    }
    return 0;
}

static int open_end(int fd, struct stand *stand)
{
    int result = sluice_end_open(fd, SLUICE_END_OWN_FD, &stand->end);
    if (result < 0)
        close_fd(fd);
    return result;
}

static int set_up(const struct place *place, bool source, size_t length, struct stand *stand)
{
    int fds[2] = {-1, -1}, result;
    *stand = (struct stand){.far = -1, .length = length, .is_source = source};
    if (place->kind == SLUICE_END_MEMORY)
        return source ? 0 : sluice_end_open_memory(target, sizeof target, &stand->end);
    if (place->kind == SLUICE_END_FILE) {
        fds[0] = open_file(place->directory);
        if (fds[0] < 0)
            return fds[0];
        result = source ? fill_file(fds[0]) : 0;
        if (result < 0) {
            close_fd(fds[0]);
            return result;
        }
        return open_end(fds[0], stand);
    }
    if (place->peer != NULL) {
        fds[0] = connect_to(place->peer);
        return fds[0] < 0 ? fds[0] : open_end(fds[0], stand);
    }
    result = open_stream(place->kind, source, fds);
    if (result < 0)
        return result;
    stand->far = fds[1];
    return open_end(fds[0], stand);
}

static int start(struct stand *stand)
{
    if (stand->far < 0)
        return 0;
    stand->started = true;
    int error = pthread_create(&stand->thread, NULL, stand->is_source ? feed : drain, stand);
    stand->started = error == 0;
    return -error;
}

static void tear_down(struct stand *stand)
{
    sluice_end_close(stand->end); /* whoever still feeds or drains the other side sees that */
    if (stand->started)
        pthread_join(stand->thread, NULL);
    close_fd(stand->far);
}

static void no_release(void *context, const void *data, size_t length)
{
    (void)context, (void)data, (void)length; /* static memory; a segment without this would never be lent */
}

static struct sluice_segment segment_of(const struct place *place, const struct stand *stand, uint64_t length)
{
    if (place->kind == SLUICE_END_MEMORY)
        return (struct sluice_segment){
            .kind = SLUICE_SEGMENT_MEMORY, .data = filler, .length = length, .release = no_release};
    return (struct sluice_segment){.kind = place->kind == SLUICE_END_FILE ? SLUICE_SEGMENT_FILE : SLUICE_SEGMENT_STREAM,
                                   .end = stand->end,
                                   .length = length};
}

/* ---- Trials ----------------------------------------------------------------------------------------------------- */

/* A transfer of a pair, and all it takes. */
struct trial {
    struct stand source, sinks[LADDER_SINKS_MAX];
    struct sluice_end *ends[LADDER_SINKS_MAX];
    struct sluice_segment segment;
    struct sluice_transfer_options options;
};

static int give_memory(struct sluice_segment *segment)
{
    struct sluice_memory *memory;
    int result = sluice_memory_new(segment->length, &memory);
    if (result < 0)
        return result;
    memset(sluice_memory_data(memory), 'g', segment->length);
    segment->data = sluice_memory_data(memory);
    segment->release = sluice_memory_release;
    segment->release_context = memory;
    return 0;
}

/* To be torn down also when it failed. */
static int set_up_trial(const struct ladder_pair *pair, struct trial *trial)
{
    *trial = (struct trial){.source = {.far = -1}, .sinks = {{.far = -1}, {.far = -1}}};
    int result = set_up(&pair->source, true, pair->length, &trial->source);
    for (unsigned i = 0; i < pair->sinks && result == 0; i++) {
        result = set_up(&pair->sink, false, pair->length, &trial->sinks[i]);
        trial->ends[i] = trial->sinks[i].end;
    }
    trial->segment = segment_of(&pair->source, &trial->source, pair->length);
    trial->options = (struct sluice_transfer_options){.size = sizeof trial->options,
                                                      .segments = &trial->segment,
                                                      .segment_count = 1,
                                                      .sinks = trial->ends,
                                                      .sink_count = pair->sinks};
    return result == 0 && pair->source.given ? give_memory(&trial->segment) : result;
}

static void tear_down_trial(struct trial *trial)
{
    tear_down(&trial->source);
    for (unsigned i = 0; i < LADDER_SINKS_MAX; i++)
        tear_down(&trial->sinks[i]);
}

/* A transfer on a ring, until its memory is back. */
struct ring_run {
    struct sluice_loop *ring;
    bool done, over; /* over: nothing will change any more */
    bool running;
    struct rung *rung;
};

static void see_if_over(struct ring_run *run)
{
    run->over = run->done && (run->rung->result < 0 || sluice_receipt_is_final(&run->rung->receipt));
    if (run->over && run->running) /* else the next run would stop at once */
        sluice_loop_stop(run->ring);
}

static void ring_done(void *context, struct sluice_transfer *transfer, int result)
{
    struct ring_run *run = context;
    run->done = true;
    run->rung->result = result;
    run->rung->receipt = *sluice_transfer_receipt(transfer, 0);
    run->rung->error = *sluice_transfer_error(transfer);
    see_if_over(run);
}

static void ring_settled(void *context, unsigned sink, const struct sluice_receipt *difference)
{
    struct ring_run *run = context;
    (void)sink;
    sluice_receipt_add(&run->rung->receipt, difference);
    see_if_over(run);
}

static void ring_expired(void *context)
{
    struct ring_run *run = context;
    run->rung->result = -ETIMEDOUT;
    run->rung->error = (struct sluice_error){.code = -ETIMEDOUT, .operation = "io_uring", .reason = "it did not end"};
    run->over = true;
    sluice_loop_stop(run->ring);
}

static void run_on_ring(struct sluice_loop *ring, struct trial *trial, struct rung *rung)
{
    struct ring_run run = {.ring = ring, .rung = rung};
    struct sluice_transfer *transfer = NULL;
    struct sluice_timer timer = {.deadline = 0};
    fcntl(sluice_end_fd(trial->ends[0]), F_SETFL, O_NONBLOCK);
    trial->options.settled = ring_settled;
    trial->options.settled_context = &run;
    const struct sluice_receipt *receipt = NULL;
    int result = sluice_loop_transfer(ring, &trial->options, ring_done, &run, &transfer, &receipt, &rung->error);
    if (result != 0) {
        if (receipt != NULL)
            rung->receipt = *receipt;
        run.done = true;
        rung->result = result < 0 ? result : 0;
        see_if_over(&run);
    }
    sluice_timer_start(ring, &timer, TRIAL_MS, ring_expired, &run);
    run.running = !run.over;
    if (run.running && (result = sluice_loop_run(ring)) < 0) {
        rung->result = result;
        rung->error = (struct sluice_error){.code = result, .operation = "io_uring"};
    }
    sluice_timer_stop(ring, &timer);
    if (!run.done)
        sluice_loop_transfer_cancel(ring, transfer);
    if (trial->source.end != NULL)
        sluice_loop_forget(ring, trial->source.end);
    sluice_loop_forget(ring, trial->ends[0]);
}

static void run_here(struct trial *trial, struct rung *rung)
{
    struct sluice_receipt receipts[LADDER_SINKS_MAX];
    memset(receipts, 0, sizeof receipts);
    rung->result = sluice_transfer_run(&trial->options, receipts, &rung->error);
    rung->receipt = receipts[0];
    for (size_t i = 1; i < trial->options.sink_count; i++)
        sluice_receipt_add(&rung->receipt, &receipts[i]);
}

static int try_route(const struct ladder_pair *pair, struct sluice_loop *ring, enum sluice_route route,
                     struct rung *rung)
{
    struct trial trial;
    int result = set_up_trial(pair, &trial);
    if (result == 0)
        result = start(&trial.source);
    for (unsigned i = 0; i < pair->sinks && result == 0; i++)
        result = start(&trial.sinks[i]);
    if (result == 0) {
        trial.options.route = route;
        rung->tried = true;
        if (pair->ring)
            run_on_ring(ring, &trial, rung);
        else
            run_here(&trial, rung);
    } else if (trial.segment.release == sluice_memory_release) {
        sluice_memory_release(trial.segment.release_context, NULL, 0);
    }
    tear_down_trial(&trial);
    return result;
}

/* The plan only says what will be tried first: the file system may refuse it. */
static int find_chosen(struct ladder_pair *pair, struct sluice_loop *ring)
{
    struct rung any = {.tried = false};
    int result = try_route(pair, ring, SLUICE_ROUTE_AUTO, &any);
    struct rung *chosen = NULL;
    uint64_t most = 0;
    for (unsigned i = 0; i < pair->count && any.tried; i++) {
        uint64_t bytes = any.receipt.routes[pair->rungs[i].plan.route].bytes;
        if (bytes > most) {
            most = bytes;
            chosen = &pair->rungs[i];
        }
    }
    if (chosen != NULL)
        chosen->chosen = true;
    return result;
}

static int plan_pair(struct ladder_pair *pair, const struct sluice_loop *ring)
{
    struct trial trial;
    struct sluice_plan plan;
    int result = set_up_trial(pair, &trial);
    if (result == 0)
        result = sluice_loop_plan(pair->ring ? ring : NULL, &trial.options, 0, 0, &plan);
    if (result == 0) {
        pair->count = plan.count;
        for (unsigned i = 0; i < plan.count; i++)
            pair->rungs[i].plan = plan.entries[i];
        bool inet = pair->sink.kind == SLUICE_END_TCP || pair->sink.kind == SLUICE_END_DATAGRAM;
        if (inet && sluice_end_egress(trial.ends[0], &pair->sink.egress) < 0)
            pair->sink.egress = (struct sluice_egress){.ifindex = 0};
    }
    if (trial.segment.release == sluice_memory_release)
        sluice_memory_release(trial.segment.release_context, NULL, 0);
    tear_down_trial(&trial);
    return result;
}

/* ---- All pairs -------------------------------------------------------------------------------------------------- */

/* Routes that can carry the pair, a bit each. */
static unsigned open_routes(const struct ladder_pair *pair)
{
    unsigned routes = 0;
    for (unsigned i = 0; i < pair->count; i++)
        if (pair->rungs[i].plan.verdict != SLUICE_NEVER)
            routes |= 1u << pair->rungs[i].plan.route;
    return routes;
}

/* Plan it, and try what can carry it; unless nothing can that is not in the set `known`. */
static int climb_pair(struct ladder_pair *pair, struct sluice_loop *ring, unsigned known, bool *ret_climbed)
{
    pair->length = pair->sink.kind == SLUICE_END_DATAGRAM ? DATAGRAM_BYTES : TRIAL_BYTES;
    int result = plan_pair(pair, ring);
    *ret_climbed = result == 0 && (open_routes(pair) & ~known) != 0;
    if (!*ret_climbed)
        return result;
    if (pair->sink.peer != NULL) {
        pair->rungs[0].chosen = pair->rungs[0].plan.verdict != SLUICE_NEVER; /* nothing is sent: as the plan says */
        return 0;
    }
    for (unsigned i = 0; i < pair->count && result == 0; i++)
        if (pair->rungs[i].plan.verdict != SLUICE_NEVER)
            result = try_route(pair, ring, pair->rungs[i].plan.route, &pair->rungs[i]);
    return result == 0 ? find_chosen(pair, ring) : result;
}

static int add_pair(struct ladder *ladder, struct sluice_loop *ring, const struct ladder_pair *model, unsigned known)
{
    bool climbed;
    struct ladder_pair *larger = realloc(ladder->pairs, (ladder->count + 1) * sizeof *larger);
    if (larger == NULL)
        return -ENOMEM;
    ladder->pairs = larger;
    larger[ladder->count] = *model;
    int result = climb_pair(&larger[ladder->count], ring, known, &climbed);
    if (result == 0 && climbed)
        ladder->count++;
    return result;
}

/* A source and a sink; and in every setting that opens a route to them. */
static int add_pairs(struct ladder *ladder, struct sluice_loop *ring, const struct place *source,
                     const struct place *sink)
{
    struct ladder_pair plain = {.source = *source, .sink = *sink, .sinks = 1}, given = plain, several = plain,
                       on_ring = plain;
    int result = add_pair(ladder, ring, &plain, 0);
    unsigned known = result == 0 ? open_routes(&ladder->pairs[ladder->count - 1]) : 0;
    bool is_memory = source->kind == SLUICE_END_MEMORY;
    given.source.given = true;
    several.sinks = LADDER_SINKS_MAX;
    on_ring.ring = true;
    if (result == 0 && is_memory)
        result = add_pair(ladder, ring, &given, known);
    if (result == 0 && !is_memory && source->kind != SLUICE_END_FILE) /* these go to each sink by themselves */
        result = add_pair(ladder, ring, &several, known);
    if (result == 0 && ring != NULL)
        result = add_pair(ladder, ring, &on_ring, known);
    return result;
}

static bool wanted(int kind, enum sluice_end_kind is)
{
    return kind < 0 || kind == (int)is;
}

static size_t list_places(const struct ladder_options *options, bool source, struct place *places)
{
    static const enum sluice_end_kind made_here[] = {SLUICE_END_MEMORY, SLUICE_END_PIPE, SLUICE_END_TCP,
                                                     SLUICE_END_UNIX_STREAM, SLUICE_END_DATAGRAM};
    int only = source ? options->source : options->sink;
    size_t count = 0;
    for (size_t i = 0; i < options->directory_count && wanted(only, SLUICE_END_FILE); i++) {
        struct place *place = &places[count++];
        *place = (struct place){.kind = SLUICE_END_FILE};
        snprintf(place->directory, sizeof place->directory, "%s", options->directories[i]);
        ladder_file_system(place->directory, place->file_system, sizeof place->file_system);
    }
    for (size_t i = 0; i < sizeof made_here / sizeof *made_here; i++) {
        if (!wanted(only, made_here[i]) || (source && made_here[i] == SLUICE_END_DATAGRAM))
            continue; /* a datagram socket is a sink for memory alone */
        places[count++] = (struct place){.kind = made_here[i]};
        if (made_here[i] == SLUICE_END_TCP && !source && options->peer != NULL)
            places[count++] = (struct place){.kind = SLUICE_END_TCP, .peer = options->peer};
    }
    return count;
}

int ladder_climb(const struct ladder_options *options, struct ladder *ret_ladder, struct failure *failure)
{
    struct ladder ladder = {.pairs = NULL};
    const struct sluice_loop_options ring_options = {.size = sizeof ring_options, .kind = SLUICE_LOOP_IO_URING};
    struct sluice_loop *ring = NULL;
    struct sluice_error no_ring = {.code = 0};
    size_t most = options->directory_count + 6;
    struct place *sources = calloc(most, sizeof *sources), *sinks = calloc(most, sizeof *sinks);
    int result = sources != NULL && sinks != NULL ? 0 : failure_set(failure, -ENOMEM, "no memory for the ladder");
    if (sluice_loop_probe(&ring_options, &no_ring) < 0)
        sluice_error_format(&no_ring, ladder.no_ring, sizeof ladder.no_ring);
    else if (result == 0 && (result = sluice_loop_new(&ring_options, &ring)) < 0)
        failure_set(failure, result, "making a loop on io_uring failed: %s (%s)", text_errno_meaning(result),
                    text_errno_name(result));
    size_t source_count = result == 0 ? list_places(options, true, sources) : 0;
    size_t sink_count = result == 0 ? list_places(options, false, sinks) : 0;
    for (size_t from = 0; from < source_count && result == 0; from++) {
        for (size_t to = 0; to < sink_count && result == 0; to++) {
            if (sinks[to].kind == SLUICE_END_DATAGRAM && sources[from].kind != SLUICE_END_MEMORY)
                continue;
            result = add_pairs(&ladder, ring, &sources[from], &sinks[to]);
            if (result < 0) {
                char source[PATH_MAX + 64], sink[PATH_MAX + 64];
                ladder_place_name(&sources[from], source, sizeof source);
                ladder_place_name(&sinks[to], sink, sizeof sink);
                failure_set(failure, result, "making the ends of %.300s to %.300s failed: %s (%s)", source, sink,
                            text_errno_meaning(result), text_errno_name(result));
            }
        }
    }
    sluice_loop_free(ring);
    free(sources);
    free(sinks);
    if (result < 0)
        ladder_free(&ladder);
    else
        *ret_ladder = ladder;
    return result;
}

void ladder_free(struct ladder *ladder)
{
    free(ladder->pairs);
    *ladder = (struct ladder){.pairs = NULL};
}

int ladder_place_name(const struct place *place, char *text, size_t size)
{
    const char *kind = sluice_end_kind_name(place->kind);
    if (place->kind == SLUICE_END_FILE)
        return snprintf(text, size, "%s on %s (%s)", kind, place->file_system, place->directory);
    if (place->given)
        return snprintf(text, size, "%s given away", kind);
    if (place->egress.name[0] != '\0')
        return snprintf(text, size, "%s by %s%s%s%s", kind, place->egress.name, place->peer != NULL ? " (" : "",
                        place->peer != NULL ? place->peer : "", place->peer != NULL ? ")" : "");
    return snprintf(text, size, "%s%s%s", kind, place->peer != NULL ? " to " : "",
                    place->peer != NULL ? place->peer : "");
}

int ladder_pair_name(const struct ladder_pair *pair, char *text, size_t size)
{
    char source[LADDER_NAME_MAX / 2], sink[LADDER_NAME_MAX / 2];
    ladder_place_name(&pair->source, source, sizeof source);
    ladder_place_name(&pair->sink, sink, sizeof sink);
    if (pair->sinks > 1)
        return snprintf(text, size, "%s to %u sinks: %s", source, pair->sinks, sink);
    return snprintf(text, size, "%s to %s%s", source, sink, pair->ring ? ", on io_uring" : "");
}
