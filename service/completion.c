/* SPDX-License-Identifier: MIT */
#include "service/completion.h"
#include <errno.h>
#include <string.h>

static const char *const shells[] = {[COMPLETION_BASH] = "bash", [COMPLETION_ZSH] = "zsh", [COMPLETION_FISH] = "fish"};

int completion_shell_by_name(const char *name, enum completion_shell *ret_shell)
{
    for (unsigned i = 0; i < sizeof shells / sizeof shells[0]; i++) {
        if (strcmp(name, shells[i]) == 0) {
            *ret_shell = (enum completion_shell)i;
            return 0;
        }
    }
    return -EINVAL;
}

/* ---- What is proposed ------------------------------------------------------------------------------------------- */

enum proposal {
    PROPOSE_NOTHING, /* a value is needed, and nobody can guess it */
    PROPOSE_CHOICES,
    PROPOSE_FILES,
    PROPOSE_DIRECTORIES,
    PROPOSE_COMMAND, /* a program of the host with its arguments */
};

static enum proposal proposal_for(const struct option_spec *option)
{
    if (option->choices != NULL || option->known != NULL)
        return PROPOSE_CHOICES;
    if (option->argument == NULL || option->type == OPTION_ADDRESS)
        return PROPOSE_NOTHING;
    if (strcmp(option->argument, "DIR") == 0)
        return PROPOSE_DIRECTORIES;
    return strcmp(option->argument, "FILE") == 0 || strcmp(option->argument, "PATH") == 0 ? PROPOSE_FILES
                                                                                          : PROPOSE_NOTHING;
}

static enum proposal proposal_for_positionals(const struct command_spec *command)
{
    if (command->positionals == NULL)
        return PROPOSE_NOTHING;
    if (strncmp(command->positionals, "[--", 3) == 0)
        return PROPOSE_COMMAND;
    return strstr(command->positionals, "DIR") != NULL ? PROPOSE_DIRECTORIES : PROPOSE_FILES;
}

static const char *name_of(const struct command_spec *command)
{
    const char *space = strchr(command->program, ' ');
    return space != NULL ? space + 1 : command->program;
}

/* ---- Text in quotes --------------------------------------------------------------------------------------------- */

/* An explanation in one line: up to its first full stop or semicolon, each of special with a backslash before it. In
 * single quotes already: where one occurs in the text, they are left for it. */
static void put_text(const char *text, const char *special, FILE *stream)
{
    for (; *text != '\0'; text++) {
        if ((text[0] == ';' || text[0] == '.') && (text[1] == ' ' || text[1] == '\0'))
            return;
        if (*text == '\'')
            fputs("'\\''", stream);
        else
            fprintf(stream, "%s%c", strchr(special, *text) != NULL ? "\\" : "", *text);
    }
}

static void put_choices(const struct option_spec *option, FILE *stream)
{
    const char *const *choices = option->choices != NULL ? option->choices : option->known();
    for (const char *const *choice = choices; *choice != NULL; choice++)
        fprintf(stream, "%s%s", choice == choices ? "" : " ", *choice);
}

/* What the visitors of the options need. */
struct visit {
    FILE *stream;
    const struct command_spec *command;
};

static void each_option(const struct command_spec *command, FILE *stream,
                        void (*visit)(void *context, const struct option_spec *option))
{
    options_each(command, visit, &(struct visit){.stream = stream, .command = command});
}

/* ---- bash ------------------------------------------------------------------------------------------------------- */

static void bash_begin(const struct completion_command *commands, size_t count, FILE *stream)
{
    fputs("# bash completion for sluice: the output of \"sluice completion bash\".\n"
          "_sluice()\n"
          "{\n"
          "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}\n"
          "    local commands='",
          stream);
    for (size_t i = 0; i < count; i++)
        fprintf(stream, "%s%s", i == 0 ? "" : " ", commands[i].name);
    fputs("'\n"
          "    local options= values= kind= operands= prefix= i\n"
          "    COMPREPLY=()\n"
          "    # \"--name=value\" arrives as three words where the equals sign separates them, and as one elsewhere.\n"
          "    if [[ $word == = ]]; then\n"
          "        word=\n"
          "    elif [[ $word == --*=* ]]; then\n"
          "        before=${word%%=*} prefix=${word%%=*}= word=${word#*=}\n"
          "    elif [[ $before == = ]]; then\n"
          "        before=${COMP_WORDS[COMP_CWORD - 2]}\n"
          "    fi\n"
          "    if ((COMP_CWORD == 1)); then\n"
          "        mapfile -t COMPREPLY < <(compgen -W \"$commands --help --version\" -- \"$word\")\n"
          "        return\n"
          "    fi\n"
          "    case ${COMP_WORDS[1]} in\n",
          stream);
}

