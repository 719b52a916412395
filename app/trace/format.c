/* SPDX-License-Identifier: MIT */
#include "format.h"
#include "base/checked.h"
#include "base/text.h"
#include "mechanism.h"
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static const struct format_symbols unicode_symbols = {
    .unicode = true,
    .arrow = "→",
    .ellipsis = "…",
    .dot = "·",
    .bullet = "•",
    .at_least = "≥",
    .bar_full = "█",
    .bar_empty = "░",
};

static const struct format_symbols ascii_symbols = {
    .arrow = "->",
    .ellipsis = "...",
    .dot = "-",
    .bullet = "*",
    .at_least = ">=",
    .bar_full = "#",
    .bar_empty = ".",
};

const struct format_symbols *format_symbols(void)
{
    static const char *const variables[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    for (unsigned i = 0; i < 3; i++) {
        const char *value = getenv(variables[i]);
        if (value != NULL && value[0] != '\0')
            return strcasestr(value, "UTF-8") != NULL || strcasestr(value, "UTF8") != NULL ? &unicode_symbols
                                                                                           : &ascii_symbols;
    }
    return &ascii_symbols;
}

/* ---- Characters ---- */

/* The character at text and its length in bytes; 0 for what is no UTF-8 (RFC 3629). */
static unsigned decode(const char *text, uint32_t *ret_character)
{
    const unsigned char *byte = (const unsigned char *)text;
    unsigned length = byte[0] < 0x80 ? 1 : byte[0] < 0xc2 ? 0 : byte[0] < 0xe0 ? 2 : byte[0] < 0xf0 ? 3 : 4;
    if (length == 0 || byte[0] > 0xf4)
        return 0;
    uint32_t character = length == 1 ? byte[0] : byte[0] & (0xffu >> (length + 1));
    for (unsigned i = 1; i < length; i++) {
        if ((byte[i] & 0xc0) != 0x80)
            return 0;
        character = character << 6 | (byte[i] & 0x3f);
    }
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (character < least[length] || character > 0x10ffff || (character >= 0xd800 && character <= 0xdfff))
        return 0;
    *ret_character = character;
    return length;
}

struct range {
    uint32_t first, last;
};

static bool within(uint32_t character, const struct range *ranges, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (character >= ranges[i].first && character <= ranges[i].last)
            return true;
    return false;
}

/* Controls, and what would rearrange the line around it (Unicode TR 36). */
static bool harmful(uint32_t character)
{
    static const struct range ranges[] = {
        {0, 0x1f},        {0x7f, 0x9f},     {0x200b, 0x200f}, {0x2028, 0x202e},
        {0x2060, 0x206f}, {0xfeff, 0xfeff}, {0xfff9, 0xfffb},
    };
    return within(character, ranges, sizeof ranges / sizeof ranges[0]);
}

/* The ranges that matter in names of files; the C library's wcwidth() needs a locale that may not be installed. */
static size_t columns_of(uint32_t character)
{
    static const struct range none[] = {
        {0x300, 0x36f},   {0x483, 0x489},   {0x591, 0x5bd},   {0x64b, 0x65f},
        {0x1ab0, 0x1aff}, {0x20d0, 0x20f0}, {0xfe00, 0xfe0f}, {0xfe20, 0xfe2f},
    };
    static const struct range two[] = {
        {0x1100, 0x115f},   {0x2e80, 0x303e},   {0x3041, 0xa4cf},   {0xac00, 0xd7a3},
        {0xf900, 0xfaff},   {0xfe30, 0xfe6f},   {0xff00, 0xff60},   {0xffe0, 0xffe6},
        {0x1f300, 0x1f64f}, {0x1f680, 0x1f6ff}, {0x1f900, 0x1f9ff}, {0x20000, 0x3fffd},
    };
    if (within(character, none, sizeof none / sizeof none[0]))
        return 0;
    return within(character, two, sizeof two / sizeof two[0]) ? 2 : 1;
}

char *format_printable(const char *text, const struct format_symbols *symbols, char *buffer, size_t size)
{
    size_t used = 0;
    while (*text != '\0') {
        char piece[8];
        uint32_t character;
        unsigned length = decode(text, &character);
        if (length > 0 && !harmful(character) && (symbols->unicode || length == 1)) {
            memcpy(piece, text, length);
            piece[length] = '\0';
        } else {
            snprintf(piece, sizeof piece, "\\x%02x", (unsigned char)*text);
            length = 1;
        }
        size_t piece_length = strlen(piece);
        if (used + piece_length >= size)
            break;
        memcpy(buffer + used, piece, piece_length);
        used += piece_length;
        text += length;
    }
    buffer[used] = '\0';
    return buffer;
}

/* The character at text, and how many bytes and columns it takes. Bytes that are no character take a column each. */
static unsigned step(const char *text, size_t *ret_columns)
{
    uint32_t character;
    unsigned length = decode(text, &character);
    *ret_columns = length == 0 ? 1 : columns_of(character);
    return length == 0 ? 1 : length;
}

size_t format_columns(const char *text)
{
    size_t sum = 0, columns;
    for (; *text != '\0'; sum += columns)
        text += step(text, &columns);
    return sum;
}

/* Bytes of text that fit into so many columns. */
static size_t fitting(const char *text, size_t columns)
{
    const char *at = text;
    while (*at != '\0') {
        size_t taken;
        unsigned length = step(at, &taken);
        if (taken > columns)
            break;
        columns -= taken;
        at += length;
    }
    return (size_t)(at - text);
}

char *format_cut(const char *text, size_t columns, const struct format_symbols *symbols, char *buffer, size_t size)
{
    size_t all = format_columns(text), dots = format_columns(symbols->ellipsis);
    if (all <= columns) {
        snprintf(buffer, size, "%s", text);
        return buffer;
    }
    if (columns <= dots) {
        snprintf(buffer, size, "%.*s", (int)fitting(text, columns), text);
        return buffer;
    }
    /* The end of a path says more than its beginning. */
    size_t head = (columns - dots) / 2, tail = columns - dots - head;
    const char *rest = text + fitting(text, all - tail);
    while (format_columns(rest) > tail) { /* the cut fell into a wide character */
        size_t taken;
        rest += step(rest, &taken);
    }
    snprintf(buffer, size, "%.*s%s%s", (int)fitting(text, head), text, symbols->ellipsis, rest);
    return buffer;
}

/* A number and its unit stay on one line. */
static bool holds(const char *text, size_t space)
{
    return space > 0 && ((text[space - 1] >= '0' && text[space - 1] <= '9') || text[space - 1] == '<');
}

void format_wrap(FILE *stream, const char *first, const char *text, unsigned width)
{
    size_t indent = format_columns(first);
    size_t room = width == 0 ? SIZE_MAX : width > indent ? width - indent : 1;
    fputs(first, stream);
    for (bool more = false; *text != '\0' || !more; more = true) {
        if (more)
            fprintf(stream, "%*s", (int)indent, "");
        size_t length = fitting(text, room);
        size_t skip = 0;
        if (text[length] != '\0') {
            size_t space = length;
            while (space > 0 && (text[space] != ' ' || holds(text, space)))
                space--;
            if (space > 0)
                length = space;
            if (length == 0) { /* one character that is wider than the line */
                size_t taken;
                length = step(text, &taken);
            }
            while (text[length + skip] == ' ')
                skip++;
        }
        fprintf(stream, "%.*s\n", (int)length, text);
        text += length + skip;
    }
}

/* ---- Figures ---- */

char *format_count(uint64_t count, char *buffer)
{
    static const char units[] = {'k', 'M', 'G', 'T', 'P', 'E'};
    if (count < 100000) {
        snprintf(buffer, FORMAT_FIGURE_MAX, "%" PRIu64, count);
        return buffer;
    }
    double value = (double)count;
    unsigned unit = 0;
    for (value /= 1000; value >= 999.95 && unit + 1 < sizeof units; unit++)
        value /= 1000;
    snprintf(buffer, FORMAT_FIGURE_MAX, value < 99.95 ? "%.1f %c" : "%.0f %c", value, units[unit]);
    return buffer;
}

char *format_share(uint64_t part, uint64_t whole, char *buffer)
{
    double share = whole > 0 ? 100.0 * (double)part / (double)whole : 0;
    if (whole == 0)
        snprintf(buffer, FORMAT_FIGURE_MAX, "unknown");
    else if (part > 0 && share < 1)
        snprintf(buffer, FORMAT_FIGURE_MAX, "< 1 %%");
    else
        snprintf(buffer, FORMAT_FIGURE_MAX, "%.0f %%", share);
    return buffer;
}

char *format_copies(const struct account_row *row, const struct format_symbols *symbols, char *buffer)
{
    double copies = row->value.bytes > 0 ? (double)row->copy_bytes / (double)row->value.bytes : 0;
    const char *bound = row->unknown_bytes > 0 ? symbols->at_least : "";
    if (row->value.bytes == 0 || (row->unknown_bytes > 0 && row->copy_bytes == 0))
        snprintf(buffer, FORMAT_FIGURE_MAX, "unknown");
    else if (row->copy_bytes == 0)
        snprintf(buffer, FORMAT_FIGURE_MAX, "0");
    else if (copies < 0.05)
        snprintf(buffer, FORMAT_FIGURE_MAX, "%s", row->unknown_bytes > 0 ? "unknown" : "< 0.1");
    else
        snprintf(buffer, FORMAT_FIGURE_MAX, "%s%.1f", bound, copies);
    return buffer;
}

char *format_how(const struct account_row *row, char *buffer)
{
    const struct trace_flow_key *key = &row->key;
    bool two = key->first != TRACE_NONE;
    snprintf(buffer, FORMAT_FIGURE_MAX, "%s%s%s%s", two ? mechanism_name((enum trace_mechanism)key->first) : "",
             two ? " + " : "", mechanism_name((enum trace_mechanism)key->mechanism),
             key->way == TRACE_BY_RING ? " (io_uring)" : "");
    return buffer;
}

bool format_transitions_per_gib(const struct account_row *row, uint64_t *ret_count)
{
    if (row->value.transitions == 0 || row->value.bytes == 0)
        return false;
    double count = (double)row->value.transitions * (double)(UINT64_C(1) << 30) / (double)row->value.bytes;
    *ret_count = (uint64_t)(count + 0.5);
    return true;
}

char *format_transitions(const struct account_row *row, char *buffer)
{
    uint64_t count;
    if (format_transitions_per_gib(row, &count))
        return format_count(count, buffer);
    snprintf(buffer, FORMAT_FIGURE_MAX, "unknown");
    return buffer;
}

const char *format_end_name(const struct account *account, uint32_t id)
{
    const struct account_end *end = id != 0 ? account_end(account, id) : NULL;
    if (id == 0)
        return "memory";
    return end != NULL && end->name[0] != '\0' ? end->name : "unknown";
}

const char *format_tier(enum account_tier tier)
{
    switch (tier) {
    case ACCOUNT_TIER_FUNCTIONS:
        return "(a) kernel functions";
    case ACCOUNT_TIER_TRACEPOINTS:
        return "(b) tracepoints";
    case ACCOUNT_TIER_PROC:
        return "(c) /proc alone";
    }
    return "unknown";
}

__attribute__((format(printf, 4, 5))) static void append(char *buffer, size_t size, size_t *used, const char *format,
                                                         ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(buffer + *used, size - *used, format, arguments);
    va_end(arguments);
    *used = min_size(*used + (size_t)(length > 0 ? length : 0), size - 1);
}

char *format_lost(const struct trace_lost *lost, char *buffer, size_t size)
{
    const struct {
        uint64_t count;
        const char *what;
    } counts[] = {
        {lost->ends, "ends without a name (no room in the table)"},
        {lost->events, "births and deaths of processes (ring buffer full)"},
        {lost->threads, "calls of threads without a state (no memory)"},
        {lost->foreign, "system calls of 32-bit programs"},
        {lost->messages, "messages beyond the first 64 of a call"},
        {lost->missed, "calls or copies, of these processes or of others, as a program was at work already"},
    };
    char bytes[TEXT_SIZE_MAX], count[FORMAT_FIGURE_MAX];
    size_t used = 0;
    buffer[0] = '\0';
    if (lost->flows > 0 || lost->flow_calls > 0)
        append(buffer, size, &used, "%s in %s calls (no room for their flows)",
               text_format_size(lost->flows, bytes, sizeof bytes), format_count(lost->flow_calls, count));
    if (lost->copies > 0)
        append(buffer, size, &used, "%s%s of copies", used > 0 ? "; " : "",
               text_format_size(lost->copies, bytes, sizeof bytes));
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
        if (counts[i].count > 0)
            append(buffer, size, &used, "%s%s %s", used > 0 ? "; " : "", format_count(counts[i].count, count),
                   counts[i].what);
    return buffer;
}

const char *format_counted(const struct account *account, char *buffer, size_t size)
{
    uint64_t elapsed = account_elapsed_ns(account), counted = account_counted_ns(account);
    buffer[0] = '\0';
    if (counted != 0 && elapsed != 0 && counted < elapsed - elapsed / 50)
        snprintf(buffer, size, "counted %.2g %% of the time: sums are of that",
                 100.0 * (double)counted / (double)elapsed);
    return buffer;
}
