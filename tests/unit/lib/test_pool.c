/* SPDX-License-Identifier: MIT
 *
 * The pool: which pages its buffers lie on, that it is bounded, and that nobody gets what is somebody else's.
 */
#include "../check.h"
#include "pipes.h"
#include "pool.h"
#include "sys.h"
#include "world.h"
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define IN_SLAB (PAGE_LARGE / BUFFER_SIZE)
#define MUCH (64u << 20)

static struct sys real;
static size_t mapped, mappings;
static bool set_aside, transparent, populated = true;

static void *count_mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    void *memory;
    if (flags & MAP_HUGETLB) { /* plain pages stand for those that were set aside */
        if (!set_aside) {
            errno = ENOMEM;
            return MAP_FAILED;
        }
        char *larger = real.mmap(NULL, size + PAGE_LARGE, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        size_t lead = PAGE_LARGE - (uintptr_t)larger % PAGE_LARGE;
        real.munmap(larger, lead);
        if (lead < PAGE_LARGE)
            real.munmap(larger + lead + size, PAGE_LARGE - lead);
        memory = larger + lead;
    } else {
        memory = real.mmap(address, size, protection, flags, fd, offset);
    }
    if (memory != MAP_FAILED) {
        mapped += size;
        mappings++;
    }
    return memory;
}

static int count_munmap(void *address, size_t size)
{
    mapped -= size;
    mappings--;
    return real.munmap(address, size);
}

static int no_madvise(void *address, size_t size, int advice)
{
    return advice == MADV_HUGEPAGE && !transparent ? 0 : real.madvise(address, size, advice);
}

static int say_there(void *address, size_t size, unsigned char *answer)
{
    if (!set_aside)
        return real.mincore(address, size, answer);
    *answer = populated;
    return 0;
}

static void begin(bool with_set_aside, bool with_transparent)
{
    buffers_drain();
    real = sys;
    set_aside = with_set_aside;
    transparent = with_transparent;
    mapped = mappings = 0;
    sys.mmap = count_mmap;
    sys.munmap = count_munmap;
    sys.madvise = no_madvise;
    sys.mincore = say_there;
}

static void end(void)
{
    buffers_drain();
    CHECK_EQ(mapped, 0);
    CHECK_EQ(mappings, 0);
    sys = real;
}

TEST("buffers for much lie on pages that were set aside, if there are some, and say so")
{
    begin(true, true);
    void *buffer = buffer_get(MUCH);
    CHECK_EQ(buffer_pages(buffer), SLUICE_PAGES_HUGE);
    CHECK(buffer_region(buffer) != NULL);
    CHECK_EQ(buffer_region(buffer)->size, PAGE_LARGE);
    memset(buffer, 1, BUFFER_SIZE);
    buffer_put(buffer);
    end();
}

TEST("pages that were promised and cannot be had are not used")
{
    begin(true, false);
    populated = false;
    void *buffer = buffer_get(MUCH);
    CHECK_EQ(buffer_pages(buffer), SLUICE_PAGES_PLAIN);
    buffer_put(buffer);
    populated = true;
    end();
}

/* AnonHugePages of the mapping that holds the address, in KiB; -1: not known. */
static long huge_kib(const void *address)
{
    char line[512];
    long result = -1;
    bool inside = false;
    FILE *file = fopen("/proc/self/smaps", "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        unsigned long from, to;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
            inside = (uintptr_t)address >= from && (uintptr_t)address < to;
        else if (inside && sscanf(line, "AnonHugePages: %ld", &result) == 1)
            break;
    }
    if (file != NULL)
        fclose(file);
    return result;
}

TEST("what is said of transparent huge pages is what /proc/self/smaps says")
{
    begin(false, true);
    void *buffer = buffer_get(MUCH);
    long huge = huge_kib(buffer);
    CHECK(huge >= 0);
    CHECK_EQ(buffer_pages(buffer), huge >= 2048 ? SLUICE_PAGES_TRANSPARENT : SLUICE_PAGES_PLAIN);
    printf("# transparent huge pages: %ld KiB\n", huge);
    buffer_put(buffer);
    end();
    begin(false, false);
    buffer = buffer_get(MUCH);
    CHECK_EQ(buffer_pages(buffer), SLUICE_PAGES_PLAIN);
    CHECK(buffer_region(buffer) != NULL);
    buffer_put(buffer);
    end();
}

