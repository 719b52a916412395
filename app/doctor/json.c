/* SPDX-License-Identifier: MIT */
#include "doctor/report.h"
#include "trace/format.h"

#include <errno.h>
#include <jansson.h>

/* As in trace/json.c: a failure of jansson's constructors is one of memory, and the root is NULL at the end then. */

static json_t *text(const char *string)
{
    json_t *valid = json_string(string);
    if (valid != NULL)
        return valid;
    static const struct format_symbols unicode = {.unicode = true}; /* a path need not be UTF-8 */
    char printable[4 * PATH_MAX];
    return json_string(format_printable(string, &unicode, printable, sizeof printable));
}

static json_t *text_or_null(const char *string)
{
    return string != NULL && string[0] != '\0' ? text(string) : json_null();
}

static json_t *size(uint64_t bytes)
{
    return bytes > INT64_MAX ? json_null() : json_integer((json_int_t)bytes);
}

static int print(FILE *stream, json_t *root)
{
    if (root == NULL)
        return -ENOMEM;
    int result = json_dumpf(root, stream, JSON_COMPACT);
    json_decref(root);
    fputc('\n', stream);
    return result < 0 ? -EIO : 0;
}

int report_findings_json(FILE *stream, const struct findings *findings)
{
    json_t *list = json_array();
    int problems = 0;
    for (size_t i = 0; i < findings->count; i++) {
        const struct finding *finding = &findings->items[i];
        problems += finding->level == FINDING_PROBLEM;
        json_array_append_new(list, json_pack("{s:s, s:s, s:o, s:o, s:o}", "level", finding_level_name(finding->level),
                                              "check", finding->check, "what", text(finding->what), "why",
                                              text_or_null(finding->why), "remedy", text_or_null(finding->remedy)));
    }
    return print(stream, json_pack("{s:o, s:i}", "findings", list, "problems", problems));
}

static json_t *device(const struct sluice_egress *egress)
{
    if (!egress->known)
        return json_null();
    return json_pack("{s:o, s:o, s:b, s:b, s:b, s:b}", "name", text_or_null(egress->name), "driver",
                     text_or_null(egress->driver), "scatter_gather", egress->scatter_gather, "checksum",
                     egress->checksum, "segmentation", egress->segmentation, "loopback", egress->loopback);
}

static json_t *place(const struct place *place)
{
    return json_pack("{s:s, s:b, s:o, s:o, s:o, s:o}", "kind", sluice_end_kind_name(place->kind), "given", place->given,
                     "file_system", text_or_null(place->file_system), "directory", text_or_null(place->directory),
                     "device", device(&place->egress), "peer", text_or_null(place->peer));
}

static json_t *rung_object(const struct rung *rung)
{
    static const char *const verdicts[] = {
        [SLUICE_NEVER] = "never", [SLUICE_NOT_NOW] = "not now", [SLUICE_YES] = "yes"};
    const struct sluice_plan_entry *plan = &rung->plan;
    const struct sluice_receipt *receipt = &rung->receipt;
    const struct sluice_fallback *fallback = receipt->fallback_count > 0 ? &receipt->fallbacks[0] : NULL;
    enum sluice_evidence evidence = receipt->routes[plan->route].evidence;
    bool works = rung->tried && rung->result == 0;
    char error[256] = "";
    if (rung->tried && !works)
        sluice_error_format(&rung->error, error, sizeof error);
    json_t *object =
        json_pack("{s:s, s:b, s:s, s:o, s:o, s:b, s:b, s:o, s:o}", "route", sluice_route_name(plan->route), "chosen",
                  rung->chosen, "verdict", verdicts[plan->verdict], "why_not", text_or_null(plan->reason), "pays_from",
                  size(plan->from), "learned", plan->learned, "tried", rung->tried, "copied",
                  works ? text(report_fate(receipt)) : json_null(), "evidence",
                  works && evidence != SLUICE_EVIDENCE_NONE ? text(sluice_evidence_name(evidence)) : json_null());
    json_t *figures = json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "bytes", works ? size(receipt->bytes) : json_null(), "carried",
        works ? size(receipt->routes[plan->route].bytes) : json_null(), "by_reference",
        works ? size(receipt->by_reference) : json_null(), "copied_bytes", works ? size(receipt->copied) : json_null(),
        "copy_bytes", works ? size(receipt->copy_bytes) : json_null(), "unknown",
        works ? size(receipt->unknown) : json_null(), "error", text_or_null(error), "gave_way_to",
        works && fallback != NULL ? text(sluice_route_name(fallback->to)) : json_null(), "gave_way_why",
        works && fallback != NULL ? text_or_null(fallback->reason) : json_null());
    if (object != NULL && figures != NULL)
        json_object_update(object, figures);
    json_decref(figures);
    return object;
}

static json_t *pair_object(const struct ladder_pair *pair)
{
    json_t *routes = json_array();
    for (unsigned i = 0; i < pair->count; i++)
        json_array_append_new(routes, rung_object(&pair->rungs[i]));
    return json_pack("{s:o, s:o, s:i, s:b, s:o, s:o}", "source", place(&pair->source), "sink", place(&pair->sink),
                     "sinks", (int)pair->sinks, "io_uring", pair->ring, "bytes", size(pair->length), "routes", routes);
}

int report_ladder_json(FILE *stream, const struct ladder *ladder, const struct crossovers *crossovers)
{
    json_t *pairs = json_array(), *learned = json_array();
    for (size_t i = 0; i < ladder->count; i++)
        json_array_append_new(pairs, pair_object(&ladder->pairs[i]));
    for (size_t i = 0; i < crossovers->count; i++) {
        const struct sluice_crossover *item = &crossovers->items[i];
        json_array_append_new(learned,
                              json_pack("{s:s, s:s, s:s, s:o, s:o, s:o, s:b}", "route", sluice_route_name(item->route),
                                        "source", sluice_end_kind_name(item->source), "sink",
                                        sluice_end_kind_name(item->sink), "device", device(&item->device), "pays_from",
                                        size(item->from), "samples", size(item->samples), "closed", item->closed));
    }
    return print(stream,
                 json_pack("{s:o, s:o, s:o, s:o}", "ladder", pairs, "io_uring_missing", text_or_null(ladder->no_ring),
                           "crossovers", learned, "crossovers_not_loaded", text_or_null(crossovers->not_loaded)));
}
