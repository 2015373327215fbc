/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host device: every operator on pools of 1, 2 and 3 threads gives the bits that the kernels give row by row on
 * one, whichever way a call is cut; strides, offsets and segments reach the right memory; memory that runs out is
 * an error.
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
#include "unit/cpu/reference.h"
#include "unit/device/pools.h"

static const pst_dtype weight_types[] = {PST_F32, PST_F16, PST_BF16};

static pst_device *make(size_t pool, const char *kernels)
{
    pst_device *device;
    assert_int_equal(pst_device_host_create(pools[pool], kernels, &device, NULL), 0);
    assert_string_equal(pst_device_host_kernels(device), kernels);
    return device;
}

static pst_matrix matrix(ref_array *a, size_t rows, size_t columns, size_t stride)
{
    return (pst_matrix){.data = a->data, .type = a->type, .rows = rows, .columns = columns, .stride = stride};
}

static pst_weight weight(const ref_array *a, size_t rows, size_t columns)
{
    return (pst_weight){.data = a->data, .type = a->type, .rows = rows, .columns = columns};
}

static void require_same(const ref_array *a, const ref_array *b, const char *what, const pst_cpu_kernels *kernels,
                         size_t pool)
{
    ref_check_guards(b, what);
    if (memcmp(a->data, b->data, a->count * ref_bytes(a->type)) != 0)
        fail_msg("%s: %s with %zu threads gives other bits", what, kernels->name, pool + 1);
}

/* One product by the kernels, one (row, column) at a time, against the device: whole, and in pieces of columns. */
static void check_matmul(const pst_cpu_kernels *kernels, pst_dtype x_type, pst_dtype w_type, size_t rows,
                         size_t columns, size_t k)
{
    const size_t x_stride = k + 3, y_stride = columns + 5;
    ref_array x = ref_randoms(x_type, rows * x_stride, 0, 1.0), w = ref_randoms(w_type, columns * k, 1, 1.0);
    ref_array bias = ref_randoms(w_type, columns, 3, 1.0), expected = ref_output(PST_F32, rows * y_stride);
    bool accumulate = ref_between(0, 1);
    if (accumulate)
        memset(expected.data, 0, expected.count * 4);
    for (size_t r = 0; r < rows; r++) {
        for (size_t c = 0; c < columns; c++) {
            pst_cpu_matmul one = {.x = (char *)x.data + r * x_stride * ref_bytes(x_type),
                                  .x_stride = x_stride,
                                  .w = (char *)w.data + c * k * ref_bytes(w_type),
                                  .bias = (char *)bias.data + c * ref_bytes(w_type),
                                  .y = (float *)expected.data + r * y_stride + c,
                                  .y_stride = y_stride,
                                  .rows = 1,
                                  .columns = 1,
                                  .k = k,
                                  .x_type = x_type,
                                  .w_type = w_type,
                                  .bias_type = w_type,
                                  .accumulate = accumulate};
            kernels->matmul(&one);
        }
    }
    for (size_t pool = 0; pool < POOLS; pool++) {
        pst_device *device = make(pool, kernels->name);
        for (int cut = 0; cut < 2; cut++) {
            ref_array y = ref_output(PST_F32, rows * y_stride);
            if (accumulate)
                memset(y.data, 0, y.count * 4);
            for (size_t first = 0, part; first < columns; first += part) {
                part = cut ? ref_between(1, columns - first) : columns;
                pst_matmul job = {.x = matrix(&x, rows, k, x_stride),
                                  .w = weight(&w, part, k),
                                  .bias = weight(&bias, 1, part),
                                  .y = matrix(&y, rows, columns, y_stride),
                                  .first_column = first,
                                  .accumulate = accumulate};
                job.w.data = (char *)w.data + first * k * ref_bytes(w_type);
                job.bias.data = (char *)bias.data + first * ref_bytes(w_type);
                assert_int_equal(device->ops->matmul(device, &job), 0);
            }
            require_same(&expected, &y, "matmul", kernels, pool);
            ref_free(&y);
        }
        pst_device_destroy(device);
    }
    ref_free(&x);
    ref_free(&w);
    ref_free(&bias);
    ref_free(&expected);
}

