/* SPDX-License-Identifier: MIT
 *
 * sluice trace: options, the processes to watch, the best tier that this machine allows, and the session's loop.
 */
#include "account.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/text.h"
#include "check.h"
#include "collect.h"
#include "commands.h"
#include "findings.h"
#include "mechanism.h"
#include "procfs.h"
#include "report.h"
#include "samples.h"
#include "service/options.h"

#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sluice/sluice.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct trace_options {
    const char *pids, *comm, *cgroup, *output, *peer;
    const char *sample;
    uint64_t duration, interval, frequency, rows, room;
    unsigned tier;
    bool all, json, threads, callers, faults, follow, check;
};

#define MEMBER(name) offsetof(struct trace_options, name)

enum { TIER_AUTO, TIER_FUNCTIONS, TIER_TRACEPOINTS, TIER_PROC };
static const char *const tiers[] = {"auto", "a", "b", "c", NULL};

static const struct option_spec option_table[] = {
    {.type = OPTION_HEADING, .help = "What to watch (or, after --, a command to run)"},
    {"pid", 'p', "PID[,PID...]", "these processes, with their threads and children", OPTION_TEXT, MEMBER(pids),
     .default_text = NULL},
    {"comm", 0, "NAME", "all processes of this name (as in /proc/PID/comm), also those that start later", OPTION_TEXT,
     MEMBER(comm), .default_text = NULL},
    {"cgroup", 0, "PATH", "all processes of this cgroup, and of those below it", OPTION_TEXT, MEMBER(cgroup),
     .default_text = NULL},
    {"all", 'a', NULL, "all processes", OPTION_FLAG, MEMBER(all), .default_text = NULL},
    {"follow", 0, NULL, "watch the children of these processes, too; --no-follow leaves out those there are",
     OPTION_FLAG, MEMBER(follow), .default_text = "yes"},

    {.type = OPTION_HEADING, .help = "How long, how often"},
    {"duration", 'd', "TIME", "end after this long; default: with the command, or when interrupted", OPTION_DURATION,
     MEMBER(duration), .default_text = "0"},
    {"interval", 'i', "TIME",
     "report every so often. On a terminal: redraw the screen, every second unless said otherwise", OPTION_DURATION,
     MEMBER(interval), .default_text = "0"},

    {.type = OPTION_HEADING, .help = "How"},
    {"tier", 0, "TIER",
     "where the figures come from: a, kernel functions; b, tracepoints; c, /proc; auto, the best that this machine "
     "allows",
     OPTION_CHOICE, MEMBER(tier), .default_text = "auto", .choices = tiers},
    {"frequency", 'F', "N", "CPU samples a second and processor; 0 for none", OPTION_UNSIGNED, MEMBER(frequency),
     .default_text = "199", .max = 10000},
    {"callers", 0, NULL, "find the code that asked for copies (unwinds sampled stacks); --no-callers is cheaper",
     OPTION_FLAG, MEMBER(callers), .default_text = "yes"},
    {"faults", 0, NULL, "count pages mapped and copied by page faults", OPTION_FLAG, MEMBER(faults),
     .default_text = "yes"},
    {"sample", 0, "PERCENT",
     "count during this share of the time only, in one window every second; sums are those of the windows. auto: all "
     "the "
     "time, but less on processes so busy with system calls that counting would cost them more than 3 %; and 100 for a "
     "COMMAND",
     OPTION_TEXT, MEMBER(sample), .default_text = "auto"},
    {"room", 0, "N", "flows (a thread, two ends, a mechanism), and ends, that there is room for; others count as lost",
     OPTION_UNSIGNED, MEMBER(room), .default_text = "16384", .min = 1, .max = 1048576},

    {.type = OPTION_HEADING, .help = "Report"},
    {"json", 0, NULL, "as JSON: one object a report and line", OPTION_FLAG, MEMBER(json), .default_text = NULL},
    {"threads", 't', NULL, "a row for each thread", OPTION_FLAG, MEMBER(threads), .default_text = NULL},
    {"rows", 0, "N", "at most this many rows a process; 0 for all", OPTION_UNSIGNED, MEMBER(rows),
     .default_text = "20"},
    {"output", 'o', "FILE", "write the report there; default: standard output", OPTION_TEXT, MEMBER(output),
     .default_text = NULL},

    {.type = OPTION_HEADING, .help = "Instead"},
    {"check", 0, NULL, "run sluice's own routes, and compare their receipts with what was traced", OPTION_FLAG,
     MEMBER(check), .default_text = NULL},
    {"peer", 0, "ADDRESS:PORT",
     "with --check: send over the device on the way to a service there that throws away what it is sent", OPTION_TEXT,
     MEMBER(peer), .default_text = NULL},
    {.type = OPTION_END},
};

