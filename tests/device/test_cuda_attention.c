/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plugin's attention more closely than every device's (ops_sequence.c): a sequence's bits are the same whatever other
 * sequences are in the pass, in which order, wherever blocks lie, in which segments and cuts of rows the pass comes,
 * though prompts and generated tokens take different kernels. Every kernel is met: each cache type, heads of 32 to 1024,
 * shared values of 128 heads, chunks of more than one size, passes whose partial results need more than one launch,
 * and devices with little shared memory. PST_TEST_DEVICE and PST_TEST_SEED as in ops.h.
 *
 * Memory that a row may not see is NaN, tables name no memory below every row's window, `out` lies between sentinels.
 *
 * Tolerance against float64 over the stored bytes, with S the largest sum of |q k| * scale over a query's positions
 * and V the largest value: results of f32 2^-19 (1 + S) V: sums of f32, queries and exponentials kept to 22 bits, and
 * an error of a score counts twice, in the exponential and in the total. Of BF16: its rounding, exponentials of F16,
 * 2^-10 V, and codes rounded to F16, 2^-10 S V. The host's may be off by as much.
 */
#include <dlfcn.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device/ops.h"

enum { MAX_SEQUENCES = 72, MAX_PIECES = 300, FEW_ROWS = 8, GUARD_BYTES = 512, POISON = 0xff };

typedef struct sequence {
    size_t rows, blocks;
    uint32_t first_position;
    bool is_generated;     /* else a prompt */
    unsigned char *stored; /* blocks in order, as the host stored them; NaN behind the last position */
    float *q;              /* [rows][heads * key_dim] */
    unsigned char *bits;   /* [rows][heads * value_dim] of the out type: the first result */
} sequence;

/* Some sequences and what is asked of them. */
typedef struct world {
    const char *name;
    pst_kv_layout layout;
    uint32_t heads, window;
    bool alibi;
    pst_dtype out_type;
    double q_size;
    size_t count;
    struct {
        size_t rows;
        uint32_t first_position;
    } asked[MAX_SEQUENCES];
    /* Made: */
    float scale, *slopes;
    size_t block_bytes;
    sequence sequences[MAX_SEQUENCES];
} world;

static pst_device *tested;

static void *claim(size_t bytes, int byte)
{
    void *memory = malloc(bytes > 0 ? bytes : 1);
    assert_non_null(memory);
    return memset(memory, byte, bytes);
}

static size_t out_row_bytes(const world *w)
{
    return (size_t)w->heads * w->layout.value_dim * ref_bytes(w->out_type);
}

/* ---- Making ---- */

static void store(const world *w, sequence *s)
{
    const pst_kv_layout *l = &w->layout;
    pst_device *host = ops_device(OPS_HOST);
    const size_t end = s->first_position + s->rows;
    const size_t keys = (size_t)l->kv_heads * l->key_dim, values = (size_t)l->kv_heads * l->value_dim;
    s->blocks = (end + PST_KV_BLOCK - 1) / PST_KV_BLOCK;
    s->stored = claim(s->blocks * w->block_bytes, POISON);
    ref_array k = ref_randoms(PST_F32, end * keys, 0, 1.0), v = ref_randoms(PST_F32, end * values, 0, 1.0);
    void **blocks = claim(s->blocks * sizeof *blocks, 0);
    for (size_t b = 0; b < s->blocks; b++)
        blocks[b] = s->stored + b * w->block_bytes;
    const pst_segment whole = {.rows = end, .blocks = blocks};
    const pst_kv_store job = {
        .k = {k.data, PST_F32, end, keys, keys},
        .v = l->shared ? (pst_matrix){0} : (pst_matrix){v.data, PST_F32, end, values, values},
        .segments = {.items = &whole, .count = 1, .rows = end, .max_rows = end, .max_positions = (uint32_t)end},
        .layout = *l};
    assert_int_equal(host->ops->kv_store(host, &job), 0);
    free(blocks);
    ref_free(&k);
    ref_free(&v);
}

