/* SPDX-License-Identifier: MIT
 *
 * What is learned: CPU time per byte, by route (copy is one), kinds of ends, egress device (from file to file, the file
 * systems) and size class. The crossover of a route is the class boundary with the least regret over the classes in
 * which both it and copying were measured; where nothing was, the default decides. Files to sockets have no question:
 * small ones leave from a mapping, larger ones by sendfile, and half a microsecond of a small response is not spent on
 * asking whether that is still right.
 *
 * How it is measured: of about one segment in CROSSOVER_EVERY, later CROSSOVER_SELDOM, the thread's CPU time from the
 * choice of the route to the last byte, turns of other transfers left out. One in CROSSOVER_EXPLORE of those goes the
 * other way, if its size is within a factor of 4 of the crossover: at worst it costs twice as much, which makes 1 % in
 * the beginning and one per mille later.
 *
 * What such a time does not show, and what is done about it:
 *   - Copying that MSG_ZEROCOPY moves into the receiver's context, where the receiver is on this machine. The kernel
 *     says COPIED then, and that closes the route whatever the times are (crossover_copied).
 *   - Notifications are read later, in turns that belong to nobody: what they cost is added, by how many came back
 *     with one reading of the sink's error queue (end_later_ns).
 *   - Work in softirqs and workers: transmission after an ACK, page frees. It is the same for both sides but for the
 *     freeing of copied skbs, so it dilutes a difference and does not turn it round.
 *   - An interrupt or a cold cache makes single samples long: what is beyond OUTLIER times the mean counts as that.
 *
 * The table is read and written without locks, by several threads, and by several processes when the program asked for
 * that (sluice_crossovers_share): every cell is one 64-bit word, a lost update is a lost sample.
 */
#include "crossover.h"
#include "../base/clock.h"
#include "file_system.h"
#include "sys.h"
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define DEVICES 16 /* 0 is "none" */
#define LEDGERS 256
#define SAMPLES_MIN 6 /* on both sides of a class, before it has a say */
#define RESTORED_SAMPLES 16
#define OUTLIER 4
#define MARGIN 0.05f /* a boundary moves for an improvement of this, summed over the classes */

#define CLOSED_AFTER 4 /* copies in a row */
#define CLOSED_MS 10000
#define CLOSED_MS_MAX 3600000

struct device {
    atomic_uint state; /* 0 free, 1 being written, 2 valid */
    struct crossover_device is;
};

struct ledger {
    _Atomic uint64_t key;          /* 0: free */
    _Atomic uint64_t from;         /* 0: not measured */
    _Atomic uint64_t closed_until; /* ms of CLOCK_MONOTONIC; 0: open */
    atomic_uint copied_in_a_row, closed_times;
    _Atomic uint64_t cells[CROSSOVER_CLASSES]; /* a crossover_cell: the float's bits above, the samples below */
};

struct table {
    struct device devices[DEVICES];
    struct ledger ledgers[LEDGERS];
    _Atomic uint64_t entered;
    atomic_uint epoch; /* counts what may change an answer */
};

static struct table own_table;
static struct table *_Atomic shared_table = &own_table;

static struct table *the_table(void)
{
    return atomic_load_explicit(&shared_table, memory_order_acquire);
}

uint32_t crossover_epoch(void)
{
    return atomic_load_explicit(&the_table()->epoch, memory_order_relaxed);
}

static void answers_change(void)
{
    atomic_fetch_add_explicit(&the_table()->epoch, 1, memory_order_relaxed);
}

/* ---- Classes ------------------------------------------------------------------------------------------------ */

#define CLASS_BITS 10 /* class 1 begins at 2 KiB */

static unsigned class_of(uint64_t length)
{
    unsigned class = 0;
    while (class + 1 < CROSSOVER_CLASSES && length >> (CLASS_BITS + 1 + class) != 0)
        class ++;
    return class;
}

/* CROSSOVER_CLASSES stands for never. */
static unsigned class_from(uint64_t from)
{
    return from == CROSSOVER_NEVER ? CROSSOVER_CLASSES : class_of(from);
}

static uint64_t class_begin(unsigned class)
{
    return class == CROSSOVER_CLASSES ? CROSSOVER_NEVER : UINT64_C(1) << (CLASS_BITS + class);
}

