/* SPDX-License-Identifier: MIT
 *
 * Which server is chosen, by every policy and name; limits and the queue, with several balancers on one loop where the
 * order of events matters, and with processes where they race. Random tests print their seed; SLUICE_SEED repeats one.
 */
#include "check.h"
#include "each_loop.h"
#include "proxy/balance.h"

#include <arpa/inet.h>
#include <errno.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WORKERS 4

/* What a supervisor makes of one service, and the balancers of its workers. */
static struct shared_memory {
    struct service_state service, own_service[WORKERS];
    struct server_state servers[PROXY_SERVERS_MAX], own[WORKERS][PROXY_SERVERS_MAX];
    _Atomic uint64_t claims[WORKERS * PROXY_SERVERS_MAX];
    /* for the tests: */
    _Atomic uint32_t inside[PROXY_SERVERS_MAX], most[PROXY_SERVERS_MAX];
    _Atomic uint64_t served, exceeded, slowest_ms;
} * shared;

static struct proxy_service service;
static struct proxy_server servers[PROXY_SERVERS_MAX];
static char names[PROXY_SERVERS_MAX][32];
static int freed_fd = -1, freed_fds[WORKERS]; /* each worker's: an epoll takes a descriptor only once */
static struct sluice_loop *loop;
static struct balancer *balancers[WORKERS];

/* ---- A world --------------------------------------------------------------------------------------------------- */

static void begin(unsigned count, enum proxy_balance balance)
{
    if (shared == NULL)
        shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        abort();
    memset(shared, 0, sizeof *shared);
    memset(servers, 0, sizeof servers);
    service = (struct proxy_service){.name = "pg", .servers = servers, .server_count = count, .balance = balance};
    for (unsigned i = 0; i < count; i++) {
        snprintf(names[i], sizeof names[i], "10.0.%u.%u:5432", i / 256, i % 256);
        servers[i].name = names[i];
        servers[i].weight = 1;
    }
    freed_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    for (unsigned i = 0; i < WORKERS; i++)
        freed_fds[i] = dup(freed_fd);
}

static void close_freed(void)
{
    for (unsigned i = 0; i < WORKERS; i++)
        close(freed_fds[i]);
    close(freed_fd);
}

static struct balancer_options options_of(unsigned worker, unsigned workers)
{
    return (struct balancer_options){
        .service = &service,
        .service_state = &shared->service,
        .servers = shared->servers,
        .own_service = &shared->own_service[worker],
        .own = shared->own[worker],
        .claims = shared->claims,
        .worker = worker,
        .worker_count = workers,
        .freed_fd = freed_fds[worker],
        .loop = loop,
    };
}

static void open_loop(void)
{
    struct sluice_loop_options options = {.size = sizeof options, .kind = kind};
    if (sluice_loop_new(&options, &loop) < 0)
        abort();
}

/* Several workers in one process, on one loop: what happens between them happens in an order that we choose. */
static void open_workers(unsigned workers)
{
    open_loop();
    for (unsigned i = 0; i < workers; i++) {
        struct balancer_options options = options_of(i, workers);
        if (balancer_new(&options, &balancers[i]) < 0)
            abort();
    }
}

static void end(void)
{
    for (unsigned i = 0; i < WORKERS; i++) {
        balancer_free(balancers[i]);
        balancers[i] = NULL;
    }
    sluice_loop_free(loop);
    loop = NULL;
    close_freed();
}

static void stop(void *context)
{
    (void)context;
    sluice_loop_stop(loop);
}

static int bell;
static unsigned rings_left;

static void on_bell(void *context)
{
    uint64_t one = 1;
    if (rings_left-- == 0 || write(bell, &one, sizeof one) < 0)
        stop(context);
}

/* Let the loop turn a few times: eventfds that were written have been heard then. */
static void turn(void)
{
    struct sluice_watch *watch;
    bell = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
    rings_left = 12;
    if (sluice_loop_watch(loop, bell, on_bell, NULL, &watch) < 0)
        abort();
    sluice_loop_run(loop);
    sluice_watch_free(watch);
    close(bell);
}

/* The time after which workers no longer respect claims (PATIENCE_MS), and a bit. */
static void lose_patience(void)
{
    struct sluice_timer timer = {0};
    sluice_timer_start(loop, &timer, 800, stop, NULL);
    sluice_loop_run(loop);
}

static uint64_t milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static uint64_t seed;

static uint64_t random_number(uint64_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (seed * UINT64_C(0x2545f4914f6cdd1d) >> 16) % below;
}

static void begin_random(void)
{
    const char *given = getenv("SLUICE_SEED");
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    seed = given != NULL ? strtoull(given, NULL, 10) : (uint64_t)now.tv_nsec << 20 | 1;
    printf("# SLUICE_SEED=%llu\n", (unsigned long long)seed);
    fflush(stdout);
}

static struct sockaddr *client_v4(uint32_t address, unsigned port)
{
    static struct sockaddr_in v4;
    v4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    v4.sin_addr.s_addr = htonl(address);
    return (struct sockaddr *)&v4;
}

static struct sockaddr *client_v6(const char *address, unsigned port)
{
    static struct sockaddr_in6 v6;
    v6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    inet_pton(AF_INET6, address, &v6.sin6_addr);
    return (struct sockaddr *)&v6;
}

static int take(void)
{
    struct choice choice = {.client = NULL};
    return balancer_take(balancers[0], &choice);
}

static int take_for(const struct sockaddr *client)
{
    struct choice choice = {.client = client};
    int server = balancer_take(balancers[0], &choice);
    if (server >= 0)
        balancer_give_back(balancers[0], (unsigned)server);
    return server;
}

/* Server by server, as letters. */
static const char *take_many(unsigned count)
{
    static char text[64];
    for (unsigned i = 0; i < count; i++)
        text[i] = (char)('a' + take());
    text[count] = '\0';
    return text;
}

