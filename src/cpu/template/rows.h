/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels that go through rows once: conversion, norms, rotary embedding, activation, gating, log of the
 * sum of exp. */
#ifndef PST_CPU_TEMPLATE_ROWS_H
#define PST_CPU_TEMPLATE_ROWS_H

/* Bytes of one element of the types that the kernels know. */
static inline size_t element_bytes(pst_dtype type)
{
    return type == PST_F32 ? 4 : 2;
}

/* Whole vectors and ends of any weight type; `type` is a constant after inlining wherever speed matters. */
static ALWAYS_INLINE vf load_as_f32(pst_dtype type, const char *p, size_t index)
{
    if (type == PST_F32)
        return vf_load_f32(p + 4 * index);
    return type == PST_BF16 ? vf_load_bf16(p + 2 * index) : vf_load_f16(p + 2 * index);
}

static ALWAYS_INLINE vf load_as_f32_n(pst_dtype type, const char *p, size_t index, size_t n)
{
    if (type == PST_F32)
        return vf_load_f32_n(p + 4 * index, n);
    return type == PST_BF16 ? vf_load_bf16_n(p + 2 * index, n) : vf_load_f16_n(p + 2 * index, n);
}

static ALWAYS_INLINE void store_from_f32(pst_dtype type, char *p, size_t index, vf a)
{
    if (type == PST_F32)
        vf_store_f32(p + 4 * index, a);
    else if (type == PST_BF16)
        vf_store_bf16(p + 2 * index, a);
    else
        vf_store_f16(p + 2 * index, a);
}

static ALWAYS_INLINE void store_from_f32_n(pst_dtype type, char *p, size_t index, vf a, size_t n)
{
    if (type == PST_F32)
        vf_store_f32_n(p + 4 * index, a, n);
    else if (type == PST_BF16)
        vf_store_bf16_n(p + 2 * index, a, n);
    else
        vf_store_f16_n(p + 2 * index, a, n);
}

static void kernel_convert(const void *w, pst_dtype type, float *y, size_t count)
{
    size_t i = 0;
    for (; i + VF_LANES <= count; i += VF_LANES)
        vf_store_f32(y + i, load_as_f32(type, w, i));
    if (i < count)
        vf_store_f32_n(y + i, load_as_f32_n(type, w, i, count - i), count - i);
}

