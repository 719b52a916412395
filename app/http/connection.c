/* SPDX-License-Identifier: MIT
 *
 * A request is answered from where it was parsed; nothing of it is copied, unless the answer has to wait for a helper
 * (or the access log for the end of a long response): then its head stays at the start of the stash and is parsed once
 * more, which costs less than keeping it in any other form.
 *
 * Functions that return enum progress may have closed and freed the connection: nothing may touch it after ENDED.
 */
#include "connection.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "body.h"
#include "conditions.h"
#include "forwarded.h"
#include "listing.h"
#include "multipart.h"
#include "path.h"
#include "service/address.h"
#include "service/log.h"
#include "service/prefix.h"
#include "service/proxy_header.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define LINGER_TIME 5000      /* ms for the client to read the last response and close */
#define DRAIN_GRACE 1000      /* ms for the first request of a connection that was accepted before draining */
#define INTRODUCTION_MAX 4096 /* of a PROXY header, with its extensions */
#define SPARE_EXCHANGES_MAX 64
#define TEXT_BYTES_MAX (64u << 20) /* of listings that clients are slow to read, all together */

#define ALLOW "Allow: GET, HEAD, OPTIONS\r\n"

static const struct http_limits limits = {.line = 8 << 10, .head = 16 << 10};

enum progress {
    ANSWERED, /* sent; the next request may be looked at */
    PENDING,  /* a callback will go on */
    ENDED,    /* lingering, or closed and freed */
};

/* What a response needs until it is sent. Not held by idle connections; reused. */
struct exchange {
    struct connection *connection;
    const struct http_site *site; /* NULL: it is not known, or nobody's */
    struct exchange *next_spare;
    struct file *file;                /* whose bytes are sent; or NULL */
    char *text;                       /* a response of our own, head and body, or between the parts; or NULL */
    struct files_lookup *lookup;      /* LOOKING_UP a file */
    struct listing_job *listing;      /* LOOKING_UP a directory */
    struct sluice_transfer *transfer; /* SENDING */
    uint64_t began;                   /* turn_us of the turn that read the request, once that turn is over; or 0 */
    uint64_t delivered;               /* what the client had acknowledged when the timer was last looked at */
    uint64_t sent_before;             /* by TLS on this connection */
    size_t text_length, head_length;
    unsigned status;
    unsigned tried;        /* LOOKING_UP a sibling of file: codings of those that the client accepts */
    bool close, linger;    /* after the response */
    struct http_body body; /* SKIPPING; not cleared */
    char head[];           /* http_server.head_room */
};

static void take_requests(struct connection *connection, const char *data, size_t length, bool stashed);
static void on_timeout(void *context);
static void take_ciphertext(struct connection *connection, const char *data, size_t length);

/* ---- Exchanges ------------------------------------------------------------------------------------------------- */

static struct exchange *exchange_get(struct connection *connection)
{
    struct http_server *server = connection->server;
    struct exchange *exchange = server->spare;
    if (exchange != NULL) {
        server->spare = exchange->next_spare;
        server->spare_count--;
    } else {
        exchange = malloc(sizeof *exchange + server->head_room);
        if (exchange == NULL)
            return NULL;
    }
    memset(exchange, 0, offsetof(struct exchange, body));
    exchange->connection = connection;
    return exchange;
}

static inline void drop_text(struct http_server *server, struct exchange *exchange)
{
    free(exchange->text);
    exchange->text = NULL;
    server->text_bytes -= exchange->text_length;
    exchange->text_length = 0;
}

static void exchange_put(struct http_server *server, struct exchange *exchange)
{
    files_release(server->files, exchange->file);
    drop_text(server, exchange);
    if (server->spare_count == SPARE_EXCHANGES_MAX) {
        free(exchange);
        return;
    }
    exchange->next_spare = server->spare;
    server->spare = exchange;
    server->spare_count++;
}

void exchange_free_spare(struct http_server *server)
{
    while (server->spare != NULL) {
        struct exchange *exchange = server->spare;
        server->spare = exchange->next_spare;
        free(exchange);
    }
    server->spare_count = 0;
}

/* Its turn goes by without it being answered. */
static void note_begin(struct exchange *exchange)
{
    if (exchange->began == 0)
        exchange->began = exchange->connection->server->turn_us;
}

/* ---- Stash ------------------------------------------------------------------------------------------------------ */

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

static void listing_abandon(struct listing_job *job);

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
            listing_abandon(exchange->listing);
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

static void linger(struct connection *connection)
{
    stash_drop(connection);
    connection->state = LINGERING;
    shutdown(sluice_end_fd(connection->end), SHUT_WR);
    sluice_timer_start(connection->server->loop, &connection->timer, LINGER_TIME, on_timeout, connection);
    sluice_loop_receive_resume(connection->server->loop, connection->end);
}

