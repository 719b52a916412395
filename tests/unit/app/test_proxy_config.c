/* SPDX-License-Identifier: MIT */
#include "check.h"
#include "directory.h"
#include "proxy/config.h"
#include "service/options.h"
#include "service/supervisor.h"
#include <errno.h>

static struct proxy_config config;
static struct failure failure;

/* The command line in one text, separated by spaces. */
static int read_arguments(const char *line)
{
    static char copy[1024];
    static char *arguments[64];
    int count = 0;
    snprintf(copy, sizeof copy, "%s", line);
    for (char *word = strtok(copy, " "); word != NULL; word = strtok(NULL, " "))
        arguments[count++] = word;
    proxy_config_free(&config);
    failure.text[0] = '\0';
    return proxy_config_again(count, arguments, &config, &failure);
}

static int read_text(const char *text)
{
    static int directory = -1;
    if (directory < 0)
        directory = directory_make();
    file_write("p.conf", text);
    return read_arguments("--config p.conf");
}

TEST("a service on the command line has the defaults of the table")
{
    CHECK_EQ(read_arguments("--listen 127.0.0.1:5432 --to 10.0.0.1:5432"), 0);
    CHECK_EQ(config.service_count, 1);
    const struct proxy_service *service = config.services;
    CHECK_STR(service->name, "proxy");
    CHECK_EQ(service->listen_count, 1);
    CHECK_STR(service->listens[0].text, "127.0.0.1:5432");
    CHECK_EQ(service->server_count, 1);
    CHECK_STR(service->servers[0].name, "10.0.0.1:5432");
    CHECK_EQ(ntohs(service->servers[0].address.v4.sin_port), 5432);
    CHECK_EQ(service->servers[0].weight, 1);
    CHECK(!service->servers[0].backup && !service->routes_by_name && !service->accept_proxy && !service->mirrors);
    CHECK_EQ(service->servers[0].max_connections, 0);
    CHECK_EQ(service->balance, PROXY_BALANCE_ROUND_ROBIN);
    CHECK_EQ(service->route, SLUICE_ROUTE_AUTO);
    CHECK(service->congestion == NULL && service->check_host == NULL);
    CHECK_EQ(service->max_connections, 0);
    CHECK_EQ(service->max_queue, 0);
    CHECK_EQ(service->connect_timeout, 5000);
    CHECK_EQ(service->queue_timeout, 30000);
    CHECK_EQ(service->idle_timeout, 600000);
    CHECK_EQ(service->half_close_timeout, 60000);
    CHECK_EQ(service->hello_timeout, 5000);
    CHECK_EQ(service->retries, 2);
    CHECK_EQ(service->keepalive, 60);
    CHECK_EQ(service->hello_max, 16384);
    CHECK_EQ(service->check, PROXY_CHECK_NONE);
    CHECK_STR(service->check_path, "/");
    CHECK_EQ(service->check_interval, 2000);
    CHECK_EQ(service->check_timeout, 2000);
    CHECK_EQ(service->rise, 2);
    CHECK_EQ(service->fall, 3);
    CHECK_EQ(service->send_proxy, PROXY_HEADER_NONE);
    CHECK_EQ(config.workers, supervisor_cpu_count());
    CHECK_EQ(config.max_connections, 0);
    CHECK_EQ(config.drain_timeout, 30000);
    CHECK_EQ(config.retire_timeout, 0);
    CHECK_EQ(config.loop, SLUICE_LOOP_AUTO);
    CHECK(config.metrics == NULL && config.log == NULL && config.path == NULL);
    CHECK(config.confine && !config.receipts && !config.verbose && !config.sqpoll);
}

