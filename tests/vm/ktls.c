/* SPDX-License-Identifier: MIT
 *
 * ktls-pair send|change|receive ROUTE VERSION SUITE BYTES CERTIFICATE: two processes and a TLS connection between them.
 * Both make the handshake with OpenSSL; one leaves encrypting to the kernel where OpenSSL gets it to
 * (SSL_OP_ENABLE_KTLS), and moves the body by libsluice, or by OpenSSL where it does not; the other is OpenSSL all the
 * way, and checks every byte; for "change" it begins to read when the file that was sent has been overwritten. Prints
 * what the kernel does, by OpenSSL and by libsluice, and the receipt. Exit code 0: all arrived.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <sluice/sluice.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MSG_ZEROCOPY
#define MSG_ZEROCOPY 0x4000000
#endif
#define HEAD 100
#define PIECE 16000

struct task {
    bool sends; /* the end with kernel TLS does */
    enum sluice_route route;
    int version;
    const char *suite, *certificate;
    size_t bytes;
    int changed[2]; /* a pipe that tells the client so; -1: nothing is changed */
};

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "ktls-pair: %s: %s\n", what, strerror(errno));
    ERR_print_errors_fp(stderr);
    exit(1);
}

static unsigned char byte_at(size_t at)
{
    return (unsigned char)(at * 7 + at / 251 + at / 65536);
}

static void fill(unsigned char *to, size_t from, size_t size)
{
    for (size_t i = 0; i < size; i++)
        to[i] = byte_at(from + i);
}

static void check(const unsigned char *got, size_t from, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (got[i] != byte_at(from + i)) {
            fprintf(stderr, "ktls-pair: byte %zu is wrong\n", from + i);
            exit(1);
        }
}

static SSL *shake_hands(const struct task *task, int fd, bool server)
{
    SSL_CTX *context = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
    if (context == NULL || SSL_CTX_set_min_proto_version(context, task->version) != 1 ||
        SSL_CTX_set_max_proto_version(context, task->version) != 1 ||
        (task->version == TLS1_3_VERSION ? SSL_CTX_set_ciphersuites(context, task->suite)
                                         : SSL_CTX_set_cipher_list(context, task->suite)) != 1)
        die("SSL_CTX_new");
    if (server && (SSL_CTX_use_certificate_chain_file(context, task->certificate) != 1 ||
                   SSL_CTX_use_PrivateKey_file(context, task->certificate, SSL_FILETYPE_PEM) != 1))
        die(task->certificate);
    if (server)
        SSL_CTX_set_options(context, SSL_OP_ENABLE_KTLS);
    SSL *ssl = SSL_new(context);
    if (ssl == NULL || SSL_set_fd(ssl, fd) != 1 || (server ? SSL_accept(ssl) : SSL_connect(ssl)) != 1)
        die("handshake");
    return ssl;
}

static void play_client(const struct task *task, int fd)
{
    static unsigned char piece[PIECE];
    SSL *ssl = shake_hands(task, fd, false);
    size_t at = 0;
    char byte;
    if (task->changed[0] >= 0 && read(task->changed[0], &byte, 1) != 1)
        die("nothing was changed");
    for (;;) {
        int size;
        if (!task->sends) {
            size_t part = task->bytes - at < PIECE ? task->bytes - at : PIECE;
            if (part == 0)
                break;
            fill(piece, at, part);
            size = SSL_write(ssl, piece, (int)part);
            if (size <= 0)
                die("SSL_write");
        } else {
            size = SSL_read(ssl, piece, PIECE);
            if (size <= 0 && SSL_get_error(ssl, size) == SSL_ERROR_ZERO_RETURN)
                break;
            if (size <= 0)
                die("SSL_read");
            check(piece, at, (size_t)size);
        }
        at += (size_t)size;
    }
    if (at != task->bytes + (task->sends ? HEAD : 0)) {
        fprintf(stderr, "ktls-pair: %zu bytes arrived\n", at);
        exit(1);
    }
    SSL_shutdown(ssl);
    exit(0);
}

/* Of the pattern from byte `from` on, anonymous. */
static int file_of(size_t from, size_t bytes)
{
    static unsigned char piece[PIECE];
    int fd = memfd_create("body", MFD_CLOEXEC);
    for (size_t at = 0; at < bytes;) {
        size_t part = bytes - at < PIECE ? bytes - at : PIECE;
        fill(piece, from + at, part);
        ssize_t written = write(fd, piece, part);
        if (written <= 0)
            die("write");
        at += (size_t)written;
    }
    return fd;
}

static void move(struct sluice_segment *segments, size_t count, struct sluice_end *sink, enum sluice_route route)
{
    struct sluice_receipt receipt;
    struct sluice_error error;
    char text[4096];
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = segments,
                                              .segment_count = count,
                                              .sinks = &sink,
                                              .sink_count = 1,
                                              .route = route};
    if (sluice_transfer_run(&options, &receipt, &error) < 0) {
        sluice_error_format(&error, text, sizeof text);
        fprintf(stderr, "ktls-pair: %s\n", text);
        exit(1);
    }
    sluice_receipt_format_json(&receipt, text, sizeof text);
    printf("%s\n", text);
}

