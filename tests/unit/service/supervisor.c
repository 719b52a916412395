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
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Shared by the test, the supervisor and the workers. */
struct board {
    _Atomic int ready_calls, reports, ended, crashed, started, drained;
    _Atomic int pids[4];
    _Atomic int retired;
    _Atomic int reload_calls, done_calls, back_calls, stopping_calls;
    _Atomic int alive[8], clashes;     /* by slot: workers that are there; how often there were two */
    _Atomic unsigned workers, reloads; /* what the next reload asks for; of the worker that started last */
    _Atomic bool refuse, go;
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

static void on_ended(void *context, unsigned slot, bool crashed)
{
    (void)context;
    board->alive[slot] = 0;
    board->ended++;
    board->crashed += crashed;
}

static int on_reload(void *context, unsigned *workers)
{
    (void)context;
    board->reload_calls++;
    if (board->refuse)
        return -EINVAL;
    *workers = board->workers;
    return 0;
}

static void on_reloaded(void *context, bool done)
{
    (void)context;
    if (done)
        board->done_calls++;
    else
        board->back_calls++;
}

static void on_stopping(void *context)
{
    (void)context;
    board->stopping_calls++;
}

static void on_say(void *context, const char *line)
{
    (void)context;
    if (board->said < 32)
        snprintf(board->lines[board->said++], sizeof board->lines[0], "%s", line);
}

/* Until an order to end; what it was given instead of an earlier descriptor is written to, for the test to see. */
static void wait_for_stop(struct worker *worker)
{
    for (;;) {
        struct pollfd polled = {.fd = worker->control_fd, .events = POLLIN};
        unsigned number = 0;
        int fd = -1;
        while (poll(&polled, 1, -1) < 0 && errno == EINTR)
            continue;
        enum worker_order order = worker_hear(worker, &fd, &number);
        if (order == WORKER_REPLACE) {
            dprintf(fd, "%u", number);
            close(fd);
            continue;
        }
        board->retired += order == WORKER_RETIRE;
        board->drained++;
        return;
    }
}

static void announce(struct worker *worker)
{
    board->clashes += board->alive[worker->slot]++ != 0;
    board->pids[worker->index] = getpid();
    board->reloads = worker->reloads;
    board->started++;
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
    CHECK(was_said("died of SIGSEGV (Segmentation fault)"));
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

static pid_t start_with_reload(int (*worker_main)(void *, struct worker *), unsigned workers, unsigned slots)
{
    static struct supervisor_options options;
    options = options_for(worker_main, workers);
    options.slots = slots;
    options.reload = on_reload;
    options.reloaded = on_reloaded;
    options.stopping = on_stopping;
    options.start_ms = 500;
    pid_t pid = start(&options);
    board->workers = workers;
    WAIT_UNTIL(board->ready_calls == 1);
    return pid;
}

static void end_well(pid_t pid)
{
    kill(pid, SIGTERM);
    CHECK_EQ(exit_code_of(pid), EXIT_CODE_DONE);
    CHECK_EQ(board->clashes, 0);
    CHECK_EQ(board->stopping_calls, 1);
}

TEST("SIGHUP starts new workers and tells the old ones to stop, each in a slot of its own")
{
    pid_t pid = start_with_reload(good_worker, 2, 4);
    for (int i = 1; i <= 3; i++) {
        int before = board->pids[0];
        kill(pid, SIGHUP);
        WAIT_UNTIL(board->ended == 2 * i);
        CHECK_EQ(board->reload_calls, i);
        CHECK_EQ(board->done_calls, i);
        CHECK_EQ(board->started, 2 + 2 * i);
        CHECK_EQ(board->reloads, i);
        CHECK(board->pids[0] != before);
    }
    CHECK_EQ(board->crashed, 0);
    CHECK_EQ(board->ready_calls, 1);
    CHECK_EQ(board->stopping_calls, 0);
    CHECK_EQ(board->drained, 6);
    CHECK(was_said("reloaded: 2 new workers; 2 old ones end with their connections"));
    end_well(pid);
    CHECK_EQ(board->drained, 8);
    CHECK_EQ(board->back_calls, 0);
}

static int ready_when_told(void *context, struct worker *worker)
{
    while (worker->reloads > 0 && !board->go)
        sleep_ms(1);
    return good_worker(context, worker);
}

TEST("old workers serve until the last new one is ready, and another SIGHUP waits for its turn")
{
    pid_t pid = start_with_reload(ready_when_told, 2, 8);
    kill(pid, SIGHUP);
    WAIT_UNTIL(board->reload_calls == 1);
    kill(pid, SIGHUP);
    sleep_ms(50);
    CHECK_EQ(board->drained, 0);
    CHECK_EQ(board->reload_calls, 1);
    board->go = true;
    WAIT_UNTIL(board->ended == 4);
    CHECK_EQ(board->done_calls, 2);
    CHECK_EQ(board->drained, 4);
    end_well(pid);
}

TEST("a reload that is refused changes nothing")
{
    pid_t pid = start_with_reload(good_worker, 2, 4);
    board->refuse = true;
    kill(pid, SIGHUP);
    WAIT_UNTIL(board->reload_calls == 1);
    kill(pid, SIGUSR1);
    WAIT_UNTIL(board->reports == 1);
    CHECK_EQ(board->started, 2);
    CHECK_EQ(board->ended, 0);
    CHECK_EQ(board->back_calls + board->done_calls, 0);
    CHECK_EQ(board->said, 0);
    end_well(pid);
}

TEST("the number of workers may change from reload to reload, as far as there are slots")
{
    pid_t pid = start_with_reload(good_worker, 1, 4);
    board->workers = 3;
    kill(pid, SIGHUP);
    WAIT_UNTIL(board->ended == 1);
    CHECK_EQ(board->started, 4);
    board->workers = 1;
    kill(pid, SIGHUP);
    WAIT_UNTIL(board->ended == 4);
    CHECK_EQ(board->started, 5);
    board->workers = 4;
    kill(pid, SIGHUP);
    WAIT_UNTIL(board->back_calls == 1);
    CHECK(was_said("reload refused: there is room for 3 new workers beside the 1 that serve, not for 4; restart"));
    CHECK_EQ(board->started, 5);
    end_well(pid);
}

static int drains_when_told(void *context, struct worker *worker)
{
    (void)context;
    announce(worker);
    wait_for_stop(worker);
    while (!board->go)
        sleep_ms(1);
    return 0;
}

TEST("a reload that finds too few slots free says that old workers are still draining")
{
    pid_t pid = start_with_reload(drains_when_told, 2, 4);
    kill(pid, SIGHUP);
    WAIT_UNTIL(board->drained == 2);
    kill(pid, SIGHUP);
    WAIT_UNTIL(board->back_calls == 1);
    CHECK(was_said("reload refused: 2 old workers are still draining, and there is room for 0 new ones of 2"));
    CHECK_EQ(board->started, 4);
    CHECK_EQ(board->drained, 2);
    board->go = true;
    WAIT_UNTIL(board->ended == 2);
    kill(pid, SIGHUP);
    WAIT_UNTIL(board->ended == 4);
    CHECK_EQ(board->done_calls, 2);
    end_well(pid);
}

static int dies_after_reload(void *context, struct worker *worker)
{
    if (worker->reloads > 0 && worker->index == 1) {
        board->started++;
        return 1;
    }
    return good_worker(context, worker);
}

TEST("when the new workers cannot start, the old ones go on, and the owner is told to go back")
{
    pid_t pid = start_with_reload(dies_after_reload, 2, 4);
    int old = board->pids[1];
    kill(pid, SIGHUP);
    WAIT_UNTIL(board->back_calls == 1);
    CHECK(was_said("before it was ready, the 5th time in a row; giving up"));
    CHECK(was_said("reload taken back: the workers of before go on"));
    WAIT_UNTIL(board->ended == SUPERVISOR_START_ATTEMPTS + 1); /* and the new one that was ready drains */
    CHECK_EQ(board->started, 2 + 1 + SUPERVISOR_START_ATTEMPTS);
    CHECK_EQ(board->drained, 1);
    CHECK_EQ(board->done_calls, 0);
    CHECK(!is_gone(old));
    end_well(pid);
    CHECK_EQ(board->drained, 3);
}

static int gives_up_after_reload(void *context, struct worker *worker)
{
    return worker->reloads > 0 ? WORKER_EXIT_GIVE_UP : good_worker(context, worker);
}

TEST("new workers that give up end the reload at once, and not those that serve")
{
    pid_t pid = start_with_reload(gives_up_after_reload, 1, 2);
    kill(pid, SIGHUP);
    WAIT_UNTIL(board->back_calls == 1);
    CHECK(was_said("cannot work here; not reloading"));
    CHECK_EQ(board->drained, 0);
    end_well(pid);
}

static int hangs_after_reload(void *context, struct worker *worker)
{
    while (worker->reloads > 0 && !board->go)
        sleep_ms(1);
    return good_worker(context, worker);
}

TEST("new workers that are not ready in time end the reload, and are killed")
{
    struct supervisor_options options = options_for(hangs_after_reload, 1);
    options.slots = 2;
    options.reload = on_reload;
    options.reloaded = on_reloaded;
    options.start_ms = 500;
    pid_t pid = start(&options);
    board->workers = 1;
    WAIT_UNTIL(board->ready_calls == 1);
    kill(pid, SIGHUP);
    WAIT_UNTIL(board->ended == 1);
    CHECK(was_said("0 of 1 new workers were ready in time"));
    CHECK_EQ(board->back_calls, 1);
    board->go = true;
    kill(pid, SIGHUP);
    WAIT_UNTIL(board->done_calls == 1);
    kill(pid, SIGTERM);
    CHECK_EQ(exit_code_of(pid), EXIT_CODE_DONE);
}

TEST("an old worker that dies during a reload is replaced only if the reload is taken back")
{
    for (int back = 0; back < 2; back++) {
        pid_t pid = start_with_reload(ready_when_told, 2, 4);
        kill(pid, SIGHUP);
        WAIT_UNTIL(board->reload_calls == 1);
        kill(board->pids[0], SIGKILL);
        WAIT_UNTIL(board->ended == 1);
        CHECK(was_said("; a reload is under way"));
        sleep_ms(50);
        CHECK_EQ(board->started, 2);
        if (back) {
            WAIT_UNTIL(board->back_calls == 1); /* after start_ms */
            WAIT_UNTIL(board->started == 3);
            CHECK_EQ(board->drained, 0);
        } else {
            board->go = true;
            WAIT_UNTIL(board->ended == 2);
            CHECK_EQ(board->started, 4);
            CHECK_EQ(board->drained, 1);
        }
        end_well(pid);
    }
}

static int old_ones_fail(void *context, struct worker *worker)
{
    good_worker(context, worker);
    return worker->reloads == 0 && worker->index == 0 ? 1 : 0;
}

TEST("an old worker that fails while it drains is not replaced, and does not spoil the exit code")
{
    pid_t pid = start_with_reload(old_ones_fail, 2, 4);
    kill(pid, SIGHUP);
    WAIT_UNTIL(board->ended == 2);
    CHECK_EQ(board->crashed, 1);
    CHECK(was_said("old worker 0 (pid "));
    CHECK(was_said("ended with exit code 1 while draining"));
    sleep_ms(50);
    CHECK_EQ(board->started, 4);
    end_well(pid);
}

static int old_ones_stay(void *context, struct worker *worker)
{
    return worker->reloads == 0 ? never_drains(context, worker) : good_worker(context, worker);
}

TEST("old workers that do not drain in their time are killed, and at the end all have the end's time")
{
    for (int limited = 0; limited < 2; limited++) {
        struct supervisor_options options = options_for(old_ones_stay, 2);
        options.slots = 4;
        options.reload = on_reload;
        options.reloaded = on_reloaded;
        options.drain_ms = 60;
        options.retire_ms = limited ? 60 : 0;
        pid_t pid = start(&options);
        board->workers = 2;
        WAIT_UNTIL(board->ready_calls == 1);
        kill(pid, SIGHUP);
        WAIT_UNTIL(board->done_calls == 1);
        if (limited) {
            WAIT_UNTIL(board->ended == 2);
            CHECK(was_said("2 old workers did not finish within 60 ms: ended"));
        } else {
            sleep_ms(150);
            CHECK_EQ(board->ended, 0);
        }
        kill(pid, SIGTERM);
        CHECK_EQ(exit_code_of(pid), limited ? EXIT_CODE_DONE : EXIT_CODE_FAILED);
        CHECK_EQ(was_said("2 workers did not finish within 60 ms: ended"), !limited);
        CHECK_EQ(board->drained, 2);
    }
}

TEST("SIGTERM during a reload ends old and new workers")
{
    pid_t pid = start_with_reload(ready_when_told, 2, 4);
    kill(pid, SIGHUP);
    WAIT_UNTIL(board->reload_calls == 1);
    kill(pid, SIGTERM);
    WAIT_UNTIL(board->ended == 2);
    board->go = true;
    CHECK_EQ(exit_code_of(pid), EXIT_CODE_DONE);
    CHECK_EQ(board->ended, 4);
    CHECK_EQ(board->done_calls, 0);
    CHECK_EQ(board->stopping_calls, 1);
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
