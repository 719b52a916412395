/* SPDX-License-Identifier: MIT
 *
 * TLS without a server around it: OpenSSL as the client, whose bytes are carried by hand.
 */
#include "service/tls.h"
#include "check.h"
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define ROOM (256u << 10)

/* The clocks of the code under test. */
static long later;

int clock_gettime(clockid_t clock, struct timespec *ret_now)
{
    long result = syscall(SYS_clock_gettime, clock, ret_now);
    if (clock != CLOCK_REALTIME)
        ret_now->tv_sec += later;
    return (int)result;
}

/* OpenSSL's memory: the allocation of this number within the session fails; 0: none does. */
static unsigned failing, allocations;
static bool within_session;

static void *allocate_again(void *old, size_t size, const char *file, int line)
{
    (void)file, (void)line;
    if (within_session && ++allocations == failing)
        return NULL;
    return realloc(old, size);
}

static void *allocate(size_t size, const char *file, int line)
{
    return allocate_again(NULL, size, file, line);
}

static void release(void *memory, const char *file, int line)
{
    (void)file, (void)line;
    free(memory);
}

__attribute__((constructor)) static void take_allocations(void)
{
    CRYPTO_set_mem_functions(allocate, allocate_again, release);
}

static char certificate_path[64];

/* A certificate for "a.test", and its key, in one file. */
static void make_certificate(void)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *certificate = X509_new();
    X509V3_CTX context;
    X509_set_version(certificate, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate), -60);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 60 * 86400);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_ASC, (const unsigned char *)"a.test",
                               -1, -1, 0);
    X509_set_issuer_name(certificate, X509_get_subject_name(certificate));
    X509_set_pubkey(certificate, key);
    X509V3_set_ctx(&context, certificate, certificate, NULL, NULL, 0);
    X509_EXTENSION *names = X509V3_EXT_conf_nid(NULL, &context, NID_subject_alt_name, "DNS:a.test");
    X509_add_ext(certificate, names, -1);
    X509_EXTENSION_free(names);
    CHECK(X509_sign(certificate, key, EVP_sha256()) > 0);
    snprintf(certificate_path, sizeof certificate_path, "/tmp/sluice-tls-test-XXXXXX");
    FILE *file = fdopen(mkstemp(certificate_path), "w");
    CHECK(file != NULL);
    CHECK(PEM_write_X509(file, certificate) == 1);
    CHECK(PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL) == 1);
    CHECK_EQ(fclose(file), 0);
    X509_free(certificate);
    EVP_PKEY_free(key);
}

static struct tls_context *context_with(struct tls_tickets *tickets)
{
    struct failure failure;
    struct tls_context *context;
    make_certificate();
    const struct tls_certificate certificate = {.certificate = certificate_path};
    const struct tls_options options = {
        .certificates = &certificate, .certificate_count = 1, .tickets = tickets, .ticket_lifetime = 3600};
    int result = tls_context_new(&options, &context, NULL, &failure);
    unlink(certificate_path);
    CHECK_EQ(result, 0);
    return context;
}

struct pair {
    struct tls_session *session;
    SSL_CTX *client_context;
    SSL *client;
    BIO *to_client, *from_client;
    int fds[2]; /* the session's, and its other end */
    char plain[ROOM];
    size_t plain_length;
    int result; /* of the last tls_session_receive */
};

static int no_check(int good, X509_STORE_CTX *store)
{
    (void)good, (void)store;
    return 1;
}

static void begin(struct pair *pair, struct tls_context *context, int version, SSL_SESSION *resumed)
{
    memset(pair, 0, sizeof *pair);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair->fds), 0);
    within_session = true;
    pair->session = tls_session_new(context, pair->fds[0]);
    within_session = false;
    CHECK(pair->session != NULL || failing > 0);
    pair->client_context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_verify(pair->client_context, SSL_VERIFY_NONE, no_check);
    SSL_CTX_set_max_proto_version(pair->client_context, version);
    pair->client = SSL_new(pair->client_context);
    pair->to_client = BIO_new(BIO_s_mem());
    pair->from_client = BIO_new(BIO_s_mem());
    SSL_set_bio(pair->client, pair->to_client, pair->from_client);
    SSL_set_tlsext_host_name(pair->client, "a.test");
    SSL_set_connect_state(pair->client);
    if (resumed != NULL)
        SSL_set_session(pair->client, resumed);
}

