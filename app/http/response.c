/* SPDX-License-Identifier: MIT */
#include "response.h"

#include <errno.h>
#include <sluice/sluice.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STATUS_OK "HTTP/1.1 200 OK\r\n"

static const struct {
    unsigned status;
    const char *reason;
} reasons[] = {
    {200, "OK"},
    {206, "Partial Content"},
    {301, "Moved Permanently"},
    {304, "Not Modified"},
    {308, "Permanent Redirect"},
    {400, "Bad Request"},
    {403, "Forbidden"},
    {404, "Not Found"},
    {405, "Method Not Allowed"},
    {408, "Request Timeout"},
    {412, "Precondition Failed"},
    {413, "Content Too Large"},
    {414, "URI Too Long"},
    {416, "Range Not Satisfiable"},
    {417, "Expectation Failed"},
    {421, "Misdirected Request"},
    {429, "Too Many Requests"},
    {431, "Request Header Fields Too Large"},
    {500, "Internal Server Error"},
    {501, "Not Implemented"},
    {503, "Service Unavailable"},
    {505, "HTTP Version Not Supported"},
};

const char *response_reason(unsigned status)
{
    for (size_t i = 0; i < sizeof reasons / sizeof reasons[0]; i++)
        if (reasons[i].status == status)
            return reasons[i].reason;
    return "Unknown";
}

static char *put(char *at, const char *text, size_t length)
{
    memcpy(at, text, length);
    return at + length;
}
#define PUT(at, literal) put(at, literal, sizeof literal - 1)

static char *put_text(char *at, const char *text)
{
    return put(at, text, strlen(text));
}

static char *put_number(char *at, uint64_t number)
{
    char digits[20];
    size_t length = 0;
    do
        digits[sizeof digits - ++length] = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    return put(at, digits + sizeof digits - length, length);
}

void response_clock_set(struct response_clock *clock, time_t now)
{
    if (clock->length > 0 && clock->second == now)
        return;
    char *at = PUT(clock->text, STATUS_OK);
    clock->after_status = (size_t)(at - clock->text);
    at = PUT(at, "Server: sluice/");
    at = put_text(at, sluice_version());
    at = PUT(at, "\r\nDate: ");
    http_date_format(now, at);
    at = PUT(at + HTTP_DATE_LENGTH, "\r\n");
    clock->length = (size_t)(at - clock->text);
    clock->second = now;
}

size_t response_fields_room(const struct response_about *about)
{
    return RESPONSE_FIELDS_MAX + about->header_length +
           (about->cache != NULL ? sizeof "Cache-Control: \r\n" + strlen(about->cache) : 0);
}

void response_fields_make(const struct response_about *about, char *buffer, struct response_fields *ret_fields)
{
    char *at = PUT(buffer, "Content-Length: ");
    at = put_number(at, about->size);
    at = PUT(at, "\r\n");
    ret_fields->type = (size_t)(at - buffer);
    at = PUT(at, "Content-Type: ");
    at = put_text(at, about->type);
    at = PUT(at, "\r\n");
    ret_fields->after_type = (size_t)(at - buffer);
    if (about->coding != NULL) {
        at = PUT(at, "Content-Encoding: ");
        at = put_text(at, about->coding);
        at = PUT(at, "\r\n");
    }
    /* A browser must not guess another type: a text file would become a script. */
    at = PUT(at, "X-Content-Type-Options: nosniff\r\n");
    ret_fields->validators = (size_t)(at - buffer);
    at = PUT(at, "Last-Modified: ");
    http_date_format(about->modified, at);
    at = PUT(at + HTTP_DATE_LENGTH, "\r\n");
    ret_fields->etag = (size_t)(at - buffer);
    at = PUT(at, "ETag: ");
    at = put_text(at, about->etag);
    at = PUT(at, "\r\nAccept-Ranges: bytes\r\n");
    if (about->varies)
        at = PUT(at, "Vary: Accept-Encoding\r\n");
    if (about->header_length > 0)
        at = put(at, about->header, about->header_length);
    ret_fields->cache = (size_t)(at - buffer);
    if (about->cache != NULL) {
        at = PUT(at, "Cache-Control: ");
        at = put_text(at, about->cache);
        at = PUT(at, "\r\n");
    }
    at = PUT(at, "\r\n");
    ret_fields->length = (size_t)(at - buffer);
    ret_fields->text = buffer;
}

