/* SPDX-License-Identifier: MIT
 *
 * Sources: the kernel's code and the experiments noted in docs/design/. "By definition" is what the mechanism cannot do
 * otherwise; where it depends on something that this machine was asked for (the file system, the device that packets
 * leave by), it is "probed"; all else is unknown, never a guess.
 *
 * Reads from and writes to the kernel's own files (proc, sysfs, eventfd) are one copy: what they say is made in the
 * kernel's memory and copied out. What a character device does is its driver's business: unknown, but for the simplest.
 */
#include "mechanism.h"
#include <linux/magic.h>
#include <string.h>

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif
#ifndef BTRFS_SUPER_MAGIC
#define BTRFS_SUPER_MAGIC 0x9123683e
#endif
#ifndef F2FS_SUPER_MAGIC
#define F2FS_SUPER_MAGIC 0xf2f52010
#endif

#define LOOPBACK_INDEX 1 /* in every network namespace */

static const struct {
    const char *name, *calls;
} mechanisms[TRACE_MECHANISM_COUNT] = {
    [TRACE_NONE] = {"nothing", ""},
    [TRACE_READ] = {"read", "read, readv, pread64, preadv, preadv2; IORING_OP_READ, READV, READ_FIXED; vmsplice out of "
                            "a pipe"},
    [TRACE_WRITE] = {"write", "write, writev, pwrite64, pwritev, pwritev2; IORING_OP_WRITE, WRITEV, WRITE_FIXED"},
    [TRACE_RECV] = {"recv", "recvfrom, recvmsg, recvmmsg, read on a socket; IORING_OP_RECV, RECVMSG"},
    [TRACE_RECV_DISCARD] = {"recv, discarding", "the calls of recv with MSG_TRUNC on TCP"},
    [TRACE_RECV_ZEROCOPY] = {"TCP_ZEROCOPY_RECEIVE", "getsockopt TCP_ZEROCOPY_RECEIVE"},
    [TRACE_SEND] = {"send", "sendto, sendmsg, sendmmsg, write on a socket; IORING_OP_SEND, SENDMSG"},
    [TRACE_SEND_ZEROCOPY] = {"MSG_ZEROCOPY", "the calls of send with MSG_ZEROCOPY and SO_ZEROCOPY; IORING_OP_SEND_ZC, "
                                             "SENDMSG_ZC"},
    [TRACE_SENDFILE] = {"sendfile", "sendfile"},
    [TRACE_SPLICE] = {"splice", "splice; IORING_OP_SPLICE"},
    [TRACE_VMSPLICE] = {"vmsplice", "vmsplice into a pipe"},
    [TRACE_TEE] = {"tee", "tee; IORING_OP_TEE"},
    [TRACE_COPY_FILE_RANGE] = {"copy_file_range", "copy_file_range"},
    [TRACE_CLONE] = {"reflink", "ioctl FICLONE, FICLONERANGE"},
    [TRACE_PROCESS_COPY] = {"process_vm", "process_vm_readv, process_vm_writev"},
    [TRACE_MAP_FAULT] = {"page fault", "none: a page of a mapped file was touched"},
    [TRACE_COPY_ON_WRITE] = {"copy on write", "none: a private page was written to"},
};

/* The names that the functions have in kernels where they can be hooked; some were renamed since. */
static const char *const functions[TRACE_FUNCTION_COUNT] = {
    [TRACE_FN_FILEMAP_READ] = "filemap_read",
    [TRACE_FN_SHMEM_FILE_READ] = "shmem_file_read_iter",
    [TRACE_FN_GENERIC_PERFORM_WRITE] = "generic_perform_write",
    [TRACE_FN_IOMAP_WRITE] = "iomap_file_buffered_write",
    [TRACE_FN_BTRFS_WRITE] = "btrfs_buffered_write",
    [TRACE_FN_PIPE_READ] = "pipe_read",
    [TRACE_FN_PIPE_WRITE] = "pipe_write",
    [TRACE_FN_TCP_SENDMSG] = "tcp_sendmsg_locked",
    [TRACE_FN_UNIX_SENDMSG] = "skb_copy_datagram_from_iter",
    [TRACE_FN_UDP_SENDMSG] = "ip_generic_getfrag",
    [TRACE_FN_DATAGRAM_READ] = "skb_copy_datagram_iter",
    [TRACE_FN_SKB_COPY_UBUFS] = "skb_copy_ubufs",
    [TRACE_FN_SKB_COPY_AND_CSUM] = "skb_copy_and_csum_bits",
    [TRACE_FN_SKB_COPY_BITS] = "skb_copy_bits",
    [TRACE_FN_COPY_ON_WRITE] = "wp_page_copy",
    [TRACE_FN_PIPE_TO_USER] = "pipe_to_user",
    [TRACE_FN_TLS_SENDMSG] = "sk_msg_memcopy_from_iter",
};

