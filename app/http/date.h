/* SPDX-License-Identifier: MIT
 *
 * HTTP dates (RFC 9110, 5.6.7).
 */
#ifndef SLUICE_APP_HTTP_DATE_H
#define SLUICE_APP_HTTP_DATE_H

#include "request.h"
#include <time.h>

#define HTTP_DATE_LENGTH 29 /* "Sun, 06 Nov 1994 08:49:37 GMT" */

/* Write HTTP_DATE_LENGTH bytes and no terminator. Needs no locale, no time zone and no system call. A time outside the
 * years 0 to 9999 is written as the nearest within. */
void http_date_format(time_t when, char buffer[static HTTP_DATE_LENGTH]);

/* Any of the three forms (IMF-fixdate, RFC 850, asctime). now resolves two-digit years: at most 50
 * ahead. The day of the week must be a day's name but is not held against the date. Returns 0 or -EINVAL. */
int http_date_parse(struct slice value, time_t now, time_t *ret_when);

#endif
