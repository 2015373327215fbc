/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows of logits: the largest values, and the log of the sum of exponentials. A row is cut into pieces of fixed width,
 * a block each, so that one row alone occupies many processors, and what the pieces give is put together in a fixed
 * order.
 *
 * The largest values. An element becomes a number of 64 bits that orders as values do and then by column, no two alike.
 * A block keeps the best `kept` (a power of two) of TOP_PIECE numbers: it sorts runs of `kept`, then halves them again
 * and again: of a falling run and a rising one beside it the larger of each pair are the best `kept` of both, in an
 * order that log2(kept) more steps sort (a bitonic merge). What the blocks keep is the input of the next round, until
 * one block is enough.
 */
#include "rows.h"

enum { TOP_PIECE = 4096, TOP_THREADS = 512, TOP_MOST = 1024, TOP_SCRATCH_BYTES = 8 << 20 };
enum { LSE_PIECE = 4096, LSE_THREADS = 256, LSE_EACH = LSE_PIECE / LSE_THREADS };

/* ---- The largest values ---- */

struct top_args {
    const float *x; /* the first round's input */
    uint64_t stride;
    const uint64_t *from; /* a later round's: `width` numbers of each row */
    uint64_t *to;         /* gridDim.x * kept numbers of each row, falling by kept; not for the last round */
    uint32_t width, kept, count;
    float *values; /* the last round's results */
    uint32_t *columns;
};

/* Larger for larger values, then for lower columns. Zeros of both signs are alike, what is no number is -infinity. None
 * is 0. */
static __device__ __forceinline__ uint64_t top_number(float value, uint32_t column)
{
    uint32_t bits = __float_as_uint(value != value ? -INFINITY : value == 0.0f ? 0.0f : value);
    bits = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    return (uint64_t)bits << 32 | ~column;
}

/* Where number i of every other run of `run` numbers lies; run is a power of two. */
static __device__ __forceinline__ uint32_t top_doubled(uint32_t i, uint32_t run)
{
    return (i & ~(run - 1)) * 2 + (i & (run - 1));
}

/* Steps of a bitonic network over the first `count` numbers: puts pairs at a distance of `reach`, then reach / 2 .. 1,
 * into their order, which is falling in every even run of `run` and rising in the odd ones. Begins after a barrier,
 * ends with one. */
static __device__ __forceinline__ void top_merge(uint64_t *a, uint32_t count, uint32_t run, uint32_t reach)
{
    for (; reach > 0; reach /= 2) {
        for (uint32_t i = threadIdx.x; i < count / 2; i += TOP_THREADS) {
            const uint32_t low = top_doubled(i, reach), high = low + reach;
            const uint64_t left = a[low], right = a[high];
            const bool falling = (low & run) == 0;
            if ((left < right) == falling) {
                a[low] = right;
                a[high] = left;
            }
        }
        __syncthreads();
    }
}

/* The best `kept` of the TOP_PIECE numbers, falling, to the front. */
static __device__ __forceinline__ void top_select(uint64_t *a, uint32_t kept)
{
    for (uint32_t run = 2; run <= kept; run *= 2)
        top_merge(a, TOP_PIECE, run, run / 2);
    for (uint32_t count = TOP_PIECE / 2; count >= kept; count /= 2) {
        uint64_t best[TOP_PIECE / 2 / TOP_THREADS];
#pragma unroll
        for (uint32_t j = 0; j < TOP_PIECE / 2 / TOP_THREADS; j++) {
            const uint32_t i = threadIdx.x + j * TOP_THREADS;
            if (i < count) {
                const uint32_t at = top_doubled(i, kept);
                best[j] = a[at] > a[at + kept] ? a[at] : a[at + kept];
            }
        }
        __syncthreads();
#pragma unroll
        for (uint32_t j = 0; j < TOP_PIECE / 2 / TOP_THREADS; j++) {
            const uint32_t i = threadIdx.x + j * TOP_THREADS;
            if (i < count)
                a[i] = best[j];
        }
        __syncthreads();
        top_merge(a, count, kept, kept / 2);
    }
}

