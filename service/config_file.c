/* SPDX-License-Identifier: MIT
 *
 * libinih knows lines, comments and keys, but says neither where it is nor that a section begins, and cuts long names
 * of sections. So we hand it the lines, one at a time, and look at them as they go by.
 */
#include "service/config_file.h"
#include "base/cleanup.h"
#include "base/text.h"

#include <errno.h>
#include <ini.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GLOBAL "global"

/* ---- Strings --------------------------------------------------------------------------------------------------- */

struct config_storage {
    struct config_storage *next;
    unsigned line; /* of the file that it stands in; 0: none */
    char text[];
};

static char *keep(struct config_storage **storage, const char *text, size_t length, unsigned line)
{
    struct config_storage *kept = malloc(sizeof *kept + length + 1);
    if (kept == NULL)
        return NULL;
    kept->next = *storage;
    kept->line = line;
    *storage = kept;
    memcpy(kept->text, text, length);
    kept->text[length] = '\0';
    return kept->text;
}

char *config_keep(struct config_storage **storage, const char *text, size_t length)
{
    return keep(storage, text, length, 0);
}

static unsigned line_of_text(const struct config_storage *storage, const char *text)
{
    while (storage != NULL && storage->text != text)
        storage = storage->next;
    return storage != NULL ? storage->line : 0;
}

void config_forget(struct config_storage **storage)
{
    for (struct config_storage *kept = *storage, *next; kept != NULL; kept = next) {
        next = kept->next;
        free(kept);
    }
    *storage = NULL;
}

/* ---- Where a mistake is ---------------------------------------------------------------------------------------- */

static size_t option_index(const struct command_spec *command, const char *name)
{
    size_t i = 0;
    while (command->options[i].type != OPTION_END &&
           (command->options[i].name == NULL || strcmp(command->options[i].name, name) != 0))
        i++;
    return i; /* of OPTION_END when there is none */
}

/* What stood on the command line counts more than what is in the file before the first section. */
static bool is_of_command_line(const struct config_origin *origin, size_t option)
{
    return origin->path == NULL ||
           (origin->line == 0 && origin->command->given != NULL && origin->command->given[option] != NULL);
}

bool config_has(const struct config_origin *origin, const char *key)
{
    size_t i = option_index(origin->command, key);
    return is_of_command_line(origin, i) ? origin->command->given[i] != NULL : origin->lines[i] != 0;
}

__attribute__((format(printf, 6, 0))) static int wrong(const struct config_origin *origin, const char *key,
                                                       unsigned line, int code, struct failure *failure,
                                                       const char *format, va_list arguments)
{
    char text[sizeof failure->text - 64];
    size_t i = option_index(origin->command, key);
    vsnprintf(text, sizeof text, format, arguments);
    if (line == 0 && is_of_command_line(origin, i))
        return failure_set(failure, code, "%s: --%s: %s", origin->command->program, key, text);
    if (line == 0)
        line = origin->lines[i] != 0 ? origin->lines[i] : origin->line;
    if (line == 0)
        return failure_set(failure, code, "%s: %s: %s", origin->path, key, text);
    return failure_set(failure, code, "%s:%u: %s: %s", origin->path, line, key, text);
}

int config_wrong(const struct config_origin *origin, const char *key, int code, struct failure *failure,
                 const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    wrong(origin, key, 0, code, failure, format, arguments);
    va_end(arguments);
    return code;
}

int config_wrong_value(const struct config_origin *origin, const char *key, const char *value, int code,
                       struct failure *failure, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    wrong(origin, key, line_of_text(origin->storage, value), code, failure, format, arguments);
    va_end(arguments);
    return code;
}

/* ---- Reading --------------------------------------------------------------------------------------------------- */

struct reading {
    const struct config_reader *reader;
    char *options;     /* before the first section, and the defaults of all */
    char *section;     /* those of the section that is read; NULL: none has begun */
    const char *given; /* as they were on the command line */
    struct failure *failure;
    unsigned failed_line; /* 0: none has */
    int result;