/* ---- Responses ------------------------------------------------------------------------------------------------- */

/* Read once per turn of the loop. */
static void tick(struct http_server *server)
{
    uint64_t turn = sluice_loop_turn(server->loop);
    if (turn == server->turn)
        return;
    struct timespec now;
    server->turn = turn;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    response_clock_set(&server->clock, now.tv_sec);
    if (server->options->timed)
        server->turn_us = http_server_now();
}

/* The request line as it came. Without a request, what could be read of it is all there is. */
static struct log_text request_line(const struct http_request *request)
{
    if (request == NULL || request->method_text.data == NULL || request->target.data == NULL)
        return (struct log_text){0};
    const char *start = request->method_text.data, *end = request->target.data + request->target.length;
    bool whole = request->path.data != NULL || request->method >= HTTP_OPTIONS;
    return (struct log_text){start, (size_t)(end - start) + (whole ? sizeof " HTTP/1.1" - 1 : 0)};
}

/* Who the client is, for the log: the first address from the end of X-Forwarded-For that is not a trusted proxy's, if
 * the peer is one. */
static size_t client_text(const struct connection *connection, const struct http_request *request,
                          char buffer[ADDRESS_TEXT_MAX])
{
    const struct http_server_options *options = connection->server->options;
    struct sockaddr_in6 client = {.sin6_family = AF_INET6};
    if (options->trusted_count == 0 || request == NULL || request->forwarded_for.data == NULL ||
        !address_as_ipv6(&connection->peer.any, &client.sin6_addr))
        return address_format_host(&connection->peer.any, sizeof connection->peer, buffer, ADDRESS_TEXT_MAX);
    struct slice list = request->forwarded_for;
    while (address_in_prefixes(&client.sin6_addr, options->trusted, options->trusted_count) &&
           http_forwarded_take_last(&list, &client.sin6_addr) > 0)
        ;
    return address_format_host((struct sockaddr *)&client, sizeof client, buffer, ADDRESS_TEXT_MAX);
}

static void log_request(struct connection *connection, unsigned status, uint64_t bytes,
                        const struct http_request *request, struct log_text line)
{
    struct http_server *server = connection->server;
    char client[ADDRESS_TEXT_MAX];
    size_t length = client_text(connection, request, client);
    if (server->log_second != server->clock.second) {
        server->log_second = server->clock.second;
        log_time_text(log_get_format(server->options->access_log), server->log_second, server->log_time);
    }
    struct log_access access = {
        .client = {client, length},
        .time = server->log_time,
        .request = line,
        .status = status,
        .bytes = bytes,
        .tls = connection->secure != NULL ? secure_version(connection) : NULL,
    };
    if (request != NULL) {
        access.host = (struct log_text){request->host.data, request->host.length};
        access.referer = (struct log_text){request->referer.data, request->referer.length};
        access.user_agent = (struct log_text){request->user_agent.data, request->user_agent.length};
    }
    log_access(server->options->access_log, &access);
}

static void count_response(struct connection *connection, const struct exchange *exchange,
                           const struct sluice_receipt *receipt)
{
    struct http_totals *totals = connection->server->totals;
    totals->responses[receipt->bytes > 0 ? exchange->status / 100 : 0]++;
    sluice_receipt_add(&totals->receipt, receipt);
    if (receipt->fallback_count > 0)
        fallbacks_enter(&totals->fallbacks, receipt);
    if (exchange->began != 0) { /* else http_server_turn counts it */
        durations_enter(&totals->durations, http_server_now() - exchange->began, 1);
        connection->server->responses_timed++;
    }
    if (connection->receipt != NULL)
        sluice_receipt_add(connection->receipt, receipt);
}

/* After a response: log it and see what becomes of the connection. request may be NULL: it was not kept. */
static enum progress conclude(struct connection *connection, struct exchange *exchange, int result,
                              const struct sluice_receipt *receipt, const struct http_request *request)
{
    struct http_server *server = connection->server;
    count_response(connection, exchange, receipt);
    if (server->options->access_log != NULL) {
        uint64_t sent =
            connection->secure != NULL ? secure_delivered(connection, receipt, exchange->sent_before) : receipt->bytes;
        uint64_t body = sent > exchange->head_length ? sent - exchange->head_length : 0;
        log_request(connection, exchange->status, body, request, request_line(request));
    }
    bool close = exchange->close || server->draining, lingering = exchange->linger;
    exchange_put(server, exchange);
    connection->exchange = NULL;
    connection->state = READING;
    if (result == -ENODATA) {
        /* Less than announced: only the end of the connection tells the client. */
        server->totals->truncated++;
        linger(connection);
        return ENDED;
    }
    if (result < 0) {
        connection_close(connection);
        return ENDED;
    }
    if (!close)
        return ANSWERED;
    if (connection->secure != NULL)
        secure_end(connection);
    int unread = 0;
    if (lingering || (ioctl(sluice_end_fd(connection->end), SIOCINQ, &unread) == 0 && unread > 0))
        linger(connection);
    else
        connection_close(connection);
    return ENDED;
}

