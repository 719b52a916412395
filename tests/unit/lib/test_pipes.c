/* SPDX-License-Identifier: MIT
 *
 * How large pooled pipes are: a user's pages for pipes are limited, and all workers share them.
 */
#include "../check.h"
#include "pipes.h"
#include "sys.h"
#include "world.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <string.h>

#define MIB (1u << 20)
#define MANY 64

static struct sys real;
static unsigned cpus;
static uint32_t capabilities;

static int have_capabilities(void *header, void *data)
{
    (void)header;
    ((struct __user_cap_data_struct *)data)->effective = capabilities;
    return 0;
}

static int have_cpus(pid_t thread, size_t size, cpu_set_t *ret_cpus)
{
    (void)thread;
    if (cpus == 0) {
        errno = EINVAL;
        return -1;
    }
    CPU_ZERO_S(size, ret_cpus);
    for (unsigned i = 0; i < cpus; i++)
        CPU_SET_S(i, size, ret_cpus);
    return 0;
}

static int as_wanted(int fd, int command, long argument)
{
    return command == F_SETPIPE_SZ ? (int)argument : real.fcntl(fd, command, argument);
}

struct work {
    unsigned large;
    bool only_large_first;
};

/* In a thread of its own, which has no pipes yet. */
static void *take_many(void *context)
{
    struct work *work = context;
    struct pipe pipes[MANY];
    uint64_t calls = 0;
    bool small_seen = false;
    *work = (struct work){.only_large_first = true};
    for (unsigned i = 0; i < MANY; i++) {
        CHECK_EQ(pipe_get(&pipes[i], false, &calls), 0);
        bool large = pipes[i].capacity == MIB;
        CHECK(large || pipes[i].capacity == MIB / 4);
        work->large += large;
        work->only_large_first &= !(large && small_seen);
        small_seen |= !large;
    }
    for (unsigned i = 0; i < MANY; i++)
        pipe_put(&pipes[i], 0);
    return NULL;
}

static unsigned large_with(unsigned with_cpus, uint32_t with_capabilities)
{
    struct work work;
    pthread_t thread;
    real = sys;
    sys.capget = have_capabilities;
    sys.sched_getaffinity = have_cpus;
    sys.fcntl = as_wanted;
    cpus = with_cpus;
    capabilities = with_capabilities;
    CHECK_EQ(pthread_create(&thread, NULL, take_many, &work), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    sys = real;
    CHECK(work.only_large_first);
    return work.large;
}

TEST(
    "a thread's first pipes hold a MiB: 48 of the 64 that a user may have, shared by as many threads as there are CPUs")
{
    CHECK_EQ(large_with(1, 0), 48);
    CHECK_EQ(large_with(2, 0), 24);
    CHECK_EQ(large_with(16, 0), 3);
}

TEST("with very many CPUs, or nobody knows how many, two are large")
{
    CHECK_EQ(large_with(200, 0), 2);
    CHECK_EQ(large_with(0, 0), 2);
}

TEST("with a capability that exempts from the limit on pages for pipes all are large")
{
    CHECK_EQ(large_with(16, 1u << CAP_SYS_RESOURCE), MANY);
    CHECK_EQ(large_with(16, 1u << CAP_SYS_ADMIN), MANY);
    CHECK_EQ(large_with(16, 1u << CAP_DAC_READ_SEARCH), 3);
}

CHECK_MAIN()
