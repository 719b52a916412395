/* SPDX-License-Identifier: MIT
 *
 * One scenario, moved for a while by one route of the library or by one bare loop (bare.c), and what that cost, as
 * JSON. bench/mechanisms runs it once for every figure, so that nothing is shared between two of them.
 *
 * Exit codes: 0; 1 something failed; 2 wrong usage; 3 this build, kernel or pair of ends does not have the mechanism.
 */
#include "bare.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sluice/sluice.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000u
#define SINKS_MAX 8
#define CORES_MAX 64
#define PEER_BUFFER (256u << 10)
#define SOURCE_SIZE (8u << 20)
#define DISCARD_STEP (1u << 20)
#define FANOUT_STEP (64u << 20)
#define APPEND_SIZE (256u << 20)

static struct {
    const char *scenario, *congestion, *from, *to, *log, *sync, *bare_name;
    enum sluice_route route;
    enum sluice_loop_kind loop;
    bool bare, reading_peer, create, from_file, fresh;
    size_t size;
    uint64_t operations;
    double seconds, warmup;
    unsigned core, peer_core, sinks, segment;
    struct sockaddr_in target;
} o = {.size = 65536, .seconds = 0.3, .warmup = 0.05, .peer_core = 1, .sinks = 4, .log = "extending", .sync = "end"};

_Noreturn void die(const char *what)
{
    fprintf(stderr, "bench-mover: %s: %s\n", what, strerror(errno));
    exit(1);
}

_Noreturn void absent(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(3);
}

static const char usage[] =
    "usage: bench-mover SCENARIO (--route NAME | --bare NAME) [options]\n"
    "       bench-mover routes\n"
    "scenarios:\n"
    "  tcp      messages from memory to a TCP connection over loopback; --fresh: each from pages made for it\n"
    "  udp      messages from memory to --target ADDRESS:PORT; --segment BYTES sets UDP_SEGMENT\n"
    "  file     --from FILE to --to FILE; --create makes it anew instead of overwriting it\n"
    "  append   records to the log --to FILE; --log extending|preallocated|overwriting, --sync end|each\n"
    "  fanout   --source tcp|FILE to --sinks N TCP connections (4)\n"
    "options:\n"
    "  --size BYTES         of a message or record (65536)\n"
    "  --seconds S          measured window (0.3); --warmup S before it (0.05)\n"
    "  --operations N       do N and check the bytes that arrive, instead of measuring\n"
    "  --congestion NAME    TCP congestion control of both sides\n"
    "  --peer discard|read  spin and discard (the default), or sleep and read\n"
    "  --loop NAME          that carries messages (auto)\n"
    "  --core N, --peer-core N\n"
    "routes: prints the routes that this library has, auto included.\n";

static _Noreturn void wrong_usage(const char *what)
{
    fprintf(stderr, "bench-mover: %s\n%s", what, usage);
    exit(2);
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

/* FNV-1a: bytes at the wrong place change it. */
#define HASH_START 14695981039346656037u

static uint64_t hash_add(uint64_t hash, const char *data, size_t size)
{
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ (unsigned char)data[i]) * 1099511628211u;
    return hash;
}

/* --- what is measured --------------------------------------------------------------------------------------- */

/* Two accounts, because they may not cover the same time: a copy costs its process, making it durable the machine. */
struct account {
    uint64_t wall, process, thread;
};

struct machine {
    uint64_t wall, idle[CORES_MAX], steal[CORES_MAX]; /* ns */
};

static struct {
    bool measuring, over;
    uint64_t bytes, operations, clock_mask, until;
    struct account since, sum;
    struct machine machine_since, machine;
    unsigned cores;
    uint64_t expected; /* hash of what was sent */
    struct sluice_receipt receipt;
    uint64_t receipts;
    uint64_t said_copied, said_by_reference;
} g = {.expected = HASH_START};

static struct account account_now(void)
{
    return (struct account){
        .wall = clock_ns(CLOCK_MONOTONIC),
        .process = clock_ns(CLOCK_PROCESS_CPUTIME_ID),
        .thread = clock_ns(CLOCK_THREAD_CPUTIME_ID),
    };
}

static void account_begin(void)
{
    g.since = account_now();
}

static void account_end(void)
{
    struct account now = account_now();
    g.sum.wall += now.wall - g.since.wall;
    g.sum.process += now.process - g.since.process;
    g.sum.thread += now.thread - g.since.thread;
}

