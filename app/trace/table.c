/* SPDX-License-Identifier: MIT */
#include "table.h"
#include "base/checked.h"
#include "base/text.h"
#include <string.h>

/* Names of ends are cut to a width that can still be read before a column is left out, and for the columns that matter
 * most to even less. */
#define VITAL 7
#define GAP 2 /* between columns */

static const struct {
    const char *title;
    bool right;
    unsigned importance; /* columns with the least are left out first; 0: never */
} columns[TABLE_COLUMN_COUNT] = {
    [TABLE_PROCESS] = {"PROCESS", false, 6},
    [TABLE_THREAD] = {"THREAD", true, 5},
    [TABLE_SOURCE] = {"SOURCE", false, 0},
    [TABLE_SINK] = {"SINK", false, 0},
    [TABLE_HOW] = {"HOW", false, 4},
    [TABLE_BYTES] = {"BYTES", true, 0},
    [TABLE_RATE] = {"RATE", true, 7},
    [TABLE_COPIES] = {"COPIES/B", true, 9},
    [TABLE_EVIDENCE] = {"EVIDENCE", false, 8},
    [TABLE_CALLS] = {"CALLS", true, 1},
    [TABLE_TRANSITIONS] = {"SYSCALLS/GiB", true, 3},
    [TABLE_COPIER] = {"COPIER", false, 2},
};

struct cells {
    char text[TABLE_COLUMN_COUNT][FORMAT_NAME_MAX];
};

static void fill(struct cells *cells, const struct account *account, const struct table_row *table_row,
                 const struct format_symbols *symbols)
{
    const struct account_row *row = table_row->row;
    const struct account_process *process = account_process(account, row->key.pid);
    char name[FORMAT_NAME_MAX];
    format_printable(process != NULL && process->comm[0] != '\0' ? process->comm : "?", symbols, name, sizeof name);
    snprintf(cells->text[TABLE_PROCESS], sizeof cells->text[0], "%.64s %u", name, row->key.pid);
    snprintf(cells->text[TABLE_THREAD], sizeof cells->text[0], "%u", row->key.thread);
    format_printable(format_end_name(account, row->key.source), symbols, cells->text[TABLE_SOURCE],
                     sizeof cells->text[0]);
    format_printable(format_end_name(account, row->key.sink), symbols, cells->text[TABLE_SINK], sizeof cells->text[0]);
    format_how(row, cells->text[TABLE_HOW]);
    text_format_size(row->value.bytes, cells->text[TABLE_BYTES], sizeof cells->text[0]);
    if (table_row->rate_known) {
        char rate[TEXT_SIZE_MAX];
        snprintf(cells->text[TABLE_RATE], sizeof cells->text[0], "%s/s",
                 text_format_size(table_row->rate, rate, sizeof rate));
    } else {
        snprintf(cells->text[TABLE_RATE], sizeof cells->text[0], "unknown");
    }
    format_copies(row, symbols, cells->text[TABLE_COPIES]);
    snprintf(cells->text[TABLE_EVIDENCE], sizeof cells->text[0], "%s", account_evidence_name(row->evidence));
    format_count(row->value.calls, cells->text[TABLE_CALLS]);
    format_transitions(row, cells->text[TABLE_TRANSITIONS]);
    format_printable(row->copier != NULL                             ? row->copier
                     : row->unknown_bytes > 0 || row->copy_bytes > 0 ? "unknown"
                                                                     : "none",
                     symbols, cells->text[TABLE_COPIER], sizeof cells->text[0]);
}

struct layout {
    unsigned shown;
    size_t width[TABLE_COLUMN_COUNT];
};

static size_t total(const struct layout *layout, size_t arrow)
{
    size_t sum = 0;
    for (unsigned i = 0; i < TABLE_COLUMN_COUNT; i++)
        if (layout->shown >> i & 1)
            sum += layout->width[i] + GAP;
    return sum - GAP + arrow + 1 - GAP; /* "SOURCE → SINK" instead of "SOURCE  SINK", one space each side */
}

static struct layout lay_out(const struct account *account, const struct table_row *rows, size_t count,
                             const struct table_options *options, const struct format_symbols *symbols)
{
    struct layout layout = {.shown = options->columns | 1u << TABLE_SOURCE | 1u << TABLE_SINK | 1u << TABLE_BYTES};
    struct cells cells;
    size_t arrow = format_columns(symbols->arrow) + 1;
    for (unsigned i = 0; i < TABLE_COLUMN_COUNT; i++)
        layout.width[i] = strlen(columns[i].title);
    for (size_t r = 0; r < count; r++) {
        fill(&cells, account, &rows[r], symbols);
        for (unsigned i = 0; i < TABLE_COLUMN_COUNT; i++)
            layout.width[i] = max_size(layout.width[i], format_columns(cells.text[i]));
    }
    if (options->width == 0)
        return layout;
    size_t room = options->width > options->indent ? options->width - options->indent : 1;
    size_t source = layout.width[TABLE_SOURCE], sink = layout.width[TABLE_SINK];
    for (;;) {
        unsigned least = TABLE_COLUMN_COUNT;
        for (unsigned i = 0; i < TABLE_COLUMN_COUNT; i++)
            if ((layout.shown >> i & 1) && columns[i].importance > 0 &&
                (least == TABLE_COLUMN_COUNT || columns[i].importance < columns[least].importance))
                least = i;
        size_t comfort = least == TABLE_COLUMN_COUNT || columns[least].importance >= VITAL ? 11
                         : options->details                                                ? 22
                                                                                           : 16;
        layout.width[TABLE_SOURCE] = min_size(source, comfort);
        layout.width[TABLE_SINK] = min_size(sink, comfort);
        if (least == TABLE_COLUMN_COUNT || total(&layout, arrow) <= room)
            break;
        layout.shown &= ~(1u << least);
    }
    /* What is left is the names': half for each, and what one does not need for the other. */
    size_t others = total(&layout, arrow) - layout.width[TABLE_SOURCE] - layout.width[TABLE_SINK];
    size_t names = room > others ? room - others : 2;
    size_t half = names / 2;
    layout.width[TABLE_SOURCE] = min_size(source, max_size(half, names > sink ? names - sink : 0));
    layout.width[TABLE_SINK] = min_size(sink, names - layout.width[TABLE_SOURCE]);
    return layout;
}

