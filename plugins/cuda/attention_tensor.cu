/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention on tensor cores: keys and values of 16 bits, and quantized ones when the result is BF16; dimensions that
 * are multiples of 16, keys up to 1024, values up to 512.
 *
 * Precision. Keys and values of F16 go into the products as they are. Quantized ones are rounded to F16 once (an
 * error of 2^-12 of the element, well below that of 8 bit codes, 2^-9 of the group's range). Queries are f32: each is
 * scaled by a power of two, so that its largest element is below 2^15, and split into two F16 that are multiplied one
 * after the other, which keeps 22 bits of it: rounding to one would put an error of 2^-12 times the score into the
 * exponent, and there are models with scores of hundreds. Exponentials, in [0, 1], are split likewise for results of
 * f32; for BF16 results one F16 is enough (2^-12, where the result is rounded to 2^-9), and then it is the rounded
 * ones that are summed.
 *
 * A block of 4 warps has 16 * MT queries. Each tile of 64 positions: warp w multiplies all queries with its 16
 * positions; the warps exchange maxima; each puts its exponentials into shared memory; then it multiplies all of them
 * with its share of the columns of the values, every fourth pair of 8. So every key and value is loaded into
 * registers once per block, and the sums of a query are spread over all warps, so that values of 512 columns have
 * room. The values of a tile arrive while its scores are computed, the keys of the next one while values are
 * multiplied.
 *
 * Positions of a tile that none of the block's queries sees are never looked at (values: zeros), those that one query
 * does not see have the weight zero. Zero times what is no number would not be zero: where not all queries see all of a
 * tile, values that are not finite are taken out of it and added for those queries alone that see them.
 */
#include "attention.h"

enum {
    PADDING = 8, /* elements after each row in shared memory: ldmatrix without conflicts of banks */
    P_STRIDE = ATTENTION_TILE + PADDING /* of exponentials */
};

/* Places in shared memory, in bytes. */
typedef struct tensor_shared {
    uint32_t q, q_low, keys, values, p, p_low, raw_keys, raw_values; /* raw: codes as they come */
    uint32_t maxima, sums;                                           /* [warp][query] */
    uint32_t queries;                                                /* [query] of query_state */
    uint32_t end;
    uint32_t key_tile_bytes; /* one of `key_tiles` */
    uint32_t key_tiles;      /* 2: with shared values, the next tile's keys arrive while values are multiplied */
} tensor_shared;

typedef struct query_state {
    uint32_t position;
    float slope, factor; /* score = factor * product + slope * distance */
    uint32_t unused;
} query_state;

static __host__ __device__ __forceinline__ uint32_t take(uint32_t *end, uint64_t bytes)
{
    const uint32_t at = *end;
    *end += (uint32_t)(bytes + 15) & ~15u;
    return at;
}

static __host__ __device__ __forceinline__ bool tensor_is_coded(const attention_args &a)
{
    return a.type == PST_KV_Q8 || a.type == PST_KV_Q4;
}

static __host__ __device__ __forceinline__ tensor_shared tensor_layout(const attention_args &a, uint32_t queries,
                                                                       uint32_t key_tiles)
{
    tensor_shared s;
    const bool coded = tensor_is_coded(a);
    const uint32_t key_stride = a.keys.dim + PADDING, value_stride = a.values.dim + PADDING;
    s.end = 0;
    s.q = take(&s.end, queries * key_stride * 2ull);
    s.q_low = take(&s.end, queries * key_stride * 2ull);
    s.key_tiles = key_tiles;
    s.key_tile_bytes = ATTENTION_TILE * key_stride * 2;
    s.keys = take(&s.end, (uint64_t)key_tiles * s.key_tile_bytes);
    s.values = a.shared ? s.keys : take(&s.end, ATTENTION_TILE * value_stride * 2ull);
    s.p = take(&s.end, queries * P_STRIDE * 2ull);
    s.p_low = a.out_is_bf16 ? s.p : take(&s.end, queries * P_STRIDE * 2ull);
    s.raw_keys = coded ? take(&s.end, (uint64_t)ATTENTION_TILE * a.keys.row_bytes) : s.keys;
    s.raw_values = coded && !a.shared ? take(&s.end, (uint64_t)ATTENTION_TILE * a.values.row_bytes) : s.values;
    s.maxima = take(&s.end, ATTENTION_WARPS * queries * 4ull);
    s.sums = take(&s.end, ATTENTION_WARPS * queries * 4ull);
    s.queries = take(&s.end, queries * sizeof(query_state));
    return s;
}

/* ---- Loading ---- */

/* x as two F16: x = high + low, but for 2^-22 of it. */
static __device__ __forceinline__ void split(float x, uint16_t *high, uint16_t *low)
{
    *high = pst_f32_to_f16(x);
    *low = pst_f32_to_f16(x - pst_f16_to_f32(*high));
}

static __device__ __forceinline__ uint32_t pair(uint16_t low, uint16_t high)
{
    return low | (uint32_t)high << 16;
}

/* The power of two that brings the largest element to [2^14, 2^15), as the bits of an f32; 1 for what has no such. */
static __device__ __forceinline__ uint32_t power_for(float largest)
{
    const uint32_t exponent = __float_as_uint(largest) >> 23 & 0xff;
    const uint32_t power = exponent < 15 ? 254 : 268 - exponent; /* biased */
    return (exponent == 255 || largest == 0.0f ? 127u : power) << 23;
}

/* Brings the queries to shared memory, a warp each. */
static __device__ void load_queries(const attention_args &a, const attention_work &work, const tensor_shared &s,
                                    char *shared, uint32_t queries)
{
    const uint32_t lane = threadIdx.x % 32, dim = a.keys.dim;
    query_state *states = (query_state *)(shared + s.queries);
    for (uint32_t i = threadIdx.x / 32; i < queries; i += ATTENTION_WARPS) {
        const attention_query query = attention_query_of(a, work, i);
        const float *q = a.q + query.row * a.q_stride + (uint64_t)query.head * dim;
        float largest = 0.0f;
        const uint32_t there = i < work.count ? dim : 0; /* queries that fill up the block are zeros */
        for (uint32_t d = lane; d < there; d += 32)
            largest = fmaxf(largest, fabsf(q[d]));
        for (uint32_t step = 16; step > 0; step /= 2)
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, (int)step));
        const uint32_t power = power_for(largest);
        uint16_t *high = (uint16_t *)(shared + s.q) + i * (dim + PADDING);
        uint16_t *low = (uint16_t *)(shared + s.q_low) + i * (dim + PADDING);
        for (uint32_t d = lane; d < dim; d += 32)
            split(d < there ? q[d] * __uint_as_float(power) : 0.0f, &high[d], &low[d]);
        if (lane == 0) {
            query_state state = {query.position, a.alibi != NULL ? a.alibi[query.head] : 0.0f, 0.0f, 0};
            state.factor = a.scale * __uint_as_float((254u << 23) - power);
            states[i] = state;
        }
    }
}

