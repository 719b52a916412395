/* SPDX-License-Identifier: MIT
 *
 * libsluice: move bytes between files, sockets, pipes and memory by the cheapest route Linux offers,
 * and say what was really copied.
 *
 *   end       a long-lived handle on one descriptor, or on memory
 *   segment   one piece of a source; a source is an ordered list of segments
 *   route     one mechanism: copy, mmap, sendfile, splice, ...
 *   plan      which routes can carry a segment to a sink here, and why the others cannot
 *   transfer  a source on its way into one sink, or several
 *   receipt   what a transfer really did, with the evidence for it
 *
 * Three ways in:
 *   sluice_transfer_run()            one blocking call
 *   sluice_transfer_step()           resumable; for people with an event loop of their own
 *   sluice_loop_transfer()           sluice's own loop (experimental until 1.0)
 *
 * Conventions. Functions that can fail return 0 or a positive value, or a negative errno; a ret_ parameter is
 * untouched on failure. Sizes and offsets are in bytes, times in milliseconds. Nothing is printed. No function
 * raises SIGPIPE or SIGBUS. Destructors accept NULL. An object belongs to one thread at a time; two threads may
 * use different objects freely. Option structs begin with their size, so that they can grow.
 * Kernels: everything works on Linux 5.10; where a function needs more, it says so.
 */
#ifndef SLUICE_H
#define SLUICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SLUICE_API __attribute__((visibility("default")))

/* The version of this header. sluice_version() gives the library's. */
#define SLUICE_VERSION_MAJOR 0
#define SLUICE_VERSION_MINOR 1
#define SLUICE_VERSION_PATCH 0

/* "0.1.0"; a static string. Any thread. */
SLUICE_API const char *sluice_version(void);

/* ---- Routes ------------------------------------------------------------------------------------------------- */

/* One mechanism each. The numbers are part of the ABI: append only. Receipts and plans have room for these and no more,
 * so until 1.0 a new route is a new soname. */
enum sluice_route {
    SLUICE_ROUTE_AUTO = 0,        /* let the plan choose */
    SLUICE_ROUTE_COPY,            /* read + write through user memory; memory segments by one send or write */
    SLUICE_ROUTE_MMAP,            /* a mapping of the file, written from: one copy, none of it by user code */
    SLUICE_ROUTE_SENDFILE,        /* sendfile(2) */
    SLUICE_ROUTE_SPLICE,          /* splice(2), through a pooled pipe where neither end is one */
    SLUICE_ROUTE_TEE,             /* tee(2): a stream's pages go to several sinks by reference */
    SLUICE_ROUTE_VMSPLICE,        /* vmsplice(2): the pages of struct sluice_memory are given away */
    SLUICE_ROUTE_MSG_ZEROCOPY,    /* memory lent to a TCP or UDP socket (MSG_ZEROCOPY) until the kernel gives it back */
    SLUICE_ROUTE_URING_SEND_ZC,   /* the same by a ring's SEND_ZC, on a loop that is one */
    SLUICE_ROUTE_TCP_RECEIVE,     /* TCP_ZEROCOPY_RECEIVE: what arrived is mapped and written from there; when forced */
    SLUICE_ROUTE_COPY_FILE_RANGE, /* copy_file_range(2): the file system shares extents, or copies in the kernel */
    SLUICE_ROUTE_REFLINK,         /* ioctl_ficlonerange(2): both files share extents, until one is written to */
    SLUICE_ROUTE_DIRECT,          /* files read and written past the page cache (O_DIRECT) */
    SLUICE_ROUTE_COUNT
};

/* The route's name as --route takes it ("sendfile"); "?" for a number that is none. Static. Any thread. */
SLUICE_API const char *sluice_route_name(enum sluice_route route);

/* The route called name ("auto" included), or -EINVAL. Any thread. */
SLUICE_API int sluice_route_by_name(const char *name);

/* ---- Ends --------------------------------------------------------------------------------------------------- */

/* What a descriptor turned out to be, asked from the kernel once. */
enum sluice_end_kind {
    SLUICE_END_FILE,        /* regular file */
    SLUICE_END_BLOCK,       /* block device */
    SLUICE_END_PIPE,        /* pipe or FIFO */
    SLUICE_END_TCP,         /* TCP socket, connected */
    SLUICE_END_UNIX_STREAM, /* Unix stream socket */
    SLUICE_END_DATAGRAM,    /* UDP or Unix datagram socket: memory segments only, one datagram each */
    SLUICE_END_OTHER,       /* anything else that reads or writes: a terminal, a character device, eventfd, ... */
    SLUICE_END_MEMORY,      /* caller's memory, as a sink */
    SLUICE_END_KIND_COUNT
};

struct sluice_end;

enum sluice_end_flags {
    SLUICE_END_OWN_FD = 1 << 0,   /* close the descriptor with the end */
    SLUICE_END_SNAPSHOT = 1 << 1, /* this file may change in place: never hand out its pages, copy them */
    SLUICE_END_DIRECT = 1 << 2,   /* read or write this file past the page cache (route direct) where place and length
                                     are whole blocks, the rest through it. The same is meant by a descriptor that is
                                     open with O_DIRECT. The file is opened a second time, by /proc/self/fd, with the
                                     descriptor's O_APPEND, O_SYNC and O_DSYNC. It waits for the device, on a loop too */
    SLUICE_END_DROP_BEHIND =
        1 << 3, /* what a loop has to read of this file from the disk (SLUICE_TRANSFER_NEVER_BLOCK) it drops from the
                   page cache again when the peer has acknowledged it, so that one who downloads a large file does not
                   take the cache from the others. Not what was in memory before, nor what several transfers of the
                   loop read at the same time. Files of a file system that knows no RWF_NOWAIT stay */
};

/* Make an end of a descriptor. A socket or pipe used with sluice_transfer_step() or a loop should be O_NONBLOCK;
 * sluice_transfer_run() works with either. With SLUICE_END_OWN_FD the descriptor is the end's from success on.
 * The end may be used by any number of transfers as a file source at the same time, and by one as a stream source
 * or as a sink.
 * Returns 0, or: -EBADF not a descriptor, or opened with O_PATH; -EISDIR a directory; -ENOMEM. */
SLUICE_API int sluice_end_open(int fd, unsigned flags, struct sluice_end **ret_end);

/* The same for who knows already what it would ask: fd is a regular file of this size (of a sink it does not matter),
 * opened without O_APPEND, O_DIRECT and O_PATH. No system call; for programs that open many small files.
 * Returns 0 or -ENOMEM. */
SLUICE_API int sluice_end_open_file(int fd, uint64_t size, unsigned flags, struct sluice_end **ret_end);

/* Make a sink of size bytes at memory, which stays the caller's and must outlive the end.
 * A transfer that brings more than fits ends with -ENOSPC. Returns 0 or -ENOMEM. */
SLUICE_API int sluice_end_open_memory(void *memory, size_t size, struct sluice_end **ret_end);

