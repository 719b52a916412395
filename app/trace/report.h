/* SPDX-License-Identifier: MIT
 *
 * What people and programs read of an account: plain lines, a live screen, JSON. All three print the same figures, name
 * the tier and each figure's evidence, and list what is not known: lost events, unattributed copies, unknown bytes.
 */
#ifndef SLUICE_APP_TRACE_REPORT_H
#define SLUICE_APP_TRACE_REPORT_H

#include "account.h"
#include <stdio.h>

struct report_options {
    bool threads;       /* a row per thread, not per process */
    unsigned rows;      /* at most this many rows for a process; 0: all */
    unsigned width;     /* columns; 0: do not cut */
    bool colour;        /* ANSI colours */
    const char *notice; /* said first: why this tier and not a better one, and what would help; or NULL */
};

/* The whole account as text: for a file, a pipe, or the end of a live session. */
void report_lines(FILE *stream, struct account *account, const struct report_options *options);

/* One line of JSON: an object with "tier", "elapsed_seconds", "processes", "flows" (each with "source", "sink",
 * "mechanism", "first", "way", "bytes", "copied", "copies_per_byte", "unknown", "evidence", "copier", "calls",
 * "transitions_per_gib"), "callers", "findings", "unattributed", "lost". copied counts a byte copied twice twice;
 * copies_per_byte is null when any of the bytes are unknown. Returns 0 or -ENOMEM. */
int report_json(FILE *stream, struct account *account, const struct report_options *options);

/* The live screen: the terminal's alternate screen, redrawn in place from the top, sized to the window each time.
 * Restored by screen_close, and by the caller's signal handling calling it. */
struct screen;
int screen_open(int fd, struct screen **ret_screen); /* fd: a terminal. 0, -ENOTTY, -ENOMEM */
/* rates: the account one interval ago is remembered, bytes per second are shown beside the sums. */
void screen_draw(struct screen *screen, struct account *account, const struct report_options *options);
/* A key was pressed ('q', 't' threads on and off, 's' order of rows, 'p' pause). Returns true to end. fd is read
 * without blocking. */
bool screen_key(struct screen *screen);
void screen_close(struct screen *screen);

#endif
