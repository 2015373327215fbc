/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products by the vendor's library (blas.h): which library, which algorithm for a k, and how a job's operands come to lie as the
 * library takes them. It computes y = x * w^T and nothing else; bias and old y are added after it, in the order of mm_finish, so
 * that neither decides how a sum is made.
 *
 * In place: x, w and y at multiples of 16 bytes, rows too, and a shape that the algorithm takes. A y that is to be added to,
 * or that is not aligned so, is computed in parts elsewhere. Everything else goes block by block through scratch, all blocks
 * of one shape that was seen to work: slow, but no row of a matrix from a file or of the library's buffers lies so.
 */
#include "blas.h"

#include <errno.h>
#include <new>

enum { THREADS = 256, MOST_ELEMENTS = 1 << 30 /* of a matrix of one call: a library may count in 32 bits */ };

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint64_t round_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

/* ---- What is not the library's ---- */

/* y from sums that lie elsewhere, or in y itself. Blocks: columns; rows. */
static __global__ void __launch_bounds__(THREADS) finish_kernel(const mm_job job, const float *from, uint64_t stride)
{
    const uint32_t output = blockIdx.x * THREADS + threadIdx.x;
    if (output >= job.w.outputs)
        return;
    for (uint32_t row = blockIdx.y; row < job.rows; row += gridDim.y)
        mm_finish(job, row, output, from[row * stride + output]);
}

static void finish(cuda_device *device, const mm_job *job, const float *from, uint64_t stride)
{
    PST_LAUNCH(finish_kernel, dim3(mm_ceil(job->w.outputs, THREADS), job->rows < 4096 ? job->rows : 4096),
               dim3(THREADS), 0, device->stream, *job, from, stride);
}

/* Rows of k elements from any address, and rows of zeros behind them. A block: a row. */
static __global__ void __launch_bounds__(THREADS)
    stage_kernel(uint16_t *to, const uint8_t *from, uint64_t row_bytes, uint32_t rows, uint32_t k)
{
    const uint32_t row = blockIdx.x;
    for (uint32_t i = threadIdx.x; i < k; i += THREADS)
        to[row * (uint64_t)k + i] =
            row < rows ? (uint16_t)mm_load_16_bits(from + row * row_bytes + 2 * (uint64_t)i) : 0;
}

/* ---- A job's product ---- */

static int fail(cuda_device *device, cuda_blas *blas, int status)
{
    blas->status = status;
    return pst_cuda_fail(device, pst_vendor_blas_out_of_memory(status) ? -ENOMEM : -EIO, "%s:%d: a product by %s: %s",
                         PST_VENDOR_NAME, device->number, PST_VENDOR_BLAS_NAME,
                         pst_vendor_blas_status_text(&blas->library, status));
}

/* Scratch of the device, unless the caller has some. */
static int take_scratch(cuda_device *device, uint64_t bytes, uint8_t **scratch)
{
    void *memory = NULL;
    if (*scratch != NULL)
        return 0;
    const int status = pst_cuda_scratch(device, bytes, &memory);
    *scratch = (uint8_t *)memory;
    return status;
}

uint64_t blas_block_bytes(uint32_t k)
{
    return BLAS_BLOCK * (4 * round_up(k, 128) + 4 * BLAS_BLOCK);
}

/* The job's part from a row and an output on. */
static mm_job part_of(const mm_job *job, uint32_t row, uint32_t rows, uint32_t output, uint32_t outputs)
{
    mm_job part = *job;
    part.x += 2 * row * job->x_stride;
    part.y += row * job->y_stride + output;
    part.rows = rows;
    part.w.outputs = outputs;
    if (job->bias != NULL)
        part.bias += output * (uint64_t)(job->bias_type == PST_F32 ? 4 : 2);
    return part;
}