/* The request whose head was kept, or false. */
static bool held_request(struct connection *connection, struct http_request *ret_request)
{
    return connection->held > 0 &&
           http_request_parse(stash_data(connection), connection->held, &limits, ret_request) > 0;
}

/* Back to READING with what has come meanwhile. */
static void go_on(struct connection *connection)
{
    size_t held = connection->held;
    connection->held = 0;
    stash_consume(connection, held);
    sluice_loop_receive_resume(connection->server->loop, connection->end); /* calls back later */
    take_requests(connection, stash_data(connection), connection->stash_length, true);
}

static void on_sent(void *context, struct sluice_transfer *transfer, int result)
{
    struct exchange *exchange = context;
    struct connection *connection = exchange->connection;
    const struct sluice_receipt *receipt = sluice_transfer_receipt(transfer, 0);
    if (connection->state == CLOSED) {
        count_response(connection, exchange, receipt);
        exchange_put(connection->server, exchange);
        return;
    }
    struct http_request request;
    tick(connection->server);
    bool kept = held_request(connection, &request);
    if (conclude(connection, exchange, result, receipt, kept ? &request : NULL) == ANSWERED)
        go_on(connection);
}

static enum progress send_text(struct connection *connection, struct exchange *exchange,
                               const struct http_request *request, const struct response_text *response);

/* The library refused to carry the file before anything was sent: only a forced route can do that to a file that is
 * open already, or the disk. */
static enum progress answer_refusal(struct connection *connection, struct exchange *exchange,
                                    const struct http_request *request, const struct sluice_error *error)
{
    struct http_server *server = connection->server;
    if (!server->route_refused) {
        char text[512], line[600];
        server->route_refused = true;
        sluice_error_format(error, text, sizeof text);
        int length = snprintf(line, sizeof line, "sluice serve: %s. Answering 500 (said once).", text);
        log_line(server->options->error_log, line, (size_t)length);
    }
    files_release(server->files, exchange->file);
    exchange->file = NULL;
    drop_text(server, exchange); /* of several parts */
    return send_text(connection, exchange, request, &(struct response_text){.status = 500});
}

/* Send what the segments say. */
static enum progress send_segments(struct connection *connection, struct exchange *exchange,
                                   const struct http_request *request, const struct sluice_segment *segments,
                                   size_t count)
{
    struct http_server *server = connection->server;
    struct sluice_transfer_options *options = &server->transfer;
    const struct sluice_receipt *receipt;
    struct sluice_error error;
    options->segments = segments;
    options->segment_count = count;
    /* A forced route is for bodies; what we have in memory is sent as always. */
    options->route = count > 1 ? server->options->route : SLUICE_ROUTE_AUTO;
    options->sinks = &connection->end;
    if (connection->allowance != NULL)
        allowance_respond(connection, exchange->site);
    options->transform = NULL;
    if (connection->secure != NULL) {
        options->transform = secure_transform(connection, exchange->close || server->draining);
        exchange->sent_before = secure_sent(connection);
        if (options->transform != NULL) /* what it is given has to be read */
            options->route = SLUICE_ROUTE_AUTO;
    }
    int r = sluice_loop_transfer(server->loop, options, on_sent, exchange, &exchange->transfer, &receipt, &error);
    if (r == 0) {
        connection->exchange = exchange;
        connection->state = SENDING;
        note_begin(exchange);
        sluice_loop_receive_pause(server->loop, connection->end);
        sluice_timer_start(server->loop, &connection->timer, server->options->send_timeout, on_timeout, connection);
        return PENDING;
    }
    exchange->transfer = NULL;
    if (r < 0 && r != -ENODATA && error.delivered == 0 && exchange->file != NULL && r != -EPIPE && r != -ECONNRESET &&
        (connection->secure == NULL || secure_may_begin_again(connection, exchange->sent_before)))
        return answer_refusal(connection, exchange, request, &error);
    return conclude(connection, exchange, r < 0 ? r : 0, receipt, request);
}

static enum response_connection connection_field(const struct exchange *exchange, const struct http_request *request)
{
    if (exchange->close)
        return RESPONSE_CLOSE;
    return request->minor == 0 ? RESPONSE_KEEP_ALIVE : RESPONSE_SILENT;
}

