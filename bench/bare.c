/* SPDX-License-Identifier: MIT */
#include "bare.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/errqueue.h>
#include <linux/fs.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>
#ifdef HAVE_LIBURING
#include <liburing.h>
#endif

/* The sizes of one step that were cheapest (KERNEL-FACTS 1, 3, 4 and 5). */
#define PIPE_SIZE (1u << 20)
#define BUFFER_SIZE (256u << 10)
#define FILE_STEP (2u << 20)

#define HUGE_PAGE (2u << 20)

/* In memory, and on huge pages where these can be had and are wanted. */
static void *make_buffer(size_t size, bool huge)
{
    size_t slack = huge ? HUGE_PAGE : 0;
    char *buffer = mmap(NULL, size + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED)
        die("mmap");
    if (huge) {
        buffer += HUGE_PAGE - (uintptr_t)buffer % HUGE_PAGE;
        (void)madvise(buffer, size, MADV_HUGEPAGE);
    }
    memset(buffer, 1, size);
    return buffer;
}

static void make_pipe(int ends[2])
{
    if (pipe2(ends, O_CLOEXEC) < 0)
        die("pipe2");
    if (fcntl(ends[1], F_SETPIPE_SZ, PIPE_SIZE) < 0)
        die("F_SETPIPE_SZ");
}

static void write_all(int fd, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, data, size);
        if (n < 0)
            die("write");
        data += n;
        size -= (size_t)n;
    }
}

/* --- the pool ----------------------------------------------------------------------------------------------- */

/* MSG_ZEROCOPY and SEND_ZC wait for delayed ACKs when only a few MiB may be out (KERNEL-FACTS 1). */
#define POOL_SIZE (16u << 20)
#define POOL_MESSAGES_MAX 2048

void pool_make(struct pool *pool, size_t message, bool huge)
{
    size_t grain = message < 4096 ? 64 : 4096, stride = (message + grain - 1) / grain * grain;
    size_t count = POOL_SIZE / stride;
    if (count > POOL_MESSAGES_MAX)
        count = POOL_MESSAGES_MAX;
    *pool = (struct pool){
        .memory = make_buffer(stride * count, huge),
        .message = message,
        .stride = stride,
        .count = (unsigned)count,
        .free = calloc(count, sizeof *pool->free),
        .loans = calloc(count, sizeof *pool->loans),
    };
    if (!pool->free || !pool->loans)
        die("pool");
    uint64_t random = 88172645463325252u;
    for (size_t i = 0; i < stride * count; i += 8) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        memcpy(pool->memory + i, &random, 8);
    }
    for (unsigned i = 0; i < pool->count; i++)
        pool_give_back(pool, i);
}

char *pool_data(const struct pool *pool, unsigned slot)
{
    return pool->memory + pool->stride * slot;
}

unsigned pool_take(struct pool *pool)
{
    unsigned slot = pool->free[pool->first_free];
    pool->first_free = (pool->first_free + 1) % pool->count;
    pool->free_count--;
    return slot;
}

void pool_give_back(struct pool *pool, unsigned slot)
{
    pool->free[(pool->first_free + pool->free_count) % pool->count] = slot;
    pool->free_count++;
}

static void loan_returned(struct bare_sender *sender, unsigned slot)
{
    if (--sender->pool->loans[slot] == 0)
        pool_give_back(sender->pool, slot);
}

/* --- memory to a socket ------------------------------------------------------------------------------------- */

struct bare_sender_kind {
    const char *name;
    void (*open)(struct bare_sender *sender); /* may be NULL */
    void (*send)(struct bare_sender *sender, unsigned slot);
    void (*collect)(struct bare_sender *sender); /* NULL: nothing is ever lent. Else waits for some to come back */
};

static void plain_send(struct bare_sender *sender, unsigned slot)
{
    const char *data = pool_data(sender->pool, slot);
    for (size_t left = sender->pool->message; left > 0;) {
        ssize_t n = send(sender->fd, data, left, MSG_NOSIGNAL);
        if (n < 0)
            die("send");
        data += n;
        left -= (size_t)n;
    }
    pool_give_back(sender->pool, slot);
}

