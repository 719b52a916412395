/* SPDX-License-Identifier: MIT
 *
 * Descriptors that a ring knows by number: the kernel need not look them up, and count a reference, for every request.
 * That saves 35 ns a request, and to make a number known and to take it back costs 750 ns
 * (docs/design/2026-11-21-registered-memory.md). So whatever the ring has been asked about often gets a number: it will
 * be asked again.
 *
 * A number is a reference. Whoever closes the descriptor without having taken the number back does not close the file:
 * its peer would wait for the end of the connection.
 */
#ifndef SLUICE_LOOP_URING_FILES_H
#define SLUICE_LOOP_URING_FILES_H

#include <linux/io_uring.h>
#include <stdbool.h>
#include <stdint.h>

/* 8 bytes each of the kernel's memory. What comes when all are taken goes by its descriptor. */
#define FILES_MAX 8192

/* Zeroed, for a ring that has not come so far. */
struct uring_files {
    int ring;      /* its descriptor */
    unsigned size; /* of the table; 0: there is none */
    unsigned begun, vacant_count;
    uint16_t vacant[FILES_MAX]; /* of the first begun numbers */
};

/* What is known of one descriptor; zeroed at first. */
struct uring_file {
    unsigned number; /* and 1; 0: it has none */
    unsigned requests;
    bool refused;
};

extern unsigned uring_files_after; /* so many requests; tests and benchmarks change it */

/* An empty table, as large as the process may have descriptors. Without it all goes by descriptor. */
void uring_files_prepare(struct uring_files *files, int ring);

/* The entry is about this descriptor. It must have been issued before the number is taken back. */
void uring_files_name(struct uring_files *files, struct uring_file *file, int fd, struct io_uring_sqe *entry);

/* The ring is to forget the descriptor, before it is closed. Returns 0 or a negative errno: then it holds it still. */
int uring_files_let_go(struct uring_files *files, struct uring_file *file);

/* The ring is to forget all; from now on all goes by descriptor. Nothing that names a number may be waiting to be
 * issued. Returns 0 or a negative errno. */
int uring_files_give_up(struct uring_files *files);

#endif
