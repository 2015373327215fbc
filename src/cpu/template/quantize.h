/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows of weights to codes and scales (GROUPED of cpu/weight.h). Every operation rounds by itself, so that all kernel sets
 * write the same bytes. A group goes by twice: its smallest and largest weight give minimum and scale, rounded to F16 such
 * that the codes still reach both; then the codes, from what was stored.
 */
#ifndef PST_CPU_TEMPLATE_QUANTIZE_H
#define PST_CPU_TEMPLATE_QUANTIZE_H

#define STAGE_COLUMNS 256 /* codes made at a time, before they are packed */

typedef struct group_range {
    float least, largest;
    bool finite;
} group_range;

/* `count` (at least one) weights from index `first` on; those missing in the last vector are the first one again. */
static ALWAYS_INLINE vf load_filled(pst_dtype type, const char *w, size_t first, size_t i, size_t count)
{
    if (i + VF_LANES <= count)
        return load_as_f32(type, w, first + i);
    float all[VF_LANES];
    vf_store_f32(all, vf_set1(vf_first(load_as_f32_n(type, w, first, 1))));
    vf_store_f32_n(all, load_as_f32_n(type, w, first + i, count - i), count - i);
    return vf_load_f32(all);
}

static ALWAYS_INLINE group_range find_range(pst_dtype type, const char *w, size_t first, size_t count)
{
    vf least = load_filled(type, w, first, 0, count), largest = least, check = vf_zero();
    for (size_t i = 0; i < count; i += VF_LANES) {
        vf a = load_filled(type, w, first, i, count);
        least = vf_min(a, least);
        largest = vf_max(a, largest);
        check = vf_add(check, vf_mul(a, vf_zero())); /* stays 0 unless one is infinite or no number */
    }
    return (group_range){-vf_max_across(vf_sub(vf_zero(), least)), vf_max_across(largest), vf_sum(check) == 0.0f};
}

/* Codes round((w - minimum) / scale) + offset, held within 0..most. */
static ALWAYS_INLINE void make_codes(pst_dtype type, const char *w, size_t first, size_t count, float scale,
                                     float minimum, float offset, float most, unsigned char *codes)
{
    const vf inverse = vf_set1(scale > 0.0f ? 1.0f / scale : 0.0f);
    for (size_t i = 0; i < count; i += VF_LANES) {
        vf a = vf_mul(vf_sub(load_filled(type, w, first, i, count), vf_set1(minimum)), inverse);
        a = vf_add(vf_round(a), vf_set1(offset));
        vf_store_u8(codes + i, vf_min(vf_set1(most), vf_max(vf_zero(), a)));
    }
}

/* Bytes of one code each to `bits` each. An odd number of 4 leaves the last half byte zero. */
static ALWAYS_INLINE void pack_codes(unsigned char *codes, size_t count, uint32_t bits, char *out)
{
    if (bits == 8) {
        memcpy(out, codes, count);
        return;
    }
    if (count % 2 == 1)
        codes[count] = 0;
    for (size_t i = 0; i < (count + 1) / 2; i++)
        out[i] = (char)(codes[2 * i] | codes[2 * i + 1] << 4);
}

static ALWAYS_INLINE int quantize_of(pst_dtype type, const char *w, size_t columns, const pst_weight_format *format,
                                     char *out)
{
    const float most = format->bits == 4 ? 15.0f : 255.0f, half = format->bits == 4 ? 8.0f : 128.0f;
    char *scales = out + (format->bits == 4 ? (columns + 1) / 2 : columns);
    for (size_t first = 0; first < columns; first += format->group) {
        const size_t count = smaller(format->group, columns - first);
        const group_range range = find_range(type, w, first, count);
        if (!range.finite)
            return -EDOM;
        pst_group_scale g;
        const int status = format->symmetric ? pst_group_scale_symmetric(range.least, range.largest, half, &g)
                                             : pst_group_scale_range(range.least, range.largest, most, &g);
        if (status < 0)
            return status;
        for (size_t i = 0; i < count; i += STAGE_COLUMNS) {
            unsigned char codes[STAGE_COLUMNS + VF_LANES];
            const size_t n = smaller(STAGE_COLUMNS, count - i);
            make_codes(type, w, first + i, n, g.scale, g.minimum, format->symmetric ? half : 0.0f, most, codes);
            pack_codes(codes, n, format->bits, out + (format->bits == 4 ? (first + i) / 2 : first + i));
        }
        memcpy(scales, &g.scale_bits, 2);
        if (!format->symmetric)
            memcpy(scales + 2, &g.minimum_bits, 2);
        scales += format->symmetric ? 2 : 4;
    }
    return 0;
}

static int kernel_quantize(const void *w, pst_dtype type, size_t columns, const pst_weight_format *format, void *out)
{
    if (type == PST_F32)
        return quantize_of(PST_F32, w, columns, format, out);
    return type == PST_BF16 ? quantize_of(PST_BF16, w, columns, format, out)
                            : quantize_of(PST_F16, w, columns, format, out);
}

#endif
