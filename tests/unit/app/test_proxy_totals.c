/* SPDX-License-Identifier: MIT */
#include "check.h"
#include "proxy/totals.h"

static struct proxy_totals totals, other;

static void reset(void)
{
    memset(&totals, 0, sizeof totals);
    memset(&other, 0, sizeof other);
}

/* ---- Counting ----------------------------------------------------------------------------------------------- */

TEST("every end of a connection has a name of its own, fit for a label")
{
    for (unsigned i = 0; i < PROXY_END_COUNT; i++) {
        const char *name = proxy_end_name((enum proxy_end)i);
        CHECK(name != NULL && *name != '\0');
        CHECK_EQ(strspn(name, "abcdefghijklmnopqrstuvwxyz_"), strlen(name));
        for (unsigned k = 0; k < i; k++)
            CHECK(strcmp(name, proxy_end_name((enum proxy_end)k)) != 0);
    }
    CHECK_STR(proxy_end_name(PROXY_END_COUNT), "?");
}

TEST("adding totals adds every figure that they have")
{
    reset();
    /* Behind the receipts there is nothing but counters. */
    size_t from = offsetof(struct proxy_totals, connections), count = (sizeof totals - from) / sizeof(uint64_t);
    CHECK_EQ((sizeof totals - from) % sizeof(uint64_t), 0);
    for (size_t i = 0; i < count; i++) {
        uint64_t a = 1000 + i, b = 7 * i + 1;
        memcpy((char *)&totals + from + i * sizeof a, &a, sizeof a);
        memcpy((char *)&other + from + i * sizeof b, &b, sizeof b);
    }
    for (unsigned i = 0; i < PROXY_DIRECTIONS; i++) {
        totals.receipts[i].bytes = 10 + i;
        other.receipts[i].bytes = 100 * (i + 1);
    }
    proxy_totals_add(&totals, &other);
    for (size_t i = 0; i < count; i++) {
        uint64_t value;
        memcpy(&value, (char *)&totals + from + i * sizeof value, sizeof value);
        CHECK_EQ(value, 1000 + i + 7 * i + 1);
    }
    CHECK_EQ(totals.receipts[0].bytes, 110);
    CHECK_EQ(totals.receipts[1].bytes, 211);
}

TEST("what a worker had open when it went has ended with it, and its totals are zero for the next one")
{
    static const struct proxy_totals zero;
    reset();
    other.connections = 5;
    other.open = 3;
    proxy_totals_ended(&other, PROXY_END_DONE);
    CHECK_EQ(other.open, 2);
    totals.open = 7;
    proxy_totals_fold(&totals, &other, PROXY_END_ERROR);
    CHECK_EQ(totals.connections, 5);
    CHECK_EQ(totals.open, 7);
    CHECK_EQ(totals.ended[PROXY_END_DONE], 1);
    CHECK_EQ(totals.ended[PROXY_END_ERROR], 2);
    CHECK(memcmp(&other, &zero, sizeof zero) == 0);
}

TEST("what a transfer did is counted by direction, its changes of route, too")
{
    reset();
    struct sluice_receipt receipt = {
        .bytes = 300,
        .copied = 100,
        .by_reference = 200,
        .fallback_count = 1,
        .fallbacks = {{SLUICE_ROUTE_SPLICE, SLUICE_ROUTE_COPY, 22, 0, "why"}},
    };
    proxy_totals_moved(&totals, PROXY_TO_CLIENT, &receipt);
    proxy_totals_moved(&totals, PROXY_TO_SERVER, &receipt);
    CHECK_EQ(totals.receipts[PROXY_TO_CLIENT].bytes, 300);
    CHECK_EQ(totals.receipts[PROXY_TO_SERVER].by_reference, 200);
    CHECK_EQ(totals.fallbacks.kinds[0].count, 2);
    reset();
    proxy_totals_add(&other, &totals);
    CHECK_EQ(other.fallbacks.kinds[0].count, 0);
    proxy_totals_moved(&totals, PROXY_TO_SERVER, &receipt);
    proxy_totals_add(&other, &totals);
    proxy_totals_add(&other, &totals);
    CHECK_EQ(other.fallbacks.kinds[0].count, 2);
}

/* ---- The text ----------------------------------------------------------------------------------------------- */

