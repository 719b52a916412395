/* SPDX-License-Identifier: MIT */
#include "entry.h"
#include "attributes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/text.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

/* After so many bytes of one file a copier looks whether it is to stop, and progress moves. */
#define TURN (16u << 20)
#define COMPARE_SIZE (1u << 20)

void complain(struct copier *copier, const struct place *place, const char *name, enum side side, const char *what,
              int code)
{
    CLEANUP_FREE char *path = place_path(place, name, side);
    const char *remedy = "";
    if (code == -ENOSPC || code == -EDQUOT) {
        atomic_store(copier->full, true);
        remedy = ". Make room and copy again; with --update what is complete is not copied twice";
    } else if (code == -EMFILE || code == -ENFILE) {
        remedy = ". Raise the limit on open descriptors (ulimit -n)";
    } else if (code == -EROFS) {
        atomic_store(copier->full, true);
        remedy = ". The file system is mounted read-only";
    }
    report_failure(copier->report, "cannot %s %s: %s (%s)%s", what, path != NULL ? path : "?", text_errno_meaning(code),
                   text_errno_name(code), remedy);
}

static void complain_of(struct copier *copier, const struct spot *spot, enum side side, const char *what, int code)
{
    complain(copier, spot->place, side == SOURCE ? spot->source_name : spot->target_name, side, what, code);
}

static bool stopped(const struct copier *copier)
{
    return atomic_load_explicit(copier->stop, memory_order_relaxed) ||
           atomic_load_explicit(copier->full, memory_order_relaxed);
}

void temporary_name(char *buffer, const char *name)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789";
    unsigned char random[6];
    size_t kept = min_size(strlen(name), NAME_MAX - 8);
    if (kept < strlen(name)) /* not in the middle of a character: some file systems insist on UTF-8 */
        while (kept > 0 && ((unsigned char)name[kept] & 0xc0) == 0x80)
            kept--;
    if (getrandom(random, sizeof random, GRND_NONBLOCK) != (ssize_t)sizeof random)
        for (size_t i = 0; i < sizeof random; i++)
            random[i] = (unsigned char)rand();
    buffer[0] = '.';
    memcpy(buffer + 1, name, kept);
    buffer[kept + 1] = '.';
    for (size_t i = 0; i < sizeof random; i++)
        buffer[kept + 2 + i] = letters[random[i] % (sizeof letters - 1)];
    buffer[kept + 2 + sizeof random] = '\0';
}

void copier_free(struct copier *copier)
{
    free(copier->compared[0]);
    free(copier->compared[1]);
    if (copier->has_clock)
        close_fd(copier->clock);
}

/* ---- Looking ---------------------------------------------------------------------------------------------------- */

/* Not following, not waiting for a FIFO's writer, and leaving the access time alone where that is permitted: it spares
 * the source's disk a write for each file. */
static int open_source(struct copier *copier, const struct spot *spot)
{
    const int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    int fd = -1;
    if (!copier->leaves_times_refused) {
        fd = openat(spot->source_fd, spot->source_name, flags | O_NOATIME);
        if (fd >= 0 || errno != EPERM)
            return fd < 0 ? -errno : fd;
    }
    fd = openat(spot->source_fd, spot->source_name, flags);
    if (fd < 0)
        return -errno;
    copier->leaves_times_refused = true;
    return fd;
}

static const char *kind_of(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
        return "file";
    case S_IFDIR:
        return "directory";
    case S_IFLNK:
        return "symbolic link";
    case S_IFIFO:
        return "FIFO";
    case S_IFSOCK:
        return "socket";
    case S_IFBLK:
        return "block device";
    case S_IFCHR:
        return "character device";
    default:
        return "file of an unknown kind";
    }
}

static bool older(struct timespec a, struct timespec b)
{
    return a.tv_sec != b.tv_sec ? a.tv_sec < b.tv_sec : a.tv_nsec < b.tv_nsec;
}

/* Put in the file's place, the link would lead to itself, and the content be gone. */
static bool leads_to(const struct spot *spot, const struct item *item)
{
    struct stat there;
    return S_ISLNK(item->status.st_mode) && fstatat(spot->source_fd, spot->source_name, &there, 0) == 0 &&
           there.st_dev == item->other.st_dev && there.st_ino == item->other.st_ino;
}

/* Removed at once where it cannot be made without a name. */
static int open_nameless(int directory)
{
    char name[TEMPORARY_NAME_SIZE];
    int fd = openat(directory, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0)
        return fd;
    temporary_name(name, "times");
    fd = openat(directory, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd >= 0)
        unlinkat(directory, name, 0);
    return fd;
}

