/* SPDX-License-Identifier: MIT
 *
 * What a relay between connections stands on: connecting, borrowed memory, streams that fall quiet, and resets. On
 * epoll and, as test-lib-relay io_uring, on io_uring: the same tests.
 */
#include "../check.h"
#include "sys.h"
#include "world.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static struct sluice_loop *loop;
static struct sluice_loop_options loop_options = {.size = sizeof loop_options, .kind = SLUICE_LOOP_EPOLL};

static void begin(void)
{
    CHECK_EQ(sluice_loop_new(&loop_options, &loop), 0);
}

static void end(void)
{
    sluice_loop_free(loop);
    loop = NULL;
}

/* Tests that wait for something stop the loop themselves, and fail if this ran out. */
static struct sluice_timer limit;
static bool ran_out;

static void out_of_time(void *context)
{
    (void)context;
    ran_out = true;
    sluice_loop_stop(loop);
}

static void run_for(unsigned time)
{
    ran_out = false;
    sluice_timer_start(loop, &limit, time, out_of_time, NULL);
    CHECK_EQ(sluice_loop_run(loop), 0);
    sluice_timer_stop(loop, &limit);
}

static void run_until_stopped(void)
{
    run_for(10000);
    CHECK(!ran_out);
}

/* ---- Connecting ----------------------------------------------------------------------------------------------- */

struct call {
    struct sluice_connect *connect;
    int result, calls;
};

static void connected(void *context, int result)
{
    struct call *call = context;
    call->result = result;
    call->calls++;
    sluice_loop_stop(loop);
}

static int stream_socket(int family)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    CHECK(fd >= 0);
    return fd;
}

static int listen_somewhere(struct sockaddr_in *address, int backlog)
{
    socklen_t size = sizeof *address;
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = stream_socket(AF_INET);
    CHECK_EQ(bind(fd, (struct sockaddr *)address, size), 0);
    CHECK_EQ(listen(fd, backlog), 0);
    CHECK_EQ(getsockname(fd, (struct sockaddr *)address, &size), 0);
    return fd;
}

static int begin_connect(struct call *call, int fd, const struct sockaddr_in *address)
{
    *call = (struct call){.result = 1};
    return sluice_loop_connect(loop, fd, (const struct sockaddr *)address, sizeof *address, connected, call,
                               &call->connect);
}

/* A peer that takes until the loop has slept to answer: a socket of this machine is connected within the first call,
 * and the second one is made to say that it is still connecting. */
static int slow_fd;

static int connect_slowly(int fd, const struct sockaddr *address, socklen_t size)
{
    if (fd != slow_fd) {
        slow_fd = fd;
        return connect(fd, address, size);
    }
    errno = EALREADY;
    return -1;
}

static void peers_are_slow(bool slow)
{
    slow_fd = -1;
    sys.connect = slow ? connect_slowly : connect;
}

/* Make the fd an end, and see that it carries bytes both ways on the loop that connected it. */
static ssize_t heard;

static void hear(void *context, const char *data, ssize_t length)
{
    (void)context, (void)data;
    heard = length;
    sluice_loop_stop(loop);
}

static void use_connection(int fd, int peer)
{
    struct sluice_end *connection = end_of(fd);
    CHECK_EQ(sluice_loop_receive(loop, connection, 0, hear, NULL), 0);
    CHECK_EQ(send(peer, "hello", 5, 0), 5);
    run_until_stopped();
    CHECK_EQ(heard, 5);
    struct sluice_segment segment = memory_segment("answer", 6);
    struct sluice_transfer_options options = one_to_one(&segment, &connection, SLUICE_ROUTE_AUTO);
    CHECK_EQ(sluice_loop_transfer(loop, &options, NULL, NULL, NULL, NULL, NULL), 1);
    char answer[8];
    CHECK_EQ(recv(peer, answer, sizeof answer, 0), 6);
    sluice_loop_forget(loop, connection);
    sluice_end_close(connection);
}

TEST("a socket is connected at once or later, is told of once, and is an end of the same loop then")
{
    for (int slow = 0; slow < 2; slow++) {
        struct sockaddr_in address;
        struct call call;
        int listener = listen_somewhere(&address, 4), fd = stream_socket(AF_INET);
        begin();
        peers_are_slow(slow);
        int result = begin_connect(&call, fd, &address);
        peers_are_slow(false);
        CHECK_EQ(result, slow ? 0 : 1);
        if (slow) {
            CHECK_EQ(call.calls, 0); /* not from within the function */
            run_until_stopped();
            CHECK_EQ(call.result, 0);
        }
        int peer = accept(listener, NULL, NULL);
        use_connection(fd, peer);
        CHECK_EQ(call.calls, slow);
        close(peer);
        close(listener);
        end();
    }
}

TEST("a connection that is refused says so, at once or later")
{
    for (int slow = 0; slow < 2; slow++) {
        struct sockaddr_in address;
        struct call call;
        int listener = listen_somewhere(&address, 4), fd = stream_socket(AF_INET);
        close(listener);
        begin();
        peers_are_slow(slow);
        int result = begin_connect(&call, fd, &address);
        peers_are_slow(false);
        CHECK_EQ(result, slow ? 0 : -ECONNREFUSED);
        if (slow)
            run_until_stopped();
        CHECK_EQ(call.calls, slow);
        CHECK_EQ(call.result, slow ? -ECONNREFUSED : 1);
        close(fd);
        end();
    }
}