/* Starts to bring a tile's rows of 16 bits to shared memory; rows outside [first, end) become zeros. */
static __device__ __forceinline__ void start_rows(const attention_rows &rows, const char *from, uint32_t first,
                                                  uint32_t end, char *to)
{
    const uint32_t units = rows.dim / 8, row_step = ATTENTION_THREADS / units, unit_step = ATTENTION_THREADS % units;
    uint32_t row = threadIdx.x / units, unit = threadIdx.x % units;
    while (row < ATTENTION_TILE) {
        pst_copy_async_16(to + (row * (rows.dim + PADDING) + unit * 8) * 2, from + row * rows.row_bytes + unit * 16,
                          row >= first && row < end);
        row += row_step;
        unit += unit_step;
        if (unit >= units) {
            unit -= units;
            row++;
        }
    }
}

/* Starts to bring a tile's rows of codes to shared memory as they are. */
static __device__ __forceinline__ void start_codes(const attention_rows &rows, const char *from, char *to)
{
    for (uint32_t at = threadIdx.x * 16; at < ATTENTION_TILE * rows.row_bytes; at += ATTENTION_THREADS * 16)
        pst_copy_async_16(to + at, from + at, true);
}

static __device__ __forceinline__ uint16_t to_element(uint32_t code, float scale, float minimum)
{
    const float x = fmaf((float)code, scale, minimum);
    return pst_f32_to_f16(x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x); /* a NaN stays one */
}

