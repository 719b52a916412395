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

static void report_rung(const struct page *page, const struct rung *rung)
{
    char remark[640];
    bool works = rung->tried && rung->result == 0;
    enum sluice_evidence evidence = rung->receipt.routes[rung->plan.route].evidence;
    describe(rung, remark, sizeof remark);
    const char *fate = works ? report_fate(&rung->receipt) : rung->tried ? "refused" : "-";
    const char *weight = rung->chosen ? BOLD : rung->plan.verdict == SLUICE_NEVER ? DIM : "";
    fprintf(page->stream, "%s%c %-16s%s%-15s%-14s", colour(page, weight), rung->chosen ? '*' : ' ',
            sluice_route_name(rung->plan.route), rung->chosen ? colour(page, PLAIN) : "", fate,
            works && evidence != SLUICE_EVIDENCE_NONE ? sluice_evidence_name(evidence) : "-");
    put_wrapped(page, 47, 47, remark);
    fputs(colour(page, PLAIN), page->stream);
}

static void report_crossovers(const struct page *page, const struct ladder *ladder, const struct crossovers *crossovers)
{
    char from[TEXT_SIZE_MAX], source[PATH_MAX + 64], sink[PATH_MAX + 64], text[sizeof source + sizeof sink + 8];
    bool none = crossovers->count == 0;
    fprintf(page->stream, "%sCrossovers%s: from which size on a route pays\n", colour(page, BOLD), colour(page, PLAIN));
    for (size_t i = 0; i < ladder->count; i++) {
        const struct ladder_pair *pair = &ladder->pairs[i];
        for (unsigned r = 0; r < pair->count; r++) {
            const struct sluice_plan_entry *plan = &pair->rungs[r].plan;
            if (plan->from == 0)
                continue;
            none = false;
            ladder_place_name(&pair->source, source, sizeof source);
            ladder_place_name(&pair->sink, sink, sizeof sink);
            fprintf(page->stream, "  %-16s%-15s%-14s", sluice_route_name(plan->route),
                    format_from(plan->from, from, sizeof from), plan->learned ? "learned" : "default");
            snprintf(text, sizeof text, "%s to %s", source, sink);
            put_wrapped(page, 47, 47, text);
        }
    }
    for (size_t i = 0; i < crossovers->count; i++) {
        const struct sluice_crossover *item = &crossovers->items[i];
        fprintf(page->stream, "  %-16s%-15s%-14s", sluice_route_name(item->route),
                format_from(item->from, from, sizeof from), item->closed ? "for now" : "learned");
        const char *driver = item->device.loopback ? "loopback" : item->device.driver;
        snprintf(text, sizeof text, "%s to %s%s%s (%llu samples)", sluice_end_kind_name(item->source),
                 sluice_end_kind_name(item->sink), driver[0] != '\0' ? " by " : "", driver,
                 (unsigned long long)item->samples);
        put_wrapped(page, 47, 47, text);
    }
    if (none)
        fprintf(page->stream, "  None between these ends.\n");
    if (crossovers->not_loaded != NULL)
        put_wrapped(page, 0, 2, crossovers->not_loaded);
}

void report_ladder(const struct page *page, const struct ladder *ladder, const struct crossovers *crossovers)
{
    char source[PATH_MAX + 64], sink[PATH_MAX + 64], title[sizeof source + sizeof sink + 8];
    fprintf(page->stream, "%s  %-16s%-15s%-14s%s%s\n\n", colour(page, BOLD), "route", "copied?", "evidence", "why not",
            colour(page, PLAIN));
    for (size_t i = 0; i < ladder->count; i++) {
        const struct ladder_pair *pair = &ladder->pairs[i];
        ladder_place_name(&pair->source, source, sizeof source);
        ladder_place_name(&pair->sink, sink, sizeof sink);
        snprintf(title, sizeof title, "%s to %s", source, sink);
        fprintf(page->stream, "%s", colour(page, BOLD));
        put_wrapped(page, 0, 0, title);
        fprintf(page->stream, "%s", colour(page, PLAIN));
        for (unsigned r = 0; r < pair->count; r++)
            report_rung(page, &pair->rungs[r]);
        fprintf(page->stream, "\n");
    }
    report_crossovers(page, ladder, crossovers);
}