const char *crossover_reason(uint64_t from, bool learned)
{
#define BELOW(size)                                                                                                    \
    {                                                                                                                  \
        "dearer below " size " here (default)", "dearer below " size " here (learned)"                                 \
    }
    static const char *const reasons[CROSSOVER_CLASSES + 1][2] = {
        BELOW("1 KiB"),
        BELOW("2 KiB"),
        BELOW("4 KiB"),
        BELOW("8 KiB"),
        BELOW("16 KiB"),
        BELOW("32 KiB"),
        BELOW("64 KiB"),
        BELOW("128 KiB"),
        BELOW("256 KiB"),
        BELOW("512 KiB"),
        BELOW("1 MiB"),
        BELOW("2 MiB"),
        {"dearer at any size by this device (default)", "dearer at any size here, or copied all the same (learned)"},
    };
#undef BELOW
    return reasons[class_from(from)][learned];
}

/* ---- The table ---------------------------------------------------------------------------------------------- */

static bool same_device(const struct crossover_device *a, const struct crossover_device *b)
{
    return a->loopback == b->loopback && a->scatter_gather == b->scatter_gather && a->checksum == b->checksum &&
           a->segmentation == b->segmentation && strncmp(a->driver, b->driver, sizeof a->driver) == 0;
}

/* Devices are told apart by what they are, not by their names or numbers: what one virtio_net has taught is true of the
 * next, and of the same after a restart. 0 when none is known, or when there are too many. */
static unsigned find_device(const struct crossover_device *wanted)
{
    struct table *table = the_table();
    for (unsigned i = 1; i < DEVICES; i++) {
        struct device *device = &table->devices[i];
        unsigned state = atomic_load_explicit(&device->state, memory_order_acquire);
        if (state == 0 && atomic_compare_exchange_strong(&device->state, &state, 1)) {
            device->is = *wanted;
            atomic_store_explicit(&device->state, 2, memory_order_release);
            return i;
        }
        if (state == 2 && same_device(&device->is, wanted))
            return i;
    }
    return 0;
}

/* From file to file their file systems take the device's place: "ext4", or "tmpfs>xfs". */
static unsigned file_systems_of(const struct pair *pair)
{
    struct crossover_device device = {0};
    char source[9], sink[9];
    const char *from = file_system_name(pair->source_system, source), *to = file_system_name(pair->sink_system, sink);
    if (pair->source_system == pair->sink_system)
        snprintf(device.driver, sizeof device.driver, "%s", to);
    else
        snprintf(device.driver, sizeof device.driver, "%.6s>%s", from, to);
    return find_device(&device);
}

static unsigned device_of(const struct pair *pair)
{
    const struct sluice_egress *egress = pair->egress;
    if (pair->sink_system != 0)
        return file_systems_of(pair);
    if (egress == NULL)
        return 0;
    struct crossover_device device = {.loopback = egress->loopback,
                                      .scatter_gather = egress->scatter_gather,
                                      .checksum = egress->checksum,
                                      .segmentation = egress->segmentation};
    memcpy(device.driver, egress->driver, sizeof device.driver);
    return find_device(&device);
}

static uint64_t ledger_key(enum sluice_route route, unsigned source, unsigned sink, unsigned device)
{
    return UINT64_C(1) << 63 | (uint64_t)device << 24 | (uint64_t)sink << 16 | (uint64_t)source << 8 | (uint64_t)route;
}

static uint64_t ledger_with_route(uint64_t key, enum sluice_route route)
{
    return (key & ~UINT64_C(255)) | (uint64_t)route;
}

/* NULL: nothing was entered yet; with create: the table is full. */
static struct ledger *find_ledger(uint64_t key, bool create)
{
    struct table *table = the_table();
    uint64_t hash = key * UINT64_C(0x9e3779b97f4a7c15) >> 56;
    for (unsigned i = 0; i < LEDGERS; i++) {
        struct ledger *ledger = &table->ledgers[(hash + i) % LEDGERS];
        uint64_t there = atomic_load_explicit(&ledger->key, memory_order_relaxed);
        if (there == 0 && (!create || atomic_compare_exchange_strong(&ledger->key, &there, key)))
            return create ? ledger : NULL;
        if (there == key)
            return ledger;
    }
    return NULL;
}
_Static_assert(LEDGERS == 256, "the hash has 8 bits");

static struct crossover_cell unpack(uint64_t word)
{
    uint32_t bits = (uint32_t)(word >> 32);
    struct crossover_cell cell = {.samples = (uint32_t)word};
    memcpy(&cell.ns_per_byte, &bits, sizeof bits);
    return cell;
}

static uint64_t pack(struct crossover_cell cell)
{
    uint32_t bits;
    memcpy(&bits, &cell.ns_per_byte, sizeof bits);
    return (uint64_t)bits << 32 | cell.samples;
}

