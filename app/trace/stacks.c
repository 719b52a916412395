/* SPDX-License-Identifier: MIT */
#include "stacks.h"
#include "base/cleanup.h"

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

/* ---- Growing arrays ---- */

static int grow(void **array, size_t *room, size_t count, size_t size)
{
    if (count < *room)
        return 0;
    size_t wanted = *room == 0 ? 16 : *room * 2;
    void *grown = reallocarray(*array, wanted, size);
    if (grown == NULL)
        return -ENOMEM;
    *array = grown;
    *room = wanted;
    return 0;
}

/* ---- The kernel's symbols ---- */

struct kernel_symbol {
    uint64_t address;
    uint32_t name; /* offset in names */
    bool judged;
    const struct frame_pattern *pattern; /* once judged */
};

struct kernel_symbols {
    struct kernel_symbol *symbols; /* by address */
    size_t count, room;
    char *names;
    bool known;
};

static int compare_kernel_symbols(const void *a, const void *b)
{
    const struct kernel_symbol *one = a, *other = b;
    if (one->address != other->address)
        return one->address < other->address ? -1 : 1;
    return one->name < other->name ? -1 : one->name > other->name;
}

static int read_whole(const char *path, char **ret_text, size_t *ret_size)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    CLEANUP_FREE char *text = NULL;
    size_t size = 0, room = 0;
    for (;;) {
        if (size + 1 >= room) {
            size_t wanted = room == 0 ? 65536 : room * 2;
            char *grown = realloc(text, wanted);
            if (grown == NULL)
                return -ENOMEM;
            text = grown;
            room = wanted;
        }
        ssize_t got = read(fd, text + size, room - 1 - size);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        size += (size_t)got;
    }
    text[size] = '\0';
    *ret_text = TAKE_POINTER(text);
    *ret_size = size;
    return 0;
}

/* Lines "ffffffff81b6a2b0 T _copy_to_iter\t[module]". The text itself becomes the store of names: each moves down to
 * where the last one ended. All addresses are zero where kernel.kptr_restrict hides them. */
static int read_kernel_symbols(struct kernel_symbols *kernel, const char *path)
{
    size_t size;
    int r = read_whole(path, &kernel->names, &size);
    if (r == -ENOMEM)
        return r;
    if (r < 0)
        return 0; /* no /proc/kallsyms: not known */
    char *line = kernel->names, *store = kernel->names;
    while (*line != '\0') {
        char *end = strchrnul(line, '\n');
        char *next = *end == '\0' ? end : end + 1;
        *end = '\0';
        char *after;
        uint64_t address = strtoull(line, &after, 16);
        char type = after[0] == ' ' ? after[1] : '\0';
        if (address != 0 && strchr("tTwW", type) != NULL && type != '\0' && after[2] == ' ') {
            char *name = after + 3;
            name[strcspn(name, "\t ")] = '\0';
            r = grow((void **)&kernel->symbols, &kernel->room, kernel->count, sizeof kernel->symbols[0]);
            if (r < 0)
                return r;
            kernel->symbols[kernel->count++] =
                (struct kernel_symbol){.address = address, .name = (uint32_t)(store - kernel->names)};
            size_t name_size = strlen(name) + 1;
            memmove(store, name, name_size);
            store += name_size;
        }
        line = next;
    }
    if (kernel->count > 0)
        qsort(kernel->symbols, kernel->count, sizeof kernel->symbols[0], compare_kernel_symbols);
    kernel->known = kernel->count > 0;
    char *fitting = realloc(kernel->names, (size_t)(store - kernel->names) + 1);
    if (fitting != NULL)
        kernel->names = fitting;
    return 0;
}

static const char *kernel_name(const struct kernel_symbols *kernel, const struct kernel_symbol *symbol)
{
    return kernel->names + symbol->name;
}

/* What is known of the function at an address. Of several names for one address, one that the table knows. */
static const struct frame_pattern *judge_kernel_address(struct kernel_symbols *kernel, uint64_t address,
                                                        const struct kernel_symbol **ret_symbol)
{
    size_t low = 0, high = kernel->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (kernel->symbols[middle].address <= address)
            low = middle + 1;
        else
            high = middle;
    }
    for (size_t i = low; i > 0 && kernel->symbols[i - 1].address == kernel->symbols[low - 1].address; i--) {
        struct kernel_symbol *symbol = &kernel->symbols[i - 1];
        if (!symbol->judged) {
            symbol->pattern = frames_kernel(kernel_name(kernel, symbol));
            symbol->judged = true;
        }
        if (symbol->pattern != NULL) {
            *ret_symbol = symbol;
            return symbol->pattern;
        }
    }
    return NULL;
}