/* No file system keeps times coarser than FAT does. */
#define COARSEST_SECONDS 2

/* The source's time as the target's file system has kept it: to the second (ext3, NFS, some of FUSE), to two (FAT), to
 * 10 ms (exFAT). No call tells which, so it is tried, where the two times are so near each other that it matters. */
static struct timespec as_kept(struct copier *copier, const struct spot *spot, struct timespec source,
                               struct timespec target)
{
    if (!older(target, source) || source.tv_sec - target.tv_sec > COARSEST_SECONDS)
        return source;
    if (copier->has_clock && copier->clock_device != spot->target->device) {
        close_fd(copier->clock);
        copier->has_clock = false;
    }
    if (!copier->has_clock) {
        copier->clock = open_nameless(spot->target->fd);
        copier->clock_device = spot->target->device;
        copier->has_clock = copier->clock >= 0;
    }
    struct stat status;
    const struct timespec times[2] = {source, source};
    if (!copier->has_clock || futimens(copier->clock, times) < 0 || fstat(copier->clock, &status) < 0)
        return source;
    return status.st_mtim;
}

static enum outcome examine_target(struct copier *copier, const struct spot *spot, struct item *item)
{
    const struct copy_settings *settings = copier->settings;
    struct stat *other = &item->other;
    if (spot->target->made)
        return OUTCOME_DONE;
    if (fstatat(spot->target->fd, spot->target_name, other, AT_SYMLINK_NOFOLLOW) < 0) {
        if (errno == ENOENT)
            return OUTCOME_DONE;
        complain_of(copier, spot, TARGET, "look at", -errno);
        return OUTCOME_FAILED;
    }
    item->in_the_way = true;
    const char *objection = NULL;
    struct timespec time = item->status.st_mtim;
    if (settings->update)
        time = as_kept(copier, spot, time, other->st_mtim);
    if (other->st_dev == item->status.st_dev && other->st_ino == item->status.st_ino)
        objection = "they are the same file";
    else if (settings->no_clobber || (settings->update && !older(other->st_mtim, time))) {
        item->there = settings->update && S_ISREG(item->status.st_mode) && S_ISREG(other->st_mode) &&
                      other->st_size == item->status.st_size && !older(time, other->st_mtim) &&
                      !older(other->st_mtim, time);
        return OUTCOME_SKIPPED;
    } else if (S_ISDIR(other->st_mode))
        objection = "a directory is in the way";
    else if (leads_to(spot, item))
        objection = "the symbolic link leads to this very file";
    else if (S_ISREG(item->status.st_mode) && !S_ISREG(other->st_mode) && !S_ISLNK(other->st_mode))
        objection = kind_of(other->st_mode);
    if (objection == NULL)
        return OUTCOME_DONE;
    CLEANUP_FREE char *source = place_path(spot->place, spot->source_name, SOURCE);
    CLEANUP_FREE char *target = place_path(spot->place, spot->target_name, TARGET);
    if (objection == kind_of(other->st_mode))
        report_failure(copier->report, "%s → %s refused: a %s is in the way, and would be replaced. Remove it first.",
                       source, target, objection);
    else
        report_failure(copier->report, "%s → %s refused: %s", source, target, objection);
    return OUTCOME_FAILED;
}

enum outcome entry_examine(struct copier *copier, const struct spot *spot, unsigned char d_type, struct item *ret_item)
{
    struct item item = {.fd = -1};
    /* What readdir said may be outdated by now: O_NOFOLLOW and O_NONBLOCK keep the open harmless then. A device or a
     * FIFO is never opened on purpose. */
    if (d_type != DT_REG && fstatat(spot->source_fd, spot->source_name, &item.status, AT_SYMLINK_NOFOLLOW) < 0) {
        complain_of(copier, spot, SOURCE, "look at", -errno);
        return OUTCOME_FAILED;
    }
    if (d_type == DT_REG || S_ISREG(item.status.st_mode)) {
        item.fd = open_source(copier, spot);
        if (item.fd < 0 || fstat(item.fd, &item.status) < 0) {
            complain_of(copier, spot, SOURCE, "read", item.fd < 0 ? item.fd : -errno);
            close_fd(item.fd);
            return OUTCOME_FAILED;
        }
        if (!S_ISREG(item.status.st_mode)) {
            close_fd(item.fd);
            complain_of(copier, spot, SOURCE, "copy what was replaced meanwhile:", -ESTALE);
            return OUTCOME_FAILED;
        }
    }
    enum outcome outcome = examine_target(copier, spot, &item);
    if (outcome != OUTCOME_DONE)
        item.fd = close_fd(item.fd);
    *ret_item = item;
    return outcome;
}

