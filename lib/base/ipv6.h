/* SPDX-License-Identifier: MIT */
#ifndef SLUICE_BASE_IPV6_H
#define SLUICE_BASE_IPV6_H

#include <netinet/in.h>
#include <string.h>

/* ::ffff:0:0/96, as sockets that take both have IPv4 addresses (RFC 4291, 2.5.5.2). */
static inline struct in6_addr ipv6_mapped(const struct in_addr *ipv4)
{
    struct in6_addr mapped = {.s6_addr = {[10] = 0xff, [11] = 0xff}};
    memcpy(&mapped.s6_addr[12], ipv4, sizeof *ipv4);
    return mapped;
}

#endif
