/* SPDX-License-Identifier: MIT
 *
 * A doubly linked ring whose links live inside the objects: no allocation, removal in O(1) without knowing the list.
 * A list head is a link of its own. A link that is in no list points to itself, so that removing it again is harmless.
 */
#ifndef SLUICE_BASE_LIST_H
#define SLUICE_BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct list {
    struct list *next, *previous;
};

/* Heads and links alike, before their first use. */
static inline void list_init(struct list *list)
{
    list->next = list;
    list->previous = list;
}

/* Of a head: nothing in the list. Of a link: in no list. */
static inline bool list_empty(const struct list *list)
{
    return list->next == list;
}

static inline void list_insert_between(struct list *link, struct list *before, struct list *after)
{
    link->previous = before;
    link->next = after;
    before->next = link;
    after->previous = link;
}

/* link must be in no list. */
static inline void list_add_first(struct list *head, struct list *link)
{
    list_insert_between(link, head, head->next);
}

static inline void list_add_last(struct list *head, struct list *link)
{
    list_insert_between(link, head->previous, head);
}

static inline void list_remove(struct list *link)
{
    link->previous->next = link->next;
    link->next->previous = link->previous;
    list_init(link);
}

/* The object that holds this link as its member. */
#define LIST_OBJECT(link, type, member) ((type *)(void *)((char *)(link)-offsetof(type, member)))

/* Visit every link; the one being visited may be removed (and its object freed), others may not. */
#define LIST_FOR_EACH(link, head)                                                                                      \
    for (struct list *link = (head)->next, *link##_next = link->next; link != (head);                                  \
         link = link##_next, link##_next = link->next)

#endif
