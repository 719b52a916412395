/* SPDX-License-Identifier: MIT
 *
 * Stands in for libFuzzer: runs every file of the folders named once, one TAP line each. An invariant broken ends the
 * program, and with it the plan is not kept: the harness sees a failure, the last line before it the culprit.
 */
#include "fuzz.h"
#include <dirent.h>
#include <errno.h>

static int is_input(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static void replay(const char *path)
{
    FILE *file = fopen(path, "rb");
    REQUIRE(file != NULL);
    uint8_t data[65536];
    size_t size = fread(data, 1, sizeof data, file);
    REQUIRE(!ferror(file) && feof(file));
    fclose(file);
    uint8_t *copy = (uint8_t *)exact_copy(data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

int main(int argc, char **argv)
{
    int number = 0;
    for (int i = 1; i < argc; i++) {
        struct dirent **entries;
        int count = scandir(argv[i], &entries, is_input, alphasort);
        if (count <= 0) {
            printf("Bail out! %s: %s\n", argv[i], count == 0 ? "no inputs" : strerror(errno));
            return 1;
        }
        for (int k = 0; k < count; k++) {
            char path[4096];
            int length = snprintf(path, sizeof path, "%s/%s", argv[i], entries[k]->d_name);
            REQUIRE(length > 0 && (size_t)length < sizeof path);
            printf("# %s\n", path);
            fflush(stdout);
            replay(path);
            printf("ok %d - the parser keeps its word on %s\n", ++number, entries[k]->d_name);
            free(entries[k]);
        }
        free(entries);
    }
    printf("1..%d\n", number);
    return 0;
}
