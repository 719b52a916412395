/* SPDX-License-Identifier: MIT */
#include "serve/sites.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "service/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define SECTION "host"
#define BLANKS " \t"

const char *const symlink_policies[] = {"inside", "follow", "never", NULL};

enum cold_policy { COLD_AUTO, COLD_KEEP, COLD_DROP_BEHIND };
const char *const cold_policies[] = {"auto", "keep", "drop-behind", NULL};

/* A file that is larger than this share of the memory cannot be kept without taking it from many others; nor is it
 * there as a whole for long. */
#define COLD_SHARE 8
/* What is smaller is often asked for again: pages, pictures, packages. */
#define COLD_LARGE (16u << 20)

/* ---- Names ----------------------------------------------------------------------------------------------------- */

int serve_sites_name(struct http_sites *sites, const char *section, struct failure *why)
{
    const char *at = section + strspn(section, BLANKS);
    size_t length = strcspn(at, BLANKS);
    if (length != strlen(SECTION) || memcmp(at, SECTION, length) != 0)
        return failure_set(why, -EINVAL, "[%.100s]: a section is for a site: [" SECTION " NAME...]", section);
    at += length;
    at += strspn(at, BLANKS);
    if (*at == '\0')
        return failure_set(why, -EINVAL,
                           "[" SECTION "] needs a name: [" SECTION " www.example.org *.example.org]; what is for all "
                           "sites stands before the first section");
    for (; *at != '\0'; at += length, at += strspn(at, BLANKS)) {
        length = strcspn(at, BLANKS);
        const char *fault = NULL;
        CLEANUP_FREE char *name = strndup(at, length);
        int r = name == NULL ? -ENOMEM : host_names_add(&sites->names, name, sites->count, &fault);
        if (r == -EINVAL)
            return failure_set(why, r, "[" SECTION "]: \"%.100s\" is no name of a host: %s", name, fault);
        if (r == -EEXIST)
            return failure_set(why, -EINVAL, "[" SECTION "]: there is a site named %.100s already", name);
        if (r < 0)
            return failure_set(why, r, "out of memory");
    }
    return 0;
}

/* From how many bytes on files are dropped behind; 0: none are. */
static uint64_t drop_from(const struct site_options *options)
{
    if (options->cold_policy == COLD_KEEP)
        return 0;
    if (options->cold_size != 0)
        return options->cold_size;
    return options->cold_policy == COLD_DROP_BEHIND ? COLD_LARGE : memory_limit() / COLD_SHARE;
}

/* ---- Sites ----------------------------------------------------------------------------------------------------- */

static int open_root(const char *path, int *ret_root, char **ret_directory)
{
    CLEANUP_FD int root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0 || faccessat(root, ".", X_OK, 0) < 0)
        return -errno;
    *ret_directory = realpath(path, NULL);
    if (*ret_directory == NULL)
        return -errno;
    *ret_root = TAKE_FD(root);
    return 0;
}

/* Rules count in their order: a section's own stand before those for all. */
static int add_cache_rules(struct http_extras *extras, const struct option_list *list, unsigned inherited,
                           const char **ret_item, const char **ret_why)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < list->count; i++) {
        *ret_item = list->items[(i + inherited) % list->count];
        r = http_extras_add_cache(extras, *ret_item, ret_why);
    }
    return r;
}

static bool same_field(const char *one, const char *other)
{
    size_t length = strcspn(one, ":");
    return strcspn(other, ":") == length && strncasecmp(one, other, length) == 0;
}

/* A section's own field takes the place of one for all. */
static int add_header(struct http_extras *extras, const struct option_list *list, unsigned inherited,
                      const char **ret_item, const char **ret_why)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < list->count; i++) {
        bool replaced = false;
        for (unsigned own = inherited; i < inherited && own < list->count; own++)
            replaced |= same_field(list->items[i], list->items[own]);
        *ret_item = list->items[i];
        if (!replaced)
            r = http_extras_add_header(extras, *ret_item, ret_why);
    }
    return r;
}

int serve_sites_add(struct http_sites *sites, const struct site_options *options, const struct site_options *inherited,
                    const struct config_origin *origin, struct failure *failure)
{
    struct http_site site = {
        .root = -1,
        .symlinks = (enum beneath_symlinks)options->symlinks,
        .index = options->index,
        .listing = options->listing,
        .precompressed = options->precompressed,
        .rate = options->rate,
        .drop_from = drop_from(options),
    };
    bool in_section = options != inherited;
    const char *item = NULL, *why = NULL;
    if (site.index[0] == '\0' || site.index[0] == '.' || strchr(site.index, '/') != NULL ||
        strlen(site.index) > NAME_MAX)
        return config_wrong(origin, "index", -EINVAL, failure, "takes a file name that is not hidden, not \"%.100s\"",
                            site.index);
    if (options->root == NULL)
        return config_wrong(origin, "root", -EINVAL, failure, "which directory to serve is not said; write root = DIR");
    if (options->root[0] == '\0')
        return config_wrong(origin, "root", -EINVAL, failure, "the directory's name is empty; . is the current one");
    int r = open_root(options->root, &site.root, &site.directory);
    if (r < 0 && origin->path == NULL)
        return failure_set(failure, r, "%s: cannot serve %.300s: %s (%s)", origin->command->program, options->root,
                           text_errno_meaning(r), text_errno_name(r));
    if (r < 0)
        return config_wrong(origin, "root", r, failure, "cannot serve %.300s: %s (%s)", options->root,
                            text_errno_meaning(r), text_errno_name(r));

    const char *key = "cache";
    r = add_cache_rules(&site.extras, &options->cache, in_section ? inherited->cache.count : 0, &item, &why);
    if (r == 0) {
        key = "header";
        r = add_header(&site.extras, &options->header, in_section ? inherited->header.count : 0, &item, &why);
    }
    if (r < 0) {
        http_site_clear(&site);
        return r == -EINVAL ? config_wrong_value(origin, key, item, r, failure, "\"%.200s\": %s", item, why)
                            : failure_set(failure, r, "out of memory");
    }
    r = http_sites_add(sites, &site);
    return r < 0 ? failure_set(failure, r, "out of memory") : 0;
}
