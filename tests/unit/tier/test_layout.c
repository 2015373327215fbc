/* SPDX-License-Identifier: Apache-2.0 */
/* The cut of random stages: every row once and in order, inside its part's reads, which are aligned and fit the slot. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/heap.h"
#include "random_stages.h"
#include "tier/layout.h"

enum { ROUNDS = 300 };

static const pst_extent *extent_of(const pst_layout *layout, const pst_part *part, uint64_t slot_offset)
{
    for (uint32_t i = 0; i < part->extent_count; i++) {
        const pst_extent *extent = &layout->extents[part->first_extent + i];
        if (slot_offset >= extent->slot_offset && slot_offset < extent->slot_offset + extent->bytes)
            return extent;
    }
    return NULL;
}

static void check_part(const random_model *model, const pst_layout *layout, const pst_part *part, uint64_t slot_bytes)
{
    assert_true(part->memory_bytes <= slot_bytes);
    assert_true(part->piece_count > 0 && part->extent_count > 0);
    const pst_stage *stage = &model->stages[part->stage];
    for (uint32_t i = 0; stage->unit_count > 0 && i < part->piece_count; i++) {
        uint32_t tensor = layout->pieces[part->first_piece + i].tensor;
        assert_true(tensor >= stage->unit_first_tensor[part->unit] &&
                    tensor < stage->unit_first_tensor[part->unit + 1]);
    }
    uint64_t end = 0;
    for (uint32_t i = 0; i < part->extent_count; i++) {
        const pst_extent *extent = &layout->extents[part->first_extent + i];
        assert_int_equal(extent->offset % PST_EXTENT_ALIGN, 0);
        assert_int_equal(extent->bytes % PST_EXTENT_ALIGN, 0);
        assert_int_equal(extent->slot_offset, end); /* no overlap, no hole */
        end = extent->slot_offset + extent->bytes;
        assert_true(extent->needed_bytes <= extent->bytes && extent->bytes - extent->needed_bytes < PST_EXTENT_ALIGN);
    }
    assert_int_equal(end, part->memory_bytes);
    for (uint32_t i = 0; i < part->piece_count; i++) {
        const pst_piece *piece = &layout->pieces[part->first_piece + i];
        const pst_stage_tensor *tensor = &model->stages[part->stage].tensors[piece->tensor];
        const pst_extent *extent = extent_of(layout, part, piece->offset);
        assert_non_null(extent);
        assert_int_equal(extent->file, tensor->tensor->file);
        uint64_t wanted = tensor->tensor->offset + piece->first_row * tensor->row_bytes;
        uint64_t skip = piece->offset - extent->slot_offset;
        assert_int_equal(extent->offset + skip, wanted);
        assert_true(skip + piece->rows * tensor->row_bytes <= extent->needed_bytes);
    }
}

static void check_order(const random_model *model, const pst_layout *layout)
{
    uint32_t next_part = 0;
    for (uint32_t s = 0; s < model->stage_count; s++) {
        uint32_t tensor = 0;
        uint64_t row = 0;
        for (; next_part < layout->part_count && layout->parts[next_part].stage == s; next_part++) {
            const pst_part *part = &layout->parts[next_part];
            for (uint32_t i = 0; i < part->piece_count; i++) {
                const pst_piece *piece = &layout->pieces[part->first_piece + i];
                assert_int_equal(piece->tensor, tensor);
                assert_int_equal(piece->first_row, row);
                row += piece->rows;
                if (row == model->stages[s].tensors[tensor].rows) {
                    row = 0;
                    tensor++;
                }
            }
        }
        assert_int_equal(tensor, model->stages[s].tensor_count);
    }
    assert_int_equal(next_part, layout->part_count);
}

static void test_random_cuts(void **state)
{
    (void)state;
    random_source source = source_start("layout");
    for (int round = 0; round < ROUNDS; round++) {
        random_model model;
        random_model_make(&source, 1u << (8 + source_below(&source, 12)), &model);
        uint64_t least = pst_layout_min_slot_bytes(model.stages, model.stage_count);
        uint64_t most = pst_layout_max_slot_bytes(model.stages, model.stage_count);
        uint64_t slot = least + source_below(&source, 4) * PST_EXTENT_ALIGN * source_below(&source, 20);
        if (source_below(&source, 3) == 0 && most > slot)
            slot = most;
        pst_layout layout;
        pst_error err;
        assert_int_equal(pst_layout_create(model.stages, model.stage_count, slot, &layout, &err), 0);
        for (uint32_t i = 0; i < layout.part_count; i++)
            check_part(&model, &layout, &layout.parts[i], slot);
        check_order(&model, &layout);
        pst_layout_destroy(&layout);
    }
}

