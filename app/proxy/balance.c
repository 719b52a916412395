/* SPDX-License-Identifier: MIT
 *
 * Choosing a server goes in three steps, each a set of servers:
 *
 *   named     whose names fit best (SNI, then ALPN), up or not: who is responsible does not depend on who is there
 *   usable    of these, without the tried ones: who is up and has a weight, and is no backup; if there is none,
 *             the backups. One that this connection has tried in vain is not up for it, so that backups are of use
 *             without health checks, too. All backups share the load. A full server is up: backups are no overflow
 *   open      of these, who has a place free that nobody who waits may claim
 *
 * and then the policy picks one of the open ones.
 *
 * Waiting. A waiter draws a ticket from a counter that all workers share. It is put into the queue of those who may
 * go to the same servers (mostly there is one queue), in the order of tickets. For each server each worker claims the
 * lowest ticket among its waiters that may go there (claims), and counts itself (claimed). Invariants:
 *
 *   - A place may be taken for a waiter if no worker claims it with a lower ticket, and for a connection that does not
 *     wait if nobody claims it. So places are given in the order of tickets, and nobody starves.
 *   - No wake-up is lost. Who waits writes its claim, then looks for a place; who gives a place back frees it, then
 *     looks for claims (all sequentially consistent): one of them sees the other. Who withdraws a claim that may have
 *     held others back (the waiter was served, or left) then looks for places, and wakes the others if there is one.
 *   - A worker that hangs, or that crashed and has not yet been cleared away (balancer_take_back), cannot hold up the
 *     others for longer than PATIENCE_MS: then they take free places whoever claims them.
 *
 * Who is woken. When the lowest claim is the own worker's, only that: by again_fd, as ready must not be called from
 * within balancer_give_back. Otherwise freed_fd, on which the workers that have waiters sleep, and no others. All of
 * these wake, and all but the one whose turn it is sleep again: the entitled one is one of them, the others are at work
 * anyhow, and events that come while a worker is busy are one.
 *
 * Both are eventfds that nobody reads: each write is an event for those who watch edges, be the count 1 or 1000, with
 * epoll and with io_uring (eventfd_write in fs/eventfd.c wakes without asking for the old count).
 */
#include "proxy/balance.h"
#include "base/cleanup.h"

#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#define PATIENCE_MS 500
#define READY_PER_TURN 64 /* waiters called before the loop may look at other things */

#define SET_WORDS (PROXY_SERVERS_MAX / 64)

struct set {
    uint64_t words[SET_WORDS];
};

/* Waiters that may go to the same servers. */
struct queue {
    struct list link; /* in balancer.queues */
    struct set servers;
    struct list waiters; /* by ticket */
    bool blocked;        /* its first one was refused in this round */
};

struct server_here {
    int64_t credit;    /* smooth round robin: how far it is behind its share */
    uint64_t identity; /* a hash of its name */
};

struct balancer {
    struct balancer_options options;
    _Atomic uint64_t *claims; /* this worker's */
    struct list queues;
    int again_fd;
    bool again;   /* again_fd was written and has not yet rung */
    bool serving; /* in serve_queues: claims are made known at its end */
    struct sluice_watch *again_watch, *freed_watch;
    struct sluice_timer patience; /* runs while freed_watch is there */
    unsigned count;
    struct server_here here[];
};

/* ---- Sets of servers ------------------------------------------------------------------------------------------- */

static void set_add(struct set *set, unsigned server)
{
    set->words[server / 64] |= UINT64_C(1) << server % 64;
}

static void set_remove(struct set *set, unsigned server)
{
    set->words[server / 64] &= ~(UINT64_C(1) << server % 64);
}

static bool set_empty(const struct set *set)
{
    uint64_t all = 0;
    for (unsigned i = 0; i < SET_WORDS; i++)
        all |= set->words[i];
    return all == 0;
}

/* The first member from server on, or PROXY_SERVERS_MAX. */
static unsigned set_next(const struct set *set, unsigned server)
{
    while (server < PROXY_SERVERS_MAX) {
        uint64_t rest = set->words[server / 64] >> server % 64;
        if (rest != 0)
            return server + (unsigned)__builtin_ctzll(rest);
        server = (server / 64 + 1) * 64;
    }
    return PROXY_SERVERS_MAX;
}

