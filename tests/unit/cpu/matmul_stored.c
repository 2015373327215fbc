/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix products on quantized rows, of every kernel set that runs here: against float64 on the numbers that the bytes stand
 * for, and the same bits however a product is cut.
 */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "unit/cpu/stored.h"

typedef struct product_case {
    const pst_cpu_kernels *kernels;
    size_t rows, columns, k, x_stride, y_stride;
    stored w;
    double *weights; /* columns x k, as the products take them; owned */
    ref_array x, bias, y, old;
    pst_cpu_matmul job;
    char text[300];
} product_case;

static const pst_dtype plain_types[] = {PST_F32, PST_F16, PST_BF16};

/* The products of the bf16 dot instruction take weights rounded to bf16, denormals as zero. */
static double as_taken(const product_case *p, double weight)
{
    if (p->x.type != PST_BF16 || strcmp(p->kernels->name, "avx512bf16") != 0)
        return (double)(float)weight;
    double rounded = ref_from_bf16(ref_to_bf16((double)(float)weight));
    return fabs(rounded) < 0x1p-126 ? 0.0 : rounded;
}

static void set_up(product_case *p, const pst_cpu_kernels *kernels, pst_dtype x_type, size_t kind)
{
    memset(p, 0, sizeof *p);
    p->kernels = kernels;
    p->rows = ref_between(0, 3) == 0 ? ref_between(1, 110) : ref_between(1, 9);
    p->columns = ref_between(0, 3) == 0 ? ref_between(60, 150) : ref_between(1, 40);
    p->k = ref_between(0, 3) != 0 ? ref_between(1, 300) : ref_between(900, 2500);
    bool lines = ref_between(0, 2) == 0; /* whole cache lines of x are read where they are */
    p->k = lines ? (p->k + 31) / 32 * 32 : p->k;
    p->x_stride = p->k + ref_between(0, 5) * (lines ? 32 : 1);
    p->y_stride = p->columns + ref_between(0, 5);
    p->x = ref_randoms(x_type, (p->rows - 1) * p->x_stride + p->k, lines ? 0 : ref_between(0, 15) * ref_bytes(x_type),
                       1.0);
    /* The columns of the product are rows of a larger tensor, from any one on. */
    const size_t first_row = ref_between(0, 200);
    pst_weight_format format;
    assert_true(stored_format(kind, &format) && !format.transposed);
    p->w = stored_random(format, first_row + p->columns, p->k);
    p->weights = malloc(p->columns * p->k * sizeof(double));
    assert_non_null(p->weights);
    for (size_t c = 0; c < p->columns; c++)
        for (size_t i = 0; i < p->k; i++)
            p->weights[c * p->k + i] = as_taken(p, stored_get(&p->w, first_row + c, i));
    if (ref_between(0, 1))
        p->bias = ref_randoms(plain_types[ref_between(0, 2)], p->columns, ref_between(0, 5), 1.0);
    p->y = ref_output(PST_F32, (p->rows - 1) * p->y_stride + p->columns);
    p->old = ref_randoms(PST_F32, p->y.count, 0, 1.0);
    p->job = (pst_cpu_matmul){.x = p->x.data,
                              .x_stride = p->x_stride,
                              .w = (char *)p->w.data.data + first_row * p->w.row_bytes,
                              .bias = p->bias.data,
                              .y = p->y.data,
                              .y_stride = p->y_stride,
                              .rows = p->rows,
                              .columns = p->columns,
                              .k = p->k,
                              .x_type = x_type,
                              .bias_type = p->bias.type,
                              .accumulate = ref_between(0, 1),
                              .format = &p->w.format,
                              .scales = p->w.scales.data,
                              .w_row = first_row};
    snprintf(p->text, sizeof p->text, "%s %s x %s rows %zu columns %zu from %zu k %zu bias %d accumulate %d",
             kernels->name, pst_dtype_name(x_type), p->w.text, p->rows, p->columns, first_row, p->k,
             p->bias.data != NULL, p->job.accumulate);
}

static void tear_down(product_case *p)
{
    stored_free(&p->w);
    free(p->weights);
    ref_free(&p->x);
    ref_free(&p->bias);
    ref_free(&p->y);
    ref_free(&p->old);
}

