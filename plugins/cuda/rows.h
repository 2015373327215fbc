/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernels that go through rows share: elements in fours whatever their type and address, how threads are laid
 * over columns and rows, and sums and maxima over a warp or a block.
 *
 * A thread has four neighbouring elements, in one load of 16 bytes (8 for 16-bit types) where the address allows it.
 * Which elements a thread has does not depend on the address, so that sums are added in the same order wherever rows
 * lie.
 */
#ifndef PST_CUDA_ROWS_H
#define PST_CUDA_ROWS_H

#include "cuda_device.h"

/* ---- Elements ---- */

static __device__ __forceinline__ bool rows_aligned(const void *p, uint32_t bytes)
{
    return ((uintptr_t)p & (bytes - 1)) == 0;
}

/* At any byte address. */
static __device__ __forceinline__ uint16_t rows_load_16(const void *p)
{
    if (rows_aligned(p, 2))
        return *(const uint16_t *)p;
    const uint8_t *b = (const uint8_t *)p;
    return (uint16_t)(b[0] | b[1] << 8);
}

static __device__ __forceinline__ float rows_load_32(const void *p)
{
    if (rows_aligned(p, 4))
        return *(const float *)p;
    const uint8_t *b = (const uint8_t *)p;
    return __uint_as_float(b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24);
}

static __device__ __forceinline__ void rows_store_16(void *p, uint16_t bits)
{
    if (rows_aligned(p, 2)) {
        *(uint16_t *)p = bits;
        return;
    }
    ((uint8_t *)p)[0] = (uint8_t)bits;
    ((uint8_t *)p)[1] = (uint8_t)(bits >> 8);
}

/* One element of type F32, F16 or BF16. */
static __device__ __forceinline__ float rows_load(pst_dtype type, const void *base, uint64_t index)
{
    if (type == PST_F32)
        return rows_load_32((const char *)base + index * 4);
    const uint16_t bits = rows_load_16((const char *)base + index * 2);
    return type == PST_BF16 ? pst_bf16_to_f32(bits) : pst_f16_to_f32(bits);
}

static __device__ __forceinline__ float4 rows_from_16(pst_dtype type, uint2 u)
{
    const uint16_t a = (uint16_t)u.x, b = (uint16_t)(u.x >> 16), c = (uint16_t)u.y, d = (uint16_t)(u.y >> 16);
    if (type == PST_BF16)
        return make_float4(pst_bf16_to_f32(a), pst_bf16_to_f32(b), pst_bf16_to_f32(c), pst_bf16_to_f32(d));
    return make_float4(pst_f16_to_f32(a), pst_f16_to_f32(b), pst_f16_to_f32(c), pst_f16_to_f32(d));
}

/* Activations p[0..3], the first `there` of them; zeros for the others. `there` may be 0. */
static __device__ __forceinline__ float4 rows_load_4(const float *p, uint32_t there)
{
    if (there >= 4 && rows_aligned(p, 16))
        return *(const float4 *)p;
    float4 a = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1 /* seldom needed: keep it short */
    for (uint32_t i = there > 0 ? 4 : 0; i-- > 0;)
        a = make_float4(i < there ? p[i] : 0.0f, a.x, a.y, a.z);
    return a;
}

/* The same of elements index..index+3 of type F32, F16 or BF16 at any byte address. */
static __device__ __forceinline__ float4 rows_load_weights(pst_dtype type, const void *base, uint64_t index,
                                                           uint32_t there)
{
    const char *p = (const char *)base + index * (type == PST_F32 ? 4 : 2);
    if (there >= 4 && rows_aligned(p, type == PST_F32 ? 16 : 8))
        return type == PST_F32 ? *(const float4 *)p : rows_from_16(type, *(const uint2 *)p);
    float4 a = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
    for (uint32_t i = there > 0 ? 4 : 0; i-- > 0;)
        a = make_float4(i < there ? rows_load(type, p, i) : 0.0f, a.x, a.y, a.z);
    return a;
}