static void make(world *w)
{
    w->block_bytes = pst_kv_block_bytes(&w->layout);
    w->scale = 1.0f / sqrtf((float)w->layout.key_dim);
    w->slopes = claim(w->heads * sizeof *w->slopes, 0);
    for (uint32_t h = 0; h < w->heads; h++)
        w->slopes[h] = (float)pow(2.0, -8.0 * (h + 1) / w->heads);
    for (size_t i = 0; i < w->count; i++) {
        sequence *s = &w->sequences[i];
        *s = (sequence){.rows = w->asked[i].rows, .first_position = w->asked[i].first_position};
        /* Of generated tokens there are few, of a prompt's last chunk now and then. */
        s->is_generated = s->rows <= FEW_ROWS ? ref_between(0, 7) > 0 : ref_between(0, 7) == 0;
        store(w, s);
        const size_t elements = s->rows * w->heads * w->layout.key_dim;
        s->q = claim(elements * sizeof *s->q, 0);
        for (size_t n = 0; n < elements; n++)
            s->q[n] = (float)(ref_normal() * w->q_size);
    }
}

static void unmake(world *w)
{
    free(w->slopes);
    for (size_t i = 0; i < w->count; i++) {
        free(w->sequences[i].stored);
        free(w->sequences[i].q);
        free(w->sequences[i].bits);
    }
}

/* ---- Calling ---- */

/* A pass of some of the sequences, in some order, with its memory on a device. */
typedef struct pass {
    const world *w;
    pst_device *device;
    size_t order[MAX_SEQUENCES], count;    /* those of generated tokens first */
    size_t pieces, generated;              /* segments, and how many of them are of generated tokens */
    size_t first_row[MAX_SEQUENCES], rows; /* between sequences there may be rows of none */
    size_t q_stride, out_stride, out_bytes;
    unsigned char *before, *after; /* of out, with guards */
    void *memory[MAX_SEQUENCES * 2 + 8];
    uint64_t bytes[MAX_SEQUENCES * 2 + 8];
    size_t memory_count;
} pass;

static void *put(pass *p, const void *from, size_t bytes)
{
    void *memory = NULL;
    assert_int_equal(p->device->ops->allocate(p->device, PST_MEMORY_DEVICE, bytes, &memory), 0);
    assert_int_equal(p->device->ops->copy(p->device, NULL, memory, from, bytes), 0);
    assert_int_equal(p->device->ops->synchronize(p->device, NULL), 0); /* `from` may go */
    p->memory[p->memory_count] = memory;
    p->bytes[p->memory_count++] = bytes;
    return memory;
}

/* Below every row's window there is no memory. */
static size_t first_seen(const world *w, const sequence *s)
{
    return w->window > 0 && s->first_position >= w->window ? (s->first_position - w->window + 1) / PST_KV_BLOCK : 0;
}

/* A sequence's rows as one segment, or in several. */
static void put_pieces(pass *p, size_t i, void *const *table, pst_segment *items)
{
    const sequence *s = &p->w->sequences[p->order[i]];
    const size_t most = ref_between(0, 1) ? s->rows : ref_between(1, s->rows);
    for (size_t row = 0, rows; row < s->rows; row += rows, p->pieces++) {
        rows = p->pieces >= MAX_PIECES - MAX_SEQUENCES ? s->rows - row : ref_between(1, most);
        rows = most == s->rows || rows > s->rows - row ? s->rows - row : rows;
        items[p->pieces] = (pst_segment){.first_row = p->first_row[i] + row,
                                         .rows = rows,
                                         .first_position = s->first_position + (uint32_t)row,
                                         .blocks = table};
    }
    p->generated = s->is_generated ? p->pieces : p->generated;
}