    FILE *stream;
    char *line;
    size_t room;
    unsigned number; /* of the line that is read */
    bool has_keys;   /* one has been read since the last section began: inih takes indented lines for more of it */
    struct config_origin origin; /* of the section that is read */
    unsigned *lines;             /* of its keys */
    unsigned *global_lines;      /* of the keys before the first section */
};

__attribute__((format(printf, 4, 5))) static int fail(struct reading *reading, unsigned line, int code,
                                                      const char *format, ...)
{
    char text[sizeof reading->failure->text - 64];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    reading->failed_line = line;
    return reading->result = failure_set(reading->failure, code, "%s:%u: %s", reading->reader->path, line, text);
}

static int out_of_memory(struct reading *reading)
{
    return reading->result = failure_set(reading->failure, -ENOMEM, "out of memory");
}

static struct option_list *list_of(const struct option_spec *option, char *options)
{
    return (struct option_list *)(void *)(options + option->offset);
}

/* The list becomes a copy of another; the strings are shared. */
static int copy_list(struct option_list *list, const struct option_list *other)
{
    *list = (struct option_list){0};
    if (other->count == 0)
        return 0;
    list->items = reallocarray(NULL, other->count, sizeof *list->items);
    if (list->items == NULL)
        return -ENOMEM;
    memcpy(list->items, other->items, other->count * sizeof *list->items);
    list->count = other->count;
    return 0;
}

/* All keys before the first section have been read. */
static int take_command_line(struct reading *reading)
{
    const struct command_spec *command = reading->reader->command;
    for (size_t i = 0; command->options[i].type != OPTION_END; i++) {
        const struct option_spec *option = &command->options[i];
        int result = 0;
        if (command->given == NULL || command->given[i] == NULL)
            continue;
        if (option->type == OPTION_LIST) {
            const struct option_list *list = (const void *)(reading->given + option->offset);
            option_list_free(list_of(option, reading->options));
            result = copy_list(list_of(option, reading->options), list);
        } else {
            result = options_set(command, option->name, command->given[i], reading->options, command->program,
                                 reading->failure);
        }
        if (result < 0)
            return result == -ENOMEM ? out_of_memory(reading) : (reading->result = result);
    }
    return 0;
}

static void free_section(struct reading *reading)
{
    if (reading->section != NULL)
        options_free_lists(reading->reader->command, reading->section);
    free(reading->section);
    reading->section = NULL;
}

static int finish_section(struct reading *reading)
{
    const struct config_reader *reader = reading->reader;
    if (reading->section == NULL)
        return take_command_line(reading);
    if (!reading->has_keys && reader->section_needs != NULL)
        return fail(reading, reading->origin.line, -EINVAL, "this section is empty; it needs %s",
                    reader->section_needs);
    reading->origin.storage = *reader->storage;
    int result = reader->finish(reader->context, reading->section, &reading->origin, reading->failure);
    free_section(reading);
    if (result < 0)
        reading->failed_line = reading->origin.line;
    return reading->result = result;
}

static int begin_section(struct reading *reading, const char *name)
{
    const struct config_reader *reader = reading->reader;
    const struct option_spec *table = reader->command->options;
    struct failure why;
    if (reading->section == NULL && strcmp(name, GLOBAL) == 0)
        return 0;
    if (reader->section == NULL)
        return fail(reading, reading->number, -EINVAL, "[%.100s]: this file has no sections but [" GLOBAL "]", name);
    if (strcmp(name, GLOBAL) == 0)
        return fail(reading, reading->number, -EINVAL, "[" GLOBAL "] must stand before the %ss", reader->section);
    if (finish_section(reading) < 0)
        return reading->result;
    reading->section = malloc(reader->size);
    if (reading->section == NULL)
        return out_of_memory(reading);
    memcpy(reading->section, reading->options, reader->size);
    int result = 0;
    for (size_t i = 0; table[i].type != OPTION_END; i++) {
        reading->lines[i] = 0;
        if (table[i].type == OPTION_LIST &&
            copy_list(list_of(&table[i], reading->section), list_of(&table[i], reading->options)) < 0)
            result = -ENOMEM;
    }
    if (result < 0)
        return out_of_memory(reading);
    reading->origin.line = reading->number;
    reading->has_keys = false;
    result = reader->begin(reader->context, name, &why);
    return result < 0 ? fail(reading, reading->number, result, "%.600s", why.text) : 0;
}

