/* SPDX-License-Identifier: MIT */
#include "end.h"
#include "../base/clock.h"
#include "egress.h"
#include "loans.h"
#include "sys.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

/* How long a page that was seen in memory is taken to be there still. Asking costs 0.6 us (preadv2 with RWF_NOWAIT),
 * a tenth of what a small response costs; a page read a moment ago is the last to be evicted. */
#define RESIDENCY_MS 100
#define PAGE 4096u
/* A look at a page that takes longer has not found it, but brought it. */
#define LOOK_NS 20000

static _Atomic uint64_t next_serial = 1;

/* What TCP alone can answer tells that it is TCP, and whether it has TLS. */
static int socket_kind(int fd, uint8_t *ret_kind, struct tls_facts *ret_tls)
{
    int type, domain;
    socklen_t size = sizeof domain;
    if (sys.getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) < 0)
        return -errno;
    if ((domain == AF_INET || domain == AF_INET6) && tls_find(fd, ret_tls) == 0) {
        *ret_kind = SLUICE_END_TCP;
        return 0;
    }
    size = sizeof type;
    if (sys.getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0)
        return -errno;
    if (type == SOCK_STREAM && (domain == AF_INET || domain == AF_INET6))
        *ret_kind = SLUICE_END_TCP;
    else if (type == SOCK_STREAM && domain == AF_UNIX)
        *ret_kind = SLUICE_END_UNIX_STREAM;
    else if (type == SOCK_DGRAM)
        *ret_kind = SLUICE_END_DATAGRAM;
    else
        *ret_kind = SLUICE_END_OTHER;
    return 0;
}

static int file_size(int fd, const struct stat *status, uint64_t *ret_size)
{
    if (S_ISREG(status->st_mode)) {
        *ret_size = (uint64_t)status->st_size;
        return 0;
    }
    off_t size = sys.lseek(fd, 0, SEEK_END); /* a block device: fstat says 0 */
    if (size < 0)
        return -errno;
    *ret_size = (uint64_t)size;
    return 0;
}

static int learn(struct sluice_end *end)
{
    struct stat status;
    int flags = sys.fcntl(end->fd, F_GETFL, 0);
    if (flags < 0)
        return -errno;
    if (flags & O_PATH)
        return -EBADF;
    end->append = flags & O_APPEND;
    end->direct = flags & O_DIRECT;
    end->past_cache = end->direct || end->flags & SLUICE_END_DIRECT;
    if (sys.fstat(end->fd, &status) < 0)
        return -errno;
    if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode))
        end->past_cache = false; /* of a pipe, O_DIRECT means packets */
    switch (status.st_mode & S_IFMT) {
    case S_IFDIR:
        return -EISDIR;
    case S_IFREG:
        end->kind = SLUICE_END_FILE;
        end->file.device = status.st_dev;
        end->file.device_known = true;
        return file_size(end->fd, &status, &end->file.size);
    case S_IFBLK:
        end->kind = SLUICE_END_BLOCK;
        return file_size(end->fd, &status, &end->file.size);
    case S_IFIFO:
        end->kind = SLUICE_END_PIPE;
        return 0;
    case S_IFSOCK:
        return socket_kind(end->fd, &end->kind, &end->socket.tls);
    default:
        end->kind = SLUICE_END_OTHER;
        return 0;
    }
}

static struct sluice_end end_of(int fd, unsigned flags, enum sluice_end_kind kind)
{
    return (struct sluice_end){
        .fd = fd,
        .flags = (uint8_t)flags,
        .kind = (uint8_t)kind,
        .serial = atomic_fetch_add_explicit(&next_serial, 1, memory_order_relaxed),
    };
}

/* A server has one for each idle connection, so sockets get no room for what is known of files. */
static int make_end(const struct sluice_end *end, struct sluice_end **ret_end)
{
    size_t size = end_is_socket(end) ? offsetof(struct sluice_end, socket) + sizeof end->socket : sizeof *end;
    struct sluice_end *made = sys.allocate(1, size);
    if (made == NULL)
        return -ENOMEM;
    memcpy(made, end, size);
    *ret_end = made;
    return 0;
}

/* The kernel is to read what it is asked for and nothing else: what its readahead brings (up to a window, after every
 * look whether a page is there) nobody has asked for, so nobody would drop it. A refusal costs just that. */
static void read_no_further(const struct sluice_end *end)
{
    if (end->flags & SLUICE_END_DROP_BEHIND && end_is_file(end))
        sys.fadvise(end->fd, 0, 0, POSIX_FADV_RANDOM);
}

int sluice_end_open(int fd, unsigned flags, struct sluice_end **ret_end)
{
    struct sluice_end end = end_of(fd, flags, SLUICE_END_OTHER);
    int result = learn(&end);
    if (result < 0)
        return result;
    read_no_further(&end);
    return make_end(&end, ret_end);
}

