/* SPDX-License-Identifier: MIT */
#include "base/text.h"
#include "doctor/report.h"

#include <stdarg.h>
#include <string.h>

#define BOLD "\033[1m"
#define RED "\033[31m"
#define YELLOW "\033[33m"
#define GREEN "\033[32m"
#define DIM "\033[2m"
#define PLAIN "\033[0m"

static const char *colour(const struct page *page, const char *code)
{
    return page->colour ? code : "";
}

/* Text from column `at` on, broken at spaces, further lines indented to `indent`; ends the line. */
static void put_wrapped(const struct page *page, unsigned at, unsigned indent, const char *text)
{
    while (*text == ' ')
        text++;
    size_t room = page->width > at + 10 ? page->width - at : SIZE_MAX;
    size_t length = strlen(text);
    if (page->width == 0 || length <= room) {
        fprintf(page->stream, "%s\n", text);
        return;
    }
    size_t cut = room;
    while (cut > 0 && text[cut] != ' ')
        cut--;
    if (cut == 0)
        cut = strcspn(text, " ");
    fprintf(page->stream, "%.*s\n", (int)cut, text);
    if (text[cut] == '\0')
        return;
    fprintf(page->stream, "%*s", (int)indent, "");
    put_wrapped(page, indent, indent, text + cut);
}

/* ---- Findings --------------------------------------------------------------------------------------------------- */

static void report_level(const struct page *page, const struct findings *findings, enum finding_level level)
{
    static const char *const colours[] = {GREEN, YELLOW, YELLOW, RED};
    const unsigned indent = 9;
    for (size_t i = 0; i < findings->count; i++) {
        const struct finding *finding = &findings->items[i];
        if (finding->level != level)
            continue;
        fprintf(page->stream, "%s%-7s%s  ", colour(page, colours[level]), finding_level_name(level),
                colour(page, PLAIN));
        char line[512];
        snprintf(line, sizeof line, "%s: %s", finding->check, finding->what);
        put_wrapped(page, indent, indent, line);
        if (finding->why[0] != '\0') {
            fprintf(page->stream, "%*s", (int)indent, "");
            put_wrapped(page, indent, indent, finding->why);
        }
        if (finding->remedy[0] != '\0') {
            fprintf(page->stream, "%*s", (int)indent, "");
            snprintf(line, sizeof line, "What helps: %s", finding->remedy);
            put_wrapped(page, indent, indent, line);
        }
    }
}

void report_findings(const struct page *page, const struct findings *findings)
{
    unsigned counts[FINDING_PROBLEM + 1] = {0};
    for (int level = FINDING_PROBLEM; level >= 0; level--)
        report_level(page, findings, (enum finding_level)level);
    for (size_t i = 0; i < findings->count; i++)
        counts[findings->items[i].level]++;
    fprintf(page->stream, "\n%u problem%s, %u note%s, %u unknown, %u ok%s\n", counts[FINDING_PROBLEM],
            counts[FINDING_PROBLEM] == 1 ? "" : "s", counts[FINDING_NOTE], counts[FINDING_NOTE] == 1 ? "" : "s",
            counts[FINDING_UNKNOWN], counts[FINDING_OK],
            findings->lost ? "; some are missing: there was no memory for them" : "");
}

/* ---- The ladder ---------------------------------------------------------------------------------------------------
 */

const char *report_fate(const struct sluice_receipt *receipt)
{
    if (receipt->bytes == 0)
        return "-";
    if (receipt->by_reference == receipt->bytes)
        return "by reference";
    if (receipt->unknown == receipt->bytes)
        return "unknown";
    if (receipt->copied < receipt->bytes)
        return "copied in part";
    if (receipt->copy_bytes == receipt->bytes)
        return "copied once";
    if (receipt->copy_bytes < 2 * receipt->bytes)
        return "once or twice"; /* read once for several sinks */
    return receipt->copy_bytes == 2 * receipt->bytes ? "copied twice" : "copied more";
}

static const char *format_from(uint64_t from, char *text, size_t size)
{
    char number[TEXT_SIZE_MAX];
    if (from == SLUICE_NEVER_PAYS)
        snprintf(text, size, "never");
    else
        snprintf(text, size, "%s", text_format_size(from, number, sizeof number));
    return text;
}

__attribute__((format(printf, 3, 4))) static void append(char *text, size_t size, const char *format, ...)
{
    size_t used = strlen(text);
    if (used > 0 && used + 2 < size) {
        memcpy(text + used, "; ", 3);
        used += 2;
    }
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, size - used, format, arguments);
    va_end(arguments);
}

