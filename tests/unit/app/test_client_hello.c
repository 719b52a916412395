/* SPDX-License-Identifier: MIT */
#include "check.h"
#include "proxy/client_hello.h"
#include <errno.h>
#include <stdint.h>
#include <time.h>

#define MAX 65536

static struct client_hello hello;
static const char *why;

/* Parses from memory of exactly this size, so that the address sanitizer sees a read beyond it. */
static int parse_to(const void *data, size_t length, size_t max)
{
    char *copy = malloc(length > 0 ? length : 1);
    memcpy(copy, data, length);
    why = NULL;
    memset(&hello, 0x5a, sizeof hello);
    int r = client_hello_parse(copy, length, max, &hello, &why);
    free(copy);
    return r;
}

static int parse_bytes(const void *data, size_t length)
{
    return parse_to(data, length, MAX);
}

/* ---- A ClientHello made by hand ----------------------------------------------------------------------------- */

struct bytes {
    uint8_t data[70000];
    size_t length;
};

static void append(struct bytes *bytes, const void *data, size_t length)
{
    CHECK(length <= sizeof bytes->data - bytes->length);
    memcpy(bytes->data + bytes->length, data, length);
    bytes->length += length;
}

static void append_number(struct bytes *bytes, size_t value, unsigned size)
{
    while (size-- > 0) {
        uint8_t byte = (uint8_t)(value >> 8 * size);
        append(bytes, &byte, 1);
    }
}

static struct bytes extensions, message, records;

static void begin(void)
{
    extensions.length = 0;
}

static void extension(unsigned type, const void *data, size_t length)
{
    append_number(&extensions, type, 2);
    append_number(&extensions, length, 2);
    append(&extensions, data, length);
}

static void extension_name(const char *name, size_t length)
{
    append_number(&extensions, 0, 2);
    append_number(&extensions, length + 5, 2);
    append_number(&extensions, length + 3, 2);
    append_number(&extensions, 0, 1);
    append_number(&extensions, length, 2);
    append(&extensions, name, length);
}

/* The message, of which the extensions are the last part. */
static void finish_message(void)
{
    static struct bytes body;
    body.length = 0;
    append_number(&body, 0x0303, 2);
    for (unsigned i = 0; i < 32; i++)
        append_number(&body, i, 1);
    append(&body, "\4SSID", 5);
    append(&body, "\0\4\x13\x01\x1a\x1a", 6);
    append(&body, "\1\0", 2);
    append_number(&body, extensions.length, 2);
    append(&body, extensions.data, extensions.length);
    message.length = 0;
    append_number(&message, 1, 1);
    append_number(&message, body.length, 3);
    append(&message, body.data, body.length);
}

static void append_record(unsigned type, const void *data, size_t length)
{
    append_number(&records, type, 1);
    append_number(&records, 0x0301, 2);
    append_number(&records, length, 2);
    append(&records, data, length);
}

/* The message in records of this size. */
static void finish_in(size_t size)
{
    records.length = 0;
    for (size_t at = 0; at < message.length; at += size)
        append_record(22, message.data + at, message.length - at < size ? message.length - at : size);
}

static int parse(void)
{
    finish_message();
    finish_in(16384);
    return parse_bytes(records.data, records.length);
}

static int parse_name_of(const char *name, size_t length)
{
    begin();
    extension_name(name, length);
    return parse();
}

static int parse_name(const char *name)
{
    return parse_name_of(name, strlen(name));
}

static int parse_alpn(const void *list, size_t length)
{
    begin();
    extension(16, list, length);
    return parse();
}

/* ---- What real clients send --------------------------------------------------------------------------------- */

static size_t read_capture(const char *name, uint8_t *data, size_t size)
{
    char path[512];
    snprintf(path, sizeof path, CORPUS "/%s", name);
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        CHECK_FAIL("%.400s cannot be opened", path);
    size_t length = fread(data, 1, size, file);
    fclose(file);
    return length;
}