TEST("a buffer for little lies on plain pages of which only those that are used are taken")
{
    unsigned char there[PAGE_LARGE / 4096];
    begin(true, true);
    unsigned char *buffer = buffer_get(1000);
    CHECK_EQ(buffer_pages(buffer), SLUICE_PAGES_PLAIN);
    CHECK(buffer_region(buffer) == NULL);
    memset(buffer, 1, 1000);
    CHECK_EQ(mincore(buffer, PAGE_LARGE, there), 0);
    unsigned count = 0;
    for (size_t i = 0; i < sizeof there; i++)
        count += there[i] & 1;
    CHECK_EQ(count, 1);
    buffer_put(buffer);
    end();
}

TEST("memory for callers lies on large pages from 2 MiB on, and is all zeros")
{
    static const size_t sizes[] = {1, 4096, 2 << 20, (2 << 20) + 1, 5000000, 8 << 20};
    for (int way = 0; way < 3; way++) {
        begin(way == 0, way == 1);
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            struct sluice_memory *memory;
            CHECK_EQ(sluice_memory_new(sizes[i], &memory), 0);
            const unsigned char *data = sluice_memory_data(memory);
            enum sluice_pages pages = sluice_memory_pages(memory);
            CHECK_EQ((uintptr_t)data % (sizes[i] < PAGE_LARGE ? 4096 : PAGE_LARGE), 0);
            if (sizes[i] < PAGE_LARGE)
                CHECK_EQ(pages, SLUICE_PAGES_PLAIN);
            else if (way == 0 && sizes[i] != (2 << 20) + 1) /* that would waste almost half */
                CHECK_EQ(pages, SLUICE_PAGES_HUGE);
            for (size_t at = 0; at < sizes[i]; at++)
                CHECK(data[at] == 0);
            sluice_memory_release(memory, NULL, 0);
        }
        end();
    }
}

TEST("all buffers are apart, and a pool from which many were taken keeps few of them")
{
    enum { COUNT = 200 };
    static unsigned char *buffers[COUNT];
    begin(false, true);
    for (unsigned i = 0; i < COUNT; i++) {
        buffers[i] = buffer_get(i % 2 ? MUCH : 0);
        CHECK(buffers[i] != NULL);
        CHECK_EQ((uintptr_t)buffers[i] % BUFFER_SIZE, 0);
        memset(buffers[i], (int)i, 64);
        memset(buffers[i] + BUFFER_SIZE - 64, (int)i, 64);
    }
    unsigned large = 0;
    for (unsigned i = 0; i < COUNT; i++) {
        CHECK(buffers[i][0] == i % 256 && buffers[i][63] == i % 256);
        CHECK(buffers[i][BUFFER_SIZE - 1] == i % 256 && buffers[i][BUFFER_SIZE - 64] == i % 256);
        large += buffer_region(buffers[i]) != NULL;
    }
    CHECK(large > 0 && large <= 8 * IN_SLAB);
    for (unsigned i = 0; i < COUNT; i++)
        buffer_put(buffers[i * 7 % COUNT]);
    CHECK(mappings <= 4);
    void *again = buffer_get(0);
    CHECK(mappings <= 4);
    buffer_put(again);
    end();
}

static void *give_back(void *buffer)
{
    buffer_put(buffer);
    return NULL;
}

static void *take_many(void *context)
{
    uint64_t draw = (uintptr_t)&draw;
    void *held[8] = {NULL};
    (void)context;
    for (int i = 0; i < 20000; i++) {
        draw = draw * UINT64_C(6364136223846793005) + 1;
        unsigned place = draw >> 60 & 7;
        if (held[place] == NULL) {
            held[place] = buffer_get(draw >> 40 & 1 ? MUCH : 0);
            *(void **)held[place] = held;
        } else {
            CHECK(*(void **)held[place] == held);
            buffer_put(held[place]);
            held[place] = NULL;
        }
    }
    for (int i = 0; i < 8; i++)
        buffer_put(held[i]);
    return NULL;
}

