/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of a block of queries (rows x group) with one key/value head, in one pass over the keys.
 *
 * The keys are taken in blocks that begin at whole multiples of KEY_BLOCK, whatever the call. For each query, block
 * after block: scores (one dot product each, as in matmul.h), the new maximum, exponentials, their sum by position
 * in the block, and the weighted sum of values in rising order. Keys outside the query's own range are never read
 * for it, so a query's result depends on nothing else: prefill in one piece, in chunks, or one row at a time gives
 * the same bits.
 */
#ifndef PST_CPU_TEMPLATE_ATTENTION_H
#define PST_CPU_TEMPLATE_ATTENTION_H

#define KEY_BLOCK 64

_Static_assert(KEY_BLOCK == PST_KV_BLOCK, "a block of keys is one piece of memory");

/* One call's state. */
typedef struct attention_state {
    const pst_cpu_attention *job;
    size_t key_dim, value_dim;
    size_t key_padded, value_padded; /* these up to whole 64 byte lines: rows of queries and of sums */
    float *queries, *sums, *largest, *total;
    /* The block of keys and values under way, as the products read them: F32 or F16, in place or widened. */
    const char *keys, *values; /* those of its first position */
    size_t key_step, value_step;
    bool half;
    float *wide; /* where codes are widened */
} attention_state;

/* The keys that query q sees: [first, end). */
static void key_range(const pst_cpu_attention *job, size_t query, size_t *first, size_t *end)
{
    size_t position = job->first_position + query / job->group;
    *end = position + 1;
    *first = job->window > 0 && *end > job->window ? *end - job->window : 0;
}

/* sums[r] += p[r][j] * v[j] for the given rows, keys j in [first, end) of the block, and `vectors` vectors of
 * elements. v: value of the block's key 0 at these elements; n: elements of the one vector when it is an end, else
 * 0. */
static ALWAYS_INLINE void values_of(const pst_dtype type, const int rows, const int vectors, const size_t n,
                                    const char *v, size_t v_step, const float *p, size_t first, size_t end, float *sums,
                                    size_t step)
{
    vf s[VF_TILE_ROWS][4];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++)
            s[r][i] = vf_load_f32(sums + (size_t)r * step + (size_t)i * VF_LANES);
    }
    for (size_t j = first; j < end; j++) {
        vf values[4];
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++)
            values[i] = n != 0 ? load_as_f32_n(type, v + j * v_step, 0, n)
                               : load_as_f32(type, v + j * v_step, (size_t)i * VF_LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            vf weight = vf_set1(p[(size_t)r * KEY_BLOCK + j]);
#pragma GCC unroll 4
            for (int i = 0; i < vectors; i++)
                s[r][i] = vf_fma(weight, values[i], s[r][i]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int i = 0; i < vectors; i++)
            vf_store_f32(sums + (size_t)r * step + (size_t)i * VF_LANES, s[r][i]);
    }
}

/* All elements of the values, for a fixed number of rows. v: value of the block's key 0. */
static ALWAYS_INLINE void values_rows(const pst_dtype type, const int rows, const attention_state *state, const char *v,
                                      const float *p, size_t first, size_t end, float *sums)
{
    const size_t dim = state->value_dim, bytes = element_bytes(type), v_step = state->value_step;
    size_t d = 0;
    for (; d + 4 * VF_LANES <= dim; d += 4 * VF_LANES)
        values_of(type, rows, 4, 0, v + d * bytes, v_step, p, first, end, sums + d, state->value_padded);
    for (; d + VF_LANES <= dim; d += VF_LANES)
        values_of(type, rows, 1, 0, v + d * bytes, v_step, p, first, end, sums + d, state->value_padded);
    if (d < dim)
        values_of(type, rows, 1, dim - d, v + d * bytes, v_step, p, first, end, sums + d, state->value_padded);
}

typedef void values_function(const attention_state *state, const char *v, const float *p, size_t first, size_t end,
                             float *sums);

