/* SPDX-License-Identifier: MIT
 *
 * One pass from front to back. Every refusal that needs no more than the bytes up to it is made at that byte, and what
 * only the whole head can tell (framing, a missing Host) is judged at its end. So the answer does not depend on how the
 * bytes were cut into packets: a prefix of a good head is incomplete, and a prefix of a bad one is incomplete or
 * refused with the same status. The fuzzer holds the parser to that.
 */
#include "request.h"
#include "field.h"
#include <endian.h>
#include <limits.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define METHOD_MAX 32
#define LEADING_EMPTY_LINES_MAX 2 /* RFC 9112, 2.2: at least one; old clients send one after a POST body */

#define BYTES(byte) (UINT64_C(0x0101010101010101) * (byte))

/* Classes of bytes. */
#define TOKEN 1u     /* tchar: methods and field names */
#define TARGET 2u    /* a request target but for '?': what is visible, less '#'. Wider than RFC 3986, as browsers and */
                     /* curl send '|', '{' or raw UTF-8; none of that can end a line or a word. */
#define HOST_NAME 4u /* reg-name but for '%': unreserved and sub-delims */
#define T TOKEN
#define G TARGET
#define H HOST_NAME

static const uint8_t class_of[256] = {
    ['!'] = T | G | H,
    ['"'] = G,
    ['#'] = T,
    ['$'] = T | G | H,
    ['%'] = T | G,
    ['&' ... '\''] = T | G | H,
    ['(' ... ')'] = G | H,
    ['*' ... '+'] = T | G | H,
    [','] = G | H,
    ['-' ... '.'] = T | G | H,
    ['/'] = G,
    ['0' ... '9'] = T | G | H,
    [':'] = G,
    [';'] = G | H,
    ['<'] = G,
    ['='] = G | H,
    ['>'] = G,
    ['@'] = G,
    ['A' ... 'Z'] = T | G | H,
    ['[' ... ']'] = G,
    ['^'] = T | G,
    ['_'] = T | G | H,
    ['`'] = T | G,
    ['a' ... 'z'] = T | G | H,
    ['{'] = G,
    ['|'] = T | G,
    ['}'] = G,
    ['~'] = T | G | H,
    [0x80 ... 0xff] = G,
};
#undef T
#undef G
#undef H

static inline bool is(char byte, unsigned class)
{
    return (class_of[(uint8_t)byte] & class) != 0;
}

/* The first byte from at on that is not of the class. There must be one. */
static inline const char *find_other(const char *at, unsigned class)
{
    for (;; at += 4) {
        if (!is(at[0], class))
            return at;
        if (!is(at[1], class))
            return at + 1;
        if (!is(at[2], class))
            return at + 2;
        if (!is(at[3], class))
            return at + 3;
    }
}

/* The first byte in [at, end) that is not of the class, or end. What has come usually ends with a line, and a last byte
 * that stops any search makes it needless to compare with end at every one. */
static inline const char *skip(const char *at, const char *end, unsigned class)
{
    if (at < end && !is(end[-1], class))
        return find_other(at, class);
    while (at < end && is(*at, class))
        at++;
    return at;
}

static inline bool is_digit(char byte)
{
    return byte >= '0' && byte <= '9';
}

static inline bool is_hex_digit(char byte)
{
    return is_digit(byte) || ((byte | 0x20) >= 'a' && (byte | 0x20) <= 'f');
}

/* Whether text reads as lower, without regard to the case of letters. Exact only for bytes that are no control bytes,
 * as setting bit 5 then makes no other byte a letter, '-', ':' or '/'. length is a constant: this becomes few loads. */
__attribute__((always_inline)) static inline bool reads(const char *text, const char *lower, size_t length)
{
    uint64_t different = 0;
    size_t i = 0;
    for (; length - i >= 8; i += 8) {
        uint64_t ours, theirs;
        memcpy(&ours, text + i, 8);
        memcpy(&theirs, lower + i, 8);
        different |= (ours | BYTES(0x20)) ^ theirs;
    }
    if (length - i >= 4) {
        uint32_t ours, theirs;
        memcpy(&ours, text + i, 4);
        memcpy(&theirs, lower + i, 4);
        different |= (ours | (uint32_t)BYTES(0x20)) ^ theirs;
        i += 4;
    }
    for (; i < length; i++)
        different |= (uint64_t)(((uint8_t)text[i] | 0x20u) ^ (uint8_t)lower[i]);
    return different == 0;
}
#define READS(text, literal) reads(text, literal, sizeof literal - 1)
#define SLICE_READS(slice, literal) ((slice).length == sizeof literal - 1 && READS((slice).data, literal))

