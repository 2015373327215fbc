/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of every kernel set that runs here, on every kind of cache: against float64, and the same bits for a prompt
 * taken whole, in chunks, or row by row with nothing but NaN in the cache where the later rows' keys will be. Rows of the
 * cache: what is stored is as near as the format promises.
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
enum { DIMS = sizeof head_dims / sizeof *head_dims, MAX_BLOCKS = 8 };

typedef struct attention_case {
    const pst_cpu_kernels *kernels;
    size_t rows, first, group, window, q_stride, out_stride, positions, blocks;
    pst_kv_layout layout;
    uint32_t kv_head;
    ref_array q, out;
    ref_array k, v; /* the head's keys and values as they were stored, a row per position */
    unsigned char *block[MAX_BLOCKS];
    float slopes[8];
    pst_cpu_attention job;
    char text[200];
} attention_case;

/* The bytes of a position's key (value) of the head. */
static unsigned char *stored_row(const attention_case *a, unsigned char *const *blocks, size_t position, bool value)
{
    uint64_t offset = value ? pst_kv_value_offset(&a->layout, a->kv_head) : pst_kv_key_offset(&a->layout, a->kv_head);
    uint32_t dim = value && !a->layout.shared ? a->layout.value_dim : a->layout.key_dim;
    return blocks[position / PST_KV_BLOCK] + offset + position % PST_KV_BLOCK * pst_kv_row_bytes(a->layout.type, dim);
}

/* An element of a stored row, from what cpu/kv.h says of the format. */
static double decode(pst_kv_type type, const unsigned char *row, size_t dim, size_t d, double *scale)
{
    uint16_t half;
    float whole;
    *scale = 0;
    if (type == PST_KV_F32) {
        memcpy(&whole, row + 4 * d, 4);
        return (double)whole;
    }
    if (type == PST_KV_F16) {
        memcpy(&half, row + 2 * d, 2);
        return ref_from_f16(half);
    }
    size_t code_bytes = type == PST_KV_Q8 ? dim : (dim + 1) / 2;
    const unsigned char *parameters = row + code_bytes + d / 64 * 4;
    unsigned code = type == PST_KV_Q8 ? row[d] : d % 2 ? row[d / 2] >> 4 : row[d / 2] & 15;
    memcpy(&half, parameters, 2);
    *scale = ref_from_f16(half);
    memcpy(&half, parameters + 2, 2);
    double minimum = ref_from_f16(half);
    return code * *scale + minimum;
}

static void fill_cache(attention_case *a)
{
    const pst_kv_layout *l = &a->layout;
    const size_t bytes = pst_kv_block_bytes(l);
    a->blocks = (a->positions + PST_KV_BLOCK - 1) / PST_KV_BLOCK;
    for (size_t i = 0; i < a->blocks; i++) {
        a->block[i] = malloc(bytes);
        assert_non_null(a->block[i]);
        memset(a->block[i], 0xff, bytes); /* NaN as an element of f32 or f16, and as a scale */
    }
    ref_array k = ref_randoms(PST_F32, a->positions * l->key_dim, 0, 1.0);
    ref_array v = ref_randoms(PST_F32, a->positions * l->value_dim, 0, 1.0);
    a->k = ref_input(PST_F32, k.count, 0);
    a->v = l->shared ? a->k : ref_input(PST_F32, v.count, 0);
    for (size_t p = 0; p < a->positions; p++) {
        double scale;
        unsigned char *key = stored_row(a, a->block, p, false), *value = stored_row(a, a->block, p, true);
        a->kernels->kv_store((const float *)k.data + p * l->key_dim, key, l->type, l->key_dim);
        for (size_t d = 0; d < l->key_dim; d++)
            ref_set(&a->k, p * l->key_dim + d, decode(l->type, key, l->key_dim, d, &scale));
        if (l->shared)
            continue;
        a->kernels->kv_store((const float *)v.data + p * l->value_dim, value, l->type, l->value_dim);
        for (size_t d = 0; d < l->value_dim; d++)
            ref_set(&a->v, p * l->value_dim + d, decode(l->type, value, l->value_dim, d, &scale));
    }
    ref_free(&k);
    ref_free(&v);
}

