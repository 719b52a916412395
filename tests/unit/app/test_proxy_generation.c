/* SPDX-License-Identifier: MIT
 *
 * What a reload does to listening sockets.
 */
#include "base/cleanup.h"
#include "check.h"
#include "directory.h"
#include "proxy/generation.h"
#include "service/address.h"
#include <errno.h>
#include <netinet/tcp.h>

static struct failure failure;

static int make(const struct generation *previous, struct generation **ret_generation, const char *format, ...)
{
    static char line[512];
    static char *arguments[32];
    int count = 0;
    va_list values;
    va_start(values, format);
    vsnprintf(line, sizeof line, format, values);
    va_end(values);
    for (char *word = strtok(line, " "); word != NULL; word = strtok(NULL, " "))
        arguments[count++] = word;
    struct proxy_config config;
    int result = proxy_config_again(count, arguments, &config, &failure);
    return result < 0 ? result : generation_new(&config, previous, ret_generation, &failure);
}

/* A reload that was done. */
static void succeed(struct generation **current, struct generation *next)
{
    generation_stop_listening(*current, next);
    generation_free(*current, next);
    *current = next;
}

static unsigned free_port(void)
{
    struct address address;
    int fd = -1;
    CHECK_EQ(address_parse("127.0.0.1:0", &address, NULL), 0);
    CHECK_EQ(address_listen(&address, NULL, &fd, NULL), 0);
    CHECK_EQ(address_of_socket(fd, &address), 0);
    close(fd);
    return ntohs(address.v4.sin_port);
}

static int try_connect(const char *text)
{
    struct address address;
    CHECK_EQ(address_parse(text, &address, NULL), 0);
    CLEANUP_FD int fd = socket(address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return connect(fd, &address.any, address.length) < 0 ? -errno : 0;
}

TEST("an address that stays keeps its socket, and one that goes refuses, whoever else has it open")
{
    struct generation *current, *next;
    unsigned kept = free_port(), gone = free_port(), metrics = free_port();
    char kept_text[32], gone_text[32], metrics_text[32];
    snprintf(kept_text, sizeof kept_text, "127.0.0.1:%u", kept);
    snprintf(gone_text, sizeof gone_text, "127.0.0.1:%u", gone);
    snprintf(metrics_text, sizeof metrics_text, "127.0.0.1:%u", metrics);
    CHECK_EQ(make(NULL, &current, "-l %s -l %s -t 10.0.0.1:1 --metrics %s", gone_text, kept_text, metrics_text), 0);
    CLEANUP_FD int worker_has = dup(current->listeners[0]), worker_has_too = dup(current->admin[GENERATION_METRICS]);
    CHECK(worker_has >= 0 && worker_has_too >= 0);
    int socket = current->listeners[1];
    CHECK_EQ(make(current, &next, "-l %s -t 10.0.0.1:1", kept_text), 0);
    CHECK_EQ(next->listeners[0], socket);
    CHECK_EQ(try_connect(gone_text), 0); /* not before it is known whether the reload will be done */
    succeed(&current, next);
    CHECK_EQ(try_connect(gone_text), -ECONNREFUSED);
    CHECK_EQ(try_connect(metrics_text), -ECONNREFUSED);
    CHECK_EQ(try_connect(kept_text), 0);
    /* And back again, though the dead socket is still open. */
    CHECK_EQ(make(current, &next, "-l %s -l %s -t 10.0.0.1:1", kept_text, gone_text), 0);
    succeed(&current, next);
    CHECK_EQ(try_connect(gone_text), 0);
    generation_free(current, NULL);
    CHECK_EQ(try_connect(kept_text), -ECONNREFUSED);
}

TEST("the file of a Unix socket is there for as long as a generation uses it")
{
    struct generation *current, *next;
    char path[200], text[220];
    directory_make();
    snprintf(path, sizeof path, "%s/root/s", directory_path);
    snprintf(text, sizeof text, "unix:%s", path);
    CHECK_EQ(make(NULL, &current, "-l %s -t 10.0.0.1:1", text), 0);
    CLEANUP_FD int worker_has = dup(current->listeners[0]);
    CHECK(worker_has >= 0);
    CHECK_EQ(make(current, &next, "-l %s -t 10.0.0.2:1", text), 0);
    succeed(&current, next);
    CHECK_EQ(try_connect(text), 0);
    CHECK_EQ(make(current, &next, "-l unix:@sluice-test-generation -t 10.0.0.2:1"), 0);
    succeed(&current, next);
    CHECK_EQ(access(path, F_OK), -1);
    CHECK_EQ(make(current, &next, "-l %s -t 10.0.0.1:1", text), 0);
    succeed(&current, next);
    CHECK_EQ(try_connect(text), 0);
    generation_free(current, NULL);
    CHECK_EQ(access(path, F_OK), -1);
}

TEST("a reload that is taken back ends the new sockets and leaves the old ones")
{
    struct generation *current, *next;
    unsigned kept = free_port(), fresh = free_port();
    char kept_text[32], fresh_text[32];
    snprintf(kept_text, sizeof kept_text, "127.0.0.1:%u", kept);
    snprintf(fresh_text, sizeof fresh_text, "127.0.0.1:%u", fresh);
    CHECK_EQ(make(NULL, &current, "-l %s -t 10.0.0.1:1", kept_text), 0);
    CHECK_EQ(make(current, &next, "-l %s -l %s -t 10.0.0.1:1", fresh_text, kept_text), 0);
    CLEANUP_FD int worker_has = dup(next->listeners[0]);
    CHECK(worker_has >= 0);
    CHECK_EQ(try_connect(fresh_text), 0);
    generation_free(next, current);
    CHECK_EQ(try_connect(fresh_text), -ECONNREFUSED);
    CHECK_EQ(try_connect(kept_text), 0);
    /* So does one that could not even begin: the second address is taken. */
    CHECK_EQ(make(NULL, &next, "-l %s -t 10.0.0.1:1", kept_text), -EADDRINUSE);
    CHECK_EQ(make(current, &next, "-l %s -l 192.0.2.1:1 -t 10.0.0.1:1", fresh_text), -EADDRNOTAVAIL);
    CHECK_EQ(try_connect(fresh_text), -ECONNREFUSED);
    CHECK_EQ(try_connect(kept_text), 0);
    generation_free(current, NULL);
}

static const char *congestion_of(int fd)
{
    static char name[16];
    socklen_t size = sizeof name;
    memset(name, 0, sizeof name);
    CHECK_EQ(getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &size), 0);
    return name;
}

