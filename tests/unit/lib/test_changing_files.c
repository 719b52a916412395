/* SPDX-License-Identifier: MIT
 *
 * Files that change while they are sent, on four file systems. ext4, XFS and btrfs are loop mounts in a mount namespace
 * of this process: nothing of them is left when it ends, however it ends.
 *
 * Not tested because it cannot be told: a file truncated and grown again to its old length between two looks at its
 * size reads as zeros where it was cut, and its size says nothing. Who has such files takes snapshots
 * (SLUICE_END_SNAPSHOT), which bounds the damage to what was not read yet.
 */
#include "../check.h"
#include "file_systems.h"
#include "sys.h"
#include "world.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#define SIZE (4u << 20)
/* What the reader takes before the file changes. The sender is then at most the socket's buffers further on, so that
 * the end of the file is still far away. */
#define FIRST (300u << 10)

/* ---- File systems ------------------------------------------------------------------------------------------- */

/* The directory to make files in; skips the test where it cannot be had. */
static const char *file_system(const char *type)
{
    const char *reason, *directory = file_system_directory(type, &reason);
    if (directory == NULL)
        SKIP(reason);
    return directory;
}

/* ---- One transfer, and what happens to its file --------------------------------------------------------------- */

enum way_in { BLOCKING, LOOP, WAYS_IN };
static const char *const way_names[] = {"blocking", "loop"};

struct scene {
    /* given */
    const char *directory;
    enum sluice_route route;
    enum way_in way;
    unsigned end_flags;
    size_t size, head; /* of the file; of memory sent before it */
    uint64_t length;   /* declared */
    void (*change)(struct scene *scene);
    off_t cut; /* for change */
    /* made */
    char path[80];
    int file, socket;
    unsigned char *data; /* what arrived */
    size_t arrived;
    int result;
    struct sluice_receipt receipt;
    struct sluice_error error;
};

static void read_some(struct scene *scene, size_t up_to)
{
    ssize_t got = 1;
    while (scene->arrived < up_to && got > 0) {
        got = read(scene->socket, scene->data + scene->arrived, up_to - scene->arrived);
        scene->arrived += got > 0 ? (size_t)got : 0;
    }
}

/* Read a little, let the sender fill the socket until it waits, change the file, read the rest. */
static void *reader(void *argument)
{
    struct scene *scene = argument;
    read_some(scene, FIRST < scene->size ? FIRST : 1);
    usleep(3000);
    scene->change(scene);
    read_some(scene, 3 * SIZE);
    return NULL;
}

static void done(void *context, struct sluice_transfer *transfer, int result)
{
    struct scene *scene = context;
    scene->result = result;
    scene->receipt = *sluice_transfer_receipt(transfer, 0);
    scene->error = *sluice_transfer_error(transfer);
}

struct stopping {
    struct scene *scene;
    struct sluice_loop *loop;
};

static void done_and_stop(void *context, struct sluice_transfer *transfer, int result)
{
    struct stopping *stopping = context;
    done(stopping->scene, transfer, result);
    sluice_loop_stop(stopping->loop);
}

static void run_on_loop(struct scene *scene, const struct sluice_transfer_options *options)
{
    struct stopping stopping = {.scene = scene};
    CHECK_EQ(sluice_loop_new(NULL, &stopping.loop), 0);
    const struct sluice_receipt *receipt;
    int result = sluice_loop_transfer(stopping.loop, options, done_and_stop, &stopping, NULL, &receipt, &scene->error);
    if (result == 0) {
        sluice_loop_run(stopping.loop);
    } else {
        scene->receipt = *receipt;
        scene->result = result < 0 ? result : 0;
    }
    sluice_loop_forget(stopping.loop, options->sinks[0]);
    sluice_loop_free(stopping.loop);
}

