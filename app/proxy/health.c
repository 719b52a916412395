/* SPDX-License-Identifier: MIT
 *
 * A check of one server, on a timer of its own: socket, connect, [PROXY header,] [request, answer], and then out:
 *
 *   RESTING      until the timer begins the next check
 *   CONNECTING   until the connection is made
 *   ANSWERING    by HTTP: until the first line of the answer has come
 *   LEAVING      the verdict is known; what the server still sends is read, until it closes, too
 *
 * In the last three states the timer is the time that the check has in all. In the first two of these its end is a
 * verdict.
 *
 * LEAVING is for the peace of servers' logs. Closing at once sends a reset where bytes are unread (the rest of a page;
 * the greeting of a mail server or of MySQL), and a reset on purpose, as other proxies send to save themselves a socket
 * in TIME_WAIT, is a line in PostgreSQL's log for every check. A check every 2 s leaves 30 such sockets, of 28,000
 * ports there are towards each server.
 *
 * What this host is short of (descriptors, memory) is no verdict on a server: under a load that uses up all descriptors
 * it would take every server away. The server keeps its state, and the operator is told.
 */
#include "proxy/health.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "service/proxy_header.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define REQUEST_MAX 4096 /* with the PROXY header; the buffer of a new socket holds as much, so that one send does */
#define STATUS_LINE_MAX 1024 /* of the answer */
#define LEAVING_MAX 65536    /* bytes of the answer that are read for the sake of closing well */
#define REASON_MAX 256

enum stage { RESTING, CONNECTING, ANSWERING, LEAVING };

struct check {
    struct health *health;
    unsigned index;
    enum stage stage;
    struct sluice_timer timer;
    int fd; /* -1: none, or the end's */
    struct sluice_connect *connect;
    struct sluice_end *end;
    uint64_t began;        /* ms */
    uint64_t went_down;    /* ms; 0: not seen from here */
    unsigned streak;       /* verdicts in a row against what the server is held to be */
    bool spread;           /* it has had its first pause */
    bool unable;           /* the last check could not be made, and this was said */
    unsigned seen, status; /* of the first line of the answer: bytes, code so far */
    bool seen_cr;          /* its last byte was CR */
    size_t left_unread;    /* when LEAVING: bytes still to be taken */
    char *request;         /* NULL: a connection is enough */
    size_t request_length;
};

struct health {
    struct health_options options;
    unsigned count;
    struct check checks[];
};

static void on_timer(void *context);

/* ---- Verdicts -------------------------------------------------------------------------------------------------- */

static const struct proxy_server *server_of(const struct check *check)
{
    return &check->health->options.service->servers[check->index];
}

static struct server_state *state_of(const struct check *check)
{
    return &check->health->options.servers[check->index];
}

static void say(const struct check *check, const char *what)
{
    const struct health_options *options = &check->health->options;
    char line[REASON_MAX + 512];
    snprintf(line, sizeof line, "server %.200s of %.100s %s", server_of(check)->name, options->service->name, what);
    if (options->say != NULL)
        options->say(options->context, line);
}

static void change(struct check *check, bool up, const char *reason)
{
    const struct health_options *options = &check->health->options;
    uint64_t now = sluice_loop_now(options->loop), one = 1;
    char what[REASON_MAX + 64], duration[TEXT_SIZE_MAX];
    if (up && check->went_down != 0)
        snprintf(what, sizeof what, "is up again after %s",
                 text_format_duration(now - check->went_down, duration, sizeof duration));
    else if (up)
        snprintf(what, sizeof what, "is up again");
    else if (atomic_load(&state_of(check)->known) != 0)
        snprintf(what, sizeof what, "is down: %s, %u check%s in a row", reason, check->streak,
                 check->streak == 1 ? "" : "s");
    else
        snprintf(what, sizeof what, "is down: %s, at the first check", reason);
    check->went_down = up ? 0 : now;
    check->streak = 0;
    struct server_state *state = state_of(check);
    atomic_store(&state->down, !up);
    atomic_fetch_add(&state->changes, 1);
    ssize_t r = write(options->freed_fd, &one, sizeof one); /* a full counter would have woken them long ago */
    (void)r;
    say(check, what);
}

/* reason: NULL: the server is well. */
static void decide(struct check *check, const char *reason)
{
    const struct proxy_service *service = check->health->options.service;
    struct server_state *state = state_of(check);
    bool up = atomic_load(&state->down) == 0, well = reason == NULL;
    check->unable = false;
    atomic_fetch_add(&state->checks, 1);
    if (!well)
        atomic_fetch_add(&state->checks_failed, 1);
    check->streak = well == up ? 0 : check->streak + 1;
    if (well != up && (atomic_load(&state->known) == 0 || check->streak >= (well ? service->rise : service->fall)))
        change(check, well, reason);
    atomic_store(&state->known, 1);
}

