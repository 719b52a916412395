/* SPDX-License-Identifier: MIT */
#include "stacks.h"
#include "base/cleanup.h"
#include "grow.h"
#include "kernel_symbols.h"
#include "objects.h"

#include <dlfcn.h>
#include <elfutils/libdwfl.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAPPINGS_MAX 4096 /* executable ones of a process; more is a fault of somebody's */
#define FRAMES_MAX 24     /* walked outwards from the system call; the C library's part is rarely deeper than three */

/* Where memcpy and its kin are in our own C library: found through its resolvers, for which it needs no debug symbols.
 * Another process with the same file on the same processor runs the same variants. */
struct known_function {
    struct object *object; /* held */
    uint64_t offset;       /* in the file */
    const char *name;
};

struct mapping {
    uint64_t start, end, offset;
    uint64_t inode;
    char *path;
    struct object *object; /* once looked up; NULL where there is none that can be read */
    bool looked_up;
};

struct process {
    uint32_t pid;
    bool read;        /* mappings are complete: /proc/PID/maps was read, or they begin with an exec */
    uint64_t read_at; /* round of the last reading */
    uint64_t used;
    uint64_t exited; /* round; 0: lives */
    struct mapping *mappings;
    size_t mapping_count, mapping_room;
    Dwfl *dwfl; /* made when first walked, dropped when a mapping comes or goes */
    const struct stacks_thread *thread;
};

struct stacks {
    struct kernel_symbols *kernel;
    struct objects *objects;
    struct process *processes[STACKS_PROCESSES];
    size_t process_count;
    struct known_function known[3];
    size_t known_count;
    uint64_t round;
};

/* Open what is mapped: by the kernel's own link, which holds even for files deleted or in another mount namespace
 * (needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE), else by path, if that is still the same file. Never blocks on a FIFO
 * that somebody put there. */
