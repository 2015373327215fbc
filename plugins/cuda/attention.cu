/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The operator `attention`: which kernel computes which segments, and the sum of partial results.
 *
 * What the bits of a query's result depend on, besides its own q, the keys, values and position that it sees: the
 * request (types of the cache and of the result, dimensions, heads that share a key/value head, window, slopes, scale),
 * the device's kind (its shared memory decides whether tensor cores can take a job), and whether it is of a prompt or
 * of a generated token. Of a generated token the positions are cut into chunks that lie at fixed positions
 * (attention.h), each chunk's maximum, total and sums are combined in rising order, scaled to the largest maximum. Of a
 * prompt all positions go through in one run of tiles, which lie at fixed positions, too; also of a prompt's last row,
 * when it comes alone. So the bits do not depend on other rows, on where blocks lie, or on how rows are dealt to
 * segments, calls and passes. What a query does not see adds nothing to it, whatever it is: weights of zero where that
 * is a number (tensor cores leave products of zero out of what they align sums to), else attention_*.cu see to it.
 *
 * Kernels: attention_tensor.cu for 16 bits, and for codes when the result is BF16; attention_plain.cu, f32
 * throughout, for all else.
 */
#include <errno.h>

#include "attention.h"

enum {
    MOST_SLOTS = 8, /* rows of a segment whose partial results are held at a time; it mostly has one */
    COMBINE_LEAST_THREADS = 128,
    COMBINE_MOST_THREADS = 512
};

/* Of partial results, where one segment does not need more: further segments wait for the next launch. Little in the
 * emulator, so that tests come to that. */
#if defined(PST_EMULATED)
static const uint64_t partials_bytes = 1ull << 20;
#else
static const uint64_t partials_bytes = 64ull << 20;
#endif

