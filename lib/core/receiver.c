/* SPDX-License-Identifier: MIT
 *
 * Received pages for people who want to look at them where they are. A receiver has a fixed number of slots; in each a
 * piece is mapped, or copied into the slot's memory if it cannot be.
 */
#include "end.h"
#include "op.h"
#include "receipt.h"
#include "route.h"
#include "sys.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define PAGE 4096u
#define DEFAULT_PIECE (256u << 10)
#define DEFAULT_PIECES 4
#define PIECES_MAX 64
#define PIECE_MAX (64u << 20)

struct sluice_receiver {
    struct sluice_end *end;
    size_t piece;
    unsigned pieces;
    uint64_t out;     /* bit per slot that is handed out */
    char *pages;      /* a mapping of the socket; NULL: it cannot be had, all is copied */
    bool refused;     /* so it is from now on */
    char *memory;     /* for what is copied; NULL until needed */
    uint32_t to_copy; /* before the next byte that may be mapped */
    struct sluice_receipt receipt;
};

static void copy_everything(struct sluice_receiver *receiver, int error)
{
    struct sluice_fallback fallback = {.from = SLUICE_ROUTE_TCP_RECEIVE,
                                       .to = SLUICE_ROUTE_COPY,
                                       .error = error,
                                       .at = receiver->receipt.sent,
                                       .reason = route_registry[SLUICE_ROUTE_TCP_RECEIVE]->refusal_reason};
    receipt_enter_fallback(&receiver->receipt, &fallback);
}

int sluice_receiver_new(struct sluice_end *end, const struct sluice_receiver_options *options,
                        struct sluice_receiver **ret_receiver)
{
    size_t piece = options != NULL && options->piece != 0 ? options->piece : DEFAULT_PIECE;
    unsigned pieces = options != NULL && options->pieces != 0 ? options->pieces : DEFAULT_PIECES;
    if ((options != NULL && options->size < sizeof *options) || pieces > PIECES_MAX || piece > PIECE_MAX)
        return -EINVAL;
    if (end->kind != SLUICE_END_TCP)
        return -ENOTSOCK;
    struct sluice_receiver *receiver = sys.allocate(1, sizeof *receiver);
    if (receiver == NULL)
        return -ENOMEM;
    receiver->end = end;
    receiver->piece = (piece + PAGE - 1) / PAGE * PAGE;
    receiver->pieces = pieces;
    receiver->receipt.transfers = 1;
    if (end_receives_tls(end)) { /* what could be mapped is not decrypted yet */
        copy_everything(receiver, 0);
        *ret_receiver = receiver;
        return 0;
    }
    receiver->receipt.system_calls++;
    receiver->pages = sys.mmap(NULL, receiver->piece * pieces, PROT_READ, MAP_SHARED, end->fd, 0);
    if (receiver->pages == MAP_FAILED) {
        receiver->pages = NULL;
        copy_everything(receiver, errno);
    }
    *ret_receiver = receiver;
    return 0;
}

static int copy_piece(struct sluice_receiver *receiver, unsigned slot, size_t most, struct sluice_piece *ret_piece)
{
    if (receiver->memory == NULL) {
        receiver->receipt.system_calls++;
        void *memory = sys.mmap(NULL, receiver->piece * receiver->pieces, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            return -ENOMEM;
        receiver->memory = memory;
    }
    struct op op = {.kind = OP_READ,
                    .in = receiver->end->fd,
                    .in_offset = OP_NO_OFFSET,
                    .buffer = receiver->memory + slot * receiver->piece,
                    .length = most < receiver->piece ? most : receiver->piece,
                    .flags = MSG_DONTWAIT};
    ssize_t length = op_execute(&op, &receiver->receipt.system_calls);
    if (length == -EIO)
        length = tls_explain(receiver->end, -EIO, &receiver->receipt.system_calls, &(const char *){NULL});
    if (length <= 0) {
        receiver->receipt.waits += length == -EAGAIN;
        return (int)length;
    }
    receiver->to_copy -= (uint32_t)length < receiver->to_copy ? (uint32_t)length : receiver->to_copy;
    receipt_enter_received(&receiver->receipt, false, (uint64_t)length);
    *ret_piece = (struct sluice_piece){.data = op.buffer, .length = (size_t)length, .slot = slot};
    return 1;
}

/* 1; 0: nothing can be mapped now; or a negative errno. */
static int map_piece(struct sluice_receiver *receiver, unsigned slot, struct sluice_piece *ret_piece)
{
    char *place = receiver->pages + slot * receiver->piece;
    struct received received = {.address = (uintptr_t)place};
    struct op op = {.kind = OP_MAP_RECEIVED, .in = receiver->end->fd, .buffer = &received, .length = receiver->piece};
    ssize_t length = op_execute(&op, &receiver->receipt.system_calls);
    if (length == -EIO)
        return 0; /* the end of the stream, which recv tells */
    if (length < 0)
        return (int)length;
    receiver->to_copy = received.to_copy;
    if (length == 0)
        return 0;
    receipt_enter_received(&receiver->receipt, true, (uint64_t)length);
    *ret_piece = (struct sluice_piece){.data = place, .length = (size_t)length, .slot = slot, .mapped = true};
    return 1;
}

int sluice_receiver_next(struct sluice_receiver *receiver, struct sluice_piece *ret_piece)
{
    unsigned slot = 0;
    while (slot < receiver->pieces && receiver->out >> slot & 1)
        slot++;
    if (slot == receiver->pieces)
        return -ENOBUFS;
    int result = 0;
    if (receiver->pages != NULL && !receiver->refused && receiver->to_copy == 0) {
        result = map_piece(receiver, slot, ret_piece);
        if (result < 0) { /* pieces that are out stay mapped until free */
            copy_everything(receiver, -result);
            receiver->refused = true;
        }
    }
    if (result <= 0)
        result = copy_piece(receiver, slot, receiver->to_copy > 0 ? receiver->to_copy : receiver->piece, ret_piece);
    if (result == 1)
        receiver->out |= UINT64_C(1) << slot;
    return result;
}

void sluice_receiver_release(struct sluice_receiver *receiver, const struct sluice_piece *piece)
{
    if (!(receiver->out >> piece->slot & 1))
        return;
    receiver->out &= ~(UINT64_C(1) << piece->slot);
    if (!piece->mapped)
        return;
    receiver->receipt.system_calls++;
    sys.madvise((void *)piece->data, piece->length, MADV_DONTNEED); /* else they go when the slot is used again */
}

const struct sluice_receipt *sluice_receiver_receipt(const struct sluice_receiver *receiver)
{
    return &receiver->receipt;
}

void sluice_receiver_free(struct sluice_receiver *receiver)
{
    if (receiver == NULL)
        return;
    if (receiver->pages != NULL)
        sys.munmap(receiver->pages, receiver->piece * receiver->pieces);
    if (receiver->memory != NULL)
        sys.munmap(receiver->memory, receiver->piece * receiver->pieces);
    free(receiver);
}
