/* SPDX-License-Identifier: MIT */
#include "proxy/session.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "proxy/client_hello.h"
#include "proxy/mirror.h"
#include "proxy/sockets.h"
#include "service/log.h"
#include "service/proxy_header.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* Until the client's bytes may flow to a server. */
struct approach {
    struct session *session;
    struct sluice_connect *connect;
    int fd;           /* being connected; -1: none */
    unsigned retries; /* left */
    uint64_t connect_began_us;
    uint64_t queue_ends; /* ms; 0: has not waited */
    struct waiter waiter;
    struct list held; /* in service_at_work.held */
    struct choice choice;
    struct client_hello hello;
    struct proxy_header header;         /* of the client's, if it came with one */
    bool has_header, has_hello, closed; /* closed: the client has ended its stream already */
    char *data;                         /* what came and belongs to the stream */
    size_t length, room;
};

static void on_timeout(void *context);
static void proceed(struct session *session);
static void choose_server(struct session *session);

static struct sluice_loop *loop_of(const struct session *session)
{
    return session->service->worker->loop;
}

/* ---- The end of a connection ----------------------------------------------------------------------------------- */

/* Who waits for a place of the service's counts as waiting, like those who wait for one of a server's (balance.c). */
static void hold(struct session *session)
{
    struct service_at_work *service = session->service;
    list_add_last(&service->held, &session->approach->held);
    atomic_fetch_add_explicit(&service->shared->state->waiting, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&service->balancing.own_service->waiting, 1, memory_order_relaxed);
    proxy_worker_holds(service->worker);
}

static void stop_holding(struct session *session)
{
    struct service_at_work *service = session->service;
    if (list_empty(&session->approach->held))
        return;
    list_remove(&session->approach->held);
    atomic_fetch_sub_explicit(&service->shared->state->waiting, 1, memory_order_relaxed);
    atomic_fetch_sub_explicit(&service->balancing.own_service->waiting, 1, memory_order_relaxed);
}

static void approach_free(struct session *session)
{
    struct approach *approach = session->approach;
    if (approach == NULL)
        return;
    sluice_connect_cancel(approach->connect);
    close_fd(approach->fd);
    balancer_stop_waiting(session->service->balancer, &approach->waiter);
    stop_holding(session);
    session->approach = NULL;
    free(approach->data);
    free(approach);
}

static void give_back_server(struct session *session)
{
    if (session->server_index >= 0)
        balancer_give_back(session->service->balancer, (unsigned)session->server_index);
    session->server_index = -1;
}

static void give_back_place(struct service_at_work *service)
{
    atomic_fetch_sub_explicit(&service->shared->state->connections, 1, memory_order_relaxed);
    atomic_fetch_sub_explicit(&service->balancing.own_service->connections, 1, memory_order_relaxed);
}

static void write_lines(struct session *session, enum proxy_end why);

void session_close(struct session *session, enum proxy_end why, bool reset)
{
    struct service_at_work *service = session->service;
    struct proxy_worker *worker = service->worker;
    session->state = CLOSED;
    sluice_timer_stop(worker->loop, &session->timer);
    relay_stop(&session->up, reset);
    relay_stop(&session->down, reset);
    approach_free(session);
    proxy_totals_ended(service->totals, why);
    write_lines(session, why);
    socket_close(worker->loop, session->client, reset);
    socket_close(worker->loop, session->server, reset);
    give_back_server(session);
    if (session->has_place)
        give_back_place(service);
    list_remove(&session->all);
    free(session->account);
    free(session);
    worker->count--;
    proxy_worker_lost(worker, service);
}

/* ---- Relaying -------------------------------------------------------------------------------------------------- */

static bool half_closed(const struct session *session)
{
    return session->up.state == RELAY_ENDED || session->down.state == RELAY_ENDED;
}

/* 0: no limit. */
static unsigned patience(const struct session *session)
{
    const struct proxy_service *service = session->service->service;
    unsigned idle = service->idle_timeout, half = service->half_close_timeout;
    if (!half_closed(session) || half == 0)
        return idle;
    return idle == 0 || half < idle ? half : idle;
}

