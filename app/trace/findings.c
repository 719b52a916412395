/* SPDX-License-Identifier: MIT
 *
 * Rows of one process that differ only in which file or which peer are one class: a server of ten thousand files has
 * one finding, not ten thousand. Of a class the first rule that fits speaks; rules about processes speak besides.
 */
#include "findings.h"
#include "base/text.h"
#include "mechanism.h"
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define WORTH_SAYING (UINT64_C(1) << 20) /* bytes */
#define ENOUGH_SAMPLES 100               /* below, a share of them says little */
#define START_UP (UINT64_C(4) << 20)     /* bytes of pages: what a program's start may copy, relocations mostly */
#define SMALL_CALL 4096                  /* a system call costs about what copying this much does */
#define MANY_CALLS 1000

struct class_key {
    uint32_t pid;
    uint8_t first, mechanism, from, to, egress, unused[3];
};

struct class
{
    struct class_key key;
    struct trace_flow_value value;
    uint64_t copy_bytes, unknown_bytes;
    enum account_evidence evidence;
    const struct account_end *source, *sink; /* of its largest row; NULL: not known */
};

#define CLASSES_MAX 512 /* rows come largest first: what finds no room is small */
#define SLOTS 1024

struct context {
    struct account *account;
    const struct account_process *process;
    char who[40];
};

/* ---- Words ------------------------------------------------------------------------------------------------------ */

__attribute__((format(printf, 3, 4))) static void append(char *text, size_t size, const char *format, ...)
{
    size_t used = strlen(text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, size - used, format, arguments);
    va_end(arguments);
}

#define WHAT(finding, ...) append((finding)->what, sizeof(finding)->what, __VA_ARGS__)
#define ADVISE(finding, ...) append((finding)->advice, sizeof(finding)->advice, __VA_ARGS__)

static void say_copies(struct finding *finding, const struct class *class)
{
    uint64_t bytes = class->value.bytes;
    if (class->unknown_bytes >= bytes && class->copy_bytes == 0)
        WHAT(finding, ", copies unknown");
    else
        WHAT(finding, ", %s%.1f copies per byte (%s)", class->unknown_bytes > 0 ? "at least " : "",
             (double)class->copy_bytes / (double)bytes,
             class->unknown_bytes > 0 ? "the rest is unknown" : account_evidence_name(class->evidence));
}

/* "nginx (1234) moved 3.1 GiB file -> tcp by read + send, 2.0 copies per byte (by definition)" */
static void say_moved(struct finding *finding, const struct context *context, const struct class *class)
{
    char size[TEXT_SIZE_MAX];
    const char *first = mechanism_name((enum trace_mechanism) class->key.first);
    const char *second = mechanism_name((enum trace_mechanism) class->key.mechanism);
    WHAT(finding, "%s moved %s %s -> %s by ", context->who, text_format_size(class->value.bytes, size, sizeof size),
         mechanism_end_kind_name((enum trace_end_kind) class->key.from),
         mechanism_end_kind_name((enum trace_end_kind) class->key.to));
    if (class->key.first == TRACE_NONE || class->key.first == class->key.mechanism)
        WHAT(finding, "%s", second);
    else
        WHAT(finding, "%s + %s", first, second);
    say_copies(finding, class);
}

static uint64_t copying_samples(const struct account_process *process)
{
    return process->samples_copying_kernel + process->samples_copying_user;
}

static unsigned percent(uint64_t part, uint64_t whole)
{
    return whole == 0 ? 0 : (unsigned)((double)part * 100 / (double)whole + 0.5);
}

/* The ceiling (Amdahl): nothing can save more of the CPU than copying takes. */
static void say_ceiling(struct finding *finding, const struct context *context)
{
    const struct account_process *process = context->process;
    if (process != NULL && process->samples >= ENOUGH_SAMPLES)
        WHAT(finding, "; copying is %u %% of its CPU (sampled, %" PRIu64 " samples)",
             percent(copying_samples(process), process->samples), process->samples);
    WHAT(finding, ".");
}

static bool is_start_up(const struct class *class)
{
    return class->value.bytes < START_UP &&
           (class->key.mechanism == TRACE_COPY_ON_WRITE || class->key.mechanism == TRACE_MAP_FAULT);
}

