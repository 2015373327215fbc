/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Norms of rows. A team of threads has a row: a warp for short ones, else a block. The row is read once and stays in
 * registers up to 16 elements of a thread; what is beyond is read again. How many threads a row has, and so the order
 * of its sums, is chosen by its columns alone.
 */
#include "rows.h"

enum { NORM_QUADS = 4 /* kept by a thread */ };

struct norm_args {
    const float *x;
    uint64_t x_stride;
    void *y;
    uint64_t y_stride, rows, columns;
    const void *w, *b; /* NULL: without */
    pst_dtype y_type, w_type, b_type;
    float eps;
};

static __device__ __forceinline__ float4 norm_load(const norm_args &n, const float *x, uint64_t column)
{
    return rows_load_4(x + column, rows_there(column, n.columns));
}

static __device__ __forceinline__ float norm_add_squares(float sum, float4 a)
{
    return fmaf(a.w, a.w, fmaf(a.z, a.z, fmaf(a.y, a.y, fmaf(a.x, a.x, sum))));
}

/* The squares of the distances to the mean; what is not there has none. */
static __device__ __forceinline__ float norm_add_deviations(float sum, float4 a, float mean, uint32_t there)
{
    const float4 d = make_float4(there > 0 ? a.x - mean : 0.0f, there > 1 ? a.y - mean : 0.0f,
                                 there > 2 ? a.z - mean : 0.0f, there > 3 ? a.w - mean : 0.0f);
    return norm_add_squares(sum, d);
}

static __device__ __forceinline__ void norm_store(const norm_args &n, void *y, uint64_t column, float4 a, float mean,
                                                  float factor)
{
    const uint32_t there = rows_there(column, n.columns);
    if (there == 0)
        return;
    a = make_float4(__fmul_rn(a.x - mean, factor), __fmul_rn(a.y - mean, factor), __fmul_rn(a.z - mean, factor),
                    __fmul_rn(a.w - mean, factor));
    if (n.w != NULL) {
        const float4 w = rows_load_weights(n.w_type, n.w, column, there);
        a = make_float4(__fmul_rn(a.x, w.x), __fmul_rn(a.y, w.y), __fmul_rn(a.z, w.z), __fmul_rn(a.w, w.w));
    }
    if (n.b != NULL) {
        const float4 b = rows_load_weights(n.b_type, n.b, column, there);
        a = make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w));
    }
    rows_store_4(n.y_type, y, column, there, a);
}

/* A row of a team of THREADS threads, of which the block has blockDim.x / THREADS; CENTERED: of the distances to the
 * mean. */
template <int THREADS, bool CENTERED>
static __global__ __launch_bounds__(THREADS > 128 ? THREADS : 128) void norm_rows(norm_args n)
{
    __shared__ float partial[2][32];
    const uint32_t member = threadIdx.x % THREADS;
    const uint64_t row = (uint64_t)blockIdx.x * (blockDim.x / THREADS) + threadIdx.x / THREADS;
    if (row >= n.rows) /* whole warps; a block of one team always has its row */
        return;
    const uint64_t step = THREADS * 4, kept = NORM_QUADS * step, first = member * 4;
    const float *x = n.x + row * n.x_stride;
    char *y = (char *)n.y + row * n.y_stride * (n.y_type == PST_F32 ? 4 : 2);
    float4 a[NORM_QUADS];
#pragma unroll
    for (int i = 0; i < NORM_QUADS; i++)
        a[i] = norm_load(n, x, first + i * step);
    float mean = 0.0f, sum = 0.0f;
    if (CENTERED) {
#pragma unroll
        for (int i = 0; i < NORM_QUADS; i++)
            sum += (a[i].x + a[i].y) + (a[i].z + a[i].w);
        for (uint64_t c = first + kept; c < n.columns; c += step) {
            const float4 rest = norm_load(n, x, c);
            sum += (rest.x + rest.y) + (rest.z + rest.w);
        }
        mean = rows_sum<THREADS>(sum, partial[0]) / (float)n.columns;
        sum = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < NORM_QUADS; i++)
        sum = CENTERED ? norm_add_deviations(sum, a[i], mean, rows_there(first + i * step, n.columns))
                       : norm_add_squares(sum, a[i]);
    for (uint64_t c = first + kept; c < n.columns; c += step) {
        const float4 rest = norm_load(n, x, c);
        sum = CENTERED ? norm_add_deviations(sum, rest, mean, rows_there(c, n.columns)) : norm_add_squares(sum, rest);
    }
    sum = rows_sum<THREADS>(sum, partial[1]);
    const float factor = 1.0f / sqrtf(sum / (float)n.columns + n.eps);
#pragma unroll
    for (int i = 0; i < NORM_QUADS; i++)
        norm_store(n, y, first + i * step, a[i], mean, factor);
    for (uint64_t c = first + kept; c < n.columns; c += step)
        norm_store(n, y, c, norm_load(n, x, c), mean, factor);
}

template <bool CENTERED> static int norm_launch(cuda_device *device, const norm_args &n)
{
    if (n.rows == 0 || n.columns == 0)
        return 0;
    const uint32_t teams = 4; /* of short rows in a block */
    const dim3 alone((uint32_t)n.rows), together((uint32_t)((n.rows + teams - 1) / teams));
    if (n.columns <= 32 * 4 * NORM_QUADS)
        return pst_cuda_check(device, "norm",
                              PST_LAUNCH((norm_rows<32, CENTERED>), together, dim3(32 * teams), 0, device->stream, n));
    if (n.columns <= 256 * 4 * NORM_QUADS)
        return pst_cuda_check(device, "norm",
                              PST_LAUNCH((norm_rows<256, CENTERED>), alone, dim3(256), 0, device->stream, n));
    return pst_cuda_check(device, "norm",
                          PST_LAUNCH((norm_rows<1024, CENTERED>), alone, dim3(1024), 0, device->stream, n));
}

static norm_args norm_of(const pst_matrix *x, const pst_weight *w, const pst_weight *b, float eps, const pst_matrix *y)
{
    norm_args n = {};
    n.x = (const float *)x->data;
    n.x_stride = x->stride;
    n.y = y->data;
    n.y_stride = y->stride;
    n.rows = x->rows;
    n.columns = x->columns;
    n.w = w->data;
    n.b = b != NULL ? b->data : NULL;
    n.y_type = y->type;
    n.w_type = w->type;
    n.b_type = b != NULL ? b->type : PST_F32;
    n.eps = eps;
    return n;
}

int pst_cuda_rms_norm(cuda_device *device, const pst_matrix *x, const pst_weight *w, float eps, const pst_matrix *y)
{
    return norm_launch<false>(device, norm_of(x, w, NULL, eps, y));
}

int pst_cuda_layer_norm(cuda_device *device, const pst_matrix *x, const pst_weight *w, const pst_weight *b, float eps,
                        const pst_matrix *y)
{
    return norm_launch<true>(device, norm_of(x, w, b, eps, y));
}