static struct machine machine_now(void)
{
    struct machine now = {.wall = clock_ns(CLOCK_MONOTONIC)};
    const uint64_t tick = SECOND / (uint64_t)sysconf(_SC_CLK_TCK);
    FILE *f = fopen("/proc/stat", "re");
    char line[512];
    while (f && fgets(line, sizeof line, f)) {
        unsigned core;
        unsigned long long user, nice, system, idle, iowait, irq, softirq, steal;
        if (sscanf(line, "cpu%u %llu %llu %llu %llu %llu %llu %llu %llu", &core, &user, &nice, &system, &idle, &iowait,
                   &irq, &softirq, &steal) == 9 &&
            core < CORES_MAX) {
            /* Idle time is measured, where busy time is only counted by ticks. */
            now.idle[core] = (idle + iowait) * tick;
            now.steal[core] = steal * tick;
            if (core >= g.cores)
                g.cores = core + 1;
        }
    }
    if (f)
        fclose(f);
    return now;
}

static void machine_begin(void)
{
    g.machine_since = machine_now();
}

static void machine_end(void)
{
    struct machine now = machine_now();
    g.machine.wall += now.wall - g.machine_since.wall;
    for (unsigned i = 0; i < g.cores; i++) {
        g.machine.idle[i] += now.idle[i] - g.machine_since.idle[i];
        g.machine.steal[i] += now.steal[i] - g.machine_since.steal[i];
    }
}

static void measure_begin(void)
{
    machine_begin();
    account_begin();
}

static void measure_end(void)
{
    account_end();
    machine_end();
}

/* The clock is read once for about 64 KiB of small messages. */
static void window_begin(size_t step)
{
    g.clock_mask = 1;
    while (g.clock_mask * step < 65536)
        g.clock_mask *= 2;
    g.clock_mask--;
    g.measuring = o.operations > 0 || o.warmup <= 0;
    g.until = clock_ns(CLOCK_MONOTONIC) + (uint64_t)((g.measuring ? o.seconds : o.warmup) * SECOND);
    if (g.measuring)
        measure_begin();
}

/* One operation more. Returns whether to go on. */
static bool window_count(uint64_t bytes)
{
    g.bytes += bytes;
    g.operations++;
    if (o.operations > 0) {
        g.over = g.operations >= o.operations;
    } else if ((g.operations & g.clock_mask) == 0 && clock_ns(CLOCK_MONOTONIC) >= g.until) {
        if (g.measuring) {
            g.over = true;
        } else {
            g.measuring = true;
            g.bytes = g.operations = 0;
            g.until = clock_ns(CLOCK_MONOTONIC) + (uint64_t)(o.seconds * SECOND);
            measure_begin();
        }
    }
    if (g.over)
        measure_end();
    return !g.over;
}

static void receipt_add(const struct sluice_receipt *receipt)
{
    sluice_receipt_add(&g.receipt, receipt);
    g.receipts++;
}

/* --- the peer ----------------------------------------------------------------------------------------------- */

