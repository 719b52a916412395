/* SPDX-License-Identifier: MIT
 *
 * Tiers (a) and (b): programs in the kernel count flows; this loads them, and carries their figures into an account.
 * The only file besides bpf/ that knows libbpf.
 */
#ifndef SLUICE_APP_TRACE_COLLECT_H
#define SLUICE_APP_TRACE_COLLECT_H

#include "account.h"
#include "base/failure.h"
#include "procfs.h"

#define COLLECT_ROOM 16384

struct collect_options {
    enum trace_scope scope;
    const char *comm;   /* TRACE_SCOPE_COMM */
    const char *cgroup; /* TRACE_SCOPE_CGROUP: a directory of the cgroup v2 file system */
    bool functions;     /* try tier (a); tier (b) follows where the kernel forbids it */
    bool faults;        /* watch page faults, too */
    uint32_t room;      /* flows, and ends, that the kernel's tables hold; 0: COLLECT_ROOM */
};

struct collect;

/* Load and attach. *ret_tier says what was possible; when that is (b) although (a) was asked for, failure->text says
 * why. Returns 0; -EPERM (failure names the missing capabilities), -ENOSYS (built without clang, or the kernel has no
 * BTF), or another negative errno. */
int collect_open(const struct collect_options *options, struct collect **ret_collect, enum account_tier *ret_tier,
                 struct failure *failure);

/* Tier (a): the functions that are hooked, as account_watch() takes them; 0 at tier (b). */
uint32_t collect_functions(const struct collect *collect);

/* Whether page faults are seen: asked for, and the kernel has a tracepoint for them (of x86-64, it has). */
bool collect_sees_faults(const struct collect *collect);

/* TRACE_SCOPE_PROCESSES: trace this process, its threads and what it forks from now on. */
int collect_add(struct collect *collect, uint32_t pid);

/* Move what was counted since the last call into the account, and processes that came and went. procfs: to be told the
 * CPU time of those that went; may be NULL. Returns 0 or a negative errno. */
int collect_drain(struct collect *collect, struct account *account, struct procfs *procfs);

/* Stop counting calls and faults, or go on. What happens meanwhile is not seen, and costs the traced nothing. */
void collect_pause(struct collect *collect, bool pause);

/* Readable when a process was born, has called exec or died: drain then, while names can still be resolved. */
int collect_fd(const struct collect *collect);

void collect_close(struct collect *collect);

#endif
