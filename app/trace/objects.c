/* SPDX-License-Identifier: MIT */
#include "objects.h"
#include "base/cleanup.h"
#include "grow.h"
#include "sorted.h"

#include <elfutils/libdwfl.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

struct segment {
    uint64_t offset, size, address;
};

struct object {
    dev_t device;
    ino_t inode;
    off_t size;
    struct timespec changed;
    unsigned users; /* mappings */
    uint64_t used;  /* clock when its last user left */
    char *name;     /* without its directory */
    int fd;         /* kept: a Dwfl for walking opens it again, when the path may be gone */
    Dwfl *dwfl;     /* NULL: no ELF file */
    Dwfl_Module *module;
    GElf_Addr bias; /* of module within dwfl */
    struct segment *segments;
    size_t segment_count, segment_room;
    struct object_function *functions; /* by start, one for each start */
    size_t function_count, function_room;
};

struct objects {
    struct object **all;
    size_t count, room;
    uint64_t clock;
    char *debug_files;
    Dwfl_Callbacks callbacks; /* libdwfl keeps the pointer */
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
    const struct object_function *one = a, *other = b;
    if (one->start != other->start)
        return one->start < other->start ? -1 : 1;
    /* Those with a size first, then the plainest. */
    if ((one->size == 0) != (other->size == 0))
        return one->size == 0 ? 1 : -1;
    return is_plainer(one->name, other->name) ? -1 : is_plainer(other->name, one->name);
}

static int read_functions(struct object *object)
{
    int count = dwfl_module_getsymtab(object->module);
    for (int i = 1; i < count; i++) {
        GElf_Sym symbol;
        GElf_Addr address;
        const char *name = dwfl_module_getsym_info(object->module, i, &symbol, &address, NULL, NULL, NULL);
        /* STT_GNU_IFUNC is left out: its address is the resolver's, which copies nothing. */
        if (name == NULL || name[0] == '\0' || GELF_ST_TYPE(symbol.st_info) != STT_FUNC || symbol.st_shndx == SHN_UNDEF)
            continue;
        int r = grow((void **)&object->functions, &object->function_room, object->function_count,
                     sizeof object->functions[0]);
        if (r < 0)
            return r;
        object->functions[object->function_count++] =
            (struct object_function){.start = address - object->bias, .size = symbol.st_size, .name = name};
    }
    if (object->function_count == 0)
        return 0;
    qsort(object->functions, object->function_count, sizeof object->functions[0], compare_functions);
    size_t kept = 1;
    for (size_t i = 1; i < object->function_count; i++) {
        if (object->functions[i].start != object->functions[kept - 1].start)
            object->functions[kept++] = object->functions[i];
    }
    object->function_count = kept;
    return 0;
}

static int read_segments(struct object *object, Elf *elf)
{
    size_t count;
    if (elf_getphdrnum(elf, &count) != 0)
        return 0;
    for (size_t i = 0; i < count; i++) {
        GElf_Phdr header;
        if (gelf_getphdr(elf, (int)i, &header) == NULL || header.p_type != PT_LOAD)
            continue;
        int r =
            grow((void **)&object->segments, &object->segment_room, object->segment_count, sizeof object->segments[0]);
        if (r < 0)
            return r;
        object->segments[object->segment_count++] =
            (struct segment){.offset = header.p_offset, .size = header.p_filesz, .address = header.p_vaddr};
    }
    return 0;
}

static void object_free(struct object *object)
{
    if (object == NULL)
        return;
    dwfl_end(object->dwfl);
    free(object->segments);
    free(object->functions);
    free(object->name);
    close_fd(object->fd);
    free(object);
}

static void cleanup_object(struct object **object)
{
    object_free(*object);
}

static int object_new(const struct objects *objects, int fd, const struct stat *status, const char *path,
                      struct object **ret_object)
{
    __attribute__((cleanup(cleanup_object))) struct object *object = calloc(1, sizeof *object);
    if (object == NULL)
        return -ENOMEM;
    object->fd = -1;
    object->device = status->st_dev;
    object->inode = status->st_ino;
    object->size = status->st_size;
    object->changed = status->st_mtim;
    const char *slash = strrchr(path, '/');
    object->name = strdup(slash != NULL ? slash + 1 : path);
    object->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    object->dwfl = dwfl_begin(&objects->callbacks);
    if (object->name == NULL || object->dwfl == NULL)
        return -ENOMEM;
    int given = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (given >= 0) {
        dwfl_report_begin(object->dwfl);
        object->module = dwfl_report_elf(object->dwfl, object->name, object->name, given, 0, true);
        if (object->module == NULL)
            close_fd(given);
        dwfl_report_end(object->dwfl, NULL, NULL);
    }
    Elf *elf = object->module != NULL ? dwfl_module_getelf(object->module, &object->bias) : NULL;
    if (elf == NULL) {
        dwfl_end(TAKE_POINTER(object->dwfl));
        object->module = NULL;
    } else {
        int r = read_segments(object, elf);
        if (r == 0)
            r = read_functions(object);
        if (r < 0)
            return r;
    }
    *ret_object = TAKE_POINTER(object);
    return 0;
}

