/* SPDX-License-Identifier: MIT
 *
 * TLS on a connection: what connection.c does not want to know of it. Between it, server.c and secure.c only.
 */
#ifndef SLUICE_APP_HTTP_SECURE_H
#define SLUICE_APP_HTTP_SECURE_H

#include <sluice/sluice.h>
#include <stdbool.h>
#include <stddef.h>

struct connection;
struct tls_context;
struct secure;

/* In http_server: what is told of failures is told at most so often. */
struct secure_log {
    uint64_t next;   /* sluice_loop_now when the next line may be written */
    uint64_t unsaid; /* failures since the last one */
};

/* The connection speaks TLS. Returns 0 or -ENOMEM. */
int secure_open(struct connection *connection, struct tls_context *context);

/* Bytes that arrived become what the client said by them: *data, valid until the next call for any connection.
 * Returns 1; 0: nothing that would have to be looked at; -ECONNRESET: the client has ended TLS, or it failed, which was
 * counted and told: close the connection; -EPROTONOSUPPORT: the client speaks HTTP without TLS, and the connection does
 * from now on, so that it can be told: *data are its bytes as before. */
int secure_receive(struct connection *connection, const char **data, size_t *length);

/* The client has said that nothing more will come: what it asked before is answered. */
bool secure_has_ended(const struct connection *connection);

/* The connection is to be closed before a request came: the client has gone, or its time is over. */
void secure_gave_up(struct connection *connection, const char *why);

/* For the options of a transfer. ends: the connection's end follows it. */
const struct sluice_transform *secure_transform(struct connection *connection, bool ends);

/* Bytes of responses that the transform has taken so far; those of a transfer, its receipt and this number before it
 * being given, that the client may have got. */
uint64_t secure_sent(const struct connection *connection);
uint64_t secure_delivered(const struct connection *connection, const struct sluice_receipt *receipt, uint64_t before);

/* A transfer failed before the client got anything of it; before: secure_sent before it. May another one be begun? */
bool secure_may_begin_again(struct connection *connection, uint64_t before);

/* "TLSv1.3", for the log. */
const char *secure_version(const struct connection *connection);

/* Before the sending side is closed after whole responses: say so. */
void secure_end(struct connection *connection);

/* Before the connection's end is forgotten. */
void secure_close(struct connection *connection);

#endif
