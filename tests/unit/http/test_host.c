/* SPDX-License-Identifier: MIT */
#include "check.h"
#include "host.h"

#include <errno.h>

static struct host_names names;

/* In memory of exactly its size, for the address sanitizer. */
static int find(const char *host)
{
    size_t length = strlen(host);
    char *copy = malloc(length > 0 ? length : 1);
    memcpy(copy, host, length);
    int site = host_names_find(&names, (struct slice){copy, length});
    free(copy);
    return site;
}

static void add(const char *name, unsigned site)
{
    const char *why = NULL;
    if (host_names_add(&names, name, site, &why) != 0)
        CHECK_FAIL("%s: %s", name, why);
}

TEST("a host finds its name in any case, with or without a port or a dot at the end")
{
    add("www.Example.org", 1);
    add("192.0.2.1", 2);
    add("[2001:DB8::1]", 3);
    add("localhost", 4);
    CHECK_EQ(find("www.example.org"), 1);
    CHECK_EQ(find("WWW.EXAMPLE.ORG"), 1);
    CHECK_EQ(find("www.example.org:8080"), 1);
    CHECK_EQ(find("www.example.org:"), 1);
    CHECK_EQ(find("www.example.org."), 1);
    CHECK_EQ(find("www.example.org.:443"), 1);
    CHECK_EQ(find("192.0.2.1"), 2);
    CHECK_EQ(find("192.0.2.1:80"), 2);
    CHECK_EQ(find("[2001:db8::1]"), 3);
    CHECK_EQ(find("[2001:db8::1]:80"), 3);
    CHECK_EQ(find("localhost"), 4);
    host_names_free(&names);
}

TEST("a host that is nobody's finds nothing")
{
    char longest[300];
    add("www.example.org", 1);
    add("*.example.net", 2);
    CHECK_EQ(find(""), -1);
    CHECK_EQ(find(":80"), -1);
    CHECK_EQ(find("."), -1);
    CHECK_EQ(find("example.org"), -1);
    CHECK_EQ(find("www.example.org.."), -1);
    CHECK_EQ(find("xwww.example.org"), -1);
    CHECK_EQ(find("www.example.orgx"), -1);
    CHECK_EQ(find("example.net"), -1);
    CHECK_EQ(find(".example.net"), -1);
    CHECK_EQ(find("xexample.net"), -1);
    CHECK_EQ(find("[::1]"), -1);
    CHECK_EQ(host_names_find(&names, (struct slice){NULL, 0}), -1);
    memset(longest, 'x', sizeof longest);
    memcpy(longest + sizeof longest - sizeof ".example.net", ".example.net", sizeof ".example.net");
    CHECK_EQ(find(longest), -1);
    CHECK_EQ(find(longest + sizeof longest - 1 - HOST_NAME_MAX_LENGTH), 2);
    CHECK_EQ(find(longest + sizeof longest - 2 - HOST_NAME_MAX_LENGTH), -1);
    host_names_free(&names);
    CHECK_EQ(find("www.example.org"), -1);
}

TEST("the whole name counts more than a wildcard, and a longer wildcard more than a shorter one")
{
    add("*.org", 1);
    add("*.example.org", 2);
    add("*.b.example.org", 3);
    add("a.example.org", 4);
    CHECK_EQ(find("a.example.org"), 4);
    CHECK_EQ(find("b.example.org"), 2);
    CHECK_EQ(find("a.b.example.org"), 3);
    CHECK_EQ(find("x.y.b.example.org:80"), 3);
    CHECK_EQ(find("x.y.c.example.org"), 2);
    CHECK_EQ(find("example.org"), 1);
    CHECK_EQ(find("org"), -1);
    host_names_free(&names);
}

TEST("a name that no Host could have is refused, and told why")
{
    static const struct {
        const char *name, *why;
    } cases[] = {
        {"", "empty"},
        {".", "empty label"},
        {"a..b", "empty label"},
        {".a", "empty label"},
        {"*.", "empty label"},
        {"*", "beginning only"},
        {"www.*.org", "beginning only"},
        {"www*", "beginning only"},
        {"www.example.org:80", "without its port"},
        {"[::1]:80", "in brackets"},
        {"[]", "in brackets"},
        {"::1", "without its port"},
        {"b\xc3\xbc"
         "cher.example",
         "xn--"},
        {"a b", "letters, digits"},
        {"http://a", "without its port"},
        {"a/b", "letters, digits"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *why = "";
        int r = host_names_add(&names, cases[i].name, 0, &why);
        if (r != -EINVAL || strstr(why, cases[i].why) == NULL)
            CHECK_FAIL("\"%s\": %d, %s", cases[i].name, r, why);
    }
    CHECK_EQ(names.count, 0);
}

TEST("a name is there once")
{
    const char *why = NULL;
    add("a.example", 1);
    CHECK_EQ(host_names_add(&names, "A.example.", 2, &why), -EEXIST);
    CHECK_EQ(find("a.example"), 1);
    host_names_free(&names);
}

TEST("of a thousand names each finds its own")
{
    char name[32];
    for (unsigned i = 0; i < 1000; i++) {
        snprintf(name, sizeof name, "%s%u.example", i % 2 ? "*." : "", i * 7919 % 1000);
        add(name, i);
    }
    for (unsigned i = 0; i < 1000; i++) {
        snprintf(name, sizeof name, "%s%u.example:1", i % 2 ? "x.y." : "", i * 7919 % 1000);
        CHECK_EQ(find(name), i);
    }
    host_names_free(&names);
}

CHECK_MAIN()
