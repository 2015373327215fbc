/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products of heads, each with rows of its own of one matrix, in one launch. Inputs count as f32, whatever the weights are.
 *
 * Rows of generated tokens are as slow as reading the weights. Rows that are outputs: as in matmul_f32.cu, half a warp has an
 * output and a lane a chain of its granules. Rows that are inputs: a block has SEGMENT outputs of a head, a lane a granule of
 * them, and each of 8 warps every 8th input; the warps' sums are added as a tree.
 *
 * Rows of prompts are as slow as the arithmetic, which tensor cores do: an f32 is the sum of three bf16 numbers, exactly, as
 * a weight is of one (BF16), two (F16) or three. Of the parts' products those are left out that are 2^-24 of the whole and less.
 * A sum is one chain over the inputs, 16 at a time. What is not finite gives something that is not, if not always the same
 * as f32 would.
 *
 * So an output's bits depend on its row of x, its weights and its phase alone.
 */
#include "matmul_granule.h"

enum {
    FEW_ROWS = 4, /* of x that weights are loaded for at a time */
    HALF_WARPS = MM_THREADS / MM_CHAINS,
    WARPS = MM_THREADS / 32,
    SEGMENT = 32 * MM_GRANULE,

    TILE_ROWS = 128,
    TILE_OUTPUTS = 64,
    TILE_INPUTS = 32,
    ROW_WARPS = 4, /* of a block's warps by rows: each has 32 rows by 32 outputs */
    X_PARTS = 3,
    /* Elements from row to row of a tile: 8 neighbouring rows begin in different banks. */
    INPUT_STEP = TILE_INPUTS + 8,
    OUTPUT_STEP = TILE_OUTPUTS + 8
};

static_assert(TILE_OUTPUTS * TILE_INPUTS == MM_THREADS * MM_GRANULE, "a thread loads a granule of weights of a tile");
static_assert(TILE_ROWS * TILE_INPUTS == 2 * MM_THREADS * MM_GRANULE, "and two of x");

struct heads_job {
    mm_job m; /* x: head 0's; w: of the whole matrix */
    uint64_t x_step, y_step;
    uint32_t first, step, head_rows, heads;
    bool y_bf16;
    const uint8_t *data, *scales;
};

static __device__ __forceinline__ const float *x_of(const heads_job &job, uint32_t head, uint32_t row)
{
    return (const float *)job.m.x + head * job.x_step + row * job.m.x_stride;
}

/* Row n of a head's matrix. */
static __device__ __forceinline__ mm_row row_of(const heads_job &job, uint32_t head, uint32_t n)
{
    return mm_row_of(job.m.w, job.data, job.scales, job.first + head * job.step + n);
}

static __device__ __forceinline__ void store(const heads_job &job, uint32_t head, uint32_t row, uint32_t output,
                                             float sum)
{
    const uint64_t at = row * job.m.y_stride + head * job.y_step + output;
    if (job.y_bf16)
        ((uint16_t *)job.m.y)[at] = pst_f32_to_bf16(sum);
    else
        job.m.y[at] = sum;
}

/* ---- Rows of generated tokens ---- */

/* grid: of each head in turn HALF_WARPS outputs. */
template <int FORM> static __global__ void __launch_bounds__(MM_THREADS, 2) few_kernel(const heads_job job)
{
    const uint32_t parts = (job.head_rows + HALF_WARPS - 1) / HALF_WARPS, head = blockIdx.x / parts;
    const uint32_t lane = threadIdx.x % MM_CHAINS;
    const uint32_t output = blockIdx.x % parts * HALF_WARPS + threadIdx.x / MM_CHAINS;
    const mm_row row = row_of(job, head, min(output, job.head_rows - 1));
    for (uint32_t first = 0; first < job.m.rows; first += FEW_ROWS) {
        float sums[FEW_ROWS] = {};
        const uint32_t there = job.m.rows - first;
        mm_sum_chain<FORM, FEW_ROWS>(job.m, x_of(job, head, first), there, row, sums);
#pragma unroll
        for (uint32_t r = 0; r < FEW_ROWS; r++) {
#pragma unroll
            for (int bit = MM_CHAINS / 2; bit > 0; bit /= 2)
                sums[r] = __fadd_rn(sums[r], __shfl_xor_sync(0xffffffffu, sums[r], bit));
            if (lane == r && r < there && output < job.head_rows)
                store(job, head, first + r, output, sums[r]);
        }
    }
}

