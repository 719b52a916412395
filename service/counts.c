/* SPDX-License-Identifier: MIT */
#include "service/counts.h"

static const struct {
    uint64_t microseconds;
    const char *seconds;
} bounds[DURATION_BUCKETS - 1] = {
    {500, "0.0005"},  {1000, "0.001"},  {2500, "0.0025"}, {5000, "0.005"},  {10000, "0.01"},
    {25000, "0.025"}, {50000, "0.05"},  {100000, "0.1"},  {250000, "0.25"}, {500000, "0.5"},
    {1000000, "1"},   {2500000, "2.5"}, {5000000, "5"},   {10000000, "10"},
};

void durations_enter(struct durations *durations, uint64_t microseconds, uint64_t count)
{
    unsigned bucket = 0;
    while (bucket < DURATION_BUCKETS - 1 && microseconds > bounds[bucket].microseconds)
        bucket++;
    durations->buckets[bucket] += count;
    durations->sum_us += microseconds * count;
}

void durations_add(struct durations *sum, const struct durations *part)
{
    for (unsigned i = 0; i < DURATION_BUCKETS; i++)
        sum->buckets[i] += part->buckets[i];
    sum->sum_us += part->sum_us;
}

const char *duration_bound(unsigned bucket)
{
    return bucket < DURATION_BUCKETS - 1 ? bounds[bucket].seconds : "+Inf";
}

static void enter(struct fallbacks *fallbacks, enum sluice_route from, enum sluice_route to, int error,
                  const char *reason, uint64_t count)
{
    for (unsigned i = 0; i < FALLBACK_KINDS; i++) {
        struct fallback_kind *kind = &fallbacks->kinds[i];
        if (kind->count == 0) {
            kind->from = from;
            kind->to = to;
            kind->error = error;
            kind->reason = reason;
        } else if (kind->from != from || kind->to != to || kind->error != error || kind->reason != reason) {
            continue;
        }
        /* Last: who reads meanwhile takes a kind for free until it is whole. */
        __atomic_store_n(&kind->count, kind->count + count, __ATOMIC_RELEASE);
        return;
    }
    fallbacks->other += count;
}

void fallbacks_enter(struct fallbacks *fallbacks, const struct sluice_receipt *receipt)
{
    uint64_t kept =
        receipt->fallback_count < SLUICE_RECEIPT_FALLBACKS ? receipt->fallback_count : SLUICE_RECEIPT_FALLBACKS;
    for (uint64_t i = 0; i < kept; i++) {
        const struct sluice_fallback *change = &receipt->fallbacks[i];
        enter(fallbacks, change->from, change->to, change->error, change->reason, 1);
    }
    fallbacks->other += receipt->fallback_count - kept;
}

void fallbacks_add(struct fallbacks *sum, const struct fallbacks *part)
{
    for (unsigned i = 0; i < FALLBACK_KINDS; i++) {
        const struct fallback_kind *kind = &part->kinds[i];
        uint64_t count = __atomic_load_n(&kind->count, __ATOMIC_ACQUIRE);
        if (count == 0)
            break;
        enter(sum, kind->from, kind->to, kind->error, kind->reason, count);
    }
    sum->other += part->other;
}
