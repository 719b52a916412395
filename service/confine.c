/* SPDX-License-Identifier: MIT */
#include "service/confine.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "service/log.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/netlink.h>
#include <linux/sockios.h>
#include <sched.h>
#include <seccomp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

__attribute__((format(printf, 2, 3))) static void report_line(struct confine_report *report, const char *format, ...)
{
    if (report->line_count == CONFINE_REPORT_LINES)
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(report->lines[report->line_count++], sizeof report->lines[0], format, arguments);
    va_end(arguments);
}

/* The line before says what is not confined, though somebody may think so. */
static void report_lack(struct confine_report *report)
{
    report->lacks[report->line_count - 1] = true;
}

/* ---- Landlock ------------------------------------------------------------------------------------------------- */

/* The ABI, written out: Debian 12's headers know version 2, and what a kernel refuses is decided when we run. */
#define LANDLOCK_VERSION_QUERY 1u /* flag of landlock_create_ruleset */
#define LANDLOCK_PATH_BENEATH 1   /* type of rule */

struct landlock_ruleset {
    uint64_t file_access, net_access, scoped; /* older kernels take fewer of these: give the size that fits */
};

struct landlock_beneath {
    uint64_t access;
    int32_t directory;
} __attribute__((packed));

#define FILE_EXECUTE (UINT64_C(1) << 0)
#define FILE_READ (UINT64_C(1) << 2)
#define FILE_READ_DIRECTORY (UINT64_C(1) << 3)
#define FILE_ABI_1 ((UINT64_C(1) << 13) - 1) /* execute, write, read, read directory, remove, make ... */
#define FILE_ABI_2 (UINT64_C(1) << 13)       /* refer: rename and link across directories */
#define FILE_ABI_3 (UINT64_C(1) << 14)       /* truncate */
#define FILE_ABI_5 (UINT64_C(1) << 15)       /* ioctl on devices */
#define NET_BIND_TCP (UINT64_C(1) << 0)
#define NET_CONNECT_TCP (UINT64_C(1) << 1)
#define SCOPE_ABSTRACT_UNIX (UINT64_C(1) << 0)
#define SCOPE_SIGNAL (UINT64_C(1) << 1)

static int landlock_refused(const char *step, int code, struct failure *failure)
{
    return failure_set(failure, -code, "confining by Landlock failed in %s: %s (%s); leave it out to go on without",
                       step, text_errno_meaning(code), text_errno_name(code));
}

static int allow_beneath(int ruleset, int directory, uint64_t access, struct failure *failure)
{
    struct landlock_beneath rule = {.access = access, .directory = directory};
    if (syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_PATH_BENEATH, &rule, 0) < 0)
        return landlock_refused("landlock_add_rule", errno, failure);
    return 0;
}

