/* SPDX-License-Identifier: MIT */
#include "service/supervisor.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "service/options.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define RESTART_MS_DEFAULT 100
#define RESTART_MS_MAX 5000
#define SETTLED_MS 10000 /* a worker that lived this long was not killed by starting */

/* One place for a worker and its successors. */
struct place {
    pid_t pid; /* 0: nobody there */
    unsigned generation;
    bool ready;             /* this worker has said so */
    bool killed;            /* by us, at the end of draining */
    unsigned failed_starts; /* in a row */
    uint64_t started_ms;
    uint64_t next_restart_ms; /* the pause before the next restart */
    uint64_t restart_at_ms;   /* when nobody is there */
};

struct supervisor {
    const struct supervisor_options *options;
    struct place *places;
    sigset_t previous_mask;
    int signal_fd;
    int ready_read, ready_write; /* workers write their index when they serve */
    unsigned ready_count;        /* places whose worker is ready */
    bool announced;              /* options->ready has run */
    bool stopping, gave_up, killed_some, crashed_draining;
    uint64_t drain_until_ms; /* 0: no limit */
};

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

__attribute__((format(printf, 2, 3))) static void say(const struct supervisor *supervisor, const char *format, ...)
{
    char line[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (supervisor->options->say != NULL)
        supervisor->options->say(supervisor->options->context, line);
    else
        fprintf(stderr, "%s: %s\n", supervisor->options->name, line);
}

static void supervised_signals(sigset_t *ret_set)
{
    sigemptyset(ret_set);
    sigaddset(ret_set, SIGTERM);
    sigaddset(ret_set, SIGINT);
    sigaddset(ret_set, SIGHUP);
    sigaddset(ret_set, SIGUSR1);
    sigaddset(ret_set, SIGCHLD);
}

void worker_ready(struct worker *worker)
{
    /* Smaller than PIPE_BUF, so whole or not at all. EPIPE: the supervisor is gone, and the death signal is on its way.
     */
    ssize_t written;
    do
        written = write(worker->ready_fd, &worker->index, sizeof worker->index);
    while (written < 0 && errno == EINTR);
    worker->ready_fd = close_fd(worker->ready_fd);
}

_Noreturn static void be_worker(struct supervisor *supervisor, unsigned index, pid_t supervisor_pid)
{
    const struct supervisor_options *options = supervisor->options;
    /* SIGKILL: a worker that hangs could not be reached by less. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    /* The supervisor may have died before the line above. */
    if (getppid() != supervisor_pid)
        _exit(EXIT_CODE_FAILED);
    close(supervisor->signal_fd);
    close(supervisor->ready_read);
    signal(SIGPIPE, SIG_IGN);

    /* SIGINT, SIGHUP and SIGUSR1 stay blocked: Ctrl-C reaches the whole process group, and the supervisor passes it on
     * as SIGTERM once. SIGCHLD is of no concern here. */
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    struct worker worker = {
        .index = index,
        .generation = supervisor->places[index].generation,
        .stop_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC),
        .ready_fd = supervisor->ready_write,
    };
    if (worker.stop_fd < 0)
        exit(EXIT_CODE_FAILED);
    int code = options->worker_main(options->context, &worker);
    free(supervisor->places);
    /* exit rather than _exit: stdio is flushed, and sanitizers get to report. */
    exit(code);
}

static int start_worker(struct supervisor *supervisor, unsigned index)
{
    struct place *place = &supervisor->places[index];
    pid_t self = getpid();
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) {
        int code = errno;
        say(supervisor, "worker %u cannot be started: fork: %s (%s)", index, text_errno_meaning(code),
            text_errno_name(code));
        return -code;
    }
    if (pid == 0)
        be_worker(supervisor, index, self);
    place->pid = pid;
    place->ready = false;
    place->killed = false;
    place->started_ms = now_ms();
    return 0;
}

static unsigned living(const struct supervisor *supervisor)
{
    unsigned count = 0;
    for (unsigned i = 0; i < supervisor->options->workers; i++)
        count += supervisor->places[i].pid != 0;
    return count;
}

static void signal_all(struct supervisor *supervisor, int number)
{
    for (unsigned i = 0; i < supervisor->options->workers; i++) {
        struct place *place = &supervisor->places[i];
        /* The process has not been waited for, so the pid cannot belong to anybody else. */
        if (place->pid != 0)
            kill(place->pid, number);
        if (place->pid != 0 && number == SIGKILL) {
            place->killed = true;
            supervisor->killed_some = true;
        }
    }
}

