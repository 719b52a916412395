/* SPDX-License-Identifier: MIT
 *
 * Crossovers: from how many bytes on a route is cheaper than copying. Each route brings a default (struct route,
 * pays_from); what is measured here, on this machine, by this device, for this pair of ends, takes its place.
 */
#ifndef SLUICE_CORE_CROSSOVER_H
#define SLUICE_CORE_CROSSOVER_H

#include "route.h"

#define CROSSOVER_NEVER UINT64_MAX
/* Nothing smaller is ever weighed: even where zero copy is real, it begins to pay between 1 and 2 KiB (KERNEL-FACTS 2).
 */
#define CROSSOVER_FLOOR (2u << 10)

/* From how many bytes on the route pays for the pair; 0: always; CROSSOVER_NEVER. *ret_learned (may be NULL): measured,
 * not the default. A few nanoseconds for routes without a question (pays_from NULL), some ten for the others. */
uint64_t crossover_from(const struct route *route, const struct pair *pair, bool *ret_learned);

/* As long as it does not change, crossover_from gives the same answers, but for pauses of a route that end. */
uint32_t crossover_epoch(void);

/* "dearer below 16 KiB here (learned)": why a route was not taken for fewer bytes than `from`. Static. */
const char *crossover_reason(uint64_t from, bool learned);

/* The CPU time of one segment, while it is taken. */
struct crossover_sample {
    bool copies;
    uint64_t key, usual;
    uint64_t length;
    uint64_t since, spent; /* ns of this thread's CPU time */
    uint64_t extra;        /* the same, to be spent later; the caller sets it */
};

/* Counts segments about whose route the size decides: is this one to be weighed? One in CROSSOVER_EVERY is, or, while
 * what is measured is known well, one in CROSSOVER_SELDOM. */
bool crossover_is_due(void);

/* A segment of pair->length bytes (CROSSOVER_FLOOR or more) is about to go by `route`, which has a question, or by copy
 * (*copies) because that is cheaper. Begins to measure what it costs; now and then, close to the crossover, of the
 * other way (changes *copies), so that what was learned can be unlearned. Returns whether sample was begun. */
bool crossover_weigh(const struct route *route, const struct pair *pair, bool *copies, struct crossover_sample *sample);

/* A later turn of the lane begins; a turn ends; the segment was delivered (after the turn's end). A sample that is not
 * finished enters nothing. */
void crossover_resume(struct crossover_sample *sample);
void crossover_pause(struct crossover_sample *sample);
void crossover_finish(struct crossover_sample *sample);

/* The kernel said of memory that the route had lent it whether it copied it all the same. A few copies in a row, and
 * the route is closed for this pair and device for a while, longer each time; then it may try again. One that was not
 * copied opens it at once. */
void crossover_copied(const struct route *route, const struct pair *pair, bool copied);

#define CROSSOVER_EVERY 16 /* segments, on average */
#define CROSSOVER_SELDOM 128
#define CROSSOVER_EXPLORE 8 /* of these go the other way, once that is known */

/* ---- For the file that keeps them, and for tests -------------------------------------------------------------- */

#define CROSSOVER_CLASSES 12 /* by powers of two: below 2 KiB, 2 to 4 KiB, ..., 2 MiB and more */

struct crossover_device {
    char driver[16]; /* "": no device, or one that does not say */
    bool loopback, scatter_gather, checksum, segmentation;
};

struct crossover_cell {
    float ns_per_byte;
    uint32_t samples; /* counts up to CROSSOVER_WINDOW: then the old fade */
};
#define CROSSOVER_WINDOW 64

struct crossover_record {
    enum sluice_route route;
    enum sluice_end_kind source, sink;
    struct crossover_device device;
    uint64_t from; /* 0: not measured (copying has none) */
    bool closed;   /* for now, as it was copied all the same */
    struct crossover_cell cells[CROSSOVER_CLASSES];
};

/* Everything that was measured, copying included. */
void crossover_each(void (*visit)(void *context, const struct crossover_record *record), void *context);
bool crossover_is_sensible(const struct crossover_record *record);
/* Put it back; what was measured since stays. Returns 0, -EINVAL (not sensible) or -ENOSPC (full). */
int crossover_restore(const struct crossover_record *record);
/* Forget everything, and share nothing any more (tests). */
void crossover_forget(void);
/* Counts what was entered since the start of the process: is there anything to write? */
uint64_t crossover_entered(void);

#endif
