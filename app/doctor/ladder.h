/* SPDX-License-Identifier: MIT
 *
 * The ladder: for each pair of ends that can be made here, what the plan says of every route, and what the receipt of a
 * small transfer by that route says. Nothing in it is written by hand: the routes are the library's, the verdicts its
 * plan's, copied or not its receipt's.
 */
#ifndef SLUICE_APP_DOCTOR_LADDER_H
#define SLUICE_APP_DOCTOR_LADDER_H

#include "base/failure.h"

#include <limits.h>
#include <sluice/sluice.h>

/* One side of a pair. */
struct place {
    enum sluice_end_kind kind;
    char directory[PATH_MAX];    /* files: where they were made */
    char file_system[32];        /* files: "ext4" */
    struct sluice_egress egress; /* tcp, datagram: the device; known or not */
    const char *peer;            /* tcp: an address of the user's; NULL: made here, over loopback */
    bool given;                  /* memory that is given away (sluice_memory_new) */
};

struct rung {
    struct sluice_plan_entry plan;
    bool chosen;                   /* auto takes it: it carried most bytes of a transfer without a forced route */
    bool tried;                    /* moved some bytes by it; if not, the rest is empty */
    int result;                    /* 0 or a negative errno */
    struct sluice_receipt receipt; /* of all sinks */
    struct sluice_error error;     /* when result < 0 */
};

#define LADDER_SINKS_MAX 2

/* Besides the plain ones there are pairs in a setting (given memory, more sinks, a ring) that opens a route to them. */
struct ladder_pair {
    struct place source, sink;
    unsigned sinks;  /* like this one, at a time */
    bool ring;       /* carried by a loop on io_uring, else by none */
    uint64_t length; /* that was moved to each sink, and planned for */
    unsigned count;
    struct rung rungs[SLUICE_ROUTE_COUNT]; /* the first to be tried first */
};

struct ladder {
    struct ladder_pair *pairs;
    size_t count;
    char no_ring[256]; /* why there are no pairs on a ring; empty: there may be */
};

struct ladder_options {
    const char *const *directories; /* where files are made */
    size_t directory_count;
    const char *peer; /* ADDRESS:PORT; NULL: none. Nothing is sent to it */
    int source, sink; /* enum sluice_end_kind, or -1: only pairs with this one */
};

/* Make the ends and move the bytes. Returns 0 or a negative errno (no descriptors, no memory, no such peer). */
int ladder_climb(const struct ladder_options *options, struct ladder *ret_ladder, struct failure *failure);
void ladder_free(struct ladder *ladder);

/* "ext4", "tmpfs", ...; "?" when /proc does not say. */
void ladder_file_system(const char *directory, char *name, size_t size);

/* "file on ext4 (/tmp)", "tcp by lo": as snprintf. */
int ladder_place_name(const struct place *place, char *text, size_t size);

/* "memory to tcp by lo, on io_uring": as snprintf. */
int ladder_pair_name(const struct ladder_pair *pair, char *text, size_t size);
#define LADDER_NAME_MAX (2 * (PATH_MAX + 64))

#endif
