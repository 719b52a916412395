/* SPDX-License-Identifier: MIT */
#include "proxy/totals.h"
#include "base/cleanup.h"
#include "service/json.h"
#include "service/prometheus.h"
#include "service/status.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- Counting ----------------------------------------------------------------------------------------------- */

const char *proxy_end_name(enum proxy_end end)
{
    static const char *const names[PROXY_END_COUNT] = {
        [PROXY_END_DONE] = "done",
        [PROXY_END_CLIENT_RESET] = "client_reset",
        [PROXY_END_SERVER_RESET] = "server_reset",
        [PROXY_END_IDLE_TIMEOUT] = "idle_timeout",
        [PROXY_END_HALF_CLOSE_TIMEOUT] = "half_close_timeout",
        [PROXY_END_CONNECT_FAILED] = "connect_failed",
        [PROXY_END_NO_SERVER] = "no_server",
        [PROXY_END_QUEUE_TIMEOUT] = "queue_timeout",
        [PROXY_END_QUEUE_FULL] = "queue_full",
        [PROXY_END_HEADER_REFUSED] = "header_refused",
        [PROXY_END_HELLO_REFUSED] = "hello_refused",
        [PROXY_END_HELLO_TIMEOUT] = "hello_timeout",
        [PROXY_END_CLIENT_LEFT] = "client_left",
        [PROXY_END_DRAINED] = "drained",
        [PROXY_END_ERROR] = "error",
    };
    return (unsigned)end < PROXY_END_COUNT ? names[end] : "?";
}

void proxy_totals_moved(struct proxy_totals *totals, enum proxy_direction direction,
                        const struct sluice_receipt *receipt)
{
    sluice_receipt_add(&totals->receipts[direction], receipt);
    if (receipt->fallback_count > 0)
        fallbacks_enter(&totals->fallbacks, receipt);
}

void proxy_totals_ended(struct proxy_totals *totals, enum proxy_end end)
{
    totals->open--;
    totals->ended[end]++;
}

void proxy_totals_add(struct proxy_totals *sum, const struct proxy_totals *part)
{
    for (unsigned i = 0; i < PROXY_DIRECTIONS; i++)
        sluice_receipt_add(&sum->receipts[i], &part->receipts[i]);
    sum->connections += part->connections;
    sum->open += part->open;
    for (unsigned i = 0; i < PROXY_END_COUNT; i++)
        sum->ended[i] += part->ended[i];
    sum->retries += part->retries;
    sum->accept_failures += part->accept_failures;
    durations_add(&sum->connecting, &part->connecting);
    sum->mirrors += part->mirrors;
    sum->mirrors_lost += part->mirrors_lost;
    sum->mirrored_bytes += part->mirrored_bytes;
    fallbacks_add(&sum->fallbacks, &part->fallbacks);
}

void proxy_totals_fold(struct proxy_totals *sum, struct proxy_totals *gone, enum proxy_end end)
{
    gone->ended[end] += gone->open;
    gone->open = 0;
    proxy_totals_add(sum, gone);
    memset(gone, 0, sizeof *gone);
}

/* ---- Prometheus's text -------------------------------------------------------------------------------------- */

struct writer {
    struct prometheus prometheus;
    const struct proxy_totals_of *services;
    unsigned count;
};

#define EACH_SERVICE(of, writer)                                                                                       \
    for (const struct proxy_totals_of *of = (writer)->services; of < (writer)->services + (writer)->count; of++)
#define SERVICE_LABEL(of) PROMETHEUS_LABELS({"service", (of)->service->name})

static const char *const directions[PROXY_DIRECTIONS] = {"to_server", "to_client"};

static void write_plain(struct writer *writer, const char *name, const char *type, const char *help, size_t offset)
{
    prometheus_begin(&writer->prometheus, name, type, help);
    EACH_SERVICE(of, writer)
    {
        uint64_t value;
        memcpy(&value, (const char *)of->totals + offset, sizeof value);
        prometheus_value(&writer->prometheus, SERVICE_LABEL(of), NULL, value);
    }
}

static void write_connections(struct writer *writer)
{
    write_plain(writer, "connections_total", "counter", "Connections accepted.",
                offsetof(struct proxy_totals, connections));
    write_plain(writer, "open_connections", "gauge", "Connections of clients that are open now.",
                offsetof(struct proxy_totals, open));
    prometheus_begin(&writer->prometheus, "ended_connections_total", "counter", "Connections ended, by reason.");
    EACH_SERVICE(of, writer)
    {
        for (unsigned i = 0; i < PROXY_END_COUNT; i++)
            prometheus_value(&writer->prometheus, SERVICE_LABEL(of),
                             PROMETHEUS_LABELS({"reason", proxy_end_name((enum proxy_end)i)}), of->totals->ended[i]);
    }
    write_plain(writer, "accept_failures_total", "counter",
                "Connections that could not be accepted, for want of descriptors or memory.",
                offsetof(struct proxy_totals, accept_failures));
    prometheus_begin(&writer->prometheus, "queue_length", "gauge", "Clients that wait for a place at a server.");
    EACH_SERVICE(of, writer)
    {
        prometheus_value(&writer->prometheus, SERVICE_LABEL(of), NULL,
                         atomic_load_explicit(&of->state->waiting, memory_order_relaxed));
    }
}

