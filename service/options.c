/* SPDX-License-Identifier: MIT */
#include "service/options.h"
#include "base/text.h"
#include "service/address.h"
#include "service/completion.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static const struct option_spec built_in[] = {
    {.name = "help", .short_name = 'h', .help = "show this text", .type = OPTION_FLAG},
    {.name = "version", .help = "show the version", .type = OPTION_FLAG},
    {.type = OPTION_END},
};

struct parser {
    const struct command_spec *command;
    const char *where;  /* begins messages */
    const char *dashes; /* before an option's name in messages */
    char *target;
    struct failure *failure;
};

/* How an option is shown in messages. */
static const char *shown(const struct parser *parser, const struct option_spec *option, char buffer[64])
{
    snprintf(buffer, 64, "%s%s", parser->dashes, option->name);
    return buffer;
}

/* The value's limits in words: "from 1 to 1024", "of at least 1 KiB". */
static void describe_limits(const struct option_spec *option, char *buffer, size_t size)
{
    char min[TEXT_SIZE_MAX], max[TEXT_SIZE_MAX];
    buffer[0] = '\0';
    if (option->type == OPTION_SIZE) {
        text_format_size(option->min, min, sizeof min);
        text_format_size(option->max, max, sizeof max);
    } else if (option->type == OPTION_DURATION) {
        text_format_duration(option->min, min, sizeof min);
        text_format_duration(option->max, max, sizeof max);
    } else {
        snprintf(min, sizeof min, "%" PRIu64, option->min);
        snprintf(max, sizeof max, "%" PRIu64, option->max);
    }
    if (option->max != 0)
        snprintf(buffer, size, " from %s to %s", min, max);
    else if (option->min != 0)
        snprintf(buffer, size, " of at least %s", min);
}

static int set_number(const struct parser *parser, const struct option_spec *option, const char *value)
{
    static int (*const parse[])(const char *, uint64_t *) = {
        [OPTION_UNSIGNED] = text_parse_unsigned,
        [OPTION_SIZE] = text_parse_size,
        [OPTION_DURATION] = text_parse_duration,
    };
    static const char *const kinds[] = {
        [OPTION_UNSIGNED] = "a number",
        [OPTION_SIZE] = "a size, such as 64K or 1.5M,",
        [OPTION_DURATION] = "a time, such as 500ms, 30s or 2m,",
    };
    uint64_t number;
    int result = parse[option->type](value, &number);
    if (result == 0 && number >= option->min && (option->max == 0 || number <= option->max)) {
        memcpy(parser->target + option->offset, &number, sizeof number);
        return 0;
    }
    char limits[96], name[64], kind[48];
    describe_limits(option, limits, sizeof limits);
    snprintf(kind, sizeof kind, "%s", kinds[option->type]);
    if (limits[0] == '\0' && kind[strlen(kind) - 1] == ',')
        kind[strlen(kind) - 1] = '\0';
    return failure_set(parser->failure, -EINVAL, "%s: %s takes %s%s, not \"%.100s\"", parser->where,
                       shown(parser, option, name), kind, limits, value);
}

static int set_choice(const struct parser *parser, const struct option_spec *option, const char *value)
{
    for (unsigned i = 0; option->choices[i] != NULL; i++) {
        if (strcmp(option->choices[i], value) == 0) {
            memcpy(parser->target + option->offset, &i, sizeof i);
            return 0;
        }
    }
    char list[300] = "", name[64];
    size_t at = 0;
    for (unsigned i = 0; option->choices[i] != NULL && at < sizeof list; i++) {
        const char *separator = i == 0 ? "" : option->choices[i + 1] == NULL ? " or " : ", ";
        at += (size_t)snprintf(list + at, sizeof list - at, "%s%s", separator, option->choices[i]);
    }
    const char *nearest = options_nearest(value, option->choices);
    return failure_set(parser->failure, -EINVAL, "%s: %s takes %s, not \"%.100s\"%s%s%s", parser->where,
                       shown(parser, option, name), list, value, nearest != NULL ? "; did you mean " : "",
                       nearest != NULL ? nearest : "", nearest != NULL ? "?" : "");
}

