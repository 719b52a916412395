/* SPDX-License-Identifier: MIT
 *
 * Whether the kernel does TLS on a socket is told by two getsockopt; whether the CPU or the device does it, by none.
 * There are two sources for that, both of them the kernel's own state:
 *
 *   /proc/net/tls_stat     how many sockets of this network namespace a device serves now. Where that is none, as
 *                          nearly everywhere, it is the CPU. Any user may read it.
 *   inet_diag, by netlink  of one socket. Before Linux 6.15 only with CAP_NET_ADMIN.
 */
#include "tls.h"
#include "end.h"
#include "sys.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/tls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#ifndef SOL_TLS
#define SOL_TLS 282
#endif
#define ULP_NAME_SIZE 16 /* TCP_ULP_NAME_MAX */

/* RFC 8446, B.1 and B.2 */
#define RECORD_ALERT 21
#define RECORD_HANDSHAKE 22
#define RECORD_DATA 23
#define ALERT_CLOSE_NOTIFY 0

static const char stat_path[] = "/proc/net/tls_stat";
static _Atomic int kept_stat = -1; /* open, for when the process may open nothing any more */
static atomic_bool keeps_stat;

/* ---- Is there TLS? ---------------------------------------------------------------------------------------------- */

/* Returns 0 or a negative errno: EBUSY, no keys were given for this direction. */
static int ask_direction(int fd, int direction, struct tls_crypto_info *ret_info)
{
    socklen_t size = sizeof *ret_info; /* no more than this: the keys need not be seen */
    return sys.getsockopt(fd, SOL_TLS, direction, ret_info, &size) < 0 ? -errno : 0;
}

int tls_find(int fd, struct tls_facts *ret_facts)
{
    char name[ULP_NAME_SIZE + 1] = "";
    socklen_t size = ULP_NAME_SIZE;
    struct tls_facts facts = {.send = SLUICE_TLS_NONE};
    struct tls_crypto_info info = {.version = 0};
    if (sys.getsockopt(fd, IPPROTO_TCP, TCP_ULP, name, &size) < 0)
        return -errno;
    if (size > 0 && strcmp(name, "tls") == 0) {
        int receives = ask_direction(fd, TLS_RX, &info);
        facts.guessed = receives == -ENOPROTOOPT; /* before Linux 5.14 */
        if (receives == 0 || facts.guessed)
            facts.receive = SLUICE_TLS_UNTOLD;
        if (ask_direction(fd, TLS_TX, &info) == 0)
            facts.send = SLUICE_TLS_UNTOLD;
        facts.version = info.version;
        facts.cipher = info.cipher_type;
    }
    *ret_facts = facts;
    return 0;
}

int sluice_tls_probe(const char **ret_reason)
{
    const char *reason = NULL;
    int result = 0, fd = sys.socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        result = -errno;
        reason = "no socket to try it with";
    } else if (sys.setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", sizeof "tls") < 0 && errno != ENOTCONN) {
        result = -errno; /* ENOTCONN: it has it, for connected sockets */
        reason = result == -ENOENT ? "the kernel's module tls is not loaded, or there is none (modprobe tls, as root)"
                                   : "the kernel refuses the option TCP_ULP (Linux 4.13 or newer, not forbidden)";
    }
    if (fd >= 0)
        sys.close(fd);
    if (result == 0 && !atomic_exchange(&keeps_stat, true)) {
        int stat = sys.open(stat_path, O_RDONLY | O_CLOEXEC, 0);
        atomic_store(&kept_stat, stat);
        if (stat < 0)
            atomic_store(&keeps_stat, false);
    }
    if (result < 0 && ret_reason != NULL)
        *ret_reason = reason;
    return result;
}

/* ---- Who does it? ----------------------------------------------------------------------------------------------- */

/* Returns the number behind this name, or -1. */
static long counter(const char *text, const char *name)
{
    size_t length = strlen(name);
    for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, name, length) == 0 && (line[length] == ' ' || line[length] == '\t'))
            return strtol(line + length, NULL, 10);
    }
    return -1;
}

