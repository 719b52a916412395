/* SPDX-License-Identifier: MIT
 *
 * Included before every source file of the library that test_faults.c is linked with (gcc -include). Each use of the
 * table `sys` in the text of the library becomes a call site of its own: it lists itself at link time, so that one that
 * no test reaches is known too, and announces itself before its call. free() is taken along, to pair with allocate().
 */
#ifndef SLUICE_TESTS_FAULTS_SEAM_H
#define SLUICE_TESTS_FAULTS_SEAM_H

#include "../../../lib/core/sys.h"
#include "faults.h"
#include <stdlib.h>

#define sys                                                                                                            \
    (*__extension__({                                                                                                  \
        static struct fault_site fault_here = {.file = __FILE__, .line = __LINE__};                                    \
        static struct fault_site *const fault_listed __attribute__((used, section("fault_sites"))) = &fault_here;      \
        fault_arrive(&fault_here, __func__);                                                                           \
    }))
#define free fault_free

#endif