int sluice_end_open_file(int fd, uint64_t size, unsigned flags, struct sluice_end **ret_end)
{
    struct sluice_end end = end_of(fd, flags, SLUICE_END_FILE);
    end.file.size = size;
    end.past_cache = flags & SLUICE_END_DIRECT;
    read_no_further(&end);
    return make_end(&end, ret_end);
}

int sluice_end_open_memory(void *memory, size_t size, struct sluice_end **ret_end)
{
    struct sluice_end end = end_of(-1, 0, SLUICE_END_MEMORY);
    end.memory.data = memory;
    end.memory.size = size;
    return make_end(&end, ret_end);
}

void end_free(struct sluice_end *end)
{
    if (end_is_file(end) && end->file.mapping != NULL)
        sys.munmap((void *)end->file.mapping, end->file.mapped);
    if (end_is_file(end) && end->file.twin_asked && end->file.twin >= 0)
        sys.close(end->file.twin);
    if (end->flags & SLUICE_END_OWN_FD)
        sys.close(end->fd);
    if (end_is_socket(end))
        lending_free(end->socket.lending);
    free(end);
}

void sluice_end_close(struct sluice_end *end)
{
    if (end == NULL || (end_has_lent(end) && end_close_lending(end)))
        return;
    end_free(end);
}

int sluice_end_fd(const struct sluice_end *end)
{
    return end->fd;
}

enum sluice_end_kind sluice_end_kind(const struct sluice_end *end)
{
    return (enum sluice_end_kind)end->kind;
}

const char *sluice_end_kind_name(enum sluice_end_kind kind)
{
    static const char *const names[SLUICE_END_KIND_COUNT] = {
        [SLUICE_END_FILE] = "file",        [SLUICE_END_BLOCK] = "block device", [SLUICE_END_PIPE] = "pipe",
        [SLUICE_END_TCP] = "tcp",          [SLUICE_END_UNIX_STREAM] = "unix",   [SLUICE_END_DATAGRAM] = "datagram",
        [SLUICE_END_OTHER] = "descriptor", [SLUICE_END_MEMORY] = "memory",
    };
    return (unsigned)kind < SLUICE_END_KIND_COUNT ? names[kind] : "?";
}

int sluice_end_refresh(struct sluice_end *end)
{
    if (end->kind != SLUICE_END_TCP)
        return 0;
    int result = tls_find(end->fd, &end->socket.tls);
    if (result == 0)
        end->memory_plan.until = 0; /* by which memory may have been lent */
    return result;
}

int sluice_end_egress(struct sluice_end *end, struct sluice_egress *ret_egress)
{
    if (end->kind != SLUICE_END_TCP && end->kind != SLUICE_END_DATAGRAM)
        return -ENOTSOCK;
    if (!end->socket.egress_asked) {
        int result = egress_find(end->fd, &end->socket.egress);
        if (result == -ENOTCONN)
            return result;
        end->socket.egress_asked = true;
    }
    if (!end->socket.egress.known)
        return -ENODATA;
    *ret_egress = end->socket.egress;
    return 0;
}

int end_size_now(struct sluice_end *end, uint64_t turn, uint64_t *calls, uint64_t *ret_size)
{
    struct file_facts *file = &end->file;
    if (turn == 0 || file->checked_turn != turn) {
        ++*calls;
        /* lseek takes 0.18 us where fstat takes 0.44, but it moves the file position: only where nobody can see it. A
         * virtual file, of size 0, may refuse to be sought in (EINVAL). */
        if (end->kind == SLUICE_END_BLOCK || (end->flags & SLUICE_END_OWN_FD && file->size > 0)) {
            off_t size = sys.lseek(end->fd, 0, SEEK_END);
            if (size < 0)
                return -errno;
            file->checked_size = (uint64_t)size;
        } else {
            struct stat status;
            if (sys.fstat(end->fd, &status) < 0)
                return -errno;
            file->checked_size = (uint64_t)status.st_size;
        }
        file->checked_turn = turn;
    }
    *ret_size = file->checked_size;
    return 0;
}

int page_look(int fd, uint64_t offset, uint64_t *calls)
{
    char byte;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    for (;;) {
        ++*calls;
        if (sys.preadv2(fd, &iov, 1, (off_t)offset, RWF_NOWAIT) >= 0)
            return 1;
        if (errno != EINTR)
            return errno == EAGAIN ? 0 : -errno;
    }
}

void end_note_absent(struct sluice_end *end, uint64_t offset)
{
    end->file.absent = offset;
    end->file.absent_known = true;
}