/* The kernel numbers successful calls from 0. */
struct zerocopy {
    uint32_t next, back;
    unsigned owner[1u << 16]; /* slots, by number */
};

static void zerocopy_open(struct bare_sender *sender)
{
    if (setsockopt(sender->fd, SOL_SOCKET, SO_ZEROCOPY, &(int){1}, sizeof(int)) < 0)
        absent("SO_ZEROCOPY: %s", strerror(errno));
    sender->state = calloc(1, sizeof(struct zerocopy));
    if (!sender->state)
        die("zerocopy");
}

/* Returns false when the queue is empty. */
static bool zerocopy_read(struct bare_sender *sender)
{
    struct zerocopy *state = sender->state;
    char control[128];
    struct msghdr message = {.msg_control = control, .msg_controllen = sizeof control};
    if (recvmsg(sender->fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) {
        if (errno != EAGAIN)
            die("recvmsg(MSG_ERRQUEUE)");
        return false;
    }
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    struct sock_extended_err error;
    if (!header)
        die("an empty message in the error queue");
    memcpy(&error, CMSG_DATA(header), sizeof error);
    if (error.ee_origin != SO_EE_ORIGIN_ZEROCOPY || error.ee_errno != 0)
        die("a foreign message in the error queue");
    uint32_t calls = error.ee_data - error.ee_info + 1;
    *(error.ee_code & SO_EE_CODE_ZEROCOPY_COPIED ? &sender->said_copied : &sender->said_by_reference) += calls;
    for (uint32_t i = 0; i < calls; i++)
        loan_returned(sender, state->owner[(error.ee_info + i) & 0xffff]);
    state->back += calls;
    return true;
}

static void zerocopy_collect(struct bare_sender *sender)
{
    bool any = false;
    while (zerocopy_read(sender))
        any = true;
    while (!any) {
        struct pollfd wait = {.fd = sender->fd};
        if (poll(&wait, 1, -1) < 0)
            die("poll");
        while (zerocopy_read(sender))
            any = true;
    }
}

static void zerocopy_send(struct bare_sender *sender, unsigned slot)
{
    struct zerocopy *state = sender->state;
    const char *data = pool_data(sender->pool, slot);
    sender->pool->loans[slot] = 1; /* so that it does not come back between two calls */
    for (size_t left = sender->pool->message; left > 0;) {
        bool lend = true;
        ssize_t n = send(sender->fd, data, left, MSG_NOSIGNAL | MSG_ZEROCOPY);
        if (n < 0 && errno == ENOBUFS) {
            /* The limit on option memory: with nothing outstanding no notification will come. */
            if (state->back != state->next) {
                zerocopy_collect(sender);
                continue;
            }
            lend = false;
            n = send(sender->fd, data, left, MSG_NOSIGNAL);
        }
        if (n < 0)
            die("send(MSG_ZEROCOPY)");
        if (lend) {
            state->owner[state->next++ & 0xffff] = slot;
            sender->pool->loans[slot]++;
        }
        data += n;
        left -= (size_t)n;
    }
    loan_returned(sender, slot);
}

struct vmsplice {
    int pipe[2];
};

static void vmsplice_open(struct bare_sender *sender)
{
    struct vmsplice *state = calloc(1, sizeof *state);
    if (!state)
        die("vmsplice");
    make_pipe(state->pipe);
    sender->state = state;
}

/* Never reused in reality: nothing tells when the kernel has done with the pages. */
static void vmsplice_send(struct bare_sender *sender, unsigned slot)
{
    struct vmsplice *state = sender->state;
    char *data = pool_data(sender->pool, slot);
    for (size_t left = sender->pool->message; left > 0;) {
        struct iovec piece = {data, left};
        ssize_t n = vmsplice(state->pipe[1], &piece, 1, 0);
        if (n < 0)
            die("vmsplice");
        data += n;
        left -= (size_t)n;
        while (n > 0) {
            ssize_t out = splice(state->pipe[0], NULL, sender->fd, NULL, (size_t)n, left > 0 ? SPLICE_F_MORE : 0);
            if (out <= 0)
                die("splice to socket");
            n -= out;
        }
    }
    pool_give_back(sender->pool, slot);
}

#ifdef HAVE_LIBURING
/* Newer than liburing 2.3's header. */
#define REPORT_USAGE (1u << 3)  /* IORING_SEND_ZC_REPORT_USAGE */
#define USAGE_COPIED (1u << 31) /* IORING_NOTIF_USAGE_ZC_COPIED */

struct ring {
    struct io_uring ring;
    int answer;
};

static void uring_open(struct bare_sender *sender)
{
    struct ring *state = calloc(1, sizeof *state);
    if (!state)
        die("ring");
    struct io_uring_params parameters = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                                                  IORING_SETUP_CQSIZE,
                                         .cq_entries = 4 * POOL_MESSAGES_MAX};
    int result = io_uring_queue_init_params(8, &state->ring, &parameters);
    if (result < 0)
        absent("io_uring: %s", strerror(-result));
    struct iovec all = {sender->pool->memory, sender->pool->stride * sender->pool->count};
    result = io_uring_register_buffers(&state->ring, &all, 1);
    if (result < 0)
        absent("registered buffers: %s", strerror(-result));
    result = io_uring_register_files(&state->ring, &sender->fd, 1);
    if (result < 0)
        absent("registered files: %s", strerror(-result));
    sender->state = state;
}