static int open_mapping(const struct process *process, const struct mapping *mapping, struct stat *ret_status)
{
    char paths[3][4200];
    snprintf(paths[0], sizeof paths[0], "/proc/%u/map_files/%" PRIx64 "-%" PRIx64, process->pid, mapping->start,
             mapping->end);
    snprintf(paths[1], sizeof paths[1], "/proc/%u/root%s", process->pid, mapping->path);
    snprintf(paths[2], sizeof paths[2], "%s", mapping->path);
    for (size_t i = 0; i < 3; i++) {
        CLEANUP_FD int fd = open(paths[i], O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
        if (fd >= 0 && fstat(fd, ret_status) == 0 && S_ISREG(ret_status->st_mode) &&
            (mapping->inode == 0 || ret_status->st_ino == mapping->inode))
            return TAKE_FD(fd);
    }
    return -1;
}

static int look_up_object(struct stacks *stacks, const struct process *process, struct mapping *mapping)
{
    if (mapping->looked_up)
        return 0;
    mapping->looked_up = true;
    if (mapping->path[0] != '/')
        return 0; /* [vdso], memory with code made at run time */
    struct stat status;
    CLEANUP_FD int fd = open_mapping(process, mapping, &status);
    return fd < 0 ? 0 : objects_get(stacks->objects, fd, &status, mapping->path, &mapping->object);
}

/* ---- Processes ---- */

static void forget_mapping(struct stacks *stacks, struct mapping *mapping)
{
    object_release(stacks->objects, mapping->object);
    free(mapping->path);
}

static void forget_mappings(struct stacks *stacks, struct process *process)
{
    dwfl_end(TAKE_POINTER(process->dwfl));
    for (size_t i = 0; i < process->mapping_count; i++)
        forget_mapping(stacks, &process->mappings[i]);
    process->mapping_count = 0;
}

static void forget_process(struct stacks *stacks, size_t index)
{
    struct process *process = stacks->processes[index];
    forget_mappings(stacks, process);
    free(process->mappings);
    free(process);
    stacks->processes[index] = stacks->processes[--stacks->process_count];
}

static struct process *find_process(const struct stacks *stacks, uint32_t pid)
{
    for (size_t i = 0; i < stacks->process_count; i++) {
        if (stacks->processes[i]->pid == pid)
            return stacks->processes[i];
    }
    return NULL;
}

static struct process *get_process(struct stacks *stacks, uint32_t pid)
{
    struct process *process = find_process(stacks, pid);
    if (process == NULL) {
        if (stacks->process_count == STACKS_PROCESSES) {
            size_t oldest = 0;
            for (size_t i = 1; i < stacks->process_count; i++) {
                if (stacks->processes[i]->used < stacks->processes[oldest]->used)
                    oldest = i;
            }
            forget_process(stacks, oldest);
        }
        process = calloc(1, sizeof *process);
        if (process == NULL)
            return NULL;
        process->pid = pid;
        stacks->processes[stacks->process_count++] = process;
    }
    process->used = stacks->round;
    return process;
}

/* A new mapping takes the place of whatever was there: munmap leaves no record. */
static int add_mapping(struct stacks *stacks, struct process *process, const struct stacks_mapping *added)
{
    size_t kept = 0;
    for (size_t i = 0; i < process->mapping_count; i++) {
        struct mapping *mapping = &process->mappings[i];
        if (mapping->start < added->end && added->start < mapping->end)
            forget_mapping(stacks, mapping);
        else
            process->mappings[kept++] = *mapping;
    }
    process->mapping_count = kept;
    dwfl_end(TAKE_POINTER(process->dwfl));
    if (process->mapping_count >= MAPPINGS_MAX)
        return 0;
    int r =
        grow((void **)&process->mappings, &process->mapping_room, process->mapping_count, sizeof process->mappings[0]);
    if (r < 0)
        return r;
    char *path = strdup(added->path);
    if (path == NULL)
        return -ENOMEM;
    process->mappings[process->mapping_count++] = (struct mapping){
        .start = added->start,
        .end = added->end,
        .offset = added->offset,
        .inode = added->inode,
        .path = path,
    };
    return 0;
}

/* Lines "5581-55a2 r-xp 00002000 fd:01 1234    /usr/bin/cat". Nothing changes when the process is gone. */
static int read_mappings(struct stacks *stacks, struct process *process)
{
    process->read = true;
    process->read_at = stacks->round;
    char path[64];
    snprintf(path, sizeof path, "/proc/%u/maps", process->pid);
    FILE *stream = fopen(path, "re");
    CLEANUP_FREE char *line = NULL;
    size_t room = 0;
    bool first = true;
    int r = 0;
    while (r == 0 && stream != NULL && getline(&line, &room, stream) > 0) {
        if (first)
            forget_mappings(stacks, process);
        first = false;
        line[strcspn(line, "\n")] = '\0';
        struct stacks_mapping mapping = {0};
        char rights[5];
        int name = 0;
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %*s %" SCNu64 " %n", &mapping.start, &mapping.end,
                   rights, &mapping.offset, &mapping.inode, &name) < 5 ||
            strchr(rights, 'x') == NULL)
            continue;
        mapping.path = line + name;
        r = add_mapping(stacks, process, &mapping);
    }
    if (stream != NULL)
        fclose(stream);
    return r;
}

static struct mapping *search_mappings(const struct process *process, uint64_t address)
{
    for (size_t i = 0; i < process->mapping_count; i++) {
        if (address >= process->mappings[i].start && address < process->mappings[i].end)
            return &process->mappings[i];
    }
    return NULL;
}

/* The mapping with its file looked up, or NULL. /proc is asked at most once a round. */
static struct mapping *find_mapping(struct stacks *stacks, struct process *process, uint64_t address)
{
    struct mapping *mapping = process->read ? search_mappings(process, address) : NULL;
    if (mapping == NULL && (!process->read || process->read_at != stacks->round)) {
        if (read_mappings(stacks, process) < 0)
            return NULL;
        mapping = search_mappings(process, address);
    }
    if (mapping != NULL && look_up_object(stacks, process, mapping) < 0)
        return NULL;
    return mapping;
}

bool stacks_knows(const struct stacks *stacks, uint32_t pid)
{
    return find_process(stacks, pid) != NULL;
}

int stacks_mapped(struct stacks *stacks, uint32_t pid, const struct stacks_mapping *mapping)
{
    struct process *process = get_process(stacks, pid);
    return process != NULL ? add_mapping(stacks, process, mapping) : -ENOMEM;
}

int stacks_executed(struct stacks *stacks, uint32_t pid)
{
    struct process *process = get_process(stacks, pid);
    if (process == NULL)
        return -ENOMEM;
    forget_mappings(stacks, process);
    process->read = true;
    process->exited = 0;
    return 0;
}

