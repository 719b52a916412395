/* SPDX-License-Identifier: MIT
 *
 * Input: one byte for the size of a small buffer, then the path.
 */
#include "fuzz.h"
#include "path.c"

/* Relative, of components that are neither empty nor special nor hidden. */
static void require_safe(const char *path, size_t length)
{
    REQUIRE(strlen(path) == length && length > 0);
    if (strcmp(path, ".") == 0)
        return;
    const char *component = path;
    while (*component != '\0') {
        size_t count = strcspn(component, "/");
        REQUIRE(count > 0);
        if (component[0] == '.')
            REQUIRE(component == path && count == strlen(".well-known") &&
                    memcmp(component, ".well-known", count) == 0);
        component += count;
        component += *component == '/';
    }
}

/* Encoded component by component, a result decodes to itself. */
static void require_round_trip(const char *path, size_t length)
{
    size_t size = 3 * length + 2, used = 0;
    char *parts = exact_copy(path, length + 1), *text = malloc(size), *again = malloc(length + 2);
    REQUIRE(text != NULL && again != NULL);
    text[used++] = '/';
    for (char *component = parts; *component != '\0';) {
        size_t count = strcspn(component, "/");
        bool slash = component[count] == '/';
        component[count] = '\0';
        used += http_path_encode(component, text + used, size - used);
        REQUIRE(used < size);
        if (slash)
            text[used++] = '/';
        component += count + slash;
    }
    REQUIRE(http_path_decode((struct slice){text, used}, again, length + 2) == (int)length);
    REQUIRE(memcmp(path, again, length + 1) == 0);
    free(parts);
    free(text);
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    size_t small_size = data[0];
    struct slice path = {exact_copy(data + 1, size - 1), size - 1};

    /* Room enough: no longer than the path without its first slash, and at least "." and NUL. */
    size_t wide_size = size + 1;
    char *wide = malloc(wide_size), *small = malloc(small_size > 0 ? small_size : 1);
    REQUIRE(wide != NULL && small != NULL);
    int status = http_path_decode(path, wide, wide_size);
    REQUIRE(status > 0 || status == -400 || status == -404);
    if (status > 0) {
        require_safe(wide, (size_t)status);
        require_round_trip(wide, (size_t)status);
    }

    int small_status = http_path_decode(path, small, small_size);
    REQUIRE(small_status == status || small_status == -414);
    if (small_status > 0)
        REQUIRE(memcmp(wide, small, (size_t)status + 1) == 0);

    free((char *)path.data);
    free(wide);
    free(small);
    return 0;
}
