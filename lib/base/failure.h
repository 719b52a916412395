/* SPDX-License-Identifier: MIT
 *
 * Why something failed, in words for a person: what was tried, why it failed, what to do.
 */
#ifndef SLUICE_BASE_FAILURE_H
#define SLUICE_BASE_FAILURE_H

#include <stdarg.h>
#include <stdio.h>

struct failure {
    int code;       /* negative errno */
    char text[768]; /* without a final newline; may have several lines */
};

/* Fill the failure, if there is one, and return code: return failure_set(failure, -EINVAL, "..."). */
__attribute__((format(printf, 3, 4))) static inline int failure_set(struct failure *failure, int code,
                                                                    const char *format, ...)
{
    if (failure != NULL) {
        va_list arguments;
        va_start(arguments, format);
        failure->code = code;
        vsnprintf(failure->text, sizeof failure->text, format, arguments);
        va_end(arguments);
    }
    return code;
}

#endif