/* x: pieces, y: rows. */
static __global__ __launch_bounds__(TOP_THREADS) void top_round(top_args t)
{
    __shared__ uint64_t a[TOP_PIECE];
    const uint64_t row = blockIdx.y;
    const uint32_t first = blockIdx.x * TOP_PIECE;
#pragma unroll
    for (uint32_t j = 0; j < TOP_PIECE / TOP_THREADS; j++) {
        const uint32_t i = threadIdx.x + j * TOP_THREADS, column = first + i;
        uint64_t number = 0;
        if (column < t.width)
            number = t.from != NULL ? t.from[row * t.width + column] : top_number(t.x[row * t.stride + column], column);
        a[i] = number;
    }
    __syncthreads();
    top_select(a, t.kept);
    if (t.to != NULL) {
        uint64_t *to = t.to + (row * gridDim.x + blockIdx.x) * t.kept;
        for (uint32_t i = threadIdx.x; i < t.kept; i += TOP_THREADS)
            to[i] = a[i];
        return;
    }
    for (uint32_t i = threadIdx.x; i < t.count; i += TOP_THREADS) {
        const uint32_t column = ~(uint32_t)a[i];
        const float value = t.x[row * t.stride + column];
        t.columns[row * t.count + i] = column;
        t.values[row * t.count + i] = value != value ? -INFINITY : value;
    }
}

/* Pieces of a round over `width` numbers. */
static uint64_t top_pieces(uint64_t width)
{
    return (width + TOP_PIECE - 1) / TOP_PIECE;
}

/* All rounds of some rows. scratch: two areas of first_numbers each. */
static int top_rows(cuda_device *device, top_args t, uint64_t rows, uint64_t *scratch, uint64_t first_numbers)
{
    for (uint32_t round = 0;; round++) {
        const uint64_t pieces = top_pieces(t.width);
        t.to = pieces > 1 ? scratch + round % 2 * first_numbers : NULL;
        const int status = pst_cuda_check(
            device, "top",
            PST_LAUNCH(top_round, dim3((uint32_t)pieces, (uint32_t)rows), dim3(TOP_THREADS), 0, device->stream, t));
        if (status < 0 || pieces == 1)
            return status;
        t.from = t.to;
        t.width = (uint32_t)(pieces * t.kept);
    }
}

int pst_cuda_top(cuda_device *device, const pst_matrix *x, uint32_t count, float *values, uint32_t *columns)
{
    if (count > x->columns || count > TOP_MOST || x->columns > INT32_MAX)
        return pst_cuda_fail(device, PST_E_USAGE, "no %u largest of %zu columns", count, x->columns);
    if (x->rows == 0 || count == 0)
        return 0;
    top_args t = {};
    t.stride = x->stride;
    t.width = (uint32_t)x->columns;
    t.count = count;
    for (t.kept = 1; t.kept < count; t.kept *= 2)
        ;
    const uint64_t pieces = top_pieces(t.width), numbers = pieces > 1 ? pieces * t.kept : 0, most = 65535;
    uint64_t rows = TOP_SCRATCH_BYTES / (numbers * 2 * sizeof(uint64_t) + 1);
    rows = rows < 1 ? 1 : rows > most ? most : rows;
    rows = rows < x->rows ? rows : x->rows;
    void *scratch = NULL;
    if (numbers > 0) {
        const int status = pst_cuda_scratch(device, rows * numbers * 2 * sizeof(uint64_t), &scratch);
        if (status < 0)
            return status;
    }
    for (uint64_t row = 0; row < x->rows; row += rows) {
        const uint64_t some = x->rows - row < rows ? x->rows - row : rows;
        t.x = (const float *)x->data + row * x->stride;
        t.values = values + row * count;
        t.columns = columns + row * count;
        const int status = top_rows(device, t, some, (uint64_t *)scratch, rows * numbers);
        if (status < 0)
            return status;
    }
    return 0;
}

/* ---- log(sum(exp)) ---- */

/* A piece's largest element, and the sum of e^(factor * (x - largest)). */
typedef struct lse_part {
    double sum;
    float largest; /* NaN if there is one */
} lse_part;

static __device__ __forceinline__ float lse_larger(float a, float b)
{
    return a != a ? a : b > a || b != b ? b : a;
}

/* Of the parts of all threads of the block. */
static __device__ __forceinline__ lse_part lse_together(double sum, float largest, double *sums)
{
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (uint32_t half = LSE_THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half)
            sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    lse_part all;
    all.sum = sums[0];
    all.largest = largest;
    return all;
}

/* For every thread of the block. */
static __device__ __forceinline__ float lse_largest(float largest, float *partial)
{
    for (int step = 16; step > 0; step /= 2)
        largest = lse_larger(largest, __shfl_xor_sync(ROWS_WARP, largest, step));
    if (threadIdx.x % 32 == 0)
        partial[threadIdx.x / 32] = largest;
    __syncthreads();
    for (uint32_t i = 0; i < LSE_THREADS / 32; i++)
        largest = lse_larger(largest, partial[i]);
    return largest;
}

