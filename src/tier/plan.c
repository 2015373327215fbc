/* SPDX-License-Identifier: Apache-2.0 */
/* The planner; see plan.h for the order in which room is given out. */
#include "tier/plan.h"

#include <math.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"

enum {
    MIN_SLOTS = 2, /* one to compute with, one to read into */
    MAX_SLOTS = 8,
    LONG_RING_SLOTS = 16, /* where nothing else has use for the memory */
    MAX_UNIT_SLOTS = 64,  /* where a slot is an expert, which may be small */
    SLACK_MEBIBYTES = 2,  /* rounding up, and what a process's own size varies by from one start to the next */
    DEVICE_SLOTS = 3,     /* one to compute with, one that is filled, one that is already waiting */
    LOADING_SLOTS = 4,    /* that a device is filled through where nothing streams */
    ENOUGH_ROWS = 256     /* of a pass on a device */
};
static const uint64_t MAX_SLOT_BYTES = 32ull << 20; /* a drive of 10 GB/s fills it in 3 ms: longer than any latency */
static const uint64_t MIN_SLOT_BYTES = 1ull << 20;  /* below this, reads are too short to reach a drive's speed */
static const uint64_t SHORT_SLOTS_BYTES = 64ull << 20; /* of a device: more of small ones, since a copy is soon over */
static const uint64_t MEBIBYTE = 1ull << 20;
static const uint64_t HUGE_PAGE_BYTES = 2ull << 20;
/* From this share of units on, reading those that turn out not to be needed costs less than the drive's standing still until
 * they are chosen. */
static const double WHOLE_SHARE = 0.8;

/* What stays fixed while room is shared out. */
typedef struct plan_room {
    uint64_t needed_bytes;  /* process, fixed, tables and the fewest rows */
    uint64_t free_bytes;    /* beyond process, fixed, tables and the fewest rows */
    uint64_t smallest_slot; /* that a run of every tensor's rows fits in */
    uint64_t largest_slot;  /* that is of use */
    uint64_t table_bytes;
    uint64_t device_free_bytes; /* beyond fixed and the fewest rows */
    uint32_t device_rows;       /* that the device had room for, when it was last filled */
} plan_room;

/* What the ring knows of a part and of a slot of its cache (ring_internal.h), and the link of a part and a piece (link.c),
 * rounded up. */
enum {
    RING_PART_BYTES = 48,
    RING_SLOT_BYTES = 32,
    RING_UNIT_BYTES = 8,
    RING_STAGE_BYTES = 64,
    LINK_PART_BYTES = 16,
    LINK_PIECE_BYTES = sizeof(pst_piece) + 3 * sizeof(uint64_t)
};

static bool has_device(const pst_plan_request *request)
{
    return request->device_budget_bytes > 0;
}

/* What the layout and the ring's tables take at most with slots of this size: a cut leaves no part of a tensor less than
 * half full but its first and its last, a tensor that fits a slot begins one part at most, and every array has grown by
 * doubling. There are never more slots that cache than parts. */
static uint64_t table_bytes(const pst_plan_request *request, uint64_t slot_bytes)
{
    uint64_t parts = 0, tensors = 0, units = 0;
    for (size_t s = 0; s < request->stage_count; s++) {
        for (uint32_t t = 0; t < request->stages[s].tensor_count; t++) {
            const pst_stage_tensor *tensor = &request->stages[s].tensors[t];
            uint64_t fit = (slot_bytes - 2 * PST_EXTENT_ALIGN) / pst_max(tensor->row_bytes, 1);
            parts += tensor->rows <= fit ? 1 : 2 * tensor->rows / pst_max(fit, 1) + 2;
            tensors++;
        }
        units += pst_max(request->stages[s].unit_count, 1);
    }
    parts += units;
    uint64_t pieces = parts + tensors;
    uint64_t per_part = 2 * sizeof(pst_part) + sizeof(unsigned char) + RING_PART_BYTES + RING_SLOT_BYTES;
    uint64_t per_piece = 2 * sizeof(pst_piece) + 2 * sizeof(pst_extent) + 3 * sizeof(uint64_t);
    per_part += has_device(request) ? LINK_PART_BYTES : 0;
    per_piece += has_device(request) ? LINK_PIECE_BYTES : 0;
    return parts * per_part + pieces * per_piece + units * RING_UNIT_BYTES + request->stage_count * RING_STAGE_BYTES;
}