/* Inputs whose weights are on their way to a warp. */
static __device__ __forceinline__ constexpr uint32_t ahead_of(int form)
{
    return form == MM_F32 ? 4 : 8;
}

/* Inputs first, first + WARPS, ..., ahead_of(FORM) of them, with the granule of outputs from `column` on; x: of lane i the i'th input
 * from lane `from` on. */
template <int FORM>
static __device__ __forceinline__ void add_inputs(const heads_job &job, uint32_t head, uint32_t first, uint32_t column,
                                                  const float *x, uint32_t from, float sums[FEW_ROWS][MM_GRANULE])
{
    const bool is_fast = job.m.w.fast && column + MM_GRANULE <= job.m.w.k;
    mm_granule<FORM> granules[ahead_of(FORM)];
#pragma unroll
    for (uint32_t i = 0; i < ahead_of(FORM); i++) {
        if (is_fast && first + i * WARPS < job.head_rows)
            mm_load_granule<FORM>(job.m.w, row_of(job, head, first + i * WARPS), column, &granules[i]);
    }
#pragma unroll
    for (uint32_t i = 0; i < ahead_of(FORM); i++) {
        if (first + i * WARPS >= job.head_rows)
            break;
        float weights[MM_GRANULE];
        if (is_fast)
            mm_granule_values<FORM>(job.m.w, granules[i], weights);
        else
            mm_slow_values(job.m.w, FORM, row_of(job, head, first + i * WARPS), column, weights);
#pragma unroll
        for (uint32_t r = 0; r < FEW_ROWS; r++) {
            const float input = __shfl_sync(0xffffffffu, x[r], (int)(from + i));
#pragma unroll
            for (uint32_t j = 0; j < MM_GRANULE; j++)
                sums[r][j] = __fmaf_rn(input, weights[j], sums[r][j]);
        }
    }
}

/* Adds what the warps have and stores it: as [row][half of a granule][lane]. */
static __device__ __forceinline__ void add_warps(const heads_job &job, uint32_t head, uint32_t first, uint32_t segment,
                                                 const float sums[FEW_ROWS][MM_GRANULE], float *shared)
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t r = 0; r < FEW_ROWS; r++) {
        float4 *to = (float4 *)(shared + (warp * FEW_ROWS + r) * SEGMENT);
        to[lane] = make_float4(sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
        to[32 + lane] = make_float4(sums[r][4], sums[r][5], sums[r][6], sums[r][7]);
    }
    __syncthreads();
    const uint32_t mine = threadIdx.x;
    const uint32_t output = segment + mine % (SEGMENT / 2) / 4 * MM_GRANULE + mine / (SEGMENT / 2) * 4 + mine % 4;
#pragma unroll
    for (uint32_t r = 0; r < FEW_ROWS; r++) {
        float parts[WARPS];
#pragma unroll
        for (uint32_t w = 0; w < WARPS; w++)
            parts[w] = shared[(w * FEW_ROWS + r) * SEGMENT + mine];
#pragma unroll
        for (uint32_t bit = WARPS / 2; bit > 0; bit /= 2) {
#pragma unroll
            for (uint32_t w = 0; w < bit; w++)
                parts[w] = __fadd_rn(parts[w], parts[w + bit]);
        }
        if (first + r < job.m.rows && output < job.m.w.k)
            store(job, head, first + r, output, parts[0]);
    }
    __syncthreads();
}

/* grid: of each head in turn SEGMENT outputs. */
template <int FORM> static __global__ void __launch_bounds__(MM_THREADS, 2) few_inputs_kernel(const heads_job job)
{
    __shared__ __align__(16) float shared[WARPS * FEW_ROWS * SEGMENT];
    const uint32_t parts = (job.m.w.k + SEGMENT - 1) / SEGMENT, head = blockIdx.x / parts;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t segment = blockIdx.x % parts * SEGMENT, column = segment + lane * MM_GRANULE;
    for (uint32_t first = 0; first < job.m.rows; first += FEW_ROWS) {
        float sums[FEW_ROWS][MM_GRANULE] = {};
        for (uint32_t base = warp; base < job.head_rows; base += 32 * WARPS) {
            float x[FEW_ROWS];
#pragma unroll
            for (uint32_t r = 0; r < FEW_ROWS; r++) {
                const bool is_there = first + r < job.m.rows && base + lane * WARPS < job.head_rows;
                x[r] = is_there ? x_of(job, head, first + r)[base + lane * WARPS] : 0.0f;
            }
#pragma unroll 1
            for (uint32_t i = 0; i < 32 && base + i * WARPS < job.head_rows; i += ahead_of(FORM))
                add_inputs<FORM>(job, head, base + i * WARPS, column, x, i, sums);
        }
        add_warps(job, head, first, segment, sums, shared);
    }
}

