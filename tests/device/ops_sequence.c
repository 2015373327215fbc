/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys and values in blocks, and attention over them: passes of several sequences at any positions, generated tokens and
 * prompts, with every cache type, grouped, shared (latent), windowed and with ALiBi. What is stored has the host's bytes. Attention is
 * held against float64 over what the bytes stand for; memory that no row may see is NaN, and pointers to blocks below every
 * window lead nowhere. A row's bits are the same in whatever segments, calls and company it comes, and however little of its
 * sequence comes with it; what is not a number at one position does not reach the rows that do not see it.
 *
 * Tolerance of attention: that of f32 in any sane order (reference.c). Where the result is BF16, the request computes in BF16:
 * then queries, keys, the shares and values may be rounded to it on the way into products; the limit adds what that does to
 * a score (2^-8 of its terms' magnitudes for each of the two, as random errors add) and to the sum.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device/ops.h"

enum { MAX_SEGMENTS = 6, MAX_BLOCKS = 160 /* of a sequence */, MAX_LAYERS = 3, MAX_WORK = 600 * 1000 /* products */ };

typedef struct sequence_case {
    pst_kv_layout layout;
    uint32_t heads, window, layers, layer;
    float scale;
    uint32_t slack; /* of what the job says of positions */
    size_t count, generated, rows, pool_blocks, block_bytes;
    pst_segment segments[MAX_SEGMENTS];
    size_t first_block[MAX_SEGMENTS]; /* a sequence's in the pool: with gaps, falling */
    ops_buffer *pool, *items, *slopes, *tables[MAX_SEGMENTS];
    ref_array slope_values;
    ops_matrix q, k, v, out;
    unsigned char *stored; /* attention: the pool as the host filled it; owned */
} sequence_case;

static size_t blocks_of(const pst_segment *s)
{
    return (s->first_position + s->rows + PST_KV_BLOCK - 1) / PST_KV_BLOCK;
}

static void deal_layout(sequence_case *c, size_t number)
{
    static const uint32_t usual[] = {8, 12, 16, 20, 32, 64, 64, 80, 96, 128, 128, 192, 256};
    static const uint32_t groups[] = {1, 1, 2, 3, 4, 7, 8};
    const bool shared = number % 5 == 4;
    uint32_t dim = ref_between(0, 3) ? usual[ref_between(0, 12)] : (uint32_t)ref_between(1, 130);
    dim = shared && ref_between(0, 1) ? (ref_between(0, 1) ? 576 : 72) : dim;
    c->layout = (pst_kv_layout){.type = (pst_kv_type)(number % 4),
                                .kv_heads = shared ? 1 : (uint32_t)ref_between(1, 3),
                                .key_dim = dim,
                                .value_dim = dim,
                                .shared = shared};
    if (shared)
        c->layout.value_dim = dim == 576 ? 512 : dim == 72 ? 64 : (uint32_t)ref_between(1, dim);
    else if (ref_between(0, 3) == 0)
        c->layout.value_dim = (uint32_t)ref_between(1, 140);
    c->heads = c->layout.kv_heads * (shared ? (uint32_t)ref_between(1, 16) : groups[ref_between(0, 6)]);
    c->block_bytes = pst_kv_block_bytes(&c->layout);
    c->layers = (uint32_t)ref_between(1, MAX_LAYERS);
    c->slack = (uint32_t)(ref_between(0, 2) == 0 ? ref_between(1, 700) : 0);
    c->layer = (uint32_t)ref_between(0, c->layers - 1);
}

/* Generated tokens, prompts, or both, of sequences at any position. Of generated tokens a segment mostly has one, a prompt may
 * end with a single row. */
static void deal_segments(sequence_case *c)
{
    const bool is_long = ref_between(0, 9) == 0; /* a few rows far on in their sequences */
    const size_t kind = is_long ? 0 : ref_between(0, 3),
                 row_work = (size_t)c->heads * (c->layout.key_dim + c->layout.value_dim);
    const size_t most = MAX_WORK / row_work;
    c->count = ref_between(1, MAX_SEGMENTS);
    c->generated = kind == 0 ? c->count : kind == 1 ? ref_between(0, c->count) : 0;
    size_t work = 0;
    for (size_t i = 0; i < c->count; i++) {
        pst_segment *s = &c->segments[i];
        const bool single = i < c->generated ? ref_between(0, 5) > 0 : ref_between(0, 3) == 0;
        s->first_row = c->rows;
        s->rows = single ? 1 : ref_between(0, 3) ? ref_between(1, 30) : ref_between(1, 150);
        s->first_position = (uint32_t)(is_long ? ref_between(0, 9999) : ref_between(0, 2) ? ref_between(0, 250) : 0);
        while (s->rows + s->first_position > 1 && work + s->rows * (s->first_position + s->rows) > most) {
            s->rows = (s->rows + 1) / 2;
            s->first_position /= 2;
        }
        work += s->rows * (s->first_position + s->rows);
        c->rows += s->rows;
        c->pool_blocks += blocks_of(s) + ref_between(0, 1);
    }
    size_t block = c->pool_blocks;
    for (size_t i = 0; i < c->count; i++)
        c->first_block[i] = block -= blocks_of(&c->segments[i]);
}

static size_t pool_bytes(const sequence_case *c)
{
    return c->layers * c->pool_blocks * c->block_bytes;
}

/* Where a block of a sequence is in the pool: its blocks fall. */
static size_t block_at(const sequence_case *c, size_t sequence, size_t block)
{
    const size_t last = c->first_block[sequence] + blocks_of(&c->segments[sequence]) - 1;
    return (last - block) * c->block_bytes;
}

static uint64_t layer_offset(const sequence_case *c)
{
    return (uint64_t)c->layer * c->pool_blocks * c->block_bytes;
}

/* The first block that a row of the segment sees. */
static size_t first_seen(const sequence_case *c, const pst_segment *s)
{
    const bool cut = c->window > 0 && s->first_position + 1 > c->window;
    return cut ? (s->first_position + 1 - c->window) / PST_KV_BLOCK : 0;
}

/* The table of each sequence's blocks and the segments, in both devices' memory. */
static void make_items(sequence_case *c)
{
    pst_segment items[MAX_SEGMENTS];
    for (size_t i = 0; i < c->count; i++) {
        const size_t blocks = blocks_of(&c->segments[i]);
        c->tables[i] = ops_input(NULL, blocks * sizeof(void *), 8); /* 0xff: no address */
        for (size_t b = first_seen(c, &c->segments[i]); b < blocks; b++)
            ops_points(c->tables[i], b * sizeof(void *), c->pool, block_at(c, i, b));
        items[i] = c->segments[i];
    }
    c->items = ops_input(items, c->count * sizeof *items, 8);
    for (size_t i = 0; i < c->count; i++)
        ops_points(c->items, i * sizeof *items + offsetof(pst_segment, blocks), c->tables[i], 0);
}

/* `count` segments, the first `generated` of them of generated tokens, as far as rows [first, first + rows) go. items: where
 * the device has them. */
static pst_segments describe_segments(const pst_segment *items, const pst_segment *segments, size_t count,
                                      size_t generated, size_t first, size_t rows)
{
    pst_segments all = {.items = items, .count = count, .first_row = first, .rows = rows, .generated = generated};
    for (size_t i = 0; i < count; i++) {
        const pst_segment *s = &segments[i];
        const uint32_t end = (uint32_t)(s->first_position + s->rows);
        all.max_rows = s->rows > all.max_rows ? s->rows : all.max_rows;
        all.max_positions = end > all.max_positions ? end : all.max_positions;
        if (i + 1 != generated)
            continue;
        all.generated_max_rows = all.max_rows;
        all.generated_max_positions = all.max_positions;
    }
    return all;
}

/* The case's segments from `segment` on, `count` of them. */
static pst_segments segments_at(const sequence_case *c, ops_side side, size_t segment, size_t count, size_t first,
                                size_t rows)
{
    const size_t generated = c->generated <= segment ? 0 : c->generated - segment;
    pst_segments all = describe_segments((const pst_segment *)ops_at(c->items, side) + segment, c->segments + segment,
                                         count, generated < count ? generated : count, first, rows);
    all.max_positions += c->slack;
    all.generated_max_positions += all.generated_max_positions > 0 ? c->slack : 0;
    return all;
}

static void describe(const sequence_case *c, char *text, size_t text_bytes)
{
    const pst_kv_layout *l = &c->layout;
    int n =
        snprintf(text, text_bytes, "%u bits, %u heads on %u, dims %u %u%s, window %u, layer %u of %u, rows@position",
                 pst_kv_bits(l->type), c->heads, l->kv_heads, l->key_dim, l->value_dim, l->shared ? " shared" : "",
                 c->window, c->layer, c->layers);
    for (size_t i = 0; i < c->count && n > 0 && (size_t)n < text_bytes; i++)
        n += snprintf(text + n, text_bytes - (size_t)n, " %zu@%u%s", c->segments[i].rows, c->segments[i].first_position,
                      i < c->generated ? "g" : "");
}

/* ---- kv_store ---- */

/* Keys or values: of some size, beyond f16 now and then, and for codes a NaN. */
static ops_matrix deal_rows(const sequence_case *c, size_t columns)
{
    static const double sizes[] = {1e-6, 1, 300, 1e9};
    ref_array values = ref_randoms(PST_F32, c->rows * columns, 0, 1.0);
    for (size_t r = 0; r < c->rows; r++) {
        const double size = ref_between(0, 3) ? 1 : sizes[ref_between(0, 3)];
        for (size_t i = 0; i < columns; i++)
            ref_set(&values, r * columns + i, ref_get(&values, r * columns + i) * size);
    }
    if (c->layout.type >= PST_KV_Q8 && ref_between(0, 3) == 0)
        ref_set(&values, ref_between(0, values.count - 1), NAN);
    const ops_matrix m = ops_given(&values, c->rows, columns);
    ref_free(&values);
    return m;
}

static size_t make_store(void *context, size_t number, char *text, size_t text_bytes)
{
    sequence_case *c = context;
    deal_layout(c, number);
    deal_segments(c);
    c->pool = ops_output(NULL, pool_bytes(c), 256);
    c->k = deal_rows(c, (size_t)c->layout.kv_heads * c->layout.key_dim);
    if (!c->layout.shared)
        c->v = deal_rows(c, (size_t)c->layout.kv_heads * c->layout.value_dim);
    make_items(c);
    describe(c, text, text_bytes);
    return c->rows;
}

static int run_store(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const sequence_case *c = context;
    const pst_kv_store job = {.k = ops_rows(&c->k, side, first, rows),
                              .v = c->layout.shared ? (pst_matrix){0} : ops_rows(&c->v, side, first, rows),
                              .segments = segments_at(c, side, 0, c->count, first, rows),
                              .block_offset = layer_offset(c),
                              .layout = c->layout};
    return device->ops->kv_store(device, &job);
}

static double stored_element(const pst_kv_layout *l, const unsigned char *row, uint32_t dim, uint32_t i)
{
    const ref_array plain = {.data = (void *)(uintptr_t)row, .type = l->type == PST_KV_F32 ? PST_F32 : PST_F16};
    const pst_weight_format codes = {
        .layout = PST_WEIGHT_GROUPED, .bits = l->type == PST_KV_Q8 ? 8 : 4, .group = PST_KV_GROUP};
    return l->type <= PST_KV_F16 ? ref_get(&plain, i) : stored_grouped(row, &codes, dim, i);
}

/* A head's key (value) of a position in a pool. */
static size_t row_at(const sequence_case *c, size_t sequence, uint32_t head, size_t position, bool is_value)
{
    const pst_kv_layout *l = &c->layout;
    const bool from_key = !is_value || l->shared;
    const uint64_t begin = from_key ? pst_kv_key_offset(l, head) : pst_kv_value_offset(l, head);
    return layer_offset(c) + block_at(c, sequence, position / PST_KV_BLOCK) + begin +
           position % PST_KV_BLOCK * pst_kv_row_bytes(l->type, from_key ? l->key_dim : l->value_dim);
}

/* A row in codes with a NaN in some group: that group is NaN, its bytes are free; the others count. */
static void check_stored_row(const sequence_case *c, const ops_matrix *from, size_t r, uint32_t head, uint32_t dim,
                             size_t at, const char *text)
{
    const unsigned char *mine = ops_result(c->pool, OPS_DEVICE) + at, *other = ops_result(c->pool, OPS_HOST) + at;
    const size_t bytes = pst_kv_row_bytes(c->layout.type, dim);
    bool odd = false;
    for (uint32_t i = 0; i < dim; i++)
        odd = odd || isnan(ops_was(from, r, (size_t)head * dim + i));
    if (!odd && memcmp(mine, other, bytes) != 0)
        fail_msg("%s: row %zu, head %u: other bytes than the host's", text, r, head);
    for (uint32_t i = 0; i < dim && odd; i++) {
        const double a = stored_element(&c->layout, mine, dim, i), b = stored_element(&c->layout, other, dim, i);
        if (isnan(b) ? !isnan(a) : a != b)
            fail_msg("%s: row %zu, head %u with a NaN: element %u is %g, the host's %g", text, r, head, i, a, b);
    }
}

static void check_store(void *context, const char *text)
{
    const sequence_case *c = context;
    const pst_kv_layout *l = &c->layout;
    const size_t bytes = pool_bytes(c);
    bool *touched = calloc(bytes, 1);
    assert_non_null(touched);
    for (size_t s = 0; s < c->count; s++) {
        const pst_segment *g = &c->segments[s];
        for (size_t r = 0; r < g->rows; r++) {
            for (uint32_t head = 0; head < l->kv_heads; head++) {
                for (int value = 0; value <= (l->shared ? 0 : 1); value++) {
                    const uint32_t dim = value ? l->value_dim : l->key_dim;
                    const size_t at = row_at(c, s, head, g->first_position + r, value);
                    check_stored_row(c, value ? &c->v : &c->k, g->first_row + r, head, dim, at, text);
                    memset(touched + at, 1, pst_kv_row_bytes(l->type, dim));
                }
            }
        }
    }
    for (size_t i = 0; i < bytes; i++)
        if (!touched[i] && ops_result(c->pool, OPS_DEVICE)[i] != 0xff)
            fail_msg("%s: byte %zu of the pool, which is no row's, was written", text, i);
    free(touched);
}

/* ---- attention ---- */

/* The pool with keys and values of all positions up to each sequence's last, stored by the host; the rest is NaN. */
static void fill_pool(sequence_case *c)
{
    const pst_kv_layout *l = &c->layout;
    pst_device *host = ops_device(OPS_HOST);
    c->stored = malloc(pool_bytes(c));
    assert_non_null(c->stored);
    memset(c->stored, 0xff, pool_bytes(c));
    for (size_t s = 0; s < c->count; s++) {
        const size_t end = c->segments[s].first_position + c->segments[s].rows;
        const size_t keys = (size_t)l->kv_heads * l->key_dim, values = (size_t)l->kv_heads * l->value_dim;
        ref_array k = ref_randoms(PST_F32, end * keys, 0, 1.0), v = ref_randoms(PST_F32, end * values, 0, 1.0);
        void *blocks[MAX_BLOCKS];
        assert_true(blocks_of(&c->segments[s]) <= MAX_BLOCKS);
        for (size_t b = 0; b < blocks_of(&c->segments[s]); b++)
            blocks[b] = c->stored + block_at(c, s, b);
        const pst_segment whole = {.rows = end, .blocks = blocks};
        const pst_kv_store job = {
            .k = {k.data, PST_F32, end, keys, keys},
            .v = l->shared ? (pst_matrix){0} : (pst_matrix){v.data, PST_F32, end, values, values},
            .segments = {.items = &whole, .count = 1, .rows = end, .max_rows = end, .max_positions = (uint32_t)end},
            .block_offset = layer_offset(c),
            .layout = *l};
        assert_int_equal(host->ops->kv_store(host, &job), 0);
        ref_free(&k);
        ref_free(&v);
    }
}

static size_t make_attention(void *context, size_t number, char *text, size_t text_bytes)
{
    sequence_case *c = context;
    deal_layout(c, number);
    deal_segments(c);
    c->window = ref_between(0, 1) ? 0 : (uint32_t)(ref_between(0, 1) ? ref_between(1, 20) : ref_between(1, 200));
    c->scale = 1.0f / sqrtf((float)c->layout.key_dim);
    fill_pool(c);
    c->pool = ops_input(c->stored, pool_bytes(c), 256);
    make_items(c);
    c->q = ops_random(PST_F32, c->rows, (size_t)c->heads * c->layout.key_dim, 2.0);
    c->out = ops_poisoned(ref_between(0, 1) ? PST_BF16 : PST_F32, c->rows, (size_t)c->heads * c->layout.value_dim);
    if (ref_between(0, 3) == 0) {
        c->slope_values = ref_input(PST_F32, c->heads, 0);
        for (size_t i = 0; i < c->heads; i++)
            ref_set(&c->slope_values, i, ldexp(1.0, -(int)ref_between(1, 8)));
        c->slopes = ops_array(&c->slope_values, 4);
    }
    describe(c, text, text_bytes);
    const size_t length = strlen(text);
    snprintf(text + length, text_bytes - length, ", alibi %d, out %s", c->slopes != NULL, pst_dtype_name(c->out.type));
    return c->rows;
}

static pst_attention attention_of(const sequence_case *c, ops_side side, pst_segments segments)
{
    return (pst_attention){.q = ops_rows(&c->q, side, segments.first_row, segments.rows),
                           .out = ops_rows(&c->out, side, segments.first_row, segments.rows),
                           .segments = segments,
                           .block_offset = layer_offset(c),
                           .heads = c->heads,
                           .layout = c->layout,
                           .window = c->window,
                           .alibi = ops_at(c->slopes, side),
                           .scale = c->scale};
}

static int run_attention(void *context, pst_device *device, ops_side side, size_t first, size_t rows)
{
    const sequence_case *c = context;
    const pst_attention job = attention_of(c, side, segments_at(c, side, 0, c->count, first, rows));
    return device->ops->attention(device, &job);
}

/* A head's keys or values of a sequence as numbers, a row per position. */
static ref_array read_rows(const sequence_case *c, size_t sequence, uint32_t head, bool is_value, double *largest)
{
    const pst_kv_layout *l = &c->layout;
    const uint32_t dim = is_value ? l->value_dim : l->key_dim, stored_dim = is_value && !l->shared ? dim : l->key_dim;
    const size_t end = c->segments[sequence].first_position + c->segments[sequence].rows;
    ref_array rows = ref_input(PST_F32, end * dim, 0);
    for (size_t p = 0; p < end; p++) {
        const unsigned char *row = c->stored + row_at(c, sequence, head, p, is_value);
        for (uint32_t i = 0; i < dim; i++) {
            const double element = stored_element(l, row, stored_dim, i);
            *largest = fmax(*largest, fabs(element));
            ref_set(&rows, p * dim + i, element);
        }
    }
    return rows;
}

/* One query against float64. */
static void check_query(const sequence_case *c, size_t sequence, size_t r, uint32_t head, const char *text)
{
    const pst_kv_layout *l = &c->layout;
    const pst_segment *s = &c->segments[sequence];
    const uint32_t kv_head = head / (c->heads / l->kv_heads);
    const size_t end = s->first_position + r + 1, row = s->first_row + r;
    const bool coded = l->type == PST_KV_Q8 || l->type == PST_KV_Q4;
    double largest_key = 0, largest = 0, expected[1024], error, size = 0;
    ref_array k = read_rows(c, sequence, kv_head, false, &largest_key);
    ref_array v = read_rows(c, sequence, kv_head, true, &largest);
    const ref_array q = {.data = (void *)(uintptr_t)ops_before(c->q.buffer), .type = PST_F32};
    const ref_query query = {.q = &q,
                             .first_element = row * c->q.stride + (size_t)head * l->key_dim,
                             .k = &k,
                             .v = &v,
                             .key_dim = l->key_dim,
                             .value_dim = l->value_dim,
                             .v_stride = l->value_dim,
                             .first = c->window > 0 && end > c->window ? end - c->window : 0,
                             .end = end,
                             .scale = (double)c->scale,
                             .slope = c->slopes != NULL ? ref_get(&c->slope_values, head) : 0,
                             .element_roundings = coded ? 6 : 0};
    assert_true(l->value_dim <= 1024);
    ref_attend(&query, expected, &error);
    for (uint32_t i = 0; i < l->key_dim; i++)
        size += pow(ref_get(&q, query.first_element + i) * largest_key * (double)c->scale, 2);
    if (c->out.type == PST_BF16)
        error += BF16_ROUNDING * largest * (8 * sqrt(size) + 2);
    for (uint32_t i = 0; i < l->value_dim; i++)
        ops_near(&c->out, row, (size_t)head * l->value_dim + i, expected[i], error, text);
    ref_free(&k);
    ref_free(&v);
}

/* Of every sequence the first and the last row and some between; and all results near the host's. */
static void check_attention(void *context, const char *text)
{
    const sequence_case *c = context;
    ops_check_gaps(&c->out, text);
    for (size_t s = 0; s < c->count; s++) {
        const size_t rows = c->segments[s].rows;
        check_query(c, s, 0, (uint32_t)ref_between(0, c->heads - 1), text);
        check_query(c, s, rows - 1, (uint32_t)ref_between(0, c->heads - 1), text);
        check_query(c, s, ref_between(0, rows - 1), c->heads - 1, text);
        check_query(c, s, ref_between(0, rows - 1), (uint32_t)ref_between(0, c->heads - 1), text);
    }
    /* Values are about N(0, 1): what is wrong altogether is off by some tenths. */
    const double limit = c->out.type == PST_BF16 ? 0.15 : 0.01;
    for (size_t r = 0; r < c->rows; r++) {
        for (size_t i = 0; i < c->out.columns; i++) {
            const size_t at = r * c->out.stride + i;
            const double mine = ops_get(c->out.buffer, OPS_DEVICE, c->out.type, at);
            const double other = ops_get(c->out.buffer, OPS_HOST, c->out.type, at);
            if (!(fabs(mine - other) <= limit))
                fail_msg("%s: [%zu][%zu] = %g, the host's %g", text, r, i, mine, other);
        }
    }
}

/* Each sequence in a call of its own: the others change nothing. */
static void run_alone(const sequence_case *c, const char *text)
{
    pst_device *device = ops_device(OPS_DEVICE);
    ops_place();
    for (size_t i = c->count; i-- > 0;) {
        const pst_segment *s = &c->segments[i];
        const pst_attention job = attention_of(c, OPS_DEVICE, segments_at(c, OPS_DEVICE, i, 1, s->first_row, s->rows));
        assert_int_equal(device->ops->attention(device, &job), 0);
    }
    ops_collect(text);
    ops_same_as_first("when a sequence is alone", text);
}

/* The same rows in segments of some of them, as a prompt comes whose chunks are smaller: all in one call, or each in one of its
 * own. */
static void run_cut(const sequence_case *c, const char *text)
{
    enum { MOST = 64 };
    pst_device *device = ops_device(OPS_DEVICE);
    pst_segment pieces[MOST];
    ops_buffer *tables[MOST];
    size_t count = 0, generated = 0;
    for (size_t i = 0; i < c->count; i++) {
        const pst_segment *s = &c->segments[i];
        const size_t most = ref_between(1, s->rows);
        for (size_t row = 0, rows; row < s->rows; row += rows, count++) {
            rows = count >= MOST - MAX_SEGMENTS + i ? s->rows - row : ref_between(1, most);
            rows = rows < s->rows - row ? rows : s->rows - row;
            pieces[count] = (pst_segment){
                .first_row = s->first_row + row, .rows = rows, .first_position = s->first_position + (uint32_t)row};
            tables[count] = c->tables[i];
        }
        generated = i < c->generated ? count : generated;
    }
    ops_buffer *items = ops_input(pieces, count * sizeof *pieces, 8);
    for (size_t i = 0; i < count; i++)
        ops_points(items, i * sizeof *pieces + offsetof(pst_segment, blocks), tables[i], 0);
    ops_place();
    const pst_segment *there = ops_at(items, OPS_DEVICE);
    const size_t step = ref_between(0, 1) ? count : 1;
    for (size_t i = 0; i < count; i += step) {
        const size_t left = generated <= i ? 0 : generated - i, first = step == 1 ? pieces[i].first_row : 0;
        const pst_attention job = attention_of(c, OPS_DEVICE,
                                               describe_segments(there + i, pieces + i, step, left < step ? left : step,
                                                                 first, step == 1 ? pieces[i].rows : c->rows));
        assert_int_equal(device->ops->attention(device, &job), 0);
    }
    ops_collect(text);
    ops_same_as_first("in other segments", text);
}

/* Something that is not a number, or not finite, at one position of one sequence. */
typedef struct odd_element {
    size_t sequence, position;
    uint32_t kv_head, column;
    bool is_value;
} odd_element;

static odd_element make_odd(const sequence_case *c)
{
    static const uint32_t odd_f32[] = {0x7fc00000, 0x7f800000, 0xff800000};
    static const uint16_t odd_f16[] = {0x7e00, 0x7c00, 0xfc00};
    const pst_kv_layout *l = &c->layout;
    odd_element o = {.sequence = ref_between(0, c->count - 1), .kv_head = (uint32_t)ref_between(0, l->kv_heads - 1)};
    for (size_t i = 0; i < c->count && ref_between(0, 2); i++) /* rather one of several rows */
        o.sequence = c->segments[i].rows > c->segments[o.sequence].rows ? i : o.sequence;
    const pst_segment *s = &c->segments[o.sequence];
    o.is_value = l->shared || ref_between(0, 3) > 0;
    o.column = (uint32_t)ref_between(0, (o.is_value ? l->value_dim : l->key_dim) - 1);
    /* Seen by some rows alone, unless there is one; below every window there is no memory. */
    const size_t first = ref_between(0, 3) ? s->first_position : first_seen(c, s) * PST_KV_BLOCK;
    o.position = ref_between(first, s->first_position + s->rows - 1);
    const size_t at = row_at(c, o.sequence, o.kv_head, o.position, o.is_value);
    const size_t kind = o.is_value ? ref_between(0, 2) : 0;
    const uint32_t dim = o.is_value && !l->shared ? l->value_dim : l->key_dim;
    const size_t code_bytes = l->type == PST_KV_Q8 ? dim : (dim + 1) / 2;
    if (l->type == PST_KV_F32)
        ops_change(c->pool, at + 4 * o.column, &odd_f32[kind], 4);
    else if (l->type == PST_KV_F16)
        ops_change(c->pool, at + 2 * o.column, &odd_f16[kind], 2);
    else /* the scale of its group */
        ops_change(c->pool, at + code_bytes + o.column / PST_KV_GROUP * 4, &odd_f16[0], 2);
    return o;
}

/* Rows that see it are not finite, in the column of a value or all over; all others have the bits that they had. */
static void run_odd(const sequence_case *c, const char *text)
{
    const odd_element o = make_odd(c);
    const pst_segment *s = &c->segments[o.sequence];
    const uint32_t group = c->heads / c->layout.kv_heads, dim = c->layout.value_dim;
    ops_place();
    assert_int_equal(run_attention((void *)(uintptr_t)c, ops_device(OPS_DEVICE), OPS_DEVICE, 0, c->rows), 0);
    ops_collect(text);
    const ref_array now = {.data = (void *)(uintptr_t)ops_result(c->out.buffer, OPS_DEVICE), .type = c->out.type};
    const ref_array was = {.data = (void *)(uintptr_t)ops_kept(c->out.buffer), .type = c->out.type};
    const size_t element = ref_bytes(c->out.type);
    for (size_t r = 0; r < c->rows; r++) {
        const size_t position = s->first_position + r - s->first_row;
        const bool sees = r >= s->first_row && r < s->first_row + s->rows && position >= o.position &&
                          (c->window == 0 || position - o.position < c->window);
        for (uint32_t head = 0; head < c->heads; head++) {
            const size_t at = r * c->out.stride + (size_t)head * dim;
            const bool is_hit = sees && head / group == o.kv_head;
            if (!is_hit && memcmp((const char *)now.data + at * element, (const char *)was.data + at * element,
                                  dim * element) != 0)
                fail_msg("%s: row %zu, head %u: other bits, though it does not see the odd %s at %zu of sequence %zu",
                         text, r, head, o.is_value ? "value" : "key", o.position, o.sequence);
            if (is_hit && isfinite(ref_get(&now, at + (o.is_value ? o.column : dim - 1))))
                fail_msg("%s: row %zu, head %u does not show the odd %s at %zu of sequence %zu", text, r, head,
                         o.is_value ? "value" : "key", o.position, o.sequence);
        }
    }
}

static void more_attention(void *context, const char *text)
{
    const sequence_case *c = context;
    if (c->count > 1 && ref_between(0, 2) == 0)
        run_alone(c, text);
    run_cut(c, text);
    if (c->rows > c->count || ref_between(0, 2) == 0)
        run_odd(c, text);
}

static void clear_sequence(void *context)
{
    sequence_case *c = context;
    ref_free(&c->slope_values);
    free(c->stored);
}

const ops_test ops_sequence_tests[] = {
    {"kv_store", 32, sizeof(sequence_case), make_store, run_store, check_store, NULL, clear_sequence, true},
    {"attention", 60, sizeof(sequence_case), make_attention, run_attention, check_attention, more_attention,
     clear_sequence, true},
    {NULL},
};
