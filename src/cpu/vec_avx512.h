/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vectors of the avx512 sets: 16 floats. Every vec_*.h defines the same names, which the templates are written
 * in. The loads and stores with a count touch that many elements only (count < VF_LANES); missing lanes read as
 * zero.
 */
#ifndef PST_CPU_VEC_AVX512_H
#define PST_CPU_VEC_AVX512_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define VF_LANES     16
#define VF_TILE_ROWS 6 /* tiles of sums that fit 32 registers beside the operands: 6 x 4 */

typedef __m512 vf;

static inline __mmask16 vf_mask(size_t count)
{
    return (__mmask16)((1u << count) - 1);
}

static inline vf vf_zero(void)
{
    return _mm512_setzero_ps();
}
static inline vf vf_set1(float a)
{
    return _mm512_set1_ps(a);
}
static inline vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
/* a * b + c */
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
/* max and min give b when one of them is NaN. */
static inline vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
static inline vf vf_abs(vf a)
{
    return _mm512_abs_ps(a);
}
static inline vf vf_round(vf a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* a where x < 0, else b */
static inline vf vf_if_negative(vf x, vf a, vf b)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), b, a);
}
/* 2^n for whole n in -126..127 */
static inline vf vf_pow2(vf n)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
/* The 12 leading bits of the fraction (the implied one included): its square is exact. */
static inline vf vf_leading_bits(vf a)
{
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32((int)0xfffff000)));
}

static inline vf vf_load_f32(const void *p)
{
    return _mm512_loadu_ps(p);
}
static inline vf vf_load_f32_n(const void *p, size_t n)
{
    return _mm512_maskz_loadu_ps(vf_mask(n), p);
}
static inline void vf_store_f32(void *p, vf a)
{
    _mm512_storeu_ps(p, a);
}
static inline void vf_store_f32_n(void *p, vf a, size_t n)
{
    _mm512_mask_storeu_ps(p, vf_mask(n), a);
}

static inline vf vf_widen_bf16_(__m256i a)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16));
}
static inline vf vf_load_bf16(const void *p)
{
    return vf_widen_bf16_(_mm256_loadu_si256(p));
}
static inline vf vf_load_bf16_n(const void *p, size_t n)
{
    return vf_widen_bf16_(_mm256_maskz_loadu_epi16(vf_mask(n), p));
}
static inline vf vf_load_f16(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}
static inline vf vf_load_f16_n(const void *p, size_t n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(vf_mask(n), p));
}

/* Codes of weights: VF_LANES bytes as floats, and VF_LANES numbers of 4 bits, the low half of a byte first (the end reads
 * half of n bytes, rounded up). */
static inline vf vf_load_u8(const void *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p)));
}
static inline vf vf_load_u8_n(const void *p, size_t n)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(vf_mask(n), p)));
}
/* The lanes of `table` that VF_LANES numbers of 4 bits choose: 64-bit lane i holds byte i in its low half and, in the low
 * bits of its high half, the byte's high half; only the 4 low bits of a lane count. */
