/* SPDX-License-Identifier: MIT
 *
 * LD_PRELOAD for servers without an option for the congestion control: sets TCP_CONGESTION to $BENCH_CONGESTION on
 * every listening socket; Linux hands it on to the accepted ones. The same shim for every peer, so that none is
 * measured with a setting the others do not have.
 */
#include <dlfcn.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

__attribute__((visibility("default"))) int listen(int fd, int backlog)
{
    int (*next)(int, int);
    *(void **)&next = dlsym(RTLD_NEXT, "listen");

    const char *name = getenv("BENCH_CONGESTION");
    int domain = 0;
    socklen_t size = sizeof(domain);
    if (name && *name && getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 &&
        (domain == AF_INET || domain == AF_INET6) &&
        setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, (socklen_t)strlen(name)) < 0)
        perror("bench: TCP_CONGESTION");
    return next(fd, backlog);
}
