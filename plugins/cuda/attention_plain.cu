/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention in f32 throughout, for every type of keys and values and every dimension: what attention_tensor.cu does
 * not take.
 *
 * A block of 128 threads has 8 * RQ queries; thread (i, j) of 8 x 16 has queries i * RQ onwards. Each tile of 64
 * positions comes through shared memory as f32, 64 columns at a time (as many as share a scale): first the keys,
 * where the thread multiplies its queries with positions j, j + 16, j + 32 and j + 48, all columns in rising order;
 * then, after the exponentials, the values, where it has columns 4 * j onwards and adds the positions in rising
 * order. So the sums of a query's row of 16 threads are in half a warp, and the sums of values in shared memory are
 * each one thread's own.
 *
 * Positions that none of the block's queries sees are never looked at; those that some see are left out of the others'
 * sums, so that no NaN of theirs gets there.
 */
#include "attention.h"

enum {
    COLUMNS = 64,        /* of a slice */
    STRIDE = COLUMNS + 4 /* of rows in shared memory: 16 rows apart by 16 bytes, modulo the banks */
};

static_assert((int)COLUMNS == (int)PST_KV_GROUP, "a slice has one scale in each row");
static_assert((int)COLUMNS == (int)ATTENTION_TILE, "rows of exponentials are like slices");

/* ---- Loading ---- */

static __device__ __forceinline__ float half_at(const char *p, bool is_aligned)
{
    if (is_aligned)
        return pst_f16_to_f32(*(const uint16_t *)p);
    const uint8_t *bytes = (const uint8_t *)p;
    return pst_f16_to_f32((uint16_t)(bytes[0] | bytes[1] << 8));
}

/* One element of a row, whatever its address. */
static __device__ float element_at(pst_kv_type type, const attention_rows &rows, const char *row, uint32_t column)
{
    if (type == PST_KV_F32)
        return *(const float *)(row + column * 4);
    if (type == PST_KV_F16)
        return half_at(row + column * 2, true);
    const char *group = row + rows.code_bytes + column / PST_KV_GROUP * 4;
    const uint32_t byte = ((const uint8_t *)row)[type == PST_KV_Q8 ? column : column / 2];
    const uint32_t code = type == PST_KV_Q8 ? byte : column % 2 == 0 ? byte & 0xf : byte >> 4;
    return fmaf((float)code, half_at(group, false), half_at(group + 2, false));
}

/* Four elements of a row from a column that is a multiple of 4 on, of rows that are `in_fours`. */
static __device__ __forceinline__ float4 four_at(pst_kv_type type, const attention_rows &rows, const char *row,
                                                 uint32_t column)
{
    if (type == PST_KV_F32)
        return *(const float4 *)(row + column * 4);
    if (type == PST_KV_F16) {
        const uint2 x = *(const uint2 *)(row + column * 2);
        return make_float4(pst_f16_to_f32((uint16_t)x.x), pst_f16_to_f32((uint16_t)(x.x >> 16)),
                           pst_f16_to_f32((uint16_t)x.y), pst_f16_to_f32((uint16_t)(x.y >> 16)));
    }
    const char *group = row + rows.code_bytes + column / PST_KV_GROUP * 4;
    const float scale = half_at(group, true), minimum = half_at(group + 2, true);
    uint32_t codes, bits;
    if (type == PST_KV_Q8) {
        codes = *(const uint32_t *)(row + column);
        bits = 8;
    } else {
        codes = *(const uint16_t *)(row + column / 2);
        bits = 4;
    }
    const uint32_t mask = (1u << bits) - 1;
    return make_float4(fmaf((float)(codes & mask), scale, minimum), fmaf((float)(codes >> bits & mask), scale, minimum),
                       fmaf((float)(codes >> 2 * bits & mask), scale, minimum),
                       fmaf((float)(codes >> 3 * bits & mask), scale, minimum));
}

