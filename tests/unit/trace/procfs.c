/* SPDX-License-Identifier: MIT */
#include "trace/procfs.h"
#include "base/cleanup.h"
#include "check.h"
#include "trace/mounts.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>

/* ---- Mount points ---- */

static const char mounts[] = "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
                             "27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
                             "not a line of mountinfo\n"
                             "28 27 254:0 /srv/data /mnt/with\\040space rw - ext4 /dev/vda rw\n"
                             "29 27 254:16 /@home /home rw - btrfs /dev/vdb rw\n"
                             "30 27 254:16 /@home/web /var/www rw - btrfs /dev/vdb rw\n";

static bool is_path(const char *path, void *data)
{
    return data != NULL && strcmp(path, data) == 0;
}

static int resolved(unsigned minor, const char *inner, const char *meant, char *path)
{
    char text[sizeof mounts];
    memcpy(text, mounts, sizeof mounts);
    FILE *mountinfo = fmemopen(text, sizeof mounts - 1, "r");
    int result = mounts_resolve(mountinfo, 254, minor, inner, is_path, (void *)(uintptr_t)meant, path, 64);
    fclose(mountinfo);
    return result;
}

TEST("a path within a file system becomes one of the mount point's, which may be of a folder of it")
{
    char path[64] = "untouched";
    CHECK_EQ(resolved(0, "/etc/passwd", "/etc/passwd", path), 1);
    CHECK_STR(path, "/etc/passwd");
    CHECK_EQ(resolved(16, "/@home/me/file", NULL, path), 0);
    CHECK_STR(path, "/home/me/file");
    CHECK_EQ(resolved(16, "/@homeless/file", NULL, path), -ENOENT);
    CHECK_EQ(resolved(32, "/file", NULL, path), -ENOENT);
    CHECK_STR(path, "/home/me/file");
}

TEST("of several mounts the one is taken where the file is found; without one, the first")
{
    char path[64];
    CHECK_EQ(resolved(0, "/srv/data/file", "/mnt/with space/file", path), 1);
    CHECK_STR(path, "/mnt/with space/file");
    CHECK_EQ(resolved(16, "/@home/web/x", "/var/www/x", path), 1);
    CHECK_STR(path, "/var/www/x");
    CHECK_EQ(resolved(0, "/srv/data/file", NULL, path), 0);
    CHECK_STR(path, "/srv/data/file");
}

TEST("a path that is too long for its buffer is none")
{
    char path[64] = "untouched", inner[100];
    memset(inner, 'x', sizeof inner - 1);
    inner[0] = '/';
    inner[sizeof inner - 1] = '\0';
    CHECK_EQ(resolved(0, inner, NULL, path), -ENAMETOOLONG);
    CHECK_STR(path, "untouched");
}

/* ---- Names of ends ---- */

/* A file as the kernel's side describes it: its name from the innermost piece outwards. */
static struct account_end end_of(const char *path, const char *within)
{
    struct account_end end = {.key = {.kind = TRACE_END_FILE}, .value = {.id = 1}};
    struct stat status;
    if (stat(path, &status) != 0)
        CHECK_FAIL("%s is not there", path);
    end.key.device = major(status.st_dev) << 20 | minor(status.st_dev);
    end.key.inode = status.st_ino;
    char copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s", within);
    for (char *slash; (slash = strrchr(copy, '/')) != NULL; *slash = '\0') {
        size_t length = strlen(slash + 1) + 1;
        if (length > 64 || end.value.name_size > TRACE_NAME_SIZE - 64)
            break;
        memcpy(end.value.name + end.value.name_size, slash + 1, length);
        end.value.name_size += (uint32_t)length;
    }
    return end;
}

struct folder {
    char path[32];
};

static void remove_folder(struct folder *folder)
{
    char command[64];
    snprintf(command, sizeof command, "rm -rf '%s'", folder->path);
    if (system(command) != 0)
        abort();
}
#define FOLDER                                                                                                         \
    __attribute__((cleanup(remove_folder))) struct folder folder = {"/var/tmp/trace-XXXXXX"};                          \
    CHECK(mkdtemp(folder.path) != NULL)

/* The mount point that the folder is in, to cut it from paths; "" for the root. */
static const char *within_mount(const char *path)
{
    struct stat root, file;
    if (stat("/", &root) != 0 || stat(path, &file) != 0 || root.st_dev != file.st_dev)
        SKIP("the folder for tests, /var/tmp, is not of the root file system; put it there");
    return path;
}

