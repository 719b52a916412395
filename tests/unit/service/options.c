/* SPDX-License-Identifier: MIT */
#include "service/options.h"
#include "check.h"
#include <errno.h>

struct values {
    bool quiet, receipts, sendfile;
    const char *listen, *log;
    uint64_t workers, buffer, idle;
    unsigned route;
    struct option_list to;
};

static const char *const routes[] = {"auto", "copy", "sendfile", NULL};

static const struct option_spec table[] = {
    {.type = OPTION_HEADING, .help = "Listening"},
    {.name = "listen",
     .short_name = 'l',
     .argument = "ADDR:PORT",
     .help = "where to accept connections",
     .type = OPTION_ADDRESS,
     .offset = offsetof(struct values, listen),
     .default_text = "127.0.0.1:8080"},
    {.name = "workers",
     .short_name = 'w',
     .argument = "N",
     .help = "processes that serve",
     .type = OPTION_UNSIGNED,
     .offset = offsetof(struct values, workers),
     .default_text = "2",
     .min = 1,
     .max = 64},
    {.type = OPTION_HEADING, .help = "Sending"},
    {.name = "buffer",
     .argument = "SIZE",
     .help = "memory for each connection",
     .type = OPTION_SIZE,
     .offset = offsetof(struct values, buffer),
     .default_text = "64K",
     .min = 4096},
    {.name = "idle",
     .argument = "TIME",
     .help = "close a connection that has asked for nothing for so long that it is more likely to have been forgotten",
     .type = OPTION_DURATION,
     .offset = offsetof(struct values, idle),
     .default_text = "1m",
     .min = 1,
     .max = 86400000},
    {.name = "route",
     .argument = "NAME",
     .help = "force a mechanism",
     .type = OPTION_CHOICE,
     .choices = routes,
     .offset = offsetof(struct values, route),
     .default_text = "auto"},
    {.name = "sendfile",
     .help = "use sendfile",
     .type = OPTION_FLAG,
     .offset = offsetof(struct values, sendfile),
     .default_text = "yes"},
    {.name = "quiet",
     .short_name = 'q',
     .help = "say nothing",
     .type = OPTION_FLAG,
     .offset = offsetof(struct values, quiet)},
    {.name = "receipts",
     .short_name = 'r',
     .help = "print receipts",
     .type = OPTION_FLAG,
     .offset = offsetof(struct values, receipts)},
    {.name = "log",
     .argument = "FILE",
     .help = "the access log",
     .type = OPTION_TEXT,
     .offset = offsetof(struct values, log)},
    {.name = "to",
     .short_name = 't',
     .argument = "ADDR:PORT",
     .help = "a server; may be given several times",
     .type = OPTION_LIST,
     .offset = offsetof(struct values, to)},
    {.name = "debug-stall",
     .argument = "TIME",
     .help = "for tests",
     .type = OPTION_TEXT,
     .hidden = true,
     .offset = offsetof(struct values, log)},
    {.type = OPTION_END},
};

static const char *const examples[] = {"prog serve /srv", "serves that directory", NULL};

static const char *given[sizeof table / sizeof table[0]];

static const struct command_spec command = {.program = "prog serve",
                                            .positionals = "[DIR]",
                                            .positional_max = 1,
                                            .summary = "Serve files.",
                                            .version = "1.2.3",
                                            .options = table,
                                            .examples = examples,
                                            .given = given};

static struct values values;
static struct positionals positionals;
static struct failure failure;
static char *arguments[16];

/* The arguments in one text, separated by spaces. */
static int parse(const char *line)
{
    static char copy[256];
    int count = 0;
    snprintf(copy, sizeof copy, "%s", line);
    for (char *word = strtok(copy, " "); word != NULL; word = strtok(NULL, " "))
        arguments[count++] = word;
    memset(&values, 0x5a, sizeof values);
    failure.text[0] = '\0';
    return options_parse(&command, count, arguments, &values, &positionals, &failure);
}

