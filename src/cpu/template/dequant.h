/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stored weights back to f32, or to bf16 where the products want that: runs of columns of one row. Each number depends on its
 * own code and scale alone, and every kernel set computes the same f32: products of a code and a 16-bit scale are exact, so
 * that only the sum with the minimum rounds.
 */
#ifndef PST_CPU_TEMPLATE_DEQUANT_H
#define PST_CPU_TEMPLATE_DEQUANT_H

static inline size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* w = code * scale + minimum in every lane. */
typedef struct group_scale {
    vf scale, minimum;
} group_scale;

/* The scale and minimum at p. Symmetric: (code - half) * scale = code * scale - half * scale, all exact. */
static ALWAYS_INLINE group_scale load_group_scale(const pst_weight_format *format, const char *p)
{
    group_scale g = {.scale = vf_set1_f16(p)};
    g.minimum = format->symmetric ? vf_mul(g.scale, vf_set1(format->bits == 4 ? -8.0f : -128.0f)) : vf_set1_f16(p + 2);
    return g;
}

static ALWAYS_INLINE vf apply_scale(const group_scale *g, vf codes)
{
    return vf_fma(codes, g->scale, g->minimum);
}

/* `count` columns of one group, whose codes begin at p (4 bits: in its low half). */
static ALWAYS_INLINE void dequantize_u8(const group_scale *g, const char *p, size_t count, float *y)
{
    size_t i = 0;
    for (; i + VF_LANES <= count; i += VF_LANES)
        vf_store_f32(y + i, apply_scale(g, vf_load_u8(p + i)));
    if (i < count)
        vf_store_f32_n(y + i, apply_scale(g, vf_load_u8_n(p + i, count - i)), count - i);
}

static ALWAYS_INLINE void dequantize_u4(const group_scale *g, const char *p, size_t count, float *y)
{
    size_t i = 0;
#if VF_LOOKUP /* a group has but 16 different weights */
    const vf table = apply_scale(g, vf_count());
    for (; i + VF_LANES <= count; i += VF_LANES)
        vf_store_f32(y + i, vf_lookup_u4(table, p + i / 2));
    if (i < count)
        vf_store_f32_n(y + i, vf_lookup_u4_n(table, p + i / 2, count - i), count - i);
#else
    for (; i + VF_LANES <= count; i += VF_LANES)
        vf_store_f32(y + i, apply_scale(g, vf_load_u4(p + i / 2)));
    if (i < count)
        vf_store_f32_n(y + i, apply_scale(g, vf_load_u4_n(p + i / 2, count - i)), count - i);
#endif
}

#if PST_CPU_DOT
/* The same to bf16, to nearest even (denormals to zero, as the dot product would take them). Lane i of the table and lane
 * 16 + i are the weight of code i. */
static ALWAYS_INLINE void dequantize_u4_bf16(const group_scale *g, const char *p, size_t count, char *y)
{
    const vf weights = apply_scale(g, vf_count());
    const __m512i table = (__m512i)_mm512_cvtne2ps_pbh(weights, weights);
    size_t i = 0;
    for (; i + 32 <= count; i += 32) {
        __m512i a = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(p + i / 2)));
        a = _mm512_or_si512(a, _mm512_slli_epi32(a, 12)); /* 16-bit lanes whose 4 low bits are the codes */
        _mm512_storeu_si512(y + 2 * i, _mm512_permutexvar_epi16(a, table));
    }
    if (i < count) {
        const size_t n = count - i;
        __m512i a = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(vf_mask((n + 1) / 2), p + i / 2));
        a = _mm512_or_si512(a, _mm512_slli_epi32(a, 12));
        _mm512_mask_storeu_epi16(y + 2 * i, (__mmask32)((1u << n) - 1), _mm512_permutexvar_epi16(a, table));
    }
}