TEST("every choice of an option means what it says")
{
    CHECK_EQ(read_arguments("-l :80 -t a.invalid.:1"), -EADDRNOTAVAIL);
    static const char *const balances[] = {"round-robin", "least-connections", "source", "consistent"};
    static const char *const checks[] = {"none", "tcp", "http"};
    static const char *const versions[] = {"none", "v1", "v2"};
    static const char *const directions[] = {"requests", "responses", "both"};
    static const char *const routes[] = {"auto", "copy", "splice"};
    char line[200];
    for (unsigned i = 0; i < 4; i++) {
        snprintf(line, sizeof line,
                 "-l :80 -t 10.0.0.1:80 --balance %s --check %s --send-proxy %s --route %s "
                 "--mirror unix:/run/shadow --mirror-direction %s",
                 balances[i], checks[i % 3], versions[i % 3], routes[i % 3], directions[i % 3]);
        CHECK_EQ(read_arguments(line), 0);
        CHECK_EQ(config.services->balance, i);
        CHECK_EQ(config.services->check, i % 3);
        CHECK_EQ(config.services->send_proxy, i % 3);
        CHECK_EQ(config.services->route, sluice_route_by_name(routes[i % 3]));
        CHECK(config.services->mirrors);
        CHECK_STR(config.services->mirror.text, "unix:/run/shadow");
        CHECK_EQ(config.services->mirror_what, i % 3 + 1);
    }
    CHECK_EQ(PROXY_BALANCE_CONSISTENT, 3);
    CHECK_EQ(PROXY_CHECK_HTTP, 2);
    CHECK_EQ(PROXY_HEADER_V2, 2);
    CHECK_EQ(PROXY_MIRROR_REQUESTS | PROXY_MIRROR_RESPONSES, 3);
}

TEST("a server takes attributes behind its address, and names in lower case without a final dot")
{
    CHECK_EQ(
        read_arguments("-l *:443 -l unix:/run/p -t 10.0.0.1:443,weight=5,max=100,sni=Example.ORG.,sni=*.A.b,alpn=h2 "
                       "-t unix:/run/x.sock,backup,weight=0"),
        0);
    const struct proxy_service *service = config.services;
    CHECK_EQ(service->listen_count, 2);
    CHECK_EQ(service->listens[1].address.any.sa_family, AF_UNIX);
    CHECK_EQ(service->server_count, 2);
    CHECK_EQ(service->servers[0].weight, 5);
    CHECK_EQ(service->servers[0].max_connections, 100);
    CHECK_EQ(service->servers[0].sni_count, 2);
    CHECK_STR(service->servers[0].sni[0], "example.org");
    CHECK_STR(service->servers[0].sni[1], "*.a.b");
    CHECK_EQ(service->servers[0].alpn_count, 1);
    CHECK_STR(service->servers[0].alpn[0], "h2");
    CHECK(!service->servers[0].backup);
    CHECK(service->routes_by_name);
    CHECK_STR(service->servers[1].name, "unix:/run/x.sock");
    CHECK_EQ(service->servers[1].address.any.sa_family, AF_UNIX);
    CHECK(service->servers[1].backup);
    CHECK_EQ(service->servers[1].weight, 0);
}

#define CHECK_REFUSED(line, want)                                                                                      \
    do {                                                                                                               \
        CHECK(read_arguments(line) < 0);                                                                               \
        CHECK_STR(failure.text, want);                                                                                 \
        CHECK_EQ(config.service_count, 0);                                                                             \
    } while (0)