static void watch_silence(struct session *session)
{
    unsigned limit = patience(session);
    if (limit == 0)
        sluice_timer_stop(loop_of(session), &session->timer);
    else
        sluice_timer_start(loop_of(session), &session->timer, limit, on_timeout, session);
}

bool session_half_closed(struct session *session, struct relay *relay)
{
    struct relay *other = relay_opposite(relay);
    if (!relay_is_over(other)) {
        session->heard = sluice_loop_now(loop_of(session));
        watch_silence(session);
        return true;
    }
    if (other->broken) /* it ended its own stream, and took no more of the other's: so does this one now */
        session_close(session, other->upward ? PROXY_END_SERVER_RESET : PROXY_END_CLIENT_RESET, false);
    else
        session_close(session, PROXY_END_DONE, false);
    return false;
}

bool session_sink_failed(struct session *session, struct relay *relay)
{
    struct relay *other = relay_opposite(relay);
    /* What the broken side had sent before may still lie in its socket: it is passed on, and then the reset. */
    if (!relay_is_over(other)) {
        session->heard = sluice_loop_now(loop_of(session));
        watch_silence(session);
        return true;
    }
    session_sink_lost(session, relay);
    return false;
}

void session_sink_lost(struct session *session, struct relay *relay)
{
    session_close(session, relay->upward ? PROXY_END_SERVER_RESET : PROXY_END_CLIENT_RESET, true);
}

void session_source_failed(struct session *session, struct relay *relay)
{
    session_close(session, relay->upward ? PROXY_END_CLIENT_RESET : PROXY_END_SERVER_RESET, true);
}

void session_count(struct session *session, const struct relay *relay, const struct sluice_receipt *receipt)
{
    enum proxy_direction direction = relay_direction(relay);
    session->heard = sluice_loop_now(loop_of(session));
    proxy_totals_moved(session->service->totals, direction, receipt);
    if (session->account != NULL)
        sluice_receipt_add(&session->account->receipts[direction], receipt);
}

void session_count_received(struct session *session, const struct relay *relay, size_t bytes)
{
    enum proxy_direction direction = relay_direction(relay);
    session->service->totals->receipts[direction].copy_bytes += bytes;
    if (session->account != NULL)
        session->account->receipts[direction].copy_bytes += bytes;
}

/* The PROXY header for the server, which says who the client is. Returns its length. */
static size_t make_header(struct session *session, enum proxy_header_version version,
                          char header[PROXY_HEADER_WRITE_MAX])
{
    const struct approach *approach = session->approach;
    const int client = sluice_end_fd(session->client);
    struct sockaddr_storage own = {.ss_family = AF_UNSPEC}, peer = {.ss_family = AF_UNSPEC};
    socklen_t own_size = sizeof own, peer_size = sizeof peer;
    if (approach->has_header && !approach->header.local)
        return proxy_header_write(
            version, (const struct sockaddr *)&approach->header.source, sizeof approach->header.source,
            (const struct sockaddr *)&approach->header.destination, sizeof approach->header.destination, header);
    getsockname(client, (struct sockaddr *)&own, &own_size);
    if (session->peer.any.sa_family != AF_UNIX)
        return proxy_header_write(version, &session->peer.any, sizeof session->peer, (struct sockaddr *)&own, own_size,
                                  header);
    /* For which session.peer has no room. */
    getpeername(client, (struct sockaddr *)&peer, &peer_size);
    return proxy_header_write(version, (struct sockaddr *)&peer, peer_size, (struct sockaddr *)&own, own_size, header);
}