static void test_matmul(void **unused)
{
    (void)unused;
    ref_seed("device matmul");
    const pst_cpu_kernels *kernels;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t i = 0; i < 6; i++) {
            pst_dtype x_type = i % 2 ? PST_BF16 : PST_F32, w_type = weight_types[i / 2 % 3];
            check_matmul(kernels, x_type, w_type, ref_between(1, 70), ref_between(1, 90), ref_between(1, 90));
            check_matmul(kernels, x_type, w_type, ref_between(1, 3), ref_between(100, 300), ref_between(900, 1200));
        }
        check_matmul(kernels, PST_BF16, PST_BF16, 300, 30, 65); /* cut by rows */
    }
}

/* Nothing to do is done, and y stays as it is. */
static void test_empty(void **unused)
{
    (void)unused;
    pst_device *device = make(1, "portable");
    float y = 5.0f;
    pst_matrix none = {.data = &y, .type = PST_F32, .rows = 0, .columns = 8, .stride = 8};
    pst_weight w = {.data = &y, .type = PST_F32, .rows = 0, .columns = 8};
    pst_matmul job = {.x = none, .w = {.data = &y, .type = PST_F32, .rows = 4, .columns = 8}, .y = none};
    assert_int_equal(device->ops->matmul(device, &job), 0);
    assert_int_equal(device->ops->convert(device, &w, &none), 0);
    assert_int_equal(device->ops->rms_norm(device, &none, &w, 1e-5f, &none), 0);
    assert_int_equal(device->ops->gated(device, PST_ACT_SILU, &none, &none, &none), 0);
    assert_int_equal(device->ops->layer_norm(device, &none, &w, &w, 1e-5f, &none), 0);
    assert_int_equal(device->ops->activate(device, PST_ACT_RELU, &none, &none), 0);
    assert_int_equal(device->ops->log_sum_exp(device, &none, NULL, NULL), 0);
    pst_attention nobody = {.q = none, .out = none, .heads = 1, .layout = {PST_KV_F32, 1, 8, 8, false}};
    pst_kv_store nothing = {.k = none, .v = none, .layout = nobody.layout};
    assert_int_equal(device->ops->kv_store(device, &nothing), 0);
    assert_int_equal(device->ops->attention(device, &nobody), 0);
    assert_true(y == 5.0f);
    pst_device_destroy(device);
    pst_device_destroy(NULL);
}

/* Operators that go through rows: the device against the kernel row by row, on shapes that are cut by rows and by
 * columns. */
