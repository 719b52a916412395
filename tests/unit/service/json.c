/* SPDX-License-Identifier: MIT */
#include "service/json.h"
#include "check.h"

static char *written(const char *text)
{
    static char buffer[256];
    FILE *out = fmemopen(buffer, sizeof buffer, "w");
    if (out == NULL)
        abort();
    json_write_string(out, text);
    fclose(out);
    return buffer;
}

TEST("any bytes make a string of JSON")
{
    CHECK_STR(written(""), "\"\"");
    CHECK_STR(written("a b/c"), "\"a b/c\"");
    CHECK_STR(written("\"\\"), "\"\\\"\\\\\"");
    CHECK_STR(written("\n\t\x01\x1f\x7f"), "\"\\u000a\\u0009\\u0001\\u001f\\u007f\"");
    CHECK_STR(written("\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80"), "\"\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80\"");
    CHECK_STR(written("\xff"
                      "a\xc3"),
              "\"\xef\xbf\xbd"
              "a\xef\xbf\xbd\"");
    CHECK_STR(written("\xed\xa0\x80"), "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""); /* a surrogate */
    CHECK_STR(written(NULL), "null");
}

CHECK_MAIN()