static void set_flag(const struct parser *parser, const struct option_spec *option, bool on)
{
    memcpy(parser->target + option->offset, &on, sizeof on);
}

static int append(const struct parser *parser, const struct option_spec *option, const char *value)
{
    struct option_list list;
    memcpy(&list, parser->target + option->offset, sizeof list);
    const char **items = reallocarray(list.items, list.count + 1, sizeof *items);
    if (items == NULL)
        return failure_set(parser->failure, -ENOMEM, "%s: out of memory", parser->where);
    items[list.count] = value;
    list.items = items;
    list.count++;
    memcpy(parser->target + option->offset, &list, sizeof list);
    return 0;
}

void option_list_free(struct option_list *list)
{
    free(list->items);
    *list = (struct option_list){0};
}

void options_free_lists(const struct command_spec *command, void *target)
{
    for (const struct option_spec *option = command->options; option->type != OPTION_END; option++)
        if (option->type == OPTION_LIST)
            option_list_free((struct option_list *)(void *)((char *)target + option->offset));
}

static int set_value(const struct parser *parser, const struct option_spec *option, const char *value)
{
    char name[64];
    struct failure why;
    switch (option->type) {
    case OPTION_FLAG:
        set_flag(parser, option, strcmp(value, "yes") == 0);
        return 0;
    case OPTION_ADDRESS:
        if (address_check(value, &why) < 0)
            return failure_set(parser->failure, -EINVAL, "%s: %s: %.500s", parser->where, shown(parser, option, name),
                               why.text);
        memcpy(parser->target + option->offset, &value, sizeof value);
        return 0;
    case OPTION_TEXT:
        memcpy(parser->target + option->offset, &value, sizeof value);
        return 0;
    case OPTION_UNSIGNED:
    case OPTION_SIZE:
    case OPTION_DURATION:
        return set_number(parser, option, value);
    case OPTION_CHOICE:
        return set_choice(parser, option, value);
    case OPTION_LIST:
        return append(parser, option, value);
    case OPTION_END:
    case OPTION_HEADING:
        break;
    }
    abort(); /* the caller looked the option up by name, and these have none */
}

static bool is_option(const struct option_spec *option)
{
    return option->type != OPTION_HEADING;
}

static const struct option_spec *find_in(const struct option_spec *options, const char *name, size_t length)
{
    for (; options->type != OPTION_END; options++)
        if (is_option(options) && strlen(options->name) == length && memcmp(options->name, name, length) == 0)
            return options;
    return NULL;
}

static const struct option_spec *find_long(const struct command_spec *command, const char *name, size_t length)
{
    const struct option_spec *option = find_in(command->options, name, length);
    return option != NULL ? option : find_in(built_in, name, length);
}

static const struct option_spec *find_short(const struct command_spec *command, char letter)
{
    const struct option_spec *const tables[] = {command->options, built_in};
    for (unsigned i = 0; i < 2; i++)
        for (const struct option_spec *option = tables[i]; option->type != OPTION_END; option++)
            if (is_option(option) && option->short_name == letter)
                return option;
    return NULL;
}

/* Two edits, one of a short name, or a third of a longer one; or what was typed is the beginning of a name, or its last
 * word. Ties go to the first. */
struct nearest {
    const char *typed, *name;
    unsigned distance;
};

static void consider(struct nearest *nearest, const char *name)
{
    size_t length = strlen(nearest->typed), name_length = strlen(name);
    unsigned distance = text_distance(nearest->typed, name, nearest->distance);
    if (length >= 3 && strncmp(nearest->typed, name, length) == 0)
        distance = 1;
    if (length >= 3 && name_length > length && name[name_length - length - 1] == '-' &&
        strcmp(name + name_length - length, nearest->typed) == 0)
        distance = 0;
    if (distance < nearest->distance) {
        nearest->distance = distance;
        nearest->name = name;
    }
}

