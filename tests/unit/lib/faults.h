/* SPDX-License-Identifier: MIT
 *
 * Fault injection at the system-call seam. Every call site of the library (faults_seam.h) can be told to fail its Nth
 * call, once or for ever, with an errno that the call's man page names, or to do less than it was asked to.
 *
 * What is injected is what a kernel could have done. A call that fails has done nothing, except close, munmap and
 * EPOLL_CTL_DEL, which are carried out and then reported failed: Linux frees the descriptor even when close fails.
 * EAGAIN is injected only where one side of the call can block; and as a kernel that said EAGAIN, or gave less than
 * there was, reports the descriptor ready later, an edge-triggered epoll is made to report it anew.
 */
#ifndef SLUICE_TESTS_FAULTS_H
#define SLUICE_TESTS_FAULTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sys;

enum fault_effect { FAULT_ERRNO, FAULT_ONE_BYTE, FAULT_HALF };

struct fault_kind {
    enum fault_effect effect;
    int error;       /* positive; 0: a short count */
    bool harmless;   /* must not make a transfer fail */
    bool not_moving; /* injected for ever, nothing can move: it is injected a few times instead */
};

struct fault_call {
    const char *name;
    const struct fault_kind *kinds; /* ends with a zeroed one */
};

struct fault_site {
    const char *file;
    int line;
    const char *function;
    const struct fault_call *call; /* NULL until it was reached */
    uint64_t calls, calls_in_run, injected;
    uint64_t kinds_injected; /* bit per kind of the call */
    int reached_by;          /* the run in which it was first reached */
};

struct fault {
    struct fault_site *site;
    unsigned nth;   /* 1: the first call in the run */
    unsigned times; /* how many calls from then on */
    unsigned kind;  /* index into the call's kinds */
};

#define FAULTS_AT_ONCE 2

/* The sites of the library. */
size_t fault_site_count(void);
struct fault_site *fault_site(size_t index);
/* "core/op.c:87 execute_write sendmsg" */
const char *fault_site_name(const struct fault_site *site);
const char *fault_kind_name(const struct fault_kind *kind);

/* What the world around the library does while the library waits: called before poll and epoll_wait. Returns whether
 * anything moved. */
extern bool (*fault_world)(void);
/* A file that claims to be a block device, -1: none; and how many questions whether a page is in memory are answered
 * with no. */
extern int fault_block_device;
extern unsigned fault_cold_pages;
/* Calls so far that asked the kernel to drop pages. */
extern atomic_uint fault_drops;
/* Pages of 2 MiB that were set aside are to be had (MAP_HUGETLB); plain ones stand for them. */
extern bool fault_huge_pages;

/* Every TCP socket has TLS by the kernel, both ways, though its bytes go as they are; the counters of it cannot be
 * read, or say that a device serves some. 0: it has none. */
enum { FAULT_TLS_WITHOUT_COUNTERS = 1, FAULT_TLS };
extern int fault_tls;

/* A socket that was told to connect, whose peer has not answered when that is asked again, though it is on this
 * machine; -1: none. */
extern int fault_slow_peer;

/* Put the wrappers into the table; for good. */
void fault_install(void);
/* A run begins: counts of the run are zero, these faults are armed. description is printed if the run never ends. */
void fault_begin(int run, const struct fault *faults, size_t count, const char *description);
/* For a while nothing is injected and nothing counted. */
void fault_quiet(bool quiet);
/* How many faults were injected since. Disarms. */
unsigned fault_end(void);
/* What the library did wrong by itself: leaked memory or mappings, closed or freed twice. NULL: nothing. Static. */
const char *fault_violation(void);

/* For faults_seam.h. */
struct sys *fault_arrive(struct fault_site *site, const char *function);
void fault_free(void *memory);

#endif
