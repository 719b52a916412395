/* SPDX-License-Identifier: MIT
 *
 * From what sluice serve was told of its sites, by options and sections of a file, to the sites.
 */
#ifndef SLUICE_APP_SERVE_SITES_H
#define SLUICE_APP_SERVE_SITES_H

#include "http/site.h"
#include "service/config_file.h"
#include "service/options.h"

/* Options that a section may have, too. */
struct site_options {
    const char *root, *index;
    unsigned symlinks;    /* of symlink_policies */
    unsigned cold_policy; /* of cold_policies */
    uint64_t cold_size;   /* 0: as the policy has it */
    bool listing, precompressed;
    uint64_t rate; /* 0: not limited */
    struct option_list cache, header;
    struct option_list certificates; /* for serve_tls: those of all sites make one list */
};

/* In the order of enum beneath_symlinks. */
extern const char *const symlink_policies[];
extern const char *const cold_policies[];

/* The section [host NAME...] begins: the names are those of the site that is added next. Returns 0, -EINVAL or -ENOMEM.
 */
int serve_sites_name(struct http_sites *sites, const char *section, struct failure *why);

/* Add the site that these options describe. A section's lists begin with those of inherited, of which its own take the
 * place where they are about the same; inherited may be the same as options. Returns 0 or a negative errno. */
int serve_sites_add(struct http_sites *sites, const struct site_options *options, const struct site_options *inherited,
                    const struct config_origin *origin, struct failure *failure);

#endif