/* To F32 or BF16 (to nearest even), at addresses aligned to the element. */
static __device__ __forceinline__ void rows_store_4(pst_dtype type, void *base, uint64_t index, uint32_t there,
                                                    float4 a)
{
    if (type == PST_F32) {
        float *p = (float *)base + index;
        if (there >= 4 && rows_aligned(p, 16)) {
            *(float4 *)p = a;
            return;
        }
        if (there > 0)
            p[0] = a.x;
        if (there > 1)
            p[1] = a.y;
        if (there > 2)
            p[2] = a.z;
        if (there > 3)
            p[3] = a.w;
        return;
    }
    uint16_t *p = (uint16_t *)base + index;
    const uint16_t x = pst_f32_to_bf16(a.x), y = pst_f32_to_bf16(a.y), z = pst_f32_to_bf16(a.z),
                   w = pst_f32_to_bf16(a.w);
    if (there >= 4 && rows_aligned(p, 8)) {
        *(uint2 *)p = make_uint2(x | (uint32_t)y << 16, z | (uint32_t)w << 16);
        return;
    }
    if (there > 0)
        p[0] = x;
    if (there > 1)
        p[1] = y;
    if (there > 2)
        p[2] = z;
    if (there > 3)
        p[3] = w;
}

/* How many of the four columns from `column` on there are. */
static __device__ __forceinline__ uint32_t rows_there(uint64_t column, uint64_t columns)
{
    const uint64_t rest = column < columns ? columns - column : 0;
    return rest < 4 ? (uint32_t)rest : 4;
}

/* ---- Threads over an array of width x height x depth items ---- */

enum { ROWS_THREADS = 256 };

typedef struct rows_cut {
    dim3 grid, block;
} rows_cut;

/* For kernels that take item x once, and y and z in steps of the grid: the grid's y and z have limits. width > 0. */
static inline rows_cut rows_cut_of(uint64_t width, uint64_t height, uint64_t depth)
{
    uint32_t x = 1;
    while (x < width && x < ROWS_THREADS)
        x *= 2;
    const uint32_t y = ROWS_THREADS / x;
    const uint64_t most = 65535, tall = (height + y - 1) / y;
    rows_cut cut;
    cut.block = dim3(x, y, 1);
    cut.grid = dim3((uint32_t)((width + x - 1) / x), (uint32_t)(tall < most ? tall : most),
                    (uint32_t)(depth < most ? depth : most));
    return cut;
}

/* Launches a kernel that takes one struct of arguments. A code as operators return it. */
#define ROWS_LAUNCH(device, kernel, cut, args)                                                                         \
    pst_cuda_check((device), #kernel, PST_LAUNCH((kernel), (cut).grid, (cut).block, 0, (device)->stream, (args)))

/* A kernel's item, and its steps. */
#define ROWS_X()  ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x)
#define ROWS_Y()  ((uint64_t)blockIdx.y * blockDim.y + threadIdx.y)
#define ROWS_DY() ((uint64_t)gridDim.y * blockDim.y)

/* ---- Over a warp, over a block ---- */

#define ROWS_WARP 0xffffffffu

/* Every lane gets the same bits: each step adds two numbers, whose order does not matter. */
static __device__ __forceinline__ float rows_warp_sum(float a)
{
    for (int step = 16; step > 0; step /= 2)
        a += __shfl_xor_sync(ROWS_WARP, a, step);
    return a;
}

/* The sum over THREADS threads (a power of two, at least 32) for all of them. partial: THREADS / 32 floats of shared
 * memory, for this sum alone. */
template <int THREADS> static __device__ __forceinline__ float rows_sum(float a, float *partial)
{
    a = rows_warp_sum(a);
    if (THREADS > 32) {
        const uint32_t lane = threadIdx.x % 32;
        if (lane == 0)
            partial[threadIdx.x / 32] = a;
        __syncthreads();
        a = rows_warp_sum(lane < THREADS / 32 ? partial[lane] : 0.0f);
    }
    return a;
}

#endif
