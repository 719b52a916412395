/* SPDX-License-Identifier: MIT
 *
 * Who workers are. The supervisor stays who it was: a reload binds addresses, opens logs and reads keys that workers
 * have no right to. It serves nobody, and what it reads of workers is counters in shared memory.
 */
#ifndef SLUICE_SERVICE_IDENTITY_H
#define SLUICE_SERVICE_IDENTITY_H

#include "base/failure.h"
#include <stdbool.h>
#include <sys/types.h>

struct identity {
    bool given; /* false: whoever started us */
    uid_t user;
    gid_t group;
    gid_t *groups; /* supplementary ones */
    int group_count;
};

/* user and group: names or numbers. user NULL: nobody was named. group NULL: the user's own; the supplementary ones are
 * the user's, as at a login. Returns 0; -ENOENT: there is no such; -EPERM: only root may become somebody else; or
 * another negative errno. ret_option (or NULL): which was wrong, "user" or "group". */
int identity_find(const char *user, const char *group, struct identity *ret_identity, const char **ret_option,
                  struct failure *failure);

/* For a process with one thread: become that user for good. Returns 0, or a negative errno: the process may be partly
 * that user then, end it. The process can no longer be traced by others of that user, and leaves no core. */
int identity_assume(const struct identity *identity, struct failure *failure);

/* Harmless on a zeroed struct, and twice. */
void identity_free(struct identity *identity);

#endif
