/* SPDX-License-Identifier: MIT
 *
 * sluice doctor: what copies silently on this machine, and how to mend it; and the ladder of routes.
 */
#include "base/text.h"
#include "commands.h"
#include "doctor/report.h"
#include "service/options.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

struct doctor_options {
    bool routes, json;
    const char *peer;
    unsigned from, to;
};

#define MEMBER(name) offsetof(struct doctor_options, name)

static const char *const source_names[] = {"any", "file", "memory", "pipe", "tcp", "unix", NULL};
static const char *const sink_names[] = {"any", "file", "memory", "pipe", "tcp", "unix", "datagram", NULL};
static const int kinds[] = {-1,
                            SLUICE_END_FILE,
                            SLUICE_END_MEMORY,
                            SLUICE_END_PIPE,
                            SLUICE_END_TCP,
                            SLUICE_END_UNIX_STREAM,
                            SLUICE_END_DATAGRAM};

static const struct option_spec option_table[] = {
    {"routes", 'r', NULL,
     "show the ladder instead: every route for every pair of ends, what it copies, how that is known, why not",
     OPTION_FLAG, MEMBER(routes), .default_text = NULL},
    {"json", 0, NULL, "as JSON: one object", OPTION_FLAG, MEMBER(json), .default_text = NULL},

    {.type = OPTION_HEADING, .help = "With --routes"},
    {"from", 0, "KIND", "only these sources", OPTION_CHOICE, MEMBER(from), .default_text = "any",
     .choices = source_names},
    {"to", 0, "KIND", "only these sinks", OPTION_CHOICE, MEMBER(to), .default_text = "any", .choices = sink_names},
    {"peer", 0, "ADDRESS:PORT",
     "show the plan for a TCP connection to this address, too, by whatever device it leaves; nothing is sent",
     OPTION_ADDRESS, MEMBER(peer), .default_text = NULL},
    {.type = OPTION_END},
};

static const char *const examples[] = {
    "sluice doctor",
    "what copies here that need not, and what helps",
    "sluice doctor --routes --from file --to tcp /srv",
    "the ladder from files beneath /srv to TCP",
    "sluice doctor --routes --to tcp --peer 192.0.2.7:80",
    "what a connection to that server would use",
    NULL,
};

static const struct command_spec command = {
    .program = "sluice doctor",
    .positionals = "[DIR]...",
    .positional_max = 64,
    .summary = "Find what copies bytes silently on this machine, or keeps a mechanism from being used, and say what "
               "helps. DIR: directories whose file systems matter; small files without names are made there. Default: "
               "the current directory, /tmp and /dev/shm; with --routes the first of them that can be written.",
    .options = option_table,
    .examples = examples,
    .footer = "Changes nothing on the host. The exit code is 1 when there are problems, 0 when there are only notes.",
};

/* ---- Directories --------------------------------------------------------------------------------------------------
 */

/* Those of the usual ones that can be written, one per file system. */
static size_t usual_directories(const char *directories[3])
{
    static const char *const usual[] = {".", "/tmp", "/dev/shm"};
    dev_t devices[3];
    size_t count = 0;
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++) {
        struct stat status;
        bool known = false;
        if (stat(usual[i], &status) != 0 || access(usual[i], W_OK) != 0)
            continue;
        for (size_t d = 0; d < count; d++)
            known |= devices[d] == status.st_dev;
        if (known)
            continue;
        devices[count] = status.st_dev;
        directories[count++] = usual[i];
    }
    return count;
}

/* ---- Output -------------------------------------------------------------------------------------------------------
 */

static struct page page_of(FILE *stream)
{
    struct page page = {.stream = stream};
    struct winsize window;
    if (isatty(fileno(stream))) {
        page.colour = text_colour_wanted();
        page.width = ioctl(fileno(stream), TIOCGWINSZ, &window) == 0 && window.ws_col >= 40 ? window.ws_col : 80;
    }
    return page;
}

