/* SPDX-License-Identifier: MIT */
#ifndef SLUICE_CORE_PRIVILEGE_H
#define SLUICE_CORE_PRIVILEGE_H

#include <stdbool.h>

/* Has this thread a capability (capabilities(7), below 32) in force? One system call. */
bool privilege_has(unsigned capability);

#endif
