/* SPDX-License-Identifier: MIT
 *
 * Transfers through a transform: what it makes arrives whole and in order, in few large writes, and little memory is
 * held for it.
 */
#include "checked.h"
#include "core/pool.h"
#include "core/transfer.h"
#include <fcntl.h>
#include <sys/socket.h>

/* Frames of up to `frame` bytes: their length in two bytes, and the bytes inverted. Holds back what is less than
 * `together` until more comes. */
struct framing {
    struct sluice_transform transform;
    size_t frame, together;
    unsigned char held[4096];
    size_t held_length;
    unsigned calls, last_calls;
};

static size_t put_frame(unsigned char *output, const unsigned char *first, size_t first_length,
                        const unsigned char *second, size_t second_length)
{
    size_t length = first_length + second_length;
    output[0] = (unsigned char)(length >> 8);
    output[1] = (unsigned char)length;
    for (size_t i = 0; i < first_length; i++)
        output[2 + i] = (unsigned char)~first[i];
    for (size_t i = 0; i < second_length; i++)
        output[2 + first_length + i] = (unsigned char)~second[i];
    return 2 + length;
}

static int frame(void *context, const void *input, size_t input_size, size_t *ret_used, void *output,
                 size_t output_size, size_t *ret_made, bool last)
{
    struct framing *framing = context;
    unsigned char *to = output;
    const unsigned char *from = input;
    *ret_used = *ret_made = 0;
    framing->calls++;
    framing->last_calls += last;
    while (*ret_used < input_size || (last && framing->held_length > 0)) {
        size_t left = input_size - *ret_used;
        if (!last && framing->held_length + left < framing->together) {
            memcpy(framing->held + framing->held_length, from + *ret_used, left);
            framing->held_length += left;
            *ret_used += left;
            return 0;
        }
        size_t most = framing->frame - framing->held_length, room = output_size - *ret_made;
        if (room < framing->frame + 2)
            return 0;
        size_t take = left < most ? left : most;
        *ret_made += put_frame(to + *ret_made, framing->held, framing->held_length, from + *ret_used, take);
        framing->held_length = 0;
        *ret_used += take;
    }
    return last;
}

static void use_frames(struct framing *framing, size_t size, size_t together)
{
    *framing = (struct framing){
        .transform = {.size = sizeof framing->transform, .name = "frames", .apply = frame, .context = framing},
        .frame = size,
        .together = together};
}

/* Takes the frames apart, in place. Returns how many bytes they bring. */
static size_t unframe(unsigned char *data, size_t size)
{
    size_t made = 0;
    for (size_t at = 0; at + 2 <= size;) {
        size_t length = (size_t)data[at] << 8 | data[at + 1];
        CHECK(at + 2 + length <= size);
        for (size_t i = 0; i < length; i++)
            data[made + i] = (unsigned char)~data[at + 2 + i];
        made += length;
        at += 2 + length;
    }
    return made;
}

static unsigned char pattern[4 << 20];
static struct sluice_error error;

__attribute__((constructor)) static void fill(void)
{
    pattern_fill(pattern, 0, sizeof pattern);
}

/* A file whose bytes go on in the pattern where memory of so many bytes ends. */
static struct sluice_end *file_from(size_t from, size_t size)
{
    int fd = pattern_file(NULL, 0);
    CHECK_EQ(pwrite(fd, pattern + from, size, 0), size);
    return end_of(fd);
}

static void check_arrived(int fd, size_t size)
{
    static unsigned char got[sizeof pattern + (1 << 20)];
    size_t length = 0;
    ssize_t more;
    while ((more = read(fd, got + length, sizeof got - length)) > 0)
        length += (size_t)more;
    size_t brought = unframe(got, length);
    CHECK_EQ(brought, size);
    CHECK_EQ(pattern_wrong(got, 0, size), size);
}

TEST("a head in memory and a body of a file leave as one frame by one write")
{
    struct framing framing;
    int fds[2];
    use_frames(&framing, 16384, 4096);
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]), *file = file_from(300, 1000);
    struct sluice_segment segments[] = {memory_segment(pattern, 300), file_segment(file, 0, 1000)};
    struct sluice_transfer_options options = one_to_one(segments, &sink, SLUICE_ROUTE_AUTO);
    struct sluice_receipt receipt;
    options.segment_count = 2;
    options.transform = &framing.transform;
    CHECK_EQ(transfer_on_loop(SLUICE_LOOP_EPOLL, &options, &receipt, &error), 0);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY].calls, 2); /* one read, one write */
    CHECK_EQ(receipt.bytes, 1302);
    CHECK_EQ(receipt.transformed, 1302);
    CHECK_EQ(framing.last_calls, 1);
    sluice_end_close(sink);
    sluice_end_close(file);
    check_arrived(fds[1], 1300);
    close(fds[1]);
}