static int finish(int result)
{
    if (result == 0 && fflush(stdout) != 0)
        result = -errno;
    else if (result == 0 && ferror(stdout))
        result = -EIO;
    if (result < 0 && result != -EPIPE) /* whose reader left has seen what he wanted */
        fprintf(stderr, "sluice doctor: writing the report failed: %s (%s)\n", text_errno_meaning(result),
                text_errno_name(result));
    return result;
}

/* ---- The two reports ----------------------------------------------------------------------------------------------
 */

static int examine(const struct doctor_options *options, const char *const *directories, size_t count)
{
    struct findings findings = {.items = NULL};
    struct checks_options checks = {.directories = directories, .directory_count = count};
    checks_run(&checks, &findings);
    int result = 0;
    if (options->json) {
        result = report_findings_json(stdout, &findings);
    } else {
        struct page page = page_of(stdout);
        report_findings(&page, &findings);
    }
    bool problems = findings.lost;
    for (size_t i = 0; i < findings.count; i++)
        problems |= findings.items[i].level == FINDING_PROBLEM;
    findings_free(&findings);
    return finish(result) == 0 && !problems ? EXIT_CODE_DONE : EXIT_CODE_FAILED;
}

static void keep_crossover(void *context, const struct sluice_crossover *crossover)
{
    struct crossovers *crossovers = context;
    struct sluice_crossover *larger = realloc(crossovers->items, (crossovers->count + 1) * sizeof *larger);
    if (larger == NULL)
        return;
    crossovers->items = larger;
    larger[crossovers->count++] = *crossover;
}

static int show_ladder(const struct doctor_options *options, const char *const *directories, size_t count)
{
    struct ladder_options climb = {.directories = directories,
                                   .directory_count = count,
                                   .peer = options->peer,
                                   .source = kinds[options->from],
                                   .sink = kinds[options->to]};
    struct ladder ladder;
    struct failure failure = {.text = ""};
    struct crossovers crossovers = {.items = NULL};
    const char *reason = NULL;
    char not_loaded[160];
    int result = sluice_crossovers_load(NULL, &reason);
    if (result < 0) {
        snprintf(not_loaded, sizeof not_loaded, "What earlier runs have learned is not used: %s (%s).", reason,
                 text_errno_name(result));
        crossovers.not_loaded = not_loaded;
    }
    sluice_crossovers_each(keep_crossover, &crossovers);
    result = ladder_climb(&climb, &ladder, &failure);
    if (result < 0) {
        fprintf(stderr, "sluice doctor: %s\n", failure.text);
    } else {
        if (options->json) {
            result = report_ladder_json(stdout, &ladder, &crossovers);
        } else {
            struct page page = page_of(stdout);
            report_ladder(&page, &ladder, &crossovers);
        }
        result = finish(result);
        ladder_free(&ladder);
    }
    free(crossovers.items);
    return result < 0 ? EXIT_CODE_FAILED : EXIT_CODE_DONE;
}

int doctor_main(int argc, char **argv)
{
    struct doctor_options options = {.routes = false};
    struct positionals positionals;
    struct command_spec spec = command;
    spec.version = sluice_version();
    int code = options_parse_or_exit_code(&spec, argc, argv, &options, &positionals);
    if (code >= 0)
        return code;
    if (!options.routes && (options.from != 0 || options.to != 0 || options.peer != NULL)) {
        fprintf(stderr, "sluice doctor: --from, --to and --peer are about the ladder: add --routes\n");
        return EXIT_CODE_USAGE;
    }
    signal(SIGPIPE, SIG_IGN); /* feeders of sources that are no longer read */
    const char *usual[3];
    const char *const *directories = usual;
    size_t count;
    if (positionals.count > 0) {
        directories = (const char *const *)positionals.items;
        count = positionals.count;
    } else {
        count = usual_directories(usual);
        if (options.routes && count > 1)
            count = 1;
    }
    return options.routes ? show_ladder(&options, directories, count) : examine(&options, directories, count);
}
