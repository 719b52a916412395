/* SPDX-License-Identifier: MIT */
#include "faults.h"
#include "../../../lib/core/sys.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/io_uring.h>
#include <linux/tls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef SOL_TLS
#define SOL_TLS 282
#endif

/* ---- What each call may say, by its man page ---------------------------------------------------------------- */

#define FAILS(number)                                                                                                  \
    {                                                                                                                  \
        .effect = FAULT_ERRNO, .error = number                                                                         \
    }
#define HARMLESS(number)                                                                                               \
    {                                                                                                                  \
        .effect = FAULT_ERRNO, .error = number, .harmless = true                                                       \
    }
#define NOT_YET(number)                                                                                                \
    {                                                                                                                  \
        .effect = FAULT_ERRNO, .error = number, .harmless = true, .not_moving = true                                   \
    }
#define SHORTER                                                                                                        \
    {.effect = FAULT_ONE_BYTE, .harmless = true},                                                                      \
    {                                                                                                                  \
        .effect = FAULT_HALF, .harmless = true                                                                         \
    }
#define CALL(function, ...)                                                                                            \
    static const struct fault_call call_##function = {                                                                 \
        .name = #function, .kinds = (const struct fault_kind[]){__VA_ARGS__, {.error = 0, .harmless = false}}}

CALL(read, FAILS(EIO), FAILS(ECONNRESET), NOT_YET(EINTR), NOT_YET(EAGAIN), SHORTER);
CALL(pread, FAILS(EIO), FAILS(ENOMEM), NOT_YET(EINTR), SHORTER);
CALL(preadv2, HARMLESS(EAGAIN), NOT_YET(EINTR), HARMLESS(EOPNOTSUPP), HARMLESS(EIO));
CALL(writev, FAILS(EPIPE), FAILS(EIO), FAILS(ENOSPC), FAILS(EFAULT), NOT_YET(EINTR), NOT_YET(EAGAIN), SHORTER);
CALL(pwritev, FAILS(EIO), FAILS(ENOSPC), FAILS(EDQUOT), FAILS(EFBIG), FAILS(EFAULT), NOT_YET(EINTR), SHORTER);
CALL(recv, FAILS(ECONNRESET), FAILS(ETIMEDOUT), FAILS(ENOMEM), NOT_YET(EINTR), NOT_YET(EAGAIN), SHORTER);
CALL(send, FAILS(EPIPE), FAILS(ECONNRESET), FAILS(ENOBUFS), FAILS(ENOMEM), FAILS(EFAULT), NOT_YET(EINTR),
     NOT_YET(EAGAIN), SHORTER);
CALL(sendmsg, FAILS(EPIPE), FAILS(ECONNRESET), FAILS(ENOBUFS), FAILS(ENOMEM), FAILS(EFAULT), NOT_YET(EINTR),
     NOT_YET(EAGAIN), SHORTER);
CALL(recvmsg, NOT_YET(ENOMEM), NOT_YET(EINTR), NOT_YET(EAGAIN));
CALL(sendmmsg, FAILS(ECONNREFUSED), FAILS(ECONNRESET), FAILS(ENOBUFS), FAILS(ENOMEM), FAILS(EMSGSIZE), NOT_YET(EINTR),
     NOT_YET(EAGAIN), SHORTER);
CALL(sendfile, FAILS(EINVAL), FAILS(EIO), FAILS(ENOMEM), FAILS(EPIPE), FAILS(EOVERFLOW), FAILS(ENOSYS), NOT_YET(EINTR),
     NOT_YET(EAGAIN), SHORTER);
CALL(splice, FAILS(EINVAL), FAILS(EPIPE), FAILS(ENOMEM), FAILS(EIO), FAILS(ECONNRESET), FAILS(EBADF), NOT_YET(EINTR),
     NOT_YET(EAGAIN), SHORTER);
CALL(copy_file_range, FAILS(EIO), FAILS(ENOSPC), FAILS(ENOMEM), FAILS(EXDEV), FAILS(EINVAL), FAILS(EOPNOTSUPP),
     FAILS(ETXTBSY), FAILS(EBADF), FAILS(EPERM), FAILS(ENOENT), FAILS(EFBIG), NOT_YET(EINTR), SHORTER);
CALL(clone_range, FAILS(EIO), FAILS(ENOSPC), FAILS(EXDEV), FAILS(EINVAL), FAILS(EOPNOTSUPP), FAILS(EPERM),
     FAILS(ETXTBSY), FAILS(EBADF), FAILS(EAGAIN), NOT_YET(EINTR));
