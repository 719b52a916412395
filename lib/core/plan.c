/* SPDX-License-Identifier: MIT
 *
 * The order in which routes are tried. Every figure behind it is in KERNEL-FACTS 1, 3, 5, 9 and 15: references to pages
 * beat one copy, one copy beats two; between files, extents shared beat everything, and copy_file_range lets the file
 * system share them where FICLONERANGE is refused for the tail, or a server copy; where it could only copy, it says
 * "not now", and splice or, for small files, copy is cheaper. Small files to sockets are the exception: for up to
 * MMAP_WHOLE_FILE bytes one write of head and mapped body is as cheap as sendfile and saves a system call, so `mmap`
 * says "not now" to all but those.
 */
#include "plan.h"
#include "crossover.h"
#include "end.h"
#include "file_system.h"
#include "given.h"
#include <errno.h>
#include <string.h>

static const enum sluice_route preference[] = {
    SLUICE_ROUTE_REFLINK, SLUICE_ROUTE_VMSPLICE,        SLUICE_ROUTE_MSG_ZEROCOPY, SLUICE_ROUTE_URING_SEND_ZC,
    SLUICE_ROUTE_DIRECT,  SLUICE_ROUTE_COPY_FILE_RANGE, SLUICE_ROUTE_MMAP,         SLUICE_ROUTE_SENDFILE,
    SLUICE_ROUTE_TEE,     SLUICE_ROUTE_SPLICE,          SLUICE_ROUTE_COPY,         SLUICE_ROUTE_TCP_RECEIVE,
};
#define PREFERENCES (sizeof preference / sizeof *preference)

struct pair plan_pair(const struct sluice_segment *segment, struct sluice_end *sink, bool waits)
{
    struct pair pair = {
        .segment = segment->kind,
        .source = SLUICE_END_MEMORY,
        .sink = sluice_end_kind(sink),
        .append_sink = sink->append,
        .past_cache = sink->past_cache,
        .length = SLUICE_UNTIL_END,
    };
    if (segment->kind != SLUICE_SEGMENT_FILE) {
        struct sluice_egress egress;
        pair.length = segment->length;
        bool inet = sink->kind == SLUICE_END_TCP || sink->kind == SLUICE_END_DATAGRAM;
        if (inet && pair.length >= CROSSOVER_FLOOR && sluice_end_egress(sink, &egress) == 0)
            pair.egress = &sink->socket.egress;
    }
    if (segment->kind == SLUICE_SEGMENT_FILE && end_is_file(sink)) {
        uint64_t size = segment->end->file.size, rest = size > segment->offset ? size - segment->offset : 0;
        pair.length = segment->length < rest ? segment->length : rest;
    }
    if (segment->kind != SLUICE_SEGMENT_MEMORY) {
        pair.source = sluice_end_kind(segment->end);
        pair.snapshot = segment->end->flags & SLUICE_END_SNAPSHOT;
        pair.direct_source = segment->end->past_cache;
        pair.past_cache |= segment->end->past_cache;
        pair.tls_source = end_receives_tls(segment->end);
        if (end_is_file(segment->end))
            pair.file_size = segment->end->file.size;
    } else {
        pair.released = segment->release != NULL;
        pair.given = segment_is_given(segment) ? given_fate() : GIVEN_UNKNOWN;
        pair.is_given = segment_is_given(segment);
        if (pair.released)
            pair.lending = end_lending(sink, waits, &pair.lending_reason);
    }
    return pair;
}

uint32_t plan_between_files(struct pair *pair, const struct sluice_segment *segment, struct sluice_end *sink,
                            uint64_t *calls)
{
    if (pair->source != SLUICE_END_FILE || pair->sink != SLUICE_END_FILE)
        return 0;
    uint32_t refused = file_systems_refused(segment->end, sink, calls);
    pair->source_system = file_system_of(segment->end, calls);
    pair->sink_system = file_system_of(sink, calls);
    pair->without_reflink = refused & (1u << SLUICE_ROUTE_REFLINK);
    return refused;
}

/* As the route says, and for the size as the crossover says. *ret_from, *ret_learned: NULL, or where it begins to pay.
 */
static enum sluice_verdict assess(const struct route *route, const struct pair *pair, const char **ret_reason,
                                  uint64_t *ret_from, bool *ret_learned)
{
    enum sluice_verdict verdict = route->assess(pair, ret_reason);
    *ret_from = 0;
    *ret_learned = false;
    if (verdict != SLUICE_YES || route->pays_from == NULL)
        return verdict;
    *ret_from = crossover_from(route, pair, ret_learned);
    if (*ret_from != CROSSOVER_NEVER && pair->length >= *ret_from)
        return verdict;
    *ret_reason = crossover_reason(*ret_from, *ret_learned);
    return SLUICE_NOT_NOW;
}