/* ---- In turn --------------------------------------------------------------------------------------------------- */

TEST("round robin goes round, one by one")
{
    begin(3, PROXY_BALANCE_ROUND_ROBIN);
    open_workers(1);
    CHECK_STR(take_many(7), "abcabca");
    end();
}

TEST("weighted round robin is even within its cycle, not in bursts")
{
    begin(3, PROXY_BALANCE_ROUND_ROBIN);
    servers[0].weight = 5;
    open_workers(1);
    CHECK_STR(take_many(14), "aabacaaaabacaa");
    end();
}

TEST("the spread of round robin follows the weights in every cycle, and nobody is ahead of its share by two")
{
    begin_random();
    for (unsigned round = 0; round < 20; round++) {
        unsigned count = 1 + (unsigned)random_number(40), total = 0;
        begin(count, PROXY_BALANCE_ROUND_ROBIN);
        for (unsigned i = 0; i < count; i++)
            total += servers[i].weight = i == 0 ? 7 : (unsigned)random_number(12);
        open_workers(1);
        uint64_t taken[64] = {0};
        for (uint64_t n = 1; n <= 3 * total; n++) {
            taken[take()]++;
            for (unsigned i = 0; i < count; i++) {
                double share = (double)n * servers[i].weight / total;
                CHECK((double)taken[i] < share + 2);
                if (n % total == 0)
                    CHECK_EQ(taken[i], n / total * servers[i].weight);
            }
        }
        end();
    }
}

TEST("workers begin their round at different servers")
{
    begin(3, PROXY_BALANCE_ROUND_ROBIN);
    open_workers(3);
    struct choice choice = {0};
    for (unsigned i = 0; i < 3; i++)
        CHECK_EQ(balancer_take(balancers[i], &choice), i);
    end();
}

TEST("a server that was down gets no burst when it is up again")
{
    begin(3, PROXY_BALANCE_ROUND_ROBIN);
    open_workers(1);
    shared->servers[1].down = 1;
    CHECK_STR(take_many(6), "acacac");
    shared->servers[1].down = 0;
    const char *after = take_many(6);
    CHECK(strstr(after, "bb") == NULL);
    end();
}

TEST("weight 0 takes no new connections; when nobody else is left, there is none")
{
    begin(2, PROXY_BALANCE_ROUND_ROBIN);
    servers[0].weight = 0;
    open_workers(1);
    CHECK_STR(take_many(3), "bbb");
    shared->servers[1].down = 1;
    CHECK_EQ(take(), -EHOSTUNREACH);
    end();
}

TEST("a server that was tried is not chosen again; when all were, none is up")
{
    begin(3, PROXY_BALANCE_ROUND_ROBIN);
    open_workers(1);
    struct choice choice = {0};
    bool seen[3] = {false};
    for (unsigned i = 0; i < 3; i++) {
        int server = balancer_take(balancers[0], &choice);
        CHECK(server >= 0 && !seen[server]);
        seen[server] = true;
        choice.tried[0] |= UINT64_C(1) << server;
        balancer_give_back(balancers[0], (unsigned)server);
    }
    CHECK_EQ(balancer_take(balancers[0], &choice), -EHOSTUNREACH);
    end();
}

TEST("all 256 servers are used")
{
    begin(PROXY_SERVERS_MAX, PROXY_BALANCE_ROUND_ROBIN);
    open_workers(1);
    for (unsigned i = 0; i < PROXY_SERVERS_MAX; i++)
        take();
    for (unsigned i = 0; i < PROXY_SERVERS_MAX; i++)
        CHECK_EQ(shared->servers[i].connections, 1);
    end();
}

/* ---- Least connections ----------------------------------------------------------------------------------------- */

TEST("least connections goes where fewest are, of all workers, and in turn when it is all the same")
{
    begin(3, PROXY_BALANCE_LEAST_CONNECTIONS);
    open_workers(2);
    take_many(3);
    for (unsigned i = 0; i < 3; i++)
        CHECK_EQ(shared->servers[i].connections, 1);
    take_many(3);
    for (unsigned i = 0; i < 3; i++)
        CHECK_EQ(shared->servers[i].connections, 2);
    balancer_give_back(balancers[0], 1);
    CHECK_EQ(take(), 1);
    struct choice choice = {0};
    shared->servers[0].connections += 2; /* another worker's */
    CHECK(balancer_take(balancers[1], &choice) != 0);
    CHECK(balancer_take(balancers[0], &choice) != 0);
    CHECK(balancer_take(balancers[1], &choice) != 0);
    CHECK(balancer_take(balancers[0], &choice) != 0);
    CHECK_EQ(shared->servers[1].connections, 4);
    CHECK_EQ(shared->servers[2].connections, 4);
    end();
}

TEST("least connections keeps the connections in the proportion of the weights")
{
    begin(3, PROXY_BALANCE_LEAST_CONNECTIONS);
    servers[0].weight = 3;
    servers[2].weight = 2;
    open_workers(1);
    take_many(60);
    CHECK_EQ(shared->servers[0].connections, 30);
    CHECK_EQ(shared->servers[1].connections, 10);
    CHECK_EQ(shared->servers[2].connections, 20);
    end();
}

TEST("least connections spreads by weight while nobody is busy")
{
    begin(2, PROXY_BALANCE_LEAST_CONNECTIONS);
    servers[0].weight = 3;
    open_workers(1);
    unsigned taken[2] = {0};
    for (unsigned i = 0; i < 40; i++)
        taken[take_for(NULL)]++;
    CHECK_EQ(taken[0], 30);
    end();
}

/* ---- By the client's address ----------------------------------------------------------------------------------- */

