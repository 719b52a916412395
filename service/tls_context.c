/* SPDX-License-Identifier: MIT
 *
 * Certificates, and which of them a client is shown. An SSL_CTX is made for every set of certificates that are shown
 * together, one for each kind of key; a table of names says which. The set of a name: of each kind of key the first
 * certificate that has the very name, else the first that has a wildcard for it.
 */
#include "service/tls_inside.h"

#include "base/cleanup.h"
#include "base/text.h"
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HOST_NAME_MAX_LENGTH 255
#define WARN_DAYS 7

/* Mozilla's intermediate profile (version 5.7), without its three suites with finite-field Diffie-Hellman, which need
 * parameters and which no client of the last ten years depends on. */
const char *const tls_default_ciphers =
    "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:"
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305";
const char *const tls_default_groups = "X25519:P-256:P-384";

static const struct {
    int id;
    const char *name;
} key_kinds[] = {
    {EVP_PKEY_EC, "ECDSA"}, {EVP_PKEY_RSA, "RSA"}, {EVP_PKEY_ED25519, "Ed25519"}, {EVP_PKEY_ED448, "Ed448"}};
#define KEY_KINDS (sizeof key_kinds / sizeof key_kinds[0])

struct tls_loaded {
    char *path;
    X509 *certificate;
    STACK_OF(X509) * chain;
    EVP_PKEY *key;
    size_t kind; /* of key_kinds */
    char **names;
    size_t name_count;
};

const char *tls_reason(void)
{
    unsigned long error = ERR_peek_last_error();
    const char *text = error != 0 ? ERR_reason_error_string(error) : NULL;
    ERR_clear_error();
    return text != NULL ? text : "no reason given";
}

/* ---- Files ------------------------------------------------------------------------------------------------------ */

static int no_memory(struct failure *failure)
{
    ERR_clear_error();
    return failure_set(failure, -ENOMEM, "no memory for certificates");
}

static int open_pem(const char *path, const char *what, BIO **ret_bio, struct failure *failure)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    struct stat status;
    int code = fd < 0 || fstat(fd, &status) < 0 ? errno : S_ISDIR(status.st_mode) ? EISDIR : 0;
    if (code != 0)
        return failure_set(failure, -code, "cannot read the %s %s: %s (%s)", what, path, text_errno_meaning(code),
                           text_errno_name(code));
    FILE *file = fdopen(fd, "r");
    if (file == NULL)
        return no_memory(failure);
    (void)TAKE_FD(fd);
    *ret_bio = BIO_new_fp(file, BIO_CLOSE);
    if (*ret_bio == NULL) {
        fclose(file);
        return no_memory(failure);
    }
    return 0;
}

/* Asked for the passphrase of an encrypted key. */
static int note_encryption(char *buffer, int size, int writing, void *asked)
{
    (void)buffer, (void)size, (void)writing;
    *(bool *)asked = true;
    return -1;
}

static int read_chain(struct tls_loaded *loaded, const char *path, struct failure *failure)
{
    BIO *bio;
    bool asked = false;
    int result = open_pem(path, "certificate", &bio, failure);
    if (result < 0)
        return result;
    loaded->certificate = PEM_read_bio_X509_AUX(bio, NULL, note_encryption, &asked);
    if (loaded->certificate == NULL) {
        BIO_free(bio);
        return failure_set(failure, -EINVAL,
                           "%s holds no certificate: %s. It has to be a PEM file, with -----BEGIN CERTIFICATE-----",
                           path, tls_reason());
    }
    loaded->chain = sk_X509_new_null();
    for (X509 *next; loaded->chain != NULL && (next = PEM_read_bio_X509(bio, NULL, note_encryption, &asked)) != NULL;)
        if (sk_X509_push(loaded->chain, next) == 0)
            X509_free(next);
    unsigned long error = ERR_peek_last_error();
    BIO_free(bio);
    if (loaded->chain == NULL)
        return no_memory(failure);
    if (ERR_GET_REASON(error) != PEM_R_NO_START_LINE) /* that is the file's end */
        return failure_set(failure, -EINVAL, "%s: certificate %d in it cannot be read: %s", path,
                           sk_X509_num(loaded->chain) + 2, tls_reason());
    ERR_clear_error();
    return 0;
}

