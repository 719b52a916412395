/* SPDX-License-Identifier: MIT
 *
 * Receipts: who copied what, and how that is known.
 */
#include "../check.h"
#include "sys.h"
#include "world.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- The table at the head of lib/core/receipt.c ---------------------------------------------------------------- */

enum place { MEMORY, FILE_, PIPE, TCP, UNIX };
static const char *const place_names[] = {"memory", "file", "pipe", "tcp", "unix"};

#define SIZE 20000 /* fits into every socket's and pipe's buffer */

static char sink_memory[SIZE];

static struct sluice_segment open_source(enum place place)
{
    static unsigned char bytes[SIZE];
    int fds[2];
    pattern_fill(bytes, 0, SIZE);
    switch (place) {
    case MEMORY:
        return memory_segment(bytes, SIZE);
    case FILE_:
        return file_segment(end_of(pattern_file(NULL, SIZE)), 0, SIZE);
    case PIPE:
        pipe_pair(fds);
        break;
    case TCP:
        tcp_pair(fds);
        break;
    case UNIX:
        unix_pair(fds);
        break;
    }
    int writes = place == PIPE ? fds[1] : fds[0], reads = place == PIPE ? fds[0] : fds[1];
    CHECK_EQ(write(writes, bytes, SIZE), SIZE);
    close(writes);
    return stream_segment(end_of(reads), SIZE);
}

static struct sluice_end *open_sink(enum place place, int *ret_peer)
{
    int fds[2];
    struct sluice_end *end;
    *ret_peer = -1;
    switch (place) {
    case MEMORY:
        CHECK_EQ(sluice_end_open_memory(sink_memory, SIZE, &end), 0);
        return end;
    case FILE_:
        return end_of(pattern_file(NULL, 0));
    case PIPE:
        pipe_pair(fds);
        *ret_peer = fds[0];
        return end_of(fds[1]);
    case TCP:
        tcp_pair(fds);
        break;
    case UNIX:
        unix_pair(fds);
        break;
    }
    *ret_peer = fds[1];
    return end_of(fds[0]);
}

static int move(enum place from, enum place to, enum sluice_route route, struct sluice_receipt *ret_receipt)
{
    int peer;
    struct sluice_segment segment = open_source(from);
    struct sluice_end *sink = open_sink(to, &peer);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, route);
    int result = sluice_transfer_run(&options, ret_receipt, NULL);
    sluice_end_close(sink);
    sluice_end_close(segment.end);
    if (peer >= 0)
        close(peer);
    return result;
}

enum fate { BY_REFERENCE, COPIED, UNKNOWN };