static const char *const examples[] = {
    "sluice trace -p 1234",
    "a live screen of what process 1234 copies",
    "sluice trace -- curl -so /dev/null http://127.0.0.1:8080/big.iso",
    "run a command, and report at its end",
    "sluice trace --comm nginx --duration 10s --json",
    "ten seconds of all nginx processes, for a program to read",
    NULL,
};

static const struct command_spec command = {
    .program = "sluice trace",
    .positionals = "[-- COMMAND [ARGUMENT]...]",
    .positional_max = 4096,
    .summary = "Find the hidden copies in any process: how many bytes it moves between which ends, by which mechanism, "
               "how often the CPU copies each of them, which code asks for it, and what share of its time that takes.",
    .options = option_table,
    .examples = examples,
    .footer =
        "Needs CAP_BPF and CAP_PERFMON for exact figures, CAP_SYS_PTRACE for the names of others' files; without "
        "them it tells what /proc can. See sluice-trace(1) for what each mechanism copies, and how that is known.",
};

struct session {
    struct trace_options options;
    enum account_tier tier;
    struct account *account;
    struct collect *collect; /* NULL in tier (c) */
    struct samples *samples; /* NULL without */
    struct procfs *procfs;
    struct screen *screen; /* NULL unless live */
    uint32_t *pids;        /* named or found at the start */
    size_t pid_count;
    pid_t child; /* the command; 0 none */
    FILE *stream;
    uint64_t start_ns;
    /* --sample: the share of each second in which calls are counted, in thousandths, and what auto makes it from. */
    unsigned counted_share;
    bool adapt, adapted;                                   /* the second: at least once */
    uint64_t window_start_ns, window_calls, window_cpu_ns; /* of the account, when this second's window began */
    uint64_t counted_ns, counting_since_ns;                /* since: 0 while paused */
    char notice[1536];
    struct procfs_machine machine; /* at the start */
};

__attribute__((format(printf, 2, 3))) static void add_notice(struct session *session, const char *format, ...)
{
    size_t used = strlen(session->notice);
    if (used > 0 && used + 1 < sizeof session->notice)
        session->notice[used++] = '\n';
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(session->notice + used, sizeof session->notice - used, format, arguments);
    va_end(arguments);
}

/* ---- Whom to watch --------------------------------------------------------------------------------------------- */

static int parse_pids(struct session *session, const char *text)
{
    for (const char *at = text; *at != '\0';) {
        char one[24];
        size_t length = strcspn(at, ", ");
        uint64_t pid = 0;
        if (length > 0) {
            snprintf(one, sizeof one, "%.*s", (int)(length < sizeof one ? length : sizeof one - 1), at);
            if (length >= sizeof one || text_parse_unsigned(one, &pid) < 0 || pid == 0 || pid > INT32_MAX) {
                fprintf(stderr, "sluice trace: --pid takes process numbers, not \"%.*s\"\n", (int)length, at);
                return -EINVAL;
            }
            if (kill((pid_t)pid, 0) != 0 && errno == ESRCH) {
                fprintf(stderr, "sluice trace: there is no process %s\n", one);
                return -ESRCH;
            }
            uint32_t *larger = realloc(session->pids, (session->pid_count + 1) * sizeof *larger);
            if (larger == NULL)
                return -ENOMEM;
            session->pids = larger;
            session->pids[session->pid_count++] = (uint32_t)pid;
        }
        at += length + (at[length] != '\0');
    }
    if (session->pid_count > 0)
        return 0;
    fprintf(stderr, "sluice trace: --pid takes process numbers, not \"%s\"\n", text);
    return -EINVAL;
}

