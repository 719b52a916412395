/* SPDX-License-Identifier: MIT
 *
 * A node is a directory on its way. Its life:
 *
 *   state       set by            what is true
 *   waiting     node_new          its name was read; it lies on the stack of its tree
 *   open        start_directory   made at the target, listed, entries being copied; under a temporary name if it has
 *                                 files (staged)
 *   published   publish           its own entries are complete; under its final name
 *   finished    finish            everything beneath it is, too; it has its attributes
 *
 * Invariants, under tree->lock where not said otherwise
 *   1. node->work counts what keeps the node from being published: its list being read or worked on (1), and names that
 *      wait for the first of their hard links (1 each). node->children counts directories in it that are not finished.
 *      Who brings the last of both to zero finishes the node, and after it perhaps its parent.
 *   2. A node's descriptors may be closed whenever node->pins is 0, and are opened again from its nearest open
 * ancestor; so the number of open descriptors is bounded, whatever the depth. They must then lead to the same
 * directory.
 *   3. A node lives as long as it is unfinished, has living children, or is where the first of several hard links is
 *      (node->references).
 *   4. A list's entries are taken by index, each by one thread; the last thread to leave it reads on, or ends it.
 */
#include "tree.h"
#include "attributes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/list.h"
#include "base/text.h"
#include "links.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

/* Entries that a thread takes from a list at a time: few, as one of them may be large. */
#define GRAB 8
/* So many entries are read of a directory before they are worked on: they are sorted by inode, which is the order in
 * which they lie on many disks, and memory stays bounded. */
#define LIST_MAX (64u << 10)
#define LIST_BUFFER (128u << 10)
/* Directories kept open at most, two descriptors each. */
#define OPEN_MAX_NODES 1024

struct identity {
    dev_t device;
    ino_t inode;
};

struct node {
    struct place place; /* first: messages are about places. The names are owned */
    struct node *parent;
    struct node *way_down; /* used while ancestors are opened again */
    struct list all;       /* tree->nodes */
    struct list idle;      /* tree->idle: open and not pinned */
    struct node *below;    /* tree->waiting, a stack */
    unsigned pins, references;
    uint64_t work, children;
    int source_fd;
    struct target target;
    struct identity source, made; /* what the descriptors must lead to */
    struct stat status;
    char *staged_name; /* the temporary name, until it is published */
    bool follow;       /* an operand with a slash behind it: "link/" */
    bool failed;       /* never made, or not to be finished */
};

struct entry {
    size_t source_name, target_name; /* where they begin in listing->names */
    ino_t inode;
    unsigned char type;
};

struct listing {
    struct node *node;
    struct list link; /* tree->active */
    struct entry *entries;
    size_t count, size;
    atomic_size_t next;
    unsigned threads; /* working on it */
    char *names;
    size_t names_used, names_size;
    bool more; /* the directory goes on */
};

struct worker {
    struct tree *tree;
    struct copier copier;
    pthread_t thread;
    char *buffer; /* for getdents64 */
};

struct tree {
    struct tree_options options;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* work came, or the end */
    pthread_cond_t ended;
    struct node *top;
    struct node *waiting;
    struct list active, idle, nodes;
    unsigned busy, open_nodes, open_max, running;
    bool done;
    atomic_bool full;
    struct links *links;
    struct listing *operands;
    struct worker *workers;
    unsigned worker_count;
};

static bool stopped(const struct tree *tree)
{
    return atomic_load_explicit(tree->options.stop, memory_order_relaxed) ||
           atomic_load_explicit(&tree->full, memory_order_relaxed);
}

/* ---- Nodes ------------------------------------------------------------------------------------------------------ */

static struct node *node_new(struct tree *tree, struct node *parent, const char *source_name, const char *target_name)
{
    struct node *node = calloc(1, sizeof *node);
    if (node == NULL)
        return NULL;
    node->place.source_name = strdup(source_name);
    node->place.target_name = strcmp(source_name, target_name) == 0 ? node->place.source_name : strdup(target_name);
    if (node->place.source_name == NULL || node->place.target_name == NULL) {
        free((char *)node->place.source_name);
        free(node);
        return NULL;
    }
    node->parent = parent;
    node->place.parent = parent != NULL ? &parent->place : NULL;
    node->source_fd = node->target.fd = -1;
    node->references = 1;
    list_init(&node->idle);
    list_add_last(&tree->nodes, &node->all);
    return node;
}

static void node_close(struct tree *tree, struct node *node)
{
    if (node == tree->top || node->target.fd < 0)
        return;
    list_remove(&node->idle);
    node->source_fd = close_fd(node->source_fd);
    node->target.fd = close_fd(node->target.fd);
    tree->open_nodes--;
}

