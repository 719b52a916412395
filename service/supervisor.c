/* SPDX-License-Identifier: MIT */
#include "service/supervisor.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/text.h"
#include "service/manager.h"
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
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define RESTART_MS_DEFAULT 100
#define RESTART_MS_MAX 5000
#define START_MS_DEFAULT 60000
#define SETTLE_MS 5000   /* in which workers use what they were given; it does not take long unless one hangs */
#define SETTLED_MS 10000 /* a worker that lived this long was not killed by starting */

enum role {
    FREE,    /* no worker, and none to come */
    CURRENT, /* one of those that serve; while a reload is under way, it is not replaced when it dies */
    NEXT,    /* of a reload that is under way */
    RETIRED, /* of before a reload: it drains */
};

/* A slot: one place for a worker and its successors. */
struct place {
    enum role role;
    pid_t pid;   /* 0: nobody there */
    int control; /* our end of its socket, while pid is not 0 */
    unsigned index, generation;
    bool ready;             /* this worker has said so */
    unsigned replacing;     /* what it was given and has not yet put in place */
    bool killed;            /* by us, at the end of draining */
    unsigned failed_starts; /* in a row */
    uint64_t started_ms;
    uint64_t next_restart_ms; /* the pause before the next restart */
    uint64_t restart_at_ms;   /* when nobody is there */
    uint64_t drain_until_ms;  /* 0: no limit */
};

struct supervisor {
    const struct supervisor_options *options;
    struct place *places;
    unsigned slots, workers; /* workers: of the current generation */
    unsigned reloads;        /* that were done */
    sigset_t previous_mask;
    int signal_fd;
    int report_read, report_write; /* of struct report */
    bool announced;                /* options->ready has run */
    bool stopping, gave_up, killed_some, crashed_draining;
    bool reload_asked;      /* and not yet begun */
    unsigned next_workers;  /* of the reload that is under way; 0: none is */
    uint64_t next_until_ms; /* it has to be done by then */
    bool refused;           /* the last reload was */
    bool settling;          /* workers are putting in place what they were given */
    uint64_t settle_until_ms;
    char settled[200]; /* what is to be said then */
};

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

/* ---- What is said to workers ------------------------------------------------------------------------------------- */

struct message {
    unsigned order, number; /* enum worker_order */
};

union descriptor_room {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int))];
};

/* What workers say. Smaller than PIPE_BUF, so whole or not at all. */
struct report {
    unsigned slot;
    bool ready; /* it serves; else: a replacement is in place */
};

static void report(const struct worker *worker, bool ready)
{
    const struct report said = {.slot = worker->slot, .ready = ready};
    ssize_t written;
    /* EPIPE: the supervisor is gone, and the death signal is on its way. */
    do
        written = write(worker->report_fd, &said, sizeof said);
    while (written < 0 && errno == EINTR);
}

/* fd -1: none. It is not waited for a worker that listens to nothing: it is killed when its time is up. */
static bool tell(const struct place *place, enum worker_order order, int fd, unsigned number)
{
    struct message message = {.order = order, .number = number};
    struct iovec bytes = {.iov_base = &message, .iov_len = sizeof message};
    union descriptor_room room = {.align = {0}};
    struct msghdr header = {.msg_iov = &bytes, .msg_iovlen = 1};
    if (fd >= 0) {
        header.msg_control = room.bytes;
        header.msg_controllen = sizeof room.bytes;
        struct cmsghdr *control = CMSG_FIRSTHDR(&header);
        control->cmsg_level = SOL_SOCKET;
        control->cmsg_type = SCM_RIGHTS;
        control->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(control), &fd, sizeof fd);
    }
    ssize_t sent;
    do
        sent = sendmsg(place->control, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (sent < 0 && errno == EINTR);
    return sent >= 0;
}

