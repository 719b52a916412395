/* SPDX-License-Identifier: MIT */
#include "service/address.h"
#include "base/cleanup.h"
#include "check.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

static struct failure failure;

static const char *parsed(const char *text)
{
    static char shown[ADDRESS_TEXT_MAX];
    struct address address;
    if (address_parse(text, &address, &failure) < 0)
        return failure.text;
    CHECK_EQ(address_format(&address.any, address.length, shown, sizeof shown), strlen(shown));
    return shown;
}

TEST("IPv4, IPv6 and names are parsed, and formatted as they are written")
{
    CHECK_STR(parsed("127.0.0.1:8080"), "127.0.0.1:8080");
    CHECK_STR(parsed("[::1]:65535"), "[::1]:65535");
    CHECK_STR(parsed("[fe80::1%1]:80"), "[fe80::1%1]:80");
    CHECK_STR(parsed("localhost:0"), "127.0.0.1:0");
}

TEST("a star and an empty host are every address")
{
    struct address star, empty;
    CHECK_EQ(address_parse("*:80", &star, NULL), 0);
    CHECK_EQ(address_parse(":80", &empty, NULL), 0);
    CHECK_EQ(star.length, empty.length);
    CHECK_EQ(memcmp(&star.any, &empty.any, star.length), 0);
    char url[ADDRESS_TEXT_MAX + 16];
    address_format_url("http", &star, url, sizeof url);
    CHECK(strcmp(url, "http://[::1]:80/") == 0 || strcmp(url, "http://127.0.0.1:80/") == 0);
}

TEST("what is no address is refused with what to write instead")
{
    static const char *const wrong[][2] = {{"8080", "has no port"},
                                           {"", "has no port"},
                                           {"::1:80", "needs brackets; write [::1]:80"},
                                           {"[::1:80", "bracket is missing"},
                                           {"[::1]", "has no port"},
                                           {"[]:80", "no address in the brackets"},
                                           {"host:", "is not a port"},
                                           {"host:http", "is not a port"},
                                           {"host:65536", "is not a port"},
                                           {"host:-1", "is not a port"},
                                           {"[1.2.3.4]:80", "is not an IPv6 address"}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct address address = {.length = 7};
        CHECK_EQ(address_parse(wrong[i][0], &address, &failure), -EINVAL);
        CHECK(strstr(failure.text, wrong[i][1]) != NULL);
        CHECK_EQ(address.length, 7);
    }
    char longest[400];
    memset(longest, 'a', sizeof longest);
    memcpy(longest + sizeof longest - 4, ":80", 4);
    CHECK_EQ(address_check(longest, &failure), -EINVAL);
}

TEST("a name that does not exist is reported as such")
{
    struct address address;
    CHECK_EQ(address_parse("name.invalid:80", &address, &failure), -EADDRNOTAVAIL);
    CHECK(strstr(failure.text, "\"name.invalid\" cannot be resolved") != NULL);
}

static int listen_at(const char *text, const struct listen_options *options)
{
    struct address address;
    CHECK_EQ(address_parse(text, &address, &failure), 0);
    int fd = -1, result = address_listen(&address, options, &fd, &failure);
    return result < 0 ? result : fd;
}