CALL(fallocate, HARMLESS(EOPNOTSUPP), HARMLESS(EIO), HARMLESS(EPERM), NOT_YET(EINTR));
CALL(ftruncate, HARMLESS(EIO), HARMLESS(EFBIG), HARMLESS(EPERM), NOT_YET(EINTR));
CALL(tee, FAILS(EINVAL), FAILS(ENOMEM), FAILS(EFAULT), NOT_YET(EINTR), SHORTER);
CALL(vmsplice, FAILS(EINVAL), FAILS(ENOMEM), FAILS(EBADF), FAILS(EFAULT), NOT_YET(EINTR));
CALL(pipe2, FAILS(EMFILE), FAILS(ENFILE), FAILS(ENOMEM));
CALL(fcntl, FAILS(EPERM), FAILS(EBUSY), FAILS(ENOMEM));
CALL(ioctl, HARMLESS(EOPNOTSUPP), HARMLESS(ENODEV), HARMLESS(EPERM), HARMLESS(ENOMEM));
CALL(fstat, FAILS(EIO), FAILS(ENOMEM), FAILS(EOVERFLOW));
CALL(statx, HARMLESS(ENOSYS), HARMLESS(EINVAL), HARMLESS(EIO));
CALL(fstatfs, HARMLESS(EIO), HARMLESS(ENOSYS), HARMLESS(EINTR));
CALL(lseek, FAILS(EIO), FAILS(EOVERFLOW), FAILS(ESPIPE));
CALL(readahead, HARMLESS(EINVAL), HARMLESS(EIO), HARMLESS(ENOMEM));
CALL(fadvise, HARMLESS(EINVAL), HARMLESS(EBADF));
CALL(mmap, FAILS(ENOMEM), FAILS(EACCES), FAILS(ENODEV), FAILS(EAGAIN), FAILS(ENFILE));
CALL(madvise, HARMLESS(EINVAL), HARMLESS(ENOMEM));
CALL(mincore, HARMLESS(ENOMEM), HARMLESS(EAGAIN));
CALL(munmap, HARMLESS(ENOMEM), HARMLESS(EINVAL));
CALL(close, HARMLESS(EIO), HARMLESS(EINTR), HARMLESS(ENOSPC));
CALL(socket, HARMLESS(EMFILE), HARMLESS(ENFILE), HARMLESS(ENOBUFS), HARMLESS(EAFNOSUPPORT));
CALL(getsockopt, FAILS(ENOPROTOOPT), FAILS(ENOBUFS));
CALL(shutdown, HARMLESS(ENOTCONN), HARMLESS(ENOBUFS));
CALL(setsockopt, HARMLESS(ENOPROTOOPT), HARMLESS(ENOMEM));
CALL(connect, NOT_YET(EINTR), HARMLESS(EACCES));
CALL(getpeername, HARMLESS(ENOTCONN), HARMLESS(ENOBUFS));
CALL(getsockname, HARMLESS(ENOBUFS));
CALL(accept4, FAILS(EMFILE), FAILS(ENFILE), FAILS(ENOMEM), FAILS(ENOBUFS), FAILS(EPERM), NOT_YET(ECONNABORTED),
     NOT_YET(EPROTO), NOT_YET(EINTR), NOT_YET(EAGAIN));
CALL(poll, NOT_YET(EINTR), FAILS(ENOMEM));
CALL(epoll_create1, FAILS(EMFILE), FAILS(ENFILE), FAILS(ENOMEM));
CALL(epoll_ctl, FAILS(ENOSPC), FAILS(ENOMEM));
CALL(epoll_wait, NOT_YET(EINTR), FAILS(EINVAL));
CALL(eventfd, FAILS(EMFILE), FAILS(ENFILE), FAILS(ENODEV), FAILS(ENOMEM));
CALL(timerfd_create, FAILS(EMFILE), FAILS(ENFILE), FAILS(ENOMEM), FAILS(ENODEV));
CALL(timerfd_settime, HARMLESS(EINVAL), HARMLESS(ECANCELED));
CALL(open, FAILS(EMFILE), FAILS(ENFILE), FAILS(ENOMEM));
CALL(mkdir, FAILS(EACCES), FAILS(ENOSPC), FAILS(EROFS));
CALL(rename, FAILS(EACCES), FAILS(ENOSPC), FAILS(EROFS));
CALL(unlink, FAILS(EACCES), FAILS(EROFS));
CALL(allocate, FAILS(ENOMEM));
CALL(getrlimit, HARMLESS(EPERM));
CALL(capget, HARMLESS(EPERM));
CALL(sched_getaffinity, HARMLESS(EINVAL));
CALL(io_uring_setup, FAILS(ENOSYS), FAILS(EPERM), FAILS(EINVAL), FAILS(ENOMEM), FAILS(EMFILE));
CALL(io_uring_register, FAILS(EINVAL), FAILS(ENOMEM), FAILS(EBUSY));
CALL(io_uring_enter, NOT_YET(EINTR), NOT_YET(EAGAIN), NOT_YET(EBUSY), FAILS(EBADR));

/* ---- The run ------------------------------------------------------------------------------------------------ */

extern struct fault_site *const __start_fault_sites[];
extern struct fault_site *const __stop_fault_sites[];

#define LIVE_MAX 256
#define NO_PROGRESS 200000 /* calls in one run: it goes round in circles */
#define PATIENCE_MS 5000   /* nothing happens any more */