/* Free the end, and its descriptor if it owns that. No transfer may be using it. If memory is still lent to its socket
 * (receipt.loans), a connection is shut down for writing and lives on unseen until that memory is back, which a loop
 * that the end was on sees to, or else sluice_end_collect(NULL); a peer that takes nothing for a minute is cut off. */
SLUICE_API void sluice_end_close(struct sluice_end *end);

/* For people without the loop: read what the kernel says of memory lent to this end's socket, and call the release
 * callbacks of what is back. Call it when the descriptor has POLLERR (poll with events 0 waits for that alone; so does
 * every poll while something is there to be read). NULL: for all ends that this thread has closed. Does not block.
 * The error queue of a socket that sluice lends memory to is sluice's: other messages in it are dropped.
 * Returns the number of loans still outstanding, 0 at the end, or a negative errno from recvmsg(2). Linux 4.14 for TCP,
 * 5.0 for UDP. */
SLUICE_API int sluice_end_collect(struct sluice_end *end);

/* Allocate room for a range of a regular file, whose size stays as it is (fallocate(2), FALLOC_FL_KEEP_SIZE): a full
 * disk is known before the first byte, and what is written lies together. For a log: some way ahead of its end; what is
 * left over goes when the file is truncated to its size. Blocks like fallocate.
 * Returns 0, or: -EINVAL the end is no regular file; -EBADF it is not open for writing; -ENOSPC, -EDQUOT, -EFBIG;
 * -EOPNOTSUPP this file system allocates nothing ahead; -EIO. */
SLUICE_API int sluice_end_allocate(struct sluice_end *end, uint64_t offset, uint64_t length);

SLUICE_API int sluice_end_fd(const struct sluice_end *end);
SLUICE_API enum sluice_end_kind sluice_end_kind(const struct sluice_end *end);

/* "file", "tcp", ...: static. Any thread. */
SLUICE_API const char *sluice_end_kind_name(enum sluice_end_kind kind);

/* What was learned about the device by which a connected TCP or UDP socket's packets leave. Asked by route lookup at
 * the first call for the socket, cached per peer address for 30 s. */
struct sluice_egress {
    unsigned ifindex;    /* 0: unknown */
    char name[16];       /* "lo", "eth0"; empty: unknown */
    char driver[16];     /* "virtio_net"; empty: the device does not say */
    bool known;          /* the next two flags were read from the device */
    bool scatter_gather; /* without it sendfile and splice copy silently in the kernel */
    bool checksum;       /* without it the CPU reads every byte */
    bool segmentation;   /* TSO: a large write passes through the stack in one piece */
    bool loopback;       /* local delivery: page references reach the receiver */
};

/* Returns 0, or: -ENOTSOCK neither a TCP nor a datagram socket; -ENOTCONN; -ENODATA the kernel would not tell (why is
 * in the receipt of transfers as evidence unknown). */
SLUICE_API int sluice_end_egress(struct sluice_end *end, struct sluice_egress *ret_egress);

/* Kernel TLS: after the handshake, which is the program's business, the kernel encrypts what is sent to a TCP socket,
 * or decrypts what is received (setsockopt TCP_ULP and SOL_TLS; OpenSSL: SSL_OP_ENABLE_KTLS). Plain bytes are then
 * sent as to any socket, from files by sendfile as well. Who does the work in one direction: */
enum sluice_tls_by {
    SLUICE_TLS_NONE = 0, /* nobody in the kernel: there is no TLS, or the program does it */
    SLUICE_TLS_SOFTWARE, /* the kernel, on the CPU */
    SLUICE_TLS_DEVICE,   /* the network device */
    SLUICE_TLS_UNTOLD,   /* one of the two: the kernel tells which only to an administrator (before Linux 6.15) */
};

struct sluice_tls {
    enum sluice_tls_by send, receive;
    unsigned version;   /* 0x0303: TLS 1.2, 0x0304: TLS 1.3, 0: none */
    const char *cipher; /* "AES-128-GCM"; "?": one that is not known here; "": none. Static */
    bool zero_copy;     /* the device takes pages of files as they are (TLS_TX_ZEROCOPY_RO); else the kernel copies */
};

/* "none", "software", "device", "unknown"; "?" for a number that is none. Static. Any thread. */
SLUICE_API const char *sluice_tls_by_name(enum sluice_tls_by by);

/* What the kernel does for this end. Who does it is asked at the first call, or when bytes are first entered in a
 * receipt: from /proc/net/tls_stat, or of the socket (inet_diag). Returns 0, or -ENOTSOCK not a TCP socket. */
SLUICE_API int sluice_end_tls(struct sluice_end *end, struct sluice_tls *ret_tls);

/* Ask again what may have changed since the end was opened: TLS was switched on. (Opening asks, too.) No transfer may
 * be using the end. Returns 0, or a negative errno of getsockopt(2); of what is no TCP socket 0. */
SLUICE_API int sluice_end_refresh(struct sluice_end *end);

/* Has this kernel TLS to offer? Its module is loaded by the question, if the process may do that (CAP_NET_ADMIN). Keeps
 * /proc/net/tls_stat open, for questions of who does the work: call it before the process is confined, or becomes
 * another user's. Any thread. Returns 0, or, with *ret_reason (may be NULL; a static string that says what would help):
 * -ENOENT there is no such module, or it is not loaded; -ENOPROTOOPT older than Linux 4.13; and what socket(2) says. */
SLUICE_API int sluice_tls_probe(const char **ret_reason);

/* ---- Sources ------------------------------------------------------------------------------------------------ */

enum sluice_segment_kind {
    SLUICE_SEGMENT_MEMORY, /* bytes at hand */
    SLUICE_SEGMENT_FILE,   /* a range of a file or block device; the end's file position is neither used nor moved */
    SLUICE_SEGMENT_STREAM, /* what a pipe or socket delivers */
};

/* In segment.length of a file or stream: until its end. */
#define SLUICE_UNTIL_END UINT64_MAX

/* Called exactly once per memory segment, when the library and the kernel have done with the bytes: after the last
 * byte was sent, or when the transfer failed or was cancelled; for memory lent to the kernel (msg_zerocopy) when its
 * notification came, which may be after the transfer's end: from the loop between its callbacks, or from
 * sluice_end_collect, sluice_transfer_step, _run or _free. Memory without a callback is never lent: its owner could not
 * know when it is free again. On the transfer's thread. */
typedef void sluice_release_fn(void *context, const void *data, size_t length);

enum sluice_segment_flags {
    SLUICE_SEGMENT_SIZE_KNOWN =
        1 << 0, /* file: its size was seen just now (inotify has told nothing, or fstat was asked),
                   so it is not asked again for a body that leaves at once: 0.3 us less */
    SLUICE_SEGMENT_BORROWED =
        1 << 1, /* memory: the bytes are there only until sluice_loop_transfer, the first sluice_transfer_step or
                   sluice_transfer_run returns, as those that a receiver is given. What has not left by then is copied
                   (copy_bytes counts it, of the first sink), and that copy freed when it was sent or cannot be. No
                   release callback */
};