/* Codes to F16, 8 at a time; rows outside [first, end) become zeros. */
static __device__ __forceinline__ void widen(const attention_rows &rows, bool is_q8, const char *raw, uint32_t first,
                                             uint32_t end, char *to)
{
    const uint32_t units = rows.dim / 8, row_step = ATTENTION_THREADS / units, unit_step = ATTENTION_THREADS % units;
    uint32_t row = threadIdx.x / units, unit = threadIdx.x % units;
    while (row < ATTENTION_TILE) {
        uint32_t words[4] = {0, 0, 0, 0};
        if (row >= first && row < end) {
            const char *from = raw + row * rows.row_bytes;
            const uint32_t group = *(const uint32_t *)(from + rows.code_bytes + unit * 8 / PST_KV_GROUP * 4);
            const float scale = pst_f16_to_f32((uint16_t)group), minimum = pst_f16_to_f32((uint16_t)(group >> 16));
            const uint32_t *codes = (const uint32_t *)(from + unit * (is_q8 ? 8 : 4));
            const uint32_t bits = is_q8 ? 8 : 4, mask = is_q8 ? 0xff : 0xf;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t two = codes[is_q8 ? i / 2 : 0] >> (is_q8 ? i % 2 * 16 : i * 8);
                words[i] = pair(to_element(two & mask, scale, minimum), to_element(two >> bits & mask, scale, minimum));
            }
        }
        *(uint4 *)(to + (row * (rows.dim + PADDING) + unit * 8) * 2) =
            make_uint4(words[0], words[1], words[2], words[3]);
        row += row_step;
        unit += unit_step;
        if (unit >= units) {
            unit -= units;
            row++;
        }
    }
}

/* A tile of positions: the rows that any query of the block sees are [first, end). */
typedef struct tile_range {
    uint32_t position, first, end;
} tile_range;

static __device__ __forceinline__ tile_range tile_range_of(const attention_work &work, uint32_t position)
{
    return {position, work.begin > position ? work.begin - position : 0,
            work.end - position < ATTENTION_TILE ? work.end - position : (uint32_t)ATTENTION_TILE};
}

/* Starts to bring the keys of the tile at `position`, if there is one, and ends a group of copies. */
static __device__ __forceinline__ void start_keys(const attention_args &a, const attention_work &work,
                                                  const tensor_shared &s, char *shared, uint32_t position, char *keys)
{
    if (position < work.end) {
        const char *from = attention_tile(a, work, a.keys, position);
        const tile_range range = tile_range_of(work, position);
        if (tensor_is_coded(a))
            start_codes(a.keys, from, shared + s.raw_keys);
        else
            start_rows(a.keys, from, range.first, range.end, keys);
    }
    pst_copy_async_commit();
}

static __device__ __forceinline__ void start_values(const attention_args &a, const attention_work &work,
                                                    const tensor_shared &s, char *shared, const tile_range &range)
{
    const char *from = attention_tile(a, work, a.values, range.position);
    if (tensor_is_coded(a))
        start_codes(a.values, from, shared + s.raw_values);
    else
        start_rows(a.values, from, range.first, range.end, shared + s.values);
    pst_copy_async_commit();
}

/* ---- Products ---- */

/* What a warp keeps in registers: of each of its MT * 2 queries per lane (rows lane / 4 and that + 8 of a 16 x 8
 * fragment) the maximum and the total; the sums of its columns, pair i of 8 being columns (warp + 4 * i) * 16
 * onwards. */
template <int MT, int NT> struct tensor_state {
    float largest[MT][2], total[MT][2];
    float sums[MT][NT][4];
};

/* The products of all queries with this warp's 16 positions. */
template <int MT>
static __device__ __forceinline__ void multiply_keys(const tensor_shared &s, const char *shared, const char *keys,
                                                     uint32_t dim, float scores[MT][2][4])
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, stride = (dim + PADDING) * 2;
    const char *key = keys + (warp * 16 + (lane / 16) * 8 + lane % 8) * stride + (lane / 8 % 2) * 16;
    const uint32_t q_at = ((lane / 8 % 2) * 8 + lane % 8) * stride + (lane / 16) * 16;