static void begin_relaying(struct session *session)
{
    const struct proxy_service *given = session->service->service;
    struct approach *approach = session->approach;
    char header[PROXY_HEADER_WRITE_MAX];
    size_t header_length = 0;
    if (given->send_proxy != PROXY_HEADER_NONE)
        header_length = make_header(session, given->send_proxy, header);
    session->state = RELAYING;
    session->heard = sluice_loop_now(loop_of(session));
    watch_silence(session);
    if (given->mirrors && given->mirror_what & PROXY_MIRROR_REQUESTS)
        session->up.mirror = mirror_open(&session->up);
    if (given->mirrors && given->mirror_what & PROXY_MIRROR_RESPONSES)
        session->down.mirror = mirror_open(&session->down);
    /* Any of these may end the connection: what is still needed is taken from it first. */
    char *early = approach->data;
    size_t early_length = approach->length;
    approach->data = NULL;
    approach_free(session);
    if (relay_start(&session->down, NULL, 0, NULL, 0))
        relay_start(&session->up, header, header_length, early, early_length);
    free(early);
}

/* ---- Connecting ------------------------------------------------------------------------------------------------ */

static void connect_failed(struct session *session)
{
    struct approach *approach = session->approach;
    unsigned server = (unsigned)session->server_index;
    approach->fd = close_fd(approach->fd);
    atomic_fetch_add_explicit(&session->service->shared->servers[server].failures, 1, memory_order_relaxed);
    approach->choice.tried[server / 64] |= UINT64_C(1) << server % 64;
    give_back_server(session);
    if (approach->retries == 0) {
        session_close(session, PROXY_END_CONNECT_FAILED, true);
        return;
    }
    approach->retries--;
    session->service->totals->retries++;
    choose_server(session);
}

static void connected(struct session *session)
{
    struct approach *approach = session->approach;
    struct server_state *server = &session->service->shared->servers[session->server_index];
    durations_enter(&session->service->totals->connecting, clock_us(CLOCK_MONOTONIC) - approach->connect_began_us, 1);
    if (sluice_end_open(approach->fd, SLUICE_END_OWN_FD, &session->server) < 0) {
        session_close(session, PROXY_END_ERROR, true);
        return;
    }
    approach->fd = -1;
    atomic_fetch_add_explicit(&server->total, 1, memory_order_relaxed);
    begin_relaying(session);
}

static void on_connected(void *context, int result)
{
    struct session *session = context;
    session->approach->connect = NULL;
    if (result < 0)
        connect_failed(session);
    else
        connected(session);
}

static void connect_to(struct session *session, unsigned index)
{
    struct service_at_work *service = session->service;
    struct approach *approach = session->approach;
    const struct address *address = &service->service->servers[index].address;
    session->server_index = (int16_t)index;
    session->state = CONNECTING;
    approach->fd = socket_make(service->service, address);
    if (approach->fd < 0) {
        session_close(session, PROXY_END_ERROR, true);
        return;
    }
    approach->connect_began_us = clock_us(CLOCK_MONOTONIC);
    int result = sluice_loop_connect(loop_of(session), approach->fd, &address->any, address->length, on_connected,
                                     session, &approach->connect);
    if (result == 0)
        sluice_timer_start(loop_of(session), &session->timer, service->service->connect_timeout, on_timeout, session);
    else if (result < 0)
        connect_failed(session);
    else
        connected(session);
}

/* ---- Choosing -------------------------------------------------------------------------------------------------- */

static void on_place(void *context, int server)
{
    struct session *session = context;
    if (server >= 0)
        connect_to(session, (unsigned)server);
    else
        session_close(session, PROXY_END_NO_SERVER, true);
}

/* Waiting has one limit, however often it is begun. */
static void become_queued(struct session *session)
{
    uint64_t now = sluice_loop_now(loop_of(session)), *end = &session->approach->queue_ends;
    if (*end == 0)
        *end = now + session->service->service->queue_timeout;
    session->state = QUEUED;
    sluice_timer_start(loop_of(session), &session->timer, *end > now ? (unsigned)(*end - now) : 1, on_timeout, session);
}

