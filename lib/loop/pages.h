/* SPDX-License-Identifier: MIT
 *
 * Pages of files that are not in memory: helpers read them for a transfer, one window ahead of what it sends. Those of
 * a file with SLUICE_END_DROP_BEHIND are given up again behind it.
 */
#ifndef SLUICE_LOOP_PAGES_H
#define SLUICE_LOOP_PAGES_H

#include "../core/transfer.h"

/* The transfer waits for a range of a file: have it read. Returns 0 or -ENOMEM. */
int pages_want(struct sluice_loop *loop, struct sluice_transfer *transfer, const struct sluice_wait *wait);

/* After a step that did not end the transfer: read on ahead of it. */
void pages_read_ahead(struct sluice_loop *loop, struct sluice_transfer *transfer);

/* After a step: what was read for this transfer and has left the machine may go. */
void pages_drop_behind(struct sluice_transfer *transfer);

/* The transfer ends. What was read for it and has not gone yet goes when the kernel has sent it. */
void pages_detach(struct sluice_transfer *transfer);

/* The loop ends; its helpers have. */
void pages_free(struct sluice_loop *loop);

#endif
