/* SPDX-License-Identifier: MIT
 *
 * What functions on a stack mean, by their names: the table of those that copy, that transform, and that show in whose
 * course the kernel ran. Data with reasons, no code that looks at stacks (stacks.h).
 */
#ifndef SLUICE_APP_TRACE_FRAMES_H
#define SLUICE_APP_TRACE_FRAMES_H

#include <stddef.h>

enum frame_kind {
    FRAME_OTHER = 0,
    FRAME_COPIES,            /* copies payload: its own time is copying */
    FRAME_COPIES_FOR_CALLER, /* copies anything: it depends on who called it */
    FRAME_TRANSFORMS,        /* has to touch every byte: ciphers, hashes, checksums, compression */
    FRAME_SOFTIRQ,           /* a softirq begins here */
    FRAME_INTERRUPT,         /* ... and it was begun by an interrupt, or ksoftirqd */
    FRAME_SYSTEM_CALL,
};

struct frame_pattern {
    const char *pattern; /* fnmatch(3) */
    enum frame_kind kind;
    const char *name;   /* for people, where symbols have many names for one thing; NULL: the symbol's own */
    const char *reason; /* why it is in the table */
};

/* NULL: nothing known of it. Suffixes that compilers add (".part.0") do not matter. */
const struct frame_pattern *frames_kernel(const char *symbol);
/* symbol NULL: not known, then the object alone decides; object is a file's name without its directory. */
const struct frame_pattern *frames_user(const char *symbol, const char *object);

/* How much of a program's symbol is left without what compilers and versions add: ".constprop.0", "@GLIBC_2.14". */
size_t frames_plain_length(const char *symbol);

#endif