static struct proxy_server servers[] = {{.name = "10.0.0.1:5432", .weight = 1}, {.name = "unix:/run/x", .weight = 0}};
static struct proxy_service services[] = {
    {.name = "db", .servers = servers, .server_count = 2},
    {.name = "odd \"name\" \\ of\nlines", .servers = servers, .server_count = 1},
};
static struct service_state states[2];
static struct server_state server_states[2];

static char *text;

/* The text of both services, or of none. */
static void write_text(unsigned count)
{
    const struct proxy_totals_of of[] = {
        {&services[0], &totals, &states[0], server_states},
        {&services[1], &other, &states[1], server_states},
    };
    size_t length;
    free(text);
    text = NULL;
    FILE *out = open_memstream(&text, &length);
    proxy_totals_write(out, of, count);
    CHECK(!ferror(out));
    fclose(out);
    CHECK_EQ(strlen(text), length);
}

static bool has_line(const char *line)
{
    size_t length = strlen(line);
    for (const char *at = text; (at = strstr(at, line)) != NULL; at++)
        if ((at == text || at[-1] == '\n') && at[length] == '\n')
            return true;
    return false;
}

#define CHECK_LINE(line)                                                                                               \
    do {                                                                                                               \
        if (!has_line(line))                                                                                           \
            CHECK_FAIL("%s:%d: no line %s", __FILE__, __LINE__, line);                                                 \
    } while (0)

