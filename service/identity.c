/* SPDX-License-Identifier: MIT */
#include "service/identity.h"
#include "base/cleanup.h"
#include "base/text.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RECORD_MAX (64u << 10) /* of the user database; a group of thousands has a long one */

/* A number that an id can be: -1 means "leave it" to the kernel. */
static bool is_number(const char *text, uint32_t *ret_number)
{
    uint64_t number;
    if (text_parse_unsigned(text, &number) < 0 || number >= UINT32_MAX)
        return false;
    *ret_number = (uint32_t)number;
    return true;
}

static int no_such(const char *what, const char *name, int code, struct failure *failure)
{
    if (code == 0)
        return failure_set(failure, -ENOENT, "there is no %s \"%.100s\" here", what, name);
    return failure_set(failure, -code, "looking up %s \"%.100s\": %s (%s)", what, name, text_errno_meaning(code),
                       text_errno_name(code));
}

static int find_groups(const char *name, struct identity *identity, struct failure *failure)
{
    int count = 64;
    for (;;) {
        gid_t *groups = reallocarray(identity->groups, (size_t)count, sizeof *groups);
        if (groups == NULL)
            return failure_set(failure, -ENOMEM, "out of memory");
        identity->groups = groups;
        identity->group_count = count;
        if (getgrouplist(name, identity->group, groups, &identity->group_count) >= 0)
            return 0;
        if (identity->group_count <= count)
            return failure_set(failure, -EINVAL, "the groups of user %.100s cannot be read", name);
        count = identity->group_count;
    }
}

static int find(const char *user, const char *group, char *record, struct identity *identity, const char **ret_option,
                struct failure *failure)
{
    struct passwd space, *found = NULL;
    struct group group_space, *found_group = NULL;
    uint32_t number;
    bool numbered = is_number(user, &number);
    int code = numbered ? getpwuid_r(number, &space, record, RECORD_MAX, &found)
                        : getpwnam_r(user, &space, record, RECORD_MAX, &found);
    if (found == NULL && !numbered)
        return no_such("user", user, code, failure);
    if (found == NULL && group == NULL)
        return failure_set(failure, -ENOENT, "there is no user with the number %s here; say the group, too", user);
    identity->user = found != NULL ? found->pw_uid : number;
    identity->group = found != NULL ? found->pw_gid : 0;
    CLEANUP_FREE char *name = found != NULL ? strdup(found->pw_name) : NULL;
    if (found != NULL && name == NULL)
        return failure_set(failure, -ENOMEM, "out of memory");
    if (group != NULL && is_number(group, &number)) {
        identity->group = number;
    } else if (group != NULL) {
        code = getgrnam_r(group, &group_space, record, RECORD_MAX, &found_group);
        *ret_option = "group";
        if (found_group == NULL)
            return no_such("group", group, code, failure);
        identity->group = found_group->gr_gid;
        *ret_option = "user";
    }
    return name != NULL ? find_groups(name, identity, failure) : 0;
}

int identity_find(const char *user, const char *group, struct identity *ret_identity, const char **ret_option,
                  struct failure *failure)
{
    struct identity identity = {.given = user != NULL};
    const char *option;
    if (ret_option == NULL)
        ret_option = &option;
    *ret_option = user != NULL ? "user" : "group";
    if (user == NULL) {
        *ret_identity = identity;
        return group == NULL ? 0 : failure_set(failure, -EINVAL, "a group needs a user, too");
    }
    CLEANUP_FREE char *record = malloc(RECORD_MAX);
    int result = record != NULL ? find(user, group, record, &identity, ret_option, failure)
                                : failure_set(failure, -ENOMEM, "out of memory");
    if (result == 0 && geteuid() != 0) {
        if (identity.user != geteuid() || identity.group != getegid())
            result = failure_set(failure, -EPERM,
                                 "only root may become somebody else, and this is user %u, group %u; start it as root, "
                                 "or leave this out",
                                 (unsigned)geteuid(), (unsigned)getegid());
        identity.given = false; /* it is so already */
    }
    if (result < 0)
        identity_free(&identity);
    else
        *ret_identity = identity;
    return result;
}

int identity_assume(const struct identity *identity, struct failure *failure)
{
    if (!identity->given)
        return 0;
    /* The groups first, as that takes root; -1 of a step is the end of it all. */
    if (setgroups((size_t)identity->group_count, identity->groups) < 0 ||
        setresgid(identity->group, identity->group, identity->group) < 0 ||
        setresuid(identity->user, identity->user, identity->user) < 0)
        return failure_set(failure, -errno, "becoming user %u, group %u: %s (%s)", (unsigned)identity->user,
                           (unsigned)identity->group, text_errno_meaning(errno), text_errno_name(errno));
    if (identity->user != 0 && (setresuid(0, 0, 0) == 0 || (identity->group != 0 && setresgid(0, 0, 0) == 0)))
        return failure_set(failure, -EPERM, "becoming user %u: there is a way back", (unsigned)identity->user);
    return 0;
}

void identity_free(struct identity *identity)
{
    free(identity->groups);
    *identity = (struct identity){0};
}
