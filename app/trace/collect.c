/* SPDX-License-Identifier: MIT */
#include "collect.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "procfs.h"
#include "trace.skel.h"
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/capability.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The maps' counters only ever grow while their process lives: a program that has just looked up an entry may be adding
 * to it, so that taking entries out would lose what it adds. What was seen of each is kept here, and the difference is
 * what is new. */
struct seen {
    size_t key_size, members; /* counters of 64 bits */
    size_t used, room;        /* entries; room is a power of two */
    unsigned char *slots;     /* a byte that says whether it is taken, the key, the counters; see slot_size */
};

struct collect {
    struct trace_bpf *programs;
    struct ring_buffer *events;
    struct account *account; /* during a drain, for on_event */
    int error;               /* of on_event */
    unsigned processors;
    void *values; /* of one entry, one per possible CPU */
    struct seen flows, copies, transitions;
    uint32_t *end_process; /* by end id: a process seen using it, 0 none yet */
    size_t end_process_count;
};

static const struct {
    long number;
    enum trace_call call;
} calls[] = {
    {SYS_read, TRACE_CALL_READ},
    {SYS_pread64, TRACE_CALL_READ},
    {SYS_readv, TRACE_CALL_READV},
    {SYS_preadv, TRACE_CALL_READV},
    {SYS_preadv2, TRACE_CALL_READV},
    {SYS_write, TRACE_CALL_WRITE},
    {SYS_pwrite64, TRACE_CALL_WRITE},
    {SYS_writev, TRACE_CALL_WRITEV},
    {SYS_pwritev, TRACE_CALL_WRITEV},
    {SYS_pwritev2, TRACE_CALL_WRITEV},
    {SYS_recvfrom, TRACE_CALL_RECVFROM},
    {SYS_recvmsg, TRACE_CALL_RECVMSG},
    {SYS_recvmmsg, TRACE_CALL_RECVMMSG},
    {SYS_sendto, TRACE_CALL_SENDTO},
    {SYS_sendmsg, TRACE_CALL_SENDMSG},
    {SYS_sendmmsg, TRACE_CALL_SENDMMSG},
    {SYS_sendfile, TRACE_CALL_SENDFILE},
    {SYS_splice, TRACE_CALL_SPLICE},
    {SYS_vmsplice, TRACE_CALL_VMSPLICE},
    {SYS_tee, TRACE_CALL_TEE},
    {SYS_copy_file_range, TRACE_CALL_COPY_FILE_RANGE},
    {SYS_ioctl, TRACE_CALL_IOCTL},
    {SYS_process_vm_readv, TRACE_CALL_PROCESS_VM},
    {SYS_process_vm_writev, TRACE_CALL_PROCESS_VM},
    {SYS_getsockopt, TRACE_CALL_GETSOCKOPT},
};

/* io_uring's operations by number: liburing's header may be older than the kernel (linux/io_uring.h). */
static const struct {
    unsigned opcode;
    enum trace_mechanism mechanism;
} ring_operations[] = {
    {1, TRACE_READ},           /* READV */
    {2, TRACE_WRITE},          /* WRITEV */
    {4, TRACE_READ},           /* READ_FIXED */
    {5, TRACE_WRITE},          /* WRITE_FIXED */
    {9, TRACE_SEND},           /* SENDMSG */
    {10, TRACE_RECV},          /* RECVMSG */
    {22, TRACE_READ},          /* READ */
    {23, TRACE_WRITE},         /* WRITE */
    {26, TRACE_SEND},          /* SEND */
    {27, TRACE_RECV},          /* RECV */
    {30, TRACE_SPLICE},        /* SPLICE */
    {33, TRACE_TEE},           /* TEE */
    {47, TRACE_SEND_ZEROCOPY}, /* SEND_ZC */
    {48, TRACE_SEND_ZEROCOPY}, /* SENDMSG_ZC */
    {49, TRACE_READ},          /* READ_MULTISHOT */
    {58, TRACE_RECV_ZEROCOPY}, /* RECV_ZC */
    {60, TRACE_READ},          /* READV_FIXED */
    {61, TRACE_WRITE},         /* WRITEV_FIXED */
};

