/* SPDX-License-Identifier: MIT */
#include "service/loop.h"
#include <stdio.h>

const char *const loop_kinds[] = {
    [SLUICE_LOOP_AUTO] = "auto", [SLUICE_LOOP_EPOLL] = "epoll", [SLUICE_LOOP_IO_URING] = "io_uring", NULL};

int loop_choose(enum sluice_loop_kind kind, bool sqpoll, struct sluice_loop_options *ret_options,
                struct failure *failure)
{
    struct sluice_error error;
    char text[512];
    *ret_options = (struct sluice_loop_options){
        .size = sizeof *ret_options, .kind = kind, .flags = sqpoll ? SLUICE_LOOP_SQPOLL : 0};
    int result = kind == SLUICE_LOOP_IO_URING ? sluice_loop_probe(ret_options, &error) : 0;
    if (result == 0)
        return 0;
    sluice_error_format(&error, text, sizeof text);
    return failure_set(failure, result, "io_uring: %s. %s", text, error.remedy != NULL ? error.remedy : "");
}

void loop_say(const char *program, const struct sluice_loop_options *options)
{
    struct sluice_error error;
    char text[512];
    if (options->kind != SLUICE_LOOP_AUTO)
        return;
    if (sluice_loop_probe(options, &error) == 0) {
        fprintf(stderr, "%s: loop: io_uring\n", program);
        return;
    }
    sluice_error_format(&error, text, sizeof text);
    fprintf(stderr, "%s: loop: epoll; io_uring: %s\n", program, text);
}
