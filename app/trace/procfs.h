/* SPDX-License-Identifier: MIT
 *
 * What /proc tells: names of processes and ends for every tier, CPU time, and tier (c), the account of a process from
 * /proc/PID/io alone: bytes and calls of the read and write families, of no particular pair of ends.
 */
#ifndef SLUICE_APP_TRACE_PROCFS_H
#define SLUICE_APP_TRACE_PROCFS_H

#include "account.h"

/* Give an end its name: path (mount points from /proc/self/mountinfo, the names that BPF saw, or the descriptors of
 * pid), addresses, "pipe 4711". Works with what there is; never fails, says "unknown file (8:1 inode 12)" at worst. */
void procfs_name_end(struct account_end *end, uint32_t pid);

/* Enter the CPU time used since the last call by all processes of the account that still live. */
struct procfs;
int procfs_new(struct procfs **ret_procfs);
void procfs_enter_cpu(struct procfs *procfs, struct account *account);
/* Tier (c): enter a process's (and its children's, when follow) increments of /proc/PID/io as flows of unknown ends. */
int procfs_enter_io(struct procfs *procfs, struct account *account, uint32_t pid, bool follow);
void procfs_free(struct procfs *procfs);

/* All processes with this name, or of this cgroup (a directory of the cgroup file system), or all. Returns their
 * number; *ret_pids is malloced. Negative errno on failure. */
int procfs_find_by_comm(const char *comm, uint32_t **ret_pids);
int procfs_find_by_cgroup(const char *path, uint32_t **ret_pids);
int procfs_find_all(uint32_t **ret_pids);

#endif
