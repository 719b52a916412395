/* SPDX-License-Identifier: MIT
 *
 * Numbers as people write and read them.
 */
#ifndef SLUICE_BASE_TEXT_H
#define SLUICE_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Enough for any text that the format functions below make. */
#define TEXT_SIZE_MAX 32

/* "0 B", "999 B", "1.5 MiB", "2 GiB": at most one decimal, none when it would be .0. Always terminates; returns buffer,
 * so that it can stand in an argument list. */
char *text_format_size(uint64_t bytes, char *buffer, size_t size);

/* "500 ms", "1.5 s", "30 s", "2 min", "1 h 5 min". Always terminates; returns buffer. */
char *text_format_duration(uint64_t milliseconds, char *buffer, size_t size);

/* Digits only: no sign, no space, no base prefix. Returns 0; -EINVAL (not a number); -ERANGE (more than 64 bits). */
int text_parse_unsigned(const char *text, uint64_t *ret_value);

/* A number of bytes: "65536", "64K", "64k", "64KiB", "1.5M", "2G", "1T"; units are powers of 1024 ("KB" is refused, as
 * nobody knows what it means). Returns 0, -EINVAL or -ERANGE. */
int text_parse_size(const char *text, uint64_t *ret_bytes);

/* A time: "500ms", "30s", "2m", "2min", "1h", "1.5s", "1d"; a number without unit is seconds. Returns 0, -EINVAL or
 * -ERANGE. */
int text_parse_duration(const char *text, uint64_t *ret_milliseconds);

/* The name of an error ("ECONNRESET") and what it means ("Connection reset by peer"), for positive and negative
 * codes. Static strings; "E?" for a code that is none. */
const char *text_errno_name(int code);
const char *text_errno_meaning(int code);

/* How many bytes the UTF-8 character at the start of text has, 1 to 4; 0: there is none (nothing, a byte that cannot
 * begin one, cut off, overlong, a surrogate, beyond U+10FFFF). */
size_t text_utf8_length(const char *text, size_t length);

/* text behind the prefix, or all of it if it does not begin with that. */
const char *text_behind(const char *text, const char *prefix);

/* May a terminal be given colours? Not where NO_COLOR is set and not empty (no-color.org), nor where TERM is dumb. */
bool text_colour_wanted(void);

/* The number of edits (insert, delete, replace, swap of neighbours) that turn a into b, or limit if it is that or more.
 * For "did you mean". */
unsigned text_distance(const char *a, const char *b, unsigned limit);

#endif
