/* SPDX-License-Identifier: MIT
 *
 * Kernel TLS as the library sees it, by a kernel that is made to say so: what this machine's has not, and what no
 * device here does. The bytes go as they are. With a real one: tests/vm/test_ktls.py.
 */
#include "../check.h"
#include "sys.h"
#include "world.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/tls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef SOL_TLS
#define SOL_TLS 282
#endif
#define SIZE 20000

static struct {
    int fd; /* that has TLS; -1: every socket */
    bool on, sends, receives, old, zero_copy;
    int by_device;            /* sockets here that a device serves, by /proc/net/tls_stat; -1: no such file */
    int conf;                 /* TLS_CONF_*, what the kernel tells of this socket; 0: not to us */
    unsigned opened, asked;   /* how often */
    unsigned questions;       /* getsockopt */
    int probe;                /* errno */
    int record, level, alert; /* what comes instead of data, once `until` bytes have; 0: nothing */
    size_t until, came;
    int last_flags; /* of the first send */
    unsigned sends_seen;
} kernel;

static struct sys real;
static int netlink_fd = -1;

static int fake_getsockopt(int fd, int level, int name, void *value, socklen_t *size)
{
    bool ours = kernel.on && (kernel.fd == -1 || kernel.fd == fd);
    kernel.questions++;
    if (level == IPPROTO_TCP && name == TCP_ULP && ours) {
        CHECK(*size >= 4);
        memcpy(value, "tls", 4);
        *size = 4;
        return 0;
    }
    if (level != SOL_TLS)
        return real.getsockopt(fd, level, name, value, size);
    CHECK(ours);
    if (name == TLS_TX_ZEROCOPY_RO) {
        *(unsigned *)value = kernel.zero_copy;
        return 0;
    }
    if (name == TLS_RX && kernel.old) {
        errno = ENOPROTOOPT;
        return -1;
    }
    if (!(name == TLS_TX ? kernel.sends : kernel.receives)) {
        errno = EBUSY;
        return -1;
    }
    CHECK_EQ(*size, sizeof(struct tls_crypto_info)); /* no keys */
    *(struct tls_crypto_info *)value =
        (struct tls_crypto_info){.version = TLS_1_3_VERSION, .cipher_type = TLS_CIPHER_AES_GCM_256};
    return 0;
}

static int fake_setsockopt(int fd, int level, int name, const void *value, socklen_t size)
{
    if (level != IPPROTO_TCP || name != TCP_ULP)
        return real.setsockopt(fd, level, name, value, size);
    errno = kernel.probe;
    return -1;
}

static int fake_open(const char *path, int flags, mode_t mode)
{
    char text[200];
    if (strcmp(path, "/proc/net/tls_stat") != 0)
        return real.open(path, flags, mode);
    kernel.opened++;
    if (kernel.by_device < 0) {
        errno = ENOENT;
        return -1;
    }
    int fd = memfd_create("tls_stat", MFD_CLOEXEC);
    int length = snprintf(text, sizeof text,
                          "TlsCurrTxSw                     \t7\nTlsCurrRxSw                     \t0\n"
                          "TlsCurrTxDevice                 \t%d\nTlsCurrRxDevice                 \t%d\n",
                          kernel.by_device, kernel.by_device);
    CHECK_EQ(write(fd, text, (size_t)length), length);
    return fd;
}

static int fake_socket(int domain, int type, int protocol)
{
    if (domain != AF_NETLINK || protocol != NETLINK_SOCK_DIAG)
        return real.socket(domain, type, protocol);
    kernel.asked++;
    netlink_fd = memfd_create("netlink", MFD_CLOEXEC);
    return netlink_fd;
}

static ssize_t fake_send(int fd, const void *data, size_t size, int flags)
{
    if (fd == netlink_fd)
        return (ssize_t)size;
    if (kernel.sends_seen++ == 0)
        kernel.last_flags = flags;
    return real.send(fd, data, size, flags);
}

static ssize_t fake_sendmsg(int fd, const struct msghdr *message, int flags)
{
    if (kernel.sends_seen++ == 0)
        kernel.last_flags = flags;
    return real.sendmsg(fd, message, flags);
}