static void bash_option(void *context, const struct option_spec *option)
{
    struct visit *visit = context;
    if (option->hidden)
        return;
    fprintf(visit->stream, " --%s", option->name);
    if (options_on_by_default(option))
        fprintf(visit->stream, " --no-%s", option->name);
    if (option->short_name != 0)
        fprintf(visit->stream, " -%c", option->short_name);
}

static void bash_value(void *context, const struct option_spec *option)
{
    static const char *const kinds[] = {
        [PROPOSE_NOTHING] = "nothing", [PROPOSE_FILES] = "files", [PROPOSE_DIRECTORIES] = "directories"};
    struct visit *visit = context;
    if (option->hidden || option->type == OPTION_FLAG)
        return;
    fprintf(visit->stream, "        --%s", option->name);
    if (option->short_name != 0)
        fprintf(visit->stream, " | -%c", option->short_name);
    enum proposal proposal = proposal_for(option);
    if (proposal == PROPOSE_CHOICES) {
        fputs(") kind=choices values='", visit->stream);
        put_choices(option, visit->stream);
        fputs("' ;;\n", visit->stream);
    } else {
        fprintf(visit->stream, ") kind=%s ;;\n", kinds[proposal]);
    }
}

static void bash_command(const struct command_spec *command, FILE *stream)
{
    static const char *const operands[] = {[PROPOSE_NOTHING] = "nothing",
                                           [PROPOSE_FILES] = "files",
                                           [PROPOSE_DIRECTORIES] = "directories",
                                           [PROPOSE_COMMAND] = "command"};
    fprintf(stream, "    %s)\n        options='", name_of(command));
    each_option(command, stream, bash_option);
    fprintf(stream, "'\n        operands=%s\n        case $before in\n", operands[proposal_for_positionals(command)]);
    each_option(command, stream, bash_value);
    fputs("        esac\n        ;;\n", stream);
}

static void bash_end(FILE *stream)
{
    fputs("    esac\n"
          "    for ((i = 2; i < COMP_CWORD; i++)); do # what follows \"--\" are no options\n"
          "        if [[ ${COMP_WORDS[i]} == -- ]]; then\n"
          "            options= kind=$operands\n"
          "            [[ $operands != command || $i -eq $((COMP_CWORD - 1)) ]] || kind=files\n"
          "            break\n"
          "        fi\n"
          "    done\n"
          "    if [[ -z $kind && $word == -* ]]; then\n"
          "        kind=choices values=$options\n"
          "    elif [[ -z $kind ]]; then\n"
          "        kind=$operands\n"
          "        [[ $kind != command ]] || kind=nothing\n"
          "    fi\n"
          "    case $kind in\n"
          "    choices) mapfile -t COMPREPLY < <(compgen -W \"$values\" -- \"$word\") ;;\n"
          "    command) mapfile -t COMPREPLY < <(compgen -c -- \"$word\") ;;\n"
          "    directories)\n"
          "        compopt -o filenames 2>/dev/null\n"
          "        mapfile -t COMPREPLY < <(compgen -d -- \"$word\")\n"
          "        ;;\n"
          "    files)\n"
          "        compopt -o filenames 2>/dev/null\n"
          "        mapfile -t COMPREPLY < <(compgen -f -- \"$word\")\n"
          "        ;;\n"
          "    esac\n"
          "    [[ -z $prefix || ${#COMPREPLY[@]} -eq 0 ]] || COMPREPLY=(\"${COMPREPLY[@]/#/$prefix}\")\n"
          "}\n"
          "complete -F _sluice sluice\n",
          stream);
}

/* ---- zsh -------------------------------------------------------------------------------------------------------- */

#define ZSH_SPECIAL "[]:\\"