int stacks_forked(struct stacks *stacks, uint32_t pid, uint32_t parent)
{
    if (find_process(stacks, parent) == NULL)
        return 0; /* the child's own maps will do, if they are ever wanted */
    struct process *child = get_process(stacks, pid);
    const struct process *from = find_process(stacks, parent);
    if (child == NULL)
        return -ENOMEM;
    forget_mappings(stacks, child); /* a process number that is used again */
    child->exited = 0;
    child->read = false;
    if (from == NULL)
        return 0; /* it had to make room */
    child->read = from->read;
    for (size_t i = 0; i < from->mapping_count; i++) {
        const struct mapping *mapping = &from->mappings[i];
        int r = add_mapping(stacks, child,
                            &(struct stacks_mapping){.start = mapping->start,
                                                     .end = mapping->end,
                                                     .offset = mapping->offset,
                                                     .inode = mapping->inode,
                                                     .path = mapping->path});
        if (r < 0)
            return r;
        /* The parent's files are open already; the child may be gone before they could be opened again. */
        struct mapping *added = &child->mappings[child->mapping_count - 1];
        added->object = object_hold(mapping->object);
        added->looked_up = mapping->object != NULL;
    }
    return 0;
}

void stacks_exited(struct stacks *stacks, uint32_t pid)
{
    struct process *process = find_process(stacks, pid);
    if (process != NULL && process->exited == 0)
        process->exited = stacks->round;
}

void stacks_round(struct stacks *stacks)
{
    for (size_t i = stacks->process_count; i > 0; i--) {
        const struct process *process = stacks->processes[i - 1];
        if (process->exited != 0 && process->exited < stacks->round)
            forget_process(stacks, i - 1);
    }
    stacks->round++;
}

/* ---- Verdicts ---- */

bool stacks_kernel_known(const struct stacks *stacks)
{
    return kernel_symbols_known(stacks->kernel);
}

/* Whether the softirq at chain[from] was begun by an interrupt or ksoftirqd. */
static bool begun_by_interrupt(struct kernel_symbols *kernel, const uint64_t *chain, size_t from, size_t depth)
{
    for (size_t i = from; i < depth; i++) {
        const char *name;
        const struct frame_pattern *pattern = kernel_symbols_find(kernel, chain[i], &name);
        if (pattern != NULL && pattern->kind == FRAME_INTERRUPT)
            return true;
        if (pattern != NULL && pattern->kind == FRAME_SYSTEM_CALL)
            return false;
    }
    return false;
}

struct stacks_verdict stacks_judge_kernel(struct stacks *stacks, const uint64_t *chain, size_t depth)
{
    struct kernel_symbols *kernel = stacks->kernel;
    const char *name;
    const struct frame_pattern *pattern = NULL;
    size_t innermost = 0;
    while (innermost < depth) {
        pattern = kernel_symbols_find(kernel, chain[innermost], &name);
        if (pattern == NULL || pattern->kind != FRAME_COPIES_FOR_CALLER)
            break;
        innermost++;
    }
    struct stacks_verdict verdict = {.kind = FRAME_OTHER};
    if (innermost == depth || pattern == NULL ||
        (pattern->kind != FRAME_COPIES && (pattern->kind != FRAME_TRANSFORMS || innermost > 0)))
        return verdict;
    verdict.kind = pattern->kind;
    if (pattern->kind == FRAME_COPIES)
        verdict.copier = name;
    for (size_t i = innermost + 1; i < depth; i++) {
        pattern = kernel_symbols_find(kernel, chain[i], &name);
        if (pattern != NULL && pattern->kind == FRAME_SYSTEM_CALL)
            break;
        if (pattern != NULL && pattern->kind == FRAME_SOFTIRQ) {
            verdict.stray = begun_by_interrupt(kernel, chain, i + 1, depth);
            break;
        }
    }
    return verdict;
}

static const char *known_by_offset(const struct stacks *stacks, const struct object *object, uint64_t address)
{
    if (stacks->known_count == 0 || stacks->known[0].object != object)
        return NULL;
    uint64_t offset = object_offset(object, object_function_start(object, address));
    for (size_t i = 0; i < stacks->known_count; i++) {
        if (stacks->known[i].offset == offset)
            return stacks->known[i].name;
    }
    return NULL;
}

