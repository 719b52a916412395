/* SPDX-License-Identifier: MIT
 *
 * sluice fanout: one input into several files, sockets and pipes.
 *
 * A TCP connection whose peer might take its end for the end of the input is reset instead: SO_LINGER is 0 from the
 * start, so that this holds however the process ends, and is restored when everything was sent.
 */
#include "base/cleanup.h"
#include "base/text.h"
#include "commands.h"
#include "service/address.h"
#include "service/json.h"
#include "service/options.h"
#include "service/routes.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <sluice/sluice.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define INPUT_PIPE (1 << 20) /* what an unprivileged pipe may have: fewer wake-ups of the two sides */
#define ACKNOWLEDGED_POLL 50 /* ms */

struct fanout_options {
    const char *input, *route;
    unsigned policy;
    uint64_t window, buffer, patience;
    bool append, json, verbose;
};

#define MEMBER(name) offsetof(struct fanout_options, name)

static const char *const policies[] = {"block", "drop", "copy", "first", NULL}; /* as enum sluice_fanout_policy */

/* From any descriptor into any two. */
static const char *const *route_names(void)
{
    static const char *names[ROUTES_NAMES];
    for (int source = 0; source < SLUICE_END_MEMORY; source++)
        for (int sink = 0; sink < SLUICE_END_MEMORY; sink++)
            routes_add_names((enum sluice_end_kind)source, (enum sluice_end_kind)sink, 2, names);
    return names;
}

static const struct option_spec option_table[] = {
    {.type = OPTION_HEADING, .help = "Ends"},
    {"input", 'i', "SOURCE", "where from: a file, tcp:HOST:PORT, unix:PATH, fd:N, or - for standard input", OPTION_TEXT,
     MEMBER(input), .default_text = "-"},
    {"append", 'a', NULL, "append to files instead of overwriting them; they are then written by copy", OPTION_FLAG,
     MEMBER(append), .default_text = NULL},

    {.type = OPTION_HEADING, .help = "Slow and failing sinks"},
    {"policy", 0, "NAME",
     "block: the others wait for a slow sink, and one that fails ends all. drop: such a sink is given up, a TCP "
     "connection reset, and the others go on. copy: as drop, but what a slow sink cannot take yet is kept in memory. "
     "first: all wait for the first sink alone, and if it fails that ends all; another in its way is given up at once",
     OPTION_CHOICE, MEMBER(policy), .default_text = "block", .choices = policies},
    {"window", 0, "SIZE", "how far a sink may be behind what was read", OPTION_SIZE, MEMBER(window),
     .default_text = "1M", .min = 4096, .max = SLUICE_FANOUT_WINDOW},
    {"buffer", 0, "SIZE", "with --policy copy: how much further, for each sink", OPTION_SIZE, MEMBER(buffer),
     .default_text = "16M", .min = 4096, .max = UINT64_C(1) << 40},
    {"patience", 0, "TIME",
     "how long a sink that is so far behind may hold the others up; with --policy first: how long one may take nothing "
     "after the first has everything",
     OPTION_DURATION, MEMBER(patience), .default_text = "1s", .min = 1, .max = UINT64_C(24) * 3600 * 1000},

    {.type = OPTION_HEADING, .help = "Mechanism and report"},
    {"route", 0, "NAME", "force a mechanism: copy, tee (sendfile or mmap for files)", OPTION_TEXT, MEMBER(route),
     .default_text = "auto", .known = route_names},
    {"verbose", 'v', NULL, "print to standard error how each sink's bytes went, and which were copied", OPTION_FLAG,
     MEMBER(verbose), .default_text = NULL},
    {"json", 0, NULL, "print that as JSON: to standard output, or to standard error if - is a sink", OPTION_FLAG,
     MEMBER(json), .default_text = NULL},
    {.type = OPTION_END},
};

static const char *const examples[] = {
    "producer | sluice fanout a.log tcp:127.0.0.1:9000",
    "into a file and to a server, each byte copied once at most",
    "producer | sluice fanout - copy.bin | consumer",
    "as tee(1)",
    "sluice fanout --input tcp:10.0.0.1:9000 --policy copy disk.bin unix:/run/watch",
    "the watcher may be slow, and may go away",
    NULL,
};

struct place {
    const char *name;
    int fd;
    bool opened; /* by us */
    int flags;   /* to be restored: of a descriptor that others use as well; -1: none */
    bool tcp;
    bool closed;            /* before the others: it had everything */
    struct linger linger;   /* to be restored */
    struct sluice_end *end; /* NULL: it could not be opened */
    int error;              /* positive errno */
    const char *doing;      /* what failed; NULL: the transfer */
};

