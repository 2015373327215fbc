/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an algorithm of the vendor's library has to show before it computes anything here (blas.h), for every k of its own: on
 * numbers of which all sums are exact, it gives what the plugin's own kernels give; on others it is near them; and an
 * output's bits are the same in other cuts of w's rows, with fewer rows of x, elsewhere in memory and in a larger product. Every
 * product goes the way of a job's (blas_multiply). The numbers follow from their places alone: a device always decides alike.
 *
 * How near: in either order of terms a partial sum of k random ones, each of size 1/3 (their standard deviation), is about
 * sqrt(k)/3, and an addition is off by 2^-23 of that at most, where it cuts off, k additions by k * sqrt(k)/3 * 2^-23 if all err
 * alike. Tensor cores add at least 16 terms at a time and are far below; a sum that was kept in 16 bits is not.
 */
#include "blas.h"

#include <errno.h>
#include <math.h>

enum {
    THREADS = 256,
    CANDIDATES = 6,    /* of the library's proposals, in its order */
    USUAL_SIZE = 4096, /* rows and outputs of the product that it is asked about */
    Y_STRIDE = BLAS_CHECK_OUTPUTS + 8,
    Y_BYTES = (BLAS_CHECK_ROWS * Y_STRIDE * 4 + 255) / 256 * 256 + 256,
    VERDICT_BYTES = 256
};

enum { DIFFERS = 1, IS_FAR = 2 };

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Numbers of a place: whole ones up to 8 (sums of their products stay below 2^24, exact in any order), or -1..1. */
static __device__ __forceinline__ uint16_t number_at(uint32_t row, uint32_t column, uint32_t seed, bool whole)
{
    uint32_t bits = (row * 0x9e3779b1u) ^ (column * 0x85ebca77u) ^ seed;
    bits = (bits ^ (bits >> 15)) * 0x2c1b3c6du;
    bits = (bits ^ (bits >> 12)) * 0x297a2d39u;
    bits ^= bits >> 15;
    const float whole_number = (float)(int32_t)(bits % 17) - 8.0f;
    return pst_f32_to_bf16(whole ? whole_number : (float)(int32_t)(bits >> 8) * 0x1p-23f - 1.0f);
}

/* A block: a row. */
static __global__ void __launch_bounds__(THREADS)
    fill_kernel(uint16_t *to, uint64_t stride, uint32_t k, uint32_t first_row, uint32_t seed, bool whole)
{
    for (uint32_t i = threadIdx.x; i < k; i += THREADS)
        to[blockIdx.x * stride + i] = number_at(first_row + blockIdx.x, i, seed, whole);
}

/* A block: a row. limit < 0: bits are compared. */
static __global__ void __launch_bounds__(THREADS)
    compare_kernel(const float *a, uint64_t a_stride, const float *b, uint64_t b_stride, uint32_t columns, float limit,
                   uint32_t *verdict)
{
    const float *mine = a + blockIdx.x * a_stride, *other = b + blockIdx.x * b_stride;
    for (uint32_t i = threadIdx.x; i < columns; i += THREADS) {
        const bool near =
            limit < 0 ? __float_as_uint(mine[i]) == __float_as_uint(other[i]) : fabsf(mine[i] - other[i]) <= limit;
        if (!near)
            atomicOr(verdict, limit < 0 ? (uint32_t)DIFFERS : (uint32_t)IS_FAR);
    }
}

/* Where things are in scratch. */
struct check {
    cuda_device *device;
    cuda_blas *blas;
    const blas_width *width;
    uint32_t k, large;
    uint32_t *verdict;
    float *base, *other; /* results of the small product */
    uint8_t *blocks;     /* for multiplying: scratch */
    uint8_t *x, *w;      /* of the small product; x is the beginning of what the large one has */
};

struct operands {
    uint8_t *x, *w;
    uint64_t x_stride;
};

static void fill(const check *c, uint8_t *to, uint64_t stride, uint32_t rows, uint32_t first_row, uint32_t seed,
                 bool whole)
{
    PST_LAUNCH(fill_kernel, dim3(rows), dim3(THREADS), 0, c->device->stream, (uint16_t *)to, stride, c->k, first_row,
               seed, whole);
}

static void fill_both(const check *c, const operands *o, uint32_t rows, uint32_t outputs, bool whole)
{
    fill(c, o->x, o->x_stride, rows, 0, 0x5eed, whole);
    fill(c, o->w, c->k, outputs, 0, 0xfeed5eed, whole);
}

static void compare(const check *c, const float *a, uint64_t a_stride, const float *b, uint64_t b_stride, uint32_t rows,
                    uint32_t columns, float limit)
{
    PST_LAUNCH(compare_kernel, dim3(rows), dim3(THREADS), 0, c->device->stream, a, a_stride, b, b_stride, columns,
               limit, c->verdict);
}

static void same(const check *c, const float *other, uint64_t stride)
{
    compare(c, c->base, Y_STRIDE, other, stride, BLAS_CHECK_ROWS, BLAS_CHECK_OUTPUTS, -1);
}