/* ---- Names ------------------------------------------------------------------------------------------------------ */

/* A target that is being made. */
struct making {
    enum { MAKING_NOTHING, MAKING_FINAL, MAKING_UNNAMED, MAKING_TEMPORARY } how;
    int fd;
    char temporary[TEMPORARY_NAME_SIZE];
};

static const char *name_of(const struct making *making, const struct spot *spot)
{
    return making->how == MAKING_FINAL ? spot->target_name : making->temporary;
}

static void discard(struct making *making, const struct spot *spot)
{
    if (making->how == MAKING_FINAL || making->how == MAKING_TEMPORARY)
        unlinkat(spot->target->fd, name_of(making, spot), 0);
    making->how = MAKING_NOTHING;
    making->fd = close_fd(making->fd);
}

/* Call make with temporary names until it finds a free one. */
static int make_temporary(struct making *making, const struct spot *spot,
                          int (*make)(int directory, const char *name, const void *what), const void *what)
{
    for (unsigned tries = 0; tries < 100; tries++) {
        temporary_name(making->temporary, spot->target_name);
        int result = make(spot->target->fd, making->temporary, what);
        if (result != -EEXIST) {
            if (result >= 0)
                making->how = MAKING_TEMPORARY;
            return result;
        }
    }
    return -EEXIST;
}

/* What is made gets its name: the last step, after which nothing is set any more. */
static int publish(struct making *making, const struct spot *spot, bool in_the_way, bool no_clobber)
{
    int directory = spot->target->fd;
    int result = 0;
    if (making->how == MAKING_UNNAMED) {
        result = linkat(making->fd, "", directory, spot->target_name, AT_EMPTY_PATH);
        if (result < 0 && errno == ENOENT) { /* needs a capability before Linux 6.10 */
            char path[32];
            snprintf(path, sizeof path, "/proc/self/fd/%d", making->fd);
            result = linkat(AT_FDCWD, path, directory, spot->target_name, AT_SYMLINK_FOLLOW);
        }
        /* Somebody made the name meanwhile: to be replaced as if it had been there before. */
        if (result < 0 && errno == EEXIST && !no_clobber) {
            char path[32];
            snprintf(path, sizeof path, "/proc/self/fd/%d", making->fd);
            temporary_name(making->temporary, spot->target_name);
            result = linkat(AT_FDCWD, path, directory, making->temporary, AT_SYMLINK_FOLLOW);
            if (result == 0)
                making->how = MAKING_TEMPORARY;
        }
        if (result < 0)
            return -errno;
    }
    if (making->how == MAKING_TEMPORARY) {
        if (!in_the_way && no_clobber) {
            result = renameat2(directory, making->temporary, directory, spot->target_name, RENAME_NOREPLACE);
            if (result < 0 && errno == EINVAL) /* a file system that knows no flags */
                result = renameat(directory, making->temporary, directory, spot->target_name);
        } else {
            result = renameat(directory, making->temporary, directory, spot->target_name);
        }
        if (result < 0)
            return -errno;
    }
    making->how = MAKING_NOTHING;
    making->fd = close_fd(making->fd);
    return 0;
}

/* ---- Content ---------------------------------------------------------------------------------------------------- */

static int make_file(int directory, const char *name, const void *what)
{
    int fd = openat(directory, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, *(const mode_t *)what);
    return fd < 0 ? -errno : fd;
}

/* Nobody else may open what is incomplete: a staged directory is closed to others, and a file without a name cannot
 * be found. A temporary name can, so that file is the user's own until the end. */
static int open_target(struct making *making, const struct spot *spot, const struct item *item, mode_t *mode)
{
    struct target *target = spot->target;
    *mode = item->status.st_mode & 0777;
    if (target->staged) {
        making->fd = make_file(target->fd, spot->target_name, mode);
        if (making->fd >= 0)
            making->how = MAKING_FINAL;
        return making->fd;
    }
    if (!item->in_the_way && !atomic_load_explicit(&target->named, memory_order_relaxed)) {
        making->fd = openat(target->fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, *mode);
        if (making->fd >= 0) {
            making->how = MAKING_UNNAMED;
            return making->fd;
        }
        if (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL && errno != ENOSYS)
            return -errno;
        atomic_store(&target->named, true);
    }
    *mode = 0600;
    making->fd = make_temporary(making, spot, make_file, mode);
    return making->fd;
}

