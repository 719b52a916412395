/* SPDX-License-Identifier: MIT
 *
 * Receipts and errors as text and as JSON.
 */
#include <errno.h>
#include <inttypes.h>
#include <sluice/sluice.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define STRINGIFY2(x) #x
#define STRINGIFY(x) STRINGIFY2(x)

const char *sluice_version(void)
{
    return STRINGIFY(SLUICE_VERSION_MAJOR) "." STRINGIFY(SLUICE_VERSION_MINOR) "." STRINGIFY(SLUICE_VERSION_PATCH);
}

const char *sluice_evidence_name(enum sluice_evidence evidence)
{
    switch (evidence) {
    case SLUICE_EVIDENCE_NONE:
        return "none";
    case SLUICE_EVIDENCE_UNKNOWN:
        return "unknown";
    case SLUICE_EVIDENCE_BY_DEFINITION:
        return "by definition";
    case SLUICE_EVIDENCE_PROBED:
        return "probed";
    case SLUICE_EVIDENCE_MEASURED:
        return "measured";
    }
    return "?";
}

/* Text that grows past its buffer only in length, as snprintf does. */
struct text {
    char *buffer;
    size_t size, length;
};

__attribute__((format(printf, 2, 3))) static void append(struct text *text, const char *format, ...)
{
    va_list arguments;
    size_t used = text->length < text->size ? text->length : text->size;
    va_start(arguments, format);
    int length = vsnprintf(text->size > used ? text->buffer + used : NULL, text->size - used, format, arguments);
    va_end(arguments);
    if (length > 0)
        text->length += (size_t)length;
}

static void append_size(struct text *text, uint64_t bytes)
{
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    if (bytes < 1024) {
        append(text, "%" PRIu64 " B", bytes);
        return;
    }
    double value = (double)bytes / 1024;
    size_t unit = 0;
    while (value >= 1023.95 && unit + 1 < sizeof units / sizeof *units) {
        value /= 1024;
        unit++;
    }
    append(text, "%.1f %s", value, units[unit]);
}

static void append_part(struct text *text, const char **separator, const char *name, uint64_t bytes)
{
    if (bytes == 0)
        return;
    append(text, "%s%s ", *separator, name);
    append_size(text, bytes);
    *separator = ", ";
}

static void append_routes(struct text *text, const struct sluice_receipt *receipt)
{
    const char *separator = "; ";
    for (int i = 0; i < SLUICE_ROUTE_COUNT; i++) {
        const struct sluice_route_count *count = &receipt->routes[i];
        if (count->calls == 0)
            continue;
        append(text, "%s%s ", separator, sluice_route_name((enum sluice_route)i));
        append_size(text, count->bytes);
        append(text, " in %" PRIu64 " call%s (%s)", count->calls, count->calls == 1 ? "" : "s",
               sluice_evidence_name(count->evidence));
        separator = ", ";
    }
}

static void append_fallbacks(struct text *text, const struct sluice_receipt *receipt)
{
    for (uint64_t i = 0; i < receipt->fallback_count && i < SLUICE_RECEIPT_FALLBACKS; i++) {
        const struct sluice_fallback *fallback = &receipt->fallbacks[i];
        append(text, "; at byte %" PRIu64 " from %s to %s", fallback->at, sluice_route_name(fallback->from),
               sluice_route_name(fallback->to));
        if (fallback->error != 0)
            append(text, " (%s)", strerrorname_np(fallback->error));
        if (fallback->reason != NULL)
            append(text, ": %s", fallback->reason);
    }
    if (receipt->fallback_count > SLUICE_RECEIPT_FALLBACKS)
        append(text, "; and %" PRIu64 " more changes of route", receipt->fallback_count - SLUICE_RECEIPT_FALLBACKS);
}

