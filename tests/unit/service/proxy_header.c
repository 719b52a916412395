/* SPDX-License-Identifier: MIT */
#include "service/proxy_header.h"
#include "check.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <sys/un.h>
#include <time.h>

#define MAX 4096

static struct proxy_header header;
static const char *why;

/* Parses from memory of exactly this size, so that the address sanitizer sees a read beyond it. */
static ssize_t parse_to(const void *data, size_t length, size_t max)
{
    char *copy = malloc(length > 0 ? length : 1);
    memcpy(copy, data, length);
    why = NULL;
    memset(&header, 0x5a, sizeof header);
    ssize_t r = proxy_header_parse(copy, length, max, &header, &why);
    free(copy);
    return r;
}

static ssize_t parse_bytes(const void *data, size_t length)
{
    return parse_to(data, length, MAX);
}

static ssize_t parse(const char *text)
{
    return parse_bytes(text, strlen(text));
}

/* The whole is refused, every shorter beginning but this one is waited for, and this one refused already: it ends in
 * the first wrong byte. */
static void check_wrong_from(const char *text, size_t wrong)
{
    for (size_t length = 0; length <= strlen(text); length++) {
        ssize_t r = parse_bytes(text, length), want = length <= wrong ? -EAGAIN : -EPROTO;
        if (r != want)
            CHECK_FAIL("%zu bytes of \"%s\" give %zd, not %zd", length, text, r, want);
        CHECK((r == -EPROTO) == (why != NULL));
    }
}

static const char *host_of(const struct sockaddr_storage *address)
{
    static char text[2][INET6_ADDRSTRLEN];
    static unsigned turn;
    turn ^= 1;
    const void *bytes = address->ss_family == AF_INET6
                            ? (const void *)&((const struct sockaddr_in6 *)address)->sin6_addr
                            : &((const struct sockaddr_in *)address)->sin_addr;
    const char *result = inet_ntop(address->ss_family, bytes, text[turn], sizeof text[turn]);
    return result != NULL ? result : "none";
}

static unsigned port_of(const struct sockaddr_storage *address)
{
    return ntohs(((const struct sockaddr_in *)address)->sin_port);
}

static struct sockaddr_storage ipv4(const char *host, unsigned port)
{
    struct sockaddr_storage address = {.ss_family = AF_INET};
    CHECK(inet_pton(AF_INET, host, &((struct sockaddr_in *)&address)->sin_addr) == 1);
    ((struct sockaddr_in *)&address)->sin_port = htons((uint16_t)port);
    return address;
}

static struct sockaddr_storage ipv6(const char *host, unsigned port)
{
    struct sockaddr_storage address = {.ss_family = AF_INET6};
    CHECK(inet_pton(AF_INET6, host, &((struct sockaddr_in6 *)&address)->sin6_addr) == 1);
    ((struct sockaddr_in6 *)&address)->sin6_port = htons((uint16_t)port);
    return address;
}

static size_t write_to(char buffer[PROXY_HEADER_WRITE_MAX], enum proxy_header_version version,
                       const struct sockaddr_storage *source, const struct sockaddr_storage *destination)
{
    return proxy_header_write(version, (const struct sockaddr *)source, sizeof *source,
                              (const struct sockaddr *)destination, sizeof *destination, buffer);
}

static const char *written(enum proxy_header_version version, struct sockaddr_storage source,
                           struct sockaddr_storage destination)
{
    static char text[PROXY_HEADER_WRITE_MAX + 1];
    size_t length = write_to(text, version, &source, &destination);
    CHECK(length <= PROXY_HEADER_WRITE_MAX);
    text[length] = '\0';
    return text;
}

/* A header of version 2, built by hand. */
static struct {
    uint8_t bytes[2048];
    size_t length;
} v2;

static void v2_append(const void *data, size_t length)
{
    CHECK(v2.length + length <= sizeof v2.bytes);
    memcpy(v2.bytes + v2.length, data, length);
    v2.length += length;
    v2.bytes[14] = (uint8_t)((v2.length - 16) >> 8);
    v2.bytes[15] = (uint8_t)(v2.length - 16);
}

static void v2_begin(uint8_t command, uint8_t protocol)
{
    memset(&v2, 0, sizeof v2);
    memcpy(v2.bytes, "\r\n\r\n\0\r\nQUIT\n", 12);
    v2.bytes[12] = command;
    v2.bytes[13] = protocol;
    v2.length = 16;
}

static void v2_begin_ipv4(void)
{
    v2_begin(0x21, 0x11);
    v2_append("\x0a\x01\x02\x03\xc0\xa8\x00\x01\x30\x39\x01\xbb", 12); /* 10.1.2.3:12345 to 192.168.0.1:443 */
}