static void test_whole_stage_is_one_part(void **state)
{
    (void)state;
    random_source source = source_start("whole stages");
    random_model model;
    random_model_make(&source, 1 << 14, &model);
    model.stages[0].gathered = false;
    pst_layout layout;
    uint64_t slot = pst_layout_max_slot_bytes(model.stages, model.stage_count);
    assert_int_equal(pst_layout_create(model.stages, model.stage_count, slot, &layout, NULL), 0);
    uint32_t wholes = 0; /* stages without units, and units */
    for (size_t s = 0; s < model.stage_count; s++)
        wholes += model.stages[s].unit_count ? model.stages[s].unit_count : 1;
    assert_int_equal(layout.part_count, wholes);
    pst_layout_destroy(&layout);
}

/* An expert of 44 MB in slots of 32: two parts of 22, and with slots made for two parts nothing is wasted. */
static void test_units_are_cut_evenly(void **state)
{
    (void)state;
    pst_tensor tensors[3 * 4];
    pst_stage_tensor listed[3 * 4];
    uint32_t first[5];
    for (uint32_t i = 0; i < 12; i++) {
        tensors[i] =
            (pst_tensor){.name = "t", .dtype = PST_BF16, .rank = 2, .bytes = 14680064, .offset = i * 14680064ull};
        listed[i] = (pst_stage_tensor){&tensors[i], i % 3 == 2 ? 7168 : 2048, i % 3 == 2 ? 2048 : 7168};
    }
    for (uint32_t u = 0; u <= 4; u++)
        first[u] = 3 * u;
    pst_stage stage = {
        .name = "experts", .tensors = listed, .tensor_count = 12, .unit_count = 4, .unit_first_tensor = first};
    uint64_t fitted = pst_layout_unit_slot_bytes(&stage, 1, 2);
    assert_in_range(fitted, 22020096, 22020096 + 200000);
    const uint64_t slots[] = {32ull << 20, fitted};
    for (int i = 0; i < 2; i++) {
        pst_layout layout;
        assert_int_equal(pst_layout_create(&stage, 1, slots[i], &layout, NULL), 0);
        assert_int_equal(layout.part_count, 8);
        for (uint32_t p = 0; p < 8; p++)
            assert_in_range(layout.parts[p].memory_bytes, 22020096 - 300000, 22020096 + 300000);
        pst_layout_destroy(&layout);
    }
}

static void test_too_small_a_slot_is_refused(void **state)
{
    (void)state;
    random_source source = source_start("small slots");
    random_model model;
    random_model_make(&source, 1 << 16, &model);
    model.stage_tensors[1][0].row_bytes = 3 * PST_EXTENT_ALIGN;
    pst_layout layout;
    pst_error err;
    assert_int_equal(pst_layout_create(model.stages, model.stage_count, PST_EXTENT_ALIGN, &layout, &err), PST_E_BUDGET);
}

/* 16 exabytes in slots of a gigabyte: refused before the tables are made. */
static void test_too_many_parts_are_refused(void **state)
{
    (void)state;
    const pst_tensor tensor = {.name = "w", .dtype = PST_U8, .rank = 2};
    pst_stage_tensor matrix = {.tensor = &tensor, .rows = UINT64_C(1) << 40, .row_bytes = (1 << 24) - 1};
    const pst_stage stage = {.name = "stage", .tensors = &matrix, .tensor_count = 1};
    pst_layout layout;
    pst_error err;
    assert_int_equal(pst_layout_create(&stage, 1, 1 << 30, &layout, &err), PST_E_UNSUPPORTED);
    matrix.rows = 64;
    assert_int_equal(pst_layout_create(&stage, 1, 1 << 30, &layout, &err), 0);
    pst_layout_destroy(&layout);
}

static void test_allocation_failures(void **state)
{
    (void)state;
    random_source source = source_start("layout allocations");
    random_model model;
    random_model_make(&source, 1 << 14, &model);
    uint64_t slot = pst_layout_min_slot_bytes(model.stages, model.stage_count);
    int64_t live = pst_heap_live_count();
    for (int64_t n = 0;; n++) {
        pst_layout layout = {0};
        pst_heap_fail_after(n, 0);
        int status = pst_layout_create(model.stages, model.stage_count, slot, &layout, NULL);
        pst_heap_fail_after(-1, 0);
        pst_layout_destroy(&layout);
        assert_int_equal(pst_heap_live_count(), live);
        if (status == 0)
            break;
        assert_true(n < 100000);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_cuts),
        cmocka_unit_test(test_whole_stage_is_one_part),
        cmocka_unit_test(test_units_are_cut_evenly),
        cmocka_unit_test(test_too_small_a_slot_is_refused),
        cmocka_unit_test(test_too_many_parts_are_refused),
        cmocka_unit_test(test_allocation_failures),
    };
    return cmocka_run_group_tests_name("layout", tests, NULL, NULL);
}
