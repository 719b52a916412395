/* SPDX-License-Identifier: MIT
 *
 * The kernel charges a call that lends its whole pages and two more to the user, together with what the user's other
 * calls, rings and registered buffers hold (mm_account_pinned_pages, net/core/skbuff.c; io_notif_account_mem,
 * io_uring/notif.h), unless the process has CAP_IPC_LOCK. So a call that is larger than the limit fails whatever else
 * there is, and it is known before.
 */
#include "memlock.h"
#include "../base/clock.h"
#include "privilege.h"
#include "sys.h"
#include <inttypes.h>
#include <linux/capability.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/resource.h>

#define PAGE 4096u
#define ASKED_AGAIN_MS 1000

/* Reasons live as long as the process: one for each limit and size of call that was met. Limits are few, and so are
 * sizes: only below a limit of 1 MiB does it matter what a call lends. */
#define REASONS 16
#define REMEDY "allow 16 MiB or more, by ulimit -l 16384, or LimitMEMLOCK=16M of a systemd unit"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic uint64_t limit_known, asked_until;
static struct {
    uint64_t limit;
    size_t bytes;
    char text[256];
} reasons[REASONS];
static unsigned reason_count;

static uint64_t limit_now(void)
{
    struct rlimit limit;
    uint64_t now = clock_coarse_ms();
    if (now < atomic_load_explicit(&asked_until, memory_order_relaxed))
        return atomic_load_explicit(&limit_known, memory_order_relaxed);
    uint64_t allowed = UINT64_MAX;
    if (!privilege_has(CAP_IPC_LOCK) && sys.getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        allowed = limit.rlim_cur;
    atomic_store_explicit(&limit_known, allowed, memory_order_relaxed);
    atomic_store_explicit(&asked_until, now + ASKED_AGAIN_MS, memory_order_relaxed);
    return allowed;
}

void memlock_forget(void)
{
    atomic_store_explicit(&asked_until, 0, memory_order_relaxed);
}

/* So much is charged for a call that lends so many bytes. */
static uint64_t charge_of(size_t bytes)
{
    return ((uint64_t)bytes / PAGE + 2) * PAGE;
}

static const char *reason_for(size_t bytes, uint64_t limit)
{
    const char *reason = NULL;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < reason_count; i++)
        if (reasons[i].limit == limit && reasons[i].bytes == bytes)
            reason = reasons[i].text;
    if (reason == NULL && reason_count < REASONS) {
        bool whole = bytes >= 1u << 20 && bytes % (1u << 20) == 0;
        reasons[reason_count].limit = limit;
        reasons[reason_count].bytes = bytes;
        snprintf(reasons[reason_count].text, sizeof reasons[0].text,
                 "a call that lends %zu %s takes %" PRIu64 " KiB of locked memory, and the user may have %" PRIu64
                 " KiB in all (RLIMIT_MEMLOCK): " REMEDY,
                 whole ? bytes >> 20 : (bytes + 1023) >> 10, whole ? "MiB" : "KiB", charge_of(bytes) >> 10,
                 limit >> 10);
        reason = reasons[reason_count++].text;
    }
    pthread_mutex_unlock(&lock);
    return reason != NULL ? reason
                          : "a call takes more locked memory than the user may have in all (RLIMIT_MEMLOCK): " REMEDY;
}

const char *memlock_shortage(size_t bytes)
{
    uint64_t limit = limit_now();
    return charge_of(bytes) > limit ? reason_for(bytes, limit) : NULL;
}
