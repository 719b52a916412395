/* SPDX-License-Identifier: MIT
 *
 * Samples of the CPU (perf_event_open, the cpu-clock event): which share of a process's time copying takes, which
 * kernel function copies, and which code asked for it. Needs CAP_PERFMON (or kernel.perf_event_paranoid <= 0 for
 * everybody's processes, <= 1 for one's own); names of kernel functions need CAP_SYSLOG besides, where
 * kernel.perf_event_paranoid is above 1 or kernel.kptr_restrict is not 0; no BPF.
 *
 * Idle time is nobody's sample. A copy made in a softirq counts for the process in whose system call it ran (loopback
 * delivers that way), and for nobody where an interrupt or ksoftirqd began it: samples_stray.
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

/* Returns 0; -EACCES, -EPERM (failure says which capability or setting is missing), -EINVAL (the kernel refuses the
 * frequency), -ESRCH, -ENOBUFS (locked memory), -ENOSYS, -ENOMEM, -EMFILE. */
int samples_open(const struct samples_options *options, struct samples **ret_samples, struct failure *failure);

/* Enter what has been sampled since the last call, for processes that the account knows (account_process) only: enter
 * new processes first. Call it several times a second: the rings are small. Returns 0 or a negative errno. */
int samples_drain(struct samples *samples, struct account *account);

/* Samples that the rings had no room for. Their processes are not known: shares stay right as long as they are few. */
uint64_t samples_lost(const struct samples *samples);

/* Samples of copying in softirqs that belong to no process's system call. */
uint64_t samples_stray(const struct samples *samples);

/* What these samples cannot tell, to be shown beside every share, or NULL. "Copying in the kernel cannot be told from
 * its other work: ..." means that samples_copying_kernel of 0 is not known, rather than none. */
const char *samples_limits(const struct samples *samples);
bool samples_kernel_known(const struct samples *samples);

void samples_close(struct samples *samples);

#endif