struct moving {
    struct copier *copier;
    struct sluice_end *source, *sink;
    struct sluice_receipt receipt;
    struct sluice_error error;
};

static void end_cleanup(struct sluice_end **end)
{
    sluice_end_close(*end);
}

static int wait_for(const struct sluice_waits *waits)
{
    struct pollfd fds[SLUICE_WAITS_MAX];
    for (unsigned i = 0; i < waits->count; i++)
        fds[i] = (struct pollfd){.fd = waits->wait[i].fd,
                                 .events = waits->wait[i].kind == SLUICE_WAIT_READABLE ? POLLIN : POLLOUT};
    return poll(fds, waits->count, 100) < 0 && errno != EINTR ? -errno : 0;
}

/* In turns, so that it can be stopped and watched. */
static int move_in_turns(struct moving *moving, const struct sluice_transfer_options *options)
{
    struct tally *tally = &moving->copier->report->tally;
    struct sluice_transfer *transfer;
    struct sluice_waits waits;
    uint64_t counted = 0;
    int result = sluice_transfer_new(options, &transfer, &moving->error);
    if (result < 0)
        return result;
    do {
        result = sluice_transfer_step(transfer, &waits);
        const struct sluice_receipt *receipt = sluice_transfer_receipt(transfer, 0);
        tally_add(&tally->bytes, receipt->bytes - counted);
        counted = receipt->bytes;
        if (result == SLUICE_STEP_WAIT)
            result = wait_for(&waits) < 0 ? -errno : SLUICE_STEP_WAIT;
        if (result > 0 && stopped(moving->copier))
            result = -ECANCELED;
    } while (result > 0);
    sluice_receipt_add(&moving->receipt, sluice_transfer_receipt(transfer, 0));
    moving->error = *sluice_transfer_error(transfer);
    sluice_transfer_free(transfer);
    return result;
}

/* -ENODATA: the source ends before. */
static int move_file(struct moving *moving, uint64_t length, bool sparse, enum sluice_route route)
{
    struct sluice_segment segment = {
        .kind = SLUICE_SEGMENT_FILE, .flags = SLUICE_SEGMENT_SIZE_KNOWN, .end = moving->source, .length = length};
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = &segment,
                                              .segment_count = 1,
                                              .sinks = &moving->sink,
                                              .sink_count = 1,
                                              .route = route,
                                              .flags = sparse ? SLUICE_TRANSFER_SPARSE : 0,
                                              .turn = TURN};
    if (length > TURN)
        return move_in_turns(moving, &options);
    struct sluice_receipt receipt = {0};
    int result = sluice_transfer_run(&options, &receipt, &moving->error);
    sluice_receipt_add(&moving->receipt, &receipt);
    tally_add(&moving->copier->report->tally.bytes, receipt.bytes);
    return result;
}

/* Where no extents were shared, each small file would be offered to reflink and copy_file_range again, and the kernel
 * be asked what became of it, for half a microsecond less of copying than by read and write, at best. */
#define SMALL (64u << 10)

static enum sluice_route choose_route(const struct copier *copier, const struct spot *spot, const struct stat *status)
{
    enum sluice_route route = copier->settings->route;
    bool plain =
        copier->plain && copier->plain_source == status->st_dev && copier->plain_target == spot->target->device;
    return route == SLUICE_ROUTE_AUTO && plain && status->st_size <= SMALL ? SLUICE_ROUTE_COPY : route;
}

static void learn(struct copier *copier, const struct spot *spot, const struct stat *status,
                  const struct sluice_receipt *receipt)
{
    if (copier->settings->route != SLUICE_ROUTE_AUTO || receipt->bytes == 0 || receipt->copied < receipt->bytes)
        return;
    copier->plain = true;
    copier->plain_source = status->st_dev;
    copier->plain_target = spot->target->device;
}

static int move_content(struct moving *moving, const struct spot *spot, const struct item *item, int target)
{
    uint64_t size = (uint64_t)item->status.st_size;
    __attribute__((cleanup(end_cleanup))) struct sluice_end *source = NULL, *sink = NULL;
    if (size == 0) {
        char byte; /* files of /proc say 0 and have content */
        ssize_t got = pread(item->fd, &byte, 1, 0);
        if (got <= 0)
            return got < 0 ? -errno : 0;
    }
    int result = sluice_end_open_file(item->fd, size, 0, &source);
    if (result == 0)
        result = sluice_end_open_file(target, 0, 0, &sink);
    if (result < 0)
        return result;
    moving->source = source;
    moving->sink = sink;
    if (size == 0)
        return move_file(moving, SLUICE_UNTIL_END, false, moving->copier->settings->route);
    bool sparse = (uint64_t)item->status.st_blocks * 512 < size;
    return move_file(moving, size, sparse, choose_route(moving->copier, spot, &item->status));
}

