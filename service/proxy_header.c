/* SPDX-License-Identifier: MIT
 *
 * Read from front to back by functions that take what they expect and stop at the first byte that cannot be right, or
 * where the bytes end. So the answer does not depend on how a header was cut into packets, and who sends something else
 * is told at once. The fuzzer holds the parser to that.
 */
#include "service/proxy_header.h"
#include "base/ipv6.h"
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>

#define NO_HEADER "no PROXY header at the start of the connection"
#define WRONG "the PROXY header is not right: "

#define V2_START 16   /* signature, version and command, family and transport, length */
#define V2_UNIX 108   /* bytes of a Unix address */
#define V2_PROXY 0x21 /* version 2, PROXY */
#define V2_LOCAL 0x20
#define TLV_START 3 /* type and length */
#define TLV_CRC32C 0x03
#define TLV_UNIQUE_ID 0x05
#define TLV_SSL 0x20
#define SSL_START 5 /* which certificates there were, and whether one was verified */

static const char signature[12] = "\r\n\r\n\0\r\nQUIT\n";

_Static_assert(sizeof((struct sockaddr_un *)0)->sun_path == V2_UNIX, "a Unix address has the size that v2 gives it");
_Static_assert(PROXY_HEADER_WRITE_MAX == V2_START + 2 * V2_UNIX, "room for the longest header");

/* What has come and is not yet taken. The functions that take return 1, -EAGAIN (it ended too early) or -EPROTO, and
 * have said why. */
struct input {
    const uint8_t *at, *end;
    const char *why;
};

static size_t bytes_left(const struct input *input)
{
    return (size_t)(input->end - input->at);
}

static int refuse(struct input *input, const char *why)
{
    input->why = why;
    return -EPROTO;
}

static int take_text(struct input *input, const char *text, size_t length, const char *why)
{
    for (size_t i = 0; i < length; i++, input->at++) {
        if (input->at == input->end)
            return -EAGAIN;
        if (*input->at != (uint8_t)text[i])
            return refuse(input, why);
    }
    return 1;
}

#define TAKE(input, literal, why) take_text(input, literal, sizeof(literal) - 1, why)

/* ---- Version 1 ---------------------------------------------------------------------------------------------- */

static bool is_digit(uint8_t byte)
{
    return byte >= '0' && byte <= '9';
}