static void v2_extension(uint8_t type, const void *value, size_t length)
{
    uint8_t start[3] = {type, (uint8_t)(length >> 8), (uint8_t)length};
    v2_append(start, 3);
    v2_append(value, length);
}

static ssize_t v2_parse(void)
{
    return parse_bytes(v2.bytes, v2.length);
}

/* ---- Version 1 ---------------------------------------------------------------------------------------------- */

TEST("a v1 header of TCP over IPv4 tells both addresses and ports, and where it ends")
{
    const char *text = "PROXY TCP4 192.168.0.1 10.0.0.11 56324 443\r\nGET / HTTP/1.1\r\n";
    CHECK_EQ(parse(text), 44);
    CHECK_EQ(header.version, PROXY_HEADER_V1);
    CHECK(!header.local);
    CHECK_EQ(header.source.ss_family, AF_INET);
    CHECK_STR(host_of(&header.source), "192.168.0.1");
    CHECK_STR(host_of(&header.destination), "10.0.0.11");
    CHECK_EQ(port_of(&header.source), 56324);
    CHECK_EQ(port_of(&header.destination), 443);
}

TEST("the longest v1 headers, and ports of 0 and 65535, are read")
{
    CHECK_EQ(parse("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n"), 56);
    CHECK_EQ(port_of(&header.source), 65535);
    CHECK_EQ(parse("PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff "
                   "65535 65535\r\n"),
             104);
    CHECK_EQ(parse("PROXY TCP4 0.0.0.0 1.2.3.4 0 0\r\n"), 32);
    CHECK_EQ(port_of(&header.destination), 0);
}

TEST("IPv6 addresses are read in every form that RFC 4291 has, and as inet_pton reads them")
{
    static const char *const right[] = {"1:2:3:4:5:6:7:8",
                                        "::",
                                        "::1",
                                        "1::",
                                        "1::8",
                                        "1:2:3:4:5:6:7::",
                                        "::2:3:4:5:6:7:8",
                                        "1::3:4:5:6:7:8",
                                        "1:2:3::6:7:8",
                                        "FE80::aBcD",
                                        "0000::000f",
                                        "::ffff:1.2.3.4",
                                        "::1.2.3.4",
                                        "64:ff9b::1.2.3.4",
                                        "1:2:3:4:5:6:1.2.3.4",
                                        "1:2:3:4:5::1.2.3.4",
                                        "1::5:6:255.255.255.0"};
    for (size_t i = 0; i < sizeof right / sizeof right[0]; i++) {
        char text[160];
        snprintf(text, sizeof text, "PROXY TCP6 %s %s 1 2\r\n", right[i], right[i]);
        if (parse(text) != (ssize_t)strlen(text))
            CHECK_FAIL("\"%s\" is refused: %s", right[i], why);
        struct sockaddr_storage want = ipv6(right[i], 1);
        CHECK(memcmp(&header.source, &want, sizeof want) == 0);
        CHECK_EQ(parse_bytes(text, strlen(text) - 1), -EAGAIN);
    }
}

