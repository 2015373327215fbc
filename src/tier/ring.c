/* SPDX-License-Identifier: Apache-2.0 */
/* The streaming ring; see ring.h. gather.c fetches single rows, ring_memory.c makes and fills the memory. */
#include "tier/ring_internal.h"

#include "base/error.h"
#include "os/clock.h"

/* How long the owner sleeps in a wait before it looks at the cancel flag again. */
static const uint64_t CANCEL_CHECK_NS = 50 * 1000 * 1000;

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
            return pst_fail_at(err, PST_E_SHORT, pst_io_file_path(ops[i].file), extent->offset,
                               "the file ends early: %lld of %llu bytes", (long long)ops[i].result,
                               (unsigned long long)extent->needed_bytes);
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

/* Fills free slots with the next streamed parts. The stream of a pass is ring->stream[0..stream_count); `until` bounds the
 * parts counted from the first pass's first one. */
static int fill(pst_ring *ring, uint64_t until, pst_error *err)
{
    while (ring->submitted < until && ring->submitted - ring->consumed < ring->plan->slots) {
        pst_ring_slot *slot = &ring->slots[ring->submitted % ring->plan->slots];
        const pst_part *part = &ring->plan->layout.parts[ring->stream[ring->submitted % ring->stream_count]];
        uint32_t count = pst_ring_prepare_reads(ring, part, slot->memory, slot->ops);
        slot->submitted_ns = pst_clock_ns();
        PST_TRY(pst_io_submit(slot->batch, slot->ops, count, err));
        ring->submitted++;
    }
    return 0;
}

/* Waits until the next streamed part is in its slot. */
static int await_part(pst_ring *ring, const pst_part *part, const pst_ring_slot **out, pst_error *err)
{
    pst_ring_slot *slot = &ring->slots[ring->consumed % ring->plan->slots];
    uint64_t start = pst_clock_ns();
    PST_TRY(pst_ring_wait_batch(ring, slot->batch, err));
    PST_TRY(pst_ring_check_reads(ring, part, slot->ops, err));
    uint64_t end = pst_clock_ns();
    const char *name = ring->stages[part->stage].name;
    ring->stats.wait_ns += end - start;
    ring->stats.weight_bytes += part->weight_bytes;
    pst_trace_span(ring->trace, PST_TRACE_DRIVE, name, slot->submitted_ns, pst_io_batch_completed_ns(slot->batch),
                   part->weight_bytes);
    pst_trace_span(ring->trace, PST_TRACE_WAIT, name, start, end, 0);
    *out = slot;
    return 0;
}

static int compute_part(pst_ring *ring, const pst_part *part, const unsigned char *memory, pst_error *err)
{
    const pst_stage *stage = &ring->stages[part->stage];
    pst_part_view view = {.pieces = ring->plan->layout.pieces + part->first_piece,
                          .piece_count = part->piece_count,
                          .memory = memory};
    uint64_t start = pst_clock_ns();
    PST_TRY(stage->compute(stage->context, stage, &view, err));
    uint64_t end = pst_clock_ns();
    ring->stats.compute_ns += end - start;
    pst_trace_span(ring->trace, PST_TRACE_COMPUTE, stage->name, start, end, part->weight_bytes);
    return 0;
}

int pst_ring_pass(pst_ring *ring, bool more, pst_error *err)
{
    const pst_plan *plan = ring->plan;
    uint64_t until = more ? UINT64_MAX : ring->consumed + ring->stream_count;
    if (ring->stream_count > 0)
        PST_TRY(fill(ring, until, err));
    for (uint32_t i = 0; i < plan->layout.part_count; i++) {
        const pst_part *part = &plan->layout.parts[i];
        if (ring->stages[part->stage].gathered)
            continue;
        if (atomic_load_explicit(ring->cancel, memory_order_relaxed))
            return pst_fail(err, PST_E_CANCELLED, NULL, "cancelled");
        if (plan->resident[i]) {
            PST_TRY(compute_part(ring, part, ring->resident_parts[i], err));
            continue;
        }
        const pst_ring_slot *slot;
        PST_TRY(await_part(ring, part, &slot, err));
        PST_TRY(compute_part(ring, part, slot->memory, err));
        ring->consumed++;
        PST_TRY(fill(ring, until, err));
    }
    return 0;
}

int pst_ring_measure(pst_ring *ring, uint64_t bytes, double *out, pst_error *err)
{
    if (ring->stream_count == 0) {
        *out = 0;
        return 0;
    }
    /* The same slots and the same order of reads as a pass, but for strides over the stream so that neither one file nor
     * one place of the drive decides. */
    const pst_layout *layout = &ring->plan->layout;
    uint32_t slots = ring->plan->slots;
    uint64_t mean = ring->plan->streamed_bytes / ring->stream_count;
    uint64_t wanted = bytes / (mean ? mean : 1) + 1;
    uint32_t parts = wanted < ring->stream_count ? (uint32_t)wanted : ring->stream_count;
    uint64_t start = pst_clock_ns(), total = 0;
    for (uint32_t i = 0; i < parts + slots; i++) {
        pst_ring_slot *slot = &ring->slots[i % slots];
        if (i >= slots && i - slots < parts)
            PST_TRY(pst_ring_wait_batch(ring, slot->batch, err));
        if (i >= parts)
            continue;
        uint64_t place = (uint64_t)i * ring->stream_count / parts;
        const pst_part *part = &layout->parts[ring->stream[place]];
        PST_TRY(pst_io_submit(slot->batch, slot->ops, pst_ring_prepare_reads(ring, part, slot->memory, slot->ops), err));
        total += part->weight_bytes;
    }
    uint64_t elapsed = pst_clock_ns() - start;
    *out = (double)total * 1e9 / (double)(elapsed ? elapsed : 1);
    return 0;
}

void pst_ring_get_stats(const pst_ring *ring, pst_ring_stats *out)
{
    *out = ring->stats;
}