#define SET_FOR_EACH(server, set)                                                                                      \
    for (unsigned server = set_next((set), 0); server < PROXY_SERVERS_MAX; server = set_next((set), server + 1))

/* ---- Names ----------------------------------------------------------------------------------------------------- */

/* Not strncasecmp: that knows the user's language, and names of hosts are in none. */
static bool same_name(const char *a, const char *b, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        unsigned char x = (unsigned char)a[i], y = (unsigned char)b[i];
        x = x >= 'A' && x <= 'Z' ? (unsigned char)(x | 0x20) : x;
        y = y >= 'A' && y <= 'Z' ? (unsigned char)(y | 0x20) : y;
        if (x != y)
            return false;
    }
    return true;
}

/* How well a server fits; 0: not at all; RANK_ANY: it asks for no name, and takes what nobody asks for by name. */
#define RANK_ANY 1
#define RANK_BEST 1024

static unsigned rank_sni(const struct proxy_server *server, const char *sni, size_t length)
{
    if (server->sni_count == 0)
        return RANK_ANY;
    unsigned best = 0;
    for (unsigned i = 0; i < server->sni_count; i++) {
        const char *name = server->sni[i];
        size_t size = strlen(name);
        if (size == length && length > 0 && same_name(name, sni, length))
            return RANK_BEST;
        /* "*.example.org": the longer, the more exact */
        if (size > 2 && name[0] == '*' && name[1] == '.' && length > size - 1 &&
            same_name(name + 1, sni + length - (size - 1), size - 1) && RANK_ANY + size > best)
            best = RANK_ANY + (unsigned)size;
    }
    return best;
}

/* The client's order counts, as in RFC 7301, 3.2, the server's may: here the servers are several, and have none. */
static unsigned rank_alpn(const struct proxy_server *server, const char *alpn, size_t length)
{
    if (server->alpn_count == 0)
        return RANK_ANY;
    unsigned rank = RANK_BEST;
    for (size_t at = 0; at < length; rank--) {
        size_t size = (unsigned char)alpn[at++];
        if (size > length - at)
            break;
        for (unsigned i = 0; i < server->alpn_count; i++)
            if (strlen(server->alpn[i]) == size && memcmp(server->alpn[i], alpn + at, size) == 0)
                return rank;
        at += size;
    }
    return 0;
}

static void find_named(const struct balancer *balancer, const struct choice *choice, struct set *ret_set)
{
    const struct proxy_service *service = balancer->options.service;
    struct set set = {0};
    unsigned best = 1;
    size_t sni_length = choice->sni == NULL ? 0 : strlen(choice->sni);
    size_t alpn_length = choice->alpn == NULL ? 0 : choice->alpn_length;
    for (unsigned i = 0; i < balancer->count; i++) {
        const struct proxy_server *server = &service->servers[i];
        unsigned rank = RANK_ANY;
        if (service->routes_by_name) {
            unsigned alpn = rank_alpn(server, choice->alpn, alpn_length);
            /* The ranks of ALPN are from 1 to RANK_BEST: the name of the host goes first. */
            rank = alpn == 0 ? 0 : rank_sni(server, choice->sni, sni_length) * 2 * RANK_BEST;
            rank += rank == 0 ? 0 : alpn;
        }
        if (rank < best)
            continue;
        if (rank > best) {
            best = rank;
            set = (struct set){0};
        }
        set_add(&set, i);
    }
    *ret_set = set;
}

static void leave_out_tried(struct set *set, const struct choice *choice)
{
    for (unsigned i = 0; i < SET_WORDS; i++)
        set->words[i] &= ~choice->tried[i];
}

static void find_usable(const struct balancer *balancer, const struct set *named, struct set *ret_set)
{
    struct set tiers[2] = {{{0}}, {{0}}}; /* backups in the second */
    SET_FOR_EACH(i, named)
    {
        const struct proxy_server *server = &balancer->options.service->servers[i];
        if (server->weight > 0 && atomic_load(&balancer->options.servers[i].down) == 0)
            set_add(&tiers[server->backup], i);
    }
    *ret_set = tiers[set_empty(&tiers[0])];
}