void end_note_resident(struct sluice_end *end, uint64_t offset, uint64_t length, uint64_t now)
{
    struct file_facts *file = &end->file;
    if (file->absent >= offset && file->absent - offset < length)
        file->absent_known = false;
    bool fresh = now - file->resident_at < RESIDENCY_MS && file->resident_to > file->resident_from;
    if (fresh && offset <= file->resident_to && offset + length >= file->resident_from) {
        if (offset < file->resident_from)
            file->resident_from = offset;
        if (offset + length > file->resident_to)
            file->resident_to = offset + length;
        return; /* keeps the age of the oldest part */
    }
    file->resident_from = offset;
    file->resident_to = offset + length;
    file->resident_at = now;
}

/* RWF_NOWAIT does not keep the kernel from reading a page, only from waiting for it. So where the disk answers before
 * the look at the page (on a virtual machine of two cores 4 % of the looks of six programs at once, and at times all of
 * one's), that finds what it has brought, one page of a piece of which no other is there. Time tells: a look takes 0.6
 * us, that disk 50. cachestat (Linux 6.5) would bring nothing, but answers only those who may write the file. */
static bool is_found(int fd, uint64_t offset, uint64_t *calls)
{
    uint64_t started = clock_ns(CLOCK_MONOTONIC);
    int found = page_look(fd, offset, calls);
    return found < 0 || (found > 0 && clock_ns(CLOCK_MONOTONIC) - started < LOOK_NS);
}

static uint64_t probe(struct sluice_end *end, uint64_t offset, uint64_t length, bool warm, uint64_t *calls)
{
    uint64_t last = offset + length - 1;
    if (warm && is_found(end->fd, last, calls))
        return length;
    uint64_t resident = 0;
    while (resident < length && is_found(end->fd, offset + resident, calls)) {
        uint64_t step = RESIDENCY_STEP - (offset + resident) % RESIDENCY_STEP;
        resident += length - resident < step ? length - resident : step;
    }
    /* The steps looked at their first pages; the last page of all is in no step's beginning. */
    if (resident == length && last / PAGE != offset / PAGE && !is_found(end->fd, last, calls))
        resident = last - last % RESIDENCY_STEP > offset ? last - last % RESIDENCY_STEP - offset : 0;
    return resident;
}

uint64_t end_resident(struct sluice_end *end, uint64_t offset, uint64_t length, bool warm, uint64_t now,
                      uint64_t *calls)
{
    struct file_facts *file = &end->file;
    uint64_t known = 0;
    if (length == 0 || end->past_cache)
        return length;
    if (now - file->resident_at < RESIDENCY_MS && offset >= file->resident_from && offset < file->resident_to)
        known = file->resident_to - offset;
    if (known >= length)
        return length;
    if (file->absent_known && file->absent >= offset + known && file->absent - offset < length)
        length = file->absent - offset;
    if (known >= length)
        return known;
    uint64_t resident = probe(end, offset + known, length - known, warm, calls);
    if (resident > 0)
        end_note_resident(end, offset + known, resident, now);
    if (known + resident < length)
        end_note_absent(end, offset + known + resident);
    return known + resident;
}

const char *end_mapping(struct sluice_end *end, uint64_t *calls)
{
    struct file_facts *file = &end->file;
    if (file->mapping == NULL && file->size > 0) {
        ++*calls;
        void *mapping = sys.mmap(NULL, file->size, PROT_READ, MAP_SHARED, end->fd, 0);
        if (mapping == MAP_FAILED)
            return NULL;
        file->mapping = mapping;
        file->mapped = file->size;
    }
    return file->mapping;
}

static void ask_file_system(struct sluice_end *end, uint64_t *calls)
{
    struct file_facts *file = &end->file;
    if (end->kind == SLUICE_END_BLOCK) {
        file->page_cache = file->bypassed = true;
    } else if (!file->file_system_asked) {
        struct statfs status;
        ++*calls;
        if (sys.fstatfs(end->fd, &status) == 0) {
            switch ((unsigned)status.f_type) {
            case EXT4_SUPER_MAGIC: /* ext2 and ext3 share it */
            case XFS_SUPER_MAGIC:
            case F2FS_SUPER_MAGIC:
                file->bypassed = true;
                /* fall through */
            case BTRFS_SUPER_MAGIC: /* writes what has checksums, and reads what is compressed, through the cache */
            case TMPFS_MAGIC:
            case SQUASHFS_MAGIC:
            case ISOFS_SUPER_MAGIC:
            case MSDOS_SUPER_MAGIC:
                file->page_cache = true;
            }
        }
        file->file_system_asked = true;
    }
}

bool end_has_page_cache(struct sluice_end *end, uint64_t *calls)
{
    if (end->direct)
        return false; /* O_DIRECT: the kernel reads into fresh pages and splices those (fs/splice.c, copy_splice_read)
                       */
    ask_file_system(end, calls);
    return end->file.page_cache;
}

