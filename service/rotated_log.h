/* SPDX-License-Identifier: MIT
 *
 * A log whose file may be renamed while it is written (logrotate). At SIGHUP the supervisor opens the path anew, new
 * workers are forked with that, and those that there are get it from the supervisor (options.replacement, worker_hear):
 * a renamed file is written to no longer when the reload has been done.
 */
#ifndef SLUICE_SERVICE_ROTATED_LOG_H
#define SLUICE_SERVICE_ROTATED_LOG_H

#include "service/log.h"

struct rotated_log {
    struct log *log;   /* NULL: there is none */
    const char *where; /* path, or "-"; the caller's */
    unsigned number;   /* the same as long as lines of the same form go to the same place */
};

/* where NULL: no log. previous (or NULL): the same of the configuration before. Returns 0 or a negative errno. */
int rotated_log_open(const char *where, enum log_format format, const struct rotated_log *previous,
                     struct rotated_log *ret_log, struct failure *failure);

/* For the supervisor, whose own buffer is empty, when a configuration was refused and its log may have been renamed all
 * the same: open the path once more. On failure the old file goes on, and error_log gets a line that says so. */
void rotated_log_reopen(struct rotated_log *log, struct log *error_log, const char *program);

/* For options.replacement: the descriptor and its number, or -1. */
int rotated_log_replacement(const struct rotated_log *log, unsigned *ret_number);

/* For a worker, with WORKER_REPLACE: takes fd. That of another log is closed. Returns 0 or a negative errno: it goes on
 * in the old file. */
int rotated_log_take(struct rotated_log *log, int fd, unsigned number);

void rotated_log_close(struct rotated_log *log);

#endif
