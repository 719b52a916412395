/* SPDX-License-Identifier: MIT
 *
 * One source into several sinks, and a transform between source and sink.
 */
#include "../check.h"
#include "sys.h"
#include "world.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SINKS 4
#define SIZE ((2u << 20) + 12345)

enum place { FILE_, MEMORY, PIPE, TCP, SOURCES };
static const char *const place_names[] = {"file", "memory", "pipe", "tcp"};

static struct sluice_segment open_source(enum place place, struct feeder **ret_feeder)
{
    static unsigned char bytes[SIZE];
    int fds[2];
    *ret_feeder = NULL;
    switch (place) {
    case FILE_:
        return file_segment(end_of(pattern_file(NULL, SIZE)), 0, SLUICE_UNTIL_END);
    case MEMORY:
        pattern_fill(bytes, 0, SIZE);
        return memory_segment(bytes, SIZE);
    case PIPE:
        pipe_pair(fds);
        *ret_feeder = feeder_start(fds[1], 0, SIZE);
        return stream_segment(end_of(fds[0]), SLUICE_UNTIL_END);
    default:
        tcp_pair(fds);
        *ret_feeder = feeder_start(fds[0], 0, SIZE);
        return stream_segment(end_of(fds[1]), SIZE);
    }
}

static int released;

static void count_release(void *context, const void *data, size_t length)
{
    (void)context, (void)data, (void)length;
    released++;
}

static void done(void *context, struct sluice_transfer *transfer, int result)
{
    struct sluice_loop *loop = context;
    CHECK_EQ(result, 0);
    for (unsigned i = 0; i < SINKS; i++)
        CHECK_EQ(sluice_transfer_receipt(transfer, i)->bytes, SIZE + 4);
    sluice_loop_stop(loop);
}

static void fan_out(enum place from, bool on_loop)
{
    struct feeder *feeder;
    struct sluice_end *sinks[SINKS];
    struct collector *collectors[SINKS];
    struct sluice_receipt receipts[SINKS];
    int peers[SINKS];
    struct sluice_segment segments[] = {memory_segment("HEAD", 4), open_source(from, &feeder)};
    segments[0].release = count_release;
    released = 0;
    for (int i = 0; i < SINKS; i++) {
        int fds[2];
        (i == 2 ? unix_pair : tcp_pair)(fds);
        sinks[i] = end_of(fds[0]);
        peers[i] = fds[1];
        collectors[i] = collector_start(fds[1], i == 1);
    }
    struct sluice_transfer_options options = {
        .size = sizeof options, .segments = segments, .segment_count = 2, .sinks = sinks, .sink_count = SINKS};
    if (on_loop) {
        struct sluice_loop *loop;
        CHECK_EQ(sluice_loop_new(NULL, &loop), 0);
        int result = sluice_loop_transfer(loop, &options, done, loop, NULL, NULL, NULL);
        CHECK_EQ(result, 0); /* the slow sink makes it wait */
        sluice_loop_run(loop);
        for (int i = 0; i < SINKS; i++)
            sluice_loop_forget(loop, sinks[i]);
        if (segments[1].end != NULL)
            sluice_loop_forget(loop, segments[1].end);
        sluice_loop_free(loop);
    } else {
        CHECK_EQ(sluice_transfer_run(&options, receipts, NULL), 0);
        for (int i = 0; i < SINKS; i++) {
            CHECK_EQ(receipts[i].bytes, SIZE + 4);
            CHECK_EQ(receipts[i].sent, SIZE + 4);
            CHECK_EQ(receipts[i].by_reference + receipts[i].copied + receipts[i].unknown, SIZE + 4);
        }
    }
    CHECK_EQ(released, 1);
    for (int i = 0; i < SINKS; i++) {
        size_t size;
        sluice_end_close(sinks[i]);
        unsigned char *data = collector_finish(collectors[i], &size);
        close(peers[i]);
        if (size != SIZE + 4 || memcmp(data, "HEAD", 4) != 0)
            CHECK_FAIL("%s: sink %d got %zu bytes", place_names[from], i, size);
        size_t wrong = pattern_wrong(data + 4, 0, SIZE);
        if (wrong < SIZE)
            CHECK_FAIL("%s: sink %d: byte %zu is wrong", place_names[from], i, wrong);
        free(data);
    }
    sluice_end_close(segments[1].end);
    if (feeder != NULL)
        feeder_finish(feeder);
}

