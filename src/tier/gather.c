/* SPDX-License-Identifier: Apache-2.0 */
/* Single rows of an embedding: from resident memory where they are there, else read in batches of aligned blocks. */
#include <stdlib.h>

#include "base/error.h"
#include "base/heap.h"
#include "os/clock.h"
#include "os/memory.h"
#include "tier/ring_internal.h"

/* A row at any file offset, with the blocks around it. */
static uint64_t slot_for(uint64_t row_bytes)
{
    return (row_bytes + PST_EXTENT_ALIGN - 1) / PST_EXTENT_ALIGN * PST_EXTENT_ALIGN + PST_EXTENT_ALIGN;
}

static uint64_t largest_slot(const pst_stage *stages, size_t stage_count)
{
    uint64_t most = 0;
    for (size_t s = 0; s < stage_count; s++)
        if (stages[s].gathered && slot_for(stages[s].tensors[0].row_bytes) > most)
            most = slot_for(stages[s].tensors[0].row_bytes);
    return most;
}

uint64_t pst_ring_gather_bytes(const pst_stage *stages, size_t stage_count)
{
    return PST_GATHER_ROWS * largest_slot(stages, stage_count);
}

static int by_first_row(const void *a, const void *b)
{
    const pst_resident_rows *x = a, *y = b;
    return x->first_row < y->first_row ? -1 : x->first_row > y->first_row;
}

/* Lists where resident memory holds rows of the tensor: as the gathered stage's own parts, or as another stage's (a tied
 * head). The same rows may be listed twice; either place serves. */
static int list_resident(const pst_ring *ring, pst_gatherer *gatherer, pst_error *err)
{
    const pst_layout *layout = &ring->plan->layout;
    const pst_tensor *wanted = ring->stages[gatherer->stage].tensors[0].tensor;
    gatherer->resident = pst_heap_calloc(layout->piece_count, sizeof *gatherer->resident);
    if (gatherer->resident == NULL)
        return pst_fail_memory(err, "the index of resident rows", layout->piece_count * sizeof *gatherer->resident);
    for (uint32_t i = 0; i < layout->part_count; i++) {
        const pst_part *part = &layout->parts[i];
        if (ring->plan->places[i] != PST_PLACE_HOST)
            continue;
        for (uint32_t p = 0; p < part->piece_count; p++) {
            const pst_piece *piece = &layout->pieces[part->first_piece + p];
            if (ring->stages[part->stage].tensors[piece->tensor].tensor == wanted)
                gatherer->resident[gatherer->resident_count++] =
                    (pst_resident_rows){piece->first_row, piece->rows, ring->resident_parts[i] + piece->offset};
        }
    }
    qsort(gatherer->resident, gatherer->resident_count, sizeof *gatherer->resident, by_first_row);
    return 0;
}

int pst_ring_gather_init(pst_ring *ring, pst_error *err)
{
    ring->gather_slot_bytes = largest_slot(ring->stages, ring->stage_count);
    if (ring->gather_slot_bytes == 0)
        return 0;
    ring->gatherers = pst_heap_calloc(ring->stage_count, sizeof *ring->gatherers);
    if (ring->gatherers == NULL)
        return pst_fail_memory(err, "the gathered stages", ring->stage_count * sizeof *ring->gatherers);
    for (uint32_t s = 0; s < ring->stage_count; s++) {
        if (!ring->stages[s].gathered)
            continue;
        pst_gatherer *gatherer = &ring->gatherers[ring->gatherer_count++];
        gatherer->stage = s;
        PST_TRY(list_resident(ring, gatherer, err));
    }
    ring->gather_memory_bytes = PST_GATHER_ROWS * ring->gather_slot_bytes;
    PST_TRY(pst_memory_map(ring->gather_memory_bytes, "embedding rows", (void **)&ring->gather_memory, err));
    return pst_io_batch_create(ring->io, PST_GATHER_ROWS, &ring->gather_batch, err);
}

