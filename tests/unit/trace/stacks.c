/* SPDX-License-Identifier: MIT */
#include "trace/stacks.h"
#include "base/cleanup.h"
#include "check.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- The kernel, invented ---- */

enum {
    COPY_TO_ITER = 0x1000,
    SKB_COPY_UBUFS = 0x2000,
    MEMCPY = 0x3000,
    TCP_ACK = 0x4000,
    HANDLE_SOFTIRQS = 0x5000,
    DO_SOFTIRQ = 0x6000,
    IRQ_EXIT = 0x7000,
    SYSCALL = 0x8000,
    TCP_SENDMSG = 0x9000,
    CLEAR_PAGE = 0xa000,
    COPY_TO_USER = 0xb000,
    REP_MOVS = 0xc000,
    AES = 0xd000,
    KSOFTIRQD = 0xe000,
    EPOLL_WAIT = 0xf000,
    PULL_TAIL = 0x10000,
};

static const char invented_symbols[] = "0000000000001000 T _copy_to_iter\n"
                                       "0000000000002000 T skb_copy_ubufs\n"
                                       "0000000000003000 T memcpy\n"
                                       "0000000000003000 T __some_other_name_of_memcpy\n"
                                       "0000000000003800 D data_that_is_no_function\n"
                                       "0000000000004000 t tcp_ack\n"
                                       "0000000000005000 t handle_softirqs\n"
                                       "0000000000006000 t do_softirq.part.0\n"
                                       "0000000000007000 T __irq_exit_rcu\n"
                                       "0000000000008000 T do_syscall_64\n"
                                       "0000000000009000 T tcp_sendmsg_locked\n"
                                       "000000000000a000 T clear_page_erms\n"
                                       "000000000000b000 T _copy_to_user\n"
                                       "000000000000c000 T rep_movs_alternative\n"
                                       "000000000000d000 t aes_gcm_enc_update_vaes_avx512\t[aesni_intel]\n"
                                       "000000000000e000 t run_ksoftirqd\n"
                                       "000000000000f000 t do_epoll_wait\n"
                                       "0000000000010000 T __pskb_pull_tail.constprop.0\n"
                                       "0000000000011000 T the_end\n";

static void cleanup_stacks(struct stacks **stacks)
{
    stacks_free(*stacks);
}
#define CLEANUP_STACKS __attribute__((cleanup(cleanup_stacks)))

static struct stacks *with_symbols(const char *symbols)
{
    char path[] = "/tmp/sluice-kallsyms-XXXXXX";
    CLEANUP_FD int fd = mkstemp(path);
    CHECK(fd >= 0 && write(fd, symbols, strlen(symbols)) == (ssize_t)strlen(symbols));
    struct stacks *stacks = NULL;
    int r = stacks_new(&(struct stacks_options){.kallsyms = path, .debug_files = "/nonexistent"}, &stacks);
    unlink(path);
    CHECK_EQ(r, 0);
    return stacks;
}

/* A verdict on frames, innermost first, somewhere inside each function. */
#define JUDGE(stacks, ...)                                                                                             \
    stacks_judge_kernel(stacks, (const uint64_t[]){__VA_ARGS__}, sizeof((const uint64_t[]){__VA_ARGS__}) / 8)

TEST("a function of the kernel that copies payload is named as the copier")
{
    CLEANUP_STACKS struct stacks *stacks = with_symbols(invented_symbols);
    CHECK(stacks_kernel_known(stacks));
    struct stacks_verdict verdict = JUDGE(stacks, COPY_TO_ITER + 0x40, SYSCALL + 8);
    CHECK_EQ(verdict.kind, FRAME_COPIES);
    CHECK_STR(verdict.copier, "_copy_to_iter");
    CHECK(!verdict.stray);
}

TEST("what a compiler adds to a name does not hide a copier")
{
    CLEANUP_STACKS struct stacks *stacks = with_symbols(invented_symbols);
    CHECK_EQ(JUDGE(stacks, PULL_TAIL + 4, TCP_ACK).kind, FRAME_COPIES);
}

