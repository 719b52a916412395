/* SPDX-License-Identifier: MIT
 *
 * The keys lie in memory that all processes share, so whoever first finds that it is time makes a new one, at random,
 * and what was sealed by a key that is gone can be opened by nobody: neither by us nor by somebody who takes the keys
 * later. A process that dies with the lock leaves whole keys: one is written before it counts.
 */
#include "base/clock.h"
#include "service/tls_inside.h"

#include "base/checked.h"
#include "base/text.h"
#include <errno.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define KEYS 2

struct key {
    unsigned char name[16], cipher[32], mac[32];
};

struct tls_tickets {
    pthread_mutex_t lock;
    unsigned lifetime;
    uint64_t next;    /* when the current key is to be replaced */
    unsigned current; /* of keys */
    bool known[KEYS];
    struct key keys[KEYS];
};

/* Seconds that go on while the machine sleeps, and are not set. */
static uint64_t now_seconds(void)
{
    return clock_ms(CLOCK_BOOTTIME) / 1000;
}

int tls_tickets_new(unsigned lifetime, struct tls_tickets **ret_tickets, struct failure *failure)
{
    pthread_mutexattr_t shared;
    struct tls_tickets *tickets =
        mmap(NULL, sizeof *tickets, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (tickets == MAP_FAILED)
        return failure_set(failure, -errno, "memory for the keys of session tickets: %s", text_errno_meaning(errno));
    madvise(tickets, sizeof *tickets, MADV_DONTDUMP);
    pthread_mutexattr_init(&shared);
    pthread_mutexattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&shared, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&tickets->lock, &shared);
    pthread_mutexattr_destroy(&shared);
    tickets->lifetime = lifetime;
    *ret_tickets = tickets;
    return 0;
}

void tls_tickets_free(struct tls_tickets *tickets)
{
    if (tickets == NULL)
        return;
    OPENSSL_cleanse(tickets->keys, sizeof tickets->keys);
    munmap(tickets, sizeof *tickets);
}

static void forget(struct tls_tickets *tickets, unsigned which)
{
    tickets->known[which] = false;
    OPENSSL_cleanse(&tickets->keys[which], sizeof tickets->keys[which]);
}

static void lock(struct tls_tickets *tickets)
{
    if (pthread_mutex_lock(&tickets->lock) == EOWNERDEAD)
        pthread_mutex_consistent(&tickets->lock);
}

void tls_tickets_change(struct tls_tickets *tickets, unsigned lifetime)
{
    lock(tickets);
    tickets->lifetime = lifetime;
    tickets->next = min_u64(tickets->next, now_seconds() + lifetime);
    pthread_mutex_unlock(&tickets->lock);
}

/* Under the lock. A key is current for one lifetime, and kept for another. */
static bool renew(struct tls_tickets *tickets)
{
    uint64_t now = now_seconds();
    unsigned other = (tickets->current + 1) % KEYS;
    if (tickets->known[tickets->current] && now < tickets->next)
        return true;
    forget(tickets, other);
    if (now >= tickets->next + tickets->lifetime) /* nobody has asked for long */
        forget(tickets, tickets->current);
    if (RAND_bytes((unsigned char *)&tickets->keys[other], sizeof tickets->keys[other]) != 1)
        return false;
    tickets->known[other] = true;
    tickets->current = other;
    tickets->next = now + tickets->lifetime;
    return true;
}

/* Returns 1: the current one; 2: one that opens but shall not be used again; 0: there is none. */
static int take_key(struct tls_tickets *tickets, bool seal, const unsigned char *name, struct key *ret_key)
{
    int found = 0;
    lock(tickets);
    if (renew(tickets)) {
        for (unsigned i = 0; i < KEYS && found == 0; i++) {
            unsigned which = (tickets->current + i) % KEYS;
            if (!tickets->known[which] || (seal && i > 0) ||
                (!seal && CRYPTO_memcmp(tickets->keys[which].name, name, sizeof ret_key->name) != 0))
                continue;
            *ret_key = tickets->keys[which];
            found = i == 0 ? 1 : 2;
        }
    }
    pthread_mutex_unlock(&tickets->lock);
    return found;
}

int tls_tickets_key(SSL *ssl, unsigned char *name, unsigned char *iv, EVP_CIPHER_CTX *cipher, EVP_MAC_CTX *mac,
                    int seal)
{
    const struct tls_context *context = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
    struct key key;
    int found = take_key(context->tickets, seal, name, &key);
    if (found == 0)
        return seal ? -1 : 0;
    OSSL_PARAM parameters[] = {
        OSSL_PARAM_construct_octet_string(OSSL_MAC_PARAM_KEY, key.mac, sizeof key.mac),
        OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *)"SHA256", 0),
        OSSL_PARAM_construct_end(),
    };
    bool set;
    if (seal) {
        memcpy(name, key.name, sizeof key.name);
        set = RAND_bytes(iv, EVP_CIPHER_get_iv_length(EVP_aes_256_cbc())) == 1 &&
              EVP_EncryptInit_ex(cipher, EVP_aes_256_cbc(), NULL, key.cipher, iv) == 1;
    } else {
        set = EVP_DecryptInit_ex(cipher, EVP_aes_256_cbc(), NULL, key.cipher, iv) == 1;
    }
    set = set && EVP_MAC_CTX_set_params(mac, parameters) == 1;
    OPENSSL_cleanse(&key, sizeof key);
    return set ? found : -1;
}
