/* SPDX-License-Identifier: MIT
 *
 * A case is a route, a source and a sink. Three processes take part, besides this one: the mover runs one transfer and
 * is traced; a feeder fills the source if it is a stream; a drainer empties the sink if it is one. The mover waits for
 * a byte on a pipe before it begins and writes its receipt to another at the end; rows about these two pipes are left
 * out of the comparison, and so are page faults, which no receipt is about.
 */
#include "check.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "collect.h"
#include "mechanism.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <linux/tls.h>
#include <netinet/in.h>
#include <signal.h>
#include <sluice/sluice.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CASE_BYTES ((4u << 20) + 123) /* several pipes and socket buffers full, and no round number */
#define SMALL_BYTES 1000u             /* what btrfs keeps in its metadata, instead of in extents */

#ifndef SOL_TLS
#define SOL_TLS 282
#endif

/* ---- The ends of a case --------------------------------------------------------------------------------------------
 */

/* SIDE_TLS: TCP, with TLS by the kernel. */
enum side { SIDE_MEMORY, SIDE_FILE, SIDE_PIPE, SIDE_TCP, SIDE_UNIX, SIDE_COUNT, SIDE_TLS = SIDE_COUNT };
static const char *const side_names[] = {"memory", "file", "pipe", "tcp", "unix", "tls"};

struct channel {
    int ours, theirs; /* the mover's descriptor, and the feeder's or drainer's; -1 none */
};

/* Two pages in each segment, and TCP's options: else none of them can be mapped. */
static const int paged_segment = 2 * 4096 + 12;

static int open_tcp(bool in_pages, int *ret_near, int *ret_far)
{
    CLEANUP_FD int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CLEANUP_FD int near = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    /* The host's default may be bbr, which without an fq queue makes this test slow (KERNEL-FACTS 0.1). Best effort. */
    (void)setsockopt(listener, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5);
    (void)setsockopt(near, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5);
    if (in_pages) {
        (void)setsockopt(listener, IPPROTO_TCP, TCP_MAXSEG, &paged_segment, sizeof paged_segment);
        (void)setsockopt(near, IPPROTO_TCP, TCP_MAXSEG, &paged_segment, sizeof paged_segment);
    }
    if (listener < 0 || near < 0 || bind(listener, (struct sockaddr *)&address, size) != 0 ||
        listen(listener, 1) != 0 || getsockname(listener, (struct sockaddr *)&address, &size) != 0 ||
        connect(near, (struct sockaddr *)&address, size) != 0)
        return -errno;
    int far = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (far < 0)
        return -errno;
    *ret_near = TAKE_FD(near);
    *ret_far = far;
    return 0;
}

/* One key for everybody: no handshake is made. Of a drainer's end nothing is asked, as it discards what it gets. */
static int start_tls(int fd, int direction)
{
    struct tls12_crypto_info_aes_gcm_128 keys = {
        .info = {.version = TLS_1_2_VERSION, .cipher_type = TLS_CIPHER_AES_GCM_128}};
    return setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", sizeof "tls") != 0 ||
                   setsockopt(fd, SOL_TLS, direction, &keys, sizeof keys) != 0
               ? -errno
               : 0;
}

int check_parse_peer(const char *text, struct sockaddr_in *ret_address)
{
    char host[INET_ADDRSTRLEN];
    uint64_t port;
    const char *colon = strchr(text, ':');
    struct sockaddr_in address = {.sin_family = AF_INET};
    if (colon == NULL || (size_t)(colon - text) >= sizeof host)
        return -EINVAL;
    snprintf(host, sizeof host, "%.*s", (int)(colon - text), text);
    if (text_parse_unsigned(colon + 1, &port) < 0 || port == 0 || port > UINT16_MAX ||
        inet_pton(AF_INET, host, &address.sin_addr) != 1)
        return -EINVAL;
    address.sin_port = htons((uint16_t)port);
    *ret_address = address;
    return 0;
}

static int connect_to(const char *peer, int *ret_fd)
{
    struct sockaddr_in address;
    int error = check_parse_peer(peer, &address);
    if (error < 0)
        return error;
    CLEANUP_FD int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        return -errno;
    *ret_fd = TAKE_FD(fd);
    return 0;
}

static int open_file(const char *directory, size_t bytes)
{
    int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    char piece[4096];
    for (size_t i = 0; i < sizeof piece; i++)
        piece[i] = (char)(i * 7 + i / 256);
    for (size_t left = bytes; left > 0;) {
        ssize_t written = write(fd, piece, left < sizeof piece ? left : sizeof piece);
        if (written < 0) {
            int error = -errno;
            close_fd(fd);
            return error;
        }
        left -= (size_t)written;
    }
    return fd;
}

/* file_bytes: of a source that is a file. */
static int open_channel(enum side side, bool source, bool in_pages, size_t file_bytes, const char *directory,
                        const char *peer, struct channel *ret_channel)
{
    int pair[2] = {-1, -1}, error = 0;
    switch (side) {
    case SIDE_FILE:
        pair[0] = open_file(directory, source ? file_bytes : 0);
        error = pair[0] < 0 ? pair[0] : 0;
        break;
    case SIDE_PIPE:
        error = pipe2(pair, O_CLOEXEC) != 0 ? -errno : 0;
        if (!source) { /* the mover writes */
            int reader = pair[0];
            pair[0] = pair[1];
            pair[1] = reader;
        }
        break;
    case SIDE_TCP:
        error = peer == NULL ? open_tcp(in_pages, &pair[0], &pair[1]) : connect_to(peer, &pair[0]);
        break;
    case SIDE_UNIX:
        error = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0 ? -errno : 0;
        break;
    case SIDE_TLS:
        error = open_tcp(false, &pair[0], &pair[1]);
        if (error == 0)
            error = start_tls(pair[0], source ? TLS_RX : TLS_TX);
        if (error == 0 && source)
            error = start_tls(pair[1], TLS_TX);
        break;
    case SIDE_MEMORY:
        break;
    }
    ret_channel->ours = pair[0];
    ret_channel->theirs = pair[1];
    return error;
}

