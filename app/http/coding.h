/* SPDX-License-Identifier: MIT
 *
 * Content codings (RFC 9110, 8.4.1 and 12.5.3): in which of them a client wants what it gets.
 */
#ifndef SLUICE_APP_HTTP_CODING_H
#define SLUICE_APP_HTTP_CODING_H

#include "request.h"

/* Those that compress best come first. */
enum http_coding { HTTP_IDENTITY, HTTP_BR, HTTP_ZSTD, HTTP_GZIP, HTTP_CODINGS };

/* "br", and what a file in it has at the end of its name, ".br"; NULL and "" for identity. Static. */
const char *http_coding_name(enum http_coding coding);
const char *http_coding_suffix(enum http_coding coding);

/* The codings in which the client wants a file rather than as it is, the best first. Of equal weights, the one that
 * compresses better; without a weight of its own, identity is the last choice. Of several elements about one
 * coding, the last counts. Returns their number; 0 where nothing is asked for. */
unsigned http_codings_accepted(struct slice accept_encoding, enum http_coding ret_order[static HTTP_CODINGS]);

#endif