static void describe(const struct rung *rung, char *text, size_t size)
{
    char from[TEXT_SIZE_MAX];
    const struct sluice_plan_entry *plan = &rung->plan;
    text[0] = '\0';
    if (plan->verdict != SLUICE_YES)
        append(text, size, "%s: %s", plan->verdict == SLUICE_NEVER ? "never" : "not now",
               plan->reason != NULL ? plan->reason : "?");
    else if (plan->from != 0)
        append(text, size, "from %s on (%s)", format_from(plan->from, from, sizeof from),
               plan->learned ? "learned" : "default");
    if (rung->tried && rung->result < 0)
        append(text, size, "%s",
               rung->error.reason != NULL ? rung->error.reason : text_errno_meaning(rung->error.code));
    uint64_t carried = rung->receipt.routes[plan->route].bytes;
    char some[TEXT_SIZE_MAX], all[TEXT_SIZE_MAX];
    if (rung->tried && rung->result == 0 && rung->receipt.fallback_count == 0 && carried < rung->receipt.bytes)
        append(text, size, "tried, and carried %s of %s; the rest was copied",
               text_format_size(carried, some, sizeof some), text_format_size(rung->receipt.bytes, all, sizeof all));
    if (rung->tried && rung->result == 0 && rung->receipt.fallback_count > 0)
        append(text, size, "tried, and gave way to %s: %s%s%s%s", sluice_route_name(rung->receipt.fallbacks[0].to),
               rung->receipt.fallbacks[0].reason, rung->receipt.fallbacks[0].error != 0 ? " (" : "",
               rung->receipt.fallbacks[0].error != 0 ? text_errno_name(rung->receipt.fallbacks[0].error) : "",
               rung->receipt.fallbacks[0].error != 0 ? ")" : "");
}

#define REMARKS_AT 47u
#define REMARKS_ROOM 60u /* less room than this beside the columns: long remarks go below, where there is more */

/* Behind the columns if it fits there, or if there is room to break it; else on lines of its own. */
static void put_remark(const struct page *page, unsigned at, const char *remark)
{
    const unsigned indent = 6;
    bool fits = page->width == 0 || REMARKS_AT + strlen(remark) <= page->width;
    if (at <= REMARKS_AT && (fits || page->width >= REMARKS_AT + REMARKS_ROOM)) {
        fprintf(page->stream, "%*s", (int)(REMARKS_AT - at), "");
        put_wrapped(page, REMARKS_AT, REMARKS_AT, remark);
        return;
    }
    fprintf(page->stream, "\n%*s", (int)indent, "");
    put_wrapped(page, indent, indent, remark);
}

static void report_rung(const struct page *page, const struct rung *rung)
{
    char remark[640];
    bool works = rung->tried && rung->result == 0;
    enum sluice_evidence evidence = rung->receipt.routes[rung->plan.route].evidence;
    const char *evidence_name = works && evidence != SLUICE_EVIDENCE_NONE ? sluice_evidence_name(evidence) : "-";
    describe(rung, remark, sizeof remark);
    const char *fate = works ? report_fate(&rung->receipt) : rung->tried ? "refused" : "-";
    fprintf(page->stream, "%s%c %-16s%s%-15s", colour(page, rung->chosen ? BOLD : ""), rung->chosen ? '*' : ' ',
            sluice_route_name(rung->plan.route), rung->chosen ? colour(page, PLAIN) : "", fate);
    if (remark[0] == '\0')
        fprintf(page->stream, "%s\n", evidence_name);
    else
        put_remark(page, 33 + (unsigned)fprintf(page->stream, "%s", evidence_name), remark);
}

static bool never_because(const struct sluice_plan_entry *plan, const char *reason)
{
    return plan->verdict == SLUICE_NEVER && strcmp(plan->reason, reason) == 0;
}

/* The routes that can never carry the pair: those with the same reason in one line. */
static void report_never(const struct page *page, const struct ladder_pair *pair)
{
    char names[SLUICE_ROUTE_COUNT * 20], remark[sizeof names + 256];
    bool narrow = page->width > 0 && page->width < REMARKS_AT + REMARKS_ROOM;
    fputs(colour(page, DIM), page->stream);
    for (unsigned first = 0; first < pair->count; first++) {
        const struct sluice_plan_entry *plan = &pair->rungs[first].plan;
        size_t length = 0;
        bool shown = false;
        if (plan->verdict != SLUICE_NEVER)
            continue;
        for (unsigned i = 0; i < first; i++)
            shown |= never_because(&pair->rungs[i].plan, plan->reason);
        for (unsigned i = first; i < pair->count && !shown; i++)
            if (never_because(&pair->rungs[i].plan, plan->reason))
                length += (size_t)snprintf(names + length, sizeof names - length, "%s%s", length > 0 ? ", " : "",
                                           sluice_route_name(pair->rungs[i].plan.route));
        if (shown)
            continue;
        fprintf(page->stream, "  %s", narrow ? "" : names);
        if (narrow) {
            snprintf(remark, sizeof remark, "%s: never: %s", names, plan->reason);
            put_wrapped(page, 2, 6, remark);
        } else {
            snprintf(remark, sizeof remark, "never: %s", plan->reason);
            put_remark(page, 2 + (unsigned)length, remark);
        }
    }
    fputs(colour(page, PLAIN), page->stream);
}