/* The blocks of all sequences in any order in one pool, some layers in; their tables. */
static pst_segment *put_segments(pass *p, uint64_t *offset)
{
    const world *w = p->w;
    size_t slots = ref_between(0, 3), layers = ref_between(1, 2), next = 0;
    for (size_t i = 0; i < p->count; i++)
        slots += w->sequences[p->order[i]].blocks;
    size_t *slot = claim(slots * sizeof *slot, 0);
    for (size_t i = 0; i < slots; i++) {
        const size_t other = ref_between(0, i);
        slot[i] = slot[other];
        slot[other] = i;
    }
    *offset = (layers - 1) * slots * w->block_bytes;
    unsigned char *pool = claim(layers * slots * w->block_bytes + 1, POISON);
    for (size_t i = 0, used = 0; i < p->count; i++) {
        const sequence *s = &w->sequences[p->order[i]];
        for (size_t b = 0; b < s->blocks; b++)
            memcpy(pool + *offset + slot[used++] * w->block_bytes, s->stored + b * w->block_bytes, w->block_bytes);
    }
    char *on_device = put(p, pool, layers * slots * w->block_bytes + 1);
    pst_segment *items = claim(MAX_PIECES * sizeof *items, 0);
    for (size_t i = 0; i < p->count; i++) {
        const sequence *s = &w->sequences[p->order[i]];
        void **table = claim(s->blocks * sizeof *table, POISON);
        for (size_t b = 0; b < s->blocks; b++, next++)
            if (b >= first_seen(w, s))
                table[b] = on_device + slot[next] * w->block_bytes;
        put_pieces(p, i, put(p, table, s->blocks * sizeof *table), items);
        free(table);
    }
    free(pool);
    free(slot);
    return items;
}

static float *gather_q(const pass *p)
{
    const size_t columns = (size_t)p->w->heads * p->w->layout.key_dim;
    float *q = claim(p->rows * p->q_stride * sizeof *q, POISON);
    for (size_t i = 0; i < p->count; i++) {
        const sequence *s = &p->w->sequences[p->order[i]];
        for (size_t r = 0; r < s->rows; r++)
            memcpy(q + (p->first_row[i] + r) * p->q_stride, s->q + r * columns, columns * sizeof *q);
    }
    return q;
}

static void fail_call(const pass *p, const char *what)
{
    fail_msg("%s: %s: %s", p->w->name, what, p->device->ops->last_error(p->device));
}

/* Carries the pass out, in one call or in several for runs of its rows. */
static void attend(pass *p, bool in_parts)
{
    const world *w = p->w;
    const size_t element = ref_bytes(w->out_type);
    uint64_t offset = 0;
    float *all_q = gather_q(p);
    pst_segment *items = put_segments(p, &offset);
    const pst_segments segments = {
        .items = put(p, items, p->pieces * sizeof *items), .count = p->pieces, .generated = p->generated};
    const char *q = put(p, all_q, p->rows * p->q_stride * sizeof *all_q);
    char *out = put(p, p->before, p->out_bytes + 2 * GUARD_BYTES);
    pst_attention job = {.segments = segments,
                         .block_offset = offset,
                         .heads = w->heads,
                         .layout = w->layout,
                         .window = w->window,
                         .alibi = w->alibi ? put(p, w->slopes, w->heads * sizeof *w->slopes) : NULL,
                         .scale = w->scale};
    for (size_t i = 0; i < p->pieces; i++) {
        const size_t end = items[i].first_position + items[i].rows;
        job.segments.max_rows = items[i].rows > job.segments.max_rows ? items[i].rows : job.segments.max_rows;
        job.segments.max_positions = (uint32_t)(end > job.segments.max_positions ? end : job.segments.max_positions);
        if (i + 1 == p->generated) {
            job.segments.generated_max_rows = job.segments.max_rows;
            job.segments.generated_max_positions = job.segments.max_positions;
        }
    }
    for (size_t first = 0, part; first < p->rows; first += part) {
        part = in_parts ? ref_between(1, p->rows - first) : p->rows;
        job.segments.first_row = first;
        job.segments.rows = part;
        job.q = (pst_matrix){(char *)(uintptr_t)q + first * p->q_stride * sizeof *all_q, PST_F32, part,
                             (size_t)w->heads * w->layout.key_dim, p->q_stride};
        job.out = (pst_matrix){out + GUARD_BYTES + first * p->out_stride * element, w->out_type, part,
                               (size_t)w->heads * w->layout.value_dim, p->out_stride};
        if (p->device->ops->attention(p->device, &job) < 0)
            fail_call(p, "attention");
    }
    if (p->device->ops->copy(p->device, NULL, p->after, out, p->out_bytes + 2 * GUARD_BYTES) < 0 ||
        p->device->ops->synchronize(p->device, NULL) < 0)
        fail_call(p, "synchronize");
    free(all_q);
    free(items);
}

