/* SPDX-License-Identifier: MIT */
#include "routes.h"
#include "options.h"

#include <errno.h>
#include <string.h>

int routes_parse(const char *name, struct failure *failure)
{
    const char *names[SLUICE_ROUTE_COUNT + 1] = {NULL};
    int route = sluice_route_by_name(name);
    if (route >= 0)
        return route;
    for (int i = 0; i < SLUICE_ROUTE_COUNT; i++)
        names[i] = sluice_route_name((enum sluice_route)i);
    const char *nearest = options_nearest(name, names);
    return failure_set(failure, -EINVAL, "%.60s: there is no such route%s%s%s", name,
                       nearest != NULL ? "; did you mean " : "", nearest != NULL ? nearest : "",
                       nearest != NULL ? "?" : "");
}

int routes_check(enum sluice_route route, enum sluice_end_kind source, unsigned source_flags, enum sluice_end_kind sink,
                 size_t sinks, struct failure *failure)
{
    const char *reason;
    char able[200] = "";
    if (sluice_route_check(route, source, source_flags, sink, sinks, &reason) == 0)
        return 0;
    for (int i = SLUICE_ROUTE_AUTO + 1; i < SLUICE_ROUTE_COUNT; i++) {
        size_t at = strlen(able);
        if (sluice_route_check((enum sluice_route)i, source, source_flags, sink, sinks, NULL) == 0)
            snprintf(able + at, sizeof able - at, "%s%s", at > 0 ? ", " : "", sluice_route_name((enum sluice_route)i));
    }
    return failure_set(failure, -EINVAL, "%s never carries %s to %s%s: %s. Routes that can: %s.",
                       sluice_route_name(route), sluice_end_kind_name(source), sinks > 1 ? "several sinks, one a " : "",
                       sluice_end_kind_name(sink), reason, able);
}

void routes_add_names(enum sluice_end_kind source, enum sluice_end_kind sink, size_t sinks,
                      const char *names[static ROUTES_NAMES])
{
    for (int i = SLUICE_ROUTE_AUTO; i < SLUICE_ROUTE_COUNT; i++) {
        const char **at = names, *name = sluice_route_name((enum sluice_route)i);
        if (sluice_route_check((enum sluice_route)i, source, 0, sink, sinks, NULL) < 0)
            continue;
        while (*at != NULL && *at != name)
            at++;
        *at = name;
    }
}