struct object_function *object_find(struct object *object, uint64_t address)
{
    size_t up_to = sorted_up_to(object->functions, object->function_count, sizeof object->functions[0], address);
    if (up_to == 0)
        return NULL;
    struct object_function *function = &object->functions[up_to - 1];
    return function->size == 0 || address - function->start < function->size ? function : NULL;
}

uint64_t object_function_start(const struct object *object, uint64_t address)
{
    Dwarf_Addr bias;
    Dwarf_CFI *cfi = object->module != NULL ? dwfl_module_eh_cfi(object->module, &bias) : NULL;
    Dwarf_Frame *frame = NULL;
    if (cfi == NULL || dwarf_cfi_addrframe(cfi, address + object->bias - bias, &frame) != 0)
        return address;
    Dwarf_Addr start = 0, end = 0;
    bool signal_frame;
    int r = dwarf_frame_info(frame, &start, &end, &signal_frame);
    free(frame);
    return r >= 0 ? start + bias - object->bias : address;
}

uint64_t object_address(const struct object *object, uint64_t offset)
{
    for (size_t i = 0; i < object->segment_count; i++) {
        const struct segment *segment = &object->segments[i];
        if (offset >= segment->offset && offset - segment->offset < segment->size)
            return offset - segment->offset + segment->address;
    }
    return offset;
}

uint64_t object_offset(const struct object *object, uint64_t address)
{
    for (size_t i = 0; i < object->segment_count; i++) {
        const struct segment *segment = &object->segments[i];
        if (address >= segment->address && address - segment->address < segment->size)
            return address - segment->address + segment->offset;
    }
    return address;
}

/* Room for another file: what no process uses any more goes first by age. Files in use are never dropped, so that the
 * bound can be passed by as many as live processes map. */
static void drop_unused(struct objects *objects)
{
    while (objects->count >= OBJECTS_MAX) {
        size_t oldest = objects->count;
        for (size_t i = 0; i < objects->count; i++) {
            if (objects->all[i]->users == 0 &&
                (oldest == objects->count || objects->all[i]->used < objects->all[oldest]->used))
                oldest = i;
        }
        if (oldest == objects->count)
            return;
        object_free(objects->all[oldest]);
        objects->all[oldest] = objects->all[--objects->count];
    }
}

int objects_get(struct objects *objects, int fd, const struct stat *status, const char *path,
                struct object **ret_object)
{
    for (size_t i = 0; i < objects->count; i++) {
        struct object *object = objects->all[i];
        if (object->inode == status->st_ino && object->device == status->st_dev && object->size == status->st_size &&
            object->changed.tv_sec == status->st_mtim.tv_sec && object->changed.tv_nsec == status->st_mtim.tv_nsec) {
            *ret_object = object_hold(object);
            return 0;
        }
    }
    drop_unused(objects);
    int r = grow((void **)&objects->all, &objects->room, objects->count, sizeof(struct object *));
    if (r < 0)
        return r;
    struct object *object;
    r = object_new(objects, fd, status, path, &object);
    if (r < 0)
        return r;
    objects->all[objects->count++] = object;
    *ret_object = object_hold(object);
    return 0;
}

struct object *object_hold(struct object *object)
{
    if (object != NULL)
        object->users++;
    return object;
}

void object_release(struct objects *objects, struct object *object)
{
    if (object == NULL)
        return;
    object->users--;
    object->used = ++objects->clock;
}

const char *object_name(const struct object *object)
{
    return object->name;
}

bool object_is_program(const struct object *object)
{
    return object->module != NULL;
}

Dwfl *objects_begin_walk(void)
{
    return dwfl_begin(&walking_callbacks);
}

bool object_report(const struct object *object, Dwfl *dwfl, uint64_t base)
{
    int fd = fcntl(object->fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return false;
    if (dwfl_report_elf(dwfl, object->name, object->name, fd, base, true) != NULL)
        return true;
    close_fd(fd);
    return false;
}

int objects_new(const char *debug_files, struct objects **ret_objects)
{
    struct objects *objects = calloc(1, sizeof *objects);
    char *copy = strdup(debug_files);
    if (objects == NULL || copy == NULL) {
        free(objects);
        free(copy);
        return -ENOMEM;
    }
    objects->debug_files = copy;
    objects->callbacks = (Dwfl_Callbacks){
        .find_elf = no_file,
        .find_debuginfo = dwfl_build_id_find_debuginfo,
        .debuginfo_path = &objects->debug_files,
    };
    *ret_objects = objects;
    return 0;
}

void objects_free(struct objects *objects)
{
    if (objects == NULL)
        return;
    for (size_t i = 0; i < objects->count; i++)
        object_free(objects->all[i]);
    free(objects->all);
    free(objects->debug_files);
    free(objects);
}