#define FEW_PAIRS 4 /* are seen at a glance */

static void report_summary(const struct page *page, const struct ladder *ladder)
{
    char name[LADDER_NAME_MAX];
    if (ladder->count <= FEW_PAIRS)
        return;
    fprintf(page->stream, "%sIn short%s: what auto takes\n", colour(page, BOLD), colour(page, PLAIN));
    for (size_t i = 0; i < ladder->count; i++) {
        const struct ladder_pair *pair = &ladder->pairs[i];
        for (unsigned r = 0; r < pair->count; r++) {
            const struct rung *rung = &pair->rungs[r];
            if (!rung->chosen)
                continue;
            enum sluice_evidence evidence = rung->receipt.routes[rung->plan.route].evidence;
            int at = fprintf(page->stream, "  %-16s%-15s%s", sluice_route_name(rung->plan.route),
                             rung->tried ? report_fate(&rung->receipt) : "-",
                             evidence != SLUICE_EVIDENCE_NONE ? sluice_evidence_name(evidence) : "-");
            ladder_pair_name(pair, name, sizeof name);
            put_remark(page, (unsigned)at, name);
        }
    }
    fprintf(page->stream, "\n");
}

static void report_crossover(const struct page *page, enum sluice_route route, uint64_t from, const char *how,
                             const char *where)
{
    char size[TEXT_SIZE_MAX];
    int at =
        fprintf(page->stream, "  %-16s%-15s%s", sluice_route_name(route), format_from(from, size, sizeof size), how);
    put_remark(page, (unsigned)at, where);
}

static void report_crossovers(const struct page *page, const struct ladder *ladder, const struct crossovers *crossovers)
{
    char text[LADDER_NAME_MAX + 64];
    bool none = crossovers->count == 0;
    fprintf(page->stream, "%sCrossovers%s: from which size on a route pays\n", colour(page, BOLD), colour(page, PLAIN));
    for (size_t i = 0; i < ladder->count; i++) {
        const struct ladder_pair *pair = &ladder->pairs[i];
        for (unsigned r = 0; r < pair->count; r++) {
            const struct sluice_plan_entry *plan = &pair->rungs[r].plan;
            if (plan->from == 0)
                continue;
            none = false;
            ladder_pair_name(pair, text, sizeof text);
            report_crossover(page, plan->route, plan->from, plan->learned ? "learned" : "default", text);
        }
    }
    for (size_t i = 0; i < crossovers->count; i++) {
        const struct sluice_crossover *item = &crossovers->items[i];
        const char *driver = item->device.loopback ? "loopback" : item->device.driver;
        snprintf(text, sizeof text, "%s to %s%s%s (%llu samples)", sluice_end_kind_name(item->source),
                 sluice_end_kind_name(item->sink), driver[0] != '\0' ? " by " : "", driver,
                 (unsigned long long)item->samples);
        report_crossover(page, item->route, item->from, item->closed ? "for now" : "learned", text);
    }
    if (none)
        fprintf(page->stream, "  None between these ends.\n");
    if (crossovers->not_loaded != NULL)
        put_wrapped(page, 0, 2, crossovers->not_loaded);
}

void report_ladder(const struct page *page, const struct ladder *ladder, const struct crossovers *crossovers)
{
    char title[LADDER_NAME_MAX];
    fprintf(page->stream, "%s  %-16s%-15s%-14s%s%s\n\n", colour(page, BOLD), "route", "copied?", "evidence", "why not",
            colour(page, PLAIN));
    for (size_t i = 0; i < ladder->count; i++) {
        const struct ladder_pair *pair = &ladder->pairs[i];
        ladder_pair_name(pair, title, sizeof title);
        fprintf(page->stream, "%s", colour(page, BOLD));
        put_wrapped(page, 0, 0, title);
        fprintf(page->stream, "%s", colour(page, PLAIN));
        for (unsigned r = 0; r < pair->count; r++)
            if (pair->rungs[r].plan.verdict != SLUICE_NEVER)
                report_rung(page, &pair->rungs[r]);
        report_never(page, pair);
        fprintf(page->stream, "\n");
    }
    if (ladder->no_ring[0] != '\0') {
        snprintf(title, sizeof title, "What only a loop on io_uring carries is not shown: %s.", ladder->no_ring);
        put_wrapped(page, 0, 2, title);
        fprintf(page->stream, "\n");
    }
    report_summary(page, ladder);
    report_crossovers(page, ladder, crossovers);
}
