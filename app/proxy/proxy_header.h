/* SPDX-License-Identifier: MIT
 *
 * The PROXY protocol, versions 1 and 2 (haproxy.org, proxy-protocol.txt): what a connection's first bytes say of the
 * client in front of a proxy. A pure parser and writer: no I/O.
 */
#ifndef SLUICE_PROXY_PROXY_HEADER_H
#define SLUICE_PROXY_PROXY_HEADER_H

#include "proxy/config.h"
#include <stddef.h>
#include <sys/socket.h>

struct proxy_header {
    enum proxy_header_version version;
    bool local;                                  /* v2 LOCAL, v1 UNKNOWN: no addresses; those of the connection count */
    struct sockaddr_storage source, destination; /* AF_INET, AF_INET6, AF_UNIX (v2); AF_UNSPEC when local or unknown */
};

#define PROXY_HEADER_V1_MAX 107 /* with CRLF */
#define PROXY_HEADER_WRITE_MAX 232

/* The header at the beginning of data. Strict: only what the specification allows. Returns its length in bytes
 * (extensions of v2 included); -EAGAIN: so far right, more is needed; -EPROTO: no header, or a wrong one, and why is in
 * *ret_why (static text); -EMSGSIZE: longer than max. */
ssize_t proxy_header_parse(const char *data, size_t length, size_t max, struct proxy_header *ret_header,
                           const char **ret_why);

/* Write a header of this version for a connection from source to destination (of unequal or other families: v1 UNKNOWN,
 * v2 LOCAL). Returns its length. */
size_t proxy_header_write(enum proxy_header_version version, const struct sockaddr *source,
                          const struct sockaddr *destination, char buffer[PROXY_HEADER_WRITE_MAX]);

#endif
