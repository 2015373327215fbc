/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products of sizes for which a device has algorithms of its own: many rows by many outputs, more matrices than one call of a
 * kernel takes, numbers that are not finite. Small and odd ones are in ops_matmul.c.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device/ops.h"

static const pst_dtype plain_types[] = {PST_F32, PST_F16, PST_BF16};
enum { FORMATS = 9 };

/* Plain rows of three types; then the formats of stored.h that are not transposed. */
static pst_weight_format format_of(size_t number)
{
    static const size_t numbers[] = {0, 1, 2, 3, 8, 9};
    pst_weight_format format = {.layout = PST_WEIGHT_PLAIN};
    if (number < 3)
        format.type = plain_types[number];
    else
        assert_true(stored_format(numbers[number - 3], &format));
    return format;
}

static pst_weight weight_at(const stored *w, ops_side side, const ops_buffer *data, const ops_buffer *scales,
                            size_t first)
{
    return (pst_weight){.data = (char *)ops_at(data, side) + first * w->row_bytes,
                        .type = w->format.type,
                        .rows = w->outputs - first,
                        .columns = w->inputs,
                        .format = &w->format,
                        .scales = ops_at(scales, side),
                        .first_row = first};
}

static bool of_prompts; /* the rows of the test's single products */

static void multiply(const ops_matrix *x, const ops_matrix *y, size_t first, size_t rows, const pst_weight *w,
                     size_t column)
{
    pst_device *device = ops_device(OPS_DEVICE);
    const pst_matmul job = {.x = ops_rows(x, OPS_DEVICE, first, rows),
                            .w = *w,
                            .y = ops_rows(y, OPS_DEVICE, first, rows),
                            .first_column = column,
                            .prompt_rows = of_prompts ? rows : 0};
    assert_int_equal(device->ops->matmul(device, &job), 0);
}

static uint32_t bits_at(const ops_matrix *y, size_t row, size_t column)
{
    uint32_t bits;
    memcpy(&bits, ops_result(y->buffer, OPS_DEVICE) + (row * y->stride + column) * 4, 4);
    return bits;
}

static void same_bits(const ops_matrix *a, const ops_matrix *b, size_t first, size_t rows, const char *what,
                      const char *text)
{
    for (size_t r = first; r < first + rows; r++)
        for (size_t n = 0; n < a->columns; n++)
            if (bits_at(a, r, n) != bits_at(b, r, n))
                fail_msg("%s: row %zu column %zu is %a, %s %a", text, r, n,
                         ops_get(a->buffer, OPS_DEVICE, PST_F32, r * a->stride + n), what,
                         ops_get(b->buffer, OPS_DEVICE, PST_F32, r * b->stride + n));
}

/* Some elements of y against float64. */
static void check_some(const stored *w, const ops_matrix *x, const ops_matrix *y, const char *text)
{
    const bool exact = x->type == PST_F32 || (w->format.layout == PST_WEIGHT_PLAIN && w->format.type == PST_BF16);
    for (size_t i = 0; i < 60; i++) {
        const size_t r = ref_between(0, y->rows - 1), n = ref_between(0, y->columns - 1);
        double sum = 0, size = 0, squares = 0;
        for (size_t k = 0; k < w->inputs; k++) {
            const double term = ops_was(x, r, k) * (double)(float)stored_get(w, n, k);
            sum += term;
            size += fabs(term);
            squares += term * term;
        }
        const double limit =
            F32_ROUNDING * ((double)w->inputs / 2 + 8) * size + (exact ? 0 : 4 * BF16_ROUNDING * sqrt(squares));
        const double got = ops_get(y->buffer, OPS_DEVICE, PST_F32, r * y->stride + n);
        if (!(fabs(got - sum) <= limit))
            fail_msg("%s: row %zu column %zu is %g, not %g within %g", text, r, n, got, sum, limit);
    }
}