static const struct {
    enum place from, to;
    enum sluice_route route;
    enum fate fate;
    unsigned copies;
    enum sluice_evidence evidence;
    bool aliased;
} table[] = {
    {FILE_, TCP, SLUICE_ROUTE_COPY, COPIED, 2, SLUICE_EVIDENCE_BY_DEFINITION, false},
    {TCP, FILE_, SLUICE_ROUTE_COPY, COPIED, 2, SLUICE_EVIDENCE_BY_DEFINITION, false},
    {PIPE, UNIX, SLUICE_ROUTE_COPY, COPIED, 2, SLUICE_EVIDENCE_BY_DEFINITION, false},
    {FILE_, MEMORY, SLUICE_ROUTE_COPY, COPIED, 1, SLUICE_EVIDENCE_BY_DEFINITION, false},
    {TCP, MEMORY, SLUICE_ROUTE_COPY, COPIED, 1, SLUICE_EVIDENCE_BY_DEFINITION, false},
    {MEMORY, TCP, SLUICE_ROUTE_COPY, COPIED, 1, SLUICE_EVIDENCE_BY_DEFINITION, false},
    {MEMORY, FILE_, SLUICE_ROUTE_COPY, COPIED, 1, SLUICE_EVIDENCE_BY_DEFINITION, false},
    {FILE_, TCP, SLUICE_ROUTE_MMAP, COPIED, 1, SLUICE_EVIDENCE_BY_DEFINITION, false},
    {FILE_, PIPE, SLUICE_ROUTE_MMAP, COPIED, 1, SLUICE_EVIDENCE_BY_DEFINITION, false},
    {FILE_, TCP, SLUICE_ROUTE_SENDFILE, BY_REFERENCE, 0, SLUICE_EVIDENCE_PROBED, true},
    {FILE_, PIPE, SLUICE_ROUTE_SENDFILE, BY_REFERENCE, 0, SLUICE_EVIDENCE_BY_DEFINITION, true},
    {FILE_, UNIX, SLUICE_ROUTE_SENDFILE, UNKNOWN, 0, SLUICE_EVIDENCE_UNKNOWN, false},
    {FILE_, TCP, SLUICE_ROUTE_SPLICE, BY_REFERENCE, 0, SLUICE_EVIDENCE_PROBED, true},
    {FILE_, FILE_, SLUICE_ROUTE_SPLICE, COPIED, 1, SLUICE_EVIDENCE_BY_DEFINITION, false},
    {TCP, FILE_, SLUICE_ROUTE_SPLICE, COPIED, 1, SLUICE_EVIDENCE_BY_DEFINITION, false},
    {TCP, TCP, SLUICE_ROUTE_SPLICE, BY_REFERENCE, 0, SLUICE_EVIDENCE_PROBED, false},
    {TCP, PIPE, SLUICE_ROUTE_SPLICE, BY_REFERENCE, 0, SLUICE_EVIDENCE_BY_DEFINITION, false},
    {PIPE, TCP, SLUICE_ROUTE_SPLICE, BY_REFERENCE, 0, SLUICE_EVIDENCE_PROBED, false},
    {PIPE, UNIX, SLUICE_ROUTE_SPLICE, UNKNOWN, 0, SLUICE_EVIDENCE_UNKNOWN, false},
};

TEST("every route and pair of ends is entered as the table of copies says")
{
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct sluice_receipt got;
        char what[80];
        snprintf(what, sizeof what, "%s to %s by %s", place_names[table[i].from], place_names[table[i].to],
                 sluice_route_name(table[i].route));
        if (move(table[i].from, table[i].to, table[i].route, &got) != 0)
            CHECK_FAIL("%s failed", what);
        const struct sluice_route_count *count = &got.routes[table[i].route];
        uint64_t right = table[i].fate == BY_REFERENCE ? got.by_reference
                         : table[i].fate == COPIED     ? got.copied
                                                       : got.unknown;
        if (right != SIZE || got.bytes != SIZE || got.copy_bytes != SIZE * table[i].copies)
            CHECK_FAIL("%s: by reference %llu, copied %llu (%llu), unknown %llu", what,
                       (unsigned long long)got.by_reference, (unsigned long long)got.copied,
                       (unsigned long long)got.copy_bytes, (unsigned long long)got.unknown);
        if (count->evidence != table[i].evidence || count->bytes != SIZE || count->calls == 0)
            CHECK_FAIL("%s: %s, %llu bytes in %llu calls", what, sluice_evidence_name(count->evidence),
                       (unsigned long long)count->bytes, (unsigned long long)count->calls);
        if (got.aliased != (table[i].aliased ? SIZE : 0))
            CHECK_FAIL("%s: aliased %llu", what, (unsigned long long)got.aliased);
        if (got.sent != SIZE || got.released != SIZE || !sluice_receipt_is_final(&got) || got.transfers != 1)
            CHECK_FAIL("%s: not final", what);
    }
}

TEST("what O_DIRECT reads is never said to be by reference")
{
    char path[] = "/var/tmp/sluice-direct-XXXXXX";
    int fd = mkstemp(path), fds[2];
    CHECK(fd >= 0);
    int direct = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    unlink(path);
    if (direct < 0)
        SKIP("/var/tmp knows no O_DIRECT; put it on a disk file system");
    CHECK_EQ(ftruncate(fd, 65536), 0);
    tcp_pair(fds);
    struct sluice_receipt receipt;
    struct sluice_end *sink = end_of(fds[0]);
    struct sluice_segment segment = file_segment(end_of(direct), 0, 65536);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_SENDFILE);
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    CHECK_EQ(receipt.by_reference, 0);
    CHECK_EQ(receipt.unknown, 65536);
    sluice_end_close(sink);
    sluice_end_close(segment.end);
    close(fd);
    close(fds[1]);
}