static void close_channel(struct channel *channel)
{
    channel->ours = close_fd(channel->ours);
    channel->theirs = close_fd(channel->theirs);
}

/* ---- The processes of a case ------------------------------------------------------------------------------------ */

static void feed(int fd)
{
    static char piece[65536];
    for (size_t left = CASE_BYTES; left > 0;) {
        ssize_t written = write(fd, piece, left < sizeof piece ? left : sizeof piece);
        if (written < 0)
            _exit(1);
        left -= (size_t)written;
    }
    _exit(0);
}

/* Pages of the kernel's own, which can be mapped where they arrive. */
static void feed_pages(int fd)
{
    static char piece[65536];
    int through[2];
    if (pipe(through) < 0)
        _exit(1);
    for (size_t left = CASE_BYTES; left > 0;) {
        size_t part = left < sizeof piece ? left : sizeof piece;
        if (write(through[1], piece, part) != (ssize_t)part)
            _exit(1);
        for (size_t inside = part; inside > 0;) {
            ssize_t moved = splice(through[0], NULL, fd, NULL, inside, left > part ? SPLICE_F_MORE : 0);
            if (moved <= 0)
                _exit(1);
            inside -= (size_t)moved;
        }
        left -= part;
    }
    _exit(0);
}

static void drain_to_nowhere(int fd)
{
    static char piece[65536];
    ssize_t got;
    while ((got = read(fd, piece, sizeof piece)) > 0)
        ;
    _exit(got < 0);
}

/* What the mover says at the end. */
struct outcome {
    int result;
    uint64_t sent_again;           /* to a peer: bytes that TCP sent more than once */
    struct sluice_receipt receipt; /* of all sinks together */
    struct sluice_error error;
};

#define SINKS_MAX 3
#define DELIVERY_SECONDS 30
#define MEMORY_ALIGNMENT 4096 /* as O_DIRECT wants it */

enum carrier {
    BY_CALLS,
    BY_RING,          /* on a loop on io_uring */
    BY_RING_FROM_KEPT /* the same, out of memory that the ring registers */
};

struct trial {
    enum sluice_route route;
    enum side source, sink;
    unsigned sinks; /* all of this kind */
    enum carrier carrier;
    bool to_peer;      /* not over loopback */
    size_t file_bytes; /* in the source, if it is a file */
    struct channel in, out[SINKS_MAX];
    uint64_t inodes[SINKS_MAX]; /* of the sinks */
    int kept_sink, kept_source; /* files, to look at afterwards what they share; -1: none */
    int go[2], said[2];
};

static bool feeds_pages(const struct trial *trial)
{
    return trial->route == SLUICE_ROUTE_TCP_RECEIVE && trial->source == SIDE_TCP && trial->sink != SIDE_MEMORY;
}

/* The ends of a transfer, and its segment. */
struct parts {
    struct sluice_end *source, *sinks[SINKS_MAX];
    struct sluice_segment segment;
    char *targets[SINKS_MAX], *memory;
    struct sluice_memory *kept;
};

static char *page_aligned(void)
{
    return aligned_alloc(MEMORY_ALIGNMENT, CASE_BYTES / MEMORY_ALIGNMENT * MEMORY_ALIGNMENT + MEMORY_ALIGNMENT);
}

static int open_sink(const struct trial *trial, unsigned which, struct parts *parts)
{
    if (trial->sink == SIDE_MEMORY) {
        parts->targets[which] = page_aligned();
        return parts->targets[which] == NULL
                   ? -ENOMEM
                   : sluice_end_open_memory(parts->targets[which], CASE_BYTES, &parts->sinks[which]);
    }
    /* With a descriptor of its own: others are not lent to. */
    CLEANUP_FD int fd = fcntl(trial->out[which].ours, F_DUPFD_CLOEXEC, 0);
    if (trial->carrier != BY_CALLS && fd >= 0)
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    int error = fd < 0 ? -errno : sluice_end_open(fd, SLUICE_END_OWN_FD, &parts->sinks[which]);
    if (error == 0)
        TAKE_FD(fd);
    return error;
}

/* Only memory whose owner learns that it is free again is lent. */
static void take_note(void *context, const void *data, size_t length)
{
    (void)context, (void)data, (void)length;
}

static int open_source(const struct trial *trial, struct parts *parts)
{
    struct sluice_segment *segment = &parts->segment;
    if (trial->source != SIDE_MEMORY) {
        segment->kind = trial->source == SIDE_FILE ? SLUICE_SEGMENT_FILE : SLUICE_SEGMENT_STREAM;
        segment->length = trial->source == SIDE_FILE ? trial->file_bytes : SLUICE_UNTIL_END;
        if (trial->carrier != BY_CALLS)
            fcntl(trial->in.ours, F_SETFL, fcntl(trial->in.ours, F_GETFL) | O_NONBLOCK);
        int error = sluice_end_open(trial->in.ours, 0, &parts->source);
        segment->end = parts->source;
        return error;
    }
    bool given = trial->route == SLUICE_ROUTE_VMSPLICE;
    int error = given || trial->carrier == BY_RING_FROM_KEPT ? sluice_memory_new(CASE_BYTES, &parts->kept) : 0;
    if (error < 0)
        return error;
    if (parts->kept == NULL)
        parts->memory = page_aligned();
    *segment = (struct sluice_segment){
        .kind = SLUICE_SEGMENT_MEMORY,
        .data = parts->kept != NULL ? sluice_memory_data(parts->kept) : parts->memory,
        .length = CASE_BYTES,
        .release = given ? sluice_memory_release : take_note,
        .release_context = parts->kept,
        .memory = given ? NULL : parts->kept,
    };
    return segment->data == NULL ? -ENOMEM : 0;
}

