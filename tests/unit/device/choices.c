/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operators of the host device that choose: route against its arithmetic row by row, top against sorting (ties, values that
 * are not numbers), products grouped by expert against products one by one; each on pools of 1, 2 and 3 threads. And no
 * entry of the operator table is missing.
 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/heap.h"
#include "device/device.h"
#include "device/route.h"
#include "unit/cpu/reference.h"
#include "unit/device/pools.h"

static pst_device *make(size_t pool)
{
    pst_device *device;
    assert_int_equal(pst_device_host_create(pools[pool], NULL, &device, NULL), 0);
    return device;
}

/* Every entry after the table's first four fields is a function. */
static void test_no_entry_is_missing(void **state)
{
    (void)state;
    pst_device *device = make(0);
    const size_t begin = offsetof(pst_device_ops, last_error), end = sizeof(pst_device_ops);
    assert_int_equal(device->ops->struct_size, end);
    assert_int_equal((end - begin) % sizeof(void *), 0);
    for (size_t at = begin; at < end; at += sizeof(void *)) {
        void *entry;
        memcpy(&entry, (const char *)device->ops + at, sizeof entry);
        if (entry == NULL)
            fail_msg("entry %zu of the table is missing", (at - begin) / sizeof(void *));
    }
    pst_device_destroy(device);
}

enum { MAX_ROWS = 300, MAX_EXPERTS = 60, MAX_PER_ROW = 8, STRIDE = MAX_EXPERTS + 3 };

typedef struct routed {
    uint32_t chosen[MAX_ROWS * MAX_PER_ROW], first[MAX_EXPERTS + 1], order[MAX_ROWS * MAX_PER_ROW];
    float weights[MAX_ROWS * MAX_PER_ROW], order_weight[MAX_ROWS * MAX_PER_ROW];
} routed;

static void check_route(void)
{
    static float logits[MAX_ROWS * STRIDE], correction[MAX_EXPERTS], scratch[3 * MAX_EXPERTS];
    static routed expected, got;
    const uint32_t groups = (uint32_t)ref_between(1, 5), size = (uint32_t)ref_between(1, 12), experts = groups * size;
    const pst_routing routing = {.sigmoid = ref_between(0, 1),
                                 .normalize = ref_between(0, 1),
                                 .normalize_epsilon = 1e-20,
                                 .groups = groups,
                                 .top_groups = (uint32_t)ref_between(1, groups),
                                 .group_scores = (uint32_t)ref_between(1, 2),
                                 .corrected = ref_between(0, 1),
                                 .scale = 2.5};
    const uint32_t most = routing.top_groups * size, rows = (uint32_t)ref_between(0, MAX_ROWS);
    const uint32_t per_row = (uint32_t)ref_between(1, most < MAX_PER_ROW ? most : MAX_PER_ROW);
    for (size_t i = 0; i < sizeof logits / sizeof *logits; i++)
        logits[i] = ref_between(0, 50) ? (float)ref_normal() : (float)ref_between(0, 1); /* and a few equal ones */
    for (size_t i = 0; i < experts; i++)
        correction[i] = (float)(0.2 * ref_normal());
    const pst_router router = {&routing, experts, per_row};
    memset(&expected, 0x5a, sizeof expected);
    for (uint32_t row = 0; row < rows; row++)
        pst_router_choose(&router, logits + (size_t)row * STRIDE, routing.corrected ? correction : NULL, scratch,
                          expected.chosen + (size_t)row * per_row, expected.weights + (size_t)row * per_row);
    const pst_router_rows out = {expected.first, expected.order, expected.order_weight};
    pst_router_group(&router, rows, expected.chosen, expected.weights, &out);
    assert_int_equal(expected.first[experts], rows * per_row);
    for (size_t pool = 0; pool < POOLS; pool++) {
        pst_device *device = make(pool);
        memset(&got, 0x5a, sizeof got);
        pst_route_job job = {.logits = {logits, PST_F32, rows, experts, STRIDE},
                             .correction = routing.corrected ? correction : NULL,
                             .routing = routing,
                             .per_row = per_row,
                             .chosen = got.chosen,
                             .weights = got.weights,
                             .first = got.first,
                             .order = got.order,
                             .order_weight = got.order_weight};
        assert_int_equal(device->ops->route(device, &job), 0);
        assert_memory_equal(&got, &expected, sizeof got);
        pst_device_destroy(device);
    }
}

static void test_route(void **state)
{
    (void)state;
    ref_seed("device route");
    for (int round = 0; round < 200; round++)
        check_route();
    pst_device *device = make(1);
    pst_route_job job = {.logits = {.type = PST_F32, .rows = 1, .columns = 4, .stride = 4}, .per_row = 5};
    assert_true(device->ops->route(device, &job) < 0); /* more than there are */
    job.per_row = 1;
    pst_heap_fail_after(0, 0);
    assert_int_equal(device->ops->route(device, &job), -ENOMEM);
    pst_heap_fail_after(-1, 0);
    pst_device_destroy(device);
}

typedef struct entry {
    float value;
    uint32_t column;
} entry;

static int better_first(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->value != y->value)
        return x->value > y->value ? -1 : 1;
    return x->column < y->column ? -1 : x->column > y->column;
}