#pragma unroll
    for (int m = 0; m < MT; m++)
        for (int n = 0; n < 2; n++)
            for (int e = 0; e < 4; e++)
                scores[m][n][e] = 0.0f;
#pragma unroll 2
    for (uint32_t k = 0; k < dim; k += 16) {
        uint32_t b[4], x[4];
        pst_ldmatrix_x4(b, key + k * 2);
#pragma unroll
        for (int m = 0; m < MT; m++) {
            pst_ldmatrix_x4(x, shared + s.q + m * 16 * stride + q_at + k * 2);
            pst_mma_f16(scores[m][0], x, b);
            pst_mma_f16(scores[m][1], x, b + 2);
            pst_ldmatrix_x4(x, shared + s.q_low + m * 16 * stride + q_at + k * 2);
            pst_mma_f16(scores[m][0], x, b);
            pst_mma_f16(scores[m][1], x, b + 2);
        }
    }
}

/* Products to scores, -infinity where a query does not see a position; each query's maximum over this warp's
 * positions. */
template <int MT>
static __device__ __forceinline__ void find_maxima(const attention_args &a, const tensor_shared &s, char *shared,
                                                   uint32_t position, float scores[MT][2][4])
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const query_state *states = (const query_state *)(shared + s.queries);
    float *maxima = (float *)(shared + s.maxima) + warp * MT * 16;
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const query_state state = states[m * 16 + h * 8 + lane / 4];
            float largest = -INFINITY;
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float &score = scores[m][e / 2][h * 2 + e % 2];
                const uint32_t j = position + warp * 16 + e / 2 * 8 + lane % 4 * 2 + e % 2;
                const bool sees = attention_sees(a, state.position, j);
                score = __fmul_rn(score, state.factor); /* not fused with the shift, whatever MT */
                if (a.alibi != NULL)
                    score = fmaf(state.slope, (float)((int64_t)j - (int64_t)state.position), score);
                score = sees ? score : -INFINITY;
                largest = fmaxf(largest, score);
            }
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
            if (lane % 4 == 0)
                maxima[m * 16 + h * 8 + lane / 4] = largest;
        }
    }
}

/* Scores to exponentials in shared memory, and each query's sum over this warp's positions. fade: what the sums so
 * far have to be multiplied with. */
template <int MT, int NT>
static __device__ __forceinline__ void weigh(const attention_args &a, const tensor_shared &s, char *shared,
                                             const float scores[MT][2][4], tensor_state<MT, NT> &state,
                                             float fade[MT][2])
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const float *maxima = (const float *)(shared + s.maxima);
    float *sums = (float *)(shared + s.sums) + warp * MT * 16;
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t query = m * 16 + h * 8 + lane / 4;
            const float before = state.largest[m][h];
            float largest = before;
#pragma unroll
            for (int w = 0; w < ATTENTION_WARPS; w++)
                largest = fmaxf(largest, maxima[w * MT * 16 + query]);
            fade[m][h] = largest == before ? 1.0f : expf(before - largest);
            state.largest[m][h] = largest;
            const float shift = largest == -INFINITY ? 0.0f : largest; /* this query has seen no key yet */
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < 2; n++) {
                uint16_t high[2], low[2];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const float p = expf(scores[m][n][h * 2 + e] - shift);
                    split(p, &high[e], &low[e]);
                    sum += a.out_is_bf16 ? pst_f16_to_f32(high[e]) : p;
                }
                const uint32_t at = (query * P_STRIDE + warp * 16 + n * 8 + lane % 4 * 2) * 2;
                *(uint32_t *)(shared + s.p + at) = pair(high[0], high[1]);
                if (!a.out_is_bf16)
                    *(uint32_t *)(shared + s.p_low + at) = pair(low[0], low[1]);
            }
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            if (lane % 4 == 0)
                sums[query] = sum;
        }
    }
}

static __device__ __forceinline__ bool is_finite_f16(uint32_t x)
{
    return (x & 0x7c00) != 0x7c00;
}