static void close_parts(struct parts *parts)
{
    sluice_end_close(parts->source);
    for (unsigned i = 0; i < SINKS_MAX; i++) {
        sluice_end_close(parts->sinks[i]);
        free(parts->targets[i]);
    }
    sluice_memory_release(parts->kept, NULL, 0);
    free(parts->memory);
}

/* Also when it fails there may be something to close. */
static int open_parts(const struct trial *trial, struct parts *ret_parts)
{
    int error = 0;
    memset(ret_parts, 0, sizeof *ret_parts);
    for (unsigned i = 0; i < trial->sinks && error == 0; i++)
        error = open_sink(trial, i, ret_parts);
    return error == 0 ? open_source(trial, ret_parts) : error;
}

static struct sluice_transfer_options transfer_of(const struct trial *trial, struct parts *parts)
{
    return (struct sluice_transfer_options){
        .size = sizeof(struct sluice_transfer_options),
        .segments = &parts->segment,
        .segment_count = 1,
        .sinks = parts->sinks,
        .sink_count = trial->sinks,
        .route = trial->route,
    };
}

static const struct sluice_loop_options ring_options = {.size = sizeof ring_options, .kind = SLUICE_LOOP_IO_URING};

struct ring_run {
    struct sluice_loop *loop;
    struct outcome *outcome;
};

static void on_settled(void *context, unsigned sink, const struct sluice_receipt *difference)
{
    struct ring_run *run = context;
    (void)sink;
    sluice_receipt_add(&run->outcome->receipt, difference);
    sluice_loop_stop(run->loop);
}

static void on_done(void *context, struct sluice_transfer *transfer, int result)
{
    struct ring_run *run = context;
    run->outcome->result = result;
    run->outcome->receipt = *sluice_transfer_receipt(transfer, 0);
    run->outcome->error = *sluice_transfer_error(transfer);
    if (sluice_receipt_is_final(&run->outcome->receipt))
        sluice_loop_stop(run->loop);
}

static int run_on_ring(struct sluice_transfer_options *options, struct outcome *outcome)
{
    struct ring_run run = {.outcome = outcome};
    struct sluice_transfer *transfer;
    int error = sluice_loop_new(&ring_options, &run.loop);
    if (error < 0)
        return error;
    options->settled = on_settled;
    options->settled_context = &run;
    const struct sluice_receipt *receipt;
    error = sluice_loop_transfer(run.loop, options, on_done, &run, &transfer, &receipt, &outcome->error);
    if (error != 0)
        outcome->receipt = *receipt;
    if (error == 0 || (error > 0 && !sluice_receipt_is_final(&outcome->receipt)))
        error = sluice_loop_run(run.loop);
    sluice_loop_free(run.loop);
    return error < 0 ? error : outcome->result;
}

/* What waits in the socket for the peer's window leaves when the window opens, and with a device without scatter-gather
 * is copied then: there is no comparing a receipt with a trace before. */
static int await_delivery(int fd, uint64_t *ret_sent_again)
{
    struct tcp_info info;
    socklen_t size = sizeof info;
    int queued = 1;
    for (int left = DELIVERY_SECONDS * 1000; left > 0; left--) {
        if (ioctl(fd, SIOCOUTQ, &queued) < 0)
            return -errno;
        if (queued == 0)
            break;
        usleep(1000);
    }
    if (queued > 0)
        return -ETIMEDOUT;
    memset(&info, 0, sizeof info); /* Linux before 4.19 does not count it */
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) < 0)
        return -errno;
    *ret_sent_again += info.tcpi_bytes_retrans;
    return 0;
}

static int move(struct trial *trial, struct outcome *outcome)
{
    struct sluice_receipt receipts[SINKS_MAX];
    struct parts parts;
    char token;
    memset(receipts, 0, sizeof receipts);
    int error = open_parts(trial, &parts);
    if (error == 0 && parts.memory != NULL)
        memset(parts.memory, 0, CASE_BYTES); /* else its pages are made while it is sent */
    if (error == 0 && read(trial->go[0], &token, 1) != 1)
        error = -EPIPE;
    if (error == 0) {
        struct sluice_transfer_options options = transfer_of(trial, &parts);
        if (parts.segment.release == sluice_memory_release)
            parts.kept = NULL; /* the transfer's from here on */
        if (trial->carrier != BY_CALLS) {
            error = run_on_ring(&options, outcome);
        } else {
            error = sluice_transfer_run(&options, receipts, &outcome->error);
            for (unsigned i = 0; i < trial->sinks; i++)
                sluice_receipt_add(&outcome->receipt, &receipts[i]);
        }
    }
    for (unsigned i = 0; i < trial->sinks && error == 0 && trial->to_peer; i++)
        error = await_delivery(trial->out[i].ours, &outcome->sent_again);
    close_parts(&parts);
    return error;
}

static void close_channels(struct trial *trial)
{
    close_channel(&trial->in);
    for (unsigned i = 0; i < trial->sinks; i++)
        close_channel(&trial->out[i]);
}