static int keeps_alive(int fd)
{
    int on = -1;
    socklen_t size = sizeof on;
    CHECK_EQ(getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, &size), 0);
    return on;
}

TEST("congestion control and keep-alive change with the configuration, on the same socket, once it is in force")
{
    struct generation *current, *next;
    unsigned port = free_port();
    char text[32], usual[16];
    snprintf(text, sizeof text, "127.0.0.1:%u", port);
    CHECK_EQ(make(NULL, &current, "-l %s -t 10.0.0.1:1", text), 0);
    int fd = current->listeners[0];
    snprintf(usual, sizeof usual, "%s", congestion_of(fd));
    CHECK_EQ(keeps_alive(fd), 1);
    CHECK_EQ(make(current, &next, "-l %s -t 10.0.0.1:1 --congestion reno --keepalive 0", text), 0);
    CHECK_STR(congestion_of(fd), usual);
    succeed(&current, next);
    CHECK_EQ(current->listeners[0], fd);
    CHECK_STR(congestion_of(fd), "reno");
    CHECK_EQ(keeps_alive(fd), 0);
    CHECK_EQ(make(current, &next, "-l %s -t 10.0.0.1:1", text), 0);
    succeed(&current, next);
    CHECK_STR(congestion_of(fd), usual);
    CHECK_EQ(keeps_alive(fd), 1);
    generation_free(current, NULL);
}

TEST("the addresses of services change places without losing a socket")
{
    struct generation *current, *next;
    unsigned one = free_port(), two = free_port();
    CHECK_EQ(make(NULL, &current, "-l 127.0.0.1:%u -l 127.0.0.1:%u -t 10.0.0.1:1", one, two), 0);
    int fds[] = {current->listeners[0], current->listeners[1]};
    CHECK_EQ(make(current, &next, "-l 127.0.0.1:%u -l 127.0.0.1:%u -t 10.0.0.1:1", two, one), 0);
    succeed(&current, next);
    CHECK_EQ(current->listeners[0], fds[1]);
    CHECK_EQ(current->listeners[1], fds[0]);
    generation_free(current, NULL);
}

CHECK_MAIN()
