/* SPDX-License-Identifier: MIT */
#include "procfs.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/text.h"
#include "mounts.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>

#define DESCRIPTORS_MAX 4096 /* looked through for one name */
#define ANCESTORS_MAX 64
#define SNAPSHOT_NS 100000000 /* who is whose child is looked up at most ten times a second */

/* ---- Files of /proc. Any process may be gone at any moment: that is no error, there is just nothing to read. ---- */

/* As much as there is room for: names are cut where that is meant. */
__attribute__((format(printf, 3, 4))) static void print(char *buffer, size_t size, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(buffer, size, format, arguments);
    va_end(arguments);
}

/* The whole of a small file as a string. Returns 0; -ENOENT, -ESRCH, -EACCES, ... */
static int read_text(uint32_t pid, const char *name, char *buffer, size_t size)
{
    char path[64];
    print(path, sizeof path, "/proc/%" PRIu32 "/%s", pid, name);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t length = read(fd, buffer, size - 1);
    if (length < 0)
        return -errno;
    buffer[length] = '\0';
    return 0;
}

struct identity {
    char comm[TRACE_COMM_SIZE];
    uint32_t parent;
    uint64_t start; /* in clock ticks since the machine was started */
};

/* "1234 (any) thing (at all) S 1 ...": the name ends at the last parenthesis. */
static int identify(uint32_t pid, struct identity *ret_identity)
{
    char text[1024];
    int error = read_text(pid, "stat", text, sizeof text);
    if (error < 0)
        return error;
    char *name = strchr(text, '('), *end = strrchr(text, ')');
    struct identity identity = {.parent = 0};
    if (name == NULL || end == NULL || end < name)
        return -EINVAL;
    if (sscanf(end + 1, " %*c %" SCNu32 " %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %" SCNu64,
               &identity.parent, &identity.start) != 2)
        return -EINVAL;
    *end = '\0';
    print(identity.comm, sizeof identity.comm, "%.15s", name + 1);
    *ret_identity = identity;
    return 0;
}

struct pids {
    uint32_t *list;
    size_t count, room;
};

static int add_pid(struct pids *pids, uint32_t pid)
{
    if (pids->count == pids->room) {
        size_t room = pids->room > 0 ? 2 * pids->room : 64;
        uint32_t *larger = reallocarray(pids->list, room, sizeof *larger);
        if (larger == NULL)
            return -ENOMEM;
        pids->list = larger;
        pids->room = room;
    }
    pids->list[pids->count++] = pid;
    return 0;
}

/* Name of a directory in /proc: a process? */
static bool parse_pid(const char *text, uint32_t *ret_pid)
{
    uint64_t pid;
    if (text_parse_unsigned(text, &pid) < 0 || pid == 0 || pid > INT32_MAX)
        return false;
    *ret_pid = (uint32_t)pid;
    return true;
}

typedef bool wanted(uint32_t pid, const void *data);

static int find(wanted *want, const void *data, uint32_t **ret_pids)
{
    struct pids pids = {.list = NULL};
    DIR *directory = opendir("/proc");
    if (directory == NULL)
        return -errno;
    int error = 0;
    for (struct dirent *entry; error == 0 && (entry = readdir(directory)) != NULL;) {
        uint32_t pid;
        if (parse_pid(entry->d_name, &pid) && pid != (uint32_t)getpid() && (want == NULL || want(pid, data)))
            error = add_pid(&pids, pid);
    }
    closedir(directory);
    if (error < 0 || pids.count > INT_MAX) {
        free(pids.list);
        return error < 0 ? error : -EOVERFLOW;
    }
    *ret_pids = pids.list;
    return (int)pids.count;
}

static bool has_comm(uint32_t pid, const void *data)
{
    struct identity identity;
    return identify(pid, &identity) == 0 && strcmp(identity.comm, data) == 0;
}

/* Not by /proc/PID/task/TID/children: that exists only with CONFIG_PROC_CHILDREN, the parent's pid everywhere. */
static bool has_parent(uint32_t pid, const void *data)
{
    struct identity identity;
    return identify(pid, &identity) == 0 && identity.parent == *(const uint32_t *)data;
}