/* Of what has labels of its own for each service, and for each of its directions. */
struct labelled {
    struct prometheus_label service[2], direction[PROXY_DIRECTIONS][3];
};

static void write_moved(struct writer *writer)
{
    /* The routes that a proxy has; another one only if it was used all the same. */
    const unsigned usual = 1u << SLUICE_ROUTE_COPY | 1u << SLUICE_ROUTE_SPLICE | 1u << SLUICE_ROUTE_TEE;
    size_t count = writer->count;
    if (count == 0)
        return;
    CLEANUP_FREE struct labelled *labels = calloc(count, sizeof *labels);
    CLEANUP_FREE struct prometheus_receipt *receipts = calloc(PROXY_DIRECTIONS * count, sizeof *receipts);
    CLEANUP_FREE struct prometheus_fallbacks *fallbacks = calloc(count, sizeof *fallbacks);
    CLEANUP_FREE struct prometheus_durations *durations = calloc(count, sizeof *durations);
    if (labels == NULL || receipts == NULL || fallbacks == NULL || durations == NULL)
        return;
    for (size_t i = 0; i < count; i++) {
        const struct proxy_totals_of *of = &writer->services[i];
        labels[i].service[0] = (struct prometheus_label){"service", of->service->name};
        fallbacks[i] = (struct prometheus_fallbacks){labels[i].service, &of->totals->fallbacks};
        durations[i] = (struct prometheus_durations){labels[i].service, &of->totals->connecting};
        for (unsigned k = 0; k < PROXY_DIRECTIONS; k++) {
            labels[i].direction[k][0] = labels[i].service[0];
            labels[i].direction[k][1] = (struct prometheus_label){"direction", directions[k]};
            receipts[PROXY_DIRECTIONS * i + k] =
                (struct prometheus_receipt){labels[i].direction[k], &of->totals->receipts[k]};
        }
    }
    prometheus_receipts(&writer->prometheus, receipts, PROXY_DIRECTIONS * count, "passed on", usual);
    prometheus_fallbacks(&writer->prometheus, fallbacks, count);
    prometheus_histogram(&writer->prometheus, "connect_duration_seconds", "Time to connect to a server.", durations,
                         count);
}

static uint64_t server_up(const struct proxy_server *server, const struct server_state *state)
{
    (void)server;
    return !atomic_load_explicit(&state->down, memory_order_relaxed);
}

static uint64_t server_weight(const struct proxy_server *server, const struct server_state *state)
{
    (void)state;
    return server->weight;
}

#define SERVER_FIGURE(figure)                                                                                          \
    static uint64_t server_##figure(const struct proxy_server *server, const struct server_state *state)               \
    {                                                                                                                  \
        (void)server;                                                                                                  \
        return atomic_load_explicit(&state->figure, memory_order_relaxed);                                             \
    }
SERVER_FIGURE(connections)
SERVER_FIGURE(total)
SERVER_FIGURE(failures)
SERVER_FIGURE(checks)
SERVER_FIGURE(checks_failed)
SERVER_FIGURE(changes)

static void write_servers(struct writer *writer)
{
    static const struct {
        const char *name, *type, *help;
        uint64_t (*value)(const struct proxy_server *server, const struct server_state *state);
    } figures[] = {
        {"server_up", "gauge", "Whether the server is up, by its health checks.", server_up},
        {"server_weight", "gauge", "Its weight; 0: it gets no new connections.", server_weight},
        {"server_open_connections", "gauge", "Connections to the server, those being made included.",
         server_connections},
        {"server_connections_total", "counter", "Connections made to the server.", server_total},
        {"server_connect_failures_total", "counter", "Connections to the server that failed to be made.",
         server_failures},
        {"server_checks_total", "counter", "Health checks of the server.", server_checks},
        {"server_failed_checks_total", "counter", "Health checks of the server that failed.", server_checks_failed},
        {"server_changes_total", "counter", "Changes of the server from up to down and back.", server_changes},
    };
    for (size_t i = 0; i < sizeof figures / sizeof figures[0]; i++) {
        prometheus_begin(&writer->prometheus, figures[i].name, figures[i].type, figures[i].help);
        EACH_SERVICE(of, writer)
        {
            for (unsigned k = 0; k < of->service->server_count; k++)
                prometheus_value(&writer->prometheus, SERVICE_LABEL(of),
                                 PROMETHEUS_LABELS({"server", of->service->servers[k].name}),
                                 figures[i].value(&of->service->servers[k], &of->servers[k]));
        }
    }
}