/* Where a row of a sequence of the pass is in `before` and `after`. */
static size_t row_at(const pass *p, size_t i, size_t row)
{
    return GUARD_BYTES + (p->first_row[i] + row) * p->out_stride * ref_bytes(p->w->out_type);
}

/* All that is no sequence's row must be as it was. */
static void check_rest(pass *p, const char *what)
{
    const size_t bytes = out_row_bytes(p->w), all = p->out_bytes + 2 * GUARD_BYTES;
    unsigned char *rest = claim(all, 0);
    memcpy(rest, p->after, all);
    for (size_t i = 0; i < p->count; i++)
        for (size_t r = 0; r < p->w->sequences[p->order[i]].rows; r++)
            memcpy(rest + row_at(p, i, r), p->before + row_at(p, i, r), bytes);
    for (size_t i = 0; i < all; i++)
        if (rest[i] != p->before[i])
            fail_msg("%s, %s: byte %zu around the results was written", p->w->name, what, i);
    free(rest);
}

/* Runs the sequences named by `order` on a device and holds each to its first result, which it keeps if there is
 * none. */
static void run(world *w, pst_device *device, const size_t *order, size_t count, bool in_parts, const char *what)
{
    pass p = {.w = w, .device = device, .count = count};
    for (size_t i = 0, at = 0; i < 2 * count; i++)
        if (w->sequences[order[i % count]].is_generated == (i < count))
            p.order[at++] = order[i % count];
    order = p.order;
    for (size_t i = 0; i < count; i++) {
        p.first_row[i] = p.rows += ref_between(0, 2);
        p.rows += w->sequences[order[i]].rows;
    }
    p.rows += ref_between(0, 2);
    p.q_stride = (size_t)w->heads * w->layout.key_dim + ref_between(0, 9);
    p.out_stride = (size_t)w->heads * w->layout.value_dim + ref_between(0, 9);
    p.out_bytes = p.rows * p.out_stride * ref_bytes(w->out_type);
    p.before = claim(p.out_bytes + 2 * GUARD_BYTES, POISON);
    p.after = claim(p.out_bytes + 2 * GUARD_BYTES, 0);
    memset(p.before, 0xa5, GUARD_BYTES);
    memset(p.before + GUARD_BYTES + p.out_bytes, 0xa5, GUARD_BYTES);
    attend(&p, in_parts);
    check_rest(&p, what);
    const size_t bytes = out_row_bytes(w);
    for (size_t i = 0; i < count; i++) {
        sequence *s = &w->sequences[order[i]];
        const bool is_first = s->bits == NULL;
        if (is_first)
            s->bits = claim(s->rows * bytes, 0);
        for (size_t r = 0; r < s->rows; r++) {
            if (is_first)
                memcpy(s->bits + r * bytes, p.after + row_at(&p, i, r), bytes);
            else if (memcmp(s->bits + r * bytes, p.after + row_at(&p, i, r), bytes) != 0)
                fail_msg("%s, %s: other bits in row %zu of sequence %zu", w->name, what, r, order[i]);
        }
    }
    for (size_t i = 0; i < p.memory_count; i++)
        device->ops->release(device, PST_MEMORY_DEVICE, p.memory[i], p.bytes[i]);
    free(p.before);
    free(p.after);
}

/* ---- Against float64 and the host ---- */

static double stored_element(const pst_kv_layout *l, const unsigned char *row, uint32_t dim, uint32_t i)
{
    const ref_array plain = {.data = (void *)(uintptr_t)row, .type = l->type == PST_KV_F32 ? PST_F32 : PST_F16};
    const pst_weight_format codes = {
        .layout = PST_WEIGHT_GROUPED, .bits = l->type == PST_KV_Q8 ? 8 : 4, .group = PST_KV_GROUP};
    return l->type <= PST_KV_F16 ? ref_get(&plain, i) : stored_grouped(row, &codes, dim, i);
}