struct sluice_segment {
    enum sluice_segment_kind kind;
    unsigned flags;
    const void *data;           /* memory */
    struct sluice_end *end;     /* file, stream: borrowed until the transfer is done */
    uint64_t offset;            /* file */
    uint64_t length;            /* of memory exact; of others exact or SLUICE_UNTIL_END */
    sluice_release_fn *release; /* memory: may be NULL */
    void *release_context;
    struct sluice_memory *memory; /* memory: what data lies in, or NULL. A loop on io_uring registers it when it is
                                     first sent or written from there; that stays until the memory is freed */
};

/* On which kind of page memory lies. Large ones are 2 MiB each: fewer faults to fill it, fewer entries for the device
 * or the ring that is handed it. */
enum sluice_pages {
    SLUICE_PAGES_NONE = 0,    /* no memory */
    SLUICE_PAGES_PLAIN,       /* plain pages, or nobody knows of larger ones */
    SLUICE_PAGES_TRANSPARENT, /* transparent huge pages (MADV_HUGEPAGE) */
    SLUICE_PAGES_HUGE         /* pages set aside by the administrator (MAP_HUGETLB, vm.nr_hugepages) */
};

/* "none", "plain", "transparent", "huge"; static. Any thread. */
SLUICE_API const char *sluice_pages_name(enum sluice_pages pages);

/* Memory of the library's, for one of two uses. Given away: filled once by the caller, sent once as a segment, and
 * unmapped by the library, never used again; so the kernel may keep its pages for as long as it likes (vmsplice), which
 * nobody could be told of. Or kept, and sent or written from again and again: with segment.memory set, and a release
 * callback of the caller's own, a ring need not look up, pin and count its pages each time. */
struct sluice_memory;

/* At least size bytes of zeros, on pages of their own: from 2 MiB on large ones where they are to be had. A child of
 * fork(2) has no use of it. Returns 0, -EINVAL (size 0) or -ENOMEM. */
SLUICE_API int sluice_memory_new(size_t size, struct sluice_memory **ret_memory);

/* Where they are; aligned to a page. */
SLUICE_API void *sluice_memory_data(struct sluice_memory *memory);

/* On what pages: the smallest there are. Transparent ones were seen to be so when it was made. */
SLUICE_API enum sluice_pages sluice_memory_pages(const struct sluice_memory *memory);

/* For segment.release, with the memory as release_context, of a segment that begins at its data: this makes the memory
 * the transfer's. Or to be called, to free memory that is not sent after all (data and length do not matter). */
SLUICE_API void sluice_memory_release(void *memory, const void *data, size_t length);

/* ---- Receipts ----------------------------------------------------------------------------------------------- */

/* How a figure is known. */
enum sluice_evidence {
    SLUICE_EVIDENCE_NONE = 0,      /* no figure */
    SLUICE_EVIDENCE_UNKNOWN,       /* bytes went this way; nobody said whether they were copied */
    SLUICE_EVIDENCE_BY_DEFINITION, /* read + write copies twice */
    SLUICE_EVIDENCE_PROBED,        /* tried or asked on this machine: the egress device has scatter-gather */
    SLUICE_EVIDENCE_MEASURED,      /* the kernel said so of these very bytes */
};

struct sluice_route_count {
    uint64_t bytes;                /* delivered to the sink by this route */
    uint64_t calls;                /* system calls that moved them */
    enum sluice_evidence evidence; /* the weakest there was */
};

/* One change of route in mid-transfer. */
struct sluice_fallback {
    enum sluice_route from, to;
    int error;          /* positive errno, or 0 when policy decided */
    uint64_t at;        /* bytes the transfer had delivered */
    const char *reason; /* static */
};

#define SLUICE_RECEIPT_FALLBACKS 4

/* What one transfer did for one sink; or the sum of many (sluice_receipt_add). No pointers to free. */
struct sluice_receipt {
    uint64_t bytes;         /* delivered to the sink: = by_reference + copied + unknown, and what of transformed is in
                               none of these: kernel TLS encrypted it out of pages that nobody copied */
    uint64_t by_reference;  /* of these, handed over without the CPU touching them */
    uint64_t copied;        /* of these, copied at least once */
    uint64_t copy_bytes;    /* bytes the CPU copied: a byte copied twice counts twice */
    uint64_t transformed;   /* of bytes, those that the CPU made into others: by a transform, or by kernel TLS. That
                               is no copy, and not by reference either */
    uint64_t unknown;       /* of these, nobody can tell */
    uint64_t holes;         /* of by_reference, holes of a sparse file, kept as holes: no route carried them */
    uint64_t aliased;       /* of these, pages of a file that a reader may still see change */
    uint64_t sent;          /* accepted by the sink */
    uint64_t released;      /* of sent, no longer referred to by a loan of memory: = sent once nothing is outstanding */
    uint64_t system_calls;  /* all of them, those that failed and those that moved nothing included */
    uint64_t waits;         /* times the transfer had to wait for an end, or for pages from disk */
    uint64_t loans;         /* buffers lent to the kernel and not yet returned; 0 when final */
    uint64_t transfers;     /* summed into this receipt; 1 for one */
    uint64_t short_sources; /* sources that ended before their declared length */
    uint64_t shrunk;        /* file sources found truncated while they were being sent */
    uint64_t registered;    /* bytes that a ring moved into or out of memory that was registered with it; of a byte that
                               was both read and written so, both */
    uint64_t dropped;       /* bytes of files that were read into the page cache for this and that the kernel was asked
                               to drop again (SLUICE_END_DROP_BEHIND) */
    enum sluice_pages pages; /* of the library's memory that bytes went through: staging buffers, struct sluice_memory;
                                the smallest there were */
    uint64_t fallback_count; /* all; the first SLUICE_RECEIPT_FALLBACKS are kept */
    uint64_t routes_used;    /* bit per enum sluice_route: the others' counts are zero */
    struct sluice_route_count routes[SLUICE_ROUTE_COUNT];
    struct sluice_fallback fallbacks[SLUICE_RECEIPT_FALLBACKS]; /* those beyond fallback_count are not set */
};

/* Add one receipt to a sum. */
SLUICE_API void sluice_receipt_add(struct sluice_receipt *sum, const struct sluice_receipt *receipt);

/* Nothing outstanding: released equals sent and no loan is open. */
SLUICE_API bool sluice_receipt_is_final(const struct sluice_receipt *receipt);

/* Write the receipt as one line of text ("1.0 MiB: sendfile 1.0 MiB by reference (probed), ...") or as a JSON
 * object on one line. Always terminates; returns the length that the whole text has, as snprintf does. */
