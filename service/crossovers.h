/* SPDX-License-Identifier: MIT
 *
 * What transfers learn about sizes, kept from run to run of a command. Read before workers are forked, written by the
 * process that is not confined, at its end.
 */
#ifndef SLUICE_SERVICE_CROSSOVERS_H
#define SLUICE_SERVICE_CROSSOVERS_H

#include <stdbool.h>

/* say: NULL, or told in one line what was found, for --verbose. share: processes forked from now on learn together. */
void crossovers_begin(const char *program, bool share, void (*say)(void *context, const char *line), void *context);
void crossovers_end(const char *program, void (*say)(void *context, const char *line), void *context);

#endif
