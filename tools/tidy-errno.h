/* SPDX-License-Identifier: MIT
 *
 * For clang-tidy only (tools/check-tidy puts it before every file). The analyzer of clang 14 does not know that the
 * negation of a positive number is negative: it takes "return -errno" for a possible success, and then reports
 * uninitialised results all over. So errno is one of a few numbers it can negate. Price: it does not follow the
 * branch "errno == 0" after strtoull and its like. */
#include <errno.h>

int tidy_which(void);

static inline int *tidy_errno(void)
{
    int *location = __errno_location();
    *location = tidy_which() ? EAGAIN : EIO;
    return location;
}

#undef errno
#define errno (*tidy_errno())