static char *put_attribute(char *at, uint16_t type, const void *data, size_t size)
{
    struct nlattr header = {.nla_len = (uint16_t)(sizeof(struct nlattr) + size), .nla_type = type};
    memcpy(at, &header, sizeof header);
    memcpy(at + sizeof(struct nlattr), data, size);
    return at + ((sizeof(struct nlattr) + size + 3) & ~(size_t)3);
}

static ssize_t diag_reply(char *buffer)
{
    char conf[64], tls[128], info[160];
    uint16_t how = (uint16_t)kernel.conf, version = TLS_1_3_VERSION;
    char *at = put_attribute(conf, TLS_INFO_VERSION, &version, sizeof version);
    at = put_attribute(at, TLS_INFO_TXCONF, &how, sizeof how);
    at = put_attribute(at, TLS_INFO_RXCONF, &how, sizeof how);
    char *end = put_attribute(tls, INET_ULP_INFO_NAME, "tls", 4);
    end = put_attribute(end, INET_ULP_INFO_TLS | NLA_F_NESTED, conf, (size_t)(at - conf));
    size_t size = (size_t)(put_attribute(info, INET_DIAG_ULP_INFO | NLA_F_NESTED, tls, (size_t)(end - tls)) - info);
    struct nlmsghdr *header = (struct nlmsghdr *)(void *)buffer;
    memset(buffer, 0, NLMSG_LENGTH(sizeof(struct inet_diag_msg)));
    header->nlmsg_type = SOCK_DIAG_BY_FAMILY;
    at = put_attribute(buffer + NLMSG_LENGTH(sizeof(struct inet_diag_msg)), INET_DIAG_SHUTDOWN, "", 1);
    if (kernel.conf != 0) {
        memcpy(at, info, size);
        at += size;
    }
    header->nlmsg_len = (uint32_t)(at - buffer);
    return at - buffer;
}

static bool control_is_next(int fd)
{
    return kernel.record != 0 && (kernel.fd == -1 || kernel.fd == fd) && kernel.came >= kernel.until;
}

static ssize_t fake_recv(int fd, void *buffer, size_t size, int flags)
{
    if (fd == netlink_fd)
        return diag_reply(buffer);
    if (control_is_next(fd)) {
        errno = EIO;
        return -1;
    }
    ssize_t got = real.recv(fd, buffer, size, flags);
    kernel.came += got > 0 ? (size_t)got : 0;
    return got;
}

static ssize_t fake_splice(int in, off_t *in_offset, int out, off_t *out_offset, size_t size, unsigned flags)
{
    if (control_is_next(in)) {
        errno = EINVAL;
        return -1;
    }
    ssize_t got = real.splice(in, in_offset, out, out_offset, size, flags);
    if (kernel.fd == in)
        kernel.came += got > 0 ? (size_t)got : 0;
    return got;
}

static ssize_t fake_recvmsg(int fd, struct msghdr *message, int flags)
{
    if (!control_is_next(fd))
        return real.recvmsg(fd, message, flags);
    CHECK(flags & MSG_PEEK);
    struct cmsghdr *header = CMSG_FIRSTHDR(message);
    header->cmsg_level = SOL_TLS;
    header->cmsg_type = TLS_GET_RECORD_TYPE;
    header->cmsg_len = CMSG_LEN(1);
    *CMSG_DATA(header) = (unsigned char)kernel.record;
    unsigned char *data = message->msg_iov[0].iov_base;
    data[0] = (unsigned char)kernel.level;
    data[1] = (unsigned char)kernel.alert;
    return 2;
}

/* Since the last test. */
static void new_kernel(void)
{
    if (real.getsockopt == NULL)
        real = sys;
    sys = real;
    memset(&kernel, 0, sizeof kernel);
    kernel.fd = netlink_fd = -1;
    sys.getsockopt = fake_getsockopt;
    sys.setsockopt = fake_setsockopt;
    sys.open = fake_open;
    sys.socket = fake_socket;
    sys.send = fake_send;
    sys.sendmsg = fake_sendmsg;
    sys.recv = fake_recv;
    sys.recvmsg = fake_recvmsg;
    sys.splice = fake_splice;
}

