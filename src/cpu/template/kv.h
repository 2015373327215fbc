/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows of the cache of keys and values, to and from their stored form (cpu/kv.h). Both directions go element by element
 * with one rounding sequence, so that a row's bits depend on its elements alone.
 */
#ifndef PST_CPU_TEMPLATE_KV_H
#define PST_CPU_TEMPLATE_KV_H

static inline uint16_t f16_of(float a)
{
    uint16_t bits;
    vf_store_f16_n(&bits, vf_set1(a), 1);
    return bits;
}

static inline float f16_value(uint16_t bits)
{
    float lanes[VF_LANES];
    vf_store_f32(lanes, vf_load_f16_n(&bits, 1));
    return lanes[0];
}

/* The next larger (smaller) f16 of a finite one. */
static inline uint16_t f16_above(uint16_t bits)
{
    if ((bits & 0x7fff) == 0)
        return 1;
    return (uint16_t)(bits & 0x8000 ? bits - 1 : bits + 1);
}

static inline uint16_t f16_below(uint16_t bits)
{
    return f16_above(bits ^ 0x8000) ^ 0x8000;
}

typedef struct kv_range {
    float smallest, largest;
    bool has_nan;
} kv_range;

/* Copies n elements, held within what f16 holds, and the last one again up to whole vectors. */
static kv_range kv_take_group(const float *x, size_t n, float *held)
{
    vf largest = vf_set1(-65504.0f), negated = largest, differences = vf_zero();
    for (size_t i = 0; i < PST_KV_GROUP; i++)
        held[i] = x[i < n ? i : n - 1];
    for (size_t i = 0; i < PST_KV_GROUP; i += VF_LANES) {
        vf a = vf_min(vf_set1(65504.0f), vf_max(vf_set1(-65504.0f), vf_load_f32(held + i)));
        vf_store_f32(held + i, a);
        largest = vf_max(largest, a);
        negated = vf_max(negated, vf_sub(vf_zero(), a));
        differences = vf_add(differences, vf_sub(a, a));
    }
    float sum = vf_sum(differences);
    return (kv_range){-vf_max_across(negated), vf_max_across(largest), sum != sum};
}

/* n elements (at most PST_KV_GROUP) to codes of 0..levels, one per byte, and their minimum and scale. */
static void kv_code_group(const float *x, size_t n, float levels, uint8_t *codes, uint16_t parameters[2])
{
    float held[PST_KV_GROUP];
    kv_range range = kv_take_group(x, n, held);
    if (range.has_nan) {
        parameters[0] = parameters[1] = 0x7e00;
        memset(codes, 0, PST_KV_GROUP);
        return;
    }
    uint16_t minimum = f16_of(range.smallest);
    if (f16_value(minimum) > range.smallest)
        minimum = f16_below(minimum);
    float low = f16_value(minimum), exact = (range.largest - low) / levels;
    uint16_t scale = f16_of(exact);
    if (f16_value(scale) < exact)
        scale = f16_above(scale);
    float factor = f16_value(scale) > 0.0f ? 1.0f / f16_value(scale) : 0.0f;
    for (size_t i = 0; i < PST_KV_GROUP; i += VF_LANES) {
        vf a = vf_round(vf_mul(vf_sub(vf_load_f32(held + i), vf_set1(low)), vf_set1(factor)));
        vf_store_f32(held + i, vf_min(vf_set1(levels), vf_max(vf_zero(), a)));
    }
    for (size_t i = 0; i < PST_KV_GROUP; i++)
        codes[i] = (uint8_t)held[i];
    parameters[0] = minimum;
    parameters[1] = scale;
}

static void kv_store_codes(const float *x, unsigned char *y, size_t bits, size_t count)
{
    size_t code_bytes = bits == 4 ? (count + 1) / 2 : count;
    unsigned char *parameters = y + code_bytes + code_bytes % 2;
    if (code_bytes % 2 != 0)
        y[code_bytes] = 0;
    for (size_t i = 0; i < count; i += PST_KV_GROUP, parameters += 4) {
        size_t n = count - i < PST_KV_GROUP ? count - i : PST_KV_GROUP;
        uint8_t codes[PST_KV_GROUP];
        uint16_t both[2];
        kv_code_group(x + i, n, bits == 4 ? 15.0f : 255.0f, codes, both);
        memcpy(parameters, both, sizeof both);
        if (bits == 8) {
            memcpy(y + i, codes, n);
            continue;
        }
        if (n % 2 != 0)
            codes[n] = 0; /* n < PST_KV_GROUP: the row's end */
        for (size_t j = 0; j < n; j += 2)
            y[(i + j) / 2] = (unsigned char)(codes[j] | codes[j + 1] << 4);
    }
}

static void kernel_kv_store(const float *x, void *y, pst_kv_type type, size_t count)
{
    if (type == PST_KV_Q8 || type == PST_KV_Q4) {
        kv_store_codes(x, y, type == PST_KV_Q4 ? 4 : 8, count);
        return;
    }
    const pst_dtype element = type == PST_KV_F32 ? PST_F32 : PST_F16;
    size_t i = 0;
    for (; i + VF_LANES <= count; i += VF_LANES)
        store_from_f32(element, y, i, vf_load_f32(x + i));
    if (i < count)
        store_from_f32_n(element, y, i, vf_load_f32_n(x + i, count - i), count - i);
}

/* A row in codes as floats; y has room for whole vectors of any set (16 floats), which are written. */
static void kv_widen_codes(const unsigned char *x, float *y, size_t bits, size_t count)
{
    size_t code_bytes = bits == 4 ? (count + 1) / 2 : count;
    const unsigned char *parameters = x + code_bytes + code_bytes % 2;
    for (size_t i = 0; i < count; i += PST_KV_GROUP, parameters += 4) {
        size_t n = count - i < PST_KV_GROUP ? count - i : PST_KV_GROUP;
        uint16_t both[2];
        memcpy(both, parameters, sizeof both);
        vf minimum = vf_set1(f16_value(both[0])), scale = vf_set1(f16_value(both[1]));
        /* Codes to floats are exact, so these plain loops may be turned into anything. */
        if (bits == 8) {
            for (size_t j = 0; j < n; j++)
                y[i + j] = (float)x[i + j];
        } else {
            for (size_t j = 0; j < (n + 1) / 2; j++) {
                y[i + 2 * j] = (float)(x[i / 2 + j] & 15);
                y[i + 2 * j + 1] = (float)(x[i / 2 + j] >> 4);
            }
        }
        size_t padded = (n + 15) & ~(size_t)15;
        for (size_t j = n; j < padded; j++)
            y[i + j] = 0.0f;
        for (size_t j = 0; j < padded; j += VF_LANES)
            vf_store_f32(y + i + j, vf_fma(vf_load_f32(y + i + j), scale, minimum));
    }
}

#endif
