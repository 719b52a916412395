/* SPDX-License-Identifier: MIT
 *
 * Rows of an account as a table that fits its width: columns are as wide as their contents, names of ends are cut in
 * the middle, and what still finds no room is left out by importance: the pair of ends, bytes, copies and evidence
 * last.
 */
#ifndef SLUICE_APP_TRACE_TABLE_H
#define SLUICE_APP_TRACE_TABLE_H

#include "format.h"

enum table_column {
    TABLE_PROCESS,
    TABLE_THREAD,
    TABLE_SOURCE,
    TABLE_SINK,
    TABLE_HOW,
    TABLE_BYTES,
    TABLE_RATE,
    TABLE_COPIES,
    TABLE_EVIDENCE,
    TABLE_CALLS,
    TABLE_TRANSITIONS,
    TABLE_COPIER,
    TABLE_COLUMN_COUNT
};

struct table_row {
    const struct account_row *row;
    uint64_t rate; /* bytes per second */
    bool rate_known;
};

struct table_options {
    unsigned columns; /* a bit for each wanted: 1u << TABLE_BYTES */
    unsigned indent;
    unsigned width; /* with the indent; 0: no limit */
    bool details;   /* what found no column comes on a second line */
    bool colour;
};

void table_print(FILE *stream, const struct account *account, const struct table_row *rows, size_t count,
                 const struct table_options *options);

#endif
