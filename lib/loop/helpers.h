/* SPDX-License-Identifier: MIT
 *
 * Threads for what would block a loop: reading cold pages, opening files on slow disks.
 */
#ifndef SLUICE_LOOP_HELPERS_H
#define SLUICE_LOOP_HELPERS_H

#include <stddef.h>

struct helpers;

/* The first member of memory from sys.allocate, which done frees; or helpers_free, where done was not called. */
struct helper_job {
    void (*work)(void *context); /* on a helper */
    void (*done)(void *context); /* on the loop's thread */
    void *context;
    struct helper_job *next;
};

/* wake: an eventfd that becomes readable when helpers_collect has something to do. */
int helpers_new(unsigned threads, int nice, int wake, struct helpers **ret_helpers);
/* Make the threads; before that jobs wait. Returns 0 or a negative errno when there is none. */
int helpers_start(struct helpers *helpers);
/* Waits for work under way. Jobs whose done was not called are freed without it. */
void helpers_free(struct helpers *helpers);
/* The job stays the caller's until done was called. */
void helpers_submit(struct helpers *helpers, struct helper_job *job);
/* The jobs that have ended since the last call, oldest first. */
struct helper_job *helpers_collect(struct helpers *helpers);

#endif
