/* SPDX-License-Identifier: MIT */
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "findings.h"
#include "format.h"
#include "mechanism.h"
#include "report.h"
#include "table.h"
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#define CALLERS_SHOWN 10

/* A process that moved something, or spent its time copying. */
struct section {
    uint32_t pid;
    size_t rows;
    uint64_t bytes, copied, unknown;
};

struct lines {
    FILE *stream;
    struct account *account;
    const struct report_options *options;
    const struct format_symbols *symbols;
};

static const char *style(const struct lines *lines, const char *sequence)
{
    return lines->options->colour ? sequence : "";
}

/* A paragraph that begins with first; long lines hang under it. Anything in it is made printable. */
__attribute__((format(printf, 3, 4))) static void say(const struct lines *lines, const char *first, const char *format,
                                                      ...)
{
    char text[2048], printable[4096];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    /* A notice may have lines of its own. */
    char *rest = text;
    for (char *line = strsep(&rest, "\n"); line != NULL; line = strsep(&rest, "\n")) {
        format_wrap(lines->stream, first, format_printable(line, lines->symbols, printable, sizeof printable),
                    lines->options->width);
    }
}

static void title(const struct lines *lines, const char *text)
{
    fprintf(lines->stream, "\n%s", style(lines, "\033[1m"));
    format_wrap(lines->stream, "", text, lines->options->width);
    fputs(style(lines, "\033[0m"), lines->stream);
}

static struct section *section_of(struct section *sections, size_t *count, uint32_t pid)
{
    for (size_t i = 0; i < *count; i++)
        if (sections[i].pid == pid)
            return &sections[i];
    sections[*count] = (struct section){.pid = pid};
    return &sections[(*count)++];
}

static int by_bytes(const void *a, const void *b)
{
    const struct section *first = a, *second = b;
    if (first->bytes != second->bytes)
        return first->bytes < second->bytes ? 1 : -1;
    return first->pid < second->pid ? -1 : first->pid > second->pid;
}

static void print_process(const struct lines *lines, const struct section *section)
{
    const struct account_process *process = account_process(lines->account, section->pid);
    const char *dot = lines->symbols->dot;
    char name[128], size[TEXT_SIZE_MAX], copied[TEXT_SIZE_MAX], figure[FORMAT_FIGURE_MAX], share[FORMAT_FIGURE_MAX];
    char facts[768];
    size_t used = 0;
#define FACT(...)                                                                                                      \
    used = min_size(used + (size_t)snprintf(facts + used, sizeof facts - used, __VA_ARGS__), sizeof facts - 1)
    static const struct account_process unknown_process;
    if (process == NULL)
        process = &unknown_process;
    format_printable(process->comm[0] != '\0' ? process->comm : "?", lines->symbols, name, sizeof name);
    snprintf(facts, sizeof facts, "%s (%" PRIu32 ")%s", name, section->pid, process->exited ? ", exited" : "");
    title(lines, facts);

    FACT("moved %s, ", text_format_size(section->bytes, size, sizeof size));
    if (section->unknown > 0 && section->copied == 0)
        FACT("copies of %s unknown", text_format_size(section->unknown, copied, sizeof copied));
    else
        FACT("copied %s", text_format_size(section->copied, copied, sizeof copied));
    if (section->unknown > 0 && section->copied > 0)
        FACT(" (not known of %s)", text_format_size(section->unknown, size, sizeof size));
    if (process->cpu_ns > 0) {
        FACT(" %s CPU %s", dot, text_format_duration(process->cpu_ns / 1000000, size, sizeof size));
        if (account_elapsed_ns(lines->account) > 0)
            FACT(" (%s of one core)", format_share(process->cpu_ns, account_elapsed_ns(lines->account), figure));
    } else {
        FACT(" %s CPU unknown", dot);
    }
    if (process->samples > 0) {
        FACT(" %s copying is %s of its CPU", dot,
             format_share(process->samples_copying_kernel + process->samples_copying_user, process->samples, share));
        FACT(" (kernel %s,", format_share(process->samples_copying_kernel, process->samples, figure));
        FACT(" user space %s)", format_share(process->samples_copying_user, process->samples, figure));
        if (process->samples_transforming > 0)
            FACT(" %s encryption, compression, checksums %s", dot,
                 format_share(process->samples_transforming, process->samples, figure));
    } else {
        FACT(" %s share of CPU that copying takes: unknown (no samples)", dot);
    }
    if (process->system_calls > 0)
        FACT(" %s %s system calls", dot, format_count(process->system_calls, figure));
#undef FACT
    format_wrap(lines->stream, "  ", facts, lines->options->width);
}

/* Unless --rows 0 asks for all: what is less than a thousandth of its whole is summed up, but for the first few. */
#define SMALL_PART 1000
#define PROCESSES_SHOWN 3
#define PROCESSES_MAX 10 /* a shell script's children are hundreds, and much alike */
#define ROWS_SHOWN 3

