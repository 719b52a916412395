/* SPDX-License-Identifier: MIT */
#ifndef SLUICE_ROUTE_ROUTES_H
#define SLUICE_ROUTE_ROUTES_H

#include "../core/route.h"

extern const struct route route_copy;
extern const struct route route_mmap;
extern const struct route route_msg_zerocopy;
extern const struct route route_uring_send_zc;
extern const struct route route_sendfile;
extern const struct route route_splice;
extern const struct route route_tcp_receive;
extern const struct route route_tee;
extern const struct route route_vmsplice;
extern const struct route route_copy_file_range;
extern const struct route route_reflink;
extern const struct route route_direct;

#endif
