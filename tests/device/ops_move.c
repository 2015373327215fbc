/* SPDX-License-Identifier: Apache-2.0 */
/* Operators that move rows: what is only moved or converted has the host's bits; sums of two terms have float64 beside them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device/ops.h"

/* ---- convert ---- */

typedef struct convert_case {
    stored w;
    pst_weight_format format;
    bool plain; /* without a format */
    size_t first_row;
    ops_buffer *data, *scales;
    ops_matrix y;
} convert_case;

/* The formats whose rows are rows of the matrix, and the plain types. */
static pst_weight_format deal_format(size_t number, bool *plain)
{
    static const pst_dtype types[] = {PST_F32, PST_F16, PST_BF16};
    pst_weight_format format;
    *plain = number % 9 < 3;
    if (*plain)
        return (pst_weight_format){.layout = PST_WEIGHT_PLAIN, .type = types[number % 9]};
    do
        assert_true(stored_format(ref_between(0, 9), &format));
    while (format.transposed);
    return format;
}

static size_t make_convert(void *context, size_t number, char *text, size_t text_bytes)
{
    convert_case *c = context;
    const size_t rows = ref_between(0, 3) ? ref_between(1, 9) : ref_between(10, 60);
    const size_t columns = ref_between(0, 4) ? ref_between(1, 400) : ref_between(1000, 5000);
    c->format = deal_format(number, &c->plain);
    c->first_row = ref_between(0, 40);
    c->w = stored_random(c->format, c->first_row + rows, columns);
    c->data = ops_input((char *)c->w.data.data + c->first_row * c->w.row_bytes, rows * c->w.row_bytes, 256);
    c->scales = ops_array(&c->w.scales, ref_bytes(c->format.scale_type));
    c->y = ops_poisoned(PST_F32, rows, columns);
    snprintf(text, text_bytes, "%s, rows %zu from %zu, %zu columns, stride %zu", c->w.text, rows, c->first_row, columns,
             c->y.stride);
    return rows;
}

static pst_weight rows_of(const convert_case *c, ops_side side, size_t first, size_t rows)
{
    return (pst_weight){.data = (char *)ops_at(c->data, side) + first * c->w.row_bytes,
                        .type = c->format.type,
                        .rows = rows,
                        .columns = c->w.inputs,
                        .format = c->plain ? NULL : &c->format,
                        .scales = ops_at(c->scales, side),
                        .first_row = c->first_row + first};
}

static int run_convert(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const convert_case *c = context;
    const pst_weight w = rows_of(c, side, first, rows);
    const pst_matrix y = ops_rows(&c->y, side, first, rows);
    return device->ops->convert(device, &w, &y);
}

static void check_convert(void *context, const char *text)
{
    const convert_case *c = context;
    ops_check_gaps(&c->y, text);
    for (size_t r = 0; r < c->y.rows; r++)
        for (size_t i = 0; i < c->y.columns; i++)
            ops_near(&c->y, r, i, (double)(float)stored_get(&c->w, c->first_row + r, i), 0, text);
    ops_same_as_host(c->y.buffer, text);
}

/* What convert does not do is refused. */
static void refuse_convert(void *context, const char *text)
{
    const convert_case *c = context;
    pst_device *device = ops_device(OPS_DEVICE);
    pst_weight_format format = c->format;
    format.transposed = true;
    pst_weight w = rows_of(c, OPS_DEVICE, 0, 1);
    w.format = &format;
    const pst_matrix y = ops_rows(&c->y, OPS_DEVICE, 0, 1);
    if (device->ops->convert(device, &w, &y) != PST_E_UNSUPPORTED)
        fail_msg("%s: transposed rows are not refused", text);
    assert_int_equal(device->ops->synchronize(device, NULL), 0);
}

static void clear_convert(void *context)
{
    stored_free(&((convert_case *)context)->w);
}

/* ---- copy_blocks ---- */

