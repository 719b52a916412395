/* SPDX-License-Identifier: MIT
 *
 * The Accept fields (RFC 9110, 12.5): lists of what a client would take, each with a quality.
 */
#ifndef SLUICE_APP_HTTP_ACCEPT_H
#define SLUICE_APP_HTTP_ACCEPT_H

#include "request.h"

#define ACCEPT_QUALITY_MAX 1000 /* of thousandths */

/* The next element of a list, and *rest moved behind it. *ret_name: without parameters and blanks, never empty.
 * *ret_quality: its q parameter in thousandths; 1000 without one, 0 for one that cannot be read, so that what is not
 * understood is not chosen. Empty elements are passed over. Returns false at the end of the list. */
bool accept_next(struct slice *rest, struct slice *ret_name, unsigned *ret_quality);

/* The quality that an Accept field gives to a media type ("text/html"): that of the most specific range that matches,
 * parameters but q aside; 0 if none does. Without a field (data NULL) everything has the highest. */
unsigned accept_media_type(struct slice field, const char *type);

#endif
