/* SPDX-License-Identifier: MIT
 *
 * sluice cp: the command line, what goes where, and the end.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/text.h"
#include "commands.h"
#include "progress.h"
#include "service/crossovers.h"
#include "service/options.h"
#include "service/routes.h"
#include "service/supervisor.h"
#include "tree.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum reflink { REFLINK_AUTO, REFLINK_ALWAYS, REFLINK_NEVER };
static const char *const reflink_choices[] = {"auto", "always", "never", NULL};

struct cp_options {
    const char *route;
    uint64_t jobs;
    unsigned reflink;
    bool no_clobber, update, verbose, debug, fsync, verify, json, progress;
    bool always; /* what cp has an option for, and happens here in any case */
};

#define MEMBER(name) offsetof(struct cp_options, name)

static const char *const *route_names(void)
{
    static const char *names[ROUTES_NAMES];
    routes_add_names(SLUICE_END_FILE, SLUICE_END_FILE, 1, names);
    return names;
}

static const struct option_spec option_table[] = {
    {.type = OPTION_HEADING, .help = "What is copied"},
    {"no-clobber", 'n', NULL, "leave alone what is there already", OPTION_FLAG, MEMBER(no_clobber),
     .default_text = NULL},
    {"update", 'u', NULL, "replace only what is older than its source", OPTION_FLAG, MEMBER(update),
     .default_text = NULL},
    {"archive", 'a', NULL, "as cp -a does: always so", OPTION_FLAG, MEMBER(always), .default_text = NULL},
    {"recursive", 'r', NULL, "with what is in directories: always so", OPTION_FLAG, MEMBER(always),
     .default_text = NULL},

    {.type = OPTION_HEADING, .help = "How"},
    {"reflink", 0, "WHEN", "share the content instead of copying it, where the file system can; always: or fail",
     OPTION_CHOICE, MEMBER(reflink), .default_text = "auto", .choices = reflink_choices},
    {"route", 0, "NAME", "force a mechanism for the content, as sluice-routes(7) names them", OPTION_TEXT,
     MEMBER(route), .default_text = "auto", .known = route_names},
    {"jobs", 'j', "N",
     "files copied at a time; default: one for each CPU that sluice may use, and more while these wait for a disk",
     OPTION_UNSIGNED, MEMBER(jobs), .min = 1, .max = 256},
    {"fsync", 0, NULL, "have everything on the device before it gets its final name", OPTION_FLAG, MEMBER(fsync),
     .default_text = NULL},
    {"verify", 0, NULL, "read source and copy again, from the device where that is possible, and compare", OPTION_FLAG,
     MEMBER(verify), .default_text = NULL},

    {.type = OPTION_HEADING, .help = "Reporting"},
    {"verbose", 'v', NULL, "say what is copied, and a sum at the end", OPTION_FLAG, MEMBER(verbose),
     .default_text = NULL},
    {"debug", 0, NULL, "the same with a receipt for each file", OPTION_FLAG, MEMBER(debug), .default_text = NULL},
    {"json", 0, NULL, "the sum as JSON on standard output", OPTION_FLAG, MEMBER(json), .default_text = NULL},
    {"progress", 0, NULL, "show how far it is, when standard error is a terminal", OPTION_FLAG, MEMBER(progress),
     .default_text = "yes"},
    {.type = OPTION_END},
};

static const char *const examples[] = {
    "sluice cp -v ~/Pictures /mnt/backup/",
    "a tree, with everything that belongs to it",
    "sluice cp -u ~/Pictures /mnt/backup/",
    "again later: what is new or newer",
    "sluice cp --verify --fsync film.mkv /mnt/stick/",
    "and be sure of it",
    NULL,
};

/* How many threads there are, and should be. */
struct pace {
    unsigned cpus;
    bool fixed; /* --jobs */
    double wall, cpu;
};

struct cp {
    struct cp_options options;
    struct copy_settings settings;
    struct report report;
    struct tree *tree;
    int target; /* directory */
    struct pace pace;
};

/* ---- Being stopped ---------------------------------------------------------------------------------------------- */

static atomic_bool stop;
static volatile sig_atomic_t stop_signal;

/* The next signal of the kind ends the program where it stands. */
static void on_signal(int number)
{
    stop_signal = number;
    atomic_store(&stop, true);
}

