/* SPDX-License-Identifier: MIT */
#ifndef SLUICE_BASE_CLOCK_H
#define SLUICE_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Nanoseconds; 0 for the clock of a process that has gone. */
static inline uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    return clock_gettime(clock, &now) == 0 ? (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec : 0;
}

static inline uint64_t clock_us(clockid_t clock)
{
    return clock_ns(clock) / 1000;
}

static inline uint64_t clock_ms(clockid_t clock)
{
    return clock_ns(clock) / 1000000;
}

/* Milliseconds of CLOCK_MONOTONIC, as of the last tick of the kernel (1 to 10 ms ago): read without entering it. */
static inline uint64_t clock_coarse_ms(void)
{
    return clock_ms(CLOCK_MONOTONIC_COARSE);
}

#endif
