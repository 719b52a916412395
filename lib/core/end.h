/* SPDX-License-Identifier: MIT
 *
 * An end: a descriptor, what it is, and what was learned about it.
 */
#ifndef SLUICE_CORE_END_H
#define SLUICE_CORE_END_H

#include "tls.h"
#include <sluice/sluice.h>

/* The last answer to the question by which route memory goes to this sink (transfer.c), for so long as it holds. */
struct memory_plan {
    uint64_t until; /* ms of the loop's clock; 0: there is none */
    uint32_t epoch; /* of the crossovers */
    uint8_t size;   /* of the segment: its highest bit */
    uint8_t traits; /* what else of the segment and the loop decided */
    uint8_t route;  /* enum sluice_route */
};

/* What a loop keeps with an end; its own business. */
struct loop_end;
struct lending;

/* A route that this end refused in company with another end, remembered for that pair. */
struct refusal {
    uint64_t peer;   /* serial of the other end */
    uint32_t routes; /* bit per route */
};
_Static_assert(SLUICE_ROUTE_COUNT <= 32, "sets of routes are 32 bits");
#define END_REFUSALS 2

struct file_facts {
    uint64_t size;       /* when the end was opened */
    const char *mapping; /* of the whole file, when it is small; never touched by user code (SIGBUS) */
    size_t mapped;
    uint64_t checked_turn; /* loop turn at which the size was asked last, and what it was */
    uint64_t checked_size;
    uint64_t resident_from, resident_to; /* seen in memory at resident_at (loop time) */
    uint64_t resident_at;
    uint64_t absent; /* the byte whose page was found not to be there, or is being read by a helper */
    bool absent_known;
    uint32_t readers;                       /* transfers that read it from the disk, and are to drop it again */
    uint8_t planned[SLUICE_END_KIND_COUNT]; /* enum sluice_route by kind of sink; AUTO: the plan was not asked yet */
    bool page_cache;                        /* splice takes references to this file system's page cache */
    bool bypassed;                          /* O_DIRECT leaves this file system's page cache out, always */
    bool file_system_asked;
    bool device_known;
    uint64_t device;              /* the number of its file system, if device_known */
    bool twin_asked, direct_told; /* direct_told: the kernel has said what O_DIRECT asks for with this file */
    int twin;                     /* if asked for: the file opened the other way as to O_DIRECT, or a negative errno */
    uint32_t direct_place, direct_memory; /* what offsets and lengths, and addresses, must be multiples of */
};

struct socket_facts {
    struct sluice_egress egress;
    bool egress_asked;
    bool corked;
    bool segments, segments_asked; /* it is UDP, and its kernel cuts datagrams (UDP_SEGMENT) */
    bool paces, paces_asked;       /* its congestion control spaces packets by a timer */
    struct tls_facts tls;          /* of TCP */
    int16_t broke; /* what a loop's receiver was told, a negative errno: the socket says it once, and then its end */
    struct lending *lending; /* core/loans.h; NULL: nothing was ever lent to it */
};

struct sluice_end {
    int fd;
    uint8_t kind; /* enum sluice_end_kind */
    uint8_t flags;
    bool append;     /* O_APPEND: the kernel refuses to splice there */
    bool direct;     /* O_DIRECT: no page cache, so nothing to refer to */
    bool past_cache; /* a file that is to be used by O_DIRECT: open so, or SLUICE_END_DIRECT */
    uint64_t serial; /* never reused, unlike a descriptor or an address */
    struct loop_end *loop;
    struct refusal refusals[END_REFUSALS]; /* as a sink; the newest first */
    struct memory_plan memory_plan;        /* as a sink */
    union {
        struct file_facts file; /* file, block */
        struct socket_facts socket;
        struct {
            char *data;
            size_t size, used;
        } memory;
    };
};

static inline bool end_is_file(const struct sluice_end *end)
{
    return end->kind == SLUICE_END_FILE || end->kind == SLUICE_END_BLOCK;
}

/* Free an end and close its descriptor, if it owns that. */
void end_free(struct sluice_end *end);

static inline bool end_is_socket(const struct sluice_end *end)
{
    return end->kind == SLUICE_END_TCP || end->kind == SLUICE_END_UNIX_STREAM || end->kind == SLUICE_END_DATAGRAM;
}

