/* SPDX-License-Identifier: MIT */
#include "proxy/mirror.h"
#include "base/cleanup.h"
#include "proxy/session.h"
#include "proxy/sockets.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define FINISH_MS 5000 /* for the shadow to take the rest and close, after the live connection */

struct mirror {
    struct proxy_worker *worker;
    struct proxy_totals *totals;
    struct relay *relay;    /* until mirror_end */
    struct sluice_end *end; /* NULL: lost */
    char *early;            /* what is to be sent to both before the stream */
    size_t early_length;
    struct list all; /* in proxy_worker.mirrors */
    bool shadowing;  /* there is a transfer to both */
    bool finishing;
    bool closed, broken; /* the shadow's own side has ended, in order or not; it may still take what is sent */
    struct sluice_timer timer;
};

static void free_mirror(struct mirror *mirror)
{
    sluice_timer_stop(mirror->worker->loop, &mirror->timer);
    list_remove(&mirror->all);
    free(mirror->early);
    free(mirror);
}

static void close_shadow(struct mirror *mirror, bool reset)
{
    socket_close(mirror->worker->loop, mirror->end, reset);
    mirror->end = NULL;
}

static void lose(struct mirror *mirror)
{
    if (mirror->end == NULL)
        return;
    mirror->totals->mirrors_lost++;
    close_shadow(mirror, true);
}

void mirror_free(struct mirror *mirror)
{
    close_shadow(mirror, false);
    free_mirror(mirror);
}

/* What the shadow answers is of no interest; that it has gone shows when the next byte is sent to it, or there is none.
 */
static void on_answer(void *context, const char *data, ssize_t length)
{
    struct mirror *mirror = context;
    (void)data;
    if (length > 0)
        return;
    mirror->closed = true;
    mirror->broken = length < 0;
    if (mirror->finishing)
        mirror_free(mirror);
}

static int connect_shadow(const struct proxy_service *service)
{
    const struct address *address = &service->mirror.address;
    int fd = socket_make(service, address);
    if (fd < 0)
        return fd;
    /* Until it is connected, it takes nothing: to the transfer it is a slow sink. */
    if (connect(fd, &address->any, address->length) == 0 || errno == EINPROGRESS)
        return fd;
    int error = -errno;
    close_fd(fd);
    return error;
}

struct mirror *mirror_open(struct relay *relay)
{
    struct service_at_work *service = relay->session->service;
    struct mirror *mirror = calloc(1, sizeof *mirror);
    service->totals->mirrors++;
    if (mirror == NULL) {
        service->totals->mirrors_lost++;
        return NULL;
    }
    list_init(&mirror->all);
    list_add_last(&service->worker->mirrors, &mirror->all);
    mirror->worker = service->worker;
    mirror->relay = relay;
    mirror->totals = service->totals;
    int fd = connect_shadow(service->service);
    if (fd >= 0 && sluice_end_open(fd, SLUICE_END_OWN_FD, &mirror->end) < 0) {
        close_fd(fd);
        mirror->end = NULL;
    }
    if (mirror->end == NULL || sluice_loop_receive(mirror->worker->loop, mirror->end, 0, on_answer, mirror) < 0) {
        close_shadow(mirror, true);
        free_mirror(mirror);
        service->totals->mirrors_lost++;
        return NULL;
    }
    return mirror;
}

int mirror_add(struct mirror *mirror, const char *data, size_t length)
{
    mirror->early = malloc(length);
    if (mirror->early == NULL)
        return -ENOMEM;
    memcpy(mirror->early, data, length);
    mirror->early_length = length;
    return 0;
}

static void on_sink_ended(void *context, unsigned sink, const struct sluice_error *error,
                          const struct sluice_receipt *receipt)
{
    struct mirror *mirror = context;
    if (sink == 0) {
        if (error->code == 0)
            relay_sink_has_all(mirror->relay);
        return;
    }
    mirror->shadowing = false;
    mirror->totals->mirrored_bytes += receipt->bytes;
    if (error->code < 0)
        lose(mirror);
}

static void release_early(void *context, const void *data, size_t length)
{
    struct mirror *mirror = context;
    (void)data;
    (void)length;
    free(mirror->early);
    mirror->early = NULL;
}

int mirror_stream(struct mirror *mirror, const struct sluice_transfer_options *options, sluice_transfer_done_fn *done,
                  void *context, struct sluice_transfer **ret_transfer, const struct sluice_receipt **ret_receipt,
                  struct sluice_error *ret_error)
{
    struct sluice_transfer_options both = *options;
    struct sluice_end *sinks[2] = {options->sinks[0], mirror->end};
    struct sluice_segment segments[2] = {
        {.kind = SLUICE_SEGMENT_MEMORY,
         .data = mirror->early,
         .length = mirror->early_length,
         .release = release_early,
         .release_context = mirror},
        options->segments[0],
    };
    both.segments = mirror->early_length > 0 ? segments : segments + 1;
    both.segment_count = mirror->early_length > 0 ? 2 : 1;
    both.sinks = sinks;
    mirror->shadowing = mirror->end != NULL;
    both.sink_count = mirror->shadowing ? 2 : 1;
    both.quiet_below = 0;
    both.policy = SLUICE_FANOUT_FIRST;
    both.sink_ended = on_sink_ended;
    both.sink_context = mirror;
    return sluice_loop_transfer(mirror->worker->loop, &both, done, context, ret_transfer, ret_receipt, ret_error);
}

void mirror_count(struct mirror *mirror, const struct sluice_transfer *transfer)
{
    if (mirror->shadowing)
        mirror->totals->mirrored_bytes += sluice_transfer_receipt(transfer, 1)->bytes;
}

static void on_patience_ended(void *context)
{
    struct mirror *mirror = context;
    lose(mirror);
    free_mirror(mirror);
}

void mirror_end(struct mirror *mirror, bool reset)
{
    if (reset)
        close_shadow(mirror, true);
    else if (mirror->broken)
        lose(mirror);
    if (mirror->end == NULL) {
        free_mirror(mirror);
        return;
    }
    if (mirror->closed) { /* before the live connection, as servers do that answer one request: nothing to wait for */
        mirror_free(mirror);
        return;
    }
    mirror->finishing = true;
    shutdown(sluice_end_fd(mirror->end), SHUT_WR);
    sluice_timer_start(mirror->worker->loop, &mirror->timer, FINISH_MS, on_patience_ended, mirror);
}

struct mirror *mirror_of(struct list *link)
{
    return LIST_OBJECT(link, struct mirror, all);
}
