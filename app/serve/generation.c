/* SPDX-License-Identifier: MIT */
#include "serve/generation.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "http/allowance.h"
#include "service/admin.h"
#include "service/descriptors.h"
#include "service/loop.h"
#include "service/manager.h"
#include "service/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* How many connections and open files a worker may have. */
static void share_descriptors(struct serve_generation *generation)
{
    const struct serve_options *options = &generation->config.options;
    /* An eighth for files nobody is using. Of what is left a quarter for files in use, for pipes, and for the loop. */
    uint64_t descriptors = descriptors_raise_limit();
    uint64_t files = descriptors / 8 < 8192 ? descriptors / 8 : 8192;
    uint64_t connections = (descriptors - files) / 4 * 3;
    if (options->max_connections > 0) {
        uint64_t each = (options->max_connections + generation->workers - 1) / generation->workers;
        if (each < connections)
            connections = each;
    }
    generation->open_files_each = files < 1 ? 1 : (unsigned)files;
    generation->connections_each = connections < 1 ? 1 : (unsigned)connections;
}

static int check_pacing(const struct serve_generation *generation, struct failure *failure)
{
    const struct http_sites *sites = &generation->config.sites;
    bool wanted = generation->config.options.rate_per_address > 0;
    for (unsigned i = 0; i < sites->count; i++)
        wanted |= sites->items[i].rate > 0;
    int r = wanted ? allowance_probe() : 0;
    return r < 0 ? failure_set(
                       failure, r,
                       SERVE_PROGRAM
                       ": rate, rate-per-address: this kernel does not pace sockets (SO_MAX_PACING_RATE: %s, %s); "
                       "leave them out, or use one that does",
                       text_errno_meaning(r), text_errno_name(r))
                 : 0;
}

static int address_of(struct serve_listener *listener, struct failure *failure)
{
    int r = address_of_socket(listener->fd, &listener->address);
    return r < 0 ? failure_set(failure, r, "getsockname: %s", text_errno_meaning(r)) : 0;
}

/* said: somebody did say where. If not, whoever passed a socket has. */
static int listen_anew(const char *where, bool said, const char *congestion, struct serve_listener *listener,
                       struct failure *failure)
{
    const struct listen_options options = {.congestion = congestion};
    struct address address;
    int fd = said ? -1 : manager_socket(NULL);
    int r = fd < 0 ? address_parse(where, &address, failure) : address_of_socket(fd, &address);
    if (fd >= 0 && r == 0 && address.any.sa_family == AF_UNIX)
        r = failure_set(failure, -EAFNOSUPPORT,
                        "the service manager passed a Unix socket; write ListenStream=PORT or ADDR:PORT in its .socket "
                        "unit");
    if (fd < 0 && r == 0)
        r = manager_listen(&address, &options, &fd, failure);
    else if (congestion != NULL && r == 0)
        r = address_set_congestion(fd, congestion, failure);
    listener->fd = fd;
    if (r < 0)
        return r;
    /* Accepted sockets inherit it. The library says itself where more follows. */
    int on = 1;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0)
        return failure_set(failure, -errno, "TCP_NODELAY: %s", text_errno_meaning(errno));
    return address_of(listener, failure);
}

static bool same_text(const char *one, const char *other)
{
    return one == NULL || other == NULL ? one == other : strcmp(one, other) == 0;
}

/* One more descriptor of a socket. */
static int share_socket(int fd, int *ret_fd, struct failure *failure)
{
    *ret_fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return *ret_fd >= 0 ? 0
                        : failure_set(failure, -errno, "one more descriptor of a listening socket: %s",
                                      text_errno_meaning(errno));
}

/* NULL: nowhere. */
static const char *listener_place(const struct serve_options *options, enum serve_listener_kind kind)
{
    const char *const places[SERVE_LISTENERS] = {
        [SERVE_LISTENER_MAIN] = options->listen,
        [SERVE_LISTENER_TLS] = options->tls.listen,
        [SERVE_LISTENER_ADMIN] = options->admin,
    };
    return places[kind];
}

