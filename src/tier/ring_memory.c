/* SPDX-License-Identifier: Apache-2.0 */
/* The ring's files and memory: slots (registered with the I/O engine), resident parts, and their first loading. */
#include <math.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/log.h"
#include "os/memory.h"
#include "tier/ring_internal.h"

enum { LOADS_IN_FLIGHT = 4 };

static int open_files(pst_ring *ring, pst_error *err)
{
    ring->files = pst_heap_calloc(pst_store_file_count(ring->store), sizeof *ring->files);
    if (ring->files == NULL)
        return pst_fail_memory(err, "the table of files", pst_store_file_count(ring->store) * sizeof *ring->files);
    for (ring->file_count = 0; ring->file_count < pst_store_file_count(ring->store); ring->file_count++)
        PST_TRY(pst_store_file_open(ring->store, (uint32_t)ring->file_count, ring->io, &ring->files[ring->file_count],
                                    err));
    return 0;
}

static int list_stream(pst_ring *ring, pst_error *err)
{
    const pst_layout *layout = &ring->plan->layout;
    ring->stream = pst_heap_calloc(layout->part_count, sizeof *ring->stream);
    ring->resident_parts = pst_heap_calloc(layout->part_count, sizeof *ring->resident_parts);
    if (ring->stream == NULL || ring->resident_parts == NULL)
        return pst_fail_memory(err, "the list of parts", layout->part_count * sizeof(void *));
    for (uint32_t i = 0; i < layout->part_count; i++)
        if (ring->plan->places[i] == PST_PLACE_DISK && !ring->stages[layout->parts[i].stage].gathered &&
            layout->parts[i].extent_count > 0)
            ring->stream[ring->stream_count++] = i;
    return 0;
}

/* Where each stage's parts and units begin, and what is known of units. */
static int list_stages(pst_ring *ring, pst_error *err)
{
    const pst_layout *layout = &ring->plan->layout;
    uint32_t part = 0;
    uint64_t units = 0;
    ring->stage_states = pst_heap_calloc(ring->stage_count + 1, sizeof *ring->stage_states);
    if (ring->stage_states == NULL)
        return pst_fail_memory(err, "the stages' states", (ring->stage_count + 1) * sizeof *ring->stage_states);
    for (uint32_t s = 0; s <= ring->stage_count; s++) {
        while (part < layout->part_count && layout->parts[part].stage < s)
            part++;
        ring->stage_states[s].first_part = part;
        ring->stage_states[s].first_unit = (uint32_t)units;
        if (s == ring->stage_count || !pst_ring_is_chosen(&ring->stages[s]))
            continue;
        units += ring->stages[s].unit_count;
        ring->has_choices = true;
        if (units > UINT32_MAX)
            return pst_fail(err, PST_E_UNSUPPORTED, NULL, "a model of more than 2^32 experts");
    }
    ring->wanted = pst_heap_calloc(units + 1, sizeof *ring->wanted);
    ring->guessed = pst_heap_calloc(units + 1, sizeof *ring->guessed);
    ring->demand = pst_heap_calloc(units + 1, sizeof *ring->demand);
    if (ring->wanted == NULL || ring->guessed == NULL || ring->demand == NULL)
        return pst_fail_memory(err, "the experts' demand", units * (sizeof(float) + 2 * sizeof(bool)));
    return 0;
}

static int make_readers(pst_ring *ring, pst_error *err)
{
    const pst_plan *plan = ring->plan;
    uint32_t ops = plan->layout.max_extents ? plan->layout.max_extents : 1;
    ring->readers = pst_heap_calloc(plan->slots, sizeof *ring->readers);
    if (ring->readers == NULL)
        return pst_fail_memory(err, "the ring's readers", plan->slots * sizeof *ring->readers);
    for (uint32_t i = 0; i < plan->slots; i++) {
        pst_ring_reader *reader = &ring->readers[i];
        reader->ops = pst_heap_calloc(ops, sizeof *reader->ops);
        if (reader->ops == NULL)
            return pst_fail_memory(err, "the ring's reads", ops * sizeof *reader->ops);
        PST_TRY(pst_io_batch_create(ring->io, ops, &reader->batch, err));
    }
    return 0;
}

