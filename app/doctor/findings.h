/* SPDX-License-Identifier: MIT
 *
 * What the doctor finds: one line each on what was looked at, how bad it is, what it costs, and what to do. A new check
 * is a function and a line in the table at the end of checks.c; text and JSON take what it says.
 */
#ifndef SLUICE_APP_DOCTOR_FINDINGS_H
#define SLUICE_APP_DOCTOR_FINDINGS_H

#include "doctor/ladder.h"

enum finding_level {
    FINDING_OK,      /* as it should be */
    FINDING_NOTE,    /* worth knowing; nothing copies that need not, or nothing can be done */
    FINDING_UNKNOWN, /* could not be looked at */
    FINDING_PROBLEM, /* copies or refuses here, and there is a remedy */
};

struct finding {
    enum finding_level level;
    const char *check; /* static: "pipes" */
    char what[256];    /* "a pipe can have 64 KiB, not 1 MiB" */
    char why[384];     /* what follows from it; may be empty */
    char remedy[384];  /* may be empty */
};

struct findings {
    struct finding *items;
    size_t count;
    bool lost;         /* no memory for all of them */
    const char *check; /* under way */
};

struct checks_options {
    const char *const *directories;
    size_t directory_count;
};

/* The returned finding (never NULL) may be given a why and a remedy. */
__attribute__((format(printf, 3, 4))) struct finding *findings_add(struct findings *findings, enum finding_level level,
                                                                   const char *what, ...);
__attribute__((format(printf, 2, 3))) void finding_why(struct finding *finding, const char *format, ...);
__attribute__((format(printf, 2, 3))) void finding_remedy(struct finding *finding, const char *format, ...);

/* Make all checks. Nothing on the host is changed, no module is loaded, nothing is sent but over loopback. */
void checks_run(const struct checks_options *options, struct findings *findings);
void findings_free(struct findings *findings);

const char *finding_level_name(enum finding_level level); /* "ok", "note", "unknown", "problem" */

#endif