TEST("a file's name comes from its pieces and the mounts")
{
    FOLDER;
    char path[64];
    snprintf(path, sizeof path, "%s/a file", folder.path);
    CLEANUP_FD int fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    struct account_end end = end_of(path, within_mount(path));
    fd = close_fd(fd);
    procfs_name_end(&end, (uint32_t)getpid());
    CHECK_STR(end.name, path);
    procfs_name_end(&end, INT32_MAX); /* a process that has gone */
    CHECK_STR(end.name, path);
}

TEST("a file without pieces is found among the descriptors, and said to be deleted when it is")
{
    FOLDER;
    char path[64], deleted[128];
    snprintf(path, sizeof path, "%s/file", folder.path);
    snprintf(deleted, sizeof deleted, "%s (deleted)", path);
    CLEANUP_FD int fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    struct account_end end = end_of(path, ""), with_pieces = end_of(path, within_mount(path));
    procfs_name_end(&end, (uint32_t)getpid());
    CHECK_STR(end.name, path);
    CHECK(unlink(path) == 0);
    procfs_name_end(&end, (uint32_t)getpid());
    CHECK_STR(end.name, deleted);
    procfs_name_end(&with_pieces, (uint32_t)getpid());
    CHECK_STR(with_pieces.name, deleted);
    fd = close_fd(fd);
    procfs_name_end(&with_pieces, (uint32_t)getpid());
    CHECK_STR(with_pieces.name, path);
}

TEST("a file of which nothing is known says its device and inode")
{
    struct account_end end = {.key = {.kind = TRACE_END_FILE, .device = 250 << 20 | 3, .inode = 12}};
    procfs_name_end(&end, (uint32_t)getpid());
    CHECK_STR(end.name, "unknown file (250:3 inode 12)");
}

TEST("a path that the kernel's side had to cut is completed from the descriptors, or says that it is cut")
{
    FOLDER;
    char path[PATH_MAX], cut[PATH_MAX + 8];
    size_t used = (size_t)snprintf(path, sizeof path, "%s", folder.path);
    for (int i = 0; i < 8; i++) {
        used += (size_t)snprintf(path + used, sizeof path - used, "/%040d", i);
        CHECK(mkdir(path, 0700) == 0);
    }
    snprintf(path + used, sizeof path - used, "/file");
    CLEANUP_FD int fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    struct account_end end = end_of(path, path);
    procfs_name_end(&end, (uint32_t)getpid());
    CHECK(strncmp(end.name, folder.path, strlen(folder.path)) == 0 && strstr(end.name, "…") != NULL);
    fd = close_fd(fd);
    snprintf(cut, sizeof cut, "…/%040d/%040d/%040d/%040d/file", 4, 5, 6, 7);
    procfs_name_end(&end, (uint32_t)getpid());
    CHECK_STR(end.name, cut);
}

TEST("memory that is a file has the name that it was given")
{
    CLEANUP_FD int fd = memfd_create("scratch", MFD_CLOEXEC);
    struct stat status;
    CHECK(fstat(fd, &status) == 0);
    struct account_end end = {.key = {.kind = TRACE_END_FILE,
                                      .device = major(status.st_dev) << 20 | minor(status.st_dev),
                                      .inode = status.st_ino},
                              .value = {.name = "memfd:scratch", .name_size = 14}};
    procfs_name_end(&end, INT32_MAX);
    CHECK_STR(end.name, "memfd:scratch");
}

static const char *inet_name(enum trace_end_kind kind, int family, const char *remote, bool port_is_local,
                             uint32_t port)
{
    static struct account_end end;
    end = (struct account_end){
        .key = {.kind = (uint8_t)kind, .family = (uint8_t)family, .port_is_local = port_is_local, .port = port}};
    if (remote != NULL && inet_pton(family, remote, end.key.remote) != 1)
        abort();
    procfs_name_end(&end, 0);
    return end.name;
}

TEST("sockets are named by the port that is not ephemeral: a service here, or one elsewhere")
{
    CHECK_STR(inet_name(TRACE_END_TCP, AF_INET, "127.0.0.1", true, 8080), "tcp :8080 (127.0.0.1)");
    CHECK_STR(inet_name(TRACE_END_TCP, AF_INET, "10.0.0.7", false, 443), "tcp to 10.0.0.7:443");
    CHECK_STR(inet_name(TRACE_END_TCP, AF_INET6, "2001:db8::1", false, 443), "tcp to [2001:db8::1]:443");
    CHECK_STR(inet_name(TRACE_END_TCP, AF_INET6, "::1", true, 80), "tcp :80 (::1)");
    CHECK_STR(inet_name(TRACE_END_TCP, AF_INET6, "::ffff:10.0.0.7", false, 443), "tcp to 10.0.0.7:443");
    CHECK_STR(inet_name(TRACE_END_UDP, AF_INET, NULL, true, 53), "udp :53");
}

