/* SPDX-License-Identifier: MIT
 *
 * Text of a given width in a terminal: names from anywhere made printable, cut, wrapped; and the figures of an account
 * as people read them. Shared by the lines and the live screen. A figure that is not known is "unknown", never 0.
 */
#ifndef SLUICE_APP_TRACE_FORMAT_H
#define SLUICE_APP_TRACE_FORMAT_H

#include "account.h"
#include <stdio.h>

/* What is drawn beyond ASCII, or what stands for it. */
struct format_symbols {
    bool unicode;
    const char *arrow, *ellipsis, *dot, *bullet, *at_least;
    const char *bar_full, *bar_empty;
};

/* By the locale in the environment: LC_ALL, LC_CTYPE, LANG. */
const struct format_symbols *format_symbols(void);

/* Enough for a name of an end, made printable. */
#define FORMAT_NAME_MAX 1088

/* Make text safe to print: control characters, what is not UTF-8, characters that turn the direction of writing, and
 * without Unicode everything beyond ASCII, become \xHH byte by byte. Cut at whole characters when the buffer is too
 * small. Returns buffer. */
char *format_printable(const char *text, const struct format_symbols *symbols, char *buffer, size_t size);

/* Columns that printable text takes. */
size_t format_columns(const char *text);

/* Printable text in at most that many columns: what is too long loses its middle, where paths differ least in what
 * they mean. Returns buffer. */
char *format_cut(const char *text, size_t columns, const struct format_symbols *symbols, char *buffer, size_t size);

/* Print printable text in lines of at most width columns (0: one line), broken at spaces; the first line begins with
 * first, the others with as many spaces. Words that are longer than a line are broken. */
void format_wrap(FILE *stream, const char *first, const char *text, unsigned width);

/* Buffers of FORMAT_FIGURE_MAX; each returns buffer. */
#define FORMAT_FIGURE_MAX 48
char *format_count(uint64_t count, char *buffer);                /* "99999", "1.2 M" */
char *format_share(uint64_t part, uint64_t whole, char *buffer); /* "41 %", "< 1 %", "unknown" of nothing */
/* Copies per byte: "2.0", "0", "unknown"; where only some of the bytes are unknown "at least 1.9". */
char *format_copies(const struct account_row *row, const struct format_symbols *symbols, char *buffer);
char *format_how(const struct account_row *row, char *buffer); /* "read + send", "send (io_uring)" */
/* System calls per GiB moved, as format_count; "unknown". */
char *format_transitions(const struct account_row *row, char *buffer);

/* System calls per GiB moved; false: not known. */
bool format_transitions_per_gib(const struct account_row *row, uint64_t *ret_count);

/* "memory", the end's name, or "unknown"; as it is, not made printable. */
const char *format_end_name(const struct account *account, uint32_t id);

/* "(b) tracepoints" */
const char *format_tier(enum account_tier tier);

/* What was lost and is not zero, in words ("3 ends, 1.5 MiB in 12 calls of flows"); empty when nothing was. */
char *format_lost(const struct trace_lost *lost, char *buffer, size_t size);

/* "counted 8 % of the time: sums are of that", or "" when calls were counted nearly all the time, or not at all. */
const char *format_counted(const struct account *account, char *buffer, size_t size);

#endif
