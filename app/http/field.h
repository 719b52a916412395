/* SPDX-License-Identifier: MIT
 *
 * What the values of fields have in common (RFC 9110, 5.6).
 */
#ifndef SLUICE_APP_HTTP_FIELD_H
#define SLUICE_APP_HTTP_FIELD_H

#include "request.h"
#include <string.h>

static inline bool field_is_blank(char byte)
{
    return byte == ' ' || byte == '\t';
}

/* Without the blanks around it. */
static inline struct slice field_trim(const char *at, const char *end)
{
    while (at < end && field_is_blank(*at))
        at++;
    while (end > at && field_is_blank(end[-1]))
        end--;
    return (struct slice){at, (size_t)(end - at)};
}

/* The next element of a list that is not empty; steps over it. False at the list's end. Not for lists whose elements
 * may have a comma in quotes. */
static inline bool field_next_element(const char **at, const char *end, struct slice *ret_element)
{
    while (*at < end) {
        const char *comma = memchr(*at, ',', (size_t)(end - *at));
        struct slice element = field_trim(*at, comma != NULL ? comma : end);
        *at = comma != NULL ? comma + 1 : end;
        if (element.length > 0) {
            *ret_element = element;
            return true;
        }
    }
    return false;
}

#endif