/* The first control byte (tab and DEL included) in [at, end), or end. */
static inline const char *find_control(const char *at, const char *end)
{
#ifdef __SSE2__
    for (; end - at >= 16; at += 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)at);
        __m128i visible = _mm_cmpeq_epi8(_mm_max_epu8(bytes, _mm_set1_epi8(0x20)), bytes);
        __m128i del = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x7f));
        unsigned plain = (unsigned)_mm_movemask_epi8(_mm_andnot_si128(del, visible));
        if (plain != 0xffff)
            return at + __builtin_ctz(~plain);
    }
#endif
    for (; end - at >= 8; at += 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        word = le64toh(word);
        /* The usual test for a byte below n, and for DEL as zero after the exclusive or, which leaves bit 7 as it is. A
         * borrow can raise false marks only above a true one, so that the lowest mark is always true. */
        uint64_t del = word ^ BYTES(0x7f);
        uint64_t marks = ((word - BYTES(0x20)) | (del - BYTES(0x01))) & ~word & BYTES(0x80);
        if (marks != 0)
            return at + __builtin_ctzll(marks) / 8;
    }
    while (at < end && (uint8_t)*at >= 0x20 && *at != 0x7f)
        at++;
    return at;
}

/* Steps over CRLF at *at: 1 done, HTTP_INCOMPLETE, or -400. */
static inline int take_line_end(const char **at, const char *end)
{
    if (end - *at >= 2 && memcmp(*at, "\r\n", 2) == 0) {
        *at += 2;
        return 1;
    }
    if (*at == end)
        return HTTP_INCOMPLETE;
    if ((*at)[0] != '\r')
        return -400;
    return end - *at < 2 ? HTTP_INCOMPLETE : -400;
}

/* uri-host [":" port]. An empty host is refused: an http URI has none (RFC 9110, 4.2.1). So are zone identifiers and
 * IPvFuture, which nobody sends. The byte behind the value can be read and belongs to no host: it ends the searches. */
static bool is_host(struct slice value)
{
    const char *at = value.data, *end = at + value.length;
    if (at < end && *at == '[') {
        const char *address = ++at;
        unsigned colons = 0;
        for (; at < end && (is_hex_digit(*at) || *at == ':' || *at == '.'); at++)
            colons += *at == ':';
        if (colons < 2 || at - address > 45 || at == end || *at != ']')
            return false;
        at++;
    } else {
        for (;; at += 3) {
            at = find_other(at, HOST_NAME);
            if (at == end || *at != '%')
                break;
            if (end - at < 3 || !is_hex_digit(at[1]) || !is_hex_digit(at[2]))
                return false;
        }
        if (at == value.data)
            return false;
    }
    if (at == end)
        return true;
    if (*at++ != ':')
        return false;
    unsigned port = 0;
    for (; is_digit(*at); at++) {
        port = port * 10 + (unsigned)(*at - '0');
        if (port > 65535)
            return false;
    }
    return at == end;
}

/* Finds path, query and authority in the target. Returns 1 or -400. */
static int split_target(struct http_request *request, const char *path_end, struct slice *ret_authority)
{
    struct slice target = request->target;
    const char *target_end = target.data + target.length;
    if (path_end < target_end)
        request->query = (struct slice){path_end + 1, (size_t)(target_end - path_end - 1)};

    if (target.data[0] == '/') {
        request->path = (struct slice){target.data, (size_t)(path_end - target.data)};
        return 1;
    }

    size_t scheme = 0;
    if (path_end - target.data >= 7 && READS(target.data, "http://"))
        scheme = 7;
    else if (path_end - target.data >= 8 && READS(target.data, "https://"))
        scheme = 8;
    if (scheme != 0) {
        const char *authority = target.data + scheme;
        const char *slash = memchr(authority, '/', (size_t)(path_end - authority));
        const char *authority_end = slash != NULL ? slash : path_end;
        *ret_authority = (struct slice){authority, (size_t)(authority_end - authority)};
        if (!is_host(*ret_authority))
            return -400;
        /* "http://host" asks for "/": the scheme's last slash serves as that, being in the caller's buffer too. */
        request->path = slash != NULL ? (struct slice){slash, (size_t)(path_end - slash)} //
                                      : (struct slice){authority - 1, 1};
        return 1;
    }

    struct slice method = request->method_text;
    if (request->method == HTTP_OPTIONS && target.length == 1 && target.data[0] == '*')
        return 1;
    if (method.length == 7 && memcmp(method.data, "CONNECT", 7) == 0 && is_host(target)) {
        *ret_authority = target;
        return 1;
    }
    return -400;
}

/* Returns 1 at *cursor behind the line, HTTP_INCOMPLETE, or minus a status. */
static inline int parse_request_line(const char **cursor, const char *end, struct http_request *request,
                                     struct slice *ret_authority)
{
    const char *at = *cursor;

