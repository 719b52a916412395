/* SPDX-License-Identifier: MIT
 *
 * Dropping behind (SLUICE_END_DROP_BEHIND). What a large file that is read once does to the page cache is the kernel's
 * business; this keeps it from doing anything:
 *
 *   - Only pages go that were read for the transfer. A helper looks before it reads, in the middle of each piece of
 *     128 KiB; what was in memory stays there. The kernel is told not to read ahead by itself (core/end.c).
 *   - POSIX_FADV_DONTNEED passes over pages that somebody refers to (mapping_evict_folio, mm/truncate.c), and what
 *     sendfile has handed to a socket is referred to until the peer has acknowledged it. So a window goes when all its
 *     bytes were sent and SIOCOUTQ says that they were acknowledged; the last ones after the transfer's end. To a
 *     receiver on this machine it is the bytes themselves that are referred to, until it has read them, and until the
 *     CPU that sent them receives something else (skb_attempt_defer_free, net/core/skbuff.c). Nobody tells
 *     whether a page has gone (a look would bring it back), so the last windows are dropped again, a few times, less
 *     and less often.
 *   - A file that several transfers of the loop read from the disk at once is wanted: it stays.
 *   - A helper does it: where the kernel passes over a page it empties the queues of all processors and waits for them
 *     (lru_add_drain_all), which takes milliseconds.
 *
 * No other way does it for sendfile. RWF_DONTCACHE (Linux 6.14) marks the pages that its own read brings, but drops
 * those that it was to read at once, and sendfile drops none (filemap_splice_read); POSIX_FADV_NOREUSE (6.3) is for
 * mappings. docs/cold-files.md has the measurements.
 */
#include "pages.h"
#include "../core/receipt.h"
#include "../core/sys.h"
#include "loop.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/resource.h>

#define PIECE RESIDENCY_STEP
#define PIECES (PAGES_WINDOW / PIECE)
#define SMALL (4 * 4096u) /* a piece whose middle may be one of the pages that the loop's thread looks at */
/* Of one transfer: more than a socket's buffers hold. Of what is beyond, nobody keeps account; it stays. */
#define WINDOWS_MAX 32
/* So many windows later a window is dropped once more: a receiver on this machine, with 40 MiB of buffers and less, has
 * read it by then. */
#define ONCE_MORE 20
/* After the transfer's end: how long to wait before all is dropped once more, and the longest such pause. */
#define AGAIN_FIRST_MS 250
#define AGAIN_LAST_MS 16000
#define AGAIN_FACTOR 4

struct window {
    uint64_t offset;
    uint64_t needed_to; /* position in the segment from which on it is not needed */
    uint32_t segment;
    uint32_t length;
    uint16_t brought; /* bit per PIECE of the file that was not in memory before */
    bool dropped;     /* once */
};
_Static_assert(PIECES <= 16, "brought has a bit for each piece");

/* What was read for one transfer from one file. It outlives both. */
struct behind {
    struct behind *next, **previous; /* in the loop's list */
    struct sluice_loop *loop;
    struct sluice_end *source; /* NULL: the transfer has ended */
    uint64_t serial;           /* of the source */
    int fd;                    /* of the same open file, but our own: the end may be closed at any time */
    bool reading, dropping;    /* a helper is at it */
    bool keep;                 /* others want the file: also what is still being read stays */
    unsigned pause;            /* before all is dropped once more */
    struct sluice_timer timer;
    unsigned count;
    struct window windows[WINDOWS_MAX]; /* oldest first */
};

/* ---- Pieces of a window --------------------------------------------------------------------------------------- */

/* Where in the file a piece of the window begins, or what is behind it ends. */
static uint64_t piece_start(const struct window *window, unsigned piece)
{
    uint64_t start = window->offset - window->offset % PIECE + piece * (uint64_t)PIECE,
             end = window->offset + window->length;
    return start < window->offset ? window->offset : start > end ? end : start;
}

static unsigned pieces_of(const struct window *window)
{
    return (unsigned)((window->offset % PIECE + window->length + PIECE - 1) / PIECE);
}

static uint64_t brought_bytes(const struct window *window)
{
    uint64_t bytes = 0;
    for (unsigned piece = 0; piece < pieces_of(window); piece++)
        if (window->brought & 1u << piece)
            bytes += piece_start(window, piece + 1) - piece_start(window, piece);
    return bytes;
}

/* ---- Dropping ------------------------------------------------------------------------------------------------- */

struct drop_job {
    struct helper_job job;
    struct behind *behind;
    int fd;
    unsigned count;
    struct window windows[WINDOWS_MAX];
};

