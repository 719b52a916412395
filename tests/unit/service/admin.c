/* SPDX-License-Identifier: MIT
 *
 * Each test forks a process with a loop that answers, and is its client. Everything on both kinds of loop.
 */
#include "service/admin.h"
#include "base/cleanup.h"
#include "check.h"
#include "service/address.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static bool have_loop(enum sluice_loop_kind kind)
{
    struct sluice_loop_options options = {.size = sizeof options, .kind = kind};
    return sluice_loop_probe(&options, NULL) == 0; /* where there is no io_uring, there is epoll */
}

#define EACH_LOOP(kind)                                                                                                \
    for (enum sluice_loop_kind kind = SLUICE_LOOP_EPOLL; kind <= SLUICE_LOOP_IO_URING; kind++)                         \
        if (have_loop(kind))

static struct address server_address;
static int stop_write = -1;
static pid_t server_pid;

struct server {
    struct sluice_loop *loop;
    struct admin *admin;
    size_t lines; /* of the page */
};

static void write_page(void *context, FILE *out)
{
    struct server *server = context;
    for (size_t i = 0; i < server->lines; i++)
        fprintf(out, "sluice_test_total{line=\"%07zu\"} %zu\n", i, i);
}

static void write_status(void *context, FILE *out)
{
    (void)context;
    fputs("{\"a\": 1}\n", out);
}

static bool with_status, drains; /* of the next server */

static void on_stop(void *context)
{
    struct server *server = context;
    if (drains) {
        admin_drain(server->admin); /* a watch may tell more than once: so may this be called */
        return;
    }
    admin_stop(server->admin);
    server->admin = NULL;
    sluice_loop_stop(server->loop);
}

static void on_drained(void *context)
{
    struct server *server = context;
    admin_stop(server->admin);
    server->admin = NULL;
    sluice_loop_stop(server->loop);
}

static int serve(enum sluice_loop_kind kind, int listener, int stop_read, size_t lines, unsigned timeout)
{
    struct server server = {.lines = lines};
    struct sluice_loop_options loop_options = {.size = sizeof loop_options, .kind = kind};
    struct sluice_watch *watch = NULL;
    signal(SIGPIPE, SIG_IGN);
    if (sluice_loop_new(&loop_options, &server.loop) < 0)
        return 2;
    struct admin_options options = {.loop = server.loop,
                                    .listener = listener,
                                    .write_metrics = write_page,
                                    .drained = on_drained,
                                    .context = &server,
                                    .timeout = timeout};
    if (with_status)
        options.write_status = write_status;
    if (admin_start(&options, &server.admin) < 0 ||
        sluice_loop_watch(server.loop, stop_read, on_stop, &server, &watch) < 0)
        return 3;
    int result = sluice_loop_run(server.loop);
    sluice_watch_free(watch);
    sluice_loop_free(server.loop);
    return result < 0 ? 4 : 0;
}

static void start(enum sluice_loop_kind kind, size_t lines, unsigned timeout)
{
    struct address address;
    int listener = -1, fds[2];
    CHECK_EQ(address_parse("127.0.0.1:0", &address, NULL), 0);
    CHECK_EQ(address_listen(&address, NULL, &listener, NULL), 0);
    CHECK_EQ(address_of_socket(listener, &server_address), 0);
    CHECK_EQ(pipe(fds), 0);
    fflush(NULL);
    server_pid = fork();
    if (server_pid == 0) {
        close(fds[1]);
        exit(serve(kind, listener, fds[0], lines, timeout));
    }
    close(listener);
    close(fds[0]);
    stop_write = fds[1];
}

/* Ends the server, which must have been well until now. */
static void stop(void)
{
    int status = -1;
    CHECK_EQ(write(stop_write, "x", 1), 1);
    close(stop_write);
    CHECK_EQ(waitpid(server_pid, &status, 0), server_pid);
    CHECK(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), 0);
}

static int connect_to_server(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval patience = {.tv_sec = 10};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    CHECK_EQ(connect(fd, &server_address.any, server_address.length), 0);
    return fd;
}

/* A ring that was closed (have_loop) interrupts its process once more; with a timeout, recv is not restarted. */
static ssize_t receive(int fd, void *buffer, size_t size)
{
    return TEMP_FAILURE_RETRY(recv(fd, buffer, size, 0));
}

static char response[16 << 20];

