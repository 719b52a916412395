/* SPDX-License-Identifier: MIT */
#include "account.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { PIDS_MAX = 64 };

static struct {
    int pids[PIDS_MAX];
    unsigned count;
} watched;

void die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s: ", program_invocation_short_name);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

/* --- latencies ---------------------------------------------------------------------------------------------- */

static unsigned bucket_of(uint64_t v)
{
    if (v < (1u << STEP_BITS))
        return (unsigned)v;
    const unsigned shift = 63u - (unsigned)__builtin_clzll(v) - STEP_BITS;
    const unsigned b = ((shift + 1) << STEP_BITS) + (unsigned)(v >> shift) - (1u << STEP_BITS);
    return b < BUCKETS ? b : BUCKETS - 1;
}

static uint64_t bucket_middle(unsigned b)
{
    if (b < (1u << STEP_BITS))
        return b;
    const unsigned shift = (b >> STEP_BITS) - 1;
    const uint64_t low = ((uint64_t)(b & ((1u << STEP_BITS) - 1)) + (1u << STEP_BITS)) << shift;
    return low + ((uint64_t)1 << shift) / 2;
}

void histogram_add(struct histogram *h, uint64_t v)
{
    h->count++;
    h->bucket[bucket_of(v)]++;
    if (v > h->max)
        h->max = v;
}

static uint64_t histogram_at(const struct histogram *h, double quantile)
{
    const uint64_t rank = (uint64_t)((double)h->count * quantile);
    uint64_t seen = 0;
    for (unsigned b = 0; b < BUCKETS; b++) {
        seen += h->bucket[b];
        if (seen > rank)
            return bucket_middle(b) < h->max ? bucket_middle(b) : h->max;
    }
    return h->max;
}

/* --- what the kernel says about the processes under test and the machine
 * ---------------------------------------------------- */

void account_watch(int pid)
{
    if (watched.count == PIDS_MAX)
        die("at most %d processes", PIDS_MAX);
    watched.pids[watched.count++] = pid;
}

/* CPU of all threads of the server's processes, in ns, as the scheduler accounts it: user and system together, with
 * the loopback's soft interrupts that run on the server's back (this needs no CONFIG_SCHEDSTATS). */
static uint64_t server_cpu(void)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < watched.count; i++) {
        char path[320];
        snprintf(path, sizeof(path), "/proc/%d/task", watched.pids[i]);
        DIR *dir = opendir(path);
        if (!dir)
            die("the server's process %d is gone", watched.pids[i]);
        const struct dirent *entry;
        while ((entry = readdir(dir))) {
            if (entry->d_name[0] == '.')
                continue;
            snprintf(path, sizeof(path), "/proc/%d/task/%s/schedstat", watched.pids[i], entry->d_name);
            FILE *f = fopen(path, "r");
            unsigned long long ns;
            if (f && fscanf(f, "%llu", &ns) == 1)
                total += ns;
            if (f)
                fclose(f);
        }
        closedir(dir);
    }
    return total;
}

/* One "Name: value kB" line of a /proc file, in bytes. */
static uint64_t proc_kb(const char *path, const char *name)
{
    char line[256];
    unsigned long long kb = 0;
    FILE *f = fopen(path, "r");
    if (!f)
        return 0;
    while (fgets(line, sizeof(line), f)) {
        if (strncmp(line, name, strlen(name)) == 0) {
            kb = strtoull(line + strlen(name), NULL, 10);
            break;
        }
    }
    fclose(f);
    return kb * 1024;
}

struct memory memory_take(void)
{
    struct memory m = {0};
    for (unsigned i = 0; i < watched.count; i++) {
        char path[64];
        snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", watched.pids[i]);
        m.pss += proc_kb(path, "Pss:");
    }
    m.slab = proc_kb("/proc/meminfo", "Slab:");
    m.used = proc_kb("/proc/meminfo", "MemTotal:") - proc_kb("/proc/meminfo", "MemFree:") -
             proc_kb("/proc/meminfo", "Active(file):") - proc_kb("/proc/meminfo", "Inactive(file):");
    FILE *f = fopen("/proc/net/sockstat", "r");
    char line[256];
    while (f && fgets(line, sizeof(line), f)) {
        const char *mem = strncmp(line, "TCP:", 4) == 0 ? strstr(line, " mem ") : NULL;
        if (mem)
            m.tcp_pages = strtoull(mem + 5, NULL, 10);
    }
    if (f)
        fclose(f);
    return m;
}

