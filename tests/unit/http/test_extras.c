/* SPDX-License-Identifier: MIT */
#include "check.h"
#include "extras.h"

#include <errno.h>

static struct http_extras extras;

static void cache(const char *text)
{
    const char *why = NULL;
    if (http_extras_add_cache(&extras, text, &why) != 0)
        CHECK_FAIL("%s: %s", text, why);
}

static const char *said_of(const char *path)
{
    const char *value = http_extras_cache(&extras, path);
    return value != NULL ? value : "(nothing)";
}

TEST("the first pattern that fits says what caches may do")
{
    cache("/assets/*.css = public, max-age=31536000, immutable");
    cache("*.js=max-age=60");
    cache("/a?c=no-store");
    cache("index.html=no-cache");
    cache("*/old/*=max-age=1");
    cache("*.html=max-age=5");
    CHECK_STR(said_of("assets/site.css"), "public, max-age=31536000, immutable");
    CHECK_STR(said_of("assets/deep/site.css"), "public, max-age=31536000, immutable");
    CHECK_STR(said_of("site.css"), "(nothing)");
    CHECK_STR(said_of("other/assets/site.css"), "(nothing)");
    CHECK_STR(said_of("a.js"), "max-age=60");
    CHECK_STR(said_of("deep/er/a.js"), "max-age=60");
    CHECK_STR(said_of("a.js/b"), "(nothing)");
    CHECK_STR(said_of("a.JS"), "(nothing)");
    CHECK_STR(said_of("abc"), "no-store");
    CHECK_STR(said_of("ac"), "(nothing)");
    CHECK_STR(said_of("abbc"), "(nothing)");
    CHECK_STR(said_of("deep/index.html"), "no-cache");
    CHECK_STR(said_of("deep/old/x"), "max-age=1");
    CHECK_STR(said_of("x.html"), "max-age=5");
    http_extras_free(&extras);
    CHECK_STR(said_of("a.js"), "(nothing)");
}

TEST("a star takes as much as it has to")
{
    cache("*a*b*c=1");
    cache("**=2");
    CHECK_STR(said_of("abc"), "1");
    CHECK_STR(said_of("xxaxxabxxcxxc"), "1");
    CHECK_STR(said_of("aabbcc"), "1");
    CHECK_STR(said_of("acb"), "2");
    CHECK_STR(said_of("abcd"), "2");
    http_extras_free(&extras);
}

TEST("a pattern of many stars takes no exponential time")
{
    char text[512] = "", name[4096];
    for (int i = 0; i < 100; i++)
        strcat(text, "*a");
    strcat(text, "b=x");
    cache(text);
    memset(name, 'a', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    CHECK_STR(said_of(name), "(nothing)");
    http_extras_free(&extras);
}

TEST("fields are sent in their order, with one blank behind the colon")
{
    const char *why;
    CHECK_EQ(http_extras_add_header(&extras, "Access-Control-Allow-Origin:*", &why), 0);
    CHECK_EQ(http_extras_add_header(&extras, "X-Frame-Options: \t DENY ", &why), 0);
    CHECK_STR(extras.header, "Access-Control-Allow-Origin: *\r\nX-Frame-Options: DENY\r\n");
    CHECK_EQ(extras.header_length, strlen(extras.header));
    http_extras_free(&extras);
}

TEST("what would break a response is refused, and told why")
{
    static const struct {
        const char *text, *why;
    } headers[] =
        {
            {"", "Name: value"},
            {"X", "Name: value"},
            {": x", "Name: value"},
            {"X Y: z", "Name: value"},
            {"X : z", "Name: value"},
            {"X:", "missing"},
            {"X: ", "missing"},
            {"X: a\r\nSet-Cookie: b", "one line"},
            {"X: a\x7f", "one line"},
            {"X: \xc3\xbc", "one line"},
            {"content-length: 3", "itself"},
            {"Transfer-Encoding: chunked", "itself"},
            {"ETAG: x", "itself"},
            {"Cache-Control: no-store", "by cache"},
        },
      caches[] = {
          {"", "PATTERN=VALUE"},  {"*.js", "PATTERN=VALUE"}, {"=no-store", "pattern is missing"},
          {"*.js=", "missing"},   {"*.js= ", "missing"},     {"a/b=no-store", "begins with a slash"},
          {"*=a\nb", "one line"},
      };
    const char *why;
    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
        why = "";
        int r = http_extras_add_header(&extras, headers[i].text, &why);
        if (r != -EINVAL || strstr(why, headers[i].why) == NULL)
            CHECK_FAIL("\"%s\": %d, %s", headers[i].text, r, why);
    }
    for (size_t i = 0; i < sizeof caches / sizeof caches[0]; i++) {
        why = "";
        int r = http_extras_add_cache(&extras, caches[i].text, &why);
        if (r != -EINVAL || strstr(why, caches[i].why) == NULL)
            CHECK_FAIL("\"%s\": %d, %s", caches[i].text, r, why);
    }
    CHECK(extras.header == NULL && extras.cache_count == 0);
    http_extras_free(&extras);
}

TEST("a head does not grow beyond what clients take")
{
    const char *why = "";
    char text[EXTRAS_HEADER_MAX];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 3] = '\0'; /* a blank and CRLF come to it */
    text[1] = ':';
    CHECK_EQ(http_extras_add_header(&extras, text, &why), 0);
    CHECK_EQ(http_extras_add_header(&extras, "Y: z", &why), -EINVAL);
    CHECK(strstr(why, "4096") != NULL);
    memcpy(text, "*=", 2);
    CHECK_EQ(http_extras_add_cache(&extras, text, &why), -EINVAL);
    CHECK(strstr(why, "512") != NULL);
    http_extras_free(&extras);
}

CHECK_MAIN()
