/* SPDX-License-Identifier: MIT
 *
 * Ends for tests: sources and sinks of every kind, with known bytes.
 */
#ifndef SLUICE_TESTS_WORLD_H
#define SLUICE_TESTS_WORLD_H

#include <sluice/sluice.h>
#include <stddef.h>
#include <stdint.h>

/* Byte i of every test source. Not periodic in any power of two, so a misplaced page shows. */
unsigned char pattern_byte(uint64_t i);
void pattern_fill(unsigned char *buffer, uint64_t from, size_t size);
/* Where data is not the pattern from byte `from` on, for the first time; size: nowhere. */
size_t pattern_wrong(const unsigned char *data, uint64_t from, size_t size);

/* A file of size pattern bytes in directory (NULL: an anonymous one on tmpfs). Returns its descriptor. */
int pattern_file(const char *directory, size_t size);

/* A connected pair of TCP sockets over loopback, both non-blocking, with cubic: fds[0] sends, fds[1] receives. */
void tcp_pair(int fds[2]);
/* The same of UDP sockets, each connected to the other. */
void udp_pair(int fds[2]);
void unix_pair(int fds[2]);
void pipe_pair(int fds[2]); /* [0] reads, [1] writes */

/* Collects on a thread of its own what arrives at fd, until its end. With slow, a little at a time. */
struct collector;
struct collector *collector_start(int fd, bool slow);
/* Waits for the end of the stream; the caller frees the bytes. Closes nothing. */
unsigned char *collector_finish(struct collector *collector, size_t *ret_size);

/* Writes size pattern bytes into fd on a thread of its own, then shuts down or closes it (it owns fd). */
struct feeder;
struct feeder *feeder_start(int fd, uint64_t from, size_t size);
void feeder_finish(struct feeder *feeder);

/* Number of open descriptors of this process. */
int open_descriptors(void);

/* Options of a transfer of one segment into one sink. */
struct sluice_transfer_options one_to_one(const struct sluice_segment *segment, struct sluice_end *const *sink,
                                          enum sluice_route route);

/* Carry a transfer out on a loop of its own, of this kind; where there is no io_uring, on epoll. */
int transfer_on_loop(enum sluice_loop_kind kind, const struct sluice_transfer_options *options,
                     struct sluice_receipt *ret_receipt, struct sluice_error *ret_error);

/* Is it a route from files to TCP sockets at all? True for AUTO. */
bool goes_to_tcp(enum sluice_route route);

/* Segments in short. */
struct sluice_segment memory_segment(const void *data, size_t size);
struct sluice_segment file_segment(struct sluice_end *end, uint64_t offset, uint64_t length);
struct sluice_segment stream_segment(struct sluice_end *end, uint64_t length);
struct sluice_end *end_of(int fd); /* owns fd */

#endif