/* response->connection and head_only are set here. */
static enum progress send_text(struct connection *connection, struct exchange *exchange,
                               const struct http_request *request, const struct response_text *response)
{
    struct response_text whole = *response;
    size_t length, body;
    whole.connection = connection_field(exchange, request);
    whole.head_only = request->method == HTTP_HEAD;
    if (exchange->site != NULL) {
        whole.header = exchange->site->extras.header;
        whole.header_length = exchange->site->extras.header_length;
    }
    exchange->status = whole.status;
    if (response_text_make(&connection->server->clock, &whole, &exchange->text, &length, &body) < 0) {
        exchange_put(connection->server, exchange);
        connection->exchange = NULL;
        connection_close(connection);
        return ENDED;
    }
    exchange->text_length = length;
    exchange->head_length = length - body;
    connection->server->text_bytes += length;
    struct sluice_segment segment = {.kind = SLUICE_SEGMENT_MEMORY, .data = exchange->text, .length = length};
    return send_segments(connection, exchange, request, &segment, 1);
}

static enum progress send_status(struct connection *connection, struct exchange *exchange,
                                 const struct http_request *request, unsigned status, const char *fields)
{
    return send_text(connection, exchange, request, &(struct response_text){.status = status, .fields = fields});
}

/* About exchange->file: with length bytes of it from first on, or with none. */
static inline enum progress send_range(struct connection *connection, struct exchange *exchange,
                                       const struct http_request *request, unsigned status, uint64_t first,
                                       uint64_t length)
{
    const struct file *file = exchange->file;
    exchange->status = status;
    exchange->head_length =
        response_file_head(exchange->head, &connection->server->clock, status, connection_field(exchange, request),
                           &file->fields, file->size, first, length);
    const struct sluice_segment segments[2] = {
        {.kind = SLUICE_SEGMENT_MEMORY, .data = exchange->head, .length = exchange->head_length},
        {.kind = SLUICE_SEGMENT_FILE,
         .flags = SLUICE_SEGMENT_SIZE_KNOWN, /* files_find has just looked, or inotify would have told */
         .end = file->end,
         .offset = first,
         .length = length},
    };
    bool body = request->method == HTTP_GET && length > 0;
    return send_segments(connection, exchange, request, segments, body ? 2 : 1);
}

#define PARTS_SEGMENTS_MAX (2 * HTTP_RANGES_MAX + 1)

/* The texts between the parts are put into exchange->text, and the segments point there. Returns their number, or 0
 * where the whole file is the better answer: a list of ranges must not cost more than having none. */
static size_t make_parts(struct connection *connection, struct exchange *exchange, const struct http_request *request,
                         const struct http_ranges *ranges, struct sluice_segment segments[static PARTS_SEGMENTS_MAX])
{
    const struct file *file = exchange->file;
    const struct response_fields *fields = &file->fields;
    struct slice type = {fields->text + fields->type, fields->after_type - fields->type};
    struct multipart multipart;
    /* Content-Encoding is about a message's whole body: parts of something encoded have no place for it. */
    if (file->coding != HTTP_IDENTITY)
        return 0;
    if (multipart_begin(ranges, type, file->size, &multipart) < 0)
        return 0;
    uint64_t length = multipart_length(&multipart);
    if (length >= file->size)
        return 0;
    char *text = malloc(RESPONSE_HEAD_MAX + fields->length + (size_t)(ranges->count + 1) * MULTIPART_TEXT_MAX);
    if (text == NULL)
        return 0;
    exchange->head_length = response_multipart_head(
        text, &connection->server->clock, connection_field(exchange, request), fields, multipart.boundary, length);
    size_t count = 0;
    char *start = text, *at = text + exchange->head_length;
    for (unsigned i = 0; i <= ranges->count; i++) {
        at += multipart_text(&multipart, i, at);
        segments[count++] =
            (struct sluice_segment){.kind = SLUICE_SEGMENT_MEMORY, .data = start, .length = (size_t)(at - start)};
        start = at;
        if (i < ranges->count)
            segments[count++] = (struct sluice_segment){
                .kind =
                    SLUICE_SEGMENT_FILE, /* its size not known: when a later part's turn comes, it may be outdated */
                .end = file->end,
                .offset = ranges->list[i].first,
                .length = http_range_length(&ranges->list[i]),
            };
    }
    exchange->status = 206;
    exchange->text = text;
    exchange->text_length = (size_t)(at - text);
    connection->server->text_bytes += exchange->text_length;
    return count;
}

/* Several ranges of exchange->file leave by one transfer, so that each goes by the route that a file of its size would.
 */
