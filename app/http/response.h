/* SPDX-License-Identifier: MIT
 *
 * Response heads. What is the same for every response of a second, and what is the same for every response about a
 * file, is kept as text: the usual head is two copies.
 */
#ifndef SLUICE_APP_HTTP_RESPONSE_H
#define SLUICE_APP_HTTP_RESPONSE_H

#include "date.h"
#include "request.h"
#include <time.h>

/* Without what the operator adds. Of a file; other responses have their heads beside their bodies. */
#define RESPONSE_HEAD_MAX 768
#define RESPONSE_FIELDS_MAX 448

/* Begins every response within one second: "HTTP/1.1 200 OK", Server and Date. */
struct response_clock {
    time_t second;
    size_t length, after_status; /* of text; where Server begins in it */
    char text[128];
};

/* Cheap when the second has not changed. */
void response_clock_set(struct response_clock *clock, time_t now);

/* What is said about a file, in this order: Content-Length, Content-Type, what else describes the body, validators
 * (Last-Modified, ETag) and the operator's fields, Cache-Control, and the empty line. Each response uses the text from
 * one of the offsets on: a 200 all, a 206 from type, one in several parts from after_type, a 304 from etag; a 206 to
 * If-Range leaves out what lies between validators and etag, the date, and an error Cache-Control, which is about the
 * file. */
struct response_fields {
    size_t length, type, after_type, validators, etag, cache;
    const char *text;
};

struct response_about {
    uint64_t size;
    const char *type;
    time_t modified;
    const char *etag;   /* with its quotes, and with W/ if it is weak */
    const char *coding; /* the content coding that the file's bytes are in; or NULL */
    bool varies;        /* another client may get it in another coding */
    const char *header; /* the operator's fields, each with its CRLF; or NULL */
    size_t header_length;
    const char *cache; /* the value of Cache-Control, or NULL */
};

/* Bytes that the fields may take. */
size_t response_fields_room(const struct response_about *about);

/* Writes to buffer, which has that room, and to which *ret_fields points then. */
void response_fields_make(const struct response_about *about, char *buffer, struct response_fields *ret_fields);

/* What a response says about its connection. HTTP/1.1 keeps open and 1.0 closes by default, which goes without saying.
 */
enum response_connection { RESPONSE_SILENT, RESPONSE_KEEP_ALIVE, RESPONSE_CLOSE };

/* The head of a response with a file or a part of it (200, 206: length bytes from first) or about it (304, 412, 416,
 * without a body). revalidated: a 206 to If-Range. buffer has room for what the operator adds, too. Returns its length.
 */
size_t response_file_head(char buffer[static RESPONSE_HEAD_MAX], const struct response_clock *clock, unsigned status,
                          bool revalidated, enum response_connection connection, const struct response_fields *fields,
                          uint64_t size, uint64_t first, uint64_t length);

/* The head of a 206 in several parts; length is that of the body. Room and result likewise. */
size_t response_multipart_head(char buffer[static RESPONSE_HEAD_MAX], const struct response_clock *clock,
                               bool revalidated, enum response_connection connection,
                               const struct response_fields *fields, const char *boundary, uint64_t length);

/* A whole response in one piece of memory: errors, redirects, listings. */
struct response_text {
    unsigned status;
    enum response_connection connection;
    const char *fields; /* further fields, each with its CRLF; or NULL */
    const char *header; /* the operator's, likewise */
    size_t header_length;
    const char *type; /* of the body; NULL: of an empty one */
    const char *body; /* NULL: a short text that names the status */
    size_t body_length;
    bool head_only; /* Content-Length as if there were the body */
};

/* A 304 has neither body nor length. Allocates *ret_text, of which the last *ret_body_length bytes are the body.
 * Returns 0 or -ENOMEM. */
int response_text_make(const struct response_clock *clock, const struct response_text *response, char **ret_text,
                       size_t *ret_length, size_t *ret_body_length);

/* "Not Found"; "Unknown" for a status that we never send. */
const char *response_reason(unsigned status);

#endif
