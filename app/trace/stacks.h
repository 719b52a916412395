/* SPDX-License-Identifier: MIT
 *
 * What a sampled stack says: does its innermost function copy, on whose behalf, and which code asked for it. Kernel
 * symbols come from /proc/kallsyms; those of programs from their files, by libdw, which also walks stacks by the
 * unwind tables (.eh_frame): Debian's programs keep no frame pointers.
 *
 * Programs are known by what is mapped where: from records of mmap and exec (stacks_mapped, stacks_executed) and, for
 * what ran before, from /proc/PID/maps. Kept for the last STACKS_PROCESSES processes; files are shared among them.
 *
 * Decision, for copies in a softirq: delivery over loopback runs inside the sender's system call, by local_bh_enable;
 * that is the sender's doing and counts as its own. A softirq at the end of an interrupt, or in ksoftirqd, runs in
 * whatever process happened to be there: the verdict is `stray`, and belongs to nobody.
 */
#ifndef SLUICE_APP_TRACE_STACKS_H
#define SLUICE_APP_TRACE_STACKS_H

#include "frames.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STACKS_PROCESSES 256

struct stacks_verdict {
    enum frame_kind kind; /* FRAME_OTHER, FRAME_COPIES or FRAME_TRANSFORMS */
    const char *copier;   /* FRAME_COPIES: the function, for people; lives as long as the struct stacks */
    bool stray;           /* of the kernel: ran in a softirq that the current process had no part in */
};

#if defined(__aarch64__)
#define STACKS_REGISTERS 33
#define STACKS_STACK_POINTER 31
#else /* x86-64 */
#define STACKS_REGISTERS 17
#define STACKS_STACK_POINTER 7
#endif

/* Of a thread in user space, or about to return there. */
struct stacks_thread {
    uint64_t registers[STACKS_REGISTERS]; /* as DWARF numbers them; the last is the instruction pointer */
    const void *stack;                    /* memory from the stack pointer upwards */
    size_t stack_size;
};

struct stacks_mapping {
    uint64_t start, end, offset;
    uint64_t inode;   /* 0: not known */
    const char *path; /* as in /proc/PID/maps */
};

struct stacks;

struct stacks_options {
    const char *kallsyms;    /* NULL: /proc/kallsyms */
    const char *debug_files; /* directories with .build-id below, by colons; NULL: /usr/lib/debug */
};

/* Returns 0 or -ENOMEM. */
int stacks_new(const struct stacks_options *options, struct stacks **ret_stacks);
void stacks_free(struct stacks *stacks);

/* False where the kernel hides its addresses: stacks_judge_kernel says FRAME_OTHER then, whatever happened. */
bool stacks_kernel_known(const struct stacks *stacks);

/* chain: instruction pointers, innermost first. */
struct stacks_verdict stacks_judge_kernel(struct stacks *stacks, const uint64_t *chain, size_t depth);
struct stacks_verdict stacks_judge_user(struct stacks *stacks, uint32_t pid, uint64_t address);

/* The innermost function outside the C library: "ngx_linux_sendfile (nginx)", "function at 0x2f310 (nginx)" where it
 * has no name, "caller unknown (why)". */
void stacks_find_caller(struct stacks *stacks, uint32_t pid, const struct stacks_thread *thread, char *caller,
                        size_t size);

/* ---- What processes do ---- */

bool stacks_knows(const struct stacks *stacks, uint32_t pid);
int stacks_mapped(struct stacks *stacks, uint32_t pid, const struct stacks_mapping *mapping); /* 0 or -ENOMEM */
int stacks_forked(struct stacks *stacks, uint32_t pid, uint32_t parent); /* 0 or -ENOMEM; parent may be unknown */
int stacks_executed(struct stacks *stacks, uint32_t pid);                /* 0 or -ENOMEM: all mappings are gone */
void stacks_exited(struct stacks *stacks, uint32_t pid);
/* A round of records was taken up. Processes that exited are forgotten one round later: records of other CPUs about
 * them may come after. What was not found in /proc is looked for again. */
void stacks_round(struct stacks *stacks);

#endif
