/* SPDX-License-Identifier: MIT */
#include "exchange.h"
#include "base/clock.h"
#include "forwarded.h"
#include "multipart.h"
#include "service/address.h"
#include "service/log.h"
#include "service/prefix.h"

#include <errno.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define SPARE_EXCHANGES_MAX 64

struct exchange *exchange_get(struct connection *connection)
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

void exchange_put(struct http_server *server, struct exchange *exchange)
{
    files_release(server->files, exchange->file);
    free(exchange->counted);
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

void exchange_note_begin(struct exchange *exchange)
{
    if (exchange->began == 0)
        exchange->began = exchange->connection->server->turn_us;
}

struct exchange *exchange_begin(struct connection *connection, const struct http_request *request)
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

enum progress exchange_await(struct connection *connection, struct exchange *exchange)
{
    connection->exchange = exchange;
    connection->state = LOOKING_UP;
    exchange_note_begin(exchange);
    sluice_loop_receive_pause(connection->server->loop, connection->end);
    return PENDING;
}

struct connection *exchange_resume(struct exchange *exchange, struct http_request *ret_request)
{
    struct connection *connection = exchange->connection;
    connection->exchange = NULL;
    connection->state = READING;
    http_server_tick(connection->server);
    (void)connection_held_request(connection, ret_request); /* it was parsed before */
    return connection;
}

/* ---- After a response -------------------------------------------------------------------------------------------- */

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
    http_totals_count_rest(totals, receipt, exchange->counted);
    if (receipt->fallback_count > 0)
        fallbacks_enter(&totals->fallbacks, receipt);
    if (exchange->began != 0) { /* else http_server_turn counts it */
        durations_enter(&totals->durations, clock_us(CLOCK_MONOTONIC) - exchange->began, 1);
        connection->server->responses_timed++;
    }
    if (connection->receipt != NULL)
        sluice_receipt_add(connection->receipt, receipt);
}

void exchange_count_part(struct exchange *exchange)
{
    if (exchange->counted == NULL)
        exchange->counted = calloc(1, sizeof *exchange->counted);
    if (exchange->counted != NULL) /* else all of it counts at the end */
        http_totals_count_part(exchange->connection->server->totals, sluice_transfer_receipt(exchange->transfer, 0),
                               exchange->counted);
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
        connection_linger(connection);
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
        connection_linger(connection);
    else
        connection_close(connection);
    return ENDED;
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
    http_server_tick(connection->server);
    bool kept = connection_held_request(connection, &request);
    if (conclude(connection, exchange, result, receipt, kept ? &request : NULL) == ANSWERED)
        connection_go_on(connection);
}

/* ---- Sending ----------------------------------------------------------------------------------------------------- */

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
    return exchange_send_text(connection, exchange, request, &(struct response_text){.status = 500});
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
        exchange_note_begin(exchange);
        sluice_loop_receive_pause(server->loop, connection->end);
        connection_set_time(connection, server->options->send_timeout);
        http_server_count_parts(server);
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

enum progress exchange_send_text(struct connection *connection, struct exchange *exchange,
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

enum progress exchange_send_status(struct connection *connection, struct exchange *exchange,
                                   const struct http_request *request, unsigned status, const char *fields)
{
    return exchange_send_text(connection, exchange, request,
                              &(struct response_text){.status = status, .fields = fields});
}

enum progress exchange_send_range(struct connection *connection, struct exchange *exchange,
                                  const struct http_request *request, unsigned status, uint64_t first, uint64_t length)
{
    const struct file *file = exchange->file;
    exchange->status = status;
    exchange->head_length =
        response_file_head(exchange->head, &connection->server->clock, status, request->if_range.data != NULL,
                           connection_field(exchange, request), &file->fields, file->size, first, length);
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
    if (multipart_begin(ranges, type, file->size, &multipart) < 0)
        return 0;
    uint64_t length = multipart_length(&multipart);
    if (length >= file->size)
        return 0;
    char *text = malloc(RESPONSE_HEAD_MAX + fields->length + (size_t)(ranges->count + 1) * MULTIPART_TEXT_MAX);
    if (text == NULL)
        return 0;
    exchange->head_length =
        response_multipart_head(text, &connection->server->clock, request->if_range.data != NULL,
                                connection_field(exchange, request), fields, multipart.boundary, length);
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

/* Not inlined: the segments are 10 KB, which a plain response's stack does without. */
__attribute__((noinline)) enum progress exchange_send_parts(struct connection *connection, struct exchange *exchange,
                                                            const struct http_request *request,
                                                            const struct http_ranges *ranges)
{
    struct sluice_segment segments[PARTS_SEGMENTS_MAX];
    size_t count = make_parts(connection, exchange, request, ranges, segments);
    return count > 0 ? send_segments(connection, exchange, request, segments, count)
                     : exchange_send_range(connection, exchange, request, 200, 0, exchange->file->size);
}
