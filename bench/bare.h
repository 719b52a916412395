/* SPDX-License-Identifier: MIT
 *
 * The bare loops beside which the routes are measured: each mechanism as somebody would write it by hand who needs
 * nothing else. They block, handle short counts and nothing more, and end the program when anything fails.
 */
#ifndef BENCH_BARE_H
#define BENCH_BARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

_Noreturn void die(const char *what);
/* This kernel, file system or build does not have it: says so and exits with 3. */
_Noreturn void absent(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* --- memory to a socket ------------------------------------------------------------------------------------- */

/* Messages of one size in touched memory, sent in turn. One that is lent to the kernel is out until it comes back. */
struct pool {
    char *memory;
    size_t message, stride;
    unsigned count, first_free, free_count;
    unsigned
        *free; /* ring of slot numbers: the longest free goes first, so that every way of sending walks the memory */
    unsigned *loans;
};

/* Used until the end of the program. */
void pool_make(struct pool *pool, size_t message, bool huge);
char *pool_data(const struct pool *pool, unsigned slot);
unsigned pool_take(struct pool *pool); /* only while free_count > 0 */
void pool_give_back(struct pool *pool, unsigned slot);

struct bare_sender {
    int fd;
    struct pool *pool;
    uint64_t said_copied, said_by_reference; /* completions, by the kernel's word */
    const struct bare_sender_kind *kind;
    void *state;
};

/* NULL: no such mechanism. */
const struct bare_sender_kind *bare_sender_by_name(const char *name);
void bare_sender_open(struct bare_sender *sender, const struct bare_sender_kind *kind, int fd, struct pool *pool);
/* Sends one message; its slot returns to the pool when the mechanism allows. Waits while all slots are out. fresh: on
 * pages that are made for it, for messages of whole pages. Returns its data. */
const char *bare_sender_send(struct bare_sender *sender, bool fresh);
/* Until every slot is back. */
void bare_sender_finish(struct bare_sender *sender);

/* --- file to file ------------------------------------------------------------------------------------------- */

/* Copies all of size bytes from the start of one file to the start of the other. */
typedef void bare_copy(int from, int to, uint64_t size);
bare_copy *bare_copy_by_name(const char *name);

/* --- records to a log --------------------------------------------------------------------------------------- */

/* Writes the record at offset, not yet durably. The memory is page-aligned, record and offset are multiples of a page.
 */
typedef void bare_append(int fd, const char *record, size_t size, uint64_t offset);
bare_append *bare_append_by_name(const char *name, bool *ret_direct);

/* --- one source to several sockets --------------------------------------------------------------------------- */

/* Moves size bytes from the source (a stream, or a file from its start) to every sink. */
typedef void bare_fanout(int source, const int *sinks, unsigned sink_count, uint64_t size);
bare_fanout *bare_fanout_by_name(const char *name, bool from_file);

#endif
