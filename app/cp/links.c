/* SPDX-License-Identifier: MIT */
#include "links.h"
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    struct entry *next;
    dev_t device;
    ino_t inode;
    bool copied;
    struct name *first;
    struct name *waiting;
};

struct links {
    pthread_mutex_t lock;
    struct entry **buckets;
    size_t bucket_count, count;
};

void name_free(struct name *name)
{
    if (name == NULL)
        return;
    if (name->target_name != name->source_name)
        free(name->target_name);
    free(name->source_name);
    free(name);
}

static struct name *name_new(struct node *node, const char *source_name, const char *target_name)
{
    struct name *name = calloc(1, sizeof *name);
    if (name == NULL)
        return NULL;
    name->node = node;
    name->source_name = strdup(source_name);
    name->target_name = strcmp(source_name, target_name) == 0 ? name->source_name : strdup(target_name);
    if (name->source_name == NULL || name->target_name == NULL) {
        name_free(name);
        return NULL;
    }
    return name;
}

int links_new(struct links **ret_links)
{
    struct links *links = calloc(1, sizeof *links);
    if (links == NULL)
        return -ENOMEM;
    links->bucket_count = 1024;
    links->buckets = calloc(links->bucket_count, sizeof(void *));
    if (links->buckets == NULL) {
        free(links);
        return -ENOMEM;
    }
    pthread_mutex_init(&links->lock, NULL);
    *ret_links = links;
    return 0;
}

void links_free(struct links *links, void (*release)(void *context, struct node *node), void *context)
{
    if (links == NULL)
        return;
    for (size_t i = 0; i < links->bucket_count; i++) {
        for (struct entry *entry = links->buckets[i]; entry != NULL;) {
            struct entry *next = entry->next;
            while (entry->waiting != NULL) {
                struct name *name = entry->waiting;
                entry->waiting = name->next;
                name_free(name);
            }
            release(context, entry->first->node);
            name_free(entry->first);
            free(entry);
            entry = next;
        }
    }
    pthread_mutex_destroy(&links->lock);
    free(links->buckets);
    free(links);
}

static size_t bucket_of(const struct links *links, dev_t device, ino_t inode)
{
    uint64_t hash = ((uint64_t)inode ^ (uint64_t)device << 32) * 0x9e3779b97f4a7c15u;
    return (size_t)(hash >> 32) & (links->bucket_count - 1);
}

static struct entry **find(struct links *links, const struct stat *status)
{
    struct entry **at = &links->buckets[bucket_of(links, status->st_dev, status->st_ino)];
    while (*at != NULL && ((*at)->inode != status->st_ino || (*at)->device != status->st_dev))
        at = &(*at)->next;
    return at;
}

/* Without memory for it the table stays as it is, and gets slower. */
static void grow(struct links *links)
{
    struct entry **old = links->buckets;
    size_t old_count = links->bucket_count;
    struct entry **buckets = calloc(old_count * 2, sizeof(void *));
    if (buckets == NULL)
        return;
    links->buckets = buckets;
    links->bucket_count = old_count * 2;
    for (size_t i = 0; i < old_count; i++) {
        for (struct entry *entry = old[i]; entry != NULL;) {
            struct entry *next = entry->next;
            struct entry **bucket = &buckets[bucket_of(links, entry->device, entry->inode)];
            entry->next = *bucket;
            *bucket = entry;
            entry = next;
        }
    }
    free(old);
}

/* Under the lock, at the end of its bucket. NULL without memory. */
static struct entry *entry_new(struct links *links, const struct stat *status, struct name *first)
{
    struct entry **at = find(links, status);
    struct entry *entry = calloc(1, sizeof *entry);
    if (entry == NULL)
        return NULL;
    entry->device = status->st_dev;
    entry->inode = status->st_ino;
    entry->first = first;
    *at = entry;
    if (++links->count > links->bucket_count)
        grow(links);
    return entry;
}

int links_ask(struct links *links, const struct stat *status, bool there, struct node *node, const char *source_name,
              const char *target_name, const struct name **ret_first)
{
    int answer = -ENOMEM;
    pthread_mutex_lock(&links->lock);
    struct entry *entry = *find(links, status);
    if (entry != NULL && entry->copied) {
        *ret_first = entry->first;
        answer = LINKS_LINK;
    } else {
        struct name *name = name_new(node, source_name, target_name);
        if (name != NULL && entry != NULL) {
            name->next = entry->waiting;
            entry->waiting = name;
            answer = LINKS_LATER;
        } else if (name != NULL && (entry = entry_new(links, status, name)) != NULL) {
            entry->copied = there;
            answer = there ? LINKS_KEEP : LINKS_COPY;
        } else {
            name_free(name);
        }
    }
    pthread_mutex_unlock(&links->lock);
    return answer;
}

struct name *links_settle(struct links *links, const struct stat *status, bool copied)
{
    pthread_mutex_lock(&links->lock);
    struct entry **at = find(links, status);
    struct entry *entry = *at;
    struct name *waiting = entry->waiting;
    entry->waiting = NULL;
    entry->copied = copied;
    if (!copied) {
        *at = entry->next;
        links->count--;
        name_free(entry->first);
        free(entry);
    }
    pthread_mutex_unlock(&links->lock);
    return waiting;
}
