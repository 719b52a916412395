/* SPDX-License-Identifier: MIT */
#include "beneath.h"
#include "base/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef RESOLVE_CACHED
#define RESOLVE_CACHED 0x20 /* linux/openat2.h, 5.12 */
#endif

#define SYMLINKS_MAX 40 /* as the kernel's MAXSYMLINKS */
#define CLIMBS_MAX 1000 /* ".." in their targets */

static int call_openat2(int root, const char *path, int flags, uint64_t resolve)
{
    struct open_how how = {
        .flags = (uint64_t)(unsigned)(flags | O_CLOEXEC | ((flags & O_PATH) ? 0 : O_NOCTTY)),
        .resolve = RESOLVE_NO_MAGICLINKS | resolve,
    };
    long fd;
    unsigned attempts = 0;
    /* EAGAIN without RESOLVE_CACHED: a rename somewhere in the system raced with ".." of a symbolic link
     * (openat2(2)). */
    do
        fd = syscall(SYS_openat2, root, path, &how, sizeof how);
    while (fd < 0 && (errno == EINTR || (errno == EAGAIN && !(resolve & RESOLVE_CACHED) && ++attempts < 16)));
    return fd < 0 ? -errno : (int)fd;
}

void beneath_init(struct beneath *beneath, int root, enum beneath_symlinks symlinks, bool walk)
{
    *beneath = (struct beneath){.root = root, .symlinks = symlinks};
    if (walk)
        return;
    CLEANUP_FD int plain = call_openat2(root, ".", O_PATH | O_DIRECTORY, RESOLVE_BENEATH);
    CLEANUP_FD int cached = call_openat2(root, ".", O_PATH | O_DIRECTORY, RESOLVE_BENEATH | RESOLVE_CACHED);
    beneath->has_openat2 = plain >= 0;
    beneath->has_cached = plain >= 0 && cached >= 0;
}

/* The kernel follows the links. */
static int open_anywhere(int root, const char *path, int flags)
{
    int fd;
    do
        fd = openat(root, path, flags | O_CLOEXEC | ((flags & O_PATH) ? 0 : O_NOCTTY));
    while (fd < 0 && errno == EINTR);
    return fd < 0 ? -errno : fd;
}

/* One name, which is no link. */
static int open_component(int directory, const char *name, int flags)
{
    return open_anywhere(directory, name, flags | O_NOFOLLOW);
}

/* What is still to be walked and what has been, both as text. walked never holds a symbolic link, so that its parent is
 * found by cutting off the last name: ".." of the file system is never used, which a rename could turn elsewhere. */
struct walk {
    char pending[2 * PATH_MAX], walked[PATH_MAX];
    size_t position; /* in pending */
    unsigned symlinks, climbs;
};

static int prepend(struct walk *walk, const char *first, size_t length)
{
    const char *rest = walk->pending + walk->position;
    size_t rest_length = strlen(rest);
    if (length + 1 + rest_length + 1 > sizeof walk->pending)
        return -ENAMETOOLONG;
    memmove(walk->pending + length + 1, rest, rest_length + 1);
    memcpy(walk->pending, first, length);
    walk->pending[length] = '/';
    /* "link" without a slash behind it must not turn into "target/", which only a directory may be called. */
    if (rest_length == 0)
        walk->pending[length] = '\0';
    walk->position = 0;
    return 0;
}

/* Back to the root, to go to the parent of what was walked. */
static int climb(struct walk *walk)
{
    if (walk->walked[0] == '\0')
        return -EXDEV;
    if (++walk->climbs > CLIMBS_MAX)
        return -ELOOP;
    char *cut = strrchr(walk->walked, '/');
    char parent[PATH_MAX];
    size_t length = cut == NULL ? 0 : (size_t)(cut - walk->walked);
    memcpy(parent, walk->walked, length);
    walk->walked[0] = '\0';
    return prepend(walk, parent, length);
}

static int append(struct walk *walk, const char *name)
{
    size_t length = strlen(walk->walked), more = strlen(name);
    if (length + 1 + more + 1 > sizeof walk->walked)
        return -ENAMETOOLONG;
    if (length > 0)
        walk->walked[length++] = '/';
    memcpy(walk->walked + length, name, more + 1);
    return 0;
}