/* ---- Files with programs and libraries ---- */

struct function {
    uint64_t start, size; /* in the file's own addresses; size 0: not known */
    const char *name;     /* in the file's memory */
    bool judged;
    const struct frame_pattern *pattern; /* once judged */
};

struct segment {
    uint64_t offset, size, address;
};

struct file {
    dev_t device;
    ino_t inode;
    off_t size;
    struct timespec changed;
    unsigned users; /* mappings */
    uint64_t used;  /* last round with a user */
    char *name;     /* without its directory */
    int fd;         /* kept: a Dwfl for walking opens it again, when the path may be gone */
    Dwfl *dwfl;     /* NULL: no ELF file */
    Dwfl_Module *module;
    GElf_Addr bias; /* of module within dwfl */
    struct segment *segments;
    size_t segment_count, segment_room;
    struct function *functions; /* by start, one for each start */
    size_t function_count, function_room;
};

/* Where memcpy and its kin are in our own C library: found through its resolvers, for which it needs no debug symbols.
 * Another process with the same file on the same processor runs the same variants. */
struct known_function {
    dev_t device;
    ino_t inode;
    uint64_t offset; /* in the file */
    const char *name;
};

struct mapping {
    uint64_t start, end, offset;
    uint64_t inode;
    char *path;
    struct file *file; /* once looked up; NULL where there is none that can be read */
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
    struct kernel_symbols kernel;
    char *debug_files;
    Dwfl_Callbacks file_callbacks; /* libdwfl keeps the pointer */
    struct process *processes[STACKS_PROCESSES];
    size_t process_count;
    struct file **files;
    size_t file_count, file_room;
    struct known_function known[3];
    size_t known_count;
    uint64_t round;
};

static int no_file(Dwfl_Module *module, void **user, const char *name, Dwarf_Addr base, char **ret_name, Elf **ret_elf)
{
    (void)module, (void)user, (void)name, (void)base, (void)ret_name, (void)ret_elf;
    return -1;
}

static int no_debug_file(Dwfl_Module *module, void **user, const char *name, Dwarf_Addr base, const char *file,
                         const char *link, GElf_Word crc, char **ret_name)
{
    (void)module, (void)user, (void)name, (void)base, (void)file, (void)link, (void)crc, (void)ret_name;
    return -1;
}

/* Walking needs unwind tables only. Looking for files of debug symbols goes by build ID in local directories:
 * dwfl_standard_find_debuginfo would ask servers on the network (debuginfod). */
static const Dwfl_Callbacks walking_callbacks = {.find_elf = no_file, .find_debuginfo = no_debug_file};

/* Of several names for a function the plainest: "read", not "__libc_read". */
static bool is_plainer(const char *name, const char *than)
{
    size_t underscores = strspn(name, "_"), than_underscores = strspn(than, "_");
    if (underscores != than_underscores)
        return underscores < than_underscores;
    if (strlen(name) != strlen(than))
        return strlen(name) < strlen(than);
    return strcmp(name, than) < 0;
}

static int compare_functions(const void *a, const void *b)
{
    const struct function *one = a, *other = b;
    if (one->start != other->start)
        return one->start < other->start ? -1 : 1;
    /* Those with a size first, then the plainest. */
    if ((one->size == 0) != (other->size == 0))
        return one->size == 0 ? 1 : -1;
    return is_plainer(one->name, other->name) ? -1 : is_plainer(other->name, one->name);
}

static int read_functions(struct file *file)
{
    int count = dwfl_module_getsymtab(file->module);
    for (int i = 1; i < count; i++) {
        GElf_Sym symbol;
        GElf_Addr address;
        const char *name = dwfl_module_getsym_info(file->module, i, &symbol, &address, NULL, NULL, NULL);
        /* STT_GNU_IFUNC is left out: its address is the resolver's, which copies nothing. */
        if (name == NULL || name[0] == '\0' || GELF_ST_TYPE(symbol.st_info) != STT_FUNC || symbol.st_shndx == SHN_UNDEF)
            continue;
        int r = grow((void **)&file->functions, &file->function_room, file->function_count, sizeof file->functions[0]);
        if (r < 0)
            return r;
        file->functions[file->function_count++] =
            (struct function){.start = address - file->bias, .size = symbol.st_size, .name = name};
    }
    if (file->function_count == 0)
        return 0;
    qsort(file->functions, file->function_count, sizeof file->functions[0], compare_functions);
    size_t kept = 1;
    for (size_t i = 1; i < file->function_count; i++) {
        if (file->functions[i].start != file->functions[kept - 1].start)
            file->functions[kept++] = file->functions[i];
    }
    file->function_count = kept;
    return 0;
}

