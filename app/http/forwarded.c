/* SPDX-License-Identifier: MIT */
#include "forwarded.h"
#include "base/ipv6.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

static bool is_port(const char *at, const char *end)
{
    if (end - at < 2 || end - at > 6 || *at != ':')
        return false;
    for (at++; at < end; at++)
        if (*at < '0' || *at > '9')
            return false;
    return true;
}

static int parse(const char *at, const char *end, struct in6_addr *ret_address)
{
    char text[INET6_ADDRSTRLEN];
    struct in_addr ipv4;
    const char *stop = end;
    bool bracket = *at == '[';
    if (bracket) {
        at++;
        const char *closing = memchr(at, ']', (size_t)(end - at));
        if (closing == NULL || (closing + 1 < end && !is_port(closing + 1, end)))
            return -EINVAL;
        stop = closing;
    } else {
        /* Of a single colon, a port's. */
        const char *colon = memchr(at, ':', (size_t)(end - at));
        if (colon != NULL && is_port(colon, end))
            stop = colon;
    }
    if ((size_t)(stop - at) >= sizeof text)
        return -EINVAL;
    memcpy(text, at, (size_t)(stop - at));
    text[stop - at] = '\0';
    if (!bracket && inet_pton(AF_INET, text, &ipv4) == 1) {
        *ret_address = ipv6_mapped(&ipv4);
        return 1;
    }
    /* "::1" has a port's form behind its first colon: without brackets all of it is the address. */
    if (stop < end && !bracket)
        return -EINVAL;
    struct in6_addr address;
    if (inet_pton(AF_INET6, text, &address) != 1)
        return -EINVAL;
    *ret_address = address;
    return 1;
}

int http_forwarded_take_last(struct slice *list, struct in6_addr *ret_address)
{
    while (list->length > 0) {
        const char *comma = memrchr(list->data, ',', list->length), *end = list->data + list->length;
        const char *at = comma != NULL ? comma + 1 : list->data;
        list->length = comma != NULL ? (size_t)(comma - list->data) : 0;
        while (at < end && (*at == ' ' || *at == '\t'))
            at++;
        while (end > at && (end[-1] == ' ' || end[-1] == '\t'))
            end--;
        if (at < end)
            return parse(at, end, ret_address);
    }
    return 0;
}