TEST("a command line without a service, or with a wrong server, is refused with what to write")
{
    CHECK_REFUSED("", "sluice proxy: --listen: service proxy has none; say where to accept connections: --listen "
                      "ADDR:PORT");
    CHECK_REFUSED("-l :80", "sluice proxy: --to: service proxy has none; name a server: --to ADDR:PORT");
    CHECK_REFUSED("-l :80 -t 10.0.0.1", "sluice proxy: --to: \"10.0.0.1\" has no port; write HOST:PORT, such as "
                                        "127.0.0.1:8080 or *:8080");
    CHECK_REFUSED("-l :80 -t :81", "sluice proxy: --to: \":81\" is nowhere to connect to; write HOST:PORT, such as "
                                   "10.0.0.1:5432");
    CHECK_REFUSED("-l :80 -t 10.0.0.1:0", "sluice proxy: --to: \"10.0.0.1:0\" is nowhere to connect to; write "
                                          "HOST:PORT, such as 10.0.0.1:5432");
    CHECK_REFUSED("-l 80 -t 10.0.0.1:80", "sluice proxy: --listen: \"80\" has no port; write HOST:PORT, such as "
                                          "127.0.0.1:8080 or *:8080");
    CHECK_REFUSED("-l :80 -t 10.0.0.1:80,wieght=2",
                  "sluice proxy: --to: \"wieght\" is nothing that a server has; did you mean weight?");
    CHECK_REFUSED("-l :80 -t 10.0.0.1:80,zzz", "sluice proxy: --to: \"zzz\" is nothing that a server has; it has "
                                               "weight=N, backup, max=N, sni=NAME, alpn=NAME");
    CHECK_REFUSED("-l :80 -t 10.0.0.1:80,weight=257",
                  "sluice proxy: --to: weight takes a number from 0 to 256, not \"257\"");
    CHECK_REFUSED("-l :80 -t 10.0.0.1:80,weight", "sluice proxy: --to: weight needs a value: weight=N");
    CHECK_REFUSED("-l :80 -t 10.0.0.1:80,max=0",
                  "sluice proxy: --to: max takes a number from 1 to 2147483647, not \"0\"");
    CHECK_REFUSED("-l :80 -t 10.0.0.1:80,backup=1", "sluice proxy: --to: backup takes no value, not even \"1\"");
    CHECK_REFUSED("-l :80 -t 10.0.0.1:80,sni=a_b.c,sni=a*b",
                  "sluice proxy: --to: sni takes a host name in ASCII, or *.NAME for all beneath it, not \"a*b\"");
    CHECK_REFUSED("-l :80 -t 10.0.0.1:80,sni=a..b",
                  "sluice proxy: --to: sni takes a host name in ASCII, or *.NAME for all beneath it, not \"a..b\"");
    CHECK_REFUSED("-l :80 -t 10.0.0.1:80,sni=1.2.3.4",
                  "sluice proxy: --to: sni takes a host name in ASCII, or *.NAME for all beneath it, not \"1.2.3.4\"");
    CHECK_REFUSED("-l :80 -t 10.0.0.1:80,sni=*", "sluice proxy: --to: sni takes a host name in ASCII, or *.NAME for "
                                                 "all beneath it, not \"*\"");
    CHECK_REFUSED("-l :80 -t 10.0.0.1:80,alpn=",
                  "sluice proxy: --to: alpn takes a protocol of 1 to 255 bytes, such as h2, not \"\"");
    CHECK_REFUSED("-l :80 -t ,weight=2", "sluice proxy: --to: no server; write ADDR:PORT or unix:/path");
    CHECK_REFUSED("-l :80 -t 10.0.0.1:80 -t 10.0.0.1:80,weight=3",
                  "sluice proxy: --to: the service has 10.0.0.1:80 already; give it a weight instead");
    CHECK_REFUSED("-l :80 -t 10.0.0.1:80,weight=0 -t 10.0.0.2:80,weight=0",
                  "sluice proxy: --to: every server has weight=0, and none would get a connection");
}

TEST("a service that would connect to itself, and an address taken twice, are refused")
{
    CHECK_REFUSED("-l 127.0.0.1:80 -t 127.0.0.1:80",
                  "sluice proxy: --to: 127.0.0.1:80 is where this service listens: it would connect to itself");
    CHECK_REFUSED("-l :80 -t 127.0.0.9:80",
                  "sluice proxy: --to: 127.0.0.9:80 is where this service listens: it would connect to itself");
    CHECK_REFUSED("-l unix:@a -t unix:@a",
                  "sluice proxy: --to: unix:@a is where this service listens: it would connect to itself");
    CHECK_REFUSED("-l :80 -l *:80 -t 10.0.0.1:80", "sluice proxy: --listen: *:80 is taken by service proxy already");
    CHECK_EQ(read_arguments("-l :80 -t 127.0.0.1:81"), 0);
    CHECK_EQ(read_arguments("-l 127.0.0.1:0 -l 127.0.0.1:0 -t 10.0.0.1:80"), 0);
}

