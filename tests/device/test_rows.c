/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the suite's random shapes do not reach: keys and values of every size, and rows between segments; more rows than
 * a grid is high; vocabularies; thousands of experts. What is chosen or stored has the host's bytes.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device/ops.h"

/* ---- kv_store ---- */

enum { KV_MOST_SEGMENTS = 5, KV_MOST_POSITIONS = 200, KV_MOST_BLOCKS = KV_MOST_POSITIONS / PST_KV_BLOCK + 1 };

typedef struct kv_case {
    pst_kv_layout layout;
    ops_matrix k, v;
    ops_buffer *blocks, *tables[KV_MOST_SEGMENTS], *segments;
    size_t count, max_rows, rows_before; /* rows_before: of the pass, ahead of the operands' */
    uint32_t max_positions;
    uint64_t block_offset;
} kv_case;

/* Groups of all kinds: usual ones, alike elements, huge, tiny, infinite, with NaN. */
static ops_matrix deal_elements(size_t rows, size_t columns)
{
    ref_array x = ref_randoms(PST_F32, rows * columns, 0, 1.0);
    for (size_t first = 0, count; first < x.count; first += count) {
        const size_t kind = ref_between(0, 9);
        count = ref_between(1, 90) < x.count - first ? ref_between(1, x.count - first < 90 ? x.count - first : 90) : 1;
        static const double scales[] = {1, 3e4, 1e6, 1e-6, 3e-8, 1e30};
        for (size_t i = first; i < first + count; i++) {
            const double old = ref_get(&x, i);
            ref_set(&x, i, kind < 6 ? old * scales[kind] : kind == 6 ? 1.5 : kind == 7 ? fabs(old) + 7 : old);
        }
        static const double odd[] = {NAN, INFINITY, -INFINITY, -0.0};
        if (kind == 8 && ref_between(0, 3) == 0)
            ref_set(&x, first, odd[ref_between(0, 3)]);
    }
    const ops_matrix m = ops_given(&x, rows, columns);
    ref_free(&x);
    return m;
}

/* Segments of sequences of their own, one after the other, with gaps between their rows now and then. */
static size_t deal_segments(kv_case *c)
{
    const uint64_t block_bytes = (pst_kv_block_bytes(&c->layout) + 15) / 16 * 16, stride = block_bytes + 64;
    size_t row = c->rows_before;
    pst_segment segments[KV_MOST_SEGMENTS];
    c->count = ref_between(1, KV_MOST_SEGMENTS);
    c->block_offset = 16 * ref_between(0, 4);
    c->blocks = ops_output(NULL, c->count * KV_MOST_BLOCKS * stride, 16);
    for (size_t s = 0; s < c->count; s++) {
        const size_t rows = ref_between(0, 1) ? 1 : ref_between(1, 90);
        const uint32_t position = (uint32_t)ref_between(0, KV_MOST_POSITIONS - 1 - rows);
        segments[s] = (pst_segment){row, rows, position, NULL};
        c->max_rows = rows > c->max_rows ? rows : c->max_rows;
        c->max_positions = position + (uint32_t)rows > c->max_positions ? position + (uint32_t)rows : c->max_positions;
        row += rows + (ref_between(0, 3) == 0);
        c->tables[s] = ops_input(segments, KV_MOST_BLOCKS * sizeof(void *), 8);
        for (size_t b = 0; b < KV_MOST_BLOCKS; b++) /* not in order; the offset is the job's */
            ops_points(c->tables[s], b * sizeof(void *), c->blocks,
                       (s * KV_MOST_BLOCKS + (b * 3 + s) % KV_MOST_BLOCKS) * stride);
    }
    c->segments = ops_input(segments, c->count * sizeof *segments, 8);
    for (size_t s = 0; s < c->count; s++)
        ops_points(c->segments, s * sizeof *segments + offsetof(pst_segment, blocks), c->tables[s], 0);
    return row - c->rows_before;
}

static size_t make_kv(void *context, size_t number, char *text, size_t text_bytes)
{
    kv_case *c = context;
    pst_kv_layout *l = &c->layout;
    l->type = (pst_kv_type)(number % 4);
    l->shared = ref_between(0, 3) == 0;
    l->kv_heads = l->shared ? 1 : (uint32_t)ref_between(1, 4);
    l->key_dim = ref_between(0, 1) ? 64 * (uint32_t)ref_between(1, 3) : (uint32_t)ref_between(1, 200);
    l->value_dim = l->shared ? (uint32_t)ref_between(1, l->key_dim) : (uint32_t)ref_between(1, 140);
    c->rows_before = ref_between(0, 1) * ref_between(0, 9);
    const size_t rows = deal_segments(c);
    c->k = deal_elements(rows, (size_t)l->kv_heads * l->key_dim);
    if (!l->shared)
        c->v = deal_elements(rows, (size_t)l->kv_heads * l->value_dim);
    snprintf(text, text_bytes, "%zu segments, %zu rows after %zu, %u heads of %u and %u%s, kind %d", c->count, rows,
             c->rows_before, l->kv_heads, l->key_dim, l->value_dim, l->shared ? " shared" : "", (int)l->type);
    return rows;
}