/* Locks memory if that was asked for; a wish, since without it all works as long as the system does not page. */
static void lock(pst_ring *ring, void *memory, uint64_t bytes, const char *what)
{
    pst_error err;
    if (!ring->lock_memory || pst_memory_lock(memory, bytes, what, &err) >= 0)
        return;
    ring->lock_memory = false;
    pst_log(PST_LOG_WARNING, "%s", err.message);
}

static int make_slots(pst_ring *ring, pst_error *err)
{
    const pst_plan *plan = ring->plan;
    ring->slot_count = plan->slots + plan->cache_slots;
    if (plan->slots == 0)
        return 0;
    PST_TRY(pst_memory_map(ring->plan->slot_memory_bytes, "the streaming ring", (void **)&ring->slot_memory, err));
    lock(ring, ring->slot_memory, ring->plan->slot_memory_bytes, "the streaming ring");
    PST_TRY(pst_io_register(ring->io, ring->slot_memory, ring->plan->slot_memory_bytes, err));
    ring->slots = pst_heap_calloc(ring->slot_count, sizeof *ring->slots);
    ring->free_slots = pst_heap_calloc(ring->slot_count, sizeof *ring->free_slots);
    ring->slot_demand = pst_heap_calloc(ring->slot_count, sizeof *ring->slot_demand);
    ring->slot_of = pst_heap_calloc(plan->layout.part_count, sizeof *ring->slot_of);
    if (ring->slots == NULL || ring->free_slots == NULL || ring->slot_demand == NULL || ring->slot_of == NULL)
        return pst_fail_memory(err, "the ring's slots", ring->slot_count * sizeof *ring->slots);
    for (uint32_t i = 0; i < plan->layout.part_count; i++)
        ring->slot_of[i] = PST_RING_NONE;
    for (uint32_t i = 0; i < ring->slot_count; i++) {
        ring->slots[i] = (pst_ring_slot){.part = PST_RING_NONE, .reader = PST_RING_NONE};
        ring->slot_demand[i] = INFINITY;
        ring->free_slots[ring->free_count++] = ring->slot_count - 1 - i; /* the first are used first */
    }
    return make_readers(ring, err);
}

/* One part on its way into resident memory. */
typedef struct pending_load {
    const pst_part *part;
    pst_io_batch *batch;
    pst_io_op *ops;
} pending_load;

static int finish_load(const pst_ring *ring, pending_load *load, pst_error *err)
{
    if (load->part == NULL)
        return 0;
    const pst_part *part = load->part;
    PST_TRY(pst_ring_wait_batch(ring, load->batch, err));
    load->part = NULL;
    return pst_ring_check_reads(ring, part, load->ops, err);
}

static int run_loads(pst_ring *ring, pending_load *loads, pst_error *err)
{
    const pst_layout *layout = &ring->plan->layout;
    uint64_t offset = 0;
    uint32_t turn = 0;
    for (uint32_t i = 0; i < layout->part_count; i++) {
        if (ring->plan->places[i] != PST_PLACE_HOST)
            continue;
        pending_load *load = &loads[turn++ % LOADS_IN_FLIGHT];
        PST_TRY(finish_load(ring, load, err));
        unsigned char *memory = ring->resident_memory + offset;
        const pst_part *part = &layout->parts[i];
        PST_TRY(pst_io_submit(load->batch, load->ops, pst_ring_prepare_reads(ring, part, memory, load->ops), err));
        load->part = part;
        ring->resident_parts[i] = memory;
        offset += part->memory_bytes;
    }
    for (uint32_t i = 0; i < LOADS_IN_FLIGHT; i++)
        PST_TRY(finish_load(ring, &loads[i], err));
    return 0;
}