static void check_same_client(enum proxy_balance balance)
{
    begin(7, balance);
    open_workers(1);
    bool used[7] = {false};
    for (unsigned i = 0; i < 200; i++) {
        char text[64];
        int first = take_for(client_v4(0x0a000000 + i * 77, 1000 + i));
        used[first] = true;
        CHECK_EQ(take_for(client_v4(0x0a000000 + i * 77, 60000 - i)), first);
        struct in_addr address = {.s_addr = htonl(0x0a000000 + i * 77)};
        snprintf(text, sizeof text, "::ffff:%s", inet_ntoa(address));
        CHECK_EQ(take_for(client_v6(text, 77)), first);
    }
    for (unsigned i = 0; i < 7; i++)
        CHECK(used[i]);
    CHECK_EQ(take_for(client_v6("2001:db8::1", 5)), take_for(client_v6("2001:db8::1", 6)));
    bool differs = false;
    for (unsigned i = 0; i < 20; i++) {
        char text[64];
        snprintf(text, sizeof text, "2001:db8:%x::1", i);
        differs = differs || take_for(client_v6(text, 1)) != take_for(client_v6("2001:db8::1", 1));
    }
    CHECK(differs);
    struct sockaddr_un one = {.sun_family = AF_UNIX, .sun_path = "/one"}, other = {.sun_family = AF_UNIX};
    CHECK_EQ(take_for((struct sockaddr *)&one), take_for((struct sockaddr *)&other));
    end();
}

TEST("source: an address goes to one server, whatever its port; IPv4 in IPv6 is IPv4; Unix clients are all alike")
{
    check_same_client(PROXY_BALANCE_SOURCE);
}

TEST("consistent: an address goes to one server, whatever its port; IPv4 in IPv6 is IPv4; Unix clients are all alike")
{
    check_same_client(PROXY_BALANCE_CONSISTENT);
}

#define CLIENTS 40000

static void map_clients(uint8_t *ret_servers, unsigned *ret_counts)
{
    memset(ret_counts, 0, PROXY_SERVERS_MAX * sizeof *ret_counts);
    for (unsigned i = 0; i < CLIENTS; i++) {
        int server = take_for(client_v4(0xc0a80000 + i, 1));
        CHECK(server >= 0);
        ret_servers[i] = (uint8_t)server;
        ret_counts[server]++;
    }
}

static uint8_t was[CLIENTS], is[CLIENTS];
static unsigned counts[PROXY_SERVERS_MAX];

static void check_spread(enum proxy_balance balance)
{
    static const unsigned weights[] = {1, 2, 3, 10, 0, 4};
    begin(6, balance);
    for (unsigned i = 0; i < 6; i++)
        servers[i].weight = weights[i];
    open_workers(1);
    map_clients(is, counts);
    for (unsigned i = 0; i < 6; i++) {
        /* Five standard deviations of the binomial distribution are at most 5 * sqrt(40000 / 4) = 500. */
        double share = (double)CLIENTS * weights[i] / 20;
        CHECK(counts[i] < share + 500 && counts[i] > share - 500);
    }
    CHECK_EQ(counts[4], 0);
    end();
}

TEST("source: the spread follows the weights")
{
    check_spread(PROXY_BALANCE_SOURCE);
}

TEST("consistent: the spread follows the weights")
{
    check_spread(PROXY_BALANCE_CONSISTENT);
}

TEST("consistent: when a server goes down only its clients move, to all others by weight, and come back with it")
{
    begin(8, PROXY_BALANCE_CONSISTENT);
    servers[3].weight = 2;
    open_workers(1);
    map_clients(was, counts);
    unsigned lost = counts[5];
    shared->servers[5].down = 1;
    map_clients(is, counts);
    unsigned moved_to[8] = {0};
    for (unsigned i = 0; i < CLIENTS; i++) {
        if (was[i] == 5)
            moved_to[is[i]]++;
        else
            CHECK_EQ(is[i], was[i]);
    }
    CHECK_EQ(moved_to[5], 0);
    for (unsigned i = 0; i < 8; i++) {
        double share = lost * servers[i].weight / 8.0;
        if (i != 5)
            CHECK(moved_to[i] > share * .8 && moved_to[i] < share * 1.2);
    }
    shared->servers[5].down = 0;
    map_clients(is, counts);
    CHECK(memcmp(is, was, sizeof is) == 0);
    end();
}

TEST("consistent: more weight only attracts, and a server that is added takes only what is its own")
{
    begin(5, PROXY_BALANCE_CONSISTENT);
    servers[4].weight = 0;
    open_workers(1);
    map_clients(was, counts);
    servers[4].weight = 1; /* added */
    map_clients(is, counts);
    for (unsigned i = 0; i < CLIENTS; i++)
        CHECK(is[i] == was[i] || is[i] == 4);
    memcpy(was, is, sizeof was);
    servers[2].weight = 3;
    map_clients(is, counts);
    for (unsigned i = 0; i < CLIENTS; i++)
        CHECK(is[i] == was[i] || is[i] == 2);
    end();
}

TEST("consistent: it goes by the servers' names, not by their order")
{
    begin(5, PROXY_BALANCE_CONSISTENT);
    open_workers(1);
    map_clients(was, counts);
    end();
    begin(5, PROXY_BALANCE_CONSISTENT);
    for (unsigned i = 0; i < 5; i++)
        servers[i].name = names[4 - i];
    open_workers(1);
    map_clients(is, counts);
    for (unsigned i = 0; i < CLIENTS; i++)
        CHECK_EQ(is[i], 4 - was[i]);
    end();
}

TEST("consistent: a server that is listed twice gets two shares")
{
    begin(3, PROXY_BALANCE_CONSISTENT);
    servers[1].name = names[0];
    open_workers(1);
    map_clients(is, counts);
    for (unsigned i = 0; i < 3; i++)
        CHECK(counts[i] > CLIENTS / 3 - 700 && counts[i] < CLIENTS / 3 + 700);
    end();
}