static void behind_free(struct behind *behind)
{
    *behind->previous = behind->next;
    if (behind->next != NULL)
        behind->next->previous = behind->previous;
    sys.close(behind->fd);
    free(behind);
}

static void drop_window(int fd, const struct window *window)
{
    for (unsigned piece = 0, end; piece < pieces_of(window); piece = end) {
        for (end = piece; window->brought & 1u << end; end++)
            ;
        if (end == piece) {
            end++;
            continue;
        }
        uint64_t from = piece_start(window, piece);
        sys.fadvise(fd, (off_t)from, (off_t)(piece_start(window, end) - from), POSIX_FADV_DONTNEED);
    }
}

static void drop_windows(void *context)
{
    struct drop_job *job = context;
    for (unsigned i = 0; i < job->count; i++)
        drop_window(job->fd, &job->windows[i]);
}

/* Is some transfer reading the same file from the disk, but the one that this belongs to? */
static bool is_wanted(const struct behind *behind)
{
    if (behind->source != NULL)
        return behind->source->file.readers > 1;
    for (const struct behind *other = behind->loop->behind; other != NULL; other = other->next)
        if (other->source != NULL && other->serial == behind->serial)
            return true;
    return false;
}

static void drop_once_more(void *context);

/* The transfer has ended, and no helper is at it. */
static void go_on_later(struct behind *behind)
{
    behind->pause = behind->pause == 0 ? AGAIN_FIRST_MS : behind->pause * AGAIN_FACTOR;
    if (behind->count == 0 || behind->pause > AGAIN_LAST_MS)
        behind_free(behind);
    else
        sluice_timer_start(behind->loop, &behind->timer, behind->pause, drop_once_more, behind);
}

static void windows_dropped(void *context)
{
    struct drop_job *job = context;
    struct behind *behind = job->behind;
    free(job);
    behind->dropping = false;
    if (behind->source == NULL && !behind->reading)
        go_on_later(behind);
}

/* What was seen to be in memory lately is not any more. */
static void forget_resident(struct file_facts *file, const struct window *window)
{
    uint64_t end = window->offset + window->length;
    if (end <= file->resident_from || window->offset >= file->resident_to)
        return;
    if (window->offset > file->resident_from)
        file->resident_to = window->offset;
    else
        file->resident_from = end < file->resident_to ? end : file->resident_to;
}

/* Has everything before this window's end left the machine, if so many bytes have not? */
static bool is_behind(const struct window *window, const struct lane *lane, uint64_t queued)
{
    if (lane->segment == window->segment)
        return lane->at >= window->needed_to && lane->at - window->needed_to >= queued;
    return lane->segment < lane->transfer->segment_count ? lane->at >= queued : queued == 0;
}

/* Have a helper drop the windows that the lane has left behind; NULL: all, once more if need be. Returns their bytes,
 * without those that were dropped before. */
static uint64_t drop(struct behind *behind, const struct lane *lane, uint64_t queued)
{
    struct drop_job *job = sys.allocate(1, sizeof *job);
    uint64_t bytes = 0;
    unsigned kept = 0, count = behind->count;
    if (job == NULL)
        return 0;
    for (unsigned i = 0; i < count; i++) {
        struct window window = behind->windows[i];
        bool now = lane == NULL || (window.dropped ? count - i > ONCE_MORE : is_behind(&window, lane, queued));
        if (now) {
            bytes += window.dropped ? 0 : brought_bytes(&window);
            if (behind->source != NULL)
                forget_resident(&behind->source->file, &window);
            job->windows[job->count++] = window;
        }
        if (lane != NULL && now && window.dropped)
            continue; /* that was the second time */
        window.dropped |= now;
        behind->windows[kept++] = window;
    }
    behind->count = kept;
    job->job = (struct helper_job){.work = drop_windows, .done = windows_dropped, .context = job};
    job->behind = behind;
    job->fd = behind->fd;
    behind->dropping = true;
    helpers_submit(behind->loop->helpers, &job->job);
    return bytes;
}

/* The transfer has ended, and no helper is at it. */
static void drop_rest(struct behind *behind)
{
    if (behind->count > 0 && !is_wanted(behind))
        drop(behind, NULL, 0);
    if (!behind->dropping)
        behind_free(behind);
}

static void drop_once_more(void *context)
{
    drop_rest(context);
}

