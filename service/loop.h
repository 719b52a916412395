/* SPDX-License-Identifier: MIT
 *
 * --loop KIND and --sqpoll: what carries everything. Looked at before anything starts.
 */
#ifndef SLUICE_SERVICE_LOOP_H
#define SLUICE_SERVICE_LOOP_H

#include <sluice/sluice.h>
#include <stdbool.h>

/* Fills the options. Why not is printed to standard error, and with verbose what auto means here. Returns an exit code;
 * EXIT_CODE_DONE: go on. */
int loop_choose(const char *program, const char *kind_name, bool sqpoll, bool verbose,
                struct sluice_loop_options *ret_options);

#endif
