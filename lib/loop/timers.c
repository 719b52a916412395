/* SPDX-License-Identifier: MIT */
#include "timers.h"
#include <string.h>

static void link_timer(struct timers *timers, struct sluice_timer *timer, uint64_t slot)
{
    if (slot < timers->next_slot)
        slot = timers->next_slot;
    if (slot >= timers->next_slot + TIMER_SLOTS)
        slot = timers->next_slot + TIMER_SLOTS - 1;
    unsigned place = (unsigned)(slot % TIMER_SLOTS);
    timer->queued = slot;
    timer->next = timers->slots[place];
    timer->previous = &timers->slots[place];
    if (timer->next != NULL)
        timer->next->previous = &timer->next;
    timers->slots[place] = timer;
    timers->occupied[place / 64] |= UINT64_C(1) << place % 64;
    if (slot < timers->soonest)
        timers->soonest = slot;
}

void timers_begin(struct timers *timers, uint64_t now)
{
    memset(timers, 0, sizeof *timers);
    timers->next_slot = now / TIMER_SLOT_MS + 1;
    timers->soonest = UINT64_MAX;
}

void timers_start(struct timers *timers, struct sluice_timer *timer, uint64_t now, unsigned milliseconds)
{
    timer->deadline = now + milliseconds;
    uint64_t slot = timer->deadline / TIMER_SLOT_MS + 1;
    if (timer->previous != NULL) {
        if (timer->queued <= slot)
            return; /* it comes up early enough and is moved on then */
        timers_stop(timer);
    }
    link_timer(timers, timer, slot);
}

void timers_stop(struct sluice_timer *timer)
{
    if (timer->previous == NULL)
        return;
    *timer->previous = timer->next;
    if (timer->next != NULL)
        timer->next->previous = timer->previous;
    timer->previous = NULL;
    timer->next = NULL;
}

void timers_expire(struct timers *timers, uint64_t now)
{
    uint64_t last = now / TIMER_SLOT_MS;
    if (last >= timers->next_slot + TIMER_SLOTS)
        last = timers->next_slot + TIMER_SLOTS - 1; /* the machine slept: every slot once is enough */
    if (timers->next_slot > last)
        return;
    while (timers->next_slot <= last) {
        unsigned place = (unsigned)(timers->next_slot % TIMER_SLOTS);
        struct sluice_timer *due = timers->slots[place];
        timers->slots[place] = NULL;
        timers->occupied[place / 64] &= ~(UINT64_C(1) << place % 64);
        timers->next_slot++;
        if (due != NULL)
            due->previous = &due;
        while (due != NULL) { /* a callback may stop any of them */
            struct sluice_timer *timer = due;
            timers_stop(timer);
            if (timer->deadline > now)
                link_timer(timers, timer, timer->deadline / TIMER_SLOT_MS + 1);
            else
                timer->expired(timer->context);
        }
    }
    int next = timers_next(timers, timers->next_slot * TIMER_SLOT_MS);
    timers->soonest = next < 0 ? UINT64_MAX : timers->next_slot + (unsigned)next / TIMER_SLOT_MS;
}

int timers_next(struct timers *timers, uint64_t now)
{
    unsigned first = (unsigned)(timers->next_slot % TIMER_SLOTS);
    for (unsigned i = 0; i <= TIMER_SLOTS / 64; i++) {
        unsigned word = (first / 64 + i) % (TIMER_SLOTS / 64);
        uint64_t bits = timers->occupied[word];
        if (i == 0)
            bits &= ~UINT64_C(0) << first % 64;
        else if (i == TIMER_SLOTS / 64)
            bits &= ~(~UINT64_C(0) << first % 64);
        while (bits != 0) {
            unsigned place = word * 64 + (unsigned)__builtin_ctzll(bits);
            if (timers->slots[place] == NULL) { /* its timers were stopped */
                timers->occupied[word] &= ~(UINT64_C(1) << place % 64);
                bits &= bits - 1;
                continue;
            }
            uint64_t slot = timers->next_slot + (place + TIMER_SLOTS - first) % TIMER_SLOTS;
            uint64_t at = slot * TIMER_SLOT_MS;
            return at > now ? (int)(at - now) : 0;
        }
    }
    return -1;
}
