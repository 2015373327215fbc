/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products of few rows of bf16 inputs: as fast as weights come from memory. A block has 8 (codes of 4 bits: 16) outputs, each
 * of its warps a range of k. Weights go from memory into the fragments of the tensor cores by way of registers alone, with
 * DEPTH units of loads in flight: the weights are the b operand, 8 rows of x half of the a operand (its other rows are
 * zeros). Loads of x come from the caches: as many bytes as the weights at most.
 */
#include "matmul_job.h"

enum { OUTPUTS = 8 };

/* Fragments of outputs that a warp has. */
static __device__ __forceinline__ constexpr int tiles_of(int form)
{
    return form == MM_G4 ? 2 : 1;
}

static __device__ __forceinline__ constexpr int depth_of(int form)
{
    return form == MM_F32 ? 2 : 4;
}

/* Both granules of a unit: for every pair of words a product of each part. */
template <int PARTS>
static __device__ __forceinline__ void multiply_unit(const uint32_t *x, const uint32_t *pairs, float *sum)
{
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
        const uint32_t a[4] = {x[n], 0, x[n + 1], 0};
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            const uint32_t b[2] = {pairs[p * 8 + n], pairs[p * 8 + n + 1]};
            pst_mma_bf16(sum, a, b);
        }
    }
}

template <int FORM> struct few_unit {
    mm_raw<FORM> raw[tiles_of(FORM)];
    uint32_t x[8];
};

/* One range of the sums of 8 rows of x, of which `x_there` says whether this lane's is there. */
template <int FORM>
static __device__ __forceinline__ void sum_range(const mm_job &job, const uint8_t *x, bool x_there, const mm_row *rows,
                                                 uint32_t unit, uint32_t end, float (*sums)[4])
{
    constexpr int parts = mm_parts_of(FORM), tiles = tiles_of(FORM), depth = depth_of(FORM);
    const uint32_t t = threadIdx.x % 4;
    const bool fast = job.w.fast && job.x_fast;
    const uint32_t whole = fast ? min(job.w.k / MM_UNIT, end) : 0;
    while (unit < whole) {
        few_unit<FORM> units[depth];
#pragma unroll
        for (int d = 0; d < depth; d++) {
            const uint32_t k = (unit + d) * MM_UNIT;
            if (unit + d >= whole)
                break;
#pragma unroll
            for (int i = 0; i < tiles; i++)
                mm_load_raw<FORM>(job.w, rows[i], k, t, &units[d].raw[i]);
#pragma unroll
            for (uint32_t i = 0; i < 2; i++) {
                uint32_t *to = units[d].x + 4 * i;
                to[0] = to[1] = to[2] = to[3] = 0;
                if (x_there)
                    mm_load_words<4>(to, x + 2 * ((uint64_t)k + mm_place(FORM, i, t)), 16);
            }
        }
        __syncwarp(); /* lanes without a row of x did not load any */
#pragma unroll
        for (int d = 0; d < depth; d++) {
            if (unit + d >= whole)
                break;
#pragma unroll
            for (int i = 0; i < tiles; i++) {
                uint32_t pairs[8 * parts];
                mm_raw_pairs<FORM>(job.w, units[d].raw[i], pairs);
                if (FORM == MM_F8) /* lanes with rare codes went another way */
                    __syncwarp();
                multiply_unit<parts>(units[d].x, pairs, sums[i]);
            }
        }
        unit = min(unit + depth, whole);
    }
#pragma unroll 1
    for (; unit < end; unit++) {
        const uint32_t k = unit * MM_UNIT;
        uint32_t granules[8] = {0, 0, 0, 0, 0, 0, 0, 0};
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            if (x_there)
                mm_load_x(job, x, k + mm_place(FORM, i, t), job.w.k, granules + 4 * i);
        }
#pragma unroll
        for (int i = 0; i < tiles; i++) {
            uint32_t pairs[8 * parts];
            mm_slow_pairs<FORM>(job.w, rows[i], k, t, pairs);
            __syncwarp(); /* lanes at the edges went other ways */
            multiply_unit<parts>(granules, pairs, sums[i]);
        }
    }
}

/* grid: blocks of outputs; slots of groups. */
template <int FORM>
static __global__ void __launch_bounds__(MM_THREADS, 2) few_kernel(const mm_job job, const mm_table table)
{
    constexpr int tiles = tiles_of(FORM), outputs = tiles * OUTPUTS;
    __shared__ float sums[MM_RANGES][MM_FEW_ROWS][outputs];
    const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    mm_group group;
    if (!mm_find_group(job, table, blockIdx.y, &group))
        return;
    mm_row rows[tiles];
#pragma unroll
    for (int i = 0; i < tiles; i++) /* past the last one: any; what comes of it goes nowhere */
        rows[i] = mm_row_of(job.w, group.data, group.scales,
                            min(blockIdx.x * outputs + (uint32_t)i * OUTPUTS + g, job.w.outputs - 1));
    const uint32_t unit = min(warp * job.range_units, job.units), end = min(unit + job.range_units, job.units);
    for (uint32_t row = group.begin; row < group.end; row += MM_FEW_ROWS) {
        float mine[tiles][4] = {};
        sum_range<FORM>(job, job.x + 2 * (row + g) * job.x_stride, row + g < group.end, rows, unit, end, mine);
#pragma unroll
        for (int i = 0; i < tiles; i++) {
            sums[warp][g][i * OUTPUTS + 2 * t] = mine[i][0];
            sums[warp][g][i * OUTPUTS + 2 * t + 1] = mine[i][1];
        }
        __syncthreads();
        if (threadIdx.x < MM_FEW_ROWS * outputs) {
            const uint32_t r = threadIdx.x / outputs, n = threadIdx.x % outputs;
            float sum = 0;
#pragma unroll
            for (int i = 0; i < MM_RANGES; i++)
                sum = __fadd_rn(sum, sums[i][r][n]);
            if (row + r < group.end && blockIdx.x * outputs + n < job.w.outputs)
                mm_finish(job, row + r, blockIdx.x * outputs + n, sum);
        }
        __syncthreads();
    }
}

template <int FORM> static void launch(cuda_device *device, const mm_job *job, const mm_table *table)
{
    const uint32_t slots = job->first == NULL ? 1 : job->groups < job->rows ? job->groups : job->rows;
    PST_LAUNCH((few_kernel<FORM>), dim3(mm_ceil(job->w.outputs, tiles_of(FORM) * OUTPUTS), slots), dim3(MM_THREADS), 0,
               device->stream, *job, *table);
}

int mm_few(cuda_device *device, const mm_job *job, const mm_table *table)
{
    switch (job->w.form) {
    case MM_BF16: launch<MM_BF16>(device, job, table); break;
    case MM_F16: launch<MM_F16>(device, job, table); break;
    case MM_F32: launch<MM_F32>(device, job, table); break;
    case MM_G8: launch<MM_G8>(device, job, table); break;
    case MM_F8: launch<MM_F8>(device, job, table); break;
    default: launch<MM_G4>(device, job, table); break;
    }
    return 0;
}