static void stop(struct supervisor *supervisor)
{
    if (supervisor->stopping)
        return;
    supervisor->stopping = true;
    if (supervisor->options->drain_ms != 0)
        supervisor->drain_until_ms = now_ms() + supervisor->options->drain_ms;
    signal_all(supervisor, SIGTERM);
}

static void give_up(struct supervisor *supervisor)
{
    supervisor->gave_up = true;
    stop(supervisor);
}

/* "died of signal 11 (Segmentation fault)", "ended with exit code 1". */
static void describe_end(int status, char *buffer, size_t size)
{
    if (WIFSIGNALED(status)) {
        const char *meaning = sigdescr_np(WTERMSIG(status));
        snprintf(buffer, size, "died of signal %d (%s)", WTERMSIG(status), meaning != NULL ? meaning : "unknown");
    } else {
        snprintf(buffer, size, "ended with exit code %d", WEXITSTATUS(status));
    }
}

/* The worker at this place died though nobody had asked it to end. */
static void plan_restart(struct supervisor *supervisor, unsigned index, pid_t pid, int status)
{
    struct place *place = &supervisor->places[index];
    char how[100], pause[TEXT_SIZE_MAX];
    uint64_t now = now_ms();
    describe_end(status, how, sizeof how);
    if (WIFEXITED(status) && WEXITSTATUS(status) == WORKER_EXIT_GIVE_UP) {
        say(supervisor, "worker %u (pid %d) cannot work here; ending", index, (int)pid);
        give_up(supervisor);
        return;
    }
    place->failed_starts = place->ready ? 0 : place->failed_starts + 1;
    if (place->failed_starts >= SUPERVISOR_START_ATTEMPTS) {
        say(supervisor, "worker %u (pid %d) %s before it was ready, the %uth time in a row; giving up", index, (int)pid,
            how, place->failed_starts);
        give_up(supervisor);
        return;
    }
    uint64_t first = supervisor->options->restart_ms != 0 ? supervisor->options->restart_ms : RESTART_MS_DEFAULT;
    if (place->next_restart_ms == 0 || now - place->started_ms >= SETTLED_MS)
        place->next_restart_ms = first;
    say(supervisor, "worker %u (pid %d) %s; starting another in %s", index, (int)pid, how,
        text_format_duration(place->next_restart_ms, pause, sizeof pause));
    place->restart_at_ms = now + place->next_restart_ms;
    place->next_restart_ms *= 2;
    if (place->next_restart_ms > RESTART_MS_MAX)
        place->next_restart_ms = first > RESTART_MS_MAX ? first : RESTART_MS_MAX;
}

static void take_ready_reports(struct supervisor *supervisor)
{
    unsigned index;
    while (read(supervisor->ready_read, &index, sizeof index) == (ssize_t)sizeof index) {
        struct place *place = &supervisor->places[index];
        if (place->pid != 0 && !place->ready) {
            place->ready = true;
            supervisor->ready_count++;
        }
    }
    if (!supervisor->announced && !supervisor->stopping && supervisor->ready_count == supervisor->options->workers) {
        supervisor->announced = true;
        if (supervisor->options->ready != NULL)
            supervisor->options->ready(supervisor->options->context);
    }
}

static void reap(struct supervisor *supervisor)
{
    const struct supervisor_options *options = supervisor->options;
    for (unsigned i = 0; i < options->workers; i++) {
        struct place *place = &supervisor->places[i];
        int status;
        /* By pid, not -1: children of others in this process (a helper, a test) are theirs to wait for. */
        if (place->pid == 0 || waitpid(place->pid, &status, WNOHANG) != place->pid)
            continue;
        /* Its report may still be in the pipe: read it now, or the successor would be taken for ready. */
        take_ready_reports(supervisor);
        pid_t pid = place->pid;
        bool crashed = !WIFEXITED(status) || WEXITSTATUS(status) != 0;
        place->pid = 0;
        place->generation++;
        if (place->ready)
            supervisor->ready_count--;
        if (options->worker_ended != NULL)
            options->worker_ended(options->context, i, crashed);
        if (!supervisor->stopping) {
            plan_restart(supervisor, i, pid, status);
        } else if (crashed && !place->killed) {
            char how[100];
            describe_end(status, how, sizeof how);
            say(supervisor, "worker %u (pid %d) %s while draining", i, (int)pid, how);
            supervisor->crashed_draining = true; /* its responses were broken off */
        }
    }
}

