/* SPDX-License-Identifier: MIT */
#include "proxy/sockets.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

static void keep_alive(int fd, unsigned seconds)
{
    int on = seconds > 0, idle = (int)seconds, interval = seconds < 15 ? (int)seconds : 15;
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    if (seconds == 0)
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
}

void socket_set_up(const struct proxy_service *service, int family, const char *congestion, int fd)
{
    int on = 1;
    if (family == AF_UNIX)
        return;
    /* The library says itself where more follows. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    keep_alive(fd, service->keepalive);
    if (congestion != NULL)
        setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, congestion, (socklen_t)strlen(congestion));
}

int socket_make(const struct proxy_service *service, const struct address *address)
{
    int fd = socket(address->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    socket_set_up(service, address->any.sa_family, service->congestion, fd);
    return fd;
}

void socket_close(struct sluice_loop *loop, struct sluice_end *end, bool reset)
{
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    if (end == NULL)
        return;
    if (reset)
        setsockopt(sluice_end_fd(end), SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    sluice_loop_forget(loop, end);
    sluice_end_close(end);
}
