/* SPDX-License-Identifier: MIT
 *
 * Tests named as sentences, reported as TAP (meson counts each line). One program per module:
 *
 *     TEST("a short read is taken up where it ended") { CHECK(x == 1); CHECK_EQ(got, want); }
 *     CHECK_MAIN()
 *
 * A test ends at its first failed check. SKIP("reason; what would make it run") skips it.
 */
#ifndef SLUICE_TESTS_CHECK_H
#define SLUICE_TESTS_CHECK_H

#include <setjmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct check_test {
    const char *name;
    void (*run)(void);
    struct check_test *next;
};

static struct check_test *check_first, **check_last = &check_first;
static jmp_buf check_escape;
static char check_message[512];

#define CHECK_PASTE2(a, b) a##b
#define CHECK_PASTE(a, b) CHECK_PASTE2(a, b)
#define TEST_NAMED(sentence, function)                                                                                 \
    static void function(void);                                                                                        \
    __attribute__((constructor)) static void CHECK_PASTE(function, _register)(void)                                    \
    {                                                                                                                  \
        static struct check_test test = {sentence, function, NULL};                                                    \
        *check_last = &test;                                                                                           \
        check_last = &test.next;                                                                                       \
    }                                                                                                                  \
    static void function(void)
#define TEST(sentence) TEST_NAMED(sentence, CHECK_PASTE(check_test_at_line_, __LINE__))

/* clang says by __has_feature what gcc says by these names. */
#ifdef __has_feature
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#if __has_feature(thread_sanitizer) && !defined(__SANITIZE_THREAD__)
#define __SANITIZE_THREAD__ 1
#endif
#endif

/* A test of what a sanitizer build leaves out (the system-call filter, for one): absent there, not skipped. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TEST_WITHOUT_SANITIZERS(sentence)                                                                              \
    __attribute__((unused)) static void CHECK_PASTE(check_test_at_line_, __LINE__)(void)
#else
#define TEST_WITHOUT_SANITIZERS(sentence) TEST(sentence)
#endif

#define CHECK_FAIL(...)                                                                                                \
    do {                                                                                                               \
        snprintf(check_message, sizeof check_message, __VA_ARGS__);                                                    \
        longjmp(check_escape, 1);                                                                                      \
    } while (0)
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            CHECK_FAIL("%s:%d: not true: %s", __FILE__, __LINE__, #condition);                                         \
    } while (0)
#define CHECK_EQ(got, want)                                                                                            \
    do {                                                                                                               \
        long long check_got = (long long)(got), check_want = (long long)(want);                                        \
        if (check_got != check_want)                                                                                   \
            CHECK_FAIL("%s:%d: %s is %lld, not %lld", __FILE__, __LINE__, #got, check_got, check_want);                \
    } while (0)
#define CHECK_STR(got, want)                                                                                           \
    do {                                                                                                               \
        const char *check_got = (got), *check_want = (want);                                                           \
        if (strcmp(check_got, check_want) != 0)                                                                        \
            CHECK_FAIL("%s:%d: %s is \"%.150s\", not \"%.150s\"", __FILE__, __LINE__, #got, check_got, check_want);    \
    } while (0)
#define SKIP(reason)                                                                                                   \
    do {                                                                                                               \
        snprintf(check_message, sizeof check_message, "%s", reason);                                                   \
        longjmp(check_escape, 2);                                                                                      \
    } while (0)

static inline int check_run_all(void)
{
    volatile int number = 0, failed = 0;
    int count = 0;
    for (struct check_test *test = check_first; test != NULL; test = test->next)
        count++;
    printf("1..%d\n", count);
    fflush(stdout); /* a child that a test forks must not print it again */
    for (struct check_test *volatile test = check_first; test != NULL; test = test->next) {
        number++;
        int outcome = setjmp(check_escape);
        if (outcome == 0)
            test->run();
        if (outcome == 1) {
            failed++;
            printf("not ok %d - %s\n# %s\n", number, test->name, check_message);
        } else if (outcome == 2) {
            printf("ok %d - %s # SKIP %s\n", number, test->name, check_message);
        } else {
            printf("ok %d - %s\n", number, test->name);
        }
        fflush(stdout);
    }
    return failed != 0;
}

#define CHECK_MAIN()                                                                                                   \
    int main(void)                                                                                                     \
    {                                                                                                                  \
        return check_run_all();                                                                                        \
    }

#endif