/* What processes are called, most of them first: "180 cat, 7 sh and 4 others". */
struct names {
    struct name {
        const char *comm;
        size_t count;
    } all[64];
    size_t count, others;
};

static void add_name(struct names *names, const struct account_process *process)
{
    const char *comm = process != NULL && process->comm[0] != '\0' ? process->comm : "?";
    size_t i = 0;
    while (i < names->count && strcmp(names->all[i].comm, comm) != 0)
        i++;
    if (i == sizeof names->all / sizeof names->all[0]) {
        names->others++;
        return;
    }
    if (i == names->count)
        names->all[names->count++] = (struct name){.comm = comm};
    names->all[i].count++;
}

static int by_count(const void *a, const void *b)
{
    const struct name *first = a, *second = b;
    if (first->count != second->count)
        return first->count < second->count ? 1 : -1;
    return strcmp(first->comm, second->comm);
}

static char *list_names(struct names *names, char *buffer, size_t size)
{
    size_t used = 0, others = names->others;
    qsort(names->all, names->count, sizeof names->all[0], by_count);
    buffer[0] = '\0';
    for (size_t i = 0; i < names->count; i++) {
        if (i >= 4)
            others += names->all[i].count;
        else
            used = min_size(used + (size_t)snprintf(buffer + used, size - used, "%s%zu %s", i > 0 ? ", " : "",
                                                    names->all[i].count, names->all[i].comm),
                            size - 1);
    }
    if (others > 0)
        snprintf(buffer + used, size - used, ", %zu others", others);
    return buffer;
}

static void print_rows(const struct lines *lines, const struct section *section, const struct account_row *rows,
                       size_t count, struct table_row *scratch)
{
    size_t shown = 0, limit = lines->options->rows > 0 ? lines->options->rows : SIZE_MAX, left = 0;
    uint64_t left_bytes = 0;
    for (size_t i = 0; i < count; i++) {
        if (rows[i].key.pid != section->pid)
            continue;
        if (shown < limit &&
            (lines->options->rows == 0 || shown < ROWS_SHOWN || rows[i].value.bytes >= section->bytes / SMALL_PART)) {
            scratch[shown++] = (struct table_row){.row = &rows[i]};
        } else {
            left++;
            left_bytes += rows[i].value.bytes;
        }
    }
    if (shown == 0)
        return;
    struct table_options options = {
        .columns = 1u << TABLE_SOURCE | 1u << TABLE_SINK | 1u << TABLE_HOW | 1u << TABLE_BYTES | 1u << TABLE_COPIES |
                   1u << TABLE_EVIDENCE | 1u << TABLE_CALLS | 1u << TABLE_TRANSITIONS | 1u << TABLE_COPIER |
                   (lines->options->threads ? 1u << TABLE_THREAD : 0),
        .indent = 2,
        .width = lines->options->width,
        .details = true,
        .colour = lines->options->colour,
    };
    table_print(lines->stream, lines->account, scratch, shown, &options);
    if (left > 0) {
        char size[TEXT_SIZE_MAX];
        say(lines, "  ", "%zu more pair%s of ends moved %s.", left, left == 1 ? "" : "s",
            text_format_size(left_bytes, size, sizeof size));
    }
}

static void print_callers(const struct lines *lines)
{
    size_t count;
    const struct account_caller *callers = account_callers(lines->account, &count);
    if (count == 0)
        return;
    title(lines, "Who asked for copies (share of the process's CPU, copying function, caller)");
    for (size_t i = 0; i < count && i < CALLERS_SHOWN; i++) {
        const struct account_process *process = account_process(lines->account, callers[i].pid);
        char share[FORMAT_FIGURE_MAX];
        format_share(callers[i].samples, process != NULL ? process->samples : 0, share);
        char first[FORMAT_FIGURE_MAX + 16];
        snprintf(first, sizeof first, "  %7s  ", share);
        say(lines, first, "%s %s %s, %s (%" PRIu32 "), %" PRIu64 " sample%s", callers[i].copier,
            lines->symbols->unicode ? "←" : "<-", callers[i].caller,
            process != NULL && process->comm[0] != '\0' ? process->comm : "?", callers[i].pid, callers[i].samples,
            callers[i].samples == 1 ? "" : "s");
    }
    if (count > CALLERS_SHOWN)
        say(lines, "           ", "and %zu more", count - CALLERS_SHOWN);
}

static void print_findings(const struct lines *lines, const struct finding *findings, size_t count)
{
    if (count == 0)
        return;
    title(lines, "Findings");
    char bullet[8], arrow[16];
    snprintf(bullet, sizeof bullet, "  %s ", lines->symbols->bullet);
    snprintf(arrow, sizeof arrow, "    %s ", lines->symbols->arrow);
    for (size_t i = 0; i < count; i++) {
        say(lines, bullet, "%s", findings[i].what);
        if (findings[i].advice[0] != '\0')
            say(lines, arrow, "%s", findings[i].advice);
    }
}