/* Slots of which two and the tables together take little: the smaller the slots, the larger the tables beyond what no slot
 * makes smaller. */
static uint64_t balanced_slot(const pst_plan_request *request)
{
    uint64_t slot = MIN_SLOT_BYTES, least = table_bytes(request, UINT64_MAX / 2);
    while (MIN_SLOTS * slot < table_bytes(request, slot) - least)
        slot *= 2;
    return slot;
}

static int fail_budget(const char *whose, uint64_t budget, uint64_t smallest, uint64_t slack, pst_error *err)
{
    return pst_fail(err, PST_E_BUDGET, NULL,
                    "a %s memory budget of %.6g MiB is too small for this model and these lengths; the smallest that "
                    "works is %lluMi",
                    whose, (double)budget / (double)MEBIBYTE, (unsigned long long)(smallest / MEBIBYTE + slack));
}

/* The device's part of check_smallest. A slot leaves three quarters of the device's room to rows and weights. */
static int check_device(const pst_plan_request *request, plan_room *out, pst_error *err)
{
    uint64_t needed = request->device_fixed_bytes + request->min_rows * request->device_row_bytes;
    uint64_t smallest = needed + MIN_SLOTS * out->smallest_slot;
    if (smallest > request->device_budget_bytes)
        return fail_budget("device", request->device_budget_bytes, smallest, 1, err);
    out->device_free_bytes = request->device_budget_bytes - needed;
    uint64_t most = pst_round_down(out->device_free_bytes / 4 / DEVICE_SLOTS, PST_EXTENT_ALIGN);
    out->largest_slot = pst_max(out->smallest_slot, pst_min(out->largest_slot, most));
    return 0;
}

/* The least memory that works, or PST_E_BUDGET. */
static int check_smallest(const pst_plan_request *request, plan_room *out, pst_error *err)
{
    uint64_t whole = pst_round_up(pst_layout_max_slot_bytes(request->stages, request->stage_count), PST_EXTENT_ALIGN);
    uint64_t least = pst_round_up(pst_layout_min_slot_bytes(request->stages, request->stage_count), PST_EXTENT_ALIGN);
    uint64_t limit = request->max_slot_bytes ? pst_round_up(request->max_slot_bytes, PST_EXTENT_ALIGN) : UINT64_MAX;
    out->smallest_slot = pst_max(least, pst_min(limit, pst_min(balanced_slot(request), whole)));
    out->largest_slot = pst_max(out->smallest_slot, pst_min(limit, pst_min(MAX_SLOT_BYTES, whole)));
    out->table_bytes = table_bytes(request, out->smallest_slot);
    uint64_t needed =
        request->process_bytes + request->fixed_bytes + request->min_rows * request->row_bytes + out->table_bytes;
    uint64_t smallest = needed + MIN_SLOTS * out->smallest_slot;
    if (smallest > request->budget_bytes && !request->keep_all)
        return fail_budget("host", request->budget_bytes, smallest, SLACK_MEBIBYTES, err);
    out->needed_bytes = needed;
    out->free_bytes = request->budget_bytes > needed ? request->budget_bytes - needed : 0;
    return has_device(request) ? check_device(request, out, err) : 0;
}

typedef struct plan_slots {
    uint32_t count;
    uint64_t bytes; /* of one */
} plan_slots;

/* The largest slot up to `most` that the units' parts fill: an expert of 44 MB takes two slots of 22, not 32 and 12. */
static uint64_t fit_units(const pst_plan_request *request, uint64_t most, uint64_t smallest)
{
    uint64_t slot = pst_layout_unit_slot_bytes(request->stages, request->stage_count, 1);
    if (slot == 0)
        return most;
    for (uint64_t parts = slot / most + 1; slot > most; parts++) {
        uint64_t smaller = pst_layout_unit_slot_bytes(request->stages, request->stage_count, parts);
        if (smaller <= smallest || smaller + PST_EXTENT_ALIGN > slot)
            return pst_max(pst_min(smaller, most), smallest); /* rows as large as parts: it does not get better */
        slot = smaller;
    }
    return pst_max(slot, smallest);
}

