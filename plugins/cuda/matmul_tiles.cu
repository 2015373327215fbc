/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products of many rows of bf16 inputs: blocks of 8 warps multiply tiles of x and of weights, a unit of k after the other,
 * from a ring of stages in shared memory. Two widths: 32 rows by 64 outputs, for products that are as slow as memory, and
 * 128 by 128 (64 where weights have several parts). Plain bf16 weights are copied to shared memory behind the kernel's
 * back; other forms are loaded a unit ahead, turned into bf16 parts and stored there.
 *
 * In shared memory a tile of a unit is two planes, of granules 0 and 1 of each lane (mm_place), each [row][t] of 16 bytes,
 * with neighbouring rows of plane 1 exchanged: then neither the copies, 8 granules of a row at a time, nor the fragments'
 * loads, 16 bytes of 8 lanes of two rows at a time, meet in a bank.
 *
 * The ranges of k (matmul_job.h) are summed one after the other, or, when there are too few tiles for all multiprocessors,
 * by as many blocks, whose sums a second kernel adds in the same order.
 */
#include "matmul_job.h"

enum {
    ROW_WARPS = 2, /* a block's warps by rows */
    OUTPUT_WARPS = 4,
    ROW_TILES_TOGETHER = 16,  /* of x, that pass by with a tile of weights while it is in the second level cache */
    PARTIAL_BYTES = 16 << 20, /* of ranges' sums, at most */
    MANY_ROWS = 64            /* from so many on, tiles are wide */
};

static __device__ __forceinline__ uint32_t slot_of(uint32_t rows, uint32_t i, uint32_t row, uint32_t t)
{
    return (i * rows + (row ^ i)) * 4 + t;
}

/* Stores a tile's rows of x. there: rows from the first on. */
static __device__ __forceinline__ void copy_x(const mm_job &job, uint32_t rows, uint32_t first, uint32_t there,
                                              uint32_t unit, uint4 *to)
{
    for (uint32_t n = threadIdx.x; n < rows * 8; n += MM_THREADS) {
        const uint32_t row = n / 8, q = n % 8, k = unit * MM_UNIT + q * 8;
        const bool codes = job.w.form >= MM_G8;
        uint4 *slot = to + slot_of(rows, codes ? q % 2 : q / 4, row, codes ? q / 2 : q % 4);
        const bool is_there = row < there && k < job.w.k;
        const uint8_t *x = job.x + 2 * ((uint64_t)(first + (is_there ? row : 0)) * job.x_stride);
        if (job.x_fast && (!is_there || k + 8 <= job.w.k)) {
            pst_copy_async_16(slot, x + (is_there ? 2 * (uint64_t)k : 0), is_there);
        } else {
            uint32_t pairs[4] = {0, 0, 0, 0};
            if (is_there)
                mm_load_x(job, x, k, job.w.k, pairs);
            *slot = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        }
    }
}

/* The same of weights: plain bf16 in whole granules. */
static __device__ __forceinline__ void copy_weights(const mm_job &job, const uint8_t *data, uint32_t outputs,
                                                    uint32_t first, uint32_t unit, uint4 *to)
{
    for (uint32_t n = threadIdx.x; n < outputs * 8; n += MM_THREADS) {
        const uint32_t row = n / 8, q = n % 8, k = unit * MM_UNIT + q * 8;
        const bool is_there = first + row < job.w.outputs && k < job.w.k;
        pst_copy_async_16(to + slot_of(outputs, q / 4, row, q % 4),
                          data + (is_there ? (first + row) * job.w.row_bytes + 2 * (uint64_t)k : 0), is_there);
    }
}

/* A lane's 16 weights on their way: of a form that only the job knows. */
struct staged {
    uint32_t words[16];
    uint32_t scale;
};

template <int FORM>
static __device__ __forceinline__ void load_as(const mm_weights &w, const mm_row &row, uint32_t k, uint32_t t,
                                               staged *out)
{
    mm_raw<FORM> raw;
    raw.scale = 0;
    mm_load_raw<FORM>(w, row, k, t, &raw);
#pragma unroll
    for (int i = 0; i < mm_words_of(FORM); i++)
        out->words[i] = raw.words[i];
    out->scale = raw.scale;
}

template <int FORM>
static __device__ __forceinline__ void pairs_as(const mm_weights &w, const staged &in, uint32_t *pairs)
{
    mm_raw<FORM> raw;
#pragma unroll
    for (int i = 0; i < mm_words_of(FORM); i++)
        raw.words[i] = in.words[i];
    raw.scale = in.scale;
    mm_raw_pairs<FORM>(w, raw, pairs);
}

