/* SPDX-License-Identifier: MIT */
#include "host.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static char lower(char byte)
{
    return byte >= 'A' && byte <= 'Z' ? (char)(byte | 0x20) : byte;
}

/* The place of a name, or where it would have to be. */
static unsigned place_of(const struct host_names *names, const char *text, bool *ret_found)
{
    unsigned from = 0, to = names->count;
    *ret_found = false;
    while (from < to) {
        unsigned middle = from + (to - from) / 2;
        int order = strcmp(text, names->items[middle].text);
        if (order == 0) {
            *ret_found = true;
            return middle;
        }
        if (order < 0)
            to = middle;
        else
            from = middle + 1;
    }
    return from;
}

static const char *find_fault(const char *text, size_t length)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    if (length == 0)
        return "it is empty";
    if (length > HOST_NAME_MAX_LENGTH)
        return "it has more than 253 bytes";
    if (text[0] == '[') {
        size_t inside = strspn(text + 1, "0123456789abcdefABCDEF:.");
        return inside > 1 && text[1 + inside] == ']' && length == inside + 2
                   ? NULL
                   : "an IPv6 address stands in brackets, and nothing behind them";
    }
    const char *name = strncmp(text, "*.", 2) == 0 ? text + 2 : text;
    const char *end = name + strspn(name, letters);
    if (*end == ':')
        return "it names a host without its port";
    if (*end == '*')
        return "a * stands for whole labels, and at the beginning only: *.example.org";
    if ((unsigned char)*end >= 0x80)
        return "a name that is not ASCII is written as browsers send it, with xn--";
    if (*end != '\0')
        return "a name has letters, digits and - _ . only";
    if (*name == '\0' || *name == '.' || strstr(name, "..") != NULL)
        return "it has an empty label";
    return NULL;
}

int host_names_add(struct host_names *names, const char *text, unsigned site, const char **ret_why)
{
    size_t length = strlen(text);
    if (length > 1 && text[length - 1] == '.')
        length--; /* as an absolute name may be written */
    const char *fault = find_fault(text, length);
    if (fault != NULL) {
        *ret_why = fault;
        return -EINVAL;
    }
    char *name = strndup(text, length);
    if (name == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < length; i++)
        name[i] = lower(name[i]);
    bool found;
    unsigned place = place_of(names, name, &found);
    struct host_name *items = found ? NULL : reallocarray(names->items, (size_t)names->count + 1, sizeof *names->items);
    if (items == NULL) {
        free(name);
        return found ? -EEXIST : -ENOMEM;
    }
    memmove(items + place + 1, items + place, (names->count - place) * sizeof *items);
    items[place] = (struct host_name){name, site};
    names->items = items;
    names->count++;
    return 0;
}

int host_names_find(const struct host_names *names, struct slice host)
{
    char text[HOST_NAME_MAX_LENGTH + 1];
    if (host.length == 0)
        return -1;
    const char *at = host.data + host.length;
    while (at > host.data && at[-1] >= '0' && at[-1] <= '9')
        at--;
    size_t length = at > host.data && at[-1] == ':' ? (size_t)(at - 1 - host.data) : host.length;
    if (length > 1 && host.data[length - 1] == '.')
        length--;
    if (length == 0 || length > HOST_NAME_MAX_LENGTH)
        return -1;
    for (size_t i = 0; i < length; i++)
        text[i] = lower(host.data[i]);
    text[length] = '\0';

    bool found;
    unsigned place = place_of(names, text, &found);
    if (found)
        return (int)names->items[place].site;
    if (text[0] == '[')
        return -1;
    /* The star takes the place of the last byte before each dot: what stood there has been looked at. */
    for (char *dot = strchr(text + 1, '.'); dot != NULL; dot = strchr(dot + 1, '.')) {
        dot[-1] = '*';
        place = place_of(names, dot - 1, &found);
        if (found)
            return (int)names->items[place].site;
    }
    return -1;
}

void host_names_free(struct host_names *names)
{
    for (unsigned i = 0; i < names->count; i++)
        free(names->items[i].text);
    free(names->items);
    *names = (struct host_names){0};
}
