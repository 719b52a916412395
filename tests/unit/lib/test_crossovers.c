/* SPDX-License-Identifier: MIT
 *
 * Crossovers: what a route's default says, what measuring makes of it, both ways; and the file they are kept in.
 */
#include "../check.h"
#include "crossover.h"
#include "plan.h"
#include "routes.h"
#include "world.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/magic.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* The library's clock, which these tests may put forward. */
static int64_t forward_s;

int clock_gettime(clockid_t clock, struct timespec *ret_now)
{
    int result = (int)syscall(SYS_clock_gettime, clock, ret_now);
    if (clock != CLOCK_THREAD_CPUTIME_ID)
        ret_now->tv_sec += forward_s;
    return result;
}

static uint64_t usual_from;

static uint64_t pays_from(const struct pair *pair)
{
    (void)pair;
    return usual_from;
}

/* Any route with a question. */
static const struct route route = {.id = SLUICE_ROUTE_SPLICE, .name = "splice", .pays_from = pays_from};

static struct sluice_egress device = {.driver = "e1000", .known = true, .scatter_gather = true, .checksum = true};

static struct pair pair_of(uint64_t length)
{
    return (struct pair){.segment = SLUICE_SEGMENT_STREAM,
                         .source = SLUICE_END_TCP,
                         .sink = SLUICE_END_TCP,
                         .length = length,
                         .egress = &device};
}

static void measure(uint64_t length, bool copies, uint64_t ns)
{
    struct crossover_sample sample;
    struct pair pair = pair_of(length);
    bool way = copies;
    if (!crossover_weigh(&route, &pair, &way, &sample))
        return;
    sample.copies = copies;
    sample.spent = ns;
    crossover_finish(&sample);
}

/* Both ways, often enough to be heard. */
static void measure_both(uint64_t length, uint64_t ns_route, uint64_t ns_copy)
{
    for (int i = 0; i < 100; i++) {
        measure(length, false, ns_route);
        measure(length, true, ns_copy);
    }
}

static uint64_t from_now(bool *ret_learned)
{
    struct pair pair = pair_of(4096);
    return crossover_from(&route, &pair, ret_learned);
}

static void begin(uint64_t usual)
{
    crossover_forget();
    forward_s = 0;
    usual_from = usual;
}

/* ---- Defaults ----------------------------------------------------------------------------------------------- */

TEST("a stream of known length below the crossover goes by copy, a longer one or one of unknown length by splice")
{
    static const struct {
        uint64_t length;
        enum sluice_route first;
    } cases[] = {{2048, SLUICE_ROUTE_COPY},
                 {16383, SLUICE_ROUTE_COPY},
                 {16384, SLUICE_ROUTE_SPLICE},
                 {1 << 20, SLUICE_ROUTE_SPLICE},
                 {SLUICE_UNTIL_END, SLUICE_ROUTE_SPLICE}};
    int from[2], to[2];
    begin(0);
    tcp_pair(from);
    tcp_pair(to);
    struct sluice_end *source = end_of(from[1]), *sink = end_of(to[0]);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sluice_segment segment = stream_segment(source, cases[i].length);
        struct sluice_plan plan;
        CHECK_EQ(sluice_plan_make(&segment, sink, &plan), 0);
        CHECK_EQ(plan.entries[0].route, cases[i].first);
        for (unsigned e = 0; e < plan.count; e++) {
            const struct sluice_plan_entry *entry = &plan.entries[e];
            CHECK_EQ(entry->from, entry->route == SLUICE_ROUTE_SPLICE ? 16384 : 0);
            CHECK(!entry->learned);
            if (entry->route != SLUICE_ROUTE_SPLICE)
                continue;
            CHECK_EQ(entry->verdict, cases[i].first == SLUICE_ROUTE_SPLICE ? SLUICE_YES : SLUICE_NOT_NOW);
            if (entry->verdict == SLUICE_NOT_NOW)
                CHECK_STR(entry->reason, "dearer below 16 KiB here (default)");
        }
    }
    sluice_end_close(source);
    sluice_end_close(sink);
    close(from[0]);
    close(to[1]);
}

