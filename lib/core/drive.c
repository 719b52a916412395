/* SPDX-License-Identifier: MIT
 *
 * Two of the three ways in: the blocking call, and the resumable transfer for other people's loops. The third is in
 * loop/.
 */
#include "../base/clock.h"
#include "fanout.h"
#include "receipt.h"
#include "sigpipe.h"
#include "sys.h"
#include "transfer.h"
#include <errno.h>
#include <stdlib.h>

int sluice_transfer_new(const struct sluice_transfer_options *options, struct sluice_transfer **ret_transfer,
                        struct sluice_error *ret_error)
{
    struct sluice_transfer *transfer = sys.allocate(1, sizeof *transfer);
    if (transfer == NULL) {
        if (ret_error != NULL)
            *ret_error = (struct sluice_error){.code = -ENOMEM, .operation = "plan"};
        return -ENOMEM;
    }
    int result = transfer_begin(transfer, options, ret_error);
    if (result < 0) {
        free(transfer);
        return result;
    }
    *ret_transfer = transfer;
    return 0;
}

/* Who steps again after there was nothing to wait for but pages has read them. Asking once more could go on for ever:
 * there are file systems that deny RWF_NOWAIT every time, and memory so short that the pages are gone already. */
static void believe_pages(struct sluice_transfer *transfer)
{
    for (uint32_t i = 0; i < transfer->lane_count; i++) {
        enum lane_wait wait = transfer->lanes[i].wait;
        if (wait == LANE_RUNS || wait == LANE_WAITS_SOURCE || wait == LANE_WAITS_SINK)
            return;
    }
    for (uint32_t i = 0; i < transfer->lane_count; i++) {
        const struct lane *lane = &transfer->lanes[i];
        if (lane->wait == LANE_WAITS_PAGES)
            end_note_resident(lane_segment(lane, lane->segment)->end, lane->wait_offset, lane->wait_length,
                              transfer->loop_now);
    }
}

/* Read the error queues of sinks that were lent to: a poll returns at once as long as something is in them. */
static void collect_loans(struct sluice_transfer *transfer)
{
    for (uint32_t i = 0; i < transfer->lane_count && transfer->account != NULL; i++)
        if (transfer->lanes[i].sink != NULL && end_has_lent(transfer->lanes[i].sink))
            end_collect(transfer->lanes[i].sink, &transfer->lanes[i].receipt.system_calls);
}

/* Writing to files and memory raises none; the guard takes four system calls, 5 % of copying a small file. */
static bool may_raise_sigpipe(const struct sluice_transfer *transfer)
{
    for (uint32_t i = 0; i < transfer->lane_count; i++) {
        const struct sluice_end *sink = transfer->lanes[i].sink;
        if (sink != NULL && !end_is_file(sink) && sink->kind != SLUICE_END_MEMORY)
            return true;
    }
    return false;
}

int sluice_transfer_step(struct sluice_transfer *transfer, struct sluice_waits *ret_waits)
{
    struct sigpipe_guard guard = {.active = false};
    if (transfer->flags & SLUICE_TRANSFER_NEVER_BLOCK) {
        transfer->loop_now = clock_coarse_ms();
        believe_pages(transfer);
    }
    collect_loans(transfer);
    if (may_raise_sigpipe(transfer))
        sigpipe_block(&guard);
    int result = transfer_step(transfer, ret_waits);
    sigpipe_restore(&guard);
    if (transfer->fanout != NULL)
        fanout_tell(transfer, false);
    loans_call_back();
    return result;
}

const struct sluice_receipt *sluice_transfer_receipt(const struct sluice_transfer *transfer, unsigned sink)
{
    return &transfer->lanes[sink].receipt;
}

const struct sluice_error *sluice_transfer_error(const struct sluice_transfer *transfer)
{
    return &transfer->error;
}

void sluice_transfer_free(struct sluice_transfer *transfer)
{
    if (transfer == NULL)
        return;
    if (transfer->account != NULL) /* the caller has read its receipts: what comes back from now on is a difference */
        account_settle(transfer->account);
    transfer_end(transfer);
    free(transfer);
    loans_call_back();
}

/* Asked for and waited for piece by piece: a helper that sleeps for the disk after every piece leaves the processor to
 * the loop's thread, where one that asks for the whole window keeps it for milliseconds at a time. */
