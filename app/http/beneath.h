/* SPDX-License-Identifier: MIT
 *
 * Opening files beneath a directory and nowhere else: no "..", no absolute symbolic link, no link that climbs out. By
 * openat2(2) with RESOLVE_BENEATH (Linux 5.6) where there is one, else component by component with the same meaning.
 * Symbolic links may also be refused altogether, or be allowed to lead anywhere.
 */
#ifndef SLUICE_APP_HTTP_BENEATH_H
#define SLUICE_APP_HTTP_BENEATH_H

#include <stdbool.h>

enum beneath_symlinks {
    BENEATH_SYMLINKS_INSIDE, /* followed for as long as they stay beneath the root */
    BENEATH_SYMLINKS_FOLLOW, /* wherever they lead, but for those of /proc (RESOLVE_NO_MAGICLINKS, by openat2 only) */
    BENEATH_SYMLINKS_NEVER,  /* -ELOOP, wherever on the way one is */
};

struct beneath {
    int root; /* borrowed */
    enum beneath_symlinks symlinks;
    bool has_openat2;
    bool has_cached; /* RESOLVE_CACHED (Linux 5.12): lookups that promise not to wait for a disk */
};

/* Find out what the kernel offers for this root. walk: do without openat2 although it is there, as in a container whose
 * system call filter forbids it. */
void beneath_init(struct beneath *beneath, int root, enum beneath_symlinks symlinks, bool walk);

/* Open path ("." for the root itself) with the given open(2) flags; O_CLOEXEC and O_NOCTTY are added. cached: only if
 * every directory entry is in memory already. *ret_symlinks (may be NULL): the path went through a symbolic link.
 * Any thread. Where links are followed anywhere, a path must not hold "..", which behind a link would leave the root
 * (those of http_path_decode do not). Returns a descriptor, or a negative errno: -EAGAIN with cached: it would have to
 * be looked for on the disk, or the kernel cannot promise otherwise; -EXDEV the path leads outside; -ENOENT, -ENOTDIR,
 * -ELOOP, -EACCES, -ENAMETOOLONG, -EMFILE, ... */
int beneath_open(const struct beneath *beneath, const char *path, int flags, bool cached, bool *ret_symlinks);

#endif