/* PARTS says which forms can be. */
template <int PARTS>
static __device__ __forceinline__ void load_staged(const mm_weights &w, const mm_row &row, uint32_t k, uint32_t t,
                                                   staged *out)
{
    if (PARTS == 3)
        load_as<MM_F32>(w, row, k, t, out);
    else if (PARTS == 2)
        load_as<MM_F16>(w, row, k, t, out);
    else if (w.form == MM_G4)
        load_as<MM_G4>(w, row, k, t, out);
    else if (w.form == MM_BF16)
        load_as<MM_BF16>(w, row, k, t, out);
    else if (w.form == MM_G8)
        load_as<MM_G8>(w, row, k, t, out);
    else
        load_as<MM_F8>(w, row, k, t, out);
}

template <int PARTS>
static __device__ __forceinline__ void staged_pairs(const mm_weights &w, const staged &in, uint32_t *pairs)
{
    if (PARTS == 3)
        pairs_as<MM_F32>(w, in, pairs);
    else if (PARTS == 2)
        pairs_as<MM_F16>(w, in, pairs);
    else if (w.form == MM_G4)
        pairs_as<MM_G4>(w, in, pairs);
    else if (w.form == MM_BF16)
        pairs_as<MM_BF16>(w, in, pairs);
    else if (w.form == MM_G8)
        pairs_as<MM_G8>(w, in, pairs);
    else
        pairs_as<MM_F8>(w, in, pairs);
}

/* Element by element, from any row: straight to shared memory. */
template <int PARTS>
static __device__ __forceinline__ void store_slowly(const mm_weights &w, const mm_row &row, uint32_t k, uint32_t t,
                                                    uint32_t outputs, uint32_t output, uint4 *to)
{
#pragma unroll 1
    for (uint32_t n = 0; n < 8; n++) {
        const uint32_t i = n / 4, column = k + mm_place(w.form, i, t) + n % 4 * 2;
        const float low = column < w.k ? mm_element_bf16(w, (int)w.form, row, column) : 0.0f;
        const float high = column + 1 < w.k ? mm_element_bf16(w, (int)w.form, row, column + 1) : 0.0f;
        uint32_t pairs[PARTS];
        mm_split<PARTS>(low, high, pairs, 1);
#pragma unroll
        for (uint32_t p = 0; p < PARTS; p++)
            ((uint32_t *)(to + p * outputs * 8 + slot_of(outputs, i, output, t)))[n % 4] = pairs[p];
    }
}

/* A block's shape. MR, NR: fragments of rows and outputs that a warp has. */
template <int PARTS_, bool COPIED_, int MR_, int NR_, int STAGES_> struct tile_shape {
    static constexpr int PARTS = PARTS_, MR = MR_, NR = NR_, STAGES = STAGES_;
    static constexpr bool COPIED = COPIED_; /* weights by copies, else staged */
    static constexpr uint32_t ROWS = ROW_WARPS * MR * 16, OUTPUTS = OUTPUT_WARPS * NR * 8;
    static constexpr uint32_t STAGE = (ROWS + PARTS * OUTPUTS) * 8; /* granules of 16 bytes */
    static constexpr int RUNS = OUTPUTS * 4 / MM_THREADS;           /* that a thread stages */
};

/* Where a block is. */
struct tile_place {
    const uint8_t *data, *scales;
    uint32_t row, rows; /* first one and those there are, which may be more than a tile's */
    uint32_t output;    /* first one */
    uint32_t unit, end;
};

template <class S>
static __device__ __forceinline__ void load_runs(const mm_job &job, const mm_row *rows, uint32_t unit, staged *runs)
{
    if (!job.w.fast || (unit + 1) * MM_UNIT > job.w.k)
        return;
#pragma unroll
    for (int i = 0; i < S::RUNS; i++)
        load_staged<S::PARTS>(job.w, rows[i], unit * MM_UNIT, threadIdx.x % 4, &runs[i]);
}