/* Does the kernel encrypt what is sent there, or decrypt what comes from there? */
static inline bool end_sends_tls(const struct sluice_end *end)
{
    return end->kind == SLUICE_END_TCP && end->socket.tls.send != SLUICE_TLS_NONE;
}

static inline bool end_receives_tls(const struct sluice_end *end)
{
    return end->kind == SLUICE_END_TCP && end->socket.tls.receive != SLUICE_TLS_NONE;
}

/* The error with which the end's connection broke, if somebody has been told; else 0. */
static inline int end_broke(const struct sluice_end *end)
{
    return end_is_socket(end) ? end->socket.broke : 0;
}

/* Was memory ever lent to this end? */
static inline bool end_has_lent(const struct sluice_end *end)
{
    return end_is_socket(end) && end->socket.lending != NULL;
}

/* The file's size now. Asked once per turn of the loop (turn 0: always). Returns 0 or a negative errno. */
int end_size_now(struct sluice_end *end, uint64_t turn, uint64_t *calls, uint64_t *ret_size);

/* How often within a range to look: at the first page of each such piece of the file. The kernel reads ahead and evicts
 * in larger pieces than a page. */
#define RESIDENCY_STEP (128u << 10)

/* Read this byte of a file without waiting for its disk. Returns 1 when it was read; 0 when its page would have to come
 * from the disk; or a negative errno: then nothing is known. A look at a page that is not in memory brings it (and no
 * other, if the file has POSIX_FADV_RANDOM) and may then find it. Any thread. */
int page_look(int fd, uint64_t offset, uint64_t *calls);

/* How many of the bytes from offset on are in memory as far as RWF_NOWAIT tells, asked at most once in RESIDENCY_MS for
 * the same range. warm: what lies before was in memory, so the last page will tell; else one page in RESIDENCY_STEP is
 * looked at. A file system that does not know RWF_NOWAIT counts as resident: there is no way to ask it. */
uint64_t end_resident(struct sluice_end *end, uint64_t offset, uint64_t length, bool warm, uint64_t now,
                      uint64_t *calls);

/* A mapping of the whole (small) file, kept with the end, for the kernel to read from; NULL if it cannot be had. */
const char *end_mapping(struct sluice_end *end, uint64_t *calls);

/* A helper is about to read what begins there: until it has (end_note_resident), it counts as not in memory, and nobody
 * looks. A look would bring the page, and the next one would take the whole piece to be there. */
void end_note_absent(struct sluice_end *end, uint64_t offset);

/* A helper has just read this range. */
void end_note_resident(struct sluice_end *end, uint64_t offset, uint64_t length, uint64_t now);

/* Does splice hand out references to this file's page cache? Asked from the file system once. */
bool end_has_page_cache(struct sluice_end *end, uint64_t *calls);

/* Do reads and writes by O_DIRECT move this file's bytes without the CPU? Asked from kernel and file system once. */
bool end_bypasses_cache(struct sluice_end *end, uint64_t *calls);

/* The file's descriptor with O_DIRECT, and for what that needs direct_place and direct_memory; or a negative errno:
 * EINVAL, EOPNOTSUPP it has no O_DIRECT; others: it could not be opened a second time. */
int end_direct_fd(struct sluice_end *end, uint64_t *calls);

/* The file's descriptor without O_DIRECT; where that cannot be had, the one there is. */
int end_buffered_fd(struct sluice_end *end, uint64_t *calls);

/* The descriptor for what goes through memory. */
static inline int end_plain_fd(struct sluice_end *end, uint64_t *calls)
{
    return end->direct && end_is_file(end) ? end_buffered_fd(end, calls) : end->fd;
}

/* Reset a TCP connection: what the kernel has not sent is dropped, and its peer is told that something is missing. */
void end_reset(struct sluice_end *end, uint64_t *calls);

/* Does the TCP socket's congestion control pace (bbr)? Asked once. */
bool end_paces(struct sluice_end *end, uint64_t *calls);

/* Does this datagram socket's kernel cut one call's bytes into datagrams (UDP_SEGMENT)? Asked once. */
bool end_segments(struct sluice_end *end, uint64_t *calls);

void end_remember_refusal(struct sluice_end *sink, const struct sluice_end *source, enum sluice_route route);
bool end_refused(const struct sluice_end *sink, const struct sluice_end *source, enum sluice_route route);

#endif