static int confine_landlock(const struct confine_options *options, struct confine_report *report,
                            struct failure *failure)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, (size_t)0, LANDLOCK_VERSION_QUERY);
    if (abi < 0) {
        report_line(report, "Landlock: none: %s. Files and TCP are confined by seccomp and file permissions only",
                    errno == EOPNOTSUPP ? "the kernel has it, but it is switched off (boot with lsm=landlock,...)"
                    : errno == ENOSYS   ? "the kernel has none (Linux 5.13 or newer, CONFIG_SECURITY_LANDLOCK)"
                                        : text_errno_meaning(errno));
        report_lack(report);
        return 0;
    }
    struct landlock_ruleset rules = {.file_access = FILE_ABI_1};
    size_t size = sizeof rules.file_access;
    if (abi >= 2)
        rules.file_access |= FILE_ABI_2;
    if (abi >= 3)
        rules.file_access |= FILE_ABI_3;
    if (abi >= 4) {
        rules.net_access = NET_BIND_TCP;
        if ((options->groups & CONFINE_CONNECT) == 0)
            rules.net_access |= NET_CONNECT_TCP;
        size += sizeof rules.net_access;
    }
    if (abi >= 5)
        rules.file_access |= FILE_ABI_5;
    if (abi >= 6) {
        rules.scoped = SCOPE_SIGNAL | ((options->groups & CONFINE_CONNECT) == 0 ? SCOPE_ABSTRACT_UNIX : 0);
        size += sizeof rules.scoped;
    }
    CLEANUP_FD int ruleset = (int)syscall(SYS_landlock_create_ruleset, &rules, size, 0u);
    if (ruleset < 0)
        return landlock_refused("landlock_create_ruleset", errno, failure);

    uint64_t granted = FILE_READ | FILE_READ_DIRECTORY;
    if ((options->groups & CONFINE_WRITE_FILES) != 0)
        granted = rules.file_access & ~FILE_EXECUTE;
    for (size_t i = 0; i < options->read_directory_count; i++) {
        int result = allow_beneath(ruleset, options->read_directories[i], granted, failure);
        if (result < 0)
            return result;
    }
    if (options->read_anywhere != NULL) {
        CLEANUP_FD int top = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
        int result = top >= 0 ? allow_beneath(ruleset, top, FILE_READ | FILE_READ_DIRECTORY, failure) : 0;
        if (result < 0)
            return result;
    }
    if (SANITIZED) {
        /* Sanitizers read /proc/self/maps when they report, and /proc/self/task when they look for leaks. */
        CLEANUP_FD int proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
        int result = proc >= 0 ? allow_beneath(ruleset, proc, FILE_READ | FILE_READ_DIRECTORY, failure) : 0;
        if (result < 0)
            return result;
    }
    if (syscall(SYS_landlock_restrict_self, ruleset, 0u) < 0)
        return landlock_refused("landlock_restrict_self", errno, failure);
    report->landlock = true;
    report->landlock_abi = (int)abi;
    if (options->read_anywhere != NULL) {
        report_line(report, "Landlock (ABI %ld): files: reading only, but anywhere: %.120s", abi,
                    options->read_anywhere);
        report_lack(report);
    } else {
        report_line(report, "Landlock (ABI %ld): files: %s beneath %zu director%s", abi,
                    (options->groups & CONFINE_WRITE_FILES) != 0 ? "reading and writing" : "reading only",
                    options->read_directory_count, options->read_directory_count == 1 ? "y" : "ies");
    }
    if (abi >= 4)
        report_line(report, "Landlock: TCP: %s",
                    (options->groups & CONFINE_CONNECT) != 0 ? "no bind" : "no bind, no connect");
    if (abi < 4) {
        report_line(report, "Landlock: TCP: not confined (ABI 4, Linux 6.7)");
        report_lack(report);
    }
    if (abi < 6) {
        report_line(report, "Landlock: signals and abstract sockets: not confined (ABI 6, Linux 6.12)");
        report_lack(report);
    }
    return 0;
}

/* ---- Capabilities --------------------------------------------------------------------------------------------- */

/* By the system call: libcap would be one more library for forty lines. */
static int confine_capabilities(const struct confine_options *options, struct confine_report *report,
                                struct failure *failure)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{0}};
    if (syscall(SYS_capget, &header, data) < 0)
        return failure_set(failure, -errno, "capget: %s (%s)", text_errno_meaning(errno), text_errno_name(errno));
    if ((data[0].permitted | data[1].permitted) == 0) {
        report->capabilities = true;
        report_line(report, "capabilities: none to drop");
        return 0;
    }
    /* All are below 32. With the first two, root reads what root could read; without, only what user 0 may by the
     * modes. */
    uint32_t keep = 1u << CAP_DAC_READ_SEARCH;
    if (options->keep_dac_override)
        keep |= 1u << CAP_DAC_OVERRIDE;
    if (options->keep_net_admin)
        keep |= 1u << CAP_NET_ADMIN;
    /* The bounding set first: that takes CAP_SETPCAP. It matters for programs only, which no_new_privs and seccomp keep
     * from gaining anything, so a refusal is no failure. */
    for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++)
        if (capability >= 32 || (keep & 1u << capability) == 0)
            prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    keep &= data[0].permitted;
    data[0] = (struct __user_cap_data_struct){.effective = keep, .permitted = keep};
    data[1] = (struct __user_cap_data_struct){0};
    if (syscall(SYS_capset, &header, data) < 0)
        return failure_set(failure, -errno, "dropping capabilities failed: %s (%s)", text_errno_meaning(errno),
                           text_errno_name(errno));
    report->capabilities = true;
    report_line(report, "capabilities: all dropped%s%s%s%s", keep != 0 ? " but " : "",
                (keep & 1u << CAP_DAC_READ_SEARCH) != 0 ? "CAP_DAC_READ_SEARCH" : "",
                (keep & 1u << CAP_DAC_OVERRIDE) != 0 ? ", CAP_DAC_OVERRIDE" : "",
                (keep & 1u << CAP_NET_ADMIN) != 0 ? ", CAP_NET_ADMIN (for --congestion)" : "");
    return 0;
}