#define VALUES(type, rows)                                                                                             \
    static void values_##type##_##rows(const attention_state *state, const char *v, const float *p, size_t first,      \
                                       size_t end, float *sums)                                                        \
    {                                                                                                                  \
        values_rows(PST_##type, rows, state, v, p, first, end, sums);                                                  \
    }
#if VF_TILE_ROWS == 6
#define VALUES_ALL(type) VALUES(type, 1) VALUES(type, 2) VALUES(type, 3) VALUES(type, 4) VALUES(type, 5) VALUES(type, 6)
#define VALUES_ENTRIES(type)                                                                                           \
    {                                                                                                                  \
        values_##type##_1, values_##type##_2, values_##type##_3, values_##type##_4, values_##type##_5,                 \
            values_##type##_6                                                                                          \
    }
#elif VF_TILE_ROWS == 3
#define VALUES_ALL(type) VALUES(type, 1) VALUES(type, 2) VALUES(type, 3)
#define VALUES_ENTRIES(type)                                                                                           \
    {                                                                                                                  \
        values_##type##_1, values_##type##_2, values_##type##_3                                                        \
    }
#else
#define VALUES_ALL(type) VALUES(type, 1) VALUES(type, 2)
#define VALUES_ENTRIES(type)                                                                                           \
    {                                                                                                                  \
        values_##type##_1, values_##type##_2                                                                           \
    }
#endif
VALUES_ALL(F32)
VALUES_ALL(F16)
/* [F16, else F32][rows - 1] */
static values_function *const values_functions[2][VF_TILE_ROWS] = {VALUES_ENTRIES(F32), VALUES_ENTRIES(F16)};

/* Turns one query's scores of a block, of which [first, end) are its own, into exponentials (zero elsewhere) and
 * brings its maximum, total and sums up to date. */
static void weigh_scores(attention_state *state, size_t query, size_t block, float *scores, size_t first, size_t end)
{
    const pst_cpu_attention *job = state->job;
    const vf scale = vf_set1(job->scale);
    for (size_t j = 0; j < first; j++)
        scores[j] = -__builtin_inff();
    for (size_t j = end; j < KEY_BLOCK; j++)
        scores[j] = -__builtin_inff();
    vf largest = vf_set1(-__builtin_inff()), slope = vf_zero();
    float distances[KEY_BLOCK];
    if (job->alibi != NULL) {
        slope = vf_set1(job->alibi[query % job->group]);
        const int64_t position = (int64_t)(job->first_position + query / job->group);
        for (size_t j = 0; j < KEY_BLOCK; j++)
            distances[j] = (float)((int64_t)(block + j) - position);
    }
    for (size_t j = 0; j < KEY_BLOCK; j += VF_LANES) {
        vf a = vf_mul(vf_load_f32(scores + j), scale);
        if (job->alibi != NULL)
            a = vf_add(a, vf_mul(slope, vf_load_f32(distances + j)));
        vf_store_f32(scores + j, a);
        largest = vf_max(a, largest);
    }
    float before = state->largest[query], now = vf_max_across(largest);
    now = now > before ? now : before;
    vf shift = vf_set1(now), total = vf_zero();
    for (size_t j = 0; j < KEY_BLOCK; j += VF_LANES) {
        vf p = vf_exp(vf_sub(vf_load_f32(scores + j), shift));
        vf_store_f32(scores + j, p);
        total = vf_add(total, p);
    }
    state->largest[query] = now;
    if (now == before) {
        state->total[query] += vf_sum(total);
        return;
    }
    vf fade = vf_exp(vf_set1(before - now));
    float fade_lane[VF_LANES];
    vf_store_f32(fade_lane, fade);
    state->total[query] = state->total[query] * fade_lane[0] + vf_sum(total);
    float *sums = state->sums + query * state->value_padded;
    for (size_t d = 0; d < state->value_padded; d += VF_LANES)
        vf_store_f32(sums + d, vf_mul(vf_load_f32(sums + d), fade));
}

/* Makes the keys and values of a block ready, of which the positions [lowest, highest) count. */
static void take_block(attention_state *state, size_t block, size_t lowest, size_t highest)
{
    const pst_cpu_attention *job = state->job;
    const pst_kv_layout *layout = job->layout;
    const char *memory = (const char *)job->blocks[block / KEY_BLOCK] + job->block_offset;
    state->keys = memory + pst_kv_key_offset(layout, job->kv_head);
    state->values = memory + pst_kv_value_offset(layout, job->kv_head);
    state->key_step = pst_kv_row_bytes(layout->type, layout->key_dim);
    state->value_step = layout->shared ? state->key_step : pst_kv_row_bytes(layout->type, layout->value_dim);
    state->half = layout->type == PST_KV_F16;
    if (kv_codes(layout->type) == NULL)
        return;
    const pst_weight_format *codes = kv_codes(layout->type);
    float *keys = state->wide, *values = layout->shared ? keys : keys + KEY_BLOCK * state->key_padded;
    const size_t value_padded = layout->shared ? state->key_padded : state->value_padded;
    for (size_t j = lowest; j < highest; j++) {
        kernel_dequantize(state->keys + j * state->key_step, codes, state->key_dim, 0, state->key_dim,
                          keys + j * state->key_padded);
        if (!layout->shared)
            kernel_dequantize(state->values + j * state->value_step, codes, state->value_dim, 0, state->value_dim,
                              values + j * value_padded);
    }
    state->keys = (const char *)keys;
    state->values = (const char *)values;
    state->key_step = state->key_padded * sizeof(float);
    state->value_step = value_padded * sizeof(float);
}

/* Queries query .. query + rows - 1 with the block of keys that begins at `block`. */
static void attend_block(attention_state *state, size_t query, size_t rows, size_t block)
{
    const pst_cpu_attention *job = state->job;
    const bool half = state->half;
    _Alignas(64) float scores[VF_TILE_ROWS * KEY_BLOCK] = {0};
    size_t first[VF_TILE_ROWS], end[VF_TILE_ROWS]; /* each query's own keys, counted from `block`; first <= end */
    size_t lowest = KEY_BLOCK, highest = 0, joint_first = 0, joint_end = KEY_BLOCK;
    for (size_t r = 0; r < rows; r++) {
        key_range(job, query + r, &first[r], &end[r]);
        end[r] = end[r] < block ? 0 : end[r] - block < KEY_BLOCK ? end[r] - block : KEY_BLOCK;
        first[r] = first[r] < block ? 0 : first[r] - block < end[r] ? first[r] - block : end[r];
        if (first[r] < end[r]) {
            lowest = first[r] < lowest ? first[r] : lowest;
            highest = end[r] > highest ? end[r] : highest;
        }
        joint_first = first[r] > joint_first ? first[r] : joint_first;
        joint_end = end[r] < joint_end ? end[r] : joint_end;
    }
    if (lowest >= highest)
        return;
    tile_job tile = {
        .x = (const char *)(state->queries + query * state->key_padded),
        .x_step = state->key_padded * sizeof(float),
        .w = state->keys + lowest * state->key_step,
        .w_step = state->key_step,
        .k = state->key_dim,
        .sums = scores + lowest,
        .sums_step = KEY_BLOCK,
    };
    run_tiles(tiles[half ? PRODUCT_F16 : PRODUCT_F32][rows - 1], &tile, highest - lowest);
    for (size_t r = 0; r < rows; r++) {
        if (first[r] < end[r])
            weigh_scores(state, query + r, block, scores + r * KEY_BLOCK, first[r], end[r]);
    }
    /* Keys that all these queries see go together; what one sees before and after them, alone: rising order for
     * each. */
    const char *v = state->values;
    float *sums = state->sums + query * state->value_padded;
    if (joint_first >= joint_end)
        joint_first = joint_end = 0;
    for (size_t r = 0; r < rows; r++) {
        if (first[r] < joint_first)
            values_functions[half][0](state, v, scores + r * KEY_BLOCK, first[r], joint_first,
                                      sums + r * state->value_padded);
    }
    if (joint_first < joint_end)
        values_functions[half][rows - 1](state, v, scores, joint_first, joint_end, sums);
    for (size_t r = 0; r < rows; r++) {
        size_t from = joint_end > first[r] ? joint_end : first[r];
        if (from < end[r])
            values_functions[half][0](state, v, scores + r * KEY_BLOCK, from, end[r], sums + r * state->value_padded);
    }
}

static void finish_query(const attention_state *state, size_t query)
{
    const pst_cpu_attention *job = state->job;
    const float *sums = state->sums + query * state->value_padded;
    const vf total = vf_set1(state->total[query]);
    size_t dim = state->value_dim, d = 0;
    size_t offset = query / job->group * job->out_stride + query % job->group * dim;
    for (; d + VF_LANES <= dim; d += VF_LANES)
        store_from_f32(job->out_type, job->out, offset + d, vf_div(vf_load_f32(sums + d), total));
    if (d < dim)
        store_from_f32_n(job->out_type, job->out, offset + d, vf_div(vf_load_f32(sums + d), total), dim - d);
}

/* Takes the queries into whole lines and returns the range of keys that they see together. */
static void begin_queries(attention_state *state, size_t count, size_t *first, size_t *end)
{
    const pst_cpu_attention *job = state->job;
    memset(state->queries, 0, count * (state->key_padded + state->value_padded) * sizeof(float));
    *first = SIZE_MAX;
    *end = 0;
    for (size_t i = 0; i < count; i++) {
        memcpy(state->queries + i * state->key_padded,
               job->q + i / job->group * job->q_stride + i % job->group * state->key_dim,
               state->key_dim * sizeof(float));
        state->largest[i] = -__builtin_inff();
        state->total[i] = 0.0f;
        size_t from, to;
        key_range(job, i, &from, &to);
        *first = from < *first ? from : *first;
        *end = to > *end ? to : *end;
    }
}

static void kernel_attention(const pst_cpu_attention *job)
{
    const size_t count = (size_t)job->rows * job->group;
    attention_state state = {.job = job, .key_dim = job->layout->key_dim, .value_dim = job->layout->value_dim};
    state.key_padded = (state.key_dim + 15) & ~(size_t)15;
    state.value_padded = (state.value_dim + 15) & ~(size_t)15;
    state.queries = job->scratch;
    state.sums = state.queries + count * state.key_padded;
    state.largest = state.sums + count * state.value_padded;
    state.total = state.largest + count;
    state.wide = state.total + count;
    size_t first, end;
    begin_queries(&state, count, &first, &end);
    const size_t tile_count = (count + VF_TILE_ROWS - 1) / VF_TILE_ROWS;
    for (size_t block = first / KEY_BLOCK * KEY_BLOCK; block < end; block += KEY_BLOCK) {
        take_block(&state, block, first > block ? first - block : 0, end - block < KEY_BLOCK ? end - block : KEY_BLOCK);
        for (size_t i = 0, query = 0; i < tile_count; i++) {
            size_t rows = (count - query) / (tile_count - i);
            attend_block(&state, query, rows, block);
            query += rows;
        }
    }
    for (size_t i = 0; i < count; i++)
        finish_query(&state, i);
}

#endif