TEST("memcpy in the kernel counts under a function that copies payload, and is named after it; else it does not")
{
    CLEANUP_STACKS struct stacks *stacks = with_symbols(invented_symbols);
    struct stacks_verdict verdict = JUDGE(stacks, MEMCPY + 3, SKB_COPY_UBUFS + 9, SYSCALL);
    CHECK_EQ(verdict.kind, FRAME_COPIES);
    CHECK_STR(verdict.copier, "skb_copy_ubufs");
    CHECK_EQ(JUDGE(stacks, MEMCPY + 3, TCP_ACK + 9, SYSCALL).kind, FRAME_OTHER);
    CHECK_EQ(JUDGE(stacks, MEMCPY + 3).kind, FRAME_OTHER);
    CHECK_STR(JUDGE(stacks, REP_MOVS, COPY_TO_ITER + 5, SYSCALL).copier, "_copy_to_iter");
}

TEST("filling pages and carrying arguments is no copy of payload")
{
    CLEANUP_STACKS struct stacks *stacks = with_symbols(invented_symbols);
    CHECK_EQ(JUDGE(stacks, CLEAR_PAGE, SYSCALL).kind, FRAME_OTHER);
    CHECK_EQ(JUDGE(stacks, REP_MOVS + 1, COPY_TO_USER + 1, EPOLL_WAIT, SYSCALL).kind, FRAME_OTHER);
    CHECK_EQ(JUDGE(stacks, COPY_TO_USER + 1, EPOLL_WAIT, SYSCALL).kind, FRAME_OTHER);
    CHECK_EQ(JUDGE(stacks, TCP_ACK, COPY_TO_ITER, SYSCALL).kind, FRAME_OTHER); /* called by a copier, copies nothing */
}

TEST("ciphers in a module of the kernel transform, and are no copies")
{
    CLEANUP_STACKS struct stacks *stacks = with_symbols(invented_symbols);
    struct stacks_verdict verdict = JUDGE(stacks, AES + 100, TCP_SENDMSG, SYSCALL);
    CHECK_EQ(verdict.kind, FRAME_TRANSFORMS);
    CHECK(verdict.copier == NULL);
}

TEST("a copy in a softirq that a system call ran is the caller's own; one that an interrupt began is nobody's")
{
    CLEANUP_STACKS struct stacks *stacks = with_symbols(invented_symbols);
    CHECK(!JUDGE(stacks, SKB_COPY_UBUFS, HANDLE_SOFTIRQS, DO_SOFTIRQ, TCP_SENDMSG, SYSCALL).stray);
    CHECK(!JUDGE(stacks, SKB_COPY_UBUFS, HANDLE_SOFTIRQS, DO_SOFTIRQ, TCP_SENDMSG).stray); /* a thread of io_uring */
    CHECK(JUDGE(stacks, SKB_COPY_UBUFS, HANDLE_SOFTIRQS, IRQ_EXIT, TCP_SENDMSG, SYSCALL).stray);
    CHECK(JUDGE(stacks, SKB_COPY_UBUFS, HANDLE_SOFTIRQS, IRQ_EXIT).stray); /* user code was interrupted */
    CHECK(JUDGE(stacks, SKB_COPY_UBUFS, HANDLE_SOFTIRQS, KSOFTIRQD).stray);
    CHECK(!JUDGE(stacks, COPY_TO_ITER, SYSCALL, HANDLE_SOFTIRQS, IRQ_EXIT).stray); /* outside of the call: not asked */
}

TEST("where the kernel hides its addresses nothing is claimed")
{
    CLEANUP_STACKS struct stacks *stacks =
        with_symbols("0000000000000000 T _copy_to_iter\n0000000000000000 T do_syscall_64\n");
    CHECK(!stacks_kernel_known(stacks));
    CHECK_EQ(JUDGE(stacks, COPY_TO_ITER).kind, FRAME_OTHER);
    CLEANUP_STACKS struct stacks *damaged = with_symbols("what is this\n\n1000 T\nffff\n2000 T ok");
    CHECK(stacks_kernel_known(damaged));
}

