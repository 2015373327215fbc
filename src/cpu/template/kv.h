/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows of the cache of keys and values to their stored form (cpu/kv.h). Codes are made as those of weights are
 * (quantize.h), but what weights would be refused for is kept: too large is held at the largest, NaN makes its group NaN.
 */
#ifndef PST_CPU_TEMPLATE_KV_H
#define PST_CPU_TEMPLATE_KV_H

static const pst_weight_format kv_q8 = {.layout = PST_WEIGHT_GROUPED, .bits = 8, .group = PST_KV_GROUP};
static const pst_weight_format kv_q4 = {.layout = PST_WEIGHT_GROUPED, .bits = 4, .group = PST_KV_GROUP};

/* The format of a row that is stored in codes, else NULL. */
static const pst_weight_format *kv_codes(pst_kv_type type)
{
    return type == PST_KV_Q8 ? &kv_q8 : type == PST_KV_Q4 ? &kv_q4 : NULL;
}

/* A group of `count` elements, held within what f16 holds, to codes. */
static pst_group_scale kv_code_group(const float *x, size_t count, float most, unsigned char *codes)
{
    float held[PST_KV_GROUP];
    for (size_t i = 0; i < count; i += VF_LANES) {
        size_t n = smaller(VF_LANES, count - i);
        vf a = vf_min(vf_set1(65504.0f), vf_max(vf_set1(-65504.0f), vf_load_f32_n(x + i, n)));
        vf_store_f32_n(held + i, a, n);
    }
    const group_range range = find_range(PST_F32, (const char *)held, 0, count);
    pst_group_scale g = {.scale = 0.0f, .scale_bits = 0x7e00, .minimum_bits = 0x7e00};
    if (!range.finite) { /* what no integer is must not become one */
        memset(codes, 0, count);
        return g;
    }
    pst_group_scale_range(range.least, range.largest, most, &g); /* in range: it cannot fail */
    make_codes(PST_F32, (const char *)held, 0, count, g.scale, g.minimum, 0.0f, most, codes);
    return g;
}

static void kv_store_codes(const float *x, const pst_weight_format *format, char *y, size_t count)
{
    const float most = format->bits == 4 ? 15.0f : 255.0f;
    char *scales = y + (format->bits == 4 ? (count + 1) / 2 : count);
    for (size_t i = 0; i < count; i += PST_KV_GROUP, scales += 4) {
        const size_t n = smaller(PST_KV_GROUP, count - i);
        unsigned char codes[PST_KV_GROUP + VF_LANES];
        const pst_group_scale g = kv_code_group(x + i, n, most, codes);
        pack_codes(codes, n, format->bits, y + (format->bits == 4 ? i / 2 : i));
        memcpy(scales, &g.scale_bits, 2);
        memcpy(scales + 2, &g.minimum_bits, 2);
    }
}

static void kernel_kv_store(const float *x, void *y, pst_kv_type type, size_t count)
{
    if (kv_codes(type) != NULL) {
        kv_store_codes(x, kv_codes(type), y, count);
        return;
    }
    const pst_dtype element = type == PST_KV_F32 ? PST_F32 : PST_F16;
    size_t i = 0;
    for (; i + VF_LANES <= count; i += VF_LANES)
        store_from_f32(element, y, i, vf_load_f32(x + i));
    if (i < count)
        store_from_f32_n(element, y, i, vf_load_f32_n(x + i, count - i), count - i);
}

#endif
