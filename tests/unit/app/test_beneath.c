/* SPDX-License-Identifier: MIT */
#include "check.h"
#include "directory.h"
#include "http/beneath.h"

#include <errno.h>

static struct beneath ways[2];             /* openat2, component by component */
static struct beneath follow[2], never[2]; /* the same with other policies */

static void prepare(void)
{
    static bool prepared;
    if (prepared)
        return;
    prepared = true;
    int root = directory_make();
    beneath_init(&ways[0], root, BENEATH_SYMLINKS_INSIDE, false);
    beneath_init(&ways[1], root, BENEATH_SYMLINKS_INSIDE, true);
    for (int i = 0; i < 2; i++) {
        beneath_init(&follow[i], root, BENEATH_SYMLINKS_FOLLOW, i == 1);
        beneath_init(&never[i], root, BENEATH_SYMLINKS_NEVER, i == 1);
    }
    mkdir("a", 0755);
    mkdir("a/b", 0755);
    file_write("a/b/file", "inside");
    if (symlink("b/file", "a/link") < 0 || symlink("../a/b/../b/file", "a/around") < 0 ||
        symlink("../outside", "climbs") < 0 || symlink("a/../../outside", "climbs-later") < 0 ||
        symlink("/etc/passwd", "absolute") < 0 || symlink("loop", "loop") < 0 || symlink("a", "directory") < 0 ||
        symlink(".", "self") < 0 || symlink("a/b/file", "short") < 0 || symlink("short", "chain") < 0)
        abort();
}

/* What opening for reading gives: 0 and the text, or a negative errno. */
static int read_at(const struct beneath *beneath, const char *path, char text[16], bool *symlinks)
{
    int fd = beneath_open(beneath, path, O_RDONLY | O_NONBLOCK, false, symlinks);
    if (fd < 0)
        return fd;
    ssize_t size = read(fd, text, 15);
    text[size < 0 ? 0 : size] = '\0';
    close(fd);
    return size < 0 ? -errno : 0;
}

struct expectation {
    const char *path;
    int result;
    bool symlinks;
};

static const struct expectation expectations[] = {
    {"a/b/file", 0, false},
    {"a/./b//file", 0, false},
    {"a/link", 0, true},
    {"a/around", 0, true},
    {"chain", 0, true},
    {"directory/link", 0, true},
    {"self/self/a/b/file", 0, true},
    {"a/b/../b/file", 0, false},
    {"climbs", -EXDEV, false},
    {"climbs-later", -EXDEV, false},
    {"absolute", -EXDEV, false},
    {"/etc/passwd", -EXDEV, false},
    {"../outside", -EXDEV, false},
    {"a/../../outside", -EXDEV, false},
    {"self/../outside", -EXDEV, false},
    {"loop", -ELOOP, false},
    {"nothing", -ENOENT, false},
    {"nothing/file", -ENOENT, false},
    {"a/b/file/", -ENOTDIR, false},
    {"a/link/", -ENOTDIR, false},
    {"a/b/file/more", -ENOTDIR, false},
    {"a/b", -EISDIR, false},
    {"directory", -EISDIR, true},
    {".", -EISDIR, false},
};

static void meets_expectations(const struct beneath *beneath)
{
    for (size_t i = 0; i < sizeof expectations / sizeof expectations[0]; i++) {
        const struct expectation *want = &expectations[i];
        char text[16] = "";
        bool symlinks = false;
        int r = read_at(beneath, want->path, text, &symlinks);
        if (r != want->result || (r == 0 && strcmp(text, "inside") != 0) || (r == 0 && symlinks != want->symlinks))
            CHECK_FAIL("%s: %d (not %d), \"%s\", symlinks %d", want->path, r, want->result, text, symlinks);
    }
}

TEST("openat2 opens what is beneath the root and nothing else")
{
    prepare();
    if (!ways[0].has_openat2)
        SKIP("no openat2(2) here; needs Linux 5.6 and a system call filter that lets it pass");
    meets_expectations(&ways[0]);
}

TEST("walking component by component gives the same answers as openat2")
{
    prepare();
    CHECK(!ways[1].has_openat2);
    meets_expectations(&ways[1]);
}

