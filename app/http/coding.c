/* SPDX-License-Identifier: MIT */
#include "coding.h"
#include "accept.h"
#include <string.h>
#include <strings.h>

#define NO_WEIGHT (-1)

static const struct {
    const char *name, *suffix;
} codings[HTTP_CODINGS] = {
    [HTTP_IDENTITY] = {NULL, ""},
    [HTTP_BR] = {"br", ".br"},
    [HTTP_ZSTD] = {"zstd", ".zst"},
    [HTTP_GZIP] = {"gzip", ".gz"},
};

const char *http_coding_name(enum http_coding coding)
{
    return codings[coding].name;
}

const char *http_coding_suffix(enum http_coding coding)
{
    return codings[coding].suffix;
}

static bool reads(struct slice text, const char *word)
{
    return text.length == strlen(word) && strncasecmp(text.data, word, text.length) == 0;
}

/* Which of them an element names; HTTP_CODINGS for any other ("*"); or -1. */
static int coding_named(struct slice name)
{
    if (reads(name, "*"))
        return HTTP_CODINGS;
    if (reads(name, "identity"))
        return HTTP_IDENTITY;
    if (reads(name, "x-gzip")) /* RFC 9110, 8.4.1.3 */
        return HTTP_GZIP;
    for (int coding = HTTP_BR; coding < HTTP_CODINGS; coding++)
        if (reads(name, codings[coding].name))
            return coding;
    return -1;
}

unsigned http_codings_accepted(struct slice accept_encoding, enum http_coding ret_order[static HTTP_CODINGS])
{
    int weights[HTTP_CODINGS + 1] = {NO_WEIGHT, NO_WEIGHT, NO_WEIGHT, NO_WEIGHT, NO_WEIGHT};
    unsigned weight;
    for (struct slice name; accept_next(&accept_encoding, &name, &weight);) {
        int coding = coding_named(name);
        if (coding >= 0)
            weights[coding] = (int)weight;
    }
    unsigned count = 0;
    for (int coding = HTTP_IDENTITY; coding < HTTP_CODINGS; coding++) {
        if (weights[coding] == NO_WEIGHT)
            weights[coding] = weights[HTTP_CODINGS] == NO_WEIGHT ? 0 : weights[HTTP_CODINGS];
        if (coding == HTTP_IDENTITY || weights[coding] == 0 || weights[coding] < weights[HTTP_IDENTITY])
            continue;
        unsigned place = count++;
        for (; place > 0 && weights[ret_order[place - 1]] < weights[coding]; place--)
            ret_order[place] = ret_order[place - 1];
        ret_order[place] = (enum http_coding)coding;
    }
    return count;
}
