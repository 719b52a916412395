/* SPDX-License-Identifier: MIT
 *
 * sender ADDRESS PORT BYTES sendfile|send|zerocopy|zerocopy-unanswered: send so many bytes of a file, or of memory, and
 * wait until they are taken: for the other side's word, or for the kernel's notifications of all. For guests, which
 * have no Python.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/errqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

static int die(const char *what)
{
    fprintf(stderr, "sender: %s: %s\n", what, strerror(errno));
    return 1;
}

/* Returns the number of the last call that was notified, plus one. */
static unsigned take_notifications(int fd, unsigned known)
{
    char control[256];
    struct msghdr message = {.msg_control = control, .msg_controllen = sizeof control};
    while (recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) >= 0) {
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        struct sock_extended_err error;
        if (header != NULL) {
            memcpy(&error, CMSG_DATA(header), sizeof error);
            known = error.ee_data + 1;
        }
        message.msg_controllen = sizeof control;
    }
    return known;
}

int main(int count, char **arguments)
{
    if (count != 5)
        return 2;
    size_t bytes = strtoul(arguments[3], NULL, 10), piece = 65536;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(arguments[2]))};
    inet_pton(AF_INET, arguments[1], &address.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        return die("connect");
    char *memory = calloc(1, piece);
    int zerocopy = strncmp(arguments[4], "zerocopy", 8) == 0,
        answered = strcmp(arguments[4], "zerocopy-unanswered") != 0;
    unsigned calls = 0, notified = 0;
    if (memory == NULL || (zerocopy && setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one) != 0))
        return die("SO_ZEROCOPY");
    int file = -1;
    if (strcmp(arguments[4], "sendfile") == 0) {
        file = open("/tmp/source", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (file < 0 || ftruncate(file, (off_t)bytes) != 0)
            return die("/tmp/source");
    }
    for (size_t left = bytes; left > 0;) {
        size_t size = left < piece ? left : piece;
        ssize_t sent = file >= 0 ? sendfile(fd, file, NULL, size) : send(fd, memory, size, zerocopy ? MSG_ZEROCOPY : 0);
        if (sent < 0 && errno == ENOBUFS) {
            struct pollfd wait = {.fd = fd};
            poll(&wait, 1, 100);
        } else if (sent <= 0) {
            return die("send");
        } else {
            left -= (size_t)sent;
            calls++;
        }
        if (zerocopy)
            notified = take_notifications(fd, notified);
    }
    while (!answered && notified < calls) {
        struct pollfd wait = {.fd = fd};
        poll(&wait, 1, 100);
        notified = take_notifications(fd, notified);
    }
    shutdown(fd, SHUT_WR);
    char answer;
    if (answered && read(fd, &answer, 1) != 1) /* the other side has taken everything */
        return die("read");
    if (zerocopy)
        take_notifications(fd, notified);
    close(fd);
    free(memory);
    return 0;
}
