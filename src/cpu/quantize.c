/* SPDX-License-Identifier: Apache-2.0 */
/* See quantize.h; the loops are in template/quantize.h and template/dequant.h. */
#include "cpu/quantize.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/group_scale.h"

#define F16_LARGEST  0x7bff
#define F16_INFINITY 0x7c00

/* The bits of the largest F16 <= size or, `up`, the smallest >= size; size >= 0, finite. Beyond the largest number: that
 * one, or infinity. */
static uint16_t to_f16(double size, bool up)
{
    uint64_t u;
    memcpy(&u, &size, sizeof u);
    if (!(size > 0.0)) /* zero of either sign */
        return 0;
    if (size > 65504.0)
        return up ? F16_INFINITY : F16_LARGEST;
    const int exponent = (int)(u >> 52) - 1023;
    if (exponent < -25)
        return up ? 1 : 0;
    const uint64_t fraction = (u & ((UINT64_C(1) << 52) - 1)) | UINT64_C(1) << 52;
    /* size in units of the last place of an F16 of its exponent, 2^-24 at least */
    const int place = exponent - 10 > -24 ? exponent - 10 : -24, shift = 52 - (exponent - place);
    uint64_t units = fraction >> shift;
    units += up && (fraction & ((UINT64_C(1) << shift) - 1)) != 0;
    /* 1024 units are the implied bit; 2048, after rounding up, carry into the exponent as they should. */
    return (uint16_t)((uint64_t)(place + 24) * 1024 + units);
}

/* The value of a finite F16 of either sign; the product restores the exponent's offset exactly. */
static float from_f16(uint16_t bits)
{
    const uint32_t u = (uint32_t)(bits & 0x7fff) << 13;
    float size;
    memcpy(&size, &u, sizeof size);
    return bits & 0x8000 ? -(size * 0x1p112f) : size * 0x1p112f;
}

int pst_group_scale_range(float least, float largest, float most, pst_group_scale *out)
{
    const uint16_t minimum = least < 0.0f ? (uint16_t)(0x8000 | to_f16(-(double)least, true)) : to_f16(least, false);
    if (minimum == (0x8000 | F16_INFINITY))
        return -ERANGE;
    const double range = (double)largest - (double)from_f16(minimum);
    const uint16_t scale = to_f16(range / (double)most, true);
    if (scale == F16_INFINITY)
        return -ERANGE;
    *out = (pst_group_scale){from_f16(scale), from_f16(minimum), scale, minimum};
    return 0;
}

int pst_group_scale_symmetric(float least, float largest, float half, pst_group_scale *out)
{
    const double above = (double)largest / ((double)half - 1.0), below = -(double)least / (double)half;
    const double wanted = above > below ? above : below;
    const uint16_t scale = to_f16(wanted > 0.0 ? wanted : 0.0, true);
    if (scale == F16_INFINITY)
        return -ERANGE;
    *out = (pst_group_scale){from_f16(scale), 0.0f, scale, 0};
    return 0;
}

/* The best kernel set, asked for once: the answer never changes, so that it does not matter who stores it. */
static const pst_cpu_kernels *best(void)
{
    static _Atomic(const pst_cpu_kernels *) known;
    const pst_cpu_kernels *kernels = atomic_load_explicit(&known, memory_order_relaxed);
    if (kernels == NULL) {
        kernels = pst_cpu_select(NULL);
        atomic_store_explicit(&known, kernels, memory_order_relaxed);
    }
    return kernels;
}

int pst_cpu_quantize_row(const void *w, pst_dtype type, size_t columns, const pst_weight_format *format, void *out)
{
    return best()->quantize(w, type, columns, format, out);
}

void pst_cpu_dequantize_row(const void *row, size_t columns, const pst_weight_format *format, float *out)
{
    best()->dequantize(row, format, columns, 0, columns, out);
}
