/* SPDX-License-Identifier: MIT
 *
 * A wheel of timers, in slots of 1/8 s. A timer that is started again with a later deadline stays where it is and is
 * moved when its slot comes up: that is what makes restarting it for every request cost nothing.
 */
#ifndef SLUICE_LOOP_TIMERS_H
#define SLUICE_LOOP_TIMERS_H

#include <sluice/sluice.h>

#define TIMER_SLOT_MS 125
#define TIMER_SLOTS 512 /* 64 s; a longer one is moved on as often as it comes up */

struct timers {
    struct sluice_timer *slots[TIMER_SLOTS];
    uint64_t occupied[TIMER_SLOTS / 64];
    uint64_t next_slot; /* absolute number of the first slot not yet expired */
    uint64_t soonest;   /* no timer lies in a slot before this; UINT64_MAX: none lies anywhere */
};

void timers_begin(struct timers *timers, uint64_t now);
void timers_start(struct timers *timers, struct sluice_timer *timer, uint64_t now, unsigned milliseconds);
void timers_stop(struct sluice_timer *timer);
/* Call back those that are due. */
void timers_expire(struct timers *timers, uint64_t now);
/* Milliseconds until the next slot that holds a timer, -1 when there is none. */
int timers_next(struct timers *timers, uint64_t now);

#endif
