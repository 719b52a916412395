/* SPDX-License-Identifier: MIT
 *
 * The sockets of a service: what is set on those that it makes or accepts, and how they are closed.
 */
#ifndef SLUICE_PROXY_SOCKETS_H
#define SLUICE_PROXY_SOCKETS_H

#include "proxy/config.h"

/* On a socket, or on the listener that sockets inherit it from. congestion NULL: as it is. Nothing of this keeps a
 * service from working. */
void socket_set_up(const struct proxy_service *service, int family, const char *congestion, int fd);

/* A non-blocking stream socket to connect to this address, set up. Returns it, or a negative errno. */
int socket_make(const struct proxy_service *service, const struct address *address);

/* Take the end from the loop and close it. reset: its peer gets a reset, and what is still to be sent is dropped. */
void socket_close(struct sluice_loop *loop, struct sluice_end *end, bool reset);

#endif