SLUICE_API int sluice_receipt_format(const struct sluice_receipt *receipt, char *buffer, size_t size);
SLUICE_API int sluice_receipt_format_json(const struct sluice_receipt *receipt, char *buffer, size_t size);

SLUICE_API const char *sluice_evidence_name(enum sluice_evidence evidence);

/* ---- Errors ------------------------------------------------------------------------------------------------- */

/* Why a transfer failed. The strings are static. */
/* Of a transfer. */
enum sluice_side { SLUICE_SIDE_NONE, SLUICE_SIDE_SOURCE, SLUICE_SIDE_SINK };

struct sluice_error {
    int code;                /* negative errno; 0: no error */
    enum sluice_side side;   /* whose call failed; none: that of both, of neither, or nobody knows */
    enum sluice_route route; /* that was trying */
    const char *operation;   /* "sendfile", "recv", "plan", ... */
    const char *reason;      /* what is known beyond strerror; may be NULL */
    const char *remedy;      /* what to do; may be NULL */
    uint64_t delivered;      /* bytes the sink had accepted before */
};

/* "sendfile to tcp failed after 4096 bytes: Connection reset by peer (ECONNRESET)": as snprintf. */
SLUICE_API int sluice_error_format(const struct sluice_error *error, char *buffer, size_t size);

/* ---- Plans -------------------------------------------------------------------------------------------------- */

enum sluice_verdict {
    SLUICE_NEVER,   /* this pair of ends cannot be served by the route on this machine */
    SLUICE_NOT_NOW, /* refused for a passing cause, or dearer for this size */
    SLUICE_YES,
};

struct sluice_plan_entry {
    enum sluice_route route;
    enum sluice_verdict verdict;
    const char *reason; /* static; NULL for a plain yes */
    uint64_t from;      /* the route pays from so many bytes on; 0: always; SLUICE_NEVER_PAYS */
    bool learned;       /* from was measured on this machine; else it is the default */
};

#define SLUICE_NEVER_PAYS UINT64_MAX

struct sluice_plan {
    unsigned count;                                       /* entries, the one to be tried first first */
    struct sluice_plan_entry entries[SLUICE_ROUTE_COUNT]; /* every route appears once */
};

/* How would this segment go to this sink? Nothing is moved; of a connected socket the egress device is asked. Returns 0
 * or -EINVAL (a segment without its end). */
SLUICE_API int sluice_plan_make(const struct sluice_segment *segment, struct sluice_end *sink,
                                struct sluice_plan *ret_plan);

/* Could the route ever carry bytes from such a source to such a sink, or to so many: on some machine, for some size, by
 * some loop? For programs that are told a route before they have ends. source_flags: of sluice_end_open. Any thread.
 * Returns 0 (SLUICE_ROUTE_AUTO always does), -EOPNOTSUPP and why not (ret_reason may be NULL; a static string), or
 * -EINVAL: there is no such route. */
SLUICE_API int sluice_route_check(enum sluice_route route, enum sluice_end_kind source, unsigned source_flags,
                                  enum sluice_end_kind sink, size_t sinks, const char **ret_reason);

/* ---- Crossovers --------------------------------------------------------------------------------------------- */

/* From which size on a route is cheaper than copying is learned while transfers run, per pair of ends and kind of
 * egress device, in this process: about one segment in 16 whose size decides about its route is measured. What follows
 * shares and keeps it; none of it happens unasked. */
struct sluice_crossover {
    enum sluice_route route;
    enum sluice_end_kind source, sink;
    struct sluice_egress device; /* what it is, not which: ifindex and name are empty. All zero for sinks without one */
    uint64_t from;               /* the route pays from so many bytes on; SLUICE_NEVER_PAYS */
    uint64_t samples;            /* of the route, that this was learned from */
    bool closed;                 /* not now: the kernel copied what the route had lent it; it will be tried again */
};

typedef void sluice_crossover_fn(void *context, const struct sluice_crossover *crossover);

/* Call visit for everything learned. Any thread. */
SLUICE_API void sluice_crossovers_each(sluice_crossover_fn *visit, void *context);

/* From now on, processes forked by this one learn together with it (40 KiB of shared memory). Call before threads and
 * transfers are there. Returns 0 or -ENOMEM. */
SLUICE_API int sluice_crossovers_share(void);

/* Take over what an earlier run learned on this kernel and CPU; what this process measured already stays. path: NULL
 * for the user's cache, $XDG_CACHE_HOME/sluice or ~/.cache/sluice. ret_reason: NULL, or why not, a static string
 * ("there is none yet"). Never fatal: without it there are the defaults. Returns 0, or: -ENOENT; -EPERM not a file of
 * this user's; -EFBIG; -EBADMSG malformed; -ESTALE measured on another kernel or CPU; -ENOMEM; and what open(2) says.
 */
SLUICE_API int sluice_crossovers_load(const char *path, const char **ret_reason);

/* Write everything learned, by way of a temporary file beside it, if anything was measured in this process. Returns 1,
 * 0 (nothing to write) or: -ENOENT neither XDG_CACHE_HOME nor HOME is set; -EPERM the directory is another user's;
 * -ENOSPC, -EACCES, -EROFS and what else open(2), write(2) and rename(2) say. */
SLUICE_API int sluice_crossovers_save(const char *path);

/* ---- Transfers ---------------------------------------------------------------------------------------------- */

/* A transform stands between source and sink: encryption, compression. It forces the bytes through user memory. */
struct sluice_transform {
    size_t size; /* of this struct */
    const char *name;
    /* Turn some input into some output. last: no more input follows in this transfer, or was given. Input that was used
     * may be kept, and its output be made by a later call. Sets *ret_used and *ret_made. Returns 0 to be called again
     * when there is more input or room, 1 when last was given and all output was made, or a negative errno. Making no
     * output and using no input while both were offered is taken as -EPROTO. Input comes in pieces of up to 240 KiB, as
     * it lies in memory; there is room for 16 KiB of output at least, and to begin with for 256 KiB. What is made of
     * all that can be had without waiting leaves by one write. */
    int (*apply)(void *context, const void *input, size_t input_size, size_t *ret_used, void *output,
                 size_t output_size, size_t *ret_made, bool last);
    void *context;
};

enum sluice_transfer_flags {
    SLUICE_TRANSFER_NEVER_BLOCK = 1 << 0, /* ask before reading a file whether its pages are in memory (RWF_NOWAIT) and
                                             wait for SLUICE_WAIT_PAGES instead of for the disk */
    SLUICE_TRANSFER_MORE = 1 << 1,        /* more will follow at once: keep the last packet open (MSG_MORE). Kernel TLS
                                             keeps the last record open until more is sent, without TCP's limit of
                                             200 ms; shutting the connection down loses it */
    SLUICE_TRANSFER_SPARSE = 1 << 2,      /* keep the holes of file sources (lseek(2), SEEK_HOLE) in sinks that are
                                             regular files and written at an offset: they are neither read nor written,
                                             what the sink had there becomes a hole, and a hole at the end makes it
                                             longer. Other sinks, and file systems without holes, get zeros */
};