static int run_kv(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const kv_case *c = context;
    pst_kv_store job = {.k = ops_rows(&c->k, side, first, rows),
                        .segments = {.items = ops_at(c->segments, side),
                                     .count = c->count,
                                     .first_row = c->rows_before + first,
                                     .rows = rows,
                                     .max_rows = c->max_rows,
                                     .max_positions = c->max_positions},
                        .block_offset = c->block_offset,
                        .layout = c->layout};
    if (!c->layout.shared)
        job.v = ops_rows(&c->v, side, first, rows);
    return device->ops->kv_store(device, &job);
}

static void check_kv(void *context, const char *text)
{
    const kv_case *c = context;
    ops_same_as_host(c->blocks, text);
}

/* ---- Wide and tall ---- */

typedef struct top_case {
    ops_matrix x;
    ops_buffer *values, *columns, *sums;
    uint32_t count;
} top_case;

/* Vocabularies, with few different values so that equals decide. */
static size_t make_top(void *context, size_t number, char *text, size_t text_bytes)
{
    static const uint32_t counts[] = {1, 1024, 40, 1000, 64};
    top_case *c = context;
    const size_t rows = ref_between(1, 2), columns = number == 1 ? 140001 : ref_between(4095, 40000);
    ref_array x = ref_randoms(PST_F32, rows * columns, 0, 2.0);
    for (size_t i = 0; i < x.count; i++) {
        const double step = number % 2 ? 4 : 1e4, value = nearbyint(ref_get(&x, i) * step) / step;
        ref_set(&x, i, ref_between(0, 999) == 0 ? (double)NAN : ref_between(0, 99) == 0 ? -0.0 : value);
    }
    c->x = ops_given(&x, rows, columns);
    ref_free(&x);
    c->count = counts[number % 5];
    c->values = ops_output(NULL, rows * c->count * 4, 4);
    c->columns = ops_output(NULL, rows * c->count * 4, 4);
    snprintf(text, text_bytes, "%u of %zu x %zu", c->count, rows, columns);
    return rows;
}

static int run_top(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const top_case *c = context;
    const pst_matrix x = ops_rows(&c->x, side, first, rows);
    return device->ops->top(device, &x, c->count, (float *)ops_at(c->values, side) + first * c->count,
                            (uint32_t *)ops_at(c->columns, side) + first * c->count);
}

static void check_top(void *context, const char *text)
{
    const top_case *c = context;
    ops_same_as_host(c->values, text);
    ops_same_as_host(c->columns, text);
}

static size_t make_sums(void *context, size_t number, char *text, size_t text_bytes)
{
    top_case *c = context;
    const size_t rows = ref_between(1, 3), columns = number == 0 ? 262144 : ref_between(4096, 60000);
    ref_array x = ref_randoms(PST_F32, rows * columns, 0, number % 3 == 0 ? 1e-3 : number % 3 == 1 ? 4 : 100);
    for (size_t i = 0; i < columns / 2 && number % 2; i++)
        ref_set(&x, i, -INFINITY);
    c->x = ops_given(&x, rows, columns);
    ref_free(&x);
    c->sums = ops_output(NULL, rows * sizeof(double), 8);
    snprintf(text, text_bytes, "%zu x %zu", rows, columns);
    return rows;
}

static int run_sums(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const top_case *c = context;
    const pst_matrix x = ops_rows(&c->x, side, first, rows);
    return device->ops->log_sum_exp(device, &x, NULL, (double *)ops_at(c->sums, side) + first);
}

static void check_sums(void *context, const char *text)
{
    const top_case *c = context;
    for (size_t r = 0; r < c->x.rows; r++) {
        const double mine = ops_get(c->sums, OPS_DEVICE, PST_F64, r), other = ops_get(c->sums, OPS_HOST, PST_F64, r);
        /* float64: a chain of columns / 8 roundings on the host, and each exponential's error */
        if (!(fabs(mine - other) <= 0x1p-52 * ((double)c->x.columns / 8 + 16 + 2 * fabs(other))))
            fail_msg("%s: row %zu gives %.17g, the host %.17g", text, r, mine, other);
    }
}

typedef struct norm_case {
    ops_matrix x, y;
    ops_buffer *w, *b; /* at any byte */
    pst_dtype type;
    bool centered;
} norm_case;