static void choose_server(struct session *session)
{
    struct service_at_work *service = session->service;
    struct approach *approach = session->approach;
    int server = balancer_take(service->balancer, &approach->choice);
    if (server >= 0) {
        connect_to(session, (unsigned)server);
        return;
    }
    if (server != -EAGAIN) {
        bool tried = approach->retries < service->service->retries;
        session_close(session, tried ? PROXY_END_CONNECT_FAILED : PROXY_END_NO_SERVER, true);
        return;
    }
    approach->waiter.ready = on_place;
    approach->waiter.context = session;
    int result = balancer_wait(service->balancer, &approach->waiter, &approach->choice);
    if (result < 0)
        session_close(session, result == -EUSERS ? PROXY_END_QUEUE_FULL : PROXY_END_ERROR, true);
    else
        become_queued(session);
}

/* One of the service's places, of all workers together. */
static bool take_place(struct session *session)
{
    const uint64_t most = session->service->service->max_connections;
    _Atomic uint32_t *count = &session->service->shared->state->connections;
    uint32_t now = atomic_load_explicit(count, memory_order_relaxed);
    do {
        if (most > 0 && now >= most)
            return false;
    } while (!atomic_compare_exchange_weak_explicit(count, &now, now + 1, memory_order_relaxed, memory_order_relaxed));
    atomic_fetch_add_explicit(&session->service->balancing.own_service->connections, 1, memory_order_relaxed);
    session->has_place = true;
    return true;
}

bool session_let_in(struct session *session)
{
    if (!take_place(session))
        return false;
    stop_holding(session);
    choose_server(session);
    return true;
}

struct session *session_held(struct list *link)
{
    return LIST_OBJECT(link, struct approach, held)->session;
}

static void ask_for_place(struct session *session)
{
    /* Not past those who wait already, though a place has just become free: it is theirs. */
    if (list_empty(&session->service->held) && take_place(session)) {
        choose_server(session);
        return;
    }
    const uint64_t most = session->service->service->max_queue;
    if (most > 0 && atomic_load_explicit(&session->service->shared->state->waiting, memory_order_relaxed) >= most) {
        session_close(session, PROXY_END_QUEUE_FULL, true);
        return;
    }
    hold(session);
    become_queued(session);
}

/* ---- What the client says first -------------------------------------------------------------------------------- */

static void refuse(struct session *session, enum proxy_end end, ssize_t error, const char *why)
{
    if (session->account != NULL)
        session->account->why = error == -EMSGSIZE ? "it is longer than hello-max" : why;
    session_close(session, end, true);
}

static bool take_header(struct session *session)
{
    struct approach *approach = session->approach;
    const char *why = NULL;
    ssize_t used = proxy_header_parse(approach->data, approach->length, session->service->service->hello_max,
                                      &approach->header, &why);
    if (used == -EAGAIN)
        return false;
    if (used < 0) {
        refuse(session, PROXY_END_HEADER_REFUSED, used, why);
        return false;
    }
    approach->has_header = true;
    approach->length -= (size_t)used;
    memmove(approach->data, approach->data + used, approach->length);
    if (!approach->header.local) /* from here on it is the client; of a Unix address it is only the beginning */
        memcpy(&session->peer, &approach->header.source, sizeof session->peer);
    return true;
}

static bool take_hello(struct session *session)
{
    struct approach *approach = session->approach;
    const char *why = NULL;
    int result = client_hello_parse(approach->data, approach->length, session->service->service->hello_max,
                                    &approach->hello, &why);
    if (result == 0)
        return false;
    if (result < 0) {
        refuse(session, PROXY_END_HELLO_REFUSED, result, why);
        return false;
    }
    approach->has_hello = true;
    approach->choice.sni = approach->hello.sni[0] != '\0' ? approach->hello.sni : NULL;
    approach->choice.alpn = approach->hello.alpn_length > 0 ? approach->hello.alpn : NULL;
    approach->choice.alpn_length = approach->hello.alpn_length;
    return true;
}