static bool is_called(const struct context *context, const char *name)
{
    return context->process != NULL && strncmp(context->process->comm, name, strlen(name)) == 0;
}

/* ---- Which classes ---------------------------------------------------------------------------------------------- */

static bool is_file(uint8_t kind)
{
    return kind == TRACE_END_FILE || kind == TRACE_END_FILE_DIRECT || kind == TRACE_END_BLOCK;
}

static bool is_stream_socket(uint8_t kind)
{
    return kind == TRACE_END_TCP || kind == TRACE_END_UNIX;
}

static bool through_memory(const struct class *class)
{
    return (class->key.first == TRACE_READ || class->key.first == TRACE_RECV) &&
           (class->key.mechanism == TRACE_WRITE || class->key.mechanism == TRACE_SEND ||
            class->key.mechanism == TRACE_SEND_ZEROCOPY);
}

static bool by_reference(const struct class *class)
{
    return class->key.mechanism == TRACE_SENDFILE || class->key.mechanism == TRACE_SPLICE;
}

static const char *device_of(const struct class *class, char *buffer, size_t size)
{
    if (class->sink == NULL || class->sink->value.egress == 0)
        return "the device";
    snprintf(buffer, size, "device %" PRIu32 " (ip link)", class->sink->value.egress);
    return buffer;
}

/* ---- Rules: false if they do not fit, else they have filled the finding ------------------------------------------ */

static bool lent_to_loopback(const struct context *context, const struct class *class, struct finding *finding)
{
    char size[TEXT_SIZE_MAX];
    if (class->key.mechanism != TRACE_SEND_ZEROCOPY || class->key.egress != MECHANISM_EGRESS_LOOPBACK)
        return false;
    WHAT(finding, "%s asked for MSG_ZEROCOPY for %s, 100 %% copied (%s): the route is loopback", context->who,
         text_format_size(class->value.bytes, size, sizeof size), account_evidence_name(class->evidence));
    say_ceiling(finding, context);
    ADVISE(finding,
           "A peer on this machine gets a copy, and the asking costs more than send would. Leave the flag away "
           "for local peers: the first notification says SO_EE_CODE_ZEROCOPY_COPIED.");
    return true;
}

static bool lent_but_copied(const struct context *context, const struct class *class, struct finding *finding)
{
    char size[TEXT_SIZE_MAX];
    const struct trace_flow_value *value = &class->value;
    if (class->key.mechanism != TRACE_SEND_ZEROCOPY || value->notified == 0 ||
        value->notified_copied * 2 < value->notified)
        return false;
    WHAT(finding, "%s asked for MSG_ZEROCOPY for %s, %u %% of %llu notifications say copied (measured)", context->who,
         text_format_size(value->bytes, size, sizeof size), percent(value->notified_copied, value->notified),
         value->notified);
    say_ceiling(finding, context);
    ADVISE(finding, "The kernel copied after all: a peer in another network namespace of this machine (veth), a packet "
                    "capture, or a device without scatter-gather (ethtool -k). Plain send is cheaper then.");
    return true;
}

static bool no_scatter_gather(const struct context *context, const struct class *class, struct finding *finding)
{
    char device[40];
    bool checksum = class->key.egress == MECHANISM_EGRESS_NO_CHECKSUM;
    if ((!by_reference(class) && class->key.mechanism != TRACE_SEND_ZEROCOPY) || class->key.to != TRACE_END_TCP ||
        (class->key.egress != MECHANISM_EGRESS_NO_SCATTER_GATHER && !checksum))
        return false;
    say_moved(finding, context, class);
    WHAT(finding, ": %s has no %s, so the kernel copies", device_of(class, device, sizeof device),
         checksum ? "checksum offload" : "scatter-gather");
    say_ceiling(finding, context);
    ADVISE(finding,
           "Turn it on if the driver can: ethtool -K DEVICE %s on. On a virtual machine it is the host's to "
           "offer.",
           checksum ? "tx" : "sg");
    return true;
}

