/* SPDX-License-Identifier: MIT */
#include "samples.h"
#include "base/cleanup.h"
#include "stacks.h"

#include <asm/perf_regs.h>
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/perf_event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Rings hold half a second. With its user stack a sample takes some 4.6 KiB, without it less than 1 KiB. At 199 Hz that
 * makes the 512 KiB that an unprivileged user may lock for a CPU (kernel.perf_event_mlock_kb is 516: one page more, for
 * the header). */
#define SAMPLE_SIZE_WITH_STACK 4700U
#define SAMPLE_SIZE 1000U
#define RING_SIZE_MAX (8U << 20)
#define RING_SIZE_MIN (32U << 10)

/* The caller is a few frames away, all of the C library's in between being small. */
#define STACK_SIZE 4096U

/* Walks in one drain, at some 20 us each: what is left over is counted with its caller unknown. */
#define WALKS_MAX 400

#define RECORD_MAX 65536U /* header.size has 16 bits */

/* One CPU's samples. All events of a CPU write to the ring of its first. */
struct ring {
    int cpu;
    int fd; /* the event that owns the ring */
    void *memory;
    size_t size; /* of the data, a power of two */
};

struct samples {
    struct stacks *stacks;
    bool callers;
    uint64_t sample_type;
    struct ring *rings;
    size_t ring_count;
    int *others; /* events of further threads, where only some may be watched */
    size_t other_count;
    uint64_t lost, stray;
    unsigned walks; /* left in this drain */
    char limits[512];
    unsigned char record[RECORD_MAX] __attribute__((aligned(8))); /* one that wraps around the ring's end */
};

/* ---- Registers ---- */

#ifdef __x86_64__
/* Index: DWARF's number. */
static const unsigned char dwarf_registers[STACKS_REGISTERS] = {
    PERF_REG_X86_AX,  PERF_REG_X86_DX,  PERF_REG_X86_CX,  PERF_REG_X86_BX,  PERF_REG_X86_SI,  PERF_REG_X86_DI,
    PERF_REG_X86_BP,  PERF_REG_X86_SP,  PERF_REG_X86_R8,  PERF_REG_X86_R9,  PERF_REG_X86_R10, PERF_REG_X86_R11,
    PERF_REG_X86_R12, PERF_REG_X86_R13, PERF_REG_X86_R14, PERF_REG_X86_R15, PERF_REG_X86_IP};
#define CAN_WALK true
#elif defined(__aarch64__)
/* asm/perf_regs.h numbers them as DWARF does, x0 to x30 and sp, and then pc. */
static const unsigned char dwarf_registers[STACKS_REGISTERS] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10,
                                                                11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                                                22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32};
#define CAN_WALK true
#else
/* Other processors number their registers in other ways. */
static const unsigned char dwarf_registers[STACKS_REGISTERS];
#define CAN_WALK false
#endif

static uint64_t register_mask(void)
{
    uint64_t mask = 0;
    for (size_t i = 0; i < sizeof dwarf_registers; i++)
        mask |= UINT64_C(1) << dwarf_registers[i];
    return mask;
}

/* ---- Records ---- */

/* Fields of a record, taken one after the other; what lies behind its end reads as failure, never as memory. */
struct cursor {
    const unsigned char *position, *end;
    bool failed;
};

static const void *take(struct cursor *cursor, size_t size)
{
    if (cursor->failed || (size_t)(cursor->end - cursor->position) < size) {
        cursor->failed = true;
        return NULL;
    }
    const void *taken = cursor->position;
    cursor->position += size;
    return taken;
}

static uint64_t take_u64(struct cursor *cursor)
{
    uint64_t value = 0;
    const void *taken = take(cursor, sizeof value);
    if (taken != NULL)
        memcpy(&value, taken, sizeof value);
    return value;
}

static uint32_t take_u32(struct cursor *cursor)
{
    uint32_t value = 0;
    const void *taken = take(cursor, sizeof value);
    if (taken != NULL)
        memcpy(&value, taken, sizeof value);
    return value;
}

