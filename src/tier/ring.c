/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The streaming ring; see ring.h. ahead.c reads ahead, cache.c keeps units, gather.c fetches single rows, measure.c measures,
 * ring_memory.c makes and fills the memory.
 */
#include <stdio.h>

#include "base/error.h"
#include "os/clock.h"
#include "tier/ring_internal.h"

/* How long the owner sleeps in a wait before it looks at the cancel flag again, or for copies that are done, whose slots the
 * drive could be filling. */
static const uint64_t CANCEL_CHECK_NS = 50 * 1000 * 1000, COPY_CHECK_NS = 200 * 1000;

uint32_t pst_ring_prepare_reads(const pst_ring *ring, const pst_part *part, unsigned char *memory, pst_io_op *ops)
{
    const pst_layout *layout = &ring->plan->layout;
    for (uint32_t i = 0; i < part->extent_count; i++) {
        const pst_extent *extent = &layout->extents[part->first_extent + i];
        ops[i] = (pst_io_op){.file = ring->files[extent->file],
                             .offset = extent->offset,
                             .buffer = memory + extent->slot_offset,
                             .bytes = extent->bytes,
                             .kind = PST_IO_READ,
                             .may_be_short = extent->bytes > extent->needed_bytes};
    }
    return part->extent_count;
}

int pst_ring_check_reads(const pst_ring *ring, const pst_part *part, const pst_io_op *ops, pst_error *err)
{
    const pst_layout *layout = &ring->plan->layout;
    for (uint32_t i = 0; i < part->extent_count; i++) {
        const pst_extent *extent = &layout->extents[part->first_extent + i];
        if (ops[i].result < (int64_t)extent->needed_bytes)
            return pst_fail_at(err, PST_E_SHORT, pst_io_file_path(ops[i].file),
                               extent->offset + (uint64_t)ops[i].result,
                               "the file ends early, %llu bytes before its weights do",
                               (unsigned long long)extent->needed_bytes - (unsigned long long)ops[i].result);
    }
    return 0;
}

int pst_ring_wait_batch(const pst_ring *ring, pst_io_batch *batch, pst_error *err)
{
    for (;;) {
        int status = pst_io_wait(batch, CANCEL_CHECK_NS, err);
        if (status <= 0)
            return status;
        if (atomic_load_explicit(ring->cancel, memory_order_relaxed))
            return pst_fail(err, PST_E_CANCELLED, NULL, "cancelled");
    }
}

/* Likewise, reading ahead meanwhile into the slots that the device gives back. */
static int wait_and_fill(pst_ring *ring, pst_io_batch *batch, pst_error *err)
{
    while (pst_ring_link_is_busy(ring)) {
        int status = pst_io_wait(batch, COPY_CHECK_NS, err);
        if (status <= 0)
            return status;
        if (atomic_load_explicit(ring->cancel, memory_order_relaxed))
            return pst_fail(err, PST_E_CANCELLED, NULL, "cancelled");
        PST_TRY(pst_ring_fill(ring, err));
    }
    return pst_ring_wait_batch(ring, batch, err);
}

/* Waits until a reader's part is there. */
static int await_part(pst_ring *ring, const pst_ring_reader *reader, const pst_part *part, pst_error *err)
{
    uint64_t start = pst_clock_ns();
    PST_TRY(wait_and_fill(ring, reader->batch, err));
    PST_TRY(pst_ring_check_reads(ring, part, reader->ops, err));
    uint64_t end = pst_clock_ns();
    const char *name = ring->stages[part->stage].name;
    ring->stats.wait_ns += end - start;
    ring->stats.weight_bytes += part->weight_bytes;
    pst_ring_trace_read(ring, reader, name, part->weight_bytes);
    pst_trace_span(ring->trace, PST_TRACE_WAIT, name, start, end, 0);
    return 0;
}

static int compute_view(pst_ring *ring, const pst_part *part, const pst_part_view *view, bool cached, pst_error *err)
{
    const pst_stage *stage = &ring->stages[part->stage];
    uint64_t start = pst_clock_ns();
    PST_TRY(stage->compute(stage->context, stage, view, err));
    uint64_t end = pst_clock_ns();
    ring->stats.compute_ns += end - start;
    if (ring->trace != NULL && cached) {
        char name[40];
        snprintf(name, sizeof name, "%.28s (cached)", stage->name);
        pst_trace_span(ring->trace, PST_TRACE_COMPUTE, name, start, end, part->weight_bytes);
    } else {
        pst_trace_span(ring->trace, PST_TRACE_COMPUTE, stage->name, start, end, part->weight_bytes);
    }
    return 0;
}

/* Computes a part in host memory: in `slot`, or PST_RING_NONE where it stays. */
static int compute_part(pst_ring *ring, uint32_t number, const unsigned char *memory, uint32_t slot, bool cached,
                        pst_error *err)
{
    const pst_part *part = &ring->plan->layout.parts[number];
    pst_part_view view = {
        .pieces = ring->plan->layout.pieces + part->first_piece, .piece_count = part->piece_count, .memory = memory};
    if (ring->link == NULL || part->extent_count == 0)
        return compute_view(ring, part, &view, cached, err);
    PST_TRY(pst_ring_link_send(ring, number, memory, slot, &view, err));
    PST_TRY(compute_view(ring, part, &view, cached, err));
    return pst_link_end(ring->link, err);
}