/* Brings a slice of a tile's rows to shared memory. Rows outside [first, end) and columns from rows.dim on become
 * zeros. */
static __device__ __forceinline__ void load_slice(pst_kv_type type, const attention_rows &rows, const char *tile,
                                                  uint32_t column, uint32_t first, uint32_t end, float *to)
{
    const uint32_t quad = threadIdx.x % 16 * 4;
    if (rows.in_fours) {
        float4 x[8];
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t row = threadIdx.x / 16 + i * 8;
            x[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (row >= first && row < end && column + quad < rows.dim)
                x[i] = four_at(type, rows, tile + (uint64_t)row * rows.row_bytes, column + quad);
        }
#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            *(float4 *)(to + (threadIdx.x / 16 + i * 8) * STRIDE + quad) = x[i];
        return;
    }
    for (uint32_t row = threadIdx.x / 16; row < ATTENTION_TILE; row += 8)
        for (uint32_t i = quad; i < quad + 4; i++)
            to[row * STRIDE + i] = row >= first && row < end && column + i < rows.dim
                                       ? element_at(type, rows, tile + (uint64_t)row * rows.row_bytes, column + i)
                                       : 0.0f;
}

template <int RQ>
static __device__ __forceinline__ void load_queries(const attention_args &a, const attention_work &work,
                                                    uint32_t column, float *to)
{
    for (uint32_t i = threadIdx.x / 32; i < 8 * RQ; i += ATTENTION_WARPS) {
        const attention_query query = attention_query_of(a, work, i);
        const float *q = a.q + query.row * a.q_stride + (uint64_t)query.head * a.keys.dim;
        for (uint32_t d = threadIdx.x % 32; d < COLUMNS; d += 32)
            to[i * STRIDE + d] = column + d < a.keys.dim ? q[column + d] : 0.0f;
    }
}

/* ---- Products ---- */

static __device__ __forceinline__ float dot(float4 x, float4 y, float sum)
{
    return fmaf(x.w, y.w, fmaf(x.z, y.z, fmaf(x.y, y.y, fmaf(x.x, y.x, sum))));
}

/* scores[r][p] += the products of a slice: query r of this thread, position threadIdx.x % 16 + 16 * p. */
template <int RQ>
static __device__ __forceinline__ void multiply_keys(const float *q, const float *keys, float scores[RQ][4])
{
    const float *own_q = q + threadIdx.x / 16 * RQ * STRIDE, *own_key = keys + threadIdx.x % 16 * STRIDE;
#pragma unroll 2
    for (int d = 0; d < COLUMNS; d += 4) {
        float4 k[4];
#pragma unroll
        for (int p = 0; p < 4; p++)
            k[p] = *(const float4 *)(own_key + p * 16 * STRIDE + d);
#pragma unroll
        for (int r = 0; r < RQ; r++) {
            const float4 x = *(const float4 *)(own_q + r * STRIDE + d);
#pragma unroll
            for (int p = 0; p < 4; p++)
                scores[r][p] = dot(x, k[p], scores[r][p]);
        }
    }
}

/* What a thread knows of its queries; the 16 threads that share one know the same. */
template <int RQ> struct plain_state {
    uint32_t position[RQ];
    float slope[RQ], largest[RQ], total[RQ], fade[RQ];
};

/* Scores to exponentials, in shared memory; the maxima, totals and `fade`, what the sums so far have to be
 * multiplied with. */
