/* SPDX-License-Identifier: MIT */
#include "commands.h"
#include "service/completion.h"
#include "service/options.h"

#include <sluice/sluice.h>
#include <stdio.h>
#include <string.h>

static const struct command {
    const char *name;
    const char *summary;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"cp", "copy files and trees, complete or not at all", cp_main},
    {"doctor", "find what copies silently on this machine, and show which routes there are", doctor_main},
    {"fanout", "send one input to several files, sockets and pipes", fanout_main},
    {"proxy", "pass TCP connections on to servers", proxy_main},
    {"serve", "serve the files of a directory over HTTP", serve_main},
    {"trace", "find the hidden copies in any process", trace_main},
};

#define COMMAND_COUNT (sizeof commands / sizeof commands[0])

static void print_help(FILE *stream)
{
    fputs("Usage: sluice COMMAND [OPTION]...\n\n"
          "Move bytes between files and sockets without copying them, and tell what was copied all the same.\n\n"
          "Commands:\n",
          stream);
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        fprintf(stream, "  %-10s %s\n", commands[i].name, commands[i].summary);
    fputs("\nOptions:\n"
          "  -h, --help     this page; \"sluice COMMAND --help\" for a command's\n"
          "      --version  the version\n",
          stream);
}

/* sluice completion bash|zsh|fish: the script, for whoever installs it. */
static int print_completion(int argc, char **argv)
{
    enum completion_shell shell;
    if (argc != 1 || completion_shell_by_name(argv[0], &shell) < 0) {
        fputs("sluice completion: needs the name of one shell: bash, zsh or fish\n", stderr);
        return EXIT_CODE_USAGE;
    }
    struct completion_command named[COMMAND_COUNT];
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        named[i] = (struct completion_command){commands[i].name, commands[i].summary};
    completion_begin(shell, named, COMMAND_COUNT, stdout);
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        char request[] = OPTIONS_COMPLETION;
        char *arguments[] = {request, argv[0], NULL};
        int code = commands[i].run(2, arguments);
        if (code != EXIT_CODE_DONE)
            return code;
    }
    completion_end(shell, stdout);
    return fflush(stdout) == 0 && ferror(stdout) == 0 ? EXIT_CODE_DONE : EXIT_CODE_FAILED;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return EXIT_CODE_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_help(stdout);
        return EXIT_CODE_DONE;
    }
    if (strcmp(name, "--version") == 0) {
        printf("sluice %s\n", sluice_version());
        return EXIT_CODE_DONE;
    }
    if (strcmp(name, "completion") == 0) /* not among the commands: packages ask for it, hardly anybody else */
        return print_completion(argc - 2, argv + 2);
    const char *names[COMMAND_COUNT + 1] = {NULL};
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(name, commands[i].name) == 0)
            return commands[i].run(argc - 2, argv + 2);
        names[i] = commands[i].name;
    }
    const char *nearest = name[0] == '-' ? NULL : options_nearest(name, names);
    fprintf(stderr, "sluice: unknown %s %s%s%s%s\nTry 'sluice --help'.\n", name[0] == '-' ? "option" : "command", name,
            nearest != NULL ? "; did you mean \"" : "", nearest != NULL ? nearest : "", nearest != NULL ? "\"?" : "");
    return EXIT_CODE_USAGE;
}