/* Process numbers mean our pid namespace's, to the kernel's programs and to us; so those in /proc must be its, too. */
static int check_proc(void)
{
    char text[24] = "";
    uint64_t pid = 0;
    ssize_t length = readlink("/proc/self", text, sizeof text - 1);
    if (length > 0 && text_parse_unsigned(text, &pid) == 0 && pid == (uint64_t)getpid())
        return 0;
    fprintf(stderr,
            "sluice trace: /proc is %s: it says nothing about the processes that are seen from here. Mount this pid "
            "namespace's own: mount -t proc proc /proc (or unshare --mount-proc)\n",
            length > 0 ? "another pid namespace's" : "not mounted");
    return -EINVAL;
}

/* The processes there are at the start. Those that come later are the kernel's programs' to find. */
static int find_processes(struct session *session)
{
    const struct trace_options *options = &session->options;
    int found = 0;
    if (options->pids != NULL)
        return parse_pids(session, options->pids);
    if (options->comm != NULL)
        found = procfs_find_by_comm(options->comm, &session->pids);
    else if (options->cgroup != NULL)
        found = procfs_find_by_cgroup(options->cgroup, &session->pids);
    else if (options->all)
        found = procfs_find_all(&session->pids);
    if (found < 0) {
        fprintf(stderr, "sluice trace: looking for processes in %s failed: %s (%s)\n",
                options->cgroup != NULL ? options->cgroup : "/proc", text_errno_meaning(found), text_errno_name(found));
        return found;
    }
    session->pid_count = (size_t)found;
    return 0;
}

/* Start the command, stopped before its exec until the programs are in place. */
static int start_command(char **argv, pid_t *ret_child, int *ret_go)
{
    /* An eventfd is no end of data: the command's report does not begin with our word to it. */
    int go = eventfd(0, EFD_CLOEXEC);
    if (go < 0)
        return -errno;
    pid_t tracer = getpid(), child = fork();
    if (child < 0) {
        int error = -errno;
        close_fd(go);
        return error;
    }
    if (child == 0) {
        uint64_t token;
        sigset_t none;
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* should the tracer die first */
        if (getppid() != tracer || read(go, &token, sizeof token) != sizeof token)
            _exit(127);
        prctl(PR_SET_PDEATHSIG, 0);
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        execvp(argv[0], argv);
        fprintf(stderr, "sluice trace: %s: %s (%s)\n", argv[0], text_errno_meaning(errno), text_errno_name(errno));
        _exit(127);
    }
    *ret_child = child;
    *ret_go = go;
    return 0;
}

static int add_with_children(struct session *session, uint32_t pid, unsigned depth)
{
    if (account_process(session->account, pid) != NULL)
        return 0;
    int error = account_enter_process(session->account, pid, 0, NULL);
    if (error == 0 && session->collect != NULL && session->options.comm == NULL && session->options.cgroup == NULL &&
        !session->options.all)
        error = collect_add(session->collect, pid);
    if (error < 0 || !session->options.follow || session->options.pids == NULL || depth > 64)
        return error;
    uint32_t *children = NULL;
    int count = procfs_children(pid, &children);
    for (int i = 0; i < count && error == 0; i++)
        error = add_with_children(session, children[i], depth + 1);
    free(children);
    return error;
}

/* ---- Where figures come from ------------------------------------------------------------------------------------ */

