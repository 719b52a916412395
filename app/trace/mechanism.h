/* SPDX-License-Identifier: MIT
 *
 * The table of mechanisms: what each costs in copies, between which ends, and how that is known. Everything that says
 * something about a mechanism (the account, the findings, --help, sluice-trace(1)) says it from here.
 */
#ifndef SLUICE_APP_TRACE_MECHANISM_H
#define SLUICE_APP_TRACE_MECHANISM_H

#include "account.h"

/* What a byte costs that goes by a mechanism from source to sink. */
struct mechanism_cost {
    enum account_evidence evidence; /* ACCOUNT_UNKNOWN: copies means nothing */
    unsigned copies;                /* by the CPU */
    const char *copier; /* kernel function that copies, by the mechanism's definition; NULL: none, unknown */
    const char *reason; /* "the device has no scatter-gather: the kernel linearises every packet" */
};

/* source or sink NULL: memory of the process. */
struct mechanism_cost mechanism_cost(enum trace_mechanism mechanism, const struct account_end *source,
                                     const struct account_end *sink);

/* Tier (a): the functions (bits, 1u << enum trace_function) that together see every copy of this mechanism between
 * these ends, so that copies that none of them entered did not happen. 0: there are none such, as where copies can
 * happen later, in a softirq or in the receiver's context. */
uint32_t mechanism_watchers(enum trace_mechanism mechanism, const struct account_end *source,
                            const struct account_end *sink);

/* What the device that a socket's packets leave by does with pages that are lent to it. */
enum mechanism_egress {
    MECHANISM_EGRESS_UNKNOWN,
    MECHANISM_EGRESS_LOOPBACK,
    MECHANISM_EGRESS_CAPABLE, /* scatter-gather, and checksums of the socket's family */
    MECHANISM_EGRESS_NO_SCATTER_GATHER,
    MECHANISM_EGRESS_NO_CHECKSUM,
};
enum mechanism_egress mechanism_egress(const struct account_end *sink);

const char *mechanism_name(enum trace_mechanism mechanism);  /* "copy_file_range" */
const char *mechanism_calls(enum trace_mechanism mechanism); /* the system calls meant: "read, readv, pread64, ..." */
const char *mechanism_function_name(enum trace_function function); /* the kernel's name for it */
const char *mechanism_end_kind_name(enum trace_end_kind kind);     /* "file", "tcp" */

#endif
