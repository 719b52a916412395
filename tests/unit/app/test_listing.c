/* SPDX-License-Identifier: MIT */
#include "check.h"
#include "directory.h"
#include "http/listing.h"

#include <errno.h>

static char *rendered(const char *path, const struct listing_entry *entries, size_t count, bool complete,
                      const struct listing_view *view)
{
    char *text;
    size_t length;
    if (listing_render(path, entries, count, complete, view, &text, &length) < 0)
        abort();
    return text;
}

static char *page(const char *path, const struct listing_entry *entries, size_t count, bool complete)
{
    return rendered(path, entries, count, complete, &(struct listing_view){.sort = LISTING_BY_NAME});
}

static struct slice of(const char *text)
{
    return (struct slice){text, text == NULL ? 0 : strlen(text)};
}

static struct listing_view asked(const char *query, const char *accept)
{
    struct listing_view view;
    listing_choose(of(query), of(accept), &view);
    return view;
}

/* The names in the order of a view, one after the other. */
static const char *sorted(struct listing_entry *entries, size_t count, const char *query)
{
    static char names[512];
    struct listing_view view = asked(query, NULL);
    listing_sort(entries, count, &view);
    names[0] = '\0';
    for (size_t i = 0; i < count; i++) {
        strcat(names, entries[i].name);
        strcat(names, i + 1 < count ? " " : "");
    }
    return names;
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
    CHECK(strstr(text, "<script>\"") == NULL);
    CHECK(strstr(text, "\"><bdi>&lt;script&gt;&quot;&#39;&amp;x</bdi></a>") != NULL);
    CHECK(strstr(text, "href=\"./%3Cscript%3E%22%27%26x\"") != NULL);
    CHECK(strstr(text, "href=\"./a%3Ab%0Ac%01\"") != NULL);
    CHECK(strchr(text, '\x01') == NULL);
    CHECK(strchr(text, '\xff') == NULL);
    CHECK(strstr(text, "href=\"./%FF%FE\"><bdi>\xef\xbf\xbd\xef\xbf\xbd</bdi>") != NULL);
    CHECK(strstr(text, "href=\"./%252e%252e/\"") != NULL);
    CHECK(strstr(text, "<bdi>sub&amp;&lt;b&gt;</bdi>") != NULL);
    CHECK(strstr(text, "sub&<b>") == NULL);
    free(text);
}

TEST("the root has no way up, other directories have, and a link for each directory above")
{
    char *text = page(".", NULL, 0, true);
    CHECK(strstr(text, "../") == NULL);
    free(text);
    text = page("sub/", NULL, 0, true);
    CHECK(strstr(text, "class=\"up\"><td><a href=\"../\"") != NULL);
    free(text);
    text = page("a/b c/d/", NULL, 0, true);
    CHECK(strstr(text, "<a href=\"../../../\" aria-label=\"Top\">/</a><a href=\"../../\"><bdi>a</bdi></a><i>/</i>"
                       "<a href=\"../\"><bdi>b c</bdi></a><i>/</i><b aria-current=\"page\"><bdi>d</bdi></b>") != NULL);
    free(text);
}

TEST("sizes are shown for people and exactly, times in UTC")
{
    struct listing_entry entries[] = {
        {.name = (char[]){"a"}, .size = 1234567, .modified = 1795282790},
        {.name = (char[]){"b"}, .size = UINT64_MAX, .modified = 0},
        {.name = (char[]){"d"}, .directory = true, .modified = 0},
    };
    char *text = page(".", entries, 3, true);
    CHECK(strstr(text, "<data value=\"1234567\" title=\"1,234,567 bytes\">1.2 MiB</data>") != NULL);
    CHECK(strstr(text, "title=\"18,446,744,073,709,551,615 bytes\"") != NULL);
    CHECK(strstr(text, "<time datetime=\"2026-11-21T17:39:50Z\">2026-11-21 17:39</time>") != NULL);
    CHECK(strstr(text, "<td></td><td><time datetime=\"1970-01-01T00:00:00Z\">") != NULL);
    CHECK(strstr(text, "1 directory, 2 files") != NULL);
    free(text);
}

