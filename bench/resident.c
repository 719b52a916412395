/* SPDX-License-Identifier: MIT
 *
 * How much of each file is in memory (mincore, which tells owners the truth), and what the kernel has read from disks
 * and moved between its lists since it was started. One JSON object. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int fail(const char *what)
{
    perror(what);
    return 1;
}

static int add_file(const char *path, unsigned long long *resident, unsigned long long *size)
{
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0)
        return fail(path);
    size_t length = (size_t)status.st_size, page = (size_t)sysconf(_SC_PAGESIZE), pages = (length + page - 1) / page;
    *size += length;
    if (length > 0) {
        void *mapping = mmap(NULL, length, PROT_READ, MAP_SHARED, fd, 0);
        unsigned char *there = malloc(pages);
        if (mapping == MAP_FAILED || there == NULL || mincore(mapping, length, there) < 0)
            return fail(path);
        for (size_t i = 0; i < pages; i++)
            *resident += there[i] & 1 ? (i + 1 < pages ? page : length - i * page) : 0;
        munmap(mapping, length);
        free(there);
    }
    close(fd);
    return 0;
}

int main(int argc, char **argv)
{
    unsigned long long resident = 0, size = 0, value;
    char name[64];
    for (int i = 1; i < argc; i++)
        if (add_file(argv[i], &resident, &size) != 0)
            return 1;
    printf("{\"resident\": %llu, \"size\": %llu", resident, size);
    FILE *kernel = fopen("/proc/vmstat", "re");
    if (kernel == NULL)
        return fail("/proc/vmstat");
    while (fscanf(kernel, "%63s %llu", name, &value) == 2)
        if (strcmp(name, "pgpgin") == 0 || strcmp(name, "pgactivate") == 0 || strcmp(name, "nr_active_file") == 0 ||
            strcmp(name, "nr_inactive_file") == 0 || strcmp(name, "workingset_refault_file") == 0)
            printf(", \"%s\": %llu", name, value);
    fclose(kernel);
    printf("}\n");
    return 0;
}
