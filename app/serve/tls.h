/* SPDX-License-Identifier: MIT
 *
 * What sluice serve's options say about TLS, and what is made of it.
 */
#ifndef SLUICE_APP_SERVE_TLS_H
#define SLUICE_APP_SERVE_TLS_H

#include "service/options.h"
#include "service/tls.h"

struct serve_tls_options {
    const char *listen; /* a second address, with TLS */
    const char *ciphers, *groups;
    uint64_t tickets; /* ms; 0: none */
    unsigned min;
    bool on; /* at the address of --listen */
    bool development, redirect, kernel;
};

extern const char *const serve_tls_versions[];

/* Is there TLS at the address of --listen? */
bool serve_tls_replaces_http(const struct serve_tls_options *options);

/* Is there any? */
bool serve_tls_is_wanted(const struct serve_tls_options *options);

/* What the options say together. certificates: "CERT" or "CERT,KEY". Returns 0 or -EINVAL, and in *ret_option which is
 * wrong ("certificate"). */
int serve_tls_check(const struct serve_tls_options *options, const struct option_list *certificates,
                    const char **ret_option, struct failure *failure);

/* In seconds; 0: no tickets. */
unsigned serve_tls_ticket_lifetime(const struct serve_tls_options *options);

/* Reads certificates and keys. tickets: made if it is NULL and wanted, and kept from reload to reload. say is called
 * with what the operator has to know: certificates that expire, how to trust the one that --tls-dev made; and, if
 * verbose, all certificates, and whether the kernel can encrypt. Returns 0 or a negative errno, and then in *ret_option
 * which is wrong, and in *ret_value which of its values, or NULL. */
int serve_tls_load(const struct serve_tls_options *options, const struct option_list *certificates,
                   struct tls_tickets **tickets, bool verbose, void (*say)(void *context, const char *line),
                   void *say_context, struct tls_context **ret_context, const char **ret_option, const char **ret_value,
                   struct failure *failure);

#endif