TEST("port 0 gives a port that clients reach, on a non-blocking close-on-exec socket")
{
    CLEANUP_FD int fd = listen_at("127.0.0.1:0", NULL);
    CHECK(fd >= 0);
    struct address bound;
    CHECK_EQ(address_of_socket(fd, &bound), 0);
    CHECK(ntohs(bound.v4.sin_port) != 0);
    CHECK((fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
    CHECK((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    CLEANUP_FD int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(connect(client, &bound.any, bound.length), 0);
    CLEANUP_FD int accepted = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    CHECK(accepted >= 0);
}

TEST("an address in use is reported with the way to find who uses it")
{
    CLEANUP_FD int fd = listen_at("127.0.0.1:0", NULL);
    struct address bound;
    CHECK_EQ(address_of_socket(fd, &bound), 0);
    int second = -1;
    CHECK_EQ(address_listen(&bound, NULL, &second, &failure), -EADDRINUSE);
    CHECK_EQ(second, -1);
    CHECK(strstr(failure.text, "another process does already (EADDRINUSE)") != NULL);
    char command[40];
    snprintf(command, sizeof command, "sport = :%u", ntohs(bound.v4.sin_port));
    CHECK(strstr(failure.text, command) != NULL);
}

TEST("several sockets share an address when that is asked for")
{
    struct listen_options options = {.reuse_port = true};
    CLEANUP_FD int fd = listen_at("127.0.0.1:0", &options);
    struct address bound;
    CHECK_EQ(address_of_socket(fd, &bound), 0);
    CLEANUP_FD int second = -1;
    CHECK_EQ(address_listen(&bound, &options, &second, &failure), 0);
}

TEST("an address of another host is refused")
{
    CHECK_EQ(listen_at("192.0.2.1:0", NULL), -EADDRNOTAVAIL);
    CHECK(strstr(failure.text, "this host does not have that address") != NULL);
}

TEST("a port reserved for root is refused to others with what to do")
{
    if (geteuid() != 0)
        SKIP("needs root to become nobody in a child; run the tests as root");
    int pipe_fds[2];
    CHECK_EQ(pipe(pipe_fds), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct address address;
        int fd = -1, result = setresuid(65534, 65534, 65534);
        if (result == 0 && address_parse("127.0.0.1:1", &address, &failure) == 0)
            result = address_listen(&address, NULL, &fd, &failure);
        if (write(pipe_fds[1], failure.text, sizeof failure.text) < 0)
            result = 0;
        _exit(result == -EACCES ? 9 : 1);
    }
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK(read(pipe_fds[0], failure.text, sizeof failure.text) > 0);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    if (WEXITSTATUS(status) != 9)
        SKIP("this host lets everybody bind port 1; set net.ipv4.ip_unprivileged_port_start above it");
    CHECK(strstr(failure.text, "are for root (EACCES); choose a port from there on") != NULL);
}

TEST("the congestion control asked for is the accepted connections'")
{
    struct listen_options options = {.congestion = "reno"}; /* every kernel has it */
    CLEANUP_FD int fd = listen_at("127.0.0.1:0", &options);
    CHECK(fd >= 0);
    struct address bound;
    CHECK_EQ(address_of_socket(fd, &bound), 0);
    CLEANUP_FD int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(connect(client, &bound.any, bound.length), 0);
    CLEANUP_FD int accepted = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    char name[16] = "";
    socklen_t length = sizeof name;
    CHECK_EQ(getsockopt(accepted, IPPROTO_TCP, TCP_CONGESTION, name, &length), 0);
    CHECK_STR(name, "reno");
}

TEST("an unknown congestion control is refused with those the kernel has")
{
    struct listen_options options = {.congestion = "warp"};
    CHECK_EQ(listen_at("127.0.0.1:0", &options), -ENOENT);
    CHECK(strstr(failure.text, "no congestion control \"warp\"; it has: ") != NULL);
    CHECK(strstr(failure.text, "reno") != NULL);
}

TEST("whether there is a congestion control can be asked before listening")
{
    CHECK_EQ(address_congestion_check("reno", &failure), 0);
    CHECK_EQ(address_congestion_check("warp", &failure), -ENOENT);
    CHECK(strstr(failure.text, "no congestion control \"warp\"; it has: ") != NULL);
}

TEST("two addresses clash where one would keep the other from its port")
{
    static const struct {
        const char *one, *other;
        bool clash;
    } cases[] = {{"127.0.0.1:80", "127.0.0.1:80", true},
                 {"127.0.0.1:80", "127.0.0.1:81", false},
                 {"127.0.0.1:80", "127.0.0.2:80", false},
                 {"0.0.0.0:80", "127.0.0.1:80", true},
                 {"127.0.0.1:80", ":80", true},
                 {"[::]:80", "[::1]:80", true},
                 {"127.0.0.1:80", "[::1]:80", false},
                 {"127.0.0.1:0", "127.0.0.1:0", false},
                 {":0", ":0", false},
                 {"unix:/a", "unix:/a", true},
                 {"unix:/a", "unix:/b", false},
                 {"unix:/a", ":80", false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct address one, other;
        CHECK_EQ(address_parse(cases[i].one, &one, &failure), 0);
        CHECK_EQ(address_parse(cases[i].other, &other, &failure), 0);
        CHECK_EQ(address_clashes(&one, &other), cases[i].clash);
        CHECK_EQ(address_clashes(&other, &one), cases[i].clash);
    }
}

static const char *formatted(const void *address, size_t length, bool host_only)
{
    static char text[ADDRESS_TEXT_MAX];
    if (host_only)
        address_format_host(address, (socklen_t)length, text, sizeof text);
    else
        address_format(address, (socklen_t)length, text, sizeof text);
    return text;
}

TEST("IPv4 addresses are shown as inet_ntop shows them")
{
    static const uint8_t bytes[] = {0, 1, 9, 10, 42, 99, 100, 101, 199, 200, 255};
    enum { COUNT = sizeof bytes };
    for (unsigned i = 0; i < COUNT * COUNT * COUNT * COUNT; i++) {
        uint8_t host[4] = {bytes[i % COUNT], bytes[i / COUNT % COUNT], bytes[i / COUNT / COUNT % COUNT],
                           bytes[i / COUNT / COUNT / COUNT]};
        struct sockaddr_in address = {.sin_family = AF_INET};
        char expected[INET_ADDRSTRLEN];
        memcpy(&address.sin_addr, host, sizeof host);
        CHECK_STR(formatted(&address, sizeof address, true), inet_ntop(AF_INET, host, expected, sizeof expected));
    }
}

TEST("IPv4 within IPv6 is shown as IPv4, and other families as unknown")
{
    struct sockaddr_in6 mapped = {.sin6_family = AF_INET6, .sin6_port = htons(80)};
    inet_pton(AF_INET6, "::ffff:10.1.2.3", &mapped.sin6_addr);
    CHECK_STR(formatted(&mapped, sizeof mapped, false), "10.1.2.3:80");
    CHECK_STR(formatted(&mapped, sizeof mapped, true), "10.1.2.3");
    inet_pton(AF_INET6, "2001:db8::1", &mapped.sin6_addr);
    CHECK_STR(formatted(&mapped, sizeof mapped, true), "2001:db8::1");
    struct sockaddr packet = {.sa_family = AF_PACKET};
    CHECK_STR(formatted(&packet, sizeof packet, false), "?");
}

TEST("Unix sockets are parsed, and formatted as they are written")
{
    CHECK_STR(parsed("unix:/run/a.sock"), "unix:/run/a.sock");
    CHECK_STR(parsed("unix:@name"), "unix:@name");
    char longest[5 + 107 + 1] = "unix:/";
    memset(longest + 6, 'x', 106);
    longest[112] = '\0';
    CHECK_STR(parsed(longest), longest);
    longest[5] = '@';
    CHECK_STR(parsed(longest), longest);
}

TEST("the address of a Unix socket has the length that unix(7) asks for")
{
    struct address address;
    CHECK_EQ(address_parse("unix:/run/a", &address, NULL), 0);
    CHECK_EQ(address.length, offsetof(struct sockaddr_un, sun_path) + 7);
    CHECK_EQ(address_parse("unix:@ab", &address, NULL), 0);
    CHECK_EQ(address.length, offsetof(struct sockaddr_un, sun_path) + 3);
    CHECK_EQ(memcmp(address.local.sun_path, "\0ab", 3), 0);
}

TEST("what is no Unix socket is refused with what to write, and HOST:PORT alone refuses all of them")
{
    char longest[200] = "unix:/";
    memset(longest + 6, 'x', 107);
    const char *const wrong[][2] = {{"unix:", "write an absolute path"},
                                    {"unix:/", "write an absolute path"},
                                    {"unix:@", "write an absolute path"},
                                    {"unix:run/a", "write an absolute path"},
                                    {longest, "at most 107 bytes"}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct address address = {.length = 7};
        CHECK_EQ(address_parse(wrong[i][0], &address, &failure), -EINVAL);
        CHECK(strstr(failure.text, wrong[i][1]) != NULL);
        CHECK_EQ(address.length, 7);
    }
    CHECK_EQ(address_check("unix:/run/a", &failure), -EINVAL);
    CHECK(strstr(failure.text, "is a Unix socket, which cannot be used here") != NULL);
}

TEST("Unix sockets without a name, and bytes that are not printable, are shown")
{
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    size_t offset = offsetof(struct sockaddr_un, sun_path);
    CHECK_STR(formatted(&local, sizeof local, false), "unix");
    CHECK_STR(formatted(&local, offset, false), "unix");
    memcpy(local.sun_path, "\0a\n\xff", 4);
    CHECK_STR(formatted(&local, offset + 4, true), "unix:@a??");
    memset(local.sun_path, 'x', sizeof local.sun_path); /* without an end, as the kernel may give it */
    CHECK_EQ(strlen(formatted(&local, sizeof local, false)), 5 + sizeof local.sun_path);
}

/* A path of this test in a directory of its own, as an address. */
static const char *local_path(void)
{
    static char text[64];
    char directory[] = "/tmp/sluice-address-XXXXXX";
    CHECK(mkdtemp(directory) != NULL);
    snprintf(text, sizeof text, "unix:%s/s", directory);
    return text;
}

static void remove_local(const char *text)
{
    char directory[64];
    snprintf(directory, sizeof directory, "%s", text + 5);
    unlink(directory);
    *strrchr(directory, '/') = '\0';
    CHECK_EQ(rmdir(directory), 0);
}

static int connect_to(const char *text)
{
    struct address address;
    CHECK_EQ(address_parse(text, &address, NULL), 0);
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return connect(fd, &address.any, address.length) < 0 ? -errno : 0;
}

TEST("clients reach Unix sockets, whose files have the permissions that the umask leaves")
{
    const char *text = local_path();
    mode_t before = umask(0027);
    CLEANUP_FD int fd = listen_at(text, NULL);
    umask(before);
    CHECK(fd >= 0);
    CHECK_EQ(connect_to(text), 0);
    struct stat status;
    CHECK_EQ(stat(text + 5, &status), 0);
    CHECK_EQ(status.st_mode & 0777, 0750);
    struct address bound;
    CHECK_EQ(address_of_socket(fd, &bound), 0);
    CHECK_STR(formatted(&bound.any, bound.length, false), text);
    CHECK((fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
    CHECK((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    CLEANUP_FD int abstract = listen_at("unix:@sluice-test-address", &(struct listen_options){.backlog = 3});
    CHECK(abstract >= 0);
    CHECK_EQ(connect_to("unix:@sluice-test-address"), 0);
    CHECK_EQ(listen_at("unix:@sluice-test-address", NULL), -EADDRINUSE);
    remove_local(text);
}

TEST("a Unix socket that a process left behind is replaced, and one in use is not")
{
    const char *text = local_path();
    int left = listen_at(text, NULL);
    CHECK_EQ(listen_at(text, NULL), -EADDRINUSE);
    CHECK(strstr(failure.text, "another process does already (EADDRINUSE)") != NULL);
    CHECK_EQ(connect_to(text), 0);
    close(left);
    CHECK_EQ(connect_to(text), -ECONNREFUSED);
    CLEANUP_FD int fd = listen_at(text, NULL);
    CHECK(fd >= 0);
    CHECK_EQ(connect_to(text), 0);
    remove_local(text);
}

TEST("a Unix socket whose queue is full is in use")
{
    const char *text = local_path();
    CLEANUP_FD int fd = listen_at(text, &(struct listen_options){.backlog = 1});
    CHECK(fd >= 0);
    int clients[4], full = 0;
    struct address address;
    CHECK_EQ(address_parse(text, &address, NULL), 0);
    for (int i = 0; i < 4; i++) {
        clients[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        full += connect(clients[i], &address.any, address.length) < 0 && errno == EAGAIN;
    }
    CHECK(full > 0);
    CHECK_EQ(listen_at(text, NULL), -EADDRINUSE);
    for (int i = 0; i < 4; i++)
        close(clients[i]);
    remove_local(text);
}

TEST("a file that is no socket, and a directory that is not there, are refused with what to do")
{
    const char *text = local_path();
    int file = open(text + 5, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    close(file);
    CHECK_EQ(listen_at(text, NULL), -ENOTSOCK);
    CHECK(strstr(failure.text, "is no socket; choose another name") != NULL);
    CHECK_EQ(access(text + 5, F_OK), 0);
    remove_local(text);
    CHECK_EQ(listen_at(text, NULL), -ENOENT);
    CHECK(strstr(failure.text, "its directory does not exist (ENOENT); make it first") != NULL);
}

TEST("a Unix socket's file is removed once nobody listens there")
{
    const char *text = local_path();
    struct address address;
    CHECK_EQ(address_parse(text, &address, NULL), 0);
    CHECK_EQ(address_remove_stale(&address), 0); /* there is none */
    int fd = listen_at(text, NULL);
    CHECK_EQ(address_remove_stale(&address), -EADDRINUSE);
    CHECK_EQ(access(text + 5, F_OK), 0);
    close(fd);
    CHECK_EQ(address_remove_stale(&address), 0);
    CHECK(access(text + 5, F_OK) < 0);
    remove_local(text);
    CHECK_EQ(address_parse("127.0.0.1:80", &address, NULL), 0);
    CHECK_EQ(address_remove_stale(&address), 0);
}

TEST("private addresses are told from those of the internet")
{
    static const struct {
        const char *text;
        bool private;
    } cases[] = {
        {"127.0.0.1:1", true},     {"10.255.0.1:1", true},
        {"172.16.0.1:1", true},    {"172.31.255.255:1", true},
        {"192.168.4.5:1", true},   {"169.254.1.1:1", true},
        {"100.64.0.1:1", true},    {"[::1]:1", true},
        {"[fd00::1]:1", true},     {"[fc00::1]:1", true},
        {"[fe80::1]:1", true},     {"[::ffff:10.0.0.1]:1", true},
        {"unix:/tmp/x", true},     {"unix:@x", true},
        {"0.0.0.0:1", false},      {"8.8.8.8:1", false},
        {"11.0.0.1:1", false},     {"172.15.255.255:1", false},
        {"172.32.0.1:1", false},   {"192.169.0.1:1", false},
        {"100.128.0.1:1", false},  {"126.255.255.255:1", false},
        {"[::]:1", false},         {"[2001:db8::1]:1", false},
        {"[fec0::1]:1", false},    {"[::ffff:8.8.8.8]:1", false},
        {"[::ffff:0:0]:1", false}, {":1", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct address address;
        CHECK_EQ(address_parse(cases[i].text, &address, NULL), 0);
        if (address_is_private(&address) != cases[i].private)
            CHECK_FAIL("%s is taken for %s", cases[i].text, cases[i].private ? "public" : "private");
    }
}

TEST("an address is cut to the buffer, and its whole length returned")
{
    struct address address;
    char text[6];
    CHECK_EQ(address_parse("127.0.0.1:8080", &address, NULL), 0);
    CHECK_EQ(address_format(&address.any, address.length, text, sizeof text), 14);
    CHECK_STR(text, "127.0");
}

CHECK_MAIN()