/* Where a comment begins that stands behind a section's name, or the line's end. */
static const char *find_comment(const char *line)
{
    const char *at = line + strcspn(line, ";#");
    while (*at != '\0' && (at == line || (at[-1] != ' ' && at[-1] != '\t')))
        at += 1 + strcspn(at + 1, ";#");
    return at;
}

/* The name if this line begins a section, else NULL. Behind a key, an indented line goes on with its value: "[" begins
 * an IPv6 address there. */
static char *section_name(struct reading *reading, const char *line)
{
    const char *start = line;
    if (reading->number == 1 && strncmp(start, "\xef\xbb\xbf", 3) == 0)
        start += 3;
    const char *name = start + strspn(start, " \t");
    if (*name != '[' || (name > start && reading->has_keys))
        return NULL;
    /* An IPv6 address may stand in brackets of its own. */
    const char *comment = find_comment(name), *end = memrchr(name, ']', (size_t)(comment - name));
    if (end == NULL)
        return NULL;
    if (end + 1 + strspn(end + 1, " \t\r\n") < comment) {
        fail(reading, reading->number, -EINVAL, "behind [%.*s] only a comment may stand, which begins with # or ;",
             (int)(end - name - 1), name + 1);
        return NULL;
    }
    return strndup(name + 1, (size_t)(end - name - 1));
}

/* fgets for inih. */
static char *next_line(char *buffer, int size, void *context)
{
    struct reading *reading = context;
    const struct config_reader *reader = reading->reader;
    if (reading->result < 0)
        return NULL;
    ssize_t length = getline(&reading->line, &reading->room, reading->stream);
    if (length < 0) {
        if (ferror(reading->stream))
            reading->result =
                failure_set(reading->failure, -errno, "%s: cannot read %.300s: %s (%s)", reader->command->program,
                            reader->path, text_errno_meaning(errno), text_errno_name(errno));
        return NULL;
    }
    reading->number++;
    if (strlen(reading->line) != (size_t)length) {
        fail(reading, reading->number, -EINVAL, "this is no text: it has a NUL byte");
        return NULL;
    }
    CLEANUP_FREE char *name = section_name(reading, reading->line);
    if (reading->result < 0)
        return NULL;
    if (name != NULL) {
        /* What inih makes of it is not asked: it would cut a long name. */
        memcpy(buffer, "[]\n", 4);
        return begin_section(reading, name) < 0 ? NULL : buffer;
    }
    if (length >= size) {
        fail(reading, reading->number, -EINVAL, "the line is longer than %d bytes%s%s", size - 1,
             reader->long_line != NULL ? "; " : "", reader->long_line != NULL ? reader->long_line : "");
        return NULL;
    }
    memcpy(buffer, reading->line, (size_t)length + 1);
    return buffer;
}

