/* SPDX-License-Identifier: MIT */
#include "secure.h"
#include "base/checked.h"
#include "connection.h"
#include "service/address.h"
#include "service/log.h"
#include "service/tls.h"

#include <errno.h>
#include <stdlib.h>

#define SAY_EVERY 10000 /* ms */

struct secure {
    struct tls_session *session;
    struct sluice_transfer *flush; /* of what TLS has to say and the socket did not take; the receiver is paused */
    bool heard;                    /* something has come */
};

int secure_open(struct connection *connection, struct tls_context *context)
{
    struct secure *secure = calloc(1, sizeof *secure);
    if (secure == NULL)
        return -ENOMEM;
    secure->session = tls_session_new(context, sluice_end_fd(connection->end));
    if (secure->session == NULL) {
        free(secure);
        return -ENOMEM;
    }
    connection->secure = secure;
    return 0;
}

void secure_close(struct connection *connection)
{
    struct secure *secure = connection->secure;
    connection->secure = NULL;
    if (secure->flush != NULL)
        sluice_loop_transfer_cancel(connection->server->loop, secure->flush); /* calls on_flushed */
    tls_session_free(secure->session);
    free(secure);
}

static void count_failure(struct connection *connection, const char *why)
{
    struct http_server *server = connection->server;
    struct secure_log *log = &server->secure_log;
    uint64_t now = sluice_loop_now(server->loop);
    server->totals->tls_failures++;
    if (now < log->next) {
        log->unsaid++;
        return;
    }
    char client[ADDRESS_TEXT_MAX], more[64] = "";
    address_format_host(&connection->peer.any, sizeof connection->peer, client, sizeof client);
    if (log->unsaid > 0)
        snprintf(more, sizeof more, " (and %llu more since the last line about it)", (unsigned long long)log->unsaid);
    log_say(server->options->error_log, "sluice serve: TLS with %s failed: %s%s", client, why, more);
    log->next = now + SAY_EVERY;
    log->unsaid = 0;
}

void secure_gave_up(struct connection *connection, const char *why)
{
    const struct secure *secure = connection->secure;
    if (secure->heard && tls_session_state(secure->session) == TLS_HANDSHAKE)
        count_failure(connection, why);
}

static void handshake_done(struct connection *connection, const struct tls_session *session)
{
    struct http_totals *totals = connection->server->totals;
    totals->tls_handshakes++;
    totals->tls_resumed += tls_session_resumed(session);
    if (tls_session_kernel_sends(session))
        sluice_end_refresh(connection->end);
    connection_opened(connection);
}

static void on_flushed(void *context, struct sluice_transfer *transfer, int result)
{
    struct connection *connection = context;
    (void)transfer;
    if (connection->secure == NULL)
        return; /* within secure_close */
    connection->secure->flush = NULL;
    if (result < 0) {
        secure_gave_up(connection, "the client has gone in its handshake");
        connection_close(connection);
    } else {
        sluice_loop_receive_resume(connection->server->loop, connection->end);
    }
}

static int flush(struct connection *connection)
{
    struct http_server *server = connection->server;
    struct secure *secure = connection->secure;
    struct sluice_transfer_options options = {
        .size = sizeof options,
        .sinks = &connection->end,
        .sink_count = 1,
        .transform = tls_session_transform(secure->session),
    };
    int r = sluice_loop_transfer(server->loop, &options, on_flushed, connection, &secure->flush, NULL, NULL);
    if (r == 0)
        sluice_loop_receive_pause(server->loop, connection->end);
    else
        secure->flush = NULL;
    return r < 0 ? r : 0;
}

int secure_receive(struct connection *connection, const char **data, size_t *length)
{
    struct secure *secure = connection->secure;
    struct tls_session *session = secure->session;
    bool opening = tls_session_state(session) == TLS_HANDSHAKE;
    const char *plain;
    size_t plain_length;
    secure->heard = true;
    int r = tls_session_receive(session, *data, *length, &plain, &plain_length);
    if (r == -EPROTONOSUPPORT) {
        count_failure(connection, "the client speaks HTTP without TLS");
        secure_close(connection);
        return r;
    }
    enum tls_state state = tls_session_state(session);
    if (opening && state != TLS_HANDSHAKE && state != TLS_FAILED)
        handshake_done(connection, session);
    if (r < 0) {
        count_failure(connection, tls_session_failure(session));
        return -ECONNRESET;
    }
    if (plain_length > 0) {
        *data = plain;
        *length = plain_length;
        return 1;
    }
    if (state == TLS_ENDED)
        return -ECONNRESET;
    return tls_session_must_send(session) && flush(connection) < 0 ? -ECONNRESET : 0;
}

bool secure_has_ended(const struct connection *connection)
{
    return tls_session_state(connection->secure->session) == TLS_ENDED;
}

const struct sluice_transform *secure_transform(struct connection *connection, bool ends)
{
    struct tls_session *session = connection->secure->session;
    if (ends)
        tls_session_end_with_next(session);
    return tls_session_transform(session);
}

uint64_t secure_sent(const struct connection *connection)
{
    return tls_session_sent(connection->secure->session);
}

uint64_t secure_delivered(const struct connection *connection, const struct sluice_receipt *receipt, uint64_t before)
{
    const struct tls_session *session = connection->secure->session;
    return tls_session_kernel_sends(session) ? receipt->bytes
                                             : min_u64(receipt->bytes, tls_session_sent(session) - before);
}

bool secure_may_begin_again(struct connection *connection, uint64_t before)
{
    return tls_session_forget(connection->secure->session) == before;
}

const char *secure_version(const struct connection *connection)
{
    return tls_session_version(connection->secure->session);
}

void secure_end(struct connection *connection)
{
    if (connection->secure->flush == NULL) /* else half a record may have left, which nothing can stand behind */
        tls_session_end(connection->secure->session);
}
