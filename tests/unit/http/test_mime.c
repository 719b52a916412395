/* SPDX-License-Identifier: MIT */
#include "check.h"
#include "mime.c" /* for the table */

TEST("a type is found by the last extension, without regard to case")
{
    static const struct {
        const char *name, *type;
    } cases[] = {
        {"index.html", "text/html; charset=utf-8"},
        {"INDEX.HTM", "text/html; charset=utf-8"},
        {"a.css", "text/css; charset=utf-8"},
        {"a.mjs", "text/javascript; charset=utf-8"},
        {"a.txt", "text/plain; charset=utf-8"},
        {"a.json", "application/json"},
        {"a.b.Png", "image/png"},
        {"a.jpeg", "image/jpeg"},
        {"a.svg", "image/svg+xml"},
        {"a.avif", "image/avif"},
        {"a.jxl", "image/jxl"},
        {"a.woff2", "font/woff2"},
        {"a.wasm", "application/wasm"},
        {"a.m3u8", "application/vnd.apple.mpegurl"},
        {"a.ts", "video/mp2t"},
        {"a.mp4", "video/mp4"},
        {"a.webm", "video/webm"},
        {"a.tar.gz", "application/gzip"},
        {"a.zst", "application/zstd"},
        {"site.webmanifest", "application/manifest+json"},
        {"dir.d/a.pdf", "application/pdf"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        CHECK_STR(http_mime_type(cases[i].name), cases[i].type);
}

TEST("an unknown, empty, absent or overlong extension is a stream of bytes")
{
    static const char *const names[] = {"",
                                        "a",
                                        "a.",
                                        "html",
                                        ".",
                                        "a.html.",
                                        "a.xyzzy",
                                        "a.htm ",
                                        "a.\xc3\xa9",
                                        "dir.html/a",
                                        "a.webmanifests",
                                        "a.htmlhtmlhtmlhtml"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        CHECK_STR(http_mime_type(names[i]), "application/octet-stream");
}

TEST("every type of the table is found, so it is sorted")
{
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        char name[32];
        snprintf(name, sizeof name, "a.%.11s", types[i].extension);
        CHECK_STR(http_mime_type(name), types[i].type);
        CHECK(i == 0 || strcmp(types[i - 1].extension, types[i].extension) < 0);
    }
}

TEST("every text but XML says its encoding")
{
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (strncmp(types[i].type, "text/", 5) == 0 && strcmp(types[i].type, "text/xml") != 0)
            CHECK(strstr(types[i].type, "; charset=utf-8") != NULL);
}

CHECK_MAIN()