TEST("this kernel's own symbols have what the table is about, where they can be read")
{
    CLEANUP_STACKS struct stacks *stacks = NULL;
    CHECK_EQ(stacks_new(&(struct stacks_options){0}, &stacks), 0);
    if (!stacks_kernel_known(stacks))
        SKIP("/proc/kallsyms hides its addresses; root with kernel.kptr_restrict at 0 or 1 sees them");
    static const char *const wanted[] = {"_copy_to_iter", "_copy_from_iter", "skb_copy_ubufs", "do_syscall_64"};
    unsigned found = 0;
    FILE *stream = fopen("/proc/kallsyms", "re");
    char name[256];
    uint64_t address;
    while (stream != NULL && fscanf(stream, "%" SCNx64 " %*c %255s%*[^\n]", &address, name) == 2) {
        for (size_t i = 0; i < 3; i++) {
            if (strcmp(name, wanted[i]) == 0) {
                struct stacks_verdict verdict = JUDGE(stacks, address + 1);
                found += verdict.kind == FRAME_COPIES && strcmp(verdict.copier, name) == 0;
            }
        }
    }
    if (stream != NULL)
        fclose(stream);
    CHECK_EQ(found, 3);
}

/* ---- Programs ---- */

TEST("programs' copying and transforming functions are told by name or by the library that they are in")
{
    CHECK_EQ(frames_user("__memmove_avx_unaligned_erms", "libc.so.6")->kind, FRAME_COPIES);
    CHECK_STR(frames_user("__memmove_avx_unaligned_erms", "libc.so.6")->name, "memcpy");
    CHECK_EQ(frames_user("memcpy@@GLIBC_2.14", "libc.so.6")->kind, FRAME_COPIES);
    CHECK_EQ(frames_user("runtime.memmove", "caddy")->kind, FRAME_COPIES);
    CHECK_EQ(frames_user("aesni_ctr32_encrypt_blocks", "node")->kind, FRAME_TRANSFORMS);
    CHECK_EQ(frames_user(NULL, "libcrypto.so.3")->kind, FRAME_TRANSFORMS);
    CHECK_EQ(frames_user("inflate_fast", "nginx")->kind, FRAME_TRANSFORMS);
    CHECK(frames_user(NULL, "libc.so.6") == NULL);
    CHECK(frames_user("memset", "libc.so.6") == NULL);
    CHECK(frames_user("memcmp", "libc.so.6") == NULL);
    CHECK(frames_user("ngx_memcpy_is_my_name", "nginx") == NULL);
}

/* Where a mapping of this process is that holds an address. */
static struct stacks_mapping own_mapping(uint64_t address)
{
    static char path[4096];
    struct stacks_mapping mapping = {0};
    FILE *stream = fopen("/proc/self/maps", "re");
    char line[8192];
    while (stream != NULL && fgets(line, sizeof line, stream) != NULL) {
        path[0] = '\0';
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %*s %" SCNx64 " %*s %" SCNu64 " %4095s", &mapping.start, &mapping.end,
                   &mapping.offset, &mapping.inode, path) >= 4 &&
            address >= mapping.start && address < mapping.end)
            break;
    }
    if (stream != NULL)
        fclose(stream);
    mapping.path = path;
    return mapping;
}

/* As the C library resolved it, not as a sanitizer replaced it. */
static uint64_t libc_function(const char *name)
{
    void *library = dlopen("libc.so.6", RTLD_NOLOAD | RTLD_LAZY);
    if (library == NULL)
        SKIP("no glibc here");
    uint64_t address = (uintptr_t)dlsym(library, name);
    dlclose(library);
    return address;
}

