/* SPDX-License-Identifier: MIT */
#include "service/shared.h"
#include "check.h"
#include <errno.h>
#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>

TEST("slots are zeroed, apart by cache lines, and hold what they were asked to")
{
    struct shared shared = {0};
    CHECK_EQ(shared_create(3, 200, &shared), 0);
    for (unsigned i = 0; i < 3; i++) {
        char *slot = shared_slot(&shared, i);
        CHECK_EQ((uintptr_t)slot % 64, 0);
        for (int j = 0; j < 200; j++)
            CHECK_EQ(slot[j], 0);
        memset(slot, (int)i + 1, 200);
    }
    for (unsigned i = 0; i < 3; i++)
        CHECK_EQ(((char *)shared_slot(&shared, i))[199], i + 1);
    shared_destroy(&shared);
    shared_destroy(&shared);
}

TEST("what a worker wrote outlives its crash")
{
    struct shared shared = {0};
    CHECK_EQ(shared_create(2, sizeof(uint64_t), &shared), 0);
    pid_t pid = fork();
    if (pid == 0) {
        *(uint64_t *)shared_slot(&shared, 1) = 42;
        _exit(*(uint64_t *)shared_slot(&shared, 0) == 0 ? 9 : 1);
    }
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(WEXITSTATUS(status), 9);
    CHECK_EQ(*(uint64_t *)shared_slot(&shared, 1), 42);
    shared_destroy(&shared);
}

TEST("sizes that wrap around are refused")
{
    struct shared shared = {.count = 7};
    CHECK_EQ(shared_create(2, SIZE_MAX / 2, &shared), -EINVAL);
    CHECK_EQ(shared_create(2, SIZE_MAX, &shared), -EINVAL);
    CHECK_EQ(shared_create(0, 8, &shared), -EINVAL);
    CHECK_EQ(shared.count, 7);
}

CHECK_MAIN()