static void take_signals(struct supervisor *supervisor)
{
    struct signalfd_siginfo info;
    while (read(supervisor->signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
        switch (info.ssi_signo) {
        case SIGTERM:
        case SIGINT:
            if (supervisor->stopping) {
                say(supervisor, "asked a second time to end: not waiting for %u worker%s", living(supervisor),
                    living(supervisor) == 1 ? "" : "s");
                signal_all(supervisor, SIGKILL);
            }
            stop(supervisor);
            break;
        case SIGUSR1:
            if (supervisor->options->report != NULL)
                supervisor->options->report(supervisor->options->context);
            break;
        default:
            /* SIGCHLD only wakes us up: several deaths may make one signal, so reap looks at every worker.
             * SIGHUP is reserved. */
            break;
        }
    }
}

/* Do what is due, and return the milliseconds until something else will be: -1 for never. */
static int take_time(struct supervisor *supervisor)
{
    uint64_t now = now_ms(), next = UINT64_MAX;
    if (supervisor->stopping && supervisor->drain_until_ms != 0) {
        if (now >= supervisor->drain_until_ms) {
            char limit[TEXT_SIZE_MAX];
            say(supervisor, "%u worker%s did not finish within %s: ended", living(supervisor),
                living(supervisor) == 1 ? "" : "s",
                text_format_duration(supervisor->options->drain_ms, limit, sizeof limit));
            signal_all(supervisor, SIGKILL);
            supervisor->drain_until_ms = 0;
        } else {
            next = supervisor->drain_until_ms;
        }
    }
    for (unsigned i = 0; i < supervisor->options->workers && !supervisor->stopping; i++) {
        struct place *place = &supervisor->places[i];
        if (place->pid != 0)
            continue;
        if (now >= place->restart_at_ms && start_worker(supervisor, i) < 0)
            place->restart_at_ms =
                now + RESTART_MS_MAX; /* no process to be had now: memory or limits may allow it later */
        if (place->pid == 0 && place->restart_at_ms < next)
            next = place->restart_at_ms;
    }
    if (next == UINT64_MAX)
        return -1;
    return next - now > INT32_MAX ? INT32_MAX : (int)(next - now);
}

static int supervise(struct supervisor *supervisor)
{
    for (unsigned i = 0; i < supervisor->options->workers; i++) {
        if (start_worker(supervisor, i) < 0) {
            give_up(supervisor);
            break;
        }
    }
    for (;;) {
        struct pollfd polled[] = {{.fd = supervisor->signal_fd, .events = POLLIN},
                                  {.fd = supervisor->ready_read, .events = POLLIN}};
        int timeout = take_time(supervisor);
        if (supervisor->stopping && living(supervisor) == 0)
            return supervisor->gave_up || supervisor->killed_some || supervisor->crashed_draining ? EXIT_CODE_FAILED
                                                                                                  : EXIT_CODE_DONE;
        /* EINTR (a debugger, SIGCONT) is a turn like any other. */
        poll(polled, 2, timeout);
        take_signals(supervisor);
        take_ready_reports(supervisor);
        reap(supervisor);
    }
}

int supervisor_run(const struct supervisor_options *options)
{
    CLEANUP_FREE struct place *places = calloc(options->workers, sizeof *places);
    struct supervisor supervisor = {.options = options, .places = places};
    sigset_t set;
    int pipe_fds[2];
    if (places == NULL || pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK) < 0) {
        say(&supervisor, "cannot start: %s (%s)", text_errno_meaning(errno), text_errno_name(errno));
        return EXIT_CODE_FAILED;
    }
    CLEANUP_FD int ready_read = pipe_fds[0];
    CLEANUP_FD int ready_write = pipe_fds[1];
    supervised_signals(&set);
    /* Before the first fork: workers inherit the mask, so that a signal that comes early waits for them. */
    sigprocmask(SIG_BLOCK, &set, &supervisor.previous_mask);
    CLEANUP_FD int signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    supervisor.signal_fd = signal_fd;
    supervisor.ready_read = ready_read;
    supervisor.ready_write = ready_write;
    int result = EXIT_CODE_FAILED;
    if (signal_fd >= 0)
        result = supervise(&supervisor);
    else
        say(&supervisor, "cannot start: signalfd: %s (%s)", text_errno_meaning(errno), text_errno_name(errno));
    sigprocmask(SIG_SETMASK, &supervisor.previous_mask, NULL);
    return result;
}

unsigned supervisor_cpu_count(void)
{
    cpu_set_t set;
    /* Fails on hosts with more CPUs than the set has room for; those have plenty. */
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        return (unsigned)CPU_COUNT(&set);
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (unsigned)online : 1;
}