TEST("memcpy of a C library without debug symbols is known all the same")
{
    CLEANUP_STACKS struct stacks *stacks = with_symbols(invented_symbols);
    struct stacks_verdict verdict = stacks_judge_user(stacks, (uint32_t)getpid(), libc_function("memcpy") + 8);
    CHECK_EQ(verdict.kind, FRAME_COPIES);
    CHECK_STR(verdict.copier, "memcpy");
    CHECK_EQ(stacks_judge_user(stacks, (uint32_t)getpid(), libc_function("getppid")).kind, FRAME_OTHER);
    CHECK_EQ(stacks_judge_user(stacks, (uint32_t)getpid(), 16).kind, FRAME_OTHER); /* mapped by nobody */
}

__attribute__((noinline)) static int ask_for_it(int number)
{
    __asm__ volatile("nop; nop; nop; nop" : "+r"(number));
    return number;
}

/* Where a function that was just called returns to: on the stack, or in a register. */
static void return_to(uint64_t address, struct stacks_thread *thread, uint64_t *stack)
{
#if defined(__aarch64__)
    (void)stack;
    thread->registers[30] = address;
#else
    (void)thread;
    stack[0] = address;
#endif
}

/* A thread that just called address, from inside ask_for_it. */
static struct stacks_thread called(uint64_t address, uint64_t *stack, size_t words)
{
    memset(stack, 0, words * sizeof *stack);
    struct stacks_thread thread = {.stack = stack, .stack_size = words * sizeof *stack};
    return_to((uintptr_t)ask_for_it + 4, &thread, stack);
    thread.registers[STACKS_STACK_POINTER] = 0x7ffe00000000;
    thread.registers[STACKS_REGISTERS - 1] = address;
    return thread;
}

TEST("the caller is the innermost function outside the C library")
{
    CLEANUP_STACKS struct stacks *stacks = with_symbols(invented_symbols);
    uint64_t stack[64];
    char caller[160];
    CHECK_EQ(ask_for_it(7), 7);
    struct stacks_thread thread = called(libc_function("getppid"), stack, 64);
    stacks_find_caller(stacks, (uint32_t)getpid(), &thread, caller, sizeof caller);
    CHECK(strncmp(caller, "ask_for_it (", 12) == 0);
    thread = called((uintptr_t)ask_for_it + 4, stack, 64); /* it copied itself */
    stacks_find_caller(stacks, (uint32_t)getpid(), &thread, caller, sizeof caller);
    CHECK(strncmp(caller, "ask_for_it (", 12) == 0);
}

TEST("a call that ends its function is that function's, not that of the next one, where it would return to")
{
    CLEANUP_STACKS struct stacks *stacks = with_symbols(invented_symbols);
    uint64_t stack[64];
    char caller[160];
    struct stacks_thread thread = called(libc_function("getppid"), stack, 64);
    return_to((uintptr_t)ask_for_it, &thread, stack);
    stacks_find_caller(stacks, (uint32_t)getpid(), &thread, caller, sizeof caller);
    CHECK(strstr(caller, "caller unknown") == NULL);
    CHECK(strncmp(caller, "ask_for_it", 10) != 0);
}

TEST("a stack that does not reach far enough, or no stack, gives no caller")
{
    CLEANUP_STACKS struct stacks *stacks = with_symbols(invented_symbols);
    uint64_t stack[64];
    char caller[160];
    struct stacks_thread thread = called(libc_function("getppid"), stack, 64);
    return_to(0, &thread, stack); /* nor does a register tell */
    thread.stack_size = 4;
    stacks_find_caller(stacks, (uint32_t)getpid(), &thread, caller, sizeof caller);
    CHECK_STR(caller, "caller unknown (its stack cannot be walked)");
    thread.stack = NULL;
    thread.stack_size = 0;
    stacks_find_caller(stacks, (uint32_t)getpid(), &thread, caller, sizeof caller);
    CHECK_STR(caller, "caller unknown (its stack cannot be walked)");
}

TEST("code made at run time is said to be that")
{
    CLEANUP_STACKS struct stacks *stacks = with_symbols(invented_symbols);
    void *code = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(code != MAP_FAILED);
    uint64_t stack[64];
    char caller[160];
    struct stacks_thread thread = called((uintptr_t)code + 16, stack, 64);
    stacks_find_caller(stacks, (uint32_t)getpid(), &thread, caller, sizeof caller);
    munmap(code, 4096);
    CHECK_STR(caller, "caller unknown (code made at run time)");
}