static void set_up(attention_case *a, const pst_cpu_kernels *kernels, size_t dim)
{
    static const size_t groups[] = {1, 2, 3, 4, 7, 8};
    memset(a, 0, sizeof *a);
    a->kernels = kernels;
    a->rows = ref_between(0, 1) ? ref_between(1, 8) : ref_between(9, 40);
    a->first = ref_between(0, 2) ? ref_between(0, 200) : 0;
    a->group = groups[ref_between(0, 5)];
    a->window = ref_between(0, 1) ? 0 : ref_between(1, 150);
    a->positions = a->first + a->rows;
    bool shared = ref_between(0, 3) == 0;
    a->layout = (pst_kv_layout){.type = (pst_kv_type)ref_between(PST_KV_F32, PST_KV_Q4),
                                .kv_heads = shared ? 1 : (uint32_t)ref_between(1, 3),
                                .key_dim = (uint32_t)dim,
                                .value_dim = (uint32_t)dim,
                                .shared = shared};
    if (shared || ref_between(0, 2) == 0)
        a->layout.value_dim = (uint32_t)ref_between(1, dim);
    a->kv_head = (uint32_t)ref_between(0, a->layout.kv_heads - 1);
    const size_t values = a->layout.value_dim;
    a->q_stride = a->group * dim + ref_between(0, 3);
    a->out_stride = a->group * values + ref_between(0, 3);
    pst_dtype out_type = ref_between(0, 1) ? PST_BF16 : PST_F32;
    a->q = ref_randoms(PST_F32, (a->rows - 1) * a->q_stride + a->group * dim, 0, 2.0);
    a->out = ref_output(out_type, (a->rows - 1) * a->out_stride + a->group * values);
    for (size_t i = 0; i < a->group; i++)
        a->slopes[i] = (float)ldexp(1.0, -(int)ref_between(1, 8));
    fill_cache(a);
    a->job = (pst_cpu_attention){.q = a->q.data,
                                 .q_stride = a->q_stride,
                                 .out = a->out.data,
                                 .out_stride = a->out_stride,
                                 .out_type = out_type,
                                 .layout = &a->layout,
                                 .blocks = (void *const *)a->block,
                                 .kv_head = a->kv_head,
                                 .rows = (uint32_t)a->rows,
                                 .group = (uint32_t)a->group,
                                 .first_position = (uint32_t)a->first,
                                 .window = (uint32_t)a->window,
                                 .alibi = ref_between(0, 2) ? NULL : a->slopes,
                                 .scale = 1.0f / sqrtf((float)dim)};
    snprintf(a->text, sizeof a->text,
             "%s rows %zu at %zu group %zu dims %zu %zu shared %d heads %u window %zu alibi %d kv %u bits out %s",
             kernels->name, a->rows, a->first, a->group, dim, values, shared, a->layout.kv_heads, a->window,
             a->job.alibi != NULL, pst_kv_bits(a->layout.type), pst_dtype_name(out_type));
}

static void tear_down(attention_case *a)
{
    ref_free(&a->q);
    ref_free(&a->k);
    if (!a->layout.shared)
        ref_free(&a->v);
    ref_free(&a->out);
    for (size_t i = 0; i < a->blocks; i++)
        free(a->block[i]);
}

static void run(const attention_case *a, pst_cpu_attention job)
{
    size_t floats = pst_cpu_attention_scratch_floats((size_t)job.rows * job.group, job.layout);
    ref_array scratch = ref_output(PST_F32, floats);
    job.scratch = scratch.data;
    a->kernels->attention(&job);
    ref_check_guards(&scratch, a->text);
    ref_free(&scratch);
}