__attribute__((noinline)) /* the segments are 10 KB */
static enum progress
send_parts(struct connection *connection, struct exchange *exchange, const struct http_request *request,
           const struct http_ranges *ranges)
{
    struct sluice_segment segments[PARTS_SEGMENTS_MAX];
    size_t count = make_parts(connection, exchange, request, ranges, segments);
    return count > 0 ? send_segments(connection, exchange, request, segments, count)
                     : send_range(connection, exchange, request, 200, 0, exchange->file->size);
}

/* Takes the reference. */
__attribute__((always_inline)) static inline enum progress send_file(struct connection *connection,
                                                                     struct exchange *exchange,
                                                                     const struct http_request *request,
                                                                     struct file *file)
{
    struct representation representation = {file->size, file->modified, file->etag, file->weak};
    struct http_ranges ranges;
    unsigned status = conditions_evaluate(request, &representation, connection->server->clock.second, &ranges);
    uint64_t first = 0, length = 0;
    exchange->file = file;
    if (status == 200) {
        length = file->size;
    } else if (status == 206) {
        if (ranges.count > 1)
            return send_parts(connection, exchange, request, &ranges);
        first = ranges.list[0].first;
        length = http_range_length(&ranges.list[0]);
    }
    return send_range(connection, exchange, request, status, first, length);
}

/* Wait for what a helper finds. */
static enum progress await_lookup(struct connection *connection, struct exchange *exchange)
{
    connection->exchange = exchange;
    connection->state = LOOKING_UP;
    note_begin(exchange);
    sluice_loop_receive_pause(connection->server->loop, connection->end);
    return PENDING;
}

static void on_coded_found(void *context, int result, struct file *coded);

/* The file, or its sibling in the best of the codings that the client accepts; the first `tried` of them were looked
 * for. Takes the reference. */
static enum progress send_accepted(struct connection *connection, struct exchange *exchange,
                                   const struct http_request *request, struct file *file, unsigned tried)
{
    enum http_coding order[HTTP_CODINGS];
    unsigned count = file->negotiable ? http_codings_accepted(request->accept_encoding, order) : 0;
    while (tried < count) {
        enum http_coding coding = order[tried++];
        struct file *coded;
        int result = files_find_coded(file, coding, &coded);
        if (result == 1) {
            files_release(connection->server->files, file);
            file = coded;
            break;
        }
        if (result == 0 && files_look_up_coded(file, coding, on_coded_found, exchange, &exchange->lookup) == 0) {
            exchange->file = file;
            exchange->tried = tried;
            return await_lookup(connection, exchange);
        }
    }
    return send_file(connection, exchange, request, file);
}

static void on_coded_found(void *context, int result, struct file *coded)
{
    struct exchange *exchange = context;
    struct connection *connection = exchange->connection;
    struct file *file = exchange->file;
    struct http_request request;
    exchange->lookup = NULL;
    exchange->file = NULL;
    connection->exchange = NULL;
    connection->state = READING;
    tick(connection->server);
    (void)held_request(connection, &request); /* it was parsed before */
    if (result == 1) {
        files_release(connection->server->files, file);
        file = coded; /* which is not negotiable */
    }
    if (send_accepted(connection, exchange, &request, file, exchange->tried) == ANSWERED)
        go_on(connection);
}

/* ---- Directories ------------------------------------------------------------------------------------------------- */

struct listing_job {
    struct http_server *server;
    const struct http_site *site;
    struct exchange *exchange; /* NULL: the connection has gone */
    struct listing_view view;
    int result;
    char *text;
    size_t length;
    char path[];
};

static void listing_abandon(struct listing_job *job)
{
    job->exchange = NULL;
}

static void listing_work(void *context)
{
    struct listing_job *job = context;
    const struct beneath *beneath = files_beneath(files_root(job->server->files, job->site->number));
    if (!job->site->listing) { /* only whether there is such a directory */
        CLEANUP_FD int fd = beneath_open(beneath, job->path, O_PATH | O_DIRECTORY, false, NULL);
        job->result = fd < 0 ? fd : -EACCES;
        return;
    }
    struct listing_entry *entries = NULL;
    size_t count = 0;
    bool complete;
    job->result = listing_read(beneath, job->path, &entries, &count, &complete);
    if (job->result == 0) {
        listing_sort(entries, count, &job->view);
        job->result = listing_render(job->path, entries, count, complete, &job->view, &job->text, &job->length);
        listing_free(entries, count);
    }
}

