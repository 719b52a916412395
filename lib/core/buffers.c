/* SPDX-License-Identifier: MIT */
#include "buffers.h"
#include "sys.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#define BUFFERS_KEPT 16
#define PIPES_KEPT 32

struct pools {
    void *buffers[BUFFERS_KEPT];
    unsigned buffer_count;
    struct pipe pipes[PIPES_KEPT];
    unsigned pipe_count;
};

static pthread_key_t pools_key;
static pthread_once_t pools_once = PTHREAD_ONCE_INIT;
static _Thread_local struct pools *pools_of_thread;

static void close_pipe(struct pipe *pipe)
{
    sys.close(pipe->read);
    sys.close(pipe->write);
}

static void close_pipes(struct pools *pools)
{
    while (pools->pipe_count > 0)
        close_pipe(&pools->pipes[--pools->pipe_count]);
}

static void empty(struct pools *pools)
{
    while (pools->buffer_count > 0)
        sys.munmap(pools->buffers[--pools->buffer_count], BUFFER_SIZE);
    close_pipes(pools);
}

static void end_of_thread(void *pools)
{
    empty(pools);
    free(pools);
}

static void make_key(void)
{
    pthread_key_create(&pools_key, end_of_thread);
}

/* NULL without memory: then nothing is pooled, which is slower and as right. */
static struct pools *pools(void)
{
    if (pools_of_thread == NULL) {
        pthread_once(&pools_once, make_key);
        struct pools *fresh = sys.allocate(1, sizeof *fresh);
        if (fresh != NULL && pthread_setspecific(pools_key, fresh) != 0) {
            free(fresh);
            fresh = NULL;
        }
        pools_of_thread = fresh;
    }
    return pools_of_thread;
}

void *buffer_get(void)
{
    struct pools *mine = pools();
    if (mine != NULL && mine->buffer_count > 0)
        return mine->buffers[--mine->buffer_count];
    void *buffer = sys.mmap(NULL, BUFFER_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return buffer == MAP_FAILED ? NULL : buffer;
}

void buffer_put(void *buffer)
{
    if (buffer == NULL)
        return;
    struct pools *mine = pools();
    if (mine != NULL && mine->buffer_count < BUFFERS_KEPT)
        mine->buffers[mine->buffer_count++] = buffer;
    else
        sys.munmap(buffer, BUFFER_SIZE);
}

int pipe_get(struct pipe *ret_pipe, uint64_t *calls)
{
    struct pools *mine = pools();
    if (mine != NULL && mine->pipe_count > 0) {
        *ret_pipe = mine->pipes[--mine->pipe_count];
        return 0;
    }
    int fds[2];
    ++*calls;
    if (sys.pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0)
        return -errno;
    struct pipe pipe = {.read = fds[0], .write = fds[1]};
    *calls += 2;
    sys.fcntl(pipe.write, F_SETPIPE_SZ, (long)PIPE_CAPACITY); /* EPERM past the user's limit: then it stays smaller */
    int capacity = sys.fcntl(pipe.write, F_GETPIPE_SZ, 0);
    if (capacity <= 0) {
        int error = errno;
        close_pipe(&pipe);
        return -error;
    }
    pipe.capacity = (size_t)capacity;
    *ret_pipe = pipe;
    return 0;
}

void pipe_put(struct pipe *pipe, size_t residue)
{
    if (pipe->read < 0)
        return;
    struct pools *mine = pools();
    if (residue == 0 && mine != NULL && mine->pipe_count < PIPES_KEPT)
        mine->pipes[mine->pipe_count++] = *pipe;
    else
        close_pipe(pipe);
    *pipe = (struct pipe){.read = -1, .write = -1};
}

void pools_drain(void)
{
    if (pools_of_thread != NULL)
        empty(pools_of_thread);
}

void pools_drain_pipes(void)
{
    if (pools_of_thread != NULL)
        close_pipes(pools_of_thread);
}
