/* SPDX-License-Identifier: MIT */
#include "proxy/relay.h"
#include "proxy/mirror.h"
#include "proxy/session.h"

#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* From about so many bytes at a time two splices cost less than recv and send (docs/when-splicing-pays.md). */
#define SPLICE_FROM 32768
/* So much without an answer is no message, however it comes in. */
#define BULK_FROM 65536

/* All that return bool: false: the connection was closed and freed. */
static bool stream(struct relay *relay);

static struct sluice_loop *loop_of(const struct relay *relay)
{
    return relay->session->service->worker->loop;
}

void relay_prepare(struct service_at_work *service)
{
    const struct proxy_service *given = service->service;
    service->message = (struct sluice_transfer_options){
        .size = sizeof service->message,
        .segment_count = 1,
        .sink_count = 1,
    };
    service->stream = service->message;
    service->stream.route = given->route;
    service->stream.quiet_below = given->route == SLUICE_ROUTE_SPLICE ? 0 : RELAY_MESSAGE_MAX;
}

/* Only the peer of a socket that is broken may still learn what came from it: the other direction goes on. After an
 * error of another kind (no memory, no way to the host) there is nothing to wait for. */
static bool sink_failed(struct relay *relay, int error)
{
    relay->state = RELAY_ENDED;
    relay->broken = true;
    relay->was_reset = error != -EPIPE; /* tcp_reset(): EPIPE when the FIN had come before */
    if (error != -EPIPE && error != -ECONNRESET) {
        session_sink_lost(relay->session, relay);
        return false;
    }
    sluice_loop_receive_pause(loop_of(relay), relay_source(relay));
    return session_sink_failed(relay->session, relay);
}

void relay_sink_has_all(struct relay *relay)
{
    relay->state = RELAY_ENDED;
    shutdown(sluice_end_fd(relay_sink(relay)), SHUT_WR);
}

/* A socket says once that it was reset. If the other relay, which sends to it, has been told, this is no end. The ring
 * may report it here before it reports there: a stream that has really ended leaves the socket in CLOSE_WAIT. */
static bool was_reset(const struct relay *relay)
{
    const struct relay *other = relay_opposite(relay);
    if (other->transfer == NULL)
        return other->was_reset;
    uint8_t state = TCP_ESTABLISHED; /* the first byte of struct tcp_info */
    socklen_t size = sizeof state;
    getsockopt(sluice_end_fd(relay_source(relay)), IPPROTO_TCP, TCP_INFO, &state, &size);
    return state == TCP_CLOSE;
}

static bool source_ended(struct relay *relay)
{
    if (was_reset(relay)) {
        session_source_failed(relay->session, relay);
        return false;
    }
    if (relay->state != RELAY_ENDED)
        relay_sink_has_all(relay);
    if (relay->mirror != NULL)
        mirror_end(relay->mirror, false);
    relay->mirror = NULL;
    return session_half_closed(relay->session, relay);
}

static bool go_on_receiving(struct relay *relay)
{
    relay->state = RELAY_RECEIVING;
    sluice_loop_receive_resume(loop_of(relay), relay_source(relay)); /* calls back later */
    return true;
}

static bool transfer_failed(struct relay *relay, const struct sluice_error *error)
{
    if (error->side == SLUICE_SIDE_SINK)
        return sink_failed(relay, error->code);
    session_source_failed(relay->session, relay);
    return false;
}

static bool streamed(struct relay *relay, int result, const struct sluice_error *error)
{
    if (result < 0)
        return transfer_failed(relay, error);
    if (relay->mirror != NULL)
        return source_ended(relay);
    return go_on_receiving(relay); /* if it was the end of the stream, that is what is received next */
}

static void on_sent(void *context, struct sluice_transfer *transfer, int result)
{
    struct relay *relay = context;
    relay->transfer = NULL;
    session_count(relay->session, relay, sluice_transfer_receipt(transfer, 0));
    if (relay->session->state == CLOSED)
        return;
    if (result < 0)
        sink_failed(relay, result);
    else if (relay->mirror != NULL)
        stream(relay);
    else
        go_on_receiving(relay);
}

static void on_streamed(void *context, struct sluice_transfer *transfer, int result)
{
    struct relay *relay = context;
    relay->transfer = NULL;
    session_count(relay->session, relay, sluice_transfer_receipt(transfer, 0));
    if (relay->mirror != NULL)
        mirror_count(relay->mirror, transfer);
    if (relay->session->state == CLOSED)
        return;
    streamed(relay, result, sluice_transfer_error(transfer));
}

static bool stream(struct relay *relay)
{
    struct session *session = relay->session;
    struct sluice_transfer_options *options = &session->service->stream;
    struct sluice_segment segment = {
        .kind = SLUICE_SEGMENT_STREAM, .end = relay_source(relay), .length = SLUICE_UNTIL_END};
    struct sluice_end *sink = relay_sink(relay);
    const struct sluice_receipt *receipt;
    struct sluice_error error;
    options->segments = &segment;
    options->sinks = &sink;
    relay->state = RELAY_STREAMING;
    relay->streamed = 0;
    sluice_loop_receive_pause(loop_of(relay), segment.end);
    int result;
    if (relay->mirror != NULL)
        result = mirror_stream(relay->mirror, options, on_streamed, relay, &relay->transfer, &receipt, &error);
    else
        result = sluice_loop_transfer(loop_of(relay), options, on_streamed, relay, &relay->transfer, &receipt, &error);
    if (result == 0)
        return true;
    relay->transfer = NULL;
    session_count(session, relay, receipt);
    return streamed(relay, result, &error);
}

