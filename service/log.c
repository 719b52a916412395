/* SPDX-License-Identifier: MIT */
#include "service/log.h"
#include "base/cleanup.h"
#include "base/text.h"
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUFFER_DEFAULT (64u << 10)
#define ACCESS_TEXT_MAX 1024
#define NOTE_MAX 100 /* "[N lines lost: ...]" */
#define LOG_TLS_MAX 16
#define JSON_TEXTS 5   /* that may be cut, so that the rest fits */
#define JSON_FRAME 256 /* of an access line but for the texts: names, time, two numbers, the version of TLS */

/* How a descriptor takes bytes. */
enum kind {
    KIND_FILE,   /* at once, or after the disk */
    KIND_STREAM, /* pipe or terminal: may be full, and keeps only pieces of PIPE_BUF together */
    KIND_SOCKET, /* may be full */
};

struct log {
    int fd;
    bool own_fd;
    bool blocking; /* a stream whose O_NONBLOCK flag is not ours to set: asked by poll before each piece */
    enum kind kind;
    size_t line_max;    /* newline included */
    size_t size, used;  /* of buffer */
    uint64_t lost;      /* lines, in all */
    uint64_t lost_told; /* of these, told to the reader */
    enum log_format format;
    bool cut; /* the last write ended within a line; the rest of it begins the buffer */
    char buffer[];
};

/* Learn how this descriptor takes bytes. */
static int write_to(struct log *log, int fd, bool own_fd)
{
    struct stat status;
    if (fstat(fd, &status) < 0)
        return -errno;
    log->fd = fd;
    log->own_fd = own_fd;
    log->kind = S_ISFIFO(status.st_mode) || isatty(fd) ? KIND_STREAM
                : S_ISSOCK(status.st_mode)             ? KIND_SOCKET
                                                       : KIND_FILE;
    log->blocking = (fcntl(fd, F_GETFL) & O_NONBLOCK) == 0;
    log->line_max = log->kind == KIND_STREAM ? PIPE_BUF : log->size;
    return 0;
}

static int make(int fd, bool own_fd, size_t buffer_size, struct log **ret_log)
{
    size_t size = buffer_size != 0 ? buffer_size : BUFFER_DEFAULT;
    if (size < PIPE_BUF)
        size = PIPE_BUF;
    struct log *log = malloc(sizeof *log + size);
    if (log == NULL)
        return -ENOMEM;
    *log = (struct log){.size = size};
    int result = write_to(log, fd, own_fd);
    if (result < 0) {
        free(log);
        return result;
    }
    *ret_log = log;
    return 0;
}

int log_open_fd(int fd, size_t buffer_size, struct log **ret_log, struct failure *failure)
{
    int result = make(fd, false, buffer_size, ret_log);
    if (result < 0)
        return failure_set(failure, result, "cannot log to descriptor %d: %s (%s)", fd, text_errno_meaning(result),
                           text_errno_name(result));
    return 0;
}