/* ---- Rows of prompts ---- */

/* What a thread has of the next tiles, as numbers. */
struct staged {
    float x[2][MM_GRANULE], w[MM_GRANULE];
};

/* Inputs k.. of a row, whose inputs they are `end`; zeros beyond. */
static __device__ __forceinline__ void load_x(const heads_job &job, const float *x, uint32_t k, uint32_t end,
                                              float *values)
{
    if (job.m.x_fast && k + MM_GRANULE <= end) {
        const float4 a = *(const float4 *)(x + k), b = *(const float4 *)(x + k + 4);
        values[0] = a.x;
        values[1] = a.y;
        values[2] = a.z;
        values[3] = a.w;
        values[4] = b.x;
        values[5] = b.y;
        values[6] = b.z;
        values[7] = b.w;
        return;
    }
#pragma unroll
    for (uint32_t i = 0; i < MM_GRANULE; i++)
        values[i] = k + i < end ? x[k + i] : 0.0f;
}

/* Of rows row.., outputs output.. and inputs k... */
template <bool INPUTS>
static __device__ __forceinline__ void load_tiles(const heads_job &job, uint32_t head, uint32_t row, uint32_t output,
                                                  uint32_t k, staged *out)
{
    const uint32_t end = INPUTS ? job.head_rows : job.m.w.k, n = threadIdx.x;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t mine = row + n / 4 + i * (TILE_ROWS / 2);
        /* Of a row that is not there any one's: nothing of it is stored. */
        load_x(job, x_of(job, head, min(mine, job.m.rows - 1)), k + n % 4 * MM_GRANULE, end, out->x[i]);
    }
    if (!INPUTS) {
        const mm_row weights = row_of(job, head, min(output + n / 4, job.head_rows - 1));
        mm_any_values(job.m.w, weights, k + n % 4 * MM_GRANULE, out->w);
        return;
    }
    const uint32_t input = k + n / 8;
    mm_any_values(job.m.w, row_of(job, head, min(input, job.head_rows - 1)), output + n % 8 * MM_GRANULE, out->w);
#pragma unroll
    for (uint32_t i = 0; i < MM_GRANULE; i++)
        out->w[i] = input < end ? out->w[i] : 0.0f;
}

/* A granule's parts, to planes `step` elements from each other. */
template <int PARTS>
static __device__ __forceinline__ void store_parts(const float *values, uint16_t *to, uint32_t step)
{
    uint32_t pairs[PARTS * 4];
#pragma unroll
    for (uint32_t i = 0; i < 4; i++)
        mm_split<PARTS>(values[2 * i], values[2 * i + 1], pairs + i, 4);
#pragma unroll
    for (uint32_t p = 0; p < PARTS; p++)
        *(uint4 *)(to + p * step) = make_uint4(pairs[4 * p], pairs[4 * p + 1], pairs[4 * p + 2], pairs[4 * p + 3]);
}

/* Elements of a plane of weights: [output][input], or [input][output]. */
static __device__ __forceinline__ constexpr uint32_t plane_of(bool inputs)
{
    return inputs ? TILE_INPUTS * OUTPUT_STEP : TILE_OUTPUTS * INPUT_STEP;
}

template <int PARTS, bool INPUTS>
static __device__ __forceinline__ void store_tiles(const staged &in, uint16_t *x, uint16_t *w)
{
    const uint32_t n = threadIdx.x;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++)
        store_parts<X_PARTS>(in.x[i], x + (n / 4 + i * (TILE_ROWS / 2)) * INPUT_STEP + n % 4 * MM_GRANULE,
                             TILE_ROWS * INPUT_STEP);
    uint16_t *to = INPUTS ? w + n / 8 * OUTPUT_STEP + n % 8 * MM_GRANULE : w + n / 4 * INPUT_STEP + n % 4 * MM_GRANULE;
    store_parts<PARTS>(in.w, to, plane_of(INPUTS));
}

/* Fragments of 16 inputs from k on and 16 outputs from `output` on: b[0], b[1] of the first 8 outputs, then of the others. */
template <bool INPUTS>
static __device__ __forceinline__ void load_weights(const uint16_t *plane, uint32_t output, uint32_t k, uint32_t *b)
{
    const uint32_t lane = threadIdx.x % 32;
    if (INPUTS)
        pst_ldmatrix_x4_trans(b, plane + (k + lane % 16) * OUTPUT_STEP + output + lane / 16 * 8);
    else
        pst_ldmatrix_x4(b, plane + (output + lane % 8 + lane / 16 * 8) * INPUT_STEP + k + lane / 8 % 2 * 8);
}