/* The kernel's part of a chain: entries between its mark and the next. */
static const uint64_t *kernel_chain(const uint64_t *chain, size_t count, size_t *ret_depth)
{
    size_t start = 0, end;
    while (start < count && chain[start] != PERF_CONTEXT_KERNEL)
        start++;
    start = start < count ? start + 1 : count;
    for (end = start; end < count && chain[end] < PERF_CONTEXT_MAX; end++)
        ;
    *ret_depth = end - start;
    return chain + start;
}

static void find_caller(struct samples *samples, uint32_t pid, struct cursor *cursor, char *caller, size_t size)
{
    if (!samples->callers) {
        snprintf(caller, size, "caller unknown (not asked for)");
        return;
    }
    uint64_t abi = take_u64(cursor);
    if (abi != PERF_SAMPLE_REGS_ABI_64) {
        snprintf(caller, size, "caller unknown (%s)",
                 abi == PERF_SAMPLE_REGS_ABI_32 ? "a 32-bit program" : "a thread of the kernel");
        return;
    }
    /* The kernel writes registers in the order of its bits. */
    struct stacks_thread thread = {0};
    uint64_t by_bit[64] = {0};
    uint64_t mask = register_mask();
    for (unsigned bit = 0; bit < 64; bit++) {
        if ((mask >> bit & 1) != 0)
            by_bit[bit] = take_u64(cursor);
    }
    for (size_t i = 0; i < sizeof dwarf_registers; i++)
        thread.registers[i] = by_bit[dwarf_registers[i]];
    uint64_t dumped = take_u64(cursor);
    if (dumped != 0) {
        thread.stack = take(cursor, dumped);
        thread.stack_size = take_u64(cursor);
        if (thread.stack_size > dumped)
            thread.stack_size = dumped;
    }
    if (cursor->failed) {
        snprintf(caller, size, "caller unknown (no stack came with the sample)");
    } else if (samples->walks == 0) {
        snprintf(caller, size, "caller unknown (too many samples at once)");
    } else {
        samples->walks--;
        stacks_find_caller(samples->stacks, pid, &thread, caller, size);
    }
}

static int enter_sample(struct samples *samples, struct account *account, unsigned mode, struct cursor cursor)
{
    uint64_t address = take_u64(&cursor);
    uint32_t pid = take_u32(&cursor);
    take_u32(&cursor); /* thread */
    uint64_t count = take_u64(&cursor);
    const uint64_t *chain = count <= RECORD_MAX / sizeof *chain ? take(&cursor, count * sizeof *chain) : NULL;
    if (chain == NULL || account_process(account, pid) == NULL)
        return 0;

    struct account_process increment = {.pid = pid, .samples = 1};
    struct stacks_verdict verdict = {.kind = FRAME_OTHER};
    bool in_kernel = mode == PERF_RECORD_MISC_KERNEL;
    if (in_kernel) {
        size_t depth;
        const uint64_t *kernel = kernel_chain(chain, count, &depth);
        verdict = stacks_judge_kernel(samples->stacks, depth > 0 ? kernel : &address, depth > 0 ? depth : 1);
        if (verdict.stray) {
            samples->stray += verdict.kind == FRAME_COPIES;
            return 0;
        }
    } else if (mode == PERF_RECORD_MISC_USER) {
        verdict = stacks_judge_user(samples->stacks, pid, address);
    }
    increment.samples_transforming = verdict.kind == FRAME_TRANSFORMS;
    increment.samples_copying_kernel = verdict.kind == FRAME_COPIES && in_kernel;
    increment.samples_copying_user = verdict.kind == FRAME_COPIES && !in_kernel;
    int r = account_enter_process_figures(account, &increment);
    if (r < 0 || verdict.kind != FRAME_COPIES)
        return r;
    struct account_caller caller = {.pid = pid, .samples = 1};
    snprintf(caller.copier, sizeof caller.copier, "%s", verdict.copier);
    find_caller(samples, pid, &cursor, caller.caller, sizeof caller.caller);
    return account_enter_caller(account, &caller);
}

