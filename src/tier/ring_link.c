/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ring with a device behind it. A slot whose part was handed to the device stays its reader's (or, cached, stays in the cache)
 * until the copy is done; then all goes on as if the part had been computed just now.
 */
#include "base/error.h"
#include "os/clock.h"
#include "tier/ring_internal.h"

int pst_ring_link_init(pst_ring *ring, pst_device *device, pst_error *err)
{
    bool is_planned = ring->plan->device_slots > 0 || ring->plan->device_resident_bytes > 0;
    if (device == NULL || device->ops->is_host)
        return is_planned ? pst_fail(err, PST_E_USAGE, NULL, "a plan with a device, and none to carry it out") : 0;
    if (!is_planned && ring->plan->streamed_bytes + ring->plan->resident_bytes > 0)
        return pst_fail(err, PST_E_USAGE, NULL, "a device that the plan does not know of");
    PST_TRY(pst_link_create(device, ring->stages, ring->plan, &ring->link, err));
    pst_link_set_trace(ring->link, ring->trace);
    if (ring->slot_memory == NULL)
        return 0;
    return pst_link_register(ring->link, ring->slot_memory, ring->plan->slot_memory_bytes, err);
}

/* The device's next part from `number` on that has weights; the layout's part_count: none. */
static uint32_t next_of_device(const pst_ring *ring, uint32_t number)
{
    const pst_layout *layout = &ring->plan->layout;
    while (number < layout->part_count &&
           (ring->plan->places[number] != PST_PLACE_DEVICE || layout->parts[number].extent_count == 0))
        number++;
    return number;
}

/* Reads into all slots at once; a copy is over long before the reads that are still under way. */
int pst_ring_link_load(pst_ring *ring, pst_error *err)
{
    const pst_layout *layout = &ring->plan->layout;
    uint32_t slots = ring->plan->slots, read = 0, turn = 0;
    if (ring->link == NULL || slots == 0)
        return 0;
    uint32_t ahead = next_of_device(ring, 0);
    for (uint32_t part = ahead; part < layout->part_count; part = next_of_device(ring, part + 1), turn++) {
        for (; read < turn + slots && ahead < layout->part_count; read++, ahead = next_of_device(ring, ahead + 1)) {
            pst_ring_reader *reader = &ring->readers[read % slots];
            unsigned char *memory = pst_ring_slot_memory(ring, read % slots);
            uint32_t count = pst_ring_prepare_reads(ring, &layout->parts[ahead], memory, reader->ops);
            PST_TRY(pst_io_submit(reader->batch, reader->ops, count, err));
        }
        pst_ring_reader *reader = &ring->readers[turn % slots];
        PST_TRY(pst_ring_wait_batch(ring, reader->batch, err));
        PST_TRY(pst_ring_check_reads(ring, &layout->parts[part], reader->ops, err));
        PST_TRY(pst_link_load(ring->link, part, pst_ring_slot_memory(ring, turn % slots), err));
    }
    if (ring->stream_count == 0) /* nothing comes through them any more */
        pst_ring_free_slot_memory(ring);
    return 0;
}

/* A copy from the slot is done. */
static void release(pst_ring *ring, uint32_t slot)
{
    uint32_t number = ring->slots[slot].reader;
    if (number == PST_RING_NONE) {
        pst_ring_count_copy(ring, slot, false);
        return;
    }
    ring->readers[number].state = PST_READER_IDLE;
    pst_ring_settle(ring, slot);
}

int pst_ring_link_reap(pst_ring *ring, bool wait, pst_error *err)
{
    uint64_t start = pst_clock_ns();
    uint32_t slot = PST_RING_NONE;
    int status;
    for (bool first = true; (status = pst_link_retire(ring->link, wait && first, &slot, err)) == 1; first = false)
        if (slot != PST_RING_NONE)
            release(ring, slot);
    if (wait)
        ring->stats.link_wait_ns += pst_clock_ns() - start;
    return status;
}

int pst_ring_link_send(pst_ring *ring, uint32_t part, const unsigned char *memory, uint32_t slot, pst_part_view *out,
                       pst_error *err)
{
    if (pst_link_pending(ring->link) == ring->plan->device_slots)
        PST_TRY(pst_ring_link_reap(ring, true, err));
    PST_TRY(pst_link_copy(ring->link, part, memory, slot, out, err));
    ring->stats.link_bytes += ring->plan->layout.parts[part].weight_bytes;
    if (slot == PST_RING_NONE)
        return 0;
    if (ring->slots[slot].reader == PST_RING_NONE)
        pst_ring_count_copy(ring, slot, true);
    else
        ring->readers[ring->slots[slot].reader].state = PST_READER_COPYING;
    return 0;
}