/* A connection over loopback, both ends in this process. TCP_NODELAY, as servers set it. */
static void tcp_pair(int ends[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ends[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || ends[0] < 0)
        die("socket");
    for (unsigned i = 0; i < 2 && o.congestion; i++)
        if (setsockopt(i ? listener : ends[0], IPPROTO_TCP, TCP_CONGESTION, o.congestion,
                       (socklen_t)strlen(o.congestion)) < 0)
            die(o.congestion);
    if (bind(listener, (struct sockaddr *)&address, size) < 0 || listen(listener, 1) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) < 0 ||
        connect(ends[0], (struct sockaddr *)&address, size) < 0 ||
        (ends[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) < 0)
        die("a connection over loopback");
    close(listener);
    for (unsigned i = 0; i < 2; i++)
        setsockopt(ends[i], IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
}

static void pin(unsigned core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    if (sched_setaffinity(0, sizeof set, &set) < 0)
        die("sched_setaffinity");
}

struct peer {
    pid_t pid;
    int results;
    unsigned sinks;
};

struct peer_result {
    uint64_t bytes, hash;
};

/* What a stream source delivers, over and over. */
static int make_source(void)
{
    int fd = memfd_create("source", MFD_CLOEXEC);
    struct pool content;
    pool_make(&content, SOURCE_SIZE, false);
    if (write(fd, content.memory, SOURCE_SIZE) != SOURCE_SIZE)
        die("memfd");
    return fd;
}

/* Feeds the source, if there is one, and takes what the sinks get until they end. By default it spins and discards: a
 * core that has to be woken would cost the sender more than the message. With --peer read it sleeps and reads. */
static _Noreturn void peer_run(int source, int content, const int *sinks, unsigned count, int results)
{
    static char buffer[PEER_BUFFER];
    struct peer_result result[SINKS_MAX];
    struct pollfd wait[SINKS_MAX + 1];
    unsigned open = count;
    off_t at = 0;
    const bool hash = o.operations > 0, sleeping = o.reading_peer || hash;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pin(o.peer_core);
    memset(buffer, 1, sizeof buffer);
    for (unsigned i = 0; i < count; i++) {
        result[i] = (struct peer_result){.hash = HASH_START};
        wait[i] = (struct pollfd){.fd = sinks[i], .events = POLLIN};
    }
    wait[count] = (struct pollfd){.fd = source, .events = POLLOUT};
    while (open > 0) {
        if (sleeping && poll(wait, count + 1, -1) < 0)
            die("poll");
        if (wait[count].fd >= 0 && (!sleeping || wait[count].revents)) {
            if (at >= SOURCE_SIZE)
                at = 0;
            if (sendfile(source, content, &at, (size_t)(SOURCE_SIZE - at)) < 0 && errno != EAGAIN)
                wait[count].fd = -1; /* it has been closed */
        }
        for (unsigned i = 0; i < count; i++) {
            if (wait[i].fd < 0 || (sleeping && !wait[i].revents))
                continue;
            ssize_t n = recv(wait[i].fd, buffer, sleeping ? PEER_BUFFER : DISCARD_STEP,
                             MSG_DONTWAIT | (sleeping ? 0 : MSG_TRUNC));
            if (n < 0 && errno == EAGAIN)
                continue;
            if (n <= 0) {
                wait[i].fd = -1;
                open--;
                continue;
            }
            result[i].bytes += (uint64_t)n;
            if (hash)
                result[i].hash = hash_add(result[i].hash, buffer, (size_t)n);
        }
    }
    _exit(write(results, result, count * sizeof *result) < 0);
}

/* ret_source: NULL, or the end of a stream that delivers for ever. */
static struct peer peer_start(int *ret_source, int *sinks, unsigned count)
{
    int source[2] = {-1, -1}, pairs[SINKS_MAX][2], theirs[SINKS_MAX], results[2], content = -1;
    if (ret_source) {
        tcp_pair(source);
        content = make_source();
        fcntl(source[1], F_SETFL, O_NONBLOCK);
    }
    for (unsigned i = 0; i < count; i++) {
        tcp_pair(pairs[i]);
        sinks[i] = pairs[i][0];
        theirs[i] = pairs[i][1];
    }
    if (pipe2(results, O_CLOEXEC) < 0)
        die("pipe2");
    fflush(stdout);
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0) {
        signal(SIGPIPE, SIG_IGN);
        close(source[0]);
        close(results[0]);
        for (unsigned i = 0; i < count; i++)
            close(sinks[i]);
        peer_run(source[1], content, theirs, count, results[1]);
    }
    close(results[1]);
    close(source[1]);
    close(content);
    for (unsigned i = 0; i < count; i++)
        close(theirs[i]);
    if (ret_source)
        *ret_source = source[0];
    return (struct peer){pid, results[0], count};
}

/* After the sinks were closed. Says whether every one got what was sent. */
static void peer_finish(struct peer *peer)
{
    struct peer_result result[SINKS_MAX];
    ssize_t size = read(peer->results, result, sizeof result);
    waitpid(peer->pid, NULL, 0);
    if (o.operations == 0)
        return;
    bool same = size == (ssize_t)(peer->sinks * sizeof *result);
    for (unsigned i = 0; same && i < peer->sinks; i++)
        same = result[i].bytes == g.bytes && result[i].hash == g.expected;
    if (!same) {
        fprintf(stderr, "bench-mover: what arrived is not what was sent\n");
        exit(1);
    }
}

/* Datagrams to an address where somebody listens: checked the same way. */
struct datagram_check {
    int fd;
    uint64_t hash;
};

static void datagram_check_read(struct datagram_check *check, uint64_t until_bytes)
{
    static char buffer[65536];
    static uint64_t got;
    while (got < until_bytes) {
        struct pollfd wait = {.fd = check->fd, .events = POLLIN};
        if (poll(&wait, 1, 1000) <= 0) {
            fprintf(stderr, "bench-mover: datagrams were lost: %llu of %llu bytes came\n", (unsigned long long)got,
                    (unsigned long long)until_bytes);
            exit(1);
        }
        ssize_t n = recv(check->fd, buffer, sizeof buffer, 0);
        if (n < 0)
            die("recv");
        got += (uint64_t)n;
        check->hash = hash_add(check->hash, buffer, (size_t)n);
    }
}

/* --- memory to a socket ------------------------------------------------------------------------------------- */

/* Sends the pool's messages by a loop of the library, one transfer each. */
struct mover {
    struct sluice_loop *loop;
    struct sluice_end *end;
    struct pool pool;
    bool on_its_way, pumping, receipt_wanted;
};

static void memory_released(void *context, const void *data, size_t length)
{
    struct mover *mover = context;
    (void)length;
    pool_give_back(&mover->pool, (unsigned)((size_t)((const char *)data - mover->pool.memory) / mover->pool.stride));
}

static _Noreturn void transfer_failed(const struct sluice_error *error)
{
    char text[1000];
    sluice_error_format(error, text, sizeof text);
    if (error->code == -EOPNOTSUPP && error->delivered == 0)
        absent("%s", error->reason ? error->reason : text);
    fprintf(stderr, "bench-mover: %s\n", text);
    exit(1);
}

/* One in 64 brings its receipt: a sum over all would be a cost that no bare loop has. */
static bool wants_receipt(void)
{
    return g.measuring && (g.operations & 63) == 0;
}

/* What the notification says of a message whose receipt was provisional. */
static void message_settled(void *context, unsigned sink, const struct sluice_receipt *difference)
{
    (void)context, (void)sink;
    sluice_receipt_add(&g.receipt, difference);
}

static void message_done(void *context, struct sluice_transfer *transfer, int result)
{
    struct mover *mover = context;
    if (result < 0)
        transfer_failed(sluice_transfer_error(transfer));
    mover->on_its_way = false;
    if (mover->receipt_wanted)
        receipt_add(sluice_transfer_receipt(transfer, 0));
    if (!g.over)
        window_count(o.size);
}

/* The next message, and in *ret_release how it is freed: its slot of the pool, or memory made for it alone. */
static const char *next_message(struct mover *mover, sluice_release_fn **ret_release, void **ret_context)
{
    unsigned slot = pool_take(&mover->pool);
    char *data = pool_data(&mover->pool, slot);
    *ret_release = memory_released;
    *ret_context = mover;
    if (o.fresh) {
        struct sluice_memory *memory;
        if (sluice_memory_new(o.size, &memory) < 0)
            die("sluice_memory_new");
        data = memcpy(sluice_memory_data(memory), data, o.size);
        pool_give_back(&mover->pool, slot);
        *ret_release = sluice_memory_release;
        *ret_context = memory;
    }
    if (o.operations > 0)
        g.expected = hash_add(g.expected, data, o.size);
    return data;
}

static struct sluice_transfer_options message_transfer(struct mover *mover, const struct sluice_segment *segment)
{
    return (struct sluice_transfer_options){
        .size = sizeof(struct sluice_transfer_options),
        .segments = segment,
        .segment_count = 1,
        .sinks = &mover->end,
        .sink_count = 1,
        .route = o.route,
    };
}

/* At the end of every turn of the loop. Whatever stops it, the socket or memory that is out, makes the loop turn. */
static void pump(void *context)
{
    struct mover *mover = context;
    if (mover->pumping)
        return;
    mover->pumping = true;
    while (!g.over && !mover->on_its_way && mover->pool.free_count > 0) {
        struct sluice_segment segment = {.kind = SLUICE_SEGMENT_MEMORY, .length = o.size};
        segment.data = next_message(mover, &segment.release, &segment.release_context);
        bool wanted = mover->receipt_wanted = wants_receipt();
        struct sluice_transfer_options options = message_transfer(mover, &segment);
        options.settled = wanted ? message_settled : NULL;
        const struct sluice_receipt *receipt;
        struct sluice_error error;
        int result = sluice_loop_transfer(mover->loop, &options, message_done, mover, NULL, &receipt, &error);
        if (result < 0)
            transfer_failed(&error);
        mover->on_its_way = result == 0;
        if (result == 1) {
            if (wanted)
                receipt_add(receipt);
            window_count(o.size);
        }
    }
    mover->pumping = false;
    if (g.over && !mover->on_its_way && mover->pool.free_count == mover->pool.count)
        sluice_loop_stop(mover->loop);
}

/* Ends where this transfer never goes by the forced route. loop: NULL: by none. */
static void require_route(const struct sluice_loop *loop, const struct sluice_transfer_options *options)
{
    struct sluice_plan plan = {0};
    sluice_loop_plan(loop, options, 0, 0, &plan);
    for (unsigned i = 0; i < plan.count; i++)
        if (plan.entries[i].route == options->route && plan.entries[i].verdict == SLUICE_NEVER)
            absent("%s", plan.entries[i].reason ? plan.entries[i].reason : "never for this pair");
}

/* Closes the socket, as bare_memory does. */
static void move_memory(int fd)
{
    struct mover mover = {0};
    pool_make(&mover.pool, o.size, false);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    struct sluice_loop_options options = {.size = sizeof options, .kind = o.loop};
    struct sluice_error error;
    if (o.loop != SLUICE_LOOP_AUTO && sluice_loop_probe(&options, &error) < 0)
        absent("%s", error.reason ? error.reason : "no such loop here");
    /* A descriptor that memory is lent to belongs to its end. */
    if (sluice_loop_new(&options, &mover.loop) < 0 || sluice_end_open(fd, SLUICE_END_OWN_FD, &mover.end) < 0)
        die("a loop and an end");
    struct sluice_segment segment = {.kind = SLUICE_SEGMENT_MEMORY, .length = o.size};
    struct sluice_memory *memory = NULL;
    if (o.fresh && sluice_memory_new(o.size, &memory) < 0)
        die("sluice_memory_new");
    segment.data = memory ? sluice_memory_data(memory) : mover.pool.memory;
    segment.release = memory ? sluice_memory_release : memory_released;
    segment.release_context = memory ? (void *)memory : &mover;
    struct sluice_transfer_options transfer = message_transfer(&mover, &segment);
    require_route(mover.loop, &transfer);
    if (memory)
        sluice_memory_release(memory, NULL, 0);
    sluice_loop_each_turn(mover.loop, pump, &mover);
    window_begin(o.size);
    pump(&mover);
    /* Nothing is out when the last transfer ended within pump and nothing was lent. */
    if (!g.over || mover.on_its_way || mover.pool.free_count < mover.pool.count)
        if (sluice_loop_run(mover.loop) < 0)
            die("sluice_loop_run");
    sluice_loop_forget(mover.loop, mover.end);
    sluice_end_close(mover.end);
    sluice_loop_free(mover.loop);
}

static void bare_memory(int fd)
{
    struct pool pool;
    struct bare_sender sender;
    const struct bare_sender_kind *kind = bare_sender_by_name(o.bare_name);
    if (!kind)
        wrong_usage("no such bare loop");
    pool_make(&pool, o.size, false);
    bare_sender_open(&sender, kind, fd, &pool);
    window_begin(o.size);
    do {
        const char *data = bare_sender_send(&sender, o.fresh);
        if (o.operations > 0)
            g.expected = hash_add(g.expected, data, o.size);
    } while (window_count(o.size));
    bare_sender_finish(&sender);
    shutdown(fd, SHUT_WR); /* a ring may hold it open */
    close(fd);
    g.said_copied = sender.said_copied;
    g.said_by_reference = sender.said_by_reference;
}

static void memory_to_tcp(void)
{
    int fd;
    struct peer peer = peer_start(NULL, &fd, 1);
    pin(o.core);
    (o.bare ? bare_memory : move_memory)(fd);
    peer_finish(&peer);
}

static void memory_to_udp(void)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct datagram_check check = {.fd = -1, .hash = HASH_START};
    if (o.operations > 0) {
        /* To ourselves, into a buffer that holds it all. */
        socklen_t size = sizeof o.target;
        o.target = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        check.fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (check.fd < 0 || bind(check.fd, (struct sockaddr *)&o.target, size) < 0 ||
            getsockname(check.fd, (struct sockaddr *)&o.target, &size) < 0)
            die("a socket to check datagrams with");
        int room = 64 << 20;
        if (setsockopt(check.fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room) < 0)
            setsockopt(check.fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    }
    if (fd < 0 || connect(fd, (struct sockaddr *)&o.target, sizeof o.target) < 0)
        die("a connected datagram socket");
    if (o.segment > 0 && setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &(int){(int)o.segment}, sizeof(int)) < 0)
        absent("UDP_SEGMENT: %s", strerror(errno));
    pin(o.core);
    (o.bare ? bare_memory : move_memory)(fd);
    if (check.fd >= 0) {
        datagram_check_read(&check, g.bytes);
        if (check.hash != g.expected) {
            fprintf(stderr, "bench-mover: what arrived is not what was sent\n");
            exit(1);
        }
    }
}

