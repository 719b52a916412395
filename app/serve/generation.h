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

struct serve_generation {
    struct serve_config config;
    struct sluice_loop_options loop;
    int listener, tls_listener, admin; /* the last two: -1: none */
    struct address address, tls_address;
    /* They are other descriptors of the same sockets. */
    bool has_previous_listener, has_previous_tls_listener, has_previous_admin;
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

/* Of the sockets that the other generation does not use; workers that drain, or were forked for nothing, have them
 * open, too. Of two generations the later one knows what it took over. */
void serve_generation_end_listening(const struct serve_generation *generation, const struct serve_generation *later);

/* Is there a limit for all connections of a client's address together? */
bool serve_generation_counts_addresses(const struct serve_generation *generation);

/* What it serves, and where, for people. */
void serve_generation_describe(const struct serve_generation *generation, char *buffer, size_t size);

#endif