static ALWAYS_INLINE void dequantize_u8_bf16(const group_scale *g, const char *p, size_t count, char *y)
{
    size_t i = 0;
    for (; i + 32 <= count; i += 32) {
        const vf low = apply_scale(g, vf_load_u8(p + i)), high = apply_scale(g, vf_load_u8(p + i + 16));
        _mm512_storeu_si512(y + 2 * i, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    for (; i < count; i += 16) {
        const size_t n = smaller(count - i, 16);
        const vf all = apply_scale(g, n == 16 ? vf_load_u8(p + i) : vf_load_u8_n(p + i, n));
        _mm256_mask_storeu_epi16(y + 2 * i, (__mmask16)((1u << n) - 1), (__m256i)_mm512_cvtneps_pbh(all));
    }
}
#endif

static ALWAYS_INLINE void dequantize_u4_to(bool bf16, const group_scale *g, const char *p, size_t count, char *y)
{
#if PST_CPU_DOT
    if (bf16) {
        dequantize_u4_bf16(g, p, count, y);
        return;
    }
#endif
    (void)bf16;
    dequantize_u4(g, p, count, (float *)(void *)y);
}

static ALWAYS_INLINE void dequantize_u8_to(bool bf16, const group_scale *g, const char *p, size_t count, char *y)
{
#if PST_CPU_DOT
    if (bf16) {
        dequantize_u8_bf16(g, p, count, y);
        return;
    }
#endif
    (void)bf16;
    dequantize_u8(g, p, count, (float *)(void *)y);
}

static size_t grouped_code_bytes(const pst_weight_format *format, size_t columns)
{
    return format->bits == 4 ? (columns + 1) / 2 : columns;
}

/* Columns first..first+count-1 of a GROUPED row of `columns`; bf16 and bits are constants after inlining. */
static ALWAYS_INLINE void dequantize_grouped(bool bf16, uint32_t bits, const char *row, const pst_weight_format *format,
                                             size_t columns, size_t first, size_t count, char *y)
{
    const size_t scale_bytes = format->symmetric ? 2 : 4, end = first + count, element = bf16 ? 2 : 4;
    const char *scales = row + grouped_code_bytes(format, columns) + first / format->group * scale_bytes;
    size_t n = smaller(format->group - first % format->group, count);
    for (size_t i = first; i < end; i += n, n = smaller(format->group, end - i), scales += scale_bytes) {
        const group_scale g = load_group_scale(format, scales);
        if (bits == 8) {
            dequantize_u8_to(bf16, &g, row + i, n, y);
        } else if (i % 2 == 1) { /* a cut within a byte */
            const char half = (char)((unsigned char)row[i / 2] >> 4);
            dequantize_u4_to(bf16, &g, &half, 1, y);
            dequantize_u4_to(bf16, &g, row + i / 2 + 1, n - 1, y + element);
        } else {
            dequantize_u4_to(bf16, &g, row + i / 2, n, y);
        }
        y += n * element;
    }
}

static void kernel_dequantize(const void *row, const pst_weight_format *format, size_t columns, size_t first,
                              size_t count, float *y)
{
    if (format->bits == 4)
        dequantize_grouped(false, 4, row, format, columns, first, count, (char *)y);
    else
        dequantize_grouped(false, 8, row, format, columns, first, count, (char *)y);
}

/* Puts NaN where the codes say so: rare, so that the loops need not know. */
static void mark_f8_nans(bool bf16, const char *p, size_t count, char *y)
{
    unsigned char found = 0;
    for (size_t i = 0; i < count; i++)
        found |= (p[i] & 0x7f) == 0x7f;
    if (!found)
        return;
    for (size_t i = 0; i < count; i++) {
        if ((p[i] & 0x7f) != 0x7f)
            continue;
        if (bf16)
            memcpy(y + 2 * i, &(uint16_t){0x7fc0}, 2);
        else
            memcpy(y + 4 * i, &(uint32_t){0x7fc00000}, 4);
    }
}

/* A run of F8_E4M3 elements times one scale; `scale` is 2^8 times that. */
static ALWAYS_INLINE void dequantize_f8(vf scale, const char *p, size_t count, char *y)
{
    size_t i = 0;
    for (; i + VF_LANES <= count; i += VF_LANES)
        vf_store_f32(y + 4 * i, vf_mul(vf_load_f8(p + i), scale));
    if (i < count)
        vf_store_f32_n(y + 4 * i, vf_mul(vf_load_f8_n(p + i, count - i), scale), count - i);
}

#if PST_CPU_DOT
static ALWAYS_INLINE void dequantize_f8_bf16(vf scale, const char *p, size_t count, char *y)
{
    size_t i = 0;
    for (; i + 32 <= count; i += 32) {
        const vf low = vf_mul(vf_load_f8(p + i), scale), high = vf_mul(vf_load_f8(p + i + 16), scale);
        _mm512_storeu_si512(y + 2 * i, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    for (; i < count; i += 16) {
        const size_t n = smaller(count - i, 16);
        const vf all = vf_mul(n == 16 ? vf_load_f8(p + i) : vf_load_f8_n(p + i, n), scale);
        _mm256_mask_storeu_epi16(y + 2 * i, (__mmask16)((1u << n) - 1), (__m256i)_mm512_cvtneps_pbh(all));
    }
}
#endif

/* Columns first..first+count-1 of an FP8_BLOCKS row; scales: the first one of its row of blocks. The product of element and
 * scale rounds once: 2^8 times the scale is exact below 2^120. */
static ALWAYS_INLINE void dequantize_blocks(bool bf16, const char *row, const pst_weight_format *format,
                                            const char *scales, size_t first, size_t count, char *y)
{
    const size_t end = first + count;
    for (size_t i = first, n; i < end; i += n, y += n * (bf16 ? 2 : 4)) {
        const size_t number = i / format->block_columns;
        n = smaller((number + 1) * format->block_columns, end) - i;
        const vf scale = vf_set1(256.0f * vf_first(load_as_f32_n(format->scale_type, scales, number, 1)));
#if PST_CPU_DOT
        if (bf16)
            dequantize_f8_bf16(scale, row + i, n, y);
        else
#endif
            dequantize_f8(scale, row + i, n, y);
        mark_f8_nans(bf16, row + i, n, y);
    }
}

static void kernel_dequantize_blocks(const void *row, const pst_weight_format *format, const void *scales, size_t first,
                                     size_t count, float *y)
{
    dequantize_blocks(false, row, format, scales, first, count, (char *)y);
}

#endif