/* Ring: as many slots of the largest useful size as a quarter of the free room holds; smaller slots when that is not four. */
static plan_slots size_ring(const pst_plan_request *request, const plan_room *have, uint64_t weight_memory)
{
    uint64_t room = pst_max(have->free_bytes / 4, MIN_SLOTS * have->smallest_slot);
    room = pst_min(room, pst_max(weight_memory / 2, MIN_SLOTS * have->smallest_slot));
    uint64_t slot = pst_min(have->largest_slot, room / 4 / PST_EXTENT_ALIGN * PST_EXTENT_ALIGN);
    slot = pst_max(slot, have->smallest_slot);
    uint64_t fitted = fit_units(request, slot, have->smallest_slot);
    uint64_t most = fitted < slot ? pst_min(MAX_UNIT_SLOTS, MAX_SLOTS * have->largest_slot / fitted) : MAX_SLOTS;
    return (plan_slots){(uint32_t)pst_max(MIN_SLOTS, pst_min(most, room / fitted)), fitted};
}

/* Rows per pass, up to `most`, from at most half of the room, since the other half may keep weights. */
static uint32_t choose_rows(const pst_plan_request *request, uint64_t row_bytes, uint32_t most, uint64_t room)
{
    if ((row_bytes == 0 && !has_device(request)) || most <= request->min_rows)
        return request->min_rows;
    uint64_t extra = most - request->min_rows;
    extra = row_bytes > 0 ? pst_min(room / 2 / row_bytes, extra) : extra;
    return request->min_rows + (uint32_t)extra;
}

/* Whether a gathered stage's tensor is another stage's, too (a tied head), whose rows serve it if they are in host memory. */
static bool is_shared(const pst_plan_request *request, const pst_plan *plan, const pst_stage *gathered)
{
    bool found = false;
    for (size_t s = 0; s < request->stage_count; s++)
        for (uint32_t t = 0; t < request->stages[s].tensor_count && !request->stages[s].gathered; t++)
            found = found || request->stages[s].tensors[t].tensor == gathered->tensors[0].tensor;
    for (uint32_t i = 0; found && has_device(request) && i < plan->layout.part_count; i++) {
        const pst_part *part = &plan->layout.parts[i];
        for (uint32_t p = 0; plan->places[i] == PST_PLACE_DEVICE && p < part->piece_count; p++) {
            uint32_t tensor = plan->layout.pieces[part->first_piece + p].tensor;
            if (request->stages[part->stage].tensors[tensor].tensor == gathered->tensors[0].tensor)
                return false;
        }
    }
    return found;
}

/* Parts by how certain it is that a pass needs them: a single unit is skipped only now and then. */
typedef enum plan_kind { EVERY_PASS, SOME_UNITS, BY_ROW } plan_kind;

static plan_kind kind_of(const pst_plan_request *request, const pst_part *part)
{
    const pst_stage *stage = &request->stages[part->stage];
    if (stage->gathered)
        return BY_ROW;
    return stage->unit_count > 1 ? SOME_UNITS : EVERY_PASS;
}

/* Whether the host may keep the part: it is not the device's, nor there as another stage's. */
static bool is_hosts(const pst_plan_request *request, const pst_plan *plan, uint32_t part)
{
    const pst_part *p = &plan->layout.parts[part];
    if (plan->places[part] == PST_PLACE_DEVICE)
        return false;
    return kind_of(request, p) != BY_ROW || !is_shared(request, plan, &request->stages[p->stage]);
}

/* Memory and tensor bytes of the parts of a kind that the host may keep. */
static uint64_t sum_memory(const pst_plan_request *request, const pst_plan *plan, plan_kind kind, uint64_t *weights)
{
    uint64_t memory = 0;
    *weights = 0;
    for (uint32_t i = 0; i < plan->layout.part_count; i++) {
        const pst_part *part = &plan->layout.parts[i];
        if (kind_of(request, part) != kind || !is_hosts(request, plan, i))
            continue;
        memory += part->memory_bytes;
        *weights += part->weight_bytes;
    }
    return memory;
}

