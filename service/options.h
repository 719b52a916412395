/* SPDX-License-Identifier: MIT
 *
 * A command line as data: one table gives parsing, defaults, --help, shell completion and the check of the man page.
 *
 *     struct serve_options { const char *listen; uint64_t workers; uint64_t idle; bool receipts; unsigned route; };
 *
 *     static const struct option_spec serve_option_table[] = {
 *         {.type = OPTION_HEADING, .help = "Listening"},
 *         {"listen", 'l', "ADDR:PORT", "where to accept connections", OPTION_ADDRESS,
 *          offsetof(struct serve_options, listen), .default_text = "127.0.0.1:8080"},
 *         {"idle", 0, "TIME", "close a connection that asks nothing for this long", OPTION_DURATION,
 *          offsetof(struct serve_options, idle), .default_text = "60s", .min = 1},
 *         {"receipts", 0, NULL, "print a receipt for every connection", OPTION_FLAG,
 *          offsetof(struct serve_options, receipts)},
 *         {.type = OPTION_END},
 *     };
 *
 * Accepted: --name value, --name=value, -x value, -xvalue, -xyz for flags, --no-name for flags, -- (all that follows is
 * positional), and options after positionals. "-" is positional. An option given twice: the last one counts. Names are
 * not abbreviated: a script must not break when a new option makes a prefix ambiguous. --help, -h and --version are
 * built in. A configuration file uses the same table, by options_set.
 */
#ifndef SLUICE_SERVICE_OPTIONS_H
#define SLUICE_SERVICE_OPTIONS_H

#include "base/failure.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What the process's exit code means, everywhere in sluice. */
enum exit_code {
    EXIT_CODE_DONE = 0,
    EXIT_CODE_FAILED = 1,
    EXIT_CODE_USAGE = 2,
};

enum option_type {
    OPTION_END = 0,  /* ends the table */
    OPTION_HEADING,  /* not an option: its help text heads a group in --help */
    OPTION_FLAG,     /* bool */
    OPTION_TEXT,     /* const char *, pointing into argv or default_text; NULL when neither was given */
    OPTION_ADDRESS,  /* as TEXT, checked to be HOST:PORT (names are not resolved yet) */
    OPTION_UNSIGNED, /* uint64_t */
    OPTION_SIZE,     /* uint64_t bytes: "64K" */
    OPTION_DURATION, /* uint64_t milliseconds: "30s" */
    OPTION_CHOICE,   /* unsigned: index into choices */
    OPTION_LIST,     /* struct option_list: may be given several times. It has no default */
};

/* What was given, in its order. Free it by option_list_free. */
struct option_list {
    const char **items; /* each as for OPTION_TEXT */
    unsigned count;
};

struct option_spec {
    const char *name;     /* long, without dashes; every option has one */
    char short_name;      /* or 0 */
    const char *argument; /* what stands for the value in --help: "SIZE"; NULL for a flag. Shells complete FILE, PATH
                             and DIR */
    const char *help;     /* one sentence or two, no full stop needed; wrapped by us */
    enum option_type type;
    size_t offset;            /* of the member in the caller's struct */
    const char *default_text; /* parsed like a given value; "yes" for a flag that is on; NULL: member left as it was */
    const char *const *choices;        /* OPTION_CHOICE: NULL-terminated */
    const char *const *(*known)(void); /* OPTION_TEXT: what shells propose, likewise; NULL: nobody can guess it */
    uint64_t min, max;                 /* UNSIGNED, SIZE, DURATION; max 0: no upper limit */
    bool hidden;                       /* not in --help (still in options_each) */
};

struct command_spec {
    const char *program;     /* "sluice serve" */
    const char *positionals; /* in the usage line: "[DIR]"; NULL: none */
    unsigned positional_min, positional_max;
    const char *summary;               /* one paragraph under the usage line */
    const char *version;               /* printed after program's first word by options_print_version */
    const struct option_spec *options; /* ends with OPTION_END */
    const char *const *examples;       /* NULL-terminated pairs: command, what it does; or NULL */
    const char *footer;                /* last paragraph, or NULL */
    const char **given; /* NULL, or one for each entry of options, set by options_parse: the (last) value that stood on
                           the command line, "yes" or "no" for a flag; NULL: the option was not given */
};

/* How options_parse ended well. */
enum options_outcome {
    OPTIONS_RUN = 0, /* members and positionals are set */
    OPTIONS_HELP,    /* --help was given: options_print_help, then EXIT_CODE_DONE */
    OPTIONS_VERSION, /* --version was given */
};

struct positionals {
    char **items; /* the first count of argv's items, reordered in place: argv[0..] is overwritten */
    unsigned count;
};

/* argv without the program's name (of "sluice serve DIR --receipts": "DIR", "--receipts"). Sets defaults, then the
 * members of *target. Returns an options_outcome, or -EINVAL with failure->text like
 *     sluice serve: unknown option --lisen; did you mean --listen?
 *     sluice serve: --workers takes a number from 1 to 1024, not "many"
 * (print it, add options_hint, exit with EXIT_CODE_USAGE). */
int options_parse(const struct command_spec *command, int argc, char **argv, void *target,
                  struct positionals *ret_positionals, struct failure *failure);

/* Parse, and do the usual: print help or version to stdout, errors to stderr. Returns -1 to go on, or the exit code.
 * Two arguments, OPTIONS_COMPLETION and a shell's name, print the command's part of the shell's completion script: so
 * that whoever knows the commands can put the script together, and their tables stay their own. */
#define OPTIONS_COMPLETION "--print-completion"
int options_parse_or_exit_code(const struct command_spec *command, int argc, char **argv, void *target,
                               struct positionals *ret_positionals);

/* Set one option's member of *target from a text, as if it had been given on the command line; a flag takes yes or no
 * (true, on, false, off). where begins the message: "proxy.conf:12"; options are named in it without dashes, as they
 * are written in files. value must live as long as *target. Returns 0, -EINVAL with failure->text, -ENOMEM (a list), or
 * -ENOENT: there is no such option (a similar one is proposed in failure->text). */
int options_set(const struct command_spec *command, const char *name, const char *value, void *target,
                const char *where, struct failure *failure);

/* The list is empty then. Harmless on an empty one. */
void option_list_free(struct option_list *list);

/* All lists of the table that are members of *target. */
void options_free_lists(const struct command_spec *command, void *target);

/* The page of --help, wrapped at width columns (0: the terminal's, between 60 and 100; 80 when there is none). */
void options_print_help(const struct command_spec *command, FILE *stream, unsigned width);

/* Try "sluice serve --help". */
void options_print_hint(const struct command_spec *command, FILE *stream);
void options_print_version(const struct command_spec *command, FILE *stream);

/* Call visit for every option, built-in ones included, headings excluded; for completions and the man page check. */
void options_each(const struct command_spec *command, void (*visit)(void *context, const struct option_spec *option),
                  void *context);

/* A flag whose opposite, --no-name, is what people will want to write. */
bool options_on_by_default(const struct option_spec *option);

/* The closest of some names to what was typed, or NULL when none is near: "did you mean". Used for subcommands, too. */
const char *options_nearest(const char *typed, const char *const *names);

#endif
