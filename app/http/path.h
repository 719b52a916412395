/* SPDX-License-Identifier: MIT
 *
 * From the path of a request target to the path of a file beneath the root.
 */
#ifndef SLUICE_APP_HTTP_PATH_H
#define SLUICE_APP_HTTP_PATH_H

#include "request.h"

/* Decode and check a path: percent-decoding once, "." and ".." segments removed (RFC 3986, 5.2.4), repeated slashes
 * made one. The result has no leading slash, is "." for the root, ends in a slash only if the request did ("sub/") or
 * ended in a dot segment ("sub/."), is NUL-terminated, and is safe to open beneath the root. It may hold any other
 * byte, control bytes too. Returns its length, or minus a status, that of the first fault from the left: -400 malformed
 * escapes, an encoded NUL or an encoded slash ("%2F", "%5C" is a plain byte); a path that climbs above the root; -404 a
 * component that begins with a dot (hidden), "/.well-known" as first component excepted, even where a
 * ".." would remove it again; -414 longer than size at any time. */
int http_path_decode(struct slice path, char *buffer, size_t size);

/* Encode a file name for use in a link: everything but unreserved characters becomes %XX. Slashes too. Returns the
 * length the whole text has, as snprintf does; an escape that does not fit whole is left out, with all that follows. */
size_t http_path_encode(const char *name, char *buffer, size_t size);

#endif