/* The largest of all threads' numbers, for each of them; whole warps. maxima: one of each warp. */
static __device__ __forceinline__ float combine_largest(float largest, float *maxima)
{
    for (int step = 16; step > 0; step /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
    if (threadIdx.x % 32 == 0)
        maxima[threadIdx.x / 32] = largest;
    __syncthreads();
    for (uint32_t w = 0; w < blockDim.x / 32; w++)
        largest = fmaxf(largest, maxima[w]);
    return largest;
}

/* Combines the chunks of one query: head blockIdx.x of slot blockIdx.y of segment blockIdx.z of the launch. With
 * one chunk the bits are those of that chunk alone. One query after the other waits for these few blocks, and their loads depend
 * on nothing: many are on their way at a time. */
static __global__ void __launch_bounds__(COMBINE_MOST_THREADS) attention_combine_kernel(const attention_args a)
{
    __shared__ float weights[ATTENTION_MAX_CHUNKS], totals[ATTENTION_MAX_CHUNKS], maxima[COMBINE_MOST_THREADS / 32];
    const pst_segment s = a.segments[a.first_segment + blockIdx.z];
    uint32_t skipped;
    const uint32_t rows = attention_clip(a, s, &skipped), row = a.first_slot + blockIdx.y, head = blockIdx.x;
    if (row < skipped || row - skipped >= rows)
        return;
    const uint32_t position = s.first_position + row;
    const uint32_t first = attention_chunk_of(attention_first_seen(a, position));
    const uint32_t count = attention_chunk_of(position) - first + 1, floats = attention_partial_floats(a);
    const float *partials = attention_partial(a, blockIdx.z, row, head, first);
    float largest = -INFINITY;
    for (uint32_t c = threadIdx.x; c < count; c += blockDim.x) {
        weights[c] = partials[(uint64_t)c * floats];
        totals[c] = partials[(uint64_t)c * floats + 1];
        largest = fmaxf(largest, weights[c]);
    }
    largest = combine_largest(largest, maxima);
    for (uint32_t c = threadIdx.x; c < count; c += blockDim.x) /* each its own */
        weights[c] = expf(weights[c] - largest);
    __syncthreads();
    float total = totals[0] * weights[0];
    for (uint32_t c = 1; c < count; c++)
        total = fmaf(totals[c], weights[c], total);
    const uint64_t out_row = s.first_row + row - a.first_row;
    for (uint32_t d = threadIdx.x; d < a.values.dim; d += blockDim.x) {
        const float *sums = partials + 2 + d;
        float sum = sums[0] * weights[0];
#pragma unroll 16
        for (uint32_t c = 1; c < count; c++)
            sum = fmaf(sums[(uint64_t)c * floats], weights[c], sum);
        attention_store_out(a, out_row, head, d, sum / total);
    }
}

/* A thread for each element of a value, within bounds. */
static uint32_t combine_threads(const attention_args &a)
{
    const uint32_t whole = (a.values.dim + 31) / 32 * 32, least = COMBINE_LEAST_THREADS, most = COMBINE_MOST_THREADS;
    return whole < least ? least : whole > most ? most : whole;
}

/* `stored`: elements of a row, of which `dim` count. */
static attention_rows rows_of(pst_kv_type type, uint32_t dim, uint32_t stored, uint64_t offset)
{
    attention_rows rows = {};
    const uint32_t groups = (stored + PST_KV_GROUP - 1) / PST_KV_GROUP;
    switch (type) {
    case PST_KV_F32: rows.row_bytes = 4 * stored; break;
    case PST_KV_F16: rows.row_bytes = 2 * stored; break;
    case PST_KV_Q8: rows.code_bytes = stored; break;
    case PST_KV_Q4: rows.code_bytes = (stored + 1) / 2; break;
    }
    if (rows.code_bytes > 0)
        rows.row_bytes = rows.code_bytes + 4 * groups;
    rows.dim = dim;
    rows.offset = offset;
    rows.head_bytes = (uint64_t)PST_KV_BLOCK * rows.row_bytes;
    rows.in_fours = dim % 4 == 0 && stored % 4 == 0;
    return rows;
}

static attention_args args_of(const pst_attention *job)
{
    const pst_kv_layout *layout = &job->layout;
    attention_args a = {};
    a.q = (const float *)job->q.data;
    a.out = job->out.data;
    a.segments = job->segments.items;
    a.alibi = job->alibi;
    a.q_stride = job->q.stride;
    a.out_stride = job->out.stride;
    a.first_row = job->segments.first_row;
    a.rows = job->segments.rows;
    a.block_offset = job->block_offset;
    a.keys = rows_of(layout->type, layout->key_dim, layout->key_dim, 0);
    if (layout->shared)
        a.values = rows_of(layout->type, layout->value_dim, layout->key_dim, 0);
    else
        a.values = rows_of(layout->type, layout->value_dim, layout->value_dim, layout->kv_heads * a.keys.head_bytes);
    a.slots = UINT32_MAX;
    a.heads = job->heads;
    a.group = job->heads / layout->kv_heads;
    a.window = job->window;
    a.scale = job->scale;
    a.type = layout->type;
    a.shared = layout->shared;
    a.out_is_bf16 = job->out.type == PST_BF16;
    return a;
}

static pst_vendor_error launch(cuda_device *device, const attention_args &a, const attention_grid &grid)
{
    const size_t shared_bytes = device->properties.shared_bytes;
    return attention_tensor_fits(a, shared_bytes) ? attention_tensor_launch(a, grid, shared_bytes, device->stream)
                                                  : attention_plain_launch(a, grid, shared_bytes, device->stream);
}

static uint64_t lesser(uint64_t x, uint64_t y)
{
    return x < y ? x : y;
}

/* Rows that `count` segments of at most max_rows rows can have in the operands. */
static uint32_t rows_bound(const pst_segments *segments, uint64_t count, uint64_t max_rows)
{
    return (uint32_t)lesser(segments->rows, count * max_rows);
}

/* Some rows of the segments of generated tokens, at once or, with more than one chunk, of as many segments at a time as
 * the partial results have room for. */
static int attend_slots(cuda_device *device, const pst_attention *job, attention_args a)
{
    const pst_segments *segments = &job->segments;
    attention_grid grid = {0, job->layout.kv_heads, a.chunks};
    uint64_t step = segments->generated;
    if (grid.chunks > 1) {
        const uint64_t bytes = (uint64_t)a.slots * a.heads * a.chunks * attention_partial_floats(a) * sizeof(float);
        step = lesser(bytes < partials_bytes ? partials_bytes / bytes : 1, lesser(step, 65535));
        void *partials;
        const int status = pst_cuda_scratch(device, (size_t)(step * bytes), &partials);
        if (status < 0)
            return status;
        a.partials = (float *)partials;
    }
    for (uint64_t first = 0; first < segments->generated; first += step) {
        a.first_segment = (uint32_t)first;
        a.segment_count = (uint32_t)lesser(step, segments->generated - first);
        grid.tiles_of_rows = rows_bound(segments, a.segment_count, a.slots);
        int status = pst_cuda_check(device, "attention", launch(device, a, grid));
        if (status >= 0 && a.partials != NULL)
            status = pst_cuda_check(device, "attention",
                                    PST_LAUNCH(attention_combine_kernel, dim3(a.heads, a.slots, a.segment_count),
                                               dim3(combine_threads(a)), 0, device->stream, a));
        if (status < 0)
            return status;
    }
    return 0;
}

static int attend_generated(cuda_device *device, const pst_attention *job, attention_args a)
{
    const uint64_t rows = job->segments.generated_max_rows;
    a.few = true;
    a.chunks = attention_chunk_of(job->segments.generated_max_positions - 1) + 1;
    a.slots = (uint32_t)(a.chunks > 1 ? lesser(rows, MOST_SLOTS) : rows);
    for (uint64_t first = 0; first < rows; first += a.slots) {
        a.first_slot = (uint32_t)first;
        const int status = attend_slots(device, job, a);
        if (status < 0)
            return status;
    }
    return 0;
}

static int attend_prompts(cuda_device *device, const pst_attention *job, attention_args a)
{
    const pst_segments *segments = &job->segments;
    a.first_segment = (uint32_t)segments->generated;
    a.segment_count = (uint32_t)(segments->count - segments->generated);
    const attention_grid grid = {rows_bound(segments, a.segment_count, segments->max_rows), job->layout.kv_heads, 1};
    return pst_cuda_check(device, "attention", launch(device, a, grid));
}

int pst_cuda_attention(cuda_device *device, const pst_attention *job)
{
    const pst_segments *segments = &job->segments;
    if (segments->count == 0 || segments->rows == 0 || segments->max_rows == 0)
        return 0;
    const attention_args a = args_of(job);
    int status = 0;
    if (segments->generated < segments->count)
        status = attend_prompts(device, job, a);
    if (segments->generated > 0 && status >= 0)
        status = attend_generated(device, job, a);
    return status;
}
