/* SPDX-License-Identifier: MIT */
#include "sigpipe.h"
#include <pthread.h>
#include <time.h>

void sigpipe_block(struct sigpipe_guard *guard)
{
    sigset_t set, pending;
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    sigpending(&pending);
    guard->was_pending = sigismember(&pending, SIGPIPE) == 1;
    guard->active = pthread_sigmask(SIG_BLOCK, &set, &guard->before) == 0;
}

void sigpipe_restore(struct sigpipe_guard *guard)
{
    sigset_t set;
    struct timespec now = {0};
    if (!guard->active)
        return;
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    /* One that was pending before is not ours to take. */
    if (!guard->was_pending)
        sigtimedwait(&set, NULL, &now);
    pthread_sigmask(SIG_SETMASK, &guard->before, NULL);
}