/* ---- Verifying -------------------------------------------------------------------------------------------------- */

/* A second descriptor that reads from the device and not from the page cache, or -1 where there is none such. */
static int open_direct(int fd)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int direct = open(path, O_RDONLY | O_DIRECT | O_NOATIME | O_CLOEXEC);
    return direct < 0 && errno == EPERM ? open(path, O_RDONLY | O_DIRECT | O_CLOEXEC) : direct;
}

struct reading {
    int fd, direct;
    bool cached; /* some of it may have come from the page cache */
};

static ssize_t read_block(struct reading *reading, char *buffer, off_t offset)
{
    size_t have = 0;
    while (have < COMPARE_SIZE) {
        /* Beyond a short count the offset is not aligned any more: that is the end, or for the other descriptor. */
        bool direct = reading->direct >= 0 && have == 0;
        ssize_t got =
            pread(direct ? reading->direct : reading->fd, buffer + have, COMPARE_SIZE - have, offset + (off_t)have);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && direct) {
            reading->direct = close_fd(reading->direct);
            continue;
        }
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        reading->cached |= !direct;
        have += (size_t)got;
    }
    return (ssize_t)have;
}

static int compare(struct copier *copier, struct reading *a, struct reading *b, uint64_t *ret_at)
{
    uint64_t at = 0;
    for (;;) {
        ssize_t first = read_block(a, copier->compared[0], (off_t)at);
        ssize_t second = read_block(b, copier->compared[1], (off_t)at);
        if (first < 0 || second < 0)
            return (int)(first < 0 ? first : second);
        if (first != second || memcmp(copier->compared[0], copier->compared[1], (size_t)first) != 0) {
            *ret_at = at;
            return 1;
        }
        at += (uint64_t)first;
        if (first < (ssize_t)COMPARE_SIZE || stopped(copier))
            break;
    }
    *ret_at = at;
    return 0;
}

/* Returns 0; 1 when the contents differ near *ret_at; or a negative errno. */
static int verify(struct copier *copier, int source, int target, uint64_t *ret_at)
{
    for (int i = 0; i < 2; i++)
        if (copier->compared[i] == NULL && posix_memalign((void **)&copier->compared[i], 4096, COMPARE_SIZE) != 0)
            return -ENOMEM;
    if (fdatasync(target) < 0) /* what is not on the device cannot be read from there */
        return -errno;
    posix_fadvise(target, 0, 0, POSIX_FADV_DONTNEED);
    struct reading a = {.fd = source, .direct = open_direct(source)};
    struct reading b = {.fd = target, .direct = open_direct(target)};
    int result = compare(copier, &a, &b, ret_at);
    close_fd(a.direct);
    close_fd(b.direct);
    if (result == 0) {
        tally_add(&copier->report->tally.verified, *ret_at);
        if (a.cached || b.cached)
            tally_add(&copier->report->tally.verified_cached, *ret_at);
    }
    return result;
}

/* ---- A regular file --------------------------------------------------------------------------------------------- */

static bool changed(const struct stat *before, const struct stat *now)
{
    return before->st_size != now->st_size || before->st_mtim.tv_sec != now->st_mtim.tv_sec ||
           before->st_mtim.tv_nsec != now->st_mtim.tv_nsec;
}

static void say_not_moved(struct copier *copier, const struct spot *spot, const struct moving *moving, int code)
{
    CLEANUP_FREE char *source = place_path(spot->place, spot->source_name, SOURCE);
    CLEANUP_FREE char *target = place_path(spot->place, spot->target_name, TARGET);
    const struct sluice_error *error = &moving->error;
    const char *route = sluice_route_name(error->code < 0 ? error->route : copier->settings->route);
    if (code == -EOPNOTSUPP && copier->settings->route != SLUICE_ROUTE_AUTO) {
        report_failure(copier->report, "%s %s → %s refused: %s (%s). To copy it otherwise: %s.",
                       sluice_route_name(copier->settings->route), source, target,
                       error->reason != NULL ? error->reason : text_errno_meaning(code), text_errno_name(code),
                       copier->settings->reflink_required ? "--reflink=auto" : "--route auto");
        return;
    }
    char size[TEXT_SIZE_MAX];
    text_format_size(moving->receipt.bytes, size, sizeof size);
    bool full = code == -ENOSPC || code == -EDQUOT;
    if (full)
        atomic_store(copier->full, true);
    report_failure(copier->report, "%s → %s failed after %s by %s: %s (%s)%s", source, target, size, route,
                   text_errno_meaning(code), text_errno_name(code),
                   full ? ". Make room and copy again; with --update what is complete is not copied twice" : "");
}