typedef struct blocks_case {
    ops_buffer *x, *y;
    pst_block_copy job; /* without addresses */
} blocks_case;

static size_t make_blocks(void *context, size_t number, char *text, size_t text_bytes)
{
    blocks_case *c = context;
    pst_block_copy *job = &c->job;
    *job = (pst_block_copy){.y_type = number % 2 ? PST_BF16 : PST_F32,
                            .rows = ref_between(1, 20),
                            .blocks = ref_between(1, 9),
                            .columns = ref_between(1, 130)};
    job->columns = ref_between(0, 1) ? 32 * ref_between(1, 5) : job->columns;
    job->x_block_stride = job->columns + ref_between(0, 2) * ref_between(0, 40);
    job->x_row_stride = job->blocks * job->x_block_stride + ref_between(0, 9);
    job->y_block_stride = job->columns + ref_between(0, 2) * ref_between(0, 40);
    job->y_row_stride = job->blocks * job->y_block_stride + ref_between(0, 9);
    ref_array x = ref_randoms(PST_F32, job->rows * job->x_row_stride, 0, 1.0);
    for (size_t i = 0; i < 4; i++)
        ref_set(&x, ref_between(0, x.count - 1), i % 2 ? (double)INFINITY : -1e38);
    c->x = ops_array(&x, 4);
    ref_free(&x);
    c->y = ops_output(NULL, job->rows * job->y_row_stride * ref_bytes(job->y_type), ref_bytes(job->y_type));
    snprintf(text, text_bytes, "%zu x %zu x %zu, strides %zu %zu and %zu %zu, to %s", job->rows, job->blocks,
             job->columns, job->x_row_stride, job->x_block_stride, job->y_row_stride, job->y_block_stride,
             pst_dtype_name(job->y_type));
    return job->rows;
}

static int run_blocks(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const blocks_case *c = context;
    pst_block_copy job = c->job;
    job.x = (const float *)ops_at(c->x, side) + first * job.x_row_stride;
    job.y = (char *)ops_at(c->y, side) + first * job.y_row_stride * ref_bytes(job.y_type);
    job.rows = rows;
    return device->ops->copy_blocks(device, &job);
}

/* The host's bytes; and that they are right, element by element. */
static void check_blocks(void *context, const char *text)
{
    const blocks_case *c = context;
    const pst_block_copy *job = &c->job;
    const ref_array x = {.data = (void *)(uintptr_t)ops_before(c->x), .type = PST_F32};
    ops_same_as_host(c->y, text);
    for (size_t r = 0; r < job->rows; r++)
        for (size_t b = 0; b < job->blocks; b++)
            for (size_t i = 0; i < job->columns; i++) {
                double expected = ref_get(&x, r * job->x_row_stride + b * job->x_block_stride + i);
                if (job->y_type == PST_BF16)
                    expected = ref_from_bf16(ref_to_bf16(expected));
                const size_t at = r * job->y_row_stride + b * job->y_block_stride + i;
                if (ops_get(c->y, OPS_DEVICE, job->y_type, at) != expected)
                    fail_msg("%s: [%zu][%zu][%zu]", text, r, b, i);
            }
}

/* ---- take_rows and add_rows ---- */

typedef struct gather_case {
    ops_matrix x, y;
    ops_buffer *rows, *weights;
    uint32_t *numbers; /* owned */
    ref_array factors;
} gather_case;

static size_t make_take(void *context, size_t number, char *text, size_t text_bytes)
{
    static const pst_dtype types[] = {PST_F32, PST_BF16, PST_F16};
    gather_case *c = context;
    const size_t from = ref_between(1, 60), rows = ref_between(1, 80), columns = ref_between(1, 600);
    c->x = ops_random(types[number % 3], from, columns, 1.0);
    c->y = ops_poisoned(types[number % 3], rows, columns);
    c->numbers = malloc(rows * sizeof *c->numbers);
    assert_non_null(c->numbers);
    for (size_t i = 0; i < rows; i++)
        c->numbers[i] = (uint32_t)ref_between(0, from - 1);
    c->rows = ops_input(c->numbers, rows * sizeof *c->numbers, 4);
    snprintf(text, text_bytes, "%zu of %zu rows of %zu %s, strides %zu %zu", rows, from, columns,
             pst_dtype_name(c->x.type), c->x.stride, c->y.stride);
    return rows;
}

