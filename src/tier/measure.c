/* SPDX-License-Identifier: Apache-2.0 */
/* What the drive gives, measured with the ring's own slots, engine and reads, before the first pass. */
#include <stdlib.h>

#include "base/error.h"
#include "os/clock.h"
#include "tier/ring_internal.h"

/* How long measuring a slow drive may take. */
static const uint64_t MEASURE_NS = 700 * 1000 * 1000;

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
        pst_ring_reader *reader = &ring->readers[turn % slots]; /* with the slot of the same number */
        if (turn >= slots && turn - slots < m.parts) {
            PST_TRY(pst_ring_wait_batch(ring, reader->batch, err));
            m.done_bytes += measured_part(&m, turn - slots)->weight_bytes;
            note_done(&m, turn - slots + 1);
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
    qsort(m.readings, m.reading_count, sizeof *m.readings, by_size);
    *out = m.reading_count ? m.readings[m.reading_count / 2]
                           : (double)m.done_bytes * 1e9 / (double)(pst_clock_ns() - m.start_ns + 1);
    return 0;
}
