/* SPDX-License-Identifier: MIT */
#include "client_tls.h"
#include "account.h"
#include <errno.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* RFC 8446, 5.1 and 5.2: a header, the data, its real type, and the tag. */
enum { HEADER = 5, RECORD_MAX = (1 << 14) + 256, TAG = 16, NONCE = 12, KEY = 16, BLOCK = 16, SECRET = 32 };
enum { TYPE_HANDSHAKE = 22, TYPE_DATA = 23 };

struct tls_stream {
    int fd;
    SSL *ssl;
    EVP_CIPHER_CTX *counter; /* AES in counter mode, which is what GCM encrypts with */
    unsigned char key[KEY], iv[NONCE];
    uint64_t sequence; /* of the record that is being received */
    bool keyed;

    unsigned char header[HEADER];
    unsigned header_used;
    size_t left;           /* of the record, still in the socket */
    size_t data;           /* of what is left, or of what is here from `at` on: data of the stream */
    unsigned char *record; /* a whole one; NULL: none was kept */
    size_t used, at;       /* of it: what has come, and where the next byte is */
    bool whole;            /* the record is here, and its data is decrypted */
};

static SSL_CTX *context;
static SSL_SESSION *session;
static int stream_index;
static uint64_t handshakes, resumed;

uint64_t tls_handshakes(void)
{
    return handshakes;
}

uint64_t tls_resumed(void)
{
    return resumed;
}

const char *tls_error(void)
{
    unsigned long code = ERR_peek_last_error();
    return code != 0 ? ERR_reason_error_string(code) : strerror(errno);
}

/* ---- Keys ------------------------------------------------------------------------------------------------------- */

/* HKDF-Expand-Label of RFC 8446, 7.1, with an empty context. */
static void expand(const unsigned char *secret, const char *label, unsigned char *to, size_t size)
{
    unsigned char info[64];
    size_t length = strlen(label), used = 0;
    info[used++] = 0;
    info[used++] = (unsigned char)size;
    info[used++] = (unsigned char)(6 + length);
    memcpy(info + used, "tls13 ", 6);
    memcpy(info + used + 6, label, length);
    used += 6 + length;
    info[used++] = 0;
    EVP_PKEY_CTX *kdf = EVP_PKEY_CTX_new_id(EVP_PKEY_HKDF, NULL);
    if (kdf == NULL || EVP_PKEY_derive_init(kdf) != 1 ||
        EVP_PKEY_CTX_set_hkdf_mode(kdf, EVP_PKEY_HKDEF_MODE_EXPAND_ONLY) != 1 ||
        EVP_PKEY_CTX_set_hkdf_md(kdf, EVP_sha256()) != 1 || EVP_PKEY_CTX_set1_hkdf_key(kdf, secret, SECRET) != 1 ||
        EVP_PKEY_CTX_add1_hkdf_info(kdf, info, (int)used) != 1 || EVP_PKEY_derive(kdf, to, &size) != 1)
        die("HKDF: %s", tls_error());
    EVP_PKEY_CTX_free(kdf);
}

/* A line of the key log: "SERVER_TRAFFIC_SECRET_0 <random> <secret>", in hexadecimal digits. */
static void on_key(const SSL *ssl, const char *line)
{
    static const char name[] = "SERVER_TRAFFIC_SECRET_0 ";
    unsigned char secret[SECRET];
    struct tls_stream *stream = SSL_get_ex_data(ssl, stream_index);
    if (stream == NULL || strncmp(line, name, sizeof(name) - 1) != 0)
        return;
    const char *digits = strrchr(line, ' ') + 1;
    for (size_t i = 0; i < SECRET; i++)
        if (sscanf(digits + 2 * i, "%2hhx", &secret[i]) != 1)
            return;
    expand(secret, "key", stream->key, KEY);
    expand(secret, "iv", stream->iv, NONCE);
    stream->keyed = true;
}

static int on_session(SSL *ssl, SSL_SESSION *got)
{
    if (SSL_get_ex_data(ssl, stream_index) != NULL || session != NULL)
        return 0;
    session = got;
    return 1;
}