struct stacks_verdict stacks_judge_user(struct stacks *stacks, uint32_t pid, uint64_t address)
{
    struct stacks_verdict verdict = {.kind = FRAME_OTHER};
    struct process *process = get_process(stacks, pid);
    const struct mapping *mapping = process != NULL ? find_mapping(stacks, process, address) : NULL;
    if (mapping == NULL || mapping->object == NULL)
        return verdict;
    struct object *object = mapping->object;
    uint64_t in_file = object_address(object, address - mapping->start + mapping->offset);
    struct object_function *function = object_find(object, in_file);
    const struct frame_pattern *pattern;
    if (function != NULL) {
        if (!function->judged) {
            function->pattern = frames_user(function->name, object_name(object));
            function->judged = true;
        }
        pattern = function->pattern;
    } else {
        pattern = frames_user(known_by_offset(stacks, object, in_file), object_name(object));
    }
    if (pattern == NULL)
        return verdict;
    verdict.kind = pattern->kind;
    if (pattern->kind == FRAME_COPIES)
        verdict.copier = pattern->name != NULL ? pattern->name : pattern->pattern;
    return verdict;
}

/* ---- Walking ---- */

/* The C library, and the sanitizers' wrappers around it: not what anybody wants to read about. */
static bool is_c_library(const char *object)
{
    static const char *const prefixes[] = {"libc.so",   "libc-",      "ld-linux",   "ld-2",      "ld-musl",
                                           "libc.musl", "libpthread", "libasan.so", "libtsan.so"};
    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++) {
        if (strncmp(object, prefixes[i], strlen(prefixes[i])) == 0)
            return true;
    }
    return false;
}

static pid_t only_thread(Dwfl *dwfl, void *process, void **thread)
{
    (void)dwfl;
    if (*thread != NULL)
        return 0;
    *thread = process;
    return (pid_t)((struct process *)process)->pid;
}

static bool get_thread(Dwfl *dwfl, pid_t tid, void *process, void **thread)
{
    (void)dwfl, (void)tid;
    *thread = process;
    return true;
}

/* Of another process's memory only what lies in the dumped piece of its stack. */
static bool read_memory(Dwfl *dwfl, Dwarf_Addr address, Dwarf_Word *ret_word, void *argument)
{
    (void)dwfl;
    const struct stacks_thread *thread = ((struct process *)argument)->thread;
    uint64_t stack = thread->registers[STACKS_STACK_POINTER];
    if (address < stack || thread->stack_size < sizeof *ret_word ||
        address - stack > thread->stack_size - sizeof *ret_word)
        return false;
    memcpy(ret_word, (const char *)thread->stack + (address - stack), sizeof *ret_word);
    return true;
}

static bool set_registers(Dwfl_Thread *thread, void *process)
{
    const Dwarf_Word *registers = ((struct process *)process)->thread->registers;
#if defined(__aarch64__) /* DWARF has no number for the instruction pointer there */
    dwfl_thread_state_register_pc(thread, registers[STACKS_REGISTERS - 1]);
    return dwfl_thread_state_registers(thread, 0, STACKS_REGISTERS - 1, registers);
#else
    return dwfl_thread_state_registers(thread, 0, STACKS_REGISTERS, registers);
#endif
}

static const Dwfl_Thread_Callbacks thread_callbacks = {
    .next_thread = only_thread,
    .get_thread = get_thread,
    .memory_read = read_memory,
    .set_initial_registers = set_registers,
};

/* All files that a process has mapped, as libdwfl wants them. False where they cannot be had. */
static bool prepare_walk(struct stacks *stacks, struct process *process)
{
    if (process->dwfl != NULL)
        return true;
    Dwfl *dwfl = objects_begin_walk();
    if (dwfl == NULL)
        return false;
    dwfl_report_begin(dwfl);
    size_t reported = 0;
    for (size_t i = 0; i < process->mapping_count; i++) {
        struct mapping *mapping = &process->mappings[i];
        if (look_up_object(stacks, process, mapping) < 0 || mapping->object == NULL ||
            !object_is_program(mapping->object))
            continue;
        uint64_t base = mapping->start - object_address(mapping->object, mapping->offset);
        reported += object_report(mapping->object, dwfl, base);
    }
    dwfl_report_end(dwfl, NULL, NULL);
    if (reported == 0 || !dwfl_attach_state(dwfl, NULL, (pid_t)process->pid, &thread_callbacks, process)) {
        dwfl_end(dwfl);
        return false;
    }
    process->dwfl = dwfl;
    return true;
}

struct walk {
    const struct process *process;
    char *caller;
    size_t size;
    unsigned frames;
};