static void check_top(size_t rows, size_t columns, uint32_t count, bool odd)
{
    static const float few[] = {NAN, INFINITY, -INFINITY, -NAN, 0.0f, -0.0f, 1.0f, -1.0f};
    const size_t stride = columns + 3;
    ref_array x = ref_randoms(PST_F32, rows * stride, 0, 1.0);
    for (size_t i = 0; odd && i < rows * stride; i++)
        ((float *)x.data)[i] = few[ref_between(0, 7)];
    entry *sorted = calloc(columns, sizeof *sorted);
    ref_array values = ref_output(PST_F32, rows * count), found = ref_output(PST_F32, rows * count);
    assert_non_null(sorted);
    for (size_t pool = 0; pool < POOLS; pool++) {
        pst_device *device = make(pool);
        const pst_matrix m = {x.data, PST_F32, rows, columns, stride};
        assert_int_equal(device->ops->top(device, &m, count, values.data, found.data), 0);
        for (size_t row = 0; row < rows; row++) {
            for (size_t c = 0; c < columns; c++) {
                float value = ((const float *)x.data)[row * stride + c];
                sorted[c] = (entry){isnan(value) ? -INFINITY : value, (uint32_t)c};
            }
            qsort(sorted, columns, sizeof *sorted, better_first);
            for (size_t i = 0; i < count; i++) {
                assert_int_equal(((const uint32_t *)found.data)[row * count + i], sorted[i].column);
                assert_memory_equal((const float *)values.data + row * count + i, &sorted[i].value, sizeof(float));
            }
        }
        pst_device_destroy(device);
    }
    ref_check_guards(&values, "top");
    ref_check_guards(&found, "top");
    free(sorted);
    ref_free(&x);
    ref_free(&values);
    ref_free(&found);
}

static void test_top(void **state)
{
    (void)state;
    ref_seed("device top");
    for (int round = 0; round < 40; round++) {
        const size_t columns = ref_between(1, 500);
        check_top(ref_between(1, 20), columns, (uint32_t)ref_between(1, columns), round % 2);
    }
    check_top(3, 40000, 1024, false);
    check_top(3, 40000, 1, false);
    check_top(2, 3000, 1024, true);
    pst_device *device = make(0);
    float x[4] = {0}, value;
    uint32_t column;
    const pst_matrix narrow = {x, PST_F32, 1, 4, 4}, none = {x, PST_F32, 0, 4, 4};
    assert_true(device->ops->top(device, &narrow, 5, &value, &column) < 0);
    assert_int_equal(device->ops->top(device, &none, 4, NULL, NULL), 0);
    pst_device_destroy(device);
}

enum { GROUPS = 9, GROUPED_ROWS = 40, COLUMNS = 70, K = 45 };

static void check_grouped(pst_dtype x_type, pst_dtype w_type)
{
    ref_array x = ref_randoms(x_type, GROUPED_ROWS * (K + 3), 0, 1.0);
    ref_array w = ref_randoms(w_type, GROUPS * COLUMNS * K, 0, 1.0);
    uint32_t first[GROUPS + 1] = {0};
    pst_weight weights[GROUPS];
    for (uint32_t g = 0; g < GROUPS; g++) { /* some have no rows, some no weights */
        const uint32_t left = GROUPED_ROWS - first[g];
        first[g + 1] = first[g] + (uint32_t)(g + 1 == GROUPS ? left : ref_between(0, left / 2));
        const void *data = (const char *)w.data + (size_t)g * COLUMNS * K * ref_bytes(w_type);
        weights[g] =
            (pst_weight){.data = ref_between(0, 3) ? data : NULL, .type = w_type, .rows = COLUMNS, .columns = K};
    }
    for (size_t pool = 0; pool < POOLS; pool++) {
        pst_device *device = make(pool);
        ref_array y = ref_output(PST_F32, GROUPED_ROWS * (COLUMNS + 5));
        ref_array expected = ref_output(PST_F32, GROUPED_ROWS * (COLUMNS + 5));
        const pst_matrix mx = {x.data, x_type, GROUPED_ROWS, K, K + 3};
        const pst_matrix my = {y.data, PST_F32, GROUPED_ROWS, COLUMNS, COLUMNS + 5};
        for (uint32_t g = 0; g < GROUPS; g++) {
            for (uint32_t row = first[g]; row < first[g + 1] && weights[g].data != NULL; row++) {
                pst_matmul one = {.x = mx, .w = weights[g], .y = my};
                one.x.rows = one.y.rows = 1;
                one.x.data = (char *)x.data + row * mx.stride * ref_bytes(x_type);
                one.y.data = (float *)expected.data + row * my.stride;
                assert_int_equal(device->ops->matmul(device, &one), 0);
            }
        }
        const pst_grouped_matmul job = {mx, my, weights, first, GROUPS};
        assert_int_equal(device->ops->matmul_grouped(device, &job), 0);
        assert_memory_equal(y.data, expected.data, y.count * sizeof(float)); /* what nobody wrote included */
        ref_check_guards(&y, "matmul_grouped");
        ref_free(&y);
        ref_free(&expected);
        pst_device_destroy(device);
    }
    ref_free(&x);
    ref_free(&w);
}

static void test_grouped(void **state)
{
    (void)state;
    ref_seed("device matmul_grouped");
    for (int round = 0; round < 6; round++)
        check_grouped(round % 2 ? PST_BF16 : PST_F32, round % 3 ? PST_BF16 : PST_F16);
    pst_device *device = make(0);
    const pst_weight_format transposed = {.layout = PST_WEIGHT_GPTQ, .transposed = true, .bits = 4, .group = 32};
    const uint32_t first[2] = {0, 0};
    const pst_weight w = {.data = first, .rows = 1, .columns = 1, .format = &transposed};
    const pst_grouped_matmul job = {{.type = PST_F32}, {.type = PST_F32}, &w, first, 1};
    assert_true(device->ops->matmul_grouped(device, &job) < 0);
    pst_device_destroy(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_entry_is_missing),
        cmocka_unit_test(test_route),
        cmocka_unit_test(test_top),
        cmocka_unit_test(test_grouped),
    };
    return cmocka_run_group_tests(tests, pools_set_up, pools_tear_down);
}
