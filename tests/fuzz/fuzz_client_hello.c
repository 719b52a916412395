/* SPDX-License-Identifier: MIT */
#include "fuzz.h"
#include "proxy/client_hello.c"

static int parse_exactly(const uint8_t *data, size_t size, size_t max, struct client_hello *ret_hello)
{
    const char *why = NULL;
    char *copy = exact_copy(data, size);
    int status = client_hello_parse(copy, size, max, ret_hello, &why);
    free(copy);
    REQUIRE((status == -EPROTO) == (why != NULL));
    REQUIRE(status == 0 || status == 1 || status == -EPROTO || status == -EMSGSIZE);
    REQUIRE(status != 0 || size < max);
    return status;
}

static void require_sound(const struct client_hello *hello)
{
    size_t length = strnlen(hello->sni, sizeof hello->sni);
    REQUIRE(length < sizeof hello->sni);
    char before = '.';
    for (size_t i = 0; i < length; i++) {
        char byte = hello->sni[i];
        REQUIRE((byte >= 'a' && byte <= 'z') || (byte >= '0' && byte <= '9') || byte == '-' || byte == '_' ||
                (byte == '.' && before != '.'));
        before = byte;
    }
    REQUIRE(length == 0 || before != '.');
    REQUIRE(hello->alpn_length <= sizeof hello->alpn);
    for (size_t at = 0; at < hello->alpn_length; at += 1 + (uint8_t)hello->alpn[at]) {
        REQUIRE(hello->alpn[at] != 0);
        REQUIRE(at + 1 + (uint8_t)hello->alpn[at] <= hello->alpn_length);
    }
}

static void require_one_answer(const uint8_t *data, size_t size, size_t max)
{
    struct client_hello hello;
    int whole = parse_exactly(data, size, max, &hello);
    bool decided = false;
    for (size_t length = 0; length <= size; length += 1 + size / 64) {
        int status = parse_exactly(data, length, max, &hello);
        REQUIRE(status == whole || (!decided && status == 0));
        decided = status != 0;
    }
}

/* The message of a whole ClientHello in other records, whose sizes the input decides too. */
static void require_same_in_other_records(const uint8_t *data, size_t size, const struct client_hello *want)
{
    uint8_t *message = malloc(size), *records = malloc(6 * size);
    REQUIRE(message != NULL && records != NULL);
    size_t length = 0, made = 0;
    for (size_t at = 0; at + RECORD_HEADER <= size;) {
        size_t fragment = (size_t)data[at + 3] << 8 | data[at + 4];
        at += RECORD_HEADER;
        if (fragment > size - at)
            fragment = size - at;
        memcpy(message + length, data + at, fragment);
        length += fragment;
        at += fragment;
        if (length >= MESSAGE_HEADER &&
            length - MESSAGE_HEADER >= ((size_t)message[1] << 16 | (size_t)message[2] << 8 | message[3]))
            break;
    }
    for (size_t at = 0, turn = 0; at < length; turn++) {
        size_t fragment = 1 + message[(turn * 7) % length] % 64;
        if (fragment > length - at)
            fragment = length - at;
        memcpy(records + made, (const uint8_t[]){RECORD_HANDSHAKE, 3, 1, 0, (uint8_t)fragment}, RECORD_HEADER);
        memcpy(records + made + RECORD_HEADER, message + at, fragment);
        made += RECORD_HEADER + fragment;
        at += fragment;
    }
    struct client_hello hello;
    REQUIRE(parse_exactly(records, made, 6 * size + 1, &hello) == 1);
    REQUIRE(memcmp(&hello, want, sizeof hello) == 0);
    free(message);
    free(records);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct client_hello hello;
    if (parse_exactly(data, size, 16384, &hello) == 1) {
        require_sound(&hello);
        require_same_in_other_records(data, size, &hello);
    }
    require_one_answer(data, size, 16384);
    require_one_answer(data, size, 200);
    return 0;
}