/* Until the end; returns the length. */
static size_t read_response(int fd)
{
    size_t at = 0;
    for (ssize_t got; (got = receive(fd, response + at, sizeof response - 1 - at)) != 0; at += (size_t)got)
        if (got < 0)
            CHECK_FAIL("recv: %s after %zu bytes", strerror(errno), at);
    response[at] = '\0';
    return at;
}

static void ask(const char *request)
{
    CLEANUP_FD int fd = connect_to_server();
    CHECK_EQ(send(fd, request, strlen(request), MSG_NOSIGNAL), strlen(request));
    read_response(fd);
}

#define FIELDS "X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
#define PAGE "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"

TEST("GET /metrics gives the page, with its length and type, and the connection ends")
{
    EACH_LOOP(kind)
    {
        start(kind, 2, 0);
        ask("GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n");
        CHECK_STR(response, PAGE "Content-Length: 72\r\n" FIELDS
                                 "sluice_test_total{line=\"0000000\"} 0\nsluice_test_total{line=\"0000001\"} 1\n");
        ask("GET /metrics?x=1 HTTP/1.0\n\n");
        CHECK(strncmp(response, PAGE, strlen(PAGE)) == 0);
        ask("GET http://host:1/metrics HTTP/1.1\r\n\r\n");
        CHECK(strncmp(response, PAGE, strlen(PAGE)) == 0);
        stop();
    }
}

TEST("HEAD gives the same head without the page")
{
    EACH_LOOP(kind)
    {
        start(kind, 2, 0);
        ask("HEAD /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        CHECK_STR(response, PAGE "Content-Length: 72\r\n" FIELDS);
        stop();
    }
}

TEST("other paths, methods and versions get their status, and / says where to look")
{
    static const char *const cases[][3] = {
        {"GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\n", "\r\n\r\nThe metrics are at /metrics.\n"},
        {"HEAD / HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\n", "Connection: close\r\n\r\n"},
        {"GET /status.json HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found\r\n", "\r\n\r\n404 Not Found\n"},
        {"GET /other HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found\r\n", "\r\n\r\n404 Not Found\n"},
        {"GET /metrics/ HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found\r\n", "\r\n\r\n404 Not Found\n"},
        {"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 405 Method Not Allowed\r\n",
         "\r\nAllow: GET, HEAD\r\n"},
        {"GET /metrics HTTP/2.0\r\n\r\n", "HTTP/1.1 505 ", "505 HTTP Version Not Supported\n"},
        {"GET /metrics HTTP/1.11\r\n\r\n", "HTTP/1.1 505 ", "505 HTTP Version Not Supported\n"},
        {"GET /metrics\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n", "\r\n\r\n400 Bad Request\n"},
        {"GET  HTTP/1.1\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n", ""},
        {"\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n", ""},
        {"\x16\x03\x01\x02\n\n", "HTTP/1.1 400 Bad Request\r\n", ""}, /* TLS */
    };
    EACH_LOOP(kind)
    {
        start(kind, 2, 0);
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
            ask(cases[i][0]);
            if (strncmp(response, cases[i][1], strlen(cases[i][1])) != 0 || strstr(response, cases[i][2]) == NULL)
                CHECK_FAIL("%s was answered: %.200s", cases[i][0], response);
        }
        stop();
    }
}

TEST("with a status there is /status.json, and / is a page that may run its own script only")
{
    EACH_LOOP(kind)
    {
        with_status = true;
        start(kind, 2, 0);
        with_status = false;
        ask("GET /status.json HTTP/1.1\r\n\r\n");
        CHECK_STR(response,
                  "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n" FIELDS "{\"a\": 1}\n");
        ask("GET http://host HTTP/1.1\r\n\r\n");
        CHECK(strstr(response, "\r\nContent-Type: text/html; charset=utf-8\r\n") != NULL);
        CHECK(strstr(response, "\r\nContent-Security-Policy: default-src 'none'; style-src 'sha256-") != NULL);
        CHECK(strstr(response, "; script-src 'sha256-") != NULL);
        CHECK(strstr(response, "<canvas") == NULL &&
              strstr(response, "http://") == strstr(response, "http://www.w3.org"));
        ask("GET /metrics HTTP/1.1\r\n\r\n");
        CHECK(strncmp(response, PAGE, strlen(PAGE)) == 0);
        stop();
    }
}