int sluice_receipt_format(const struct sluice_receipt *receipt, char *buffer, size_t size)
{
    struct text text = {.buffer = buffer, .size = size};
    const char *separator = ": ";
    append_size(&text, receipt->bytes);
    append_part(&text, &separator, "by reference", receipt->by_reference);
    append_part(&text, &separator, "copied", receipt->copied);
    append_part(&text, &separator, "unknown", receipt->unknown);
    if (receipt->bytes > 0)
        append(&text, " (%.2f copies per byte%s)", (double)receipt->copy_bytes / (double)receipt->bytes,
               receipt->unknown > 0 ? " at least" : "");
    separator = "; ";
    append_part(&text, &separator, "transformed", receipt->transformed);
    append_part(&text, &separator, "holes", receipt->holes);
    append_part(&text, &separator, "aliased", receipt->aliased);
    append_routes(&text, receipt);
    if (receipt->pages > SLUICE_PAGES_PLAIN)
        append(&text, "; buffers on 2 MiB pages (%s)", sluice_pages_name(receipt->pages));
    separator = "; ";
    append_part(&text, &separator, "registered with the ring", receipt->registered);
    append_part(&text, &separator, "dropped from the page cache", receipt->dropped);
    append(&text, "; %" PRIu64 " system calls, %" PRIu64 " waits", receipt->system_calls, receipt->waits);
    if (receipt->transfers > 1)
        append(&text, ", %" PRIu64 " transfers", receipt->transfers);
    if (!sluice_receipt_is_final(receipt))
        append(&text, "; provisional: %" PRIu64 " loans outstanding", receipt->loans);
    if (receipt->short_sources > 0)
        append(&text, "; short sources: %" PRIu64, receipt->short_sources);
    if (receipt->shrunk > 0)
        append(&text, "; files that shrank while being sent: %" PRIu64, receipt->shrunk);
    append_fallbacks(&text, receipt);
    return (int)text.length;
}

static void append_json_fallbacks(struct text *text, const struct sluice_receipt *receipt)
{
    append(text, "\"fallback_count\":%" PRIu64 ",\"fallbacks\":[", receipt->fallback_count);
    for (uint64_t i = 0; i < receipt->fallback_count && i < SLUICE_RECEIPT_FALLBACKS; i++) {
        const struct sluice_fallback *fallback = &receipt->fallbacks[i];
        /* Names and reasons are static strings of ours, free of quotes and control characters. */
        append(text, "%s{\"from\":\"%s\",\"to\":\"%s\",\"errno\":%d,\"at\":%" PRIu64 ",\"reason\":\"%s\"}",
               i > 0 ? "," : "", sluice_route_name(fallback->from), sluice_route_name(fallback->to), fallback->error,
               fallback->at, fallback->reason != NULL ? fallback->reason : "");
    }
    append(text, "]");
}

int sluice_receipt_format_json(const struct sluice_receipt *receipt, char *buffer, size_t size)
{
    struct text text = {.buffer = buffer, .size = size};
    const struct {
        const char *name;
        uint64_t value;
    } numbers[] = {
        {"bytes", receipt->bytes},
        {"by_reference", receipt->by_reference},
        {"copied", receipt->copied},
        {"copy_bytes", receipt->copy_bytes},
        {"transformed", receipt->transformed},
        {"unknown", receipt->unknown},
        {"holes", receipt->holes},
        {"aliased", receipt->aliased},
        {"sent", receipt->sent},
        {"released", receipt->released},
        {"system_calls", receipt->system_calls},
        {"waits", receipt->waits},
        {"loans", receipt->loans},
        {"transfers", receipt->transfers},
        {"short_sources", receipt->short_sources},
        {"shrunk", receipt->shrunk},
        {"registered", receipt->registered},
        {"dropped", receipt->dropped},
    };
    append(&text, "{\"pages\":\"%s\",", sluice_pages_name(receipt->pages));
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        append(&text, "\"%s\":%" PRIu64 ",", numbers[i].name, numbers[i].value);
    append_json_fallbacks(&text, receipt);
    append(&text, ",\"routes\":{");
    const char *separator = "";
    for (int i = 0; i < SLUICE_ROUTE_COUNT; i++) {
        const struct sluice_route_count *count = &receipt->routes[i];
        if (count->calls == 0)
            continue;
        append(&text, "%s\"%s\":{\"bytes\":%" PRIu64 ",\"calls\":%" PRIu64 ",\"evidence\":\"%s\"}", separator,
               sluice_route_name((enum sluice_route)i), count->bytes, count->calls,
               sluice_evidence_name(count->evidence));
        separator = ",";
    }
    append(&text, "}}");
    return (int)text.length;
}

int sluice_error_format(const struct sluice_error *error, char *buffer, size_t size)
{
    struct text text = {.buffer = buffer, .size = size};
    if (error->code == 0) {
        append(&text, "no error");
        return (int)text.length;
    }
    append(&text, "%s failed", error->operation != NULL ? error->operation : "transfer");
    if (error->route != SLUICE_ROUTE_AUTO)
        append(&text, " (route %s)", sluice_route_name(error->route));
    append(&text, " after %" PRIu64 " bytes: ", error->delivered);
    if (error->reason != NULL)
        append(&text, "%s: ", error->reason);
    const char *name = strerrorname_np(-error->code);
    append(&text, "%s (%s)", strerrordesc_np(-error->code) != NULL ? strerrordesc_np(-error->code) : "unknown error",
           name != NULL ? name : "?");
    if (error->remedy != NULL)
        append(&text, ". %s", error->remedy);
    return (int)text.length;
}