/* Tier (a): what it cannot see, since not every kernel has all of its functions, and some lie in modules. */
static void name_functions_missing(struct session *session)
{
    uint32_t functions = collect_functions(session->collect);
    char names[512] = "";
    size_t used = 0;
    for (uint32_t i = 0; i < TRACE_FUNCTION_COUNT && used < sizeof names; i++)
        if ((functions >> i & 1) == 0)
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", used > 0 ? ", " : "",
                                     mechanism_function_name((enum trace_function)i));
    if (used > 0)
        add_notice(
            session,
            "Not hooked, as this kernel has no such function, has it in a module that was not loaded, or refuses a "
            "program there: %s. What it copies is known by the mechanism's definition, or not at all.",
            names);
}

static int open_tier(struct session *session)
{
    const struct trace_options *options = &session->options;
    struct failure failure = {.text = ""};
    session->tier = ACCOUNT_TIER_PROC;
    if (options->tier != TIER_PROC) {
        struct collect_options collect = {
            .scope = options->all              ? TRACE_SCOPE_ALL
                     : options->comm != NULL   ? TRACE_SCOPE_COMM
                     : options->cgroup != NULL ? TRACE_SCOPE_CGROUP
                                               : TRACE_SCOPE_PROCESSES,
            .comm = options->comm,
            .cgroup = options->cgroup,
            .functions = options->tier != TIER_TRACEPOINTS,
            .faults = options->faults,
            .room = (uint32_t)options->room,
        };
        int error = collect_open(&collect, &session->collect, &session->tier, &failure);
        if (error < 0 && options->tier != TIER_AUTO) {
            fprintf(stderr, "sluice trace: tier (%s) is not to be had: %s\n", tiers[options->tier], failure.text);
            return error;
        }
        if (error < 0)
            add_notice(session, "Only what /proc tells, tier (c): %s", failure.text);
        else if (session->tier == ACCOUNT_TIER_TRACEPOINTS && options->tier == TIER_FUNCTIONS) {
            fprintf(stderr, "sluice trace: tier (a) is not to be had: %s\n", failure.text);
            return -ENOTSUP;
        } else if (session->tier == ACCOUNT_TIER_TRACEPOINTS && options->tier == TIER_AUTO)
            add_notice(
                session,
                "Bytes and calls are exact, copies follow from the mechanism. For tier (a), which counts them: %s.",
                failure.text);
    }
    if (session->tier == ACCOUNT_TIER_FUNCTIONS)
        name_functions_missing(session);
    if (session->tier != ACCOUNT_TIER_PROC && options->faults && !collect_sees_faults(session->collect))
        add_notice(session, "Page faults are not counted: this kernel has no tracepoint for them.");
    if (session->tier == ACCOUNT_TIER_PROC && options->cgroup == NULL && options->comm == NULL && !options->all &&
        options->pids == NULL && session->child == 0)
        return -EINVAL;
    return 0;
}

static void open_samples(struct session *session)
{
    struct failure failure = {.text = ""};
    if (session->options.frequency == 0)
        return;
    uint32_t child = (uint32_t)session->child;
    struct samples_options options = {
        .frequency = (unsigned)session->options.frequency,
        .callers = session->options.callers,
        .pids = session->pid_count > 0 ? session->pids : &child,
        .pid_count = session->pid_count > 0 ? session->pid_count : session->child != 0,
    };
    if (samples_open(&options, &session->samples, &failure) < 0)
        add_notice(session, "No samples of the CPU, so no share of time and no callers: %s", failure.text);
    else if (samples_limits(session->samples) != NULL)
        add_notice(session, "%s", samples_limits(session->samples));
}

/* ---- The session --------------------------------------------------------------------------------------------------
 */

static void drain(struct session *session)
{
    struct account *account = session->account;
    uint64_t now = clock_ns(CLOCK_MONOTONIC);
    uint64_t counted_ns =
        session->counted_ns + (session->counting_since_ns != 0 ? now - session->counting_since_ns : 0);
    account_enter_time(account, now - session->start_ns, session->collect != NULL ? counted_ns : 0);
    if (session->collect != NULL)
        collect_drain(session->collect, account, session->procfs);
    else
        for (size_t i = 0; i < session->pid_count; i++)
            procfs_enter_io(session->procfs, account, session->pids[i], session->options.follow);
    procfs_enter_cpu(session->procfs, account);
    if (session->samples != NULL)
        samples_drain(session->samples, account);
}

