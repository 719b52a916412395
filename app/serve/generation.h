/* SPDX-License-Identifier: MIT
 *
 * A configuration at work: its sockets, certificates and logs. Made by the supervisor, once at the start and once for
 * every reload. Workers use the one that they were forked with until the last of their connections has ended.
 */
#ifndef SLUICE_APP_SERVE_GENERATION_H
#define SLUICE_APP_SERVE_GENERATION_H

#include "serve/config.h"
#include "service/address.h"
#include "service/identity.h"
#include "service/rotated_log.h"

enum serve_listener_kind {
    SERVE_LISTENER_MAIN, /* HTTP, or instead of it HTTPS */
    SERVE_LISTENER_TLS,
    SERVE_LISTENER_ADMIN,
    SERVE_LISTENERS
};

struct serve_listener {
    int fd; /* -1: none */
    struct address address;
    bool taken_over; /* another descriptor of the previous generation's socket */
};

struct serve_generation {
    struct serve_config config;
    struct sluice_loop_options loop;
    struct serve_listener listeners[SERVE_LISTENERS];
    struct tls_context *tls; /* NULL: none */
    struct rotated_log access_log;
    struct identity identity; /* of the workers */
    unsigned workers, connections_each, open_files_each;
};

/* Takes config, also on failure. What can be checked without changing anything outside; previous is NULL at the start.
 * tickets: made when they are first wanted. Returns 0 or a negative errno. */
int serve_generation_prepare(struct serve_config *config, const struct serve_generation *previous,
                             struct tls_tickets **tickets, struct serve_generation **ret_generation,
                             struct failure *failure);

/* The rest: sockets and logs. Returns 0 or a negative errno. */
int serve_generation_open(struct serve_generation *generation, const struct serve_generation *previous,
                          struct failure *failure);

/* Frees what was not handed over; NULL is fine. Sockets that nobody else uses end to listen only when the last process
 * closes them. */
void serve_generation_free(struct serve_generation *generation);

/* It has come into force: what accepted sockets inherit changes on those that it took over, too. */
void serve_generation_take_over(const struct serve_generation *generation, const struct serve_generation *previous);

/* Of the sockets that the other generation does not use; workers that drain, or were forked for nothing, have them
 * open, too. Of two generations the later one knows what it took over. */
void serve_generation_end_listening(const struct serve_generation *generation, const struct serve_generation *later);

/* Nobody is served anew: as long as a socket listens, the kernel takes connections that nobody accepts. Operators may
 * still look at what drains. */
void serve_generation_stop_serving(const struct serve_generation *generation);

/* Is there a limit for all connections of a client's address together? */
bool serve_generation_counts_addresses(const struct serve_generation *generation);

/* What it serves, and where, for people. */
void serve_generation_describe(const struct serve_generation *generation, char *buffer, size_t size);

#endif