/* ---- The egress device ----------------------------------------------------------------------------------------------
 */

TEST("the egress device of a loopback connection is lo, with scatter-gather and checksum offload")
{
    int fds[2];
    struct sluice_egress egress;
    tcp_pair(fds);
    struct sluice_end *end = end_of(fds[0]);
    CHECK_EQ(sluice_end_egress(end, &egress), 0);
    CHECK_STR(egress.name, "lo");
    CHECK(egress.known && egress.scatter_gather && egress.checksum && egress.loopback);
    CHECK_EQ(egress.ifindex, if_nametoindex("lo"));
    sluice_end_close(end);
    close(fds[1]);
    unix_pair(fds);
    end = end_of(fds[0]);
    CHECK_EQ(sluice_end_egress(end, &egress), -ENOTSOCK);
    sluice_end_close(end);
    close(fds[1]);
    end = end_of(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    CHECK_EQ(sluice_end_egress(end, &egress), -ENOTCONN);
    sluice_end_close(end);
}

static int no_netlink(int domain, int type, int protocol)
{
    if (domain == AF_NETLINK) {
        errno = EAFNOSUPPORT; /* as a sandbox may */
        return -1;
    }
    return socket(domain, type, protocol);
}

static void *move_without_netlink(void *receipt) /* on a thread of its own: the cache of devices is the thread's */
{
    struct sys before = sys;
    sys.socket = no_netlink;
    static int result;
    result = move(FILE_, TCP, SLUICE_ROUTE_SENDFILE, receipt);
    sys = before;
    return &result;
}

TEST("where the device cannot be asked for, sendfile's bytes are unknown, not guessed")
{
    struct sluice_receipt receipt = {0};
    pthread_t thread;
    void *result;
    CHECK_EQ(pthread_create(&thread, NULL, move_without_netlink, &receipt), 0);
    pthread_join(thread, &result);
    CHECK_EQ(*(int *)result, 0);
    CHECK_EQ(receipt.unknown, SIZE);
    CHECK_EQ(receipt.by_reference, 0);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_SENDFILE].evidence, SLUICE_EVIDENCE_UNKNOWN);
}

/* A thread in a network namespace of its own, with a veth device whose other end is in a second one, kept by a child.
 */
struct veth {
    const char *skip, *failed;
    struct sluice_egress egress[2]; /* without and with scatter-gather */
    struct sluice_receipt receipt[2];
};

static int set_scatter_gather(const char *device, unsigned on)
{
    struct ethtool_value value = {.cmd = ETHTOOL_SSG, .data = on};
    struct ifreq request = {.ifr_data = (void *)&value};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    strcpy(request.ifr_name, device);
    int result = ioctl(fd, SIOCETHTOOL, &request);
    close(fd);
    return result;
}

/* Send a file from this namespace to the address, where a listener waits. */
static const char *send_over(const char *address, int listener, struct sluice_egress *ret_egress,
                             struct sluice_receipt *ret_receipt)
{
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(7777)};
    struct sluice_end *sink;
    inet_pton(AF_INET, address, &peer.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&peer, sizeof peer) < 0)
        return "connect";
    int other = accept(listener, NULL, NULL);
    if (other < 0 || sluice_end_open(fd, SLUICE_END_OWN_FD, &sink) < 0)
        return "accept";
    if (sluice_end_egress(sink, ret_egress) < 0)
        return "sluice_end_egress";
    struct sluice_segment segment = file_segment(end_of(pattern_file(NULL, SIZE)), 0, SIZE);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_SENDFILE);
    int result = sluice_transfer_run(&options, ret_receipt, NULL);
    sluice_end_close(sink);
    sluice_end_close(segment.end);
    close(other);
    return result < 0 ? "transfer" : NULL;
}