/* ---- the device ---- */

/* Tensor bytes that may still be kept. */
static uint64_t may_keep(const pst_plan_request *request, const pst_plan *plan)
{
    return request->max_resident_bytes - plan->device_resident_bytes - plan->resident_bytes;
}

static void put_on_device(pst_plan *plan, uint32_t number)
{
    const pst_part *part = &plan->layout.parts[number];
    plan->places[number] = PST_PLACE_DEVICE;
    plan->device_resident_memory_bytes += part->device_bytes;
    plan->device_resident_bytes += part->weight_bytes;
}

/* Puts parts of a kind on the device, spread evenly over the pass so that the link's work is, too, within both bounds. Whether
 * all went there. */
static bool spread_on_device(const pst_plan_request *request, pst_plan *plan, plan_kind kind, uint64_t room)
{
    uint64_t memory = 0, weights = 0;
    for (uint32_t i = 0; i < plan->layout.part_count; i++) {
        bool counts = kind_of(request, &plan->layout.parts[i]) == kind;
        memory += counts ? plan->layout.parts[i].device_bytes : 0;
        weights += counts ? plan->layout.parts[i].weight_bytes : 0;
    }
    uint64_t end = plan->device_resident_memory_bytes + room, allowed = may_keep(request, plan);
    double share = memory ? (double)room / (double)memory : 0;
    double share_allowed = weights ? (double)allowed / (double)weights : 0;
    double due = (double)plan->device_resident_memory_bytes;
    share = share < share_allowed ? share : share_allowed;
    bool all = true;
    for (uint32_t i = 0; i < plan->layout.part_count; i++) {
        const pst_part *part = &plan->layout.parts[i];
        if (kind_of(request, part) != kind)
            continue;
        uint64_t after = plan->device_resident_memory_bytes + part->device_bytes;
        due += share * (double)part->device_bytes;
        if (after <= end && part->weight_bytes <= may_keep(request, plan) &&
            (double)after <= due + 0.5 * (double)part->device_bytes)
            put_on_device(plan, i);
        else
            all = false;
    }
    return all;
}

/* All on the device, if enough rows still fit then. */
static bool put_all_on_device(const pst_plan_request *request, const plan_room *have, uint32_t most_rows,
                              pst_plan *plan)
{
    uint64_t memory = 0, weights = 0;
    for (uint32_t i = 0; i < plan->layout.part_count; i++) {
        bool counts = kind_of(request, &plan->layout.parts[i]) != BY_ROW;
        memory += counts ? plan->layout.parts[i].device_bytes : 0;
        weights += counts ? plan->layout.parts[i].weight_bytes : 0;
    }
    if (memory > have->device_free_bytes || weights > request->max_resident_bytes)
        return false;
    uint64_t room = have->device_free_bytes - memory;
    plan->rows_per_pass = choose_rows(request, request->device_row_bytes, most_rows, room * 2);
    if (plan->rows_per_pass < most_rows && plan->rows_per_pass < ENOUGH_ROWS)
        return false;
    for (uint32_t i = 0; i < plan->layout.part_count; i++)
        if (kind_of(request, &plan->layout.parts[i]) != BY_ROW)
            put_on_device(plan, i);
    return true;
}

