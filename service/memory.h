/* SPDX-License-Identifier: MIT
 *
 * How much memory there is for this process and the files it reads.
 */
#ifndef SLUICE_SERVICE_MEMORY_H
#define SLUICE_SERVICE_MEMORY_H

#include <stdint.h>

/* Bytes: the machine's memory, or the limit of a control group that this process is in, if that is less. The page cache
 * of what a group's processes read counts against its limit. */
uint64_t memory_limit(void);

/* The same with other places to look at, for tests: those of /proc/self/cgroup and of the hierarchies' mounts. */
uint64_t memory_limit_in(const char *groups, const char *mounts, uint64_t machine);

#endif