enum worker_order worker_hear(struct worker *worker, int *ret_fd, unsigned *ret_number)
{
    for (;;) {
        if (worker->replacing)
            report(worker, false);
        worker->replacing = false;
        struct message message;
        struct iovec bytes = {.iov_base = &message, .iov_len = sizeof message};
        union descriptor_room room;
        struct msghdr header = {
            .msg_iov = &bytes, .msg_iovlen = 1, .msg_control = room.bytes, .msg_controllen = sizeof room.bytes};
        ssize_t length = recvmsg(worker->control_fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (length < 0 && errno == EINTR)
            continue;
        if (length != (ssize_t)sizeof message)
            return WORKER_NO_ORDER;
        const struct cmsghdr *control = CMSG_FIRSTHDR(&header);
        int fd = -1;
        if (control != NULL && control->cmsg_type == SCM_RIGHTS)
            memcpy(&fd, CMSG_DATA(control), sizeof fd);
        if (message.order != WORKER_REPLACE)
            return (enum worker_order)message.order;
        worker->replacing = true;
        if (fd < 0)
            continue; /* this process had no descriptor left for it: it goes on with the old one */
        *ret_fd = fd;
        *ret_number = message.number;
        return WORKER_REPLACE;
    }
}

/* ---- Workers ----------------------------------------------------------------------------------------------------- */

void worker_ready(struct worker *worker)
{
    report(worker, true);
}

_Noreturn static void be_worker(struct supervisor *supervisor, unsigned slot, pid_t supervisor_pid, int control)
{
    const struct supervisor_options *options = supervisor->options;
    struct failure failure;
    if (options->identity != NULL && identity_assume(options->identity, &failure) < 0) {
        say(supervisor, "worker %u: %.300s", supervisor->places[slot].index, failure.text);
        _exit(WORKER_EXIT_GIVE_UP);
    }
    /* SIGKILL: a worker that hangs could not be reached by less. Behind the change of user, which would clear it. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    /* The supervisor may have died before the line above. */
    if (getppid() != supervisor_pid)
        _exit(EXIT_CODE_FAILED);
    close(supervisor->signal_fd);
    close(supervisor->report_read);
    /* Our end of a socket is the right to give a worker orders. */
    for (unsigned i = 0; i < supervisor->slots; i++)
        if (supervisor->places[i].pid != 0)
            close(supervisor->places[i].control);
    signal(SIGPIPE, SIG_IGN);

    /* The others stay blocked: Ctrl-C reaches the whole process group, and SIGTERM may reach the whole cgroup. */
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    struct worker worker = {
        .index = supervisor->places[slot].index,
        .slot = slot,
        .generation = supervisor->places[slot].generation,
        .reloads = supervisor->reloads + (supervisor->places[slot].role == NEXT),
        .control_fd = control,
        .report_fd = supervisor->report_write,
    };
    int code = options->worker_main(options->context, &worker);
    free(supervisor->places);
    /* exit rather than _exit: stdio is flushed, and sanitizers get to report. */
    exit(code);
}

static int start_worker(struct supervisor *supervisor, unsigned slot)
{
    struct place *place = &supervisor->places[slot];
    pid_t self = getpid();
    int control[2];
    bool connected = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, control) == 0;
    fflush(NULL);
    pid_t pid = connected ? fork() : -1;
    if (pid < 0) {
        int code = errno;
        say(supervisor, "worker %u cannot be started: %s: %s (%s)", place->index, connected ? "fork" : "socketpair",
            text_errno_meaning(code), text_errno_name(code));
        if (connected) {
            close(control[0]);
            close(control[1]);
        }
        return -code;
    }
    if (pid == 0) {
        close(control[0]);
        be_worker(supervisor, slot, self, control[1]);
    }
    close(control[1]);
    place->control = control[0];
    place->pid = pid;
    place->ready = false;
    place->killed = false;
    place->replacing = 0;
    place->started_ms = clock_ms(CLOCK_MONOTONIC);
    return 0;
}

static unsigned living(const struct supervisor *supervisor)
{
    unsigned count = 0;
    for (unsigned i = 0; i < supervisor->slots; i++)
        count += supervisor->places[i].pid != 0;
    return count;
}

static unsigned count_role(const struct supervisor *supervisor, enum role role)
{
    unsigned count = 0;
    for (unsigned i = 0; i < supervisor->slots; i++)
        count += supervisor->places[i].role == role;
    return count;
}

/* Workers of this role that are alive and have said they are ready. */
static unsigned count_ready(const struct supervisor *supervisor, enum role role)
{
    unsigned count = 0;
    for (unsigned i = 0; i < supervisor->slots; i++)
        count += supervisor->places[i].role == role && supervisor->places[i].pid != 0 && supervisor->places[i].ready;
    return count;
}

static const char *plural(unsigned count)
{
    return count == 1 ? "" : "s";
}

static void kill_worker(struct supervisor *supervisor, struct place *place)
{
    /* The process has not been waited for, so the pid cannot belong to anybody else. */
    kill(place->pid, SIGKILL);
    place->killed = true;
    if (supervisor->stopping)
        supervisor->killed_some = true;
}

