/* SPDX-License-Identifier: MIT */
#ifndef SLUICE_CORE_PLAN_H
#define SLUICE_CORE_PLAN_H

#include "route.h"

/* The best route for the pair that is not in the set `without` (bit per route), or NULL. Cheap: a table per class. */
const struct route *plan_choose(const struct pair *pair, unsigned without);

/* What a segment of this transfer and a sink make. */
struct pair plan_pair(const struct sluice_segment *segment, const struct sluice_end *sink);

#endif
