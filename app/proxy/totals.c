/* SPDX-License-Identifier: MIT
 *
 * The text format wants all samples of a metric together, so that the loops over services are inside. Names and units
 * are as Prometheus's conventions have them: counters end in _total, times are seconds. A sample that can ever be there
 * is there from the start, at 0: a counter that appears with its first event hides it from rate().
 */
#include "proxy/totals.h"
#include <inttypes.h>
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
    for (uint64_t i = 0; i < receipt->fallback_count; i++) {
        if (i == SLUICE_RECEIPT_FALLBACKS) {
            totals->fallbacks_other += receipt->fallback_count - i;
            break;
        }
        totals->fallbacks[receipt->fallbacks[i].from][receipt->fallbacks[i].to]++;
    }
}

static const struct {
    uint64_t microseconds;
    const char *seconds;
} latency_bounds[PROXY_LATENCY_BUCKETS - 1] = {
    {500, "0.0005"},  {1000, "0.001"},  {2500, "0.0025"}, {5000, "0.005"},  {10000, "0.01"},
    {25000, "0.025"}, {50000, "0.05"},  {100000, "0.1"},  {250000, "0.25"}, {500000, "0.5"},
    {1000000, "1"},   {2500000, "2.5"}, {5000000, "5"},   {10000000, "10"},
};

void proxy_totals_connected(struct proxy_totals *totals, uint64_t microseconds)
{
    unsigned bucket = 0;
    while (bucket < PROXY_LATENCY_BUCKETS - 1 && microseconds > latency_bounds[bucket].microseconds)
        bucket++;
    totals->connect_latency[bucket]++;
    totals->connect_latency_us += microseconds;
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
    for (unsigned i = 0; i < PROXY_LATENCY_BUCKETS; i++)
        sum->connect_latency[i] += part->connect_latency[i];
    sum->connect_latency_us += part->connect_latency_us;
    sum->mirrors += part->mirrors;
    sum->mirrors_lost += part->mirrors_lost;
    sum->mirrored_bytes += part->mirrored_bytes;
    for (unsigned from = 0; from < SLUICE_ROUTE_COUNT; from++)
        for (unsigned to = 0; to < SLUICE_ROUTE_COUNT; to++)
            sum->fallbacks[from][to] += part->fallbacks[from][to];
    sum->fallbacks_other += part->fallbacks_other;
}

void proxy_totals_fold(struct proxy_totals *sum, struct proxy_totals *gone, enum proxy_end end)
{
    gone->ended[end] += gone->open;
    gone->open = 0;
    proxy_totals_add(sum, gone);
    memset(gone, 0, sizeof *gone);
}

/* ---- Prometheus's text -------------------------------------------------------------------------------------- */

#define PREFIX "sluice_proxy_"

struct writer {
    FILE *out;
    const struct proxy_totals_of *services;
    unsigned count;
    const char *name; /* of the metric that is being written */
};

#define EACH_SERVICE(of, writer)                                                                                       \
    for (const struct proxy_totals_of *of = (writer)->services; of < (writer)->services + (writer)->count; of++)

static void begin(struct writer *writer, const char *name, const char *type, const char *help)
{
    writer->name = name;
    fprintf(writer->out, "# HELP " PREFIX "%s %s\n# TYPE " PREFIX "%s %s\n", name, help, name, type);
}

static void write_label(FILE *out, const char *label, const char *value)
{
    fprintf(out, "%s=\"", label);
    for (; *value != '\0'; value++) {
        if (*value == '\n')
            fputs("\\n", out);
        else if (*value == '"' || *value == '\\')
            fprintf(out, "\\%c", *value);
        else
            fputc(*value, out);
    }
    fputc('"', out);
}

/* The name and the labels up to further ones; suffix: what a histogram has behind its name. */
static void write_start(struct writer *writer, const char *suffix, const struct proxy_totals_of *of)
{
    fprintf(writer->out, PREFIX "%s%s{", writer->name, suffix);
    write_label(writer->out, "service", of->service->name);
}

static void write_further(struct writer *writer, const char *label, const char *value)
{
    fputc(',', writer->out);
    write_label(writer->out, label, value);
}

static void write_value(struct writer *writer, uint64_t value)
{
    fprintf(writer->out, "} %" PRIu64 "\n", value);
}

static const char *const directions[PROXY_DIRECTIONS] = {"to_server", "to_client"};

static void write_plain(struct writer *writer, const char *name, const char *type, const char *help, size_t offset)
{
    begin(writer, name, type, help);
    EACH_SERVICE(of, writer)
    {
        uint64_t value;
        memcpy(&value, (const char *)of->totals + offset, sizeof value);
        write_start(writer, "", of);
        write_value(writer, value);
    }
}

/* One figure of the receipts, by direction. */
static void write_moved(struct writer *writer, const char *name, const char *help, size_t offset)
{
    begin(writer, name, "counter", help);
    EACH_SERVICE(of, writer)
    {
        for (unsigned i = 0; i < PROXY_DIRECTIONS; i++) {
            uint64_t value;
            memcpy(&value, (const char *)&of->totals->receipts[i] + offset, sizeof value);
            write_start(writer, "", of);
            write_further(writer, "direction", directions[i]);
            write_value(writer, value);
        }
    }
}