/* ---- Whom a connection is like --------------------------------------------------------------------------------- */

/* The finalizer of SplitMix64: each bit of the result depends on each of value. */
static uint64_t mix(uint64_t value)
{
    value += UINT64_C(0x9e3779b97f4a7c15);
    value = (value ^ value >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    value = (value ^ value >> 27) * UINT64_C(0x94d049bb133111eb);
    return value ^ value >> 31;
}

/* The same in all workers, generations and hosts. Of the address without its port; IPv4 in IPv6 is IPv4. Clients on
 * Unix sockets have no address of their own, and are all alike. */
static uint64_t hash_client(const struct sockaddr *client)
{
    if (client != NULL && client->sa_family == AF_INET) {
        struct sockaddr_in v4;
        memcpy(&v4, client, sizeof v4);
        return mix(ntohl(v4.sin_addr.s_addr));
    }
    if (client != NULL && client->sa_family == AF_INET6) {
        struct sockaddr_in6 v6;
        uint32_t words[4];
        memcpy(&v6, client, sizeof v6);
        memcpy(words, &v6.sin6_addr, sizeof words);
        uint64_t low = (uint64_t)ntohl(words[2]) << 32 | ntohl(words[3]);
        if (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr))
            return mix(ntohl(words[3]));
        return mix(mix((uint64_t)ntohl(words[0]) << 32 | ntohl(words[1])) ^ low);
    }
    return mix(UINT64_MAX);
}

/* Of the name, not of the place in the list, so that a reload that adds or moves servers moves as few clients as it
 * may. Servers of the same name are told apart by which of them it is. */
static uint64_t identify(const struct proxy_service *service, unsigned index)
{
    const char *name = service->servers[index].name;
    uint64_t hash = UINT64_C(0xcbf29ce484222325); /* FNV-1a */
    for (const char *c = name; *c != '\0'; c++)
        hash = (hash ^ (unsigned char)*c) * UINT64_C(0x100000001b3);
    uint64_t same = 0;
    for (unsigned i = 0; i < index; i++)
        same += strcmp(service->servers[i].name, name) == 0;
    return mix(hash + same);
}

/* ---- Policies -------------------------------------------------------------------------------------------------- */

/* Smooth weighted round robin: all who take part gain their weight, and who has most pays for all. Each gets its share
 * in every cycle, and as evenly within it as weights allow: a a b a c a a for 5, 1, 1, not a a a a a b c. */
static unsigned pick_in_turn(const struct balancer *balancer, const struct set *among)
{
    unsigned best = PROXY_SERVERS_MAX;
    int64_t most = INT64_MIN;
    SET_FOR_EACH(i, among)
    {
        int64_t credit = balancer->here[i].credit + balancer->options.service->servers[i].weight;
        if (credit > most) {
            most = credit;
            best = i;
        }
    }
    return best;
}

static void pay_for_turn(struct balancer *balancer, const struct set *among, unsigned server)
{
    SET_FOR_EACH(i, among)
    {
        int64_t weight = balancer->options.service->servers[i].weight;
        balancer->here[i].credit += weight;
        balancer->here[server].credit -= weight;
    }
}

/* Those with fewest connections for their weight. All of them when nobody is busy: they go in turn then. */
static void find_least_connected(const struct balancer *balancer, const struct set *among, struct set *ret_set)
{
    struct set set = {0};
    uint64_t least = 0, its_weight = 0;
    SET_FOR_EACH(i, among)
    {
        uint64_t connections = atomic_load_explicit(&balancer->options.servers[i].connections, memory_order_relaxed);
        uint64_t weight = balancer->options.service->servers[i].weight;
        uint64_t mine = connections * its_weight, best = least * weight; /* both multiplied by both weights */
        if (its_weight > 0 && mine > best)
            continue;
        if (its_weight == 0 || mine < best) {
            set = (struct set){0};
            least = connections;
            its_weight = weight;
        }
        set_add(&set, i);
    }
    *ret_set = set;
}

/* The place of the hash on a line on which each usable server has as much room as it has weight; who is not open sends
 * on to the next who is. */