/* ---- Processes that are known from records alone ---- */

#define NOBODY 4194305U /* above any process number */
#define FAKE_BASE UINT64_C(0x10000000)

/* The C library, mapped by a process that is no more. Returns where its memcpy is. */
static uint64_t map_libc(struct stacks *stacks, uint32_t pid)
{
    uint64_t memcpy_address = libc_function("memcpy");
    struct stacks_mapping mapping = own_mapping(memcpy_address);
    uint64_t start = mapping.start;
    mapping.end = FAKE_BASE + (mapping.end - mapping.start);
    mapping.start = FAKE_BASE;
    CHECK_EQ(stacks_mapped(stacks, pid, &mapping), 0);
    return memcpy_address - start + FAKE_BASE;
}

TEST("a process that is gone is known by the records of its mappings, and forgotten a round after its end")
{
    CLEANUP_STACKS struct stacks *stacks = with_symbols(invented_symbols);
    CHECK_EQ(stacks_executed(stacks, NOBODY), 0);
    uint64_t address = map_libc(stacks, NOBODY);
    CHECK_EQ(stacks_judge_user(stacks, NOBODY, address).kind, FRAME_COPIES);
    stacks_exited(stacks, NOBODY);
    stacks_round(stacks);
    CHECK(stacks_knows(stacks, NOBODY));
    CHECK_EQ(stacks_judge_user(stacks, NOBODY, address).kind, FRAME_COPIES);
    stacks_round(stacks);
    CHECK(!stacks_knows(stacks, NOBODY));
    CHECK_EQ(stacks_judge_user(stacks, NOBODY, address).kind, FRAME_OTHER);
}

TEST("a child has its parent's mappings until it executes another program")
{
    CLEANUP_STACKS struct stacks *stacks = with_symbols(invented_symbols);
    CHECK_EQ(stacks_executed(stacks, NOBODY), 0);
    uint64_t address = map_libc(stacks, NOBODY);
    CHECK_EQ(stacks_forked(stacks, NOBODY + 1, NOBODY), 0);
    CHECK_EQ(stacks_judge_user(stacks, NOBODY + 1, address).kind, FRAME_COPIES);
    CHECK_EQ(stacks_executed(stacks, NOBODY + 1), 0);
    CHECK_EQ(stacks_judge_user(stacks, NOBODY + 1, address).kind, FRAME_OTHER);
    CHECK_EQ(stacks_judge_user(stacks, NOBODY, address).kind, FRAME_COPIES);
    CHECK_EQ(stacks_forked(stacks, NOBODY + 3, NOBODY + 2), 0); /* of a parent that nobody knows */
    CHECK(!stacks_knows(stacks, NOBODY + 3));
}

TEST("a child uses the files that its parent had open, though they are deleted since")
{
    CLEANUP_STACKS struct stacks *stacks = with_symbols(invented_symbols);
    char path[] = "/tmp/sluice-stacks-XXXXXX", block[65536];
    CLEANUP_FD int copy = mkstemp(path);
    CLEANUP_FD int program = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    CHECK(copy >= 0 && program >= 0);
    for (ssize_t got = read(program, block, sizeof block); got > 0; got = read(program, block, sizeof block))
        CHECK_EQ(write(copy, block, (size_t)got), got);
    struct stacks_mapping mapping = own_mapping((uintptr_t)ask_for_it);
    uint64_t start = mapping.start;
    mapping.end = FAKE_BASE + (mapping.end - mapping.start);
    mapping.start = FAKE_BASE;
    mapping.inode = 0;
    mapping.path = path;
    CHECK_EQ(stacks_executed(stacks, NOBODY), 0);
    CHECK_EQ(stacks_mapped(stacks, NOBODY, &mapping), 0);
    uint64_t stack[64], address = (uintptr_t)ask_for_it + 4 - start + FAKE_BASE;
    char caller[160];
    stacks_judge_user(stacks, NOBODY, address); /* opens it */
    unlink(path);
    CHECK_EQ(stacks_forked(stacks, NOBODY + 1, NOBODY), 0);
    stacks_exited(stacks, NOBODY);
    stacks_round(stacks);
    stacks_round(stacks);
    CHECK(!stacks_knows(stacks, NOBODY));
    struct stacks_thread thread = called(address, stack, 64);
    stacks_find_caller(stacks, NOBODY + 1, &thread, caller, sizeof caller);
    CHECK(strncmp(caller, "ask_for_it (sluice-stacks-", 26) == 0);
}

