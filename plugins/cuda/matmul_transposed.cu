/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products with matrices whose rows are inputs: PLAIN and GROUPED transposed, GPTQ, AWQ.
 *
 * Order of a sum. Inputs are cut into chunks of CHUNK, counted from the tensor's first. A chunk's sum begins with zero and is one
 * chain of fused multiply-adds in the order of the inputs; the chunks' sums are added in rising order to what a product begins
 * with (old y, bias). So chunks may be summed at the same time, by blocks of their own, whose sums a second kernel adds; or
 * by one block, one after the other, when there are enough rows of x.
 *
 * A matrix may come in any cuts of its rows, a call each. Kernels get whole chunks (and the tensor's end) alone: rows of a
 * chunk that has not all come wait in device->carry, as they are, for the call that brings the rest. y carries the rest of
 * the sum from call to call.
 *
 * A block has 32 outputs, one for each lane of a warp, and 8 or 64 rows of x, one or eight for each of 8 warps. Panels of 64
 * inputs by 32 outputs pass by: their words are loaded AHEAD panels before 8 warps turn them into f32, in shared memory. With
 * few rows 8 more warps do nothing but multiply, a panel behind the others.
 */
#include "matmul_job.h"

enum {
    PANEL = 64,   /* inputs */
    OUTPUTS = 32, /* of a block */
    WARPS = MM_THREADS / 32,
    RUN = PANEL / WARPS, /* consecutive inputs that a thread makes for its output */
    AHEAD = 2,
    CHUNK = 256, /* inputs, of all formats */
    CHUNK_PANELS = CHUNK / PANEL,
    /* Of chunks' sums of many rows, and of few, at most: the host plans for 64 MiB of scratch memory. */
    PARTIAL_BYTES = 16 << 20,
    FEW_PARTIAL_BYTES = 64 << 20
};

static_assert(RUN == 8, "a word of 4-bit GPTQ is a thread's run");

enum kind { KIND_F32, KIND_F16, KIND_BF16, KIND_G4, KIND_G8, KIND_GPTQ4, KIND_GPTQ8, KIND_AWQ };

struct transposed_job {
    const uint8_t *x;
    uint64_t x_stride;
    bool x_bf16;
    bool begin, accumulate;
    float *y;
    uint64_t y_stride;
    const uint8_t *bias;
    pst_dtype bias_type;
    uint32_t rows;
    uint32_t outputs;
    uint32_t first_input, inputs; /* at hand */
    uint32_t kind;
    const uint8_t *w;
    uint64_t row_bytes; /* of the tensor */
    uint64_t code_bytes;
    bool symmetric, scales_bf16;
    uint32_t group, groups, zero_offset;
    const uint8_t *scales, *zeros, *index;
    uint32_t *flags;
    float *partial; /* [chunk at hand][row][output]: each chunk's sum; NULL: sums go to y */
};

/* What a thread has loaded of a panel for its run: the words that hold its weights. */
struct run_words {
    uint32_t words[RUN];
    uint32_t group; /* GPTQ, AWQ: of all inputs of the run, with its scale and zero; ~0: of each its own */
    uint32_t scale, zero;
};

#define NO_GROUP (~0u)

static __device__ __forceinline__ uint32_t group_of(const transposed_job &job, uint32_t input)
{
    if (job.index == NULL)
        return input / job.group;
    const uint32_t group = mm_load_32_bits(job.index + 4 * (uint64_t)input);
    if (group < job.groups)
        return group;
    *job.flags = PST_CUDA_FLAG_BAD_INDEX;
    return 0;
}

static __device__ __forceinline__ uint32_t load_scale(const transposed_job &job, uint32_t group, uint32_t output)
{
    return mm_load_16_bits(job.scales + 2 * ((uint64_t)group * job.outputs + output));
}

/* The word that holds an output's zero. */
static __device__ __forceinline__ uint32_t load_zero(const transposed_job &job, uint32_t group, uint32_t output)
{
    const uint32_t in_word = job.kind == KIND_GPTQ8 ? 4 : 8;
    return mm_load_32_bits(job.zeros + 4 * ((uint64_t)group * (job.outputs / in_word) + output / in_word));
}

/* Bits of an output in a word of AWQ: outputs 0 2 4 6 1 3 5 7 from the lowest on. */
static __device__ __forceinline__ uint32_t awq_code(uint32_t word, uint32_t output)
{
    const uint32_t place = output % 8 / 2 + output % 2 * 4;
    return word >> (4 * place) & 15;
}

static __device__ __forceinline__ float zero_of(const transposed_job &job, uint32_t word, uint32_t output)
{
    if (job.kind == KIND_AWQ)
        return (float)awq_code(word, output);
    const uint32_t code = job.kind == KIND_GPTQ8 ? word >> (output % 4 * 8) & 255 : word >> (output % 8 * 4) & 15;
    return (float)(code + job.zero_offset);
}

static __device__ __forceinline__ float packed_scale(const transposed_job &job, uint32_t bits)
{
    return job.scales_bf16 ? pst_bf16_to_f32((uint16_t)bits) : pst_f16_to_f32((uint16_t)bits);
}

/* Scale of an output's group of outputs in a GROUPED row: as mm_load_scale. */
static __device__ __forceinline__ float grouped_value(const transposed_job &job, const uint8_t *row, uint32_t code,
                                                      uint32_t output)
{
    const uint8_t *scales = row + job.code_bytes + (size_t)(output / job.group) * (job.symmetric ? 2 : 4);
    const float scale = pst_f16_to_f32((uint16_t)mm_load_16_bits(scales));
    const float minimum = job.symmetric ? scale * (job.kind == KIND_G4 ? -8.0f : -128.0f)
                                        : pst_f16_to_f32((uint16_t)mm_load_16_bits(scales + 2));
    return __fmaf_rn((float)code, scale, minimum);
}

/* Inputs first..first+RUN-1 of those at hand, for one output; those that are not there stay as they are. */
static __device__ __forceinline__ void load_run(const transposed_job &job, uint32_t first, uint32_t output,
                                                run_words *run)
{
    if (job.kind >= KIND_GPTQ4) {
        run->group = NO_GROUP;
        const uint32_t input = job.first_input + first;
        if (job.index == NULL && input / job.group == (input + RUN - 1) / job.group && first < job.inputs) {
            run->group = input / job.group;
            run->scale = load_scale(job, run->group, output);
            run->zero = load_zero(job, run->group, output);
        }
    }
    if (job.kind == KIND_GPTQ4) { /* `inputs` is a multiple of 8 */
        if (first < job.inputs)
            run->words[0] = mm_load_32_bits(job.w + first / 8 * job.row_bytes + 4 * (uint64_t)output);
        return;
    }
    if (job.kind == KIND_GPTQ8) {
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            if (first + 4 * i < job.inputs)
                run->words[i] = mm_load_32_bits(job.w + (first / 4 + i) * job.row_bytes + 4 * (uint64_t)output);
        }
        return;
    }
#pragma unroll
    for (uint32_t i = 0; i < RUN; i++) {
        if (first + i >= job.inputs)
            break;
        const uint8_t *row = job.w + (first + i) * job.row_bytes;
        switch (job.kind) {
        case KIND_F32: run->words[i] = mm_load_32_bits(row + 4 * (uint64_t)output); break;
        case KIND_F16:
        case KIND_BF16: run->words[i] = mm_load_16_bits(row + 2 * (uint64_t)output); break;
        case KIND_G4: run->words[i] = (uint32_t)row[output / 2] >> (output % 2 * 4) & 15; break;
        case KIND_G8: run->words[i] = row[output]; break;
        default: run->words[i] = mm_load_32_bits(row + output / 8 * 4); break;
        }
    }
}