static void report(struct session *session, bool last)
{
    struct report_options options = {
        .threads = session->options.threads,
        .rows = (unsigned)session->options.rows,
        .notice = session->notice[0] != '\0' ? session->notice : NULL,
    };
    if (session->options.json) {
        report_json(session->stream, session->account, &options);
    } else if (session->screen != NULL && !last) {
        options.colour = text_colour_wanted();
        screen_draw(session->screen, session->account, &options);
        return;
    } else {
        int fd = fileno(session->stream);
        struct winsize window;
        if (isatty(fd) && ioctl(fd, TIOCGWINSZ, &window) == 0 && window.ws_col > 0) {
            options.width = window.ws_col;
            options.colour = text_colour_wanted();
        }
        report_lines(session->stream, session->account, &options);
    }
    fflush(session->stream);
}

/* A hypervisor that runs others makes every figure of time doubtful. */
static void add_theft(struct session *session)
{
    struct procfs_machine now = procfs_machine();
    uint64_t used = now.used - session->machine.used, stolen = now.stolen - session->machine.stolen;
    if (used + stolen < 100 || stolen < (used + stolen) / 50) /* ticks: too few say nothing */
        return;
    add_notice(
        session,
        "This machine is a guest, whose hypervisor gave %.2g %% of the CPU time that it wanted to others (steal): "
        "CPU time and shares of it may contain some of that.",
        100.0 * (double)stolen / (double)(used + stolen));
}

/* What the samples missed; the account knows of the rest. */
static void add_losses(struct session *session)
{
    add_theft(session);
    if (session->samples == NULL)
        return;
    if (samples_lost(session->samples) > 0)
        add_notice(session, "%llu CPU samples were lost: the rings were full.",
                   (unsigned long long)samples_lost(session->samples));
    if (samples_stray(session->samples) > 0)
        add_notice(session, "%llu CPU samples of copying in softirqs belong to no process.",
                   (unsigned long long)samples_stray(session->samples));
}

static bool alive(struct session *session)
{
    for (size_t i = 0; i < session->pid_count; i++)
        if (kill((pid_t)session->pids[i], 0) == 0 || errno != ESRCH)
            return true;
    return false;
}

/* Returns true when the session is to end. */
static bool on_signal(struct session *session, int signals)
{
    struct signalfd_siginfo info;
    while (read(signals, &info, sizeof info) == sizeof info) {
        siginfo_t child = {.si_pid = 0};
        if (info.ssi_signo != SIGCHLD)
            return true;
        /* Waited for only after the last look: until then /proc knows what it did. */
        if (session->child > 0 && waitid(P_PID, (id_t)session->child, &child, WEXITED | WNOHANG | WNOWAIT) == 0 &&
            child.si_pid != 0)
            return true;
    }
    return false;
}

#define DRAIN_MS 200   /* names of short-lived processes, and the rings of samples, cannot wait longer */
#define WINDOW_MS 1000 /* --sample: windows come once in this time */

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

#define FULL_SHARE 1000
#define LEAST_SHARE 10
#define COST_MAX_PERCENT 1 /* samples, turning on and off, and calls that cost more than is reckoned make it 3 */
/* What counting one system call costs the thread that makes it, on this class of machine: 500 to 700 ns when it moves
 * bytes, about 100 when not. sluice serve, 1 KB: two calls a request, 1.2 us more; nginx: five, three of which move
 * bytes, 1.6 us more (bench/trace-overhead). All are taken for the first kind: rather too little is counted than too
 * much. */
#define CALL_COST_NS 600