static struct sys real;
static struct sys *table;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* helpers make calls too */
static _Thread_local struct fault_site *arrived;

static struct {
    int number;
    struct fault faults[FAULTS_AT_ONCE];
    size_t fault_count;
    unsigned injected;
    uint64_t calls;
    bool quiet;
    const char *description;
    const char *violation;
} run;

/* What the library holds. */
struct live {
    const void *address;
    size_t size; /* of a mapping; 0: allocated memory */
};
static struct live live[LIVE_MAX];
static size_t live_count;
static int pipes[LIVE_MAX];
static size_t pipe_count;

/* Edge-triggered registrations, and those that are to be reported anew. */
static struct {
    int epoll, fd;
    struct epoll_event event;
    bool again;
} watched[64];
static size_t watched_count;

bool (*fault_world)(void);
int fault_block_device = -1;
unsigned fault_cold_pages;
atomic_uint fault_drops;
bool fault_huge_pages;
int fault_slow_peer = -1;
int fault_tls;

size_t fault_site_count(void)
{
    return (size_t)(__stop_fault_sites - __start_fault_sites);
}

struct fault_site *fault_site(size_t index)
{
    return __start_fault_sites[index];
}

const char *fault_site_name(const struct fault_site *site)
{
    static char text[200];
    const char *file = strstr(site->file, "lib/");
    snprintf(text, sizeof text, "%s:%d %s %s", file != NULL ? file + 4 : site->file, site->line,
             site->function != NULL ? site->function : "", site->call != NULL ? site->call->name : "(not reached)");
    return text;
}

const char *fault_kind_name(const struct fault_kind *kind)
{
    if (kind->effect == FAULT_ONE_BYTE)
        return "1 byte";
    return kind->effect == FAULT_HALF ? "half" : strerrorname_np(kind->error);
}

static void give_up(const char *why)
{
    printf("Bail out! %s: %s\n", run.description, why);
    fflush(stdout);
    _exit(1);
}

static void note_violation(const char *what)
{
    if (run.violation == NULL)
        run.violation = what;
}

struct sys *fault_arrive(struct fault_site *site, const char *function)
{
    arrived = site;
    site->function = function;
    return table;
}

void fault_begin(int number, const struct fault *faults, size_t count, const char *description)
{
    for (size_t i = 0; i < fault_site_count(); i++)
        fault_site(i)->calls_in_run = 0;
    memset(&run, 0, sizeof run);
    run.number = number;
    run.description = description;
    run.fault_count = count;
    if (count > 0)
        memcpy(run.faults, faults, count * sizeof *faults);
    live_count = pipe_count = watched_count = 0;
}

void fault_quiet(bool quiet)
{
    pthread_mutex_lock(&lock);
    run.quiet = quiet;
    pthread_mutex_unlock(&lock);
}

unsigned fault_end(void)
{
    run.fault_count = 0;
    return run.injected;
}

const char *fault_violation(void)
{
    if (run.violation != NULL)
        return run.violation;
    for (size_t i = 0; i < live_count; i++)
        return live[i].size == 0 ? "memory leaked" : "a mapping leaked";
    return pipe_count > 0 ? "a pipe leaked" : NULL;
}

static bool in_pipes(int fd)
{
    for (size_t i = 0; i < pipe_count; i++)
        if (pipes[i] == fd)
            return true;
    return false;
}

/* Is it in the nature of this descriptor to make somebody wait? The library's own pipes are never asked for bytes they
 * lack, nor given more than they hold. */
static bool can_block(int fd)
{
    struct stat status;
    return fd >= 0 && !in_pipes(fd) && fstat(fd, &status) == 0 && !S_ISREG(status.st_mode);
}

static void report_anew(int fd)
{
    for (size_t i = 0; i < watched_count; i++)
        if (watched[i].fd == fd)
            watched[i].again = true;
}

/* A call is about to be made, between these descriptors (-1: none). Returns the errno with which to fail it, or 0; then
 * *size, if there is one, may have become less. */
static int strike(const struct fault_call *call, int in, int out, size_t *size)
{
    struct fault_site *site = arrived;
    int error = 0;
    pthread_mutex_lock(&lock);
    if (run.quiet) {
        pthread_mutex_unlock(&lock);
        return 0;
    }
    site->call = call;
    if (site->calls++ == 0)
        site->reached_by = run.number;
    site->calls_in_run++;
    if (++run.calls > NO_PROGRESS)
        give_up("it makes calls without end");
    for (size_t i = 0; i < run.fault_count; i++) {
        const struct fault *fault = &run.faults[i];
        if (fault->site != site || site->calls_in_run < fault->nth || site->calls_in_run - fault->nth >= fault->times)
            continue;
        const struct fault_kind *kind = &call->kinds[fault->kind];
        if (kind->effect != FAULT_ERRNO && (size == NULL || *size < 2))
            continue;
        if (kind->error == EAGAIN && (in >= 0 || out >= 0) && !can_block(in) && !can_block(out))
            continue;
        if (kind->effect == FAULT_ONE_BYTE)
            *size = 1;
        else if (kind->effect == FAULT_HALF)
            *size /= 2;
        else
            error = kind->error;
        if (error == 0 || error == EAGAIN) {
            report_anew(in);
            report_anew(out);
        }
        site->injected++;
        site->kinds_injected |= UINT64_C(1) << fault->kind;
        run.injected++;
        break;
    }
    pthread_mutex_unlock(&lock);
    return error;
}