/* (code - zero) * scale: the difference is a whole number, its product with a scale of 11 bits exact. */
static __device__ __forceinline__ float packed_value(const transposed_job &job, const run_words &run, uint32_t code,
                                                     uint32_t input, uint32_t output)
{
    uint32_t scale = run.scale, zero = run.zero;
    if (run.group == NO_GROUP) {
        const uint32_t group = group_of(job, input);
        scale = load_scale(job, group, output);
        zero = load_zero(job, group, output);
    }
    return ((float)code - zero_of(job, zero, output)) * packed_scale(job, scale);
}

/* Stores a run to its column of the panel; zeros for inputs that are not there. */
static __device__ __forceinline__ void store_run(const transposed_job &job, const run_words &run, uint32_t first,
                                                 uint32_t output, float *panel)
{
#pragma unroll
    for (uint32_t i = 0; i < RUN; i++) {
        float value = 0;
        if (first + i < job.inputs) {
            const uint32_t word = run.words[i], input = job.first_input + first + i;
            switch (job.kind) {
            case KIND_F32: value = __uint_as_float(word); break;
            case KIND_F16: value = pst_f16_to_f32((uint16_t)word); break;
            case KIND_BF16: value = pst_bf16_to_f32((uint16_t)word); break;
            case KIND_G4:
            case KIND_G8: value = grouped_value(job, job.w + (first + i) * job.row_bytes, word, output); break;
            case KIND_GPTQ4: value = packed_value(job, run, run.words[0] >> (4 * i) & 15, input, output); break;
            case KIND_GPTQ8:
                value = packed_value(job, run, run.words[i / 4] >> (i % 4 * 8) & 255, input, output);
                break;
            default: value = packed_value(job, run, awq_code(word, output), input, output); break;
            }
        }
        panel[i * OUTPUTS] = value;
    }
}