static const unsigned char *stored_row(const world *w, const sequence *s, uint32_t head, size_t position, bool is_value)
{
    const pst_kv_layout *l = &w->layout;
    const bool from_key = !is_value || l->shared;
    return s->stored + position / PST_KV_BLOCK * w->block_bytes +
           (from_key ? pst_kv_key_offset(l, head) : pst_kv_value_offset(l, head)) +
           position % PST_KV_BLOCK * pst_kv_row_bytes(l->type, from_key ? l->key_dim : l->value_dim);
}

/* One query: its scores, then its values. Returns how far the result may be off. */
static double attend_in_float64(const world *w, const sequence *s, size_t row, uint32_t head, double *out)
{
    const pst_kv_layout *l = &w->layout;
    const uint32_t kv_head = head / (w->heads / l->kv_heads), stored_dim = l->shared ? l->key_dim : l->value_dim;
    const size_t position = s->first_position + row, end = position + 1;
    const size_t first = w->window > 0 && end > w->window ? end - w->window : 0;
    const float *q = s->q + row * w->heads * l->key_dim + (size_t)head * l->key_dim;
    double *scores = claim((end - first) * sizeof *scores, 0), most = -INFINITY, total = 0, size = 0, largest = 0;
    for (size_t j = first; j < end; j++) {
        const unsigned char *key = stored_row(w, s, kv_head, j, false);
        double score = 0, magnitude = 0;
        for (uint32_t d = 0; d < l->key_dim; d++) {
            const double product = (double)q[d] * stored_element(l, key, l->key_dim, d) * (double)w->scale;
            score += product;
            magnitude += fabs(product);
        }
        if (w->alibi)
            score += (double)w->slopes[head] * ((double)j - (double)position);
        scores[j - first] = score;
        most = fmax(most, score);
        size = fmax(size, magnitude);
    }
    for (size_t j = first; j < end; j++)
        total += scores[j - first] = exp(scores[j - first] - most);
    memset(out, 0, l->value_dim * sizeof *out);
    for (size_t j = first; j < end; j++) {
        const unsigned char *value = stored_row(w, s, kv_head, j, true);
        for (uint32_t d = 0; d < l->value_dim; d++) {
            const double v = stored_element(l, value, stored_dim, d);
            out[d] += scores[j - first] / total * v;
            largest = fmax(largest, fabs(v));
        }
    }
    free(scores);
    double limit = 0x1p-19 * (1 + size) * largest;
    if (w->out_type == PST_BF16)
        limit += 0x1p-10 * largest + (l->type >= PST_KV_Q8 ? 0x1p-10 * size * largest : 0);
    return limit;
}

static void check_numbers(const world *w)
{
    double out[1024];
    assert_true(w->layout.value_dim <= 1024);
    for (size_t i = 0; i < w->count; i++) {
        const sequence *s = &w->sequences[i];
        const ref_array bits = {.data = s->bits, .type = w->out_type};
        for (size_t n = 0; n < 5; n++) {
            const size_t row = n == 0 ? 0 : n == 1 ? s->rows - 1 : ref_between(0, s->rows - 1);
            const uint32_t head = (uint32_t)(n == 1 ? w->heads - 1 : ref_between(0, w->heads - 1));
            double limit = attend_in_float64(w, s, row, head, out);
            for (uint32_t d = 0; d < w->layout.value_dim; d++) {
                const double got = ref_get(&bits, (row * w->heads + head) * w->layout.value_dim + d);
                const double rounding = w->out_type == PST_BF16 ? BF16_ROUNDING * (fabs(out[d]) + limit) : 0;
                if (!(fabs(got - out[d]) <= limit + rounding))
                    fail_msg("%s: sequence %zu, row %zu, head %u: element %u is %.9g, expected %.9g within %.3g",
                             w->name, i, row, head, d, got, out[d], limit + rounding);
            }
        }
    }
}