static int enter_mapping(struct samples *samples, struct account *account, struct cursor cursor)
{
    uint32_t pid = take_u32(&cursor);
    take_u32(&cursor); /* thread */
    struct stacks_mapping mapping = {.start = take_u64(&cursor)};
    mapping.end = mapping.start + take_u64(&cursor);
    mapping.offset = take_u64(&cursor);
    take_u64(&cursor); /* device */
    mapping.inode = take_u64(&cursor);
    take_u64(&cursor); /* generation */
    take_u64(&cursor); /* rights, flags: executable ones only are asked for */
    mapping.path = (const char *)cursor.position;
    if (cursor.failed || memchr(cursor.position, '\0', (size_t)(cursor.end - cursor.position)) == NULL ||
        (account_process(account, pid) == NULL && !stacks_knows(samples->stacks, pid)))
        return 0;
    return stacks_mapped(samples->stacks, pid, &mapping);
}

static int enter_record(struct samples *samples, struct account *account, const struct perf_event_header *header)
{
    struct cursor cursor = {.position = (const unsigned char *)(header + 1),
                            .end = (const unsigned char *)header + header->size};
    uint32_t pid, parent, thread;
    switch (header->type) {
    case PERF_RECORD_SAMPLE:
        return enter_sample(samples, account, header->misc & PERF_RECORD_MISC_CPUMODE_MASK, cursor);
    case PERF_RECORD_MMAP2:
        return enter_mapping(samples, account, cursor);
    case PERF_RECORD_COMM:
        pid = take_u32(&cursor);
        if ((header->misc & PERF_RECORD_MISC_COMM_EXEC) != 0 && !cursor.failed &&
            (account_process(account, pid) != NULL || stacks_knows(samples->stacks, pid)))
            return stacks_executed(samples->stacks, pid);
        return 0;
    case PERF_RECORD_FORK:
    case PERF_RECORD_EXIT:
        pid = take_u32(&cursor);
        parent = take_u32(&cursor);
        thread = take_u32(&cursor);
        if (cursor.failed || pid != thread) /* a thread, not a process */
            return 0;
        if (header->type == PERF_RECORD_EXIT)
            stacks_exited(samples->stacks, pid);
        else if (pid != parent)
            return stacks_forked(samples->stacks, pid, parent);
        return 0;
    case PERF_RECORD_LOST:
        take_u64(&cursor); /* the event */
        samples->lost += take_u64(&cursor);
        return 0;
    default:
        return 0;
    }
}

/* The record at tail, in one piece: in the ring itself, or copied where it wraps around. NULL: nothing sensible. */
static const struct perf_event_header *record_at(struct samples *samples, const unsigned char *data, size_t ring_size,
                                                 uint64_t tail, uint64_t head)
{
    size_t offset = (size_t)(tail & (ring_size - 1));
    const struct perf_event_header *header = (const void *)(data + offset); /* 8-byte steps: never cut in two */
    size_t size = header->size;
    if (size < sizeof *header || size > head - tail)
        return NULL;
    size_t until_end = ring_size - offset;
    if (size <= until_end)
        return header;
    memcpy(samples->record, data + offset, until_end);
    memcpy(samples->record + until_end, data, size - until_end);
    return (const void *)samples->record;
}

static int drain_ring(struct samples *samples, const struct ring *ring, struct account *account)
{
    struct perf_event_mmap_page *page = ring->memory;
    const unsigned char *data = (const unsigned char *)ring->memory + page->data_offset;
    uint64_t head = __atomic_load_n(&page->data_head, __ATOMIC_ACQUIRE);
    uint64_t tail = page->data_tail;
    int r = 0;
    while (tail < head) {
        const struct perf_event_header *header = record_at(samples, data, ring->size, tail, head);
        if (header == NULL) {
            tail = head;
            break;
        }
        uint64_t next = tail + header->size;
        int entered = enter_record(samples, account, header);
        if (r == 0)
            r = entered;
        tail = next;
        __atomic_store_n(&page->data_tail, tail, __ATOMIC_RELEASE); /* room for the kernel, walk by walk */
    }
    __atomic_store_n(&page->data_tail, tail, __ATOMIC_RELEASE);
    return r;
}