static int read_segments(struct file *file, Elf *elf)
{
    size_t count;
    if (elf_getphdrnum(elf, &count) != 0)
        return 0;
    for (size_t i = 0; i < count; i++) {
        GElf_Phdr header;
        if (gelf_getphdr(elf, (int)i, &header) == NULL || header.p_type != PT_LOAD)
            continue;
        int r = grow((void **)&file->segments, &file->segment_room, file->segment_count, sizeof file->segments[0]);
        if (r < 0)
            return r;
        file->segments[file->segment_count++] =
            (struct segment){.offset = header.p_offset, .size = header.p_filesz, .address = header.p_vaddr};
    }
    return 0;
}

static void file_free(struct file *file)
{
    if (file == NULL)
        return;
    dwfl_end(file->dwfl);
    free(file->segments);
    free(file->functions);
    free(file->name);
    close_fd(file->fd);
    free(file);
}

static void cleanup_file(struct file **file)
{
    file_free(*file);
}

/* What cannot be read as ELF becomes a file without functions: its name still tells something. */
static int file_new(const struct stacks *stacks, int fd, const struct stat *status, const char *path,
                    struct file **ret_file)
{
    __attribute__((cleanup(cleanup_file))) struct file *file = calloc(1, sizeof *file);
    if (file == NULL)
        return -ENOMEM;
    file->fd = -1;
    file->device = status->st_dev;
    file->inode = status->st_ino;
    file->size = status->st_size;
    file->changed = status->st_mtim;
    const char *slash = strrchr(path, '/');
    file->name = strdup(slash != NULL ? slash + 1 : path);
    file->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    file->dwfl = dwfl_begin(&stacks->file_callbacks);
    if (file->name == NULL || file->dwfl == NULL)
        return -ENOMEM;
    int given = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (given >= 0) {
        dwfl_report_begin(file->dwfl);
        file->module = dwfl_report_elf(file->dwfl, file->name, file->name, given, 0, true);
        if (file->module == NULL)
            close_fd(given);
        dwfl_report_end(file->dwfl, NULL, NULL);
    }
    Elf *elf = file->module != NULL ? dwfl_module_getelf(file->module, &file->bias) : NULL;
    if (elf == NULL) {
        dwfl_end(TAKE_POINTER(file->dwfl));
        file->module = NULL;
    } else {
        int r = read_segments(file, elf);
        if (r == 0)
            r = read_functions(file);
        if (r < 0)
            return r;
    }
    *ret_file = TAKE_POINTER(file);
    return 0;
}

/* The function at an address of the file; NULL: none with a name. */
static struct function *find_function(struct file *file, uint64_t address)
{
    size_t low = 0, high = file->function_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (file->functions[middle].start <= address)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return NULL;
    struct function *function = &file->functions[low - 1];
    return function->size == 0 || address - function->start < function->size ? function : NULL;
}

/* Where the function at an address begins, by the unwind tables; address itself where they do not say. */
static uint64_t find_start(const struct file *file, uint64_t address)
{
    Dwarf_Addr bias;
    Dwarf_CFI *cfi = file->module != NULL ? dwfl_module_eh_cfi(file->module, &bias) : NULL;
    Dwarf_Frame *frame = NULL;
    if (cfi == NULL || dwarf_cfi_addrframe(cfi, address + file->bias - bias, &frame) != 0)
        return address;
    Dwarf_Addr start = 0, end = 0;
    bool signal_frame;
    int r = dwarf_frame_info(frame, &start, &end, &signal_frame);
    free(frame);
    return r >= 0 ? start + bias - file->bias : address;
}

static uint64_t address_of_offset(const struct file *file, uint64_t offset)
{
    for (size_t i = 0; i < file->segment_count; i++) {
        const struct segment *segment = &file->segments[i];
        if (offset >= segment->offset && offset - segment->offset < segment->size)
            return offset - segment->offset + segment->address;
    }
    return offset;
}

static uint64_t offset_of_address(const struct file *file, uint64_t address)
{
    for (size_t i = 0; i < file->segment_count; i++) {
        const struct segment *segment = &file->segments[i];
        if (address >= segment->address && address - segment->address < segment->size)
            return address - segment->address + segment->offset;
    }
    return address;
}

/* Room for another file: what no process uses any more goes first by age. Files in use are never dropped, so that the
 * bound can be passed by as many as live processes map. */