TEST("a new mapping takes the place of what was there")
{
    CLEANUP_STACKS struct stacks *stacks = with_symbols(invented_symbols);
    CHECK_EQ(stacks_executed(stacks, NOBODY), 0);
    uint64_t address = map_libc(stacks, NOBODY);
    CHECK_EQ(stacks_judge_user(stacks, NOBODY, address).kind, FRAME_COPIES);
    struct stacks_mapping anonymous = {.start = FAKE_BASE, .end = FAKE_BASE + (8U << 20), .path = "//anon"};
    CHECK_EQ(stacks_mapped(stacks, NOBODY, &anonymous), 0);
    CHECK_EQ(stacks_judge_user(stacks, NOBODY, address).kind, FRAME_OTHER);
}

TEST("only so many processes are kept, the latest")
{
    CLEANUP_STACKS struct stacks *stacks = with_symbols(invented_symbols);
    for (uint32_t i = 0; i < STACKS_PROCESSES + 5; i++) {
        CHECK_EQ(stacks_executed(stacks, NOBODY + i), 0);
        stacks_round(stacks);
    }
    CHECK(!stacks_knows(stacks, NOBODY));
    CHECK(!stacks_knows(stacks, NOBODY + 4));
    CHECK(stacks_knows(stacks, NOBODY + 5));
    CHECK(stacks_knows(stacks, NOBODY + STACKS_PROCESSES + 4));
}

TEST("files that are no programs, FIFOs, and files put in another's place harm nobody")
{
    CLEANUP_STACKS struct stacks *stacks = with_symbols(invented_symbols);
    char path[] = "/tmp/sluice-stacks-XXXXXX", fifo[64];
    CLEANUP_FD int fd = mkstemp(path);
    CHECK(fd >= 0 && write(fd, "\177ELF\2\1\1 not really", 19) == 19);
    snprintf(fifo, sizeof fifo, "%s.fifo", path);
    CHECK_EQ(mkfifo(fifo, 0600), 0);
    CHECK_EQ(stacks_executed(stacks, NOBODY), 0);
    struct stacks_mapping mapping = {.start = 0x1000, .end = 0x2000, .path = path};
    CHECK_EQ(stacks_mapped(stacks, NOBODY, &mapping), 0);
    mapping = (struct stacks_mapping){.start = 0x2000, .end = 0x3000, .path = fifo};
    CHECK_EQ(stacks_mapped(stacks, NOBODY, &mapping), 0);
    mapping = own_mapping(libc_function("memcpy"));
    uint64_t address = libc_function("memcpy");
    mapping.inode++; /* replaced since */
    CHECK_EQ(stacks_mapped(stacks, NOBODY, &mapping), 0);
    int of_file = (int)stacks_judge_user(stacks, NOBODY, 0x1100).kind;
    int of_fifo = (int)stacks_judge_user(stacks, NOBODY, 0x2100).kind;
    unlink(path);
    unlink(fifo);
    CHECK_EQ(of_file, FRAME_OTHER);
    CHECK_EQ(of_fifo, FRAME_OTHER);
    CHECK_EQ(stacks_judge_user(stacks, NOBODY, address).kind, FRAME_OTHER);
    uint64_t stack[64];
    char caller[160];
    struct stacks_thread thread = called(0x1100, stack, 64);
    stacks_find_caller(stacks, NOBODY, &thread, caller, sizeof caller);
    CHECK_STR(caller, "caller unknown (the program's files cannot be read)");
}

CHECK_MAIN()
