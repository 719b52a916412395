/* SPDX-License-Identifier: MIT
 *
 * One direction of a connection: what comes from one end goes to the other, by whichever way is cheaper for what flows.
 *
 *   IDLE        not begun
 *   RECEIVING   small messages: each is received into the loop's memory and sent from there. Holds no memory
 *   SENDING     the sink did not take all of one: the rest lies in memory, and the source waits
 *   STREAMING   bulk: a transfer until the end of the stream, through a pooled pipe. A mirrored direction is always so
 *   ENDED       the source has ended, and the sink was told
 *
 *   RECEIVING -> STREAMING    a receive filled its buffer, and much more waits behind it, or much has come already
 *                             without an answer
 *   STREAMING -> RECEIVING    the source fell silent after too little of that
 */
#ifndef SLUICE_PROXY_RELAY_H
#define SLUICE_PROXY_RELAY_H

#include <sluice/sluice.h>
#include <stdbool.h>
#include <stdint.h>

/* Received at a time: what a bulk stream on a new connection is copied of before it is known for one. */
#define RELAY_MESSAGE_MAX 16384

enum relay_state { RELAY_IDLE, RELAY_RECEIVING, RELAY_SENDING, RELAY_STREAMING, RELAY_ENDED };

struct session;
struct mirror;

struct relay {
    struct session *session;
    struct sluice_transfer *transfer; /* in SENDING and STREAMING */
    struct mirror *mirror;            /* or NULL */
    uint8_t state;
    bool upward;       /* from the client to the server */
    bool broken;       /* its sink takes no more */
    bool was_reset;    /* because it was reset, before it had ended its own stream */
    uint32_t run;      /* bytes that came since the other relay was given any, as far as they were received */
    int unsent;        /* in its sink's socket, when the idle timer looked last */
    uint64_t streamed; /* by the transfer under way, likewise */
};

/* Begin with bytes of the source that were received already (and with what goes before them to the sink alone, the
 * header). Both are copied where they cannot leave at once. False: the connection was closed and freed. */
bool relay_start(struct relay *relay, const char *header, size_t header_length, const char *early, size_t early_length);

/* Bytes moved since this was called last? */
bool relay_progressed(struct relay *relay);

/* The connection is being closed: end what is under way; the shadow's, too, with a reset or without. */
void relay_stop(struct relay *relay, bool reset);

/* What is the same for all transfers of a service. */
struct service_at_work;
void relay_prepare(struct service_at_work *service);

/* For mirror.c: the relay's own sink has all there is, though its shadow may not. */
void relay_sink_has_all(struct relay *relay);

/* Nothing of it is under way any more. */
static inline bool relay_is_over(const struct relay *relay)
{
    return relay->state == RELAY_ENDED && relay->transfer == NULL;
}

#endif