/* ---- The end of a check ---------------------------------------------------------------------------------------- */

static void break_off(struct check *check)
{
    sluice_timer_stop(check->health->options.loop, &check->timer);
    sluice_connect_cancel(check->connect);
    check->connect = NULL;
    if (check->end != NULL) {
        sluice_loop_forget(check->health->options.loop, check->end);
        sluice_end_close(check->end);
        check->end = NULL;
    }
    check->fd = close_fd(check->fd);
    check->stage = RESTING;
}

static void rest(struct check *check)
{
    const struct health *health = check->health;
    const struct proxy_service *service = health->options.service;
    uint64_t pause = service->check_interval, passed = sluice_loop_now(health->options.loop) - check->began;
    break_off(check);
    /* All were asked at once when it began; from then on each has a time of its own. */
    if (!check->spread)
        pause = pause * (check->index + 1) / health->count;
    check->spread = true;
    pause = pause > passed ? pause - passed : 0;
    sluice_timer_start(health->options.loop, &check->timer, (unsigned)pause, on_timer, check);
}

static void fail(struct check *check, const char *reason)
{
    decide(check, reason);
    rest(check);
}

static void fail_by_errno(struct check *check, const char *step, int code)
{
    char reason[REASON_MAX];
    snprintf(reason, sizeof reason, "%s: %s (%s)", step, text_errno_meaning(code), text_errno_name(code));
    fail(check, reason);
}

/* Of this host, not of the server. */
static bool is_shortage(int code)
{
    return code == -EMFILE || code == -ENFILE || code == -ENOMEM || code == -ENOBUFS || code == -ENOSPC;
}

static void give_up(struct check *check, int code)
{
    char what[REASON_MAX];
    snprintf(what, sizeof what, "cannot be checked: %s (%s); it stays %s%s", text_errno_meaning(code),
             text_errno_name(code), atomic_load(&state_of(check)->down) != 0 ? "down" : "up",
             code == -EMFILE ? ". Raise the limit of open files" : "");
    if (!check->unable)
        say(check, what);
    check->unable = true;
    rest(check);
}

/* ---- A check --------------------------------------------------------------------------------------------------- */

/* The first line of an answer, as RFC 9112 (4) has it: HTTP/1.x, one space, three digits, a space and some text, CRLF
 * or LF; some servers leave the text out together with its space. Returns 1: it has ended; 0: so far right; -EPROTO. */
static int take_status_byte(struct check *check, unsigned char byte)
{
    static const char start[] = "HTTP/1.";
    unsigned at = check->seen++;
    bool digit = byte >= '0' && byte <= '9', cr = check->seen_cr;
    if (at < sizeof start - 1)
        return byte == (unsigned char)start[at] ? 0 : -EPROTO;
    if (at == 7)
        return digit ? 0 : -EPROTO;
    if (at == 8)
        return byte == ' ' ? 0 : -EPROTO;
    if (at < 12) {
        check->status = check->status * 10 + (unsigned)(byte - '0');
        return digit ? 0 : -EPROTO;
    }
    if (byte == '\n')
        return 1;
    check->seen_cr = byte == '\r';
    if (cr || (at == 12 && byte != ' ' && byte != '\r') || at >= STATUS_LINE_MAX)
        return -EPROTO;
    return byte == '\r' || byte == '\t' || (byte >= ' ' && byte != 127) ? 0 : -EPROTO;
}

static void judge(struct check *check)
{
    char reason[REASON_MAX];
    snprintf(reason, sizeof reason, "GET %.100s answered %u", check->health->options.service->check_path,
             check->status);
    decide(check, check->status >= 200 && check->status <= 399 ? NULL : reason);
}

static void on_received(void *context, const char *data, ssize_t length)
{
    struct check *check = context;
    if (check->stage == ANSWERING && length == 0)
        return fail(check, "closed the connection without an answer");
    if (check->stage == ANSWERING && length < 0)
        return fail_by_errno(check, "waiting for an answer", (int)length);
    for (ssize_t i = 0; i < length && check->stage == ANSWERING; i++) {
        int r = take_status_byte(check, (unsigned char)data[i]);
        if (r < 0)
            return fail(check, "what answered is no HTTP/1 server");
        if (r > 0) {
            check->stage = LEAVING;
            judge(check);
        }
    }
    if (check->stage != LEAVING)
        return;
    if (length <= 0 || (size_t)length >= check->left_unread)
        return rest(check);
    check->left_unread -= (size_t)length;
}