static void tls_kernel(void)
{
    new_kernel();
    kernel.on = kernel.sends = true;
}

TEST("a socket with kernel TLS is known by it, when its end is opened and when it is refreshed")
{
    int fds[2];
    struct sluice_tls tls;
    new_kernel();
    tcp_pair(fds);
    struct sluice_end *end = end_of(fds[0]);
    CHECK_EQ(sluice_end_tls(end, &tls), 0);
    CHECK_EQ(tls.send, SLUICE_TLS_NONE);
    CHECK_EQ(tls.receive, SLUICE_TLS_NONE);
    CHECK_EQ(tls.version, 0);
    CHECK_STR(tls.cipher, "");
    kernel.on = kernel.sends = true;
    CHECK_EQ(sluice_end_tls(end, &tls), 0);
    CHECK_EQ(tls.send, SLUICE_TLS_NONE); /* nobody has asked */
    CHECK_EQ(sluice_end_refresh(end), 0);
    CHECK_EQ(sluice_end_tls(end, &tls), 0);
    CHECK_EQ(tls.send, SLUICE_TLS_SOFTWARE);
    CHECK_EQ(tls.receive, SLUICE_TLS_NONE);
    CHECK_EQ(tls.version, 0x0304);
    CHECK_STR(tls.cipher, "AES-256-GCM");
    sluice_end_close(end);
    close(fds[1]);

    kernel.sends = false;
    kernel.receives = true;
    tcp_pair(fds);
    end = end_of(fds[0]);
    CHECK_EQ(sluice_end_tls(end, &tls), 0);
    CHECK_EQ(tls.send, SLUICE_TLS_NONE);
    CHECK_EQ(tls.receive, SLUICE_TLS_SOFTWARE);
    sluice_end_close(end);
    close(fds[1]);

    unix_pair(fds);
    end = end_of(fds[0]);
    CHECK_EQ(sluice_end_tls(end, &tls), -ENOTSOCK);
    CHECK_EQ(sluice_end_refresh(end), 0);
    sluice_end_close(end);
    close(fds[1]);
}

TEST("an end is opened by as many system calls as before there was kernel TLS")
{
    int fds[2];
    new_kernel();
    tcp_pair(fds);
    struct sluice_end *end = end_of(fds[0]);
    CHECK_EQ(sluice_end_kind(end), SLUICE_END_TCP);
    CHECK_EQ(kernel.questions, 2); /* its family, and what only TCP answers */
    CHECK_EQ(kernel.opened + kernel.asked, 0);
    sluice_end_close(end);
    close(fds[1]);
}

static struct sluice_tls ask(void)
{
    int fds[2];
    struct sluice_tls tls;
    tcp_pair(fds);
    struct sluice_end *end = end_of(fds[0]);
    CHECK_EQ(sluice_end_tls(end, &tls), 0);
    CHECK_EQ(sluice_end_tls(end, &tls), 0); /* what was learned stays */
    sluice_end_close(end);
    close(fds[1]);
    return tls;
}

TEST("who encrypts is asked of the counters, then of the socket, once; and if neither tells, nobody knows")
{
    tls_kernel();
    kernel.conf = TLS_CONF_HW; /* it is not asked */
    CHECK_EQ(ask().send, SLUICE_TLS_SOFTWARE);
    CHECK_EQ(kernel.opened, 1);
    CHECK_EQ(kernel.asked, 0);

    tls_kernel();
    kernel.by_device = 3;
    kernel.conf = TLS_CONF_HW;
    kernel.zero_copy = true;
    struct sluice_tls tls = ask();
    CHECK_EQ(tls.send, SLUICE_TLS_DEVICE);
    CHECK(tls.zero_copy);
    CHECK_EQ(kernel.asked, 1);

    tls_kernel();
    kernel.by_device = 3;
    kernel.conf = TLS_CONF_SW;
    CHECK_EQ(ask().send, SLUICE_TLS_SOFTWARE);

    tls_kernel();
    kernel.by_device = -1;
    CHECK_EQ(ask().send, SLUICE_TLS_UNTOLD);
    CHECK_EQ(kernel.asked, 1);
    CHECK_STR(sluice_tls_by_name(SLUICE_TLS_UNTOLD), "unknown");

    tls_kernel();
    kernel.old = true; /* a kernel that cannot tell whether it receives: only the socket's own answer counts */
    CHECK_EQ(ask().receive, SLUICE_TLS_UNTOLD);
    kernel.conf = TLS_CONF_BASE;
    CHECK_EQ(ask().receive, SLUICE_TLS_NONE);
}