static int read_key(struct tls_loaded *loaded, const char *path, struct failure *failure)
{
    BIO *bio;
    bool encrypted = false;
    int result = open_pem(path, "key", &bio, failure);
    if (result < 0)
        return result;
    loaded->key = PEM_read_bio_PrivateKey(bio, NULL, note_encryption, &encrypted);
    BIO_free(bio);
    if (loaded->key == NULL && encrypted) {
        ERR_clear_error();
        return failure_set(failure, -EINVAL,
                           "the key %s is encrypted, and sluice asks nobody for a passphrase; decrypt it: openssl pkey "
                           "-in %s -out FILE, with FILE readable by its owner alone",
                           path, path);
    }
    if (loaded->key == NULL)
        return failure_set(failure, -EINVAL,
                           "%s holds no private key: %s. It has to be a PEM file, with -----BEGIN PRIVATE KEY-----; a "
                           "key in a file of its own is named behind a comma: CERTIFICATE,KEYFILE",
                           path, tls_reason());
    for (size_t i = 0; i < KEY_KINDS; i++) {
        if (EVP_PKEY_get_base_id(loaded->key) == key_kinds[i].id) {
            loaded->kind = i;
            return 0;
        }
    }
    return failure_set(failure, -EINVAL,
                       "the key %s is of a kind that TLS does not use here (ECDSA, RSA, Ed25519, "
                       "Ed448)",
                       path);
}

static int check_pair(const struct tls_loaded *loaded, const char *key_path, struct failure *failure)
{
    bool fits = X509_check_private_key(loaded->certificate, loaded->key) == 1;
    ERR_clear_error();
    if (fits)
        return 0;
    for (int i = 0; i < sk_X509_num(loaded->chain); i++) {
        fits = X509_check_private_key(sk_X509_value(loaded->chain, i), loaded->key) == 1;
        ERR_clear_error();
        if (fits)
            return failure_set(failure, -EINVAL,
                               "%s: the server's own certificate has to come first; the key belongs to number %d",
                               loaded->path, i + 2);
    }
    return failure_set(failure, -EINVAL, "the key %s does not belong to the certificate %s: they are of two pairs",
                       key_path, loaded->path);
}

/* ---- Names ------------------------------------------------------------------------------------------------------ */

static bool add_name(struct tls_loaded *loaded, const char *text, size_t length)
{
    if (length == 0 || length > HOST_NAME_MAX_LENGTH || memchr(text, '\0', length) != NULL)
        return true;
    char **larger = realloc(loaded->names, (loaded->name_count + 1) * sizeof *larger);
    if (larger == NULL)
        return false;
    loaded->names = larger;
    char *name = strndup(text, length);
    if (name == NULL)
        return false;
    for (char *at = name; *at != '\0'; at++)
        if (*at >= 'A' && *at <= 'Z')
            *at = (char)(*at + ('a' - 'A'));
    if (name[length - 1] == '.')
        name[length - 1] = '\0';
    larger[loaded->name_count++] = name;
    return true;
}

/* Names of hosts alone: a client does not ask for an address (RFC 6066). The subject's common name counts only where
 * there are none. */
static int read_names(struct tls_loaded *loaded)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(loaded->certificate, NID_subject_alt_name, NULL, NULL);
    bool added = true;
    for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
        if (name->type == GEN_DNS)
            added = added && add_name(loaded, (const char *)ASN1_STRING_get0_data(name->d.dNSName),
                                      (size_t)ASN1_STRING_length(name->d.dNSName));
    }
    GENERAL_NAMES_free(names);
    const X509_NAME *subject = X509_get_subject_name(loaded->certificate);
    int at = names == NULL ? X509_NAME_get_index_by_NID(subject, NID_commonName, -1) : -1;
    if (at >= 0) {
        unsigned char *text = NULL;
        int length = ASN1_STRING_to_UTF8(&text, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)));
        if (length > 0)
            added = added && add_name(loaded, (const char *)text, (size_t)length);
        OPENSSL_free(text);
    }
    ERR_clear_error();
    return added ? 0 : -ENOMEM;
}