/* Whether one of two, in the halves of a word, is not finite. */
static __device__ __forceinline__ bool has_infinite(uint32_t pair_of)
{
    return (((pair_of & 0x7c007c00) + 0x04000400) & 0x80008000) != 0;
}

/* Adds the values that are not finite of the tile at `position` to the sums of queries that see them: of the columns of one
 * pair of 8. */
template <int MT, int NT>
static __device__ __forceinline__ void add_infinite(const attention_args &a, const tensor_shared &s, const char *shared,
                                                    const char *values, uint32_t value_stride, uint32_t position,
                                                    int pair_of, tensor_state<MT, NT> &state)
{
    const uint32_t lane = threadIdx.x % 32;
    const query_state *states = (const query_state *)(shared + s.queries);
    for (uint32_t k = 0; k < ATTENTION_TILE; k++) {
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const uint32_t two = *(const uint32_t *)(values + k * value_stride + (n * 8 + lane % 4 * 2) * 2);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const uint16_t value = (uint16_t)(two >> e % 2 * 16);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    const uint32_t query = m * 16 + e / 2 * 8 + lane / 4, at = (query * P_STRIDE + k) * 2;
                    if (is_finite_f16(value) || !attention_sees(a, states[query].position, position + k))
                        continue;
                    float &sum = state.sums[m][2 * pair_of + n][e];
                    sum = fmaf(pst_f16_to_f32(*(const uint16_t *)(shared + s.p + at)), pst_f16_to_f32(value), sum);
                    if (!a.out_is_bf16)
                        sum = fmaf(pst_f16_to_f32(*(const uint16_t *)(shared + s.p_low + at)), pst_f16_to_f32(value),
                                   sum);
                }
            }
        }
    }
}

/* Takes the values that are not finite out of this warp's columns of a tile that not all queries see all of. */
template <int MT, int NT>
static __device__ __forceinline__ void take_out_infinite(const attention_args &a, const tensor_shared &s,
                                                         const char *shared, char *values, uint32_t value_stride,
                                                         uint32_t position, tensor_state<MT, NT> &state)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, pairs = a.values.dim / 16;
#pragma unroll
    for (int i = 0; i < NT / 2; i++) {
        if (warp + ATTENTION_WARPS * i >= pairs)
            continue;
        char *columns = values + (warp + ATTENTION_WARPS * i) * 32;
        bool there = false;
        for (uint32_t unit = lane; unit < 2 * ATTENTION_TILE; unit += 32) {
            const uint4 x = *(const uint4 *)(columns + unit / 2 * value_stride + unit % 2 * 16);
            there = there || has_infinite(x.x) || has_infinite(x.y) || has_infinite(x.z) || has_infinite(x.w);
        }
        if (!__any_sync(0xffffffffu, there))
            continue;
        add_infinite<MT, NT>(a, s, shared, columns, value_stride, position, i, state);
        __syncwarp();
        for (uint32_t unit = lane; unit < 16 * ATTENTION_TILE; unit += 32) {
            uint16_t *x = (uint16_t *)(columns + unit / 16 * value_stride) + unit % 16;
            *x = is_finite_f16(*x) ? *x : (uint16_t)0;
        }
    }
    __syncwarp();
}

/* Brings totals and sums up to date with the tile's exponentials and values. */
template <int MT, int NT>
static __device__ __forceinline__ void
multiply_values(const attention_args &a, const tensor_shared &s, char *shared, char *values, uint32_t value_stride,
                uint32_t position, bool is_edge, const float fade[MT][2], tensor_state<MT, NT> &state)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, pairs = a.values.dim / 16;
    const float *sums = (const float *)(shared + s.sums);
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float sum = 0.0f;
#pragma unroll
            for (int w = 0; w < ATTENTION_WARPS; w++)
                sum += sums[w * MT * 16 + m * 16 + h * 8 + lane / 4];
            state.total[m][h] = fmaf(state.total[m][h], fade[m][h], sum);
        }
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                state.sums[m][n][e] *= fade[m][e / 2];
    }
    if (is_edge)
        take_out_infinite<MT, NT>(a, s, shared, values, value_stride, position, state);
    const uint32_t p_at = (((lane / 8 % 2) * 8 + lane % 8) * P_STRIDE + (lane / 16) * 8) * 2;
    const char *value = values + ((lane / 8 % 2) * 8 + lane % 8) * value_stride + (lane / 16) * 16 + warp * 32;