TEST("a buffer may be given back by another thread, and threads do not get each other's")
{
    pthread_t threads[4];
    buffers_drain();
    CHECK_EQ(pthread_create(&threads[0], NULL, give_back, buffer_get(0)), 0);
    pthread_join(threads[0], NULL);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, take_many, NULL), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    buffers_drain();
}

TEST("a child of fork uses neither its parent's pipes nor its parent's buffers")
{
    uint64_t calls = 0;
    struct pipe pipe, other;
    int status;
    char byte = 0;
    CHECK_EQ(pipe_get(&pipe, true, &calls), 0);
    pipe_put(&pipe, 0);
    unsigned char *buffer = buffer_get(MUCH), *mine = buffer_get(0);
    buffer_put(mine);
    memset(buffer, 'p', BUFFER_SIZE);
    pid_t child = fork();
    if (child == 0) {
        if (pipe_get(&pipe, true, &calls) < 0 || write(pipe.write, "c", 1) != 1)
            _exit(1);
        unsigned char *first = buffer_get(0);
        buffer_put(buffer); /* is no longer there */
        unsigned char *second = buffer_get(MUCH);
        if (first == NULL || first == mine || second == NULL || second == buffer)
            _exit(2);
        memset(first, 'c', BUFFER_SIZE);
        memset(second, 'c', BUFFER_SIZE);
        _exit(0);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), 0);
    CHECK_EQ(pipe_get(&other, true, &calls), 0);
    CHECK_EQ(read(other.read, &byte, 1), -1); /* empty */
    pipe_put(&other, 0);
    CHECK_EQ(buffer[0], 'p');
    buffer_put(buffer);
    buffers_drain();
}

TEST("a receipt names the smaller of the pages that bytes went through")
{
    struct sluice_receipt sum = {0}, one = {.pages = SLUICE_PAGES_HUGE, .bytes = 1};
    char text[2000];
    sluice_receipt_add(&sum, &one);
    CHECK_EQ(sum.pages, SLUICE_PAGES_HUGE);
    sluice_receipt_format(&sum, text, sizeof text);
    CHECK(strstr(text, "2 MiB pages (huge)") != NULL);
    sluice_receipt_format_json(&sum, text, sizeof text);
    CHECK(strstr(text, "\"pages\":\"huge\"") != NULL);
    one.pages = SLUICE_PAGES_NONE;
    sluice_receipt_add(&sum, &one);
    CHECK_EQ(sum.pages, SLUICE_PAGES_HUGE);
    one.pages = SLUICE_PAGES_TRANSPARENT;
    sluice_receipt_add(&sum, &one);
    CHECK_EQ(sum.pages, SLUICE_PAGES_TRANSPARENT);
    one.pages = SLUICE_PAGES_PLAIN;
    sluice_receipt_add(&sum, &one);
    CHECK_EQ(sum.pages, SLUICE_PAGES_PLAIN);
    CHECK_STR(sluice_pages_name((enum sluice_pages)77), "?");
}

TEST("what a transfer copies through a buffer of the pool, its receipt says on what pages")
{
    enum { SIZE = 6 << 20 };
    buffers_drain();
    for (int much = 0; much < 2; much++) {
        size_t size = much ? SIZE : 10000;
        int fds[2];
        unix_pair(fds);
        struct collector *collector = collector_start(fds[1], false);
        struct sluice_end *source = end_of(pattern_file("/var/tmp", size)), *sink = end_of(fds[0]);
        struct sluice_segment segment = file_segment(source, 0, size);
        struct sluice_transfer_options options = one_to_one(&segment, &sink, SLUICE_ROUTE_COPY);
        struct sluice_receipt receipt;
        CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
        void *probe = buffer_get(much ? MUCH : 0);
        CHECK_EQ(receipt.pages, buffer_pages(probe));
        buffer_put(probe);
        sluice_end_close(source);
        sluice_end_close(sink);
        size_t arrived;
        free(collector_finish(collector, &arrived));
        CHECK_EQ(arrived, size);
        close(fds[1]);
    }
    buffers_drain();
}

int main(void)
{
    return check_run_all();
}
