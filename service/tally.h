/* SPDX-License-Identifier: MIT
 *
 * What workers have counted: each in its own slot of shared memory, which outlives it, and those that are gone in one
 * sum. Made by the supervisor before it forks; any worker can add up what all of them have done, without a lock and
 * without stopping anybody. A sum never goes back.
 */
#ifndef SLUICE_SERVICE_TALLY_H
#define SLUICE_SERVICE_TALLY_H

#include "service/shared.h"
#include "service/supervisor.h"
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

struct tally {
    struct shared shared; /* the slots, and one more for those that are gone */
    size_t size;          /* of one worker's counters */
    void (*add)(void *sum, const void *part);
    uint64_t began_ms; /* monotonic */
    time_t began;      /* since 1970 */
};

/* slots as supervisor_options has them. add: counters of size bytes to a sum that began as zeros. Returns 0, -EINVAL or
 * -ENOMEM. */
int tally_create(struct tally *ret_tally, unsigned slots, size_t size, void (*add)(void *sum, const void *part));
void tally_destroy(struct tally *tally);

unsigned tally_slots(const struct tally *tally);

/* For a worker, before it counts. Its counters, zero. */
void *tally_begin(struct tally *tally, const struct worker *worker);

/* The counters of a slot, whoever has it. */
void *tally_counters(const struct tally *tally, unsigned slot);

/* For the supervisor, when the worker of this slot has ended and been waited for: its counters go to those that are
 * gone, and the slot is free. */
void tally_end(struct tally *tally, unsigned slot, bool crashed);

/* A worker there is. */
struct tally_worker {
    unsigned slot, index;
    unsigned reloads; /* of the configuration, before it began */
    int pid;
    uint64_t began_ms; /* since the tally was created */
    uint64_t cpu_us;   /* user and system, helper threads included */
};

struct tally_state {
    unsigned workers;
    uint64_t crashes;
    uint64_t cpu_us; /* of all workers there are and were */
    uint64_t up_ms;
    time_t began; /* since 1970 */
};

/* False: nobody has the slot. ret_counters: a copy; may be NULL. */
bool tally_worker(const struct tally *tally, unsigned slot, struct tally_worker *ret_worker, void *ret_counters);

/* Of all workers there are and were. ret_sum may be NULL. */
void tally_sum(const struct tally *tally, void *ret_sum, struct tally_state *ret_state);

#endif
