/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stage is tensors and the function that computes with them; a model is an ordered list of stages. The planner and the
 * ring know nothing else of a model.
 *
 * A stage reaches its function in parts: a part holds pieces (whole vectors, runs of rows of matrices) in the order of the
 * stage's tensors, and fits one slot of the ring. A stage that fits is one part. The function sees every row of every
 * tensor once per pass, in order, and must not care where the cuts are (the bits may not depend on them).
 */
#ifndef PST_TIER_STAGE_H
#define PST_TIER_STAGE_H

#include <stdbool.h>

#include "penstock/types.h"
#include "store/store.h"

typedef struct pst_stage pst_stage;

typedef struct pst_stage_tensor {
    const pst_tensor *tensor; /* the store's */
    uint64_t rows;            /* it may be cut between rows; a vector has one */
    uint64_t row_bytes;
} pst_stage_tensor;

/* Rows [first_row, first_row + rows) of the stage's tensor number `tensor`, at `offset` bytes in the part's memory. */
typedef struct pst_piece {
    uint32_t tensor;
    uint64_t first_row, rows;
    uint64_t offset;
} pst_piece;

/* One part in memory, for the length of the call. */
typedef struct pst_part_view {
    const pst_piece *pieces;
    size_t piece_count;
    const unsigned char *memory;
    bool stays; /* the memory is the part's until the pass has ended, not only for the length of the call */
} pst_part_view;

/* A part in memory and its stage. */
typedef struct pst_stage_part {
    const pst_stage *stage;
    pst_part_view view;
} pst_stage_part;

typedef int pst_stage_compute(void *context, const pst_stage *stage, const pst_part_view *part, pst_error *err);

typedef uint32_t pst_stage_choose(void *context, const pst_stage *stage, bool *wanted);

struct pst_stage {
    const char *name;
    pst_stage_tensor *tensors; /* in order of use */
    uint32_t tensor_count;
    bool gathered; /* its rows are fetched one by one on demand (an embedding); never streamed, no function */
    pst_stage_compute *compute; /* called on the ring's owner thread */
    void *context;

    /* Units (experts): runs of consecutive tensors that a pass needs or does not need as one. Unit u is tensors
     * unit_first_tensor[u] up to unit_first_tensor[u + 1]; all the stage's tensors belong to units. 0: no units. No part
     * holds pieces of two units, and the function never sees a part of a unit that the pass does not need. */
    uint32_t unit_count;
    const uint32_t *unit_first_tensor; /* unit_count + 1 */
    /* Which units this pass needs: wanted[u], all set by it. Called when all stages before this one have been computed.
     * Returns how many. NULL: all of them, always. */
    pst_stage_choose *choose;
    /* `choose` needs nothing that the pass computes (a head that no row of this pass wants): it is called when the pass begins
     * instead, so that reading ahead knows. */
    bool chosen_early;
    /* The same as a guess, to read ahead by, called when the stage with units before this one has been chosen, or the pass
     * begins; may be wrong either way. Returns how many it wants; 0, or NULL: no idea, and those are read that most of the last
     * passes needed. */
    pst_stage_choose *guess;
};

#endif