static int load(struct tls_loaded *loaded, const struct tls_certificate *given, struct failure *failure)
{
    const char *key = given->key != NULL ? given->key : given->certificate;
    loaded->path = strdup(given->certificate);
    if (loaded->path == NULL)
        return no_memory(failure);
    int result = read_chain(loaded, given->certificate, failure);
    if (result == 0)
        result = read_key(loaded, key, failure);
    if (result == 0)
        result = check_pair(loaded, key, failure);
    if (result == 0 && read_names(loaded) < 0)
        result = no_memory(failure);
    return result;
}

/* "*.example.org" for "www.example.org"; NULL: it has no two labels behind the first. */
static const char *behind_first_label(const char *name)
{
    const char *dot = strchr(name, '.');
    return dot != NULL && strchr(dot + 1, '.') != NULL ? dot : NULL;
}

static bool is_wildcard_for(const char *pattern, const char *name)
{
    const char *rest = behind_first_label(name);
    return rest != NULL && pattern[0] == '*' && strcmp(pattern + 1, rest) == 0;
}

static bool covers(const struct tls_loaded *loaded, const char *name, bool by_wildcard)
{
    for (size_t i = 0; i < loaded->name_count; i++)
        if (by_wildcard ? is_wildcard_for(loaded->names[i], name) : strcmp(loaded->names[i], name) == 0)
            return true;
    return false;
}

/* ---- Contexts of OpenSSL's -------------------------------------------------------------------------------------- */