TEST("an address that is none is refused at the byte that makes it so")
{
    static const struct {
        const char *text;
        size_t wrong;
    } cases[] = {
        {"PROXY TCP4 1.2.3 ", 16},
        {"PROXY TCP4 1.2.3.4.", 18},
        {"PROXY TCP4 256.", 13},
        {"PROXY TCP4 1.02.", 14},
        {"PROXY TCP4 1..", 13},
        {"PROXY TCP4 .", 11},
        {"PROXY TCP4 a", 11},
        {"PROXY TCP4 ::1", 11},
        {"PROXY TCP4 1.2.3.4 5.6.7.8.", 26},
        {"PROXY TCP4  1.2.3.4", 11},
        {"PROXY TCP6 1.2.3.4", 12},
        {"PROXY TCP6 1:2:3:4:5:6:7:8:", 26},
        {"PROXY TCP6 1:2:3:4:5:6:7 ", 24},
        {"PROXY TCP6 1:2::3::", 18},
        {"PROXY TCP6 :::", 13},
        {"PROXY TCP6 :1", 12},
        {"PROXY TCP6 1: ", 13},
        {"PROXY TCP6 12345", 15},
        {"PROXY TCP6 g", 11},
        {"PROXY TCP6 1::2:3:4:5:6:7:8", 25},
        {"PROXY TCP6 1:2:3:4:5:6:7::8", 26},
        {"PROXY TCP6 ::%lo", 13},
        {"PROXY TCP6 1:2:3:4:5:6:7:1.", 26},
        {"PROXY TCP6 1:2:3:4:5::6:1.", 25},
        {"PROXY TCP6 1:1.", 14},
        {"PROXY TCP6 ::f.", 14},
        {"PROXY TCP6 ::1.2.3.256", 21},
        {"PROXY TCP6 [::1]", 11},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        check_wrong_from(cases[i].text, cases[i].wrong);
}

TEST("spaces, ports and the end of the line are as the specification has them, or refused at once")
{
    static const struct {
        const char *text;
        size_t wrong;
    } cases[] = {
        {"GET / HTTP/1.1\r\n", 0},
        {"\x16\x03\x01", 0},
        {"proxy TCP4", 0},
        {"PROXIES", 4},
        {"PROXY  TCP4", 6},
        {"PROXY\tTCP4", 5},
        {"PROXY UDP4", 7},
        {"PROXY TCP5", 9},
        {"PROXY TCP4\t", 10},
        {"PROXY tcp4", 6},
        {"PROXY TCP4 1.2.3.4\t", 18},
        {"PROXY TCP4 1.2.3.4  5.6.7.8", 19},
        {"PROXY TCP4 1.2.3.4 5.6.7.8  1", 27},
        {"PROXY TCP4 1.2.3.4 5.6.7.8 01", 28},
        {"PROXY TCP4 1.2.3.4 5.6.7.8 65536", 31},
        {"PROXY TCP4 1.2.3.4 5.6.7.8 -1", 27},
        {"PROXY TCP4 1.2.3.4 5.6.7.8 +1", 27},
        {"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n", 28},
        {"PROXY TCP4 1.2.3.4 5.6.7.8 1  2", 29},
        {"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n", 30},
        {"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n", 30},
        {"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\r", 31},
        {"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\rG", 31},
        {"PROXY TCP4 1.2.3.4 5.6.7.8 1 2x", 30},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        check_wrong_from(cases[i].text, cases[i].wrong);
}

TEST("v1 UNKNOWN counts as local, whatever its line says")
{
    static const char *const lines[] = {"PROXY UNKNOWN\r\n", "PROXY UNKNOWN \r\n",
                                        "PROXY UNKNOWN ffff::1 ffff::2 65535 1\r\n", "PROXY UNKNOWN \x01 x  y\t\r\n"};
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        CHECK_EQ(parse(lines[i]), strlen(lines[i]));
        CHECK(header.local);
        CHECK_EQ(header.source.ss_family, AF_UNSPEC);
        for (size_t length = 0; length < strlen(lines[i]); length++)
            CHECK_EQ(parse_bytes(lines[i], length), -EAGAIN);
    }
    check_wrong_from("PROXY UNKNOWNS", 13);
    check_wrong_from("PROXY UNKNOWN\n", 13);
    check_wrong_from("PROXY UNKNOWN a\nb", 15);
    check_wrong_from("PROXY UNKNOWN a\rb", 16);
}

TEST("a v1 line may have 107 bytes and no more")
{
    char line[128];
    memset(line, 'x', sizeof line);
    memcpy(line, "PROXY UNKNOWN ", 14);
    memcpy(line + 105, "\r\n", 2);
    CHECK_EQ(parse_bytes(line, 107), 107);
    CHECK_EQ(parse_bytes(line, sizeof line), 107);
    CHECK_EQ(parse_bytes(line, 106), -EAGAIN);
    line[105] = 'x';
    memcpy(line + 106, "\r\n", 2);
    CHECK_EQ(parse_bytes(line, 106), -EAGAIN);
    CHECK_EQ(parse_bytes(line, 107), -EPROTO);
    CHECK_EQ(parse_bytes(line, 108), -EPROTO);
    const char *long_addresses = "PROXY TCP6 0000:0000:0000:0000:0000:ffff:255.255.255.255 "
                                 "0000:0000:0000:0000:0000:ffff:255.255.255.255 65535 65535\r\n";
    CHECK_EQ(parse(long_addresses), -EPROTO);
}

/* ---- Version 2 ---------------------------------------------------------------------------------------------- */

TEST("a v2 header tells IPv4 and IPv6 addresses, and every shorter beginning is waited for")
{
    v2_begin_ipv4();
    CHECK_EQ(v2_parse(), 28);
    CHECK_EQ(header.version, PROXY_HEADER_V2);
    CHECK(!header.local);
    CHECK_STR(host_of(&header.source), "10.1.2.3");
    CHECK_STR(host_of(&header.destination), "192.168.0.1");
    CHECK_EQ(port_of(&header.source), 12345);
    CHECK_EQ(port_of(&header.destination), 443);
    for (size_t length = 0; length < v2.length; length++)
        CHECK_EQ(parse_bytes(v2.bytes, length), -EAGAIN);

    v2_begin(0x21, 0x21);
    struct in6_addr from, to;
    inet_pton(AF_INET6, "2001:db8::1", &from);
    inet_pton(AF_INET6, "::1", &to);
    v2_append(&from, 16);
    v2_append(&to, 16);
    v2_append("\x00\x01\xff\xff", 4);
    CHECK_EQ(v2_parse(), 52);
    CHECK_STR(host_of(&header.source), "2001:db8::1");
    CHECK_STR(host_of(&header.destination), "::1");
    CHECK_EQ(port_of(&header.source), 1);
    CHECK_EQ(port_of(&header.destination), 65535);
    for (size_t length = 0; length < v2.length; length++)
        CHECK_EQ(parse_bytes(v2.bytes, length), -EAGAIN);
}

TEST("a v2 header tells Unix addresses, abstract ones and those of 108 bytes too")
{
    char source[108], destination[108] = "\0abstract";
    memset(source, 'p', sizeof source);
    v2_begin(0x21, 0x31);
    v2_append(source, sizeof source);
    v2_append(destination, sizeof destination);
    CHECK_EQ(v2_parse(), 232);
    CHECK_EQ(header.source.ss_family, AF_UNIX);
    CHECK(memcmp(((struct sockaddr_un *)&header.source)->sun_path, source, 108) == 0);
    CHECK(memcmp(((struct sockaddr_un *)&header.destination)->sun_path, destination, 108) == 0);
}

TEST("a v2 header that is LOCAL, or of no family, counts as local, and what it carries for nothing")
{
    v2_begin(0x20, 0x00);
    CHECK_EQ(v2_parse(), 16);
    CHECK(header.local);
    CHECK_EQ(header.source.ss_family, AF_UNSPEC);
    static const uint8_t pairs[][2] = {{0x20, 0x11}, {0x20, 0x12}, {0x20, 0xff}, {0x21, 0x00}};
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        v2_begin(pairs[i][0], pairs[i][1]);
        v2_append("\xff\xff\xff\xff\xff", 5);
        CHECK_EQ(v2_parse(), 21);
        CHECK(header.local);
        CHECK_EQ(header.destination.ss_family, AF_UNSPEC);
        for (size_t length = 0; length < v2.length; length++)
            CHECK_EQ(parse_bytes(v2.bytes, length), -EAGAIN);
    }
}