/* --- files -------------------------------------------------------------------------------------------------- */

static int open_or_die(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0644);
    if (fd < 0)
        die(path);
    return fd;
}

static void move_file(int from, int to, uint64_t size)
{
    struct sluice_end *source, *sink;
    if (sluice_end_open(from, 0, &source) < 0 || sluice_end_open(to, 0, &sink) < 0)
        die("ends");
    struct sluice_segment segment = {.kind = SLUICE_SEGMENT_FILE, .end = source, .length = size};
    struct sluice_transfer_options options = {
        .size = sizeof options,
        .segments = &segment,
        .segment_count = 1,
        .sinks = &sink,
        .sink_count = 1,
        .route = o.route,
    };
    struct sluice_receipt receipt;
    struct sluice_error error;
    require_route(NULL, &options);
    if (sluice_transfer_run(&options, &receipt, &error) < 0)
        transfer_failed(&error);
    receipt_add(&receipt);
    sluice_end_close(source);
    sluice_end_close(sink);
}

/* Opening and closing included, as in a program that copies files. What was written goes to disk in the machine's
 * account, and before the next copy. */
static void file_to_file(void)
{
    struct stat about;
    pin(o.core);
    if (stat(o.from, &about) < 0)
        die(o.from);
    uint64_t size = (uint64_t)about.st_size;
    bare_copy *copy = o.bare ? bare_copy_by_name(o.bare_name) : NULL;
    if (o.bare && !copy)
        wrong_usage("no such bare loop");
    g.measuring = true;
    machine_begin();
    do {
        if (o.create && unlink(o.to) < 0 && errno != ENOENT)
            die(o.to);
        account_begin();
        int from = open_or_die(o.from, O_RDONLY);
        int to = open_or_die(o.to, O_RDWR | O_CREAT | (o.create ? O_EXCL : 0));
        if (o.bare)
            copy(from, to, size);
        else
            move_file(from, to, size);
        close(from);
        account_end();
        if (fsync(to) < 0)
            die("fsync");
        close(to);
        g.bytes += size;
        g.operations++;
    } while (g.sum.wall < (uint64_t)(o.seconds * SECOND) && o.operations == 0);
    machine_end();
}

