/* SPDX-License-Identifier: MIT
 *
 * The rules, by route. A byte that the CPU copies twice is one copied byte and two copy_bytes.
 *
 *   copy        file, stream -> anything   2 copies, by definition (read + write); into memory 1 (read alone)
 *               memory -> anything         1 copy, by definition
 *               stream -> several sinks    1 copy for each sink, and 1 for the one that read it for all
 *   mmap        1 copy, by definition: from the page cache, by the kernel, in the write
 *   sendfile    file -> file               1 copy, by definition: page cache to page cache
 *   splice      Unix socket -> anything    unknown
 *               else -> file               1 copy, by definition (SPLICE_F_MOVE does nothing since 2.6.21, splice(2))
 *               -> pipe                    by reference, by definition, if the source's pages can be referred to
 *               -> TCP                     by reference if moreover the egress device has scatter-gather and checksum
 *                                          offload (probed); copied once if it is known to lack them: the kernel then
 *                                          linearises every packet, without a sign to us
 *               else                       unknown
 *   direct      file, memory -> file,      by reference, probed: the device moves the bytes; unknown where the file
 *               file -> memory             system may use the page cache after all
 *               file -> else               1 copy, out of the memory that the device filled
 *   copy_file_range, reflink               unknown until the route leaves, then as the sink's extents say (FIEMAP):
 *               shared                     by reference, measured; for reflink at least by definition
 *               in the metadata            1 copy, measured (btrfs copies what it keeps inline, also for reflink)
 *               own                        1 copy, measured, on local file systems that are known to do nothing third
 *               no extent                  a hole: by reference, measured
 *               tmpfs, which has none      1 copy, by definition
 *               else                       unknown; reflink by reference, by definition
 *   vmsplice    -> pipe                    by reference (probed: a page was given and changed), or 1 copy where the
 *                                          kernel takes one
 *               -> TCP                     the same, under the conditions of splice
 *               else                       unknown
 *   msg_zerocopy, uring_send_zc            unknown until the notification; then
 *               COPIED set                 1 copy, measured
 *               COPIED clear               by reference, measured, if the egress device has scatter-gather and checksum
 *                                          offload; else unknown: 16 of 16 MiB were copied under "not copied" where it
 *                                          has not (KERNEL-FACTS 0.4)
 *   tcp_receive                            1 copy, measured: what the kernel mapped is copied by the write alone (into
 *                                          memory, by us); a receiver's caller gets it by reference. What could not be
 *                                          mapped goes by copy
 *   tee         as splice, for each of the sinks: they refer to the same pages
 *
 *   -> kernel TLS, by the CPU: transformed, by definition (tls_sw.c encrypts into pages of its own), and
 *               sendfile, splice, tee      not copied: encrypted out of the pages referred to, which later changes of
 *               and vmsplice               the file no longer reach. As for TCP, a device without scatter-gather adds
 *                                          a copy
 *               else                       unknown whether the bytes are copied into a record first: full records are
 *                                          encrypted out of the caller's memory, unless the cipher is asynchronous
 *   -> kernel TLS, by the device
 *               sendfile, splice, tee      as TCP, if it takes the file's pages as they are (TLS_TX_ZEROCOPY_RO); else
 *               and vmsplice               1 copy more, by definition: into the record, from which is sent again
 *               else                       as TCP
 *   kernel TLS -> anything                 transformed, if the CPU does it; unknown whether the reading copies
 *   TLS by nobody knows whom               unknown
 *
 * To TCP through a device without scatter-gather, whatever was copied into the socket's buffers is copied once more:
 * TCP keeps its bytes in pages, and the kernel makes one piece of each packet (validate_xmit_skb, net/core/dev.c).
 *
 * "Pages can be referred to": a pipe's, a socket's, and those of a file whose file system splices from the page cache;
 * O_DIRECT, DAX and some network file systems read into fresh pages instead (copy_splice_read).
 */
#include "receipt.h"
#include "extents.h"
#include "given.h"
#include "pool.h"
#include <string.h>

struct fate {
    unsigned copies; /* by the CPU, of every byte */
    enum sluice_evidence evidence;
    bool aliased;
    bool lent; /* nobody knows before the notification */
    bool transformed;
};

#ifdef RECEIPT_MUTANTS
#define MUTATED(rule, copies) ((rule) == receipt_mutant ? !(copies) : (copies))
#else
#define MUTATED(rule, copies) (copies)
#endif