void proxy_totals_write(FILE *out, const struct proxy_totals_of *services, unsigned count)
{
    struct writer writer = {{.out = out, .prefix = "sluice_proxy_"}, services, count};
    write_connections(&writer);
    write_moved(&writer);
    write_plain(&writer, "retries_total", "counter", "Further servers tried after one could not be reached.",
                offsetof(struct proxy_totals, retries));
    write_servers(&writer);
    write_plain(&writer, "mirror_connections_total", "counter", "Shadow connections opened.",
                offsetof(struct proxy_totals, mirrors));
    write_plain(&writer, "mirror_resets_total", "counter", "Shadow connections reset as they had lost bytes.",
                offsetof(struct proxy_totals, mirrors_lost));
    write_plain(&writer, "mirror_bytes_total", "counter", "Bytes sent to shadow connections.",
                offsetof(struct proxy_totals, mirrored_bytes));
}

/* ---- JSON ----------------------------------------------------------------------------------------------------- */

static void write_service(FILE *out, const struct proxy_totals_of *of)
{
    const struct proxy_totals *totals = of->totals;
    fputs("{\"name\": ", out);
    json_write_string(out, of->service->name);
    fprintf(out,
            ", \"connections\": %" PRIu64 ", \"open\": %" PRIu64 ", \"waiting\": %" PRIu64 ", \"bytes\": %" PRIu64
            ", \"retries\": %" PRIu64 ", \"ended\": {",
            totals->connections, totals->open,
            (uint64_t)atomic_load_explicit(&of->state->waiting, memory_order_relaxed),
            totals->receipts[PROXY_TO_SERVER].bytes + totals->receipts[PROXY_TO_CLIENT].bytes, totals->retries);
    for (unsigned i = 0; i < PROXY_END_COUNT; i++)
        fprintf(out, "%s\"%s\": %" PRIu64, i == 0 ? "" : ", ", proxy_end_name((enum proxy_end)i), totals->ended[i]);
    fputs("}, \"servers\": [", out);
    for (unsigned i = 0; i < of->service->server_count; i++) {
        fputs(i == 0 ? "{\"name\": " : ", {\"name\": ", out);
        json_write_string(out, of->service->servers[i].name);
        fprintf(out, ", \"up\": %s, \"open\": %" PRIu64 ", \"connections\": %" PRIu64 ", \"failures\": %" PRIu64 "}",
                server_up(&of->service->servers[i], &of->servers[i]) != 0 ? "true" : "false",
                server_connections(&of->service->servers[i], &of->servers[i]),
                server_total(&of->service->servers[i], &of->servers[i]),
                server_failures(&of->service->servers[i], &of->servers[i]));
    }
    fputs("]}", out);
}

void proxy_totals_write_json(FILE *out, const struct proxy_totals_of *services, unsigned count)
{
    struct proxy_totals sum = {0};
    uint64_t failures = 0;
    for (unsigned i = 0; i < count; i++)
        proxy_totals_add(&sum, services[i].totals);
    for (unsigned i = 0; i < PROXY_END_COUNT; i++)
        failures += i == PROXY_END_DONE || i == PROXY_END_DRAINED ? 0 : sum.ended[i];
    sluice_receipt_add(&sum.receipts[PROXY_TO_SERVER], &sum.receipts[PROXY_TO_CLIENT]);
    fprintf(out,
            "{\"connections\": %" PRIu64 ", \"open\": %" PRIu64 ", \"failures\": %" PRIu64 ", \"timeouts\": %" PRIu64
            ", \"accept_failures\": %" PRIu64 ", \"durations\": ",
            sum.connections, sum.open, failures,
            sum.ended[PROXY_END_IDLE_TIMEOUT] + sum.ended[PROXY_END_HALF_CLOSE_TIMEOUT] +
                sum.ended[PROXY_END_QUEUE_TIMEOUT] + sum.ended[PROXY_END_HELLO_TIMEOUT],
            sum.accept_failures);
    status_write_durations(out, &sum.connecting);
    fputs(", \"fallbacks\": ", out);
    status_write_fallbacks(out, &sum.fallbacks);
    fputs(", \"receipt\": ", out);
    status_write_receipt(out, &sum.receipts[PROXY_TO_SERVER]);
    fputs(", \"services\": [", out);
    for (unsigned i = 0; i < count; i++) {
        fputs(i == 0 ? "\n" : ",\n", out);
        write_service(out, &services[i]);
    }
    fputs("]}", out);
}
