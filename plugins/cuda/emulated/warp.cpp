/* SPDX-License-Identifier: Apache-2.0 */
/* What the 32 lanes of a warp do together, after the layouts that vendor.h describes; and f16 by hand. */
#include "emulator.h"

static int shuffle_source(const pst_emulated_offer *offer, int lane)
{
    const int width = offer->width, base = lane & ~(width - 1);
    int source = lane;
    switch (offer->what) {
    case PST_EMULATED_SHUFFLE_XOR: source = lane ^ offer->lane; break;
    case PST_EMULATED_SHUFFLE_UP: source = lane - offer->lane; break;
    case PST_EMULATED_SHUFFLE_DOWN: source = lane + offer->lane; break;
    default: return base + (offer->lane & (width - 1));
    }
    return source >= base && source < base + width ? source : lane; /* from outside: one's own */
}

static float half_of(const uint32_t *words, int word, int half, bool bf16)
{
    const uint16_t bits = (uint16_t)(words[word] >> 16 * half);
    return bf16 ? pst_bf16_to_f32(bits) : pst_f16_to_f32(bits);
}

static void multiply(pst_emulated_offer *const offers[PST_EMULATED_WARP], bool bf16)
{
    float a[16][16], b[16][8]; /* [row][k], [k][column] */
    for (int lane = 0; lane < PST_EMULATED_WARP; lane++) {
        const int g = lane / 4, t = lane % 4;
        const uint32_t *wa = (const uint32_t *)offers[lane]->a, *wb = (const uint32_t *)offers[lane]->b;
        for (int half = 0; half < 2; half++) {
            for (int word = 0; word < 4; word++)
                a[g + word % 2 * 8][2 * t + word / 2 * 8 + half] = half_of(wa, word, half, bf16);
            for (int word = 0; word < 2; word++)
                b[2 * t + word * 8 + half][g] = half_of(wb, word, half, bf16);
        }
    }
    for (int lane = 0; lane < PST_EMULATED_WARP; lane++) {
        const int g = lane / 4, t = lane % 4;
        float *d = (float *)offers[lane]->out;
        for (int i = 0; i < 4; i++) {
            const int row = g + i / 2 * 8, column = 2 * t + i % 2;
            double sum = d[i];
            for (int k = 0; k < 16; k++)
                sum += (double)a[row][k] * b[k][column];
            d[i] = (float)sum;
        }
    }
}

static void load_matrices(pst_emulated_offer *const offers[PST_EMULATED_WARP], bool transposed)
{
    const int matrices = (int)offers[0]->value;
    uint16_t m[4][8][8];
    for (int i = 0; i < matrices * 8; i++) {
        const void *row = offers[i]->a;
        if ((uintptr_t)row % 16 != 0)
            pst_emulated_fault("line %d: ldmatrix from %p: not aligned to 16 bytes", offers[i]->line, row);
        if (!pst_emulated_is_shared(row, 16))
            pst_emulated_fault("line %d: ldmatrix from %p, which is not in shared memory", offers[i]->line, row);
        memcpy(m[i / 8][i % 8], row, 16);
    }
    for (int lane = 0; lane < PST_EMULATED_WARP; lane++) {
        const int g = lane / 4, t = lane % 4;
        uint32_t *out = (uint32_t *)offers[lane]->out;
        for (int i = 0; i < matrices; i++)
            out[i] = transposed ? m[i][2 * t][g] | (uint32_t)m[i][2 * t + 1][g] << 16
                                : m[i][g][2 * t] | (uint32_t)m[i][g][2 * t + 1] << 16;
    }
}

void pst_emulated_complete(pst_emulated_offer *offers[PST_EMULATED_WARP], uint64_t results[PST_EMULATED_WARP])
{
    uint32_t ballot = 0;
    memset(results, 0, PST_EMULATED_WARP * sizeof *results);
    switch (offers[0]->what) {
    case PST_EMULATED_SYNC: break;
    case PST_EMULATED_BALLOT:
        for (int lane = 0; lane < PST_EMULATED_WARP; lane++)
            ballot |= (uint32_t)offers[lane]->value << lane;
        for (int lane = 0; lane < PST_EMULATED_WARP; lane++)
            results[lane] = ballot;
        break;
    case PST_EMULATED_MMA_BF16: multiply(offers, true); break;
    case PST_EMULATED_MMA_F16: multiply(offers, false); break;
    case PST_EMULATED_LDMATRIX: load_matrices(offers, false); break;
    case PST_EMULATED_LDMATRIX_TRANS: load_matrices(offers, true); break;
    default:
        for (int lane = 0; lane < PST_EMULATED_WARP; lane++)
            results[lane] = offers[shuffle_source(offers[lane], lane)]->value;
    }
}

float pst_f16_to_f32(uint16_t x)
{
    const uint32_t sign = (uint32_t)(x & 0x8000) << 16, rest = x & 0x7fff;
    if (rest >= 0x7c00) /* infinite, or not a number */
        return __uint_as_float(sign | 0x7f800000u | (rest & 0x3ff) << 13);
    /* The bits at an f32's places are 2^112 too small, also where they are subnormal. */
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest << 13) * 0x1p112f));
}

uint16_t pst_f32_to_f16(float x)
{
    const uint32_t bits = __float_as_uint(x), rest = bits & 0x7fffffffu;
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (rest > 0x7f800000u)
        return 0x7fff;
    if (rest >= 0x477ff000u) /* 65520 and more round to infinity */
        return (uint16_t)(sign | 0x7c00);
    if (rest <
        0x38800000u) { /* below 2^-14: subnormal; units of 2^-24 come to stand at the lowest bits of 0.5's fraction */
        const float shifted = __uint_as_float(rest) + 0.5f;
        return (uint16_t)(sign | (__float_as_uint(shifted) - 0x3f000000u));
    }
    const uint32_t rounded = rest + 0xfff + (rest >> 13 & 1);
    return (uint16_t)(sign | ((rounded >> 13) - (112u << 10)));
}
