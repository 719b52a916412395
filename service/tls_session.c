/* SPDX-License-Identifier: MIT
 *
 * OpenSSL reads what arrived through a BIO of ours, and writes through another: into the output of the transform while
 * that runs, so that records land where they are sent from, and else into `waiting`, which is sent at once if the
 * socket takes it, and leaves before anything else if it does not. So OpenSSL never waits for the socket.
 *
 * With kernel TLS it is the socket that OpenSSL writes to during the handshake (BIO_s_socket): at its end it hands the
 * keys to the kernel, when everything before is in the socket. If it cannot (no such cipher in the kernel, no memory),
 * or the socket is full, our BIO takes the socket's place. Afterwards it writes alerts and tickets only, by the same
 * BIO, which tells the kernel what they are.
 *
 * Invariants
 *   1. What is given to tls_session_receive is used up when it returns: nobody else has a copy.
 *   2. Bytes in `waiting` are older than whatever the transform makes next.
 *   3. SSL_write never writes half: the transform's output has room for what it asks OpenSSL to write, and where the
 *      client wants records of 512 or 1024 bytes (max_fragment_length, RFC 6066), which add more, `waiting` has the
 *      rest.
 */
#include "service/tls_inside.h"

#include "base/checked.h"
#include "base/clock.h"
#include <errno.h>
#include <openssl/err.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define RECORD_MOST SSL3_RT_MAX_PLAIN_LENGTH
/* What a record adds, the most there is (29 bytes for TLS 1.2 with AES-GCM, 22 for TLS 1.3). */
#define RECORD_MORE 128u

/* The first flight of a connection is 10 segments (RFC 6928), 14 KB: in records of 4 KiB the client reads the first of
 * them when three have come. So much leaves in small ones; by then the second flight has begun, which holds a whole
 * large one. After a second of silence the kernel starts anew (net.ipv4.tcp_slow_start_after_idle). Measured: the first
 * byte comes a round trip earlier (docs/design/2026-11-21-https.md). */
#define RECORD_SMALL 4096u
#define SMALL_UNTIL 16384u
#define SMALL_AGAIN_NS UINT64_C(1000000000)

/* Segments shorter than this wait for the next one, so that a response's head does not cost a record of its own. */
#define HELD_MOST 4096u

/* A client that says so much and nothing of it is for us: in its handshake, or afterwards by messages of TLS itself. No
 * handshake needs it: a ClientHello takes 2 KB at most with the keys of today, and no certificates are asked for. */
#define WITHOUT_PLAIN_MAX (64u << 10)

/* Of answers that the socket does not take. */
#define WAITING_MAX (128u << 10)

struct tls_session {
    SSL *ssl;
    struct tls_context *context;
    int fd;
    uint8_t state;
    bool own_writes; /* through our BIO; else through the socket's */
    bool kernel;
    bool ends_with_next, end_said;
    bool new_keys_asked; /* which the kernel cannot be given */
    bool sending;        /* within the transform */
    uint32_t without_plain;
    const char *failure;
    struct sluice_transform transform;

    const char *input; /* what arrived */
    size_t input_left;

    char *output; /* of the transform */
    size_t output_room, output_made;

    char *waiting;
    size_t waiting_length;

    char *held; /* less than HELD_MOST; NULL: nothing is */
    size_t held_length;

    uint64_t sent, small_left;
    uint64_t sent_at_ns;
};

/* ---- What OpenSSL calls ---------------------------------------------------------------------------------------- */

static int read_input(BIO *bio, char *data, size_t size, size_t *ret_read)
{
    struct tls_session *session = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    if (session->input_left == 0) {
        BIO_set_retry_read(bio);
        return 0;
    }
    *ret_read = min_size(size, session->input_left);
    memcpy(data, session->input, *ret_read);
    session->input += *ret_read;
    session->input_left -= *ret_read;
    return 1;
}