static int quiet(enum libbpf_print_level level, const char *format, va_list arguments)
{
    (void)level;
    (void)format;
    (void)arguments;
    return 0;
}

/* ---- What is missing ---- */

static bool capable(unsigned capability)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {0};
    if (syscall(SYS_capget, &header, data) < 0)
        return false;
    return data[capability / 32].effective >> (capability % 32) & 1;
}

static int explain(int error, struct failure *failure)
{
    char missing[64] = "";
    if (!capable(CAP_SYS_ADMIN)) {
        if (!capable(CAP_BPF))
            strcat(missing, " CAP_BPF");
        if (!capable(CAP_PERFMON))
            strcat(missing, " CAP_PERFMON");
    }
    if (missing[0] != '\0')
        return failure_set(failure, -EPERM,
                           "counting in the kernel needs what this process does not have:%s (CAP_SYS_PTRACE, too, for "
                           "the names of others' files). Run it as root, or: setcap "
                           "cap_bpf,cap_perfmon,cap_sys_ptrace+ep sluice",
                           missing);
    if (access("/sys/kernel/btf/vmlinux", R_OK) != 0)
        return failure_set(
            failure, -ENOSYS,
            "this kernel does not describe its types (/sys/kernel/btf/vmlinux: %s): it was built without "
            "CONFIG_DEBUG_INFO_BTF",
            text_errno_meaning(errno));
    return failure_set(failure, error, "the kernel refused the tracing programs: %s (%s)", text_errno_meaning(error),
                       text_errno_name(error));
}

/* ---- Loading ---- */

/* io_uring's tracepoint for completions changed its arguments: which one is this kernel's? */
static bool completion_in_pieces(void)
{
    struct btf *types = btf__load_vmlinux_btf();
    bool pieces = false;
    if (types != NULL) {
        int id = btf__find_by_name_kind(types, "btf_trace_io_uring_complete", BTF_KIND_TYPEDEF);
        const struct btf_type *type = id > 0 ? btf__type_by_id(types, (unsigned)id) : NULL;
        type = type != NULL ? btf__type_by_id(types, type->type) : NULL; /* pointer to function */
        type = type != NULL ? btf__type_by_id(types, type->type) : NULL;
        pieces = type != NULL && btf_is_func_proto(type) && btf_vlen(type) > 4;
        btf__free(types);
    }
    return pieces;
}

static int cgroup_of(const char *path, uint64_t *ret_id, uint32_t *ret_level, struct failure *failure)
{
    struct stat status;
    if (stat(path, &status) != 0)
        return failure_set(failure, -errno, "--cgroup %s: %s", path, text_errno_meaning(errno));
    CLEANUP_FREE char *full = realpath(path, NULL);
    if (full == NULL)
        return failure_set(failure, -errno, "--cgroup %s: %s", path, text_errno_meaning(errno));
    /* Levels count from the mount point of the cgroup v2 file system: the last directory of another device. */
    uint32_t level = 0;
    for (char *slash = strrchr(full, '/'); slash != NULL && slash != full; slash = strrchr(full, '/')) {
        struct stat parent;
        *slash = '\0';
        if (stat(full, &parent) != 0 || parent.st_dev != status.st_dev)
            break;
        level++;
    }
    *ret_id = status.st_ino; /* of the directory, by kernfs: the cgroup's id */
    *ret_level = level;
    return 0;
}