static struct crossover_cell read_cell(struct ledger *ledger, unsigned class)
{
    if (ledger == NULL)
        return (struct crossover_cell){0};
    return unpack(atomic_load_explicit(&ledger->cells[class], memory_order_relaxed));
}

/* ---- Learning ----------------------------------------------------------------------------------------------- */

/* What the threshold would cost more than the better of both ways, summed over the classes where that is known. */
static float regret(struct ledger *route, struct ledger *copy, unsigned threshold, bool *ret_known)
{
    float sum = 0;
    *ret_known = false;
    for (unsigned class = 1; class < CROSSOVER_CLASSES; class ++) {
        struct crossover_cell by_route = read_cell(route, class), by_copy = read_cell(copy, class);
        if (by_route.samples < SAMPLES_MIN || by_copy.samples < SAMPLES_MIN)
            continue;
        *ret_known = true;
        float taken = class < threshold ? by_copy.ns_per_byte : by_route.ns_per_byte;
        float left = class < threshold ? by_route.ns_per_byte : by_copy.ns_per_byte;
        if (taken > left)
            sum += left > 0 && taken < 2 * left ? taken / left - 1 : 1;
    }
    return sum;
}

/* before: where the boundary was, or the default. */
static void draw_boundary(struct ledger *route, struct ledger *copy, uint64_t before)
{
    bool known;
    unsigned best = class_from(before);
    float least = regret(route, copy, best, &known);
    if (!known)
        return;
    /* From near to far, so that of equals the nearest is taken. */
    for (int distance = 1; distance <= CROSSOVER_CLASSES; distance++) {
        for (int side = -1; side <= 1; side += 2) {
            int threshold = (int)class_from(before) + side * distance;
            if (threshold < 1 || threshold > CROSSOVER_CLASSES)
                continue;
            float other = regret(route, copy, (unsigned)threshold, &known);
            if (other < least - MARGIN) {
                least = other;
                best = (unsigned)threshold;
            }
        }
    }
    if (class_begin(best) == atomic_load_explicit(&route->from, memory_order_relaxed))
        return;
    atomic_store_explicit(&route->from, class_begin(best), memory_order_relaxed);
    answers_change();
}

/* When this thread samples next. Random gaps, for traffic that repeats itself; the same in every run. */
static _Thread_local struct {
    uint32_t state, until_next, every, taken;
} dice = {.state = 0x9e3779b9u, .until_next = CROSSOVER_EVERY, .every = CROSSOVER_EVERY};

static void enter_time(struct ledger *ledger, uint64_t length, uint64_t ns)
{
    _Atomic uint64_t *word = &ledger->cells[class_of(length)];
    uint64_t before = atomic_load_explicit(word, memory_order_relaxed);
    struct crossover_cell cell = unpack(before);
    float rate = (float)ns / (float)length;
    if (cell.samples < SAMPLES_MIN && 2 * rate < cell.ns_per_byte)
        cell.samples = 0; /* the first were the long ones: cold, or setting something up */
    if (cell.samples > 0 && rate > OUTLIER * cell.ns_per_byte)
        rate = OUTLIER * cell.ns_per_byte;
    if (cell.samples < CROSSOVER_WINDOW)
        cell.samples++;
    cell.ns_per_byte += (rate - cell.ns_per_byte) / (float)cell.samples;
    atomic_compare_exchange_strong_explicit(word, &before, pack(cell), memory_order_relaxed, memory_order_relaxed);
}

/* A sample costs about half a microsecond, most of it the clock's: 3 % of a small datagram if one in 16 is one. What is
 * known well by now is looked at less often. */
static void enter(const struct crossover_sample *sample, uint64_t ns)
{
    struct ledger *route = find_ledger(sample->key, true);
    struct ledger *copy = find_ledger(ledger_with_route(sample->key, SLUICE_ROUTE_COPY), true);
    if (route == NULL || copy == NULL)
        return; /* the table is full: defaults do */
    enter_time(sample->copies ? copy : route, sample->length, ns);
    uint32_t samples = read_cell(sample->copies ? copy : route, class_of(sample->length)).samples;
    uint32_t others = read_cell(sample->copies ? route : copy, class_of(sample->length)).samples;
    bool well_known = samples == CROSSOVER_WINDOW && (others == 0 || others == CROSSOVER_WINDOW);
    dice.every = well_known ? CROSSOVER_SELDOM : CROSSOVER_EVERY;
    atomic_fetch_add_explicit(&the_table()->entered, 1, memory_order_relaxed);
    uint64_t from = atomic_load_explicit(&route->from, memory_order_relaxed);
    draw_boundary(route, copy, from != 0 ? from : sample->usual);
}

/* ---- What is asked ------------------------------------------------------------------------------------------ */