/* All rows at once; runs of a few rows; a matrix in two pieces: the same bits. */
static void wide_product(size_t number, pst_dtype x_type)
{
    const size_t inputs = number % 2 == 0 ? 64 * ref_between(2, 11) : ref_between(80, 700);
    const size_t rows = ref_between(65, 90), outputs = ref_between(257, 300);
    stored w = stored_random(format_of(number), outputs, inputs);
    ops_buffer *data = ops_input(w.data.data, w.rows * w.row_bytes, 256);
    ops_buffer *scales = ops_array(&w.scales, ref_between(0, 1) ? ref_bytes(w.scales.type) : 1);
    const size_t cut = ref_between(1, outputs - 1), rest = (outputs - cut) * w.row_bytes;
    ops_buffer *data_rest = ops_input((char *)w.data.data + cut * w.row_bytes, rest, 256);
    const ops_matrix x = ops_random(x_type, rows, inputs, 1.0);
    const ops_matrix y = ops_poisoned(PST_F32, rows, outputs), few = ops_poisoned(PST_F32, rows, outputs);
    const ops_matrix parts = ops_poisoned(PST_F32, rows, outputs);
    char text[300];
    snprintf(text, sizeof text, "%s x %s, %zu rows of stride %zu, outputs %zu from %zu, inputs %zu",
             pst_dtype_name(x_type), w.text, rows, x.stride, outputs, cut, inputs);
    ops_place();
    pst_weight all = weight_at(&w, OPS_DEVICE, data, scales, 0);
    multiply(&x, &y, 0, rows, &all, 0);
    for (size_t first = 0, run; first < rows; first += run) {
        run = ref_between(1, 40);
        run = run < rows - first ? run : rows - first;
        multiply(&x, &few, first, run, &all, 0);
    }
    all.rows = cut;
    multiply(&x, &parts, 0, rows, &all, 0);
    all.data = ops_at(data_rest, OPS_DEVICE);
    all.rows = outputs - cut;
    all.first_row = cut;
    multiply(&x, &parts, 0, rows, &all, cut);
    ops_collect(text);
    check_some(&w, &x, &y, text);
    same_bits(&y, &few, 0, rows, "with fewer rows", text);
    same_bits(&y, &parts, 0, rows, "in pieces of the matrix", text);
    ops_free();
    stored_free(&w);
}

static void test_many_rows(void **state)
{
    (void)state;
    if (!ops_begin("products of many rows"))
        return;
    for (size_t number = 0; number < FORMATS; number++) {
        of_prompts = true;
        if (number < 3)
            wide_product(number, PST_BF16);
        of_prompts = number >= 3 && ref_between(0, 1);
        wide_product(number, PST_BF16);
        if (number % 3 == 0)
            wide_product(number, PST_F32);
    }
}

/* Matrices one after the other at multiples of 256 bytes, some of them absent: grouped products and single ones. */
static void grouped(size_t number, pst_dtype x_type, uint32_t groups, size_t most_rows, size_t outputs, size_t inputs)
{
    pst_weight_format format = format_of(number);
    stored w = stored_random(format, outputs, inputs);
    const size_t step = (w.rows * w.row_bytes + 255) / 256 * 256;
    unsigned char *bytes = calloc(groups, step);
    pst_weight *weights = calloc(groups, sizeof *weights);
    uint32_t *first = calloc(groups + 1, sizeof *first);
    assert_true(bytes != NULL && weights != NULL && first != NULL);
    for (uint32_t g = 0; g < groups; g++) { /* the same codes, turned by some rows */
        const size_t at = g % outputs * w.row_bytes, all = w.rows * w.row_bytes;
        memcpy(bytes + g * step, (char *)w.data.data + at, all - at);
        memcpy(bytes + g * step + all - at, w.data.data, at);
        first[g + 1] = first[g] + (uint32_t)(ref_between(0, 3) ? ref_between(0, most_rows) : 0);
    }
    const size_t rows = first[groups];
    ops_buffer *data = ops_input(bytes, groups * step, 256), *scales = ops_array(&w.scales, 4);
    ops_buffer *firsts = ops_input(first, (groups + 1) * sizeof *first, 4);
    const ops_matrix x = ops_random(x_type, rows, inputs, 1.0);
    const ops_matrix y = ops_poisoned(PST_F32, rows, outputs), single = ops_poisoned(PST_F32, rows, outputs);
    char text[300];
    snprintf(text, sizeof text, "%s x %s, %u groups, %zu rows, outputs %zu, inputs %zu", pst_dtype_name(x_type), w.text,
             groups, rows, outputs, inputs);
    ops_place();
    for (uint32_t g = 0; g < groups; g++) {
        weights[g] = weight_at(&w, OPS_DEVICE, data, scales, 0);
        weights[g].data = ref_between(0, 3) ? (char *)ops_at(data, OPS_DEVICE) + g * step : NULL;
        if (weights[g].data != NULL && first[g + 1] > first[g])
            multiply(&x, &single, first[g], first[g + 1] - first[g], &weights[g], 0);
    }
    const pst_grouped_matmul job = {.x = ops_rows(&x, OPS_DEVICE, 0, rows),
                                    .y = ops_rows(&y, OPS_DEVICE, 0, rows),
                                    .weights = weights,
                                    .first = ops_at(firsts, OPS_DEVICE),
                                    .groups = groups};
    assert_int_equal(ops_device(OPS_DEVICE)->ops->matmul_grouped(ops_device(OPS_DEVICE), &job), 0);
    ops_collect(text);
    same_bits(&y, &single, 0, rows, "as single products", text);
    ops_free();
    stored_free(&w);
    free(bytes);
    free(weights);
    free(first);
}