static void node_destroy(struct tree *tree, struct node *node)
{
    node_close(tree, node);
    list_remove(&node->all);
    list_remove(&node->idle);
    if (node->place.target_name != node->place.source_name)
        free((char *)node->place.target_name);
    free((char *)node->place.source_name);
    free(node->staged_name);
    free(node);
}

/* Under the lock. */
static void node_release(struct tree *tree, struct node *node)
{
    while (node != NULL && --node->references == 0) {
        struct node *parent = node->parent;
        node_destroy(tree, node);
        node = parent;
    }
}

static void close_some(struct tree *tree)
{
    while (tree->open_nodes > tree->open_max && !list_empty(&tree->idle))
        node_close(tree, LIST_OBJECT(tree->idle.next, struct node, idle));
}

/* A directory of the source. Its access time is left alone where that is permitted. */
static int open_directory(int parent, const char *name, int more_flags)
{
    const int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC | more_flags;
    int fd = openat(parent, name, flags | O_NOATIME);
    if (fd < 0 && errno == EPERM)
        fd = openat(parent, name, flags);
    return fd < 0 ? -errno : fd;
}

static bool leads_to(int fd, const struct identity *identity)
{
    struct stat status;
    return fstat(fd, &status) == 0 && status.st_dev == identity->device && status.st_ino == identity->inode;
}

/* Open a node's descriptors again, its parent's being open. Under the lock: it happens in trees deeper or wider than
 * open_max only. */