static void check_rows(const pst_cpu_kernels *kernels, size_t rows, size_t columns)
{
    const size_t stride = columns + 7;
    ref_array x = ref_randoms(PST_F32, rows * stride, 0, 1.0), up = ref_randoms(PST_F32, rows * stride, 0, 1.0);
    ref_array w = ref_randoms(PST_BF16, rows * columns, 1, 1.0);
    ref_array norm = ref_output(PST_BF16, rows * stride), gated = ref_output(PST_BF16, rows * stride);
    ref_array wide = ref_output(PST_F32, rows * stride), centred = ref_output(PST_F32, rows * stride);
    ref_array active = ref_output(PST_BF16, rows * stride);
    double *sums = pst_heap_alloc(2 * rows * sizeof *sums);
    assert_non_null(sums);
    for (size_t r = 0; r < rows; r++) {
        const float *row = (const float *)x.data + r * stride;
        kernels->rms_norm(row, w.data, PST_BF16, 1e-5f, (char *)norm.data + r * stride * 2, PST_BF16, columns);
        kernels->gated(PST_CPU_SILU, row, (const float *)up.data + r * stride, (char *)gated.data + r * stride * 2,
                       PST_BF16, columns);
        kernels->layer_norm(row, w.data, PST_BF16, up.data, PST_F32, 1e-5f, (float *)centred.data + r * stride, PST_F32,
                            columns);
        kernels->activate(PST_CPU_RELU, row, (char *)active.data + r * stride * 2, PST_BF16, columns);
        kernels->convert((char *)w.data + r * columns * 2, PST_BF16, (float *)wide.data + r * stride, columns);
        sums[r] = kernels->log_sum_exp(row, columns, 1);
    }
    for (size_t pool = 0; pool < POOLS; pool++) {
        pst_device *device = make(pool, kernels->name);
        ref_array y = ref_output(PST_BF16, rows * stride), z = ref_output(PST_BF16, rows * stride);
        ref_array converted = ref_output(PST_F32, rows * stride), c = ref_output(PST_F32, rows * stride);
        ref_array a = ref_output(PST_BF16, rows * stride);
        pst_matrix centre = matrix(&c, rows, columns, stride), activated = matrix(&a, rows, columns, stride);
        pst_matrix mx = matrix(&x, rows, columns, stride), mu = matrix(&up, rows, columns, stride);
        pst_matrix my = matrix(&y, rows, columns, stride), mz = matrix(&z, rows, columns, stride);
        pst_matrix mc = matrix(&converted, rows, columns, stride);
        pst_weight norm_weight = weight(&w, 1, columns), all = weight(&w, rows, columns);
        pst_weight bias = weight(&up, 1, columns);
        assert_int_equal(device->ops->rms_norm(device, &mx, &norm_weight, 1e-5f, &my), 0);
        assert_int_equal(device->ops->gated(device, PST_ACT_SILU, &mx, &mu, &mz), 0);
        assert_int_equal(device->ops->layer_norm(device, &mx, &norm_weight, &bias, 1e-5f, &centre), 0);
        assert_int_equal(device->ops->activate(device, PST_ACT_RELU, &mx, &activated), 0);
        assert_int_equal(device->ops->convert(device, &all, &mc), 0);
        assert_int_equal(device->ops->log_sum_exp(device, &mx, NULL, sums + rows), 0);
        require_same(&norm, &y, "rms_norm", kernels, pool);
        require_same(&gated, &z, "gated", kernels, pool);
        require_same(&wide, &converted, "convert", kernels, pool);
        require_same(&centred, &c, "layer_norm", kernels, pool);
        require_same(&active, &a, "activate", kernels, pool);
        assert_memory_equal(sums, sums + rows, rows * sizeof *sums);
        ref_free(&y);
        ref_free(&z);
        ref_free(&converted);
        ref_free(&c);
        ref_free(&a);
        pst_device_destroy(device);
    }
    pst_heap_free(sums);
    ref_free(&x);
    ref_free(&up);
    ref_free(&w);
    ref_free(&norm);
    ref_free(&gated);
    ref_free(&wide);
    ref_free(&centred);
    ref_free(&active);
}

static void test_rows(void **unused)
{
    (void)unused;
    ref_seed("device rows");
    const pst_cpu_kernels *kernels;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        check_rows(kernels, 1, 5);
        check_rows(kernels, ref_between(2, 9), ref_between(9000, 30000));
        check_rows(kernels, ref_between(100, 600), ref_between(30, 200));
    }
}

/* A little model's worth of sequences: rotated, stored and attended on the device and, row by row, by the kernels. */
enum { MAX_SEGMENTS = 9, BLOCKS = 2 /* of a sequence */ };
typedef struct sequences {
    size_t segments, rows, heads;
    pst_kv_layout layout;
    pst_segment segment[MAX_SEGMENTS];
    size_t cache_bytes;
    unsigned char *cache; /* the blocks, in an order of their own */
    void *blocks[MAX_SEGMENTS][BLOCKS];
    ref_array q, k, v, table;
    float slopes[12];
    const float *alibi;
    uint32_t window;
    uint32_t positions[MAX_SEGMENTS * 80];
} sequences;