/* Sum of squares in four vectors of sums, so that neither the order nor the rounding is a single chain. */
static float sum_of_squares(const float *x, size_t count)
{
    vf sums[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    size_t i = 0;
    for (; i + 4 * VF_LANES <= count; i += 4 * VF_LANES) {
        for (int j = 0; j < 4; j++) {
            vf a = vf_load_f32(x + i + j * VF_LANES);
            sums[j] = vf_fma(a, a, sums[j]);
        }
    }
    for (; i < count; i += VF_LANES) {
        vf a = count - i >= VF_LANES ? vf_load_f32(x + i) : vf_load_f32_n(x + i, count - i);
        sums[0] = vf_fma(a, a, sums[0]);
    }
    return vf_sum(vf_add(vf_add(sums[0], sums[2]), vf_add(sums[1], sums[3])));
}

static void kernel_rms_norm(const float *x, const void *w, pst_dtype w_type, float eps, void *y, pst_dtype y_type,
                            size_t count)
{
    vf factor = vf_set1(1.0f / __builtin_sqrtf(sum_of_squares(x, count) / (float)count + eps));
    size_t i = 0;
    for (; i + VF_LANES <= count; i += VF_LANES) {
        vf a = vf_mul(vf_load_f32(x + i), factor);
        store_from_f32(y_type, y, i, w == NULL ? a : vf_mul(a, load_as_f32(w_type, w, i)));
    }
    if (i < count) {
        size_t n = count - i;
        vf a = vf_mul(vf_load_f32_n(x + i, n), factor);
        store_from_f32_n(y_type, y, i, w == NULL ? a : vf_mul(a, load_as_f32_n(w_type, w, i, n)), n);
    }
}

/* Sum in four vectors of sums, as above. */
static float sum_of(const float *x, size_t count)
{
    vf sums[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    size_t i = 0;
    for (; i + 4 * VF_LANES <= count; i += 4 * VF_LANES)
        for (int j = 0; j < 4; j++)
            sums[j] = vf_add(vf_load_f32(x + i + j * VF_LANES), sums[j]);
    for (; i < count; i += VF_LANES)
        sums[0] = vf_add(count - i >= VF_LANES ? vf_load_f32(x + i) : vf_load_f32_n(x + i, count - i), sums[0]);
    return vf_sum(vf_add(vf_add(sums[0], sums[2]), vf_add(sums[1], sums[3])));
}

/* Sum of (x - mean)^2; lanes beyond the end count as the mean. */
static float sum_of_deviations(const float *x, float mean, size_t count)
{
    vf sums[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()}, m = vf_set1(mean);
    size_t i = 0;
    for (; i + 4 * VF_LANES <= count; i += 4 * VF_LANES) {
        for (int j = 0; j < 4; j++) {
            vf a = vf_sub(vf_load_f32(x + i + j * VF_LANES), m);
            sums[j] = vf_fma(a, a, sums[j]);
        }
    }
    for (; i < count; i += VF_LANES) {
        float rest[VF_LANES];
        vf_store_f32(rest, m);
        memcpy(rest, x + i, (count - i < VF_LANES ? count - i : VF_LANES) * sizeof *rest);
        vf a = vf_sub(vf_load_f32(rest), m);
        sums[0] = vf_fma(a, a, sums[0]);
    }
    return vf_sum(vf_add(vf_add(sums[0], sums[2]), vf_add(sums[1], sums[3])));
}

static void kernel_layer_norm(const float *x, const void *w, pst_dtype w_type, const void *b, pst_dtype b_type,
                              float eps, void *y, pst_dtype y_type, size_t count)
{
    float mean = sum_of(x, count) / (float)count;
    vf m = vf_set1(mean);
    vf factor = vf_set1(1.0f / __builtin_sqrtf(sum_of_deviations(x, mean, count) / (float)count + eps));
    for (size_t i = 0; i < count; i += VF_LANES) {
        size_t n = count - i < VF_LANES ? count - i : VF_LANES;
        bool whole = n == VF_LANES;
        vf a = vf_mul(vf_sub(whole ? vf_load_f32(x + i) : vf_load_f32_n(x + i, n), m), factor);
        if (w != NULL)
            a = vf_mul(a, whole ? load_as_f32(w_type, w, i) : load_as_f32_n(w_type, w, i, n));
        if (b != NULL)
            a = vf_add(a, whole ? load_as_f32(b_type, b, i) : load_as_f32_n(b_type, b, i, n));
        if (whole)
            store_from_f32(y_type, y, i, a);
        else
            store_from_f32_n(y_type, y, i, a, n);
    }
}

/* Pairs are neighbours: no vectors here, the rotated part of such heads is short. */
static void rope_interleaved(float *x, uint32_t heads, uint32_t head_dim, uint32_t rotary, const float *table)
{
    size_t half = rotary / 2;
    for (uint32_t head = 0; head < heads; head++, x += head_dim) {
        for (size_t i = 0; i < half; i++) {
            float a = x[2 * i], b = x[2 * i + 1], c = table[i], s = table[half + i];
            x[2 * i] = a * c - b * s;
            x[2 * i + 1] = b * c + a * s;
        }
    }
}

static void kernel_rope(float *x, uint32_t heads, uint32_t head_dim, uint32_t rotary, bool interleaved,
                        const float *table)
{
    if (interleaved) {
        rope_interleaved(x, heads, head_dim, rotary, table);
        return;
    }
    size_t half = rotary / 2;
    const float *cosines = table, *sines = table + half;
    for (uint32_t head = 0; head < heads; head++, x += head_dim) {
        for (size_t i = 0; i < half; i += VF_LANES) {
            size_t n = half - i;
            bool whole = n >= VF_LANES;
            vf c = whole ? vf_load_f32(cosines + i) : vf_load_f32_n(cosines + i, n);
            vf s = whole ? vf_load_f32(sines + i) : vf_load_f32_n(sines + i, n);
            vf a = whole ? vf_load_f32(x + i) : vf_load_f32_n(x + i, n);
            vf b = whole ? vf_load_f32(x + half + i) : vf_load_f32_n(x + half + i, n);
            vf first = vf_sub(vf_mul(a, c), vf_mul(b, s));
            vf second = vf_add(vf_mul(b, c), vf_mul(a, s));
            if (whole) {
                vf_store_f32(x + i, first);
                vf_store_f32(x + half + i, second);
            } else {
                vf_store_f32_n(x + i, first, n);
                vf_store_f32_n(x + half + i, second, n);
            }
        }
    }
}

static ALWAYS_INLINE vf activate(pst_cpu_activation activation, vf x)
{
    switch (activation) {
    case PST_CPU_SILU: return vf_silu(x);
    case PST_CPU_GELU: return vf_gelu(x);
    case PST_CPU_GELU_TANH: return vf_gelu_tanh(x);
    case PST_CPU_RELU: return vf_max(vf_zero(), x);
    case PST_CPU_IDENTITY: break;
    }
    return x;
}

/* up NULL: no factor. */
static ALWAYS_INLINE void gated_by(pst_cpu_activation activation, const float *gate, const float *up, char *y,
                                   pst_dtype y_type, size_t count)
{
    size_t i = 0;
    for (; i + VF_LANES <= count; i += VF_LANES) {
        vf a = activate(activation, vf_load_f32(gate + i));
        store_from_f32(y_type, y, i, up == NULL ? a : vf_mul(a, vf_load_f32(up + i)));
    }
    if (i < count) {
        size_t n = count - i;
        vf a = activate(activation, vf_load_f32_n(gate + i, n));
        store_from_f32_n(y_type, y, i, up == NULL ? a : vf_mul(a, vf_load_f32_n(up + i, n)), n);
    }
}

static void kernel_gated(pst_cpu_activation activation, const float *gate, const float *up, void *y, pst_dtype y_type,
                         size_t count)
{
    switch (activation) {
    case PST_CPU_SILU: gated_by(PST_CPU_SILU, gate, up, y, y_type, count); break;
    case PST_CPU_GELU: gated_by(PST_CPU_GELU, gate, up, y, y_type, count); break;
    case PST_CPU_GELU_TANH: gated_by(PST_CPU_GELU_TANH, gate, up, y, y_type, count); break;
    case PST_CPU_RELU: gated_by(PST_CPU_RELU, gate, up, y, y_type, count); break;
    case PST_CPU_IDENTITY: gated_by(PST_CPU_IDENTITY, gate, up, y, y_type, count); break;
    }
}

static void kernel_activate(pst_cpu_activation activation, const float *x, void *y, pst_dtype y_type, size_t count)
{
    kernel_gated(activation, x, NULL, y, y_type, count);
}

/* factor * max + log(sum of exp(factor * (x - max))), sums in eight float64 lanes. A NaN gives NaN, a largest of +-infinity
 * gives that. */
static double kernel_log_sum_exp(const float *x, size_t count, double factor)
{
    float largest = -__builtin_inff();
    for (size_t i = 0; i < count; i++) {
        if (__builtin_isnan(x[i]))
            return x[i];
        largest = x[i] > largest ? x[i] : largest;
    }
    if (__builtin_isinf(largest))
        return largest;
    double sums[8] = {0}, terms[8];
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        for (int j = 0; j < 8; j++)
            terms[j] = ((double)x[i + j] - (double)largest) * factor;
        exp_f64x8(terms);
        for (int j = 0; j < 8; j++)
            sums[j] += terms[j];
    }
    for (int j = 0; j < 8; j++)
        terms[j] = i + j < count ? ((double)x[i + j] - (double)largest) * factor : -1000.0;
    exp_f64x8(terms);
    for (int j = 0; j < 8; j++)
        sums[j] += terms[j];
    double sum = ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
    return (double)largest * factor + log(sum);
}

#endif