/* If no socket here is served by a device, this one is not. */
static void ask_counters(struct tls_facts *facts)
{
    char text[2048];
    int kept = atomic_load(&kept_stat), fd = kept >= 0 ? kept : sys.open(stat_path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return;
    ssize_t size = sys.pread(fd, text, sizeof text - 1, 0);
    if (kept < 0)
        sys.close(fd);
    if (size <= 0)
        return;
    text[size] = '\0';
    if (facts->send != SLUICE_TLS_NONE && counter(text, "TlsCurrTxDevice") == 0)
        facts->send = SLUICE_TLS_SOFTWARE;
    if (facts->receive != SLUICE_TLS_NONE && !facts->guessed && counter(text, "TlsCurrRxDevice") == 0)
        facts->receive = SLUICE_TLS_SOFTWARE;
}

struct diag_query {
    struct nlmsghdr header;
    struct inet_diag_req_v2 request;
};

static bool name_socket(int fd, struct diag_query *query)
{
    struct sockaddr_storage peer = {0}, local = {0};
    struct inet_diag_sockid *id = &query->request.id;
    socklen_t size = sizeof peer;
    if (sys.getpeername(fd, (struct sockaddr *)&peer, &size) < 0)
        return false;
    size = sizeof local;
    if (sys.getsockname(fd, (struct sockaddr *)&local, &size) < 0 || local.ss_family != peer.ss_family)
        return false;
    if (peer.ss_family == AF_INET) {
        const struct sockaddr_in *to = (struct sockaddr_in *)&peer, *from = (struct sockaddr_in *)&local;
        id->idiag_dport = to->sin_port;
        id->idiag_sport = from->sin_port;
        memcpy(id->idiag_dst, &to->sin_addr, sizeof to->sin_addr);
        memcpy(id->idiag_src, &from->sin_addr, sizeof from->sin_addr);
    } else {
        const struct sockaddr_in6 *to = (struct sockaddr_in6 *)&peer, *from = (struct sockaddr_in6 *)&local;
        id->idiag_dport = to->sin6_port;
        id->idiag_sport = from->sin6_port;
        id->idiag_if = to->sin6_scope_id;
        memcpy(id->idiag_dst, &to->sin6_addr, sizeof to->sin6_addr);
        memcpy(id->idiag_src, &from->sin6_addr, sizeof from->sin6_addr);
    }
    query->request.sdiag_family = (uint8_t)peer.ss_family;
    return true;
}

/* The attribute of this type among those in data, or NULL. */
static const struct nlattr *attribute(const char *data, size_t size, uint16_t type)
{
    while (size >= sizeof(struct nlattr)) {
        const struct nlattr *found = (const struct nlattr *)(const void *)data;
        if (found->nla_len < sizeof(struct nlattr) || found->nla_len > size)
            return NULL;
        if ((found->nla_type & NLA_TYPE_MASK) == type)
            return found;
        size_t step = ((size_t)found->nla_len + NLA_ALIGNTO - 1) & ~(size_t)(NLA_ALIGNTO - 1);
        size -= step < size ? step : size;
        data += step;
    }
    return NULL;
}

static const struct nlattr *within(const struct nlattr *outer, uint16_t type)
{
    if (outer == NULL)
        return NULL;
    return attribute((const char *)outer + sizeof(struct nlattr), outer->nla_len - sizeof(struct nlattr), type);
}

static uint8_t by_of(const struct nlattr *tls, uint16_t type, uint8_t before)
{
    const struct nlattr *found = within(tls, type);
    uint16_t how = 0;
    if (found != NULL && found->nla_len >= sizeof(struct nlattr) + sizeof how)
        memcpy(&how, (const char *)found + sizeof(struct nlattr), sizeof how);
    switch (how) {
    case TLS_CONF_BASE:
        return SLUICE_TLS_NONE;
    case TLS_CONF_SW:
        return SLUICE_TLS_SOFTWARE;
    case TLS_CONF_HW:
    case TLS_CONF_HW_RECORD:
        return SLUICE_TLS_DEVICE;
    }
    return before;
}

static void read_reply(const char *reply, size_t size, struct tls_facts *facts)
{
    const struct nlmsghdr *header = (const struct nlmsghdr *)(const void *)reply;
    size_t fixed = NLMSG_LENGTH(sizeof(struct inet_diag_msg));
    if (size < fixed || header->nlmsg_type != SOCK_DIAG_BY_FAMILY || header->nlmsg_len > size ||
        header->nlmsg_len < fixed)
        return;
    fixed = NLMSG_ALIGN(fixed);
    if (header->nlmsg_len < fixed)
        return;
    const struct nlattr *tls =
        within(attribute(reply + fixed, header->nlmsg_len - fixed, INET_DIAG_ULP_INFO), INET_ULP_INFO_TLS);
    if (tls == NULL)
        return; /* told to the administrator alone */
    facts->send = by_of(tls, TLS_INFO_TXCONF, facts->send);
    facts->receive = by_of(tls, TLS_INFO_RXCONF, facts->receive);
}

static void ask_socket(int fd, struct tls_facts *facts)
{
    _Alignas(struct nlmsghdr) char reply[4096];
    struct diag_query query = {
        .header = {.nlmsg_len = sizeof query, .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST},
        .request = {.sdiag_protocol = IPPROTO_TCP,
                    .idiag_ext = 1 << (INET_DIAG_INFO - 1), /* without it nothing is told of TLS either */
                    .idiag_states = UINT32_MAX,
                    .id = {.idiag_cookie = {INET_DIAG_NOCOOKIE, INET_DIAG_NOCOOKIE}}},
    };
    if (!name_socket(fd, &query))
        return;
    int netlink = sys.socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    if (netlink < 0)
        return;
    /* It answers within the send call, so this recv does not wait. */
    if (sys.send(netlink, &query, sizeof query, 0) == (ssize_t)sizeof query) {
        ssize_t size = sys.recv(netlink, reply, sizeof reply, MSG_DONTWAIT);
        if (size > 0)
            read_reply(reply, (size_t)size, facts);
    }
    sys.close(netlink);
}

static struct tls_facts *facts_of(struct sluice_end *end)
{
    static struct tls_facts none;
    if (end->kind != SLUICE_END_TCP)
        return &none;
    struct tls_facts *facts = &end->socket.tls;
    if (facts->asked || (facts->send == SLUICE_TLS_NONE && facts->receive == SLUICE_TLS_NONE))
        return facts;
    facts->asked = true;
    ask_counters(facts);
    if (facts->send == SLUICE_TLS_UNTOLD || facts->receive == SLUICE_TLS_UNTOLD)
        ask_socket(end->fd, facts);
    unsigned on = 0;
    socklen_t size = sizeof on;
    facts->zero_copy = facts->send != SLUICE_TLS_NONE &&
                       sys.getsockopt(end->fd, SOL_TLS, TLS_TX_ZEROCOPY_RO, &on, &size) == 0 && on != 0;
    return facts;
}

enum sluice_tls_by tls_sends(struct sluice_end *end)
{
    return (enum sluice_tls_by)facts_of(end)->send;
}

enum sluice_tls_by tls_receives(struct sluice_end *end)
{
    return (enum sluice_tls_by)facts_of(end)->receive;
}

bool tls_device_refers(struct sluice_end *end)
{
    return facts_of(end)->zero_copy;
}

const char *sluice_tls_by_name(enum sluice_tls_by by)
{
    switch (by) {
    case SLUICE_TLS_NONE:
        return "none";
    case SLUICE_TLS_SOFTWARE:
        return "software";
    case SLUICE_TLS_DEVICE:
        return "device";
    case SLUICE_TLS_UNTOLD:
        return "unknown";
    }
    return "?";
}

static const char *cipher_name(unsigned cipher)
{
    static const char *const names[] = {
        [TLS_CIPHER_AES_GCM_128] = "AES-128-GCM",
        [TLS_CIPHER_AES_GCM_256] = "AES-256-GCM",
        [TLS_CIPHER_AES_CCM_128] = "AES-128-CCM",
        [TLS_CIPHER_CHACHA20_POLY1305] = "ChaCha20-Poly1305",
        [TLS_CIPHER_SM4_GCM] = "SM4-GCM",
        [TLS_CIPHER_SM4_CCM] = "SM4-CCM",
        [57] = "ARIA-128-GCM", /* newer than some headers */
        [58] = "ARIA-256-GCM",
    };
    return cipher < sizeof names / sizeof *names && names[cipher] != NULL ? names[cipher] : "?";
}

int sluice_end_tls(struct sluice_end *end, struct sluice_tls *ret_tls)
{
    if (end->kind != SLUICE_END_TCP)
        return -ENOTSOCK;
    const struct tls_facts *facts = facts_of(end);
    *ret_tls = (struct sluice_tls){
        .send = (enum sluice_tls_by)facts->send,
        .receive = (enum sluice_tls_by)facts->receive,
        .version = facts->version,
        .cipher = facts->version != 0 ? cipher_name(facts->cipher) : "",
        .zero_copy = facts->zero_copy && facts->send == SLUICE_TLS_DEVICE,
    };
    return 0;
}

/* ---- What is no data -------------------------------------------------------------------------------------------- */

int tls_explain(const struct sluice_end *end, int error, uint64_t *calls, const char **ret_reason)
{
    unsigned char alert[2] = {0}; /* level, description */
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(unsigned char))];
    struct iovec iov = {.iov_base = alert, .iov_len = sizeof alert};
    struct msghdr message = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if ((error != -EIO && error != -EINVAL) || end->kind != SLUICE_END_TCP ||
        end->socket.tls.receive == SLUICE_TLS_NONE)
        return error;
    ++*calls;
    ssize_t size = sys.recvmsg(end->fd, &message, MSG_PEEK | MSG_DONTWAIT);
    const struct cmsghdr *header = size < 0 ? NULL : CMSG_FIRSTHDR(&message);
    if (header == NULL || header->cmsg_level != SOL_TLS || header->cmsg_type != TLS_GET_RECORD_TYPE)
        return error;
    switch (*CMSG_DATA(header)) {
    case RECORD_DATA:
        return error;
    case RECORD_ALERT:
        if (size == sizeof alert && alert[1] == ALERT_CLOSE_NOTIFY)
            return 0;
        *ret_reason = "the peer has ended TLS by an alert";
        return -ECONNABORTED;
    case RECORD_HANDSHAKE:
        *ret_reason =
            "a message for whoever made the TLS handshake has come (a new ticket, new keys): kernel TLS gives "
            "it by recvmsg alone; receive in user space, or with keys that do not change";
        return -EPROTO;
    }
    *ret_reason = "TLS records that are no data have come";
    return -EPROTO;
}