TEST("options that say nothing together are refused")
{
    CHECK_REFUSED("-l :80 -t 10.0.0.1:80 --check tcp --check-path /x",
                  "sluice proxy: --check-path: this is for checks by HTTP, but check is tcp; choose http");
    CHECK_REFUSED("-l :80 -t 10.0.0.1:80 --check-host x",
                  "sluice proxy: --check-host: this is for checks by HTTP, but check is none; choose http");
    CHECK_REFUSED("-l :80 -t 10.0.0.1:80 --check http --check-path x",
                  "sluice proxy: --check-path: \"x\" is no path of a URL; write one that begins with / and has no "
                  "spaces, such as /health");
    CHECK_REFUSED("-l :80 -t 10.0.0.1:80 --mirror-direction both",
                  "sluice proxy: --mirror-direction: there is no mirror to send it to; write mirror, too");
    CHECK_REFUSED("-l :80 -t 10.0.0.1:80 --mirror :90", "sluice proxy: --mirror: \":90\" is nowhere to connect to; "
                                                        "write HOST:PORT, such as 10.0.0.1:5432");
    CHECK_REFUSED("-l :80 -t 10.0.0.1:80 --keepalive 500ms",
                  "sluice proxy: --keepalive: the kernel counts in seconds: 1s or more, or 0 for never");
    CHECK_REFUSED("-l :80 -t 10.0.0.1:80 --sqpoll", "sluice proxy: --sqpoll needs --loop io_uring");
    CHECK_EQ(read_arguments("-l :80 -t 10.0.0.1:80 --congestion warp"), -ENOENT);
    CHECK(strstr(failure.text, "sluice proxy: --congestion: this kernel has no congestion control \"warp\"") != NULL);
    CHECK_EQ(read_arguments("-l :80 -t 10.0.0.1:80 --sqpoll --loop io_uring --keepalive 0 --congestion reno "
                            "--check http --check-path /health --check-host x"),
             0);
    CHECK_STR(config.services->congestion, "reno");
    CHECK_EQ(config.services->keepalive, 0);
}

static const char whole_file[] = "\xef\xbb\xbf# everything\n"
                                 "workers = 3\n"
                                 "connect-timeout = 1s   ; for all services\n"
                                 "receipts = yes\r\n"
                                 "[global]\n"
                                 "log = /var/log/p.log\n"
                                 "\n"
                                 "[db]\n"
                                 "listen = 127.0.0.1:5432\n"
                                 "to = 10.0.0.1:5432 , weight=2\n"
                                 "     [2001:db8::1]:5432\n"
                                 "to: 10.0.0.3:5432,backup\n"
                                 "connect-timeout = 2s\n"
                                 "check = tcp\n"
                                 "; a comment\n"
                                 "[web.tls-1]\n"
                                 "listen = :443\n"
                                 "       unix:/run/web\n"
                                 "accept-proxy = on\n"
                                 "to = 10.0.0.5:443\n"
                                 "   ,sni=a.example.org,sni=b.example.org\n"
                                 "   ,alpn=h2\n"
                                 "to = 10.0.0.6:443";

TEST("a file has services with keys of their own, and defaults for all before the first")
{
    CHECK_EQ(read_text(whole_file), 0);
    CHECK_STR(failure.text, "");
    CHECK_STR(config.path, "p.conf");
    CHECK_EQ(config.workers, 3);
    CHECK(config.receipts);
    CHECK_STR(config.log, "/var/log/p.log");
    CHECK_EQ(config.service_count, 2);
    const struct proxy_service *db = &config.services[0], *web = &config.services[1];
    CHECK_STR(db->name, "db");
    CHECK_EQ(db->server_count, 3);
    CHECK_EQ(db->servers[0].weight, 2);
    CHECK_STR(db->servers[1].name, "[2001:db8::1]:5432");
    CHECK(db->servers[2].backup);
    CHECK_EQ(db->connect_timeout, 2000);
    CHECK_EQ(db->check, PROXY_CHECK_TCP);
    CHECK_STR(web->name, "web.tls-1");
    CHECK_EQ(web->listen_count, 2);
    CHECK_EQ(web->connect_timeout, 1000);
    CHECK_EQ(web->check, PROXY_CHECK_NONE);
    CHECK(web->accept_proxy && !db->accept_proxy);
    CHECK_EQ(web->server_count, 2);
    CHECK_EQ(web->servers[0].sni_count, 2);
    CHECK_STR(web->servers[0].sni[1], "b.example.org");
    CHECK_EQ(web->servers[0].alpn_count, 1);
    CHECK_EQ(web->servers[1].sni_count, 0);
    CHECK(web->routes_by_name && !db->routes_by_name);
}