static pid_t start(void (*life)(int), int fd, struct trial *trial)
{
    pid_t child = fork();
    if (child == 0) {
        /* Only its own descriptor: the others must see the end of the stream when their peer is gone. */
        int kept = dup(fd);
        close_channels(trial);
        close_fd(trial->go[0]);
        close_fd(trial->go[1]);
        close_fd(trial->said[0]);
        close_fd(trial->said[1]);
        life(kept);
    }
    return child;
}

static pid_t start_mover(struct trial *trial)
{
    pid_t child = fork();
    if (child != 0)
        return child;
    struct outcome outcome;
    memset(&outcome, 0, sizeof outcome);
    trial->in.theirs = close_fd(trial->in.theirs);
    for (unsigned i = 0; i < trial->sinks; i++)
        trial->out[i].theirs = close_fd(trial->out[i].theirs);
    trial->go[1] = close_fd(trial->go[1]);
    outcome.result = move(trial, &outcome);
    /* At most PIPE_BUF bytes would be kept together; there is one writer. */
    _exit(write(trial->said[1], &outcome, sizeof outcome) != (ssize_t)sizeof outcome);
}

static int read_all(int fd, void *to, size_t size)
{
    char *at = to;
    while (size > 0) {
        ssize_t got = read(fd, at, size);
        if (got <= 0)
            return got < 0 ? -errno : -EPIPE;
        at += got;
        size -= (size_t)got;
    }
    return 0;
}

static uint64_t inode_of(int fd)
{
    struct stat status;
    return fstat(fd, &status) == 0 ? status.st_ino : 0;
}

/* ---- Comparing -------------------------------------------------------------------------------------------------- */

/* What the trace has of a mover. */
struct seen {
    uint64_t bytes; /* into the sink */
    uint64_t calls, copy_bytes, unknown;
    uint64_t registered; /* by the ring, into and out of memory that it has registered */
    uint64_t stray;      /* tier (a): copied in softirq during the case, for this mover or for somebody else */
    bool to_device;      /* tier (a), to a peer: what is copied for the device is seen */
    uint64_t device;     /* copied for a device, and of no flow */
    uint64_t unseen;     /* of copy_bytes: not seen in calls, but what sending costs */
    uint64_t sent_again;
};

static bool is_pipe(const struct account_end *end, uint64_t inode)
{
    return end != NULL && end->key.kind == TRACE_END_PIPE && end->key.inode == inode;
}

/* What the library asks the kernel: by which device packets leave (netlink). No receipt counts that as moving bytes. */
static bool is_question(const struct account_end *end)
{
    return end != NULL && (end->key.kind == TRACE_END_SOCKET || end->key.kind == TRACE_END_KERNEL);
}

static bool ends_in(const struct account_end *end, enum side side)
{
    if (end == NULL)
        return false;
    switch (side) {
    case SIDE_FILE:
        return end->key.kind == TRACE_END_FILE || end->key.kind == TRACE_END_FILE_DIRECT;
    case SIDE_PIPE:
        return end->key.kind == TRACE_END_PIPE;
    case SIDE_TCP:
    case SIDE_TLS:
        return end->key.kind == TRACE_END_TCP;
    case SIDE_UNIX:
        return end->key.kind == TRACE_END_UNIX;
    case SIDE_MEMORY:
        break;
    }
    return false;
}

static uint64_t stray_bytes(struct account *account)
{
    size_t count;
    uint64_t bytes = 0;
    const struct account_unattributed *copies = account_unattributed(account, &count);
    for (size_t i = 0; i < count; i++)
        bytes += copies[i].in_calls ? 0 : copies[i].value.bytes;
    return bytes;
}

/* Sending in the course of no flow, for a device without scatter-gather: in softirq, and in calls that moved nothing,
 * like the one that takes TCP_CORK off. */
static uint64_t device_bytes(struct account *account)
{
    size_t count;
    uint64_t bytes = 0;
    const struct account_unattributed *copies = account_unattributed(account, &count);
    for (size_t i = 0; i < count; i++)
        if (!copies[i].in_calls || copies[i].function == TRACE_FN_SKB_COPY_AND_CSUM ||
            copies[i].function == TRACE_FN_SKB_COPY_BITS)
            bytes += copies[i].value.bytes;
    return bytes;
}

static bool is_sink(const struct trial *trial, const struct trace_flow_key *flow, const struct account_end *sink)
{
    if (trial->sink == SIDE_MEMORY)
        return flow->sink == 0;
    if (!ends_in(sink, trial->sink))
        return false;
    for (unsigned i = 0; i < trial->sinks; i++)
        if (sink->key.inode == trial->inodes[i])
            return true;
    return trial->sink != SIDE_PIPE; /* the only pipes that are not ours */
}

static void look(struct account *account, uint32_t pid, const struct trial *trial, struct seen *ret_seen)
{
    size_t count;
    const struct account_row *rows = account_rows(account, false, &count);
    uint64_t go = inode_of(trial->go[1]), said = inode_of(trial->said[0]);
    memset(ret_seen, 0, sizeof *ret_seen);
    for (size_t i = 0; i < count; i++) {
        const struct account_row *row = &rows[i];
        const struct account_end *source = account_end(account, row->key.source);
        const struct account_end *sink = account_end(account, row->key.sink);
        if (row->key.pid != pid || is_pipe(source, go) || is_pipe(sink, said) ||
            row->key.mechanism == TRACE_MAP_FAULT || row->key.mechanism == TRACE_COPY_ON_WRITE || is_question(source) ||
            is_question(sink))
            continue;
        ret_seen->calls += row->value.calls;
        ret_seen->copy_bytes += row->copy_bytes;
        ret_seen->unknown += row->unknown_bytes;
        ret_seen->registered += row->value.registered;
        ret_seen->unseen += ends_in(sink, SIDE_TCP) ? row->unseen_bytes : 0;
        if (is_sink(trial, &row->key, sink))
            ret_seen->bytes += row->value.bytes;
    }
}