/* One query: row r, head g of the group. */
static void check_query(const attention_case *a, size_t r, size_t g)
{
    const size_t values = a->layout.value_dim;
    double *expected = malloc(values * sizeof *expected), error;
    size_t end = a->first + r + 1, first = a->window > 0 && end > a->window ? end - a->window : 0;
    assert_non_null(expected);
    bool coded = a->layout.type == PST_KV_Q8 || a->layout.type == PST_KV_Q4;
    ref_query query = {.q = &a->q,
                       .first_element = r * a->q_stride + g * a->layout.key_dim,
                       .k = &a->k,
                       .v = &a->v,
                       .key_dim = a->layout.key_dim,
                       .value_dim = values,
                       .v_stride = a->layout.shared ? a->layout.key_dim : values,
                       .first = first,
                       .end = end,
                       .scale = (double)a->job.scale,
                       .slope = a->job.alibi ? (double)a->slopes[g] : 0.0,
                       /* code * scale and the minimum, each at most twice the largest element, rounded and summed, and
                        * the rounding of the yardstick's */
                       .element_roundings = coded ? 6 : 0};
    ref_attend(&query, expected, &error);
    for (size_t d = 0; d < values; d++) {
        double out = ref_get(&a->out, r * a->out_stride + g * values + d);
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

/* A cache in which only the positions before `seen` are not NaN; blocks below `from` are not there at all. */
static void copy_cache(const attention_case *a, size_t from, size_t seen, unsigned char **blocks)
{
    const pst_kv_layout *l = &a->layout;
    const size_t bytes = pst_kv_block_bytes(l);
    for (size_t i = 0; i < a->blocks; i++) {
        blocks[i] = NULL;
        if ((i + 1) * PST_KV_BLOCK <= from || i * PST_KV_BLOCK >= seen)
            continue;
        blocks[i] = malloc(bytes);
        assert_non_null(blocks[i]);
        memset(blocks[i], 0xff, bytes);
    }
    for (size_t p = from / PST_KV_BLOCK * PST_KV_BLOCK; p < seen; p++) {
        memcpy(stored_row(a, blocks, p, false), stored_row(a, a->block, p, false),
               pst_kv_row_bytes(l->type, l->key_dim));
        if (!l->shared)
            memcpy(stored_row(a, blocks, p, true), stored_row(a, a->block, p, true),
                   pst_kv_row_bytes(l->type, l->value_dim));
    }
}

/* Rows in pieces of at most `most`; what a piece may not see yet is NaN in the cache it is given. */
static void check_pieces(const attention_case *a, size_t most)
{
    ref_array again = ref_output(a->out.type, a->out.count);
    size_t rows;
    for (size_t row = 0; row < a->rows; row += rows) {
        rows = ref_between(1, most < a->rows - row ? most : a->rows - row);
        size_t seen = a->first + row + rows, begin = a->first + row + 1;
        unsigned char *blocks[MAX_BLOCKS];
        copy_cache(a, a->window > 0 && begin > a->window ? begin - a->window : 0, seen, blocks);
        pst_cpu_attention job = a->job;
        job.q += row * a->q_stride;
        job.out = (char *)again.data + row * a->out_stride * ref_bytes(a->out.type);
        job.blocks = (void *const *)blocks;
        job.rows = (uint32_t)rows;
        job.first_position += (uint32_t)row;
        run(a, job);
        for (size_t i = 0; i < a->blocks; i++)
            free(blocks[i]);
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
        job.q += g * a->layout.key_dim;
        job.out = (char *)again.data + g * a->layout.value_dim * ref_bytes(a->out.type);
        job.alibi = job.alibi ? job.alibi + g : NULL;
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
        for (size_t i = 0; i < 8 * DIMS; i++) {
            attention_case a;
            set_up(&a, kernels, head_dims[i % DIMS]);
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
    enum { DIM = 16, KEYS = 200 };
    const pst_kv_layout layout = {.type = PST_KV_F16, .kv_heads = 1, .key_dim = DIM, .value_dim = DIM};
    const pst_cpu_kernels *kernels;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t winner = 0; winner < KEYS; winner += 33) {
            float q[DIM], key[DIM], value[DIM], out[DIM], scratch[2 * DIM + 2];
            void *blocks[(KEYS + PST_KV_BLOCK - 1) / PST_KV_BLOCK];
            for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
                assert_non_null(blocks[i] = malloc(pst_kv_block_bytes(&layout)));
            for (size_t j = 0; j < KEYS; j++) {
                for (size_t d = 0; d < DIM; d++) {
                    q[d] = 1000.0f;
                    key[d] = j == winner ? 60000.0f : -60000.0f;
                    value[d] = (float)j + 1.0f;
                }
                char *block = blocks[j / PST_KV_BLOCK];
                size_t row = j % PST_KV_BLOCK * 2 * DIM;
                kernels->kv_store(key, block + row, PST_KV_F16, DIM);
                kernels->kv_store(value, block + pst_kv_value_offset(&layout, 0) + row, PST_KV_F16, DIM);
            }
            pst_cpu_attention job = {.q = q,
                                     .q_stride = DIM,
                                     .out = out,
                                     .out_stride = DIM,
                                     .out_type = PST_F32,
                                     .layout = &layout,
                                     .blocks = blocks,
                                     .rows = 1,
                                     .group = 1,
                                     .first_position = KEYS - 1,
                                     .scale = 1.0f,
                                     .scratch = scratch};
            kernels->attention(&job);
            for (size_t d = 0; d < DIM; d++)
                assert_true(out[d] == (float)winner + 1.0f);
            for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
                free(blocks[i]);
        }
    }
}

/* One row in codes: every element within half a scale of what was stored (and what f32 arithmetic on its way adds), the scale
 * no larger than the range needs. */
static void check_codes(const pst_cpu_kernels *kernels, pst_kv_type type, const ref_array *x)
{
    size_t bytes = pst_kv_row_bytes(type, (uint32_t)x->count);
    ref_array row = ref_output(PST_F16, (bytes + 1) / 2);
    kernels->kv_store(x->data, row.data, type, x->count);
    ref_check_guards(&row, "kv_store in codes");
    double levels = type == PST_KV_Q8 ? 255 : 15;
    for (size_t i = 0; i < x->count; i++) {
        double smallest = INFINITY, largest = -INFINITY, scale;
        for (size_t j = i / 64 * 64; j < x->count && j < i / 64 * 64 + 64; j++) {
            double held = fmin(65504, fmax(-65504, ref_get(x, j)));
            smallest = fmin(smallest, held);
            largest = fmax(largest, held);
        }
        double held = fmin(65504, fmax(-65504, ref_get(x, i)));
        double stored = decode(type, row.data, x->count, i, &scale);
        double arithmetic = 4 * F32_ROUNDING * levels * scale + 2 * F32_ROUNDING * fabs(held);
        /* The minimum goes down by less than a unit of its f16 (2^-10 of it, or the smallest f16), the scale up likewise. */
        double range = largest - smallest + fabs(smallest) * 0x1p-10 + 0x1p-24;
        if (!(fabs(stored - held) <= scale / 2 + arithmetic) || !(scale <= range / levels * (1 + 0x1p-9) + 0x1p-23))
            fail_msg("%s %u bits: [%zu of %zu] %.9g stored as %.9g, scale %.9g, range %.9g", kernels->name,
                     pst_kv_bits(type), i, x->count, held, stored, scale, range);
    }
    ref_free(&row);
}

static void test_codes(void **unused)
{
    (void)unused;
    ref_seed("kv codes");
    static const double sizes[] = {1e-9, 1e-6, 1e-3, 1, 300, 60000, 1e30};
    static const double middles[] = {0, 0, 0, 1, -20};
    const pst_cpu_kernels *kernels;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t round = 0; round < 400; round++) {
            size_t count = round < 140 ? round + 1 : ref_between(1, 600);
            double size = sizes[ref_between(0, 6)], middle = middles[ref_between(0, 4)];
            ref_array x = ref_randoms(PST_F32, count, 0, size);
            for (size_t i = 0; i < count; i++)
                ref_set(&x, i, round % 7 == 0 ? middle * size : ref_get(&x, i) + middle * size);
            check_codes(kernels, PST_KV_Q8, &x);
            check_codes(kernels, PST_KV_Q4, &x);
            ref_free(&x);
        }
        /* A NaN in a group is not lost, and stays in its group. */
        ref_array x = ref_randoms(PST_F32, 130, 0, 1.0);
        ref_set(&x, 70, NAN);
        for (int type = PST_KV_Q8; type <= PST_KV_Q4; type++) {
            unsigned char row[256];
            double scale;
            kernels->kv_store(x.data, row, (pst_kv_type)type, 130);
            for (size_t i = 64; i < 128; i++) /* the same bytes from every kernel set */
                assert_int_equal(row[type == PST_KV_Q8 ? i : i / 2], 0);
            for (size_t i = 0; i < 130; i++)
                assert_true(!isnan(decode((pst_kv_type)type, row, 130, i, &scale)) == (i < 64 || i >= 128));
        }
        ref_free(&x);
    }
}