static bool wait_with(struct tls_session *session, const char *data, size_t size)
{
    if (session->waiting_length + size > WAITING_MAX)
        return false;
    char *larger = realloc(session->waiting, session->waiting_length + size);
    if (larger == NULL)
        return false;
    memcpy(larger + session->waiting_length, data, size);
    session->waiting = larger;
    session->waiting_length += size;
    return true;
}

static int write_output(BIO *bio, const char *data, size_t size, size_t *ret_written)
{
    struct tls_session *session = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    if (session->sending && session->waiting_length == 0 && size <= session->output_room - session->output_made) {
        memcpy(session->output + session->output_made, data, size);
        session->output_made += size;
    } else if (!wait_with(session, data, size)) {
        return 0;
    }
    *ret_written = size;
    return 1;
}

static long control(BIO *bio, int command, long number, void *pointer)
{
    (void)bio, (void)number, (void)pointer;
    return command == BIO_CTRL_FLUSH; /* nothing stays here. Of the rest we know nothing, of kernel TLS on purpose */
}

int tls_session_prepare(struct tls_context *context)
{
    context->method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "sluice");
    if (context->method == NULL || BIO_meth_set_read_ex(context->method, read_input) != 1 ||
        BIO_meth_set_write_ex(context->method, write_output) != 1 || BIO_meth_set_ctrl(context->method, control) != 1)
        return -ENOMEM;
    return 0;
}

/* Of a session whose writes the kernel encrypts: does the client ask for other keys of ours (KeyUpdate,
 * update_requested: RFC 8446, 4.6.3)? The kernel changes them only from Linux 6.14 on, and OpenSSL 3.0 does not tell it
 * to. */
static void see_message(int writes, int version, int type, const void *data, size_t length, SSL *ssl, void *context)
{
    struct tls_session *session = context;
    const unsigned char *message = data;
    (void)version, (void)ssl;
    if (!writes && type == SSL3_RT_HANDSHAKE && length == 5 && message[0] == SSL3_MT_KEY_UPDATE &&
        message[4] == SSL_KEY_UPDATE_REQUESTED)
        session->new_keys_asked = true;
}

/* ---- Beginning and end ----------------------------------------------------------------------------------------- */

static int apply(void *context, const void *input, size_t input_size, size_t *ret_used, void *output,
                 size_t output_size, size_t *ret_made, bool last);

static BIO *new_bio(struct tls_session *session)
{
    BIO *bio = BIO_new(session->context->method);
    if (bio != NULL) {
        BIO_set_data(bio, session);
        BIO_set_init(bio, 1);
    }
    return bio;
}

static void write_through_own(struct tls_session *session)
{
    BIO *bio = SSL_get_rbio(session->ssl);
    BIO_up_ref(bio);
    SSL_set0_wbio(session->ssl, bio);
    session->own_writes = true;
}

struct tls_session *tls_session_new(struct tls_context *context, int fd)
{
    struct tls_session *session = calloc(1, sizeof *session);
    if (session == NULL)
        return NULL;
    session->context = context;
    session->fd = fd;
    session->small_left = SMALL_UNTIL;
    session->transform =
        (struct sluice_transform){.size = sizeof session->transform, .name = "TLS", .apply = apply, .context = session};
    if (context->plain == NULL)
        context->plain = malloc(TLS_PLAIN_MAX);
    if (context->record == NULL)
        context->record = malloc(RECORD_MOST);
    session->ssl = context->plain != NULL && context->record != NULL ? SSL_new(context->fallback) : NULL;
    BIO *bio = session->ssl != NULL ? new_bio(session) : NULL;
    if (bio == NULL) {
        tls_session_free(session);
        ERR_clear_error();
        return NULL;
    }
    SSL_set0_rbio(session->ssl, bio);
    SSL_set_accept_state(session->ssl);
    if (!context->kernel || SSL_set_wfd(session->ssl, fd) != 1)
        write_through_own(session);
    return session;
}

void tls_session_free(struct tls_session *session)
{
    if (session == NULL)
        return;
    SSL_free(session->ssl);
    free(session->waiting);
    free(session->held);
    free(session);
}