TEST("a wrong version, command, family or transport of v2 is refused at its byte")
{
    for (unsigned at = 0; at < 14; at++) {
        for (unsigned value = 0; value < 256; value++) {
            v2_begin_ipv4();
            v2.bytes[at] = (uint8_t)value;
            bool right = at < 12    ? value == (uint8_t) "\r\n\r\n\0\r\nQUIT\n"[at]
                         : at == 12 ? value == 0x20 || value == 0x21
                                    : value == 0x00 || value == 0x11;
            /* The others are right but for their length, which comes later; 'P' begins v1. */
            bool later = (at == 13 && (value == 0x21 || value == 0x31)) || (at == 0 && value == 'P');
            CHECK_EQ(parse_bytes(v2.bytes, at), -EAGAIN);
            CHECK_EQ(parse_bytes(v2.bytes, at + 1), right || later ? -EAGAIN : -EPROTO);
            CHECK_EQ(v2_parse(), right ? 28 : -EPROTO);
        }
    }
}

TEST("another version and UDP are refused by name")
{
    v2_begin(0x31, 0x11);
    CHECK_EQ(v2_parse(), -EPROTO);
    CHECK(strstr(why, "version") != NULL);
    static const uint8_t protocols[] = {0x12, 0x22};
    for (size_t i = 0; i < 2; i++) {
        v2_begin(0x21, protocols[i]);
        CHECK_EQ(v2_parse(), -EPROTO);
        CHECK(strstr(why, "UDP") != NULL);
    }
    v2_begin(0x21, 0x32);
    CHECK_EQ(v2_parse(), -EPROTO);
    CHECK(strstr(why, "datagrams") != NULL);
}

