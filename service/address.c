/* SPDX-License-Identifier: MIT */
#include "service/address.h"
#include "base/cleanup.h"
#include "base/text.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>

#define HOST_MAX 254
#define UNIX_PREFIX "unix:"

/* HOST:PORT in its parts; host is "" for every address. bracketed: an IPv6 literal. */
struct parts {
    char host[HOST_MAX];
    bool bracketed;
    uint16_t port;
};

static int split(const char *text, struct parts *ret, struct failure *failure)
{
    struct parts parts = {0};
    const char *host = text, *host_end, *colon;
    if (*text == '[') {
        host = text + 1;
        host_end = strchr(host, ']');
        if (host_end == NULL)
            return failure_set(failure, -EINVAL, "\"%.100s\": the closing bracket is missing; write [::1]:8080", text);
        parts.bracketed = true;
        colon = host_end + 1;
    } else {
        colon = strrchr(text, ':');
        host_end = colon;
    }
    if (colon == NULL || *colon != ':')
        return failure_set(failure, -EINVAL,
                           "\"%.100s\" has no port; write HOST:PORT, such as 127.0.0.1:8080 or *:8080", text);
    if (!parts.bracketed && memchr(host, ':', (size_t)(host_end - host)) != NULL)
        return failure_set(failure, -EINVAL, "\"%.100s\": an IPv6 address needs brackets; write [%.*s]:%s", text,
                           (int)(host_end - host), host, colon + 1);
    if ((size_t)(host_end - host) >= sizeof parts.host)
        return failure_set(failure, -EINVAL, "the host name in \"%.100s...\" is too long", text);
    if (parts.bracketed && host == host_end)
        return failure_set(failure, -EINVAL, "\"%.100s\": no address in the brackets; write [::]:8080", text);
    if (!(host_end - host == 1 && *host == '*'))
        memcpy(parts.host, host, (size_t)(host_end - host));

    uint64_t port;
    if (text_parse_unsigned(colon + 1, &port) < 0 || port > UINT16_MAX)
        return failure_set(failure, -EINVAL, "\"%.100s\" is not a port; use a number from 0 (any free port) to 65535",
                           colon + 1);
    parts.port = (uint16_t)port;
    *ret = parts;
    return 0;
}

static bool is_unix(const char *text)
{
    return strncmp(text, UNIX_PREFIX, strlen(UNIX_PREFIX)) == 0;
}

int address_check(const char *text, struct failure *failure)
{
    struct parts parts;
    if (is_unix(text))
        return failure_set(failure, -EINVAL,
                           "\"%.100s\" is a Unix socket, which cannot be used here; write HOST:PORT, such as "
                           "127.0.0.1:8080",
                           text);
    return split(text, &parts, failure);
}

/* name: behind "unix:". */
static int parse_unix(const char *name, struct address *ret_address, struct failure *failure)
{
    struct address address = {.local = {.sun_family = AF_UNIX}};
    size_t length = strlen(name);
    if ((*name != '/' && *name != '@') || length < 2)
        return failure_set(failure, -EINVAL,
                           "\"" UNIX_PREFIX "%.100s\" is no Unix socket; write an absolute path, such as "
                           "unix:/run/name.sock, or unix:@name",
                           name);
    /* The final NUL of a path is part of the address; unix(7) says why one should not do without. An abstract name has
     * none, and its first byte is a NUL instead of our "@". */
    if (length >= sizeof address.local.sun_path)
        return failure_set(failure, -EINVAL,
                           "\"" UNIX_PREFIX "%.100s...\" is too long: a Unix socket's name has at most %zu bytes", name,
                           sizeof address.local.sun_path - 1);
    memcpy(address.local.sun_path, name, length);
    address.length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + (*name == '/'));
    if (*name == '@')
        address.local.sun_path[0] = '\0';
    *ret_address = address;
    return 0;
}

static bool host_has_ipv6(void)
{
    /* Creating the socket is not enough: with disable_ipv6=1 that works and only bind fails. */
    CLEANUP_FD int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_ANY_INIT};
    return fd >= 0 && bind(fd, (struct sockaddr *)&any, sizeof any) == 0;
}

static struct address any_address(uint16_t port)
{
    struct address address = {0};
    if (host_has_ipv6()) {
        address.v6 =
            (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_ANY_INIT};
        address.length = sizeof address.v6;
    } else {
        address.v4 = (struct sockaddr_in){
            .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {.s_addr = htonl(INADDR_ANY)}};
        address.length = sizeof address.v4;
    }
    return address;
}