static void drop_unused_files(struct stacks *stacks)
{
    while (stacks->file_count >= STACKS_FILES) {
        size_t oldest = stacks->file_count;
        for (size_t i = 0; i < stacks->file_count; i++) {
            if (stacks->files[i]->users == 0 &&
                (oldest == stacks->file_count || stacks->files[i]->used < stacks->files[oldest]->used))
                oldest = i;
        }
        if (oldest == stacks->file_count)
            return;
        file_free(stacks->files[oldest]);
        stacks->files[oldest] = stacks->files[--stacks->file_count];
    }
}

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

static int look_up_file(struct stacks *stacks, const struct process *process, struct mapping *mapping)
{
    if (mapping->looked_up)
        return 0;
    mapping->looked_up = true;
    if (mapping->path[0] != '/')
        return 0; /* [vdso], memory with code made at run time */
    struct stat status;
    CLEANUP_FD int fd = open_mapping(process, mapping, &status);
    if (fd < 0)
        return 0;
    for (size_t i = 0; i < stacks->file_count; i++) {
        struct file *file = stacks->files[i];
        if (file->inode == status.st_ino && file->device == status.st_dev && file->size == status.st_size &&
            file->changed.tv_sec == status.st_mtim.tv_sec && file->changed.tv_nsec == status.st_mtim.tv_nsec) {
            mapping->file = file;
            file->users++;
            return 0;
        }
    }
    drop_unused_files(stacks);
    int r = grow((void **)&stacks->files, &stacks->file_room, stacks->file_count, sizeof stacks->files[0]);
    if (r < 0)
        return r;
    struct file *file;
    r = file_new(stacks, fd, &status, mapping->path, &file);
    if (r < 0)
        return r;
    stacks->files[stacks->file_count++] = file;
    mapping->file = file;
    file->users++;
    return 0;
}

/* ---- Processes ---- */

static void forget_mapping(struct stacks *stacks, struct mapping *mapping)
{
    if (mapping->file != NULL) {
        mapping->file->users--;
        mapping->file->used = stacks->round;
    }
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
    CLEANUP_FREE char *text = NULL;
    size_t size;
    int r = read_whole(path, &text, &size);
    if (r < 0 || size == 0)
        return r == -ENOMEM ? r : 0;
    forget_mappings(stacks, process);
    char *position = NULL;
    for (char *line = strtok_r(text, "\n", &position); line != NULL; line = strtok_r(NULL, "\n", &position)) {
        struct stacks_mapping mapping = {0};
        char rights[5];
        int name = 0;
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %*s %" SCNu64 " %n", &mapping.start, &mapping.end,
                   rights, &mapping.offset, &mapping.inode, &name) < 5 ||
            strchr(rights, 'x') == NULL)
            continue;
        mapping.path = line + name;
        r = add_mapping(stacks, process, &mapping);
        if (r < 0)
            return r;
    }
    return 0;
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
    if (mapping != NULL && look_up_file(stacks, process, mapping) < 0)
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
        added->file = mapping->file;
        added->looked_up = mapping->file != NULL;
        if (added->file != NULL)
            added->file->users++;
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
    return stacks->kernel.known;
}

/* Whether the softirq at chain[from] was begun by an interrupt or ksoftirqd. */
static bool begun_by_interrupt(struct kernel_symbols *kernel, const uint64_t *chain, size_t from, size_t depth)
{
    for (size_t i = from; i < depth; i++) {
        const struct kernel_symbol *symbol;
        const struct frame_pattern *pattern = judge_kernel_address(kernel, chain[i], &symbol);
        if (pattern != NULL && pattern->kind == FRAME_INTERRUPT)
            return true;
        if (pattern != NULL && pattern->kind == FRAME_SYSTEM_CALL)
            return false;
    }
    return false;
}