/* ---- Plans ------------------------------------------------------------------------------------------------------ */

static const struct sluice_plan_entry *entry_of(const struct sluice_plan *plan, enum sluice_route route)
{
    for (unsigned i = 0; i < plan->count; i++)
        if (plan->entries[i].route == route)
            return &plan->entries[i];
    CHECK_FAIL("the plan has no %s", sluice_route_name(route));
}

static void nothing(void *context, const void *data, size_t length)
{
    (void)context, (void)data, (void)length;
}

TEST("kernel TLS takes files by sendfile, splice and copy, no memory on loan, and maps nothing that it has received")
{
    int fds[2], others[2];
    static char bytes[1 << 20];
    struct sluice_plan plan;
    tls_kernel();
    kernel.receives = true;
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]), *file = end_of(pattern_file(NULL, SIZE << 4));
    struct sluice_segment segment = file_segment(file, 0, SLUICE_UNTIL_END);
    CHECK_EQ(sluice_plan_make(&segment, sink, &plan), 0);
    CHECK_EQ(plan.entries[0].route, SLUICE_ROUTE_SENDFILE);
    CHECK_EQ(entry_of(&plan, SLUICE_ROUTE_SPLICE)->verdict, SLUICE_YES);
    CHECK_EQ(entry_of(&plan, SLUICE_ROUTE_COPY)->verdict, SLUICE_YES);

    segment = memory_segment(bytes, sizeof bytes);
    segment.release = nothing;
    CHECK_EQ(sluice_plan_make(&segment, sink, &plan), 0);
    static const enum sluice_route lending[] = {SLUICE_ROUTE_MSG_ZEROCOPY, SLUICE_ROUTE_URING_SEND_ZC};
    struct sluice_loop_options ring = {.size = sizeof ring, .kind = SLUICE_LOOP_IO_URING};
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_AUTO);
    struct sluice_loop *loop = NULL;
    struct sluice_error error;
    if (sluice_loop_probe(&ring, &error) == 0) {
        CHECK_EQ(sluice_loop_new(&ring, &loop), 0);
        CHECK_EQ(sluice_loop_plan(loop, &options, 0, 0, &plan), 0);
        sluice_loop_free(loop);
    }
    for (size_t i = 0; i < (loop != NULL ? 2u : 1u); i++) {
        const struct sluice_plan_entry *entry = entry_of(&plan, lending[i]);
        CHECK_EQ(entry->verdict, SLUICE_NEVER);
        CHECK(strstr(entry->reason, "kernel TLS") != NULL);
    }

    tcp_pair(others);
    struct sluice_end *other = end_of(others[0]);
    segment = stream_segment(sink, SLUICE_UNTIL_END);
    CHECK_EQ(sluice_plan_make(&segment, other, &plan), 0);
    CHECK_EQ(entry_of(&plan, SLUICE_ROUTE_TCP_RECEIVE)->verdict, SLUICE_NEVER);
    CHECK(strstr(entry_of(&plan, SLUICE_ROUTE_TCP_RECEIVE)->reason, "not decrypted") != NULL);
    CHECK_EQ(entry_of(&plan, SLUICE_ROUTE_SPLICE)->verdict, SLUICE_YES);
    sluice_end_close(other);
    sluice_end_close(file);
    sluice_end_close(sink);
    close(fds[1]);
    close(others[1]);
}

/* ---- Receipts --------------------------------------------------------------------------------------------------- */

enum from { FILE_, MEMORY, PIPE };