static void play(struct scene *scene)
{
    static char head[SIZE];
    int fds[2], small = 64 << 10;
    pthread_t thread;
    struct sluice_end *source, *sink;
    unsigned char *bytes = malloc(scene->size);
    pattern_fill(bytes, 0, scene->size);
    snprintf(scene->path, sizeof scene->path, "%s/file", scene->directory);
    scene->file = open(scene->path, O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(scene->file >= 0);
    CHECK_EQ(write(scene->file, bytes, scene->size), scene->size);
    free(bytes);
    tcp_pair(fds);
    setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    setsockopt(fds[1], SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    fcntl(fds[1], F_SETFL, 0);
    scene->socket = fds[1];
    scene->data = calloc(3, SIZE);
    CHECK_EQ(sluice_end_open(scene->file, scene->end_flags, &source), 0);
    sink = end_of(fds[0]);
    CHECK_EQ(pthread_create(&thread, NULL, reader, scene), 0);
    struct sluice_segment segments[] = {memory_segment(head, scene->head), file_segment(source, 0, scene->length)};
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = segments,
                                              .segment_count = 2,
                                              .sinks = &sink,
                                              .sink_count = 1,
                                              .route = scene->route};
    if (scene->way == BLOCKING)
        scene->result = sluice_transfer_run(&options, &scene->receipt, &scene->error);
    else
        run_on_loop(scene, &options);
    shutdown(fds[0], SHUT_WR); /* not closed yet: the kernel may drop what an orphan still has to send */
    pthread_join(thread, NULL);
    sluice_end_close(sink);
    sluice_end_close(source);
    close(scene->file);
    close(scene->socket);
    unlink(scene->path);
}

/* The bytes are the original's; from `zeros_from` on, zeros are right as well. */
static void check_original(const struct scene *scene, size_t zeros_from, const char *what)
{
    const unsigned char *data = scene->data + scene->head;
    size_t size = scene->arrived > scene->head ? scene->arrived - scene->head : 0;
    for (size_t at = 0; (at += pattern_wrong(data + at, at, size - at)) < size; at++)
        if (at < zeros_from || data[at] != 0)
            CHECK_FAIL("%s: byte %zu of the file is wrong", what, at);
    if (scene->receipt.bytes != scene->arrived)
        CHECK_FAIL("%s: %zu bytes arrived, the receipt says %llu", what, scene->arrived,
                   (unsigned long long)scene->receipt.bytes);
}

static void describe(const struct scene *scene, char *text, size_t size)
{
    snprintf(text, size, "%s, %s, cut to %lld", sluice_route_name(scene->route), way_names[scene->way],
             (long long)scene->cut);
}

/* Every route and way in. */
#define EACH_ROUTE(type, ...)                                                                                          \
    const char *directory = file_system(type);                                                                         \
    for (int route = 0; route < SLUICE_ROUTE_COUNT; route++)                                                           \
        for (int way = goes_to_tcp((enum sluice_route)route) ? 0 : WAYS_IN; way < WAYS_IN; way++) {                    \
            struct scene scene = {.directory = directory,                                                              \
                                  .route = (enum sluice_route)route,                                                   \
                                  .way = (enum way_in)way,                                                             \
                                  .size = SIZE,                                                                        \
                                  .length = SIZE};                                                                     \
            __VA_ARGS__;                                                                                               \
            free(scene.data);                                                                                          \
        }

/* ---- Truncated in place --------------------------------------------------------------------------------------- */

static void truncate_file(struct scene *scene)
{
    if (ftruncate(scene->file, scene->cut) < 0)
        abort();
}

/* To nothing; inside what may be in flight, at a page boundary and in mid-page; beyond all that. */
static const off_t cuts[] = {0, 172 * 4096, 172 * 4096 + 1234, (5 << 19) + 4321};
#define CUTS (sizeof cuts / sizeof *cuts)

static void truncated(struct scene scene, off_t cut)
{
    char what[100];
    bool may_alias = scene.route != SLUICE_ROUTE_COPY && !(scene.end_flags & SLUICE_END_SNAPSHOT);
    scene.cut = cut;
    scene.change = truncate_file;
    describe(&scene, what, sizeof what);
    play(&scene);
    if (scene.result != -ENODATA) {
        char text[200];
        sluice_error_format(&scene.error, text, sizeof text);
        CHECK_FAIL("%s: result %d (%s)", what, scene.result, text);
    }
    if (scene.receipt.short_sources != 1 || scene.receipt.shrunk != 1)
        CHECK_FAIL("%s: short_sources %llu, shrunk %llu", what, (unsigned long long)scene.receipt.short_sources,
                   (unsigned long long)scene.receipt.shrunk);
    check_original(&scene, may_alias ? (size_t)cut : SIZE, what);
    if (scene.arrived < (size_t)cut || scene.arrived >= SIZE)
        CHECK_FAIL("%s: %zu bytes arrived", what, scene.arrived);
    if (scene.error.delivered != scene.arrived || scene.error.reason == NULL || scene.error.remedy == NULL)
        CHECK_FAIL("%s: the error does not say how much was delivered, why, or what to do", what);
    free(scene.data);
}

static void truncated_on(const char *type)
{
    EACH_ROUTE(type, for (size_t i = 0; i < CUTS; i++) truncated(scene, cuts[i]));
}

static void snapshot_on(const char *type)
{
    const char *directory = file_system(type);
    for (int way = 0; way < WAYS_IN; way++)
        for (size_t i = 0; i < CUTS; i++)
            truncated((struct scene){.directory = directory,
                                     .way = (enum way_in)way,
                                     .size = SIZE,
                                     .length = SIZE,
                                     .end_flags = SLUICE_END_SNAPSHOT},
                      cuts[i]);
}

/* Of a source without a declared length, the end is where it is met: a success, but counted. */
static void truncated_until_end_on(const char *type)
{
    EACH_ROUTE(type, {
        scene.length = SLUICE_UNTIL_END;
        scene.change = truncate_file;
        scene.cut = cuts[3];
        play(&scene);
        CHECK_EQ(scene.result, 0);
        CHECK_EQ(scene.receipt.shrunk, 1);
        check_original(&scene, (size_t)scene.cut, sluice_route_name(scene.route));
        CHECK(scene.arrived >= (size_t)scene.cut && scene.arrived < (size_t)scene.cut + 4096);
    })
}

/* ---- Grown, replaced, deleted --------------------------------------------------------------------------------- */

static void grow(struct scene *scene)
{
    static unsigned char more[SIZE];
    pattern_fill(more, scene->size, sizeof more);
    if (pwrite(scene->file, more, sizeof more, (off_t)scene->size) != (ssize_t)sizeof more)
        abort();
}

static void grown_on(const char *type)
{
    EACH_ROUTE(type, {
        scene.change = grow;
        play(&scene);
        CHECK_EQ(scene.result, 0);
        CHECK_EQ(scene.arrived, SIZE);
        check_original(&scene, SIZE, sluice_route_name(scene.route));
        CHECK_EQ(scene.receipt.shrunk, 0);
    })
}

static void grown_until_end_on(const char *type)
{
    EACH_ROUTE(type, {
        scene.change = grow;
        scene.length = SLUICE_UNTIL_END;
        play(&scene);
        CHECK_EQ(scene.result, 0);
        CHECK_EQ(scene.arrived, 2 * SIZE);
        check_original(&scene, 2 * SIZE, sluice_route_name(scene.route));
        CHECK_EQ(scene.receipt.fallback_count, 0);
    })
}

/* Small files are kept mapped with their end: what they grew by lies beyond the mapping. */
static void small_grown_on(const char *type)
{
    EACH_ROUTE(type, {
        scene.change = grow;
        scene.size = 8 << 10;
        scene.head = SIZE;
        scene.length = SLUICE_UNTIL_END;
        play(&scene);
        CHECK_EQ(scene.result, 0);
        CHECK_EQ(scene.arrived, SIZE + (8 << 10) + SIZE);
        check_original(&scene, 3 * SIZE, sluice_route_name(scene.route));
    })
}

static void small_truncated_on(const char *type)
{
    EACH_ROUTE(type, {
        scene.change = truncate_file;
        scene.cut = 5000;
        scene.size = 8 << 10;
        scene.head = SIZE;
        scene.length = scene.size;
        play(&scene);
        CHECK_EQ(scene.result, -ENODATA);
        CHECK_EQ(scene.receipt.shrunk, 1);
        CHECK_EQ(scene.arrived, SIZE + 5000);
        check_original(&scene, 5000, sluice_route_name(scene.route));
    })
}

static void replace(struct scene *scene)
{
    char other[100];
    snprintf(other, sizeof other, "%s.new", scene->path);
    int fd = open(other, O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, SIZE / 2) < 0 || rename(other, scene->path) < 0)
        abort();
    close(fd);
}