static void write_connections(struct writer *writer)
{
    write_plain(writer, "connections_total", "counter", "Connections accepted.",
                offsetof(struct proxy_totals, connections));
    write_plain(writer, "open_connections", "gauge", "Connections of clients that are open now.",
                offsetof(struct proxy_totals, open));
    begin(writer, "ended_connections_total", "counter", "Connections ended, by reason.");
    EACH_SERVICE(of, writer)
    {
        for (unsigned i = 0; i < PROXY_END_COUNT; i++) {
            write_start(writer, "", of);
            write_further(writer, "reason", proxy_end_name((enum proxy_end)i));
            write_value(writer, of->totals->ended[i]);
        }
    }
    write_plain(writer, "accept_failures_total", "counter",
                "Connections that could not be accepted, for want of descriptors or memory.",
                offsetof(struct proxy_totals, accept_failures));
    begin(writer, "queue_length", "gauge", "Clients that wait for a place at a server.");
    EACH_SERVICE(of, writer)
    {
        write_start(writer, "", of);
        write_value(writer, atomic_load_explicit(&of->state->waiting, memory_order_relaxed));
    }
}

static void write_bytes(struct writer *writer)
{
    write_moved(writer, "bytes_total", "Bytes passed on.", offsetof(struct sluice_receipt, bytes));
    write_moved(writer, "by_reference_bytes_total", "Bytes passed on without the CPU copying them.",
                offsetof(struct sluice_receipt, by_reference));
    write_moved(writer, "copied_bytes_total", "Bytes passed on that the CPU copied at least once.",
                offsetof(struct sluice_receipt, copied));
    write_moved(writer, "unknown_bytes_total", "Bytes passed on of which nobody can tell whether they were copied.",
                offsetof(struct sluice_receipt, unknown));
    write_moved(writer, "copy_bytes_total", "Bytes the CPU copied: one that is copied twice counts twice.",
                offsetof(struct sluice_receipt, copy_bytes));
    write_moved(writer, "transfer_system_calls_total", "System calls that transfers made.",
                offsetof(struct sluice_receipt, system_calls));

    begin(writer, "route_bytes_total", "counter", "Bytes passed on, by the mechanism that moved them.");
    EACH_SERVICE(of, writer)
    {
        for (unsigned i = 0; i < PROXY_DIRECTIONS; i++) {
            for (unsigned route = SLUICE_ROUTE_AUTO + 1; route < SLUICE_ROUTE_COUNT; route++) {
                uint64_t bytes = of->totals->receipts[i].routes[route].bytes;
                /* The routes that a proxy has; another one only if it was used all the same. */
                if (bytes == 0 && route != SLUICE_ROUTE_COPY && route != SLUICE_ROUTE_SPLICE &&
                    route != SLUICE_ROUTE_TEE)
                    continue;
                write_start(writer, "", of);
                write_further(writer, "direction", directions[i]);
                write_further(writer, "route", sluice_route_name((enum sluice_route)route));
                write_value(writer, bytes);
            }
        }
    }

    begin(writer, "fallbacks_total", "counter", "Changes from a route that was refused to the next one.");
    EACH_SERVICE(of, writer)
    {
        for (unsigned from = 0; from < SLUICE_ROUTE_COUNT; from++) {
            for (unsigned to = 0; to < SLUICE_ROUTE_COUNT; to++) {
                bool usual = from == SLUICE_ROUTE_SPLICE && to == SLUICE_ROUTE_COPY;
                if (of->totals->fallbacks[from][to] == 0 && !usual)
                    continue;
                write_start(writer, "", of);
                write_further(writer, "from", sluice_route_name((enum sluice_route)from));
                write_further(writer, "to", sluice_route_name((enum sluice_route)to));
                write_value(writer, of->totals->fallbacks[from][to]);
            }
        }
        if (of->totals->fallbacks_other == 0)
            continue;
        write_start(writer, "", of);
        write_further(writer, "from", "other");
        write_further(writer, "to", "other");
        write_value(writer, of->totals->fallbacks_other);
    }
}

static void write_latency(struct writer *writer)
{
    begin(writer, "connect_duration_seconds", "histogram", "Time to connect to a server.");
    EACH_SERVICE(of, writer)
    {
        uint64_t sum = 0;
        for (unsigned i = 0; i < PROXY_LATENCY_BUCKETS; i++) {
            sum += of->totals->connect_latency[i];
            write_start(writer, "_bucket", of);
            write_further(writer, "le", i < PROXY_LATENCY_BUCKETS - 1 ? latency_bounds[i].seconds : "+Inf");
            write_value(writer, sum);
        }
        uint64_t us = of->totals->connect_latency_us;
        write_start(writer, "_sum", of);
        fprintf(writer->out, "} %" PRIu64 ".%06" PRIu64 "\n", us / 1000000, us % 1000000);
        write_start(writer, "_count", of);
        write_value(writer, sum);
    }
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
        begin(writer, figures[i].name, figures[i].type, figures[i].help);
        EACH_SERVICE(of, writer)
        {
            for (unsigned k = 0; k < of->service->server_count; k++) {
                write_start(writer, "", of);
                write_further(writer, "server", of->service->servers[k].name);
                write_value(writer, figures[i].value(&of->service->servers[k], &of->servers[k]));
            }
        }
    }
}

void proxy_totals_write(FILE *out, const struct proxy_totals_of *services, unsigned count)
{
    struct writer writer = {.out = out, .services = services, .count = count};
    write_connections(&writer);
    write_bytes(&writer);
    write_latency(&writer);
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
