/* SPDX-License-Identifier: MIT */
#include "pipes.h"
#include "privilege.h"
#include "sys.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#define PIPES_KEPT 32
/* Without CAP_SYS_RESOURCE or CAP_SYS_ADMIN a user may have 64 pipes of a MiB in all (fs.pipe-user-pages-soft); then
 * further ones get two pages each. So three quarters of these are made that large, shared by the threads that there may
 * be, one for each CPU; the rest leaves room for 64 of a quarter of the size, which costs 5 % more per byte
 * (KERNEL-FACTS 1). */
#define LARGE_PIPES 48
#define LARGE_PIPES_LEAST 2
#define LARGE_CAPACITY (1u << 20)
#define CAPACITY (256u << 10)
#define MADE_CAPACITY (64u << 10) /* unasked, unless the user has no pages left */

struct pipes {
    struct pipe pipes[PIPES_KEPT];
    unsigned count;
    unsigned made;       /* by this thread, and not closed by it */
    unsigned large;      /* so many of them may be; 0: not known yet */
    unsigned generation; /* of the process that made them */
};

static pthread_key_t pipes_key;
static pthread_once_t pipes_once = PTHREAD_ONCE_INIT;
static _Thread_local struct pipes *pipes_of_thread;
static _Atomic unsigned generation;

static void close_pipe(struct pipe *pipe)
{
    sys.close(pipe->read);
    sys.close(pipe->write);
}

static void close_pipes(struct pipes *pipes)
{
    pipes->made = pipes->made > pipes->count ? pipes->made - pipes->count : 0;
    while (pipes->count > 0)
        close_pipe(&pipes->pipes[--pipes->count]);
}

static void end_of_thread(void *pipes)
{
    close_pipes(pipes);
    free(pipes);
}

static void forked(void)
{
    atomic_fetch_add_explicit(&generation, 1, memory_order_relaxed);
}

static void make_key(void)
{
    pthread_key_create(&pipes_key, end_of_thread);
    pthread_atfork(NULL, NULL, forked);
}

/* NULL without memory: then nothing is pooled, which is slower and as right. A child has its parent's pipes, and what
 * one of the two wrote into them the other would read. */
static struct pipes *pool(void)
{
    struct pipes *mine = pipes_of_thread;
    if (mine == NULL) {
        pthread_once(&pipes_once, make_key);
        mine = sys.allocate(1, sizeof *mine);
        if (mine != NULL && pthread_setspecific(pipes_key, mine) != 0) {
            free(mine);
            mine = NULL;
        }
        if (mine == NULL)
            return NULL;
        mine->generation = atomic_load_explicit(&generation, memory_order_relaxed);
        pipes_of_thread = mine;
    }
    unsigned now = atomic_load_explicit(&generation, memory_order_relaxed);
    if (mine->generation != now) {
        close_pipes(mine);
        mine->generation = now;
        mine->large = 0; /* it may have other rights */
    }
    return mine;
}

static int make_pipe(long wanted, struct pipe *ret_pipe, uint64_t *calls)
{
    int fds[2];
    ++*calls;
    if (sys.pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0)
        return -errno;
    struct pipe pipe = {.read = fds[0], .write = fds[1]};
    ++*calls;
    int capacity = sys.fcntl(pipe.write, F_SETPIPE_SZ, wanted);
    if (capacity <= 0) { /* EPERM past the user's limit: then it stays as it was made */
        ++*calls;
        capacity = sys.fcntl(pipe.write, F_GETPIPE_SZ, 0);
        pipe.starved = capacity < (int)MADE_CAPACITY;
    }
    if (capacity <= 0) {
        int error = errno;
        close_pipe(&pipe);
        return -error;
    }
    pipe.capacity = (size_t)capacity;
    *ret_pipe = pipe;
    return 0;
}

static unsigned large_pipes(uint64_t *calls)
{
    cpu_set_t cpus;
    *calls += 2;
    bool resource = privilege_has(CAP_SYS_RESOURCE), admin = privilege_has(CAP_SYS_ADMIN);
    if (resource || admin)
        return UINT_MAX;
    ++*calls;
    int count = sys.sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 0;
    unsigned share = count > 0 ? LARGE_PIPES / (unsigned)count : 0; /* EINVAL: more CPUs than a set has places */
    return share > LARGE_PIPES_LEAST ? share : LARGE_PIPES_LEAST;
}

int pipe_get(struct pipe *ret_pipe, bool any, uint64_t *calls)
{
    struct pipes *mine = pool();
    if (mine != NULL && mine->count > 0) {
        *ret_pipe = mine->pipes[--mine->count];
        return 0;
    }
    if (mine != NULL && mine->large == 0)
        mine->large = large_pipes(calls);
    bool large = mine == NULL || mine->made < mine->large;
    struct pipe pipe = {.read = -1, .write = -1};
    int result = make_pipe(large ? LARGE_CAPACITY : CAPACITY, &pipe, calls);
    if (result < 0)
        return result;
    if (pipe.starved && !any) {
        close_pipe(&pipe);
        return -ENOMEM;
    }
    if (mine != NULL)
        mine->made++;
    *ret_pipe = pipe;
    return 0;
}

void pipe_put(struct pipe *pipe, size_t residue)
{
    if (pipe->read < 0)
        return;
    struct pipes *mine = pool();
    if (residue == 0 && !pipe->starved && mine != NULL && mine->count < PIPES_KEPT) {
        mine->pipes[mine->count++] = *pipe;
    } else {
        close_pipe(pipe);
        if (mine != NULL && mine->made > 0)
            mine->made--;
    }
    *pipe = (struct pipe){.read = -1, .write = -1};
}

void pipes_drain(void)
{
    if (pipes_of_thread != NULL)
        close_pipes(pipes_of_thread);
}
