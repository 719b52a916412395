/* SPDX-License-Identifier: MIT
 *
 * Counters that are more than one number, and what Prometheus and JSON show of them.
 */
#include "service/counts.h"
#include "check.h"
#include "service/prometheus.h"
#include "service/status.h"
#include <errno.h>

static char text[1 << 14];

static FILE *begin(void)
{
    FILE *out = fmemopen(text, sizeof text, "w");
    if (out == NULL)
        abort();
    return out;
}

TEST("a duration is counted in the bucket whose bound it does not exceed")
{
    struct durations durations = {0}, sum = {0};
    durations_enter(&durations, 0, 1);
    durations_enter(&durations, 500, 2);
    durations_enter(&durations, 501, 4);
    durations_enter(&durations, 10000000, 8);
    durations_enter(&durations, 10000001, 16);
    CHECK_EQ(durations.buckets[0], 3);
    CHECK_EQ(durations.buckets[1], 4);
    CHECK_EQ(durations.buckets[13], 8);
    CHECK_EQ(durations.buckets[14], 16);
    CHECK_EQ(durations.sum_us, 2 * 500 + 4 * 501 + 8 * 10000000ull + 16 * 10000001ull);
    durations_add(&sum, &durations);
    durations_add(&sum, &durations);
    CHECK_EQ(sum.buckets[14], 32);
    CHECK_EQ(sum.sum_us, 2 * durations.sum_us);
}

static struct sluice_receipt with_fallbacks(unsigned count, const char *reason)
{
    struct sluice_receipt receipt = {.fallback_count = count};
    for (unsigned i = 0; i < count && i < SLUICE_RECEIPT_FALLBACKS; i++)
        receipt.fallbacks[i] = (struct sluice_fallback){
            .from = SLUICE_ROUTE_SENDFILE, .to = SLUICE_ROUTE_COPY, .error = EINVAL, .reason = reason};
    return receipt;
}

TEST("changes of route are counted by kind; what is too much for a receipt or the table is counted as others")
{
    static const char reasons[FALLBACK_KINDS + 2][2] = {"a"};
    struct fallbacks fallbacks = {0}, sum = {0};
    struct sluice_receipt receipt = with_fallbacks(SLUICE_RECEIPT_FALLBACKS + 3, reasons[0]);
    fallbacks_enter(&fallbacks, &receipt);
    CHECK_EQ(fallbacks.kinds[0].count, SLUICE_RECEIPT_FALLBACKS);
    CHECK_EQ(fallbacks.kinds[1].count, 0);
    CHECK_EQ(fallbacks.other, 3);
    for (unsigned i = 0; i < FALLBACK_KINDS + 2; i++) {
        receipt = with_fallbacks(1, reasons[i]);
        fallbacks_enter(&fallbacks, &receipt);
    }
    CHECK_EQ(fallbacks.kinds[0].count, SLUICE_RECEIPT_FALLBACKS + 1);
    CHECK_EQ(fallbacks.kinds[FALLBACK_KINDS - 1].count, 1);
    CHECK_EQ(fallbacks.other, 5);
    fallbacks_add(&sum, &fallbacks);
    fallbacks_add(&sum, &fallbacks);
    CHECK_EQ(sum.kinds[0].count, 2 * (SLUICE_RECEIPT_FALLBACKS + 1));
    CHECK_EQ(sum.other, 10);
}

TEST("Prometheus gets each metric with its help and type, its labels escaped, seconds with a point")
{
    struct fallbacks fallbacks = {0};
    struct durations durations = {0};
    struct sluice_receipt receipt = with_fallbacks(1, "says \"no\"\n\\");
    fallbacks_enter(&fallbacks, &receipt);
    durations_enter(&durations, 1500000, 2);
    struct prometheus prometheus = {.out = begin(), .prefix = "p_"};
    prometheus_begin(&prometheus, "x_total", "counter", "What it is.");
    prometheus_value(&prometheus, NULL, NULL, 7);
    prometheus_value(&prometheus, PROMETHEUS_LABELS({"a", "1"}, {"b", "2"}), PROMETHEUS_LABELS({"c", "\\\"\n"}), 8);
    prometheus_begin(&prometheus, "y_seconds_total", "counter", "Time.");
    prometheus_seconds(&prometheus, PROMETHEUS_LABELS({"a", "1"}), 1000001);
    prometheus_fallbacks(&prometheus, &(struct prometheus_fallbacks){.fallbacks = &fallbacks}, 1);
    prometheus_histogram(&prometheus, "z_seconds", "Z.", &(struct prometheus_durations){.durations = &durations}, 1);
    fclose(prometheus.out);
    static const char expected[] =
        "# HELP p_x_total What it is.\n# TYPE p_x_total counter\np_x_total 7\n"
        "p_x_total{a=\"1\",b=\"2\",c=\"\\\\\\\"\\n\"} 8\n"
        "# HELP p_y_seconds_total Time.\n# TYPE p_y_seconds_total counter\np_y_seconds_total{a=\"1\"} 1.000001\n";
    CHECK_EQ(strncmp(text, expected, strlen(expected)), 0);
    CHECK(strstr(text, "\np_fallbacks_total{from=\"sendfile\",to=\"copy\",error=\"EINVAL\","
                       "reason=\"says \\\"no\\\"\\n\\\\\"} 1\n") != NULL);
    CHECK(strstr(text, "\np_z_seconds_bucket{le=\"1\"} 0\np_z_seconds_bucket{le=\"2.5\"} 2\n") != NULL);
    CHECK(strstr(text, "\np_z_seconds_bucket{le=\"+Inf\"} 2\np_z_seconds_sum 3.000000\np_z_seconds_count 2\n") != NULL);
}

