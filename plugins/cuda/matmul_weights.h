/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Weights whose rows are outputs, as the kernels of matmul read them: PLAIN, GROUPED and FP8_BLOCKS, a unit of MM_UNIT
 * columns after the other.
 *
 * In a unit each of the four lanes of a fragment (t) takes two granules of 8 columns. Which ones is a matter of the stored
 * form alone: mm_place. Types of 16 bits and more: such that the lanes' loads of 16 bytes are side by side; codes of 8 and
 * 4 bits: such that both granules of a lane are, too. Every kernel takes the columns in this order, so all give the same
 * bits.
 *
 * `fast`: whole units can be read in words; else, and in a row's last unit if it is not whole, element by element. Both
 * give the same numbers.
 */
#ifndef PST_CUDA_MATMUL_WEIGHTS_H
#define PST_CUDA_MATMUL_WEIGHTS_H

#include "vendor.h"

enum { MM_UNIT = 64 };

enum mm_form { MM_BF16, MM_F16, MM_F32, MM_G8, MM_F8, MM_G4 };

/* What the matrices of a call have in common. */
struct mm_weights {
    uint32_t form; /* mm_form */
    bool fast;
    uint32_t align;      /* rows begin at multiples of so many bytes: 4, 8 or 16, if fast */
    uint32_t outputs, k; /* rows and columns */
    uint64_t row_bytes;
    uint64_t code_bytes; /* G8, G4: of a row, before its scales */
    uint32_t group;      /* G8, G4: columns of a scale; F8: of a block */
    int group_shift;     /* group is 2 to this; -1: it is not a power of 2 */
    bool symmetric;
    bool scales_bf16; /* F8 */
    uint32_t block_rows, scales_per_row;
    uint64_t first_row; /* of the rows at hand, in the tensor */
};

/* A row's codes and scales. */
struct mm_row {
    const uint8_t *codes, *scales;
};

