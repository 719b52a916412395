/* SPDX-License-Identifier: MIT
 *
 * Input: lines. The first is a Host as the parser of requests lets it pass, the others are names.
 */
#include "copied.h"
#include "fuzz.h"
#include "host.c"

#include <strings.h>

#define NAMES_MAX 64

struct line {
    const char *text;
    size_t length;
};

/* Without the port and the dot at the end. */
static size_t name_length(const char *host, size_t length)
{
    size_t digits = length;
    while (digits > 0 && host[digits - 1] >= '0' && host[digits - 1] <= '9')
        digits--;
    if (digits > 0 && host[digits - 1] == ':')
        length = digits - 1;
    return length > 1 && host[length - 1] == '.' ? length - 1 : length;
}

/* As the header says it, for all names one after the other: how many bytes of the name decide; 0: it does not fit. */
static size_t weight(const struct line *name, const char *host, size_t length)
{
    if (length > HOST_NAME_MAX_LENGTH)
        return 0;
    if (name->length == length && strncasecmp(name->text, host, length) == 0)
        return SIZE_MAX;
    if (name->text[0] != '*' || length < name->length || host[0] == '[')
        return 0;
    return strncasecmp(host + length - (name->length - 1), name->text + 1, name->length - 1) == 0 ? name->length : 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct host_names names = {0};
    struct line taken[NAMES_MAX];
    unsigned count = 0;
    char *text = exact_copy(data, size), *end = text + size;
    char *host = text, *at = size > 0 ? memchr(text, '\n', size) : NULL;
    size_t host_length = at == NULL ? size : (size_t)(at - host);
    while (at != NULL && count < NAMES_MAX) {
        char *line = ++at;
        at = memchr(line, '\n', (size_t)(end - line));
        size_t length = (size_t)((at == NULL ? end : at) - line);
        char *name = copied(line, length);
        REQUIRE(name != NULL);
        const char *why = NULL;
        int r = host_names_add(&names, name, count, &why);
        REQUIRE(r == 0 || r == -EEXIST || (r == -EINVAL && why != NULL));
        length = strlen(name);
        free(name);
        if (r == 0)
            taken[count++] = (struct line){line, length > 1 && line[length - 1] == '.' ? length - 1 : length};
    }
    REQUIRE(names.count == count);

    char *exact = exact_copy(host, host_length);
    int found = host_names_find(&names, (struct slice){exact, host_length});
    size_t length = name_length(exact, host_length), best = 0;
    int expected = -1;
    for (unsigned i = 0; i < count && memchr(exact, '\0', host_length) == NULL; i++) {
        size_t fits = weight(&taken[i], exact, length);
        if (fits > best) {
            best = fits;
            expected = (int)i;
        }
    }
    if (memchr(exact, '\0', host_length) == NULL) /* the parser of requests refuses it */
        REQUIRE(found == expected);
    free(exact);
    free(text);
    host_names_free(&names);
    return 0;
}