/* What the row's parts come to: NaN and infinities are their own results. */
static __device__ __forceinline__ double lse_result(lse_part all, double factor)
{
    return isfinite(all.largest) ? (double)all.largest * factor + log(all.sum) : (double)all.largest;
}

/* x: pieces, y: rows. */
static __global__ __launch_bounds__(LSE_THREADS) void lse_pieces(const float *x, uint64_t stride, uint32_t columns,
                                                                 const double *factors, lse_part *parts, double *out)
{
    __shared__ double sums[LSE_THREADS];
    __shared__ float partial[LSE_THREADS / 32];
    const uint64_t row = blockIdx.y;
    const double factor = factors != NULL ? factors[row] : 1.0;
    const uint32_t first = blockIdx.x * LSE_PIECE + threadIdx.x;
    float a[LSE_EACH], largest = -INFINITY;
#pragma unroll
    for (uint32_t j = 0; j < LSE_EACH; j++)
        a[j] = first + j * LSE_THREADS < columns ? x[row * stride + first + j * LSE_THREADS] : -INFINITY;
#pragma unroll
    for (uint32_t j = 0; j < LSE_EACH; j++)
        largest = lse_larger(largest, a[j]);
    largest = lse_largest(largest, partial);
    double sum = 0.0;
    if (isfinite(largest)) { /* of all threads alike */
#pragma unroll 4
        for (uint32_t j = 0; j < LSE_EACH; j++)
            sum += exp(((double)a[j] - (double)largest) * factor);
    }
    const lse_part all = lse_together(sum, largest, sums);
    if (threadIdx.x == 0) {
        if (parts != NULL)
            parts[row * gridDim.x + blockIdx.x] = all;
        else
            out[row] = lse_result(all, factor);
    }
}

/* A block has a row's parts. */
static __global__ __launch_bounds__(LSE_THREADS) void lse_rows(const lse_part *parts, uint32_t count, const double *factors, double *out)
{
    __shared__ double sums[LSE_THREADS];
    __shared__ float partial[LSE_THREADS / 32];
    const double factor = factors != NULL ? factors[blockIdx.x] : 1.0;
    parts += (uint64_t)blockIdx.x * count;
    float largest = -INFINITY;
    for (uint32_t i = threadIdx.x; i < count; i += LSE_THREADS)
        largest = lse_larger(largest, parts[i].largest);
    largest = lse_largest(largest, partial);
    double sum = 0.0;
    for (uint32_t i = threadIdx.x; i < count && isfinite(largest); i += LSE_THREADS)
        sum += parts[i].sum * exp(((double)parts[i].largest - (double)largest) * factor);
    const lse_part all = lse_together(sum, largest, sums);
    if (threadIdx.x == 0)
        out[blockIdx.x] = lse_result(all, factor);
}

int pst_cuda_log_sum_exp(cuda_device *device, const pst_matrix *x, const double *factors, double *out)
{
    if (x->rows == 0)
        return 0;
    if (x->columns == 0 || x->columns > INT32_MAX)
        return pst_cuda_fail(device, PST_E_USAGE, "no sum over %zu columns", x->columns);
    const uint64_t pieces = (x->columns + LSE_PIECE - 1) / LSE_PIECE, most = 65535;
    uint64_t at_once = TOP_SCRATCH_BYTES / (pieces * sizeof(lse_part));
    at_once = at_once < 1 ? 1 : at_once > most ? most : at_once;
    at_once = at_once < x->rows ? at_once : x->rows;
    void *scratch = NULL;
    if (pieces > 1) {
        const int status = pst_cuda_scratch(device, at_once * pieces * sizeof(lse_part), &scratch);
        if (status < 0)
            return status;
    }
    for (uint64_t row = 0; row < x->rows; row += at_once) {
        const uint32_t rows = (uint32_t)(x->rows - row < at_once ? x->rows - row : at_once);
        const double *some = factors != NULL ? factors + row : NULL;
        int status = pst_cuda_check(device, "log_sum_exp",
                                    PST_LAUNCH(lse_pieces, dim3((uint32_t)pieces, rows), dim3(LSE_THREADS), 0,
                                               device->stream, (const float *)x->data + row * x->stride, x->stride,
                                               (uint32_t)x->columns, some, (lse_part *)scratch, out + row));
        if (status >= 0 && pieces > 1)
            status = pst_cuda_check(device, "log_sum_exp",
                                    PST_LAUNCH(lse_rows, dim3(rows), dim3(LSE_THREADS), 0, device->stream,
                                               (const lse_part *)scratch, (uint32_t)pieces, some, out + row));
        if (status < 0)
            return status;
    }
    return 0;
}