static unsigned pick_by_source(const struct balancer *balancer, const struct set *usable, const struct set *open,
                               uint64_t hash)
{
    uint64_t total = 0;
    SET_FOR_EACH(i, usable)
    {
        total += balancer->options.service->servers[i].weight;
    }
    uint64_t place = (hash >> 32) * total >> 32; /* as even as the remainder; at most 256 times 256 */
    unsigned server = set_next(usable, 0);
    while (place >= balancer->options.service->servers[server].weight) {
        place -= balancer->options.service->servers[server].weight;
        server = set_next(usable, server + 1);
    }
    unsigned next = set_next(open, server);
    return next < PROXY_SERVERS_MAX ? next : set_next(open, 0);
}

/* Rendezvous hashing: client and server together give each server a number, the smallest wins. With u evenly in (0, 1),
 * -log(u)/weight is distributed exponentially at the rate of the weight, so that a server is first with a chance of
 * its weight out of all. Whoever leaves gives up only what it had, to the others by weight; more weight only attracts.
 * docs/design/2026-11-21-balancing.md has what else was considered. */
static unsigned pick_by_rendezvous(const struct balancer *balancer, const struct set *open, uint64_t hash)
{
    unsigned best = PROXY_SERVERS_MAX;
    double least = INFINITY;
    SET_FOR_EACH(i, open)
    {
        /* The upper 53 bits are what a double holds; the half keeps away from log(0). */
        double u = ((double)(mix(hash ^ balancer->here[i].identity) >> 11) + 0.5) * 0x1p-53;
        double number = -log(u) / balancer->options.service->servers[i].weight;
        if (number < least) {
            least = number;
            best = i;
        }
    }
    return best;
}

/* ---- Places ---------------------------------------------------------------------------------------------------- */

static void count(_Atomic uint32_t *own, int change)
{
    /* One writer: no locked instruction. */
    uint32_t now = atomic_load_explicit(own, memory_order_relaxed);
    atomic_store_explicit(own, now + (uint32_t)change, memory_order_relaxed);
}

/* Never more than max (0: no limit), however many workers try. The share is counted after it, and given back before: a
 * worker that is killed between the two leaves a place taken, rather than one too many to be had. */
static bool take_one(_Atomic uint32_t *all, _Atomic uint32_t *own, uint64_t max)
{
    uint32_t now = atomic_load(all);
    do {
        if (max > 0 && now >= max)
            return false;
    } while (!atomic_compare_exchange_weak(all, &now, now + 1));
    count(own, 1);
    return true;
}

static void give_one(_Atomic uint32_t *all, _Atomic uint32_t *own)
{
    count(own, -1);
    atomic_fetch_sub(all, 1);
}

static bool has_place(const struct balancer *balancer, unsigned server)
{
    uint64_t max = balancer->options.service->servers[server].max_connections;
    return max == 0 || atomic_load(&balancer->options.servers[server].connections) < max;
}

static bool claimed_before(const struct balancer *balancer, unsigned server, uint64_t ticket)
{
    const struct balancer_options *options = &balancer->options;
    if (atomic_load(&options->servers[server].claimed) == 0)
        return false;
    for (unsigned i = 0; i < options->worker_count; i++) {
        uint64_t claim = atomic_load(&options->claims[(size_t)i * balancer->count + server]);
        if (i != options->worker && claim != 0 && claim < ticket)
            return true;
    }
    return false;
}