static int load_resident(pst_ring *ring, pst_error *err)
{
    if (ring->plan->resident_memory_bytes == 0)
        return 0;
    PST_TRY(
        pst_memory_map(ring->plan->resident_memory_bytes, "resident weights", (void **)&ring->resident_memory, err));
    lock(ring, ring->resident_memory, ring->plan->resident_memory_bytes, "resident weights");
    pending_load loads[LOADS_IN_FLIGHT] = {0};
    uint32_t max_extents = ring->plan->layout.max_extents;
    int status = 0;
    for (uint32_t i = 0; i < LOADS_IN_FLIGHT && status == 0; i++) {
        loads[i].ops = pst_heap_calloc(max_extents, sizeof *loads[i].ops);
        status = loads[i].ops ? pst_io_batch_create(ring->io, max_extents, &loads[i].batch, err)
                              : pst_fail_memory(err, "the first reads", max_extents * sizeof *loads[i].ops);
    }
    if (status == 0)
        status = run_loads(ring, loads, err);
    if (status == 0 && ring->link != NULL)
        status = pst_link_register(ring->link, ring->resident_memory, ring->plan->resident_memory_bytes, err);
    for (uint32_t i = 0; i < LOADS_IN_FLIGHT; i++) {
        pst_io_batch_destroy(loads[i].batch);
        pst_heap_free(loads[i].ops);
    }
    return status;
}

int pst_ring_create(const pst_ring_config *config, pst_ring **out, pst_error *err)
{
    pst_ring *ring = pst_heap_calloc(1, sizeof *ring);
    if (ring == NULL)
        return pst_fail_memory(err, "the ring", sizeof *ring);
    ring->store = config->store;
    ring->stages = config->stages;
    ring->stage_count = config->stage_count;
    ring->plan = config->plan;
    ring->io = config->io;
    ring->trace = config->trace;
    ring->cancel = config->cancel;
    ring->lock_memory = config->lock_memory;
    ring->guess_quality = 1; /* until it is known better */
    int status;
    PST_TRY_GOTO(fail, open_files(ring, err));
    PST_TRY_GOTO(fail, list_stream(ring, err));
    PST_TRY_GOTO(fail, list_stages(ring, err));
    PST_TRY_GOTO(fail, make_slots(ring, err));
    PST_TRY_GOTO(fail, pst_ring_link_init(ring, config->device, err));
    PST_TRY_GOTO(fail, pst_ring_link_load(ring, err));
    PST_TRY_GOTO(fail, load_resident(ring, err));
    PST_TRY_GOTO(fail, pst_ring_gather_init(ring, err));
    *out = ring;
    return 0;
fail:
    pst_ring_destroy(ring);
    return status;
}

void pst_ring_free_slot_memory(pst_ring *ring)
{
    if (ring->slot_memory == NULL)
        return;
    if (ring->link != NULL)
        pst_link_unregister(ring->link, ring->slot_memory);
    pst_io_unregister(ring->io, ring->slot_memory);
    pst_memory_unmap(ring->slot_memory, ring->plan->slot_memory_bytes);
    ring->slot_memory = NULL;
}

void pst_ring_destroy(pst_ring *ring)
{
    if (ring == NULL)
        return;
    for (uint32_t i = 0; ring->readers != NULL && i < ring->plan->slots; i++)
        if (ring->readers[i].batch != NULL)
            pst_io_cancel(ring->readers[i].batch);
    for (uint32_t i = 0; ring->readers != NULL && i < ring->plan->slots; i++) {
        pst_io_batch_destroy(ring->readers[i].batch);
        pst_heap_free(ring->readers[i].ops);
    }
    pst_link_destroy(ring->link); /* it copies from what follows */
    pst_ring_gather_destroy(ring);
    for (size_t i = 0; i < ring->file_count; i++)
        pst_io_file_close(ring->files[i], NULL); /* only read from: nothing can be lost */
    ring->link = NULL;
    pst_ring_free_slot_memory(ring);
    pst_memory_unmap(ring->resident_memory, ring->plan->resident_memory_bytes);
    pst_heap_free(ring->readers);
    pst_heap_free(ring->slots);
    pst_heap_free(ring->free_slots);
    pst_heap_free(ring->slot_demand);
    pst_heap_free(ring->slot_of);
    pst_heap_free(ring->stage_states);
    pst_heap_free(ring->wanted);
    pst_heap_free(ring->guessed);
    pst_heap_free(ring->demand);
    pst_heap_free(ring->files);
    pst_heap_free(ring->stream);
    pst_heap_free(ring->resident_parts);
    pst_heap_free(ring);
}