void sample_take(struct sample *s)
{
    *s = (struct sample){.at = now(), .server_ns = server_cpu()};

    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    s->client_ns = (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * SECOND +
                   (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1000;

    FILE *f = fopen("/proc/stat", "r");
    char line[512];
    while (f && fgets(line, sizeof(line), f)) {
        unsigned core;
        unsigned long long user, nice, system, idle, iowait, irq, softirq, steal;
        if (sscanf(line, "cpu%u %llu %llu %llu %llu %llu %llu %llu %llu", &core, &user, &nice, &system, &idle, &iowait,
                   &irq, &softirq, &steal) == 9 &&
            line[3] != ' ' && core < CORES_MAX) {
            s->busy[core] = user + nice + system + irq + softirq;
            s->irq[core] = irq + softirq;
            s->idle[core] = idle + iowait;
            s->steal[core] = steal;
            if (core >= s->cores)
                s->cores = core + 1;
        }
    }
    if (f)
        fclose(f);
}

/* --- results ------------------------------------------------------------------------------------------------ */

void print_string(const char *s)
{
    putchar('"');
    for (; s && *s; s++) {
        if (*s == '"' || *s == '\\')
            printf("\\%c", *s);
        else if ((unsigned char)*s < 32 || (unsigned char)*s > 126)
            printf("\\u%04x", (unsigned char)*s);
        else
            putchar(*s);
    }
    putchar('"');
}

static void print_cores(const char *name, unsigned cores, const uint64_t *first, const uint64_t *last)
{
    const double tick = 1e9 / (double)sysconf(_SC_CLK_TCK);
    printf(" \"%s\": [", name);
    for (unsigned i = 0; i < cores; i++)
        printf("%s%.0f", i ? ", " : "", (double)(last[i] - first[i]) * tick);
    printf("],\n");
}

void print_memory(const char *name, const struct memory *m)
{
    printf(" \"%s\": {\"pss\": %llu, \"slab\": %llu, \"tcp_pages\": %llu, \"used\": %llu},\n", name,
           (unsigned long long)m->pss, (unsigned long long)m->slab, (unsigned long long)m->tcp_pages,
           (unsigned long long)m->used);
}

void print_window(const struct sample *first, const struct sample *last)
{
    printf(" \"seconds\": %.6f,\n \"server_cpu_ns\": %llu,\n \"client_cpu_ns\": %llu,\n",
           (double)(last->at - first->at) / 1e9, (unsigned long long)(last->server_ns - first->server_ns),
           (unsigned long long)(last->client_ns - first->client_ns));
    print_cores("core_busy_ns", last->cores, first->busy, last->busy);
    print_cores("core_irq_ns", last->cores, first->irq, last->irq);
    print_cores("core_idle_ns", last->cores, first->idle, last->idle);
    print_cores("core_steal_ns", last->cores, first->steal, last->steal);
}

void print_latency(const struct histogram *h)
{
    printf(" \"latency_ns\": {\"count\": %llu, \"p50\": %llu, \"p99\": %llu, \"p999\": %llu, \"max\": %llu},\n",
           (unsigned long long)h->count, (unsigned long long)histogram_at(h, .5),
           (unsigned long long)histogram_at(h, .99), (unsigned long long)histogram_at(h, .999),
           (unsigned long long)h->max);
}

/* --- how a program begins ----------------------------------------------------------------------------------- */

void pin_to_core(unsigned core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    if (sched_setaffinity(0, sizeof(set), &set) < 0)
        die("core %u: %s", core, strerror(errno));
}

void allow_descriptors(uint64_t wanted)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) < 0)
        return;
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_cur < wanted)
        die("needs %llu descriptors, the hard limit is %llu (ulimit -Hn)", (unsigned long long)wanted,
            (unsigned long long)files.rlim_cur);
}

unsigned parse_count(const char *text)
{
    char *end;
    const unsigned long n = strtoul(text, &end, 10);
    if (*end || end == text || n > 1000000)
        die("not a number from 0 to 1000000: %s", text);
    return (unsigned)n;
}

struct sockaddr_in parse_address(const char *text)
{
    char host[64];
    struct sockaddr_in found = {.sin_family = AF_INET};
    const char *colon = strrchr(text, ':');
    if (!colon || (size_t)(colon - text) >= sizeof(host))
        die("not ADDRESS:PORT: %s", text);
    memcpy(host, text, (size_t)(colon - text));
    host[colon - text] = '\0';
    found.sin_port = htons((uint16_t)atoi(colon + 1));
    if (inet_pton(AF_INET, host, &found.sin_addr) != 1)
        die("not an IPv4 address: %s", host);
    return found;
}