int samples_drain(struct samples *samples, struct account *account)
{
    int r = 0;
    samples->walks = WALKS_MAX;
    for (size_t i = 0; i < samples->ring_count; i++) {
        int drained = drain_ring(samples, &samples->rings[i], account);
        if (r == 0)
            r = drained;
    }
    stacks_round(samples->stacks);
    return r;
}

/* ---- Opening ---- */

static int open_event(const struct samples *samples, const struct samples_options *options, pid_t pid, int cpu)
{
    struct perf_event_attr attributes = {
        .type = PERF_TYPE_SOFTWARE,
        .size = sizeof attributes,
        .config = PERF_COUNT_SW_CPU_CLOCK,
        .sample_freq = options->frequency,
        .freq = 1,
        .sample_type = samples->sample_type,
        .exclude_callchain_user = 1, /* by frame pointers, which most programs lack */
        .exclude_idle = 1,
        .inherit = pid != -1,
        .mmap = 1,
        .mmap2 = 1,
        .comm = 1,
        .comm_exec = 1,
        .task = 1,
    };
    if (samples->callers) {
        attributes.sample_regs_user = register_mask();
        attributes.sample_stack_user = STACK_SIZE;
    }
    int fd = (int)syscall(SYS_perf_event_open, &attributes, pid, cpu, -1, PERF_FLAG_FD_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* The ring of a CPU: as large as it should be, or as it may be. */
static int map_ring(struct ring *ring, const struct samples_options *options)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t wanted = (size_t)options->frequency / 2 * (options->callers ? SAMPLE_SIZE_WITH_STACK : SAMPLE_SIZE);
    size_t size = RING_SIZE_MIN;
    while (size < wanted && size < RING_SIZE_MAX)
        size *= 2;
    for (; size >= RING_SIZE_MIN && size >= page; size /= 2) {
        ring->memory = mmap(NULL, page + size, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, 0);
        if (ring->memory != MAP_FAILED) {
            ring->size = size;
            return 0;
        }
        ring->memory = NULL;
        if (errno != EPERM && errno != ENOMEM)
            return -errno;
    }
    return -ENOBUFS;
}

static int add_other(struct samples *samples, int fd)
{
    int *grown = reallocarray(samples->others, samples->other_count + 1, sizeof *grown);
    if (grown == NULL)
        return -ENOMEM;
    samples->others = grown;
    samples->others[samples->other_count++] = fd;
    return 0;
}

/* Watch one thread (pid -1: everybody) on all CPUs. The first event of a CPU gets its ring, others share it. */
static int watch(struct samples *samples, const struct samples_options *options, pid_t pid)
{
    long cpus = sysconf(_SC_NPROCESSORS_CONF);
    for (int cpu = 0; cpu < cpus; cpu++) {
        int opened = open_event(samples, options, pid, cpu);
        if (opened == -ENODEV)
            continue; /* this CPU is off */
        if (opened < 0)
            return opened;
        CLEANUP_FD int fd = opened;
        struct ring *ring = NULL;
        for (size_t i = 0; i < samples->ring_count && ring == NULL; i++)
            ring = samples->rings[i].cpu == cpu ? &samples->rings[i] : NULL;
        if (ring != NULL) {
            if (ioctl(fd, PERF_EVENT_IOC_SET_OUTPUT, ring->fd) != 0)
                return -errno;
            int r = add_other(samples, fd);
            if (r < 0)
                return r;
            TAKE_FD(fd);
            continue;
        }
        ring = reallocarray(samples->rings, samples->ring_count + 1, sizeof *ring);
        if (ring == NULL)
            return -ENOMEM;
        samples->rings = ring;
        ring += samples->ring_count;
        *ring = (struct ring){.cpu = cpu, .fd = TAKE_FD(fd)};
        samples->ring_count++;
        int r = map_ring(ring, options);
        if (r < 0)
            return r;
    }
    return samples->ring_count > 0 ? 0 : -ENODEV;
}

/* All threads that a process has now; those to come inherit. A thread that ends meanwhile is no failure. */
static int watch_process(struct samples *samples, const struct samples_options *options, uint32_t pid)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%u/task", pid);
    DIR *threads = opendir(path);
    if (threads == NULL)
        return -ESRCH;
    int r = 0;
    for (struct dirent *entry = readdir(threads); entry != NULL && r == 0; entry = readdir(threads)) {
        pid_t thread = (pid_t)strtol(entry->d_name, NULL, 10);
        if (thread > 0)
            r = watch(samples, options, thread);
        if (r == -ESRCH)
            r = 0;
    }
    closedir(threads);
    return r;
}