int procfs_find_by_comm(const char *comm, uint32_t **ret_pids)
{
    return find(has_comm, comm, ret_pids);
}

int procfs_find_all(uint32_t **ret_pids)
{
    return find(NULL, NULL, ret_pids);
}

int procfs_children(uint32_t pid, uint32_t **ret_pids)
{
    return find(has_parent, &pid, ret_pids);
}

/* A group's processes are listed in its file cgroup.procs (0: one of another pid namespace), its subgroups are its
 * directories. */
static int find_in_cgroup(int directory_fd, unsigned depth, struct pids *pids)
{
    CLEANUP_FREE char *line = NULL;
    size_t room = 0;
    int error = 0;
    int fd = openat(directory_fd, "cgroup.procs", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    FILE *file = fdopen(fd, "r");
    if (file == NULL) {
        close_fd(fd);
        return -ENOMEM;
    }
    while (error == 0 && getline(&line, &room, file) > 0) {
        uint32_t pid;
        line[strcspn(line, "\n")] = '\0';
        if (parse_pid(line, &pid) && pid != (uint32_t)getpid())
            error = add_pid(pids, pid);
    }
    fclose(file);
    int copy = openat(directory_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = copy >= 0 ? fdopendir(copy) : NULL;
    if (directory == NULL) {
        close_fd(copy);
        return error;
    }
    for (struct dirent *entry; error == 0 && depth < ANCESTORS_MAX && (entry = readdir(directory)) != NULL;) {
        if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
            continue;
        CLEANUP_FD int below = openat(directory_fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (below >= 0 && find_in_cgroup(below, depth + 1, pids) == -ENOMEM)
            error = -ENOMEM; /* any other error: the group has gone */
    }
    closedir(directory);
    return error;
}

int procfs_find_by_cgroup(const char *path, uint32_t **ret_pids)
{
    struct pids pids = {.list = NULL};
    CLEANUP_FD int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int error = find_in_cgroup(fd, 0, &pids);
    if (error < 0) {
        free(pids.list);
        return error == -ENOENT ? -EINVAL : error; /* a directory, but of no cgroup */
    }
    *ret_pids = pids.list;
    return (int)min_size(pids.count, INT_MAX);
}

/* ---- Names of ends ---- */

/* The name of a file from the root of its file system ("/dir/file"), out of its pieces from the innermost outwards. The
 * kernel's side (trace.bpf.c) cuts: pieces of 63 bytes may be longer, and after 16 pieces or 128 bytes there may be
 * more. Returns whether this is surely the whole path. */
static bool join_pieces(const struct trace_end_value *value, char *path, size_t size)
{
    const char *pieces[TRACE_NAME_SIZE];
    size_t count = 0, used = 0, end = min_size(value->name_size, TRACE_NAME_SIZE);
    bool whole = end <= TRACE_NAME_SIZE - 64;
    for (size_t at = 0; at < end && value->name[at] != '\0';) {
        size_t length = strnlen(value->name + at, end - at);
        if (at + length == TRACE_NAME_SIZE)
            break; /* not ended: cut */
        if (strcmp(value->name + at, "/") != 0)
            pieces[count++] = value->name + at;
        whole = whole && length < 63;
        at += length + 1;
    }
    whole = whole && count < 16;
    path[0] = '\0';
    for (size_t i = count; i > 0; i--)
        used = min_size(used + (size_t)snprintf(path + used, size - used, "/%s", pieces[i - 1]), size - 1);
    return whole;
}

/* What people see as the name, with its middle left out if there is no room. */
static void set_name(struct account_end *end, const char *before, const char *name)
{
    size_t room = sizeof end->name - 1, prefix = strlen(before), length = strlen(name);
    if (prefix + length <= room) {
        print(end->name, sizeof end->name, "%s%s", before, name);
        return;
    }
    size_t half = (room - prefix - 3) / 2;
    const char *tail = name + length - half;
    while (half > 0 && ((unsigned char)name[half] & 0xc0) == 0x80)
        half--; /* not within a character */
    while (((unsigned char)*tail & 0xc0) == 0x80)
        tail++;
    print(end->name, sizeof end->name, "%s%.*s…%s", before, (int)half, name, tail);
}

struct meant {
    uint32_t root; /* process whose view of the file systems it is */
    unsigned major, minor;
    uint64_t inode;
};

/* st_dev packs its numbers otherwise than the kernel's own device numbers do. */
static bool same_file(const struct stat *status, const struct meant *meant)
{
    return status->st_ino == meant->inode && major(status->st_dev) == meant->major &&
           minor(status->st_dev) == meant->minor;
}

static bool is_meant(const char *path, void *data)
{
    const struct meant *meant = data;
    char inside[PATH_MAX + 32];
    struct stat status;
    print(inside, sizeof inside, "/proc/%" PRIu32 "/root%s", meant->root, path);
    /* AT_NO_AUTOMOUNT: looking must not mount anything. */
    return fstatat(AT_FDCWD, inside, &status, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) == 0 && same_file(&status, meant);
}

/* Returns as mounts_resolve() does. */
static int resolve(uint32_t pid, struct meant *meant, const char *inner, char *path, size_t size)
{
    char name[64];
    print(name, sizeof name, "/proc/%" PRIu32 "/mountinfo", pid);
    FILE *mountinfo = fopen(name, "re");
    if (mountinfo == NULL)
        return -errno;
    meant->root = pid;
    int result = mounts_resolve(mountinfo, meant->major, meant->minor, inner, is_meant, meant, path, size);
    fclose(mountinfo);
    return result;
}

/* A descriptor of the process that is open for this file tells its path, too, and whether it was deleted. */
static bool search_descriptors(uint32_t pid, const struct meant *meant, char *path, size_t size)
{
    char name[64];
    print(name, sizeof name, "/proc/%" PRIu32 "/fd", pid);
    DIR *directory = opendir(name);
    if (directory == NULL)
        return false;
    bool found = false;
    unsigned looked_at = 0;
    for (struct dirent *entry; !found && looked_at < DESCRIPTORS_MAX && (entry = readdir(directory)) != NULL;) {
        struct stat status;
        if (entry->d_name[0] == '.')
            continue;
        looked_at++;
        if (fstatat(dirfd(directory), entry->d_name, &status, AT_NO_AUTOMOUNT) != 0 || !same_file(&status, meant))
            continue;
        ssize_t length = readlinkat(dirfd(directory), entry->d_name, path, size - 1);
        if (length > 0) {
            path[length] = '\0';
            found = true;
        }
    }
    closedir(directory);
    return found;
}

static void name_file(struct account_end *end, uint32_t pid, const char *before)
{
    struct meant meant = {
        .major = end->key.device >> 20, /* MKDEV() of the kernel */
        .minor = end->key.device & 0xfffff,
        .inode = end->key.inode,
    };
    char inner[2 * TRACE_NAME_SIZE], path[PATH_MAX] = "", other[PATH_MAX];
    bool whole = join_pieces(&end->value, inner, sizeof inner) && inner[0] != '\0';
    int found = whole ? resolve(pid, &meant, inner, path, sizeof path) : -ENOENT;
    if (found != 1 && search_descriptors(pid, &meant, other, sizeof other)) {
        set_name(end, before, other);
        return;
    }
    /* The process may be gone, or have left our view of the file systems. */
    other[0] = '\0';
    if (whole && found != 1 && resolve((uint32_t)getpid(), &meant, inner, other, sizeof other) >= found) {
        found = 0;
        if (other[0] != '\0')
            memcpy(path, other, sizeof path);
    }
    if (found >= 0 && path[0] != '\0')
        set_name(end, before, path);
    else if (inner[0] != '\0' && meant.major == 0)
        set_name(end, before, inner + 1); /* mounted nowhere: memfd:NAME, SYSV00000000 and others of the kernel's own */
    else if (inner[0] != '\0')
        set_name(end, whole ? before : "…", inner);
    else
        print(end->name, sizeof end->name, "unknown file (%u:%u inode %" PRIu64 ")", meant.major, meant.minor,
              (uint64_t)end->key.inode);
}

static void format_address(const struct trace_end_key *key, const uint8_t address[16], bool bracketed, char *text,
                           size_t size)
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    char numbers[INET6_ADDRSTRLEN] = "unknown";
    bool v6 = key->family == AF_INET6 && memcmp(address, mapped, sizeof mapped) != 0;
    if (v6)
        inet_ntop(AF_INET6, address, numbers, sizeof numbers);
    else
        inet_ntop(AF_INET, key->family == AF_INET6 ? address + sizeof mapped : address, numbers, sizeof numbers);
    print(text, size, v6 && bracketed ? "[%s]" : "%s", numbers);
}

static void name_inet(struct account_end *end, const char *protocol)
{
    static const uint8_t any[16];
    const struct trace_end_key *key = &end->key;
    char address[INET6_ADDRSTRLEN + 2];
    bool peer = memcmp(key->remote, any, sizeof any) != 0;
    format_address(key, key->remote, !key->port_is_local, address, sizeof address);
    if (!key->port_is_local)
        print(end->name, sizeof end->name, "%s to %s:%" PRIu32, protocol, address, key->port);
    else if (peer)
        print(end->name, sizeof end->name, "%s :%" PRIu32 " (%s)", protocol, key->port, address);
    else
        print(end->name, sizeof end->name, "%s :%" PRIu32, protocol, key->port);
}

static void name_unix(struct account_end *end)
{
    const char *name = end->value.name;
    size_t length = min_size(end->value.name_size, sizeof end->value.name - 1);
    char text[TRACE_NAME_SIZE + 2];
    if (length == 0) {
        /* Without a name the inode is one of sockfs; with a name, of which nothing is known, it is no inode. */
        if (end->key.inode <= UINT32_MAX)
            print(end->name, sizeof end->name, "unix socket %" PRIu64, (uint64_t)end->key.inode);
        else
            print(end->name, sizeof end->name, "unix socket");
        return;
    }
    /* An abstract name begins with a zero byte and may have more of them; ss(8) and netstat(8) show an @. */
    size_t shown = name[0] == '\0' ? length : strnlen(name, length);
    for (size_t i = 0; i < shown; i++)
        text[i] = name[i] != '\0' ? name[i] : '@';
    text[shown] = '\0';
    set_name(end, "unix ", text);
}

static void name_socket(struct account_end *end)
{
    static const struct {
        int family;
        const char *name;
    } families[] = {
        {AF_INET, "raw IPv4 socket"}, {AF_INET6, "raw IPv6 socket"},        {AF_NETLINK, "netlink socket"},
        {AF_PACKET, "packet socket"}, {AF_VSOCK, "virtual machine socket"}, {AF_ALG, "kernel crypto socket"},
    };
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        if (families[i].family == end->key.family) {
            set_name(end, families[i].name, "");
            return;
        }
    }
    print(end->name, sizeof end->name, "socket of family %u", end->key.family);
}

void procfs_name_end(struct account_end *end, uint32_t pid)
{
    switch ((enum trace_end_kind)end->key.kind) {
    case TRACE_END_MEMORY:
        set_name(end, "memory", "");
        return;
    case TRACE_END_FILE:
    case TRACE_END_FILE_DIRECT:
    case TRACE_END_BLOCK:
    case TRACE_END_CHAR:
        name_file(end, pid, "");
        return;
    case TRACE_END_PIPE:
        if (end->value.name_size > 0)
            name_file(end, pid, "pipe ");
        else
            print(end->name, sizeof end->name, "pipe %" PRIu64, (uint64_t)end->key.inode);
        return;
    case TRACE_END_TCP:
        name_inet(end, end->key.tls != 0 ? "tls" : "tcp");
        return;
    case TRACE_END_UDP:
        name_inet(end, "udp");
        return;
    case TRACE_END_UNIX:
        name_unix(end);
        return;
    case TRACE_END_SOCKET:
        name_socket(end);
        return;
    case TRACE_END_KERNEL:
        if (end->value.name_size > 0)
            name_file(end, pid, "");
        else
            set_name(end, "made by the kernel", "");
        return;
    case TRACE_END_NONE:
    case TRACE_END_KIND_COUNT:
        break;
    }
    set_name(end, "unknown", "");
}

/* ---- CPU time and /proc/PID/io ---- */

enum io_figure { IO_BYTES_READ, IO_BYTES_WRITTEN, IO_CALLS_READING, IO_CALLS_WRITING, IO_FIGURES };

struct io {
    uint64_t figures[IO_FIGURES];
};

struct seen {
    uint32_t pid, parent;
    uint32_t root; /* whose call of procfs_enter_io() reads this one; 0: none does */
    unsigned depth;
    bool follow;
    bool gone;
    bool born_later; /* than the struct procfs: counts from its birth */
    bool cpu_known, io_known;
    uint64_t cpu_ns;
    struct io io;
    struct io inherited; /* of dead children: what was entered already, and comes again by their parent */
};

struct relation {
    uint32_t pid, parent;
};

struct procfs {
    uint64_t start;    /* in clock ticks, as in /proc/PID/stat */
    struct seen *seen; /* by pid */
    size_t count, room;
    struct relation *relations; /* by pid: a snapshot of who is whose child */
    size_t relation_count;
    uint64_t relations_ns;
    bool end_entered;
};

#define UNKNOWN_END 1 /* tier (c) has no other */

int procfs_new(struct procfs **ret_procfs)
{
    struct procfs *procfs = calloc(1, sizeof *procfs);
    if (procfs == NULL)
        return -ENOMEM;
    procfs->start = clock_ns(CLOCK_BOOTTIME) / (1000000000 / (uint64_t)sysconf(_SC_CLK_TCK));
    *ret_procfs = procfs;
    return 0;
}

void procfs_free(struct procfs *procfs)
{
    if (procfs == NULL)
        return;
    free(procfs->seen);
    free(procfs->relations);
    free(procfs);
}

/* Where pid is, or belongs. */
static size_t position(const struct procfs *procfs, uint32_t pid)
{
    size_t low = 0, high = procfs->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (procfs->seen[middle].pid < pid)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct seen *seen_of(struct procfs *procfs, uint32_t pid)
{
    size_t at = position(procfs, pid);
    return at < procfs->count && procfs->seen[at].pid == pid ? &procfs->seen[at] : NULL;
}

/* Valid until the next one is added. Returns 0, -ENOMEM or -ESRCH. */
static int add_seen(struct procfs *procfs, uint32_t pid, struct seen **ret_seen, struct identity *ret_identity)
{
    if (identify(pid, ret_identity) < 0)
        return -ESRCH;
    if (procfs->count == procfs->room) {
        size_t room = procfs->room > 0 ? 2 * procfs->room : 64;
        struct seen *larger = reallocarray(procfs->seen, room, sizeof *larger);
        if (larger == NULL)
            return -ENOMEM;
        procfs->seen = larger;
        procfs->room = room;
    }
    size_t at = position(procfs, pid);
    struct seen *seen = &procfs->seen[at];
    memmove(seen + 1, seen, (procfs->count - at) * sizeof *seen);
    procfs->count++;
    *seen =
        (struct seen){.pid = pid, .parent = ret_identity->parent, .born_later = ret_identity->start >= procfs->start};
    *ret_seen = seen;
    return 0;
}

static void remove_seen(struct procfs *procfs, struct seen *seen)
{
    memmove(seen, seen + 1, (size_t)(procfs->seen + procfs->count - seen - 1) * sizeof *seen);
    procfs->count--;
}

/* The clock of a process is in nanoseconds, has the dead threads in it, and needs no privilege. /proc/PID/schedstat
 * is of one thread, /proc/PID/stat counts in hundredths of a second. */
static bool cpu_time(uint32_t pid, uint64_t *ret_ns)
{
    clockid_t clock;
    uint64_t now = clock_getcpuclockid((pid_t)pid, &clock) == 0 ? clock_ns(clock) : 0;
    if (now > 0)
        *ret_ns = now;
    return now > 0;
}

static int enter_cpu(struct procfs *procfs, struct account *account, uint32_t pid)
{
    const struct account_process *process = account_process(account, pid);
    struct seen *seen = seen_of(procfs, pid);
    uint64_t now;
    if (process == NULL || process->exited) {
        if (seen != NULL && seen->root == 0)
            remove_seen(procfs, seen);
        return 0;
    }
    if (!cpu_time(pid, &now)) {
        /* In the other tiers an event says so, even when the process is one of a namespace that we do not see. */
        if (account_tier(account) == ACCOUNT_TIER_PROC)
            account_enter_exit(account, pid);
        return 0;
    }
    if (seen == NULL || process->comm[0] == '\0') {
        struct identity identity;
        int error = seen == NULL ? add_seen(procfs, pid, &seen, &identity) : identify(pid, &identity);
        if (error == 0 && process->comm[0] == '\0')
            error = account_enter_process(account, pid, identity.parent, identity.comm);
        if (error < 0)
            return error == -ENOMEM ? error : 0;
    }
    uint64_t before = seen->cpu_known ? seen->cpu_ns : seen->born_later ? 0 : now;
    seen->cpu_known = true;
    seen->cpu_ns = now;
    struct account_process increment = {.pid = pid, .cpu_ns = now > before ? now - before : 0};
    return increment.cpu_ns > 0 ? account_enter_process_figures(account, &increment) : 0;
}

int procfs_enter_last_cpu(struct procfs *procfs, struct account *account, uint32_t pid, uint64_t cpu_ns)
{
    struct seen *seen = seen_of(procfs, pid);
    uint64_t before = seen != NULL && seen->cpu_known ? seen->cpu_ns : 0;
    struct account_process increment = {.pid = pid, .cpu_ns = cpu_ns > before ? cpu_ns - before : 0};
    if (seen != NULL)
        seen->cpu_ns = cpu_ns;
    return account_enter_process_figures(account, &increment);
}

void procfs_enter_cpu(struct procfs *procfs, struct account *account)
{
    size_t count;
    const struct account_process *processes = account_processes(account, &count);
    /* Entering moves the processes. */
    CLEANUP_FREE uint32_t *pids = calloc(count + 1, sizeof *pids);
    if (pids == NULL)
        return; /* the clocks run on: the next time has it all */
    for (size_t i = 0; i < count; i++)
        pids[i] = processes[i].pid;
    for (size_t i = 0; i < count; i++)
        if (enter_cpu(procfs, account, pids[i]) < 0)
            return;
}

static int read_io(uint32_t pid, struct io *ret_io)
{
    static const char *const names[IO_FIGURES] = {"rchar: ", "wchar: ", "syscr: ", "syscw: "};
    char text[512];
    int error = read_text(pid, "io", text, sizeof text);
    if (error < 0)
        return error;
    struct io io;
    for (unsigned i = 0; i < IO_FIGURES; i++) {
        const char *at = strstr(text, names[i]);
        if (at == NULL || sscanf(at + strlen(names[i]), "%" SCNu64, &io.figures[i]) != 1)
            return -EINVAL;
    }
    *ret_io = io;
    return 0;
}

static int enter_flow(struct account *account, uint32_t pid, enum trace_mechanism mechanism, uint64_t bytes,
                      uint64_t calls)
{
    struct trace_flow_key key = {
        .pid = pid,
        .thread = pid,
        .source = mechanism == TRACE_READ ? UNKNOWN_END : 0,
        .sink = mechanism == TRACE_READ ? 0 : UNKNOWN_END,
        .mechanism = (uint8_t)mechanism,
    };
    struct trace_flow_value value = {.bytes = bytes, .calls = calls};
    return bytes > 0 || calls > 0 ? account_enter_flow(account, &key, &value) : 0;
}

static int enter_seen(struct procfs *procfs, struct account *account, struct seen *seen)
{
    struct io io, increment;
    int error = read_io(seen->pid, &io);
    if (error == -EACCES || error == -EPERM)
        return -EACCES;
    if (error < 0) {
        /* Gone, and waited for: its figures are its parent's now. */
        struct seen *parent = seen_of(procfs, seen->parent);
        for (unsigned i = 0; parent != NULL && i < IO_FIGURES; i++)
            parent->inherited.figures[i] += seen->io.figures[i];
        seen->gone = true;
        return 0;
    }
    for (unsigned i = 0; i < IO_FIGURES; i++) {
        uint64_t before = seen->io_known ? seen->io.figures[i] : seen->born_later ? 0 : io.figures[i];
        increment.figures[i] = io.figures[i] > before ? io.figures[i] - before : 0;
        /* Where nobody waits for children (SIGCHLD ignored) their figures never come: what is not taken off now is not
         * taken off later. */
        increment.figures[i] -= min_u64(increment.figures[i], seen->inherited.figures[i]);
    }
    seen->inherited = (struct io){{0}};
    seen->io = io;
    seen->io_known = true;
    error = enter_flow(account, seen->pid, TRACE_READ, increment.figures[IO_BYTES_READ],
                       increment.figures[IO_CALLS_READING]);
    if (error == 0)
        error = enter_flow(account, seen->pid, TRACE_WRITE, increment.figures[IO_BYTES_WRITTEN],
                           increment.figures[IO_CALLS_WRITING]);
    return error;
}

static int by_pid(const void *a, const void *b)
{
    const struct relation *first = a, *second = b;
    return first->pid < second->pid ? -1 : first->pid > second->pid;
}

static int take_snapshot(struct procfs *procfs)
{
    CLEANUP_FREE uint32_t *pids = NULL;
    int count = procfs_find_all(&pids);
    if (count < 0)
        return count;
    struct relation *relations = calloc((size_t)count + 1, sizeof *relations);
    if (relations == NULL)
        return -ENOMEM;
    size_t known = 0;
    for (int i = 0; i < count; i++) {
        struct identity identity;
        if (identify(pids[i], &identity) == 0)
            relations[known++] = (struct relation){pids[i], identity.parent};
    }
    qsort(relations, known, sizeof *relations, by_pid);
    free(procfs->relations);
    procfs->relations = relations;
    procfs->relation_count = known;
    procfs->relations_ns = clock_ns(CLOCK_MONOTONIC);
    return 0;
}

/* The process whose call reads this one: its nearest ancestor that is followed. */
static const struct seen *followed_ancestor(struct procfs *procfs, const struct relation *relation,
                                            unsigned *ret_distance)
{
    for (unsigned distance = 1; relation != NULL && distance < ANCESTORS_MAX; distance++) {
        const struct seen *ancestor = seen_of(procfs, relation->parent);
        if (ancestor != NULL && ancestor->root != 0 && ancestor->follow) {
            *ret_distance = distance;
            return ancestor;
        }
        struct relation parent = {.pid = relation->parent};
        relation = bsearch(&parent, procfs->relations, procfs->relation_count, sizeof parent, by_pid);
    }
    return NULL;
}

static int adopt_children(struct procfs *procfs, struct account *account)
{
    for (size_t i = 0; i < procfs->relation_count; i++) {
        const struct relation *relation = &procfs->relations[i];
        struct seen *seen = seen_of(procfs, relation->pid);
        unsigned distance;
        if (seen != NULL && seen->root != 0)
            continue;
        const struct seen *ancestor = followed_ancestor(procfs, relation, &distance);
        if (ancestor == NULL)
            continue;
        uint32_t root = ancestor->root;
        unsigned depth = ancestor->depth + distance;
        struct identity identity;
        int error = identify(relation->pid, &identity);
        if (error == 0 && seen == NULL)
            error = add_seen(procfs, relation->pid, &seen, &identity);
        if (error == 0)
            error = account_enter_process(account, relation->pid, identity.parent, identity.comm);
        if (error == -ENOMEM)
            return error;
        if (error < 0)
            continue;
        seen->root = root;
        seen->depth = depth;
        seen->follow = true;
    }
    return 0;
}

struct visit {
    uint32_t pid;
    unsigned depth;
};

static int deepest_first(const void *a, const void *b)
{
    const struct visit *first = a, *second = b;
    return first->depth > second->depth ? -1 : first->depth < second->depth;
}

int procfs_enter_io(struct procfs *procfs, struct account *account, uint32_t pid, bool follow)
{
    int error = 0;
    if (!procfs->end_entered) {
        struct account_end end = {.key = {.kind = TRACE_END_NONE}, .value = {.id = UNKNOWN_END}, .name = "unknown"};
        error = account_enter_end(account, &end);
        if (error < 0)
            return error;
        procfs->end_entered = true;
    }
    struct seen *seen = seen_of(procfs, pid);
    bool is_new = seen == NULL || seen->root == 0;
    if (is_new) {
        struct identity identity;
        error = seen == NULL ? add_seen(procfs, pid, &seen, &identity) : identify(pid, &identity);
        if (error == 0)
            error = account_enter_process(account, pid, identity.parent, identity.comm);
        if (error < 0)
            return error == -ENOMEM ? error : 0;
        seen->root = pid;
        seen->follow = follow;
    }
    if (follow && (is_new || clock_ns(CLOCK_MONOTONIC) - procfs->relations_ns > SNAPSHOT_NS)) {
        error = procfs->relations == NULL || clock_ns(CLOCK_MONOTONIC) - procfs->relations_ns > SNAPSHOT_NS
                    ? take_snapshot(procfs)
                    : 0;
        if (error == 0)
            error = adopt_children(procfs, account);
        if (error < 0)
            return error;
    }

    /* Children before parents: the figures of one that has died since come to its parent, and are taken off there. */
    CLEANUP_FREE struct visit *visits = calloc(procfs->count + 1, sizeof *visits);
    size_t count = 0;
    if (visits == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < procfs->count; i++)
        if (procfs->seen[i].root == pid && !procfs->seen[i].gone)
            visits[count++] = (struct visit){procfs->seen[i].pid, procfs->seen[i].depth};
    qsort(visits, count, sizeof *visits, deepest_first);
    for (size_t i = 0; i < count && error != -ENOMEM; i++) {
        seen = seen_of(procfs, visits[i].pid);
        int entered = enter_seen(procfs, account, seen);
        if (entered == -ENOMEM || visits[i].pid == pid)
            error = entered;
        /* The root stays, marked as gone: its number may be somebody else's next. */
        if (seen->gone && seen->pid != pid)
            remove_seen(procfs, seen);
    }
    return error;
}

/* ---- The machine ------------------------------------------------------------------------------------------------ */

/* "cpu  user nice system idle iowait irq softirq steal ..." (proc_stat(5)) */
bool procfs_parse_machine(const char *line, struct procfs_machine *ret_machine)
{
    uint64_t user, nice, system, irq, softirq, stolen;
    if (sscanf(line, "cpu %" SCNu64 " %" SCNu64 " %" SCNu64 " %*u %*u %" SCNu64 " %" SCNu64 " %" SCNu64, &user, &nice,
               &system, &irq, &softirq, &stolen) != 6)
        return false;
    *ret_machine = (struct procfs_machine){.used = user + nice + system + irq + softirq, .stolen = stolen};
    return true;
}

struct procfs_machine procfs_machine(void)
{
    struct procfs_machine machine = {0};
    char line[256];
    FILE *stream = fopen("/proc/stat", "re");
    if (stream != NULL && fgets(line, sizeof line, stream) != NULL)
        procfs_parse_machine(line, &machine);
    if (stream != NULL)
        fclose(stream);
    return machine;
}
