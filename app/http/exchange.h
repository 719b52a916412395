/* SPDX-License-Identifier: MIT
 *
 * One request and its response, from the head to the last byte sent. Between connection.c, respond.c and exchange.c
 * only.
 *
 * Functions that return enum progress may have closed and freed the connection: nothing may touch it after ENDED.
 */
#ifndef SLUICE_APP_HTTP_EXCHANGE_H
#define SLUICE_APP_HTTP_EXCHANGE_H

#include "body.h"
#include "connection.h"
#include "range.h"

enum progress {
    ANSWERED, /* sent; the next request may be looked at */
    PENDING,  /* a callback will go on */
    ENDED,    /* lingering, or closed and freed */
};

/* What a response needs until it is sent. Not held by idle connections; reused. */
struct exchange {
    struct connection *connection;
    const struct http_site *site; /* NULL: it is not known, or nobody's */
    struct exchange *next_spare;
    struct file *file;                /* whose bytes are sent; or NULL */
    char *text;                       /* a response of our own, head and body, or between the parts; or NULL */
    struct files_lookup *lookup;      /* LOOKING_UP a file */
    struct listing_job *listing;      /* LOOKING_UP a directory */
    struct sluice_transfer *transfer; /* SENDING */
    struct sluice_receipt *counted;   /* what of its receipt is in the totals already; NULL: nothing */
    uint64_t began;                   /* turn_us of the turn that read the request, once that turn is over; or 0 */
    uint64_t delivered;               /* what the client had acknowledged when the timer was last looked at */
    uint64_t sent_before;             /* by TLS on this connection */
    size_t text_length, head_length;
    unsigned status;
    unsigned tried;        /* LOOKING_UP a sibling of file: codings of those that the client accepts */
    bool close, linger;    /* after the response */
    struct http_body body; /* SKIPPING; not cleared */
    char head[];           /* http_server.head_room */
};

/* NULL: no memory. Without a site. */
struct exchange *exchange_get(struct connection *connection);
void exchange_put(struct http_server *server, struct exchange *exchange);

/* For a request, which is counted. NULL: no memory; the connection is closed. */
struct exchange *exchange_begin(struct connection *connection, const struct http_request *request);

/* Its turn goes by without it being answered. */
void exchange_note_begin(struct exchange *exchange);

/* Wait for what a helper finds. */
enum progress exchange_await(struct connection *connection, struct exchange *exchange);

/* It has: go on with the request, which the connection held meanwhile. Returns the connection. */
struct connection *exchange_resume(struct exchange *exchange, struct http_request *ret_request);

/* response->connection and head_only are set here. */
enum progress exchange_send_text(struct connection *connection, struct exchange *exchange,
                                 const struct http_request *request, const struct response_text *response);
enum progress exchange_send_status(struct connection *connection, struct exchange *exchange,
                                   const struct http_request *request, unsigned status, const char *fields);

/* About exchange->file: with length bytes of it from first on, or with none. */
enum progress exchange_send_range(struct connection *connection, struct exchange *exchange,
                                  const struct http_request *request, unsigned status, uint64_t first, uint64_t length);

/* Several ranges of exchange->file leave by one transfer, so that each goes by the route that a file of its size would.
 */
enum progress exchange_send_parts(struct connection *connection, struct exchange *exchange,
                                  const struct http_request *request, const struct http_ranges *ranges);

#endif
