/* SPDX-License-Identifier: MIT */
#include "mounts.h"
#include "base/cleanup.h"
#include <limits.h>
#include <string.h>

static bool octal(char c)
{
    return c >= '0' && c <= '7';
}

/* In place: \040 is a space (also tab, newline, backslash). */
static void unescape(char *text)
{
    char *to = text;
    for (; *text != '\0'; to++) {
        if (text[0] == '\\' && octal(text[1]) && octal(text[2]) && octal(text[3])) {
            *to = (char)((text[1] - '0') << 6 | (text[2] - '0') << 3 | (text[3] - '0'));
            text += 4;
        } else {
            *to = *text++;
        }
    }
    *to = '\0';
}

/* What of inner lies below root, both from the root of the file system: "" or "/..."; NULL: inner is not below. */
static const char *below(const char *inner, const char *root)
{
    size_t length = strlen(root);
    if (length == 1) /* "/" */
        length = 0;
    if (strncmp(inner, root, length) != 0 || (inner[length] != '\0' && inner[length] != '/'))
        return NULL;
    return inner + length;
}

int mounts_resolve(FILE *mountinfo, unsigned major, unsigned minor, const char *inner, mounts_test *test, void *data,
                   char *path, size_t size)
{
    CLEANUP_FREE char *line = NULL;
    size_t room = 0;
    int result = -ENOENT;
    while (getline(&line, &room, mountinfo) > 0) {
        /* "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw": the first five are all we need. */
        char *fields[5], *rest = line;
        unsigned count = 0, line_major, line_minor;
        while (count < 5 && (fields[count] = strsep(&rest, " \n")) != NULL)
            count++;
        if (count < 5 || sscanf(fields[2], "%u:%u", &line_major, &line_minor) != 2 || line_major != major ||
            line_minor != minor)
            continue;
        unescape(fields[3]);
        unescape(fields[4]);
        const char *tail = below(inner, fields[3]);
        if (tail == NULL)
            continue;
        const char *point = strcmp(fields[4], "/") == 0 && tail[0] != '\0' ? "" : fields[4];
        char candidate[PATH_MAX];
        int length = snprintf(candidate, sizeof candidate, "%s%s", point, tail);
        if (length < 0 || (size_t)length >= sizeof candidate || (size_t)length >= size) {
            if (result < 0)
                result = -ENAMETOOLONG;
            continue;
        }
        bool sure = test != NULL && test(candidate, data);
        if (sure || result < 0)
            memcpy(path, candidate, (size_t)length + 1);
        if (sure)
            return 1;
        if (result < 0)
            result = 0;
    }
    return result;
}
