/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of every kernel set that runs here: against float64, and the same bits for a prompt taken whole, in
 * chunks, or row by row with nothing but NaN in the cache where the later rows' keys will be.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "unit/cpu/reference.h"

static const size_t head_dims[] = {1, 3, 12, 20, 64, 80, 96, 128, 256};

typedef struct attention_case {
    const pst_cpu_kernels *kernels;
    size_t rows, first, group, dim, window, q_stride, out_stride, positions;
    ref_array q, k, v, out;
    pst_cpu_attention job;
    char text[160];
} attention_case;

static void set_up(attention_case *a, const pst_cpu_kernels *kernels, size_t dim)
{
    static const size_t groups[] = {1, 2, 3, 4, 7, 8};
    memset(a, 0, sizeof *a);
    a->kernels = kernels;
    a->dim = dim;
    a->rows = ref_between(0, 1) ? ref_between(1, 8) : ref_between(9, 40);
    a->first = ref_between(0, 2) ? ref_between(0, 200) : 0;
    a->group = groups[ref_between(0, 5)];
    a->window = ref_between(0, 1) ? 0 : ref_between(1, 150);
    a->positions = a->first + a->rows;
    a->q_stride = a->group * dim + ref_between(0, 3);
    a->out_stride = a->group * dim + ref_between(0, 3);
    pst_dtype kv_type = ref_between(0, 1) ? PST_F16 : PST_F32, out_type = ref_between(0, 1) ? PST_BF16 : PST_F32;
    a->q = ref_randoms(PST_F32, (a->rows - 1) * a->q_stride + a->group * dim, 0, 2.0);
    a->k = ref_randoms(kv_type, a->positions * dim, 0, 1.0);
    a->v = ref_randoms(kv_type, a->positions * dim, 0, 1.0);
    a->out = ref_output(out_type, (a->rows - 1) * a->out_stride + a->group * dim);
    a->job = (pst_cpu_attention){.q = a->q.data,
                                 .q_stride = a->q_stride,
                                 .out = a->out.data,
                                 .out_stride = a->out_stride,
                                 .out_type = out_type,
                                 .kv_type = kv_type,
                                 .k = a->k.data,
                                 .v = a->v.data,
                                 .rows = (uint32_t)a->rows,
                                 .group = (uint32_t)a->group,
                                 .head_dim = (uint32_t)dim,
                                 .first_position = (uint32_t)a->first,
                                 .window = (uint32_t)a->window,
                                 .scale = 1.0f / sqrtf((float)dim)};
    snprintf(a->text, sizeof a->text, "%s rows %zu at %zu group %zu head_dim %zu window %zu kv %s out %s",
             kernels->name, a->rows, a->first, a->group, dim, a->window, pst_dtype_name(kv_type),
             pst_dtype_name(out_type));
}

static void tear_down(attention_case *a)
{
    ref_free(&a->q);
    ref_free(&a->k);
    ref_free(&a->v);
    ref_free(&a->out);
}

static void run(const attention_case *a, pst_cpu_attention job)
{
    size_t floats = pst_cpu_attention_scratch_floats((size_t)job.rows * job.group, job.head_dim);
    ref_array scratch = ref_output(PST_F32, floats);
    job.scratch = scratch.data;
    a->kernels->attention(&job);
    ref_check_guards(&scratch, a->text);
    ref_free(&scratch);
}

/* One query: row r, head g of the group. */
static void check_query(const attention_case *a, size_t r, size_t g)
{
    double *expected = malloc(a->dim * sizeof *expected), error;
    size_t end = a->first + r + 1, first = a->window > 0 && end > a->window ? end - a->window : 0;
    assert_non_null(expected);
    ref_attend(&a->q, r * a->q_stride + g * a->dim, &a->k, &a->v, a->dim, first, end, (double)a->job.scale, expected,
               &error);
    for (size_t d = 0; d < a->dim; d++) {
        double out = ref_get(&a->out, r * a->out_stride + g * a->dim + d);
        double limit = error + (a->out.type == PST_BF16 ? BF16_ROUNDING * (fabs(expected[d]) + error) : 0.0);
        if (!(fabs(out - expected[d]) <= limit))
            fail_msg("%s: row %zu head %zu [%zu] = %.9g, expected %.9g within %.3g", a->text, r, g, d, out, expected[d],
                     limit);
    }
    free(expected);
}