static int fail(int error)
{
    errno = error;
    return -1;
}

static void hold(const void *address, size_t size)
{
    pthread_mutex_lock(&lock);
    if (live_count == LIVE_MAX)
        give_up("more memory in use than the test can count");
    live[live_count++] = (struct live){address, size};
    pthread_mutex_unlock(&lock);
}

static void let_go(const void *address, size_t size, const char *otherwise)
{
    pthread_mutex_lock(&lock);
    size_t i = 0;
    while (i < live_count && (live[i].address != address || live[i].size != size))
        i++;
    if (i < live_count)
        live[i] = live[--live_count];
    else
        note_violation(otherwise);
    pthread_mutex_unlock(&lock);
}

void fault_free(void *memory)
{
    if (memory != NULL)
        let_go(memory, 0, "memory freed that was not allocated, or twice");
    free(memory);
}

/* ---- The wrappers ------------------------------------------------------------------------------------------- */

static ssize_t faulty_read(int fd, void *buffer, size_t size)
{
    int error = strike(&call_read, fd, -1, &size);
    return error != 0 ? fail(error) : real.read(fd, buffer, size);
}

static ssize_t faulty_pread(int fd, void *buffer, size_t size, off_t offset)
{
    int error = strike(&call_pread, -1, -1, &size);
    return error != 0 ? fail(error) : real.pread(fd, buffer, size, offset);
}

static ssize_t faulty_preadv2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    int error = strike(&call_preadv2, -1, -1, NULL);
    if (error == 0 && fault_cold_pages > 0) {
        fault_cold_pages--;
        error = EAGAIN;
    }
    return error != 0 ? fail(error) : real.preadv2(fd, iov, count, offset, flags);
}

#define PIECES_MAX 16

/* The first size bytes of what iov describes. */
static int shorten(const struct iovec *iov, int count, size_t size, struct iovec ret_pieces[PIECES_MAX])
{
    int pieces = 0;
    for (; pieces < count && pieces < PIECES_MAX && size > 0; pieces++) {
        ret_pieces[pieces] = iov[pieces];
        if (ret_pieces[pieces].iov_len > size)
            ret_pieces[pieces].iov_len = size;
        size -= ret_pieces[pieces].iov_len;
    }
    return pieces;
}

static size_t total(const struct iovec *iov, int count)
{
    size_t size = 0;
    for (int i = 0; i < count; i++)
        size += iov[i].iov_len;
    return size;
}

static ssize_t faulty_writev(int fd, const struct iovec *iov, int count)
{
    struct iovec pieces[PIECES_MAX];
    size_t size = total(iov, count);
    int error = strike(&call_writev, -1, fd, &size);
    return error != 0 ? fail(error) : real.writev(fd, pieces, shorten(iov, count, size, pieces));
}

static ssize_t faulty_pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    struct iovec pieces[PIECES_MAX];
    size_t size = total(iov, count);
    int error = strike(&call_pwritev, -1, fd, &size);
    return error != 0 ? fail(error) : real.pwritev(fd, pieces, shorten(iov, count, size, pieces), offset);
}

static ssize_t faulty_recv(int fd, void *buffer, size_t size, int flags)
{
    int error = strike(&call_recv, fd, -1, &size);
    return error != 0 ? fail(error) : real.recv(fd, buffer, size, flags);
}

static ssize_t faulty_send(int fd, const void *buffer, size_t size, int flags)
{
    int error = strike(&call_send, -1, fd, &size);
    return error != 0 ? fail(error) : real.send(fd, buffer, size, flags);
}

static ssize_t faulty_sendmsg(int fd, const struct msghdr *message, int flags)
{
    struct iovec pieces[PIECES_MAX];
    size_t size = total(message->msg_iov, (int)message->msg_iovlen);
    int error = strike(&call_sendmsg, -1, fd, &size);
    if (error != 0)
        return fail(error);
    struct msghdr shorter = *message;
    shorter.msg_iovlen = (size_t)shorten(message->msg_iov, (int)message->msg_iovlen, size, pieces);
    shorter.msg_iov = pieces;
    return real.sendmsg(fd, &shorter, flags);
}

static ssize_t faulty_recvmsg(int fd, struct msghdr *message, int flags)
{
    int error = strike(&call_recvmsg, fd, -1, NULL);
    return error != 0 ? fail(error) : real.recvmsg(fd, message, flags);
}

/* Shortened: so many messages. */
static int faulty_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    size_t size = count;
    int error = strike(&call_sendmmsg, -1, fd, &size);
    return error != 0 ? fail(error) : real.sendmmsg(fd, messages, (unsigned)size, flags);
}