TEST("a forced route is taken for any size")
{
    int from[2], to[2];
    tcp_pair(from);
    tcp_pair(to);
    struct sluice_end *source = end_of(from[1]), *sink = end_of(to[0]);
    char bytes[3000] = "";
    CHECK_EQ(send(from[0], bytes, sizeof bytes, 0), sizeof bytes);
    struct sluice_segment segment = stream_segment(source, sizeof bytes);
    struct sluice_receipt receipt;
    struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_SPLICE);
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_SPLICE].bytes, sizeof bytes);
    sluice_end_close(source);
    sluice_end_close(sink);
    close(from[0]);
    close(to[1]);
}

/* ---- Learning ----------------------------------------------------------------------------------------------- */

TEST("a crossover moves down where the route proves cheaper, and up again where it proves dearer")
{
    bool learned;
    begin(16384);
    CHECK_EQ(from_now(&learned), 16384);
    CHECK(!learned);
    measure_both(8192, 900, 1500);
    CHECK_EQ(from_now(&learned), 8192);
    CHECK(learned);
    measure_both(4096, 700, 900);
    CHECK_EQ(from_now(&learned), 4096);
    CHECK_STR(crossover_reason(from_now(NULL), true), "dearer below 4 KiB here (learned)");
    measure_both(8192, 4000, 1500);
    measure_both(4096, 4000, 900);
    measure_both(32768, 9000, 5000);
    CHECK_EQ(from_now(&learned), 65536);
}

TEST("a route that is dearer at every size is never taken, and comes back when that changes")
{
    begin(2048);
    for (uint64_t length = 2048; length <= 4 << 20; length *= 2)
        measure_both(length, length, length / 2);
    CHECK(from_now(NULL) == CROSSOVER_NEVER);
    for (uint64_t length = 1 << 20; length <= 4 << 20; length *= 2)
        measure_both(length, length / 4, length / 2);
    CHECK_EQ(from_now(NULL), 1 << 20);
}

TEST("noise below the margin, a few samples, or one that an interrupt made long, move nothing")
{
    begin(16384);
    measure_both(8192, 1000, 1030);
    CHECK_EQ(from_now(NULL), 16384);
    begin(16384);
    for (int i = 0; i < 5; i++) {
        measure(8192, false, 500);
        measure(8192, true, 1500);
    }
    CHECK_EQ(from_now(NULL), 16384);
    begin(16384);
    measure_both(16384, 1000, 1400);
    measure(16384, false, 1000000000);
    CHECK_EQ(from_now(NULL), 16384);
    begin(16384);
    measure(16384, false, 100000); /* the first sets something up */
    for (int i = 0; i < 6; i++) {
        measure(16384, false, 1000);
        measure(16384, true, 1400);
    }
    CHECK_EQ(from_now(NULL), 16384);
}

TEST("what one device or pair of ends teaches is not believed of another")
{
    begin(16384);
    measure_both(8192, 900, 1500);
    struct pair pair = pair_of(8192);
    struct sluice_egress other = device;
    other.scatter_gather = false;
    pair.egress = &other;
    CHECK_EQ(crossover_from(&route, &pair, NULL), 16384);
    pair.egress = NULL;
    CHECK_EQ(crossover_from(&route, &pair, NULL), 16384);
    pair = pair_of(8192);
    pair.source = SLUICE_END_UNIX_STREAM;
    CHECK_EQ(crossover_from(&route, &pair, NULL), 16384);
    pair = pair_of(8192);
    CHECK_EQ(crossover_from(&route, &pair, NULL), 8192);
}

static struct pair files(uint32_t source, uint32_t sink, uint64_t length)
{
    return (struct pair){.segment = SLUICE_SEGMENT_FILE,
                         .source = SLUICE_END_FILE,
                         .sink = SLUICE_END_FILE,
                         .source_system = source,
                         .sink_system = sink,
                         .length = length};
}

