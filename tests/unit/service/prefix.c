/* SPDX-License-Identifier: MIT */
#include "service/prefix.h"
#include "check.h"

#include <arpa/inet.h>
#include <errno.h>
#include <sys/un.h>

static struct failure failure;

static struct in6_addr address_of(const char *text)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    struct in6_addr address = {0};
    if (inet_pton(AF_INET, text, &v4.sin_addr) == 1)
        CHECK(address_as_ipv6((struct sockaddr *)&v4, &address));
    else if (inet_pton(AF_INET6, text, &v6.sin6_addr) == 1)
        CHECK(address_as_ipv6((struct sockaddr *)&v6, &address));
    else
        CHECK_FAIL("%s", text);
    return address;
}

static bool holds(const char *prefix_text, const char *text)
{
    struct address_prefix prefix;
    struct in6_addr address = address_of(text);
    if (address_prefix_parse(prefix_text, &prefix, &failure) < 0)
        CHECK_FAIL("%.300s", failure.text);
    return address_in_prefixes(&address, &prefix, 1);
}

TEST("a network holds its addresses and no others")
{
    CHECK(holds("10.0.0.0/8", "10.255.255.255"));
    CHECK(!holds("10.0.0.0/8", "11.0.0.0"));
    CHECK(holds("192.0.2.128/25", "192.0.2.129"));
    CHECK(!holds("192.0.2.128/25", "192.0.2.127"));
    CHECK(holds("192.0.2.1", "192.0.2.1"));
    CHECK(!holds("192.0.2.1", "192.0.2.0"));
    CHECK(holds("0.0.0.0/0", "203.0.113.9"));
    CHECK(holds("2001:db8::/32", "2001:db8:ffff::1"));
    CHECK(!holds("2001:db8::/32", "2001:db9::"));
    CHECK(holds("2001:db8:8000::/33", "2001:db8:8001::"));
    CHECK(!holds("2001:db8:8000::/33", "2001:db8:7fff::"));
    CHECK(holds("::1", "::1"));
    CHECK(!holds("::1", "::2"));
    CHECK(holds("::/0", "2001:db8::"));
}

TEST("IPv4 is what it is in sockets of IPv6, too, and no other part of that")
{
    CHECK(holds("10.0.0.0/8", "::ffff:10.1.2.3"));
    CHECK(holds("::ffff:10.0.0.0/104", "10.1.2.3"));
    CHECK(!holds("0.0.0.0/0", "2001:db8::1"));
    CHECK(!holds("0.0.0.0/0", "::a00:1"));
    CHECK(holds("::/0", "10.1.2.3"));
}

TEST("of several networks one is enough")
{
    struct address_prefix prefixes[2];
    struct in6_addr inside = address_of("192.0.2.7"), outside = address_of("198.51.100.7");
    CHECK_EQ(address_prefix_parse("10.0.0.0/8", &prefixes[0], &failure), 0);
    CHECK_EQ(address_prefix_parse("192.0.2.0/24", &prefixes[1], &failure), 0);
    CHECK(address_in_prefixes(&inside, prefixes, 2));
    CHECK(!address_in_prefixes(&outside, prefixes, 2));
    CHECK(!address_in_prefixes(&inside, prefixes, 0));
}

TEST("what is no network is refused with what to write instead")
{
    static const char *const wrong[][2] = {
        {"", "write 10.0.0.0/8"},
        {"10.0.0", "write 10.0.0.0/8"},
        {"localhost", "write 10.0.0.0/8"},
        {"10.0.0.0/33", "0 to 32 bits"},
        {"10.0.0.0/", "0 to 32 bits"},
        {"10.0.0.0/-1", "0 to 32 bits"},
        {"::/129", "0 to 128 bits"},
        {"10.0.0.1/8", "is 10.0.0.0/8 meant, or 10.0.0.1 alone?"},
        {"2001:db8::1/64", "is 2001:db8::/64 meant, or 2001:db8::1 alone?"},
        {"10.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0/8", "write 10.0.0.0/8"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct address_prefix prefix = {.bits = 4711};
        int r = address_prefix_parse(wrong[i][0], &prefix, &failure);
        if (r != -EINVAL || strstr(failure.text, wrong[i][1]) == NULL || prefix.bits != 4711)
            CHECK_FAIL("\"%s\": %d, %.300s", wrong[i][0], r, failure.text);
    }
}

TEST("a Unix socket has no such address")
{
    struct in6_addr address;
    CHECK(!address_as_ipv6(&(struct sockaddr){.sa_family = AF_UNIX}, &address));
}

CHECK_MAIN()