static ssize_t faulty_sendfile(int out, int in, off_t *offset, size_t size)
{
    int error = strike(&call_sendfile, in, out, &size);
    return error != 0 ? fail(error) : real.sendfile(out, in, offset, size);
}

static ssize_t faulty_splice(int in, off_t *in_offset, int out, off_t *out_offset, size_t size, unsigned flags)
{
    int error = strike(&call_splice, in, out, &size);
    return error != 0 ? fail(error) : real.splice(in, in_offset, out, out_offset, size, flags);
}

static ssize_t faulty_copy_file_range(int in, off_t *in_offset, int out, off_t *out_offset, size_t size, unsigned flags)
{
    int error = strike(&call_copy_file_range, -1, -1, &size);
    return error != 0 ? fail(error) : real.copy_file_range(in, in_offset, out, out_offset, size, flags);
}

static int faulty_clone_range(int in, off_t in_offset, int out, off_t out_offset, size_t size)
{
    int error = strike(&call_clone_range, -1, -1, NULL);
    return error != 0 ? fail(error) : real.clone_range(in, in_offset, out, out_offset, size);
}

static int faulty_fallocate(int fd, int mode, off_t offset, off_t size)
{
    int error = strike(&call_fallocate, -1, -1, NULL);
    return error != 0 ? fail(error) : real.fallocate(fd, mode, offset, size);
}

static int faulty_ftruncate(int fd, off_t size)
{
    int error = strike(&call_ftruncate, -1, -1, NULL);
    return error != 0 ? fail(error) : real.ftruncate(fd, size);
}

static ssize_t faulty_tee(int in, int out, size_t size, unsigned flags)
{
    int error = strike(&call_tee, in, out, &size);
    return error != 0 ? fail(error) : real.tee(in, out, size, flags);
}

static ssize_t faulty_vmsplice(int fd, const struct iovec *iov, size_t count, unsigned flags)
{
    int error = strike(&call_vmsplice, -1, -1, NULL);
    return error != 0 ? fail(error) : real.vmsplice(fd, iov, count, flags);
}

static int faulty_pipe2(int fds[2], int flags)
{
    int error = strike(&call_pipe2, -1, -1, NULL);
    if (error != 0)
        return fail(error);
    int result = real.pipe2(fds, flags);
    pthread_mutex_lock(&lock);
    if (result == 0 && pipe_count + 2 <= LIVE_MAX) {
        pipes[pipe_count++] = fds[0];
        pipes[pipe_count++] = fds[1];
    }
    pthread_mutex_unlock(&lock);
    return result;
}

static int faulty_fcntl(int fd, int command, long argument)
{
    int error = strike(&call_fcntl, -1, -1, NULL);
    return error != 0 ? fail(error) : real.fcntl(fd, command, argument);
}

static int faulty_ioctl(int fd, unsigned long request, void *argument)
{
    int error = strike(&call_ioctl, -1, -1, NULL);
    return error != 0 ? fail(error) : real.ioctl(fd, request, argument);
}

static int faulty_fstat(int fd, struct stat *status)
{
    int error = strike(&call_fstat, -1, -1, NULL);
    if (error != 0)
        return fail(error);
    int result = real.fstat(fd, status);
    if (result == 0 && fd == fault_block_device)
        status->st_mode = (status->st_mode & ~(mode_t)S_IFMT) | S_IFBLK;
    return result;
}

static int faulty_statx(int directory, const char *path, int flags, unsigned mask, struct statx *status)
{
    int error = strike(&call_statx, -1, -1, NULL);
    return error != 0 ? fail(error) : real.statx(directory, path, flags, mask, status);
}

static int faulty_fstatfs(int fd, struct statfs *status)
{
    int error = strike(&call_fstatfs, -1, -1, NULL);
    return error != 0 ? fail(error) : real.fstatfs(fd, status);
}

static off_t faulty_lseek(int fd, off_t offset, int whence)
{
    int error = strike(&call_lseek, -1, -1, NULL);
    return error != 0 ? fail(error) : real.lseek(fd, offset, whence);
}

static int faulty_readahead(int fd, off_t offset, size_t size)
{
    int error = strike(&call_readahead, -1, -1, NULL);
    return error != 0 ? fail(error) : real.readahead(fd, offset, size);
}

static int faulty_fadvise(int fd, off_t offset, off_t size, int advice)
{
    int error = strike(&call_fadvise, -1, -1, NULL);
    fault_drops += advice == POSIX_FADV_DONTNEED; /* now the scenario may end, and with it this fault */
    return error != 0 ? fail(error) : real.fadvise(fd, offset, size, advice);
}

/* As a page of 2 MiB would lie. Real ones are not made: clearing thousands of them takes longer than all the rest. */
static void *aligned_mapping(size_t size, int protection, int flags)
{
    const size_t large = 2 << 20;
    char *mapping = real.mmap(NULL, size + large, protection, flags, -1, 0);
    if (mapping == MAP_FAILED)
        return mapping;
    size_t lead = (large - (uintptr_t)mapping % large) % large;
    if (lead > 0)
        real.munmap(mapping, lead);
    real.munmap(mapping + lead + size, large - lead);
    return mapping + lead;
}