static const struct {
    const char *name, *sni, *alpn;
} captures[] = {
    {"chromium-156", "shop.example.org", "\2h2\10http/1.1"}, /* GREASE, ECH, a key share of X25519MLKEM768 */
    {"curl-7.88", "www.example.org", "\2h2\10http/1.1"},
    {"curl-7.88-address", "", "\2h2\10http/1.1"},
    {"gnutls-cli-3.7", "gnutls.example.org", "\4imap"},
    {"java-17", "java.example.org", "\2h2\10http/1.1"},
    {"node-openssl-3.0", "node.example.org", "\2h2\10http/1.1"},
    {"openssl-3.0-s_client", "db.example.org", "\12postgresql"},
    {"openssl-3.0-tls1.0-no-name", "", ""},
    {"openssl-3.0-ffdhe8192", "ff.example.org", ""}, /* a key share of 1024 bytes */
    {"python-ssl", "python.example.org", "\4mqtt"},
};
#define CAPTURES (sizeof captures / sizeof captures[0])

TEST("name and protocols are found in what real clients send, and every shorter beginning is waited for")
{
    for (size_t i = 0; i < CAPTURES; i++) {
        uint8_t data[4096];
        size_t length = read_capture(captures[i].name, data, sizeof data);
        if (parse_bytes(data, length) != 1)
            CHECK_FAIL("%s: %s", captures[i].name, why != NULL ? why : "not whole");
        CHECK_STR(hello.sni, captures[i].sni);
        CHECK_EQ(hello.alpn_length, strlen(captures[i].alpn));
        CHECK(memcmp(hello.alpn, captures[i].alpn, hello.alpn_length) == 0);
        for (size_t less = 0; less < length; less++)
            CHECK_EQ(parse_bytes(data, less), 0);
    }
}

/* ---- Records ------------------------------------------------------------------------------------------------ */

TEST("a message in several records, down to one byte in each, reads the same")
{
    begin();
    extension_name("example.org", 11);
    extension(16, "\0\3\2h2", 5);
    finish_message();
    for (size_t size = 1; size <= message.length; size++) {
        finish_in(size);
        CHECK_EQ(parse_bytes(records.data, records.length), 1);
        CHECK_STR(hello.sni, "example.org");
        CHECK_EQ(hello.alpn_length, 3);
        for (size_t less = 0; less < records.length; less++)
            CHECK_EQ(parse_bytes(records.data, less), 0);
    }
}

