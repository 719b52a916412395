/* SPDX-License-Identifier: MIT */
#include "routes.h"
#include "options.h"

#include <errno.h>
#include <stdio.h>

int routes_parse(const char *program, const char *name)
{
    const char *names[SLUICE_ROUTE_COUNT + 1] = {NULL};
    int route = sluice_route_by_name(name);
    if (route >= 0)
        return route;
    for (int i = 0; i < SLUICE_ROUTE_COUNT; i++)
        names[i] = sluice_route_name((enum sluice_route)i);
    const char *nearest = options_nearest(name, names);
    fprintf(stderr, "%s: unknown route %s%s%s\nTry '%s --help'.\n", program, name,
            nearest != NULL ? "; did you mean " : "", nearest != NULL ? nearest : "", program);
    return -EINVAL;
}

bool routes_check(const char *program, enum sluice_route route, enum sluice_end_kind source, unsigned source_flags,
                  enum sluice_end_kind sink, size_t sinks)
{
    const char *reason, *separator = "";
    if (sluice_route_check(route, source, source_flags, sink, sinks, &reason) == 0)
        return true;
    fprintf(stderr, "%s: --route %s never carries %s to %s%s: %s. Routes that can: ", program, sluice_route_name(route),
            sluice_end_kind_name(source), sinks > 1 ? "several sinks, one a " : "", sluice_end_kind_name(sink), reason);
    for (int i = SLUICE_ROUTE_AUTO + 1; i < SLUICE_ROUTE_COUNT; i++) {
        if (sluice_route_check((enum sluice_route)i, source, source_flags, sink, sinks, NULL) < 0)
            continue;
        fprintf(stderr, "%s%s", separator, sluice_route_name((enum sluice_route)i));
        separator = ", ";
    }
    fputs(".\n", stderr);
    return false;
}