/* Said with --verbose only, as on most file systems the best route is refused to every file; once for each cause. */
static void say_fallbacks(struct copier *copier, const struct spot *spot, const struct sluice_receipt *receipt)
{
    uint64_t kept = min_u64(receipt->fallback_count, SLUICE_RECEIPT_FALLBACKS);
    for (uint64_t i = 0; i < kept; i++) {
        const struct sluice_fallback *fallback = &receipt->fallbacks[i];
        if (!report_first(copier->report, (int)(fallback->from * 1000 + fallback->to), fallback->error))
            continue;
        CLEANUP_FREE char *source = place_path(spot->place, spot->source_name, SOURCE);
        CLEANUP_FREE char *target = place_path(spot->place, spot->target_name, TARGET);
        report_note(
            copier->report, "%s %s → %s refused: %s (%s). Continuing with %s.", sluice_route_name(fallback->from),
            source, target, fallback->reason != NULL ? fallback->reason : text_errno_meaning(fallback->error),
            fallback->error != 0 ? text_errno_name(fallback->error) : "policy", sluice_route_name(fallback->to));
    }
}

static void say_copied(struct copier *copier, const struct spot *spot, const struct sluice_receipt *receipt)
{
    if (!copier->settings->verbose)
        return;
    CLEANUP_FREE char *source = place_path(spot->place, spot->source_name, SOURCE);
    CLEANUP_FREE char *target = place_path(spot->place, spot->target_name, TARGET);
    if (copier->settings->debug && receipt != NULL) {
        char text[1024];
        sluice_receipt_format(receipt, text, sizeof text);
        report_line(copier->report, "%s → %s\n  %s", source, target, text);
    } else {
        report_line(copier->report, "%s → %s", source, target);
    }
}

/* What a file just made here has, unless it must be asked for. */
static int at_hand(const struct copier *copier, const struct spot *spot, const struct attributed *made, mode_t mode,
                   struct attributes_at_hand *ret)
{
    *ret = (struct attributes_at_hand){
        .uid = copier->settings->uid, .gid = spot->target->gid, .mode = mode, .inherits_acl = spot->target->gives_acl};
    if (!spot->target->look)
        return 0;
    struct stat status;
    if ((made->name == NULL ? fstat(made->fd, &status) : fstatat(made->fd, made->name, &status, AT_SYMLINK_NOFOLLOW)) <
        0)
        return -errno;
    ret->uid = status.st_uid;
    ret->gid = status.st_gid;
    ret->mode = status.st_mode & 07777;
    return 0;
}

static int give_attributes(struct copier *copier, const struct spot *spot, const struct item *item,
                           const struct attributed *source, const struct attributed *made, mode_t mode)
{
    struct attributes_at_hand has;
    const char *what = "look at";
    int result = at_hand(copier, spot, made, mode, &has);
    if (result == 0)
        result = attributes_apply(copier->report, source, made, &item->status, &has, &what);
    if (result != 0)
        complain_of(copier, spot, TARGET, what, result);
    return result > 0 ? 0 : result;
}

