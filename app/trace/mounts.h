/* SPDX-License-Identifier: MIT
 *
 * From a path within a file system to a path that people know: the kernel names a file from the root of its file
 * system; mountinfo says where (parts of) that are mounted (proc(5)).
 */
#ifndef SLUICE_APP_TRACE_MOUNTS_H
#define SLUICE_APP_TRACE_MOUNTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Is this path the file that is meant? */
typedef bool mounts_test(const char *path, void *data);

/* Find a path of the file whose path from the root of its file system is inner ("/dir/file"), by the mounts of
 * mountinfo: one that passes test, else the first candidate (the file may have been removed or renamed since).
 * major, minor: of the file system, as mountinfo prints them. Returns 1 (test passed), 0 (a candidate), -ENOENT
 * (mounted nowhere) or -ENAMETOOLONG; in the last two cases path is untouched. */
int mounts_resolve(FILE *mountinfo, unsigned major, unsigned minor, const char *inner, mounts_test *test, void *data,
                   char *path, size_t size);

#endif
