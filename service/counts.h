/* SPDX-License-Identifier: MIT
 *
 * Counters that are more than one number. They lie in memory that workers share (service/tally.h): one writer each.
 */
#ifndef SLUICE_SERVICE_COUNTS_H
#define SLUICE_SERVICE_COUNTS_H

#include <sluice/sluice.h>
#include <stdint.h>

/* How long something took: 14 bounds from .0005 to 10 s, and what took longer. Each is counted in one bucket only. */
#define DURATION_BUCKETS 15

struct durations {
    uint64_t buckets[DURATION_BUCKETS];
    uint64_t sum_us;
};

/* count of them, each of so many microseconds. */
void durations_enter(struct durations *durations, uint64_t microseconds, uint64_t count);
void durations_add(struct durations *sum, const struct durations *part);

/* The upper bound of a bucket in seconds, as text; "+Inf" for the last. */
const char *duration_bound(unsigned bucket);

/* Changes of route by what they were and why. There are few kinds: those beyond the first ones are counted together. */
#define FALLBACK_KINDS 24

struct fallback_kind {
    enum sluice_route from, to;
    int error;
    const char *reason; /* static, at the same address in every worker */
    uint64_t count;
};

struct fallbacks {
    struct fallback_kind kinds[FALLBACK_KINDS]; /* count 0: this one and those after it are free */
    uint64_t other;
};

/* Those of one transfer. */
void fallbacks_enter(struct fallbacks *fallbacks, const struct sluice_receipt *receipt);
void fallbacks_add(struct fallbacks *sum, const struct fallbacks *part);

#endif