void tls_prepare(void)
{
    context = SSL_CTX_new(TLS_client_method());
    stream_index = SSL_get_ex_new_index(0, NULL, NULL, NULL, NULL);
    if (context == NULL || SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1 ||
        SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") != 1 ||
        SSL_CTX_set1_groups_list(context, "X25519") != 1)
        die("OpenSSL: %s", tls_error());
    SSL_CTX_set_keylog_callback(context, on_key);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(context, on_session);
}

/* As if it had said goodbye: else OpenSSL takes the session for spoilt, and does not resume it again. */
static void free_ssl(SSL *ssl)
{
    SSL_set_shutdown(ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
    SSL_free(ssl);
}

void tls_resume(const struct sockaddr_in *target, const char *request, size_t size)
{
    char answer[4096];
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)target, sizeof(*target)) < 0)
        die("connect: %s", strerror(errno));
    SSL *ssl = SSL_new(context);
    if (ssl == NULL || SSL_set_fd(ssl, fd) != 1 || SSL_connect(ssl) != 1 || SSL_write(ssl, request, (int)size) <= 0)
        die("handshake: %s", tls_error());
    while (session == NULL && SSL_read(ssl, answer, sizeof(answer)) > 0)
        ;
    if (session == NULL)
        die("the server gives no ticket");
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF); /* which would use a ticket once */
    free_ssl(ssl);
    close(fd);
}

/* ---- Streams ---------------------------------------------------------------------------------------------------- */

struct tls_stream *tls_open(int fd)
{
    struct tls_stream *stream = calloc(1, sizeof(*stream));
    if (stream == NULL)
        die("out of memory");
    stream->fd = fd;
    stream->ssl = SSL_new(context);
    if (stream->ssl == NULL || SSL_set_fd(stream->ssl, fd) != 1 ||
        SSL_set_ex_data(stream->ssl, stream_index, stream) != 1 ||
        (session != NULL && SSL_set_session(stream->ssl, session) != 1))
        die("OpenSSL: %s", tls_error());
    return stream;
}

void tls_close(struct tls_stream *stream)
{
    if (stream == NULL)
        return;
    free_ssl(stream->ssl);
    EVP_CIPHER_CTX_free(stream->counter);
    free(stream->record);
    free(stream);
}

int tls_shake(struct tls_stream *stream)
{
    ERR_clear_error();
    int result = SSL_connect(stream->ssl);
    if (result != 1) {
        int why = SSL_get_error(stream->ssl, result);
        return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? 0 : -1;
    }
    if (!stream->keyed)
        die("OpenSSL did not tell the keys");
    handshakes++;
    resumed += (uint64_t)SSL_session_reused(stream->ssl);
    return 1;
}

bool tls_send(struct tls_stream *stream, const void *data, size_t size)
{
    ERR_clear_error();
    return SSL_write(stream->ssl, data, (int)size) == (int)size;
}

bool tls_has_more(const struct tls_stream *stream)
{
    return stream->whole && stream->data > 0;
}

/* Decrypt so many bytes of the record, which begin at a whole block of it, where they are. */
static void decrypt(struct tls_stream *stream, size_t from, size_t size)
{
    unsigned char start[BLOCK];
    const uint32_t block = 2 + (uint32_t)(from / BLOCK); /* the first one is the tag's */
    int made;
    memcpy(start, stream->iv, NONCE);
    for (unsigned i = 0; i < 8; i++)
        start[NONCE - 1 - i] ^= (unsigned char)(stream->sequence >> (8 * i));
    for (unsigned i = 0; i < 4; i++)
        start[BLOCK - 1 - i] = (unsigned char)(block >> (8 * i));
    if (stream->counter == NULL) {
        stream->counter = EVP_CIPHER_CTX_new();
        if (stream->counter == NULL ||
            EVP_DecryptInit_ex(stream->counter, EVP_aes_128_ctr(), NULL, stream->key, start) != 1)
            die("AES: %s", tls_error());
    } else if (EVP_DecryptInit_ex(stream->counter, NULL, NULL, NULL, start) != 1) {
        die("AES: %s", tls_error());
    }
    if (EVP_DecryptUpdate(stream->counter, stream->record + from, &made, stream->record + from, (int)size) != 1)
        die("AES: %s", tls_error());
}