TEST("between files, what one file system teaches is not believed of another, and is kept across runs")
{
    static const struct {
        uint32_t source, sink;
        uint64_t from;
    } cases[] = {
        {EXT4_SUPER_MAGIC, EXT4_SUPER_MAGIC, 8192},
        {XFS_SUPER_MAGIC, XFS_SUPER_MAGIC, 16384},
        {TMPFS_MAGIC, BTRFS_SUPER_MAGIC, 8192},
        {BTRFS_SUPER_MAGIC, TMPFS_MAGIC, 16384},
        {0x12345678, 0x9abcdef0, 8192},
        {0x12345678, 0x9abcdef1, 16384},
        {EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, 16384},
    };
    char path[] = "/tmp/sluice-crossovers-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    begin(16384);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (cases[i].from == 16384)
            continue;
        for (int n = 0; n < 100; n++) {
            struct pair pair = files(cases[i].source, cases[i].sink, 8192);
            struct crossover_sample sample;
            bool copies = n % 2;
            CHECK(crossover_weigh(&route, &pair, &copies, &sample));
            sample.copies = n % 2;
            sample.spent = n % 2 ? 1500 : 900;
            crossover_finish(&sample);
        }
    }
    for (int run = 0; run < 2; run++) {
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            struct pair pair = files(cases[i].source, cases[i].sink, 8192);
            CHECK_EQ(crossover_from(&route, &pair, NULL), cases[i].from);
        }
        CHECK_EQ(sluice_crossovers_save(path), run == 0 ? 1 : 0);
        crossover_forget();
        CHECK_EQ(sluice_crossovers_load(path, NULL), 0);
    }
    unlink(path);
    close(fd);
}

TEST("two ways of lending share what is learned of one")
{
    const struct route *lends = route_registry[SLUICE_ROUTE_MSG_ZEROCOPY];
    struct pair pair = pair_of(8192);
    pair.segment = SLUICE_SEGMENT_MEMORY;
    pair.source = SLUICE_END_MEMORY;
    begin(0);
    for (int n = 0; n < 200; n++) {
        struct crossover_sample sample;
        bool copies = n % 2;
        CHECK(crossover_weigh(lends, &pair, &copies, &sample));
        sample.copies = n % 2;
        sample.spent = n % 2 ? 1500 : 900;
        crossover_finish(&sample);
    }
    CHECK_EQ(crossover_from(lends, &pair, NULL), 8192);
    CHECK_EQ(crossover_from(route_registry[SLUICE_ROUTE_URING_SEND_ZC], &pair, NULL), 8192);
}

TEST("a device where the route shall not be tried is not measured")
{
    begin(CROSSOVER_NEVER);
    struct crossover_sample sample;
    struct pair pair = pair_of(65536);
    bool copies = true;
    CHECK(!crossover_weigh(&route, &pair, &copies, &sample));
    CHECK(copies);
    CHECK(from_now(NULL) == CROSSOVER_NEVER);
    CHECK_STR(crossover_reason(CROSSOVER_NEVER, false), "dearer at any size by this device (default)");
}

TEST("four copies in a row close a route for a while, longer each time, and one that was not copied opens it")
{
    begin(16384);
    struct pair pair = pair_of(65536);
    for (int i = 0; i < 3; i++)
        crossover_copied(&route, &pair, true);
    crossover_copied(&route, &pair, false);
    for (int i = 0; i < 3; i++)
        crossover_copied(&route, &pair, true);
    CHECK_EQ(from_now(NULL), 16384);
    crossover_copied(&route, &pair, true);
    CHECK(from_now(NULL) == CROSSOVER_NEVER);
    for (int i = 0; i < 8; i++)
        crossover_copied(&route, &pair, true); /* lent before it was closed: says nothing new */
    forward_s += 11;
    CHECK_EQ(from_now(NULL), 16384);
    crossover_copied(&route, &pair, true); /* the one that tried */
    CHECK(from_now(NULL) == CROSSOVER_NEVER);
    forward_s += 11;
    CHECK(from_now(NULL) == CROSSOVER_NEVER);
    forward_s += 10;
    CHECK_EQ(from_now(NULL), 16384);
    for (int i = 0; i < 30; i++) { /* an hour at most */
        crossover_copied(&route, &pair, true);
        forward_s += 3601;
        CHECK_EQ(from_now(NULL), 16384);
    }
    crossover_copied(&route, &pair, true);
    CHECK(from_now(NULL) == CROSSOVER_NEVER);
    crossover_copied(&route, &pair, false);
    CHECK_EQ(from_now(NULL), 16384);
}