/* A thread's elements of x of a panel, [row][input], as f32; zeros for what is not there. */
template <int COUNT>
static __device__ __forceinline__ void load_x(const transposed_job &job, uint32_t first_row, uint32_t first, float *x)
{
#pragma unroll
    for (uint32_t i = 0; i < COUNT; i++) {
        const uint32_t n = threadIdx.x + i * MM_THREADS, row = first_row + n / PANEL, input = first + n % PANEL;
        x[i] = 0;
        if (row < job.rows && input < job.inputs) {
            const size_t at = row * job.x_stride + job.first_input + input;
            x[i] = job.x_bf16 ? pst_bf16_to_f32(((const uint16_t *)job.x)[at]) : ((const float *)job.x)[at];
        }
    }
}

template <int COUNT> static __device__ __forceinline__ void store_x(const float *x, float *to)
{
#pragma unroll
    for (uint32_t i = 0; i < COUNT; i++)
        to[threadIdx.x + i * MM_THREADS] = x[i];
}

/* What a chain begins with: of the first call old y and bias, else what the call before left. */
static __device__ __forceinline__ float chain_begin(const transposed_job &job, uint32_t row, uint32_t output)
{
    const float *y = job.y + row * job.y_stride + output;
    float value = !job.begin || job.accumulate ? *y : 0.0f;
    if (!job.begin || job.bias == NULL)
        return value;
    const float bias = mm_load_float(job.bias, job.bias_type, output);
    return job.accumulate ? __fadd_rn(value, bias) : bias;
}

/* A panel's inputs, one after the other; those that are not there are left out: -0 stays -0. */
template <int ROWS>
static __device__ __forceinline__ void multiply_panel(const float *panel, const float *x, uint32_t inputs, float *sums)
{
    const uint32_t lane = threadIdx.x % 32;
    if (inputs >= PANEL) {
#pragma unroll 4
        for (uint32_t i = 0; i < PANEL; i += 4) {
            float w[4];
#pragma unroll
            for (uint32_t j = 0; j < 4; j++)
                w[j] = panel[(i + j) * OUTPUTS + lane];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const float4 v = *(const float4 *)(x + r * PANEL + i);
                sums[r] = __fmaf_rn(v.x, w[0], sums[r]);
                sums[r] = __fmaf_rn(v.y, w[1], sums[r]);
                sums[r] = __fmaf_rn(v.z, w[2], sums[r]);
                sums[r] = __fmaf_rn(v.w, w[3], sums[r]);
            }
        }
        return;
    }
#pragma unroll 1
    for (uint32_t i = 0; i < inputs; i++) {
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            sums[r] = __fmaf_rn(x[r * PANEL + i], panel[i * OUTPUTS + lane], sums[r]);
    }
}

/* Of few rows: warps from WARPS on multiply. */
static __device__ __forceinline__ constexpr bool is_apart(int rows)
{
    return rows == 1;
}

