/* SPDX-License-Identifier: MIT */
#include "world.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static void die(const char *what)
{
    fprintf(stderr, "test world: %s: %s\n", what, strerror(errno));
    abort();
}

/* The thread sanitizer would watch every byte of gigabytes. */
#define UNWATCHED __attribute__((no_sanitize("thread")))

static inline unsigned char UNWATCHED byte_at(uint64_t i)
{
    return (unsigned char)((i * 2654435761u) >> 13 ^ i >> 7);
}

unsigned char pattern_byte(uint64_t i)
{
    return byte_at(i);
}

UNWATCHED size_t pattern_wrong(const unsigned char *data, uint64_t from, size_t size)
{
    size_t i = 0;
    while (i < size && data[i] == byte_at(from + i))
        i++;
    return i;
}

UNWATCHED void pattern_fill(unsigned char *buffer, uint64_t from, size_t size)
{
    for (size_t i = 0; i < size; i++)
        buffer[i] = byte_at(from + i);
}

static void write_all(int fd, const unsigned char *data, size_t size)
{
    while (size > 0) {
        ssize_t written = write(fd, data, size);
        if (written < 0 && errno == EAGAIN) {
            struct pollfd wait = {.fd = fd, .events = POLLOUT};
            poll(&wait, 1, -1);
        } else if (written < 0 && errno != EINTR) {
            return; /* the reader went away: the test's affair */
        } else if (written > 0) {
            data += written;
            size -= (size_t)written;
        }
    }
}

int pattern_file(const char *directory, size_t size)
{
    int fd = directory == NULL ? memfd_create("pattern", MFD_CLOEXEC)
                               : open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0)
        die("file");
    unsigned char *data = malloc(size + 1);
    if (data == NULL)
        die("malloc");
    pattern_fill(data, 0, size);
    write_all(fd, data, size);
    free(data);
    return fd;
}

/* Without privileges only what net.ipv4.tcp_allowed_congestion_control lists may be set: then it is the host's. */
static bool set_cubic(int fd)
{
    return setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5) == 0 || errno == EPERM;
}

void tcp_pair(int fds[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || !set_cubic(listener) || bind(listener, (struct sockaddr *)&address, size) < 0 ||
        listen(listener, 1) < 0 || getsockname(listener, (struct sockaddr *)&address, &size) < 0)
        die("listener");
    fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fds[0] < 0 || !set_cubic(fds[0]) || connect(fds[0], (struct sockaddr *)&address, size) < 0)
        die("connect");
    fds[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fds[1] < 0)
        die("accept");
    int on = 1;
    setsockopt(fds[0], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    close(listener);
}

void udp_pair(int fds[2])
{
    struct sockaddr_in addresses[2];
    int room = 4 << 20; /* a datagram that does not fit is lost */
    for (int i = 0; i < 2; i++) {
        socklen_t size = sizeof addresses[i];
        addresses[i] = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        fds[i] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fds[i] < 0 || bind(fds[i], (struct sockaddr *)&addresses[i], size) < 0 ||
            getsockname(fds[i], (struct sockaddr *)&addresses[i], &size) < 0)
            die("udp");
        if (setsockopt(fds[i], SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room) < 0)
            setsockopt(fds[i], SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    }
    for (int i = 0; i < 2; i++)
        if (connect(fds[i], (struct sockaddr *)&addresses[1 - i], sizeof addresses[i]) < 0)
            die("udp connect");
}

void unix_pair(int fds[2])
{
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
        die("socketpair");
}

void pipe_pair(int fds[2])
{
    if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0)
        die("pipe");
}

struct collector {
    pthread_t thread;
    int fd;
    bool slow;
    unsigned char *data;
    size_t size, room;
};

static void *collect(void *argument)
{
    struct collector *collector = argument;
    for (;;) {
        if (collector->room - collector->size < 65536) {
            collector->room = collector->room * 2 + 65536 * 2;
            collector->data = realloc(collector->data, collector->room);
            if (collector->data == NULL)
                die("realloc");
        }
        size_t want = collector->slow ? 1 + collector->size % 3001 : 65536;
        ssize_t size = read(collector->fd, collector->data + collector->size, want);
        if (size < 0 && errno == EAGAIN) {
            struct pollfd wait = {.fd = collector->fd, .events = POLLIN};
            poll(&wait, 1, -1);
            continue;
        }
        if (size < 0 && errno == EINTR)
            continue;
        if (size <= 0)
            return NULL;
        collector->size += (size_t)size;
        if (collector->slow)
            usleep(20);
    }
}

struct collector *collector_start(int fd, bool slow)
{
    struct collector *collector = calloc(1, sizeof *collector);
    if (collector == NULL)
        die("calloc");
    collector->fd = fd;
    collector->slow = slow;
    if (pthread_create(&collector->thread, NULL, collect, collector) != 0)
        die("thread");
    return collector;
}

unsigned char *collector_finish(struct collector *collector, size_t *ret_size)
{
    pthread_join(collector->thread, NULL);
    unsigned char *data = collector->data;
    *ret_size = collector->size;
    free(collector);
    return data;
}

struct feeder {
    pthread_t thread;
    int fd;
    uint64_t from;
    size_t size;
};

