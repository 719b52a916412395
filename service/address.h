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
#include <sys/un.h>

struct address {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        struct sockaddr_un local;
    };
    socklen_t length;
};

/* "unix:", a path of 108 bytes (the kernel takes one without an end), and its end. Others are shorter. */
#define ADDRESS_TEXT_MAX 114

/* Is this HOST:PORT, as address_parse takes it? Names are not looked up, and Unix sockets are refused: a user of them
 * says so by not asking here. Returns 0 or -EINVAL. */
int address_check(const char *text, struct failure *failure);

/* "127.0.0.1:8080", "[::1]:8080", "localhost:8080", "*:8080" or ":8080" (every address of the host: IPv6 and IPv4 by
 * one socket, IPv4 alone where there is no IPv6). Port 0: the kernel chooses. A name with several addresses gives its
 * first IPv4 one, so that the same command means the same everywhere; may ask the resolver and so take its time.
 * "unix:/path": a Unix stream socket; the path is absolute, because a worker's or the next start's working directory
 * may be another. "unix:@name": one in the abstract name space (unix(7)), that has no file and no permissions. Returns
 * 0, -EINVAL, or -EADDRNOTAVAIL (no such name). */
int address_parse(const char *text, struct address *ret_address, struct failure *failure);

#define ADDRESS_CONGESTION_MAX 32 /* a name's, with its NUL */

struct listen_options {
    int backlog;            /* 0: as many as the host allows (net.core.somaxconn) */
    const char *congestion; /* TCP congestion control of accepted connections, which inherit it; NULL: the host's */
    bool v6only;            /* an IPv6 address does not take IPv4 connections */
    bool reuse_port;        /* SO_REUSEPORT: several sockets on one address, each with a queue of its own */
};

/* A listening, non-blocking, close-on-exec socket in *ret_fd, TCP with SO_REUSEADDR or Unix. options may be NULL; for a
 * Unix socket only the backlog counts. The file of a Unix socket gets the permissions that the umask leaves; one that a
 * process left behind is replaced, one that somebody listens at is not, nor is a file that is no socket.
 * Returns 0 or a negative errno, e.g. -EADDRINUSE, -EACCES, -EADDRNOTAVAIL; -ENOENT: no such congestion control, or no
 * such directory. */
int address_listen(const struct address *address, const struct listen_options *options, int *ret_fd,
                   struct failure *failure);

/* Remove a Unix socket's file at which nobody listens: before binding there, and after having closed the listener for
 * good. Nothing to do for other addresses, and where there is no file. Returns 0; -EADDRINUSE: somebody listens;
 * -ENOTSOCK: the file is no socket; or another negative errno. */
int address_remove_stale(const struct address *address);

/* Of one family, host and port, or path. */
bool address_is_same(const struct address *one, const struct address *other);

/* Every address of the host: 0.0.0.0 or ::. */
bool address_is_any(const struct address *address);

/* Would listening at the one keep others from listening at the other? Not at port 0, which is another one each time. */
bool address_clashes(const struct address *one, const struct address *other);

/* 127.0.0.0/8 or ::1. */
bool address_is_loopback(const struct address *address);

/* Can only this host, or networks that the internet does not route to, reach it: loopback, private (RFC 1918, 4193),
 * link-local, shared by a carrier's clients (RFC 6598), Unix sockets? The wildcard is not. */
bool address_is_private(const struct address *address);

/* May sockets of this host have this congestion control? Returns 0 or a negative errno, -ENOENT or -EPERM usually. */
int address_congestion_check(const char *name, struct failure *failure);

/* Connections of this socket get that congestion control, those that it accepts, too. Returns 0 or a negative errno. */
int address_set_congestion(int fd, const char *name, struct failure *failure);

/* The host's congestion control, which sockets have that were given none; "" if it cannot be read. */
const char *address_host_congestion(char buffer[static ADDRESS_CONGESTION_MAX]);

/* The address that a socket is bound to: with the port that the kernel chose. Returns 0 or a negative errno. */
int address_of_socket(int fd, struct address *ret_address);

/* "127.0.0.1:8080", "[::1]:8080"; IPv4 within IPv6 as IPv4. "unix:/path", "unix:@name", "unix" for a Unix socket
 * without a name, as most clients are; bytes that are not printable are shown as "?". "?" for other families. Always
 * terminates (ADDRESS_TEXT_MAX is enough); returns the length. */
size_t address_format(const struct sockaddr *address, socklen_t length, char *buffer, size_t size);

/* The same without the port and the brackets, as access logs have it. */
size_t address_format_host(const struct sockaddr *address, socklen_t length, char *buffer, size_t size);

/* A URL that a browser on this host can open: the wildcard becomes the loopback address. Of a TCP address; scheme:
 * "http". */
size_t address_format_url(const char *scheme, const struct address *address, char *buffer, size_t size);

/* The port of a TCP address; 0 for others. */
unsigned address_port(const struct address *address);

#endif
