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
 * give the same numbers: with f32 inputs those of the host; with bf16 inputs codes become bf16 numbers by arithmetic that is
 * cheaper, see mm_folded.
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
    uint32_t align;      /* fast rows begin at multiples of so many bytes: 16; G8, G4: or 8 or 4 */
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

/* The same of a fast row, whose scales are aligned to themselves (with minima: both). */
static __device__ __forceinline__ uint32_t mm_load_scale_fast(const mm_weights &w, int form, const mm_row &row,
                                                              uint32_t k)
{
    const size_t group = mm_group_of(w, k);
    if (form == MM_F8 ? w.scales_bf16 : w.symmetric)
        return (uint32_t)((const uint16_t *)row.scales)[group] << (form == MM_F8 ? 16 : 0);
    return ((const uint32_t *)row.scales)[group];
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

/* What makes weights of codes for bf16 inputs: weight = number * factor + offset, where a number is 128 + code (4 bits) or 128
 * + code / 2 (8 bits): a code's bits under the bits of 128. The offset's rounding is 2^-16 of the scale at most, much less
 * than that of a weight to bf16. */
struct mm_folded {
    float factor, offset;
};

static __device__ __forceinline__ mm_folded mm_fold(const mm_weights &w, int form, uint32_t bits)
{
    const float scale = mm_scale_of(bits), steps = form == MM_G4 ? 128.0f : 256.0f;
    mm_folded out;
    out.factor = form == MM_G4 ? scale : 2 * scale;
    out.offset = w.symmetric ? scale * -(form == MM_G4 ? 136.0f : 384.0f)
                             : __fmaf_rn(-steps, scale, pst_f16_to_f32((uint16_t)(bits >> 16)));
    return out;
}

/* Number i of a word; i is a constant. */
static __device__ __forceinline__ float mm_number(int form, uint32_t word, int i)
{
    const int up = form == MM_G4 ? 16 - 4 * i : 15 - 8 * i;
    const uint32_t moved = up >= 0 ? word << (up & 31) : word >> (-up & 31);
    return __uint_as_float((moved & (form == MM_G4 ? 15u << 16 : 255u << 15)) | 0x43000000);
}

/* One weight as products with bf16 inputs have it, before it is rounded or split. */
static __device__ __forceinline__ float mm_element_bf16(const mm_weights &w, int form, const mm_row &row, uint32_t k)
{
    if (form != MM_G4 && form != MM_G8)
        return mm_element(w, form, row, k);
    const mm_folded folded = mm_fold(w, form, mm_load_scale(w, form, row, k));
    const uint32_t byte = row.codes[form == MM_G4 ? k / 2 : k];
    const float number = form == MM_G8 ? mm_number(form, byte, 0) : mm_number(form, k % 2 == 0 ? byte : byte >> 4, 0);
    return __fmaf_rn(number, folded.factor, folded.offset);
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
    pairs[(PARTS - 1) * step] = pst_f32_to_bf16_pair(low, high);
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

/* 16 codes E4M3 times a scale. A code's bits at an f32's places are 2^-120 of its value, exactly, so that one product with
 * 2^120 times the scale rounds as the value's with the scale. Not so scales for which that overflows and codes that are not
 * numbers: rare, and both done code by code. */
static __device__ __forceinline__ void mm_f8_pairs(const uint32_t *words, float scale, uint32_t *pairs)
{
    uint32_t odd = fabsf(scale) < 128.0f ? 0 : 0x80;
#pragma unroll
    for (int i = 0; i < 4; i++)
        odd |= (words[i] & 0x7f7f7f7f) + 0x01010101;
    const bool rare = (odd & 0x80808080) != 0;
    const float factor = scale * 0x1p120f;
#pragma unroll
    for (int n = 0; n < 8; n++) {
        const uint32_t word = words[n / 2];
        const int shift = n % 2 * 16;
        if (rare) {
            pairs[n] = pst_f32_to_bf16_pair(pst_e4m3_to_f32((uint8_t)(word >> shift)) * scale,
                                            pst_e4m3_to_f32((uint8_t)(word >> (shift + 8))) * scale);
            continue;
        }
        const int32_t low = (int32_t)(word << (24 - shift)), high = (int32_t)(word << (16 - shift));
        pairs[n] = pst_f32_to_bf16_pair(__uint_as_float((uint32_t)(low >> 4) & 0x87f00000) * factor,
                                        __uint_as_float((uint32_t)(high >> 4) & 0x87f00000) * factor);
    }
}

/* The words and the scale of lane t in the whole unit that begins at column k of a fast row. */
template <int FORM>
static __device__ __forceinline__ void mm_load_raw(const mm_weights &w, const mm_row &row, uint32_t k, uint32_t t,
                                                   mm_raw<FORM> *raw)
{
    if (FORM == MM_BF16 || FORM == MM_F16) {
#pragma unroll
        for (uint32_t i = 0; i < 2; i++)
            mm_load_words<4>(raw->words + 4 * i, row.codes + 2 * ((uint64_t)k + mm_place(FORM, i, t)), 16);
    } else if (FORM == MM_F32) {
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            const uint8_t *p = row.codes + 4 * ((uint64_t)k + mm_place(FORM, i, t));
            mm_load_words<4>(raw->words + 8 * i, p, 16);
            mm_load_words<4>(raw->words + 8 * i + 4, p + 16, 16);
        }
    } else if (FORM == MM_G4) {
        mm_load_words<2>(raw->words, row.codes + (k + t * 16) / 2, w.align);
        raw->scale = mm_load_scale_fast(w, FORM, row, k + t * 16);
    } else {
        mm_load_words<4>(raw->words, row.codes + k + t * 16, FORM == MM_F8 ? 16 : w.align);
        raw->scale = mm_load_scale_fast(w, FORM, row, k + t * 16);
    }
}

/* Pairs of both granules, part by part: pairs[p * 8 + i * 4 + pair]. */
template <int FORM>
static __device__ __forceinline__ void mm_raw_pairs(const mm_weights &w, const mm_raw<FORM> &raw, uint32_t *pairs)
{
    constexpr int words = mm_words_of(FORM);
#pragma unroll
    for (int n = 0; n < 8; n++) {
        if (FORM == MM_BF16)
            pairs[n] = raw.words[n % words];
        else if (FORM == MM_F16)
            mm_split<2>(pst_f16_to_f32((uint16_t)raw.words[n % words]),
                        pst_f16_to_f32((uint16_t)(raw.words[n % words] >> 16)), pairs + n, 8);
        else if (FORM == MM_F32)
            mm_split<3>(__uint_as_float(raw.words[2 * n % words]), __uint_as_float(raw.words[(2 * n + 1) % words]),
                        pairs + n, 8);
    }
    if (FORM == MM_G4 || FORM == MM_G8) {
        constexpr int in_word = FORM == MM_G4 ? 8 : 4;
        const mm_folded folded = mm_fold(w, FORM, raw.scale);
#pragma unroll
        for (int n = 0; n < 8; n++) {
            const uint32_t word = raw.words[2 * n / in_word % words];
            const float low = mm_number(FORM, word, 2 * n % in_word), high = mm_number(FORM, word, 2 * n % in_word + 1);
            pairs[n] = pst_f32_to_bf16_pair(__fmaf_rn(low, folded.factor, folded.offset),
                                            __fmaf_rn(high, folded.factor, folded.offset));
        }
    }
    if (FORM == MM_F8)
        mm_f8_pairs(raw.words, __uint_as_float(raw.scale), pairs);
}

/* The same, element by element, from any row; zeros from column w.k on. */
template <int FORM>
static __device__ __forceinline__ void mm_slow_pairs(const mm_weights &w, const mm_row &row, uint32_t k, uint32_t t,
                                                     uint32_t *pairs)
{
#pragma unroll
    for (int n = 0; n < 8; n++) {
        const uint32_t column = k + mm_place(FORM, (uint32_t)n / 4, t) + (uint32_t)n % 4 * 2;
        const float low = column < w.k ? mm_element_bf16(w, FORM, row, column) : 0.0f;
        const float high = column + 1 < w.k ? mm_element_bf16(w, FORM, row, column + 1) : 0.0f;
        mm_split<mm_parts_of(FORM)>(low, high, pairs + n, 8);
    }
}

#endif