/* sums: [16 rows][8 outputs][fragment]; smaller products first. */
template <int PARTS, bool INPUTS>
static __device__ __forceinline__ void multiply_tiles(const uint16_t *x, const uint16_t *w, float sums[2][4][4])
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t row = warp % ROW_WARPS * 32, output = warp / ROW_WARPS * 32;
#pragma unroll
    for (uint32_t k = 0; k < TILE_INPUTS; k += 16) {
        uint32_t a[2][X_PARTS][4];
#pragma unroll
        for (uint32_t m = 0; m < 2; m++) {
#pragma unroll
            for (uint32_t p = 0; p < X_PARTS; p++)
                pst_ldmatrix_x4(a[m][p],
                                x + (p * TILE_ROWS + row + m * 16 + lane % 16) * INPUT_STEP + k + lane / 16 * 8);
        }
#pragma unroll
        for (uint32_t n = 0; n < 2; n++) {
            uint32_t b[PARTS][4];
#pragma unroll
            for (uint32_t p = 0; p < PARTS; p++)
                load_weights<INPUTS>(w + p * plane_of(INPUTS), output + n * 16, k, b[p]);
#pragma unroll
            for (int order = X_PARTS - 1; order >= 0; order--) {
#pragma unroll
                for (int p = 0; p < PARTS && p <= order; p++) {
#pragma unroll
                    for (uint32_t m = 0; m < 2; m++) {
                        pst_mma_bf16(sums[m][2 * n], a[m][order - p], b[p]);
                        pst_mma_bf16(sums[m][2 * n + 1], a[m][order - p], b[p] + 2);
                    }
                }
            }
        }
    }
}

/* grid: of each head in turn, tiles of rows, of each tiles of outputs. */
template <int PARTS, bool INPUTS>
static __global__ void __launch_bounds__(MM_THREADS, 2) tile_kernel(const heads_job job)
{
    __shared__ __align__(16) uint16_t x[X_PARTS * TILE_ROWS * INPUT_STEP];
    __shared__ __align__(16) uint16_t w[PARTS * plane_of(INPUTS)];
    const uint32_t outputs = INPUTS ? job.m.w.k : job.head_rows, inputs = INPUTS ? job.head_rows : job.m.w.k;
    const uint32_t output_tiles = (outputs + TILE_OUTPUTS - 1) / TILE_OUTPUTS;
    const uint32_t row_tiles = (job.m.rows + TILE_ROWS - 1) / TILE_ROWS, head = blockIdx.x / output_tiles / row_tiles;
    const uint32_t row = blockIdx.x / output_tiles % row_tiles * TILE_ROWS;
    const uint32_t output = blockIdx.x % output_tiles * TILE_OUTPUTS;
    float sums[2][4][4] = {};
    staged next;
    load_tiles<INPUTS>(job, head, row, output, 0, &next);
#pragma unroll 1
    for (uint32_t k = 0; k < inputs; k += TILE_INPUTS) {
        store_tiles<PARTS, INPUTS>(next, x, w);
        __syncthreads();
        if (k + TILE_INPUTS < inputs)
            load_tiles<INPUTS>(job, head, row, output, k + TILE_INPUTS, &next);
        __syncwarp();
        multiply_tiles<PARTS, INPUTS>(x, w, sums);
        __syncthreads();
    }
    const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (uint32_t i = 0; i < 32; i++) { /* [16 rows][8 outputs][row + 8][column + 1] */
        const uint32_t mine = row + warp % ROW_WARPS * 32 + i / 16 * 16 + i / 2 % 2 * 8 + g;
        const uint32_t column = output + warp / ROW_WARPS * 32 + i / 4 % 4 * 8 + 2 * t + i % 2;
        if (mine < job.m.rows && column < outputs)
            store(job, head, mine, column, sums[i / 16][i / 4 % 4][i % 4]);
    }
}

/* ---- Launches ---- */

template <int FORM> static void launch_few(cuda_device *device, const heads_job *job, bool inputs)
{
    if (inputs)
        PST_LAUNCH((few_inputs_kernel<FORM>), dim3(job->heads * mm_ceil(job->m.w.k, SEGMENT)), dim3(MM_THREADS), 0,
                   device->stream, *job);
    else
        PST_LAUNCH((few_kernel<FORM>), dim3(job->heads * mm_ceil(job->head_rows, HALF_WARPS)), dim3(MM_THREADS), 0,
                   device->stream, *job);
}

