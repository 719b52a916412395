/* SPDX-License-Identifier: MIT
 *
 * --route NAME: what the user asks for is looked at before anything is opened or served. Refusals are printed to
 * standard error.
 */
#ifndef SLUICE_SERVICE_ROUTES_H
#define SLUICE_SERVICE_ROUTES_H

#include <sluice/sluice.h>

/* The route called so, or -EINVAL, and the nearest name is proposed. */
int routes_parse(const char *program, const char *name);

/* Could the route ever carry this (sluice_route_check)? If not, why is printed, and which routes could. */
bool routes_check(const char *program, enum sluice_route route, enum sluice_end_kind source, unsigned source_flags,
                  enum sluice_end_kind sink, size_t sinks);

#endif
