/* SPDX-License-Identifier: MIT */
#include "service/log.h"
#include "base/cleanup.h"
#include "check.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

static struct failure failure;

#define TEXT(literal)                                                                                                  \
    {                                                                                                                  \
        literal, sizeof literal - 1                                                                                    \
    }

static const char *scratch_path(void)
{
    static char path[64];
    snprintf(path, sizeof path, "/tmp/sluice-test-log-%d", (int)getpid());
    unlink(path);
    return path;
}

/* All that can be read from fd now. */
static char *read_all(int fd)
{
    static char text[1 << 20];
    size_t used = 0;
    ssize_t length;
    while ((length = read(fd, text + used, sizeof text - 1 - used)) > 0)
        used += (size_t)length;
    text[used] = '\0';
    return text;
}

static char *read_path(const char *path)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    return read_all(fd);
}

static void put_line(struct log *log, const char *line)
{
    log_line(log, line, strlen(line));
}

TEST("lines stay in the buffer until they are flushed, and are appended to what was in the file")
{
    const char *path = scratch_path();
    for (int run = 0; run < 2; run++) {
        struct log *log;
        CHECK_EQ(log_open(path, 0, &log, &failure), 0);
        put_line(log, "one");
        CHECK_STR(read_path(path), run == 0 ? "" : "one\ntwo\n");
        log_flush(log);
        CHECK_STR(read_path(path), run == 0 ? "one\n" : "one\ntwo\none\n");
        put_line(log, "two");
        log_close(log);
    }
    struct stat status;
    CHECK_EQ(stat(path, &status), 0);
    CHECK_EQ(status.st_mode & 07, 0);
    unlink(path);
}

TEST("a full buffer is written without being asked")
{
    const char *path = scratch_path();
    struct log *log;
    CHECK_EQ(log_open(path, 4096, &log, &failure), 0);
    char line[1000];
    memset(line, 'x', sizeof line);
    for (int i = 0; i < 5; i++)
        log_line(log, line, sizeof line);
    CHECK_EQ(strlen(read_path(path)), 4 * 1001);
    log_close(log);
    CHECK_EQ(strlen(read_path(path)), 5 * 1001);
    unlink(path);
}

TEST("a line longer than the buffer is cut")
{
    const char *path = scratch_path();
    struct log *log;
    CHECK_EQ(log_open(path, 4096, &log, &failure), 0);
    char line[5000];
    memset(line, 'x', sizeof line);
    log_line(log, line, sizeof line);
    log_close(log);
    CHECK_EQ(strlen(read_path(path)), 4096);
    unlink(path);
}

TEST("lines of several processes never mix")
{
    const char *path = scratch_path();
    struct log *log;
    CHECK_EQ(log_open(path, 4096, &log, &failure), 0);
    pid_t pids[4];
    for (int i = 0; i < 4; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            char line[300];
            for (int j = 0; j < 500; j++) {
                memset(line, 'a' + i, sizeof line);
                log_line(log, line, 100 + (size_t)j % 200);
            }
            log_flush(log);
            _exit(0);
        }
    }
    for (int i = 0; i < 4; i++)
        CHECK_EQ(waitpid(pids[i], NULL, 0), pids[i]);
    log_close(log);
    int lines = 0;
    for (char *line = strtok(read_path(path), "\n"); line != NULL; line = strtok(NULL, "\n"), lines++) {
        CHECK(strlen(line) >= 100);
        CHECK_EQ(strspn(line, (char[2]){line[0]}), strlen(line));
    }
    CHECK_EQ(lines, 4 * 500);
    unlink(path);
}

/* A pipe of two pages. */
static void small_pipe(int fds[2], int flags)
{
    CHECK_EQ(pipe2(fds, O_CLOEXEC | flags), 0);
    CHECK(fcntl(fds[1], F_SETPIPE_SZ, 8192) == 8192);
    CHECK_EQ(fcntl(fds[0], F_SETFL, O_NONBLOCK), 0);
}