static const char *colour_of(unsigned column, const struct account_row *row)
{
    if (column == TABLE_COPIES)
        return row->unknown_bytes > 0 ? "\033[33m" : row->copy_bytes == 0 ? "\033[32m" : "\033[31m";
    if (column == TABLE_EVIDENCE && row->evidence == ACCOUNT_UNKNOWN)
        return "\033[33m";
    if (column == TABLE_BYTES || column == TABLE_RATE)
        return "\033[1m";
    return "";
}

/* row NULL: titles. */
static void print_line(FILE *stream, const struct layout *layout, const struct cells *cells,
                       const struct account_row *row, const struct table_options *options,
                       const struct format_symbols *symbols)
{
    size_t pending = options->indent; /* spaces that something has to follow: no line ends with them */
    char cut[FORMAT_NAME_MAX];
    if (row == NULL && options->colour)
        fputs("\033[2m", stream);
    for (unsigned i = 0; i < TABLE_COLUMN_COUNT; i++) {
        if (!(layout->shown >> i & 1))
            continue;
        const char *text = row == NULL ? columns[i].title : cells->text[i];
        size_t width = layout->width[i];
        format_cut(text, width, symbols, cut, sizeof cut);
        size_t spare = width - format_columns(cut);
        if (columns[i].right)
            pending += spare;
        fprintf(stream, "%*s", (int)pending, "");
        const char *colour = row != NULL && options->colour ? colour_of(i, row) : "";
        fprintf(stream, "%s%s%s", colour, cut, colour[0] != '\0' ? "\033[0m" : "");
        pending = columns[i].right ? 0 : spare;
        if (i == TABLE_SOURCE) {
            fprintf(stream, "%*s %s", (int)pending, "", row == NULL ? "" : symbols->arrow);
            pending = row == NULL ? format_columns(symbols->arrow) + 1 : 1;
        } else {
            pending += GAP;
        }
    }
    fputs(row == NULL && options->colour ? "\033[0m\n" : "\n", stream);
}

static void add_detail(char *line, size_t size, const char *before, const char *text, const char *after,
                       const struct format_symbols *symbols)
{
    const char *const pieces[] = {" ", symbols->dot, " ", before, text, after};
    size_t used = strlen(line);
    for (size_t i = used > 0 ? 0 : 3; i < sizeof pieces / sizeof pieces[0]; i++) {
        size_t length = strlen(pieces[i]), room = size - used - 1;
        memcpy(line + used, pieces[i], length < room ? length : room);
        used += length < room ? length : room;
    }
    line[used] = '\0';
}

/* What found no column, in words; the calls alone are not worth a line: bytes and calls per GiB tell them. */
static void print_details(FILE *stream, const struct layout *layout, const struct cells *cells,
                          const struct table_options *options, const struct format_symbols *symbols)
{
    static const struct {
        enum table_column column;
        const char *before, *after;
    } details[] = {
        {TABLE_THREAD, "thread ", ""}, {TABLE_HOW, "by ", ""},      {TABLE_COPIES, "", " copies/B"},
        {TABLE_EVIDENCE, "", ""},      {TABLE_CALLS, "", " calls"}, {TABLE_TRANSITIONS, "", " syscalls/GiB"},
        {TABLE_COPIER, "copier ", ""},
    };
    char line[4 * FORMAT_NAME_MAX] = "", indent[64];
    if ((options->columns & ~layout->shown & ~(1u << TABLE_CALLS)) == 0)
        return;
    for (size_t i = 0; i < sizeof details / sizeof details[0]; i++) {
        unsigned column = details[i].column;
        if (!(options->columns >> column & 1) || (layout->shown >> column & 1))
            continue;
        add_detail(line, sizeof line, details[i].before, cells->text[column], details[i].after, symbols);
    }
    if (line[0] == '\0')
        return;
    snprintf(indent, sizeof indent, "%*s", (int)min_size(options->indent + 2, sizeof indent - 1), "");
    if (options->colour)
        fputs("\033[2m", stream);
    format_wrap(stream, indent, line, options->width);
    if (options->colour)
        fputs("\033[0m", stream);
}

void table_print(FILE *stream, const struct account *account, const struct table_row *rows, size_t count,
                 const struct table_options *options)
{
    const struct format_symbols *symbols = format_symbols();
    struct layout layout = lay_out(account, rows, count, options, symbols);
    struct cells cells;
    print_line(stream, &layout, NULL, NULL, options, symbols);
    for (size_t r = 0; r < count; r++) {
        fill(&cells, account, &rows[r], symbols);
        print_line(stream, &layout, &cells, rows[r].row, options, symbols);
        if (options->details)
            print_details(stream, &layout, &cells, options, symbols);
    }
}
