/* SPDX-License-Identifier: MIT
 *
 * An authority for one user of one host, so that HTTPS can be tried out without anybody's help. It may sign for names
 * of this host only (name constraints): whoever gets hold of its key cannot pass for other hosts.
 */
#include "service/tls_inside.h"

#include "base/cleanup.h"
#include "base/text.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define AUTHORITY_DAYS 3650
#define CERTIFICATE_DAYS 90
#define RENEW_DAYS 30 /* before the end */
#define DAY 86400L

/* For subjectAltName and nameConstraints, in OpenSSL's notation: "DNS:localhost,IP:127.0.0.1". */
struct host_names {
    char hosts[4][256]; /* the first host_count of them */
    unsigned host_count;
    char addresses[24][INET6_ADDRSTRLEN];
    unsigned address_count;
};

struct pair {
    X509 *certificate;
    EVP_PKEY *key;
};

static void drop(struct pair *pair)
{
    X509_free(pair->certificate);
    EVP_PKEY_free(pair->key);
    *pair = (struct pair){.certificate = NULL};
}

/* ---- What this host is called ----------------------------------------------------------------------------------- */

static void add_address(struct host_names *names, int family, const void *address)
{
    char text[INET6_ADDRSTRLEN];
    if (names->address_count == sizeof names->addresses / sizeof names->addresses[0] ||
        inet_ntop(family, address, text, sizeof text) == NULL)
        return;
    for (unsigned i = 0; i < names->address_count; i++)
        if (strcmp(names->addresses[i], text) == 0)
            return;
    memcpy(names->addresses[names->address_count++], text, sizeof text);
}

static void find_names(struct host_names *names)
{
    struct ifaddrs *interfaces = NULL;
    *names = (struct host_names){
        .host_count = 1, .hosts = {"localhost"}, .address_count = 2, .addresses = {"127.0.0.1", "::1"}};
    char host[256];
    if (gethostname(host, sizeof host) == 0 && memchr(host, '\0', sizeof host) != NULL && host[0] != '\0' &&
        strcmp(host, "localhost") != 0 &&
        strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                     "0123456789-.") == strlen(host)) {
        memcpy(names->hosts[names->host_count++], host, sizeof host);
        if (strchr(host, '.') == NULL) /* as multicast DNS knows it */
            snprintf(names->hosts[names->host_count++], sizeof names->hosts[0], "%.200s.local", host);
    }
    if (getifaddrs(&interfaces) < 0)
        return;
    for (const struct ifaddrs *at = interfaces; at != NULL; at = at->ifa_next) {
        if (at->ifa_addr == NULL || (at->ifa_flags & IFF_UP) == 0)
            continue;
        if (at->ifa_addr->sa_family == AF_INET) {
            add_address(names, AF_INET, &((const struct sockaddr_in *)(const void *)at->ifa_addr)->sin_addr);
        } else if (at->ifa_addr->sa_family == AF_INET6) {
            const struct in6_addr *address = &((const struct sockaddr_in6 *)(const void *)at->ifa_addr)->sin6_addr;
            if (!IN6_IS_ADDR_LINKLOCAL(address)) /* nobody could write it in a URL */
                add_address(names, AF_INET6, address);
        }
    }
    freeifaddrs(interfaces);
}

static bool names_all(X509 *certificate, const struct host_names *names)
{
    bool all = true;
    for (unsigned i = 0; i < names->host_count; i++)
        all = all && X509_check_host(certificate, names->hosts[i], 0, 0, NULL) == 1;
    for (unsigned i = 0; i < names->address_count; i++)
        all = all && X509_check_ip_asc(certificate, names->addresses[i], 0) == 1;
    ERR_clear_error();
    return all;
}

/* ---- Making ------------------------------------------------------------------------------------------------------ */

static bool add_extension(X509 *certificate, X509 *issuer, int kind, const char *value)
{
    X509V3_CTX context;
    X509V3_set_ctx(&context, issuer, certificate, NULL, NULL, 0);
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &context, kind, value);
    bool added = extension != NULL && X509_add_ext(certificate, extension, -1) == 1;
    X509_EXTENSION_free(extension);
    return added;
}