static void zsh_begin(const struct completion_command *commands, size_t count, FILE *stream)
{
    fputs("#compdef sluice\n"
          "# zsh completion for sluice: the output of \"sluice completion zsh\".\n"
          "_sluice()\n"
          "{\n"
          "    local -a names=(\n",
          stream);
    for (size_t i = 0; i < count; i++) {
        fprintf(stream, "        '%s:", commands[i].name);
        put_text(commands[i].summary, ZSH_SPECIAL, stream);
        fputs("'\n", stream);
    }
    fputs("    )\n"
          "    if ((CURRENT == 2)); then\n"
          "        _describe -t commands command names\n"
          "        _arguments '(- *)'{-h,--help}'[show the commands]' '(- *)--version[show the version]'\n"
          "        return\n"
          "    fi\n"
          "    local name=$words[2]\n"
          "    shift words\n"
          "    ((CURRENT--))\n"
          "    case $name in\n",
          stream);
}

static void zsh_proposal(enum proposal proposal, const struct option_spec *option, FILE *stream)
{
    static const char *const actions[] = {[PROPOSE_NOTHING] = " ",
                                          [PROPOSE_FILES] = "_files",
                                          [PROPOSE_DIRECTORIES] = "_files -/",
                                          [PROPOSE_COMMAND] = " "};
    if (proposal != PROPOSE_CHOICES) {
        fputs(actions[proposal], stream);
        return;
    }
    fputs("(", stream);
    put_choices(option, stream);
    fputs(")", stream);
}

/* One spec of _arguments: name with what excludes it, and for a short name, too, both. */
static void zsh_spec(const struct visit *visit, const struct option_spec *option, const char *no)
{
    bool again = option->type == OPTION_LIST, valued = option->type != OPTION_FLAG;
    FILE *stream = visit->stream;
    fputs("            ", stream);
    if (again) {
        fputs("'*'", stream);
    } else {
        fprintf(stream, "'(--%s", option->name);
        if (options_on_by_default(option))
            fprintf(stream, " --no-%s", option->name);
        if (option->short_name != 0)
            fprintf(stream, " -%c", option->short_name);
        fputs(")'", stream);
    }
    if (option->short_name != 0 && *no == '\0')
        fprintf(stream, "{-%c%s,--%s%s}'", option->short_name, valued ? "+" : "", option->name, valued ? "=" : "");
    else
        fprintf(stream, "--%s%s%s'", no, option->name, valued ? "=" : "");
    fputs("[", stream);
    put_text(*no != '\0' ? "switch that off" : option->help, ZSH_SPECIAL, stream);
    fputs("]", stream);
    if (valued) {
        fputs(":", stream);
        put_text(option->argument, ZSH_SPECIAL, stream);
        fputs(":", stream);
        zsh_proposal(proposal_for(option), option, stream);
    }
    fputs("' \\\n", stream);
}

static void zsh_option(void *context, const struct option_spec *option)
{
    const struct visit *visit = context;
    if (option->hidden)
        return;
    zsh_spec(visit, option, "");
    if (options_on_by_default(option))
        zsh_spec(visit, option, "no-");
}

static void zsh_command(const struct command_spec *command, FILE *stream)
{
    enum proposal proposal = proposal_for_positionals(command);
    fprintf(stream, "    %s)\n", name_of(command));
    if (proposal == PROPOSE_COMMAND)
        fputs("        local dashes=${words[(i)--]}\n"
              "        if ((dashes < CURRENT)); then\n"
              "            shift $dashes words\n"
              "            ((CURRENT -= dashes))\n"
              "            _normal\n"
              "            return\n"
              "        fi\n",
              stream);
    fputs("        _arguments -s -S : \\\n", stream);
    each_option(command, stream, zsh_option);
    fputs("            '*:", stream);
    put_text(command->positionals != NULL ? command->positionals : "options only", ZSH_SPECIAL, stream);
    fputs(":", stream);
    zsh_proposal(proposal, NULL, stream);
    fputs("'\n        ;;\n", stream);
}

static void zsh_end(FILE *stream)
{
    /* Also for whoever evaluates it instead of putting it into $fpath. */
    fputs("    esac\n"
          "}\n"
          "if [[ $funcstack[1] == _sluice ]]; then\n"
          "    _sluice \"$@\"\n"
          "else\n"
          "    compdef _sluice sluice\n"
          "fi\n",
          stream);
}

/* ---- fish ------------------------------------------------------------------------------------------------------- */

#define FISH_SPECIAL "\\"