static void prepare(const product_case *p, float *y)
{
    if (p->job.accumulate)
        memcpy(y, p->old.data, p->y.count * sizeof(float));
    else
        memset(y, 0xff, p->y.count * sizeof(float));
}

static void check_element(const product_case *p, size_t r, size_t c)
{
    double size = 0, sum = 0;
    for (size_t i = 0; i < p->k; i++) {
        double product = ref_get(&p->x, r * p->x_stride + i) * p->weights[c * p->k + i];
        sum += product;
        size += fabs(product);
    }
    /* As for plain weights (matmul.c). */
    double chain = 2.0 * ceil((double)(p->k < 2048 ? p->k : 2048) / 4.0) + ceil((double)p->k / 1024.0) + 4.0;
    double limit = F32_ROUNDING * chain * size;
    if (p->bias.data != NULL) {
        sum += ref_get(&p->bias, c);
        limit += 2 * F32_ROUNDING * (size + fabs(ref_get(&p->bias, c)));
    }
    if (p->job.accumulate) {
        sum += ref_get(&p->old, r * p->y_stride + c);
        limit += 2 * F32_ROUNDING * (size + fabs(sum));
    }
    double y = ref_get(&p->y, r * p->y_stride + c);
    if (!(fabs(y - sum) <= limit))
        fail_msg("%s: y[%zu][%zu] = %.9g, expected %.9g within %.3g", p->text, r, c, y, sum, limit);
}

/* Computes y again from rectangles of random sizes, and from x and w at other addresses, and wants the same bits. */
static void check_cuts(const product_case *p)
{
    const size_t row_bytes = p->w.row_bytes;
    ref_array x = ref_input(p->x.type, p->x.count, ref_between(0, 1) * 4);
    ref_array w = ref_input(PST_U8, p->columns * row_bytes, ref_between(0, 63));
    memcpy(x.data, p->x.data, x.count * ref_bytes(x.type));
    memcpy(w.data, p->job.w, w.count);
    ref_array again = ref_output(PST_F32, p->y.count);
    prepare(p, again.data);
    for (size_t row = 0, rows; row < p->rows; row += rows) {
        rows = ref_between(1, p->rows - row);
        for (size_t column = 0, columns; column < p->columns; column += columns) {
            columns = ref_between(1, p->columns - column);
            pst_cpu_matmul part = p->job;
            part.x = (const char *)x.data + row * p->x_stride * ref_bytes(x.type);
            part.w = (const char *)w.data + column * row_bytes;
            part.w_row += column;
            if (part.bias != NULL)
                part.bias = (const char *)p->bias.data + column * ref_bytes(p->bias.type);
            part.y = (float *)again.data + row * p->y_stride + column;
            part.rows = rows;
            part.columns = columns;
            part.next_w = ref_between(0, 1) ? w.data : NULL;
            p->kernels->matmul(&part);
        }
    }
    ref_check_guards(&again, p->text);
    if (memcmp(again.data, p->y.data, p->y.count * sizeof(float)) != 0)
        fail_msg("%s: other bits when cut", p->text);
    ref_free(&again);
    ref_free(&x);
    ref_free(&w);
}

/* The gaps between the rows of y are not the product's. */
static void check_gaps(const product_case *p)
{
    for (size_t i = 0; i < p->y.count; i++) {
        if (i % p->y_stride < p->columns)
            continue;
        double value = ref_get(&p->y, i);
        if (p->job.accumulate ? value != ref_get(&p->old, i) : !isnan(value))
            fail_msg("%s: the gap after row %zu was written", p->text, i / p->y_stride);
    }
}

static void check_product(const pst_cpu_kernels *kernels, pst_dtype x_type, size_t kind)
{
    product_case p;
    set_up(&p, kernels, x_type, kind);
    prepare(&p, p.y.data);
    kernels->matmul(&p.job);
    ref_check_guards(&p.y, p.text);
    check_gaps(&p);
    for (size_t n = 0; n < 25; n++)
        check_element(&p, ref_between(0, p.rows - 1), ref_between(0, p.columns - 1));
    check_element(&p, p.rows - 1, p.columns - 1);
    check_cuts(&p);
    tear_down(&p);
}

