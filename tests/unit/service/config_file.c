/* SPDX-License-Identifier: MIT */
#include "service/config_file.h"
#include "check.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct settings {
    const char *name;
    uint64_t count;
    struct option_list all;
    uint64_t size; /* from here on for sections, too */
    struct option_list tags;
    bool flag;
};

#define MEMBER(name) offsetof(struct settings, name)
static const struct option_spec table[] = {
    {"name", 0, "NAME", "", OPTION_TEXT, MEMBER(name), .default_text = "none"},
    {"count", 'n', "N", "", OPTION_UNSIGNED, MEMBER(count), .default_text = "1", .min = 1, .max = 9},
    {"all", 0, "X", "", OPTION_LIST, MEMBER(all), .default_text = NULL},
    {.type = OPTION_HEADING, .help = "Sections"},
    {"size", 0, "SIZE", "", OPTION_SIZE, MEMBER(size), .default_text = "4K"},
    {"tag", 0, "X", "", OPTION_LIST, MEMBER(tags), .default_text = NULL},
    {"flag", 0, NULL, "", OPTION_FLAG, MEMBER(flag), .default_text = "yes"},
    {.type = OPTION_END},
};
#define COUNT (sizeof table / sizeof table[0])

/* What the last file said: "name/size/tags/flag line;" for each section. */
static char sections[1024];
static char current[400];
static struct settings settings;
static struct config_storage *storage;
static struct config_origin origin;
static unsigned lines[COUNT];
static const char *given[COUNT];
static const struct command_spec command = {.program = "test", .options = table, .given = given};
static struct failure failure;

static int begin(void *context, const char *name, struct failure *why)
{
    (void)context;
    if (strcmp(name, "bad") == 0)
        return failure_set(why, -EINVAL, "[%s]: no such name, please", name);
    snprintf(current, sizeof current, "%s", name);
    return 0;
}

static int take(void *context, bool in_section, const struct option_spec *option, const char *value,
                struct failure *why)
{
    (void)context;
    if (strcmp(option->name, "name") != 0 || strcmp(value, "special") != 0)
        return 0;
    return in_section ? failure_set(why, -EPERM, "not here") : 1;
}

static int finish(void *context, void *options, const struct config_origin *from, struct failure *into)
{
    const struct settings *section = options;
    (void)context;
    size_t at = strlen(sections);
    if (section->size == 13)
        return config_wrong(from, "size", -EINVAL, into, "unlucky");
    if (section->size == 15)
        return config_wrong_value(from, "tag", section->tags.items[1], -EINVAL, into, "unlucky tag");
    if (section->size == 14)
        return config_wrong(from, "flag", -EINVAL, into, "unlucky, too");
    at += (size_t)snprintf(sections + at, sizeof sections - at, "%s/%u/", current, (unsigned)section->size);
    for (unsigned i = 0; i < section->tags.count; i++)
        at += (size_t)snprintf(sections + at, sizeof sections - at, "%s%s", i > 0 ? "," : "", section->tags.items[i]);
    snprintf(sections + at, sizeof sections - at, "/%d%s %u;", section->flag, config_has(from, "flag") ? "!" : "",
             from->line);
    return 0;
}

static int read_file(const char *text, const char *arguments, const char *section)
{
    static char copy[200], path[64];
    static char *words[16];
    int count = 0;
    if (path[0] == '\0')
        snprintf(path, sizeof path, "/tmp/config-file-test-%d", (int)getpid());
    FILE *file = fopen(path, "w");
    CHECK(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0);
    snprintf(copy, sizeof copy, "%s", arguments);
    for (char *word = strtok(copy, " "); word != NULL; word = strtok(NULL, " "))
        words[count++] = word;
    struct positionals none;
    options_free_lists(&command, &settings);
    config_forget(&storage);
    sections[0] = '\0';
    CHECK_EQ(options_parse(&command, count, words, &settings, &none, &failure), 0);
    const struct config_reader reader = {
        .path = path,
        .command = &command,
        .size = sizeof settings,
        .section_offset = MEMBER(size),
        .storage = &storage,
        .section = section,
        .grammar = "KEY = VALUE",
        .begin = begin,
        .take = take,
        .finish = finish,
    };
    int result = config_file_read(&reader, &settings, lines, &origin, &failure);
    CHECK_EQ(unlink(path), 0);
    /* Without the name, which changes. */
    if (result < 0 && strncmp(failure.text, path, strlen(path)) == 0)
        memmove(failure.text, failure.text + strlen(path), strlen(failure.text + strlen(path)) + 1);
    return result;
}

#define CHECK_WRONG(file, want)                                                                                        \
    do {                                                                                                               \
        CHECK(read_file(file, "", "part") < 0);                                                                        \
        CHECK_STR(failure.text, want);                                                                                 \
    } while (0)

