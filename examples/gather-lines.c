/* SPDX-License-Identifier: MIT
 *
 * gather-lines: standard input's lines into standard output, line by line for this program, many by one call for the
 * kernel; flushed whenever the input pauses. On standard error, what that cost.
 */
#include <errno.h>
#include <poll.h>
#include <sluice/sluice.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int input_is_silent(void)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    return poll(&input, 1, 0) == 0;
}

int main(void)
{
    char *line = NULL, text[1000];
    size_t size = 0;
    ssize_t length;
    int result = 0;
    struct sluice_end *sink;
    struct sluice_gather *gather;
    if (sluice_end_open(STDOUT_FILENO, 0, &sink) < 0)
        return 1;
    struct sluice_gather_options options = {.size = sizeof options, .sink = sink, .messages = 1000};
    if (sluice_gather_new(&options, &gather) < 0)
        return 1;
    while (result >= 0 && (length = getline(&line, &size, stdin)) > 0) {
        /* Copied, as getline uses its buffer again; -EAGAIN: a full batch is waiting for a slow reader. */
        while ((result = sluice_gather_add(gather, line, (size_t)length, NULL, NULL)) == -EAGAIN)
            if ((result = sluice_gather_flush(gather, NULL)) < 0)
                break;
        if (result >= 0 && input_is_silent())
            result = sluice_gather_flush(gather, NULL);
    }
    if (result >= 0)
        result = sluice_gather_flush(gather, NULL);
    if (result < 0) {
        sluice_error_format(sluice_gather_error(gather), text, sizeof text);
    } else {
        struct sluice_receipt receipt;
        sluice_gather_receipt(gather, &receipt);
        sluice_receipt_format(&receipt, text, sizeof text);
    }
    fprintf(stderr, "%s\n", text);
    sluice_gather_free(gather);
    sluice_end_close(sink);
    free(line);
    return result < 0;
}