TEST("an empty command line gives the defaults of the table")
{
    CHECK_EQ(parse(""), OPTIONS_RUN);
    CHECK_STR(values.listen, "127.0.0.1:8080");
    CHECK_EQ(values.workers, 2);
    CHECK_EQ(values.buffer, 65536);
    CHECK_EQ(values.idle, 60000);
    CHECK_EQ(values.route, 0);
    CHECK(values.sendfile);
    CHECK(!values.quiet);
    CHECK(values.log == NULL);
    CHECK_EQ(positionals.count, 0);
}

TEST("values are taken from the next argument, after an equals sign, or behind the letter")
{
    CHECK_EQ(parse("--listen [::1]:80 --buffer=1M -w7 --idle 500ms --route=sendfile --log="), OPTIONS_RUN);
    CHECK_STR(values.listen, "[::1]:80");
    CHECK_EQ(values.buffer, 1 << 20);
    CHECK_EQ(values.workers, 7);
    CHECK_EQ(values.idle, 500);
    CHECK_EQ(values.route, 2);
    CHECK_STR(values.log, "");
    CHECK_EQ(parse("-w 8"), OPTIONS_RUN);
    CHECK_EQ(values.workers, 8);
}

TEST("flags may be bundled and negated, and the last one counts")
{
    CHECK_EQ(parse("-qr --no-sendfile"), OPTIONS_RUN);
    CHECK(values.quiet && values.receipts && !values.sendfile);
    CHECK_EQ(parse("--quiet --no-quiet -rw3"), OPTIONS_RUN);
    CHECK(!values.quiet && values.receipts);
    CHECK_EQ(values.workers, 3);
}

TEST("positionals may stand before and after options, and two dashes end the options")
{
    CHECK_EQ(parse("dir -q"), OPTIONS_RUN);
    CHECK_EQ(positionals.count, 1);
    CHECK_STR(positionals.items[0], "dir");
    CHECK_EQ(parse("-q -- --quiet"), OPTIONS_RUN);
    CHECK_STR(positionals.items[0], "--quiet");
    CHECK_EQ(parse("-"), OPTIONS_RUN);
    CHECK_STR(positionals.items[0], "-");
}

#define CHECK_REFUSED(line, want)                                                                                      \
    do {                                                                                                               \
        CHECK_EQ(parse(line), -EINVAL);                                                                                \
        CHECK_STR(failure.text, want);                                                                                 \
    } while (0)

TEST("an unknown option is answered with the nearest one")
{
    CHECK_REFUSED("--lisen x", "prog serve: unknown option --lisen; did you mean --listen?");
    CHECK_REFUSED("--recei=1", "prog serve: unknown option --recei; did you mean --receipts?");
    CHECK_REFUSED("-listen x", "prog serve: unknown option -listen; did you mean --listen?");
    CHECK_REFUSED("--zzzzzz", "prog serve: unknown option --zzzzzz");
    CHECK_REFUSED("-qz", "prog serve: unknown option -z");
    CHECK_REFUSED("--no-listen", "prog serve: unknown option --no-listen; did you mean --listen?");
}

TEST("a hidden option is never suggested")
{
    CHECK_REFUSED("--debug-stal", "prog serve: unknown option --debug-stal");
}

TEST("a wrong value is answered with what was given and what is allowed")
{
    CHECK_REFUSED("--workers many", "prog serve: --workers takes a number from 1 to 64, not \"many\"");
    CHECK_REFUSED("--workers 65", "prog serve: --workers takes a number from 1 to 64, not \"65\"");
    CHECK_REFUSED("--workers -1", "prog serve: --workers takes a number from 1 to 64, not \"-1\"");
    CHECK_REFUSED("--buffer 1", "prog serve: --buffer takes a size, such as 64K or 1.5M, of at least 4 KiB, not \"1\"");
    CHECK_REFUSED("--idle 2d",
                  "prog serve: --idle takes a time, such as 500ms, 30s or 2m, from 1 ms to 24 h, not \"2d\"");
    CHECK_REFUSED("--route sendfil",
                  "prog serve: --route takes auto, copy or sendfile, not \"sendfil\"; did you mean sendfile?");
    CHECK_REFUSED("--listen 8080", "prog serve: --listen: \"8080\" has no port; write HOST:PORT, such as "
                                   "127.0.0.1:8080 or *:8080");
}