static struct fate ruled(enum receipt_rule rule, unsigned copies, enum sluice_evidence evidence)
{
    (void)rule;
    return (struct fate){.copies = MUTATED(rule, copies), .evidence = evidence};
}

static struct fate ruled_again(enum receipt_rule rule, struct fate what)
{
    (void)rule;
    what.copies = MUTATED(rule, what.copies);
    return what;
}

static struct fate fate_of_reference(struct sluice_end *source, struct sluice_end *sink, uint64_t *calls)
{
    struct fate unknown = {.evidence = SLUICE_EVIDENCE_UNKNOWN}, by_reference;
    struct sluice_egress egress;

    /* What lies in the head of a Unix socket's buffer, the first kilobytes of each message, splice copies into pages of
     * its own (net/core/skbuff.c, linear_to_page); nobody says how much that was. */
    if (sluice_end_kind(source) == SLUICE_END_UNIX_STREAM)
        return unknown;
    if (end_is_file(sink))
        return ruled(RULE_REFERENCE_INTO_FILE, 1, SLUICE_EVIDENCE_BY_DEFINITION);
    if (end_is_file(source) && !end_has_page_cache(source, calls))
        return unknown;
    switch (sluice_end_kind(sink)) {
    case SLUICE_END_PIPE:
        by_reference = ruled(RULE_REFERENCE_INTO_PIPE, 0, SLUICE_EVIDENCE_BY_DEFINITION);
        break;
    case SLUICE_END_TCP:
        if (sluice_end_egress(sink, &egress) < 0)
            return unknown;
        if (!egress.scatter_gather || !egress.checksum)
            return ruled(RULE_REFERENCE_TO_LINEAR, 1, SLUICE_EVIDENCE_PROBED);
        by_reference = ruled(RULE_REFERENCE_TO_SCATTER_GATHER, 0, SLUICE_EVIDENCE_PROBED);
        break;
    default:
        return unknown;
    }
    by_reference.aliased = end_is_file(source);
    return by_reference;
}

/* So much is worth asking for the device. A small response is not: the lookup, once for each peer, would cost more than
 * sending it, so that its copy_bytes leave out what such a device adds, unless the socket's device is known already. */
#define ASK_EGRESS_FROM (16u << 10)

/* What was copied into a socket's buffers leaves them for the device. */
static struct fate sent_to_device(struct fate what, struct sluice_end *sink)
{
    struct sluice_egress egress;
    if (sluice_end_egress(sink, &egress) < 0 || (egress.scatter_gather && egress.checksum))
        return what;
    what.copies += MUTATED(RULE_SENT_TO_LINEAR, 1u);
    what.evidence = SLUICE_EVIDENCE_PROBED;
    return what;
}

static inline struct fate sent(struct fate what, struct sluice_end *sink, uint64_t bytes)
{
    if (sink->kind != SLUICE_END_TCP || (bytes < ASK_EGRESS_FROM && !sink->socket.egress_asked))
        return what;
    return sent_to_device(what, sink);
}

/* Between memory and the device nothing is copied, if O_DIRECT means that here. */
static struct fate fate_of_direct(struct sluice_end *source, struct sluice_end *sink, uint64_t bytes, uint64_t *calls)
{
    bool into_file = end_is_file(sink), between = into_file || sink->kind == SLUICE_END_MEMORY;
    if ((source != NULL && !end_bypasses_cache(source, calls)) || (into_file && !end_bypasses_cache(sink, calls)))
        return (struct fate){.evidence = SLUICE_EVIDENCE_UNKNOWN};
    if (!between)
        return sent(ruled(RULE_DIRECT_AND_SENT, 1, SLUICE_EVIDENCE_PROBED), sink, bytes);
    return ruled(RULE_DIRECT, 0, SLUICE_EVIDENCE_PROBED);
}

/* Nobody can change the pages any more, so they are not aliased. */
static struct fate fate_of_given(struct sluice_end *sink)
{
    struct fate unknown = {.evidence = SLUICE_EVIDENCE_UNKNOWN};
    struct sluice_egress egress;
    enum given_fate given = given_fate();
    if (given == GIVEN_UNKNOWN)
        return unknown;
    unsigned copies = given == GIVEN_COPIED;
    switch (sluice_end_kind(sink)) {
    case SLUICE_END_PIPE:
        return ruled(RULE_GIVEN, copies, SLUICE_EVIDENCE_PROBED);
    case SLUICE_END_TCP:
        if (sluice_end_egress(sink, &egress) < 0)
            return unknown;
        if (!egress.scatter_gather || !egress.checksum)
            copies++;
        return ruled(RULE_GIVEN, copies, SLUICE_EVIDENCE_PROBED);
    default:
        return unknown;
    }
}

