/* SPDX-License-Identifier: MIT */
#include "service/prometheus.h"
#include "base/text.h"
#include <inttypes.h>
#include <string.h>

void prometheus_begin(struct prometheus *prometheus, const char *name, const char *type, const char *help)
{
    prometheus->name = name;
    fprintf(prometheus->out, "# HELP %s%s %s\n# TYPE %s%s %s\n", prometheus->prefix, name, help, prometheus->prefix,
            name, type);
}

static void write_label(FILE *out, const struct prometheus_label *label)
{
    fprintf(out, "%s=\"", label->name);
    for (const char *value = label->value; *value != '\0'; value++) {
        if (*value == '\n')
            fputs("\\n", out);
        else if (*value == '"' || *value == '\\')
            fprintf(out, "\\%c", *value);
        else
            fputc(*value, out);
    }
    fputc('"', out);
}

/* Name and labels. suffix: what a histogram has behind its name. */
static void write_start(const struct prometheus *prometheus, const char *suffix, const struct prometheus_label *labels,
                        const struct prometheus_label *further)
{
    static const struct prometheus_label none[] = {{NULL, NULL}};
    const struct prometheus_label *const lists[2] = {labels != NULL ? labels : none, further != NULL ? further : none};
    char separator = '{';
    fprintf(prometheus->out, "%s%s%s", prometheus->prefix, prometheus->name, suffix);
    for (size_t i = 0; i < 2; i++) {
        for (const struct prometheus_label *label = lists[i]; label->name != NULL; label++) {
            fputc(separator, prometheus->out);
            write_label(prometheus->out, label);
            separator = ',';
        }
    }
    fputs(separator == ',' ? "} " : " ", prometheus->out);
}

static void write_suffixed(const struct prometheus *prometheus, const char *suffix,
                           const struct prometheus_label *labels, const struct prometheus_label *further,
                           uint64_t value)
{
    write_start(prometheus, suffix, labels, further);
    fprintf(prometheus->out, "%" PRIu64 "\n", value);
}

static void write_seconds(const struct prometheus *prometheus, const char *suffix,
                          const struct prometheus_label *labels, uint64_t microseconds)
{
    write_start(prometheus, suffix, labels, NULL);
    fprintf(prometheus->out, "%" PRIu64 ".%06" PRIu64 "\n", microseconds / 1000000, microseconds % 1000000);
}

void prometheus_value(const struct prometheus *prometheus, const struct prometheus_label *labels,
                      const struct prometheus_label *further, uint64_t value)
{
    write_suffixed(prometheus, "", labels, further, value);
}

void prometheus_seconds(const struct prometheus *prometheus, const struct prometheus_label *labels,
                        uint64_t microseconds)
{
    write_seconds(prometheus, "", labels, microseconds);
}

void prometheus_receipts(struct prometheus *prometheus, const struct prometheus_receipt *all, size_t count,
                         const char *done, unsigned usual)
{
    static const struct {
        const char *name, *help;
        size_t offset;
    } figures[] = {
        {"bytes_total", "Bytes %s.", offsetof(struct sluice_receipt, bytes)},
        {"by_reference_bytes_total", "Bytes %s without the CPU copying them.",
         offsetof(struct sluice_receipt, by_reference)},
        {"copied_bytes_total", "Bytes %s that the CPU copied at least once.", offsetof(struct sluice_receipt, copied)},
        {"unknown_bytes_total", "Bytes %s of which nobody can tell whether they were copied.",
         offsetof(struct sluice_receipt, unknown)},
        {"transformed_bytes_total", "Bytes %s that were encrypted on the way.",
         offsetof(struct sluice_receipt, transformed)},
        {"aliased_bytes_total", "Bytes %s as pages of a file that a reader may still see change.",
         offsetof(struct sluice_receipt, aliased)},
        {"dropped_bytes_total",
         "Bytes that had to be read so that they were %s, and were dropped from the page cache again.",
         offsetof(struct sluice_receipt, dropped)},
        {"copy_bytes_total", "Bytes the CPU copied so that bytes were %s: one that is copied twice counts twice.",
         offsetof(struct sluice_receipt, copy_bytes)},
        {"transfer_system_calls_total", "System calls by which bytes were %s.",
         offsetof(struct sluice_receipt, system_calls)},
    };
    char help[160];
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++) {
        const char *rest = strstr(figures[i].help, "%s");
        snprintf(help, sizeof help, "%.*s%s%s", (int)(rest - figures[i].help), figures[i].help, done, rest + 2);
        prometheus_begin(prometheus, figures[i].name, "counter", help);
        for (size_t k = 0; k < count; k++) {
            uint64_t value;
            memcpy(&value, (const char *)all[k].receipt + figures[i].offset, sizeof value);
            prometheus_value(prometheus, all[k].labels, NULL, value);
        }
    }
    snprintf(help, sizeof help, "Bytes %s, by the mechanism that moved them.", done);
    prometheus_begin(prometheus, "route_bytes_total", "counter", help);
    for (size_t k = 0; k < count; k++) {
        for (unsigned route = SLUICE_ROUTE_AUTO + 1; route < SLUICE_ROUTE_COUNT; route++) {
            uint64_t bytes = all[k].receipt->routes[route].bytes;
            if (bytes > 0 || (usual >> route & 1) != 0)
                prometheus_value(prometheus, all[k].labels,
                                 PROMETHEUS_LABELS({"route", sluice_route_name((enum sluice_route)route)}), bytes);
        }
    }
}

