/* SPDX-License-Identifier: MIT
 *
 * One HTTP/1.x request head, parsed strictly (RFC 9112) and without copying: every slice points into the caller's
 * buffer and lives as long as that.
 */
#ifndef SLUICE_APP_HTTP_REQUEST_H
#define SLUICE_APP_HTTP_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes in somebody else's buffer. data NULL: absent; length 0 with data: present and empty. */
struct slice {
    const char *data;
    size_t length;
};

enum http_method { HTTP_GET, HTTP_HEAD, HTTP_OPTIONS, HTTP_OTHER };

struct http_request {
    enum http_method method;
    struct slice method_text; /* as sent: for the log, and for 405 against 501 */
    struct slice target;      /* as sent: for the log */
    struct slice path;        /* the path of the target, still percent-encoded, without query; begins with a slash;
                                 absent for "OPTIONS *" and CONNECT */
    struct slice query;       /* without '?'; absent when there is no '?' */
    uint8_t minor;            /* HTTP/1.minor: 0 or 1 */
    bool keep_alive;          /* by version and Connection */
    bool has_body;            /* content_length > 0 or chunked */
    bool chunked;
    bool expects_continue, expects_other; /* Expect; of HTTP/1.0 neither */
    uint64_t content_length;              /* 0 if chunked */
    struct slice host; /* the target's authority if it has one, else the Host field; checked; maybe with a port */
    struct slice range, if_range, if_match, if_none_match, if_modified_since, if_unmodified_since, referer, user_agent,
        accept, accept_encoding, forwarded_for;
};

struct http_limits {
    size_t line; /* longest request line: beyond it 414 */
    size_t head; /* longest head in all: beyond it 431 */
};

#define HTTP_INCOMPLETE 0

/* Parse the request head at the start of data.
 * Returns its length (> 0) including the empty line; HTTP_INCOMPLETE when more bytes are needed; or minus the status
 * with which the request is to be refused and the connection closed: -400 malformed, -414 request line too long, -431
 * head too large, -501 a transfer coding we do not know or a method beyond 32 bytes, -505 a version that is not
 * HTTP/1.x. A method other than GET, HEAD and OPTIONS is no parse error. On a negative return, method_text and target
 * are set if they could be read (else absent). On HTTP_INCOMPLETE nothing in *ret_request is valid. length at or beyond
 * limits->head never gives HTTP_INCOMPLETE, so a buffer of that size is enough.
 *
 * Field values come without the blanks around them; tab and bytes from 0x80 up are the only ones in them that are not
 * visible ASCII or a space. A repeated Host, Content-Length, Transfer-Encoding, Range, If-Range or other condition is
 * refused (-400); of a repeated Referer, User-Agent, Accept or Accept-Encoding the first counts, of X-Forwarded-For the
 * last, which the nearest proxy wrote; Connection fields add up. */
int http_request_parse(const char *data, size_t length, const struct http_limits *limits,
                       struct http_request *ret_request);

#endif