TEST("a listener that drains accepts no more, and answers who is there, but waits for nobody for long")
{
    EACH_LOOP(kind)
    {
        drains = true;
        start(kind, 2, 0);
        CLEANUP_FD int asking = connect_to_server();
        CLEANUP_FD int silent = connect_to_server();
        static const char first[] = "GET /metrics HTTP/1.1\r\n";
        CHECK_EQ(send(asking, first, strlen(first), MSG_NOSIGNAL), strlen(first));
        ask("GET /metrics HTTP/1.1\r\n\r\n"); /* both were accepted before this one */
        CHECK_EQ(write(stop_write, "x", 1), 1);
        poll(NULL, 0, 50);
        CHECK_EQ(send(asking, "\r\n", 2, MSG_NOSIGNAL), 2);
        read_response(asking);
        CHECK(strncmp(response, PAGE, strlen(PAGE)) == 0);
        read_response(silent);
        CHECK_STR(response, "");
        stop();
        start(kind, 2, 0); /* with nobody there it is done at once */
        stop();
        drains = false;
    }
}

TEST("at a loopback address, a name that could be somebody else's is not answered to")
{
    static const struct {
        const char *host;
        bool answered;
    } cases[] = {
        {"127.0.0.1:9180", true}, {"[::1]:9180", true}, {"localhost", true},          {"LocalHost:80", true},
        {"a.localhost:1", true},  {"", true},           {"evil.example:9180", false}, {"localhost.evil.example", false},
        {"evillocalhost", false}, {"localhos", false},  {"127.0.0.1.evil", false},    {"a", false},
    };
    EACH_LOOP(kind)
    {
        start(kind, 2, 0);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            char request[128];
            snprintf(request, sizeof request, "GET /metrics HTTP/1.1\r\nA: b\r\nhOST: %s \r\nC: d\r\n\r\n",
                     cases[i].host);
            ask(request);
            const char *wanted = cases[i].answered ? PAGE : "HTTP/1.1 421 Misdirected Request\r\n";
            if (strncmp(response, wanted, strlen(wanted)) != 0)
                CHECK_FAIL("%s was answered: %.100s", cases[i].host, response);
        }
        ask("GET /metrics HTTP/1.1\r\nX-Host: evil.example\r\n\r\n");
        CHECK(strncmp(response, PAGE, strlen(PAGE)) == 0);
        stop();
    }
}

TEST("where others than this host and private networks could read it, nobody listens unless told to")
{
    static const char *const private[] = {"127.0.0.1:0", "127.9.8.7:0", "[::1]:0", "localhost:0"};
    static const char *const public[] = {"0.0.0.0:0", ":0", "*:0", "[::]:0", "192.0.2.1:0", "[2001:db8::1]:0"};
    struct failure failure;
    int fd = -1;
    for (size_t i = 0; i < sizeof private / sizeof *private; i++) {
        CHECK_EQ(admin_listen(private[i], false, &fd, &failure), 0);
        close(fd);
    }
    for (size_t i = 0; i < sizeof public / sizeof *public; i++) {
        CHECK_EQ(admin_listen(public[i], false, &fd, &failure), -EPERM);
        CHECK(strstr(failure.text, "admin-anywhere") != NULL);
    }
    CHECK_EQ(admin_listen("0.0.0.0:0", true, &fd, &failure), 0);
    close(fd);
}

TEST("a request may come byte by byte, and with its sender's end")
{
    static const char request[] = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    EACH_LOOP(kind)
    {
        start(kind, 1, 0);
        CLEANUP_FD int fd = connect_to_server();
        for (size_t i = 0; i < strlen(request); i++) {
            CHECK_EQ(send(fd, request + i, 1, MSG_NOSIGNAL), 1);
            if (i % 8 == 0)
                poll(NULL, 0, 1);
        }
        shutdown(fd, SHUT_WR);
        read_response(fd);
        CHECK(strncmp(response, PAGE, strlen(PAGE)) == 0);
        stop();
    }
}

TEST("a head that is too long is refused, one of just the limit is not")
{
    static char request[8192];
    static const char begin[] = "GET /metrics HTTP/1.1\r\nX: ";
    EACH_LOOP(kind)
    {
        start(kind, 1, 0);
        for (size_t length = 4090; length <= 4100; length++) {
            memset(request, 'x', sizeof request);
            memcpy(request, begin, strlen(begin));
            memcpy(request + length - 4, "\r\n\r\n", 5);
            ask(request);
            const char *want = length <= 4095 ? "HTTP/1.1 200" : "HTTP/1.1 431";
            if (strncmp(response, want, 12) != 0)
                CHECK_FAIL("%zu bytes were answered: %.60s", length, response);
        }
        stop();
    }
}