static int open_standard_output(void)
{
    struct stat status;
    if (fstat(STDOUT_FILENO, &status) < 0)
        return -errno;
    /* Opening it once more gives an open file of our own, whose O_NONBLOCK nobody else sees. Not for a regular file:
     * that would have a position of its own, too, and what others write to standard output would go over our lines. */
    int fd = -1;
    if (!S_ISREG(status.st_mode))
        fd = open("/proc/self/fd/1", O_WRONLY | O_APPEND | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    return fd < 0 ? -errno : fd;
}

static int refuse_to_log(const char *where, int result, struct failure *failure)
{
    const char *remedy = "";
    if (result == -ENXIO)
        remedy = "; nobody reads from this FIFO: start its reader first";
    else if (result == -ENOENT)
        remedy = "; its directory does not exist";
    else if (result == -EISDIR)
        remedy = "; give the name of a file in it";
    return failure_set(failure, result, "cannot log to %s: %s (%s)%s",
                       strcmp(where, "-") == 0 ? "standard output" : where, text_errno_meaning(result),
                       text_errno_name(result), remedy);
}

int log_check(const char *where, struct failure *failure)
{
    struct stat status;
    const char *slash = strrchr(where, '/');
    int result = 0;
    if (strcmp(where, "-") == 0)
        return 0;
    if (stat(where, &status) == 0) {
        result = S_ISDIR(status.st_mode) ? -EISDIR : faccessat(AT_FDCWD, where, W_OK, AT_EACCESS) < 0 ? -errno : 0;
    } else if (errno != ENOENT || *where == '\0' || (slash != NULL && slash[1] == '\0')) {
        result = -errno;
    } else {
        CLEANUP_FREE char *directory = slash == NULL    ? strdup(".")
                                       : slash == where ? strdup("/")
                                                        : strndup(where, (size_t)(slash - where));
        result = directory == NULL ? -ENOMEM : faccessat(AT_FDCWD, directory, W_OK | X_OK, AT_EACCESS) < 0 ? -errno : 0;
    }
    return result < 0 ? refuse_to_log(where, result, failure) : 0;
}

int log_open(const char *where, size_t buffer_size, struct log **ret_log, struct failure *failure)
{
    bool standard_output = strcmp(where, "-") == 0;
    CLEANUP_FD int fd = -1;
    int result = 0;
    if (standard_output) {
        fd = open_standard_output();
        result = fd < 0 ? fd : 0;
    } else {
        /* O_NONBLOCK for FIFOs; on regular files it means nothing. */
        fd = open(where, O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0640);
        result = fd < 0 ? -errno : 0;
    }
    if (result == 0)
        result = make(fd, true, buffer_size, ret_log);
    if (result == 0) {
        TAKE_FD(fd);
        return 0;
    }
    return refuse_to_log(where, result, failure);
}

static uint64_t count_lines(const char *text, size_t length)
{
    uint64_t count = 0;
    for (const char *at = text; (at = memchr(at, '\n', length - (size_t)(at - text))) != NULL; at++)
        count++;
    return count;
}

/* The length of the whole lines at the beginning of text that fit in max. */
static size_t whole_lines(const char *text, size_t length, size_t max)
{
    if (length <= max)
        return length;
    const char *last = memrchr(text, '\n', max);
    return last != NULL ? (size_t)(last - text) + 1 : max;
}

/* The length of the line that text begins with, newline included. */
static size_t end_of_line(const char *text, size_t length)
{
    const char *end = memchr(text, '\n', length);
    return end != NULL ? (size_t)(end - text) + 1 : length;
}

/* Write without waiting for a reader. Returns the bytes written, or -EAGAIN or another negative errno. */
static ssize_t write_some(const struct log *log, const char *data, size_t length)
{
    ssize_t written;
    if (log->kind == KIND_STREAM && log->blocking) {
        /* Writable means that PIPE_BUF bytes have room; only another process that fills the pipe right now makes us
         * wait. */
        struct pollfd polled = {.fd = log->fd, .events = POLLOUT};
        if (poll(&polled, 1, 0) != 1)
            return -EAGAIN;
    }
    do
        written = log->kind == KIND_SOCKET ? send(log->fd, data, length, MSG_DONTWAIT | MSG_NOSIGNAL)
                                           : write(log->fd, data, length);
    while (written < 0 && errno == EINTR);
    return written < 0 ? -errno : written;
}

/* Tell the reader what it missed. Returns whether lines can be written now. */
static bool tell_losses(struct log *log)
{
    if (log->lost == log->lost_told)
        return true;
    char note[NOTE_MAX];
    uint64_t missed = log->lost - log->lost_told;
    int length = snprintf(note, sizeof note, "[%llu line%s lost: the log's reader was too slow]\n",
                          (unsigned long long)missed, missed == 1 ? "" : "s");
    /* Shorter than PIPE_BUF: a pipe takes all or nothing. A file that takes part of it has a full disk. */
    if (write_some(log, note, (size_t)length) != length)
        return false;
    log->lost_told = log->lost;
    return true;
}

void log_flush(struct log *log)
{
    if (log->used == 0)
        return; /* as at the end of most turns */
    size_t at = 0;
    while (at < log->used && (log->cut || tell_losses(log))) {
        size_t length = log->used - at;
        if (log->cut && log->lost != log->lost_told)
            length = end_of_line(log->buffer + at, length); /* the note about lost lines comes behind this one */
        if (log->kind == KIND_STREAM)
            length = whole_lines(log->buffer + at, length, PIPE_BUF);
        ssize_t written = write_some(log, log->buffer + at, length);
        if (written <= 0)
            break;
        at += (size_t)written;
        log->cut = log->buffer[at - 1] != '\n';
    }
    /* What did not go now is dropped, but for the rest of a line that was cut: half a line would spoil the next one. */
    size_t rest = log->cut ? end_of_line(log->buffer + at, log->used - at) : 0;
    log->lost += count_lines(log->buffer + at + rest, log->used - at - rest);
    memmove(log->buffer, log->buffer + at, rest);
    log->used = rest;
}

size_t log_waiting(const struct log *log)
{
    return log->used;
}

/* Room for a line of length bytes, or NULL when there is none (the rest of a cut line is in the way). */
static char *room_for(struct log *log, size_t length)
{
    if (log->size - log->used < length)
        log_flush(log);
    return log->size - log->used < length ? NULL : log->buffer + log->used;
}

void log_line(struct log *log, const char *line, size_t length)
{
    if (length > log->line_max - 1)
        length = log->line_max - 1;
    char *room = room_for(log, length + 1);
    if (room == NULL) {
        log->lost++;
        return;
    }
    memcpy(room, line, length);
    room[length] = '\n';
    log->used += length + 1;
}

static char *put(char *at, const char *text, size_t length)
{
    memcpy(at, text, length);
    return at + length;
}

static char *put_number(char *at, uint64_t number)
{
    char digits[20];
    size_t count = 0;
    do
        digits[sizeof digits - ++count] = (char)('0' + number % 10);
    while ((number /= 10) != 0);
    return put(at, digits + sizeof digits - count, count);
}

static char *put_text(char *at, const char *text)
{
    return put(at, text, strlen(text));
}

/* How many of eight bytes stand for themselves: printable ASCII but the quote and the backslash. 0x80 is in each byte
 * of odd that does not, and perhaps in bytes behind the first such one. */
static unsigned plain_bytes(const char *text)
{
    const uint64_t ones = 0x0101010101010101u, tops = ones * 0x80;
    uint64_t word;
    memcpy(&word, text, sizeof word);
    uint64_t quote = word ^ ones * '"', backslash = word ^ ones * '\\', del = word ^ ones * 0x7f;
    uint64_t odd = (word | (word - ones * ' ') | (quote - ones) | (backslash - ones) | (del - ones)) & tops;
    if (odd == 0)
        return sizeof word;
    return (unsigned)__builtin_ctzll(htole64(odd)) / 8;
}

/* At most max bytes, and max at least 8. A byte takes six at most. */
static char *put_escaped(char *at, size_t max, struct log_text text, enum log_format format)
{
    static const char hex[] = "0123456789abcdef";
    const char *last = at + max - 6, *last_word = at + max - 8;
    size_t length = text.length < ACCESS_TEXT_MAX ? text.length : ACCESS_TEXT_MAX;
    for (size_t i = 0; i < length && at <= last;) {
        if (length - i >= 8 && at <= last_word) {
            unsigned plain = plain_bytes(text.data + i);
            memcpy(at, text.data + i, 8); /* what is not plain is written over */
            at += plain;
            i += plain;
            if (plain == 8 || at > last)
                continue;
        }
        unsigned char byte = (unsigned char)text.data[i++];
        if (byte == '"' || byte == '\\') {
            *at++ = '\\';
            *at++ = (char)byte;
        } else if (byte >= ' ' && byte <= '~') {
            *at++ = (char)byte;
        } else {
            *at++ = '\\';
            at = format == LOG_JSON ? put(at, "u00", 3) : put(at, "x", 1);
            *at++ = hex[byte >> 4];
            *at++ = hex[byte & 15];
        }
    }
    return at;
}

/* In quotes; as combined, a text that is missing is a dash. */
static char *put_quoted(char *at, struct log_text text)
{
    *at++ = '"';
    at = text.data == NULL ? put(at, "-", 1) : put_escaped(at, 6 * ACCESS_TEXT_MAX, text, LOG_COMBINED);
    *at++ = '"';
    return at;
}

static char *put_combined(char *at, const struct log_access *access)
{
    at = access->client.data == NULL ? put(at, "-", 1)
                                     : put_escaped(at, 6 * ACCESS_TEXT_MAX, access->client, LOG_COMBINED);
    at = put(at, " - - [", 6);
    at = put(at, access->time, strnlen(access->time, LOG_TIME_TEXT_MAX));
    at = put(at, "] ", 2);
    at = put_quoted(at, access->request);
    *at++ = ' ';
    at = put_number(at, access->status);
    *at++ = ' ';
    at = access->bytes != 0 ? put_number(at, access->bytes) : put(at, "-", 1);
    *at++ = ' ';
    at = put_quoted(at, access->referer);
    *at++ = ' ';
    return put_quoted(at, access->user_agent);
}

/* ,"NAME":"..." */
static char *put_member(char *at, const char *name, struct log_text text, size_t max)
{
    at = put_text(at, name);
    if (text.data == NULL)
        return put(at, "null", 4);
    *at++ = '"';
    at = put_escaped(at, max, text, LOG_JSON);
    *at++ = '"';
    return at;
}

/* A line that was cut would be no JSON: each text gets its share of what there is. */
static char *put_json(char *at, const struct log_access *access, size_t line_max)
{
    size_t share = (line_max - JSON_FRAME) / JSON_TEXTS;
    if (share > 6 * ACCESS_TEXT_MAX)
        share = 6 * ACCESS_TEXT_MAX;
    at = put(at, "{\"time\":\"", 9);
    at = put(at, access->time, strnlen(access->time, LOG_TIME_TEXT_MAX));
    at = put_member(at, "\",\"client\":", access->client, share);
    at = put_member(at, ",\"host\":", access->host, share);
    at = put_member(at, ",\"request\":", access->request, share);
    at = put_text(at, ",\"status\":");
    at = put_number(at, access->status);
    at = put_text(at, ",\"bytes\":");
    at = put_number(at, access->bytes);
    at = put_member(at, ",\"referer\":", access->referer, share);
    at = put_member(at, ",\"user_agent\":", access->user_agent, share);
    if (access->tls != NULL)
        at = put_member(at, ",\"tls\":", (struct log_text){access->tls, strlen(access->tls)}, LOG_TLS_MAX);
    *at++ = '}';
    return at;
}

void log_access(struct log *log, const struct log_access *access)
{
    /* The line is made in place when the longest possible one fits, and elsewhere when it may have to be cut. */
    enum { LONGEST = JSON_TEXTS * 6 * ACCESS_TEXT_MAX + JSON_FRAME };
    char line[LONGEST];
    char *room = log->line_max >= LONGEST ? room_for(log, LONGEST) : NULL;
    char *begin = room != NULL ? room : line;
    char *at = log->format == LOG_JSON ? put_json(begin, access, log->line_max < LONGEST ? log->line_max : LONGEST)
                                       : put_combined(begin, access);
    if (room == NULL) {
        log_line(log, line, (size_t)(at - line));
        return;
    }
    *at++ = '\n';
    log->used += (size_t)(at - begin);
}

const char *const log_formats[] = {"combined", "json", NULL};

void log_set_format(struct log *log, enum log_format format)
{
    log->format = format;
}

enum log_format log_get_format(const struct log *log)
{
    return log->format;
}

void log_time_text(enum log_format format, time_t now, char buffer[LOG_TIME_TEXT_MAX])
{
    /* Not strftime's %b: that follows the locale. */
    static const char months[12][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                       "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    struct tm tm;
    if (gmtime_r(&now, &tm) == NULL)
        memset(&tm, 0, sizeof tm);
    unsigned year = (unsigned)(tm.tm_year + 1900) % 10000, month = (unsigned)tm.tm_mon % 12,
             day = (unsigned)tm.tm_mday % 100, hour = (unsigned)tm.tm_hour % 100, minute = (unsigned)tm.tm_min % 100,
             second = (unsigned)tm.tm_sec % 100;
    if (format == LOG_JSON)
        snprintf(buffer, LOG_TIME_TEXT_MAX, "%04u-%02u-%02uT%02u:%02u:%02uZ", year, month + 1, day, hour, minute,
                 second);
    else
        snprintf(buffer, LOG_TIME_TEXT_MAX, "%02u/%.3s/%04u:%02u:%02u:%02u +0000", day, months[month], year, hour,
                 minute, second);
}

uint64_t log_lost(const struct log *log)
{
    return log->lost;
}

int log_fd(const struct log *log)
{
    return log->fd;
}

int log_replace(struct log *log, int fd)
{
    log_flush(log);
    int old = log->own_fd ? log->fd : -1;
    int result = write_to(log, fd, true);
    if (result < 0) {
        close(fd);
        return result;
    }
    close_fd(old);
    log->lost += log->used > 0; /* the rest of a line that was cut */
    log->used = 0;
    log->cut = false;
    return 0;
}

void log_close(struct log *log)
{
    if (log == NULL)
        return;
    log_flush(log);
    if (log->own_fd)
        close(log->fd);
    free(log);
}

void log_say(struct log *log, const char *format, ...)
{
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (length > 0)
        log_line(log, line, (size_t)length < sizeof line ? (size_t)length : sizeof line - 1);
    log_flush(log);
}
