/* SPDX-License-Identifier: MIT */
#include "uring_memory.h"
#include "../core/sys.h"
#include <errno.h>
#include <linux/io_uring.h>
#include <sys/uio.h>

#define REGISTERED_MAX (UINT64_C(1) << 30) /* of one region, says the kernel */
#define REFUSED_PAUSE_MS 1000              /* after the user's limit on locked memory was met */

void uring_memory_prepare(struct uring_memory *memory, int ring)
{
    struct io_uring_rsrc_register table = {.nr = PLACES, .flags = IORING_RSRC_REGISTER_SPARSE};
    memory->ring = ring;
    memory->registers = sys.io_uring_register(ring, IORING_REGISTER_BUFFERS2, &table, sizeof table) >= 0;
}

static int register_at(struct uring_memory *memory, unsigned number, const char *data, size_t size)
{
    const struct iovec place = {.iov_base = (char *)data, .iov_len = size};
    struct io_uring_rsrc_update2 update = {.offset = number, .data = (uintptr_t)&place, .nr = 1};
    int result = sys.io_uring_register(memory->ring, IORING_REGISTER_BUFFERS_UPDATE, &update, sizeof update);
    return result < 0 ? -errno : 0;
}

static void forget_place(struct uring_memory *memory, unsigned number)
{
    struct place *place = &memory->places[number];
    region_life_drop(place->life);
    *place = (struct place){.life = NULL};
    while (memory->place_count > 0 && memory->places[memory->place_count - 1].life == NULL)
        memory->place_count--;
}

void uring_memory_let_go(struct uring_memory *memory)
{
    for (unsigned i = memory->place_count; i-- > 0;) {
        const struct place *place = &memory->places[i];
        /* If it fails the number stays in use, so that it is not taken for other memory; the ring's end frees it. */
        if (place->life != NULL && region_life_is_over(place->life) && register_at(memory, i, NULL, 0) == 0)
            forget_place(memory, i);
    }
}

/* The number by which the ring knows a region, which is in use and so not about to be unmapped; negative: it does not.
 */
static int place_of(struct uring_memory *memory, struct region *region, uint64_t now)
{
    unsigned vacant = PLACES;
    if (!memory->registers || region == NULL || region->size > REGISTERED_MAX)
        return -1;
    for (unsigned i = 0; i < memory->place_count; i++) {
        const struct place *place = &memory->places[i];
        if (place->life != NULL && place->data == region->data && !region_life_is_over(place->life))
            return (int)i;
        if (place->life == NULL && vacant == PLACES)
            vacant = i;
    }
    if (vacant == PLACES)
        vacant = memory->place_count;
    if (vacant == PLACES || now < memory->refused_until)
        return -1;
    struct region_life *life = region_life_keep(region);
    if (life == NULL)
        return -1;
    if (register_at(memory, vacant, region->data, region->size) < 0) {
        region_life_drop(life);
        memory->refused_until = now + REFUSED_PAUSE_MS;
        return -1;
    }
    memory->places[vacant] = (struct place){.life = life, .data = region->data};
    if (vacant == memory->place_count)
        memory->place_count++;
    return (int)vacant;
}

static bool lies_in(const struct region *region, const char *data, size_t length)
{
    size_t at = (size_t)(data - region->data);
    return data >= region->data && at <= region->size && length <= region->size - at;
}

int uring_memory_number(struct uring_memory *memory, const struct lane *lane, const char *data, size_t length,
                        uint64_t now)
{
    const struct sluice_transfer *transfer = lane->transfer;
    struct region *region = NULL;
    if (lane->stage.data != NULL && data >= lane->stage.data && data < lane->stage.data + BUFFER_SIZE)
        region = buffer_region(lane->stage.data);
    else if (lane->segment < transfer->segment_count &&
             lane_segment(lane, lane->segment)->kind == SLUICE_SEGMENT_MEMORY &&
             lane_segment(lane, lane->segment)->memory != NULL)
        region = memory_region(lane_segment(lane, lane->segment)->memory);
    return region != NULL && lies_in(region, data, length) ? place_of(memory, region, now) : -1;
}

void uring_memory_free(struct uring_memory *memory)
{
    for (unsigned i = memory->place_count; i-- > 0;)
        if (memory->places[i].life != NULL)
            region_life_drop(memory->places[i].life);
}