static long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

TEST("a client that asks nothing in time, or takes nothing of the page, is cut off")
{
    EACH_LOOP(kind)
    {
        start(kind, 200000, 250);
        CLEANUP_FD int silent = connect_to_server(), slow = connect_to_server();
        const char request[] = "GET /metrics HTTP/1.1\r\n\r\n";
        CHECK_EQ(send(silent, request, 10, MSG_NOSIGNAL), 10);
        CHECK_EQ(send(slow, request, strlen(request), MSG_NOSIGNAL), strlen(request));
        long begin = now_ms();
        char byte;
        CHECK_EQ(receive(silent, &byte, 1), 0);
        CHECK(now_ms() - begin >= 240 && now_ms() - begin < 5000);
        poll(NULL, 0, 500);
        size_t got = 0;
        for (ssize_t some; (some = receive(slow, response, sizeof response)) > 0;)
            got += (size_t)some;
        CHECK(got > 0 && got < 200000 * 30);
        stop();
    }
}

TEST("a page larger than all buffers reaches a client that takes its time")
{
    EACH_LOOP(kind)
    {
        start(kind, 200000, 400);
        CLEANUP_FD int fd = connect_to_server();
        const char request[] = "GET /metrics HTTP/1.1\r\n\r\n";
        CHECK_EQ(send(fd, request, strlen(request), MSG_NOSIGNAL), strlen(request));
        size_t at = 0;
        for (int i = 0; i < 6; i++) { /* longer than the time for taking nothing */
            poll(NULL, 0, 150);
            ssize_t got = receive(fd, response + at, 800000);
            CHECK(got > 0);
            at += (size_t)got;
        }
        for (ssize_t got; (got = receive(fd, response + at, sizeof response - 1 - at)) > 0;)
            at += (size_t)got;
        response[at] = '\0';
        const char *body = strstr(response, "\r\n\r\n");
        CHECK(body != NULL);
        char *length = strstr(response, "Content-Length: ");
        CHECK(length != NULL && length < body);
        CHECK_EQ(strtoul(length + 16, NULL, 10), strlen(body + 4));
        CHECK_STR(response + at - strlen("sluice_test_total{line=\"0199999\"} 199999\n"),
                  "sluice_test_total{line=\"0199999\"} 199999\n");
        stop();
    }
}

TEST("connections beyond the limit wait, and clients that go away leave room")
{
    EACH_LOOP(kind)
    {
        start(kind, 1, 0);
        int fds[40];
        for (int i = 0; i < 40; i++)
            fds[i] = connect_to_server();
        poll(NULL, 0, 50);
        const char request[] = "GET /metrics HTTP/1.1\r\n\r\n";
        CHECK_EQ(send(fds[39], request, strlen(request), MSG_NOSIGNAL), strlen(request));
        struct pollfd polled = {.fd = fds[39], .events = POLLIN};
        CHECK_EQ(poll(&polled, 1, 50), 0);
        for (int i = 0; i < 20; i++) { /* half of them by a reset */
            struct linger reset = {.l_onoff = i % 2};
            setsockopt(fds[i], SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
            close(fds[i]);
        }
        read_response(fds[39]);
        CHECK(strncmp(response, PAGE, strlen(PAGE)) == 0);
        for (int i = 20; i < 40; i++)
            close(fds[i]);
        ask(request);
        CHECK(strncmp(response, PAGE, strlen(PAGE)) == 0);
        stop();
    }
}

TEST("to stop closes what is open, in every state")
{
    EACH_LOOP(kind)
    {
        start(kind, 200000, 0);
        CLEANUP_FD int silent = connect_to_server(), sending = connect_to_server(), done = connect_to_server();
        const char request[] = "GET /metrics HTTP/1.1\r\n\r\n";
        CHECK_EQ(send(sending, request, strlen(request), MSG_NOSIGNAL), strlen(request));
        CHECK_EQ(send(done, "HEAD / HTTP/1.1\r\n\r\n", 19, MSG_NOSIGNAL), 19);
        read_response(done); /* it lingers now */
        stop();
        char byte;
        CHECK(receive(silent, &byte, 1) <= 0);
    }
}

CHECK_MAIN()