static void run_few(cuda_device *device, const heads_job *job, bool inputs)
{
    switch (job->m.w.form) {
    case MM_BF16: launch_few<MM_BF16>(device, job, inputs); break;
    case MM_F16: launch_few<MM_F16>(device, job, inputs); break;
    case MM_F32: launch_few<MM_F32>(device, job, inputs); break;
    case MM_G8: launch_few<MM_G8>(device, job, inputs); break;
    case MM_F8: launch_few<MM_F8>(device, job, inputs); break;
    default: launch_few<MM_G4>(device, job, inputs); break;
    }
}

template <int PARTS> static void run_tiles(cuda_device *device, const heads_job *job, bool inputs)
{
    const uint32_t output_tiles = mm_ceil(inputs ? job->m.w.k : job->head_rows, TILE_OUTPUTS);
    const dim3 grid(job->heads * mm_ceil(job->m.rows, TILE_ROWS) * output_tiles), block(MM_THREADS);
    if (inputs)
        PST_LAUNCH((tile_kernel<PARTS, true>), grid, block, 0, device->stream, *job);
    else
        PST_LAUNCH((tile_kernel<PARTS, false>), grid, block, 0, device->stream, *job);
}

/* Counts of blocks fit 32 bits, too. */
static bool fits(const pst_heads_matmul *job)
{
    const uint64_t limit = 1u << 30;
    if (job->x.rows > limit || job->w.rows > limit || job->w.columns > limit || job->step > limit ||
        job->first + (job->heads - 1) * (uint64_t)job->step + job->head_rows > job->w.rows)
        return false;
    const uint64_t most = job->head_rows > job->w.columns ? job->head_rows : job->w.columns;
    const uint64_t blocks = job->heads * (most / HALF_WARPS + 1);
    return blocks <= limit && blocks * (job->x.rows / TILE_ROWS + 1) <= limit && job->x.type == PST_F32 &&
           (job->y.type == PST_F32 || job->y.type == PST_BF16);
}

int pst_cuda_matmul_heads(cuda_device *device, const pst_heads_matmul *job)
{
    const bool inputs = job->rows_are_inputs;
    heads_job own = {};
    if (job->x.rows == 0 || job->heads == 0 || job->head_rows == 0 || job->w.columns == 0)
        return 0;
    if (!fits(job) || (job->w.format != NULL && job->w.format->transposed) ||
        mm_describe(&job->w, (uintptr_t)job->w.data, (uintptr_t)job->w.scales, &own.m.w) < 0)
        return pst_cuda_fail(device, PST_E_UNSUPPORTED, "products of %u heads by %zu of %zu x %zu", job->heads,
                             job->head_rows, job->w.rows, job->w.columns);
    own.m.x_stride = job->x.stride;
    own.m.x_fast = (((uintptr_t)job->x.data | job->x.stride * 4 | job->x_step * 4) & 15) == 0;
    own.m.y_stride = job->y.stride;
    own.x_step = job->x_step;
    own.y_step = job->y_step;
    own.first = (uint32_t)job->first;
    own.step = (uint32_t)job->step;
    own.head_rows = (uint32_t)job->head_rows;
    own.heads = job->heads;
    own.y_bf16 = job->y.type == PST_BF16;
    own.data = (const uint8_t *)job->w.data;
    own.scales = (const uint8_t *)job->w.scales;
    const size_t prompts = job->prompt_rows < job->x.rows ? job->prompt_rows : job->x.rows;
    const size_t generated = job->x.rows - prompts;
    own.m.x = (const uint8_t *)job->x.data;
    own.m.y = (float *)job->y.data;
    own.m.rows = (uint32_t)generated;
    if (generated > 0)
        run_few(device, &own, inputs);
    if (prompts == 0)
        return 0;
    own.m.x += generated * job->x.stride * 4;
    own.m.y = (float *)((char *)job->y.data + generated * job->y.stride * (own.y_bf16 ? 2 : 4));
    own.m.rows = (uint32_t)prompts;
    switch (own.m.w.form) { /* as mm_parts_of; codes times scales are numbers of f32 */
    case MM_BF16: run_tiles<1>(device, &own, inputs); break;
    case MM_F16: run_tiles<2>(device, &own, inputs); break;
    default: run_tiles<3>(device, &own, inputs); break;
    }
    return 0;
}