/* What becomes of a sink that keeps the others from getting more of a stream, or that fails. */
enum sluice_fanout_policy {
    SLUICE_FANOUT_BLOCK = 0, /* the others wait for the slowest once it is `window` bytes behind what was read; a sink
                                that fails ends the transfer */
    SLUICE_FANOUT_DROP,      /* a sink that is `window` bytes behind, and so in the way of the others, has `patience`
                                milliseconds to catch up by half of that; else it ends with -ENOBUFS. One that fails
                                ends with its error. The others go on. A sink that ended so has got the first bytes of
                                what was to be sent, without a gap (its receipt counts them), and gets no more; a TCP
                                connection is reset at once, lest its peer take what it has for all there is */
    SLUICE_FANOUT_COPY,      /* as DROP, but a sink may be `window` + `buffer` bytes behind: what its pipe does not hold
                                is copied into memory of its own, and it gets by reference again once that is sent */
    SLUICE_FANOUT_FIRST, /* the first sink is the one that counts: the source waits for it alone. It is never dropped;
                            if it fails, so does the transfer, at once. Another that is `window` bytes behind when
                            the first could get more ends with -ENOBUFS, there and then; one that fails ends with
                            its error; both as with DROP. None gets ahead of the first by more than was read for
                            that. When the first has everything, the others may go on as long as they take something
                            every `patience` milliseconds; the transfer ends after them, so that whoever is to tell
                            the first's peer of the end does it in `sink_ended` */
};

/* A sink of several needs nothing more of the transfer: error->code is 0, it has got everything; or why it was dropped.
 * Its end is not used by the transfer any more: it may be forgotten and closed in the callback. Called once for each
 * sink, not for those that are left when the transfer fails as a whole; on the thread that steps the transfer, within a
 * step or sluice_loop_transfer, before done. From sluice_transfer_run with memory lent to that sink: when that is back.
 * The transfer may not be stepped or freed in it. It may be cancelled on its loop: then done is called later, in the
 * same turn. error and receipt are the transfer's, valid during the call. */
typedef void sluice_sink_ended_fn(void *context, unsigned sink, const struct sluice_error *error,
                                  const struct sluice_receipt *receipt);

/* The last of the memory that a transfer had lent came back after the transfer's end. difference is what that changes
 * in the receipt of its sink number `sink`: sluice_receipt_add of the provisional receipt and of this gives the final
 * one (counts that fall are stored as their two's complement). Called once for each sink whose receipt was provisional,
 * where release callbacks are (see sluice_release_fn), after the last of them. */
typedef void sluice_settled_fn(void *context, unsigned sink, const struct sluice_receipt *difference);

struct sluice_transfer_options {
    size_t size;                           /* sizeof (struct sluice_transfer_options) */
    const struct sluice_segment *segments; /* copied; the ends and memory are borrowed until the transfer is done */
    size_t segment_count;
    struct sluice_end *const *sinks; /* copied array of borrowed ends */
    size_t
        sink_count; /* 1 to SLUICE_SINKS_MAX. Several: each gets all bytes at its own pace, memory and files without
                       regard to the others; of a stream, which is read once for all, see enum sluice_fanout_policy */
    uint64_t sink_offset;    /* where in file sinks to write; SLUICE_APPEND: at the file position */
    enum sluice_route route; /* force one for the file and stream segments; one that lends, for memory segments */
    unsigned flags;
    const struct sluice_transform *transform; /* NULL: none. One sink only. Borrowed */
    uint64_t turn; /* bytes to move before giving way to others (step returns SLUICE_STEP_YIELD); 0: the default */
    uint64_t quiet_below; /* the last segment is a stream of SLUICE_UNTIL_END, there is one sink and no transform: end,
                             with result 0, when the stream has nothing for now and since it last had nothing, or since
                             the beginning, it brought fewer bytes than this. All that it brought was delivered then,
                             and nothing else was taken from it: another transfer or a receiver goes on with the next
                             byte, or finds the stream's end. 0: not before its end */
    unsigned datagram_size; /* datagram sinks: memory segments leave as datagrams of so many bytes (a segment's last may
                               be shorter), many in one call where the kernel can (UDP_SEGMENT, Linux 4.18). 0: each
                               segment is one datagram. At most 65507 */
    sluice_settled_fn *settled; /* NULL: the final receipts are not asked for */
    void *settled_context;

    /* Several sinks: */
    enum sluice_fanout_policy policy;
    size_t window;                    /* 0: SLUICE_FANOUT_WINDOW; at most that */
    size_t buffer;                    /* of SLUICE_FANOUT_COPY; 0: SLUICE_FANOUT_BUFFER */
    unsigned patience;                /* milliseconds; 0: SLUICE_FANOUT_PATIENCE. Of FIRST see there */
    struct sluice_error *sink_errors; /* NULL, or one for each sink, which must outlive the transfer: code 0, or why
                                         this sink ended before the others, or was the end of all. As long as one
                                         sink gets everything, the transfer succeeds */
    sluice_sink_ended_fn *sink_ended; /* NULL: nobody is told before the transfer is done. With one sink never called */
    void *sink_context;
};

#define SLUICE_APPEND UINT64_MAX
#define SLUICE_FANOUT_WINDOW (1u << 20) /* a pipe's most, and the cheapest per byte */
#define SLUICE_FANOUT_BUFFER (16u << 20)
#define SLUICE_FANOUT_PATIENCE 1000
#define SLUICE_SINKS_MAX 16

/* Move everything; return when the sinks have accepted it all. Blocks, whatever the descriptors' flags; no signal
 * ends it early (EINTR is retried). ret_receipts: NULL, or one receipt per sink, filled also on failure.
 * ret_error: NULL or filled on failure. Memory segments are released, whatever it returns: memory lent to a socket is
 * waited for, which takes until the peer's kernel has the bytes.
 * Returns 0 (also for a short source of SLUICE_UNTIL_END), or:
 * -ENODATA a source ended before its declared length (the receipt says short_sources or shrunk; all there was has
 * been delivered); -EPIPE, -ECONNRESET the sink went away; -EOPNOTSUPP a forced route cannot serve this pair;
 * -EINVAL wrong options; -ENOSPC; -EIO; -ENOMEM; and what else read(2), write(2) and the routes' calls return. */
SLUICE_API int sluice_transfer_run(const struct sluice_transfer_options *options, struct sluice_receipt *ret_receipts,
                                   struct sluice_error *ret_error);

struct sluice_transfer;

/* Make a transfer to be stepped. Moves nothing yet. Returns 0, -EINVAL, -EOPNOTSUPP, -ENOMEM as above; on failure the
 * segments' release callbacks have not been called, and ret_error says why. */
SLUICE_API int sluice_transfer_new(const struct sluice_transfer_options *options, struct sluice_transfer **ret_transfer,
                                   struct sluice_error *ret_error);

