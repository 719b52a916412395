/* SPDX-License-Identifier: MIT
 *
 * An op is one neutral step that a route asks for; a loop carries it out. Linked ops in an array each assume that the
 * one before moved all it was asked to: after a short or failed op the rest of the array is dropped.
 */
#ifndef SLUICE_CORE_OP_H
#define SLUICE_CORE_OP_H

#include <sluice/sluice.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

enum op_kind {
    OP_READ,         /* source -> buffer; at in_offset of a file, or what a stream delivers */
    OP_WRITE,        /* iov -> sink */
    OP_DATAGRAMS,    /* iov -> datagram socket, each piece a datagram of its own */
    OP_SENDFILE,     /* file -> sink */
    OP_FILL,         /* source -> pipe, by splice */
    OP_GIVE,         /* iov -> pipe, by vmsplice */
    OP_DRAIN,        /* pipe -> sink, by splice */
    OP_PASS,         /* splice between two ends of which one is a pipe itself */
    OP_TEE,          /* pipe -> pipe; the bytes stay in the first, too */
    OP_TAKE,         /* pipe -> pipe, by splice */
    OP_COPY_RANGE,   /* file -> file, by copy_file_range */
    OP_CLONE,        /* file -> file: share these extents; all of them or none. Length 0: up to the source's end */
    OP_HOLE,         /* this range of a file becomes a hole, and the file as long as that if it was shorter */
    OP_MAP_RECEIVED, /* what arrived at a TCP socket -> memory of the caller, by mapping; buffer: struct received */
    OP_CORK,         /* hold back (length 1) or let go (length 0) partial segments */
};

/* The end that an EAGAIN of the op is about. */
enum op_blocker {
    OP_BLOCKS_ON_SOURCE,
    OP_BLOCKS_ON_SINK,
    OP_BLOCKS_ON_EITHER,
    OP_BLOCKS_ON_NEITHER, /* files and pipes of ours: there is nothing to wait for */
};

#define OP_NO_OFFSET (-1)
#define OP_IOV_MAX 16
#define OPS_MAX 4 /* cork, head, body, uncork */

struct op {
    enum op_kind kind;
    int in, out; /* descriptors */
    off_t in_offset, out_offset;
    size_t length;     /* asked for */
    void *buffer;      /* read */
    struct iovec *iov; /* write; it and what it points to live until the op is complete */
    int iov_count;
    int flags;         /* MSG_* or SPLICE_F_* */
    uint16_t datagram; /* write: cut into datagrams of this size; 0: all bytes are one */
    struct sluice_end *sink;
};

/* The first members of the kernel's struct tcp_zerocopy_receive, which is told its size. */
struct received {
    uint64_t address; /* where in a mapping of the socket */
    uint32_t length;  /* how much may be mapped, and was */
    uint32_t to_copy; /* recv_skip_hint: what must be read before the next byte that may be mapped */
};

enum op_blocker op_blocker(const struct op *op);

/* The side of the transfer that an op's failure is about. */
enum sluice_side op_side(const struct op *op);

/* The name of the system call that carries the op out, for error messages. Static. */
const char *op_name(const struct op *op);

/* Carry an op out on this thread. Returns what the call returns, or a negative errno. EINTR is retried.
 * *calls grows by the system calls made. */
ssize_t op_execute(const struct op *op, uint64_t *calls);

#endif