static struct nearest nearest_to(const char *typed)
{
    size_t length = strlen(typed);
    /* A name of one or two letters is near everything, one of four near half of it: "port", "root". */
    unsigned limit = length < 3 ? 1 : length < 5 ? 2 : length < 8 ? 3 : (unsigned)(length / 3 + 1);
    return (struct nearest){.typed = typed, .distance = limit};
}

const char *options_nearest(const char *typed, const char *const *names)
{
    struct nearest nearest = nearest_to(typed);
    for (; *names != NULL; names++)
        consider(&nearest, *names);
    return nearest.name;
}

static void consider_option(void *context, const struct option_spec *option)
{
    if (!option->hidden)
        consider(context, option->name);
}

static int unknown_option(const struct parser *parser, const char *name, size_t length)
{
    char typed[64];
    snprintf(typed, sizeof typed, "%.*s", (int)(length < sizeof typed ? length : sizeof typed - 1), name);
    struct nearest nearest = nearest_to(typed);
    options_each(parser->command, consider_option, &nearest);
    if (nearest.name != NULL)
        return failure_set(parser->failure, -EINVAL, "%s: unknown option --%s; did you mean --%s?", parser->where,
                           typed, nearest.name);
    return failure_set(parser->failure, -EINVAL, "%s: unknown option --%s", parser->where, typed);
}

int options_set(const struct command_spec *command, const char *name, const char *value, void *target,
                const char *where, struct failure *failure)
{
    static const char *const words[] = {"no", "yes", "off", "on", "false", "true"};
    struct parser parser = {.command = command, .where = where, .dashes = "", .target = target, .failure = failure};
    const struct option_spec *option = find_in(command->options, name, strlen(name));
    if (option == NULL) {
        struct nearest nearest = nearest_to(name);
        for (const struct option_spec *each = command->options; each->type != OPTION_END; each++)
            if (is_option(each))
                consider_option(&nearest, each);
        return failure_set(failure, -ENOENT, "%s: unknown key \"%.100s\"%s%s%s", where, name,
                           nearest.name != NULL ? "; did you mean " : "", nearest.name != NULL ? nearest.name : "",
                           nearest.name != NULL ? "?" : "");
    }
    if (option->type != OPTION_FLAG)
        return set_value(&parser, option, value);
    for (unsigned i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (strcmp(value, words[i]) == 0) {
            set_flag(&parser, option, i % 2 != 0);
            return 0;
        }
    }
    return failure_set(failure, -EINVAL, "%s: %s takes yes or no, not \"%.100s\"", where, name, value);
}

static int value_missing(const struct parser *parser, const struct option_spec *option)
{
    char name[64];
    return failure_set(parser->failure, -EINVAL, "%s: %s needs a value: %s=%s", parser->command->program,
                       shown(parser, option, name), name, option->argument != NULL ? option->argument : "VALUE");
}

/* Note what stood on the command line, and set it. */
static int take(const struct parser *parser, const struct option_spec *option, const char *value)
{
    if (parser->command->given != NULL)
        parser->command->given[option - parser->command->options] = value;
    return set_value(parser, option, value);
}

/* Which built-in option was asked for, or OPTIONS_RUN. */
static int built_in_outcome(const struct option_spec *option)
{
    return option == &built_in[0] ? OPTIONS_HELP : option == &built_in[1] ? OPTIONS_VERSION : OPTIONS_RUN;
}