/* ---- O_DIRECT ----------------------------------------------------------------------------------------------- */

/* What O_DIRECT asks for where the kernel does not tell (statx does since Linux 6.1): a multiple of every block there
 * is. */
#define DIRECT_DEFAULT 4096u

/* The same file with its other descriptor: O_DIRECT if the end's has none, and the other way round. It has a file
 * position of its own, and durability and appending as the end's. */
static int open_twin(struct sluice_end *end, uint64_t *calls)
{
    char path[40];
    *calls += 2;
    int flags = sys.fcntl(end->fd, F_GETFL, 0);
    if (flags < 0)
        return -errno;
    flags = (flags & (O_ACCMODE | O_APPEND | O_SYNC | O_DSYNC)) | (end->direct ? 0 : O_DIRECT) | O_CLOEXEC;
    snprintf(path, sizeof path, "/proc/self/fd/%d", end->fd);
    int fd = sys.open(path, flags, 0);
    return fd < 0 ? -errno : fd;
}

static int twin(struct sluice_end *end, uint64_t *calls)
{
    if (!end->file.twin_asked) {
        end->file.twin = open_twin(end, calls);
        end->file.twin_asked = true;
    }
    return end->file.twin;
}

int end_buffered_fd(struct sluice_end *end, uint64_t *calls)
{
    int fd = end->direct ? twin(end, calls) : end->fd;
    return fd < 0 ? end->fd : fd;
}

int end_direct_fd(struct sluice_end *end, uint64_t *calls)
{
    struct file_facts *file = &end->file;
    if (file->direct_place == 0) {
        struct statx status = {0};
        ++*calls;
        file->direct_place = file->direct_memory = DIRECT_DEFAULT;
        if (sys.statx(end->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 && status.stx_mask & STATX_DIOALIGN) {
            file->direct_told = true;
            file->direct_memory = status.stx_dio_mem_align;
            file->direct_place = status.stx_dio_offset_align;
        }
    }
    if (file->direct_place == 0)
        return -EOPNOTSUPP; /* the kernel's word that this file has none */
    return end->direct ? end->fd : twin(end, calls);
}

bool end_bypasses_cache(struct sluice_end *end, uint64_t *calls)
{
    ask_file_system(end, calls);
    return end->file.bypassed && end->file.direct_told;
}

int sluice_end_allocate(struct sluice_end *end, uint64_t offset, uint64_t length)
{
    int result;
    if (end->kind != SLUICE_END_FILE || offset > INT64_MAX || length > INT64_MAX - offset)
        return -EINVAL;
    do
        result = sys.fallocate(end->fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : 0;
}

void end_reset(struct sluice_end *end, uint64_t *calls)
{
    const struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    const struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
    *calls += 2;
    sys.setsockopt(end->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once); /* in case connect fails */
    sys.connect(end->fd, &nowhere, sizeof nowhere);
}

bool end_paces(struct sluice_end *end, uint64_t *calls)
{
    struct socket_facts *socket = &end->socket;
    if (!socket->paces_asked) {
        char name[16] = "";
        socklen_t size = sizeof name;
        ++*calls;
        socket->paces =
            sys.getsockopt(end->fd, IPPROTO_TCP, TCP_CONGESTION, name, &size) == 0 && strncmp(name, "bbr", 3) == 0;
        socket->paces_asked = true;
    }
    return socket->paces;
}

bool end_segments(struct sluice_end *end, uint64_t *calls)
{
    struct socket_facts *socket = &end->socket;
    if (!socket->segments_asked) {
        int size = 0;
        socklen_t length = sizeof size;
        ++*calls;
        socket->segments = sys.getsockopt(end->fd, SOL_UDP, UDP_SEGMENT, &size, &length) == 0;
        socket->segments_asked = true;
    }
    return socket->segments;
}

void end_remember_refusal(struct sluice_end *sink, const struct sluice_end *source, enum sluice_route route)
{
    for (int i = 0; i < END_REFUSALS; i++) {
        if (sink->refusals[i].peer == source->serial) {
            sink->refusals[i].routes |= 1u << route;
            return;
        }
    }
    memmove(&sink->refusals[1], &sink->refusals[0], sizeof sink->refusals[0] * (END_REFUSALS - 1));
    sink->refusals[0] = (struct refusal){.peer = source->serial, .routes = 1u << route};
}

bool end_refused(const struct sluice_end *sink, const struct sluice_end *source, enum sluice_route route)
{
    for (int i = 0; i < END_REFUSALS; i++)
        if (sink->refusals[i].peer == source->serial)
            return sink->refusals[i].routes & (1u << route);
    return false;
}
