/* SPDX-License-Identifier: MIT
 *
 * The only file that names every route. A new route is one file in route/, one line here, one number in sluice.h, and
 * its place in the order of core/plan.c.
 */
#include "core/route.h"
#include "route/routes.h"

const struct route *const route_registry[SLUICE_ROUTE_COUNT] = {
    [SLUICE_ROUTE_COPY] = &route_copy,
    [SLUICE_ROUTE_MMAP] = &route_mmap,
    [SLUICE_ROUTE_SENDFILE] = &route_sendfile,
    [SLUICE_ROUTE_SPLICE] = &route_splice,
    [SLUICE_ROUTE_TEE] = &route_tee,
    [SLUICE_ROUTE_VMSPLICE] = &route_vmsplice,
    [SLUICE_ROUTE_MSG_ZEROCOPY] = &route_msg_zerocopy,
    [SLUICE_ROUTE_URING_SEND_ZC] = &route_uring_send_zc,
    [SLUICE_ROUTE_TCP_RECEIVE] = &route_tcp_receive,
    [SLUICE_ROUTE_COPY_FILE_RANGE] = &route_copy_file_range,
    [SLUICE_ROUTE_REFLINK] = &route_reflink,
    [SLUICE_ROUTE_DIRECT] = &route_direct,
};
