/* SPDX-License-Identifier: Apache-2.0 */
/* The planner on random stages and budgets, with and without a device: never above a budget, no room left unused without need,
 * and never fewer weights kept with more memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "random_stages.h"
#include "tier/plan.h"

enum { ROUNDS = 400, HUGE_PAGE = 2 << 20 };

static pst_plan_request random_request(random_source *source, const random_model *model)
{
    pst_plan_request request = {.stages = model->stages,
                                .stage_count = model->stage_count,
                                .budget_bytes = source_below(source, 64) * source_below(source, 1 << 21),
                                .process_bytes = source_below(source, 1 << 20),
                                .fixed_bytes = source_below(source, 1 << 20),
                                .row_bytes = source_below(source, 1 << 12),
                                .min_rows = 1 + (uint32_t)source_below(source, 16),
                                .max_resident_bytes = UINT64_MAX};
    if (source_below(source, 3) == 0)
        request.max_slot_bytes = 1 + source_below(source, 1 << 16);
    request.units_per_row = (uint32_t)source_below(source, 4);
    request.max_cache_bytes = source_below(source, 2) ? UINT64_MAX : source_below(source, 1 << 18);
    request.max_rows = request.min_rows + (uint32_t)source_below(source, 1000);
    if (source_below(source, 2))
        request.spare_rows = (uint32_t)source_below(source, 4000);
    if (source_below(source, 2))
        request.max_resident_bytes = source_below(source, 1 << 22);
    if (source_below(source, 6) == 0)
        request.max_resident_bytes = 0;
    if (source_below(source, 2)) {
        request.device_budget_bytes = 1 + source_below(source, 64) * source_below(source, 1 << 20);
        request.device_fixed_bytes = source_below(source, 1 << 19);
        request.device_row_bytes = source_below(source, 1 << 12);
    }
    return request;
}

/* What the device takes, added up anew. */
static void check_device(const random_model *model, const pst_plan_request *request, const pst_plan *plan)
{
    uint64_t memory = 0, kept = 0, link = 0, units = 0, largest = 0;
    for (uint32_t i = 0; i < plan->layout.part_count; i++) {
        const pst_part *part = &plan->layout.parts[i];
        uint64_t bytes = 0;
        for (uint32_t p = 0; p < part->piece_count; p++) {
            const pst_piece *piece = &plan->layout.pieces[part->first_piece + p];
            bytes += (piece->rows * model->stages[part->stage].tensors[piece->tensor].row_bytes + 255) / 256 * 256;
        }
        assert_int_equal(bytes, part->device_bytes);
        bool is_gathered = model->stages[part->stage].gathered;
        if (plan->places[i] == PST_PLACE_DEVICE) {
            assert_false(is_gathered);
            memory += bytes;
            kept += part->weight_bytes;
        } else if (!is_gathered) {
            largest = bytes > largest ? bytes : largest;
            link += part->weight_bytes;
            units += model->stages[part->stage].unit_count > 1 ? part->weight_bytes : 0;
        }
    }
    if (request->device_budget_bytes == 0) {
        assert_int_equal(kept + plan->link_bytes + plan->device_slots + plan->device_total_bytes, 0);
        return;
    }
    assert_int_equal(plan->device_resident_bytes, kept);
    assert_int_equal(plan->device_resident_memory_bytes, memory);
    assert_int_equal(plan->link_bytes, link);
    assert_int_equal(plan->link_unit_bytes, units);
    assert_true(link == 0 || plan->device_slots >= 2);
    assert_true(link == 0 || plan->device_slot_bytes >= largest);
    assert_true(kept == 0 || plan->slots >= 2);
    uint64_t total = request->device_fixed_bytes + plan->rows_per_pass * request->device_row_bytes + memory +
                     plan->device_slots * plan->device_slot_bytes;
    assert_int_equal(total, plan->device_total_bytes);
    assert_true(total <= request->device_budget_bytes);
    double expected = pst_plan_link_bytes(plan, 1), more = pst_plan_link_bytes(plan, 9);
    assert_true(expected >= (double)(link - units) && expected <= more && more <= (double)link);
}