TEST("a v2 length that is too short for the addresses is refused as soon as it is known")
{
    static const struct {
        uint8_t protocol;
        unsigned size;
    } cases[] = {{0x11, 12}, {0x21, 36}, {0x31, 216}};
    for (size_t i = 0; i < 3; i++) {
        v2_begin(0x21, cases[i].protocol);
        v2.bytes[15] = (uint8_t)(cases[i].size - 1);
        CHECK_EQ(parse_bytes(v2.bytes, 15), -EAGAIN);
        CHECK_EQ(parse_bytes(v2.bytes, 16), -EPROTO);
        v2.bytes[15] = (uint8_t)cases[i].size;
        CHECK_EQ(parse_bytes(v2.bytes, 16), -EAGAIN);
    }
}

TEST("extensions of v2 are walked, and one that reaches beyond the header is refused when its length is known")
{
    v2_begin_ipv4();
    v2_extension(0x01, "h2", 2);
    v2_extension(0x04, "", 0);
    v2_extension(0xea, "\x01vpce", 5);
    v2_extension(0x05, "0123456789", 10);
    CHECK_EQ(v2_parse(), v2.length);
    for (size_t length = 0; length < v2.length; length++)
        CHECK_EQ(parse_bytes(v2.bytes, length), -EAGAIN);

    size_t last = v2.length - 13; /* of the unique ID */
    v2.bytes[last + 2] = 11;
    CHECK_EQ(parse_bytes(v2.bytes, last + 2), -EAGAIN);
    CHECK_EQ(parse_bytes(v2.bytes, last + 3), -EPROTO);

    for (unsigned rest = 1; rest < 3; rest++) { /* too few bytes for a type and a length */
        v2_begin_ipv4();
        v2_append("\x04\x00", rest);
        CHECK_EQ(parse_bytes(v2.bytes, 28), -EPROTO);
    }
}

TEST("the SSL extension of v2 holds extensions of its own, which must fit it")
{
    v2_begin_ipv4();
    v2_extension(0x20, "\x01\0\0\0\0\x21\0\x07TLSv1.3\x03\0\x01y", 19); /* 0x03 is no checksum in here */
    v2_extension(0x04, "", 0);
    CHECK_EQ(v2_parse(), v2.length);
    for (size_t length = 0; length < v2.length; length++)
        CHECK_EQ(parse_bytes(v2.bytes, length), -EAGAIN);
    v2_begin_ipv4();
    v2_extension(0x20, "\x01\0\0\0\0\x21\0\x08TLSv1.3", 15);
    v2_extension(0x04, "", 0);
    CHECK_EQ(v2_parse(), -EPROTO);
    v2_begin_ipv4();
    v2_extension(0x20, "\x01\0\0\0", 4);
    CHECK_EQ(v2_parse(), -EPROTO);
}

TEST("a unique ID has at most 128 bytes")
{
    char id[129];
    memset(id, 'i', sizeof id);
    v2_begin_ipv4();
    v2_extension(0x05, id, 128);
    CHECK_EQ(v2_parse(), v2.length);
    v2_begin_ipv4();
    v2_extension(0x05, id, 129);
    CHECK_EQ(v2_parse(), -EPROTO);
}

/* Independent of the parser's: the table of the reversed polynomial. */
static uint32_t checksum_of(const uint8_t *data, size_t length)
{
    uint32_t table[256], crc = UINT32_MAX;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++)
            value = value & 1 ? value >> 1 ^ 0x82f63b78u : value >> 1;
        table[i] = value;
    }
    for (size_t i = 0; i < length; i++)
        crc = crc >> 8 ^ table[(crc ^ data[i]) & 0xff];
    return crc ^ UINT32_MAX;
}

TEST("a checksum is verified, and one wrong bit in any value is refused")
{
    CHECK_EQ(checksum_of((const uint8_t *)"123456789", 9), 0xe3069283); /* the usual check value of CRC-32C */
    v2_begin_ipv4();
    v2_extension(0x04, "pad", 3);
    v2_extension(0x03, "\0\0\0\0", 4);
    v2_extension(0x01, "h2", 2);
    uint32_t checksum = htonl(checksum_of(v2.bytes, v2.length));
    memcpy(v2.bytes + 28 + 6 + 3, &checksum, 4);
    CHECK_EQ(v2_parse(), v2.length);
    static const struct {
        size_t from, to;
    } values[] = {{16, 28}, {31, 34}, {37, 41}, {44, 46}}; /* addresses, padding, checksum, ALPN */
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        for (size_t bit = values[i].from * 8; bit < values[i].to * 8; bit++) {
            v2.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
            CHECK_EQ(v2_parse(), -EPROTO);
            v2.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
    }
    CHECK_EQ(v2_parse(), v2.length);

    v2_begin_ipv4();
    v2_extension(0x03, "\0\0\0", 3);
    CHECK_EQ(v2_parse(), -EPROTO);
    v2_begin_ipv4();
    v2_extension(0x03, "\0\0\0\0", 4);
    v2_extension(0x03, "\0\0\0\0", 4);
    CHECK_EQ(v2_parse(), -EPROTO);
    CHECK(strstr(why, "once") != NULL);
}

