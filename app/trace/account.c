/* SPDX-License-Identifier: MIT
 *
 * Invariants
 *   - What is entered is only added up; rows are worked out when somebody reads them, and kept until the next entry.
 *   - Room for rows is made when flows are entered, so that reading cannot fail.
 *   - Keys are compared as bytes: they are normalised (no padding, unused members zero) on their way in.
 */
#include "account.h"
#include "base/checked.h"
#include "copies.h"
#include "items.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- What is kept ----------------------------------------------------------------------------------------------- */

struct flow {
    struct trace_flow_key key;
    struct trace_flow_value value;
    struct trace_copy_value *copies; /* by function; NULL: none were seen */
};

struct end {
    uint32_t id;
    struct account_end end;
};

/* A flow on its way to being a row. */
struct leg {
    struct account_row row;
    uint64_t row_copier_bytes; /* what the row's copier copied: the one with the most is named */
    const struct flow *flow;
    /* Of the legs before: how many bytes were handed to this one, and how many of these are unknown. */
    double handed, handed_unknown;
};

struct account {
    enum account_tier tier;
    uint32_t functions; /* that are hooked */
    struct items flows, ends, processes, callers;
    struct trace_copy_value elsewhere[TRACE_FUNCTION_COUNT]; /* copies outside any flow */
    struct account_unattributed unattributed[2 * TRACE_FUNCTION_COUNT];
    size_t unattributed_count;
    struct trace_lost lost;    /* with no_room */
    struct trace_lost no_room; /* what this account itself had no room for */
    uint64_t elapsed_ns, counted_ns;
    uint64_t ring_operations;
    size_t folded_flows, folded_processes; /* that were left when ended processes were last folded */

    bool dirty, callers_dirty;
    size_t capacity; /* of the arrays below */
    struct leg *legs;
    struct leg **order;
    struct account_row *rows_of_threads, *rows;
    size_t rows_of_threads_count, rows_count;
    struct account_caller *sorted_callers;
    size_t sorted_callers_capacity;
};

int account_new(enum account_tier tier, struct account **ret_account)
{
    struct account *account = calloc(1, sizeof *account);
    if (account == NULL)
        return -ENOMEM;
    account->tier = tier;
    account->flows = (struct items){.item_size = sizeof(struct flow), .key_size = sizeof(struct trace_flow_key)};
    account->ends = (struct items){.item_size = sizeof(struct end), .key_size = sizeof(uint32_t)};
    account->processes = (struct items){.item_size = sizeof(struct account_process), .key_size = sizeof(uint32_t)};
    account->callers = (struct items){.item_size = sizeof(struct account_caller),
                                      .key_size = offsetof(struct account_caller, samples)};
    *ret_account = account;
    return 0;
}

void account_watch(struct account *account, uint32_t functions)
{
    account->functions = functions;
    account->dirty = true;
}

_Static_assert(offsetof(struct account_process, pid) == 0 && offsetof(struct account_caller, pid) == 0,
               "tables take the first members as the key");
_Static_assert(sizeof(struct trace_flow_key) == 20 && offsetof(struct account_caller, samples) % 4 == 0,
               "keys are compared as bytes, and have no padding");

void account_free(struct account *account)
{
    if (account == NULL)
        return;
    for (size_t i = 0; i < account->flows.count; i++)
        free(((struct flow *)items_at(&account->flows, i))->copies);
    items_free(&account->flows);
    items_free(&account->ends);
    items_free(&account->processes);
    items_free(&account->callers);
    free(account->legs);
    free(account->order);
    free(account->rows_of_threads);
    free(account->rows);
    free(account->sorted_callers);
    free(account);
}

/* ---- Entering --------------------------------------------------------------------------------------------------- */

static void add_value(struct trace_flow_value *sum, const struct trace_flow_value *value)
{
    sum->calls += value->calls;
    sum->fruitless += value->fruitless;
    sum->bytes += value->bytes;
    sum->delivered += value->delivered;
    sum->forwarded += value->forwarded;
    sum->notified += value->notified;
    sum->notified_copied += value->notified_copied;
    sum->transitions += value->transitions;
    sum->registered += value->registered;
}