TEST("bytes are shown by what became of them and by route, usual routes at 0, too")
{
    struct sluice_receipt receipt = {.bytes = 10, .by_reference = 6, .copied = 4, .copy_bytes = 8};
    receipt.routes[SLUICE_ROUTE_DIRECT].bytes = 4;
    struct prometheus prometheus = {.out = begin(), .prefix = ""};
    prometheus_receipts(&prometheus, &(struct prometheus_receipt){.receipt = &receipt}, 1, "sent",
                        1u << SLUICE_ROUTE_SENDFILE);
    fclose(prometheus.out);
    CHECK(strstr(text, "# HELP bytes_total Bytes sent.\n# TYPE bytes_total counter\nbytes_total 10\n") == text);
    CHECK(strstr(text, "\ncopy_bytes_total 8\n") != NULL);
    CHECK(strstr(text, "\nroute_bytes_total{route=\"sendfile\"} 0\nroute_bytes_total{route=\"direct\"} 4\n") != NULL);
    CHECK(strstr(text, "route=\"splice\"") == NULL);
}

struct values {
    const char *name;
    uint64_t count, time, size;
    struct option_list list;
    unsigned choice;
    bool on;
    uint64_t limit;
};

static void write_nothing(void *context, FILE *out, const struct tally_worker *worker)
{
    (void)context;
    fputs(worker == NULL ? "{}" : "{\"of\": 1}", out);
}

static void add_nothing(void *sum, const void *part)
{
    (void)sum, (void)part;
}

TEST("a status shows the configuration in force, option by option, and each worker")
{
    static const char *const choices[] = {"low", "high", NULL};
    static const struct option_spec options[] = {
        {.type = OPTION_HEADING, .help = "All"},
        {"name", 0, "N", "", OPTION_TEXT, offsetof(struct values, name), .default_text = NULL},
        {"count", 0, "N", "", OPTION_UNSIGNED, offsetof(struct values, count), .default_text = NULL},
        {"time", 0, "N", "", OPTION_DURATION, offsetof(struct values, time), .default_text = NULL},
        {"size", 0, "N", "", OPTION_SIZE, offsetof(struct values, size), .default_text = NULL},
        {"limit", 0, "N", "", OPTION_UNSIGNED, offsetof(struct values, limit), .min = 1},
        {"list", 0, "N", "", OPTION_LIST, offsetof(struct values, list), .default_text = NULL},
        {"choice", 0, "N", "", OPTION_CHOICE, offsetof(struct values, choice), .choices = choices},
        {"on", 0, NULL, "", OPTION_FLAG, offsetof(struct values, on), .default_text = NULL},
        {.type = OPTION_END},
    };
    const char *items[] = {"x", "\"y\""};
    struct values values = {"n", 3, 1500, 4096, {items, 2}, 1, true, 0};
    struct tally tally;
    CHECK_EQ(tally_create(&tally, 2, 8, add_nothing), 0);
    tally_begin(&tally, &(struct worker){.slot = 1, .index = 4, .reloads = 2});
    const struct status status = {
        .program = "a program",
        .options = options,
        .values = &values,
        .reloads = 2,
        .tally = &tally,
        .write_totals = write_nothing,
    };
    FILE *out = begin();
    status_write(out, &status);
    fclose(out);
    CHECK(strstr(text, "{\"program\": \"a program\", \"version\": \"") == text);
    CHECK(strstr(text, "\"about\": null, \"now\": ") != NULL);
    CHECK(
        strstr(
            text,
            "\"crashes\": 0, \"reloads\": 2,\n\"configuration\": {\"name\": \"n\", \"count\": 3, "
            "\"time\": 1.500, \"size\": 4096, \"limit\": null, \"list\": [\"x\", \"\\\"y\\\"\"], \"choice\": \"high\", "
            "\"on\": true},\n\"totals\": {},\n\"workers\": [\n{\"index\": 4, \"pid\": ") != NULL);
    CHECK(strstr(text, "\"reloads\": 2, \"up_seconds\": 0.") != NULL);
    CHECK(strstr(text, "\"totals\": {\"of\": 1}}]}\n") != NULL);
    tally_destroy(&tally);
}

TEST("a status shows durations and changes of route as JSON")
{
    struct fallbacks fallbacks = {.other = 2};
    struct durations durations = {0};
    struct sluice_receipt receipt = with_fallbacks(1, "a \"b\"");
    fallbacks_enter(&fallbacks, &receipt);
    durations_enter(&durations, 2500000, 1);
    FILE *out = begin();
    status_write_fallbacks(out, &fallbacks);
    status_write_durations(out, &durations);
    fclose(out);
    CHECK_STR(text, "[{\"from\": \"sendfile\", \"to\": \"copy\", \"error\": \"EINVAL\", \"reason\": \"a \\\"b\\\"\", "
                    "\"count\": 1}, {\"from\": null, \"to\": null, \"error\": null, \"reason\": null, \"count\": 2}]"
                    "{\"bounds\": [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10], "
                    "\"counts\": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], \"sum_seconds\": 2.500000}");
}

CHECK_MAIN()