TEST("every figure has its line, with its labels")
{
    reset();
    memset(server_states, 0, sizeof server_states);
    totals.connections = 12;
    totals.open = 3;
    totals.ended[PROXY_END_CLIENT_RESET] = 2;
    totals.retries = 4;
    totals.accept_failures = 5;
    totals.mirrors = 6;
    totals.mirrors_lost = 7;
    totals.mirrored_bytes = 8;
    totals.receipts[PROXY_TO_SERVER] = (struct sluice_receipt){
        .bytes = UINT64_MAX, .by_reference = 20, .copied = 21, .unknown = 22, .copy_bytes = 23, .system_calls = 24};
    totals.receipts[PROXY_TO_SERVER].routes[SLUICE_ROUTE_SPLICE].bytes = 25;
    totals.receipts[PROXY_TO_CLIENT].routes[SLUICE_ROUTE_SENDFILE].bytes = 26;
    totals.fallbacks.kinds[0] = (struct fallback_kind){SLUICE_ROUTE_TEE, SLUICE_ROUTE_COPY, 22, "refused", 27};
    totals.fallbacks.other = 28;
    durations_enter(&totals.connecting, 400, 1);
    durations_enter(&totals.connecting, 2000, 1);
    durations_enter(&totals.connecting, 61900005, 1);
    states[0].waiting = 9;
    server_states[0].connections = 30;
    server_states[0].total = 31;
    server_states[0].failures = 32;
    server_states[0].checks = 33;
    server_states[0].checks_failed = 34;
    server_states[0].changes = 35;
    server_states[1].down = 1;
    write_text(2);

    CHECK_LINE("# TYPE sluice_proxy_connections_total counter");
    CHECK_LINE("sluice_proxy_connections_total{service=\"db\"} 12");
    CHECK_LINE("sluice_proxy_connections_total{service=\"odd \\\"name\\\" \\\\ of\\nlines\"} 0");
    CHECK_LINE("# TYPE sluice_proxy_open_connections gauge");
    CHECK_LINE("sluice_proxy_open_connections{service=\"db\"} 3");
    CHECK_LINE("sluice_proxy_ended_connections_total{service=\"db\",reason=\"client_reset\"} 2");
    CHECK_LINE("sluice_proxy_ended_connections_total{service=\"db\",reason=\"drained\"} 0");
    CHECK_LINE("sluice_proxy_accept_failures_total{service=\"db\"} 5");
    CHECK_LINE("sluice_proxy_queue_length{service=\"db\"} 9");
    CHECK_LINE("sluice_proxy_bytes_total{service=\"db\",direction=\"to_server\"} 18446744073709551615");
    CHECK_LINE("sluice_proxy_bytes_total{service=\"db\",direction=\"to_client\"} 0");
    CHECK_LINE("sluice_proxy_by_reference_bytes_total{service=\"db\",direction=\"to_server\"} 20");
    CHECK_LINE("sluice_proxy_copied_bytes_total{service=\"db\",direction=\"to_server\"} 21");
    CHECK_LINE("sluice_proxy_unknown_bytes_total{service=\"db\",direction=\"to_server\"} 22");
    CHECK_LINE("sluice_proxy_copy_bytes_total{service=\"db\",direction=\"to_server\"} 23");
    CHECK_LINE("sluice_proxy_transfer_system_calls_total{service=\"db\",direction=\"to_server\"} 24");
    CHECK_LINE("sluice_proxy_route_bytes_total{service=\"db\",direction=\"to_server\",route=\"splice\"} 25");
    CHECK_LINE("sluice_proxy_route_bytes_total{service=\"db\",direction=\"to_client\",route=\"splice\"} 0");
    CHECK_LINE("sluice_proxy_route_bytes_total{service=\"db\",direction=\"to_client\",route=\"sendfile\"} 26");
    CHECK(!has_line("sluice_proxy_route_bytes_total{service=\"db\",direction=\"to_server\",route=\"sendfile\"} 0"));
    CHECK_LINE(
        "sluice_proxy_fallbacks_total{service=\"db\",from=\"tee\",to=\"copy\",error=\"EINVAL\",reason=\"refused\"} 27");
    CHECK_LINE(
        "sluice_proxy_fallbacks_total{service=\"db\",from=\"other\",to=\"other\",error=\"other\",reason=\"other\"} 28");
    CHECK_LINE("# TYPE sluice_proxy_connect_duration_seconds histogram");
    CHECK_LINE("sluice_proxy_connect_duration_seconds_bucket{service=\"db\",le=\"0.0005\"} 1");
    CHECK_LINE("sluice_proxy_connect_duration_seconds_bucket{service=\"db\",le=\"0.001\"} 1");
    CHECK_LINE("sluice_proxy_connect_duration_seconds_bucket{service=\"db\",le=\"0.0025\"} 2");
    CHECK_LINE("sluice_proxy_connect_duration_seconds_bucket{service=\"db\",le=\"10\"} 2");
    CHECK_LINE("sluice_proxy_connect_duration_seconds_bucket{service=\"db\",le=\"+Inf\"} 3");
    CHECK_LINE("sluice_proxy_connect_duration_seconds_sum{service=\"db\"} 61.902405");
    CHECK_LINE("sluice_proxy_connect_duration_seconds_count{service=\"db\"} 3");
    CHECK_LINE("sluice_proxy_retries_total{service=\"db\"} 4");
    CHECK_LINE("sluice_proxy_server_up{service=\"db\",server=\"10.0.0.1:5432\"} 1");
    CHECK_LINE("sluice_proxy_server_up{service=\"db\",server=\"unix:/run/x\"} 0");
    CHECK_LINE("sluice_proxy_server_weight{service=\"db\",server=\"10.0.0.1:5432\"} 1");
    CHECK_LINE("sluice_proxy_server_weight{service=\"db\",server=\"unix:/run/x\"} 0");
    CHECK_LINE("sluice_proxy_server_open_connections{service=\"db\",server=\"10.0.0.1:5432\"} 30");
    CHECK_LINE("sluice_proxy_server_connections_total{service=\"db\",server=\"10.0.0.1:5432\"} 31");
    CHECK_LINE("sluice_proxy_server_connect_failures_total{service=\"db\",server=\"10.0.0.1:5432\"} 32");
    CHECK_LINE("sluice_proxy_server_checks_total{service=\"db\",server=\"10.0.0.1:5432\"} 33");
    CHECK_LINE("sluice_proxy_server_failed_checks_total{service=\"db\",server=\"10.0.0.1:5432\"} 34");
    CHECK_LINE("sluice_proxy_server_changes_total{service=\"db\",server=\"10.0.0.1:5432\"} 35");
    CHECK_LINE("sluice_proxy_mirror_connections_total{service=\"db\"} 6");
    CHECK_LINE("sluice_proxy_mirror_resets_total{service=\"db\"} 7");
    CHECK_LINE("sluice_proxy_mirror_bytes_total{service=\"db\"} 8");
}

