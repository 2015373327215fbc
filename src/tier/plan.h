/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The planner: a pure function from stages and budgets to a placement. It never plans more than the budget.
 *
 * The process's memory is   process + fixed (KV cache, logits) + rows * row (activations) + ring + resident weights + what
 * it takes to know where everything is.
 * Room is given out in the order in which it pays: what a pass cannot do without; a ring deep enough to keep the drive
 * busy; rows per pass, since one pass over the weights serves them all; the rest to weights that then need no reading.
 */
#ifndef PST_TIER_PLAN_H
#define PST_TIER_PLAN_H

#include "tier/layout.h"

typedef struct pst_plan_request {
    const pst_stage *stages;
    size_t stage_count;
    uint64_t budget_bytes;  /* of the whole process */
    uint64_t process_bytes; /* what it uses already, and a reserve */
    uint64_t fixed_bytes;
    uint64_t row_bytes;
    uint32_t min_rows, max_rows; /* of a pass: fewest that work, most that are useful */
    uint64_t max_resident_bytes; /* bound of weights kept, in tensor bytes; UINT64_MAX: whatever fits; 0: none */
    uint64_t max_slot_bytes;     /* no slot larger than this where every row fits in less; 0: the planner's choice */
} pst_plan_request;

typedef struct pst_plan {
    pst_layout layout;
    bool *resident; /* by part */
    uint32_t rows_per_pass;
    uint32_t slots; /* 0: nothing streams */
    uint64_t slot_bytes;
    uint64_t resident_bytes, resident_memory_bytes; /* tensor bytes kept, and the memory they take */
    uint64_t streamed_bytes; /* tensor bytes that every pass reads; gathered stages not included */
    uint64_t table_bytes;    /* room reckoned for the layout and the ring's tables */
    uint64_t total_bytes;    /* the process's memory under this plan; never above the budget */
} pst_plan;

/* PST_E_BUDGET names the smallest budget that works. The caller destroys *out. */
int pst_plan_create(const pst_plan_request *request, pst_plan *out, pst_error *err);
void pst_plan_destroy(pst_plan *plan);

#endif
