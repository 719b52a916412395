/* SPDX-License-Identifier: MIT
 *
 * Confinement cannot be undone, so each test confines a child and asks it what it can still do.
 */
#include "service/confine.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "check.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a child found: the report, and a line about the first thing that was not as it should be. */
struct outcome {
    struct confine_report report;
    int result;
    char wrong[200];
};

static struct outcome *outcome;
static char directory[64];
static int directory_fd = -1;

#define EXPECT(condition)                                                                                              \
    do {                                                                                                               \
        if (!(condition) && outcome->wrong[0] == '\0')                                                                 \
            snprintf(outcome->wrong, sizeof outcome->wrong, "line %d: %.120s (errno %s)", __LINE__, #condition,        \
                     text_errno_name(errno));                                                                          \
    } while (0)

static void make_directory(void)
{
    if (directory_fd >= 0)
        return;
    snprintf(directory, sizeof directory, "/tmp/sluice-test-confine-XXXXXX");
    CHECK(mkdtemp(directory) != NULL);
    directory_fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    CLEANUP_FD int file = openat(directory_fd, "file", O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    CHECK_EQ(write(file, "hello", 5), 5);
    outcome = mmap(NULL, sizeof *outcome, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(outcome != MAP_FAILED);
}

__attribute__((destructor)) static void remove_directory(void)
{
    if (directory_fd < 0)
        return;
    unlinkat(directory_fd, "file", 0);
    rmdir(directory);
}

/* Confine a child by options, run check in it, and return its wait status. */
static int run(struct confine_options options, void (*check)(void))
{
    make_directory();
    memset(outcome, 0, sizeof *outcome);
    options.read_directories = &directory_fd;
    options.read_directory_count = 1;
    pid_t pid = fork();
    if (pid == 0) {
        struct failure failure = {.text = ""};
        outcome->result = confine_worker(&options, &outcome->report, &failure);
        if (outcome->result < 0)
            snprintf(outcome->wrong, sizeof outcome->wrong, "%.190s", failure.text);
        else if (check != NULL)
            check();
        _exit(0);
    }
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    return status;
}

#define CHECK_RUN(options, check)                                                                                      \
    do {                                                                                                               \
        CHECK_EQ(run((options), (check)), 0);                                                                          \
        CHECK_STR(outcome->wrong, "");                                                                                 \
    } while (0)

#define NEED(what)                                                                                                     \
    do {                                                                                                               \
        if (!outcome->report.what)                                                                                     \
            SKIP(#what " is not in force here; needs a kernel that has it");                                           \
    } while (0)

static void serve_a_file(void)
{
    char text[8] = "";
    CLEANUP_FD int file = openat(directory_fd, "file", O_RDONLY | O_CLOEXEC);
    EXPECT(file >= 0);
    struct stat status;
    EXPECT(fstat(file, &status) == 0 && status.st_size == 5);
    EXPECT(pread(file, text, 5, 0) == 5);
    CLEANUP_FD int listing = openat(directory_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    char entries[512];
    EXPECT(syscall(SYS_getdents64, listing, entries, sizeof entries) > 0);
    int pipes[2];
    EXPECT(pipe2(pipes, O_CLOEXEC) == 0);
    EXPECT(splice(file, &(off_t){0}, pipes[1], NULL, 5, 0) == 5);
    EXPECT(sendfile(pipes[1], file, &(off_t){0}, 5) == 5);
    CLEANUP_FD int epoll = epoll_create1(EPOLL_CLOEXEC);
    EXPECT(epoll >= 0);
    struct epoll_event event = {.events = EPOLLIN};
    EXPECT(epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[0], &event) == 0);
    EXPECT(epoll_wait(epoll, &event, 1, 0) == 1);
    int waiting;
    EXPECT(ioctl(pipes[0], FIONREAD, &waiting) == 0 && waiting == 10);
    free(malloc(1 << 22));
}

TEST("a confined worker still serves the files beneath its directory")
{
    struct confine_options options = {.groups = CONFINE_ACCEPT};
    CHECK_RUN(options, serve_a_file);
    CHECK(outcome->report.no_new_privs);
    CHECK(outcome->report.line_count >= 4);
}

static void leave_the_directory(void)
{
    EXPECT(open("/etc/passwd", O_RDONLY | O_CLOEXEC) < 0 && errno == EACCES);
    EXPECT(openat(directory_fd, "../../etc/passwd", O_RDONLY | O_CLOEXEC) < 0 && errno == EACCES);
    EXPECT(openat(directory_fd, "file", O_WRONLY | O_CLOEXEC) < 0 && errno == EACCES);
    EXPECT(openat(directory_fd, "new", O_WRONLY | O_CREAT | O_CLOEXEC, 0600) < 0 && errno == EACCES);
}

TEST("files elsewhere cannot be opened, and none can be written")
{
    struct confine_options options = {.groups = CONFINE_ACCEPT, .without_seccomp = true};
    CHECK_EQ(run(options, leave_the_directory), 0);
    NEED(landlock);
    CHECK_STR(outcome->wrong, "");
}

static void write_files(void)
{
    CLEANUP_FD int file = openat(directory_fd, "new", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    EXPECT(write(file, "hello", 5) == 5);
    EXPECT(ftruncate(file, 2) == 0);
    EXPECT(renameat(directory_fd, "new", directory_fd, "newer") == 0);
    EXPECT(unlinkat(directory_fd, "newer", 0) == 0);
    EXPECT(!outcome->report.landlock || open("/tmp/sluice-test-outside", O_WRONLY | O_CREAT | O_CLOEXEC, 0600) < 0);
}

static void only_read_elsewhere(void)
{
    CLEANUP_FD int elsewhere = open("/etc/passwd", O_RDONLY | O_CLOEXEC);
    EXPECT(elsewhere >= 0);
    EXPECT(open("/tmp/sluice-test-written", O_WRONLY | O_CREAT | O_CLOEXEC, 0600) < 0);
    serve_a_file();
}

TEST("a worker that has to read anywhere may, and still writes nowhere, and the report says why")
{
    CHECK_RUN(((struct confine_options){.read_anywhere = "links lead anywhere"}), only_read_elsewhere);
    NEED(landlock);
    bool told = false;
    for (unsigned i = 0; i < outcome->report.line_count; i++)
        told |= strstr(outcome->report.lines[i], "reading only, but anywhere: links lead anywhere") != NULL;
    CHECK(told);
}

TEST("a worker that has to write files may, beneath its directory only")
{
    struct confine_options options = {.groups = CONFINE_WRITE_FILES};
    CHECK_RUN(options, write_files);
}

static int log_fd = -1;

static void write_to_the_log(void)
{
    EXPECT(write(log_fd, "line\n", 5) == 5);
}

TEST("a descriptor that was open before can still be written")
{
    make_directory();
    CLEANUP_FD int fd = memfd_create("log", MFD_CLOEXEC);
    log_fd = fd;
    struct confine_options options = {.groups = CONFINE_ACCEPT};
    CHECK_RUN(options, write_to_the_log);
    CHECK_EQ(lseek(fd, 0, SEEK_END), 5);
}

static void use_the_network(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)}};
    CLEANUP_FD int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT(bind(fd, (struct sockaddr *)&address, sizeof address) < 0 && errno == EACCES);
    address.sin_port = htons(9);
    EXPECT(connect(fd, (struct sockaddr *)&address, sizeof address) < 0 && errno == EACCES);
}

TEST("Landlock forbids TCP bind and connect")
{
    struct confine_options options = {.without_seccomp = true};
    CHECK_EQ(run(options, use_the_network), 0);
    NEED(landlock);
    if (outcome->report.landlock_abi < 4)
        SKIP("Landlock has no network rules here; needs Linux 6.7");
    CHECK_STR(outcome->wrong, "");
}

static void connect_out(void)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(9), .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)}};
    CLEANUP_FD int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT(fd >= 0);
    EXPECT(connect(fd, (struct sockaddr *)&address, sizeof address) < 0 && errno == ECONNREFUSED);
}

