/* SPDX-License-Identifier: MIT
 *
 * What is answered to a request: a file or a part of it, in the coding that the client likes best, a listing, a
 * redirect, or why not.
 */
#ifndef SLUICE_APP_HTTP_RESPOND_H
#define SLUICE_APP_HTTP_RESPOND_H

#include "exchange.h"

/* To a request whose end is known. */
enum progress respond(struct connection *connection, struct exchange *exchange, const struct http_request *request);

/* Neither GET nor HEAD. All files have the same options, and OPTIONS asks for no file: it is not looked for. */
enum progress respond_other(struct connection *connection, struct exchange *exchange,
                            const struct http_request *request);

/* The connection of exchange->listing has gone. */
void respond_abandon(struct listing_job *job);

#endif
