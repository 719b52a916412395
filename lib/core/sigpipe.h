/* SPDX-License-Identifier: MIT
 *
 * MSG_NOSIGNAL exists for send only: sendfile, splice and write to a closed pipe or socket raise SIGPIPE. So the signal
 * is blocked in this thread while a transfer is stepped, and one that came is taken back.
 */
#ifndef SLUICE_CORE_SIGPIPE_H
#define SLUICE_CORE_SIGPIPE_H

#include <signal.h>
#include <stdbool.h>

struct sigpipe_guard {
    sigset_t before;
    bool was_pending, active;
};

void sigpipe_block(struct sigpipe_guard *guard);
void sigpipe_restore(struct sigpipe_guard *guard);

#endif