TEST("a header of HAProxy 2.6, with a checksum and a unique ID, is read")
{
    /* send-proxy-v2 with proxy-v2-options crc32c,unique-id: the checksum's place and order of bytes are the others'. */
    static const char sent[] = "\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11\x00\x23"
                               "\x7f\x00\x00\x01\x7f\x00\x00\x01\x93\xd6\xb9\xab\x03\x00\x04\x28"
                               "\x7d\xbd\xdf\x05\x00\x0d\x37\x46\x30\x30\x30\x30\x30\x31\x3a\x39"
                               "\x33\x44\x36";
    CHECK_EQ(parse_bytes(sent, sizeof sent - 1), sizeof sent - 1);
    CHECK_STR(host_of(&header.source), "127.0.0.1");
    CHECK_EQ(port_of(&header.source), 37846);
}

TEST("a header longer than allowed is refused as soon as that is known")
{
    v2_begin_ipv4();
    CHECK_EQ(parse_to(v2.bytes, 28, 28), 28);
    CHECK_EQ(parse_to(v2.bytes, 28, 27), -EMSGSIZE);
    CHECK_EQ(parse_to(v2.bytes, 16, 27), -EMSGSIZE);
    CHECK_EQ(parse_to(v2.bytes, 15, 27), -EAGAIN);
    CHECK_EQ(parse_to(v2.bytes, 15, 15), -EMSGSIZE);
    const char *text = "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n";
    CHECK_EQ(parse_to(text, strlen(text), strlen(text)), strlen(text));
    CHECK_EQ(parse_to(text, strlen(text), strlen(text) - 1), -EMSGSIZE);
    CHECK_EQ(parse_to(text, 10, 11), -EAGAIN);
    CHECK_EQ(parse_to(text, 11, 11), -EMSGSIZE);
}

TEST("what is refused or incomplete leaves the caller's header alone")
{
    static const struct proxy_header untouched;
    static const char *const texts[] = {"PROXY TCP4 1.2.3.4 5.6.7.8 1 x", "PROXY TCP4 1.2.3.4 5.6.7.8 1 "};
    for (size_t i = 0; i < 2; i++) {
        header = untouched;
        CHECK(proxy_header_parse(texts[i], strlen(texts[i]), MAX, &header, &why) < 0);
        CHECK(memcmp(&header, &untouched, sizeof header) == 0);
    }
}

/* ---- Writing ------------------------------------------------------------------------------------------------ */

TEST("v1 is written with the addresses of either family")
{
    CHECK_STR(written(PROXY_HEADER_V1, ipv4("1.2.3.4", 5), ipv4("6.7.8.9", 65535)),
              "PROXY TCP4 1.2.3.4 6.7.8.9 5 65535\r\n");
    CHECK_STR(written(PROXY_HEADER_V1, ipv6("2001:db8::1", 5), ipv6("::1", 6)), "PROXY TCP6 2001:db8::1 ::1 5 6\r\n");
}

TEST("IPv4 within IPv6 is written as IPv4 when both are, else both as IPv6 without dots")
{
    struct sockaddr_storage mapped = ipv6("::ffff:1.2.3.4", 5), plain = ipv4("6.7.8.9", 10), v6 = ipv6("::1", 11);
    CHECK_STR(written(PROXY_HEADER_V1, mapped, mapped), "PROXY TCP4 1.2.3.4 1.2.3.4 5 5\r\n");
    CHECK_STR(written(PROXY_HEADER_V1, mapped, plain), "PROXY TCP4 1.2.3.4 6.7.8.9 5 10\r\n");
    CHECK_STR(written(PROXY_HEADER_V1, plain, v6), "PROXY TCP6 ::ffff:607:809 ::1 10 11\r\n");
    CHECK_STR(written(PROXY_HEADER_V1, v6, mapped), "PROXY TCP6 ::1 ::ffff:102:304 11 5\r\n");
    CHECK_STR(written(PROXY_HEADER_V1, ipv6("::1.2.3.4", 5), v6), "PROXY TCP6 ::102:304 ::1 5 11\r\n");

    const char *v2_text = written(PROXY_HEADER_V2, mapped, plain);
    CHECK_EQ((uint8_t)v2_text[13], 0x11);
    CHECK(memcmp(v2_text + 16, "\x01\x02\x03\x04\x06\x07\x08\x09\x00\x05\x00\x0a", 12) == 0);
    v2_text = written(PROXY_HEADER_V2, v6, plain);
    CHECK_EQ((uint8_t)v2_text[13], 0x21);
    CHECK(memcmp(v2_text + 32, "\0\0\0\0\0\0\0\0\0\0\xff\xff\x06\x07\x08\x09\x00\x0b\x00\x0a", 20) == 0);
}