/* The host's own results are near: everything, where float64 looked at some. */
static void check_host(world *w)
{
    unsigned char *bits[MAX_SEQUENCES];
    size_t order[MAX_SEQUENCES];
    for (size_t i = 0; i < w->count; i++) {
        order[i] = i;
        bits[i] = w->sequences[i].bits;
        w->sequences[i].bits = NULL;
    }
    run(w, ops_device(OPS_HOST), order, w->count, false, "the host");
    const double limit = w->out_type == PST_BF16 ? 0.06 : 1e-4; /* values are about N(0, 1) */
    for (size_t i = 0; i < w->count; i++) {
        sequence *s = &w->sequences[i];
        const ref_array mine = {.data = bits[i], .type = w->out_type}, other = {.data = s->bits, .type = w->out_type};
        for (size_t n = 0; n < s->rows * w->heads * w->layout.value_dim; n++)
            if (!(fabs(ref_get(&mine, n) - ref_get(&other, n)) <= limit * w->q_size))
                fail_msg("%s: sequence %zu, element %zu is %g, the host's %g", w->name, i, n, ref_get(&mine, n),
                         ref_get(&other, n));
        free(s->bits);
        s->bits = bits[i];
    }
}

/* ---- The tests ---- */

/* All together, some of them alone, some in another order, and in runs of rows. */
static void check_world(world *w)
{
    size_t order[MAX_SEQUENCES], one;
    make(w);
    for (size_t i = 0; i < w->count; i++)
        order[i] = i;
    run(w, tested, order, w->count, false, "together");
    check_numbers(w);
    check_host(w);
    for (int i = 0; i < 2; i++) {
        one = ref_between(0, w->count - 1);
        run(w, tested, &one, 1, false, "alone");
    }
    for (size_t i = w->count; i-- > 1;) {
        const size_t other = ref_between(0, i), swapped = order[i];
        order[i] = order[other];
        order[other] = swapped;
    }
    run(w, tested, order, ref_between(1, w->count), ref_between(0, 1), "among others");
    run(w, tested, order, w->count, true, "in parts");
    unmake(w);
}

#define KV(type_, heads_, key, value, shared_)                                                                         \
    {                                                                                                                  \
        .type = PST_KV_##type_, .kv_heads = heads_, .key_dim = key, .value_dim = value, .shared = shared_              \
    }

/* Prompts beside single rows, for every kernel and every way to bring rows to it. */
static void kernels(void **state)
{
    (void)state;
    static const pst_kv_layout layouts[] = {
        KV(F16, 2, 32, 32, false),   KV(F16, 1, 64, 64, false),   KV(F16, 2, 80, 80, false),
        KV(F16, 1, 128, 128, false), KV(F16, 1, 192, 128, false), KV(F16, 1, 256, 256, false),
        KV(F16, 1, 96, 48, true),    KV(F16, 1, 320, 272, true),  KV(F16, 2, 36, 20, false),
        KV(F16, 1, 33, 17, false),   KV(Q8, 2, 64, 64, false),    KV(Q8, 1, 112, 112, false),
        KV(Q8, 1, 144, 256, false),  KV(Q8, 1, 288, 256, true),   KV(Q8, 1, 33, 31, true),
        KV(Q8, 2, 44, 20, false),    KV(Q4, 2, 64, 64, false),    KV(Q4, 1, 112, 112, false),
        KV(Q4, 1, 256, 192, false),  KV(Q4, 1, 288, 256, true),   KV(Q4, 1, 29, 33, false),
        KV(Q4, 2, 44, 20, false),    KV(F32, 2, 64, 64, false),   KV(F32, 1, 100, 70, false),
        KV(F32, 1, 96, 64, true),    KV(F32, 1, 256, 256, false), KV(F32, 1, 7, 3, false),
    };
    static const uint32_t groups[] = {1, 2, 3, 4, 7, 8, 16};
    if (!ops_begin("kernels"))
        return;
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        const bool bf16 = ref_between(0, 1);
        const uint32_t group = groups[ref_between(0, 6)];
        char name[160];
        world w = {.name = name,
                   .layout = layouts[i],
                   .heads = layouts[i].kv_heads * group,
                   .window = (uint32_t)(ref_between(0, 1) ? 0 : ref_between(1, 150)),
                   .alibi = ref_between(0, 2) == 0,
                   .out_type = bf16 ? PST_BF16 : PST_F32,
                   .q_size = ref_between(0, 3) ? 1 : 4,
                   .count = 5,
                   .asked = {{1, (uint32_t)ref_between(0, 400)},
                             {ref_between(9, 40), (uint32_t)ref_between(0, 70)},
                             {1, 0},
                             {ref_between(2, 9), (uint32_t)ref_between(200, 330)},
                             {ref_between(1, 20), 0}}};
        snprintf(name, sizeof name, "type %d, dims %u %u%s, %u heads on %u, window %u, alibi %d, bf16 %d",
                 w.layout.type, w.layout.key_dim, w.layout.value_dim, w.layout.shared ? " shared" : "", w.heads,
                 w.layout.kv_heads, w.window, w.alibi, bf16);
        check_world(&w);
    }
}

