/* SPDX-License-Identifier: MIT
 *
 * A table is a hash table with linear probing. An entry that leaves is replaced by what follows it (Knuth's algorithm
 * R), so that every search ends at the first free entry and nothing piles up. The copy is written before its original
 * is removed: a worker that reads meanwhile may miss the entry or find it twice-told, never another address's.
 */
#include "service/clients.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/random.h>

struct entry {
    struct client_key key;
    uint32_t connections; /* 0: free */
    uint32_t doing[CLIENT_DOINGS];
};

struct table {
    uint64_t seed[2]; /* the same in all tables, and nobody outside knows it: addresses cannot be chosen to collide */
    uint32_t mask, used;
    struct entry entries[];
};

static struct table *table_of(const struct shared *tables, unsigned slot)
{
    return shared_slot(tables, slot);
}

bool client_key_of(const struct sockaddr *address, struct client_key *ret_key)
{
    const struct sockaddr_in6 *v6 = (const void *)address;
    if (address->sa_family == AF_INET) {
        *ret_key = (struct client_key){0, ((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr};
        return true;
    }
    if (address->sa_family != AF_INET6)
        return false;
    const struct in6_addr *bytes = &v6->sin6_addr;
    struct client_key key = {0, 0};
    if (IN6_IS_ADDR_V4MAPPED(bytes))
        key.low = bytes->s6_addr32[3];
    else
        memcpy(&key.high, bytes->s6_addr, sizeof key.high);
    /* ::/64 would be no IPv4 address otherwise: ::1 is in it. */
    if (key.high == 0 && key.low == 0)
        key.low = UINT64_MAX;
    *ret_key = key;
    return true;
}

int clients_create(unsigned workers, uint64_t connections_each, struct shared *ret_tables)
{
    const uint32_t largest = CLIENTS_MAX / 3 * 4;
    uint32_t size = 1024;
    while (size < largest && size / 2 < connections_each)
        size *= 2;
    struct shared tables;
    uint64_t seed[2];
    int r = shared_create(workers, sizeof(struct table) + size * sizeof(struct entry), &tables);
    if (r < 0)
        return r;
    if (getrandom(seed, sizeof seed, 0) != sizeof seed) {
        shared_destroy(&tables);
        return -EIO;
    }
    for (unsigned i = 0; i < workers; i++) {
        struct table *table = table_of(&tables, i);
        table->mask = size - 1;
        memcpy(table->seed, seed, sizeof seed);
    }
    *ret_tables = tables;
    return 0;
}

void clients_forget(const struct shared *tables, unsigned slot)
{
    struct table *table = table_of(tables, slot);
    memset(table->entries, 0, ((size_t)table->mask + 1) * sizeof table->entries[0]);
    table->used = 0;
}

static uint32_t home_of(const struct table *table, struct client_key key)
{
    uint64_t hash = (key.high ^ table->seed[0]) * UINT64_C(0xff51afd7ed558ccd);
    hash ^= hash >> 32;
    hash = (hash ^ key.low ^ table->seed[1]) * UINT64_C(0xc4ceb9fe1a85ec53);
    return (uint32_t)(hash >> 32) & table->mask;
}

#define READ(field) __atomic_load_n(&(field), __ATOMIC_RELAXED)
#define WRITE(field, value) __atomic_store_n(&(field), value, __ATOMIC_RELAXED)

/* The entry of this key, or the free one where the search ended; NULL: neither, in another worker's table while that is
 * changing. */
static struct entry *search(struct table *table, struct client_key key)
{
    uint32_t at = home_of(table, key);
    for (uint32_t steps = 0; steps <= table->mask; steps++, at = (at + 1) & table->mask) {
        struct entry *entry = &table->entries[at];
        if (READ(entry->connections) == 0 || (READ(entry->key.high) == key.high && READ(entry->key.low) == key.low))
            return entry;
    }
    return NULL;
}

bool clients_enter(const struct clients *clients, struct client_key key)
{
    struct table *table = table_of(clients->tables, clients->slot);
    struct entry *entry = search(table, key);
    if (entry->connections == 0) {
        if (table->used >= (table->mask + 1) / 4 * 3)
            return false;
        table->used++;
        WRITE(entry->key.high, key.high);
        WRITE(entry->key.low, key.low);
        for (unsigned i = 0; i < CLIENT_DOINGS; i++)
            WRITE(entry->doing[i], 0);
    }
    WRITE(entry->connections, entry->connections + 1);
    return true;
}

static void copy_entry(struct entry *to, const struct entry *from)
{
    WRITE(to->key.high, from->key.high);
    WRITE(to->key.low, from->key.low);
    for (unsigned i = 0; i < CLIENT_DOINGS; i++)
        WRITE(to->doing[i], from->doing[i]);
    WRITE(to->connections, from->connections);
}

void clients_leave(const struct clients *clients, struct client_key key)
{
    struct table *table = table_of(clients->tables, clients->slot);
    struct entry *entry = search(table, key);
    if (entry->connections > 1) {
        WRITE(entry->connections, entry->connections - 1);
        return;
    }
    uint32_t hole = (uint32_t)(entry - table->entries), at = hole;
    for (;;) {
        at = (at + 1) & table->mask;
        if (table->entries[at].connections == 0)
            break;
        /* What is at home behind the hole, up to where it is, has to stay. */
        uint32_t home = home_of(table, table->entries[at].key);
        if (((at - home) & table->mask) < ((at - hole) & table->mask))
            continue;
        copy_entry(&table->entries[hole], &table->entries[at]);
        hole = at;
    }
    WRITE(table->entries[hole].connections, 0);
    table->used--;
}

static void change(const struct clients *clients, struct client_key key, enum client_doing doing, uint32_t by)
{
    struct entry *entry = search(table_of(clients->tables, clients->slot), key);
    WRITE(entry->doing[doing], entry->doing[doing] + by);
}

void clients_begin(const struct clients *clients, struct client_key key, enum client_doing doing)
{
    change(clients, key, doing, 1);
}

void clients_end(const struct clients *clients, struct client_key key, enum client_doing doing)
{
    change(clients, key, doing, UINT32_MAX); /* one less */
}

struct client_counts clients_count(const struct clients *clients, struct client_key key)
{
    struct client_counts sum = {0};
    for (unsigned i = 0; i < clients->tables->count; i++) {
        const struct entry *entry = search(table_of(clients->tables, i), key);
        if (entry == NULL)
            continue;
        unsigned connections = READ(entry->connections);
        sum.connections += connections;
        for (unsigned doing = 0; doing < CLIENT_DOINGS && connections > 0; doing++)
            sum.doing[doing] += READ(entry->doing[doing]);
    }
    return sum;
}
