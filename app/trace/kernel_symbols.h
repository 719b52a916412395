/* SPDX-License-Identifier: MIT
 *
 * The kernel's functions by address, from /proc/kallsyms.
 */
#ifndef SLUICE_APP_TRACE_KERNEL_SYMBOLS_H
#define SLUICE_APP_TRACE_KERNEL_SYMBOLS_H

#include "frames.h"
#include <stdbool.h>
#include <stdint.h>

struct kernel_symbols;

/* Returns 0 or -ENOMEM. A file that is not there or shows no addresses makes symbols that know nothing. */
int kernel_symbols_new(const char *path, struct kernel_symbols **ret_symbols);
void kernel_symbols_free(struct kernel_symbols *symbols);
bool kernel_symbols_known(const struct kernel_symbols *symbols);

/* What the table of frames knows of the function at an address, and its name; NULL, and *ret_name untouched: nothing.
 */
const struct frame_pattern *kernel_symbols_find(struct kernel_symbols *symbols, uint64_t address,
                                                const char **ret_name);

#endif