static int walk_open(int root, const char *path, int flags, bool follow, bool *ret_symlinks)
{
    struct walk walk = {.position = 0};
    size_t path_length = strlen(path);
    if (path_length >= PATH_MAX)
        return -ENAMETOOLONG;
    if (path[0] == '/')
        return -EXDEV;
    memcpy(walk.pending, path, path_length + 1);
    bool symlinks = false;
    CLEANUP_FD int held = -1; /* the directory that was walked to, unless it is the root */
    int directory = root;

    for (;;) {
        char name[NAME_MAX + 1];
        char *component = walk.pending + walk.position;
        size_t length = strcspn(component, "/");
        if (length > NAME_MAX)
            return -ENAMETOOLONG;
        bool more = component[length] == '/';
        size_t next = walk.position + length + strspn(component + length, "/");
        bool last = walk.pending[next] == '\0';

        memcpy(name, component, length);
        name[length] = '\0';
        walk.position = next;
        if (strcmp(name, "..") == 0) {
            int r = climb(&walk);
            if (r < 0)
                return r;
            held = close_fd(held);
            directory = root;
            continue;
        }
        if (length == 0 || strcmp(name, ".") == 0) {
            if (!last)
                continue;
            int fd = open_component(directory, ".", flags);
            if (fd >= 0 && ret_symlinks != NULL)
                *ret_symlinks = symlinks;
            return fd;
        }

        CLEANUP_FD int fd = open_component(directory, name, O_PATH);
        struct stat status;
        if (fd < 0)
            return fd;
        if (fstat(fd, &status) < 0)
            return -errno;
        if (S_ISLNK(status.st_mode) && !follow)
            return -ELOOP;
        if (S_ISLNK(status.st_mode)) {
            char target[PATH_MAX];
            ssize_t size = readlinkat(fd, "", target, sizeof target);
            if (size < 0)
                return -errno;
            if ((size_t)size == sizeof target)
                return -ENAMETOOLONG;
            if (target[0] == '/')
                return -EXDEV;
            symlinks = true;
            if (++walk.symlinks > SYMLINKS_MAX)
                return -ELOOP;
            int r = prepend(&walk, target, (size_t)size);
            if (r < 0)
                return r;
            if (last && more) { /* "link/" */
                size_t end = strlen(walk.pending);
                memcpy(walk.pending + end, "/", 2);
            }
            continue;
        }
        if ((more || (flags & O_DIRECTORY)) && !S_ISDIR(status.st_mode))
            return -ENOTDIR;
        if (last) {
            int result = (flags & O_PATH) ? TAKE_FD(fd) : open_component(directory, name, flags);
            if (result == -ELOOP) { /* it became a symbolic link just now */
                if (++walk.symlinks > SYMLINKS_MAX)
                    return -ELOOP;
                int r = prepend(&walk, name, length);
                if (r < 0)
                    return r;
                continue;
            }
            if (result >= 0 && ret_symlinks != NULL)
                *ret_symlinks = symlinks;
            return result;
        }
        int r = append(&walk, name);
        if (r < 0)
            return r;
        close_fd(held);
        directory = held = TAKE_FD(fd);
    }
}

int beneath_open(const struct beneath *beneath, const char *path, int flags, bool cached, bool *ret_symlinks)
{
    if (cached && !beneath->has_cached)
        return -EAGAIN;
    bool inside = beneath->symlinks == BENEATH_SYMLINKS_INSIDE;
    if (!beneath->has_openat2 && inside)
        return walk_open(beneath->root, path, flags, true, ret_symlinks);

    uint64_t resolve = cached ? RESOLVE_CACHED : 0;
    bool symlinks = false;
    /* Most paths hold no symbolic link, and whether one does decides how far the answer can be cached. */
    int fd = beneath->has_openat2
                 ? call_openat2(beneath->root, path, flags, resolve | RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
                 : walk_open(beneath->root, path, flags, false, NULL);
    if (fd == -ELOOP && beneath->symlinks != BENEATH_SYMLINKS_NEVER) {
        symlinks = true;
        fd = beneath->has_openat2 ? call_openat2(beneath->root, path, flags, resolve | (inside ? RESOLVE_BENEATH : 0))
                                  : open_anywhere(beneath->root, path, flags);
    }
    if (fd >= 0 && ret_symlinks != NULL)
        *ret_symlinks = symlinks;
    return fd;
}