static struct sluice_end *end_of(int fd)
{
    struct sluice_end *end;
    if (sluice_end_open(fd, 0, &end) < 0)
        die("sluice_end_open");
    return end;
}

static void send_by_openssl(SSL *ssl, size_t bytes)
{
    static unsigned char piece[PIECE];
    for (size_t at = 0; at < bytes;) {
        size_t part = bytes - at < PIECE ? bytes - at : PIECE;
        fill(piece, at, part);
        int size = SSL_write(ssl, piece, (int)part);
        if (size <= 0)
            die("SSL_write");
        at += (size_t)size;
    }
    printf("by OpenSSL\n");
}

static void send_body(const struct task *task, SSL *ssl, struct sluice_end *connection)
{
    unsigned char head[HEAD];
    struct sluice_tls tls;
    if (sluice_end_tls(connection, &tls) < 0)
        die("sluice_end_tls");
    if (tls.send == SLUICE_TLS_NONE) {
        send_by_openssl(ssl, HEAD + task->bytes);
        return;
    }
    fill(head, 0, HEAD);
    if (send(sluice_end_fd(connection), "x", 1, MSG_ZEROCOPY) != -1 || errno != EOPNOTSUPP)
        die("kernel TLS was lent memory");
    struct sluice_end *file = end_of(file_of(HEAD, task->bytes));
    struct sluice_segment segments[] = {
        {.kind = SLUICE_SEGMENT_MEMORY, .data = head, .length = HEAD},
        {.kind = SLUICE_SEGMENT_FILE, .end = file, .length = task->bytes},
    };
    move(segments, 2, connection, task->route);
    if (task->changed[1] >= 0) {
        static const unsigned char other[PIECE];
        for (size_t at = 0; at < task->bytes; at += PIECE)
            if (pwrite(sluice_end_fd(file), other, PIECE, (off_t)at) != PIECE)
                die("pwrite");
        if (write(task->changed[1], "!", 1) != 1)
            die("write");
    }
    sluice_end_close(file);
}

static void receive_body(const struct task *task, struct sluice_end *connection)
{
    int fd = file_of(0, 0);
    struct sluice_end *file = end_of(fd);
    struct sluice_segment segment = {.kind = SLUICE_SEGMENT_STREAM, .end = connection, .length = SLUICE_UNTIL_END};
    move(&segment, 1, file, task->route);
    unsigned char *got = mmap(NULL, task->bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (lseek(fd, 0, SEEK_END) != (off_t)task->bytes || got == MAP_FAILED)
        die("what was received");
    check(got, 0, task->bytes);
    sluice_end_close(file);
}

static void play_server(const struct task *task, int fd)
{
    struct sluice_tls tls;
    struct sluice_end *connection = end_of(fd);
    SSL *ssl = shake_hands(task, fd, true);
    if (sluice_end_refresh(connection) < 0 || sluice_end_tls(connection, &tls) < 0)
        die("sluice_end_refresh");
    printf("%d %d %s %s %x %s\n", BIO_get_ktls_send(SSL_get_wbio(ssl)) == 1, BIO_get_ktls_recv(SSL_get_rbio(ssl)) == 1,
           sluice_tls_by_name(tls.send), sluice_tls_by_name(tls.receive), tls.version, tls.cipher);
    if (task->sends)
        send_body(task, ssl, connection);
    else if (tls.receive == SLUICE_TLS_NONE)
        die("the kernel does not decrypt");
    else
        receive_body(task, connection);
    sluice_end_close(connection);
    SSL_shutdown(ssl);
}

int main(int count, char **arguments)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), status = 1, route;
    if (count == 2 && strcmp(arguments[1], "probe") == 0) {
        const char *reason = "yes";
        sluice_tls_probe(&reason);
        printf("%s\n", reason);
        return 0;
    }
    if (count != 7 || (route = sluice_route_by_name(arguments[2])) < 0)
        return 2;
    struct task task = {.sends = strcmp(arguments[1], "receive") != 0,
                        .route = (enum sluice_route)route,
                        .version = strcmp(arguments[3], "1.3") == 0 ? TLS1_3_VERSION : TLS1_2_VERSION,
                        .suite = arguments[4],
                        .bytes = strtoul(arguments[5], NULL, 10),
                        .certificate = arguments[6],
                        .changed = {-1, -1}};
    if (strcmp(arguments[1], "change") == 0 && pipe(task.changed) != 0)
        die("pipe");
    if (bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 1) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0)
        die("listen");
    signal(SIGPIPE, SIG_IGN);
    pid_t child = fork();
    if (child == 0) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fd, (struct sockaddr *)&address, size) != 0)
            die("connect");
        play_client(&task, fd);
    }
    play_server(&task, accept(listener, NULL, NULL));
    if (child < 0 || waitpid(child, &status, 0) != child)
        die("fork");
    return status != 0;
}