static void test_many_groups(void **state)
{
    (void)state;
    if (!ops_begin("grouped products of many matrices"))
        return;
    of_prompts = false; /* as the rows of experts */
    grouped(2, PST_BF16, 300, 1, 24, 64);
    grouped(ref_between(0, FORMATS - 1), PST_BF16, 290, 3, 17, 70);
    grouped(ref_between(0, FORMATS - 1), PST_F32, 140, 2, 20, 129);
    grouped(2, PST_BF16, 3, 200, 260, 128);
    grouped(ref_between(3, FORMATS - 1), PST_BF16, 3, 150, 260, 128);
    grouped(ref_between(0, FORMATS - 1), PST_F32, 3, 60, 40, 128);
}

/* One weight of each row is what the last ones of `bytes` say; inputs are 1: sums are of what that weight is. */
static void odd_numbers(pst_weight_format format, pst_dtype x_type, const unsigned char *odd, size_t odd_bytes,
                        double expected, double scale)
{
    enum { OUTPUTS = 9, INPUTS = 200, ROWS = 2 };
    stored w = stored_random(format, OUTPUTS, INPUTS);
    memset(w.data.data, 0, w.rows * w.row_bytes);
    for (size_t i = 0; i < w.scales.count; i++)
        ref_set(&w.scales, i, scale);
    ref_array ones = ref_input(x_type, ROWS * INPUTS, 0);
    for (size_t i = 0; i < ROWS * INPUTS; i++)
        ref_set(&ones, i, 1);
    for (size_t n = 0; n < OUTPUTS; n++) /* at least one in whole units, one in the last unit */
        memcpy((char *)w.data.data + n * w.row_bytes + (n == 0 ? INPUTS - 1 : n * 17) * odd_bytes, odd, odd_bytes);
    ops_buffer *data = ops_input(w.data.data, w.rows * w.row_bytes, 256), *scales = ops_array(&w.scales, 4);
    const ops_matrix x = ops_given(&ones, ROWS, INPUTS), y = ops_poisoned(PST_F32, ROWS, OUTPUTS);
    ops_place();
    const pst_weight all = weight_at(&w, OPS_DEVICE, data, scales, 0);
    multiply(&x, &y, 0, ROWS, &all, 0);
    ops_collect(w.text);
    for (size_t r = 0; r < ROWS; r++)
        for (size_t n = 0; n < OUTPUTS; n++) {
            const double got = ops_get(y.buffer, OPS_DEVICE, PST_F32, r * y.stride + n);
            const bool right = isnan(expected)   ? isnan(got)
                               : isinf(expected) ? got == expected
                                                 : fabs(got - expected) <= BF16_ROUNDING * fabs(expected);
            if (!right)
                fail_msg("%s x %s: row %zu column %zu is %g, not %g", pst_dtype_name(x_type), w.text, r, n, got,
                         expected);
        }
    ops_free();
    ref_free(&ones);
    stored_free(&w);
}

static void test_odd_numbers(void **state)
{
    (void)state;
    if (!ops_begin("products of numbers that are not finite or nearly so"))
        return;
    const pst_weight_format blocks = {
        .layout = PST_WEIGHT_FP8_BLOCKS, .block_rows = 128, .block_columns = 128, .scale_type = PST_F32};
    const pst_weight_format f16 = {.layout = PST_WEIGHT_PLAIN, .type = PST_F16};
    const pst_weight_format f32 = {.layout = PST_WEIGHT_PLAIN, .type = PST_F32};
    const pst_weight_format bf16 = {.layout = PST_WEIGHT_PLAIN, .type = PST_BF16};
    static const pst_dtype types[] = {PST_BF16, PST_F32};
    for (size_t i = 0; i < 2; i++) {
        odd_numbers(blocks, types[i], (const unsigned char[]){0x7f}, 1, NAN, 1);
        odd_numbers(blocks, types[i], (const unsigned char[]){0xff}, 1, NAN, 0x1p90);
        odd_numbers(blocks, types[i], (const unsigned char[]){0x7e}, 1, 448 * 0x1p100, 0x1p100);
        odd_numbers(blocks, types[i], (const unsigned char[]){0x81}, 1, 0x1p-9 * 300, -300);
        odd_numbers(blocks, types[i], (const unsigned char[]){0x81}, 1, -0x1p-9 * 1e-30, 1e-30);
        odd_numbers(f16, types[i], (const unsigned char[]){0x00, 0x7c}, 2, INFINITY, 1);
        odd_numbers(f16, types[i], (const unsigned char[]){0x00, 0x7e}, 2, NAN, 1);
        odd_numbers(f16, types[i], (const unsigned char[]){0x01, 0x80}, 2, -0x1p-24, 1);
        odd_numbers(f32, types[i], (const unsigned char[]){0, 0, 0x80, 0xff}, 4, -INFINITY, 1);
        odd_numbers(f32, types[i], (const unsigned char[]){0xff, 0xff, 0x7f, 0x7f}, 4, 0x1.fffffep127, 1);
        odd_numbers(bf16, types[i], (const unsigned char[]){0x80, 0x7f}, 2, INFINITY, 1);
    }
}

