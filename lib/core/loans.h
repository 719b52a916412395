/* SPDX-License-Identifier: MIT
 *
 * Loans: memory that the kernel still refers to after the call that sent it. loans.c opens with the rules.
 */
#ifndef SLUICE_CORE_LOANS_H
#define SLUICE_CORE_LOANS_H

#include "op.h"
#include "receipt.h"
#include <sluice/sluice.h>

struct lane;
struct route;
struct loan_account;

/* Whose numbers tell loans apart. */
enum loan_numbers {
    LOANS_NONE,
    LOANS_OF_SOCKET, /* MSG_ZEROCOPY: the kernel counts the successful calls of a socket, modulo 2^32 */
    LOANS_OF_RING,   /* SEND_ZC: ours, carried in the request's user_data */
    LOAN_NUMBERS
};

/* One call. */
struct loan {
    struct loan_account *account;
    uint32_t lane;
    uint32_t first_segment, last_segment; /* whose memory it may refer to */
    enum sluice_route route;
    uint64_t bytes; /* that the sink accepted by it; 0 for a failed SEND_ZC, which has a loan all the same */
    bool back;
};

/* Loans number first, first + 1, ..., count of them; number n lies at n modulo capacity, which is a power of two. */
struct loans {
    struct loan *ring;
    uint32_t capacity, first, count;
};

/* What a sink knows of lending; made when it is first tried. */
struct lending {
    struct loans of[LOAN_NUMBERS];
    uint64_t bytes;          /* lent and not back */
    uint32_t back, readings; /* of late: loans that came back, and how often the queue was read for that */
    bool zerocopy;           /* SO_ZEROCOPY is set */
    bool numbered;           /* the kernel's next number is of[LOANS_OF_SOCKET].first + count */
    bool pressed;            /* ENOBUFS: not before pressed_until, or fewer loans than pressed_count */
    bool unread;             /* the descriptor said that something is in the queue, and it was left there */
    bool held;               /* its end must not be freed yet, as it is being worked on */
    bool closed;             /* by sluice_end_close: freed when the last loan is back */
    uint64_t collect_from;   /* bytes lent from which on the queue is read before more is lent */
    const char *never;       /* why nothing is lent to this socket any more */
    uint32_t pressed_count;
    uint64_t pressed_until;                   /* milliseconds of CLOCK_MONOTONIC */
    uint64_t copied_until;                    /* the kernel copied what was lent: not before this */
    void (*all_back)(struct sluice_end *end); /* the loop, which has forgotten it but for this; once */
    struct sluice_end *next;                  /* of the closed ends of a thread without a loop */
};

/* In one call: the kernel charges a call's whole length to RLIMIT_MEMLOCK, also if it takes but a part of it. */
#define LEND_STEP (1u << 20)

/* Does it pay to lend memory to this sink now? waits: the caller stays until the memory is back, so that the sink need
 * not own its descriptor. */
enum sluice_verdict end_lending(struct sluice_end *sink, bool waits, const char **ret_reason);

/* Read a socket's error queue. Returns 0 or a negative errno; the end is gone if it was closed and all is back. */
int end_collect(struct sluice_end *end, uint64_t *calls);

/* The kernel gave back loans number first to last. The end is gone if it was closed and all is back. */
void end_returned(struct sluice_end *end, enum loan_numbers numbers, uint32_t first, uint32_t last,
                  enum loan_fate fate);

uint32_t end_loans(const struct sluice_end *end);

/* What one loan costs after it was sent, in ns of CPU time: much where each comes back alone, little where many do. */
uint32_t end_later_ns(const struct sluice_end *sink, const struct route *route);

/* A loop learned that the queue is not empty. Is so much outstanding that it should be read even while a transfer goes
 * on by itself? Else it waits, until that transfer ends at the latest: the kernel joins notifications while they lie
 * there. */
bool end_collects_now(struct sluice_end *end);

/* A transfer into this sink has ended. Notifications that came while it went on may not be announced again: they are
 * read now. On a loop that watches the sink only those that were announced and left. */
void end_collect_left(struct sluice_end *end, bool watched, uint64_t *calls);

/* An end with loans is closed: it lives on until they are back. Returns false if none is outstanding. */
bool end_close_lending(struct sluice_end *end);

/* The loop that waited for the memory of a closed end is gone: sluice_end_collect(NULL) sees to it. */
void end_leave_behind(struct sluice_end *end);

void lending_free(struct lending *lending);

/* An op of this lane is about to lend so many bytes: see that there is room to remember it. Returns 0 or a negative
 * errno, and why: then this piece is to go by another route. */
int lane_prepare_loan(struct lane *lane, const struct route *route, size_t bytes, const char **ret_reason);

/* The kernel took no loan of so many bytes, for want of room: why, and what helps. Static. */
const char *lending_pressed(size_t bytes);

/* The kernel has kept the memory of this op, of which the sink accepted result bytes (<= 0: none, as after a failed
 * SEND_ZC). lane_complete does it for loans that the socket numbers; of others a loop tells it before lane_complete.
 * Returns the loan's number. */
uint32_t lane_lend(struct lane *lane, const struct op *op, ssize_t result);

/* An op that was to lend failed with this positive errno. ENOBUFS: collect, and do not lend to this sink again before
 * memory has come back, or, as without loans no notification will come, before some time has passed. */
void lane_lending_failed(struct lane *lane, int error);

/* A transfer's memory segment is done with: release it, or leave that to its last loan. */
void account_release(struct loan_account *account, struct sluice_segment *segments, uint32_t index);

/* The transfer ends: what changes in its receipts from now on is told by options.settled. */
void account_settle(struct loan_account *account);
struct loan_account *account_keep(struct loan_account *account); /* one more reference; NULL stays NULL */
void account_drop(struct loan_account *account);
uint32_t account_loans(const struct loan_account *account);

/* Callbacks are not called where a notification is read, which may be in the middle of a transfer, but by these: all of
 * this thread, or one transfer's. */
void loans_call_back(void);
void account_call_back(struct loan_account *account);
bool loans_to_call_back(void);

#endif