static int run_take(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const gather_case *c = context;
    const pst_matrix x = ops_rows(&c->x, side, 0, c->x.rows), y = ops_rows(&c->y, side, first, rows);
    return device->ops->take_rows(device, &x, (const uint32_t *)ops_at(c->rows, side) + first, &y);
}

static void check_take(void *context, const char *text)
{
    const gather_case *c = context;
    ops_check_gaps(&c->y, text);
    ops_same_as_host(c->y.buffer, text);
    for (size_t r = 0; r < c->y.rows; r++)
        for (size_t i = 0; i < c->y.columns; i++)
            ops_near(&c->y, r, i, ops_was(&c->x, c->numbers[r], i), 0, text);
}

static size_t make_add(void *context, size_t number, char *text, size_t text_bytes)
{
    gather_case *c = context;
    const size_t to = ref_between(1, 80), rows = ref_between(1, to), columns = ref_between(1, 600);
    (void)number;
    c->x = ops_random(PST_F32, rows, columns, 1.0);
    c->y = ops_random(PST_F32, to, columns, 1.0);
    ops_writes(&c->y);
    c->numbers = malloc(to * sizeof *c->numbers);
    assert_non_null(c->numbers);
    for (uint32_t i = 0; i < to; i++) {
        const size_t other = ref_between(0, i);
        c->numbers[i] = c->numbers[other];
        c->numbers[other] = i;
    }
    c->factors = ref_randoms(PST_F32, rows, 0, 1.0);
    c->rows = ops_input(c->numbers, rows * sizeof *c->numbers, 4);
    c->weights = ops_array(&c->factors, 4);
    snprintf(text, text_bytes, "%zu rows to %zu of %zu columns, strides %zu %zu", rows, to, columns, c->x.stride,
             c->y.stride);
    return rows;
}

static int run_add(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const gather_case *c = context;
    const pst_matrix x = ops_rows(&c->x, side, first, rows), y = ops_rows(&c->y, side, 0, c->y.rows);
    return device->ops->add_rows(device, &x, (const uint32_t *)ops_at(c->rows, side) + first,
                                 (const float *)ops_at(c->weights, side) + first, &y);
}

static void check_add(void *context, const char *text)
{
    const gather_case *c = context;
    ops_check_gaps(&c->y, text);
    for (size_t r = 0; r < c->y.rows; r++) {
        size_t from = 0;
        while (from < c->x.rows && c->numbers[from] != r)
            from++;
        for (size_t i = 0; i < c->y.columns; i++) {
            const double old = ops_was(&c->y, r, i);
            const double term = from < c->x.rows ? ref_get(&c->factors, from) * ops_was(&c->x, from, i) : 0;
            /* a product and a sum */
            ops_near(&c->y, r, i, old + term, term == 0 ? 0 : 2 * F32_ROUNDING * (fabs(term) + fabs(old)), text);
        }
    }
}

static void clear_gather(void *context)
{
    gather_case *c = context;
    free(c->numbers);
    ref_free(&c->factors);
}

const ops_test ops_move_tests[] = {
    {"convert", 45, sizeof(convert_case), make_convert, run_convert, check_convert, refuse_convert, clear_convert,
     true},
    {"copy_blocks", 40, sizeof(blocks_case), make_blocks, run_blocks, check_blocks, NULL, NULL, true},
    {"take_rows", 40, sizeof(gather_case), make_take, run_take, check_take, NULL, clear_gather, true},
    {"add_rows", 40, sizeof(gather_case), make_add, run_add, check_add, NULL, clear_gather, true},
    {NULL},
};