TEST("keys before the first section are the defaults of all, and the command line counts more than they")
{
    CHECK_EQ(read_file("name = a\nsize = 5\ntag = x\n tag two\nflag = no\n[one]\n[two  names here]\nsize = 6\n"
                       "tag = y\n[three]\nflag = on\n",
                       "-n 3", "part"),
             0);
    CHECK_STR(settings.name, "a");
    CHECK_EQ(settings.count, 3);
    CHECK_EQ(settings.size, 5);
    CHECK_EQ(settings.tags.count, 2);
    CHECK(!settings.flag);
    CHECK_STR(sections, "one/5/x,tag two/0 6;two  names here/6/x,tag two,y/0 7;three/5/x,tag two/1! 10;");
    CHECK(config_has(&origin, "size") && config_has(&origin, "count") && !config_has(&origin, "all"));
    CHECK_EQ(read_file("name = a\ncount = 2\nsize = 5\ntag = x\nall = 1\n[one]\nsize = 6\n[two]\n",
                       "-n 3 --size 7 --tag z --no-flag --all 2 --all 3", "part"),
             0);
    CHECK_EQ(settings.count, 3);
    CHECK_EQ(settings.all.count, 2);
    CHECK_STR(settings.all.items[1], "3");
    CHECK_STR(sections, "one/6/z/0 6;two/7/z/0 8;");
    CHECK_EQ(read_file("", "", "part"), 0);
    CHECK_STR(settings.name, "none");
    CHECK_EQ(read_file("[global]\ncount = 4\n[a]\n", "", "part"), 0);
    CHECK_EQ(settings.count, 4);
}

TEST("names of sections may be long, and a bracket behind a key goes on with its value")
{
    char text[600], want[700];
    snprintf(text, sizeof text, "[%0300d]\nsize = 1\n", 7);
    snprintf(want, sizeof want, "%0300d/1//1 1;", 7);
    CHECK_EQ(read_file(text, "", "part"), 0);
    CHECK_STR(sections, want);
    CHECK_EQ(read_file("[a]\ntag = x\n  [::1]:80\n  [b]\n[c]\n  [d]\n", "", "part"), 0);
    CHECK_STR(sections, "a/4096/x,[::1]:80,[b]/1 1;c/4096//1 5;d/4096//1 6;");
    CHECK_EQ(read_file("\xef\xbb\xbf[a]\r\nsize = 2\r\n", "", "part"), 0);
    CHECK_STR(sections, "a/2//1 1;");
}

TEST("an IPv6 address may be a section's name, and behind a name stands nothing but a comment")
{
    CHECK_EQ(read_file("[::1] # one\n[[::1] [::2]] ; see [3]\nsize = 1\n[#a;b]\n", "", "part"), 0);
    CHECK_STR(sections, "::1/4096//1 1;[::1] [::2]/1//1 2;#a;b/4096//1 4;");
    CHECK_WRONG("[a] b\n", ":1: behind [a] only a comment may stand, which begins with # or ;");
    CHECK_WRONG("[a]\n[b]]] c\n", ":2: behind [b]]] only a comment may stand, which begins with # or ;");
}

TEST("of several values the line is told that the wrong one stands in")
{
    CHECK_EQ(read_file("tag = x\n  y\n  z\n[a]\n", "", "part"), 0);
    CHECK_EQ(config_wrong_value(&origin, "tag", settings.tags.items[1], -EINVAL, &failure, "wrong"), -EINVAL);
    CHECK(strstr(failure.text, ":2: tag: wrong") != NULL);
    CHECK_EQ(config_wrong_value(&origin, "tag", NULL, -EINVAL, &failure, "wrong"), -EINVAL);
    CHECK(strstr(failure.text, ":3: tag: wrong") != NULL);
    CHECK_WRONG("[a]\nsize = 15\ntag = x\n  y\n  z\n", ":4: tag: unlucky tag");
    CHECK_WRONG("tag = x\n  y\n[a]\nsize = 15\n", ":2: tag: unlucky tag"); /* one for all sections */
}

TEST("what stands on the command line is not looked for in the file")
{
    CHECK_EQ(read_file("count = 2\n", "-n 3 --flag", "part"), 0);
    CHECK(config_has(&origin, "count") && config_has(&origin, "flag") && !config_has(&origin, "size"));
    CHECK_EQ(config_wrong(&origin, "count", -EINVAL, &failure, "wrong"), -EINVAL);
    CHECK_STR(failure.text, "test: --count: wrong");
}

TEST("a mistake is told with its line")
{
    CHECK_WRONG("[a]\nsize = x\n", ":2: size takes a size, such as 64K or 1.5M, not \"x\"");
    CHECK_WRONG("[a]\ncount = 2\n", ":2: count belongs to the process; write it before the first part");
    CHECK_WRONG("\n[bad]\n", ":2: [bad]: no such name, please");
    CHECK_WRONG("[a]\nname = x\n", ":2: name belongs to the process; write it before the first part");
    CHECK_WRONG("[a]\nsize = 13\n[b]\n", ":2: size: unlucky");
    CHECK_WRONG("[x]\n[a]\nsize = 14\n", ":2: flag: unlucky, too");
    CHECK_WRONG("[a]\n[global]\n", ":2: [global] must stand before the parts");
    CHECK_WRONG("[a\nsize = 1\n", ":1: this is not understood; write KEY = VALUE");
    CHECK_WRONG("count = 2\ncount = 3\n",
                ":2: count was given before, in line 1 (an indented line goes on with the key "
                "above it)");
    CHECK_WRONG("flag =\n", ":1: flag needs a value: flag = yes");
    CHECK(read_file("count = 2\n[a]\n", "", NULL) < 0);
    CHECK_STR(failure.text, ":2: [a]: this file has no sections but [global]");
    CHECK_EQ(read_file("name = special\n", "", "part"), 0);
    CHECK_STR(settings.name, "none"); /* the reader's own */
}

CHECK_MAIN()
