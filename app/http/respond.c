/* SPDX-License-Identifier: MIT */
#include "respond.h"
#include "base/cleanup.h"
#include "conditions.h"
#include "listing.h"
#include "path.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_BYTES_MAX (64u << 20) /* of listings that clients are slow to read, all together */
#define ALLOW "Allow: GET, HEAD, OPTIONS\r\n"

/* ---- Files ------------------------------------------------------------------------------------------------------- */

/* Takes the reference. */
__attribute__((always_inline)) static inline enum progress send_file(struct connection *connection,
                                                                     struct exchange *exchange,
                                                                     const struct http_request *request,
                                                                     struct file *file)
{
    struct representation representation = {file->size, file->modified, file->etag, file->weak};
    struct http_ranges ranges;
    unsigned status = conditions_evaluate(request, &representation, connection->server->clock.second, &ranges);
    uint64_t first = 0, length = 0;
    exchange->file = file;
    if (status == 200) {
        length = file->size;
    } else if (status == 206) {
        if (ranges.count > 1)
            return exchange_send_parts(connection, exchange, request, &ranges);
        first = ranges.list[0].first;
        length = http_range_length(&ranges.list[0]);
    }
    return exchange_send_range(connection, exchange, request, status, first, length);
}

static void on_coded_found(void *context, int result, struct file *coded);

/* The file, or its sibling in the best of the codings that the client accepts; the first `tried` of them were looked
 * for. Takes the reference. */
static enum progress send_accepted(struct connection *connection, struct exchange *exchange,
                                   const struct http_request *request, struct file *file, unsigned tried)
{
    enum http_coding order[HTTP_CODINGS];
    unsigned count = file->negotiable ? http_codings_accepted(request->accept_encoding, order) : 0;
    while (tried < count) {
        enum http_coding coding = order[tried++];
        struct file *coded;
        int result = files_find_coded(file, coding, &coded);
        if (result == 1) {
            files_release(connection->server->files, file);
            file = coded;
            break;
        }
        if (result == 0 && files_look_up_coded(file, coding, on_coded_found, exchange, &exchange->lookup) == 0) {
            exchange->file = file;
            exchange->tried = tried;
            return exchange_await(connection, exchange);
        }
    }
    return send_file(connection, exchange, request, file);
}

static void on_coded_found(void *context, int result, struct file *coded)
{
    struct exchange *exchange = context;
    struct http_request request;
    struct connection *connection = exchange_resume(exchange, &request);
    struct file *file = exchange->file;
    exchange->lookup = NULL;
    exchange->file = NULL;
    if (result == 1) {
        files_release(connection->server->files, file);
        file = coded; /* which is not negotiable */
    }
    if (send_accepted(connection, exchange, &request, file, exchange->tried) == ANSWERED)
        connection_go_on(connection);
}

/* ---- Directories ------------------------------------------------------------------------------------------------- */

struct listing_job {
    struct http_server *server;
    const struct http_site *site;
    struct exchange *exchange; /* NULL: the connection has gone */
    struct listing_view view;
    int result;
    char *text;
    size_t length;
    char path[];
};

void respond_abandon(struct listing_job *job)
{
    job->exchange = NULL;
}

static void listing_work(void *context)
{
    struct listing_job *job = context;
    const struct beneath *beneath = files_beneath(files_root(job->server->files, job->site->number));
    if (!job->site->listing) { /* only whether there is such a directory */
        CLEANUP_FD int fd = beneath_open(beneath, job->path, O_PATH | O_DIRECTORY, false, NULL);
        job->result = fd < 0 ? fd : -EACCES;
        return;
    }
    struct listing_entry *entries = NULL;
    size_t count = 0;
    bool complete;
    job->result = listing_read(beneath, job->path, &entries, &count, &complete);
    if (job->result == 0) {
        listing_sort(entries, count, &job->view);
        job->result = listing_render(job->path, entries, count, complete, &job->view, &job->text, &job->length);
        listing_free(entries, count);
    }
}

static enum progress answer_error(struct connection *connection, struct exchange *exchange,
                                  const struct http_request *request, int error)
{
    switch (error) {
    case -EACCES:
    case -EPERM:
        return exchange_send_status(connection, exchange, request, 403, NULL);
    case -ENOENT:
    case -ENOTDIR:
    case -EISDIR:
    case -ELOOP:
    case -EXDEV:
    case -ENAMETOOLONG:
        return exchange_send_status(connection, exchange, request, 404, NULL);
    case -EMFILE:
    case -ENFILE:
    case -ENOMEM:
    case -EAGAIN:
        return exchange_send_status(connection, exchange, request, 503, "Retry-After: 1\r\n");
    default:
        return exchange_send_status(connection, exchange, request, 500, NULL);
    }
}

