/* SPDX-License-Identifier: MIT
 *
 * How many descriptors a process may have.
 */
#ifndef SLUICE_SERVICE_DESCRIPTORS_H
#define SLUICE_SERVICE_DESCRIPTORS_H

#include <stdint.h>

/* Raise the limit on open descriptors as far as one may. Returns what it is then, at most INT_MAX. */
uint64_t descriptors_raise_limit(void);

#endif