/* The peer's end is left open, and reads what came. */
static struct sluice_receipt send_by(enum sluice_route route, enum from from)
{
    static unsigned char bytes[SIZE], got[SIZE];
    int fds[2], pipes[2] = {-1, -1};
    struct sluice_receipt receipt;
    struct sluice_segment segment;
    pattern_fill(bytes, 0, SIZE);
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    if (from == FILE_) {
        segment = file_segment(end_of(pattern_file(NULL, SIZE)), 0, SIZE);
    } else if (from == PIPE) {
        pipe_pair(pipes);
        CHECK_EQ(write(pipes[1], bytes, SIZE), SIZE);
        close(pipes[1]);
        segment = stream_segment(end_of(pipes[0]), SIZE);
    } else {
        segment = memory_segment(bytes, SIZE);
    }
    struct sluice_transfer_options options = one_to_one(&segment, &sink, route);
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    for (size_t at = 0; at < SIZE;) {
        ssize_t size = recv(fds[1], got + at, SIZE - at, 0);
        CHECK(size > 0 || errno == EAGAIN);
        at += size > 0 ? (size_t)size : 0;
    }
    CHECK_EQ(memcmp(got, bytes, SIZE), 0);
    CHECK_EQ(receipt.bytes, SIZE);
    sluice_end_close(segment.end);
    sluice_end_close(sink);
    close(fds[1]);
    return receipt;
}

static const struct {
    enum sluice_route route;
    enum from from;
    unsigned copies; /* that are known of, when TLS is the CPU's work */
    bool pages;
} ways[] = {
    {SLUICE_ROUTE_SENDFILE, FILE_, 0, true}, {SLUICE_ROUTE_SPLICE, FILE_, 0, true},
    {SLUICE_ROUTE_SPLICE, PIPE, 0, true},    {SLUICE_ROUTE_COPY, FILE_, 1, false},
    {SLUICE_ROUTE_COPY, PIPE, 1, false},     {SLUICE_ROUTE_MMAP, FILE_, 0, false},
    {SLUICE_ROUTE_COPY, MEMORY, 0, false},
};

TEST("what the CPU encrypts is transformed: out of pages neither copied nor by reference, else copied nobody knows how "
     "often")
{
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        tls_kernel();
        struct sluice_receipt got = send_by(ways[i].route, ways[i].from);
        CHECK_EQ(got.transformed, SIZE);
        CHECK_EQ(got.by_reference, 0);
        CHECK_EQ(got.aliased, 0);
        CHECK_EQ(got.copied, 0);
        CHECK_EQ(got.unknown, ways[i].pages ? 0 : SIZE);
        CHECK_EQ(got.copy_bytes, ways[i].copies * SIZE);
        CHECK_EQ(got.routes[ways[i].route].evidence, ways[i].pages ? SLUICE_EVIDENCE_PROBED : SLUICE_EVIDENCE_UNKNOWN);
    }
}

TEST("what the device encrypts goes by reference where it takes the pages as they are, and is copied once where not")
{
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        for (int zero_copy = 0; zero_copy < 2; zero_copy++) {
            tls_kernel();
            kernel.by_device = 1;
            kernel.conf = TLS_CONF_HW;
            kernel.zero_copy = zero_copy;
            struct sluice_receipt got = send_by(ways[i].route, ways[i].from);
            bool refers = ways[i].pages && zero_copy;
            unsigned copies = ways[i].pages ? !zero_copy : ways[i].copies + 1;
            CHECK_EQ(got.transformed, 0);
            CHECK_EQ(got.unknown, 0);
            CHECK_EQ(got.by_reference, refers ? SIZE : 0);
            CHECK_EQ(got.aliased, refers && ways[i].from == FILE_ ? SIZE : 0);
            CHECK_EQ(got.copied, refers ? 0 : SIZE);
            CHECK_EQ(got.copy_bytes, copies * SIZE);
        }
}

