/* SPDX-License-Identifier: MIT
 *
 * Each test forks a supervisor, which forks real workers; what they do is told by a page of shared memory and by the
 * lines that the supervisor would have printed.
 */
#include "service/supervisor.h"
#include "check.h"
#include "service/options.h"
#include "service/shared.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Shared by the test, the supervisor and the workers. */
struct board {
    _Atomic int ready_calls, reports, ended, crashed, started, drained;
    _Atomic int pids[4];
    _Atomic unsigned said;
    char lines[32][400];
};

static struct shared shared;
static struct board *board;

static void sleep_ms(long milliseconds)
{
    struct timespec time = {.tv_sec = milliseconds / 1000, .tv_nsec = milliseconds % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void on_ready(void *context)
{
    (void)context;
    board->ready_calls++;
}

static void on_report(void *context)
{
    (void)context;
    board->reports++;
}

static void on_ended(void *context, unsigned index, bool crashed)
{
    (void)context;
    (void)index;
    board->ended++;
    board->crashed += crashed;
}

static void on_say(void *context, const char *line)
{
    (void)context;
    if (board->said < 32)
        snprintf(board->lines[board->said++], sizeof board->lines[0], "%s", line);
}

static void wait_for_stop(struct worker *worker)
{
    struct pollfd polled = {.fd = worker->stop_fd, .events = POLLIN};
    while (poll(&polled, 1, -1) < 0 && errno == EINTR)
        continue;
    struct signalfd_siginfo info;
    if (read(worker->stop_fd, &info, sizeof info) == (ssize_t)sizeof info && info.ssi_signo == SIGTERM)
        board->drained++;
}

static void announce(struct worker *worker)
{
    board->started++;
    board->pids[worker->index] = getpid();
    worker_ready(worker);
}

static int good_worker(void *context, struct worker *worker)
{
    (void)context;
    announce(worker);
    wait_for_stop(worker);
    return 0;
}

static struct supervisor_options options_for(int (*worker_main)(void *, struct worker *), unsigned workers)
{
    return (struct supervisor_options){.name = "test",
                                       .workers = workers,
                                       .drain_ms = 5000,
                                       .restart_ms = 10,
                                       .worker_main = worker_main,
                                       .ready = on_ready,
                                       .report = on_report,
                                       .worker_ended = on_ended,
                                       .say = on_say};
}

static pid_t start(const struct supervisor_options *options)
{
    shared_destroy(&shared);
    CHECK_EQ(shared_create(1, sizeof *board, &shared), 0);
    board = shared_slot(&shared, 0);
    fflush(NULL); /* or the supervisor prints once more what is buffered here */
    pid_t pid = fork();
    if (pid == 0)
        _exit(supervisor_run(options));
    return pid;
}

#define WAIT_UNTIL(condition)                                                                                          \
    do {                                                                                                               \
        long give_up_ms = now_ms() + 10000;                                                                            \
        bool fulfilled;                                                                                                \
        while (!(fulfilled = (condition)) && now_ms() < give_up_ms)                                                    \
            sleep_ms(2);                                                                                               \
        if (!fulfilled)                                                                                                \
            CHECK_FAIL("%s:%d: waited in vain for: %s", __FILE__, __LINE__, #condition);                               \
    } while (0)

static int exit_code_of(pid_t pid)
{
    int status = 0;
    pid_t got = 0;
    WAIT_UNTIL((got = waitpid(pid, &status, WNOHANG)) != 0);
    CHECK_EQ(got, pid);
    CHECK(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static bool was_said(const char *text)
{
    for (unsigned i = 0; i < board->said; i++)
        if (strstr(board->lines[i], text) != NULL)
            return true;
    return false;
}

static bool is_gone(pid_t pid)
{
    return kill(pid, 0) < 0 && errno == ESRCH;
}

static int slow_second_worker(void *context, struct worker *worker)
{
    if (worker->index == 1) {
        sleep_ms(200);
        if (board->ready_calls != 0)
            return WORKER_EXIT_GIVE_UP;
    }
    return good_worker(context, worker);
}

TEST("ready is called once, and only after the last worker said it serves")
{
    struct supervisor_options options = options_for(slow_second_worker, 2);
    pid_t pid = start(&options);
    WAIT_UNTIL(board->ready_calls == 1);
    CHECK_EQ(board->started, 2);
    kill(pid, SIGTERM);
    CHECK_EQ(exit_code_of(pid), EXIT_CODE_DONE);
    CHECK_EQ(board->ready_calls, 1);
    CHECK_EQ(board->said, 0);
}

TEST("SIGTERM and SIGINT drain all workers, and the exit code is 0")
{
    static const int signals[] = {SIGTERM, SIGINT};
    for (int i = 0; i < 2; i++) {
        struct supervisor_options options = options_for(good_worker, 3);
        pid_t pid = start(&options);
        WAIT_UNTIL(board->ready_calls == 1);
        kill(pid, signals[i]);
        CHECK_EQ(exit_code_of(pid), EXIT_CODE_DONE);
        CHECK_EQ(board->drained, 3);
        CHECK_EQ(board->ended, 3);
        CHECK_EQ(board->crashed, 0);
    }
}

TEST("a worker that gets SIGINT from the terminal goes on until the supervisor says so")
{
    struct supervisor_options options = options_for(good_worker, 1);
    pid_t pid = start(&options);
    WAIT_UNTIL(board->ready_calls == 1);
    kill(board->pids[0], SIGINT);
    kill(board->pids[0], SIGHUP);
    kill(board->pids[0], SIGUSR1);
    sleep_ms(50);
    CHECK_EQ(board->ended, 0);
    kill(pid, SIGTERM);
    CHECK_EQ(exit_code_of(pid), EXIT_CODE_DONE);
}

static int crash_once(void *context, struct worker *worker)
{
    if (worker->generation == 0 && worker->index == 1) {
        announce(worker);
        signal(SIGSEGV, SIG_DFL); /* a sanitizer's handler would make an exit of it */
        raise(SIGSEGV);
    }
    return good_worker(context, worker);
}

TEST("a crashed worker is replaced, its end is told with the reason, and the others go on")
{
    struct supervisor_options options = options_for(crash_once, 2);
    pid_t pid = start(&options);
    WAIT_UNTIL(board->started == 3);
    CHECK_EQ(board->ended, 1);
    CHECK_EQ(board->crashed, 1);
    CHECK(was_said("worker 1 (pid "));
    CHECK(was_said("died of signal 11 (Segmentation fault); starting another in 10 ms"));
    kill(pid, SIGTERM);
    CHECK_EQ(exit_code_of(pid), EXIT_CODE_DONE);
    CHECK_EQ(board->drained, 2);
    CHECK_EQ(board->ready_calls <= 1, 1);
}

static int crash_thrice(void *context, struct worker *worker)
{
    if (worker->generation < 3) {
        announce(worker);
        return 7;
    }
    return good_worker(context, worker);
}

TEST("the pause before a restart doubles with every crash")
{
    struct supervisor_options options = options_for(crash_thrice, 1);
    options.restart_ms = 20;
    pid_t pid = start(&options);
    long begin = now_ms();
    WAIT_UNTIL(board->started == 4);
    CHECK(now_ms() - begin >= 20 + 40 + 80 - 3);
    CHECK(was_said("ended with exit code 7; starting another in 20 ms"));
    CHECK(was_said("starting another in 40 ms"));
    CHECK(was_said("starting another in 80 ms"));
    kill(pid, SIGTERM);
    CHECK_EQ(exit_code_of(pid), EXIT_CODE_DONE);
}

static int never_ready(void *context, struct worker *worker)
{
    if (worker->index == 0)
        return good_worker(context, worker);
    board->started++;
    return 1;
}

TEST("when a worker cannot even start, the supervisor drains the others and fails")
{
    struct supervisor_options options = options_for(never_ready, 2);
    options.restart_ms = 1;
    pid_t pid = start(&options);
    CHECK_EQ(exit_code_of(pid), EXIT_CODE_FAILED);
    CHECK_EQ(board->started, 1 + SUPERVISOR_START_ATTEMPTS);
    CHECK_EQ(board->ready_calls, 0);
    CHECK_EQ(board->drained, 1);
    CHECK(was_said("before it was ready, the 5th time in a row; giving up"));
}

static int gives_up(void *context, struct worker *worker)
{
    (void)context;
    (void)worker;
    board->started++;
    return WORKER_EXIT_GIVE_UP;
}

TEST("a worker that says trying again is useless is believed")
{
    struct supervisor_options options = options_for(gives_up, 1);
    pid_t pid = start(&options);
    CHECK_EQ(exit_code_of(pid), EXIT_CODE_FAILED);
    CHECK_EQ(board->started, 1);
    CHECK(was_said("cannot work here"));
}

static int never_drains(void *context, struct worker *worker)
{
    (void)context;
    announce(worker);
    while (pause() < 0)
        continue;
    return 0;
}

TEST("workers that do not drain in time are killed, and the exit code says so")
{
    struct supervisor_options options = options_for(never_drains, 2);
    options.drain_ms = 100;
    pid_t pid = start(&options);
    WAIT_UNTIL(board->ready_calls == 1);
    long begin = now_ms();
    kill(pid, SIGTERM);
    CHECK_EQ(exit_code_of(pid), EXIT_CODE_FAILED);
    CHECK(now_ms() - begin >= 98);
    CHECK(was_said("2 workers did not finish within 100 ms: ended"));
    CHECK(is_gone(board->pids[0]) && is_gone(board->pids[1]));
}

static int crashes_while_draining(void *context, struct worker *worker)
{
    (void)context;
    announce(worker);
    wait_for_stop(worker);
    return worker->index == 0 ? 0 : 1;
}

TEST("a worker that fails while draining makes the exit code say so")
{
    struct supervisor_options options = options_for(crashes_while_draining, 2);
    pid_t pid = start(&options);
    WAIT_UNTIL(board->ready_calls == 1);
    kill(pid, SIGTERM);
    CHECK_EQ(exit_code_of(pid), EXIT_CODE_FAILED);
    CHECK(was_said("while draining"));
}

TEST("a second SIGTERM ends everything at once")
{
    struct supervisor_options options = options_for(never_drains, 2);
    options.drain_ms = 0;
    pid_t pid = start(&options);
    WAIT_UNTIL(board->ready_calls == 1);
    kill(pid, SIGTERM);
    sleep_ms(50);
    CHECK_EQ(board->ended, 0);
    kill(pid, SIGINT);
    CHECK_EQ(exit_code_of(pid), EXIT_CODE_FAILED);
    CHECK(was_said("asked a second time to end: not waiting for 2 workers"));
}

TEST("SIGUSR1 asks for a report, and SIGHUP does no harm")
{
    struct supervisor_options options = options_for(good_worker, 1);
    pid_t pid = start(&options);
    WAIT_UNTIL(board->ready_calls == 1);
    kill(pid, SIGUSR1);
    WAIT_UNTIL(board->reports == 1);
    kill(pid, SIGHUP);
    kill(pid, SIGUSR1);
    WAIT_UNTIL(board->reports == 2);
    CHECK_EQ(board->ended, 0);
    kill(pid, SIGTERM);
    CHECK_EQ(exit_code_of(pid), EXIT_CODE_DONE);
}

TEST("workers do not outlive a supervisor that is killed")
{
    struct supervisor_options options = options_for(never_drains, 2);
    pid_t pid = start(&options);
    WAIT_UNTIL(board->ready_calls == 1);
    kill(pid, SIGKILL);
    CHECK_EQ(waitpid(pid, NULL, 0), pid);
    /* Orphans are waited for by whoever adopts them; a zombie is dead enough. */
    for (int i = 0; i < 2; i++) {
        char path[64], line[256];
        snprintf(path, sizeof path, "/proc/%d/stat", board->pids[i]);
        bool dead = false;
        for (int tries = 0; tries < 1000 && !dead; tries++, sleep_ms(2)) {
            FILE *file = fopen(path, "r");
            dead = file == NULL || fgets(line, sizeof line, file) == NULL || strstr(line, ") Z") != NULL;
            if (file != NULL)
                fclose(file);
        }
        CHECK(dead);
    }
}

TEST("there is at least one CPU, and no more than are online")
{
    CHECK(supervisor_cpu_count() >= 1);
    CHECK(supervisor_cpu_count() <= (unsigned)sysconf(_SC_NPROCESSORS_CONF));
}

CHECK_MAIN()
