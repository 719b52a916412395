/* SPDX-License-Identifier: MIT
 *
 * A loop without a kernel: ops are carried out on bytes in memory, and it lies on purpose. Whatever a seed makes it do,
 * it does again with the same seed. For tests; not part of the library.
 */
#ifndef SLUICE_LOOP_SIMULATED_H
#define SLUICE_LOOP_SIMULATED_H

#include "../core/transfer.h"

#define SIMULATED_OBJECTS 32
#define SIMULATED_PAGE 512 /* what can be mapped of a stream: so that a short one has many */

enum simulated_kind { SIMULATED_FILE, SIMULATED_STREAM, SIMULATED_PIPE, SIMULATED_SINK };

struct simulated_object {
    enum simulated_kind kind;
    const unsigned char *data; /* file, stream: what it holds; sink: what it must get */
    size_t size;
    size_t at;                      /* stream: read; sink: got; pipe: bytes taken out since it was made */
    size_t filled;                  /* pipe: bytes put in */
    const unsigned char *pipe_data; /* pipe: where byte 0 of it lies in a source's data */
    unsigned pieces;                /* sink: delivered, each a datagram if it takes those */
    bool wrong;                     /* sink: got a byte that is not the expected one */
    size_t stops_at;                /* sink: when it has this much it says stop_error; 0: it never does */
    int stop_error;                 /* positive errno */
};

/* Make a route fail at one byte: its ops bring the sink to exactly this position and are refused there. */
struct simulated_refusal {
    enum sluice_route route;
    uint64_t at;
    bool at_drain; /* splice, tee, tcp_receive: after filling the pipe, or mapping, beyond that byte */
    bool at_tee;   /* tee: while taking that byte from the pipe of the window */
    int sink;      /* for ops of this sink's descriptor only; 0: of every */
};

struct simulation {
    uint64_t seed;
    size_t pipe_size; /* 0: 64 KiB */
    unsigned lies;    /* of 256 ops, how many are short, and how many meet EAGAIN; 0: an honest kernel */
    struct simulated_refusal refusal;
    bool into_file; /* for the test's own use: the kind of its sink */
    struct simulated_object objects[SIMULATED_OBJECTS];
    int object_count;
    uint64_t ops[OP_CORK + 1]; /* carried out, by kind */
};

/* Put the simulation in the place of the kernel for this process (the table `sys`), and take it out again. */
void simulation_begin(struct simulation *simulation);
void simulation_end(void);

/* An object and its end (kind as given); free with sluice_end_close. */
struct sluice_end *simulated_end(struct simulation *simulation, enum simulated_kind kind, enum sluice_end_kind as,
                                 const unsigned char *data, size_t size);

/* Carry a transfer (transfer_begin was called) to its end. Returns 0 or a negative errno; -EDEADLK when it would wait
 * for ever. */
int simulation_run(struct simulation *simulation, struct sluice_transfer *transfer);

#endif