TEST("a worker that needs to connect may")
{
    struct confine_options options = {.groups = CONFINE_CONNECT};
    CHECK_RUN(options, connect_out);
}

static void make_sockets(void)
{
    EXPECT(socket(AF_INET, SOCK_STREAM, 0) < 0 && errno == EPERM);
    EXPECT(socket(AF_UNIX, SOCK_STREAM, 0) < 0 && errno == EPERM);
    EXPECT(socket(AF_NETLINK, SOCK_RAW, 9) < 0 && errno == EPERM); /* audit */
    CLEANUP_FD int route = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0);
    EXPECT(route >= 0);
    EXPECT(inotify_init1(0) < 0 && errno == EPERM);
    EXPECT(ftruncate(log_fd, 0) < 0 && errno == EPERM);
    EXPECT(ioctl(route, TIOCSTI, "x") < 0 && errno == EPERM);
    EXPECT(ioctl(route, (unsigned long)TIOCSTI | 1ul << 40, "x") < 0 && errno == EPERM);
    EXPECT(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 && errno == EPERM);
    EXPECT(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) < 0 && errno == EPERM);
}

TEST_WITHOUT_SANITIZERS("system calls that are not on the list fail with EPERM")
{
    struct confine_options options = {.groups = CONFINE_ACCEPT};
    CHECK_EQ(run(options, make_sockets), 0);
    NEED(seccomp);
    CHECK_STR(outcome->wrong, "");
}

static void watch_and_duplicate(void)
{
    EXPECT(inotify_init1(IN_CLOEXEC) >= 0);
    EXPECT(dup(2) >= 0);
    EXPECT(syscall(SYS_getpriority, 0 /* PRIO_PROCESS */, 0) >= 0);
}

TEST("groups and single names add to the list")
{
    static const char *const names[] = {"getpriority", "read", NULL}; /* one that the base group has, too */
    struct confine_options options = {.groups = CONFINE_WATCH_FILES, .system_calls = names};
    CHECK_RUN(options, watch_and_duplicate);
}