/* The file as the log finds it. */
static int prepare_log(const struct pool *pool, uint64_t size)
{
    const bool overwriting = strcmp(o.log, "overwriting") == 0;
    int fd = open_or_die(o.to, O_RDWR | O_CREAT | (overwriting ? 0 : O_TRUNC));
    struct stat about;
    if (fstat(fd, &about) < 0)
        die(o.to);
    if (strcmp(o.log, "preallocated") == 0 && (errno = posix_fallocate(fd, 0, (off_t)size)) != 0)
        die("posix_fallocate");
    if (overwriting && (uint64_t)about.st_size < size) {
        for (uint64_t at = 0; at < size; at += pool->message)
            if (pwrite(fd, pool->memory, pool->message, (off_t)at) != (ssize_t)pool->message)
                die("pwrite");
    }
    /* Direct and buffered writers begin alike: nothing in the page cache, nothing left to write. */
    if (fsync(fd) < 0)
        die("fsync");
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    return fd;
}

static void append_records(void)
{
    struct pool pool;
    bool direct = false;
    bare_append *append = o.bare ? bare_append_by_name(o.bare_name, &direct) : NULL;
    if (o.bare && !append)
        wrong_usage("no such bare loop");
    const bool each = strcmp(o.sync, "each") == 0;
    const uint64_t size = APPEND_SIZE / o.size * o.size;
    pin(o.core);
    pool_make(&pool, o.size, true); /* as the library's own buffers are: O_DIRECT pins pages one by one */
    do {
        int fd = prepare_log(&pool, size);
        struct sluice_end *sink = NULL;
        if (direct && fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_DIRECT) < 0)
            absent("O_DIRECT: %s", strerror(errno));
        measure_begin();
        /* The route direct is not taken unasked, and memory is asked for by the end. */
        if (!o.bare && sluice_end_open(fd, o.route == SLUICE_ROUTE_DIRECT ? SLUICE_END_DIRECT : 0, &sink) < 0)
            die("an end");
        for (uint64_t at = 0; at < size; at += o.size) {
            unsigned slot = pool_take(&pool);
            const char *record = pool_data(&pool, slot);
            if (o.bare) {
                append(fd, record, o.size, at);
            } else {
                struct sluice_segment segment = {.kind = SLUICE_SEGMENT_MEMORY, .data = record, .length = o.size};
                struct sluice_transfer_options options = {
                    .size = sizeof options,
                    .segments = &segment,
                    .segment_count = 1,
                    .sinks = &sink,
                    .sink_count = 1,
                    .sink_offset = at,
                    .route = o.route,
                };
                struct sluice_receipt receipt;
                struct sluice_error error;
                if (at == 0)
                    require_route(NULL, &options);
                if (sluice_transfer_run(&options, &receipt, &error) < 0)
                    transfer_failed(&error);
                receipt_add(&receipt);
            }
            pool_give_back(&pool, slot);
            if (each && fdatasync(fd) < 0)
                die("fdatasync");
            g.operations++;
        }
        if (!each && fdatasync(fd) < 0)
            die("fdatasync");
        sluice_end_close(sink);
        measure_end();
        close(fd);
        g.bytes += size;
    } while (g.sum.wall < (uint64_t)(o.seconds * SECOND) && o.operations == 0);
}

