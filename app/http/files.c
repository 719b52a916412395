/* SPDX-License-Identifier: MIT
 *
 * Invariants:
 *   - An entry is in the table and in the LRU list, or in neither (cached). Out of the table it lives on until its last
 *     reference is given back.
 *   - A watched entry has a directory, which is in the table of directories with all its ancestors, each with a watch;
 *     and a watch of its own, of the open file: the directory's tells what comes by the path, but a hard link is
 *     another path, perhaps outside of the root. That watch is the inode's, whatever name it was placed by and is
 *     changed by, so entries that are hard links of one another share it.
 *   - A directory beneath several roots, or reached by several paths (a bind mount), is in the table once for each,
 * with the same watch: that is the inode's, too, and what it tells counts for all of them.
 *   - A watch is placed before the file's state is read. An event that arrives while a helper reads may be about just
 *     that file: `events` counts them, and what was read across one is not trusted without a check.
 *   - Watches of files are placed and removed by the loop's thread alone.
 */
#include "files.h"
#include "base/cleanup.h"
#include "base/list.h"
#include "base/text.h"
#include "mime.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>

#define CHECK_INTERVAL 1000 /* ms between checks of a watched entry */
#define DIRECTORIES_MAX 4096
#define WATCH_EVENTS                                                                                                   \
    (IN_MODIFY | IN_ATTRIB | IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE_SELF | IN_MOVE_SELF)
/* The directory's watch tells of the rest. Reading raises neither. */
#define FILE_EVENTS (IN_MODIFY | IN_ATTRIB)
#define WATCH_RETRY 1000 /* ms from a watch that was refused to the next that is asked for */
#define FIFO_SAFE (O_RDONLY | O_NONBLOCK)

/* What the file system lets us rely on. */
enum trust {
    TRUST_WATCHES, /* a local file system: every change passes through this kernel's inotify */
    TRUST_MEMORY,  /* changes can come unseen, but asking is quick */
    TRUST_NOTHING, /* asking may wait for a server or for another process */
};

static enum trust trust_of(const struct statfs *status)
{
    /* f_type is of different signedness on different architectures. linux/magic.h lacks some of them. */
    switch ((unsigned long)status->f_type & 0xffffffffUL) {
    case 0xEF53:     /* ext2, 3, 4 */
    case 0x58465342: /* XFS */
    case 0x9123683E: /* btrfs */
    case 0x01021994: /* tmpfs */
    case 0x858458f6: /* ramfs */
    case 0xF2F52010: /* f2fs */
    case 0xca451a4e: /* bcachefs */
    case 0x2fc12fc1: /* ZFS */
    case 0x4d44:     /* FAT */
    case 0x2011BAB0: /* exFAT */
    case 0x7366746e: /* NTFS */
    case 0x9660:     /* ISO 9660 */
    case 0x73717368: /* squashfs */
    case 0xE0F5E1E2: /* EROFS */
        return TRUST_WATCHES;
    case 0x794c7630: /* overlayfs: a change of a lower layer raises no event above */
        return TRUST_MEMORY;
    default: /* NFS, SMB, FUSE, 9p, Ceph, /proc, ... and what nobody has thought of yet */
        return TRUST_NOTHING;
    }
}

struct directory {
    struct files_root *root;
    struct directory *chain, *wd_chain; /* in the hash tables */
    struct directory *parent;           /* NULL: this is the root */
    struct list idle;                   /* in files.idle while refs is 0 */
    uint64_t hash;
    unsigned refs; /* entries and directories in it */
    int wd;        /* -1: no watch to be had */
    bool watched;  /* it and all its ancestors have one */
    size_t length;
    char path[]; /* "" for the root */
};

struct entry {
    struct file file;
    struct files_root *root;
    struct entry *chain;
    struct list lru;
    uint64_t hash;
    uint64_t checked;   /* when it was last known to be right */
    uint64_t looked_up; /* when a helper last tried to have its directories watched */
    unsigned refs;
    bool cached;
    enum trust trust;
    struct directory *directory; /* NULL: unwatched; then wd is -1, too */
    struct entry *wd_chain;
    int wd;        /* of the file itself */
    bool symlinks; /* the path goes through one */
    uint8_t lacks; /* bit per coding: it has no such sibling; as long as it is watched */
    struct stat status;
    size_t path_length;
    char *path, *fields;
    char text[]; /* etag, path, fields */
};

struct files_root {
    struct files *files;
    struct beneath beneath;
    uint64_t drop_from;
    bool precompressed;
    const struct http_extras *extras;
    uint64_t seed; /* of hashes of its paths */
    dev_t known_device;
    enum trust known_trust;
    bool device_known;
};

struct files {
    struct sluice_loop *loop;
    struct files_root *roots;
    unsigned end_flags, capacity;

    struct entry **table, **entries_by_wd;
    size_t table_mask; /* of both */
    struct list lru;   /* least recently used first */
    unsigned cached;