TEST("by address: the clients of a full server go to another one until it has a place")
{
    for (unsigned n = 0; n < 2; n++) {
        begin(4, n == 0 ? PROXY_BALANCE_SOURCE : PROXY_BALANCE_CONSISTENT);
        open_workers(1);
        struct choice choice = {.client = client_v4(0x01020304, 5)};
        int own = balancer_take(balancers[0], &choice);
        servers[own].max_connections = 1;
        int other = balancer_take(balancers[0], &choice);
        CHECK(other >= 0 && other != own);
        balancer_give_back(balancers[0], (unsigned)own);
        CHECK_EQ(balancer_take(balancers[0], &choice), own);
        end();
    }
}

/* ---- Backups --------------------------------------------------------------------------------------------------- */

TEST("backups take connections only when no other server is up, and share them then")
{
    begin(4, PROXY_BALANCE_ROUND_ROBIN);
    servers[2].backup = servers[3].backup = true;
    open_workers(1);
    CHECK_STR(take_many(4), "abab");
    shared->servers[0].down = 1;
    CHECK_STR(take_many(3), "bbb");
    shared->servers[1].down = 1;
    CHECK_STR(take_many(4), "cdcd");
    shared->servers[0].down = 0;
    CHECK_STR(take_many(2), "aa");
    end();
}

TEST("backups are no overflow: who finds all servers full waits")
{
    begin(2, PROXY_BALANCE_ROUND_ROBIN);
    servers[0].max_connections = 1;
    servers[1].backup = true;
    open_workers(1);
    CHECK_EQ(take(), 0);
    CHECK_EQ(take(), -EAGAIN);
    end();
}

TEST("a connection that has tried all other servers in vain gets a backup")
{
    begin(2, PROXY_BALANCE_ROUND_ROBIN);
    servers[1].backup = true;
    open_workers(1);
    struct choice choice = {.tried = {1}};
    CHECK_EQ(balancer_take(balancers[0], &choice), 1);
    end();
}

/* ---- Names ----------------------------------------------------------------------------------------------------- */

static char name_a[] = "a.example.org", name_wild[] = "*.example.org", name_deep[] = "*.deep.example.org", h2[] = "h2",
            http11[] = "http/1.1";

static int take_named(const char *sni, const char *alpn)
{
    struct choice choice = {.sni = sni, .alpn = alpn, .alpn_length = alpn == NULL ? 0 : strlen(alpn)};
    int server = balancer_take(balancers[0], &choice);
    if (server >= 0)
        balancer_give_back(balancers[0], (unsigned)server);
    return server;
}

static void add_sni(unsigned server, char *name)
{
    servers[server].sni[servers[server].sni_count++] = name;
    service.routes_by_name = true;
}

static void add_alpn(unsigned server, char *name)
{
    servers[server].alpn[servers[server].alpn_count++] = name;
    service.routes_by_name = true;
}

TEST("an exact name goes before a wildcard, a longer wildcard before a shorter one, and any before no name")
{
    begin(4, PROXY_BALANCE_ROUND_ROBIN);
    add_sni(1, name_wild);
    add_sni(2, name_a);
    add_sni(3, name_deep);
    open_workers(1);
    CHECK_EQ(take_named("a.example.org", NULL), 2);
    CHECK_EQ(take_named("A.Example.ORG", NULL), 2);
    CHECK_EQ(take_named("b.example.org", NULL), 1);
    CHECK_EQ(take_named("b.c.EXAMPLE.org", NULL), 1);
    CHECK_EQ(take_named("x.deep.example.org", NULL), 3);
    CHECK_EQ(take_named("deep.example.org", NULL), 1);
    CHECK_EQ(take_named("example.org", NULL), 0);
    CHECK_EQ(take_named(".example.org", NULL), 0);
    CHECK_EQ(take_named("a.example.org.evil.net", NULL), 0);
    CHECK_EQ(take_named("badexample.org", NULL), 0);
    CHECK_EQ(take_named("", NULL), 0);
    CHECK_EQ(take_named(NULL, NULL), 0);
    end();
}

TEST("a name that nobody takes is refused when there is no server without names")
{
    begin(2, PROXY_BALANCE_ROUND_ROBIN);
    add_sni(0, name_a);
    add_alpn(1, h2);
    open_workers(1);
    CHECK_EQ(take_named("b.example.org", NULL), -ENOENT);
    CHECK_EQ(take_named(NULL, "\x08http/1.1"), -ENOENT);
    CHECK_EQ(take_named(NULL, NULL), -ENOENT);
    CHECK_EQ(take_named(NULL, "\x02h2"), 1);
    end();
}

TEST("ALPN goes in the client's order, then to servers that ask for none; a broken list ends where it breaks")
{
    begin(3, PROXY_BALANCE_ROUND_ROBIN);
    add_alpn(1, h2);
    add_alpn(2, http11);
    open_workers(1);
    CHECK_EQ(take_named(NULL, "\x02h2\x08http/1.1"), 1);
    CHECK_EQ(take_named(NULL, "\x08http/1.1\x02h2"), 2);
    CHECK_EQ(take_named(NULL, "\x04imap\x08http/1.1"), 2);
    CHECK_EQ(take_named(NULL, "\x04imap"), 0);
    CHECK_EQ(take_named(NULL, "\x02H2"), 0); /* names of protocols are bytes */
    CHECK_EQ(take_named(NULL, "\x04imap\x7fh2"), 0);
    CHECK_EQ(take_named(NULL, ""), 0);
    end();
}

TEST("a server with both kinds of names wants both; the host's name counts before the protocol")
{
    begin(4, PROXY_BALANCE_ROUND_ROBIN);
    add_sni(0, name_a);
    add_alpn(0, h2);
    add_sni(1, name_a);
    add_alpn(2, h2);
    open_workers(1);
    CHECK_EQ(take_named("a.example.org", "\x02h2"), 0);
    CHECK_EQ(take_named("a.example.org", "\x08http/1.1"), 1);
    CHECK_EQ(take_named("a.example.org", NULL), 1);
    CHECK_EQ(take_named("other.org", "\x02h2"), 2);
    CHECK_EQ(take_named("other.org", NULL), 3);
    end();
}

