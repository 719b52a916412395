/* SPDX-License-Identifier: MIT
 *
 * What an account means, in words, with what to do about it. A finding claims only what its rows' evidence carries, and
 * says how much it could gain at most: the share of the process's CPU that copying takes (Amdahl).
 */
#ifndef SLUICE_APP_TRACE_FINDINGS_H
#define SLUICE_APP_TRACE_FINDINGS_H

#include "account.h"

struct finding {
    uint32_t pid;
    uint64_t bytes; /* moved by the rows it is about: findings come with the largest first */
    char what[400]; /* "nginx (1234) moved 3.1 GiB file -> tcp by read + write, 2.0 copies per byte (by definition)." */
    char advice[400]; /* "Its configuration has sendfile off, or ..."; empty when nothing needs doing */
};

#define FINDINGS_MAX 32

/* Fills at most FINDINGS_MAX; returns how many. */
size_t findings_find(struct account *account, struct finding findings[FINDINGS_MAX]);

#endif
