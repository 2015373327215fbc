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

static ref_product view_of(const product_case *p);

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

static void check_element(const void *product, size_t r, size_t c)
{
    const product_case *p = product;
    const ref_product view = view_of(p);
    double size = 0, sum = 0;
    for (size_t i = 0; i < p->k; i++) {
        double term = ref_get(&p->x, r * p->x_stride + i) * p->weights[c * p->k + i];
        sum += term;
        size += fabs(term);
    }
    ref_check_sum(&view, r, c, p->k, sum, size, &p->bias);
}

static void run_part(const void *product, float *y, size_t row, size_t rows, size_t column, size_t columns)
{
    const product_case *p = product;
    pst_cpu_matmul part = p->job;
    part.x = (const char *)p->x.data + row * p->x_stride * ref_bytes(p->x.type);
    part.w = (const char *)p->job.w + column * p->w.row_bytes;
    part.w_row += column;
    if (part.bias != NULL)
        part.bias = (const char *)p->bias.data + column * ref_bytes(p->bias.type);
    part.y = y;
    part.rows = rows;
    part.columns = columns;
    part.next_w = ref_between(0, 1) ? p->job.w : NULL;
    p->kernels->matmul(&part);
}

static ref_product view_of(const product_case *p)
{
    return REF_PRODUCT(p, p->job.accumulate);
}

/* The same bits from parts, and from x and w at other addresses. */
static void check_cuts(const product_case *original)
{
    product_case moved = *original;
    ref_array w = ref_input(PST_U8, original->columns * original->w.row_bytes, ref_between(0, 63));
    memcpy(w.data, original->job.w, w.count);
    moved.x = ref_copy(&original->x, ref_between(0, 1) * 4);
    moved.job.w = w.data;
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
    kernels->matmul(&p.job);
    ref_check_product(&view);
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
                const ref_product view = view_of(&p);
                ref_prepare(&view, p.y.data);
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