static void pause_counting(struct session *session, uint64_t now, bool pause)
{
    collect_pause(session->collect, pause);
    if (!pause && session->counting_since_ns == 0) {
        session->counting_since_ns = now;
    } else if (pause && session->counting_since_ns != 0) {
        session->counted_ns += now - session->counting_since_ns;
        session->counting_since_ns = 0;
    }
}

static void add_up(struct session *session, uint64_t *ret_calls, uint64_t *ret_cpu_ns)
{
    size_t count;
    const struct account_process *processes = account_processes(session->account, &count);
    *ret_calls = account_ring_operations(session->account); /* a completion costs what a call costs, and is none */
    *ret_cpu_ns = 0;
    for (size_t i = 0; i < count; i++) {
        *ret_calls += processes[i].system_calls;
        *ret_cpu_ns += processes[i].cpu_ns;
    }
}

/* A second is over: what share of the next one may be counted? The calls were counted during a share of it, the CPU
 * time of the traced processes is of all of it. */
static void adapt_share(struct session *session)
{
    uint64_t calls, cpu_ns;
    add_up(session, &calls, &cpu_ns);
    uint64_t new_calls = calls - session->window_calls, new_cpu_ns = cpu_ns - session->window_cpu_ns;
    session->window_calls = calls;
    session->window_cpu_ns = cpu_ns;
    if (!session->adapt)
        return;
    uint64_t full_cost_ns = new_calls * CALL_COST_NS * FULL_SHARE / session->counted_share;
    uint64_t allowed_ns = new_cpu_ns * COST_MAX_PERCENT / 100;
    uint64_t share = full_cost_ns > allowed_ns ? FULL_SHARE * allowed_ns / full_cost_ns : FULL_SHARE;
    session->counted_share = share < LEAST_SHARE ? LEAST_SHARE : (unsigned)share;
}

/* Counting goes on and off. Returns when this changes next. */
static uint64_t turn_window(struct session *session, uint64_t now)
{
    /* The first one is short, so that a busy server is not counted in full for long. */
    const uint64_t window_ns = (session->adapted || !session->adapt ? WINDOW_MS : DRAIN_MS) * 1000000u;
    if (session->window_start_ns == 0 || now - session->window_start_ns >= window_ns) {
        if (session->window_start_ns != 0) {
            adapt_share(session);
            session->adapted = true;
        }
        session->window_start_ns = now;
    }
    uint64_t on_ns = window_ns / FULL_SHARE * session->counted_share;
    uint64_t into = now - session->window_start_ns;
    pause_counting(session, now, into >= on_ns);
    return session->window_start_ns + (into < on_ns ? on_ns : window_ns);
}

static int run(struct session *session, int signals)
{
    const struct trace_options *options = &session->options;
    uint64_t interval = options->interval * 1000000;
    if (interval == 0 && session->screen != NULL)
        interval = 1000000000;
    uint64_t next_report = interval != 0 ? session->start_ns + interval : UINT64_MAX;
    uint64_t end = options->duration != 0 ? session->start_ns + options->duration * 1000000 : UINT64_MAX;
    bool watch_pids = options->pids != NULL;
    for (;;) {
        uint64_t now = clock_ns(CLOCK_MONOTONIC);
        uint64_t next_drain = now + DRAIN_MS * 1000000u;
        if (session->collect != NULL)
            next_drain = least(next_drain, turn_window(session, now));
        uint64_t until = least(least(next_drain, next_report), end);
        struct pollfd wait[] = {
            {.fd = signals, .events = POLLIN},
            {.fd = session->collect != NULL ? collect_fd(session->collect) : -1, .events = POLLIN},
            {.fd = session->screen != NULL ? STDIN_FILENO : -1, .events = POLLIN},
        };
        int timeout = until > now ? (int)((until - now + 999999) / 1000000) : 0;
        if (poll(wait, 3, timeout) < 0 && errno != EINTR)
            return -errno;
        bool over = false;
        if (wait[0].revents != 0)
            over = on_signal(session, signals);
        if (wait[2].revents != 0 && screen_key(session->screen))
            over = true;
        now = clock_ns(CLOCK_MONOTONIC);
        over = over || now >= end || (watch_pids && !alive(session));
        drain(session);
        if (over)
            return 0;
        if (now >= next_report) {
            report(session, false);
            next_report += interval;
            if (next_report <= now) /* we were kept from running: no burst of reports */
                next_report = now + interval;
        }
    }
}