int address_parse(const char *text, struct address *ret_address, struct failure *failure)
{
    struct parts parts;
    if (is_unix(text))
        return parse_unix(text + strlen(UNIX_PREFIX), ret_address, failure);
    int result = split(text, &parts, failure);
    if (result < 0)
        return result;
    if (parts.host[0] == '\0') {
        *ret_address = any_address(parts.port);
        return 0;
    }

    struct addrinfo hints = {.ai_family = parts.bracketed ? AF_INET6 : AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = parts.bracketed ? AI_NUMERICHOST : 0};
    struct addrinfo *found = NULL, *chosen = NULL;
    int resolved = getaddrinfo(parts.host, NULL, &hints, &found);
    if (resolved != 0) {
        int code = resolved == EAI_SYSTEM ? errno : 0;
        if (parts.bracketed)
            return failure_set(failure, -EINVAL, "\"%.100s\" is not an IPv6 address; write [::1]:8080", parts.host);
        return failure_set(failure, -EADDRNOTAVAIL,
                           "the name \"%.100s\" cannot be resolved: %s; use an address, such as 127.0.0.1:%u",
                           parts.host, code != 0 ? text_errno_meaning(code) : gai_strerror(resolved), parts.port);
    }
    for (struct addrinfo *each = found; each != NULL; each = each->ai_next) {
        if (each->ai_family != AF_INET && each->ai_family != AF_INET6)
            continue;
        if (chosen == NULL || (chosen->ai_family == AF_INET6 && each->ai_family == AF_INET))
            chosen = each;
    }
    if (chosen == NULL) {
        freeaddrinfo(found);
        return failure_set(failure, -EADDRNOTAVAIL, "the name \"%.100s\" has no IPv4 or IPv6 address", parts.host);
    }
    struct address address = {0};
    memcpy(&address.any, chosen->ai_addr, chosen->ai_addrlen);
    address.length = chosen->ai_addrlen;
    freeaddrinfo(found);
    if (address.any.sa_family == AF_INET6)
        address.v6.sin6_port = htons(parts.port);
    else
        address.v4.sin_port = htons(parts.port);
    *ret_address = address;
    return 0;
}

/* The contents of a small file below /proc without its newline in buffer, or what stands for an unknown one. */
static const char *read_setting(const char *path, const char *unknown, char *buffer, size_t size)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, buffer, size - 1);
    if (length <= 0) {
        snprintf(buffer, size, "%s", unknown);
        return buffer;
    }
    buffer[length] = '\0';
    buffer[strcspn(buffer, "\n")] = '\0';
    return buffer;
}

static int congestion_failure(int code, const char *name, struct failure *failure)
{
    char available[200];
    read_setting("/proc/sys/net/ipv4/tcp_available_congestion_control", "?", available, sizeof available);
    if (code == EPERM)
        return failure_set(failure, -EPERM,
                           "congestion control \"%.20s\" is reserved for root: the administrator permits it by "
                           "sysctl net.ipv4.tcp_allowed_congestion_control",
                           name);
    if (code == ENOENT)
        return failure_set(failure, -ENOENT,
                           "this kernel has no congestion control \"%.20s\"; it has: %s (root can load more: "
                           "modprobe tcp_%.20s)",
                           name, available, name);
    return failure_set(failure, -code, "congestion control \"%.20s\" was refused: %s (%s)", name,
                       text_errno_meaning(code), text_errno_name(code));
}

static int unix_bind_failure(int code, const char *text, struct failure *failure)
{
    switch (code) {
    case EADDRINUSE:
        return failure_set(failure, -code,
                           "cannot listen at %s: another process does already (EADDRINUSE); see which by \"ss -lxp\", "
                           "or choose another name",
                           text);
    case ENOTSOCK:
        return failure_set(failure, -code,
                           "cannot listen at %s: there is a file of this name that is no socket; choose another name, "
                           "or move the file",
                           text);
    case ENOENT:
        return failure_set(failure, -code, "cannot listen at %s: its directory does not exist (ENOENT); make it first",
                           text);
    case EACCES:
    case EPERM:
        return failure_set(failure, -code,
                           "cannot listen at %s: no permission (%s); this user needs to write in its directory, and to "
                           "a socket that is there already",
                           text, text_errno_name(code));
    default:
        return failure_set(failure, -code, "cannot listen at %s: %s (%s)", text, text_errno_meaning(code),
                           text_errno_name(code));
    }
}

