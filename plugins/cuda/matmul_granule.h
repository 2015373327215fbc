/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What products of f32 inputs read: weights as f32, a granule of 8 columns at a time; and a chain of fused multiply-adds over
 * every MM_CHAINS-th granule, the sum of one lane.
 */
#ifndef PST_CUDA_MATMUL_GRANULE_H
#define PST_CUDA_MATMUL_GRANULE_H

#include "matmul_job.h"

enum {
    MM_GRANULE = 8,
    MM_STEP = MM_GRANULE * MM_CHAINS, /* columns that all chains take at once */
    MM_DEPTH = 4                      /* granules of weights on their way */
};

/* Words of a granule. */
static __device__ __forceinline__ constexpr int mm_granule_words(int form)
{
    return form == MM_F32 ? 8 : form == MM_BF16 || form == MM_F16 ? 4 : form == MM_G4 ? 1 : 2;
}

template <int FORM> struct mm_granule {
    uint32_t words[mm_granule_words(FORM)];
    uint32_t scale;
};

/* Of a fast row; k + MM_GRANULE <= w.k. */
template <int FORM>
static __device__ __forceinline__ void mm_load_granule(const mm_weights &w, const mm_row &row, uint32_t k,
                                                       mm_granule<FORM> *out)
{
    if (FORM == MM_F32) {
        mm_load_words<4>(out->words, row.codes + 4 * (uint64_t)k, 16);
        mm_load_words<4>(out->words + mm_granule_words(FORM) / 2, row.codes + 4 * (uint64_t)k + 16, 16);
        return;
    }
    if (FORM == MM_BF16 || FORM == MM_F16) {
        mm_load_words<mm_granule_words(FORM)>(out->words, row.codes + 2 * (uint64_t)k, 16);
        return;
    }
    mm_load_words<mm_granule_words(FORM)>(out->words, row.codes + (FORM == MM_G4 ? k / 2 : k), w.align);
    out->scale = mm_load_scale_fast(w, FORM, row, k);
}

template <int FORM>
static __device__ __forceinline__ void mm_granule_values(const mm_weights &w, const mm_granule<FORM> &in, float *values)
{
    constexpr int words = mm_granule_words(FORM);
    float scale = 0, minimum = 0;
    if (FORM == MM_F8) {
        scale = __uint_as_float(in.scale);
    } else if (FORM >= MM_G8) {
        scale = mm_scale_of(in.scale);
        minimum = mm_minimum_of(w, FORM, in.scale);
    }
#pragma unroll
    for (int i = 0; i < MM_GRANULE; i++) {
        if (FORM == MM_F32)
            values[i] = __uint_as_float(in.words[i % words]);
        else if (FORM == MM_BF16)
            values[i] = pst_bf16_to_f32((uint16_t)(in.words[i / 2 % words] >> (i % 2 * 16)));
        else if (FORM == MM_F16)
            values[i] = pst_f16_to_f32((uint16_t)(in.words[i / 2 % words] >> (i % 2 * 16)));
        else if (FORM == MM_G4)
            values[i] = __fmaf_rn(mm_code_4(in.words[0], i), scale, minimum);
        else if (FORM == MM_G8)
            values[i] = __fmaf_rn(mm_code_8(in.words[i / 4 % words], i % 4), scale, minimum);
        else
            values[i] = pst_e4m3_to_f32((uint8_t)(in.words[i / 4 % words] >> (i % 4 * 8))) * scale;
    }
}

/* Any granule of any row; zeros from column w.k on. */
static __device__ __forceinline__ void mm_slow_values(const mm_weights &w, int form, const mm_row &row, uint32_t k,
                                                      float *values)
{
#pragma unroll
    for (uint32_t i = 0; i < MM_GRANULE; i++)
        values[i] = k + i < w.k ? mm_element(w, form, row, k + i) : 0.0f;
}