/* What rounds to -0 stays -0, whether a matrix with a row per input comes whole or cut, with few rows of x or many: as the sum
 * of products that are nothing, of a bias that is -0. */
static void test_nothing(void **state)
{
    (void)state;
    enum { INPUTS = 512, OUTPUTS = 40, MOST_ROWS = 70 };
    static const size_t rows[] = {1, 9, MOST_ROWS}, cuts[] = {INPUTS, 256, 300, 1};
    if (!ops_begin("sums that are nothing"))
        return;
    const pst_weight_format format = {.layout = PST_WEIGHT_PLAIN, .type = PST_F32, .transposed = true};
    ref_array inputs = ref_input(PST_F32, MOST_ROWS * INPUTS, 0), none = ref_input(PST_F32, OUTPUTS, 0);
    ref_array weights = ref_input(PST_F32, INPUTS * OUTPUTS, 0);
    for (size_t i = 0; i < inputs.count; i++)
        ref_set(&inputs, i, 1e-30);
    for (size_t i = 0; i < weights.count; i++)
        ref_set(&weights, i, -1e-30);
    for (size_t i = 0; i < OUTPUTS; i++)
        ref_set(&none, i, -0.0);
    const ops_matrix x = ops_given(&inputs, MOST_ROWS, INPUTS);
    ops_matrix y[3][4];
    ops_buffer *data = ops_array(&weights, 256), *bias = ops_array(&none, 256);
    for (size_t i = 0; i < 12; i++)
        y[i / 4][i % 4] = ops_poisoned(PST_F32, rows[i / 4], OUTPUTS);
    ops_place();
    pst_device *device = ops_device(OPS_DEVICE);
    for (size_t i = 0; i < 12; i++) {
        for (size_t first = 0; first < INPUTS; first += cuts[i % 4]) {
            const size_t count = cuts[i % 4] < INPUTS - first ? cuts[i % 4] : INPUTS - first;
            const pst_matmul job = {.x = ops_rows(&x, OPS_DEVICE, 0, rows[i / 4]),
                                    .w = {.data = (char *)ops_at(data, OPS_DEVICE) + first * OUTPUTS * sizeof(float),
                                          .type = PST_F32,
                                          .rows = count,
                                          .columns = OUTPUTS,
                                          .format = &format,
                                          .first_row = first},
                                    .bias = {ops_at(bias, OPS_DEVICE), PST_F32, 1, OUTPUTS, .format = NULL},
                                    .y = ops_rows(&y[i / 4][i % 4], OPS_DEVICE, 0, rows[i / 4])};
            assert_int_equal(device->ops->matmul(device, &job), 0);
        }
    }
    ops_collect("sums that are nothing");
    for (size_t i = 0; i < 12; i++)
        for (size_t r = 0; r < rows[i / 4]; r++)
            for (size_t n = 0; n < OUTPUTS; n++)
                if (bits_at(&y[i / 4][i % 4], r, n) != 0x80000000)
                    fail_msg("%zu rows, cut by %zu: row %zu column %zu is %x, not -0", rows[i / 4], cuts[i % 4], r, n,
                             (unsigned)bits_at(&y[i / 4][i % 4], r, n));
    ops_free();
    ref_free(&inputs);
    ref_free(&weights);
    ref_free(&none);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_rows),
        cmocka_unit_test(test_many_groups),
        cmocka_unit_test(test_odd_numbers),
        cmocka_unit_test(test_nothing),
    };
    return cmocka_run_group_tests_name("products", tests, ops_set_up, ops_tear_down);
}