/* ---- seccomp -------------------------------------------------------------------------------------------------- */

/* No rule on these looks at an argument. Since Linux 5.11 the kernel notes, per filter, which numbers are allowed
 * whatever their arguments, and passes them by one bit test without running the filter; one rule on an argument of read
 * or sendfile would take that away from the hottest calls. The pointers and descriptors in arguments could not be
 * judged by a filter anyway. */
static const char *const base_calls[] = {
    /* bytes */
    "read", "readv", "pread64", "preadv", "preadv2", "write", "writev", "pwrite64", "pwritev", "pwritev2", "sendfile",
    "splice", "tee", "vmsplice", "sendto", "sendmsg", "sendmmsg", "recvfrom", "recvmsg", "recvmmsg", "shutdown",
    "getsockopt", "setsockopt", "getsockname", "getpeername", "readahead", "fadvise64", "lseek",
    /* descriptors; O_PATH and read access are Landlock's to judge */
    "openat", "openat2", "open", "close", "close_range", "dup", "dup2", "dup3", "fcntl", "pipe", "pipe2", "fstat",
    "newfstatat", "stat", "lstat", "statx", "fstatfs", "statfs", "getdents64", "readlinkat", "readlink", "faccessat",
    "faccessat2", "access", "getcwd",
    /* waiting */
    "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect6",
    "eventfd2", "signalfd4", "timerfd_create", "timerfd_settime", "timerfd_gettime", "nanosleep", "clock_nanosleep",
    /* a ring is made, and told what it may do, before; the second registers memory with it */
    "io_uring_enter", "io_uring_register",
    /* time, where the vDSO hands over to the kernel (a clocksource that it cannot read) */
    "clock_gettime", "clock_getres", "gettimeofday", "time",
    /* memory: malloc, arenas, big stacks, MAP_NORESERVE tables */
    "brk", "mmap", "munmap", "mremap", "mprotect", "madvise", "mincore", "mlock", "munlock", "mlock2", "membarrier",
    /* locks, and what glibc does when threads start and end */
    "futex", "set_robust_list", "rseq", "sched_yield", "sched_getaffinity", "getcpu", "getrandom",
    /* signals: handlers, abort, raise; a signal to others is Landlock's to judge, and tgkill cannot leave the uid */
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigpending", "rt_sigtimedwait", "sigaltstack", "tgkill",
    "restart_syscall",
    /* who am I, and how much have I used */
    "getpid", "gettid", "getppid", "getuid", "geteuid", "getgid", "getegid", "getrusage", "sysinfo", "uname",
    "getrlimit", "prlimit64", "capget", "times",
    /* the end */
    "exit", "exit_group", NULL};

static const char *const accept_calls[] = {"accept4", "accept", NULL};
static const char *const connect_calls[] = {"socket", "socketpair", "connect", NULL};
static const char *const watch_calls[] = {"inotify_init1", "inotify_add_watch", "inotify_rm_watch", NULL};
static const char *const write_calls[] = {"ftruncate",       "fallocate",  "fsync",     "fdatasync", "sync_file_range",
                                          "copy_file_range", "renameat",   "renameat2", "unlinkat",  "mkdirat",
                                          "linkat",          "fchmod",     "fchown",    "utimensat", "fsetxattr",
                                          "fgetxattr",       "flistxattr", NULL};

