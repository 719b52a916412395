/* SPDX-License-Identifier: MIT
 *
 * What the files of a file system have in common: its type, and what it has refused lately. Known per thread, by device
 * number, for a while: then it is asked again.
 */
#ifndef SLUICE_CORE_FILE_SYSTEM_H
#define SLUICE_CORE_FILE_SYSTEM_H

#include "end.h"

/* The magic number (statfs(2)) of the file system that a regular file lies on; 0: unknown. */
uint32_t file_system_of(struct sluice_end *end, uint64_t *calls);

/* "ext4"; "?" for 0; else the number in hexadecimal. Static, or in buffer, which has 9 bytes. */
const char *file_system_name(uint32_t type, char *buffer);

/* Does its copy_file_range copy in the kernel, page by page through a pipe, and never do anything better?
 * without_reflink: it was seen to refuse that. */
bool file_system_only_copies(uint32_t type, bool without_reflink);

/* A route between files of these two was refused for a reason that holds for all their files. */
void file_systems_remember_refusal(struct sluice_end *source, struct sluice_end *sink, enum sluice_route route,
                                   int error, uint64_t *calls);

/* Forget all of it (tests). */
void file_systems_forget(void);

/* Bit per route that was. */
uint32_t file_systems_refused(struct sluice_end *source, struct sluice_end *sink, uint64_t *calls);

#endif