TEST("who is responsible for a name does not depend on who is up; backups are looked for among them")
{
    begin(4, PROXY_BALANCE_ROUND_ROBIN);
    add_sni(1, name_a);
    add_sni(2, name_a);
    servers[2].backup = true;
    servers[3].backup = true;
    open_workers(1);
    CHECK_EQ(take_named(name_a, NULL), 1);
    shared->servers[1].down = 1;
    CHECK_EQ(take_named(name_a, NULL), 2);
    shared->servers[2].down = 1;
    CHECK_EQ(take_named(name_a, NULL), -EHOSTUNREACH);
    end();
}

/* ---- Limits ---------------------------------------------------------------------------------------------------- */

TEST("no server gets more than its limit, and what is given back can be taken again")
{
    begin(2, PROXY_BALANCE_ROUND_ROBIN);
    servers[0].max_connections = 1;
    servers[1].max_connections = 3;
    open_workers(2);
    CHECK_STR(take_many(4), "abbb");
    CHECK_EQ(take(), -EAGAIN);
    balancer_give_back(balancers[0], 0);
    CHECK_EQ(take(), 0);
    CHECK_EQ(shared->own[0][1].connections, 3);
    end();
}

/* Run as a worker in a process of its own; the result is its exit code. */
static pid_t spawn(void (*work)(unsigned worker), unsigned worker)
{
    pid_t pid = fork();
    if (pid == 0) {
        work(worker);
        _exit(0);
    }
    return pid;
}

static void race(void (*work)(unsigned worker), unsigned workers)
{
    pid_t pids[WORKERS];
    bool good = true;
    for (unsigned i = 0; i < workers; i++)
        pids[i] = spawn(work, i);
    for (unsigned i = 0; i < workers; i++) {
        int status = -1;
        waitpid(pids[i], &status, 0);
        good = good && status == 0;
    }
    CHECK(good);
}

static void enter(unsigned server)
{
    uint32_t inside = atomic_fetch_add(&shared->inside[server], 1) + 1, most = shared->most[server];
    while (inside > most && !atomic_compare_exchange_weak(&shared->most[server], &most, inside)) {
    }
    if (servers[server].max_connections > 0 && inside > servers[server].max_connections)
        shared->exceeded++;
}

static void take_and_give(unsigned worker)
{
    struct balancer *balancer;
    open_loop();
    struct balancer_options options = options_of(worker, WORKERS);
    if (balancer_new(&options, &balancer) < 0)
        _exit(1);
    seed += worker * 7919;
    unsigned held[16], count = 0;
    struct choice choice = {0};
    for (unsigned i = 0; i < 60000; i++) {
        bool full = false;
        if (count < 16 && random_number(2) == 0) {
            int server = balancer_take(balancer, &choice);
            full = server == -EAGAIN;
            if (server >= 0) {
                enter((unsigned)server);
                held[count++] = (unsigned)server;
            }
        }
        if (count > 0 && (full || random_number(2) == 0)) {
            unsigned which = (unsigned)random_number(count), server = held[which];
            held[which] = held[--count];
            atomic_fetch_sub(&shared->inside[server], 1);
            balancer_give_back(balancer, server);
        }
    }
    while (count > 0) {
        atomic_fetch_sub(&shared->inside[held[--count]], 1);
        balancer_give_back(balancer, held[count]);
    }
}

TEST("workers that race never exceed a limit, and leave no place behind")
{
    begin_random();
    begin(3, PROXY_BALANCE_LEAST_CONNECTIONS);
    servers[0].max_connections = 1;
    servers[1].max_connections = 2;
    servers[2].max_connections = 5;
    race(take_and_give, WORKERS);
    CHECK_EQ(shared->exceeded, 0);
    for (unsigned i = 0; i < 3; i++) {
        CHECK_EQ(shared->most[i], servers[i].max_connections);
        CHECK_EQ(shared->servers[i].connections, 0);
        for (unsigned worker = 0; worker < WORKERS; worker++)
            CHECK_EQ(shared->own[worker][i].connections, 0);
    }
    close_freed();
}

/* ---- Waiting --------------------------------------------------------------------------------------------------- */

struct client {
    struct waiter waiter;
    struct choice choice;
    unsigned worker;
    int server; /* -EINPROGRESS: was not called */
    unsigned order;
};

static unsigned called;

static void on_ready(void *context, int server)
{
    struct client *client = context;
    client->server = server;
    client->order = ++called;
}

static int wait_in(struct client *client, unsigned worker)
{
    client->worker = worker;
    client->server = -EINPROGRESS;
    client->waiter.ready = on_ready;
    client->waiter.context = client;
    return balancer_wait(balancers[worker], &client->waiter, &client->choice);
}

static void begin_full(unsigned workers, unsigned places)
{
    begin(1, PROXY_BALANCE_ROUND_ROBIN);
    servers[0].max_connections = places;
    open_workers(workers);
    for (unsigned i = 0; i < places; i++)
        take();
    called = 0;
}

TEST("who waits is called with a place, from the loop, first come first served")
{
    EACH_LOOP
    {
        begin_full(1, 1);
        struct client clients[3] = {0};
        for (unsigned i = 0; i < 3; i++)
            CHECK_EQ(wait_in(&clients[i], 0), 0);
        turn();
        CHECK_EQ(called, 0);
        for (unsigned i = 0; i < 3; i++) {
            balancer_give_back(balancers[0], 0);
            CHECK_EQ(called, i);
            turn();
            CHECK_EQ(called, i + 1);
            CHECK_EQ(clients[i].server, 0);
        }
        CHECK_EQ(shared->servers[0].connections, 1);
        CHECK_EQ(shared->service.waiting, 0);
        CHECK_EQ(shared->own_service[0].waiting, 0);
        end();
    }
}

