/* SPDX-License-Identifier: MIT
 *
 * Mapped pages of a TCP connection: the receiver, and the route.
 */
#include "../check.h"
#include "op.h"
#include "sys.h"
#include "world.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define SIZE ((4u << 20) + 777)
#define SEGMENT 8204 /* two pages and the TCP options */

/* A connection whose segments carry whole pages: [0] sends, [1] receives. */
static void paged_pair(int fds[2])
{
    int listener = socket(AF_INET, SOCK_STREAM, 0), segment = SEGMENT;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    CHECK_EQ(setsockopt(listener, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment), 0);
    CHECK_EQ(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    CHECK_EQ(listen(listener, 1), 0);
    CHECK_EQ(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_EQ(setsockopt(fds[0], IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment), 0);
    setsockopt(fds[0], IPPROTO_TCP, TCP_CONGESTION, "cubic", 5);
    setsockopt(listener, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5);
    CHECK_EQ(connect(fds[0], (struct sockaddr *)&address, sizeof address), 0);
    fds[1] = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    CHECK(fds[1] >= 0);
    close(listener);
}

/* Sends the pattern in the kernel's own whole pages, as only those can be mapped; every `odd` pages some bytes more. */
struct sender {
    int fd;
    size_t size, odd;
    bool reset;
    pthread_t thread;
};

static void send_pages(int fd, uint64_t from, size_t size)
{
    static _Thread_local unsigned char piece[32768];
    int through[2];
    CHECK_EQ(pipe(through), 0);
    while (size > 0) {
        size_t part = size < sizeof piece ? size : sizeof piece;
        pattern_fill(piece, from, part);
        CHECK_EQ(write(through[1], piece, part), (ssize_t)part);
        for (size_t left = part; left > 0;) {
            ssize_t moved = splice(through[0], NULL, fd, NULL, left, SPLICE_F_MORE);
            if (moved <= 0) { /* the receiver is gone */
                size = part;
                break;
            }
            left -= (size_t)moved;
        }
        from += part;
        size -= part;
    }
    close(through[0]);
    close(through[1]);
}

static void *send_all(void *argument)
{
    struct sender *sender = argument;
    sigset_t pipe_signal; /* which splice raises when the receiver is gone, unlike send it cannot be asked not to */
    sigemptyset(&pipe_signal);
    sigaddset(&pipe_signal, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_signal, NULL);
    for (uint64_t at = 0; at < sender->size;) {
        size_t part = sender->odd != 0 ? sender->odd * 4096 : sender->size;
        part = sender->size - at < part ? (size_t)(sender->size - at) : part;
        send_pages(sender->fd, at, part);
        at += part;
        if (sender->odd != 0 && at < sender->size) {
            unsigned char few[100];
            size_t more = sender->size - at < sizeof few ? (size_t)(sender->size - at) : sizeof few;
            pattern_fill(few, at, more);
            if (send(sender->fd, few, more, MSG_NOSIGNAL) != (ssize_t)more)
                break; /* the receiver is gone */
            at += more;
        }
    }
    if (sender->reset) {
        struct linger linger = {.l_onoff = 1, .l_linger = 0};
        setsockopt(sender->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    }
    close(sender->fd);
    return NULL;
}

static void sender_start(struct sender *sender)
{
    CHECK_EQ(pthread_create(&sender->thread, NULL, send_all, sender), 0);
}

static int next_piece(struct sluice_receiver *receiver, int fd, struct sluice_piece *piece)
{
    for (;;) {
        int result = sluice_receiver_next(receiver, piece);
        if (result != -EAGAIN)
            return result;
        struct pollfd readable = {.fd = fd, .events = POLLIN};
        CHECK(poll(&readable, 1, 10000) == 1);
    }
}

static void right(const struct sluice_piece *piece, uint64_t at)
{
    CHECK(piece->length > 0);
    for (size_t i = 0; i < piece->length; i++)
        if ((unsigned char)piece->data[i] != pattern_byte(at + i))
            CHECK_FAIL("byte %llu is wrong%s", (unsigned long long)(at + i), piece->mapped ? " (mapped)" : "");
}

TEST("a receiver hands out every byte once, mapped where whole pages come and copied elsewhere, and tells which")
{
    for (size_t odd = 0; odd <= 7; odd += 7) {
        int fds[2];
        struct sluice_receiver *receiver;
        struct sluice_piece piece;
        paged_pair(fds);
        struct sender sender = {.fd = fds[0], .size = SIZE, .odd = odd};
        struct sluice_end *end = end_of(fds[1]);
        CHECK_EQ(sluice_receiver_new(end, NULL, &receiver), 0);
        sender_start(&sender);
        uint64_t at = 0, mapped = 0;
        int result;
        while ((result = next_piece(receiver, fds[1], &piece)) == 1) {
            right(&piece, at);
            CHECK(!piece.mapped || (piece.length % 4096 == 0 && (uintptr_t)piece.data % 4096 == 0));
            at += piece.length;
            mapped += piece.mapped ? piece.length : 0;
            sluice_receiver_release(receiver, &piece);
        }
        CHECK_EQ(result, 0);
        CHECK_EQ(at, SIZE);
        const struct sluice_receipt *receipt = sluice_receiver_receipt(receiver);
        CHECK_EQ(receipt->bytes, SIZE);
        CHECK_EQ(receipt->by_reference, mapped);
        CHECK_EQ(receipt->copy_bytes, SIZE - mapped);
        CHECK_EQ(receipt->routes[SLUICE_ROUTE_TCP_RECEIVE].bytes, mapped);
        CHECK(sluice_receipt_is_final(receipt));
        printf("# %llu of %u bytes mapped\n", (unsigned long long)mapped, SIZE);
        CHECK(odd != 0 || mapped > SIZE / 2);
        CHECK(mapped < SIZE); /* the last 777 bytes are no page */
        sluice_receiver_free(receiver);
        sluice_end_close(end);
        pthread_join(sender.thread, NULL);
    }
}

TEST("pieces stay right while others come, until they are released in any order, and after the connection's end")
{
    int fds[2];
    struct sluice_receiver *receiver;
    struct sluice_piece pieces[8], extra;
    uint64_t at[9] = {0};
    struct sluice_receiver_options options = {.size = sizeof options, .piece = 16384, .pieces = 8};
    paged_pair(fds);
    struct sender sender = {.fd = fds[0], .size = SIZE, .odd = 3};
    struct sluice_end *end = end_of(fds[1]);
    CHECK_EQ(sluice_receiver_new(end, &options, &receiver), 0);
    sender_start(&sender);
    for (int i = 0; i < 8; i++) {
        CHECK_EQ(next_piece(receiver, fds[1], &pieces[i]), 1);
        CHECK(pieces[i].length <= 16384);
        at[i + 1] = at[i] + pieces[i].length;
    }
    CHECK_EQ(sluice_receiver_next(receiver, &extra), -ENOBUFS);
    for (int round = 0; round < 100; round++) {
        int i = (round * 5) % 8;
        right(&pieces[i], at[i]);
        sluice_receiver_release(receiver, &pieces[i]);
        sluice_receiver_release(receiver, &pieces[i]); /* twice does no harm */
        at[i] = at[8];
        CHECK_EQ(next_piece(receiver, fds[1], &pieces[i]), 1);
        at[8] += pieces[i].length;
    }
    shutdown(fds[1], SHUT_RDWR);
    shutdown(fds[0], SHUT_RDWR); /* a sender that waits for room in a window of zero would wait for ever */
    pthread_join(sender.thread, NULL);
    for (int i = 0; i < 8; i++)
        right(&pieces[i], at[i]);
    sluice_receiver_free(receiver); /* with all of them out */
    sluice_end_close(end);
}

TEST("nothing there is EAGAIN, the peer's end 0, a reset ECONNRESET, and urgent data holds nothing up")
{
    int fds[2];
    struct sluice_receiver *receiver;
    struct sluice_piece piece;
    unsigned char bytes[10000];
    pattern_fill(bytes, 0, sizeof bytes);
    for (int reset = 0; reset < 2; reset++) {
        paged_pair(fds);
        struct sluice_end *end = end_of(fds[1]);
        CHECK_EQ(sluice_receiver_new(end, NULL, &receiver), 0);
        CHECK_EQ(sluice_receiver_next(receiver, &piece), -EAGAIN);
        CHECK_EQ(sluice_receiver_next(receiver, &piece), -EAGAIN);
        CHECK_EQ(send(fds[0], bytes, 5000, 0), 5000);
        CHECK_EQ(send(fds[0], "!", 1, MSG_OOB), 1);
        CHECK_EQ(send(fds[0], bytes + 5000, 5000, 0), 5000);
        uint64_t at = 0;
        while (at < 10000) {
            CHECK_EQ(next_piece(receiver, fds[1], &piece), 1);
            right(&piece, at);
            at += piece.length;
            sluice_receiver_release(receiver, &piece);
        }
        CHECK_EQ(at, 10000);
        struct linger linger = {.l_onoff = reset, .l_linger = 0};
        setsockopt(fds[0], SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
        close(fds[0]);
        CHECK_EQ(next_piece(receiver, fds[1], &piece), reset ? -ECONNRESET : 0);
        sluice_receiver_free(receiver);
        sluice_end_close(end);
    }
}

TEST("what is no TCP connection has no receiver")
{
    int fds[2];
    struct sluice_receiver *receiver;
    unix_pair(fds);
    struct sluice_end *end = end_of(fds[0]);
    CHECK_EQ(sluice_receiver_new(end, NULL, &receiver), -ENOTSOCK);
    struct sluice_receiver_options options = {.size = sizeof options, .pieces = 65};
    CHECK_EQ(sluice_receiver_new(end, &options, &receiver), -EINVAL);
    sluice_receiver_free(NULL);
    sluice_end_close(end);
    close(fds[1]);
}

static struct {
    unsigned asked, unmapped;
    int error; /* of asking for mapped pages; 0: none is mapped, and so much is to be copied: */
    uint32_t to_copy;
    int refuses; /* mapping this descriptor */
    const void *data;
    size_t length;
} kernel;

static int ask_for_pages(int fd, int level, int name, void *value, socklen_t *size)
{
    if (level != IPPROTO_TCP || name != TCP_ZEROCOPY_RECEIVE)
        return getsockopt(fd, level, name, value, size);
    kernel.asked++;
    errno = kernel.error;
    ((struct received *)value)->length = 0;
    ((struct received *)value)->to_copy = kernel.to_copy;
    return kernel.error != 0 ? -1 : 0;
}

static void *refuse_mapping(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    if (fd < 0 || fd != kernel.refuses)
        return mmap(address, size, protection, flags, fd, offset);
    errno = ENODEV;
    return MAP_FAILED;
}

static int take_note(void *address, size_t size, int advice)
{
    CHECK_EQ(advice, MADV_DONTNEED);
    kernel.unmapped++;
    kernel.data = address;
    kernel.length = size;
    return madvise(address, size, advice);
}

TEST("a kernel that maps nothing is asked once; everything is copied, and the receipt says why")
{
    const struct sys before = sys;
    sys.getsockopt = ask_for_pages;
    sys.mmap = refuse_mapping;
    for (int maps = 0; maps < 2; maps++) {
        int fds[2];
        struct sluice_receiver *receiver;
        struct sluice_piece piece;
        unsigned char bytes[20000];
        paged_pair(fds);
        memset(&kernel, 0, sizeof kernel);
        kernel.error = EINVAL;
        kernel.refuses = maps ? -1 : fds[1];
        struct sluice_end *end = end_of(fds[1]);
        CHECK_EQ(sluice_receiver_new(end, NULL, &receiver), 0);
        for (uint64_t at = 0; at < 3 * sizeof bytes; at += sizeof bytes) {
            pattern_fill(bytes, at, sizeof bytes);
            CHECK_EQ(send(fds[0], bytes, sizeof bytes, 0), sizeof bytes);
            for (uint64_t got = at; got < at + sizeof bytes; got += piece.length) {
                CHECK_EQ(next_piece(receiver, fds[1], &piece), 1);
                CHECK(!piece.mapped);
                right(&piece, got);
                sluice_receiver_release(receiver, &piece);
            }
        }
        const struct sluice_receipt *receipt = sluice_receiver_receipt(receiver);
        CHECK_EQ(kernel.asked, (unsigned)maps);
        CHECK_EQ(receipt->copied, 3 * sizeof bytes);
        CHECK_EQ(receipt->fallback_count, 1);
        CHECK_EQ(receipt->fallbacks[0].from, SLUICE_ROUTE_TCP_RECEIVE);
        CHECK_EQ(receipt->fallbacks[0].to, SLUICE_ROUTE_COPY);
        CHECK_EQ(receipt->fallbacks[0].error, maps ? EINVAL : ENODEV);
        CHECK(receipt->fallbacks[0].reason != NULL);
        sluice_receiver_free(receiver);
        sluice_end_close(end);
        close(fds[0]);
    }
    sys = before;
}

TEST("what the kernel says must be copied is copied in pieces, no more, before it is asked for pages again")
{
    static const size_t lengths[] = {4096, 4096, 1808};
    const struct sys before = sys;
    int fds[2];
    struct sluice_receiver *receiver;
    struct sluice_piece piece;
    unsigned char bytes[20000];
    struct sluice_receiver_options options = {.size = sizeof options, .piece = 4096, .pieces = 1};
    paged_pair(fds);
    memset(&kernel, 0, sizeof kernel);
    kernel.to_copy = 10000;
    struct sluice_end *end = end_of(fds[1]);
    CHECK_EQ(sluice_receiver_new(end, &options, &receiver), 0);
    sys.getsockopt = ask_for_pages;
    pattern_fill(bytes, 0, sizeof bytes);
    CHECK_EQ(send(fds[0], bytes, sizeof bytes, 0), sizeof bytes);
    uint64_t at = 0;
    for (unsigned i = 0; i < 6; i++) {
        CHECK_EQ(next_piece(receiver, fds[1], &piece), 1);
        CHECK_EQ(piece.length, lengths[i % 3]);
        CHECK_EQ(kernel.asked, 1 + i / 3);
        right(&piece, at);
        at += piece.length;
        sluice_receiver_release(receiver, &piece);
    }
    sys = before;
    sluice_receiver_free(receiver);
    sluice_end_close(end);
    close(fds[0]);
}

TEST("a mapped piece is unmapped when it is released, a copied one is not touched")
{
    const struct sys before = sys;
    int fds[2];
    struct sluice_receiver *receiver;
    struct sluice_piece piece;
    paged_pair(fds);
    struct sender sender = {.fd = fds[0], .size = SIZE};
    struct sluice_end *end = end_of(fds[1]);
    CHECK_EQ(sluice_receiver_new(end, NULL, &receiver), 0);
    memset(&kernel, 0, sizeof kernel);
    sys.madvise = take_note;
    sender_start(&sender);
    unsigned mapped = 0;
    while (next_piece(receiver, fds[1], &piece) == 1) {
        mapped += piece.mapped;
        sluice_receiver_release(receiver, &piece);
        CHECK_EQ(kernel.unmapped, mapped);
        CHECK(!piece.mapped || (kernel.data == piece.data && kernel.length == piece.length));
    }
    CHECK(mapped > 0);
    sys = before;
    sluice_receiver_free(receiver);
    sluice_end_close(end);
    pthread_join(sender.thread, NULL);
}

TEST("released pages go back: a million bytes at a time through one connection leave no more memory in use")
{
    int fds[2];
    struct sluice_receiver *receiver;
    struct sluice_piece piece;
    struct rusage before, after;
    paged_pair(fds);
    struct sender sender = {.fd = fds[0], .size = 64u << 20};
    struct sluice_end *end = end_of(fds[1]);
    CHECK_EQ(sluice_receiver_new(end, NULL, &receiver), 0);
    getrusage(RUSAGE_SELF, &before);
    int descriptors = open_descriptors();
    sender_start(&sender);
    uint64_t at = 0;
    while (next_piece(receiver, fds[1], &piece) == 1) {
        CHECK(piece.data[0] == (char)pattern_byte(at));
        at += piece.length;
        sluice_receiver_release(receiver, &piece);
    }
    CHECK_EQ(at, 64u << 20);
    pthread_join(sender.thread, NULL);
    getrusage(RUSAGE_SELF, &after);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    CHECK(after.ru_maxrss - before.ru_maxrss < 8192);
#endif
    CHECK(open_descriptors() < descriptors); /* the sender's socket */
    sluice_receiver_free(receiver);
    sluice_end_close(end);
}

TEST("the route, when forced, delivers every byte to files, pipes, sockets and memory")
{
    for (int kind = 0; kind < 4; kind++) {
        int in[2], out[2] = {-1, -1};
        unsigned char *memory = malloc(SIZE);
        struct sluice_end *sink;
        struct sluice_receipt receipt;
        struct collector *collector = NULL;
        paged_pair(in);
        struct sender sender = {.fd = in[0], .size = SIZE, .odd = kind % 2 ? 5 : 0};
        struct sluice_segment segment = stream_segment(end_of(in[1]), kind == 2 ? SIZE : SLUICE_UNTIL_END);
        if (kind == 0) {
            out[0] = pattern_file(NULL, 0);
            sink = end_of(dup(out[0]));
        } else if (kind == 1) {
            CHECK_EQ(sluice_end_open_memory(memory, SIZE, &sink), 0);
        } else {
            (kind == 2 ? pipe_pair : unix_pair)(out);
            collector = collector_start(out[0], false);
            sink = end_of(out[1]);
        }
        struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_TCP_RECEIVE);
        sender_start(&sender);
        CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
        pthread_join(sender.thread, NULL);
        sluice_end_close(sink);
        CHECK_EQ(receipt.bytes, SIZE);
        CHECK_EQ(receipt.copied, SIZE);
        uint64_t mapped = receipt.routes[SLUICE_ROUTE_TCP_RECEIVE].bytes;
        CHECK_EQ(mapped + receipt.routes[SLUICE_ROUTE_COPY].bytes, SIZE);
        CHECK_EQ(receipt.copy_bytes, mapped + (SIZE - mapped) * (kind == 1 ? 1 : 2));
        CHECK(mapped > 0);
        CHECK_EQ(receipt.fallback_count, 0);
        if (kind == 0)
            CHECK_EQ(pread(out[0], memory, SIZE, 0), SIZE);
        size_t size = SIZE;
        unsigned char *data = collector != NULL ? collector_finish(collector, &size) : memory;
        CHECK_EQ(size, SIZE);
        for (size_t i = 0; i < SIZE; i++)
            if (data[i] != pattern_byte(i))
                CHECK_FAIL("byte %zu is wrong", i);
        if (collector != NULL)
            free(data);
        free(memory);
        sluice_end_close(segment.end);
        if (out[0] >= 0)
            close(out[0]);
    }
}

TEST("left to itself, sluice does not choose it, and says why; for anything but TCP it is refused")
{
    int fds[2], other[2];
    struct sluice_plan plan;
    tcp_pair(fds);
    unix_pair(other);
    struct sluice_end *source = end_of(fds[1]), *sink = end_of(other[0]);
    struct sluice_segment segment = stream_segment(source, SLUICE_UNTIL_END);
    CHECK_EQ(sluice_plan_make(&segment, sink, &plan), 0);
    for (unsigned i = 0; i < plan.count; i++)
        if (plan.entries[i].route == SLUICE_ROUTE_TCP_RECEIVE) {
            CHECK(i > 0);
            CHECK_EQ(plan.entries[i].verdict, SLUICE_NOT_NOW);
            CHECK(strstr(plan.entries[i].reason, "dearer") != NULL);
        }
    segment.end = sink;
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = &segment,
                                              .segment_count = 1,
                                              .sinks = &source,
                                              .sink_count = 1,
                                              .route = SLUICE_ROUTE_TCP_RECEIVE};
    CHECK_EQ(sluice_transfer_run(&options, NULL, NULL), -EOPNOTSUPP);
    sluice_end_close(source);
    sluice_end_close(sink);
    close(fds[0]);
    close(other[1]);
}

CHECK_MAIN()
