/* SPDX-License-Identifier: MIT
 *
 * Memory lent to real sockets: it arrives as by copy, comes back exactly once, and the receipt becomes final. What a
 * kernel does only sometimes is played in test_lending.c.
 */
#include "../check.h"
#include "world.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#define BODY (3u << 20 | 4321)

static unsigned char body[BODY];
static unsigned released;

static void count_release(void *context, const void *data, size_t length)
{
    (void)context;
    released++;
    memset((void *)(uintptr_t)data, 0xee, length); /* whoever still reads it shows */
}

static struct sluice_segment lendable(unsigned char *data, size_t size)
{
    struct sluice_segment segment = memory_segment(data, size);
    segment.release = count_release;
    return segment;
}

static void check_pattern(const unsigned char *data, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (data[i] != pattern_byte(i))
            CHECK_FAIL("byte %zu is wrong", i);
}

TEST("lent memory arrives, is released once, and the blocking call waits for it")
{
    int fds[2];
    size_t size;
    struct sluice_receipt receipt;
    tcp_pair(fds);
    struct sluice_end *sink = end_of(fds[0]);
    struct collector *collector = collector_start(fds[1], false);
    pattern_fill(body, 0, BODY);
    released = 0;
    struct sluice_segment segment = lendable(body, BODY);
    struct sluice_transfer_options options = {.size = sizeof options,
                                              .segments = &segment,
                                              .segment_count = 1,
                                              .sinks = &sink,
                                              .sink_count = 1,
                                              .route = SLUICE_ROUTE_MSG_ZEROCOPY};
    CHECK_EQ(sluice_transfer_run(&options, &receipt, NULL), 0);
    CHECK_EQ(released, 1);
    CHECK(sluice_receipt_is_final(&receipt));
    CHECK_EQ(receipt.bytes, BODY);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_MSG_ZEROCOPY].bytes, BODY);
    CHECK_EQ(receipt.copied, BODY); /* the peer is on this machine */
    CHECK_EQ(receipt.copy_bytes, BODY);
    CHECK_EQ(receipt.routes[SLUICE_ROUTE_MSG_ZEROCOPY].evidence, SLUICE_EVIDENCE_MEASURED);
    sluice_end_close(sink);
    unsigned char *data = collector_finish(collector, &size);
    CHECK_EQ(size, BODY);
    check_pattern(data, size);
    free(data);
    close(fds[1]);
}

CHECK_MAIN()