TEST("four sinks, one of them slow, all get all bytes of a file, memory, a pipe and a connection")
{
    for (int from = 0; from < SOURCES; from++)
        fan_out((enum place)from, false);
}

TEST("the same on the loop")
{
    for (int from = 0; from < SOURCES; from++)
        fan_out((enum place)from, true);
}

/* Steps until it waits for a sink, and nothing else can be done. */
static int step_on(struct sluice_transfer *transfer)
{
    struct sluice_waits waits;
    int result;
    for (int i = 0; i < 200; i++) {
        result = sluice_transfer_step(transfer, &waits);
        if (result <= 0)
            return result;
        usleep(100);
    }
    return result;
}

TEST("of a stream no sink gets further ahead of the slowest than the window; a file's sinks are independent")
{
    for (int stream = 0; stream < 2; stream++) {
        int slow[2], fast[2], in[2];
        size_t size;
        struct feeder *feeder = NULL;
        struct sluice_segment segment;
        tcp_pair(slow);
        tcp_pair(fast);
        if (stream) {
            tcp_pair(in);
            feeder = feeder_start(in[0], 0, 16 << 20);
            segment = stream_segment(end_of(in[1]), SLUICE_UNTIL_END);
        } else {
            segment = file_segment(end_of(pattern_file(NULL, 16 << 20)), 0, 16 << 20);
        }
        struct collector *collector = collector_start(fast[1], false), *late;
        struct sluice_end *sinks[] = {end_of(slow[0]), end_of(fast[0])};
        struct sluice_transfer_options options = {
            .size = sizeof options, .segments = &segment, .segment_count = 1, .sinks = sinks, .sink_count = 2};
        struct sluice_transfer *transfer;
        CHECK_EQ(sluice_transfer_new(&options, &transfer, NULL), 0);
        uint64_t ahead = 0, behind = 0;
        for (int patience = 0; patience < 100; patience++) { /* the fast sink's reader may need a moment */
            CHECK_EQ(step_on(transfer), SLUICE_STEP_WAIT);
            ahead = sluice_transfer_receipt(transfer, 1)->sent;
            behind = sluice_transfer_receipt(transfer, 0)->sent;
            if (stream || ahead == 16 << 20)
                break;
        }
        CHECK(behind > 0 && behind < 16 << 20);
        if (stream)
            CHECK(ahead >= behind && ahead - behind <= SLUICE_FANOUT_WINDOW);
        else
            CHECK_EQ(ahead, 16 << 20);
        late = collector_start(slow[1], false); /* nothing is lost when it wakes up */
        struct sluice_waits waits;
        int result;
        while ((result = sluice_transfer_step(transfer, &waits)) > 0) {
            uint64_t a = sluice_transfer_receipt(transfer, 0)->sent, b = sluice_transfer_receipt(transfer, 1)->sent;
            CHECK(!stream || (a > b ? a - b : b - a) <= SLUICE_FANOUT_WINDOW);
            usleep(50);
        }
        CHECK_EQ(result, 0);
        sluice_transfer_free(transfer);
        sluice_end_close(sinks[0]);
        sluice_end_close(sinks[1]);
        for (int i = 0; i < 2; i++) {
            unsigned char *data = collector_finish(i ? collector : late, &size);
            CHECK_EQ(size, 16 << 20);
            for (size_t k = 0; k < size; k += 97)
                CHECK(data[k] == pattern_byte(k));
            free(data);
        }
        sluice_end_close(segment.end);
        if (feeder != NULL)
            feeder_finish(feeder);
        close(slow[1]);
        close(fast[1]);
    }
}

/* A stream into two sinks; all three are Unix sockets, whose other ends the test holds. */
struct stream_to_two {
    int source, feeder;
    int sink_fds[2], readers[2];
    struct sluice_segment segment;
    struct sluice_end *sinks[2];
    struct sluice_transfer *transfer;
};

static void begin_stream_to_two(struct stream_to_two *all, uint64_t size, enum sluice_route route)
{
    int source[2];
    unix_pair(source);
    all->source = source[0];
    all->feeder = source[1];
    all->segment = stream_segment(end_of(all->source), size);
    for (int i = 0; i < 2; i++) {
        int sink[2];
        unix_pair(sink);
        all->sink_fds[i] = sink[0];
        all->readers[i] = sink[1];
        all->sinks[i] = end_of(sink[0]);
    }
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = &all->segment,
                                              .segment_count = 1,
                                              .sinks = all->sinks,
                                              .sink_count = 2,
                                              .route = route};
    CHECK_EQ(sluice_transfer_new(&options, &all->transfer, NULL), 0);
}