/* What a full buffer was not all of. */
static unsigned waiting_at_source(const struct relay *relay)
{
    int waiting = 0;
    return ioctl(sluice_end_fd(relay_source(relay)), SIOCINQ, &waiting) == 0 && waiting > 0 ? (unsigned)waiting : 0;
}

/* What the loop received is sent from where it lies. */
static void send_message(struct relay *relay, const char *data, size_t length)
{
    struct session *session = relay->session;
    struct sluice_transfer_options *options = &session->service->message;
    struct sluice_segment segment = {
        .kind = SLUICE_SEGMENT_MEMORY, .flags = SLUICE_SEGMENT_BORROWED, .data = data, .length = length};
    struct sluice_end *sink = relay_sink(relay);
    const struct sluice_receipt *receipt;
    options->segments = &segment;
    options->sinks = &sink;
    relay->run = relay->run < BULK_FROM ? relay->run + (uint32_t)length : BULK_FROM;
    relay_opposite(relay)->run = 0;
    /* A packet more for the rest of a message costs as much as sending it. */
    unsigned waiting = length == RELAY_MESSAGE_MAX ? waiting_at_source(relay) : 0;
    options->flags = waiting > 0 ? SLUICE_TRANSFER_MORE : 0;
    session_count_received(session, relay, length);
    int result = sluice_loop_transfer(loop_of(relay), options, on_sent, relay, &relay->transfer, &receipt, NULL);
    if (result == 0) {
        relay->state = RELAY_SENDING;
        sluice_loop_receive_pause(loop_of(relay), relay_source(relay));
        return;
    }
    relay->transfer = NULL;
    session_count(session, relay, receipt);
    if (result < 0)
        sink_failed(relay, result);
    else if (length == RELAY_MESSAGE_MAX && (relay->run >= BULK_FROM || waiting >= SPLICE_FROM - RELAY_MESSAGE_MAX))
        stream(relay);
}

static void on_received(void *context, const char *data, ssize_t length)
{
    struct relay *relay = context;
    if (length < 0)
        session_source_failed(relay->session, relay);
    else if (relay->state == RELAY_ENDED)
        return; /* its sink is broken */
    else if (length == 0)
        source_ended(relay);
    else
        send_message(relay, data, (size_t)length);
}

/* What was received before the relay began, and what is to go before it. */
static int send_early(struct relay *relay, const char *header, size_t header_length, const char *early,
                      size_t early_length)
{
    struct sluice_transfer_options options = relay->session->service->message;
    struct sluice_segment segments[2] = {
        {.kind = SLUICE_SEGMENT_MEMORY, .flags = SLUICE_SEGMENT_BORROWED, .data = header, .length = header_length},
        {.kind = SLUICE_SEGMENT_MEMORY, .flags = SLUICE_SEGMENT_BORROWED, .data = early, .length = early_length},
    };
    struct sluice_end *sink = relay_sink(relay);
    const struct sluice_receipt *receipt;
    options.segments = header_length > 0 ? segments : segments + 1;
    options.segment_count = (header_length > 0 ? 1u : 0u) + (early_length > 0 ? 1u : 0u);
    options.sinks = &sink;
    options.flags = 0;
    session_count_received(relay->session, relay, early_length);
    int result = sluice_loop_transfer(loop_of(relay), &options, on_sent, relay, &relay->transfer, &receipt, NULL);
    if (result == 0)
        return 0;
    relay->transfer = NULL;
    session_count(relay->session, relay, receipt);
    return result;
}

bool relay_start(struct relay *relay, const char *header, size_t header_length, const char *early, size_t early_length)
{
    struct sluice_loop *loop = loop_of(relay);
    if (sluice_loop_receive(loop, relay_source(relay), RELAY_MESSAGE_MAX, on_received, relay) < 0) {
        session_close(relay->session, PROXY_END_ERROR, true);
        return false;
    }
    relay->state = RELAY_RECEIVING;
    if (relay->mirror != NULL && early_length > 0) {
        if (mirror_add(relay->mirror, early, early_length) < 0) {
            session_close(relay->session, PROXY_END_ERROR, true);
            return false;
        }
        early_length = 0;
    }
    if (header_length + early_length > 0) {
        int result = send_early(relay, header, header_length, early, early_length);
        if (result < 0)
            return sink_failed(relay, result);
        if (result == 0) {
            relay->state = RELAY_SENDING;
            sluice_loop_receive_pause(loop, relay_source(relay));
            return true;
        }
    }
    return relay->mirror != NULL || relay->session->service->service->route == SLUICE_ROUTE_SPLICE ? stream(relay)
                                                                                                   : true;
}

/* A slow peer takes what lies in the socket for long before there is room for more: that is progress, too. How fast, a
 * second look shows. */
bool relay_progressed(struct relay *relay)
{
    uint64_t streamed = relay->streamed;
    int unsent = 0, before = relay->unsent;
    if (relay->transfer != NULL)
        relay->streamed = sluice_transfer_receipt(relay->transfer, 0)->sent;
    ioctl(sluice_end_fd(relay_sink(relay)), TIOCOUTQ, &unsent);
    relay->unsent = unsent;
    return relay->streamed != streamed || unsent < before || (before == 0 && unsent > 0);
}

void relay_stop(struct relay *relay, bool reset)
{
    if (relay->transfer != NULL)
        sluice_loop_transfer_cancel(loop_of(relay), relay->transfer); /* calls on_sent or on_streamed */
    if (relay->mirror != NULL)
        mirror_end(relay->mirror, reset);
    relay->mirror = NULL;
    relay->state = RELAY_ENDED;
}
