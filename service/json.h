/* SPDX-License-Identifier: MIT
 *
 * Text within JSON that we write ourselves, piece by piece.
 */
#ifndef SLUICE_SERVICE_JSON_H
#define SLUICE_SERVICE_JSON_H

#include <stddef.h>
#include <stdio.h>

#define JSON_CHARACTER_MAX 6 /* "\u001f" */

/* What the next character of a text is within a string of JSON; *text moves behind it (text < end). Bytes that are not
 * UTF-8 become U+FFFD one by one: JSON cannot hold them. Returns the length, at least 1; no NUL. */
size_t json_character(const char **text, const char *end, char buffer[static JSON_CHARACTER_MAX]);

/* A string with its quotes. NULL: null. */
void json_write_string(FILE *out, const char *text);

#endif