/* All operands by way of scratch: blocks of BLAS_BLOCK rows and outputs. */
static int multiply_blocks(cuda_device *device, cuda_blas *blas, const blas_width *width, const mm_job *job,
                           const uint8_t *w, uint8_t *scratch)
{
    const uint32_t k = job->w.k;
    const pst_vendor_blas_shape shape = {BLAS_BLOCK, BLAS_BLOCK, k, k, k, BLAS_BLOCK};
    if (int status = take_scratch(device, blas_block_bytes(k), &scratch))
        return status;
    uint16_t *staged_x = (uint16_t *)scratch, *staged_w = staged_x + BLAS_BLOCK * round_up(k, 128);
    float *staged_y = (float *)(staged_w + BLAS_BLOCK * round_up(k, 128));
    for (uint32_t output = 0; output < job->w.outputs; output += BLAS_BLOCK) {
        const uint32_t outputs = least(job->w.outputs - output, BLAS_BLOCK);
        PST_LAUNCH(stage_kernel, dim3(BLAS_BLOCK), dim3(THREADS), 0, device->stream, staged_w,
                   w + output * job->w.row_bytes, job->w.row_bytes, outputs, k);
        for (uint32_t row = 0; row < job->rows; row += BLAS_BLOCK) {
            const uint32_t rows = least(job->rows - row, BLAS_BLOCK);
            const mm_job part = part_of(job, row, rows, output, outputs);
            PST_LAUNCH(stage_kernel, dim3(BLAS_BLOCK), dim3(THREADS), 0, device->stream, staged_x, part.x,
                       2 * job->x_stride, rows, k);
            if (int status = pst_vendor_blas_multiply(&blas->library, &shape, &width->algorithm, staged_x, staged_w,
                                                      staged_y, device->stream))
                return fail(device, blas, status);
            finish(device, &part, staged_y, BLAS_BLOCK);
        }
    }
    return 0;
}

static bool is_aligned(const void *data, uint64_t stride_bytes)
{
    return (((uintptr_t)data | stride_bytes) & 15) == 0;
}

/* Whether y has to be computed elsewhere. */
static bool is_apart(const mm_job *job)
{
    return job->accumulate || !is_aligned(job->y, 4 * job->y_stride);
}

/* A part that is small enough for one call. */
static int multiply_part(cuda_device *device, cuda_blas *blas, const blas_width *width, const mm_job *job,
                         const uint8_t *w, uint8_t *scratch)
{
    const bool apart = is_apart(job);
    const uint64_t x_stride = job->rows == 1 ? round_up(job->w.k, 8) : job->x_stride;
    const uint64_t own_stride = job->rows == 1 ? round_up(job->w.outputs, 4) : job->y_stride;
    const uint64_t y_stride = apart ? round_up(job->w.outputs, 4) : own_stride;
    const pst_vendor_blas_shape shape = {job->rows, job->w.outputs, job->w.k, x_stride, job->w.k, y_stride};
    const bool fits = is_aligned(job->x, 2 * x_stride) && is_aligned(w, job->w.row_bytes) && x_stride >= job->w.k &&
                      pst_vendor_blas_fits(&blas->library, &shape, &width->algorithm);
    if (!fits)
        return multiply_blocks(device, blas, width, job, w, scratch);
    float *y = job->y;
    if (apart) {
        if (int status = take_scratch(device, job->rows * y_stride * sizeof(float), &scratch))
            return status;
        y = (float *)scratch;
    }
    if (int status = pst_vendor_blas_multiply(&blas->library, &shape, &width->algorithm, job->x, w, y, device->stream))
        return fail(device, blas, status);
    if (apart || job->bias != NULL)
        finish(device, job, y, y_stride);
    return 0;
}

int blas_multiply(cuda_device *device, cuda_blas *blas, const blas_width *width, const mm_job *job, const uint8_t *w,
                  uint8_t *scratch)
{
    uint64_t most_outputs = MOST_ELEMENTS / job->w.k / 256 * 256;
    const uint64_t stride = job->x_stride > job->y_stride ? job->x_stride : job->y_stride;
    uint64_t most_rows = MOST_ELEMENTS / (stride > 0 ? stride : 1) / 128 * 128;
    if (is_apart(job)) {
        most_outputs = least((uint32_t)most_outputs, BLAS_Y_OUTPUTS);
        const uint64_t rows = BLAS_Y_FLOATS / round_up(least(job->w.outputs, (uint32_t)most_outputs), 4) / 8 * 8;
        most_rows = most_rows < rows ? most_rows : rows;
    }
    most_rows = most_rows > 0 ? most_rows : 8;
    blas->status = 0;
    for (uint64_t output = 0; output < job->w.outputs; output += most_outputs) {
        const uint64_t outputs = job->w.outputs - output < most_outputs ? job->w.outputs - output : most_outputs;
        for (uint64_t row = 0; row < job->rows; row += most_rows) {
            const uint64_t rows = job->rows - row < most_rows ? job->rows - row : most_rows;
            const mm_job part = part_of(job, (uint32_t)row, (uint32_t)rows, (uint32_t)output, (uint32_t)outputs);
            if (int status = multiply_part(device, blas, width, &part, w + output * job->w.row_bytes, scratch))
                return status;
        }
    }
    return 0;
}

