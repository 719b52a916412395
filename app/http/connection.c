/* SPDX-License-Identifier: MIT
 *
 * A request is answered from where it was parsed; nothing of it is copied, unless the answer has to wait for a helper
 * (or the access log for the end of a long response): then its head stays at the start of the stash and is parsed once
 * more, which costs less than keeping it in any other form.
 */
#include "connection.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "respond.h"
#include "service/address.h"
#include "service/log.h"
#include "service/proxy_header.h"

#include <errno.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define LINGER_TIME 5000      /* ms for the client to read the last response and close */
#define DRAIN_GRACE 1000      /* ms for the first request of a connection that was accepted before draining */
#define INTRODUCTION_MAX 4096 /* of a PROXY header, with its extensions */

static const struct http_limits limits = {.line = 8 << 10, .head = 16 << 10};

static void take_requests(struct connection *connection, const char *data, size_t length, bool stashed);
static void on_timeout(void *context);
static void take_ciphertext(struct connection *connection, const char *data, size_t length);

/* ---- Stash ------------------------------------------------------------------------------------------------------- */

static void stash_drop(struct connection *connection)
{
    free(connection->stash);
    connection->stash = NULL;
    connection->stash_start = connection->stash_length = connection->stash_room = connection->held = 0;
}

static int stash_append(struct connection *connection, const char *data, size_t length)
{
    size_t needed = connection->stash_length + length;
    if (connection->stash == NULL || connection->stash_start + needed > connection->stash_room) {
        char *larger = malloc(needed);
        if (larger == NULL)
            return -ENOMEM;
        if (connection->stash != NULL)
            memcpy(larger, connection->stash + connection->stash_start, connection->stash_length);
        free(connection->stash);
        connection->stash = larger;
        connection->stash_start = 0;
        connection->stash_room = (uint32_t)needed;
    }
    memcpy(connection->stash + connection->stash_start + connection->stash_length, data, length);
    connection->stash_length += (uint32_t)length;
    return 0;
}

static void stash_consume(struct connection *connection, size_t length)
{
    connection->stash_start += (uint32_t)length;
    connection->stash_length -= (uint32_t)length;
    if (connection->stash_length == 0)
        stash_drop(connection);
}

/* Its bytes; NULL when it has none. */
static const char *stash_data(const struct connection *connection)
{
    return connection->stash_length > 0 ? connection->stash + connection->stash_start : NULL;
}

bool connection_held_request(struct connection *connection, struct http_request *ret_request)
{
    return connection->held > 0 &&
           http_request_parse(stash_data(connection), connection->held, &limits, ret_request) > 0;
}

/* ---- The end of a connection ------------------------------------------------------------------------------------- */

static void print_receipt(const struct connection *connection)
{
    char peer[ADDRESS_TEXT_MAX], text[512], line[768];
    address_format(&connection->peer.any, sizeof connection->peer, peer, sizeof peer);
    sluice_receipt_format(connection->receipt, text, sizeof text);
    int length = snprintf(line, sizeof line, "receipt %s: %llu request%s: %s", peer,
                          (unsigned long long)connection->requests, connection->requests == 1 ? "" : "s", text);
    log_line(connection->server->options->receipt_log, line, (size_t)length);
}

/* The client has said by TLS that nothing more will come. Without TLS the loop tells. */
static bool has_ended(const struct connection *connection)
{
    return connection->secure != NULL && secure_has_ended(connection);
}

void connection_close(struct connection *connection)
{
    struct http_server *server = connection->server;
    struct exchange *exchange = connection->exchange;
    connection->state = CLOSED;
    allowance_end(connection);
    sluice_timer_stop(server->loop, &connection->timer);
    if (exchange != NULL && exchange->transfer != NULL) {
        sluice_loop_transfer_cancel(server->loop, exchange->transfer); /* calls on_sent */
    } else if (exchange != NULL) {
        if (exchange->lookup != NULL)
            files_cancel(exchange->lookup);
        if (exchange->listing != NULL)
            respond_abandon(exchange->listing);
        exchange_put(server, exchange);
    }
    if (connection->receipt != NULL) {
        print_receipt(connection);
        free(connection->receipt);
    }
    if (connection->secure != NULL)
        secure_close(connection);
    sluice_loop_forget(server->loop, connection->end);
    sluice_end_close(connection->end);
    list_remove(&connection->all);
    stash_drop(connection);
    free(connection);
    server->count--;
    server->totals->open--;
    http_server_lost(server);
}

