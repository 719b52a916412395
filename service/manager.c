/* SPDX-License-Identifier: MIT */
#include "service/manager.h"
#include "base/cleanup.h"
#include "base/text.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FIRST_PASSED 3 /* SD_LISTEN_FDS_START */
#define PASSED_MAX 64

static struct {
    unsigned count;
    int fds[PASSED_MAX]; /* -1: somebody has it */
    ino_t sockets[PASSED_MAX];
} passed;

/* A number in the environment, or 0. */
static uint64_t number_in(const char *name)
{
    const char *text = getenv(name);
    uint64_t number;
    return text != NULL && text_parse_unsigned(text, &number) == 0 ? number : 0;
}

static int look_at(int fd, struct failure *failure)
{
    int listening = 0, type = 0;
    socklen_t size = sizeof listening, type_size = sizeof type;
    struct address address;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_size) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) < 0 || address_of_socket(fd, &address) < 0)
        return failure_set(failure, -errno,
                           "descriptor %d, which the service manager passed, is no socket for this: %s", fd,
                           text_errno_meaning(errno));
    if (type != SOCK_STREAM || !listening)
        return failure_set(failure, -EINVAL,
                           "descriptor %d, which the service manager passed, is no listening stream socket; write "
                           "ListenStream= and Accept=no in its .socket unit",
                           fd);
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return failure_set(failure, -errno, "descriptor %d, which the service manager passed: %s", fd,
                           text_errno_meaning(errno));
    return 0;
}

int manager_take_sockets(struct failure *failure)
{
    const char *text = getenv("LISTEN_FDS");
    uint64_t count = 0;
    /* Else it is for a process that started us, or for nobody. */
    if (text != NULL && number_in("LISTEN_PID") == (uint64_t)getpid() && text_parse_unsigned(text, &count) < 0)
        return failure_set(failure, -EINVAL, "LISTEN_FDS is \"%.100s\", which is no number of passed sockets", text);
    if (count > PASSED_MAX)
        return failure_set(failure, -E2BIG, "the service manager passed %llu sockets; %u at most are taken",
                           (unsigned long long)count, PASSED_MAX);
    for (unsigned i = 0; i < count; i++) {
        int result = look_at(FIRST_PASSED + (int)i, failure);
        if (result < 0)
            return result;
        struct stat status;
        passed.fds[i] = FIRST_PASSED + (int)i;
        passed.sockets[i] = fstat(passed.fds[i], &status) == 0 ? status.st_ino : 0;
        passed.count = i + 1;
    }
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    return (int)passed.count;
}

/* Every address of the host counts as one, by IPv6 or by IPv4: which of the two ":80" means depends on the host. */
static bool same_place(const struct address *one, const struct address *other)
{
    struct address addresses[2] = {*one, *other};
    for (unsigned i = 0; i < 2; i++) {
        struct address *address = &addresses[i];
        if (address->any.sa_family == AF_INET6 && IN6_IS_ADDR_UNSPECIFIED(&address->v6.sin6_addr)) {
            in_port_t port = address->v6.sin6_port;
            *address = (struct address){.length = sizeof address->v4};
            address->v4.sin_family = AF_INET;
            address->v4.sin_port = port;
        }
    }
    one = &addresses[0];
    other = &addresses[1];
    if (one->any.sa_family != other->any.sa_family)
        return false;
    if (one->any.sa_family == AF_INET)
        return one->v4.sin_port == other->v4.sin_port && one->v4.sin_addr.s_addr == other->v4.sin_addr.s_addr;
    if (one->any.sa_family == AF_INET6)
        return one->v6.sin6_port == other->v6.sin6_port && one->v6.sin6_scope_id == other->v6.sin6_scope_id &&
               memcmp(&one->v6.sin6_addr, &other->v6.sin6_addr, sizeof one->v6.sin6_addr) == 0;
    char texts[2][ADDRESS_TEXT_MAX];
    address_format(&one->any, one->length, texts[0], sizeof texts[0]);
    address_format(&other->any, other->length, texts[1], sizeof texts[1]);
    return strcmp(texts[0], texts[1]) == 0;
}

int manager_socket(const struct address *address)
{
    for (unsigned i = 0; i < passed.count; i++) {
        struct address bound;
        if (passed.fds[i] >= 0 &&
            (address == NULL || (address_of_socket(passed.fds[i], &bound) == 0 && same_place(address, &bound))))
            return TAKE_FD(passed.fds[i]);
    }
    return -1;
}

int manager_listen(const struct address *address, const struct listen_options *options, int *ret_fd,
                   struct failure *failure)
{
    CLEANUP_FD int fd = manager_socket(address);
    if (fd < 0)
        return address_listen(address, options, ret_fd, failure);
    if (options != NULL && options->congestion != NULL && address->any.sa_family != AF_UNIX) {
        int result = address_set_congestion(fd, options->congestion, failure);
        if (result < 0)
            return result;
    }
    *ret_fd = TAKE_FD(fd);
    return 0;
}

void manager_shut_down(int fd)
{
    struct stat status;
    bool known = fd >= 0 && fstat(fd, &status) == 0;
    for (unsigned i = 0; known && i < passed.count; i++)
        if (passed.sockets[i] == status.st_ino)
            return;
    if (known)
        shutdown(fd, SHUT_RDWR);
}

void manager_close_rest(const char *program)
{
    for (unsigned i = 0; i < passed.count; i++) {
        struct address address;
        char text[ADDRESS_TEXT_MAX] = "?";
        if (passed.fds[i] < 0)
            continue;
        if (address_of_socket(passed.fds[i], &address) == 0)
            address_format(&address.any, address.length, text, sizeof text);
        fprintf(stderr, "%s: the service manager passed a socket at %s, but no listen says that; not used\n", program,
                text);
        passed.fds[i] = close_fd(passed.fds[i]);
    }
}

void manager_notify(const char *format, ...)
{
    const char *where = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char text[512];
    if (where == NULL || (where[0] != '/' && where[0] != '@') || strlen(where) >= sizeof address.sun_path)
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    memcpy(address.sun_path, where, strlen(where));
    if (where[0] == '@')
        address.sun_path[0] = '\0';
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd >= 0)
        sendto(fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT, (const struct sockaddr *)&address,
               (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(where)));
}