/* Nothing in a worker ever does these by mistake: they say that somebody else is at work, and the process ends. */
static const char *const deadly_calls[] = {"execve",
                                           "execveat",
                                           "fork",
                                           "vfork",
                                           "ptrace",
                                           "process_vm_readv",
                                           "process_vm_writev",
                                           "bpf",
                                           "userfaultfd",
                                           "init_module",
                                           "finit_module",
                                           "delete_module",
                                           "kexec_load",
                                           "kexec_file_load",
                                           "mount",
                                           "umount2",
                                           "move_mount",
                                           "pivot_root",
                                           "chroot",
                                           "setns",
                                           "unshare",
                                           "reboot",
                                           "swapon",
                                           "keyctl",
                                           "add_key",
                                           "request_key",
                                           "setuid",
                                           "setgid",
                                           "setreuid",
                                           "setregid",
                                           "setresuid",
                                           "setresgid",
                                           "setgroups",
                                           "perf_event_open",
                                           "open_by_handle_at",
                                           "personality",
                                           "iopl",
                                           "ioperm",
                                           NULL};

/* What is asked about descriptors and network devices. The list matters: TIOCSTI types into the operator's terminal. */
static const uint32_t base_ioctls[] = {FIONREAD,    FIONBIO,     TIOCOUTQ,     TCGETS,       TIOCGWINSZ,
                                       SIOCETHTOOL, SIOCGIFNAME, SIOCGIFFLAGS, FS_IOC_FIEMAP};

/* Every name resolves, or the list is wrong; that a name is not a system call of this machine (open on arm64) is fine.
 */
static int add_rules(scmp_filter_ctx filter, uint32_t action, const char *const *names, struct failure *failure)
{
    for (; *names != NULL; names++) {
        int number = seccomp_syscall_resolve_name(*names);
        if (number == __NR_SCMP_ERROR)
            return failure_set(failure, -EINVAL, "confining by seccomp: libseccomp knows no system call \"%s\"",
                               *names);
        if (number < 0)
            continue;
        int result = seccomp_rule_add(filter, action, number, 0);
        /* A caller's list may name a call that is in one of ours. */
        if (result < 0 && result != -EEXIST)
            return failure_set(failure, result, "confining by seccomp: the rule for %s: %s (%s)", *names,
                               text_errno_meaning(result), text_errno_name(result));
    }
    return 0;
}

/* Calls of which some forms are allowed. None of them is hot. */
static int add_argument_rules(scmp_filter_ctx filter, const struct confine_options *options, struct failure *failure)
{
    int result = 0;
    /* The request is 32 bits wide to the kernel: what stands above them must not help it past the filter. */
    for (size_t i = 0; i < sizeof base_ioctls / sizeof base_ioctls[0] && result == 0; i++)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
                                  SCMP_A1(SCMP_CMP_MASKED_EQ, UINT32_MAX, base_ioctls[i]));
    if (result == 0 && (options->groups & CONFINE_WRITE_FILES) != 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
                                  SCMP_A1(SCMP_CMP_MASKED_EQ, UINT32_MAX, FICLONE));
    if (result == 0 && (options->groups & CONFINE_WRITE_FILES) != 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
                                  SCMP_A1(SCMP_CMP_MASKED_EQ, UINT32_MAX, FICLONERANGE));
    /* Receipts ask the routing table by which device a connection leaves. Changing it takes a capability. */
    if (result == 0 && (options->groups & CONFINE_CONNECT) == 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 2,
                                  SCMP_A0(SCMP_CMP_MASKED_EQ, UINT32_MAX, AF_NETLINK),
                                  SCMP_A2(SCMP_CMP_MASKED_EQ, UINT32_MAX, NETLINK_ROUTE));
    /* And the socket itself who encrypts, where kernel TLS may be a device's work. Ending others' takes a capability.
     */
    if (result == 0 && (options->groups & CONFINE_CONNECT) == 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 2,
                                  SCMP_A0(SCMP_CMP_MASKED_EQ, UINT32_MAX, AF_NETLINK),
                                  SCMP_A2(SCMP_CMP_MASKED_EQ, UINT32_MAX, NETLINK_SOCK_DIAG));
    if (result < 0)
        return failure_set(failure, result, "confining by seccomp: the rules for ioctl and socket: %s (%s)",
                           text_errno_meaning(result), text_errno_name(result));
    return 0;
}