static void set_up_sequences(sequences *s, bool alike)
{
    memset(s, 0, sizeof *s);
    s->segments = ref_between(1, MAX_SEGMENTS);
    bool shared = ref_between(0, 3) == 0;
    uint32_t heads = shared ? 1 : (uint32_t)ref_between(1, 3), dim = 2 * (uint32_t)ref_between(1, 20);
    s->layout = (pst_kv_layout){.type = (pst_kv_type)ref_between(PST_KV_F32, PST_KV_Q4),
                                .kv_heads = heads,
                                .key_dim = dim,
                                .value_dim = shared ? (uint32_t)ref_between(1, dim) : dim,
                                .shared = shared};
    s->heads = heads * ref_between(1, 4);
    s->window = (uint32_t)(ref_between(0, 1) * ref_between(1, 50));
    for (size_t i = 0; i < s->heads; i++)
        s->slopes[i] = 1.0f / (float)(i + 2);
    s->alibi = ref_between(0, 1) ? s->slopes : NULL;
    const size_t bytes = pst_kv_block_bytes(&s->layout), rows = ref_between(1, 80);
    s->cache_bytes = MAX_SEGMENTS * BLOCKS * bytes;
    assert_non_null(s->cache = pst_heap_alloc(s->cache_bytes));
    memset(s->cache, 0xff, s->cache_bytes);
    for (size_t i = 0; i < s->segments; i++) {
        pst_segment *segment = &s->segment[i];
        for (size_t b = 0; b < BLOCKS; b++)
            s->blocks[i][b] = s->cache + ((BLOCKS - b) * MAX_SEGMENTS - 1 - i) * bytes;
        *segment = (pst_segment){s->rows, alike ? rows : ref_between(0, 80), 0, s->blocks[i]};
        for (size_t r = 0; r < segment->rows; r++)
            s->positions[s->rows++] = (uint32_t)r;
    }
    s->q = ref_randoms(PST_F32, s->rows * s->heads * dim, 0, 1.0);
    s->k = ref_randoms(PST_F32, s->rows * heads * dim, 0, 1.0);
    s->v = ref_randoms(PST_F32, s->rows * heads * s->layout.value_dim, 0, 1.0);
    s->table = ref_randoms(PST_F32, (size_t)80 * dim, 0, 0.7);
}

static void tear_down_sequences(sequences *s)
{
    pst_heap_free(s->cache);
    ref_free(&s->q);
    ref_free(&s->k);
    ref_free(&s->v);
    ref_free(&s->table);
}

/* One row by the kernels: its query rotated, its keys and values stored, its attention. */
static void row_by_kernels(const sequences *s, const pst_cpu_kernels *kernels, const pst_segment *g, size_t r,
                           ref_array *q, ref_array *out)
{
    const pst_kv_layout *l = &s->layout;
    const size_t group = s->heads / l->kv_heads, row = g->first_row + r, slot = r % PST_KV_BLOCK;
    const size_t key_bytes = pst_kv_row_bytes(l->type, l->key_dim),
                 value_bytes = pst_kv_row_bytes(l->type, l->value_dim);
    float *q_row = (float *)q->data + row * s->heads * l->key_dim, scratch[2048 + 64 * 96];
    kernels->rope(q_row, (uint32_t)s->heads, l->key_dim, l->key_dim, false,
                  (const float *)s->table.data + r * l->key_dim);
    for (uint32_t h = 0; h < l->kv_heads; h++) {
        char *block = g->blocks[r / PST_KV_BLOCK];
        kernels->kv_store((const float *)s->k.data + (row * l->kv_heads + h) * l->key_dim,
                          block + pst_kv_key_offset(l, h) + slot * key_bytes, l->type, l->key_dim);
        if (!l->shared)
            kernels->kv_store((const float *)s->v.data + (row * l->kv_heads + h) * l->value_dim,
                              block + pst_kv_value_offset(l, h) + slot * value_bytes, l->type, l->value_dim);
        assert_true(pst_cpu_attention_scratch_floats(group, l) <= sizeof scratch / sizeof *scratch);
        pst_cpu_attention job = {.q = q_row + h * group * l->key_dim,
                                 .q_stride = s->heads * l->key_dim,
                                 .out = (float *)out->data + (row * s->heads + h * group) * l->value_dim,
                                 .out_stride = s->heads * l->value_dim,
                                 .out_type = PST_F32,
                                 .layout = l,
                                 .blocks = g->blocks,
                                 .kv_head = h,
                                 .rows = 1,
                                 .group = (uint32_t)group,
                                 .first_position = (uint32_t)r,
                                 .window = s->window,
                                 .alibi = s->alibi ? s->alibi + h * group : NULL,
                                 .scale = 0.25f,
                                 .scratch = scratch};
        kernels->attention(&job);
    }
}