static __device__ __forceinline__ uint32_t mm_load_16_bits(const uint8_t *p)
{
    if (((uintptr_t)p & 1) == 0)
        return *(const uint16_t *)p;
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static __device__ __forceinline__ uint32_t mm_load_32_bits(const uint8_t *p)
{
    if (((uintptr_t)p & 3) == 0)
        return *(const uint32_t *)p;
    return mm_load_16_bits(p) | mm_load_16_bits(p + 2) << 16;
}

/* WORDS: 1, 2 or 4, at a multiple of `align` (4, 8 or 16) bytes or of their own size. */
template <int WORDS>
static __device__ __forceinline__ void mm_load_words(uint32_t *words, const uint8_t *p, uint32_t align)
{
    if (WORDS == 4 && align == 16) {
        const uint4 v = *(const uint4 *)p;
        words[0] = v.x;
        words[1] = v.y;
        words[2] = v.z;
        words[3] = v.w;
    } else if (WORDS >= 2 && align >= 8) {
#pragma unroll
        for (int i = 0; i < WORDS / 2; i++) {
            const uint2 v = ((const uint2 *)p)[i];
            words[2 * i] = v.x;
            words[2 * i + 1] = v.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < WORDS; i++)
            words[i] = ((const uint32_t *)p)[i];
    }
}

static __device__ __forceinline__ mm_row mm_row_of(const mm_weights &w, const uint8_t *data, const uint8_t *scales,
                                                   uint32_t output)
{
    mm_row row;
    row.codes = data + output * w.row_bytes;
    row.scales = row.codes + w.code_bytes;
    if (w.form == MM_F8)
        row.scales = scales + (w.first_row + output) / w.block_rows * w.scales_per_row * (w.scales_bf16 ? 2 : 4);
    return row;
}

/* Number of the group or block of a column. */
static __device__ __forceinline__ uint32_t mm_group_of(const mm_weights &w, uint32_t k)
{
    return w.group_shift >= 0 ? k >> w.group_shift : k / w.group;
}

/* The scale of a column's group: the bits of an F32 (F8), or of an F16 with the minimum's in the upper half. */
static __device__ __forceinline__ uint32_t mm_load_scale(const mm_weights &w, int form, const mm_row &row, uint32_t k)
{
    const size_t group = mm_group_of(w, k);
    if (form == MM_F8)
        return w.scales_bf16 ? mm_load_16_bits(row.scales + 2 * group) << 16 : mm_load_32_bits(row.scales + 4 * group);
    return w.symmetric ? mm_load_16_bits(row.scales + 2 * group) : mm_load_32_bits(row.scales + 4 * group);
}

static __device__ __forceinline__ float mm_scale_of(uint32_t bits)
{
    return pst_f16_to_f32((uint16_t)bits);
}

/* weight = code * scale + minimum; symmetric: (code - half) * scale, all exact but the last sum */
static __device__ __forceinline__ float mm_minimum_of(const mm_weights &w, int form, uint32_t bits)
{
    if (w.symmetric)
        return mm_scale_of(bits) * (form == MM_G4 ? -8.0f : -128.0f);
    return pst_f16_to_f32((uint16_t)(bits >> 16));
}

/* One weight. form: w.form, as a constant where it is one. */
static __device__ __forceinline__ float mm_element(const mm_weights &w, int form, const mm_row &row, uint32_t k)
{
    if (form == MM_BF16)
        return pst_bf16_to_f32((uint16_t)mm_load_16_bits(row.codes + 2 * (uint64_t)k));
    if (form == MM_F16)
        return pst_f16_to_f32((uint16_t)mm_load_16_bits(row.codes + 2 * (uint64_t)k));
    if (form == MM_F32)
        return __uint_as_float(mm_load_32_bits(row.codes + 4 * (uint64_t)k));
    const uint32_t scale = mm_load_scale(w, form, row, k);
    if (form == MM_F8)
        return pst_e4m3_to_f32(row.codes[k]) * __uint_as_float(scale);
    const uint32_t byte = row.codes[form == MM_G4 ? k / 2 : k];
    const uint32_t code = form == MM_G8 ? byte : k % 2 == 0 ? byte & 15 : byte >> 4;
    return __fmaf_rn((float)code, mm_scale_of(scale), mm_minimum_of(w, form, scale));
}

/* Code number `i` of word `word`, as it is. 2^23 + code: no instruction for converting is needed. */
static __device__ __forceinline__ float mm_code_4(uint32_t word, int i)
{
    return __uint_as_float((word >> (4 * i) & 15) | 0x4b000000) - 8388608.0f;
}

static __device__ __forceinline__ float mm_code_8(uint32_t word, int i)
{
    return __uint_as_float((word >> (8 * i) & 255) | 0x4b000000) - 8388608.0f;
}

/* Where granule i (0 or 1) of lane t begins in its unit. */
static __device__ __forceinline__ uint32_t mm_place(uint32_t form, uint32_t i, uint32_t t)
{
    return form >= MM_G8 ? t * 16 + i * 8 : i * 32 + t * 8;
}

/* Products with bf16 inputs take weights as sums of bf16 numbers: types of the file exactly (F16: 2, F32: 3), codes
 * rounded to nearest even. */
static __device__ __forceinline__ constexpr int mm_parts_of(int form)
{
    return form == MM_F16 ? 2 : form == MM_F32 ? 3 : 1;
}

static __device__ __forceinline__ uint32_t mm_pair(float low, float high)
{
    return (uint32_t)pst_f32_to_bf16(low) | (uint32_t)pst_f32_to_bf16(high) << 16;
}

/* Of two weights the parts' pairs: PARTS - 1 times the leading 8 bits, then what is left. What is not finite has no rest. */
template <int PARTS> static __device__ __forceinline__ void mm_split(float low, float high, uint32_t *pairs, int step)
{
#pragma unroll
    for (int p = 0; p + 1 < PARTS; p++) {
        const uint32_t a = __float_as_uint(low), b = __float_as_uint(high);
        pairs[p * step] = a >> 16 | (b & 0xffff0000);
        low = (a & 0x7f800000) == 0x7f800000 ? 0.0f : low - __uint_as_float(a & 0xffff0000);
        high = (b & 0x7f800000) == 0x7f800000 ? 0.0f : high - __uint_as_float(b & 0xffff0000);
    }
    pairs[(PARTS - 1) * step] = mm_pair(low, high);
}

/* ---- A lane's 16 weights of a unit ---- */

static __device__ __forceinline__ constexpr int mm_words_of(int form)
{
    return form == MM_G4 ? 2 : form == MM_G8 || form == MM_F8 ? 4 : form == MM_F32 ? 16 : 8;
}

template <int FORM> struct mm_raw {
    uint32_t words[mm_words_of(FORM)];
    uint32_t scale;
};

/* The words and the scale of lane t in the whole unit that begins at column k of a fast row. */
template <int FORM>
static __device__ __forceinline__ void mm_load_raw(const mm_weights &w, const mm_row &row, uint32_t k, uint32_t t,
                                                   mm_raw<FORM> *raw)
{
    if (FORM == MM_BF16 || FORM == MM_F16) {
#pragma unroll
        for (uint32_t i = 0; i < 2; i++)
            mm_load_words<4>(raw->words + 4 * i, row.codes + 2 * ((uint64_t)k + mm_place(FORM, i, t)), w.align);
    } else if (FORM == MM_F32) {
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            const uint8_t *p = row.codes + 4 * ((uint64_t)k + mm_place(FORM, i, t));
            mm_load_words<4>(raw->words + 8 * i, p, w.align);
            mm_load_words<4>(raw->words + 8 * i + 4, p + 16, w.align);
        }
    } else if (FORM == MM_G4) {
        mm_load_words<2>(raw->words, row.codes + (k + t * 16) / 2, w.align);
        raw->scale = mm_load_scale(w, FORM, row, k + t * 16);
    } else {
        mm_load_words<4>(raw->words, row.codes + k + t * 16, w.align);
        raw->scale = mm_load_scale(w, FORM, row, k + t * 16);
    }
}

