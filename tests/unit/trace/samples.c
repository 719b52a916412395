/* SPDX-License-Identifier: MIT */
#include "app/trace/samples.c" /* for the rings, which are fed by hand here */
#include "check.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

/* ---- Invented rings ---- */

#define DATA_SIZE 4096U
enum { COPY_TO_ITER = 0x1000, SYSCALL = 0x2000, SOFTIRQ = 0x3000, IRQ_EXIT = 0x4000, TRANSFORM = 0x5000 };
static const char symbols[] = "0000000000001000 T _copy_to_iter\n"
                              "0000000000002000 T do_syscall_64\n"
                              "0000000000003000 t handle_softirqs\n"
                              "0000000000004000 T __irq_exit_rcu\n"
                              "0000000000005000 T chacha_block_xor_avx2\n"
                              "0000000000006000 T end\n";

struct scene {
    struct samples *samples;
    struct account *account;
    struct ring ring;
    _Alignas(4096) unsigned char memory[4096 + DATA_SIZE];
};

static void scene_free(struct scene **scene)
{
    if (*scene != NULL) {
        samples_close((*scene)->samples);
        account_free((*scene)->account);
        free(*scene);
    }
}
#define CLEANUP_SCENE __attribute__((cleanup(scene_free)))

/* A ring with nothing in it, at some position as it is after a while; process 77 is known to the account. */
static struct scene *scene_new(uint64_t position)
{
    struct scene *scene = aligned_alloc(4096, sizeof *scene);
    CHECK(scene != NULL);
    memset(scene, 0, sizeof *scene);
    scene->samples = calloc(1, sizeof *scene->samples);
    CHECK(scene->samples != NULL);
    scene->samples->walks = WALKS_MAX;
    char path[] = "/tmp/sluice-kallsyms-XXXXXX";
    CLEANUP_FD int fd = mkstemp(path);
    CHECK(fd >= 0 && write(fd, symbols, strlen(symbols)) == (ssize_t)strlen(symbols));
    int r = stacks_new(&(struct stacks_options){.kallsyms = path}, &scene->samples->stacks);
    unlink(path);
    CHECK_EQ(r, 0);
    CHECK_EQ(account_new(ACCOUNT_TIER_TRACEPOINTS, &scene->account), 0);
    CHECK_EQ(account_enter_process(scene->account, 77, 1, "somebody"), 0);
    scene->ring = (struct ring){.fd = -1, .memory = scene->memory, .size = DATA_SIZE};
    struct perf_event_mmap_page *page = (void *)scene->memory;
    page->data_offset = 4096;
    page->data_head = page->data_tail = position;
    return scene;
}

static void put(struct scene *scene, const void *record, size_t size)
{
    struct perf_event_mmap_page *page = (void *)scene->memory;
    CHECK(page->data_head + size - page->data_tail <= DATA_SIZE);
    for (size_t i = 0; i < size; i++)
        scene->memory[4096 + ((page->data_head + i) & (DATA_SIZE - 1))] = ((const unsigned char *)record)[i];
    page->data_head += size;
}

struct invented_sample {
    struct perf_event_header header;
    uint64_t address;
    uint32_t pid, thread;
    uint64_t count;
    uint64_t chain[4];
};

static struct invented_sample kernel_sample(uint32_t pid, uint64_t leaf, uint64_t outer, uint64_t outermost)
{
    struct invented_sample sample = {.address = leaf, .pid = pid, .thread = pid, .count = 4};
    sample.header = (struct perf_event_header){
        .type = PERF_RECORD_SAMPLE, .misc = PERF_RECORD_MISC_KERNEL, .size = (uint16_t)sizeof sample};
    sample.chain[0] = PERF_CONTEXT_KERNEL;
    sample.chain[1] = leaf;
    sample.chain[2] = outer;
    sample.chain[3] = outermost;
    return sample;
}

static const struct account_process *of(const struct scene *scene, uint32_t pid)
{
    const struct account_process *process = account_process(scene->account, pid);
    CHECK(process != NULL);
    return process;
}

static void check_empty(const struct scene *scene)
{
    const struct perf_event_mmap_page *page = (const void *)scene->memory;
    CHECK_EQ(page->data_tail, page->data_head);
}

