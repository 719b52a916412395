/* SPDX-License-Identifier: MIT */
#ifndef SLUICE_CORE_EGRESS_H
#define SLUICE_CORE_EGRESS_H

#include <sluice/sluice.h>

/* The device by which a connected TCP or UDP socket's packets leave, by the kernel's route lookup (rtnetlink), and
 * whether it has scatter-gather and checksum offload (ethtool ioctls). Cached per peer and local address for
 * EGRESS_TTL_S. Returns 0 or -ENOTCONN; what could not be found out is left unknown in *ret_egress. */
int egress_find(int fd, struct sluice_egress *ret_egress);

#define EGRESS_TTL_S 30

#endif
