/* SPDX-License-Identifier: MIT
 *
 * Active health checks: one worker of a generation (index 0) asks every server of every service, and tells all by the
 * shared state.
 */
#ifndef SLUICE_PROXY_HEALTH_H
#define SLUICE_PROXY_HEALTH_H

#include "proxy/balance.h"

struct health;

struct health_options {
    const struct proxy_service *service;
    struct server_state *servers;
    struct sluice_loop *loop;
    /* A server went up or down: one line for the operator. May be NULL. */
    void (*say)(void *context, const char *line);
    void *context;
};

/* Begin: at once the first time, spread over the interval then. Returns 0 or a negative errno. */
int health_start(const struct health_options *options, struct health **ret_health);
void health_stop(struct health *health);

#endif
