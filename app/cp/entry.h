/* SPDX-License-Identifier: MIT
 *
 * One entry of a directory: a regular file, a symbolic link, a FIFO or a device goes to its final name, complete or not
 * at all.
 *
 * How a file comes to its final name depends on the directory:
 *   staged      ours and under a temporary name itself until its files are complete: the file is made under its final
 *               name, which nobody can know yet. No cost; one rename for the whole directory (tree.c)
 *   elsewhere   a file without a name (O_TMPFILE), linked when complete: 4 us on ext4 where a rename costs 14
 *   in the way  what must be replaced is replaced by a rename from a temporary name, ".NAME.XXXXXX"
 */
#ifndef SLUICE_APP_CP_ENTRY_H
#define SLUICE_APP_CP_ENTRY_H

#include "report.h"
#include <sluice/sluice.h>
#include <sys/stat.h>

struct copy_settings {
    bool no_clobber, update, verbose, debug, sync, verify;
    enum sluice_route route; /* for the content; AUTO */
    bool reflink_required;
    uid_t uid; /* effective: what is made belongs to them */
    gid_t gid;
};

/* A directory into which entries are made. */
struct target {
    int fd;
    dev_t device;
    bool staged;
    bool made;         /* by us: nothing was there before */
    bool look;         /* whom a new file belongs to cannot be foretold */
    bool gives_acl;    /* it has a default access control list */
    gid_t gid;         /* of what is made in it, unless look */
    atomic_bool named; /* it does not do O_TMPFILE */
};

/* What one thread copies with. Zeroed but for the first three members. */
struct copier {
    const struct copy_settings *settings;
    struct report *report;
    const atomic_bool *stop; /* give up, and leave nothing incomplete */
    atomic_bool *full;       /* set when the target is out of room: going on would fail for every file */
    struct sluice_receipt sum;
    bool leaves_times_refused; /* O_NOATIME is for the owner */
    bool plain;                /* between these devices no extents are shared */
    dev_t plain_source, plain_target;
    char *compared[2];
    bool has_clock; /* a file without a name, there to be given times */
    int clock;
    dev_t clock_device;
};

void copier_free(struct copier *copier);

struct spot {
    const struct place *place;
    const char *source_name, *target_name;
    int source_fd; /* of the directory, or AT_FDCWD */
    struct target *target;
};

struct item {
    int fd; /* regular files: open; else -1 */
    struct stat status;
    bool in_the_way;   /* something has the final name, to be replaced */
    struct stat other; /* that is it */
    bool there;        /* skipped, as it is a copy from an earlier run: may be linked to other names of the file */
};

enum outcome {
    OUTCOME_DONE,
    OUTCOME_SKIPPED,
    OUTCOME_FAILED, /* said and counted */
    OUTCOME_STOPPED,
};

/* Open the entry (d_type as in readdir, or DT_UNKNOWN) and see what is in its way. DONE: go on with entry_copy, or
 * close item->fd. SKIPPED is for the caller to count. */
enum outcome entry_examine(struct copier *copier, const struct spot *spot, unsigned char d_type, struct item *ret_item);

/* Closes item->fd. Directories are not for this. */
enum outcome entry_copy(struct copier *copier, const struct spot *spot, struct item *item);

/* Make the entry a hard link to a file copied before. Returns OUTCOME_SKIPPED, with nothing said, where the file system
 * makes no such link: copy it, unless it is there; and when what is there is that link. */
enum outcome entry_link(struct copier *copier, const struct spot *spot, const struct item *item, int first_fd,
                        const char *first_name);

/* ".NAME.XXXXXX" for a temporary next to NAME. */
#define TEMPORARY_NAME_SIZE 256
void temporary_name(char *buffer, const char *name);

/* Say and count that what ("cannot read") failed for the entry. */
void complain(struct copier *copier, const struct place *place, const char *name, enum side side, const char *what,
              int code);

#endif