static SSL_CTX *find_name(const struct tls_context *context, const char *name)
{
    size_t low = 0, high = context->name_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = strcmp(name, context->names[middle].text);
        if (order == 0)
            return context->names[middle].ssl;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

static int choose_by_name(SSL *ssl, int *alert, void *argument)
{
    const struct tls_context *context = argument;
    const char *asked = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
    char name[HOST_NAME_MAX_LENGTH + 1];
    size_t length = 0;
    (void)alert;
    for (; asked != NULL && asked[length] != '\0'; length++) {
        if (length == sizeof name - 1)
            return SSL_TLSEXT_ERR_NOACK;
        name[length] =
            asked[length] >= 'A' && asked[length] <= 'Z' ? (char)(asked[length] + ('a' - 'A')) : asked[length];
    }
    if (length > 0 && name[length - 1] == '.')
        length--;
    if (length == 0)
        return SSL_TLSEXT_ERR_NOACK;
    name[length] = '\0';
    SSL_CTX *found = find_name(context, name);
    const char *rest = behind_first_label(name);
    if (found == NULL && rest != NULL) {
        size_t label = (size_t)(rest - name);
        name[label - (label > 0)] = '*';
        found = label > 0 ? find_name(context, name + label - 1) : NULL;
    }
    if (found == NULL)
        return SSL_TLSEXT_ERR_NOACK; /* the first certificate then; the client says what it thinks of it */
    if (found != SSL_get_SSL_CTX(ssl))
        SSL_set_SSL_CTX(ssl, found);
    return SSL_TLSEXT_ERR_OK;
}

/* A client that names protocols, and HTTP/1.1 is not among them, would not understand what comes. */
static int choose_protocol(SSL *ssl, const unsigned char **ret_chosen, unsigned char *ret_length,
                           const unsigned char *offered, unsigned length, void *argument)
{
    static const unsigned char known[] = "\x08http/1.1";
    (void)ssl, (void)argument;
    unsigned char *chosen;
    if (SSL_select_next_proto(&chosen, ret_length, known, sizeof known - 1, offered, length) != OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    *ret_chosen = chosen;
    return SSL_TLSEXT_ERR_OK;
}

/* One list with the suites of TLS 1.3, which OpenSSL wants apart. */
static int set_ciphers(SSL_CTX *ssl, const char *list, struct failure *failure)
{
    size_t room = strlen(list) + 1, newer_length = 0, older_length = 0;
    char *copy = strdup(list), *newer = calloc(1, room), *older = calloc(1, room);
    int result = copy == NULL || newer == NULL || older == NULL ? no_memory(failure) : 0;
    char *rest = copy;
    for (char *name = result == 0 ? strsep(&rest, ":") : NULL; name != NULL; name = strsep(&rest, ":")) {
        bool new = strncmp(name, "TLS_", 4) == 0;
        char *to = new ? newer : older;
        size_t *length = new ? &newer_length : &older_length;
        *length += (size_t)snprintf(to + *length, room - *length, "%s%s", *length > 0 ? ":" : "", name);
    }
    if (result == 0 && SSL_CTX_set_ciphersuites(ssl, newer) != 1)
        result = failure_set(failure, -EINVAL,
                             "among the TLS 1.3 suites \"%.300s\" is one that OpenSSL does not know "
                             "(openssl ciphers -s -tls1_3 lists them)",
                             newer);
    /* It takes names that it does not know as long as it knows one. */
    if (result == 0 && older_length > 0 && SSL_CTX_set_cipher_list(ssl, older) != 1)
        result = failure_set(failure, -EINVAL,
                             "of the suites \"%.300s\" OpenSSL knows none (openssl ciphers lists "
                             "them)",
                             older);
    if (result == 0 && older_length == 0)
        result = SSL_CTX_set_min_proto_version(ssl, TLS1_3_VERSION) == 1 ? 0 : no_memory(failure);
    free(copy);
    free(newer);
    free(older);
    ERR_clear_error();
    return result;
}

static int set_policy(SSL_CTX *ssl, struct tls_context *context, const struct tls_options *options,
                      struct failure *failure)
{
    uint64_t flags = SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION;
    SSL_CTX_set_app_data(ssl, context);
    SSL_CTX_set_mode(ssl, SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_session_id_context(ssl, (const unsigned char *)"sluice", 6);
    SSL_CTX_set_tlsext_servername_callback(ssl, choose_by_name);
    SSL_CTX_set_tlsext_servername_arg(ssl, context);
    SSL_CTX_set_alpn_select_cb(ssl, choose_protocol, NULL);
    if (options->tickets == NULL) {
        flags |= SSL_OP_NO_TICKET;
        SSL_CTX_set_num_tickets(ssl, 0);
    } else {
        SSL_CTX_set_timeout(ssl, options->ticket_lifetime);
        SSL_CTX_set_tlsext_ticket_key_evp_cb(ssl, tls_tickets_key);
    }
#ifdef SSL_OP_ENABLE_KTLS
    if (context->kernel)
        flags |= SSL_OP_ENABLE_KTLS;
#endif
    SSL_CTX_set_options(ssl, flags);
    if (SSL_CTX_set_min_proto_version(ssl, options->min == TLS_1_3 ? TLS1_3_VERSION : TLS1_2_VERSION) != 1)
        return no_memory(failure);
    int result = set_ciphers(ssl, options->ciphers != NULL ? options->ciphers : tls_default_ciphers, failure);
    if (result < 0) {
        context->refusal.what = TLS_REFUSED_CIPHERS;
        return result;
    }
    const char *groups = options->groups != NULL ? options->groups : tls_default_groups;
    if (SSL_CTX_set1_groups_list(ssl, groups) != 1) {
        ERR_clear_error();
        context->refusal.what = TLS_REFUSED_GROUPS;
        return failure_set(failure, -EINVAL,
                           "in the groups \"%.300s\" is one that OpenSSL does not know, or twice the same; such as "
                           "X25519:P-256",
                           groups);
    }
    return 0;
}

static int use_certificate(SSL_CTX *ssl, const struct tls_loaded *loaded, struct failure *failure)
{
    ERR_clear_error();
    if (SSL_CTX_use_cert_and_key(ssl, loaded->certificate, loaded->key, loaded->chain, 1) == 1)
        return 0;
    int reason = ERR_GET_REASON(ERR_peek_last_error());
    bool small = reason == SSL_R_EE_KEY_TOO_SMALL || reason == SSL_R_CA_KEY_TOO_SMALL || reason == SSL_R_CA_MD_TOO_WEAK;
    return failure_set(failure, -EINVAL, "the certificate %s cannot be used: %s%s", loaded->path, tls_reason(),
                       small ? ". Clients would refuse it, too; have one made with a larger key, or a better digest"
                             : "");
}

/* The SSL_CTX of these certificates (one for each kind of key, or -1). */
static int show_together(struct tls_context *context, const struct tls_options *options, const int *certificates,
                         SSL_CTX **ret_ssl, struct failure *failure)
{
    for (size_t i = 0; i < context->shown_count; i++) {
        if (memcmp(context->shown[i].certificates, certificates, KEY_KINDS * sizeof *certificates) == 0) {
            *ret_ssl = context->shown[i].ssl;
            return 0;
        }
    }
    struct tls_shown *larger = realloc(context->shown, (context->shown_count + 1) * sizeof *larger);
    if (larger == NULL)
        return no_memory(failure);
    context->shown = larger;
    struct tls_shown *shown = &larger[context->shown_count];
    *shown = (struct tls_shown){.ssl = SSL_CTX_new(TLS_server_method()),
                                .certificates = malloc(KEY_KINDS * sizeof *certificates)};
    context->shown_count++;
    if (shown->ssl == NULL || shown->certificates == NULL)
        return no_memory(failure);
    memcpy(shown->certificates, certificates, KEY_KINDS * sizeof *certificates);
    int result = set_policy(shown->ssl, context, options, failure);
    for (size_t i = 0; i < KEY_KINDS && result == 0; i++) {
        if (certificates[i] < 0)
            continue;
        context->refusal.certificate = (size_t)certificates[i];
        result = use_certificate(shown->ssl, &context->certificates[certificates[i]], failure);
    }
    *ret_ssl = shown->ssl;
    return result;
}

/* The first certificate of each kind of key for this name. */
static void choose_for_name(const struct tls_context *context, const char *name, int *ret_certificates)
{
    for (int by_wildcard = 0; by_wildcard <= 1; by_wildcard++) {
        for (size_t i = 0; i < context->certificate_count; i++) {
            const struct tls_loaded *loaded = &context->certificates[i];
            if (ret_certificates[loaded->kind] < 0 && covers(loaded, name, by_wildcard))
                ret_certificates[loaded->kind] = (int)i;
        }
    }
}

static void no_certificates(int *certificates)
{
    for (size_t i = 0; i < KEY_KINDS; i++)
        certificates[i] = -1;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const struct tls_name *)a)->text, ((const struct tls_name *)b)->text);
}

