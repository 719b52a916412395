/* SPDX-License-Identifier: MIT
 *
 * A loan is one call whose memory the kernel still refers to after its result. Three objects carry it:
 *
 *   the end (struct lending)        numbers the loans and is told which are back. Loans outlive transfers: an end that
 *                                   is closed lives on until the last one is back.
 *   the transfer (loan_account)     what is to be done then: the release callbacks of its memory segments, and what
 *                                   changes in its receipts. Allocated with its first loan, so that a transfer
 *                                   without loans pays nothing; outlives the transfer as long as a loan needs it.
 *   the loan                        ties one to the other.
 *
 * Invariants
 *   1. A segment's release callback runs when every lane has passed the segment and no loan covers it.
 *   2. bytes = by_reference + copied + unknown holds at every moment: a lent byte is unknown until its notification.
 *   3. No callback runs while a notification is read: what is due is listed, and called from loans_call_back().
 *   4. The kernel's numbers are those of our calls. So nobody else may lend by the socket: only ends that own their
 *      descriptor lend, or those of a caller who waits; a number out of range is ignored.
 *
 * Why memory comes back late is the kernel's business: when the last packet that refers to it was acknowledged and
 * freed. Waiting for that after every call is ruinous (3.5 to 9 MB/s, KERNEL-FACTS 1), so nothing here waits: the queue
 * is read when the descriptor says so and no transfer is in the middle of sending, when much more is outstanding than
 * last time, on ENOBUFS, and, where no loop watches the descriptor, at a transfer's end. On a loop a small message thus
 * leaves by one system call, and many come back by one.
 */
#include "loans.h"
#include "../base/clock.h"
#include "crossover.h"
#include "memlock.h"
#include "receipt.h"
#include "sys.h"
#include "transfer.h"
#include <errno.h>
#include <linux/errqueue.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>

/* So much more outstanding than when the queue was read last and it is read before more is lent. The kernel joins
 * notifications while they lie there, so reading seldom is reading little. */
#define COLLECT_FROM (4u << 20)
/* So much is lent at most: far above what a socket's buffer holds (KERNEL-FACTS 1: 2 MiB of window cost a factor of
 * ten), and a bound on what a peer that acknowledges nothing can keep. */
#define WINDOW_BYTES (64u << 20)
#define WINDOW_LOANS 16384u
#define FIRST_LOANS 16u

/* A socket whose loans were copied: to a local peer, or while somebody captures packets; both last. */
#define COPIED_PAUSE_MS 30000u
/* ENOBUFS without a loan of our own outstanding: the limit is used up by others, and no event tells when it is not. */
#define PRESSED_PAUSE_MS 100u
/* A closed end's peer that acknowledges nothing for so long is cut off (TCP_USER_TIMEOUT), as it keeps our memory. */
#define CLOSED_PATIENCE_MS 60000

struct lent_segment {
    uint32_t loans;
    sluice_release_fn *release; /* NULL: the transfer still needs the segment, or it is released */
    void *context;
    const void *data;
    uint64_t length;
    struct lent_segment *next_due;
};

struct loan_account {
    struct sluice_transfer *transfer; /* NULL once it has settled */
    uint32_t references;              /* the transfer, every loan, and the list of what is due */
    uint32_t loans, lane_count;
    sluice_settled_fn *settled;
    void *settled_context;
    struct lent_segment *due, **due_last; /* in the order in which they came back */
    bool queued;
    struct loan_account *next_queued;
    struct sluice_receipt *differences; /* one for each lane; behind the segments. NULL: nobody is told */
    struct lent_segment segments[];
};

static _Thread_local struct loan_account *queued, **queued_last;
static _Thread_local struct sluice_end *closed_ends;

/* Giving it back: so much more do datagrams of 4 KiB that are lent cost than their samples say, on either loop. */
#define LATER_LOAN_NS 400
/* A wake-up of the loop and reading the queue, for however many loans. */
#define LATER_READING_NS 1000
#define LATER_WINDOW 4096u

static struct lending *lending_of(const struct sluice_end *end)
{
    return end_is_socket(end) ? end->socket.lending : NULL;
}