static void delete (struct scene *scene)
{
    if (unlink(scene->path) < 0)
        abort();
}

static void whole_in_spite_of(const char *type, void (*change)(struct scene *scene))
{
    EACH_ROUTE(type, {
        scene.change = change;
        play(&scene);
        CHECK_EQ(scene.result, 0);
        CHECK_EQ(scene.arrived, SIZE);
        check_original(&scene, SIZE, sluice_route_name(scene.route));
        CHECK_EQ(scene.receipt.shrunk + scene.receipt.short_sources, 0);
    })
}

/* ---- Between the look at the size and the write --------------------------------------------------------------- */

static int victim;
static off_t victim_cut;

static ssize_t truncate_and_sendmsg(int fd, const struct msghdr *message, int flags)
{
    if (victim >= 0 && ftruncate(victim, victim_cut) < 0)
        abort();
    victim = -1;
    return sendmsg(fd, message, flags);
}

TEST("a mapped file that shrinks at the very moment of the write ends short; the head before it arrives")
{
    for (victim_cut = 0; victim_cut <= 4096; victim_cut += 4096) {
        int fds[2];
        char got[20000];
        struct sluice_receipt receipt;
        struct sluice_error error;
        tcp_pair(fds);
        fcntl(fds[1], F_SETFL, 0);
        victim = pattern_file(NULL, 12000);
        struct sluice_end *source = end_of(victim), *sink = end_of(fds[0]);
        struct sluice_segment segments[] = {memory_segment("HEAD", 4), file_segment(source, 0, 12000)};
        struct sluice_transfer_options options = {
            .size = sizeof options, .segments = segments, .segment_count = 2, .sinks = &sink, .sink_count = 1};
        sys.sendmsg = truncate_and_sendmsg;
        int result = sluice_transfer_run(&options, &receipt, &error);
        sys.sendmsg = sendmsg;
        CHECK_EQ(victim, -1);
        sluice_end_close(sink);
        sluice_end_close(source);
        CHECK_EQ(recv(fds[1], got, sizeof got, MSG_WAITALL), 4 + victim_cut);
        close(fds[1]);
        CHECK_EQ(result, -ENODATA);
        CHECK_EQ(receipt.shrunk, 1);
        CHECK_EQ(receipt.bytes, 4 + victim_cut);
    }
}