static void end(struct pair *pair)
{
    tls_session_free(pair->session);
    SSL_free(pair->client);
    SSL_CTX_free(pair->client_context);
    close(pair->fds[0]);
    close(pair->fds[1]);
    ERR_clear_error();
}

/* What the session sent by itself. */
static size_t fetch(struct pair *pair)
{
    char data[16384];
    size_t fetched = 0;
    for (ssize_t size; (size = read(pair->fds[1], data, sizeof data)) > 0; fetched += (size_t)size)
        BIO_write(pair->to_client, data, (int)size);
    return fetched;
}

/* What the client wants to send goes to the session, at most so many bytes at a time. */
static void deliver(struct pair *pair, size_t at_a_time)
{
    char data[16384];
    const char *plain;
    size_t length;
    for (int size; pair->result == 0 && (size = BIO_read(pair->from_client, data, (int)at_a_time)) > 0;) {
        within_session = true;
        pair->result = tls_session_receive(pair->session, data, (size_t)size, &plain, &length);
        within_session = false;
        CHECK(pair->plain_length + length <= sizeof pair->plain);
        memcpy(pair->plain + pair->plain_length, plain, length);
        pair->plain_length += length;
    }
}

static void shake_hands(struct pair *pair, size_t at_a_time)
{
    for (int i = 0; i < 10 && tls_session_state(pair->session) == TLS_HANDSHAKE; i++) {
        SSL_do_handshake(pair->client);
        deliver(pair, at_a_time);
        fetch(pair);
    }
    CHECK_EQ(tls_session_state(pair->session), TLS_OPEN);
    CHECK_EQ(SSL_do_handshake(pair->client), 1);
    CHECK_EQ(SSL_read(pair->client, pair->plain, 1), -1); /* takes the tickets */
}

/* Through the transform, as the library would. Returns what was made. */
static size_t apply(struct pair *pair, const char *data, size_t size, size_t room, bool last, char *output)
{
    const struct sluice_transform *transform = tls_session_transform(pair->session);
    size_t made_in_all = 0;
    for (int result = 0; size > 0 || (last && result == 0);) {
        size_t used, made;
        result = transform->apply(transform->context, data, size, &used, output, room, &made, last);
        CHECK(result >= 0);
        CHECK(made <= room);
        CHECK(result == 1 || used + made > 0);
        BIO_write(pair->to_client, output, (int)made);
        output += made;
        made_in_all += made;
        data += used;
        size -= used;
    }
    return made_in_all;
}

static char body[1 << 20], output[2 << 20], got[1 << 20];

static void read_back(struct pair *pair, const char *want, size_t size)
{
    size_t length = 0;
    while (length < size) {
        int part = SSL_read(pair->client, got + length, (int)(size - length));
        CHECK(part > 0);
        length += (size_t)part;
    }
    CHECK(memcmp(got, want, size) == 0);
}

/* The plain bytes of each record of TLS 1.3 with an AEAD. */
static unsigned record_sizes(const char *data, size_t size, size_t *sizes, unsigned room)
{
    unsigned count = 0;
    for (size_t at = 0; at < size && count < room; count++) {
        size_t length = (size_t)(unsigned char)data[at + 3] << 8 | (unsigned char)data[at + 4];
        sizes[count] = length - 17;
        at += 5 + length;
    }
    return count;
}

static void fill_body(void)
{
    for (size_t i = 0; i < sizeof body; i++)
        body[i] = (char)(i * 7919 >> 5);
}

TEST("what is said by the client, in any pieces, and what is sent to it arrive, by TLS 1.2 and 1.3")
{
    static const size_t pieces[] = {16384, 1, 100};
    static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
    struct pair pair;
    struct tls_context *context = context_with(NULL);
    fill_body();
    for (int i = 0; i < 6; i++) {
        begin(&pair, context, versions[i % 2], NULL);
        shake_hands(&pair, pieces[i / 2]);
        CHECK_STR(tls_session_version(pair.session), i % 2 ? "TLSv1.3" : "TLSv1.2");
        CHECK(!tls_session_resumed(pair.session));
        CHECK(!tls_session_kernel_sends(pair.session));
        CHECK_EQ(SSL_write(pair.client, body, 100000), 100000);
        pair.plain_length = 0;
        deliver(&pair, pieces[i / 2]);
        CHECK_EQ(pair.plain_length, 100000);
        CHECK(memcmp(pair.plain, body, 100000) == 0);
        apply(&pair, body, sizeof body, i < 2 ? ROOM : 16384, true, output);
        CHECK_EQ(tls_session_sent(pair.session), sizeof body);
        read_back(&pair, body, sizeof body);
        end(&pair);
    }
    tls_context_free(context);
}

