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
    return r < 0
               ? failure_set(failure, r,
                             "rate, rate-per-address: this kernel does not pace sockets (SO_MAX_PACING_RATE: %s, %s); "
                             "leave them out, or use one that does",
                             text_errno_meaning(r), text_errno_name(r))
               : 0;
}

/* said: somebody did say where. If not, whoever passed a socket has. */
static int listen_anew(const char *where, bool said, const char *congestion, int *ret_listener,
                       struct address *ret_address, struct failure *failure)
{
    const struct listen_options options = {.congestion = congestion};
    struct address address;
    int fd = said ? -1 : manager_socket(NULL);
    int r = fd < 0 ? address_parse(where, &address, failure) : 0;
    if (fd < 0 && r == 0)
        r = manager_listen(&address, &options, &fd, failure);
    else if (congestion != NULL && r == 0)
        r = address_set_congestion(fd, congestion, failure);
    *ret_listener = fd;
    if (r < 0)
        return r;
    /* Accepted sockets inherit it. The library says itself where more follows. */
    int on = 1;
    if (setsockopt(*ret_listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0)
        return failure_set(failure, -errno, "TCP_NODELAY: %s", text_errno_meaning(errno));
    r = address_of_socket(*ret_listener, ret_address);
    return r < 0 ? failure_set(failure, r, "getsockname: %s", text_errno_meaning(r)) : 0;
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

static int start_listening(struct serve_generation *generation, const struct serve_generation *previous,
                           struct failure *failure)
{
    const struct serve_options *options = &generation->config.options;
    if (previous == NULL || !same_text(previous->config.options.listen, options->listen))
        return listen_anew(options->listen, generation->config.says_where, options->congestion, &generation->listener,
                           &generation->address, failure);
    generation->has_previous_listener = true;
    generation->address = previous->address;
    return share_socket(previous->listener, &generation->listener, failure);
}

static int start_tls_listener(struct serve_generation *generation, const struct serve_generation *previous,
                              struct failure *failure)
{
    const struct serve_options *options = &generation->config.options;
    if (options->tls.listen == NULL)
        return 0;
    if (previous == NULL || !same_text(previous->config.options.tls.listen, options->tls.listen))
        return listen_anew(options->tls.listen, true, options->congestion, &generation->tls_listener,
                           &generation->tls_address, failure);
    generation->has_previous_tls_listener = true;
    generation->tls_address = previous->tls_address;
    return share_socket(previous->tls_listener, &generation->tls_listener, failure);
}

static void say_of_tls(void *context, const char *line)
{
    (void)context;
    fprintf(stderr, SERVE_PROGRAM ": %s\n", line);
}

static int start_admin_listener(struct serve_generation *generation, const struct serve_generation *previous,
                                struct failure *failure)
{
    const struct serve_options *options = &generation->config.options;
    if (options->admin == NULL)
        return 0;
    if (previous == NULL || !same_text(previous->config.options.admin, options->admin))
        return admin_listen("admin", options->admin, options->admin_anywhere, &generation->admin, failure);
    generation->has_previous_admin = true;
    return share_socket(previous->admin, &generation->admin, failure);
}

void serve_generation_free(struct serve_generation *generation)
{
    if (generation == NULL)
        return;
    rotated_log_close(&generation->access_log);
    identity_free(&generation->identity);
    close_fd(generation->listener);
    close_fd(generation->tls_listener);
    tls_context_free(generation->tls);
    close_fd(generation->admin);
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
        return failure_set(failure, -ENOMEM, "out of memory");
    }
    *generation = (struct serve_generation){.config = *config, .listener = -1, .tls_listener = -1, .admin = -1};
    const struct serve_options *options = &generation->config.options;
    int r = 0;
    if (previous != NULL && options->loop == previous->config.options.loop &&
        options->sqpoll == previous->config.options.sqpoll)
        generation->loop = previous->loop;
    else
        r = loop_choose(options->loop, options->sqpoll, &generation->loop, failure);
    if (r == 0 && options->congestion != NULL)
        r = address_congestion_check(options->congestion, failure);
    if (r == 0)
        r = check_pacing(generation, failure);
    if (r == 0)
        r = identity_find(options->user, options->group, &generation->identity, failure);
    if (r == 0 && serve_tls_is_wanted(&options->tls))
        r = serve_tls_load(&options->tls, &generation->config.certificates, tickets, options->verbose, say_of_tls, NULL,
                           &generation->tls, failure);
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
    /* A socket that was passed for TLS is known by its address; the other one takes the first that is left. */
    int r = start_tls_listener(generation, previous, failure);
    if (r == 0)
        r = start_listening(generation, previous, failure);
    if (r == 0)
        r = start_admin_listener(generation, previous, failure);
    if (r < 0)
        return r;
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
    address_format_url(replaced ? "https" : "http", &generation->address, urls, sizeof urls);
    if (generation->tls_listener >= 0) {
        size_t length = strlen(urls);
        address_format_url("https", &generation->tls_address, tls_url, sizeof tls_url);
        snprintf(urls + length, sizeof urls - length, " and %s", tls_url);
    }
    if (sites->count == 1)
        snprintf(buffer, size, "%s at %s", sites->items[0].directory, urls);
    else
        snprintf(buffer, size, "%u sites at %s", sites->count, urls);
}

void serve_generation_end_listening(const struct serve_generation *generation, const struct serve_generation *later)
{
    if (!later->has_previous_listener)
        manager_shut_down(generation->listener);
    if (generation->tls_listener >= 0 && !later->has_previous_tls_listener)
        manager_shut_down(generation->tls_listener);
    if (generation->admin >= 0 && !later->has_previous_admin)
        manager_shut_down(generation->admin);
}