enum tls_state tls_session_state(const struct tls_session *session)
{
    return (enum tls_state)session->state;
}

/* ---- Receiving -------------------------------------------------------------------------------------------------- */

static void send_waiting(struct tls_session *session)
{
    if (session->waiting_length == 0)
        return;
    ssize_t sent = send(session->fd, session->waiting, session->waiting_length, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent <= 0) /* EAGAIN; or an error, of which whoever receives is told, too */
        return;
    session->waiting_length -= (size_t)sent;
    memmove(session->waiting, session->waiting + sent, session->waiting_length);
    if (session->waiting_length == 0) {
        free(session->waiting);
        session->waiting = NULL;
    }
}

static const struct {
    int reason;
    const char *text;
} failures[] = {
    {SSL_R_UNSUPPORTED_PROTOCOL, "the client offers only versions of TLS that are older than --tls-min"},
    {SSL_R_NO_SHARED_CIPHER, "the client offers no cipher suite that is permitted, or that there is a key for"},
    {SSL_R_NO_SUITABLE_KEY_SHARE, "the client offers no key exchange group that is permitted"},
    {SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM, "the client accepts no signature that the certificate's key can make"},
    {SSL_R_NO_APPLICATION_PROTOCOL, "the client does not speak HTTP/1.1 (ALPN)"},
    {SSL_R_WRONG_VERSION_NUMBER, "what came is not TLS"},
    {SSL_R_UNEXPECTED_MESSAGE, "a message of TLS came out of turn"},
    {SSL_R_NO_RENEGOTIATION, "the client wants to renegotiate"},
    {SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC, "a record was damaged on its way"},
    {SSL_R_TLSV1_ALERT_UNKNOWN_CA, "the client does not know who signed the certificate (alert unknown_ca)"},
    {SSL_R_SSLV3_ALERT_BAD_CERTIFICATE, "the client refuses the certificate (alert bad_certificate)"},
    {SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN, "the client refuses the certificate (alert certificate_unknown)"},
    {SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED, "the client finds the certificate expired (alert certificate_expired)"},
};

static const char *failure_text(void)
{
    unsigned long error = ERR_peek_error();
    for (size_t i = 0; i < sizeof failures / sizeof failures[0]; i++)
        if (ERR_GET_LIB(error) == ERR_LIB_SSL && ERR_GET_REASON(error) == failures[i].reason)
            return failures[i].text;
    const char *text = error != 0 ? ERR_reason_error_string(error) : NULL;
    return text != NULL ? text : "TLS failed";
}

static int fail(struct tls_session *session, const char *why)
{
    session->state = TLS_FAILED;
    session->failure = why;
    ERR_clear_error();
    send_waiting(session); /* the alert */
    return -EPROTO;
}

/* The handshake is done. */
static void open_session(struct tls_session *session)
{
    session->state = TLS_OPEN;
    if (session->own_writes)
        return;
    session->kernel = BIO_get_ktls_send(SSL_get_wbio(session->ssl));
    if (session->kernel) {
        SSL_set_msg_callback(session->ssl, see_message);
        SSL_set_msg_callback_arg(session->ssl, session);
    } else {
        write_through_own(session);
    }
}

/* Returns whether OpenSSL wants more input, or a negative errno. */
static int take_input(struct tls_session *session, char *plain, size_t *length)
{
    size_t got = 0;
    ERR_clear_error();
    int read = SSL_read_ex(session->ssl, plain + *length, TLS_PLAIN_MAX - *length, &got);
    *length += got;
    if (session->state == TLS_HANDSHAKE && SSL_is_init_finished(session->ssl))
        open_session(session);
    if (session->new_keys_asked)
        return fail(session, "the client asks for new keys, which the kernel cannot be given (KeyUpdate)");
    if (read == 1 && *length == TLS_PLAIN_MAX)
        return fail(session, "more came than was sent");
    if (read == 1) /* to ask once more for nothing costs as much as asking the first time */
        return session->input_left == 0 && !SSL_has_pending(session->ssl);
    switch (SSL_get_error(session->ssl, read)) {
    case SSL_ERROR_WANT_READ:
        return 1;
    case SSL_ERROR_WANT_WRITE:
        if (session->own_writes)
            return fail(session, "the client takes no answers");
        write_through_own(session); /* what the socket did not take waits there */
        return 0;
    case SSL_ERROR_ZERO_RETURN:
        session->state = TLS_ENDED;
        return 1;
    default:
        return fail(session, failure_text());
    }
}

