/* SPDX-License-Identifier: MIT
 *
 * The limit on locked memory, which what is lent to the kernel counts against.
 */
#ifndef SLUICE_CORE_MEMLOCK_H
#define SLUICE_CORE_MEMLOCK_H

#include <stddef.h>

/* Could a call ever lend so much memory (LEND_STEP at most)? NULL, or why not: how much is needed, how much is allowed,
 * and how to allow more. Static. The limit is asked for once a second at most. */
const char *memlock_shortage(size_t bytes);

/* Ask again (tests). */
void memlock_forget(void);

#endif
