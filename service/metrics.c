/* SPDX-License-Identifier: MIT */
#include "service/metrics.h"
#include "base/cleanup.h"
#include "base/list.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define CONNECTIONS_MAX 32
#define HEAD_MAX 4096
#define TIMEOUT_MS 5000
#define LINGER_MS 1000 /* for the client to close, once it has the response */
#define METRICS_TYPE "text/plain; version=0.0.4; charset=utf-8"
#define PLAIN_TYPE "text/plain; charset=utf-8"

enum state { READING, SENDING, LINGERING };

struct connection {
    struct metrics *metrics;
    struct list all; /* in metrics->connections */
    struct sluice_end *end;
    struct sluice_transfer *transfer; /* in SENDING */
    struct sluice_timer timer;
    enum state state;
    uint64_t sent; /* when the timer last expired */
    char *body;
    size_t body_length, head_length;
    char head[HEAD_MAX]; /* the request's, then the response's */
};

struct metrics {
    struct metrics_options options;
    struct sluice_listener *listener;
    struct list connections;
    unsigned count;
    bool paused;
};

static void close_connection(struct connection *connection)
{
    struct metrics *metrics = connection->metrics;
    struct sluice_loop *loop = metrics->options.loop;
    if (connection->transfer != NULL) {
        sluice_loop_transfer_cancel(loop, connection->transfer); /* on_sent closes it */
        return;
    }
    sluice_timer_stop(loop, &connection->timer);
    sluice_loop_forget(loop, connection->end);
    sluice_end_close(connection->end);
    list_remove(&connection->all);
    metrics->count--;
    if (metrics->paused && metrics->listener != NULL) {
        metrics->paused = false;
        sluice_listener_resume(metrics->listener);
    }
    free(connection->body);
    free(connection);
}

static void on_timeout(void *context)
{
    struct connection *connection = context;
    struct metrics *metrics = connection->metrics;
    if (connection->state == SENDING) {
        uint64_t sent = sluice_transfer_receipt(connection->transfer, 0)->sent;
        if (sent > connection->sent) {
            connection->sent = sent;
            sluice_timer_start(metrics->options.loop, &connection->timer, metrics->options.timeout, on_timeout,
                               connection);
            return;
        }
    }
    close_connection(connection);
}

/* The response is in the kernel. To close now would answer what the client may still send with a reset, which can
 * overtake the response. */
static void linger(struct connection *connection)
{
    struct sluice_loop *loop = connection->metrics->options.loop;
    connection->state = LINGERING;
    shutdown(sluice_end_fd(connection->end), SHUT_WR);
    sluice_timer_start(loop, &connection->timer, LINGER_MS, on_timeout, connection);
    sluice_loop_receive_resume(loop, connection->end);
}

static void on_sent(void *context, struct sluice_transfer *transfer, int result)
{
    struct connection *connection = context;
    (void)transfer;
    connection->transfer = NULL;
    if (result < 0)
        close_connection(connection);
    else
        linger(connection);
}

/* The head, and body unless it is for HEAD. */
static void respond(struct connection *connection, const char *status, const char *type, const char *fields,
                    bool with_body)
{
    struct metrics *metrics = connection->metrics;
    int length = snprintf(connection->head, sizeof connection->head,
                          "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n%sConnection: close\r\n\r\n",
                          status, type, connection->body_length, fields);
    const struct sluice_segment segments[] = {
        {.kind = SLUICE_SEGMENT_MEMORY, .data = connection->head, .length = (uint64_t)length},
        {.kind = SLUICE_SEGMENT_MEMORY, .data = connection->body, .length = connection->body_length},
    };
    struct sluice_transfer_options transfer = {
        .size = sizeof transfer,
        .segments = segments,
        .segment_count = with_body && connection->body_length > 0 ? 2 : 1,
        .sinks = &connection->end,
        .sink_count = 1,
    };
    connection->state = SENDING;
    connection->sent = 0;
    sluice_loop_receive_pause(metrics->options.loop, connection->end);
    sluice_timer_start(metrics->options.loop, &connection->timer, metrics->options.timeout, on_timeout, connection);
    int result =
        sluice_loop_transfer(metrics->options.loop, &transfer, on_sent, connection, &connection->transfer, NULL, NULL);
    if (result == 0)
        return;
    connection->transfer = NULL;
    if (result < 0)
        close_connection(connection);
    else
        linger(connection);
}

/* A page of one line. */
static void respond_line(struct connection *connection, const char *status, const char *fields, const char *line,
                         bool with_body)
{
    int length = asprintf(&connection->body, "%s\n", line);
    if (length < 0)
        connection->body = NULL;
    else
        connection->body_length = (size_t)length;
    respond(connection, status, PLAIN_TYPE, fields, with_body);
}

static void refuse(struct connection *connection, const char *status, bool with_body)
{
    respond_line(connection, status, "", status, with_body);
}

static void respond_metrics(struct connection *connection, bool with_body)
{
    struct metrics *metrics = connection->metrics;
    FILE *out = open_memstream(&connection->body, &connection->body_length);
    if (out != NULL) {
        metrics->options.write(metrics->options.context, out);
        bool failed = ferror(out) != 0;
        if (fclose(out) == 0 && !failed) {
            respond(connection, "200 OK", METRICS_TYPE, "", with_body);
            return;
        }
        free(connection->body);
    }
    connection->body = NULL;
    connection->body_length = 0;
    refuse(connection, "503 Service Unavailable", with_body);
}