static void end_stream_to_two(struct stream_to_two *all)
{
    sluice_transfer_free(all->transfer);
    sluice_end_close(all->segment.end);
    close(all->feeder);
    for (int i = 0; i < 2; i++) {
        sluice_end_close(all->sinks[i]);
        close(all->readers[i]);
    }
}

static int late_source, late_feeder;

/* The first lane has asked just before the bytes come, all at once. */
static bool bytes_come(int fd)
{
    if (fd != late_source || late_feeder < 0)
        return false;
    CHECK_EQ(write(late_feeder, "late", 4), 4);
    late_feeder = -1;
    errno = EAGAIN;
    return true;
}

static ssize_t late_recv(int fd, void *buffer, size_t size, int flags)
{
    return bytes_come(fd) ? -1 : recv(fd, buffer, size, flags);
}

static ssize_t late_splice(int in, off_t *in_offset, int out, off_t *out_offset, size_t size, unsigned flags)
{
    return bytes_come(in) ? -1 : splice(in, in_offset, out, out_offset, size, flags);
}

TEST("what one sink's turn found in the source is given to those that had found nothing just before")
{
    const struct sys before = sys;
    sys.recv = late_recv;
    sys.splice = late_splice;
    for (int i = 0; i < 4; i++) {
        bool by_tee = i % 2 == 1, until_end = i / 2 == 1;
        struct stream_to_two all;
        struct sluice_waits waits;
        char got[8];
        begin_stream_to_two(&all, until_end ? SLUICE_UNTIL_END : 4, by_tee ? SLUICE_ROUTE_TEE : SLUICE_ROUTE_COPY);
        late_source = all.source;
        late_feeder = all.feeder;
        CHECK_EQ(sluice_transfer_step(all.transfer, &waits), until_end ? SLUICE_STEP_WAIT : SLUICE_STEP_DONE);
        CHECK_EQ(recv(all.readers[0], got, sizeof got, MSG_DONTWAIT), 4);
        CHECK_EQ(recv(all.readers[1], got, sizeof got, MSG_DONTWAIT), 4);
        end_stream_to_two(&all);
    }
    sys = before;
}

static int broken_source, breaks_after;

static bool breaks(int fd)
{
    if (fd != broken_source || breaks_after-- > 0)
        return false;
    errno = ECONNRESET;
    return true;
}

static ssize_t broken_recv(int fd, void *buffer, size_t size, int flags)
{
    return breaks(fd) ? -1 : recv(fd, buffer, size, flags);
}

static ssize_t broken_splice(int in, off_t *in_offset, int out, off_t *out_offset, size_t size, unsigned flags)
{
    return breaks(in) ? -1 : splice(in, in_offset, out, out_offset, size, flags);
}

TEST("when the source breaks, every sink gets what was read of it, the slow one too, before the transfer fails")
{
    const struct sys before = sys;
    sys.recv = broken_recv;
    sys.splice = broken_splice;
    for (int by_tee = 0; by_tee < 2; by_tee++) {
        static unsigned char bytes[1000], got[sizeof bytes + 1], filler[4096];
        struct stream_to_two all;
        struct sluice_waits waits;
        size_t filled = 0;
        begin_stream_to_two(&all, SLUICE_UNTIL_END, by_tee ? SLUICE_ROUTE_TEE : SLUICE_ROUTE_COPY);
        pattern_fill(bytes, 0, sizeof bytes);
        CHECK_EQ(write(all.feeder, bytes, sizeof bytes), sizeof bytes);
        for (ssize_t sent; (sent = send(all.sink_fds[1], filler, sizeof filler, MSG_DONTWAIT)) > 0;)
            filled += (size_t)sent;
        broken_source = all.source;
        breaks_after = 1;
        for (int i = 0; i < 3; i++)
            CHECK_EQ(sluice_transfer_step(all.transfer, &waits), SLUICE_STEP_WAIT);
        CHECK_EQ(recv(all.readers[0], got, sizeof got, MSG_DONTWAIT), sizeof bytes);
        while (filled > 0)
            filled -= (size_t)recv(all.readers[1], filler, filled < sizeof filler ? filled : sizeof filler, 0);
        int result = SLUICE_STEP_WAIT;
        for (int i = 0; i < 10 && result >= 0; i++)
            result = sluice_transfer_step(all.transfer, &waits);
        CHECK_EQ(result, -ECONNRESET);
        CHECK_EQ(recv(all.readers[1], got, sizeof got, MSG_DONTWAIT), sizeof bytes);
        CHECK(memcmp(got, bytes, sizeof bytes) == 0);
        end_stream_to_two(&all);
    }
    sys = before;
}