TEST("a place that one worker frees goes to another one's waiter")
{
    EACH_LOOP
    {
        begin_full(2, 1);
        struct client client = {0};
        for (unsigned i = 0; i < 3; i++) { /* and again: nobody reads the eventfds */
            CHECK_EQ(wait_in(&client, 1), 0);
            balancer_give_back(balancers[i == 0 ? 0 : 1], 0);
            struct choice choice = {0};
            CHECK_EQ(balancer_take(balancers[0], &choice), -EAGAIN);
            turn();
            CHECK_EQ(client.server, 0);
        }
        balancer_give_back(balancers[1], 0);
        CHECK_EQ(take(), 0);
        end();
    }
}

TEST("places go to who has waited longest in any worker, not to the own waiters of the worker that frees them")
{
    EACH_LOOP
    {
        begin_full(3, 1);
        struct client clients[9] = {0};
        for (unsigned i = 0; i < 9; i++)
            CHECK_EQ(wait_in(&clients[i], i * 5 % 3), 0);
        unsigned at = 0; /* who has the place */
        for (unsigned i = 0; i < 9; i++) {
            balancer_give_back(balancers[at], 0);
            turn();
            CHECK_EQ(called, i + 1);
            CHECK_EQ(clients[i].order, i + 1);
            at = clients[i].worker;
        }
        end();
    }
}

TEST("nobody overtakes those who wait, in the same worker and in others")
{
    begin_full(2, 1);
    struct client client = {0};
    struct choice choice = {0};
    CHECK_EQ(wait_in(&client, 1), 0);
    balancer_give_back(balancers[0], 0);
    CHECK_EQ(balancer_take(balancers[0], &choice), -EAGAIN);
    CHECK_EQ(balancer_take(balancers[1], &choice), -EAGAIN);
    turn();
    CHECK_EQ(client.server, 0);
    end();
}

TEST("a place that was freed between being refused and waiting is not missed")
{
    EACH_LOOP
    {
        begin_full(2, 1);
        struct client client = {0};
        CHECK_EQ(balancer_take(balancers[1], &client.choice), -EAGAIN);
        balancer_give_back(balancers[0], 0);
        CHECK_EQ(wait_in(&client, 1), 0);
        turn();
        CHECK_EQ(client.server, 0);
        end();
    }
}

TEST("when the first in line leaves, the place that was his goes to the next, in another worker too")
{
    EACH_LOOP
    {
        begin_full(2, 2);
        struct client first = {0}, next = {0};
        CHECK_EQ(wait_in(&first, 0), 0);
        CHECK_EQ(wait_in(&next, 1), 0);
        balancer_give_back(balancers[0], 0);
        balancer_stop_waiting(balancers[0], &first.waiter);
        balancer_stop_waiting(balancers[0], &first.waiter);
        turn();
        CHECK_EQ(first.server, -EINPROGRESS);
        CHECK_EQ(next.server, 0);
        end();
    }
}

/* Two places become free, and the second in line looks before the first: it is told to look again. */
TEST("several places freed at once go to waiters in several workers")
{
    EACH_LOOP
    {
        begin_full(3, 3);
        struct client clients[3] = {0};
        for (unsigned i = 0; i < 3; i++)
            CHECK_EQ(wait_in(&clients[i], 2 - i), 0);
        for (unsigned i = 0; i < 3; i++)
            balancer_give_back(balancers[0], 0);
        turn();
        CHECK_EQ(called, 3);
        end();
    }
}

TEST("when its server goes down a waiter gets another one that has a place")
{
    begin(2, PROXY_BALANCE_ROUND_ROBIN);
    servers[0].max_connections = 1;
    servers[1].backup = true;
    open_workers(2);
    CHECK_EQ(take(), 0);
    struct client client = {0};
    CHECK_EQ(wait_in(&client, 1), 0);
    turn();
    CHECK_EQ(client.server, -EINPROGRESS);
    shared->servers[0].down = 1;
    uint64_t one = 1;
    CHECK_EQ(write(freed_fd, &one, sizeof one), (ssize_t)sizeof one);
    turn();
    CHECK_EQ(client.server, 1);
    end();
}

TEST("when the last server goes down all who wait for it are told so")
{
    EACH_LOOP
    {
        begin_full(2, 1);
        static struct client clients[200];
        memset(clients, 0, sizeof clients);
        called = 0;
        for (unsigned i = 0; i < 200; i++)
            CHECK_EQ(wait_in(&clients[i], i / 150), 0);
        shared->servers[0].down = 1;
        uint64_t one = 1;
        CHECK_EQ(write(freed_fd, &one, sizeof one), (ssize_t)sizeof one);
        turn();
        CHECK_EQ(called, 200);
        for (unsigned i = 0; i < 200; i++)
            CHECK_EQ(clients[i].server, -EHOSTUNREACH);
        CHECK_EQ(shared->servers[0].claimed, 0);
        end();
    }
}

TEST("who begins to wait when no server is up is told so from the loop")
{
    begin_full(1, 1);
    shared->servers[0].down = 1;
    struct client client = {0};
    CHECK_EQ(wait_in(&client, 0), 0);
    CHECK_EQ(client.server, -EINPROGRESS);
    turn();
    CHECK_EQ(client.server, -EHOSTUNREACH);
    end();
}