static mm_job job_of(const check *c, const operands *o, uint32_t rows, uint32_t outputs, float *y, uint64_t y_stride)
{
    mm_job job = {};
    job.x = o->x;
    job.x_stride = o->x_stride;
    job.x_fast = (((uintptr_t)o->x | 2 * o->x_stride) & 15) == 0;
    job.y = y;
    job.y_stride = y_stride;
    job.rows = rows;
    job.groups = 1;
    job.w.form = MM_BF16;
    job.w.outputs = outputs;
    job.w.k = c->k;
    job.w.row_bytes = 2 * (uint64_t)c->k;
    job.w.group = 1;
    job.w.align = 16;
    job.w.fast = ((uintptr_t)o->w & 15) == 0;
    job.units = mm_ceil(c->k, MM_UNIT);
    job.range_units = mm_ceil(job.units, MM_RANGES);
    return job;
}

static int multiply(const check *c, const operands *o, uint32_t rows, uint32_t outputs, float *y, uint64_t y_stride)
{
    const mm_job job = job_of(c, o, rows, outputs, y, y_stride);
    return blas_multiply(c->device, c->blas, c->width, &job, o->w, c->blocks);
}

static int multiply_own(const check *c, const operands *o, float *y)
{
    const mm_job job = job_of(c, o, BLAS_CHECK_ROWS, BLAS_CHECK_OUTPUTS, y, Y_STRIDE);
    mm_table table = {};
    table.data[0] = o->w;
    return mm_few(c->device, &job, &table);
}

/* Both kinds of numbers; leaves the result of the second in `base`. */
static int check_against_own(const check *c)
{
    const operands o = {c->x, c->w, c->k};
    for (int whole = 1; whole >= 0; whole--) {
        fill_both(c, &o, BLAS_CHECK_ROWS, BLAS_CHECK_OUTPUTS, whole);
        if (int status = multiply_own(c, &o, c->other))
            return status;
        if (int status = multiply(c, &o, BLAS_CHECK_ROWS, BLAS_CHECK_OUTPUTS, c->base, Y_STRIDE))
            return status;
        const float limit = (float)c->k * sqrtf((float)c->k) / 3 * 0x1p-23f;
        compare(c, c->base, Y_STRIDE, c->other, Y_STRIDE, BLAS_CHECK_ROWS, BLAS_CHECK_OUTPUTS, whole ? -1 : limit);
    }
    return 0;
}

/* The same numbers again, in pieces of w's rows or of x's. */
static int check_pieces(const check *c, bool of_x)
{
    const uint32_t check_rows = BLAS_CHECK_ROWS, check_outputs = BLAS_CHECK_OUTPUTS;
    const uint32_t all = of_x ? check_rows : check_outputs;
    const uint32_t lengths[] = {1, 7, of_x ? all / 3 : all / 3 + 1, 0};
    if (int status = pst_cuda_check(c->device, "a fill", pst_vendor_fill(c->other, 0xff, Y_BYTES, c->device->stream)))
        return status;
    for (uint32_t at = 0, piece = 0; at < all; at += lengths[piece++]) {
        const uint32_t count = lengths[piece] > 0 ? lengths[piece] : all - at;
        operands o = {c->x, c->w, c->k};
        if (of_x)
            o.x += 2 * at * o.x_stride;
        else
            o.w += 2 * at * (uint64_t)c->k;
        const int status = multiply(c, &o, of_x ? count : check_rows, of_x ? check_outputs : count,
                                    c->other + (of_x ? at * Y_STRIDE : at), Y_STRIDE);
        if (status < 0)
            return status;
        if (lengths[piece] == 0)
            break;
    }
    same(c, c->other, Y_STRIDE);
    return 0;
}

/* Everything some bytes further, with other strides; at odd addresses it goes through blocks. */
static int check_places(const check *c, uint32_t shift)
{
    const operands o = {c->x + shift, c->w + shift, c->k + 8};
    float *y = c->other + shift / 4;
    fill_both(c, &o, BLAS_CHECK_ROWS, BLAS_CHECK_OUTPUTS, false);
    if (int status = multiply(c, &o, BLAS_CHECK_ROWS, BLAS_CHECK_OUTPUTS, y, Y_STRIDE - 4))
        return status;
    same(c, y, Y_STRIDE - 4);
    return 0;
}

/* A product of as many rows and outputs as there is memory for: its first ones and its last ones. In place, where there is no room
 * for blocks, or the algorithm is refused. */
