/* SPDX-License-Identifier: MIT
 *
 * What several test programs check in the same way. (Checks count in the file that makes them.)
 */
#ifndef SLUICE_TESTS_CHECKED_H
#define SLUICE_TESTS_CHECKED_H

#include "../check.h"
#include "uring_files.h"
#include "world.h"
#include <errno.h>
#include <poll.h>
#include <unistd.h>

/* All tests of the program, if such a loop is to be had; else it says why not. Returns the exit code. */
static inline int run_all_on_loop(const struct sluice_loop_options *options)
{
    struct sluice_error error;
    if (sluice_loop_probe(options, &error) < 0) {
        char text[256];
        sluice_error_format(&error, text, sizeof text);
        printf("1..0 # SKIP %s; %s\n", text, error.remedy);
        return 0;
    }
    alarm(60); /* a hang is a failure */
    return check_run_all();
}

/* The same on the loop that the first argument names. The second: "sqpoll", or "numbered", where the ring knows every
 * descriptor by number from its first request on. */
static inline int run_all_on_named_loop(struct sluice_loop_options *options, int argc, char **argv)
{
    if (argc > 1)
        options->kind = (enum sluice_loop_kind)sluice_loop_kind_by_name(argv[1]);
    if (argc > 2 && strcmp(argv[2], "sqpoll") == 0)
        options->flags = SLUICE_LOOP_SQPOLL;
    if (argc > 2 && strcmp(argv[2], "numbered") == 0)
        uring_files_after = 0;
    return run_all_on_loop(options);
}

/* Reads to the end; returns the count, or -1 after a reset. The bytes must be the pattern's first ones. */
static inline ssize_t read_prefix(int fd)
{
    static unsigned char piece[65536];
    size_t got = 0;
    for (;;) {
        struct pollfd readable = {.fd = fd, .events = POLLIN};
        CHECK(poll(&readable, 1, 5000) == 1);
        ssize_t size = read(fd, piece, sizeof piece);
        if (size == 0)
            return (ssize_t)got;
        if (size < 0)
            return errno == ECONNRESET ? -1 : -2;
        CHECK_EQ(pattern_wrong(piece, got, (size_t)size), size);
        got += (size_t)size;
    }
}

#endif