const struct route *plan_choose(const struct pair *pair, unsigned without)
{
    const char *reason;
    uint64_t from;
    bool learned;
    const struct route *later = NULL;
    for (size_t i = 0; i < PREFERENCES; i++) {
        const struct route *route = route_registry[preference[i]];
        if (without & (1u << preference[i]))
            continue;
        enum sluice_verdict verdict = assess(route, pair, &reason, &from, &learned);
        if (verdict == SLUICE_YES)
            return route;
        if (verdict == SLUICE_NOT_NOW && later == NULL)
            later = route; /* dearer, but better than failing */
    }
    return later;
}

const struct route *plan_question(const struct pair *pair, const struct route *chosen)
{
    const char *reason;
    if (chosen->pays_from != NULL)
        return chosen;
    for (size_t i = 0; chosen->id == SLUICE_ROUTE_COPY && i < PREFERENCES; i++) {
        const struct route *route = route_registry[preference[i]];
        if (route->pays_from != NULL && route->assess(pair, &reason) == SLUICE_YES)
            return route;
    }
    return NULL;
}

static void add_entries(struct sluice_plan *plan, const struct pair *pair, const struct sluice_end *source,
                        const struct sluice_end *sink, enum sluice_verdict wanted)
{
    for (size_t i = 0; i < PREFERENCES; i++) {
        struct sluice_plan_entry entry = {.route = preference[i]};
        entry.verdict = assess(route_registry[preference[i]], pair, &entry.reason, &entry.from, &entry.learned);
        if (entry.verdict == SLUICE_YES && source != NULL && end_refused(sink, source, preference[i])) {
            entry.verdict = SLUICE_NOT_NOW;
            entry.reason = "this pair of ends refused it before";
        }
        if (entry.verdict == wanted)
            plan->entries[plan->count++] = entry;
    }
}

int plan_list(const struct sluice_segment *segment, struct sluice_end *sink, const struct plan_setting *setting,
              struct sluice_plan *ret_plan)
{
    if (segment->kind != SLUICE_SEGMENT_MEMORY && segment->end == NULL)
        return -EINVAL;
    struct pair pair = plan_pair(segment, sink, false);
    pair.fan_out = setting->fan_out && segment->kind == SLUICE_SEGMENT_STREAM;
    pair.transform = setting->transform;
    pair.ring = setting->ring;
    plan_between_files(&pair, segment, sink, &(uint64_t){0});
    pair.without_reflink = false; /* what was refused a moment ago is left out for a minute, but belongs to the plan */
    const struct sluice_end *source = segment->kind == SLUICE_SEGMENT_MEMORY ? NULL : segment->end;
    struct sluice_plan plan = {0};
    add_entries(&plan, &pair, source, sink, SLUICE_YES);
    add_entries(&plan, &pair, source, sink, SLUICE_NOT_NOW);
    add_entries(&plan, &pair, source, sink, SLUICE_NEVER);
    *ret_plan = plan;
    return 0;
}

int sluice_plan_make(const struct sluice_segment *segment, struct sluice_end *sink, struct sluice_plan *ret_plan)
{
    return plan_list(segment, sink, &(struct plan_setting){.ring = false}, ret_plan);
}

int sluice_route_check(enum sluice_route route, enum sluice_end_kind source, unsigned source_flags,
                       enum sluice_end_kind sink, size_t sinks, const char **ret_reason)
{
    const struct pair pair = {
        .segment = source == SLUICE_END_MEMORY                               ? SLUICE_SEGMENT_MEMORY
                   : source == SLUICE_END_FILE || source == SLUICE_END_BLOCK ? SLUICE_SEGMENT_FILE
                                                                             : SLUICE_SEGMENT_STREAM,
        .source = source,
        .sink = sink,
        .snapshot = source_flags & SLUICE_END_SNAPSHOT,
        .direct_source = source_flags & SLUICE_END_DIRECT,
        .past_cache = source_flags & SLUICE_END_DIRECT,
        .fan_out = sinks > 1 && source != SLUICE_END_MEMORY && source != SLUICE_END_FILE && source != SLUICE_END_BLOCK,
        .ring = true,
        .file_size = CROSSOVER_FLOOR,
        .length = SLUICE_UNTIL_END,
        .released = true,
        .is_given = true,
        .given = GIVEN_REFERRED_TO,
        .lending = SLUICE_YES,
    };
    const char *reason = NULL;
    if ((unsigned)route >= SLUICE_ROUTE_COUNT)
        return -EINVAL;
    if (route == SLUICE_ROUTE_AUTO || route_registry[route]->assess(&pair, &reason) != SLUICE_NEVER)
        return 0;
    if (ret_reason != NULL)
        *ret_reason = reason;
    return -EOPNOTSUPP;
}

const char *sluice_route_name(enum sluice_route route)
{
    if (route == SLUICE_ROUTE_AUTO)
        return "auto";
    return (unsigned)route < SLUICE_ROUTE_COUNT ? route_registry[route]->name : "?";
}

int sluice_route_by_name(const char *name)
{
    for (int i = 0; i < SLUICE_ROUTE_COUNT; i++)
        if (strcmp(sluice_route_name((enum sluice_route)i), name) == 0)
            return i;
    return -EINVAL;
}