static uint64_t draw(uint64_t *seed)
{
    uint64_t z = *seed += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* ns, with 20 % of noise */
static uint64_t cost(uint64_t *seed, double call, double byte, uint64_t length)
{
    double ns = call + byte * (double)length;
    return (uint64_t)(ns * (0.9 + 0.2 * (double)(draw(seed) % 1000) / 1000));
}

TEST("from its own decisions, with noise, a crossover comes within 15 % of the cheaper way at every size")
{
    uint64_t seed = 0;
    CHECK_EQ(getrandom(&seed, sizeof seed, 0), sizeof seed);
    printf("# seed %llu\n", (unsigned long long)seed);
    for (int round = 0; round < 20; round++) {
        double call = 300 + (double)(draw(&seed) % 5000), byte = 0.02 + (double)(draw(&seed) % 100) / 1000;
        double copy_call = 300, copy_byte = 0.12;
        unsigned long long before = seed;
        begin(UINT64_C(2048) << draw(&seed) % 11);
        unsigned explored = 0, weighed = 0;
        for (int i = 0; i < 40000; i++) {
            uint64_t length = UINT64_C(2048) << draw(&seed) % 11;
            length += draw(&seed) % length;
            struct pair pair = pair_of(length);
            struct crossover_sample sample;
            bool copies = length < crossover_from(&route, &pair, NULL), planned = copies;
            weighed++;
            if (!crossover_weigh(&route, &pair, &copies, &sample))
                CHECK_FAIL("not weighed");
            explored += copies != planned;
            sample.spent = copies ? cost(&seed, copy_call, copy_byte, length) : cost(&seed, call, byte, length);
            crossover_finish(&sample);
        }
        uint64_t from = from_now(NULL);
        for (uint64_t length = 3072; length < 2 << 20; length *= 2) {
            double by_route = call + byte * (double)length, by_copy = copy_call + copy_byte * (double)length;
            double taken = length < from ? by_copy : by_route, best = by_copy < by_route ? by_copy : by_route;
            if (taken > best * 1.15)
                CHECK_FAIL("route %.0f + %.3f: from %llu; at %llu %.0f instead of %.0f ns; state %llu", call, byte,
                           (unsigned long long)from, (unsigned long long)length, taken, best, before);
        }
        if (explored > weighed / 4)
            CHECK_FAIL("%u of %u samples went the other way", explored, weighed);
    }
}

static uint64_t learned_from(struct sluice_end *source, struct sluice_end *sink)
{
    struct sluice_segment segment = stream_segment(source, 12000);
    struct sluice_plan plan;
    CHECK_EQ(sluice_plan_make(&segment, sink, &plan), 0);
    for (unsigned i = 0; i < plan.count; i++)
        if (plan.entries[i].route == SLUICE_ROUTE_SPLICE)
            return plan.entries[i].from;
    return 0;
}

TEST("transfers measure themselves, now and then by the other way, and every byte arrives")
{
    enum { LENGTH = 12000, TIMES = 3000 };
    static unsigned char sent[LENGTH], got[LENGTH];
    int from[2], to[2];
    begin(0);
    tcp_pair(from);
    tcp_pair(to);
    struct sluice_end *source = end_of(from[1]), *sink = end_of(to[0]);
    struct sluice_receipt sum = {0};
    for (int i = 0; i < TIMES; i++) {
        pattern_fill(sent, (uint64_t)i, LENGTH);
        CHECK_EQ(send(from[0], sent, LENGTH, 0), LENGTH);
        struct sluice_segment segment = stream_segment(source, LENGTH);
        struct sluice_receipt receipt;
        struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_AUTO);
        CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
        sluice_receipt_add(&sum, &receipt);
        for (size_t at = 0; at < LENGTH;) {
            ssize_t size = recv(to[1], got + at, LENGTH - at, 0);
            CHECK(size > 0 || errno == EAGAIN);
            at += size > 0 ? (size_t)size : 0;
        }
        CHECK(memcmp(sent, got, LENGTH) == 0);
    }
    CHECK_EQ(sum.bytes, (uint64_t)LENGTH * TIMES);
    CHECK_EQ(sum.fallback_count, 0);
    uint64_t copied = sum.routes[SLUICE_ROUTE_COPY].bytes / LENGTH, entered = crossover_entered();
    printf("# %llu of %d by copy, %llu measured, now from %llu bytes on\n", (unsigned long long)copied, TIMES,
           (unsigned long long)entered, (unsigned long long)learned_from(source, sink));
    /* Which of both is cheaper here is the machine's to say. */
    if (copied == 0 || copied == TIMES || entered < TIMES / 40 || entered > TIMES / 10)
        CHECK_FAIL("%llu of %d by copy, %llu measured", (unsigned long long)copied, TIMES, (unsigned long long)entered);
    sluice_end_close(source);
    sluice_end_close(sink);
    close(from[0]);
    close(to[1]);
}

