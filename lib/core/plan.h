/* SPDX-License-Identifier: MIT */
#ifndef SLUICE_CORE_PLAN_H
#define SLUICE_CORE_PLAN_H

#include "route.h"

/* The best route for the pair that is not in the set `without` (bit per route), or NULL. Cheap: a table per class. */
const struct route *plan_choose(const struct pair *pair, unsigned without);

/* What a segment of a transfer and a sink make. waits: its caller waits for what is lent. May ask for the sink's egress
 * device, to which the pair then refers. */
struct pair plan_pair(const struct sluice_segment *segment, struct sluice_end *sink, bool waits);

/* What a plan depends on besides a segment and a sink. */
struct plan_setting {
    bool fan_out; /* there are more sinks */
    bool transform;
    bool ring; /* the loop is one */
};

/* sluice_plan_make in a setting. */
int plan_list(const struct sluice_segment *segment, struct sluice_end *sink, const struct plan_setting *setting,
              struct sluice_plan *ret_plan);

/* Of files, what their file systems add to the pair. Returns the routes that these have refused lately, bit per route.
 */
uint32_t plan_between_files(struct pair *pair, const struct sluice_segment *segment, struct sluice_end *sink,
                            uint64_t *calls);

/* The route about which the size of the pair's segment decides: chosen itself, or, if copying was chosen, the first
 * that would have been taken for a larger segment. NULL: there is none, the size decides nothing. */
const struct route *plan_question(const struct pair *pair, const struct route *chosen);

#endif