TEST("the first 16 KiB are in small records, then they are large; and again after a second of silence")
{
    struct pair pair;
    struct tls_context *context = context_with(NULL);
    size_t sizes[64];
    begin(&pair, context, TLS1_3_VERSION, NULL);
    shake_hands(&pair, 16384);
    for (int again = 0; again < 3; again++) {
        size_t made = apply(&pair, body, 16384 + 3 * 16384, ROOM, true, output);
        unsigned count = record_sizes(output, made, sizes, 64);
        CHECK_EQ(count, again == 1 ? 4 : 7);
        for (unsigned i = 0; i < count; i++)
            CHECK_EQ(sizes[i], again != 1 && i < 4 ? 4096 : 16384);
        read_back(&pair, body, 4 * 16384);
        later += again;
        later += again; /* two seconds after the second */
    }
    end(&pair);
    tls_context_free(context);
}

TEST("a head and a short body share a record; a long body begins in the head's")
{
    struct pair pair;
    struct tls_context *context = context_with(NULL);
    size_t sizes[64];
    begin(&pair, context, TLS1_3_VERSION, NULL);
    shake_hands(&pair, 16384);
    apply(&pair, body, 16384, ROOM, true, output); /* large records from here */
    read_back(&pair, body, 16384);
    static const size_t lengths[] = {1000, 50000};
    for (int i = 0; i < 2; i++) {
        size_t made = apply(&pair, body, 300, ROOM, false, output);
        CHECK_EQ(made, 0);
        made = apply(&pair, body + 300, lengths[i], ROOM, false, output);
        made += apply(&pair, NULL, 0, ROOM, true, output + made);
        CHECK_EQ(record_sizes(output, made, sizes, 64), i == 0 ? 1 : 4);
        CHECK_EQ(sizes[0], i == 0 ? 1300 : 16384);
        read_back(&pair, body, 300 + lengths[i]);
    }
    end(&pair);
    tls_context_free(context);
}

TEST("a client that wants records of 512 bytes gets all of what is sent, where they do not fit into the output as well")
{
    struct pair pair;
    struct tls_context *context = context_with(NULL);
    fill_body();
    for (int version = TLS1_2_VERSION; version <= TLS1_3_VERSION; version++) {
        begin(&pair, context, version, NULL);
        CHECK_EQ(SSL_set_tlsext_max_fragment_length(pair.client, TLSEXT_max_fragment_length_512), 1);
        shake_hands(&pair, 16384);
        for (size_t size = 16000; size < 17000; size += 50) {
            apply(&pair, body, size, 16384, true, output);
            read_back(&pair, body, size);
            CHECK(!tls_session_must_send(pair.session));
        }
        tls_session_end_with_next(pair.session);
        apply(&pair, body, 16384, 16384, true, output);
        read_back(&pair, body, 16384);
        CHECK_EQ(SSL_read(pair.client, got, 1), 0);
        CHECK_EQ(SSL_get_error(pair.client, 0), SSL_ERROR_ZERO_RETURN);
        end(&pair);
    }
    tls_context_free(context);
}

TEST("an answer that the socket does not take leaves by the transform, before anything else")
{
    struct pair pair;
    struct tls_context *context = context_with(NULL);
    static char filler[4096];
    begin(&pair, context, TLS1_3_VERSION, NULL);
    CHECK_EQ(setsockopt(pair.fds[0], SOL_SOCKET, SO_SNDBUF, &(int){1}, sizeof(int)), 0);
    while (write(pair.fds[0], filler, sizeof filler) > 0)
        ;
    SSL_do_handshake(pair.client);
    deliver(&pair, 16384);
    CHECK_EQ(pair.result, 0);
    CHECK(tls_session_must_send(pair.session));
    CHECK_EQ(tls_session_state(pair.session), TLS_HANDSHAKE);
    CHECK(apply(&pair, NULL, 0, 300, true, output) > 300); /* in several pieces */
    CHECK(!tls_session_must_send(pair.session));
    CHECK_EQ(SSL_do_handshake(pair.client), 1);
    deliver(&pair, 16384);
    CHECK_EQ(tls_session_state(pair.session), TLS_OPEN);
    /* New keys: the client must get the word before what is encrypted by them. */
    CHECK_EQ(SSL_key_update(pair.client, SSL_KEY_UPDATE_REQUESTED), 1);
    CHECK_EQ(SSL_write(pair.client, "x", 1), 1);
    deliver(&pair, 16384);
    apply(&pair, body, 5000, ROOM, true, output);
    read_back(&pair, body, 5000);
    end(&pair);
    tls_context_free(context);
}

