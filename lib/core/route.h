/* SPDX-License-Identifier: MIT
 *
 * What a route is. A route makes no system call and knows no loop: asked to step, it says which op comes next, and is
 * told how the op went. lib/route/skeleton.c is a commented one to start from.
 */
#ifndef SLUICE_CORE_ROUTE_H
#define SLUICE_CORE_ROUTE_H

#include "given.h"
#include "loans.h"
#include "op.h"
#include <sluice/sluice.h>

struct lane;

/* A source and a sink by class: all that the question "could this route carry it?" depends on. The length of a segment
 * is in it for memory and streams, and from file to file: the plan for a file and another kind of sink can be
 * remembered. */
struct pair {
    enum sluice_segment_kind segment;
    enum sluice_end_kind source; /* of a memory segment: SLUICE_END_MEMORY */
    enum sluice_end_kind sink;
    bool snapshot;      /* the source's pages must not be handed out */
    bool direct_source; /* O_DIRECT, or to be used so */
    bool append_sink;   /* O_APPEND */
    bool past_cache;    /* source or sink is to be used by O_DIRECT */
    bool fan_out;       /* one stream into several sinks */
    bool transform;
    bool tls_source;                     /* TCP whose bytes the kernel decrypts */
    bool ring;                           /* the ops of the transfer may be handed to an io_uring */
    uint64_t file_size;                  /* of a file source */
    uint64_t length;                     /* of a memory or stream segment, where it is known, and of a file's into a
                                            file; else SLUICE_UNTIL_END */
    uint32_t source_system, sink_system; /* types of the file systems, from file to file (file_system.h); 0: unknown */
    bool without_reflink;                /* these two were seen to share no extents */
    const struct sluice_egress *egress;  /* of a TCP or UDP sink, for memory and streams of CROSSOVER_FLOOR bytes and
                                            more; NULL: none, or unknown */
    bool released;                       /* memory whose owner is told when it is free again */
    bool is_given;                       /* memory of the library's, which is unmapped after it was sent */
    enum given_fate given;               /* what the kernel does with its pages */
    enum sluice_verdict lending;         /* of such memory to the sink, now */
    const char *lending_reason;
};

/* From complete(): the source has no more bytes, though more were expected. */
#define ROUTE_SOURCE_ENDED 1
/* From complete(): not this piece. The next route of the plan carries what the op was to carry; then this one is asked
 * again. */
#define ROUTE_NOT_NOW 2

struct route {
    enum sluice_route id;
    const char *name;

    /* Could it carry this pair? *ret_reason: why not, or why not now; a static string; NULL with a plain yes. */
    enum sluice_verdict (*assess)(const struct pair *pair, const char **ret_reason);

    /* Optional. From how many bytes on is it cheaper than copying, as far as is known beforehand: 0, always;
     * CROSSOVER_NEVER, do not even try. Asked for pairs it said yes to. What core/crossover.c measures
     * takes its place, unless it is one of these two. */
    uint64_t (*pays_from)(const struct pair *pair);
    enum sluice_route crossover_of; /* whose crossover is its own, too; AUTO: nobody's */

    /* Optional. Point *ret_piece at bytes of the segment from position `at` on that lie in memory already, so that they
     * can leave in one write with their neighbours. Returns how many (> 0); 0: none, step() must act first; or a
     * negative errno. The bytes stay until complete() was told that they were written. */
    ssize_t (*expose)(struct lane *lane, uint32_t segment, uint64_t at, struct iovec *ret_piece);

    /* Fill up to room (>= 1) linked ops that carry the segment on from position `at`. Returns how many, at least 1; or
     * a negative errno. */
    int (*step)(struct lane *lane, uint32_t segment, uint64_t at, struct op *ops, int room);

    /* One op of step() ended: result > 0 bytes, 0, or a negative errno other than EAGAIN. Delivered bytes are reported
     * with lane_delivered(). Returns 0, ROUTE_SOURCE_ENDED, ROUTE_NOT_NOW, or a negative errno: if that is in refusals,
     * the next route of the plan takes over at this very byte, else the transfer fails. */
    int (*complete)(struct lane *lane, const struct op *op, ssize_t result);

    /* Optional. The lane goes over to another segment or route: give back what the route holds. Bytes already taken
     * from a stream stay with the lane, in its stage or its pipe. */
    void (*leave)(struct lane *lane);

    /* How much one op on a file segment may ask for; 0: as much as leaves others their turn. */
    size_t largest_step;

    /* It moves extents, not bytes: holes stay holes, and a large step costs no more than a small one, so that no turn
     * bounds it. */
    bool moves_extents;

    /* Whether a file's pages are in memory makes no difference to it. */
    bool needs_no_pages;

    /* Into files it writes by ops of step(), from memory segments as well: they do not leave in the gathered write. */
    bool writes_files;

    /* Its bytes leave in writes that lend the memory they lie in (MSG_ZEROCOPY), numbered so. Such a write is never
     * joined with another. */
    enum loan_numbers lends;

    /* Memory segments into pipes and sockets are its business; of other routes they are copy's. */
    bool carries_memory;

    /* Errnos that say "not by this route" rather than "the ends are broken"; ends with 0. */
    const int *refusals;
    const char *refusal_reason;        /* what such an errno most likely means; for receipt and error message */
    const char *(*explain)(int error); /* optional: what this one means; NULL: refusal_reason */
};

/* All routes, indexed by id; AUTO's place is NULL. In registry.c. */
extern const struct route *const route_registry[SLUICE_ROUTE_COUNT];

#endif
