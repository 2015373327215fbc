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

/* Columns first..first+count-1 of a GROUPED row of `columns`. */
static void kernel_dequantize(const void *row, const pst_weight_format *format, size_t columns, size_t first,
                              size_t count, float *y)
{
    const char *codes = row, *scales = codes + (format->bits == 4 ? (columns + 1) / 2 : columns);
    const size_t scale_bytes = format->symmetric ? 2 : 4, end = first + count;
    for (size_t i = first; i < end;) {
        const size_t number = i / format->group, n = smaller((number + 1) * format->group, end) - i;
        const group_scale g = load_group_scale(format, scales + number * scale_bytes);
        if (format->bits == 8) {
            dequantize_u8(&g, codes + i, n, y);
        } else if (i % 2 == 1) { /* a cut within a byte */
            const unsigned char half = (unsigned char)codes[i / 2] >> 4;
            dequantize_u4(&g, (const char *)&half, 1, y);
            if (n > 1)
                dequantize_u4(&g, codes + i / 2 + 1, n - 1, y + 1);
        } else {
            dequantize_u4(&g, codes + i / 2, n, y);
        }
        i += n;
        y += n;
    }
}

#endif