/* The path within a request target, without query; its length in *ret_length. */
static const char *find_path(const char *target, size_t *ret_length)
{
    static const char scheme[] = "http://";
    if (strncmp(target, scheme, sizeof scheme - 1) == 0) { /* as to a proxy: RFC 9112 wants it understood */
        target += sizeof scheme - 1;
        target += strcspn(target, "/?");
    }
    *ret_length = strcspn(target, "?");
    return target;
}

/* line: the request line, ended by a NUL. */
static void answer(struct connection *connection, char *line)
{
    char *rest = line;
    const char *method = strsep(&rest, " "), *target = rest != NULL ? strsep(&rest, " ") : NULL;
    if (target == NULL || rest == NULL || *method == '\0' || *target == '\0' || strncmp(rest, "HTTP/", 5) != 0) {
        refuse(connection, "400 Bad Request", true);
        return;
    }
    if (strncmp(rest, "HTTP/1.", 7) != 0 || rest[7] < '0' || rest[7] > '9' || rest[8] != '\0') {
        refuse(connection, "505 HTTP Version Not Supported", true);
        return;
    }
    bool head = strcmp(method, "HEAD") == 0;
    size_t length;
    const char *path = find_path(target, &length);
    if (!head && strcmp(method, "GET") != 0)
        respond_line(connection, "405 Method Not Allowed", "Allow: GET, HEAD\r\n", "405 Method Not Allowed", true);
    else if (length == 8 && memcmp(path, "/metrics", 8) == 0)
        respond_metrics(connection, !head);
    else if (length == 0 || (length == 1 && *path == '/'))
        respond_line(connection, "200 OK", "", "The metrics are at /metrics.", !head);
    else
        refuse(connection, "404 Not Found", !head);
}

/* The length of a head with its empty line; 0: it is not complete. */
static size_t find_end(const char *head, size_t length)
{
    for (const char *line = head, *end; (end = memchr(line, '\n', length - (size_t)(line - head))) != NULL;
         line = end + 1)
        if (end == line || (end == line + 1 && *line == '\r'))
            return (size_t)(end + 1 - head);
    return 0;
}

static void on_received(void *context, const char *data, ssize_t length)
{
    struct connection *connection = context;
    if (length <= 0) { /* nobody is left who would read a response, or it is in the client's hands */
        close_connection(connection);
        return;
    }
    if (connection->state != READING)
        return;
    size_t room = sizeof connection->head - 1 - connection->head_length;
    size_t taken = (size_t)length < room ? (size_t)length : room;
    memcpy(connection->head + connection->head_length, data, taken);
    connection->head_length += taken;
    if (find_end(connection->head, connection->head_length) == 0) {
        if (taken == room)
            refuse(connection, "431 Request Header Fields Too Large", true);
        return;
    }
    char *line_end = memchr(connection->head, '\n', connection->head_length);
    if (line_end > connection->head && line_end[-1] == '\r')
        line_end--;
    *line_end = '\0';
    answer(connection, connection->head);
}

static void on_accepted(void *context, int fd, const struct sockaddr *address, unsigned address_length)
{
    struct metrics *metrics = context;
    (void)address, (void)address_length;
    if (fd < 0)
        return; /* out of descriptors, or the socket was shut down: there will be another time, or none */
    struct connection *connection = calloc(1, sizeof *connection);
    if (connection == NULL || sluice_end_open(fd, SLUICE_END_OWN_FD, &connection->end) < 0) {
        free(connection);
        close_fd(fd);
        return;
    }
    connection->metrics = metrics;
    list_init(&connection->all);
    list_add_last(&metrics->connections, &connection->all);
    metrics->count++;
    sluice_timer_start(metrics->options.loop, &connection->timer, metrics->options.timeout, on_timeout, connection);
    if (sluice_loop_receive(metrics->options.loop, connection->end, 0, on_received, connection) < 0)
        close_connection(connection);
    if (metrics->count >= CONNECTIONS_MAX && !metrics->paused && metrics->listener != NULL) {
        metrics->paused = true;
        sluice_listener_pause(metrics->listener);
    }
}

int metrics_start(const struct metrics_options *options, struct metrics **ret_metrics)
{
    struct metrics *metrics = calloc(1, sizeof *metrics);
    if (metrics == NULL)
        return -ENOMEM;
    metrics->options = *options;
    if (metrics->options.timeout == 0)
        metrics->options.timeout = TIMEOUT_MS;
    list_init(&metrics->connections);
    int result = sluice_loop_listen(options->loop, options->listener, on_accepted, metrics, &metrics->listener);
    if (result < 0) {
        free(metrics);
        return result;
    }
    *ret_metrics = metrics;
    return 0;
}

void metrics_stop(struct metrics *metrics)
{
    if (metrics == NULL)
        return;
    struct sluice_listener *listener = metrics->listener;
    metrics->listener = NULL;
    sluice_listener_free(listener); /* may still accept what the loop took ahead */
    LIST_FOR_EACH(link, &metrics->connections)
    {
        close_connection(LIST_OBJECT(link, struct connection, all));
    }
    free(metrics);
}