static void *in_two_namespaces(void *argument)
{
    struct veth *veth = argument;
    char command[200];
    int other = -1, listener = -1, own = -1;
    if (geteuid() != 0 || unshare(CLONE_NEWNET) < 0) {
        veth->skip = "network namespaces are for root; run the tests as root";
        return NULL;
    }
    pid_t child = fork();
    if (child == 0) {
        int result = unshare(CLONE_NEWNET);
        raise(result == 0 ? SIGSTOP : SIGKILL);
        _exit(0);
    }
    waitpid(child, NULL, WUNTRACED); /* it is in its namespace now */
    snprintf(command, sizeof command, "/proc/%d/ns/net", child);
    other = open(command, O_RDONLY | O_CLOEXEC);
    own = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    snprintf(command, sizeof command,
             "PATH=$PATH:/sbin:/usr/sbin; { ip link add sv0 type veth peer name sv1 && ip link set sv1 netns %d && "
             "ip addr add 10.77.0.1/24 dev sv0 && ip link set sv0 up; } 2>/dev/null",
             child);
    if (system(command) != 0) {
        veth->skip = "no veth device is to be had; install iproute2, modprobe veth";
        goto out;
    }
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(7777)};
    if (setns(other, CLONE_NEWNET) < 0 ||
        system("PATH=$PATH:/sbin:/usr/sbin; ip addr add 10.77.0.2/24 dev sv1 && ip addr add 10.77.0.3/24 dev sv1 && "
               "ip link set sv1 up") != 0) {
        veth->failed = "the other side's addresses";
        goto out;
    }
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&any, sizeof any) < 0 || listen(listener, 4) < 0 ||
        setns(own, CLONE_NEWNET) < 0 || set_scatter_gather("sv0", 0) < 0) {
        veth->failed = "listener";
        goto out;
    }
    veth->failed = send_over("10.77.0.2", listener, &veth->egress[0], &veth->receipt[0]);
    set_scatter_gather("sv0", 1);
    if (veth->failed == NULL) /* another address: what is known of the first is cached */
        veth->failed = send_over("10.77.0.3", listener, &veth->egress[1], &veth->receipt[1]);
out:
    close(listener);
    close(other);
    close(own);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    return NULL;
}

TEST("over a device without scatter-gather sendfile counts as one copy, probed; over one with it as none")
{
    struct veth veth = {0};
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, in_two_namespaces, &veth), 0);
    pthread_join(thread, NULL);
    if (veth.skip != NULL)
        SKIP(veth.skip);
    if (veth.failed != NULL)
        CHECK_FAIL("%s failed", veth.failed);
    for (int with = 0; with < 2; with++) {
        CHECK_STR(veth.egress[with].name, "sv0");
        CHECK(veth.egress[with].known && !veth.egress[with].loopback);
        CHECK_EQ(veth.egress[with].scatter_gather, with);
        CHECK_EQ(veth.receipt[with].copied, with ? 0 : SIZE);
        CHECK_EQ(veth.receipt[with].copy_bytes, with ? 0 : SIZE);
        CHECK_EQ(veth.receipt[with].by_reference, with ? SIZE : 0);
        CHECK_EQ(veth.receipt[with].routes[SLUICE_ROUTE_SENDFILE].evidence, SLUICE_EVIDENCE_PROBED);
    }
}

/* ---- Fallbacks, sums, text ------------------------------------------------------------------------------------------
 */

static int sendfiles_allowed;

static ssize_t refusing_sendfile(int out, int in, off_t *offset, size_t size)
{
    if (sendfiles_allowed-- > 0) {
        off_t position = *offset;
        char bytes[5000];
        ssize_t got = pread(in, bytes, size < sizeof bytes ? size : sizeof bytes, position);
        return send(out, bytes, (size_t)got, 0);
    }
    errno = EINVAL;
    return -1;
}

static ssize_t refusing_splice(int in, off_t *in_offset, int out, off_t *out_offset, size_t size, unsigned flags)
{
    (void)in, (void)in_offset, (void)out, (void)out_offset, (void)size, (void)flags;
    errno = EINVAL;
    return -1;
}