static int prepare(struct trace_bpf *programs, const struct collect_options *options, bool functions,
                   struct failure *failure)
{
    struct trace_bpf__rodata *settings = programs->rodata;
    settings->trace_scope = options->scope;
    settings->trace_self = (uint32_t)getpid();
    settings->trace_page_size = (uint32_t)sysconf(_SC_PAGESIZE);
    settings->trace_functions = functions;
    if (options->comm != NULL)
        strncpy((char *)settings->trace_comm, options->comm, TRACE_COMM_SIZE - 1);
    if (options->scope == TRACE_SCOPE_CGROUP) {
        uint64_t id;
        uint32_t level;
        int error = cgroup_of(options->cgroup, &id, &level, failure);
        if (error < 0)
            return error;
        settings->trace_cgroup = id;
        settings->trace_cgroup_level = level;
    }
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++)
        settings->trace_calls[calls[i].number] = (uint8_t)calls[i].call;
    for (size_t i = 0; i < sizeof ring_operations / sizeof ring_operations[0]; i++)
        settings->trace_ring[ring_operations[i].opcode] = (uint8_t)ring_operations[i].mechanism;
    bool pieces = completion_in_pieces();
    bpf_program__set_autoload(programs->progs.on_ring_completion_pieces, pieces);
    bpf_program__set_autoload(programs->progs.on_ring_completion, !pieces);
    bpf_program__set_autoload(programs->progs.on_page_fault, options->faults);
    return 0;
}

static int load(const struct collect_options *options, bool functions, struct trace_bpf **ret_programs,
                struct failure *failure)
{
    struct trace_bpf *programs = trace_bpf__open();
    if (programs == NULL)
        return explain(-errno, failure);
    int error = prepare(programs, options, functions, failure);
    if (error == 0) {
        error = trace_bpf__load(programs);
        if (error == 0)
            error = trace_bpf__attach(programs);
        if (error < 0)
            explain(error, failure);
    }
    if (error < 0) {
        trace_bpf__destroy(programs);
        return error;
    }
    *ret_programs = programs;
    return 0;
}

static int on_event(void *context, void *data, size_t size)
{
    struct collect *collect = context;
    const struct trace_event *event = data;
    if (size < sizeof *event)
        return 0;
    int error = 0;
    if (event->kind == TRACE_EVENT_EXIT)
        account_enter_exit(collect->account, event->pid);
    else
        error = account_enter_process(collect->account, event->pid, event->parent, event->comm);
    if (error < 0)
        collect->error = error;
    return 0;
}

int collect_open(const struct collect_options *options, struct collect **ret_collect, enum account_tier *ret_tier,
                 struct failure *failure)
{
    libbpf_set_print(quiet);
    struct collect *collect = calloc(1, sizeof *collect);
    if (collect == NULL)
        return failure_set(failure, -ENOMEM, "out of memory");
    enum account_tier tier = ACCOUNT_TIER_TRACEPOINTS;
    int error = -ENOTSUP;
    if (options->functions) {
        error = load(options, true, &collect->programs, failure);
        if (error == 0)
            tier = ACCOUNT_TIER_FUNCTIONS;
    }
    if (error < 0)
        error = load(options, false, &collect->programs, failure);
    if (error == 0) {
        int processors = libbpf_num_possible_cpus();
        collect->processors = processors > 0 ? (unsigned)processors : 1;
        collect->values = calloc(collect->processors, sizeof(struct trace_lost) + sizeof(struct trace_flow_value));
        collect->flows = (struct seen){.key_size = sizeof(struct trace_flow_key),
                                       .members = sizeof(struct trace_flow_value) / sizeof(uint64_t)};
        collect->copies = (struct seen){.key_size = sizeof(struct trace_copy_key),
                                        .members = sizeof(struct trace_copy_value) / sizeof(uint64_t)};
        collect->transitions = (struct seen){.key_size = sizeof(uint32_t), .members = 1};
        collect->events = ring_buffer__new(bpf_map__fd(collect->programs->maps.events), on_event, collect, NULL);
        if (collect->values == NULL || collect->events == NULL)
            error = failure_set(failure, -ENOMEM, "out of memory");
    }
    if (error < 0) {
        collect_close(collect);
        return error;
    }
    *ret_collect = collect;
    *ret_tier = tier;
    return 0;
}

int collect_add(struct collect *collect, uint32_t pid)
{
    return bpf_map_update_elem(bpf_map__fd(collect->programs->maps.targets), &pid, &pid, BPF_ANY);
}

int collect_fd(const struct collect *collect)
{
    return ring_buffer__epoll_fd(collect->events);
}