TEST("a record that is empty, too long, of another type or version is refused as soon as that is known")
{
    begin();
    extension_name("example.org", 11);
    finish_message();
    static const struct {
        const char *header;
        size_t wrong; /* its first wrong byte */
        const char *why;
    } cases[] = {
        {"\x16\x03\x01\x00\x00", 4, "empty"},     {"\x16\x03\x01\x40\x01", 4, "16 KiB"},
        {"\x17\x03\x01\x00\x01", 0, "handshake"}, {"\x15\x03\x01\x00\x02", 0, "handshake"},
        {"\x16\x02\x01\x00\x01", 1, "version"},   {"\x14\x03\x03\x00\x01", 0, "handshake"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        records.length = 0;
        append_record(22, message.data, 20);
        size_t at = records.length;
        append(&records, cases[i].header, 5);
        append(&records, message.data + 20, message.length - 20);
        CHECK_EQ(parse_bytes(records.data, at + cases[i].wrong), 0);
        CHECK_EQ(parse_bytes(records.data, at + cases[i].wrong + 1), -EPROTO);
        CHECK(strstr(why, cases[i].why) != NULL);
        CHECK_EQ(parse_bytes(records.data, records.length), -EPROTO);
    }
    for (unsigned minor = 0; minor < 256; minor++) {
        finish_in(64);
        records.data[2] = (uint8_t)minor;
        CHECK_EQ(parse_bytes(records.data, records.length), 1);
    }
}

TEST("a record of 16384 bytes is taken")
{
    static uint8_t padding[16384];
    begin();
    extension(21, padding, 16384 - 4 - 51 - 4); /* the message: header, fields, and this extension's header */
    extension_name("example.org", 11);
    finish_message();
    finish_in(16384);
    CHECK(message.length > 16384);
    CHECK_EQ(parse_bytes(records.data, records.length), 1);
    CHECK_STR(hello.sni, "example.org");
}

TEST("what follows the ClientHello is not looked at")
{
    begin();
    extension_name("example.org", 11);
    finish_message();
    finish_in(16384);
    append(&records, "anything", 8);
    CHECK_EQ(parse_bytes(records.data, records.length), 1);
    append(&message, "more in its record", 18);
    finish_in(16384);
    CHECK_EQ(parse_bytes(records.data, records.length), 1);
}

TEST("a ClientHello longer than allowed is refused when its length is known, or the limit reached")
{
    begin();
    extension_name("example.org", 11);
    finish_message();
    finish_in(16384);
    size_t whole = records.length;
    CHECK_EQ(parse_to(records.data, whole, whole), 1);
    CHECK_EQ(parse_to(records.data, 9, whole - 1), -EMSGSIZE);
    CHECK_EQ(parse_to(records.data, 8, whole - 1), 0);
    CHECK_EQ(parse_to(records.data, 5, 5), -EMSGSIZE);
    CHECK_EQ(parse_to(records.data, 4, 5), 0);
    append(&records, "rest", 4);
    CHECK_EQ(parse_to(records.data, records.length, whole), 1);
    finish_in(10); /* it is the headers of the records that make it too long */
    CHECK_EQ(parse_to(records.data, whole - 1, whole), 0);
    CHECK_EQ(parse_to(records.data, whole, whole), -EMSGSIZE);
    CHECK_EQ(parse_to(records.data, records.length, whole), -EMSGSIZE);
    CHECK_EQ(parse_to(records.data, records.length, records.length), 1);
}

/* ---- What is no TLS ----------------------------------------------------------------------------------------- */

TEST("what is not TLS is refused at its first byte, and by its name where that can be told")
{
    static const struct {
        const char *data;
        size_t length;
        const char *why;
    } cases[] = {
        {"GET / HTTP/1.1\r\n", 16, "plain HTTP"},
        {"POST /x HTTP/1.1\r\n", 18, "plain HTTP"},
        {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24, "plain HTTP"},
        {"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", 32, "PROXY"},
        {"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", 16, "PROXY"},
        {"SSH-2.0-OpenSSH\r\n", 17, "SSH"},
        {"\0\0\0\x08\x04\xd2\x16\x2f", 8, "PostgreSQL"},
        {"\x80\x2e\x01\x03\x01\x00\x15", 7, "SSL 2"},
        {"\x17\x03\x03\x00\x20", 5, "ClientHello"},
        {"\x15\x03\x01\x00\x02\x02\x28", 7, "ClientHello"},
        {"\x16\x03\x03\x00\x04\x02\x00\x00\x00", 9, "does not begin"}, /* a ServerHello */
        {"\0\0\0\x08\x04\xd2\x16\x30", 8, "not TLS"},
        {"*1\r\n$4\r\nPING\r\n", 14, "not TLS"},
        {"\x16\x02\x00\x00\x04", 5, "version"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        CHECK_EQ(parse_bytes(cases[i].data, cases[i].length), -EPROTO);
        if (strstr(why, cases[i].why) == NULL)
            CHECK_FAIL("case %zu: %s", i, why);
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        uint8_t first = (uint8_t)byte;
        CHECK_EQ(parse_bytes(&first, 1), byte == 22 ? 0 : -EPROTO);
    }
    CHECK_EQ(parse_bytes("", 0), 0);
}

/* ---- The message -------------------------------------------------------------------------------------------- */

TEST("a ClientHello without extensions, or with an empty list of them, asks for nothing")
{
    begin();
    CHECK_EQ(parse(), 1);
    CHECK_STR(hello.sni, "");
    CHECK_EQ(hello.alpn_length, 0);
    finish_message();
    message.length -= 2;
    message.data[3] -= 2;
    finish_in(16384);
    CHECK_EQ(parse_bytes(records.data, records.length), 1);
    CHECK_STR(hello.sni, "");
}

TEST("a length that does not fit what it is in is refused")
{
    begin();
    extension_name("example.org", 11);
    extension(16, "\0\3\2h2", 5);
    finish_message();
    /* Where each length of one byte is, or the lower byte of one of two. */
    static const struct {
        size_t at;
        const char *what;
    } lengths[] = {
        {4 + 34, "session"},       {4 + 39 + 1, "ciphers"},       {4 + 45, "compression"},   {4 + 47 + 1, "extensions"},
        {4 + 49 + 3, "name"},      {4 + 49 + 5, "names"},         {4 + 49 + 8, "host name"}, {4 + 49 + 20 + 3, "ALPN"},
        {4 + 49 + 20 + 5, "list"}, {4 + 49 + 20 + 6, "protocol"},
    };
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        for (int change = -1; change <= 1; change++) {
            message.data[lengths[i].at] = (uint8_t)(message.data[lengths[i].at] + change);
            finish_in(16384);
            int r = parse_bytes(records.data, records.length);
            if (r != (change == 0 ? 1 : -EPROTO))
                CHECK_FAIL("the length of %s %+d gives %d", lengths[i].what, change, r);
            message.data[lengths[i].at] = (uint8_t)(message.data[lengths[i].at] - change);
        }
    }
    message.data[3]--; /* of the message */
    finish_in(16384);
    CHECK_EQ(parse_bytes(records.data, records.length), -EPROTO);
    message.data[3] += 2;
    finish_in(16384);
    CHECK_EQ(parse_bytes(records.data, records.length), -EPROTO);
}

TEST("a message that ends anywhere but before or behind its extensions is refused")
{
    begin();
    extension_name("example.org", 11);
    extension(16, "\0\3\2h2", 5);
    finish_message();
    size_t whole = message.length;
    for (message.length = 4; message.length <= whole; message.length++) {
        message.data[3] = (uint8_t)(message.length - 4);
        finish_in(16384);
        append(&records, "\x16\3\1\0\1", 5); /* a record that would go on */
        CHECK_EQ(parse_bytes(records.data, records.length),
                 message.length == 4 + 47 || message.length == whole ? 1 : -EPROTO);
    }
}

TEST("legacy fields out of range are refused")
{
    static const struct {
        size_t at;
        uint8_t value;
        const char *why;
    } cases[] = {
        {4, 2, "version"},          {4 + 34, 33, "session"},    {4 + 39 + 1, 0, "ciphers"},
        {4 + 39 + 1, 3, "ciphers"}, {4 + 45, 0, "compression"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        begin();
        extension_name("example.org", 11);
        finish_message();
        message.data[cases[i].at] = cases[i].value;
        finish_in(16384);
        CHECK_EQ(parse_bytes(records.data, records.length), -EPROTO);
        if (strstr(why, cases[i].why) == NULL)
            CHECK_FAIL("%s", why);
    }
    begin();
    finish_message();
    message.data[4] = 4; /* a version yet to come is for the server to answer */
    finish_in(16384);
    CHECK_EQ(parse_bytes(records.data, records.length), 1);
}

TEST("the same extension twice is refused, known, unknown or GREASE")
{
    static const unsigned types[] = {0, 16, 43, 0x0a0a, 0xffff};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        begin();
        for (unsigned twice = 0; twice < 2; twice++) {
            if (types[i] == 0)
                extension_name("example.org", 11);
            else if (types[i] == 16)
                extension(16, "\0\3\2h2", 5);
            else
                extension(types[i], "", 0);
            CHECK_EQ(parse(), twice ? -EPROTO : 1);
        }
        CHECK(strstr(why, "twice") != NULL);
    }
}

TEST("GREASE and every unknown extension pass")
{
    begin();
    for (unsigned i = 0; i < 16; i++)
        extension(0x0a0a + 0x1010 * i, "xyz", i % 4);
    extension(0xfe0d, "encrypted", 9);
    extension_name("public.example.org", 18);
    CHECK_EQ(parse(), 1);
    CHECK_STR(hello.sni, "public.example.org");
}

/* ---- Server name -------------------------------------------------------------------------------------------- */

TEST("a server name is made lower case and loses its final dot")
{
    CHECK_EQ(parse_name("WwW.eXample.ORG"), 1);
    CHECK_STR(hello.sni, "www.example.org");
    CHECK_EQ(parse_name("example.org."), 1);
    CHECK_STR(hello.sni, "example.org");
    CHECK_EQ(parse_name("a"), 1);
    CHECK_STR(hello.sni, "a");
    CHECK_EQ(parse_name("_dmarc.x-1.xn--bcher-kva.example"), 1);
    CHECK_STR(hello.sni, "_dmarc.x-1.xn--bcher-kva.example");
}

TEST("a server name may have 255 bytes, and no more")
{
    char name[257];
    memset(name, 'n', sizeof name);
    for (size_t at = 60; at < 250; at += 60)
        name[at] = '.';
    CHECK_EQ(parse_name_of(name, 255), 1);
    CHECK_EQ(strlen(hello.sni), 255);
    CHECK_EQ(parse_name_of(name, 256), -EPROTO);
    CHECK(strstr(why, "255") != NULL);
}

TEST("a server name that is none is refused")
{
    static const struct {
        const char *name;
        size_t length;
        const char *why;
    } cases[] = {
        {"", 0, "empty"},
        {"good.example\0.evil.example", 26, "NUL"},
        {"\0", 1, "NUL"},
        {".", 1, "empty part"},
        {"..", 2, "empty part"},
        {".example", 8, "empty part"},
        {"a..b", 4, "empty part"},
        {"a b", 3, "no host name"},
        {"a/b", 3, "no host name"},
        {"*.a", 3, "no host name"},
        {"b\xc3\xbc"
         "cher",
         7, "no host name"},
        {"a:443", 5, "no host name"},
        {"[::1]", 5, "no host name"},
        {"a\n", 2, "no host name"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        CHECK_EQ(parse_name_of(cases[i].name, cases[i].length), -EPROTO);
        if (strstr(why, cases[i].why) == NULL)
            CHECK_FAIL("case %zu: %s", i, why);
    }
}

TEST("an address in the place of a server name counts as none")
{
    static const char *const addresses[] = {"127.0.0.1", "255.255.255.255", "10.0.0.1.",
                                            "::1",       "2001:db8::1",     "::ffff:1.2.3.4"};
    for (size_t i = 0; i < sizeof addresses / sizeof addresses[0]; i++) {
        CHECK_EQ(parse_name(addresses[i]), 1);
        CHECK_STR(hello.sni, "");
    }
    static const char *const names[] = {"1.2.3", "1.2.3.4.5", "256.1.1.1", "1.2.3.4.example"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        CHECK_EQ(parse_name(names[i]), 1);
        CHECK_STR(hello.sni, names[i]);
    }
}

TEST("of a list of server names the one of type host_name counts, and two are refused")
{
    begin();
    extension(0, "\0\x0b\7\0\2xx\0\0\3abc", 13);
    CHECK_EQ(parse(), 1);
    CHECK_STR(hello.sni, "abc");
    begin();
    extension(0, "\0\5\7\0\2xx", 7);
    CHECK_EQ(parse(), 1);
    CHECK_STR(hello.sni, "");
    begin();
    extension(0, "\0\x0b\0\0\2xx\0\0\3abc", 13);
    CHECK_EQ(parse(), -EPROTO);
    CHECK(strstr(why, "two") != NULL);
    begin();
    extension(0, "\0\0", 2);
    CHECK_EQ(parse(), -EPROTO);
    begin();
    extension(0, "", 0);
    CHECK_EQ(parse(), -EPROTO);
    begin();
    extension(0, "\0\5\0\0\2xxy", 8);
    CHECK_EQ(parse(), -EPROTO);
}

/* ---- Protocols ---------------------------------------------------------------------------------------------- */

TEST("a list of protocols is given as it was sent, and a malformed one refused")
{
    CHECK_EQ(parse_alpn("\0\x0c\2h2\10http/1.1", 14), 1);
    CHECK_EQ(hello.alpn_length, 12);
    CHECK(memcmp(hello.alpn, "\2h2\10http/1.1", 12) == 0);
    CHECK_EQ(parse_alpn("\0\3\2\0\xff", 5), 1); /* names are bytes */
    CHECK(memcmp(hello.alpn, "\2\0\xff", 3) == 0);
    CHECK_EQ(parse_alpn("\0\0", 2), -EPROTO);
    CHECK_EQ(parse_alpn("", 0), -EPROTO);
    CHECK_EQ(parse_alpn("\0\1\0", 3), -EPROTO);
    CHECK_EQ(parse_alpn("\0\4\2h2\0", 6), -EPROTO);
    CHECK_EQ(parse_alpn("\0\4\2h2\1", 6), -EPROTO);
    CHECK_EQ(parse_alpn("\0\3\2h2\1", 6), -EPROTO);
    CHECK_EQ(parse_alpn("\0\2\2h2", 5), -EPROTO);
}

TEST("a list of protocols that is too long is cut after the last name that fits")
{
    uint8_t list[2 + 3 + 253 + 3 + 3 + 256] = {0, 0, 2, 'h', '2', 252};
    list[0] = (uint8_t)((3 + 253 + 3 + 3) >> 8);
    list[1] = (uint8_t)(3 + 253 + 3 + 3);
    memcpy(list + 2 + 3 + 253, "\2ab\2cd", 6);
    CHECK_EQ(parse_alpn(list, 2 + 3 + 253 + 6), 1);
    CHECK_EQ(hello.alpn_length, 256); /* "h2" and 252 bytes fill it exactly */
    /* One byte is left over, and the shortest name takes two. */
    list[5] = 251;
    memcpy(list + 2 + 3 + 252, "\1d", 2);
    list[1] = 3 + 252 + 2 - 256;
    CHECK_EQ(parse_alpn(list, 2 + 3 + 252 + 2), 1);
    CHECK_EQ(hello.alpn_length, 255);
    /* The next name does not fit; the one behind it would, and is not taken out of turn. */
    list[5] = 250;
    memcpy(list + 2 + 3 + 251, "\3abc\1d", 6);
    list[1] = 3 + 251 + 6 - 256;
    CHECK_EQ(parse_alpn(list, 2 + 3 + 251 + 6), 1);
    CHECK_EQ(hello.alpn_length, 254);
    uint8_t one[2 + 256] = {1, 0, 255};
    CHECK_EQ(parse_alpn(one, sizeof one), 1);
    CHECK_EQ(hello.alpn_length, 256);
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

/* The message out of a capture in one record, as all of them are. */
static void take_message(const uint8_t *data, size_t length)
{
    message.length = 0;
    CHECK(length > 5 && length == 5 + ((size_t)data[3] << 8 | data[4]));
    append(&message, data + 5, length - 5);
}

static void split_at_random(void)
{
    records.length = 0;
    unsigned usual = 1 + random_below(random_below(2) ? 8 : 1500);
    for (size_t at = 0; at < message.length;) {
        size_t size = 1 + random_below(2 * usual);
        if (size > message.length - at)
            size = message.length - at;
        append_record(22, message.data + at, size);
        at += size;
    }
}

TEST("however a ClientHello is cut into records, the answer is the same, changed bytes included")
{
    seed_random();
    unsigned whole = 0, refused = 0;
    for (unsigned round = 0; round < 4000; round++) {
        uint8_t data[4096];
        take_message(data, read_capture(captures[random_below(CAPTURES)].name, data, sizeof data));
        for (unsigned changes = random_below(8); changes > 0; changes--) {
            size_t at = 4 + random_below((unsigned)message.length - 4); /* the message's own length stays */
            message.data[at] = random_below(2) ? (uint8_t)random_below(256) : (uint8_t)(message.data[at] + 1);
        }
        finish_in(16384);
        int want = parse_bytes(records.data, records.length);
        struct client_hello first = hello;
        const char *first_why = why;
        for (unsigned times = 0; times < 4; times++) {
            split_at_random();
            CHECK_EQ(parse_bytes(records.data, records.length), want);
            CHECK(why == first_why);
            CHECK(memcmp(&hello, &first, sizeof hello) == 0);
            int r = parse_bytes(records.data, random_below((unsigned)records.length));
            CHECK(r == 0 || (r == want && r < 0));
        }
        whole += want == 1;
        refused += want < 0;
    }
    printf("# %u whole, %u refused\n", whole, refused);
    CHECK(whole > 1000 && refused > 300);
}

CHECK_MAIN()