uint32_t end_loans(const struct sluice_end *end)
{
    const struct lending *lending = lending_of(end);
    return lending == NULL ? 0 : lending->of[LOANS_OF_SOCKET].count + lending->of[LOANS_OF_RING].count;
}

bool end_collects_now(struct sluice_end *end)
{
    struct lending *lending = lending_of(end);
    lending->unread = true;
    return lending->bytes >= COLLECT_FROM || lending->pressed;
}

void end_collect_left(struct sluice_end *end, bool watched, uint64_t *calls)
{
    const struct lending *lending = lending_of(end);
    if (lending != NULL && (!watched || lending->unread))
        end_collect(end, calls);
}

/* ---- The transfer's side ---------------------------------------------------------------------------------------- */

static struct loan_account *account_new(struct sluice_transfer *transfer)
{
    size_t segments = transfer->segment_count * sizeof(struct lent_segment);
    size_t differences = transfer->settled != NULL ? transfer->lane_count * sizeof(struct sluice_receipt) : 0;
    struct loan_account *account = sys.allocate(1, sizeof *account + segments + differences);
    if (account == NULL)
        return NULL;
    account->transfer = transfer;
    account->references = 1;
    account->lane_count = transfer->lane_count;
    account->settled = transfer->settled;
    account->settled_context = transfer->settled_context;
    account->due_last = &account->due;
    if (transfer->settled != NULL)
        account->differences = (struct sluice_receipt *)&account->segments[transfer->segment_count];
    return account;
}

struct loan_account *account_keep(struct loan_account *account)
{
    if (account != NULL)
        account->references++;
    return account;
}

void account_drop(struct loan_account *account)
{
    if (account != NULL && --account->references == 0)
        free(account);
}

uint32_t account_loans(const struct loan_account *account)
{
    return account == NULL ? 0 : account->loans;
}

static void queue_account(struct loan_account *account)
{
    if (account->queued)
        return;
    account->queued = true;
    account->references++;
    account->next_queued = NULL;
    if (queued == NULL)
        queued_last = &queued;
    *queued_last = account;
    queued_last = &account->next_queued;
}

static void segment_is_due(struct loan_account *account, struct lent_segment *lent)
{
    lent->next_due = NULL;
    *account->due_last = lent;
    account->due_last = &lent->next_due;
    queue_account(account);
}

void account_release(struct loan_account *account, struct sluice_segment *segments, uint32_t index)
{
    struct sluice_segment *segment = &segments[index];
    struct lent_segment *lent = &account->segments[index];
    if (segment->release == NULL)
        return;
    *lent = (struct lent_segment){.loans = lent->loans,
                                  .release = segment->release,
                                  .context = segment->release_context,
                                  .data = segment->data,
                                  .length = segment->length};
    segment->release = NULL;
    if (lent->loans == 0)
        segment_is_due(account, lent);
}

void account_settle(struct loan_account *account)
{
    account->transfer = NULL;
}

static void call_back(struct loan_account *account)
{
    while (account->due != NULL) {
        struct lent_segment *lent = account->due;
        account->due = lent->next_due;
        if (account->due == NULL)
            account->due_last = &account->due;
        sluice_release_fn *release = lent->release;
        lent->release = NULL;
        release(lent->context, lent->data, lent->length);
    }
    if (account->loans > 0 || account->transfer != NULL || account->settled == NULL)
        return;
    sluice_settled_fn *settled = account->settled;
    account->settled = NULL;
    for (uint32_t i = 0; i < account->lane_count; i++)
        if (account->differences[i].loans != 0)
            settled(account->settled_context, i, &account->differences[i]);
}

void account_call_back(struct loan_account *account)
{
    if (account != NULL)
        call_back(account);
}

void loans_call_back(void)
{
    while (queued != NULL) {
        struct loan_account *account = queued;
        queued = account->next_queued;
        account->queued = false;
        call_back(account);
        account_drop(account);
    }
}

bool loans_to_call_back(void)
{
    return queued != NULL;
}

