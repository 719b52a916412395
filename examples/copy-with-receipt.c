/* SPDX-License-Identifier: MIT
 *
 * copy-with-receipt FROM TO: one blocking call, and what it really did.
 */
#include <fcntl.h>
#include <sluice/sluice.h>
#include <stdio.h>

int main(int count, char **arguments)
{
    char text[1000];
    struct sluice_end *source, *sink;
    struct sluice_receipt receipt;
    struct sluice_error error;
    if (count != 3) {
        fprintf(stderr, "usage: copy-with-receipt FROM TO\n");
        return 2;
    }
    int from = open(arguments[1], O_RDONLY | O_CLOEXEC);
    int to = open(arguments[2], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (sluice_end_open(from, SLUICE_END_OWN_FD, &source) < 0 || sluice_end_open(to, SLUICE_END_OWN_FD, &sink) < 0) {
        perror("copy-with-receipt");
        return 1;
    }
    struct sluice_segment all = {.kind = SLUICE_SEGMENT_FILE, .end = source, .length = SLUICE_UNTIL_END};
    struct sluice_transfer_options options = {
        .size = sizeof options, .segments = &all, .segment_count = 1, .sinks = &sink, .sink_count = 1};
    int result = sluice_transfer_run(&options, &receipt, &error);
    if (result < 0)
        sluice_error_format(&error, text, sizeof text);
    else
        sluice_receipt_format(&receipt, text, sizeof text);
    fprintf(result < 0 ? stderr : stdout, "%s\n", text);
    sluice_end_close(source);
    sluice_end_close(sink);
    return result < 0;
}
