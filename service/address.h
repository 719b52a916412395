/* SPDX-License-Identifier: MIT
 *
 * Addresses as people write them, and listening on them.
 */
#ifndef SLUICE_SERVICE_ADDRESS_H
#define SLUICE_SERVICE_ADDRESS_H

#include "base/failure.h"
#include <netinet/in.h>
#include <stdbool.h>
#include <sys/socket.h>

struct address {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    };
    socklen_t length;
};

/* "[1111:2222:3333:4444:5555:6666:7777:8888%4294967295]:65535" and its end. */
#define ADDRESS_TEXT_MAX 64

/* Is this HOST:PORT, as address_parse takes it? Names are not looked up. Returns 0 or -EINVAL. */
int address_check(const char *text, struct failure *failure);

/* "127.0.0.1:8080", "[::1]:8080", "localhost:8080", "*:8080" or ":8080" (every address of the host: IPv6 and IPv4 by
 * one socket, IPv4 alone where there is no IPv6). Port 0: the kernel chooses. A name with several addresses gives its
 * first IPv4 one, so that the same command means the same everywhere; may ask the resolver and so take its time.
 * Returns 0, -EINVAL, or -EADDRNOTAVAIL (no such name). */
int address_parse(const char *text, struct address *ret_address, struct failure *failure);

struct listen_options {
    int backlog;            /* 0: as many as the host allows (net.core.somaxconn) */
    const char *congestion; /* TCP congestion control of accepted connections, which inherit it; NULL: the host's */
    bool v6only;            /* an IPv6 address does not take IPv4 connections */
    bool reuse_port;        /* SO_REUSEPORT: several sockets on one address, each with a queue of its own */
};

/* A listening, non-blocking, close-on-exec TCP socket in *ret_fd, bound with SO_REUSEADDR. options may be NULL.
 * Returns 0 or a negative errno, e.g. -EADDRINUSE, -EACCES, -EADDRNOTAVAIL; -ENOENT: no such congestion control. */
int address_listen(const struct address *address, const struct listen_options *options, int *ret_fd,
                   struct failure *failure);

/* The address that a socket is bound to: with the port that the kernel chose. Returns 0 or a negative errno. */
int address_of_socket(int fd, struct address *ret_address);

/* "127.0.0.1:8080", "[::1]:8080"; IPv4 within IPv6 as IPv4. "unix" or "?" for other families. Always terminates
 * (ADDRESS_TEXT_MAX is enough); returns the length. */
size_t address_format(const struct sockaddr *address, socklen_t length, char *buffer, size_t size);

/* The same without the port and the brackets, as access logs have it. */
size_t address_format_host(const struct sockaddr *address, socklen_t length, char *buffer, size_t size);

/* A URL that a browser on this host can open: the wildcard becomes the loopback address. */
size_t address_format_url(const struct address *address, char *buffer, size_t size);

#endif