static int bind_failure(int code, const struct address *address, struct failure *failure)
{
    char text[ADDRESS_TEXT_MAX], setting[32];
    address_format(&address->any, address->length, text, sizeof text);
    if (address->any.sa_family == AF_UNIX)
        return unix_bind_failure(code, text, failure);
    unsigned port = address_port(address);
    switch (code) {
    case EADDRINUSE:
        return failure_set(failure, -code,
                           "cannot listen at %s: another process does already (EADDRINUSE); see which by "
                           "\"ss -ltnp sport = :%u\", or choose another port (0: any free one)",
                           text, port);
    case EACCES:
        return failure_set(failure, -code,
                           "cannot listen at %s: ports below %s are for root (EACCES); choose a port from there on, or "
                           "give the program the right by \"setcap cap_net_bind_service=+ep\"",
                           text,
                           read_setting("/proc/sys/net/ipv4/ip_unprivileged_port_start", "?", setting, sizeof setting));
    case EADDRNOTAVAIL:
        return failure_set(failure, -code,
                           "cannot listen at %s: this host does not have that address (EADDRNOTAVAIL); \"ip address\" "
                           "shows those it has, *:%u is all of them",
                           text, port);
    case EAFNOSUPPORT:
        return failure_set(failure, -code,
                           "cannot listen at %s: this host has no IPv6 (EAFNOSUPPORT); use an IPv4 address", text);
    default:
        return failure_set(failure, -code, "cannot listen at %s: %s (%s)", text, text_errno_meaning(code),
                           text_errno_name(code));
    }
}

static int set_flag(int fd, int level, int option, int value)
{
    return setsockopt(fd, level, option, &value, sizeof value);
}

bool address_is_any(const struct address *address)
{
    return address->any.sa_family == AF_INET6  ? IN6_IS_ADDR_UNSPECIFIED(&address->v6.sin6_addr)
           : address->any.sa_family == AF_INET ? address->v4.sin_addr.s_addr == htonl(INADDR_ANY)
                                               : false;
}

bool address_is_same(const struct address *one, const struct address *other)
{
    return one->length == other->length && memcmp(&one->any, &other->any, one->length) == 0;
}

/* An IPv6 socket that is bound to every address takes IPv4, too. */
bool address_clashes(const struct address *one, const struct address *other)
{
    bool same = address_is_same(one, other);
    if (one->any.sa_family == AF_UNIX || other->any.sa_family == AF_UNIX)
        return same;
    return address_port(one) != 0 && address_port(one) == address_port(other) &&
           (same || address_is_any(one) || address_is_any(other));
}

bool address_is_loopback(const struct address *address)
{
    return (address->any.sa_family == AF_INET && ntohl(address->v4.sin_addr.s_addr) >> 24 == 127) ||
           (address->any.sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&address->v6.sin6_addr));
}

static bool is_private_v4(uint32_t host)
{
    static const struct {
        uint32_t network, bits;
    } networks[] = {
        {0x7f000000, 8},  /* 127.0.0.0 */
        {0x0a000000, 8},  /* 10.0.0.0 */
        {0xac100000, 12}, /* 172.16.0.0 */
        {0xc0a80000, 16}, /* 192.168.0.0 */
        {0xa9fe0000, 16}, /* 169.254.0.0 */
        {0x64400000, 10}, /* 100.64.0.0 */
    };
    for (size_t i = 0; i < sizeof networks / sizeof *networks; i++)
        if ((host ^ networks[i].network) >> (32 - networks[i].bits) == 0)
            return true;
    return false;
}

bool address_is_private(const struct address *address)
{
    const struct in6_addr *v6 = &address->v6.sin6_addr;
    switch (address->any.sa_family) {
    case AF_UNIX:
        return true;
    case AF_INET:
        return is_private_v4(ntohl(address->v4.sin_addr.s_addr));
    case AF_INET6:
        if (IN6_IS_ADDR_V4MAPPED(v6)) {
            uint32_t host;
            memcpy(&host, &v6->s6_addr[12], sizeof host);
            return is_private_v4(ntohl(host));
        }
        return IN6_IS_ADDR_LOOPBACK(v6) || IN6_IS_ADDR_LINKLOCAL(v6) || (v6->s6_addr[0] & 0xfe) == 0xfc;
    default:
        return false;
    }
}

int address_set_congestion(int fd, const char *name, struct failure *failure)
{
    if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, (socklen_t)strlen(name)) < 0)
        return congestion_failure(errno, name, failure);
    return 0;
}