/* The panels of inputs [begin, job.inputs) for rows from first_row on. totals: NULL, or to which each chunk's sum is added. */
template <int ROWS>
static __device__ __forceinline__ void sum_panels(const transposed_job &job, uint32_t first_row, uint32_t begin,
                                                  float (*panels)[PANEL * OUTPUTS],
                                                  float (*inputs)[WARPS * ROWS * PANEL], float *totals)
{
    constexpr int x_count = WARPS * ROWS * PANEL / MM_THREADS; /* that a thread stores */
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, mine = warp * RUN, warp_row = warp % WARPS * ROWS;
    const uint32_t read = min(blockIdx.x * OUTPUTS + lane, job.outputs - 1);
    const bool makes = warp < WARPS, multiplies = !is_apart(ROWS) || warp >= WARPS;
    run_words runs[AHEAD];
    float x[is_apart(ROWS) ? AHEAD : 1][x_count], sums[ROWS] = {};
#pragma unroll
    for (uint32_t i = 0; i < AHEAD; i++) {
        if (makes)
            load_run(job, begin + i * PANEL + mine, read, &runs[i]);
        if (makes && is_apart(ROWS))
            load_x<x_count>(job, first_row, begin + i * PANEL, x[is_apart(ROWS) ? i : 0]);
    }
    /* Panel p is made from runs[p % AHEAD] into half p % 2 and multiplied after the barrier; by the next barrier all have
     * done so, and the half is free. */
    for (uint32_t p = 0; begin + p * PANEL < job.inputs; p += AHEAD) {
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; i++) {
            const uint32_t first = begin + (p + i) * PANEL, next = first + AHEAD * PANEL;
            if (first >= job.inputs)
                break;
            if (makes) {
                float *ready = x[is_apart(ROWS) ? i : 0];
                if (!is_apart(ROWS))
                    load_x<x_count>(job, first_row, first, ready);
                store_run(job, runs[i], first + mine, read, panels[i % 2] + mine * OUTPUTS + lane);
                store_x<x_count>(ready, inputs[i % 2]);
                load_run(job, next + mine, read, &runs[i]);
                if (is_apart(ROWS))
                    load_x<x_count>(job, first_row, next, ready);
            }
            __syncthreads();
            if (multiplies && first_row + warp_row < job.rows)
                multiply_panel<ROWS>(panels[i % 2], inputs[i % 2] + warp_row * PANEL, job.inputs - first, sums);
            if ((p + i) % CHUNK_PANELS != CHUNK_PANELS - 1 && first + PANEL < job.inputs)
                continue;
#pragma unroll
            for (uint32_t r = 0; r < ROWS; r++) {
                totals[r] = __fadd_rn(totals[r], sums[r]);
                sums[r] = 0;
            }
        }
    }
    __syncthreads(); /* the panels may be filled again */
}

static_assert(CHUNK_PANELS % AHEAD == 0, "chunks end with the inner loop");

/* grid: blocks of outputs; of rows; chunks, if they are apart. Rows of a warp: ROWS consecutive ones. */
template <int ROWS>
static __global__ void __launch_bounds__(is_apart(ROWS) ? 2 * MM_THREADS : MM_THREADS, is_apart(ROWS) ? 1 : 2)
    transposed_kernel(const transposed_job given)
{
    __shared__ __align__(16) float panels[2][PANEL * OUTPUTS];
    __shared__ __align__(16) float inputs[2][WARPS * ROWS * PANEL];
    const uint32_t warp = threadIdx.x / 32, output = blockIdx.x * OUTPUTS + threadIdx.x % 32;
    const bool apart = given.partial != NULL;
    const bool is_there = (!is_apart(ROWS) || warp >= WARPS) && output < given.outputs;
    const uint32_t begin = apart ? blockIdx.z * CHUNK : 0;
    transposed_job job = given;
    job.inputs = apart ? min(job.inputs, begin + CHUNK) : job.inputs;
    for (uint32_t first_row = blockIdx.y * WARPS * ROWS; first_row < job.rows; first_row += gridDim.y * WARPS * ROWS) {
        const uint32_t row = first_row + warp % WARPS * ROWS;
        float totals[ROWS];
#pragma unroll
        for (uint32_t r = 0; r < ROWS; r++) /* a chunk apart keeps its sum as it is: -0 + x is x, also of -0 */
            totals[r] = is_there && row + r < job.rows && !apart ? chain_begin(job, row + r, output) : -0.0f;
        sum_panels<ROWS>(job, first_row, begin, panels, inputs, totals);
#pragma unroll
        for (uint32_t r = 0; r < ROWS; r++) {
            if (!is_there || row + r >= job.rows)
                continue;
            if (apart)
                job.partial[((size_t)blockIdx.z * job.rows + row + r) * job.outputs + output] = totals[r];
            else
                job.y[(row + r) * job.y_stride + output] = totals[r];
        }
    }
}

