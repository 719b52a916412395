/* SPDX-License-Identifier: MIT
 *
 * X-Forwarded-For: a list of addresses to which each proxy adds whom it has its request from, at the end. It has no
 * specification; what is read here is what HAProxy, nginx, Envoy, and the load balancers of clouds write. A pure
 * parser, without I/O.
 */
#ifndef SLUICE_APP_HTTP_FORWARDED_H
#define SLUICE_APP_HTTP_FORWARDED_H

#include "request.h"
#include <netinet/in.h>

/* Take the last element off the list. An address of IPv4 or IPv6, the latter perhaps in brackets; a port behind it, of
 * IPv6 only with brackets, counts for nothing. Returns 1 with the address (IPv4 as ::ffff:0:0/96); 0: the list is
 * empty; -EINVAL: that is no address ("unknown"), and what stands before it is worth no more. Empty elements are passed
 * over. */
int http_forwarded_take_last(struct slice *list, struct in6_addr *ret_address);

#endif
