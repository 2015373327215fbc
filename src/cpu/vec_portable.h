/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vectors of the portable set: 4 floats in the vector extension of gcc and clang, which compiles to whatever the
 * target has. A product and a sum are two roundings. The names are those of vec_avx512.h, which explains them.
 */
#ifndef PST_CPU_VEC_PORTABLE_H
#define PST_CPU_VEC_PORTABLE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define VF_LANES     4
#define VF_TILE_ROWS 2

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));

static inline vi vi_set1(int32_t a)
{
    return (vi){a, a, a, a};
}
/* a where the mask is all ones, b where it is zero */
static inline vf vf_blend_(vi mask, vf a, vf b)
{
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
}

static inline vf vf_zero(void)
{
    return (vf){0, 0, 0, 0};
}
static inline vf vf_set1(float a)
{
    return (vf){a, a, a, a};
}
static inline vf vf_add(vf a, vf b)
{
    return a + b;
}
static inline vf vf_sub(vf a, vf b)
{
    return a - b;
}
static inline vf vf_mul(vf a, vf b)
{
    return a * b;
}
static inline vf vf_div(vf a, vf b)
{
    return a / b;
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return a * b + c;
}
static inline vf vf_max(vf a, vf b)
{
    return vf_blend_(a > b, a, b);
}
static inline vf vf_min(vf a, vf b)
{
    return vf_blend_(a < b, a, b);
}
static inline vf vf_abs(vf a)
{
    return (vf)((vi)a & vi_set1(0x7fffffff));
}
static inline vf vf_if_negative(vf x, vf a, vf b)
{
    return vf_blend_(x < vf_zero(), a, b);
}
/* To the nearest whole number for |a| < 2^22: the sum has no room for a fraction. */
static inline vf vf_round(vf a)
{
    return (a + vf_set1(0x1.8p23f)) - vf_set1(0x1.8p23f);
}
static inline vf vf_pow2(vf n)
{
    /* n + 127 as the low bits of a float of exponent 23, moved to the exponent's place. */
    return (vf)(((vi)(n + vf_set1(0x1.8p23f + 127.0f))) << 23);
}
static inline vf vf_leading_bits(vf a)
{
    return (vf)((vi)a & vi_set1((int32_t)0xfffff000));
}

static inline vf vf_load_f32_n(const void *p, size_t n)
{
    vf a = vf_zero();
    memcpy(&a, p, n * 4);
    return a;
}
static inline vf vf_load_f32(const void *p)
{
    vf a;
    memcpy(&a, p, sizeof a);
    return a;
}
static inline void vf_store_f32(void *p, vf a)
{
    memcpy(p, &a, sizeof a);
}
static inline void vf_store_f32_n(void *p, vf a, size_t n)
{
    memcpy(p, &a, n * 4);
}

static inline vi vf_load16_n_(const void *p, size_t n)
{
    uint16_t u[4] = {0};
    memcpy(u, p, n * 2);
    return (vi){u[0], u[1], u[2], u[3]};
}
static inline void vf_store16_n_(void *p, vi a, size_t n)
{
    uint16_t u[4] = {(uint16_t)a[0], (uint16_t)a[1], (uint16_t)a[2], (uint16_t)a[3]};
    memcpy(p, u, n * 2);
}

static inline vf vf_load_bf16_n(const void *p, size_t n)
{
    return (vf)(vf_load16_n_(p, n) << 16);
}
static inline vf vf_load_bf16(const void *p)
{
    return vf_load_bf16_n(p, 4);
}

/* The fraction and exponent moved to their places make a float that is 2^-112 times too small, denormals of 16 bits
 * included, which the multiplication puts right exactly; infinity and NaN get the largest exponent. */
static inline vf vf_load_f16_n(const void *p, size_t n)
{
    vi h = vf_load16_n_(p, n);
    vi sign = (h & vi_set1(0x8000)) << 16;
    vi rest = h & vi_set1(0x7fff);
    vi finite = (vi)((vf)(rest << 13) * vf_set1(0x1p112f));
    vi special = (rest << 13) | vi_set1(0x7f800000);
    vi is_special = rest > vi_set1(0x7bff);
    return (vf)(sign | (is_special & special) | (~is_special & finite));
}
static inline vf vf_load_f16(const void *p)
{
    return vf_load_f16_n(p, 4);
}