static void loan_is_back(const struct loan *loan, struct sluice_end *sink, enum loan_fate fate)
{
    struct loan_account *account = loan->account;
    if (account->transfer != NULL)
        receipt_return(&account->transfer->lanes[loan->lane].receipt, loan->route, sink, loan->bytes, fate);
    else if (account->differences != NULL)
        receipt_return(&account->differences[loan->lane], loan->route, sink, loan->bytes, fate);
    for (uint32_t i = loan->first_segment; i <= loan->last_segment; i++) {
        struct lent_segment *lent = &account->segments[i];
        if (--lent->loans == 0 && lent->release != NULL)
            segment_is_due(account, lent);
    }
    if (--account->loans == 0 && account->transfer == NULL && account->settled != NULL)
        queue_account(account);
    account_drop(account);
}

/* ---- Does it pay? ----------------------------------------------------------------------------------------------- */

/* COPIED is about this socket's path to its peer, and will be so for the next call (msg_zerocopy.rst); or about the
 * device, if nothing else is ever heard of it: then no socket lends by it for a while (crossover.c). */
static void learn(struct sluice_end *end, const struct loan *loan, bool copied)
{
    struct sluice_egress egress;
    struct pair pair = {.segment = SLUICE_SEGMENT_MEMORY,
                        .source = SLUICE_END_MEMORY,
                        .sink = sluice_end_kind(end),
                        .length = loan->bytes,
                        .released = true};
    if (sluice_end_egress(end, &egress) == 0)
        pair.egress = &end->socket.egress;
    if (copied) {
        lending_of(end)->copied_until = clock_coarse_ms() + COPIED_PAUSE_MS;
        end->memory_plan.until = 0;
    }
    crossover_copied(route_registry[loan->route], &pair, copied);
}

enum sluice_verdict end_lending(struct sluice_end *sink, bool waits, const char **ret_reason)
{
    struct sluice_egress egress;
    const char *reason = NULL;
    if (sink->kind != SLUICE_END_TCP && sink->kind != SLUICE_END_DATAGRAM)
        reason = "only TCP and UDP sockets take memory on loan";
    else if (!waits && !(sink->flags & SLUICE_END_OWN_FD))
        reason = "the end must own its descriptor (SLUICE_END_OWN_FD), to keep it open until the memory is back";
    else if (end_sends_tls(sink))
        reason = "kernel TLS takes no memory on loan: it encrypts into pages of its own (MSG_ZEROCOPY: EOPNOTSUPP)";
    else if (sink->socket.lending != NULL)
        reason = sink->socket.lending->never;
    *ret_reason = reason;
    if (reason != NULL)
        return SLUICE_NEVER;
    const struct lending *lending = sink->socket.lending;
    int known = sluice_end_egress(sink, &egress);
    if (known < 0)
        reason = "the device that packets leave by is not known";
    else if (egress.loopback)
        reason = "the peer is on this machine: lent pages are copied on delivery";
    else if (!egress.scatter_gather || !egress.checksum)
        reason = "the device has no scatter-gather or no checksum offload: the kernel would copy";
    else if (lending != NULL && lending->copied_until > clock_coarse_ms())
        reason = "the kernel copied what was lent to this socket; it is asked again after 30 s";
    else
        reason = memlock_shortage(LEND_STEP);
    *ret_reason = reason;
    return reason == NULL ? SLUICE_YES : SLUICE_NOT_NOW;
}

/* ---- The end's side --------------------------------------------------------------------------------------------- */

static void destroy(struct sluice_end *end)
{
    for (struct sluice_end **at = &closed_ends; *at != NULL; at = &(*at)->socket.lending->next) {
        if (*at == end) {
            *at = end->socket.lending->next;
            break;
        }
    }
    end_free(end);
}

/* After loans came back, or could have. */
static void if_all_back(struct sluice_end *end)
{
    struct lending *lending = lending_of(end);
    if (end_loans(end) > 0 || lending->held)
        return;
    if (lending->all_back != NULL) {
        void (*all_back)(struct sluice_end *) = lending->all_back;
        lending->all_back = NULL;
        all_back(end);
    }
    if (lending->closed)
        destroy(end);
}

