/* SPDX-License-Identifier: MIT
 *
 * What all services' options name, looked at before anything starts: so that --check-config and a reload tell, too, and
 * with the line.
 */
#ifndef SLUICE_SERVICE_PREFLIGHT_H
#define SLUICE_SERVICE_PREFLIGHT_H

#include "service/config_file.h"

struct preflight {
    const char *admin; /* where; each may be NULL */
    bool admin_anywhere;
    const char *user, *group;
    const char *log_option, *log; /* the option's name, and what it says */
};

/* Nothing is made, bound or opened. Returns 0 or a negative errno, with place and reason in failure. */
int preflight(const struct preflight *named, const struct config_origin *origin, struct failure *failure);

#endif