static void test_sizes(void **unused)
{
    (void)unused;
    assert_int_equal(pst_kv_row_bytes(PST_KV_F32, 5), 20);
    assert_int_equal(pst_kv_row_bytes(PST_KV_F16, 5), 10);
    assert_int_equal(pst_kv_row_bytes(PST_KV_Q8, 5), 5 + 4);
    assert_int_equal(pst_kv_row_bytes(PST_KV_Q4, 5), 3 + 4);
    assert_int_equal(pst_kv_row_bytes(PST_KV_Q8, 128), 128 + 8);
    assert_int_equal(pst_kv_row_bytes(PST_KV_Q4, 576), 288 + 36);
    pst_kv_layout latent = {.type = PST_KV_F16, .kv_heads = 1, .key_dim = 576, .value_dim = 512, .shared = true};
    assert_int_equal(pst_kv_block_bytes(&latent), 64 * 1152);
    assert_int_equal(pst_kv_value_offset(&latent, 0), 0);
    pst_kv_layout plain = {.type = PST_KV_F16, .kv_heads = 8, .key_dim = 128, .value_dim = 64};
    assert_int_equal(pst_kv_block_bytes(&plain), 64 * 8 * (256 + 128));
    assert_int_equal(pst_kv_key_offset(&plain, 3), 3 * 64 * 256);
    assert_int_equal(pst_kv_value_offset(&plain, 3), 8 * 64 * 256 + 3 * 64 * 128);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_extreme_scores),
        cmocka_unit_test(test_codes),
        cmocka_unit_test(test_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