/* y from the chunks' sums; grid: outputs; rows. */
static __global__ void __launch_bounds__(MM_THREADS) add_chunks(const transposed_job job, uint32_t chunks)
{
    const uint32_t output = blockIdx.x * MM_THREADS + threadIdx.x;
    if (output >= job.outputs)
        return;
    const size_t step = (size_t)job.rows * job.outputs;
    for (uint32_t row = blockIdx.y; row < job.rows; row += gridDim.y) {
        const float *sums = job.partial + (size_t)row * job.outputs + output;
        float total = chain_begin(job, row, output);
#pragma unroll 8
        for (uint32_t i = 0; i < chunks; i++)
            total = __fadd_rn(total, sums[i * step]);
        job.y[row * job.y_stride + output] = total;
    }
}

static_assert(AHEAD % 2 == 0, "halves of the panels are named by the run's place");

/* What follows from the format; false: not known. */
static bool describe(const pst_weight *w, transposed_job *out)
{
    const pst_weight_format *format = w->format;
    const uint64_t outputs = w->columns;
    out->group = format->group;
    out->symmetric = format->symmetric;
    out->scales_bf16 = format->scale_type == PST_BF16;
    out->zero_offset = format->zero_offset ? 1 : 0;
    out->scales = (const uint8_t *)w->scales;
    out->zeros = (const uint8_t *)w->zeros;
    out->index = format->layout == PST_WEIGHT_GPTQ ? (const uint8_t *)w->index : NULL;
    if (format->layout == PST_WEIGHT_PLAIN) {
        out->kind = format->type == PST_F32 ? KIND_F32 : format->type == PST_F16 ? KIND_F16 : KIND_BF16;
        out->row_bytes = outputs * (format->type == PST_F32 ? 4 : 2);
        return format->type == PST_F32 || format->type == PST_F16 || format->type == PST_BF16;
    }
    if (format->group == 0 || (format->bits != 4 && format->bits != 8))
        return false;
    switch (format->layout) {
    case PST_WEIGHT_GROUPED:
        out->kind = format->bits == 4 ? KIND_G4 : KIND_G8;
        out->code_bytes = format->bits == 4 ? (outputs + 1) / 2 : outputs;
        out->row_bytes = out->code_bytes + mm_ceil(outputs, out->group) * (uint64_t)(out->symmetric ? 2 : 4);
        return format->group % 2 == 0;
    case PST_WEIGHT_GPTQ:
        out->kind = format->bits == 4 ? KIND_GPTQ4 : KIND_GPTQ8;
        out->row_bytes = outputs * 4;
        return outputs % (32 / format->bits) == 0;
    case PST_WEIGHT_AWQ:
        out->kind = KIND_AWQ;
        out->row_bytes = outputs / 2;
        out->zero_offset = 0;
        return format->bits == 4 && outputs % 8 == 0;
    default: return false;
    }
}

/* Whole chunks, or those at the tensor's end. */
static int run_chunks(cuda_device *device, const transposed_job *given)
{
    transposed_job job = *given;
    const uint32_t blocks = mm_ceil(job.outputs, OUTPUTS), chunks = mm_ceil(job.inputs, CHUNK);
    const bool few = job.rows <= WARPS;
    const uint32_t row_blocks = mm_ceil(job.rows, few ? WARPS : 8 * WARPS);
    const uint64_t partial_bytes = (uint64_t)chunks * job.rows * job.outputs * sizeof(float);
    const bool fills = (uint64_t)blocks * row_blocks >= 2 * (uint64_t)device->properties.processors;
    const bool has_room = partial_bytes <= (few ? FEW_PARTIAL_BYTES : PARTIAL_BYTES);
    const bool apart = chunks > 1 && chunks < 65536 && has_room && (few || !fills);
    job.begin = job.first_input == 0;
    if (apart) {
        void *memory;
        if (int status = pst_cuda_scratch(device, partial_bytes, &memory))
            return status;
        job.partial = (float *)memory;
    }
    const dim3 grid(blocks, row_blocks < 1024 ? row_blocks : 1024,
                    apart ? chunks : 1); /* a block takes every so manieth */
    if (few)
        PST_LAUNCH((transposed_kernel<1>), grid, dim3(2 * MM_THREADS), 0, device->stream, job);
    else
        PST_LAUNCH((transposed_kernel<8>), grid, dim3(MM_THREADS), 0, device->stream, job);
    if (apart)
        PST_LAUNCH(add_chunks, dim3(mm_ceil(job.outputs, MM_THREADS), job.rows < 1024 ? job.rows : 1024),
                   dim3(MM_THREADS), 0, device->stream, job, chunks);
    return 0;
}

