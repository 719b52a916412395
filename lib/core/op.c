/* SPDX-License-Identifier: MIT */
#include "op.h"
#include "end.h"
#include "sys.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <string.h>

enum op_blocker op_blocker(const struct op *op)
{
    switch (op->kind) {
    case OP_READ:
    case OP_MAP_RECEIVED: /* never says EAGAIN */
    case OP_FILL:         /* the pipe is ours and was empty, so it cannot have been the full side */
        return OP_BLOCKS_ON_SOURCE;
    case OP_PASS: /* a file never blocks: then it is the other side */
        if (op->in_offset != OP_NO_OFFSET)
            return OP_BLOCKS_ON_SINK;
        return end_is_file(op->sink) ? OP_BLOCKS_ON_SOURCE : OP_BLOCKS_ON_EITHER;
    case OP_COPY_RANGE:
    case OP_CLONE:
    case OP_HOLE:
    case OP_TEE: /* from a pipe of ours that holds bytes into one of ours that is full */
    case OP_TAKE:
        return OP_BLOCKS_ON_NEITHER;
    case OP_WRITE:
    case OP_DATAGRAMS:
    case OP_SENDFILE:
    case OP_GIVE: /* a pipe of ours is empty */
    case OP_DRAIN:
    case OP_CORK:
        break;
    }
    return OP_BLOCKS_ON_SINK;
}

enum sluice_side op_side(const struct op *op)
{
    switch (op_blocker(op)) {
    case OP_BLOCKS_ON_SOURCE:
        return SLUICE_SIDE_SOURCE;
    case OP_BLOCKS_ON_SINK:
        return op->kind == OP_SENDFILE || op->kind == OP_PASS ? SLUICE_SIDE_NONE : SLUICE_SIDE_SINK;
    case OP_BLOCKS_ON_EITHER:
    case OP_BLOCKS_ON_NEITHER:
        break;
    }
    return SLUICE_SIDE_NONE;
}

const char *op_name(const struct op *op)
{
    switch (op->kind) {
    case OP_READ:
        return "read";
    case OP_WRITE:
        return "write";
    case OP_DATAGRAMS:
        return "sendmmsg";
    case OP_SENDFILE:
        return "sendfile";
    case OP_FILL:
    case OP_DRAIN:
    case OP_PASS:
    case OP_TAKE:
        return "splice";
    case OP_GIVE:
        return "vmsplice";
    case OP_TEE:
        return "tee";
    case OP_MAP_RECEIVED:
        return "getsockopt(TCP_ZEROCOPY_RECEIVE)";
    case OP_COPY_RANGE:
        return "copy_file_range";
    case OP_CLONE:
        return "ioctl(FICLONERANGE)";
    case OP_HOLE:
        return "fallocate";
    case OP_CORK:
        break;
    }
    return "setsockopt(TCP_CORK)";
}

static ssize_t execute_read(const struct op *op)
{
    if (op->in_offset != OP_NO_OFFSET)
        return sys.pread(op->in, op->buffer, op->length, op->in_offset);
    if (op->flags & MSG_DONTWAIT)
        return sys.recv(op->in, op->buffer, op->length, MSG_DONTWAIT);
    return sys.read(op->in, op->buffer, op->length);
}

static ssize_t write_to_memory(const struct op *op)
{
    struct sluice_end *sink = op->sink;
    size_t written = 0;
    for (int i = 0; i < op->iov_count; i++) {
        size_t room = sink->memory.size - sink->memory.used;
        size_t part = op->iov[i].iov_len < room ? op->iov[i].iov_len : room;
        memcpy(sink->memory.data + sink->memory.used, op->iov[i].iov_base, part);
        sink->memory.used += part;
        written += part;
    }
    if (written == 0) {
        errno = ENOSPC;
        return -1;
    }
    return (ssize_t)written;
}

/* One call, many datagrams: the kernel, or the device, cuts them (UDP_SEGMENT). */
static ssize_t send_datagrams(const struct op *op, int flags)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof op->datagram)] = {0};
    struct msghdr message = {.msg_iov = op->iov,
                             .msg_iovlen = (size_t)op->iov_count,
                             .msg_control = control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *size = CMSG_FIRSTHDR(&message);
    size->cmsg_level = SOL_UDP;
    size->cmsg_type = UDP_SEGMENT;
    size->cmsg_len = CMSG_LEN(sizeof op->datagram);
    memcpy(CMSG_DATA(size), &op->datagram, sizeof op->datagram);
    return sys.sendmsg(op->out, &message, flags);
}

