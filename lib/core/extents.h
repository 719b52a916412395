/* SPDX-License-Identifier: MIT
 *
 * What lies behind the bytes of a file: data or holes, and whether two files share it.
 */
#ifndef SLUICE_CORE_EXTENTS_H
#define SLUICE_CORE_EXTENTS_H

#include "end.h"

/* Is there data or a hole at offset, and up to where? *ret_to is UINT64_MAX for a hole that reaches the file's end, and
 * for data where the file system does not tell. A descriptor that is the caller's has its position back on return. */
bool extents_at(struct sluice_end *end, uint64_t offset, uint64_t *calls, uint64_t *ret_to);

/* What a range of a file consists of, by FIEMAP, in bytes. */
struct extents {
    uint64_t shared; /* with another file */
    uint64_t inside; /* the metadata: small files of btrfs and ext4 */
    uint64_t own;
    uint64_t none; /* not mapped: holes, or data that this file system does not show before it is written out */
};

/* Nothing is written out for it: what has no place on the disk yet is own. Returns 0 or a negative errno (EOPNOTSUPP,
 * ENOTTY: this file system does not tell). */
int extents_map(struct sluice_end *end, uint64_t offset, uint64_t length, uint64_t *calls, struct extents *ret);

/* What extents_map says of this file is all that happened: a local file system that shows data not yet written out, and
 * whose copy_file_range either shares extents or copies by the CPU. */
bool extents_are_the_truth(struct sluice_end *end, uint64_t *calls);

/* This file's bytes lie in memory only: there are no extents to share. */
bool extents_are_pages(struct sluice_end *end, uint64_t *calls);

#endif