/* 128 heads on one, DeepSeek's dimensions; and rows of the largest dimension. */
static void wide(void **state)
{
    (void)state;
    world worlds[] = {
        {.name = "latent, f16",
         .layout = KV(F16, 1, 576, 512, true),
         .heads = 128,
         .out_type = PST_BF16,
         .q_size = 1,
         .count = 3,
         .asked = {{1, 150}, {2, 20}, {1, 63}}},
        {.name = "latent, 8 bits",
         .layout = KV(Q8, 1, 576, 512, true),
         .heads = 32,
         .out_type = PST_BF16,
         .q_size = 1,
         .count = 2,
         .asked = {{1, 70}, {2, 0}}},
        {.name = "latent, f32",
         .layout = KV(F32, 1, 576, 512, true),
         .heads = 64,
         .out_type = PST_F32,
         .q_size = 1,
         .count = 2,
         .asked = {{1, 70}, {2, 0}}},
        {.name = "1024, f16",
         .layout = KV(F16, 1, 1024, 1024, false),
         .heads = 2,
         .out_type = PST_F32,
         .q_size = 1,
         .count = 2,
         .asked = {{1, 300}, {9, 20}}},
        {.name = "1024, 4 bits",
         .layout = KV(Q4, 1, 1024, 512, false),
         .heads = 1,
         .out_type = PST_BF16,
         .q_size = 1,
         .count = 2,
         .asked = {{1, 300}, {9, 20}}},
    };
    if (!ops_begin("wide"))
        return;
    for (size_t i = 0; i < sizeof worlds / sizeof *worlds; i++)
        check_world(&worlds[i]);
}

/* Chunks grow at positions 4096 and 12288; a window, ALiBi; scores of hundreds. */
static void far(void **state)
{
    (void)state;
    world worlds[] = {
        {.name = "far, f16",
         .layout = KV(F16, 1, 32, 32, false),
         .heads = 3,
         .out_type = PST_F32,
         .q_size = 1,
         .count = 4,
         .asked = {{1, 12400}, {1, 4095}, {1, 4096}, {3, 2558}}},
        {.name = "far, f32",
         .layout = KV(F32, 1, 32, 16, false),
         .heads = 2,
         .out_type = PST_F32,
         .q_size = 1,
         .count = 3,
         .asked = {{1, 4351}, {2, 4352}, {12, 1500}}},
        {.name = "far, 8 bits, window",
         .layout = KV(Q8, 1, 32, 32, false),
         .heads = 4,
         .out_type = PST_BF16,
         .q_size = 1,
         .window = 2000,
         .count = 3,
         .asked = {{1, 5000}, {1, 3000}, {1, 500}}},
        {.name = "far, 4 bits, alibi",
         .layout = KV(Q4, 1, 64, 64, false),
         .heads = 8,
         .out_type = PST_BF16,
         .q_size = 1,
         .alibi = true,
         .count = 2,
         .asked = {{1, 3000}, {9, 1000}}},
        {.name = "sharp",
         .layout = KV(F16, 1, 64, 64, false),
         .heads = 4,
         .out_type = PST_F32,
         .q_size = 60,
         .count = 2,
         .asked = {{1, 700}, {20, 100}}},
    };
    if (!ops_begin("far"))
        return;
    for (size_t i = 0; i < sizeof worlds / sizeof *worlds; i++)
        check_world(&worlds[i]);
}