TEST("a dead sink ends the transfer with its error, and each receipt says what that sink got")
{
    for (int from = 0; from < SOURCES; from++) {
        int a[2], b[2];
        struct feeder *feeder;
        struct sluice_segment segment = open_source((enum place)from, &feeder);
        segment.release = from == MEMORY ? count_release : NULL;
        released = 0;
        unix_pair(a);
        unix_pair(b);
        struct collector *collector = collector_start(a[1], false);
        struct sluice_end *sinks[] = {end_of(a[0]), end_of(b[0])};
        struct sluice_receipt receipts[2];
        struct sluice_error error;
        struct sluice_transfer_options options = {
            .size = sizeof options, .segments = &segment, .segment_count = 1, .sinks = sinks, .sink_count = 2};
        close(b[1]);
        CHECK_EQ(sluice_transfer_run(&options, receipts, &error), -EPIPE);
        CHECK_EQ(error.code, -EPIPE);
        CHECK_EQ(error.delivered, 0);
        CHECK(error.operation != NULL);
        CHECK_EQ(receipts[1].bytes, 0);
        CHECK_EQ(released, from == MEMORY ? 1 : 0);
        if (feeder != NULL)
            shutdown(sluice_end_fd(segment.end), SHUT_RDWR);
        sluice_end_close(segment.end);
        sluice_end_close(sinks[0]);
        sluice_end_close(sinks[1]);
        size_t size;
        free(collector_finish(collector, &size));
        CHECK_EQ(size, receipts[0].bytes);
        if (feeder != NULL)
            feeder_finish(feeder);
        close(a[1]);
    }
}

/* ---- Transforms
 * ------------------------------------------------------------------------------------------------------ */

static int xor_apply(void *context, const void *input, size_t input_size, size_t *ret_used, void *output,
                     size_t output_size, size_t *ret_made, bool last)
{
    (void)context;
    size_t size = input_size < output_size ? input_size : output_size;
    for (size_t i = 0; i < size; i++)
        ((unsigned char *)output)[i] = ((const unsigned char *)input)[i] ^ 0x5a;
    *ret_used = *ret_made = size;
    return last && size == input_size;
}

/* Uses its input by odd pieces. Stretches every eighth kilobyte threefold and drops every other one, so that it expands
 * and contracts; says at its end how much it saw. */
struct uneven {
    size_t seen;
};

static unsigned copies_of(size_t position)
{
    return (position >> 10) % 8 == 0 ? 3 : (position >> 10) % 2;
}

static int uneven_apply(void *context, const void *input, size_t input_size, size_t *ret_used, void *output,
                        size_t output_size, size_t *ret_made, bool last)
{
    struct uneven *uneven = context;
    const unsigned char *in = input;
    unsigned char *out = output;
    size_t used = 0, made = 0, most = input_size > 1 ? input_size / 2 + 1 : input_size; /* not all of it */
    while (used < most && made + 3 <= output_size) {
        for (unsigned i = 0; i < copies_of(uneven->seen); i++)
            out[made++] = in[used];
        uneven->seen++;
        used++;
    }
    *ret_used = used;
    *ret_made = made;
    if (!last)
        return 0;
    if (made + 3 > output_size)
        return 0;
    memcpy(out + made, "END", 3);
    *ret_made = made + 3;
    return 1;
}

static struct sluice_receipt transform_into_tcp(enum place from, const struct sluice_transform *transform,
                                                unsigned char **ret_data, size_t *ret_size)
{
    int fds[2];
    struct feeder *feeder;
    struct sluice_receipt receipt;
    struct sluice_segment segments[] = {memory_segment("HEAD", 4), open_source(from, &feeder)};
    tcp_pair(fds);
    struct collector *collector = collector_start(fds[1], false);
    struct sluice_end *sink = end_of(fds[0]);
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = segments,
                                              .segment_count = 2,
                                              .sinks = &sink,
                                              .sink_count = 1,
                                              .transform = transform};
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    sluice_end_close(sink);
    *ret_data = collector_finish(collector, ret_size);
    sluice_end_close(segments[1].end);
    if (feeder != NULL)
        feeder_finish(feeder);
    close(fds[1]);
    return receipt;
}

