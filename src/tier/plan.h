/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The planner: a pure function from stages and budgets to a placement. It never plans more than either budget.
 *
 * The process's memory is   process + fixed (KV cache, logits) + rows * row (activations) + ring + resident weights + what
 * it takes to know where everything is.
 * Room is given out in the order in which it pays: what a pass cannot do without; a ring deep enough to keep the drive
 * busy; rows per pass, since one pass over the weights serves them all; the rest to weights that then need no reading.
 * Of these a byte that every pass needs saves more than a byte of an expert, which a pass needs with the probability
 * 1 - (1 - k/E)^rows; so the former are kept first, and what is left makes the ring larger by slots in which experts stay
 * (the cache; ring.h). Whoever needs more than the cache's share of them finds them there.
 *
 * With a device (an accelerator with memory of its own) weights are computed with there. Its memory is   fixed + rows * row +
 * slots + weights that stay,   in the same order: slots that others pass through, rows, weights. What does not stay on the
 * device crosses the link in every pass that needs it, from the host's memory, which keeps of the rest what it can, in the
 * order above, or through it from the drive. What is fetched by row stays on the host.
 */
#ifndef PST_TIER_PLAN_H
#define PST_TIER_PLAN_H

#include "tier/layout.h"

/* Where a part stays between passes. */
typedef enum pst_place {
    PST_PLACE_DISK,  /* nowhere: read in every pass that needs it, unless the cache has it */
    PST_PLACE_HOST,  /* in host memory */
    PST_PLACE_DEVICE /* in the device's memory, and nowhere else */
} pst_place;

typedef struct pst_plan_request {
    const pst_stage *stages;
    size_t stage_count;
    uint64_t budget_bytes;  /* of the whole process */
    uint64_t process_bytes; /* what it uses already, and a reserve */
    uint64_t fixed_bytes;
    uint64_t row_bytes;
    uint32_t min_rows, max_rows; /* of a pass: fewest that work, most that are useful */
    uint64_t
        max_resident_bytes;   /* bound of weights kept, device and host, in tensor bytes; UINT64_MAX: whatever fits */
    uint64_t max_slot_bytes;  /* no slot larger than this where every row fits in less; 0: the planner's choice */
    uint32_t units_per_row;   /* that a row needs of a stage with more than one unit; 0: all */
    uint64_t max_cache_bytes; /* bound of the cache of units, within max_resident_bytes; 0: none */
    uint32_t spare_rows;      /* of a pass: how many are worth memory that nothing else has use for */
    bool keep_all;            /* every weight resident, else PST_E_BUDGET with the budget that this takes */
    /* A device; fixed_bytes and row_bytes are then those of the host beside it. */
    uint64_t device_budget_bytes; /* 0: there is none, or it is the host */
    uint64_t device_fixed_bytes, device_row_bytes;
} pst_plan_request;

typedef struct pst_plan {
    pst_layout layout;
    unsigned char *places; /* by part: a pst_place */
    uint32_t rows_per_pass;
    uint32_t slots;       /* 0: nothing streams, and no device is to be filled through them */
    uint32_t cache_slots; /* beside those: of the same size, in which parts of units stay while they are in demand */
    uint64_t slot_bytes;
    uint64_t slot_memory_bytes; /* of all slots; whole huge pages where that fits the budget, see plan.c */
    uint64_t resident_bytes, resident_memory_bytes; /* tensor bytes kept on the host, and the memory they take */
    uint64_t streamed_bytes; /* tensor bytes that stay nowhere, which a pass reads as far as it needs them and the cache
                                has not got them; gathered stages not included */
    uint64_t streamed_unit_bytes;       /* of these, parts of units of which a pass may not need all */
    uint64_t cache_bytes;               /* of these, about as many as the cache holds */
    uint64_t table_bytes;               /* room reckoned for the layout and the ring's tables */
    uint64_t total_bytes;               /* the process's memory under this plan; never above the budget */
    uint32_t unit_count, units_per_row; /* of the stage with most units, and as requested; 0: no units */
    uint32_t whole_rows; /* a pass of as many rows needs nearly all units: read them before they are chosen; 0: never */

    /* With a device, else 0. */
    uint32_t device_slots; /* of device_slot_bytes each; 0: nothing crosses the link */
    uint64_t device_slot_bytes;
    uint64_t device_resident_bytes,
        device_resident_memory_bytes; /* tensor bytes kept there, and the memory they take */
    uint64_t link_bytes;         /* tensor bytes that are not there, which cross the link as far as a pass needs them */
    uint64_t link_unit_bytes;    /* of these, parts of units of which a pass may not need all */
    uint64_t device_total_bytes; /* the device's memory under this plan; never above its budget */
} pst_plan;

/* PST_E_BUDGET names the smallest budget that works. The caller destroys *out. */
int pst_plan_create(const pst_plan_request *request, pst_plan *out, pst_error *err);
void pst_plan_destroy(pst_plan *plan);

/* Tensor bytes that a pass of so many rows is expected to read if all units are as much in demand (a skewed demand needs
 * less of the drive), in the long run. */
double pst_plan_expected_bytes(const pst_plan *plan, uint32_t rows);
/* Likewise, that cross the link. */
double pst_plan_link_bytes(const pst_plan *plan, uint32_t rows);
/* Share of E units that some of so many rows need when each needs k of them: 1 - (1 - k/E)^rows. */
double pst_plan_share_of_units(uint32_t unit_count, uint32_t units_per_row, uint32_t rows);

#endif