/* The file system chooses between sharing and copying: where the trace cannot know what it chose, the file's extents
 * tell. */
static void look_at_extents(int fd, size_t bytes, struct seen *seen)
{
    enum { EXTENTS = 512 };
    _Alignas(struct fiemap) char space[sizeof(struct fiemap) + EXTENTS * sizeof(struct fiemap_extent)];
    struct fiemap *map = (struct fiemap *)(void *)space;
    *map = (struct fiemap){.fm_length = bytes, .fm_extent_count = EXTENTS};
    if (seen->unknown == 0 || fd < 0 || ioctl(fd, FS_IOC_FIEMAP, map) < 0)
        return;
    for (uint32_t i = 0; i < map->fm_mapped_extents; i++) {
        const struct fiemap_extent *extent = &map->fm_extents[i];
        uint64_t end = min_u64(extent->fe_logical + extent->fe_length, bytes);
        uint64_t length = end > extent->fe_logical ? end - extent->fe_logical : 0;
        if (length > seen->unknown)
            length = seen->unknown;
        seen->unknown -= length;
        if ((extent->fe_flags & FIEMAP_EXTENT_SHARED) == 0)
            seen->copy_bytes += length;
    }
}

static bool close_to(uint64_t a, uint64_t b, enum account_tier tier)
{
    uint64_t apart = a > b ? a - b : b - a;
    return tier == ACCOUNT_TIER_FUNCTIONS ? apart <= (a > b ? a : b) / 100 : apart == 0;
}

/* Where lent pages are copied on delivery, a segment that TCP sends again is copied again: the kernel's functions count
 * that, its notifications do not. */
static bool sent_again(const struct sluice_receipt *receipt, const struct seen *seen, enum account_tier tier)
{
    return tier == ACCOUNT_TIER_FUNCTIONS &&
           receipt->routes[SLUICE_ROUTE_MSG_ZEROCOPY].bytes + receipt->routes[SLUICE_ROUTE_URING_SEND_ZC].bytes > 0 &&
           seen->copy_bytes > receipt->copy_bytes && seen->copy_bytes - receipt->copy_bytes <= receipt->copied / 10;
}

/* Much is copied for the device when the peer's window opens, in nobody's course. All that was seen, in flows and of
 * none, is what the receipt says, but for what was sent, and copied, again. */
static bool device_agrees(const struct sluice_receipt *receipt, const struct seen *seen, enum account_tier tier)
{
    uint64_t all = seen->copy_bytes - seen->unseen + seen->device;
    return close_to(receipt->copy_bytes, all, tier) ||
           (all > receipt->copy_bytes && all - receipt->copy_bytes <= seen->sent_again);
}

static bool agrees(const struct sluice_receipt *receipt, const struct seen *seen, uint64_t calls,
                   enum account_tier tier)
{
    if (receipt->bytes != seen->bytes || calls != seen->calls || receipt->registered != seen->registered)
        return false;
    /* A tier that sees more than the receipt may know what the receipt calls unknown; the reverse would be a guess. */
    if (tier == ACCOUNT_TIER_FUNCTIONS && receipt->unknown > 0)
        return true;
    /* What goes by reference must not be copied behind our back either: softirq sends, too. */
    if (receipt->copy_bytes == 0 && seen->stray > receipt->bytes / 100)
        return false;
    /* The trace may know of one copy of bytes of which it cannot tell whether there was another. */
    if (receipt->unknown > 0)
        return receipt->unknown == seen->unknown;
    if (seen->unknown > 0 || (seen->to_device && !device_agrees(receipt, seen, tier)))
        return false;
    return close_to(receipt->copy_bytes, seen->copy_bytes, tier) || sent_again(receipt, seen, tier);
}

static const char *const carriers[] = {
    [BY_CALLS] = "", [BY_RING] = " by io_uring", [BY_RING_FROM_KEPT] = " by io_uring, memory kept"};

static void print_case(FILE *stream, const struct trial *trial, const struct outcome *outcome, const struct seen *seen,
                       uint64_t calls, bool agreed)
{
    const struct sluice_receipt *receipt = &outcome->receipt;
    if (stream == NULL)
        return;
    fprintf(stream, "%-9s %-15s %-6s -> %-6s%s%s", agreed ? "agrees" : "DISAGREES", sluice_route_name(trial->route),
            side_names[trial->source], side_names[trial->sink],
            trial->sinks == 3                  ? " (three of them)"
            : trial->sinks == 2                ? " (two of them)"
            : trial->file_bytes == SMALL_BYTES ? " (small)"
                                               : "",
            carriers[trial->carrier]);
    if (agreed) {
        fprintf(stream, "  %.2f copies per byte, %llu calls%s%s\n",
                receipt->bytes != 0 ? (double)receipt->copy_bytes / (double)receipt->bytes : 0,
                (unsigned long long)calls, receipt->registered != 0 ? ", registered memory" : "",
                receipt->unknown != 0 ? ", unknown on the receipt" : "");
        return;
    }
    fprintf(stream,
            "\n          receipt: %llu bytes, %llu calls, %llu bytes copied, %llu unknown, %llu by registered memory"
            "\n          traced:  %llu bytes, %llu calls, %llu bytes copied (%llu unseen), %llu unknown, %llu by "
            "registered memory; %llu copied in softirq, %llu for a device, %llu sent again\n",
            (unsigned long long)receipt->bytes, (unsigned long long)calls, (unsigned long long)receipt->copy_bytes,
            (unsigned long long)receipt->unknown, (unsigned long long)receipt->registered,
            (unsigned long long)seen->bytes, (unsigned long long)seen->calls, (unsigned long long)seen->copy_bytes,
            (unsigned long long)seen->unseen, (unsigned long long)seen->unknown, (unsigned long long)seen->registered,
            (unsigned long long)seen->stray, (unsigned long long)seen->device, (unsigned long long)seen->sent_again);
}