template <class S>
static __device__ __forceinline__ void store_runs(const mm_job &job, const mm_row *rows, uint32_t unit,
                                                  const staged *runs, uint4 *to)
{
    const uint32_t t = threadIdx.x % 4;
    const bool fast = job.w.fast && (unit + 1) * MM_UNIT <= job.w.k;
#pragma unroll
    for (int n = 0; n < S::RUNS; n++) {
        const uint32_t output = (uint32_t)n * (MM_THREADS / 4) + threadIdx.x / 4;
        if (!fast) {
            store_slowly<S::PARTS>(job.w, rows[n], unit * MM_UNIT, t, S::OUTPUTS, output, to);
            continue;
        }
        uint32_t pairs[8 * S::PARTS];
        staged_pairs<S::PARTS>(job.w, runs[n], pairs);
#pragma unroll
        for (uint32_t p = 0; p < S::PARTS; p++) {
#pragma unroll
            for (uint32_t i = 0; i < 2; i++) {
                const uint32_t *from = pairs + p * 8 + i * 4;
                to[p * S::OUTPUTS * 8 + slot_of(S::OUTPUTS, i, output, t)] =
                    make_uint4(from[0], from[1], from[2], from[3]);
            }
        }
    }
}

static __device__ __forceinline__ void load_granule(uint32_t *to, const uint4 *from)
{
    const uint4 v = *from;
    to[0] = v.x;
    to[1] = v.y;
    to[2] = v.z;
    to[3] = v.w;
}

/* One unit of a warp's part of the tile. In the order of multiply_unit of matmul_few.cu. */
template <class S> static __device__ __forceinline__ void multiply(const uint4 *stage, float sums[S::MR][S::NR][4])
{
    const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const uint32_t row = warp / OUTPUT_WARPS * S::MR * 16 + g, output = warp % OUTPUT_WARPS * S::NR * 8 + g;
    const uint4 *weights = stage + S::ROWS * 8;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t x[S::MR][2][4], w[S::PARTS][S::NR][4];
#pragma unroll
        for (uint32_t m = 0; m < S::MR; m++) {
            load_granule(x[m][0], stage + slot_of(S::ROWS, i, row + m * 16, t));
            load_granule(x[m][1], stage + slot_of(S::ROWS, i, row + m * 16 + 8, t));
        }
#pragma unroll
        for (uint32_t p = 0; p < S::PARTS; p++) {
#pragma unroll
            for (uint32_t n = 0; n < S::NR; n++)
                load_granule(w[p][n], weights + p * S::OUTPUTS * 8 + slot_of(S::OUTPUTS, i, output + n * 8, t));
        }
#pragma unroll
        for (int half = 0; half < 4; half += 2) {
#pragma unroll
            for (int p = 0; p < S::PARTS; p++) {
#pragma unroll
                for (int m = 0; m < S::MR; m++) {
                    const uint32_t a[4] = {x[m][0][half], x[m][1][half], x[m][0][half + 1], x[m][1][half + 1]};
#pragma unroll
                    for (int n = 0; n < S::NR; n++) {
                        const uint32_t b[2] = {w[p][n][half], w[p][n][half + 1]};
                        pst_mma_bf16(sums[m][n], a, b);
                    }
                }
            }
        }
    }
}

/* Adds a range's sums to the total and begins the next one. */
template <class S>
static __device__ __forceinline__ void end_range(float sums[S::MR][S::NR][4], float total[S::MR][S::NR][4])
{
#pragma unroll
    for (int m = 0; m < S::MR; m++) {
#pragma unroll
        for (int n = 0; n < S::NR; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                total[m][n][e] = __fadd_rn(total[m][n][e], sums[m][n][e]);
                sums[m][n][e] = 0;
            }
        }
    }
}

