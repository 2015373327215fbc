/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products of every stored format, against float64 on the numbers that the bytes stand for, and the same bits however the
 * matrix is cut. Tolerance: that of f32 sums in any sane order (reference.c); where x is BF16 and the weights are not, a
 * device may round them to BF16 on their way into the product, each by 2^-8 at most and in both directions alike, so that
 * the errors of a sum add like random ones: 4 times their root of squares is 7 standard deviations.
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
enum { FORMATS = 21, MAX_GROUPS = 9, MAX_WORK = 4 << 20 /* multiplications of a case */ };

typedef struct product_case {
    stored w[MAX_GROUPS]; /* one; or of every group */
    pst_weight_format format;
    bool plain;                              /* no format */
    size_t rows, generated, outputs, inputs; /* of x the first `generated` rows are no prompt's */
    size_t tensor_row, step;                 /* the first one at hand; inputs are cut at multiples of step */
    ops_matrix x, y;
    ref_array bias_values;
    ops_buffer *data[MAX_GROUPS], *scales[MAX_GROUPS], *zeros, *index, *bias, *firsts;
    size_t first_column;
    bool accumulate;
    uint32_t groups, first[MAX_GROUPS + 1];
    double *weights; /* outputs x inputs of a group; owned */
} product_case;

/* 0 to 2: plain rows; then those of stored.h, in turn. */
static void deal_product_format(product_case *c, size_t number, bool may_transpose)
{
    static const size_t untransposed[] = {0, 1, 2, 3, 8, 9};
    c->plain = may_transpose ? number % FORMATS < 3 : number % 9 < 3;
    if (c->plain)
        c->format = (pst_weight_format){.layout = PST_WEIGHT_PLAIN, .type = plain_types[number % 3]};
    else if (may_transpose)
        assert_true(stored_format(number % FORMATS - 3, &c->format));
    else
        assert_true(stored_format(untransposed[number % 9 - 3], &c->format));
    c->step = c->format.layout == PST_WEIGHT_GPTQ ? 32 / c->format.bits : 1;
}

/* Shapes that tiles divide, and any other; a row, a few, many. */
static void deal_product_shape(product_case *c)
{
    const size_t packed = c->format.layout == PST_WEIGHT_GPTQ || c->format.layout == PST_WEIGHT_AWQ ? 8 : 1;
    const size_t kind = ref_between(0, 3);
    c->rows = kind == 0 ? 1 : kind == 3 ? ref_between(10, 150) : ref_between(2, 9);
    if (ref_between(0, 1)) {
        c->inputs = 64 * ref_between(1, ref_between(0, 3) ? 6 : 40);
        c->outputs = 16 * ref_between(1, 12);
    } else {
        c->inputs = ref_between(0, 3) ? ref_between(1, 300) : ref_between(900, 2500);
        c->outputs = ref_between(0, 3) ? ref_between(1, 60) : ref_between(60, 300);
    }
    c->inputs = (c->inputs + packed - 1) / packed * packed;
    c->outputs = (c->outputs + packed - 1) / packed * packed;
    while (c->rows * c->outputs * c->inputs > MAX_WORK)
        c->rows = (c->rows + 1) / 2, c->outputs = c->outputs > 64 ? c->outputs / 2 / packed * packed : c->outputs;
}

static size_t tensor_rows(const product_case *c)
{
    return c->format.transposed ? c->inputs / c->step : c->outputs;
}

static void deal_weights(product_case *c, size_t group)
{
    stored *w = &c->w[group];
    const size_t skipped = c->tensor_row;
    *w = stored_random(c->format, c->outputs + (c->format.transposed ? 0 : skipped), c->inputs);
    c->data[group] = ops_input((char *)w->data.data + skipped * w->row_bytes, tensor_rows(c) * w->row_bytes, 256);
    c->scales[group] = ops_array(&w->scales, ref_between(0, 2) ? ref_bytes(w->scales.type) : 1);
}