/* The kernels alone. *q: rotated queries; *out: attention. Fills the cache. */
static void by_kernels(const sequences *s, const pst_cpu_kernels *kernels, ref_array *q, ref_array *out)
{
    for (size_t i = 0; i < s->segments; i++)
        for (size_t r = 0; r < s->segment[i].rows; r++)
            row_by_kernels(s, kernels, &s->segment[i], r, q, out);
}

/* The device. In one call, or each sequence in two: its rows up to a random one, then the rest. */
static void by_device(sequences *s, pst_device *device, bool cut_in_two, ref_array *q, ref_array *out)
{
    const pst_kv_layout *l = &s->layout;
    const size_t values = s->heads * l->value_dim;
    pst_matrix mq = matrix(q, s->rows, s->heads * l->key_dim, s->heads * l->key_dim);
    pst_matrix mo = matrix(out, s->rows, values, values);
    pst_matrix mk = matrix(&s->k, s->rows, l->kv_heads * l->key_dim, l->kv_heads * l->key_dim);
    pst_matrix mv = matrix(&s->v, s->rows, l->kv_heads * l->value_dim, l->kv_heads * l->value_dim);
    assert_int_equal(
        device->ops->rope(device, &mq, (uint32_t)s->heads, l->key_dim, l->key_dim, false, s->table.data, s->positions),
        0);
    pst_segment parts[2][MAX_SEGMENTS];
    for (size_t i = 0; i < s->segments; i++) {
        size_t cut = cut_in_two ? ref_between(0, s->segment[i].rows) : s->segment[i].rows;
        parts[0][i] = parts[1][i] = s->segment[i];
        parts[0][i].rows = cut;
        parts[1][i].rows -= cut;
        parts[1][i].first_row += cut;
        parts[1][i].first_position += (uint32_t)cut;
    }
    for (int part = 0; part < 2; part++) {
        pst_attention job = {.q = mq,
                             .out = mo,
                             .segments = {.items = parts[part], .count = s->segments, .rows = s->rows},
                             .heads = (uint32_t)s->heads,
                             .layout = *l,
                             .window = s->window,
                             .alibi = s->alibi,
                             .scale = 0.25f};
        pst_kv_store store = {.k = mk, .v = mv, .segments = job.segments, .layout = *l};
        assert_int_equal(device->ops->kv_store(device, &store), 0);
        assert_int_equal(device->ops->attention(device, &job), 0);
    }
}

static void check_sequences(const pst_cpu_kernels *kernels, bool alike)
{
    sequences s;
    set_up_sequences(&s, alike);
    const size_t out_count = s.rows * s.heads * s.layout.value_dim;
    ref_array q = ref_output(PST_F32, s.q.count), out = ref_output(PST_F32, out_count);
    memcpy(q.data, s.q.data, q.count * 4);
    by_kernels(&s, kernels, &q, &out);
    unsigned char *cache = pst_heap_alloc(s.cache_bytes);
    assert_non_null(cache);
    memcpy(cache, s.cache, s.cache_bytes);
    for (size_t pool = 0; pool < POOLS; pool++) {
        pst_device *device = make(pool, kernels->name);
        ref_array q2 = ref_output(PST_F32, s.q.count), out2 = ref_output(PST_F32, out_count);
        memcpy(q2.data, s.q.data, q2.count * 4);
        memset(s.cache, 0xff, s.cache_bytes);
        by_device(&s, device, pool > 0, &q2, &out2);
        require_same(&q, &q2, "rope", kernels, pool);
        if (memcmp(cache, s.cache, s.cache_bytes) != 0)
            fail_msg("%s, %zu threads: kv_store differs", kernels->name, pool + 1);
        require_same(&out, &out2, "attention", kernels, pool);
        ref_free(&q2);
        ref_free(&out2);
        pst_device_destroy(device);
    }
    pst_heap_free(cache);
    ref_free(&q);
    ref_free(&out);
    tear_down_sequences(&s);
}

