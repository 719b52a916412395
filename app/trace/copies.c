/* SPDX-License-Identifier: MIT
 *
 * What one flow copied, from what was seen of it and what its mechanism costs (mechanism.h). Seen beats defined where
 * every function that could have copied is hooked; elsewhere what was seen is the least, and the definition, or nobody,
 * knows the rest.
 */
#include "copies.h"
#include "base/checked.h"
#include "mechanism.h"
#include <linux/magic.h>

#ifndef BTRFS_SUPER_MAGIC
#define BTRFS_SUPER_MAGIC 0x9123683e
#endif

static uint64_t sum_of_copies(const struct trace_copy_value *copies, const char **ret_copier)
{
    uint64_t sum = 0, most = 0;
    for (uint32_t i = 0; copies != NULL && i < TRACE_FUNCTION_COUNT; i++) {
        sum += copies[i].bytes;
        if (copies[i].bytes > most) {
            most = copies[i].bytes;
            *ret_copier = mechanism_function_name((enum trace_function)i);
        }
    }
    return sum;
}

/* The kernel tells of each piece that it copies to the receiver, in every tier that sees flows. */
static void account_for_recv(struct account_row *row, const struct mechanism_cost *cost, uint64_t copied)
{
    uint64_t bytes = row->value.bytes;
    row->copy_bytes = max_u64(copied, row->value.delivered);
    row->evidence = ACCOUNT_MEASURED;
    row->copier = "skb_copy_datagram_iter";
    if (row->copy_bytes >= bytes)
        return;
    if (cost->evidence != ACCOUNT_UNKNOWN && cost->copies == 0) { /* decrypted on the way, but for what was seen */
        row->evidence = cost->evidence;
        row->copier = row->copy_bytes > 0 ? row->copier : NULL;
        return;
    }
    uint64_t missing = bytes - row->copy_bytes;
    if (cost->evidence != ACCOUNT_UNKNOWN && missing <= bytes / 16) {
        /* The call in which a thread was first seen was under way: its bytes are counted, its copies were not seen. */
        row->copy_bytes += missing;
        row->evidence = cost->evidence;
        return;
    }
    /* Copied with its checksum, or by a protocol not known here: other code does that. */
    row->unknown_bytes = missing;
    row->evidence = ACCOUNT_UNKNOWN;
}

/* Notifications count calls, not bytes: a call's bytes are taken to be the mean. */
static void account_for_lending(struct account_row *row, const struct account_end *sink,
                                const struct mechanism_cost *cost, uint64_t copied)
{
    const struct trace_flow_value *value = &row->value;
    uint64_t calls = value->calls != 0 ? value->calls : 1;
    uint64_t notified = min_u64(value->notified, calls);
    uint64_t notified_copied = min_u64(value->notified_copied, notified);
    uint64_t pending = share(value->bytes, calls - notified, calls);
    uint64_t said_copied = share(value->bytes, notified_copied, calls);
    uint64_t said_lent = value->bytes - pending - said_copied;
    row->copier = cost->copier != NULL ? cost->copier : "skb_copy_ubufs";
    row->evidence = ACCOUNT_MEASURED;
    row->copy_bytes = said_copied;
    if (cost->evidence == ACCOUNT_UNKNOWN) {
        row->unknown_bytes = pending + said_lent;
    } else if (mechanism_egress(sink) != MECHANISM_EGRESS_CAPABLE) {
        /* The kernel's word is asymmetric: "copied" is true, "not copied" may be copied later (no scatter-gather). */
        row->copy_bytes += cost->copies * (pending + said_lent);
        if (pending + said_lent > 0)
            row->evidence = cost->evidence;
    } else {
        row->unknown_bytes = pending; /* a peer that turns out to be local makes the kernel copy after all */
        if (said_lent > 0)
            row->evidence = cost->evidence;
    }
    if (row->unknown_bytes > 0)
        row->evidence = ACCOUNT_UNKNOWN;
    row->copy_bytes = max_u64(row->copy_bytes, copied);
    if (row->copy_bytes == 0)
        row->copier = NULL;
}

/* The kernel asks for a page's copy unless nobody else has it any more, which only tier (a) sees. */
static void account_for_copy_on_write(struct account_row *row, const struct mechanism_cost *cost, bool watched,
                                      uint64_t copied, const char *copier)
{
    uint64_t bytes = row->value.bytes;
    row->copy_bytes = watched ? copied : max_u64(copied, min_u64(row->value.delivered, bytes));
    row->unknown_bytes = watched ? 0 : bytes - min_u64(row->copy_bytes, bytes);
    row->evidence = watched ? ACCOUNT_MEASURED : row->unknown_bytes > 0 ? ACCOUNT_UNKNOWN : cost->evidence;
    row->copier = copied > 0 || watched ? copier : cost->copier;
}

/* Functions that would see some of the copies, but not all, are hooked: what they saw is the least there is. */
static void account_for_some(struct account_row *row, const struct mechanism_cost *cost, uint64_t copied,
                             const char *copier)
{
    uint64_t bytes = row->value.bytes;
    row->copy_bytes = copied;
    row->evidence = cost->evidence;
    row->copier = copier;
    if (cost->evidence == ACCOUNT_UNKNOWN) {
        row->unknown_bytes = bytes - min_u64(copied, bytes);
    } else if (cost->copies * bytes > copied) {
        row->copy_bytes = cost->copies * bytes;
        row->copier = cost->copier;
    }
}

/* btrfs copies files of less than a page that it keeps in its metadata: with small files, which of them is not known.
 */
#define INLINE_MAX 4096

static void account_for_clone(struct account_row *row, const struct account_end *sink,
                              const struct mechanism_cost *cost)
{
    row->evidence = cost->evidence;
    if (sink != NULL && sink->value.file_system == BTRFS_SUPER_MAGIC &&
        row->value.bytes < row->value.calls * INLINE_MAX) {
        row->unknown_bytes = row->value.bytes;
        row->evidence = ACCOUNT_UNKNOWN;
    }
}

void copies_of_flow(const struct copies_seen *seen, struct account_row *row)
{
    enum trace_mechanism mechanism = (enum trace_mechanism)row->key.mechanism;
    struct mechanism_cost cost = mechanism_cost(mechanism, seen->source, seen->sink);
    uint32_t watchers = mechanism_watchers(mechanism, seen->source, seen->sink);
    bool watched = watchers != 0 && (watchers & ~seen->functions) == 0;
    const char *copier = NULL;
    uint64_t copied = sum_of_copies(seen->copies, &copier);
    if (mechanism == TRACE_RECV) {
        account_for_recv(row, &cost, copied);
    } else if (mechanism == TRACE_SEND_ZEROCOPY) {
        account_for_lending(row, seen->sink, &cost, copied);
    } else if (mechanism == TRACE_CLONE) {
        account_for_clone(row, seen->sink, &cost);
    } else if (mechanism == TRACE_COPY_ON_WRITE) {
        account_for_copy_on_write(row, &cost, watched, copied, copier);
    } else if (watched) {
        row->copy_bytes = copied;
        row->copier = copier;
        row->evidence = ACCOUNT_MEASURED;
    } else {
        account_for_some(row, &cost, copied, copier);
    }
    row->unseen_bytes = row->evidence != ACCOUNT_MEASURED && row->copy_bytes > copied ? row->copy_bytes - copied : 0;
}