static void record_ends(struct tls_stream *stream)
{
    stream->sequence++;
    stream->header_used = 0;
    stream->left = stream->data = stream->used = stream->at = 0;
    stream->whole = false;
}

/* 1: a record has begun; or as recv. */
static ssize_t receive_header(struct tls_stream *stream)
{
    while (stream->header_used < HEADER) {
        ssize_t got =
            recv(stream->fd, stream->header + stream->header_used, HEADER - stream->header_used, MSG_DONTWAIT);
        if (got <= 0)
            return got;
        stream->header_used += (unsigned)got;
    }
    size_t size = (size_t)(stream->header[3] << 8 | stream->header[4]);
    if (stream->header[0] != TYPE_DATA || size < TAG + 1 || size > RECORD_MAX) {
        errno = EPROTO;
        return -1;
    }
    stream->left = size;
    stream->data = size - TAG - 1;
    return 1;
}

/* Receive the rest of the record, and look what it is. 1: its data is here; 0: the stream has ended; 2: it was no data;
 * or -1. */
static int receive_record(struct tls_stream *stream)
{
    if (stream->record == NULL && (stream->record = malloc(RECORD_MAX)) == NULL)
        die("out of memory");
    while (stream->left > 0) {
        ssize_t got = recv(stream->fd, stream->record + stream->used, stream->left, MSG_DONTWAIT);
        if (got <= 0)
            return (int)got;
        stream->used += (size_t)got;
        stream->left -= (size_t)got;
    }
    decrypt(stream, 0, stream->used - TAG);
    const unsigned char type = stream->record[stream->data];
    if (type == TYPE_DATA) {
        stream->whole = true;
        return 1;
    }
    record_ends(stream);
    return type == TYPE_HANDSHAKE ? 2 : 0; /* a ticket, or an alert */
}

static size_t take(struct tls_stream *stream, void *to, size_t size, bool keep)
{
    const size_t part = size < stream->data ? size : stream->data;
    if (keep)
        memcpy(to, stream->record + stream->at, part);
    stream->at += part;
    stream->data -= part;
    if (stream->data == 0)
        record_ends(stream);
    return part;
}

/* Of a record that nobody looks at. As recv; *ret_data: how much of it was data. */
static ssize_t discard(struct tls_stream *stream, void *buffer, size_t size, size_t *ret_data)
{
    /* Up to the record's end, with what is no data, unless no more is wanted. */
    const size_t want = size < stream->data ? size : stream->left;
    const ssize_t got = recv(stream->fd, buffer, want, MSG_DONTWAIT | MSG_TRUNC);
    if (got <= 0)
        return got;
    *ret_data = (size_t)got < stream->data ? (size_t)got : stream->data;
    stream->left -= (size_t)got;
    stream->data -= *ret_data;
    if (stream->left == 0)
        record_ends(stream);
    return got;
}

ssize_t tls_receive(struct tls_stream *stream, void *buffer, size_t size, bool keep)
{
    size_t total = 0;
    while (total < size || (stream->left > 0 && stream->data == 0)) {
        size_t part = 0;
        ssize_t result = 1;
        if (stream->whole) {
            total += take(stream, (char *)buffer + (keep ? total : 0), size - total, keep);
            continue;
        }
        if (stream->header_used < HEADER)
            result = receive_header(stream);
        if (result > 0 && (keep || stream->used > 0))
            result = receive_record(stream); /* also what was begun in order to be kept */
        else if (result > 0)
            result = discard(stream, buffer, size - total, &part);
        total += part;
        if (result < 0 && errno == EINTR)
            continue;
        if (result <= 0)
            return total > 0 ? (ssize_t)total : result;
    }
    return (ssize_t)total;
}
