/* SPDX-License-Identifier: MIT
 *
 * How many connections every address has, over all workers. Each worker counts its own in a table that all of them
 * can read; a sum asks all tables. Nobody else writes to a worker's table, so nothing is locked, and what a worker that
 * crashed had counted goes with its table.
 *
 * The memory is bounded: CLIENTS_MAX addresses for each worker. Addresses beyond are not counted.
 *
 * A sum is of one moment only as far as the caller's own table is concerned: workers that accept at the same time may
 * together pass a limit by as many as they are.
 */
#ifndef SLUICE_SERVICE_CLIENTS_H
#define SLUICE_SERVICE_CLIENTS_H

#include "service/shared.h"
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define CLIENTS_MAX 49152 /* three quarters of 65,536 entries, 2 MiB */

/* Whom an address counts as: an IPv4 address for itself, an IPv6 address for its /64, which is what one customer is
 * given at least (RFC 6177): whoever has one has all addresses in it. */
struct client_key {
    uint64_t high, low;
};

/* False: neither IPv4 nor IPv6, nothing to count. */
bool client_key_of(const struct sockaddr *address, struct client_key *ret_key);

/* Tables for so many workers with so many connections each. Before they are forked. Returns 0, -EINVAL or -ENOMEM. */
int clients_create(unsigned workers, uint64_t connections_each, struct shared *ret_tables);

/* The worker of this slot has ended: it has no connections any more. By the supervisor. */
void clients_forget(const struct shared *tables, unsigned slot);

/* What one worker needs. */
struct clients {
    const struct shared *tables;
    unsigned slot;
};

/* A connection of this address has begun. False: the table is full, it is not counted and must not leave. */
bool clients_enter(const struct clients *clients, struct client_key key);

/* One that was counted has ended. */
void clients_leave(const struct clients *clients, struct client_key key);

/* What connections that are counted do, and are counted by once more. It must have ended before they leave. */
enum client_doing {
    CLIENT_SENDING, /* it has something to send */
    CLIENT_REFUSED, /* it is told that it is one too many, and is there until its client has heard that */
    CLIENT_DOINGS
};

void clients_begin(const struct clients *clients, struct client_key key, enum client_doing doing);
void clients_end(const struct clients *clients, struct client_key key, enum client_doing doing);

struct client_counts {
    unsigned connections;
    unsigned doing[CLIENT_DOINGS]; /* of these */
};

/* Of all workers. */
struct client_counts clients_count(const struct clients *clients, struct client_key key);

#endif
