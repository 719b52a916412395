/* SPDX-License-Identifier: MIT
 *
 * The system-call seam: every call that libsluice makes goes through this table, so that a test can fail the Nth call
 * of any site with any errno, shorten it, or count it. Outside tests it holds the C library's functions.
 */
#ifndef SLUICE_CORE_SYS_H
#define SLUICE_CORE_SYS_H

#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/vfs.h>

struct sys {
    ssize_t (*read)(int fd, void *buffer, size_t size);
    ssize_t (*pread)(int fd, void *buffer, size_t size, off_t offset);
    ssize_t (*preadv2)(int fd, const struct iovec *iov, int count, off_t offset, int flags);
    ssize_t (*writev)(int fd, const struct iovec *iov, int count);
    ssize_t (*pwritev)(int fd, const struct iovec *iov, int count, off_t offset);
    ssize_t (*recv)(int fd, void *buffer, size_t size, int flags);
    ssize_t (*send)(int fd, const void *buffer, size_t size, int flags);
    ssize_t (*sendmsg)(int fd, const struct msghdr *message, int flags);
    ssize_t (*recvmsg)(int fd, struct msghdr *message, int flags);
    int (*sendmmsg)(int fd, struct mmsghdr *messages, unsigned count, int flags);
    ssize_t (*sendfile)(int out, int in, off_t *offset, size_t size);
    ssize_t (*copy_file_range)(int in, off_t *in_offset, int out, off_t *out_offset, size_t size, unsigned flags);
    int (*clone_range)(int in, off_t in_offset, int out, off_t out_offset, size_t size); /* FICLONERANGE */
    int (*fallocate)(int fd, int mode, off_t offset, off_t size);
    int (*ftruncate)(int fd, off_t size);
    ssize_t (*splice)(int in, off_t *in_offset, int out, off_t *out_offset, size_t size, unsigned flags);
    ssize_t (*tee)(int in, int out, size_t size, unsigned flags);
    ssize_t (*vmsplice)(int fd, const struct iovec *iov, size_t count, unsigned flags);
    int (*pipe2)(int fds[2], int flags);
    int (*fcntl)(int fd, int command, long argument);
    int (*ioctl)(int fd, unsigned long request, void *argument);
    int (*fstat)(int fd, struct stat *status);
    int (*statx)(int directory, const char *path, int flags, unsigned mask, struct statx *status);
    int (*fstatfs)(int fd, struct statfs *status);
    off_t (*lseek)(int fd, off_t offset, int whence);
    int (*readahead)(int fd, off_t offset, size_t size);
    int (*fadvise)(int fd, off_t offset, off_t size, int advice);
    void *(*mmap)(void *address, size_t size, int protection, int flags, int fd, off_t offset);
    int (*madvise)(void *address, size_t size, int advice);
    int (*mincore)(void *address, size_t size, unsigned char *answer);
    int (*munmap)(void *address, size_t size);
    int (*close)(int fd);
    int (*socket)(int domain, int type, int protocol);
    int (*shutdown)(int fd, int how);
    int (*getsockopt)(int fd, int level, int name, void *value, socklen_t *size);
    int (*setsockopt)(int fd, int level, int name, const void *value, socklen_t size);
    int (*connect)(int fd, const struct sockaddr *address, socklen_t size);
    int (*getpeername)(int fd, struct sockaddr *address, socklen_t *size);
    int (*getsockname)(int fd, struct sockaddr *address, socklen_t *size);
    int (*accept4)(int fd, struct sockaddr *address, socklen_t *size, int flags);
    int (*poll)(struct pollfd *fds, nfds_t count, int timeout);
    int (*epoll_create1)(int flags);
    int (*epoll_ctl)(int epoll, int operation, int fd, struct epoll_event *event);
    int (*epoll_wait)(int epoll, struct epoll_event *events, int size, int timeout);
    int (*eventfd)(unsigned value, int flags);
    int (*timerfd_create)(int clock, int flags);
    int (*timerfd_settime)(int fd, int flags, const struct itimerspec *value, struct itimerspec *old);
    int (*getrlimit)(int resource, struct rlimit *limit);
    int (*capget)(void *header, void *data);
    int (*sched_getaffinity)(pid_t thread, size_t size, cpu_set_t *cpus);
    int (*io_uring_setup)(unsigned entries, void *parameters);
    int (*io_uring_register)(int ring, unsigned operation, const void *argument, unsigned count);
    int (*io_uring_enter)(int ring, unsigned submit, unsigned complete, unsigned flags, const void *argument,
                          size_t size);
    int (*open)(const char *path, int flags, mode_t mode);
    int (*mkdir)(const char *path, mode_t mode);
    int (*rename)(const char *from, const char *to);
    int (*unlink)(const char *path);
    void *(*allocate)(size_t count, size_t size); /* calloc; freed by free() */
};

extern struct sys sys;

#endif