template <int RQ>
static __device__ __forceinline__ void weigh(const attention_args &a, uint32_t position, float scores[RQ][4],
                                             plain_state<RQ> &state, float *weights)
{
#pragma unroll
    for (int r = 0; r < RQ; r++) {
        const float before = state.largest[r];
        float largest = -INFINITY, sum = 0.0f;
#pragma unroll
        for (int p = 0; p < 4; p++) {
            const uint32_t j = position + threadIdx.x % 16 + p * 16;
            const bool sees = attention_sees(a, state.position[r], j);
            float score = __fmul_rn(scores[r][p], a.scale); /* not fused with the shift, whatever RQ */
            if (a.alibi != NULL)
                score = fmaf(state.slope[r], (float)((int64_t)j - (int64_t)state.position[r]), score);
            scores[r][p] = sees ? score : -INFINITY;
            largest = fmaxf(largest, scores[r][p]);
        }
#pragma unroll
        for (int step = 8; step > 0; step /= 2)
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
        largest = fmaxf(largest, before);
        const float shift = largest == -INFINITY ? 0.0f : largest; /* this query has seen no key yet */
#pragma unroll
        for (int p = 0; p < 4; p++) {
            const float weight = expf(scores[r][p] - shift);
            weights[(threadIdx.x / 16 * RQ + r) * STRIDE + threadIdx.x % 16 + p * 16] = weight;
            sum += weight;
        }
#pragma unroll
        for (int step = 8; step > 0; step /= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, step);
        state.fade[r] = largest == before ? 1.0f : expf(before - largest);
        state.largest[r] = largest;
        state.total[r] = fmaf(state.total[r], state.fade[r], sum);
    }
}

static __device__ __forceinline__ void add_weighed(float4 &sum, float weight, float4 x)
{
    sum.x = fmaf(weight, x.x, sum.x);
    sum.y = fmaf(weight, x.y, sum.y);
    sum.z = fmaf(weight, x.z, sum.z);
    sum.w = fmaf(weight, x.w, sum.w);
}

/* Adds the weighed values of a slice of the tile at `position` to this thread's sums; sums: its first query's and column's.
 * EDGE: some query does not see all of them. */