static struct fate fate(enum sluice_route route, struct sluice_end *source, struct sluice_end *sink, bool shared,
                        uint64_t bytes, uint64_t *calls)
{
    switch (route) {
    case SLUICE_ROUTE_COPY:
        if (source == NULL)
            return sent(ruled(RULE_COPY_FROM_MEMORY, 1, SLUICE_EVIDENCE_BY_DEFINITION), sink, bytes);
        if (sink->kind == SLUICE_END_MEMORY)
            return ruled(RULE_COPY_INTO_MEMORY, 1, SLUICE_EVIDENCE_BY_DEFINITION);
        if (shared)
            return sent(ruled(RULE_COPY_FANNED_OUT, 1, SLUICE_EVIDENCE_BY_DEFINITION), sink, bytes);
        return sent(ruled(RULE_COPY_TWICE, 2, SLUICE_EVIDENCE_BY_DEFINITION), sink, bytes);
    case SLUICE_ROUTE_MMAP:
        return sent(ruled(RULE_MMAP, 1, SLUICE_EVIDENCE_BY_DEFINITION), sink, bytes);
    case SLUICE_ROUTE_SENDFILE:
    case SLUICE_ROUTE_SPLICE:
        return fate_of_reference(source, sink, calls);
    case SLUICE_ROUTE_TCP_RECEIVE:
        return sent(ruled(RULE_WRITTEN_FROM_RECEIVED, 1, SLUICE_EVIDENCE_MEASURED), sink, bytes);
    case SLUICE_ROUTE_TEE: {
        struct fate what = fate_of_reference(source, sink, calls);
        return what.evidence == SLUICE_EVIDENCE_UNKNOWN ? what : ruled_again(RULE_TEE, what);
    }
    case SLUICE_ROUTE_VMSPLICE:
        return fate_of_given(sink);
    case SLUICE_ROUTE_URING_SEND_ZC:
    case SLUICE_ROUTE_MSG_ZEROCOPY: /* the notification will tell */
        return (struct fate){.evidence = SLUICE_EVIDENCE_NONE, .lent = true};
    case SLUICE_ROUTE_COPY_FILE_RANGE:
    case SLUICE_ROUTE_REFLINK:
        return (struct fate){.evidence = SLUICE_EVIDENCE_NONE}; /* receipt_prove will tell */
    case SLUICE_ROUTE_DIRECT:
        return fate_of_direct(source, sink, bytes, calls);
    case SLUICE_ROUTE_AUTO:
    case SLUICE_ROUTE_COUNT:
        break;
    }
    return (struct fate){.evidence = SLUICE_EVIDENCE_UNKNOWN};
}

static bool hands_over_pages(enum sluice_route route)
{
    return route == SLUICE_ROUTE_SENDFILE || route == SLUICE_ROUTE_SPLICE || route == SLUICE_ROUTE_TEE ||
           route == SLUICE_ROUTE_VMSPLICE;
}

/* what: as it would be without TLS. Where nobody knows about one copy, the others are counted all the same. */
static struct fate without_one(struct fate what)
{
    what.copies -= what.copies > 0;
    what.evidence = SLUICE_EVIDENCE_UNKNOWN;
    return what;
}

static struct fate fate_into_tls(enum sluice_route route, struct sluice_end *sink, struct fate what)
{
    bool pages = hands_over_pages(route);
    switch (tls_sends(sink)) {
    case SLUICE_TLS_NONE:
        return what;
    case SLUICE_TLS_SOFTWARE:
        what.transformed = true;
        what.aliased = false;
        if (!pages)
            what = without_one(what);
        else if (what.evidence != SLUICE_EVIDENCE_UNKNOWN)
            what = ruled_again(RULE_TLS_REFERENCE, what);
        return what;
    case SLUICE_TLS_DEVICE:
        if (pages && !tls_device_refers(sink)) {
            what.aliased = false;
            what.copies += MUTATED(RULE_TLS_DEVICE, 1u);
        }
        return what;
    case SLUICE_TLS_UNTOLD:
        break;
    }
    return without_one(what);
}

static struct fate fate_out_of_tls(enum sluice_route route, struct sluice_end *source, struct fate what)
{
    what.transformed |= tls_receives(source) == SLUICE_TLS_SOFTWARE;
    if (hands_over_pages(route)) {
        what.evidence = SLUICE_EVIDENCE_UNKNOWN;
        return what;
    }
    return without_one(what);
}

