/* SPDX-License-Identifier: MIT
 *
 * Networks as people write them: "10.0.0.0/8", "2001:db8::/32", or one address. IPv4 is the part of IPv6 that
 * ::ffff:0:0/96 is, as sockets that take both have it.
 */
#ifndef SLUICE_SERVICE_PREFIX_H
#define SLUICE_SERVICE_PREFIX_H

#include "base/failure.h"
#include <netinet/in.h>
#include <stdbool.h>

struct address_prefix {
    struct in6_addr address;
    unsigned bits; /* of 128 */
};

/* Returns 0 or -EINVAL; bits behind the prefix must be 0: a typing mistake otherwise. */
int address_prefix_parse(const char *text, struct address_prefix *ret_prefix, struct failure *failure);

/* Is the address in one of these? */
bool address_in_prefixes(const struct in6_addr *address, const struct address_prefix *prefixes, unsigned count);

/* The address of IPv4 or IPv6; false for others. */
bool address_as_ipv6(const struct sockaddr *address, struct in6_addr *ret_address);

#endif
