/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A product with weights whose rows are outputs, as its kernels take it: one matrix, or a table of matrices of one shape
 * with rows of their own (grouped). Filled in by matmul.cu.
 *
 * Order of a sum. With bf16 inputs (matmul_few.cu, matmul_tiles.cu): k is cut into MM_RANGES ranges of whole units; each is a
 * chain of tensor products in rising order (within a unit in the order of matmul_weights.h); the ranges' sums are added in
 * rising order. With f32 inputs (matmul_f32.cu): MM_CHAINS chains of fused multiply-adds, each of every MM_CHAINS-th granule
 * of 8 columns, added as a tree. So the bits of an output depend on its row of x, its row of weights, k and the types alone,
 * not even on how many rows of x there are: kernels are chosen by speed, for every size of job and device.
 */
#ifndef PST_CUDA_MATMUL_JOB_H
#define PST_CUDA_MATMUL_JOB_H

#include "cuda_device.h"
#include "matmul_weights.h"

enum {
    MM_RANGES = 8,
    MM_CHAINS = 16,
    MM_THREADS = 256,
    MM_FEW_ROWS = 8, /* of x that matmul_few.cu takes at a time */
    MM_TABLE = 128   /* matrices of a launch: the table is a kernel's parameter, of 4 KiB at most */
};

struct mm_table {
    const uint8_t *data[MM_TABLE], *scales[MM_TABLE];
};

struct mm_job {
    const uint8_t *x; /* F32 or BF16 */
    uint64_t x_stride;
    bool x_fast; /* rows begin at multiples of 16 bytes */
    bool accumulate;
    float *y;
    uint64_t y_stride;
    const uint8_t *bias; /* any address */
    pst_dtype bias_type;
    uint32_t rows;         /* of x, all groups' together */
    const uint32_t *first; /* NULL: one matrix; else rows first[g].. are of matrix g of the table */
    uint32_t groups;       /* in the table */
    uint32_t units, range_units;
    float *partial; /* [range][row][output]: what each range sums to; NULL: products go to y */
    mm_weights w;
};

/* A matrix and its rows of x. */
struct mm_group {
    const uint8_t *data, *scales;
    uint32_t begin, end;
};

/* The `slot`th matrix of the table that has rows, or false. The same for all threads of a block. */
static __device__ __forceinline__ bool mm_find_group(const mm_job &job, const mm_table &table, uint32_t slot,
                                                     mm_group *out)
{
    if (job.first == NULL) {
        *out = {table.data[0], table.scales[0], 0, job.rows};
        return slot == 0;
    }
    for (uint32_t base = 0; base < job.groups; base += 32) {
        const uint32_t mine = base + threadIdx.x % 32;
        bool has = false;
        if (mine < job.groups && table.data[mine] != NULL)
            has = job.first[mine] < job.first[mine + 1];
        unsigned found = __ballot_sync(0xffffffffu, has);
        const uint32_t count = (uint32_t)__popc(found);
        if (slot < count) {
            for (; slot > 0; slot--)
                found &= found - 1;
            const uint32_t group = base + (uint32_t)__ffs((int)found) - 1;
            *out = {table.data[group], table.scales[group], job.first[group], job.first[group + 1]};
            return true;
        }
        slot -= count;
    }
    return false;
}

static __device__ __forceinline__ float mm_load_float(const uint8_t *p, pst_dtype type, size_t index)
{
    if (type == PST_F32)
        return __uint_as_float(mm_load_32_bits(p + 4 * index));
    const uint16_t bits = (uint16_t)mm_load_16_bits(p + 2 * index);
    return type == PST_F16 ? pst_f16_to_f32(bits) : pst_bf16_to_f32(bits);
}

/* y = sum + bias + old y */
static __device__ __forceinline__ void mm_finish(const mm_job &job, uint32_t row, uint32_t output, float sum)
{
    float *y = job.y + row * job.y_stride + output;
    if (job.bias != NULL)
        sum = __fadd_rn(sum, mm_load_float(job.bias, job.bias_type, output));
    if (job.accumulate)
        sum = __fadd_rn(sum, *y);
    *y = sum;
}

/* Granule of bf16 x: columns k..k+7 of a row, zeros from column `end` on. */
static __device__ __forceinline__ void mm_load_x(const mm_job &job, const uint8_t *row, uint32_t k, uint32_t end,
                                                 uint32_t *pairs)
{
    if (job.x_fast && k + 8 <= end) {
        mm_load_words<4>(pairs, row + 2 * (uint64_t)k, 16);
        return;
    }
    const uint16_t *x = (const uint16_t *)row;
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t column = k + 2 * i;
        pairs[i] = (column < end ? x[column] : 0u) | (column + 1 < end ? (uint32_t)x[column + 1] << 16 : 0u);
    }
}

/* What kernels know of weights that are not transposed; negative: a format that is not known. addresses: all matrices',
 * combined by "or", and their scales'. */
int mm_describe(const pst_weight *w, uint64_t addresses, uint64_t scale_addresses, mm_weights *out);

/* The kernels. Launches; the caller asks the vendor whether one failed. */
int mm_few(cuda_device *device, const mm_job *job, const mm_table *table);
int mm_tiles(cuda_device *device, const mm_job *job, const mm_table *table);
int mm_f32(cuda_device *device, const mm_job *job, const mm_table *table);
int mm_transposed(cuda_device *device, const pst_matmul *job);

static inline uint32_t mm_ceil(uint64_t a, uint64_t b)
{
    return (uint32_t)((a + b - 1) / b);
}

#endif
