/* SPDX-License-Identifier: MIT
 *
 * A configuration in a file: lines KEY = VALUE, where a key is the name of an option of the command line and means the
 * same, and sections that begin with [NAME]. Keys before the first section (or under [global]) are the process's, and
 * the defaults of all sections. The format is INI, as libinih reads it: comments begin with # or ;, an indented line
 * goes on with the key above it.
 */
#ifndef SLUICE_SERVICE_CONFIG_FILE_H
#define SLUICE_SERVICE_CONFIG_FILE_H

#include "service/options.h"

/* Strings that live as long as the configuration. Begins as NULL. */
struct config_storage;

/* A copy of text; NULL: out of memory. */
char *config_keep(struct config_storage **storage, const char *text, size_t length);

/* All of them. *storage is NULL then. */
void config_forget(struct config_storage **storage);

/* Where options were read, for messages about what they say together. */
struct config_origin {
    const struct command_spec *command;   /* its given tells what stood on the command line, which counts more than the
                                             file's keys before the first section */
    const char *path;                     /* of the file; NULL: the command line */
    unsigned line;                        /* of the section; 0: the file before the first one */
    const unsigned *lines;                /* of each option of the table; 0: it does not stand there */
    const struct config_storage *storage; /* of the file's values, for config_wrong_value; or NULL */
};

/* Was this option given there? */
bool config_has(const struct config_origin *origin, const char *key);

/* failure_set with the place before it: "proxy.conf:12: check-path: ..." or "sluice proxy: --check-path: ...". */
__attribute__((format(printf, 5, 6))) int config_wrong(const struct config_origin *origin, const char *key, int code,
                                                       struct failure *failure, const char *format, ...);

/* The same with the line of one of the option's values, of which there may be several: value is the string that the
 * file gave, not a copy. */
__attribute__((format(printf, 6, 7))) int config_wrong_value(const struct config_origin *origin, const char *key,
                                                             const char *value, int code, struct failure *failure,
                                                             const char *format, ...);

/* How a file is read. Messages of begin and take need not say where: that is put before them. */
struct config_reader {
    const char *path;
    const struct command_spec *command; /* with given: what stood on the command line counts more than what stands
                                           before the first section */
    size_t size;                        /* of the struct that the options are members of */
    size_t section_offset;              /* an option whose member lies here or behind may stand in sections */
    struct config_storage **storage;
    void *context; /* passed to these, which return 0 or a negative errno: */

    /* What one calls a section: "service". NULL: the file has none. With what such a file says when it is not
     * understood. */
    const char *section, *grammar;
    const char *section_needs; /* of keys: "listen and to"; NULL: it may be empty */
    const char *long_line;     /* what to do about a line that is too long; NULL: nothing */

    /* "[NAME]": a section begins. */
    int (*begin)(void *context, const char *name, struct failure *why);

    /* A key, before anything else looks at its value: 1 when it has been taken, 0 to go on. NULL: no key is special. */
    int (*take)(void *context, bool in_section, const struct option_spec *option, const char *value,
                struct failure *why);

    /* The section has ended. options: as size says, the section's over the defaults. Lists in it are freed behind this,
     * unless they were taken out. failure says where (config_wrong). */
    int (*finish)(void *context, void *options, const struct config_origin *origin, struct failure *failure);
};

/* options: as they were parsed from the command line. They become what is in force: the table's defaults, over them
 * the file's, over these what was given on the command line. Of lists that were given on both, the command line's count
 * alone. ret_origin (or NULL): where the keys before the first section stand; its lines are lines[], one for each entry
 * of the table. Returns 0 or a negative errno (-EINVAL: a mistake in the file), with path, line and reason in failure;
 * options have to be freed (options_free_lists) in either case. */
int config_file_read(const struct config_reader *reader, void *options, unsigned *lines,
                     struct config_origin *ret_origin, struct failure *failure);

#endif
