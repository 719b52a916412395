/* SPDX-License-Identifier: MIT
 *
 * --route NAME: what the user asks for is looked at before anything is opened or served.
 */
#ifndef SLUICE_SERVICE_ROUTES_H
#define SLUICE_SERVICE_ROUTES_H

#include "base/failure.h"
#include <sluice/sluice.h>

/* The route called so; or -EINVAL, and the nearest name is proposed. */
int routes_parse(const char *name, struct failure *failure);

/* Could the route ever carry this (sluice_route_check)? 0; or -EINVAL, with the reason and the routes that could: text
 * that goes on behind "--route ". */
int routes_check(enum sluice_route route, enum sluice_end_kind source, unsigned source_flags, enum sluice_end_kind sink,
                 size_t sinks, struct failure *failure);

/* For completion: enters into names, behind those that are there, the routes that could ever carry source to so many
 * sinks. Names has room for all and ends with NULL. */
#define ROUTES_NAMES (SLUICE_ROUTE_COUNT + 1)
void routes_add_names(enum sluice_end_kind source, enum sluice_end_kind sink, size_t sinks,
                      const char *names[static ROUTES_NAMES]);

#endif
