/* SPDX-License-Identifier: MIT */
#include "findings.h"
#include "format.h"
#include "mechanism.h"
#include "report.h"
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>

/* Any failure of jansson's constructors is one of memory: they return NULL, which the next function up takes for a
 * failure of its own and frees what it was given. The root is NULL at the end then. */

static json_t *text(const char *string)
{
    /* Names come from anywhere. What is not UTF-8 becomes \xHH; jansson escapes the rest. */
    json_t *valid = json_string(string);
    if (valid != NULL)
        return valid;
    static const struct format_symbols unicode = {.unicode = true};
    char printable[4 * 512];
    return json_string(format_printable(string, &unicode, printable, sizeof printable));
}

static json_t *integer(uint64_t value)
{
    return json_integer(value > INT64_MAX ? INT64_MAX : (json_int_t)value);
}

static json_t *known_integer(bool known, uint64_t value)
{
    return known ? integer(value) : json_null();
}

/* Numbers, null when whole is 0. */
static json_t *ratio(double part, double whole)
{
    return whole > 0 ? json_real(part / whole) : json_null();
}

static json_t *end_object(const struct account *account, uint32_t id)
{
    const struct account_end *end = id != 0 ? account_end(account, id) : NULL;
    const char *kind = id == 0       ? mechanism_end_kind_name(TRACE_END_MEMORY)
                       : end == NULL ? "unknown"
                                     : mechanism_end_kind_name((enum trace_end_kind)end->key.kind);
    json_t *object = json_pack("{s:o, s:o}", "kind", text(kind), "name", text(format_end_name(account, id)));
    if (object == NULL || end == NULL || end->key.device == 0)
        return object;
    char device[32];
    snprintf(device, sizeof device, "%" PRIu32 ":%" PRIu32, end->key.device >> 20, end->key.device & 0xfffff);
    if (json_object_set_new(object, "device", json_string(device)) < 0 ||
        json_object_set_new(object, "inode", integer(end->key.inode)) < 0) {
        json_decref(object);
        return NULL;
    }
    return object;
}

static json_t *process_object(const struct account_process *process)
{
    bool sampled = process->samples > 0;
    uint64_t copying = process->samples_copying_kernel + process->samples_copying_user;
    return json_pack("{s:o, s:o, s:o, s:b, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "pid", integer(process->pid), "parent",
                     known_integer(process->parent != 0, process->parent), "comm", text(process->comm), "exited",
                     process->exited, "system_calls", known_integer(process->system_calls != 0, process->system_calls),
                     "cpu_ns", known_integer(process->cpu_ns != 0, process->cpu_ns), "samples",
                     integer(process->samples), "samples_copying_kernel",
                     known_integer(sampled, process->samples_copying_kernel), "samples_copying_user",
                     known_integer(sampled, process->samples_copying_user), "samples_transforming",
                     known_integer(sampled, process->samples_transforming), "copying_share",
                     ratio((double)copying, (double)process->samples));
}

static json_t *flow_object(const struct account *account, const struct account_row *row)
{
    const struct trace_flow_key *key = &row->key;
    const struct account_process *process = account_process(account, key->pid);
    uint64_t transitions = 0;
    bool transitions_known = format_transitions_per_gib(row, &transitions);
    return json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "pid",
        integer(key->pid), "thread", known_integer(key->thread != 0, key->thread), "comm",
        text(process != NULL ? process->comm : ""), "source", end_object(account, key->source), "sink",
        end_object(account, key->sink), "mechanism", text(mechanism_name((enum trace_mechanism)key->mechanism)),
        "first", key->first != TRACE_NONE ? text(mechanism_name((enum trace_mechanism)key->first)) : json_null(), "way",
        key->way == TRACE_BY_RING ? "io_uring" : "call", "bytes", integer(row->value.bytes), "registered",
        integer(row->value.registered), "copied", integer(row->copy_bytes), "copies_per_byte",
        row->unknown_bytes > 0 ? json_null() : ratio((double)row->copy_bytes, (double)row->value.bytes), "unknown",
        integer(row->unknown_bytes), "evidence", text(account_evidence_name(row->evidence)), "copier",
        row->copier != NULL ? text(row->copier) : json_null(), "calls", integer(row->value.calls),
        "transitions_per_gib", known_integer(transitions_known, transitions));
}

