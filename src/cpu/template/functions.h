/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Functions of vectors, lane by lane: exp and the activations. Written with the names of a vec_*.h, so that every
 * kernel set has them; where the set lacks fused multiply-add, vf_fma rounds twice and the bounds below still hold.
 */
#ifndef PST_CPU_TEMPLATE_FUNCTIONS_H
#define PST_CPU_TEMPLATE_FUNCTIONS_H

/* e^x within 2 units in the last place of a normal result. 0 below -104, infinity above 88.73, NaN for NaN.
 * x = n ln 2 + r, |r| <= ln 2 / 2; the series of e^r up to r^7 is off by r^8 / 8! < 6e-9. */
static inline vf vf_exp(vf x)
{
    x = vf_min(vf_set1(89.0f), vf_max(vf_set1(-104.0f), x));
    vf n = vf_round(vf_mul(x, vf_set1(1.44269504f)));
    /* ln 2 in two parts, the first of 9 bits, so that n times it is exact. */
    vf r = vf_fma(n, vf_set1(-0.693359375f), x);
    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    vf p = vf_set1(1.0f / 5040.0f);
    p = vf_fma(p, r, vf_set1(1.0f / 720.0f));
    p = vf_fma(p, r, vf_set1(1.0f / 120.0f));
    p = vf_fma(p, r, vf_set1(1.0f / 24.0f));
    p = vf_fma(p, r, vf_set1(1.0f / 6.0f));
    p = vf_fma(p, r, vf_set1(0.5f));
    p = vf_add(vf_fma(vf_mul(r, r), p, r), vf_set1(1.0f));
    /* n is -150..128: two factors, each a normal number. */
    vf half = vf_round(vf_mul(n, vf_set1(0.5f)));
    return vf_mul(vf_mul(p, vf_pow2(half)), vf_pow2(vf_sub(n, half)));
}

/* x / (1 + e^-x), through e^(-|x|/2) so that nothing overflows and small results keep their relative precision. */
static inline vf vf_silu(vf x)
{
    vf h = vf_exp(vf_mul(vf_abs(x), vf_set1(-0.5f)));
    vf numerator = vf_if_negative(x, vf_mul(vf_mul(x, h), h), x);
    return vf_div(numerator, vf_fma(h, h, vf_set1(1.0f)));
}

/* x / 2 * (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x / (1 + e^-u), u twice the argument of tanh. */
static inline vf vf_gelu_tanh(vf x)
{
    vf u = vf_mul(x, vf_fma(vf_mul(x, x), vf_set1(0.0713548163f), vf_set1(1.59576912f)));
    vf h = vf_exp(vf_mul(vf_abs(u), vf_set1(-0.5f)));
    vf numerator = vf_if_negative(u, vf_mul(vf_mul(x, h), h), x);
    return vf_div(numerator, vf_fma(h, h, vf_set1(1.0f)));
}

/* x P(x), P the normal distribution: P(-y) = e^(-y^2/2) Q(y) for y >= 0. Q, which falls smoothly from 1/2, is a
 * polynomial in t = 1/(1 + 0.3 y), fitted for least largest relative error on 0..14.5 (4e-8 in exact arithmetic);
 * beyond, P(-y) is 0. y^2 is taken in two parts, as its rounding error would become the result's relative error. */
static inline vf vf_gelu(vf x)
{
    static const float fit[10] = {1.4384351743501611e-05f, 0.11933387815952301f, 0.1233142763376236f,
                                  0.08763132989406586f,    0.1645117551088333f,  -0.12033288180828094f,
                                  0.28472211956977844f,    -0.2136346399784088f, 0.0582764707505703f,
                                  -0.003836679272353649f};
    vf y = vf_min(vf_set1(14.5f), vf_abs(x));
    vf t = vf_div(vf_set1(1.0f), vf_fma(y, vf_set1(0.3f), vf_set1(1.0f)));
    vf q = vf_set1(fit[9]);
    for (int i = 8; i >= 0; i--)
        q = vf_fma(q, t, vf_set1(fit[i]));
    vf high = vf_leading_bits(y);
    vf low = vf_mul(vf_mul(vf_sub(y, high), vf_add(y, high)), vf_set1(-0.5f));
    /* e^low, |low| < 0.06 */
    vf e = vf_fma(low, vf_set1(1.0f / 24.0f), vf_set1(1.0f / 6.0f));
    e = vf_fma(e, low, vf_set1(0.5f));
    e = vf_fma(vf_mul(low, low), e, low);
    e = vf_add(e, vf_set1(1.0f));
    vf tail = vf_mul(vf_mul(vf_exp(vf_mul(vf_mul(high, high), vf_set1(-0.5f))), e), q);
    return vf_mul(x, vf_if_negative(x, tail, vf_sub(vf_set1(1.0f), tail)));
}

/* Eight e^x in float64, x <= 0, within 2e-15 relative; 0 below -700. Plain loops over fixed arrays: lane by lane,
 * so the bits are the same however the compiler vectorizes them. */
static inline void exp_f64x8(double *x)
{
    static const double inverse_factorial[12] = {
        1.0,       1.0,        1.0 / 2,     1.0 / 6,      1.0 / 24,      1.0 / 120,
        1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800,
    };
    double n[8], r[8], p[8];
    for (int i = 0; i < 8; i++) {
        double a = x[i] > -700.0 ? x[i] : -700.0;
        n[i] = (a * 0x1.71547652b82fep+0 + 0x1.8p52) - 0x1.8p52;
        /* ln 2 in two parts, the first of 32 bits. */
        r[i] = (a - n[i] * 0x1.62e42feep-1) - n[i] * 0x1.a39ef35793c76p-33;
    }
    for (int i = 0; i < 8; i++)
        p[i] = inverse_factorial[11] + r[i] * (1.0 / 479001600.0);
    for (int k = 10; k >= 0; k--) {
        for (int i = 0; i < 8; i++)
            p[i] = p[i] * r[i] + inverse_factorial[k];
    }
    for (int i = 0; i < 8; i++) {
        uint64_t bits = (uint64_t)((int64_t)n[i] + 1023) << 52;
        double scale;
        memcpy(&scale, &bits, sizeof scale);
        x[i] = x[i] > -700.0 ? p[i] * scale : 0.0;
    }
}

#endif
