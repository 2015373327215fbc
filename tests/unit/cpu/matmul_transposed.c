/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products with matrices whose rows are inputs, of every kernel set that runs here: against float64 on the numbers that the
 * bytes stand for, and the same bits however rows, outputs and inputs are cut.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "unit/cpu/stored.h"

typedef struct product_case {
    const pst_cpu_kernels *kernels;
    size_t rows, first_output, columns, x_stride, y_stride;
    size_t step; /* inputs are cut at multiples */
    stored w;
    ref_array x, bias, y, old;
    pst_cpu_transposed job; /* the whole */
    char text[320];
} product_case;

static ref_product view_of(const product_case *p);

static const pst_dtype plain_types[] = {PST_F32, PST_F16, PST_BF16};

static void set_up(product_case *p, const pst_cpu_kernels *kernels, pst_dtype x_type, size_t kind)
{
    memset(p, 0, sizeof *p);
    p->kernels = kernels;
    pst_weight_format format;
    assert_true(stored_format(kind, &format) && format.transposed);
    const size_t packed = format.layout == PST_WEIGHT_GPTQ ? 32 / format.bits : format.layout == PST_WEIGHT_AWQ ? 8 : 1;
    p->step = format.layout == PST_WEIGHT_GPTQ ? packed : 1;
    size_t outputs = ref_between(0, 1) ? ref_between(1, 40) : ref_between(40, 300);
    size_t inputs = ref_between(0, 1) ? ref_between(1, 60) : ref_between(60, 400);
    outputs = (outputs + packed - 1) / packed * packed;
    inputs = (inputs + p->step - 1) / p->step * p->step;
    p->w = stored_random(format, outputs, inputs);
    p->rows = ref_between(0, 3) == 0 ? ref_between(1, 60) : ref_between(1, 9);
    p->first_output = ref_between(0, 2) ? 0 : ref_between(0, outputs - 1);
    p->columns = ref_between(0, 2) ? outputs - p->first_output : ref_between(1, outputs - p->first_output);
    p->x_stride = inputs + ref_between(0, 5);
    p->y_stride = p->columns + ref_between(0, 5);
    p->x = ref_randoms(x_type, (p->rows - 1) * p->x_stride + inputs, ref_between(0, 15) * ref_bytes(x_type), 1.0);
    if (ref_between(0, 1))
        p->bias = ref_randoms(plain_types[ref_between(0, 2)], p->columns, ref_between(0, 5), 1.0);
    p->y = ref_output(PST_F32, (p->rows - 1) * p->y_stride + p->columns);
    p->old = ref_randoms(PST_F32, p->y.count, 0, 1.0);
    p->job = (pst_cpu_transposed){.x = p->x.data,
                                  .x_stride = p->x_stride,
                                  .x_type = x_type,
                                  .bias_type = p->bias.type,
                                  .w = p->w.data.data,
                                  .format = &p->w.format,
                                  .scales = p->w.scales.data,
                                  .zeros = p->w.zeros.data,
                                  .index = p->w.index.data,
                                  .outputs = outputs,
                                  .first_output = p->first_output,
                                  .columns = p->columns,
                                  .inputs = inputs,
                                  .bias = p->bias.data,
                                  .y = p->y.data,
                                  .y_stride = p->y_stride,
                                  .rows = p->rows,
                                  .begin = ref_between(0, 4) != 0,
                                  .accumulate = ref_between(0, 1)};
    snprintf(p->text, sizeof p->text, "%s %s x %s index %d rows %zu inputs %zu outputs %zu..%zu of %zu bias %d %s",
             kernels->name, pst_dtype_name(x_type), p->w.text, p->w.index.data != NULL, p->rows, inputs,
             p->first_output, p->first_output + p->columns - 1, outputs, p->bias.data != NULL,
             !p->job.begin       ? "goes on"
             : p->job.accumulate ? "accumulates"
                                 : "begins");
}

static void tear_down(product_case *p)
{
    stored_free(&p->w);
    ref_free(&p->x);
    ref_free(&p->bias);
    ref_free(&p->y);
    ref_free(&p->old);
}

static bool takes_old(const product_case *p)
{
    return !p->job.begin || p->job.accumulate;
}

static void check_element(const void *product, size_t r, size_t c)
{
    const product_case *p = product;
    const ref_product view = view_of(p);
    double sum = takes_old(p) ? ref_get(&p->old, r * p->y_stride + c) : 0.0;
    if (p->job.begin && p->bias.data != NULL)
        sum += ref_get(&p->bias, c);
    double size = fabs(sum) + fabs(takes_old(p) ? ref_get(&p->old, r * p->y_stride + c) : 0.0);
    for (size_t i = 0; i < p->job.inputs; i++) {
        double weight = (double)(float)stored_get(&p->w, p->first_output + c, i);
        double term = ref_get(&p->x, r * p->x_stride + i) * weight;
        sum += term;
        size += fabs(term);
    }
    /* One rounding of the chain per input, two where product and sum are rounded apart, and the start's. */
    const double limit = F32_ROUNDING * (2.0 * (double)p->job.inputs + 2.0) * size;
    ref_check_value(&view, r, c, sum, limit);
}

/* All inputs, in runs of random lengths, for one rectangle of y. */
static void run_part(const void *product, float *y, size_t row, size_t rows, size_t column, size_t columns)
{
    const product_case *p = product;
    const char *x = p->x.data, *w = p->w.data.data;
    for (size_t first = 0, n; first < p->job.inputs; first += n) {
        n = ref_between(1, (p->job.inputs - first) / p->step) * p->step;
        pst_cpu_transposed part = p->job;
        part.x = x + (row * p->x_stride + first) * ref_bytes(p->x.type);
        part.w = w + first / p->step * p->w.row_bytes;
        part.first_input = first;
        part.inputs = n;
        part.first_output += column;
        part.columns = columns;
        part.bias = part.bias == NULL ? NULL : (const char *)p->bias.data + column * ref_bytes(p->bias.type);
        part.y = y;
        part.rows = rows;
        part.begin = p->job.begin && first == 0;
        p->kernels->matmul_transposed(&part);
    }
}

static ref_product view_of(const product_case *p)
{
    return REF_PRODUCT(p, takes_old(p));
}

/* The same bits from parts, and from x and w at other addresses. */
static void check_cuts(const product_case *original)
{
    product_case moved = *original;
    moved.x = ref_copy(&original->x, ref_between(0, 1) * 4);
    ref_array w = ref_input(PST_U8, original->w.data.count * ref_bytes(original->w.data.type), ref_between(0, 63));
    memcpy(w.data, original->w.data.data, w.count);
    moved.w.data.data = w.data;
    const ref_product view = view_of(&moved);
    ref_check_cuts(&view);
    ref_free(&moved.x);
    ref_free(&w);
}

static void check_product(const pst_cpu_kernels *kernels, pst_dtype x_type, size_t kind)
{
    product_case p;
    set_up(&p, kernels, x_type, kind);
    const ref_product view = view_of(&p);
    ref_prepare(&view, p.y.data);
    kernels->matmul_transposed(&p.job);
    ref_check_product(&view);
    check_cuts(&p);
    tear_down(&p);
}

static void test_products(void **unused)
{
    (void)unused;
    ref_seed("matmul transposed");
    const pst_cpu_kernels *kernels;
    pst_weight_format format;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t kind = 0; stored_format(kind, &format); kind++) {
            for (size_t i = 0; i < 12 && format.transposed; i++)
                check_product(kernels, i % 2 ? PST_BF16 : PST_F32, kind);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
