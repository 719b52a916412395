/* SPDX-License-Identifier: MIT */
#include "simulated.h"
#include "../core/fanout.h"
#include "../core/sys.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define FIRST_FD 1000 /* no descriptor of this process */
#define PIPE_SIZE 65536

static size_t pipe_size(const struct simulation *simulation)
{
    return simulation->pipe_size != 0 ? simulation->pipe_size : PIPE_SIZE;
}

static struct simulation *current;
static struct sys real;

static struct simulated_object *object_of(int fd)
{
    if (fd < FIRST_FD || fd - FIRST_FD >= current->object_count)
        abort();
    return &current->objects[fd - FIRST_FD];
}

static int add_object(struct simulation *simulation, struct simulated_object object)
{
    if (simulation->object_count == SIMULATED_OBJECTS)
        abort();
    simulation->objects[simulation->object_count] = object;
    return FIRST_FD + simulation->object_count++;
}

/* ---- What the library asks the kernel beside ops ------------------------------------------------------------ */

static void *simulated_mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    if (fd < 0)
        return real.mmap(address, size, protection, flags, fd, offset);
    if (object_of(fd)->kind == SIMULATED_STREAM) /* what arrives is put there */
        return real.mmap(address, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return (void *)(object_of(fd)->data + offset); /* what lies beyond the file is not read: sizes are asked first */
}

static int simulated_munmap(void *address, size_t size)
{
    for (int i = 0; i < current->object_count; i++) {
        const struct simulated_object *object = &current->objects[i];
        const unsigned char *byte = address;
        if (object->kind == SIMULATED_FILE && byte >= object->data && byte <= object->data + object->size)
            return 0;
    }
    return real.munmap(address, size);
}

static int simulated_fstat(int fd, struct stat *status)
{
    *status = (struct stat){.st_mode = S_IFREG, .st_size = (off_t)object_of(fd)->size};
    return 0;
}

static off_t simulated_lseek(int fd, off_t offset, int whence)
{
    (void)offset, (void)whence;
    return (off_t)object_of(fd)->size;
}

static int simulated_fstatfs(int fd, struct statfs *status)
{
    (void)fd;
    *status = (struct statfs){.f_type = 0};
    return 0;
}

/* No file of this kernel tells what it shares. */
static int simulated_ioctl(int fd, unsigned long request, void *argument)
{
    (void)fd, (void)request, (void)argument;
    errno = ENOTTY;
    return -1;
}

/* Nor what O_DIRECT asks for; and a file opened a second time has the same descriptor. */
static int simulated_statx(int directory, const char *path, int flags, unsigned mask, struct statx *status)
{
    (void)directory, (void)path, (void)flags, (void)mask, (void)status;
    errno = ENOSYS;
    return -1;
}

static int simulated_open(const char *path, int flags, mode_t mode)
{
    (void)flags, (void)mode;
    return atoi(strrchr(path, '/') + 1);
}

static int simulated_getsockopt(int fd, int level, int name, void *value, socklen_t *size)
{
    (void)fd, (void)level, (void)name, (void)value, (void)size;
    errno = ENOPROTOOPT;
    return -1;
}

static int simulated_getpeername(int fd, struct sockaddr *address, socklen_t *size)
{
    (void)fd, (void)address, (void)size;
    errno = ENOTCONN;
    return -1;
}

/* A simulated pipe is one object with two descriptors of the same number. */
static int simulated_pipe2(int fds[2], int flags)
{
    (void)flags;
    fds[0] = fds[1] = add_object(current, (struct simulated_object){.kind = SIMULATED_PIPE});
    return 0;
}

static int simulated_fcntl(int fd, int command, long argument)
{
    (void)fd, (void)argument;
    return command == F_GETPIPE_SZ || command == F_SETPIPE_SZ ? (int)pipe_size(current) : 0;
}

static int simulated_close(int fd)
{
    (void)fd;
    return 0;
}

static int simulated_poll(struct pollfd *fds, nfds_t count, int timeout)
{
    (void)fds, (void)timeout;
    return (int)count;
}

void simulation_begin(struct simulation *simulation)
{
    pipes_drain(); /* real ones */
    current = simulation;
    real = sys;
    sys.mmap = simulated_mmap;
    sys.munmap = simulated_munmap;
    sys.fstat = simulated_fstat;
    sys.lseek = simulated_lseek;
    sys.fstatfs = simulated_fstatfs;
    sys.ioctl = simulated_ioctl;
    sys.statx = simulated_statx;
    sys.open = simulated_open;
    sys.getsockopt = simulated_getsockopt;
    sys.getpeername = simulated_getpeername;
    sys.pipe2 = simulated_pipe2;
    sys.fcntl = simulated_fcntl;
    sys.close = simulated_close;
    sys.poll = simulated_poll;
}