static bool set_serial(X509 *certificate)
{
    unsigned char bytes[16];
    if (RAND_bytes(bytes, sizeof bytes) != 1)
        return false;
    bytes[0] = (unsigned char)((bytes[0] & 0x7f) | 0x40); /* positive, and of one length */
    BIGNUM *number = BN_bin2bn(bytes, sizeof bytes, NULL);
    bool set = number != NULL && BN_to_ASN1_INTEGER(number, X509_get_serialNumber(certificate)) != NULL;
    BN_free(number);
    return set;
}

static bool set_subject(X509_NAME *name, const char *common)
{
    return X509_NAME_add_entry_by_txt(name, "O", MBSTRING_UTF8, (const unsigned char *)"sluice, for trying out", -1, -1,
                                      0) == 1 &&
           X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8, (const unsigned char *)common, -1, -1, 0) == 1;
}

struct text {
    char data[4096];
    size_t length;
};

__attribute__((format(printf, 2, 3))) static void append(struct text *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (text->length < sizeof text->data)
        text->length +=
            (size_t)vsnprintf(text->data + text->length, sizeof text->data - text->length, format, arguments);
    va_end(arguments);
}

static bool add_extensions(X509 *certificate, X509 *issuer, const struct host_names *names)
{
    struct text text = {.length = 0};
    bool authority = certificate == issuer;
    if (authority) {
        append(&text, "critical,permitted;DNS:local");
        for (unsigned i = 0; i < names->host_count; i++)
            append(&text, ",permitted;DNS:%s", names->hosts[i]);
        append(&text, ",permitted;IP:0.0.0.0/0.0.0.0,permitted;IP:::/::");
        return add_extension(certificate, issuer, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
               add_extension(certificate, issuer, NID_key_usage, "critical,keyCertSign,cRLSign") &&
               add_extension(certificate, issuer, NID_subject_key_identifier, "hash") &&
               add_extension(certificate, issuer, NID_name_constraints, text.data);
    }
    for (unsigned i = 0; i < names->host_count; i++)
        append(&text, "%sDNS:%s", i > 0 ? "," : "", names->hosts[i]);
    for (unsigned i = 0; i < names->address_count; i++)
        append(&text, ",IP:%s", names->addresses[i]);
    return add_extension(certificate, issuer, NID_basic_constraints, "critical,CA:FALSE") &&
           add_extension(certificate, issuer, NID_key_usage, "critical,digitalSignature") &&
           add_extension(certificate, issuer, NID_ext_key_usage, "serverAuth") &&
           add_extension(certificate, issuer, NID_authority_key_identifier, "keyid") &&
           add_extension(certificate, issuer, NID_subject_alt_name, text.data);
}

/* By the authority; NULL: it is to be one itself. */
static bool make(struct pair *made, const struct pair *authority, const struct host_names *names)
{
    char common[300];
    const struct pair *issuer = authority != NULL ? authority : made;
    if (authority != NULL)
        snprintf(common, sizeof common, "localhost");
    else
        snprintf(common, sizeof common, "%.60s", names->hosts[names->host_count > 1 ? 1 : 0]); /* at most 64 */
    made->key = EVP_EC_gen("P-256");
    made->certificate = X509_new();
    X509 *certificate = made->certificate;
    return made->key != NULL && certificate != NULL && X509_set_version(certificate, X509_VERSION_3) == 1 &&
           set_serial(certificate) && X509_gmtime_adj(X509_getm_notBefore(certificate), -DAY) != NULL &&
           X509_gmtime_adj(X509_getm_notAfter(certificate),
                           (authority != NULL ? CERTIFICATE_DAYS : AUTHORITY_DAYS) * DAY) != NULL &&
           set_subject(X509_get_subject_name(certificate), common) &&
           X509_set_issuer_name(certificate, X509_get_subject_name(issuer->certificate)) == 1 &&
           X509_set_pubkey(certificate, made->key) == 1 && add_extensions(certificate, issuer->certificate, names) &&
           X509_sign(certificate, issuer->key, EVP_sha256()) > 0;
}

/* ---- Judging ----------------------------------------------------------------------------------------------------- */

static bool lasts(X509 *certificate, int days)
{
    time_t then = time(NULL) + days * DAY;
    return X509_cmp_time(X509_get0_notAfter(certificate), &then) > 0;
}

/* Would a client that trusts the authority accept the certificate? */
static bool is_accepted(const struct pair *pair, const struct pair *authority)
{
    X509_STORE *store = X509_STORE_new();
    X509_STORE_CTX *check = X509_STORE_CTX_new();
    bool accepted = store != NULL && check != NULL && X509_STORE_add_cert(store, authority->certificate) == 1 &&
                    X509_STORE_CTX_init(check, store, pair->certificate, NULL) == 1 &&
                    X509_STORE_CTX_set_purpose(check, X509_PURPOSE_SSL_SERVER) == 1 && X509_verify_cert(check) == 1;
    X509_STORE_CTX_free(check);
    X509_STORE_free(store);
    ERR_clear_error();
    return accepted;
}

/* ---- Files ------------------------------------------------------------------------------------------------------- */

static FILE *open_at(int directory, const char *name)
{
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    FILE *file = fd >= 0 ? fdopen(fd, "r") : NULL;
    if (file == NULL)
        close_fd(fd);
    return file;
}

/* What is not there, or is damaged, is made anew. */
static bool read_pair(int directory, const char *certificate, const char *key, struct pair *pair)
{
    FILE *certificate_file = open_at(directory, certificate), *key_file = open_at(directory, key);
    if (certificate_file != NULL && key_file != NULL) {
        pair->certificate = PEM_read_X509(certificate_file, NULL, NULL, NULL);
        pair->key = PEM_read_PrivateKey(key_file, NULL, NULL, NULL);
    }
    if (certificate_file != NULL)
        fclose(certificate_file);
    if (key_file != NULL)
        fclose(key_file);
    bool whole =
        pair->certificate != NULL && pair->key != NULL && X509_check_private_key(pair->certificate, pair->key) == 1;
    ERR_clear_error();
    if (!whole)
        drop(pair);
    return whole;
}

/* By way of another name, so that a file is never there by half. */
static int write_file(int directory, const char *name, mode_t mode, const struct pair *pair)
{
    char new_name[64];
    snprintf(new_name, sizeof new_name, "%s.new", name);
    unlinkat(directory, new_name, 0);
    CLEANUP_FD int fd = openat(directory, new_name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd < 0)
        return -errno;
    if (fchmod(fd, mode) < 0) /* whatever the umask is */
        return -errno;
    FILE *file = fdopen(fd, "w");
    if (file == NULL)
        return -errno;
    (void)TAKE_FD(fd);
    bool written = mode == 0600 ? PEM_write_PrivateKey(file, pair->key, NULL, NULL, 0, NULL, NULL) == 1
                                : PEM_write_X509(file, pair->certificate) == 1;
    int code = errno;
    if (fclose(file) != 0 || !written)
        return code != 0 ? -code : -EIO;
    return renameat(directory, new_name, directory, name) < 0 ? -errno : 0;
}

static int write_pair(int directory, const char *certificate, const char *key, const struct pair *pair)
{
    int result = write_file(directory, key, 0600, pair);
    return result < 0 ? result : write_file(directory, certificate, 0644, pair);
}

/* The user's, with all that leads to it. */
static int open_directory(char *path, size_t size, int *ret_directory, struct failure *failure)
{
    const char *base = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    int length;
    if (base != NULL && base[0] == '/')
        length = snprintf(path, size, "%s/sluice/tls", base);
    else if (home != NULL && home[0] == '/')
        length = snprintf(path, size, "%s/.config/sluice/tls", home);
    else
        return failure_set(failure, -ENOENT,
                           "where to keep a certificate for trying out is not known: set HOME or XDG_CONFIG_HOME");
    if ((size_t)length >= size)
        return failure_set(failure, -ENAMETOOLONG, "the path of the user's configuration directory is too long");
    for (char *at = strchr(path + 1, '/');; at = strchr(at + 1, '/')) {
        if (at != NULL)
            *at = '\0';
        int made = mkdir(path, 0700);
        int code = errno;
        if (made < 0 && code != EEXIST)
            return failure_set(failure, -code, "cannot make %s for a certificate for trying out: %s (%s)", path,
                               text_errno_meaning(code), text_errno_name(code));
        if (at == NULL)
            break;
        *at = '/';
    }
    struct stat status;
    CLEANUP_FD int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0 || fstat(directory, &status) < 0)
        return failure_set(failure, -errno, "cannot read %s: %s (%s)", path, text_errno_meaning(errno),
                           text_errno_name(errno));
    if (status.st_uid != geteuid() || (status.st_mode & 022) != 0)
        return failure_set(failure, -EPERM,
                           "%s is another user's, or others may write there: set XDG_CONFIG_HOME, or remove it", path);
    while (flock(directory, LOCK_EX) < 0) /* another sluice may be about to do the same */
        if (errno != EINTR)
            return failure_set(failure, -errno, "cannot lock %s: %s", path, text_errno_meaning(errno));
    *ret_directory = TAKE_FD(directory);
    return 0;
}