static void *faulty_mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    int error = strike(&call_mmap, -1, -1, NULL);
    if (error != 0) {
        errno = error;
        return MAP_FAILED;
    }
    void *mapping = fault_huge_pages && flags & MAP_HUGETLB
                        ? aligned_mapping(size, protection, MAP_PRIVATE | MAP_ANONYMOUS)
                        : real.mmap(address, size, protection, flags, fd, offset);
    if (mapping != MAP_FAILED)
        hold(mapping, size);
    return mapping;
}

static int faulty_madvise(void *address, size_t size, int advice)
{
    int error = strike(&call_madvise, -1, -1, NULL);
    if (error == 0 && advice == MADV_HUGEPAGE)
        return 0;
    return error != 0 ? fail(error) : real.madvise(address, size, advice);
}

static int faulty_mincore(void *address, size_t size, unsigned char *answer)
{
    (void)address, (void)size;
    int error = strike(&call_mincore, -1, -1, NULL);
    *answer = fault_huge_pages;
    return error != 0 ? fail(error) : 0;
}

static int faulty_munmap(void *address, size_t size)
{
    int error = strike(&call_munmap, -1, -1, NULL);
    let_go(address, size, "something unmapped that was not mapped so, or twice");
    int result = real.munmap(address, size);
    return error != 0 ? fail(error) : result;
}

static int faulty_close(int fd)
{
    int error = strike(&call_close, -1, -1, NULL);
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < pipe_count; i++)
        if (pipes[i] == fd)
            pipes[i--] = pipes[--pipe_count];
    for (size_t i = 0; i < watched_count; i++)
        if (watched[i].fd == fd)
            watched[i--] = watched[--watched_count];
    pthread_mutex_unlock(&lock);
    int result = real.close(fd);
    if (result < 0 && errno == EBADF)
        note_violation("a descriptor closed that was not open, or twice");
    return error != 0 ? fail(error) : result;
}

static int faulty_socket(int domain, int type, int protocol)
{
    int error = strike(&call_socket, -1, -1, NULL);
    return error != 0 ? fail(error) : real.socket(domain, type, protocol);
}

static int faulty_shutdown(int fd, int how)
{
    int error = strike(&call_shutdown, -1, -1, NULL);
    return error != 0 ? fail(error) : real.shutdown(fd, how);
}

static int faulty_getsockopt(int fd, int level, int name, void *value, socklen_t *size)
{
    static const struct tls_crypto_info info = {.version = TLS_1_3_VERSION, .cipher_type = TLS_CIPHER_AES_GCM_128};
    int error = strike(&call_getsockopt, -1, -1, NULL);
    if (error != 0)
        return fail(error);
    if (fault_tls != 0 && level == SOL_TLS) {
        if (name == TLS_TX_ZEROCOPY_RO)
            memset(value, 0, *size);
        else
            memcpy(value, &info, sizeof info);
        return 0;
    }
    int result = real.getsockopt(fd, level, name, value, size);
    if (result == 0 && fault_tls != 0 && level == IPPROTO_TCP && name == TCP_ULP) {
        memcpy(value, "tls", sizeof "tls");
        *size = sizeof "tls";
    }
    return result;
}

static int faulty_setsockopt(int fd, int level, int name, const void *value, socklen_t size)
{
    int error = strike(&call_setsockopt, -1, -1, NULL);
    if (error == 0 && fault_tls != 0 && level == IPPROTO_TCP && name == TCP_ULP)
        error = ENOTCONN;
    return error != 0 ? fail(error) : real.setsockopt(fd, level, name, value, size);
}

static int faulty_connect(int fd, const struct sockaddr *address, socklen_t size)
{
    int error = strike(&call_connect, -1, -1, NULL);
    if (error == 0 && fd == fault_slow_peer) {
        fault_slow_peer = -1;
        error = EALREADY;
    }
    if (error != 0)
        return fail(error);
    int result = real.connect(fd, address, size);
    if (result < 0 && errno == EINPROGRESS)
        fault_slow_peer = fd;
    return result;
}

static int faulty_getpeername(int fd, struct sockaddr *address, socklen_t *size)
{
    int error = strike(&call_getpeername, -1, -1, NULL);
    return error != 0 ? fail(error) : real.getpeername(fd, address, size);
}

static int faulty_getsockname(int fd, struct sockaddr *address, socklen_t *size)
{
    int error = strike(&call_getsockname, -1, -1, NULL);
    return error != 0 ? fail(error) : real.getsockname(fd, address, size);
}

static int faulty_accept4(int fd, struct sockaddr *address, socklen_t *size, int flags)
{
    int error = strike(&call_accept4, fd, -1, NULL);
    return error != 0 ? fail(error) : real.accept4(fd, address, size, flags);
}

