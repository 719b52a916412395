/* SPDX-License-Identifier: MIT
 *
 * How far a copy has come, on a terminal: bytes, files, rate, and what is left once the sources have been counted. They
 * are counted by a thread of its own, at a lower priority, when a copy takes longer than two seconds: short ones are
 * not made longer by it.
 */
#ifndef SLUICE_APP_CP_PROGRESS_H
#define SLUICE_APP_CP_PROGRESS_H

#include "report.h"

struct progress;

/* sources: the operands, borrowed. Returns 0 or -ENOMEM. */
int progress_new(struct report *report, char *const *sources, unsigned count, struct progress **ret_progress);

/* Draw it anew. Call about ten times a second. */
void progress_draw(struct progress *progress);

/* Take it off the screen. */
void progress_free(struct progress *progress);

/* Whether anything was drawn. */
bool progress_was_shown(const struct progress *progress);

#endif