TEST("Unix sockets by path, abstract name or number, never by what may be an address of the kernel; pipes by number")
{
    struct account_end end = {.key = {.kind = TRACE_END_UNIX}, .value = {.name = "/run/x.sock", .name_size = 12}};
    procfs_name_end(&end, 0);
    CHECK_STR(end.name, "unix /run/x.sock");
    end.value = (struct trace_end_value){.name = "\0x\0y", .name_size = 4};
    procfs_name_end(&end, 0);
    CHECK_STR(end.name, "unix @x@y");
    end.value = (struct trace_end_value){.name_size = 0};
    end.key.inode = 4711;
    procfs_name_end(&end, 0);
    CHECK_STR(end.name, "unix socket 4711");
    end.key.inode = UINT64_C(0xffff888012345678);
    procfs_name_end(&end, 0);
    CHECK_STR(end.name, "unix socket");
    end.key.kind = TRACE_END_PIPE;
    end.key.inode = 12;
    procfs_name_end(&end, 0);
    CHECK_STR(end.name, "pipe 12");
    end = (struct account_end){.key = {.kind = TRACE_END_SOCKET, .family = AF_NETLINK}};
    procfs_name_end(&end, 0);
    CHECK_STR(end.name, "netlink socket");
    end = (struct account_end){.key = {.kind = TRACE_END_NONE}};
    procfs_name_end(&end, 0);
    CHECK_STR(end.name, "unknown");
}

/* ---- Processes ---- */

/* A child that does what it is told: 'r' reads 100000 bytes of /dev/zero, 's' sends 100000 by sendfile, 'w' burns
 * 50 ms of CPU in a thread that ends, 'c' has a child of its own that reads 100000 and is waited for. */
struct worker {
    pid_t pid;
    int orders, answers;
};

#define PIECE 100000

static void read_piece(void)
{
    char buffer[PIECE];
    CLEANUP_FD int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    if (read(fd, buffer, sizeof buffer) != PIECE)
        _exit(2);
}

static void *burn(void *unused)
{
    struct timespec now;
    do
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    while (now.tv_sec == 0 && now.tv_nsec < 50000000);
    return unused;
}

static void serve(const char *name, int orders, int answers)
{
    char order;
    pthread_t thread;
    prctl(PR_SET_NAME, name);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (write(answers, "!", 1) != 1)
        _exit(2);
    while (read(orders, &order, 1) == 1) {
        if (order == 'r')
            read_piece();
        if (order == 'w' && pthread_create(&thread, NULL, burn, NULL) == 0)
            pthread_join(thread, NULL);
        if (order == 's') {
            CLEANUP_FD int from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
            CLEANUP_FD int to = memfd_create("to", MFD_CLOEXEC);
            if (sendfile(to, from, NULL, 10000) != 10000)
                _exit(2);
        }
        if (order == 'c') {
            pid_t child = fork();
            if (child == 0) {
                read_piece();
                _exit(0);
            }
            if (waitpid(child, NULL, 0) != child)
                _exit(2);
        }
        if (order == 'f' || order == 'k') { /* a child that stays until 'k' */
            static pid_t child;
            if (order == 'f' && (child = fork()) == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                read_piece();
                if (write(answers, "!", 1) != 1)
                    _exit(2);
                for (;;)
                    pause();
            }
            if (order == 'f')
                continue; /* the child answers */
            kill(child, SIGKILL);
            waitpid(child, NULL, 0);
        }
        if (write(answers, "!", 1) != 1)
            _exit(2);
    }
    _exit(0);
}

static void await(struct worker *worker)
{
    char answer;
    CHECK(read(worker->answers, &answer, 1) == 1);
}

static void start(struct worker *worker, const char *name)
{
    int orders[2], answers[2];
    CHECK(pipe2(orders, O_CLOEXEC) == 0 && pipe2(answers, O_CLOEXEC) == 0);
    fflush(stdout);
    worker->pid = fork();
    if (worker->pid == 0) {
        close(orders[1]);
        close(answers[0]);
        serve(name, orders[0], answers[1]);
    }
    close(orders[0]);
    close(answers[1]);
    worker->orders = orders[1];
    worker->answers = answers[0];
    await(worker);
}

