/* SPDX-License-Identifier: MIT */
#include "attributes.h"
#include "base/cleanup.h"
#include "base/text.h"
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/posix_acl_xattr.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#define ACCESS_ACL "system.posix_acl_access"
#define DEFAULT_ACL "system.posix_acl_default"
#define MODE_BITS 07777

/* For the calls that have no variant with a directory's descriptor. */
#define NAME_PATH_SIZE (sizeof "/proc/self/fd/" + 11 + NAME_MAX + 1)

static const char *path_of(const struct attributed *file, char *buffer)
{
    if (file->fd == AT_FDCWD)
        return file->name;
    snprintf(buffer, NAME_PATH_SIZE, "/proc/self/fd/%d/%s", file->fd, file->name);
    return buffer;
}

static ssize_t list_attributes(const struct attributed *file, char *list, size_t size)
{
    char path[NAME_PATH_SIZE];
    return file->name == NULL ? flistxattr(file->fd, list, size) : llistxattr(path_of(file, path), list, size);
}

static ssize_t get_attribute(const struct attributed *file, const char *attribute, void *value, size_t size)
{
    char path[NAME_PATH_SIZE];
    return file->name == NULL ? fgetxattr(file->fd, attribute, value, size)
                              : lgetxattr(path_of(file, path), attribute, value, size);
}

static int set_attribute(const struct attributed *file, const char *attribute, const void *value, size_t size)
{
    char path[NAME_PATH_SIZE];
    int result = file->name == NULL ? fsetxattr(file->fd, attribute, value, size, 0)
                                    : lsetxattr(path_of(file, path), attribute, value, size, 0);
    return result < 0 ? -errno : 0;
}

static void remove_attribute(const struct attributed *file, const char *attribute)
{
    char path[NAME_PATH_SIZE];
    if (file->name == NULL)
        fremovexattr(file->fd, attribute);
    else
        lremovexattr(path_of(file, path), attribute);
}

/* ---- Extended attributes ---------------------------------------------------------------------------------------- */

/* What a security module gives every file by its own rules: setting it takes a policy's permission, and a file without
 * it is labelled anew. Not so security.capability, which is the file's. */
static bool is_label(const char *attribute)
{
    return strncmp(attribute, "security.", 9) == 0 && strcmp(attribute, "security.capability") != 0;
}

/* What the file's group may do by the list itself: the mode's group bits are the list's mask, which may be more. */
static mode_t group_of_acl(const void *acl, size_t size)
{
    const struct posix_acl_xattr_header *header = acl;
    const struct posix_acl_xattr_entry *entry = (const void *)(header + 1);
    if (size < sizeof *header)
        return 0;
    for (size_t left = size - sizeof *header; left >= sizeof *entry; left -= sizeof *entry, entry++)
        if (le16toh(entry->e_tag) == 0x04 /* ACL_GROUP_OBJ */)
            return le16toh(entry->e_perm) & 7u;
    return 0;
}

/* ext4 and btrfs say ENOSPC as well of an attribute that is larger than they permit. */
static bool is_full(const struct attributed *target)
{
    struct statvfs status;
    if (fstatvfs(target->fd, &status) < 0)
        return true;
    return (uint64_t)status.f_bavail * status.f_frsize < 16 * (uint64_t)XATTR_SIZE_MAX;
}

struct found {
    bool access_acl, default_acl;
    mode_t mode;     /* to be set: less than the source's where a list could not be kept */
    int acl_refused; /* negative errno */
};

static int copy_attribute(struct report *report, const struct attributed *source, const struct attributed *target,
                          const char *attribute, struct found *found)
{
    char small[512];
    CLEANUP_FREE char *large = NULL;
    char *value = small;
    ssize_t size = get_attribute(source, attribute, small, sizeof small);
    if (size < 0 && errno == ERANGE) {
        value = large = malloc(XATTR_SIZE_MAX);
        if (large == NULL)
            return -ENOMEM;
        size = get_attribute(source, attribute, large, XATTR_SIZE_MAX);
    }
    if (size < 0 && is_label(attribute))
        return 0;
    if (size < 0)
        return errno == ENODATA ? 0 : -errno; /* gone since it was listed */
    if (strncmp(attribute, "trusted.SGI_", 12) == 0)
        return 0; /* XFS shows its access control lists to root a second time, in a form of its own */
    bool access = strcmp(attribute, ACCESS_ACL) == 0;
    found->access_acl |= access;
    found->default_acl |= strcmp(attribute, DEFAULT_ACL) == 0;
    int result = set_attribute(target, attribute, value, (size_t)size);
    if (result == 0 || is_label(attribute))
        return 0;
    bool too_large = result == -ENOSPC && !is_full(target);
    if ((result == -ENOSPC && !too_large) || result == -EDQUOT || result == -EIO || result == -ENOMEM)
        return result;
    if (access || strcmp(attribute, DEFAULT_ACL) == 0) {
        found->acl_refused = result;
        if (access)
            found->mode &= ~(mode_t)070 | group_of_acl(value, (size_t)size) << 3;
        return 0;
    }
    tally_add(&report->tally.attributes_lost, 1);
    if (report_first(report, 'x', result))
        report_note(report, "the extended attribute %s is not kept: %s (%s). Further ones are counted only.", attribute,
                    result == -EOPNOTSUPP ? "the target's file system does not have such attributes"
                    : too_large           ? "it is larger than the target's file system permits"
                                          : text_errno_meaning(result),
                    text_errno_name(result));
    return 0;
}

