/* SPDX-License-Identifier: MIT
 *
 * The server name (SNI, RFC 6066) and the protocols (ALPN, RFC 7301) that a TLS client asks for, read from the first
 * bytes of its connection, which nobody decrypts. A pure parser: no I/O. The message may lie in several records, and
 * records in several segments.
 *
 * A client that hides its true name (ECH, RFC 9849) sends a second, public one for whom cannot decrypt it, and that is
 * what is read here: the only one that a proxy can know.
 */
#ifndef SLUICE_PROXY_CLIENT_HELLO_H
#define SLUICE_PROXY_CLIENT_HELLO_H

#include <stddef.h>

struct client_hello {
    char sni[256];      /* lower case, without a final dot; "": none was sent */
    char alpn[256];     /* the list as it was sent: length byte, name, ...; cut after the last name that fits */
    size_t alpn_length; /* 0: none was sent */
};

/* What is judged: the form of records, message and extensions; that no extension comes twice; the lists of names and
 * protocols. Versions, ciphers, other extensions and what their values mean are the server's to judge, so that TLS can
 * go on without us. A server name has 1 to 255 letters, digits, '-', '_' and '.', and no empty part. An address in its
 * place, which RFC 6066 forbids and some clients send nevertheless, counts as none.
 * Returns 1: the ClientHello is whole, *ret_hello is set (what follows it is not looked at); 0: so far right, more is
 * needed; -EPROTO: this is no TLS ClientHello, or a malformed one, and why is in *ret_why (static text); -EMSGSIZE: it
 * is longer than max bytes, its record headers included. */
int client_hello_parse(const char *data, size_t length, size_t max, struct client_hello *ret_hello,
                       const char **ret_why);

#endif
