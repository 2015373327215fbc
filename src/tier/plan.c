/* SPDX-License-Identifier: Apache-2.0 */
/* The planner; see plan.h for the order in which room is given out. */
#include "tier/plan.h"

#include "base/error.h"
#include "base/heap.h"

enum {
    MIN_SLOTS = 2, /* one to compute with, one to read into */
    MAX_SLOTS = 8
};
static const uint64_t MAX_SLOT_BYTES = 32ull << 20; /* a drive of 10 GB/s fills it in 3 ms: longer than any latency */
static const uint64_t MIN_SLOT_BYTES = 1ull << 20;  /* below this, reads are too short to reach a drive's speed */
static const uint64_t MEBIBYTE = 1ull << 20;

static uint64_t round_up(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* What stays fixed while room is shared out. */
typedef struct plan_room {
    uint64_t free_bytes;    /* beyond process, fixed and the fewest rows */
    uint64_t smallest_slot; /* that a run of every tensor's rows fits in */
    uint64_t largest_slot;  /* that is of use */
} plan_room;

/* The least memory that works, or PST_E_BUDGET. */
static int check_smallest(const pst_plan_request *request, plan_room *out, pst_error *err)
{
    uint64_t whole = round_up(pst_layout_max_slot_bytes(request->stages, request->stage_count), PST_EXTENT_ALIGN);
    uint64_t least = round_up(pst_layout_min_slot_bytes(request->stages, request->stage_count), PST_EXTENT_ALIGN);
    out->smallest_slot = max_u64(least, min_u64(MIN_SLOT_BYTES, whole));
    out->largest_slot = max_u64(least, min_u64(MAX_SLOT_BYTES, whole));
    uint64_t needed = request->process_bytes + request->fixed_bytes + request->min_rows * request->row_bytes;
    uint64_t smallest = needed + MIN_SLOTS * out->smallest_slot;
    if (smallest > request->budget_bytes)
        return pst_fail(err, PST_E_BUDGET, NULL,
                        "a host memory budget of %.1f MiB is too small for this model and these lengths; the smallest "
                        "that works is %llu MiB",
                        (double)request->budget_bytes / (double)MEBIBYTE,
                        (unsigned long long)(smallest / MEBIBYTE + 4));
    out->free_bytes = request->budget_bytes - needed;
    return 0;
}

/* Ring: as many slots of the largest useful size as a quarter of the free room holds; smaller slots when that is not four. */
static void size_ring(const plan_room *have, uint64_t weight_memory, pst_plan *plan)
{
    uint64_t room = max_u64(have->free_bytes / 4, MIN_SLOTS * have->smallest_slot);
    room = min_u64(room, max_u64(weight_memory / 2, MIN_SLOTS * have->smallest_slot));
    uint64_t slot = min_u64(have->largest_slot, room / 4 / PST_EXTENT_ALIGN * PST_EXTENT_ALIGN);
    slot = max_u64(slot, have->smallest_slot);
    plan->slot_bytes = slot;
    plan->slots = (uint32_t)max_u64(MIN_SLOTS, min_u64(MAX_SLOTS, room / slot));
}

/* Rows per pass from at most half of the room, since the other half may keep weights. */
static uint32_t choose_rows(const pst_plan_request *request, uint64_t room)
{
    if (request->row_bytes == 0 || request->max_rows <= request->min_rows)
        return request->min_rows;
    uint64_t extra = min_u64(room / 2 / request->row_bytes, request->max_rows - request->min_rows);
    return request->min_rows + (uint32_t)extra;
}

static uint64_t sum_memory(const pst_plan *plan, const pst_stage *stages, bool gathered, uint64_t *weights)
{
    uint64_t memory = 0;
    *weights = 0;
    for (uint32_t i = 0; i < plan->layout.part_count; i++) {
        const pst_part *part = &plan->layout.parts[i];
        if (stages[part->stage].gathered && !gathered)
            continue;
        memory += part->memory_bytes;
        *weights += part->weight_bytes;
    }
    return memory;
}

/* Marks parts as resident, spread evenly over the pass so that the drive's work is, too, within both bounds. */
static void spread_resident(const pst_plan_request *request, pst_plan *plan, uint64_t room, uint64_t memory,
                            uint64_t weights)
{
    double share = memory ? (double)room / (double)memory : 0;
    double share_allowed = weights ? (double)request->max_resident_bytes / (double)weights : 0;
    share = share < share_allowed ? share : share_allowed;
    double due = 0;
    for (uint32_t i = 0; i < plan->layout.part_count; i++) {
        const pst_part *part = &plan->layout.parts[i];
        if (request->stages[part->stage].gathered)
            continue;
        due += share * (double)part->memory_bytes;
        bool fits = plan->resident_memory_bytes + part->memory_bytes <= room &&
                    plan->resident_bytes + part->weight_bytes <= request->max_resident_bytes;
        if (fits &&
            (double)(plan->resident_memory_bytes + part->memory_bytes) <= due + 0.5 * (double)part->memory_bytes) {
            plan->resident[i] = true;
            plan->resident_memory_bytes += part->memory_bytes;
            plan->resident_bytes += part->weight_bytes;
        } else {
            plan->streamed_bytes += part->weight_bytes;
        }
    }
}

static void keep_everything(pst_plan *plan, uint64_t memory, uint64_t weights)
{
    for (uint32_t i = 0; i < plan->layout.part_count; i++)
        plan->resident[i] = true;
    plan->resident_memory_bytes = memory;
    plan->resident_bytes = weights;
    plan->slots = 0;
    plan->slot_bytes = 0;
}

static int place(const pst_plan_request *request, const plan_room *have, pst_plan *plan, pst_error *err)
{
    PST_TRY(pst_layout_create(request->stages, request->stage_count, have->largest_slot, &plan->layout, err));
    uint64_t weights, all_weights;
    uint64_t memory = sum_memory(plan, request->stages, false, &weights);
    uint64_t all_memory = sum_memory(plan, request->stages, true, &all_weights);
    bool keep_all = all_memory <= have->free_bytes && all_weights <= request->max_resident_bytes;
    if (!keep_all) {
        size_ring(have, memory, plan);
        if (plan->slot_bytes < have->largest_slot) {
            pst_layout_destroy(&plan->layout);
            PST_TRY(pst_layout_create(request->stages, request->stage_count, plan->slot_bytes, &plan->layout, err));
            memory = sum_memory(plan, request->stages, false, &weights);
        }
    }
    plan->resident = pst_heap_calloc(plan->layout.part_count, sizeof *plan->resident);
    if (plan->resident == NULL)
        return pst_fail_memory(err, "the plan", plan->layout.part_count);
    uint64_t room = have->free_bytes;
    if (keep_all) {
        keep_everything(plan, all_memory, all_weights);
        room -= all_memory;
        plan->rows_per_pass = choose_rows(request, room * 2);
    } else {
        room -= plan->slots * plan->slot_bytes;
        plan->rows_per_pass = choose_rows(request, room);
        room -= (plan->rows_per_pass - request->min_rows) * request->row_bytes;
        spread_resident(request, plan, room, memory, weights);
    }
    plan->total_bytes = request->process_bytes + request->fixed_bytes + plan->rows_per_pass * request->row_bytes +
                        plan->slots * plan->slot_bytes + plan->resident_memory_bytes;
    return 0;
}

int pst_plan_create(const pst_plan_request *request, pst_plan *out, pst_error *err)
{
    plan_room have = {0};
    PST_TRY(check_smallest(request, &have, err));
    pst_plan plan = {0};
    int status = place(request, &have, &plan, err);
    if (status < 0) {
        pst_plan_destroy(&plan);
        return status;
    }
    *out = plan;
    return 0;
}

void pst_plan_destroy(pst_plan *plan)
{
    pst_layout_destroy(&plan->layout);
    pst_heap_free(plan->resident);
    *plan = (pst_plan){0};
}