/* ---- One case ------------------------------------------------------------------------------------------------------
 */

struct check {
    struct check_options options;
    enum account_tier tier;
    struct collect *collect;
    struct sluice_loop *ring; /* to ask which routes it has; NULL: not to be had here */
    bool tls;                 /* the kernel has it */
    /* Of this run. */
    enum sluice_route route; /* SLUICE_ROUTE_AUTO: all */
    const char *directory;
    struct account *account;
    struct check_result *result;
};

/* Would the route serve this pair? Asked of the library, of the very ends. */
static bool serves(const struct check *check, const struct trial *trial)
{
    struct sluice_plan plan = {0};
    struct parts parts;
    bool yes = false;
    if (trial->carrier != BY_CALLS && check->ring == NULL)
        return false;
    if (open_parts(trial, &parts) == 0) {
        struct sluice_transfer_options options = transfer_of(trial, &parts);
        sluice_loop_plan(trial->carrier == BY_CALLS ? NULL : check->ring, &options, 0, 0, &plan);
    }
    for (unsigned i = 0; i < plan.count; i++)
        if (plan.entries[i].route == trial->route)
            yes = plan.entries[i].verdict != SLUICE_NEVER;
    close_parts(&parts);
    return yes;
}

/* The kernel left out some of the tracer's programs meanwhile, and says so: what is missing may be what they would have
 * seen. Such a case is tried again, so often. */
#define TRIES_MAX 5
#define TRY_AGAIN 1

static int run_processes(struct check *check, struct trial *trial, bool last_try)
{
    struct outcome outcome;
    struct seen seen;
    uint64_t missed = account_lost(check->account)->missed;
    uint64_t stray = stray_bytes(check->account), device = device_bytes(check->account);
    pid_t feeder = trial->in.theirs >= 0 ? start(feeds_pages(trial) ? feed_pages : feed, trial->in.theirs, trial) : 0;
    pid_t drainers[SINKS_MAX] = {0};
    for (unsigned i = 0; i < trial->sinks; i++)
        drainers[i] = trial->out[i].theirs >= 0 ? start(drain_to_nowhere, trial->out[i].theirs, trial) : 0;
    pid_t mover = start_mover(trial);
    close_channels(trial);
    trial->said[1] = close_fd(trial->said[1]);
    int error = mover < 0 || feeder < 0 || drainers[0] < 0 || drainers[1] < 0 || drainers[2] < 0 ? -EAGAIN : 0;
    if (error == 0)
        error = collect_add(check->collect, (uint32_t)mover);
    if (error == 0)
        error = account_enter_process(check->account, (uint32_t)mover, 0, "mover");
    if (error == 0 && write(trial->go[1], "g", 1) != 1)
        error = -errno;
    if (error < 0 && mover > 0)
        kill(mover, SIGKILL);
    if (error == 0)
        error = read_all(trial->said[0], &outcome, sizeof outcome);
    pid_t all[] = {mover, feeder, drainers[0], drainers[1], drainers[2]};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (all[i] > 0)
            waitpid(all[i], NULL, 0);
    if (error == 0)
        error = collect_drain(check->collect, check->account, NULL);
    if (error < 0)
        return error;
    if (outcome.result == -EOPNOTSUPP && outcome.receipt.bytes == 0) { /* these files', not such files' refusal */
        check->result->unserved++;
        return 0;
    }
    if (outcome.result < 0) {
        char text[512];
        sluice_error_format(&outcome.error, text, sizeof text);
        fprintf(stderr, "sluice trace: --check: %s from %s to %s: %s\n", sluice_route_name(trial->route),
                side_names[trial->source], side_names[trial->sink], text);
        return outcome.result;
    }
    uint64_t calls = 0;
    for (unsigned i = 0; i < SLUICE_ROUTE_COUNT; i++)
        calls += outcome.receipt.routes[i].calls;
    look(check->account, (uint32_t)mover, trial, &seen);
    if (trial->route == SLUICE_ROUTE_COPY_FILE_RANGE || trial->route == SLUICE_ROUTE_REFLINK)
        look_at_extents(trial->kept_sink, trial->file_bytes, &seen);
    seen.stray = stray_bytes(check->account) - stray;
    seen.device = device_bytes(check->account) - device;
    seen.to_device = trial->to_peer && (collect_functions(check->collect) & (1u << TRACE_FN_SKB_COPY_AND_CSUM)) != 0;
    seen.sent_again = outcome.sent_again;
    bool agreed = agrees(&outcome.receipt, &seen, calls, check->result->tier);
    if (!agreed && !last_try && account_lost(check->account)->missed > missed)
        return TRY_AGAIN;
    print_case(check->options.stream, trial, &outcome, &seen, calls, agreed);
    if (agreed)
        check->result->agreed++;
    else
        check->result->disagreed++;
    return 0;
}