#pragma unroll
    for (int k = 0; k < ATTENTION_TILE; k += 16) {
        uint32_t p[MT][4], p_low[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) {
            pst_ldmatrix_x4(p[m], shared + s.p + p_at + (m * 16 * P_STRIDE + k) * 2);
            if (!a.out_is_bf16)
                pst_ldmatrix_x4(p_low[m], shared + s.p_low + p_at + (m * 16 * P_STRIDE + k) * 2);
        }
#pragma unroll
        for (int i = 0; i < NT / 2; i++) {
            if (warp + ATTENTION_WARPS * i >= pairs)
                continue;
            uint32_t b[4];
            pst_ldmatrix_x4_trans(b, value + k * value_stride + i * ATTENTION_WARPS * 32);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                pst_mma_f16(state.sums[m][2 * i], p[m], b);
                pst_mma_f16(state.sums[m][2 * i + 1], p[m], b + 2);
                if (!a.out_is_bf16) {
                    pst_mma_f16(state.sums[m][2 * i], p_low[m], b);
                    pst_mma_f16(state.sums[m][2 * i + 1], p_low[m], b + 2);
                }
            }
        }
    }
}

template <int MT, int NT>
static __device__ __forceinline__ void store_results(const attention_args &a, const attention_work &work,
                                                     const tensor_state<MT, NT> &state)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, pairs = a.values.dim / 16;
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t query = m * 16 + h * 8 + lane / 4;
            if (query >= work.count)
                continue;
            const attention_target target =
                attention_target_of(a, work, query, state.largest[m][h], state.total[m][h], warp == 0 && lane % 4 == 0);
#pragma unroll
            for (int n = 0; n < NT; n++) {
                const uint32_t pair_of = warp + ATTENTION_WARPS * (n / 2);
                if (pair_of >= pairs)
                    continue;
                const uint32_t column = pair_of * 16 + n % 2 * 8 + lane % 4 * 2;
                attention_store(a, target, column, state.sums[m][n][h * 2]);
                attention_store(a, target, column + 1, state.sums[m][n][h * 2 + 1]);
            }
        }
    }
}

/* MT: 16s of queries of a block. NT: 8s of columns that a warp has at most, an even number. */
template <int MT, int NT, int BLOCKS>
static __global__ void __launch_bounds__(ATTENTION_THREADS, BLOCKS)
    attention_tensor_kernel(const attention_args a, uint32_t key_tiles)
{
    PST_DYNAMIC_SHARED(char, shared);
    attention_work work;
    if (!attention_find_work(a, MT * 16, &work))
        return;
    const tensor_shared s = tensor_layout(a, MT * 16, key_tiles);
    const bool coded = tensor_is_coded(a);
    const uint32_t value_stride = ((a.shared ? a.keys.dim : a.values.dim) + PADDING) * 2;
    const uint32_t start = work.begin / ATTENTION_TILE * ATTENTION_TILE;
    char *keys = shared + s.keys, *next_keys = keys + (key_tiles - 1) * s.key_tile_bytes;
    start_keys(a, work, s, shared, start, keys);
    if (!a.shared)
        start_values(a, work, s, shared, tile_range_of(work, start));
    load_queries(a, work, s, shared, MT * 16);
    tensor_state<MT, NT> state;
#pragma unroll
    for (int m = 0; m < MT; m++) {
        for (int h = 0; h < 2; h++) {
            state.largest[m][h] = -INFINITY;
            state.total[m][h] = 0.0f;
        }
        for (int n = 0; n < NT; n++)
            for (int e = 0; e < 4; e++)
                state.sums[m][n][e] = 0.0f;
    }
    for (uint32_t position = start; position < work.end; position += ATTENTION_TILE) {
        const tile_range range = tile_range_of(work, position);
        float scores[MT][2][4], fade[MT][2];
        const bool values_started = a.shared || position == start;
        if (a.shared || position != start)
            pst_copy_async_wait<0>();
        else
            pst_copy_async_wait<1>(); /* the first keys, but not the values */
        __syncthreads();              /* the keys are there; all warps are through with the last tile */
        if (!values_started)
            start_values(a, work, s, shared, range);
        if (coded) {
            widen(a.keys, a.type == PST_KV_Q8, shared + s.raw_keys, range.first, range.end, keys);
            __syncthreads();
        }
        const bool is_early = coded || (a.shared && key_tiles == 2); /* the next keys' place is free already */
        if (is_early)
            start_keys(a, work, s, shared, position + ATTENTION_TILE, next_keys);
        __syncwarp(); /* lanes have started copies of their own number */
        multiply_keys<MT>(s, shared, keys, a.keys.dim, scores);
        find_maxima<MT>(a, s, shared, position, scores);
        __syncthreads(); /* maxima are there; all are through with the keys, unless they are values as well */
        if (!is_early && !a.shared)
            start_keys(a, work, s, shared, position + ATTENTION_TILE, next_keys);
        weigh<MT, NT>(a, s, shared, scores, state, fade);
        if (!a.shared)
            pst_copy_async_wait<1>(); /* the values, but not the next keys */
        __syncthreads();
        if (coded && !a.shared) {
            widen(a.values, a.type == PST_KV_Q8, shared + s.raw_values, range.first, range.end, shared + s.values);
            __syncthreads();
        }
        multiply_values<MT, NT>(a, s, shared, a.shared ? keys : shared + s.values, value_stride, position,
                                attention_is_edge(a, work, position + range.first, position + range.end), fade, state);
        if (!is_early && a.shared) {
            __syncthreads();
            start_keys(a, work, s, shared, position + ATTENTION_TILE, next_keys);
        }
        if (key_tiles == 2) {
            char *free_tile = keys;
            keys = next_keys;
            next_keys = free_tile;
        }
    }
    store_results<MT, NT>(a, work, state);
}

