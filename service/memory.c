/* SPDX-License-Identifier: MIT */
#include "memory.h"

#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The number in a file; nothing changes if there is none ("max"). */
static void take_limit(const char *path, uint64_t *limit)
{
    uint64_t value;
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return;
    if (fscanf(file, "%" SCNu64, &value) == 1 && value < *limit)
        *limit = value;
    fclose(file);
}

/* Of a group and all that it is part of. */
static void take_limits(const char *mount, char *group, const char *name, uint64_t *limit)
{
    for (;;) {
        char path[PATH_MAX];
        if (snprintf(path, sizeof path, "%s%s/%s", mount, group, name) < (int)sizeof path)
            take_limit(path, limit);
        char *slash = strrchr(group, '/');
        if (slash == NULL)
            return;
        *slash = '\0';
    }
}

/* A line of cgroups(7) is hierarchy:controllers:path; version 2 has hierarchy 0 and names none. */
uint64_t memory_limit_in(const char *groups, const char *mounts, uint64_t machine)
{
    uint64_t limit = machine;
    char *line = NULL, mount[PATH_MAX];
    size_t size = 0;
    FILE *file = fopen(groups, "re");
    if (file == NULL)
        return limit;
    while (getline(&line, &size, file) > 0) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *group = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (group == NULL)
            continue;
        *group++ = '\0';
        bool two = strncmp(line, "0:", 2) == 0, memory = strcmp(controllers + 1, "memory") == 0;
        if (!two && !memory)
            continue;
        if (snprintf(mount, sizeof mount, "%s%s", mounts, memory ? "/memory" : "") >= (int)sizeof mount)
            continue;
        take_limits(mount, group, memory ? "memory.limit_in_bytes" : "memory.max", &limit);
    }
    free(line);
    fclose(file);
    return limit;
}

uint64_t memory_limit(void)
{
    uint64_t machine = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    return memory_limit_in("/proc/self/cgroup", "/sys/fs/cgroup", machine);
}
