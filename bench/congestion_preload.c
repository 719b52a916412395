/* SPDX-License-Identifier: MIT
 *
 * LD_PRELOAD for servers without an option for the congestion control: sets TCP_CONGESTION to $BENCH_CONGESTION on
 * every listening socket, from which Linux hands it on to the accepted ones, and on every connecting one. The same shim
 * for every peer, so that none is measured with a setting the others do not have. Where the host's default is the
 * wanted one it does nothing, as a server that is told nothing.
 */
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static char wanted[32]; /* a copy: nginx writes its title where the environment was */
static int (*next_listen)(int, int);
static int (*next_connect)(int, const struct sockaddr *, socklen_t);

__attribute__((constructor)) static void prepare(void)
{
    *(void **)&next_listen = dlsym(RTLD_NEXT, "listen");
    *(void **)&next_connect = dlsym(RTLD_NEXT, "connect");

    const char *name = getenv("BENCH_CONGESTION");
    if (!name || strlen(name) >= sizeof(wanted))
        return;
    char host[sizeof(wanted)] = "";
    FILE *f = fopen("/proc/sys/net/ipv4/tcp_congestion_control", "re");
    if (f && fgets(host, sizeof(host), f))
        host[strcspn(host, "\n")] = '\0';
    if (f)
        fclose(f);
    if (strcmp(name, host) != 0)
        strcpy(wanted, name);
}

static void set(int fd)
{
    if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, wanted, (socklen_t)strlen(wanted)) < 0 && errno != ENOPROTOOPT)
        perror("bench: TCP_CONGESTION");
}

__attribute__((visibility("default"))) int listen(int fd, int backlog)
{
    int domain = 0;
    socklen_t size = sizeof(domain);
    if (*wanted && getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 &&
        (domain == AF_INET || domain == AF_INET6))
        set(fd);
    return next_listen(fd, backlog);
}

/* One call more per connection, as any proxy has to make that sets it, and none beside. */
__attribute__((visibility("default"))) int connect(int fd, const struct sockaddr *address, socklen_t size)
{
    if (*wanted && address && (address->sa_family == AF_INET || address->sa_family == AF_INET6))
        set(fd);
    return next_connect(fd, address, size);
}