TEST("samples are told apart into copying, transforming and other work")
{
    CLEANUP_SCENE struct scene *scene = scene_new(0);
    struct invented_sample copying = kernel_sample(77, COPY_TO_ITER + 8, SYSCALL, SYSCALL);
    struct invented_sample transforming = kernel_sample(77, TRANSFORM + 8, SYSCALL, SYSCALL);
    struct invented_sample other = kernel_sample(77, SYSCALL + 8, SYSCALL, SYSCALL);
    put(scene, &copying, sizeof copying);
    put(scene, &copying, sizeof copying);
    put(scene, &transforming, sizeof transforming);
    put(scene, &other, sizeof other);
    CHECK_EQ(drain_ring(scene->samples, &scene->ring, scene->account), 0);
    CHECK_EQ(of(scene, 77)->samples, 4);
    CHECK_EQ(of(scene, 77)->samples_copying_kernel, 2);
    CHECK_EQ(of(scene, 77)->samples_transforming, 1);
    CHECK_EQ(of(scene, 77)->samples_copying_user, 0);
    size_t count;
    const struct account_caller *callers = account_callers(scene->account, &count);
    CHECK_EQ(count, 1);
    CHECK_EQ(callers[0].samples, 2);
    CHECK_STR(callers[0].copier, "_copy_to_iter");
    CHECK(strncmp(callers[0].caller, "caller unknown", 14) == 0);
    check_empty(scene);
}

TEST("a record that wraps around the end of the ring is whole, wherever it is cut")
{
    struct invented_sample sample = kernel_sample(77, COPY_TO_ITER, SYSCALL, SYSCALL);
    for (uint64_t before = 8; before < sizeof sample; before += 8) {
        CLEANUP_SCENE struct scene *scene = scene_new(3 * DATA_SIZE - before);
        put(scene, &sample, sizeof sample);
        put(scene, &sample, sizeof sample);
        CHECK_EQ(drain_ring(scene->samples, &scene->ring, scene->account), 0);
        CHECK_EQ(of(scene, 77)->samples_copying_kernel, 2);
        check_empty(scene);
    }
}

TEST("processes that the account does not know are left out")
{
    CLEANUP_SCENE struct scene *scene = scene_new(0);
    struct invented_sample sample = kernel_sample(78, COPY_TO_ITER, SYSCALL, SYSCALL);
    put(scene, &sample, sizeof sample);
    CHECK_EQ(drain_ring(scene->samples, &scene->ring, scene->account), 0);
    CHECK(account_process(scene->account, 78) == NULL);
    CHECK_EQ(of(scene, 77)->samples, 0);
}

TEST("a copy in a softirq that an interrupt began is listed apart, and is no sample of the process that it hit")
{
    CLEANUP_SCENE struct scene *scene = scene_new(0);
    struct invented_sample sample = kernel_sample(77, COPY_TO_ITER, SOFTIRQ, IRQ_EXIT);
    put(scene, &sample, sizeof sample);
    sample = kernel_sample(77, COPY_TO_ITER, SOFTIRQ, SYSCALL);
    put(scene, &sample, sizeof sample);
    CHECK_EQ(drain_ring(scene->samples, &scene->ring, scene->account), 0);
    CHECK_EQ(samples_stray(scene->samples), 1);
    CHECK_EQ(of(scene, 77)->samples, 1);
    CHECK_EQ(of(scene, 77)->samples_copying_kernel, 1);
}

TEST("samples that found no room are counted")
{
    CLEANUP_SCENE struct scene *scene = scene_new(0);
    struct {
        struct perf_event_header header;
        uint64_t id, lost;
    } lost = {.header = {.type = PERF_RECORD_LOST, .size = sizeof lost}, .lost = 41};
    put(scene, &lost, sizeof lost);
    lost.lost = 1;
    put(scene, &lost, sizeof lost);
    CHECK_EQ(drain_ring(scene->samples, &scene->ring, scene->account), 0);
    CHECK_EQ(samples_lost(scene->samples), 42);
}