static void kill_all(struct supervisor *supervisor)
{
    for (unsigned i = 0; i < supervisor->slots; i++)
        if (supervisor->places[i].pid != 0)
            kill_worker(supervisor, &supervisor->places[i]);
}

static void stop(struct supervisor *supervisor)
{
    if (supervisor->stopping)
        return;
    supervisor->stopping = true;
    manager_notify("STOPPING=1\nSTATUS=finishing what is under way");
    if (supervisor->options->stopping != NULL)
        supervisor->options->stopping(supervisor->options->context);
    uint64_t limit = supervisor->options->drain_ms != 0 ? clock_ms(CLOCK_MONOTONIC) + supervisor->options->drain_ms : 0;
    for (unsigned i = 0; i < supervisor->slots; i++) {
        struct place *place = &supervisor->places[i];
        if (place->pid == 0)
            continue;
        if (place->drain_until_ms == 0 || (limit != 0 && limit < place->drain_until_ms))
            place->drain_until_ms = limit;
        tell(place, WORKER_STOP, -1, 0);
    }
}

static void give_up(struct supervisor *supervisor)
{
    supervisor->gave_up = true;
    stop(supervisor);
}

/* ---- Reloading ------------------------------------------------------------------------------------------------- */

/* Nobody is to come to this place any more. All of a reload have the same time: they are late together, and told of so.
 */
static void retire(struct supervisor *supervisor, struct place *place, uint64_t now)
{
    if (place->pid == 0) {
        place->role = FREE;
        return;
    }
    place->role = RETIRED;
    place->drain_until_ms = supervisor->options->retire_ms != 0 ? now + supervisor->options->retire_ms : 0;
    if (place->ready)
        tell(place, WORKER_RETIRE, -1, 0);
    else
        kill_worker(supervisor, place); /* it has served nobody, and may not even listen to us yet */
}

static void tell_ready(const struct supervisor *supervisor)
{
    manager_notify("READY=1\nSTATUS=%u worker%s, %u reload%s%s", supervisor->workers, plural(supervisor->workers),
                   supervisor->reloads, plural(supervisor->reloads),
                   supervisor->refused ? "; the last one was refused, see the log" : "");
}

static void settle(struct supervisor *supervisor)
{
    for (unsigned i = 0; i < supervisor->slots; i++)
        if (supervisor->places[i].pid != 0 && supervisor->places[i].replacing > 0 &&
            clock_ms(CLOCK_MONOTONIC) < supervisor->settle_until_ms)
            return;
    supervisor->settling = false;
    tell_ready(supervisor);
    if (supervisor->settled[0] != '\0')
        say(supervisor, "%s", supervisor->settled);
    supervisor->settled[0] = '\0';
}

/* SIGHUP has been dealt with, but for what workers of before are given; then what is in settled will be said. */
static void hand_out_replacements(struct supervisor *supervisor)
{
    const struct supervisor_options *options = supervisor->options;
    unsigned number;
    int fd;
    for (unsigned which = 0;
         options->replacement != NULL && (fd = options->replacement(options->context, which, &number)) >= 0; which++)
        for (unsigned i = 0; i < supervisor->slots; i++)
            if (supervisor->places[i].pid != 0)
                supervisor->places[i].replacing += tell(&supervisor->places[i], WORKER_REPLACE, fd, number);
    supervisor->settling = true;
    supervisor->settle_until_ms = clock_ms(CLOCK_MONOTONIC) + SETTLE_MS;
    settle(supervisor);
}

static void end_reload(struct supervisor *supervisor, bool done)
{
    supervisor->refused = !done;
    uint64_t now = clock_ms(CLOCK_MONOTONIC);
    unsigned workers = supervisor->next_workers;
    supervisor->next_workers = 0;
    for (unsigned i = 0; i < supervisor->slots; i++) {
        struct place *place = &supervisor->places[i];
        if (place->role == (done ? CURRENT : NEXT)) {
            retire(supervisor, place, now);
        } else if (place->role == NEXT) {
            place->role = CURRENT;
        } else if (place->role == CURRENT && place->pid == 0) {
            place->failed_starts = 0;
            place->restart_at_ms = now;
        }
    }
    if (done) {
        unsigned old = count_role(supervisor, RETIRED);
        supervisor->workers = workers;
        supervisor->reloads++;
        snprintf(supervisor->settled, sizeof supervisor->settled, "reloaded: %u new worker%s; %u old one%s", workers,
                 plural(workers), old, old == 1 ? " ends with its connections" : "s end with their connections");
    } else {
        say(supervisor, "reload taken back: the workers of before go on");
    }
    if (supervisor->options->reloaded != NULL)
        supervisor->options->reloaded(supervisor->options->context, done);
    hand_out_replacements(supervisor);
}