    const char *method = at;
    at = skip(at, end, TOKEN);
    size_t method_length = (size_t)(at - method);
    if (method_length > METHOD_MAX)
        return -501;
    if (at == end)
        return HTTP_INCOMPLETE;
    if (*at != ' ' || method_length == 0)
        return -400;
    request->method_text = (struct slice){method, method_length};
    request->method = HTTP_OTHER;
    if (method_length == 3 && memcmp(method, "GET", 3) == 0)
        request->method = HTTP_GET;
    else if (method_length == 4 && memcmp(method, "HEAD", 4) == 0)
        request->method = HTTP_HEAD;
    else if (method_length == 7 && memcmp(method, "OPTIONS", 7) == 0)
        request->method = HTTP_OPTIONS;
    at++;

    const char *target = at;
    at = skip(at, end, TARGET);
    const char *path_end = at;
    while (at < end && *at == '?')
        at = skip(at + 1, end, TARGET);
    if (at == end)
        return HTTP_INCOMPLETE;
    if (*at != ' ' || at == target)
        return -400;
    request->target = (struct slice){target, (size_t)(at - target)};
    at++;

    static const char version[] = "HTTP/d.d";
    bool whole = end - at >= 8 && memcmp(at, "HTTP/", 5) == 0 && is_digit(at[5]) && at[6] == '.' && is_digit(at[7]);
    for (unsigned i = 0; i < sizeof version - 1 && !whole; i++) { /* where it ends, or what is wrong first */
        if (at + i == end)
            return HTTP_INCOMPLETE;
        if (version[i] == 'd' ? !is_digit(at[i]) : at[i] != version[i])
            return -400;
    }
    /* Before the target is judged, so that HTTP/2 with prior knowledge ("PRI * HTTP/2.0") is told of the version. */
    if (at[5] != '1')
        return -505;
    request->minor = at[7] != '0';
    at += 8;

    int status = take_line_end(&at, end);
    if (status <= 0)
        return status;
    *cursor = at;
    return split_target(request, path_end, ret_authority);
}

/* What the fields say about this message and connection, judged once the head is whole. */
struct framing {
    bool content_length, transfer_encoding, close, keep_alive;
};

/* A field that may come once. For Host and the framing, a second one is the stuff of request smuggling; for conditions
 * and ranges, no choice among several is safe and joining them would need a copy. All are refused alike. */
static inline int take_once(struct slice *field, struct slice value)
{
    if (field->data != NULL)
        return -400;
    *field = value;
    return 1;
}

/* A field that decides nothing about safety: the first counts. */
static inline int take_first(struct slice *field, struct slice value)
{
    if (field->data == NULL)
        *field = value;
    return 1;
}

/* 1*DIGIT, once. RFC 9112, 6.3 lets a recipient refuse lists of one value repeated, and we do. */
static int take_content_length(struct http_request *request, struct framing *framing, struct slice value)
{
    if (framing->content_length || value.length == 0)
        return -400;
    uint64_t length = 0;
    for (size_t i = 0; i < value.length; i++) {
        if (!is_digit(value.data[i]) || __builtin_mul_overflow(length, 10, &length) ||
            __builtin_add_overflow(length, (uint64_t)(value.data[i] - '0'), &length))
            return -400;
    }
    framing->content_length = true;
    request->content_length = length;
    return 1;
}

static int take_connection(struct framing *framing, struct slice value)
{
    const char *at = value.data, *end = at + value.length;
    for (struct slice option; field_next_element(&at, end, &option);) {
        if (SLICE_READS(option, "close"))
            framing->close = true;
        else if (SLICE_READS(option, "keep-alive"))
            framing->keep_alive = true;
    }
    return 1;
}

static int take_expect(struct http_request *request, struct slice value)
{
    const char *at = value.data, *end = at + value.length;
    for (struct slice expectation; field_next_element(&at, end, &expectation);) {
        if (SLICE_READS(expectation, "100-continue"))
            request->expects_continue = true;
        else
            request->expects_other = true;
    }
    return 1;
}