TEST("records that lie about their size do not lead out of the ring, and the ring goes on")
{
    CLEANUP_SCENE struct scene *scene = scene_new(0);
    struct invented_sample sample = kernel_sample(77, COPY_TO_ITER, SYSCALL, SYSCALL);
    sample.count = UINT64_MAX / 8; /* more frames than there is memory */
    put(scene, &sample, sizeof sample);
    sample.count = 5; /* one more than the record holds */
    put(scene, &sample, sizeof sample);
    struct perf_event_header mapping = {.type = PERF_RECORD_MMAP2, .size = sizeof mapping};
    put(scene, &mapping, sizeof mapping);
    CHECK_EQ(drain_ring(scene->samples, &scene->ring, scene->account), 0);
    CHECK_EQ(of(scene, 77)->samples, 0);
    check_empty(scene);
    sample = kernel_sample(77, COPY_TO_ITER, SYSCALL, SYSCALL);
    sample.header.size = 0;
    put(scene, &sample, sizeof sample);
    CHECK_EQ(drain_ring(scene->samples, &scene->ring, scene->account), 0);
    check_empty(scene);
    sample.header.size = sizeof sample + 8; /* more than was written */
    put(scene, &sample, sizeof sample);
    CHECK_EQ(drain_ring(scene->samples, &scene->ring, scene->account), 0);
    CHECK_EQ(of(scene, 77)->samples, 0);
    check_empty(scene);
    sample.header.size = sizeof sample;
    put(scene, &sample, sizeof sample);
    CHECK_EQ(drain_ring(scene->samples, &scene->ring, scene->account), 0);
    CHECK_EQ(of(scene, 77)->samples, 1);
}

TEST("records of exec, mmap, fork and exit are followed for processes that the account knows")
{
    CLEANUP_SCENE struct scene *scene = scene_new(0);
    struct {
        struct perf_event_header header;
        uint32_t pid, parent, thread, parent_thread;
        uint64_t time;
    } life = {.header = {.type = PERF_RECORD_FORK, .size = sizeof life}, .pid = 78, .parent = 77, .thread = 78};
    struct {
        struct perf_event_header header;
        uint32_t pid, thread;
        char comm[16];
    } comm = {.header = {.type = PERF_RECORD_COMM, .misc = PERF_RECORD_MISC_COMM_EXEC, .size = sizeof comm},
              .pid = 79,
              .comm = "x"};
    put(scene, &comm, sizeof comm); /* of a stranger */
    comm.pid = 77;
    put(scene, &comm, sizeof comm);
    put(scene, &life, sizeof life);
    CHECK_EQ(drain_ring(scene->samples, &scene->ring, scene->account), 0);
    CHECK(!stacks_knows(scene->samples->stacks, 79));
    CHECK(stacks_knows(scene->samples->stacks, 77));
    CHECK(stacks_knows(scene->samples->stacks, 78));
    life.header.type = PERF_RECORD_EXIT;
    life.thread = 80; /* a thread of it only */
    put(scene, &life, sizeof life);
    CHECK_EQ(drain_ring(scene->samples, &scene->ring, scene->account), 0);
    stacks_round(scene->samples->stacks);
    stacks_round(scene->samples->stacks);
    CHECK(stacks_knows(scene->samples->stacks, 78));
    life.thread = 78;
    put(scene, &life, sizeof life);
    CHECK_EQ(drain_ring(scene->samples, &scene->ring, scene->account), 0);
    stacks_round(scene->samples->stacks);
    stacks_round(scene->samples->stacks);
    CHECK(!stacks_knows(scene->samples->stacks, 78));
}

TEST("where the kernel hides its symbols, the limits say that its copies are not known, and why")
{
    CLEANUP_SCENE struct scene *scene = scene_new(0);
    struct samples_options options = {.frequency = 99};
    describe_limits(scene->samples, &options, true);
    CHECK(samples_kernel_known(scene->samples));
    CHECK(samples_limits(scene->samples) == NULL);
    stacks_free(TAKE_POINTER(scene->samples->stacks));
    CHECK_EQ(stacks_new(&(struct stacks_options){.kallsyms = "/dev/null"}, &scene->samples->stacks), 0);
    describe_limits(scene->samples, &options, false);
    CHECK(!samples_kernel_known(scene->samples));
    CHECK(strstr(samples_limits(scene->samples), "cannot be told") != NULL);
    CHECK(strstr(samples_limits(scene->samples), "kernel.kptr_restrict is ") != NULL);
    CHECK(strstr(samples_limits(scene->samples), "CAP_PERFMON is missing.") != NULL);
}

/* ---- This machine ---- */

static char from[65536], to[65536];

