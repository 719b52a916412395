/* SPDX-License-Identifier: MIT
 *
 * Small messages, few system calls. Messages are collected in a batch, copied next to one another when small, else
 * referred to; a batch leaves as one transfer with a segment for each piece, so that short counts, full sinks and
 * receipts are what they are everywhere. There are two batches: one fills while the other leaves.
 */
#include "sys.h"
#include "transfer.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_BYTES (64u << 10)
#define DEFAULT_MESSAGES 64
#define DEFAULT_COPY_BELOW 1024

struct batch {
    struct sluice_segment *segments;
    unsigned count, messages;
    char *room; /* what was copied */
    size_t used;
    uint64_t bytes;
};

struct sluice_gather {
    struct sluice_gather_options options; /* with the defaults filled in */
    struct batch filling, leaving;
    struct sluice_transfer *transfer; /* carries what is leaving; NULL: nothing is */
    struct sluice_receipt receipt;    /* of the transfers that ended */
    unsigned unsettled;               /* of these, the ones whose memory the kernel still has in part */
    struct sluice_error error;
    int failed;   /* the stream is broken: negative errno */
    bool closing; /* in sluice_gather_free; then freed as soon as nothing is unsettled */
};

/* ---- Batches -------------------------------------------------------------------------------------------------- */

static void release_segment(const struct sluice_segment *segment)
{
    if (segment->release != NULL)
        segment->release(segment->release_context, segment->data, segment->length);
}

static void empty_batch(struct batch *batch)
{
    batch->count = batch->messages = 0;
    batch->used = 0;
    batch->bytes = 0;
}

static void swap_batches(struct sluice_gather *gather)
{
    struct batch filled = gather->filling;
    gather->filling = gather->leaving;
    gather->leaving = filled;
}

/* Behind what was copied before it, unless every message is a datagram. */
static bool joins(const struct sluice_gather *gather, const struct batch *batch)
{
    const struct sluice_segment *last = batch->count > 0 ? &batch->segments[batch->count - 1] : NULL;
    return gather->options.sink->kind != SLUICE_END_DATAGRAM && last != NULL && last->release == NULL &&
           (const char *)last->data + last->length == batch->room + batch->used;
}

static void append_copy(struct sluice_gather *gather, const void *data, size_t length)
{
    struct batch *batch = &gather->filling;
    bool joined = joins(gather, batch);
    char *place = batch->room + batch->used;
    memcpy(place, data, length);
    gather->receipt.copy_bytes += length; /* one more than the sink's */
    batch->used += length;
    if (joined)
        batch->segments[batch->count - 1].length += length;
    else
        batch->segments[batch->count++] =
            (struct sluice_segment){.kind = SLUICE_SEGMENT_MEMORY, .data = place, .length = length};
}

/* ---- Leaving ---------------------------------------------------------------------------------------------------- */

/* What has ended without all bytes: a stream with a hole in it cannot go on, datagrams can. */
static int fail(struct sluice_gather *gather, int code, const struct sluice_error *error)
{
    gather->error = *error;
    if (gather->options.sink->kind != SLUICE_END_DATAGRAM)
        gather->failed = code;
    return code;
}

static void on_done(void *context, struct sluice_transfer *transfer, int result);

/* The last of a transfer's memory is back. */
static void on_settled(void *context, unsigned sink, const struct sluice_receipt *difference)
{
    struct sluice_gather *gather = context;
    (void)sink;
    sluice_receipt_add(&gather->receipt, difference);
    if (--gather->unsettled == 0 && gather->closing)
        free(gather);
}

static void has_ended(struct sluice_gather *gather, const struct sluice_receipt *receipt)
{
    sluice_receipt_add(&gather->receipt, receipt);
    if (!sluice_receipt_is_final(receipt))
        gather->unsettled++;
    empty_batch(&gather->leaving);
}

static struct sluice_transfer_options transfer_options(struct sluice_gather *gather)
{
    return (struct sluice_transfer_options){.size = sizeof(struct sluice_transfer_options),
                                            .segments = gather->leaving.segments,
                                            .segment_count = gather->leaving.count,
                                            .sinks = &gather->options.sink,
                                            .sink_count = 1,
                                            .sink_offset = SLUICE_APPEND,
                                            .settled = on_settled,
                                            .settled_context = gather};
}

