/* SPDX-License-Identifier: MIT
 *
 * HTTP dates (RFC 9110, 5.6.7).
 */
#ifndef SLUICE_APP_HTTP_DATE_H
#define SLUICE_APP_HTTP_DATE_H

#include "request.h"
#include <time.h>

#define HTTP_DATE_LENGTH 29 /* "Sun, 06 Nov 1994 08:49:37 GMT" */

/* Write HTTP_DATE_LENGTH bytes and no terminator. Needs no locale, no time zone and no system call. */
void http_date_format(time_t when, char buffer[static HTTP_DATE_LENGTH]);

/* Any of the three forms (IMF-fixdate, RFC 850, asctime). now resolves two-digit years. Returns 0 or -EINVAL. */
int http_date_parse(struct slice value, time_t now, time_t *ret_when);

#endif