TEST("a name that is too long is refused, not cut")
{
    prepare();
    char path[5000];
    memset(path, 'x', sizeof path);
    path[300] = '\0';
    CHECK_EQ(beneath_open(&ways[1], path, O_RDONLY, false, NULL), -ENAMETOOLONG);
    path[300] = 'x';
    path[sizeof path - 1] = '\0';
    CHECK_EQ(beneath_open(&ways[1], path, O_RDONLY, false, NULL), -ENAMETOOLONG);
}

TEST("asking for a directory refuses a file, with and without openat2")
{
    prepare();
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(beneath_open(&ways[i], "a/b/file", O_PATH | O_DIRECTORY, false, NULL), -ENOTDIR);
        CHECK_EQ(beneath_open(&ways[i], "a/link", O_PATH | O_DIRECTORY, false, NULL), -ENOTDIR);
        int fd = beneath_open(&ways[i], "directory/", O_PATH | O_DIRECTORY, false, NULL);
        CHECK(fd >= 0);
        close(fd);
    }
}

TEST("without a promise not to wait for the disk, a cached lookup refuses")
{
    prepare();
    CHECK_EQ(beneath_open(&ways[1], "a/b/file", O_RDONLY, true, NULL), -EAGAIN);
}

TEST("where links are followed they lead anywhere, and paths do not")
{
    static const char *const links[] = {"climbs", "climbs-later", "absolute", "a/link", "chain"};
    prepare();
    for (int way = 0; way < 2; way++) {
        char text[16];
        bool symlinks;
        for (size_t i = 0; i < sizeof links / sizeof links[0]; i++) {
            symlinks = false;
            CHECK_EQ(read_at(&follow[way], links[i], text, &symlinks), 0);
            CHECK(symlinks);
            if (i < 2)
                CHECK_STR(text, "secret");
        }
        symlinks = true;
        CHECK_EQ(read_at(&follow[way], "a/b/file", text, &symlinks), 0);
        CHECK(!symlinks);
        CHECK_EQ(read_at(&follow[way], "loop", text, NULL), -ELOOP);
        CHECK_EQ(read_at(&follow[way], "a/../../outside", text, NULL), -EXDEV);
        CHECK_EQ(read_at(&follow[way], "/etc/passwd", text, NULL), -EXDEV);
        CHECK_EQ(read_at(&follow[way], "nothing", text, NULL), -ENOENT);
    }
}

TEST("links of /proc are not followed by openat2")
{
    prepare();
    if (!ways[0].has_openat2)
        SKIP("no openat2(2) here; needs Linux 5.6 and a system call filter that lets it pass");
    char text[16];
    CHECK_EQ(symlink("/proc/self/root/etc/passwd", "magic"), 0);
    CHECK_EQ(read_at(&follow[0], "magic", text, NULL), -ELOOP);
    CHECK_EQ(unlink("magic"), 0);
}

TEST("where no link is followed, one anywhere on the way is refused")
{
    static const char *const links[] = {"a/link",        "a/around", "chain",    "directory/link", "directory/b/file",
                                        "self/a/b/file", "climbs",   "absolute", "loop",           "directory"};
    prepare();
    for (int way = 0; way < 2; way++) {
        char text[16];
        for (size_t i = 0; i < sizeof links / sizeof links[0]; i++)
            CHECK_EQ(read_at(&never[way], links[i], text, NULL), -ELOOP);
        CHECK_EQ(read_at(&never[way], "a/b/file", text, NULL), 0);
        CHECK_EQ(read_at(&never[way], "a/../../outside", text, NULL), -EXDEV);
        CHECK_EQ(read_at(&never[way], "a/b", text, NULL), -EISDIR);
    }
}

TEST("no descriptor is left behind")
{
    prepare();
    char text[16];
    int before = dup(0);
    close(before);
    for (size_t i = 0; i < sizeof expectations / sizeof expectations[0]; i++)
        for (int way = 0; way < 2; way++)
            for (const struct beneath *policy = NULL; policy != &never[way];) {
                policy = policy == NULL ? &ways[way] : policy == &ways[way] ? &follow[way] : &never[way];
                read_at(policy, expectations[i].path, text, NULL);
            }
    int after = dup(0);
    close(after);
    CHECK_EQ(after, before);
}

CHECK_MAIN()
