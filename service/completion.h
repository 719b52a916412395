/* SPDX-License-Identifier: MIT
 *
 * Completion for shells, from the same tables as parsing and --help. A script has a beginning, a part for each command,
 * and an end:
 *
 *     completion_begin(shell, commands, count, stdout);
 *     for each command: completion_command(shell, command, stdout);
 *     completion_end(shell, stdout);
 *
 * What is proposed for a value: its choices; files for what is called FILE or PATH, directories for DIR; otherwise
 * nothing. Positionals likewise, by their usage line: directories where it has DIR, nothing where there are none, a
 * command to run where it begins with "--"; files otherwise.
 */
#ifndef SLUICE_SERVICE_COMPLETION_H
#define SLUICE_SERVICE_COMPLETION_H

#include "service/options.h"
#include <stdio.h>

enum completion_shell {
    COMPLETION_BASH,
    COMPLETION_ZSH,
    COMPLETION_FISH,
};

struct completion_command {
    const char *name;
    const char *summary;
};

/* "bash", "zsh" or "fish": 0; otherwise -EINVAL, and *ret_shell is untouched. */
int completion_shell_by_name(const char *name, enum completion_shell *ret_shell);

void completion_begin(enum completion_shell shell, const struct completion_command *commands, size_t count,
                      FILE *stream);
void completion_command(enum completion_shell shell, const struct command_spec *command, FILE *stream);
void completion_end(enum completion_shell shell, FILE *stream);

#endif
