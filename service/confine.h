/* SPDX-License-Identifier: MIT
 *
 * Giving up what a worker does not need, so that taking it over gains little:
 *
 *   no_new_privs   set-user-id programs gain nothing
 *   capabilities   all dropped but CAP_DAC_READ_SEARCH (and CAP_DAC_OVERRIDE when asked), which decide which files can
 * be read: a server started as root goes on reading what it could. Nothing happens when not root Landlock       files:
 * only reading, and only beneath the given directories. TCP: no bind, no connect (Linux 6.7). Signals and abstract Unix
 * sockets of others: out of reach (Linux 6.12). Descriptors that are already open are not affected: logs go on seccomp
 * a list of system calls that are allowed
 *
 * None of this can be undone. What the kernel lacks is left out, and the report says so.
 *
 * Call it while the process has one thread: Landlock and capabilities hold for the calling thread and for those that
 * it makes later. Helper threads are made after it, which CONFINE_THREADS permits.
 *
 * Not possible afterwards: resolving names, loading character sets or time zones, running programs, opening files
 * elsewhere
 * (/dev/null, /etc/localtime, /proc). Do that before: tzset(), for example.
 */
#ifndef SLUICE_SERVICE_CONFINE_H
#define SLUICE_SERVICE_CONFINE_H

#include "base/failure.h"
#include <stdbool.h>
#include <stddef.h>

/* System calls beyond the base group: memory, time, reading, writing, polling, files beneath a directory, pipes,
 * sendfile, splice, timers, and what glibc needs of its own accord. */
enum confine_group {
    CONFINE_ACCEPT = 1 << 0,      /* accept4 and what one does with an accepted socket */
    CONFINE_CONNECT = 1 << 1,     /* socket, connect; Landlock then permits TCP connect, too */
    CONFINE_THREADS = 1 << 2,     /* making threads (never processes) */
    CONFINE_WATCH_FILES = 1 << 3, /* inotify */
    CONFINE_WRITE_FILES = 1 << 4, /* ftruncate, fallocate, fsync, copy_file_range, rename, unlink, ... */
};

struct confine_options {
    unsigned groups;             /* of confine_group */
    const int *read_directories; /* descriptors (O_PATH will do) of the directories beneath which files may be read */
    size_t read_directory_count;
    const char *read_anywhere; /* why files may be read anywhere, beside these directories: for the report; or NULL */
    const char *const *system_calls; /* further names, NULL-terminated; or NULL. An unknown name is -EINVAL */
    bool keep_dac_override;          /* keep CAP_DAC_OVERRIDE: the worker writes files, as root */
    bool keep_net_admin; /* keep CAP_NET_ADMIN: it chooses a congestion control that the host permits to root only */
    bool without_landlock, without_seccomp, without_capabilities; /* for an operator who has to */
};

#define CONFINE_REPORT_LINES 12

/* What is confined and what is not, one line each: "Landlock (ABI 6): files: reading beneath 1 directory; ..." */
struct confine_report {
    bool no_new_privs, capabilities, landlock, seccomp; /* in force */
    int landlock_abi;                                   /* 0: the kernel has none */
    unsigned line_count;
    char lines[CONFINE_REPORT_LINES][200];
    bool lacks[CONFINE_REPORT_LINES]; /* the line says what is not confined */
};

/* Confine this process. Returns 0, also when the kernel lacks some of it (see the report, which may be NULL); or
 * -EBUSY: the process has other threads, which would stay unconfined; -EINVAL: an unknown system call; another negative
 * errno when the kernel has a mechanism but refused it. The process may be partly confined then: end it. */
int confine_worker(const struct confine_options *options, struct confine_report *ret_report, struct failure *failure);

/* The same for program ("sluice serve"), with a refusal said, and of the report: */
enum confine_saying {
    CONFINE_SAY_NOTHING,
    CONFINE_SAY_LACKS, /* what is not confined because the kernel cannot, or the configuration is against it */
    CONFINE_SAY_ALL,
};
struct log;
int confine_worker_saying(const struct confine_options *options, const char *program, enum confine_saying saying,
                          struct log *log);

#endif