static void take_back(struct sluice_end *end, struct loans *loans, uint32_t first, uint32_t last, enum loan_fate fate)
{
    struct lending *lending = lending_of(end);
    /* Numbers wrap: only their distance from the oldest counts. */
    int32_t from = (int32_t)(first - loans->first), to = (int32_t)(last - loans->first);
    const struct loan *any = NULL;
    if (from < 0)
        from = 0;
    for (int32_t i = from; i <= to && (uint32_t)i < loans->count; i++) {
        struct loan *loan = &loans->ring[(loans->first + (uint32_t)i) & (loans->capacity - 1)];
        if (loan->back)
            continue;
        loan->back = true;
        any = loan;
        lending->bytes -= loan->bytes;
        loan_is_back(loan, end, fate);
    }
    if (any != NULL && fate != LOAN_UNTOLD)
        learn(end, any, fate == LOAN_COPIED);
    while (loans->count > 0 && loans->ring[loans->first & (loans->capacity - 1)].back) {
        loans->first++;
        loans->count--;
    }
}

void end_returned(struct sluice_end *end, enum loan_numbers numbers, uint32_t first, uint32_t last, enum loan_fate fate)
{
    take_back(end, &lending_of(end)->of[numbers], first, last, fate);
    if_all_back(end);
}

/* One message of the error queue. */
static void read_notification(struct sluice_end *end, struct msghdr *message)
{
    struct lending *lending = lending_of(end);
    struct loans *loans = &lending->of[LOANS_OF_SOCKET];
    for (struct cmsghdr *control = CMSG_FIRSTHDR(message); control != NULL; control = CMSG_NXTHDR(message, control)) {
        struct sock_extended_err error;
        bool about_errors = (control->cmsg_level == SOL_IP && control->cmsg_type == IP_RECVERR) ||
                            (control->cmsg_level == SOL_IPV6 && control->cmsg_type == IPV6_RECVERR);
        if (!about_errors || control->cmsg_len < CMSG_LEN(sizeof error))
            continue;
        memcpy(&error, CMSG_DATA(control), sizeof error);
        if (error.ee_errno != 0 || error.ee_origin != SO_EE_ORIGIN_ZEROCOPY)
            continue;
        if (!lending->numbered) { /* the one loan there is */
            loans->ring[error.ee_data & (loans->capacity - 1)] = loans->ring[loans->first & (loans->capacity - 1)];
            loans->first = error.ee_data;
            lending->numbered = true;
        }
        take_back(end, loans, error.ee_info, error.ee_data,
                  error.ee_code & SO_EE_CODE_ZEROCOPY_COPIED ? LOAN_COPIED : LOAN_NOT_COPIED);
    }
}

int end_collect(struct sluice_end *end, uint64_t *calls)
{
    struct lending *lending = lending_of(end);
    int result = 0;
    if (lending == NULL)
        return 0;
    lending->held = true;
    lending->unread = false;
    while (lending->of[LOANS_OF_SOCKET].count > 0) {
        _Alignas(struct cmsghdr) char control[256];
        struct msghdr message = {.msg_control = control, .msg_controllen = sizeof control};
        ++*calls;
        uint32_t before = lending->of[LOANS_OF_SOCKET].count;
        if (sys.recvmsg(end->fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) >= 0) {
            read_notification(end, &message);
            lending->readings++;
            lending->back += before - lending->of[LOANS_OF_SOCKET].count;
        } else if (errno != EINTR) {
            result = errno == EAGAIN ? 0 : -errno;
            break;
        }
    }
    if (lending->back + lending->readings > LATER_WINDOW) {
        lending->back /= 2;
        lending->readings /= 2;
    }
    lending->held = false;
    lending->collect_from = lending->bytes + COLLECT_FROM;
    if_all_back(end);
    return result;
}

uint32_t end_later_ns(const struct sluice_end *sink, const struct route *route)
{
    const struct lending *lending = lending_of(sink);
    if (route->lends == LOANS_NONE)
        return 0;
    if (route->lends == LOANS_OF_RING) /* told by reports that the loop takes anyway */
        return LATER_LOAN_NS;
    if (lending == NULL || lending->back == 0)
        return LATER_LOAN_NS + LATER_READING_NS;
    return LATER_LOAN_NS + (uint32_t)((uint64_t)LATER_READING_NS * lending->readings / lending->back);
}