static bool lent_without_answer(const struct context *context, const struct class *class, struct finding *finding)
{
    char size[TEXT_SIZE_MAX];
    const struct trace_flow_value *value = &class->value;
    if (class->key.mechanism != TRACE_SEND_ZEROCOPY || class->unknown_bytes == 0)
        return false;
    WHAT(finding, "%s asked for MSG_ZEROCOPY for %s, and read notifications of %llu of %llu calls", context->who,
         text_format_size(value->bytes, size, sizeof size), value->notified, value->calls);
    say_ceiling(finding, context);
    ADVISE(finding, "Whether the others were copied is unknown. Notifications come with recvmsg(MSG_ERRQUEUE), or with "
                    "IORING_SEND_ZC_REPORT_USAGE; memory stays pinned until they are read.");
    return true;
}

/* What is known of programs that can do better and are set not to. */
static const struct {
    const char *comm, *advice;
} senders[] = {
    {"nginx", "Set \"sendfile on;\" for it. If it is on, something needs the bytes in memory: gzip, ssi, sub_filter, "
              "aio threads without sendfile, or TLS in user space."},
    {"apache2", "Set \"EnableSendfile On\". Filters (mod_deflate, mod_include) and TLS need the bytes in memory."},
    {"httpd", "Set \"EnableSendfile On\". Filters (mod_deflate, mod_include) and TLS need the bytes in memory."},
    {"lighttpd", "Set server.network-backend = \"sendfile\". mod_deflate and TLS need the bytes in memory."},
    {"python", "socket.sendfile() and os.sendfile() do it without the copies; shutil.copyfileobj() and "
               "http.server read and write."},
    {"node", "Streams of Node read and write, whatever they are piped to: there is no sendfile behind them. Let a "
             "server in front send files (X-Accel-Redirect)."},
};

static bool file_to_socket(const struct context *context, const struct class *class, struct finding *finding)
{
    if (!through_memory(class) || !is_file(class->key.from) || !is_stream_socket(class->key.to))
        return false;
    say_moved(finding, context, class);
    say_ceiling(finding, context);
    for (size_t i = 0; i < sizeof senders / sizeof senders[0]; i++)
        if (is_called(context, senders[i].comm)) {
            ADVISE(finding, "%s", senders[i].advice);
            return true;
        }
    ADVISE(finding, "sendfile(2) would send it without going through its memory, unless it changes the bytes "
                    "(compression, TLS).");
    return true;
}

static bool socket_to_socket(const struct context *context, const struct class *class, struct finding *finding)
{
    if (!through_memory(class) || !is_stream_socket(class->key.from) || !is_stream_socket(class->key.to))
        return false;
    say_moved(finding, context, class);
    if (is_called(context, "haproxy")) {
        WHAT(finding, ": splicing is off, or never chosen");
        say_ceiling(finding, context);
        ADVISE(finding,
               "\"option splice-response\" and \"option splice-request\", with \"maxpipes\" high enough; "
               "\"option splice-auto\" does not splice what comes in small bursts. TLS ends cannot be spliced.");
        return true;
    }
    say_ceiling(finding, context);
    ADVISE(finding, is_called(context, "nginx")
                        ? "Proxying in nginx goes through its buffers; proxy_buffering does not change that."
                        : "splice(2) through a pipe forwards without going through its memory, unless it looks at or "
                          "changes the bytes.");
    return true;
}

static bool file_to_file(const struct context *context, const struct class *class, struct finding *finding)
{
    if (!through_memory(class) || !is_file(class->key.from) || !is_file(class->key.to))
        return false;
    say_moved(finding, context, class);
    say_ceiling(finding, context);
    if (is_called(context, "python"))
        ADVISE(finding, "shutil.copyfile() uses sendfile; os.copy_file_range() shares extents where the file system "
                        "can.");
    else if (is_called(context, "dd"))
        ADVISE(finding, "dd reads and writes by its nature; cp shares extents or uses copy_file_range.");
    else if (is_called(context, "cp"))
        ADVISE(finding,
               "cp --reflink=auto (the default since coreutils 9.0) shares extents within one file system that "
               "can (XFS, btrfs), and uses copy_file_range elsewhere.");
    else
        ADVISE(finding,
               "copy_file_range(2) shares extents where the file system can (XFS, btrfs), and saves one of the "
               "copies elsewhere.");
    return true;
}