static int hex_value(uint8_t byte)
{
    if (is_digit(byte))
        return byte - '0';
    uint8_t lower = byte | 0x20;
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

/* A decimal number up to max, without leading zeros. It ends before the first byte that is no digit, which must have
 * come. */
static int take_decimal(struct input *input, unsigned max, unsigned *ret_value, const char *why)
{
    const uint8_t *first = input->at;
    unsigned value = 0;
    for (;; input->at++) {
        if (input->at == input->end)
            return -EAGAIN;
        if (!is_digit(*input->at))
            break;
        if (input->at > first && value == 0)
            return refuse(input, why);
        value = value * 10 + (unsigned)(*input->at - '0');
        if (value > max)
            return refuse(input, why);
    }
    if (input->at == first)
        return refuse(input, why);
    *ret_value = value;
    return 1;
}

/* Up to its last digit, and the byte behind it has come. */
static int take_ipv4(struct input *input, uint8_t address[4], const char *why)
{
    for (unsigned i = 0; i < 4; i++) {
        unsigned value = 0;
        int r = i > 0 ? TAKE(input, ".", why) : 1;
        if (r > 0)
            r = take_decimal(input, 255, &value, why);
        if (r < 0)
            return r;
        address[i] = (uint8_t)value;
    }
    return 1;
}

/* As RFC 4291, 2.2 writes them: groups, of which "::" replaces one or more, the last two perhaps in dotted decimal. The
 * gap counts as a group (it holds one at least), so that what cannot become 8 is known early. */
static int take_ipv6(struct input *input, uint8_t address[16])
{
    static const char why[] = WRONG "TCP6 needs two IPv6 addresses";
    uint8_t bytes[16] = {0};
    unsigned count = 0, gap = 0; /* groups before the gap, + 1 */
    for (;;) {
        if (input->at == input->end)
            return -EAGAIN;
        /* At the start of a group, or at a colon which makes the one before it, if there is one, a gap. */
        if (*input->at == ':') {
            if (gap != 0)
                return refuse(input, why);
            gap = count + 1;
            input->at++;
            if (count == 0) { /* it is written by two of its own */
                int r = TAKE(input, ":", why);
                if (r < 0)
                    return r;
            }
            if (count == 7) /* it is the last group, as nothing has room behind it */
                break;
            if (input->at == input->end)
                return -EAGAIN;
            if (hex_value(*input->at) < 0) /* it is at the end */
                break;
        }

        const uint8_t *group = input->at;
        unsigned value = 0;
        for (;; input->at++) {
            if (input->at == input->end)
                return -EAGAIN;
            int digit = hex_value(*input->at);
            if (digit < 0)
                break;
            if (input->at - group == 4)
                return refuse(input, why);
            value = value << 4 | (unsigned)digit;
        }
        if (input->at == group)
            return refuse(input, why);

        unsigned groups = count + (gap != 0);
        if (*input->at == '.') {
            if (gap != 0 ? groups > 6 : groups != 6)
                return refuse(input, why);
            input->at = group;
            int r = take_ipv4(input, bytes + (size_t)2 * count, why);
            if (r < 0)
                return r;
            count += 2;
            break;
        }
        bytes[2 * count] = (uint8_t)(value >> 8);
        bytes[2 * count + 1] = (uint8_t)value;
        count++;
        groups++;
        if (*input->at != ':' || groups == 8)
            break;
        input->at++;
    }
    if (gap == 0 && count != 8)
        return refuse(input, why);

    size_t before = gap != 0 ? (size_t)2 * (gap - 1) : 16, behind = (size_t)2 * count - before;
    memset(address, 0, 16);
    if (gap == 0) {
        memcpy(address, bytes, 16);
    } else {
        memcpy(address, bytes, before);
        memcpy(address + 16 - behind, bytes + before, behind);
    }
    return 1;
}

static int take_v1_address(struct input *input, sa_family_t family, struct sockaddr_storage *address)
{
    address->ss_family = family;
    if (family == AF_INET6)
        return take_ipv6(input, ((struct sockaddr_in6 *)address)->sin6_addr.s6_addr);
    uint8_t bytes[4];
    int r = take_ipv4(input, bytes, WRONG "TCP4 needs two IPv4 addresses");
    if (r > 0)
        memcpy(&((struct sockaddr_in *)address)->sin_addr, bytes, 4);
    return r;
}

/* sin_port and sin6_port have the same place. */
_Static_assert(offsetof(struct sockaddr_in, sin_port) == offsetof(struct sockaddr_in6, sin6_port), "ports differ");

static int take_v1_port(struct input *input, struct sockaddr_storage *address)
{
    unsigned port;
    int r = take_decimal(input, 65535, &port, WRONG "ports are 0 to 65535, without leading zeros");
    if (r > 0)
        ((struct sockaddr_in *)address)->sin_port = htobe16((uint16_t)port);
    return r;
}

static int take_v1_ends(struct input *input, sa_family_t family, struct proxy_header *header)
{
    static const char space[] = WRONG "address and address and port and port have a single "
                                      "space between them";
    int r = take_v1_address(input, family, &header->source);
    if (r > 0)
        r = TAKE(input, " ", space);
    if (r > 0)
        r = take_v1_address(input, family, &header->destination);
    if (r > 0)
        r = TAKE(input, " ", space);
    if (r > 0)
        r = take_v1_port(input, &header->source);
    if (r > 0)
        r = TAKE(input, " ", space);
    if (r > 0)
        r = take_v1_port(input, &header->destination);
    if (r > 0)
        r = TAKE(input, "\r\n", WRONG "CRLF must follow the second port");
    return r;
}

static int take_v1_unknown(struct input *input, const char *why)
{
    int r = TAKE(input, "UNKNOWN", why);
    if (r < 0)
        return r;
    if (input->at < input->end && *input->at != ' ' && *input->at != '\r')
        return refuse(input, WRONG "UNKNOWN ends with a space or CRLF");
    while (input->at < input->end && *input->at != '\r') {
        if (*input->at == '\n')
            return refuse(input, WRONG "its line ends with LF instead of CRLF");
        input->at++;
    }
    return TAKE(input, "\r\n", WRONG "its line ends with CR instead of CRLF");
}

static int take_v1(struct input *input, struct proxy_header *header)
{
    static const char protocol[] = WRONG "TCP4, TCP6 or UNKNOWN must follow PROXY";
    int r = TAKE(input, "PROXY ", NO_HEADER);
    if (r < 0)
        return r;
    if (input->at < input->end && *input->at == 'U') {
        header->local = true;
        return take_v1_unknown(input, protocol);
    }
    r = TAKE(input, "TCP", protocol);
    if (r < 0)
        return r;
    if (input->at == input->end)
        return -EAGAIN;
    bool ipv6 = *input->at == '6';
    r = ipv6 ? TAKE(input, "6 ", protocol) : TAKE(input, "4 ", protocol);
    return r > 0 ? take_v1_ends(input, ipv6 ? AF_INET6 : AF_INET, header) : r;
}

static int take_v1_line(struct input *input, struct proxy_header *header)
{
    header->version = PROXY_HEADER_V1;
    bool full = bytes_left(input) >= PROXY_HEADER_V1_MAX;
    if (full)
        input->end = input->at + PROXY_HEADER_V1_MAX;
    int r = take_v1(input, header);
    return r == -EAGAIN && full ? refuse(input, WRONG "its line has more than 107 bytes") : r;
}

/* ---- Version 2 ---------------------------------------------------------------------------------------------- */

/* CRC32C, as RFC 4960 (appendix B) has it: the polynomial 0x1EDC6F41 (Castagnoli), here with its bits reversed, begun
 * with all ones and complemented. Bit by bit: it is for some dozens of bytes once per connection, if at all. */
static uint32_t crc32c(uint32_t crc, const uint8_t *data, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        crc ^= data[i];
        for (unsigned bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (UINT32_C(0x82F63B78) & (0 - (crc & 1)));
    }
    return crc;
}

static uint16_t read_u16(const uint8_t *from)
{
    uint16_t value;
    memcpy(&value, from, sizeof value);
    return be16toh(value);
}

static uint32_t read_u32(const uint8_t *from)
{
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return be32toh(value);
}

/* Take extensions, so many bytes altogether. The value of a checksum comes to *ret_checksum. */
static int take_extensions(struct input *input, size_t size, const uint8_t **ret_checksum)
{
    static const char beyond[] = WRONG "an extension (TLV) reaches beyond its end";
    while (size > 0) {
        if (size < TLV_START)
            return refuse(input, beyond);
        if (bytes_left(input) < TLV_START)
            return -EAGAIN;
        uint8_t type = input->at[0];
        size_t length = read_u16(input->at + 1);
        input->at += TLV_START;
        size -= TLV_START;
        if (length > size)
            return refuse(input, beyond);
        size -= length;

        /* Within SSL, types have other meanings: ret_checksum is NULL there. */
        if (ret_checksum != NULL && type == TLV_CRC32C) {
            if (length != 4 || *ret_checksum != NULL)
                return refuse(input, WRONG "a checksum (CRC32C) has 4 bytes, and is there once");
            *ret_checksum = input->at;
        } else if (ret_checksum != NULL && type == TLV_UNIQUE_ID) {
            if (length > 128)
                return refuse(input, WRONG "a unique ID has at most 128 bytes");
        } else if (ret_checksum != NULL && type == TLV_SSL) {
            if (length < SSL_START)
                return refuse(input, WRONG "its SSL extension is too short");
            if (bytes_left(input) < SSL_START)
                return -EAGAIN;
            input->at += SSL_START;
            int r = take_extensions(input, length - SSL_START, NULL);
            if (r < 0)
                return r;
            continue;
        }
        if (bytes_left(input) < length)
            return -EAGAIN;
        input->at += length;
    }
    return 1;
}

/* Family and transport of PROXY. *ret_addresses: the bytes that its addresses take. */
static int judge_v2_protocol(struct input *input, uint8_t protocol, size_t *ret_addresses)
{
    switch (protocol) {
    case 0x00:
        *ret_addresses = 0;
        return 1;
    case 0x11:
        *ret_addresses = 2 * (4 + 2);
        return 1;
    case 0x21:
        *ret_addresses = 2 * (16 + 2);
        return 1;
    case 0x31:
        *ret_addresses = (size_t)2 * V2_UNIX;
        return 1;
    case 0x12:
    case 0x22:
        return refuse(input, "the PROXY header is about UDP, and this is a TCP connection");
    case 0x32:
        return refuse(input, "the PROXY header is about Unix datagrams, and this is a stream");
    default:
        return refuse(input, WRONG "no such address family and transport");
    }
}

/* port: not looked at for a Unix address */
static void read_v2_address(const uint8_t *from, const uint8_t *port, sa_family_t family,
                            struct sockaddr_storage *address)
{
    address->ss_family = family;
    if (family == AF_UNIX) {
        memcpy(((struct sockaddr_un *)address)->sun_path, from, V2_UNIX);
        return;
    }
    if (family == AF_INET6)
        memcpy(&((struct sockaddr_in6 *)address)->sin6_addr, from, 16);
    else
        memcpy(&((struct sockaddr_in *)address)->sin_addr, from, 4);
    memcpy(&((struct sockaddr_in *)address)->sin_port, port, 2);
}

static void read_v2_addresses(const uint8_t *from, uint8_t protocol, struct proxy_header *header)
{
    sa_family_t family = protocol == 0x11 ? AF_INET : protocol == 0x21 ? AF_INET6 : AF_UNIX;
    size_t size = family == AF_INET ? 4 : family == AF_INET6 ? 16 : V2_UNIX;
    read_v2_address(from, from + 2 * size, family, &header->source);
    read_v2_address(from + size, from + 2 * size + 2, family, &header->destination);
}

static bool checksum_is_right(const uint8_t *first, const uint8_t *last, const uint8_t *checksum)
{
    static const uint8_t zero[4];
    uint32_t crc = crc32c(UINT32_MAX, first, (size_t)(checksum - first));
    crc = crc32c(crc, zero, sizeof zero);
    crc = crc32c(crc, checksum + 4, (size_t)(last - checksum - 4));
    return ~crc == read_u32(checksum);
}

static int take_v2(struct input *input, size_t max, struct proxy_header *header)
{
    const uint8_t *first = input->at;
    header->version = PROXY_HEADER_V2;
    int r = take_text(input, signature, sizeof signature, NO_HEADER);
    if (r < 0)
        return r;

    if (input->at == input->end)
        return -EAGAIN;
    uint8_t command = *input->at++;
    if (command >> 4 != 2)
        return refuse(input, "the PROXY header has a version other than 1 and 2");
    if (command != V2_PROXY && command != V2_LOCAL)
        return refuse(input, WRONG "its command is neither PROXY nor LOCAL");

    if (input->at == input->end)
        return -EAGAIN;
    uint8_t protocol = *input->at++;
    size_t addresses = 0;
    r = command == V2_PROXY ? judge_v2_protocol(input, protocol, &addresses) : 1;
    if (r < 0)
        return r;
    header->local = addresses == 0;

    if (bytes_left(input) < 2)
        return -EAGAIN;
    size_t length = read_u16(input->at);
    input->at += 2;
    if (length < addresses)
        return refuse(input, WRONG "it is too short for its addresses");
    if (V2_START + length > max)
        return -EMSGSIZE;

    if (header->local) {
        if (bytes_left(input) < length)
            return -EAGAIN;
        input->at += length;
        return 1;
    }
    const uint8_t *block = input->at, *checksum = NULL;
    if (bytes_left(input) < addresses)
        return -EAGAIN;
    input->at += addresses;
    r = take_extensions(input, length - addresses, &checksum);
    if (r < 0)
        return r;
    if (checksum != NULL && !checksum_is_right(first, input->at, checksum))
        return refuse(input, WRONG "its checksum (CRC32C) is another");
    read_v2_addresses(block, protocol, header);
    return 1;
}

ssize_t proxy_header_parse(const char *data, size_t length, size_t max, struct proxy_header *ret_header,
                           const char **ret_why)
{
    /* What lies beyond the limit is never looked at, as it may not have come another time. */
    bool full = length >= max;
    struct input input = {.at = (const uint8_t *)data, .end = (const uint8_t *)data + (full ? max : length)};
    struct proxy_header header = {0};

    int r = -EAGAIN;
    if (input.at < input.end && *input.at == (uint8_t)signature[0])
        r = take_v2(&input, max, &header);
    else if (input.at < input.end)
        r = take_v1_line(&input, &header);
    if (r == -EAGAIN)
        return full ? -EMSGSIZE : -EAGAIN;
    if (r == -EPROTO)
        *ret_why = input.why;
    if (r < 0)
        return r;
    *ret_header = header;
    return input.at - (const uint8_t *)data;
}

/* ---- Writing ------------------------------------------------------------------------------------------------ */

static bool is_of(const struct sockaddr *address, socklen_t length, sa_family_t family, size_t least)
{
    return address != NULL && length >= least && address->sa_family == family;
}

/* An IPv4 or IPv6 address as IPv6; false for other families. */
static bool to_ipv6(const struct sockaddr *address, socklen_t length, struct in6_addr *ret_address, in_port_t *ret_port)
{
    if (is_of(address, length, AF_INET6, sizeof(struct sockaddr_in6))) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)(const void *)address;
        *ret_address = v6->sin6_addr;
        *ret_port = v6->sin6_port;
        return true;
    }
    if (!is_of(address, length, AF_INET, sizeof(struct sockaddr_in)))
        return false;
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)(const void *)address;
    *ret_address = ipv6_mapped(&v4->sin_addr);
    *ret_port = v4->sin_port;
    return true;
}

