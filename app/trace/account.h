/* SPDX-License-Identifier: MIT
 *
 * The account: what was seen, added up, and what it means. Collectors (collect.h, samples.h, procfs.h) enter; reports
 * (screen, lines, JSON, findings, the check of our receipts) read. Knows no kernel interface and does no I/O, so that
 * every rule in it is tested on invented figures.
 *
 * Rules
 *   copies of a byte   a mechanism's own copies (mechanism.h) plus, for a pair that took two calls, those of the first.
 *                      A byte that is read once and sent twice was copied three times for two bytes moved.
 *   evidence           of a row: the weakest of what its figures rest on. A copy that nobody saw and no definition
 *                      settles is `unknown`: it is in no total of copies, it is listed beside them.
 *   two calls          a byte that one call brought into memory, or into a pipe, and a later call took from there is in
 *                      one row, of the pair of ends: the later call's bytes, and the copies, calls and transitions of
 *                      both. What nobody took stays in a row of the first call's own. So no call and no copy is in two
 *                      rows, and the sum over rows is the sum over calls.
 *   nested functions   tier (a) enters what the outermost copying function of a call moved, so one byte is not counted
 *                      by the function and again by the function that it calls.
 */
#ifndef SLUICE_APP_TRACE_ACCOUNT_H
#define SLUICE_APP_TRACE_ACCOUNT_H

#include "bpf/trace.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How a figure is known, weakest first. */
enum account_evidence {
    ACCOUNT_UNKNOWN = 0,
    ACCOUNT_SAMPLED,       /* estimated from samples of the CPU */
    ACCOUNT_BY_DEFINITION, /* the mechanism cannot do otherwise (mechanism.c says why) */
    ACCOUNT_PROBED,        /* a property of this machine that was asked for: the device's features, the file system */
    ACCOUNT_MEASURED,      /* the kernel counted: a tracepoint, a notification, a function's return value */
};

/* Where the figures come from: the tiers of sluice-trace(1). */
enum account_tier {
    ACCOUNT_TIER_FUNCTIONS = 'a',   /* kernel functions by fentry or kprobe */
    ACCOUNT_TIER_TRACEPOINTS = 'b', /* tracepoints and CPU samples */
    ACCOUNT_TIER_PROC = 'c',        /* /proc */
};

/* An end with a name for people. */
struct account_end {
    struct trace_end_key key;
    struct trace_end_value value;
    char name[256]; /* "/srv/big.iso", "tcp :443 to 10.0.0.7", "pipe 4711", "memory"; resolved when first seen */
};

/* One row: a thread, a pair of ends and the mechanisms between them. */
struct account_row {
    struct trace_flow_key key;
    struct trace_flow_value value; /* sums since the start; forwarded is 0: those bytes are in other rows */
    uint64_t copy_bytes;           /* bytes copied by the CPU for this row; a byte copied twice counts twice */
    uint64_t unseen_bytes;         /* tier (a): of these, not seen, but what the mechanism costs */
    uint64_t unknown_bytes;        /* bytes moved of which nobody can say whether they were copied */
    enum account_evidence evidence;
    const char *copier; /* the kernel function (tier a: seen; tier b: the one that the mechanism's definition names), or
                           NULL */
};

struct account_process {
    uint32_t pid, parent;
    char comm[TRACE_COMM_SIZE];
    bool exited;
    uint64_t exited_ns;              /* when, in the account's time */
    uint64_t system_calls;           /* all of them while traced; 0 where the tier cannot tell */
    uint64_t cpu_ns;                 /* user + system while traced, from the scheduler's own accounts; 0 unknown */
    uint64_t samples;                /* of the CPU, in all */
    uint64_t samples_copying_kernel; /* of these, in the kernel's copying leaves */
    uint64_t samples_copying_user;   /* memcpy and its kin */
    uint64_t samples_transforming;   /* TLS, compression, checksums: what has to touch the bytes */
};

/* A caller that asked for moving bytes, found in samples: innermost user frame outside the C library. */
struct account_caller {
    uint32_t pid;
    char copier[64];  /* copying leaf: "_copy_to_iter", "memcpy" */
    char caller[160]; /* "ngx_output_chain (nginx)" or "caller unknown" */
    uint64_t samples;
};

/* Copies that belong to no flow: softirq, kernel threads; or to calls that moved no data: exec, a write that failed. */
struct account_unattributed {
    uint32_t function; /* enum trace_function */
    bool in_calls;     /* the latter */
    struct trace_copy_value value;
};

struct account;

int account_new(enum account_tier tier, struct account **ret_account);
void account_free(struct account *account);
/* Tier (a): the functions that are hooked, as bits (1u << enum trace_function); none before this says so. What one that
 * is not hooked would have copied is what the mechanism's definition says, or unknown: never 0 because nobody saw it.
 */
void account_watch(struct account *account, uint32_t functions);

/* ---- Entering. Figures are increments since the last call, except an end's and a process's identity. Returns 0 or
 * -ENOMEM; the account stays whole then.
 *
 * Memory is bounded: when there are too many flows or processes, processes of one name that have ended some time ago
 * are folded into one, with their flows; what finds no room even then counts as lost. ---- */

#define ACCOUNT_FLOWS_MAX 65536
#define ACCOUNT_PROCESSES_MAX 16384
#define ACCOUNT_CALLERS_MAX 4096

int account_enter_end(struct account *account, const struct account_end *end);
int account_enter_flow(struct account *account, const struct trace_flow_key *key, const struct trace_flow_value *value);
/* Tier (a): what a function copied in the course of a flow, or outside any. */
int account_enter_copy(struct account *account, const struct trace_copy_key *key, const struct trace_copy_value *value);
/* parent 0, comm NULL: not known; what is known already stays. */
int account_enter_process(struct account *account, uint32_t pid, uint32_t parent, const char *comm);
void account_enter_exit(struct account *account, uint32_t pid);
/* Adds samples, cpu_ns and system_calls of *increment to the process. */
int account_enter_process_figures(struct account *account, const struct account_process *increment);
int account_enter_caller(struct account *account, const struct account_caller *increment);
void account_enter_lost(struct account *account, const struct trace_lost *lost); /* totals, not increments */
/* Since the start; and of it, the time during which calls were counted (--sample), 0 where they are not (tier c). */
void account_enter_time(struct account *account, uint64_t elapsed_ns, uint64_t counted_ns);

/* ---- Reading. Arrays stay valid until the next account_enter_*. ---- */

/* Rows by falling bytes moved; copies worked out. per_thread false: threads of a process are summed, and key.thread
 * is 0. Rows that moved nothing are left out. */
const struct account_row *account_rows(struct account *account, bool per_thread, size_t *ret_count);
const struct account_end *account_end(const struct account *account, uint32_t id); /* NULL: not known; 0: memory */
const struct account_process *account_process(const struct account *account, uint32_t pid);
const struct account_process *account_processes(const struct account *account, size_t *ret_count);
const struct account_caller *account_callers(struct account *account, size_t *ret_count); /* most samples first */
const struct account_unattributed *account_unattributed(struct account *account, size_t *ret_count);
const struct trace_lost *account_lost(const struct account *account);
enum account_tier account_tier(const struct account *account);
uint64_t account_ring_operations(const struct account *account); /* entered so far, with those that moved nothing */
uint64_t account_elapsed_ns(const struct account *account);
uint64_t account_counted_ns(const struct account *account);
const char *account_evidence_name(enum account_evidence evidence); /* "by definition" */

#endif