static bool has_capability(unsigned capability)
{
    FILE *status = fopen("/proc/self/status", "re");
    char line[256];
    uint64_t effective = 0;
    while (status != NULL && fgets(line, sizeof line, status) != NULL) {
        if (sscanf(line, "CapEff: %" SCNx64, &effective) == 1)
            break;
    }
    if (status != NULL)
        fclose(status);
    return (effective >> capability & 1) != 0;
}

/* A setting of /proc/sys, "unknown" where it cannot be read. */
static const char *read_setting(const char *path, char *value, size_t size)
{
    FILE *stream = fopen(path, "re");
    if (stream == NULL || fgets(value, (int)size, stream) == NULL)
        snprintf(value, size, "unknown");
    value[strcspn(value, "\n")] = '\0';
    if (stream != NULL)
        fclose(stream);
    return value;
}

#define CAPABILITY_SYSLOG 34
#define CAPABILITY_PERFMON 38
#define PARANOID "/proc/sys/kernel/perf_event_paranoid"

static int say_refused(int code, const struct samples_options *options, struct failure *failure)
{
    char value[32];
    const char *error = code == -EACCES ? "EACCES" : "EPERM";
    switch (code) {
    case -EACCES:
    case -EPERM:
        if (has_capability(CAPABILITY_PERFMON))
            return failure_set(
                failure, code,
                "sampling the CPU refused (%s) although CAP_PERFMON is there: a system-call filter (that "
                "of a container?) or a security module forbids perf_event_open. Allow it there.",
                error);
        return failure_set(failure, code,
                           "sampling the CPU refused (%s): CAP_PERFMON is missing, and kernel.perf_event_paranoid is "
                           "%s. Give the capability, or set kernel.perf_event_paranoid to %s.",
                           error, read_setting(PARANOID, value, sizeof value),
                           options->pid_count > 0 ? "1 (0 to watch others' processes)" : "0");
    case -EINVAL:
        return failure_set(failure, code,
                           "sampling the CPU %u times a second refused (EINVAL): kernel.perf_event_max_sample_rate is "
                           "%s. Ask for fewer samples.",
                           options->frequency,
                           read_setting("/proc/sys/kernel/perf_event_max_sample_rate", value, sizeof value));
    case -ENOSYS:
    case -ENOENT:
        return failure_set(failure, -ENOSYS, "this kernel has no perf_event_open: nothing can be sampled.");
    case -ENOBUFS:
        return failure_set(failure, code,
                           "sampling the CPU needs %u KiB of locked memory for each CPU, and there is less. Raise "
                           "kernel.perf_event_mlock_kb (%s) or the limit (ulimit -l), or give CAP_IPC_LOCK.",
                           RING_SIZE_MIN >> 10,
                           read_setting("/proc/sys/kernel/perf_event_mlock_kb", value, sizeof value));
    case -ESRCH:
        return failure_set(failure, code, "none of the processes to be sampled is there any more (ESRCH).");
    case -EMFILE:
        return failure_set(
            failure, code,
            "sampling the CPU needs a descriptor for each thread and CPU, and there are too few "
            "(EMFILE). Raise the limit (ulimit -n), or give CAP_PERFMON: then one for each CPU will do.");
    default:
        return failure_set(failure, code, "sampling the CPU failed: %s.", strerror(-code));
    }
}