/* A ClientHello's record begins with 22, and one of SSL 2 with 128 or more. */
static bool is_http(char first)
{
    return first >= 'A' && first <= 'Z';
}

int tls_session_receive(struct tls_session *session, const char *data, size_t length, const char **ret_plain,
                        size_t *ret_length)
{
    *ret_plain = session->context->plain;
    *ret_length = 0;
    if (session->state == TLS_FAILED)
        return -EPROTO;
    if (session->state == TLS_ENDED)
        return 0;
    if (session->state == TLS_HANDSHAKE && session->without_plain == 0 && is_http(data[0]))
        return -EPROTONOSUPPORT;
    session->without_plain += (uint32_t)length;
    session->input = data;
    session->input_left = length;
    int done;
    do
        done = take_input(session, session->context->plain, ret_length);
    while (done == 0);
    session->input = NULL;
    session->input_left = 0;
    if (done < 0)
        return done;
    if (*ret_length > 0)
        session->without_plain = 0;
    else if (session->without_plain > WITHOUT_PLAIN_MAX)
        return fail(session, "the client says much, and asks nothing");
    send_waiting(session);
    return 0;
}

bool tls_session_must_send(const struct tls_session *session)
{
    return session->waiting_length > 0;
}

/* ---- Sending ---------------------------------------------------------------------------------------------------- */

static size_t room(const struct tls_session *session)
{
    return session->output_room - session->output_made;
}

/* The most that may be encrypted at once; 0: there is too little room. */
static size_t next_piece(const struct tls_session *session)
{
    size_t each = session->small_left > 0 ? RECORD_SMALL : RECORD_MOST;
    size_t records = session->small_left > 0 ? 1 : room(session) / (RECORD_MOST + RECORD_MORE);
    if (records > 0 && room(session) >= each + RECORD_MORE)
        return each * records;
    if (session->output_made > 0 || room(session) < 2 * RECORD_MORE)
        return 0;
    return min_size(each, room(session) - RECORD_MORE);
}

static int encrypt(struct tls_session *session, const char *data, size_t length)
{
    size_t written = 0;
    ERR_clear_error();
    if (SSL_write_ex(session->ssl, data, length, &written) != 1 || written != length) {
        fail(session, failure_text());
        return -EPROTO;
    }
    session->sent += length;
    session->small_left -= min_size(session->small_left, length);
    return 0;
}

static void drop_held(struct tls_session *session)
{
    free(session->held);
    session->held = NULL;
    session->held_length = 0;
}

/* Small pieces come together in one record. Returns 1 when what is held waits for more, else 0 or a negative errno. */
static int encrypt_together(struct tls_session *session, const char **data, size_t *left, size_t most, bool last)
{
    char *record = session->context->record;
    size_t held = session->held_length;
    if (!last && held + *left < HELD_MOST) {
        char *larger = realloc(session->held, held + *left);
        if (larger == NULL)
            return -ENOMEM;
        memcpy(larger + held, *data, *left);
        session->held = larger;
        session->held_length += *left;
        *data += *left;
        *left = 0;
        return 1;
    }
    most = min_size(most, RECORD_MOST);
    size_t from_held = min_size(held, most), take = min_size(most - from_held, *left);
    if (from_held > 0)
        memcpy(record, session->held, from_held);
    if (take > 0) { /* data may be NULL otherwise, which nothing may be added to */
        memcpy(record + from_held, *data, take);
        *data += take;
        *left -= take;
    }
    int result = encrypt(session, record, from_held + take);
    if (from_held == held) {
        drop_held(session);
    } else {
        session->held_length -= from_held;
        memmove(session->held, session->held + from_held, session->held_length);
    }
    return result;
}

