/* SPDX-License-Identifier: MIT
 *
 * Memory to be given away (struct sluice_memory).
 */
#ifndef SLUICE_CORE_GIVEN_H
#define SLUICE_CORE_GIVEN_H

#include <sluice/sluice.h>

enum given_fate { GIVEN_UNKNOWN, GIVEN_REFERRED_TO, GIVEN_COPIED };

/* What does this kernel's vmsplice do with pages? Tried out once: a page is vmspliced, changed, and read back from the
 * pipe. Newer kernels may copy. */
enum given_fate given_fate(void);

/* Try again (tests). */
void given_forget(void);

static inline bool segment_is_given(const struct sluice_segment *segment)
{
    return segment->release == sluice_memory_release;
}

#endif