static void close_session(struct session *session)
{
    screen_close(session->screen);
    samples_close(session->samples);
    collect_close(session->collect);
    procfs_free(session->procfs);
    account_free(session->account);
    free(session->pids);
    if (session->stream != NULL && session->stream != stdout)
        fclose(session->stream);
}

static int open_output(struct session *session)
{
    session->stream = stdout;
    if (session->options.output == NULL)
        return 0;
    session->stream = fopen(session->options.output, "we");
    if (session->stream == NULL) {
        fprintf(stderr, "sluice trace: --output %s: %s (%s)\n", session->options.output, text_errno_meaning(errno),
                text_errno_name(errno));
        return -errno;
    }
    return 0;
}

/* A COMMAND is run to be looked at, and may take its time; a server that somebody waits for may not. */
static int parse_sample(struct session *session, bool is_command)
{
    const char *text = session->options.sample;
    uint64_t percent = 100;
    session->adapt = strcmp(text, "auto") == 0 && !is_command;
    if (strcmp(text, "auto") != 0 && (text_parse_unsigned(text, &percent) < 0 || percent < 1 || percent > 100)) {
        fprintf(stderr, "sluice trace: --sample takes auto or a number from 1 to 100, not \"%s\"\n", text);
        options_print_hint(&command, stderr);
        return -EINVAL;
    }
    session->counted_share = (unsigned)percent * FULL_SHARE / 100;
    return 0;
}

static int check_usage(const struct trace_options *options, unsigned command_words)
{
    int scopes = (options->pids != NULL) + (options->comm != NULL) + (options->cgroup != NULL) + options->all +
                 (command_words > 0);
    const char *wrong = NULL;
    struct sockaddr_in peer;
    if (options->check && scopes > 0)
        wrong = "--check runs its own processes: leave out what to watch";
    else if (options->peer != NULL && !options->check)
        wrong = "--peer goes with --check";
    else if (options->peer != NULL && check_parse_peer(options->peer, &peer) < 0)
        wrong = "--peer takes an IPv4 address and a port: 10.0.0.7:9";
    else if (!options->check && scopes == 0)
        wrong = "whom to trace? Give -p PID, --comm NAME, --cgroup PATH, -a, or -- COMMAND";
    else if (scopes > 1)
        wrong = "-p, --comm, --cgroup, -a and -- COMMAND exclude each other";
    else if (options->comm != NULL && strlen(options->comm) >= TRACE_COMM_SIZE)
        wrong = "--comm: the kernel cuts names to 15 characters; give those";
    if (wrong == NULL)
        return 0;
    fprintf(stderr, "sluice trace: %s\n", wrong);
    options_print_hint(&command, stderr);
    return -EINVAL;
}

static int check_routes(const struct trace_options *options)
{
    struct check_options own = {.functions = options->tier == TIER_FUNCTIONS,
                                .trust_tier_b = options->tier == TIER_TRACEPOINTS,
                                .peer = options->peer,
                                .stream = stdout};
    struct check_result result;
    struct check *check;
    if (check_open(&own, &check) < 0)
        return EXIT_CODE_FAILED;
    int error = check_run(check, SLUICE_ROUTE_AUTO, NULL, &result);
    check_close(check);
    return error == 0 && result.disagreed == 0 ? EXIT_CODE_DONE : EXIT_CODE_FAILED;
}