TEST("a waiter for one name does not hold up those for others, and gets the place of its own name only")
{
    begin(2, PROXY_BALANCE_ROUND_ROBIN);
    add_sni(0, name_a);
    servers[0].max_connections = servers[1].max_connections = 1;
    open_workers(2);
    struct client named = {.choice = {.sni = name_a}}, other = {.choice = {.sni = "x"}};
    CHECK_EQ(balancer_take(balancers[0], &named.choice), 0);
    CHECK_EQ(wait_in(&named, 0), 0);
    CHECK_EQ(balancer_take(balancers[0], &other.choice), 1);
    CHECK_EQ(wait_in(&other, 0), 0);
    balancer_give_back(balancers[0], 1);
    turn();
    CHECK_EQ(other.server, 1);
    CHECK_EQ(named.server, -EINPROGRESS);
    balancer_give_back(balancers[0], 0);
    turn();
    CHECK_EQ(named.server, 0);
    end();
}

TEST("a waiter that has tried a server is not offered its place, and those behind it are")
{
    begin(2, PROXY_BALANCE_ROUND_ROBIN);
    servers[0].max_connections = servers[1].max_connections = 1;
    open_workers(1);
    take_many(2);
    struct client tried = {.choice = {.tried = {1}}}, behind = {0};
    CHECK_EQ(wait_in(&tried, 0), 0);
    CHECK_EQ(wait_in(&behind, 0), 0);
    balancer_give_back(balancers[0], 0);
    turn();
    CHECK_EQ(tried.server, -EINPROGRESS);
    CHECK_EQ(behind.server, 0);
    balancer_give_back(balancers[0], 1);
    turn();
    CHECK_EQ(tried.server, 1);
    end();
}

TEST("who waits a second time has kept its turn")
{
    begin_full(1, 1);
    struct client first = {0}, second = {0}, third = {0};
    CHECK_EQ(wait_in(&first, 0), 0);
    CHECK_EQ(wait_in(&second, 0), 0);
    CHECK_EQ(wait_in(&third, 0), 0);
    balancer_give_back(balancers[0], 0);
    turn();
    CHECK_EQ(first.server, 0);
    CHECK_EQ(wait_in(&first, 0), 0);
    balancer_give_back(balancers[0], 0);
    turn();
    CHECK_EQ(first.server, 0);
    CHECK_EQ(second.server, -EINPROGRESS);
    balancer_stop_waiting(balancers[0], &second.waiter);
    balancer_stop_waiting(balancers[0], &third.waiter);
    end();
}

TEST("no more wait than may, in all workers together, and who left has made room")
{
    begin_full(2, 1);
    service.max_queue = 2;
    struct client clients[3] = {0};
    CHECK_EQ(wait_in(&clients[0], 0), 0);
    CHECK_EQ(wait_in(&clients[1], 1), 0);
    CHECK_EQ(wait_in(&clients[2], 1), -EUSERS);
    CHECK_EQ(shared->service.waiting, 2);
    balancer_stop_waiting(balancers[1], &clients[2].waiter);
    balancer_stop_waiting(balancers[0], &clients[0].waiter);
    CHECK_EQ(wait_in(&clients[2], 1), 0);
    balancer_stop_waiting(balancers[1], &clients[1].waiter);
    balancer_stop_waiting(balancers[1], &clients[2].waiter);
    CHECK_EQ(shared->service.waiting, 0);
    CHECK_EQ(shared->servers[0].claimed, 0);
    end();
}

static void on_ready_closes(void *context, int server)
{
    struct client *client = context;
    on_ready(client, server);
    balancer_give_back(balancers[client->worker], (unsigned)server);
    balancer_stop_waiting(balancers[client->worker], &client[1].waiter);
    wait_in(&client[2], client->worker);
}

TEST("ready may give back its place, stop others' waiting and begin new waiting")
{
    EACH_LOOP
    {
        begin_full(1, 1);
        struct client clients[3] = {0};
        CHECK_EQ(wait_in(&clients[0], 0), 0);
        CHECK_EQ(wait_in(&clients[1], 0), 0);
        clients[0].waiter.ready = on_ready_closes;
        balancer_give_back(balancers[0], 0);
        turn();
        CHECK_EQ(clients[1].server, -EINPROGRESS);
        CHECK_EQ(clients[2].server, 0);
        CHECK_EQ(shared->servers[0].connections, 1);
        end();
    }
}

static void crash(unsigned worker)
{
    struct client client = {0};
    open_loop();
    struct balancer_options options = options_of(worker, 2);
    if (balancer_new(&options, &balancers[worker]) < 0)
        _exit(1);
    for (unsigned i = 0; i < 2; i++) {
        if (balancer_take(balancers[worker], &client.choice) != 0)
            _exit(2);
    }
    if (wait_in(&client, worker) < 0)
        _exit(3);
    shared->own_service[worker].connections = 3;
    shared->service.connections += 3;
}

TEST("the places of a worker that crashed are taken back, and go to who waits elsewhere")
{
    begin(1, PROXY_BALANCE_ROUND_ROBIN);
    servers[0].max_connections = 2;
    shared->service.connections = 1; /* the other one's */
    race(crash, 1);
    open_loop();
    struct balancer_options options = options_of(1, 2);
    CHECK_EQ(balancer_new(&options, &balancers[1]), 0);
    struct client client = {0};
    CHECK_EQ(balancer_take(balancers[1], &client.choice), -EAGAIN);
    CHECK_EQ(wait_in(&client, 1), 0);
    turn();
    CHECK_EQ(client.server, -EINPROGRESS);
    CHECK_EQ(shared->servers[0].claimed, 2);

    options = options_of(0, 2);
    balancer_take_back(&options);
    CHECK_EQ(shared->service.connections, 1);
    CHECK_EQ(shared->service.waiting, 1);
    CHECK_EQ(shared->servers[0].connections, 0);
    CHECK_EQ(shared->servers[0].claimed, 1);
    CHECK_EQ(shared->own[0][0].connections, 0);
    turn();
    CHECK_EQ(client.server, 0);
    CHECK_EQ(shared->servers[0].connections, 1);
    balancer_take_back(&options); /* nothing more */
    CHECK_EQ(shared->servers[0].connections, 1);
    end();
}