    int inotify; /* -1: none */
    struct sluice_watch *watch;
    uint64_t refused; /* when the last watch of a file was; 0: never */
    void (*complain)(void *context, const char *text);
    void *complain_context;
    struct directory *directories[1024], *by_wd[1024];
    struct list idle; /* directories that nothing refers to, longest idle first */
    unsigned directory_count;

    uint64_t events;
    unsigned lookups; /* on helpers */
    struct files_counts counts;
};

static uint64_t hash_path(const struct files_root *root, const char *path, size_t length)
{
    uint64_t hash = root->seed ^ length, word;
    for (; length >= 8; path += 8, length -= 8) {
        memcpy(&word, path, 8);
        hash = (hash ^ word) * 0xff51afd7ed558ccdu;
        hash ^= hash >> 32;
    }
    word = 0;
    memcpy(&word, path, length);
    hash = (hash ^ word) * 0xff51afd7ed558ccdu;
    return hash ^ hash >> 29;
}

/* ---- Directories and their watches --------------------------------------------------------------------------- */

#define BUCKETS (sizeof((struct files *)NULL)->by_wd / sizeof(struct directory *))

static struct directory *directory_find(const struct files_root *root, const char *path, size_t length)
{
    uint64_t hash = hash_path(root, path, length);
    for (struct directory *at = root->files->directories[hash % BUCKETS]; at != NULL; at = at->chain)
        if (at->hash == hash && at->root == root && at->length == length && memcmp(at->path, path, length) == 0)
            return at;
    return NULL;
}

/* The first with this watch from one in the hash table on. */
static struct directory *directory_with_wd(struct directory *at, int wd)
{
    while (at != NULL && at->wd != wd)
        at = at->wd_chain;
    return at;
}

static struct directory *directory_by_wd(struct files *files, int wd)
{
    return directory_with_wd(files->by_wd[(unsigned)wd % BUCKETS], wd);
}

static void directory_hold(struct directory *directory)
{
    if (directory->refs++ == 0)
        list_remove(&directory->idle);
}

static void directory_drop(struct files *files, struct directory *directory)
{
    if (--directory->refs == 0)
        list_add_last(&files->idle, &directory->idle);
}

static void directory_free(struct files *files, struct directory *directory)
{
    struct directory **link = &files->directories[directory->hash % BUCKETS];
    while (*link != directory)
        link = &(*link)->chain;
    *link = directory->chain;
    if (directory->wd >= 0) {
        link = &files->by_wd[(unsigned)directory->wd % BUCKETS];
        while (*link != directory)
            link = &(*link)->wd_chain;
        *link = directory->wd_chain;
        if (directory_by_wd(files, directory->wd) == NULL)
            inotify_rm_watch(files->inotify, directory->wd); /* fails if the directory is gone: the watch is, too */
    }
    list_remove(&directory->idle);
    files->directory_count--;
    if (directory->parent != NULL)
        directory_drop(files, directory->parent);
    free(directory);
}

/* The directory of a path, which the parent's is the beginning of. wd < 0: without a watch. NULL: no memory. */
static struct directory *directory_add(struct files_root *root, struct directory *parent, const char *path,
                                       size_t length, int wd)
{
    struct files *files = root->files;
    if (parent != NULL)
        directory_hold(parent); /* not to be freed for the room that is needed here */
    if (files->directory_count >= DIRECTORIES_MAX && !list_empty(&files->idle))
        directory_free(files, LIST_OBJECT(files->idle.next, struct directory, idle));
    struct directory *directory = calloc(1, sizeof *directory + length + 1);
    if (directory == NULL) {
        if (parent != NULL)
            directory_drop(files, parent);
        return NULL;
    }
    memcpy(directory->path, path, length);
    directory->root = root;
    directory->length = length;
    directory->hash = hash_path(root, path, length);
    directory->parent = parent;
    directory->wd = wd;
    directory->watched = directory->wd >= 0 && (parent == NULL || parent->watched);
    directory->chain = files->directories[directory->hash % BUCKETS];
    files->directories[directory->hash % BUCKETS] = directory;
    if (directory->wd >= 0) {
        directory->wd_chain = files->by_wd[(unsigned)directory->wd % BUCKETS];
        files->by_wd[(unsigned)directory->wd % BUCKETS] = directory;
    }
    files->directory_count++;
    list_init(&directory->idle);
    list_add_last(&files->idle, &directory->idle);
    return directory;
}

/* The length of the directory part of a path: "a/b" of "a/b/c"; 0 of "c". */
static size_t directory_length(const char *path, size_t length)
{
    const char *slash = memrchr(path, '/', length);
    return slash == NULL ? 0 : (size_t)(slash - path);
}

/* ---- Entries --------------------------------------------------------------------------------------------------- */

static struct entry *entry_of(struct file *file)
{
    return (struct entry *)(void *)((char *)file - offsetof(struct entry, file));
}

static void entry_free(struct entry *entry)
{
    sluice_end_close(entry->file.end);
    free(entry);
}