/* What the plan takes, added up anew. */
static void check_sum(const random_model *model, const pst_plan_request *request, const pst_plan *plan)
{
    uint64_t memory = 0, resident = 0, streamed = 0, units = 0, largest_unit = 0;
    bool every_pass_streams = false;
    for (uint32_t i = 0; i < plan->layout.part_count; i++) {
        const pst_part *part = &plan->layout.parts[i];
        if (plan->places[i] == PST_PLACE_HOST) {
            memory += part->memory_bytes;
            resident += part->weight_bytes;
        } else if (plan->places[i] == PST_PLACE_DISK && !model->stages[part->stage].gathered) {
            streamed += part->weight_bytes;
            assert_true(part->memory_bytes <= plan->slot_bytes);
            bool is_unit = model->stages[part->stage].unit_count > 1;
            units += is_unit ? part->weight_bytes : 0;
            largest_unit = is_unit && part->weight_bytes > largest_unit ? part->weight_bytes : largest_unit;
            every_pass_streams |= !is_unit;
        }
    }
    assert_int_equal(resident, plan->resident_bytes);
    assert_int_equal(memory, plan->resident_memory_bytes);
    assert_int_equal(streamed, plan->streamed_bytes);
    assert_int_equal(units, plan->streamed_unit_bytes);
    assert_true(resident + plan->device_resident_bytes + plan->cache_slots * largest_unit <=
                request->max_resident_bytes);
    assert_true(plan->cache_slots * largest_unit <= request->max_cache_bytes);
    assert_true(plan->cache_bytes <= units);
    assert_true(plan->cache_slots == 0 || units > 0);
    assert_true(!every_pass_streams || plan->cache_slots == 0);
    double expected = pst_plan_expected_bytes(plan, 1), more = pst_plan_expected_bytes(plan, 9);
    assert_true(expected >= (double)(streamed - units) && expected <= more && more <= (double)streamed);
    assert_true(streamed == 0 || plan->slots >= 2);
    uint64_t total = request->process_bytes + request->fixed_bytes + plan->rows_per_pass * request->row_bytes + memory +
                     plan->slot_memory_bytes + plan->table_bytes;
    assert_int_equal(total, plan->total_bytes);
    assert_true(total <= request->budget_bytes);
    uint64_t slots = (plan->slots + plan->cache_slots) * plan->slot_bytes;
    assert_in_range(plan->slot_memory_bytes, slots, slots + HUGE_PAGE - 1);
    const pst_layout *layout = &plan->layout;
    assert_true(layout->part_count * (2 * sizeof(pst_part) + 49) + plan->cache_slots * 24 +
                    layout->piece_count * (2 * sizeof(pst_piece) + 24) +
                    layout->extent_count * 2 * sizeof(pst_extent) <=
                plan->table_bytes);
    uint32_t most_rows = request->max_rows > request->spare_rows ? request->max_rows : request->spare_rows;
    assert_in_range(plan->rows_per_pass, request->min_rows, most_rows);
}

static void test_never_above_the_budget(void **state)
{
    (void)state;
    random_source source = source_start("plan");
    int planned = 0;
    for (int round = 0; round < ROUNDS; round++) {
        random_model model;
        random_model_make(&source, 1u << (8 + source_below(&source, 12)), &model);
        pst_plan_request request = random_request(&source, &model);
        pst_plan plan;
        pst_error err;
        int status = pst_plan_create(&request, &plan, &err);
        planned += status == 0;
        for (int turn = 0; status == PST_E_BUDGET && turn < 2; turn++) {
            /* The smallest budget that the message names works, as far as it is the one that is too small. */
            unsigned long long smallest = strtoull(strstr(err.message, "works is ") + 9, NULL, 10);
            uint64_t *budget =
                strstr(err.message, "device memory") ? &request.device_budget_bytes : &request.budget_bytes;
            assert_true(smallest << 20 > *budget);
            *budget = smallest << 20;
            status = pst_plan_create(&request, &plan, &err);
        }
        assert_int_equal(status, 0);
        check_sum(&model, &request, &plan);
        check_device(&model, &request, &plan);
        pst_plan_destroy(&plan);
    }
    assert_true(planned > ROUNDS / 10);
}

