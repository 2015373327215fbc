/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels for the emulator's test: some right, some each with one mistake that the emulator must find. */
#ifndef PST_TESTS_DEVICE_EMULATOR_KERNELS_H
#define PST_TESTS_DEVICE_EMULATOR_KERNELS_H

#include "vendor.h"

/* The number of a thread among all. */
static __device__ __forceinline__ size_t number_of_thread()
{
    const size_t block = (blockIdx.z * gridDim.y + blockIdx.y) * (size_t)gridDim.x + blockIdx.x;
    const size_t thread = (threadIdx.z * blockDim.y + threadIdx.y) * (size_t)blockDim.x + threadIdx.x;
    return block * blockDim.x * blockDim.y * blockDim.z + thread;
}

static __global__ void count_visits(unsigned *visits)
{
    atomicAdd(&visits[number_of_thread()], 1);
}

/* Reverses blocks of N numbers through shared memory; with `hasty`, without waiting for the others. */
template <int N> static __global__ void __launch_bounds__(N) reverse(const float *__restrict__ x, float *y, bool hasty)
{
    __shared__ float tile[N];
    const size_t first = (size_t)blockIdx.x * N;
    tile[threadIdx.x] = x[first + threadIdx.x];
    if (!hasty)
        __syncthreads();
    y[first + threadIdx.x] = tile[N - 1 - threadIdx.x];
}

/* What shared memory holds when a block starts, and then writes it. */
static __global__ void look_at_shared(uint32_t *static_out, uint32_t *dynamic_out)
{
    __shared__ uint32_t words[96];
    PST_DYNAMIC_SHARED(uint32_t, dynamic);
    for (int i = 0; i < 3; i++) {
        const unsigned at = threadIdx.x + 32 * i, out = blockIdx.x * 96 + at;
        static_out[out] = words[at];
        dynamic_out[out] = dynamic[at];
        words[at] = dynamic[at] = at;
    }
}

/* 12 words a lane of every collective. */
static __global__ void collectives(uint32_t *out)
{
    const uint32_t all = 0xffffffffu, x = threadIdx.x * 3 + 1;
    const int lane = threadIdx.x % 32;
    uint32_t *row = out + threadIdx.x * 12;
    row[0] = __shfl_sync(all, x, 5);
    row[1] = __shfl_sync(all, x, lane + 1, 8);
    row[2] = __shfl_xor_sync(all, x, 16);
    row[3] = __shfl_xor_sync(all, x, 3, 4);
    row[4] = __shfl_up_sync(all, x, 2u);
    row[5] = __shfl_down_sync(all, x, 2u, 16);
    row[6] = __ballot_sync(all, lane % 3 == 0);
    row[7] = (uint32_t)__any_sync(all, lane == 31);
    row[8] = (uint32_t)__all_sync(all, lane != 31);
    row[9] = __float_as_uint(__shfl_xor_sync(all, (float)x, 1));
    __syncwarp();
    row[10] = (uint32_t)__all_sync(all, 1);
    row[11] = (uint32_t)__any_sync(all, 0);
}

/* d (16 x 8) += a (16 x 16) b (8 columns of 16), a and b as rows of 16-bit elements, by one warp through shared memory:
 * a by ldmatrix x4, b by x2, or by x2_trans from 16 rows of 8. */