static int start_listener(struct serve_generation *generation, const struct serve_generation *previous,
                          enum serve_listener_kind kind, struct failure *failure)
{
    const struct serve_options *options = &generation->config.options;
    struct serve_listener *listener = &generation->listeners[kind];
    const char *place = listener_place(options, kind);
    if (place == NULL)
        return 0;
    if (previous != NULL && same_text(listener_place(&previous->config.options, kind), place)) {
        listener->taken_over = true;
        listener->address = previous->listeners[kind].address;
        return share_socket(previous->listeners[kind].fd, &listener->fd, failure);
    }
    if (kind == SERVE_LISTENER_ADMIN) {
        int r = admin_listen(place, options->admin_anywhere, &listener->fd, failure);
        return r == 0 ? address_of(listener, failure) : r;
    }
    return listen_anew(place, kind == SERVE_LISTENER_TLS || generation->config.says_where, options->congestion,
                       listener, failure);
}

static void say_of_tls(void *context, const char *line)
{
    (void)context;
    fprintf(stderr, SERVE_PROGRAM ": %s\n", line);
}

/* A certificate names addresses in another way; --tls-dev's is for this host whatever its sites are called. */
static void warn_of_names(const struct serve_generation *generation)
{
    const struct host_names *names = &generation->config.sites.names;
    for (unsigned i = 0; i < names->count && !generation->config.options.tls.development; i++) {
        const char *name = names->items[i].text;
        bool is_address = name[0] == '[' || name[strspn(name, "0123456789.")] == '\0';
        if (!is_address && !tls_context_covers(generation->tls, name))
            fprintf(stderr,
                    SERVE_PROGRAM ": no certificate is for %s: who asks for it by HTTPS is shown the first, and will "
                                  "refuse it\n",
                    name);
    }
}

static int load_tls(struct serve_generation *generation, struct tls_tickets **tickets, struct failure *failure)
{
    const struct serve_config *config = &generation->config;
    const char *option, *value;
    struct failure why;
    int r = serve_tls_load(&config->options.tls, &config->certificates, tickets, config->options.verbose, say_of_tls,
                           NULL, &generation->tls, &option, &value, &why);
    if (r < 0)
        return serve_config_wrong(config, option, value, r, &why, failure);
    warn_of_names(generation);
    return 0;
}

void serve_generation_free(struct serve_generation *generation)
{
    if (generation == NULL)
        return;
    rotated_log_close(&generation->access_log);
    identity_free(&generation->identity);
    for (unsigned kind = 0; kind < SERVE_LISTENERS; kind++)
        close_fd(generation->listeners[kind].fd);
    tls_context_free(generation->tls);
    serve_config_free(&generation->config);
    free(generation);
}

int serve_generation_prepare(struct serve_config *config, const struct serve_generation *previous,
                             struct tls_tickets **tickets, struct serve_generation **ret_generation,
                             struct failure *failure)
{
    struct serve_generation *generation = calloc(1, sizeof *generation);
    if (generation == NULL) {
        serve_config_free(config);
        return failure_set(failure, -ENOMEM, SERVE_PROGRAM ": out of memory");
    }
    *generation = (struct serve_generation){.config = *config, .listeners = {{.fd = -1}, {.fd = -1}, {.fd = -1}}};
    const struct serve_options *options = &generation->config.options;
    struct failure why;
    int r = 0;
    if (previous != NULL && options->loop == previous->config.options.loop &&
        options->sqpoll == previous->config.options.sqpoll)
        generation->loop = previous->loop;
    else if ((r = loop_choose(options->loop, options->sqpoll, &generation->loop, &why)) < 0)
        serve_config_wrong(&generation->config, "loop", NULL, r, &why, failure);
    if (r == 0)
        r = check_pacing(generation, failure);
    if (r == 0 && (r = identity_find(options->user, options->group, &generation->identity, NULL, &why)) < 0)
        serve_config_wrong(&generation->config, "user", NULL, r, &why, failure);
    if (r == 0 && serve_tls_is_wanted(&options->tls))
        r = load_tls(generation, tickets, failure);
    if (r < 0) {
        serve_generation_free(generation);
        return r;
    }
    generation->workers = options->workers > 0 ? (unsigned)options->workers : supervisor_cpu_count();
    share_descriptors(generation);
    *ret_generation = generation;
    return 0;
}