/* ticket: of a waiter; 0: of nobody who waited, and all who do go first; 1: before all others. */
static int take_place(struct balancer *balancer, const struct set *usable, uint64_t hash, uint64_t ticket)
{
    const struct balancer_options *options = &balancer->options;
    struct set open = {0};
    SET_FOR_EACH(i, usable)
    {
        if (!has_place(balancer, i))
            continue;
        if (ticket == 0 ? atomic_load(&options->servers[i].claimed) == 0 : !claimed_before(balancer, i, ticket))
            set_add(&open, i);
    }
    while (!set_empty(&open)) {
        struct set least;
        const struct set *in_turn = NULL;
        unsigned server = PROXY_SERVERS_MAX;
        switch (options->service->balance) {
        case PROXY_BALANCE_ROUND_ROBIN:
            in_turn = &open;
            break;
        case PROXY_BALANCE_LEAST_CONNECTIONS:
            find_least_connected(balancer, &open, &least);
            in_turn = &least;
            break;
        case PROXY_BALANCE_SOURCE:
            server = pick_by_source(balancer, usable, &open, hash);
            break;
        case PROXY_BALANCE_CONSISTENT:
            server = pick_by_rendezvous(balancer, &open, hash);
            break;
        }
        if (in_turn != NULL)
            server = pick_in_turn(balancer, in_turn);
        if (take_one(&options->servers[server].connections, &options->own[server].connections,
                     options->service->servers[server].max_connections)) {
            if (in_turn != NULL)
                pay_for_turn(balancer, in_turn, server);
            return (int)server;
        }
        set_remove(&open, server); /* another worker was faster */
    }
    return -EAGAIN;
}

int balancer_take(struct balancer *balancer, const struct choice *choice)
{
    struct set named, usable;
    find_named(balancer, choice, &named);
    if (set_empty(&named))
        return -ENOENT;
    leave_out_tried(&named, choice);
    find_usable(balancer, &named, &usable);
    if (set_empty(&usable))
        return -EHOSTUNREACH;
    return take_place(balancer, &usable, hash_client(choice->client), 0);
}

/* ---- Waking ---------------------------------------------------------------------------------------------------- */

/* Cannot fail: the counter, which would have to be full, has 64 bits. */
static void ring(int fd)
{
    uint64_t one = 1;
    ssize_t r = write(fd, &one, sizeof one);
    (void)r;
}

static void look_again(struct balancer *balancer)
{
    if (!balancer->again)
        ring(balancer->again_fd);
    balancer->again = true;
}

void balancer_give_back(struct balancer *balancer, unsigned server)
{
    const struct balancer_options *options = &balancer->options;
    give_one(&options->servers[server].connections, &options->own[server].connections);
    if (atomic_load(&options->servers[server].claimed) == 0)
        return;
    uint64_t mine = atomic_load(&balancer->claims[server]);
    if (mine != 0 && !claimed_before(balancer, server, mine))
        look_again(balancer);
    else
        ring(options->freed_fd);
}

/* Make known for which servers this worker's waiters wait, and wake who is no longer held back. */
static void publish_claims(struct balancer *balancer)
{
    const struct balancer_options *options = &balancer->options;
    uint64_t first[PROXY_SERVERS_MAX] = {0};
    if (balancer->serving)
        return;
    LIST_FOR_EACH(link, &balancer->queues)
    {
        struct queue *queue = LIST_OBJECT(link, struct queue, link);
        uint64_t ticket = LIST_OBJECT(queue->waiters.next, struct waiter, link)->ticket;
        struct set usable;
        find_usable(balancer, &queue->servers, &usable);
        SET_FOR_EACH(i, &usable)
        {
            if (first[i] == 0 || ticket < first[i])
                first[i] = ticket;
        }
    }
    bool wake = false;
    for (unsigned i = 0; i < balancer->count; i++) {
        _Atomic uint32_t *claimed = &options->servers[i].claimed;
        uint64_t before = atomic_load_explicit(&balancer->claims[i], memory_order_relaxed);
        if (before == first[i])
            continue;
        /* A worker that is killed between the two is counted for ever rather than missed: who does not wait then waits
         * first, and finds that nobody goes before him. */
        if (before == 0)
            atomic_fetch_add(claimed, 1);
        atomic_store(&balancer->claims[i], first[i]);
        if (first[i] == 0)
            atomic_fetch_sub(claimed, 1);
        bool held_others_back = before != 0 && (first[i] == 0 || first[i] > before);
        if (held_others_back && atomic_load(claimed) > (first[i] != 0) && has_place(balancer, i))
            wake = true;
    }
    if (wake)
        ring(options->freed_fd);
}

/* ---- Waiting --------------------------------------------------------------------------------------------------- */

static struct waiter *first_waiter(const struct queue *queue)
{
    return LIST_OBJECT(queue->waiters.next, struct waiter, link);
}

