/* SPDX-License-Identifier: Apache-2.0 */
/* What the drive and the link give, measured with the ring's own slots, engine, reads and copies, before the first pass. */
#include "base/error.h"
#include "os/clock.h"
#include "tier/ring_internal.h"

/* How long measuring a slow drive may take, and how long the link is measured. */
static const uint64_t MEASURE_NS = 700 * 1000 * 1000, MEASURE_LINK_NS = 100 * 1000 * 1000;

/* Measuring under way. All bytes over all of the time: drives behind a hypervisor complete what is in flight at once, tens of
 * milliseconds of it, so that no shorter stretch says anything. */
typedef struct measurement {
    const pst_ring *ring;
    uint32_t parts, step; /* to read in all; from one to the next in the stream */
    uint64_t start_ns, done_bytes;
} measurement;

static const pst_part *nth_part(const pst_ring *ring, uint32_t number, uint32_t step)
{
    uint64_t place = (uint64_t)number * step % ring->stream_count;
    return &ring->plan->layout.parts[ring->stream[place]];
}

static const pst_part *measured_part(const measurement *m, uint32_t number)
{
    return nth_part(m->ring, number, m->step);
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
    m.start_ns = pst_clock_ns();
    for (uint32_t turn = 0; turn < m.parts + slots; turn++) {
        pst_ring_reader *reader = &ring->readers[turn % slots]; /* with the slot of the same number */
        if (turn >= slots && turn - slots < m.parts) {
            PST_TRY(pst_ring_wait_batch(ring, reader->batch, err));
            m.done_bytes += measured_part(&m, turn - slots)->weight_bytes;
        }
        if (turn < m.parts && pst_clock_ns() - m.start_ns > MEASURE_NS)
            m.parts = turn; /* a slow drive: what is in flight, no more */
        if (turn < m.parts) {
            const pst_part *part = measured_part(&m, turn);
            unsigned char *memory = pst_ring_slot_memory(ring, turn % slots);
            PST_TRY(pst_io_submit(reader->batch, reader->ops, pst_ring_prepare_reads(ring, part, memory, reader->ops),
                                  err));
        }
    }
    ring->measured_count = m.parts;
    ring->measured_step = m.step;
    *out = (double)m.done_bytes * 1e9 / (double)(pst_clock_ns() - m.start_ns + 1);
    return 0;
}

static pst_stage_part sample_of(const pst_ring *ring, const pst_part *part, const unsigned char *memory)
{
    return (pst_stage_part){.stage = &ring->stages[part->stage],
                            .view = {.pieces = ring->plan->layout.pieces + part->first_piece,
                                     .piece_count = part->piece_count,
                                     .memory = memory}};
}

/* A part of those that cross the link, in host memory: what measuring the drive left in the slots, or what stays there. */
static const unsigned char *find_source(const pst_ring *ring, uint32_t turn, uint32_t *out)
{
    uint32_t slots = ring->plan->slots, last = ring->measured_count, held = last < slots ? last : slots;
    if (held > 0) {
        uint32_t number = last - 1 - turn % held;
        *out = ring->stream[(uint64_t)number * ring->measured_step % ring->stream_count];
        return pst_ring_slot_memory(ring, number % slots);
    }
    const pst_layout *layout = &ring->plan->layout;
    for (uint32_t i = 0; i < layout->part_count; i++) {
        uint32_t part = (uint32_t)(((uint64_t)turn + i) % layout->part_count);
        if (ring->resident_parts[part] != NULL && !ring->stages[layout->parts[part].stage].gathered) {
            *out = part;
            return ring->resident_parts[part];
        }
    }
    return NULL;
}

int pst_ring_measure_link(pst_ring *ring, double *out, pst_error *err)
{
    *out = 0;
    if (ring->link == NULL || ring->plan->link_bytes == 0)
        return 0;
    uint64_t start_ns = pst_clock_ns(), bytes = 0;
    pst_link_set_trace(ring->link, NULL);
    for (uint32_t turn = 0; turn == 0 || pst_clock_ns() - start_ns < MEASURE_LINK_NS; turn++) {
        uint32_t part;
        pst_part_view view;
        const unsigned char *memory = find_source(ring, turn, &part);
        if (memory == NULL) /* none is in host memory, so that there is nothing to wait for either */
            break;
        PST_TRY(pst_ring_link_send(ring, part, memory, PST_RING_NONE, &view, err));
        PST_TRY(pst_link_end(ring->link, err));
        bytes += ring->plan->layout.parts[part].weight_bytes;
    }
    while (pst_link_pending(ring->link) > 0)
        PST_TRY(pst_ring_link_reap(ring, true, err));
    *out = (double)bytes * 1e9 / (double)(pst_clock_ns() - start_ns + 1);
    pst_link_set_trace(ring->link, ring->trace);
    ring->stats.link_bytes = ring->stats.link_wait_ns = 0; /* no pass's */
    return 0;
}

/* Those on the device. */
static uint32_t device_samples(const pst_ring *ring, pst_stage_part *out, uint32_t most)
{
    const pst_layout *layout = &ring->plan->layout;
    uint32_t count = pst_link_held(ring->link, out, most);
    for (uint32_t i = 0; i < layout->part_count && count < most; i++)
        if (ring->plan->places[i] == PST_PLACE_DEVICE && layout->parts[i].piece_count > 0)
            out[count++] = (pst_stage_part){&ring->stages[layout->parts[i].stage], pst_link_view(ring->link, i)};
    return count;
}

uint32_t pst_ring_samples(const pst_ring *ring, pst_stage_part *out, uint32_t most)
{
    const pst_layout *layout = &ring->plan->layout;
    uint32_t slots = ring->plan->slots, last = ring->measured_count, count = 0;
    if (ring->link != NULL)
        return device_samples(ring, out, most);
    for (uint32_t back = 1; back <= last && back <= slots && count < most; back++)
        out[count++] = sample_of(ring, nth_part(ring, last - back, ring->measured_step),
                                 pst_ring_slot_memory(ring, (last - back) % slots));
    for (uint32_t i = 0; last == 0 && i < layout->part_count && count < most; i++)
        if (ring->resident_parts[i] != NULL && !ring->stages[layout->parts[i].stage].gathered)
            out[count++] = sample_of(ring, &layout->parts[i], ring->resident_parts[i]);
    return count;
}
