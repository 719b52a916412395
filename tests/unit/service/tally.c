/* SPDX-License-Identifier: MIT */
#include "service/tally.h"
#include "check.h"
#include <errno.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

struct counters {
    uint64_t a, b;
};

static void add(void *sum, const void *part)
{
    struct counters *to = sum;
    const struct counters *from = part;
    to->a += from->a;
    to->b += from->b;
}

static struct counters sum_of(const struct tally *tally, struct tally_state *ret_state)
{
    struct counters sum;
    tally_sum(tally, &sum, ret_state);
    return sum;
}

static void use_cpu(void)
{
    volatile unsigned work = 0;
    for (clock_t until = clock() + CLOCKS_PER_SEC / 20; clock() < until;)
        work++;
}

/* A worker that counts, tells that it has, and ends when it is told. */
struct helper {
    pid_t pid;
    int go, said;
};

static struct helper start(struct tally *tally, unsigned slot, uint64_t count)
{
    int go[2], said[2];
    CHECK(pipe(go) == 0 && pipe(said) == 0);
    struct helper helper = {.pid = fork(), .go = go[1], .said = said[0]};
    if (helper.pid == 0) {
        char byte;
        struct worker worker = {.slot = slot, .index = slot + 10, .reloads = 3};
        struct counters *counters = tally_begin(tally, &worker);
        counters->a = count;
        counters->b = 2 * count;
        use_cpu();
        close(go[1]);
        _exit(write(said[1], "x", 1) != 1 || read(go[0], &byte, 1) != 1);
    }
    close(go[0]);
    close(said[1]);
    char byte;
    CHECK_EQ(read(helper.said, &byte, 1), 1);
    return helper;
}

static void end(struct helper *helper)
{
    int status;
    CHECK_EQ(write(helper->go, "x", 1), 1);
    close(helper->go);
    close(helper->said);
    CHECK_EQ(waitpid(helper->pid, &status, 0), helper->pid);
    CHECK_EQ(status, 0);
}

TEST("workers count for themselves, and the sum is that of those that are there and those that are gone")
{
    struct tally tally;
    struct tally_state state;
    struct tally_worker worker;
    struct counters own;
    CHECK_EQ(tally_create(&tally, 0, sizeof(struct counters), add), -EINVAL);
    CHECK_EQ(tally_create(&tally, 3, sizeof(struct counters), add), 0);
    CHECK_EQ(tally_slots(&tally), 3);
    CHECK(!tally_worker(&tally, 0, &worker, NULL));
    CHECK_EQ(sum_of(&tally, &state).a, 0);
    CHECK_EQ(state.workers, 0);

    struct helper one = start(&tally, 0, 5), two = start(&tally, 2, 7);
    struct counters sum = sum_of(&tally, &state);
    CHECK_EQ(sum.a, 12);
    CHECK_EQ(sum.b, 24);
    CHECK_EQ(state.workers, 2);
    CHECK(tally_worker(&tally, 2, &worker, &own));
    CHECK_EQ(worker.pid, two.pid);
    CHECK_EQ(worker.index, 12);
    CHECK_EQ(worker.reloads, 3);
    CHECK_EQ(own.b, 14);
    CHECK(!tally_worker(&tally, 1, &worker, NULL));
    CHECK(!tally_worker(&tally, 3, &worker, NULL)); /* where those are that are gone */

    end(&one);
    tally_end(&tally, 0, true);
    sum = sum_of(&tally, &state);
    CHECK_EQ(sum.a, 12);
    CHECK_EQ(state.workers, 1);
    CHECK_EQ(state.crashes, 1);
    CHECK(!tally_worker(&tally, 0, &worker, NULL));

    struct helper three = start(&tally, 0, 100); /* in the same slot, from zero */
    CHECK(tally_worker(&tally, 0, &worker, &own));
    CHECK_EQ(own.a, 100);
    CHECK_EQ(sum_of(&tally, &state).a, 112);
    end(&two);
    end(&three);
    tally_end(&tally, 0, false);
    tally_end(&tally, 2, false);
    CHECK_EQ(sum_of(&tally, &state).b, 224);
    CHECK_EQ(state.crashes, 1);
    tally_destroy(&tally);
}

TEST("the workers' CPU time is known while they live and after, and never goes back")
{
    struct tally tally;
    struct tally_state living, waited, gone;
    CHECK_EQ(tally_create(&tally, 1, sizeof(struct counters), add), 0);
    struct helper one = start(&tally, 0, 1);
    sum_of(&tally, &living);
    CHECK(living.cpu_us >= 40000);
    end(&one);
    sum_of(&tally, &waited); /* its clock is gone, and what it used is not yet told */
    CHECK(waited.cpu_us >= living.cpu_us);
    tally_end(&tally, 0, false);
    sum_of(&tally, &gone);
    CHECK(gone.cpu_us >= living.cpu_us);
    tally_destroy(&tally);
}

TEST("a sum that is taken while counters move has each of them once")
{
    struct tally tally;
    struct tally_state state;
    CHECK_EQ(tally_create(&tally, 1, sizeof(struct counters), add), 0);
    struct counters *counters = tally_begin(&tally, &(struct worker){.slot = 0});
    counters->a = 1000;
    pid_t supervisor = fork();
    if (supervisor == 0) {
        for (unsigned i = 0; i < 20000; i++) { /* the worker ends, and another one has counted as much */
            tally_end(&tally, 0, false);
            tally_begin(&tally, &(struct worker){.slot = 0});
        }
        _exit(0);
    }
    int status;
    do
        CHECK_EQ(sum_of(&tally, &state).a, 1000);
    while (waitpid(supervisor, &status, WNOHANG) == 0);
    CHECK_EQ(status, 0);
    tally_destroy(&tally);
}

CHECK_MAIN()