int serve_generation_open(struct serve_generation *generation, const struct serve_generation *previous,
                          struct failure *failure)
{
    const struct serve_options *options = &generation->config.options;
    /* A socket that was passed for TLS is known by its address; the main one takes the first that is left. */
    static const enum serve_listener_kind order[] = {SERVE_LISTENER_TLS, SERVE_LISTENER_MAIN, SERVE_LISTENER_ADMIN};
    for (size_t i = 0; i < SERVE_LISTENERS; i++) {
        int r = start_listener(generation, previous, order[i], failure);
        if (r < 0)
            return r;
    }
    return rotated_log_open(options->access_log, (enum log_format)options->access_log_format,
                            previous != NULL ? &previous->access_log : NULL, &generation->access_log, failure);
}

bool serve_generation_counts_addresses(const struct serve_generation *generation)
{
    const struct serve_options *options = &generation->config.options;
    return options->connections_per_address > 0 || options->rate_per_address > 0;
}

void serve_generation_describe(const struct serve_generation *generation, char *buffer, size_t size)
{
    char urls[2 * ADDRESS_TEXT_MAX + 40], tls_url[ADDRESS_TEXT_MAX + 16];
    const struct http_sites *sites = &generation->config.sites;
    bool replaced = serve_tls_replaces_http(&generation->config.options.tls);
    const struct serve_listener *tls = &generation->listeners[SERVE_LISTENER_TLS];
    address_format_url(replaced ? "https" : "http", &generation->listeners[SERVE_LISTENER_MAIN].address, urls,
                       sizeof urls);
    if (tls->fd >= 0) {
        size_t length = strlen(urls);
        address_format_url("https", &tls->address, tls_url, sizeof tls_url);
        snprintf(urls + length, sizeof urls - length, " and %s", tls_url);
    }
    if (sites->count == 1)
        snprintf(buffer, size, "%s at %s", sites->items[0].directory, urls);
    else
        snprintf(buffer, size, "%u sites at %s", sites->count, urls);
}

void serve_generation_take_over(const struct serve_generation *generation, const struct serve_generation *previous)
{
    const char *congestion = generation->config.options.congestion;
    char host[ADDRESS_CONGESTION_MAX];
    if (same_text(congestion, previous->config.options.congestion))
        return;
    if (congestion == NULL)
        congestion = address_host_congestion(host);
    for (unsigned kind = 0; kind < SERVE_LISTENERS; kind++)
        if (kind != SERVE_LISTENER_ADMIN && generation->listeners[kind].taken_over)
            (void)address_set_congestion(generation->listeners[kind].fd, congestion, NULL); /* which was checked */
}

static void shut_down(const struct serve_listener *listener)
{
    if (listener->fd >= 0)
        manager_shut_down(listener->fd);
}

void serve_generation_end_listening(const struct serve_generation *generation, const struct serve_generation *later)
{
    for (unsigned kind = 0; kind < SERVE_LISTENERS; kind++)
        if (!later->listeners[kind].taken_over)
            shut_down(&generation->listeners[kind]);
}

void serve_generation_stop_serving(const struct serve_generation *generation)
{
    shut_down(&generation->listeners[SERVE_LISTENER_MAIN]);
    shut_down(&generation->listeners[SERVE_LISTENER_TLS]);
}
