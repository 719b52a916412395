/* SPDX-License-Identifier: MIT
 *
 * An account of invented figures: nginx (1234) and a process with a nasty name (77), with ends of every sort of name.
 */
#ifndef SLUICE_TESTS_TRACE_INVENTED_H
#define SLUICE_TESTS_TRACE_INVENTED_H

#include "trace/account.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum invented_end {
    INVENTED_LONG = 1,
    INVENTED_TCP,
    INVENTED_WIDE,
    INVENTED_SHORT,
    INVENTED_NASTY,
    INVENTED_CHAR,
};

#define INVENTED_LONG_NAME "/srv/www/distributions/debian/12.5.0/amd64/iso-dvd/debian-12.5.0-amd64-DVD-1.iso"
#define INVENTED_NASTY_NAME "/tmp/bad\xff\xfe\n\033[2J\u202e\"\\name"

static inline void invented_free(struct account **account)
{
    account_free(*account);
}
#define CLEANUP_ACCOUNT __attribute__((cleanup(invented_free)))

static inline void invent_end(struct account *account, uint32_t id, enum trace_end_kind kind, const char *name)
{
    struct account_end end = {.key = {.kind = (uint8_t)kind}, .value = {.id = id}};
    if (kind == TRACE_END_FILE) {
        end.key.device = 8 << 20 | 1;
        end.key.inode = 100 + id;
        end.value.file_system = 0xef53; /* ext4 */
    }
    if (kind == TRACE_END_TCP) {
        end.value.egress = 2;
        end.value.egress_known = 1;
        end.value.egress_features = 0xff;
    }
    snprintf(end.name, sizeof end.name, "%s", name);
    if (account_enter_end(account, &end) < 0)
        abort();
}

static inline void invent_flow(struct account *account, uint32_t pid, uint32_t source, uint32_t sink,
                               enum trace_mechanism first, enum trace_mechanism mechanism, uint64_t bytes)
{
    struct trace_flow_key key = {
        .pid = pid,
        .thread = pid + 1,
        .source = source,
        .sink = sink,
        .first = (uint8_t)first,
        .mechanism = (uint8_t)mechanism,
    };
    struct trace_flow_value value = {.calls = bytes / 65536 + 1, .bytes = bytes, .transitions = bytes / 65536 + 1};
    if (account_enter_flow(account, &key, &value) < 0)
        abort();
    if (first == TRACE_NONE)
        return;
    /* The call that brought the bytes into memory: they were all taken up. */
    key.sink = 0;
    key.first = TRACE_NONE;
    key.mechanism = (uint8_t)first;
    value.forwarded = bytes;
    if (account_enter_flow(account, &key, &value) < 0)
        abort();
}

/* One more second of the same. */
static inline void invent_second(struct account *account)
{
    struct account_process figures = {
        .pid = 1234,
        .cpu_ns = 700000000,
        .samples = 1000,
        .samples_copying_kernel = 380,
        .samples_copying_user = 30,
        .system_calls = 123456,
    };
    invent_flow(account, 1234, INVENTED_LONG, INVENTED_TCP, TRACE_READ, TRACE_SEND, UINT64_C(3) << 30);
    invent_flow(account, 1234, INVENTED_WIDE, INVENTED_TCP, TRACE_NONE, TRACE_SENDFILE, UINT64_C(1) << 30);
    invent_flow(account, 77, INVENTED_SHORT, INVENTED_NASTY, TRACE_READ, TRACE_WRITE, 200 << 20);
    invent_flow(account, 77, INVENTED_CHAR, 0, TRACE_NONE, TRACE_READ, 50 << 20);
    if (account_enter_process_figures(account, &figures) < 0)
        abort();
    account_enter_time(account, account_elapsed_ns(account) + 1000000000, account_elapsed_ns(account) + 1000000000);
}

static inline struct account *invented(void)
{
    struct account *account = NULL;
    if (account_new(ACCOUNT_TIER_TRACEPOINTS, &account) < 0 || account_enter_process(account, 1234, 1, "nginx") < 0 ||
        account_enter_process(account, 77, 1234, "c\033p\xff") < 0 || account_enter_process(account, 5, 1, "idle") < 0)
        abort();
    invent_end(account, INVENTED_LONG, TRACE_END_FILE, INVENTED_LONG_NAME);
    invent_end(account, INVENTED_TCP, TRACE_END_TCP, "tcp :8080 (127.0.0.1)");
    invent_end(account, INVENTED_WIDE, TRACE_END_FILE, "/srv/www/日本語/ファイル名.txt");
    invent_end(account, INVENTED_SHORT, TRACE_END_FILE, "/tmp/a");
    invent_end(account, INVENTED_NASTY, TRACE_END_FILE, INVENTED_NASTY_NAME);
    invent_end(account, INVENTED_CHAR, TRACE_END_CHAR, "/dev/something");
    invent_second(account);
    struct account_caller caller = {.pid = 1234, .samples = 270, .copier = "_copy_to_iter", .caller = "send (nginx)"};
    if (account_enter_caller(account, &caller) < 0)
        abort();
    return account;
}

#endif