/* A granule of x; zeros from column k_end on. */
static __device__ __forceinline__ void mm_x_values(const mm_job &job, const float *x, uint32_t k, float *values)
{
    if (job.x_fast && k + MM_GRANULE <= job.w.k) {
        const float4 a = *(const float4 *)(x + k), b = *(const float4 *)(x + k + 4);
        values[0] = a.x;
        values[1] = a.y;
        values[2] = a.z;
        values[3] = a.w;
        values[4] = b.x;
        values[5] = b.y;
        values[6] = b.z;
        values[7] = b.w;
        return;
    }
#pragma unroll
    for (uint32_t i = 0; i < MM_GRANULE; i++)
        values[i] = k + i < job.w.k ? x[k + i] : 0.0f;
}

/* One granule of weights with ROWS rows of x, of which `there` are there. */
template <int ROWS>
static __device__ __forceinline__ void mm_add_products(const mm_job &job, const float *x, uint32_t there, uint32_t k,
                                                       const float *weights, float *sums)
{
#pragma unroll
    for (uint32_t r = 0; r < ROWS; r++) {
        if (r >= there)
            break;
        float inputs[MM_GRANULE];
        mm_x_values(job, x + r * job.x_stride, k, inputs);
#pragma unroll
        for (int i = 0; i < MM_GRANULE; i++)
            sums[r] = __fmaf_rn(inputs[i], weights[i], sums[r]);
    }
}

/* One lane's chain. */
template <int FORM, int ROWS>
static __device__ __forceinline__ void mm_sum_chain(const mm_job &job, const float *x, uint32_t there,
                                                    const mm_row &row, float *sums)
{
    uint32_t k = threadIdx.x % MM_CHAINS * MM_GRANULE;
    while (job.w.fast && k + MM_GRANULE <= job.w.k) {
        mm_granule<FORM> granules[MM_DEPTH];
#pragma unroll
        for (uint32_t d = 0; d < MM_DEPTH; d++) {
            if (k + d * MM_STEP + MM_GRANULE <= job.w.k)
                mm_load_granule<FORM>(job.w, row, k + d * MM_STEP, &granules[d]);
        }
#pragma unroll
        for (uint32_t d = 0; d < MM_DEPTH; d++) {
            if (k + MM_GRANULE <= job.w.k) {
                float weights[MM_GRANULE];
                mm_granule_values<FORM>(job.w, granules[d], weights);
                mm_add_products<ROWS>(job, x, there, k, weights, sums);
                k += MM_STEP;
            }
        }
    }
#pragma unroll 1
    for (; k < job.w.k; k += MM_STEP) {
        float weights[MM_GRANULE];
        mm_slow_values(job.w, FORM, row, k, weights);
        mm_add_products<ROWS>(job, x, there, k, weights, sums);
    }
}

template <int FORM>
static __device__ __forceinline__ void mm_weights_as(const mm_weights &w, const mm_row &row, uint32_t k, float *values)
{
    mm_granule<FORM> raw;
    mm_load_granule<FORM>(w, row, k, &raw);
    mm_granule_values<FORM>(w, raw, values);
}

/* A granule of the job's form. */
static __device__ __forceinline__ void mm_any_values(const mm_weights &w, const mm_row &row, uint32_t k, float *values)
{
    if (!w.fast || k + MM_GRANULE > w.k) {
        mm_slow_values(w, (int)w.form, row, k, values);
        return;
    }
    switch (w.form) {
    case MM_BF16: mm_weights_as<MM_BF16>(w, row, k, values); break;
    case MM_F16: mm_weights_as<MM_F16>(w, row, k, values); break;
    case MM_F32: mm_weights_as<MM_F32>(w, row, k, values); break;
    case MM_G8: mm_weights_as<MM_G8>(w, row, k, values); break;
    case MM_F8: mm_weights_as<MM_F8>(w, row, k, values); break;
    default: mm_weights_as<MM_G4>(w, row, k, values); break;
    }
}

#endif