/* Said once. Nothing is wrong or stale without watches, but each request asks the file system. */
static void complain(struct files *files, const char *what, int error)
{
    char text[256];
    if (files->complain == NULL)
        return;
    snprintf(text, sizeof text, "%s (%s): files are checked at every request, which costs a few system calls each",
             what, text_errno_meaning(error));
    files->complain(files->complain_context, text);
    files->complain = NULL;
}

static void watch_refused(struct files *files, int error)
{
    complain(files,
             error == ENOSPC   ? "inotify: no watch left; sysctl fs.inotify.max_user_watches says how many there are"
             : error == ENOENT ? "inotify: no watch without /proc; is it mounted?"
                               : "inotify: no watch",
             error);
}

/* One of those with this watch. */
static struct entry *entry_by_wd(struct files *files, int wd)
{
    struct entry *at = files->entries_by_wd[(unsigned)wd & files->table_mask];
    while (at != NULL && at->wd != wd)
        at = at->wd_chain;
    return at;
}

/* Watch the open file, not what its path may lead to by now. The way through /proc needs no disk, so it does not
 * wait. Returns whether it is watched. */
static bool entry_watch(struct files *files, struct entry *entry)
{
    char path[32];
    if (entry->wd >= 0)
        return true;
    uint64_t now = sluice_loop_now(files->loop);
    if (files->refused != 0 && now - files->refused < WATCH_RETRY)
        return false;
    snprintf(path, sizeof path, "/proc/self/fd/%d", sluice_end_fd(entry->file.end));
    int wd = inotify_add_watch(files->inotify, path, FILE_EVENTS);
    if (wd < 0) {
        files->refused = now;
        watch_refused(files, errno);
        return false;
    }
    entry->wd = wd; /* that of another entry, too, if this file has several names */
    entry->wd_chain = files->entries_by_wd[(unsigned)wd & files->table_mask];
    files->entries_by_wd[(unsigned)wd & files->table_mask] = entry;
    return true;
}

static void entry_unwatch(struct files *files, struct entry *entry)
{
    if (entry->directory != NULL)
        directory_drop(files, entry->directory);
    entry->directory = NULL;
    entry->lacks = 0;
    if (entry->wd < 0)
        return;
    struct entry **link = &files->entries_by_wd[(unsigned)entry->wd & files->table_mask];
    while (*link != entry)
        link = &(*link)->wd_chain;
    *link = entry->wd_chain;
    if (entry_by_wd(files, entry->wd) == NULL)
        inotify_rm_watch(files->inotify, entry->wd);
    entry->wd = -1;
}

static void entry_uncache(struct files *files, struct entry *entry)
{
    if (!entry->cached)
        return;
    struct entry **link = &files->table[entry->hash & files->table_mask];
    while (*link != entry)
        link = &(*link)->chain;
    *link = entry->chain;
    list_remove(&entry->lru);
    entry->cached = false;
    files->cached--;
    entry_unwatch(files, entry);
    if (entry->refs == 0)
        entry_free(entry);
}

/* coding: as whose sibling it is wanted; by its own name, a compressed file is a file like any other. */
static struct entry *entry_find(const struct files_root *root, const char *path, size_t length, uint64_t hash,
                                enum http_coding coding)
{
    const struct files *files = root->files;
    for (struct entry *at = files->table[hash & files->table_mask]; at != NULL; at = at->chain)
        if (at->hash == hash && at->root == root && at->path_length == length && at->file.coding == coding &&
            memcmp(at->path, path, length) == 0)
            return at;
    return NULL;
}

static void drop_everything(struct files *files)
{
    while (!list_empty(&files->lru)) {
        files->counts.dropped++;
        entry_uncache(files, LIST_OBJECT(files->lru.next, struct entry, lru));
    }
    /* Every directory is idle now or an ancestor of one that is. */
    while (!list_empty(&files->idle))
        directory_free(files, LIST_OBJECT(files->idle.next, struct directory, idle));
}

unsigned files_shed(struct files *files, unsigned count)
{
    unsigned shed = 0;
    LIST_FOR_EACH(link, &files->lru)
    {
        struct entry *entry = LIST_OBJECT(link, struct entry, lru);
        if (shed == count)
            break;
        if (entry->refs == 0) {
            entry_uncache(files, entry);
            shed++;
        }
    }
    return shed;
}

/* A strong validator must change with every change of the bytes (RFC 9110, 8.8.1). Size, modification time and inode
 * do, unless the file changes twice within one tick of the file system's clock: the tick is that of the kernel's coarse
 * clock, 10 ms at most, or up to 2 s where times have no fraction. While such a change is still possible, judged by
 * the change time, which nobody can set, the tag is weak. */
static bool may_change_unseen(const struct stat *status)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int64_t age =
        (int64_t)(now.tv_sec - status->st_ctim.tv_sec) * 1000 + (now.tv_nsec - status->st_ctim.tv_nsec) / 1000000;
    return age < (status->st_ctim.tv_nsec == 0 ? 2000 : 20);
}

