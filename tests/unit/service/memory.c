/* SPDX-License-Identifier: MIT */
#include "service/memory.h"
#include "check.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char top[] = "/tmp/sluice-memory-XXXXXX";

static const char *path_of(const char *name)
{
    static char paths[4][256];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", top, name);
    return path;
}

static void put(const char *name, const char *text)
{
    FILE *file = fopen(path_of(name), "we");
    CHECK(file != NULL);
    fputs(text, file);
    fclose(file);
}

static void make(const char *name)
{
    CHECK(mkdir(path_of(name), 0755) == 0);
}

static uint64_t limit(const char *groups, uint64_t machine)
{
    put("groups", groups);
    return memory_limit_in(path_of("groups"), top, machine);
}

TEST("the least of the machine's memory, the group's limit and those above it is what there is")
{
    CHECK(mkdtemp(top) != NULL);
    make("a");
    make("a/b");
    put("a/memory.max", "3000\n");
    put("a/b/memory.max", "max\n");
    CHECK_EQ(limit("0::/a/b\n", 10000), 3000);
    CHECK_EQ(limit("0::/a/b\n", 2000), 2000);
    put("a/b/memory.max", "1000\n");
    CHECK_EQ(limit("0::/a/b\n", 10000), 1000);
    CHECK_EQ(limit("0::/a\n", 10000), 3000);
    CHECK_EQ(limit("0::/\n", 10000), 10000);
}

TEST("with the first version of control groups, the memory controller's limit counts, and no other's")
{
    make("memory");
    make("memory/c");
    put("memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("memory/c/memory.limit_in_bytes", "4000\n");
    CHECK_EQ(limit("4:memory:/c\n3:cpu:/c\n0::/\n", 10000), 4000);
    CHECK_EQ(limit("3:cpu:/c\n0::/\n", 10000), 10000);
}

TEST("without control groups, or with lines that are none, it is the machine's")
{
    CHECK_EQ(memory_limit_in("/nonexistent", top, 5), 5);
    CHECK_EQ(limit("\nnonsense\n0:\n0::", 10000), 10000);
    CHECK(memory_limit() > 1 << 20);
}

int main(void)
{
    int failed = check_run_all();
    char command[300];
    snprintf(command, sizeof command, "rm -r %s", top);
    return system(command) != 0 ? 1 : failed;
}
