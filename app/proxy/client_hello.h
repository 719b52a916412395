/* SPDX-License-Identifier: MIT
 *
 * The server name (SNI, RFC 6066) and the protocols (ALPN, RFC 7301) that a TLS client asks for, read from the first
 * bytes of its connection, which nobody decrypts. A pure parser: no I/O. The message may lie in several records, and
 * records in several segments.
 */
#ifndef SLUICE_PROXY_CLIENT_HELLO_H
#define SLUICE_PROXY_CLIENT_HELLO_H

#include <stddef.h>
#include <sys/types.h>

struct client_hello {
    char sni[256];      /* lower case, without a final dot; "": none was sent */
    char alpn[256];     /* the list as it was sent: length byte, name, ...; cut after the last name that fits */
    size_t alpn_length; /* 0: none was sent */
};

/* Returns 1: the ClientHello is whole, *ret_hello is set; 0: so far right, more is needed; -EPROTO: this is no TLS
 * ClientHello, or a malformed one, and why is in *ret_why (static text); -EMSGSIZE: it is longer than max. */
int client_hello_parse(const char *data, size_t length, size_t max, struct client_hello *ret_hello,
                       const char **ret_why);

#endif
