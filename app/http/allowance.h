/* SPDX-License-Identifier: MIT
 *
 * What a connection may have: so many bytes per second, and so many connections and bytes per second together with the
 * others of its client's address. Between server.c, connection.c and allowance.c only.
 *
 * Rates are kept by the kernel: it paces what the socket sends (SO_MAX_PACING_RATE), and nothing runs here meanwhile.
 * The rate of an address is shared out evenly among those of its connections, in all workers, that have something to
 * send. Who they are is looked at when a response begins, and four times a second.
 *
 * The kernel lets the first ten segments of a connection go unpaced, and sends two segments at least at a time.
 */
#ifndef SLUICE_APP_HTTP_ALLOWANCE_H
#define SLUICE_APP_HTTP_ALLOWANCE_H

#include "base/list.h"
#include "service/clients.h"
#include <sluice/sluice.h>

struct connection;
struct http_server;
struct http_site;

/* In the server. */
struct allowances {
    bool wanted;          /* some limit is set */
    bool table_full_said; /* each is said once */
    bool refusal_said;
    struct list sharing; /* connections of limited addresses that have something to send */
    struct sluice_timer timer;
};

/* Of a connection; NULL when nothing is limited. */
struct allowance {
    struct connection *connection;
    struct list sharing; /* in allowances.sharing, or by itself */
    struct client_key key;
    /* Bytes per second; UINT64_MAX: no limit. */
    uint64_t rate;  /* of the site whose response is, or was, sent */
    uint64_t share; /* of the address's rate */
    uint64_t told;  /* to the kernel */
    bool counted, refused;
};

void allowances_init(struct http_server *server);
void allowances_stop(struct http_server *server);

enum allowance_verdict {
    ALLOWANCE_GRANTED,
    ALLOWANCE_REFUSED, /* its address has as many connections as it may: to be told so */
    ALLOWANCE_ABUSED,  /* twice as many: no more effort is due */
};

/* The client's address is known. Once. */
enum allowance_verdict allowance_begin(struct connection *connection);

/* A response of this site is about to be sent; NULL: of none. */
void allowance_respond(struct connection *connection, const struct http_site *site);

/* The connection ends. Harmless without an allowance. */
void allowance_end(struct connection *connection);

/* Can the kernel pace? Returns 0 or a negative errno. */
int allowance_probe(void);

#endif
