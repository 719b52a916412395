/* SPDX-License-Identifier: MIT
 *
 * tls-pair BYTES send|sendfile [by-another]: two processes, a connection over loopback between them, and TLS by the
 * kernel in both directions (Documentation/networking/tls.rst), with a key that both know. by-another: both use the
 * connection as it is for one byte first, and then it is not they who begin with TLS, but for the sender another
 * process, and for the receiver another thread. Exit code 0: everything arrived.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/tls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef TCP_ULP
#define TCP_ULP 31
#endif
#ifndef SOL_TLS
#define SOL_TLS 282
#endif

static int die(const char *what)
{
    perror(what);
    return 1;
}

static int start_tls(int fd, int direction)
{
    struct tls12_crypto_info_aes_gcm_128 keys = {
        .info = {.version = TLS_1_2_VERSION, .cipher_type = TLS_CIPHER_AES_GCM_128}};
    memset(keys.key, 7, sizeof keys.key);
    return setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", sizeof "tls") != 0 ||
           setsockopt(fd, SOL_TLS, direction, &keys, sizeof keys) != 0;
}

static void *start_in_thread(void *fd)
{
    return start_tls(*(int *)fd, TLS_RX) ? fd : NULL;
}

static int start_receiving(int fd, bool by_another)
{
    pthread_t thread;
    void *failed;
    char byte;
    if (!by_another)
        return start_tls(fd, TLS_RX);
    return recv(fd, &byte, 1, 0) != 1 || pthread_create(&thread, NULL, start_in_thread, &fd) != 0 ||
           pthread_join(thread, &failed) != 0 || failed != NULL;
}

static int start_sending(int fd, bool by_another)
{
    int status = 1;
    if (!by_another)
        return start_tls(fd, TLS_TX);
    if (send(fd, "x", 1, 0) != 1)
        return 1;
    pid_t child = fork();
    if (child == 0)
        _exit(start_tls(fd, TLS_TX));
    return child < 0 || waitpid(child, &status, 0) != child || status != 0;
}

static int receive(int fd, size_t bytes, bool by_another)
{
    size_t size = 1 << 18;
    char *memory = malloc(size);
    if (memory == NULL || start_receiving(fd, by_another))
        return die("TLS_RX");
    while (bytes > 0) {
        ssize_t got = recv(fd, memory, size, 0);
        if (got <= 0)
            return die("recv");
        bytes -= (size_t)got;
    }
    free(memory);
    return 0;
}

static int transmit(int fd, size_t bytes, bool from_file, bool by_another)
{
    size_t piece = 1 << 18;
    char *memory = calloc(1, piece);
    int file = open("/tmp/source", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (memory == NULL || file < 0 || ftruncate(file, (off_t)bytes) != 0)
        return die("/tmp/source");
    if (start_sending(fd, by_another))
        return die("TLS_TX");
    while (bytes > 0) {
        size_t size = bytes < piece ? bytes : piece;
        ssize_t sent = from_file ? sendfile(fd, file, NULL, size) : send(fd, memory, size, 0);
        if (sent <= 0)
            return die("send");
        bytes -= (size_t)sent;
    }
    free(memory);
    return 0;
}

int main(int count, char **arguments)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), fd = socket(AF_INET, SOCK_STREAM, 0), status = 1;
    if (count < 3 || bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 1) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0 ||
        connect(fd, (struct sockaddr *)&address, size) != 0)
        return die("connect");
    size_t bytes = strtoul(arguments[1], NULL, 10);
    bool by_another = count > 3;
    pid_t child = fork();
    if (child == 0)
        return receive(accept(listener, NULL, NULL), bytes, by_another);
    if (transmit(fd, bytes, strcmp(arguments[2], "sendfile") == 0, by_another) != 0)
        return 1;
    if (child < 0 || waitpid(child, &status, 0) != child)
        return die("fork");
    return status != 0;
}
