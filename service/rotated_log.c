/* SPDX-License-Identifier: MIT */
#include "service/rotated_log.h"
#include "base/cleanup.h"
#include <stdbool.h>
#include <string.h>

int rotated_log_open(const char *where, enum log_format format, const struct rotated_log *previous,
                     struct rotated_log *ret_log, struct failure *failure)
{
    static unsigned last_number;
    struct rotated_log log = {.where = where};
    if (where != NULL) {
        int result = log_open(where, 0, &log.log, failure);
        if (result < 0)
            return result;
        log_set_format(log.log, format);
        bool same = previous != NULL && previous->log != NULL && strcmp(previous->where, where) == 0 &&
                    log_get_format(previous->log) == format;
        log.number = same ? previous->number : ++last_number;
    }
    *ret_log = log;
    return 0;
}

void rotated_log_reopen(struct rotated_log *log, struct log *error_log, const char *program)
{
    struct rotated_log again;
    struct failure failure;
    enum log_format format = log->log != NULL ? log_get_format(log->log) : LOG_COMBINED;
    if (rotated_log_open(log->where, format, log, &again, &failure) < 0) {
        log_say(error_log, "%s: %s; going on in the old file", program, failure.text);
        return;
    }
    rotated_log_close(log);
    *log = again;
}

int rotated_log_replacement(const struct rotated_log *log, unsigned *ret_number)
{
    *ret_number = log->number;
    return log->log != NULL ? log_fd(log->log) : -1;
}

int rotated_log_take(struct rotated_log *log, int fd, unsigned number)
{
    if (log->log != NULL && log->number == number)
        return log_replace(log->log, fd);
    close_fd(fd);
    return 0;
}

void rotated_log_close(struct rotated_log *log)
{
    log_close(log->log);
    log->log = NULL;
}
