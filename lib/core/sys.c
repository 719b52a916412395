/* SPDX-License-Identifier: MIT */
#include "sys.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The calls made for every small request, without the cancellation points that the C library puts into them: in a
 * process with threads those cost two atomic operations each. A thread cannot be cancelled inside libsluice. */
static ssize_t plain_recv(int fd, void *buffer, size_t size, int flags)
{
    return syscall(SYS_recvfrom, fd, buffer, size, flags, NULL, NULL);
}

static ssize_t plain_send(int fd, const void *buffer, size_t size, int flags)
{
    return syscall(SYS_sendto, fd, buffer, size, flags, NULL, 0);
}

static ssize_t plain_sendmsg(int fd, const struct msghdr *message, int flags)
{
    return syscall(SYS_sendmsg, fd, message, flags);
}

static int plain_epoll_wait(int epoll, struct epoll_event *events, int size, int timeout)
{
    return (int)syscall(SYS_epoll_pwait, epoll, events, size, timeout, NULL, 0);
}

static int getrlimit_of(int resource, struct rlimit *limit)
{
    return getrlimit((__rlimit_resource_t)resource, limit);
}

static int plain_capget(void *header, void *data)
{
    return (int)syscall(SYS_capget, header, data);
}

static int plain_io_uring_setup(unsigned entries, void *parameters)
{
    return (int)syscall(SYS_io_uring_setup, entries, parameters);
}

static int plain_io_uring_register(int ring, unsigned operation, const void *argument, unsigned count)
{
    return (int)syscall(SYS_io_uring_register, ring, operation, argument, count);
}

static int plain_io_uring_enter(int ring, unsigned submit, unsigned complete, unsigned flags, const void *argument,
                                size_t size)
{
    return (int)syscall(SYS_io_uring_enter, ring, submit, complete, flags, argument, size);
}

/* The variadic calls get a fixed shape, so that the table can be typed. */
static int fcntl_long(int fd, int command, long argument)
{
    return fcntl(fd, command, argument);
}

static int ioctl_pointer(int fd, unsigned long request, void *argument)
{
    return ioctl(fd, request, argument);
}

static int clone_range(int in, off_t in_offset, int out, off_t out_offset, size_t size)
{
    struct file_clone_range range = {
        .src_fd = in, .src_offset = (uint64_t)in_offset, .src_length = size, .dest_offset = (uint64_t)out_offset};
    return ioctl(out, FICLONERANGE, &range);
}

static int open_mode(const char *path, int flags, mode_t mode)
{
    return open(path, flags, mode);
}

/* It returns the error instead of setting errno: made uniform here. */
static int advise(int fd, off_t offset, off_t size, int advice)
{
    int error = posix_fadvise(fd, offset, size, advice);
    if (error == 0)
        return 0;
    errno = error;
    return -1;
}

/* POSIX_FADV_WILLNEED rather than readahead(2): the same work, also on block devices, and no EINVAL on sealed ones. */
static int readahead_advice(int fd, off_t offset, size_t size)
{
    return advise(fd, offset, (off_t)size, POSIX_FADV_WILLNEED);
}

struct sys sys = {
    .read = read,
    .pread = pread,
    .preadv2 = preadv2,
    .writev = writev,
    .pwritev = pwritev,
    .recv = plain_recv,
    .send = plain_send,
    .sendmsg = plain_sendmsg,
    .recvmsg = recvmsg,
    .sendmmsg = sendmmsg,
    .sendfile = sendfile,
    .copy_file_range = copy_file_range,
    .clone_range = clone_range,
    .fallocate = fallocate,
    .ftruncate = ftruncate,
    .splice = splice,
    .tee = tee,
    .vmsplice = vmsplice,
    .pipe2 = pipe2,
    .fcntl = fcntl_long,
    .ioctl = ioctl_pointer,
    .fstat = fstat,
    .statx = statx,
    .fstatfs = fstatfs,
    .lseek = lseek,
    .readahead = readahead_advice,
    .fadvise = advise,
    .mmap = mmap,
    .madvise = madvise,
    .mincore = mincore,
    .munmap = munmap,
    .close = close,
    .socket = socket,
    .shutdown = shutdown,
    .getsockopt = getsockopt,
    .setsockopt = setsockopt,
    .connect = connect,
    .getpeername = getpeername,
    .getsockname = getsockname,
    .accept4 = accept4,
    .poll = poll,
    .epoll_create1 = epoll_create1,
    .epoll_ctl = epoll_ctl,
    .epoll_wait = plain_epoll_wait,
    .eventfd = eventfd,
    .timerfd_create = timerfd_create,
    .timerfd_settime = timerfd_settime,
    .getrlimit = getrlimit_of,
    .capget = plain_capget,
    .sched_getaffinity = sched_getaffinity,
    .io_uring_setup = plain_io_uring_setup,
    .io_uring_register = plain_io_uring_register,
    .io_uring_enter = plain_io_uring_enter,
    .open = open_mode,
    .mkdir = mkdir,
    .rename = rename,
    .unlink = unlink,
    .allocate = calloc,
};
