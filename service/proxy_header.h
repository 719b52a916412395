/* SPDX-License-Identifier: MIT
 *
 * The PROXY protocol, versions 1 and 2 (haproxy.org, proxy-protocol.txt): what a connection's first bytes say of the
 * client in front of a proxy. A pure parser and writer: no I/O.
 */
#ifndef SLUICE_SERVICE_PROXY_HEADER_H
#define SLUICE_SERVICE_PROXY_HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>

enum proxy_header_version { PROXY_HEADER_NONE, PROXY_HEADER_V1, PROXY_HEADER_V2 };

struct proxy_header {
    enum proxy_header_version version;
    /* v1 UNKNOWN, v2 LOCAL or AF_UNSPEC: the header tells no addresses, those of the connection count. */
    bool local;
    /* AF_INET, AF_INET6, AF_UNIX (v2; all 108 bytes of sun_path as they came, perhaps without a NUL); AF_UNSPEC when
     * local. Zero where the header says nothing. */
    struct sockaddr_storage source, destination;
};

#define PROXY_HEADER_V1_MAX 107    /* with CRLF */
#define PROXY_HEADER_WRITE_MAX 232 /* of v2: 16 bytes and two Unix addresses */

/* The header at the beginning of data. Strict: only what the specification allows, and where it leaves the choice:
 *   - v1: addresses of TCP6 may end in dotted decimal, as inet_ntop(3) writes IPv4 within IPv6 and so do senders. In
 *     an UNKNOWN line the rest counts for nothing, but a CR or LF that is not part of CRLF is refused.
 *   - v2: UDP is refused; so is a transport without a family, or the reverse. LOCAL and AF_UNSPEC: nothing behind the
 *     first 16 bytes counts, and nothing is looked at. Else extensions (TLVs) must fill the rest exactly, a CRC32C must
 *     be right, SSL must hold whole extensions of its own, a unique ID has at most 128 bytes; their content counts for
 *     nothing.
 * Returns its length in bytes (extensions of v2 included); -EAGAIN: so far right, more is needed; -EPROTO: no header,
 * or a wrong one, which is found at the first byte that cannot be right (of a number in v2: when it is whole), and why
 * is in *ret_why (static text); -EMSGSIZE: longer than max. */
ssize_t proxy_header_parse(const char *data, size_t length, size_t max, struct proxy_header *ret_header,
                           const char **ret_why);

/* Write a header of this version for a connection from source to destination. IPv4 within IPv6 (::ffff:1.2.3.4) counts
 * as IPv4 when both are IPv4; if only one is, both are written as IPv6. Unix addresses need v2. What has no header then
 * (NULL, other families, Unix in v1, Unix with TCP) is v1 UNKNOWN, v2 LOCAL. The lengths are those of the addresses, as
 * accept(2) gives them (an unnamed Unix socket has a short one), or of larger memory that is zero behind them.
 * Returns the header's length; 0 for PROXY_HEADER_NONE. */
size_t proxy_header_write(enum proxy_header_version version, const struct sockaddr *source, socklen_t source_length,
                          const struct sockaddr *destination, socklen_t destination_length,
                          char buffer[PROXY_HEADER_WRITE_MAX]);

#endif