struct pair {
    enum sluice_route route;
    enum side source, sink;
    unsigned sinks;
    size_t file_bytes;
    enum carrier carrier;
};

static int try_case(struct check *check, const struct pair *pair, bool last_try)
{
    struct trial trial = {.route = pair->route,
                          .source = pair->source,
                          .sink = pair->sink,
                          .sinks = pair->sinks,
                          .carrier = pair->carrier,
                          .to_peer = check->options.peer != NULL,
                          .file_bytes = pair->file_bytes,
                          .in = {-1, -1},
                          .out = {{-1, -1}, {-1, -1}, {-1, -1}},
                          .kept_sink = -1,
                          .kept_source = -1,
                          .go = {-1, -1},
                          .said = {-1, -1}};
    int error =
        open_channel(trial.source, true, feeds_pages(&trial), trial.file_bytes, check->directory, NULL, &trial.in);
    for (unsigned i = 0; i < trial.sinks && error == 0; i++) {
        error = open_channel(trial.sink, false, false, 0, check->directory, check->options.peer, &trial.out[i]);
        trial.inodes[i] = inode_of(trial.out[i].ours);
    }
    if (error == 0 && trial.source == SIDE_FILE && trial.sink == SIDE_FILE) {
        trial.kept_source = fcntl(trial.in.ours, F_DUPFD_CLOEXEC, 0);
        trial.kept_sink = fcntl(trial.out[0].ours, F_DUPFD_CLOEXEC, 0);
    }
    if (error == 0 && !serves(check, &trial)) {
        check->result->unserved++;
    } else if (error == 0) {
        if (pipe2(trial.go, O_CLOEXEC) != 0 || pipe2(trial.said, O_CLOEXEC) != 0)
            error = -errno;
        else
            error = run_processes(check, &trial, last_try);
    }
    close_channels(&trial);
    close_fd(trial.kept_sink);
    close_fd(trial.kept_source);
    close_fd(trial.go[0]);
    close_fd(trial.go[1]);
    close_fd(trial.said[0]);
    close_fd(trial.said[1]);
    return error;
}

static int run_case(struct check *check, const struct pair *pair)
{
    if ((check->route != SLUICE_ROUTE_AUTO && check->route != pair->route) ||
        (check->options.peer != NULL && pair->sink != SIDE_TCP) ||
        (!check->tls && (pair->source == SIDE_TLS || pair->sink == SIDE_TLS)))
        return 0;
    int tries = 1, error;
    do
        error = try_case(check, pair, tries == TRIES_MAX);
    while (error == TRY_AGAIN && tries++ < TRIES_MAX);
    return error;
}

static int run_cases(struct check *check)
{
    for (unsigned route = SLUICE_ROUTE_AUTO + 1; route < SLUICE_ROUTE_COUNT; route++)
        for (unsigned source = 0; source < SIDE_COUNT; source++)
            for (unsigned sink = SIDE_MEMORY; sink < SIDE_COUNT; sink++) {
                if (source == SIDE_MEMORY && sink == SIDE_MEMORY) /* a memcpy: nothing of it passes the kernel */
                    continue;
                struct pair pair = {.route = (enum sluice_route)route,
                                    .source = (enum side)source,
                                    .sink = (enum side)sink,
                                    .sinks = 1,
                                    .file_bytes = CASE_BYTES,
                                    .carrier = route == SLUICE_ROUTE_URING_SEND_ZC ? BY_RING : BY_CALLS};
                int error = run_case(check, &pair);
                if (error < 0)
                    return error;
            }
    static const struct pair more[] = {
        /* What is read once for several sinks must not count twice, and what is not copied not at all. */
        {SLUICE_ROUTE_COPY, SIDE_FILE, SIDE_TCP, 2, CASE_BYTES, BY_CALLS},
        {SLUICE_ROUTE_COPY, SIDE_PIPE, SIDE_TCP, 2, CASE_BYTES, BY_CALLS},
        {SLUICE_ROUTE_COPY, SIDE_TCP, SIDE_TCP, 3, CASE_BYTES, BY_CALLS},
        {SLUICE_ROUTE_TEE, SIDE_PIPE, SIDE_PIPE, 2, CASE_BYTES, BY_CALLS},
        {SLUICE_ROUTE_TEE, SIDE_PIPE, SIDE_TCP, 3, CASE_BYTES, BY_CALLS},
        {SLUICE_ROUTE_TEE, SIDE_PIPE, SIDE_FILE, 2, CASE_BYTES, BY_CALLS},
        {SLUICE_ROUTE_TEE, SIDE_TCP, SIDE_TCP, 2, CASE_BYTES, BY_CALLS},
        {SLUICE_ROUTE_TEE, SIDE_TCP, SIDE_PIPE, 3, CASE_BYTES, BY_CALLS},
        {SLUICE_ROUTE_TEE, SIDE_TCP, SIDE_FILE, 3, CASE_BYTES, BY_CALLS},
        {SLUICE_ROUTE_TEE, SIDE_PIPE, SIDE_UNIX, 2, CASE_BYTES, BY_CALLS},
        /* It shares nothing, as it has no extents. */
        {SLUICE_ROUTE_REFLINK, SIDE_FILE, SIDE_FILE, 1, SMALL_BYTES, BY_CALLS},
        /* READ_FIXED and WRITE_FIXED with the pool's buffers, and what goes on from there by other ways. */
        {SLUICE_ROUTE_COPY, SIDE_FILE, SIDE_FILE, 1, CASE_BYTES, BY_RING},
        {SLUICE_ROUTE_COPY, SIDE_FILE, SIDE_PIPE, 1, CASE_BYTES, BY_RING},
        {SLUICE_ROUTE_COPY, SIDE_FILE, SIDE_TCP, 1, CASE_BYTES, BY_RING},
        {SLUICE_ROUTE_COPY, SIDE_TCP, SIDE_FILE, 1, CASE_BYTES, BY_RING},
        {SLUICE_ROUTE_DIRECT, SIDE_FILE, SIDE_FILE, 1, CASE_BYTES, BY_RING},
        {SLUICE_ROUTE_DIRECT, SIDE_FILE, SIDE_TCP, 1, CASE_BYTES, BY_RING},
        /* WRITE_FIXED, SEND and SEND_ZC from memory that is kept. */
        {SLUICE_ROUTE_COPY, SIDE_MEMORY, SIDE_FILE, 1, CASE_BYTES, BY_RING_FROM_KEPT},
        {SLUICE_ROUTE_COPY, SIDE_MEMORY, SIDE_TCP, 1, CASE_BYTES, BY_RING_FROM_KEPT},
        {SLUICE_ROUTE_DIRECT, SIDE_MEMORY, SIDE_FILE, 1, CASE_BYTES, BY_RING_FROM_KEPT},
        {SLUICE_ROUTE_URING_SEND_ZC, SIDE_MEMORY, SIDE_TCP, 1, CASE_BYTES, BY_RING_FROM_KEPT},
        /* Encrypted and decrypted by the kernel, on the CPU: no device here does it. */
        {SLUICE_ROUTE_SENDFILE, SIDE_FILE, SIDE_TLS, 1, CASE_BYTES, BY_CALLS},
        {SLUICE_ROUTE_SPLICE, SIDE_FILE, SIDE_TLS, 1, CASE_BYTES, BY_CALLS},
        {SLUICE_ROUTE_SPLICE, SIDE_PIPE, SIDE_TLS, 1, CASE_BYTES, BY_CALLS},
        {SLUICE_ROUTE_TEE, SIDE_PIPE, SIDE_TLS, 2, CASE_BYTES, BY_CALLS},
        {SLUICE_ROUTE_VMSPLICE, SIDE_MEMORY, SIDE_TLS, 1, CASE_BYTES, BY_CALLS},
        {SLUICE_ROUTE_COPY, SIDE_FILE, SIDE_TLS, 1, CASE_BYTES, BY_CALLS},
        {SLUICE_ROUTE_COPY, SIDE_TLS, SIDE_FILE, 1, CASE_BYTES, BY_CALLS},
        {SLUICE_ROUTE_SPLICE, SIDE_TLS, SIDE_PIPE, 1, CASE_BYTES, BY_CALLS},
    };
    for (size_t i = 0; i < sizeof more / sizeof more[0]; i++) {
        int error = run_case(check, &more[i]);
        if (error < 0)
            return error;
    }
    return 0;
}

