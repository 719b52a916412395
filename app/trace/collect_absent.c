/* SPDX-License-Identifier: MIT
 *
 * In place of collect.c where sluice is built without clang, bpftool or libbpf: tiers (a) and (b) are not to be had.
 */
#include "collect.h"
#include <errno.h>

int collect_open(const struct collect_options *options, struct collect **ret_collect, enum account_tier *ret_tier,
                 struct failure *failure)
{
    (void)options;
    (void)ret_collect;
    (void)ret_tier;
    return failure_set(
        failure, -ENOSYS,
        "this sluice was built without clang, bpftool or libbpf, and cannot count in the kernel. Install "
        "them (tools/bootstrap trace), and build again");
}

uint32_t collect_functions(const struct collect *collect)
{
    (void)collect;
    return 0;
}

bool collect_sees_faults(const struct collect *collect)
{
    (void)collect;
    return false;
}

int collect_add(struct collect *collect, uint32_t pid)
{
    (void)collect;
    (void)pid;
    return -ENOSYS;
}

int collect_drain(struct collect *collect, struct account *account, struct procfs *procfs)
{
    (void)collect;
    (void)account;
    (void)procfs;
    return -ENOSYS;
}

void collect_pause(struct collect *collect, bool pause)
{
    (void)collect;
    (void)pause;
}

int collect_fd(const struct collect *collect)
{
    (void)collect;
    return -1;
}

void collect_close(struct collect *collect)
{
    (void)collect;
}