static int add_thread_rules(scmp_filter_ctx filter, struct failure *failure)
{
    /* clone3 hides its flags in memory, where a filter cannot look. glibc takes ENOSYS for an old kernel and calls
     * clone, whose flags say whether it makes a thread or a process. */
    int result = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    if (result == 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
                                  SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD));
    /* Threads get names. PR_SET_NAME only: prctl does much else. */
    if (result == 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(prctl), 1,
                                  SCMP_A0(SCMP_CMP_MASKED_EQ, UINT32_MAX, PR_SET_NAME));
    if (result < 0)
        return failure_set(failure, result, "confining by seccomp: the rules for threads: %s (%s)",
                           text_errno_meaning(result), text_errno_name(result));
    return 0;
}

static unsigned count_names(const char *const *names)
{
    unsigned count = 0;
    while (names != NULL && names[count] != NULL)
        count++;
    return count;
}

static int fill_filter(scmp_filter_ctx filter, const struct confine_options *options, struct failure *failure)
{
    int result = add_rules(filter, SCMP_ACT_ALLOW, base_calls, failure);
    if (result == 0 && (options->groups & CONFINE_ACCEPT) != 0)
        result = add_rules(filter, SCMP_ACT_ALLOW, accept_calls, failure);
    if (result == 0 && (options->groups & CONFINE_CONNECT) != 0)
        result = add_rules(filter, SCMP_ACT_ALLOW, connect_calls, failure);
    if (result == 0 && (options->groups & CONFINE_WATCH_FILES) != 0)
        result = add_rules(filter, SCMP_ACT_ALLOW, watch_calls, failure);
    if (result == 0 && (options->groups & CONFINE_WRITE_FILES) != 0)
        result = add_rules(filter, SCMP_ACT_ALLOW, write_calls, failure);
    if (result == 0)
        result = add_argument_rules(filter, options, failure);
    if (result == 0 && options->system_calls != NULL)
        result = add_rules(filter, SCMP_ACT_ALLOW, options->system_calls, failure);
    if (result == 0 && (options->groups & CONFINE_THREADS) != 0)
        result = add_thread_rules(filter, failure);
    if (result == 0)
        result = add_rules(filter, SCMP_ACT_KILL_PROCESS, deadly_calls, failure);
    return result;
}

static int confine_seccomp(const struct confine_options *options, struct confine_report *report,
                           struct failure *failure)
{
    if (SANITIZED) {
        report_line(report,
                    "seccomp: left out: this is a sanitizer build, whose run time makes system calls of its own");
        return 0;
    }
    if (prctl(PR_GET_SECCOMP, 0, 0, 0, 0) < 0) {
        report_line(report, "seccomp: none: the kernel was built without CONFIG_SECCOMP");
        report_lack(report);
        return 0;
    }
    /* A call that is not on the list fails with EPERM, and the audit log says which one. Killing the worker instead
     * would turn every call that a newer libc makes in a rare path into an outage of all its connections; callers cope
     * with EPERM. The calls that only an intruder makes do kill: there is nothing left to cope with. */
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    if (filter == NULL)
        return failure_set(failure, -ENOMEM, "confining by seccomp: out of memory (ENOMEM)");
    int result = fill_filter(filter, options, failure);
    if (result == 0) {
        /* Logging needs Linux 4.14 and is a convenience. */
        seccomp_attr_set(filter, SCMP_FLTATR_CTL_LOG, 1);
        /* Binary tree instead of a chain of comparisons, for kernels without the cache of allowed numbers. */
        seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
        result = seccomp_load(filter);
        if (result < 0)
            failure_set(failure, result, "confining by seccomp: the kernel refused the filter: %s (%s)",
                        text_errno_meaning(result), text_errno_name(result));
    }
    seccomp_release(filter);
    if (result < 0)
        return result;
    report->seccomp = true;
    report_line(report,
                "seccomp: an allow-list; other system calls fail with EPERM, %u that only an intruder makes end "
                "the process",
                count_names(deadly_calls));
    return 0;
}