TEST("many small segments are transformed together, and leave by one write")
{
    struct framing framing;
    struct sluice_segment segments[50];
    struct sluice_receipt receipt;
    int fds[2];
    use_frames(&framing, 100, 0);
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    for (size_t i = 0; i < 50; i++)
        segments[i] = memory_segment(pattern + 100 * i, i % 7 == 3 ? 0 : 100);
    for (size_t i = 0, at = 0; i < 50; at += segments[i++].length)
        segments[i].data = pattern + at;
    struct sluice_transfer_options options = one_to_one(segments, &sink, SLUICE_ROUTE_AUTO);
    options.segment_count = 50;
    options.transform = &framing.transform;
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY].calls, 1);
    sluice_end_close(sink);
    check_arrived(fds[1], 4300);
    close(fds[1]);
}

TEST("a transfer of nothing sends what the transform still has to say")
{
    struct framing framing;
    struct sluice_receipt receipt;
    int fds[2];
    use_frames(&framing, 100, 0);
    memcpy(framing.held, pattern, framing.held_length = 77);
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    struct sluice_transfer_options options = {
        .size = sizeof options, .sinks = &sink, .sink_count = 1, .transform = &framing.transform};
    CHECK_EQ(transfer_on_loop(SLUICE_LOOP_EPOLL, &options, &receipt, &error), 0);
    CHECK_EQ(receipt.bytes, 79);
    CHECK_EQ(framing.calls, 1);
    sluice_end_close(sink);
    check_arrived(fds[1], 77);
    close(fds[1]);
}

TEST("large files arrive whole, in whatever frames, through a slow sink, on every loop")
{
    static const enum sluice_loop_kind kinds[] = {SLUICE_LOOP_EPOLL, SLUICE_LOOP_IO_URING};
    static const size_t frames[] = {16384, 1000, 1};
    for (unsigned i = 0; i < 6; i++) {
        struct framing framing;
        struct sluice_receipt receipt;
        size_t size = frames[i / 2] == 1 ? 300000 : 3000000, got_size;
        int fds[2];
        use_frames(&framing, frames[i / 2], i % 2 * 500);
        if (framing.together > framing.frame)
            framing.together = 0;
        tcp_pair(fds);
        struct sluice_end *sink = end_of(fds[0]), *file = file_from(300, size);
        struct sluice_segment segments[] = {memory_segment(pattern, 300), file_segment(file, 0, size - 5000),
                                            memory_segment(pattern + 300 + size - 5000, 5000)};
        struct sluice_transfer_options options = one_to_one(segments, &sink, SLUICE_ROUTE_AUTO);
        options.segment_count = 3;
        options.transform = &framing.transform;
        struct collector *collector = collector_start(fds[1], true);
        CHECK_EQ(transfer_on_loop(kinds[i % 2], &options, &receipt, &error), 0);
        sluice_end_close(sink);
        sluice_end_close(file);
        unsigned char *got = collector_finish(collector, &got_size);
        CHECK_EQ(receipt.bytes, got_size);
        CHECK_EQ(unframe(got, got_size), 300 + size);
        CHECK_EQ(pattern_wrong(got, 0, 300 + size), 300 + size);
        free(got);
        close(fds[1]);
    }
}

TEST("frames of 16 KiB leave fifteen to a write, each read by one call")
{
    struct framing framing;
    struct sluice_receipt receipt;
    int sink_fd = pattern_file(NULL, 0), copy = dup(sink_fd);
    use_frames(&framing, 16384, 4096);
    struct sluice_end *sink = end_of(sink_fd), *file = file_from(0, 8 * 15 * 16384);
    struct sluice_segment segment = file_segment(file, 0, 8 * 15 * 16384);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_AUTO);
    options.transform = &framing.transform;
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY].calls, 16);
    sluice_end_close(sink);
    sluice_end_close(file);
    CHECK_EQ(lseek(copy, 0, SEEK_SET), 0);
    check_arrived(copy, 8 * 15 * 16384);
    close(copy);
}

