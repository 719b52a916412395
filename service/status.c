/* SPDX-License-Identifier: MIT */
#include "service/status.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "service/json.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void status_write_receipt(FILE *out, const struct sluice_receipt *receipt)
{
    int length = sluice_receipt_format_json(receipt, NULL, 0);
    CLEANUP_FREE char *text = malloc((size_t)length + 1);
    if (text == NULL) {
        fputs("null", out);
        return;
    }
    sluice_receipt_format_json(receipt, text, (size_t)length + 1);
    fputs(text, out);
}

void status_write_durations(FILE *out, const struct durations *durations)
{
    fputs("{\"bounds\": [", out);
    for (unsigned i = 0; i < DURATION_BUCKETS - 1; i++)
        fprintf(out, "%s%s", i == 0 ? "" : ", ", duration_bound(i));
    fputs("], \"counts\": [", out);
    for (unsigned i = 0; i < DURATION_BUCKETS; i++)
        fprintf(out, "%s%" PRIu64, i == 0 ? "" : ", ", durations->buckets[i]);
    fprintf(out, "], \"sum_seconds\": %" PRIu64 ".%06" PRIu64 "}", durations->sum_us / 1000000,
            durations->sum_us % 1000000);
}

void status_write_fallbacks(FILE *out, const struct fallbacks *fallbacks)
{
    const char *separator = "";
    fputc('[', out);
    for (unsigned i = 0; i < FALLBACK_KINDS && fallbacks->kinds[i].count > 0; i++) {
        const struct fallback_kind *kind = &fallbacks->kinds[i];
        fprintf(out, "%s{\"from\": \"%s\", \"to\": \"%s\", \"error\": ", separator, sluice_route_name(kind->from),
                sluice_route_name(kind->to));
        json_write_string(out, kind->error != 0 ? text_errno_name(kind->error) : NULL);
        fputs(", \"reason\": ", out);
        json_write_string(out, kind->reason);
        fprintf(out, ", \"count\": %" PRIu64 "}", kind->count);
        separator = ", ";
    }
    if (fallbacks->other > 0)
        fprintf(out, "%s{\"from\": null, \"to\": null, \"error\": null, \"reason\": null, \"count\": %" PRIu64 "}",
                separator, fallbacks->other);
    fputc(']', out);
}

/* ---- Configuration ----------------------------------------------------------------------------------------------- */

static void write_list(FILE *out, const struct option_list *list)
{
    fputc('[', out);
    for (unsigned i = 0; i < list->count; i++) {
        if (i > 0)
            fputs(", ", out);
        json_write_string(out, list->items[i]);
    }
    fputc(']', out);
}

static void write_option(FILE *out, const struct option_spec *option, const void *member)
{
    switch (option->type) {
    case OPTION_FLAG:
        fputs(*(const bool *)member ? "true" : "false", out);
        break;
    case OPTION_TEXT:
    case OPTION_ADDRESS:
        json_write_string(out, *(const char *const *)member);
        break;
    case OPTION_UNSIGNED:
    case OPTION_SIZE: {
        uint64_t number = *(const uint64_t *)member;
        if (number < option->min)
            fputs("null", out); /* was left out, and nobody could have said it */
        else
            fprintf(out, "%" PRIu64, number);
        break;
    }
    case OPTION_DURATION: {
        uint64_t milliseconds = *(const uint64_t *)member;
        fprintf(out, "%" PRIu64 ".%03" PRIu64, milliseconds / 1000, milliseconds % 1000);
        break;
    }
    case OPTION_CHOICE:
        json_write_string(out, option->choices[*(const unsigned *)member]);
        break;
    case OPTION_LIST:
        write_list(out, member);
        break;
    case OPTION_END:
    case OPTION_HEADING:
        break;
    }
}

const char *status_write_options(FILE *out, const struct option_spec *options, size_t from, const void *values)
{
    const char *separator = "";
    for (const struct option_spec *option = options; option != NULL && option->type != OPTION_END; option++) {
        if (option->type == OPTION_HEADING || option->offset < from)
            continue;
        fprintf(out, "%s\"%s\": ", separator, option->name);
        write_option(out, option, (const char *)values + (option->offset - from));
        separator = ", ";
    }
    return separator;
}

/* ---- All --------------------------------------------------------------------------------------------------------- */

static void write_milliseconds(FILE *out, const char *name, uint64_t milliseconds)
{
    fprintf(out, "\"%s\": %" PRIu64 ".%03" PRIu64 ", ", name, milliseconds / 1000, milliseconds % 1000);
}

static void write_cpu(FILE *out, uint64_t microseconds)
{
    fprintf(out, "\"cpu_seconds\": %" PRIu64 ".%06" PRIu64 ", ", microseconds / 1000000, microseconds % 1000000);
}

void status_write(FILE *out, const struct status *status)
{
    struct timespec now;
    struct tally_state state;
    struct tally_worker worker;
    clock_gettime(CLOCK_REALTIME, &now);
    tally_sum(status->tally, NULL, &state);

    fputs("{\"program\": ", out);
    json_write_string(out, status->program);
    fputs(", \"version\": ", out);
    json_write_string(out, sluice_version());
    fputs(", \"about\": ", out);
    json_write_string(out, status->about);
    fputs(", ", out);
    write_milliseconds(out, "now", (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000);
    write_milliseconds(out, "up_seconds", state.up_ms);
    write_cpu(out, state.cpu_us);
    fprintf(out, "\"crashes\": %" PRIu64 ", \"reloads\": %u,\n\"configuration\": {", state.crashes, status->reloads);
    const char *separator = status_write_options(out, status->options, 0, status->values);
    if (status->write_configuration != NULL)
        status->write_configuration(status->context, out, separator);
    fputs("},\n\"totals\": ", out);
    status->write_totals(status->context, out, NULL);
    fputs(",\n\"workers\": [", out);
    separator = "\n";
    for (unsigned slot = 0; slot < tally_slots(status->tally); slot++) {
        if (!tally_worker(status->tally, slot, &worker, NULL))
            continue;
        fprintf(out, "%s{\"index\": %u, \"pid\": %d, \"reloads\": %u, ", separator, worker.index, worker.pid,
                worker.reloads);
        write_milliseconds(out, "up_seconds", state.up_ms > worker.began_ms ? state.up_ms - worker.began_ms : 0);
        write_cpu(out, worker.cpu_us);
        fputs("\"totals\": ", out);
        status->write_totals(status->context, out, &worker);
        fputc('}', out);
        separator = ",\n";
    }
    fputs("]}\n", out);
}
