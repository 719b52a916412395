/* SPDX-License-Identifier: MIT
 *
 * Directories on file systems of a given type. ext4, XFS and btrfs are loop mounts in a mount namespace of this
 * process: nothing of them is left when it ends, however it ends. Where SLUICE_TEST_FILE_SYSTEMS names a directory (in
 * guests, which have disks), they are what is mounted below it under their names.
 */
#ifndef SLUICE_TESTS_FILE_SYSTEMS_H
#define SLUICE_TESTS_FILE_SYSTEMS_H

/* A directory on a file system of 300 MB, of type "ext4", "xfs", "btrfs" or "tmpfs"; made at the first call for it.
 * NULL: *ret_reason says why there is none and what would help. Valid until the process ends. */
const char *file_system_directory(const char *type, const char **ret_reason);

#endif