TEST("while a sink takes nothing, what was made is held, and not what it was made of")
{
    struct framing framing;
    struct sluice_waits waits;
    struct sluice_transfer *transfer;
    int fds[2], step;
    use_frames(&framing, 16384, 4096);
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]), *file = file_from(300, 3000000);
    struct sluice_segment segments[] = {memory_segment(pattern, 300), file_segment(file, 0, 3000000)};
    struct sluice_transfer_options options = one_to_one(segments, &sink, SLUICE_ROUTE_AUTO);
    options.segment_count = 2;
    options.transform = &framing.transform;
    CHECK_EQ(setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &(int){65536}, sizeof(int)), 0);
    CHECK_EQ(sluice_transfer_new(&options, &transfer, NULL), 0);
    while ((step = sluice_transfer_step(transfer, &waits)) == SLUICE_STEP_YIELD)
        ;
    CHECK_EQ(step, SLUICE_STEP_WAIT);
    CHECK_EQ(waits.wait[0].kind, SLUICE_WAIT_WRITABLE);
    CHECK(transfer->inline_lane.stage.data == NULL);
    sluice_transfer_free(transfer);
    sluice_end_close(sink);
    sluice_end_close(file);
    close(fds[1]);
}

TEST("what was made before a file turned out to be too short is delivered")
{
    for (int together = 0; together < 2; together++) {
        struct framing framing;
        struct sluice_receipt receipt;
        int fds[2];
        use_frames(&framing, 16384, 0);
        tcp_pair(fds);
        struct sluice_end *sink = end_of(fds[0]), *file = file_from(300, 5000);
        struct sluice_segment segments[] = {memory_segment(pattern, 300),
                                            file_segment(file, 0, together ? 300000 : 8000)};
        struct sluice_transfer_options options = one_to_one(segments, &sink, SLUICE_ROUTE_AUTO);
        options.segment_count = 2;
        options.transform = &framing.transform;
        CHECK_EQ(sluice_transfer_run(&options, &receipt, &error), -ENODATA);
        CHECK_EQ(receipt.short_sources, 1);
        sluice_end_close(sink);
        sluice_end_close(file);
        check_arrived(fds[1], 5300);
        close(fds[1]);
    }
}

static int overrun(void *context, const void *input, size_t input_size, size_t *ret_used, void *output,
                   size_t output_size, size_t *ret_made, bool last)
{
    (void)context, (void)input, (void)output, (void)last;
    *ret_used = input_size;
    *ret_made = output_size + 1;
    return 0;
}

static int stand_still(void *context, const void *input, size_t input_size, size_t *ret_used, void *output,
                       size_t output_size, size_t *ret_made, bool last)
{
    (void)context, (void)input, (void)input_size, (void)output, (void)output_size, (void)last;
    *ret_used = *ret_made = 0;
    return 0;
}

static int refuse(void *context, const void *input, size_t input_size, size_t *ret_used, void *output,
                  size_t output_size, size_t *ret_made, bool last)
{
    (void)context, (void)input, (void)input_size, (void)ret_used, (void)output, (void)output_size, (void)ret_made;
    (void)last;
    return -EKEYEXPIRED;
}

TEST("a transform that fails, stands still or claims too much fails the transfer, which says so by its name")
{
    static int (*const wrong[])(void *, const void *, size_t, size_t *, void *, size_t, size_t *,
                                bool) = {overrun, stand_still, refuse};
    for (int i = 0; i < 3; i++) {
        int fds[2];
        tcp_pair(fds);
        struct sluice_end *sink = end_of(fds[0]);
        struct sluice_segment segment = memory_segment(pattern, 100);
        struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_AUTO);
        struct sluice_transform transform = {.size = sizeof transform, .name = "wrong", .apply = wrong[i]};
        options.transform = &transform;
        CHECK_EQ(sluice_transfer_run(&options, NULL, &error), i == 2 ? -EKEYEXPIRED : -EPROTO);
        CHECK_STR(error.operation, "wrong");
        sluice_end_close(sink);
        close(fds[1]);
    }
}

int main(void)
{
    alarm(60); /* a hang is a failure */
    return check_run_all();
}