static size_t make_product(void *context, size_t number, char *text, size_t text_bytes)
{
    product_case *c = context;
    deal_product_format(c, number, true);
    deal_product_shape(c);
    c->tensor_row = c->format.transposed ? 0 : ref_between(0, 1) * ref_between(0, 150);
    c->groups = 1;
    deal_weights(c, 0);
    c->zeros = ops_array(&c->w[0].zeros, ref_between(0, 2) ? 4 : 1);
    c->index = ops_array(&c->w[0].index, ref_between(0, 2) ? 4 : 1);
    c->x = ops_random(ref_between(0, 1) ? PST_BF16 : PST_F32, c->rows, c->inputs, 1.0);
    c->generated = ref_between(0, 1) ? ref_between(0, c->rows) : ref_between(0, 1) * c->rows;
    c->first_column = ref_between(0, 1) * ref_between(0, 40);
    c->accumulate = ref_between(0, 1);
    const size_t width = c->first_column + c->outputs + ref_between(0, 1) * ref_between(0, 40);
    c->y = c->accumulate ? ops_random(PST_F32, c->rows, width, 1.0) : ops_poisoned(PST_F32, c->rows, width);
    ops_writes(&c->y);
    if (ref_between(0, 1))
        c->bias_values = ref_randoms(plain_types[ref_between(0, 2)], c->outputs, 0, 1.0);
    c->bias = ops_array(&c->bias_values, ref_bytes(c->bias_values.type));
    snprintf(text, text_bytes,
             "%s x %s, index %d, %zu rows (%zu generated) of stride %zu, outputs %zu to column %zu of stride %zu, "
             "inputs %zu, from row "
             "%zu, bias %s, accumulate %d",
             pst_dtype_name(c->x.type), c->w[0].text, c->index != NULL, c->rows, c->generated, c->x.stride, c->outputs,
             c->first_column, c->y.stride, c->inputs, c->tensor_row,
             c->bias ? pst_dtype_name(c->bias_values.type) : "none", c->accumulate);
    return c->rows;
}