static __global__ void product(const uint16_t *a, const uint16_t *b, float *d, bool half, bool b_transposed)
{
    __shared__ __align__(16) uint16_t ta[16 * 24], tb[16 * 24]; /* rows of 48 bytes */
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    for (int i = lane; i < 256; i += 32)
        ta[i / 16 * 24 + i % 16] = a[i];
    for (int i = lane; i < 128; i += 32) {
        const int k = i % 16, n = i / 16;
        tb[b_transposed ? k * 24 + n : n * 24 + k] = b[i];
    }
    __syncthreads();
    uint32_t fa[4], fb[2];
    pst_ldmatrix_x4(fa, &ta[lane % 16 * 24 + lane / 16 * 8]);
    if (b_transposed)
        pst_ldmatrix_x2_trans(fb, &tb[lane % 16 * 24]);
    else
        pst_ldmatrix_x2(fb, &tb[lane % 8 * 24 + lane / 8 % 2 * 8]);
    float sum[4];
    for (int i = 0; i < 4; i++)
        sum[i] = d[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
    if (half)
        pst_mma_f16(sum, fa, fb);
    else
        pst_mma_bf16(sum, fa, fb);
    for (int i = 0; i < 4; i++)
        d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

/* Four matrices of 8 x 8 from 32 rows of 16 bytes: each lane's four words. */
static __global__ void load_four(const uint4 *rows, uint32_t *out, bool transposed)
{
    __shared__ uint4 tile[32];
    tile[threadIdx.x] = rows[threadIdx.x];
    __syncthreads();
    if (transposed)
        pst_ldmatrix_x4_trans(out + threadIdx.x * 4, &tile[threadIdx.x]);
    else
        pst_ldmatrix_x4(out + threadIdx.x * 4, &tile[threadIdx.x]);
}

/* Two groups of copies; what is there after `waits` waits: 0 none, 1 for the first group, 2 for both. */
static __global__ void copies(const uint4 *x, uint4 *y, int waits)
{
    __shared__ uint4 tile[3 * 32];
    const unsigned t = threadIdx.x;
    pst_copy_async_16(&tile[t], &x[t], true);
    pst_copy_async_commit();
    pst_copy_async_16(&tile[32 + t], &x[32 + t], true);
    pst_copy_async_16(&tile[64 + t], &x[64 + t], false);
    pst_copy_async_commit();
    if (waits == 1)
        pst_copy_async_wait<1>();
    if (waits == 2)
        pst_copy_async_wait<0>();
    for (unsigned i = t; i < 96; i += 32) /* each its own: no barrier needed */
        y[i] = tile[i];
    pst_copy_async_wait<0>();
}

/* Sums of `tiles` times 64 numbers by 64 threads, through two buffers that are filled by turns. `hasty`: a buffer is filled again
 * before all have read it. */
static __global__ void two_buffers(const uint4 *x, uint32_t *sums, uint32_t tiles, bool hasty)
{
    __shared__ uint4 buffers[2][64];
    const uint32_t t = threadIdx.x;
    uint32_t sum = 0;
    pst_copy_async_16(&buffers[0][t], &x[t], true);
    pst_copy_async_commit();
    for (uint32_t tile = 0; tile < tiles; tile++) {
        if (hasty && tile + 1 < tiles)
            pst_copy_async_16(&buffers[(tile + 1) % 2][t], &x[(tile + 1) * 64 + t], true);
        if (hasty)
            pst_copy_async_commit(), pst_copy_async_wait<1>();
        else
            pst_copy_async_wait<0>();
        __syncthreads();
        if (!hasty && tile + 1 < tiles)
            pst_copy_async_16(&buffers[(tile + 1) % 2][t], &x[(tile + 1) * 64 + t], true);
        if (!hasty)
            pst_copy_async_commit();
        for (uint32_t i = 0; i < 64; i++)
            sum += buffers[tile % 2][i].x * (t + 1);
    }
    pst_copy_async_wait<0>();
    sums[t] = sum;
}

/* Every block adds one to what the block before it left, as if there was an order of blocks. */
static __global__ void follow(unsigned *x)
{
    x[blockIdx.x + 1] = x[blockIdx.x] + 1;
}

/* ---- Mistakes ---- */

typedef enum mistake {
    LEAVES_OTHERS,     /* some leave, others wait for all */
    LEAVES_LATER,      /* the other order */
    TWO_BARRIERS,      /* half at one, half at another */
    LEAVES_WARP,       /* a lane leaves, the others shuffle */
    TWO_SHUFFLES,      /* lanes at different ones */
    NEVER_COMES,       /* a lane waits for the block while its warp waits for it */
    HALF_MASK,         /* not all lanes named */
    FORGOTTEN_COPY,    /* leaves with a copy under way */
    MISALIGNED_LOAD,   /* 16 bytes at an address of 4 */
    MISALIGNED_MATRIX, /* ldmatrix likewise */
    NOT_SHARED,        /* ldmatrix from global memory */
    MISALIGNED_COPY,   /* an asynchronous copy likewise */
    BEYOND_ARRAY,      /* an index that its array does not have */
    LONG_SHIFT,        /* by as many bits as there are */
    MISTAKES
} mistake;

static __global__ void make_mistake(int which, float *x, float *y)
{
    __shared__ __align__(16) float tile[64];
    const unsigned t = threadIdx.x;
    uint32_t r[4] = {0, 0, 0, 0};
    float value = 1;
    for (unsigned i = t; i < 64; i += blockDim.x)
        tile[i] = 0;
    __syncthreads();
    switch (which) {
    case LEAVES_OTHERS:
    case LEAVES_LATER:
        if ((t < 32) == (which == LEAVES_OTHERS))
            return;
        __syncthreads();
        break;
    case TWO_BARRIERS:
        if (t < 32)
            __syncthreads();
        else
            __syncthreads();
        break;
    case LEAVES_WARP:
        if (t == 7)
            return;
        value = __shfl_xor_sync(0xffffffffu, value, 1);
        break;
    case TWO_SHUFFLES:
        if (t % 2 == 0)
            value = __shfl_xor_sync(0xffffffffu, value, 1);
        else
            value = __shfl_xor_sync(0xffffffffu, value, 1);
        break;
    case NEVER_COMES:
        if (t == 0)
            __syncthreads();
        else
            __syncwarp();
        break;
    case HALF_MASK: value = __shfl_xor_sync(0xffffu, value, 1); break;
    case FORGOTTEN_COPY: pst_copy_async_16(tile, x, true); break;
    case MISALIGNED_LOAD: value = reinterpret_cast<const float4 *>(x + 1)->y; break;
    case MISALIGNED_MATRIX: pst_ldmatrix_x4(r, tile + 1); break;
    case NOT_SHARED: pst_ldmatrix_x4(r, x); break;
    case MISALIGNED_COPY:
        pst_copy_async_16(tile, x + 1, true);
        pst_copy_async_wait<0>();
        break;
    case BEYOND_ARRAY: value = tile[t + 1]; break;
    case LONG_SHIFT: value = (float)(1u << (t + 1)); break;
    default: break;
    }
    y[t] = value + (float)r[0];
}

/* Writes one number before or behind what it was given. */
static __global__ void write_beyond(float *x, long at)
{
    x[at] = 1;
}

static __global__ void add_one(float *x, int n)
{
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x)
        x[i] += 1;
}

#endif