static enum progress answer_error(struct connection *connection, struct exchange *exchange,
                                  const struct http_request *request, int error)
{
    switch (error) {
    case -EACCES:
    case -EPERM:
        return send_status(connection, exchange, request, 403, NULL);
    case -ENOENT:
    case -ENOTDIR:
    case -EISDIR:
    case -ELOOP:
    case -EXDEV:
    case -ENAMETOOLONG:
        return send_status(connection, exchange, request, 404, NULL);
    case -EMFILE:
    case -ENFILE:
    case -ENOMEM:
    case -EAGAIN:
        return send_status(connection, exchange, request, 503, "Retry-After: 1\r\n");
    default:
        return send_status(connection, exchange, request, 500, NULL);
    }
}

/* A listing has neither tag nor date: of the conditions only those by tag mean something, and no tag is its own. */
static enum progress send_listing(struct connection *connection, struct exchange *exchange,
                                  const struct http_request *request, const struct listing_job *job)
{
    const struct http_request conditions = {
        .method = HTTP_HEAD, .if_match = request->if_match, .if_none_match = request->if_none_match};
    const struct representation listing = {.size = job->length};
    struct http_ranges none;
    struct response_text page = {
        .status = conditions_evaluate(&conditions, &listing, connection->server->clock.second, &none),
        .fields = listing_fields(&job->view),
    };
    if (page.status == 200) {
        page.type = listing_type(&job->view);
        page.body = job->text;
        page.body_length = job->length;
    }
    return send_text(connection, exchange, request, &page);
}

static void on_listed(void *context)
{
    struct listing_job *job = context;
    struct exchange *exchange = job->exchange;
    job->server->listings--;
    if (exchange != NULL) {
        struct connection *connection = exchange->connection;
        struct http_request request;
        exchange->listing = NULL;
        connection->exchange = NULL;
        connection->state = READING;
        tick(job->server);
        (void)held_request(connection, &request); /* it was parsed before */
        if (job->result == 0 && job->server->text_bytes + job->length > TEXT_BYTES_MAX)
            job->result = -ENOMEM;
        enum progress progress = job->result < 0 ? answer_error(connection, exchange, &request, job->result)
                                                 : send_listing(connection, exchange, &request, job);
        if (progress == ANSWERED)
            go_on(connection);
    }
    free(job->text);
    free(job);
}

static enum progress look_at_directory(struct connection *connection, struct exchange *exchange,
                                       const struct http_request *request, const char *path, size_t length)
{
    struct http_server *server = connection->server;
    struct listing_job *job = calloc(1, sizeof *job + length + 1);
    if (job == NULL)
        return answer_error(connection, exchange, request, -ENOMEM);
    job->server = server;
    job->exchange = exchange;
    job->site = exchange->site;
    listing_choose(request->query, request->accept, &job->view);
    memcpy(job->path, path, length);
    if (sluice_loop_offload(server->loop, listing_work, on_listed, job) < 0) {
        free(job);
        return answer_error(connection, exchange, request, -ENOMEM);
    }
    server->listings++;
    exchange->listing = job;
    return await_lookup(connection, exchange);
}

/* To the same path with a slash behind it. Built from the decoded path: what came could begin with two slashes, which
 * a browser would take for the name of another host. */
static enum progress redirect(struct connection *connection, struct exchange *exchange,
                              const struct http_request *request, char *path)
{
    char *fields = NULL;
    size_t length = 0;
    FILE *text = open_memstream(&fields, &length);
    if (text == NULL)
        return answer_error(connection, exchange, request, -ENOMEM);
    fputs("Location: ", text);
    char *rest = path;
    for (char *name = strsep(&rest, "/"); name != NULL; name = strsep(&rest, "/")) {
        char encoded[3 * NAME_MAX + 1];
        http_path_encode(name, encoded, sizeof encoded);
        fprintf(text, "/%s", encoded);
    }
    fputc('/', text);
    if (request->query.data != NULL)
        fprintf(text, "?%.*s", (int)request->query.length, request->query.data);
    fputs("\r\n", text);
    enum progress progress = fclose(text) == 0 ? send_status(connection, exchange, request, 301, fields)
                                               : answer_error(connection, exchange, request, -ENOMEM);
    free(fields);
    return progress;
}

/* To the same place with TLS. */
static enum progress redirect_to_https(struct connection *connection, struct exchange *exchange,
                                       const struct http_request *request)
{
    char *fields = NULL;
    size_t length = 0, host = request->host.length;
    unsigned port = connection->server->options->https_port;
    FILE *text = request->host.data != NULL ? open_memstream(&fields, &length) : NULL;
    if (text == NULL)
        return send_status(connection, exchange, request, request->host.data != NULL ? 503 : 400, NULL);
    const char *colon = memrchr(request->host.data, ':', host);
    if (colon != NULL && memchr(colon, ']', host - (size_t)(colon - request->host.data)) == NULL)
        host = (size_t)(colon - request->host.data);
    fprintf(text, "Location: https://%.*s", (int)host, request->host.data);
    if (port != 443)
        fprintf(text, ":%u", port);
    fprintf(text, "%.*s", (int)request->path.length, request->path.data != NULL ? request->path.data : "");
    if (request->query.data != NULL)
        fprintf(text, "?%.*s", (int)request->query.length, request->query.data);
    fputs("\r\n", text);
    enum progress progress = fclose(text) == 0 ? send_status(connection, exchange, request, 308, fields)
                                               : answer_error(connection, exchange, request, -ENOMEM);
    free(fields);
    return progress;
}