static int node_reopen(struct tree *tree, struct node *node)
{
    const struct node *parent = node->parent;
    CLEANUP_FD int source = open_directory(parent->source_fd, node->place.source_name, node->follow ? 0 : O_NOFOLLOW);
    if (source < 0)
        return source;
    const char *name = node->staged_name != NULL ? node->staged_name : node->place.target_name;
    CLEANUP_FD int target = openat(parent->target.fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (target < 0)
        return -errno;
    if (!leads_to(source, &node->source) || !leads_to(target, &node->made))
        return -ESTALE; /* somebody moved it */
    node->source_fd = TAKE_FD(source);
    node->target.fd = TAKE_FD(target);
    tree->open_nodes++;
    return 0;
}

static void pin_open(struct node *node)
{
    if (node->pins++ == 0)
        list_remove(&node->idle);
}

/* Under the lock. */
static void node_unpin(struct tree *tree, struct node *node)
{
    if (--node->pins == 0 && node != tree->top && node->target.fd >= 0) {
        list_add_last(&tree->idle, &node->idle);
        close_some(tree);
    }
}

/* See to it that the node's descriptors are open and stay so. Under the lock. */
static int node_pin(struct tree *tree, struct node *node)
{
    struct node *at = node;
    for (at->way_down = NULL; at->target.fd < 0; at = at->parent)
        at->parent->way_down = at;
    pin_open(at);
    while (at != node) {
        struct node *next = at->way_down;
        int result = node_reopen(tree, next);
        if (result == 0)
            pin_open(next);
        node_unpin(tree, at);
        if (result < 0)
            return result;
        at = next;
    }
    return 0;
}

static int pin(struct tree *tree, struct node *node)
{
    pthread_mutex_lock(&tree->lock);
    int result = node_pin(tree, node);
    pthread_mutex_unlock(&tree->lock);
    return result;
}

static void unpin(struct tree *tree, struct node *node)
{
    pthread_mutex_lock(&tree->lock);
    node_unpin(tree, node);
    pthread_mutex_unlock(&tree->lock);
}

/* ---- The end of a directory ------------------------------------------------------------------------------------- */

static void complain_of(struct worker *worker, const struct node *node, enum side side, const char *what, int code)
{
    complain(&worker->copier, &node->place, NULL, side, what, code);
}

/* The staged directory gets its final name. What is in the way appeared while it was filled: an empty directory is
 * replaced, anything else stays, and so does the temporary name. */
static int publish(struct tree *tree, struct node *node)
{
    if (node->staged_name == NULL)
        return 0;
    int result = pin(tree, node->parent);
    if (result < 0)
        return result;
    int parent = node->parent->target.fd;
    /* Under the lock, as who opens the node again must know under which name. */
    pthread_mutex_lock(&tree->lock);
    char *temporary = node->staged_name;
    if (renameat(parent, temporary, parent, node->place.target_name) < 0) {
        result = -errno;
        temporary = NULL;
    } else {
        node->staged_name = NULL;
        node->target.staged = false;
    }
    node_unpin(tree, node->parent);
    pthread_mutex_unlock(&tree->lock);
    free(temporary);
    return result;
}

static void publish_or_complain(struct worker *worker, struct node *node)
{
    int result = publish(worker->tree, node);
    if (result < 0) {
        node->failed = true;
        CLEANUP_FREE char *path = place_path(&node->place, NULL, TARGET);
        report_failure(worker->tree->options.report, "cannot rename %s, as which it was filled, to %s: %s (%s)",
                       node->staged_name, path, text_errno_meaning(result), text_errno_name(result));
    }
}

/* A directory that may be written to and not be listed is open with O_PATH only: what is in it is written by way of a
 * file there, with all of its file system. */
static int sync_directory(int fd)
{
    if (fsync(fd) == 0)
        return 0;
    if (errno != EBADF)
        return -errno;
    CLEANUP_FD int file = openat(fd, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
    return file < 0 || syncfs(file) < 0 ? -errno : 0;
}

/* Everything in it is complete. */
static void finish(struct worker *worker, struct node *node)
{
    struct tree *tree = worker->tree;
    if (node->failed || stopped(tree))
        return;
    if (node == tree->top) {
        int synced = tree->options.settings->sync ? sync_directory(node->target.fd) : 0;
        if (synced < 0)
            complain_of(worker, node, TARGET, "write to the device", synced);
        return;
    }
    int result = pin(tree, node);
    if (result < 0) {
        complain_of(worker, node, TARGET, "open again", result);
        return;
    }
    struct attributed source = {.fd = node->source_fd}, made = {.fd = node->target.fd};
    struct stat now;
    const char *what = "look at";
    if (fstat(made.fd, &now) < 0) {
        result = -errno;
    } else {
        /* A default list of the directory above was taken away when this one was made (make_directory). */
        struct attributes_at_hand at_hand = {
            .uid = now.st_uid, .gid = now.st_gid, .mode = now.st_mode & 07777, .inherits_acl = !node->target.made};
        result = attributes_apply(tree->options.report, &source, &made, &node->status, &at_hand, &what);
    }
    if (result != 0)
        complain_of(worker, node, TARGET, what, result);
    if (tree->options.settings->sync && fsync(made.fd) < 0)
        complain_of(worker, node, TARGET, "write to the device", -errno);
    unpin(tree, node);
    tally_add(&tree->options.report->tally.directories, 1);
}

/* One reason less for which the node is not published. */
static void work_done(struct worker *worker, struct node *node)
{
    struct tree *tree = worker->tree;
    pthread_mutex_lock(&tree->lock);
    bool last = --node->work == 0;
    pthread_mutex_unlock(&tree->lock);
    if (!last)
        return;
    publish_or_complain(worker, node);
    pthread_mutex_lock(&tree->lock);
    /* The publishing itself counts as a child, see start_directory. */
    while (--node->children == 0) {
        pthread_mutex_unlock(&tree->lock);
        finish(worker, node);
        pthread_mutex_lock(&tree->lock);
        struct node *parent = node->parent;
        if (parent == NULL)
            break;
        if (node->pins == 0)
            node_close(tree, node);
        node_release(tree, node);
        node = parent;
    }
    pthread_mutex_unlock(&tree->lock);
}

/* ---- Entries ---------------------------------------------------------------------------------------------------- */

static void copy_entry(struct worker *worker, struct node *node, const char *source_name, const char *target_name,
                       unsigned char type);

/* The names that waited for the first of their hard links. */
static void copy_waiting(struct worker *worker, struct name *waiting)
{
    struct tree *tree = worker->tree;
    while (waiting != NULL) {
        struct name *name = waiting;
        waiting = name->next;
        int result = stopped(tree) ? -ECANCELED : pin(tree, name->node);
        if (result == 0) {
            copy_entry(worker, name->node, name->source_name, name->target_name, DT_UNKNOWN);
            unpin(tree, name->node);
        } else if (result != -ECANCELED) {
            complain(&worker->copier, &name->node->place, name->target_name, TARGET, "link", result);
        }
        work_done(worker, name->node);
        name_free(name);
    }
}

static enum outcome link_entry(struct worker *worker, const struct spot *spot, const struct item *item,
                               const struct name *first)
{
    struct tree *tree = worker->tree;
    int result = pin(tree, first->node);
    if (result < 0) {
        complain(&worker->copier, spot->place, spot->target_name, TARGET, "link", result);
        return OUTCOME_FAILED;
    }
    enum outcome outcome = entry_link(&worker->copier, spot, item, first->node->target.fd, first->target_name);
    unpin(tree, first->node);
    return outcome;
}

static void copy_with_links(struct worker *worker, struct node *node, const struct spot *spot, struct item *item)
{
    struct tree *tree = worker->tree;
    const struct name *first;
    /* Counted before anybody can settle it. */
    pthread_mutex_lock(&tree->lock);
    node->work++;
    node->references++;
    pthread_mutex_unlock(&tree->lock);
    int answer = links_ask(tree->links, &item->status, item->there, node, spot->source_name, spot->target_name, &first);
    if (answer == LINKS_LATER) {
        close_fd(item->fd);
        pthread_mutex_lock(&tree->lock);
        node->references--; /* while it works on it, it lives */
        pthread_mutex_unlock(&tree->lock);
        return;
    }
    struct stat status = item->status;
    bool copied = false;
    bool keep = item->there && tree->options.settings->no_clobber;
    enum outcome linked = answer == LINKS_LINK && !keep ? link_entry(worker, spot, item, first) : OUTCOME_SKIPPED;
    if (linked != OUTCOME_SKIPPED)
        close_fd(item->fd);
    else if (item->there)
        tally_add(&worker->copier.report->tally.skipped, 1);
    else
        copied = entry_copy(&worker->copier, spot, item) == OUTCOME_DONE;
    if (answer == LINKS_COPY)
        copy_waiting(worker, links_settle(tree->links, &status, copied));
    pthread_mutex_lock(&tree->lock);
    if (answer != LINKS_KEEP && (answer != LINKS_COPY || !copied))
        node_release(tree, node);
    node->work--;
    pthread_mutex_unlock(&tree->lock);
}

static void copy_entry(struct worker *worker, struct node *node, const char *source_name, const char *target_name,
                       unsigned char type)
{
    struct spot spot = {
        .place = &node->place,
        .source_name = source_name,
        .target_name = target_name,
        .source_fd = node->source_fd,
        .target = &node->target,
    };
    struct item item;
    enum outcome outcome = entry_examine(&worker->copier, &spot, type, &item);
    bool there = outcome == OUTCOME_SKIPPED && item.there && item.status.st_nlink > 1;
    if (outcome == OUTCOME_SKIPPED && !there)
        tally_add(&worker->copier.report->tally.skipped, 1);
    if (outcome != OUTCOME_DONE && !there)
        return;
    if (S_ISDIR(item.status.st_mode)) {
        complain(&worker->copier, &node->place, source_name, SOURCE, "copy what was replaced meanwhile:", -ESTALE);
        close_fd(item.fd);
    } else if (item.status.st_nlink > 1) {
        copy_with_links(worker, node, &spot, &item);
    } else {
        entry_copy(&worker->copier, &spot, &item);
    }
}

/* ---- Lists ------------------------------------------------------------------------------------------------------ */

static void listing_free(struct listing *listing)
{
    if (listing == NULL)
        return;
    free(listing->names);
    free(listing->entries);
    free(listing);
}

static int by_inode(const void *a, const void *b)
{
    ino_t first = ((const struct entry *)a)->inode, second = ((const struct entry *)b)->inode;
    return (first > second) - (first < second);
}

static bool is_dot(const char *name)
{
    return name[0] == '.' && (name[1] == '\0' || (name[1] == '.' && name[2] == '\0'));
}

static int note_name(struct listing *listing, const char *name, size_t *ret_at)
{
    size_t length = strlen(name) + 1;
    if (listing->names_size - listing->names_used < length) {
        size_t size = max_size(listing->names_size * 2, listing->names_used + length + 4096);
        char *names = realloc(listing->names, size);
        if (names == NULL)
            return -ENOMEM;
        listing->names = names;
        listing->names_size = size;
    }
    memcpy(listing->names + listing->names_used, name, length);
    *ret_at = listing->names_used;
    listing->names_used += length;
    return 0;
}

/* target_name: NULL for the same. */
static int note_entry(struct listing *listing, const char *source_name, const char *target_name, ino_t inode,
                      unsigned char type)
{
    struct entry entry = {.inode = inode, .type = type};
    if (listing->count == listing->size) {
        size_t size = max_size(listing->size * 2, 64);
        struct entry *entries = realloc(listing->entries, size * sizeof *entries);
        if (entries == NULL)
            return -ENOMEM;
        listing->entries = entries;
        listing->size = size;
    }
    int result = note_name(listing, source_name, &entry.source_name);
    entry.target_name = entry.source_name;
    if (result == 0 && target_name != NULL)
        result = note_name(listing, target_name, &entry.target_name);
    if (result == 0)
        listing->entries[listing->count++] = entry;
    return result;
}

/* Read on in a directory, until its end or LIST_MAX entries: directories become nodes, in *ret_first (a chain by below,
 * in reading order), the rest entries of listing. Returns 0 or a negative errno; what was read before is there. */
static int read_directory(struct worker *worker, struct node *node, int fd, struct listing *listing,
                          struct node **ret_children)
{
    struct tree *tree = worker->tree;
    struct node **last = ret_children;
    size_t seen = 0;
    int result = 0;
    listing->more = true;
    while (seen < LIST_MAX && result == 0) {
        ssize_t got = getdents64(fd, worker->buffer, LIST_BUFFER);
        if (got <= 0) {
            listing->more = false;
            result = got < 0 && errno != ENOENT ? -errno : 0; /* ENOENT: it was removed; then it is empty */
            break;
        }
        for (ssize_t at = 0; at < got && result == 0;) {
            const struct dirent64 *found = (const void *)(worker->buffer + at);
            at += found->d_reclen;
            if (is_dot(found->d_name))
                continue;
            seen++;
            unsigned char type = found->d_type;
            struct stat status;
            if (type == DT_UNKNOWN && fstatat(fd, found->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0)
                type = (unsigned char)IFTODT(status.st_mode);
            if (type != DT_DIR) {
                result = note_entry(listing, found->d_name, NULL, found->d_ino, type);
                continue;
            }
            pthread_mutex_lock(&tree->lock);
            struct node *child = node_new(tree, node, found->d_name, found->d_name);
            if (child != NULL) {
                node->children++;
                node->references++;
            }
            pthread_mutex_unlock(&tree->lock);
            result = child == NULL ? -ENOMEM : 0;
            if (child != NULL)
                *last = child, last = &child->below;
        }
    }
    if (listing->count > 1)
        qsort(listing->entries, listing->count, sizeof *listing->entries, by_inode);
    return result;
}

/* Under the lock: on top of the stack, the first one topmost. */
static void push_children(struct tree *tree, struct node *first)
{
    struct node **last = &first;
    while (*last != NULL)
        last = &(*last)->below;
    *last = tree->waiting;
    tree->waiting = first;
    pthread_cond_broadcast(&tree->changed);
}

/* ---- A directory ------------------------------------------------------------------------------------------------ */

/* By a path, as fgetxattr does not take a descriptor of O_PATH. */
static bool has_default_acl(int fd)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return getxattr(path, "system.posix_acl_default", NULL, 0) > 0;
}

/* Whom a file made in it will belong to: the group is the directory's where that has set-group-ID, or where the file
 * system is mounted so (grpid), which a directory just made in it shows. */
static void foretell(const struct tree *tree, struct target *target, const struct stat *status)
{
    const struct copy_settings *settings = tree->options.settings;
    target->device = status->st_dev;
    target->gid = status->st_mode & S_ISGID ? status->st_gid : settings->gid;
    target->look = !target->made || status->st_uid != settings->uid || (status->st_mode & 0777) != 0700;
    if (target->made && status->st_gid != settings->gid)
        target->gid = status->st_gid;
}

static int make_directory(struct tree *tree, struct node *node, bool staged)
{
    const struct node *parent = node->parent;
    char temporary[TEMPORARY_NAME_SIZE];
    const char *name = node->place.target_name;
    CLEANUP_FREE char *staged_name = NULL;
    for (unsigned tries = 0;; tries++) {
        if (staged) {
            temporary_name(temporary, node->place.target_name);
            name = temporary;
        }
        /* Closed to others until it is finished, as its files may be more open than it is. */
        if (mkdirat(parent->target.fd, name, 0700) == 0)
            break;
        if (errno != EEXIST || !staged || tries == 100)
            return -errno;
    }
    if (staged && (staged_name = strdup(name)) == NULL) {
        unlinkat(parent->target.fd, name, AT_REMOVEDIR);
        return -ENOMEM;
    }
    struct stat status;
    CLEANUP_FD int fd = openat(parent->target.fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0) {
        int result = -errno;
        unlinkat(parent->target.fd, name, AT_REMOVEDIR);
        return result;
    }
    if (parent->target.gives_acl) {
        fremovexattr(fd, "system.posix_acl_default");
        fremovexattr(fd, "system.posix_acl_access");
        if (fchmod(fd, 0700) < 0 || fstat(fd, &status) < 0) {
            int result = -errno;
            unlinkat(parent->target.fd, name, AT_REMOVEDIR);
            return result;
        }
    }
    node->made = (struct identity){status.st_dev, status.st_ino};
    node->target.made = true;
    node->target.staged = staged;
    atomic_store(&node->target.named, atomic_load(&parent->target.named));
    foretell(tree, &node->target, &status);
    node->staged_name = TAKE_POINTER(staged_name);
    node->target.fd = TAKE_FD(fd);
    return 0;
}

/* Into a directory that is there already. Returns 1 when there is none. */
static int use_directory(struct tree *tree, struct node *node)
{
    const struct node *parent = node->parent;
    if (parent->target.made)
        return 1;
    CLEANUP_FD int fd =
        openat(parent->target.fd, node->place.target_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat status;
    if (fd < 0)
        return errno == ENOENT ? 1 : errno == ELOOP ? -ENOTDIR : -errno;
    if (fstat(fd, &status) < 0)
        return -errno;
    node->made = (struct identity){status.st_dev, status.st_ino};
    node->target.gives_acl = has_default_acl(fd);
    foretell(tree, &node->target, &status);
    node->target.fd = TAKE_FD(fd);
    return 0;
}

static bool same(const struct identity *a, const struct identity *b)
{
    return a->device == b->device && a->inode == b->inode;
}

/* Is what is to be copied a directory that was made above the place of its copy? A bind mount can lead there, where
 * the path of the target does not show it; it would have no end. */
static bool was_made_above(const struct node *node)
{
    for (const struct node *at = node->parent; at != NULL; at = at->parent)
        if (at->target.made && same(&at->made, &node->source))
            return true;
    return false;
}

static void refuse(struct worker *worker, const struct node *node, const char *why)
{
    CLEANUP_FREE char *from = place_path(&node->place, NULL, SOURCE);
    CLEANUP_FREE char *to = place_path(&node->place, NULL, TARGET);
    report_failure(worker->tree->options.report, "%s → %s refused: %s", from, to, why);
}

static int open_node(struct worker *worker, struct node *node, struct listing *listing, struct node **ret_children)
{
    struct tree *tree = worker->tree;
    CLEANUP_FD int source =
        open_directory(node->parent->source_fd, node->place.source_name, node->follow ? 0 : O_NOFOLLOW);
    if (source < 0 || fstat(source, &node->status) < 0) {
        complain_of(worker, node, SOURCE, "open", source < 0 ? source : -errno);
        return -1;
    }
    node->source = (struct identity){node->status.st_dev, node->status.st_ino};
    if (was_made_above(node)) {
        refuse(worker, node, "a directory cannot be copied into itself");
        return -1;
    }
    int read = read_directory(worker, node, source, listing, ret_children);
    if (read < 0)
        complain_of(worker, node, SOURCE, "list", read);
    int result = use_directory(tree, node);
    if (result == 1)
        result = make_directory(tree, node, listing->count > 0);
    else if (result == 0 && same(&node->made, &node->source)) {
        refuse(worker, node, "they are the same directory");
        return -1;
    }
    if (result < 0) {
        if (result == -ENOTDIR || result == -EEXIST)
            complain_of(worker, node, TARGET, "replace by a directory, as it is none:", result);
        else
            complain_of(worker, node, TARGET, "make", result);
        return -1;
    }
    node->source_fd = TAKE_FD(source);
    if (tree->options.settings->verbose) {
        CLEANUP_FREE char *from = place_path(&node->place, NULL, SOURCE);
        CLEANUP_FREE char *to = place_path(&node->place, NULL, TARGET);
        report_line(tree->options.report, "%s → %s", from, to);
    }
    return 0;
}

static void abandon_children(struct tree *tree, struct node *children)
{
    while (children != NULL) {
        struct node *next = children->below;
        children->parent->children--;
        node_release(tree, children);
        children = next;
    }
}

static void work_on(struct worker *worker, struct listing *listing);

/* Take it from the stack to its first entries. */
static void start_directory(struct worker *worker, struct node *node)
{
    struct tree *tree = worker->tree;
    struct node *children = NULL;
    struct listing *listing = calloc(1, sizeof *listing);
    node->work = 1;
    node->children = 1; /* its own publishing */
    int result = listing == NULL ? -ENOMEM : pin(tree, node->parent);
    if (result < 0) {
        complain_of(worker, node, TARGET, "open the directory above", result);
    } else {
        result = open_node(worker, node, listing, &children);
        unpin(tree, node->parent);
    }
    pthread_mutex_lock(&tree->lock);
    if (result < 0) {
        abandon_children(tree, children);
        node->target.fd = close_fd(node->target.fd);
        node->failed = true;
    } else {
        tree->open_nodes++;
        node->pins = 1;
        listing->node = node;
        listing->threads = 1;
        list_add_last(&tree->active, &listing->link);
        push_children(tree, children);
        close_some(tree);
    }
    pthread_mutex_unlock(&tree->lock);
    if (result < 0) {
        listing_free(listing);
        work_done(worker, node);
    } else {
        work_on(worker, listing);
    }
}

/* The last thread leaves the list: on to the next part of the directory, or to its end. */
static void end_listing(struct worker *worker, struct listing *listing)
{
    struct tree *tree = worker->tree;
    struct node *node = listing->node;
    while (listing->more && !stopped(tree)) {
        struct node *children = NULL;
        listing->count = listing->names_used = 0;
        int result = read_directory(worker, node, node->source_fd, listing, &children);
        if (result < 0)
            complain_of(worker, node, SOURCE, "list", result);
        atomic_store(&listing->next, 0);
        pthread_mutex_lock(&tree->lock);
        push_children(tree, children);
        if (listing->count > 0) {
            listing->threads = 1;
            list_add_last(&tree->active, &listing->link);
        }
        pthread_mutex_unlock(&tree->lock);
        if (listing->count > 0) {
            work_on(worker, listing);
            return;
        }
    }
    listing_free(listing);
    unpin(tree, node);
    work_done(worker, node);
}

static void work_on(struct worker *worker, struct listing *listing)
{
    struct tree *tree = worker->tree;
    while (!stopped(tree)) {
        size_t at = atomic_fetch_add_explicit(&listing->next, GRAB, memory_order_relaxed);
        if (at >= listing->count)
            break;
        size_t end = min_size(at + GRAB, listing->count);
        for (; at < end && !stopped(tree); at++) {
            const struct entry *entry = &listing->entries[at];
            copy_entry(worker, listing->node, listing->names + entry->source_name, listing->names + entry->target_name,
                       entry->type);
        }
    }
    pthread_mutex_lock(&tree->lock);
    list_remove(&listing->link); /* nobody else need come */
    bool last = --listing->threads == 0;
    pthread_mutex_unlock(&tree->lock);
    if (last)
        end_listing(worker, listing);
}

/* ---- Threads ---------------------------------------------------------------------------------------------------- */

static void *worker_main(void *context)
{
    struct worker *worker = context;
    struct tree *tree = worker->tree;
    pthread_mutex_lock(&tree->lock);
    for (;;) {
        struct node *node = tree->waiting;
        struct listing *listing =
            list_empty(&tree->active) ? NULL : LIST_OBJECT(tree->active.next, struct listing, link);
        if (stopped(tree) || (node == NULL && listing == NULL && tree->busy == 0))
            break;
        if (node == NULL && listing == NULL) {
            pthread_cond_wait(&tree->changed, &tree->lock);
            continue;
        }
        tree->busy++;
        /* A directory of one's own first: two threads in one wait for each other's locks in the kernel. */
        if (node != NULL) {
            tree->waiting = node->below;
            node->below = NULL;
        } else {
            listing->threads++;
        }
        pthread_mutex_unlock(&tree->lock);
        if (node != NULL)
            start_directory(worker, node);
        else
            work_on(worker, listing);
        pthread_mutex_lock(&tree->lock);
        tree->busy--;
    }
    pthread_cond_broadcast(&tree->changed);
    if (--tree->running == 0) {
        tree->done = true;
        pthread_cond_signal(&tree->ended);
    }
    pthread_mutex_unlock(&tree->lock);
    return NULL;
}

static unsigned open_nodes_permitted(unsigned threads)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return 8;
    if (limit.rlim_cur < limit.rlim_max && limit.rlim_cur < 4 * OPEN_MAX_NODES) {
        limit.rlim_cur = limit.rlim_max < 4 * OPEN_MAX_NODES ? limit.rlim_max : 4 * OPEN_MAX_NODES;
        if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
            getrlimit(RLIMIT_NOFILE, &limit);
    }
    /* Beside them each thread has up to eight of a file and of directories on their way. */
    uint64_t taken = 16 + 8 * (uint64_t)threads;
    uint64_t left = limit.rlim_cur > taken ? (limit.rlim_cur - taken) / 2 : 0;
    return (unsigned)min_u64(max_u64(left, 4), OPEN_MAX_NODES);
}

int tree_new(const struct tree_options *options, int target_fd, const char *target_path, struct tree **ret_tree)
{
    struct stat status;
    if (fstat(target_fd, &status) < 0)
        return -errno;
    struct tree *tree = calloc(1, sizeof *tree);
    if (tree == NULL)
        return -ENOMEM;
    tree->options = *options;
    pthread_mutex_init(&tree->lock, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&tree->ended, &clock);
    pthread_condattr_destroy(&clock);
    pthread_cond_init(&tree->changed, NULL);
    list_init(&tree->active);
    list_init(&tree->idle);
    list_init(&tree->nodes);
    tree->open_max = open_nodes_permitted(options->threads_max);
    tree->operands = calloc(1, sizeof *tree->operands);
    tree->workers = calloc(options->threads_max, sizeof *tree->workers);
    if (tree->operands == NULL || tree->workers == NULL || links_new(&tree->links) < 0 ||
        (tree->top = node_new(tree, NULL, "", target_path)) == NULL) {
        tree_free(tree);
        return -ENOMEM;
    }
    struct node *top = tree->top;
    top->source_fd = AT_FDCWD;
    top->target.fd = target_fd;
    top->target.gives_acl = has_default_acl(target_fd);
    top->pins = 1;
    top->work = 1;
    top->children = 1;
    foretell(tree, &top->target, &status);
    tree->operands->node = top;
    *ret_tree = tree;
    return 0;
}

int tree_add(struct tree *tree, const char *source_path, bool directory, const char *target_name)
{
    size_t length = strlen(source_path);
    if (directory) {
        struct node *node = node_new(tree, tree->top, source_path, target_name);
        if (node == NULL)
            return -ENOMEM;
        node->follow = length > 0 && source_path[length - 1] == '/';
        tree->top->children++;
        tree->top->references++;
        struct node **last = &tree->waiting;
        while (*last != NULL)
            last = &(*last)->below;
        *last = node;
        return 0;
    }
    return note_entry(tree->operands, source_path, target_name, 0, DT_UNKNOWN);
}

/* Under the lock. Returns 0 or a negative errno. */
static int start_thread(struct tree *tree)
{
    struct worker *worker = &tree->workers[tree->worker_count];
    *worker = (struct worker){.tree = tree};
    worker->copier = (struct copier){.settings = tree->options.settings,
                                     .report = tree->options.report,
                                     .stop = tree->options.stop,
                                     .full = &tree->full};
    worker->buffer = malloc(LIST_BUFFER);
    if (worker->buffer == NULL)
        return -ENOMEM;
    /* Signals are for the thread that waits for the end, so that no system call of these is interrupted. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int result = -pthread_create(&worker->thread, NULL, worker_main, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (result < 0) {
        free(worker->buffer);
        return result;
    }
    tree->worker_count++;
    tree->running++;
    return 0;
}

int tree_start(struct tree *tree)
{
    int result = 0;
    pthread_mutex_lock(&tree->lock);
    list_add_last(&tree->active, &tree->operands->link);
    tree->operands = NULL;
    while (tree->worker_count < tree->options.threads && result == 0)
        result = start_thread(tree);
    pthread_mutex_unlock(&tree->lock);
    return tree->worker_count > 0 ? 0 : result;
}

void tree_add_thread(struct tree *tree)
{
    pthread_mutex_lock(&tree->lock);
    bool work = tree->waiting != NULL || !list_empty(&tree->active);
    if (work && tree->running > 0 && tree->worker_count < tree->options.threads_max)
        start_thread(tree); /* it goes on without */
    pthread_mutex_unlock(&tree->lock);
}

bool tree_wait(struct tree *tree, unsigned milliseconds)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t nanoseconds = (uint64_t)until.tv_nsec + (uint64_t)milliseconds * 1000000;
    until.tv_sec += (time_t)(nanoseconds / 1000000000);
    until.tv_nsec = (long)(nanoseconds % 1000000000);
    pthread_mutex_lock(&tree->lock);
    int waited = 0;
    while (!tree->done && waited == 0)
        waited = pthread_cond_timedwait(&tree->ended, &tree->lock, &until);
    bool done = tree->done;
    pthread_mutex_unlock(&tree->lock);
    return done;
}

void tree_finish(struct tree *tree, struct sluice_receipt *sum)
{
    for (unsigned i = 0; i < tree->worker_count; i++) {
        pthread_join(tree->workers[i].thread, NULL);
        sluice_receipt_add(sum, &tree->workers[i].copier.sum);
    }
    /* Interrupted: directories keep what is complete in them. */
    LIST_FOR_EACH(link, &tree->nodes)
    {
        struct node *node = LIST_OBJECT(link, struct node, all);
        if (node->staged_name != NULL && !node->failed)
            publish_or_complain(&tree->workers[0], node);
    }
}

bool tree_is_full(const struct tree *tree)
{
    return tree != NULL && atomic_load(&tree->full);
}

static void forget(void *context, struct node *node)
{
    (void)context;
    (void)node; /* tree_free frees them all */
}

void tree_free(struct tree *tree)
{
    if (tree == NULL)
        return;
    links_free(tree->links, forget, NULL);
    LIST_FOR_EACH(active, &tree->active)
    listing_free(LIST_OBJECT(active, struct listing, link));
    listing_free(tree->operands);
    LIST_FOR_EACH(link, &tree->nodes)
    node_destroy(tree, LIST_OBJECT(link, struct node, all));
    for (unsigned i = 0; i < tree->worker_count; i++) {
        copier_free(&tree->workers[i].copier);
        free(tree->workers[i].buffer);
    }
    free(tree->workers);
    pthread_cond_destroy(&tree->changed);
    pthread_cond_destroy(&tree->ended);
    pthread_mutex_destroy(&tree->lock);
    free(tree);
}