/* To ask it, never to run it. */
static int find_ring(struct check *check)
{
    struct sluice_error error;
    if (sluice_loop_probe(&ring_options, &error) == 0)
        return sluice_loop_new(&ring_options, &check->ring);
    if (check->options.stream != NULL)
        fprintf(check->options.stream, "left out: what io_uring carries: %s\n",
                error.reason != NULL ? error.reason : text_errno_meaning(error.code));
    return 0;
}

static void find_tls(struct check *check)
{
    const char *reason;
    check->tls = sluice_tls_probe(&reason) == 0;
    if (!check->tls && check->options.stream != NULL && check->options.peer == NULL)
        fprintf(check->options.stream, "left out: kernel TLS: %s\n", reason);
}

int check_open(const struct check_options *options, struct check **ret_check)
{
    struct failure failure = {.text = ""};
    struct collect_options collect = {.scope = TRACE_SCOPE_PROCESSES, .functions = !options->trust_tier_b};
    struct check *check = calloc(1, sizeof *check);
    if (check == NULL)
        return -ENOMEM;
    check->options = *options;
    int error = find_ring(check);
    find_tls(check);
    if (error == 0)
        error = collect_open(&collect, &check->collect, &check->tier, &failure);
    if (error == 0 && options->functions && check->tier != ACCOUNT_TIER_FUNCTIONS)
        error = -ENOTSUP;
    if (error < 0) {
        fprintf(stderr, "sluice trace: --check needs to count in the kernel: %s\n", failure.text);
        check_close(check);
        return error;
    }
    *ret_check = check;
    return 0;
}

int check_run(struct check *check, enum sluice_route route, const char *directory, struct check_result *ret_result)
{
    memset(ret_result, 0, sizeof *ret_result);
    ret_result->tier = check->tier;
    check->result = ret_result;
    check->route = route;
    check->directory = directory != NULL ? directory : getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp";
    int error = account_new(check->tier, &check->account);
    if (error == 0)
        account_watch(check->account, collect_functions(check->collect));
    if (error == 0)
        error = run_cases(check);
    if (error < 0)
        fprintf(stderr, "sluice trace: --check: %s (%s)\n", text_errno_meaning(error), text_errno_name(error));
    else if (check->options.stream != NULL)
        fprintf(check->options.stream,
                "tier (%c): %u receipts agree with the trace, %u do not; %u pairs have no such route\n",
                ret_result->tier, ret_result->agreed, ret_result->disagreed, ret_result->unserved);
    account_free(check->account);
    check->account = NULL;
    return error;
}

void check_close(struct check *check)
{
    if (check == NULL)
        return;
    collect_close(check->collect);
    if (check->ring != NULL)
        sluice_loop_free(check->ring);
    free(check);
}