/* ---- All of it --------------------------------------------------------------------------------------------------- */

#define AUTHORITY "authority.pem"
#define AUTHORITY_KEY "authority-key.pem"
#define CERTIFICATE "certificate.pem"
#define CERTIFICATE_KEY "certificate-key.pem"

static int cannot(const char *what, const char *path, int code, struct failure *failure)
{
    const char *reason = code == -EPROTO ? tls_reason() : text_errno_meaning(code);
    return failure_set(failure, code, "cannot %s %s: %s", what, path, reason);
}

/* A certificate by the authority, which is made anew if it cannot vouch for these names. */
static int make_certificate(int directory, const char *path, struct pair *authority, struct pair *pair,
                            const struct host_names *names, bool *ret_made, struct failure *failure)
{
    drop(pair);
    if (authority->key != NULL && !make(pair, authority, names))
        return cannot("make the certificate in", path, -EPROTO, failure);
    if (authority->key == NULL || !is_accepted(pair, authority)) {
        drop(pair);
        drop(authority);
        if (!make(authority, NULL, names) || !make(pair, authority, names) || !is_accepted(pair, authority))
            return cannot("make the authority in", path, -EPROTO, failure);
        int result = write_pair(directory, AUTHORITY, AUTHORITY_KEY, authority);
        if (result < 0)
            return cannot("write the authority to", path, result, failure);
        *ret_made = true;
    }
    int result = write_pair(directory, CERTIFICATE, CERTIFICATE_KEY, pair);
    return result < 0 ? cannot("write the certificate to", path, result, failure) : 0;
}