/* A listing has neither tag nor date: of the conditions only those by tag mean something, and no tag is its own. */
static enum progress send_listing(struct connection *connection, struct exchange *exchange,
                                  const struct http_request *request, const struct listing_job *job)
{
    const struct http_request conditions = {
        .method = HTTP_HEAD, .if_match = request->if_match, .if_none_match = request->if_none_match};
    const struct representation listing = {.size = job->length};
    struct http_ranges none;
    struct response_text page = {
        .status = conditions_evaluate(&conditions, &listing, connection->server->clock.second, &none),
        .fields = listing_fields(&job->view),
    };
    if (page.status == 200) {
        page.type = listing_type(&job->view);
        page.body = job->text;
        page.body_length = job->length;
    }
    return exchange_send_text(connection, exchange, request, &page);
}

static void on_listed(void *context)
{
    struct listing_job *job = context;
    struct exchange *exchange = job->exchange;
    job->server->listings--;
    if (exchange != NULL) {
        struct http_request request;
        struct connection *connection = exchange_resume(exchange, &request);
        exchange->listing = NULL;
        if (job->result == 0 && job->server->text_bytes + job->length > TEXT_BYTES_MAX)
            job->result = -ENOMEM;
        enum progress progress = job->result < 0 ? answer_error(connection, exchange, &request, job->result)
                                                 : send_listing(connection, exchange, &request, job);
        if (progress == ANSWERED)
            connection_go_on(connection);
    }
    free(job->text);
    free(job);
}

static enum progress look_at_directory(struct connection *connection, struct exchange *exchange,
                                       const struct http_request *request, const char *path, size_t length)
{
    struct http_server *server = connection->server;
    struct listing_job *job = calloc(1, sizeof *job + length + 1);
    if (job == NULL)
        return answer_error(connection, exchange, request, -ENOMEM);
    job->server = server;
    job->exchange = exchange;
    job->site = exchange->site;
    listing_choose(request->query, request->accept, &job->view);
    memcpy(job->path, path, length);
    if (sluice_loop_offload(server->loop, listing_work, on_listed, job) < 0) {
        free(job);
        return answer_error(connection, exchange, request, -ENOMEM);
    }
    server->listings++;
    exchange->listing = job;
    return exchange_await(connection, exchange);
}

/* ---- Redirects --------------------------------------------------------------------------------------------------- */

/* To the same path with a slash behind it. Built from the decoded path: what came could begin with two slashes, which
 * a browser would take for the name of another host. */
static enum progress redirect(struct connection *connection, struct exchange *exchange,
                              const struct http_request *request, char *path)
{
    char *fields = NULL;
    size_t length = 0;
    FILE *text = open_memstream(&fields, &length);
    if (text == NULL)
        return answer_error(connection, exchange, request, -ENOMEM);
    fputs("Location: ", text);
    char *rest = path;
    for (char *name = strsep(&rest, "/"); name != NULL; name = strsep(&rest, "/")) {
        char encoded[3 * NAME_MAX + 1];
        http_path_encode(name, encoded, sizeof encoded);
        fprintf(text, "/%s", encoded);
    }
    fputc('/', text);
    if (request->query.data != NULL)
        fprintf(text, "?%.*s", (int)request->query.length, request->query.data);
    fputs("\r\n", text);
    enum progress progress = fclose(text) == 0 ? exchange_send_status(connection, exchange, request, 301, fields)
                                               : answer_error(connection, exchange, request, -ENOMEM);
    free(fields);
    return progress;
}

/* To the same place with TLS. */
static enum progress redirect_to_https(struct connection *connection, struct exchange *exchange,
                                       const struct http_request *request)
{
    char *fields = NULL;
    size_t length = 0, host = request->host.length;
    unsigned port = connection->server->options->https_port;
    FILE *text = request->host.data != NULL ? open_memstream(&fields, &length) : NULL;
    if (text == NULL)
        return exchange_send_status(connection, exchange, request, request->host.data != NULL ? 503 : 400, NULL);
    const char *colon = memrchr(request->host.data, ':', host);
    if (colon != NULL && memchr(colon, ']', host - (size_t)(colon - request->host.data)) == NULL)
        host = (size_t)(colon - request->host.data);
    fprintf(text, "Location: https://%.*s", (int)host, request->host.data);
    if (port != 443)
        fprintf(text, ":%u", port);
    fprintf(text, "%.*s", (int)request->path.length, request->path.data != NULL ? request->path.data : "");
    if (request->query.data != NULL)
        fprintf(text, "?%.*s", (int)request->query.length, request->query.data);
    fputs("\r\n", text);
    enum progress progress = fclose(text) == 0 ? exchange_send_status(connection, exchange, request, 308, fields)
                                               : answer_error(connection, exchange, request, -ENOMEM);
    free(fields);
    return progress;
}

/* Whoever issues certificates looks here, without TLS (RFC 8555, 8.3). What the path leads to counts, not how it
 * begins. */