static void count_unit(pst_ring *ring, const pst_part *part, bool cached)
{
    if (ring->stages[part->stage].unit_count < 2)
        return;
    ++*(cached ? &ring->stats.cache_hits : &ring->stats.cache_misses);
    *(cached ? &ring->stats.cache_hit_bytes : &ring->stats.cache_miss_bytes) += part->weight_bytes;
}

/* Computes a part that streams, once it is there. */
static int run_streamed(pst_ring *ring, uint32_t number, pst_error *err)
{
    const pst_part *part = &ring->plan->layout.parts[number];
    PST_TRY(pst_ring_require(ring, number, err));
    uint32_t slot = ring->slot_of[number];
    const unsigned char *memory = pst_ring_slot_memory(ring, slot);
    bool cached = ring->slots[slot].reader == PST_RING_NONE;
    count_unit(ring, part, cached);
    if (cached) {
        pst_ring_pin(ring, slot, true); /* what the link gives back meanwhile may want its place */
        PST_TRY(compute_part(ring, number, memory, slot, true, err));
        pst_ring_pin(ring, slot, false);
        return 0;
    }
    pst_ring_reader *reader = &ring->readers[ring->slots[slot].reader];
    PST_TRY(await_part(ring, reader, part, err));
    PST_TRY(compute_part(ring, number, memory, slot, false, err));
    if (ring->link != NULL)
        return 0; /* the slot is the copy's, until pst_ring_link_reap */
    reader->state = PST_READER_IDLE;
    pst_ring_settle(ring, slot);
    return 0;
}

/* The part's turn: computes it if the pass needs it. */
static int run_part(pst_ring *ring, uint32_t number, pst_error *err)
{
    const pst_part *part = &ring->plan->layout.parts[number];
    const pst_stage *stage = &ring->stages[part->stage];
    const pst_ring_stage *state = &ring->stage_states[part->stage];
    if (pst_ring_is_chosen(stage) && state->chosen_pass != ring->now.pass) {
        pst_ring_choose(ring, part->stage);
        PST_TRY(pst_ring_fill(ring, err));
    }
    if (stage->gathered || !pst_ring_wants(ring, number, ring->now.pass))
        return 0;
    if (atomic_load_explicit(ring->cancel, memory_order_relaxed))
        return pst_fail(err, PST_E_CANCELLED, NULL, "cancelled");
    if (ring->plan->places[number] == PST_PLACE_DEVICE) {
        const pst_part_view view = pst_link_view(ring->link, number);
        PST_TRY(compute_view(ring, part, &view, false, err));
    } else if (ring->plan->places[number] == PST_PLACE_HOST || part->extent_count == 0)
        PST_TRY(compute_part(ring, number, ring->resident_parts[number], PST_RING_NONE, false, err));
    else
        PST_TRY(run_streamed(ring, number, err));
    ring->now.part = number + 1;
    return pst_ring_fill(ring, err);
}

int pst_ring_pass(pst_ring *ring, uint32_t rows, bool more, pst_error *err)
{
    const pst_plan *plan = ring->plan;
    ring->now = (pst_ring_place){ring->now.pass + 1, 0};
    ring->last_pass = more ? UINT64_MAX : ring->now.pass;
    ring->whole = plan->whole_rows > 0 && rows >= plan->whole_rows;
    pst_ring_begin_ahead(ring);
    PST_TRY(pst_ring_fill(ring, err));
    for (uint32_t i = 0; i < plan->layout.part_count; i++) {
        ring->now.part = i;
        PST_TRY(run_part(ring, i, err));
    }
    ring->now.part = plan->layout.part_count; /* the last parts may not have been wanted */
    return pst_ring_fill(ring, err);
}

bool pst_ring_is_resident(const pst_ring *ring)
{
    const pst_layout *layout = &ring->plan->layout;
    for (uint32_t i = 0; i < layout->part_count; i++) {
        const pst_stage *stage = &ring->stages[layout->parts[i].stage];
        if (stage->gathered)
            continue;
        if ((pst_ring_is_chosen(stage) && !stage->chosen_early) ||
            (ring->plan->places[i] != PST_PLACE_DEVICE && layout->parts[i].extent_count > 0))
            return false;
    }
    return ring->link != NULL;
}

void pst_ring_count_pass(pst_ring *ring, uint64_t begin_ns, uint64_t end_ns)
{
    ring->now = (pst_ring_place){ring->now.pass + 1, ring->plan->layout.part_count};
    ring->stats.compute_ns += end_ns - begin_ns;
    pst_trace_span(ring->trace, PST_TRACE_COMPUTE, "all stages", begin_ns, end_ns, ring->plan->device_resident_bytes);
}

bool pst_ring_is_locked(const pst_ring *ring)
{
    return ring->lock_memory;
}

bool pst_ring_is_direct(const pst_ring *ring)
{
    for (size_t i = 0; i < ring->file_count; i++)
        if (!pst_io_file_is_direct(ring->files[i]))
            return false;
    return true;
}

void pst_ring_get_stats(const pst_ring *ring, pst_ring_stats *out)
{
    *out = ring->stats;
}