/* What could not be sent before comes first. Returns whether all of it went. */
static bool move_waiting(struct tls_session *session)
{
    size_t moved = min_size(session->waiting_length, room(session));
    if (moved == 0)
        return session->waiting_length == 0;
    memcpy(session->output + session->output_made, session->waiting, moved);
    session->output_made += moved;
    session->waiting_length -= moved;
    memmove(session->waiting, session->waiting + moved, session->waiting_length);
    return session->waiting_length == 0;
}

static int make_records(struct tls_session *session, const char *data, size_t *left, bool last)
{
    while (*left > 0 || (last && session->held_length > 0)) {
        size_t most = next_piece(session);
        int result;
        if (most == 0)
            break;
        if (session->held_length > 0 || (*left < HELD_MOST && !last)) {
            result = encrypt_together(session, &data, left, most, last);
        } else {
            size_t piece = min_size(most, *left);
            result = encrypt(session, data, piece);
            data += piece;
            *left -= piece;
        }
        if (result < 0)
            return result;
        if (result == 1)
            break;
    }
    return 0;
}

/* Returns as sluice_transform.apply. */
static int apply_all(struct tls_session *session, const char *data, size_t *left, bool last)
{
    if (session->state == TLS_FAILED)
        return -EPROTO;
    if (!move_waiting(session))
        return 0;
    if (session->state == TLS_HANDSHAKE) /* nothing but its messages may be sent */
        return *left == 0 ? last : -EPROTO;
    int result = make_records(session, data, left, last);
    if (result < 0 || !last || *left > 0 || session->held_length > 0 || session->waiting_length > 0)
        return result;
    if (!session->ends_with_next)
        return 1;
    if (room(session) < RECORD_MORE)
        return 0;
    tls_session_end(session);
    return 1;
}

static int apply(void *context, const void *input, size_t input_size, size_t *ret_used, void *output,
                 size_t output_size, size_t *ret_made, bool last)
{
    struct tls_session *session = context;
    uint64_t now = clock_ns(CLOCK_MONOTONIC_COARSE);
    size_t left = input_size;
    if (now - session->sent_at_ns > SMALL_AGAIN_NS)
        session->small_left = SMALL_UNTIL;
    session->sent_at_ns = now;
    session->sending = true;
    session->output = output;
    session->output_room = output_size;
    session->output_made = 0;
    int result = apply_all(session, input, &left, last);
    session->sending = false;
    *ret_used = input_size - left;
    *ret_made = session->output_made;
    return result;
}

const struct sluice_transform *tls_session_transform(struct tls_session *session)
{
    return session->kernel ? NULL : &session->transform;
}

bool tls_session_kernel_sends(const struct tls_session *session)
{
    return session->kernel;
}

uint64_t tls_session_forget(struct tls_session *session)
{
    drop_held(session);
    return session->sent;
}

uint64_t tls_session_sent(const struct tls_session *session)
{
    return session->sent;
}

void tls_session_end_with_next(struct tls_session *session)
{
    session->ends_with_next = true;
}

void tls_session_end(struct tls_session *session)
{
    if (session->end_said || (session->state != TLS_OPEN && session->state != TLS_ENDED))
        return;
    session->end_said = true;
    ERR_clear_error();
    SSL_shutdown(session->ssl);
    ERR_clear_error();
    if (!session->sending)
        send_waiting(session);
}

const char *tls_session_failure(const struct tls_session *session)
{
    return session->failure != NULL ? session->failure : "it did not";
}

const char *tls_session_version(const struct tls_session *session)
{
    return SSL_get_version(session->ssl);
}

const char *tls_session_cipher(const struct tls_session *session)
{
    return SSL_get_cipher_name(session->ssl);
}

bool tls_session_resumed(const struct tls_session *session)
{
    return SSL_session_reused(session->ssl);
}
