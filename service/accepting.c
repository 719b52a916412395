/* SPDX-License-Identifier: MIT */
#include "service/accepting.h"

/* With so many places, connections are accepted ahead (sluice_listener_ahead) until half of them are taken: whoever
 * came later could wait for a place here, though another worker has one. Again when three quarters are free. */
#define AHEAD_FROM 1024

#define LISTENER(link) (LIST_OBJECT(link, struct accepting_socket, all)->listener)

void accepting_init(struct accepting *accepting, unsigned places)
{
    *accepting = (struct accepting){.places = places, .ahead = places >= AHEAD_FROM};
    list_init(&accepting->listeners);
}

int accepting_add(struct accepting *accepting, struct sluice_loop *loop, int fd, sluice_accept_fn *accepted,
                  void *context, struct accepting_socket *socket)
{
    int r = sluice_loop_listen(loop, fd, accepted, context, &socket->listener);
    if (r < 0)
        return r;
    list_add_last(&accepting->listeners, &socket->all);
    accepting->listening = true;
    sluice_listener_ahead(socket->listener, accepting->ahead);
    if (accepting->paused)
        sluice_listener_pause(socket->listener);
    return 0;
}

static void set_ahead(struct accepting *accepting, bool ahead)
{
    if (accepting->ahead == ahead)
        return;
    accepting->ahead = ahead;
    LIST_FOR_EACH(link, &accepting->listeners)
    {
        sluice_listener_ahead(LISTENER(link), ahead);
    }
}

static void set_paused(struct accepting *accepting, bool paused)
{
    if (accepting->paused == paused)
        return;
    accepting->paused = paused;
    LIST_FOR_EACH(link, &accepting->listeners)
    {
        if (paused)
            sluice_listener_pause(LISTENER(link));
        else
            sluice_listener_resume(LISTENER(link));
    }
}

void accepting_count(struct accepting *accepting, unsigned taken)
{
    if (accepting->stopping)
        return; /* a listener that is paused leaves without looking who waits */
    if (taken >= accepting->places / 2)
        set_ahead(accepting, false);
    else if (taken < accepting->places / 4)
        set_ahead(accepting, accepting->places >= AHEAD_FROM);
    set_paused(accepting, taken >= accepting->places);
}

void accepting_stop(struct accepting *accepting)
{
    accepting->stopping = true;
    while (!list_empty(&accepting->listeners)) {
        struct list *link = accepting->listeners.next;
        list_remove(link);
        sluice_listener_free(LISTENER(link));
    }
    accepting->listening = false;
}