int sluice_end_collect(struct sluice_end *end)
{
    uint64_t calls = 0;
    int result = 0;
    uint32_t left = 0;
    if (end != NULL) {
        result = end_collect(end, &calls);
        left = end_loans(end);
    } else {
        for (struct sluice_end *closed = closed_ends, *next; closed != NULL; closed = next) {
            next = closed->socket.lending->next;
            int code = end_collect(closed, &calls);
            result = code < 0 ? code : result;
        }
        for (const struct sluice_end *closed = closed_ends; closed != NULL; closed = closed->socket.lending->next)
            left += end_loans(closed);
    }
    loans_call_back();
    return result < 0 ? result : (int)left;
}

void end_leave_behind(struct sluice_end *end)
{
    struct lending *lending = lending_of(end);
    lending->all_back = NULL;
    if (!lending->closed)
        return;
    lending->next = closed_ends;
    closed_ends = end;
}

bool end_close_lending(struct sluice_end *end)
{
    struct lending *lending = lending_of(end);
    uint64_t calls = 0;
    end_collect(end, &calls);
    if (end_loans(end) == 0)
        return false;
    lending->closed = true;
    if (end->kind == SLUICE_END_TCP) {
        int patience = CLOSED_PATIENCE_MS;
        sys.setsockopt(end->fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &patience, sizeof patience);
        sys.shutdown(end->fd, SHUT_WR);
    }
    if (end->loop == NULL)
        end_leave_behind(end);
    return true;
}

void lending_free(struct lending *lending)
{
    if (lending == NULL)
        return;
    free(lending->of[LOANS_OF_SOCKET].ring);
    free(lending->of[LOANS_OF_RING].ring);
    free(lending);
}

/* ---- Lending ---------------------------------------------------------------------------------------------------- */

/* Ask the socket to take memory on loan. Returns 0 or a negative errno. */
static int allow(struct sluice_end *sink, struct lending *lending, uint64_t *calls)
{
    int on = 0;
    socklen_t size = sizeof on;
    *calls += 2;
    /* On already: inherited from a listener, or somebody has lent before us, and the kernel has counted it. */
    lending->numbered = sys.getsockopt(sink->fd, SOL_SOCKET, SO_ZEROCOPY, &on, &size) == 0 && on == 0;
    on = 1;
    if (sys.setsockopt(sink->fd, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on) < 0)
        return -errno;
    lending->zerocopy = true;
    return 0;
}

static int make_room(struct loans *loans)
{
    if (loans->count < loans->capacity)
        return 0;
    uint32_t capacity = loans->capacity == 0 ? FIRST_LOANS : loans->capacity * 2;
    struct loan *ring = sys.allocate(capacity, sizeof *ring);
    if (ring == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < loans->count; i++)
        ring[(loans->first + i) & (capacity - 1)] = loans->ring[(loans->first + i) & (loans->capacity - 1)];
    free(loans->ring);
    loans->ring = ring;
    loans->capacity = capacity;
    return 0;
}

const char *lending_pressed(size_t bytes)
{
    const char *shortage = memlock_shortage(bytes < LEND_STEP ? bytes : LEND_STEP);
    return shortage != NULL ? shortage : "the kernel has no room for more loans (net.core.optmem_max, RLIMIT_MEMLOCK)";
}

static bool still_pressed(struct lending *lending)
{
    uint32_t count = lending->of[LOANS_OF_SOCKET].count + lending->of[LOANS_OF_RING].count;
    if (lending->pressed &&
        (count < lending->pressed_count || (count == 0 && clock_coarse_ms() >= lending->pressed_until)))
        lending->pressed = false;
    return lending->pressed;
}

