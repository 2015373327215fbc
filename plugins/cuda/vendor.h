/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vendor of the accelerator, behind one header: kernels and the plugin's host side name nothing of a vendor but what
 * is listed here, so that a second vendor is one more header of this kind.
 *
 * Language. Kernels are C++17 with the words that CUDA and HIP share: __global__, __device__, __forceinline__, __shared__
 * (static arrays), __launch_bounds__, threadIdx, blockIdx, blockDim, gridDim, dim3, __syncthreads, __syncwarp,
 * __shfl_{,xor_,up_,down_}sync, __ballot_sync, __any_sync, __all_sync (all 32 lanes, mask 0xffffffffu), atomicAdd,
 * atomicMax, atomicMin, atomicExch, atomicCAS, atomicOr, __threadfence, __ldg, __popc, __ffs, __clz, __float_as_uint,
 * __uint_as_float, __float_as_int, __int_as_float, __fmul_rn, __fadd_rn, __fdiv_rn, __fmaf_rn, min, max, the functions of
 * math.h, float2, float4, int2, int4, uint2, uint3, uint4 and their make_*. And:
 *
 *   PST_DYNAMIC_SHARED(type, name)       declares `type *name`: the block's dynamic shared memory, 16-byte aligned
 *   PST_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)   a statement or a pst_vendor_error; an instance of a
 *                                        template goes in parentheses: PST_LAUNCH((rows<64>), ...). More than 48 KiB of
 *                                        dynamic shared memory is asked for by itself.
 *   pst_f16_to_f32, pst_f32_to_f16, pst_bf16_to_f32, pst_f32_to_bf16, pst_e4m3_to_f32     numbers as raw bits
 *   pst_f32_to_bf16_pair                 two at once, the first in the low half: one instruction where there is one
 *   pst_mma_bf16, pst_mma_f16            d += a * b, 16 x 8 x 16, by a whole warp; d f32
 *   pst_ldmatrix_x4, _x2, _x4_trans, _x2_trans   8 x 8 matrices of 16-bit elements from shared memory
 *   pst_copy_async_16, pst_copy_async_commit, pst_copy_async_wait<N>   from global to shared memory behind the kernel's back
 *
 * Rules. Every thread of a block reaches every __syncthreads, all lanes of a warp reach every collective (of blocks whose
 * size is a multiple of 32), at the same place of the program. The emulator checks this and more (emulated/).
 * After code in which lanes go different ways, __syncwarp comes before the tensor cores and ldmatrix, which bring no lanes
 * together themselves: the emulator cannot tell.
 *
 * Fragments, with g = lane / 4, t = lane % 4, two 16-bit elements per word, the lower column in the low half (PTX ISA,
 * "Matrix Fragments for mma.m16n8k16"):
 *   a[0] (row g, k 2t..)  a[1] (row g + 8, k 2t..)  a[2] (row g, k 2t + 8..)  a[3] (row g + 8, k 2t + 8..)
 *   b[0] (k 2t.., column g)  b[1] (k 2t + 8.., column g)
 *   d[0] (g, 2t)  d[1] (g, 2t + 1)  d[2] (g + 8, 2t)  d[3] (g + 8, 2t + 1)
 * ldmatrix: lanes 8i..8i + 7 name the eight rows (16 bytes each, aligned to 16) of matrix i; r[i] becomes elements
 * (g, 2t), (g, 2t + 1) of matrix i; with _trans elements (2t, g), (2t + 1, g).
 *
 * Host side: pst_vendor_stream, pst_vendor_event, pst_vendor_graph, pst_vendor_error and the pst_vendor_* functions (at the end of each
 * vendor's header, the same list in all of them); a stream is never NULL.
 */
#ifndef PST_CUDA_VENDOR_H
#define PST_CUDA_VENDOR_H

#include <stddef.h>
#include <stdint.h>

/* What a vendor says of a device. */
typedef struct pst_vendor_properties {
    char model[128];
    char pci[32]; /* "0000:01:00.0"; "": none */
    int compute_major, compute_minor;
    int processors;
    size_t shared_bytes;            /* of shared memory that a block can have at most */
    size_t cache_bytes;             /* of the second level */
    double memory_bytes_per_second; /* clock and width of its memory; 0: not known */
} pst_vendor_properties;

#if defined(PST_EMULATED)
#include "emulated/vendor_emulated.h"
#else
#include "vendor_cuda.h"
#endif

/* One byte E4M3: sign, 4 bits of exponent (bias 7), 3 of fraction; no infinities, all ones is not a number. The bits moved
 * to an f32's places are 2^120 too small, also where they are subnormal. */
static __device__ __forceinline__ float pst_e4m3_to_f32(uint8_t x)
{
    const uint32_t sign = (uint32_t)(x & 0x80) << 24, rest = x & 0x7f;
    const float value = __uint_as_float(rest << 20) * 0x1p120f;
    return __uint_as_float(sign | (rest == 0x7f ? 0x7fc00000u : __float_as_uint(value)));
}

#endif