static void print_unattributed(const struct lines *lines, const char *what, bool in_calls)
{
    size_t count;
    const struct account_unattributed *copies = account_unattributed(lines->account, &count);
    bool titled = false;
    for (size_t i = 0; i < count; i++) {
        if (copies[i].in_calls != in_calls)
            continue;
        if (!titled)
            title(lines, what);
        titled = true;
        char size[TEXT_SIZE_MAX], calls[FORMAT_FIGURE_MAX];
        say(lines, "  ", "%s: %s in %s calls", mechanism_function_name((enum trace_function)copies[i].function),
            text_format_size(copies[i].value.bytes, size, sizeof size), format_count(copies[i].value.calls, calls));
    }
}

void report_lines(FILE *stream, struct account *account, const struct report_options *options)
{
    struct lines lines = {stream, account, options, format_symbols()};
    struct finding findings[FINDINGS_MAX];
    size_t finding_count = findings_find(account, findings);
    size_t row_count, process_count, section_count = 0;
    /* Last: findings_find() asks for rows of its own, and only the latest are sure to be there. */
    const struct account_process *processes = account_processes(account, &process_count);
    const struct account_row *rows = account_rows(account, options->threads, &row_count);
    CLEANUP_FREE struct section *sections = calloc(row_count + process_count + 1, sizeof *sections);
    CLEANUP_FREE struct table_row *scratch = calloc(row_count + 1, sizeof *scratch);
    char time[TEXT_SIZE_MAX], lost[512], counted[96];

    text_format_duration(account_elapsed_ns(account) / 1000000, time, sizeof time);
    format_counted(account, counted, sizeof counted);
    say(&lines, "", "sluice trace %s %s %s tier %s%s%s%s%s", lines.symbols->dot, time, lines.symbols->dot,
        format_tier(account_tier(account)), counted[0] != '\0' ? " " : "", counted[0] != '\0' ? lines.symbols->dot : "",
        counted[0] != '\0' ? " " : "", counted);
    if (options->notice != NULL && options->notice[0] != '\0')
        say(&lines, "", "%s", options->notice);
    if (sections == NULL || scratch == NULL) {
        say(&lines, "", "No memory for a report.");
        return;
    }

    for (size_t i = 0; i < row_count; i++) {
        struct section *section = section_of(sections, &section_count, rows[i].key.pid);
        section->rows++;
        section->bytes += rows[i].value.bytes;
        section->copied += rows[i].copy_bytes;
        section->unknown += rows[i].unknown_bytes;
    }
    size_t idle = 0;
    for (size_t i = 0; i < process_count; i++) {
        bool copying = processes[i].samples_copying_kernel + processes[i].samples_copying_user > 0;
        size_t before = section_count;
        section_of(sections, &section_count, processes[i].pid);
        if (section_count > before && !copying) {
            section_count = before;
            idle++;
        }
    }
    qsort(sections, section_count, sizeof *sections, by_bytes);
    size_t small = 0;
    uint64_t small_bytes = 0, small_copied = 0, all_bytes = 0;
    struct names names = {.count = 0};
    for (size_t i = 0; i < section_count; i++)
        all_bytes += sections[i].bytes;
    for (size_t i = 0; i < section_count; i++) {
        if (options->rows > 0 && i >= PROCESSES_SHOWN &&
            (i >= PROCESSES_MAX || sections[i].bytes < all_bytes / SMALL_PART)) {
            small++;
            small_bytes += sections[i].bytes;
            small_copied += sections[i].copied;
            add_name(&names, account_process(account, sections[i].pid));
            continue;
        }
        print_process(&lines, &sections[i]);
        print_rows(&lines, &sections[i], rows, row_count, scratch);
    }
    if (small > 0) {
        char size[TEXT_SIZE_MAX], copied[TEXT_SIZE_MAX], list[256];
        fputc('\n', stream);
        say(&lines, "", "%zu more process%s moved %s, copied %s (%s).", small, small == 1 ? "" : "es",
            text_format_size(small_bytes, size, sizeof size), text_format_size(small_copied, copied, sizeof copied),
            list_names(&names, list, sizeof list));
    }
    if (idle > 0) {
        fputc('\n', stream);
        bool seen = account_tier(account) != ACCOUNT_TIER_PROC;
        say(&lines, "", "%zu %sprocess%s moved nothing%s.", idle, section_count > 0 ? "more " : "",
            idle == 1 ? "" : "es",
            seen ? "" : " that was seen (/proc/PID/io is looked at now and then, and only where that is allowed)");
    } else if (section_count == 0) {
        fputc('\n', stream);
        say(&lines, "", "Nothing was moved.");
    }
    print_callers(&lines);
    print_findings(&lines, findings, finding_count);
    print_unattributed(&lines, "Copies in the course of no call (softirq, kernel threads)", false);
    print_unattributed(&lines, "Copies in calls that moved no data (exec, stat, failed writes)", true);
    if (format_lost(account_lost(account), lost, sizeof lost)[0] != '\0') {
        title(&lines, "Not recorded");
        say(&lines, "  ", "%s", lost);
    }
}