/* Everything up to the name. Says what is wrong. */
static enum outcome fill(struct copier *copier, const struct spot *spot, const struct item *item, struct moving *moving,
                         const struct making *making, mode_t mode)
{
    int result = move_content(moving, spot, item, making->fd);
    if (result == -ECANCELED)
        return OUTCOME_STOPPED;
    struct stat now;
    if (fstat(item->fd, &now) < 0) {
        complain_of(copier, spot, SOURCE, "look at", -errno);
        return OUTCOME_FAILED;
    }
    /* Files of sysfs have a size, and end before it; they have not changed. */
    if ((result == 0 || result == -ENODATA) && changed(&item->status, &now)) {
        CLEANUP_FREE char *path = place_path(spot->place, spot->source_name, SOURCE);
        char before[TEXT_SIZE_MAX], after[TEXT_SIZE_MAX];
        text_format_size((uint64_t)item->status.st_size, before, sizeof before);
        text_format_size((uint64_t)now.st_size, after, sizeof after);
        report_failure(copier->report, "%s was changed while it was copied (%s before, %s after); no copy is kept",
                       path, before, after);
        return OUTCOME_FAILED;
    }
    if (result < 0 && result != -ENODATA) {
        say_not_moved(copier, spot, moving, result);
        return OUTCOME_FAILED;
    }
    if (copier->settings->verify) {
        uint64_t at = 0;
        result = verify(copier, item->fd, making->fd, &at);
        if (result < 0)
            complain_of(copier, spot, TARGET, "verify", result);
        if (result == 1) {
            CLEANUP_FREE char *path = place_path(spot->place, spot->target_name, TARGET);
            report_failure(copier->report,
                           "%s differs from its source in the 1 MiB at byte %llu: the copy is not kept. Suspect the "
                           "device, its cable, or the memory.",
                           path, (unsigned long long)at);
        }
        if (result != 0)
            return OUTCOME_FAILED;
    }
    struct attributed source = {.fd = item->fd}, made = {.fd = making->fd};
    if (give_attributes(copier, spot, item, &source, &made, mode) < 0)
        return OUTCOME_FAILED;
    if (copier->settings->sync && fsync(making->fd) < 0) {
        complain_of(copier, spot, TARGET, "write to the device", -errno);
        return OUTCOME_FAILED;
    }
    return stopped(copier) && copier->settings->verify ? OUTCOME_STOPPED : OUTCOME_DONE;
}

static enum outcome copy_regular(struct copier *copier, const struct spot *spot, struct item *item)
{
    struct making making = {.fd = -1};
    struct moving moving = {.copier = copier};
    mode_t mode;
    int result = open_target(&making, spot, item, &mode);
    if (result < 0) {
        complain_of(copier, spot, TARGET, "make", result);
        return OUTCOME_FAILED;
    }
    enum outcome outcome = fill(copier, spot, item, &moving, &making, mode);
    if (outcome == OUTCOME_DONE) {
        result = publish(&making, spot, item->in_the_way, copier->settings->no_clobber);
        if (result == -EEXIST && copier->settings->no_clobber) {
            outcome = OUTCOME_SKIPPED;
        } else if (result < 0) {
            complain_of(copier, spot, TARGET, "make", result);
            outcome = OUTCOME_FAILED;
        }
    }
    sluice_receipt_add(&copier->sum, &moving.receipt);
    if (outcome == OUTCOME_DONE) {
        learn(copier, spot, &item->status, &moving.receipt);
        tally_add(&copier->report->tally.files, 1);
        if (copier->settings->verbose) {
            say_fallbacks(copier, spot, &moving.receipt);
            say_copied(copier, spot, &moving.receipt);
        }
    } else {
        discard(&making, spot);
        tally_add(&copier->report->tally.removed, outcome != OUTCOME_SKIPPED);
        tally_add(&copier->report->tally.skipped, outcome == OUTCOME_SKIPPED);
    }
    return outcome;
}

/* ---- What has no content ---------------------------------------------------------------------------------------- */

static int make_symlink(int directory, const char *name, const void *what)
{
    return symlinkat(what, directory, name) < 0 ? -errno : 0;
}

static int make_special(int directory, const char *name, const void *what)
{
    const struct stat *status = what;
    return mknodat(directory, name, (status->st_mode & S_IFMT) | 0600, status->st_rdev) < 0 ? -errno : 0;
}

/* NULL, and errno, where it cannot be read. The caller frees it. */
static char *read_link(const struct spot *spot)
{
    for (size_t size = 256;; size *= 2) {
        CLEANUP_FREE char *text = malloc(size);
        if (text == NULL)
            return NULL;
        ssize_t length = readlinkat(spot->source_fd, spot->source_name, text, size);
        if (length < 0)
            return NULL;
        if ((size_t)length < size) {
            text[length] = '\0';
            return TAKE_POINTER(text);
        }
    }
}

static bool refused_kind(struct copier *copier, const struct spot *spot, const struct item *item)
{
    if (!S_ISSOCK(item->status.st_mode) && (item->status.st_mode & S_IFMT) != 0)
        return false;
    CLEANUP_FREE char *path = place_path(spot->place, spot->source_name, SOURCE);
    report_failure(copier->report, "%s is not copied: a socket is of use only to the process that listens on it", path);
    return true;
}

static void say_not_made(struct copier *copier, const struct spot *spot, const struct item *item, int result)
{
    bool device = S_ISCHR(item->status.st_mode) || S_ISBLK(item->status.st_mode);
    if (result != -EPERM || !device) {
        complain_of(copier, spot, TARGET, "make", result);
        return;
    }
    CLEANUP_FREE char *path = place_path(spot->place, spot->source_name, SOURCE);
    report_failure(copier->report, "%s is not copied: making a %s takes root (CAP_MKNOD)", path,
                   kind_of(item->status.st_mode));
}