/* ---- Kept across runs --------------------------------------------------------------------------------------- */

static char home[64];

static int remove_entry(const char *path, const struct stat *status, int type, struct FTW *where)
{
    (void)status, (void)type, (void)where;
    return remove(path);
}

static void make_home(void)
{
    strcpy(home, "/tmp/sluice-home-XXXXXX");
    CHECK(mkdtemp(home) != NULL);
    setenv("HOME", home, 1);
    unsetenv("XDG_CACHE_HOME");
}

static void remove_home(void)
{
    nftw(home, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

/* The one file in ~/.cache/sluice. */
static void kept_file(char *path, size_t size)
{
    char directory[80];
    unsigned files = 0;
    snprintf(directory, sizeof directory, "%s/.cache/sluice", home);
    DIR *list = opendir(directory);
    CHECK(list != NULL);
    for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        files++;
        snprintf(path, size, "%s/%s", directory, entry->d_name);
    }
    closedir(list);
    CHECK_EQ(files, 1);
}

TEST("what was learned is written into the user's cache, and another run goes on from there")
{
    const char *reason = NULL;
    char path[400];
    struct stat status;
    make_home();
    begin(16384);
    CHECK_EQ(sluice_crossovers_save(NULL), 0); /* nothing to tell */
    CHECK_EQ(sluice_crossovers_load(NULL, &reason), -ENOENT);
    CHECK_STR(reason, "there is none yet");
    measure_both(8192, 900, 1500);
    CHECK_EQ(sluice_crossovers_save(NULL), 1);
    CHECK_EQ(sluice_crossovers_save(NULL), 1);
    kept_file(path, sizeof path);
    CHECK_EQ(stat(path, &status), 0);
    CHECK_EQ(status.st_mode & 07777, 0600);
    crossover_forget();
    CHECK_EQ(from_now(NULL), 16384);
    CHECK_EQ(sluice_crossovers_load(NULL, &reason), 0);
    CHECK_EQ(from_now(NULL), 8192);
    CHECK_EQ(sluice_crossovers_save(NULL), 0); /* read is not learned */
    measure_both(8192, 4000, 1500);
    CHECK_EQ(from_now(NULL), 16384);
    remove_home();
}

static unsigned listed;

static void list_one(void *context, const struct sluice_crossover *crossover)
{
    (void)context;
    listed++;
    CHECK_EQ(crossover->route, SLUICE_ROUTE_SPLICE);
    CHECK_EQ(crossover->from, 8192);
    CHECK_STR(crossover->device.driver, "e1000");
    CHECK(crossover->samples > 0);
}

TEST("what was learned can be listed")
{
    begin(16384);
    listed = 0;
    sluice_crossovers_each(list_one, NULL);
    CHECK_EQ(listed, 0);
    measure_both(8192, 900, 1500);
    sluice_crossovers_each(list_one, NULL);
    CHECK_EQ(listed, 1);
}

TEST("XDG_CACHE_HOME is where it says, unless it is relative")
{
    char cache[100], path[400];
    make_home();
    begin(16384);
    measure_both(8192, 900, 1500);
    snprintf(cache, sizeof cache, "%s/elsewhere", home);
    setenv("XDG_CACHE_HOME", cache, 1);
    CHECK_EQ(sluice_crossovers_save(NULL), 1);
    snprintf(path, sizeof path, "%s/elsewhere/sluice", home);
    CHECK_EQ(access(path, F_OK), 0);
    setenv("XDG_CACHE_HOME", "elsewhere", 1);
    CHECK_EQ(sluice_crossovers_save(NULL), 1);
    kept_file(path, sizeof path);
    unsetenv("XDG_CACHE_HOME");
    unsetenv("HOME");
    CHECK_EQ(sluice_crossovers_save(NULL), -ENOENT);
    CHECK_EQ(sluice_crossovers_load(NULL, NULL), -ENOENT);
    remove_home();
}

TEST("a directory that is another user's is not written into, nor his file believed")
{
    char path[400];
    const char *reason;
    if (geteuid() != 0)
        SKIP("giving files away takes root; run the tests as root");
    make_home();
    begin(16384);
    measure_both(8192, 900, 1500);
    CHECK_EQ(sluice_crossovers_save(NULL), 1);
    kept_file(path, sizeof path);
    CHECK_EQ(chown(path, 12345, 12345), 0);
    CHECK_EQ(sluice_crossovers_load(NULL, &reason), -EPERM);
    CHECK_STR(reason, "it is not a file of this user's");
    *strrchr(path, '/') = '\0';
    CHECK_EQ(chown(path, 12345, 12345), 0);
    CHECK_EQ(sluice_crossovers_save(NULL), -EPERM);
    remove_home();
}

static void put(const char *path, const char *bytes, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK_EQ(write(fd, bytes, size), (ssize_t)size);
    close(fd);
}

static size_t get(const char *path, char *bytes, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    ssize_t got = read(fd, bytes, size - 1);
    CHECK(got > 0);
    close(fd);
    bytes[got] = '\0';
    return (size_t)got;
}

/* A good file at path; its text. */
static size_t good_file(char *path, size_t path_size, char *text, size_t size)
{
    make_home();
    begin(16384);
    measure_both(8192, 900, 1500);
    measure_both(16384, 1200, 2500);
    CHECK_EQ(sluice_crossovers_save(NULL), 1);
    kept_file(path, path_size);
    crossover_forget();
    return get(path, text, size);
}

TEST(
    "a file that is no text of ours, cut off, of another machine, too large, or no file, is left alone with the reason")
{
    static char large[200 << 10];
    char path[400], text[4096], other[9000], link_path[500];
    const char *reason = NULL;
    size_t size = good_file(path, sizeof path, text, sizeof text);

    for (size_t cut = 0; cut < size; cut++) {
        put(path, text, cut);
        int result = sluice_crossovers_load(NULL, &reason);
        bool whole_line = cut > 0 && text[cut - 1] == '\n' && strstr(text, "\ncpu ") < text + cut - 1;
        if (whole_line ? result != 0 : result != -EBADMSG)
            CHECK_FAIL("cut to %zu bytes: %d", cut, result);
        crossover_forget();
    }
    static const struct {
        const char *what, *with;
        int result;
    } edits[] = {
        {"sluice crossovers 1", "sluice crossovers 2", -EBADMSG},
        {"\nkernel ", "\nkernel 1", -ESTALE},
        {"\ncpu ", "\ncpu another ", -ESTALE},
        {"\nsplice tcp", "\nwormhole tcp", -EBADMSG},
        {" tcp tcp", " tcp nothing", -EBADMSG},
        {" e1000 ", " a-driver-with-too-long-a-name ", -EBADMSG},
        {" 8192 ", " 8193 ", -EBADMSG},
        {" 8192 ", " -1 ", -EBADMSG},
        {" 3:", " 12:", -EBADMSG},
        {":64:", ":65:", -EBADMSG},
        {":64:", ":64:99999999999:", -EBADMSG},
        {":64:", ":64:nan", -EBADMSG},
    };
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        const char *at = strstr(text, edits[i].what);
        if (at == NULL)
            CHECK_FAIL("\"%s\" is not in the file: %.200s", edits[i].what, text);
        int length = snprintf(other, sizeof other, "%.*s%s%s", (int)(at - text), text, edits[i].with,
                              at + strlen(edits[i].what));
        put(path, other, (size_t)length);
        int result = sluice_crossovers_load(NULL, &reason);
        if (result != edits[i].result)
            CHECK_FAIL("\"%s\" instead of \"%s\": %d", edits[i].with, edits[i].what, result);
        CHECK_EQ(from_now(NULL), 16384);
    }
    put(path, large, sizeof large);
    CHECK_EQ(sluice_crossovers_load(NULL, &reason), -EFBIG);
    put(path, text, size);
    CHECK_EQ(chmod(path, 0666), 0);
    CHECK_EQ(sluice_crossovers_load(NULL, &reason), -EPERM);
    CHECK_EQ(chmod(path, 0600), 0);
    CHECK_EQ(sluice_crossovers_load(path, &reason), 0);
    crossover_forget();
    snprintf(link_path, sizeof link_path, "%s.link", path);
    CHECK_EQ(symlink(path, link_path), 0);
    CHECK_EQ(sluice_crossovers_load(link_path, &reason), -ELOOP);
    CHECK_EQ(unlink(path), 0);
    CHECK_EQ(mkfifo(path, 0600), 0); /* does not wait for a writer */
    CHECK_EQ(sluice_crossovers_load(NULL, &reason), -EPERM);
    CHECK_EQ(unlink(path), 0);
    CHECK_EQ(mkdir(path, 0700), 0);
    CHECK_EQ(sluice_crossovers_load(NULL, &reason), -EPERM);
    CHECK_EQ(from_now(NULL), 16384);
    remove_home();
}