/* Slots, rows and weights beside each other. */
static void share_device(const pst_plan_request *request, const plan_room *have, uint32_t most_rows, pst_plan *plan)
{
    uint64_t slot = PST_DEVICE_ALIGN, room = have->device_free_bytes;
    for (uint32_t i = 0; i < plan->layout.part_count; i++)
        if (kind_of(request, &plan->layout.parts[i]) != BY_ROW)
            slot = pst_max(slot, plan->layout.parts[i].device_bytes);
    plan->device_slot_bytes = slot;
    uint64_t most = pst_min(pst_min(LONG_RING_SLOTS, SHORT_SLOTS_BYTES / slot), room / 8 / slot);
    plan->device_slots = (uint32_t)pst_max(most, DEVICE_SLOTS * slot <= room / 2 ? DEVICE_SLOTS : MIN_SLOTS);
    room -= plan->device_slots * slot;
    /* Rows beyond those that keep it busy are worth less than weights: an eighth of the room. */
    uint32_t enough = (uint32_t)pst_min(ENOUGH_ROWS, most_rows);
    uint32_t few = choose_rows(request, request->device_row_bytes, enough, room);
    uint32_t many = choose_rows(request, request->device_row_bytes, most_rows, room / 4);
    plan->rows_per_pass = few > many ? few : many;
    room -= (plan->rows_per_pass - request->min_rows) * request->device_row_bytes;
    if (spread_on_device(request, plan, EVERY_PASS, room))
        spread_on_device(request, plan, SOME_UNITS, room - plan->device_resident_memory_bytes);
}

/* The device's share of the work, for at most so many rows. */
static void fill_device(const pst_plan_request *request, plan_room *have, uint32_t most_rows, pst_plan *plan)
{
    plan->rows_per_pass = most_rows;
    if (has_device(request) && !put_all_on_device(request, have, most_rows, plan))
        share_device(request, have, most_rows, plan);
    have->device_rows = plan->rows_per_pass;
}

static uint64_t device_total(const pst_plan_request *request, const pst_plan *plan)
{
    return request->device_fixed_bytes + plan->rows_per_pass * request->device_row_bytes +
           plan->device_slots * plan->device_slot_bytes + plan->device_resident_memory_bytes;
}

/* What crosses the link. */
static void describe_device(const pst_plan_request *request, pst_plan *plan)
{
    if (!has_device(request))
        return;
    for (uint32_t i = 0; i < plan->layout.part_count; i++) {
        const pst_part *part = &plan->layout.parts[i];
        plan_kind kind = kind_of(request, part);
        if (kind == BY_ROW || plan->places[i] == PST_PLACE_DEVICE)
            continue;
        plan->link_bytes += part->weight_bytes;
        plan->link_unit_bytes += kind == SOME_UNITS ? part->weight_bytes : 0;
    }
    plan->device_total_bytes = device_total(request, plan);
}

/* ---- the host ---- */

/* Marks parts that every pass needs and the device does not have as resident, spread evenly over the pass so that the drive's
 * work is, too, within both bounds; the rest streams. */
static void spread_resident(const pst_plan_request *request, pst_plan *plan, uint64_t room)
{
    uint64_t weights, memory = sum_memory(request, plan, EVERY_PASS, &weights);
    uint64_t allowed = may_keep(request, plan);
    double share = memory ? (double)room / (double)memory : 0;
    double share_allowed = weights ? (double)allowed / (double)weights : 0;
    share = share < share_allowed ? share : share_allowed;
    double due = 0;
    for (uint32_t i = 0; i < plan->layout.part_count; i++) {
        const pst_part *part = &plan->layout.parts[i];
        plan_kind kind = kind_of(request, part);
        if (kind == BY_ROW || plan->places[i] == PST_PLACE_DEVICE)
            continue;
        due += kind == EVERY_PASS ? share * (double)part->memory_bytes : 0;
        bool fits = kind == EVERY_PASS && plan->resident_memory_bytes + part->memory_bytes <= room &&
                    part->weight_bytes <= may_keep(request, plan);
        if (fits &&
            (double)(plan->resident_memory_bytes + part->memory_bytes) <= due + 0.5 * (double)part->memory_bytes) {
            plan->places[i] = PST_PLACE_HOST;
            plan->resident_memory_bytes += part->memory_bytes;
            plan->resident_bytes += part->weight_bytes;
        } else {
            plan->streamed_bytes += part->weight_bytes;
            plan->streamed_unit_bytes += kind == SOME_UNITS ? part->weight_bytes : 0;
        }
    }
}

/* Slots that cache, from what residency has left of the room and of what may be kept; none while parts stream that every pass
 * needs, which would save more. */