TEST("what has no address in a header is written as UNKNOWN or LOCAL, and NONE not at all")
{
    struct sockaddr_storage local = {.ss_family = AF_UNIX}, v4 = ipv4("1.2.3.4", 5), none = {.ss_family = AF_UNSPEC};
    CHECK_STR(written(PROXY_HEADER_V1, local, local), "PROXY UNKNOWN\r\n");
    CHECK_STR(written(PROXY_HEADER_V1, v4, local), "PROXY UNKNOWN\r\n");
    CHECK_STR(written(PROXY_HEADER_V1, none, v4), "PROXY UNKNOWN\r\n");
    const char *text = written(PROXY_HEADER_V2, v4, local);
    CHECK_EQ(parse_bytes(text, 16), 16);
    CHECK_EQ((uint8_t)text[12], 0x20);
    CHECK(header.local);
    char buffer[PROXY_HEADER_WRITE_MAX];
    CHECK_EQ(write_to(buffer, PROXY_HEADER_V2, NULL, &v4), 16);
    CHECK_EQ(write_to(buffer, PROXY_HEADER_V1, &v4, NULL), 15);
    CHECK_EQ(write_to(buffer, PROXY_HEADER_NONE, &v4, &v4), 0);
}

TEST("Unix addresses are written in v2")
{
    struct sockaddr_storage source = {.ss_family = AF_UNIX}, destination = {.ss_family = AF_UNIX};
    strcpy(((struct sockaddr_un *)&destination)->sun_path, "/run/x");
    CHECK_EQ(parse_bytes(written(PROXY_HEADER_V2, source, destination), 232), 232);
    CHECK(memcmp(&header.source, &source, sizeof source) == 0);
    CHECK(memcmp(&header.destination, &destination, sizeof destination) == 0);
}

TEST("nothing behind an address of known length is written")
{
    struct sockaddr_un source, destination;
    memset(&source, 'x', sizeof source);
    memset(&destination, 'y', sizeof destination);
    source.sun_family = destination.sun_family = AF_UNIX;
    struct sockaddr *unnamed = malloc(sizeof(sa_family_t)); /* exactly, for the address sanitizer */
    memcpy(unnamed, &source, sizeof(sa_family_t));
    char text[PROXY_HEADER_WRITE_MAX];
    size_t length = proxy_header_write(PROXY_HEADER_V2, unnamed, sizeof(sa_family_t), (struct sockaddr *)&destination,
                                       sizeof(sa_family_t) + 3, text);
    free(unnamed);
    CHECK_EQ(length, 232);
    static const char zeros[108];
    CHECK(memcmp(text + 16, zeros, 108) == 0);
    CHECK(memcmp(text + 16 + 108, "yyy", 3) == 0);
    CHECK(memcmp(text + 16 + 108 + 3, zeros, 105) == 0);
    CHECK_EQ(proxy_header_write(PROXY_HEADER_V2, (struct sockaddr *)&source, sizeof source,
                                (struct sockaddr *)&destination, sizeof destination, text),
             232);
    CHECK(memcmp(text + 16, source.sun_path, 108) == 0);
}

TEST("an address whose length its family cannot have is none")
{
    struct sockaddr_storage v4 = ipv4("1.2.3.4", 5), local = {.ss_family = AF_UNIX};
    char text[PROXY_HEADER_WRITE_MAX];
    CHECK_EQ(proxy_header_write(PROXY_HEADER_V1, (struct sockaddr *)&v4, sizeof(struct sockaddr_in) - 1,
                                (struct sockaddr *)&v4, sizeof(struct sockaddr_in), text),
             15);
    CHECK_EQ(proxy_header_write(PROXY_HEADER_V2, (struct sockaddr *)&local, sizeof local, (struct sockaddr *)&local, 0,
                                text),
             16);
}

/* ---- Properties --------------------------------------------------------------------------------------------- */

static uint64_t random_state;

static unsigned random_below(unsigned limit)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(random_state >> 33) % limit;
}

static void seed_random(void)
{
    const char *told = getenv("SLUICE_SEED");
    random_state = told != NULL ? strtoull(told, NULL, 10) : (uint64_t)time(NULL);
    printf("# SLUICE_SEED=%llu\n", (unsigned long long)random_state);
}