static void test_sequences(void **unused)
{
    (void)unused;
    ref_seed("device sequences");
    const pst_cpu_kernels *kernels;
    for (size_t s = 0; (kernels = pst_cpu_available(s)) != NULL; s++) {
        for (size_t i = 0; i < 16; i++)
            check_sequences(kernels, i % 2);
    }
}

static void test_errors(void **unused)
{
    (void)unused;
    pst_device *device = (pst_device *)(void *)&device;
    pst_error err;
    assert_int_equal(pst_device_host_create(pools[0], "sse9", &device, &err), PST_E_UNSUPPORTED);
    assert_ptr_equal(device, &device);
    assert_non_null(strstr(err.message, "sse9"));
    pst_heap_fail_after(0, 0);
    assert_int_equal(pst_device_host_create(pools[0], NULL, &device, &err), -ENOMEM);
    assert_ptr_equal(device, &device);
    int64_t live = pst_heap_live_count();
    assert_int_equal(pst_device_host_create(pools[1], NULL, &device, &err), 0);
    assert_string_equal(pst_device_host_kernels(device), pst_cpu_available(0)->name);

    float q[4] = {1, 2, 3, 4}, v[4] = {5, 6, 7, 8}, out[4] = {9, 9, 9, 9}, block[2 * PST_KV_BLOCK * 4] = {0};
    memcpy(block + PST_KV_BLOCK * 4, v, sizeof v);
    void *blocks[1] = {block};
    pst_segment segment = {.rows = 1, .blocks = blocks};
    pst_matrix mq = {.data = q, .type = PST_F32, .rows = 1, .columns = 4, .stride = 4}, mo = mq;
    mo.data = out;
    pst_attention job = {.q = mq,
                         .out = mo,
                         .segments = {.items = &segment, .count = 1, .rows = 1},
                         .heads = 1,
                         .layout = {PST_KV_F32, 1, 4, 4, false},
                         .scale = 1.0f};
    pst_heap_fail_after(0, 0);
    assert_int_equal(device->ops->attention(device, &job), -ENOMEM);
    assert_true(out[0] == 9.0f);
    assert_int_equal(device->ops->attention(device, &job), 0);
    assert_memory_equal(out, v, sizeof v);
    /* From then on without a new allocation. */
    pst_heap_fail_after(0, 1);
    assert_int_equal(device->ops->attention(device, &job), 0);
    pst_heap_fail_after(-1, 0);
    pst_device_destroy(device);
    assert_int_equal(pst_heap_live_count(), live);
}

/* FP8 rows as numbers, from the middle of a matrix: what a product with the unit matrix gives. */
static void test_fp8_rows(void **state)
{
    (void)state;
    enum { ROWS = 37, COLUMNS = 45, FIRST = 9 };
    const pst_weight_format format = {.layout = PST_WEIGHT_FP8_BLOCKS,
                                      .block_rows = 8,
                                      .block_columns = 16,
                                      .scale_type = ref_between(0, 1) ? PST_F32 : PST_BF16};
    const size_t scale_rows = (FIRST + ROWS + 7) / 8, scale_columns = (COLUMNS + 15) / 16;
    unsigned char codes[ROWS * COLUMNS];
    for (size_t i = 0; i < sizeof codes; i++)
        codes[i] =
            (unsigned char)(ref_random() % 0x7f | (ref_random() % 2) << 7); /* no NaN, which a zero times spreads */
    for (size_t pool = 0; pool < POOLS; pool++) {
        pst_device *device = make(pool, pst_cpu_available(0)->name);
        ref_array scales = ref_randoms(format.scale_type, scale_rows * scale_columns, 1, 1.0);
        ref_array one = ref_input(PST_F32, COLUMNS * COLUMNS, 0);
        ref_array product = ref_output(PST_F32, COLUMNS * ROWS), converted = ref_output(PST_F32, ROWS * COLUMNS);
        for (size_t i = 0; i < COLUMNS; i++)
            ref_set(&one, i * COLUMNS + i, 1);
        pst_weight w = {.data = codes,
                        .rows = ROWS,
                        .columns = COLUMNS,
                        .format = &format,
                        .scales = scales.data,
                        .first_row = FIRST};
        pst_matmul job = {
            .x = matrix(&one, COLUMNS, COLUMNS, COLUMNS), .w = w, .y = matrix(&product, COLUMNS, ROWS, ROWS)};
        pst_matrix y = matrix(&converted, ROWS, COLUMNS, COLUMNS);
        assert_int_equal(device->ops->matmul(device, &job), 0);
        assert_int_equal(device->ops->convert(device, &w, &y), 0);
        for (size_t row = 0; row < ROWS; row++)
            for (size_t column = 0; column < COLUMNS; column++)
                assert_true(ref_get(&converted, row * COLUMNS + column) == ref_get(&product, column * ROWS + row));
        ref_check_guards(&converted, "convert");
        ref_free(&scales);
        ref_free(&one);
        ref_free(&product);
        ref_free(&converted);
        pst_device_destroy(device);
    }
}