static void begin_reload(struct supervisor *supervisor)
{
    const struct supervisor_options *options = supervisor->options;
    unsigned workers = supervisor->workers;
    supervisor->reload_asked = false;
    manager_notify("RELOADING=1\nMONOTONIC_USEC=%llu", (unsigned long long)clock_ms(CLOCK_MONOTONIC) * 1000);
    if (options->reload(options->context, &workers) < 0) {
        supervisor->refused = true;
        hand_out_replacements(supervisor);
        return;
    }
    supervisor->next_workers = workers;
    supervisor->next_until_ms =
        clock_ms(CLOCK_MONOTONIC) + (options->start_ms != 0 ? options->start_ms : START_MS_DEFAULT);
    unsigned free = count_role(supervisor, FREE), old = count_role(supervisor, RETIRED);
    if (free < workers) {
        if (old > 0)
            say(supervisor,
                "reload refused: %u old worker%s still draining, and there is room for %u new one%s of %u; try again "
                "when they have ended, or limit their time",
                old, old == 1 ? " is" : "s are", free, plural(free), workers);
        else
            say(supervisor,
                "reload refused: there is room for %u new worker%s beside the %u that serve, not for %u; "
                "restart for so many",
                free, plural(free), supervisor->workers, workers);
        end_reload(supervisor, false);
        return;
    }
    for (unsigned slot = 0, index = 0; index < workers; slot++) {
        if (supervisor->places[slot].role != FREE)
            continue;
        supervisor->places[slot] = (struct place){.role = NEXT, .index = index++};
        if (start_worker(supervisor, slot) < 0) {
            end_reload(supervisor, false);
            return;
        }
    }
}

/* ---- What happens ---------------------------------------------------------------------------------------------- */

/* "died of SIGSEGV (Segmentation fault), core dumped", "ended with exit code 1". */
static void describe_end(int status, char *buffer, size_t size)
{
    if (!WIFSIGNALED(status)) {
        snprintf(buffer, size, "ended with exit code %d", WEXITSTATUS(status));
        return;
    }
    int number = WTERMSIG(status);
    const char *name = sigabbrev_np(number), *meaning = sigdescr_np(number);
    /* Those that leave a core unless the limit, or that the process changed its user, forbids it: signal(7). */
    bool cores = number == SIGQUIT || number == SIGILL || number == SIGABRT || number == SIGFPE || number == SIGSEGV ||
                 number == SIGBUS || number == SIGSYS || number == SIGTRAP || number == SIGXCPU || number == SIGXFSZ;
    const char *what = number == SIGKILL  ? ": killed from outside, perhaps for want of memory (see the kernel's log)"
                       : number == SIGSYS ? ": a system call that seccomp does not let it make"
                                          : "";
    if (name != NULL)
        snprintf(buffer, size, "died of SIG%s (%s)%s%s", name, meaning != NULL ? meaning : "unknown", what,
                 WCOREDUMP(status) ? ", core dumped"
                 : cores           ? ", no core"
                                   : "");
    else
        snprintf(buffer, size, "died of signal %d%s", number, WCOREDUMP(status) ? ", core dumped" : "");
}

/* It cannot start, here and now. */
static void cannot_start(struct supervisor *supervisor, const struct place *place)
{
    if (place->role == NEXT)
        end_reload(supervisor, false);
    else
        give_up(supervisor);
}