void collect_close(struct collect *collect)
{
    if (collect == NULL)
        return;
    ring_buffer__free(collect->events);
    trace_bpf__destroy(collect->programs);
    free(collect->values);
    free(collect->flows.slots);
    free(collect->copies.slots);
    free(collect->transitions.slots);
    free(collect->end_process);
    free(collect);
}

/* ---- Draining ---- */

/* Add up what all processors counted for one key: every member of our values is a 64-bit counter. */
static void sum(const void *per_processor, unsigned processors, uint64_t *total, size_t members)
{
    const uint64_t *value = per_processor;
    memset(total, 0, members * sizeof *total);
    for (unsigned i = 0; i < processors; i++)
        for (size_t j = 0; j < members; j++)
            total[j] += *value++;
}

static size_t slot_size(const struct seen *seen)
{
    return 8 + (seen->key_size + 7) / 8 * 8 + seen->members * sizeof(uint64_t);
}

static unsigned char *slot_of(const struct seen *seen, const void *key)
{
    uint64_t hash = 0xcbf29ce484222325; /* FNV-1a */
    for (size_t i = 0; i < seen->key_size; i++)
        hash = (hash ^ ((const unsigned char *)key)[i]) * 0x100000001b3;
    for (size_t i = (size_t)(hash >> 20);; i++) {
        unsigned char *slot = seen->slots + (i & (seen->room - 1)) * slot_size(seen);
        if (slot[0] == 0 || memcmp(slot + 8, key, seen->key_size) == 0)
            return slot;
    }
}

/* The counters last seen of this key, for writing. NULL: no memory. */
static uint64_t *seen_of(struct seen *seen, const void *key)
{
    if ((seen->used + 1) * 2 > seen->room) {
        struct seen larger = *seen;
        larger.room = seen->room == 0 ? 256 : seen->room * 2;
        larger.slots = calloc(larger.room, slot_size(seen));
        if (larger.slots == NULL)
            return NULL;
        for (size_t i = 0; i < seen->room; i++) {
            unsigned char *slot = seen->slots + i * slot_size(seen);
            if (slot[0] != 0)
                memcpy(slot_of(&larger, slot + 8), slot, slot_size(seen));
        }
        free(seen->slots);
        *seen = larger;
    }
    unsigned char *slot = slot_of(seen, key);
    if (slot[0] == 0) {
        slot[0] = 1;
        memcpy(slot + 8, key, seen->key_size);
        seen->used++;
    }
    return (uint64_t *)(void *)(slot + slot_size(seen) - seen->members * sizeof(uint64_t));
}

/* Visit every entry of a map with what is new in it. Entries of processes that are gone are taken out. */
static int visit_new(struct collect *collect, const struct bpf_map *map, struct seen *seen,
                     int (*visit)(struct collect *, const void *, const uint64_t *))
{
    int fd = bpf_map__fd(map);
    unsigned char key[64], previous[64];
    uint64_t total[16];
    bool more = bpf_map_get_next_key(fd, NULL, key) == 0;
    while (more) {
        memcpy(previous, key, seen->key_size);
        bool read = bpf_map_lookup_elem(fd, previous, collect->values) == 0;
        more = bpf_map_get_next_key(fd, previous, key) == 0;
        if (!read)
            continue;
        sum(collect->values, collect->processors, total, seen->members);
        uint64_t *last = seen_of(seen, previous);
        if (last == NULL)
            return -ENOMEM;
        uint64_t new_counts[16], any = 0;
        for (size_t i = 0; i < seen->members; i++) {
            new_counts[i] = total[i] - last[i];
            any |= new_counts[i];
            last[i] = total[i];
        }
        int error = any != 0 ? visit(collect, previous, new_counts) : 0;
        if (error < 0)
            return error;
        uint32_t pid; /* every key begins with the process */
        memcpy(&pid, previous, sizeof pid);
        const struct account_process *process = account_process(collect->account, pid);
        if (any == 0 && process != NULL && process->exited) {
            bpf_map_delete_elem(fd, previous);
            memset(last, 0, seen->members * sizeof *last); /* should its number come again */
        }
    }
    return 0;
}