/* Rows to experts and back: what plain loops give, on every pool, in rows that other rows lie between. */
static void test_expert_rows(void **state)
{
    (void)state;
    enum { ROWS = 90, COLUMNS = 1111, STRIDE = 1120 };
    for (size_t pool = 0; pool < POOLS; pool++) {
        pst_device *device = make(pool, pst_cpu_available(0)->name);
        ref_array x = ref_randoms(PST_F32, ROWS * STRIDE, 0, 1.0), y = ref_output(PST_F32, ROWS * STRIDE);
        ref_array half = ref_randoms(PST_BF16, ROWS * STRIDE, 0, 1.0), taken = ref_output(PST_BF16, ROWS * STRIDE);
        uint32_t rows[ROWS], count = 0;
        float weights[ROWS];
        for (uint32_t i = 0; i < ROWS; i++) {
            if (ref_between(0, 1)) {
                weights[count] = (float)ref_normal();
                rows[count++] = i;
            }
        }
        float *expected = malloc(ROWS * STRIDE * sizeof *expected), *sum = y.data;
        assert_non_null(expected);
        for (size_t i = 0; i < ROWS * STRIDE; i++)
            expected[i] = sum[i] = (float)i;
        for (uint32_t i = 0; i < count; i++)
            for (size_t c = 0; c < COLUMNS; c++)
                expected[rows[i] * STRIDE + c] += weights[i] * ((const float *)x.data)[i * STRIDE + c];
        pst_matrix from = matrix(&x, count, COLUMNS, STRIDE), to = matrix(&y, ROWS, COLUMNS, STRIDE);
        assert_int_equal(device->ops->add_rows(device, &from, rows, weights, &to), 0);
        assert_memory_equal(y.data, expected, ROWS * STRIDE * sizeof *expected);
        from = matrix(&half, ROWS, COLUMNS, STRIDE);
        to = matrix(&taken, count, COLUMNS, STRIDE);
        assert_int_equal(device->ops->take_rows(device, &from, rows, &to), 0);
        for (uint32_t i = 0; i < count; i++)
            assert_memory_equal((const char *)taken.data + (size_t)i * STRIDE * 2,
                                (const char *)half.data + (size_t)rows[i] * STRIDE * 2, COLUMNS * 2);
        ref_check_guards(&y, "add_rows");
        ref_check_guards(&taken, "take_rows");
        free(expected);
        ref_free(&x);
        ref_free(&y);
        ref_free(&half);
        ref_free(&taken);
        pst_device_destroy(device);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul),    cmocka_unit_test(test_empty),  cmocka_unit_test(test_rows),
        cmocka_unit_test(test_sequences), cmocka_unit_test(test_errors), cmocka_unit_test(test_expert_rows),
        cmocka_unit_test(test_fp8_rows),
    };
    return cmocka_run_group_tests(tests, pools_set_up, pools_tear_down);
}