static int take_key(struct reading *reading, const char *key, const char *value)
{
    const struct config_reader *reader = reading->reader;
    const struct command_spec *command = reader->command;
    bool in_section = reading->section != NULL;
    size_t i = option_index(command, key);
    const struct option_spec *option = &command->options[i];
    unsigned *lines = in_section ? reading->lines : reading->global_lines;
    char where[sizeof reading->failure->text / 2];
    struct failure why;

    if (strcmp(key, "config") == 0 || strcmp(key, "check-config") == 0)
        return fail(reading, reading->number, -EINVAL, "%s is for the command line", key);
    if (option->type != OPTION_END && in_section && option->offset < reader->section_offset)
        return fail(reading, reading->number, -EINVAL, "%s belongs to the process; write it before the first %s", key,
                    reader->section);
    if (option->type != OPTION_END && *value == '\0')
        return fail(reading, reading->number, -EINVAL, "%s needs a value: %s = %s", key, key,
                    option->argument != NULL ? option->argument : "yes");
    if (option->type != OPTION_LIST && lines[i] != 0)
        return fail(reading, reading->number, -EINVAL,
                    "%s was given before, in line %u (an indented line goes on with the key above it)", key, lines[i]);
    lines[i] = reading->number;
    int result = option->type != OPTION_END && reader->take != NULL
                     ? reader->take(reader->context, in_section, option, value, &why)
                     : 0;
    if (result < 0)
        return fail(reading, reading->number, result, "%.600s", why.text);
    if (result > 0)
        return 0;

    const char *kept = keep(reader->storage, value, strlen(value), reading->number);
    if (kept == NULL)
        return out_of_memory(reading);
    snprintf(where, sizeof where, "%s:%u", reader->path, reading->number);
    result = options_set(command, key, kept, in_section ? reading->section : reading->options, where, reading->failure);
    if (result < 0) {
        reading->result = result == -ENOENT ? -EINVAL : result;
        reading->failed_line = reading->number;
    }
    return result;
}

/* inih's handler. */
static int on_key(void *context, const char *section, const char *key, const char *value)
{
    struct reading *reading = context;
    (void)section; /* it is known better here */
    reading->has_keys = true;
    return reading->result == 0 && take_key(reading, key, value) == 0;
}

static int read_stream(struct reading *reading)
{
    int line = ini_parse_stream(next_line, reading, on_key, reading);
    /* inih goes on behind what it does not understand, so that another mistake may have been found since. */
    if (line > 0 && (reading->result == 0 || (unsigned)line < reading->failed_line))
        return fail(reading, (unsigned)line, -EINVAL, "this is not understood; write %s", reading->reader->grammar);
    if (reading->result < 0)
        return reading->result;
    return line < 0 ? out_of_memory(reading) : finish_section(reading);
}

int config_file_read(const struct config_reader *reader, void *options, unsigned *lines,
                     struct config_origin *ret_origin, struct failure *failure)
{
    const struct command_spec *command = reader->command;
    size_t count = option_index(command, "") + 1;
    CLEANUP_FREE char *given = malloc(reader->size);
    CLEANUP_FREE unsigned *section_lines = calloc(count, sizeof *section_lines);
    struct reading reading = {
        .reader = reader,
        .options = options,
        .given = given,
        .failure = failure,
        .origin = {.command = command, .path = reader->path, .lines = section_lines},
        .lines = section_lines,
        .global_lines = lines,
    };
    if (given == NULL || section_lines == NULL)
        return out_of_memory(&reading);
    memset(lines, 0, count * sizeof *lines);
    reading.stream = fopen(reader->path, "re");
    if (reading.stream == NULL)
        return failure_set(failure, -errno, "%s: cannot read %.300s: %s (%s)", command->program, reader->path,
                           text_errno_meaning(errno), text_errno_name(errno));
    memcpy(given, options, reader->size);
    struct command_spec defaults = *command;
    struct positionals none;
    char *no_arguments[] = {NULL};
    defaults.given = NULL;
    defaults.positional_min = 0;
    int result = options_parse(&defaults, 0, no_arguments, options, &none, failure);
    if (result == 0)
        result = read_stream(&reading);
    free_section(&reading);
    options_free_lists(command, given);
    free(reading.line);
    fclose(reading.stream);
    if (result == 0 && ret_origin != NULL)
        *ret_origin = (struct config_origin){
            .command = command, .path = reader->path, .lines = lines, .storage = *reader->storage};
    return result;
}
