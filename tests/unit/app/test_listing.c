/* SPDX-License-Identifier: MIT */
#include "check.h"
#include "directory.h"
#include "http/listing.h"

#include <errno.h>

static char *page(const char *path, const struct listing_entry *entries, size_t count, bool complete)
{
    char *text;
    size_t length;
    if (listing_render(path, entries, count, complete, &text, &length) < 0)
        abort();
    return text;
}

TEST("no name can leave its place in the page")
{
    struct listing_entry entries[] = {
        {.name = (char[]){"<script>\"'&x"}, .size = 1},
        {.name = (char[]){"a:b\nc\x01"}, .size = 1},
        {.name = (char[]){"\xff\xfe"}, .size = 1},
        {.name = (char[]){"%2e%2e"}, .directory = true},
    };
    char *text = page("sub&<b>/", entries, 4, true);
    CHECK(strstr(text, "<script>") == NULL);
    CHECK(strstr(text, "\">&lt;script&gt;&quot;&#39;&amp;x</a>") != NULL);
    CHECK(strstr(text, "href=\"./%3Cscript%3E%22%27%26x\"") != NULL);
    CHECK(strstr(text, "href=\"./a%3Ab%0Ac%01\"") != NULL);
    CHECK(strchr(text, '\x01') == NULL);
    CHECK(strstr(text, "href=\"./%FF%FE\"") != NULL);
    CHECK(strstr(text, "href=\"./%252e%252e/\"") != NULL);
    CHECK(strstr(text, "<h1>/sub&amp;&lt;b&gt;/</h1>") != NULL);
    free(text);
}

TEST("the root has no way up, other directories have")
{
    char *text = page(".", NULL, 0, true);
    CHECK(strstr(text, "../") == NULL);
    free(text);
    text = page("sub/", NULL, 0, true);
    CHECK(strstr(text, "href=\"../\"") != NULL);
    free(text);
}

TEST("a list that was cut says so")
{
    char *text = page(".", NULL, 0, false);
    CHECK(strstr(text, "Only the first") != NULL);
    free(text);
}

TEST("a directory shows what would be served, directories first, in order")
{
    struct beneath beneath;
    beneath_init(&beneath, directory_make(), false);
    file_write("b", "12");
    file_write("A", "1");
    file_write(".hidden", "");
    mkdir("z", 0755);
    mkdir(".well-known", 0755);
    mkfifo("fifo", 0644);
    if (symlink("A", "inside") < 0 || symlink("../outside", "climbs") < 0 || symlink("gone", "dangling") < 0)
        abort();
    struct listing_entry *entries;
    size_t count;
    bool complete;
    CHECK_EQ(listing_read(&beneath, ".", &entries, &count, &complete), 0);
    CHECK_EQ(count, 5);
    CHECK(complete);
    const char *names[] = {".well-known", "z", "A", "b", "inside"};
    for (size_t i = 0; i < count; i++)
        CHECK_STR(entries[i].name, names[i]);
    CHECK(entries[0].directory && entries[1].directory && !entries[2].directory);
    CHECK_EQ(entries[3].size, 2);
    CHECK_EQ(entries[4].size, 1);
    listing_free(entries, count);
    CHECK_EQ(listing_read(&beneath, "A", &entries, &count, &complete), -ENOTDIR);
    CHECK_EQ(listing_read(&beneath, "nothing/", &entries, &count, &complete), -ENOENT);
}

CHECK_MAIN()
