/* SPDX-License-Identifier: MIT
 *
 * A worker's listening sockets, and how it accepts as its places fill: ahead while many are free, not at all while none
 * is. Those who wait meanwhile are for other workers, or for later.
 */
#ifndef SLUICE_SERVICE_ACCEPTING_H
#define SLUICE_SERVICE_ACCEPTING_H

#include "base/list.h"
#include <sluice/sluice.h>
#include <stdbool.h>

struct accepting {
    struct list listeners;
    unsigned places;
    bool listening, stopping, paused, ahead;
};

/* One socket's part; the caller's memory. */
struct accepting_socket {
    struct list all;
    struct sluice_listener *listener;
};

void accepting_init(struct accepting *accepting, unsigned places);

/* As sluice_loop_listen. */
int accepting_add(struct accepting *accepting, struct sluice_loop *loop, int fd, sluice_accept_fn *accepted,
                  void *context, struct accepting_socket *socket);

/* So many places are taken now: after each connection that came or went. */
void accepting_count(struct accepting *accepting, unsigned taken);

/* Listen no longer. accepted may be called from within, for those who wait at this moment; until all are in,
 * accepting->listening is true. */
void accepting_stop(struct accepting *accepting);

#endif
