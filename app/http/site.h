/* SPDX-License-Identifier: MIT
 *
 * The sites of a server: each with names, a directory, and what is particular to it. Made before the workers are
 * forked; not changed after.
 */
#ifndef SLUICE_APP_HTTP_SITE_H
#define SLUICE_APP_HTTP_SITE_H

#include "beneath.h"
#include "extras.h"
#include "host.h"
#include <stdio.h>

struct http_site {
    unsigned number; /* its place in http_sites */
    int root;        /* O_PATH */
    char *directory; /* of which path that is */
    enum beneath_symlinks symlinks;
    const char *index; /* file that stands for its directory: "index.html" */
    size_t index_length;
    bool listing;       /* answer for a directory without one; else 403 */
    bool precompressed; /* NAME.br, .zst, .gz instead of NAME where that is accepted */
    uint64_t rate;      /* bytes per second of each connection; 0: no limit */
    uint64_t drop_from; /* files of so many bytes are dropped from the page cache behind the sending, as far as they had
                           to be read for it; 0: none */
    struct http_extras extras;
};

struct http_sites {
    struct http_site *items;
    unsigned count;
    struct host_names names;
    unsigned fallback;   /* the number of the site that answers for a host that is nobody's, */
    bool refuse_unknown; /* unless those are refused */
};

/* A site like *site, of which it takes what has to be freed in every case. Its number is the count before. Returns 0 or
 * -ENOMEM. */
int http_sites_add(struct http_sites *sites, const struct http_site *site);

void http_sites_free(struct http_sites *sites);

/* Frees what a site has, not the site. */
void http_site_clear(struct http_site *site);

const struct http_site *http_sites_look_up(const struct http_sites *sites, struct slice host);

/* Who answers a request for this host, as http_request has it. NULL: nobody. */
static inline const struct http_site *http_sites_find(const struct http_sites *sites, struct slice host)
{
    return sites->names.count == 0 ? &sites->items[sites->fallback] : http_sites_look_up(sites, host);
}

/* Bytes that extras of any site may add to a head. */
size_t http_sites_extra_room(const struct http_sites *sites);

#endif
