/* SPDX-License-Identifier: MIT
 *
 * Everything of a file but its content and name: owner, mode, extended attributes (access control lists are among
 * them), times.
 */
#ifndef SLUICE_APP_CP_ATTRIBUTES_H
#define SLUICE_APP_CP_ATTRIBUTES_H

#include "report.h"
#include <sys/stat.h>

/* An open file or directory, or the name of what is better not opened: a symbolic link, a FIFO, a device. */
struct attributed {
    int fd;           /* of the file; of its directory when name is given */
    const char *name; /* NULL: fd is it */
};

/* What the target is known to have already, so that it need not be set. */
struct attributes_at_hand {
    uid_t uid;
    gid_t gid;
    mode_t mode;
    bool inherits_acl; /* it may have got an access control list from its directory */
};

/* Give target what source has. status is the source's.
 * What the user may not keep is dropped as cp -a does: an owner that is somebody else (with it set-user-ID and
 * set-group-ID), extended attributes that the target's file system does not have (counted, said once for each cause).
 * Where an access control list cannot be kept, the mode grants nobody more than the list did.
 * Returns 0; a negative errno, *ret_what having failed; or a positive errno: all is done but the access control list.
 */
int attributes_apply(struct report *report, const struct attributed *source, const struct attributed *target,
                     const struct stat *status, const struct attributes_at_hand *at_hand, const char **ret_what);

#endif