/* The worker at this place died though nobody had asked it to end. */
static void plan_restart(struct supervisor *supervisor, struct place *place, pid_t pid, int status)
{
    char how[200], pause[TEXT_SIZE_MAX];
    uint64_t now = clock_ms(CLOCK_MONOTONIC);
    describe_end(status, how, sizeof how);
    if (place->role == CURRENT && supervisor->next_workers != 0) {
        say(supervisor, "worker %u (pid %d) %s; a reload is under way", place->index, (int)pid, how);
        return;
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == WORKER_EXIT_GIVE_UP) {
        say(supervisor, "worker %u (pid %d) cannot work here; %s", place->index, (int)pid,
            place->role == NEXT ? "not reloading" : "ending");
        cannot_start(supervisor, place);
        return;
    }
    place->failed_starts = place->ready ? 0 : place->failed_starts + 1;
    if (place->failed_starts >= SUPERVISOR_START_ATTEMPTS) {
        say(supervisor, "worker %u (pid %d) %s before it was ready, the %uth time in a row; giving up", place->index,
            (int)pid, how, place->failed_starts);
        cannot_start(supervisor, place);
        return;
    }
    uint64_t first = supervisor->options->restart_ms != 0 ? supervisor->options->restart_ms : RESTART_MS_DEFAULT;
    if (place->next_restart_ms == 0 || now - place->started_ms >= SETTLED_MS)
        place->next_restart_ms = first;
    say(supervisor, "worker %u (pid %d) %s; starting another in %s", place->index, (int)pid, how,
        text_format_duration(place->next_restart_ms, pause, sizeof pause));
    place->restart_at_ms = now + place->next_restart_ms;
    place->next_restart_ms *= 2;
    if (place->next_restart_ms > RESTART_MS_MAX)
        place->next_restart_ms = first > RESTART_MS_MAX ? first : RESTART_MS_MAX;
}

static void read_reports(struct supervisor *supervisor)
{
    struct report said;
    while (read(supervisor->report_read, &said, sizeof said) == (ssize_t)sizeof said) {
        struct place *place = &supervisor->places[said.slot];
        if (place->pid == 0)
            continue;
        if (said.ready)
            place->ready = true;
        else if (place->replacing > 0)
            place->replacing--;
    }
}

static void reap(struct supervisor *supervisor)
{
    const struct supervisor_options *options = supervisor->options;
    for (unsigned i = 0; i < supervisor->slots; i++) {
        struct place *place = &supervisor->places[i];
        int status;
        /* By pid, not -1: children of others in this process (a helper, a test) are theirs to wait for. */
        if (place->pid == 0 || waitpid(place->pid, &status, WNOHANG) != place->pid)
            continue;
        /* Its report may still be in the pipe: read it now, or the successor would be taken for ready. */
        read_reports(supervisor);
        close(place->control);
        pid_t pid = place->pid;
        bool crashed = !WIFEXITED(status) || WEXITSTATUS(status) != 0;
        place->pid = 0;
        place->generation++;
        place->drain_until_ms = 0;
        if (options->worker_ended != NULL)
            options->worker_ended(options->context, i, crashed);
        if (!supervisor->stopping && place->role != RETIRED) {
            plan_restart(supervisor, place, pid, status);
        } else if (crashed && !place->killed) {
            char how[200];
            describe_end(status, how, sizeof how);
            say(supervisor, "%sworker %u (pid %d) %s while draining", place->role == RETIRED ? "old " : "",
                place->index, (int)pid, how);
            supervisor->crashed_draining |= supervisor->stopping; /* its responses were broken off */
        }
        if (place->role == RETIRED)
            place->role = FREE;
    }
}

/* All that are alive and ready: is a stage reached? After reap, because signals are sent to who is not known to be
 * dead.
 */
static void advance(struct supervisor *supervisor)
{
    if (supervisor->stopping)
        return;
    if (!supervisor->announced && count_ready(supervisor, CURRENT) == supervisor->workers) {
        supervisor->announced = true;
        tell_ready(supervisor);
        if (supervisor->options->ready != NULL)
            supervisor->options->ready(supervisor->options->context);
    }
    if (supervisor->next_workers != 0 && count_ready(supervisor, NEXT) == supervisor->next_workers)
        end_reload(supervisor, true);
    if (supervisor->settling)
        settle(supervisor);
    if (supervisor->reload_asked && supervisor->announced && supervisor->next_workers == 0 && !supervisor->settling)
        begin_reload(supervisor);
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
                    plural(living(supervisor)));
                kill_all(supervisor);
            }
            stop(supervisor);
            break;
        case SIGUSR1:
            if (supervisor->options->report != NULL)
                supervisor->options->report(supervisor->options->context);
            break;
        case SIGHUP:
            supervisor->reload_asked = supervisor->options->reload != NULL;
            break;
        default:
            /* SIGCHLD only wakes us up: several deaths may make one signal, so reap looks at every worker. */
            break;
        }
    }
}

