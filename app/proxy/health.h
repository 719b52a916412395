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
    int freed_fd; /* of balancer_options: written when a server went up or down, for those who wait for one */
    struct sluice_loop *loop;
    /* A server went up or down: one line for the operator. May be NULL. Must not stop the checks. */
    void (*say)(void *context, const char *line);
    void *context;
};

/* Begin: at once the first time, spread over the interval then. What is not known of a server is decided by its first
 * check, what is (server_state) changes as rise and fall say. What options points to must outlive it. Returns 0, or:
 * -ENOMEM; -EINVAL check_path or check_host cannot stand in a request. */
int health_start(const struct health_options *options, struct health **ret_health);

/* Checks under way are broken off, without a verdict. */
void health_stop(struct health *health);

#endif