TEST("a client that says much by TLS itself, and asks nothing, is cut off; one that asks in between is not")
{
    struct pair pair;
    struct tls_context *context = context_with(NULL);
    for (int asks = 0; asks < 2; asks++) {
        begin(&pair, context, TLS1_3_VERSION, NULL);
        shake_hands(&pair, 16384);
        for (int i = 0; i < 6000 && pair.result == 0; i++) {
            CHECK_EQ(SSL_key_update(pair.client, SSL_KEY_UPDATE_NOT_REQUESTED), 1);
            SSL_do_handshake(pair.client);
            if (asks && i % 100 == 0)
                CHECK_EQ(SSL_write(pair.client, "x", 1), 1);
            deliver(&pair, 16384);
        }
        CHECK_EQ(pair.result, asks ? 0 : -EPROTO);
        if (!asks)
            CHECK_STR(tls_session_failure(pair.session), "the client says much, and asks nothing");
        end(&pair);
    }
    tls_context_free(context);
}

/* Returns whether the client got what was sent to it. */
static bool serve_one(struct pair *pair, struct tls_context *context)
{
    size_t used = 0, made = 0, length = 0;
    begin(pair, context, TLS1_3_VERSION, NULL);
    if (pair->session == NULL)
        return false;
    for (int i = 0; i < 10 && pair->result == 0 && tls_session_state(pair->session) == TLS_HANDSHAKE; i++) {
        SSL_do_handshake(pair->client);
        deliver(pair, 16384);
        fetch(pair);
    }
    if (pair->result != 0 || tls_session_state(pair->session) != TLS_OPEN)
        return false;
    const struct sluice_transform *transform = tls_session_transform(pair->session);
    CHECK_EQ(SSL_write(pair->client, "ask", 3), 3);
    deliver(pair, 16384);
    if (pair->result != 0)
        return false;
    CHECK_EQ(pair->plain_length, 3);
    within_session = true;
    int result = transform->apply(transform->context, body, 50000, &used, output, sizeof output, &made, true);
    within_session = false;
    if (result < 0)
        return false;
    CHECK_EQ(used, 50000);
    BIO_write(pair->to_client, output, (int)made);
    for (int part; (part = SSL_read(pair->client, got + length, (int)(sizeof got - length))) > 0;)
        length += (size_t)part;
    CHECK_EQ(length, 50000);
    return memcmp(got, body, length) == 0;
}

TEST("whichever allocation fails, a client gets what is sent to it or its session fails, and the next one is served")
{
    struct failure failure;
    struct tls_tickets *tickets;
    struct pair pair;
    unsigned tried = 0, failed = 0;
    CHECK_EQ(tls_tickets_new(3600, &tickets, &failure), 0);
    struct tls_context *context = context_with(tickets);
    fill_body();
    CHECK(serve_one(&pair, context));
    end(&pair);
    for (bool fails = true; fails; tried++) {
        failing = 1 + 7 * tried;
        allocations = 0;
        failed += !serve_one(&pair, context);
        end(&pair);
        fails = allocations >= failing;
        failing = 0;
        CHECK(serve_one(&pair, context));
        end(&pair);
    }
    printf("# of %u allocations that failed, %u ended the session\n", tried, failed);
    CHECK(tried > 50 && failed > tried / 2);
    tls_context_free(context);
    tls_tickets_free(tickets);
}

TEST("HTTP without TLS is recognised, and nothing is sent; a wrong ClientHello is answered by an alert")
{
    struct pair pair;
    struct tls_context *context = context_with(NULL);
    const char *plain;
    size_t length;
    begin(&pair, context, TLS1_3_VERSION, NULL);
    CHECK_EQ(tls_session_receive(pair.session, "GET / HTTP/1.1\r\n", 16, &plain, &length), -EPROTONOSUPPORT);
    CHECK_EQ(fetch(&pair), 0);
    end(&pair);
    begin(&pair, context, TLS1_3_VERSION, NULL);
    CHECK_EQ(tls_session_receive(pair.session, "\x16\3\1\0\6\xff\0\0\2\0\0", 11, &plain, &length), -EPROTO);
    CHECK(fetch(&pair) > 0);
    CHECK_EQ(tls_session_state(pair.session), TLS_FAILED);
    CHECK_EQ(tls_session_receive(pair.session, "x", 1, &plain, &length), -EPROTO);
    end(&pair);
    tls_context_free(context);
}