static int index_names(struct tls_context *context, const struct tls_options *options, struct failure *failure)
{
    size_t count = 0;
    for (size_t i = 0; i < context->certificate_count; i++)
        count += context->certificates[i].name_count;
    context->names = calloc(count > 0 ? count : 1, sizeof *context->names);
    if (context->names == NULL)
        return no_memory(failure);
    for (size_t i = 0; i < context->certificate_count; i++)
        for (size_t n = 0; n < context->certificates[i].name_count; n++)
            context->names[context->name_count++].text = context->certificates[i].names[n];
    qsort(context->names, context->name_count, sizeof *context->names, compare_names);
    size_t kept = 0;
    for (size_t i = 0; i < context->name_count; i++)
        if (kept == 0 || strcmp(context->names[kept - 1].text, context->names[i].text) != 0)
            context->names[kept++] = context->names[i];
    context->name_count = kept;
    for (size_t i = 0; i < kept; i++) {
        int certificates[KEY_KINDS];
        no_certificates(certificates);
        choose_for_name(context, context->names[i].text, certificates);
        int result = show_together(context, options, certificates, &context->names[i].ssl, failure);
        if (result < 0)
            return result;
    }
    return 0;
}

static int choose_fallback(struct tls_context *context, const struct tls_options *options, struct failure *failure)
{
    const struct tls_loaded *first = &context->certificates[0];
    int certificates[KEY_KINDS];
    no_certificates(certificates);
    certificates[first->kind] = 0;
    if (first->name_count > 0)
        choose_for_name(context, first->names[0], certificates);
    return show_together(context, options, certificates, &context->fallback, failure);
}

int tls_context_new(const struct tls_options *options, struct tls_context **ret_context,
                    struct tls_refusal *ret_refusal, struct failure *failure)
{
    if (options->certificate_count == 0)
        return failure_set(failure, -EINVAL, "TLS needs a certificate");
    struct tls_context *context = calloc(1, sizeof *context);
    if (context == NULL)
        return no_memory(failure);
    context->tickets = options->tickets;
#ifdef SSL_OP_ENABLE_KTLS
    context->kernel = options->kernel;
#endif
    context->certificates = calloc(options->certificate_count, sizeof *context->certificates);
    int result = context->certificates != NULL ? 0 : no_memory(failure);
    for (size_t i = 0; i < options->certificate_count && result == 0; i++) {
        context->certificate_count = i + 1;
        context->refusal.certificate = i;
        result = load(&context->certificates[i], &options->certificates[i], failure);
    }
    if (result == 0)
        result = index_names(context, options, failure);
    if (result == 0)
        result = choose_fallback(context, options, failure);
    if (result == 0 && tls_session_prepare(context) < 0)
        result = no_memory(failure);
    ERR_clear_error();
    if (result < 0) {
        if (ret_refusal != NULL)
            *ret_refusal = context->refusal;
        tls_context_free(context);
        return result;
    }
    *ret_context = context;
    return 0;
}