static struct sluice_receipt move_with_fallbacks(int allowed)
{
    struct sluice_receipt receipt;
    struct sys before = sys;
    sendfiles_allowed = allowed;
    sys.sendfile = refusing_sendfile;
    sys.splice = refusing_splice;
    int fds[2];
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]); /* of a file too large for the mapping that small ones go by */
    struct sluice_segment segment = file_segment(end_of(pattern_file(NULL, 1 << 20)), 0, SIZE);
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_AUTO);
    int result = sluice_transfer_run(&options, &receipt, NULL);
    sys = before;
    sluice_end_close(sink);
    sluice_end_close(segment.end);
    close(fds[1]);
    CHECK_EQ(result, 0);
    return receipt;
}

TEST("a change of route is on the receipt: from, to, errno, at which byte, and why")
{
    struct sluice_receipt receipt = move_with_fallbacks(2);
    CHECK_EQ(receipt.bytes, SIZE);
    CHECK_EQ(receipt.fallback_count, 2);
    const struct sluice_fallback *first = &receipt.fallbacks[0], *second = &receipt.fallbacks[1];
    CHECK_EQ(first->from, SLUICE_ROUTE_SENDFILE);
    CHECK_EQ(first->to, SLUICE_ROUTE_SPLICE);
    CHECK_EQ(second->from, SLUICE_ROUTE_SPLICE);
    CHECK_EQ(second->to, SLUICE_ROUTE_COPY);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(receipt.fallbacks[i].error, EINVAL);
        CHECK_EQ(receipt.fallbacks[i].at, 10000);
        CHECK(receipt.fallbacks[i].reason != NULL && receipt.fallbacks[i].reason[0] != '\0');
    }
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_SENDFILE].bytes, 10000);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_COPY].bytes, SIZE - 10000);
}

TEST("a sum adds every figure, keeps the first fallbacks, and takes the weakest evidence")
{
    struct sluice_receipt sum = {0}, one, other = move_with_fallbacks(1);
    CHECK_EQ(move(FILE_, TCP, SLUICE_ROUTE_SENDFILE, &one), 0);
    one.waits = 3;
    one.loans = 2;
    one.released -= 100;
    one.short_sources = one.shrunk = one.transformed = 1;
    sluice_receipt_add(&sum, &one);
    for (int i = 0; i < 3; i++)
        sluice_receipt_add(&sum, &other);
    CHECK_EQ(sum.bytes, 4 * SIZE);
    CHECK_EQ(sum.sent, 4 * SIZE);
    CHECK_EQ(sum.released, 4 * SIZE - 100);
    CHECK_EQ(sum.by_reference, one.by_reference + 3 * other.by_reference);
    CHECK_EQ(sum.copied, 3 * other.copied);
    CHECK_EQ(sum.copy_bytes, 3 * other.copy_bytes);
    CHECK_EQ(sum.aliased, one.aliased + 3 * other.aliased);
    CHECK_EQ(sum.system_calls, one.system_calls + 3 * other.system_calls);
    CHECK_EQ(sum.waits, 3 + 3 * other.waits);
    CHECK_EQ(sum.transfers, 4);
    CHECK_EQ(sum.short_sources + sum.shrunk + sum.transformed, 3);
    CHECK_EQ(sum.loans, 2);
    CHECK(!sluice_receipt_is_final(&sum));
    CHECK_EQ(sum.fallback_count, 6);
    CHECK_EQ(sum.fallbacks[3].at, 5000);
    CHECK_EQ(sum.routes[SLUICE_ROUTE_SENDFILE].bytes, SIZE + 3 * 5000);
    CHECK_EQ(sum.routes[SLUICE_ROUTE_SENDFILE].evidence, SLUICE_EVIDENCE_PROBED);
    CHECK_EQ(move(FILE_, UNIX, SLUICE_ROUTE_SENDFILE, &one), 0);
    sluice_receipt_add(&sum, &one);
    CHECK_EQ(sum.routes[SLUICE_ROUTE_SENDFILE].evidence, SLUICE_EVIDENCE_UNKNOWN);
}

/* A checker of JSON's grammar as far as receipts use it. Returns the place after the value, or NULL. */
static const char *json_value(const char *at);

static const char *json_string(const char *at)
{
    if (*at++ != '"')
        return NULL;
    while (*at != '"') {
        if (*at == '\0' || *at == '\\' || (unsigned char)*at < 0x20)
            return NULL;
        at++;
    }
    return at + 1;
}