static void make_cache(const pst_plan_request *request, pst_plan *plan, uint64_t room)
{
    uint64_t parts = 0, largest = 1;
    for (uint32_t i = 0; i < plan->layout.part_count; i++) {
        const pst_part *part = &plan->layout.parts[i];
        if (plan->places[i] != PST_PLACE_DISK || kind_of(request, part) == BY_ROW)
            continue;
        if (kind_of(request, part) == EVERY_PASS)
            return;
        parts++;
        largest = pst_max(largest, part->weight_bytes);
    }
    uint64_t allowed = pst_min(request->max_cache_bytes, may_keep(request, plan));
    uint64_t slots =
        pst_min(parts, pst_min((room - plan->resident_memory_bytes) / plan->slot_bytes, allowed / largest));
    plan->cache_slots = (uint32_t)pst_min(slots, UINT32_MAX / 2);
    plan->cache_bytes = parts ? plan->cache_slots * (plan->streamed_unit_bytes / parts) : 0;
}

/* Room that no weights may take makes the ring longer, which evens out more where reading and computing take about the same
 * time, and then adds rows. `room`: of the ring and of what is kept. What is then still left is returned. */
static uint64_t use_spare(const pst_plan_request *request, pst_plan *plan, uint64_t room)
{
    uint64_t spare = room - plan->resident_memory_bytes;
    spare -= (plan->slots + (uint64_t)plan->cache_slots) * plan->slot_bytes;
    uint64_t useful = pst_min(LONG_RING_SLOTS, plan->layout.part_count); /* none beyond a pass */
    if (plan->slots < useful && (plan->streamed_bytes > 0 || !has_device(request))) {
        uint64_t more = pst_min(spare / plan->slot_bytes, useful - plan->slots);
        plan->slots += (uint32_t)more;
        spare -= more * plan->slot_bytes;
    }
    bool costs = request->row_bytes > 0 || has_device(request);
    if (plan->rows_per_pass < request->spare_rows && costs) {
        uint64_t more = request->spare_rows - plan->rows_per_pass;
        more = request->row_bytes > 0 ? pst_min(spare / request->row_bytes, more) : more;
        if (request->device_row_bytes > 0 && has_device(request))
            more =
                pst_min((request->device_budget_bytes - device_total(request, plan)) / request->device_row_bytes, more);
        plan->rows_per_pass += (uint32_t)more;
        spare -= more * request->row_bytes;
    }
    return spare;
}

/* Keeps every part of a kind that the host may keep. */
static void keep(const pst_plan_request *request, pst_plan *plan, plan_kind kind, uint64_t memory, uint64_t weights)
{
    for (uint32_t i = 0; i < plan->layout.part_count; i++)
        if (kind_of(request, &plan->layout.parts[i]) == kind && is_hosts(request, plan, i))
            plan->places[i] = PST_PLACE_HOST;
    plan->resident_memory_bytes += memory;
    plan->resident_bytes += weights;
}

/* Slots that the device's weights come through, where nothing streams: their memory. */
static uint64_t size_loading(const pst_plan_request *request, pst_plan *plan, uint64_t room)
{
    uint64_t parts = 0;
    plan->slot_bytes = plan->slots = 0;
    for (uint32_t i = 0; has_device(request) && i < plan->layout.part_count; i++) {
        if (plan->places[i] != PST_PLACE_DEVICE || plan->layout.parts[i].extent_count == 0)
            continue;
        plan->slot_bytes = pst_max(plan->slot_bytes, plan->layout.parts[i].memory_bytes);
        parts++;
    }
    if (parts == 0)
        return 0;
    plan->slots = (uint32_t)pst_max(MIN_SLOTS, pst_min(pst_min(LOADING_SLOTS, parts), room / plan->slot_bytes));
    return plan->slots * plan->slot_bytes;
}

/* Keeps everything that the device has not got in `room`; true if it fits without a ring, but for what the device is filled
 * through. What is fetched by row is kept only if the rest is. */