static ssize_t execute_write(const struct op *op)
{
    switch (op->sink->kind) {
    case SLUICE_END_MEMORY:
        return write_to_memory(op);
    case SLUICE_END_TCP:
    case SLUICE_END_UNIX_STREAM:
    case SLUICE_END_DATAGRAM: {
        int flags = op->flags | MSG_NOSIGNAL | MSG_DONTWAIT;
        if (op->datagram != 0)
            return send_datagrams(op, flags);
        if (op->iov_count == 1)
            return sys.send(op->out, op->iov[0].iov_base, op->iov[0].iov_len, flags);
        struct msghdr message = {.msg_iov = op->iov, .msg_iovlen = (size_t)op->iov_count};
        return sys.sendmsg(op->out, &message, flags);
    }
    default:
        if (op->out_offset != OP_NO_OFFSET)
            return sys.pwritev(op->out, op->iov, op->iov_count, op->out_offset);
        return sys.writev(op->out, op->iov, op->iov_count);
    }
}

/* Returns bytes, of whole datagrams: those before one that failed are sent, and the next call meets its error. */
static ssize_t execute_datagrams(const struct op *op)
{
    struct mmsghdr messages[OP_IOV_MAX];
    ssize_t bytes = 0;
    for (int i = 0; i < op->iov_count; i++)
        messages[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &op->iov[i], .msg_iovlen = 1}};
    int sent = sys.sendmmsg(op->out, messages, (unsigned)op->iov_count, op->flags | MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0)
        return -1;
    for (int i = 0; i < sent; i++)
        bytes += (ssize_t)op->iov[i].iov_len;
    return bytes;
}

/* The kernel moves the positions of its copies on. */
static off_t *position(off_t *offset)
{
    return *offset == OP_NO_OFFSET ? NULL : offset;
}

static ssize_t execute_sendfile(const struct op *op)
{
    off_t in = op->in_offset;
    return sys.sendfile(op->out, op->in, position(&in), op->length);
}

static ssize_t execute_splice(const struct op *op)
{
    off_t in = op->in_offset, out = op->out_offset;
    return sys.splice(op->in, position(&in), op->out, position(&out), op->length, (unsigned)op->flags);
}

static ssize_t execute_copy_range(const struct op *op)
{
    off_t in = op->in_offset, out = op->out_offset;
    return sys.copy_file_range(op->in, position(&in), op->out, position(&out), op->length, 0);
}

/* Made longer first, then punched: XFS may have allocated blocks beyond the end, which are the file's from then on. */
static ssize_t execute_hole(const struct op *op, uint64_t *calls)
{
    struct stat status;
    off_t end = op->out_offset + (off_t)op->length;
    *calls += 2;
    if (sys.fstat(op->out, &status) < 0)
        return -1;
    if (end > status.st_size) {
        ++*calls;
        if (sys.ftruncate(op->out, end) < 0)
            return -1;
    }
    int result = sys.fallocate(op->out, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, op->out_offset, (off_t)op->length);
    if (result < 0 && op->out_offset < status.st_size)
        return -1; /* what the file had there shines through */
    return (ssize_t)op->length;
}

static ssize_t execute_map_received(const struct op *op)
{
    struct received *received = op->buffer;
    socklen_t size = sizeof *received;
    received->length = op->length < UINT32_MAX ? (uint32_t)op->length : UINT32_MAX;
    received->to_copy = 0;
    if (sys.getsockopt(op->in, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, received, &size) < 0)
        return -1;
    return (ssize_t)received->length;
}

static ssize_t execute_once(const struct op *op, uint64_t *calls)
{
    switch (op->kind) {
    case OP_READ:
        return execute_read(op);
    case OP_WRITE:
        return execute_write(op);
    case OP_DATAGRAMS:
        return execute_datagrams(op);
    case OP_SENDFILE:
        return execute_sendfile(op);
    case OP_FILL:
    case OP_DRAIN:
    case OP_PASS:
    case OP_TAKE:
        return execute_splice(op);
    case OP_GIVE:
        return sys.vmsplice(op->out, op->iov, (size_t)op->iov_count, (unsigned)op->flags);
    case OP_MAP_RECEIVED:
        return execute_map_received(op);
    case OP_TEE:
        return sys.tee(op->in, op->out, op->length, (unsigned)op->flags);
    case OP_COPY_RANGE:
        return execute_copy_range(op);
    case OP_CLONE:
        return sys.clone_range(op->in, op->in_offset, op->out, op->out_offset, op->length) < 0 ? -1
                                                                                               : (ssize_t)op->length;
    case OP_HOLE:
        return execute_hole(op, calls);
    case OP_CORK: {
        int on = op->length != 0;
        return sys.setsockopt(op->out, IPPROTO_TCP, TCP_CORK, &on, sizeof on);
    }
    }
    errno = EINVAL;
    return -1;
}

ssize_t op_execute(const struct op *op, uint64_t *calls)
{
    bool system_call = !(op->kind == OP_WRITE && op->sink->kind == SLUICE_END_MEMORY) && op->kind != OP_HOLE;
    for (;;) {
        *calls += system_call;
        ssize_t result = execute_once(op, calls);
        if (result >= 0)
            return result;
        if (errno != EINTR)
            return -errno;
    }
}
