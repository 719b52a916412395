/* SPDX-License-Identifier: MIT */
#include "check.h"
#include "coding.h"

/* "br zstd" */
static const char *accepted(const char *value)
{
    static char text[64];
    enum http_coding order[HTTP_CODINGS];
    unsigned count = http_codings_accepted((struct slice){value, value == NULL ? 0 : strlen(value)}, order);
    text[0] = '\0';
    for (unsigned i = 0; i < count; i++)
        sprintf(text + strlen(text), "%s%s", i > 0 ? " " : "", http_coding_name(order[i]));
    return text;
}

TEST("who does not ask for a coding gets none")
{
    CHECK_STR(accepted(NULL), "");
    CHECK_STR(accepted(""), "");
    CHECK_STR(accepted("identity"), "");
    CHECK_STR(accepted("deflate, compress"), "");
    CHECK_STR(accepted(","), "");
}

TEST("codings are known by their names in any case, and gzip by its old one")
{
    CHECK_STR(accepted("gzip"), "gzip");
    CHECK_STR(accepted("x-GZip"), "gzip");
    CHECK_STR(accepted("BR"), "br");
    CHECK_STR(accepted("\tzstd ,"), "zstd");
    CHECK_STR(accepted("gzips, b, zst, br2, gzi p"), "");
}

TEST("the one that compresses best is preferred among those of equal weight")
{
    CHECK_STR(accepted("gzip, deflate, br, zstd"), "br zstd gzip");
    CHECK_STR(accepted("zstd;q=0.5, gzip;q=0.5"), "zstd gzip");
    CHECK_STR(accepted("gzip, deflate, br;q=1.0, *;q=0.5"), "br gzip zstd");
}

TEST("a higher weight is preferred, and none is refused")
{
    CHECK_STR(accepted("br;q=0.2, zstd;q=0.3, gzip;q=0.25"), "zstd gzip br");
    CHECK_STR(accepted("br;q=0, gzip"), "gzip");
    CHECK_STR(accepted("br;q=0.000, gzip;q=0.001"), "gzip");
    CHECK_STR(accepted("gzip;q=0"), "");
    CHECK_STR(accepted("br; q=0.5 , gzip ;\tQ=0.6"), "gzip br");
    CHECK_STR(accepted("br;q=1.000, zstd;q=1., gzip;q=0."), "br zstd");
}

TEST("a star stands for all codings that are not named, identity included")
{
    CHECK_STR(accepted("*"), "br zstd gzip");
    CHECK_STR(accepted("*;q=0"), "");
    CHECK_STR(accepted("gzip, *;q=0"), "gzip");
    CHECK_STR(accepted("br;q=0, *;q=0.1"), "zstd gzip");
}

TEST("identity is preferred where it has the higher weight")
{
    CHECK_STR(accepted("identity, gzip;q=0.5"), "");
    CHECK_STR(accepted("identity;q=0.5, gzip;q=0.5, br;q=0.4"), "gzip");
    CHECK_STR(accepted("identity;q=0, gzip"), "gzip");
    CHECK_STR(accepted("*;q=0.5, gzip;q=0.4, br;q=0.6"), "br zstd");
}

TEST("a malformed weight is none")
{
    static const char *const weights[] = {"",   "2", "1.001", "-1", ".5", "0,5",  "0.1234",
                                          " 1", "a", "0.x",   "1x", "10", "\"1\""};
    for (size_t i = 0; i < sizeof weights / sizeof weights[0]; i++) {
        char value[64];
        snprintf(value, sizeof value, "gzip;q=%s", weights[i]);
        if (strcmp(accepted(value), "") != 0)
            CHECK_FAIL("\"%s\" gives %s", value, accepted(value));
        snprintf(value, sizeof value, "gzip;q=%s, br", weights[i]);
        if (strcmp(accepted(value), "br") != 0)
            CHECK_FAIL("\"%s\" gives %s", value, accepted(value));
    }
}

TEST("of several weights of one coding the last counts")
{
    CHECK_STR(accepted("gzip, gzip;q=0"), "");
    CHECK_STR(accepted("gzip;q=0, x-gzip"), "gzip");
}

CHECK_MAIN()
