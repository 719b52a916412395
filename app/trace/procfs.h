/* SPDX-License-Identifier: MIT
 *
 * What /proc tells: names of processes and ends for every tier, CPU time, and tier (c), the account of a process from
 * /proc/PID/io alone: bytes and calls of the read and write families, of no particular pair of ends.
 *
 * /proc/PID/io, tried on Linux 6.18: rchar and wchar count what read(2) and write(2) and their kin return, on sockets
 * and pipes too. sendfile and copy_file_range count their bytes in both, with a call each. The recv and send families,
 * splice, vmsplice, tee, io_uring's operations on sockets and pages of mappings count nowhere. Calls are counted
 * whether they moved anything or not. So bytes and calls are exact lower bounds, and copies are unknown: 1 GiB in rchar
 * and wchar is a read and write loop of two copies per byte, or one sendfile of none. A dead thread's figures stay with
 * its process; a child's go to its parent when that waits for it.
 */
#ifndef SLUICE_APP_TRACE_PROCFS_H
#define SLUICE_APP_TRACE_PROCFS_H

#include "account.h"

/* Give an end its name: path (mount points from the mountinfo of pid or our own, the names that BPF saw, or the
 * descriptors of pid), addresses, "pipe 4711". Works with what there is; never fails, says
 * "unknown file (8:1 inode 12)" at worst. */
void procfs_name_end(struct account_end *end, uint32_t pid);

/* Remembers what was seen last of each process. One that was there before procfs_new() counts from its first look on,
 * one that was born later counts from its birth. */
struct procfs;
int procfs_new(struct procfs **ret_procfs);
/* Enter the CPU time used since the last call by all processes of the account that still live, and the names and
 * parents of those that have none. */
void procfs_enter_cpu(struct procfs *procfs, struct account *account);
/* A process of the account has ended, and this was the CPU time of all its life: enter what is new of it. One that was
 * never looked at is taken to have been born later. Returns 0 or -ENOMEM. */
int procfs_enter_last_cpu(struct procfs *procfs, struct account *account, uint32_t pid, uint64_t cpu_ns);
/* Tier (c): enter a process's (and its children's, when follow) increments of /proc/PID/io as flows of unknown ends.
 * The first call for a process that was there before is its start, and enters nothing. A process that is gone enters
 * nothing any more: that is no failure. Returns 0; -EACCES (/proc/PID/io needs the same user, or CAP_SYS_PTRACE);
 * -ENOMEM. */
int procfs_enter_io(struct procfs *procfs, struct account *account, uint32_t pid, bool follow);
void procfs_free(struct procfs *procfs);

/* CPU time of this machine since its start, in clock ticks: what it used, and what its hypervisor gave to others
 * although it wanted it (steal). */
struct procfs_machine {
    uint64_t used, stolen;
};
/* line: the first of /proc/stat. Returns false when it is none. */
bool procfs_parse_machine(const char *line, struct procfs_machine *ret_machine);
/* Of this machine, now; nothing when /proc does not tell. */
struct procfs_machine procfs_machine(void);

/* The processes with this name, or of this cgroup (a directory of the cgroup file system, v1 or v2) and those below it,
 * or all, or the children of one, but for this process itself. Returns their number; *ret_pids is malloced. Negative
 * errno on failure. */
int procfs_find_by_comm(const char *comm, uint32_t **ret_pids);
int procfs_find_by_cgroup(const char *path, uint32_t **ret_pids);
int procfs_find_all(uint32_t **ret_pids);
int procfs_children(uint32_t pid, uint32_t **ret_pids);

#endif
