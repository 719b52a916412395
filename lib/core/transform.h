/* SPDX-License-Identifier: MIT
 *
 * The bytes of a transfer that has a transform: source -> memory -> transform -> memory -> sink.
 */
#ifndef SLUICE_CORE_TRANSFORM_H
#define SLUICE_CORE_TRANSFORM_H

#include "transfer.h"

int transform_begin(struct sluice_transfer *transfer);
void transform_free(struct sluice_transfer *transfer);

/* As lane_next, for the lane of such a transfer. */
int transform_next(struct lane *lane, struct op *ops);

/* A write of transformed bytes ended. Returns as lane_complete. */
int transform_written(struct lane *lane, ssize_t bytes);

/* For transform.c: the source's bytes at the lane's position, read by ops, at most so many (0: none), if they are not
 * at hand. Returns the number of bytes (> 0) in *ret_piece; 0 with *ret_ops ops to be carried out first, or none when
 * the lane waits, nothing is at hand or the source has ended (lane->segment says so); or a negative errno. */
ssize_t lane_pull(struct lane *lane, size_t read_most, struct iovec *ret_piece, struct op *ops, int *ret_ops);

/* All is delivered: let go what was held back, in one op, or say that the lane is done. */
int lane_finish(struct lane *lane, struct op *ops);

/* The transform used this much of it: a buffer that it was read into and that holds no more is given back. */
void lane_consumed(struct lane *lane, uint64_t bytes);

#endif