/* Rows of more than a block's threads keep in registers, too; weights at odd addresses. */
static size_t make_norm(void *context, size_t number, char *text, size_t text_bytes)
{
    static const pst_dtype types[] = {PST_F32, PST_F16, PST_BF16};
    norm_case *c = context;
    const size_t rows = ref_between(1, 5), columns = number % 2 ? ref_between(300, 5000) : ref_between(16000, 24000);
    c->type = types[number % 3];
    c->centered = number / 2 % 2;
    ref_array w = ref_randoms(c->type, columns, 0, 1.0), b = ref_randoms(c->type, columns, 0, 1.0);
    c->x = ops_random(PST_F32, rows, columns, 3.0);
    c->y = ops_poisoned(PST_F32, rows, columns);
    c->w = ops_array(&w, 1);
    c->b = ops_array(&b, 1);
    ref_free(&w);
    ref_free(&b);
    snprintf(text, text_bytes, "%zu x %zu, weights %s%s", rows, columns, pst_dtype_name(c->type),
             c->centered ? ", centered" : "");
    return rows;
}

static int run_norm(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const norm_case *c = context;
    const pst_matrix x = ops_rows(&c->x, side, first, rows), y = ops_rows(&c->y, side, first, rows);
    const pst_weight w = {.data = ops_at(c->w, side), .type = c->type, .rows = 1, .columns = c->x.columns};
    const pst_weight b = {.data = ops_at(c->b, side), .type = c->type, .rows = 1, .columns = c->x.columns};
    return c->centered ? device->ops->layer_norm(device, &x, &w, &b, 1e-5f, &y)
                       : device->ops->rms_norm(device, &x, &w, 1e-5f, &y);
}

static void check_norm(void *context, const char *text)
{
    const norm_case *c = context;
    ops_check_gaps(&c->y, text);
    for (size_t r = 0; r < c->y.rows; r++)
        for (size_t i = 0; i < c->y.columns; i++) {
            const double mine = ops_get(c->y.buffer, OPS_DEVICE, PST_F32, r * c->y.stride + i);
            const double other = ops_get(c->y.buffer, OPS_HOST, PST_F32, r * c->y.stride + i);
            /* sums in 16 chains or more, on either side; numbers of size 1, weights and biases of up to 4 or so */
            const double limit = F32_ROUNDING * ((double)c->y.columns / 16 + 20) * (fabs(other) + 8);
            if (!(fabs(mine - other) <= limit))
                fail_msg("%s: [%zu][%zu] is %.9g, the host's %.9g", text, r, i, mine, other);
        }
}

typedef struct tall_case {
    ops_matrix x, y;
    ops_buffer *numbers;
} tall_case;

enum { TALL_ROWS = 66000, TALL_COLUMNS = 130 };

/* Rows of several threads and of one. */
static size_t make_tall(void *context, size_t number, char *text, size_t text_bytes)
{
    tall_case *c = context;
    const size_t columns = number == 0 ? TALL_COLUMNS : ref_between(1, 5);
    c->x = ops_random(PST_F32, TALL_ROWS, columns, 1.0);
    c->y = ops_poisoned(PST_F32, TALL_ROWS, columns);
    uint32_t *numbers = malloc(TALL_ROWS * sizeof *numbers);
    assert_non_null(numbers);
    for (uint32_t i = 0; i < TALL_ROWS; i++)
        numbers[i] = TALL_ROWS - 1 - i;
    c->numbers = ops_input(numbers, TALL_ROWS * sizeof *numbers, 4);
    free(numbers);
    snprintf(text, text_bytes, "%d rows of %zu", TALL_ROWS, columns);
    return TALL_ROWS;
}

/* Rows in reverse, then everything above zero. */
static int run_tall(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const tall_case *c = context;
    const pst_matrix x = ops_rows(&c->x, side, 0, TALL_ROWS), y = ops_rows(&c->y, side, first, rows);
    const int status = device->ops->take_rows(device, &x, (const uint32_t *)ops_at(c->numbers, side) + first, &y);
    return status < 0 ? status : device->ops->activate(device, PST_ACT_RELU, &y, &y);
}

static void check_tall(void *context, const char *text)
{
    const tall_case *c = context;
    ops_check_gaps(&c->y, text);
    ops_same_as_host(c->y.buffer, text);
}

/* ---- route ---- */

typedef struct route_case {
    pst_routing routing;
    uint32_t experts, per_row;
    ops_matrix logits;
    ops_buffer *correction, *chosen, *weights, *first, *order, *order_weight;
} route_case;