static const char *json_list(const char *at, char closing, bool named)
{
    if (*++at == closing)
        return at + 1;
    for (;;) {
        if (named) {
            at = json_string(at);
            if (at == NULL || *at++ != ':')
                return NULL;
        }
        at = json_value(at);
        if (at == NULL || (*at != ',' && *at != closing))
            return NULL;
        if (*at++ == closing)
            return at;
    }
}

static const char *json_value(const char *at)
{
    if (*at == '{')
        return json_list(at, '}', true);
    if (*at == '[')
        return json_list(at, ']', false);
    if (*at == '"')
        return json_string(at);
    size_t digits = strspn(at, "0123456789");
    return digits > 0 ? at + digits : NULL;
}

TEST("JSON is well-formed, complete, and says what the receipt says")
{
    char text[4000], expected[100];
    struct sluice_receipt receipt = move_with_fallbacks(2), sum = {0};
    for (int i = 0; i < 4; i++)
        sluice_receipt_add(&sum, &receipt);
    const struct sluice_receipt empty = {0};
    const struct sluice_receipt *all[] = {&receipt, &sum, &empty};
    for (int i = 0; i < 3; i++) {
        int length = sluice_receipt_format_json(all[i], text, sizeof text);
        CHECK_EQ(length, strlen(text));
        const char *after = json_value(text);
        CHECK(after != NULL && *after == '\0' && text[0] == '{');
        snprintf(expected, sizeof expected, "\"bytes\":%llu,", (unsigned long long)all[i]->bytes);
        CHECK(strstr(text, expected) != NULL);
        snprintf(expected, sizeof expected, "\"fallback_count\":%llu,", (unsigned long long)all[i]->fallback_count);
        CHECK(strstr(text, expected) != NULL);
    }
    sluice_receipt_format_json(&receipt, text, sizeof text);
    CHECK(strstr(text, "{\"from\":\"sendfile\",\"to\":\"splice\",\"errno\":22,\"at\":10000,\"reason\":\"") != NULL);
    CHECK(strstr(text, "\"copy\":{\"bytes\":10000,\"calls\":") != NULL);
}

TEST("text is one line, names routes, evidence and fallbacks, and is cut off like snprintf's")
{
    char text[1000], small[20], nothing[1] = "";
    struct sluice_receipt receipt = move_with_fallbacks(2);
    int length = sluice_receipt_format(&receipt, text, sizeof text);
    CHECK_EQ(length, strlen(text));
    CHECK(strchr(text, '\n') == NULL);
    CHECK(strstr(text, "sendfile 9.8 KiB in 2 calls (probed)") != NULL);
    CHECK(strstr(text, "copy 9.8 KiB in 2 calls (by definition)") != NULL);
    CHECK(strstr(text, "at byte 10000 from sendfile to splice (EINVAL): ") != NULL);
    memset(small, 'x', sizeof small);
    CHECK_EQ(sluice_receipt_format(&receipt, small, sizeof small), length);
    CHECK_EQ(strlen(small), sizeof small - 1);
    CHECK(strncmp(small, text, sizeof small - 1) == 0);
    CHECK_EQ(sluice_receipt_format(&receipt, nothing, 0), length);
    receipt.loans = 1;
    sluice_receipt_format(&receipt, text, sizeof text);
    CHECK(strstr(text, "provisional: 1 loans outstanding") != NULL);
}

TEST("an error says what failed, how far it had come, why, and what to do")
{
    char text[300];
    struct sluice_error error = {.code = -ENOSPC,
                                 .route = SLUICE_ROUTE_COPY,
                                 .operation = "write",
                                 .delivered = 4096,
                                 .remedy = "Make room at the sink."};
    sluice_error_format(&error, text, sizeof text);
    CHECK_STR(text,
              "write failed (route copy) after 4096 bytes: No space left on device (ENOSPC). Make room at the sink.");
    error = (struct sluice_error){0};
    sluice_error_format(&error, text, sizeof text);
    CHECK_STR(text, "no error");
}

int main(void)
{
    alarm(60);
    return check_run_all();
}
