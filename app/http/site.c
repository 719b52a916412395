/* SPDX-License-Identifier: MIT */
#include "site.h"
#include "base/cleanup.h"
#include "service/json.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void http_site_clear(struct http_site *site)
{
    site->root = close_fd(site->root);
    free(site->directory);
    site->directory = NULL;
    http_extras_free(&site->extras);
}

int http_sites_add(struct http_sites *sites, const struct http_site *site)
{
    struct http_site added = *site;
    struct http_site *items = reallocarray(sites->items, (size_t)sites->count + 1, sizeof *items);
    if (items == NULL) {
        http_site_clear(&added);
        return -ENOMEM;
    }
    added.number = sites->count;
    added.index_length = strlen(added.index);
    items[sites->count++] = added;
    sites->items = items;
    return 0;
}

void http_sites_free(struct http_sites *sites)
{
    for (unsigned i = 0; i < sites->count; i++)
        http_site_clear(&sites->items[i]);
    free(sites->items);
    host_names_free(&sites->names);
    *sites = (struct http_sites){0};
}

const struct http_site *http_sites_look_up(const struct http_sites *sites, struct slice host)
{
    int site = host_names_find(&sites->names, host);
    if (site >= 0)
        return &sites->items[site];
    return sites->refuse_unknown ? NULL : &sites->items[sites->fallback];
}

size_t http_sites_extra_room(const struct http_sites *sites)
{
    size_t room = 0;
    for (unsigned i = 0; i < sites->count; i++) {
        size_t header = sites->items[i].extras.header_length;
        room = header > room ? header : room;
    }
    return room + sizeof "Cache-Control: \r\n" + EXTRAS_CACHE_MAX;
}