static inline vf vf_load_u8_n(const void *p, size_t n)
{
    uint8_t u[4] = {0};
    memcpy(u, p, n);
    return (vf){u[0], u[1], u[2], u[3]};
}
static inline vf vf_load_u8(const void *p)
{
    return vf_load_u8_n(p, 4);
}
#define VF_LOOKUP 0
static inline vf vf_load_u4_n(const void *p, size_t n)
{
    uint8_t u[2] = {0};
    memcpy(u, p, (n + 1) / 2);
    return (vf){(float)(u[0] & 15), (float)(u[0] >> 4), (float)(u[1] & 15), (float)(u[1] >> 4)};
}
static inline vf vf_load_u4(const void *p)
{
    return vf_load_u4_n(p, 4);
}
static inline vf vf_bits(vf lanes, int shift, int mask)
{
    return __builtin_convertvector(((vi)lanes >> shift) & vi_set1(mask), vf); /* the mask takes the sign's copies */
}
/* As F16 above; in a float's places it is 2^-120 times too small, and 2^-8 of it shall stay. */
static inline vf vf_load_f8_n(const void *p, size_t n)
{
    uint8_t u[4] = {0};
    memcpy(u, p, n);
    vi a = {u[0], u[1], u[2], u[3]};
    return (vf)((a & vi_set1(0x80)) << 24 | (vi)((vf)((a & vi_set1(0x7f)) << 20) * vf_set1(0x1p112f)));
}
static inline vf vf_load_f8(const void *p)
{
    return vf_load_f8_n(p, 4);
}
static inline void vf_store_u8(void *p, vf a)
{
    uint8_t u[4] = {(uint8_t)a[0], (uint8_t)a[1], (uint8_t)a[2], (uint8_t)a[3]};
    memcpy(p, u, 4);
}
static inline vf vf_set1_f16(const void *p)
{
    float a = vf_load_f16_n(p, 1)[0];
    return vf_set1(a);
}

/* For sums in which a NaN's bits may pass the largest positive number. */
typedef uint32_t vu __attribute__((vector_size(16)));

static inline void vf_store_bf16_n(void *p, vf a, size_t n)
{
    vi u = (vi)a;
    vi odd = (u >> 16) & vi_set1(1);
    vi rounded = (vi)((vu)u + (vu)odd + (vu)vi_set1(0x7fff));
    vi nan = a != a;
    vi bits = (nan & (u | vi_set1(0x400000))) | (~nan & rounded);
    vf_store16_n_(p, (bits >> 16) & vi_set1(0xffff), n);
}
static inline void vf_store_bf16(void *p, vf a)
{
    vf_store_bf16_n(p, a, 4);
}

static inline void vf_store_f16_n(void *p, vf a, size_t n)
{
    a = vf_min(vf_set1(65504.0f), vf_max(vf_set1(-65504.0f), a));
    vi u = (vi)a;
    vi sign = (u >> 16) & vi_set1(0x8000);
    vi size = u & vi_set1(0x7fffffff);
    vi nan = a != a;
    /* Normal: round the 13 bits that go, to even, and rebias the exponent by 112. */
    vu rounded = (vu)size + (vu)vi_set1(0xfff) + (vu)((size >> 13) & vi_set1(1));
    vi normal = (vi)(rounded - (vu)vi_set1(112 << 23)) >> 13;
    /* Below 2^-14: adding 1/2 leaves the rounded multiple of 2^-24 in the lowest bits. */
    vi tiny = (vi)((vf)size + vf_set1(0.5f)) - (vi)vf_set1(0.5f);
    vi is_tiny = size < vi_set1(113 << 23);
    vi bits = (is_tiny & tiny) | (~is_tiny & normal);
    bits = (nan & vi_set1(0x7e00)) | (~nan & bits);
    vf_store16_n_(p, sign | bits, n);
}
static inline void vf_store_f16(void *p, vf a)
{
    vf_store_f16_n(p, a, 4);
}

typedef vf vf_four;
static inline vf_four vf_sum4(vf a, vf b, vf c, vf d)
{
    vf even = (vf){a[0] + a[2], b[0] + b[2], c[0] + c[2], d[0] + d[2]};
    vf odd = (vf){a[1] + a[3], b[1] + b[3], c[1] + c[3], d[1] + d[3]};
    return even + odd;
}
static inline vf_four vf_four_load(const float *p)
{
    return vf_load_f32(p);
}
static inline void vf_four_store(float *p, vf_four a)
{
    vf_store_f32(p, a);
}
static inline vf_four vf_four_add(vf_four a, vf_four b)
{
    return a + b;
}
static inline float vf_sum(vf a)
{
    return (a[0] + a[2]) + (a[1] + a[3]);
}
static inline float vf_first(vf a)
{
    return a[0];
}
static inline float vf_max_across(vf a)
{
    float left = a[0] > a[1] ? a[0] : a[1];
    float right = a[2] > a[3] ? a[2] : a[3];
    return left > right ? left : right;
}

/* A macro: gcc takes a function that only prefetches for one without effect. */
#define vf_prefetch(p) __builtin_prefetch((p), 0, 2)

#endif
