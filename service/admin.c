/* SPDX-License-Identifier: MIT */
#include "service/admin.h"
#include "base/cleanup.h"
#include "base/list.h"
#include "base/text.h"
#include "live_assets.h"
#include "service/address.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#define CONNECTIONS_MAX 32
#define HEAD_MAX 4096
#define TIMEOUT_MS 5000
#define LINGER_MS 1000 /* for the client to close, once it has the response */
#define DRAIN_MS 1000  /* for connections that there are when the worker is to end */
#define PLAIN_TYPE "text/plain; charset=utf-8"

enum state { READING, SENDING, LINGERING };

struct connection {
    struct admin *admin;
    struct list all; /* in admin->connections */
    struct sluice_end *end;
    struct sluice_transfer *transfer; /* in SENDING */
    struct sluice_timer timer;
    enum state state;
    uint64_t sent; /* when the timer last expired */
    char *body;
    size_t body_length, head_length;
    char head[HEAD_MAX]; /* the request's, then the response's */
};

struct admin {
    struct admin_options options;
    struct sluice_listener *listener;
    struct list connections;
    unsigned count;
    bool paused, draining, local_only;
    struct sluice_timer drain_timer;
};

static void check_drained(struct admin *admin)
{
    if (!admin->draining || admin->count > 0)
        return;
    admin->draining = false; /* once */
    sluice_timer_stop(admin->options.loop, &admin->drain_timer);
    if (admin->options.drained != NULL)
        admin->options.drained(admin->options.context);
}

static void close_connection(struct connection *connection)
{
    struct admin *admin = connection->admin;
    struct sluice_loop *loop = admin->options.loop;
    if (connection->transfer != NULL) {
        sluice_loop_transfer_cancel(loop, connection->transfer); /* on_sent closes it */
        return;
    }
    sluice_timer_stop(loop, &connection->timer);
    sluice_loop_forget(loop, connection->end);
    sluice_end_close(connection->end);
    list_remove(&connection->all);
    admin->count--;
    if (admin->paused && admin->listener != NULL) {
        admin->paused = false;
        sluice_listener_resume(admin->listener);
    }
    free(connection->body);
    free(connection);
    check_drained(admin);
}

static void on_timeout(void *context)
{
    struct connection *connection = context;
    struct admin *admin = connection->admin;
    if (connection->state == SENDING) {
        uint64_t sent = sluice_transfer_receipt(connection->transfer, 0)->sent;
        if (sent > connection->sent) {
            connection->sent = sent;
            sluice_timer_start(admin->options.loop, &connection->timer, admin->options.timeout, on_timeout, connection);
            return;
        }
    }
    close_connection(connection);
}

/* The response is in the kernel. To close now would answer what the client may still send with a reset, which can
 * overtake the response. */