static const char *const end_kinds[TRACE_END_KIND_COUNT] = {
    [TRACE_END_NONE] = "unknown",
    [TRACE_END_MEMORY] = "memory",
    [TRACE_END_FILE] = "file",
    [TRACE_END_FILE_DIRECT] = "file (O_DIRECT)",
    [TRACE_END_PIPE] = "pipe",
    [TRACE_END_TCP] = "tcp",
    [TRACE_END_UDP] = "udp",
    [TRACE_END_UNIX] = "unix",
    [TRACE_END_SOCKET] = "socket",
    [TRACE_END_BLOCK] = "block device",
    [TRACE_END_CHAR] = "character device",
    [TRACE_END_KERNEL] = "kernel",
};

const char *mechanism_name(enum trace_mechanism mechanism)
{
    return (unsigned)mechanism < TRACE_MECHANISM_COUNT ? mechanisms[mechanism].name : "?";
}

const char *mechanism_calls(enum trace_mechanism mechanism)
{
    return (unsigned)mechanism < TRACE_MECHANISM_COUNT ? mechanisms[mechanism].calls : "";
}

const char *mechanism_function_name(enum trace_function function)
{
    return (unsigned)function < TRACE_FUNCTION_COUNT && functions[function] != NULL ? functions[function] : "?";
}

const char *mechanism_end_kind_name(enum trace_end_kind kind)
{
    return (unsigned)kind < TRACE_END_KIND_COUNT ? end_kinds[kind] : end_kinds[TRACE_END_NONE];
}

enum mechanism_egress mechanism_egress(const struct account_end *sink)
{
    if (sink == NULL || sink->value.egress_known == 0)
        return MECHANISM_EGRESS_UNKNOWN;
    if (sink->value.egress == LOOPBACK_INDEX)
        return MECHANISM_EGRESS_LOOPBACK;
    uint64_t checksum =
        TRACE_EGRESS_CHECKSUM_ALL |
        (sink->key.family == 10 /* AF_INET6 */ ? TRACE_EGRESS_CHECKSUM_IPV6 : TRACE_EGRESS_CHECKSUM_IPV4);
    if ((sink->value.egress_features & TRACE_EGRESS_SCATTER_GATHER) == 0)
        return MECHANISM_EGRESS_NO_SCATTER_GATHER;
    if ((sink->value.egress_features & checksum) == 0)
        return MECHANISM_EGRESS_NO_CHECKSUM;
    return MECHANISM_EGRESS_CAPABLE;
}

/* ---- Costs ------------------------------------------------------------------------------------------------------ */

static enum trace_end_kind kind_of(const struct account_end *end)
{
    return end == NULL ? TRACE_END_MEMORY : (enum trace_end_kind)end->key.kind;
}

static struct mechanism_cost by_definition(unsigned copies, const char *copier, const char *reason)
{
    return (struct mechanism_cost){ACCOUNT_BY_DEFINITION, copies, copier, reason};
}

static struct mechanism_cost probed(unsigned copies, const char *copier, const char *reason)
{
    return (struct mechanism_cost){ACCOUNT_PROBED, copies, copier, reason};
}

static struct mechanism_cost unknown(const char *reason)
{
    return (struct mechanism_cost){ACCOUNT_UNKNOWN, 0, NULL, reason};
}

/* File systems that splice from and copy through the page cache: the list of lib/core/end.c. */
static bool has_page_cache(const struct account_end *end)
{
    if (end->key.kind == TRACE_END_BLOCK)
        return true;
    switch (end->value.file_system) {
    case EXT4_SUPER_MAGIC: /* ext2 and ext3 share it */
    case XFS_SUPER_MAGIC:
    case BTRFS_SUPER_MAGIC:
    case TMPFS_MAGIC:
    case F2FS_SUPER_MAGIC:
    case SQUASHFS_MAGIC:
    case ISOFS_SUPER_MAGIC:
    case MSDOS_SUPER_MAGIC:
        return true;
    }
    return false;
}

