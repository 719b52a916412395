/* SPDX-License-Identifier: MIT
 *
 * A directory of its own for a test, removed at exit. It is the working directory, too.
 */
#ifndef SLUICE_TESTS_APP_DIRECTORY_H
#define SLUICE_TESTS_APP_DIRECTORY_H

#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char directory_path[64];

static int directory_remove_one(const char *path, const struct stat *status, int type, struct FTW *at)
{
    (void)status, (void)type, (void)at;
    return remove(path);
}

static void directory_remove(void)
{
    if (chdir("/") == 0)
        nftw(directory_path, directory_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* An O_PATH descriptor of "root" in it, which becomes the working directory; "outside" is beside it. */
static int directory_make(void)
{
    strcpy(directory_path, "/tmp/sluice-test-XXXXXX");
    if (mkdtemp(directory_path) == NULL || chdir(directory_path) < 0 || mkdir("root", 0755) < 0)
        abort();
    atexit(directory_remove);
    FILE *file = fopen("outside", "w");
    if (file == NULL || fputs("secret", file) < 0 || fclose(file) < 0 || chdir("root") < 0)
        abort();
    return open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
}

__attribute__((unused)) static void file_write(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    if (file == NULL || fputs(text, file) < 0 || fclose(file) < 0)
        abort();
}

#endif
