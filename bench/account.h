/* SPDX-License-Identifier: MIT
 *
 * What the load programs (client.c, exchange.c) measure, and how they say it: time, latencies, and what the kernel says
 * about the processes under test and about the machine.
 */
#ifndef BENCH_ACCOUNT_H
#define BENCH_ACCOUNT_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#define SECOND UINT64_C(1000000000)

/* Says why, after the program's name, and exits with 1. */
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

uint64_t now(void); /* ns, CLOCK_MONOTONIC */

/* Counts by value with a relative error below 1/64: 64 linear steps per power of two. */
enum { STEP_BITS = 6, BUCKETS = 64 << STEP_BITS };
struct histogram {
    uint64_t count, max;
    uint64_t bucket[BUCKETS];
};

void histogram_add(struct histogram *h, uint64_t v);

/* Measure this process, too. */
void account_watch(int pid);

enum { CORES_MAX = 256 };

/* What is sampled at both ends of the measured window. */
struct sample {
    uint64_t at, server_ns, client_ns;
    unsigned cores;
    /* Clock ticks. irq is part of busy; steal is what the host gave to other guests. */
    uint64_t busy[CORES_MAX], irq[CORES_MAX], idle[CORES_MAX], steal[CORES_MAX];
};

void sample_take(struct sample *s);

struct memory {
    uint64_t pss, slab, tcp_pages;
    uint64_t used; /* of the whole machine, without what the page cache may give up */
};

struct memory memory_take(void);

/* One core, one way to begin: this thread runs on this core only. */
void pin_to_core(unsigned core);

/* As many descriptors as the hard limit allows; dies if these are fewer. */
void allow_descriptors(uint64_t wanted);

/* ADDRESS:PORT, of IPv4; dies at anything else. */
struct sockaddr_in parse_address(const char *text);

/* A number from 0 to a million; dies at anything else. */
unsigned parse_count(const char *text);

/* Members of a JSON object, each line with its comma. */
void print_window(const struct sample *first, const struct sample *last);
void print_latency(const struct histogram *h);
void print_memory(const char *name, const struct memory *m);
void print_string(const char *s); /* the value alone */

#endif