/* Weight number n (a constant) of a lane's 16; a form of codes, or F16 or F32. */
template <int FORM>
static __device__ __forceinline__ float mm_raw_element(const mm_raw<FORM> &raw, int n, float scale, float minimum)
{
    if (FORM == MM_F32)
        return __uint_as_float(raw.words[n % mm_words_of(FORM)]);
    if (FORM == MM_F16)
        return pst_f16_to_f32((uint16_t)(raw.words[n / 2 % mm_words_of(FORM)] >> (n % 2 * 16)));
    if (FORM == MM_G4)
        return __fmaf_rn(mm_code_4(raw.words[n / 8], n % 8), scale, minimum);
    if (FORM == MM_G8)
        return __fmaf_rn(mm_code_8(raw.words[n / 4 % mm_words_of(FORM)], n % 4), scale, minimum);
    return pst_e4m3_to_f32((uint8_t)(raw.words[n / 4 % mm_words_of(FORM)] >> (n % 4 * 8))) * scale;
}

/* Pairs of both granules, part by part: pairs[p * 8 + i * 4 + pair]. */
template <int FORM>
static __device__ __forceinline__ void mm_raw_pairs(const mm_weights &w, const mm_raw<FORM> &raw, uint32_t *pairs)
{
    constexpr int parts = mm_parts_of(FORM);
    if (FORM == MM_BF16) {
#pragma unroll
        for (int n = 0; n < 8; n++)
            pairs[n] = raw.words[n % mm_words_of(FORM)];
        return;
    }
    float scale = 0, minimum = 0;
    if (FORM == MM_F8) {
        scale = __uint_as_float(raw.scale);
    } else if (FORM >= MM_G8) {
        scale = mm_scale_of(raw.scale);
        minimum = mm_minimum_of(w, FORM, raw.scale);
    }
#pragma unroll
    for (int n = 0; n < 8; n++)
        mm_split<parts>(mm_raw_element<FORM>(raw, 2 * n, scale, minimum),
                        mm_raw_element<FORM>(raw, 2 * n + 1, scale, minimum), pairs + n, 8);
}

/* The same, element by element, from any row; zeros from column w.k on. */
template <int FORM>
static __device__ __forceinline__ void mm_slow_pairs(const mm_weights &w, const mm_row &row, uint32_t k, uint32_t t,
                                                     uint32_t *pairs)
{
#pragma unroll
    for (int n = 0; n < 8; n++) {
        const uint32_t column = k + mm_place(FORM, (uint32_t)n / 4, t) + (uint32_t)n % 4 * 2;
        const float low = column < w.k ? mm_element(w, FORM, row, column) : 0.0f;
        const float high = column + 1 < w.k ? mm_element(w, FORM, row, column + 1) : 0.0f;
        mm_split<mm_parts_of(FORM)>(low, high, pairs + n, 8);
    }
}

#endif