/* The first and the last row, and some between. */
static void check_reference(const attention_case *a)
{
    check_query(a, 0, 0);
    check_query(a, a->rows - 1, a->group - 1);
    for (size_t i = 0; i < 10; i++)
        check_query(a, ref_between(0, a->rows - 1), ref_between(0, a->group - 1));
}

/* Rows in pieces of at most `most`; what a piece may not see yet is NaN in the cache it is given. */
static void check_pieces(const attention_case *a, size_t most)
{
    ref_array again = ref_output(a->out.type, a->out.count);
    size_t bytes = ref_bytes(a->k.type) * a->dim, rows;
    for (size_t row = 0; row < a->rows; row += rows) {
        rows = ref_between(1, most < a->rows - row ? most : a->rows - row);
        size_t seen = (a->first + row + rows) * bytes;
        ref_array k = ref_output(a->k.type, a->k.count), v = ref_output(a->v.type, a->v.count);
        memcpy(k.data, a->k.data, seen);
        memcpy(v.data, a->v.data, seen);
        pst_cpu_attention job = a->job;
        job.q += row * a->q_stride;
        job.out = (char *)again.data + row * a->out_stride * ref_bytes(a->out.type);
        job.k = k.data;
        job.v = v.data;
        job.rows = (uint32_t)rows;
        job.first_position += (uint32_t)row;
        run(a, job);
        ref_free(&k);
        ref_free(&v);
    }
    ref_check_guards(&again, a->text);
    if (memcmp(again.data, a->out.data, a->out.count * ref_bytes(a->out.type)) != 0)
        fail_msg("%s: other bits in pieces of at most %zu", a->text, most);
    ref_free(&again);
}

/* One head of the group alone: the same bits as among the others. */
static void check_heads(const attention_case *a)
{
    ref_array again = ref_output(a->out.type, a->out.count);
    for (size_t g = 0; g < a->group; g++) {
        pst_cpu_attention job = a->job;
        job.q += g * a->dim;
        job.out = (char *)again.data + g * a->dim * ref_bytes(a->out.type);
        job.group = 1;
        run(a, job);
    }
    ref_check_guards(&again, a->text);
    if (memcmp(again.data, a->out.data, a->out.count * ref_bytes(a->out.type)) != 0)
        fail_msg("%s: other bits head by head", a->text);
    ref_free(&again);
}

static void test_attention(void **unused)
{
    (void)unused;
    ref_seed("attention");
    const pst_cpu_kernels *kernels;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t i = 0; i < 4 * sizeof head_dims / sizeof *head_dims; i++) {
            attention_case a;
            set_up(&a, kernels, head_dims[i % (sizeof head_dims / sizeof *head_dims)]);
            run(&a, a.job);
            ref_check_guards(&a.out, a.text);
            check_reference(&a);
            check_pieces(&a, 1);
            check_pieces(&a, 20);
            check_heads(&a);
            tear_down(&a);
        }
    }
}

/* Scores so far apart that all but one exponential vanish, the largest first, last and between. */
static void test_extreme_scores(void **unused)
{
    (void)unused;
    const pst_cpu_kernels *kernels;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t winner = 0; winner < 200; winner += 33) {
            ref_array q = ref_input(PST_F32, 16, 0), k = ref_input(PST_F16, 200 * 16, 0),
                      v = ref_input(PST_F16, 200 * 16, 0);
            ref_array out = ref_output(PST_F32, 16);
            for (size_t d = 0; d < 16; d++)
                ref_set(&q, d, 1000.0);
            for (size_t j = 0; j < 200; j++) {
                for (size_t d = 0; d < 16; d++) {
                    ref_set(&k, j * 16 + d, j == winner ? 60000.0 : -60000.0);
                    ref_set(&v, j * 16 + d, (double)j + 1.0);
                }
            }
            float scratch[2 * 16 + 2];
            pst_cpu_attention job = {.q = q.data,
                                     .q_stride = 16,
                                     .out = out.data,
                                     .out_stride = 16,
                                     .out_type = PST_F32,
                                     .kv_type = PST_F16,
                                     .k = k.data,
                                     .v = v.data,
                                     .rows = 1,
                                     .group = 1,
                                     .head_dim = 16,
                                     .first_position = 199,
                                     .scale = 1.0f,
                                     .scratch = scratch};
            kernels->attention(&job);
            for (size_t d = 0; d < 16; d++)
                assert_true(ref_get(&out, d) == (double)winner + 1.0);
            ref_free(&q);
            ref_free(&k);
            ref_free(&v);
            ref_free(&out);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_extreme_scores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
