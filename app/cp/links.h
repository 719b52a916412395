/* SPDX-License-Identifier: MIT
 *
 * Files with several names (hard links): the first name that is met is copied, the others are linked to that copy. A
 * name that is met while the first is still being copied waits for it. Any thread.
 */
#ifndef SLUICE_APP_CP_LINKS_H
#define SLUICE_APP_CP_LINKS_H

#include <stdbool.h>
#include <sys/stat.h>

struct node;
struct links;

/* A name within a directory of the copy. */
struct name {
    struct node *node;
    char *source_name; /* owned, also target_name where it is another */
    char *target_name;
    struct name *next;
};

void name_free(struct name *name);

enum links_answer {
    LINKS_COPY,  /* the first, or links are of no use: copy it, then call links_settle */
    LINKS_LINK,  /* to *ret_first, which stays valid as long as links */
    LINKS_LATER, /* taken over; links_settle will return it */
    LINKS_KEEP,  /* the first, and there: others are linked to it */
};

int links_new(struct links **ret_links);

/* Calls release for every directory that a first name is in. */
void links_free(struct links *links, void (*release)(void *context, struct node *node), void *context);

/* What is to be done with this name of the file with this status; there: a copy of an earlier run has the name. The
 * name is copied; for all but LINKS_LINK its node must stay until links_settle or links_free. Returns enum
 * links_answer, or -ENOMEM. */
int links_ask(struct links *links, const struct stat *status, bool there, struct node *node, const char *source_name,
              const char *target_name, const struct name **ret_first);

/* The name for which links_ask said LINKS_COPY has been copied (there is a copy to link to), or not. Returns the list
 * of names that waited, to be asked about again. */
struct name *links_settle(struct links *links, const struct stat *status, bool copied);

#endif