static enum sluice_evidence weakest(enum sluice_evidence a, enum sluice_evidence b)
{
    if (a == b || b == SLUICE_EVIDENCE_NONE)
        return a;
    return a == SLUICE_EVIDENCE_NONE || b < a ? b : a;
}

void receipt_enter(struct sluice_receipt *receipt, enum sluice_route route, struct sluice_end *source,
                   struct sluice_end *sink, bool shared, uint64_t bytes)
{
    struct fate what = fate(route, source, sink, shared, bytes, &receipt->system_calls);
    if (end_sends_tls(sink))
        what = fate_into_tls(route, sink, what);
    if (source != NULL && end_receives_tls(source))
        what = fate_out_of_tls(route, source, what);
    receipt->bytes += bytes;
    receipt->sent += bytes;
    receipt->released += what.lent ? 0 : bytes;
    if (what.evidence <= SLUICE_EVIDENCE_UNKNOWN)
        receipt->unknown += bytes;
    else if (what.copies > 0)
        receipt->copied += bytes;
    else if (!what.transformed)
        receipt->by_reference += bytes;
    receipt->copy_bytes += what.copies * bytes;
    receipt->transformed += what.transformed ? bytes : 0;
    if (what.aliased)
        receipt->aliased += bytes;
    struct sluice_route_count *count = receipt_count(receipt, route);
    count->bytes += bytes;
    count->evidence = weakest(count->evidence, what.evidence);
}

static struct fate fate_of_loan(struct sluice_end *sink, enum loan_fate fate)
{
    struct sluice_egress egress;
    if (fate == LOAN_COPIED)
        return ruled(RULE_LENT_COPIED, 1, SLUICE_EVIDENCE_MEASURED);
    if (fate == LOAN_UNTOLD || sluice_end_egress(sink, &egress) < 0 || !egress.scatter_gather || !egress.checksum)
        return (struct fate){.evidence = SLUICE_EVIDENCE_UNKNOWN};
    return ruled(RULE_LENT_REFERRED_TO, 0, SLUICE_EVIDENCE_MEASURED);
}

void receipt_return(struct sluice_receipt *receipt, enum sluice_route route, struct sluice_end *sink, uint64_t bytes,
                    enum loan_fate fate)
{
    struct fate what = fate_of_loan(sink, fate);
    receipt->loans--;
    if (bytes == 0)
        return;
    struct sluice_route_count *count = receipt_count(receipt, route);
    receipt->released += bytes;
    if (what.evidence != SLUICE_EVIDENCE_UNKNOWN) {
        receipt->unknown -= bytes;
        *(what.copies == 0 ? &receipt->by_reference : &receipt->copied) += bytes;
        receipt->copy_bytes += what.copies * bytes;
    }
    count->evidence = weakest(count->evidence, what.evidence);
}

static void prove(struct sluice_receipt *receipt, enum sluice_route route, struct fate what, uint64_t bytes)
{
    if (bytes == 0)
        return;
    struct sluice_route_count *count = receipt_count(receipt, route);
    count->evidence = weakest(count->evidence, what.evidence);
    if (what.evidence == SLUICE_EVIDENCE_UNKNOWN)
        return;
    receipt->unknown -= bytes;
    if (what.copies == 0)
        receipt->by_reference += bytes;
    else
        receipt->copied += bytes;
    receipt->copy_bytes += what.copies * bytes;
}

void receipt_prove(struct sluice_receipt *receipt, enum sluice_route route, struct sluice_end *sink, uint64_t offset,
                   uint64_t bytes)
{
    uint64_t *calls = &receipt->system_calls;
    struct extents extents;
    bool cloned = route == SLUICE_ROUTE_REFLINK;
    struct fate otherwise = {.evidence = SLUICE_EVIDENCE_UNKNOWN};
    if (cloned)
        otherwise = ruled(RULE_CLONED, 0, SLUICE_EVIDENCE_BY_DEFINITION);
    if (extents_map(sink, offset, bytes, calls, &extents) < 0) {
        if (!cloned && extents_are_pages(sink, calls))
            otherwise = ruled(RULE_RANGE_OF_PAGES, 1, SLUICE_EVIDENCE_BY_DEFINITION);
        prove(receipt, route, otherwise, bytes);
        return;
    }
    prove(receipt, route, ruled(RULE_EXTENTS_SHARED, 0, SLUICE_EVIDENCE_MEASURED), extents.shared);
    prove(receipt, route, ruled(RULE_EXTENTS_INSIDE, 1, SLUICE_EVIDENCE_MEASURED), extents.inside);
    if (extents.own + extents.none == 0)
        return;
    bool truth = extents_are_the_truth(sink, calls);
    /* Own after a clone: the source was written to meanwhile, or the file system shows nobody what it shares. */
    prove(receipt, route, truth && !cloned ? ruled(RULE_EXTENTS_OWN, 1, SLUICE_EVIDENCE_MEASURED) : otherwise,
          extents.own);
    if (truth)
        receipt->holes += extents.none;
    prove(receipt, route, truth ? (struct fate){.evidence = SLUICE_EVIDENCE_MEASURED} : otherwise, extents.none);
}

