/* SPDX-License-Identifier: MIT */
#include "service/crossovers.h"
#include "base/text.h"
#include <sluice/sluice.h>
#include <stdio.h>

void crossovers_begin(const char *program, bool share, void (*say)(void *context, const char *line), void *context)
{
    char line[256];
    const char *reason = "";
    int result = share ? sluice_crossovers_share() : 0;
    if (result < 0 && say != NULL) {
        snprintf(line, sizeof line, "%s: crossovers: each worker learns by itself: %s (%s)", program,
                 text_errno_meaning(result), text_errno_name(result));
        say(context, line);
    }
    result = sluice_crossovers_load(NULL, &reason);
    if (say == NULL)
        return;
    if (result == 0)
        snprintf(line, sizeof line, "%s: crossovers: those of earlier runs", program);
    else
        snprintf(line, sizeof line, "%s: crossovers: defaults; the file of earlier runs is not used: %s (%s)", program,
                 reason, text_errno_name(result));
    say(context, line);
}

void crossovers_end(const char *program, void (*say)(void *context, const char *line), void *context)
{
    char line[256];
    int result = sluice_crossovers_save(NULL);
    if (result == 0 || say == NULL)
        return;
    if (result > 0)
        snprintf(line, sizeof line, "%s: crossovers: what was learned is kept", program);
    else
        snprintf(line, sizeof line, "%s: crossovers: what was learned is lost: writing it failed: %s (%s)", program,
                 text_errno_meaning(result), text_errno_name(result));
    say(context, line);
}