struct stacks_verdict stacks_judge_kernel(struct stacks *stacks, const uint64_t *chain, size_t depth)
{
    struct kernel_symbols *kernel = &stacks->kernel;
    const struct kernel_symbol *symbol;
    const struct frame_pattern *pattern = NULL;
    size_t innermost = 0;
    while (innermost < depth) {
        pattern = judge_kernel_address(kernel, chain[innermost], &symbol);
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
        verdict.copier = kernel_name(kernel, symbol);
    for (size_t i = innermost + 1; i < depth; i++) {
        pattern = judge_kernel_address(kernel, chain[i], &symbol);
        if (pattern != NULL && pattern->kind == FRAME_SYSTEM_CALL)
            break;
        if (pattern != NULL && pattern->kind == FRAME_SOFTIRQ) {
            verdict.stray = begun_by_interrupt(kernel, chain, i + 1, depth);
            break;
        }
    }
    return verdict;
}

static const char *known_by_offset(const struct stacks *stacks, const struct file *file, uint64_t address)
{
    bool same = false;
    for (size_t i = 0; i < stacks->known_count && !same; i++)
        same = stacks->known[i].inode == file->inode && stacks->known[i].device == file->device;
    if (!same)
        return NULL;
    uint64_t offset = offset_of_address(file, find_start(file, address));
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
    if (mapping == NULL || mapping->file == NULL)
        return verdict;
    struct file *file = mapping->file;
    uint64_t in_file = address_of_offset(file, address - mapping->start + mapping->offset);
    struct function *function = find_function(file, in_file);
    const struct frame_pattern *pattern;
    const char *name = NULL;
    if (function != NULL) {
        if (!function->judged) {
            function->pattern = frames_user(function->name, file->name);
            function->judged = true;
        }
        pattern = function->pattern;
        name = function->name;
    } else {
        name = known_by_offset(stacks, file, in_file);
        pattern = frames_user(name, file->name);
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
    uint64_t stack = thread->registers[7]; /* rsp */
    if (address < stack || thread->stack_size < sizeof *ret_word ||
        address - stack > thread->stack_size - sizeof *ret_word)
        return false;
    memcpy(ret_word, (const char *)thread->stack + (address - stack), sizeof *ret_word);
    return true;
}

static bool set_registers(Dwfl_Thread *thread, void *process)
{
    const Dwarf_Word *registers = ((struct process *)process)->thread->registers;
    return dwfl_thread_state_registers(thread, 0, 17, registers);
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
    Dwfl *dwfl = dwfl_begin(&walking_callbacks);
    if (dwfl == NULL)
        return false;
    dwfl_report_begin(dwfl);
    size_t reported = 0;
    for (size_t i = 0; i < process->mapping_count; i++) {
        struct mapping *mapping = &process->mappings[i];
        if (look_up_file(stacks, process, mapping) < 0 || mapping->file == NULL || mapping->file->module == NULL)
            continue;
        uint64_t base = mapping->start - address_of_offset(mapping->file, mapping->offset);
        int fd = fcntl(mapping->file->fd, F_DUPFD_CLOEXEC, 0);
        if (fd < 0)
            continue;
        if (dwfl_report_elf(dwfl, mapping->file->name, mapping->file->name, fd, base, true) != NULL)
            reported++;
        else
            close_fd(fd);
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
        mapping != NULL && mapping->path[0] == '/' && (mapping->file == NULL || mapping->file->module != NULL);
    if (!is_program) {
        snprintf(walk->caller, walk->size, "caller unknown (code made at run time)");
        return DWARF_CB_ABORT;
    }
    struct file *file = mapping->file;
    if (file == NULL || is_c_library(file->name))
        return file != NULL ? DWARF_CB_OK : DWARF_CB_ABORT;
    uint64_t in_file = address_of_offset(file, address - mapping->start + mapping->offset);
    const struct function *function = find_function(file, in_file);
    if (function != NULL)
        snprintf(walk->caller, walk->size, "%.*s (%s)", (int)frames_plain_length(function->name), function->name,
                 file->name);
    else
        snprintf(walk->caller, walk->size, "function at 0x%" PRIx64 " (%s)", find_start(file, in_file), file->name);
    return DWARF_CB_ABORT;
}

void stacks_find_caller(struct stacks *stacks, uint32_t pid, const struct stacks_thread *thread, char *caller,
                        size_t size)
{
    snprintf(caller, size, "caller unknown (its stack cannot be walked)");
    struct process *process = get_process(stacks, pid);
    if (process == NULL)
        return;
    find_mapping(stacks, process, thread->registers[16]); /* reads /proc/PID/maps when it has to */
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
        if (mapping != NULL && mapping->file != NULL)
            stacks->known[stacks->known_count++] = (struct known_function){
                .device = mapping->file->device,
                .inode = mapping->file->inode,
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
    stacks->debug_files = strdup(options->debug_files != NULL ? options->debug_files : "/usr/lib/debug");
    if (stacks->debug_files == NULL)
        return -ENOMEM;
    stacks->file_callbacks = (Dwfl_Callbacks){
        .find_elf = no_file,
        .find_debuginfo = dwfl_build_id_find_debuginfo,
        .debuginfo_path = &stacks->debug_files,
    };
    int r = read_kernel_symbols(&stacks->kernel, options->kallsyms != NULL ? options->kallsyms : "/proc/kallsyms");
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
    for (size_t i = 0; i < stacks->file_count; i++)
        file_free(stacks->files[i]);
    free(stacks->files);
    free(stacks->kernel.symbols);
    free(stacks->kernel.names);
    free(stacks->debug_files);
    free(stacks);
}