static void add_process(struct account_process *sum, const struct account_process *increment)
{
    sum->system_calls += increment->system_calls;
    sum->cpu_ns += increment->cpu_ns;
    sum->samples += increment->samples;
    sum->samples_copying_kernel += increment->samples_copying_kernel;
    sum->samples_copying_user += increment->samples_copying_user;
    sum->samples_transforming += increment->samples_transforming;
}

static int make_room_for_rows(struct account *account, size_t count)
{
    if (count <= account->capacity)
        return 0;
    size_t capacity = max_size(account->capacity * 2, ITEMS_MIN);
    struct leg *legs = realloc(account->legs, capacity * sizeof *legs);
    if (legs == NULL)
        return -ENOMEM;
    account->legs = legs;
    struct leg **order = realloc(account->order, capacity * sizeof(struct leg *));
    if (order == NULL)
        return -ENOMEM;
    account->order = order;
    struct account_row *rows = realloc(account->rows_of_threads, capacity * sizeof *rows);
    if (rows == NULL)
        return -ENOMEM;
    account->rows_of_threads = rows;
    rows = realloc(account->rows, capacity * sizeof *rows);
    if (rows == NULL)
        return -ENOMEM;
    account->rows = rows;
    account->capacity = capacity;
    return 0;
}

/* Which process stands for each name of ended ones. */
struct name {
    char comm[TRACE_COMM_SIZE];
    uint32_t pid, index; /* index: among the processes that are kept */
};

/* The last figures of a process come after the news of its end. */
#define SETTLED_NS 2000000000u

static bool can_fold(const struct account *account, const struct account_process *process)
{
    return process != NULL && process->exited && process->exited_ns + SETTLED_NS <= account->elapsed_ns;
}

static void fold_flow(struct items *flows, size_t *kept, struct flow *flow)
{
    struct flow *same = NULL;
    flows->count = *kept;
    uint32_t index = flows->slots[items_slot(flows, &flow->key)];
    if (index != 0)
        same = items_at(flows, index - 1);
    if (same == NULL) {
        struct flow copy = *flow;
        size_t slot = items_slot(flows, &copy.key);
        *(struct flow *)items_at(flows, *kept) = copy;
        flows->slots[slot] = (uint32_t)++ * kept;
        return;
    }
    add_value(&same->value, &flow->value);
    if (same->copies == NULL) {
        same->copies = flow->copies;
    } else if (flow->copies != NULL) {
        for (size_t i = 0; i < TRACE_FUNCTION_COUNT; i++) {
            same->copies[i].calls += flow->copies[i].calls;
            same->copies[i].bytes += flow->copies[i].bytes;
        }
        free(flow->copies);
    }
}

/* Ten thousand short-lived processes of one name become one, and their threads with them. */
static void fold_ended_processes(struct account *account)
{
    struct items *flows = &account->flows, *processes = &account->processes;
    struct items names = {.item_size = sizeof(struct name), .key_size = TRACE_COMM_SIZE};
    size_t count = flows->count, kept = 0;
    for (size_t i = 0; i < processes->count; i++) {
        const struct account_process *process = items_at(processes, i);
        struct name *name = can_fold(account, process) ? items_enter(&names, process->comm) : NULL;
        if (name != NULL && name->pid == 0)
            name->pid = process->pid;
    }
    if (flows->slots != NULL)
        memset(flows->slots, 0, flows->slot_count * sizeof *flows->slots);
    for (size_t i = 0; i < count; i++) {
        struct flow *flow = items_at(flows, i);
        const struct account_process *process = account_process(account, flow->key.pid);
        const struct name *name = can_fold(account, process) ? items_find(&names, process->comm) : NULL;
        if (name != NULL)
            flow->key.pid = flow->key.thread = name->pid;
        fold_flow(flows, &kept, flow);
    }
    flows->count = kept;
    count = processes->count;
    kept = 0;
    for (size_t i = 0; i < count; i++) {
        struct account_process *process = items_at(processes, i);
        struct name *name = can_fold(account, process) ? items_find(&names, process->comm) : NULL;
        if (name != NULL && name->pid != process->pid) {
            add_process(items_at(processes, name->index), process); /* it came before this one */
            continue;
        }
        if (name != NULL)
            name->index = (uint32_t)kept;
        *(struct account_process *)items_at(processes, kept++) = *process;
    }
    processes->count = kept;
    if (processes->slots != NULL)
        items_rehash(processes);
    items_free(&names);
    account->dirty = true;
    account->folded_flows = flows->count;
    account->folded_processes = processes->count;
}