__attribute__((noinline)) static void push_and_pull(const int sockets[2])
{
    if (write(sockets[0], from, sizeof from) < 0 || read(sockets[1], to, sizeof to) < 0)
        _exit(1);
}

__attribute__((noinline)) static void copy_in_memory(size_t size)
{
    memcpy(to, from, size);
    __asm__ volatile("" : : "r"(to) : "memory");
}

__attribute__((noinline)) static void send_a_file(int file, int sink)
{
    off_t offset = 0;
    if (sendfile(sink, file, &offset, 1U << 20) < 0)
        _exit(1);
}

enum work { READ_AND_WRITE, COPY_IN_MEMORY, SENDFILE };

static pid_t start(enum work work)
{
    pid_t child = fork();
    if (child != 0)
        return child;
    int sockets[2] = {-1, -1};
    int file = memfd_create("sluice-test", MFD_CLOEXEC), sink = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0 || ftruncate(file, 1 << 20) != 0)
        _exit(1);
    volatile size_t size = sizeof to; /* for a compiler that would copy in line */
    alarm(20);
    for (;;) {
        if (work == READ_AND_WRITE)
            push_and_pull(sockets);
        else if (work == COPY_IN_MEMORY)
            copy_in_memory(size);
        else
            send_a_file(file, sink);
    }
}

struct live {
    struct samples *samples;
    struct account *account;
    pid_t child;
    struct account_process figures;
};

static void live_end(struct live *live)
{
    if (live->child > 0) {
        kill(live->child, SIGKILL);
        waitpid(live->child, NULL, 0);
    }
    samples_close(live->samples);
    account_free(live->account);
}
#define CLEANUP_LIVE __attribute__((cleanup(live_end)))

/* Sample a child for some 0.7 s of its work. */
static void watch_work(struct live *live, enum work work)
{
    struct failure failure = {0};
    int r = samples_open(&(struct samples_options){.frequency = 499, .callers = true}, &live->samples, &failure);
    if (r < 0) {
        printf("# %s\n", failure.text);
        SKIP("this machine refuses samples of the CPU; CAP_PERFMON would allow them");
    }
    CHECK_EQ(account_new(ACCOUNT_TIER_TRACEPOINTS, &live->account), 0);
    live->child = start(work);
    CHECK(live->child > 0);
    CHECK_EQ(account_enter_process(live->account, (uint32_t)live->child, (uint32_t)getpid(), "child"), 0);
    struct timespec begun, now;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    do { /* by the clock: on a busy machine, and with sanitizers, a drain may take its time */
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
        CHECK_EQ(samples_drain(live->samples, live->account), 0);
        live->figures = *account_process(live->account, (uint32_t)live->child);
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec > begun.tv_sec && live->figures.samples >= 100)
            return;
    } while (now.tv_sec - begun.tv_sec < 20);
    CHECK_FAIL("only %llu samples in twenty seconds", (unsigned long long)live->figures.samples);
}

#ifndef __SANITIZE_THREAD__ /* what it adds to each call and access is most of these loops */
/* The share of the samples of copying whose copier and caller are these. */
static double share_of_caller(const struct live *live, const char *copier, const char *caller)
{
    size_t count;
    uint64_t all = 0, these = 0;
    const struct account_caller *callers = account_callers(live->account, &count);
    for (size_t i = 0; i < count; i++) {
        all += callers[i].samples;
        if (strstr(callers[i].copier, copier) != NULL && strncmp(callers[i].caller, caller, strlen(caller)) == 0)
            these += callers[i].samples;
    }
    return all > 0 ? (double)these / (double)all : 0;
}

TEST("a loop of write and read spends a good part of its time in the kernel's copies, on behalf of its own function")
{
    CLEANUP_LIVE struct live live = {0};
    watch_work(&live, READ_AND_WRITE);
    if (!samples_kernel_known(live.samples))
        SKIP("/proc/kallsyms hides its addresses; CAP_SYSLOG, or kernel.kptr_restrict at 0, would show them");
    CHECK(live.figures.samples_copying_kernel * 100 >= live.figures.samples * 12);
    CHECK(live.figures.samples_copying_user * 100 <= live.figures.samples * 3);
    CHECK(share_of_caller(&live, "_iter", "push_and_pull (") > 0.8);
}

