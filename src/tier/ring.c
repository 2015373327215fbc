/* SPDX-License-Identifier: Apache-2.0 */
/* The streaming ring; see ring.h. gather.c fetches single rows, ring_memory.c makes and fills the memory. */
#include <stdlib.h>

#include "base/error.h"
#include "os/clock.h"
#include "tier/ring_internal.h"

/* How long the owner sleeps in a wait before it looks at the cancel flag again. */
static const uint64_t CANCEL_CHECK_NS = 50 * 1000 * 1000;
/* How long measuring a slow drive may take. */
static const uint64_t MEASURE_NS = 700 * 1000 * 1000;

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
    /* The drive turns to a part when the one before is done; so the spans of a track follow each other. */
    uint64_t done_ns = pst_io_batch_completed_ns(slot->batch);
    uint64_t begun_ns = slot->submitted_ns > ring->drive_done_ns ? slot->submitted_ns : ring->drive_done_ns;
    if (done_ns > begun_ns)
        pst_trace_span(ring->trace, PST_TRACE_DRIVE, name, begun_ns, done_ns, part->weight_bytes);
    ring->drive_done_ns = done_ns > ring->drive_done_ns ? done_ns : ring->drive_done_ns;
    pst_trace_span(ring->trace, PST_TRACE_WAIT, name, start, end, 0);
    *out = slot;
    return 0;
}

static int compute_part(pst_ring *ring, const pst_part *part, const unsigned char *memory, pst_error *err)
{
    const pst_stage *stage = &ring->stages[part->stage];
    pst_part_view view = {
        .pieces = ring->plan->layout.pieces + part->first_piece, .piece_count = part->piece_count, .memory = memory};
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

enum { READINGS = 8 };

/* Measuring under way. Each eighth of the parts makes one reading of the rate; the median counts, which neither a burst
 * from a cache below nor a moment's other work on the drive moves. */
typedef struct measurement {
    const pst_ring *ring;
    uint32_t parts, step, each; /* to read in all; from one to the next in the stream; in a reading */
    uint64_t start_ns, mark_ns, mark_bytes, done_bytes;
    double readings[READINGS];
    uint32_t reading_count;
} measurement;

static const pst_part *measured_part(const measurement *m, uint32_t number)
{
    uint64_t place = (uint64_t)number * m->step % m->ring->stream_count;
    return &m->ring->plan->layout.parts[m->ring->stream[place]];
}

static void note_done(measurement *m, uint32_t done)
{
    if (done % m->each != 0 || m->reading_count == READINGS)
        return;
    uint64_t now = pst_clock_ns();
    m->readings[m->reading_count++] = (double)(m->done_bytes - m->mark_bytes) * 1e9 / (double)(now - m->mark_ns + 1);
    m->mark_ns = now;
    m->mark_bytes = m->done_bytes;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

int pst_ring_measure(pst_ring *ring, uint64_t bytes, double *out, pst_error *err)
{
    *out = 0;
    if (ring->stream_count == 0)
        return 0;
    uint32_t slots = ring->plan->slots;
    uint64_t mean = ring->plan->streamed_bytes / ring->stream_count;
    measurement m = {.ring = ring, .parts = (uint32_t)(bytes / (mean ? mean : 1)) + 1};
    m.step = ring->stream_count / m.parts + 1; /* neither one file nor one place of the drive shall decide */
    m.each = m.parts / READINGS ? m.parts / READINGS : 1;
    m.start_ns = m.mark_ns = pst_clock_ns();
    for (uint32_t turn = 0; turn < m.parts + slots; turn++) {
        pst_ring_slot *slot = &ring->slots[turn % slots];
        if (turn >= slots && turn - slots < m.parts) {
            PST_TRY(pst_ring_wait_batch(ring, slot->batch, err));
            m.done_bytes += measured_part(&m, turn - slots)->weight_bytes;
            note_done(&m, turn - slots + 1);
        }
        if (turn < m.parts && pst_clock_ns() - m.start_ns > MEASURE_NS)
            m.parts = turn; /* a slow drive: what is in flight, no more */
        if (turn < m.parts) {
            const pst_part *part = measured_part(&m, turn);
            PST_TRY(pst_io_submit(slot->batch, slot->ops, pst_ring_prepare_reads(ring, part, slot->memory, slot->ops),
                                  err));
        }
    }
    qsort(m.readings, m.reading_count, sizeof *m.readings, by_size);
    *out = m.reading_count ? m.readings[m.reading_count / 2]
                           : (double)m.done_bytes * 1e9 / (double)(pst_clock_ns() - m.start_ns + 1);
    return 0;
}

const void *pst_ring_weights(const pst_ring *ring, uint64_t *bytes)
{
    *bytes = ring->slot_memory ? ring->plan->slots * ring->plan->slot_bytes : ring->plan->resident_memory_bytes;
    return ring->slot_memory ? ring->slot_memory : ring->resident_memory;
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