static struct flow *enter_flow(struct account *account, const struct trace_flow_key *key, bool *ret_full)
{
    struct trace_flow_key own = *key;
    own.unused = 0;
    *ret_full = false;
    struct flow *flow = items_find(&account->flows, &own);
    if (flow != NULL)
        return flow;
    if (account->flows.count >= ACCOUNT_FLOWS_MAX) {
        /* Folding takes time in proportion to all flows: not again before an eighth of them are new. */
        if (account->folded_flows + ACCOUNT_FLOWS_MAX / 8 <= account->flows.count)
            fold_ended_processes(account);
        if (account->flows.count >= ACCOUNT_FLOWS_MAX) {
            *ret_full = true;
            return NULL;
        }
    }
    if (account_process(account, own.pid) == NULL && account_enter_process(account, own.pid, 0, NULL) < 0)
        return NULL;
    if (make_room_for_rows(account, account->flows.count + 1) < 0)
        return NULL;
    return items_enter(&account->flows, &own);
}

int account_enter_flow(struct account *account, const struct trace_flow_key *key, const struct trace_flow_value *value)
{
    bool full;
    account->dirty = true;
    if (key->way == TRACE_BY_RING)
        account->ring_operations += value->calls + value->fruitless;
    struct flow *flow = enter_flow(account, key, &full);
    if (flow == NULL && !full)
        return -ENOMEM;
    if (flow != NULL) {
        add_value(&flow->value, value);
        return 0;
    }
    account->no_room.flows += value->bytes;
    account->no_room.flow_calls += value->calls + value->fruitless;
    account->lost.flows += value->bytes;
    account->lost.flow_calls += value->calls + value->fruitless;
    return 0;
}

int account_enter_copy(struct account *account, const struct trace_copy_key *key, const struct trace_copy_value *value)
{
    if (key->function >= TRACE_FUNCTION_COUNT)
        return 0;
    if (key->flow.pid == 0) {
        account->elsewhere[key->function].calls += value->calls;
        account->elsewhere[key->function].bytes += value->bytes;
        account->dirty = true;
        return 0;
    }
    bool full;
    account->dirty = true;
    struct flow *flow = enter_flow(account, &key->flow, &full);
    if (flow == NULL) {
        if (!full)
            return -ENOMEM;
        account->no_room.copies += value->bytes;
        account->lost.copies += value->bytes;
        return 0;
    }
    if (flow->copies == NULL) {
        flow->copies = calloc(TRACE_FUNCTION_COUNT, sizeof *flow->copies);
        if (flow->copies == NULL)
            return -ENOMEM;
    }
    flow->copies[key->function].calls += value->calls;
    flow->copies[key->function].bytes += value->bytes;
    return 0;
}

int account_enter_end(struct account *account, const struct account_end *end)
{
    if (end->value.id == 0)
        return 0;
    account->dirty = true;
    struct end *entered = items_enter(&account->ends, &end->value.id);
    if (entered == NULL)
        return -ENOMEM;
    entered->end = *end;
    entered->end.name[sizeof entered->end.name - 1] = '\0';
    return 0;
}

