/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The numbers of `convert`. Rows that are quantized at their source become f32 first; rounding is to the nearest, ties to
 * even, and the same on every processor.
 */
#include <errno.h>
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/quantize.h"
#include "jobs/convert_internal.h"

enum { RUN = 2048 /* elements that a cast has in f32 at a time, on the stack */ };

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* NaN keeps a bit of its fraction; infinities stay. */
static uint16_t to_bf16(float value)
{
    uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* For |value| below 65520. Normal numbers: the exponent is re-biased and 13 bits of fraction are rounded away. Below 2^-14,
 * where half precision counts in steps of 2^-24: added to 0.5, whose own steps are those. */
static uint16_t to_f16(float value)
{
    uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffff, sign = bits >> 16 & 0x8000;
    if (magnitude >= 113u << 23)
        return (uint16_t)(sign | (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13);
    float small;
    memcpy(&small, &magnitude, sizeof small);
    return (uint16_t)(sign | (bits_of(small + 0.5f) - bits_of(0.5f)));
}

/* `out` may lie at any address. */
static int store_floats(const float *values, uint64_t count, pst_dtype type, unsigned char *out)
{
    if (type == PST_F32) {
        memcpy(out, values, count * sizeof *values);
        return 0;
    }
    for (uint64_t i = 0; i < count; i++) {
        if (type == PST_F16 && !(values[i] < 65520.0f && values[i] > -65520.0f))
            return -ERANGE; /* also no number, and infinities */
        uint16_t element = type == PST_F16 ? to_f16(values[i]) : to_bf16(values[i]);
        memcpy(out + 2 * i, &element, sizeof element);
    }
    return 0;
}

static int cast(const convert_item *item, uint64_t count, const unsigned char *in, unsigned char *out)
{
    float values[RUN];
    for (uint64_t at = 0; at < count; at += RUN) {
        uint64_t run = count - at < RUN ? count - at : RUN;
        pst_cpu_select(NULL)->convert(in + at * item->unit_in_bytes, item->from_type, values, run);
        int status = store_floats(values, run, item->to_type, out + at * item->unit_out_bytes);
        if (status < 0)
            return status;
    }
    return 0;
}

/* F8_E4M3: sign, 4 bits of exponent with bias 7, 3 of fraction; no infinities, 0x7f and 0xff are no numbers. */
static float from_f8(unsigned char code)
{
    uint32_t exponent = code >> 3 & 15, fraction = code & 7;
    uint32_t bits;
    float value;
    if ((code & 0x7f) == 0x7f) {
        bits = 0x7fc00000;
        memcpy(&value, &bits, sizeof value);
        return value;
    }
    if (exponent == 0) {
        value = (float)fraction * 0x1p-9f;
    } else {
        bits = (exponent + 120) << 23 | fraction << 20;
        memcpy(&value, &bits, sizeof value);
    }
    return code & 0x80 ? -value : value;
}

static float scale_at(const convert_item *item, const unsigned char *scales, uint64_t index)
{
    uint32_t bits = 0;
    float value;
    if (item->from->scale_type == PST_F32) {
        memcpy(&bits, scales + 4 * index, 4);
    } else {
        uint16_t upper;
        memcpy(&upper, scales + 2 * index, 2);
        bits = (uint32_t)upper << 16;
    }
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void expand_f8(const convert_item *item, const unsigned char *scales, uint64_t row, const unsigned char *in,
                      float *out)
{
    const pst_weight_format *from = item->from;
    uint64_t blocks = (item->columns + from->block_columns - 1) / from->block_columns;
    uint64_t first = row / from->block_rows * blocks;
    for (uint64_t b = 0; b < blocks; b++) {
        float scale = scale_at(item, scales, first + b);
        uint64_t begin = b * from->block_columns, end = begin + from->block_columns;
        if (end > item->columns)
            end = item->columns;
        for (uint64_t i = begin; i < end; i++)
            out[i] = from_f8(in[i]) * scale;
    }
}

/* A quantized row to f32. */
static void expand(const convert_item *item, const void *scales, uint64_t row, const unsigned char *in, float *out)
{
    if (item->from->layout == PST_WEIGHT_FP8_BLOCKS)
        expand_f8(item, scales, row, in, out);
    else
        pst_cpu_dequantize_row(in, item->columns, item->from, out);
}

uint64_t pst_convert_scratch_floats(const convert_item *item)
{
    bool is_quantized = item->from != NULL && item->from->layout != PST_WEIGHT_PLAIN;
    return is_quantized && item->kind != CONVERT_COPY ? item->columns : 0;
}

static int convert_row(const convert_item *item, const pst_weight_format *to, const void *scales, uint64_t row,
                       const unsigned char *in, unsigned char *out, float *scratch)
{
    bool is_plain = item->from->layout == PST_WEIGHT_PLAIN;
    if (!is_plain)
        expand(item, scales, row, in, scratch);
    if (item->kind == CONVERT_EXPAND)
        return store_floats(scratch, item->columns, item->to_type, out);
    return pst_cpu_quantize_row(is_plain ? (const void *)in : scratch, is_plain ? item->from_type : PST_F32,
                                item->columns, to, out);
}

int pst_convert_units(const convert_item *item, const pst_weight_format *to, const void *scales, uint64_t first,
                      uint64_t count, const unsigned char *in, unsigned char *out, float *scratch)
{
    if (item->kind == CONVERT_COPY)
        memcpy(out, in, count);
    if (item->kind == CONVERT_CAST)
        return cast(item, count, in, out);
    for (uint64_t i = 0; item->kind != CONVERT_COPY && i < count; i++) {
        int status = convert_row(item, to, scales, first + i, in + i * item->unit_in_bytes,
                                 out + i * item->unit_out_bytes, scratch);
        if (status < 0)
            return status;
    }
    return 0;
}