/* Thousands of experts, many of them for a row; logits that are multiples of 1/4, so that equals decide. */
static size_t make_route(void *context, size_t number, char *text, size_t text_bytes)
{
    static const uint32_t experts[] = {4096, 6000, 2048, 16384}, groups[] = {64, 3, 2048, 1};
    route_case *c = context;
    const size_t rows = ref_between(2, 4);
    c->experts = experts[number % 4];
    c->routing = (pst_routing){.sigmoid = true,
                               .normalize = number % 2,
                               .groups = groups[number % 4],
                               .top_groups = (groups[number % 4] + 1) / 2,
                               .group_scores = 1 + (uint32_t)(number / 2 % 2),
                               .corrected = true,
                               .scale = 1.5};
    c->per_row = (uint32_t)ref_between(1, 40);
    ref_array logits = ref_randoms(PST_F32, rows * c->experts, 0, 2.0), correction = ref_input(PST_F32, c->experts, 0);
    for (size_t i = 0; i < logits.count; i++)
        ref_set(&logits, i, nearbyint(ref_get(&logits, i) * 4) / 4);
    for (size_t i = 0; i < c->experts; i++)
        ref_set(&correction, i, (double)ref_between(0, 3));
    c->logits = ops_given(&logits, rows, c->experts);
    c->correction = ops_array(&correction, 4);
    ref_free(&logits);
    ref_free(&correction);
    c->chosen = ops_output(NULL, rows * c->per_row * 4, 4);
    c->weights = ops_output(NULL, rows * c->per_row * 4, 4);
    c->first = ops_output(NULL, (c->experts + (size_t)1) * 4, 4);
    c->order = ops_output(NULL, rows * c->per_row * 4, 4);
    c->order_weight = ops_output(NULL, rows * c->per_row * 4, 4);
    snprintf(text, text_bytes, "%u of %u experts in %u groups, %zu rows", c->per_row, c->experts, c->routing.groups,
             rows);
    return rows;
}

static int run_route(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const route_case *c = context;
    (void)first;
    const pst_route_job job = {.logits = ops_rows(&c->logits, side, 0, rows),
                               .correction = ops_at(c->correction, side),
                               .routing = c->routing,
                               .per_row = c->per_row,
                               .chosen = ops_at(c->chosen, side),
                               .weights = ops_at(c->weights, side),
                               .first = ops_at(c->first, side),
                               .order = ops_at(c->order, side),
                               .order_weight = ops_at(c->order_weight, side)};
    return device->ops->route(device, &job);
}

static void check_route(void *context, const char *text)
{
    const route_case *c = context;
    ops_same_as_host(c->chosen, text);
    ops_same_as_host(c->first, text);
    ops_same_as_host(c->order, text);
    for (size_t i = 0; i < c->logits.rows * c->per_row; i++) {
        const double mine = ops_get(c->weights, OPS_DEVICE, PST_F32, i),
                     other = ops_get(c->weights, OPS_HOST, PST_F32, i);
        /* both: an exponential, a sum, divisions, products; a sum of per_row terms where normalized */
        if (!(fabs(mine - other) <= F32_ROUNDING * fabs(other) * (20 + 2 * (double)c->per_row)))
            fail_msg("%s: weight %zu is %.9g, the host's %.9g", text, i, mine, other);
    }
}

/* A job of which nothing sensible can come is refused, and the device goes on. */
static void refuse_route(void *context, const char *text)
{
    const route_case *c = context;
    route_case odd = *c;
    odd.per_row = odd.experts + 1;
    if (run_route(&odd, ops_device(OPS_DEVICE), OPS_DEVICE, 0, 1) >= 0)
        fail_msg("%s: more experts for a row than there are", text);
    assert_int_equal(ops_device(OPS_DEVICE)->ops->synchronize(ops_device(OPS_DEVICE), NULL), 0);
}

static const ops_test tests[] = {
    {"kv_store", 60, sizeof(kv_case), make_kv, run_kv, check_kv, NULL, NULL, true},
    {"wide top", 5, sizeof(top_case), make_top, run_top, check_top, NULL, NULL, true},
    {"wide log_sum_exp", 4, sizeof(top_case), make_sums, run_sums, check_sums, NULL, NULL, true},
    {"wide norm", 12, sizeof(norm_case), make_norm, run_norm, check_norm, NULL, NULL, true},
    {"tall", 2, sizeof(tall_case), make_tall, run_tall, check_tall, NULL, NULL, true},
    {"route of thousands", 4, sizeof(route_case), make_route, run_route, check_route, refuse_route, NULL, false},
};

static void one(void **state)
{
    ops_drive(*state);
}

int main(void)
{
    struct CMUnitTest all[sizeof tests / sizeof *tests];
    const size_t count = sizeof tests / sizeof *tests;
    for (size_t i = 0; i < count; i++)
        all[i] = (struct CMUnitTest){tests[i].name, one, NULL, NULL, (void *)(uintptr_t)&tests[i]};
    return _cmocka_run_group_tests("rows", all, count, ops_set_up, ops_tear_down);
}