static void order(struct worker *worker, char what)
{
    CHECK(write(worker->orders, &what, 1) == 1);
    await(worker);
}

static void stop(struct worker *worker)
{
    if (worker->pid > 0) {
        worker->orders = close_fd(worker->orders);
        worker->answers = close_fd(worker->answers);
        kill(worker->pid, SIGKILL);
        waitpid(worker->pid, NULL, 0);
        worker->pid = 0;
    }
}
#define WORKER(name, comm)                                                                                             \
    __attribute__((cleanup(stop))) struct worker name = {0, -1, -1};                                                   \
    start(&name, comm)

struct session {
    struct procfs *procfs;
    struct account *account;
};

static void close_session(struct session *session)
{
    procfs_free(session->procfs);
    account_free(session->account);
}
#define SESSION                                                                                                        \
    __attribute__((cleanup(close_session))) struct session session = {NULL, NULL};                                     \
    CHECK(procfs_new(&session.procfs) == 0 && account_new(ACCOUNT_TIER_PROC, &session.account) == 0)

static bool listed(const uint32_t *pids, int count, pid_t pid)
{
    for (int i = 0; i < count; i++)
        if (pids[i] == (uint32_t)pid)
            return true;
    return false;
}

TEST("processes are found by names with spaces and parentheses, among all, and as children")
{
    char comm[TRACE_COMM_SIZE]; /* of this run alone: others may run beside it */
    snprintf(comm, sizeof comm, "a) S (%u", (unsigned)getpid() % 10000000);
    WORKER(worker, comm);
    CLEANUP_FREE uint32_t *pids = NULL, *all = NULL, *children = NULL;
    int count = procfs_find_by_comm(comm, &pids);
    CHECK_EQ(count, 1);
    CHECK(listed(pids, count, worker.pid));
    count = procfs_find_all(&all);
    CHECK(listed(all, count, worker.pid) && !listed(all, count, getpid()));
    count = procfs_children((uint32_t)getpid(), &children);
    CHECK(listed(children, count, worker.pid));
}

TEST("processes of a group and those below it are found")
{
    FOLDER;
    char path[96];
    CLEANUP_FREE uint32_t *pids = NULL;
    uint32_t *none = NULL;
    CHECK_EQ(procfs_find_by_cgroup(folder.path, &none), -EINVAL);
    CHECK_EQ(procfs_find_by_cgroup("/nowhere", &none), -ENOENT);
    /* Only the names of its files make a directory a group; the files are read as the kernel writes them. */
    snprintf(path, sizeof path, "%s/below", folder.path);
    CHECK(mkdir(path, 0700) == 0);
    snprintf(path, sizeof path, "%s/cgroup.procs", folder.path);
    FILE *file = fopen(path, "w");
    fputs("12\n0\n34\n", file);
    fclose(file);
    snprintf(path, sizeof path, "%s/below/cgroup.procs", folder.path);
    file = fopen(path, "w");
    fputs("56\n", file);
    fclose(file);
    int count = procfs_find_by_cgroup(folder.path, &pids);
    CHECK_EQ(count, 3);
    CHECK(listed(pids, count, 12) && listed(pids, count, 34) && listed(pids, count, 56));
}

TEST("CPU time has what threads used that are no more, and none from before the session")
{
    WORKER(worker, "burner");
    order(&worker, 'w');
    poll(NULL, 0, 30); /* what starts within a hundredth of a second counts as started later */
    SESSION;
    CHECK(account_enter_process(session.account, (uint32_t)worker.pid, 0, NULL) == 0);
    procfs_enter_cpu(session.procfs, session.account);
    const struct account_process *process = account_process(session.account, (uint32_t)worker.pid);
    CHECK_STR(process->comm, "burner");
    CHECK_EQ(process->parent, getpid());
    CHECK_EQ(process->cpu_ns, 0);
    order(&worker, 'w');
    procfs_enter_cpu(session.procfs, session.account);
    process = account_process(session.account, (uint32_t)worker.pid);
    CHECK(process->cpu_ns >= 50000000 && process->cpu_ns < 100000000);
}

