/* SPDX-License-Identifier: MIT */
#ifndef SLUICE_ROUTE_SKELETON_H
#define SLUICE_ROUTE_SKELETON_H

#include "../core/route.h"

extern const struct route route_skeleton;

#endif