TEST("the process's options on the command line count more than the file's, and a service's have no place there")
{
    CHECK_EQ(read_text(whole_file), 0);
    CHECK_EQ(read_arguments("-w 5 --config p.conf --no-receipts --log -"), 0);
    CHECK_EQ(config.workers, 5);
    CHECK(!config.receipts);
    CHECK_STR(config.log, "-");
    CHECK_STR(config.path, "p.conf");
    CHECK_EQ(config.service_count, 2);
    CHECK_REFUSED("-c p.conf -l :80", "sluice proxy: --listen is a service's, and with --config services are in the "
                                      "file: write listen there, or leave --config out");
    CHECK_REFUSED("-c p.conf --balance source", "sluice proxy: --balance is a service's, and with --config services "
                                                "are in the file: write balance there, or leave --config out");
    CHECK_REFUSED("-c p.conf --sqpoll", "sluice proxy: --sqpoll needs --loop io_uring");
    CHECK_REFUSED("-c none.conf", "sluice proxy: cannot read none.conf: No such file or directory (ENOENT)");
    CHECK(read_arguments("-c .") < 0);
    CHECK_STR(failure.text, "sluice proxy: cannot read .: Is a directory (EISDIR)");
}

#define CHECK_WRONG(file, want)                                                                                        \
    do {                                                                                                               \
        CHECK_EQ(read_text(file), -EINVAL);                                                                            \
        CHECK_STR(failure.text, "p.conf:" want);                                                                       \
    } while (0)
#define ONE "[a]\nlisten = :80\nto = 10.0.0.1:80\n"

TEST("a mistake in a file is told with its line, its key and what to write")
{
    CHECK_WRONG(ONE "balanse = source\n", "4: unknown key \"balanse\"; did you mean balance?");
    CHECK_WRONG(ONE "balance = sorce\n",
                "4: balance takes round-robin, least-connections, source or consistent, not \"sorce\"; did you mean "
                "source?");
    CHECK_WRONG("workers = 0\n" ONE, "1: workers takes a number from 1 to 1024, not \"0\"");
    CHECK_WRONG(ONE "accept-proxy = 1\n", "4: accept-proxy takes yes or no, not \"1\"");
    CHECK_WRONG(ONE "workers = 2\n", "4: workers belongs to the process; write it before the first service");
    CHECK_WRONG("listen = :80\n" ONE, "1: listen belongs to a service; write it under [NAME]");
    CHECK_WRONG("config = x\n" ONE, "1: config is for the command line");
    CHECK_WRONG("check-config = yes\n" ONE, "1: check-config is for the command line");
    CHECK_WRONG(ONE "\nrise = 2\nrise = 3\n",
                "6: rise was given before, in line 5 (an indented line goes on with the key above it)");
    CHECK_WRONG("rise = 2\n  3\n" ONE,
                "2: rise was given before, in line 1 (an indented line goes on with the key above it)");
    CHECK_WRONG(ONE "congestion =\n", "4: congestion needs a value: congestion = NAME");
    CHECK_WRONG(ONE "accept-proxy =\n", "4: accept-proxy needs a value: accept-proxy = yes");
    CHECK_WRONG("[a]\nlisten = :80\nto = 10.0.0.1:80,weigt=3\n",
                "3: to: \"weigt\" is nothing that a server has; did you mean weight?");
    CHECK_WRONG("[a]\nlisten = 80\n",
                "2: listen: \"80\" has no port; write HOST:PORT, such as 127.0.0.1:8080 or *:8080");
    CHECK_WRONG(ONE "check-path = /x\n", "4: check-path: this is for checks by HTTP, but check is none; choose http");
    CHECK_WRONG(ONE "#\nmirror = :90\n",
                "5: mirror: \":90\" is nowhere to connect to; write HOST:PORT, such as 10.0.0.1:5432");
    CHECK_WRONG("help = yes\n" ONE, "1: unknown key \"help\"");
}