const char *address_host_congestion(char buffer[static ADDRESS_CONGESTION_MAX])
{
    return read_setting("/proc/sys/net/ipv4/tcp_congestion_control", "", buffer, ADDRESS_CONGESTION_MAX);
}

int address_congestion_check(const char *name, struct failure *failure)
{
    CLEANUP_FD int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return fd < 0 ? congestion_failure(errno, name, failure) : address_set_congestion(fd, name, failure);
}

int address_remove_stale(const struct address *address)
{
    struct stat status;
    if (address->any.sa_family != AF_UNIX || address->local.sun_path[0] == '\0')
        return 0;
    if (lstat(address->local.sun_path, &status) < 0)
        return errno == ENOENT ? 0 : -errno;
    if (!S_ISSOCK(status.st_mode))
        return -ENOTSOCK;
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    /* EAGAIN: its queue is full; EPROTOTYPE: a datagram socket. Only a refusal says that nobody is there. */
    if (connect(fd, &address->any, address->length) == 0 || errno == EAGAIN || errno == EPROTOTYPE)
        return -EADDRINUSE;
    if (errno != ECONNREFUSED)
        return errno == ENOENT ? 0 : -errno;
    return unlink(address->local.sun_path) < 0 && errno != ENOENT ? -errno : 0;
}

static int listen_unix(const struct address *address, const struct listen_options *options, int *ret_fd,
                       struct failure *failure)
{
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return bind_failure(errno, address, failure);
    /* A path is taken for as long as the file is there, whoever made it. */
    int result = bind(fd, &address->any, address->length) < 0 ? -errno : 0;
    if (result == -EADDRINUSE && address->local.sun_path[0] != '\0') {
        result = address_remove_stale(address);
        if (result == 0 && bind(fd, &address->any, address->length) < 0)
            result = -errno;
    }
    if (result == 0 && listen(fd, options->backlog > 0 ? options->backlog : INT32_MAX) < 0)
        result = -errno;
    if (result < 0)
        return bind_failure(-result, address, failure);
    *ret_fd = TAKE_FD(fd);
    return 0;
}

