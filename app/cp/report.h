/* SPDX-License-Identifier: MIT
 *
 * What a copy says: messages with the paths they are about, and the counts that progress, summary and exit code are
 * made of. Any thread.
 */
#ifndef SLUICE_APP_CP_REPORT_H
#define SLUICE_APP_CP_REPORT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* A directory on its way: what it is called at the source and at the target, within its parent. */
struct place {
    const struct place *parent; /* NULL: the top, whose source_name is empty and whose target_name is a path */
    const char *source_name;
    const char *target_name;
};

enum side { SOURCE, TARGET };

/* The path of an entry (NULL: the place itself) as text for people: control characters are escaped. The caller frees
 * it; NULL without memory. */
char *place_path(const struct place *place, const char *name, enum side side);

struct tally {
    _Atomic uint64_t files, directories, symlinks, hard_links, specials;
    _Atomic uint64_t bytes;                     /* content moved so far, for progress */
    _Atomic uint64_t skipped, failed, removed;  /* removed: begun and taken away again */
    _Atomic uint64_t verified, verified_cached; /* bytes compared; of these, perhaps from the page cache */
    _Atomic uint64_t attributes_lost;           /* extended attributes that the target would not take */
};

struct report {
    struct tally tally;
    FILE *lines; /* of --verbose and --debug */
    pthread_mutex_t lock;
    bool progress_shown; /* a progress line stands on standard error */
    unsigned said_count;
    struct {
        int what, code;
    } said[64];
};

/* A count in the tally. */
static inline void tally_add(_Atomic uint64_t *count, uint64_t more)
{
    atomic_fetch_add_explicit(count, more, memory_order_relaxed);
}

static inline uint64_t tally_get(const _Atomic uint64_t *count)
{
    return atomic_load_explicit(count, memory_order_relaxed);
}

/* "sluice cp: ..." on standard error. A failure is counted and makes the exit code 1. */
__attribute__((format(printf, 2, 3))) void report_failure(struct report *report, const char *format, ...);
__attribute__((format(printf, 2, 3))) void report_note(struct report *report, const char *format, ...);

/* A line of --verbose. */
__attribute__((format(printf, 2, 3))) void report_line(struct report *report, const char *format, ...);

/* True the first time that it is asked about this pair, for what would be said of every file. */
bool report_first(struct report *report, int what, int code);

#endif
