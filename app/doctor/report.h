/* SPDX-License-Identifier: MIT
 *
 * What people and programs read of the doctor's findings and of the ladder.
 */
#ifndef SLUICE_APP_DOCTOR_REPORT_H
#define SLUICE_APP_DOCTOR_REPORT_H

#include "doctor/findings.h"
#include <stdio.h>

struct page {
    FILE *stream;
    unsigned width; /* columns; 0: long lines are not broken */
    bool colour;
};

/* What was learned, and from where. */
struct crossovers {
    struct sluice_crossover *items;
    size_t count;
    const char *not_loaded; /* why the file of earlier runs was not used; NULL: it was */
};

void report_findings(const struct page *page, const struct findings *findings);
void report_ladder(const struct page *page, const struct ladder *ladder, const struct crossovers *crossovers);

/* One line, an object. Sizes are integers; what is not known, or was not tried, is null.
 *
 *   findings    level ("ok", "note", "unknown", "problem"), check, what, why, remedy (null: none)
 *   problems    their number
 * or
 *   ladder      source and sink (kind, given, file_system, directory, device, driver, scatter_gather, checksum,
 *               loopback, peer), sinks (their number), io_uring (the loop is one), bytes (for each sink), and routes,
 * the one to be tried first first: route, chosen, verdict ("yes", "not now", "never"), why_not, pays_from (0: always;
 * null: never), learned, tried, and of the receipt: copied ("by reference", "copied once", "unknown", ...),
 * by_reference, copied_bytes, copy_bytes, unknown, evidence, carried (bytes that went by this route), error,
 * gave_way_to, gave_way_why io_uring_missing  why there are no pairs on io_uring, or null crossovers  what was learned:
 * route, source, sink, device (driver, ...), pays_from, samples, closed crossovers_not_loaded  why the file of earlier
 * runs was not used, or null
 *
 * Return 0 or -ENOMEM. */
int report_findings_json(FILE *stream, const struct findings *findings);
int report_ladder_json(FILE *stream, const struct ladder *ladder, const struct crossovers *crossovers);

/* "by reference", "copied once", "once or twice", "copied in part", ... of a rung that was tried. Static. */
const char *report_fate(const struct sluice_receipt *receipt);

#endif