/* ---- All of it ------------------------------------------------------------------------------------------------ */

/* A worker of io_uring's, or the thread that polls a ring: it runs no code of ours, and what the ring may ask of it is
 * the ring's restrictions' business. Its name does not tell: it sets that itself, later. */
static bool is_ring_thread(int tasks, const char *number)
{
    const unsigned io_worker = 0x10; /* PF_IO_WORKER, in the seventh field after the name (proc(5)) */
    char path[sizeof((struct dirent *)0)->d_name + 8], text[512];
    unsigned flags = 0;
    snprintf(path, sizeof path, "%s/stat", number);
    CLEANUP_FD int stat = openat(tasks, path, O_RDONLY | O_CLOEXEC);
    ssize_t size = stat >= 0 ? read(stat, text, sizeof text - 1) : -1;
    if (size < 0)
        return false;
    text[size] = '\0';
    const char *after = strrchr(text, ')');
    return after != NULL && sscanf(after, ") %*c %*d %*d %*d %*d %*d %u", &flags) == 1 && (flags & io_worker) != 0;
}

/* Threads of this process, 0 when that cannot be told. */
static unsigned count_threads(void)
{
    unsigned count = 0;
    DIR *tasks = opendir("/proc/self/task");
    if (tasks == NULL)
        return 0;
    for (struct dirent *entry; (entry = readdir(tasks)) != NULL;)
        count += entry->d_name[0] != '.' && !is_ring_thread(dirfd(tasks), entry->d_name);
    closedir(tasks);
    return count;
}

int confine_worker(const struct confine_options *options, struct confine_report *ret_report, struct failure *failure)
{
    struct confine_report report = {.landlock_abi = 0};
    unsigned threads = count_threads();
    /* ThreadSanitizer has a thread of its own. */
    if (threads > 1 && !SANITIZED)
        return failure_set(failure, -EBUSY, "cannot confine a process with %u threads: the others would stay free",
                           threads);

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return failure_set(failure, -errno, "no_new_privs: %s (%s)", text_errno_meaning(errno), text_errno_name(errno));
    report.no_new_privs = true;
    report_line(&report, "no_new_privs: set");

    /* Landlock first: opening /proc and adding rules takes rights that the next steps remove. seccomp last: the system
     * calls used here are not on its list. */
    int result = 0;
    if (options->without_landlock)
        report_line(&report, "Landlock: left out as asked");
    else
        result = confine_landlock(options, &report, failure);
    if (result == 0) {
        if (options->without_capabilities)
            report_line(&report, "capabilities: left as they are, as asked");
        else
            result = confine_capabilities(options, &report, failure);
    }
    if (result == 0) {
        if (options->without_seccomp)
            report_line(&report, "seccomp: left out as asked");
        else
            result = confine_seccomp(options, &report, failure);
    }
    if (result == 0 && ret_report != NULL)
        *ret_report = report;
    return result;
}

int confine_worker_saying(const struct confine_options *options, const char *program, enum confine_saying saying,
                          struct log *log)
{
    struct confine_report report;
    struct failure failure;
    int r = confine_worker(options, &report, &failure);
    if (r < 0) {
        log_say(log, "%s", failure.text);
        return r;
    }
    for (unsigned i = 0; i < report.line_count; i++)
        if (saying == CONFINE_SAY_ALL || (saying == CONFINE_SAY_LACKS && report.lacks[i]))
            log_say(log, "%s: workers: %s", program, report.lines[i]);
    return 0;
}
