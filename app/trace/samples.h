/* SPDX-License-Identifier: MIT
 *
 * Samples of the CPU (perf_event_open, the cpu-clock event): which share of a process's time copying takes, which
 * kernel function copies, and which code asked for it. Needs CAP_PERFMON (or kernel.perf_event_paranoid <= 0 for
 * everybody's processes, <= 1 for one's own); no BPF.
 */
#ifndef SLUICE_APP_TRACE_SAMPLES_H
#define SLUICE_APP_TRACE_SAMPLES_H

#include "account.h"
#include "base/failure.h"

struct samples_options {
    unsigned frequency;   /* samples a second and CPU */
    bool callers;         /* keep user stacks and unwind them: dearer */
    const uint32_t *pids; /* without the right to watch all processes: these and their children */
    size_t pid_count;
};

struct samples;

/* Returns 0; -EACCES, -EPERM (failure says which capability or setting is missing), -ENOSYS, -ENOMEM. */
int samples_open(const struct samples_options *options, struct samples **ret_samples, struct failure *failure);

/* Enter what has been sampled since the last call, for processes that the account knows (account_process) only. Call it
 * several times a second: the rings are small. Returns 0 or a negative errno. */
int samples_drain(struct samples *samples, struct account *account);

/* Samples that the rings had no room for. */
uint64_t samples_lost(const struct samples *samples);
void samples_close(struct samples *samples);

#endif
