/* SPDX-License-Identifier: MIT */
#ifndef SLUICE_CORE_RECEIPT_H
#define SLUICE_CORE_RECEIPT_H

#include "end.h"
#include <stddef.h>
#include <string.h>

/* The rules by name, so that the judge of our receipts can be judged: tests/unit/trace/judge.c builds the library with
 * RECEIPT_MUTANTS, turns one rule at a time into its opposite, and requires sluice trace --check to notice. */
enum receipt_rule {
    RULE_NONE,
    RULE_COPY_TWICE,
    RULE_COPY_FROM_MEMORY,
    RULE_COPY_INTO_MEMORY,
    RULE_COPY_FANNED_OUT,
    RULE_COPY_SHARED_READ,
    RULE_MMAP,
    RULE_REFERENCE_INTO_FILE,
    RULE_REFERENCE_INTO_PIPE,
    RULE_REFERENCE_TO_SCATTER_GATHER,
    RULE_REFERENCE_TO_LINEAR,
    RULE_SENT_TO_LINEAR,
    RULE_TEE,
    RULE_WRITTEN_FROM_RECEIVED,
    RULE_EXTENTS_SHARED,
    RULE_EXTENTS_OWN,
    RULE_EXTENTS_INSIDE,
    RULE_RANGE_OF_PAGES,
    RULE_CLONED,
    RULE_DIRECT,
    RULE_DIRECT_AND_SENT,
    RULE_GIVEN,
    RULE_LENT_COPIED,
    RULE_LENT_REFERRED_TO,
    RULE_REGISTERED,
    RULE_TLS_REFERENCE,
    RULE_TLS_DEVICE,
};

#ifdef RECEIPT_MUTANTS
extern enum receipt_rule receipt_mutant;
#endif

/* Enter bytes that a route delivered from a segment to a sink: who copied them, and how we know. source: NULL for
 * memory. shared: they had been read once for several sinks (receipt_enter_shared_read), so that this is the writing
 * alone. The one place where the rules about copying are written down. */
void receipt_enter(struct sluice_receipt *receipt, enum sluice_route route, struct sluice_end *source,
                   struct sluice_end *sink, bool shared, uint64_t bytes);

/* What became of memory that was lent. */
enum loan_fate {
    LOAN_NOT_COPIED, /* says the kernel */
    LOAN_COPIED,
    LOAN_UNTOLD /* it is back, and nobody said */
};

/* The kernel gave back what it had borrowed for so many bytes: they are no longer unknown, or remain so for good. */
void receipt_return(struct sluice_receipt *receipt, enum sluice_route route, struct sluice_end *sink, uint64_t bytes,
                    enum loan_fate fate);

/* Enter the reading of a stream for several sinks with the sink that did it, so that the sum over all sinks is what the
 * CPU copied. */
void receipt_enter_shared_read(struct sluice_receipt *receipt, uint64_t bytes);

/* Bytes that receipt_enter has entered as unknown, by copy_file_range or reflink, lie in the sink at offset now: look
 * whether they are shared. */
void receipt_prove(struct sluice_receipt *receipt, enum sluice_route route, struct sluice_end *sink, uint64_t offset,
                   uint64_t bytes);

/* A hole of a source became a hole of the sink. */
void receipt_enter_hole(struct sluice_receipt *receipt, uint64_t bytes);

/* A ring moved bytes into or out of memory that it has registered. */
void receipt_enter_registered(struct sluice_receipt *receipt, uint64_t bytes);

/* Enter what a receiver handed out: mapped, or copied into memory. */
void receipt_enter_received(struct sluice_receipt *receipt, bool mapped, uint64_t bytes);

/* The count of a route, about to be changed. */
static inline struct sluice_route_count *receipt_count(struct sluice_receipt *receipt, enum sluice_route route)
{
    receipt->routes_used |= UINT64_C(1) << route;
    return &receipt->routes[route];
}

/* Make a receipt empty that was zeroed when it was new: of a large struct, only what is in use is cleared. */
static inline void receipt_clear(struct sluice_receipt *receipt)
{
    for (uint64_t used = receipt->routes_used; used != 0; used &= used - 1)
        receipt->routes[__builtin_ctzll(used)] = (struct sluice_route_count){.bytes = 0};
    memset(receipt, 0, offsetof(struct sluice_receipt, routes));
}

/* Copy a receipt, leaving out the room for fallbacks that none fills. */
void receipt_copy(struct sluice_receipt *to, const struct sluice_receipt *from);

void receipt_enter_fallback(struct sluice_receipt *receipt, const struct sluice_fallback *fallback);

#endif
