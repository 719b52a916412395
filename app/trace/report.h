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

/* One line of JSON, an object. Figures are integers but for the seconds, copying_share and copies_per_byte; what is
 * not known is null, never 0. Names that are not UTF-8 have \xHH for each byte that is none.
 *
 *   tier             "a", "b" or "c"
 *   elapsed_seconds
 *   counted_seconds  of these, the time during which calls were counted (--sample): sums are of that time
 *   notice           of the options, or null
 *   processes        pid, parent, comm, exited, system_calls, cpu_ns, samples, samples_copying_kernel,
 *                    samples_copying_user, samples_transforming, copying_share (0 to 1, of the CPU: Amdahl's ceiling)
 *   flows            pid, thread (null: all of them), comm, source and sink (each kind, name, and for those that have
 *                    them device "8:1" and inode), mechanism, first (what brought the bytes from source, or null), way
 *                    ("call" or "io_uring"), bytes, registered (moved by io_uring into or out of memory that it has
 *                    registered; of a byte that was both read and written so, both), copied (a byte copied twice
 *                    counts twice), copies_per_byte (null when any of the bytes are unknown), unknown (bytes),
 *                    evidence, copier, calls, transitions_per_gib
 *   callers          pid, copier, caller, samples
 *   findings         pid, bytes, what, advice (or null)
 *   unattributed     function, in_calls (true: of calls that moved nothing; false: of no call), calls, bytes
 *   lost             flow_bytes, flow_calls, copy_bytes, ends, events, threads, foreign_calls, messages, missed
 *
 * options->rows and width do not matter. Returns 0, -ENOMEM, or -EIO (the stream failed). */
int report_json(FILE *stream, struct account *account, const struct report_options *options);

/* The live screen: the terminal's alternate screen, redrawn in place from the top, sized to the window each time it is
 * drawn. Restored by screen_close(), which the caller's handling of signals calls, and by exit(). */
struct screen;
/* fd: a terminal, from which keys are read, too. Returns 0; -ENOTTY (no terminal, or one that only takes lines: TERM is
 * "dumb" or not set; report_lines() is the alternative), -ENOMEM, or what tcsetattr(3) failed with. */
int screen_open(int fd, struct screen **ret_screen);
/* rates: the account one interval ago is remembered, bytes per second are shown beside the sums. */
void screen_draw(struct screen *screen, struct account *account, const struct report_options *options);
/* Keys were pressed ('q' ends, 't' threads on and off, 's' order of rows, 'p' pause): take effect at the next drawing.
 * Never blocks. Returns true to end, also when the terminal has gone away. */
bool screen_key(struct screen *screen);
void screen_close(struct screen *screen);

#endif
