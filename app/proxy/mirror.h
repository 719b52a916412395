/* SPDX-License-Identifier: MIT
 *
 * A shadow of one direction: a connection of its own, to which the same bytes are sent by tee(2), without the live
 * connection ever waiting for it. What it answers is read and thrown away. At its first loss it is reset, and counted.
 */
#ifndef SLUICE_PROXY_MIRROR_H
#define SLUICE_PROXY_MIRROR_H

#include <sluice/sluice.h>
#include <stdbool.h>

struct relay;
struct mirror;

/* Begin to connect. NULL when that is impossible, which is counted as a loss: the relay goes on without. */
struct mirror *mirror_open(struct relay *relay);

/* Bytes that mirror_stream is to send to both before the stream. Copied. */
int mirror_add(struct mirror *mirror, const char *data, size_t length);

/* As sluice_loop_transfer of these options, to the shadow, too. */
int mirror_stream(struct mirror *mirror, const struct sluice_transfer_options *options, sluice_transfer_done_fn *done,
                  void *context, struct sluice_transfer **ret_transfer, const struct sluice_receipt **ret_receipt,
                  struct sluice_error *ret_error);

/* That transfer is done: count what the shadow got. */
void mirror_count(struct mirror *mirror, const struct sluice_transfer *transfer);

/* The stream is over, no transfer is using the mirror: the shadow's peer is told its end, and may finish; or, with
 * reset, gets a reset. Frees the mirror, sooner or later. */
void mirror_end(struct mirror *mirror, bool reset);

/* For the worker's end: the mirror in proxy_worker.mirrors by this link; close it and free it. */
struct list;
struct mirror *mirror_of(struct list *link);
void mirror_free(struct mirror *mirror);

#endif
