/* SPDX-License-Identifier: MIT
 *
 * EACH_LOOP { ... }: a block for each kind of loop that is to be had, with `kind` set to it. The loops watch
 * descriptors in ways of their own. For the file that has this: kind is epoll everywhere else.
 */
#ifndef SLUICE_TESTS_EACH_LOOP_H
#define SLUICE_TESTS_EACH_LOOP_H

#include <sluice/sluice.h>
#include <stdbool.h>

static enum sluice_loop_kind kind = SLUICE_LOOP_EPOLL;

#define EACH_LOOP                                                                                                      \
    for (int which = SLUICE_LOOP_EPOLL; which <= SLUICE_LOOP_IO_URING; which++, kind = SLUICE_LOOP_EPOLL)              \
        if (choose_loop(which))

static bool choose_loop(int which)
{
    struct sluice_loop_options options = {.size = sizeof options, .kind = (enum sluice_loop_kind)which};
    kind = options.kind;
    return sluice_loop_probe(&options, NULL) == 0;
}

#endif