/* Symbolic links, FIFOs, devices. */
static enum outcome copy_special(struct copier *copier, const struct spot *spot, const struct item *item)
{
    struct making making = {.fd = -1};
    CLEANUP_FREE char *text = NULL;
    bool symlink = S_ISLNK(item->status.st_mode);
    const void *what = &item->status;
    if (refused_kind(copier, spot, item))
        return OUTCOME_FAILED;
    if (symlink) {
        text = read_link(spot);
        if (text == NULL) {
            complain_of(copier, spot, SOURCE, "read the symbolic link", -errno);
            return OUTCOME_FAILED;
        }
        what = text;
    }
    int (*make)(int, const char *, const void *) = symlink ? make_symlink : make_special;
    int result;
    if (spot->target->staged) {
        result = make(spot->target->fd, spot->target_name, what);
        if (result == 0)
            making.how = MAKING_FINAL;
    } else {
        result = make_temporary(&making, spot, make, what);
    }
    if (result < 0) {
        say_not_made(copier, spot, item, result);
        return OUTCOME_FAILED;
    }
    struct attributed source = {.fd = spot->source_fd, .name = spot->source_name};
    struct attributed made = {.fd = spot->target->fd, .name = name_of(&making, spot)};
    enum outcome outcome = OUTCOME_DONE;
    if (give_attributes(copier, spot, item, &source, &made, 0600) < 0) {
        outcome = OUTCOME_FAILED;
    } else {
        result = publish(&making, spot, item->in_the_way, copier->settings->no_clobber);
        if (result == -EEXIST && copier->settings->no_clobber) {
            outcome = OUTCOME_SKIPPED;
            tally_add(&copier->report->tally.skipped, 1);
        } else if (result < 0) {
            complain_of(copier, spot, TARGET, "make", result);
            outcome = OUTCOME_FAILED;
        }
    }
    if (outcome != OUTCOME_DONE) {
        discard(&making, spot);
        return outcome;
    }
    tally_add(symlink ? &copier->report->tally.symlinks : &copier->report->tally.specials, 1);
    say_copied(copier, spot, NULL);
    return OUTCOME_DONE;
}

enum outcome entry_copy(struct copier *copier, const struct spot *spot, struct item *item)
{
    enum outcome outcome =
        S_ISREG(item->status.st_mode) ? copy_regular(copier, spot, item) : copy_special(copier, spot, item);
    item->fd = close_fd(item->fd);
    return outcome;
}

/* ---- Hard links ------------------------------------------------------------------------------------------------- */

struct first {
    int fd;
    const char *name;
};

static int make_link(int directory, const char *name, const void *what)
{
    const struct first *first = what;
    return linkat(first->fd, first->name, directory, name, 0) < 0 ? -errno : 0;
}

/* 1: it is one already. */
static int link_to(const struct spot *spot, const struct item *item, const struct first *first)
{
    struct stat status;
    if (!item->in_the_way)
        return make_link(spot->target->fd, spot->target_name, first);
    /* Renaming one of two links of the same file to the other does nothing at all. */
    if (fstatat(first->fd, first->name, &status, AT_SYMLINK_NOFOLLOW) == 0 && status.st_dev == item->other.st_dev &&
        status.st_ino == item->other.st_ino)
        return 1;
    struct making making = {.fd = -1};
    int result = make_temporary(&making, spot, make_link, first);
    if (result == 0)
        result = publish(&making, spot, true, false);
    if (result < 0)
        discard(&making, spot);
    return result;
}

enum outcome entry_link(struct copier *copier, const struct spot *spot, const struct item *item, int first_fd,
                        const char *first_name)
{
    struct first first = {.fd = first_fd, .name = first_name};
    int result = link_to(spot, item, &first);
    if (result == -EMLINK || result == -EPERM || result == -EXDEV || result == -EOPNOTSUPP || result == -ENOSYS) {
        if (report_first(copier->report, 'l', result))
            report_note(copier->report, "hard links are not kept, the files are copied each: %s (%s)",
                        text_errno_meaning(result), text_errno_name(result));
        return OUTCOME_SKIPPED;
    }
    if (result < 0) {
        complain_of(copier, spot, TARGET, "link", result);
        return OUTCOME_FAILED;
    }
    if (result > 0 && item->there)
        return OUTCOME_SKIPPED;
    tally_add(&copier->report->tally.hard_links, 1);
    say_copied(copier, spot, NULL);
    return OUTCOME_DONE;
}