enum sluice_step {
    SLUICE_STEP_DONE = 0, /* every sink accepted everything */
    SLUICE_STEP_WAIT = 1, /* *ret_wait says for what */
    SLUICE_STEP_YIELD = 2 /* the turn is used up; step again when others had theirs */
};

enum sluice_wait_kind {
    SLUICE_WAIT_READABLE, /* until end can be read */
    SLUICE_WAIT_WRITABLE, /* until end can be written */
    SLUICE_WAIT_PAGES,    /* until a range of a file is in memory: call sluice_wait_pages on a thread that may block */
};

struct sluice_wait {
    enum sluice_wait_kind kind;
    int fd;                 /* readable, writable: for poll or epoll */
    struct sluice_end *end; /* the same as an end */
    uint64_t offset;        /* pages */
    uint64_t length;
};

/* What a step waits for: at most one thing for each sink. */
#define SLUICE_WAITS_MAX SLUICE_SINKS_MAX

struct sluice_waits {
    unsigned count;
    struct sluice_wait wait[SLUICE_WAITS_MAX]; /* any of them is reason to step again */
    int timeout; /* -1, or step again after so many milliseconds all the same: a slow sink's patience will be over */
};

/* Move what can be moved without blocking. Edge-triggered waiting is safe: a step returns SLUICE_STEP_WAIT only after
 * the end itself said EAGAIN. Returns enum sluice_step, or a negative errno, which is final (see
 * sluice_transfer_error); the errors are those of sluice_transfer_run. */
SLUICE_API int sluice_transfer_step(struct sluice_transfer *transfer, struct sluice_waits *ret_waits);

/* Read a range into memory, blocking as long as the disk takes. Any thread, while the transfer is left alone.
 * Returns 0 or a negative errno, which may be ignored: the next step finds out for itself. */
SLUICE_API int sluice_wait_pages(const struct sluice_wait *wait);

/* The receipt for the i-th sink, as of now. */
SLUICE_API const struct sluice_receipt *sluice_transfer_receipt(const struct sluice_transfer *transfer, unsigned sink);

/* Why it failed; code 0 if it did not. Valid until the transfer is freed. */
SLUICE_API const struct sluice_error *sluice_transfer_error(const struct sluice_transfer *transfer);

/* Free it, cancelling what is not done: memory not lent is released; a sink may have got a part, which the receipt
 * counts. Until then its receipts follow what comes back of lent memory (sluice_end_collect). */
SLUICE_API void sluice_transfer_free(struct sluice_transfer *transfer);

/* ---- Receiving pages ---------------------------------------------------------------------------------------- */

/* What arrives at a TCP connection, as pages of the kernel mapped into this process (TCP_ZEROCOPY_RECEIVE, Linux 4.18)
 * instead of copies. Only whole pages that arrive aligned can be mapped: the connection's segments must carry a
 * multiple of 4096 bytes (TCP_MAXSEG of 4108 or 8204 on both sides before connecting, for 12 bytes of TCP options), the
 * sender must send whole pages of its own, and its data must not be read in pieces of other sizes. What cannot be
 * mapped is copied. Opt-in, because it loses on local links: with every byte mapped it cost .32 to .34 s of CPU per GiB
 * on the whole machine, where send and recv cost .27. Measure on yours. */
struct sluice_receiver;

struct sluice_receiver_options {
    size_t size;     /* sizeof (struct sluice_receiver_options) */
    size_t piece;    /* bytes that one piece may have, rounded up to pages; 0: 256 KiB; at most 64 MiB */
    unsigned pieces; /* that may be out at a time; 0: 4; at most 64 */
};

struct sluice_piece {
    const char *data; /* not to be written to */
    size_t length;
    bool mapped;   /* the kernel's pages; false: a copy */
    unsigned slot; /* the receiver's */
};

/* A receiver for a TCP end, which is borrowed, and read by nobody else meanwhile. NULL options: defaults. If the kernel
 * will not map its pages, everything is copied, and the receipt has a fallback that says why.
 * Returns 0, -ENOTSOCK (no TCP connection), -EINVAL, -ENOMEM. */
SLUICE_API int sluice_receiver_new(struct sluice_end *end, const struct sluice_receiver_options *options,
                                   struct sluice_receiver **ret_receiver);

/* The next piece of the stream, valid until it is released or the receiver freed, also after the connection's end.
 * Never blocks. Returns 1; 0 at the end of the stream; -EAGAIN: wait until the descriptor is readable; -ENOBUFS: all
 * pieces are out, release one; or what recv(2) returns, such as -ECONNRESET. -ENOMEM passes. */
SLUICE_API int sluice_receiver_next(struct sluice_receiver *receiver, struct sluice_piece *ret_piece);

/* Give a piece back, in any order. Its memory may not be read any more. */
SLUICE_API void sluice_receiver_release(struct sluice_receiver *receiver, const struct sluice_piece *piece);

/* What was mapped (by_reference, of route tcp_receive, measured) and what copied (route copy), as of now. */
SLUICE_API const struct sluice_receipt *sluice_receiver_receipt(const struct sluice_receiver *receiver);

/* Free it, with all pieces. The end stays open. */
SLUICE_API void sluice_receiver_free(struct sluice_receiver *receiver);

/* ---- The loop (experimental until 1.0) ---------------------------------------------------------------------- */

/* A callback may do anything to any object of its loop: pause, resume, restart, free, forget and close what it was
 * called for included; a freed object is not called again, even for events of the same turn. No function below calls a
 * callback of another object before it returns, sluice_loop_transfer_cancel (done) excepted. */
struct sluice_loop;

/* What carries it. The numbers are part of the ABI: append only. */
enum sluice_loop_kind {
    SLUICE_LOOP_AUTO = 0, /* io_uring where that is known to be cheaper (Linux 6.17) and can be had, else epoll:
                             sluice-serve(1) says how the two compare */
    SLUICE_LOOP_EPOLL,
    SLUICE_LOOP_IO_URING, /* Linux 6.1 */
    SLUICE_LOOP_KIND_COUNT
};

enum sluice_loop_flags {
    SLUICE_LOOP_SQPOLL = 1 << 0, /* io_uring: a thread of the kernel takes submissions without a system call. It keeps
                                    a processor busy while there is work and for 50 ms after */
};

struct sluice_loop_options {
    size_t size;
    unsigned helpers; /* threads for what blocks: cold file pages, offloaded work. 0: the default, 2 */
    int helper_nice;  /* added to the helpers' nice value, 0 to 19, so that they give way to the loop */
    enum sluice_loop_kind kind;
    unsigned flags;
};

/* "auto", "epoll", "io_uring"; "?" for a number that is none. Static. Any thread. */
SLUICE_API const char *sluice_loop_kind_name(enum sluice_loop_kind kind);

/* The kind called name, or -EINVAL. Any thread. */
SLUICE_API int sluice_loop_kind_by_name(const char *name);