/* IPv4 as the last 4 bytes of an address, or IPv6 in groups: the specification has no dotted decimal there, which
 * inet_ntop would write for IPv4 within IPv6. */
static void format_address(const struct in6_addr *address, bool as_ipv4, char text[INET6_ADDRSTRLEN])
{
    if (as_ipv4) {
        inet_ntop(AF_INET, &address->s6_addr[12], text, INET6_ADDRSTRLEN);
        return;
    }
    inet_ntop(AF_INET6, address, text, INET6_ADDRSTRLEN);
    if (strchr(text, '.') != NULL)
        snprintf(text, INET6_ADDRSTRLEN, "::%s%x:%x", address->s6_addr[10] == 0xff ? "ffff:" : "",
                 read_u16(&address->s6_addr[12]), read_u16(&address->s6_addr[14]));
}

#define UNIX_PATH offsetof(struct sockaddr_un, sun_path)

/* Returns where the next one goes. */
static char *write_unix(char *to, const struct sockaddr *address, socklen_t length)
{
    size_t path = length < sizeof(struct sockaddr_un) ? length - UNIX_PATH : V2_UNIX;
    memcpy(to, ((const struct sockaddr_un *)(const void *)address)->sun_path, path);
    memset(to + path, 0, V2_UNIX - path);
    return to + V2_UNIX;
}

