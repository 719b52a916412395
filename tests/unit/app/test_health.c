/* SPDX-License-Identifier: MIT
 *
 * Health checks of real listeners on loopback, each served by a thread that answers as it was told. By both loops.
 */
#include "check.h"
#include "each_loop.h"
#include "proxy/health.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/un.h>
#include <unistd.h>

#define PEERS 24
#define REQUEST "GET /health HTTP/1.0\r\nHost: %.113s\r\nUser-Agent: sluice-proxy\r\nConnection: close\r\n\r\n"

enum manner { WAITS_FOR_END, CLOSES, RESETS, HANGS };

/* A server, and what it saw of its last connection. */
struct peer {
    int listener;
    pthread_t thread;
    const char *answer;   /* to a request; NULL: none */
    size_t padding;       /* bytes after it */
    bool bytewise, flaps; /* flaps: answers two requests with 500, the third with 200 */
    enum manner manner;
    bool greets;           /* sends something before it was asked */
    _Atomic int heard_end; /* 0: an orderly one; a negative errno; 1: none yet */
    _Atomic unsigned accepted;
    _Atomic uint64_t accepted_at[8];
    /* Under the lock: */
    char request[512];
    int connection; /* being served, or -1 */
    bool stopping;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct peer peers[PEERS];
static unsigned peer_count;

static struct proxy_service service;
static struct proxy_server servers[PEERS];
static char names[PEERS][ADDRESS_TEXT_MAX];
static struct server_state states[PEERS];
static struct health *health;
static struct sluice_loop *loop;
static int freed_fd;
static char said[16][512];
static unsigned said_count;

static uint64_t milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* ---- Servers --------------------------------------------------------------------------------------------------- */

/* Returns 0 or a negative errno. */
static int answer(struct peer *peer, int fd)
{
    const char *text = peer->answer;
    if (peer->flaps)
        text = peer->accepted % 3 == 1 ? "HTTP/1.1 200 OK\r\n\r\n" : "HTTP/1.1 500 No\r\n\r\n";
    size_t length = strlen(text);
    for (size_t at = 0; at < length;) {
        size_t some = peer->bytewise ? 1 : length;
        if (send(fd, text + at, some, MSG_NOSIGNAL) < 0)
            return -errno;
        at += some;
        if (peer->bytewise)
            usleep(500);
    }
    char block[4096] = {0};
    for (size_t left = peer->padding; left > 0;) {
        ssize_t n = send(fd, block, left < sizeof block ? left : sizeof block, MSG_NOSIGNAL);
        if (n < 0)
            return -errno;
        left -= (size_t)n;
    }
    return 0;
}

static void serve(struct peer *peer, int fd)
{
    char text[512];
    size_t length = 0;
    ssize_t n = 1;
    if (peer->greets && send(fd, "220 ready\r\n", 11, MSG_NOSIGNAL) < 0)
        return;
    while (length < sizeof text - 1 && (length == 0 || memmem(text, length, "\r\n\r\n", 4) == NULL) &&
           (n = read(fd, text + length, sizeof text - 1 - length)) > 0)
        length += (size_t)n;
    text[length] = '\0';
    pthread_mutex_lock(&lock);
    memcpy(peer->request, text, length + 1);
    pthread_mutex_unlock(&lock);
    int result = n > 0 && peer->answer != NULL ? answer(peer, fd) : 0;
    if (peer->manner == WAITS_FOR_END && n > 0) {
        if (peer->answer != NULL)
            shutdown(fd, SHUT_WR);
        n = read(fd, text, sizeof text);
    }
    peer->heard_end = result < 0 ? result : n < 0 ? -errno : n == 0 ? 0 : 1;
}

/* stop_peer ends it, too: a check may be under way, and its loop at a stop. */
static void serve_until_stopped(struct peer *peer, int fd)
{
    pthread_mutex_lock(&lock);
    peer->connection = fd;
    if (peer->stopping)
        shutdown(fd, SHUT_RDWR);
    pthread_mutex_unlock(&lock);
    serve(peer, fd);
    pthread_mutex_lock(&lock);
    peer->connection = -1;
    pthread_mutex_unlock(&lock);
}

static const char *request_of(const struct peer *peer)
{
    static char text[sizeof peer->request];
    pthread_mutex_lock(&lock);
    memcpy(text, peer->request, sizeof text);
    pthread_mutex_unlock(&lock);
    return text;
}

static void *run_peer(void *context)
{
    struct peer *peer = context;
    int fd, held[64];
    unsigned held_count = 0;
    while ((fd = accept(peer->listener, NULL, NULL)) >= 0) {
        if (peer->accepted < 8)
            peer->accepted_at[peer->accepted] = milliseconds();
        peer->accepted++;
        if (peer->manner == HANGS && held_count < 64) {
            held[held_count++] = fd;
            continue;
        }
        serve_until_stopped(peer, fd);
        struct linger linger = {.l_onoff = 1};
        if (peer->manner == RESETS)
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
        close(fd);
    }
    while (held_count > 0)
        close(held[--held_count]);
    return NULL;
}

static int listen_at(struct address *address, int backlog)
{
    int fd = socket(address->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd < 0 || bind(fd, &address->any, address->length) < 0 || listen(fd, backlog) < 0)
        abort();
    return fd;
}

static struct proxy_server *add_server(void)
{
    struct proxy_server *server = &servers[service.server_count];
    *server = (struct proxy_server){.name = names[service.server_count], .weight = 1};
    server->address.v4 = (struct sockaddr_in){.sin_family = AF_INET};
    server->address.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    server->address.length = sizeof server->address.v4;
    service.server_count++;
    return server;
}

static void know_name(struct proxy_server *server)
{
    address_format(&server->address.any, server->address.length, server->name, ADDRESS_TEXT_MAX);
}

static void run(struct peer *peer)
{
    peer->heard_end = 1;
    peer->connection = -1;
    peer->stopping = false;
    if (pthread_create(&peer->thread, NULL, run_peer, peer) != 0)
        abort();
}

/* A server of the service, served as peer says. */
static struct peer *add_peer(const struct peer *wanted)
{
    struct proxy_server *server = add_server();
    struct peer *peer = &peers[peer_count++];
    *peer = *wanted;
    peer->listener = listen_at(&server->address, 16);
    address_of_socket(peer->listener, &server->address);
    know_name(server);
    run(peer);
    return peer;
}

static void stop_peer(struct peer *peer)
{
    if (peer->listener < 0)
        return;
    shutdown(peer->listener, SHUT_RDWR);
    pthread_mutex_lock(&lock);
    peer->stopping = true;
    if (peer->connection >= 0)
        shutdown(peer->connection, SHUT_RDWR);
    pthread_mutex_unlock(&lock);
    pthread_join(peer->thread, NULL);
    close(peer->listener);
    peer->listener = -1;
}

/* A port at which nobody listens. */
static void add_nobody(void)
{
    struct proxy_server *server = add_server();
    int fd = listen_at(&server->address, 1);
    address_of_socket(fd, &server->address);
    know_name(server);
    close(fd);
}

/* ---- The proxy's side ------------------------------------------------------------------------------------------ */

static void begin(enum proxy_check check)
{
    struct sluice_loop_options options = {.size = sizeof options, .kind = kind};
    memset(states, 0, sizeof states);
    peer_count = said_count = 0;
    service = (struct proxy_service){.name = "pg",
                                     .servers = servers,
                                     .check = check,
                                     .check_path = "/health",
                                     .check_interval = 100,
                                     .check_timeout = 2000,
                                     .rise = 2,
                                     .fall = 3};
    freed_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (freed_fd < 0 || sluice_loop_new(&options, &loop) < 0)
        abort();
}

static void on_say(void *context, const char *line)
{
    (void)context;
    if (said_count < 16)
        snprintf(said[said_count++], sizeof said[0], "%s", line);
}

static int start(void)
{
    struct health_options options = {
        .service = &service, .servers = states, .freed_fd = freed_fd, .loop = loop, .say = on_say};
    return health_start(&options, &health);
}

static void end(void)
{
    health_stop(health);
    health = NULL;
    sluice_loop_free(loop);
    for (unsigned i = 0; i < peer_count; i++)
        stop_peer(&peers[i]);
    close(freed_fd);
}

static bool (*until)(void);
static uint64_t run_deadline;
static struct sluice_timer run_timer;

static void on_turn(void *context)
{
    (void)context;
    if (until != NULL && until())
        sluice_loop_stop(loop);
}

static void on_deadline(void *context)
{
    (void)context;
    if (milliseconds() >= run_deadline)
        sluice_loop_stop(loop);
    else
        sluice_timer_start(loop, &run_timer, 1, on_deadline, NULL);
}

/* Run the loop until something is true, for so many milliseconds at most. NULL: for all of them. */
static bool run_until(bool (*condition)(void), unsigned limit)
{
    until = condition;
    run_deadline = milliseconds() + limit;
    run_timer = (struct sluice_timer){0};
    sluice_timer_start(loop, &run_timer, 1, on_deadline, NULL);
    sluice_loop_each_turn(loop, on_turn, NULL);
    if (condition == NULL || !condition())
        sluice_loop_run(loop);
    sluice_timer_stop(loop, &run_timer);
    sluice_loop_each_turn(loop, NULL, NULL);
    return condition == NULL || condition();
}

static bool all_checked(void)
{
    for (unsigned i = 0; i < service.server_count; i++)
        if (states[i].checks == 0)
            return false;
    return true;
}

static bool first_is_down(void)
{
    return states[0].down != 0;
}

static bool first_is_up(void)
{
    return states[0].down == 0;
}

static unsigned descriptors(void)
{
    unsigned count = 0;
    DIR *directory = opendir("/proc/self/fd");
    while (directory != NULL && readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count;
}

/* ---- TCP ------------------------------------------------------------------------------------------------------- */

TEST("the first check decides at once: who accepts stays up, who refuses is down, and this is said")
{
    EACH_LOOP
    {
        begin(PROXY_CHECK_TCP);
        add_peer(&(struct peer){0});
        add_nobody();
        CHECK_EQ(start(), 0);
        CHECK(run_until(all_checked, 2000));
        CHECK_EQ(states[0].down, 0);
        CHECK_EQ(states[1].down, 1);
        CHECK_EQ(states[1].checks_failed, states[1].checks);
        CHECK_EQ(states[0].changes, 0);
        CHECK_EQ(states[1].changes, 1);
        char line[256];
        snprintf(line, sizeof line,
                 "server %s of pg is down: connecting: Connection refused (ECONNREFUSED), at the first check",
                 names[1]);
        CHECK_EQ(said_count, 1);
        CHECK_STR(said[0], line);
        uint64_t written = 0;
        CHECK_EQ(read(freed_fd, &written, sizeof written), (ssize_t)sizeof written);
        CHECK_EQ(written, 1);
        end();
    }
}

TEST("after as many failures in a row as fall says a server is down, after as many successes as rise says up again")
{
    begin(PROXY_CHECK_TCP);
    struct peer *peer = add_peer(&(struct peer){0});
    CHECK_EQ(start(), 0);
    CHECK(run_until(all_checked, 2000));
    stop_peer(peer);
    uint64_t well = states[0].checks;
    CHECK(run_until(first_is_down, 3000));
    CHECK(states[0].checks_failed == 3 && states[0].checks <= well + 4);
    CHECK(strstr(said[0], "is down: connecting: Connection refused (ECONNREFUSED), 3 checks in a row") != NULL);
    uint64_t checked = states[0].checks;
    peer->listener = listen_at(&servers[0].address, 16);
    run(peer);
    CHECK(run_until(first_is_up, 3000));
    CHECK(states[0].checks - states[0].checks_failed >= 2 && states[0].checks >= checked + 2);
    CHECK(strstr(said[1], " of pg is up again after ") != NULL);
    CHECK_EQ(said_count, 2);
    CHECK_EQ(states[0].changes, 2);
    uint64_t written = 0;
    CHECK_EQ(read(freed_fd, &written, sizeof written), (ssize_t)sizeof written);
    CHECK_EQ(written, 2);
    end();
}

static bool first_heard_the_end(void)
{
    return peers[0].heard_end != 1 && peers[1].heard_end != 1;
}

TEST("a check by TCP sends nothing, and closes without a reset, also when the server speaks first")
{
    EACH_LOOP
    {
        begin(PROXY_CHECK_TCP);
        service.check_interval = 60000;
        add_peer(&(struct peer){0});
        add_peer(&(struct peer){.greets = true});
        CHECK_EQ(start(), 0);
        CHECK(run_until(first_heard_the_end, 2000));
        for (unsigned i = 0; i < 2; i++) {
            CHECK_EQ(peers[i].heard_end, 0);
            CHECK_STR(request_of(&peers[i]), "");
        }
        end();
    }
}

TEST("a server that does not answer a connection is down after the timeout")
{
    begin(PROXY_CHECK_TCP);
    service.check_timeout = 200;
    struct proxy_server *server = add_server();
    /* The queue of a listener that nobody accepts from is full after two: then connections are not answered. */
    int listener = listen_at(&server->address, 0), full[4];
    address_of_socket(listener, &server->address);
    know_name(server);
    for (unsigned i = 0; i < 4; i++) {
        full[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        CHECK(connect(full[i], &server->address.any, server->address.length) == 0 || errno == EINPROGRESS);
    }
    CHECK_EQ(start(), 0);
    CHECK(run_until(first_is_down, 2000));
    CHECK(strstr(said[0], "is down: no connection within 200 ms, at the first check") != NULL);
    end();
    for (unsigned i = 0; i < 4; i++)
        close(full[i]);
    close(listener);
}

TEST("a Unix socket is checked like any other server")
{
    EACH_LOOP
    {
        begin(PROXY_CHECK_HTTP);
        struct proxy_server *server = add_server();
        server->address.local = (struct sockaddr_un){.sun_family = AF_UNIX};
        int length = snprintf(server->address.local.sun_path + 1, 64, "sluice-health-%d", (int)getpid());
        server->address.length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
        struct peer *peer = &peers[peer_count++];
        *peer = (struct peer){.answer = "HTTP/1.0 200 OK\r\n\r\n"};
        peer->listener = listen_at(&server->address, 4);
        run(peer);
        CHECK_EQ(start(), 0);
        CHECK(run_until(all_checked, 2000));
        CHECK_EQ(states[0].down, 0);
        char request[256];
        snprintf(request, sizeof request, REQUEST, "localhost");
        CHECK_STR(request_of(peer), request);
        stop_peer(peer);
        CHECK(run_until(first_is_down, 3000));
        CHECK(strstr(said[0], "(ECONNREFUSED), 3 checks in a row") != NULL);
        end();
    }
}

/* ---- HTTP ------------------------------------------------------------------------------------------------------ */

TEST("by HTTP a server is up that answers 2xx or 3xx in a line as it should be, and no other")
{
    static const struct {
        struct peer peer;
        const char *why; /* it is down; NULL: it is up */
    } cases[] = {
        {{.answer = "HTTP/1.1 200 OK\r\n\r\n"}, NULL},
        {{.answer = "HTTP/1.0 204 No Content\r\n", .bytewise = true}, NULL},
        {{.answer = "HTTP/1.1 301\r\n"}, NULL},
        {{.answer = "HTTP/1.1 399 \xc3\xa9t\tc.\n"}, NULL},
        {{.answer = "HTTP/1.1 404 Not Found\r\n"}, "GET /health answered 404"},
        {{.answer = "HTTP/1.1 503 Service Unavailable\r\n", .bytewise = true}, "GET /health answered 503"},
        {{.answer = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"}, "GET /health answered 100"},
        {{.answer = "HTTP/1.1 400 Bad\r\n"}, "GET /health answered 400"},
        {{.answer = "HTTP/1.1 199 Odd\r\n"}, "GET /health answered 199"},
        {{.answer = "HTTP/2.0 200 OK\r\n"}, "what answered is no HTTP/1 server"},
        {{.answer = "HTTP/1.1  200 OK\r\n"}, "what answered is no HTTP/1 server"},
        {{.answer = "HTTP/1.1 20 OK\r\n"}, "what answered is no HTTP/1 server"},
        {{.answer = "HTTP/1.1 2000 OK\r\n"}, "what answered is no HTTP/1 server"},
        {{.answer = "http/1.1 200 OK\r\n"}, "what answered is no HTTP/1 server"},
        {{.answer = "HTTP/1.1 200 O\x01K\r\n"}, "what answered is no HTTP/1 server"},
        {{.answer = "HTTP/1.1 200 OK\rX\n"}, "what answered is no HTTP/1 server"},
        {{.answer = "HTTP/1.1 200 ", .padding = 2}, "what answered is no HTTP/1 server"},
        {{.answer = "SSH-2.0-OpenSSH_9.2\r\n"}, "what answered is no HTTP/1 server"},
        {{.answer = "HTTP/1.1 200 OK", .manner = CLOSES}, "closed the connection without an answer"},
        {{.manner = CLOSES}, "closed the connection without an answer"},
        {{.manner = RESETS}, "waiting for an answer: Connection reset by peer (ECONNRESET)"},
    };
    unsigned count = sizeof cases / sizeof cases[0];
    EACH_LOOP
    {
        begin(PROXY_CHECK_HTTP);
        service.check_interval = 60000;
        for (unsigned i = 0; i < count; i++)
            add_peer(&cases[i].peer);
        CHECK_EQ(start(), 0);
        CHECK(run_until(all_checked, 3000));
        unsigned down = 0;
        for (unsigned i = 0; i < count; i++) {
            if ((states[i].down != 0) != (cases[i].why != NULL))
                CHECK_FAIL("case %u is %s", i, states[i].down != 0 ? "down" : "up");
            down += states[i].down;
        }
        for (unsigned i = 0; i < said_count; i++) {
            bool found = false;
            for (unsigned j = 0; j < count; j++) {
                char line[512];
                snprintf(line, sizeof line, "server %.113s of pg is down: %s, at the first check", names[j],
                         cases[j].why == NULL ? "" : cases[j].why);
                found = found || strcmp(line, said[i]) == 0;
            }
            if (!found)
                CHECK_FAIL("said: %.200s", said[i]);
        }
        CHECK(said_count == 16 && down == count - 4); /* 16: what said holds */
        end();
    }
}

TEST("a status line without an end is read no further than 1 KiB")
{
    static char line[5000];
    memset(line, 'a', sizeof line - 1);
    memcpy(line, "HTTP/1.1 200 ", 13);
    begin(PROXY_CHECK_HTTP);
    add_peer(&(struct peer){.answer = line});
    CHECK_EQ(start(), 0);
    CHECK(run_until(first_is_down, 2000));
    CHECK(strstr(said[0], "what answered is no HTTP/1 server") != NULL);
    end();
}

TEST("a check asks with Host, by HTTP/1.0, and reads a page to its end, so that it closes without a reset")
{
    EACH_LOOP
    {
        char request[256];
        begin(PROXY_CHECK_HTTP);
        service.check_interval = 60000;
        add_peer(&(struct peer){.answer = "HTTP/1.1 200 OK\r\n\r\n", .padding = 50000});
        add_peer(&(struct peer){.answer = "HTTP/1.1 500 No\r\n\r\n", .padding = 50000});
        CHECK_EQ(start(), 0);
        CHECK(run_until(all_checked, 2000));
        CHECK(run_until(first_heard_the_end, 2000));
        for (unsigned i = 0; i < 2; i++) {
            snprintf(request, sizeof request, REQUEST, names[i]);
            CHECK_STR(request_of(&peers[i]), request);
            CHECK_EQ(peers[i].heard_end, 0);
        }
        end();
        begin(PROXY_CHECK_HTTP);
        service.check_host = "db.example.org";
        add_peer(&(struct peer){.answer = "HTTP/1.1 200 OK\r\n\r\n"});
        CHECK_EQ(start(), 0);
        CHECK(run_until(all_checked, 2000));
        snprintf(request, sizeof request, REQUEST, "db.example.org");
        CHECK_STR(request_of(&peers[0]), request);
        end();
    }
}

TEST("a server that sends without end is not read without end")
{
    begin(PROXY_CHECK_HTTP);
    service.check_interval = 60000;
    add_peer(&(struct peer){.answer = "HTTP/1.1 200 OK\r\n\r\n", .padding = SIZE_MAX});
    add_peer(&(struct peer){0});
    CHECK_EQ(start(), 0);
    peers[1].heard_end = 0;
    CHECK(run_until(first_heard_the_end, 1000));
    CHECK(peers[0].heard_end < 0);
    CHECK_EQ(states[0].down, 0);
    end();
}

static bool two_are_down(void)
{
    return states[0].down != 0 && states[1].down != 0;
}

TEST("a server that accepts and says nothing, or not enough, is down after the timeout")
{
    EACH_LOOP
    {
        begin(PROXY_CHECK_HTTP);
        service.check_timeout = 200;
        add_peer(&(struct peer){.manner = HANGS});
        add_peer(&(struct peer){.greets = true, .manner = HANGS});
        uint64_t began = milliseconds();
        CHECK_EQ(start(), 0);
        CHECK(run_until(two_are_down, 3000));
        CHECK(milliseconds() - began >= 190);
        CHECK(strstr(said[0], "is down: GET /health was not answered within 200 ms, at the first check") != NULL);
        end();
    }
}

TEST("with --send-proxy a check begins with a header that says it is the proxy's own")
{
    begin(PROXY_CHECK_HTTP);
    service.send_proxy = PROXY_HEADER_V1;
    char request[512];
    add_peer(&(struct peer){.answer = "HTTP/1.1 200 OK\r\n\r\n"});
    CHECK_EQ(start(), 0);
    CHECK(run_until(all_checked, 2000));
    snprintf(request, sizeof request, "PROXY UNKNOWN\r\n" REQUEST, names[0]);
    CHECK_STR(request_of(&peers[0]), request);
    end();

    begin(PROXY_CHECK_TCP);
    service.send_proxy = PROXY_HEADER_V2;
    add_peer(&(struct peer){0});
    add_peer(&(struct peer){0});
    CHECK_EQ(start(), 0);
    CHECK(run_until(first_heard_the_end, 2000));
    CHECK(memcmp(request_of(&peers[0]), "\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", 16) == 0);
    CHECK_EQ(peers[0].heard_end, 0);
    end();
}

/* ---- In the course of time ------------------------------------------------------------------------------------- */

static bool flapped(void)
{
    return states[0].checks >= 7;
}

TEST("failures that are fewer in a row than fall change nothing")
{
    begin(PROXY_CHECK_HTTP);
    service.check_interval = 1;
    add_peer(&(struct peer){.answer = "", .flaps = true});
    CHECK_EQ(start(), 0);
    CHECK(run_until(flapped, 5000));
    CHECK(states[0].checks_failed >= 4);
    CHECK_EQ(states[0].changes, 0);
    CHECK_EQ(said_count, 0);
    end();
}

static bool all_checked_twice(void)
{
    for (unsigned i = 0; i < service.server_count; i++)
        if (peers[i].accepted < 2)
            return false;
    return true;
}

TEST("all servers are asked at once when it begins, and spread over the interval then")
{
    begin(PROXY_CHECK_TCP);
    service.check_interval = 800;
    for (unsigned i = 0; i < 4; i++)
        add_peer(&(struct peer){0});
    uint64_t began = milliseconds();
    CHECK_EQ(start(), 0);
    CHECK(run_until(all_checked_twice, 4000));
    for (unsigned i = 0; i < 4; i++) {
        CHECK(peers[i].accepted_at[0] < began + 300);
        uint64_t again = peers[i].accepted_at[1] - began, due = 200 * (i + 1);
        CHECK(again + 20 >= due && again < due + 500);
    }
    end();
}

static bool first_is_up_second_checked(void)
{
    return states[0].down == 0 && states[1].checks >= 102;
}

TEST("checks that begin anew go on from what is known, and decide what is not known at once")
{
    begin(PROXY_CHECK_TCP);
    for (unsigned i = 0; i < 4; i++) {
        if (i % 2 == 0)
            add_peer(&(struct peer){0});
        else
            add_nobody();
        states[i].checks = 100;
        states[i].down = i == 0 || i == 2;
        states[i].known = i < 2;
    }
    CHECK_EQ(start(), 0);
    CHECK_EQ(states[0].down, 1); /* one of two successes */
    CHECK_EQ(states[1].down, 0); /* one of three failures */
    CHECK_EQ(states[2].down, 0);
    CHECK_EQ(states[3].down, 1);
    CHECK_EQ(said_count, 2);
    CHECK(strstr(said[0], "of pg is up again") != NULL && strstr(said[0], "after") == NULL);
    CHECK(run_until(first_is_up_second_checked, 2000));
    CHECK(states[0].checks >= 102);
    CHECK(states[1].down == (states[1].checks >= 103));
    end();
}

static bool something_was_said(void)
{
    return said_count > 0;
}

TEST("without descriptors nothing is decided, which is said once")
{
    begin(PROXY_CHECK_TCP);
    service.check_interval = 1;
    struct rlimit limit, none;
    add_nobody();
    run_until(NULL, 1); /* the loop makes what it needs */
    getrlimit(RLIMIT_NOFILE, &limit);
    none = (struct rlimit){.rlim_cur = 3, .rlim_max = limit.rlim_max};
    setrlimit(RLIMIT_NOFILE, &none);
    int started = start();
    bool told = run_until(something_was_said, 2000);
    run_until(NULL, 500);
    setrlimit(RLIMIT_NOFILE, &limit);
    CHECK_EQ(started, 0);
    CHECK(told);
    CHECK_EQ(said_count, 1);
    char line[256];
    snprintf(
        line, sizeof line,
        "server %s of pg cannot be checked: Too many open files (EMFILE); it stays up. Raise the limit of open files",
        names[0]);
    CHECK_STR(said[0], line);
    CHECK_EQ(states[0].down, 0);
    CHECK_EQ(states[0].checks, 0);
    CHECK(run_until(first_is_down, 2000)); /* the first verdict, when there are some again */
    end();
}

static bool hung_in_every_state(void)
{
    return peers[0].accepted > 0 && states[1].checks > 0;
}

TEST("checks can be stopped in every state, and leave nothing open")
{
    EACH_LOOP
    {
        begin(PROXY_CHECK_HTTP);
        run_until(NULL, 1);
        add_peer(&(struct peer){.manner = HANGS});                                  /* answering */
        add_peer(&(struct peer){.answer = "HTTP/1.1 200 OK\r\n", .greets = false}); /* leaving, then resting */
        struct proxy_server *server = add_server();                                 /* connecting */
        int listener = listen_at(&server->address, 0), full[4];
        address_of_socket(listener, &server->address);
        know_name(server);
        for (unsigned i = 0; i < 4; i++) {
            full[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
            CHECK(connect(full[i], &server->address.any, server->address.length) == 0 || errno == EINPROGRESS);
        }
        CHECK_EQ(start(), 0);
        CHECK(run_until(hung_in_every_state, 2000));
        health_stop(health);
        CHECK_EQ(start(), 0);
        health_stop(health); /* at once */
        health = NULL;
        run_until(NULL, 130); /* nobody is called any more */
        uint64_t checks = states[0].checks + states[1].checks + states[2].checks;
        run_until(NULL, 130);
        CHECK_EQ(states[0].checks + states[1].checks + states[2].checks, checks);
        end();
        for (unsigned i = 0; i < 4; i++)
            close(full[i]);
        close(listener);
    }
}

TEST("a thousand checks leave no descriptor behind")
{
    EACH_LOOP
    {
        unsigned before = descriptors();
        begin(PROXY_CHECK_HTTP);
        add_peer(&(struct peer){.answer = "HTTP/1.1 200 OK\r\n\r\n"});
        add_peer(&(struct peer){.manner = RESETS});
        add_nobody();
        for (unsigned i = 0; i < 300; i++) {
            memset(states, 0, sizeof states);
            CHECK_EQ(start(), 0);
            CHECK(run_until(all_checked, 2000));
            health_stop(health);
        }
        health = NULL;
        end();
        CHECK_EQ(descriptors(), before);
    }
}

TEST("a path or host that would break the request is refused, and without checks nothing is asked")
{
    static char long_path[5000];
    memset(long_path, 'x', sizeof long_path - 1);
    begin(PROXY_CHECK_HTTP);
    add_nobody();
    service.check_path = "/a\r\nX: y";
    CHECK_EQ(start(), -EINVAL);
    service.check_path = "/a b";
    CHECK_EQ(start(), -EINVAL);
    service.check_path = long_path;
    CHECK_EQ(start(), -EINVAL);
    service.check_path = "/";
    service.check_host = "a\nb";
    CHECK_EQ(start(), -EINVAL);
    service.check = PROXY_CHECK_NONE;
    CHECK_EQ(start(), 0);
    run_until(NULL, 1);
    CHECK_EQ(states[0].checks, 0);
    end();
}

/* ---- With the balancer ----------------------------------------------------------------------------------------- */

static int waited_for = -EINPROGRESS;

static void on_ready(void *context, int server)
{
    (void)context;
    waited_for = server;
}

static bool was_called(void)
{
    return waited_for != -EINPROGRESS;
}

TEST("who waits for a place at a server learns that a check found it down")
{
    EACH_LOOP
    {
        static struct service_state service_state, own_service;
        static struct server_state own[1];
        static _Atomic uint64_t claims[1];
        struct balancer *balancer;
        begin(PROXY_CHECK_TCP);
        add_nobody();
        servers[0].max_connections = 1;
        struct balancer_options options = {.service = &service,
                                           .service_state = &service_state,
                                           .servers = states,
                                           .own_service = &own_service,
                                           .own = own,
                                           .claims = claims,
                                           .worker_count = 1,
                                           .freed_fd = freed_fd,
                                           .loop = loop};
        struct waiter waiter = {.ready = on_ready};
        struct choice choice = {0};
        waited_for = -EINPROGRESS;
        CHECK_EQ(balancer_new(&options, &balancer), 0);
        CHECK_EQ(balancer_take(balancer, &choice), 0);
        CHECK_EQ(balancer_wait(balancer, &waiter, &choice), 0);
        run_until(NULL, 1);
        CHECK_EQ(waited_for, -EINPROGRESS);
        CHECK_EQ(start(), 0);
        uint64_t began = milliseconds();
        CHECK(run_until(was_called, 2000));
        CHECK_EQ(waited_for, -EHOSTUNREACH);
        CHECK(milliseconds() - began < 300); /* woken, not by its patience */
        balancer_give_back(balancer, 0);
        balancer_free(balancer);
        end();
    }
}

CHECK_MAIN()
