/* SPDX-License-Identifier: MIT
 *
 * --loop KIND and --sqpoll: what carries everything. Looked at before anything starts.
 */
#ifndef SLUICE_SERVICE_LOOP_H
#define SLUICE_SERVICE_LOOP_H

#include "base/failure.h"
#include <sluice/sluice.h>
#include <stdbool.h>

/* What --loop takes, in the order of enum sluice_loop_kind; ends with NULL. */
extern const char *const loop_kinds[];

/* Fills the options, if this kind works here. Returns 0 or a negative errno. */
int loop_choose(enum sluice_loop_kind kind, bool sqpoll, struct sluice_loop_options *ret_options,
                struct failure *failure);

/* What auto means here, to standard error. */
void loop_say(const char *program, const struct sluice_loop_options *options);

#endif