void prometheus_fallbacks(struct prometheus *prometheus, const struct prometheus_fallbacks *all, size_t count)
{
    prometheus_begin(prometheus, "fallbacks_total", "counter",
                     "Changes from one route to another in mid-transfer, by reason.");
    for (size_t k = 0; k < count; k++) {
        const struct fallbacks *fallbacks = all[k].fallbacks;
        for (unsigned i = 0; i < FALLBACK_KINDS && fallbacks->kinds[i].count > 0; i++) {
            const struct fallback_kind *kind = &fallbacks->kinds[i];
            prometheus_value(prometheus, all[k].labels,
                             PROMETHEUS_LABELS({"from", sluice_route_name(kind->from)},
                                               {"to", sluice_route_name(kind->to)},
                                               {"error", kind->error != 0 ? text_errno_name(kind->error) : "none"},
                                               {"reason", kind->reason != NULL ? kind->reason : ""}),
                             kind->count);
        }
        prometheus_value(prometheus, all[k].labels,
                         PROMETHEUS_LABELS({"from", "other"}, {"to", "other"}, {"error", "other"}, {"reason", "other"}),
                         fallbacks->other);
    }
}

void prometheus_histogram(struct prometheus *prometheus, const char *name, const char *help,
                          const struct prometheus_durations *all, size_t count)
{
    prometheus_begin(prometheus, name, "histogram", help);
    for (size_t k = 0; k < count; k++) {
        uint64_t sum = 0;
        for (unsigned i = 0; i < DURATION_BUCKETS; i++) {
            sum += all[k].durations->buckets[i];
            write_suffixed(prometheus, "_bucket", all[k].labels, PROMETHEUS_LABELS({"le", duration_bound(i)}), sum);
        }
        write_seconds(prometheus, "_sum", all[k].labels, all[k].durations->sum_us);
        write_suffixed(prometheus, "_count", all[k].labels, NULL, sum);
    }
}

void prometheus_process(struct prometheus *prometheus, const struct tally_state *state)
{
    prometheus_begin(prometheus, "workers", "gauge", "Worker processes, those that drain included.");
    prometheus_value(prometheus, NULL, NULL, state->workers);
    prometheus_begin(prometheus, "worker_crashes_total", "counter", "Workers that ended otherwise than as asked.");
    prometheus_value(prometheus, NULL, NULL, state->crashes);
    prometheus_begin(prometheus, "cpu_seconds_total", "counter",
                     "CPU time, user and system, of all workers there are and were.");
    prometheus_seconds(prometheus, NULL, state->cpu_us);
    prometheus_begin(prometheus, "start_time_seconds", "gauge", "When it was started, in seconds since 1970.");
    prometheus_value(prometheus, NULL, NULL, (uint64_t)state->began);
    prometheus_begin(prometheus, "build_info", "gauge", "1, with the version.");
    prometheus_value(prometheus, NULL, PROMETHEUS_LABELS({"version", sluice_version()}), 1);
}