#define VF_LOOKUP 1
static inline vf vf_lookup_u4_(vf table, __m128i bytes)
{
    __m512i a = _mm512_cvtepu8_epi64(bytes);
    return _mm512_permutexvar_ps(_mm512_or_si512(a, _mm512_slli_epi64(a, 28)), table);
}
static inline vf vf_lookup_u4(vf table, const void *p)
{
    return vf_lookup_u4_(table, _mm_loadl_epi64(p));
}
static inline vf vf_lookup_u4_n(vf table, const void *p, size_t n)
{
    return vf_lookup_u4_(table, _mm_maskz_loadu_epi8(vf_mask((n + 1) / 2), p));
}
static inline vf vf_count(void) /* 0, 1, 2, ... */
{
    return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
static inline vf vf_load_u4(const void *p)
{
    return vf_lookup_u4(vf_count(), p);
}
static inline vf vf_load_u4_n(const void *p, size_t n)
{
    return vf_lookup_u4_n(vf_count(), p, n);
}
/* Bits shift.. of every 32-bit lane, under a mask, as floats. */
static inline vf vf_bits(vf lanes, int shift, int mask)
{
    __m512i a = _mm512_srl_epi32(_mm512_castps_si512(lanes), _mm_cvtsi32_si128(shift));
    return _mm512_cvtepi32_ps(_mm512_and_si512(a, _mm512_set1_epi32(mask)));
}
/* F8_E4M3 times 2^-8: moved to their places, sign, exponent and fraction are that as an F16, denormals included. The two
 * codes that are NaN read as +-480 times 2^-8. */
static inline vf vf_widen_f8_(__m128i codes)
{
    __m256i a = _mm256_srai_epi16(_mm256_slli_epi16(_mm256_cvtepu8_epi16(codes), 8), 1);
    return _mm512_cvtph_ps(_mm256_and_si256(a, _mm256_set1_epi16((int16_t)0xbfff)));
}
static inline vf vf_load_f8(const void *p)
{
    return vf_widen_f8_(_mm_loadu_si128(p));
}
static inline vf vf_load_f8_n(const void *p, size_t n)
{
    return vf_widen_f8_(_mm_maskz_loadu_epi8(vf_mask(n), p));
}
/* Whole numbers 0..255 to bytes. */
static inline void vf_store_u8(void *p, vf a)
{
    _mm_storeu_si128(p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
}
/* One f16 in every lane. */
static inline vf vf_set1_f16(const void *p)
{
    int16_t bits;
    __builtin_memcpy(&bits, p, 2);
    return _mm512_cvtph_ps(_mm256_set1_epi16(bits));
}

/* To nearest even; NaN stays NaN. (Not VCVTNEPS2BF16, which flushes denormals: all sets round alike.) */
static inline __m256i vf_to_bf16_(vf a)
{
    __m512i u = _mm512_castps_si512(a);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
static inline void vf_store_bf16(void *p, vf a)
{
    _mm256_storeu_si256(p, vf_to_bf16_(a));
}
static inline void vf_store_bf16_n(void *p, vf a, size_t n)
{
    _mm256_mask_storeu_epi16(p, vf_mask(n), vf_to_bf16_(a));
}

/* To nearest even, held at +-65504; NaN stays NaN. */
static inline __m256i vf_to_f16_(vf a)
{
    a = vf_min(vf_set1(65504.0f), vf_max(vf_set1(-65504.0f), a));
    return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline void vf_store_f16(void *p, vf a)
{
    _mm256_storeu_si256(p, vf_to_f16_(a));
}
static inline void vf_store_f16_n(void *p, vf a, size_t n)
{
    _mm256_mask_storeu_epi16(p, vf_mask(n), vf_to_f16_(a));
}

/* The sums over the lanes of four vectors, each by the same tree: 0+2, 1+3 of each quarter, their sum, then the
 * quarters 0+2, 1+3, their sum. */
static inline __m128 vf_sum4(vf a, vf b, vf c, vf d)
{
    vf ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vf cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    vf abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
typedef __m128 vf_four;
static inline vf_four vf_four_load(const float *p)
{
    return _mm_loadu_ps(p);
}
static inline void vf_four_store(float *p, vf_four a)
{
    _mm_storeu_ps(p, a);
}
static inline vf_four vf_four_add(vf_four a, vf_four b)
{
    return _mm_add_ps(a, b);
}
static inline float vf_sum(vf a)
{
    return _mm_cvtss_f32(vf_sum4(a, a, a, a));
}
static inline float vf_first(vf a)
{
    return _mm512_cvtss_f32(a);
}
static inline float vf_max_across(vf a)
{
    return _mm512_reduce_max_ps(a);
}

/* A macro: gcc takes a function that only prefetches for one without effect. */
#define vf_prefetch(p) _mm_prefetch((p), _MM_HINT_T1)

#endif