static uint64_t unacknowledged(const struct sluice_end *sink, uint64_t *calls)
{
    int queued = 0;
    if (sink->kind == SLUICE_END_TCP) {
        ++*calls;
        if (sys.ioctl(sink->fd, SIOCOUTQ, &queued) < 0 || queued < 0)
            queued = 0;
    }
    return (uint64_t)queued;
}

void pages_drop_behind(struct sluice_transfer *transfer)
{
    struct behind *behind = transfer->behind;
    struct lane *lane = &transfer->lanes[0];
    if (behind->dropping)
        return;
    const struct window *first = behind->windows;
    while (first < behind->windows + behind->count && first->dropped)
        first++;
    if (first == behind->windows + behind->count || !is_behind(first, lane, 0))
        return;
    if (is_wanted(behind)) {
        behind->count = 0;
        return;
    }
    uint64_t queued = unacknowledged(lane->sink, &lane->receipt.system_calls);
    if (is_behind(first, lane, queued))
        lane->receipt.dropped += drop(behind, lane, queued);
}

/* The transfer has nothing to do with it any more. */
static void part(struct sluice_transfer *transfer)
{
    struct behind *behind = transfer->behind;
    struct sluice_end *source = behind->source;
    transfer->behind = NULL;
    if (is_wanted(behind)) {
        behind->count = 0;
        behind->keep = true;
    }
    for (unsigned i = 0; i < behind->count; i++) /* the last that the receipt is told, if a helper is busy still */
        if (!behind->windows[i].dropped)
            transfer->lanes[0].receipt.dropped += brought_bytes(&behind->windows[i]);
    if (behind->count > 0 && !behind->dropping)
        drop(behind, NULL, 0);
    source->file.readers--;
    behind->source = NULL;
    if (!behind->reading && !behind->dropping)
        behind_free(behind);
}

/* What is to be dropped of this file behind the transfer is kept here. NULL: nothing will be. */
static struct behind *behind_of(struct sluice_loop *loop, struct sluice_transfer *transfer, struct sluice_end *source)
{
    struct behind *behind = transfer->behind;
    if (!(source->flags & SLUICE_END_DROP_BEHIND) || transfer->lane_count > 1)
        return NULL;
    if (behind != NULL && behind->source == source)
        return behind;
    if (behind != NULL)
        part(transfer);
    behind = sys.allocate(1, sizeof *behind);
    if (behind == NULL)
        return NULL;
    transfer->lanes[0].receipt.system_calls++;
    behind->fd = sys.fcntl(source->fd, F_DUPFD_CLOEXEC, 0);
    if (behind->fd < 0) {
        free(behind);
        return NULL;
    }
    behind->loop = loop;
    behind->source = source;
    behind->serial = source->serial;
    behind->next = loop->behind;
    behind->previous = &loop->behind;
    if (behind->next != NULL)
        behind->next->previous = &behind->next;
    loop->behind = behind;
    source->file.readers++;
    transfer->behind = behind;
    return behind;
}

/* ---- Reading -------------------------------------------------------------------------------------------------- */

/* A helper reads a window of a file. If the transfer is cancelled meanwhile, it may read by a descriptor that has been
 * closed, or opened anew for something else: that costs a read for nothing, and touches no memory of ours. */
struct pages_job {
    struct helper_job job;
    struct sluice_loop *loop;
    struct sluice_transfer *transfer; /* NULL: cancelled meanwhile */
    struct sluice_wait wait;
    struct behind *behind; /* NULL: what it reads stays. Else wait.fd is its own */
    struct window window;  /* of that */
};

/* Was the page not in memory? A disk that answers fast hides that from the look, which is what has the page read
 * (core/end.c); but then the kernel has counted the reading. */
static bool was_absent(int fd, uint64_t offset)
{
    struct rusage before, after;
    uint64_t calls = 0;
    bool known = getrusage(RUSAGE_THREAD, &before) == 0;
    int found = page_look(fd, offset, &calls);
    return found == 0 || (known && getrusage(RUSAGE_THREAD, &after) == 0 && after.ru_inblock != before.ru_inblock);
}

/* In the middle of each piece: the loop's thread looks at first and last pages, and its looks bring them. */
static void find_absent(int fd, struct window *window)
{
    for (unsigned piece = 0; piece < pieces_of(window); piece++) {
        uint64_t start = piece_start(window, piece), end = piece_start(window, piece + 1);
        if (was_absent(fd, start + (end - start) / 2))
            window->brought |= (uint16_t)(1u << piece);
    }
}

static void read_pages(void *context)
{
    struct pages_job *job = context;
    if (job->behind != NULL)
        find_absent(job->wait.fd, &job->window);
    sluice_wait_pages(&job->wait); /* an error shows when the transfer reads for itself */
}

