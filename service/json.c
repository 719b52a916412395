/* SPDX-License-Identifier: MIT */
#include "service/json.h"
#include "base/text.h"
#include <string.h>

size_t json_character(const char **text, const char *end, char buffer[static JSON_CHARACTER_MAX])
{
    static const char digits[] = "0123456789abcdef";
    const char *at = *text;
    unsigned char byte = (unsigned char)*at;
    size_t length = text_utf8_length(at, (size_t)(end - at));
    *text = at + (length > 0 ? length : 1);
    if (length == 0) {
        memcpy(buffer, "\xef\xbf\xbd", 3);
        return 3;
    }
    if (byte == '"' || byte == '\\') {
        buffer[0] = '\\';
        buffer[1] = (char)byte;
        return 2;
    }
    /* DEL may stand there as it is, but not on every terminal. */
    if (byte < 0x20 || byte == 0x7f) {
        memcpy(buffer, "\\u00", 4);
        buffer[4] = digits[byte >> 4];
        buffer[5] = digits[byte & 15];
        return 6;
    }
    memcpy(buffer, at, length);
    return length;
}

void json_write_string(FILE *out, const char *text)
{
    if (text == NULL) {
        fputs("null", out);
        return;
    }
    const char *end = text + strlen(text);
    char buffer[JSON_CHARACTER_MAX];
    fputc('"', out);
    while (text < end)
        fwrite(buffer, 1, json_character(&text, end, buffer), out);
    fputc('"', out);
}