size_t proxy_header_write(enum proxy_header_version version, const struct sockaddr *source, socklen_t source_length,
                          const struct sockaddr *destination, socklen_t destination_length,
                          char buffer[PROXY_HEADER_WRITE_MAX])
{
    struct in6_addr addresses[2];
    in_port_t ports[2];
    bool internet = to_ipv6(source, source_length, &addresses[0], &ports[0]) &&
                    to_ipv6(destination, destination_length, &addresses[1], &ports[1]);
    bool ipv4 = internet && IN6_IS_ADDR_V4MAPPED(&addresses[0]) && IN6_IS_ADDR_V4MAPPED(&addresses[1]);

    if (version == PROXY_HEADER_NONE)
        return 0;
    if (version == PROXY_HEADER_V1) {
        static const char unknown[] = "PROXY UNKNOWN\r\n";
        if (!internet) {
            memcpy(buffer, unknown, sizeof unknown - 1);
            return sizeof unknown - 1;
        }
        char from[INET6_ADDRSTRLEN], to[INET6_ADDRSTRLEN];
        format_address(&addresses[0], ipv4, from);
        format_address(&addresses[1], ipv4, to);
        return (size_t)snprintf(buffer, PROXY_HEADER_WRITE_MAX, "PROXY %s %s %s %u %u\r\n", ipv4 ? "TCP4" : "TCP6",
                                from, to, be16toh(ports[0]), be16toh(ports[1]));
    }

    bool unix_stream =
        is_of(source, source_length, AF_UNIX, UNIX_PATH) && is_of(destination, destination_length, AF_UNIX, UNIX_PATH);
    char *at = buffer + V2_START;
    if (internet) {
        size_t skipped = ipv4 ? 12 : 0;
        for (unsigned i = 0; i < 2; i++, at += 16 - skipped)
            memcpy(at, &addresses[i].s6_addr[skipped], 16 - skipped);
        memcpy(at, ports, sizeof ports);
        at += sizeof ports;
    } else if (unix_stream) {
        at = write_unix(at, source, source_length);
        at = write_unix(at, destination, destination_length);
    }
    memcpy(buffer, signature, sizeof signature);
    buffer[12] = internet || unix_stream ? V2_PROXY : V2_LOCAL;
    buffer[13] = ipv4 ? 0x11 : internet ? 0x21 : unix_stream ? 0x31 : 0x00;
    uint16_t length = htobe16((uint16_t)(at - buffer - V2_START));
    memcpy(buffer + 14, &length, sizeof length);
    return (size_t)(at - buffer);
}