/* --- one source, several sinks ------------------------------------------------------------------------------ */

static void expect_source(uint64_t from, uint64_t size)
{
    static char *content;
    if (!content) {
        content = mmap(NULL, SOURCE_SIZE, PROT_READ, MAP_SHARED, make_source(), 0);
        if (content == MAP_FAILED)
            die("mmap");
    }
    for (uint64_t at = from; at < from + size;) {
        uint64_t here = at % SOURCE_SIZE, step = from + size - at;
        if (step > SOURCE_SIZE - here)
            step = SOURCE_SIZE - here;
        g.expected = hash_add(g.expected, content + here, (size_t)step);
        at += step;
    }
}

static void expect_file(uint64_t size)
{
    char *content = mmap(NULL, size, PROT_READ, MAP_SHARED, open_or_die(o.from, O_RDONLY), 0);
    if (content == MAP_FAILED)
        die("mmap");
    g.expected = hash_add(g.expected, content, size);
    munmap(content, size);
}

static void move_fanout(struct sluice_end *source, struct sluice_end *const *sinks, uint64_t size)
{
    struct sluice_segment segment = {
        .kind = o.from_file ? SLUICE_SEGMENT_FILE : SLUICE_SEGMENT_STREAM, .end = source, .length = size};
    struct sluice_transfer_options options = {
        .size = sizeof options,
        .segments = &segment,
        .segment_count = 1,
        .sinks = sinks,
        .sink_count = o.sinks,
        .route = o.route,
    };
    struct sluice_receipt receipts[SINKS_MAX];
    struct sluice_error error;
    if (sluice_transfer_run(&options, receipts, &error) < 0)
        transfer_failed(&error);
    for (unsigned i = 0; i < o.sinks && g.measuring; i++)
        receipt_add(&receipts[i]);
}