/* The queue whose first waiter is the first of all, but for those that were refused. */
static struct queue *next_queue(const struct balancer *balancer)
{
    struct queue *next = NULL;
    LIST_FOR_EACH(link, &balancer->queues)
    {
        struct queue *queue = LIST_OBJECT(link, struct queue, link);
        if (!queue->blocked && (next == NULL || first_waiter(queue)->ticket < first_waiter(next)->ticket))
            next = queue;
    }
    return next;
}

static void leave_queue(struct balancer *balancer, struct waiter *waiter)
{
    struct queue *queue = waiter->queue;
    list_remove(&waiter->link);
    waiter->queue = NULL;
    give_one(&balancer->options.service_state->waiting, &balancer->options.own_service->waiting);
    if (list_empty(&queue->waiters)) {
        list_remove(&queue->link);
        free(queue);
    }
}

/* Give places to those whose turn it is. Whoever it calls may change all queues. */
static void serve_queues(struct balancer *balancer, bool impatient)
{
    struct queue *queue;
    unsigned called = 0;
    LIST_FOR_EACH(link, &balancer->queues)
    {
        LIST_OBJECT(link, struct queue, link)->blocked = false;
    }
    balancer->serving = true;
    while ((queue = next_queue(balancer)) != NULL) {
        if (called++ == READY_PER_TURN) {
            look_again(balancer);
            break;
        }
        struct waiter *waiter = first_waiter(queue);
        struct set usable;
        int server = -EHOSTUNREACH;
        find_usable(balancer, &queue->servers, &usable);
        if (!set_empty(&usable))
            server = take_place(balancer, &usable, waiter->hash, impatient ? 1 : waiter->ticket);
        if (server == -EAGAIN) {
            queue->blocked = true;
            continue;
        }
        leave_queue(balancer, waiter);
        waiter->ready(waiter->context, server);
    }
    balancer->serving = false;
    publish_claims(balancer);
}

static void on_again(void *context)
{
    struct balancer *balancer = context;
    balancer->again = false;
    serve_queues(balancer, false);
}

static void on_freed(void *context)
{
    serve_queues(context, false);
}

static void on_patience_over(void *context)
{
    struct balancer *balancer = context;
    if (list_empty(&balancer->queues)) {
        sluice_watch_free(balancer->freed_watch);
        balancer->freed_watch = NULL;
        return;
    }
    sluice_timer_start(balancer->options.loop, &balancer->patience, PATIENCE_MS, on_patience_over, balancer);
    serve_queues(balancer, true);
}

/* Watched from the first waiter on until nobody waited for a while, so that who has none is not woken. */
static int watch_freed(struct balancer *balancer)
{
    if (balancer->freed_watch != NULL)
        return 0;
    int r = sluice_loop_watch(balancer->options.loop, balancer->options.freed_fd, on_freed, balancer,
                              &balancer->freed_watch);
    if (r == 0)
        sluice_timer_start(balancer->options.loop, &balancer->patience, PATIENCE_MS, on_patience_over, balancer);
    return r;
}

static int find_queue(struct balancer *balancer, const struct set *servers, struct queue **ret_queue)
{
    LIST_FOR_EACH(link, &balancer->queues)
    {
        struct queue *queue = LIST_OBJECT(link, struct queue, link);
        if (memcmp(&queue->servers, servers, sizeof *servers) == 0) {
            *ret_queue = queue;
            return 0;
        }
    }
    struct queue *queue = calloc(1, sizeof *queue);
    if (queue == NULL)
        return -ENOMEM;
    queue->servers = *servers;
    list_init(&queue->waiters);
    list_add_last(&balancer->queues, &queue->link);
    *ret_queue = queue;
    return 0;
}