TEST("a loop of memcpy is copying in user space, nearly all of it, on behalf of its own function")
{
    CLEANUP_LIVE struct live live = {0};
    watch_work(&live, COPY_IN_MEMORY);
    CHECK(live.figures.samples_copying_kernel * 100 <= live.figures.samples * 3);
#ifndef __SANITIZE_ADDRESS__ /* its memcpy spends its time elsewhere */
    CHECK(live.figures.samples_copying_user * 100 >= live.figures.samples * 80);
    CHECK(share_of_caller(&live, "memcpy", "copy_in_memory (") > 0.8);
#endif
}
#endif

TEST("a loop of sendfile copies next to nothing")
{
    CLEANUP_LIVE struct live live = {0};
    watch_work(&live, SENDFILE);
    CHECK((live.figures.samples_copying_kernel + live.figures.samples_copying_user) * 100 <= live.figures.samples * 3);
}

TEST("a process can be watched by itself, with the children that it starts")
{
    CLEANUP_LIVE struct live live = {0};
    struct samples_options options = {.frequency = 499};
    live.samples = calloc(1, sizeof *live.samples);
    CHECK(live.samples != NULL);
    live.samples->sample_type = PERF_SAMPLE_IP | PERF_SAMPLE_TID | PERF_SAMPLE_CALLCHAIN;
    CHECK_EQ(stacks_new(&(struct stacks_options){0}, &live.samples->stacks), 0);
    CHECK_EQ(account_new(ACCOUNT_TIER_TRACEPOINTS, &live.account), 0);
    int r = watch_process(live.samples, &options, (uint32_t)getpid());
    if (r == -EACCES || r == -EPERM)
        SKIP(
            "this machine refuses samples of the CPU; kernel.perf_event_paranoid at 1 or CAP_PERFMON would allow them");
    CHECK_EQ(r, 0);
    live.child = start(COPY_IN_MEMORY);
    CHECK_EQ(account_enter_process(live.account, (uint32_t)live.child, (uint32_t)getpid(), "child"), 0);
    for (int i = 0; i < 50 && live.figures.samples < 50; i++) {
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
        CHECK_EQ(samples_drain(live.samples, live.account), 0);
        live.figures = *account_process(live.account, (uint32_t)live.child);
    }
    CHECK(live.figures.samples >= 50);
}

TEST("who may not sample is told which capability or setting is missing, with its value")
{
    char paranoid[32], text[768] = "";
    if (atoi(read_setting(PARANOID, paranoid, sizeof paranoid)) <= 0)
        SKIP("kernel.perf_event_paranoid lets everybody sample here; it would have to be 1 or more");
    if (geteuid() != 0)
        SKIP("needs root, to give its rights up");
    int answer[2];
    CHECK_EQ(pipe(answer), 0);
    pid_t child = fork();
    if (child == 0) {
        struct failure failure = {0};
        struct samples *samples = NULL;
        if (setgid(65534) != 0 || setuid(65534) != 0)
            _exit(1);
        int r = samples_open(&(struct samples_options){.frequency = 99}, &samples, &failure);
        _exit(r == -EACCES && failure.code == r && samples == NULL &&
                      write(answer[1], failure.text, sizeof failure.text) == (ssize_t)sizeof failure.text
                  ? 0
                  : 1);
    }
    int status = 0;
    close(answer[1]);
    ssize_t got = read(answer[0], text, sizeof text - 1);
    close(answer[0]);
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    CHECK(got > 0);
    char expected[64];
    snprintf(expected, sizeof expected, "kernel.perf_event_paranoid is %s.", paranoid);
    CHECK(strstr(text, "CAP_PERFMON is missing") != NULL);
    CHECK(strstr(text, expected) != NULL);
}

TEST("a frequency that the kernel refuses is told with the kernel's own limit")
{
    struct failure failure = {0};
    struct samples *samples = NULL;
    int r = samples_open(&(struct samples_options){.frequency = 4000000000U}, &samples, &failure);
    if (r == -EACCES || r == -EPERM)
        SKIP("this machine refuses samples of the CPU; CAP_PERFMON would allow them");
    CHECK_EQ(r, -EINVAL);
    CHECK(samples == NULL);
    CHECK(strstr(failure.text, "perf_event_max_sample_rate") != NULL);
}

CHECK_MAIN()