static void fan_out(void)
{
    struct sluice_end *source_end = NULL, *ends[SINKS_MAX];
    int source, sinks[SINKS_MAX];
    uint64_t size = FANOUT_STEP;
    bare_fanout *bare = o.bare ? bare_fanout_by_name(o.bare_name, o.from_file) : NULL;
    if (o.bare && !bare)
        absent("no such bare loop from this source");
    struct peer peer = peer_start(o.from_file ? NULL : &source, sinks, o.sinks);
    pin(o.core);
    if (o.from_file) {
        struct stat about;
        source = open_or_die(o.from, O_RDONLY);
        if (fstat(source, &about) < 0)
            die(o.from);
        size = (uint64_t)about.st_size;
    }
    if (!o.bare) {
        if (sluice_end_open(source, 0, &source_end) < 0)
            die("an end");
        for (unsigned i = 0; i < o.sinks; i++)
            if (sluice_end_open(sinks[i], 0, &ends[i]) < 0)
                die("an end");
    }
    window_begin(size);
    do {
        if (o.operations > 0 && o.from_file)
            expect_file(size);
        if (o.operations > 0 && !o.from_file)
            expect_source(g.bytes, size);
        if (o.from_file && lseek(source, 0, SEEK_SET) < 0)
            die("lseek");
        if (o.bare)
            bare(source, sinks, o.sinks, size);
        else
            move_fanout(source_end, ends, size);
    } while (window_count(size));
    sluice_end_close(source_end);
    for (unsigned i = 0; i < o.sinks; i++) {
        if (!o.bare)
            sluice_end_close(ends[i]);
        close(sinks[i]);
    }
    close(source);
    peer_finish(&peer);
}

/* --- command line ------------------------------------------------------------------------------------------- */

/* A forced route that carried nothing was not there to be measured. */
static void check_receipt(void)
{
    if (o.bare || o.route == SLUICE_ROUTE_AUTO || g.receipts == 0 || g.receipt.routes[o.route].bytes > 0)
        return;
    const struct sluice_fallback *why = g.receipt.fallback_count > 0 ? &g.receipt.fallbacks[0] : NULL;
    absent("it carried nothing%s%s", why ? ": " : "", why && why->reason ? why->reason : "");
}

static void print_results(void)
{
    char receipt[16384];
    printf("{\"bytes\": %llu, \"operations\": %llu", (unsigned long long)g.bytes, (unsigned long long)g.operations);
    printf(", \"wall_ns\": %llu, \"process_cpu_ns\": %llu, \"thread_cpu_ns\": %llu", (unsigned long long)g.sum.wall,
           (unsigned long long)g.sum.process, (unsigned long long)g.sum.thread);
    printf(", \"machine_wall_ns\": %llu, \"core_busy_ns\": [", (unsigned long long)g.machine.wall);
    for (unsigned i = 0; i < g.cores; i++) {
        uint64_t idle = g.machine.idle[i] + g.machine.steal[i];
        printf("%s%llu", i ? ", " : "", (unsigned long long)(g.machine.wall > idle ? g.machine.wall - idle : 0));
    }
    printf("], \"core_steal_ns\": [");
    for (unsigned i = 0; i < g.cores; i++)
        printf("%s%llu", i ? ", " : "", (unsigned long long)g.machine.steal[i]);
    printf("], \"said_copied\": %llu, \"said_by_reference\": %llu", (unsigned long long)g.said_copied,
           (unsigned long long)g.said_by_reference);
    if (o.operations > 0)
        printf(", \"hash\": \"%016llx\"", (unsigned long long)g.expected);
    if (g.receipts > 0) {
        sluice_receipt_format_json(&g.receipt, receipt, sizeof receipt);
        printf(", \"receipts\": %llu, \"receipt\": %s", (unsigned long long)g.receipts, receipt);
    }
    printf("}\n");
}