static void run_a_program(void)
{
    execl("/bin/true", "true", (char *)NULL);
}

TEST_WITHOUT_SANITIZERS("what only an intruder does ends the process")
{
    struct confine_options options = {.groups = CONFINE_ACCEPT};
    int status = run(options, run_a_program);
    NEED(seccomp);
    CHECK(WIFSIGNALED(status));
    CHECK_EQ(WTERMSIG(status), SIGSYS);
}

static void *helper(void *context)
{
    int fd = open("/etc/passwd", O_RDONLY | O_CLOEXEC);
    EXPECT(fd < 0);
    char text[5];
    CLEANUP_FD int file = openat(directory_fd, "file", O_RDONLY | O_CLOEXEC);
    EXPECT(read(file, text, sizeof text) == 5);
    free(malloc(100000));
    *(int *)context = 42;
    return NULL;
}

static void start_a_thread(void)
{
    pthread_t thread;
    int done = 0;
    EXPECT(pthread_create(&thread, NULL, helper, &done) == 0);
    if (outcome->wrong[0] == '\0')
        pthread_join(thread, NULL);
    EXPECT(done == 42);
    if (outcome->report.seccomp)
        EXPECT(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) < 0 && errno == EPERM);
}

TEST("helper threads can be made afterwards where permitted, are confined, too, and processes cannot")
{
    struct confine_options options = {.groups = CONFINE_THREADS};
    CHECK_EQ(run(options, start_a_thread), 0);
    NEED(landlock);
    CHECK_STR(outcome->wrong, "");
}

static void *idle(void *context)
{
    char byte;
    return read(*(int *)context, &byte, 1) < 0 ? NULL : context;
}

TEST_WITHOUT_SANITIZERS("a process that has other threads already is refused")
{
    make_directory();
    int fds[2];
    CHECK_EQ(pipe2(fds, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        pthread_t thread;
        struct confine_options options = {.groups = 0};
        struct confine_report report;
        struct failure failure;
        if (pthread_create(&thread, NULL, idle, &fds[0]) != 0)
            _exit(1);
        int result = confine_worker(&options, &report, &failure);
        _exit(result == -EBUSY ? 9 : 1);
    }
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    close(fds[0]);
    close(fds[1]);
    CHECK_EQ(WEXITSTATUS(status), 9);
}

static void look_at_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    EXPECT(syscall(SYS_capget, &header, data) == 0);
    EXPECT((data[0].effective & ~(1u << CAP_DAC_READ_SEARCH)) == 0 && data[1].effective == 0);
    EXPECT((data[0].permitted & ~(1u << CAP_DAC_READ_SEARCH)) == 0 && data[1].permitted == 0);
    EXPECT(fchmodat(directory_fd, "file", 0, 0) == 0);
    CLEANUP_FD int file = openat(directory_fd, "file", O_RDONLY | O_CLOEXEC);
    EXPECT(geteuid() != 0 || file >= 0);
    EXPECT(openat(directory_fd, "file", O_WRONLY | O_CLOEXEC) < 0);
    EXPECT(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
}

TEST("all capabilities go but the one that keeps root's files readable")
{
    struct confine_options options = {.without_landlock = true, .without_seccomp = true};
    CHECK_RUN(options, look_at_capabilities);
    CHECK_EQ(fchmodat(directory_fd, "file", 0644, 0), 0);
}

static int become_nobody(void)
{
    return setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0 ? 0 : -1;
}

TEST("it works without being root")
{
    make_directory();
    CHECK_EQ(chmod(directory, 0755), 0);
    memset(outcome, 0, sizeof *outcome);
    pid_t pid = fork();
    if (pid == 0) {
        struct confine_options options = {.read_directories = &directory_fd, .read_directory_count = 1};
        struct failure failure = {.text = ""};
        if (geteuid() == 0 && become_nobody() < 0)
            _exit(1);
        outcome->result = confine_worker(&options, &outcome->report, &failure);
        if (outcome->result == 0)
            serve_a_file();
        _exit(0);
    }
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
    CHECK_EQ(outcome->result, 0);
    CHECK_STR(outcome->wrong, "");
    CHECK(outcome->report.capabilities);
}

TEST_WITHOUT_SANITIZERS("a name that is no system call is refused")
{
    static const char *const names[] = {"teleport", NULL};
    struct confine_options options = {.system_calls = names};
    CHECK_EQ(run(options, NULL), 0);
    CHECK_EQ(outcome->result, -EINVAL);
    CHECK(strstr(outcome->wrong, "\"teleport\"") != NULL);
}

TEST("the report says what was left out")
{
    struct confine_options options = {.without_landlock = true, .without_seccomp = true, .without_capabilities = true};
    CHECK_RUN(options, NULL);
    CHECK(!outcome->report.landlock && !outcome->report.seccomp && !outcome->report.capabilities);
    CHECK_EQ(outcome->report.line_count, 4);
    CHECK_STR(outcome->report.lines[1], "Landlock: left out as asked");
}

CHECK_MAIN()