static int copy_attributes(struct report *report, const struct attributed *source, const struct attributed *target,
                           struct found *found)
{
    char small[1024];
    CLEANUP_FREE char *large = NULL;
    char *list = small;
    ssize_t size = list_attributes(source, small, sizeof small);
    if (size < 0 && errno == ERANGE) {
        list = large = malloc(XATTR_LIST_MAX);
        if (large == NULL)
            return -ENOMEM;
        size = list_attributes(source, large, XATTR_LIST_MAX);
    }
    if (size < 0) /* a file system without; by name also a machine without /proc */
        return errno == EOPNOTSUPP || errno == ENOSYS || source->name != NULL ? 0 : -errno;
    for (const char *attribute = list; attribute < list + size; attribute += strlen(attribute) + 1) {
        int result = copy_attribute(report, source, target, attribute, found);
        if (result < 0)
            return result;
    }
    return 0;
}

/* ---- The rest --------------------------------------------------------------------------------------------------- */

static int change_owner(const struct attributed *target, uid_t uid, gid_t gid)
{
    int result = target->name == NULL ? fchown(target->fd, uid, gid)
                                      : fchownat(target->fd, target->name, uid, gid, AT_SYMLINK_NOFOLLOW);
    return result < 0 ? -errno : 0;
}

/* Returns 1 when the owner is not the source's, because the user may not give files away. */
static int give_owner(const struct attributed *target, const struct stat *status,
                      const struct attributes_at_hand *at_hand)
{
    if (at_hand->uid == status->st_uid && at_hand->gid == status->st_gid)
        return 0;
    int result = change_owner(target, status->st_uid, status->st_gid);
    if (result != -EPERM && result != -EINVAL) /* EINVAL: an owner that this user namespace does not have */
        return result;
    if (at_hand->gid != status->st_gid)
        change_owner(target, (uid_t)-1, status->st_gid); /* one of the user's own groups, if it can be had */
    return 1;
}

static int set_mode(const struct attributed *target, mode_t mode)
{
    int result = target->name == NULL ? fchmod(target->fd, mode) : fchmodat(target->fd, target->name, mode, 0);
    return result < 0 ? -errno : 0;
}

int attributes_apply(struct report *report, const struct attributed *source, const struct attributed *target,
                     const struct stat *status, const struct attributes_at_hand *at_hand, const char **ret_what)
{
    struct found found = {.mode = status->st_mode & MODE_BITS};
    /* First the owner: changing it takes away set-user-ID, set-group-ID and security.capability. */
    *ret_what = "change the owner of";
    int foreign = give_owner(target, status, at_hand);
    if (foreign < 0)
        return foreign;
    if (foreign)
        found.mode &= ~(mode_t)(S_ISUID | S_ISGID);
    *ret_what = "copy the extended attributes of";
    int result = copy_attributes(report, source, target, &found);
    if (result < 0)
        return result;
    if (at_hand->inherits_acl && !found.access_acl)
        remove_attribute(target, ACCESS_ACL);
    if (at_hand->inherits_acl && !found.default_acl && S_ISDIR(status->st_mode))
        remove_attribute(target, DEFAULT_ACL);
    /* Last the mode: what has an access control list got its mode with that. */
    bool owner_changed = at_hand->uid != status->st_uid || at_hand->gid != status->st_gid;
    bool as_wanted = at_hand->mode == found.mode && !at_hand->inherits_acl && !found.access_acl &&
                     !(owner_changed && found.mode & (S_ISUID | S_ISGID));
    *ret_what = "change the mode of";
    if (!S_ISLNK(status->st_mode) && !as_wanted) {
        result = set_mode(target, found.mode);
        if (result < 0)
            return result;
    }
    *ret_what = "set the times of";
    struct timespec times[2] = {status->st_atim, status->st_mtim};
    if ((target->name == NULL ? futimens(target->fd, times)
                              : utimensat(target->fd, target->name, times, AT_SYMLINK_NOFOLLOW)) < 0)
        return -errno;
    *ret_what = "keep the access control list of";
    return -found.acl_refused;
}