/* Could sluice_loop_new make such a loop here and now? With SLUICE_LOOP_AUTO: would it be an io_uring? One is made for
 * it and closed again. Any thread. Returns 0, or a negative errno, and in *ret_error (NULL: not wanted) why, and what
 * to do: for io_uring -ENOSYS the kernel or a sandbox hides it; -EPERM forbidden by kernel.io_uring_disabled or a
 * container; -EINVAL older than Linux 6.1; -ENOMEM the limit on locked memory; -EOPNOTSUPP it can be had, but auto does
 * not choose it on this kernel. -EINVAL also for wrong options. */
SLUICE_API int sluice_loop_probe(const struct sluice_loop_options *options, struct sluice_error *ret_error);

/* A loop for the calling thread, which alone may run it. NULL options: defaults. No thread is made before the first
 * sluice_loop_run, so that a process may be confined between the two.
 * Returns 0, -ENOMEM, -EMFILE, -ENFILE, and the errors of sluice_loop_probe. */
SLUICE_API int sluice_loop_new(const struct sluice_loop_options *options, struct sluice_loop **ret_loop);

/* What carries it: never SLUICE_LOOP_AUTO. */
SLUICE_API enum sluice_loop_kind sluice_loop_kind_of(const struct sluice_loop *loop);

/* No transfer, receiver, listener, connect, timer or watch may be left. Waits for helpers to end their work. */
SLUICE_API void sluice_loop_free(struct sluice_loop *loop);

/* Run until sluice_loop_stop, or until a signal handler asked for it. Returns 0 or a negative errno: -EAGAIN no thread
 * for the helpers. */
SLUICE_API int sluice_loop_run(struct sluice_loop *loop);

/* Make sluice_loop_run return after what is ready has been handled. The loop's thread, or a signal handler in it. */
SLUICE_API void sluice_loop_stop(struct sluice_loop *loop);

/* Milliseconds of CLOCK_MONOTONIC, read once per turn of the loop. */
SLUICE_API uint64_t sluice_loop_now(const struct sluice_loop *loop);

/* Counts the loop's turns: what was true at the same turn is true now, as far as this thread can tell. */
SLUICE_API uint64_t sluice_loop_turn(const struct sluice_loop *loop);

/* The transfer ended: result 0 or a negative errno as from sluice_transfer_run. Its ends are no longer used, its memory
 * segments are released but for what is lent (receipt.loans; settled tells the rest). The transfer, its receipts and
 * its error are valid during the call; it is freed on return. */
typedef void sluice_transfer_done_fn(void *context, struct sluice_transfer *transfer, int result);

/* Start a transfer on the loop; its ends stay registered with the loop until they are closed. As much as can be is
 * moved before this returns.
 * Returns 1 when it is already done: then done was NOT called; *ret_receipt (if given) points to the receipt of the
 * first sink, which is the loop's: valid until the next call with this loop, or return to it. Returns 0 when it goes
 * on: done will be called, exactly once, also after sluice_loop_transfer_cancel, and *ret_transfer (if given) is valid
 * until then. Returns a negative errno when it failed: done was NOT called, *ret_receipt and *ret_error (if given) are
 * set, and memory segments were released. */
SLUICE_API int sluice_loop_transfer(struct sluice_loop *loop, const struct sluice_transfer_options *options,
                                    sluice_transfer_done_fn *done, void *context, struct sluice_transfer **ret_transfer,
                                    const struct sluice_receipt **ret_receipt, struct sluice_error *ret_error);

/* As sluice_plan_make, of one segment and one sink of a transfer with these options, if this loop (NULL: none) is to
 * carry it: some routes are for several sinks, or for a loop on io_uring. A forced route is not regarded. Returns 0 or
 * -EINVAL (no such segment or sink; a segment without its end). */
SLUICE_API int sluice_loop_plan(const struct sluice_loop *loop, const struct sluice_transfer_options *options,
                                size_t segment, size_t sink, struct sluice_plan *ret_plan);

/* End it now: done runs with -ECANCELED before this returns. */
SLUICE_API void sluice_loop_transfer_cancel(struct sluice_loop *loop, struct sluice_transfer *transfer);

/* Bytes arrived at a socket or pipe. data is the loop's and valid until return. length > 0: that many bytes; 0: the
 * peer closed its sending side; < 0: a negative errno. After 0 or an error it is not called again. */
typedef void sluice_receive_fn(void *context, const char *data, ssize_t length);

/* Call back for whatever arrives at end, at most max bytes a call (0: 16 KiB, which is also the most), until paused.
 * Holds no memory while idle. Called again for an end it replaces the callback and resumes. While the receiver is
 * paused the end may be the source of a transfer, which begins with the first byte that the receiver has not seen; it
 * must not be resumed before that is done. It is told of the stream's end also after a transfer has found it. Returns
 * 0, -EPERM (not pollable), -ENOMEM, -ENOSPC. */
SLUICE_API int sluice_loop_receive(struct sluice_loop *loop, struct sluice_end *end, size_t max,
                                   sluice_receive_fn *receive, void *context);

/* Stop and continue calling back; cheap, no system call. What arrives meanwhile stays in the kernel. A paused
 * receiver still learns of a reset connection: it gets its error as soon as that happens. But of an error that a
 * transfer meets it is not told: one that waits to read from the end fails with it at once. One that waits for its sink
 * fails with the same error as the receiver was told, when it has delivered what it had taken. */
SLUICE_API void sluice_loop_receive_pause(struct sluice_loop *loop, struct sluice_end *end);
SLUICE_API void sluice_loop_receive_resume(struct sluice_loop *loop, struct sluice_end *end);

/* Forget an end: call before sluice_end_close for every end given to the loop; no harm for one it does not know. No
 * transfer may be using it. Memory lent to it is still collected by this loop, and until it is back the end cannot go
 * to another one (-EBUSY). */
SLUICE_API void sluice_loop_forget(struct sluice_loop *loop, struct sluice_end *end);

/* A connection came in: fd is non-blocking, close-on-exec and the callee's. fd < 0: accepting failed with this negative
 * errno (-EMFILE, -ENFILE: one waiting connection was accepted and closed at once by means of a reserve descriptor, so
 * that the queue does not stand still). address: struct sockaddr, valid until return; of family AF_UNSPEC when the
 * connection was gone before the kernel was asked (io_uring). */
struct sockaddr;
typedef void sluice_accept_fn(void *context, int fd, const struct sockaddr *address, unsigned address_length);

struct sluice_listener;

/* Accept connections from a listening, non-blocking socket, which stays the caller's. Returns 0, -ENOMEM, -EPERM. */
SLUICE_API int sluice_loop_listen(struct sluice_loop *loop, int fd, sluice_accept_fn *accept, void *context,
                                  struct sluice_listener **ret_listener);