static void full_pipe(int flags)
{
    int fds[2];
    small_pipe(fds, flags);
    struct log *log;
    CHECK_EQ(log_open_fd(fds[1], 0, &log, &failure), 0);
    char line[127];
    memset(line, 'x', sizeof line);
    for (int i = 0; i < 100; i++)
        log_line(log, line, sizeof line);
    log_flush(log); /* takes 64 lines of 128 bytes, then the pipe is full */
    CHECK_EQ(log_lost(log), 36);
    put_line(log, "lost, too");
    log_flush(log);
    CHECK_EQ(log_lost(log), 37);
    CHECK_EQ(strlen(read_all(fds[0])), 8192);
    put_line(log, "after");
    log_flush(log);
    CHECK_STR(read_all(fds[0]), "[37 lines lost: the log's reader was too slow]\nafter\n");
    put_line(log, "once only");
    log_flush(log);
    CHECK_STR(read_all(fds[0]), "once only\n");
    CHECK_EQ(log_lost(log), 37);
    CHECK_EQ(fcntl(fds[1], F_GETFL) & O_NONBLOCK, flags);
    log_close(log);
    CHECK_EQ(fcntl(fds[1], F_GETFD), FD_CLOEXEC);
    close(fds[0]);
    close(fds[1]);
}

TEST("a pipe whose reader is slow loses lines, says how many, and never stalls us")
{
    full_pipe(O_NONBLOCK);
}

TEST("the same holds for a blocking pipe, whose flag is left alone")
{
    alarm(10); /* a stall ends the test */
    full_pipe(0);
    alarm(0);
}

