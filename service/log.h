/* SPDX-License-Identifier: MIT
 *
 * A log of lines. Open it before the workers are forked: each has its own buffer from then on and the same file.
 * Lines of several workers never mix: a buffer is written by one write(2) of whole lines to a file opened with
 * O_APPEND, and to a pipe in pieces that the kernel keeps together (PIPE_BUF).
 *
 * A log never stalls a request: when its reader is slow and the pipe is full, lines are dropped and counted, and the
 * first line that goes through again is preceded by "[N lines lost: the log's reader was too slow]". On a disk, writing
 * can wait for the disk.
 */
#ifndef SLUICE_SERVICE_LOG_H
#define SLUICE_SERVICE_LOG_H

#include "base/failure.h"
#include <stddef.h>
#include <stdint.h>
#include <time.h>

struct log;

/* where: a path, or "-" for standard output. buffer_size 0: 64 KiB; must hold the longest line. The file is made with
 * mode 0640 if it is missing. Returns 0 or a negative errno. */
int log_open(const char *where, size_t buffer_size, struct log **ret_log, struct failure *failure);

/* Could it be opened now? Nothing is made or opened. Returns 0 or a negative errno, with the same words. */
int log_check(const char *where, struct failure *failure);

/* The same for an open descriptor, which stays the caller's. Its O_NONBLOCK flag is not changed: others may share it.
 */
int log_open_fd(int fd, size_t buffer_size, struct log **ret_log, struct failure *failure);

/* The descriptor that it writes to, which stays the log's. */
int log_fd(const struct log *log);

/* Go on in another file: what is buffered is written to the old one before. Takes fd. A line of which the old one took
 * only the beginning is lost, and counted. Returns 0 or a negative errno; fd is closed then. */
int log_replace(struct log *log, int fd);

/* Append one line; a newline is added. Written when the buffer is full, or by log_flush. One longer than the buffer, or
 * than PIPE_BUF on a pipe, is cut. */
void log_line(struct log *log, const char *line, size_t length);

/* One line for the operator, cut at 1 KiB, and written at once. */
__attribute__((format(printf, 2, 3))) void log_say(struct log *log, const char *format, ...);

/* What log_access writes. */
enum log_format {
    LOG_COMBINED, /* Apache's combined format */
    LOG_JSON,     /* one object a line */
};

extern const char *const log_formats[]; /* their names in this order, and NULL */

/* Before the first line. A log begins as LOG_COMBINED. */
void log_set_format(struct log *log, enum log_format format);
enum log_format log_get_format(const struct log *log);

/* A piece of text that need not be terminated; data NULL is "-" (in JSON, null). */
struct log_text {
    const char *data;
    size_t length;
};

/* A request. As the combined log format has it:
 *     CLIENT - - [TIME] "REQUEST" STATUS BYTES "REFERER" "USER AGENT"
 * and as JSON:
 *     {"time":"TIME","client":"...","request":"...","status":200,"bytes":1,"referer":null,"user_agent":"..."} */
struct log_access {
    struct log_text client;
    const char *time;        /* from log_time_text, for this log's format */
    struct log_text host;    /* whom it was for, as the client wrote it; JSON has a member for it */
    struct log_text request; /* the request line without CRLF */
    unsigned status;
    uint64_t bytes; /* of the body, as sent; 0 is written "-" */
    struct log_text referer, user_agent;
    const char *tls; /* its version, "TLSv1.3", which JSON has a member for; NULL: none */
};

/* Append the line for one request. Quotes and backslashes get a backslash; control bytes and bytes above 126 become
 * \xHH, or \u00HH in JSON (which makes each a character of Latin-1), so that no request can forge a line or send
 * escapes to a terminal. Each of the texts is cut at 1 KiB, and in JSON further if that would not fit on a line. */
void log_access(struct log *log, const struct log_access *access);

#define LOG_TIME_TEXT_MAX 27 /* "10/Oct/2000:13:55:36 +0000", "2000-10-10T13:55:36Z" */

/* The time, always in UTC and English. Once per second is enough: the caller keeps the text. */
void log_time_text(enum log_format format, time_t now, char buffer[LOG_TIME_TEXT_MAX]);

/* Write what is buffered. Call it when a turn of the loop is over, or soon after: costs nothing when the buffer is
 * empty. */
void log_flush(struct log *log);

/* How many bytes of lines wait to be written. */
size_t log_waiting(const struct log *log);

/* Lines dropped since the log was opened (in this process). */
uint64_t log_lost(const struct log *log);

/* Flush and close. */
void log_close(struct log *log);

#endif