/* Returns 1 or -400. */
static inline int take_field(struct http_request *request, struct framing *framing, struct slice name,
                             struct slice value)
{
    const char *text = name.data;
    switch (name.length) {
    case 4:
        if (READS(text, "host"))
            return is_host(value) ? take_once(&request->host, value) : -400;
        break;
    case 5:
        if (READS(text, "range"))
            return take_once(&request->range, value);
        break;
    case 6:
        if (READS(text, "accept"))
            return take_first(&request->accept, value);
        if (READS(text, "expect"))
            return take_expect(request, value);
        break;
    case 7:
        if (READS(text, "referer"))
            return take_first(&request->referer, value);
        break;
    case 8:
        if (READS(text, "if-range"))
            return take_once(&request->if_range, value);
        if (READS(text, "if-match"))
            return take_once(&request->if_match, value);
        break;
    case 10:
        if (READS(text, "user-agent"))
            return take_first(&request->user_agent, value);
        if (READS(text, "connection"))
            return take_connection(framing, value);
        break;
    case 13:
        if (READS(text, "if-none-match"))
            return take_once(&request->if_none_match, value);
        break;
    case 14:
        if (READS(text, "content-length"))
            return take_content_length(request, framing, value);
        break;
    case 15:
        if (READS(text, "accept-encoding"))
            return take_first(&request->accept_encoding, value);
        if (READS(text, "x-forwarded-for"))
            request->forwarded_for = value;
        break;
    case 17:
        if (READS(text, "if-modified-since"))
            return take_once(&request->if_modified_since, value);
        if (READS(text, "transfer-encoding")) {
            if (framing->transfer_encoding)
                return -400;
            framing->transfer_encoding = true;
            request->chunked = SLICE_READS(value, "chunked");
        }
        break;
    case 19:
        if (READS(text, "if-unmodified-since"))
            return take_once(&request->if_unmodified_since, value);
        break;
    }
    return 1;
}

/* Up to and with the empty line. Returns as parse_request_line. */
static inline int parse_fields(const char **cursor, const char *end, struct http_request *request,
                               struct framing *framing)
{
    const char *at = *cursor;
    for (;;) {
        const char *name = at;
        at = skip(at, end, TOKEN);
        if (at == end)
            return HTTP_INCOMPLETE;
        if (at == name && *at == '\r') {
            *cursor = at;
            return take_line_end(cursor, end);
        }
        /* Also where a folded line begins with a blank, and where a blank comes before the colon. */
        if (at == name || *at != ':')
            return -400;
        struct slice field_name = {name, (size_t)(at - name)};
        at++;

        while (at < end && field_is_blank(*at))
            at++;
        const char *value = at;
        while ((at = find_control(at, end)) < end && *at == '\t')
            at++;
        const char *value_end = at;
        int status = take_line_end(&at, end);
        if (status <= 0)
            return status;
        while (value_end > value && field_is_blank(value_end[-1]))
            value_end--;
        status = take_field(request, framing, field_name, (struct slice){value, (size_t)(value_end - value)});
        if (status < 0)
            return status;
    }
}

/* Returns 1 or minus a status. */
static inline int judge(struct http_request *request, const struct framing *framing, struct slice authority)
{
    if (request->minor == 1 && request->host.data == NULL)
        return -400;
    if (framing->transfer_encoding && (framing->content_length || request->minor == 0))
        return -400;
    if (framing->transfer_encoding && !request->chunked)
        return -501;
    if (authority.data != NULL)
        request->host = authority; /* RFC 9112, 3.2.2: then the Host field counts for nothing */
    request->keep_alive = !framing->close && (request->minor == 1 || framing->keep_alive);
    request->has_body = request->content_length > 0 || request->chunked;
    if (request->minor == 0)
        request->expects_continue = request->expects_other = false;
    return 1;
}

int http_request_parse(const char *data, size_t length, const struct http_limits *limits,
                       struct http_request *ret_request)
{
    /* What lies beyond a limit is never looked at: an error there must not hide that the limit was passed. */
    size_t head_max = limits->head < INT_MAX ? limits->head : INT_MAX;
    bool head_full = length >= head_max;
    const char *at = data, *end = data + (head_full ? head_max : length);

    *ret_request = (struct http_request){.method = HTTP_OTHER};

    for (unsigned empty_lines = 0; at < end && *at == '\r'; empty_lines++) {
        if (empty_lines == LEADING_EMPTY_LINES_MAX)
            return -400;
        int status = take_line_end(&at, end);
        if (status < 0)
            return status;
        if (status == HTTP_INCOMPLETE)
            return head_full ? -431 : HTTP_INCOMPLETE;
    }

    size_t rest = (size_t)(end - at);
    bool line_full = rest >= 2 && rest - 2 >= limits->line;
    struct slice authority = {NULL, 0};
    int status = parse_request_line(&at, line_full ? at + limits->line + 2 : end, ret_request, &authority);
    if (status == HTTP_INCOMPLETE)
        return line_full || head_full ? -414 : HTTP_INCOMPLETE;
    if (status < 0)
        return status;

    struct framing framing = {0};
    status = parse_fields(&at, end, ret_request, &framing);
    if (status == HTTP_INCOMPLETE)
        return head_full ? -431 : HTTP_INCOMPLETE;
    if (status < 0)
        return status;

    status = judge(ret_request, &framing, authority);
    return status < 0 ? status : (int)(at - data);
}
