/* SPDX-License-Identifier: MIT
 *
 * One pass over the message, which is cut into records at any byte (RFC 8446, 5.1): take() goes on from fragment to
 * fragment, so that nothing is put together and nothing allocated. It ends where the bytes end or where something
 * cannot be right, and the next call begins anew.
 *
 * Lengths within lengths: each function is told what is left of the vector that it reads from, and takes from that.
 */
#include "proxy/client_hello.h"
#include <arpa/inet.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define RECORD_HEADER 5
#define RECORD_HANDSHAKE 22
#define RECORD_MAX (1u << 14) /* RFC 8446, 5.1, as all before it */
#define MESSAGE_HEADER 4
#define CLIENT_HELLO 1
#define EXTENSION_SERVER_NAME 0
#define EXTENSION_ALPN 16
#define HOST_NAME 0
#define SESSION_ID_MAX 32

struct reader {
    const uint8_t *at, *end; /* of what has come */
    size_t fragment;         /* bytes of the record's not yet taken */
    int status;              /* when something could not be taken: 0, -EPROTO or -EMSGSIZE */
    const char *why;
};

static bool stop(struct reader *reader, int status, const char *why)
{
    reader->status = status;
    reader->why = why;
    return false;
}

static bool wait_for_more(struct reader *reader)
{
    return stop(reader, 0, NULL);
}

static bool refuse(struct reader *reader, const char *why)
{
    return stop(reader, -EPROTO, why);
}

/* ---- Bytes -------------------------------------------------------------------------------------------------- */

