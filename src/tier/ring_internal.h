/* SPDX-License-Identifier: Apache-2.0 */
/* What ring.c (the pass), gather.c (single rows) and ring_memory.c (making and filling) share. */
#ifndef PST_TIER_RING_INTERNAL_H
#define PST_TIER_RING_INTERNAL_H

#include "tier/ring.h"

enum { PST_GATHER_ROWS = 64 }; /* rows fetched in one batch */

typedef struct pst_ring_slot {
    unsigned char *memory;
    pst_io_batch *batch;
    pst_io_op *ops; /* layout.max_extents */
    uint64_t submitted_ns;
} pst_ring_slot;

/* A run of rows of a gathered tensor that lies in resident memory. */
typedef struct pst_resident_rows {
    uint64_t first_row, rows;
    const unsigned char *data;
} pst_resident_rows;

/* How one gathered stage's rows are found. */
typedef struct pst_gatherer {
    uint32_t stage;
    pst_resident_rows *resident; /* sorted by first_row */
    uint32_t resident_count;
} pst_gatherer;

struct pst_ring {
    const pst_store *store;
    const pst_stage *stages;
    size_t stage_count;
    const pst_plan *plan;
    pst_io *io;
    pst_trace *trace;
    const atomic_bool *cancel;

    pst_io_file **files; /* by the store's file number */
    size_t file_count;
    unsigned char *slot_memory, *resident_memory;
    const unsigned char **resident_parts; /* by part; NULL where it streams */
    pst_ring_slot *slots;

    uint32_t *stream; /* numbers of the streamed parts, in order of use */
    uint32_t stream_count;
    uint64_t submitted, consumed; /* streamed parts since the first pass began */
    uint64_t drive_done_ns;       /* when the last part noted in the timeline had come */

    pst_gatherer *gatherers;
    uint32_t gatherer_count;
    unsigned char *gather_memory;
    uint64_t gather_memory_bytes, gather_slot_bytes;
    pst_io_batch *gather_batch;
    pst_io_op gather_ops[PST_GATHER_ROWS];

    pst_ring_stats stats;
};

/* Writes a part's reads into ops; their count. */
uint32_t pst_ring_prepare_reads(const pst_ring *ring, const pst_part *part, unsigned char *memory, pst_io_op *ops);
/* Whether every read brought what the part needs. */
int pst_ring_check_reads(const pst_ring *ring, const pst_part *part, const pst_io_op *ops, pst_error *err);
/* Waits for a batch, or fails with PST_E_CANCELLED (the batch is then still in flight). */
int pst_ring_wait_batch(const pst_ring *ring, pst_io_batch *batch, pst_error *err);

int pst_ring_gather_init(pst_ring *ring, pst_error *err);
void pst_ring_gather_destroy(pst_ring *ring);

#endif
