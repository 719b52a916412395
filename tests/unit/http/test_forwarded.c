/* SPDX-License-Identifier: MIT */
#include "check.h"
#include "forwarded.h"

#include <arpa/inet.h>
#include <errno.h>

static char *copy;
static struct slice list;

static void begin(const char *text)
{
    size_t length = strlen(text);
    free(copy);
    copy = malloc(length > 0 ? length : 1); /* exact, for the address sanitizer */
    memcpy(copy, text, length);
    list = (struct slice){copy, length};
}

/* The last element, as text. */
static const char *last(void)
{
    static char text[INET6_ADDRSTRLEN];
    struct in6_addr address;
    int r = http_forwarded_take_last(&list, &address);
    if (r <= 0)
        return r == 0 ? "(empty)" : r == -EINVAL ? "(invalid)" : "(?)";
    if (IN6_IS_ADDR_V4MAPPED(&address))
        return inet_ntop(AF_INET, &address.s6_addr[12], text, sizeof text);
    return inet_ntop(AF_INET6, &address, text, sizeof text);
}

TEST("addresses are taken from the end of the list, with or without ports")
{
    begin("203.0.113.1, 198.51.100.2:4711 ,\t192.0.2.3");
    CHECK_STR(last(), "192.0.2.3");
    CHECK_STR(last(), "198.51.100.2");
    CHECK_STR(last(), "203.0.113.1");
    CHECK_STR(last(), "(empty)");
    begin("2001:db8::1,[2001:db8::2], [2001:db8::3]:443,::1, ::ffff:192.0.2.1");
    CHECK_STR(last(), "192.0.2.1");
    CHECK_STR(last(), "::1");
    CHECK_STR(last(), "2001:db8::3");
    CHECK_STR(last(), "2001:db8::2");
    CHECK_STR(last(), "2001:db8::1");
    CHECK_STR(last(), "(empty)");
}

TEST("empty elements are passed over")
{
    begin(" , 192.0.2.1,, ,");
    CHECK_STR(last(), "192.0.2.1");
    CHECK_STR(last(), "(empty)");
    begin("");
    CHECK_STR(last(), "(empty)");
}

TEST("what is no address is not taken for one")
{
    static const char *const wrong[] = {
        "unknown",
        "_hidden",
        "192.0.2",
        "192.0.2.1:",
        "192.0.2.1:123456",
        "192.0.2.1:http",
        "192.0.2.1 192.0.2.2",
        "[192.0.2.1]",
        "[2001:db8::1",
        "2001:db8::1]",
        "[2001:db8::1]443",
        "[2001:db8::1]:",
        "[]",
        "fe80::1%eth0",
        "a:1",
        "\"192.0.2.1\"",
        "192.0.2.256",
        "1111:2222:3333:4444:5555:6666:7777:8888:9999:aaaa:bbbb:cccc:dddd",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        begin(wrong[i]);
        const char *got = last();
        if (strcmp(got, "(invalid)") != 0)
            CHECK_FAIL("\"%s\": %s", wrong[i], got);
    }
    free(copy);
}

CHECK_MAIN()