static struct mechanism_cost cost_of_direct(const struct account_end *end)
{
    switch (end->value.file_system) {
    case EXT4_SUPER_MAGIC:
    case XFS_SUPER_MAGIC:
    case F2FS_SUPER_MAGIC:
        return by_definition(0, NULL,
                             "O_DIRECT: the device moves the bytes itself. Drivers that copy (loop, RAM disks) are not "
                             "seen");
    case TMPFS_MAGIC: /* also the file system of block devices' own names */
        return unknown("O_DIRECT: a block device moves the bytes itself, a file of tmpfs is copied");
    }
    return unknown("O_DIRECT on a file system that may copy through the page cache after all (checksums, compression)");
}

/* Documentation/admin-guide/devices.txt: /dev/null and /dev/zero */
#define CHARACTER_NULL (1u << 20 | 3)
#define CHARACTER_ZERO (1u << 20 | 5)

static struct mechanism_cost cost_of_character(const struct account_end *end, bool written)
{
    if (written && (end->value.character == CHARACTER_NULL || end->value.character == CHARACTER_ZERO))
        return by_definition(0, NULL, "this device throws the bytes away without a look at them");
    if (!written && end->value.character == CHARACTER_ZERO)
        return by_definition(0, NULL, "memory is cleared, nothing is copied");
    return unknown("what a character device does with the bytes is its driver's business");
}

static const char *reader_of(const struct account_end *end)
{
    return end->value.file_system == TMPFS_MAGIC ? "shmem_file_read_iter" : "filemap_read";
}

static const char *writer_of(const struct account_end *end)
{
    return end->value.file_system == XFS_SUPER_MAGIC     ? "iomap_file_buffered_write"
           : end->value.file_system == BTRFS_SUPER_MAGIC ? "btrfs_buffered_write"
                                                         : "generic_perform_write";
}

static struct mechanism_cost cost_of_read(const struct account_end *source)
{
    switch (kind_of(source)) {
    case TRACE_END_FILE:
    case TRACE_END_BLOCK:
        return by_definition(1, reader_of(source), "from the page cache into the caller's memory");
    case TRACE_END_FILE_DIRECT:
        return cost_of_direct(source);
    case TRACE_END_PIPE:
        return by_definition(1, "pipe_read", "from the pipe's pages into the caller's memory");
    case TRACE_END_KERNEL:
        return by_definition(1, NULL, "made in the kernel's memory and copied out");
    case TRACE_END_CHAR:
        return cost_of_character(source, false);
    default:
        return unknown("it is not known what was read");
    }
}

static struct mechanism_cost cost_of_write(const struct account_end *sink)
{
    switch (kind_of(sink)) {
    case TRACE_END_FILE:
    case TRACE_END_BLOCK:
        return by_definition(1, writer_of(sink), "from the caller's memory into the page cache");
    case TRACE_END_FILE_DIRECT:
        return cost_of_direct(sink);
    case TRACE_END_PIPE:
        return by_definition(1, "pipe_write", "from the caller's memory into the pipe's pages");
    case TRACE_END_KERNEL:
        return by_definition(1, NULL, "copied into the kernel's memory, and read there");
    case TRACE_END_CHAR:
        return cost_of_character(sink, true);
    default:
        return unknown("it is not known what was written to");
    }
}

static bool has_tls(const struct account_end *end, unsigned what)
{
    return end != NULL && end->key.kind == TRACE_END_TCP && (end->key.tls & what) != 0;
}

/* Pages that nobody copies on the way to the device: does the device take them? */
static struct mechanism_cost cost_of_egress(const struct account_end *sink)
{
    switch (mechanism_egress(sink)) {
    case MECHANISM_EGRESS_LOOPBACK:
    case MECHANISM_EGRESS_CAPABLE:
        return probed(0, NULL, "by reference: the device gathers scattered pages and computes checksums");
    case MECHANISM_EGRESS_NO_SCATTER_GATHER:
        return probed(1, "skb_copy_and_csum_bits",
                      "the device has no scatter-gather: the kernel copies every packet together");
    case MECHANISM_EGRESS_NO_CHECKSUM:
        return probed(1, "skb_copy_and_csum_bits",
                      "the device computes no checksums: the kernel touches every byte, and copies it");
    case MECHANISM_EGRESS_UNKNOWN:
        break;
    }
    return unknown("the device that the packets leave by is not known");
}