/* On the loop. Returns 1 when everything was moved, 0 when it goes on by itself, or a negative errno. */
static int start_on_loop(struct sluice_gather *gather)
{
    struct sluice_transfer_options options = transfer_options(gather);
    const struct sluice_receipt *receipt;
    struct sluice_error error;
    int result =
        sluice_loop_transfer(gather->options.loop, &options, on_done, gather, &gather->transfer, &receipt, &error);
    if (result == 0)
        return 0;
    gather->transfer = NULL;
    has_ended(gather, receipt);
    return result < 0 ? fail(gather, result, &error) : 1;
}

/* The receipt as it is when nothing more of it is entered but by on_settled. */
static void end_transfer(struct sluice_gather *gather)
{
    struct sluice_transfer *transfer = gather->transfer;
    gather->transfer = NULL;
    transfer_settle(transfer);
    has_ended(gather, sluice_transfer_receipt(transfer, 0));
    sluice_transfer_free(transfer);
}

static int wait_for(const struct sluice_waits *waits)
{
    struct pollfd sink = {.fd = waits->wait[0].fd, .events = POLLOUT};
    while (sys.poll(&sink, 1, -1) < 0)
        if (errno != EINTR)
            return -errno;
    return 0;
}

/* Returns as start_on_loop; ret_waits NULL: never 0. */
static int step(struct sluice_gather *gather, struct sluice_waits *ret_waits)
{
    struct sluice_waits waits;
    struct sluice_error error;
    int result = 0;
    if (gather->transfer == NULL) {
        struct sluice_transfer_options options = transfer_options(gather);
        result = sluice_transfer_new(&options, &gather->transfer, &error);
        if (result < 0) { /* nothing was taken: it can be tried again */
            swap_batches(gather);
            return result;
        }
    }
    do {
        result = sluice_transfer_step(gather->transfer, &waits);
        if (result != SLUICE_STEP_WAIT)
            continue;
        if (ret_waits != NULL) {
            *ret_waits = waits;
            return 0;
        }
        int waited = wait_for(&waits);
        if (waited < 0)
            return waited; /* the transfer is as good as before */
    } while (result > 0);
    error = *sluice_transfer_error(gather->transfer);
    end_transfer(gather);
    return result < 0 ? fail(gather, result, &error) : 1;
}

int sluice_gather_flush(struct sluice_gather *gather, struct sluice_waits *ret_waits)
{
    for (;;) {
        if (gather->failed < 0)
            return gather->failed;
        if (gather->transfer != NULL && gather->options.loop != NULL) {
            if (ret_waits != NULL)
                ret_waits->count = 0; /* the loop goes on by itself */
            return SLUICE_STEP_WAIT;
        }
        if (gather->transfer == NULL) {
            if (gather->filling.count == 0)
                return SLUICE_STEP_DONE;
            swap_batches(gather);
        }
        int result = gather->options.loop != NULL ? start_on_loop(gather) : step(gather, ret_waits);
        if (result < 0)
            return result;
        if (result == 0 && gather->options.loop == NULL)
            return SLUICE_STEP_WAIT;
    }
}

static void on_done(void *context, struct sluice_transfer *transfer, int result)
{
    struct sluice_gather *gather = context;
    gather->transfer = NULL;
    has_ended(gather, sluice_transfer_receipt(transfer, 0));
    if (result < 0)
        fail(gather, result, sluice_transfer_error(transfer));
    if (gather->closing)
        return;
    struct sluice_waits waits;
    if (result == 0 && sluice_gather_flush(gather, &waits) == SLUICE_STEP_WAIT)
        return; /* what was added meanwhile is on its way */
    if (gather->options.flushed != NULL)
        gather->options.flushed(gather->options.context, gather->failed < 0 ? gather->failed : result);
}

/* ---- Adding ------------------------------------------------------------------------------------------------------ */

static bool is_full(const struct sluice_gather *gather)
{
    const struct batch *batch = &gather->filling;
    return batch->messages >= gather->options.messages || batch->bytes >= gather->options.bytes;
}

