/* SPDX-License-Identifier: MIT
 *
 *   chunked-body = *chunk last-chunk trailer-section CRLF
 *   chunk        = chunk-size [ chunk-ext ] CRLF chunk-data CRLF        last-chunk: a size of zero, without data
 *
 * Lines end in CRLF, nothing else. Extensions and trailer fields are looked at only for where they end and for bytes
 * that may not stand there.
 */
#include "body.h"

enum state {
    CONTENT,     /* by Content-Length */
    SIZE_FIRST,  /* the first digit of a chunk's size */
    SIZE,        /* further ones */
    SIZE_BLANKS, /* behind it: an extension has to follow */
    EXTENSION,   /* up to the end of the line */
    SIZE_END,    /* CR has come */
    CHUNK,       /* its data */
    CHUNK_CR,    /* behind its data */
    CHUNK_LF,
    TRAILER_FIRST, /* the first byte of a trailer field, or the end */
    TRAILER_NAME,  /* further ones */
    TRAILER_VALUE, /* up to the end of the line */
    TRAILER_END,   /* CR has come */
    LAST_LF,       /* CR of the empty line has come */
};

static int digit_value(char byte)
{
    if (byte >= '0' && byte <= '9')
        return byte - '0';
    byte |= 0x20;
    return byte >= 'a' && byte <= 'f' ? byte - 'a' + 10 : -1;
}

/* tchar of RFC 9110, 5.6.2. */
static bool is_token(char byte)
{
    static const uint8_t token[256] = {
        ['!'] = 1,         ['#' ... '\''] = 1, ['*' ... '+'] = 1, ['-' ... '.'] = 1, ['0' ... '9'] = 1,
        ['A' ... 'Z'] = 1, ['^' ... 'z'] = 1,  ['|'] = 1,         ['~'] = 1,
    };
    return token[(uint8_t)byte] != 0;
}

static bool is_control(char byte)
{
    return ((uint8_t)byte < 0x20 && byte != '\t') || byte == 0x7f;
}

int http_body_begin(struct http_body *body, const struct http_request *request)
{
    if (request->content_length > HTTP_BODY_MAX)
        return -413;
    *body = (struct http_body){
        .left = request->content_length, .room = HTTP_BODY_MAX, .state = request->chunked ? SIZE_FIRST : CONTENT};
    return HTTP_BODY_MORE;
}

/* One byte of the framing. Returns the next state, or -400. */
static int step(struct http_body *body, char byte)
{
    int digit;
    switch ((enum state)body->state) {
    case SIZE_FIRST:
    case SIZE:
        digit = digit_value(byte);
        if (digit >= 0) {
            body->left = body->left * 16 + (uint64_t)digit; /* it was no more than there is room for, which is little */
            return SIZE;
        }
        if (body->state == SIZE_FIRST)
            return -400;
        if (byte == ' ' || byte == '\t')
            return SIZE_BLANKS;
        return byte == ';' ? EXTENSION : byte == '\r' ? SIZE_END : -400;
    case SIZE_BLANKS:
        return byte == ' ' || byte == '\t' ? SIZE_BLANKS : byte == ';' ? EXTENSION : -400;
    case EXTENSION:
        return byte == '\r' ? SIZE_END : is_control(byte) ? -400 : EXTENSION;
    case SIZE_END:
        return byte != '\n' ? -400 : body->left > 0 ? CHUNK : TRAILER_FIRST;
    case CHUNK_CR:
        return byte == '\r' ? CHUNK_LF : -400;
    case CHUNK_LF:
        return byte == '\n' ? SIZE_FIRST : -400;
    case TRAILER_FIRST:
        return byte == '\r' ? LAST_LF : is_token(byte) ? TRAILER_NAME : -400;
    case TRAILER_NAME:
        return byte == ':' ? TRAILER_VALUE : is_token(byte) ? TRAILER_NAME : -400;
    case TRAILER_VALUE:
        return byte == '\r' ? TRAILER_END : is_control(byte) ? -400 : TRAILER_VALUE;
    case TRAILER_END:
        return byte == '\n' ? TRAILER_FIRST : -400;
    case LAST_LF:
        return byte == '\n' ? CONTENT : -400; /* with nothing left of it: the end */
    case CONTENT:
    case CHUNK:
        break; /* not framing */
    }
    return -400;
}

int http_body_take(struct http_body *body, const char *data, size_t length, size_t *ret_used)
{
    const char *at = data, *end = data + length;
    while (body->state != CONTENT || body->left > 0) {
        if (body->left > body->room)
            return -413;
        if (at == end)
            return HTTP_BODY_MORE;
        if (body->room == 0)
            return -413;
        if (body->state == CONTENT || body->state == CHUNK) {
            size_t taken = (size_t)(end - at) < body->left ? (size_t)(end - at) : (size_t)body->left;
            at += taken;
            body->left -= taken;
            body->room -= (uint32_t)taken;
            if (body->left == 0 && body->state == CHUNK)
                body->state = CHUNK_CR;
            continue;
        }
        int next = step(body, *at);
        if (next < 0)
            return next;
        at++;
        body->room--;
        body->state = (uint8_t)next;
    }
    *ret_used = (size_t)(at - data);
    return HTTP_BODY_DONE;
}