/* ---- Launches ---- */

static bool takes_job(const attention_args &a)
{
    const bool fits_type = a.type == PST_KV_F16 || (tensor_is_coded(a) && a.out_is_bf16);
    return fits_type && a.keys.dim % 16 == 0 && a.values.dim % 16 == 0 && a.keys.dim <= 1024 && a.values.dim <= 512;
}

static uint32_t shared_of(const attention_args &a, uint32_t queries, uint32_t key_tiles)
{
    return tensor_layout(a, queries, key_tiles).end;
}

bool attention_tensor_fits(const attention_args &a, size_t shared_bytes)
{
    return takes_job(a) && shared_of(a, 16, 1) <= shared_bytes;
}

/* The sums of a lane are 16 * MT * columns / 128: few queries for many columns, and few where there are no more. A
 * query's bits do not depend on MT and NT. */
pst_vendor_error attention_tensor_launch(const attention_args &a, const attention_grid &grid, size_t shared_bytes,
                                         pst_vendor_stream stream)
{
    const bool coded = tensor_is_coded(a);
    if (!a.few && a.values.dim <= 128 && shared_of(a, 64, 1) <= shared_bytes)
        return PST_LAUNCH((attention_tensor_kernel<4, 4, 2>), attention_grid_of(a, grid, 64), dim3(ATTENTION_THREADS),
                          shared_of(a, 64, 1), stream, a, 1u);
    if (!a.few && a.values.dim <= 256 && shared_of(a, 32, 1) <= shared_bytes)
        return PST_LAUNCH((attention_tensor_kernel<2, 8, 2>), attention_grid_of(a, grid, 32), dim3(ATTENTION_THREADS),
                          shared_of(a, 32, 1), stream, a, 1u);
    if (a.values.dim <= 128)
        return PST_LAUNCH((attention_tensor_kernel<1, 4, 4>), attention_grid_of(a, grid, 16), dim3(ATTENTION_THREADS),
                          shared_of(a, 16, 1), stream, a, 1u);
    const uint32_t key_tiles = a.shared && !coded && shared_of(a, 16, 2) <= shared_bytes ? 2 : 1;
    return PST_LAUNCH((attention_tensor_kernel<1, 16, 2>), attention_grid_of(a, grid, 16), dim3(ATTENTION_THREADS),
                      shared_of(a, 16, key_tiles), stream, a, key_tiles);
}
