/* SPDX-License-Identifier: MIT
 *
 * What the files of service/tls* share.
 */
#ifndef SLUICE_SERVICE_TLS_INSIDE_H
#define SLUICE_SERVICE_TLS_INSIDE_H

#include "service/tls.h"
#include <openssl/ssl.h>

/* What one call of tls_session_receive can bring: 16 KiB, which is all that a loop gives, and a record of which the
 * rest has come. */
#define TLS_PLAIN_MAX (40u << 10)

/* Certificates that are shown together: one of each kind of key. */
struct tls_shown {
    SSL_CTX *ssl;
    int *certificates; /* one for each kind of key: index, or -1 */
};

struct tls_name {
    char *text; /* lower case; "*.example.org" */
    SSL_CTX *ssl;
};

struct tls_context {
    struct tls_loaded *certificates;
    size_t certificate_count;
    struct tls_shown *shown;
    size_t shown_count;
    struct tls_name *names; /* sorted */
    size_t name_count;
    SSL_CTX *fallback; /* for clients that name no host; sessions begin with it */
    struct tls_tickets *tickets;
    bool kernel;
    struct tls_refusal refusal; /* while it is made */
    BIO_METHOD *method;         /* sessions' */
    char *plain;                /* TLS_PLAIN_MAX; from the first session on, like the next */
    char *record;               /* in which what shares a record comes together */
};

/* "certificate verify failed": what OpenSSL said last, which is forgotten. */
const char *tls_reason(void);

/* In the form that OpenSSL calls: seals a ticket, or finds the key that opens it. */
int tls_tickets_key(SSL *ssl, unsigned char *name, unsigned char *iv, EVP_CIPHER_CTX *cipher, EVP_MAC_CTX *mac,
                    int seal);

/* Makes the sessions' BIO_METHOD. Returns 0 or -ENOMEM. */
int tls_session_prepare(struct tls_context *context);

#endif