/* Weights that stay somewhere. */
static uint64_t kept_bytes(const pst_plan *plan)
{
    return plan->resident_bytes + plan->device_resident_bytes;
}

/* More memory of either kind never keeps less, but for what a larger ring takes, and never fails. */
static void test_more_memory_keeps_more(void **state)
{
    (void)state;
    random_source source = source_start("more memory");
    for (int round = 0; round < ROUNDS; round++) {
        random_model model;
        random_model_make(&source, 1u << (8 + source_below(&source, 12)), &model);
        pst_plan_request request = random_request(&source, &model);
        pst_plan plan, larger;
        if (pst_plan_create(&request, &plan, NULL) < 0)
            continue;
        bool has_device = request.device_budget_bytes > 0;
        if (has_device && source_below(&source, 2))
            request.device_budget_bytes *= 1 + source_below(&source, 4);
        else
            request.budget_bytes *= 1 + source_below(&source, 4);
        assert_int_equal(pst_plan_create(&request, &larger, NULL), 0);
        uint64_t slots = larger.slot_memory_bytes + larger.device_slots * larger.device_slot_bytes;
        uint64_t rows =
            larger.rows_per_pass -
            (uint64_t)(larger.rows_per_pass > plan.rows_per_pass ? plan.rows_per_pass : larger.rows_per_pass);
        uint64_t spent = slots + rows * (request.row_bytes + request.device_row_bytes);
        if (kept_bytes(&larger) + spent + larger.slot_bytes < kept_bytes(&plan))
            fail_msg("%llu bytes kept, then %llu", (unsigned long long)kept_bytes(&plan),
                     (unsigned long long)kept_bytes(&larger));
        assert_true(larger.device_resident_bytes + spent + larger.slot_bytes >= plan.device_resident_bytes);
        pst_plan_destroy(&plan);
        pst_plan_destroy(&larger);
    }
}

/* What is on the device needs no place on the host, and there is no more of the host than the budget. */
static void test_device_first(void **state)
{
    (void)state;
    random_source source = source_start("device first");
    random_model model;
    random_model_make(&source, 1 << 16, &model);
    pst_plan_request request = {.stages = model.stages,
                                .stage_count = model.stage_count,
                                .budget_bytes = 1ull << 32,
                                .device_budget_bytes = 1ull << 30,
                                .row_bytes = 10,
                                .device_row_bytes = 100,
                                .min_rows = 1,
                                .max_rows = 50,
                                .max_resident_bytes = UINT64_MAX};
    pst_plan plan;
    uint64_t whole = 0;
    for (size_t s = 1; s < model.stage_count; s++)
        for (uint32_t t = 0; t < model.stages[s].tensor_count; t++)
            whole += model.tensors[s][t].bytes;
    assert_int_equal(pst_plan_create(&request, &plan, NULL), 0);
    assert_int_equal(plan.device_resident_bytes, whole);
    assert_int_equal(plan.resident_bytes, model.tensors[0][0].bytes); /* fetched by row: the host's */
    assert_int_equal(plan.streamed_bytes + plan.link_bytes, 0);
    assert_int_equal(plan.device_slots, 0);
    assert_int_equal(plan.rows_per_pass, 50);
    pst_plan_destroy(&plan);
    request.device_budget_bytes = 1 << 21; /* some there, all the rest on the host */
    assert_int_equal(pst_plan_create(&request, &plan, NULL), 0);
    assert_int_equal(kept_bytes(&plan), whole + model.tensors[0][0].bytes);
    assert_int_equal(plan.streamed_bytes, 0);
    pst_plan_destroy(&plan);
}