TEST("a missing value, a value for a flag and surplus arguments are refused")
{
    CHECK_REFUSED("--listen", "prog serve: --listen needs a value: --listen=ADDR:PORT");
    CHECK_REFUSED("-w", "prog serve: --workers needs a value: --workers=N");
    CHECK_REFUSED("--quiet=yes", "prog serve: --quiet is on or off and takes no value, not even \"yes\"");
    CHECK_REFUSED("one two", "prog serve: takes [DIR] and no more, but \"two\" follows");
}

TEST("help and version are recognised among other options")
{
    CHECK_EQ(parse("-q --help"), OPTIONS_HELP);
    CHECK_EQ(parse("-qh"), OPTIONS_HELP);
    CHECK_EQ(parse("--version"), OPTIONS_VERSION);
}

TEST("an option that may be given several times collects what was given, in order")
{
    CHECK_EQ(parse("-ta --to=b -q --to c"), OPTIONS_RUN);
    CHECK_EQ(values.to.count, 3);
    CHECK_STR(values.to.items[0], "a");
    CHECK_STR(values.to.items[1], "b");
    CHECK_STR(values.to.items[2], "c");
    option_list_free(&values.to);
    CHECK_EQ(parse(""), OPTIONS_RUN);
    CHECK_EQ(values.to.count, 0);
    option_list_free(&values.to);
    CHECK_REFUSED("--to", "prog serve: --to needs a value: --to=ADDR:PORT");
}

static const char *given_for(const char *name)
{
    for (size_t i = 0; table[i].type != OPTION_END; i++)
        if (table[i].name != NULL && strcmp(table[i].name, name) == 0)
            return given[i] != NULL ? given[i] : "(not)";
    return "(unknown)";
}

TEST("what stood on the command line is told apart from defaults")
{
    CHECK_EQ(parse("-w 2 --route auto -w4 --no-sendfile -qr"), OPTIONS_RUN);
    CHECK_STR(given_for("workers"), "4");
    CHECK_STR(given_for("route"), "auto");
    CHECK_STR(given_for("sendfile"), "no");
    CHECK_STR(given_for("quiet"), "yes");
    CHECK_STR(given_for("receipts"), "yes");
    CHECK_STR(given_for("listen"), "(not)");
    CHECK_STR(given_for("idle"), "(not)");
    CHECK_EQ(parse(""), OPTIONS_RUN);
    CHECK_STR(given_for("workers"), "(not)");
}

static int set(const char *name, const char *value)
{
    failure.text[0] = '\0';
    return options_set(&command, name, value, &values, "a.conf:7", &failure);
}

TEST("an option set by its name from a text takes the same values as on the command line")
{
    static const char *const on[] = {"yes", "true", "on"}, *const off[] = {"no", "false", "off"};
    CHECK_EQ(parse(""), OPTIONS_RUN);
    CHECK_EQ(set("listen", "[::1]:80"), 0);
    CHECK_STR(values.listen, "[::1]:80");
    CHECK_EQ(set("workers", "7"), 0);
    CHECK_EQ(values.workers, 7);
    CHECK_EQ(set("buffer", "1M"), 0);
    CHECK_EQ(values.buffer, 1 << 20);
    CHECK_EQ(set("idle", "500ms"), 0);
    CHECK_EQ(values.idle, 500);
    CHECK_EQ(set("route", "sendfile"), 0);
    CHECK_EQ(values.route, 2);
    CHECK_EQ(set("to", "a"), 0);
    CHECK_EQ(set("to", "b"), 0);
    CHECK_EQ(values.to.count, 2);
    CHECK_STR(values.to.items[1], "b");
    option_list_free(&values.to);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(set("quiet", on[i]), 0);
        CHECK(values.quiet);
        CHECK_EQ(set("quiet", off[i]), 0);
        CHECK(!values.quiet);
    }
    CHECK_STR(given_for("workers"), "(not)");
}