/* Fills the queue of a listener that takes one connection, so that the next one's packets are dropped. */
static int fill_queue(const struct sockaddr_in *address)
{
    int fd = stream_socket(AF_INET);
    connect(fd, (const struct sockaddr *)address, sizeof *address);
    return fd;
}

TEST("a peer that answers late is waited for: one that takes the connection, and one that refuses it")
{
    struct sockaddr_in full, closing;
    struct call late, refused;
    int listener = listen_somewhere(&full, 0), other = listen_somewhere(&closing, 0);
    int first = fill_queue(&full), second = fill_queue(&closing);
    int fd = stream_socket(AF_INET), refused_fd = stream_socket(AF_INET);
    begin();
    CHECK_EQ(begin_connect(&late, fd, &full), 0);
    CHECK_EQ(begin_connect(&refused, refused_fd, &closing), 0);
    run_for(130);
    CHECK_EQ(late.calls + refused.calls, 0);
    close(accept(listener, NULL, NULL)); /* now there is room, for the packet that is sent again after a second */
    close(other);
    while (late.calls + refused.calls < 2)
        run_until_stopped();
    CHECK_EQ(late.result, 0);
    CHECK_EQ(refused.result, -ECONNREFUSED);
    CHECK_EQ(late.calls, 1);
    CHECK_EQ(refused.calls, 1);
    int peer = accept(listener, NULL, NULL);
    use_connection(fd, peer);
    const int fds[] = {peer, listener, first, second, refused_fd};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        close(fds[i]);
    end();
}

TEST("a connection that was given up is not told of, and its socket can be closed")
{
    struct sockaddr_in full, quick;
    struct call silent, ready;
    int before = open_descriptors();
    int listener = listen_somewhere(&full, 0), other = listen_somewhere(&quick, 4), first = fill_queue(&full);
    int fd = stream_socket(AF_INET), ready_fd = stream_socket(AF_INET);
    begin();
    CHECK_EQ(begin_connect(&silent, fd, &full), 0);
    peers_are_slow(true);
    CHECK_EQ(begin_connect(&ready, ready_fd, &quick), 0); /* what the loop will report is there already */
    peers_are_slow(false);
    sluice_connect_cancel(silent.connect);
    sluice_connect_cancel(ready.connect);
    sluice_connect_cancel(NULL);
    close(fd);
    close(ready_fd);
    run_for(130);
    CHECK_EQ(silent.calls + ready.calls, 0);
    CHECK_EQ(begin_connect(&silent, fd = stream_socket(AF_INET), &full), 0); /* and one that is left to the very end */
    sluice_connect_cancel(silent.connect);
    end();
    close(fd);
    close(first);
    close(listener);
    close(other);
    CHECK_EQ(open_descriptors(), before);
}

TEST("a Unix socket is connected at once, or its listener's queue is full, or nobody listens")
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct call call = {.result = 1};
    int listener = stream_socket(AF_UNIX), fds[3];
    socklen_t size = sizeof address;
    CHECK_EQ(bind(listener, (struct sockaddr *)&address, sizeof address.sun_family), 0); /* a name of the kernel's */
    CHECK_EQ(getsockname(listener, (struct sockaddr *)&address, &size), 0);
    begin();
    fds[0] = stream_socket(AF_UNIX);
    CHECK_EQ(sluice_loop_connect(loop, fds[0], (struct sockaddr *)&address, size, connected, &call, &call.connect),
             -ECONNREFUSED);
    CHECK_EQ(listen(listener, 0), 0);
    fds[1] = stream_socket(AF_UNIX);
    CHECK_EQ(sluice_loop_connect(loop, fds[1], (struct sockaddr *)&address, size, connected, &call, &call.connect), 1);
    fds[2] = stream_socket(AF_UNIX);
    CHECK_EQ(sluice_loop_connect(loop, fds[2], (struct sockaddr *)&address, size, connected, &call, &call.connect),
             -EAGAIN);
    int peer = accept(listener, NULL, NULL);
    use_connection(fds[1], peer);
    CHECK_EQ(call.calls, 0);
    close(peer);
    close(fds[0]);
    close(fds[2]);
    close(listener);
    end();
}

int main(int argc, char **argv)
{
    struct sluice_error error;
    if (argc > 1)
        loop_options.kind = (enum sluice_loop_kind)sluice_loop_kind_by_name(argv[1]);
    if (argc > 2)
        loop_options.flags = SLUICE_LOOP_SQPOLL;
    if (sluice_loop_probe(&loop_options, &error) < 0) {
        char text[256];
        sluice_error_format(&error, text, sizeof text);
        printf("1..0 # SKIP %s; %s\n", text, error.remedy);
        return 0;
    }
    alarm(60); /* a hang is a failure */
    return check_run_all();
}