static const int stop_signals[] = {SIGINT, SIGTERM, SIGHUP};
#define STOP_SIGNALS (sizeof stop_signals / sizeof *stop_signals)

static void watch_signals(void)
{
    for (size_t i = 0; i < STOP_SIGNALS; i++) {
        struct sigaction action;
        if (sigaction(stop_signals[i], NULL, &action) == 0 && action.sa_handler == SIG_IGN)
            continue; /* nohup */
        action = (struct sigaction){.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
        sigaction(stop_signals[i], &action, NULL);
    }
}

/* ---- Jobs ------------------------------------------------------------------------------------------------------ */

/* Files in memory are copied fastest by a thread for each CPU: with more of them, they wait for each other in the
 * kernel (100,000 files, 2 CPUs, ext4: 1.5 s with 2, 1.9 s with 4). Files on a disk are waited for, which several can
 * do at a time (6.8 s with 2, 4.9 s with 4, 3.6 s with 8; cp -a: 14 s). So it begins with the former, and as long as
 * the CPUs are not kept busy adds one after the other. */
#define JOBS_PER_CPU_MAX 8
#define JOBS_MAX 32
#define BUSY 0.7

static double clock_seconds(clockid_t clock)
{
    return (double)clock_ns(clock) / 1e9;
}

static void keep_busy(struct pace *pace, struct tree *tree)
{
    double wall = clock_seconds(CLOCK_MONOTONIC), cpu = clock_seconds(CLOCK_PROCESS_CPUTIME_ID);
    if (!pace->fixed && pace->wall > 0 && cpu - pace->cpu < BUSY * pace->cpus * (wall - pace->wall))
        tree_add_thread(tree);
    pace->wall = wall;
    pace->cpu = cpu;
}

/* ---- Operands --------------------------------------------------------------------------------------------------- */

/* Paths on the command line as messages show them. The caller frees it. */
static char *shown(const char *path)
{
    if (path[0] == '\0')
        return strdup("''");
    return place_path(&(const struct place){.source_name = "", .target_name = ""}, path, SOURCE);
}

static void fail(struct cp *cp, const char *what, const char *path, int code)
{
    CLEANUP_FREE char *text = shown(path);
    report_failure(&cp->report, "cannot %s %s: %s (%s)", what, text, text_errno_meaning(code), text_errno_name(code));
}

static void refuse(struct cp *cp, const char *source, const char *target, const char *why)
{
    CLEANUP_FREE char *from = shown(source);
    CLEANUP_FREE char *to = shown(target);
    report_failure(&cp->report, "%s → %s refused: %s", from, to, why);
}

struct operand {
    const char *path;
    char *name; /* in the target directory */
    struct stat status;
    bool refused;
};

/* The last component; "." for what has no name of its own: ".", "..", "/". */
static char *last_name(const char *path)
{
    size_t end = strlen(path);
    while (end > 0 && path[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/')
        begin--;
    char *name = strndup(path + begin, end - begin);
    if (name != NULL && (name[0] == '\0' || strcmp(name, "..") == 0)) {
        free(name);
        name = strdup(".");
    }
    return name;
}

static int open_target_directory(struct cp *cp, const char *path)
{
    cp->target = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (cp->target < 0 && errno == EACCES) /* one that may be written to, and not be listed */
        cp->target = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (cp->target >= 0)
        return 0;
    int result = -errno;
    fail(cp, "open", path, result);
    return result;
}

/* A single source, and no directory by that name: *ret_name is what it becomes in the directory above it, whose path is
 * *ret_above. */
static int target_is_a_name(struct cp *cp, const struct operand *source, const char *path, char **ret_above,
                            char **ret_name)
{
    struct stat status;
    CLEANUP_FREE char *resolved = NULL;
    size_t length = strlen(path);
    bool slash = length > 0 && path[length - 1] == '/';
    if (slash && !S_ISDIR(source->status.st_mode)) {
        refuse(cp, source->path, path, "there is no such directory");
        return -ENOTDIR;
    }
    int found = slash ? -ENOENT : lstat(path, &status) == 0 ? 0 : -errno;
    if (found < 0 && found != -ENOENT) {
        fail(cp, "copy to", path, found);
        return found;
    }
    if (found == 0 && S_ISLNK(status.st_mode)) {
        /* The file that the link stands for is replaced, not the link. */
        resolved = realpath(path, NULL);
        if (resolved == NULL) {
            refuse(cp, source->path, path, "it is a symbolic link that leads nowhere. Remove it first.");
            return -ENOENT;
        }
        path = resolved;
    }
    char *name = last_name(path);
    char *above = strdup(path);
    if (name == NULL || above == NULL) {
        free(name);
        free(above);
        fail(cp, "copy to", path, -ENOMEM);
        return -ENOMEM;
    }
    char *end = above + strlen(above);
    while (end > above && end[-1] == '/')
        end--;
    while (end > above && end[-1] != '/')
        end--;
    *end = '\0';
    *ret_above = above;
    *ret_name = name;
    return 0;
}

static int find_target(struct cp *cp, struct operand *operands, unsigned count, const char *path, char **ret_above)
{
    struct stat status;
    char *above = NULL;
    int result = path[0] == '\0' ? -ENOENT : 0;
    bool exists = result == 0 && stat(path, &status) == 0;
    if (result == 0 && !exists && errno != ENOENT)
        result = -errno; /* if it is a directory and cannot be looked at, it must not be taken for a name to be made */
    if (result < 0) {
        fail(cp, "copy to", path, result);
        return result;
    }
    bool directory = exists && S_ISDIR(status.st_mode);
    if (!directory && count > 1) {
        CLEANUP_FREE char *text = shown(path);
        report_failure(&cp->report, "several sources need a directory to go to, and %s is none", text);
        return -ENOTDIR;
    }
    for (unsigned i = 0; i < count && directory; i++) {
        operands[i].name = last_name(operands[i].path);
        if (operands[i].name == NULL)
            return -ENOMEM;
    }
    if (directory)
        above = strdup(path);
    else if (!operands[0].refused)
        result = target_is_a_name(cp, &operands[0], path, &above, &operands[0].name);
    else
        return -ENOENT;
    if (result == 0)
        result = above == NULL ? -ENOMEM : open_target_directory(cp, above[0] == '\0' ? "." : above);
    if (result < 0)
        free(above);
    else
        *ret_above = above;
    return result;
}

/* A directory that the target directory is, or lies in, would be copied into itself without end. What lies above a
 * directory that may not be gone through is not looked at. */
static int refuse_into_itself(struct cp *cp, struct operand *operands, unsigned count, const char *path)
{
    struct stat at, below = {0};
    CLEANUP_FD int fd = openat(cp->target, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    for (bool first = true; first || fd >= 0; first = false) {
        if (fd < 0 || fstat(fd, &at) < 0) {
            int error = -errno;
            fail(cp, "copy to", path, error);
            return error;
        }
        if (!first && at.st_dev == below.st_dev && at.st_ino == below.st_ino)
            break; /* the root */
        for (unsigned i = 0; i < count; i++) {
            struct operand *operand = &operands[i];
            if (!operand->refused && at.st_dev == operand->status.st_dev && at.st_ino == operand->status.st_ino) {
                refuse(cp, operand->path, path, "a directory cannot be copied into itself");
                operand->refused = true;
            }
        }
        int next = openat(fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
        close_fd(fd);
        fd = next;
        below = at;
    }
    return 0;
}

static int by_name(const void *a, const void *b)
{
    const struct operand *first = *(struct operand *const *)a, *second = *(struct operand *const *)b;
    int order = strcmp(first->name, second->name);
    return order != 0 ? order : (first > second) - (first < second); /* the one given first wins */
}

static int refuse_same_names(struct cp *cp, struct operand *operands, unsigned count, const char *above)
{
    CLEANUP_FREE struct operand **sorted = malloc(count * sizeof(void *));
    if (sorted == NULL)
        return -ENOMEM;
    unsigned left = 0;
    for (unsigned i = 0; i < count; i++)
        if (!operands[i].refused)
            sorted[left++] = &operands[i];
    qsort(sorted, left, sizeof(void *), by_name);
    for (unsigned i = 1; i < left; i++) {
        if (strcmp(sorted[i - 1]->name, sorted[i]->name) != 0)
            continue;
        char target[PATH_MAX];
        size_t length = strlen(above);
        snprintf(target, sizeof target, "%s%s%s", above, length > 0 && above[length - 1] != '/' ? "/" : "",
                 sorted[i]->name);
        refuse(cp, sorted[i]->path, target,
               "another source has the same name and would be overwritten. Copy them one after the other.");
        sorted[i]->refused = true;
    }
    return 0;
}

/* Returns 0 when there is something to copy. */
static int add_operands(struct cp *cp, struct operand *operands, unsigned count, const char *target,
                        const struct tree_options *tree_options)
{
    CLEANUP_FREE char *above = NULL;
    for (unsigned i = 0; i < count; i++) {
        if (fstatat(AT_FDCWD, operands[i].path, &operands[i].status, AT_SYMLINK_NOFOLLOW) == 0)
            continue;
        fail(cp, "read", operands[i].path, -errno);
        operands[i].refused = true;
    }
    int result = find_target(cp, operands, count, target, &above);
    if (result < 0)
        return result;
    result = refuse_into_itself(cp, operands, count, target);
    if (result == 0)
        result = refuse_same_names(cp, operands, count, above);
    if (result == 0)
        result = tree_new(tree_options, cp->target, above, &cp->tree);
    for (unsigned i = 0; i < count && result == 0; i++)
        if (!operands[i].refused)
            result = tree_add(cp->tree, operands[i].path, S_ISDIR(operands[i].status.st_mode), operands[i].name);
    return result;
}

/* ---- The end ---------------------------------------------------------------------------------------------------- */

struct count_name {
    const char *one, *many, *json;
    size_t offset;
};

#define COUNT(one, many, json, member)                                                                                 \
    {                                                                                                                  \
        one, many, json, offsetof(struct tally, member)                                                                \
    }
static const struct count_name counts[] = {
    COUNT("file", "files", "files", files),
    COUNT("directory", "directories", "directories", directories),
    COUNT("symbolic link", "symbolic links", "symbolic_links", symlinks),
    COUNT("hard link", "hard links", "hard_links", hard_links),
    COUNT("special file", "special files", "special_files", specials),
    COUNT("skipped", "skipped", "skipped", skipped),
    COUNT("failed", "failed", "failed", failed),
    COUNT("extended attribute not kept", "extended attributes not kept", "extended_attributes_lost", attributes_lost),
};
#define COUNTS (sizeof counts / sizeof *counts)

static uint64_t count_of(const struct cp *cp, const struct count_name *name)
{
    return tally_get((const _Atomic uint64_t *)((const char *)&cp->report.tally + name->offset));
}

static void print_sum(struct cp *cp, const struct sluice_receipt *sum, double seconds, FILE *stream)
{
    char size[TEXT_SIZE_MAX], rate[TEXT_SIZE_MAX], text[2048];
    bool some = false;
    for (size_t i = 0; i < COUNTS; i++) {
        uint64_t count = count_of(cp, &counts[i]);
        if (count == 0 && i > 0)
            continue;
        fprintf(stream, "%s%llu %s", some ? ", " : "", (unsigned long long)count,
                count == 1 ? counts[i].one : counts[i].many);
        some = true;
    }
    text_format_size(sum->bytes, size, sizeof size);
    text_format_size(seconds > 0 ? (uint64_t)((double)sum->bytes / seconds) : 0, rate, sizeof rate);
    fprintf(stream, "; %s in %.2f s, %s/s\n", size, seconds, rate);
    if (sum->transfers > 0) {
        /* Every file has changed its route for the same reason, or so: that is said once. */
        struct sluice_receipt brief = *sum;
        const struct sluice_fallback *fallback = &sum->fallbacks[0];
        brief.fallback_count = 0;
        sluice_receipt_format(&brief, text, sizeof text);
        fprintf(stream, "receipt: %s", text);
        if (sum->fallback_count > 0)
            fprintf(stream, "; %llu %s of route, such as from %s to %s (%s): %s",
                    (unsigned long long)sum->fallback_count, sum->fallback_count == 1 ? "change" : "changes",
                    sluice_route_name(fallback->from), sluice_route_name(fallback->to),
                    fallback->error != 0 ? text_errno_name(fallback->error) : "policy", fallback->reason);
        fputc('\n', stream);
    }
    uint64_t verified = tally_get(&cp->report.tally.verified), cached = tally_get(&cp->report.tally.verified_cached);
    if (cp->options.verify) {
        char from_cache[TEXT_SIZE_MAX];
        text_format_size(verified, size, sizeof size);
        text_format_size(cached, from_cache, sizeof from_cache);
        fprintf(stream, "verified: %s equal, read again from the devices", size);
        if (cached > 0)
            fprintf(stream, "; of these %s perhaps from the page cache, as the file system reads no other way",
                    from_cache);
        fputc('\n', stream);
    }
}

static void print_json(struct cp *cp, const struct sluice_receipt *sum, double seconds)
{
    size_t size = 1 + (size_t)max_size(1, (size_t)sluice_receipt_format_json(sum, NULL, 0));
    CLEANUP_FREE char *receipt = malloc(size);
    if (receipt == NULL)
        return;
    sluice_receipt_format_json(sum, receipt, size);
    fputc('{', stdout);
    for (size_t i = 0; i < COUNTS; i++)
        printf("\"%s\":%llu,", counts[i].json, (unsigned long long)count_of(cp, &counts[i]));
    printf("\"bytes\":%llu,\"verified\":%llu,\"verified_cached\":%llu,\"seconds\":%.3f,\"interrupted\":%s,"
           "\"receipt\":%s}\n",
           (unsigned long long)sum->bytes, (unsigned long long)tally_get(&cp->report.tally.verified),
           (unsigned long long)tally_get(&cp->report.tally.verified_cached), seconds, stop_signal ? "true" : "false",
           receipt);
}

static void say_how_it_ended(struct cp *cp)
{
    const struct tally *tally = &cp->report.tally;
    unsigned long long complete = tally_get(&tally->files), removed = tally_get(&tally->removed);
    if (stop_signal)
        report_note(&cp->report, "interrupted (%s). %llu %s complete; what was under way (%llu) is removed.",
                    stop_signal == SIGINT    ? "SIGINT"
                    : stop_signal == SIGTERM ? "SIGTERM"
                                             : "SIGHUP",
                    complete, complete == 1 ? "file is" : "files are", removed);
    else if (tree_is_full(cp->tree))
        report_note(&cp->report, "stopped, as the target takes no more. %llu %s complete.", complete,
                    complete == 1 ? "file is" : "files are");
}

static int copy(struct cp *cp, char **sources, unsigned count)
{
    struct sluice_receipt sum = {0};
    struct progress *progress = NULL;
    double began = clock_seconds(CLOCK_MONOTONIC);
    bool draw = cp->options.progress && !cp->options.verbose && isatty(STDERR_FILENO);
    if (draw && progress_new(&cp->report, sources, count, &progress) < 0)
        return -ENOMEM;
    watch_signals();
    int result = tree_start(cp->tree);
    if (result < 0) {
        report_failure(&cp->report, "cannot start a thread: %s (%s)", text_errno_meaning(result),
                       text_errno_name(result));
        progress_free(progress);
        return result;
    }
    while (!tree_wait(cp->tree, 100)) {
        keep_busy(&cp->pace, cp->tree);
        if (progress != NULL)
            progress_draw(progress);
    }
    tree_finish(cp->tree, &sum);
    bool shown_before = progress != NULL && progress_was_shown(progress);
    progress_free(progress);
    double seconds = clock_seconds(CLOCK_MONOTONIC) - began;
    say_how_it_ended(cp);
    if (cp->options.json)
        print_json(cp, &sum, seconds);
    if (cp->options.verbose)
        print_sum(cp, &sum, seconds, cp->report.lines);
    else if (shown_before)
        print_sum(cp, &sum, seconds, stderr);
    if (fflush(stdout) != 0 || ferror(stdout))
        report_failure(&cp->report, "cannot write to standard output: %s (%s)", text_errno_meaning(errno),
                       text_errno_name(errno));
    return 0;
}

/* Returns 0 or the exit code. */
static int settle_options(struct cp *cp)
{
    struct cp_options *options = &cp->options;
    static const char *const names[] = {
        [REFLINK_AUTO] = "auto", [REFLINK_ALWAYS] = "reflink", [REFLINK_NEVER] = "copy"};
    struct failure failure;
    int route = routes_parse(options->route, &failure);
    if (route < 0 || routes_check((enum sluice_route)route, SLUICE_END_FILE, 0, SLUICE_END_FILE, 1, &failure) < 0) {
        fprintf(stderr, "sluice cp: --route %s\nTry 'sluice cp --help'.\n", failure.text);
        return EXIT_CODE_USAGE;
    }
    if (options->reflink != REFLINK_AUTO && route != SLUICE_ROUTE_AUTO) {
        fprintf(stderr, "sluice cp: --reflink=%s and --route %s contradict each other\nTry 'sluice cp --help'.\n",
                reflink_choices[options->reflink], options->route);
        return EXIT_CODE_USAGE;
    }
    if (options->reflink != REFLINK_AUTO)
        route = sluice_route_by_name(names[options->reflink]);
    options->verbose |= options->debug;
    cp->settings = (struct copy_settings){
        .no_clobber = options->no_clobber,
        .update = options->update,
        .verbose = options->verbose,
        .debug = options->debug,
        .sync = options->fsync,
        .verify = options->verify,
        .route = (enum sluice_route)route,
        .reflink_required = options->reflink == REFLINK_ALWAYS,
        .uid = geteuid(),
        .gid = getegid(),
    };
    return EXIT_CODE_DONE;
}

static int run(struct cp *cp, char **paths, unsigned count)
{
    int code = settle_options(cp);
    if (code != EXIT_CODE_DONE)
        return code;
    const char *target = paths[count - 1];
    unsigned sources = count - 1;
    cp->pace = (struct pace){.cpus = supervisor_cpu_count(), .fixed = cp->options.jobs > 0};
    struct tree_options tree_options = {
        .settings = &cp->settings,
        .report = &cp->report,
        .stop = &stop,
        .threads = cp->pace.fixed ? (unsigned)cp->options.jobs : cp->pace.cpus,
        .threads_max = cp->pace.fixed ? (unsigned)cp->options.jobs
                                      : (unsigned)min_u64((uint64_t)cp->pace.cpus * JOBS_PER_CPU_MAX,
                                                          max_u64(JOBS_MAX, cp->pace.cpus)),
    };
    umask(0); /* modes are the sources' */
    CLEANUP_FREE struct operand *operands = calloc(sources, sizeof *operands);
    int result = operands == NULL ? -ENOMEM : 0;
    for (unsigned i = 0; i < sources && result == 0; i++)
        operands[i].path = paths[i];
    if (result == 0)
        result = add_operands(cp, operands, sources, target, &tree_options);
    for (unsigned i = 0; i < sources && operands != NULL; i++)
        free(operands[i].name);
    /* What is learned about the file systems is worth reading and keeping for a tree only. */
    bool learns = false;
    for (unsigned i = 0; i < sources && operands != NULL; i++)
        learns |= !operands[i].refused && S_ISDIR(operands[i].status.st_mode);
    if (learns)
        crossovers_begin("sluice cp", false, NULL, NULL);
    if (result == 0)
        result = copy(cp, paths, sources);
    if (learns)
        crossovers_end("sluice cp", NULL, NULL);
    if (result == -ENOMEM)
        report_failure(&cp->report, "out of memory");
    if (stop_signal)
        return 128 + stop_signal;
    bool failed = result < 0 || tally_get(&cp->report.tally.failed) > 0 || tree_is_full(cp->tree);
    return failed ? EXIT_CODE_FAILED : EXIT_CODE_DONE;
}

int cp_main(int argc, char **argv)
{
    const struct command_spec command = {
        .program = "sluice cp",
        .positionals = "SOURCE... TARGET",
        .positional_min = 2,
        .positional_max = UINT_MAX,
        .summary =
            "Copy files and directories with everything that belongs to them, as cp -a does: modes, times, owners, "
            "extended attributes and access control lists, symbolic and hard links, holes. Into TARGET when "
            "that is a directory, else to that name.",
        .version = sluice_version(),
        .options = option_table,
        .examples = examples,
        .footer = "A file gets its final name when it is complete, never before. SIGINT and SIGTERM end the copy and "
                  "remove what is incomplete.",
    };
    struct cp cp = {.target = -1, .report = {.lock = PTHREAD_MUTEX_INITIALIZER}};
    struct positionals positionals;
    int code = options_parse_or_exit_code(&command, argc, argv, &cp.options, &positionals);
    if (code >= 0)
        return code;
    cp.report.lines = cp.options.json ? stderr : stdout;
    code = run(&cp, positionals.items, positionals.count);
    tree_free(cp.tree);
    close_fd(cp.target);
    return code;
}