#define CHECK_NOT_SET(name, value, code, want)                                                                         \
    do {                                                                                                               \
        CHECK_EQ(set(name, value), code);                                                                              \
        CHECK_STR(failure.text, want);                                                                                 \
    } while (0)

TEST("what cannot be set by its name is refused with the place, and without dashes")
{
    CHECK_EQ(parse(""), OPTIONS_RUN);
    CHECK_NOT_SET("workers", "65", -EINVAL, "a.conf:7: workers takes a number from 1 to 64, not \"65\"");
    CHECK_NOT_SET("route", "sendfil", -EINVAL,
                  "a.conf:7: route takes auto, copy or sendfile, not \"sendfil\"; did you mean sendfile?");
    CHECK_NOT_SET("listen", "8080", -EINVAL,
                  "a.conf:7: listen: \"8080\" has no port; write HOST:PORT, such as 127.0.0.1:8080 or *:8080");
    CHECK_NOT_SET("quiet", "maybe", -EINVAL, "a.conf:7: quiet takes yes or no, not \"maybe\"");
    CHECK_NOT_SET("lisen", "x", -ENOENT, "a.conf:7: unknown key \"lisen\"; did you mean listen?");
    CHECK_NOT_SET("zzzzzz", "x", -ENOENT, "a.conf:7: unknown key \"zzzzzz\"");
    CHECK_NOT_SET("debug-stal", "x", -ENOENT, "a.conf:7: unknown key \"debug-stal\"");
    CHECK_NOT_SET("help", "yes", -ENOENT, "a.conf:7: unknown key \"help\"");
    CHECK_EQ(values.workers, 2);
}

static char *help_text(unsigned width)
{
    static char text[8192];
    memset(text, 0, sizeof text);
    FILE *stream = fmemopen(text, sizeof text, "w");
    options_print_help(&command, stream, width);
    fclose(stream);
    return text;
}

TEST("help lists every option but hidden ones, under their headings, with defaults and choices")
{
    const char *text = help_text(80);
    CHECK(strstr(text, "Usage: prog serve [OPTION]... [DIR]\n\nServe files.\n\nListening:\n") == text);
    CHECK(strstr(text, "  -l, --listen ADDR:PORT  where to accept connections (default: 127.0.0.1:8080)\n") != NULL);
    CHECK(strstr(text, "      --[no-]sendfile     use sendfile\n") != NULL);
    text = help_text(100);
    CHECK(strstr(text, "force a mechanism (auto, copy, sendfile; default: auto)") != NULL);
    CHECK(strstr(text, "  -h, --help              show this text\n") != NULL);
    CHECK(strstr(text, "\nExamples:\n  prog serve /srv\n      serves that directory\n") != NULL);
    CHECK(strstr(text, "debug-stall") == NULL);
}

TEST("no line of help is wider than the width asked for")
{
    for (unsigned width = 60; width <= 100; width += 20) {
        for (const char *line = help_text(width); *line != '\0'; line += strcspn(line, "\n") + 1)
            CHECK(strcspn(line, "\n") <= width);
    }
}

static void count_option(void *context, const struct option_spec *option)
{
    int *count = context;
    CHECK(option->name != NULL && option->help != NULL);
    (*count)++;
}

TEST("every option, built-in and hidden ones included, is visited for completion")
{
    int count = 0;
    options_each(&command, count_option, &count);
    CHECK_EQ(count, 13);
}

TEST("names of subcommands get suggestions, too")
{
    static const char *const names[] = {"serve", "proxy", "cp", NULL};
    CHECK_STR(options_nearest("sevre", names), "serve");
    CHECK(options_nearest("x", names) == NULL);
    CHECK(options_nearest("benchmark", names) == NULL);
    static const char *const others[] = {"root", "loop", "access-log", "user", NULL};
    CHECK(options_nearest("port", others) == NULL);
    CHECK_STR(options_nearest("rot", others), "root");
    CHECK_STR(options_nearest("usre", others), "user");
    CHECK_STR(options_nearest("log", others), "access-log");
}

CHECK_MAIN()