static void describe_limits(struct samples *samples, const struct samples_options *options, bool everybody)
{
    size_t used = 0;
    char pointers[32], paranoid[32];
    if (!stacks_kernel_known(samples->stacks)) {
        read_setting("/proc/sys/kernel/kptr_restrict", pointers, sizeof pointers);
        read_setting(PARANOID, paranoid, sizeof paranoid);
        used = (size_t)snprintf(
            samples->limits, sizeof samples->limits,
            "Copying in the kernel cannot be told from its other work: /proc/kallsyms hides its addresses "
            "(kernel.kptr_restrict is %s, kernel.perf_event_paranoid is %s%s). ",
            pointers, paranoid, has_capability(CAPABILITY_SYSLOG) ? "" : ", CAP_SYSLOG is missing");
    }
    if (!everybody && used < sizeof samples->limits)
        used += (size_t)snprintf(samples->limits + used, sizeof samples->limits - used,
                                 "Only the named processes and what they start are sampled: CAP_PERFMON is missing. ");
    if (options->callers && !CAN_WALK && used < sizeof samples->limits)
        used += (size_t)snprintf(samples->limits + used, sizeof samples->limits - used,
                                 "Callers are not known: stacks can be walked on x86-64 only. ");
    if (used > 0)
        samples->limits[strlen(samples->limits) - 1] = '\0';
}

static void cleanup_samples(struct samples **samples)
{
    samples_close(*samples);
}

int samples_open(const struct samples_options *options, struct samples **ret_samples, struct failure *failure)
{
    __attribute__((cleanup(cleanup_samples))) struct samples *samples = calloc(1, sizeof *samples);
    if (samples == NULL)
        return failure_set(failure, -ENOMEM, "no memory for samples.");
    samples->callers = options->callers && CAN_WALK;
    samples->sample_type = PERF_SAMPLE_IP | PERF_SAMPLE_TID | PERF_SAMPLE_CALLCHAIN;
    if (samples->callers)
        samples->sample_type |= PERF_SAMPLE_REGS_USER | PERF_SAMPLE_STACK_USER;

    int r = watch(samples, options, -1);
    bool everybody = r == 0;
    if ((r == -EACCES || r == -EPERM) && options->pid_count > 0) {
        bool any = false;
        for (size_t i = 0; i < options->pid_count; i++) {
            r = watch_process(samples, options, options->pids[i]);
            if (r < 0 && r != -ESRCH)
                return say_refused(r, options, failure);
            any = any || r == 0;
        }
        r = any ? 0 : -ESRCH;
    }
    if (r < 0)
        return say_refused(r, options, failure);
    r = stacks_new(&(struct stacks_options){0}, &samples->stacks);
    if (r < 0)
        return failure_set(failure, r, "no memory for the kernel's symbols.");
    describe_limits(samples, options, everybody);
    *ret_samples = TAKE_POINTER(samples);
    return 0;
}

uint64_t samples_lost(const struct samples *samples)
{
    return samples->lost;
}

uint64_t samples_stray(const struct samples *samples)
{
    return samples->stray;
}

const char *samples_limits(const struct samples *samples)
{
    return samples->limits[0] != '\0' ? samples->limits : NULL;
}

bool samples_kernel_known(const struct samples *samples)
{
    return stacks_kernel_known(samples->stacks);
}

void samples_close(struct samples *samples)
{
    if (samples == NULL)
        return;
    for (size_t i = 0; i < samples->other_count; i++)
        close_fd(samples->others[i]);
    for (size_t i = 0; i < samples->ring_count; i++) {
        if (samples->rings[i].memory != NULL)
            munmap(samples->rings[i].memory, samples->rings[i].size + (size_t)sysconf(_SC_PAGESIZE));
        close_fd(samples->rings[i].fd);
    }
    free(samples->others);
    free(samples->rings);
    stacks_free(samples->stacks);
    free(samples);
}