TEST("close_notify goes with the end of a transfer, or by itself, and once; after the client's one may send")
{
    struct pair pair;
    struct tls_context *context = context_with(NULL);
    for (int with = 0; with < 2; with++) {
        begin(&pair, context, TLS1_3_VERSION, NULL);
        shake_hands(&pair, 16384);
        SSL_shutdown(pair.client);
        deliver(&pair, 16384);
        CHECK_EQ(pair.result, 0);
        CHECK_EQ(tls_session_state(pair.session), TLS_ENDED);
        if (with)
            tls_session_end_with_next(pair.session);
        apply(&pair, body, 5000, ROOM, true, output);
        tls_session_end(pair.session);
        CHECK((fetch(&pair) > 0) == !with);
        tls_session_end(pair.session);
        CHECK_EQ(fetch(&pair), 0);
        read_back(&pair, body, 5000);
        CHECK_EQ(SSL_read(pair.client, got, 1), 0);
        CHECK_EQ(SSL_get_shutdown(pair.client) & SSL_RECEIVED_SHUTDOWN, SSL_RECEIVED_SHUTDOWN);
        end(&pair);
    }
    tls_context_free(context);
}

/* Is a session resumed? Returns the one of this connection. */
static SSL_SESSION *resume(struct tls_context *context, int version, SSL_SESSION *from, bool want)
{
    struct pair pair;
    begin(&pair, context, version, from);
    shake_hands(&pair, 16384);
    bool resumed = tls_session_resumed(pair.session);
    SSL_SESSION *session = SSL_get1_session(pair.client);
    SSL_shutdown(pair.client); /* or the session counts as broken */
    end(&pair);
    CHECK_EQ(resumed, want);
    return session;
}

TEST("a ticket is good for one lifetime of its key and another, also in a new context; then it is not")
{
    struct tls_tickets *tickets;
    CHECK_EQ(tls_tickets_new(1000, &tickets, NULL), 0);
    for (int version = TLS1_2_VERSION; version <= TLS1_3_VERSION; version++) {
        struct tls_context *context = context_with(tickets);
        SSL_SESSION *session = resume(context, version, NULL, false);
        SSL_SESSION_free(resume(context, version, session, true));
        tls_context_free(context);
        context = context_with(tickets); /* after a reload */
        SSL_SESSION_free(resume(context, version, session, true));
        later += 1500;
        SSL_SESSION *renewed = resume(context, version, session, true);
        later += 1500;
        SSL_SESSION_free(resume(context, version, session, false));
        SSL_SESSION_free(resume(context, version, renewed, true));
        later += 10000;
        SSL_SESSION_free(resume(context, version, renewed, false));
        SSL_SESSION_free(renewed);
        SSL_SESSION_free(session);
        tls_context_free(context);
    }
    tls_tickets_free(tickets);
}

TEST("a shorter lifetime holds for tickets that were given before it, too")
{
    struct tls_tickets *tickets;
    CHECK_EQ(tls_tickets_new(100000, &tickets, NULL), 0);
    struct tls_context *context = context_with(tickets);
    SSL_SESSION *session = resume(context, TLS1_3_VERSION, NULL, false);
    later += 5000;
    tls_tickets_change(tickets, 100);
    SSL_SESSION_free(resume(context, TLS1_3_VERSION, session, true));
    later += 150;
    SSL_SESSION_free(resume(context, TLS1_3_VERSION, session, true));
    later += 150;
    SSL_SESSION_free(resume(context, TLS1_3_VERSION, session, false));
    SSL_SESSION_free(session);
    tls_context_free(context);
    tls_tickets_free(tickets);
}

static void note_line(void *context, const char *line)
{
    snprintf(context, 1000, "%s", line);
}

TEST("a context is described by what is in its certificates, and a good one is no reason for a warning")
{
    struct tls_context *context = context_with(NULL);
    char said[1000] = "";
    tls_context_describe(context, true, note_line, said);
    CHECK_STR(said, "");
    tls_context_describe(context, false, note_line, said);
    CHECK(strstr(said, "for a.test; ECDSA, 256 bits; until 20") != NULL);
    tls_context_free(context);
}

CHECK_MAIN()