#define ETAG_MAX 64

/* What is said about the file, but for what its status says. Of a sibling, what is said of the file that it stands for.
 */
static struct response_about about_path(const struct files_root *root, const char *path, enum http_coding coding)
{
    char plain[PATH_MAX];
    if (coding != HTTP_IDENTITY) {
        snprintf(plain, sizeof plain, "%.*s", (int)(strlen(path) - strlen(http_coding_suffix(coding))), path);
        path = plain;
    }
    const char *slash = strrchr(path, '/');
    struct response_about about = {
        .type = http_mime_type(slash == NULL ? path : slash + 1),
        .coding = http_coding_name(coding),
        .varies = root->precompressed,
    };
    if (root->extras != NULL) {
        about.header = root->extras->header;
        about.header_length = root->extras->header_length;
        about.cache = http_extras_cache(root->extras, path);
    }
    return about;
}

/* Everything that is said about the file. */
static void entry_describe(struct entry *entry, bool weak, struct response_about about)
{
    char *etag = entry->text;
    int length = snprintf(etag, ETAG_MAX, "W/\"%llx-%llx-%llx\"", (unsigned long long)entry->status.st_size,
                          (unsigned long long)entry->status.st_mtim.tv_sec * 1000000000u +
                              (unsigned long long)entry->status.st_mtim.tv_nsec,
                          (unsigned long long)entry->status.st_ino);
    struct file *file = &entry->file;
    file->size = about.size = (uint64_t)entry->status.st_size;
    /* A date in the future would be no date for comparing (RFC 9110, 8.8.2.1). */
    time_t now = time(NULL);
    file->modified = about.modified = entry->status.st_mtim.tv_sec < now ? entry->status.st_mtim.tv_sec : now;
    file->weak = weak;
    file->etag = (struct slice){etag + 2, (size_t)length - 2};
    about.etag = etag + (weak ? 0 : 2);
    response_fields_make(&about, entry->fields, &file->fields);
}