static bool through_a_pipe(const struct context *context, const struct class *class, struct finding *finding)
{
    if (!through_memory(class) || (class->key.from != TRACE_END_PIPE && class->key.to != TRACE_END_PIPE))
        return false;
    say_moved(finding, context, class);
    say_ceiling(finding, context);
    ADVISE(finding, "One end is a pipe: splice(2) moves the bytes without going through its memory, unless it changes "
                    "them.");
    return true;
}

static bool socket_to_file(const struct context *context, const struct class *class, struct finding *finding)
{
    if (!through_memory(class) || !is_stream_socket(class->key.from) || !is_file(class->key.to))
        return false;
    say_moved(finding, context, class);
    say_ceiling(finding, context);
    ADVISE(finding, "splice(2) through a pipe saves one of the copies; the one into the page cache stays.");
    return true;
}

static bool kernel_copies_files(const struct context *context, const struct class *class, struct finding *finding)
{
    if ((!by_reference(class) && class->key.mechanism != TRACE_COPY_FILE_RANGE) || !is_file(class->key.to) ||
        class->copy_bytes == 0)
        return false;
    say_moved(finding, context, class);
    say_ceiling(finding, context);
    ADVISE(finding, "%s",
           is_file(class->key.from) ? "The kernel copies from page cache to page cache. Only a file system that shares "
                                      "extents (XFS, btrfs) avoids that, by copy_file_range or FICLONE."
                                    : "The copy into the page cache is the least there is without O_DIRECT.");
    return true;
}

static bool copied_on_write(const struct context *context, const struct class *class, struct finding *finding)
{
    char size[TEXT_SIZE_MAX];
    if (class->key.mechanism != TRACE_COPY_ON_WRITE)
        return false;
    bool mapped = is_file(class->key.from);
    WHAT(
        finding, "%s wrote to %s: %s copied on write%s (%s)", context->who,
        mapped ? "private mappings of files" : "private pages", text_format_size(class->value.bytes, size, sizeof size),
        class->unknown_bytes > 0 ? ", unless nobody shared them any more" : "", account_evidence_name(class->evidence));
    say_ceiling(finding, context);
    ADVISE(finding, "%s",
           mapped ? "Each page of a file mapped MAP_PRIVATE is copied when it is first written to. Read what is to be "
                    "changed into memory of its own in large pieces, or map it MAP_SHARED if the file may change."
                  : "After fork both sides pay for the pages that either writes to: fork before filling memory, use "
                    "vfork or posix_spawn to run programs, or share the memory (MAP_SHARED).");
    return true;
}

static bool healthy(const struct context *context, const struct class *class, struct finding *finding)
{
    if (class->copy_bytes * 20 > class->value.bytes || class->unknown_bytes > 0 || class->evidence == ACCOUNT_UNKNOWN ||
        class->key.mechanism == TRACE_MAP_FAULT)
        return false;
    say_moved(finding, context, class);
    WHAT(finding, ": nothing to gain.");
    return true;
}

static bool not_known(const struct context *context, const struct class *class, struct finding *finding)
{
    enum account_tier tier = account_tier(context->account);
    if (class->unknown_bytes * 2 < class->value.bytes || class->key.from == TRACE_END_CHAR ||
        class->key.to == TRACE_END_CHAR)
        return false;
    say_moved(finding, context, class);
    struct mechanism_cost cost =
        mechanism_cost((enum trace_mechanism) class->key.mechanism, class->source, class->sink);
    if (cost.evidence == ACCOUNT_UNKNOWN)
        WHAT(finding, ": %s", cost.reason);
    WHAT(finding, ".");
    if (tier == ACCOUNT_TIER_PROC)
        ADVISE(finding, "/proc tells bytes, not their ends. Tier (b) would: CAP_BPF and CAP_PERFMON, or root.");
    else if (tier == ACCOUNT_TIER_TRACEPOINTS)
        ADVISE(finding, "Tier (a) sees the kernel's copying functions: a kernel that lets BPF hook them (fentry; not "
                        "under lockdown).");
    else
        ADVISE(finding, "No function that can be hooked here would tell.");
    return true;
}