TEST("what is encrypted by nobody knows whom is unknown")
{
    tls_kernel();
    kernel.by_device = -1;
    struct sluice_receipt got = send_by(SLUICE_ROUTE_SENDFILE, FILE_);
    CHECK_EQ(got.unknown, SIZE);
    CHECK_EQ(got.transformed + got.by_reference + got.copied, 0);
    CHECK_EQ(got.routes[SLUICE_ROUTE_SENDFILE].evidence, SLUICE_EVIDENCE_UNKNOWN);
}

/* ---- Full records ----------------------------------------------------------------------------------------------- */

TEST("the head of a large body does not get a TLS record of its own")
{
    for (int on = 0; on < 2; on++) {
        int fds[2];
        char head[100] = "";
        struct sluice_receipt receipt;
        new_kernel();
        kernel.on = kernel.sends = on;
        tcp_pair(fds);
        struct sluice_end *sink = end_of(fds[0]), *file = end_of(pattern_file(NULL, 1 << 20));
        struct sluice_segment segments[] = {memory_segment(head, sizeof head), file_segment(file, 0, 1 << 20)};
        struct sluice_transfer_options options = one_to_one(segments, &sink, SLUICE_ROUTE_SENDFILE);
        struct collector *collector = collector_start(fds[1], false);
        options.segment_count = 2;
        CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
        sluice_end_close(sink);
        size_t size;
        free(collector_finish(collector, &size));
        CHECK_EQ(size, (1 << 20) + sizeof head);
        CHECK_EQ((kernel.last_flags & MSG_MORE) != 0, on); /* without TLS, TCP_CORK does it */
        sluice_end_close(file);
        close(fds[1]);
    }
}

/* ---- Received --------------------------------------------------------------------------------------------------- */

/* From TLS that ends with this record into a sink, by the route. Returns the transfer's result. */
static int receive_by(enum sluice_route route, int record, int alert, struct sluice_receipt *ret_receipt,
                      struct sluice_error *ret_error)
{
    static unsigned char bytes[SIZE];
    int fds[2], sink_fd = pattern_file(NULL, 0);
    new_kernel();
    pattern_fill(bytes, 0, SIZE);
    tcp_pair(fds);
    kernel.on = kernel.receives = true;
    kernel.fd = fds[1];
    kernel.until = SIZE;
    kernel.record = record;
    kernel.level = 2;
    kernel.alert = alert;
    CHECK_EQ(send(fds[0], bytes, SIZE, 0), SIZE);
    struct sluice_end *source = end_of(fds[1]), *sink = end_of(sink_fd);
    struct sluice_segment segment = stream_segment(source, SLUICE_UNTIL_END);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, route);
    int result = sluice_transfer_run(&options, ret_receipt, ret_error);
    static unsigned char got[SIZE];
    CHECK_EQ(pread(sink_fd, got, SIZE, 0), SIZE);
    CHECK_EQ(memcmp(got, bytes, SIZE), 0);
    sluice_end_close(source);
    sluice_end_close(sink);
    close(fds[0]);
    return result;
}

static const enum sluice_route receiving[] = {SLUICE_ROUTE_COPY, SLUICE_ROUTE_SPLICE};

TEST("close_notify ends a stream that the kernel decrypts, whatever reads it")
{
    for (size_t i = 0; i < 2; i++) {
        struct sluice_receipt receipt;
        struct sluice_error error;
        CHECK_EQ(receive_by(receiving[i], 21, 0, &receipt, &error), 0);
        CHECK_EQ(receipt.bytes, SIZE);
        CHECK_EQ(receipt.transformed, SIZE);
        CHECK_EQ(receipt.unknown, SIZE);
        CHECK_EQ(receipt.fallback_count, 0);
    }
}

TEST("other messages to TLS fail the transfer, after all that came before them, and are named")
{
    for (size_t i = 0; i < 2; i++) {
        struct sluice_receipt receipt;
        struct sluice_error error;
        CHECK_EQ(receive_by(receiving[i], 21, 40, &receipt, &error), -ECONNABORTED);
        CHECK(strstr(error.reason, "alert") != NULL);
        CHECK_EQ(error.side, SLUICE_SIDE_SOURCE);
        CHECK_EQ(receipt.bytes, SIZE);
        CHECK_EQ(receive_by(receiving[i], 22, 0, &receipt, &error), -EPROTO);
        CHECK(strstr(error.reason, "handshake") != NULL);
        CHECK_EQ(receipt.bytes, SIZE);
    }
}