void receipt_enter_hole(struct sluice_receipt *receipt, uint64_t bytes)
{
    receipt->bytes += bytes;
    receipt->sent += bytes;
    receipt->released += bytes;
    receipt->by_reference += bytes;
    receipt->holes += bytes;
}

void receipt_enter_shared_read(struct sluice_receipt *receipt, uint64_t bytes)
{
    receipt->copy_bytes += MUTATED(RULE_COPY_SHARED_READ, 1u) * bytes;
}

void receipt_enter_registered(struct sluice_receipt *receipt, uint64_t bytes)
{
    receipt->registered += MUTATED(RULE_REGISTERED, 1u) * bytes;
}

void receipt_enter_received(struct sluice_receipt *receipt, bool mapped, uint64_t bytes)
{
    struct sluice_route_count *count = receipt_count(receipt, mapped ? SLUICE_ROUTE_TCP_RECEIVE : SLUICE_ROUTE_COPY);
    receipt->bytes += bytes;
    receipt->sent += bytes;
    receipt->released += bytes;
    if (mapped) {
        receipt->by_reference += bytes;
    } else {
        receipt->copied += bytes;
        receipt->copy_bytes += bytes;
    }
    count->bytes += bytes;
    count->calls++;
    count->evidence = mapped ? SLUICE_EVIDENCE_MEASURED : SLUICE_EVIDENCE_BY_DEFINITION;
}

void receipt_copy(struct sluice_receipt *to, const struct sluice_receipt *from)
{
    size_t kept =
        from->fallback_count < SLUICE_RECEIPT_FALLBACKS ? (size_t)from->fallback_count : SLUICE_RECEIPT_FALLBACKS;
    memcpy(to, from, offsetof(struct sluice_receipt, fallbacks) + kept * sizeof from->fallbacks[0]);
}

void receipt_enter_fallback(struct sluice_receipt *receipt, const struct sluice_fallback *fallback)
{
    if (receipt->fallback_count < SLUICE_RECEIPT_FALLBACKS)
        receipt->fallbacks[receipt->fallback_count] = *fallback;
    receipt->fallback_count++;
}

void sluice_receipt_add(struct sluice_receipt *sum, const struct sluice_receipt *receipt)
{
    sum->bytes += receipt->bytes;
    sum->by_reference += receipt->by_reference;
    sum->copied += receipt->copied;
    sum->copy_bytes += receipt->copy_bytes;
    sum->transformed += receipt->transformed;
    sum->unknown += receipt->unknown;
    sum->holes += receipt->holes;
    sum->aliased += receipt->aliased;
    sum->sent += receipt->sent;
    sum->released += receipt->released;
    sum->system_calls += receipt->system_calls;
    sum->waits += receipt->waits;
    sum->loans += receipt->loans;
    sum->transfers += receipt->transfers;
    sum->short_sources += receipt->short_sources;
    sum->shrunk += receipt->shrunk;
    sum->registered += receipt->registered;
    sum->dropped += receipt->dropped;
    sum->pages = smaller_pages(sum->pages, receipt->pages);
    for (uint64_t i = 0; i < receipt->fallback_count; i++) {
        if (i < SLUICE_RECEIPT_FALLBACKS)
            receipt_enter_fallback(sum, &receipt->fallbacks[i]);
        else
            sum->fallback_count++;
    }
    sum->routes_used |= receipt->routes_used;
    for (uint64_t used = receipt->routes_used; used != 0; used &= used - 1) {
        int i = __builtin_ctzll(used);
        sum->routes[i].bytes += receipt->routes[i].bytes;
        sum->routes[i].calls += receipt->routes[i].calls;
        sum->routes[i].evidence = weakest(sum->routes[i].evidence, receipt->routes[i].evidence);
    }
}

bool sluice_receipt_is_final(const struct sluice_receipt *receipt)
{
    return receipt->loans == 0 && receipt->released == receipt->sent;
}