#define NO_ANSWER INT_MIN

static void uring_completions(struct bare_sender *sender)
{
    struct ring *state = sender->state;
    struct io_uring_cqe *cqe;
    unsigned head, seen = 0;
    io_uring_for_each_cqe(&state->ring, head, cqe)
    {
        seen++;
        unsigned slot = (unsigned)cqe->user_data;
        if (cqe->flags & IORING_CQE_F_NOTIF) {
            ++*((unsigned)cqe->res & USAGE_COPIED ? &sender->said_copied : &sender->said_by_reference);
            loan_returned(sender, slot);
        } else {
            state->answer = cqe->res;
            if (cqe->flags & IORING_CQE_F_MORE)
                sender->pool->loans[slot]++;
        }
    }
    io_uring_cq_advance(&state->ring, seen);
}

static void uring_wait(struct bare_sender *sender)
{
    struct ring *state = sender->state;
    int result = io_uring_submit_and_wait(&state->ring, 1);
    if (result < 0 && result != -EINTR)
        die("io_uring_submit_and_wait");
    uring_completions(sender);
}

static void uring_message(struct bare_sender *sender, unsigned slot, bool lend)
{
    struct ring *state = sender->state;
    const char *data = pool_data(sender->pool, slot);
    sender->pool->loans[slot] = 1;
    for (size_t left = sender->pool->message; left > 0;) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&state->ring);
        int flags = MSG_NOSIGNAL | MSG_WAITALL;
        if (lend)
            io_uring_prep_send_zc_fixed(sqe, 0, data, left, flags, REPORT_USAGE, 0);
        else
            io_uring_prep_send(sqe, 0, data, left, flags);
        io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
        io_uring_sqe_set_data64(sqe, slot);
        state->answer = NO_ANSWER;
        while (state->answer == NO_ANSWER)
            uring_wait(sender);
        if (state->answer < 0) {
            errno = -state->answer;
            if (errno == EINVAL || errno == EOPNOTSUPP)
                absent("SEND_ZC: %s", strerror(errno));
            die("IORING_OP_SEND");
        }
        data += state->answer;
        left -= (size_t)state->answer;
    }
    loan_returned(sender, slot);
}

static void uring_send(struct bare_sender *sender, unsigned slot)
{
    uring_message(sender, slot, false);
}

static void uring_send_zc(struct bare_sender *sender, unsigned slot)
{
    uring_message(sender, slot, true);
}
#else
static void uring_open(struct bare_sender *sender)
{
    (void)sender;
    absent("built without liburing");
}
#define uring_send NULL
#define uring_send_zc NULL
#define uring_wait NULL
#endif

static const struct bare_sender_kind sender_kinds[] = {
    {"send", NULL, plain_send, NULL},
    {"msg_zerocopy", zerocopy_open, zerocopy_send, zerocopy_collect},
    {"vmsplice", vmsplice_open, vmsplice_send, NULL},
    {"uring_send", uring_open, uring_send, NULL},
    {"uring_send_zc", uring_open, uring_send_zc, uring_wait},
};

