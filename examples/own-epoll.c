/* SPDX-License-Identifier: MIT
 *
 * own-epoll FILE: sends FILE to standard output (a pipe, a socket) from inside an epoll loop of one's own. The transfer
 * says what to wait for; a timer of the same loop shows on standard error that the program is free meanwhile.
 */
#include <fcntl.h>
#include <sluice/sluice.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    struct sluice_end *file, *out;
    struct sluice_transfer *transfer;
    struct sluice_waits waits;
    int fd = count == 2 ? open(arguments[1], O_RDONLY | O_CLOEXEC) : -1;
    fcntl(STDOUT_FILENO, F_SETFL, fcntl(STDOUT_FILENO, F_GETFL) | O_NONBLOCK);
    if (sluice_end_open(fd, SLUICE_END_OWN_FD, &file) < 0 || sluice_end_open(STDOUT_FILENO, 0, &out) < 0) {
        fprintf(stderr, "usage: own-epoll FILE | reader\n");
        return 2;
    }
    struct sluice_segment all = {.kind = SLUICE_SEGMENT_FILE, .end = file, .length = SLUICE_UNTIL_END};
    struct sluice_transfer_options options = {
        .size = sizeof options, .segments = &all, .segment_count = 1, .sinks = &out, .sink_count = 1};
    int result = sluice_transfer_new(&options, &transfer, NULL);
    if (result < 0)
        return 1;

    int epoll = epoll_create1(EPOLL_CLOEXEC), clock = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    struct itimerspec tenth = {.it_interval.tv_nsec = 100000000, .it_value.tv_nsec = 100000000};
    struct epoll_event ticks = {.events = EPOLLIN, .data.fd = clock}, event;
    timerfd_settime(clock, 0, &tenth, NULL);
    epoll_ctl(epoll, EPOLL_CTL_ADD, clock, &ticks);

    bool watched = false;
    while ((result = sluice_transfer_step(transfer, &waits)) > 0) {
        if (result == SLUICE_STEP_YIELD)
            continue;   /* others might have their turn here */
        if (!watched) { /* of a file to one sink, that sink is all there is to wait for; edges are enough */
            struct epoll_event writable = {.events = EPOLLOUT | EPOLLET, .data.fd = waits.wait[0].fd};
            watched = epoll_ctl(epoll, EPOLL_CTL_ADD, waits.wait[0].fd, &writable) == 0;
        }
        uint64_t expirations;
        while (epoll_wait(epoll, &event, 1, -1) == 1 && event.data.fd == clock)
            if (read(clock, &expirations, sizeof expirations) > 0)
                fprintf(stderr, "tick\n");
    }
    char text[1000];
    sluice_receipt_format(sluice_transfer_receipt(transfer, 0), text, sizeof text);
    fprintf(stderr, "%s\n", result < 0 ? sluice_transfer_error(transfer)->operation : text);
    sluice_transfer_free(transfer);
    sluice_end_close(file);
    sluice_end_close(out);
    close(epoll);
    close(clock);
    return result < 0;
}