static void *feed(void *argument)
{
    struct feeder *feeder = argument;
    unsigned char chunk[7919];
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE); /* of this thread only: the library under test must raise none */
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    while (feeder->size > 0) {
        size_t part = feeder->size < sizeof chunk ? feeder->size : sizeof chunk;
        pattern_fill(chunk, feeder->from, part);
        write_all(feeder->fd, chunk, part);
        feeder->from += part;
        feeder->size -= part;
    }
    close(feeder->fd);
    return NULL;
}

struct feeder *feeder_start(int fd, uint64_t from, size_t size)
{
    struct feeder *feeder = calloc(1, sizeof *feeder);
    if (feeder == NULL)
        die("calloc");
    *feeder = (struct feeder){.fd = fd, .from = from, .size = size};
    if (pthread_create(&feeder->thread, NULL, feed, feeder) != 0)
        die("thread");
    return feeder;
}

void feeder_finish(struct feeder *feeder)
{
    pthread_join(feeder->thread, NULL);
    free(feeder);
}

int open_descriptors(void)
{
    int count = 0;
    DIR *directory = opendir("/proc/self/fd");
    if (directory == NULL)
        die("/proc/self/fd");
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count - 3; /* ".", "..", and the directory itself */
}

struct sluice_segment memory_segment(const void *data, size_t size)
{
    return (struct sluice_segment){.kind = SLUICE_SEGMENT_MEMORY, .data = data, .length = size};
}

struct sluice_segment file_segment(struct sluice_end *end, uint64_t offset, uint64_t length)
{
    return (struct sluice_segment){.kind = SLUICE_SEGMENT_FILE, .end = end, .offset = offset, .length = length};
}

struct sluice_segment stream_segment(struct sluice_end *end, uint64_t length)
{
    return (struct sluice_segment){.kind = SLUICE_SEGMENT_STREAM, .end = end, .length = length};
}

struct sluice_end *end_of(int fd)
{
    struct sluice_end *end;
    int result = sluice_end_open(fd, SLUICE_END_OWN_FD, &end);
    if (result < 0) {
        errno = -result;
        die("sluice_end_open");
    }
    return end;
}

bool goes_to_tcp(enum sluice_route route)
{
    int fds[2];
    struct sluice_plan plan;
    bool goes = route == SLUICE_ROUTE_AUTO;
    tcp_pair(fds);
    struct sluice_end *source = end_of(pattern_file(NULL, 1)), *sink = end_of(fds[0]);
    struct sluice_segment segment = file_segment(source, 0, 1);
    sluice_plan_make(&segment, sink, &plan);
    for (unsigned i = 0; i < plan.count; i++)
        if (plan.entries[i].route == route)
            goes = plan.entries[i].verdict != SLUICE_NEVER;
    sluice_end_close(source);
    sluice_end_close(sink);
    close(fds[1]);
    return goes;
}

struct on_loop {
    struct sluice_loop *loop;
    int result;
    struct sluice_receipt *receipt;
    struct sluice_error *error;
};

static void transfer_done(void *context, struct sluice_transfer *transfer, int result)
{
    struct on_loop *on_loop = context;
    on_loop->result = result;
    *on_loop->receipt = *sluice_transfer_receipt(transfer, 0);
    *on_loop->error = *sluice_transfer_error(transfer);
    sluice_loop_stop(on_loop->loop);
}

int transfer_on_loop(enum sluice_loop_kind kind, const struct sluice_transfer_options *options,
                     struct sluice_receipt *ret_receipt, struct sluice_error *ret_error)
{
    struct on_loop on_loop = {.receipt = ret_receipt, .error = ret_error};
    struct sluice_loop_options loop_options = {.size = sizeof loop_options, .kind = kind};
    if (sluice_loop_new(&loop_options, &on_loop.loop) < 0) {
        loop_options.kind = SLUICE_LOOP_EPOLL;
        if (sluice_loop_new(&loop_options, &on_loop.loop) < 0)
            die("sluice_loop_new");
    }
    const struct sluice_receipt *receipt;
    int result = sluice_loop_transfer(on_loop.loop, options, transfer_done, &on_loop, NULL, &receipt, ret_error);
    if (result == 0) {
        sluice_loop_run(on_loop.loop);
    } else {
        *ret_receipt = *receipt;
        on_loop.result = result < 0 ? result : 0;
    }
    for (size_t i = 0; i < options->segment_count; i++)
        if (options->segments[i].kind != SLUICE_SEGMENT_MEMORY)
            sluice_loop_forget(on_loop.loop, options->segments[i].end);
    for (size_t i = 0; i < options->sink_count; i++)
        sluice_loop_forget(on_loop.loop, options->sinks[i]);
    sluice_loop_free(on_loop.loop);
    return on_loop.result;
}

struct sluice_transfer_options one_to_one(const struct sluice_segment *segment, struct sluice_end *const *sink,
                                          enum sluice_route route)
{
    return (struct sluice_transfer_options){.size = sizeof(struct sluice_transfer_options),
                                            .segments = segment,
                                            .segment_count = 1,
                                            .sinks = sink,
                                            .sink_count = 1,
                                            .route = route};
}