/* argument without its two dashes; next: the argument behind it or NULL. *used is set when next was taken. */
static int parse_long(const struct parser *parser, const char *argument, const char *next, bool *used)
{
    size_t length = strcspn(argument, "=");
    const char *value = argument[length] == '=' ? argument + length + 1 : NULL;
    const struct option_spec *option = find_long(parser->command, argument, length);
    bool negated = false;
    if (option == NULL && length > 3 && strncmp(argument, "no-", 3) == 0) {
        option = find_in(parser->command->options, argument + 3, length - 3);
        if (option != NULL && option->type != OPTION_FLAG)
            option = NULL;
        negated = true;
    }
    if (option == NULL)
        return unknown_option(parser, argument, length);
    if (option->type == OPTION_FLAG) {
        char name[64];
        if (value != NULL)
            return failure_set(parser->failure, -EINVAL, "%s: %s is on or off and takes no value, not even \"%.100s\"",
                               parser->command->program, shown(parser, option, name), value);
        int outcome = built_in_outcome(option);
        return outcome != OPTIONS_RUN ? outcome : take(parser, option, negated ? "no" : "yes");
    }
    if (value == NULL) {
        if (next == NULL)
            return value_missing(parser, option);
        value = next;
        *used = true;
    }
    return take(parser, option, value);
}

/* letters: what stands behind the dash. */
static int parse_short(const struct parser *parser, const char *letters, const char *next, bool *used)
{
    /* "-listen": a dash is missing. Taken literally it would be -l with the value "isten". */
    if (letters[1] != '\0' && find_long(parser->command, letters, strcspn(letters, "=")) != NULL)
        return failure_set(parser->failure, -EINVAL, "%s: unknown option -%s; did you mean --%s?",
                           parser->command->program, letters, letters);
    for (; *letters != '\0'; letters++) {
        const struct option_spec *option = find_short(parser->command, *letters);
        if (option == NULL)
            return failure_set(parser->failure, -EINVAL, "%s: unknown option -%c", parser->command->program, *letters);
        if (option->type == OPTION_FLAG) {
            int outcome = built_in_outcome(option);
            if (outcome != OPTIONS_RUN)
                return outcome;
            take(parser, option, "yes");
            continue;
        }
        if (letters[1] != '\0')
            return take(parser, option, letters[1] == '=' ? letters + 2 : letters + 1);
        if (next == NULL)
            return value_missing(parser, option);
        *used = true;
        return take(parser, option, next);
    }
    return OPTIONS_RUN;
}

int options_parse(const struct command_spec *command, int argc, char **argv, void *target,
                  struct positionals *ret_positionals, struct failure *failure)
{
    struct parser parser = {
        .command = command, .where = command->program, .dashes = "--", .target = target, .failure = failure};
    for (const struct option_spec *option = command->options; option->type != OPTION_END; option++) {
        if (command->given != NULL)
            command->given[option - command->options] = NULL;
        if (!is_option(option))
            continue;
        if (option->default_text != NULL) {
            int result = set_value(&parser, option, option->default_text);
            if (result < 0)
                return result;
        } else if (option->type == OPTION_FLAG) {
            set_flag(&parser, option, false);
        } else if (option->type == OPTION_TEXT || option->type == OPTION_ADDRESS) {
            const char *none = NULL;
            memcpy(parser.target + option->offset, &none, sizeof none);
        } else if (option->type == OPTION_LIST) {
            memset(parser.target + option->offset, 0, sizeof(struct option_list));
        }
    }

    struct positionals positionals = {.items = argv};
    bool only_positionals = false;
    for (int i = 0; i < argc; i++) {
        char *argument = argv[i];
        const char *next = i + 1 < argc ? argv[i + 1] : NULL;
        bool used = false;
        int result = OPTIONS_RUN;
        if (only_positionals || argument[0] != '-' || argument[1] == '\0')
            argv[positionals.count++] = argument;
        else if (strcmp(argument, "--") == 0)
            only_positionals = true;
        else if (argument[1] == '-')
            result = parse_long(&parser, argument + 2, next, &used);
        else
            result = parse_short(&parser, argument + 1, next, &used);
        if (result != OPTIONS_RUN)
            return result;
        if (used)
            i++;
    }