static bool keep_all(const pst_plan_request *request, pst_plan *plan, uint64_t room)
{
    uint64_t weights, unit_weights, row_weights, allowed = may_keep(request, plan);
    uint64_t memory = sum_memory(request, plan, EVERY_PASS, &weights);
    uint64_t unit_memory = sum_memory(request, plan, SOME_UNITS, &unit_weights);
    uint64_t row_memory = sum_memory(request, plan, BY_ROW, &row_weights);
    uint64_t left = room < memory + unit_memory ? 0 : room - memory - unit_memory;
    plan->slot_memory_bytes = size_loading(request, plan, left);
    if (memory + unit_memory + plan->slot_memory_bytes > room || weights + unit_weights > allowed)
        return false;
    keep(request, plan, EVERY_PASS, memory, weights);
    keep(request, plan, SOME_UNITS, unit_memory, unit_weights);
    if (row_memory <= left - plan->slot_memory_bytes && row_weights <= allowed - weights - unit_weights)
        keep(request, plan, BY_ROW, row_memory, row_weights);
    return true;
}

/* Whether every part is resident that no other stage has. */
static bool has_all(const pst_plan_request *request, const pst_plan *plan)
{
    for (uint32_t i = 0; i < plan->layout.part_count; i++)
        if (plan->places[i] == PST_PLACE_DISK && is_hosts(request, plan, i))
            return false;
    return true;
}

/* What is to be resident does not fit: how much would do. */
static int fail_keep_all(const pst_plan_request *request, const plan_room *have, pst_plan *plan, pst_error *err)
{
    uint64_t needed = have->needed_bytes + size_loading(request, plan, 0);
    for (uint32_t i = 0; i < plan->layout.part_count; i++)
        needed += is_hosts(request, plan, i) ? plan->layout.parts[i].memory_bytes : 0;
    return pst_fail(err, PST_E_BUDGET, NULL,
                    "a host memory budget of %.6g MiB does not hold all weights; the smallest that works is %lluMi",
                    (double)request->budget_bytes / (double)MEBIBYTE,
                    (unsigned long long)(needed / MEBIBYTE + SLACK_MEBIBYTES));
}

static int make_layout(const pst_plan_request *request, uint64_t slot_bytes, pst_plan *plan, pst_error *err)
{
    pst_plan_destroy(plan);
    PST_TRY(pst_layout_create(request->stages, request->stage_count, slot_bytes, &plan->layout, err));
    plan->places = pst_heap_calloc(plan->layout.part_count, sizeof *plan->places);
    return plan->places ? 0 : pst_fail_memory(err, "the plan", plan->layout.part_count);
}

/* No slot larger than the largest part that streams. */
static void shrink_slots(const pst_plan_request *request, pst_plan *plan)
{
    uint64_t largest = PST_EXTENT_ALIGN;
    for (uint32_t i = 0; i < plan->layout.part_count; i++)
        if (kind_of(request, &plan->layout.parts[i]) != BY_ROW)
            largest = pst_max(largest, plan->layout.parts[i].memory_bytes);
    plan->slot_bytes = pst_min(plan->slot_bytes, largest);
}

/* A region of which every page is a huge one registers with the kernel as huge pages; a ragged end makes all of it be taken as
 * pages of 4 KiB, of which a transfer of 1 MiB has more than a drive's queue takes as one. So the ring is whole huge pages
 * where `room` beyond the slots allows it. */
static uint64_t slot_memory(const pst_plan *plan, uint64_t room)
{
    uint64_t bytes = (plan->slots + (uint64_t)plan->cache_slots) * plan->slot_bytes;
    uint64_t rounded = bytes >= HUGE_PAGE_BYTES ? pst_round_up(bytes, HUGE_PAGE_BYTES) : bytes;
    return rounded - bytes <= room ? rounded : bytes;
}

static void describe_units(const pst_plan_request *request, pst_plan *plan)
{
    for (size_t s = 0; s < request->stage_count; s++)
        if (request->stages[s].unit_count > 1 && request->stages[s].unit_count > plan->unit_count)
            plan->unit_count = request->stages[s].unit_count;
    plan->units_per_row = request->units_per_row;
    if (plan->unit_count == 0 || plan->units_per_row == 0)
        return;
    plan->whole_rows = 1;
    while (pst_plan_share_of_units(plan->unit_count, plan->units_per_row, plan->whole_rows) < WHOLE_SHARE)
        plan->whole_rows++;
}