static void test_products(void **unused)
{
    (void)unused;
    ref_seed("matmul stored");
    const pst_cpu_kernels *kernels;
    pst_weight_format format;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t kind = 0; stored_format(kind, &format); kind++) {
            for (size_t i = 0; i < 12 && !format.transposed; i++)
                check_product(kernels, i % 2 ? PST_BF16 : PST_F32, kind);
        }
    }
}

/* All 256 codes of F8_E4M3, each alone in its row: also those which are NaN, and only they. */
static void test_f8_codes(void **unused)
{
    (void)unused;
    enum { K = 37, AT = 21 };
    const pst_cpu_kernels *kernels;
    const pst_weight_format format = {
        .layout = PST_WEIGHT_FP8_BLOCKS, .block_rows = 256, .block_columns = 16, .scale_type = PST_F32};
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t t = 0; t < 2; t++) {
            ref_array x = ref_input(t ? PST_BF16 : PST_F32, K, 0), w = ref_input(PST_U8, 256 * K, 3);
            ref_array y = ref_output(PST_F32, 256), scales = ref_input(PST_F32, 3, 1);
            ref_set(&x, AT, 1.0);
            ref_set(&scales, 1, 0.5);
            for (size_t c = 0; c < 256; c++)
                ((unsigned char *)w.data)[c * K + AT] = (unsigned char)c;
            pst_cpu_matmul job = {.x = x.data,
                                  .x_stride = K,
                                  .w = w.data,
                                  .y = y.data,
                                  .y_stride = 256,
                                  .rows = 1,
                                  .columns = 256,
                                  .k = K,
                                  .x_type = x.type,
                                  .format = &format,
                                  .scales = scales.data};
            kernels->matmul(&job);
            for (size_t c = 0; c < 256; c++) {
                const double expected = stored_f8((unsigned char)c) * 0.5, got = ref_get(&y, c);
                if (isnan(expected) ? !isnan(got) : got != expected)
                    fail_msg("%s: code %zu is %g, expected %g", kernels->name, c, got, expected);
            }
            ref_free(&x);
            ref_free(&w);
            ref_free(&y);
            ref_free(&scales);
        }
    }
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* they make frames larger */
/* ---- stack ---- */

enum { PAINTED_BYTES = 1 << 20, PAINT = 0xa5 };

static void *run_job(void *context)
{
    const product_case *p = context;
    p->kernels->matmul(&p->job);
    return NULL;
}

/* The stack that a product takes, threads' own part included: what is no longer as it was painted. */
static size_t stack_of(product_case *p)
{
    unsigned char *stack = aligned_alloc(4096, PAINTED_BYTES);
    assert_non_null(stack);
    memset(stack, PAINT, PAINTED_BYTES);
    pthread_attr_t attributes;
    pthread_t thread;
    assert_int_equal(pthread_attr_init(&attributes), 0);
    assert_int_equal(pthread_attr_setstack(&attributes, stack, PAINTED_BYTES), 0);
    assert_int_equal(pthread_create(&thread, &attributes, run_job, p), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    pthread_attr_destroy(&attributes);
    size_t untouched = 0;
    while (untouched < PAINTED_BYTES && stack[untouched] == PAINT)
        untouched++;
    free(stack);
    return PAINTED_BYTES - untouched;
}

/* Planners count so much for every thread. */
static void test_stack(void **unused)
{
    (void)unused;
    ref_seed("stack");
    const pst_cpu_kernels *kernels;
    pst_weight_format format;
    size_t most = 0;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t kind = 0; stored_format(kind, &format); kind++) {
            for (size_t i = 0; i < 6 && !format.transposed; i++) {
                product_case p;
                set_up(&p, kernels, i % 2 ? PST_BF16 : PST_F32, kind);
                prepare(&p, p.y.data);
                size_t bytes = stack_of(&p);
                most = bytes > most ? bytes : most;
                tear_down(&p);
            }
        }
    }
    print_message("most stack: %zu bytes\n", most);
    assert_in_range(most, 1, PST_CPU_STACK_BYTES);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_f8_codes),
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
        cmocka_unit_test(test_stack),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