static int visit_frame(Dwfl_Frame *frame, void *argument)
{
    struct walk *walk = argument;
    Dwarf_Addr address;
    bool is_innermost;
    if (!dwfl_frame_pc(frame, &address, &is_innermost) || ++walk->frames > FRAMES_MAX)
        return DWARF_CB_ABORT;
    if (!is_innermost)
        address--; /* a return address may lie just behind its function */
    const struct mapping *mapping = search_mappings(walk->process, address);
    bool is_program =
        mapping != NULL && mapping->path[0] == '/' && (mapping->object == NULL || object_is_program(mapping->object));
    if (!is_program) {
        snprintf(walk->caller, walk->size, "caller unknown (code made at run time)");
        return DWARF_CB_ABORT;
    }
    struct object *object = mapping->object;
    if (object == NULL || is_c_library(object_name(object)))
        return object != NULL ? DWARF_CB_OK : DWARF_CB_ABORT;
    uint64_t in_file = object_address(object, address - mapping->start + mapping->offset);
    const struct object_function *function = object_find(object, in_file);
    if (function != NULL)
        snprintf(walk->caller, walk->size, "%.*s (%s)", (int)frames_plain_length(function->name), function->name,
                 object_name(object));
    else
        snprintf(walk->caller, walk->size, "function at 0x%" PRIx64 " (%s)", object_function_start(object, in_file),
                 object_name(object));
    return DWARF_CB_ABORT;
}

void stacks_find_caller(struct stacks *stacks, uint32_t pid, const struct stacks_thread *thread, char *caller,
                        size_t size)
{
    snprintf(caller, size, "caller unknown (its stack cannot be walked)");
    struct process *process = get_process(stacks, pid);
    if (process == NULL)
        return;
    find_mapping(stacks, process, thread->registers[STACKS_REGISTERS - 1]); /* reads /proc/PID/maps when it has to */
    if (!prepare_walk(stacks, process)) {
        snprintf(caller, size, "caller unknown (the program's files cannot be read)");
        return;
    }
    struct walk walk = {.process = process, .caller = caller, .size = size};
    process->thread = thread;
    dwfl_getthread_frames(process->dwfl, (pid_t)pid, visit_frame, &walk);
    process->thread = NULL;
}

/* ---- Making and freeing ---- */

static void learn_own_functions(struct stacks *stacks)
{
    static const char *const names[] = {"memcpy", "memmove", "mempcpy"};
    struct process self = {.pid = (uint32_t)getpid()};
    void *library = dlopen("libc.so.6", RTLD_NOLOAD | RTLD_LAZY);
    if (library == NULL)
        return; /* another C library: its functions have names */
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        uint64_t address = (uintptr_t)dlsym(library, names[i]);
        const struct mapping *mapping = address != 0 ? find_mapping(stacks, &self, address) : NULL;
        if (mapping != NULL && mapping->object != NULL)
            stacks->known[stacks->known_count++] = (struct known_function){
                .object = object_hold(mapping->object),
                .offset = address - mapping->start + mapping->offset,
                .name = names[i],
            };
    }
    dlclose(library);
    forget_mappings(stacks, &self);
    free(self.mappings);
}

static void cleanup_stacks(struct stacks **stacks)
{
    stacks_free(*stacks);
}

int stacks_new(const struct stacks_options *options, struct stacks **ret_stacks)
{
    __attribute__((cleanup(cleanup_stacks))) struct stacks *stacks = calloc(1, sizeof *stacks);
    if (stacks == NULL)
        return -ENOMEM;
    stacks->round = 1;
    int r = objects_new(options->debug_files != NULL ? options->debug_files : "/usr/lib/debug", &stacks->objects);
    if (r == 0)
        r = kernel_symbols_new(options->kallsyms != NULL ? options->kallsyms : "/proc/kallsyms", &stacks->kernel);
    if (r < 0)
        return r;
    learn_own_functions(stacks);
    *ret_stacks = TAKE_POINTER(stacks);
    return 0;
}

void stacks_free(struct stacks *stacks)
{
    if (stacks == NULL)
        return;
    while (stacks->process_count > 0)
        forget_process(stacks, stacks->process_count - 1);
    for (size_t i = 0; i < stacks->known_count; i++)
        object_release(stacks->objects, stacks->known[i].object);
    objects_free(stacks->objects);
    kernel_symbols_free(stacks->kernel);
    free(stacks);
}