TEST("sections that are empty, incomplete, twice there or badly named are refused")
{
    CHECK_WRONG("\n[a]\nlisten = :80\n", "2: to: service a has none; name a server: to = ADDR:PORT");
    CHECK_WRONG("[b]\nto = 10.0.0.1:1\n" ONE,
                "1: listen: service b has none; say where to accept connections: listen = ADDR:PORT");
    CHECK_WRONG("[b]\n#\n" ONE, "1: this section is empty; it needs listen and to");
    CHECK_WRONG(ONE "[b]\n", "4: this section is empty; it needs listen and to");
    CHECK_WRONG(ONE "[a]\nlisten = :81\n", "4: there is a service [a] already; choose another name");
    CHECK_WRONG(ONE "[b]\nlisten=:81\nto=10.0.0.1:81\n[a]\nrise = 1\n",
                "7: there is a service [a] already; choose another name");
    CHECK_WRONG(ONE "[global]\nworkers = 2\n", "4: [global] must stand before the services");
    CHECK_WRONG("[a b]\nlisten = :80\n", "1: [a b]: a service's name has letters, digits and - _ . only");
    CHECK_WRONG("[aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa]\nlisten = :80\n",
                "1: the service's name is too long; it may have 48 bytes");
    CHECK_WRONG(ONE "[b]\nlisten = *:80\nto = 10.0.0.1:80\n", "5: listen: *:80 is taken by service a already");
    CHECK_EQ(read_text("# nothing\n"), -EINVAL);
    CHECK_STR(failure.text, "p.conf: there is no service; write [NAME], and below it listen = ADDR:PORT and to = "
                            "ADDR:PORT");
    CHECK_EQ(read_text("[global]\n" ONE), 0);
}

TEST("lines that are no text, too long, or nothing known are refused")
{
    CHECK_WRONG(ONE "receipts\n", "4: this is not understood; write KEY = VALUE, [SERVICE], or a comment that "
                                  "begins with #");
    CHECK_WRONG("[a\nlisten = :80\n" ONE "[b]\n",
                "1: this is not understood; write KEY = VALUE, [SERVICE], or a comment that begins with #");
    char text[1024];
    int length = snprintf(text, sizeof text, "%sto = 10.0.0.2:80,sni=%0300d\n", ONE, 0);
    CHECK(length > 300);
    CHECK_EQ(read_text(text), -EINVAL);
    CHECK(strncmp(failure.text, "p.conf:4: the line is longer than 1", 35) == 0);
    CHECK(strstr(failure.text, "beginning with a comma") != NULL);
    CHECK_EQ(read_text(ONE), 0);
    FILE *file = fopen("p.conf", "w");
    CHECK(file != NULL && fwrite("[a]\n\0b\n", 1, 7, file) == 7 && fclose(file) == 0);
    CHECK_EQ(read_arguments("-c p.conf"), -EINVAL);
    CHECK_STR(failure.text, "p.conf:2: this is no text: it has a NUL byte");
}