static ssize_t told;

static void on_received(void *loop, const char *data, ssize_t length)
{
    (void)data;
    if (length > 0)
        return;
    told = length;
    sluice_loop_stop(loop);
}

TEST("a receiver on a loop is told of close_notify as of the end of the connection, and of other messages as an error")
{
    static const struct {
        int record, alert;
        ssize_t told;
    } cases[] = {{21, 0, 0}, {21, 40, -ECONNABORTED}, {22, 0, -EPROTO}, {23, 0, -EIO}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int fds[2];
        struct sluice_loop *loop;
        struct sluice_loop_options options = {.size = sizeof options, .kind = SLUICE_LOOP_EPOLL};
        new_kernel();
        tcp_pair(fds);
        kernel.on = kernel.receives = true;
        kernel.fd = fds[1];
        kernel.record = cases[i].record;
        kernel.alert = cases[i].alert;
        struct sluice_end *end = end_of(fds[1]);
        CHECK_EQ(sluice_loop_new(&options, &loop), 0);
        CHECK_EQ(sluice_loop_receive(loop, end, 0, on_received, loop), 0);
        CHECK_EQ(send(fds[0], "x", 1, 0), 1);
        told = 1;
        CHECK_EQ(sluice_loop_run(loop), 0);
        CHECK_EQ(told, cases[i].told);
        sluice_loop_forget(loop, end);
        sluice_end_close(end);
        sluice_loop_free(loop);
        close(fds[0]);
    }
}

TEST("a receiver of pages gets copies where the kernel decrypts, and its stream ends with close_notify")
{
    int fds[2];
    struct sluice_receiver *receiver;
    struct sluice_piece piece;
    new_kernel();
    tcp_pair(fds);
    kernel.on = kernel.receives = true;
    kernel.fd = fds[1];
    kernel.record = 21;
    kernel.until = 3;
    struct sluice_end *end = end_of(fds[1]);
    CHECK_EQ(send(fds[0], "abc", 3, 0), 3);
    CHECK_EQ(sluice_receiver_new(end, NULL, &receiver), 0);
    CHECK_EQ(sluice_receiver_next(receiver, &piece), 1);
    CHECK(!piece.mapped && piece.length == 3 && memcmp(piece.data, "abc", 3) == 0);
    sluice_receiver_release(receiver, &piece);
    CHECK_EQ(sluice_receiver_next(receiver, &piece), 0);
    sluice_receiver_free(receiver);
    sluice_end_close(end);
    close(fds[0]);
}

/* ---- Has the kernel TLS? ---------------------------------------------------------------------------------------- */

TEST("whether the kernel has TLS to offer is found out, and if not, what would help is said")
{
    const char *reason = "untouched";
    new_kernel();
    kernel.probe = ENOENT;
    CHECK_EQ(sluice_tls_probe(&reason), -ENOENT);
    CHECK(strstr(reason, "modprobe tls") != NULL);
    CHECK_EQ(sluice_tls_probe(NULL), -ENOENT);
    kernel.probe = ENOPROTOOPT;
    CHECK_EQ(sluice_tls_probe(&reason), -ENOPROTOOPT);
    CHECK(strstr(reason, "4.13") != NULL);
    CHECK_EQ(kernel.opened, 0);

    int before = open_descriptors();
    kernel.probe = ENOTCONN;
    reason = "untouched";
    CHECK_EQ(sluice_tls_probe(&reason), 0);
    CHECK_STR(reason, "untouched");
    CHECK_EQ(sluice_tls_probe(NULL), 0);
    CHECK_EQ(open_descriptors(), before + 1); /* the counters */
    kernel.on = kernel.sends = true;
    kernel.opened = 0;
    CHECK_EQ(ask().send, SLUICE_TLS_SOFTWARE);
    CHECK_EQ(kernel.opened, 0); /* as a confined process could not */
}

int main(void)
{
    alarm(60); /* a hang is a failure */
    return check_run_all();
}