/* May connections be accepted before accept is called for them? That saves a system call each (io_uring's multishot
 * accept; epoll has none). But a loop that is busy keeps them from others that accept from the same socket and are
 * free, and when it is paused those stay with it until it is resumed. So it is off at first: for a listener that is far
 * from being paused. May be called from accept. */
SLUICE_API void sluice_listener_ahead(struct sluice_listener *listener, bool allow);
/* Nobody else is kept waiting by it: who has not been accepted is left to other loops, which know of it. */
SLUICE_API void sluice_listener_pause(struct sluice_listener *listener);
SLUICE_API void sluice_listener_resume(struct sluice_listener *listener);
/* The socket stays open. accept is called from within for connections that were accepted ahead (io_uring) and not shown
 * yet, and, unless the listener was paused, for those who wait at that moment: other loops that accept from the same
 * socket may not have been woken for them. */
SLUICE_API void sluice_listener_free(struct sluice_listener *listener);

/* The connection is made (0), or cannot be: a negative errno of connect(2), such as -ECONNREFUSED or -ETIMEDOUT. */
typedef void sluice_connect_fn(void *context, int result);

struct sluice_connect;

/* Connect a non-blocking socket (TCP, Unix stream), which stays the caller's. A peer on this machine has often answered
 * before this returns. Nothing ends the wait for one that is silent but the kernel's own patience (two minutes): start
 * a timer, and cancel.
 * Returns 1: it is connected, and connected was NOT called; 0: under way: connected will be called once, from the loop,
 * and *ret_connect is valid until then; or a negative errno when it failed (connected was NOT called): what connect(2)
 * says, such as -ECONNREFUSED, -ENETUNREACH, or -EAGAIN (the queue of a Unix listener is full); -ENOMEM; -ENOSPC too
 * many descriptors are watched (epoll_ctl(2)). After an error, close the socket. Once connected was called, or this
 * returned 1, the socket may be made an end and given to the loop. */
SLUICE_API int sluice_loop_connect(struct sluice_loop *loop, int fd, const struct sockaddr *address,
                                   unsigned address_length, sluice_connect_fn *connected, void *context,
                                   struct sluice_connect **ret_connect);

/* Give up: connected will not be called. The caller closes the socket, after this. NULL: nothing. */
SLUICE_API void sluice_connect_cancel(struct sluice_connect *connect);

/* A timer. The struct is the caller's, zeroed before its first use; the members are the loop's. */
struct sluice_timer {
    uint64_t deadline, queued;
    struct sluice_timer *next, **previous;
    void (*expired)(void *context);
    void *context;
};

/* Call expired once, after at least this many milliseconds (granularity 1/8 s). Starting a running timer moves it:
 * O(1), and pushing a deadline back costs a few instructions, so it can be done for every request. */
SLUICE_API void sluice_timer_start(struct sluice_loop *loop, struct sluice_timer *timer, unsigned milliseconds,
                                   void (*expired)(void *context), void *context);
SLUICE_API void sluice_timer_stop(struct sluice_loop *loop, struct sluice_timer *timer);

/* Run work on a helper thread, then done on the loop's thread. A worker that is busy delays it; nothing is lost.
 * Returns 0 or -ENOMEM. */
SLUICE_API int sluice_loop_offload(struct sluice_loop *loop, void (*work)(void *context), void (*done)(void *context),
                                   void *context);

/* Call ready whenever fd becomes readable (edge-triggered). For signalfd, inotify, eventfd. Returns 0 or -errno. */
struct sluice_watch;
SLUICE_API int sluice_loop_watch(struct sluice_loop *loop, int fd, void (*ready)(void *context), void *context,
                                 struct sluice_watch **ret_watch);
SLUICE_API void sluice_watch_free(struct sluice_watch *watch);

/* Call run at the end of every turn, before the loop sleeps: for flushing logs and the like. One; NULL clears it. */
SLUICE_API void sluice_loop_each_turn(struct sluice_loop *loop, void (*run)(void *context), void *context);

/* ---- Gathering ---------------------------------------------------------------------------------------------- */

/* Small messages to one sink in few system calls: they are collected, and leave together when so many bytes or messages
 * have come, or when asked. Into a stream they become one; a datagram socket gets each as one datagram, several of them
 * by one sendmmsg(2). Of the loop's thread, if there is one. */
struct sluice_gather;

#define SLUICE_GATHER_MESSAGES_MAX 1024

struct sluice_gather_options {
    size_t size;
    struct sluice_end *sink;  /* borrowed; nobody else may send to it meanwhile. At a file: where its position is */
    struct sluice_loop *loop; /* what was flushed leaves by itself; NULL: when flushing is called */
    size_t bytes;             /* flush at so many, and the most that is copied at once; 0: 64 KiB */
    unsigned messages;        /* flush at so many; 0: 64 */
    size_t copy_below;        /* messages of up to so many bytes are copied rather than referred to; 0: 1024 */
    void (*flushed)(void *context, int result); /* with a loop: everything has left (0), or it failed; may be NULL */
    void *context;
};

/* Returns 0, -EINVAL or -ENOMEM. */
SLUICE_API int sluice_gather_new(const struct sluice_gather_options *options, struct sluice_gather **ret_gather);

/* One message more. Without release it is copied, whatever its size; with, it is copied and released at once if it is
 * small, else the memory is lent until release is called: when it was sent, or cannot be. May flush.
 * Returns 0: taken. Or, not taken: -EAGAIN too much is waiting for the sink: flush, and try again when it can be
 * written (with a loop: after flushed); -EMSGSIZE more than options.bytes, and no release; or what an earlier message
 * met (see sluice_gather_error). */
SLUICE_API int sluice_gather_add(struct sluice_gather *gather, const void *data, size_t length,
                                 sluice_release_fn *release, void *release_context);

/* Send what was collected. Returns SLUICE_STEP_DONE: all has left; SLUICE_STEP_WAIT: the rest when *ret_waits says, by
 * another call, or by the loop alone (ret_waits->count is 0 then); or a negative errno as from sluice_transfer_step.
 * ret_waits NULL, without a loop: waits itself until all has left. After an error a stream takes no more; of datagrams
 * those of the same batch behind the one that failed are lost, and the next ones may be sent. */
SLUICE_API int sluice_gather_flush(struct sluice_gather *gather, struct sluice_waits *ret_waits);

/* Bytes that were taken and not yet accepted by the sink. */
SLUICE_API size_t sluice_gather_pending(const struct sluice_gather *gather);

/* The sum over all transfers so far. What was copied into the collection counts once more in copy_bytes. */
SLUICE_API void sluice_gather_receipt(const struct sluice_gather *gather, struct sluice_receipt *ret_receipt);

/* The last error; code 0 if there was none. */
SLUICE_API const struct sluice_error *sluice_gather_error(const struct sluice_gather *gather);

/* Free it, and release what was not sent: flush first. flushed is not called. */
SLUICE_API void sluice_gather_free(struct sluice_gather *gather);

#ifdef __cplusplus
}
#endif
#endif