/* The first that fits. Particular ones come before general ones. */
static bool (*const class_rules[])(const struct context *, const struct class *, struct finding *) = {
    lent_to_loopback, no_scatter_gather, lent_but_copied, lent_without_answer, file_to_socket,
    socket_to_socket, file_to_file,      through_a_pipe,  socket_to_file,      kernel_copies_files,
    copied_on_write,  healthy,           not_known,
};

static bool small_calls(const struct context *context, const struct class *class, struct finding *finding)
{
    char size[TEXT_SIZE_MAX];
    uint64_t calls = class->value.calls;
    if (calls < MANY_CALLS || class->value.bytes / calls >= SMALL_CALL || class->key.mechanism == TRACE_MAP_FAULT ||
        class->key.mechanism == TRACE_COPY_ON_WRITE)
        return false;
    WHAT(finding, "%s moved %s %s -> %s in %" PRIu64 " calls", context->who,
         text_format_size(class->value.bytes, size, sizeof size),
         mechanism_end_kind_name((enum trace_end_kind) class->key.from),
         mechanism_end_kind_name((enum trace_end_kind) class->key.to), calls);
    WHAT(finding, " of %s: the transitions cost more than the copies",
         text_format_size(class->value.bytes / calls, size, sizeof size));
    say_ceiling(finding, context);
    ADVISE(finding, "Larger buffers (64 KiB and more), or several pieces in one call (readv, writev, sendmmsg, "
                    "io_uring), gain more than zero copy would.");
    return true;
}

/* ---- Processes -------------------------------------------------------------------------------------------------- */

static bool transforming(const struct context *context, struct finding *finding)
{
    const struct account_process *process = context->process;
    if (process->samples < ENOUGH_SAMPLES || process->samples_transforming * 10 < process->samples)
        return false;
    WHAT(finding,
         "%s spends %u %% of its CPU on what has to touch the bytes: encryption, compression, checksums (sampled, "
         "%" PRIu64 " samples).",
         context->who, percent(process->samples_transforming, process->samples), process->samples);
    ADVISE(finding, "If it is TLS: kernel TLS (OpenSSL: SSL_OP_ENABLE_KTLS; nginx: ssl_conf_command Options KTLS) lets "
                    "sendfile work again, and some network cards encrypt. Otherwise zero copy cannot help here.");
    return true;
}

static bool ceiling(const struct context *context, struct finding *finding)
{
    const struct account_process *process = context->process;
    uint64_t copying = copying_samples(process);
    if (process->samples < ENOUGH_SAMPLES)
        return false;
    unsigned share = percent(copying, process->samples);
    WHAT(finding,
         "%s: copying is %u %% of its CPU, %u %% in the kernel and %u %% in user space (sampled, %" PRIu64 " samples).",
         context->who, share, percent(process->samples_copying_kernel, process->samples),
         percent(process->samples_copying_user, process->samples), process->samples);
    if (share < 5)
        ADVISE(finding, "Zero copy has next to nothing to gain here: look elsewhere.");
    else
        ADVISE(finding, "This is the most that zero copy could save: at best it would be %.1f times as fast.",
               100.0 / (100.0 - (share < 99 ? share : 99)));
    return true;
}

static bool (*const process_rules[])(const struct context *, struct finding *) = {transforming, ceiling};

/* ---- All of it -------------------------------------------------------------------------------------------------- */

struct list {
    struct finding *findings;
    size_t count;
};

/* The largest first; those that are equal in the order in which they came. */
static void keep(struct list *list, const struct finding *finding)
{
    size_t at = list->count;
    while (at > 0 && list->findings[at - 1].bytes < finding->bytes)
        at--;
    if (at == FINDINGS_MAX)
        return;
    size_t moved = (list->count < FINDINGS_MAX ? list->count : FINDINGS_MAX - 1) - at;
    memmove(&list->findings[at + 1], &list->findings[at], moved * sizeof *finding);
    list->findings[at] = *finding;
    if (list->count < FINDINGS_MAX)
        list->count++;
}

static struct class_key key_of(const struct account *account, const struct account_row *row)
{
    const struct account_end *source = account_end(account, row->key.source),
                             *sink = account_end(account, row->key.sink);
    return (struct class_key){
        .pid = row->key.pid,
        .first = row->key.first,
        .mechanism = row->key.mechanism,
        .from = source != NULL ? source->key.kind : TRACE_END_NONE,
        .to = sink != NULL ? sink->key.kind : TRACE_END_NONE,
        .egress = (uint8_t)mechanism_egress(sink),
    };
}