static int know_process(struct collect *collect, uint32_t pid)
{
    if (account_process(collect->account, pid) != NULL)
        return 0;
    return account_enter_process(collect->account, pid, 0, NULL);
}

static void note_user_of_end(struct collect *collect, uint32_t end, uint32_t pid)
{
    if (end == 0 || end == TRACE_END_LOST)
        return;
    if (end >= collect->end_process_count) {
        size_t count = end + 256;
        uint32_t *larger = realloc(collect->end_process, count * sizeof *larger);
        if (larger == NULL)
            return; /* its name may stay unknown */
        memset(larger + collect->end_process_count, 0, (count - collect->end_process_count) * sizeof *larger);
        collect->end_process = larger;
        collect->end_process_count = count;
    }
    if (collect->end_process[end] == 0)
        collect->end_process[end] = pid;
}

static int visit_flow(struct collect *collect, const void *key, const uint64_t *counts)
{
    const struct trace_flow_key *flow = key;
    struct trace_flow_value value;
    memcpy(&value, counts, sizeof value);
    note_user_of_end(collect, flow->source, flow->pid);
    note_user_of_end(collect, flow->sink, flow->pid);
    int error = know_process(collect, flow->pid);
    if (error == 0)
        error = account_enter_flow(collect->account, flow, &value);
    if (error == 0 && value.transitions != 0) {
        struct account_process increment = {.pid = flow->pid, .system_calls = value.transitions};
        error = account_enter_process_figures(collect->account, &increment);
    }
    return error;
}

static int visit_copy(struct collect *collect, const void *key, const uint64_t *counts)
{
    struct trace_copy_value value;
    memcpy(&value, counts, sizeof value);
    return account_enter_copy(collect->account, key, &value);
}

static int visit_transitions(struct collect *collect, const void *key, const uint64_t *counts)
{
    struct account_process increment = {.pid = *(const uint32_t *)key, .system_calls = counts[0]};
    int error = know_process(collect, increment.pid);
    return error < 0 ? error : account_enter_process_figures(collect->account, &increment);
}

/* Ends stay in the kernel's table: it is where programs look up their numbers. New ones are those with numbers above
 * the highest that was seen. */
static int enter_ends(struct collect *collect)
{
    int fd = bpf_map__fd(collect->programs->maps.ends);
    struct trace_end_key key, next;
    void *previous = NULL;
    while (bpf_map_get_next_key(fd, previous, &next) == 0) {
        struct account_end end = {.key = next};
        key = next;
        previous = &key;
        if (bpf_map_lookup_elem(fd, &key, &end.value) != 0 || account_end(collect->account, end.value.id) != NULL)
            continue;
        uint32_t pid = end.value.id < collect->end_process_count ? collect->end_process[end.value.id] : 0;
        procfs_name_end(&end, pid);
        int error = account_enter_end(collect->account, &end);
        if (error < 0)
            return error;
    }
    return 0;
}

int collect_drain(struct collect *collect, struct account *account)
{
    struct trace_bpf *programs = collect->programs;
    collect->account = account;
    collect->error = 0;
    ring_buffer__consume(collect->events);
    int error = collect->error;
    if (error == 0)
        error = visit_new(collect, programs->maps.flows, &collect->flows, visit_flow);
    if (error == 0)
        error = visit_new(collect, programs->maps.copies, &collect->copies, visit_copy);
    if (error == 0)
        error = visit_new(collect, programs->maps.transitions, &collect->transitions, visit_transitions);
    if (error == 0)
        error = enter_ends(collect);
    uint32_t zero = 0;
    if (bpf_map_lookup_elem(bpf_map__fd(programs->maps.lost), &zero, collect->values) == 0) {
        struct trace_lost total;
        sum(collect->values, collect->processors, (uint64_t *)&total, sizeof total / sizeof(uint64_t));
        account_enter_lost(account, &total);
    }
    return error;
}
