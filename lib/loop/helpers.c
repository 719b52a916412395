/* SPDX-License-Identifier: MIT */
#include "helpers.h"
#include "../core/sys.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

struct queue {
    struct helper_job *first, **last;
};

struct helpers {
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct queue waiting, ended;
    bool stopping;
    int wake, nice;
    unsigned count, wanted;
    pthread_t threads[];
};

static void push(struct queue *queue, struct helper_job *job)
{
    job->next = NULL;
    *queue->last = job;
    queue->last = &job->next;
}

static struct helper_job *pop(struct queue *queue)
{
    struct helper_job *job = queue->first;
    if (job != NULL) {
        queue->first = job->next;
        if (queue->first == NULL)
            queue->last = &queue->first;
    }
    return job;
}

static void free_jobs(struct queue *queue)
{
    for (struct helper_job *job = pop(queue); job != NULL; job = pop(queue))
        free(job);
}

static void *helper(void *argument)
{
    struct helpers *helpers = argument;
    if (helpers->nice != 0) /* of this thread alone: Linux keeps nice values per thread */
        setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), getpriority(PRIO_PROCESS, 0) + helpers->nice);
    pthread_mutex_lock(&helpers->lock);
    while (!helpers->stopping) {
        struct helper_job *job = pop(&helpers->waiting);
        if (job == NULL) {
            pthread_cond_wait(&helpers->work, &helpers->lock);
            continue;
        }
        pthread_mutex_unlock(&helpers->lock);
        job->work(job->context);
        pthread_mutex_lock(&helpers->lock);
        bool first = helpers->ended.first == NULL;
        push(&helpers->ended, job);
        if (first)
            eventfd_write(helpers->wake, 1); /* cannot fail: the counter is read to zero by the loop */
    }
    pthread_mutex_unlock(&helpers->lock);
    return NULL;
}

int helpers_new(unsigned threads, int nice, int wake, struct helpers **ret_helpers)
{
    struct helpers *helpers = sys.allocate(1, sizeof *helpers + threads * sizeof helpers->threads[0]);
    if (helpers == NULL)
        return -ENOMEM;
    pthread_mutex_init(&helpers->lock, NULL);
    pthread_cond_init(&helpers->work, NULL);
    helpers->waiting.last = &helpers->waiting.first;
    helpers->ended.last = &helpers->ended.first;
    helpers->wake = wake;
    helpers->nice = nice;
    helpers->wanted = threads;
    *ret_helpers = helpers;
    return 0;
}

int helpers_start(struct helpers *helpers)
{
    if (helpers->count > 0)
        return 0;
    /* Signals are the loop's thread's business. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = 0;
    while (helpers->count < helpers->wanted && error == 0) {
        error = pthread_create(&helpers->threads[helpers->count], NULL, helper, helpers);
        helpers->count += error == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return helpers->count > 0 ? 0 : -error;
}

void helpers_free(struct helpers *helpers)
{
    if (helpers == NULL)
        return;
    pthread_mutex_lock(&helpers->lock);
    helpers->stopping = true;
    pthread_cond_broadcast(&helpers->work);
    pthread_mutex_unlock(&helpers->lock);
    for (unsigned i = 0; i < helpers->count; i++)
        pthread_join(helpers->threads[i], NULL);
    pthread_cond_destroy(&helpers->work);
    pthread_mutex_destroy(&helpers->lock);
    free_jobs(&helpers->waiting);
    free_jobs(&helpers->ended);
    free(helpers);
}

void helpers_submit(struct helpers *helpers, struct helper_job *job)
{
    pthread_mutex_lock(&helpers->lock);
    push(&helpers->waiting, job);
    pthread_cond_signal(&helpers->work);
    pthread_mutex_unlock(&helpers->lock);
}

struct helper_job *helpers_collect(struct helpers *helpers)
{
    pthread_mutex_lock(&helpers->lock);
    struct helper_job *jobs = helpers->ended.first;
    helpers->ended.first = NULL;
    helpers->ended.last = &helpers->ended.first;
    pthread_mutex_unlock(&helpers->lock);
    return jobs;
}