TEST("CPU time of a process that was born in the session counts from its birth")
{
    SESSION;
    WORKER(worker, "burner");
    order(&worker, 'w');
    CHECK(account_enter_process(session.account, (uint32_t)worker.pid, 0, NULL) == 0);
    procfs_enter_cpu(session.procfs, session.account);
    CHECK(account_process(session.account, (uint32_t)worker.pid)->cpu_ns >= 50000000);
    pid_t pid = worker.pid;
    stop(&worker);
    procfs_enter_cpu(session.procfs, session.account);
    CHECK(account_process(session.account, (uint32_t)pid)->exited);
}

/* Sums over the flows of all processes, or of one. */
static struct trace_flow_value moved(struct session *session, enum trace_mechanism mechanism, pid_t pid)
{
    size_t count;
    const struct account_row *rows = account_rows(session->account, false, &count);
    struct trace_flow_value sum = {.bytes = 0};
    for (size_t i = 0; i < count; i++) {
        if (rows[i].key.mechanism != mechanism || (pid != 0 && rows[i].key.pid != (uint32_t)pid))
            continue;
        sum.bytes += rows[i].value.bytes;
        sum.calls += rows[i].value.calls;
        CHECK_EQ(rows[i].unknown_bytes, rows[i].value.bytes);
        CHECK_EQ(rows[i].evidence, ACCOUNT_UNKNOWN);
    }
    return sum;
}

/* The worker's own orders and answers are a byte each. */
static bool about(uint64_t value, uint64_t want)
{
    return value >= want && value < want + 50;
}

#define ENTER(worker, follow)                                                                                          \
    CHECK_EQ(procfs_enter_io(session.procfs, session.account, (uint32_t)worker.pid, follow), 0)

TEST("tier (c) counts what read() returned since the first look, of unknown ends, and copies are unknown")
{
    WORKER(worker, "reader");
    order(&worker, 'r');
    poll(NULL, 0, 30);
    SESSION;
    ENTER(worker, false);
    CHECK_EQ(moved(&session, TRACE_READ, 0).bytes, 0);
    order(&worker, 'r');
    ENTER(worker, false);
    CHECK(about(moved(&session, TRACE_READ, worker.pid).bytes, PIECE));
    CHECK(about(moved(&session, TRACE_READ, worker.pid).calls, 1));
    CHECK_STR(account_process(session.account, (uint32_t)worker.pid)->comm, "reader");
}

TEST("tier (c) cannot tell sendfile from read and write: it is in both")
{
    SESSION;
    WORKER(worker, "sender");
    order(&worker, 's');
    ENTER(worker, false);
    CHECK(about(moved(&session, TRACE_READ, 0).bytes, 10000));
    CHECK(about(moved(&session, TRACE_WRITE, 0).bytes, 10000));
}

TEST("children are counted once: as their own while they live, for their parent what nobody saw of them")
{
    SESSION;
    WORKER(worker, "parent");
    ENTER(worker, true);
    uint64_t before = moved(&session, TRACE_READ, 0).bytes;
    order(&worker, 'c'); /* lived and died between two looks */
    ENTER(worker, true);
    CHECK(about(moved(&session, TRACE_READ, worker.pid).bytes - before, PIECE));
    order(&worker, 'f'); /* lives */
    poll(NULL, 0, 150);  /* snapshots of /proc are that old at most */
    ENTER(worker, true);
    CHECK(about(moved(&session, TRACE_READ, worker.pid).bytes - before, PIECE));
    CHECK(about(moved(&session, TRACE_READ, 0).bytes - before, 2 * PIECE));
    order(&worker, 'k'); /* died, and its figures went to its parent */
    ENTER(worker, true);
    ENTER(worker, true);
    CHECK(about(moved(&session, TRACE_READ, 0).bytes - before, 2 * PIECE));
}

TEST("a process that is gone is no failure")
{
    SESSION;
    WORKER(worker, "short");
    ENTER(worker, true);
    struct worker gone = {.pid = worker.pid};
    stop(&worker);
    ENTER(gone, true);
    ENTER(gone, true);
    CHECK_EQ(procfs_enter_io(session.procfs, session.account, INT32_MAX, true), 0);
}

TEST("what a hypervisor took is told apart from what the machine used, idle time left out")
{
    struct procfs_machine machine = {0};
    CHECK(procfs_parse_machine("cpu  10 20 30 4000 500 6 7 80 9 9\n", &machine));
    CHECK_EQ(machine.used, 10 + 20 + 30 + 6 + 7);
    CHECK_EQ(machine.stolen, 80);
    CHECK(!procfs_parse_machine("intr 1 2 3\n", &machine));
    CHECK(procfs_machine().used > 0);
}

CHECK_MAIN()