TEST("as JSON: the sum of all services, and each of them with its servers")
{
    reset();
    memset(server_states, 0, sizeof server_states);
    totals.connections = 12;
    totals.ended[PROXY_END_DONE] = 5;
    totals.ended[PROXY_END_ERROR] = 2;
    totals.receipts[PROXY_TO_CLIENT].bytes = 7;
    other.connections = 30;
    other.open = 4;
    other.ended[PROXY_END_QUEUE_TIMEOUT] = 1;
    server_states[1].down = 1;
    const struct proxy_totals_of of[] = {
        {&services[0], &totals, &states[0], server_states},
        {&services[1], &other, &states[1], server_states},
    };
    size_t length;
    free(text);
    text = NULL;
    FILE *out = open_memstream(&text, &length);
    proxy_totals_write_json(out, of, 2);
    fclose(out);
    CHECK(strstr(text, "{\"connections\": 42, \"open\": 4, \"failures\": 3, \"timeouts\": 1, "
                       "\"accept_failures\": 0, \"durations\": {\"bounds\": [") == text);
    CHECK(strstr(text, "\"receipt\": {\"pages\":\"none\",\"bytes\":7,") != NULL);
    CHECK(strstr(text, "\"services\": [\n{\"name\": \"db\", \"connections\": 12, \"open\": 0, ") != NULL);
    CHECK(strstr(text, "{\"name\": \"unix:/run/x\", \"up\": false, ") != NULL);
    CHECK(strstr(text, "{\"name\": \"odd \\\"name\\\" \\\\ of\\u000alines\", ") != NULL);
}

/* The rules of the text format that a scrape fails by: samples of one metric together, behind one HELP and one TYPE; no
 * sample twice; every line ends. And of the conventions: what counts up ends in _total, and nothing else does. */
TEST("the text keeps the format's rules, with any number of services")
{
    static char seen[500][256];
    reset();
    for (unsigned count = 0; count <= 2; count++) {
        write_text(count);
        CHECK(*text == '\0' || text[strlen(text) - 1] == '\n');
        char metric[64] = "", type[16] = "", help[64] = "";
        char metrics[64][64];
        unsigned metric_count = 0, samples = 0;
        char *copy = strdup(text), *rest = copy;
        for (char *line; (line = strsep(&rest, "\n")) != NULL && *line != '\0';) {
            if (strncmp(line, "# HELP ", 7) == 0) {
                CHECK_EQ(sscanf(line, "# HELP %63s", help), 1);
                CHECK(line[strlen(line) - 1] == '.');
                continue;
            }
            if (line[0] == '#') {
                CHECK_EQ(sscanf(line, "# TYPE %63s %15s", metric, type), 2);
                CHECK_STR(metric, help);
                for (unsigned i = 0; i < metric_count; i++)
                    CHECK(strcmp(metrics[i], metric) != 0);
                CHECK(metric_count < 64);
                strcpy(metrics[metric_count++], metric);
                bool total = strcmp(metric + strlen(metric) - 6, "_total") == 0;
                CHECK_EQ(total, strcmp(type, "counter") == 0);
                continue;
            }
            const char *labels = strchr(line, '{'), *value = strrchr(line, ' ');
            CHECK(labels != NULL && value != NULL && labels < value && value[-1] == '}');
            const char *suffix = line + strlen(metric);
            CHECK(strncmp(line, metric, strlen(metric)) == 0);
            bool histogram = strcmp(type, "histogram") == 0 &&
                             (strncmp(suffix, "_bucket{", 8) == 0 || strncmp(suffix, "_sum{", 5) == 0 ||
                              strncmp(suffix, "_count{", 7) == 0);
            CHECK(suffix == labels || histogram);
            CHECK_EQ(strspn(value + 1, "0123456789."), strlen(value + 1));
            size_t length = (size_t)(value - line);
            CHECK(length < sizeof seen[0] && samples < 500);
            for (unsigned i = 0; i < samples; i++)
                CHECK(strncmp(seen[i], line, length) != 0 || seen[i][length] != '\0');
            snprintf(seen[samples++], sizeof seen[0], "%.*s", (int)length, line);
        }
        free(copy);
        CHECK(count == 0 ? samples == 0 : samples > 50 * count);
    }
}

CHECK_MAIN()