void pst_ring_gather_destroy(pst_ring *ring)
{
    pst_io_batch_destroy(ring->gather_batch);
    pst_memory_unmap(ring->gather_memory, ring->gather_memory_bytes);
    for (uint32_t i = 0; i < ring->gatherer_count; i++)
        pst_heap_free(ring->gatherers[i].resident);
    pst_heap_free(ring->gatherers);
}

static const unsigned char *find_resident(const pst_gatherer *gatherer, uint64_t row, uint64_t row_bytes)
{
    uint32_t low = 0, high = gatherer->resident_count;
    while (low < high) { /* the last run that begins at or before row */
        uint32_t middle = low + (high - low) / 2;
        if (gatherer->resident[middle].first_row <= row)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return NULL;
    const pst_resident_rows *run = &gatherer->resident[low - 1];
    return row - run->first_row < run->rows ? run->data + (row - run->first_row) * row_bytes : NULL;
}

/* Reads the rows that batch_rows names (indexes into rows) and hands them on. */
static int fetch(pst_ring *ring, const pst_stage_tensor *tensor, const uint32_t *rows, const size_t *indexes,
                 uint32_t count, pst_ring_row *body, void *context, pst_error *err)
{
    const pst_tensor *source = tensor->tensor;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t offset = source->offset + rows[indexes[i]] * tensor->row_bytes;
        uint64_t start = offset / PST_EXTENT_ALIGN * PST_EXTENT_ALIGN;
        uint64_t end = (offset + tensor->row_bytes + PST_EXTENT_ALIGN - 1) / PST_EXTENT_ALIGN * PST_EXTENT_ALIGN;
        ring->gather_ops[i] = (pst_io_op){.file = ring->files[source->file],
                                          .offset = start,
                                          .buffer = ring->gather_memory + i * ring->gather_slot_bytes,
                                          .bytes = end - start,
                                          .kind = PST_IO_READ,
                                          .may_be_short = true};
    }
    uint64_t start_ns = pst_clock_ns();
    PST_TRY(pst_io_submit(ring->gather_batch, ring->gather_ops, count, err));
    PST_TRY(pst_ring_wait_batch(ring, ring->gather_batch, err));
    uint64_t end_ns = pst_clock_ns();
    ring->stats.wait_ns += end_ns - start_ns;
    pst_trace_span(ring->trace, PST_TRACE_WAIT, "embedding rows", start_ns, end_ns, count * tensor->row_bytes);
    for (uint32_t i = 0; i < count; i++) {
        const pst_io_op *op = &ring->gather_ops[i];
        uint64_t skip = source->offset + rows[indexes[i]] * tensor->row_bytes - op->offset;
        if (op->result < (int64_t)(skip + tensor->row_bytes))
            return pst_fail_at(err, PST_E_SHORT, pst_io_file_path(op->file), op->offset + (uint64_t)op->result,
                               "the file ends early, within its embedding");
        PST_TRY(body(context, indexes[i], (const unsigned char *)op->buffer + skip));
    }
    ring->stats.weight_bytes += count * tensor->row_bytes;
    return 0;
}

int pst_ring_gather(pst_ring *ring, uint32_t stage, const uint32_t *rows, size_t count, pst_ring_row *body,
                    void *context, pst_error *err)
{
    const pst_gatherer *gatherer = ring->gatherers;
    while (gatherer->stage != stage)
        gatherer++;
    const pst_stage_tensor *tensor = &ring->stages[stage].tensors[0];
    size_t indexes[PST_GATHER_ROWS];
    uint32_t pending = 0;
    for (size_t i = 0; i < count; i++) {
        const unsigned char *row = find_resident(gatherer, rows[i], tensor->row_bytes);
        if (row != NULL) {
            PST_TRY(body(context, i, row));
            continue;
        }
        indexes[pending++] = i;
        if (pending == PST_GATHER_ROWS) {
            PST_TRY(fetch(ring, tensor, rows, indexes, pending, body, context, err));
            pending = 0;
        }
    }
    return pending ? fetch(ring, tensor, rows, indexes, pending, body, context, err) : 0;
}