int tls_development_prepare(struct tls_development *ret_development, struct failure *failure)
{
    struct tls_development development = {.made = false};
    struct host_names names;
    struct pair authority = {.key = NULL}, pair = {.key = NULL};
    char path[sizeof development.authority - sizeof CERTIFICATE_KEY];
    int directory = -1;
    int result = open_directory(path, sizeof path, &directory, failure);
    if (result < 0)
        return result;
    find_names(&names);
    if (read_pair(directory, AUTHORITY, AUTHORITY_KEY, &authority) &&
        !lasts(authority.certificate, CERTIFICATE_DAYS + RENEW_DAYS))
        drop(&authority);
    bool good = authority.key != NULL && read_pair(directory, CERTIFICATE, CERTIFICATE_KEY, &pair) &&
                lasts(pair.certificate, RENEW_DAYS) && names_all(pair.certificate, &names) &&
                is_accepted(&pair, &authority);
    if (!good)
        result = make_certificate(directory, path, &authority, &pair, &names, &development.made, failure);
    drop(&pair);
    drop(&authority);
    close_fd(directory);
    if (result < 0)
        return result;
    snprintf(development.authority, sizeof development.authority, "%s/" AUTHORITY, path);
    snprintf(development.certificate, sizeof development.certificate, "%s/" CERTIFICATE, path);
    snprintf(development.key, sizeof development.key, "%s/" CERTIFICATE_KEY, path);
    *ret_development = development;
    return 0;
}
