/* SPDX-License-Identifier: MIT
 *
 * Open files of one or several roots, found by the path of a request without a system call.
 *
 * How long an answer may be repeated:
 *
 *   watched     every directory from the root to the file is watched by inotify, and the file: until an event, and
 *               checked once a second all the same, as writing through a mapping raises no event
 *   unwatched   there is a symbolic link on the way, a file system on which other hosts or layers change files unseen,
 *               or no watch to be had: checked at every request
 *
 * A watch for each open file counts against fs.inotify.max_user_watches. When they are used up, the rest is unwatched,
 * and complain says so.
 *
 * Checking means looking the path up again and comparing device, inode, size and both times. What could wait for a disk
 * or a server is done on a helper thread of the loop.
 *
 * One thread. Watches are placed by way of /proc/self/fd, which a worker can still use when it is confined.
 */
#ifndef SLUICE_APP_HTTP_FILES_H
#define SLUICE_APP_HTTP_FILES_H

#include "beneath.h"
#include "coding.h"
#include "extras.h"
#include "response.h"
#include <sluice/sluice.h>

struct files;
struct files_root; /* one of the directories whose files these are */

struct file {
    struct sluice_end *end; /* the open file; any number of transfers may use it at once */
    uint64_t size;
    time_t modified;
    struct slice etag; /* with its quotes, without W/ */
    bool weak;
    bool negotiable; /* it may have siblings that are compressed: files_find_coded */
    uint8_t coding;  /* enum http_coding: what of it was found as such a sibling */
    struct response_fields fields;
};

struct files_root_options {
    int directory; /* borrowed */
    enum beneath_symlinks symlinks;
    bool precompressed;               /* files may have siblings in a content coding */
    uint64_t drop_from;               /* files of so many bytes have SLUICE_END_DROP_BEHIND; 0: none */
    const struct http_extras *extras; /* said with each file; or NULL; must outlive the files */
};

struct files_options {
    struct sluice_loop *loop;
    const struct files_root_options *roots; /* copied */
    unsigned root_count;
    unsigned end_flags; /* SLUICE_END_SNAPSHOT */
    unsigned capacity;  /* most files to keep open that nobody is using, of all roots together */
    bool walk;          /* do without openat2: see beneath_init */
    bool unwatched;     /* do without inotify */
    /* NULL, or called at most once: why files are checked at every request though they need not be. */
    void (*complain)(void *context, const char *text);
    void *complain_context;
};

/* Returns 0, -ENOMEM, or a negative errno of the loop's. */
int files_new(const struct files_options *options, struct files **ret_files);

/* All files must have been released, and files_busy must be false. */
void files_free(struct files *files);

/* Whether a helper is still looking for something, cancelled or not. */
bool files_busy(const struct files *files);

/* The root of that number in files_options.roots. */
struct files_root *files_root(struct files *files, unsigned number);

/* Find a regular file. Paths as http_path_decode makes them, naming a file.
 * Returns 1 with a reference in *ret_file; 0 when it may take time: ask files_look_up; -EISDIR; -ENOENT, -ENOTDIR,
 * -ELOOP, -EXDEV, -ENAMETOOLONG: nothing to serve; -EACCES; -EMFILE, -ENFILE: out of descriptors, though unused files
 * were closed; and others. What is neither a file nor a directory does not exist. */
int files_find(struct files_root *root, const char *path, size_t length, struct file **ret_file);

/* Find it with a helper's patience. done is called from the loop, never before this returns, with a result of
 * files_find other than 0. Returns 0 or -ENOMEM. */
struct files_lookup;
typedef void files_found_fn(void *context, int result, struct file *file);
int files_look_up(struct files_root *root, const char *path, size_t length, files_found_fn *done, void *context,
                  struct files_lookup **ret_lookup);

/* The same for a sibling of a file: that in the same directory with the coding's suffix behind its name. It has the
 * type of the file whose sibling it is, and names its coding. Only of files that are negotiable. That there is none is
 * remembered as long as the file is watched and not yet to be checked again. */
int files_find_coded(struct file *file, enum http_coding coding, struct file **ret_file);
int files_look_up_coded(struct file *file, enum http_coding coding, files_found_fn *done, void *context,
                        struct files_lookup **ret_lookup);

/* done will not be called. */
void files_cancel(struct files_lookup *lookup);

/* Give a reference back. NULL is accepted. */
void files_release(struct files *files, struct file *file);

/* Close up to count files that nobody is using, those not used for longest first. Returns how many. */
unsigned files_shed(struct files *files, unsigned count);

const struct beneath *files_beneath(const struct files_root *root);

/* For tests and status: answers from memory alone, answers after a check, files opened. */
struct files_counts {
    uint64_t hits, checks, opens, dropped;
    unsigned open, directories;
};
void files_count(const struct files *files, struct files_counts *ret_counts);

#endif