/* Who else may have come to this door. The longest that data begins with, as far as it has come. */
static const char *guess_protocol(const uint8_t *data, size_t length)
{
    static const char http[] = "this is plain HTTP, not TLS", header[] =
                                                                  "this is a PROXY header; without accept-proxy, "
                                                                  "TLS is expected at once";
    static const struct {
        const char *start;
        size_t length;
        const char *why;
    } known[] = {
#define STARTS(text, why) {text, sizeof(text) - 1, why}
        STARTS("GET ", http),
        STARTS("HEAD ", http),
        STARTS("POST ", http),
        STARTS("PUT ", http),
        STARTS("DELETE ", http),
        STARTS("OPTIONS ", http),
        STARTS("PATCH ", http),
        STARTS("CONNECT ", http),
        STARTS("TRACE ", http),
        STARTS("PRI * HTTP/2.0", http),
        STARTS("PROXY ", header),
        STARTS("\r\n\r\n\0\r\nQUIT\n", header),
        STARTS("SSH-", "this is SSH, not TLS"),
        STARTS("\0\0\0\x08\x04\xd2\x16\x2f", "a PostgreSQL client asks whether it may begin TLS; only one told "
                                             "sslnegotiation=direct (libpq 17) begins by itself"),
#undef STARTS
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (length >= known[i].length && memcmp(data, known[i].start, known[i].length) == 0)
            return known[i].why;
    /* A record of SSL 2: a length of 15 bits with the highest bit set, then CLIENT-HELLO (RFC 5246, E.2). */
    if (length >= 3 && (data[0] & 0x80) != 0 && data[2] == CLIENT_HELLO)
        return "this is a ClientHello of SSL 2, which is forbidden (RFC 6176)";
    return "this is not TLS";
}

static bool next_record(struct reader *reader)
{
    const uint8_t *header = reader->at;
    size_t has = (size_t)(reader->end - header);
    if (has > 0 && header[0] != RECORD_HANDSHAKE)
        return refuse(reader, "a TLS record that is not handshake comes before the ClientHello ends");
    if (has > 1 && header[1] != 3)
        return refuse(reader, "a TLS record has a version other than 3.x");
    if (has < RECORD_HEADER)
        return wait_for_more(reader);
    reader->fragment = (size_t)header[3] << 8 | header[4];
    if (reader->fragment == 0)
        return refuse(reader, "a TLS record is empty");
    if (reader->fragment > RECORD_MAX)
        return refuse(reader, "a TLS record has more than 16 KiB");
    reader->at += RECORD_HEADER;
    return true;
}

/* Take so many bytes of a vector that has *left; to: where to put them, or NULL. */
static bool take(struct reader *reader, size_t *left, void *to, size_t count)
{
    if (count > *left)
        return refuse(reader, "the ClientHello is malformed: a length reaches beyond what it is in");
    *left -= count;
    for (uint8_t *next = to; count > 0;) {
        if (reader->fragment == 0 && !next_record(reader))
            return false;
        size_t some = (size_t)(reader->end - reader->at);
        if (some == 0)
            return wait_for_more(reader);
        if (some > count)
            some = count;
        if (some > reader->fragment)
            some = reader->fragment;
        if (next != NULL) {
            memcpy(next, reader->at, some);
            next += some;
        }
        reader->at += some;
        reader->fragment -= some;
        count -= some;
    }
    return true;
}

/* A number of so many bytes. */
static bool take_number(struct reader *reader, size_t *left, size_t size, size_t *ret_number)
{
    uint8_t bytes[3];
    if (!take(reader, left, bytes, size))
        return false;
    size_t number = 0;
    for (size_t i = 0; i < size; i++)
        number = number << 8 | bytes[i];
    *ret_number = number;
    return true;
}

/* The length of a vector, in so many bytes, which is then taken out of *left and is the caller's to read. */
static bool take_vector(struct reader *reader, size_t *left, size_t size, size_t *ret_vector)
{
    size_t vector;
    if (!take_number(reader, left, size, &vector))
        return false;
    if (vector > *left)
        return refuse(reader, "the ClientHello is malformed: a length reaches beyond what it is in");
    *left -= vector;
    *ret_vector = vector;
    return true;
}

static bool skip(struct reader *reader, size_t vector)
{
    return take(reader, &vector, NULL, vector);
}

/* ---- Extensions --------------------------------------------------------------------------------------------- */

static bool is_address(const char *name)
{
    uint8_t address[16];
    return inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1;
}

static bool judge_name(struct reader *reader, char *name, size_t length)
{
    if (memchr(name, '\0', length) != NULL)
        return refuse(reader, "the server name (SNI) has a NUL byte");
    if (name[length - 1] == '.') /* RFC 6066 has none, DNS has one, and both mean the same name */
        length--;
    name[length] = '\0';
    if (is_address(name)) {
        memset(name, 0, length);
        return true;
    }
    char before = '.';
    for (size_t i = 0; i < length; i++) {
        char byte = name[i];
        if (byte >= 'A' && byte <= 'Z')
            name[i] = (char)(byte | 0x20);
        else if (!(byte >= 'a' && byte <= 'z') && !(byte >= '0' && byte <= '9') && byte != '-' && byte != '_' &&
                 byte != '.')
            return refuse(reader, "the server name (SNI) has a byte that no host name has");
        if (byte == '.' && before == '.')
            return refuse(reader, "the server name (SNI) has an empty part");
        before = byte;
    }
    if (before == '.')
        return refuse(reader, "the server name (SNI) has an empty part");
    return true;
}

/* RFC 6066, 3: a list of names, one of each type at most; host_name is the only type there is, and others will begin
 * with their length likewise. */
static bool take_server_name(struct reader *reader, size_t extension, struct client_hello *hello)
{
    size_t list;
    if (!take_vector(reader, &extension, 2, &list))
        return false;
    if (extension != 0 || list == 0)
        return refuse(reader, "the ClientHello is malformed: its list of server names (SNI)");
    bool found = false;
    while (list > 0) {
        size_t type, name;
        if (!take_number(reader, &list, 1, &type) || !take_vector(reader, &list, 2, &name))
            return false;
        if (type != HOST_NAME) {
            if (!skip(reader, name))
                return false;
            continue;
        }
        if (found)
            return refuse(reader, "the ClientHello has two server names (SNI)");
        found = true;
        if (name == 0)
            return refuse(reader, "the server name (SNI) is empty");
        size_t length = name;
        if (length >= sizeof hello->sni)
            return refuse(reader, "the server name (SNI) has more than 255 bytes");
        if (!take(reader, &name, hello->sni, length) || !judge_name(reader, hello->sni, length))
            return false;
    }
    return true;
}

/* RFC 7301, 3.1 */
static bool take_alpn(struct reader *reader, size_t extension, struct client_hello *hello)
{
    size_t list;
    if (!take_vector(reader, &extension, 2, &list))
        return false;
    if (extension != 0 || list == 0)
        return refuse(reader, "the ClientHello is malformed: its list of protocols (ALPN)");
    bool full = false;
    while (list > 0) {
        size_t length;
        if (!take_vector(reader, &list, 1, &length))
            return false;
        if (length == 0)
            return refuse(reader, "the ClientHello is malformed: a protocol (ALPN) without a name");
        full = full || hello->alpn_length + 1 + length > sizeof hello->alpn;
        size_t left = length;
        char *to = full ? NULL : hello->alpn + hello->alpn_length + 1;
        if (!take(reader, &left, to, length))
            return false;
        if (!full) {
            to[-1] = (char)length;
            hello->alpn_length += 1 + length;
        }
    }
    return true;
}

static bool take_extensions(struct reader *reader, size_t extensions, struct client_hello *hello)
{
    uint64_t seen[(1u << 16) / 64] = {0};
    while (extensions > 0) {
        size_t type, extension;
        if (!take_number(reader, &extensions, 2, &type))
            return false;
        uint64_t bit = UINT64_C(1) << (type % 64);
        if ((seen[type / 64] & bit) != 0)
            return refuse(reader, "the ClientHello has the same extension twice");
        seen[type / 64] |= bit;
        if (!take_vector(reader, &extensions, 2, &extension))
            return false;
        bool taken = type == EXTENSION_SERVER_NAME ? take_server_name(reader, extension, hello)
                     : type == EXTENSION_ALPN      ? take_alpn(reader, extension, hello)
                                                   : skip(reader, extension);
        if (!taken)
            return false;
    }
    return true;
}

/* ---- The message -------------------------------------------------------------------------------------------- */

/* RFC 8446, 4.1.2, and 5246, 7.4.1.2, by which there may be no extensions at all. */
static bool take_body(struct reader *reader, size_t body, struct client_hello *hello)
{
    size_t version, vector;
    if (!take_number(reader, &body, 2, &version))
        return false;
    if (version < 0x0300)
        return refuse(reader, "the ClientHello is malformed: it asks for a version before SSL 3");
    if (!take(reader, &body, NULL, 32)) /* random */
        return false;
    if (!take_vector(reader, &body, 1, &vector))
        return false;
    if (vector > SESSION_ID_MAX)
        return refuse(reader, "the ClientHello is malformed: a session identifier of more than 32 bytes");
    if (!skip(reader, vector) || !take_vector(reader, &body, 2, &vector))
        return false;
    if (vector == 0 || vector % 2 != 0)
        return refuse(reader, "the ClientHello is malformed: its list of ciphers");
    if (!skip(reader, vector) || !take_vector(reader, &body, 1, &vector))
        return false;
    if (vector == 0)
        return refuse(reader, "the ClientHello is malformed: no compression method, not even none");
    if (!skip(reader, vector))
        return false;
    if (body == 0)
        return true;
    if (!take_vector(reader, &body, 2, &vector))
        return false;
    if (body != 0)
        return refuse(reader, "the ClientHello is malformed: bytes behind its extensions");
    return take_extensions(reader, vector, hello);
}

static bool take_hello(struct reader *reader, size_t max, struct client_hello *hello)
{
    size_t header = MESSAGE_HEADER, type, body;
    if (reader->at < reader->end && reader->at[0] != RECORD_HANDSHAKE) {
        bool tls = reader->at[0] >= 20 && reader->at[0] <= 23; /* RFC 8446, B.1 */
        return refuse(reader, tls ? "this is TLS, but does not begin with a ClientHello"
                                  : guess_protocol(reader->at, (size_t)(reader->end - reader->at)));
    }
    if (!take_number(reader, &header, 1, &type))
        return false;
    if (type != CLIENT_HELLO)
        return refuse(reader, "this is TLS, but does not begin with a ClientHello");
    if (!take_number(reader, &header, 3, &body))
        return false;
    if (RECORD_HEADER + MESSAGE_HEADER + body > max)
        return stop(reader, -EMSGSIZE, NULL);
    return take_body(reader, body, hello);
}

int client_hello_parse(const char *data, size_t length, size_t max, struct client_hello *ret_hello,
                       const char **ret_why)
{
    /* What lies beyond the limit is never looked at, as it may not have come another time. */
    bool full = length >= max;
    struct reader reader = {.at = (const uint8_t *)data, .end = (const uint8_t *)data + (full ? max : length)};
    struct client_hello hello = {.sni = ""};

    if (take_hello(&reader, max, &hello)) {
        *ret_hello = hello;
        return 1;
    }
    if (reader.status == 0 && full)
        return -EMSGSIZE;
    if (reader.status == -EPROTO)
        *ret_why = reader.why;
    return reader.status;
}