/* Whoever issues certificates looks here, without TLS (RFC 8555, 8.3). */
static bool is_for_acme(struct slice path)
{
    static const char place[] = "/.well-known/acme-challenge/";
    return path.length > sizeof place - 1 && memcmp(path.data, place, sizeof place - 1) == 0;
}

/* ---- Requests -------------------------------------------------------------------------------------------------- */

/* The path of the file that is asked for, in server->path: the index for a directory. *ret_given: the length of the
 * path without that. Returns the length, or minus a status. */
static int resolve(struct http_server *server, const struct http_site *site, const struct http_request *request,
                   int *ret_given)
{
    int length = http_path_decode(request->path, server->path, sizeof server->path);
    if (length < 0)
        return length;
    bool root = length == 1 && server->path[0] == '.';
    *ret_given = length;
    if (!root && server->path[length - 1] != '/')
        return length;
    size_t at = root ? 0 : (size_t)length;
    if (at + site->index_length >= sizeof server->path)
        return -414;
    memcpy(server->path + at, site->index, site->index_length + 1);
    return (int)(at + site->index_length);
}

/* With what files_find or a helper found under the path in server->path, given and length being as resolve said. */
static enum progress answer_found(struct connection *connection, struct exchange *exchange,
                                  const struct http_request *request, int given, int length, int result,
                                  struct file *file)
{
    struct http_server *server = connection->server;
    if (result == 1)
        return send_accepted(connection, exchange, request, file, 0);
    if (given != length && (result == -ENOENT || result == -EISDIR)) {
        /* No index. The root's path is ".", which the index has replaced. */
        bool root = (size_t)length == exchange->site->index_length;
        return look_at_directory(connection, exchange, request, root ? "." : server->path, root ? 1 : (size_t)given);
    }
    if (result == -EISDIR) {
        server->path[given] = '\0';
        return redirect(connection, exchange, request, server->path);
    }
    return answer_error(connection, exchange, request, result);
}

static void on_found(void *context, int result, struct file *file)
{
    struct exchange *exchange = context;
    struct connection *connection = exchange->connection;
    struct http_server *server = connection->server;
    struct http_request request;
    int given = 0;
    exchange->lookup = NULL;
    connection->exchange = NULL;
    connection->state = READING;
    tick(server);
    (void)held_request(connection, &request); /* both went well before */
    int length = resolve(server, exchange->site, &request, &given);
    if (answer_found(connection, exchange, &request, given, length, result, file) == ANSWERED)
        go_on(connection);
}

/* Methods of RFC 9110 and 5789: known, but not for files that are only read. */
static bool is_known_method(struct slice method)
{
    static const char *const known[] = {"POST", "PUT", "DELETE", "CONNECT", "TRACE", "PATCH"};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strlen(known[i]) == method.length && memcmp(known[i], method.data, method.length) == 0)
            return true;
    return false;
}

/* Neither GET nor HEAD. All files have the same options, and OPTIONS asks for no file: it is not looked for. */
static enum progress answer_other(struct connection *connection, struct exchange *exchange,
                                  const struct http_request *request)
{
    if (request->method == HTTP_OTHER && is_known_method(request->method_text))
        return send_status(connection, exchange, request, 405, ALLOW);
    if (request->method == HTTP_OTHER)
        return send_status(connection, exchange, request, 501, NULL);
    if (request->path.data != NULL && exchange->site == NULL)
        return send_status(connection, exchange, request, 421, NULL);
    int given, length = request->path.data == NULL ? 0 : resolve(connection->server, exchange->site, request, &given);
    if (length < 0)
        return send_status(connection, exchange, request, (unsigned)-length, NULL);
    return send_text(connection, exchange, request,
                     &(struct response_text){.status = 200, .fields = ALLOW "Accept-Ranges: bytes\r\n", .body = ""});
}

