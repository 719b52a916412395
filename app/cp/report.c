/* SPDX-License-Identifier: MIT */
#include "report.h"
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define CLEAR_LINE "\r\033[K"

static bool is_control(unsigned char byte)
{
    return byte < 0x20 || byte == 0x7f;
}

/* As much of a name as fits, written so that it ends at *end, which moves to its beginning. */
static void put_before(char **end, const char *name)
{
    for (size_t i = strlen(name); i-- > 0;) {
        unsigned char byte = (unsigned char)name[i];
        if (!is_control(byte)) {
            *--*end = (char)byte;
            continue;
        }
        if (byte == '\n' || byte == '\t' || byte == '\r') {
            *--*end = byte == '\n' ? 'n' : byte == '\t' ? 't' : 'r';
        } else {
            for (unsigned digit = 0; digit < 3; digit++, byte = (unsigned char)(byte >> 3))
                *--*end = (char)('0' + (byte & 7));
        }
        *--*end = '\\';
    }
}

static const char *name_at(const struct place *place, enum side side)
{
    return side == SOURCE ? place->source_name : place->target_name;
}

char *place_path(const struct place *place, const char *name, enum side side)
{
    size_t size = 1 + (name != NULL ? 4 * strlen(name) + 1 : 0);
    for (const struct place *at = place; at != NULL; at = at->parent)
        size += 4 * strlen(name_at(at, side)) + 1;
    char *text = malloc(size);
    if (text == NULL)
        return NULL;
    char *end = text + size;
    *--end = '\0';
    if (name != NULL)
        put_before(&end, name);
    for (const struct place *at = place; at != NULL; at = at->parent) {
        const char *above = name_at(at, side);
        size_t length = strlen(above);
        if (length == 0 || (at->parent == NULL && strcmp(above, ".") == 0 && *end != '\0'))
            continue;
        if (*end != '\0' && above[length - 1] != '/')
            *--end = '/';
        put_before(&end, above);
    }
    memmove(text, end, strlen(end) + 1);
    return text;
}

__attribute__((format(printf, 4, 0))) static void say(struct report *report, FILE *stream, const char *prefix,
                                                      const char *format, va_list arguments)
{
    pthread_mutex_lock(&report->lock);
    if (report->progress_shown) {
        fputs(CLEAR_LINE, stderr);
        report->progress_shown = false;
    }
    fputs(prefix, stream);
    vfprintf(stream, format, arguments);
    fputc('\n', stream);
    pthread_mutex_unlock(&report->lock);
}

void report_failure(struct report *report, const char *format, ...)
{
    va_list arguments;
    tally_add(&report->tally.failed, 1);
    va_start(arguments, format);
    say(report, stderr, "sluice cp: ", format, arguments);
    va_end(arguments);
}

void report_note(struct report *report, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say(report, stderr, "sluice cp: ", format, arguments);
    va_end(arguments);
}

void report_line(struct report *report, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say(report, report->lines, "", format, arguments);
    va_end(arguments);
}

bool report_first(struct report *report, int what, int code)
{
    bool first = true;
    pthread_mutex_lock(&report->lock);
    for (unsigned i = 0; i < report->said_count && first; i++)
        first = report->said[i].what != what || report->said[i].code != code;
    if (first && report->said_count < sizeof report->said / sizeof *report->said) {
        report->said[report->said_count].what = what;
        report->said[report->said_count++].code = code;
    }
    pthread_mutex_unlock(&report->lock);
    return first;
}