/* More partial results than one launch of the emulated plugin has room for. */
static void launches(void **state)
{
    (void)state;
    world w = {.name = "many chunks",
               .layout = KV(F16, 1, 64, 64, false),
               .heads = 32,
               .out_type = PST_BF16,
               .q_size = 1,
               .count = 8};
    if (!ops_begin("launches"))
        return;
    for (size_t i = 0; i < w.count; i++) {
        w.asked[i].rows = 1;
        w.asked[i].first_position = (uint32_t)(i == 5 ? 2500 : ref_between(0, 300));
    }
    check_world(&w);
}

/* More sequences than a warp looks at together, few rows and many among each other. */
static void many(void **state)
{
    (void)state;
    world w = {.name = "many sequences",
               .layout = KV(F16, 1, 32, 32, false),
               .heads = 2,
               .out_type = PST_F32,
               .q_size = 1,
               .count = 70};
    if (!ops_begin("many"))
        return;
    for (size_t i = 0; i < w.count; i++) {
        w.asked[i].rows = ref_between(0, 3) ? 1 : ref_between(1, 20);
        w.asked[i].first_position = (uint32_t)ref_between(0, 90);
    }
    check_world(&w);
}

static void nothing_to_do(void **state)
{
    (void)state;
    if (!ops_begin("nothing to do"))
        return;
    const pst_attention none = {.heads = 1, .layout = KV(F16, 1, 64, 64, false), .scale = 1};
    assert_int_equal(tested->ops->attention(tested, &none), 0);
    assert_int_equal(tested->ops->synchronize(tested, NULL), 0);
}

/* A device whose blocks have the shared memory of a consumer's card: the same kernels with fewer queries give the
 * same bits, others are within the limits. */
static void little_shared_memory(void **state)
{
    (void)state;
    world worlds[] = {
        {.name = "256, f16",
         .layout = KV(F16, 1, 256, 256, false),
         .heads = 2,
         .out_type = PST_F32,
         .q_size = 1,
         .count = 2,
         .asked = {{1, 300}, {40, 20}}},
        {.name = "256, f32",
         .layout = KV(F32, 1, 256, 256, false),
         .heads = 2,
         .out_type = PST_F32,
         .q_size = 1,
         .count = 2,
         .asked = {{1, 300}, {40, 20}}},
        {.name = "latent",
         .layout = KV(F16, 1, 576, 512, true),
         .heads = 16,
         .out_type = PST_BF16,
         .q_size = 1,
         .count = 2,
         .asked = {{1, 300}, {5, 0}}},
    };
    if (!ops_begin("little shared memory"))
        return;
    void (*limit)(size_t) = NULL;
    if (ops_plugin() != NULL && strcmp(ops_name(), "emulated") == 0) {
        void *library = dlopen(PST_TEST_BINARY_DIR "/libpenstock-emulated.so", RTLD_NOW | RTLD_NOLOAD);
        if (library != NULL) {
            *(void **)&limit = dlsym(library, "pst_emulated_shared_limit");
            dlclose(library);
        }
    }
    if (limit == NULL) {
        printf("SKIP: little shared memory needs the emulator\n");
        return;
    }
    pst_device *usual = tested;
    for (size_t i = 0; i < sizeof worlds / sizeof *worlds; i++) {
        world *w = &worlds[i];
        const size_t order[] = {0, 1};
        make(w);
        run(w, usual, order, 2, false, "with much");
        limit(99 << 10);
        assert_int_equal(ops_open(&tested, NULL), 0);
        if (w->layout.shared) /* another kernel */
            for (size_t n = 0; n < 2; n++) {
                free(w->sequences[n].bits);
                w->sequences[n].bits = NULL;
            }
        run(w, tested, order, 2, false, "with little");
        check_numbers(w);
        pst_device_destroy(tested);
        tested = usual;
        limit(227 << 10);
        unmake(w);
    }
}

static int set_up(void **state)
{
    const int status = ops_set_up(state);
    tested = ops_device(OPS_DEVICE);
    return status;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kernels),
        cmocka_unit_test(wide),
        cmocka_unit_test(far),
        cmocka_unit_test(launches),
        cmocka_unit_test(many),
        cmocka_unit_test(nothing_to_do),
        cmocka_unit_test(little_shared_memory),
    };
    return cmocka_run_group_tests_name("attention of the plugin", tests, set_up, ops_tear_down);
}