void simulation_end(void)
{
    pipes_drain(); /* the pooled pipes are simulated ones */
    sys = real;
    current = NULL;
}

struct sluice_end *simulated_end(struct simulation *simulation, enum simulated_kind kind, enum sluice_end_kind as,
                                 const unsigned char *data, size_t size)
{
    static uint64_t serial = UINT64_MAX;
    struct sluice_end *end = calloc(1, sizeof *end);
    if (end == NULL)
        abort();
    end->fd = add_object(simulation, (struct simulated_object){.kind = kind, .data = data, .size = size});
    end->kind = (uint8_t)as;
    end->serial = serial--;
    if (end_is_file(end))
        end->file.size = size;
    return end;
}

/* ---- Ops ---------------------------------------------------------------------------------------------------- */

static uint32_t draw(struct simulation *simulation)
{
    /* splitmix64: good enough to lie with, and the same everywhere. */
    uint64_t z = simulation->seed += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (uint32_t)(z >> 32);
}

static void deliver(struct simulated_object *sink, const unsigned char *bytes, size_t size)
{
    if (size > sink->size - sink->at || memcmp(sink->data + sink->at, bytes, size) != 0)
        sink->wrong = true;
    else
        sink->at += size;
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* The route that an op works for. */
static enum sluice_route route_of(const struct lane *lane, const struct op *op)
{
    switch (op->kind) {
    case OP_WRITE:
    case OP_DATAGRAMS:
        return (enum sluice_route)lane->iov_route[0];
    case OP_SENDFILE:
        return SLUICE_ROUTE_SENDFILE;
    case OP_GIVE:
        return SLUICE_ROUTE_VMSPLICE;
    case OP_FILL:
    case OP_DRAIN:
    case OP_PASS:
        return lane->transfer->fanout != NULL ? SLUICE_ROUTE_TEE : SLUICE_ROUTE_SPLICE;
    case OP_MAP_RECEIVED:
        return SLUICE_ROUTE_TCP_RECEIVE;
    case OP_TEE:
    case OP_TAKE:
        return SLUICE_ROUTE_TEE;
        return SLUICE_ROUTE_SPLICE;
    case OP_COPY_RANGE:
        return SLUICE_ROUTE_COPY_FILE_RANGE;
    case OP_CLONE:
        return SLUICE_ROUTE_REFLINK;
    case OP_READ:
        return lane->route != NULL && lane->route->id == SLUICE_ROUTE_DIRECT ? SLUICE_ROUTE_DIRECT : SLUICE_ROUTE_COPY;
    case OP_HOLE:
    case OP_CORK:
        break;
    }
    return SLUICE_ROUTE_COPY;
}

/* The same for tee's ops between source and pipes: it is about the byte's place in the source. */
static ssize_t until_refused_taking(const struct simulation *simulation, const struct op *op, size_t length)
{
    const struct simulated_refusal *refusal = &simulation->refusal;
    const struct simulated_object *from = object_of(op->in), *source = &simulation->objects[0];
    size_t at = op->kind == OP_FILL ? from->at : (size_t)(from->pipe_data + from->at - source->data);
    if (refusal->at_drain || refusal->at_tee != (op->kind != OP_FILL))
        return (ssize_t)length;
    return at >= refusal->at ? -EINVAL : (ssize_t)least(length, (size_t)(refusal->at - at));
}

/* How far the op gets before the refusal that the test asked for: length, less, or a negative errno. */
static ssize_t until_refusal(const struct simulation *simulation, const struct lane *lane, const struct op *op,
                             size_t length)
{
    const struct simulated_refusal *refusal = &simulation->refusal;
    static const int errnos[SLUICE_ROUTE_COUNT] = {
        [SLUICE_ROUTE_COPY] = ENOSYS,        [SLUICE_ROUTE_MMAP] = EFAULT,   [SLUICE_ROUTE_SENDFILE] = EINVAL,
        [SLUICE_ROUTE_TEE] = EINVAL,         [SLUICE_ROUTE_SPLICE] = EINVAL, [SLUICE_ROUTE_COPY_FILE_RANGE] = EXDEV,
        [SLUICE_ROUTE_REFLINK] = EOPNOTSUPP, [SLUICE_ROUTE_DIRECT] = EINVAL, [SLUICE_ROUTE_TCP_RECEIVE] = EINVAL,
    };
    if (refusal->route == SLUICE_ROUTE_AUTO || route_of(lane, op) != refusal->route)
        return (ssize_t)length;
    if (refusal->route == SLUICE_ROUTE_COPY && op->kind != OP_READ)
        return (ssize_t)length; /* writing is every route's */
    if (refusal->sink != 0 && op->sink->fd != refusal->sink)
        return (ssize_t)length;
    if (refusal->route == SLUICE_ROUTE_TEE && op->kind != OP_DRAIN)
        return until_refused_taking(simulation, op, length);
    if (refusal->route == SLUICE_ROUTE_TCP_RECEIVE && refusal->at_drain != (op->kind == OP_WRITE))
        return (ssize_t)length;
    if (op->kind == OP_FILL && refusal->at_drain)
        return (ssize_t)length;
    if (op->kind == OP_DRAIN && !refusal->at_drain)
        return (ssize_t)length; /* what was filled ended at the byte */
    if (op->kind == OP_READ && op->in_offset == OP_NO_OFFSET && object_of(op->in)->kind == SIMULATED_PIPE)
        return (ssize_t)length; /* the remainder that splice left behind */
    if (refusal->route == SLUICE_ROUTE_DIRECT && op->kind == OP_WRITE && !end_is_file(op->sink))
        return (ssize_t)length; /* of what was read up to the byte */
    uint64_t sink_at = object_of(op->sink->fd)->at;
    if (sink_at >= refusal->at)
        return -errnos[refusal->route];
    size_t before = op->kind == OP_READ ? lane->stage.lead : 0; /* of a block, read again */
    return (ssize_t)least(length, before + (size_t)(refusal->at - sink_at));
}

static ssize_t read_object(struct simulated_object *source, const struct op *op, size_t length,
                           const unsigned char **ret_bytes)
{
    size_t at = op->in_offset != OP_NO_OFFSET ? (size_t)op->in_offset : source->at;
    size_t left = source->kind == SIMULATED_PIPE ? source->filled - source->at : source->size - least(at, source->size);
    size_t size = least(length, left);
    *ret_bytes = (source->kind == SIMULATED_PIPE ? source->pipe_data : source->data) + at;
    if (op->in_offset == OP_NO_OFFSET)
        source->at += size;
    return (ssize_t)size;
}

static void fill_pipe(struct simulated_object *pipe, const unsigned char *bytes, size_t size)
{
    if (pipe->filled == pipe->at) { /* empty: whatever comes may lie elsewhere */
        pipe->pipe_data = bytes - pipe->at;
        pipe->filled = pipe->at;
    }
    if (pipe->pipe_data + pipe->filled != bytes)
        abort(); /* a pipe of one lane holds neighbouring bytes of one source */
    pipe->filled += size;
}

/* Whole pages are mapped, from places in the stream where pages begin; else so much must be copied first. */
static ssize_t map_received(struct simulation *simulation, const struct op *op, size_t length)
{
    struct simulated_object *source = object_of(op->in);
    struct received *received = op->buffer;
    size_t left = source->size - least(source->at, source->size), partial = source->at % SIMULATED_PAGE;
    received->length = received->to_copy = 0;
    if (left == 0)
        return -EIO;
    if (partial != 0 || least(length, left) < SIMULATED_PAGE || (simulation->lies != 0 && draw(simulation) % 4 == 0)) {
        received->to_copy =
            (uint32_t)least(partial != 0 ? SIMULATED_PAGE - partial : SIMULATED_PAGE, least(length, left));
        return 0;
    }
    received->length = (uint32_t)(least(length, left) / SIMULATED_PAGE * SIMULATED_PAGE);
    memcpy((void *)(uintptr_t)received->address, source->data + source->at, received->length);
    source->at += received->length;
    return (ssize_t)received->length;
}

static ssize_t carry_out(struct simulation *simulation, const struct lane *lane, const struct op *op)
{
    const unsigned char *bytes;
    size_t length = op->length;
    simulation->ops[op->kind]++;
    if (op->kind == OP_CORK)
        return 0;
    if (op->out_offset != OP_NO_OFFSET && (size_t)op->out_offset != object_of(op->sink->fd)->at)
        object_of(op->sink->fd)->wrong = true;
    bool between_pipes = op->kind == OP_TEE || op->kind == OP_TAKE;
    if (between_pipes) {
        const struct simulated_object *to = object_of(op->out);
        size_t free = pipe_size(simulation) - (to->filled - to->at);
        if (free == 0)
            return -EAGAIN;
        length = least(length, free);
    }
    if (simulation->lies != 0) {
        uint32_t dice = draw(simulation) & 255;
        if (dice < simulation->lies && op_blocker(op) != OP_BLOCKS_ON_NEITHER)
            return -EAGAIN;
        if (dice < 2 * simulation->lies && length > 1)
            length = 1 + draw(simulation) % length;
    }
    ssize_t allowed = until_refusal(simulation, lane, op, length);
    if (allowed < 0)
        return allowed;
    length = (size_t)allowed;
    if (op->kind == OP_MAP_RECEIVED)
        return map_received(simulation, op, length);
    if (op->kind == OP_DATAGRAMS || (op->kind == OP_WRITE && op->sink->kind == SLUICE_END_DATAGRAM)) { /* whole ones */
        size_t whole = 0;
        for (int i = 0; i < op->iov_count && (i == 0 || whole + op->iov[i].iov_len <= length); i++)
            whole += op->iov[i].iov_len;
        length = whole;
    }
    if (op->kind == OP_WRITE || op->kind == OP_DATAGRAMS || op->kind == OP_DRAIN) {
        const struct simulated_object *sink = object_of(op->out);
        if (sink->stops_at != 0 && sink->at >= sink->stops_at)
            return -sink->stop_error;
        if (sink->stops_at != 0)
            length = least(length, sink->stops_at - sink->at);
    }
    if (op->kind == OP_WRITE || op->kind == OP_DATAGRAMS) {
        size_t left = length;
        for (int i = 0; i < op->iov_count && left > 0; i++) {
            size_t part = least(op->iov[i].iov_len, left);
            deliver(object_of(op->out), op->iov[i].iov_base, part);
            object_of(op->out)->pieces++;
            left -= part;
        }
        return (ssize_t)(length - left);
    }
    if (op->kind == OP_FILL)
        length = least(length, pipe_size(simulation));
    ssize_t size = read_object(object_of(op->in), op, length, &bytes);
    if (op->kind == OP_TEE && size > 0)
        object_of(op->in)->at -= (size_t)size;
    if (size <= 0)
        return size;
    if (op->kind == OP_READ)
        memcpy(op->buffer, bytes, (size_t)size);
    else if (op->kind == OP_FILL || between_pipes)
        fill_pipe(object_of(op->out), bytes, (size_t)size);
    else
        deliver(object_of(op->out), bytes, (size_t)size);
    return size;
}

/* Returns whether anything was done, or a negative errno. */
static int run_lane(struct simulation *simulation, struct lane *lane)
{
    struct op ops[OPS_MAX];
    bool done_any = false;
    do {
        int count = lane_next(lane, ops);
        if (count < 0)
            return count;
        for (int i = 0; i < count; i++) {
            int go_on = lane_complete(lane, &ops[i], carry_out(simulation, lane, &ops[i]));
            done_any = true;
            if (go_on < 0)
                return go_on;
            if (go_on == 0)
                break;
        }
    } while (lane->wait == LANE_TAKES);
    return done_any;
}

static uint64_t progress_of(const struct sluice_transfer *transfer)
{
    uint64_t progress = transfer->fanout != NULL ? transfer->fanout->progress : 0;
    for (uint32_t i = 0; i < transfer->lane_count; i++)
        progress += transfer->lanes[i].receipt.sent;
    return progress;
}

int simulation_run(struct simulation *simulation, struct sluice_transfer *transfer)
{
    for (;;) {
        bool done = true, active = false;
        uint64_t progress = progress_of(transfer);
        for (uint32_t i = 0; i < transfer->lane_count; i++) {
            struct lane *lane = &transfer->lanes[i];
            if (lane->wait == LANE_DONE)
                continue;
            active |= lane->wait != LANE_WAITS_OTHERS && lane->wait != LANE_RUNS; /* it said EAGAIN: time passes */
            lane->wait = LANE_RUNS;
            lane->moved_in_turn = 0;
            int result = run_lane(simulation, lane);
            if (result < 0 && (result = lane_failed(lane, result)) < 0)
                return result;
            active |= result > 0;
            done &= lane->wait == LANE_DONE;
        }
        if (done)
            return 0;
        int dropped = transfer->fanout != NULL && progress_of(transfer) == progress ? fanout_press(transfer) : 0;
        if (dropped < 0)
            return dropped;
        if (!active && dropped == 0 && progress_of(transfer) == progress)
            return -EDEADLK;
    }
}