#define PAGES_PIECE (256u << 10)

int sluice_wait_pages(const struct sluice_wait *wait)
{
    char byte;
    uint64_t end = wait->offset + wait->length;
    for (uint64_t at = wait->offset; at < end;) {
        size_t piece = end - at < PAGES_PIECE ? (size_t)(end - at) : PAGES_PIECE;
        sys.readahead(wait->fd, (off_t)at, piece);
        at += piece;
        ssize_t result;
        do
            result = sys.pread(wait->fd, &byte, 1, (off_t)at - 1);
        while (result < 0 && errno == EINTR);
        if (result < 0)
            return -errno;
        if (result == 0)
            return 0;
    }
    return 0;
}

static int wait_for(const struct sluice_waits *waits)
{
    struct pollfd fds[SLUICE_WAITS_MAX];
    for (unsigned i = 0; i < waits->count; i++) {
        fds[i].fd = waits->wait[i].fd;
        fds[i].events = waits->wait[i].kind == SLUICE_WAIT_READABLE ? POLLIN : POLLOUT;
    }
    for (;;) {
        int ready = sys.poll(fds, waits->count, waits->timeout);
        if (ready > 0 || (ready == 0 && waits->timeout >= 0))
            return 0;
        if (ready < 0 && errno != EINTR)
            return -errno;
    }
}

/* Poll says POLLERR of a queue to be read, and for good of a connection that is dead and whose last packets are still
 * on their way: then time has to pass. */
#define LOANS_POLL_MS 1

static void wait_for_loans(struct sluice_transfer *transfer)
{
    struct loan_account *account = transfer->account;
    collect_loans(transfer);
    while (account_loans(account) > 0) {
        struct pollfd fds[SLUICE_SINKS_MAX];
        nfds_t count = 0;
        uint32_t before = account_loans(account);
        for (uint32_t i = 0; i < transfer->lane_count; i++)
            if (transfer->lanes[i].receipt.loans > 0)
                fds[count++] = (struct pollfd){.fd = transfer->lanes[i].sink->fd};
        sys.poll(fds, count, -1);
        collect_loans(transfer);
        if (account_loans(account) == before)
            sys.poll(NULL, 0, LOANS_POLL_MS);
    }
}

int sluice_transfer_run(const struct sluice_transfer_options *options, struct sluice_receipt *ret_receipts,
                        struct sluice_error *ret_error)
{
    struct sluice_transfer *transfer;
    struct sluice_transfer_options blocking = *options;
    blocking.flags &= ~(unsigned)SLUICE_TRANSFER_NEVER_BLOCK; /* the disk may be waited for like everything else */
    blocking.flags |= TRANSFER_BLOCKING;
    struct sluice_error error = {0};
    int result = sluice_transfer_new(&blocking, &transfer, &error);
    if (result == 0) {
        struct sigpipe_guard guard = {.active = false};
        struct sluice_waits waits;
        if (may_raise_sigpipe(transfer))
            sigpipe_block(&guard);
        do {
            result = transfer_step(transfer, &waits);
            if (transfer->fanout != NULL)
                fanout_tell(transfer, true);
            if (result == SLUICE_STEP_WAIT) {
                collect_loans(transfer);
                int waited = wait_for(&waits);
                if (waited < 0)
                    result = transfer_fail(&transfer->lanes[0], waited, "poll", NULL, NULL);
            }
        } while (result > 0);
        wait_for_loans(transfer);
        if (transfer->fanout != NULL)
            fanout_tell(transfer, false);
        sigpipe_restore(&guard);
        struct loan_account *account = account_keep(transfer->account);
        transfer_settle(transfer); /* also after a failure the receipt says all that can be known */
        error = transfer->error;
        if (ret_receipts != NULL)
            for (uint32_t i = 0; i < transfer->lane_count; i++)
                receipt_copy(&ret_receipts[i], &transfer->lanes[i].receipt);
        transfer_end(transfer);
        free(transfer);
        account_call_back(account); /* of this transfer alone: this may be within a callback of a loop */
        account_drop(account);
    } else {
        transfer_refuse(&blocking, ret_receipts, options->sink_count);
    }
    if (ret_error != NULL)
        *ret_error = error;
    return result;
}