/* To a request whose end is known. */
static inline enum progress respond(struct connection *connection, struct exchange *exchange,
                                    const struct http_request *request)
{
    struct http_server *server = connection->server;
    if (server->options->https_port != 0 && connection->secure == NULL && !is_for_acme(request->path))
        return redirect_to_https(connection, exchange, request);
    if (request->method >= HTTP_OPTIONS)
        return answer_other(connection, exchange, request);

    const struct http_site *site = exchange->site;
    if (site == NULL)
        return send_status(connection, exchange, request, 421, NULL);

    int given;
    int length = resolve(server, site, request, &given);
    if (length < 0)
        return send_status(connection, exchange, request, (unsigned)-length, NULL);
    struct file *file;
    struct files_root *root = files_root(server->files, site->number);
    int result = files_find(root, server->path, (size_t)length, &file);
    if (result == 1 && !file->negotiable)
        return send_file(connection, exchange, request, file);
    if (result != 0)
        return answer_found(connection, exchange, request, given, length, result, file);
    result = files_look_up(root, server->path, (size_t)length, on_found, exchange, &exchange->lookup);
    if (result < 0)
        return answer_error(connection, exchange, request, result);
    return await_lookup(connection, exchange);
}

/* NULL: no memory; the connection is closed. */
static inline struct exchange *begin_exchange(struct connection *connection, const struct http_request *request)
{
    struct http_server *server = connection->server;
    server->totals->requests++;
    connection->requests++;
    struct exchange *exchange = exchange_get(connection);
    if (exchange == NULL) {
        connection_close(connection);
        return NULL;
    }
    exchange->site = http_sites_find(server->options->sites, request->host);
    exchange->close = !request->keep_alive || server->closing;
    return exchange;
}

/* ---- Bodies of requests ---------------------------------------------------------------------------------------- */

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
    exchange = begin_exchange(connection, request);
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
        note_begin(exchange);
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
    *ret_progress = r == -405 ? answer_other(connection, exchange, request)
                              : send_status(connection, exchange, request, (unsigned)-r, NULL);
    return NULL;
}

/* Of a body that is not what it has to be, or does not come. */
static void refuse_body(struct connection *connection, unsigned status)
{
    struct exchange *exchange = connection->exchange;
    struct http_request request;
    (void)held_request(connection, &request); /* it was parsed before */
    connection->exchange = NULL;
    connection->state = READING;
    exchange->close = exchange->linger = true;
    /* PENDING: on_sent concludes. Never ANSWERED, as close is set. */
    (void)send_status(connection, exchange, &request, status, NULL);
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
        tick(connection->server);
        refuse_body(connection, (unsigned)-r);
    } else if (used < length && stash_append(connection, data + used, length - used) < 0) {
        connection_close(connection);
    } else { /* the head again, which comes to begin_unusual, and what came behind the body */
        connection->state = READING;
        connection->held = 0;
        take_requests(connection, stash_data(connection), connection->stash_length, true);
    }
}

/* ---- Requests one after the other ------------------------------------------------------------------------------ */

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
    (void)send_text(connection, exchange, &nothing, response);
}

static void refuse(struct connection *connection, unsigned status, const struct http_request *request)
{
    refuse_with(connection, &(struct response_text){.status = status}, request);
}

static void refuse_without_tls(struct connection *connection)
{
    static const char body[] =
        "400 Bad Request\n\nThis port speaks HTTPS. Ask again with https:// instead of http://.\n";
    tick(connection->server);
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
        secure_end(connection);
        connection_close(connection);
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
    tick(server);
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
                : begin_exchange(connection, &request);
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

/* ---- The beginning of a connection ----------------------------------------------------------------------------- */

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
        tick(connection->server);
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
        linger(connection);
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
            tick(server);
            refuse(connection, 408, NULL);
        } else {
            if (connection->secure != NULL) {
                secure_gave_up(connection, "the handshake took longer than --header-timeout");
                secure_end(connection);
            }
            connection_close(connection);
        }
        break;
    case SKIPPING:
        server->totals->timeouts++;
        tick(server);
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

void connection_opened(struct connection *connection)
{
    struct http_server *server = connection->server;
    sluice_timer_start(server->loop, &connection->timer, server->options->header_timeout, on_timeout, connection);
}

void connection_open(struct http_server *server, int fd, const struct sockaddr *address, unsigned address_length,
                     struct tls_context *tls)
{
    struct connection *connection = calloc(1, sizeof *connection);
    if (connection == NULL || sluice_end_open(fd, SLUICE_END_OWN_FD, &connection->end) < 0) {
        free(connection);
        close_fd(fd);
        return;
    }
    connection->server = server;
    if (tls != NULL && secure_open(connection, tls) < 0) {
        sluice_end_close(connection->end);
        free(connection);
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
    if (connection->requests == 0) {
        sluice_timer_start(server->loop, &connection->timer, DRAIN_GRACE, on_timeout, connection);
    } else {
        if (connection->secure != NULL)
            secure_end(connection);
        connection_close(connection);
    }
}
