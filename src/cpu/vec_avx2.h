/* SPDX-License-Identifier: Apache-2.0 */
/* The vectors of the avx2 set: 8 floats, with FMA and F16C. The names are those of vec_avx512.h, which explains
 * them. */
#ifndef PST_CPU_VEC_AVX2_H
#define PST_CPU_VEC_AVX2_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define VF_LANES     8
#define VF_TILE_ROWS 3 /* 16 registers: 3 x 4 sums, 3 vectors of x, one of w */

typedef __m256 vf;

static inline __m256i vf_mask(size_t count)
{
    static const int32_t bits[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i *)(const void *)(bits + 8 - count));
}

static inline vf vf_zero(void)
{
    return _mm256_setzero_ps();
}
static inline vf vf_set1(float a)
{
    return _mm256_set1_ps(a);
}
static inline vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
static inline vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
static inline vf vf_abs(vf a)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
static inline vf vf_round(vf a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vf vf_if_negative(vf x, vf a, vf b)
{
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
}
static inline vf vf_pow2(vf n)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
static inline vf vf_leading_bits(vf a)
{
    return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32((int)0xfffff000)));
}

static inline vf vf_load_f32(const void *p)
{
    return _mm256_loadu_ps(p);
}
static inline void vf_store_f32(void *p, vf a)
{
    _mm256_storeu_ps(p, a);
}
static inline vf vf_load_f32_n(const void *p, size_t n)
{
    return _mm256_maskload_ps(p, vf_mask(n));
}
static inline void vf_store_f32_n(void *p, vf a, size_t n)
{
    _mm256_maskstore_ps(p, vf_mask(n), a);
}

/* Eight 16-bit elements, or the first n and zeros. */
static inline __m128i vf_load16_n_(const void *p, size_t n)
{
    uint16_t all[8] = {0};
    memcpy(all, p, n * 2);
    return _mm_loadu_si128((const __m128i *)(const void *)all);
}
static inline void vf_store16_n_(void *p, __m128i a, size_t n)
{
    uint16_t all[8];
    _mm_storeu_si128((__m128i *)(void *)all, a);
    memcpy(p, all, n * 2);
}

static inline vf vf_widen_bf16_(__m128i a)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16));
}
static inline vf vf_load_bf16(const void *p)
{
    return vf_widen_bf16_(_mm_loadu_si128(p));
}
static inline vf vf_load_bf16_n(const void *p, size_t n)
{
    return vf_widen_bf16_(vf_load16_n_(p, n));
}
static inline vf vf_load_f16(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128(p));
}
static inline vf vf_load_f16_n(const void *p, size_t n)
{
    return _mm256_cvtph_ps(vf_load16_n_(p, n));
}

static inline vf vf_load_u8(const void *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p)));
}
static inline vf vf_load_u8_n(const void *p, size_t n)
{
    uint64_t all = 0;
    memcpy(&all, p, n);
    return vf_load_u8(&all);
}
#define VF_LOOKUP 0
static inline vf vf_load_u4(const void *p)
{
    int32_t all;
    memcpy(&all, p, 4);
    __m256i a = _mm256_srlv_epi32(_mm256_set1_epi32(all), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    return _mm256_cvtepi32_ps(_mm256_and_si256(a, _mm256_set1_epi32(15)));
}
static inline vf vf_load_u4_n(const void *p, size_t n)
{
    uint32_t all = 0;
    memcpy(&all, p, (n + 1) / 2);
    return vf_load_u4(&all);
}
static inline vf vf_bits(vf lanes, int shift, int mask)
{
    __m256i a = _mm256_srl_epi32(_mm256_castps_si256(lanes), _mm_cvtsi32_si128(shift));
    return _mm256_cvtepi32_ps(_mm256_and_si256(a, _mm256_set1_epi32(mask)));
}
static inline vf vf_load_f8(const void *p)
{
    __m128i a = _mm_srai_epi16(_mm_slli_epi16(_mm_cvtepu8_epi16(_mm_loadl_epi64(p)), 8), 1);
    return _mm256_cvtph_ps(_mm_and_si128(a, _mm_set1_epi16((int16_t)0xbfff)));
}
static inline vf vf_load_f8_n(const void *p, size_t n)
{
    uint64_t all = 0;
    memcpy(&all, p, n);
    return vf_load_f8(&all);
}
static inline void vf_store_u8(void *p, vf a)
{
    __m256i whole = _mm256_cvtps_epi32(a);
    __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(p, _mm_packus_epi16(words, words));
}
static inline vf vf_set1_f16(const void *p)
{
    int16_t bits;
    memcpy(&bits, p, 2);
    return _mm256_cvtph_ps(_mm_set1_epi16(bits));
}

static inline __m128i vf_to_bf16_(vf a)
{
    __m256i u = _mm256_castps_si256(a);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    __m256i bits = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
}
static inline void vf_store_bf16(void *p, vf a)
{
    _mm_storeu_si128(p, vf_to_bf16_(a));
}
static inline void vf_store_bf16_n(void *p, vf a, size_t n)
{
    vf_store16_n_(p, vf_to_bf16_(a), n);
}

static inline __m128i vf_to_f16_(vf a)
{
    a = vf_min(vf_set1(65504.0f), vf_max(vf_set1(-65504.0f), a));
    return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline void vf_store_f16(void *p, vf a)
{
    _mm_storeu_si128(p, vf_to_f16_(a));
}
static inline void vf_store_f16_n(void *p, vf a, size_t n)
{
    vf_store16_n_(p, vf_to_f16_(a), n);
}

/* 0+2, 1+3 of each half, their sum, then the halves. */
typedef __m128 vf_four;
static inline vf_four vf_sum4(vf a, vf b, vf c, vf d)
{
    vf ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    vf cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    vf abcd = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    return _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}
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
    return _mm256_cvtss_f32(a);
}
static inline float vf_max_across(vf a)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* A macro: gcc takes a function that only prefetches for one without effect. */
#define vf_prefetch(p) _mm_prefetch((p), _MM_HINT_T1)

#endif