TEST("the query says how to sort; what it does not know is passed over")
{
    static const struct {
        const char *query;
        enum listing_order sort;
        bool descending;
    } cases[] = {
        {NULL, LISTING_BY_NAME, false},
        {"", LISTING_BY_NAME, false},
        {"sort=size", LISTING_BY_SIZE, false},
        {"sort=time&order=desc", LISTING_BY_TIME, true},
        {"order=desc", LISTING_BY_NAME, true},
        {"x=y&&sort=size&order=up&sort&=", LISTING_BY_SIZE, false},
        {"sort=time&sort=name&order=desc&order=asc", LISTING_BY_NAME, false},
        {"sort=sizes&Sort=size", LISTING_BY_NAME, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct listing_view view = asked(cases[i].query, NULL);
        CHECK_EQ(view.sort, cases[i].sort);
        CHECK_EQ(view.descending, cases[i].descending);
        CHECK(!view.json);
    }
}

TEST("entries are sorted as asked, directories first, equals by name")
{
    struct listing_entry entries[] = {
        {.name = (char[]){"b10"}, .size = 5, .modified = 30},
        {.name = (char[]){"B9"}, .size = 7, .modified = 10},
        {.name = (char[]){"a"}, .size = 5, .modified = 20},
        {.name = (char[]){"z"}, .directory = true, .modified = 5},
        {.name = (char[]){"y"}, .directory = true, .modified = 6},
    };
    CHECK_STR(sorted(entries, 5, NULL), "y z a B9 b10");
    CHECK_STR(sorted(entries, 5, "order=desc"), "z y b10 B9 a");
    CHECK_STR(sorted(entries, 5, "sort=size"), "y z a b10 B9");
    CHECK_STR(sorted(entries, 5, "sort=size&order=desc"), "y z B9 a b10");
    CHECK_STR(sorted(entries, 5, "sort=time"), "z y B9 a b10");
    CHECK_STR(sorted(entries, 5, "sort=time&order=desc"), "y z b10 a B9");
}

TEST("numbers in names are sorted as numbers, however long, and no two names are equal")
{
    struct listing_entry entries[] = {
        {.name = (char[]){"e100000000000000000000001"}},
        {.name = (char[]){"e10"}},
        {.name = (char[]){"e010"}},
        {.name = (char[]){"e9a"}},
        {.name = (char[]){"e9"}},
        {.name = (char[]){"E9"}},
        {.name = (char[]){"e100000000000000000000000"}},
        {.name = (char[]){"e"}},
    };
    CHECK_STR(sorted(entries, 8, NULL), "e E9 e9 e9a e010 e10 e100000000000000000000000 e100000000000000000000001");
}

TEST("a sorted page links to its other orders, and its directories to themselves in this one")
{
    struct listing_entry entries[] = {{.name = (char[]){"d"}, .directory = true}, {.name = (char[]){"f"}}};
    struct listing_view view = asked("sort=size&order=desc", NULL);
    char *text = rendered("a/b/", entries, 2, true, &view);
    CHECK(strstr(text, "<th scope=\"col\"><a href=\"./?sort=name&amp;order=asc\">Name</a>") != NULL);
    CHECK(strstr(text, "aria-sort=\"descending\"><a href=\"./?sort=size&amp;order=asc\">Size</a>") != NULL);
    CHECK(strstr(text, "<th scope=\"col\"><a href=\"./?sort=time&amp;order=desc\">Modified") != NULL);
    CHECK(strstr(text, "href=\"./d/?sort=size&amp;order=desc\"") != NULL);
    CHECK(strstr(text, "href=\"./f\"") != NULL);
    CHECK(strstr(text, "href=\"../?sort=size&amp;order=desc\">../</a>") != NULL);
    CHECK(strstr(text, "href=\"../../?sort=size&amp;order=desc\" aria-label=\"Top\"") != NULL);
    free(text);
}

TEST("JSON for who prefers it, whatever bytes are in a name")
{
    CHECK(asked(NULL, "application/json").json);
    CHECK(asked(NULL, "text/html;q=0.5, application/json").json);
    CHECK(!asked(NULL, "*/*").json);
    CHECK(!asked(NULL, "text/html,application/xml;q=0.9,*/*;q=0.8").json);
    struct listing_entry entries[] = {
        {.name = (char[]){"d"}, .directory = true, .modified = 0},
        {.name = (char[]){"\"\n\xff"}, .size = 3, .modified = 1795282790},
    };
    struct listing_view view = asked(NULL, "application/json");
    char *text = rendered("a\\b/", entries, 2, true, &view);
    CHECK_STR(text, "{\"path\": \"/a\\\\b/\", \"complete\": true, \"entries\": [\n"
                    "{\"name\": \"d\", \"href\": \"./d/\", \"type\": \"directory\", "
                    "\"modified\": \"1970-01-01T00:00:00Z\"},\n"
                    "{\"name\": \"\\\"\\u000a\xef\xbf\xbd\", \"href\": \"./%22%0A%FF\", \"type\": \"file\", "
                    "\"size\": 3, \"modified\": \"2026-11-21T17:39:50Z\"}\n]}\n");
    free(text);
    CHECK_STR(listing_type(&view), "application/json");
    CHECK(strstr(listing_fields(&view), "Vary: Accept\r\n") != NULL);
}

TEST("a list that was cut says so")
{
    char *text = page(".", NULL, 0, false);
    CHECK(strstr(text, "only the first") != NULL);
    free(text);
}

TEST("a directory shows what would be served, directories first, in order")
{
    struct beneath beneath;
    beneath_init(&beneath, directory_make(), BENEATH_SYMLINKS_INSIDE, false);
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
    listing_sort(entries, count, &(struct listing_view){.sort = LISTING_BY_NAME});
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
