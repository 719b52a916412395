/* SPDX-License-Identifier: MIT */
#include "service/tally.h"
#include "base/clock.h"
#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

struct slot {
    _Atomic int pid; /* 0: nobody; set last, and taken away first */
    unsigned index, reloads;
    uint64_t began_ms;
    _Alignas(64) char counters[];
};

/* The last slot. */
struct gone {
    _Atomic uint32_t moving; /* odd while counters move here from a slot: a sum taken meanwhile would have them twice */
    uint64_t crashes, cpu_us;
    _Atomic uint64_t cpu_told; /* a clock is gone some time before its last reading is here */
    _Alignas(64) char counters[];
};

unsigned tally_slots(const struct tally *tally)
{
    return tally->shared.count - 1;
}

static struct gone *gone_of(const struct tally *tally)
{
    return shared_slot(&tally->shared, tally_slots(tally));
}

int tally_create(struct tally *ret_tally, unsigned slots, size_t size, void (*add)(void *sum, const void *part))
{
    struct tally tally = {.size = size, .add = add, .began_ms = clock_ms(CLOCK_MONOTONIC), .began = time(NULL)};
    size_t head = sizeof(struct slot) > sizeof(struct gone) ? sizeof(struct slot) : sizeof(struct gone);
    int r = slots == 0 ? -EINVAL : shared_create(slots + 1, head + size, &tally.shared);
    if (r == 0)
        *ret_tally = tally;
    return r;
}

void tally_destroy(struct tally *tally)
{
    shared_destroy(&tally->shared);
}

void *tally_counters(const struct tally *tally, unsigned slot)
{
    struct slot *at = shared_slot(&tally->shared, slot);
    return at->counters;
}

void *tally_begin(struct tally *tally, const struct worker *worker)
{
    struct slot *slot = shared_slot(&tally->shared, worker->slot);
    slot->index = worker->index;
    slot->reloads = worker->reloads;
    slot->began_ms = clock_ms(CLOCK_MONOTONIC) - tally->began_ms;
    atomic_store(&slot->pid, getpid());
    return slot->counters;
}

static uint64_t microseconds(const struct timeval *time)
{
    return (uint64_t)time->tv_sec * 1000000 + (uint64_t)time->tv_usec;
}

void tally_end(struct tally *tally, unsigned number, bool crashed)
{
    struct slot *slot = shared_slot(&tally->shared, number);
    struct gone *gone = gone_of(tally);
    struct rusage usage;
    atomic_fetch_add(&gone->moving, 1);
    atomic_store(&slot->pid, 0);
    tally->add(gone->counters, slot->counters);
    memset(slot->counters, 0, tally->size);
    gone->crashes += crashed;
    if (getrusage(RUSAGE_CHILDREN, &usage) == 0)
        gone->cpu_us = microseconds(&usage.ru_utime) + microseconds(&usage.ru_stime);
    atomic_fetch_add(&gone->moving, 1);
}

/* By the process's clock, which others may read: /proc is out of reach of a confined worker. */
static uint64_t cpu_of(int pid)
{
    clockid_t clock;
    return clock_getcpuclockid(pid, &clock) == 0 ? clock_us(clock) : 0;
}

bool tally_worker(const struct tally *tally, unsigned number, struct tally_worker *ret_worker, void *ret_counters)
{
    const struct slot *slot = shared_slot(&tally->shared, number);
    int pid = number < tally_slots(tally) ? atomic_load(&slot->pid) : 0;
    if (pid == 0)
        return false;
    *ret_worker = (struct tally_worker){
        .slot = number,
        .index = slot->index,
        .reloads = slot->reloads,
        .pid = pid,
        .began_ms = slot->began_ms,
        .cpu_us = cpu_of(pid),
    };
    if (ret_counters != NULL)
        memcpy(ret_counters, slot->counters, tally->size);
    return true;
}

void tally_sum(const struct tally *tally, void *ret_sum, struct tally_state *ret_state)
{
    struct gone *gone = gone_of(tally);
    struct tally_state state;
    uint32_t before;
    do {
        while ((before = atomic_load(&gone->moving)) % 2 != 0)
            sched_yield();
        state = (struct tally_state){.crashes = gone->crashes, .cpu_us = gone->cpu_us};
        if (ret_sum != NULL) {
            memset(ret_sum, 0, tally->size);
            tally->add(ret_sum, gone->counters);
        }
        for (unsigned i = 0; i < tally_slots(tally); i++) {
            const struct slot *slot = shared_slot(&tally->shared, i);
            int pid = atomic_load(&slot->pid);
            if (pid == 0)
                continue;
            state.workers++;
            state.cpu_us += cpu_of(pid);
            if (ret_sum != NULL)
                tally->add(ret_sum, slot->counters);
        }
        atomic_thread_fence(memory_order_acquire);
    } while (atomic_load(&gone->moving) != before);

    uint64_t told = atomic_load(&gone->cpu_told);
    while (told < state.cpu_us && !atomic_compare_exchange_weak(&gone->cpu_told, &told, state.cpu_us))
        ;
    state.cpu_us = told > state.cpu_us ? told : state.cpu_us;
    state.up_ms = clock_ms(CLOCK_MONOTONIC) - tally->began_ms;
    state.began = tally->began;
    *ret_state = state;
}