static struct sockaddr_storage random_address(void)
{
    static const sa_family_t families[] = {AF_INET, AF_INET6, AF_INET6, AF_INET6};
    unsigned kind = random_below(4);
    struct sockaddr_storage address = {.ss_family = families[kind]};
    ((struct sockaddr_in *)&address)->sin_port = (in_port_t)random_below(65536);
    uint8_t *bytes = kind == 0 ? (uint8_t *)&((struct sockaddr_in *)&address)->sin_addr
                               : ((struct sockaddr_in6 *)&address)->sin6_addr.s6_addr;
    unsigned zeros = random_below(5);
    for (unsigned i = 0; i < (kind == 0 ? 4 : 16); i++)
        bytes[i] = random_below(4) < zeros ? 0 : (uint8_t)random_below(256);
    if (kind == 1)
        memcpy(bytes, "\0\0\0\0\0\0\0\0\0\0\xff\xff", 12);
    return address;
}

/* An address as IPv6, for comparing. */
static struct sockaddr_in6 as_ipv6(const struct sockaddr_storage *address)
{
    struct sockaddr_in6 result = {.sin6_family = AF_INET6};
    if (address->ss_family == AF_INET6) {
        result.sin6_addr = ((const struct sockaddr_in6 *)address)->sin6_addr;
    } else {
        memcpy(result.sin6_addr.s6_addr + 10, "\xff\xff", 2);
        memcpy(result.sin6_addr.s6_addr + 12, &((const struct sockaddr_in *)address)->sin_addr, 4);
    }
    result.sin6_port = ((const struct sockaddr_in *)address)->sin_port;
    return result;
}

TEST("what is written is read as the same addresses, and written again as the same bytes")
{
    seed_random();
    for (unsigned round = 0; round < 20000; round++) {
        struct sockaddr_storage ends[2] = {random_address(), random_address()};
        enum proxy_header_version version = random_below(2) ? PROXY_HEADER_V1 : PROXY_HEADER_V2;
        char text[PROXY_HEADER_WRITE_MAX + 8], again[PROXY_HEADER_WRITE_MAX];
        size_t length = write_to(text, version, &ends[0], &ends[1]);
        memcpy(text + length, "\r\npaylo", 7);
        CHECK_EQ(parse_bytes(text, length + 7), length);
        CHECK_EQ(header.version, version);
        CHECK_EQ(header.source.ss_family, header.destination.ss_family);
        struct sockaddr_in6 want[2] = {as_ipv6(&ends[0]), as_ipv6(&ends[1])},
                            got[2] = {as_ipv6(&header.source), as_ipv6(&header.destination)};
        CHECK(memcmp(got, want, sizeof got) == 0);
        CHECK_EQ(write_to(again, version, &header.source, &header.destination), length);
        CHECK(memcmp(again, text, length) == 0);
        CHECK_EQ(parse_bytes(text, random_below((unsigned)length)), -EAGAIN);
    }
}

/* Never waits in vain: from any beginning of v1 that is waited for, some bytes lead to a whole header. So each wrong
 * byte is refused when it comes. (Lines near 107 bytes are left out, where only dots within IPv6 can run out of room.)
 */
TEST("every beginning of a v1 line that is waited for can be completed")
{
    static const char alphabet[] = "\n\r :.0123456789fFPROXY TCP46UNKNOWNx";
    seed_random();
    unsigned waited = 0;
    for (unsigned round = 0; round < 20000; round++) {
        struct sockaddr_storage ends[2] = {random_address(), random_address()};
        char text[PROXY_HEADER_WRITE_MAX];
        size_t length = write_to(text, PROXY_HEADER_V1, &ends[0], &ends[1]);
        length = 1 + random_below((unsigned)length);
        text[length - 1] = alphabet[random_below(sizeof alphabet - 1)];
        if (text[0] == '\r' || parse_bytes(text, length) != -EAGAIN)
            continue;
        waited++;
        ssize_t r = -EAGAIN;
        for (; r == -EAGAIN && length < PROXY_HEADER_V1_MAX; length++) {
            for (const char *next = alphabet; *next != '\0'; next++) {
                text[length] = *next;
                r = parse_bytes(text, length + 1);
                if (r != -EPROTO)
                    break;
            }
        }
        if (r < 0)
            CHECK_FAIL("\"%.*s\" leads nowhere: %s", (int)length, text, why != NULL ? why : "waits");
    }
    CHECK(waited > 1000);
}

CHECK_MAIN()