static void connected(struct check *check)
{
    const struct health_options *options = &check->health->options;
    bool asks = options->service->check == PROXY_CHECK_HTTP;
    if (check->request != NULL) {
        ssize_t sent = send(check->fd, check->request, check->request_length, MSG_NOSIGNAL);
        if (sent != (ssize_t)check->request_length)
            return fail_by_errno(check, "sending", sent < 0 ? -errno : -EMSGSIZE);
    }
    int r = sluice_end_open(check->fd, SLUICE_END_OWN_FD, &check->end);
    if (r < 0)
        return give_up(check, r);
    check->fd = -1;
    check->stage = asks ? ANSWERING : LEAVING;
    check->seen = check->status = 0;
    check->seen_cr = false;
    check->left_unread = LEAVING_MAX;
    /* Not by HTTP: there it looks like a client that has lost interest. */
    if (!asks)
        shutdown(sluice_end_fd(check->end), SHUT_WR);
    r = sluice_loop_receive(options->loop, check->end, 0, on_received, check);
    if (r < 0)
        return give_up(check, r);
    if (!asks)
        decide(check, NULL);
}

static void on_connected(void *context, int result)
{
    struct check *check = context;
    check->connect = NULL;
    if (result == 0)
        connected(check);
    else if (is_shortage(result))
        give_up(check, result);
    else
        fail_by_errno(check, "connecting", result);
}

static void begin(struct check *check)
{
    const struct health_options *options = &check->health->options;
    const struct address *address = &server_of(check)->address;
    check->began = sluice_loop_now(options->loop);
    check->fd = socket(address->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (check->fd < 0)
        return on_connected(check, -errno);
    check->stage = CONNECTING;
    sluice_timer_start(options->loop, &check->timer, options->service->check_timeout, on_timer, check);
    int r = sluice_loop_connect(options->loop, check->fd, &address->any, address->length, on_connected, check,
                                &check->connect);
    if (r != 0)
        on_connected(check, r < 0 ? r : 0);
}

static void on_timer(void *context)
{
    struct check *check = context;
    const struct proxy_service *service = check->health->options.service;
    char reason[REASON_MAX], time[TEXT_SIZE_MAX];
    text_format_duration(service->check_timeout, time, sizeof time);
    switch (check->stage) {
    case RESTING:
        begin(check);
        break;
    case CONNECTING:
        snprintf(reason, sizeof reason, "no connection within %s", time);
        fail(check, reason);
        break;
    case ANSWERING:
        snprintf(reason, sizeof reason, "GET %.100s was not answered within %s", service->check_path, time);
        fail(check, reason);
        break;
    case LEAVING:
        rest(check);
        break;
    }
}

/* ---- Life ------------------------------------------------------------------------------------------------------ */

/* Nothing that would end the line, or the word, that it stands in. */
static bool is_one_word(const char *text)
{
    for (const char *c = text; *c != '\0'; c++)
        if ((unsigned char)*c <= ' ' || *c == 127)
            return false;
    return *text != '\0';
}

static int make_request(const struct proxy_service *service, const struct proxy_server *server, char **ret_request,
                        size_t *ret_length)
{
    char request[REQUEST_MAX];
    /* No addresses: a connection of the proxy's own (LOCAL, UNKNOWN). */
    size_t length = proxy_header_write(service->send_proxy, NULL, 0, NULL, 0, request);
    if (service->check == PROXY_CHECK_HTTP) {
        const char *host = service->check_host;
        if (host == NULL)
            host = server->address.any.sa_family == AF_UNIX ? "localhost" : server->name;
        if (!is_one_word(service->check_path) || !is_one_word(host))
            return -EINVAL;
        length += (size_t)snprintf(request + length, sizeof request - length,
                                   "GET %s HTTP/1.0\r\nHost: %s\r\nUser-Agent: sluice-proxy\r\n"
                                   "Connection: close\r\n\r\n",
                                   service->check_path, host);
        if (length >= sizeof request)
            return -EINVAL;
    }
    *ret_length = length;
    if (length == 0)
        return 0;
    *ret_request = malloc(length);
    if (*ret_request == NULL)
        return -ENOMEM;
    memcpy(*ret_request, request, length);
    return 0;
}

int health_start(const struct health_options *options, struct health **ret_health)
{
    unsigned count = options->service->check == PROXY_CHECK_NONE ? 0 : options->service->server_count;
    struct health *health = calloc(1, sizeof *health + count * sizeof health->checks[0]);
    if (health == NULL)
        return -ENOMEM;
    health->options = *options;
    for (; health->count < count; health->count++) {
        struct check *check = &health->checks[health->count];
        *check = (struct check){.health = health, .index = health->count, .fd = -1};
        int r = make_request(options->service, server_of(check), &check->request, &check->request_length);
        if (r < 0) {
            health_stop(health);
            return r;
        }
    }
    for (unsigned i = 0; i < count; i++)
        begin(&health->checks[i]);
    *ret_health = health;
    return 0;
}

void health_stop(struct health *health)
{
    if (health == NULL)
        return;
    for (unsigned i = 0; i < health->count; i++) {
        break_off(&health->checks[i]);
        free(health->checks[i].request);
    }
    free(health);
}
