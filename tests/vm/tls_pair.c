/* SPDX-License-Identifier: MIT
 *
 * tls-pair BYTES send|sendfile: two processes, a connection over loopback between them, and TLS by the kernel in both
 * directions (Documentation/networking/tls.rst), with a key that both know. Exit code 0: everything arrived.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/tls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
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

static int receive(int fd, size_t bytes)
{
    size_t size = 1 << 18;
    char *memory = malloc(size);
    if (start_tls(fd, TLS_RX) || memory == NULL)
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

static int transmit(int fd, size_t bytes, int from_file)
{
    size_t piece = 1 << 18;
    char *memory = calloc(1, piece);
    int file = open("/tmp/source", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (memory == NULL || file < 0 || ftruncate(file, (off_t)bytes) != 0)
        return die("/tmp/source");
    if (start_tls(fd, TLS_TX))
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
    if (count != 3 || bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 1) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0 ||
        connect(fd, (struct sockaddr *)&address, size) != 0)
        return die("connect");
    size_t bytes = strtoul(arguments[1], NULL, 10);
    pid_t child = fork();
    if (child == 0)
        return receive(accept(listener, NULL, NULL), bytes);
    if (transmit(fd, bytes, strcmp(arguments[2], "sendfile") == 0) != 0)
        return 1;
    if (child < 0 || waitpid(child, &status, 0) != child)
        return die("fork");
    return status != 0;
}
