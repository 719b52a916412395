/* SPDX-License-Identifier: MIT
 *
 * What it costs, or saves, that a ring knows a connection's descriptor by number (lib/loop/uring_files.h).
 *
 * First the kernel's part alone: a poll of what is ready, by descriptor and by number, and a number made known and
 * taken back. Then loads on the library's loop: never, by the library's rule, and from the first request on. Each round
 * runs all of them in shuffled order, and once more without numbers, which shows what such a comparison cannot tell
 * apart. CPU time is that of the loop's thread; the peers are a process on the other core that spins.
 *
 *     bench-numbers [ROUNDS]
 */
#include "account.h"
#include "sys.h"
#include "uring_files.h"
#include <errno.h>
#include <limits.h>
#ifdef HAVE_LIBURING
#include <liburing.h>
#endif
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <sluice/sluice.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    CONNECTIONS_MAX = 64,
    ROUNDS_MAX = 200,
    REQUEST = 100,
    RESPONSE = 1024,
    WARMUP_MS = 30,
    WINDOW_MS = 120,
    PATIENCE = 50
};

enum kind { REQUESTS, STREAMS, CONNECTS };
static const struct load {
    const char *name;
    enum kind kind;
    unsigned connections;
} loads[] = {
    {"requests, 1 connection", REQUESTS, 1},    {"requests, 32 connections", REQUESTS, 32},
    {"streams, 1 connection", STREAMS, 1},      {"streams, 32 connections", STREAMS, 32},
    {"connection per request, 1", CONNECTS, 1}, {"connection per request, 32", CONNECTS, 32},
};
enum { LOADS = sizeof loads / sizeof *loads };

enum { NEVER, NEVER_AGAIN, RULE, AT_ONCE, SETTINGS };
static unsigned after[SETTINGS] = {UINT_MAX, UINT_MAX, 0, 0}; /* RULE: the library's */

static struct {
    struct sluice_loop *loop;
    enum kind kind;
    struct connection *connections;
    volatile uint64_t *exchanges; /* that the peers have had */
    uint64_t counted, cpu, handed_over, handed_over_before;
    unsigned prolonged;
    double cost, requests; /* ns, and what the ring was asked for, for each */
    struct sluice_timer timer;
} g;

struct connection {
    struct connection *next, **previous;
    struct sluice_end *end;
    size_t due; /* of the request */
    struct sluice_transfer *transfer;
};

/* --- the peers ---------------------------------------------------------------------------------------------- */

struct peer {
    int fd;
    bool answers; /* the other end of a stream */
    size_t says, hears, heard;
};

static void say(const struct peer *peer)
{
    static const char text[RESPONSE];
    if (send(peer->fd, text, peer->says, MSG_NOSIGNAL) != (ssize_t)peer->says)
        die("send: %s", strerror(errno));
}

static void watch(int epoll, struct peer *peer)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = peer};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, peer->fd, &event) < 0)
        die("epoll_ctl: %s", strerror(errno));
}

static void call(struct peer *peer, const struct sockaddr_in *address)
{
    peer->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (peer->fd < 0 || connect(peer->fd, (const struct sockaddr *)address, sizeof *address) < 0)
        die("connect: %s", strerror(errno));
}

/* address: each exchange is a connection to it. */
_Noreturn static void play_peers(struct peer *peers, unsigned count, const struct sockaddr_in *address)
{
    int epoll = epoll_create1(0);
    pin_to_core(1);
    for (unsigned i = 0; i < count; i++) {
        if (address != NULL)
            call(&peers[i], address);
        watch(epoll, &peers[i]);
        if (!peers[i].answers)
            say(&peers[i]);
    }
    for (;;) {
        struct epoll_event events[CONNECTIONS_MAX];
        int ready = epoll_wait(epoll, events, CONNECTIONS_MAX, 0);
        for (int i = 0; i < ready; i++) {
            struct peer *peer = events[i].data.ptr;
            char text[RESPONSE];
            ssize_t size = recv(peer->fd, text, sizeof text, MSG_DONTWAIT);
            if (size < 0 && errno != EAGAIN)
                die("recv: %s", strerror(errno));
            if (size > 0)
                peer->heard += (size_t)size;
            if (size == 0 && address == NULL)
                _exit(0);
            bool whole = address != NULL ? size == 0 : peer->heard == peer->hears;
            if (!whole)
                continue;
            peer->heard = 0;
            if (!peer->answers)
                ++*g.exchanges;
            if (address != NULL) {
                close(peer->fd);
                call(peer, address);
                watch(epoll, peer);
            }
            say(peer);
        }
    }
}