/* In a piece so small, what the loop's thread has seen leaves nothing for a helper to see. */
static void note_absent(struct window *window, const struct file_facts *file)
{
    if (!file->absent_known || file->absent < window->offset || file->absent >= window->offset + window->length)
        return;
    unsigned piece = (unsigned)(file->absent / PIECE - window->offset / PIECE);
    if (piece_start(window, piece + 1) - piece_start(window, piece) < SMALL)
        window->brought |= (uint16_t)(1u << piece);
}

static void note_brought(const struct pages_job *job)
{
    struct behind *behind = job->behind;
    behind->reading = false;
    if (job->window.brought != 0 && !behind->keep && behind->count < WINDOWS_MAX)
        behind->windows[behind->count++] = job->window;
    if (behind->source == NULL && !behind->dropping)
        drop_rest(behind);
}

static void pages_read(void *context)
{
    struct pages_job *job = context;
    struct sluice_transfer *transfer = job->transfer;
    if (job->behind != NULL)
        note_brought(job);
    if (transfer != NULL) {
        transfer->loop_context = NULL;
        end_note_resident(job->wait.end, job->wait.offset, job->wait.length, job->loop->now);
        if (transfer->waits_pages)
            loop_queue_transfer(job->loop, transfer);
        else
            pages_read_ahead(job->loop, transfer);
    }
    free(job);
}

static int begin_reading(struct sluice_loop *loop, struct sluice_transfer *transfer, const struct sluice_wait *wait)
{
    struct pages_job *job = sys.allocate(1, sizeof *job);
    if (job == NULL)
        return -ENOMEM;
    job->job = (struct helper_job){.work = read_pages, .done = pages_read, .context = job};
    job->loop = loop;
    job->transfer = transfer;
    job->wait = *wait;
    job->behind = behind_of(loop, transfer, wait->end);
    if (job->behind != NULL) {
        uint32_t segment = transfer->lanes[0].segment;
        job->behind->reading = true;
        job->wait.fd = job->behind->fd;
        job->window = (struct window){
            .offset = wait->offset,
            .needed_to = wait->offset + wait->length - transfer->segments[segment].offset,
            .segment = segment,
            .length = (uint32_t)wait->length,
        };
        note_absent(&job->window, &wait->end->file);
    }
    end_note_absent(wait->end, wait->offset);
    transfer->loop_context = job;
    transfer->ahead_to = wait->offset + wait->length;
    helpers_submit(loop->helpers, &job->job);
    return 0;
}

int pages_want(struct sluice_loop *loop, struct sluice_transfer *transfer, const struct sluice_wait *wait)
{
    return transfer->loop_context == NULL ? begin_reading(loop, transfer, wait) : 0; /* one read at a time */
}

/* While one window of a cold file is sent, the next one is read: else disk and network would take turns. */
void pages_read_ahead(struct sluice_loop *loop, struct sluice_transfer *transfer)
{
    const struct lane *lane = &transfer->lanes[0];
    if (transfer->ahead_to == 0 || transfer->loop_context != NULL || lane->segment >= transfer->segment_count)
        return;
    const struct sluice_segment *segment = lane_segment(lane, lane->segment);
    if (segment->kind != SLUICE_SEGMENT_FILE)
        return;
    uint64_t position = segment->offset + lane->at;
    uint64_t size = segment->end->file.size;
    uint64_t end = segment->length == SLUICE_UNTIL_END ? size : segment->offset + segment->length;
    if (transfer->ahead_to >= end || transfer->ahead_to >= position + PAGES_WINDOW)
        return;
    uint64_t length = end - transfer->ahead_to < PAGES_WINDOW ? end - transfer->ahead_to : PAGES_WINDOW;
    struct sluice_wait wait = {.kind = SLUICE_WAIT_PAGES,
                               .fd = segment->end->fd,
                               .end = segment->end,
                               .offset = transfer->ahead_to,
                               .length = length};
    /* Without memory for it the transfer will wait for its pages instead. */
    begin_reading(loop, transfer, &wait);
}

void pages_detach(struct sluice_transfer *transfer)
{
    if (transfer->loop_context != NULL) {
        ((struct pages_job *)transfer->loop_context)->transfer = NULL;
        transfer->loop_context = NULL;
    }
    if (transfer->behind != NULL)
        part(transfer);
}

void pages_free(struct sluice_loop *loop)
{
    while (loop->behind != NULL)
        behind_free(loop->behind);
}
