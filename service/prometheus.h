/* SPDX-License-Identifier: MIT
 *
 * Prometheus's text format, version 0.0.4.
 *
 * It wants all samples of a metric together: a loop over services or sites is inside one over metrics. Names and units
 * are as its conventions have them: counters end in _total, times are seconds. A sample that can ever be there is there
 * from the start, at 0: a counter that appears with its first event hides it from rate().
 */
#ifndef SLUICE_SERVICE_PROMETHEUS_H
#define SLUICE_SERVICE_PROMETHEUS_H

#include "service/counts.h"
#include "service/tally.h"
#include <stdio.h>

struct prometheus {
    FILE *out;          /* the caller asks ferror */
    const char *prefix; /* of all names: "sluice_serve_" */
    const char *name;   /* of the metric that is being written */
};

struct prometheus_label {
    const char *name, *value; /* name NULL ends a list */
};
#define PROMETHEUS_LABELS(...) ((const struct prometheus_label[]){__VA_ARGS__, {NULL, NULL}})

/* type: "counter", "gauge", "histogram". */
void prometheus_begin(struct prometheus *prometheus, const char *name, const char *type, const char *help);

/* A sample of that metric. labels, further: lists or NULL. */
void prometheus_value(const struct prometheus *prometheus, const struct prometheus_label *labels,
                      const struct prometheus_label *further, uint64_t value);
void prometheus_seconds(const struct prometheus *prometheus, const struct prometheus_label *labels,
                        uint64_t microseconds);

/* What the same metrics are written of, with the labels that tell one from another. */
struct prometheus_receipt {
    const struct prometheus_label *labels;
    const struct sluice_receipt *receipt;
};

struct prometheus_fallbacks {
    const struct prometheus_label *labels;
    const struct fallbacks *fallbacks;
};

struct prometheus_durations {
    const struct prometheus_label *labels;
    const struct durations *durations;
};

/* Bytes, how they went and by which route. done: what was done to them, in the past tense: "sent". usual: routes that
 * are there at 0, too; a bit each, 1 << route. */
void prometheus_receipts(struct prometheus *prometheus, const struct prometheus_receipt *all, size_t count,
                         const char *done, unsigned usual);
void prometheus_fallbacks(struct prometheus *prometheus, const struct prometheus_fallbacks *all, size_t count);
void prometheus_histogram(struct prometheus *prometheus, const char *name, const char *help,
                          const struct prometheus_durations *all, size_t count);

/* Workers, their CPU time and crashes, since when the process is there, and its version. */
void prometheus_process(struct prometheus *prometheus, const struct tally_state *state);

#endif
