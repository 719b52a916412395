/* SPDX-License-Identifier: MIT */
#include "base/list.h"
#include "check.h"

struct item {
    int number;
    struct list link;
};

static int joined(struct list *head)
{
    int number = 0;
    LIST_FOR_EACH(link, head)
    {
        number = number * 10 + LIST_OBJECT(link, struct item, link)->number;
    }
    return number;
}

TEST("items come in the order in which they were put")
{
    struct list head;
    struct item items[3] = {{.number = 1}, {.number = 2}, {.number = 3}};
    list_init(&head);
    CHECK(list_empty(&head));
    list_add_last(&head, &items[1].link);
    list_add_last(&head, &items[2].link);
    list_add_first(&head, &items[0].link);
    CHECK_EQ(joined(&head), 123);
}

TEST("removing an item twice, or one that was never in a list, is harmless")
{
    struct list head;
    struct item items[2] = {{.number = 1}, {.number = 2}};
    list_init(&head);
    list_init(&items[1].link);
    list_remove(&items[1].link);
    list_add_last(&head, &items[0].link);
    list_add_last(&head, &items[1].link);
    list_remove(&items[0].link);
    list_remove(&items[0].link);
    CHECK(list_empty(&items[0].link));
    CHECK_EQ(joined(&head), 2);
}

TEST("the item being visited may be removed and freed")
{
    struct list head;
    list_init(&head);
    for (int i = 0; i < 4; i++) {
        struct item *item = malloc(sizeof *item);
        CHECK(item != NULL);
        item->number = i;
        list_add_last(&head, &item->link);
    }
    int visited = 0;
    LIST_FOR_EACH(link, &head)
    {
        list_remove(link);
        free(LIST_OBJECT(link, struct item, link));
        visited++;
    }
    CHECK_EQ(visited, 4);
    CHECK(list_empty(&head));
}

CHECK_MAIN()
