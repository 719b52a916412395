/* SPDX-License-Identifier: MIT */
#ifndef SLUICE_APP_TRACE_COPIES_H
#define SLUICE_APP_TRACE_COPIES_H

#include "account.h"

struct copies_seen {
    uint32_t functions;                      /* that were hooked: bits, 1u << enum trace_function */
    const struct trace_copy_value *copies;   /* by function, in the course of the flow; NULL: none were seen */
    const struct account_end *source, *sink; /* of the flow's own calls; NULL: memory */
};

/* Fill in what a row with a key and a value says about copies. */
void copies_of_flow(const struct copies_seen *seen, struct account_row *row);

__extension__ typedef unsigned __int128 copies_wide;

/* amount * part / whole, rounded down; 0 of nothing. */
static inline uint64_t share(uint64_t amount, uint64_t part, uint64_t whole)
{
    return whole == 0 ? 0 : (uint64_t)((copies_wide)amount * part / whole);
}

#endif