static int check_large(const check *c)
{
    const uint32_t size = c->large, few = least(BLAS_CHECK_ROWS, 64), far = size - few;
    const uint64_t bytes = 2 * (uint64_t)c->k * size;
    operands o = {c->blocks, c->blocks + bytes, c->k};
    float *y = (float *)(c->blocks + 2 * bytes);
    fill_both(c, &o, size, size, false);
    const pst_vendor_blas_shape shape = {size, size, c->k, c->k, c->k, size};
    const pst_vendor_blas_shape last = {few, few, c->k, c->k, c->k, Y_STRIDE};
    if (!pst_vendor_blas_fits(&c->blas->library, &shape, &c->width->algorithm) ||
        !pst_vendor_blas_fits(&c->blas->library, &last, &c->width->algorithm))
        return pst_cuda_check(c->device, "a fill", pst_vendor_fill(c->verdict, 0xff, 4, c->device->stream));
    if (int status = multiply(c, &o, size, size, y, size))
        return status;
    compare(c, c->base, Y_STRIDE, y, size, least(BLAS_CHECK_ROWS, size), least(BLAS_CHECK_OUTPUTS, size), -1);
    o.x += 2 * far * (uint64_t)c->k;
    o.w += 2 * far * (uint64_t)c->k;
    if (int status = multiply(c, &o, few, few, c->other, Y_STRIDE))
        return status;
    compare(c, c->other, Y_STRIDE, y + far * (uint64_t)size + far, size, few, few, -1);
    return 0;
}

static int run_check(const check *c)
{
    if (int status = check_against_own(c))
        return status;
    if (int status = check_pieces(c, false))
        return status;
    if (int status = check_pieces(c, true))
        return status;
    if (int status = check_places(c, 16))
        return status;
    if (int status = check_places(c, 2))
        return status;
    return check_large(c);
}

/* Waits. */
static int read_verdict(const check *c, uint32_t *out)
{
    cuda_device *device = c->device;
    if (int status = pst_cuda_check(device, "checking products", pst_vendor_last_error()))
        return status;
    if (int status = pst_cuda_check(device, "a copy", pst_vendor_copy(out, c->verdict, 4, device->stream)))
        return status;
    return pst_cuda_check(device, "checking products", pst_vendor_stream_synchronize(device->stream));
}

static uint64_t large_bytes(uint32_t k, uint64_t size)
{
    return 4 * size * k + 4 * size * size;
}

static int place(check *c)
{
    const uint64_t fixed = VERDICT_BYTES + 2 * (uint64_t)Y_BYTES, blocks = (blas_block_bytes(c->k) + 255) / 256 * 256;
    const uint64_t row = 2 * ((uint64_t)c->k + 8), x = (row * BLAS_CHECK_ROWS + 511) / 256 * 256;
    const uint64_t small = blocks + x + row * BLAS_CHECK_OUTPUTS + 256;
    const uint64_t most = BLAS_MOST_BYTES, usual = (uint64_t)c->k * BLAS_BYTES_PER_K;
    const uint64_t bound = usual < most ? usual : most;
    c->large = BLAS_LARGE;
    while (c->large > 256 && fixed + large_bytes(c->k, c->large) > bound)
        c->large -= 64;
    const uint64_t large = large_bytes(c->k, c->large);
    void *memory;
    if (int status = pst_cuda_scratch(c->device, fixed + (small > large ? small : large), &memory))
        return status;
    uint8_t *at = (uint8_t *)memory;
    c->verdict = (uint32_t *)at;
    c->base = (float *)(at + VERDICT_BYTES);
    c->other = (float *)(at + VERDICT_BYTES + Y_BYTES);
    c->blocks = at + fixed;
    c->x = c->blocks + blocks;
    c->w = c->x + x;
    return 0;
}

/* 1: passed; 0: refused; or an error that says nothing about the algorithm. */
static int try_algorithm(check *c)
{
    uint32_t verdict = 0;
    if (int status = place(c))
        return status;
    if (int status =
            pst_cuda_check(c->device, "a fill", pst_vendor_fill(c->verdict, 0, VERDICT_BYTES, c->device->stream)))
        return status;
    c->blas->status = 0;
    const int status = run_check(c);
    const bool is_librarys = c->blas->status != 0 && !pst_vendor_blas_out_of_memory(c->blas->status);
    if (status < 0)
        return is_librarys ? 0 : status;
    if (int failed = read_verdict(c, &verdict))
        return failed;
    return verdict == 0;
}

int blas_decide(cuda_device *device, cuda_blas *blas, blas_width *width)
{
    const uint64_t k = width->k;
    const pst_vendor_blas_shape usual = {USUAL_SIZE, USUAL_SIZE, k, k, k, USUAL_SIZE};
    pst_blas_algorithm candidates[CANDIDATES];
    int count = 0;
    width->taken = false;
    const int failed = pst_vendor_blas_find(&blas->library, &usual, candidates, CANDIDATES, &count);
    if (pst_vendor_blas_out_of_memory(failed))
        return pst_cuda_fail(device, -ENOMEM, "%s:%d: %s: out of memory", PST_VENDOR_NAME, device->number,
                             PST_VENDOR_BLAS_NAME);
    check c = {};
    c.device = device;
    c.blas = blas;
    c.width = width;
    c.k = width->k;
    for (int i = 0; i < count && failed == 0; i++) {
        width->algorithm = candidates[i];
        const int status = try_algorithm(&c);
        if (status < 0)
            return status;
        if (status == 1) {
            width->taken = true;
            break;
        }
    }
    device->error[0] = '\0'; /* what an algorithm that was refused left there is no failure of the device */
    return 0;
}