/* Append, in which NULL is a failure. */
static int add(json_t *array, json_t *object)
{
    return json_array_append_new(array, object);
}

static int add_all(json_t *root, struct account *account, const struct report_options *options)
{
    json_t *processes = json_object_get(root, "processes"), *flows = json_object_get(root, "flows");
    json_t *callers = json_object_get(root, "callers"), *found = json_object_get(root, "findings");
    json_t *unattributed = json_object_get(root, "unattributed");
    int failed = 0;
    size_t count;

    struct finding findings[FINDINGS_MAX];
    count = findings_find(account, findings);
    for (size_t i = 0; i < count; i++)
        failed |= add(found, json_pack("{s:o, s:o, s:o, s:o}", "pid", integer(findings[i].pid), "bytes",
                                       integer(findings[i].bytes), "what", text(findings[i].what), "advice",
                                       findings[i].advice[0] != '\0' ? text(findings[i].advice) : json_null()));
    const struct account_process *process = account_processes(account, &count);
    for (size_t i = 0; i < count; i++)
        failed |= add(processes, process_object(&process[i]));
    const struct account_row *row = account_rows(account, options->threads, &count);
    for (size_t i = 0; i < count; i++)
        failed |= add(flows, flow_object(account, &row[i]));
    const struct account_caller *caller = account_callers(account, &count);
    for (size_t i = 0; i < count; i++)
        failed |= add(callers,
                      json_pack("{s:o, s:o, s:o, s:o}", "pid", integer(caller[i].pid), "copier", text(caller[i].copier),
                                "caller", text(caller[i].caller), "samples", integer(caller[i].samples)));
    const struct account_unattributed *copies = account_unattributed(account, &count);
    for (size_t i = 0; i < count; i++)
        failed |= add(unattributed, json_pack("{s:o, s:b, s:o, s:o}", "function",
                                              text(mechanism_function_name((enum trace_function)copies[i].function)),
                                              "in_calls", copies[i].in_calls, "calls", integer(copies[i].value.calls),
                                              "bytes", integer(copies[i].value.bytes)));
    return failed;
}

int report_json(FILE *stream, struct account *account, const struct report_options *options)
{
    const struct trace_lost *lost = account_lost(account);
    const char tier[2] = {(char)account_tier(account), '\0'};
    json_t *lost_object =
        json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "flow_bytes", integer(lost->flows), "flow_calls",
                  integer(lost->flow_calls), "copy_bytes", integer(lost->copies), "ends", integer(lost->ends), "events",
                  integer(lost->events), "threads", integer(lost->threads), "foreign_calls", integer(lost->foreign),
                  "messages", integer(lost->messages), "missed", integer(lost->missed));
    json_t *root = json_pack("{s:s, s:f, s:f, s:o, s:[], s:[], s:[], s:[], s:[], s:o}", "tier", tier, "elapsed_seconds",
                             (double)account_elapsed_ns(account) / 1e9, "counted_seconds",
                             (double)account_counted_ns(account) / 1e9, "notice",
                             options->notice != NULL ? text(options->notice) : json_null(), "processes", "flows",
                             "callers", "findings", "unattributed", "lost", lost_object);
    int result = -ENOMEM;
    if (root != NULL && add_all(root, account, options) == 0)
        result = json_dumpf(root, stream, JSON_COMPACT) == 0 && fputc('\n', stream) != EOF ? 0 : -EIO;
    json_decref(root);
    return result;
}