/* In GREETING: look at what has come, and go on when it is enough. */
static void proceed(struct session *session)
{
    struct approach *approach = session->approach;
    const struct proxy_service *service = session->service->service;
    if (service->accept_proxy && !approach->has_header && !take_header(session))
        return;
    if (service->routes_by_name && !approach->has_hello && !take_hello(session))
        return;
    ask_for_place(session);
}

static int keep(struct approach *approach, const char *data, size_t length)
{
    if (approach->length + length > approach->room) {
        size_t room = approach->length + length + 1024;
        char *larger = realloc(approach->data, room);
        if (larger == NULL)
            return -ENOMEM;
        approach->data = larger;
        approach->room = room;
    }
    memcpy(approach->data + approach->length, data, length);
    approach->length += length;
    return 0;
}

static void on_greeting(void *context, const char *data, ssize_t length)
{
    struct session *session = context;
    /* A client that has closed its side may still want an answer; but one that has not said enough gets none. */
    if (length < 0 || (length == 0 && session->state == GREETING))
        session_close(session, PROXY_END_CLIENT_LEFT, length < 0);
    else if (length > 0 && keep(session->approach, data, (size_t)length) < 0)
        session_close(session, PROXY_END_ERROR, true);
    else if (session->state == GREETING)
        proceed(session);
    else if (session->approach->length >= RELAY_MESSAGE_MAX)
        sluice_loop_receive_pause(loop_of(session), session->client); /* until a server takes it */
}

void session_open(struct service_at_work *service, int fd, const struct sockaddr *address, unsigned address_length)
{
    struct proxy_worker *worker = service->worker;
    const struct proxy_service *given = service->service;
    struct session *session = calloc(1, sizeof *session);
    struct approach *approach = calloc(1, sizeof *approach);
    if (session == NULL || approach == NULL || sluice_end_open(fd, SLUICE_END_OWN_FD, &session->client) < 0) {
        service->totals->accept_failures++;
        free(session);
        free(approach);
        close_fd(fd);
        return;
    }
    session->service = service;
    session->approach = approach;
    session->state = GREETING;
    session->server_index = -1;
    session->began = sluice_loop_now(worker->loop);
    session->up = (struct relay){.session = session, .upward = true};
    session->down = (struct relay){.session = session};
    memcpy(&session->peer, address, address_length < sizeof session->peer ? address_length : sizeof session->peer);
    if (worker->options->log != NULL || worker->options->receipt_log != NULL)
        session->account = calloc(1, sizeof *session->account);
    approach->session = session;
    approach->fd = -1;
    approach->retries = given->retries;
    approach->choice.client = &session->peer.any;
    list_init(&approach->waiter.link);
    list_init(&approach->held);
    list_init(&session->all);
    list_add_last(&worker->sessions, &session->all);
    worker->count++;
    service->totals->connections++;
    service->totals->open++;
    if (sluice_loop_receive(worker->loop, session->client, RELAY_MESSAGE_MAX, on_greeting, session) < 0) {
        session_close(session, PROXY_END_ERROR, true);
        return;
    }
    if (given->accept_proxy || given->routes_by_name) {
        sluice_timer_start(worker->loop, &session->timer, given->hello_timeout, on_timeout, session);
        return;
    }
    ask_for_place(session);
}

/* ---- Time ------------------------------------------------------------------------------------------------------ */

/* Nothing was moved for as long as it may be, or only the timer says so: messages do not touch it. */
static void look_for_silence(struct session *session)
{
    uint64_t now = sluice_loop_now(loop_of(session));
    unsigned limit = patience(session);
    bool up = relay_progressed(&session->up), down = relay_progressed(&session->down);
    if (up || down)
        session->heard = now;
    if (now - session->heard < limit)
        sluice_timer_start(loop_of(session), &session->timer, limit - (unsigned)(now - session->heard), on_timeout,
                           session);
    else /* a reset only where bytes are dropped that nobody takes */
        session_close(session, half_closed(session) ? PROXY_END_HALF_CLOSE_TIMEOUT : PROXY_END_IDLE_TIMEOUT,
                      session->up.transfer != NULL || session->down.transfer != NULL || session->up.broken ||
                          session->down.broken);
}