static uint64_t cpu(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

/* --- the loop ----------------------------------------------------------------------------------------------- */

static void ended(void *context, struct sluice_transfer *transfer, int result)
{
    struct connection *connection = context;
    (void)transfer, (void)result;
    connection->transfer = NULL;
}

static void respond(struct connection *connection)
{
    static const char text[RESPONSE];
    struct sluice_segment segment = {
        .kind = SLUICE_SEGMENT_MEMORY, .flags = SLUICE_SEGMENT_BORROWED, .data = text, .length = RESPONSE};
    struct sluice_transfer_options options = {
        .size = sizeof options, .segments = &segment, .segment_count = 1, .sinks = &connection->end, .sink_count = 1};
    if (sluice_loop_transfer(g.loop, &options, ended, connection, &connection->transfer, NULL, NULL) != 1)
        die("a response did not leave at once");
}

static void part(struct connection *connection)
{
    sluice_loop_forget(g.loop, connection->end);
    sluice_end_close(connection->end);
    *connection->previous = connection->next;
    if (connection->next != NULL)
        connection->next->previous = connection->previous;
    free(connection);
}

static void hear(void *context, const char *data, ssize_t length)
{
    struct connection *connection = context;
    (void)data;
    if (length <= 0)
        die("a connection ended");
    connection->due -= (size_t)length;
    if (connection->due > 0)
        return;
    connection->due = REQUEST;
    respond(connection);
    if (g.kind == CONNECTS)
        part(connection);
}

static struct connection *meet(int fd)
{
    struct connection *connection = malloc(sizeof *connection);
    if (fd < 0 || connection == NULL)
        die("accept");
    *connection = (struct connection){.next = g.connections, .previous = &g.connections, .due = REQUEST};
    if (connection->next != NULL)
        connection->next->previous = &connection->next;
    g.connections = connection;
    if (sluice_end_open(fd, SLUICE_END_OWN_FD, &connection->end) < 0)
        die("an end cannot be had");
    if (g.kind != STREAMS && sluice_loop_receive(g.loop, connection->end, 0, hear, connection) < 0)
        die("receive");
    return connection;
}

static void accepted(void *context, int fd, const struct sockaddr *address, unsigned address_length)
{
    (void)context, (void)address, (void)address_length;
    meet(fd);
}

static void stream(struct connection *from, struct connection *to)
{
    struct sluice_segment segment = {.kind = SLUICE_SEGMENT_STREAM, .end = from->end, .length = SLUICE_UNTIL_END};
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = &segment,
                                              .segment_count = 1,
                                              .sinks = &to->end,
                                              .sink_count = 1,
                                              .route = SLUICE_ROUTE_COPY};
    if (sluice_loop_transfer(g.loop, &options, ended, from, &from->transfer, NULL, NULL) != 0)
        die("a stream did not begin");
}

static int (*real_enter)(int, unsigned, unsigned, unsigned, const void *, size_t);

static int counted_enter(int ring, unsigned submit, unsigned complete, unsigned flags, const void *argument,
                         size_t size)
{
    g.handed_over += submit;
    return real_enter(ring, submit, complete, flags, argument, size);
}

static void window_ends(void *context)
{
    const uint64_t exchanges = *g.exchanges - g.counted;
    (void)context;
    if (exchanges == 0) { /* others had the machine: a longer window */
        if (++g.prolonged == PATIENCE)
            die("the peers wait, and nothing happens");
        sluice_timer_start(g.loop, &g.timer, WINDOW_MS, window_ends, NULL);
        return;
    }
    g.cost = (double)(cpu() - g.cpu) / (double)exchanges;
    g.requests = (double)(g.handed_over - g.handed_over_before) / (double)exchanges;
    sluice_loop_stop(g.loop);
}

static void window_begins(void *context)
{
    (void)context;
    g.cpu = cpu();
    g.counted = *g.exchanges;
    g.handed_over_before = g.handed_over;
    g.prolonged = 0;
    sluice_timer_start(g.loop, &g.timer, WINDOW_MS, window_ends, NULL);
}