static uint64_t key_of(const struct route *route, const struct pair *pair)
{
    enum sluice_route whose = route->crossover_of != SLUICE_ROUTE_AUTO ? route->crossover_of : route->id;
    return ledger_key(whose, pair->source, pair->sink, device_of(pair));
}

static bool is_closed(const struct ledger *ledger)
{
    uint64_t until = atomic_load_explicit(&ledger->closed_until, memory_order_relaxed);
    return until != 0 && clock_coarse_ms() < until;
}

uint64_t crossover_from(const struct route *route, const struct pair *pair, bool *ret_learned)
{
    uint64_t usual = route->pays_from != NULL ? route->pays_from(pair) : 0;
    if (ret_learned != NULL)
        *ret_learned = false;
    if (usual == 0 || usual == CROSSOVER_NEVER)
        return usual;
    struct ledger *ledger = find_ledger(key_of(route, pair), false);
    if (ledger == NULL)
        return usual;
    bool closed = is_closed(ledger);
    uint64_t from = atomic_load_explicit(&ledger->from, memory_order_relaxed);
    if (!closed && from == 0)
        return usual;
    if (ret_learned != NULL)
        *ret_learned = true;
    return closed ? CROSSOVER_NEVER : from;
}

void crossover_copied(const struct route *route, const struct pair *pair, bool copied)
{
    struct ledger *ledger = find_ledger(key_of(route, pair), copied);
    if (ledger == NULL)
        return;
    if (!copied) {
        if (atomic_load_explicit(&ledger->copied_in_a_row, memory_order_relaxed) != 0 ||
            atomic_load_explicit(&ledger->closed_times, memory_order_relaxed) != 0) {
            atomic_store_explicit(&ledger->copied_in_a_row, 0, memory_order_relaxed);
            atomic_store_explicit(&ledger->closed_times, 0, memory_order_relaxed);
            atomic_store_explicit(&ledger->closed_until, 0, memory_order_relaxed);
            answers_change();
        }
        return;
    }
    if (is_closed(ledger)) /* lent before it was closed */
        return;
    /* Once closed, a single copy closes it again. */
    unsigned times = atomic_load_explicit(&ledger->closed_times, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&ledger->copied_in_a_row, 1, memory_order_relaxed) + 1 < CLOSED_AFTER && times == 0)
        return;
    uint64_t pause = times < 16 ? (uint64_t)CLOSED_MS << times : CLOSED_MS_MAX;
    atomic_store_explicit(&ledger->closed_times, times + 1, memory_order_relaxed);
    atomic_store_explicit(&ledger->closed_until, clock_coarse_ms() + (pause < CLOSED_MS_MAX ? pause : CLOSED_MS_MAX),
                          memory_order_relaxed);
    answers_change();
}

/* ---- Sampling ----------------------------------------------------------------------------------------------- */

bool crossover_is_due(void)
{
    if (--dice.until_next != 0)
        return false;
    dice.state ^= dice.state << 13;
    dice.state ^= dice.state >> 17;
    dice.state ^= dice.state << 5;
    dice.until_next = 1 + dice.state % (2 * dice.every - 1);
    return true;
}

/* Should this sample go the way that was not planned? Close to the crossover only; at once while nothing is known of
 * that way, seldom after. */
static bool explores(uint64_t key, uint64_t from, uint64_t length, bool copies)
{
    unsigned class = class_of(length), boundary = class_from(from);
    if (class + 2 < boundary || class > boundary + 2)
        return false;
    struct ledger *other = find_ledger(copies ? key : ledger_with_route(key, SLUICE_ROUTE_COPY), false);
    dice.taken++;
    if (read_cell(other, class).samples < SAMPLES_MIN)
        return dice.taken % 2 == 0;
    return dice.taken % CROSSOVER_EXPLORE == 0;
}

bool crossover_weigh(const struct route *route, const struct pair *pair, bool *copies, struct crossover_sample *sample)
{
    uint64_t usual = route->pays_from(pair);
    if (usual == 0 || usual == CROSSOVER_NEVER)
        return false;
    uint64_t key = key_of(route, pair), from = usual;
    struct ledger *ledger = find_ledger(key, false);
    if (ledger != NULL && is_closed(ledger))
        return false;
    if (ledger != NULL && atomic_load_explicit(&ledger->from, memory_order_relaxed) != 0)
        from = atomic_load_explicit(&ledger->from, memory_order_relaxed);
    if (explores(key, from, pair->length, *copies))
        *copies = !*copies;
    *sample = (struct crossover_sample){
        .copies = *copies,
        .key = key,
        .usual = usual,
        .length = pair->length,
        .since = clock_ns(CLOCK_THREAD_CPUTIME_ID),
    };
    return true;
}

