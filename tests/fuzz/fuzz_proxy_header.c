/* SPDX-License-Identifier: MIT */
#include "fuzz.h"
#include "service/proxy_header.c"

static ssize_t parse_exactly(const uint8_t *data, size_t size, size_t max, struct proxy_header *ret_header)
{
    const char *why = NULL;
    char *copy = exact_copy(data, size);
    ssize_t status = proxy_header_parse(copy, size, max, ret_header, &why);
    free(copy);
    REQUIRE((status == -EPROTO) == (why != NULL));
    REQUIRE(status == -EAGAIN || status == -EPROTO || status == -EMSGSIZE ||
            (status > 0 && (size_t)status <= size && (size_t)status <= max));
    REQUIRE(status != -EAGAIN || size < max);
    return status;
}

static size_t write_addresses(const struct proxy_header *header, char buffer[PROXY_HEADER_WRITE_MAX])
{
    return proxy_header_write(header->version, (const struct sockaddr *)&header->source, sizeof header->source,
                              (const struct sockaddr *)&header->destination, sizeof header->destination, buffer);
}

/* What was read is written so that it is read as the same, and the second writing is the first. */
static void require_round_trip(const struct proxy_header *header)
{
    char once[PROXY_HEADER_WRITE_MAX], twice[PROXY_HEADER_WRITE_MAX];
    size_t length = write_addresses(header, once);
    REQUIRE(length > 0 && length <= sizeof once);
    struct proxy_header again;
    REQUIRE(parse_exactly((const uint8_t *)once, length, length, &again) == (ssize_t)length);
    REQUIRE(again.version == header->version && again.local == header->local);
    /* IPv4 within IPv6 comes back as IPv4. */
    if (again.source.ss_family == header->source.ss_family)
        REQUIRE(memcmp(&again, header, sizeof again) == 0);
    else
        REQUIRE(header->source.ss_family == AF_INET6 && again.source.ss_family == AF_INET);
    REQUIRE(write_addresses(&again, twice) == length);
    REQUIRE(memcmp(once, twice, length) == 0);
}

static void require_one_answer(const uint8_t *data, size_t size, size_t max)
{
    struct proxy_header header;
    ssize_t whole = parse_exactly(data, size, max, &header);
    bool decided = false;
    for (size_t length = 0; length <= size; length += 1 + size / 128) {
        ssize_t status = parse_exactly(data, length, max, &header);
        if (whole > 0)
            REQUIRE(status == ((ssize_t)length < whole ? -EAGAIN : whole));
        else
            REQUIRE(status == whole || (!decided && status == -EAGAIN));
        decided = status != -EAGAIN;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct proxy_header header;
    ssize_t length = parse_exactly(data, size, 4096, &header);
    if (length > 0) {
        REQUIRE(header.version == (data[0] == 'P' ? PROXY_HEADER_V1 : PROXY_HEADER_V2));
        REQUIRE(header.version != PROXY_HEADER_V1 || length <= PROXY_HEADER_V1_MAX);
        REQUIRE(header.source.ss_family == header.destination.ss_family);
        REQUIRE(header.local == (header.source.ss_family == AF_UNSPEC));
        require_round_trip(&header);
    }
    require_one_answer(data, size, 4096);
    require_one_answer(data, size, 40);
    return 0;
}
