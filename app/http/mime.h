/* SPDX-License-Identifier: MIT */
#ifndef SLUICE_APP_HTTP_MIME_H
#define SLUICE_APP_HTTP_MIME_H

/* The media type for a file name by its extension, without regard to case, with a charset where browsers need one
 * ("text/html; charset=utf-8"); "application/octet-stream" when unknown. Static. */
const char *http_mime_type(const char *file_name);

#endif