void crossover_resume(struct crossover_sample *sample)
{
    sample->since = clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

void crossover_pause(struct crossover_sample *sample)
{
    sample->spent += clock_ns(CLOCK_THREAD_CPUTIME_ID) - sample->since;
}

void crossover_finish(struct crossover_sample *sample)
{
    enter(sample, sample->spent + sample->extra);
}

/* ---- All of it ---------------------------------------------------------------------------------------------- */

uint64_t crossover_entered(void)
{
    return atomic_load_explicit(&the_table()->entered, memory_order_relaxed);
}

void crossover_each(void (*visit)(void *context, const struct crossover_record *record), void *context)
{
    struct table *table = the_table();
    for (unsigned i = 0; i < LEDGERS; i++) {
        struct ledger *ledger = &table->ledgers[i];
        uint64_t key = atomic_load_explicit(&ledger->key, memory_order_relaxed);
        if (key == 0)
            continue;
        struct crossover_record record = {
            .route = (enum sluice_route)(key & 255),
            .source = (enum sluice_end_kind)(key >> 8 & 255),
            .sink = (enum sluice_end_kind)(key >> 16 & 255),
            .device = table->devices[key >> 24 & 255].is,
            .from = atomic_load_explicit(&ledger->from, memory_order_relaxed),
            .closed = is_closed(ledger),
        };
        for (unsigned class = 0; class < CROSSOVER_CLASSES; class ++)
            record.cells[class] = read_cell(ledger, class);
        visit(context, &record);
    }
}

bool crossover_is_sensible(const struct crossover_record *record)
{
    bool boundary = record->from == 0 || record->from == CROSSOVER_NEVER ||
                    (record->from >= CROSSOVER_FLOOR && record->from == class_begin(class_of(record->from)));
    if (record->route <= SLUICE_ROUTE_AUTO || record->route >= SLUICE_ROUTE_COUNT || !boundary ||
        (unsigned)record->source >= SLUICE_END_KIND_COUNT || (unsigned)record->sink >= SLUICE_END_KIND_COUNT ||
        memchr(record->device.driver, '\0', sizeof record->device.driver) == NULL)
        return false;
    for (unsigned class = 0; class < CROSSOVER_CLASSES; class ++) {
        const struct crossover_cell *cell = &record->cells[class];
        if (cell->samples > CROSSOVER_WINDOW || !(cell->ns_per_byte >= 0 && cell->ns_per_byte < 1e6f))
            return false; /* NaN, too */
    }
    return true;
}

int crossover_restore(const struct crossover_record *record)
{
    if (!crossover_is_sensible(record))
        return -EINVAL;
    bool has_device = record->device.driver[0] != '\0' || record->device.loopback || record->device.scatter_gather ||
                      record->device.checksum || record->device.segmentation;
    unsigned device = has_device ? find_device(&record->device) : 0;
    if (has_device && device == 0)
        return -ENOSPC;
    struct ledger *ledger = find_ledger(ledger_key(record->route, record->source, record->sink, device), true);
    if (ledger == NULL)
        return -ENOSPC;
    if (atomic_load_explicit(&ledger->from, memory_order_relaxed) == 0)
        atomic_store_explicit(&ledger->from, record->from, memory_order_relaxed);
    for (unsigned class = 1; class < CROSSOVER_CLASSES; class ++) {
        struct crossover_cell cell = record->cells[class];
        if (cell.samples > RESTORED_SAMPLES)
            cell.samples = RESTORED_SAMPLES; /* what is measured now soon outweighs it */
        if (read_cell(ledger, class).samples == 0)
            atomic_store_explicit(&ledger->cells[class], pack(cell), memory_order_relaxed);
    }
    answers_change();
    return 0;
}

int sluice_crossovers_share(void)
{
    struct table *table = the_table();
    if (table != &own_table)
        return 0;
    struct table *memory = sys.mmap(NULL, sizeof *memory, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -errno;
    memcpy(memory, table, sizeof *memory);
    atomic_store_explicit(&shared_table, memory, memory_order_release);
    return 0;
}

void crossover_forget(void)
{
    struct table *table = the_table();
    unsigned epoch = crossover_epoch();
    atomic_store_explicit(&shared_table, &own_table, memory_order_release);
    if (table != &own_table)
        sys.munmap(table, sizeof *table);
    memset(&own_table, 0, sizeof own_table);
    atomic_store_explicit(&own_table.epoch, epoch + 1, memory_order_relaxed);
}