/* Sums of a tile over the units of its place. */
template <class S>
static __device__ __forceinline__ void sum_tile(const mm_job &job, const tile_place &at, uint4 *ring,
                                                float total[S::MR][S::NR][4])
{
    float sums[S::MR][S::NR][4] = {};
    mm_row rows[S::RUNS];
    staged runs[S::RUNS] = {};
    if (!S::COPIED) {
#pragma unroll
        for (int n = 0; n < S::RUNS; n++) /* past the last output: any */
            rows[n] = mm_row_of(job.w, at.data, at.scales,
                                min(at.output + (uint32_t)n * (MM_THREADS / 4) + threadIdx.x / 4, job.w.outputs - 1));
    }
    /* What is ahead of the unit at hand: STAGES - 1 units of copies. */
    constexpr uint32_t ahead = S::STAGES - 1;
#pragma unroll 1
    for (uint32_t n = 0; n < ahead; n++) {
        const uint32_t unit = at.unit + n;
        uint4 *stage = ring + n * S::STAGE;
        if (unit < at.end) {
            copy_x(job, S::ROWS, at.row, at.rows, unit, stage);
            if (S::COPIED)
                copy_weights(job, at.data, S::OUTPUTS, at.output, unit, stage + S::ROWS * 8);
            else
                load_runs<S>(job, rows, unit, runs), store_runs<S>(job, rows, unit, runs, stage + S::ROWS * 8);
        }
        pst_copy_async_commit();
    }
    uint32_t stage = 0, next = ahead, left = job.range_units;
#pragma unroll 1
    for (uint32_t unit = at.unit; unit < at.end; unit++) {
        pst_copy_async_wait<S::STAGES - 2>();
        __syncthreads(); /* what all threads copied is there, and nobody reads the stage before it any more */
        const bool more = unit + ahead < at.end;
        if (more) {
            copy_x(job, S::ROWS, at.row, at.rows, unit + ahead, ring + next * S::STAGE);
            if (S::COPIED)
                copy_weights(job, at.data, S::OUTPUTS, at.output, unit + ahead, ring + next * S::STAGE + S::ROWS * 8);
            else
                load_runs<S>(job, rows, unit + ahead, runs);
        }
        pst_copy_async_commit();
        __syncwarp(); /* lanes at the edges went other ways */
        multiply<S>(ring + stage * S::STAGE, sums);
        if (!S::COPIED && more)
            store_runs<S>(job, rows, unit + ahead, runs, ring + next * S::STAGE + S::ROWS * 8);
        if (--left == 0 || unit + 1 == at.end) {
            end_range<S>(sums, total);
            left = job.range_units;
        }
        stage = stage + 1 == S::STAGES ? 0 : stage + 1;
        next = next + 1 == S::STAGES ? 0 : next + 1;
    }
    pst_copy_async_wait<0>();
    __syncthreads(); /* the ring may be filled again */
}

template <class S>
static __device__ __forceinline__ void store_tile(const mm_job &job, const tile_place &at, uint32_t range,
                                                  const float total[S::MR][S::NR][4])
{
    const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (uint32_t m = 0; m < S::MR; m++) {
#pragma unroll
        for (uint32_t n = 0; n < S::NR; n++) {
#pragma unroll
            for (uint32_t e = 0; e < 4; e++) {
                const uint32_t row = (warp / OUTPUT_WARPS * S::MR + m) * 16 + g + e / 2 * 8;
                const uint32_t output = at.output + (warp % OUTPUT_WARPS * S::NR + n) * 8 + 2 * t + e % 2;
                if (row >= at.rows || output >= job.w.outputs)
                    continue;
                if (job.partial != NULL)
                    job.partial[((size_t)range * job.rows + at.row + row) * job.w.outputs + output] = total[m][n][e];
                else
                    mm_finish(job, at.row + row, output, total[m][n][e]);
            }
        }
    }
}

/* One matrix: grid.x: tiles of rows and outputs, so that ROW_TILES_TOGETHER of rows follow each other for each of outputs;
 * grid.z: ranges, if they are apart. Several: grid.x: tiles of outputs; y: slots of groups; z: every so manieth tile of rows. */
template <class S>
static __global__ void __launch_bounds__(MM_THREADS, S::MR > 2 ? 1 : 2)
    tile_kernel(const mm_job job, const mm_table table)
{
    PST_DYNAMIC_SHARED(uint4, ring);
    mm_group group;
    if (!mm_find_group(job, table, blockIdx.y, &group))
        return;
    uint32_t output_tile = blockIdx.x, row_tile = blockIdx.z, step = gridDim.z;
    tile_place at = {group.data, group.scales, 0, 0, 0, 0, job.units};
    if (job.first == NULL) {
        const uint32_t row_tiles = (job.rows + S::ROWS - 1) / S::ROWS, output_tiles = gridDim.x / row_tiles;
        const uint32_t together = ROW_TILES_TOGETHER * output_tiles, begin = blockIdx.x / together * ROW_TILES_TOGETHER;
        const uint32_t beside = min(row_tiles - begin, (uint32_t)ROW_TILES_TOGETHER), rest = blockIdx.x % together;
        row_tile = begin + rest % beside;
        output_tile = rest / beside;
        step = row_tiles;
    }
    if (job.partial != NULL) {
        at.unit = min(blockIdx.z * job.range_units, job.units);
        at.end = min(at.unit + job.range_units, job.units);
    }
    at.output = output_tile * S::OUTPUTS;
    for (uint32_t row = group.begin + row_tile * S::ROWS; row < group.end; row += step * S::ROWS) {
        float total[S::MR][S::NR][4] = {};
        at.row = row;
        at.rows = group.end - row;
        sum_tile<S>(job, at, ring, total);
        store_tile<S>(job, at, blockIdx.z, total);
    }
}