/* Status line, Server, Date, Connection. */
static inline char *put_start(char *at, const struct response_clock *clock, unsigned status,
                              enum response_connection connection)
{
    if (status == 200) {
        at = put(at, clock->text, clock->length);
    } else {
        at = PUT(at, "HTTP/1.1 ");
        at = put_number(at, status);
        *at++ = ' ';
        at = put_text(at, response_reason(status));
        at = PUT(at, "\r\n");
        at = put(at, clock->text + clock->after_status, clock->length - clock->after_status);
    }
    if (connection == RESPONSE_KEEP_ALIVE)
        at = PUT(at, "Connection: keep-alive\r\n");
    else if (connection == RESPONSE_CLOSE)
        at = PUT(at, "Connection: close\r\n");
    return at;
}

/* From an offset on. A client that has told us the validators of what it has is not told the date again: the entity tag
 * says it all (RFC 9110, 15.3.7). */
static inline char *put_fields(char *at, const struct response_fields *fields, size_t from, bool revalidated)
{
    if (!revalidated)
        return put(at, fields->text + from, fields->length - from);
    at = put(at, fields->text + from, fields->validators - from);
    return put(at, fields->text + fields->etag, fields->length - fields->etag);
}

size_t response_file_head(char buffer[static RESPONSE_HEAD_MAX], const struct response_clock *clock, unsigned status,
                          bool revalidated, enum response_connection connection, const struct response_fields *fields,
                          uint64_t size, uint64_t first, uint64_t length)
{
    char *at = put_start(buffer, clock, status, connection);
    size_t from = 0, to = fields->length;
    switch (status) {
    case 206:
        at = PUT(at, "Content-Range: bytes ");
        at = put_number(at, first);
        *at++ = '-';
        at = put_number(at, first + length - 1);
        *at++ = '/';
        at = put_number(at, size);
        at = PUT(at, "\r\nContent-Length: ");
        at = put_number(at, length);
        at = put_fields(PUT(at, "\r\n"), fields, fields->type, revalidated);
        return (size_t)(at - buffer);
    case 304:
        from = fields->etag;
        break;
    case 416:
        at = PUT(at, "Content-Range: bytes */");
        at = put_number(at, size);
        at = PUT(at, "\r\nContent-Length: 0\r\n");
        from = fields->validators;
        to = fields->cache;
        break;
    case 412:
        at = PUT(at, "Content-Length: 0\r\n");
        from = fields->validators;
        to = fields->cache;
        break;
    }
    at = put(at, fields->text + from, to - from);
    if (to < fields->length)
        at = PUT(at, "\r\n");
    return (size_t)(at - buffer);
}

size_t response_multipart_head(char buffer[static RESPONSE_HEAD_MAX], const struct response_clock *clock,
                               bool revalidated, enum response_connection connection,
                               const struct response_fields *fields, const char *boundary, uint64_t length)
{
    char *at = put_start(buffer, clock, 206, connection);
    at = PUT(at, "Content-Length: ");
    at = put_number(at, length);
    at = PUT(at, "\r\nContent-Type: multipart/byteranges; boundary=");
    at = put_text(at, boundary);
    at = PUT(at, "\r\n");
    at = put_fields(at, fields, fields->after_type, revalidated);
    return (size_t)(at - buffer);
}

int response_text_make(const struct response_clock *clock, const struct response_text *response, char **ret_text,
                       size_t *ret_length, size_t *ret_body_length)
{
    char standard[128];
    const char *body = response->body, *type = response->type;
    size_t body_length = response->body_length;
    if (response->status == 304) {
        body = "";
        body_length = 0;
    } else if (body == NULL) {
        body = standard;
        type = "text/plain; charset=utf-8";
        body_length =
            (size_t)snprintf(standard, sizeof standard, "%u %s\n", response->status, response_reason(response->status));
    }
    size_t fields_length = response->fields == NULL ? 0 : strlen(response->fields);
    char *text = malloc(RESPONSE_HEAD_MAX + (type == NULL ? 0 : strlen(type)) + fields_length +
                        response->header_length + (response->head_only ? 0 : body_length));
    if (text == NULL)
        return -ENOMEM;

    char *at = put_start(text, clock, response->status, response->connection);
    if (response->status != 304) {
        at = PUT(at, "Content-Length: ");
        at = put_number(at, body_length);
        at = PUT(at, "\r\n");
    }
    if (type != NULL) {
        at = PUT(at, "Content-Type: ");
        at = put_text(at, type);
        at = PUT(at, "\r\nX-Content-Type-Options: nosniff\r\n");
    }
    if (fields_length > 0)
        at = put(at, response->fields, fields_length);
    if (response->header_length > 0)
        at = put(at, response->header, response->header_length);
    at = PUT(at, "\r\n");
    if (!response->head_only)
        at = put(at, body, body_length);
    *ret_text = text;
    *ret_length = (size_t)(at - text);
    *ret_body_length = response->head_only ? 0 : body_length;
    return 0;
}
