/* SPDX-License-Identifier: MIT
 *
 * TLS for servers. OpenSSL does it, and nobody but service/tls* sees that.
 *
 *   context    certificates, keys and what is permitted. Made by the supervisor before it forks the workers and drops
 *              its rights, so that a worker needs no right to read keys; for a reload a new one is made
 *   tickets    the keys of session tickets: shared by the workers of all generations, and replaced in time
 *   session    one connection. What arrived is given to it, and it gives back what the client has said; for what is
 *              sent it is a transform of libsluice, or the kernel is told to encrypt (kernel TLS) and nothing is left
 *              to do
 *
 * What it does not do: HTTP/2 (ALPN offers http/1.1), certificates of clients, early data (0-RTT), renegotiation, OCSP
 * stapling.
 */
#ifndef SLUICE_SERVICE_TLS_H
#define SLUICE_SERVICE_TLS_H

#include "base/failure.h"
#include <sluice/sluice.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- Tickets ---------------------------------------------------------------------------------------------------- */

/* With a ticket a client resumes its session without a certificate being shown and checked again. A key seals tickets
 * for `lifetime`, and opens them for as long once more; then it is forgotten. */
struct tls_tickets;

/* lifetime in seconds, more than 0. For the supervisor, once: it lies in shared memory. Returns 0 or a negative errno.
 */
int tls_tickets_new(unsigned lifetime, struct tls_tickets **ret_tickets, struct failure *failure);
void tls_tickets_free(struct tls_tickets *tickets);

/* For a reload: another lifetime, which holds for keys that there are, too. */
void tls_tickets_change(struct tls_tickets *tickets, unsigned lifetime);

/* ---- Contexts --------------------------------------------------------------------------------------------------- */

/* In the order of --tls-min's choices. */
enum tls_version { TLS_1_2, TLS_1_3 };

struct tls_certificate {
    const char *certificate; /* path of a PEM file: the server's certificate, then those between it and the root */
    const char *key;         /* path of a PEM file, without a passphrase; NULL: it is in the certificate's */
};

struct tls_options {
    const struct tls_certificate *certificates; /* the first is for clients that name no host, or none that is known */
    size_t certificate_count;
    enum tls_version min;
    const char *ciphers; /* suites of TLS 1.2 as OpenSSL calls them, and of TLS 1.3, whose names begin with TLS_, in one
                            list with colons; NULL: tls_default_ciphers */
    const char *groups;  /* NULL: tls_default_groups */
    struct tls_tickets *tickets; /* NULL: sessions are not resumed. Must outlive the context */
    unsigned ticket_lifetime;    /* of what the context seals, in seconds */
    bool kernel;                 /* let the kernel encrypt what is sent, where it and OpenSSL can */
};

extern const char *const tls_default_ciphers, *const tls_default_groups;

struct tls_context;

/* What tls_context_new did not take. */
struct tls_refusal {
    enum { TLS_REFUSED_CERTIFICATE, TLS_REFUSED_CIPHERS, TLS_REFUSED_GROUPS } what;
    size_t certificate; /* which of them */
};

/* Reads the files. A certificate is found by the names in it, "*.example.org" included; of several with one name each
 * kind of key is used, as the client can. Returns 0, or a negative errno and in failure what is wrong, where, and what
 * to do: -ENOENT, -EACCES, ... a file cannot be read; -EINVAL it holds no certificate or key, the key is another's, is
 * encrypted, or is too small; no such suite or group; -ENOMEM. ret_refusal (or NULL): what of the options was wrong. */
int tls_context_new(const struct tls_options *options, struct tls_context **ret_context,
                    struct tls_refusal *ret_refusal, struct failure *failure);

/* Its sessions must have been freed. */
void tls_context_free(struct tls_context *context);

/* Has one of the certificates this name of a host, or a wildcard for it? Lower case; "*.example.org" as such. Who asks
 * for any other is shown the first. */