/* Memory of the weights that go through slots. */
static uint64_t slotted_memory(const pst_plan_request *request, const pst_plan *plan)
{
    uint64_t memory = 0;
    for (uint32_t i = 0; i < plan->layout.part_count; i++)
        memory += kind_of(request, &plan->layout.parts[i]) != BY_ROW ? plan->layout.parts[i].memory_bytes : 0;
    return memory;
}

/* Places everything in passes of at most so many rows. */
static int place(const pst_plan_request *request, plan_room *have, uint32_t most_rows, pst_plan *plan, pst_error *err)
{
    uint64_t room = have->free_bytes;
    PST_TRY(make_layout(request, have->largest_slot, plan, err));
    fill_device(request, have, most_rows, plan);
    if (keep_all(request, plan, room)) {
        room -= plan->resident_memory_bytes + plan->slot_memory_bytes;
        plan->rows_per_pass = choose_rows(request, request->row_bytes, plan->rows_per_pass, room * 2);
        if (request->keep_all && !has_all(request, plan))
            return fail_keep_all(request, have, plan, err);
    } else if (request->keep_all) {
        return fail_keep_all(request, have, plan, err);
    } else {
        plan_slots slots = size_ring(request, have, slotted_memory(request, plan));
        if (slots.bytes < have->largest_slot) {
            PST_TRY(make_layout(request, slots.bytes, plan, err));
            fill_device(request, have, most_rows, plan);
        }
        plan->slots = slots.count;
        plan->slot_bytes = slots.bytes;
        shrink_slots(request, plan);
        plan->slot_memory_bytes = slot_memory(plan, room - plan->slots * plan->slot_bytes);
        room -= plan->slot_memory_bytes;
        plan->rows_per_pass = choose_rows(request, request->row_bytes, plan->rows_per_pass, room);
        room -= (plan->rows_per_pass - request->min_rows) * request->row_bytes;
        spread_resident(request, plan, room);
        make_cache(request, plan, room);
        plan->slot_memory_bytes = slot_memory(plan, use_spare(request, plan, room + plan->slot_memory_bytes));
    }
    describe_units(request, plan);
    describe_device(request, plan);
    plan->table_bytes = have->table_bytes;
    plan->total_bytes = request->process_bytes + request->fixed_bytes + plan->rows_per_pass * request->row_bytes +
                        plan->slot_memory_bytes + plan->resident_memory_bytes + plan->table_bytes;
    return 0;
}

static int make_plan(const pst_plan_request *request, pst_plan *plan, pst_error *err)
{
    plan_room have = {0};
    PST_TRY(check_smallest(request, &have, err));
    PST_TRY(place(request, &have, request->max_rows, plan, err));
    /* Room that the device has for rows which the host has not is good for weights. */
    if (has_device(request) && plan->rows_per_pass < have.device_rows)
        PST_TRY(place(request, &have, plan->rows_per_pass, plan, err));
    return 0;
}

int pst_plan_create(const pst_plan_request *request, pst_plan *out, pst_error *err)
{
    pst_plan plan = {0};
    int status = make_plan(request, &plan, err);
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
    pst_heap_free(plan->places);
    *plan = (pst_plan){0};
}

double pst_plan_share_of_units(uint32_t unit_count, uint32_t units_per_row, uint32_t rows)
{
    if (units_per_row == 0 || units_per_row >= unit_count)
        return rows > 0 ? 1 : 0;
    return 1 - pow(1 - (double)units_per_row / unit_count, rows);
}

double pst_plan_expected_bytes(const pst_plan *plan, uint32_t rows)
{
    double certain = (double)(plan->streamed_bytes - plan->streamed_unit_bytes);
    double missing = (double)(plan->streamed_unit_bytes - pst_min(plan->cache_bytes, plan->streamed_unit_bytes));
    return certain + missing * pst_plan_share_of_units(plan->unit_count, plan->units_per_row, rows);
}

double pst_plan_link_bytes(const pst_plan *plan, uint32_t rows)
{
    return (double)(plan->link_bytes - plan->link_unit_bytes) +
           (double)plan->link_unit_bytes * pst_plan_share_of_units(plan->unit_count, plan->units_per_row, rows);
}
