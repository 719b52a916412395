/* SPDX-License-Identifier: MIT
 *
 * file-server FILE PORT: answers every HTTP request on 127.0.0.1 with FILE, by reference, from one thread. It looks for
 * a request's end and at nothing else of it, and closes the connection after the answer. For a server that does it
 * properly see `sluice serve`.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sluice/sluice.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static struct sluice_loop *loop;
static struct sluice_end *file;
static char head[100];
static size_t head_length;
static uint64_t file_length;

struct client {
    struct sluice_end *end;
    struct sluice_transfer *answer; /* while it is under way */
    size_t matched;                 /* of the empty line that ends a request */
};

static void hang_up(struct client *client)
{
    sluice_loop_forget(loop, client->end);
    sluice_end_close(client->end);
    free(client);
}

static void answered(void *context, struct sluice_transfer *transfer, int result)
{
    (void)transfer, (void)result;
    hang_up(context);
}

static void asked(void *context, const char *data, ssize_t length)
{
    struct client *client = context;
    static const char end[] = "\r\n\r\n";
    for (ssize_t i = 0; i < length && client->matched < 4; i++)
        client->matched = data[i] == end[client->matched] ? client->matched + 1 : data[i] == '\r';
    if (length > 0 && client->matched < 4)
        return; /* closing with bytes unread would reset the connection */
    if (length <= 0 && client->answer != NULL) {
        sluice_loop_transfer_cancel(loop, client->answer); /* a reset is told of in spite of the pause; hangs up */
        return;
    }
    struct sluice_segment answer[] = {
        {.kind = SLUICE_SEGMENT_MEMORY, .data = head, .length = head_length},
        {.kind = SLUICE_SEGMENT_FILE, .end = file, .length = file_length},
    };
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = answer,
                                              .segment_count = 2,
                                              .sinks = &client->end,
                                              .sink_count = 1,
                                              .flags = SLUICE_TRANSFER_NEVER_BLOCK};
    sluice_loop_receive_pause(loop, client->end);
    if (length <= 0 || sluice_loop_transfer(loop, &options, answered, client, &client->answer, NULL, NULL) != 0)
        hang_up(client); /* gone, or answered already, or failed */
}

static void came(void *context, int fd, const struct sockaddr *address, unsigned address_length)
{
    (void)context, (void)address, (void)address_length;
    struct client *client = fd >= 0 ? calloc(1, sizeof *client) : NULL;
    if (client == NULL || sluice_end_open(fd, SLUICE_END_OWN_FD, &client->end) < 0) {
        free(client);
        if (fd >= 0)
            close(fd);
    } else if (sluice_loop_receive(loop, client->end, 0, asked, client) < 0) {
        hang_up(client);
    }
}

int main(int count, char **arguments)
{
    struct sluice_listener *listener;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = count == 3 ? open(arguments[1], O_RDONLY | O_CLOEXEC) : -1, on = 1;
    int socket_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    off_t length = lseek(fd, 0, SEEK_END);
    if (length < 0 || sluice_end_open(fd, SLUICE_END_OWN_FD, &file) < 0) {
        fprintf(stderr, "usage: file-server FILE PORT\n");
        return 2;
    }
    file_length = (uint64_t)length;
    head_length =
        (size_t)snprintf(head, sizeof head, "HTTP/1.0 200 OK\r\nContent-Length: %lld\r\n\r\n", (long long)length);
    address.sin_port = htons((uint16_t)atoi(arguments[2]));
    setsockopt(socket_fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(socket_fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(socket_fd, 128) < 0 ||
        sluice_loop_new(NULL, &loop) < 0 || sluice_loop_listen(loop, socket_fd, came, NULL, &listener) < 0) {
        perror("file-server");
        return 1;
    }
    socklen_t size = sizeof address;
    getsockname(socket_fd, (struct sockaddr *)&address, &size);
    printf("http://127.0.0.1:%u/\n", ntohs(address.sin_port)); /* PORT 0 lets the kernel choose */
    fflush(stdout);
    return sluice_loop_run(loop) < 0;
}