/* Puts rows at hand behind those of their chunk that wait already. */
static int keep_rows(cuda_device *device, const transposed_job *job, uint32_t place, const uint8_t *rows,
                     uint32_t count, uint32_t chunk_rows)
{
    if (int status = pst_cuda_carry(device, chunk_rows * job->row_bytes, place > 0))
        return status;
    return pst_cuda_check(device, "keeping rows of a matrix",
                          pst_vendor_copy((uint8_t *)device->carry + place * job->row_bytes, rows,
                                          count * job->row_bytes, device->stream));
}

/* The rows at hand as whole chunks. per_row: inputs of a row. */
static int run_rows(cuda_device *device, const pst_weight *w, size_t all_inputs, uint32_t per_row, transposed_job *job)
{
    const uint32_t chunk_rows = CHUNK / per_row, end = (uint32_t)(w->first_row + w->rows);
    const bool ends = end * (uint64_t)per_row >= all_inputs;
    const uint8_t *data = (const uint8_t *)w->data;
    uint32_t row = (uint32_t)w->first_row;
    const uint32_t place = row % chunk_rows;
    if (place > 0) {
        const uint32_t count = end - row < chunk_rows - place ? end - row : chunk_rows - place;
        if (int status = keep_rows(device, job, place, data, count, chunk_rows))
            return status;
        if (place + count == chunk_rows || (ends && row + count == end)) {
            job->w = (const uint8_t *)device->carry;
            job->first_input = (row - place) * per_row;
            job->inputs = (place + count) * per_row;
            if (int status = run_chunks(device, job))
                return status;
        }
        row += count;
        data += count * job->row_bytes;
    }
    const uint32_t whole = ends ? end - row : (end - row) / chunk_rows * chunk_rows;
    if (whole > 0) {
        job->w = data;
        job->first_input = row * per_row;
        job->inputs = whole * per_row;
        if (int status = run_chunks(device, job))
            return status;
    }
    row += whole;
    return row == end ? 0 : keep_rows(device, job, 0, data + whole * job->row_bytes, end - row, chunk_rows);
}

int mm_transposed(cuda_device *device, const pst_matmul *job)
{
    const pst_weight *w = &job->w;
    const size_t limit = (size_t)1 << 30;
    transposed_job own = {};
    if (job->x.rows == 0 || w->rows == 0 || w->columns == 0)
        return 0;
    if (job->x.rows > limit || job->x.columns > limit || w->rows > limit || w->columns > limit ||
        w->first_row > limit || (job->x.type != PST_F32 && job->x.type != PST_BF16) || job->y.type != PST_F32 ||
        !describe(w, &own))
        return pst_cuda_fail(device, PST_E_UNSUPPORTED, "a transposed product of a format or size that is not known");
    const uint32_t per_row = own.kind == KIND_GPTQ4 ? 8 : own.kind == KIND_GPTQ8 ? 4 : 1; /* inputs of a tensor's row */
    if ((w->first_row + w->rows) * per_row > job->x.columns)
        return pst_cuda_fail(device, PST_E_USAGE, "a transposed product of more rows than there are inputs");
    own.x = (const uint8_t *)job->x.data;
    own.x_stride = job->x.stride;
    own.x_bf16 = job->x.type == PST_BF16;
    own.accumulate = job->accumulate;
    own.y = (float *)job->y.data + job->first_column;
    own.y_stride = job->y.stride;
    own.bias = (const uint8_t *)job->bias.data;
    own.bias_type = job->bias.type;
    own.rows = (uint32_t)job->x.rows;
    own.outputs = (uint32_t)w->columns;
    own.groups = own.group == 0 ? 0 : mm_ceil(job->x.columns, own.group);
    own.flags = device->flags;
    return run_rows(device, w, job->x.columns, per_row, &own);
}
