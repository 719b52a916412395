/* SPDX-License-Identifier: MIT */
#include "service/clients.h"
#include "check.h"

#include <arpa/inet.h>
#include <netinet/in.h>

static struct shared tables;

static struct clients worker(unsigned slot)
{
    return (struct clients){&tables, slot};
}

static struct client_key key_of(const char *text)
{
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct client_key key = {0, 0};
    bool counts = inet_pton(AF_INET, text, &v4.sin_addr) == 1
                      ? client_key_of((struct sockaddr *)&v4, &key)
                      : inet_pton(AF_INET6, text, &v6.sin6_addr) == 1 && client_key_of((struct sockaddr *)&v6, &key);
    CHECK(counts);
    return key;
}

static bool same(const char *a, const char *b)
{
    struct client_key left = key_of(a), right = key_of(b);
    return left.high == right.high && left.low == right.low;
}

static unsigned connections(struct client_key key)
{
    const struct clients any = worker(0);
    return clients_count(&any, key).connections;
}

TEST("IPv4 counts by address, within IPv6 too, and IPv6 by /64")
{
    CHECK(same("192.0.2.1", "::ffff:192.0.2.1"));
    CHECK(!same("192.0.2.1", "192.0.2.2"));
    CHECK(same("2001:db8:1:2::1", "2001:db8:1:2:ffff::9"));
    CHECK(!same("2001:db8:1:2::1", "2001:db8:1:3::1"));
    CHECK(!same("::1", "0.0.0.0"));
    CHECK(!same("::1", "2001:db8::1"));
    struct client_key key;
    CHECK(!client_key_of(&(struct sockaddr){.sa_family = AF_UNIX}, &key));
}

TEST("connections of all workers add up, and those of one that ended are forgotten")
{
    CHECK_EQ(clients_create(3, 100, &tables), 0);
    struct client_key key = key_of("192.0.2.1"), other = key_of("2001:db8::1");
    for (unsigned slot = 0; slot < 3; slot++) {
        const struct clients clients = worker(slot);
        for (unsigned i = 0; i <= slot; i++)
            CHECK(clients_enter(&clients, key));
        CHECK(clients_enter(&clients, other));
        clients_begin(&clients, key, CLIENT_SENDING);
    }
    const struct clients second = worker(1);
    CHECK_EQ(clients_count(&second, key).connections, 6);
    CHECK_EQ(clients_count(&second, key).doing[CLIENT_SENDING], 3);
    CHECK_EQ(connections(other), 3);
    clients_begin(&second, key, CLIENT_REFUSED);
    CHECK_EQ(clients_count(&second, key).doing[CLIENT_REFUSED], 1);
    CHECK_EQ(clients_count(&second, key).doing[CLIENT_SENDING], 3);
    CHECK_EQ(clients_count(&second, other).doing[CLIENT_REFUSED], 0);
    clients_end(&second, key, CLIENT_REFUSED);
    clients_end(&second, key, CLIENT_SENDING);
    clients_leave(&second, key);
    CHECK_EQ(clients_count(&second, key).doing[CLIENT_REFUSED], 0);
    CHECK_EQ(clients_count(&second, key).connections, 5);
    CHECK_EQ(clients_count(&second, key).doing[CLIENT_SENDING], 2);
    clients_forget(&tables, 2);
    CHECK_EQ(connections(key), 2);
    CHECK_EQ(clients_count(&second, key).doing[CLIENT_SENDING], 1);
    CHECK_EQ(connections(other), 2);
    const struct clients third = worker(2); /* its successor */
    CHECK(clients_enter(&third, key));
    CHECK_EQ(connections(key), 3);
    CHECK_EQ(connections(key_of("192.0.2.2")), 0);
    shared_destroy(&tables);
}

static struct client_key numbered(unsigned number)
{
    char text[32];
    snprintf(text, sizeof text, "10.%u.%u.%u", number >> 16, number >> 8 & 255, number & 255);
    return key_of(text);
}

TEST("a table takes so many addresses and no more, and has room again when they leave")
{
    CHECK_EQ(clients_create(1, UINT64_MAX, &tables), 0);
    const struct clients clients = worker(0);
    for (int round = 0; round < 2; round++) {
        for (unsigned i = 0; i < CLIENTS_MAX; i++)
            CHECK(clients_enter(&clients, numbered(i)));
        CHECK(!clients_enter(&clients, numbered(CLIENTS_MAX)));
        CHECK(clients_enter(&clients, numbered(7))); /* it is there */
        clients_leave(&clients, numbered(7));
        for (unsigned i = 0; i < CLIENTS_MAX; i++)
            clients_leave(&clients, numbered(i));
        CHECK_EQ(connections(numbered(7)), 0);
    }
    shared_destroy(&tables);
}

TEST("whatever comes and goes, every address has as many as came and did not go")
{
    enum { ADDRESSES = 700 };
    unsigned counts[ADDRESSES] = {0}, sending[ADDRESSES] = {0};
    uint32_t random = 4711;
    CHECK_EQ(clients_create(1, 1, &tables), 0); /* the smallest: 768 of 1024 entries */
    const struct clients clients = worker(0);
    for (unsigned step = 0; step < 100000; step++) {
        random = random * 1664525 + 1013904223;
        unsigned i = (random >> 8) % ADDRESSES;
        struct client_key key = numbered(i);
        switch (random >> 29) {
        case 0 ... 2:
            CHECK(clients_enter(&clients, key));
            counts[i]++;
            break;
        case 3 ... 6:
            if (counts[i] > sending[i]) {
                clients_leave(&clients, key);
                counts[i]--;
            } else if (sending[i] > 0) {
                clients_end(&clients, key, CLIENT_SENDING);
                sending[i]--;
            }
            break;
        default:
            if (counts[i] > sending[i]) {
                clients_begin(&clients, key, CLIENT_SENDING);
                sending[i]++;
            }
        }
        if (step % 997 == 0)
            for (unsigned k = 0; k < ADDRESSES; k++) {
                struct client_counts found = clients_count(&clients, numbered(k));
                if (found.connections != counts[k] || found.doing[CLIENT_SENDING] != sending[k])
                    CHECK_FAIL("after %u steps, address %u: %u (not %u), %u sending (not %u)", step, k,
                               found.connections, counts[k], found.doing[CLIENT_SENDING], sending[k]);
            }
    }
    shared_destroy(&tables);
}

CHECK_MAIN()
