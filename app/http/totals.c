/* SPDX-License-Identifier: MIT */
#include "totals.h"
#include "service/prometheus.h"
#include "service/status.h"
#include <inttypes.h>

static const struct {
    const char *name;   /* in JSON */
    const char *metric; /* after the prefix */
    const char *type, *help;
    size_t offset;
} counters[] = {
    {"connections", "connections_total", "counter", "Connections accepted.", offsetof(struct http_totals, connections)},
    {"open", "open_connections", "gauge", "Connections that are open now.", offsetof(struct http_totals, open)},
    {"requests", "requests_total", "counter", "Requests whose head was read whole.",
     offsetof(struct http_totals, requests)},
    {"refused", "refused_requests_total", "counter",
     "Requests refused for their head: malformed, too large, or of another version of HTTP.",
     offsetof(struct http_totals, refused)},
    {"truncated", "truncated_responses_total", "counter", "Responses that ended short, as the file had shrunk.",
     offsetof(struct http_totals, truncated)},
    {"timeouts", "timeouts_total", "counter", "Connections closed in mid-request or mid-response for being slow.",
     offsetof(struct http_totals, timeouts)},
    {"accept_failures", "accept_failures_total", "counter",
     "Connections that could not be accepted, for want of descriptors or memory.",
     offsetof(struct http_totals, accept_failures)},
    {"over_limit", "over_limit_connections_total", "counter",
     "Connections refused because their address had as many as it may.", offsetof(struct http_totals, over_limit)},
    {"unintroduced", "unintroduced_connections_total", "counter",
     "Connections closed because they did not begin with a PROXY header.", offsetof(struct http_totals, unintroduced)},
    {"tls_handshakes", "tls_handshakes_total", "counter", "TLS handshakes completed.",
     offsetof(struct http_totals, tls_handshakes)},
    {"tls_resumed", "tls_resumed_handshakes_total", "counter", "TLS handshakes that resumed a session by its ticket.",
     offsetof(struct http_totals, tls_resumed)},
    {"tls_failures", "tls_failures_total", "counter", "TLS handshakes that failed, and connections that TLS ended.",
     offsetof(struct http_totals, tls_failures)},
};
#define COUNTERS (sizeof counters / sizeof *counters)

static const char *const classes[6] = {"unsent", "1xx", "2xx", "3xx", "4xx", "5xx"};

static uint64_t *counter(struct http_totals *totals, size_t i)
{
    return (uint64_t *)(void *)((char *)totals + counters[i].offset);
}

static uint64_t value_of(const struct http_totals *totals, size_t i)
{
    return *counter((struct http_totals *)totals, i);
}

/* Sums are made of it by additions alone, so that what has become less, as loans do, may wrap around. */
static struct sluice_receipt receipt_since(const struct sluice_receipt *now, const struct sluice_receipt *then)
{
    struct sluice_receipt part = *now;
    part.bytes -= then->bytes;
    part.by_reference -= then->by_reference;
    part.copied -= then->copied;
    part.copy_bytes -= then->copy_bytes;
    part.transformed -= then->transformed;
    part.unknown -= then->unknown;
    part.holes -= then->holes;
    part.aliased -= then->aliased;
    part.sent -= then->sent;
    part.released -= then->released;
    part.system_calls -= then->system_calls;
    part.waits -= then->waits;
    part.loans -= then->loans;
    part.transfers -= then->transfers;
    part.short_sources -= then->short_sources;
    part.shrunk -= then->shrunk;
    part.registered -= then->registered;
    part.dropped -= then->dropped;
    for (uint64_t used = then->routes_used; used != 0; used &= used - 1) {
        int i = __builtin_ctzll(used);
        part.routes[i].bytes -= then->routes[i].bytes;
        part.routes[i].calls -= then->routes[i].calls;
    }
    return part;
}

void http_totals_count_part(struct http_totals *totals, const struct sluice_receipt *receipt,
                            struct sluice_receipt *counted)
{
    struct sluice_receipt now = *receipt;
    now.transfers = 0;
    now.fallback_count = 0;
    const struct sluice_receipt part = receipt_since(&now, counted);
    sluice_receipt_add(&totals->receipt, &part);
    *counted = now;
}

void http_totals_count_rest(struct http_totals *totals, const struct sluice_receipt *receipt,
                            const struct sluice_receipt *counted)
{
    if (counted == NULL) {
        sluice_receipt_add(&totals->receipt, receipt);
        return;
    }
    const struct sluice_receipt rest = receipt_since(receipt, counted);
    sluice_receipt_add(&totals->receipt, &rest);
}

void http_totals_add(void *sum, const void *part)
{
    struct http_totals *to = sum;
    const struct http_totals *from = part;
    sluice_receipt_add(&to->receipt, &from->receipt);
    for (size_t i = 0; i < COUNTERS; i++)
        *counter(to, i) += value_of(from, i);
    for (size_t i = 0; i < sizeof to->responses / sizeof *to->responses; i++)
        to->responses[i] += from->responses[i];
    fallbacks_add(&to->fallbacks, &from->fallbacks);
    durations_add(&to->durations, &from->durations);
}

void http_totals_write_metrics(FILE *out, const struct http_totals *totals, const struct tally_state *state)
{
    const unsigned usual =
        1u << SLUICE_ROUTE_COPY | 1u << SLUICE_ROUTE_SENDFILE | 1u << SLUICE_ROUTE_SPLICE | 1u << SLUICE_ROUTE_MMAP;
    struct prometheus prometheus = {.out = out, .prefix = "sluice_serve_"};
    for (size_t i = 0; i < COUNTERS; i++) {
        prometheus_begin(&prometheus, counters[i].metric, counters[i].type, counters[i].help);
        prometheus_value(&prometheus, NULL, NULL, value_of(totals, i));
    }
    prometheus_begin(&prometheus, "responses_total", "counter",
                     "Responses by class of their status; unsent: the connection ended before.");
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        prometheus_value(&prometheus, NULL, PROMETHEUS_LABELS({"class", classes[i]}), totals->responses[i]);
    prometheus_receipts(&prometheus, &(struct prometheus_receipt){.receipt = &totals->receipt}, 1, "sent", usual);
    prometheus_fallbacks(&prometheus, &(struct prometheus_fallbacks){.fallbacks = &totals->fallbacks}, 1);
    prometheus_histogram(&prometheus, "response_duration_seconds",
                         "From reading a request's head until the kernel has taken the response's last byte.",
                         &(struct prometheus_durations){.durations = &totals->durations}, 1);
    prometheus_process(&prometheus, state);
}

void http_totals_write_json(FILE *out, const struct http_totals *totals)
{
    fputc('{', out);
    for (size_t i = 0; i < COUNTERS; i++)
        fprintf(out, "\"%s\": %" PRIu64 ", ", counters[i].name, value_of(totals, i));
    fprintf(out, "\"failures\": %" PRIu64 ", \"responses\": {",
            totals->responses[0] + totals->responses[5] + totals->truncated);
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        fprintf(out, "%s\"%s\": %" PRIu64, i == 0 ? "" : ", ", classes[i], totals->responses[i]);
    fputs("}, \"durations\": ", out);
    status_write_durations(out, &totals->durations);
    fputs(", \"fallbacks\": ", out);
    status_write_fallbacks(out, &totals->fallbacks);
    fputs(", \"receipt\": ", out);
    status_write_receipt(out, &totals->receipt);
    fputc('}', out);
}