static unsigned senseless;

static void look_at(void *context, const struct crossover_record *record)
{
    (void)context;
    senseless += !crossover_is_sensible(record);
}

TEST("whatever bytes of it are changed, a file is refused or makes sense")
{
    char path[400], text[4096], changed[4096];
    uint64_t seed = 0;
    CHECK_EQ(getrandom(&seed, sizeof seed, 0), sizeof seed);
    printf("# seed %llu\n", (unsigned long long)seed);
    size_t size = good_file(path, sizeof path, text, sizeof text);
    unsigned taken = 0;
    senseless = 0;
    for (int i = 0; i < 1000; i++) {
        memcpy(changed, text, size);
        for (unsigned changes = 1 + (unsigned)(draw(&seed) % 3); changes > 0; changes--)
            changed[draw(&seed) % size] =
                draw(&seed) % 2 == 0 ? (char)draw(&seed) : "0123456789:- \n"[draw(&seed) % 14];
        put(path, changed, size);
        taken += sluice_crossovers_load(path, NULL) == 0;
        crossover_each(look_at, NULL);
        crossover_forget();
    }
    CHECK_EQ(senseless, 0);
    CHECK(taken > 0 && taken < 1000);
    remove_home();
}

TEST("a disk that is full leaves the file as it was, and nothing beside it")
{
    char path[400], text[4096], after[4096];
    struct rlimit unlimited, limit;
    size_t size = good_file(path, sizeof path, text, sizeof text);
    CHECK_EQ(sluice_crossovers_load(NULL, NULL), 0);
    measure_both(4096, 900, 1500);
    signal(SIGXFSZ, SIG_IGN);
    CHECK_EQ(getrlimit(RLIMIT_FSIZE, &unlimited), 0);
    limit = (struct rlimit){.rlim_cur = 20, .rlim_max = unlimited.rlim_max};
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    int result = sluice_crossovers_save(NULL);
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &unlimited), 0);
    CHECK_EQ(result, -EFBIG);
    kept_file(path, sizeof path);
    CHECK_EQ(get(path, after, sizeof after), size);
    CHECK(memcmp(text, after, size) == 0);
    remove_home();
}

TEST("processes that were forked after sharing learn together")
{
    begin(16384);
    CHECK_EQ(sluice_crossovers_share(), 0);
    CHECK_EQ(sluice_crossovers_share(), 0);
    for (int i = 0; i < 2; i++) {
        pid_t child = fork();
        if (child == 0) {
            for (int n = 0; n < 4; n++) {
                measure(8192, i == 0, i == 0 ? 1500 : 900);
                measure(8192, i == 0, i == 0 ? 1500 : 900);
            }
            _exit(0);
        }
        int status;
        CHECK_EQ(waitpid(child, &status, 0), child);
        CHECK_EQ(status, 0);
    }
    CHECK_EQ(crossover_entered(), 16);
    CHECK_EQ(from_now(NULL), 8192);
    crossover_forget();
    CHECK_EQ(from_now(NULL), 16384);
}

CHECK_MAIN()