static int listening(struct sockaddr_in *ret_address)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) < 0 || listen(fd, 512) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &size) < 0)
        die("listener: %s", strerror(errno));
    *ret_address = address;
    return fd;
}

/* Returns what one exchange cost, in ns. */
static double measure(const struct load *load, unsigned numbers_after)
{
    static const struct sluice_loop_options on_ring = {.size = sizeof on_ring, .kind = SLUICE_LOOP_IO_URING};
    struct peer peers[CONNECTIONS_MAX];
    struct sluice_listener *listener = NULL;
    struct sockaddr_in address;
    unsigned count = load->kind == STREAMS ? 2 * load->connections : load->connections;
    int door = listening(&address), fds[CONNECTIONS_MAX];
    uring_files_after = numbers_after;
    g.kind = load->kind;
    for (unsigned i = 0; i < count; i++) {
        peers[i] = (struct peer){.fd = -1, .says = REQUEST, .hears = RESPONSE};
        if (load->kind == STREAMS)
            peers[i] = (struct peer){.fd = -1, .says = RESPONSE, .hears = RESPONSE, .answers = i & 1};
        if (load->kind == CONNECTS)
            continue;
        call(&peers[i], &address);
        fds[i] = accept4(door, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    }
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (unsigned i = 0; i < count && load->kind != CONNECTS; i++)
            close(fds[i]);
        play_peers(peers, count, load->kind == CONNECTS ? &address : NULL);
    }
    if (child < 0 || sluice_loop_new(&on_ring, &g.loop) < 0)
        die("no ring");
    struct connection *even = NULL;
    for (unsigned i = 0; i < count && load->kind != CONNECTS; i++) {
        close(peers[i].fd);
        struct connection *connection = meet(fds[i]);
        if (load->kind == STREAMS && i & 1) {
            stream(even, connection);
            stream(connection, even);
        }
        even = connection;
    }
    if (load->kind == CONNECTS && sluice_loop_listen(g.loop, door, accepted, NULL, &listener) < 0)
        die("listen");
    sluice_timer_start(g.loop, &g.timer, WARMUP_MS, window_begins, NULL);
    if (sluice_loop_run(g.loop) < 0)
        die("the loop failed");
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    sluice_listener_free(listener);
    for (struct connection *connection = g.connections; connection != NULL; connection = connection->next)
        if (connection->transfer != NULL)
            sluice_loop_transfer_cancel(g.loop, connection->transfer);
    while (g.connections != NULL)
        part(g.connections);
    sluice_loop_free(g.loop);
    close(door);
    return g.cost;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* --- the kernel's part ---------------------------------------------------------------------------------------- */

#ifdef HAVE_LIBURING
enum { BATCH = 32, BATCHES = 2000, CALLS = 4000 };

static double poll_cost(struct io_uring *ring, int fd, bool by_number)
{
    uint64_t before = cpu();
    for (int i = 0; i < BATCHES; i++) {
        for (int k = 0; k < BATCH; k++) {
            struct io_uring_sqe *entry = io_uring_get_sqe(ring);
            io_uring_prep_poll_add(entry, by_number ? 0 : fd, POLLIN);
            entry->flags = by_number ? IOSQE_FIXED_FILE : 0;
        }
        if (io_uring_submit_and_wait(ring, BATCH) != BATCH || io_uring_cq_ready(ring) != BATCH)
            die("polls");
        io_uring_cq_advance(ring, BATCH);
    }
    return (double)(cpu() - before) / (BATCH * BATCHES);
}

static double number_cost(struct io_uring *ring, int fd)
{
    int nothing = -1;
    uint64_t before = cpu();
    for (int i = 0; i < CALLS; i++)
        if (io_uring_register_files_update(ring, 1, &fd, 1) != 1 ||
            io_uring_register_files_update(ring, 1, &nothing, 1) != 1)
            die("a number was refused");
    return (double)(cpu() - before) / CALLS;
}

static void report_kernel(unsigned rounds)
{
    static double plain[ROUNDS_MAX], saved[ROUNDS_MAX], number[ROUNDS_MAX];
    struct io_uring ring;
    struct io_uring_params parameters = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
    int fd = eventfd(1, EFD_CLOEXEC);
    if (fd < 0 || io_uring_queue_init_params(BATCH, &ring, &parameters) < 0 ||
        io_uring_register_files_sparse(&ring, 2) < 0 || io_uring_register_files_update(&ring, 0, &fd, 1) != 1)
        die("no ring with a table");
    for (unsigned i = 0; i < rounds; i++) {
        double first = poll_cost(&ring, fd, i & 1), second = poll_cost(&ring, fd, !(i & 1));
        plain[i] = i & 1 ? second : first;
        saved[i] = i & 1 ? second - first : first - second;
        number[i] = number_cost(&ring, fd);
    }
    io_uring_queue_exit(&ring);
    close(fd);
    qsort(plain, rounds, sizeof *plain, compare);
    qsort(saved, rounds, sizeof *saved, compare);
    qsort(number, rounds, sizeof *number, compare);
    printf("A poll of what is ready: %.0f ns; by number %.0f [%.0f, %.0f] less. A number, and back: %.0f [%.0f, %.0f] "
           "ns. (Median of %u rounds [10th, 90th percentile])\n\n",
           plain[rounds / 2], saved[rounds / 2], saved[rounds / 10], saved[rounds - 1 - rounds / 10],
           number[rounds / 2], number[rounds / 10], number[rounds - 1 - rounds / 10], rounds);
}
#else
static void report_kernel(unsigned rounds)
{
    (void)rounds;
    printf("The kernel's part alone is measured where liburing is there when this is built.\n\n");
}
#endif

/* --- what it says ------------------------------------------------------------------------------------------- */

static void report(const char *name, double costs[SETTINGS][ROUNDS_MAX], unsigned rounds)
{
    double sorted[ROUNDS_MAX];
    memcpy(sorted, costs[NEVER], rounds * sizeof *sorted);
    qsort(sorted, rounds, sizeof *sorted, compare);
    printf("| %-26s | %.2f | %.2f |", name, g.requests, sorted[rounds / 2] / 1000);
    for (int setting = NEVER_AGAIN; setting < SETTINGS; setting++) {
        double logarithms = 0;
        for (unsigned i = 0; i < rounds; i++) {
            sorted[i] = costs[setting][i] / costs[NEVER][i];
            logarithms += log(sorted[i]);
        }
        qsort(sorted, rounds, sizeof *sorted, compare);
        double error = 0, mean = logarithms / rounds;
        for (unsigned i = 0; i < rounds; i++)
            error += (log(sorted[i]) - mean) * (log(sorted[i]) - mean);
        error = 1.96 * sqrt(error / (rounds - 1) / rounds);
        printf(" %.3f [%.3f, %.3f] %.2f-%.2f |", exp(mean), exp(mean - error), exp(mean + error), sorted[rounds / 10],
               sorted[rounds - 1 - rounds / 10]);
    }
    printf("\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    unsigned rounds = argc > 1 ? parse_count(argv[1]) : 30;
    if (argc > 2 || rounds < 2 || rounds > ROUNDS_MAX)
        die("usage: bench-numbers [ROUNDS], 2 to %d", ROUNDS_MAX);
    after[RULE] = uring_files_after;
    g.exchanges = mmap(NULL, sizeof *g.exchanges, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (g.exchanges == MAP_FAILED)
        die("mmap: %s", strerror(errno));
    pin_to_core(0);
    srand(1);
    report_kernel(rounds);
    real_enter = sys.io_uring_enter;
    sys.io_uring_enter = counted_enter;
    printf("CPU of the loop's thread; ratios to no numbers: mean of %u rounds [95 %%], 10th-90th percentile\n", rounds);
    printf(
        "| 1 KB exchanges | requests to the ring | us, no numbers | no numbers again | after %u requests | at once |\n"
        "| --- | --- | --- | --- | --- | --- |\n",
        after[RULE]);
    for (unsigned i = 0; i < LOADS; i++) {
        static double costs[SETTINGS][ROUNDS_MAX];
        for (unsigned round = 0; round < rounds; round++) {
            int order[SETTINGS] = {NEVER, NEVER_AGAIN, RULE, AT_ONCE};
            for (int k = SETTINGS - 1; k > 0; k--) {
                int other = rand() % (k + 1), kept = order[k];
                order[k] = order[other];
                order[other] = kept;
            }
            for (int k = 0; k < SETTINGS; k++)
                costs[order[k]][round] = measure(&loads[i], after[order[k]]);
        }
        report(loads[i].name, costs, rounds);
    }
    return 0;
}