static struct mechanism_cost cost_of_send(const struct account_end *sink)
{
    if (has_tls(sink, TRACE_TLS_SEND))
        return unknown(
            "TLS in the kernel encrypts straight from the caller's memory, or copies it into a record first");
    switch (kind_of(sink)) {
    case TRACE_END_TCP:
        /* The socket's buffers are pages, which a device without scatter-gather does not take either. */
        if (cost_of_egress(sink).copies > 0)
            return probed(2, "tcp_sendmsg_locked",
                          "from the caller's memory into the socket's buffers; and again, as the device needs every "
                          "packet in one piece");
        return by_definition(1, "tcp_sendmsg_locked", "from the caller's memory into the socket's buffers");
    case TRACE_END_UDP:
        return by_definition(1, "ip_generic_getfrag", "from the caller's memory into the packet");
    case TRACE_END_UNIX:
        return by_definition(1, "skb_copy_datagram_from_iter", "from the caller's memory into the socket's buffers");
    default:
        return unknown("sockets of this family are not known here");
    }
}

static struct mechanism_cost cost_of_lending(const struct account_end *sink)
{
    if (mechanism_egress(sink) == MECHANISM_EGRESS_LOOPBACK)
        return by_definition(1, "skb_copy_ubufs",
                             "the peer is on this machine: lent pages are copied on delivery (msg_zerocopy.rst)");
    return cost_of_egress(sink);
}

static bool is_file(enum trace_end_kind kind)
{
    return kind == TRACE_END_FILE || kind == TRACE_END_FILE_DIRECT || kind == TRACE_END_BLOCK;
}

static struct mechanism_cost cost_of_reference(const struct account_end *source, const struct account_end *sink)
{
    enum trace_end_kind from = kind_of(source), to = kind_of(sink);
    if (to == TRACE_END_FILE || to == TRACE_END_BLOCK)
        return by_definition(1, writer_of(sink),
                             "into the page cache: pages have not been moved there since Linux 2.6.21 (splice(2))");
    if (is_file(from) && (from == TRACE_END_FILE_DIRECT || !has_page_cache(source)))
        return unknown("the source may be read into fresh pages instead of lending its own (copy_splice_read)");
    if (from == TRACE_END_NONE || from == TRACE_END_CHAR || from == TRACE_END_KERNEL)
        return unknown("the source has no pages that could be referred to, or is not known");
    if (from == TRACE_END_UNIX)
        return unknown(
            "the first kilobytes of each message lie in a buffer's head, which splice copies (linear_to_page)");
    switch (to) {
    case TRACE_END_PIPE:
        return by_definition(0, NULL, "the pipe holds references to the source's pages");
    case TRACE_END_TCP:
        if (has_tls(sink, TRACE_TLS_SEND_DEVICE))
            return unknown("TLS by the device: the kernel may copy first, so that what is sent again is the same");
        return cost_of_egress(sink); /* of what TLS in the kernel encrypted into pages of its own, too */
    case TRACE_END_CHAR:
        return cost_of_character(sink, true);
    case TRACE_END_UNIX:
        return unknown("Unix sockets take pages by reference or copy them, depending on the kernel");
    default:
        return unknown("it depends on the sink's protocol or driver");
    }
}

static struct mechanism_cost cost_of_copy_file_range(const struct account_end *source, const struct account_end *sink)
{
    if (source == NULL || sink == NULL)
        return unknown("it is not known between which files");
    if (source->value.file_system == sink->value.file_system)
        switch (sink->value.file_system) {
        case EXT4_SUPER_MAGIC:
        case TMPFS_MAGIC:
            return by_definition(1, "generic_perform_write",
                                 "this file system shares no extents: the kernel splices from one file to the other");
        }
    return unknown("the file system may share extents, let its server copy, or copy (FIEMAP tells afterwards)");
}