#define COUNT(array) (sizeof(array) / sizeof *(array))

const struct bare_sender_kind *bare_sender_by_name(const char *name)
{
    for (size_t i = 0; i < COUNT(sender_kinds); i++)
        if (strcmp(name, sender_kinds[i].name) == 0)
            return &sender_kinds[i];
    return NULL;
}

void bare_sender_open(struct bare_sender *sender, const struct bare_sender_kind *kind, int fd, struct pool *pool)
{
    *sender = (struct bare_sender){.fd = fd, .pool = pool, .kind = kind};
    if (kind->open)
        kind->open(sender);
}

/* What a program does that produces each message anew and never touches it again: new pages in the slot's place. */
static void make_fresh(struct pool *pool, unsigned slot)
{
    static char *content;
    if (!content) {
        content = make_buffer(pool->stride, false);
        memcpy(content, pool->memory, pool->message);
    }
    char *data = pool_data(pool, slot);
    if (mmap(data, pool->stride, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != data)
        die("mmap");
    memcpy(data, content, pool->message);
}

const char *bare_sender_send(struct bare_sender *sender, bool fresh)
{
    while (sender->pool->free_count == 0)
        sender->kind->collect(sender);
    unsigned slot = pool_take(sender->pool);
    if (fresh)
        make_fresh(sender->pool, slot);
    sender->kind->send(sender, slot);
    return pool_data(sender->pool, slot);
}

void bare_sender_finish(struct bare_sender *sender)
{
    while (sender->pool->free_count < sender->pool->count)
        sender->kind->collect(sender);
}

/* --- file to file ------------------------------------------------------------------------------------------- */

static void copy_read_write(int from, int to, uint64_t size)
{
    static char *buffer;
    if (!buffer)
        buffer = make_buffer(BUFFER_SIZE, false);
    for (uint64_t at = 0; at < size;) {
        ssize_t n = pread(from, buffer, BUFFER_SIZE, (off_t)at);
        if (n <= 0)
            die("read");
        at += (uint64_t)n;
        write_all(to, buffer, (size_t)n);
    }
}

static void copy_mmap(int from, int to, uint64_t size)
{
    char *map = mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_POPULATE, from, 0);
    if (map == MAP_FAILED)
        die("mmap");
    for (uint64_t at = 0; at < size; at += FILE_STEP)
        write_all(to, map + at, size - at < FILE_STEP ? size - at : FILE_STEP);
    munmap(map, size);
}

static void copy_range(int from, int to, uint64_t size)
{
    off_t in = 0, out = 0;
    while ((uint64_t)in < size) {
        ssize_t n = copy_file_range(from, &in, to, &out, size - (uint64_t)in, 0);
        if (n <= 0)
            absent("copy_file_range: %s", n < 0 ? strerror(errno) : "it ended early");
    }
}

static void copy_sendfile(int from, int to, uint64_t size)
{
    off_t at = 0;
    while ((uint64_t)at < size)
        if (sendfile(to, from, &at, FILE_STEP) <= 0)
            die("sendfile");
}

static void copy_splice(int from, int to, uint64_t size)
{
    int ends[2];
    make_pipe(ends);
    off_t at = 0;
    while ((uint64_t)at < size) {
        ssize_t n = splice(from, &at, ends[1], NULL, PIPE_SIZE, 0);
        if (n <= 0)
            die("splice");
        while (n > 0) {
            ssize_t out = splice(ends[0], NULL, to, NULL, (size_t)n, 0);
            if (out <= 0)
                die("splice");
            n -= out;
        }
    }
    close(ends[0]);
    close(ends[1]);
}

static void copy_clone(int from, int to, uint64_t size)
{
    (void)size;
    if (ioctl(to, FICLONE, from) < 0)
        absent("FICLONE: %s", strerror(errno));
}

static void set_direct(int fd)
{
    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_DIRECT) < 0)
        absent("O_DIRECT: %s", strerror(errno));
}