static int faulty_poll(struct pollfd *fds, nfds_t count, int timeout)
{
    int error = strike(&call_poll, -1, -1, NULL);
    if (error != 0)
        return fail(error);
    if (timeout == 0)
        return real.poll(fds, count, 0);
    for (int waited = 0; waited < PATIENCE_MS;) {
        int patience = fault_world() ? 0 : 5;
        int ready = real.poll(fds, count, patience);
        if (ready != 0)
            return ready;
        waited += patience;
        if (timeout > 0 && waited >= timeout)
            return 0;
    }
    give_up("it waits for what does not come");
    return 0;
}

static int faulty_epoll_create1(int flags)
{
    int error = strike(&call_epoll_create1, -1, -1, NULL);
    return error != 0 ? fail(error) : real.epoll_create1(flags);
}

static int faulty_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    int error = strike(&call_epoll_ctl, -1, -1, NULL);
    if (error != 0 && operation != EPOLL_CTL_DEL)
        return fail(error);
    int result = real.epoll_ctl(epoll, operation, fd, event);
    pthread_mutex_lock(&lock);
    if (operation == EPOLL_CTL_ADD && result == 0 && watched_count < sizeof watched / sizeof *watched) {
        watched[watched_count].epoll = epoll;
        watched[watched_count].fd = fd;
        watched[watched_count].event = *event;
        watched[watched_count++].again = false;
    }
    for (size_t i = 0; operation == EPOLL_CTL_DEL && i < watched_count; i++)
        if (watched[i].fd == fd)
            watched[i--] = watched[--watched_count];
    pthread_mutex_unlock(&lock);
    return error != 0 ? fail(error) : result;
}

static int faulty_epoll_wait(int epoll, struct epoll_event *events, int size, int timeout)
{
    int error = strike(&call_epoll_wait, -1, -1, NULL);
    if (error != 0)
        return fail(error);
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < watched_count; i++)
        if (watched[i].epoll == epoll && watched[i].again) {
            watched[i].again = false;
            real.epoll_ctl(epoll, EPOLL_CTL_MOD, watched[i].fd, &watched[i].event);
        }
    pthread_mutex_unlock(&lock);
    for (int waited = 0; waited < PATIENCE_MS;) {
        int patience = fault_world() || waited == timeout ? 0 : 1;
        int count = real.epoll_wait(epoll, events, size, patience);
        if (count != 0 || waited == timeout)
            return count;
        waited += patience;
    }
    give_up("it waits for what does not come");
    return 0;
}

static int faulty_eventfd(unsigned value, int flags)
{
    int error = strike(&call_eventfd, -1, -1, NULL);
    return error != 0 ? fail(error) : real.eventfd(value, flags);
}

static int faulty_open(const char *path, int flags, mode_t mode)
{
    static const char counters[] = "TlsCurrTxSw \t1\nTlsCurrTxDevice \t1\nTlsCurrRxDevice \t1\n";
    int error = strike(&call_open, -1, -1, NULL);
    if (error == 0 && fault_tls != 0 && strcmp(path, "/proc/net/tls_stat") == 0) {
        int fd = fault_tls == FAULT_TLS_WITHOUT_COUNTERS ? fail(ENOENT) : memfd_create("tls_stat", MFD_CLOEXEC);
        if (fd >= 0 && write(fd, counters, sizeof counters - 1) < 0)
            abort();
        return fd;
    }
    return error != 0 ? fail(error) : real.open(path, flags, mode);
}

static int faulty_mkdir(const char *path, mode_t mode)
{
    int error = strike(&call_mkdir, -1, -1, NULL);
    return error != 0 ? fail(error) : real.mkdir(path, mode);
}

static int faulty_rename(const char *from, const char *to)
{
    int error = strike(&call_rename, -1, -1, NULL);
    return error != 0 ? fail(error) : real.rename(from, to);
}

static int faulty_unlink(const char *path)
{
    int error = strike(&call_unlink, -1, -1, NULL);
    return error != 0 ? fail(error) : real.unlink(path);
}

static int faulty_timerfd_create(int clock, int flags)
{
    int error = strike(&call_timerfd_create, -1, -1, NULL);
    return error != 0 ? fail(error) : real.timerfd_create(clock, flags);
}

static int faulty_timerfd_settime(int fd, int flags, const struct itimerspec *value, struct itimerspec *old)
{
    int error = strike(&call_timerfd_settime, -1, -1, NULL);
    return error != 0 ? fail(error) : real.timerfd_settime(fd, flags, value, old);
}

static int faulty_getrlimit(int resource, struct rlimit *limit)
{
    int error = strike(&call_getrlimit, -1, -1, NULL);
    return error != 0 ? fail(error) : real.getrlimit(resource, limit);
}

/* As for a user who is nobody: else nobody would ask for the limit. */
static int faulty_capget(void *header, void *data)
{
    int error = strike(&call_capget, -1, -1, NULL);
    (void)header, (void)data;
    return error != 0 ? fail(error) : 0;
}