    if (positionals.count > command->positional_max) {
        const char *surplus = argv[command->positional_max];
        if (command->positional_max == 0)
            return failure_set(failure, -EINVAL, "%s: takes options only, not \"%.100s\"", command->program, surplus);
        if (command->positional_max == 1)
            return failure_set(failure, -EINVAL, "%s: takes %s and no more, but \"%.100s\" follows", command->program,
                               command->positionals, surplus);
        return failure_set(failure, -EINVAL, "%s: takes %s, %u at most, but \"%.100s\" follows", command->program,
                           command->positionals, command->positional_max, surplus);
    }
    if (positionals.count < command->positional_min)
        return failure_set(failure, -EINVAL, "%s: needs %s", command->program, command->positionals);
    *ret_positionals = positionals;
    return OPTIONS_RUN;
}

int options_parse_or_exit_code(const struct command_spec *command, int argc, char **argv, void *target,
                               struct positionals *ret_positionals)
{
    enum completion_shell shell;
    if (argc == 2 && strcmp(argv[0], OPTIONS_COMPLETION) == 0 && completion_shell_by_name(argv[1], &shell) == 0) {
        completion_command(shell, command, stdout);
        return EXIT_CODE_DONE;
    }
    struct failure failure;
    int outcome = options_parse(command, argc, argv, target, ret_positionals, &failure);
    if (outcome == OPTIONS_RUN)
        return -1;
    if (outcome < 0) {
        fprintf(stderr, "%s\n", failure.text);
        options_print_hint(command, stderr);
        return EXIT_CODE_USAGE;
    }
    if (outcome == OPTIONS_HELP)
        options_print_help(command, stdout, 0);
    else
        options_print_version(command, stdout);
    return fflush(stdout) == 0 ? EXIT_CODE_DONE : EXIT_CODE_FAILED;
}

void options_each(const struct command_spec *command, void (*visit)(void *context, const struct option_spec *option),
                  void *context)
{
    const struct option_spec *const tables[] = {command->options, built_in};
    for (unsigned i = 0; i < 2; i++)
        for (const struct option_spec *option = tables[i]; option->type != OPTION_END; option++)
            if (is_option(option))
                visit(context, option);
}

/* ---- --help --------------------------------------------------------------------------------------------------- */

#define WIDTH_MIN 60
#define WIDTH_MAX 100
#define LEFT_MAX 30 /* the column of explanations begins here at the latest */

static unsigned terminal_width(FILE *stream)
{
    struct winsize size;
    int fd = fileno(stream);
    if (fd < 0 || ioctl(fd, TIOCGWINSZ, &size) < 0 || size.ws_col == 0)
        return 80;
    return size.ws_col < WIDTH_MIN ? WIDTH_MIN : size.ws_col > WIDTH_MAX ? WIDTH_MAX : size.ws_col;
}

/* Print text word by word, from column on, in lines of at most width; further lines begin at indent. */
static void print_wrapped(FILE *stream, const char *text, unsigned column, unsigned indent, unsigned width)
{
    bool first = true;
    while (*text != '\0') {
        unsigned length = (unsigned)strcspn(text, " ");
        if (!first && column + 1 + length > width) {
            fprintf(stream, "\n%*s", (int)indent, "");
            column = indent;
            first = true;
        }
        if (!first) {
            fputc(' ', stream);
            column++;
        }
        fprintf(stream, "%.*s", (int)length, text);
        column += length;
        first = false;
        text += length;
        text += strspn(text, " ");
    }
    fputc('\n', stream);
}

bool options_on_by_default(const struct option_spec *option)
{
    return option->type == OPTION_FLAG && option->default_text != NULL && strcmp(option->default_text, "yes") == 0;
}

