/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products of f32 inputs, by fused multiply-adds. A sum is MM_CHAINS chains, chain c of the granules (8 columns) c, c +
 * MM_CHAINS, ..., added as a tree over the bits of c from the highest on.
 *
 * Few rows: half a warp has an output, a lane a chain; MM_DEPTH granules of weights are on their way. Many rows: blocks of 8
 * warps have 32 rows by 32 outputs, and warp i all of them for chains i and i + 8, from f32 tiles in shared memory.
 */
#include "matmul_granule.h"

enum {
    HALF_WARPS = MM_THREADS / MM_CHAINS,
    TILE = 32,               /* rows and outputs */
    TILE_STEP = MM_STEP + 4, /* floats from row to row of a tile: neighbouring rows begin in different banks */
    WARPS = MM_THREADS / 32
};

static_assert(WARPS * 2 == MM_CHAINS, "a warp has two chains of a tile");
static_assert(WARPS * TILE * TILE <= 2 * TILE * TILE_STEP, "the warps' sums lie where the tiles were");

/* grid: HALF_WARPS outputs each; slots of groups. */
template <int FORM, int ROWS>
static __global__ void __launch_bounds__(MM_THREADS, 2) few_kernel(const mm_job job, const mm_table table)
{
    mm_group group;
    if (!mm_find_group(job, table, blockIdx.y, &group))
        return;
    const uint32_t lane = threadIdx.x % MM_CHAINS, output = blockIdx.x * HALF_WARPS + threadIdx.x / MM_CHAINS;
    const mm_row row = mm_row_of(job.w, group.data, group.scales, min(output, job.w.outputs - 1));
    for (uint32_t first = group.begin; first < group.end; first += ROWS) {
        float sums[ROWS] = {};
        const uint32_t there = group.end - first;
        mm_sum_chain<FORM, ROWS>(job, (const float *)job.x + first * job.x_stride, there, row, sums);
#pragma unroll
        for (uint32_t r = 0; r < ROWS; r++) {
#pragma unroll
            for (int bit = MM_CHAINS / 2; bit > 0; bit /= 2)
                sums[r] = __fadd_rn(sums[r], __shfl_xor_sync(0xffffffffu, sums[r], bit));
            if (lane == r % MM_CHAINS && r < there && output < job.w.outputs)
                mm_finish(job, first + r, output, sums[r]);
        }
    }
}

static __device__ __forceinline__ void store_granule(float *to, const float *values)
{
    ((float4 *)to)[0] = make_float4(values[0], values[1], values[2], values[3]);
    ((float4 *)to)[1] = make_float4(values[4], values[5], values[6], values[7]);
}

/* Tiles of MM_STEP columns from k on. there: rows from `first` on. */
static __device__ __forceinline__ void fill_tiles(const mm_job &job, const mm_group &group, uint32_t first,
                                                  uint32_t first_output, uint32_t k, float *x, float *weights)
{
#pragma unroll 1
    for (uint32_t n = threadIdx.x; n < TILE * MM_CHAINS; n += MM_THREADS) {
        const uint32_t row = n / MM_CHAINS, column = n % MM_CHAINS * MM_GRANULE;
        const uint32_t output = min(first_output + row, job.w.outputs - 1); /* past the last one: any */
        float values[MM_GRANULE] = {};
        if (first + row < group.end)
            mm_x_values(job, (const float *)job.x + (first + row) * job.x_stride, k + column, values);
        store_granule(x + row * TILE_STEP + column, values);
        mm_any_values(job.w, mm_row_of(job.w, group.data, group.scales, output), k + column, values);
        store_granule(weights + row * TILE_STEP + column, values);
    }
}

/* A lane's rows are lane / 4 + 8 i, its outputs lane % 4 + 4 j. */
static __device__ __forceinline__ void multiply_tiles(const float *x, const float *weights, float sums[2][4][8])
{
    const uint32_t warp = threadIdx.x / 32, row = threadIdx.x % 32 / 4, output = threadIdx.x % 4;
#pragma unroll
    for (uint32_t c = 0; c < 2; c++) {
#pragma unroll
        for (uint32_t half = 0; half < MM_GRANULE; half += 4) {
            const uint32_t column = (warp + c * WARPS) * MM_GRANULE + half;
            float4 a[4];
#pragma unroll
            for (uint32_t i = 0; i < 4; i++)
                a[i] = *(const float4 *)(x + (row + 8 * i) * TILE_STEP + column);
#pragma unroll
            for (uint32_t j = 0; j < 8; j++) {
                const float4 b = *(const float4 *)(weights + (output + 4 * j) * TILE_STEP + column);
#pragma unroll
                for (uint32_t i = 0; i < 4; i++) {
                    float sum = sums[c][i][j];
                    sum = __fmaf_rn(a[i].x, b.x, sum);
                    sum = __fmaf_rn(a[i].y, b.y, sum);
                    sum = __fmaf_rn(a[i].z, b.z, sum);
                    sums[c][i][j] = __fmaf_rn(a[i].w, b.w, sum);
                }
            }
        }
    }
}