static int faulty_sched_getaffinity(pid_t thread, size_t size, cpu_set_t *cpus)
{
    int error = strike(&call_sched_getaffinity, -1, -1, NULL);
    return error != 0 ? fail(error) : real.sched_getaffinity(thread, size, cpus);
}

static int faulty_io_uring_setup(unsigned entries, void *parameters)
{
    int error = strike(&call_io_uring_setup, -1, -1, NULL);
    return error != 0 ? fail(error) : real.io_uring_setup(entries, parameters);
}

static int faulty_io_uring_register(int ring, unsigned operation, const void *argument, unsigned count)
{
    int error = strike(&call_io_uring_register, -1, -1, NULL);
    return error != 0 ? fail(error) : real.io_uring_register(ring, operation, argument, count);
}

/* The world moves while the ring waits. One that waits without end is given time in small pieces. */
static int faulty_io_uring_enter(int ring, unsigned submit, unsigned complete, unsigned flags, const void *argument,
                                 size_t size)
{
    int error = strike(&call_io_uring_enter, -1, -1, NULL);
    if (error != 0)
        return fail(error);
    if (complete == 0)
        return real.io_uring_enter(ring, submit, 0, flags, argument, size);
    int result = real.io_uring_enter(ring, submit, 0, flags, argument, size);
    for (int waited = 0; waited < PATIENCE_MS && result >= 0;) {
        bool moved = fault_world();
        struct __kernel_timespec patience = {.tv_nsec = moved ? 0 : 1000000};
        struct io_uring_getevents_arg timed = {.ts = (uintptr_t)&patience};
        int one = real.io_uring_enter(ring, 0, 1, flags | IORING_ENTER_EXT_ARG, &timed, sizeof timed);
        if (one >= 0 || errno != ETIME)
            return result;
        waited += !moved;
    }
    if (result >= 0)
        give_up("it waits for what does not come");
    return result;
}

static void *faulty_allocate(size_t count, size_t size)
{
    int error = strike(&call_allocate, -1, -1, NULL);
    if (error != 0) {
        errno = error;
        return NULL;
    }
    void *memory = real.allocate(count, size);
    if (memory != NULL)
        hold(memory, 0);
    return memory;
}

void fault_install(void)
{
    table = &sys;
    real = sys;
    /* One that is new in the table and has no wrapper yet stays as it is, and its sites count as not reached. */
    sys.read = faulty_read;
    sys.pread = faulty_pread;
    sys.preadv2 = faulty_preadv2;
    sys.writev = faulty_writev;
    sys.pwritev = faulty_pwritev;
    sys.recv = faulty_recv;
    sys.send = faulty_send;
    sys.sendmsg = faulty_sendmsg;
    sys.recvmsg = faulty_recvmsg;
    sys.sendmmsg = faulty_sendmmsg;
    sys.sendfile = faulty_sendfile;
    sys.splice = faulty_splice;
    sys.copy_file_range = faulty_copy_file_range;
    sys.clone_range = faulty_clone_range;
    sys.fallocate = faulty_fallocate;
    sys.ftruncate = faulty_ftruncate;
    sys.tee = faulty_tee;
    sys.vmsplice = faulty_vmsplice;
    sys.pipe2 = faulty_pipe2;
    sys.fcntl = faulty_fcntl;
    sys.ioctl = faulty_ioctl;
    sys.fstat = faulty_fstat;
    sys.statx = faulty_statx;
    sys.fstatfs = faulty_fstatfs;
    sys.lseek = faulty_lseek;
    sys.readahead = faulty_readahead;
    sys.fadvise = faulty_fadvise;
    sys.mmap = faulty_mmap;
    sys.madvise = faulty_madvise;
    sys.mincore = faulty_mincore;
    sys.munmap = faulty_munmap;
    sys.close = faulty_close;
    sys.socket = faulty_socket;
    sys.shutdown = faulty_shutdown;
    sys.getsockopt = faulty_getsockopt;
    sys.setsockopt = faulty_setsockopt;
    sys.connect = faulty_connect;
    sys.getpeername = faulty_getpeername;
    sys.getsockname = faulty_getsockname;
    sys.accept4 = faulty_accept4;
    sys.poll = faulty_poll;
    sys.epoll_create1 = faulty_epoll_create1;
    sys.epoll_ctl = faulty_epoll_ctl;
    sys.epoll_wait = faulty_epoll_wait;
    sys.eventfd = faulty_eventfd;
    sys.open = faulty_open;
    sys.mkdir = faulty_mkdir;
    sys.rename = faulty_rename;
    sys.unlink = faulty_unlink;
    sys.timerfd_create = faulty_timerfd_create;
    sys.timerfd_settime = faulty_timerfd_settime;
    sys.getrlimit = faulty_getrlimit;
    sys.capget = faulty_capget;
    sys.sched_getaffinity = faulty_sched_getaffinity;
    sys.io_uring_setup = faulty_io_uring_setup;
    sys.io_uring_register = faulty_io_uring_register;
    sys.io_uring_enter = faulty_io_uring_enter;
    sys.allocate = faulty_allocate;
}
