/* SPDX-License-Identifier: MIT
 *
 * What a service is and does, as JSON: for programs, and for the live page (admin.h), which reads it once a second.
 *
 *     {"program": "sluice serve", "version": "0.1.0", "about": "...", "now": 1795282790.5 (seconds since 1970),
 *      "up_seconds": 12.345, "cpu_seconds": 1.234567, "crashes": 0, "reloads": 0, "configuration": {"listen": ...},
 *      "totals": {...}, "workers": [{"index": 0, "pid": 4711, "reloads": 0, "up_seconds": ..., "cpu_seconds": ...,
 *      "totals": {...}}]}
 */
#ifndef SLUICE_SERVICE_STATUS_H
#define SLUICE_SERVICE_STATUS_H

#include "service/counts.h"
#include "service/options.h"
#include "service/tally.h"
#include <stdio.h>

struct status {
    const char *program, *about;
    const struct option_spec *options; /* the configuration in force: the table, or NULL, */
    const void *values;                /* and its struct; */
    /* and what no table has: further members, separator before the first. May be NULL. */
    void (*write_configuration)(void *context, FILE *out, const char *separator);
    unsigned reloads;
    const struct tally *tally;
    /* The object of a worker, or of all there are and were (worker NULL). */
    void (*write_totals)(void *context, FILE *out, const struct tally_worker *worker);
    void *context;
};

void status_write(FILE *out, const struct status *status);

/* The options whose place in their struct is from or behind it, as members of an object of JSON; values: what stands
 * there. Returns what has to stand before a further member. */
const char *status_write_options(FILE *out, const struct option_spec *options, size_t from, const void *values);

/* Parts of what write_totals writes; each one value. */
void status_write_receipt(FILE *out, const struct sluice_receipt *receipt);
void status_write_durations(FILE *out, const struct durations *durations);
void status_write_fallbacks(FILE *out, const struct fallbacks *fallbacks);

#endif
