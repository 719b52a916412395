/* SPDX-License-Identifier: MIT
 *
 * TLS for the load client: OpenSSL makes the handshake and encrypts requests; what is received, the client does by
 * itself, record by record, so that it costs next to nothing: it decrypts what it looks at, and discards the rest as it
 * is (MSG_TRUNC). Nothing is authenticated: whoever wants to know whether the right bytes came keeps and hashes them.
 * TLS 1.3 with AES-128-GCM only, as what is measured should be the same for all servers.
 */
#ifndef BENCH_CLIENT_TLS_H
#define BENCH_CLIENT_TLS_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct tls_stream;

/* Before the first stream. */
void tls_prepare(void);

/* From now on sessions are resumed: makes a connection and sends this request, to get a ticket. Dies without one. */
void tls_resume(const struct sockaddr_in *target, const char *request, size_t size);

/* A stream on a connected, non-blocking socket. */
struct tls_stream *tls_open(int fd);
void tls_close(struct tls_stream *stream); /* NULL: nothing. The socket stays open */

/* The handshake goes on: 1 it is done, 0 not yet, -1 it failed. */
int tls_shake(struct tls_stream *stream);

/* A request. Returns false when it did not leave whole. */
bool tls_send(struct tls_stream *stream, const void *data, size_t size);

/* As recv(2) with MSG_DONTWAIT; unless keep, as with MSG_TRUNC. */
ssize_t tls_receive(struct tls_stream *stream, void *buffer, size_t size, bool keep);

/* Bytes that are here already, of which the socket does not tell any more. */
bool tls_has_more(const struct tls_stream *stream);

uint64_t tls_handshakes(void), tls_resumed(void);

/* Why the last call failed. */
const char *tls_error(void);

#endif