/* y from the ranges' sums; grid: outputs; rows. */
static __global__ void __launch_bounds__(MM_THREADS) add_ranges(const mm_job job)
{
    const uint32_t output = blockIdx.x * MM_THREADS + threadIdx.x;
    if (output >= job.w.outputs)
        return;
    for (uint32_t row = blockIdx.y; row < job.rows; row += gridDim.y) {
        float sum = 0;
#pragma unroll
        for (uint32_t i = 0; i < MM_RANGES; i++)
            sum = __fadd_rn(sum, job.partial[((size_t)i * job.rows + row) * job.w.outputs + output]);
        mm_finish(job, row, output, sum);
    }
}

template <class S> static int launch(cuda_device *device, const mm_job *given, const mm_table *table)
{
    mm_job job = *given;
    const uint32_t processors = (uint32_t)device->properties.processors;
    const uint32_t output_tiles = mm_ceil(job.w.outputs, S::OUTPUTS), row_tiles = mm_ceil(job.rows, S::ROWS);
    const uint32_t shared_bytes = S::STAGES * S::STAGE * 16;
    if (job.first != NULL) {
        const uint32_t slots = job.groups < job.rows ? job.groups : job.rows;
        uint32_t rows_apart = mm_ceil(row_tiles, job.groups) + 1; /* some have more rows than others */
        rows_apart = rows_apart < row_tiles ? rows_apart : row_tiles;
        PST_LAUNCH((tile_kernel<S>), dim3(output_tiles, slots, rows_apart < 65535 ? rows_apart : 65535),
                   dim3(MM_THREADS), shared_bytes, device->stream, job, *table);
        return 0;
    }
    const uint64_t partial_bytes = (uint64_t)MM_RANGES * job.rows * job.w.outputs * sizeof(float);
    const bool apart = (uint64_t)output_tiles * row_tiles < 2 * (uint64_t)processors &&
                       partial_bytes <= PARTIAL_BYTES && job.units > MM_RANGES;
    if (apart) {
        void *memory;
        const int status = pst_cuda_scratch(device, partial_bytes, &memory);
        if (status < 0)
            return status;
        job.partial = (float *)memory;
    }
    PST_LAUNCH((tile_kernel<S>), dim3(output_tiles * row_tiles, 1, apart ? MM_RANGES : 1), dim3(MM_THREADS),
               shared_bytes, device->stream, job, *table);
    if (apart)
        PST_LAUNCH(add_ranges, dim3(mm_ceil(job.w.outputs, MM_THREADS), job.rows < 1024 ? job.rows : 1024),
                   dim3(MM_THREADS), 0, device->stream, job);
    return 0;
}

/* Whether wide tiles keep the multiprocessors busy. */
static bool is_wide(const cuda_device *device, const mm_job *job)
{
    const uint64_t rows = job->first != NULL ? mm_ceil(job->rows, job->groups) : job->rows;
    const uint64_t tiles = mm_ceil(job->w.outputs, 128) * (uint64_t)mm_ceil(job->rows, 128);
    return rows > MANY_ROWS && tiles * 4 >= (uint64_t)device->properties.processors * 3;
}

int mm_tiles(cuda_device *device, const mm_job *job, const mm_table *table)
{
    const bool wide = is_wide(device, job);
    switch (job->w.form) {
    case MM_F32: return launch<tile_shape<3, false, 1, 2, 2>>(device, job, table);
    case MM_F16:
        return wide ? launch<tile_shape<2, false, 4, 2, 2>>(device, job, table)
                    : launch<tile_shape<2, false, 1, 2, 2>>(device, job, table);
    case MM_BF16:
        if (job->w.fast)
            return wide ? launch<tile_shape<1, true, 4, 4, 3>>(device, job, table)
                        : launch<tile_shape<1, true, 1, 2, 4>>(device, job, table);
        break;
    default: break;
    }
    return wide ? launch<tile_shape<1, false, 4, 4, 2>>(device, job, table)
                : launch<tile_shape<1, false, 1, 2, 2>>(device, job, table);
}
