/* SPDX-License-Identifier: MIT */
#include "service/loop.h"
#include "service/options.h"
#include <stdio.h>

static void say_what_auto_means(const char *program, const struct sluice_loop_options *options)
{
    struct sluice_error error;
    char text[512];
    if (sluice_loop_probe(options, &error) == 0) {
        fprintf(stderr, "%s: loop: io_uring\n", program);
        return;
    }
    sluice_error_format(&error, text, sizeof text);
    fprintf(stderr, "%s: loop: epoll; io_uring: %s\n", program, text);
}

int loop_choose(const char *program, const char *kind_name, bool sqpoll, bool verbose,
                struct sluice_loop_options *ret_options)
{
    struct sluice_error error;
    int kind = sluice_loop_kind_by_name(kind_name);
    if (kind < 0) {
        fprintf(stderr, "%s: --loop takes auto, epoll or io_uring, not \"%s\"\n", program, kind_name);
        return EXIT_CODE_USAGE;
    }
    if (sqpoll && kind != SLUICE_LOOP_IO_URING) {
        fprintf(stderr, "%s: --sqpoll needs --loop io_uring\n", program);
        return EXIT_CODE_USAGE;
    }
    *ret_options = (struct sluice_loop_options){
        .size = sizeof *ret_options, .kind = (enum sluice_loop_kind)kind, .flags = sqpoll ? SLUICE_LOOP_SQPOLL : 0};
    if (kind == SLUICE_LOOP_IO_URING && sluice_loop_probe(ret_options, &error) < 0) {
        char text[512];
        sluice_error_format(&error, text, sizeof text);
        fprintf(stderr, "%s: --loop io_uring: %s. %s\n", program, text, error.remedy != NULL ? error.remedy : "");
        return EXIT_CODE_FAILED;
    }
    if (kind == SLUICE_LOOP_AUTO && verbose)
        say_what_auto_means(program, ret_options);
    return EXIT_CODE_DONE;
}