/* ---- Which library, and what of it ---- */

/* The first library that works on this device, if there is one. */
static int open_library(cuda_device *device, cuda_blas *blas)
{
    char why[160];
    for (unsigned i = 0; pst_vendor_blas_file(i) != NULL; i++) {
        if (!pst_vendor_blas_load(&blas->library, pst_vendor_blas_file(i), why, sizeof why))
            continue;
        const int status = pst_vendor_blas_make(&blas->library);
        if (status == 0)
            return 0;
        const int result = pst_vendor_blas_out_of_memory(status) ? fail(device, blas, status) : 0;
        pst_vendor_blas_free(&blas->library);
        if (result < 0)
            return result;
    }
    return 0;
}

/* What the device knows of the library; looked for at the first product that it might compute. */
static int find_library(cuda_device *device, cuda_blas **out)
{
    if (device->blas == NULL) {
        if (int status = pst_cuda_may_wait(device, "a library of products that was not looked for before"))
            return status;
        cuda_blas *blas = new (std::nothrow) cuda_blas();
        if (blas == NULL)
            return pst_cuda_fail(device, -ENOMEM, "out of memory for a library of products");
        if (int status = open_library(device, blas)) {
            delete blas;
            return status;
        }
        device->blas = blas;
    }
    *out = device->blas;
    return 0;
}

static int find_width(cuda_device *device, cuda_blas *blas, uint32_t k, const blas_width **out)
{
    for (const blas_width *width = blas->widths; width != NULL; width = width->next) {
        if (width->k == k) {
            *out = width;
            return 0;
        }
    }
    if (int status = pst_cuda_may_wait(device, "a product of a width that was not decided on before"))
        return status;
    blas_width *width = new (std::nothrow) blas_width();
    if (width == NULL)
        return pst_cuda_fail(device, -ENOMEM, "out of memory for a library of products");
    width->k = k;
    if (int status = blas_decide(device, blas, width)) {
        delete width;
        return status;
    }
    width->next = blas->widths;
    blas->widths = width;
    *out = width;
    return 0;
}

int mm_blas(cuda_device *device, const mm_job *job, const mm_table *table)
{
    const uint32_t k = job->w.k;
    cuda_blas *blas = NULL;
    const blas_width *width = NULL;
    if (job->w.form != MM_BF16 || job->first != NULL || k % 8 != 0 || k < BLAS_LEAST_K || k > BLAS_MOST_K)
        return 0;
    if (int status = find_library(device, &blas))
        return status;
    if (blas->library.handle == NULL)
        return 0;
    if (int status = find_width(device, blas, k, &width))
        return status;
    if (!width->taken)
        return 0;
    const int status = blas_multiply(device, blas, width, job, table->data[0], NULL);
    return status < 0 ? status : 1;
}

void pst_cuda_blas_close(cuda_device *device)
{
    cuda_blas *blas = device->blas;
    if (blas == NULL)
        return;
    while (blas->widths != NULL) {
        blas_width *width = blas->widths;
        blas->widths = width->next;
        delete width;
    }
    pst_vendor_blas_free(&blas->library);
    delete blas;
    device->blas = NULL;
}

void pst_cuda_blas_describe(char *text, size_t bytes)
{
    char first[160] = "", why[160];
    pst_vendor_blas library;
    for (unsigned i = 0; pst_vendor_blas_file(i) != NULL; i++) {
        if (pst_vendor_blas_load(&library, pst_vendor_blas_file(i), why, sizeof why)) {
            const uint32_t version = library.version;
            snprintf(text, bytes, "%s %u.%u.%u (%s), of each width what passes a check", PST_VENDOR_BLAS_NAME,
                     version / 10000, version / 100 % 100, version % 100, library.file);
            pst_vendor_blas_free(&library);
            return;
        }
        if (first[0] == '\0')
            snprintf(first, sizeof first, "%s", why);
    }
    snprintf(text, bytes, "own kernels%s%s", first[0] != '\0' ? ", " : "", first);
}
