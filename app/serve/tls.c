/* SPDX-License-Identifier: MIT */
#include "serve/tls.h"
#include "base/cleanup.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

const char *const serve_tls_versions[] = {"1.2", "1.3", NULL};

bool serve_tls_replaces_http(const struct serve_tls_options *options)
{
    return options->on || (options->development && options->listen == NULL);
}

bool serve_tls_is_wanted(const struct serve_tls_options *options)
{
    return options->listen != NULL || serve_tls_replaces_http(options);
}

int serve_tls_check(const struct serve_tls_options *options, const struct option_list *certificates,
                    const char **ret_option, struct failure *failure)
{
    *ret_option = "certificate";
    if (!serve_tls_is_wanted(options)) {
        if (certificates->count > 0)
            return failure_set(failure, -EINVAL,
                               "a certificate is of no use without TLS; add --tls, or --listen-tls ADDR:PORT");
    } else if (certificates->count == 0 && !options->development) {
        return failure_set(failure, -EINVAL,
                           "TLS needs one: --certificate FILE,KEYFILE; or, for trying out, --tls-dev makes one");
    }
    *ret_option = "tls-dev";
    if (options->development && certificates->count > 0)
        return failure_set(failure, -EINVAL, "the certificate is made, or given by --certificate, not both");
    *ret_option = "redirect-to-https";
    if (options->redirect && (options->listen == NULL || serve_tls_replaces_http(options)))
        return failure_set(failure, -EINVAL,
                           "there is nothing to redirect: it is from HTTP at --listen to HTTPS at --listen-tls");
    return 0;
}

static void say_how_to_trust(const struct tls_development *development, void (*say)(void *context, const char *line),
                             void *context)
{
    char line[1200];
    snprintf(line, sizeof line, "--tls-dev: signed by an authority of this user's, %s, %s",
             development->made ? "which was just made" : "as before", development->authority);
    say(context, line);
    if (!development->made)
        return;
    snprintf(line, sizeof line, "  curl:     curl --cacert %s https://localhost:PORT/", development->authority);
    say(context, line);
    snprintf(line, sizeof line,
             "  Chromium: certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n sluice -i %s    (package libnss3-tools)",
             development->authority);
    say(context, line);
    say(context, "  Firefox:  Settings, Certificates, View Certificates, Authorities, Import");
    snprintf(line, sizeof line,
             "  Debian:   sudo cp %s /usr/local/share/ca-certificates/sluice.crt && sudo update-ca-certificates",
             development->authority);
    say(context, line);
    say(context, "  Whoever trusts it trusts what its key signs, which is for names of this host alone; the key is "
                 "beside it");
}

struct parted {
    struct tls_certificate *certificates;
    char **texts;
    size_t count;
};

static void parted_free(struct parted *parted)
{
    for (size_t i = 0; i < parted->count; i++)
        free(parted->texts[i]);
    free(parted->texts);
    free(parted->certificates);
}

/* "CERT,KEY". *ret_value: the one that is none. */
static int part(const struct option_list *list, struct parted *parted, const char **ret_value, struct failure *failure)
{
    parted->certificates = calloc(list->count + 1, sizeof *parted->certificates);
    parted->texts = calloc(list->count + 1, sizeof *parted->texts);
    if (parted->certificates == NULL || parted->texts == NULL)
        return failure_set(failure, -ENOMEM, "out of memory");
    for (unsigned i = 0; i < list->count; i++) {
        char *text = strdup(list->items[i]);
        if (text == NULL)
            return failure_set(failure, -ENOMEM, "out of memory");
        parted->texts[parted->count] = text;
        char *comma = strchr(text, ',');
        if (comma != NULL)
            *comma = '\0';
        parted->certificates[parted->count++] =
            (struct tls_certificate){.certificate = text, .key = comma != NULL ? comma + 1 : NULL};
        *ret_value = list->items[i];
        if (text[0] == '\0' || (comma != NULL && comma[1] == '\0'))
            return failure_set(failure, -EINVAL, "\"%.200s\": write FILE, or FILE,KEYFILE", list->items[i]);
    }
    return 0;
}

/* The question has the module loaded, where we may do that, and asks what is only told before a process is confined. */
static bool kernel_can(bool wanted, bool verbose, void (*say)(void *context, const char *line), void *context)
{
    const char *reason = "left out, as asked";
    bool can = wanted && sluice_tls_probe(&reason) == 0;
    char line[300] = "kernel TLS: there is; it encrypts what is sent, where it has the cipher suite";
    if (!can)
        snprintf(line, sizeof line, "kernel TLS: none: %s; what is sent is encrypted here", reason);
    if (verbose)
        say(context, line);
    return can;
}

unsigned serve_tls_ticket_lifetime(const struct serve_tls_options *options)
{
    return (unsigned)((options->tickets + 999) / 1000);
}

int serve_tls_load(const struct serve_tls_options *options, const struct option_list *certificates,
                   struct tls_tickets **tickets, bool verbose, void (*say)(void *context, const char *line),
                   void *say_context, struct tls_context **ret_context, const char **ret_option, const char **ret_value,
                   struct failure *failure)
{
    struct tls_development development = {.made = false};
    struct parted parted = {.count = 0};
    struct tls_refusal refusal = {.what = TLS_REFUSED_CERTIFICATE};
    static const char *const refused[] = {[TLS_REFUSED_CERTIFICATE] = "certificate",
                                          [TLS_REFUSED_CIPHERS] = "tls-ciphers",
                                          [TLS_REFUSED_GROUPS] = "tls-groups"};
    *ret_option = options->development ? "tls-dev" : "certificate";
    *ret_value = NULL;
    int r = part(certificates, &parted, ret_value, failure);
    if (r == 0 && options->development) {
        r = tls_development_prepare(&development, failure);
        parted.certificates[0] =
            (struct tls_certificate){.certificate = development.certificate, .key = development.key};
    }
    unsigned lifetime = serve_tls_ticket_lifetime(options);
    if (r == 0 && lifetime > 0 && *tickets == NULL)
        r = tls_tickets_new(lifetime, tickets, failure);
    struct tls_options tls = {
        .certificates = parted.certificates,
        .certificate_count = options->development ? 1 : parted.count,
        .min = (enum tls_version)options->min,
        .ciphers = options->ciphers,
        .groups = options->groups,
        .tickets = lifetime > 0 ? *tickets : NULL,
        .ticket_lifetime = lifetime,
        .kernel = kernel_can(options->kernel, verbose, say, say_context),
    };
    if (r == 0) {
        r = tls_context_new(&tls, ret_context, &refusal, failure);
        bool is_certificate = refusal.what == TLS_REFUSED_CERTIFICATE;
        if (!is_certificate)
            *ret_option = refused[refusal.what];
        *ret_value = is_certificate && certificates->count > 0 ? certificates->items[refusal.certificate] : NULL;
    }
    parted_free(&parted);
    if (r < 0)
        return r;
    if (options->development)
        say_how_to_trust(&development, say, say_context);
    tls_context_describe(*ret_context, true, say, say_context);
    if (verbose)
        tls_context_describe(*ret_context, false, say, say_context);
    return 0;
}