/* The tree over the chains: its first step is within a warp, the others over the warps' sums in shared memory. */
static __device__ __forceinline__ void finish_tile(const mm_job &job, uint32_t first, uint32_t end, uint32_t output,
                                                   const float sums[2][4][8], float *shared)
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
#pragma unroll
        for (uint32_t j = 0; j < 8; j++)
            shared[(warp * TILE + lane / 4 + 8 * i) * TILE + lane % 4 + 4 * j] =
                __fadd_rn(sums[0][i][j], sums[1][i][j]);
    }
    __syncthreads();
    for (uint32_t n = threadIdx.x; n < TILE * TILE; n += MM_THREADS) {
        float parts[WARPS];
#pragma unroll
        for (uint32_t w = 0; w < WARPS; w++)
            parts[w] = shared[w * TILE * TILE + n];
#pragma unroll
        for (uint32_t bit = WARPS / 2; bit > 0; bit /= 2) {
#pragma unroll
            for (uint32_t w = 0; w < bit; w++)
                parts[w] = __fadd_rn(parts[w], parts[w + bit]);
        }
        if (first + n / TILE < end && output + n % TILE < job.w.outputs)
            mm_finish(job, first + n / TILE, output + n % TILE, parts[0]);
    }
    __syncthreads();
}

/* grid: tiles of outputs; slots of groups; tiles of rows, every so manieth. */
static __global__ void __launch_bounds__(MM_THREADS, 2) tile_kernel(const mm_job job, const mm_table table)
{
    __shared__ __align__(16) float shared[2 * TILE * TILE_STEP];
    mm_group group;
    if (!mm_find_group(job, table, blockIdx.y, &group))
        return;
    const uint32_t output = blockIdx.x * TILE;
    for (uint32_t row = group.begin + blockIdx.z * TILE; row < group.end; row += gridDim.z * TILE) {
        float sums[2][4][8] = {};
#pragma unroll 1
        for (uint32_t k = 0; k < job.w.k; k += MM_STEP) {
            fill_tiles(job, group, row, output, k, shared, shared + TILE * TILE_STEP);
            __syncthreads();
            multiply_tiles(shared, shared + TILE * TILE_STEP, sums);
            __syncthreads();
        }
        finish_tile(job, row, group.end, output, sums, shared);
    }
}

static uint32_t slots_of(const mm_job *job)
{
    return job->first == NULL ? 1 : job->groups < job->rows ? job->groups : job->rows;
}

template <int FORM> static void launch_few(cuda_device *device, const mm_job *job, const mm_table *table)
{
    const dim3 grid(mm_ceil(job->w.outputs, HALF_WARPS), slots_of(job));
    if (job->rows == 1)
        PST_LAUNCH((few_kernel<FORM, 1>), grid, dim3(MM_THREADS), 0, device->stream, *job, *table);
    else
        PST_LAUNCH((few_kernel<FORM, 4>), grid, dim3(MM_THREADS), 0, device->stream, *job, *table);
}

int mm_f32(cuda_device *device, const mm_job *job, const mm_table *table)
{
    const uint32_t rows = mm_ceil(job->rows, job->first == NULL ? 1 : job->groups);
    if (rows > MM_FEW_ROWS) {
        const uint32_t row_tiles = mm_ceil(job->first == NULL ? job->rows : 4 * (uint64_t)rows, TILE);
        PST_LAUNCH(tile_kernel,
                   dim3(mm_ceil(job->w.outputs, TILE), slots_of(job), row_tiles < 65535 ? row_tiles : 65535),
                   dim3(MM_THREADS), 0, device->stream, *job, *table);
        return 0;
    }
    switch (job->w.form) {
    case MM_BF16: launch_few<MM_BF16>(device, job, table); break;
    case MM_F16: launch_few<MM_F16>(device, job, table); break;
    case MM_F32: launch_few<MM_F32>(device, job, table); break;
    case MM_G8: launch_few<MM_G8>(device, job, table); break;
    case MM_F8: launch_few<MM_F8>(device, job, table); break;
    default: launch_few<MM_G4>(device, job, table); break;
    }
    return 0;
}