int balancer_wait(struct balancer *balancer, struct waiter *waiter, const struct choice *choice)
{
    const struct balancer_options *options = &balancer->options;
    struct set named;
    struct queue *queue = NULL;
    find_named(balancer, choice, &named);
    leave_out_tried(&named, choice);
    int r = watch_freed(balancer);
    if (r < 0)
        return r;
    if (!take_one(&options->service_state->waiting, &options->own_service->waiting, options->service->max_queue))
        return -EUSERS;
    r = find_queue(balancer, &named, &queue);
    if (r < 0) {
        give_one(&options->service_state->waiting, &options->own_service->waiting);
        return r;
    }

    struct list *before = &queue->waiters;
    if (waiter->ticket == 0) {
        waiter->ticket = atomic_fetch_add(&options->service_state->tickets, 1) + 1; /* higher than all that wait here */
    } else {
        before = queue->waiters.next;
        while (before != &queue->waiters && LIST_OBJECT(before, struct waiter, link)->ticket < waiter->ticket)
            before = before->next;
    }
    list_init(&waiter->link);
    list_add_last(before, &waiter->link); /* in a ring, before a link is last seen from there */
    waiter->queue = queue;
    waiter->hash = hash_client(choice->client);
    if (first_waiter(queue) != waiter)
        return 0; /* those before it have been refused, or the loop is about to look */
    queue->blocked = false;
    publish_claims(balancer);
    struct set usable;
    find_usable(balancer, &named, &usable);
    bool hope = set_empty(&usable); /* to be told that there is none */
    SET_FOR_EACH(i, &usable)
    {
        hope = hope || has_place(balancer, i);
    }
    if (hope)
        look_again(balancer);
    return 0;
}

void balancer_stop_waiting(struct balancer *balancer, struct waiter *waiter)
{
    if (waiter->queue == NULL)
        return;
    bool first = first_waiter(waiter->queue) == waiter;
    leave_queue(balancer, waiter);
    if (first)
        publish_claims(balancer);
}

/* ---- Life ------------------------------------------------------------------------------------------------------ */

int balancer_new(const struct balancer_options *options, struct balancer **ret_balancer)
{
    unsigned servers = options->service->server_count;
    struct balancer *balancer = calloc(1, sizeof *balancer + servers * sizeof balancer->here[0]);
    if (balancer == NULL)
        return -ENOMEM;
    balancer->options = *options;
    balancer->count = servers;
    balancer->claims = options->claims + (size_t)options->worker * servers;
    list_init(&balancer->queues);
    struct set all = {0};
    for (unsigned i = 0; i < servers; i++) {
        balancer->here[i].identity = identify(options->service, i);
        if (options->service->servers[i].weight > 0)
            set_add(&all, i);
    }
    /* Each worker begins at another place of the cycle, so that the first connections do not all go to one server. */
    for (unsigned i = 0; i < options->worker && !set_empty(&all); i++)
        pay_for_turn(balancer, &all, pick_in_turn(balancer, &all));

    balancer->again_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    int r = balancer->again_fd < 0 ? -errno : 0;
    if (r == 0)
        r = sluice_loop_watch(options->loop, balancer->again_fd, on_again, balancer, &balancer->again_watch);
    if (r < 0) {
        close_fd(balancer->again_fd);
        free(balancer);
        return r;
    }
    *ret_balancer = balancer;
    return 0;
}

void balancer_free(struct balancer *balancer)
{
    if (balancer == NULL)
        return;
    sluice_timer_stop(balancer->options.loop, &balancer->patience);
    sluice_watch_free(balancer->freed_watch);
    sluice_watch_free(balancer->again_watch);
    close_fd(balancer->again_fd);
    free(balancer);
}

/* Not below zero, should the share have been counted wrongly by a worker that went mad. */
static void take_back(_Atomic uint32_t *all, _Atomic uint32_t *own)
{
    uint32_t share = atomic_exchange(own, 0), now = atomic_load(all);
    while (!atomic_compare_exchange_weak(all, &now, now > share ? now - share : 0)) {
    }
}

void balancer_take_back(const struct balancer_options *options)
{
    unsigned servers = options->service->server_count;
    take_back(&options->service_state->connections, &options->own_service->connections);
    take_back(&options->service_state->waiting, &options->own_service->waiting);
    for (unsigned i = 0; i < servers; i++) {
        take_back(&options->servers[i].connections, &options->own[i].connections);
        _Atomic uint32_t claim = atomic_exchange(&options->claims[(size_t)options->worker * servers + i], 0) != 0;
        take_back(&options->servers[i].claimed, &claim);
    }
    ring(options->freed_fd);
}