struct fanout {
    struct fanout_options options;
    enum sluice_route route;
    struct place input, sinks[SLUICE_SINKS_MAX];
    unsigned sink_count;
    bool to_stdout;
    struct sluice_segment segment;
    unsigned which[SLUICE_SINKS_MAX]; /* the transfer's sinks: the numbers of those that could be opened */
    struct sluice_receipt receipts[SLUICE_SINKS_MAX];
    struct sluice_error errors[SLUICE_SINKS_MAX]; /* why a sink ended before the others, or was the end of all */
    struct sluice_error error;                    /* why all ended */
    int result;
};

__attribute__((format(printf, 1, 2))) static void complain(const char *format, ...)
{
    va_list arguments;
    fputs("sluice fanout: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
}

static int complain_of(struct place *place, const char *doing)
{
    place->error = errno;
    place->doing = doing;
    complain("%s: %s: %s (%s)", place->name, doing, text_errno_meaning(errno), text_errno_name(errno));
    return -place->error;
}

/* ---- Opening ---------------------------------------------------------------------------------------------------- */

static int connect_tcp(struct place *place, const char *text)
{
    struct address address;
    struct failure failure = {.text = ""};
    int result = address_parse(text, &address, &failure);
    if (result < 0) {
        place->error = -result;
        place->doing = "finding the address";
        complain("%s: %s", place->name, failure.text);
        return result;
    }
    place->fd = socket(address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (place->fd < 0)
        return complain_of(place, "making a socket");
    return connect(place->fd, &address.any, address.length) < 0 ? complain_of(place, "connecting") : 0;
}

static int connect_unix(struct place *place, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return complain_of(place, "connecting");
    }
    memcpy(address.sun_path, path, strlen(path) + 1);
    place->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (place->fd < 0)
        return complain_of(place, "making a socket");
    return connect(place->fd, (struct sockaddr *)&address, sizeof address) < 0 ? complain_of(place, "connecting") : 0;
}

/* A descriptor that we were given. Waiting must not block us at one of several sinks, so pipes and terminals are opened
 * anew, non-blocking; where that is not possible, others that use the descriptor see it non-blocking, too, for as long
 * as we run. */
static int adopt(struct place *place, int fd, int mode)
{
    struct stat status;
    char path[64];
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fstat(fd, &status) < 0)
        return complain_of(place, "using the descriptor");
    int access = flags & O_ACCMODE;
    if (access != O_RDWR && access != mode) {
        errno = EBADF;
        return complain_of(place, mode == O_RDONLY ? "reading" : "writing");
    }
    place->fd = fd;
    if (S_ISREG(status.st_mode) || S_ISBLK(status.st_mode))
        return 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int own = S_ISSOCK(status.st_mode) ? -1 : open(path, mode | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (own >= 0) {
        place->fd = own;
        place->opened = true;
    } else if (!(flags & O_NONBLOCK) && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0) {
        place->flags = flags;
    }
    return 0;
}

static int open_descriptor(struct place *place, const char *number, int mode)
{
    uint64_t fd;
    if (text_parse_unsigned(number, &fd) < 0 || fd > INT32_MAX) {
        errno = EBADF;
        return complain_of(place, "fd: takes the number of a descriptor");
    }
    return adopt(place, (int)fd, mode);
}

static bool same_file(int fd, const struct place *input)
{
    struct stat a, b;
    return input->fd >= 0 && fstat(fd, &a) == 0 && fstat(input->fd, &b) == 0 && S_ISREG(a.st_mode) &&
           a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

static int open_file(struct fanout *fanout, struct place *place, int mode)
{
    /* Truncated only once everything is open (truncate_file). */
    int flags = mode == O_RDONLY ? O_RDONLY : O_WRONLY | O_CREAT | (fanout->options.append ? O_APPEND : 0);
    place->fd = open(place->name, flags | O_CLOEXEC | O_NOCTTY, 0666);
    if (place->fd < 0)
        return complain_of(place, mode == O_RDONLY ? "opening it for reading" : "opening it for writing");
    place->opened = true;
    if (mode == O_RDONLY)
        return 0;
    if (same_file(place->fd, &fanout->input)) {
        errno = EINVAL;
        return complain_of(place, "it is the input as well");
    }
    return 0;
}

static int open_place(struct fanout *fanout, struct place *place, int mode)
{
    const char *name = place->name;
    int result;
    if (strcmp(name, "-") == 0)
        return adopt(place, mode == O_RDONLY ? STDIN_FILENO : STDOUT_FILENO, mode);
    if (strncmp(name, "fd:", 3) == 0)
        return open_descriptor(place, name + 3, mode);
    if (strncmp(name, "tcp:", 4) == 0)
        result = connect_tcp(place, name + 4);
    else if (strncmp(name, "unix:", 5) == 0)
        result = connect_unix(place, name + 5);
    else
        result = open_file(fanout, place, mode);
    place->opened = place->fd >= 0;
    struct stat status;
    if (result == 0 && fstat(place->fd, &status) == 0 && !S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode))
        fcntl(place->fd, F_SETFL, fcntl(place->fd, F_GETFL) | O_NONBLOCK);
    return result;
}

static int open_end(struct fanout *fanout, struct place *place, int mode)
{
    int result = open_place(fanout, place, mode);
    if (result < 0)
        return result;
    result = sluice_end_open(place->fd, 0, &place->end);
    if (result < 0) {
        errno = -result;
        return complain_of(place, "using it");
    }
    place->tcp = sluice_end_kind(place->end) == SLUICE_END_TCP;
    if (place->tcp && mode == O_WRONLY) {
        socklen_t size = sizeof place->linger;
        const struct linger at_once = {.l_onoff = 1, .l_linger = 0};
        getsockopt(place->fd, SOL_SOCKET, SO_LINGER, &place->linger, &size);
        setsockopt(place->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    }
    return 0;
}

/* The files that we opened lose what was in them only when the input and every sink that must be is open. */
static void truncate_file(const struct fanout *fanout, struct place *place)
{
    struct stat status;
    if (place->end == NULL || !place->opened || fanout->options.append || fstat(place->fd, &status) < 0 ||
        !S_ISREG(status.st_mode) || ftruncate(place->fd, 0) == 0)
        return;
    complain_of(place, "truncating it");
    sluice_end_close(place->end);
    place->end = NULL;
}

static int open_input(struct fanout *fanout)
{
    struct place *input = &fanout->input;
    int result = open_end(fanout, input, O_RDONLY);
    if (result < 0)
        return result;
    enum sluice_end_kind kind = sluice_end_kind(input->end);
    fanout->segment = (struct sluice_segment){
        .kind = SLUICE_SEGMENT_STREAM, .end = input->end, .length = SLUICE_UNTIL_END, .offset = 0};
    if (kind == SLUICE_END_PIPE)
        fcntl(input->fd, F_SETPIPE_SZ, INPUT_PIPE); /* the user may have no more pipe memory: then it stays */
    /* tee is for streams; a file read from its position on is one. */
    if ((kind == SLUICE_END_FILE || kind == SLUICE_END_BLOCK) && fanout->route != SLUICE_ROUTE_TEE) {
        off_t position = lseek(input->fd, 0, SEEK_CUR);
        fanout->segment.kind = SLUICE_SEGMENT_FILE;
        fanout->segment.offset = position > 0 ? (uint64_t)position : 0;
    }
    return 0;
}

static void close_input(struct fanout *fanout)
{
    sluice_end_close(fanout->input.end);
    if (fanout->input.flags >= 0)
        fcntl(fanout->input.fd, F_SETFL, fanout->input.flags);
}

/* ---- Closing ---------------------------------------------------------------------------------------------------- */

/* A connection is broken, not ended: now, or where that is forbidden when it is closed. */
static void reset_connection(const struct place *place)
{
    const struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
    (void)connect(place->fd, &nowhere, sizeof nowhere);
}

/* Everything was sent. Wait until the peer's kernel has it: a connection with bytes from the peer that nobody read
 * would be reset when it is closed, and what is under way would be lost. */
static int end_connection(const struct fanout *fanout, const struct place *place)
{
    char nothing[4096];
    int before = -1;
    uint64_t still = 0;
    bool closed = false;
    if (place->opened)
        shutdown(place->fd, SHUT_WR);
    for (;;) {
        int left = 0;
        if (ioctl(place->fd, SIOCOUTQ, &left) < 0 || left == 0)
            return 0;
        if (left == before && fanout->options.policy != SLUICE_FANOUT_BLOCK && still >= fanout->options.patience)
            return -ETIMEDOUT;
        still = left == before ? still + ACKNOWLEDGED_POLL : 0;
        before = left;
        struct pollfd readable = {.fd = place->fd, .events = closed ? 0 : POLLIN};
        poll(&readable, 1, ACKNOWLEDGED_POLL);
        int error = 0;
        socklen_t size = sizeof error;
        if (getsockopt(place->fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error != 0)
            return -error;
        if (readable.revents & POLLIN) {
            ssize_t got = recv(place->fd, nothing, sizeof nothing, MSG_DONTWAIT);
            closed = got == 0;
            if (got < 0 && errno != EAGAIN && errno != EINTR)
                return -errno;
        }
        if (closed || readable.revents & POLLHUP)
            poll(NULL, 0, 1); /* an end of stream is always readable */
    }
}

static void close_sink(struct fanout *fanout, unsigned i, bool complete)
{
    struct place *place = &fanout->sinks[i];
    sluice_end_close(place->end);
    if (place->end != NULL && place->tcp) {
        if (complete) {
            setsockopt(place->fd, SOL_SOCKET, SO_LINGER, &place->linger, sizeof place->linger);
            int result = end_connection(fanout, place);
            if (result < 0) {
                errno = -result;
                complain_of(place, "waiting for the peer to have everything");
                reset_connection(place);
            }
        } else {
            reset_connection(place);
        }
    }
    place->end = NULL;
    if (place->flags >= 0)
        fcntl(place->fd, F_SETFL, place->flags);
    if (place->opened && place->fd >= 0 && close(place->fd) < 0 && errno != EINTR && complete)
        complain_of(place, "closing it");
    place->fd = -1;
}

/* ---- Reporting -------------------------------------------------------------------------------------------------- */

enum outcome { COMPLETE, DROPPED, FAILED, NOT_OPENED };
static const char *const outcomes[] = {"complete", "dropped", "failed", "not opened"};

static enum outcome outcome_of(const struct fanout *fanout, unsigned i)
{
    const struct place *place = &fanout->sinks[i];
    if (place->end == NULL && place->doing != NULL && !place->closed)
        return NOT_OPENED;
    const unsigned policy = fanout->options.policy;
    bool counts = policy == SLUICE_FANOUT_BLOCK || (policy == SLUICE_FANOUT_FIRST && i == 0);
    if (fanout->errors[i].code != 0)
        return counts ? FAILED : DROPPED;
    return fanout->result < 0 || place->doing != NULL ? FAILED : COMPLETE;
}

static void describe_error(const struct fanout *fanout, unsigned i, char *buffer, size_t size)
{
    const struct place *place = &fanout->sinks[i];
    if (place->doing != NULL)
        snprintf(buffer, size, "%s: %s (%s)", place->doing, text_errno_meaning(place->error),
                 text_errno_name(place->error));
    else
        sluice_error_format(fanout->errors[i].code != 0 ? &fanout->errors[i] : &fanout->error, buffer, size);
}

static void print_json(const struct fanout *fanout, const enum outcome *each, FILE *stream)
{
    static char text[8192];
    fputs("{\"input\":", stream);
    json_write_string(stream, fanout->input.name);
    fprintf(stream, ",\"policy\":\"%s\",\"sinks\":[", policies[fanout->options.policy]);
    for (unsigned i = 0; i < fanout->sink_count; i++) {
        fprintf(stream, "%s{\"sink\":", i > 0 ? "," : "");
        json_write_string(stream, fanout->sinks[i].name);
        fprintf(stream, ",\"outcome\":\"%s\",", outcomes[each[i]]);
        if (each[i] != COMPLETE) {
            describe_error(fanout, i, text, sizeof text);
            fputs("\"error\":", stream);
            json_write_string(stream, text);
            fputc(',', stream);
        }
        sluice_receipt_format_json(&fanout->receipts[i], text, sizeof text);
        fprintf(stream, "\"receipt\":%s}", text);
    }
    fputs("]}\n", stream);
}

static int report(const struct fanout *fanout, const enum outcome *each)
{
    static char text[4096];
    int code = EXIT_CODE_DONE;
    for (unsigned i = 0; i < fanout->sink_count; i++) {
        const char *name = fanout->sinks[i].name;
        if (each[i] != COMPLETE)
            code = EXIT_CODE_FAILED;
        if (fanout->errors[i].code != 0) {
            sluice_error_format(&fanout->errors[i], text, sizeof text);
            complain("%s%s%s: %s", name, each[i] == DROPPED ? " was given up" : "",
                     fanout->sinks[i].tcp ? " (connection reset)" : "", text);
        }
        if (fanout->options.verbose && each[i] != NOT_OPENED) {
            sluice_receipt_format(&fanout->receipts[i], text, sizeof text);
            complain("%s: %s: %s", name, outcomes[each[i]], text);
        }
    }
    if (fanout->result < 0 && fanout->error.code != 0 && fanout->error.side != SLUICE_SIDE_SINK) {
        sluice_error_format(&fanout->error, text, sizeof text);
        complain("%s", text);
    }
    if (fanout->options.json) {
        FILE *stream = fanout->to_stdout ? stderr : stdout;
        print_json(fanout, each, stream);
        if (fflush(stream) != 0)
            code = EXIT_CODE_FAILED;
    }
    return code;
}

/* ---- Moving ----------------------------------------------------------------------------------------------------- */

/* A sink has everything: its reader is told now, others may take long yet. */
static void sink_ended(void *context, unsigned sink, const struct sluice_error *error,
                       const struct sluice_receipt *receipt)
{
    (void)receipt;
    struct fanout *fanout = context;
    unsigned i = fanout->which[sink];
    if (error->code != 0)
        return;
    if (!fanout->sinks[i].tcp) {
        close_sink(fanout, i, true);
        fanout->sinks[i].closed = true;
    } else if (fanout->sinks[i].opened) {
        shutdown(fanout->sinks[i].fd, SHUT_WR);
    }
}

static void move(struct fanout *fanout)
{
    struct sluice_end *ends[SLUICE_SINKS_MAX];
    struct sluice_receipt receipts[SLUICE_SINKS_MAX];
    struct sluice_error errors[SLUICE_SINKS_MAX];
    unsigned *which = fanout->which;
    unsigned count = 0;
    for (unsigned i = 0; i < fanout->sink_count; i++) {
        if (fanout->sinks[i].end == NULL)
            continue;
        which[count] = i;
        ends[count++] = fanout->sinks[i].end;
    }
    memset(receipts, 0, sizeof receipts);
    memset(errors, 0, sizeof errors);
    struct sluice_transfer_options options = {
        .size = sizeof options,
        .segments = &fanout->segment,
        .segment_count = 1,
        .sinks = ends,
        .sink_count = count,
        .sink_offset = SLUICE_APPEND, /* at the file position: others may have written before */
        .route = fanout->route,
        .policy = (enum sluice_fanout_policy)fanout->options.policy,
        .window = (size_t)fanout->options.window,
        .buffer = (size_t)fanout->options.buffer,
        .patience = (unsigned)fanout->options.patience,
        .sink_errors = errors,
        .sink_ended = sink_ended,
        .sink_context = fanout,
    };
    fanout->result = sluice_transfer_run(&options, receipts, &fanout->error);
    if (count == 1 && fanout->result < 0 && fanout->error.side == SLUICE_SIDE_SINK)
        errors[0] = fanout->error; /* one sink is no fan-out to the library */
    for (unsigned i = 0; i < count; i++) {
        fanout->receipts[which[i]] = receipts[i];
        fanout->errors[which[i]] = errors[i];
    }
    if (fanout->segment.kind == SLUICE_SEGMENT_FILE && !fanout->input.opened) {
        uint64_t most = 0; /* whoever shares the descriptor goes on where we ended */
        for (unsigned i = 0; i < count; i++)
            most = receipts[i].bytes > most ? receipts[i].bytes : most;
        lseek(fanout->input.fd, (off_t)(fanout->segment.offset + most), SEEK_SET);
    }
}

/* What a sink that is not open yet will be. */
static enum sluice_end_kind kind_of(const char *name)
{
    struct stat status;
    uint64_t fd;
    int result;
    if (strncmp(name, "tcp:", 4) == 0)
        return SLUICE_END_TCP;
    if (strncmp(name, "unix:", 5) == 0)
        return SLUICE_END_UNIX_STREAM;
    if (strcmp(name, "-") == 0)
        result = fstat(STDOUT_FILENO, &status);
    else if (strncmp(name, "fd:", 3) == 0)
        result = text_parse_unsigned(name + 3, &fd) == 0 && fd <= INT32_MAX ? fstat((int)fd, &status) : -1;
    else
        result = stat(name, &status);
    if (result < 0 || S_ISREG(status.st_mode)) /* one that is not there will be made */
        return SLUICE_END_FILE;
    if (S_ISSOCK(status.st_mode))
        return SLUICE_END_UNIX_STREAM;
    return S_ISFIFO(status.st_mode) ? SLUICE_END_PIPE : S_ISBLK(status.st_mode) ? SLUICE_END_BLOCK : SLUICE_END_OTHER;
}

/* Before any sink is opened, and a file truncated. */
static bool route_can_serve(const struct fanout *fanout)
{
    enum sluice_end_kind source = sluice_end_kind(fanout->input.end);
    if (fanout->segment.kind == SLUICE_SEGMENT_STREAM && (source == SLUICE_END_FILE || source == SLUICE_END_BLOCK))
        source = SLUICE_END_PIPE; /* read as one */
    for (unsigned i = 0; i < fanout->sink_count; i++) {
        struct failure failure;
        if (routes_check(fanout->route, source, 0, kind_of(fanout->sinks[i].name), fanout->sink_count, &failure) == 0)
            continue;
        fprintf(stderr, "sluice fanout: --route %s\n", failure.text);
        return false;
    }
    return true;
}

static bool enough_are_open(const struct fanout *fanout)
{
    unsigned opened = 0;
    for (unsigned i = 0; i < fanout->sink_count; i++)
        opened += fanout->sinks[i].end != NULL;
    if (fanout->options.policy == SLUICE_FANOUT_BLOCK)
        return opened == fanout->sink_count;
    return opened > 0 && (fanout->options.policy != SLUICE_FANOUT_FIRST || fanout->sinks[0].end != NULL);
}

static int run(struct fanout *fanout)
{
    if (open_input(fanout) < 0)
        return EXIT_CODE_FAILED;
    if (!route_can_serve(fanout)) {
        close_input(fanout);
        return EXIT_CODE_USAGE;
    }
    for (unsigned i = 0; i < fanout->sink_count; i++)
        open_end(fanout, &fanout->sinks[i], O_WRONLY);
    for (unsigned i = 0; i < fanout->sink_count && enough_are_open(fanout); i++)
        truncate_file(fanout, &fanout->sinks[i]);
    if (enough_are_open(fanout))
        move(fanout);
    else
        fanout->result = -EIO; /* said why already */
    enum outcome each[SLUICE_SINKS_MAX];
    for (unsigned i = 0; i < fanout->sink_count; i++) {
        bool complete = outcome_of(fanout, i) == COMPLETE;
        each[i] = outcome_of(fanout, i);
        if (!fanout->sinks[i].closed)
            close_sink(fanout, i, complete);
        if (complete && fanout->sinks[i].doing != NULL)
            each[i] = FAILED;
    }
    int code = report(fanout, each);
    close_input(fanout);
    return code;
}

int fanout_main(int argc, char **argv)
{
    static const struct command_spec command = {
        .program = "sluice fanout",
        .positionals = "SINK...",
        .positional_min = 1,
        .positional_max = SLUICE_SINKS_MAX,
        .summary =
            "Send standard input, or another source, to every SINK: a file, tcp:HOST:PORT, unix:PATH, fd:N, or - "
            "for standard output. As tee(1), but by reference where the kernel can: a stream's pages are read "
            "once and handed to all of them.",
        .options = option_table,
        .examples = examples,
        .footer = "Write ./tcp:name for a file of such a name.",
    };
    struct command_spec versioned = command;
    versioned.version = sluice_version();
    static struct fanout fanout;
    struct positionals positionals;
    int code = options_parse_or_exit_code(&versioned, argc, argv, &fanout.options, &positionals);
    if (code >= 0)
        return code;
    struct failure failure;
    int route = routes_parse(fanout.options.route, &failure);
    if (route < 0) {
        fprintf(stderr, "sluice fanout: --route %s\n", failure.text);
        options_print_hint(&versioned, stderr);
        return EXIT_CODE_USAGE;
    }
    signal(SIGPIPE, SIG_IGN); /* a reader that goes away is an error of that sink */
    fanout.route = (enum sluice_route)route;
    fanout.input = (struct place){.name = fanout.options.input, .fd = -1, .flags = -1};
    fanout.sink_count = positionals.count;
    for (unsigned i = 0; i < positionals.count; i++) {
        fanout.sinks[i] = (struct place){.name = positionals.items[i], .fd = -1, .flags = -1};
        fanout.to_stdout |= strcmp(positionals.items[i], "-") == 0 || strcmp(positionals.items[i], "fd:1") == 0;
    }
    return run(&fanout);
}