TEST("a line that was cut in the middle is completed before anything else is written")
{
    int fds[2], small = 1;
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    CHECK_EQ(setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
    struct log *log;
    CHECK_EQ(log_open_fd(fds[0], 1 << 20, &log, &failure), 0);
    static char line[150000];
    memset(line, 'x', sizeof line);
    log_line(log, line, sizeof line); /* longer than the socket holds */
    put_line(log, "dropped");
    log_flush(log);
    CHECK_EQ(log_lost(log), 1);
    static char seen[1 << 20];
    size_t used = 0;
    for (int i = 0; i < 1000 && strstr(seen, "after") == NULL; i++) {
        const char *text = read_all(fds[1]);
        memcpy(seen + used, text, strlen(text));
        used += strlen(text);
        put_line(log, "after");
        log_flush(log);
    }
    CHECK_EQ(strspn(seen, "x"), sizeof line);
    CHECK(strncmp(seen + sizeof line, "\n[", 2) == 0);
    CHECK(strstr(seen, "dropped") == NULL);
    log_close(log);
    close(fds[0]);
    close(fds[1]);
}

static const char *access_line(const struct log_access *access)
{
    static char line[20000];
    const char *path = scratch_path();
    struct log *log;
    CHECK_EQ(log_open(path, 0, &log, &failure), 0);
    log_access(log, access);
    log_close(log);
    snprintf(line, sizeof line, "%.*s", (int)sizeof line - 1, read_path(path));
    unlink(path);
    return line;
}

TEST("a request is logged in the combined format")
{
    struct log_access access = {.client = TEXT("10.1.2.3"),
                                .time = "10/Oct/2000:13:55:36 +0000",
                                .request = TEXT("GET /a.png HTTP/1.1"),
                                .status = 200,
                                .bytes = 18446744073709551615u,
                                .referer = TEXT("http://example.com/"),
                                .user_agent = TEXT("curl/8")};
    CHECK_STR(access_line(&access), "10.1.2.3 - - [10/Oct/2000:13:55:36 +0000] \"GET /a.png HTTP/1.1\" 200 "
                                    "18446744073709551615 \"http://example.com/\" \"curl/8\"\n");
}

TEST("what is absent is a dash")
{
    struct log_access access = {.client = TEXT("::1"), .time = "now", .status = 408};
    CHECK_STR(access_line(&access), "::1 - - [now] \"-\" 408 - \"-\" \"-\"\n");
}

TEST("no request can forge a line, end a quote or send escapes to a terminal")
{
    struct log_access access = {.client = TEXT("::1"),
                                .time = "now",
                                .request = TEXT("GET /\"\\\r\n\0 x"),
                                .status = 400,
                                .bytes = 1,
                                .referer = TEXT("\x1b[2J\x7f\xff"),
                                .user_agent = TEXT("")};
    CHECK_STR(access_line(&access),
              "::1 - - [now] \"GET /\\\"\\\\\\x0d\\x0a\\x00 x\" 400 1 \"\\x1b[2J\\x7f\\xff\" \"\"\n");
}

TEST("every byte is shown in the same way wherever it stands")
{
    for (unsigned place = 0; place < 20; place++)
        for (unsigned byte = 0; byte < 256; byte++) {
            char text[20], expected[128], shown[8];
            memset(text, 'a', sizeof text);
            text[place] = (char)byte;
            if (byte == '"' || byte == '\\')
                snprintf(shown, sizeof shown, "\\%c", (int)byte);
            else
                snprintf(shown, sizeof shown, byte >= ' ' && byte < 127 ? "%c" : "\\x%02x", byte);
            snprintf(expected, sizeof expected, "::1 - - [now] \"%.*s%s%.*s\" 200 1 \"-\" \"-\"\n", (int)place,
                     "aaaaaaaaaaaaaaaaaaaa", shown, (int)(sizeof text - place - 1), "aaaaaaaaaaaaaaaaaaaa");
            struct log_access access = {
                .client = TEXT("::1"), .time = "now", .request = {text, sizeof text}, .status = 200, .bytes = 1};
            CHECK_STR(access_line(&access), expected);
        }
}

TEST("long texts are cut at 1 KiB each, and the longest line fits")
{
    static char bytes[3000];
    memset(bytes, 1, sizeof bytes);
    struct log_text text = {bytes, sizeof bytes};
    struct log_access access = {.client = TEXT("::1"),
                                .time = "now",
                                .request = text,
                                .status = 200,
                                .bytes = 1,
                                .referer = text,
                                .user_agent = text};
    const char *line = access_line(&access);
    CHECK_EQ(strlen(line), strlen("::1 - - [now] \"\" 200 1 \"\" \"\"\n") + (size_t)3 * 4 * 1024);
}

TEST("an access line too long for a pipe's promise of wholeness is cut to it")
{
    int fds[2];
    CHECK_EQ(pipe2(fds, O_NONBLOCK | O_CLOEXEC), 0);
    struct log *log;
    CHECK_EQ(log_open_fd(fds[1], 0, &log, &failure), 0);
    static char bytes[1024];
    memset(bytes, 1, sizeof bytes);
    struct log_access access = {.client = TEXT("::1"), .time = "now", .request = {bytes, sizeof bytes}, .status = 200};
    log_access(log, &access);
    log_flush(log);
    const char *line = read_all(fds[0]);
    CHECK_EQ(strlen(line), PIPE_BUF);
    CHECK_EQ(line[PIPE_BUF - 1], '\n');
    log_close(log);
    close(fds[0]);
    close(fds[1]);
}

TEST("a JSON line that goes into a pipe is whole, its texts being cut instead")
{
    int fds[2];
    CHECK_EQ(pipe2(fds, O_NONBLOCK | O_CLOEXEC), 0);
    struct log *log;
    CHECK_EQ(log_open_fd(fds[1], 0, &log, &failure), 0);
    log_set_format(log, LOG_JSON);
    static char bytes[1024];
    for (unsigned kind = 0; kind < 3; kind++) {
        memset(bytes, "\x01\"x"[kind], sizeof bytes);
        const struct log_text text = {bytes, sizeof bytes};
        struct log_access access = {.client = text,
                                    .time = "now",
                                    .request = text,
                                    .status = 200,
                                    .referer = text,
                                    .user_agent = text,
                                    .bytes = UINT64_MAX};
        log_access(log, &access);
        log_flush(log);
        const char *line = read_all(fds[0]);
        size_t length = strlen(line);
        CHECK(length > PIPE_BUF / 2 && length <= PIPE_BUF);
        CHECK_STR(line + length - 3, "\"}\n");
    }
    log_close(log);
    close(fds[0]);
    close(fds[1]);
}

TEST("the time is in UTC and English")
{
    char text[LOG_TIME_TEXT_MAX];
    log_time_text(LOG_COMBINED, 971186136, text);
    CHECK_STR(text, "10/Oct/2000:13:55:36 +0000");
    log_time_text(LOG_JSON, 971186136, text);
    CHECK_STR(text, "2000-10-10T13:55:36Z");
}

TEST("a log that is replaced has its lines in the old file until then, and in the new one from then on")
{
    char paths[2][80];
    struct log *log;
    for (unsigned i = 0; i < 2; i++)
        snprintf(paths[i], sizeof paths[i], "%s.%u", scratch_path(), i);
    CHECK_EQ(log_open(paths[0], 0, &log, &failure), 0);
    log_line(log, "old", 3);
    CHECK_EQ(log_replace(log, open(paths[1], O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600)), 0);
    log_line(log, "new", 3);
    log_close(log);
    for (unsigned i = 0; i < 2; i++) {
        char text[16] = "";
        int fd = open(paths[i], O_RDONLY | O_CLOEXEC);
        CHECK(read(fd, text, sizeof text - 1) == 4);
        CHECK_STR(text, i == 0 ? "old\n" : "new\n");
        close(fd);
        unlink(paths[i]);
    }
}

TEST("a log that cannot be opened says why")
{
    struct log *log = NULL;
    CHECK_EQ(log_open("/nowhere/log", 0, &log, &failure), -ENOENT);
    CHECK_STR(failure.text,
              "cannot log to /nowhere/log: No such file or directory (ENOENT); its directory does not exist");
    const char *path = scratch_path();
    CHECK_EQ(mkfifo(path, 0600), 0);
    CHECK_EQ(log_open(path, 0, &log, &failure), -ENXIO);
    CHECK(strstr(failure.text, "start its reader first") != NULL);
    unlink(path);
    CHECK(log == NULL);
    log_close(log);
}

TEST("whether a log can be opened is asked without making it")
{
    char path[64], inside[80];
    snprintf(path, sizeof path, "/tmp/log-check-%d", (int)getpid());
    snprintf(inside, sizeof inside, "%s/log", path);
    CHECK_EQ(log_check("-", &failure), 0);
    CHECK_EQ(log_check(inside, &failure), -ENOENT);
    CHECK(strstr(failure.text, "its directory does not exist") != NULL);
    CHECK_EQ(log_check(path, &failure), 0);
    CHECK_EQ(access(path, F_OK), -1);
    CHECK_EQ(mkdir(path, 0700), 0);
    CHECK_EQ(log_check(inside, &failure), 0);
    CHECK_EQ(access(inside, F_OK), -1);
    CHECK_EQ(log_check(path, &failure), -EISDIR);
    CHECK_EQ(log_check("", &failure), -ENOENT);
    CHECK_EQ(rmdir(path), 0);
}

TEST("standard output is not made non-blocking for those who share it")
{
    CLEANUP_FD int saved = dup(STDOUT_FILENO);
    int fds[2];
    CHECK_EQ(pipe2(fds, O_CLOEXEC), 0);
    fflush(stdout);
    dup2(fds[1], STDOUT_FILENO);
    struct log *log = NULL;
    int opened = log_open("-", 0, &log, &failure);
    int flags = fcntl(fds[1], F_GETFL);
    dup2(saved, STDOUT_FILENO);
    CHECK_EQ(opened, 0);
    CHECK_EQ(flags & O_NONBLOCK, 0);
    put_line(log, "hello");
    log_close(log);
    char text[16] = "";
    CHECK_EQ(read(fds[0], text, sizeof text - 1), 6);
    CHECK_STR(text, "hello\n");
    close(fds[0]);
    close(fds[1]);
}

TEST("lines that go to a file through standard output do not overwrite what others print there")
{
    const char *path = scratch_path();
    CLEANUP_FD int saved = dup(STDOUT_FILENO);
    CLEANUP_FD int file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600); /* as by the shell's > */
    fflush(stdout);
    dup2(file, STDOUT_FILENO);
    struct log *log = NULL;
    int opened = log_open("-", 0, &log, &failure);
    ssize_t before = write(STDOUT_FILENO, "before\n", 7);
    if (opened == 0) {
        put_line(log, "line");
        log_flush(log);
    }
    ssize_t after = write(STDOUT_FILENO, "after\n", 6);
    dup2(saved, STDOUT_FILENO);
    CHECK_EQ(opened, 0);
    CHECK_EQ(before + after, 13);
    CHECK_STR(read_path(path), "before\nline\nafter\n");
    log_close(log);
    unlink(path);
}

CHECK_MAIN()
