/* SPDX-License-Identifier: MIT
 *
 * The reader of configuration files, with the tables of serve and proxy. What is made of the options behind it is left
 * out: it opens directories and looks up names.
 */
#include "fuzz.h"

/* Both files have functions of these names. */
#define begin_section proxy_begin_section
#define finish_section proxy_finish_section
#define out_of_memory proxy_out_of_memory
#include "proxy/config.c"
#undef begin_section
#undef finish_section
#undef out_of_memory
#include "serve/config.h"
#include "service/config_file.c"
#include <sys/mman.h>
#include <unistd.h>

#define TABLE_MAX 80

struct subject {
    struct command_spec command;
    const char *section, *section_needs;
    size_t size, section_offset;
    unsigned begun, finished, line_count;
};

static void require_value(const struct option_spec *option, const void *member)
{
    const char *text;
    uint64_t number;
    const struct option_list *list = member;
    switch (option->type) {
    case OPTION_TEXT:
    case OPTION_ADDRESS:
        text = *(const char *const *)member;
        REQUIRE(text == NULL || strlen(text) < 65536);
        break;
    case OPTION_UNSIGNED:
    case OPTION_SIZE:
    case OPTION_DURATION:
        number = *(const uint64_t *)member;
        REQUIRE((number == 0 && option->default_text == NULL) ||
                (number >= option->min && (option->max == 0 || number <= option->max)));
        break;
    case OPTION_CHOICE:
        for (unsigned i = 0; i <= *(const unsigned *)member; i++)
            REQUIRE(option->choices[i] != NULL);
        break;
    case OPTION_LIST:
        for (unsigned i = 0; i < list->count; i++)
            REQUIRE(list->items[i] != NULL && *list->items[i] != '\0');
        break;
    case OPTION_FLAG:
    case OPTION_HEADING:
    case OPTION_END:
        break;
    }
}

static void require_values(const struct subject *subject, const void *options, const unsigned *lines)
{
    const struct option_spec *table = subject->command.options;
    for (size_t i = 0; table[i].type != OPTION_END; i++) {
        require_value(&table[i], (const char *)options + table[i].offset);
        REQUIRE(lines[i] <= subject->line_count);
    }
}

static int begin_one(void *context, const char *name, struct failure *why)
{
    struct subject *subject = context;
    REQUIRE(subject->begun == subject->finished);
    if (strchr(name, '!') != NULL)
        return failure_set(why, -EINVAL, "no name: %.100s", name);
    subject->begun++;
    return 0;
}

static int finish_one(void *context, void *options, const struct config_origin *origin, struct failure *failure)
{
    struct subject *subject = context;
    (void)failure;
    subject->finished++;
    REQUIRE(subject->begun == subject->finished);
    REQUIRE(origin->line > 0 && origin->line <= subject->line_count);
    require_values(subject, options, origin->lines);
    return 0;
}

static int read_once(struct subject *subject, const char *path, struct failure *failure)
{
    const char *given[TABLE_MAX] = {NULL};
    unsigned lines[TABLE_MAX] = {0};
    struct config_storage *storage = NULL;
    struct config_origin origin;
    struct positionals none;
    char *arguments[] = {NULL};
    void *options = calloc(1, subject->size);
    REQUIRE(options != NULL);
    subject->command.given = given;
    subject->begun = subject->finished = 0;
    REQUIRE(options_parse(&subject->command, 0, arguments, options, &none, failure) == 0);
    const struct config_reader reader = {
        .path = path,
        .command = &subject->command,
        .size = subject->size,
        .section_offset = subject->section_offset,
        .storage = &storage,
        .context = subject,
        .section = subject->section,
        .section_needs = subject->section_needs,
        .grammar = "KEY = VALUE",
        .begin = begin_one,
        .finish = finish_one,
    };
    int result = config_file_read(&reader, options, lines, &origin, failure);
    REQUIRE(result == 0 || result == -EINVAL);
    if (result == 0) {
        REQUIRE(subject->begun == subject->finished);
        require_values(subject, options, lines);
    } else {
        /* Where the mistake is, in one line. */
        REQUIRE(strncmp(failure->text, path, strlen(path)) == 0 && failure->text[strlen(path)] == ':');
        unsigned line = (unsigned)atoi(failure->text + strlen(path) + 1);
        REQUIRE(line > 0 && line <= subject->line_count);
    }
    options_free_lists(&subject->command, options);
    config_forget(&storage);
    REQUIRE(storage == NULL);
    free(options);
    return result;
}

static void read_twice(struct subject *subject, const char *path)
{
    static struct failure once, again;
    size_t count = 0;
    while (subject->command.options[count].type != OPTION_END)
        count++;
    REQUIRE(count < TABLE_MAX);
    int result = read_once(subject, path, &once);
    REQUIRE(read_once(subject, path, &again) == result);
    REQUIRE(result == 0 || strcmp(once.text, again.text) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[32];
    unsigned lines = 1;
    int fd = memfd_create("configuration", MFD_CLOEXEC);
    REQUIRE(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    for (size_t i = 0; i < size; i++)
        lines += data[i] == '\n';
    struct subject serve = {
        .command = {.program = SERVE_PROGRAM, .options = serve_option_table},
        .section = "site",
        .size = sizeof(struct serve_options),
        .section_offset = offsetof(struct serve_options, site),
        .line_count = lines,
    };
    struct subject proxy = {
        .command = command_spec(NULL),
        .section = "service",
        .section_needs = "listen and to",
        .size = sizeof(struct proxy_options),
        .section_offset = offsetof(struct proxy_options, service),
        .line_count = lines,
    };
    read_twice(&serve, path);
    read_twice(&proxy, path);
    close(fd);
    return 0;
}