static void parse_target(char *text)
{
    char *colon = strrchr(text, ':');
    if (!colon)
        wrong_usage("--target wants ADDRESS:PORT");
    *colon = '\0';
    o.target = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(colon + 1))};
    if (inet_pton(AF_INET, text, &o.target.sin_addr) != 1)
        wrong_usage("--target wants an IPv4 address");
}

static void parse(int argc, char **argv)
{
    enum {
        ROUTE = 1,
        BARE,
        SIZE,
        SECONDS,
        WARMUP,
        OPERATIONS,
        CONGESTION,
        PEER,
        CORE,
        PEER_CORE,
        TARGET,
        SEGMENT,
        FROM,
        TO,
        CREATE,
        LOG,
        SYNC,
        SOURCE,
        SINKS,
        LOOP,
        FRESH
    };
    static const struct option options[] = {
        {"route", required_argument, NULL, ROUTE},
        {"bare", required_argument, NULL, BARE},
        {"size", required_argument, NULL, SIZE},
        {"seconds", required_argument, NULL, SECONDS},
        {"warmup", required_argument, NULL, WARMUP},
        {"operations", required_argument, NULL, OPERATIONS},
        {"congestion", required_argument, NULL, CONGESTION},
        {"peer", required_argument, NULL, PEER},
        {"core", required_argument, NULL, CORE},
        {"peer-core", required_argument, NULL, PEER_CORE},
        {"target", required_argument, NULL, TARGET},
        {"segment", required_argument, NULL, SEGMENT},
        {"from", required_argument, NULL, FROM},
        {"to", required_argument, NULL, TO},
        {"create", no_argument, NULL, CREATE},
        {"log", required_argument, NULL, LOG},
        {"sync", required_argument, NULL, SYNC},
        {"source", required_argument, NULL, SOURCE},
        {"sinks", required_argument, NULL, SINKS},
        {"loop", required_argument, NULL, LOOP},
        {"fresh", no_argument, NULL, FRESH},
        {0},
    };
    int c, route = -1;
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case ROUTE:
            route = sluice_route_by_name(optarg);
            if (route < 0)
                absent("this build has no route %s", optarg);
            o.route = (enum sluice_route)route;
            break;
        case BARE:
            o.bare = true;
            o.bare_name = optarg;
            break;
        case SIZE:
            o.size = strtoull(optarg, NULL, 10);
            break;
        case SECONDS:
            o.seconds = atof(optarg);
            break;
        case WARMUP:
            o.warmup = atof(optarg);
            break;
        case OPERATIONS:
            o.operations = strtoull(optarg, NULL, 10);
            break;
        case CONGESTION:
            o.congestion = optarg;
            break;
        case PEER:
            o.reading_peer = strcmp(optarg, "read") == 0;
            break;
        case CORE:
            o.core = (unsigned)atoi(optarg);
            break;
        case PEER_CORE:
            o.peer_core = (unsigned)atoi(optarg);
            break;
        case TARGET:
            parse_target(optarg);
            break;
        case SEGMENT:
            o.segment = (unsigned)atoi(optarg);
            break;
        case FROM:
            o.from = optarg;
            break;
        case TO:
            o.to = optarg;
            break;
        case CREATE:
            o.create = true;
            break;
        case LOG:
            o.log = optarg;
            break;
        case SYNC:
            o.sync = optarg;
            break;
        case SOURCE:
            o.from_file = strcmp(optarg, "tcp") != 0;
            o.from = optarg;
            break;
        case FRESH:
            o.fresh = true;
            break;
        case LOOP: {
            int kind = sluice_loop_kind_by_name(optarg);
            if (kind < 0)
                wrong_usage("no such loop");
            o.loop = (enum sluice_loop_kind)kind;
            break;
        }
        case SINKS:
            o.sinks = (unsigned)atoi(optarg);
            break;
        default:
            wrong_usage("unknown option");
        }
    }
    if (optind + 1 != argc)
        wrong_usage("one scenario");
    o.scenario = argv[optind];
    if (strcmp(o.scenario, "routes") != 0 && (route >= 0) == o.bare)
        wrong_usage("either --route or --bare");
    if (o.size == 0 || o.sinks == 0 || o.sinks > SINKS_MAX)
        wrong_usage("--size begins at 1, --sinks goes from 1 to 8");
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } scenarios[] = {
        {"tcp", memory_to_tcp},     {"udp", memory_to_udp}, {"file", file_to_file},
        {"append", append_records}, {"fanout", fan_out},
    };
    parse(argc, argv);
    if (strcmp(o.scenario, "routes") == 0) {
        for (int i = 0; i < SLUICE_ROUTE_COUNT; i++)
            puts(sluice_route_name((enum sluice_route)i));
        return 0;
    }
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++) {
        if (strcmp(o.scenario, scenarios[i].name) == 0) {
            scenarios[i].run();
            check_receipt();
            print_results();
            return 0;
        }
    }
    wrong_usage("no such scenario");
}