int lane_prepare_loan(struct lane *lane, const struct route *route, size_t bytes, const char **ret_reason)
{
    struct sluice_transfer *transfer = lane->transfer;
    struct sluice_end *sink = lane->sink;
    uint64_t *calls = &lane->receipt.system_calls;
    *ret_reason = "no memory to keep account of what is lent";
    if (sink->socket.lending == NULL)
        sink->socket.lending = sys.allocate(1, sizeof *sink->socket.lending);
    struct lending *lending = sink->socket.lending;
    if (lending == NULL)
        return -ENOMEM;
    struct loans *loans = &lending->of[route->lends];
    if (route->lends == LOANS_OF_SOCKET && !lending->zerocopy) {
        int result = allow(sink, lending, calls);
        if (result < 0) {
            *ret_reason = lending->never = "the socket takes no memory on loan (SO_ZEROCOPY)";
            sink->memory_plan.until = 0;
            return result;
        }
    }
    if (transfer->loop != NULL && transfer->watch(transfer->loop, sink) < 0) {
        *ret_reason = "the loop cannot watch the socket, to learn when the memory is back";
        return -ENOBUFS;
    }
    if (lending->bytes >= lending->collect_from || lending->bytes >= WINDOW_BYTES)
        end_collect(sink, calls);
    if (make_room(loans) < 0)
        return -ENOMEM;
    if (transfer->account == NULL) {
        transfer->account = account_new(transfer);
        if (transfer->account == NULL)
            return -ENOMEM;
    }
    const char *reason = NULL;
    if (lending->bytes >= WINDOW_BYTES || loans->count >= WINDOW_LOANS)
        reason = "as much is lent as may be (64 MiB)";
    else if (route->lends == LOANS_OF_SOCKET && !lending->numbered && loans->count > 0)
        reason = "the socket had been lent to before: its numbers are known with the first notification";
    else if (still_pressed(lending))
        reason = lending_pressed(bytes);
    else if (transfer->forced == SLUICE_ROUTE_AUTO && transfer->order == NULL)
        end_lending(sink, true, &reason);
    else if (route->lends != LOANS_OF_RING || lane_segment(lane, lane->segment)->memory == NULL)
        reason = memlock_shortage(bytes < LEND_STEP ? bytes : LEND_STEP); /* of what is registered no call is charged */
    *ret_reason = reason;
    return reason == NULL ? 0 : -ENOBUFS;
}

uint32_t lane_lend(struct lane *lane, const struct op *op, ssize_t result)
{
    struct sluice_transfer *transfer = lane->transfer;
    struct loan_account *account = transfer->account;
    struct lending *lending = lane->sink->socket.lending;
    const struct route *route = route_registry[lane->iov_route[0]];
    struct loans *loans = &lending->of[route->lends];
    uint32_t segment = lane->segment;
    uint64_t at = lane->at;
    struct loan loan = {.account = account,
                        .lane = (uint32_t)(lane - transfer->lanes),
                        .route = route->id,
                        .bytes = result > 0 ? (uint64_t)result : 0,
                        .first_segment = UINT32_MAX};
    for (int i = 0; i < op->iov_count; i++) {
        while (at == transfer->segments[segment].length) { /* pieces were gathered past empty segments */
            segment++;
            at = 0;
        }
        at += op->iov[i].iov_len;
        if (loan.first_segment == UINT32_MAX)
            loan.first_segment = segment;
        loan.last_segment = segment;
    }
    for (uint32_t i = loan.first_segment; i <= loan.last_segment; i++)
        account->segments[i].loans++;
    account->references++;
    account->loans++;
    lending->bytes += loan.bytes;
    lane->receipt.loans++;
    uint32_t number = loans->first + loans->count++;
    loans->ring[number & (loans->capacity - 1)] = loan;
    return number;
}

/* After a datagram's failure the kernel's count is certain only if it failed before it was counted. With IP_RECVERR a
 * full queue is reported too, after the count. */
static bool counted_for_certain(const struct sluice_end *sink)
{
    int on4 = 0, on6 = 0;
    socklen_t size = sizeof on4;
    sys.getsockopt(sink->fd, SOL_IP, IP_RECVERR, &on4, &size);
    size = sizeof on6;
    sys.getsockopt(sink->fd, SOL_IPV6, IPV6_RECVERR, &on6, &size);
    return on4 == 0 && on6 == 0;
}

void lane_lending_failed(struct lane *lane, int error)
{
    struct sluice_end *sink = lane->sink;
    struct lending *lending = sink->socket.lending;
    if (sink->kind == SLUICE_END_DATAGRAM && (error != ENOBUFS || !counted_for_certain(sink))) {
        lending->never = "a datagram that failed leaves the kernel's numbers for loans uncertain";
        sink->memory_plan.until = 0;
    }
    if (error != ENOBUFS)
        return;
    end_collect(sink, &lane->receipt.system_calls);
    uint32_t left = end_loans(sink);
    lending->pressed = true;
    lending->pressed_count = left;
    lending->pressed_until = clock_coarse_ms() + PRESSED_PAUSE_MS;
}