static unsigned char original(size_t i)
{
    return i < 4 ? (unsigned char)"HEAD"[i] : pattern_byte(i - 4);
}

TEST("a transform sees every byte of every kind of source once, and its output is counted as transformed")
{
    struct sluice_transform transform = {.size = sizeof transform, .name = "xor", .apply = xor_apply};
    for (int from = 0; from < SOURCES; from++) {
        unsigned char *data;
        size_t size;
        struct sluice_receipt receipt = transform_into_tcp((enum place)from, &transform, &data, &size);
        CHECK_EQ(size, SIZE + 4);
        for (size_t i = 0; i < size; i++)
            if (data[i] != (original(i) ^ 0x5a))
                CHECK_FAIL("%s: byte %zu is wrong", place_names[from], i);
        CHECK_EQ(receipt.bytes, size);
        CHECK_EQ(receipt.transformed, size);
        CHECK_EQ(receipt.copied, size);
        CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY].bytes, size);
        free(data);
    }
}

TEST("a transform may use part of its input, make more or less than it was given, and add an end")
{
    for (int from = 0; from < SOURCES; from++) {
        struct uneven uneven = {0};
        struct sluice_transform transform = {
            .size = sizeof transform, .name = "uneven", .apply = uneven_apply, .context = &uneven};
        unsigned char *data;
        size_t size, at = 0;
        struct sluice_receipt receipt = transform_into_tcp((enum place)from, &transform, &data, &size);
        for (size_t i = 0; i < SIZE + 4; i++)
            for (unsigned k = 0; k < copies_of(i); k++, at++)
                if (at >= size || data[at] != original(i))
                    CHECK_FAIL("%s: byte %zu of the output is wrong", place_names[from], at);
        CHECK_EQ(size, at + 3);
        CHECK(memcmp(data + at, "END", 3) == 0);
        CHECK_EQ(receipt.transformed, size);
        CHECK_EQ(uneven.seen, SIZE + 4);
        free(data);
    }
}

TEST("a large transformed body does not leave its last packet behind")
{
    struct sluice_transform transform = {.size = sizeof transform, .name = "xor", .apply = xor_apply};
    int fds[2], corked = -1;
    socklen_t length = sizeof corked;
    tcp_pair(fds);
    struct collector *collector = collector_start(fds[1], false);
    struct sluice_end *sink = end_of(fds[0]);
    struct sluice_segment segment = file_segment(end_of(pattern_file(NULL, SIZE)), 0, SIZE);
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = &segment,
                                              .segment_count = 1,
                                              .sinks = &sink,
                                              .sink_count = 1,
                                              .transform = &transform};
    CHECK_EQ(sluice_transfer_run(&options, NULL, NULL), 0);
    CHECK_EQ(getsockopt(fds[0], IPPROTO_TCP, TCP_CORK, &corked, &length), 0);
    CHECK_EQ(corked, 0);
    size_t size;
    sluice_end_close(sink);
    sluice_end_close(segment.end);
    free(collector_finish(collector, &size));
    CHECK_EQ(size, SIZE);
    close(fds[1]);
}

static int broken_apply(void *context, const void *input, size_t input_size, size_t *ret_used, void *output,
                        size_t output_size, size_t *ret_made, bool last)
{
    (void)input, (void)output, (void)last;
    int kind = *(int *)context;
    *ret_used = kind == 1 ? input_size + 1 : 0;
    *ret_made = kind == 2 ? output_size + 1 : 0;
    return kind == 3 ? -ENOANO : 0;
}

TEST("a transform that stands still or oversteps its buffers is found out; its own errors are passed on")
{
    for (int kind = 0; kind < 4; kind++) {
        struct sluice_transform transform = {
            .size = sizeof transform, .name = "broken", .apply = broken_apply, .context = &kind};
        struct sluice_end *sink = end_of(pattern_file(NULL, 0));
        struct sluice_segment segment = memory_segment("some bytes", 10);
        struct sluice_error error;
        struct sluice_transfer_options options = {.size = sizeof options,
                                                  .segments = &segment,
                                                  .segment_count = 1,
                                                  .sinks = &sink,
                                                  .sink_count = 1,
                                                  .transform = &transform};
        CHECK_EQ(sluice_transfer_run(&options, NULL, &error), kind == 3 ? -ENOANO : -EPROTO);
        CHECK_STR(error.operation, "broken");
        sluice_end_close(sink);
    }
}

int main(void)
{
    alarm(60);
    return check_run_all();
}