template <int RQ, bool EDGE>
static __device__ __forceinline__ void multiply_values(const attention_args &a, uint32_t position, const float *weights,
                                                       const float *values, const plain_state<RQ> &state, float *sums,
                                                       uint32_t sums_stride)
{
    const float *own_weight = weights + threadIdx.x / 16 * RQ * STRIDE, *own_value = values + threadIdx.x % 16 * 4;
    float4 sum[RQ];
#pragma unroll
    for (int r = 0; r < RQ; r++) {
        sum[r] = *(const float4 *)(sums + r * sums_stride);
        sum[r].x *= state.fade[r];
        sum[r].y *= state.fade[r];
        sum[r].z *= state.fade[r];
        sum[r].w *= state.fade[r];
    }
#pragma unroll 2
    for (int j = 0; j < ATTENTION_TILE; j += 4) {
        float4 v[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] = *(const float4 *)(own_value + (j + i) * STRIDE);
#pragma unroll
        for (int r = 0; r < RQ; r++) {
            const float4 w = *(const float4 *)(own_weight + r * STRIDE + j);
            const float weight[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (!EDGE || attention_sees(a, state.position[r], position + j + i))
                    add_weighed(sum[r], weight[i], v[i]);
        }
    }
#pragma unroll
    for (int r = 0; r < RQ; r++)
        *(float4 *)(sums + r * sums_stride) = sum[r];
}

static __host__ __device__ __forceinline__ uint32_t plain_sums_stride(const attention_args &a)
{
    return (a.values.dim + COLUMNS - 1) / COLUMNS * COLUMNS;
}

template <int RQ>
static __device__ __forceinline__ void store_results(const attention_args &a, const attention_work &work,
                                                     const plain_state<RQ> &state, const float *sums)
{
#pragma unroll
    for (int r = 0; r < RQ; r++) {
        const uint32_t query = threadIdx.x / 16 * RQ + r, stride = plain_sums_stride(a);
        if (query >= work.count)
            continue;
        const attention_target target =
            attention_target_of(a, work, query, state.largest[r], state.total[r], threadIdx.x % 16 == 0);
        for (uint32_t slice = 0; slice < stride; slice += COLUMNS) {
            for (uint32_t d = slice + threadIdx.x % 16 * 4, end = d + 4; d < end && d < a.values.dim; d++)
                attention_store(a, target, d, sums[query * stride + d]);
        }
    }
}

template <int RQ, int BLOCKS>
static __global__ void __launch_bounds__(ATTENTION_THREADS, BLOCKS) attention_plain_kernel(const attention_args a)
{
    PST_DYNAMIC_SHARED(float, shared);
    attention_work work;
    if (!attention_find_work(a, 8 * RQ, &work))
        return;
    float *slice = shared, *weights = slice + ATTENTION_TILE * STRIDE, *q = weights; /* never both */
    float *sums = weights + 8 * RQ * STRIDE;
    const uint32_t stride = plain_sums_stride(a);
    float *own_sums = sums + threadIdx.x / 16 * RQ * stride + threadIdx.x % 16 * 4;
    plain_state<RQ> state;
#pragma unroll
    for (int r = 0; r < RQ; r++) {
        const attention_query query = attention_query_of(a, work, threadIdx.x / 16 * RQ + r);
        state.position[r] = query.position;
        state.slope[r] = a.alibi != NULL ? a.alibi[query.head] : 0.0f;
        state.largest[r] = -INFINITY;
        state.total[r] = 0.0f;
        for (uint32_t d = 0; d < stride; d += COLUMNS)
            *(float4 *)(own_sums + r * stride + d) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    for (uint32_t position = work.begin / ATTENTION_TILE * ATTENTION_TILE; position < work.end;
         position += ATTENTION_TILE) {
        const uint32_t first = work.begin > position ? work.begin - position : 0;
        const uint32_t end = work.end - position < ATTENTION_TILE ? work.end - position : (uint32_t)ATTENTION_TILE;
        const bool is_edge = attention_is_edge(a, work, position + first, position + end);
        const char *keys = attention_tile(a, work, a.keys, position),
                   *values = attention_tile(a, work, a.values, position);
        float scores[RQ][4] = {};
        for (uint32_t column = 0; column < a.keys.dim; column += COLUMNS) {
            __syncthreads(); /* all are through with the slice before, and with the weights */
            load_slice(a.type, a.keys, keys, column, first, end, slice);
            load_queries<RQ>(a, work, column, q);
            __syncthreads();
            multiply_keys<RQ>(q, slice, scores);
        }
        __syncthreads();
        weigh<RQ>(a, position, scores, state, weights);
        for (uint32_t column = 0; column < a.values.dim; column += COLUMNS) {
            if (column > 0)
                __syncthreads();
            load_slice(a.type, a.values, values, column, first, end, slice);
            __syncthreads();
            if (is_edge)
                multiply_values<RQ, true>(a, position, weights, slice, state, own_sums + column, stride);
            else
                multiply_values<RQ, false>(a, position, weights, slice, state, own_sums + column, stride);
        }
    }
    store_results<RQ>(a, work, state, sums);
}

/* ---- Launches ---- */

static uint32_t shared_of(const attention_args &a, uint32_t queries)
{
    return (ATTENTION_TILE * STRIDE + queries * STRIDE + queries * plain_sums_stride(a)) * (uint32_t)sizeof(float);
}

/* A query's bits do not depend on RQ. */
pst_vendor_error attention_plain_launch(const attention_args &a, const attention_grid &grid, size_t shared_bytes,
                                        pst_vendor_stream stream)
{
    if (!a.few && shared_of(a, 64) <= shared_bytes)
        return PST_LAUNCH((attention_plain_kernel<8, 2>), attention_grid_of(a, grid, 64), dim3(ATTENTION_THREADS),
                          shared_of(a, 64), stream, a);
    return PST_LAUNCH((attention_plain_kernel<1, 4>), attention_grid_of(a, grid, 8), dim3(ATTENTION_THREADS),
                      shared_of(a, 8), stream, a);
}
