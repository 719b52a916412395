/* SPDX-License-Identifier: MIT
 *
 * Directories: walked and made by several threads, without recursion and without paths, so that neither depth nor
 * length of names is limited.
 */
#ifndef SLUICE_APP_CP_TREE_H
#define SLUICE_APP_CP_TREE_H

#include "entry.h"

struct tree;

struct tree_options {
    const struct copy_settings *settings;
    struct report *report;
    const atomic_bool *stop;
    unsigned threads;     /* to begin with */
    unsigned threads_max; /* with what tree_add_thread adds */
};

/* target_fd: the directory into which the operands go, open for reading and the caller's; target_path: for messages.
 * Returns 0 or -errno. */
int tree_new(const struct tree_options *options, int target_fd, const char *target_path, struct tree **ret_tree);

/* Add what is to be copied: a path of any kind, and its name in the target directory. Returns 0 or -ENOMEM. */
int tree_add(struct tree *tree, const char *source_path, bool directory, const char *target_name);

/* Start copying. Returns 0 or -errno (no thread could be had). */
int tree_start(struct tree *tree);

/* Wait for the end, at most so long. True when it has come. */
bool tree_wait(struct tree *tree, unsigned milliseconds);

/* One thread more, if there is work for it and threads_max permits. */
void tree_add_thread(struct tree *tree);

/* After the end: put in place what is complete, and add the receipts to *sum. */
void tree_finish(struct tree *tree, struct sluice_receipt *sum);

/* True: it ended because the target is full or cannot be written at all. */
bool tree_is_full(const struct tree *tree);

void tree_free(struct tree *tree);

#endif
