/* SPDX-License-Identifier: MIT
 *
 * What a service manager such as systemd passes to a service, and wants to be told, by way of environment variables:
 * listening sockets (LISTEN_FDS, sd_listen_fds(3)) and states (NOTIFY_SOCKET, sd_notify(3)). Without a manager nothing
 * of it does anything. For the process that the manager started only.
 */
#ifndef SLUICE_SERVICE_MANAGER_H
#define SLUICE_SERVICE_MANAGER_H

#include "base/failure.h"
#include "service/address.h"

/* Look what was passed. Once, before other descriptors are opened. Sockets are made non-blocking and close-on-exec.
 * Returns how many there are, or a negative errno: one of them is no listening stream socket. */
int manager_take_sockets(struct failure *failure);

/* The passed socket that is bound to this address, or the first that nobody has (address NULL). It is the caller's
 * then. -1: there is none. */
int manager_socket(const struct address *address);

/* As address_listen, but with the passed socket if there is one for this address. */
int manager_listen(const struct address *address, const struct listen_options *options, int *ret_fd,
                   struct failure *failure);

/* End a listening socket, whoever else has it open: unless it was passed. The manager listens there, too, and what
 * comes meanwhile waits for the next start. */
void manager_shut_down(int fd);

/* At the end of starting: those that nobody wanted are told about, on standard error, and closed. */
void manager_close_rest(const char *program);

/* "READY=1\nSTATUS=..." to the manager. Failures are not told: nothing depends on it here. */
__attribute__((format(printf, 1, 2))) void manager_notify(const char *format, ...);

#endif