static void on_timeout(void *context)
{
    struct session *session = context;
    switch ((enum session_state)session->state) {
    case GREETING:
        session_close(session, PROXY_END_HELLO_TIMEOUT, true);
        break;
    case QUEUED:
        session_close(session, PROXY_END_QUEUE_TIMEOUT, true);
        break;
    case CONNECTING:
        sluice_connect_cancel(session->approach->connect);
        session->approach->connect = NULL;
        connect_failed(session);
        break;
    case RELAYING:
        look_for_silence(session);
        break;
    case CLOSED:
        break;
    }
}

/* ---- Lines ----------------------------------------------------------------------------------------------------- */

static void write_routes(const struct sluice_receipt *sum, char *text, size_t size)
{
    size_t length = 0;
    text[0] = '\0';
    for (unsigned i = 0; i < SLUICE_ROUTE_COUNT && length < size; i++)
        if (sum->routes[i].bytes > 0)
            length +=
                (size_t)snprintf(text + length, size - length, "%s%s:%llu", length > 0 ? "," : "",
                                 sluice_route_name((enum sluice_route)i), (unsigned long long)sum->routes[i].bytes);
    if (length == 0)
        snprintf(text, size, "-");
}

static void write_log(struct session *session, const char *client, const char *server, enum proxy_end why)
{
    struct proxy_worker *worker = session->service->worker;
    const struct sluice_receipt *up = &session->account->receipts[0], *down = &session->account->receipts[1];
    struct sluice_receipt sum = *up;
    const char *because = session->account->why;
    char line[1024], routes[256];
    time_t now = time(NULL);
    if (worker->log_second != now) {
        worker->log_second = now;
        log_time_text(LOG_COMBINED, now, worker->log_time);
    }
    sluice_receipt_add(&sum, down);
    write_routes(&sum, routes, sizeof routes);
    uint64_t lasted = sluice_loop_now(worker->loop) - session->began;
    int length =
        snprintf(line, sizeof line,
                 "%s [%s] %s/%s %s %llu.%03llus up=%llu down=%llu copied=%llu unknown=%llu "
                 "routes=%s%s%s%s",
                 client, worker->log_time, session->service->service->name, server, proxy_end_name(why),
                 (unsigned long long)lasted / 1000, (unsigned long long)lasted % 1000, (unsigned long long)up->bytes,
                 (unsigned long long)down->bytes, (unsigned long long)sum.copied, (unsigned long long)sum.unknown,
                 routes, because != NULL ? " why=\"" : "", because != NULL ? because : "", because != NULL ? "\"" : "");
    log_line(worker->options->log, line, (size_t)length < sizeof line ? (size_t)length : sizeof line - 1);
}

static void write_receipt(struct session *session, const char *client, const char *server)
{
    static const char *const directions[2] = {"up", "down"};
    for (unsigned i = 0; i < 2; i++) {
        char text[512], line[768];
        sluice_receipt_format(&session->account->receipts[i], text, sizeof text);
        int length = snprintf(line, sizeof line, "receipt %s %s %s: %s", client, directions[i], server, text);
        log_line(session->service->worker->options->receipt_log, line,
                 (size_t)length < sizeof line ? (size_t)length : sizeof line - 1);
    }
}

static void write_lines(struct session *session, enum proxy_end why)
{
    const struct proxy_worker_options *options = session->service->worker->options;
    char client[ADDRESS_TEXT_MAX];
    const char *server = "-";
    if (session->account == NULL)
        return;
    address_format(&session->peer.any, sizeof session->peer, client, sizeof client);
    if (session->server_index >= 0)
        server = session->service->service->servers[session->server_index].name;
    if (options->log != NULL)
        write_log(session, client, server, why);
    if (options->receipt_log != NULL)
        write_receipt(session, client, server);
}