/* "  -l, --listen ADDR:PORT"; returns its length. */
static unsigned format_left(const struct option_spec *option, char *buffer, size_t size)
{
    char letter[8] = "    ";
    if (option->short_name != 0)
        snprintf(letter, sizeof letter, "-%c, ", option->short_name);
    int length =
        snprintf(buffer, size, "  %s--%s%s%s%s", letter, options_on_by_default(option) ? "[no-]" : "", option->name,
                 option->argument != NULL ? " " : "", option->argument != NULL ? option->argument : "");
    return (unsigned)length;
}

/* The explanation, with the choices and the default in parentheses behind it. */
static void format_right(const struct option_spec *option, char *buffer, size_t size)
{
    size_t at = (size_t)snprintf(buffer, size, "%s", option->help);
    const char *before = " (";
    for (unsigned i = 0; option->type == OPTION_CHOICE && option->choices[i] != NULL && at < size; i++) {
        at += (size_t)snprintf(buffer + at, size - at, "%s%s", before, option->choices[i]);
        before = ", ";
    }
    bool has_default = option->default_text != NULL && option->type != OPTION_FLAG;
    if (has_default && at < size)
        at += (size_t)snprintf(buffer + at, size - at, "%sdefault: %s", option->type == OPTION_CHOICE ? "; " : before,
                               option->default_text);
    if ((has_default || option->type == OPTION_CHOICE) && at < size)
        snprintf(buffer + at, size - at, ")");
}

static unsigned left_column(const struct option_spec *options)
{
    unsigned column = 0;
    char left[128];
    for (; options->type != OPTION_END; options++) {
        unsigned length = is_option(options) && !options->hidden ? format_left(options, left, sizeof left) + 2 : 0;
        if (length > column && length <= LEFT_MAX)
            column = length;
    }
    return column;
}

static void print_options(const struct option_spec *options, FILE *stream, unsigned column, unsigned width)
{
    for (; options->type != OPTION_END; options++) {
        if (options->type == OPTION_HEADING) {
            fprintf(stream, "\n%s:\n", options->help);
            continue;
        }
        if (options->hidden)
            continue;
        char left[128], right[1024];
        unsigned length = format_left(options, left, sizeof left);
        format_right(options, right, sizeof right);
        if (length + 2 <= column)
            fprintf(stream, "%-*s", (int)column, left);
        else
            fprintf(stream, "%s\n%*s", left, (int)column, "");
        print_wrapped(stream, right, column, column, width);
    }
}

void options_print_help(const struct command_spec *command, FILE *stream, unsigned width)
{
    if (width == 0)
        width = terminal_width(stream);
    fprintf(stream, "Usage: %s [OPTION]...%s%s\n", command->program, command->positionals != NULL ? " " : "",
            command->positionals != NULL ? command->positionals : "");
    if (command->summary != NULL) {
        fputc('\n', stream);
        print_wrapped(stream, command->summary, 0, 0, width);
    }
    unsigned column = left_column(command->options), own = left_column(built_in);
    if (own > column)
        column = own;
    if (command->options->type != OPTION_HEADING && command->options->type != OPTION_END)
        fprintf(stream, "\nOptions:\n");
    print_options(command->options, stream, column, width);
    fprintf(stream, "\nHelp:\n");
    print_options(built_in, stream, column, width);
    if (command->examples != NULL && command->examples[0] != NULL) {
        fprintf(stream, "\nExamples:\n");
        for (const char *const *example = command->examples; example[0] != NULL; example += 2) {
            fprintf(stream, "  %s\n      ", example[0]);
            print_wrapped(stream, example[1], 6, 6, width);
        }
    }
    if (command->footer != NULL) {
        fputc('\n', stream);
        print_wrapped(stream, command->footer, 0, 0, width);
    }
}

void options_print_hint(const struct command_spec *command, FILE *stream)
{
    fprintf(stream, "Try \"%s --help\".\n", command->program);
}

void options_print_version(const struct command_spec *command, FILE *stream)
{
    int length = (int)strcspn(command->program, " ");
    fprintf(stream, "%.*s %s\n", length, command->program, command->version);
}