int account_enter_process(struct account *account, uint32_t pid, uint32_t parent, const char *comm)
{
    if (account->processes.count >= account->folded_processes + ACCOUNT_PROCESSES_MAX)
        fold_ended_processes(account);
    struct account_process *process = items_enter(&account->processes, &pid);
    if (process == NULL)
        return -ENOMEM;
    process->exited = false;
    if (parent != 0)
        process->parent = parent;
    if (comm != NULL && comm[0] != '\0') {
        memset(process->comm, 0, sizeof process->comm);
        memcpy(process->comm, comm, strnlen(comm, sizeof process->comm - 1));
    }
    return 0;
}

void account_enter_exit(struct account *account, uint32_t pid)
{
    struct account_process *process = items_find(&account->processes, &pid);
    if (process != NULL) {
        process->exited = true;
        process->exited_ns = account->elapsed_ns;
    }
}

int account_enter_process_figures(struct account *account, const struct account_process *increment)
{
    struct account_process *process = items_enter(&account->processes, &increment->pid);
    if (process == NULL)
        return -ENOMEM;
    add_process(process, increment);
    return 0;
}

int account_enter_caller(struct account *account, const struct account_caller *increment)
{
    struct account_caller key;
    memset(&key, 0, sizeof key);
    key.pid = increment->pid;
    memcpy(key.copier, increment->copier, strnlen(increment->copier, sizeof key.copier - 1));
    memcpy(key.caller, increment->caller, strnlen(increment->caller, sizeof key.caller - 1));
    struct account_caller *caller = items_find(&account->callers, &key);
    if (caller == NULL && account->callers.count + 1 >= ACCOUNT_CALLERS_MAX) {
        /* The rest together, so that samples still add up. */
        memset(key.copier, 0, sizeof key.copier);
        memset(key.caller, 0, sizeof key.caller);
        key.pid = 0;
        strcpy(key.copier, "several");
        strcpy(key.caller, "others");
    }
    if (account->sorted_callers_capacity <= account->callers.count) {
        size_t capacity = max_size(account->sorted_callers_capacity * 2, ITEMS_MIN);
        struct account_caller *sorted = realloc(account->sorted_callers, capacity * sizeof *sorted);
        if (sorted == NULL)
            return -ENOMEM;
        account->sorted_callers = sorted;
        account->sorted_callers_capacity = capacity;
    }
    if (caller == NULL)
        caller = items_enter(&account->callers, &key);
    if (caller == NULL)
        return -ENOMEM;
    caller->samples += increment->samples;
    account->callers_dirty = true;
    return 0;
}

void account_enter_lost(struct account *account, const struct trace_lost *lost)
{
    account->lost = *lost;
    account->lost.flows += account->no_room.flows;
    account->lost.flow_calls += account->no_room.flow_calls;
    account->lost.copies += account->no_room.copies;
}

void account_enter_time(struct account *account, uint64_t elapsed_ns, uint64_t counted_ns)
{
    account->elapsed_ns = elapsed_ns;
    account->counted_ns = counted_ns;
}

/* ---- What one flow copied --------------------------------------------------------------------------------------- */

static const struct account_end unknown_end;
static const struct account_end pipe_end = {.key = {.kind = TRACE_END_PIPE}};

/* Where this very call took its bytes from: memory or a pipe, when an earlier call had put them there. */
static const struct account_end *own_source(const struct account *account, const struct trace_flow_key *key)
{
    switch (key->mechanism) {
    case TRACE_WRITE:
    case TRACE_SEND:
    case TRACE_SEND_ZEROCOPY:
    case TRACE_VMSPLICE:
        return NULL;
    }
    if (key->first != TRACE_NONE)
        return &pipe_end;
    if (key->source == 0)
        return NULL;
    const struct account_end *end = account_end(account, key->source);
    return end != NULL ? end : &unknown_end;
}

static const struct account_end *own_sink(const struct account *account, const struct trace_flow_key *key)
{
    if (key->sink == 0)
        return NULL;
    const struct account_end *end = account_end(account, key->sink);
    return end != NULL ? end : &unknown_end;
}