static size_t max_of(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Rows [first, first + count) of those at hand, which lie at `data` + skip; with x's rows [row, row + rows). */
static pst_matmul part_of(const product_case *c, ops_side side, const ops_buffer *data, size_t first, size_t count,
                          size_t row, size_t rows)
{
    const bool transposed = c->format.transposed;
    const size_t output = transposed ? 0 : first, outputs = transposed ? c->outputs : count;
    const char *bias = ops_at(c->bias, side);
    return (pst_matmul){.x = ops_rows(&c->x, side, row, rows),
                        .w = {.data = ops_at(data, side),
                              .type = c->format.type,
                              .rows = count,
                              .columns = transposed ? c->outputs : c->inputs,
                              .format = c->plain ? NULL : &c->format,
                              .scales = ops_at(c->scales[0], side),
                              .zeros = ops_at(c->zeros, side),
                              .index = ops_at(c->index, side),
                              .first_row = c->tensor_row + first},
                        .bias = {.data = bias == NULL ? NULL : bias + output * ref_bytes(c->bias_values.type),
                                 .type = c->bias_values.type,
                                 .rows = 1,
                                 .columns = outputs},
                        .y = ops_rows(&c->y, side, row, rows),
                        .first_column = c->first_column + output,
                        .accumulate = c->accumulate,
                        .prompt_rows = row + rows > c->generated ? row + rows - max_of(row, c->generated) : 0};
}

static int run_product(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const product_case *c = context;
    const pst_matmul job = part_of(c, side, c->data[0], 0, tensor_rows(c), first, rows);
    return device->ops->matmul(device, &job);
}

/* How far y may be from sum; size: the sum of the terms' magnitudes, squares: of their squares. */
static double product_limit(const product_case *c, double sum, double size, double squares, double bias, double old)
{
    const double k = (double)c->inputs;
    /* As in reference.c. With transposed rows all inputs are one chain. */
    const double chain =
        c->format.transposed ? 2 * k + 4 : 2 * ceil((k < 2048 ? k : 2048) / 4.0) + ceil(k / 1024.0) + 4;
    double limit = F32_ROUNDING * (chain * (size + (c->format.transposed ? fabs(bias) + fabs(old) : 0)) +
                                   2 * (size + fabs(bias)) + 2 * (size + fabs(sum)));
    const bool exact = c->x.type == PST_F32 || (c->format.layout == PST_WEIGHT_PLAIN && c->format.type == PST_BF16);
    return exact ? limit : limit + 4 * BF16_ROUNDING * sqrt(squares);
}

static void check_rows(const product_case *c, size_t group, size_t first, size_t end, const char *text)
{
    const stored *w = &c->w[group];
    double *weights = malloc(c->outputs * c->inputs * sizeof *weights), *x = malloc(c->inputs * sizeof *x);
    assert_true(weights != NULL && x != NULL);
    for (size_t n = 0; n < c->outputs && first < end; n++)
        for (size_t i = 0; i < c->inputs; i++)
            weights[n * c->inputs + i] =
                (double)(float)stored_get(w, n + (c->format.transposed ? 0 : c->tensor_row), i);
    for (size_t r = first; r < end; r++) {
        for (size_t i = 0; i < c->inputs; i++)
            x[i] = ops_was(&c->x, r, i);
        for (size_t n = 0; n < c->outputs; n++) {
            double sum = 0, size = 0, squares = 0;
            for (size_t i = 0; i < c->inputs; i++) {
                const double term = x[i] * weights[n * c->inputs + i];
                sum += term;
                size += fabs(term);
                squares += term * term;
            }
            const double bias = c->bias ? ref_get(&c->bias_values, n) : 0;
            const double old = c->accumulate ? ops_was(&c->y, r, c->first_column + n) : 0;
            sum += bias + old;
            ops_near(&c->y, r, c->first_column + n, sum, product_limit(c, sum, size, squares, bias, old), text);
        }
    }
    free(weights);
    free(x);
}

/* What is not the product's stays. */
static void check_beside(const product_case *c, const char *text)
{
    ops_check_gaps(&c->y, text);
    for (size_t r = 0; r < c->y.rows; r++)
        for (size_t i = 0; i < c->y.columns; i++)
            if (i < c->first_column || i >= c->first_column + c->outputs)
                ops_near(&c->y, r, i, ops_was(&c->y, r, i), 0, text);
}

static void check_product(void *context, const char *text)
{
    const product_case *c = context;
    check_beside(c, text);
    check_rows(c, 0, 0, c->rows, text);
}

/* The matrix in pieces of some of its rows, each in memory of its own. */
static void cut_product(void *context, const char *text)
{
    product_case *c = context;
    const size_t row_bytes = c->w[0].row_bytes;
    size_t firsts[64], count = 0;
    ops_buffer *pieces[64];
    if (ref_between(0, 2) == 0)
        return;
    for (size_t first = 0, rows; first < tensor_rows(c); first += rows, count++) {
        rows = count == 15 ? tensor_rows(c) - first : ref_between(1, tensor_rows(c) - first);
        firsts[count] = first;
        pieces[count] = ops_input(ops_before(c->data[0]) + first * row_bytes, rows * row_bytes, 256);
    }
    firsts[count] = tensor_rows(c);
    ops_place();
    pst_device *device = ops_device(OPS_DEVICE);
    for (size_t i = 0; i < count; i++) {
        const pst_matmul job = part_of(c, OPS_DEVICE, pieces[i], firsts[i], firsts[i + 1] - firsts[i], 0, c->rows);
        assert_int_equal(device->ops->matmul(device, &job), 0);
    }
    ops_collect(text);
    ops_same_as_first("when the matrix is cut", text);
}

static void clear_product(void *context)
{
    product_case *c = context;
    for (size_t g = 0; g < c->groups; g++)
        stored_free(&c->w[g]);
    ref_free(&c->bias_values);
}

/* ---- grouped products ---- */

static size_t make_grouped(void *context, size_t number, char *text, size_t text_bytes)
{
    product_case *c = context;
    deal_product_format(c, number, false);
    deal_product_shape(c);
    c->groups = (uint32_t)ref_between(1, MAX_GROUPS);
    c->rows = 0;
    const size_t most = MAX_WORK / c->outputs / c->inputs / c->groups;
    for (uint32_t g = 0; g < c->groups; g++) {
        const size_t kind = ref_between(0, 4);
        const size_t rows = kind == 0 ? 0 : kind == 4 ? ref_between(5, 40) : ref_between(1, 4);
        c->first[g] = (uint32_t)c->rows;
        c->rows += rows < most ? rows : most;
        deal_weights(c, g);
        if (ref_between(0, 3) == 0)
            c->data[g] = NULL;
    }
    c->first[c->groups] = (uint32_t)c->rows;
    c->x = ops_random(ref_between(0, 1) ? PST_BF16 : PST_F32, c->rows, c->inputs, 1.0);
    c->y = ops_poisoned(PST_F32, c->rows, c->outputs);
    c->firsts = ops_input(c->first, (c->groups + 1) * sizeof *c->first, 4);
    snprintf(text, text_bytes, "%s x %s, %u groups, %zu rows, strides %zu %zu, outputs %zu, inputs %zu",
             pst_dtype_name(c->x.type), c->w[0].text, c->groups, c->rows, c->x.stride, c->y.stride, c->outputs,
             c->inputs);
    return c->rows;
}

static pst_weight group_at(const product_case *c, ops_side side, uint32_t g)
{
    return (pst_weight){.data = ops_at(c->data[g], side),
                        .type = c->format.type,
                        .rows = c->outputs,
                        .columns = c->inputs,
                        .format = c->plain ? NULL : &c->format,
                        .scales = ops_at(c->scales[g], side)};
}

static int run_grouped(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const product_case *c = context;
    (void)first;
    (void)rows;
    pst_weight weights[MAX_GROUPS];
    for (uint32_t g = 0; g < c->groups; g++)
        weights[g] = group_at(c, side, g);
    const pst_grouped_matmul job = {.x = ops_rows(&c->x, side, 0, c->rows),
                                    .y = ops_rows(&c->y, side, 0, c->rows),
                                    .weights = weights,
                                    .first = ops_at(c->firsts, side),
                                    .groups = c->groups};
    return device->ops->matmul_grouped(device, &job);
}

static void check_grouped(void *context, const char *text)
{
    const product_case *c = context;
    ops_check_gaps(&c->y, text);
    for (uint32_t g = 0; g < c->groups; g++) {
        if (c->data[g] != NULL)
            check_rows(c, g, c->first[g], c->first[g + 1], text);
        for (size_t r = c->first[g]; r < c->first[g + 1] && c->data[g] == NULL; r++)
            for (size_t i = 0; i < c->outputs; i++)
                ops_near(&c->y, r, i, ops_was(&c->y, r, i), 0, text);
    }
}

/* One product after the other. */
static void single_grouped(void *context, const char *text)
{
    const product_case *c = context;
    pst_device *device = ops_device(OPS_DEVICE);
    ops_place();
    for (uint32_t g = 0; g < c->groups; g++) {
        const size_t rows = c->first[g + 1] - c->first[g];
        const pst_matmul job = {.x = ops_rows(&c->x, OPS_DEVICE, c->first[g], rows),
                                .w = group_at(c, OPS_DEVICE, g),
                                .y = ops_rows(&c->y, OPS_DEVICE, c->first[g], rows)};
        if (c->data[g] != NULL)
            assert_int_equal(device->ops->matmul(device, &job), 0);
    }
    ops_collect(text);
    ops_same_as_first("as products of their own", text);
}

/* ---- products of heads ---- */

typedef struct heads_case {
    stored w;
    bool is_plain, rows_are_inputs; /* is_plain: no format */
    uint32_t heads;
    size_t rows, generated, head_rows, first, step, inputs, outputs; /* inputs, outputs: of a head */
    size_t x_step, y_step;
    ops_matrix x, y;
    ops_buffer *data, *scales;
} heads_case;

static size_t make_heads(void *context, size_t number, char *text, size_t text_bytes)
{
    static const size_t stored_formats[] = {0, 1, 2, 3, 8, 9};
    heads_case *c = context;
    pst_weight_format format = {.layout = PST_WEIGHT_PLAIN, .type = plain_types[number % 3]};
    c->is_plain = number % 3 != 0 || number % 2 == 0;
    if (!c->is_plain)
        assert_true(stored_format(stored_formats[number / 6 % 6], &format));
    c->rows_are_inputs = ref_between(0, 1);
    c->heads = (uint32_t)ref_between(1, 5);
    const size_t unit = ref_between(0, 1) ? 16 : 1, columns = unit * ref_between(1, unit > 1 ? 34 : 300);
    c->head_rows = unit * ref_between(1, unit > 1 ? 9 : 150);
    c->rows = ref_between(0, 2) ? ref_between(1, 12) : ref_between(1, 150);
    while (c->rows * c->heads * c->head_rows * columns > MAX_WORK)
        c->rows = (c->rows + 1) / 2, c->heads = (c->heads + 1) / 2;
    c->generated = ref_between(0, 1) ? ref_between(0, c->rows) : ref_between(0, 1) * c->rows;
    c->first = ref_between(0, 1) * ref_between(0, 150);
    c->step = c->head_rows + ref_between(0, 1) * ref_between(0, 40);
    c->inputs = c->rows_are_inputs ? c->head_rows : columns;
    c->outputs = c->rows_are_inputs ? columns : c->head_rows;
    c->x_step = c->inputs + ref_between(0, 1) * ref_between(0, 20);
    c->y_step = c->outputs + ref_between(0, 1) * ref_between(0, 20);
    const size_t last = c->heads - 1;
    c->w = stored_random(format, c->first + last * c->step + c->head_rows + ref_between(0, 1) * 3, columns);
    c->data = ops_input(c->w.data.data, c->w.rows * c->w.row_bytes, 256);
    c->scales = ops_array(&c->w.scales, ref_between(0, 2) ? ref_bytes(c->w.scales.type) : 1);
    c->x = ops_random(PST_F32, c->rows, last * c->x_step + c->inputs, 1.0);
    c->y = ops_poisoned(ref_between(0, 1) ? PST_BF16 : PST_F32, c->rows, last * c->y_step + c->outputs);
    snprintf(
        text, text_bytes,
        "%s to %s, %zu rows (%zu generated), strides %zu %zu, %u heads of %zu rows (inputs: %d), first %zu step %zu, "
        "steps of x %zu y %zu, columns %zu",
        c->w.text, pst_dtype_name(c->y.type), c->rows, c->generated, c->x.stride, c->y.stride, c->heads, c->head_rows,
        c->rows_are_inputs, c->first, c->step, c->x_step, c->y_step, columns);
    return c->rows;
}

static int run_heads(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const heads_case *c = context;
    const pst_heads_matmul job = {.x = ops_rows(&c->x, side, first, rows),
                                  .y = ops_rows(&c->y, side, first, rows),
                                  .x_step = c->x_step,
                                  .y_step = c->y_step,
                                  .w = {.data = ops_at(c->data, side),
                                        .type = c->w.format.type,
                                        .rows = c->w.outputs,
                                        .columns = c->w.inputs,
                                        .format = c->is_plain ? NULL : &c->w.format,
                                        .scales = ops_at(c->scales, side)},
                                  .first = c->first,
                                  .step = c->step,
                                  .head_rows = c->head_rows,
                                  .heads = c->heads,
                                  .rows_are_inputs = c->rows_are_inputs,
                                  .prompt_rows =
                                      first + rows > c->generated ? first + rows - max_of(first, c->generated) : 0};
    return device->ops->matmul_heads(device, &job);
}

/* The limit is that of sums of f32, in any order, of terms that are off by two roundings. */
static void check_head(const heads_case *c, size_t head, const double *weights, const char *text)
{
    for (size_t r = 0; r < c->rows; r++) {
        for (size_t o = 0; o < c->outputs; o++) {
            double sum = 0, size = 0;
            for (size_t i = 0; i < c->inputs; i++) {
                const double term = ops_was(&c->x, r, head * c->x_step + i) *
                                    weights[c->rows_are_inputs ? i * c->outputs + o : o * c->inputs + i];
                sum += term;
                size += fabs(term);
            }
            ops_near(&c->y, r, head * c->y_step + o, sum, F32_ROUNDING * ((double)c->inputs / 2 + 8) * size, text);
        }
        for (size_t i = c->outputs; i < c->y_step && head + 1 < c->heads; i++)
            ops_near(&c->y, r, head * c->y_step + i, ops_was(&c->y, r, head * c->y_step + i), 0, text);
    }
}

static void check_heads(void *context, const char *text)
{
    const heads_case *c = context;
    double *weights = malloc(c->head_rows * c->w.inputs * sizeof *weights);
    assert_non_null(weights);
    ops_check_gaps(&c->y, text);
    for (size_t head = 0; head < c->heads; head++) {
        for (size_t n = 0; n < c->head_rows; n++)
            for (size_t k = 0; k < c->w.inputs; k++)
                weights[n * c->w.inputs + k] = (double)(float)stored_get(&c->w, c->first + head * c->step + n, k);
        check_head(c, head, weights, text);
    }
    free(weights);
}

static void clear_heads(void *context)
{
    stored_free(&((heads_case *)context)->w);
}

const ops_test ops_matmul_tests[] = {
    {"matmul", 84, sizeof(product_case), make_product, run_product, check_product, cut_product, clear_product, true},
    {"matmul_grouped", 36, sizeof(product_case), make_grouped, run_grouped, check_grouped, single_grouped,
     clear_product, false},
    {"matmul_heads", 48, sizeof(heads_case), make_heads, run_heads, check_heads, NULL, clear_heads, true},
    {NULL},
};

/* An index that names a group which is not there: an error of this call or of the next wait; the device stays good. */
void ops_test_bad_index(void **state)
{
    (void)state;
    if (!ops_begin("matmul of a bad index"))
        return;
    const pst_weight_format format = {
        .layout = PST_WEIGHT_GPTQ, .transposed = true, .bits = 4, .group = 32, .scale_type = PST_F16};
    static const int32_t bad[] = {2, -1, INT32_MAX, INT32_MIN};
    pst_device *device = ops_device(OPS_DEVICE);
    for (size_t i = 0; i < 5; i++) {
        product_case c = {.format = format, .rows = 3, .outputs = 16, .inputs = 64, .step = 8, .groups = 1};
        deal_weights(&c, 0);
        int32_t index[64];
        for (size_t k = 0; k < 64; k++)
            index[k] = (int32_t)ref_between(0, 1);
        if (i < 4)
            index[ref_between(0, 63)] = bad[i];
        c.zeros = ops_array(&c.w[0].zeros, 4);
        c.index = ops_input(index, sizeof index, 4);
        c.x = ops_random(PST_F32, 3, 64, 1.0);
        c.y = ops_poisoned(PST_F32, 3, 16);
        ops_place();
        int status = run_product(&c, device, OPS_DEVICE, 0, 3);
        status = status < 0 ? status : device->ops->synchronize(device, NULL);
        assert_int_equal(status, i < 4 ? PST_E_FORMAT : 0);
        assert_int_equal(device->ops->synchronize(device, NULL), 0);
        ops_collect("a bad index");
        ops_free();
        stored_free(&c.w[0]);
    }
}