static struct class *class_of(struct class *classes, uint16_t *slots, size_t *count, const struct class_key *key)
{
    uint64_t hash;
    memcpy(&hash, &key->first, sizeof hash);
    hash = (hash + key->pid) * UINT64_C(0x9e3779b97f4a7c15);
    size_t slot = (size_t)(hash >> 32) % SLOTS;
    for (; slots[slot] != 0; slot = (slot + 1) % SLOTS)
        if (memcmp(&classes[slots[slot] - 1].key, key, sizeof *key) == 0)
            return &classes[slots[slot] - 1];
    if (*count == CLASSES_MAX)
        return NULL;
    struct class *class = &classes[*count];
    slots[slot] = (uint16_t)++ * count;
    *class = (struct class){.key = *key, .evidence = ACCOUNT_MEASURED};
    return class;
}

static size_t classify(struct account *account, struct class classes[CLASSES_MAX])
{
    uint16_t slots[SLOTS] = {0};
    size_t rows_count, count = 0;
    const struct account_row *rows = account_rows(account, false, &rows_count);
    for (size_t i = 0; i < rows_count; i++) {
        const struct account_row *row = &rows[i];
        struct class_key key = key_of(account, row);
        struct class *class = class_of(classes, slots, &count, &key);
        if (class == NULL)
            continue;
        if (class->value.bytes == 0) {
            class->source = account_end(account, row->key.source);
            class->sink = account_end(account, row->key.sink);
        }
        class->value.bytes += row->value.bytes;
        class->value.calls += row->value.calls;
        class->value.notified += row->value.notified;
        class->value.notified_copied += row->value.notified_copied;
        class->copy_bytes += row->copy_bytes;
        class->unknown_bytes += row->unknown_bytes;
        if (row->evidence < class->evidence)
            class->evidence = row->evidence;
    }
    return count;
}

static struct context context_of(struct account *account, uint32_t pid)
{
    struct context context = {.account = account, .process = account_process(account, pid)};
    if (context.process != NULL && context.process->comm[0] != '\0')
        snprintf(context.who, sizeof context.who, "%s (%" PRIu32 ")", context.process->comm, pid);
    else
        snprintf(context.who, sizeof context.who, "process %" PRIu32, pid);
    return context;
}

size_t findings_find(struct account *account, struct finding findings[FINDINGS_MAX])
{
    struct list list = {.findings = findings};
    struct class classes[CLASSES_MAX];
    size_t count = classify(account, classes), process_count;
    for (size_t i = 0; i < count; i++) {
        const struct class *class = &classes[i];
        if (class->value.bytes < WORTH_SAYING || is_start_up(class))
            continue;
        struct context context = context_of(account, class->key.pid);
        struct finding finding = {.pid = class->key.pid, .bytes = class->value.bytes};
        for (size_t rule = 0; rule < sizeof class_rules / sizeof class_rules[0]; rule++)
            if (class_rules[rule](&context, class, &finding)) {
                keep(&list, &finding);
                break;
            }
        finding = (struct finding){.pid = class->key.pid, .bytes = class->value.bytes};
        if (small_calls(&context, class, &finding))
            keep(&list, &finding);
    }
    const struct account_process *processes = account_processes(account, &process_count);
    for (size_t i = 0; i < process_count; i++) {
        struct context context = context_of(account, processes[i].pid);
        struct finding finding = {.pid = processes[i].pid};
        if (processes[i].samples < ENOUGH_SAMPLES)
            continue; /* most processes: do not even add up their classes */
        for (size_t j = 0; j < count; j++)
            if (classes[j].key.pid == processes[i].pid)
                finding.bytes += classes[j].value.bytes;
        if (finding.bytes < WORTH_SAYING)
            continue;
        for (size_t rule = 0; rule < sizeof process_rules / sizeof process_rules[0]; rule++) {
            struct finding one = finding;
            if (process_rules[rule](&context, &one))
                keep(&list, &one);
        }
    }
    return list.count;
}