int address_listen(const struct address *address, const struct listen_options *options, int *ret_fd,
                   struct failure *failure)
{
    static const struct listen_options defaults = {0};
    if (options == NULL)
        options = &defaults;
    if (address->any.sa_family == AF_UNIX)
        return listen_unix(address, options, ret_fd, failure);
    CLEANUP_FD int fd = socket(address->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return bind_failure(errno, address, failure);
    /* Without it, connections of the previous run in TIME_WAIT would keep us from binding for a minute. */
    if (set_flag(fd, SOL_SOCKET, SO_REUSEADDR, 1) < 0)
        return bind_failure(errno, address, failure);
    if (options->reuse_port && set_flag(fd, SOL_SOCKET, SO_REUSEPORT, 1) < 0)
        return bind_failure(errno, address, failure);
    /* Said either way: the host's default is a setting (net.ipv6.bindv6only). */
    if (address->any.sa_family == AF_INET6 && set_flag(fd, IPPROTO_IPV6, IPV6_V6ONLY, options->v6only) < 0)
        return bind_failure(errno, address, failure);
    int result = options->congestion != NULL ? address_set_congestion(fd, options->congestion, failure) : 0;
    if (result < 0)
        return result;
    if (bind(fd, &address->any, address->length) < 0 ||
        listen(fd, options->backlog > 0 ? options->backlog : INT32_MAX) < 0)
        return bind_failure(errno, address, failure);
    *ret_fd = TAKE_FD(fd);
    return 0;
}

int address_of_socket(int fd, struct address *ret_address)
{
    struct address address = {.length = 0};
    struct sockaddr_storage storage;
    socklen_t length = sizeof storage;
    if (getsockname(fd, (struct sockaddr *)&storage, &length) < 0)
        return -errno;
    if ((storage.ss_family != AF_INET && storage.ss_family != AF_INET6 && storage.ss_family != AF_UNIX) ||
        length > sizeof address.local)
        return -EAFNOSUPPORT;
    memcpy(&address.any, &storage, length);
    address.length = length;
    *ret_address = address;
    return 0;
}

/* Append text; what does not fit is left out, the length counts it. */
static size_t put(char *buffer, size_t size, size_t at, const char *text)
{
    size_t length = strlen(text);
    if (at < size) {
        size_t fits = size - at - 1 < length ? size - at - 1 : length;
        memcpy(buffer + at, text, fits);
        buffer[at + fits] = '\0';
    }
    return at + length;
}

static size_t put_unix(const struct sockaddr_un *address, socklen_t length, char *buffer, size_t size)
{
    size_t offset = offsetof(struct sockaddr_un, sun_path), count = length > offset ? length - offset : 0;
    char name[sizeof address->sun_path + 1];
    if (count > sizeof address->sun_path)
        count = sizeof address->sun_path;
    bool abstract = count > 1 && address->sun_path[0] == '\0' && address->sun_path[1] != '\0';
    if (!abstract)
        count = strnlen(address->sun_path, count);
    for (size_t i = 0; i < count; i++) {
        char byte = address->sun_path[i];
        name[i] = byte > ' ' && byte < 127 ? byte : abstract && i == 0 ? '@' : '?';
    }
    name[count] = '\0';
    size_t at = put(buffer, size, 0, count > 0 ? UNIX_PREFIX : "unix");
    return put(buffer, size, at, name);
}

/* By hand: access logs call it for every request, and inet_ntop calls snprintf for this. */
static size_t put_ipv4(const void *address, char *buffer, size_t size, size_t at)
{
    const uint8_t *bytes = address;
    char text[INET_ADDRSTRLEN], *end = text;
    for (int i = 0; i < 4; i++) {
        unsigned byte = bytes[i];
        if (byte >= 100)
            *end++ = (char)('0' + byte / 100);
        if (byte >= 10)
            *end++ = (char)('0' + byte / 10 % 10);
        *end++ = (char)('0' + byte % 10);
        *end++ = i < 3 ? '.' : '\0';
    }
    return put(buffer, size, at, text);
}

static size_t put_host(const struct sockaddr *address, socklen_t length, bool brackets, char *buffer, size_t size)
{
    char text[INET6_ADDRSTRLEN];
    size_t at = put(buffer, size, 0, "");
    if (address->sa_family == AF_INET && length >= sizeof(struct sockaddr_in)) {
        const struct sockaddr_in *v4 = (const void *)address;
        return put_ipv4(&v4->sin_addr, buffer, size, at);
    }
    if (address->sa_family == AF_INET6 && length >= sizeof(struct sockaddr_in6)) {
        const struct sockaddr_in6 *v6 = (const void *)address;
        if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr))
            return put_ipv4(&v6->sin6_addr.s6_addr[12], buffer, size, at);
        if (brackets)
            at = put(buffer, size, at, "[");
        at = put(buffer, size, at, inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text));
        if (v6->sin6_scope_id != 0) {
            snprintf(text, sizeof text, "%%%u", v6->sin6_scope_id);
            at = put(buffer, size, at, text);
        }
        return brackets ? put(buffer, size, at, "]") : at;
    }
    if (address->sa_family == AF_UNIX)
        return put_unix((const void *)address, length, buffer, size);
    return put(buffer, size, at, "?");
}

size_t address_format_host(const struct sockaddr *address, socklen_t length, char *buffer, size_t size)
{
    return put_host(address, length, false, buffer, size);
}

size_t address_format(const struct sockaddr *address, socklen_t length, char *buffer, size_t size)
{
    size_t at = put_host(address, length, true, buffer, size);
    if (address->sa_family != AF_INET && address->sa_family != AF_INET6)
        return at;
    char port[8];
    snprintf(port, sizeof port, ":%u",
             ntohs(address->sa_family == AF_INET6 ? ((const struct sockaddr_in6 *)(const void *)address)->sin6_port
                                                  : ((const struct sockaddr_in *)(const void *)address)->sin_port));
    return put(buffer, size, at, port);
}

unsigned address_port(const struct address *address)
{
    return address->any.sa_family == AF_INET6  ? ntohs(address->v6.sin6_port)
           : address->any.sa_family == AF_INET ? ntohs(address->v4.sin_port)
                                               : 0;
}

size_t address_format_url(const char *scheme, const struct address *address, char *buffer, size_t size)
{
    struct address shown = *address;
    if (address_is_any(address) && address->any.sa_family == AF_INET)
        shown.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    else if (address_is_any(address)) /* ::1 rather than 127.0.0.1: right also for a socket that takes IPv6 only */
        shown.v6.sin6_addr = in6addr_loopback;
    char text[ADDRESS_TEXT_MAX];
    address_format(&shown.any, shown.length, text, sizeof text);
    size_t at = put(buffer, size, 0, scheme);
    at = put(buffer, size, at, "://");
    at = put(buffer, size, at, text);
    return put(buffer, size, at, "/");
}