bool tls_context_covers(const struct tls_context *context, const char *name);

/* Call say with a line for every certificate: names, key, until when. warnings: only for those that have expired, are
 * not valid yet, or expire within a week; and what is wrong. */
void tls_context_describe(const struct tls_context *context, bool warnings,
                          void (*say)(void *context, const char *line), void *say_context);

/* ---- A certificate for trying out -------------------------------------------------------------------------------- */

struct tls_development {
    char authority[512];   /* path of the certificate that browsers have to trust */
    char certificate[512]; /* with key: for tls_certificate */
    char key[512];
    bool made; /* the authority is new: nobody trusts it yet */
};

/* Finds or makes, in sluice/tls under the user's configuration directory (XDG_CONFIG_HOME, else ~/.config), an
 * authority, and a certificate by it for localhost and this host's names and addresses, which is made anew when they
 * change or it is about to expire. Returns 0 or a negative errno. */
int tls_development_prepare(struct tls_development *ret_development, struct failure *failure);

/* ---- Sessions --------------------------------------------------------------------------------------------------- */

struct tls_session;

/* For an accepted, non-blocking connection. Returns NULL without memory. */
struct tls_session *tls_session_new(struct tls_context *context, int fd);
void tls_session_free(struct tls_session *session);

enum tls_state {
    TLS_HANDSHAKE, /* under way */
    TLS_OPEN,
    TLS_ENDED, /* the client will send no more (close_notify), and may be sent to */
    TLS_FAILED,
};

enum tls_state tls_session_state(const struct tls_session *session);

/* These bytes arrived; they are used up when it returns. What the client said by them is in *ret_plain, of length
 * *ret_length, maybe 0: the context's memory, valid until the next call for any of its sessions. What has to be
 * answered by TLS itself was sent, or waits (tls_session_must_send).
 * Returns 0; or, and the connection has to be closed: -EPROTO (tls_session_failure says why, the client was told by an
 * alert if it could be); -EPROTONOSUPPORT: these are the first bytes, and they are HTTP without TLS: nothing was used
 * or sent. */
int tls_session_receive(struct tls_session *session, const char *data, size_t length, const char **ret_plain,
                        size_t *ret_length);

/* The socket did not take what TLS has to say: it leaves with the next transfer through the session's transform. One of
 * no segments will do; in TLS_HANDSHAKE there is no other. */
bool tls_session_must_send(const struct tls_session *session);

/* For transfers to the connection, one at a time; NULL: the kernel encrypts. Records have 16 KiB, at the beginning of
 * what is sent, and after a second of silence, 4 KiB: a client need not have received 16 KiB, for which a new
 * connection's congestion window is too small, before it can read the first byte. Small segments share a record. */
const struct sluice_transform *tls_session_transform(struct tls_session *session);

/* Does the kernel encrypt what is written to the socket? Known when the state is no longer TLS_HANDSHAKE. */
bool tls_session_kernel_sends(const struct tls_session *session);

/* With the end of the next transfer through the transform goes a close_notify. */
void tls_session_end_with_next(struct tls_session *session);

/* Before the sending side is shut down: say close_notify, unless that was said, if the socket takes it. */
void tls_session_end(struct tls_session *session);

/* A transfer failed. What it had given to the transform and has not become a record is forgotten. Returns how many
 * bytes of all transfers have: if the failed one is among them, nothing more can be sent. */
uint64_t tls_session_forget(struct tls_session *session);

/* Bytes that were given to the transform and went into records. */
uint64_t tls_session_sent(const struct tls_session *session);

/* Why it failed, in a few words. Static, or the session's. */
const char *tls_session_failure(const struct tls_session *session);

/* "TLSv1.3", "TLS_AES_128_GCM_SHA256": of a session that is no longer in its handshake. Static. */
const char *tls_session_version(const struct tls_session *session);
const char *tls_session_cipher(const struct tls_session *session);
bool tls_session_resumed(const struct tls_session *session);

#endif