static void linger(struct connection *connection)
{
    struct sluice_loop *loop = connection->admin->options.loop;
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
    struct admin *admin = connection->admin;
    int length = snprintf(connection->head, sizeof connection->head,
                          "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n%s"
                          "X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
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
    sluice_loop_receive_pause(admin->options.loop, connection->end);
    sluice_timer_start(admin->options.loop, &connection->timer, admin->options.timeout, on_timeout, connection);
    int result =
        sluice_loop_transfer(admin->options.loop, &transfer, on_sent, connection, &connection->transfer, NULL, NULL);
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

struct page {
    const char *path, *type, *fields;
    void (*write)(const struct admin_options *options, FILE *out);
};

static void write_metrics(const struct admin_options *options, FILE *out)
{
    options->write_metrics(options->context, out);
}

static void write_status(const struct admin_options *options, FILE *out)
{
    options->write_status(options->context, out);
}

static void write_live(const struct admin_options *options, FILE *out)
{
    (void)options;
    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
          "<link rel=\"icon\" href=\"data:,\">\n<title>sluice</title>\n<style>",
          out);
    fwrite(live_style, 1, sizeof live_style, out);
    fputs("</style>\n</head>\n", out);
    fwrite(live_body, 1, sizeof live_body, out);
    fputs("<script>", out);
    fwrite(live_script, 1, sizeof live_script, out);
    fputs("</script>\n</html>\n", out);
}

static const struct page pages[] = {
    {"/metrics", "text/plain; version=0.0.4; charset=utf-8", "", write_metrics},
    {"/status.json", "application/json", "", write_status},
    /* data: for the icon, which keeps browsers from asking for one. */
    {"/", "text/html; charset=utf-8",
     "Content-Security-Policy: default-src 'none'; style-src '" LIVE_STYLE_SHA256 "'; script-src '" LIVE_SCRIPT_SHA256
     "'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n",
     write_live},
};

static void respond_page(struct connection *connection, const struct page *page, bool with_body)
{
    FILE *out = open_memstream(&connection->body, &connection->body_length);
    if (out != NULL) {
        page->write(&connection->admin->options, out);
        bool failed = ferror(out) != 0;
        if (fclose(out) == 0 && !failed) {
            respond(connection, "200 OK", page->type, page->fields, with_body);
            return;
        }
        free(connection->body);
    }
    connection->body = NULL;
    connection->body_length = 0;
    refuse(connection, "503 Service Unavailable", with_body);
}

/* NULL: there is none. Without a status there are the metrics only. */
static const struct page *find_page(const struct admin *admin, const char *path, size_t length)
{
    for (size_t i = 0; i < (admin->options.write_status != NULL ? sizeof pages / sizeof *pages : 1); i++)
        if (length == strlen(pages[i].path) && memcmp(path, pages[i].path, length) == 0)
            return &pages[i];
    return NULL;
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

/* A browser on this host can be made to ask here by a name that belongs to somebody else and means 127.0.0.1 for the
 * moment, and would then show that page of somebody else's what it got. Such a name is in the request's Host field;
 * addresses and localhost belong to nobody else. */
static bool is_foreign(const char *host, size_t length)
{
    static const char local[] = "localhost";
    const char *colon = memchr(host, ':', length);
    if (length == 0 || *host == '[')
        return false;
    if (colon != NULL)
        length = (size_t)(colon - host);
    size_t digits = 0;
    while (digits < length && (host[digits] == '.' || (host[digits] >= '0' && host[digits] <= '9')))
        digits++;
    if (digits == length)
        return false;
    size_t tail = sizeof local - 1;
    return length < tail || strncasecmp(host + length - tail, local, tail) != 0 ||
           (length > tail && host[length - tail - 1] != '.');
}

/* head: whole. */
static bool names_foreign_host(const char *head, size_t length)
{
    const char *end = head + length;
    for (const char *line = head, *next; line < end; line = next) {
        next = memchr(line, '\n', (size_t)(end - line));
        next = next != NULL ? next + 1 : end;
        if (next - line < 5 || strncasecmp(line, "host:", 5) != 0)
            continue;
        const char *host = line + 5, *host_end = next;
        while (host < host_end && (*host == ' ' || *host == '\t'))
            host++;
        while (host_end > host && strchr(" \t\r\n", host_end[-1]) != NULL)
            host_end--;
        if (is_foreign(host, (size_t)(host_end - host)))
            return true;
    }
    return false;
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
    if (length == 0) { /* as in "http://host" */
        path = "/";
        length = 1;
    }
    const struct page *page = find_page(connection->admin, path, length);
    if (!head && strcmp(method, "GET") != 0)
        respond_line(connection, "405 Method Not Allowed", "Allow: GET, HEAD\r\n", "405 Method Not Allowed", true);
    else if (page != NULL)
        respond_page(connection, page, !head);
    else if (length == 1 && *path == '/')
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
    if (connection->admin->local_only && names_foreign_host(connection->head, connection->head_length)) {
        respond_line(connection, "421 Misdirected Request", "",
                     "This listener answers to addresses and to localhost; to other names only with --admin-anywhere.",
                     true);
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
    struct admin *admin = context;
    (void)address, (void)address_length;
    if (fd < 0)
        return; /* out of descriptors, or the socket was shut down: there will be another time, or none */
    struct connection *connection = calloc(1, sizeof *connection);
    if (connection == NULL || sluice_end_open(fd, SLUICE_END_OWN_FD, &connection->end) < 0) {
        free(connection);
        close_fd(fd);
        return;
    }
    connection->admin = admin;
    list_init(&connection->all);
    list_add_last(&admin->connections, &connection->all);
    admin->count++;
    sluice_timer_start(admin->options.loop, &connection->timer, admin->options.timeout, on_timeout, connection);
    if (sluice_loop_receive(admin->options.loop, connection->end, 0, on_received, connection) < 0)
        close_connection(connection);
    if (admin->count >= CONNECTIONS_MAX && !admin->paused && admin->listener != NULL) {
        admin->paused = true;
        sluice_listener_pause(admin->listener);
    }
}

int admin_check(const struct address *address, struct failure *failure)
{
    char text[ADDRESS_TEXT_MAX];
    if (address_is_private(address))
        return 0;
    address_format(&address->any, address->length, text, sizeof text);
    return failure_set(failure, -EPERM,
                       "not listening at %s, as whoever reaches that address could read what is done here. Give a "
                       "loopback or private address, such as 127.0.0.1:9180, or add admin-anywhere",
                       text);
}

int admin_listen(const char *where, bool anywhere, int *ret_fd, struct failure *failure)
{
    struct address address;
    int r = address_parse(where, &address, failure);
    if (r == 0 && !anywhere)
        r = admin_check(&address, failure);
    if (r < 0)
        return r;
    return address_listen(&address, NULL, ret_fd, failure);
}

int admin_start(const struct admin_options *options, struct admin **ret_admin)
{
    struct admin *admin = calloc(1, sizeof *admin);
    if (admin == NULL)
        return -ENOMEM;
    admin->options = *options;
    if (admin->options.timeout == 0)
        admin->options.timeout = TIMEOUT_MS;
    list_init(&admin->connections);
    struct address address;
    admin->local_only =
        !options->any_host && address_of_socket(options->listener, &address) == 0 && address_is_loopback(&address);
    int result = sluice_loop_listen(options->loop, options->listener, on_accepted, admin, &admin->listener);
    if (result < 0) {
        free(admin);
        return result;
    }
    *ret_admin = admin;
    return 0;
}

static void close_all(struct admin *admin)
{
    LIST_FOR_EACH(link, &admin->connections)
    {
        close_connection(LIST_OBJECT(link, struct connection, all));
    }
}

static void on_drain_timeout(void *context)
{
    struct admin *admin = context;
    admin->draining = false; /* not drained within the loop: that may free it */
    close_all(admin);
    admin->draining = true;
    check_drained(admin);
}

static void stop_accepting(struct admin *admin)
{
    struct sluice_listener *listener = admin->listener;
    admin->listener = NULL;
    sluice_listener_free(listener); /* may still accept what the loop took ahead */
}

void admin_drain(struct admin *admin)
{
    if (admin->listener == NULL)
        return;
    stop_accepting(admin);
    admin->draining = true;
    sluice_timer_start(admin->options.loop, &admin->drain_timer, DRAIN_MS, on_drain_timeout, admin);
    check_drained(admin);
}

void admin_stop(struct admin *admin)
{
    if (admin == NULL)
        return;
    admin->draining = false; /* no drained from here */
    sluice_timer_stop(admin->options.loop, &admin->drain_timer);
    stop_accepting(admin);
    close_all(admin);
    free(admin);
}