static void fish_begin(const struct completion_command *commands, size_t count, FILE *stream)
{
    fputs("# fish completion for sluice: the output of \"sluice completion fish\".\n"
          "function __sluice_command_is\n"
          "    set -l words (commandline -opc)\n"
          "    test \"$words[2]\" = \"$argv[1]\"\n"
          "end\n"
          "function __sluice_after_dashes\n"
          "    set -l words (commandline -opc) (commandline -ct)\n"
          "    if set -l dashes (contains -i -- -- $words); and test $dashes -lt (count $words)\n"
          "        set -e words[1..$dashes]\n"
          "        complete -C \"$words\"\n"
          "    end\n"
          "end\n"
          "complete -c sluice -f\n"
          "complete -c sluice -n '__sluice_command_is \"\"' -s h -l help -d 'show the commands'\n"
          "complete -c sluice -n '__sluice_command_is \"\"' -l version -d 'show the version'\n",
          stream);
    for (size_t i = 0; i < count; i++) {
        fprintf(stream, "complete -c sluice -n '__sluice_command_is \"\"' -a %s -d '", commands[i].name);
        put_text(commands[i].summary, FISH_SPECIAL, stream);
        fputs("'\n", stream);
    }
}

static void fish_rule(const struct visit *visit, const char *rest)
{
    fprintf(visit->stream, "complete -c sluice -n '__sluice_command_is %s'%s", name_of(visit->command), rest);
}

static void fish_proposal(enum proposal proposal, const struct option_spec *option, FILE *stream)
{
    static const char *const actions[] = {[PROPOSE_NOTHING] = " -x",
                                          [PROPOSE_FILES] = " -r -F",
                                          [PROPOSE_DIRECTORIES] = " -x -a '(__fish_complete_directories)'",
                                          [PROPOSE_COMMAND] = " -x -a '(__sluice_after_dashes)'"};
    if (proposal != PROPOSE_CHOICES) {
        fputs(actions[proposal], stream);
        return;
    }
    fputs(" -x -a '", stream);
    put_choices(option, stream);
    fputs("'", stream);
}

static void fish_option(void *context, const struct option_spec *option)
{
    const struct visit *visit = context;
    if (option->hidden)
        return;
    fish_rule(visit, " -l ");
    fputs(option->name, visit->stream);
    if (option->short_name != 0)
        fprintf(visit->stream, " -s %c", option->short_name);
    if (option->type != OPTION_FLAG)
        fish_proposal(proposal_for(option), option, visit->stream);
    fputs(" -d '", visit->stream);
    put_text(option->help, FISH_SPECIAL, visit->stream);
    fputs("'\n", visit->stream);
    if (options_on_by_default(option)) {
        fish_rule(visit, " -l no-");
        fprintf(visit->stream, "%s -d 'switch that off'\n", option->name);
    }
}

static void fish_command(const struct command_spec *command, FILE *stream)
{
    const struct visit visit = {.stream = stream, .command = command};
    each_option(command, stream, fish_option);
    switch (proposal_for_positionals(command)) {
    case PROPOSE_FILES:
        fish_rule(&visit, " -F\n");
        break;
    case PROPOSE_DIRECTORIES:
        fish_rule(&visit, " -a '(__fish_complete_directories)'\n");
        break;
    case PROPOSE_COMMAND:
        fish_rule(&visit, " -a '(__sluice_after_dashes)'\n");
        break;
    default:
        break;
    }
}

/* ---- All of them ------------------------------------------------------------------------------------------------ */

void completion_begin(enum completion_shell shell, const struct completion_command *commands, size_t count,
                      FILE *stream)
{
    static void (*const begin[])(const struct completion_command *, size_t, FILE *) = {
        [COMPLETION_BASH] = bash_begin, [COMPLETION_ZSH] = zsh_begin, [COMPLETION_FISH] = fish_begin};
    begin[shell](commands, count, stream);
}

void completion_command(enum completion_shell shell, const struct command_spec *command, FILE *stream)
{
    static void (*const print[])(const struct command_spec *, FILE *) = {
        [COMPLETION_BASH] = bash_command, [COMPLETION_ZSH] = zsh_command, [COMPLETION_FISH] = fish_command};
    print[shell](command, stream);
}

void completion_end(enum completion_shell shell, FILE *stream)
{
    if (shell == COMPLETION_BASH)
        bash_end(stream);
    else if (shell == COMPLETION_ZSH)
        zsh_end(stream);
}
