/* SPDX-License-Identifier: MIT */
#include "accept.h"
#include "check.h"

#include <string.h>

static struct slice of(const char *text)
{
    return (struct slice){text, text == NULL ? 0 : strlen(text)};
}

TEST("a media type has the quality of the most specific range that matches it")
{
    static const struct {
        const char *field;
        unsigned html, json;
    } cases[] = {
        {NULL, 1000, 1000},
        {"", 0, 0},
        {"*/*", 1000, 1000},
        {"application/json", 0, 1000},
        {"APPLICATION/Json", 0, 1000},
        {"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", 1000, 800},
        {"application/*;q=0.5, text/html;q=0.25", 250, 500},
        {"application/json;q=0, */*", 1000, 0},
        {"*/*, application/json ; charset=utf-8 ; Q=0.125", 1000, 125},
        {"application/json;version=\"a,text/html;q=1\";q=0.3", 0, 300},
        {"application/json;a=\"\\\",text/html\";q=0.3", 0, 300},
        {",, ,application/json,", 0, 1000},
        {"application/jsonx, application/jso, application", 0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK_EQ(accept_media_type(of(cases[i].field), "text/html"), cases[i].html);
        CHECK_EQ(accept_media_type(of(cases[i].field), "application/json"), cases[i].json);
    }
}

TEST("a quality that cannot be read counts as none")
{
    static const char *const wrong[] = {"2", "1.001", "-1", "0,5", "0.1234", ".5", "", "1x", "0.x", "nan"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char field[64];
        snprintf(field, sizeof field, "text/html;q=%s", wrong[i]);
        CHECK_EQ(accept_media_type(of(field), "text/html"), 0);
    }
    CHECK_EQ(accept_media_type(of("text/html;q=1."), "text/html"), 1000);
    CHECK_EQ(accept_media_type(of("text/html;q=0.001"), "text/html"), 1);
}

TEST("a list gives its elements in their order, each once")
{
    struct slice rest = of(" gzip ;q=0.5,, br;q=1.0 , identity;q=0,*"), name;
    static const struct {
        const char *name;
        unsigned quality;
    } expected[] = {{"gzip", 500}, {"br", 1000}, {"identity", 0}, {"*", 1000}};
    unsigned quality;
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        CHECK(accept_next(&rest, &name, &quality));
        CHECK_EQ(name.length, strlen(expected[i].name));
        CHECK(memcmp(name.data, expected[i].name, name.length) == 0);
        CHECK_EQ(quality, expected[i].quality);
    }
    CHECK(!accept_next(&rest, &name, &quality));
}

CHECK_MAIN()