static void test_everything_fits(void **state)
{
    (void)state;
    random_source source = source_start("everything fits");
    random_model model;
    random_model_make(&source, 1 << 16, &model);
    pst_plan_request request = {.stages = model.stages,
                                .stage_count = model.stage_count,
                                .budget_bytes = 1ull << 32,
                                .row_bytes = 100,
                                .min_rows = 1,
                                .max_rows = 50,
                                .max_resident_bytes = UINT64_MAX};
    pst_plan plan;
    assert_int_equal(pst_plan_create(&request, &plan, NULL), 0);
    assert_int_equal(plan.streamed_bytes, 0);
    assert_int_equal(plan.slots, 0);
    assert_int_equal(plan.rows_per_pass, 50);
    pst_plan_destroy(&plan);
}

static void test_resident_zero_streams_everything(void **state)
{
    (void)state;
    random_source source = source_start("resident 0");
    random_model model;
    random_model_make(&source, 1 << 16, &model);
    pst_plan_request request = {.stages = model.stages,
                                .stage_count = model.stage_count,
                                .budget_bytes = 1ull << 32,
                                .row_bytes = 100,
                                .min_rows = 1,
                                .max_rows = 50,
                                .max_resident_bytes = 0};
    pst_plan plan;
    assert_int_equal(pst_plan_create(&request, &plan, NULL), 0);
    assert_int_equal(plan.resident_bytes, 0);
    assert_true(plan.slots >= 2);
    pst_plan_destroy(&plan);
}

/* A ring that the kernel shall take as huge pages has no ragged end while the budget has room for a whole one. */
static void test_rings_of_huge_pages(void **state)
{
    (void)state;
    random_source source = source_start("huge pages");
    enum { STAGES = 24 };
    int streamed = 0;
    for (int round = 0; round < ROUNDS; round++) {
        pst_tensor tensors[STAGES] = {0};
        pst_stage_tensor held[STAGES];
        pst_stage stages[STAGES] = {0};
        uint64_t offset = source_below(&source, 1 << 20), row_bytes = 2 + 2 * source_below(&source, 1 << 14);
        for (int s = 0; s < STAGES; s++) {
            uint64_t rows = 1 + source_below(&source, 1 << 14);
            tensors[s] = (pst_tensor){.name = "w", .offset = offset, .bytes = rows * row_bytes};
            held[s] = (pst_stage_tensor){&tensors[s], rows, row_bytes};
            stages[s] = (pst_stage){.name = "stage", .tensors = &held[s], .tensor_count = 1};
            offset += tensors[s].bytes;
        }
        pst_plan_request request = {.stages = stages,
                                    .stage_count = STAGES,
                                    .budget_bytes = (8ull << 20) + source_below(&source, 1 << 30),
                                    .row_bytes = source_below(&source, 1 << 18),
                                    .min_rows = 1,
                                    .max_rows = 1 + (uint32_t)source_below(&source, 1000),
                                    .spare_rows = (uint32_t)source_below(&source, 4000),
                                    .max_resident_bytes = source_below(&source, 2) ? UINT64_MAX : 0};
        pst_plan plan;
        pst_error err;
        if (pst_plan_create(&request, &plan, &err) < 0)
            continue;
        streamed += plan.slots > 0;
        assert_true(plan.total_bytes <= request.budget_bytes);
        bool has_room = request.budget_bytes - plan.total_bytes >= HUGE_PAGE;
        if (plan.slots * plan.slot_bytes >= HUGE_PAGE && has_room)
            assert_int_equal(plan.slot_memory_bytes % HUGE_PAGE, 0);
        /* What nothing else may have lengthens the ring. */
        if (plan.slots > 0 && request.max_resident_bytes == 0 && plan.layout.part_count >= 16)
            assert_true(plan.slots >= 16 || request.budget_bytes - plan.total_bytes < plan.slot_bytes + HUGE_PAGE);
        pst_plan_destroy(&plan);
    }
    assert_true(streamed > ROUNDS / 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_never_above_the_budget),
        cmocka_unit_test(test_more_memory_keeps_more),
        cmocka_unit_test(test_device_first),
        cmocka_unit_test(test_everything_fits),
        cmocka_unit_test(test_resident_zero_streams_everything),
        cmocka_unit_test(test_rings_of_huge_pages),
    };
    return cmocka_run_group_tests_name("plan", tests, NULL, NULL);
}
