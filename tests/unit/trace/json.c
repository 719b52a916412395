/* SPDX-License-Identifier: MIT */
#include "base/cleanup.h"
#include "check.h"
#include "invented.h"
#include "trace/report.h"
#include <jansson.h>
#include <sys/wait.h>

static char *line_of(struct account *account)
{
    char *text = NULL;
    size_t size;
    FILE *stream = open_memstream(&text, &size);
    int error = report_json(stream, account, &(struct report_options){.notice = "a \"notice\""});
    fclose(stream);
    CHECK_EQ(error, 0);
    return text;
}

static json_t *parsed(struct account *account)
{
    CLEANUP_FREE char *text = line_of(account);
    json_error_t error;
    json_t *root = json_loads(text, 0, &error);
    if (root == NULL)
        CHECK_FAIL("%s at column %d", error.text, error.column);
    return root;
}

static void cleanup_json(json_t **json)
{
    json_decref(*json);
}
#define CLEANUP_JSON __attribute__((cleanup(cleanup_json)))

static json_t *flow_with(json_t *root, const char *mechanism, const char *first)
{
    size_t i;
    json_t *flow;
    json_array_foreach(json_object_get(root, "flows"), i, flow)
    {
        json_t *brought = json_object_get(flow, "first");
        if (strcmp(json_string_value(json_object_get(flow, "mechanism")), mechanism) == 0 &&
            (first == NULL ? json_is_null(brought)
                           : json_is_string(brought) && strcmp(json_string_value(brought), first) == 0))
            return flow;
    }
    CHECK_FAIL("no flow by %s", mechanism);
}

static const char *name_of(json_t *flow, const char *end)
{
    return json_string_value(json_object_get(json_object_get(flow, end), "name"));
}

TEST("the report is one line")
{
    CLEANUP_ACCOUNT struct account *account = invented();
    CLEANUP_FREE char *text = line_of(account);
    CHECK(strchr(text, '\n') == text + strlen(text) - 1);
}

TEST("it has the members that report.h names")
{
    static const char *const names[] = {"tier",  "elapsed_seconds", "counted_seconds", "notice",       "processes",
                                        "flows", "callers",         "findings",        "unattributed", "lost"};
    static const char *const flow_names[] = {
        "pid",       "thread", "comm",  "source",  "sink",   "first",    "mechanism",       "way",
        "bytes",     "copied", "calls", "unknown", "copier", "evidence", "copies_per_byte", "transitions_per_gib",
        "registered"};
    CLEANUP_ACCOUNT struct account *account = invented();
    CLEANUP_JSON json_t *root = parsed(account);
    CHECK_EQ(json_object_size(root), sizeof names / sizeof names[0]);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        CHECK(json_object_get(root, names[i]) != NULL);
    json_t *flow = json_array_get(json_object_get(root, "flows"), 0);
    CHECK_EQ(json_object_size(flow), sizeof flow_names / sizeof flow_names[0]);
    for (size_t i = 0; i < sizeof flow_names / sizeof flow_names[0]; i++)
        CHECK(json_object_get(flow, flow_names[i]) != NULL);
    CHECK_STR(json_string_value(json_object_get(root, "tier")), "b");
    CHECK_STR(json_string_value(json_object_get(root, "notice")), "a \"notice\"");
    CHECK_EQ(json_object_size(json_object_get(root, "lost")), 9);
    json_t *caller = json_array_get(json_object_get(root, "callers"), 0);
    CHECK_STR(json_string_value(json_object_get(caller, "caller")), "send (nginx)");
    CHECK_EQ(json_integer_value(json_object_get(caller, "samples")), 270);
}

TEST("a flow's figures: integers for bytes, copies per byte, evidence and ends")
{
    CLEANUP_ACCOUNT struct account *account = invented();
    CLEANUP_JSON json_t *root = parsed(account);
    json_t *flow = flow_with(root, "send", "read");
    CHECK(json_is_integer(json_object_get(flow, "bytes")) && json_is_integer(json_object_get(flow, "copied")));
    CHECK_EQ(json_integer_value(json_object_get(flow, "bytes")), INT64_C(3) << 30);
    CHECK_EQ(json_integer_value(json_object_get(flow, "copied")), INT64_C(6) << 30);
    CHECK(json_real_value(json_object_get(flow, "copies_per_byte")) == 2.0);
    CHECK_STR(json_string_value(json_object_get(flow, "evidence")), "by definition");
    CHECK_STR(json_string_value(json_object_get(flow, "way")), "call");
    CHECK_STR(name_of(flow, "source"), INVENTED_LONG_NAME);
    CHECK_STR(json_string_value(json_object_get(json_object_get(flow, "source"), "kind")), "file");
    CHECK_STR(json_string_value(json_object_get(json_object_get(flow, "source"), "device")), "8:1");
    CHECK_EQ(json_integer_value(json_object_get(json_object_get(flow, "source"), "inode")), 100 + INVENTED_LONG);
    CHECK_STR(name_of(flow, "sink"), "tcp :8080 (127.0.0.1)");
    CHECK_EQ(json_integer_value(json_object_get(flow, "transitions_per_gib")), 32769);
}

TEST("what is not known is null: copies per byte, CPU time, shares")
{
    CLEANUP_ACCOUNT struct account *account = invented();
    CLEANUP_JSON json_t *root = parsed(account);
    json_t *flow = flow_with(root, "read", NULL);
    CHECK(json_is_null(json_object_get(flow, "copies_per_byte")));
    CHECK_EQ(json_integer_value(json_object_get(flow, "unknown")), 50 << 20);
    CHECK_STR(json_string_value(json_object_get(flow, "evidence")), "unknown");
    CHECK_STR(name_of(flow, "sink"), "memory");
    size_t i;
    json_t *process;
    unsigned unknown = 0;
    json_array_foreach(json_object_get(root, "processes"), i, process)
    {
        bool sampled = json_integer_value(json_object_get(process, "pid")) == 1234;
        json_t *share = json_object_get(process, "copying_share"), *cpu = json_object_get(process, "cpu_ns");
        CHECK(sampled ? json_real_value(share) == 0.41 : json_is_null(share));
        CHECK(sampled ? json_integer_value(cpu) == 700000000 : json_is_null(cpu));
        unknown += !sampled;
    }
    CHECK_EQ(unknown, 2);
}

TEST("names that are not UTF-8 are escaped, others stay as they are")
{
    CLEANUP_ACCOUNT struct account *account = invented();
    CLEANUP_JSON json_t *root = parsed(account);
    CHECK_STR(name_of(flow_with(root, "write", "read"), "sink"),
              "/tmp/bad\\xff\\xfe\\x0a\\x1b[2J\\xe2\\x80\\xae\"\\name");
    CHECK_STR(name_of(flow_with(root, "sendfile", NULL), "source"), "/srv/www/日本語/ファイル名.txt");
}

TEST("Python's json reads the same figures from it")
{
    CLEANUP_ACCOUNT struct account *account = invented();
    CLEANUP_FREE char *text = line_of(account);
    FILE *python = popen("python3 -c 'import json, sys\n"
                         "report = json.loads(sys.stdin.buffer.read().decode())\n"
                         "sent = [f for f in report[\"flows\"] if f[\"mechanism\"] == \"send\"]\n"
                         "sys.exit(0 if [f[\"copied\"] for f in sent] == [6 << 30] else 3)'",
                         "w");
    CHECK(python != NULL);
    fputs(text, python);
    int status = pclose(python);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
        SKIP("no python3; install it");
    CHECK_EQ(status, 0);
}

CHECK_MAIN()