int sluice_gather_add(struct sluice_gather *gather, const void *data, size_t length, sluice_release_fn *release,
                      void *release_context)
{
    struct sluice_waits waits;
    struct sluice_segment segment = {.kind = SLUICE_SEGMENT_MEMORY,
                                     .data = data,
                                     .length = length,
                                     .release = release,
                                     .release_context = release_context};
    bool copies = release == NULL || (length <= gather->options.copy_below && length <= gather->options.bytes);
    if (gather->failed < 0)
        return gather->failed;
    if (copies && length > gather->options.bytes)
        return -EMSGSIZE;
    if (is_full(gather) || (copies && gather->filling.used + length > gather->options.bytes)) {
        int result = sluice_gather_flush(gather, &waits);
        if (result < 0)
            return result;
        /* Something is still leaving; what fills may have left or not. */
        if (is_full(gather) || (copies && gather->filling.used + length > gather->options.bytes))
            return -EAGAIN;
    }
    if (length == 0 || copies) {
        if (length > 0)
            append_copy(gather, data, length);
        release_segment(&segment);
    } else {
        gather->filling.segments[gather->filling.count++] = segment;
    }
    gather->filling.messages += length > 0;
    gather->filling.bytes += length;
    if (!is_full(gather))
        return 0;
    int result = sluice_gather_flush(gather, &waits);
    return result < 0 ? result : 0;
}

/* ---- Life ---------------------------------------------------------------------------------------------------------
 */

int sluice_gather_new(const struct sluice_gather_options *options, struct sluice_gather **ret_gather)
{
    if (options->size < sizeof *options || options->sink == NULL || options->messages > SLUICE_GATHER_MESSAGES_MAX)
        return -EINVAL;
    struct sluice_gather *gather = sys.allocate(1, sizeof *gather);
    if (gather == NULL)
        return -ENOMEM;
    gather->options = *options;
    if (options->bytes == 0)
        gather->options.bytes = DEFAULT_BYTES;
    if (options->messages == 0)
        gather->options.messages = DEFAULT_MESSAGES;
    if (options->copy_below == 0)
        gather->options.copy_below = DEFAULT_COPY_BELOW;
    struct batch *batches[] = {&gather->filling, &gather->leaving};
    for (int i = 0; i < 2; i++) {
        batches[i]->segments = sys.allocate(gather->options.messages, sizeof(struct sluice_segment));
        batches[i]->room = sys.allocate(1, gather->options.bytes);
        if (batches[i]->segments == NULL || batches[i]->room == NULL) {
            sluice_gather_free(gather);
            return -ENOMEM;
        }
    }
    *ret_gather = gather;
    return 0;
}

void sluice_gather_free(struct sluice_gather *gather)
{
    if (gather == NULL)
        return;
    gather->closing = true;
    gather->unsettled++; /* ourselves */
    if (gather->transfer != NULL && gather->options.loop != NULL)
        sluice_loop_transfer_cancel(gather->options.loop, gather->transfer);
    else if (gather->transfer != NULL)
        end_transfer(gather);
    for (unsigned i = 0; i < gather->filling.count; i++)
        release_segment(&gather->filling.segments[i]);
    free(gather->filling.segments);
    free(gather->filling.room);
    free(gather->leaving.segments);
    free(gather->leaving.room);
    if (--gather->unsettled == 0)
        free(gather);
}

size_t sluice_gather_pending(const struct sluice_gather *gather)
{
    uint64_t sent = 0;
    if (gather->transfer != NULL)
        sent = sluice_transfer_receipt(gather->transfer, 0)->sent;
    return (size_t)(gather->filling.bytes + gather->leaving.bytes - sent);
}

void sluice_gather_receipt(const struct sluice_gather *gather, struct sluice_receipt *ret_receipt)
{
    *ret_receipt = gather->receipt;
    if (gather->transfer != NULL)
        sluice_receipt_add(ret_receipt, sluice_transfer_receipt(gather->transfer, 0));
}

const struct sluice_error *sluice_gather_error(const struct sluice_gather *gather)
{
    return &gather->error;
}
