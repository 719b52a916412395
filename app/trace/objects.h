/* SPDX-License-Identifier: MIT
 *
 * Files with programs and libraries, as processes map them: their functions and unwind tables, by libdw. Shared by all
 * processes that map the same file; at most OBJECTS_MAX are kept beyond those in use.
 */
#ifndef SLUICE_APP_TRACE_OBJECTS_H
#define SLUICE_APP_TRACE_OBJECTS_H

#include "frames.h"
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#define OBJECTS_MAX 256

struct object_function {
    uint64_t start, size; /* in the file's own addresses; size 0: not known */
    const char *name;     /* as long as the object */
    bool judged;
    const struct frame_pattern *pattern; /* once judged */
};

struct objects;
struct object;

int objects_new(const char *debug_files, struct objects **ret_objects); /* 0 or -ENOMEM */
void objects_free(struct objects *objects);                             /* nobody may hold any */

/* The object of an open file, which stays the caller's. What cannot be read as ELF becomes an object without functions:
 * its name still tells something. Returns 0 or -ENOMEM. To be given back by object_release. */
int objects_get(struct objects *objects, int fd, const struct stat *status, const char *path,
                struct object **ret_object);
struct object *object_hold(struct object *object); /* once more; NULL for NULL */
void object_release(struct objects *objects, struct object *object);

const char *object_name(const struct object *object); /* without its directory */
bool object_is_program(const struct object *object);  /* ELF */

uint64_t object_address(const struct object *object, uint64_t offset); /* in the file's own addresses */
uint64_t object_offset(const struct object *object, uint64_t address);

/* The function at an address of the file; NULL: none with a name. */
struct object_function *object_find(struct object *object, uint64_t address);
/* Where the function at an address begins, by the unwind tables; address itself where they do not say. */
uint64_t object_function_start(const struct object *object, uint64_t address);

/* A Dwfl (libdwfl) for walking stacks, to be ended by dwfl_end, and telling it that the object is mapped at base. NULL
 * and false: it cannot be had. */
struct Dwfl *objects_begin_walk(void);
bool object_report(const struct object *object, struct Dwfl *dwfl, uint64_t base);

#endif