static bool same(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size && a->st_mode == b->st_mode &&
           a->st_nlink == b->st_nlink && a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
           a->st_mtim.tv_nsec == b->st_mtim.tv_nsec && a->st_ctim.tv_sec == b->st_ctim.tv_sec &&
           a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

/* What opening found. */
struct found {
    int fd;
    struct stat status;
    bool symlinks;
    enum trust trust;
};

static bool entry_may_be_watched(const struct files *files, const struct entry *entry)
{
    return files->inotify >= 0 && !entry->symlinks && entry->trust == TRUST_WATCHES;
}

static struct directory *entry_directory(const struct entry *entry)
{
    return directory_find(entry->root, entry->path, directory_length(entry->path, entry->path_length));
}

/* Let watches vouch for the file, if they can. Its status must be read once more after this: until then nobody has seen
 * what changed before the watch was placed. */
static void entry_vouch(struct files *files, struct entry *entry)
{
    struct directory *directory = entry_may_be_watched(files, entry) ? entry_directory(entry) : NULL;
    if (directory == NULL || !directory->watched || !entry_watch(files, entry))
        return;
    entry->directory = directory;
    directory_hold(directory);
}

/* The same for a path that is known to lead to the file: unless something has happened to it since its status was read.
 */
static void entry_vouch_now(struct files *files, struct entry *entry)
{
    struct stat status;
    entry_vouch(files, entry);
    if (entry->directory != NULL &&
        (fstat(sluice_end_fd(entry->file.end), &status) < 0 || !same(&status, &entry->status)))
        entry_unwatch(files, entry);
}

/* Make an entry of an open file, and remember it. Takes found->fd in every case. certain: no event came since before
 * the file's status was read. Returns a reference, or a negative errno. */
static int entry_add(struct files_root *root, const char *path, size_t length, enum http_coding coding,
                     struct found *found, bool certain, struct file **ret_file)
{
    CLEANUP_FD int fd = found->fd;
    struct files *files = root->files;
    uint64_t hash = hash_path(root, path, length);
    struct entry *old = entry_find(root, path, length, hash, coding);
    if (old != NULL)
        entry_uncache(files, old);

    struct response_about about = about_path(root, path, coding);
    struct entry *entry = calloc(1, sizeof *entry + ETAG_MAX + length + 1 + response_fields_room(&about));
    if (entry == NULL)
        return -ENOMEM;
    entry->root = root;
    entry->status = found->status;
    entry->trust = found->trust;
    entry->symlinks = found->symlinks;
    entry->wd = -1;
    entry->file.coding = (uint8_t)coding;
    entry->file.negotiable = root->precompressed && coding == HTTP_IDENTITY;
    entry->path = entry->text + ETAG_MAX;
    entry->fields = entry->path + length + 1;
    memcpy(entry->path, path, length);
    entry->path_length = length;
    entry->hash = hash;
    unsigned flags = files->end_flags | SLUICE_END_OWN_FD;
    if (root->drop_from != 0 && (uint64_t)entry->status.st_size >= root->drop_from)
        flags |= SLUICE_END_DROP_BEHIND;
    int r = sluice_end_open(fd, flags, &entry->file.end);
    if (r < 0) {
        free(entry);
        return r;
    }
    (void)TAKE_FD(fd);
    entry_describe(entry, may_change_unseen(&entry->status), about);

    if (certain)
        entry_vouch_now(files, entry);
    entry->checked = entry->looked_up = sluice_loop_now(files->loop);
    entry->chain = files->table[hash & files->table_mask];
    files->table[hash & files->table_mask] = entry;
    list_init(&entry->lru);
    list_add_last(&files->lru, &entry->lru);
    entry->cached = true;
    entry->refs = 1;
    files->cached++;
    files->counts.opens++;
    if (files->cached > files->capacity) {
        struct entry *oldest = LIST_OBJECT(files->lru.next, struct entry, lru);
        if (oldest != entry)
            entry_uncache(files, oldest);
    }
    *ret_file = &entry->file;
    return 1;
}

void files_release(struct files *files, struct file *file)
{
    (void)files;
    if (file == NULL)
        return;
    struct entry *entry = entry_of(file);
    if (--entry->refs == 0 && !entry->cached)
        entry_free(entry);
}

/* ---- Opening --------------------------------------------------------------------------------------------------- */

/* Open a regular file and read its status. In two steps: what is no regular file is never opened, as that alone does
 * something to a FIFO, a tape or a terminal. Any thread. Leaves ret_found->trust alone: statfs may wait for a server.
 */
static int open_regular(const struct beneath *beneath, const char *path, bool cached, struct found *ret_found)
{
    for (unsigned attempt = 0; attempt < 8; attempt++) {
        struct stat before;
        CLEANUP_FD int handle = beneath_open(beneath, path, O_PATH, cached, NULL);
        if (handle < 0)
            return handle;
        if (fstat(handle, &before) < 0)
            return -errno;
        if (S_ISDIR(before.st_mode))
            return -EISDIR;
        if (!S_ISREG(before.st_mode))
            return -ENOENT;
        CLEANUP_FD int fd = beneath_open(beneath, path, FIFO_SAFE, cached, &ret_found->symlinks);
        if (fd < 0)
            return fd;
        if (fstat(fd, &ret_found->status) < 0)
            return -errno;
        if (ret_found->status.st_ino != before.st_ino || ret_found->status.st_dev != before.st_dev)
            continue; /* replaced in between: look again */
        ret_found->fd = TAKE_FD(fd);
        return 0;
    }
    return -EAGAIN;
}

/* Is the file behind the path still the one that we have open, and unchanged? 1 yes; 0 it may take time to tell; a
 * negative errno otherwise (-ESTALE: another one). */
static int entry_check(struct entry *entry)
{
    if (entry->trust == TRUST_NOTHING)
        return 0;
    struct stat status;
    bool symlinks;
    CLEANUP_FD int fd = beneath_open(&entry->root->beneath, entry->path, O_PATH, true, &symlinks);
    if (fd == -EAGAIN)
        return 0;
    if (fd < 0)
        return fd;
    if (fstat(fd, &status) < 0)
        return -errno;
    return same(&status, &entry->status) && symlinks == entry->symlinks ? 1 : -ESTALE;
}

static void entry_confirm(struct files *files, struct entry *entry)
{
    entry->checked = sluice_loop_now(files->loop);
    entry->lacks = 0;
    if (entry->file.weak && !may_change_unseen(&entry->status))
        entry_describe(entry, false, about_path(entry->root, entry->path, (enum http_coding)entry->file.coding));
}

static void entry_use(struct files *files, struct entry *entry)
{
    entry->refs++;
    if (files->lru.previous != &entry->lru) {
        list_remove(&entry->lru);
        list_add_last(&files->lru, &entry->lru);
    }
}

/* Directories are watched by helpers. Nothing came of it when an event was read meanwhile: try again, now and then. */
static bool wants_look_up(struct files *files, struct entry *entry)
{
    uint64_t now = sluice_loop_now(files->loop);
    if (now - entry->looked_up < CHECK_INTERVAL || !entry_may_be_watched(files, entry) ||
        entry_directory(entry) != NULL)
        return false;
    entry->looked_up = now;
    return true;
}

__attribute__((always_inline)) static inline int find(struct files_root *root, const char *path, size_t length,
                                                      enum http_coding coding, struct file **ret_file)
{
    struct files *files = root->files;
    struct entry *entry = entry_find(root, path, length, hash_path(root, path, length), coding);
    if (entry != NULL) {
        /* Unsigned: a clock that stood still gives 0. */
        if (entry->directory != NULL && sluice_loop_now(files->loop) - entry->checked < CHECK_INTERVAL) {
            files->counts.hits++;
        } else {
            bool vouched = entry->directory != NULL;
            files->counts.checks++;
            if (!vouched) { /* an event came in between when it was opened, or a watch could not be had */
                if (wants_look_up(files, entry))
                    return 0;
                entry_vouch(files, entry);
            }
            int r = entry_check(entry);
            if (r == 0) {
                if (!vouched)
                    entry_unwatch(files, entry);
                return 0;
            }
            if (r < 0) {
                files->counts.dropped++;
                entry_uncache(files, entry);
                entry = NULL;
            } else {
                entry_confirm(files, entry);
            }
        }
    }
    if (entry != NULL) {
        entry_use(files, entry);
        *ret_file = &entry->file;
        return 1;
    }

    /* Not known. If the directory is, and everything about it is in memory, opening takes a few microseconds. */
    if (directory_find(root, path, directory_length(path, length)) == NULL)
        return 0;
    struct found found = {.fd = -1};
    int r = open_regular(&root->beneath, path, true, &found);
    if ((r == -EMFILE || r == -ENFILE) && files_shed(files, 8) > 0)
        r = open_regular(&root->beneath, path, true, &found);
    if (r == -EAGAIN)
        return 0;
    if (r < 0)
        return r;
    if (!root->device_known || found.status.st_dev != root->known_device) {
        close_fd(found.fd);
        return 0; /* what file system is it? Asking may wait for a server */
    }
    found.trust = root->known_trust;
    return entry_add(root, path, length, coding, &found, true, ret_file);
}

int files_find(struct files_root *root, const char *path, size_t length, struct file **ret_file)
{
    return find(root, path, length, HTTP_IDENTITY, ret_file);
}

/* The path of the sibling in buffer. Returns its length, or -ENAMETOOLONG. */
static int coded_path(const struct entry *entry, enum http_coding coding, char buffer[static PATH_MAX])
{
    int length = snprintf(buffer, PATH_MAX, "%s%s", entry->path, http_coding_suffix(coding));
    return length < PATH_MAX ? length : -ENAMETOOLONG;
}

int files_find_coded(struct file *file, enum http_coding coding, struct file **ret_file)
{
    struct entry *entry = entry_of(file);
    if (entry->lacks & 1u << coding)
        return -ENOENT;
    char path[PATH_MAX];
    int length = coded_path(entry, coding, path);
    int r = length < 0 ? length : find(entry->root, path, (size_t)length, coding, ret_file);
    if (r == -ENOENT && entry->directory != NULL)
        entry->lacks |= (uint8_t)(1u << coding);
    return r;
}

/* ---- Looking up on a helper ------------------------------------------------------------------------------------ */

struct files_lookup {
    struct files_root *root;
    files_found_fn *done; /* NULL: cancelled */
    void *context;
    uint64_t events; /* files.events when it began */
    bool second;     /* tried again after making room for a descriptor */
    int result;
    int refused; /* why a directory could not be watched; 0: all were */
    struct found found;
    unsigned depth;  /* directories above the file, the root included */
    unsigned placed; /* of them, those that exist: watches[] is set */
    enum http_coding coding;
    size_t length;
    char *path;
    int watches[];
};

/* Watch the directories from the root down to the file's. */
static void place_watches(struct files_lookup *lookup)
{
    const struct files_root *root = lookup->root;
    char path[64 + PATH_MAX];
    /* "." is for the root, so that no link is the last component: links there are not followed. */
    size_t base = (size_t)snprintf(path, sizeof path, "/proc/self/fd/%d/", root->beneath.root), length = 0;
    for (lookup->placed = 0; lookup->placed < lookup->depth; lookup->placed++) {
        if (lookup->placed > 0)
            length += strcspn(lookup->path + length + (length > 0), "/") + (length > 0);
        memcpy(path + base, length == 0 ? "." : lookup->path, length == 0 ? 1 : length);
        path[base + (length == 0 ? 1 : length)] = '\0';
        int wd =
            inotify_add_watch(root->files->inotify, path, WATCH_EVENTS | IN_ONLYDIR | IN_DONT_FOLLOW | IN_EXCL_UNLINK);
        /* Symbolic links end here, too (ENOTDIR): what lies behind one is never watched. The root is there, though. */
        if (wd < 0 && length > 0 && errno != ENOSPC && errno != ENOMEM && errno != EACCES)
            return;
        if (wd < 0)
            lookup->refused = errno;
        lookup->watches[lookup->placed] = wd;
    }
}

static void lookup_work(void *context)
{
    struct files_lookup *lookup = context;
    if (lookup->root->files->inotify >= 0)
        place_watches(lookup);
    lookup->found.fd = -1;
    lookup->result = open_regular(&lookup->root->beneath, lookup->path, false, &lookup->found);
    if (lookup->result < 0)
        return;
    struct statfs status;
    lookup->found.trust = fstatfs(lookup->found.fd, &status) == 0 ? trust_of(&status) : TRUST_NOTHING;
}

static void remember_directories(struct files_lookup *lookup)
{
    struct directory *parent = NULL;
    size_t length = 0;
    for (unsigned i = 0; i < lookup->placed; i++) {
        if (i > 0)
            length += strcspn(lookup->path + length + (length > 0), "/") + (length > 0);
        struct directory *directory = directory_find(lookup->root, lookup->path, length);
        if (directory == NULL)
            directory = directory_add(lookup->root, parent, lookup->path, length, lookup->watches[i]);
        if (directory == NULL)
            return;
        parent = directory;
    }
}

static void lookup_finish(void *context)
{
    struct files_lookup *lookup = context;
    struct files_root *root = lookup->root;
    struct files *files = root->files;

    if ((lookup->result == -EMFILE || lookup->result == -ENFILE) && !lookup->second && files_shed(files, 8) > 0 &&
        lookup->done != NULL) {
        lookup->second = true;
        if (sluice_loop_offload(files->loop, lookup_work, lookup_finish, lookup) == 0)
            return;
    }
    files->lookups--;
    if (lookup->refused != 0)
        watch_refused(files, lookup->refused);

    bool certain = files->events == lookup->events;
    if (certain)
        remember_directories(lookup);
    struct file *file = NULL;
    int result = lookup->result;
    if (result == 0) {
        root->device_known = true;
        root->known_device = lookup->found.status.st_dev;
        root->known_trust = lookup->found.trust;
        uint64_t hash = hash_path(root, lookup->path, lookup->length);
        struct entry *entry = entry_find(root, lookup->path, lookup->length, hash, lookup->coding);
        /* Another descriptor for the same file is of no use: what was learned about the old end would be lost. */
        if (entry != NULL && same(&entry->status, &lookup->found.status)) {
            close_fd(lookup->found.fd);
            if (entry->directory == NULL && certain)
                entry_vouch_now(files, entry);
            entry_confirm(files, entry);
            entry_use(files, entry);
            file = &entry->file;
            result = 1;
        } else {
            result = entry_add(root, lookup->path, lookup->length, lookup->coding, &lookup->found, certain, &file);
        }
    }
    files_found_fn *done = lookup->done;
    void *done_context = lookup->context;
    free(lookup);
    if (done != NULL)
        done(done_context, result, file);
    else
        files_release(files, file);
}

static int look_up(struct files_root *root, const char *path, size_t length, enum http_coding coding,
                   files_found_fn *done, void *context, struct files_lookup **ret_lookup)
{
    struct files *files = root->files;
    unsigned depth = 1;
    for (const char *at = memchr(path, '/', length); at != NULL;
         at = memchr(at + 1, '/', length - (size_t)(at + 1 - path)))
        depth++;
    size_t size = sizeof(struct files_lookup) + depth * sizeof(int);
    struct files_lookup *lookup = calloc(1, size + length + 1);
    if (lookup == NULL)
        return -ENOMEM;
    lookup->root = root;
    lookup->done = done;
    lookup->context = context;
    lookup->events = files->events;
    lookup->depth = depth;
    lookup->coding = coding;
    lookup->length = length;
    lookup->path = (char *)lookup + size;
    memcpy(lookup->path, path, length);
    int r = sluice_loop_offload(files->loop, lookup_work, lookup_finish, lookup);
    if (r < 0) {
        free(lookup);
        return r;
    }
    files->lookups++;
    *ret_lookup = lookup;
    return 0;
}

int files_look_up(struct files_root *root, const char *path, size_t length, files_found_fn *done, void *context,
                  struct files_lookup **ret_lookup)
{
    return look_up(root, path, length, HTTP_IDENTITY, done, context, ret_lookup);
}

int files_look_up_coded(struct file *file, enum http_coding coding, files_found_fn *done, void *context,
                        struct files_lookup **ret_lookup)
{
    char path[PATH_MAX];
    struct entry *entry = entry_of(file);
    int length = coded_path(entry, coding, path);
    return length < 0 ? length : look_up(entry->root, path, (size_t)length, coding, done, context, ret_lookup);
}

void files_cancel(struct files_lookup *lookup)
{
    lookup->done = NULL;
}

/* ---- Events ---------------------------------------------------------------------------------------------------- */

static void drop_path(struct files_root *root, const char *path, size_t length, enum http_coding coding)
{
    struct entry *entry = entry_find(root, path, length, hash_path(root, path, length), coding);
    if (entry != NULL) {
        root->files->counts.dropped++;
        entry_uncache(root->files, entry);
    }
}

/* What is known of this path as a sibling. */
static void drop_coded(struct files_root *root, const char *path, size_t length)
{
    for (enum http_coding coding = HTTP_IDENTITY + 1; coding < HTTP_CODINGS; coding++) {
        const char *suffix = http_coding_suffix(coding);
        size_t rest = length - strlen(suffix);
        if (length <= strlen(suffix) || memcmp(path + rest, suffix, strlen(suffix)) != 0)
            continue;
        drop_path(root, path, length, coding);
        struct entry *entry = entry_find(root, path, rest, hash_path(root, path, rest), HTTP_IDENTITY);
        if (entry != NULL)
            entry->lacks = 0;
    }
}

static void handle_event(struct files *files, const struct inotify_event *event)
{
    files->events++;
    bool overflow = (event->mask & IN_Q_OVERFLOW) != 0;
    struct entry *file = overflow ? NULL : entry_by_wd(files, event->wd);
    if (file != NULL) {
        for (; file != NULL; file = entry_by_wd(files, event->wd)) {
            files->counts.dropped++;
            entry_uncache(files, file);
        }
        return;
    }
    struct directory *directory = overflow ? NULL : directory_by_wd(files, event->wd);
    if (directory == NULL && !overflow) {
        /* A watch that nobody remembers: placed for a lookup that came to nothing. A lookup under way may be about to
         * ask for the same one, though. */
        if (files->lookups == 0 && !(event->mask & IN_IGNORED))
            inotify_rm_watch(files->inotify, event->wd);
        return;
    }
    bool moved = (event->mask & IN_ISDIR) && (event->mask & (IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE | IN_ATTRIB));
    if (directory == NULL || moved || event->len == 0) {
        /* Events were lost, or a directory has changed its place or permissions: rare enough for starting afresh. */
        drop_everything(files);
        return;
    }
    /* It may be reached by several paths: beneath several roots, or by a bind mount. */
    for (; directory != NULL; directory = directory_with_wd(directory->wd_chain, event->wd)) {
        char path[PATH_MAX + NAME_MAX + 2];
        int length =
            snprintf(path, sizeof path, "%s%s%s", directory->path, directory->length > 0 ? "/" : "", event->name);
        drop_path(directory->root, path, (size_t)length, HTTP_IDENTITY);
        if (directory->root->precompressed)
            drop_coded(directory->root, path, (size_t)length);
    }
}

static void read_events(void *context)
{
    struct files *files = context;
    _Alignas(struct inotify_event) char buffer[8192];
    for (;;) {
        ssize_t size = read(files->inotify, buffer, sizeof buffer);
        if (size < 0 && errno == EINTR)
            continue;
        if (size <= 0)
            return;
        for (char *at = buffer; at < buffer + size;) {
            const struct inotify_event *event = (const struct inotify_event *)(const void *)at;
            handle_event(files, event);
            at += sizeof *event + event->len;
        }
    }
}

/* ---- The whole ------------------------------------------------------------------------------------------------- */

int files_new(const struct files_options *options, struct files **ret_files)
{
    struct files *files = calloc(1, sizeof *files);
    if (files == NULL)
        return -ENOMEM;
    files->loop = options->loop;
    files->end_flags = options->end_flags;
    files->capacity = options->capacity > 0 ? options->capacity : 1;
    files->roots = calloc(options->root_count, sizeof *files->roots);
    list_init(&files->lru);
    list_init(&files->idle);
    size_t buckets = 64;
    while (buckets < 2 * (size_t)files->capacity)
        buckets *= 2;
    files->table_mask = buckets - 1;
    files->table = calloc(buckets, sizeof(struct entry *));
    files->entries_by_wd = calloc(buckets, sizeof(struct entry *));
    files->complain = options->complain;
    files->complain_context = options->complain_context;
    files->inotify = options->unwatched ? -1 : inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (files->inotify < 0 && !options->unwatched)
        complain(files, "inotify: none to be had; sysctl fs.inotify.max_user_instances says how many there are", errno);
    int r = files->roots == NULL || files->table == NULL || files->entries_by_wd == NULL ? -ENOMEM : 0;
    for (unsigned i = 0; r == 0 && i < options->root_count; i++) {
        struct files_root *root = &files->roots[i];
        root->files = files;
        root->precompressed = options->roots[i].precompressed;
        root->drop_from = options->roots[i].drop_from;
        root->extras = options->roots[i].extras;
        root->seed = 0x9e3779b97f4a7c15u * (i + 1);
        beneath_init(&root->beneath, options->roots[i].directory, options->roots[i].symlinks, options->walk);
    }
    if (r == 0 && files->inotify >= 0)
        r = sluice_loop_watch(files->loop, files->inotify, read_events, files, &files->watch);
    if (r < 0) {
        files_free(files);
        return r;
    }
    *ret_files = files;
    return 0;
}

void files_free(struct files *files)
{
    if (files == NULL)
        return;
    drop_everything(files);
    sluice_watch_free(files->watch);
    close_fd(files->inotify);
    free(files->entries_by_wd);
    free(files->table);
    free(files->roots);
    free(files);
}

struct files_root *files_root(struct files *files, unsigned number)
{
    return &files->roots[number];
}

bool files_busy(const struct files *files)
{
    return files->lookups > 0;
}

const struct beneath *files_beneath(const struct files_root *root)
{
    return &root->beneath;
}

void files_count(const struct files *files, struct files_counts *ret_counts)
{
    *ret_counts = files->counts;
    ret_counts->open = files->cached;
    ret_counts->directories = files->directory_count;
}