static bool is_for_acme(struct http_server *server, struct slice path)
{
    static const char place[] = ".well-known/acme-challenge/";
    int length = path.data != NULL ? http_path_decode(path, server->path, sizeof server->path) : -400;
    return length >= (int)sizeof place && memcmp(server->path, place, sizeof place - 1) == 0;
}

/* ---- Requests ---------------------------------------------------------------------------------------------------- */

/* The path of the file that is asked for, in server->path: the index for a directory. *ret_given: the length of the
 * path without that. Returns the length, or minus a status. */
static int resolve(struct http_server *server, const struct http_site *site, const struct http_request *request,
                   int *ret_given)
{
    int length = http_path_decode(request->path, server->path, sizeof server->path);
    if (length < 0)
        return length;
    bool root = length == 1 && server->path[0] == '.';
    *ret_given = length;
    if (!root && server->path[length - 1] != '/')
        return length;
    size_t at = root ? 0 : (size_t)length;
    if (at + site->index_length >= sizeof server->path)
        return -414;
    memcpy(server->path + at, site->index, site->index_length + 1);
    return (int)(at + site->index_length);
}

/* With what files_find or a helper found under the path in server->path, given and length being as resolve said. */
static enum progress answer_found(struct connection *connection, struct exchange *exchange,
                                  const struct http_request *request, int given, int length, int result,
                                  struct file *file)
{
    struct http_server *server = connection->server;
    if (result == 1)
        return send_accepted(connection, exchange, request, file, 0);
    if (given != length && (result == -ENOENT || result == -EISDIR)) {
        /* No index. The root's path is ".", which the index has replaced. */
        bool root = (size_t)length == exchange->site->index_length;
        return look_at_directory(connection, exchange, request, root ? "." : server->path, root ? 1 : (size_t)given);
    }
    if (result == -EISDIR) {
        server->path[given] = '\0';
        return redirect(connection, exchange, request, server->path);
    }
    return answer_error(connection, exchange, request, result);
}

static void on_found(void *context, int result, struct file *file)
{
    struct exchange *exchange = context;
    struct http_request request;
    struct connection *connection = exchange_resume(exchange, &request);
    int given = 0;
    exchange->lookup = NULL;
    int length = resolve(connection->server, exchange->site, &request, &given); /* it went well before */
    if (answer_found(connection, exchange, &request, given, length, result, file) == ANSWERED)
        connection_go_on(connection);
}

/* Methods of RFC 9110 and 5789: known, but not for files that are only read. */
static bool is_known_method(struct slice method)
{
    static const char *const known[] = {"POST", "PUT", "DELETE", "CONNECT", "TRACE", "PATCH"};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strlen(known[i]) == method.length && memcmp(known[i], method.data, method.length) == 0)
            return true;
    return false;
}

enum progress respond_other(struct connection *connection, struct exchange *exchange,
                            const struct http_request *request)
{
    if (request->method == HTTP_OTHER && is_known_method(request->method_text))
        return exchange_send_status(connection, exchange, request, 405, ALLOW);
    if (request->method == HTTP_OTHER)
        return exchange_send_status(connection, exchange, request, 501, NULL);
    if (request->path.data != NULL && exchange->site == NULL)
        return exchange_send_status(connection, exchange, request, 421, NULL);
    int given, length = request->path.data == NULL ? 0 : resolve(connection->server, exchange->site, request, &given);
    if (length < 0)
        return exchange_send_status(connection, exchange, request, (unsigned)-length, NULL);
    return exchange_send_text(
        connection, exchange, request,
        &(struct response_text){.status = 200, .fields = ALLOW "Accept-Ranges: bytes\r\n", .body = ""});
}

enum progress respond(struct connection *connection, struct exchange *exchange, const struct http_request *request)
{
    struct http_server *server = connection->server;
    if (server->options->https_port != 0 && connection->secure == NULL &&
        !is_for_acme(connection->server, request->path))
        return redirect_to_https(connection, exchange, request);
    if (request->method >= HTTP_OPTIONS)
        return respond_other(connection, exchange, request);

    const struct http_site *site = exchange->site;
    if (site == NULL)
        return exchange_send_status(connection, exchange, request, 421, NULL);

    int given;
    int length = resolve(server, site, request, &given);
    if (length < 0)
        return exchange_send_status(connection, exchange, request, (unsigned)-length, NULL);
    struct file *file;
    struct files_root *root = files_root(server->files, site->number);
    int result = files_find(root, server->path, (size_t)length, &file);
    if (result == 1 && !file->negotiable)
        return send_file(connection, exchange, request, file);
    if (result != 0)
        return answer_found(connection, exchange, request, given, length, result, file);
    result = files_look_up(root, server->path, (size_t)length, on_found, exchange, &exchange->lookup);
    if (result < 0)
        return answer_error(connection, exchange, request, result);
    return exchange_await(connection, exchange);
}
