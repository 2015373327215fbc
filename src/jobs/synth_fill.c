/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A counter-based generator: a 32-bit word is a hash of its place, and gives two elements. Words are hashed
 * in blocks of 32,768 with a 64-bit key per block, so that the inner loops count in 32 bits, four or more
 * words at a time: they are plain C that compilers turn into vector code (this file is compiled with -O3 for
 * it), with wider clones picked at load time. Nothing but integer arithmetic, one exact conversion and one
 * multiplication happens to a value, so every processor makes the same bits.
 */
#include "jobs/synth_fill.h"
#include "base/number.h"

#include <string.h>

enum { BLOCK_WORDS = 32768 };

/* Stores without alignment, in a way that the compiler may vectorize. */
typedef uint32_t __attribute__((aligned(1), may_alias)) u32_any;
typedef uint16_t __attribute__((aligned(1), may_alias)) u16_any;

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) &&    \
    !defined(__clang__)
#define PST_CLONES __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#else
#define PST_CLONES
#endif

uint64_t pst_fill_key(uint64_t seed, const char *name)
{
    uint64_t key = pst_mix(seed + PST_RANDOM_STEP);
    for (; *name != '\0'; name++)
        key = pst_mix(key ^ (unsigned char)*name);
    return key;
}

static uint64_t block_key(const pst_fill *fill, uint64_t block)
{
    return pst_mix(fill->key + block * PST_RANDOM_STEP);
}

/* Word `index` of a block: a multiply-xorshift hash with the constants of the low-bias search by C.
 * Wellons, the second half of the key let in between its rounds, so that blocks with overlapping counters
 * differ. */
static inline uint32_t hash_word(uint32_t index, uint32_t key_low, uint32_t key_high)
{
    uint32_t x = index ^ key_low;
    x = (x ^ x >> 16) * UINT32_C(0x7feb352d);
    x = ((x ^ x >> 15) + key_high) * UINT32_C(0x846ca68b);
    return x ^ x >> 16;
}

static inline float value_of(int32_t half, int32_t offset, float scale)
{
    return (float)(offset + 2 * half + 1) * scale;
}

static inline uint32_t float_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* In the upper half; ties to even. The values are finite. */
static inline uint32_t round_bf16(float value)
{
    uint32_t bits = float_bits(value);
    return (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
}

/* In the lower half; ties to even; for values below 65504. Normal numbers: the exponent is re-biased and
 * 13 bits of fraction are rounded away. Below 2^-14, where half precision counts in steps of 2^-24: added
 * to 0.5, whose own steps are those. */
static inline uint32_t round_f16(float value)
{
    uint32_t bits = float_bits(value), magnitude = bits & 0x7fffffff;
    uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    float small;
    memcpy(&small, &magnitude, sizeof small);
    uint32_t subnormal = float_bits(small + 0.5f) - float_bits(0.5f);
    uint32_t is_small = (uint32_t) - ((int32_t)magnitude < 113 << 23);
    return (subnormal & is_small) | (normal & ~is_small) | (bits >> 16 & 0x8000);
}

/* In the lowest byte; ties to even; for values up to 448, the largest that E4M3 has. As above: the bias of the exponent is 7,
 * three bits of fraction, and below 2^-6 it counts in steps of 2^-9. */
static inline uint32_t round_f8(float value)
{
    uint32_t bits = float_bits(value), magnitude = bits & 0x7fffffff;
    uint32_t normal = (magnitude - (120u << 23) + 0x7ffff + (magnitude >> 20 & 1)) >> 20;
    float small;
    memcpy(&small, &magnitude, sizeof small);
    uint32_t subnormal = float_bits(small + 16384.0f) - float_bits(16384.0f);
    uint32_t is_small = (uint32_t) - ((int32_t)magnitude < 121 << 23);
    return (subnormal & is_small) | (normal & ~is_small) | (bits >> 24 & 0x80);
}

/* ---- whole words, into two elements each ---- */

PST_CLONES
static void words_bf16(uint32_t first, uint32_t count, uint64_t key, int32_t offset, float scale, u32_any *out)
{
    uint32_t low = (uint32_t)key, high = (uint32_t)(key >> 32);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t word = hash_word(first + i, low, high);
        float a = value_of((int16_t)word, offset, scale), b = value_of((int32_t)word >> 16, offset, scale);
        out[i] = round_bf16(a) >> 16 | round_bf16(b);
    }
}

PST_CLONES
static void words_f16(uint32_t first, uint32_t count, uint64_t key, int32_t offset, float scale, u32_any *out)
{
    uint32_t low = (uint32_t)key, high = (uint32_t)(key >> 32);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t word = hash_word(first + i, low, high);
        float a = value_of((int16_t)word, offset, scale), b = value_of((int32_t)word >> 16, offset, scale);
        out[i] = round_f16(a) | round_f16(b) << 16;
    }
}

PST_CLONES
static void words_f32(uint32_t first, uint32_t count, uint64_t key, int32_t offset, float scale, u32_any *out)
{
    uint32_t low = (uint32_t)key, high = (uint32_t)(key >> 32);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t word = hash_word(first + i, low, high);
        out[2 * i] = float_bits(value_of((int16_t)word, offset, scale));
        out[2 * i + 1] = float_bits(value_of((int32_t)word >> 16, offset, scale));
    }
}

PST_CLONES
static void words_f8(uint32_t first, uint32_t count, uint64_t key, int32_t offset, float scale, u16_any *out)
{
    uint32_t low = (uint32_t)key, high = (uint32_t)(key >> 32);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t word = hash_word(first + i, low, high);
        float a = value_of((int16_t)word, offset, scale), b = value_of((int32_t)word >> 16, offset, scale);
        out[i] = (uint16_t)(round_f8(a) | round_f8(b) << 8);
    }
}

static void fill_words(const pst_fill *fill, uint32_t first, uint32_t count, uint64_t key, void *out)
{
    if (fill->dtype == PST_F32)
        words_f32(first, count, key, fill->offset, fill->scale, out);
    else if (fill->dtype == PST_F16)
        words_f16(first, count, key, fill->offset, fill->scale, out);
    else if (fill->dtype == PST_F8_E4M3)
        words_f8(first, count, key, fill->offset, fill->scale, out);
    else
        words_bf16(first, count, key, fill->offset, fill->scale, out);
}

/* One element of a word whose other one is not wanted. */
static void fill_one(const pst_fill *fill, uint64_t element, void *out)
{
    uint32_t pair[2];
    size_t bytes = pst_dtype_bits(fill->dtype) / 8;
    fill_words(fill, (uint32_t)(element / 2 % BLOCK_WORDS), 1, block_key(fill, element / (2 * BLOCK_WORDS)), pair);
    memcpy(out, (char *)pair + element % 2 * bytes, bytes);
}

void pst_fill_elements(const pst_fill *fill, uint64_t first, uint64_t count, void *out)
{
    size_t bytes = pst_dtype_bits(fill->dtype) / 8;
    char *next = out;
    if (count > 0 && first % 2 == 1) {
        fill_one(fill, first++, next);
        next += bytes;
        count--;
    }
    while (count > 1) {
        uint64_t word = first / 2, left = BLOCK_WORDS - word % BLOCK_WORDS;
        uint64_t words = count / 2 < left ? count / 2 : left;
        fill_words(fill, (uint32_t)(word % BLOCK_WORDS), (uint32_t)words, block_key(fill, word / BLOCK_WORDS), next);
        next += words * 2 * bytes;
        first += words * 2;
        count -= words * 2;
    }
    if (count > 0)
        fill_one(fill, first, next);
}