TEST("a worker that hangs with the oldest claim holds the others up no longer than half a second")
{
    begin_full(2, 1);
    struct client client = {0};
    shared->claims[1] = atomic_fetch_add(&shared->service.tickets, 1) + 1; /* worker 1, which does nothing about it */
    shared->servers[0].claimed = 1;
    CHECK_EQ(wait_in(&client, 0), 0);
    balancer_give_back(balancers[0], 0);
    turn();
    CHECK_EQ(client.server, -EINPROGRESS);
    lose_patience();
    CHECK_EQ(client.server, 0);
    shared->claims[1] = 0;
    shared->servers[0].claimed = 0;
    end();
}

/* ---- Workers that race for the queue --------------------------------------------------------------------------- */

#define BUSY_CLIENTS 12
#define BUSY_ROUNDS 10000 /* of each worker */

/* A client that comes, waits if it must, stays for a few turns of the loop, goes, and comes again. */
struct busy {
    struct waiter waiter;
    struct choice choice;
    uint64_t since;
    int server; /* < 0: waits */
    unsigned stays;
};

static struct busy busy[BUSY_CLIENTS];
static struct balancer *busy_balancer;
static unsigned rounds_left, staying;
static int busy_fd; /* makes the loop go on while somebody stays */

static void settle(struct busy *client, int server)
{
    uint64_t waited = milliseconds() - client->since, slowest = shared->slowest_ms;
    while (waited > slowest && !atomic_compare_exchange_weak(&shared->slowest_ms, &slowest, waited)) {
    }
    if (server < 0 || shared->servers[server].down != 0)
        _exit(2);
    enter((unsigned)server);
    client->server = server;
    client->stays = (unsigned)random_number(4);
    staying++;
    uint64_t one = 1;
    if (write(busy_fd, &one, sizeof one) < 0)
        _exit(3);
}

static void on_busy_ready(void *context, int server)
{
    settle(context, server);
}

static void come(struct busy *client)
{
    if (rounds_left == 0)
        return;
    rounds_left--;
    client->since = milliseconds();
    client->server = -1;
    client->waiter = (struct waiter){.ready = on_busy_ready, .context = client};
    client->choice = (struct choice){.client = NULL};
    int server = balancer_take(busy_balancer, &client->choice);
    if (server >= 0)
        settle(client, server);
    else if (server != -EAGAIN || balancer_wait(busy_balancer, &client->waiter, &client->choice) < 0)
        _exit(4);
}

static void on_busy_turn(void *context)
{
    (void)context;
    for (unsigned i = 0; i < BUSY_CLIENTS; i++) {
        struct busy *client = &busy[i];
        if (client->server < 0) {
            /* Some lose patience, and come again at the end of the line. */
            if (client->waiter.queue != NULL && random_number(500) == 0) {
                balancer_stop_waiting(busy_balancer, &client->waiter);
                come(client);
            }
            continue;
        }
        if (client->stays-- > 0)
            continue;
        atomic_fetch_sub(&shared->inside[client->server], 1);
        balancer_give_back(busy_balancer, (unsigned)client->server);
        client->server = -1;
        staying--;
        shared->served++;
        come(client);
    }
    uint64_t one = 1;
    if (staying > 0 && write(busy_fd, &one, sizeof one) < 0)
        _exit(3);
    bool waits = false;
    for (unsigned i = 0; i < BUSY_CLIENTS; i++)
        waits = waits || busy[i].waiter.queue != NULL;
    if (staying == 0 && !waits && rounds_left == 0)
        sluice_loop_stop(loop);
}

static void be_busy(unsigned worker)
{
    struct sluice_watch *watch;
    open_loop();
    struct balancer_options options = options_of(worker, WORKERS);
    busy_fd = eventfd(0, EFD_NONBLOCK);
    if (balancer_new(&options, &busy_balancer) < 0 || sluice_loop_watch(loop, busy_fd, on_busy_turn, NULL, &watch) < 0)
        _exit(1);
    seed += worker * 7919;
    rounds_left = BUSY_ROUNDS;
    for (unsigned i = 0; i < BUSY_CLIENTS; i++)
        busy[i].server = -1;
    for (unsigned i = 0; i < BUSY_CLIENTS; i++)
        come(&busy[i]);
    sluice_loop_run(loop);
    sluice_watch_free(watch);
    balancer_free(busy_balancer);
    sluice_loop_free(loop);
}

/* That no wake-up is lost is for the tests above to say: here the workers' patience would make up for it. */
TEST("workers that race for a queue: every waiter is called, by a server that is up, and no limit is exceeded")
{
    begin_random();
    EACH_LOOP
    {
        begin(4, PROXY_BALANCE_ROUND_ROBIN);
        servers[0].max_connections = 1;
        servers[1].max_connections = 2;
        servers[2].max_connections = 2;
        shared->servers[2].down = 1;
        servers[3].weight = 0;
        uint64_t began = milliseconds();
        race(be_busy, WORKERS);
        uint64_t took = milliseconds() - began;
        printf("# %s: %llu served in %llu ms, the slowest after %llu ms\n", sluice_loop_kind_name(kind),
               (unsigned long long)shared->served, (unsigned long long)took, (unsigned long long)shared->slowest_ms);
        fflush(stdout); /* the next processes must not print it again */
        CHECK_EQ(shared->exceeded, 0);
        CHECK_EQ(shared->most[0], 1);
        CHECK_EQ(shared->most[1], 2);
        CHECK_EQ(shared->service.waiting, 0);
        for (unsigned i = 0; i < 4; i++) {
            CHECK_EQ(shared->servers[i].connections, 0);
            CHECK_EQ(shared->servers[i].claimed, 0);
        }
        close_freed();
    }
}

CHECK_MAIN()