/* Drop what the kernel still has to send as well: the client does not take it. */
static void abort_connection(struct connection *connection)
{
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    setsockopt(sluice_end_fd(connection->end), SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    connection_close(connection);
}

void connection_close_idle(struct connection *connection)
{
    if (connection->secure != NULL)
        secure_end(connection);
    connection_close(connection);
}

void connection_linger(struct connection *connection)
{
    stash_drop(connection);
    connection->state = LINGERING;
    shutdown(sluice_end_fd(connection->end), SHUT_WR);
    sluice_timer_start(connection->server->loop, &connection->timer, LINGER_TIME, on_timeout, connection);
    sluice_loop_receive_resume(connection->server->loop, connection->end);
}

/* ---- Bodies of requests ------------------------------------------------------------------------------------------ */

static void on_continued(void *context, struct sluice_transfer *transfer, int result)
{
    struct exchange *exchange = context;
    struct connection *connection = exchange->connection;
    sluice_receipt_add(&connection->server->totals->receipt, sluice_transfer_receipt(transfer, 0));
    exchange->transfer = NULL;
    if (connection->state == CLOSED)
        exchange_put(connection->server, exchange);
    else if (result < 0)
        connection_close(connection);
    else
        sluice_loop_receive_resume(connection->server->loop, connection->end);
}

/* The client waits for a word before it sends the body. */
static enum progress invite_body(struct connection *connection, struct exchange *exchange)
{
    static const char text[] = "HTTP/1.1 100 Continue\r\n\r\n";
    struct http_server *server = connection->server;
    struct sluice_segment segment = {.kind = SLUICE_SEGMENT_MEMORY, .data = text, .length = sizeof text - 1};
    struct sluice_transfer_options options = server->transfer;
    const struct sluice_receipt *receipt;
    options.segments = &segment;
    options.segment_count = 1;
    options.sinks = &connection->end;
    options.route = SLUICE_ROUTE_AUTO;
    options.transform = connection->secure != NULL ? secure_transform(connection, false) : NULL;
    int r = sluice_loop_transfer(server->loop, &options, on_continued, exchange, &exchange->transfer, &receipt, NULL);
    if (r == 0) {
        sluice_loop_receive_pause(server->loop, connection->end);
        return PENDING;
    }
    exchange->transfer = NULL;
    sluice_receipt_add(&server->totals->receipt, receipt);
    if (r > 0)
        return PENDING;
    connection_close(connection);
    return ENDED;
}

/* A request with a body, which is read and thrown away if it is small, or with an expectation that is not ours to meet.
 * behind: what has come behind the head. *taken, the bytes of this request, grows by those of them that are its body.
 * NULL: it cannot be responded to now; *ret_progress. */
static struct exchange *begin_unusual(struct connection *connection, const struct http_request *request,
                                      const char *behind, size_t length, size_t *taken, enum progress *ret_progress)
{
    struct http_server *server = connection->server;
    struct exchange *exchange = connection->exchange;
    connection->exchange = NULL;
    if (exchange != NULL)
        return exchange; /* its body was skipped */
    exchange = exchange_begin(connection, request);
    *ret_progress = ENDED;
    if (exchange == NULL)
        return NULL;
    int r = -417;
    if (!request->expects_other) {
        size_t used = 0;
        r = request->method == HTTP_OTHER ? -405 : http_body_begin(&exchange->body, request);
        if (r == HTTP_BODY_MORE)
            r = http_body_take(&exchange->body, behind, length, &used);
        *taken += used;
    }
    if (r == HTTP_BODY_DONE)
        return exchange;
    if (r == HTTP_BODY_MORE) {
        connection->exchange = exchange;
        connection->state = SKIPPING;
        exchange_note_begin(exchange);
        sluice_timer_start(server->loop, &connection->timer, server->options->header_timeout, on_timeout, connection);
        *ret_progress = request->expects_continue && length == 0 ? invite_body(connection, exchange) : PENDING;
        if (*ret_progress == PENDING && has_ended(connection)) {
            connection_close(connection);
            *ret_progress = ENDED;
        }
        return NULL;
    }
    if (request->has_body) /* it is not read: where the next request begins is not known */
        exchange->close = exchange->linger = true;
    *ret_progress = r == -405 ? respond_other(connection, exchange, request)
                              : exchange_send_status(connection, exchange, request, (unsigned)-r, NULL);
    return NULL;
}

/* Of a body that is not what it has to be, or does not come. */
static void refuse_body(struct connection *connection, unsigned status)
{
    struct exchange *exchange = connection->exchange;
    struct http_request request;
    (void)connection_held_request(connection, &request); /* it was parsed before */
    connection->exchange = NULL;
    connection->state = READING;
    exchange->close = exchange->linger = true;
    /* PENDING: on_sent concludes. Never ANSWERED, as close is set. */
    (void)exchange_send_status(connection, exchange, &request, status, NULL);
}

static void skip_body(struct connection *connection, const char *data, size_t length)
{
    size_t used;
    int r = http_body_take(&connection->exchange->body, data, length, &used);
    if (r == HTTP_BODY_MORE && has_ended(connection))
        connection_close(connection);
    if (r == HTTP_BODY_MORE)
        return;
    if (r < 0) {
        http_server_tick(connection->server);
        refuse_body(connection, (unsigned)-r);
    } else if (used < length && stash_append(connection, data + used, length - used) < 0) {
        connection_close(connection);
    } else { /* the head again, which comes to begin_unusual, and what came behind the body */
        connection->state = READING;
        connection->held = 0;
        take_requests(connection, stash_data(connection), connection->stash_length, true);
    }
}

/* ---- Requests one after the other -------------------------------------------------------------------------------- */

/* What cannot be understood ends the connection: where the next request begins is not known. */
static void refuse_with(struct connection *connection, const struct response_text *response,
                        const struct http_request *request)
{
    struct http_request nothing = {.minor = 1, .method = HTTP_GET};
    if (request != NULL && request->method_text.data != NULL) {
        nothing.method_text = request->method_text;
        nothing.target = request->target;
        nothing.method = request->method_text.length == 4 && memcmp(request->method_text.data, "HEAD", 4) == 0
                             ? HTTP_HEAD
                             : HTTP_GET;
    }
    struct exchange *exchange = exchange_get(connection);
    if (exchange == NULL) {
        connection_close(connection);
        return;
    }
    exchange->close = exchange->linger = true;
    connection->heading = false;
    /* PENDING: on_sent concludes. Never ANSWERED, as close is set. */
    (void)exchange_send_text(connection, exchange, &nothing, response);
}

static void refuse(struct connection *connection, unsigned status, const struct http_request *request)
{
    refuse_with(connection, &(struct response_text){.status = status}, request);
}

static void refuse_without_tls(struct connection *connection)
{
    static const char body[] =
        "400 Bad Request\n\nThis port speaks HTTPS. Ask again with https:// instead of http://.\n";
    http_server_tick(connection->server);
    refuse_with(connection,
                &(struct response_text){
                    .status = 400, .type = "text/plain; charset=utf-8", .body = body, .body_length = sizeof body - 1},
                NULL);
}

/* In READING, with all that came looked at: set the time that the client has. May free the connection. */
static void await(struct connection *connection)
{
    struct http_server *server = connection->server;
    if (has_ended(connection)) {
        connection_close_idle(connection);
    } else if (connection->stash_length == 0) {
        connection->heading = false;
        sluice_timer_start(server->loop, &connection->timer, server->options->idle_timeout, on_timeout, connection);
    } else if (!connection->heading) {
        connection->heading = true; /* further bytes do not push the deadline back */
        sluice_timer_start(server->loop, &connection->timer, server->options->header_timeout, on_timeout, connection);
    }
}

/* Answer the requests in data, one after the other, for as long as responses are sent at once. stashed: data is the
 * stash. May free the connection. */
static void take_requests(struct connection *connection, const char *data, size_t length, bool stashed)
{
    struct http_server *server = connection->server;
    size_t used = 0;
    http_server_tick(server);
    while (used < length) {
        struct http_request request;
        int head = http_request_parse(data + used, length - used, &limits, &request);
        if (head == HTTP_INCOMPLETE)
            break;
        if (head < 0) {
            server->totals->refused++;
            refuse(connection, (unsigned)-head, &request);
            return;
        }
        connection->heading = false;
        size_t taken = (size_t)head;
        const char *behind = data + used + taken;
        enum progress progress = ENDED;
        struct exchange *exchange =
            request.has_body || request.expects_other
                ? begin_unusual(connection, &request, behind, length - used - taken, &taken, &progress)
                : exchange_begin(connection, &request);
        if (exchange != NULL)
            progress = respond(connection, exchange, &request);
        if (progress == ENDED)
            return;
        if (progress == PENDING) {
            bool keep = connection->state != SENDING || server->options->access_log != NULL;
            connection->held = keep ? (uint32_t)taken : 0;
            if (connection->state == SKIPPING) { /* what came behind the head was body, and is done with */
                connection->stash_length -= stashed ? (uint32_t)(length - used - taken) : 0;
                length = used + taken;
            }
            used += keep ? 0 : taken;
            break;
        }
        used += taken;
    }
    if (stashed) {
        stash_consume(connection, used);
    } else if (used < length && stash_append(connection, data + used, length - used) < 0) {
        connection_close(connection);
        return;
    }
    if (connection->state == READING)
        await(connection);
}

void connection_go_on(struct connection *connection)
{
    size_t held = connection->held;
    connection->held = 0;
    stash_consume(connection, held);
    sluice_loop_receive_resume(connection->server->loop, connection->end); /* calls back later */
    take_requests(connection, stash_data(connection), connection->stash_length, true);
}

/* ---- The beginning of a connection ------------------------------------------------------------------------------- */

/* Its client's address is known. May free the connection; returns whether it may ask. */
static bool admit(struct connection *connection)
{
    enum allowance_verdict verdict = allowance_begin(connection);
    if (verdict == ALLOWANCE_GRANTED)
        return true;
    connection->server->totals->over_limit++;
    if (verdict == ALLOWANCE_ABUSED || connection->secure != NULL) { /* a handshake for saying no would cost too much */
        abort_connection(connection);
    } else {
        http_server_tick(connection->server);
        refuse(connection, 429, NULL);
    }
    return false;
}

static void refuse_introduction(struct connection *connection, const char *why)
{
    struct http_server *server = connection->server;
    server->totals->unintroduced++;
    if (!server->introduction_refused) {
        char peer[ADDRESS_TEXT_MAX];
        server->introduction_refused = true;
        address_format(&connection->peer.any, sizeof connection->peer, peer, sizeof peer);
        log_say(server->options->error_log,
                "sluice serve: --accept-proxy: %s from %s; the connection was closed (said once; SIGUSR1 tells how "
                "many there were)",
                why, peer);
    }
    connection_close(connection);
}

/* The PROXY header, as far as it has come, is in the stash. */
static void take_introduction(struct connection *connection)
{
    struct proxy_header header;
    const char *why = "a PROXY header of more than 4096 bytes";
    ssize_t length =
        proxy_header_parse(stash_data(connection), connection->stash_length, INTRODUCTION_MAX, &header, &why);
    if (length == -EAGAIN)
        return; /* the time for the first head is running */
    if (length < 0) {
        refuse_introduction(connection, why);
        return;
    }
    connection->unintroduced = false;
    sa_family_t family = header.source.ss_family;
    if (!header.local && (family == AF_INET || family == AF_INET6))
        memcpy(&connection->peer, &header.source, sizeof connection->peer);
    stash_consume(connection, (size_t)length);
    if (!admit(connection) || connection->stash_length == 0)
        return;
    if (connection->secure == NULL) {
        take_requests(connection, stash_data(connection), connection->stash_length, true);
        return;
    }
    /* What came behind it has not been decrypted: no stash, then. */
    char *received = TAKE_POINTER(connection->stash);
    uint32_t start = connection->stash_start, left = connection->stash_length;
    stash_drop(connection);
    take_ciphertext(connection, received + start, left);
    free(received);
}

/* TLS failed, or the client has ended it with nothing left to be answered. What has not been read, close(2) would
 * answer by a reset, which could overtake the alert. */
static void end_secure(struct connection *connection)
{
    secure_end(connection);
    if (connection->state == READING)
        connection_linger(connection);
    else
        connection_close(connection);
}

/* What the client said, which TLS has been taken from. */
static void take_bytes(struct connection *connection, const char *data, size_t length)
{
    if (connection->state == SKIPPING) {
        skip_body(connection, data, length);
        return;
    }
    if (connection->stash_length == 0 && !connection->unintroduced) {
        take_requests(connection, data, length, false);
        return;
    }
    if (stash_append(connection, data, length) < 0) {
        connection_close(connection);
        return;
    }
    if (connection->unintroduced) {
        take_introduction(connection);
        return;
    }
    /* A head ends with a line: drop by drop, it need not be parsed again for every byte. */
    if (connection->stash_length > limits.line || memchr(data, '\n', length) != NULL)
        take_requests(connection, stash_data(connection), connection->stash_length, true);
}

static void take_ciphertext(struct connection *connection, const char *data, size_t length)
{
    int r = secure_receive(connection, &data, &length);
    if (r > 0)
        take_bytes(connection, data, length);
    else if (r == -EPROTONOSUPPORT)
        refuse_without_tls(connection);
    else if (r < 0)
        end_secure(connection);
}

static void on_received(void *context, const char *data, ssize_t length)
{
    struct connection *connection = context;
    if (length <= 0) {
        /* Also when the client closes in the middle of a head: nobody is left to be told. */
        if (connection->secure != NULL)
            secure_gave_up(connection, "the client closed in the middle of the handshake");
        if (length == 0 && connection_is_idle(connection)) /* it may still read */
            connection_close_idle(connection);
        else
            connection_close(connection);
        return;
    }
    if (connection->state != READING && connection->state != SKIPPING)
        return; /* LINGERING */
    if (connection->secure != NULL && !connection->unintroduced)
        take_ciphertext(connection, data, (size_t)length);
    else
        take_bytes(connection, data, (size_t)length);
}

/* ---- Time -------------------------------------------------------------------------------------------------------- */

/* Has the client taken anything since the last look? What the kernel has accepted but not delivered does not count: the
 * socket's buffer may hold minutes of a slow reader's time. */
static bool progressed(struct connection *connection)
{
    struct exchange *exchange = connection->exchange;
    int queued = 0;
    uint64_t delivered = sluice_transfer_receipt(exchange->transfer, 0)->sent;
    if (ioctl(sluice_end_fd(connection->end), SIOCOUTQ, &queued) == 0)
        delivered -= min_u64((uint64_t)queued, delivered);
    bool progress = delivered > exchange->delivered;
    exchange->delivered = delivered;
    return progress;
}

static void on_timeout(void *context)
{
    struct connection *connection = context;
    struct http_server *server = connection->server;
    switch ((enum connection_state)connection->state) {
    case READING:
        if (connection->heading) {
            server->totals->timeouts++;
            http_server_tick(server);
            refuse(connection, 408, NULL);
        } else {
            if (connection->secure != NULL)
                secure_gave_up(connection, "the handshake took longer than --header-timeout");
            connection_close_idle(connection);
        }
        break;
    case SKIPPING:
        server->totals->timeouts++;
        http_server_tick(server);
        if (connection->exchange->transfer != NULL) /* it does not even take the invitation */
            abort_connection(connection);
        else
            refuse_body(connection, 408);
        break;
    case SENDING:
        if (progressed(connection)) {
            sluice_timer_start(server->loop, &connection->timer, server->options->send_timeout, on_timeout, connection);
        } else {
            server->totals->timeouts++;
            abort_connection(connection);
        }
        break;
    case LINGERING:
        connection_close(connection);
        break;
    case LOOKING_UP: /* ours to be done */
    case CLOSED:
        break;
    }
}

void connection_set_time(struct connection *connection, unsigned ms)
{
    sluice_timer_start(connection->server->loop, &connection->timer, ms, on_timeout, connection);
}

void connection_opened(struct connection *connection)
{
    struct http_server *server = connection->server;
    unsigned ms = server->draining ? DRAIN_GRACE : server->options->header_timeout;
    sluice_timer_start(server->loop, &connection->timer, ms, on_timeout, connection);
}

void connection_open(struct http_server *server, int fd, const struct sockaddr *address, unsigned address_length,
                     struct tls_context *tls)
{
    struct connection *connection = calloc(1, sizeof *connection);
    if (connection == NULL || sluice_end_open(fd, SLUICE_END_OWN_FD, &connection->end) < 0) {
        free(connection);
        close_fd(fd);
        server->totals->accept_failures++;
        return;
    }
    connection->server = server;
    if (tls != NULL && secure_open(connection, tls) < 0) {
        sluice_end_close(connection->end);
        free(connection);
        server->totals->accept_failures++;
        return;
    }
    connection->state = READING;
    memcpy(&connection->peer, address,
           address_length < sizeof connection->peer ? address_length : sizeof connection->peer);
    if (server->options->receipt_log != NULL)
        connection->receipt = calloc(1, sizeof *connection->receipt);
    list_init(&connection->all);
    list_add_last(&server->connections, &connection->all);
    server->count++;
    server->totals->connections++;
    server->totals->open++;
    connection->unintroduced = server->options->accept_proxy;
    /* The first head has its time from here; with TLS, the handshake. */
    connection_opened(connection);
    if (sluice_loop_receive(server->loop, connection->end, 0, on_received, connection) < 0)
        connection_close(connection);
    else if (server->allowances.wanted && !connection->unintroduced)
        (void)admit(connection);
}

bool connection_is_idle(const struct connection *connection)
{
    return connection->state == READING && connection->stash_length == 0;
}

void connection_drain(struct connection *connection)
{
    struct http_server *server = connection->server;
    if (!connection_is_idle(connection))
        return;
    /* Its first request is probably on its way. */
    if (connection->requests == 0)
        sluice_timer_start(server->loop, &connection->timer, DRAIN_GRACE, on_timeout, connection);
    else
        connection_close_idle(connection);
}