/* End those that have drained for too long. Returns when the next one will have. */
static uint64_t end_late_workers(struct supervisor *supervisor, uint64_t now)
{
    uint64_t next = UINT64_MAX;
    unsigned late = 0;
    for (unsigned i = 0; i < supervisor->slots; i++) {
        struct place *place = &supervisor->places[i];
        if (place->pid == 0 || place->drain_until_ms == 0)
            continue;
        if (now >= place->drain_until_ms) {
            place->drain_until_ms = 0;
            kill_worker(supervisor, place);
            late++;
        } else if (place->drain_until_ms < next) {
            next = place->drain_until_ms;
        }
    }
    if (late > 0) {
        char limit[TEXT_SIZE_MAX];
        uint64_t given = supervisor->stopping ? supervisor->options->drain_ms : supervisor->options->retire_ms;
        say(supervisor, "%u %sworker%s did not finish within %s: ended", late, supervisor->stopping ? "" : "old ",
            plural(late), text_format_duration(given, limit, sizeof limit));
    }
    return next;
}

/* Do what is due, and return the milliseconds until something else will be: -1 for never. */
static int take_time(struct supervisor *supervisor)
{
    uint64_t now = clock_ms(CLOCK_MONOTONIC), next = end_late_workers(supervisor, now);
    if (supervisor->next_workers != 0 && !supervisor->stopping) {
        if (now >= supervisor->next_until_ms) {
            unsigned ready = count_ready(supervisor, NEXT);
            say(supervisor, "%u of %u new workers %s ready in time", ready, supervisor->next_workers,
                ready == 1 ? "was" : "were");
            end_reload(supervisor, false);
        } else if (supervisor->next_until_ms < next) {
            next = supervisor->next_until_ms;
        }
    }
    if (supervisor->settling && supervisor->settle_until_ms < next)
        next = supervisor->settle_until_ms;
    for (unsigned i = 0; i < supervisor->slots && !supervisor->stopping; i++) {
        struct place *place = &supervisor->places[i];
        if (place->pid != 0 || place->role != (supervisor->next_workers != 0 ? NEXT : CURRENT))
            continue;
        if (now >= place->restart_at_ms && start_worker(supervisor, i) < 0)
            place->restart_at_ms =
                now + RESTART_MS_MAX; /* no process to be had now: memory or limits may allow it later */
        if (place->pid == 0 && place->restart_at_ms < next)
            next = place->restart_at_ms;
    }
    if (next == UINT64_MAX)
        return -1;
    return next <= now ? 0 : next - now > INT32_MAX ? INT32_MAX : (int)(next - now);
}

static int supervise(struct supervisor *supervisor)
{
    for (unsigned i = 0; i < supervisor->workers; i++) {
        supervisor->places[i] = (struct place){.role = CURRENT, .index = i};
        if (start_worker(supervisor, i) < 0) {
            give_up(supervisor);
            break;
        }
    }
    for (;;) {
        struct pollfd polled[] = {{.fd = supervisor->signal_fd, .events = POLLIN},
                                  {.fd = supervisor->report_read, .events = POLLIN}};
        int timeout = take_time(supervisor);
        if (supervisor->stopping && living(supervisor) == 0)
            return supervisor->gave_up || supervisor->killed_some || supervisor->crashed_draining ? EXIT_CODE_FAILED
                                                                                                  : EXIT_CODE_DONE;
        /* EINTR (a debugger, SIGCONT) is a turn like any other. */
        poll(polled, 2, timeout);
        take_signals(supervisor);
        read_reports(supervisor);
        reap(supervisor);
        advance(supervisor);
    }
}

int supervisor_run(const struct supervisor_options *options)
{
    unsigned slots = options->slots > options->workers ? options->slots : options->workers;
    CLEANUP_FREE struct place *places = calloc(slots, sizeof *places);
    struct supervisor supervisor = {.options = options, .places = places, .slots = slots, .workers = options->workers};
    sigset_t set;
    int pipe_fds[2];
    if (places == NULL || pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK) < 0) {
        say(&supervisor, "cannot start: %s (%s)", text_errno_meaning(errno), text_errno_name(errno));
        return EXIT_CODE_FAILED;
    }
    CLEANUP_FD int report_read = pipe_fds[0];
    CLEANUP_FD int report_write = pipe_fds[1];
    supervised_signals(&set);
    /* Before the first fork: workers inherit the mask, so that a signal that comes early waits for them. */
    sigprocmask(SIG_BLOCK, &set, &supervisor.previous_mask);
    CLEANUP_FD int signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    supervisor.signal_fd = signal_fd;
    supervisor.report_read = report_read;
    supervisor.report_write = report_write;
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