static void account_for(const struct account *account, struct leg *leg)
{
    struct account_row *row = &leg->row;
    struct copies_seen seen = {
        .functions = account->functions,
        .copies = leg->flow->copies,
        .source = own_source(account, &row->key),
        .sink = own_sink(account, &row->key),
    };
    copies_of_flow(&seen, row);
    leg->row_copier_bytes = row->copy_bytes;
}

/* ---- Legs that belong together ---------------------------------------------------------------------------------- */

#define COMPARE(a, b)                                                                                                  \
    do {                                                                                                               \
        if ((a) != (b))                                                                                                \
            return (a) < (b) ? -1 : 1;                                                                                 \
    } while (0)

/* By what brought the bytes: the later legs of one first leg are neighbours, those of one thread most closely. */
static int compare_takers(const struct trace_flow_key *a, const struct trace_flow_key *b, bool threads)
{
    COMPARE(a->pid, b->pid);
    COMPARE(a->source, b->source);
    COMPARE(a->first, b->first);
    if (threads)
        COMPARE(a->thread, b->thread);
    return 0;
}

static int order_takers(const void *a, const void *b)
{
    return compare_takers(&(*(struct leg *const *)a)->row.key, &(*(struct leg *const *)b)->row.key, true);
}

static size_t first_taker(const struct account *account, size_t count, const struct trace_flow_key *wanted,
                          bool threads)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (compare_takers(&account->order[middle]->row.key, wanted, threads) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static enum account_evidence weakest(enum account_evidence a, enum account_evidence b)
{
    return a < b ? a : b;
}

static void name_copier(struct leg *leg, const char *copier, uint64_t bytes)
{
    if (copier != NULL && (leg->row.copier == NULL || bytes > leg->row_copier_bytes)) {
        leg->row.copier = copier;
        leg->row_copier_bytes = bytes;
    }
}

/* Parts that are handed out one after the other and add up to the whole exactly. */
static uint64_t next_part(uint64_t whole, uint64_t before, uint64_t after, uint64_t of)
{
    return share(whole, after, of) - share(whole, before, of);
}

static bool hand_to(struct account *account, struct leg *giver, size_t from, size_t count, bool threads,
                    const struct trace_flow_key *wanted)
{
    uint64_t total = 0;
    size_t end = from;
    for (; end < count && compare_takers(&account->order[end]->row.key, wanted, threads) == 0; end++)
        if (account->order[end] != giver)
            total += account->order[end]->row.value.bytes;
    if (total == 0)
        return false;
    struct account_row *own = &giver->row;
    uint64_t forwarded = min_u64(own->value.forwarded, own->value.bytes), bytes = own->value.bytes;
    struct account_row handed = *own;
    handed.copy_bytes = share(own->copy_bytes, forwarded, bytes);
    handed.value.calls = share(own->value.calls, forwarded, bytes);
    handed.value.fruitless = share(own->value.fruitless, forwarded, bytes);
    handed.value.transitions = share(own->value.transitions, forwarded, bytes);
    handed.value.registered = share(own->value.registered, forwarded, bytes);
    handed.unknown_bytes = share(own->unknown_bytes, forwarded, bytes);
    uint64_t before = 0;
    for (size_t i = from; i < end; i++) {
        struct leg *taker = account->order[i];
        if (taker == giver || taker->row.value.bytes == 0)
            continue;
        uint64_t after = before + taker->row.value.bytes;
        uint64_t copies = next_part(handed.copy_bytes, before, after, total);
        taker->row.copy_bytes += copies;
        taker->row.value.calls += next_part(handed.value.calls, before, after, total);
        taker->row.value.fruitless += next_part(handed.value.fruitless, before, after, total);
        taker->row.value.transitions += next_part(handed.value.transitions, before, after, total);
        taker->row.value.registered += next_part(handed.value.registered, before, after, total);
        taker->row.evidence = weakest(taker->row.evidence, own->evidence);
        taker->handed += (double)next_part(forwarded, before, after, total);
        taker->handed_unknown += (double)next_part(handed.unknown_bytes, before, after, total);
        name_copier(taker, own->copier, copies);
        before = after;
    }
    own->value.bytes -= forwarded;
    own->value.calls -= handed.value.calls;
    own->value.fruitless -= handed.value.fruitless;
    own->value.transitions -= handed.value.transitions;
    own->value.registered -= handed.value.registered;
    own->value.delivered -= share(own->value.delivered, forwarded, bytes);
    own->copy_bytes -= handed.copy_bytes;
    own->unknown_bytes -= handed.unknown_bytes;
    return true;
}

/* Give what a first leg did for forwarded bytes to the legs that took them up: of the same thread if there are any. */
static void hand_over(struct account *account, struct leg *giver, size_t count)
{
    struct trace_flow_key wanted = giver->row.key;
    wanted.first = wanted.mechanism;
    size_t from = first_taker(account, count, &wanted, true);
    if (!hand_to(account, giver, from, count, true, &wanted)) {
        from = first_taker(account, count, &wanted, false);
        hand_to(account, giver, from, count, false, &wanted);
    }
}

/* Bytes are unknown if any of their legs is; those of a read that was sent twice are so twice. */
static void settle_unknown(struct leg *leg)
{
    struct account_row *row = &leg->row;
    if (leg->handed_unknown > 0 && leg->handed > 0) {
        double part = leg->handed_unknown / leg->handed;
        double more = part >= 1 ? (double)row->value.bytes : part * (double)row->value.bytes;
        uint64_t room = row->value.bytes - min_u64(row->unknown_bytes, row->value.bytes);
        row->unknown_bytes += part >= 1 ? room : min_u64((uint64_t)more, room);
        row->evidence = ACCOUNT_UNKNOWN;
    }
    leg->handed = leg->handed_unknown = 0;
}

static void join_legs(struct account *account, size_t count)
{
    for (size_t i = 0; i < count; i++)
        account->order[i] = &account->legs[i];
    if (count > 1)
        qsort(account->order, count, sizeof(struct leg *), order_takers);
    for (int later = 0; later <= 1; later++) {
        /* First the legs that nothing came before, then those in the middle (splice, tee, splice). */
        for (size_t i = 0; i < count; i++) {
            struct leg *leg = &account->legs[i];
            if (leg->row.value.forwarded > 0 && leg->row.value.bytes > 0 &&
                (leg->row.key.first != TRACE_NONE) == (later == 1))
                hand_over(account, leg, count);
        }
        for (size_t i = 0; i < count; i++)
            settle_unknown(&account->legs[i]);
    }
    for (size_t i = 0; i < count; i++)
        account->legs[i].row.value.forwarded = 0;
}

static int compare_lenders(const struct trace_flow_key *a, const struct trace_flow_key *b)
{
    COMPARE(a->mechanism, b->mechanism);
    COMPARE(a->pid, b->pid);
    COMPARE(a->sink, b->sink);
    return 0;
}

static int order_lenders(const void *a, const void *b)
{
    return compare_lenders(&(*(struct leg *const *)a)->row.key, &(*(struct leg *const *)b)->row.key);
}

/* Notifications may be read by another thread, or after the flow changed: those beyond a leg's own calls belong to the
 * process's other legs into the same sink. */
static void spread_notifications(struct account *account, size_t count)
{
    size_t lenders = 0;
    for (size_t i = 0; i < count; i++)
        if (account->legs[i].row.key.mechanism == TRACE_SEND_ZEROCOPY)
            account->order[lenders++] = &account->legs[i];
    if (lenders > 1)
        qsort(account->order, lenders, sizeof(struct leg *), order_lenders);
    for (size_t from = 0, end; from < lenders; from = end) {
        uint64_t spare = 0, spare_copied = 0;
        for (end = from;
             end < lenders && compare_lenders(&account->order[from]->row.key, &account->order[end]->row.key) == 0;
             end++) {
            struct trace_flow_value *value = &account->order[end]->row.value;
            if (value->notified <= value->calls)
                continue;
            uint64_t copied = value->notified_copied - share(value->notified_copied, value->calls, value->notified);
            spare += value->notified - value->calls;
            spare_copied += copied;
            value->notified = value->calls;
            value->notified_copied -= copied;
        }
        for (size_t i = from; i < end && spare > 0; i++) {
            struct trace_flow_value *value = &account->order[i]->row.value;
            uint64_t taken = min_u64(spare, value->calls - value->notified);
            uint64_t copied = share(spare_copied, taken, spare);
            value->notified += taken;
            value->notified_copied += copied;
            spare -= taken;
            spare_copied -= copied;
        }
    }
}

/* ---- Rows ------------------------------------------------------------------------------------------------------- */

static int compare_keys(const struct trace_flow_key *a, const struct trace_flow_key *b, bool threads)
{
    COMPARE(a->pid, b->pid);
    COMPARE(a->source, b->source);
    COMPARE(a->sink, b->sink);
    COMPARE(a->first, b->first);
    COMPARE(a->mechanism, b->mechanism);
    COMPARE(a->way, b->way);
    if (threads)
        COMPARE(a->thread, b->thread);
    return 0;
}

static int order_keys(const void *a, const void *b)
{
    return compare_keys(&(*(struct leg *const *)a)->row.key, &(*(struct leg *const *)b)->row.key, false);
}

/* The largest first; what is equal in the order of its names, so that a screen does not flicker. */
static int order_rows(const void *a, const void *b)
{
    const struct account_row *one = a, *other = b;
    COMPARE(other->value.bytes, one->value.bytes);
    return compare_keys(&one->key, &other->key, true);
}

static void add_row(struct account_row *sum, uint64_t *copier_bytes, const struct leg *leg)
{
    const struct account_row *row = &leg->row;
    add_value(&sum->value, &row->value);
    sum->copy_bytes += row->copy_bytes;
    sum->unseen_bytes += row->unseen_bytes;
    sum->unknown_bytes += row->unknown_bytes;
    if (row->value.bytes > 0)
        sum->evidence = weakest(sum->evidence, row->evidence);
    if (row->copier != NULL && (sum->copier == NULL || leg->row_copier_bytes > *copier_bytes)) {
        sum->copier = row->copier;
        *copier_bytes = leg->row_copier_bytes;
    }
}

static size_t make_rows_of_threads(struct account *account, size_t count)
{
    size_t rows = 0;
    for (size_t i = 0; i < count; i++)
        if (account->legs[i].row.value.bytes > 0)
            account->rows_of_threads[rows++] = account->legs[i].row;
    return rows;
}

static size_t make_rows(struct account *account, size_t count)
{
    size_t rows = 0;
    for (size_t i = 0; i < count; i++)
        account->order[i] = &account->legs[i];
    if (count > 1)
        qsort(account->order, count, sizeof(struct leg *), order_keys);
    for (size_t from = 0, end; from < count; from = end) {
        const struct trace_flow_key *key = &account->order[from]->row.key;
        uint64_t copier_bytes = 0;
        struct account_row row = {.key = *key, .evidence = ACCOUNT_MEASURED};
        row.key.thread = 0;
        for (end = from; end < count && compare_keys(&account->order[end]->row.key, key, false) == 0; end++)
            add_row(&row, &copier_bytes, account->order[end]);
        if (row.value.bytes > 0)
            account->rows[rows++] = row;
    }
    return rows;
}

/* Copies outside any flow, and those of calls that moved nothing (exec reads its program, a write fails half-way): no
 * row has them. */
static void list_unattributed(struct account *account)
{
    struct trace_copy_value calls[TRACE_FUNCTION_COUNT] = {{0}};
    for (size_t i = 0; i < account->flows.count; i++) {
        const struct flow *flow = items_at(&account->flows, i);
        if (flow->value.bytes != 0 || flow->copies == NULL)
            continue;
        for (uint32_t j = 0; j < TRACE_FUNCTION_COUNT; j++) {
            calls[j].calls += flow->copies[j].calls;
            calls[j].bytes += flow->copies[j].bytes;
        }
    }
    size_t count = 0;
    for (uint32_t i = 0; i < TRACE_FUNCTION_COUNT; i++) {
        if (account->elsewhere[i].bytes != 0)
            account->unattributed[count++] = (struct account_unattributed){i, false, account->elsewhere[i]};
        if (calls[i].bytes != 0)
            account->unattributed[count++] = (struct account_unattributed){i, true, calls[i]};
    }
    account->unattributed_count = count;
}

static void work_out(struct account *account)
{
    size_t count = account->flows.count;
    account->dirty = false;
    for (size_t i = 0; i < count; i++) {
        const struct flow *flow = items_at(&account->flows, i);
        account->legs[i] = (struct leg){.flow = flow, .row = {.key = flow->key, .value = flow->value}};
    }
    spread_notifications(account, count);
    for (size_t i = 0; i < count; i++)
        account_for(account, &account->legs[i]);
    join_legs(account, count);
    list_unattributed(account);
    account->rows_of_threads_count = make_rows_of_threads(account, count);
    account->rows_count = make_rows(account, count);
    if (account->rows_of_threads_count > 1)
        qsort(account->rows_of_threads, account->rows_of_threads_count, sizeof *account->rows_of_threads, order_rows);
    if (account->rows_count > 1)
        qsort(account->rows, account->rows_count, sizeof *account->rows, order_rows);
}

const struct account_row *account_rows(struct account *account, bool per_thread, size_t *ret_count)
{
    if (account->dirty)
        work_out(account);
    *ret_count = per_thread ? account->rows_of_threads_count : account->rows_count;
    return per_thread ? account->rows_of_threads : account->rows;
}

const struct account_end *account_end(const struct account *account, uint32_t id)
{
    static const struct account_end memory = {.key = {.kind = TRACE_END_MEMORY}, .name = "memory"};
    if (id == 0)
        return &memory;
    const struct end *end = items_find(&account->ends, &id);
    return end != NULL ? &end->end : NULL;
}

const struct account_process *account_process(const struct account *account, uint32_t pid)
{
    return items_find(&account->processes, &pid);
}

const struct account_process *account_processes(const struct account *account, size_t *ret_count)
{
    *ret_count = account->processes.count;
    return (const struct account_process *)(const void *)account->processes.all;
}

static int order_callers(const void *a, const void *b)
{
    const struct account_caller *one = a, *other = b;
    COMPARE(other->samples, one->samples);
    return memcmp(one, other, offsetof(struct account_caller, samples));
}

const struct account_caller *account_callers(struct account *account, size_t *ret_count)
{
    *ret_count = account->callers.count;
    if (account->callers_dirty) {
        account->callers_dirty = false;
        memcpy(account->sorted_callers, account->callers.all, *ret_count * sizeof *account->sorted_callers);
        qsort(account->sorted_callers, *ret_count, sizeof *account->sorted_callers, order_callers);
    }
    return account->sorted_callers;
}

const struct account_unattributed *account_unattributed(struct account *account, size_t *ret_count)
{
    if (account->dirty)
        work_out(account);
    *ret_count = account->unattributed_count;
    return account->unattributed;
}

const struct trace_lost *account_lost(const struct account *account)
{
    return &account->lost;
}

enum account_tier account_tier(const struct account *account)
{
    return account->tier;
}

uint64_t account_counted_ns(const struct account *account)
{
    return account->counted_ns;
}

uint64_t account_ring_operations(const struct account *account)
{
    return account->ring_operations;
}

uint64_t account_elapsed_ns(const struct account *account)
{
    return account->elapsed_ns;
}

const char *account_evidence_name(enum account_evidence evidence)
{
    switch (evidence) {
    case ACCOUNT_UNKNOWN:
        break;
    case ACCOUNT_SAMPLED:
        return "sampled";
    case ACCOUNT_BY_DEFINITION:
        return "by definition";
    case ACCOUNT_PROBED:
        return "probed";
    case ACCOUNT_MEASURED:
        return "measured";
    }
    return "unknown";
}