int trace_main(int argc, char **argv)
{
    struct session session = {.stream = stdout};
    struct positionals words;
    int code = options_parse_or_exit_code(&command, argc, argv, &session.options, &words);
    if (code >= 0)
        return code;
    if (check_usage(&session.options, words.count) < 0 || parse_sample(&session, words.count > 0) < 0)
        return EXIT_CODE_USAGE;
    if (session.options.check)
        return check_routes(&session.options);
    if (check_proc() < 0)
        return EXIT_CODE_FAILED;
    int exit_status = 0, go = -1;
    sigset_t handled;
    sigemptyset(&handled);
    sigaddset(&handled, SIGINT);
    sigaddset(&handled, SIGTERM);
    sigaddset(&handled, SIGHUP);
    sigaddset(&handled, SIGCHLD);
    sigprocmask(SIG_BLOCK, &handled, NULL);
    signal(SIGPIPE, SIG_IGN);
    CLEANUP_FD int signals = signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK);
    int error = signals < 0 ? -errno : 0;
    if (error == 0)
        error = find_processes(&session);
    if (error < 0) {
        code = error == -ESRCH || error == -EINVAL ? EXIT_CODE_USAGE : EXIT_CODE_FAILED;
        goto done;
    }
    code = EXIT_CODE_FAILED;
    error = procfs_new(&session.procfs); /* before the command: it counts processes born later from their birth */
    if (error < 0)
        goto done;
    if (words.count > 0) {
        /* The words lie at the front of argv, and argv[words.count] may be another word: end the list. */
        char **arguments = calloc(words.count + 1, sizeof *arguments);
        if (arguments == NULL)
            goto done;
        memcpy(arguments, words.items, words.count * sizeof *arguments);
        error = start_command(arguments, &session.child, &go);
        free(arguments);
        if (error < 0)
            goto done;
    }
    if (open_output(&session) < 0 || open_tier(&session) < 0)
        goto done;
    error = account_new(session.tier, &session.account);
    if (error < 0)
        goto done;
    if (session.collect != NULL)
        account_watch(session.account, collect_functions(session.collect));
    if (session.child > 0) {
        session.pids = malloc(sizeof *session.pids);
        if (session.pids == NULL)
            goto done;
        session.pids[session.pid_count++] = (uint32_t)session.child;
    }
    open_samples(&session);
    for (size_t i = 0; i < session.pid_count; i++)
        if ((error = add_with_children(&session, session.pids[i], 0)) < 0)
            goto done;
    bool live = session.stream == stdout && isatty(STDOUT_FILENO) && isatty(STDIN_FILENO) && !session.options.json &&
                words.count == 0;
    if (live)
        screen_open(STDOUT_FILENO, &session.screen);   /* without it: plain lines */
    procfs_enter_cpu(session.procfs, session.account); /* from here on */
    session.start_ns = session.counting_since_ns = clock_ns(CLOCK_MONOTONIC);
    session.machine = procfs_machine();
    if (go >= 0 && eventfd_write(go, 1) != 0)
        goto done;
    error = run(&session, signals);
    if (session.child > 0 && waitpid(session.child, &exit_status, WNOHANG) != session.child)
        exit_status = 0; /* interrupted: it goes on */
    screen_close(session.screen);
    session.screen = NULL;
    if (error == 0) {
        add_losses(&session);
        report(&session, true);
        code = ferror(session.stream) ? EXIT_CODE_FAILED : EXIT_CODE_DONE;
        if (WIFSIGNALED(exit_status))
            fprintf(stderr, "sluice trace: the command was ended by signal %d (%s)\n", WTERMSIG(exit_status),
                    strsignal(WTERMSIG(exit_status)));
        else if (WEXITSTATUS(exit_status) != 0)
            fprintf(stderr, "sluice trace: the command's exit status was %d\n", WEXITSTATUS(exit_status));
        if (WIFEXITED(exit_status) && WEXITSTATUS(exit_status) == 127)
            code = EXIT_CODE_FAILED;
    }
done:
    if (error < 0 && error != -ESRCH && error != -EINVAL)
        fprintf(stderr, "sluice trace: %s (%s)\n", text_errno_meaning(error), text_errno_name(error));
    close_fd(go);
    close_session(&session);
    return code;
}