TEST("many servers and many names are taken, up to the limits, which are told")
{
    static char text[64 * 1024];
    size_t at = (size_t)snprintf(text, sizeof text, "[a]\nlisten = :80\n");
    for (unsigned i = 0; i < PROXY_SERVERS_MAX; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "to = 10.0.%u.%u:80\n", i / 256, i % 256);
    CHECK_EQ(read_text(text), 0);
    CHECK_EQ(config.services->server_count, PROXY_SERVERS_MAX);
    snprintf(text + at, sizeof text - at, "to = 10.1.0.1:80\n");
    CHECK_EQ(read_text(text), -EINVAL);
    CHECK_STR(failure.text, "p.conf:259: to: a service has at most 256 servers; make another service");

    at = (size_t)snprintf(text, sizeof text, "%s", ONE);
    for (unsigned i = 0; i < PROXY_NAMES_MAX; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "  ,sni=%u.example.org\n", i);
    CHECK_EQ(read_text(text), 0);
    CHECK_EQ(config.services->servers[0].sni_count, PROXY_NAMES_MAX);
    CHECK_STR(config.services->servers[0].sni[31], "31.example.org");
    snprintf(text + at, sizeof text - at, "  ,sni=x.example.org\n");
    CHECK_EQ(read_text(text), -EINVAL);
    CHECK_STR(failure.text, "p.conf:36: to: a server has at most 32 names by sni; use *.NAME, or another service");
}

/* What it prints to standard output or standard error, and its exit code. */
static int exit_code(const char *line, int printed_by, char *text, size_t size)
{
    static char *arguments[16];
    static char copy[256];
    int count = 0;
    snprintf(copy, sizeof copy, "%s", line);
    for (char *word = strtok(copy, " "); word != NULL; word = strtok(NULL, " "))
        arguments[count++] = word;
    fflush(NULL);
    FILE *file = tmpfile();
    int saved = dup(printed_by);
    CHECK(file != NULL && saved >= 0 && dup2(fileno(file), printed_by) == printed_by);
    proxy_config_free(&config);
    int code = proxy_config_from_arguments(count, arguments, &config);
    fflush(NULL);
    CHECK_EQ(dup2(saved, printed_by), printed_by);
    close(saved);
    rewind(file);
    text[fread(text, 1, size - 1, file)] = '\0';
    fclose(file);
    return code;
}

TEST("--check-config counts what is there, and mistakes are wrong usage")
{
    static char text[8192];
    CHECK_EQ(read_text(whole_file), 0);
    CHECK_EQ(exit_code("--check-config --config p.conf", STDOUT_FILENO, text, sizeof text), EXIT_CODE_DONE);
    CHECK_STR(text, "configuration p.conf is fine: 2 services, 5 servers\n");
    CHECK_EQ(config.service_count, 0);
    CHECK_EQ(exit_code("--check-config -l :80 -t 10.0.0.1:80", STDOUT_FILENO, text, sizeof text), EXIT_CODE_DONE);
    CHECK_STR(text, "configuration is fine: 1 service, 1 server\n");
    CHECK_EQ(exit_code("-l :80 -t 10.0.0.1:80", STDOUT_FILENO, text, sizeof text), -1);
    CHECK_STR(text, "");
    CHECK_EQ(config.service_count, 1);
    CHECK_EQ(exit_code("-l :80", STDERR_FILENO, text, sizeof text), EXIT_CODE_USAGE);
    CHECK(strstr(text, "\nTry \"sluice proxy --help\".\n") != NULL);
    CHECK_EQ(exit_code("--nonsense", STDERR_FILENO, text, sizeof text), EXIT_CODE_USAGE);
    CHECK_EQ(exit_code("--config none.conf", STDERR_FILENO, text, sizeof text), EXIT_CODE_FAILED);
    CHECK_STR(text, "sluice proxy: cannot read none.conf: No such file or directory (ENOENT)\n");
    CHECK_EQ(read_text("x = 1\n" ONE), -EINVAL);
    CHECK_EQ(exit_code("--config p.conf", STDERR_FILENO, text, sizeof text), EXIT_CODE_USAGE);
    CHECK_STR(text, "p.conf:1: unknown key \"x\"\n");
    CHECK_EQ(exit_code("--help", STDOUT_FILENO, text, sizeof text), EXIT_CODE_DONE);
    CHECK(strstr(text, "--[no-]confine") != NULL);
}

CHECK_MAIN()
