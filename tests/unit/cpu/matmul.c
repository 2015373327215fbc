/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix products of every kernel set that runs here: against float64, and the same bits however a product is cut.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "unit/cpu/reference.h"

typedef struct product_case {
    const pst_cpu_kernels *kernels;
    size_t rows, columns, k, x_stride, y_stride;
    ref_array x, w, bias, y, old; /* bias.data NULL: none */
    pst_cpu_matmul job;
    char text[160];
} product_case;

static ref_product view_of(const product_case *p);

static const pst_dtype weight_types[] = {PST_F32, PST_F16, PST_BF16};

static void set_up(product_case *p, const pst_cpu_kernels *kernels, pst_dtype x_type, pst_dtype w_type)
{
    memset(p, 0, sizeof *p);
    p->kernels = kernels;
    p->rows = ref_between(0, 2) == 0 ? ref_between(1, 70) : ref_between(1, 9);
    p->columns = ref_between(0, 2) == 0 ? ref_between(100, 300) : ref_between(1, 40);
    /* Ends of every length, and past one and two blocks of k. */
    p->k = ref_between(0, 2) != 0 ? ref_between(1, 150) : ref_between(900, 4200);
    /* A third with whole cache lines of x, which are read where they are; the others are copied first. */
    bool lines = ref_between(0, 2) == 0;
    p->k = lines ? (p->k + 31) / 32 * 32 : p->k;
    p->x_stride = p->k + ref_between(0, 5) * (lines ? 32 : 1);
    p->y_stride = p->columns + ref_between(0, 5);
    p->x = ref_randoms(x_type, (p->rows - 1) * p->x_stride + p->k, lines ? 0 : ref_between(0, 15) * ref_bytes(x_type),
                       1.0);
    size_t misalignment = ref_between(0, 1) * ref_between(0, 63); /* odd addresses too */
    p->w = ref_randoms(w_type, p->columns * p->k, misalignment, 0.5);
    if (ref_between(0, 1))
        p->bias = ref_randoms(weight_types[ref_between(0, 2)], p->columns, ref_between(0, 5), 1.0);
    p->y = ref_output(PST_F32, (p->rows - 1) * p->y_stride + p->columns);
    bool accumulate = ref_between(0, 1);
    p->old = ref_randoms(PST_F32, p->y.count, 0, 1.0);
    p->job = (pst_cpu_matmul){.x = p->x.data,
                              .x_stride = p->x_stride,
                              .w = p->w.data,
                              .bias = p->bias.data,
                              .y = p->y.data,
                              .y_stride = p->y_stride,
                              .rows = p->rows,
                              .columns = p->columns,
                              .k = p->k,
                              .x_type = x_type,
                              .w_type = w_type,
                              .bias_type = p->bias.type,
                              .accumulate = accumulate};
    snprintf(p->text, sizeof p->text, "%s %s x %s rows %zu columns %zu k %zu misaligned %zu bias %d accumulate %d",
             kernels->name, pst_dtype_name(x_type), pst_dtype_name(w_type), p->rows, p->columns, p->k, misalignment,
             p->bias.data != NULL, accumulate);
}

static void tear_down(product_case *p)
{
    ref_free(&p->x);
    ref_free(&p->w);
    ref_free(&p->bias);
    ref_free(&p->y);
    ref_free(&p->old);
}

static void check_element(const void *product, size_t r, size_t c)
{
    const product_case *p = product;
    const ref_product view = view_of(p);
    double size, sum = ref_dot(&p->x, r * p->x_stride, &p->w, c * p->k, p->k, &size);
    ref_check_sum(&view, r, c, p->k, sum, size, &p->bias);
}

static void run_part(const void *product, float *y, size_t row, size_t rows, size_t column, size_t columns)
{
    const product_case *p = product;
    pst_cpu_matmul part = p->job;
    part.x = (const char *)p->x.data + row * p->x_stride * ref_bytes(p->x.type);
    part.w = (const char *)p->w.data + column * p->k * ref_bytes(p->w.type);
    if (part.bias != NULL)
        part.bias = (const char *)p->bias.data + column * ref_bytes(p->bias.type);
    part.y = y;
    part.rows = rows;
    part.columns = columns;
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
    moved.x = ref_copy(&original->x, ref_between(0, 1) * 4);
    moved.w = ref_copy(&original->w, ref_between(0, 3));
    const ref_product view = view_of(&moved);
    ref_check_cuts(&view);
    ref_free(&moved.x);
    ref_free(&moved.w);
}

static void test_products(void **unused)
{
    (void)unused;
    ref_seed("matmul");
    const pst_cpu_kernels *kernels;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t i = 0; i < 6 * 12; i++) {
            product_case p;
            set_up(&p, kernels, i % 2 ? PST_BF16 : PST_F32, weight_types[i / 2 % 3]);
            const ref_product view = view_of(&p);
            ref_prepare(&view, p.y.data);
            kernels->matmul(&p.job);
            ref_check_product(&view);
            check_cuts(&p);
            check_cuts(&p);
            tear_down(&p);
        }
    }
}

/* Weights of more bits than bf16 are not rounded: the smallest f32 and f16 differences count. */
static void test_weights_are_exact(void **unused)
{
    (void)unused;
    const pst_cpu_kernels *kernels;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t t = 0; t < 3; t++) {
            for (size_t column = 0; column < 5; column++) {
                ref_array x = ref_input(PST_BF16, 40, 0), w = ref_input(weight_types[t], 40 * 5, 1);
                ref_array y = ref_output(PST_F32, 5);
                double step = weight_types[t] == PST_F32 ? 0x1p-23 : weight_types[t] == PST_F16 ? 0x1p-10 : 0x1p-7;
                ref_set(&x, 37, -2.0);
                ref_set(&w, column * 40 + 37, 1.0 + step);
                pst_cpu_matmul job = {.x = x.data,
                                      .x_stride = 40,
                                      .w = w.data,
                                      .y = y.data,
                                      .y_stride = 5,
                                      .rows = 1,
                                      .columns = 5,
                                      .k = 40,
                                      .x_type = PST_BF16,
                                      .w_type = weight_types[t]};
                kernels->matmul(&job);
                for (size_t c = 0; c < 5; c++)
                    assert_true(ref_get(&y, c) == (c == column ? -2.0 * (1.0 + step) : 0.0));
                ref_free(&x);
                ref_free(&w);
                ref_free(&y);
            }
        }
    }
}

static void test_selection(void **unused)
{
    (void)unused;
    assert_non_null(pst_cpu_available(0));
    assert_ptr_equal(pst_cpu_select(NULL), pst_cpu_available(0));
    assert_null(pst_cpu_select("avx1024"));
    assert_null(pst_cpu_select(""));
    assert_string_equal(pst_cpu_select("portable")->name, "portable");
    size_t count = 0;
    for (; pst_cpu_available(count) != NULL; count++)
        assert_ptr_equal(pst_cpu_select(pst_cpu_available(count)->name), pst_cpu_available(count));
    printf("%zu kernel sets run here, the best is %s\n", count, pst_cpu_available(0)->name);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_selection),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_weights_are_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