static void copy_direct(int from, int to, uint64_t size)
{
    static char *buffer;
    if (!buffer)
        buffer = make_buffer(PIPE_SIZE, true);
    set_direct(from);
    set_direct(to);
    for (uint64_t at = 0; at < size;) {
        ssize_t n = pread(from, buffer, PIPE_SIZE, (off_t)at);
        if (n <= 0)
            die("read (O_DIRECT)");
        at += (uint64_t)n;
        write_all(to, buffer, (size_t)n);
    }
}

static const struct {
    const char *name;
    bare_copy *copy;
} copies[] = {
    {"read+write", copy_read_write}, {"mmap", copy_mmap},     {"copy_file_range", copy_range},
    {"sendfile", copy_sendfile},     {"splice", copy_splice}, {"reflink", copy_clone},
    {"direct", copy_direct},
};

bare_copy *bare_copy_by_name(const char *name)
{
    for (size_t i = 0; i < COUNT(copies); i++)
        if (strcmp(name, copies[i].name) == 0)
            return copies[i].copy;
    return NULL;
}

/* --- records to a log --------------------------------------------------------------------------------------- */

static void append_write(int fd, const char *record, size_t size, uint64_t offset)
{
    while (size > 0) {
        ssize_t n = pwrite(fd, record, size, (off_t)offset);
        if (n <= 0)
            die("pwrite");
        record += n;
        offset += (uint64_t)n;
        size -= (size_t)n;
    }
}

bare_append *bare_append_by_name(const char *name, bool *ret_direct)
{
    *ret_direct = strcmp(name, "direct") == 0;
    return *ret_direct || strcmp(name, "write") == 0 ? append_write : NULL;
}

/* --- one source to several sockets --------------------------------------------------------------------------- */

static void fanout_copy(int source, const int *sinks, unsigned sink_count, uint64_t size)
{
    static char *buffer;
    if (!buffer)
        buffer = make_buffer(BUFFER_SIZE, false);
    while (size > 0) {
        ssize_t n = read(source, buffer, size < BUFFER_SIZE ? size : BUFFER_SIZE);
        if (n <= 0)
            die("read");
        for (unsigned i = 0; i < sink_count; i++)
            write_all(sinks[i], buffer, (size_t)n);
        size -= (size_t)n;
    }
}

static void fanout_sendfile(int source, const int *sinks, unsigned sink_count, uint64_t size)
{
    for (uint64_t at = 0; at < size;) {
        uint64_t step = size - at < PIPE_SIZE ? size - at : PIPE_SIZE;
        for (unsigned i = 0; i < sink_count; i++) {
            off_t offset = (off_t)at;
            while ((uint64_t)offset < at + step)
                if (sendfile(sinks[i], source, &offset, at + step - (uint64_t)offset) <= 0)
                    die("sendfile");
        }
        at += step;
    }
}

static void drain(int from, int to, size_t size)
{
    while (size > 0) {
        ssize_t n = splice(from, NULL, to, NULL, size, 0);
        if (n <= 0)
            die("splice to socket");
        size -= (size_t)n;
    }
}

static void fanout_tee(int source, const int *sinks, unsigned sink_count, uint64_t size)
{
    static int shared[2], own[2];
    if (!shared[1]) {
        make_pipe(shared);
        make_pipe(own);
    }
    while (size > 0) {
        ssize_t n = splice(source, NULL, shared[1], NULL, size < PIPE_SIZE ? size : PIPE_SIZE, 0);
        if (n <= 0)
            die("splice");
        for (unsigned i = 0; i + 1 < sink_count; i++) {
            /* The second pipe is empty and no smaller, so it takes all. */
            if (tee(shared[0], own[1], (size_t)n, 0) != n)
                die("tee");
            drain(own[0], sinks[i], (size_t)n);
        }
        drain(shared[0], sinks[sink_count - 1], (size_t)n);
        size -= (size_t)n;
    }
}

bare_fanout *bare_fanout_by_name(const char *name, bool from_file)
{
    if (strcmp(name, "copy") == 0)
        return fanout_copy;
    if (strcmp(name, "tee") == 0)
        return fanout_tee;
    return from_file && strcmp(name, "sendfile") == 0 ? fanout_sendfile : NULL;
}