void tls_context_free(struct tls_context *context)
{
    if (context == NULL)
        return;
    for (size_t i = 0; i < context->shown_count; i++) {
        SSL_CTX_free(context->shown[i].ssl);
        free(context->shown[i].certificates);
    }
    free(context->shown);
    for (size_t i = 0; i < context->certificate_count; i++) {
        struct tls_loaded *loaded = &context->certificates[i];
        X509_free(loaded->certificate);
        sk_X509_pop_free(loaded->chain, X509_free);
        EVP_PKEY_free(loaded->key);
        for (size_t n = 0; n < loaded->name_count; n++)
            free(loaded->names[n]);
        free(loaded->names);
        free(loaded->path);
    }
    free(context->certificates);
    free(context->names);
    free(context->plain);
    free(context->record);
    BIO_meth_free(context->method);
    free(context);
}

/* ---- In words --------------------------------------------------------------------------------------------------- */

static void format_time(const ASN1_TIME *when, char *text, size_t size)
{
    struct tm parts;
    if (ASN1_TIME_to_tm(when, &parts) != 1 || strftime(text, size, "%Y-%m-%d %H:%M UTC", &parts) == 0)
        snprintf(text, size, "an unknown time");
    ERR_clear_error();
}

/* Days from now; negative: it was. */
static int days_until(const ASN1_TIME *when)
{
    int days = 0, seconds = 0;
    if (ASN1_TIME_diff(&days, &seconds, NULL, when) != 1)
        return 0;
    return days < 0 || seconds < 0 ? days - 1 : days;
}

static const char *what_is_wrong(const struct tls_loaded *loaded, char *text, size_t size)
{
    char when[40];
    const ASN1_TIME *from = X509_get0_notBefore(loaded->certificate), *until = X509_get0_notAfter(loaded->certificate);
    int days = days_until(until);
    if (X509_cmp_current_time(from) > 0) {
        format_time(from, when, sizeof when);
        snprintf(text, size, "is not valid before %s: clients will refuse it; is this host's clock right?", when);
    } else if (days < 0) {
        format_time(until, when, sizeof when);
        snprintf(text, size, "expired on %s: clients will refuse it", when);
    } else if (days < WARN_DAYS) {
        format_time(until, when, sizeof when);
        snprintf(text, size, "expires on %s: have it renewed", when);
    } else {
        return NULL;
    }
    return text;
}

bool tls_context_covers(const struct tls_context *context, const char *name)
{
    for (size_t i = 0; i < context->certificate_count; i++)
        if (covers(&context->certificates[i], name, false) || covers(&context->certificates[i], name, true))
            return true;
    return false;
}

void tls_context_describe(const struct tls_context *context, bool warnings,
                          void (*say)(void *context, const char *line), void *say_context)
{
    for (size_t i = 0; i < context->certificate_count; i++) {
        const struct tls_loaded *loaded = &context->certificates[i];
        char line[900], wrong[200], names[400] = "no host by name", when[40];
        const char *what = what_is_wrong(loaded, wrong, sizeof wrong);
        if (warnings) {
            snprintf(line, sizeof line, "the certificate %s %s", loaded->path, what != NULL ? what : "");
            if (what != NULL)
                say(say_context, line);
            continue;
        }
        size_t length = 0;
        for (size_t n = 0; n < loaded->name_count && length < sizeof names; n++)
            length +=
                (size_t)snprintf(names + length, sizeof names - length, "%s%s", n > 0 ? ", " : "", loaded->names[n]);
        format_time(X509_get0_notAfter(loaded->certificate), when, sizeof when);
        snprintf(line, sizeof line, "certificate %s: for %s; %s, %d bits; until %s", loaded->path, names,
                 key_kinds[loaded->kind].name, EVP_PKEY_get_bits(loaded->key), when);
        say(say_context, line);
    }
}