struct mechanism_cost mechanism_cost(enum trace_mechanism mechanism, const struct account_end *source,
                                     const struct account_end *sink)
{
    switch (mechanism) {
    case TRACE_READ:
        return cost_of_read(source);
    case TRACE_WRITE:
        return cost_of_write(sink);
    case TRACE_RECV:
        if (has_tls(source, TRACE_TLS_RECEIVE))
            return by_definition(0, NULL,
                                 "TLS in the kernel decrypts straight into the caller's memory, or into buffers "
                                 "of its own, copies out of which are counted");
        return kind_of(source) == TRACE_END_TCP || kind_of(source) == TRACE_END_UNIX
                   ? by_definition(1, "skb_copy_datagram_iter", "from the socket's buffers into the caller's memory")
                   : unknown("copied, unless it was counted: with its checksum, or by a protocol not known here");
    case TRACE_RECV_DISCARD:
        return by_definition(0, NULL, "MSG_TRUNC on TCP: the bytes are thrown away");
    case TRACE_RECV_ZEROCOPY:
        return (struct mechanism_cost){ACCOUNT_MEASURED, 0, NULL, "the kernel says how many bytes it mapped"};
    case TRACE_SEND:
        return cost_of_send(sink);
    case TRACE_SEND_ZEROCOPY:
        return cost_of_lending(sink);
    case TRACE_SENDFILE:
    case TRACE_SPLICE:
        return cost_of_reference(source, sink);
    case TRACE_VMSPLICE:
        return by_definition(0, NULL, "the pipe holds references to the caller's pages");
    case TRACE_TEE:
        return by_definition(0, NULL, "a second pipe refers to the same pages");
    case TRACE_COPY_FILE_RANGE:
        return cost_of_copy_file_range(source, sink);
    case TRACE_CLONE:
        return by_definition(0, NULL, "both files share the extents");
    case TRACE_PROCESS_COPY:
        return by_definition(1, "process_vm_rw", "from one process's memory into another's");
    case TRACE_MAP_FAULT:
        return by_definition(0, NULL, "the page of the page cache is mapped");
    case TRACE_COPY_ON_WRITE:
        return by_definition(1, "wp_page_copy", "a private page is copied before it is written to");
    case TRACE_NONE:
    case TRACE_MECHANISM_COUNT:
        break;
    }
    return unknown("a mechanism that is not known here");
}

/* ---- Who would see it ------------------------------------------------------------------------------------------- */

static uint32_t bit(enum trace_function function)
{
    return 1u << function;
}
_Static_assert(TRACE_FUNCTION_COUNT <= 32, "functions are bits of a uint32_t");

static uint32_t watchers_of_read(const struct account_end *source)
{
    if (!is_file(kind_of(source)) || !has_page_cache(source))
        return 0;
    return bit(source->key.kind == TRACE_END_FILE && source->value.file_system == TMPFS_MAGIC ? TRACE_FN_SHMEM_FILE_READ
                                                                                              : TRACE_FN_FILEMAP_READ);
}

static uint32_t watchers_of_write(const struct account_end *sink)
{
    if (!is_file(kind_of(sink)) || !has_page_cache(sink))
        return 0;
    if (sink->key.kind == TRACE_END_BLOCK) /* the second since Linux 6.6 */
        return bit(TRACE_FN_GENERIC_PERFORM_WRITE) | bit(TRACE_FN_IOMAP_WRITE);
    switch (sink->value.file_system) {
    case XFS_SUPER_MAGIC:
        return bit(TRACE_FN_IOMAP_WRITE);
    case BTRFS_SUPER_MAGIC:
        return bit(TRACE_FN_BTRFS_WRITE);
    }
    return bit(TRACE_FN_GENERIC_PERFORM_WRITE);
}

uint32_t mechanism_watchers(enum trace_mechanism mechanism, const struct account_end *source,
                            const struct account_end *sink)
{
    enum trace_end_kind from = kind_of(source), to = kind_of(sink);
    switch (mechanism) {
    case TRACE_READ:
        /* The second for vmsplice, which reads, too. */
        return from == TRACE_END_PIPE ? bit(TRACE_FN_PIPE_READ) | bit(TRACE_FN_PIPE_TO_USER) : watchers_of_read(source);
    case TRACE_WRITE:
        return to == TRACE_END_PIPE ? bit(TRACE_FN_PIPE_WRITE) : watchers_of_write(sink);
    case TRACE_SEND:
        if (has_tls(sink, TRACE_TLS_SEND | TRACE_TLS_SEND_DEVICE))
            return has_tls(sink, TRACE_TLS_SEND) ? bit(TRACE_FN_TLS_SENDMSG) : 0;
        if (to == TRACE_END_TCP && cost_of_egress(sink).copies > 0)
            return 0; /* what the peer's window keeps back is copied for the device in a softirq, later */
        return to == TRACE_END_TCP    ? bit(TRACE_FN_TCP_SENDMSG)
               : to == TRACE_END_UDP  ? bit(TRACE_FN_UDP_SENDMSG)
               : to == TRACE_END_UNIX ? bit(TRACE_FN_UNIX_SENDMSG)
                                      : 0;
    case TRACE_SENDFILE:
    case TRACE_SPLICE:
        return to == TRACE_END_FILE || to == TRACE_END_BLOCK ? watchers_of_write(sink) : 0;
    case TRACE_COPY_FILE_RANGE:
        return from == TRACE_END_FILE && to == TRACE_END_FILE && has_page_cache(source) ? watchers_of_write(sink) : 0;
    case TRACE_COPY_ON_WRITE:
        return bit(TRACE_FN_COPY_ON_WRITE);
    default:
        return 0;
    }
}