#define ON_FILE_SYSTEM(type, name)                                                                                     \
    TEST_NAMED(name ": a file truncated in place ends short, with what there was and a count of it on the receipt",    \
               type##_truncated)                                                                                       \
    {                                                                                                                  \
        truncated_on(#type);                                                                                           \
    }                                                                                                                  \
    TEST_NAMED(name ": of a snapshot no byte is ever delivered as zero", type##_snapshot)                              \
    {                                                                                                                  \
        snapshot_on(#type);                                                                                            \
    }                                                                                                                  \
    TEST_NAMED(name ": without a declared length a truncated file ends where its end is met", type##_until_end)        \
    {                                                                                                                  \
        truncated_until_end_on(#type);                                                                                 \
    }                                                                                                                  \
    TEST_NAMED(name ": of a file that grows, exactly the declared length is sent", type##_grown)                       \
    {                                                                                                                  \
        grown_on(#type);                                                                                               \
    }                                                                                                                  \
    TEST_NAMED(name ": without a declared length the growth is sent too", type##_grown_until_end)                      \
    {                                                                                                                  \
        grown_until_end_on(#type);                                                                                     \
    }                                                                                                                  \
    TEST_NAMED(name ": a small file grows while what goes before it is sent", type##_small_grown)                      \
    {                                                                                                                  \
        small_grown_on(#type);                                                                                         \
    }                                                                                                                  \
    TEST_NAMED(name ": a small file truncated before its turn ends short, without a zero", type##_small_truncated)     \
    {                                                                                                                  \
        small_truncated_on(#type);                                                                                     \
    }                                                                                                                  \
    TEST_NAMED(name ": a file replaced by rename arrives whole from its old inode", type##_replaced)                   \
    {                                                                                                                  \
        whole_in_spite_of(#type, replace);                                                                             \
    }                                                                                                                  \
    TEST_NAMED(name ": a file deleted while it is sent arrives whole", type##_deleted)                                 \
    {                                                                                                                  \
        whole_in_spite_of(#type, delete);                                                                              \
    }

/* clang-format off: it takes what follows a macro for its body. */
ON_FILE_SYSTEM(ext4, "ext4")
ON_FILE_SYSTEM(tmpfs, "tmpfs")
/* What threads do is the same on every one. */
#ifndef __SANITIZE_THREAD__
ON_FILE_SYSTEM(xfs, "XFS")
ON_FILE_SYSTEM(btrfs, "btrfs")
#endif
/* clang-format on */

int main(void)
{
    alarm(100); /* a hang is a failure */
    return check_run_all();
}
